// examples/chat/connection.js, with the test's own clock and WebSocket.

import assert from "node:assert/strict";
import { beforeEach, mock, test } from "node:test";
import { load } from "./load.mjs";

const { Connection, Refusal } = await load("examples/chat/connection.js");

let sockets;
let seen;

class FakeSocket {
  constructor(url, protocols) {
    this.url = url;
    this.protocols = protocols;
    this.sent = [];
    this.closed = null;
    sockets.push(this);
  }
  send(text) {
    this.sent.push(JSON.parse(text));
  }
  close(code) {
    this.closed = code;
  }
  says(message) {
    this.onmessage({ data: JSON.stringify(message) });
  }
}

beforeEach(() => {
  sockets = [];
  seen = [];
  globalThis.WebSocket = FakeSocket;
  mock.timers.reset();
  mock.timers.enable({ apis: ["setTimeout"] });
});

const on = Object.fromEntries(
  ["connecting", "welcome", "push", "waiting", "end"].map((name) => [
    name,
    (value) => seen.push(value === undefined ? [name] : [name, value]),
  ]),
);

/** Until every promise that can go on has gone on. */
const settled = () => new Promise((resolve) => setImmediate(resolve));

async function after(ms) {
  mock.timers.tick(ms);
  await settled();
}

const tokenOf = (url) => ({ url, protocols: ["ws-cluster", "q.eA"] });

async function connected() {
  let count = 0;
  const connection = new Connection(async () => tokenOf(`ws://node/${++count}`), on);
  await settled();
  sockets[0].says({ type: "connect", code: 1, node: 7 });
  seen.length = 0;
  return connection;
}

test("a request is answered by its id, and pushes arrive", async () => {
  const connection = await connected();
  const [first, second] = [connection.request({ text: "a" }), connection.request({ text: "b" })];
  const [one, two] = sockets[0].sent;
  assert.deepEqual([one.type, one.data, two.data], ["request", { text: "a" }, { text: "b" }]);
  sockets[0].says({ type: "response", id: two.id, code: 1, data: 2 });
  sockets[0].says({ type: "push", id: "9", data: "hello" });
  sockets[0].says({ type: "response", id: one.id, code: 0, msg: "no server" });
  assert.equal((await second).data, 2);
  assert.equal((await first).msg, "no server");
  assert.deepEqual(seen, [["push", "hello"]]);
});

test("what waits for an answer is told that the connection is lost", async () => {
  const connection = await connected();
  const answer = connection.request({ text: "a" });
  sockets[0].onclose({ code: 1006, reason: "" });
  assert.deepEqual(await answer, { code: 0, msg: "connection lost" });
  assert.deepEqual(await connection.request({}), { code: 0, msg: "not connected" });
});

test("it comes back later and later, each time with a fresh token", async () => {
  await connected();
  for (let attempt = 0; attempt < 9; attempt++) {
    sockets.at(-1).onclose({ code: 1006, reason: "" });
    const [what, ms] = seen.at(-1);
    assert.equal(what, "waiting");
    const longest = Math.min(500 * 2 ** attempt, 30_000);
    assert.ok(ms >= longest / 2 && ms <= longest, `${ms} of ${longest}`);
    await after(ms - 1);
    assert.equal(sockets.length, attempt + 1);
    await after(1);
    assert.equal(sockets.at(-1).url, `ws://node/${attempt + 2}`);
    assert.deepEqual(sockets.at(-1).protocols, ["ws-cluster", "q.eA"]);
  }
  // A welcome resets the delay.
  sockets.at(-1).says({ type: "connect", code: 1, node: 7 });
  sockets.at(-1).onclose({ code: 1006, reason: "" });
  assert.ok(seen.at(-1)[1] <= 500);
});

test("a node that goes away says when to come back", async () => {
  await connected();
  sockets[0].onclose({ code: 1001, reason: '{"reconnect_after_ms":4321}' });
  assert.deepEqual(seen, [["waiting", 4321]]);
  await after(4320);
  assert.equal(sockets.length, 1);
  await after(1);
  assert.equal(sockets.length, 2);
  sockets[1].onclose({ code: 1001, reason: "not JSON" });
  assert.ok(seen.at(-1)[1] <= 500);
});

test("silence is asked about, and not waited for", async () => {
  await connected();
  await after(19_999);
  assert.deepEqual(sockets[0].sent, []);
  await after(1);
  assert.deepEqual(sockets[0].sent, [{ type: "heartbeat" }]);
  sockets[0].says({ type: "heartbeat", code: 1, ts: 1 });
  await after(20_000);
  assert.equal(sockets[0].sent.length, 2);
  await after(10_000);
  assert.equal(sockets[0].closed, 1000);
  assert.equal(seen.at(-1)[0], "waiting");
  // The end of an abandoned socket does not count as a second end.
  const count = seen.length;
  sockets[0].onclose({ code: 1006, reason: "" });
  assert.equal(seen.length, count);
});

test("a handshake that takes too long is given up", async () => {
  new Connection(async () => tokenOf("ws://node"), on);
  await settled();
  await after(10_000);
  assert.equal(sockets[0].closed, 1000);
  assert.deepEqual(seen.map(([what]) => what), ["connecting", "waiting"]);
});

test("the kicked and the refused do not come back", async () => {
  await connected();
  sockets[0].onclose({ code: 4001, reason: "" });
  assert.equal(seen.at(-1)[0], "end");
  const refuse = async () => {
    throw new Refusal("not this name");
  };
  new Connection(refuse, on);
  await settled();
  assert.deepEqual(seen.at(-1), ["end", "not this name"]);
  await after(60_000);
  assert.equal(sockets.length, 1);
});

test("a token page that is away is asked again", async () => {
  const answers = [new TypeError("failed to fetch"), tokenOf("ws://node")];
  const token = async () => {
    const answer = answers.shift();
    if (answer instanceof Error) throw answer;
    return answer;
  };
  new Connection(token, on);
  await settled();
  await after(500);
  assert.equal(sockets[0].url, "ws://node");
});

test("closed is closed", async () => {
  const connection = await connected();
  connection.close();
  assert.equal(sockets[0].closed, 1000);
  await after(60_000);
  assert.equal(sockets.length, 1);
  // Also while it waits for its token.
  new Connection(async () => tokenOf("ws://node"), on).close();
  await settled();
  assert.equal(sockets.length, 1);
});
