// What the numbers of /live.json mean: rates, percentiles and their text. Independent of the page.

/** Latency percentiles cover the requests of this many seconds. */
export const LATENCY_SECONDS = 10;

/** The increase of a counter; null if unknown, because it did not exist or was reset. */
function rise(before, now) {
  return before === undefined || now === undefined || now < before ? null : now - before;
}

/** Seconds between two snapshots; null if there are not two, or the node has restarted. */
function secondsBetween(before, now) {
  if (!before || before.epoch !== now.epoch) return null;
  const seconds = (now.ts - before.ts) / 1000;
  return seconds > 0 ? seconds : null;
}

export function sum(numbers) {
  return numbers.reduce((total, number) => total + number, 0);
}

const AMOUNTS = ["connections", "http_connections", "servers", "outbox_bytes", "waiting_bytes"];
const COUNTS = [
  "connects", "deliveries", "client_messages", "server_messages", "sent_bytes", "received_bytes",
  "pushes_accepted", "pushes_refused",
];

/**
 * One point of every chart: names to numbers, null if one is unknown. `before` is the last
 * snapshot, for the rates; `earlier` an older one, for the percentiles.
 */
export function sample(now, before, earlier) {
  const seconds = secondsBetween(before, now);
  const values = {};
  const rate = (name, read) => {
    const more = seconds === null ? null : rise(read(before), read(now));
    values[name] = more === null ? null : more / seconds;
  };
  const total = (read) => (snapshot) => sum(snapshot.workers.map(read));
  for (const name of AMOUNTS) values[name] = total((worker) => worker[name])(now);
  for (const name of COUNTS) rate(name, total((worker) => worker[name]));
  rate("closes", total((worker) => sum(Object.values(worker.closes))));
  rate("refused", ({ handshakes }) => sum(Object.values({ ...handshakes, 101: 0 })));
  for (const reason of Object.keys(now.workers[0].drops)) {
    rate(`drop.${reason}`, total((worker) => worker.drops[reason]));
  }
  requestRates(rate, now);
  for (const result of Object.keys(now.answers)) {
    rate(`answer.${result}`, ({ answers }) => answers[result]);
  }
  if (now.queue.received !== undefined) queueValues(rate, values, now);
  now.workers.forEach((_, index) => workerRates(rate, index));
  for (const name of new Set(now.threads.map((thread) => thread.name))) {
    rate(`busy.${name}`, ({ threads }) => busySeconds(threads, name));
  }
  percentiles(values, "request", ({ request_duration: requests }) => requests, now, earlier);
  for (const hop of Object.keys(now.push_seconds)) {
    percentiles(values, hop, ({ push_seconds: hops }) => hops[hop], now, earlier);
  }
  for (const time of Object.keys(now.pause_seconds)) {
    percentiles(values, `pause.${time}`, ({ pause_seconds: pauses }) => pauses[time], now, earlier);
  }
  values.drops = sumOfKnown(values, "drop.");
  return values;
}

/** A status or a path that has not been seen before has a count of zero. */
function requestRates(rate, now) {
  const count = (wanted) => ({ requests }) => sum(requests.filter(wanted).map((one) => one.count));
  rate("requests", count(() => true));
  for (const code of new Set(now.requests.map((one) => one.code))) {
    rate(`status.${code}`, count((one) => one.code === code));
  }
  for (const { url, code } of now.requests) {
    rate(`url.${url}.${code}`, count((one) => one.url === url && one.code === code));
  }
}

function queueValues(rate, values, now) {
  values.pending_bytes = now.queue.pending_bytes;
  values.lag = now.queue.lag_ms / 1000;
  for (const name of ["published", "received", "refused", "unknown", "missed"]) {
    rate(`queue.${name}`, ({ queue }) => queue[name]);
  }
  rate("drop.worker_full", ({ queue }) => queue.worker_full);
}

/** The sum over all threads of a name; zero if there is none. */
function busySeconds(threads, name) {
  return sum(threads.filter((one) => one.name === name).map((one) => one.busy_us)) / 1e6;
}

function workerRates(rate, index) {
  const name = (what) => `worker.${index}.${what}`;
  const of = (read) => ({ workers }) => workers[index] && read(workers[index]);
  rate(name("deliveries"), of((worker) => worker.deliveries));
  rate(name("messages"), of((worker) => worker.client_messages + worker.server_messages));
  rate(name("envelopes"), of((worker) => worker.envelopes));
  rate(name("drops"), of((worker) => sum(Object.values(worker.drops))));
}

function percentiles(values, name, histogram, now, earlier) {
  const between = earlier && secondsBetween(earlier, now) !== null && histogram(earlier);
  const { bounds, counts } = histogram(now);
  const risen = between ? counts.map((count, index) => count - between.counts[index]) : [];
  for (const [percent, q] of [["p50", 0.5], ["p95", 0.95], ["p99", 0.99]]) {
    values[`${name}.${percent}`] = quantile(q, bounds, risen);
  }
}

function sumOfKnown(values, start) {
  const known = Object.keys(values).filter((name) => name.startsWith(start));
  const numbers = known.map((name) => values[name]).filter((value) => value !== null);
  return numbers.length > 0 ? sum(numbers) : null;
}

