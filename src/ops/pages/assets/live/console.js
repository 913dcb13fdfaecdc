// The console: a client, a business server and a backend, all in this page.

import { element } from "./chart.js";
import { clock, units } from "./figures.js";
import {
  MAX_FRAMES, jsonOf, kindOf, matches, pretty, refusalOf, refusals, sizeOf, whyRefused,
} from "./frames.js";
import {
  InputError, address, device, json, list, pid, secret, someOf, ttl, uid,
} from "./inputs.js";
import { sign, signedQuery, signedTags } from "../sign.js";

const MAX_CONNECTIONS = 8;
const MAX_ASKED = 1000;
/** Minimum interval between updates: a page that gets thousands of pushes a second stays usable. */
const SHOW_EVERY_MS = 100;
const PREVIEW_CHARS = 300;
const ARROWS = { in: "←", out: "→", note: "·" };
const DIRECTIONS = { in: "received", out: "sent", note: "note" };
const byId = (id) => document.getElementById(id);
const fields = (form) => Object.fromEntries(new FormData(byId(form)));
const inOneMinute = () => Math.floor(Date.now() / 1000) + 60;
/** Removes members that are null or empty. */
const given = (values) =>
  Object.fromEntries(Object.entries(values).filter(([, value]) => value !== null && value !== ""));

/** The recorded frames, and the list that shows them. */
class FrameList {
  #kept = [];
  #fresh = [];
  #count = 0;
  #timer = null;
  #isPaused = false;

