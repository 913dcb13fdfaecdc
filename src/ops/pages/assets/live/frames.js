// What the console shows of a frame. Independent of the page.

/** Frames that are kept; the oldest go first. */
export const MAX_FRAMES = 500;

const TOKEN = /"(?:[^"\\]|\\.)*"|[{}[\],:]|[^\s{}[\],:"]+/g;

/**
 * JSON with a line for every member, every token as it came: JSON.parse would change big numbers.
 * What is not JSON comes back as it is.
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

/** The type, and for a reply how it went: `subscribe`, `response ok`, `error`. */
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

/** How the node refused, in a line: its status, and its own words if it has said any. */
export function refusalOf(status, text) {
  const { message } = kindOf(text);
  const words = typeof message?.msg === "string" ? message.msg : text.trim().slice(0, 200);
  return words === "" ? String(status) : `${status}: ${words}`;
}

/** The bytes that a text has on its way. */
export function sizeOf(text) {
  return new TextEncoder().encode(text).length;
}

/** A list of one's own: commas between, blanks around each do not count, empty ones neither. */
export function listOf(text) {
  return text.split(",").map((one) => one.trim()).filter((one) => one !== "");
}

/**
 * An object as JSON whose `raw` members are JSON already, so that they go out byte for byte as
 * they were typed.
 */
export function jsonOf(members, raw = {}) {
  const written = Object.entries(members).map(([name, value]) => [name, JSON.stringify(value)]);
  const all = [...written, ...Object.entries(raw)];
  return `{${all.map(([name, value]) => `${JSON.stringify(name)}:${value}`).join(",")}}`;
}

/** Whether a frame is to be shown: every word of the filter is in it, or in what is said of it. */
export function matches(frame, { words, direction }) {
  if (direction !== "all" && frame.direction !== direction) return false;
  if (words.length === 0) return true;
  const text = `${frame.from} ${frame.kind} ${frame.text}`.toLowerCase();
  return words.every((word) => text.includes(word));
}

/** The statuses by which the node refused handshakes between two snapshots of it. */
export function refusals(before, after) {
  if (!before || !after || before.epoch !== after.epoch) return [];
  const risen = ([status, count]) => status !== "101" && count > (before.handshakes[status] ?? 0);
  return Object.entries(after.handshakes).filter(risen).map(([status]) => Number(status));
}

const REASONS = {
  400: "a parameter is missing or malformed",
  401: "a bad or expired sign: is that the project's secret?",
  403: "an unknown project, or one whose allowed_origins leave this page out",
  404: "another path",
  426: "not an upgrade to WebSocket",
  503: "the node drains or is full",
};

/** Why a connection did not come about. A browser does not tell a page: the node's counters do. */
export function whyRefused(statuses) {
  const words = statuses.map((status) => `${status}: ${REASONS[status] ?? "refused"}`);
  return words.length > 0 ? `refused with ${words.join("; or ")}` : "not reached";
}
