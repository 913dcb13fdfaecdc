// The signatures of the live page and of Swagger UI, compared with Node's own SHA-256 and HMAC.

import assert from "node:assert/strict";
import { createHash, createHmac } from "node:crypto";
import { test } from "node:test";
import { load } from "./load.mjs";

const { canonical, sha256, sign, signedQuery, signedTags } =
  await load("src/ops/pages/assets/sign.js");

const reference = (key, text) => createHmac("sha256", key).update(text).digest("hex");

test("SHA-256 of every length around its blocks, and of a long text", () => {
  for (const length of [...Array(200).keys(), 100_000]) {
    const bytes = Uint8Array.from({ length }, (_, index) => (index * 7 + length) & 255);
    const wanted = createHash("sha256").update(bytes).digest("hex");
    assert.equal(Buffer.from(sha256(bytes)).toString("hex"), wanted, `${length} bytes`);
  }
});

test("HMAC, with keys that are short, long, and not ASCII", () => {
  const long = ["s".repeat(64), "s".repeat(65), "ключ".repeat(40)];
  for (const key of ["", "k", "dev-secret", ...long]) {
    const text = `text of ${key} 艾莉丝 👋`;
    assert.equal(sign(key, text), reference(key, text), key);
  }
});

test("HMAC, with texts and keys of every length", () => {
  const written = (length) =>
    Array.from({ length }, (_, at) => String.fromCharCode(32 + ((at * 7 + length) % 95))).join("");
  for (let length = 0; length < 300; length++) {
    const [key, text] = [written(length % 131), written(length)];
    assert.equal(sign(key, text), reference(key, text), `${length}`);
  }
});

test("the contract's vector", () => {
  const params = [["uid", "u 1"], ["type", "1"], ["pid", "1"]];
  const vector = "fc693ec296eeb192fb6458696cdcdbabb265af8ab51ac61badcd7a8bb45ffae9";
  assert.equal(canonical(params), "pid=1&type=1&uid=u%201");
  assert.equal(sign("dev-secret", `/ws/connect\n${canonical(params)}`), vector);
  const query = `pid=1&type=1&uid=u%201&sign=${vector}`;
  assert.equal(signedQuery("/ws/connect", params, "dev-secret"), query);
});

test("reserved characters are encoded, unreserved ones are not", () => {
  const params = [["a", "!'()*-._~/é+&= "]];
  assert.equal(canonical(params), "a=%21%27%28%29%2A-._~%2F%C3%A9%2B%26%3D%20");
});

test("names sort by their bytes", () => {
  // Sorted as UTF-16, the last two would be the other way round.
  const pairs = [["\u{1f600}", "a"], ["\uffee", "b"], ["ba", "1"], ["b", "2"], ["B", ""]];
  assert.equal(canonical(pairs), "B=&b=2&ba=1&%EF%BF%AE=b&%F0%9F%98%80=a");
});

test("tags are signed once each, sorted by their bytes", () => {
  // Sorted as UTF-16, the last two would be the other way round.
  const text = "subscribe\n7\na,ab,b,\u{ff5e},\u{1f44b}";
  const tags = ["b", "a", "\u{1f44b}", "ab", "\u{ff5e}", "a"];
  assert.equal(signedTags("7", tags, "s"), sign("s", text));
});