  constructor() {
    byId("filter").addEventListener("input", () => this.#showAll());
    byId("direction").addEventListener("change", () => this.#showAll());
    byId("clear").addEventListener("click", () => this.#clear());
    byId("pause").addEventListener("click", () => this.#pause());
    this.#tell();
  }

  add(direction, from, kind, text, isBad = false) {
    const frame = { direction, from, kind, text, isBad, time: new Date(), size: sizeOf(text) };
    frame.number = ++this.#count;
    this.#kept.push(frame);
    this.#fresh.push(frame);
    if (this.#kept.length > MAX_FRAMES) this.#kept.shift();
    if (this.#fresh.length > MAX_FRAMES) this.#fresh.shift();
    this.#timer ??= setTimeout(() => this.#showFresh(), SHOW_EVERY_MS);
  }

  #wanted() {
    const words = byId("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
    return { words, direction: byId("direction").value };
  }

  #showFresh() {
    this.#timer = null;
    if (!this.#isPaused) {
      const wanted = this.#wanted();
      const rows = this.#fresh.filter((frame) => matches(frame, wanted)).reverse().map(rowOf);
      this.#fresh = [];
      const list = byId("frames");
      list.prepend(...rows);
      const oldest = this.#kept[0]?.number ?? 0;
      while (list.lastElementChild?.value < oldest) list.lastElementChild.remove();
    }
    this.#tell();
  }

  #showAll() {
    const wanted = this.#wanted();
    // Frames that arrived since the pause are not shown by a filter either.
    const until = this.#isPaused && this.#fresh.length > 0 ? this.#fresh[0].number : Infinity;
    const shown = this.#kept.filter((frame) => frame.number < until && matches(frame, wanted));
    if (!this.#isPaused) this.#fresh = [];
    byId("frames").replaceChildren(...shown.reverse().map(rowOf));
    this.#tell();
  }

  #clear() {
    this.#kept = [];
    this.#fresh = [];
    byId("frames").replaceChildren();
    this.#tell();
  }

  #pause() {
    this.#isPaused = !this.#isPaused;
    byId("pause").setAttribute("aria-pressed", this.#isPaused);
    if (this.#isPaused) this.#tell();
    else this.#showAll();
  }

  #tell() {
    const waiting = this.#fresh.length;
    const shown = byId("frames").children.length;
    byId("pause").textContent = this.#isPaused ? `Resume (${waiting} new)` : "Pause";
    byId("tally").textContent = `${shown} of ${this.#kept.length}, at most ${MAX_FRAMES}`;
  }
}

function rowOf(frame) {
  const row = element("li", frame.isBad ? "frame bad" : "frame");
  row.value = frame.number;
  row.dataset.direction = frame.direction;
  const details = element("details");
  const summary = element("summary");
  const ms = String(frame.time.getMilliseconds()).padStart(3, "0");
  const arrow = element("span", "arrow", ARROWS[frame.direction]);
  arrow.title = DIRECTIONS[frame.direction];
  summary.append(
    element("time", "", `${clock(frame.time.getTime())}.${ms}`),
    arrow,
    element("span", "from", frame.from),
    element("span", "kind", frame.kind),
    element("span", "size", frame.direction === "note" ? "" : units.bytes(frame.size)),
    element("code", "", frame.text.slice(0, PREVIEW_CHARS)),
  );
  details.append(summary);
  details.addEventListener("toggle", () => {
    if (details.open && !details.querySelector("pre")) {
      details.append(element("pre", "", pretty(frame.text)));
    }
  });
  row.append(details);
  return row;
}

/** One WebSocket connection. */
class Link {
  constructor({ kind, name, url, secret, before }, owner) {
    Object.assign(this, { kind, name, secret, before, owner });
    this.state = "connecting";
    this.clientId = null;
    this.isWelcome = false;
    /** When each request was sent, by its id. */
    this.sent = new Map();
    /** Ids of unanswered requests, the oldest first. */
    this.asked = [];
    this.count = 0;
    this.socket = new WebSocket(url);
    this.socket.binaryType = "arraybuffer";
    this.socket.onmessage = ({ data }) => this.#take(data);
    this.socket.onclose = (event) => this.#end(event);
  }

  get isOpen() {
    return this.socket.readyState === WebSocket.OPEN;
  }

  get isUsable() {
    return this.isWelcome && this.isOpen;
  }

  /** Neither closed nor about to be. */
  get isAlive() {
    return this.socket.readyState < WebSocket.CLOSING;
  }

  send(text) {
    if (!this.isOpen) throw new Error(`${this.name} is not connected`);
    this.socket.send(text);
    this.owner.frames.add("out", this.name, kindOf(text).kind, text);
  }

  request(data) {
    const id = `r${++this.count}`;
    this.sent.set(id, performance.now());
    this.send(jsonOf({ type: "request", id }, { data }));
  }

  answer(data) {
    const id = this.asked.shift();
    if (id === undefined) throw new Error("there is no unanswered request");
    this.send(jsonOf({ type: "response", id }, { data }));
  }

  #take(data) {
    const text = typeof data === "string" ? data : new TextDecoder().decode(data);
    const { kind, isBad, message } = kindOf(text);
    this.owner.frames.add("in", this.name, this.#timed(kind, message), text, isBad);
    if (typeof message?.msg === "string" && isBad) {
      this.owner.warn(`${this.name}: ${kind}: ${message.msg}`);
    }
    if (!this.isWelcome && kind === "connect") {
      this.isWelcome = true;
      this.owner.active = this;
      this.clientId = String(message.client_id);
      this.state = `node ${message.node}, ${this.clientId}`;
      this.owner.show();
    }
    if (this.kind === "2" && kind === "request") this.#note(message.id);
  }

  /** The oldest ones are dropped: nobody waits for their answers any more. */
  #note(id) {
    this.asked.push(id);
    if (this.asked.length > MAX_ASKED) this.asked.shift();
    this.owner.asked(this);
  }

  /** Adds the time to the answer, if the request was sent here. */
  #timed(kind, message) {
    const began = kind === "response" ? this.sent.get(message.id) : undefined;
    if (began === undefined) return kind;
    this.sent.delete(message.id);
    return `${kind} in ${units.seconds((performance.now() - began) / 1000)}`;
  }

  async #end({ code, reason }) {
    this.state = `closed with ${code}`;
    let why = reason;
    if (!this.isWelcome) {
      const after = await this.owner.ask().catch(() => null);
      why = whyRefused(refusals(this.before, after));
      this.state = why;
    }
    const isBad = code !== 1000;
    if (!this.isWelcome) this.owner.warn(`${this.name}: ${why}`);
    this.owner.frames.add("note", this.name, "closed", `code ${code} ${why}`.trim(), isBad);
    this.owner.show();
  }
}

export class Console {
  /** `ask()` returns a promise of the contents of /live.json. */
  constructor(ask) {
    this.ask = ask;
    this.frames = new FrameList();
    this.links = [];
    this.active = null;
    this.isKnown = false;
    this.#listen();
    this.show();
  }

