// A live chart, as SVG: the style sheet colours it, so it follows the theme at once.

import { clock, linearMarks, logMarks, timeMarks, units } from "./figures.js";

const HEIGHT = 168;
const PLOT = { left: 64, right: 10, top: 8, bottom: 22 };
/** A shape for each series, so that nobody has to distinguish colours. */
const SHAPES = [
  "M-3.5 0a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0 -7 0z",
  "M-3.2 -3.2h6.4v6.4h-6.4z",
  "M0 -4.2l4.2 7.2h-8.4z",
  "M0 -4.4l4.4 4.4l-4.4 4.4l-4.4 -4.4z",
  "M0 4.2l4.2 -7.2h-8.4z",
  "M-4 -1.3h2.7v-2.7h2.6v2.7h2.7v2.6h-2.7v2.7h-2.6v-2.7h-2.7z",
];
const SERIES = SHAPES.length;
const stillness = window.matchMedia("(prefers-reduced-motion: reduce)");

/** Text is never parsed as HTML. */
export function element(tag, className = "", text = "") {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text) made.textContent = text;
  return made;
}

function svg(tag, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

/** A path through the points; null is a gap, and a point between gaps a dot. */
function pathOf(points) {
  let path = "";
  points.forEach((point, index) => {
    if (!point) return;
    const at = `${point[0].toFixed(1)} ${point[1].toFixed(1)}`;
    path += points[index - 1] ? `L${at}` : `M${at}`;
    if (!points[index - 1] && !points[index + 1]) path += "h.01";
  });
  return path;
}

/** The same line, closed along the bottom. */
function areaOf(points, bottom) {
  let path = "";
  points.forEach((point, index) => {
    if (!point) return;
    const [x, y] = point.map((number) => number.toFixed(1));
    path += points[index - 1] ? `L${x} ${y}` : `M${x} ${bottom}L${x} ${y}`;
    if (!points[index + 1]) path += `L${x} ${bottom}z`;
  });
  return path;
}

/** Slides a redrawn chart from its old position, in few steps, each a fraction of a pixel. */
function slide(group, from, ms) {
  if (stillness.matches || from <= 0) return;
  const frames = [{ transform: `translateX(${from}px)` }, { transform: "none" }];
  group.animate(frames, { duration: ms, easing: `steps(${Math.max(2, Math.ceil(from * 2))})` });
}

let count = 0;

/**
 * `series(history)` lists what is drawn: `{name, label}`, and `place`, if its colour is not to be
 * that of its place in the list. `empty`: what stands there while nothing is drawn.
 */
export class Chart {
  constructor({ id, title, note = "", unit, isLog = false, least = 0, series, empty = "" }) {
    Object.assign(this, { title, unit, isLog, least, series, empty, write: units[unit] });
    this.element = element("figure", "chart");
    this.element.id = `chart-${id}`;
    const caption = element("figcaption");
    caption.append(element("h3", "", title), element("span", "note", note));
    this.plot = element("div", "plot");
    this.legend = element("ul", "legend");
    this.element.append(caption, this.plot, this.legend);
    this.#buildPlot();
    this.#listen();
    this.history = [];
    this.listed = [];
    this.pointer = null;
    this.chosen = null;
    this.width = 0;
    new ResizeObserver(() => {
      this.width = this.plot.clientWidth;
      this.#render();
    }).observe(this.plot);
  }

  #buildPlot() {
    const clip = `clip-${count++}`;
    this.clip = svg("rect", { x: PLOT.left, y: 0, height: HEIGHT });
    this.grid = svg("g", { class: "grid" });
    this.lines = svg("g", { class: "lines" });
    this.cursor = svg("line", { class: "cursor", y1: PLOT.top, y2: HEIGHT - PLOT.bottom });
    this.picture = svg(
      "svg",
      { height: HEIGHT, "aria-hidden": "true" },
      svg("defs", {}, svg("clipPath", { id: clip }, this.clip)),
      this.grid,
      svg("g", { "clip-path": `url(#${clip})` }, this.lines),
      this.cursor,
    );
    this.word = element("p", "empty");
    this.tip = element("div", "tip");
    this.tip.hidden = true;
    this.plot.append(this.picture, this.word, this.tip);
    // Arrow keys move through the points, and a screen reader reads each.
    const state = { role: "slider", tabindex: 0, "aria-label": this.title, "aria-valuemin": 0 };
    for (const [name, value] of Object.entries(state)) this.plot.setAttribute(name, value);
  }

  #listen() {
    this.plot.addEventListener("pointermove", (event) => {
      this.pointer = event.clientX - this.plot.getBoundingClientRect().left;
      this.#point();
    });
    for (const end of ["pointerleave", "blur"]) {
      this.plot.addEventListener(end, () => this.#forget());
    }
    this.plot.addEventListener("keydown", (event) => this.#key(event));
  }

  /** The samples up to now, the oldest first; `ms` is the time span of the chart. */
  draw(history, ms) {
    const before = this.ms === ms ? this.end : undefined;
    Object.assign(this, { history, ms, end: history.at(-1).time });
    this.#render();
    // While the time shown grows, nothing moves aside: the points move closer together.
    if (before !== undefined && this.width > 0 && !this.element.hidden) {
      const passed = Math.min(this.end - before, 2000);
      slide(this.lines, (passed / ms) * this.#wide(), Math.min(passed, 1000));
    }
  }

  #wide() {
    return this.width - PLOT.left - PLOT.right;
  }

  #x(time) {
    return PLOT.left + (1 - (this.end - time) / this.ms) * this.#wide();
  }

  #render() {
    if (this.width <= 0 || this.history.length === 0) return;
    this.shown = this.history.filter(({ time }) => time > this.end - this.ms - 2000);
    this.listed = this.series(this.shown);
    this.picture.setAttribute("width", this.width);
    this.clip.setAttribute("width", Math.max(0, this.#wide() + 4));
    this.#renderGrid();
    this.lines.replaceChildren(...this.listed.flatMap((one, index) => this.#line(one, index)));
    this.word.textContent = this.listed.length === 0 ? this.empty : "";
    this.#point();
    if (this.chosen === null) this.#renderLegend(this.shown.at(-1));
  }

  #values() {
    const numbers = this.listed.flatMap(({ name }) => this.shown.map((one) => one.values[name]));
    return numbers.filter((value) => value !== null && value !== undefined);
  }

  #renderGrid() {
    const values = this.#values();
    if (this.isLog) {
      const positive = values.filter((value) => value > 0);
      const marks = logMarks(Math.min(...positive, 1e-3), Math.max(...positive, 1e-3));
      const [first, last] = [Math.log10(marks[0]), Math.log10(marks.at(-1))];
      this.marks = marks;
      this.share = (value) => (Math.log10(Math.max(value, marks[0])) - first) / (last - first);
    } else {
      const { least } = this;
      const isBinary = this.unit.startsWith("byte");
      this.marks = linearMarks(values.reduce((a, b) => Math.max(a, b), 0), { isBinary, least });
      this.share = (value) => value / this.marks.at(-1);
    }
    const right = this.width - PLOT.right;
    const rows = this.marks.flatMap((mark) => {
      const y = this.#y(mark);
      const text = svg("text", { x: PLOT.left - 8, y: y + 4, "text-anchor": "end" });
      text.textContent = this.write(mark);
      return [svg("line", { x1: PLOT.left, x2: right, y1: y, y2: y }), text];
    });
    this.grid.replaceChildren(...rows, ...this.#times());
  }

  #times() {
    return timeMarks(this.ms, this.#wide()).map(([ago, written]) => {
      const anchor = ago === 0 ? "end" : "middle";
      const at = { x: this.#x(this.end - ago), y: HEIGHT - 6, "text-anchor": anchor };
      const text = svg("text", at);
      text.textContent = written;
      return text;
    });
  }

  #y(value) {
    return PLOT.top + (1 - this.share(value)) * (HEIGHT - PLOT.top - PLOT.bottom);
  }

  #line({ name, place }, index) {
    const number = (place ?? index) % SERIES;
    const points = this.shown.map(({ time, values }) => {
      const value = values[name];
      return value === null || value === undefined ? null : [this.#x(time), this.#y(value)];
    });
    const drawn = [svg("path", { class: `line s${number}`, d: pathOf(points) })];
    if (this.listed.length === 1) {
      const d = areaOf(points, HEIGHT - PLOT.bottom);
      drawn.unshift(svg("path", { class: `area s${number}`, d }));
    }
    const last = points.at(-1);
    if (last) {
      const at = `translate(${last[0].toFixed(1)} ${last[1].toFixed(1)})`;
      drawn.push(svg("path", { class: `mark s${number}`, d: SHAPES[number], transform: at }));
    }
    return drawn;
  }

  /** The values of one sample; without a second. */
  #renderLegend(sample) {
    const items = this.listed.map(({ name, label, place }, index) => {
      const item = element("li");
      item.append(swatch(place ?? index), element("span", "", label));
      item.append(element("b", "", this.write(sample?.values[name])));
      return item;
    });
    this.legend.replaceChildren(...items);
  }

  // The one point that is announced.

  #point() {
    if (!this.shown) return;
    if (this.pointer !== null) this.chosen = this.#nearest(this.pointer);
    if (this.chosen !== null && !this.shown.includes(this.chosen)) this.chosen = null;
    const { chosen } = this;
    const isOn = chosen !== null && this.listed.length > 0;
    this.tip.hidden = !isOn;
    this.cursor.style.visibility = isOn ? "visible" : "hidden";
    // A screen reader announces a point when it is chosen, not every new one.
    if (isOn || document.activeElement !== this.plot) this.#tell(chosen ?? this.shown.at(-1));
    if (!isOn) return;
    const x = this.#x(chosen.time);
    this.cursor.setAttribute("x1", x);
    this.cursor.setAttribute("x2", x);
    this.#renderTip(chosen, x);
    this.#renderLegend(chosen);
  }

  #tell(sample) {
    this.plot.setAttribute("aria-valuemax", this.shown.length - 1);
    this.plot.setAttribute("aria-valuenow", this.shown.indexOf(sample));
    this.plot.setAttribute("aria-valuetext", this.#words(sample));
  }

  #nearest(x) {
    const distance = (sample) => Math.abs(this.#x(sample.time) - x);
    return this.shown.reduce((a, b) => (distance(b) < distance(a) ? b : a));
  }

  #words(sample) {
    const words = this.listed.map(
      ({ name, label }) => `${label} ${this.write(sample.values[name])}`,
    );
    return `${clock(sample.time)}: ${words.join(", ") || this.empty}`;
  }

  #renderTip(sample, x) {
    const rows = this.listed.map(({ name, label, place }, index) => {
      const row = element("div");
      row.append(swatch(place ?? index), element("span", "", label));
      row.append(element("b", "", this.write(sample.values[name])));
      return row;
    });
    this.tip.replaceChildren(element("div", "when", clock(sample.time)), ...rows);
    const isLeft = x > this.width / 2;
    this.tip.style.left = isLeft ? "" : `${x + 10}px`;
    this.tip.style.right = isLeft ? `${this.width - x + 10}px` : "";
  }

  #forget() {
    this.pointer = null;
    this.chosen = null;
    this.#render();
  }

  #key(event) {
    if (!this.shown) return;
    const last = this.shown.length - 1;
    const at = this.chosen === null ? last + 1 : this.shown.indexOf(this.chosen);
    const by = event.shiftKey ? 10 : 1;
    const places = { ArrowLeft: at - by, ArrowRight: at + by, Home: 0, End: last };
    if (event.key === "Escape") this.#forget();
    if (!(event.key in places)) return;
    event.preventDefault();
    this.pointer = null;
    this.chosen = this.shown[Math.min(last, Math.max(0, places[event.key]))];
    this.#point();
  }
}

function swatch(place) {
  const number = place % SERIES;
  const shape = svg("path", { class: `mark s${number}`, d: SHAPES[number] });
  return svg("svg", { class: "swatch", viewBox: "-6 -6 12 12", "aria-hidden": "true" }, shape);
}

/** A small line without axes: the share of `top` over time. */
export class Sparkline {
  constructor() {
    this.line = svg("path", { class: "line s0" });
    this.area = svg("path", { class: "area s0" });
    const box = { class: "sparkline", viewBox: "0 0 120 24", preserveAspectRatio: "none" };
    this.element = svg("svg", { ...box, "aria-hidden": "true" }, this.area, this.line);
  }

  draw(history, ms, name, top) {
    const end = history.at(-1).time;
    const points = history.map(({ time, values }) => {
      const value = values[name];
      if (value === null || value === undefined) return null;
      return [120 * (1 - (end - time) / ms), 23 - 22 * Math.min(1, value / top)];
    });
    this.line.setAttribute("d", pathOf(points));
    this.area.setAttribute("d", areaOf(points, 24));
  }
}
