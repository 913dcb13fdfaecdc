// Parses the console's fields as the node would. Independent of the page. Length limits are left to
// the node: they are flags.

import { listOf } from "./frames.js";

/** What is wrong with a field; nothing leaves the page then. */
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

/** What an element of each list may be, and how that is said. */
const LISTS = {
  uids: [isName, "a user id without control characters"],
  tags: [isName, "a tag without control characters"],
  devices: [(text) => DEVICE.test(text), "a device of a-z, 0-9, _ and -"],
  cids: [isCid, "a client id, a decimal number"],
  except_cids: [isCid, "a client id, a decimal number"],
  events: [(text) => EVENTS.includes(text), `one of ${EVENTS.join(", ")}`],
};

/** A comma list; null where the field is empty. */
export function list(field, text) {
  if (text.trim() === "") return null;
  const all = listOf(text);
  if (all.length === 0) throw new InputError(field, "has commas and nothing between them");
  const [isGood, what] = LISTS[field];
  const bad = all.find((one) => !isGood(one));
  if (bad !== undefined) {
    throw new InputError(field, `must have ${what} between commas, not ${shown(bad)}`);
  }
  return all;
}

/** The same of a field that must not be empty. */
export function someOf(field, text) {
  const all = list(field, text);
  if (all === null) throw new InputError(field, "must name at least one");
  return all;
}

/** Milliseconds of a push; null where the field is empty. */
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

/** One id without commas, which lists could not name; null where the field is empty. */
function one(field, text, isGood, what) {
  const typed = text.trim();
  if (typed === "") return null;
  if (!isGood(typed)) throw new InputError(field, `must be ${what}, not ${shown(typed)}`);
  return typed;
}

export function uid(field, text, isNeeded) {
  const isGood = (typed) => isName(typed) && !typed.includes(",");
  const given = one(field, text, isGood, "a user id without commas and control characters");
  if (given === null && isNeeded) throw new InputError(field, "is empty: a client has a user id");
  return given;
}

export function device(field, text) {
  return one(field, text, (typed) => DEVICE.test(typed), "a device of a-z, 0-9, _ and -");
}

export function pid(field, text) {
  const what = "a project id of A-Z, a-z, 0-9, _, . and -";
  const given = one(field, text, (typed) => PID.test(typed), what);
  if (given === null) throw new InputError(field, "is empty: it names the project");
  return given;
}

export function secret(field, text) {
  if (text === "") throw new InputError(field, "is empty: it signs what leaves");
  return text;
}

/** Where to: one of these schemes, a host, a port and a path, to which others are added. */
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
