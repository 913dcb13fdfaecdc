// The page around Swagger UI: it signs requests as the contract says.

import assert from "node:assert/strict";
import { createHmac } from "node:crypto";
import { test } from "node:test";
import { load } from "./load.mjs";

const { signRequest, withExp } = await load("src/ops/pages/assets/swagger/signing.js");

const secret = "dev-secret";
const reference = (key, text) => createHmac("sha256", key).update(text).digest("hex");
const NODE = "http://localhost:8912";
const JSON_FIELDS = { "Content-Type": "application/json" };
const FORM_FIELDS = { "Content-Type": "application/x-www-form-urlencoded" };

test("a query is signed, whatever sign it had", () => {
  const url = `${NODE}/ws/push?uids=a+b&pid=1&sign=00&data=%C3%A9%2B`;
  const request = signRequest({ url, headers: {} }, secret);
  const signed = "data=%C3%A9%2B&pid=1&uids=a%20b";
  const sign = reference(secret, `/ws/push\n${signed}`);
  assert.equal(request.url, `${NODE}/ws/push?${signed}&sign=${sign}`);
});

test("a form is signed, and gets an exp if it has none", () => {
  const request = { url: `${NODE}/ws/push`, headers: { ...FORM_FIELDS }, body: "pid=1&data=x" };
  const { url, headers, body } = signRequest({ ...request }, secret, 17);
  const sign = reference(secret, "/ws/push\ndata=x&exp=17&pid=1");
  assert.equal(body, `data=x&exp=17&pid=1&sign=${sign}`);
  assert.deepEqual([url, headers], [request.url, FORM_FIELDS]);
  const kept = signRequest({ ...request, body: "exp=5&pid=1" }, secret, 17);
  assert.ok(kept.body.startsWith("exp=5&pid=1&sign="));
});

test("a JSON body is signed byte for byte", () => {
  const body = '{ "data" : 1.50,\n "pid":"1"}';
  const request = { url: `${NODE}/ws/push/batch`, headers: { ...JSON_FIELDS }, body };
  const signed = signRequest({ ...request, headers: { ...JSON_FIELDS } }, secret);
  assert.equal(signed.body, body);
  assert.equal(signed.headers["X-Sign"], reference(secret, `/ws/push/batch\n${body}`));
  const dated = signRequest(request, secret, 17);
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
