// What the live page shows: its charts, the large figures, and the tables.

import { Chart, Sparkline, element } from "./chart.js";
import { duration, LATENCY_SECONDS, units } from "./figures.js";

const byId = (id) => document.getElementById(id);
/** Always these, drawn or not. */
const fixed = (...series) => () => series.map(([name, label, place]) => ({ name, label, place }));

/** Those that were not zero in the time that is shown, by the start of their names. */
function present(start, places) {
  const labels = Object.entries(places);
  return (history) =>
    labels
      .map(([key, [label, place]]) => ({ name: start + key, label, place }))
      .filter(({ name }) => history.some(({ values }) => values[name] > 0));
}

/** Whatever statuses there are: what went well first. */
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

const latency = (id, title, note, name) => ({
  id,
  title,
  note,
  unit: "seconds",
  isLog: true,
  series: (history) => {
    const all = ["p50", "p95", "p99"].map((one) => ({ name: `${name}.${one}`, label: one }));
    return history.some(({ values }) => values[all[0].name] > 0) ? all : [];
  },
  empty: "nothing in this time",
});

/** `isShown` asks the snapshot: a chart without its numbers is left out. */
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
      ["client_messages", "from clients"],
      ["server_messages", "from servers"],
    ),
  },
  {
    id: "drops",
    title: "Drops",
    note: "pushes per second that did not reach their connection",
    unit: "rate",
    series: present("drop.", DROPS),
    empty: "nothing was dropped in this time",
  },
  {
    ...latency("delivery", "Delivery latency", "from acceptance to the socket", "delivery"),
    isShown: (snapshot) => snapshot.delivery_latency !== undefined,
  },
  latency("latency", "HTTP latency", `requests of the last ${LATENCY_SECONDS} s`, "request"),
  {
    id: "requests",
    title: "HTTP requests",
    note: "per second, by status",
    unit: "rate",
    series: statuses,
    empty: "no request so far",
  },
  {
    id: "handshakes",
    title: "Coming and going",
    note: "WebSocket connections per second",
    unit: "rate",
    series: fixed(["connects", "opened"], ["refused", "refused"], ["closes", "closed"]),
  },
  {
    id: "waiting",
    title: "Bytes that wait",
    note: "for sockets, for the queue's answer",
    unit: "bytes",
    least: 256,
    series: (history) => {
      const outboxes = { name: "outbox_bytes", label: "outboxes" };
      const pending = { name: "pending_bytes", label: "queue" };
      return history.at(-1).values.pending_bytes === undefined ? [outboxes] : [outboxes, pending];
    },
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
    empty: "no request in this time",
  },
];

export class Panels {
  constructor() {
    this.charts = CHARTS.map((definition) => ({ definition, chart: new Chart(definition) }));
    byId("charts").append(...this.charts.map(({ chart }) => chart.element));
    this.workers = [];
  }

  /** `snapshot` is null while the node is gone: what it last said stays. */
  draw(snapshot, history, ms) {
    const { values } = history.at(-1);
    if (snapshot) {
      this.#showNode(snapshot, values);
      this.#showWorkers(snapshot, history, ms);
      showRequests(snapshot, values);
    }
    for (const { definition, chart } of this.charts) {
      const { isShown } = definition;
      if (snapshot && isShown) chart.element.hidden = !isShown(snapshot, values);
      chart.draw(history, ms);
    }
  }

  #showNode(snapshot, values) {
    const tiles = [
      ["Connections", units.count(values.connections)],
      ["Deliveries", units.rate(values.deliveries)],
      ["Dropped", units.rate(values.drops), values.drops > 0 ? "bad" : ""],
      ["HTTP p99", units.seconds(values["request.p99"])],
    ];
    if (snapshot.delivery_latency) {
      tiles.push(["Delivery p99", units.seconds(values["delivery.p99"])]);
    }
    tiles.push(
      ["Business servers", units.count(values.servers)],
      ["Queue", ...queueWords(snapshot.queue)],
      ["Up for", duration(snapshot.uptime_ms)],
    );
    byId("tiles").replaceChildren(...tiles.map(([label, text, state = ""]) => {
      const tile = element("div", "tile");
      tile.dataset.state = state;
      tile.append(element("dt", "", label), element("dd", "", text));
      return tile;
    }));
    const nodes = snapshot.nodes.map(({ node, state }) => {
      const item = element("li", "", `node ${node}: ${state}`);
      item.dataset.state = state;
      if (node === snapshot.node) item.append(element("span", "note", " this one"));
      return item;
    });
    byId("nodes").replaceChildren(...nodes);
  }

  /** A worker's load is the share of time that it was busy; where nobody tells, its deliveries. */
  #showWorkers({ workers }, history, ms) {
    const isBusyKnown = workers[0].busy_us !== undefined;
    const load = (index) => `worker.${index}.${isBusyKnown ? "busy" : "deliveries"}`;
    byId("load").textContent = isBusyKnown ? "Busy" : "Load";
    const { values } = history.at(-1);
    const shown = history.filter(({ time }) => time > history.at(-1).time - ms);
    const all = workers.flatMap((_, index) => shown.map((one) => one.values[load(index)] ?? 0));
    const top = isBusyKnown ? 1 : all.reduce((a, b) => Math.max(a, b), 1);
    const body = byId("workers");
    for (let index = this.workers.length; index < workers.length; index++) {
      this.workers.push(workerRow(index));
      body.append(this.workers[index].row);
    }
    workers.forEach((worker, index) => {
      const { cells, line } = this.workers[index];
      const of = (name) => values[`worker.${index}.${name}`];
      line.draw(shown, ms, load(index), top);
      const texts = [
        isBusyKnown ? units.share(of("busy")) : "",
        units.rate(of("deliveries")),
        units.rate(of("drops")),
        units.count(worker.connections),
        units.rate(of("messages")),
        units.rate(of("envelopes")),
        units.bytes(worker.outbox_bytes),
      ];
      texts.forEach((text, place) => (cells[place].textContent = text));
    });
  }
}

function queueWords(queue) {
  if (queue.kind === "local") return ["local"];
  return queue.ready ? ["ready"] : ["down", "bad"];
}

function workerRow(index) {
  const row = element("tr");
  const name = element("th", "", String(index));
  name.scope = "row";
  const line = new Sparkline();
  const picture = element("td", "load");
  const cells = [element("span"), ...Array.from({ length: 6 }, () => element("td"))];
  picture.append(line.element, cells[0]);
  row.append(name, picture, ...cells.slice(1));
  return { row, cells, line };
}

function showRequests({ requests, handshakes }, values) {
  const row = (url, code, count, rate) => {
    const cells = [String(code), units.count(count), rate === undefined ? "" : units.rate(rate)];
    const made = element("tr");
    const head = element("th", "", url);
    head.scope = "row";
    made.append(head, ...cells.map((text) => element("td", "", text)));
    return made;
  };
  const ofHttp = requests.map(({ url, code, count }) =>
    row(url, code, count, values[`url.${url}.${code}`]),
  );
  const ofWs = Object.entries(handshakes).map(([code, count]) => row("/ws/connect", code, count));
  byId("requests").replaceChildren(...ofWs, ...ofHttp);
}
