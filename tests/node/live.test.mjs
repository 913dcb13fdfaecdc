// The calculations of the live page and its console, without a page.

import assert from "node:assert/strict";
import { test } from "node:test";
import { load, textOf } from "./load.mjs";

const folder = "src/ops/pages/assets/live/";
const { clock, duration, linearMarks, logMarks, quantile, sample, spanOf, timeMarks, units } =
  await load(`${folder}figures.js`);
const { jsonOf, kindOf, listOf, matches, pretty, refusalOf, refusals, sizeOf, whyRefused } =
  await load(`${folder}frames.js`);
const inputs = await load(`${folder}inputs.js`);

// Rates and percentiles.

const BOUNDS = [0.001, 0.01, 0.1];

function worker(more = {}) {
  return {
    connections: 5,
    http_connections: 1,
    servers: 0,
    connects: 10,
    envelopes: 0,
    deliveries: 100,
    client_messages: 0,
    server_messages: 0,
    outbox_bytes: 64,
    waiting_bytes: 0,
    sent_bytes: 0,
    received_bytes: 0,
    pushes_accepted: 0,
    pushes_refused: 0,
    drops: { slow_consumer: 0, ttl: 0 },
    closes: { peer: 5, gone: 0 },
    ...more,
  };
}

function snapshot(more = {}) {
  return {
    ts: 10_000,
    epoch: 1,
    workers: [worker(), worker()],
    handshakes: { 101: 20, 401: 1 },
    threads: [{ name: "worker-0", busy_us: 0 }],
    requests: [{ url: "/ws/push", code: 200, count: 50 }],
    request_duration: { bounds: BOUNDS, counts: [10, 10, 0, 0] },
    push_seconds: { delivery: { bounds: BOUNDS, counts: [0, 0, 0, 0] } },
    pause_seconds: { own: { bounds: BOUNDS, counts: [0, 0, 0, 0] } },
    answers: { answered: 0, timeout: 0 },
    queue: { kind: "local", ready: true },
    ...more,
  };
}

test("a sample is sums of workers, and rates by the node's own clock", () => {
  const now = snapshot({
    ts: 12_000,
    workers: [
      worker({ deliveries: 400, drops: { slow_consumer: 3, ttl: 0 }, connects: 12 }),
      worker({ connections: 7, closes: { peer: 5, gone: 4 } }),
    ],
    handshakes: { 101: 22, 401: 1, 503: 6 },
    requests: [
      { url: "/ws/push", code: 200, count: 70 },
      { url: "/ws/push", code: 401, count: 2 },
      { url: "/readyz", code: 200, count: 1 },
    ],
    answers: { answered: 8, timeout: 0 },
  });
  const values = sample(now, snapshot(), snapshot());
  const { connections, outbox_bytes, deliveries, connects, closes, refused, requests } = values;
  assert.deepEqual(
    { connections, outbox_bytes, deliveries, connects, closes, refused, requests },
    {
      connections: 12,
      outbox_bytes: 128,
      deliveries: 150,
      connects: 1,
      closes: 2,
      refused: 3,
      requests: 11.5,
    },
  );
  assert.equal(values["status.200"], 10.5);
  assert.equal(values["status.401"], 1);
  assert.equal(values["url./ws/push.200"], 10);
  assert.equal(values["drop.slow_consumer"], 1.5);
  assert.equal(values.drops, 1.5);
  assert.equal(values["answer.answered"], 4);
  assert.equal(values["worker.0.deliveries"], 150);
  assert.equal(values["worker.1.deliveries"], 0);
  // What the node does not report is unknown.
  for (const name of ["pending_bytes", "queue.received", "lag"]) assert.ok(!(name in values), name);
});

test("there is no rate across a restart, without time, or at the start", () => {
  const now = snapshot({ ts: 12_000 });
  for (const before of [undefined, snapshot({ epoch: 2 }), snapshot({ ts: 12_000 })]) {
    const values = sample(now, before, before);
    assert.equal(values.deliveries, null);
    assert.equal(values.drops, null);
    assert.equal(values["request.p99"], null);
    assert.equal(values.connections, 10);
  }
});

