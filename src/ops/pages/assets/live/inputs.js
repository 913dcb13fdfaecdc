// Parses the console's fields as the node would. Independent of the page. Length limits are left to
// the node: they are flags.

import { listOf } from "./frames.js";

/** A problem with a field, because of which nothing is sent. */
export class InputError extends Error {
  constructor(field, problem) {
    super(`${field} ${problem}`);
    this.field = field;
  }
}

const DEVICE = /^[a-z0-9_-]+$/;
const PID = /^[A-Za-z0-9_.-]+$/;
const NUMBER = /^[0-9]+$/;
const CONTROL = /[\u0000-\u001f\u007f-\u009f]/;
const MAX_CID = 2n ** 64n - 1n;
const MAX_TTL_MS = 7 * 24 * 60 * 60 * 1000;
const EVENTS = ["connect", "disconnect", "subscribe", "unsubscribe", "node", "request"];

const shown = (text) => JSON.stringify(text);
const isCid = (text) => NUMBER.test(text) && BigInt(text) <= MAX_CID;
const isName = (text) => !CONTROL.test(text);

/** The check of each list's elements, and its description. */
const LISTS = {
  uids: [isName, "user ids without control characters"],
  tags: [isName, "tags without control characters"],
  devices: [(text) => DEVICE.test(text), "devices of the characters a-z 0-9 _ -"],
  cids: [isCid, "client ids, which are decimal numbers"],
  except_cids: [isCid, "client ids, which are decimal numbers"],
  events: [(text) => EVENTS.includes(text), `${EVENTS.join(", ")}`],
};

/** A comma-separated list; null if the field is empty. */
export function list(field, text) {
  if (text.trim() === "") return null;
  const all = listOf(text);
  if (all.length === 0) throw new InputError(field, "has only commas");
  const [isGood, what] = LISTS[field];
  const bad = all.find((one) => !isGood(one));
  if (bad !== undefined) {
    throw new InputError(field, `must be a list of ${what}, but contains ${shown(bad)}`);
  }
  return all;
}

/** A comma-separated list of a field that must not be empty. */
export function someOf(field, text) {
  const all = list(field, text);
  if (all === null) throw new InputError(field, "must name at least one");
  return all;
}

/** The ttl_ms of a push; null if the field is empty. */
export function ttl(field, text) {
  const typed = text.trim();
  if (typed === "") return null;
  const ms = NUMBER.test(typed) ? Number(typed) : 0;
  if (ms < 1 || ms > MAX_TTL_MS) {
    const what = `a whole number of milliseconds, 1 to ${MAX_TTL_MS} (7 days)`;
    throw new InputError(field, `must be ${what}, not ${shown(typed)}`);
  }
  return ms;
}

/** A JSON value as it was typed: JSON.parse and back would change big numbers. */
export function json(field, text) {
  try {
    JSON.parse(text);
  } catch (error) {
    throw new InputError(field, `is not JSON: ${error.message}`);
  }
  return text.trim();
}

/** One id without commas, which a list could not contain; null if the field is empty. */
function one(field, text, isGood, what) {
  const typed = text.trim();
  if (typed === "") return null;
  if (!isGood(typed)) throw new InputError(field, `must be ${what}, not ${shown(typed)}`);
  return typed;
}

export function uid(field, text, isNeeded) {
  const isGood = (typed) => isName(typed) && !typed.includes(",");
  const given = one(field, text, isGood, "a user id without commas or control characters");
  if (given === null && isNeeded) throw new InputError(field, "is empty: a client needs a user id");
  return given;
}

export function device(field, text) {
  return one(field, text, (typed) => DEVICE.test(typed), "a device of the characters a-z 0-9 _ -");
}

export function pid(field, text) {
  const what = "a project id of the characters A-Z a-z 0-9 _ . -";
  const given = one(field, text, (typed) => PID.test(typed), what);
  if (given === null) throw new InputError(field, "is empty: type the id of the project");
  return given;
}

export function secret(field, text) {
  if (text === "") throw new InputError(field, "is empty: it is needed to sign requests");
  return text;
}

/**
 * An address with one of these schemes, a host, a port and a path, to which others are appended.
 */
export function address(field, text, schemes) {
  const typed = text.trim();
  const url = URL.canParse(typed) ? new URL(typed) : null;
  const isGood = url !== null && schemes.includes(url.protocol.slice(0, -1));
  if (!isGood || url.search !== "" || url.hash !== "") {
    const what = schemes.map((scheme) => `${scheme}://host:port`).join(" or ");
    throw new InputError(field, `must be ${what}, not ${shown(typed)}`);
  }
  return typed.replace(/\/+$/, "");
}
