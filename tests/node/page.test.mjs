// docs/push.html: its scripts parse, and it signs according to the contract.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { Script } from "node:vm";

const page = readFileSync(new URL("../../docs/push.html", import.meta.url), "utf8");
const scripts = [...page.matchAll(/<script[^>]*>([\s\S]*?)<\/script>/g)].map((found) => found[1]);
const names = "{ canonical, sign, connectTarget }";
const { canonical, sign, connectTarget } = new Function(`${scripts[0]}; return ${names};`)();

test("the scripts parse", () => {
  assert.equal(scripts.length, 2);
  for (const script of scripts) {
    new Script(script);
  }
});

test("every element that the scripts name is there", () => {
  const named = [...scripts[1].matchAll(/(?:byId|fields|on)\("([a-z]+)"/g)].map((found) => found[1]);
  assert.ok(named.length > 5);
  for (const id of named) {
    assert.ok(page.includes(`id="${id}"`), id);
  }
});

test("the contract's vector", async () => {
  const params = { uid: "u 1", type: "1", pid: "1" };
  const vector = "fc693ec296eeb192fb6458696cdcdbabb265af8ab51ac61badcd7a8bb45ffae9";
  assert.equal(canonical(params), "pid=1&type=1&uid=u%201");
  assert.equal(await sign("dev-secret", `/ws/connect\n${canonical(params)}`), vector);
  const { path, protocols } = await connectTarget(params, "dev-secret");
  assert.deepEqual([path, protocols.length, protocols[0]], ["/ws/connect", 2, "ws-cluster"]);
  assert.match(protocols[1], /^q\.[A-Za-z0-9_-]+$/);
  const query = Buffer.from(protocols[1].slice(2), "base64url").toString();
  assert.equal(query, `pid=1&type=1&uid=u%201&sign=${vector}`);
});

test("reserved characters are encoded, unreserved ones are not", () => {
  assert.equal(canonical({ a: "!'()*-._~/é+&=" }), "a=%21%27%28%29%2A-._~%2F%C3%A9%2B%26%3D");
});
