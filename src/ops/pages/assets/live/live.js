// The live page: polls the node once a second and shows when it does not answer.

import { clock, duration, sample, spanOf, LATENCY_SECONDS } from "./figures.js";
import { Panels } from "./panels.js";
import { Console } from "./console.js";
import { fetchWithToken } from "../token.js";

const EVERY_MS = 1000;
/** A node that says nothing for so long is gone. */
const PATIENCE_MS = 3000;
const KEPT_MS = 5 * 60_000 + 5000;
const byId = (id) => document.getElementById(id);

const panels = new Panels();
const frames = new Console(ask);

/** What the node said, and when; only what the percentiles need. */
let recent = [];
/** The points of the charts. */
let history = [];
let goneSince = null;

/** What the node says now. */
async function ask() {
  const patience = () => ({ signal: AbortSignal.timeout(PATIENCE_MS) });
  const answer = await fetchWithToken("live.json", patience, lock);
  if (!answer.ok) throw new Error(`it answers ${answer.status}`);
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
  if (isAnother) show("on", `${name} was started anew`);
  else if (goneSince !== null) {
    show("on", `${name} is back after ${duration(Date.now() - goneSince)}`);
  } else if (byId("status").dataset.state !== "on") show("on", `${name} answers`);
  goneSince = null;
  say("gone", "");
  say("trouble", snapshot.draining ? "The node drains." : (snapshot.queue.trouble ?? ""));
  frames.know(snapshot);
  panels.draw(snapshot, history, spanMs());
}

function miss(error) {
  goneSince ??= Date.now();
  add({});
  const isSilent = error instanceof TypeError || error.name === "TimeoutError";
  const reason = isSilent ? "" : `: ${error.message}`;
  const name = byId("node").textContent || "The node";
  document.title = `gone: ${name} · ws-cluster`;
  show("off", "gone");
  const since = `does not answer since ${clock(goneSince)}`;
  say("gone", `${name} ${since}${reason}. Asked again every second.`);
  panels.draw(null, history, spanMs());
}

/** Until it has the token the page knows nothing. */
function lock() {
  show("locked", "asks for its token");
  say("gone", "");
}

/** A screen reader says what changes: the same again is no change. */
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

/** `#console` in the address shows the console, anything else the charts; both go on. */
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