test("threads, the queue, and the way of a push", () => {
  const queue = {
    received: 1, published: 0, refused: 0, unknown: 0, missed: 0, worker_full: 0,
    pending_bytes: 9, lag_ms: 2,
  };
  const before = snapshot({ threads: [{ name: "worker-0", busy_us: 1e6 }], queue });
  const now = snapshot({
    ts: 11_000,
    // Two of the same name, one of them new.
    threads: [
      { name: "worker-0", busy_us: 1.25e6 },
      { name: "tool", busy_us: 1e5 },
      { name: "tool", busy_us: 4e5 },
    ],
    queue: { ...queue, received: 4, worker_full: 2, pending_bytes: 8 },
    push_seconds: { delivery: { bounds: BOUNDS, counts: [0, 100, 0, 0] } },
    pause_seconds: { own: { bounds: BOUNDS, counts: [100, 0, 0, 0] } },
  });
  const values = sample(now, before, before);
  assert.deepEqual([values["busy.worker-0"], values["busy.tool"]], [0.25, 0.5]);
  assert.equal(values["queue.received"], 3);
  assert.deepEqual([values.pending_bytes, values.lag], [8, 0.002]);
  assert.equal(values.drops, 2);
  assert.equal(units.seconds(values["delivery.p50"]), "5.5 ms");
  assert.equal(units.seconds(values["pause.own.p50"]), "500 µs");
});

test("percentiles from buckets, as Prometheus reckons them", () => {
  assert.equal(quantile(0.5, BOUNDS, [10, 0, 0, 0]), 0.0005);
  assert.equal(quantile(0.5, BOUNDS, [10, 10, 0, 0]), 0.001);
  assert.ok(Math.abs(quantile(0.95, BOUNDS, [50, 0, 50, 0]) - 0.091) < 1e-12);
  assert.equal(quantile(1, BOUNDS, [1, 2, 3, 0]), 0.1);
  // Above the last bound nothing more is known.
  assert.equal(quantile(0.99, BOUNDS, [1, 0, 0, 99]), 0.1);
  assert.equal(quantile(0.5, BOUNDS, [0, 0, 0, 0]), null);
  assert.equal(quantile(0.5, BOUNDS, []), null);
});

// Numbers as text.

test("numbers with three digits that count, and their units", () => {
  assert.deepEqual(
    [0, 7, 1234, 99_999, 123_456, 1_234_567].map(units.count),
    ["0", "7", "1,234", "99,999", "123k", "1.23M"],
  );
  assert.deepEqual(
    [0, 0.25, 12.34, 999.4, 999.6, 1000, 2.5e9].map(units.rate),
    ["0/s", "0.25/s", "12.3/s", "999/s", "1k/s", "1k/s", "2.5G/s"],
  );
  assert.deepEqual(
    [0.00005, 0.000999, 0.0009999, 0.0123, 1.5, 10].map(units.seconds),
    ["50 µs", "999 µs", "1 ms", "12.3 ms", "1.5 s", "10 s"],
  );
  const bytes = [0, 1023, 1536, 5 << 20].map(units.bytes);
  assert.deepEqual(bytes, ["0 B", "1023 B", "1.5 KiB", "5 MiB"]);
  assert.equal(units.byteRate(1536), "1.5 KiB/s");
  assert.deepEqual([0, 0.456, 1].map(units.share), ["0%", "45.6%", "100%"]);
  for (const write of Object.values(units)) {
    assert.deepEqual([null, undefined].map(write), ["–", "–"]);
  }
});

test("times that have passed", () => {
  assert.deepEqual(
    [0, 999, 61_000, 3_600_000, 93_784_000].map(duration),
    ["0 s", "0 s", "1 min 1 s", "1 h", "1 d 2 h"],
  );
  assert.match(clock(0), /^\d\d:\d\d:\d\d$/);
});

test("axes have two to five marks, and reach above everything", () => {
  assert.deepEqual(linearMarks(7), [0, 2, 4, 6, 8]);
  assert.deepEqual(linearMarks(0), [0, 1]);
  assert.deepEqual(linearMarks(2, { least: 1 }), [0, 1, 2]);
  assert.deepEqual(linearMarks(0, { isBinary: true, least: 256 }), [0, 256]);
  assert.deepEqual(linearMarks(5000, { isBinary: true }), [0, 2048, 4096, 6144]);
  for (let max = 0.013; max < 1e7; max *= 1.37) {
    const marks = linearMarks(max);
    assert.ok(marks.length >= 2 && marks.length <= 5 && marks.at(-1) >= max, `${max}: ${marks}`);
  }
  assert.deepEqual(logMarks(0.00005, 0.03), [0.00001, 0.0001, 0.001, 0.01, 0.1]);
  assert.deepEqual(logMarks(0.001, 0.001), [0.001, 0.01]);
});

