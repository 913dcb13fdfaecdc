// The page around Swagger UI: it signs requests as the contract says, with and without the browser's
// own HMAC.

import assert from "node:assert/strict";
import { createHmac, randomBytes } from "node:crypto";
import { readFileSync } from "node:fs";
import { test } from "node:test";

const folder = "../../src/ops/pages/assets/swagger/";
const source = readFileSync(new URL(`${folder}signing.js`, import.meta.url), "utf8");
const names = "{ canonical, hmac, sign, signRequest, withExp }";
/** The functions of signing.js, where a page sees these globals. */
const load = (globalThis) => new Function("globalThis", `${source}; return ${names};`)(globalThis);
const browsers = { "with crypto.subtle": load({ crypto }), "without it": load({ crypto: {} }) };
const { canonical, hmac, signRequest, withExp } = browsers["with crypto.subtle"];

const secret = "dev-secret";
const reference = (key, text) => createHmac("sha256", key).update(text).digest("hex");
const NODE = "http://localhost:8912";
const JSON_FIELDS = { "Content-Type": "application/json" };
const FORM_FIELDS = { "Content-Type": "application/x-www-form-urlencoded" };

for (const [browser, { sign }] of Object.entries(browsers)) {
  test(`the contract's vector, ${browser}`, async () => {
    const text = "/ws/connect\npid=1&type=1&uid=u%201";
    const vector = "fc693ec296eeb192fb6458696cdcdbabb265af8ab51ac61badcd7a8bb45ffae9";
    assert.equal(await sign(secret, text), vector);
    assert.equal(await sign("s".repeat(65), "é"), reference("s".repeat(65), "é"));
  });
}

test("texts and keys of every length", () => {
  const hex = (bytes) => Buffer.from(bytes).toString("hex");
  for (let length = 0; length < 300; length += 1) {
    const [key, text] = [randomBytes(length % 131), randomBytes(length)];
    assert.equal(hex(hmac(key, text)), reference(key, text), `${length}`);
  }
});

test("names sort by their bytes", () => {
  const pairs = [["\u{1f600}", "a"], ["\uffee", "b"], ["b", "!'()*-._~/+&= "], ["B", ""]];
  const expected = "B=&b=%21%27%28%29%2A-._~%2F%2B%26%3D%20&%EF%BF%AE=b&%F0%9F%98%80=a";
  assert.equal(canonical(pairs), expected);
});

test("a query is signed, whatever sign it had", async () => {
  const url = `${NODE}/ws/push?uids=a+b&pid=1&sign=00&data=%C3%A9%2B`;
  const request = await signRequest({ url, headers: {} }, secret);
  const signed = "data=%C3%A9%2B&pid=1&uids=a%20b";
  const sign = reference(secret, `/ws/push\n${signed}`);
  assert.equal(request.url, `${NODE}/ws/push?${signed}&sign=${sign}`);
});

test("a form is signed, and gets an exp if it has none", async () => {
  const request = { url: `${NODE}/ws/push`, headers: { ...FORM_FIELDS }, body: "pid=1&data=x" };
  const { url, headers, body } = await signRequest({ ...request }, secret, 17);
  const sign = reference(secret, "/ws/push\ndata=x&exp=17&pid=1");
  assert.equal(body, `data=x&exp=17&pid=1&sign=${sign}`);
  assert.deepEqual([url, headers], [request.url, FORM_FIELDS]);
  const kept = await signRequest({ ...request, body: "exp=5&pid=1" }, secret, 17);
  assert.ok(kept.body.startsWith("exp=5&pid=1&sign="));
});

test("a JSON body is signed byte for byte", async () => {
  const body = '{ "data" : 1.50,\n "pid":"1"}';
  const request = { url: `${NODE}/ws/push/batch`, headers: { ...JSON_FIELDS }, body };
  const signed = await signRequest({ ...request, headers: { ...JSON_FIELDS } }, secret);
  assert.equal(signed.body, body);
  assert.equal(signed.headers["X-Sign"], reference(secret, `/ws/push/batch\n${body}`));
  const dated = await signRequest(request, secret, 17);
  assert.equal(dated.body, '{"exp":17, "data" : 1.50,\n "pid":"1"}');
  assert.equal(dated.headers["X-Sign"], reference(secret, `/ws/push/batch\n${dated.body}`));
});

test("exp comes into objects that have none, and into nothing else", () => {
  assert.equal(withExp("{}", 17), '{"exp":17}');
  assert.equal(withExp(' {"a":{}}', 17), ' {"exp":17,"a":{}}');
  for (const body of ['{"exp":5}', '[{"a":1}]', '"{"', "null", "7", "{", ""]) {
    assert.equal(withExp(body, 17), body);
  }
  assert.equal(withExp("{}", undefined), "{}");
});