  /** Fills in the node's addresses, and in development its project, where fields are empty. */
  know({ ws, http, dev_project: project }) {
    if (this.isKnown) return;
    this.isKnown = true;
    const isSecure = location.protocol === "https:";
    const form = byId("project").elements;
    form.ws.value ||= `${isSecure ? "wss" : "ws"}://${reachable(ws)}`;
    form.http.value ||= `${isSecure ? "https" : "http"}://${reachable(http)}`;
    if (project && !form.pid.value && !form.secret.value) {
      form.pid.value = project.pid;
      form.secret.value = project.secret;
    }
  }

  #listen() {
    const on = (id, event, action) =>
      byId(id).addEventListener(event, (occurred) => {
        occurred.preventDefault();
        this.#settle(byId(id).closest(".panel"));
        Promise.resolve(occurred.submitter?.value).then(action).catch((error) => {
          this.warn(error.message);
          if (error instanceof InputError) mark(error.field, id);
        });
      });
    on("project", "submit", () => this.#project());
    on("connect", "submit", () => this.#connect());
    on("subscribe", "submit", (type) => this.#subscribe(type));
    on("request", "submit", () => this.#request());
    on("heartbeat", "click", () => this.active.send(jsonOf({ type: "heartbeat" })));
    on("of-server", "submit", () => this.#answer(this.active));
    on("push", "submit", (over) => this.#push(over));
    on("raw", "submit", () => this.active.send(fields("raw").text));
    byId("connect").elements.type.addEventListener("change", () => this.show());
  }

  /** Shows a problem. */
  warn(problem) {
    const alert = byId("problem");
    // Once its connection is removed, its form is gone.
    if (!alert.checkVisibility()) byId("forms").append(alert);
    alert.textContent = problem;
  }

  /** Problems are shown in this panel from now on, below the button that was pressed. */
  #settle(panel) {
    panel.append(byId("problem"));
    this.warn("");
    for (const field of document.querySelectorAll("#forms [aria-invalid]")) {
      field.removeAttribute("aria-invalid");
    }
  }

  async #connect() {
    const { pid, secret, ws } = this.#project();
    const typed = fields("connect");
    const { type } = typed;
    const lists = (name) => list(name, typed[name])?.join(",") ?? null;
    const own = { uid: uid("uid", typed.uid, type === "1") };
    if (type === "1") {
      Object.assign(own, { device: device("device", typed.device), tags: lists("tags") });
    } else own.events = lists("events");
    const params = { pid, type, exp: String(inOneMinute()), ...given(own) };
    this.links = this.links.filter((link) => link.isAlive);
    if (this.links.length >= MAX_CONNECTIONS) {
      throw new Error(`at most ${MAX_CONNECTIONS} connections: disconnect one first`);
    }
    const name = `${type === "1" ? "client" : "server"} ${own.uid ?? ""}`.trim();
    const query = signedQuery("/ws/connect", Object.entries(params), secret);
    const url = `${ws}/ws/connect?${query}`;
    const before = await this.ask().catch(() => null);
    const link = new Link({ kind: type, name, url, secret, before }, this);
    this.links.push(link);
    // Hides the signature, which nobody needs to read.
    this.frames.add("note", name, "connecting", url.replace(/&sign=.*/, "&sign=…"));
    this.show();
  }

  #project() {
    const typed = fields("project");
    return {
      pid: pid("pid", typed.pid),
      secret: secret("secret", typed.secret),
      ws: address("WebSocket", typed.ws, ["ws", "wss"]),
      http: address("HTTP", typed.http, ["http", "https"]),
    };
  }

  #subscribe(type) {
    const { active } = this;
    const message = { type, id: `s${++active.count}`, tags: someOf("tags", fields("subscribe").tags) };
    // Only some projects require it; the others ignore it.
    if (type === "subscribe") {
      message.sign = signedTags(active.clientId, message.tags, active.secret);
    }
    active.send(jsonOf(message));
  }

  #request() {
    this.active.request(json("request", fields("request").data));
  }

  #answer(link) {
    link.answer(json("answer", fields("of-server").data));
    this.show();
  }

  /** A business server got a request. */
  asked(link) {
    try {
      if (byId("of-server").elements.auto.checked) this.#answer(link);
      else this.show();
    } catch (error) {
      this.warn(error.message);
    }
  }

