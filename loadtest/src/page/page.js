"use strict";
const read = (id) => JSON.parse(document.getElementById(id).textContent);
const report = read("report");
const series = read("series");
const at = (id) => document.getElementById(id);
const words = (key) => key.replaceAll("_", " ");
const isObject = (value) => value !== null && typeof value === "object" && !Array.isArray(value);

function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

// Numbers with their units.
const digits = (value) => (value >= 100 || Number.isInteger(value) ? 0 : value >= 10 ? 1 : 2);
const plain = (value) => value.toLocaleString("en", { maximumFractionDigits: digits(Math.abs(value)) });
const scaled = (value, steps) => {
  const [size, unit] = steps.find(([size]) => Math.abs(value) >= size) ?? steps.at(-1);
  return `${plain(value / size)} ${unit}`.trim();
};
const count = (value) => (Math.abs(value) < 1e5 ? plain(value) : scaled(value, [[1e9, "G"], [1e6, "M"], [1e3, "k"]]));
const bytes = (value) => scaled(value, [[2 ** 30, "GiB"], [2 ** 20, "MiB"], [1024, "KiB"], [1, "B"]]);
const micros = (value) => scaled(value, [[1e6, "s"], [1e3, "ms"], [1, "us"]]);
const millis = (value) => micros(value * 1e3);
const percent = (value) => `${plain(value)} %`;
const perSecond = (value) => `${count(value)}/s`;
const clock = (seconds) => {
  const [h, m, s] = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60, Math.round(seconds % 60 * 10) / 10];
  const two = (number) => String(Math.floor(number)).padStart(2, "0");
  return h ? `${h}:${two(m)}:${two(s)}` : m ? `${m}:${two(s)} min` : `${s} s`;
};
function formatOf(key) {
  if (/_bytes(_|$)/.test(key) && !/per_s$/.test(key)) return bytes;
  if (/_us(_|$)/.test(key)) return micros;
  if (/_ms(_|$)/.test(key)) return millis;
  if (/percent$/.test(key)) return percent;
  if (/per_s$/.test(key)) return perSecond;
  if (/_s$/.test(key)) return (value) => `${plain(value)} s`;
  return plain;
}
function text(key, value) {
  if (typeof value === "number") return formatOf(key)(value);
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (value === null || value === undefined) return "–";
  if (Array.isArray(value)) return value.map((item) => text(key, item)).join("; ");
  if (isObject(value)) {
    const entries = Object.entries(value);
    if (!entries.length) return "none";
    const unit = /_us$/.test(key) ? micros : null;
    return entries.map(([name, item]) =>
      `${words(name)} ${unit && name !== "count" && typeof item === "number" ? unit(item) : text(name, item)}`).join("  ");
  }
  return String(value);
}

// The head of the page.
at("title").textContent = `loadtest ${report.command}`;
document.title = `loadtest ${report.command}: ${report.ok ? "passed" : "failed"}`;
at("verdict").textContent = report.ok ? "passed" : "failed";
at("verdict").classList.add(report.ok ? "good" : "bad");
const machine = report.machine ?? {};
at("facts").textContent = [
  report.date, `loadtest ${report.version ?? ""}`, machine.host,
  machine.cores && `${machine.cores} cores`, machine.cpu, machine.memory_bytes && bytes(machine.memory_bytes),
  machine.kernel, report.interrupted && "ended early by a signal",
].filter(Boolean).join("  ·  ");
at("command").textContent = report.command_line ?? "";

const p = (key, quantile) => report[key] && report[key].count ? report[key][quantile] : undefined;
const latency = ["intended_to_delivery_us", "push_to_delivery_us", "intended_to_answer_us", "request_to_answer_us",
  "welcome_to_event_us", "canary_us", "unicast_us", "push_us", "project_us", "tag_push_us"].find((key) => p(key, "p99") !== undefined);
