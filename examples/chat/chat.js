// The chat page.

import { Connection, Refusal } from "./connection.js";

const MAX_LINES = 500;
const byId = (id) => document.getElementById(id);
const joinForm = byId("join");
const composer = byId("composer");
let connection = null;
let ownName = "";

function join(name, room) {
  let wasHere = false;
  byId("problem").textContent = "";
  ownName = name;
  connection?.close();
  connection = new Connection(() => fetchToken(name, room), {
    connecting() {
      showStatus("waiting", "connecting");
    },
    welcome(node) {
      showStatus("on", `connected to node ${node}`);
      if (wasHere) addNotice("Reconnected. Lines sent in the meantime are not shown.");
      else showRoom(room);
      wasHere = true;
    },
    push: take,
    waiting(ms) {
      showStatus("waiting", `not connected, next attempt in ${(ms / 1000).toFixed(1)} s`);
    },
    end(why) {
      leave();
      byId("problem").textContent = why;
    },
  });
}

function leave() {
  connection.close();
  showStatus("off", "not connected");
  byId("chat").hidden = true;
  joinForm.hidden = false;
  joinForm.elements.name.focus();
}

async function fetchToken(name, room) {
  const answer = await fetch(`token?${new URLSearchParams({ name, room })}`);
  const token = await answer.json();
  if (answer.status === 400) throw new Refusal(token.error);
  return token;
}

function take(data) {
  switch (data.kind) {
    case "line":
      addLine(data.name, data.text);
      break;
    case "room":
      showMembers(data.members);
      if (data.joined) addNotice(`${data.joined} joined`);
      if (data.left) addNotice(`${data.left} left`);
      break;
    case "roll call":
      // A business server that has just started does not know who is there.
      connection.request({ here: true });
  }
}

async function say(text) {
  const line = addLine(ownName, text);
  showAnswer(line, "sending", "sending");
  showAnswer(line, ...outcome(await connection.request({ text })));
}

/** How a request ended: a state, and words for it. */
function outcome({ code, msg, data }) {
  if (code === 1) return data.ok ? ["sent", "sent"] : ["refused", `refused: ${data.error}`];
  if (msg === "timeout") return ["timeout", "no answer in time: perhaps sent"];
  const isUnknown = msg === "server gone" || msg === "connection lost";
  return isUnknown ? ["unknown", `${msg}: perhaps sent`] : ["refused", `refused: ${msg}`];
}

function showStatus(state, text) {
  byId("status").dataset.state = state;
  byId("status").textContent = text;
}

function showRoom(room) {
  joinForm.hidden = true;
  byId("chat").hidden = false;
  byId("room").textContent = room;
  byId("lines").replaceChildren();
  showMembers([ownName]);
  composer.elements.text.focus();
  // A URL to share.
  history.replaceState(null, "", `?${new URLSearchParams({ room })}`);
}

function showMembers(names) {
  const items = names.map((name) => (name === ownName ? `${name} (you)` : name));
  byId("members").replaceChildren(...items.map((item) => element("li", "", item)));
}

function showAnswer(line, state, text) {
  line.dataset.state = state;
  line.querySelector(".answer").textContent = text;
}

function addLine(name, text) {
  const now = new Date();
  const time = element("time", "", now.toLocaleTimeString([], { timeStyle: "short" }));
  time.dateTime = now.toISOString();
  const line = element("li", name === ownName ? "line own" : "line");
  const head = element("p", "head");
  head.append(element("span", "name", name), " ", time, " ", element("span", "answer"));
  line.append(head, element("p", "text", text));
  return add(line);
}

function addNotice(text) {
  add(element("li", "notice", text));
}

/** Stays at the end of the lines, unless somebody reads further up. */
function add(line) {
  const log = byId("log");
  const isAtEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
  byId("lines").append(line);
  if (byId("lines").children.length > MAX_LINES) byId("lines").firstElementChild.remove();
  if (isAtEnd) log.scrollTop = log.scrollHeight;
  return line;
}

/** Text is never parsed as HTML. */
function element(tag, className, text = "") {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
}

joinForm.addEventListener("submit", (event) => {
  event.preventDefault();
  const { name, room } = joinForm.elements;
  join(name.value.trim(), room.value);
});

composer.addEventListener("submit", (event) => {
  event.preventDefault();
  const { text } = composer.elements;
  if (text.value.trim()) say(text.value);
  composer.reset();
});

byId("leave").addEventListener("click", leave);

// ?name=…&room=… in the address fills the form.
for (const [name, value] of new URLSearchParams(location.search)) {
  const input = joinForm.elements.namedItem(name);
  if (input) input.value = value;
}