  /** The members of a push: lists, a number, a text; and `data`, byte for byte. */
  #pushed() {
    const { data, ttl_ms: ms, idempotency_key: key, ...selectors } = fields("push");
    const members = Object.entries(selectors).map(([name, text]) => [name, list(name, text)]);
    members.push(["ttl_ms", ttl("ttl_ms", ms)], ["idempotency_key", key]);
    return [given(Object.fromEntries(members)), { data: json("data", data) }];
  }

  #push(over) {
    return over === "server" ? this.#pushAsServer() : this.#pushOverHttp();
  }

  #pushAsServer() {
    const [members, raw] = this.#pushed();
    const id = `p${++this.active.count}`;
    this.active.send(jsonOf({ type: "push", id, ...members }, raw));
  }

  async #pushOverHttp() {
    const { pid, secret, http } = this.#project();
    const [members, raw] = this.#pushed();
    const path = "/ws/push";
    const body = jsonOf({ pid, exp: inOneMinute(), ...members }, raw);
    const headers = {
      "Content-Type": "application/json",
      "X-Sign": sign(secret, `${path}\n${body}`),
    };
    this.frames.add("out", "HTTP", `POST ${path}`, body);
    const began = performance.now();
    try {
      const answer = await fetch(http + path, { method: "POST", headers, body });
      const text = await answer.text();
      const took = units.seconds((performance.now() - began) / 1000);
      this.frames.add("in", "HTTP", `${answer.status} in ${took}`, text, !answer.ok);
      if (!answer.ok) this.warn(`POST ${path}: ${refusalOf(answer.status, text)}`);
    } catch {
      const why =
        "the node was not reached, or the project's allowed_origins do not include this page";
      this.frames.add("note", "HTTP", "no answer", why, true);
      this.warn(`POST ${path}: no answer: ${why}`);
    }
  }

  /** Shows the forms that apply to the chosen connection. */
  show() {
    // A closed connection cannot do anything.
    if (!this.active?.isOpen) this.active = this.links.findLast((link) => link.isUsable) ?? null;
    const { type } = byId("connect").elements;
    for (const label of byId("connect").querySelectorAll("[data-for]")) {
      label.hidden = label.dataset.for !== type.value;
    }
    const { active } = this;
    byId("of-client").hidden = active?.kind !== "1";
    byId("of-server").hidden = active?.kind !== "2";
    byId("raw").hidden = active === null;
    byId("push-server").hidden = active?.kind !== "2";
    const count = active?.asked.length ?? 0;
    byId("asked").textContent = count > 0 ? `${count} unanswered` : "no unanswered requests";
    this.#showLinks();
  }

  #showLinks() {
    const known = this.links.map((link) => `${link.name} ${link.state}`).join("\n");
    const chosen = this.links.indexOf(this.active);
    // Updates only what has changed, so that a button stays in place while somebody is about to
    // press it.
    if (this.drawn === `${known} ${chosen}`) return;
    this.drawn = `${known} ${chosen}`;
    byId("connections").replaceChildren(...this.links.map((link) => this.#item(link)));
  }

  #item(link) {
    const item = element("li");
    item.dataset.state = link.isUsable ? "on" : "off";
    const label = element("label", "check");
    const choice = element("input");
    const isActive = link === this.active;
    Object.assign(choice, { type: "radio", name: "active", checked: isActive });
    choice.disabled = !link.isUsable;
    choice.addEventListener("change", () => {
      this.active = link;
      this.show();
    });
    const text = element("span");
    text.append(element("b", "", link.name), element("span", "note", link.state));
    label.append(choice, text);
    item.append(label);
    if (link.isAlive) {
      const end = element("button", "", "Disconnect");
      end.type = "button";
      end.addEventListener("click", () => link.socket.close(1000));
      item.append(end);
    }
    return item;
  }
}

/**
 * Marks the invalid field and focuses it: one of the form whose button was pressed, or of the
 * project, which every form needs.
 */
function mark(name, form) {
  const labels = [form, "project"].flatMap((id) => [...byId(id).querySelectorAll("label")]);
  const label = labels.find((one) => one.dataset.name === name || one.control?.name === name);
  const field = label?.control;
  if (!field) return;
  field.setAttribute("aria-invalid", "true");
  const folded = field.closest("details");
  if (folded) folded.open = true;
  field.focus();
}

/** The address of a port as seen from this page: a node that listens everywhere names no host. */
function reachable(address) {
  const [, host, port] = address.match(/^(.*):(\d+)$/);
  const isAnywhere = host === "0.0.0.0" || host === "[::]";
  return `${isAnywhere ? location.hostname : host}:${port}`;
}