const tiles = [
  ["Connections", report.connections_welcomed ?? report.connections ?? report.users, count],
  ["Connects", report.connects_per_s, perSecond],
  ["Deliveries", report.deliveries_per_s, perSecond],
  ["Requests", report.requests_per_s, perSecond],
  ["Latency p50", latency && p(latency, "p50"), micros],
  ["Latency p99", latency && p(latency, "p99"), micros],
  ["Latency, longest", latency && p(latency, "max"), micros],
  ["Connect p99", p("connect_to_welcome_us", "p99"), micros],
  ["Reconnects", report.reconnects_per_s, perSecond],
  ["Lost", report.lost, count],
  ["Twice", report.duplicates ?? report.doubled, count],
  ["Server memory, peak", report.server_rss_peak_bytes, bytes],
  ["Longest pause below", report.server_longest_own_pause_ms ?? report.server_longest_pause_ms, millis],
];
for (const [name, value, format] of tiles) {
  if (typeof value !== "number") continue;
  const [number, ...unit] = format(value).split(/ |(?=\/s)/);
  at("tiles").append(make("div", { class: "tile" }, make("dt", {}, name),
    make("dd", {}, number, make("small", {}, ` ${unit.join("")}`))));
}

// Tables.
function table(head, rows, hasNumbers = true) {
  const isNumber = head.map((_, i) => hasNumbers && rows.some((row) => /^-?[\d.,]+( ?\S{1,4})?$/.test(row[i])));
  const line = (cells, cell) => make("tr", {}, ...cells.map((value, i) =>
    make(cell, isNumber[i] ? { class: "n" } : {}, value)));
  return make("table", {}, make("thead", {}, line(head, "th")), make("tbody", {}, ...rows.map((row) => line(row, "td"))));
}
if (report.thresholds?.length) {
  const rows = report.thresholds.map(({ threshold, limit, measured, kept }) =>
    [threshold, limit, measured, make("span", { class: `badge ${kept ? "good" : "bad"}` }, kept ? "kept" : "broken")]);
  at("thresholds").hidden = false;
  at("thresholds").querySelector(".panel").append(table(["threshold", "limit", "measured", ""], rows, false));
}
const special = ["thresholds", "machine", "command_line", "date", "version", "ok"];
for (const [key, value] of Object.entries(report)) {
  if (special.includes(key)) continue;
  const items = Array.isArray(value) ? value : isObject(value) ? Object.entries(value).map(([name, item]) => ({ name, ...item })) : [];
  const isTable = items.length && (Array.isArray(value) ? value : Object.values(value)).every(isObject);
  if (isTable) {
    const keys = [...new Set(items.flatMap(Object.keys))];
    const cell = (item, name) => !(name in item) ? "" : item[name]?.p99 === undefined ? text(name, item[name]) :
      ["p50", "p99", "max"].map((part) => `${part} ${micros(item[name][part])}`).join(", ");
    // A phase has many figures and there are few phases, so each gets a column.
    const isWide = keys.length > items.length;
    const grid = isWide
      ? table(["", ...items.map((item) => item.name ?? "")],
        keys.filter((name) => name !== "name").map((name) => [words(name), ...items.map((item) => cell(item, name))]), false)
      : table(keys.map(words), items.map((item) => keys.map((name) => cell(item, name))));
    const title = words(key);
    at("tables").append(make("h2", {}, title[0].toUpperCase() + title.slice(1)), make("div", { class: "panel grid" }, grid));
  } else {
    at("figures").append(make("tr", {}, make("th", { scope: "row" }, words(key)), make("td", {}, text(key, value))));
  }
}

