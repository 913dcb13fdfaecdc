// The contents of the live page: its charts, the large figures and the tables.

import { Chart, Sparkline, element } from "./chart.js";
import { clock, duration, LATENCY_SECONDS, units } from "./figures.js";

const byId = (id) => document.getElementById(id);

/** On a narrow screen a row is shown as lines, each beginning with its column's heading. */
function nameCells(table) {
  const heads = [...table.tHead.rows[0].cells].map((head) => head.textContent);
  for (const row of table.tBodies[0].rows) {
    [...row.cells].forEach((cell, index) => (cell.dataset.head = heads[index]));
  }
}

/** A fixed list of series, with or without values. */
const fixed = (...series) => () => series.map(([name, label, place]) => ({ name, label, place }));

/** The series with this prefix that were not zero in the time shown. */
function present(start, places) {
  const labels = Object.entries(places);
  return (history) =>
    labels
      .map(([key, [label, place]]) => ({ name: start + key, label, place }))
      .filter(({ name }) => history.some(({ values }) => values[name] > 0));
}

/** All statuses that occurred, in ascending order. */
function statuses(history) {
  const names = new Set(history.flatMap(({ values }) => Object.keys(values)));
  const codes = [...names].filter((name) => name.startsWith("status.")).sort();
  return codes.map((name) => ({ name, label: name.slice("status.".length) }));
}

const DROPS = {
  slow_consumer: ["slow consumer", 0],
  disconnected: ["disconnected", 1],
  closed: ["closed", 2],
  ttl: ["ttl", 3],
  mailbox_full: ["mailbox full", 4],
  worker_full: ["worker full", 5],
};
const ANSWERS = {
  answered: ["answered", 0],
  no_server: ["no server", 1],
  timeout: ["timeout", 2],
  server_gone: ["server gone", 3],
  overloaded: ["overloaded", 4],
};

const HOPS = [
  { name: "queue.p95", label: "queue's reply" },
  { name: "receive.p95", label: "to a worker" },
  { name: "write.p95", label: "writing" },
];

const PAUSES = [
  { name: "pause.wall.p99", label: "pause" },
  { name: "pause.own.p99", label: "worker's own part" },
];
/** Maximum length in milliseconds of a pause caused by the worker itself. */
const MOST_PAUSE_MS = 2;

const latency = (id, title, note) => ({
  id,
  title,
  note,
  unit: "seconds",
  isLog: true,
  series: (history) => {
    const all = ["p50", "p95", "p99"].map((one) => ({ name: `${id}.${one}`, label: one }));
    return history.some(({ values }) => values[all[0].name] > 0) ? all : [];
  },
  empty: "no data in this period",
});

