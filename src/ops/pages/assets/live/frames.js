// What the console shows of a frame. Independent of the page.

/** Maximum number of recorded frames; the oldest are dropped first. */
export const MAX_FRAMES = 500;

const TOKEN = /"(?:[^"\\]|\\.)*"|[{}[\],:]|[^\s{}[\],:"]+/g;

/**
 * JSON with a line for every member and every token unchanged: JSON.parse would change big numbers.
 * Text that is not JSON is returned unchanged.
 */
export function pretty(text) {
  try {
    JSON.parse(text);
  } catch {
    return text;
  }
  let depth = 0;
  let out = "";
  const line = () => `\n${"  ".repeat(depth)}`;
  const tokens = text.match(TOKEN);
  tokens.forEach((token, index) => {
    const before = tokens[index - 1];
    if (token === "}" || token === "]") {
      depth--;
      if (before !== "{" && before !== "[") out += line();
    } else if (before === "{" || before === "[" || before === ",") {
      out += line();
    }
    out += token === ":" ? ": " : token;
    if (token === "{" || token === "[") depth++;
  });
  return out;
}

/** The type, and for a reply its outcome: `subscribe`, `response ok`, `error`. */
export function kindOf(text) {
  let message;
  try {
    message = JSON.parse(text);
  } catch {
    return { kind: "not JSON", isBad: true, message: null };
  }
  const kind = typeof message?.type === "string" ? message.type : "JSON";
  return { kind, isBad: message?.code === 0, message };
}

/** A refusal by the node in one line: its status, and its message if there is one. */
export function refusalOf(status, text) {
  const { message } = kindOf(text);
  const words = typeof message?.msg === "string" ? message.msg : text.trim().slice(0, 200);
  return words === "" ? String(status) : `${status}: ${words}`;
}

/** The size of a text in bytes, as UTF-8. */
export function sizeOf(text) {
  return new TextEncoder().encode(text).length;
}

/** Splits a comma-separated list; spaces around an element and empty elements are dropped. */
export function listOf(text) {
  return text.split(",").map((one) => one.trim()).filter((one) => one !== "");
}

/**
 * An object as JSON whose `raw` members are JSON already, so that they are sent byte for byte as
 * they were typed.
 */
export function jsonOf(members, raw = {}) {
  const written = Object.entries(members).map(([name, value]) => [name, JSON.stringify(value)]);
  const all = [...written, ...Object.entries(raw)];
  return `{${all.map(([name, value]) => `${JSON.stringify(name)}:${value}`).join(",")}}`;
}

/** Whether a frame is shown: it, or its description, contains every word of the filter. */
export function matches(frame, { words, direction }) {
  if (direction !== "all" && frame.direction !== direction) return false;
  if (words.length === 0) return true;
  const text = `${frame.from} ${frame.kind} ${frame.text}`.toLowerCase();
  return words.every((word) => text.includes(word));
}

/** The statuses with which the node refused handshakes between two snapshots. */
export function refusals(before, after) {
  if (!before || !after || before.epoch !== after.epoch) return [];
  const risen = ([status, count]) => status !== "101" && count > (before.handshakes[status] ?? 0);
  return Object.entries(after.handshakes).filter(risen).map(([status]) => Number(status));
}

const REASONS = {
  400: "a parameter is missing or malformed",
  401: "a bad or expired sign: check the project's secret",
  403: "an unknown project, or one whose allowed_origins do not include this page",
  404: "an unknown path",
  426: "not an upgrade to WebSocket",
  503: "the node is draining or full",
};

/** Why a connection failed. A browser does not report it to a page; the node's counters do. */
export function whyRefused(statuses) {
  const words = statuses.map((status) => `${status}: ${REASONS[status] ?? "refused"}`);
  return words.length > 0 ? `refused with ${words.join("; or ")}` : "the node was not reached";
}