// Charts: one SVG each, drawn for the available width.
const SVG = "http://www.w3.org/2000/svg";
function draw(name, attributes, content) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (content !== undefined) element.textContent = content;
  return element;
}
const HEIGHT = 190, LEFT = 58, RIGHT = 10, TOP = 18, BOTTOM = 22;
function ticks(low, high, log, isBinary) {
  if (log) {
    const found = [];
    for (let e = Math.floor(Math.log10(low)); e <= Math.ceil(Math.log10(high)); e++) found.push(10 ** e);
    const step = Math.ceil(found.length / 5);
    return found.filter((value, i) => i % step === 0 && value >= low && value <= high);
  }
  const rough = (high - low) / 4 || 1;
  const size = 10 ** Math.floor(Math.log10(rough));
  const step = isBinary ? 2 ** Math.ceil(Math.log2(rough)) :
    [1, 2, 2.5, 5, 10].map((times) => times * size).find((step) => step >= rough);
  const found = [];
  for (let value = Math.ceil(low / step) * step; value <= high + step / 1e6; value += step) found.push(value);
  return found;
}
function timeTicks(end, width) {
  const steps = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200, 86400];
  const step = steps.find((step) => end / step <= Math.max(2, width / 90)) ?? 86400 * Math.ceil(end / 86400 / 6);
  return Array.from({ length: Math.floor(end / step) + 1 }, (_, i) => i * step);
}
const charts = [];
function chart({ title, format, log, floor, lines, note }) {
  const shown = lines.filter(({ values }) => values.some((value) => value !== null));
  if (!shown.length) return;
  const all = shown.flatMap(({ values }) => values).filter((value) => value !== null && (!log || value > 0));
  if (!all.length) return;
  const top = all.reduce((a, b) => Math.max(a, b), 0);
  const least = all.reduce((a, b) => Math.min(a, b), Infinity);
  const low = log ? 10 ** Math.floor(Math.log10(least)) : 0;
  const high = log ? Math.max(10 ** Math.ceil(Math.log10(top)), low * 10) : Math.max(top * 1.08, floor ?? 1);
  const end = series.at_s.at(-1) || 1;
  const svg = draw("svg", { role: "img", tabindex: 0, "aria-label": `${title}: chart over time, values below` });
  const tip = make("div", { class: "tip" });
  const legend = make("div", { class: "legend" }, ...shown.map(({ name, color }) =>
    make("span", {}, make("i", { style: `background:var(--${color})` }), name)));
  const summary = shown.map(({ name, values }) => {
    const got = values.filter((value) => value !== null);
    const mean = got.reduce((sum, value) => sum + value, 0) / got.length;
    const [min, max] = [got.reduce((a, b) => Math.min(a, b)), got.reduce((a, b) => Math.max(a, b))];
    if (min === max) return `${name}: ${format(min)}`;
    return `${name}: ${format(min)} to ${format(max)}, mean ${format(mean)}, last ${format(got.at(-1))}`;
  }).join(". ");
  const figure = make("figure", {}, make("h3", {}, title), legend, svg, tip,
    make("figcaption", {}, `${summary}.${note ? ` ${note}` : ""}`));
  let width = 0, rule, dots;
  const x = (seconds) => LEFT + (width - LEFT - RIGHT) * seconds / end;
  const y = (value) => {
    const part = log ? Math.log(Math.max(value, low) / low) / Math.log(high / low) : (value - low) / (high - low);
    return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * part;
  };
  function render() {
    width = svg.clientWidth;
    if (!width) return;
    svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    svg.replaceChildren();
    for (const value of ticks(low, high, log, format === bytes)) {
      svg.append(draw("line", { x1: LEFT, x2: width - RIGHT, y1: y(value), y2: y(value), stroke: "var(--grid)" }),
        draw("text", { x: LEFT - 8, y: y(value) + 4, "text-anchor": "end" }, format(value)));
    }
    for (const seconds of timeTicks(end, width)) {
      if (x(seconds) > width - RIGHT - 8 && seconds > 0) continue;
      svg.append(draw("text", { x: x(seconds), y: HEIGHT - 5, "text-anchor": seconds ? "middle" : "start" }, clock(seconds)));
    }
    let free = 0;
    for (const mark of series.marks) {
      const place = x(Math.min(mark.at_s, end));
      svg.append(draw("line", { x1: place, x2: place, y1: TOP - 6, y2: HEIGHT - BOTTOM, stroke: "var(--soft)", "stroke-dasharray": "2 3", opacity: .7 }));
      const room = mark.name.length * 6.2;
      const isAtEnd = place + room > width;
      const from = isAtEnd ? place - room - 4 : place + 3;
      if (from < free) continue;
      svg.append(draw("text", { x: isAtEnd ? place - 4 : from, y: 11, "text-anchor": isAtEnd ? "end" : "start" }, mark.name));
      free = from + room;
    }
    for (const { values, color, area, dotted } of shown) {
      const runs = [];
      let run = [];
      values.forEach((value, i) => {
        if (value === null || (log && value <= 0)) {
          if (run.length) runs.push(run);
          run = [];
        } else run.push([x(series.at_s[i]), y(value)]);
      });
      if (run.length) runs.push(run);
      for (const points of runs) {
        const path = points.map(([px, py], i) => `${i ? "L" : "M"}${px.toFixed(1)} ${py.toFixed(1)}`).join("");
        if (area) {
          const base = HEIGHT - BOTTOM;
          svg.append(draw("path", { d: `${path}L${points.at(-1)[0]} ${base}L${points[0][0]} ${base}Z`, fill: `var(--${color})`, opacity: .13 }));
        }
        svg.append(draw("path", { d: path, fill: "none", stroke: `var(--${color})`, "stroke-width": dotted ? 1.2 : 1.8,
          "stroke-dasharray": dotted ? "3 3" : "none", "stroke-linejoin": "round", "stroke-linecap": "round" }));
        if (points.length === 1) svg.append(draw("circle", { cx: points[0][0], cy: points[0][1], r: 2.5, fill: `var(--${color})` }));
      }
    }
    svg.append(draw("line", { x1: LEFT, x2: width - RIGHT, y1: HEIGHT - BOTTOM, y2: HEIGHT - BOTTOM, stroke: "var(--line)" }));
    rule = draw("line", { y1: TOP, y2: HEIGHT - BOTTOM, stroke: "var(--soft)", visibility: "hidden" });
    dots = shown.map(({ color }) => draw("circle", { r: 3.5, fill: `var(--${color})`, stroke: "var(--card)", "stroke-width": 1.5, visibility: "hidden" }));
    svg.append(rule, ...dots);
  }
  // The time at the pointer, in every chart; the values in the chart under the pointer.
  function point(i, withTip) {
    if (!rule) return;
    const isOn = i !== null;
    rule.setAttribute("visibility", isOn ? "visible" : "hidden");
    tip.style.display = isOn && withTip ? "block" : "none";
    if (isOn) { rule.setAttribute("x1", x(series.at_s[i])); rule.setAttribute("x2", x(series.at_s[i])); }
    shown.forEach(({ values }, n) => {
      const value = isOn ? values[i] : null;
      const isVisible = value !== null && value !== undefined && !(log && value <= 0);
      dots[n].setAttribute("visibility", isVisible ? "visible" : "hidden");
      if (isVisible) { dots[n].setAttribute("cx", x(series.at_s[i])); dots[n].setAttribute("cy", y(value)); }
    });
    if (!isOn || !withTip) return;
    tip.replaceChildren(clock(series.at_s[i]), ...shown.flatMap(({ name, values }) =>
      [make("br"), `${name} `, make("b", {}, values[i] === null ? "–" : format(values[i]))]));
    const [frame, box] = [figure.getBoundingClientRect(), svg.getBoundingClientRect()];
    const left = box.left - frame.left + x(series.at_s[i]);
    const isRight = left + tip.offsetWidth + 16 > figure.clientWidth;
    tip.style.left = `${Math.max(4, isRight ? left - tip.offsetWidth - 10 : left + 10)}px`;
    tip.style.top = `${box.top - frame.top + TOP}px`;
  }
  let current = null;
  const move = (i) => {
    current = i;
    for (const other of charts) other.point(i, other.figure === figure);
  };
  const nearest = (event) => {
    const seconds = (event.clientX - svg.getBoundingClientRect().left - LEFT) / (width - LEFT - RIGHT) * end;
    let best = 0;
    series.at_s.forEach((at, i) => { if (Math.abs(at - seconds) < Math.abs(series.at_s[best] - seconds)) best = i; });
    return best;
  };
  svg.addEventListener("pointermove", (event) => move(nearest(event)));
  svg.addEventListener("pointerdown", (event) => move(nearest(event)));
  svg.addEventListener("pointerleave", () => move(null));
  svg.addEventListener("blur", () => move(null));
  svg.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step) return;
    event.preventDefault();
    move(Math.min(series.at_s.length - 1, Math.max(0, (current ?? (step > 0 ? -1 : series.at_s.length)) + step)));
  });
  charts.push({ figure, render, point });
  at("over-time").querySelector(".charts").append(figure);
  new ResizeObserver(render).observe(svg);
}