/** `isShown` checks the snapshot: a chart without data is left out. */
const CHARTS = [
  {
    id: "connections",
    title: "Connections",
    note: "open now",
    unit: "count",
    least: 1,
    series: fixed(["connections", "WebSocket"], ["http_connections", "HTTP"]),
  },
  {
    id: "deliveries",
    title: "Messages",
    note: "per second",
    unit: "rate",
    series: fixed(
      ["deliveries", "deliveries"],
      ["pushes_accepted", "pushes"],
      ["client_messages", "from clients"],
      ["server_messages", "from servers"],
    ),
  },
  {
    id: "drops",
    title: "Drops",
    note: "pushes per second that were not delivered",
    unit: "rate",
    series: present("drop.", DROPS),
    empty: "nothing was dropped in this period",
  },
  latency("delivery", "Delivery latency", "of pushes, to the sockets"),
  {
    id: "hops",
    title: "Stages of a push",
    note: "95th percentile",
    unit: "seconds",
    isLog: true,
    series: (history) => HOPS.filter(({ name }) => history.some(({ values }) => values[name] > 0)),
    empty: "no data in this period",
  },
  {
    id: "pauses",
    title: "Pauses of workers",
    note: "99th percentile of the time until a worker gets to all that is ready",
    unit: "seconds",
    isLog: true,
    series: (history) => PAUSES.filter(({ name }) => history.some(({ values }) => values[name] > 0)),
    empty: "no data in this period",
  },
  latency("request", "HTTP latency", `requests of the last ${LATENCY_SECONDS} s`),
  {
    id: "requests",
    title: "HTTP requests",
    note: "per second, by status",
    unit: "rate",
    series: statuses,
    empty: "no requests yet",
  },
  {
    id: "handshakes",
    title: "Connects and disconnects",
    note: "WebSocket connections per second",
    unit: "rate",
    series: fixed(["connects", "opened"], ["refused", "refused"], ["closes", "closed"]),
  },
  {
    id: "waiting",
    title: "Waiting bytes",
    note: "for sockets, workers and the queue",
    unit: "bytes",
    least: 256,
    series: (history) => {
      const own = [
        { name: "outbox_bytes", label: "outboxes" },
        { name: "waiting_bytes", label: "workers" },
      ];
      const pending = { name: "pending_bytes", label: "queue" };
      return history.some(({ values }) => "pending_bytes" in values) ? [...own, pending] : own;
    },
  },
  {
    id: "bytes",
    title: "Bytes",
    note: "per second, of WebSocket connections",
    unit: "byteRate",
    least: 256,
    series: fixed(["sent_bytes", "sent"], ["received_bytes", "received"]),
  },
  {
    id: "queue",
    title: "Queue",
    note: "messages per second between nodes",
    unit: "rate",
    isShown: (snapshot) => snapshot.queue.received !== undefined,
    series: (history) => [
      { name: "queue.published", label: "accepted" },
      { name: "queue.received", label: "received" },
      ...present("queue.", {
        refused: ["refused", 3],
        unknown: ["unknown", 4],
        missed: ["missed", 5],
      })(history),
    ],
  },
  {
    id: "answers",
    title: "Requests to business servers",
    note: "per second, by result",
    unit: "rate",
    isShown: ({ answers }, { servers }) => servers > 0 || Object.values(answers).some(Boolean),
    series: present("answer.", ANSWERS),
    empty: "no request in this period",
  },
];

/** Possible maxima of the threads' small charts: shares of a core. */
const TOPS = [0.1, 0.25, 0.5, 1];

export class Panels {
  constructor() {
    this.charts = CHARTS.map((definition) => ({ definition, chart: new Chart(definition) }));
    byId("charts").append(...this.charts.map(({ chart }) => chart.element));
    this.workers = new Map();
    /** Every node that was seen; one that is no longer reported is lost. */
    this.nodes = new Map();
  }

  /** `snapshot` is null while the node is unreachable: its last values stay. */
  draw(snapshot, history, ms) {
    const { values } = history.at(-1);
    if (snapshot) {
      showTiles(snapshot, values);
      this.#showNodes(snapshot);
      this.#showWorkers(snapshot, history, ms);
      showProjects(snapshot);
      showRecent(snapshot);
      showRequests(snapshot, values);
    }
    document.querySelectorAll("#tables table").forEach(nameCells);
    for (const { definition, chart } of this.charts) {
      const { isShown } = definition;
      if (snapshot && isShown) chart.element.hidden = !isShown(snapshot, values);
      chart.draw(history, ms);
    }
  }

  #showNodes({ nodes, node: own }) {
    for (const node of this.nodes.keys()) this.nodes.set(node, "lost");
    for (const { node, state } of nodes) this.nodes.set(node, state);
    const sorted = [...this.nodes].sort(([one], [other]) => one - other);
    const items = sorted.map(([node, state]) => {
      const item = element("li", "", `node ${node}: ${state}`);
      item.dataset.state = state;
      if (node === own) item.append(element("span", "note", " this one"));
      return item;
    });
    byId("nodes").replaceChildren(...items);
  }

  #showWorkers({ workers, threads }, history, ms) {
    const { values } = history.at(-1);
    const shown = history.filter(({ time }) => time > history.at(-1).time - ms);
    const names = [...workers.map((_, index) => `worker-${index}`), "broker"];
    const most = (name) => Math.max(...shown.map((one) => one.values[`busy.${name}`] ?? 0));
    const highest = Math.max(...names.map(most));
    const top = TOPS.find((one) => one >= highest) ?? 1;
    byId("busy").textContent = `Busy, up to ${units.share(top)}`;
    const row = (name, texts) => {
      if (!this.workers.has(name)) {
        this.workers.set(name, workerRow(name));
        byId("workers").append(this.workers.get(name).row);
      }
      const { cells, line } = this.workers.get(name);
      line.draw(shown, ms, `busy.${name}`, top);
      const all = [units.share(values[`busy.${name}`]), ...texts];
      all.forEach((text, place) => (cells[place].textContent = text));
    };
    workers.forEach((worker, index) => {
      const of = (name) => values[`worker.${index}.${name}`];
      row(`worker-${index}`, [
        units.rate(of("deliveries")),
        units.rate(of("drops")),
        units.count(worker.connections),
        units.rate(of("messages")),
        units.rate(of("envelopes")),
        units.bytes(worker.outbox_bytes),
      ]);
    });
    // With one worker, the broker runs on that worker's thread.
    if (threads.some(({ name }) => name === "broker")) row("broker", []);
  }
}

