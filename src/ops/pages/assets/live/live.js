// The live page: polls the node once a second and shows when it does not answer.

import { clock, duration, sample, spanOf, LATENCY_SECONDS } from "./figures.js";
import { Panels } from "./panels.js";
import { Console } from "./console.js";
import { fetchWithToken } from "../token.js";

const EVERY_MS = 1000;
/** Time without a response after which the node counts as unreachable. */
const PATIENCE_MS = 3000;
const KEPT_MS = 5 * 60_000 + 5000;
const byId = (id) => document.getElementById(id);

const panels = new Panels();
const frames = new Console(ask);

/** Recent snapshots of the node; only as many as the percentiles need. */
let recent = [];
/** The points of the charts. */
let history = [];
let goneSince = null;

/** Fetches the current snapshot. */
async function ask() {
  const patience = () => ({ signal: AbortSignal.timeout(PATIENCE_MS) });
  const answer = await fetchWithToken("live.json", patience, lock);
  if (!answer.ok) throw new Error(`HTTP status ${answer.status}`);
  return answer.json();
}

async function poll() {
  const began = performance.now();
  try {
    take(await ask());
  } catch (error) {
    miss(error);
  }
  setTimeout(poll, Math.max(0, EVERY_MS - (performance.now() - began)));
}

function take(snapshot) {
  const isAnother = recent.length > 0 && recent[0].epoch !== snapshot.epoch;
  if (isAnother) recent = [];
  const before = recent.at(-1);
  recent.push(snapshot);
  recent = recent.filter(({ ts }) => ts >= snapshot.ts - (LATENCY_SECONDS + 0.5) * 1000);
  add(sample(snapshot, before, recent[0]));
  const name = `node ${snapshot.node}`;
  document.title = `${name} · ws-cluster`;
  byId("node").textContent = name;
  byId("about").textContent = `${snapshot.version} · ${snapshot.env}`;
  if (isAnother) show("on", `${name} has restarted`);
  else if (goneSince !== null) {
    show("on", `${name} is back after ${duration(Date.now() - goneSince)}`);
  } else if (byId("status").dataset.state !== "on") show("on", `${name} is up`);
  goneSince = null;
  say("gone", "");
  say("trouble", snapshot.draining ? "The node is draining." : (snapshot.queue.trouble ?? ""));
  frames.know(snapshot);
  panels.draw(snapshot, history, spanMs());
}

function miss(error) {
  goneSince ??= Date.now();
  add({});
  const isSilent = error instanceof TypeError || error.name === "TimeoutError";
  const reason = isSilent ? "" : `: ${error.message}`;
  const name = byId("node").textContent || "The node";
  document.title = `unreachable: ${name} · ws-cluster`;
  show("off", "unreachable");
  const since = `has not responded since ${clock(goneSince)}`;
  say("gone", `${name} ${since}${reason}. Retrying every second.`);
  panels.draw(null, history, spanMs());
}

/** Without the token, the page cannot show anything. */
function lock() {
  show("locked", "token required");
  say("gone", "");
}

/** A screen reader announces changes, so an equal text is not set again. */
function say(id, text) {
  if (byId(id).textContent !== text) byId(id).textContent = text;
}

function add(values) {
  const time = Date.now();
  history.push({ time, values });
  history = history.filter((one) => one.time > time - KEPT_MS);
}

function show(state, text) {
  document.body.dataset.state = state;
  byId("status").dataset.state = state;
  byId("status").textContent = text;
}

// The switches.

function spanMs() {
  return spanOf(history, Number(byId("span").value) * 1000);
}

byId("span").addEventListener("change", () => {
  if (history.length > 0) panels.draw(null, history, spanMs());
});

const THEMES = ["auto", "light", "dark"];

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  byId("theme").textContent = `Theme: ${theme}`;
  try {
    localStorage.setItem("theme", theme);
  } catch {
    // Storage may be forbidden: then the choice lasts as long as the page.
  }
}

function keptTheme() {
  try {
    return localStorage.getItem("theme");
  } catch {
    return null;
  }
}

byId("theme").addEventListener("click", () => {
  const next = THEMES.indexOf(document.documentElement.dataset.theme) + 1;
  setTheme(THEMES[next % THEMES.length]);
});

/** `#console` in the address shows the console, anything else the charts; both keep running. */
function showView() {
  const view = location.hash === "#console" ? "console" : "live";
  for (const name of ["live", "console"]) {
    byId(`${name}-view`).hidden = name !== view;
    const link = document.querySelector(`nav a[href="#${name}"]`);
    if (name === view) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  byId("switches").hidden = view !== "live";
}

addEventListener("hashchange", showView);
showView();
setTheme(THEMES.includes(keptTheme()) ? keptTheme() : "auto");
poll();