// Frames.

test("JSON with a line for every member, each token as it came", () => {
  const text = '{"n":12345678901234567890,"e":1E2,"s":"a\\"{,}","l":[1,{"x":null}],"o":{},"a":[]}';
  const lines = [
    "{",
    '  "n": 12345678901234567890,',
    '  "e": 1E2,',
    '  "s": "a\\"{,}",',
    '  "l": [',
    "    1,",
    "    {",
    '      "x": null',
    "    }",
    "  ],",
    '  "o": {},',
    '  "a": []',
    "}",
  ];
  assert.equal(pretty(text), lines.join("\n"));
  assert.equal(pretty(lines.join("\n")), lines.join("\n"));
  for (const other of ['"text"', "1", "not {json", ""]) assert.equal(pretty(other), other);
});

test("what a frame is", () => {
  assert.deepEqual(
    ['{"type":"push"}', '{"type":"response","code":0}', "[1]", "null", "{"].map((text) => {
      const { kind, isBad } = kindOf(text);
      return [kind, isBad];
    }),
    [["push", false], ["response", true], ["JSON", false], ["JSON", false], ["not JSON", true]],
  );
  assert.equal(sizeOf("é👋"), 6);
});

test("members are written, and data goes out as it was typed", () => {
  const text = jsonOf({ pid: "1", tags: ["a"], ttl_ms: 5 }, { data: '{ "n": 1.0 }' });
  assert.equal(text, '{"pid":"1","tags":["a"],"ttl_ms":5,"data":{ "n": 1.0 }}');
  assert.deepEqual(listOf(" a, b ,,c d,"), ["a", "b", "c d"]);
  assert.deepEqual(listOf(" "), []);
});

test("a filter wants every word, and a direction", () => {
  const frame = { direction: "in", from: "client alice", kind: "push", text: '{"n":"News"}' };
  const shows = (words, direction = "all") => matches(frame, { words, direction });
  assert.ok(shows([]) && shows(["alice", "news"]) && shows(["push"], "in"));
  assert.ok(!shows(["bob"]) && !shows(["alice", "bob"]) && !shows([], "out"));
});

test("why a handshake was refused, by what the node counted meanwhile", () => {
  const before = snapshot();
  const after = snapshot({ handshakes: { 101: 25, 401: 2, 503: 1 } });
  assert.deepEqual(refusals(before, after), [401, 503]);
  assert.deepEqual(refusals(before, before), []);
  assert.deepEqual(refusals(null, after), []);
  assert.deepEqual(refusals(snapshot({ epoch: 2 }), after), []);
  assert.match(whyRefused([401]), /^refused with 401: a bad or expired sign/);
  assert.match(whyRefused([401, 503]), /401: .*; or 503: /);
  assert.equal(whyRefused([]), "the node was not reached");
});