if (series && series.at_s.length > 1) {
  at("over-time").hidden = false;
  const some = (values) => values.some((value) => value) ? values : values.map(() => null);
  const servers = series.servers;
  const colors = ["a", "b", "c", "d"];
  const perServer = (key, area) => servers.map((server, i) => ({
    name: servers.length > 1 ? server.name : "server", color: colors[i % 4], values: server[key], area: area && servers.length === 1,
  }));
  const sum = (key) => series.at_s.map((_, i) => servers.some((server) => server[key][i] !== null)
    ? servers.reduce((sum, server) => sum + (server[key][i] ?? 0), 0) : null);
  const quantiles = (name) => [
    { name: "longest", color: "b", values: series[`${name}_max_us`], dotted: true },
    { name: "p99", color: "d", values: series[`${name}_p99_us`] },
    { name: "p50", color: "a", values: series[`${name}_p50_us`] },
  ];
  chart({ title: "Connects per second", format: perSecond,
    lines: [{ name: "welcomed", color: "a", values: some(series.connects_per_s), area: true }] });
  chart({ title: "Open connections", format: count, lines: [
    { name: "here", color: "a", values: series.open, area: true },
    { name: "says the server", color: "b", values: sum("connections"), dotted: true }] });
  chart({ title: "Deliveries per second", format: perSecond,
    lines: [{ name: "deliveries", color: "c", values: some(series.deliveries_per_s), area: true }] });
  chart({ title: "Latency", format: micros, log: true, lines: quantiles("latency"), note: "Logarithmic." });
  chart({ title: "Connect to welcome", format: micros, log: true, lines: quantiles("connect"), note: "Logarithmic." });
  chart({ title: "Losses", format: count, floor: 4, note: "Since the start.", lines: [
    { name: "lost", color: "b", values: series.lost },
    { name: "twice", color: "d", values: series.doubled },
    { name: "ended by the server", color: "a", values: series.ended_by_server },
    { name: "connects failed", color: "c", values: series.connects_failed }] });
  chart({ title: "Server: processor", format: percent, lines: perServer("cpu_percent", true), note: "Percent of one core." });
  chart({ title: "Server: memory", format: bytes, lines: perServer("rss_bytes", true) });
  const own = servers.map((server, i) => ({
    name: servers.length > 1 ? `${server.name}, own` : "the worker's own part", color: colors[(i + 1) % 4],
    values: server.longest_own_pause_ms, dotted: true }));
  chart({ title: "Server: longest pause of a worker", format: millis, floor: .5, lines: [...perServer("longest_pause_ms", true), ...own],
    note: "Upper bound, as the server's histogram tells." });
  chart({ title: "This tool: processor", format: percent, note: "Percent of one core.",
    lines: [{ name: "loadtest", color: "a", values: series.tool_cpu_percent, area: true }] });
  chart({ title: "This tool: memory", format: bytes,
    lines: [{ name: "loadtest", color: "a", values: series.tool_rss_bytes, area: true }] });

  const columns = Object.entries(series).filter(([key, values]) =>
    !["servers", "marks"].includes(key) && values.some((value) => value));
  for (const [i, server] of servers.entries()) {
    for (const key of ["cpu_percent", "rss_bytes", "connections", "longest_pause_ms", "longest_own_pause_ms"]) {
      if (server[key].some((value) => value)) columns.push([`server_${servers.length > 1 ? `${i + 1}_` : ""}${key}`, server[key]]);
    }
  }
  const rows = series.at_s.map((_, i) => columns.map(([key, values]) =>
    values[i] === null ? "–" : key === "at_s" ? plain(values[i]) : text(key, values[i])));
  at("samples").hidden = false;
  at("samples").addEventListener("toggle", () => {
    const panel = at("samples").querySelector(".panel");
    if (!panel.childElementCount) panel.append(table(columns.map(([key]) => words(key)), rows));
  });
}