function showTiles(snapshot, values) {
  const tiles = [
    ["Connections", units.count(values.connections)],
    ["Deliveries", units.rate(values.deliveries)],
    ["Dropped", units.rate(values.drops), values.drops > 0 ? "bad" : ""],
    ["Delivery p99", units.seconds(values["delivery.p99"])],
    ["HTTP p99", units.seconds(values["request.p99"])],
    ["Business servers", units.count(values.servers)],
    pauseTile(snapshot.longest_pause_us),
    queueTile(snapshot.queue),
    ["Memory", units.bytes(snapshot.memory_bytes)],
    ["Uptime", duration(snapshot.uptime_ms)],
    ...reloadTiles(snapshot),
  ];
  byId("tiles").replaceChildren(...tiles.map(([label, text, state = ""]) => {
    const tile = element("div", "tile");
    tile.dataset.state = state;
    tile.append(element("dt", "", label), element("dd", "", text));
    return tile;
  }));
}

/** Of the last reload, if there was one. */
function reloadTiles({ reload, ts }) {
  if (!reload) return [];
  const ago = `${duration(ts - reload.ts)} ago`;
  return [["Last reload", reload.ok ? ago : `failed, ${ago}`, reload.ok ? "" : "bad"]];
}

/** Of the last minutes; pauses below half a millisecond are not recorded. */
function pauseTile({ own }) {
  const text = own > 0 ? units.seconds(own / 1e6) : "< 0.5 ms";
  return ["Longest own pause", text, own > MOST_PAUSE_MS * 1000 ? "bad" : ""];
}

function queueTile({ kind, ready, lag_ms: lag }) {
  if (kind === "local") return ["Queue", "local"];
  if (!ready) return ["Queue", "down", "bad"];
  // The transit time of the node's own messages, in whole milliseconds.
  return [`Queue, lag ${lag > 0 ? units.seconds(lag / 1000) : "< 1 ms"}`, "ready"];
}

function workerRow(name) {
  const row = element("tr");
  const head = element("th", "", name);
  head.scope = "row";
  const line = new Sparkline();
  const picture = element("td", "load");
  const cells = [element("span"), ...Array.from({ length: 6 }, () => element("td"))];
  picture.append(line.element, cells[0]);
  row.append(head, picture, ...cells.slice(1));
  return { row, cells, line };
}

/** A row whose first cell is its heading. */
function tableRow(name, ...texts) {
  const row = element("tr");
  const head = element("th", "", name);
  head.scope = "row";
  row.append(head, ...texts.map((text) => element("td", "", text)));
  return row;
}

function showProjects({ projects }) {
  const rows = projects.map(({ pid, clients, servers }) =>
    tableRow(pid, units.count(clients), units.count(servers)),
  );
  byId("projects").replaceChildren(...rows);
}

function showRecent({ recent = [] }) {
  const rows = recent.map(({ ts, ip = "unknown", pid, uid, client_id }) =>
    tableRow(clock(ts), ip, pid, uid, client_id),
  );
  byId("recent").replaceChildren(...rows);
}

function showRequests({ requests, handshakes }, values) {
  const ofWs = Object.entries(handshakes).map(([code, count]) =>
    tableRow("/ws/connect", code, units.count(count), ""),
  );
  const ofHttp = requests.map(({ url, code, count }) => {
    const rate = units.rate(values[`url.${url}.${code}`]);
    return tableRow(url, String(code), units.count(count), rate);
  });
  byId("requests").replaceChildren(...ofWs, ...ofHttp);
}
