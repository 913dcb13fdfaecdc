// The page around Swagger UI signs requests according to the contract.

import assert from "node:assert/strict";
import { createHmac } from "node:crypto";
import { test } from "node:test";
import { load } from "./load.mjs";

const { signRequest, withExp } = await load("src/ops/pages/assets/swagger/signing.js");
const { outcome, unsent } = await load("src/ops/pages/assets/swagger/outcome.js");

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

test("what came of a request is said in a line", () => {
  const origin = "http://localhost:9092";
  const said = (answer) => outcome("POST /ws/push", answer, origin);
  assert.deepEqual(said({ status: 200, text: "{}" }), { isGood: true, text: "POST /ws/push: 200" });
  const refused = (text) => ({ error: true, err: { response: { status: 401, statusText: "Unauthorized", text } } });
  assert.deepEqual(said(refused('{"code":0,"msg":"bad sign"}')), { isGood: false, text: "POST /ws/push: 401, bad sign" });
  assert.equal(said(refused("<p>")).text, "POST /ws/push: 401, Unauthorized");
  const silent = said({ error: true, err: { message: "**Failed to fetch.**  \n**Possible Reasons:**" } });
  assert.ok(!silent.isGood && /no answer \(Failed to fetch\.\): .* allowed_origins do not include http:/.test(silent.text), silent.text);
  assert.equal(unsent("POST /ws/push", ["For 'ttl_ms': no integer."]).text, "POST /ws/push was not sent: For 'ttl_ms': no integer.");
  assert.equal(unsent("POST /ws/kick", []).text, "POST /ws/kick was not sent: a required field is empty");
});