/**
 * The value that a share `q` of what was counted does not exceed, as Prometheus reckons it: evenly
 * spread within a bucket. `counts` has one more than `bounds`, for what is above the last; there
 * nothing but that bound is known. Null where nothing was counted.
 */
export function quantile(q, bounds, counts) {
  const rank = q * sum(counts);
  if (!(rank > 0)) return null;
  let below = 0;
  for (let index = 0; index < bounds.length; index++) {
    if (below + counts[index] >= rank) {
      const lower = index > 0 ? bounds[index - 1] : 0;
      return lower + (bounds[index] - lower) * ((rank - below) / counts[index]);
    }
    below += counts[index];
  }
  return bounds.at(-1);
}

// Numbers as text.

/** Three digits that count, and no zeros behind the point. */
function short(number) {
  if (number === 0) return "0";
  const digits = Math.max(0, 2 - Math.floor(Math.log10(Math.abs(number))));
  return String(Number(number.toFixed(Math.min(digits, 3))));
}

/** What would be written as 1000 of one name is 1 of the next. */
const ALMOST = 0.9995;

function scaled(number, base, names) {
  let power = 0;
  // 999.9 is shown as 1000, so it takes the next unit.
  while (power + 1 < names.length && Math.abs(number) >= base * ALMOST) {
    number /= base;
    power++;
  }
  return short(number) + names[power];
}

const unknown = "–";
const known = (write) => (number) =>
  number === null || number === undefined ? unknown : write(number);

const THOUSANDS = ["", "k", "M", "G"];
const BYTES = [" B", " KiB", " MiB", " GiB", " TiB"];

function counted(number) {
  if (number >= 1e5) return scaled(number, 1000, THOUSANDS);
  return Math.round(number).toLocaleString("en");
}

export const units = {
  count: known(counted),
  rate: known((number) => `${scaled(number, 1000, THOUSANDS)}/s`),
  bytes: known((number) => scaled(number, 1024, BYTES)),
  byteRate: known((number) => `${scaled(number, 1024, BYTES)}/s`),
  seconds: known((number) => scaled(number * 1e6, 1000, [" µs", " ms", " s"])),
  share: known((number) => `${short(number * 100)}%`),
};

/** A duration in its two largest units. */
export function duration(ms) {
  const seconds = Math.floor(ms / 1000);
  const parts = [
    [Math.floor(seconds / 86400), "d"],
    [Math.floor(seconds / 3600) % 24, "h"],
    [Math.floor(seconds / 60) % 60, "min"],
    [seconds % 60, "s"],
  ];
  const first = parts.findIndex(([number]) => number > 0);
  if (first < 0) return "0 s";
  const two = parts.slice(first, first + 2).filter(([number]) => number > 0);
  return two.map(([number, name]) => `${number} ${name}`).join(" ");
}

/** The local time of day of a time in milliseconds since 1970. */
export function clock(ms) {
  return new Date(ms).toTimeString().slice(0, 8);
}

// Axes.

/** Minimum time span of a chart. */
const LEAST_SPAN_MS = 5000;

/** The time span of the charts: that of the history, up to the chosen one. */
export function spanOf(history, chosenMs) {
  const known = history.length > 0 ? history.at(-1).time - history[0].time : 0;
  return Math.min(chosenMs, Math.max(known, LEAST_SPAN_MS));
}

const TIME_STEPS = [1, 2, 5, 10, 15, 30, 60, 120, 300];
/** Width of one mark such as `−30 s`, with some space between two. */
const TIME_MARK_PX = 60;

/** The marks of a time axis that is `width` pixels wide: milliseconds ago, and their text. */
export function timeMarks(ms, width) {
  const seconds = ms / 1000;
  const most = Math.max(1, Math.floor(width / TIME_MARK_PX));
  const step = TIME_STEPS.find((one) => seconds / one <= most) ?? TIME_STEPS.at(-1);
  const count = Math.floor(seconds / step);
  return Array.from({ length: count + 1 }, (_, index) => {
    const ago = index * step;
    const isMinutes = ago % 60 === 0;
    const text = ago === 0 ? "now" : isMinutes ? `−${ago / 60} min` : `−${ago} s`;
    return [ago * 1000, text];
  });
}

/**
 * The marks of an axis from 0 to at least `max`, two to five: 1, 2 or 5 times a power of ten apart,
 * for bytes a power of two. Not closer than `least`.
 */
export function linearMarks(max, { isBinary = false, least = 0 } = {}) {
  const wanted = Math.max(max / 4, least);
  if (!(wanted > 0)) return [0, 1];
  const step = isBinary ? 2 ** Math.ceil(Math.log2(wanted)) : roundedUp(wanted);
  const count = Math.max(1, Math.ceil(max / step - 1e-9));
  return Array.from({ length: count + 1 }, (_, index) => index * step);
}

function roundedUp(number) {
  const power = 10 ** Math.floor(Math.log10(number));
  return power * [1, 2, 5, 10].find((times) => times * power >= number * (1 - 1e-9));
}

/** The powers of ten from one not above `min` to one not below `max`. */
export function logMarks(min, max) {
  const first = Math.floor(Math.log10(min) + 1e-9);
  const last = Math.max(Math.ceil(Math.log10(max) - 1e-9), first + 1);
  return Array.from({ length: last - first + 1 }, (_, index) => Number(`1e${first + index}`));
}