test("every element that the scripts name is in the page", () => {
  const page = textOf(`${folder}index.html`);
  const scripts = ["live.js", "panels.js", "console.js"];
  const all = scripts.map((name) => textOf(folder + name)).join("\n");
  const found = all.matchAll(/\b(?:byId|fields|on|say)\("([a-z-]+)"/g);
  const named = new Set([...found].map(([, id]) => id));
  assert.ok(named.size > 25, String(named.size));
  for (const id of named) assert.ok(page.includes(`id="${id}"`), id);
});

// Typed input.

test("a field that the node would refuse is named, with what it has", () => {
  const refused = (read) => {
    try {
      return `taken: ${JSON.stringify(read())}`;
    } catch (error) {
      return error.message;
    }
  };
  for (const text of ["abc", "0", "-1", "1.5", "1e3", "604800001", "null"]) {
    const words = "ttl_ms must be a whole number of milliseconds, 1 to 604800000 (7 days), not ";
    assert.equal(refused(() => inputs.ttl("ttl_ms", text)), words + JSON.stringify(text));
  }
  for (const [field, text, words] of [
    ["cids", "7, alice", 'must be a list of client ids, which are decimal numbers, but contains "alice"'],
    ["except_cids", "18446744073709551616", "must be a list of client ids"],
    ["devices", "web,iOS", 'contains "iOS"'],
    ["uids", "a\tb", "without control characters"],
    ["tags", " , ", "has only commas"],
    ["events", "request,kick", 'contains "kick"'],
  ]) {
    const said = refused(() => inputs.list(field, text));
    assert.ok(said.startsWith(`${field} `) && said.includes(words), said);
  }
  for (const [said, words] of [
    [refused(() => inputs.someOf("tags", "")), "tags must name at least one"],
    [refused(() => inputs.json("data", "{")), "data is not JSON"],
    [refused(() => inputs.pid("pid", "a b")), 'pid must be a project id'],
    [refused(() => inputs.secret("secret", "")), "secret is empty"],
    [refused(() => inputs.uid("uid", " ", true)), "uid is empty"],
    [refused(() => inputs.uid("uid", "a,b", true)), 'not "a,b"'],
    [refused(() => inputs.device("device", "Web")), 'not "Web"'],
    [refused(() => inputs.address("HTTP", "127.0.0.1:8912", ["http", "https"])), "http://host:port or https"],
    [refused(() => inputs.address("WebSocket", "http://x", ["ws", "wss"])), 'not "http://x"'],
    [refused(() => inputs.address("WebSocket", "ws://x?a", ["ws", "wss"])), 'not "ws://x?a"'],
  ]) {
    assert.ok(said.includes(words), said);
  }
});

test("what is good is read, and what is empty is left out", () => {
  assert.equal(inputs.ttl("ttl_ms", " "), null);
  assert.equal(inputs.ttl("ttl_ms", " 60000 "), 60000);
  assert.equal(inputs.list("uids", ""), null);
  assert.deepEqual(inputs.list("uids", "a b, c"), ["a b", "c"]);
  assert.deepEqual(inputs.list("cids", "0,18446744073709551615"), ["0", "18446744073709551615"]);
  assert.equal(inputs.uid("uid", "", false), null);
  assert.equal(inputs.json("data", ' 12345678901234567890 '), "12345678901234567890");
  assert.equal(inputs.address("HTTP", " http://[::1]:8912/ ", ["http"]), "http://[::1]:8912");
});

test("a refusal says its status and the node's words", () => {
  assert.equal(refusalOf(401, '{"code":0,"msg":"bad sign"}'), "401: bad sign");
  assert.equal(refusalOf(502, "<html>Bad Gateway"), "502: <html>Bad Gateway");
  assert.equal(refusalOf(503, ""), "503");
});

// The length of the time shown.

test("charts show the time that there is, up to what was chosen", () => {
  const from = (age) => [{ time: 1_000_000 - age }, { time: 1_000_000 }];
  for (const [age, expected] of [[0, 5000], [4000, 5000], [37_000, 37_000], [305_000, 300_000]]) {
    assert.equal(spanOf(from(age), 300_000), expected);
  }
  assert.equal(spanOf([], 60_000), 5000);
  assert.equal(spanOf(from(90_000), 60_000), 60_000);
});

test("marks of time are whole, in order, and never closer than their words are wide", () => {
  assert.deepEqual(timeMarks(300_000, 320).map(([, text]) => text), ["now", "−1 min", "−2 min", "−3 min", "−4 min", "−5 min"]);
  assert.deepEqual(timeMarks(37_000, 320), [[0, "now"], [10_000, "−10 s"], [20_000, "−20 s"], [30_000, "−30 s"]]);
  for (let ms = 5000; ms <= 305_000; ms += 1000) {
    for (const width of [80, 240, 290, 400, 900]) {
      const marks = timeMarks(ms, width);
      const pixels = marks.map(([ago]) => (ago / ms) * width);
      for (let index = 1; index < marks.length; index++) {
        assert.ok(pixels[index] - pixels[index - 1] >= 59, `${ms} ms, ${width} px`);
      }
      assert.ok(pixels.at(-1) <= width && marks.length >= (width > 120 ? 2 : 1), `${ms} ms, ${width} px`);
    }
  }
});
