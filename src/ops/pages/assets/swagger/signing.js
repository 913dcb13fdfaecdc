// The signatures of docs/protocol.md, for requests that are about to leave.

const utf8 = (text) => new TextEncoder().encode(text);
const hex = (bytes) => Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");

/** One name or value, percent-encoded as RFC 3986 says: unreserved characters bare. */
function quote(text) {
  const percent = (character) => "%" + character.charCodeAt(0).toString(16).toUpperCase();
  return encodeURIComponent(text).replace(/[!'()*]/g, percent);
}

/** In the order of their bytes: that of JavaScript differs beyond U+FFFF. */
function byBytes(one, other) {
  const [left, right] = [hex(utf8(one)), hex(utf8(other))];
  return left < right ? -1 : Number(left > right);
}

/** `params`: pairs of names and values, decoded. What is signed is also what is sent. */
function canonical(params) {
  const sorted = [...params].sort(([one], [other]) => byBytes(one, other));
  return sorted.map((pair) => pair.map(quote).join("=")).join("&");
}

/** Lower-case hex of HMAC-SHA256. Browsers have it for localhost and https alone. */
async function sign(secret, text) {
  const subtle = globalThis.crypto?.subtle;
  if (!subtle || secret === "") {
    return hex(hmac(utf8(secret), utf8(text)));
  }
  const algorithm = { name: "HMAC", hash: "SHA-256" };
  const key = await subtle.importKey("raw", utf8(secret), algorithm, false, ["sign"]);
  return hex(new Uint8Array(await subtle.sign("HMAC", key, utf8(text))));
}

/** RFC 2104. */
function hmac(key, text) {
  const block = new Uint8Array(64);
  block.set(key.length > 64 ? sha256(key) : key);
  const keyed = (pad, bytes) => sha256([...block.map((byte) => byte ^ pad), ...bytes]);
  return keyed(0x5c, keyed(0x36, text));
}

/** The first 32 bits of the fractional parts of roots of the first primes (FIPS 180-4). */
function fractions(count, root) {
  const isPrime = (n) => ![...Array(n).keys()].some((d) => d > 1 && n % d === 0);
  const primes = [...Array(320).keys()].filter((n) => n > 1 && isPrime(n)).slice(0, count);
  return Uint32Array.from(primes, (prime) => (root(prime) % 1) * 2 ** 32);
}

const ROUNDS = fractions(64, Math.cbrt);
const START = fractions(8, Math.sqrt);

/** FIPS 180-4, section 6.2. */
function sha256(bytes) {
  const message = new DataView(new ArrayBuffer(Math.ceil((bytes.length + 9) / 64) * 64));
  bytes.forEach((byte, at) => message.setUint8(at, byte));
  message.setUint8(bytes.length, 0x80);
  message.setBigUint64(message.byteLength - 8, BigInt(bytes.length) * 8n);
  const state = START.slice();
  for (let at = 0; at < message.byteLength; at += 64) {
    compress(state, new DataView(message.buffer, at, 64));
  }
  const digest = new DataView(new ArrayBuffer(32));
  state.forEach((word, at) => digest.setUint32(4 * at, word));
  return new Uint8Array(digest.buffer);
}

function compress(state, block) {
  const turn = (word, by) => (word >>> by) | (word << (32 - by));
  const words = new Uint32Array(64);
  for (let at = 0; at < 64; at += 1) {
    const [one, other] = [words[at - 15], words[at - 2]];
    words[at] = at < 16
      ? block.getUint32(4 * at)
      : words[at - 16] + (turn(one, 7) ^ turn(one, 18) ^ (one >>> 3))
        + words[at - 7] + (turn(other, 17) ^ turn(other, 19) ^ (other >>> 10));
  }
  let [a, b, c, d, e, f, g, h] = state;
  for (let at = 0; at < 64; at += 1) {
    const chosen = (turn(e, 6) ^ turn(e, 11) ^ turn(e, 25)) + ((e & f) ^ (~e & g));
    const first = (h + chosen + ROUNDS[at] + words[at]) | 0;
    const second = (turn(a, 2) ^ turn(a, 13) ^ turn(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
    [a, b, c, d, e, f, g, h] = [(first + second) | 0, a, b, c, (d + first) | 0, e, f, g];
  }
  [a, b, c, d, e, f, g, h].forEach((word, at) => (state[at] += word));
}

/** A query or a form with its sign, in the place of one that it may have. */
async function signParams(path, text, secret, exp) {
  const params = [...new URLSearchParams(text)].filter(([name]) => name !== "sign");
  if (exp !== undefined && !params.some(([name]) => name === "exp")) {
    params.push(["exp", String(exp)]);
  }
  const signed = canonical(params);
  return `${signed}&sign=${await sign(secret, `${path}\n${signed}`)}`;
}

/** A JSON body with `exp` before its members, unless it has one. What is no object stays as it is. */
function withExp(body, exp) {
  let message = null;
  try {
    message = JSON.parse(body);
  } catch {
    // The node says what is wrong with it.
  }
  const isObject = message !== null && typeof message === "object" && !Array.isArray(message);
  if (exp === undefined || !isObject || Object.hasOwn(message, "exp")) return body;
  return body.replace("{", `{"exp":${exp}${Object.keys(message).length > 0 ? "," : ""}`);
}

/** Signs a request of Swagger UI: `url`, `headers`, and `body` as text if there is one. */
async function signRequest(request, secret, exp) {
  const url = new URL(request.url);
  const isForm = Object.entries(request.headers ?? {}).some(([name, value]) =>
    name.toLowerCase() === "content-type" && /^application\/x-www-form-urlencoded\b/i.test(value));
  if (!request.body) {
    url.search = await signParams(url.pathname, url.search, secret, exp);
    request.url = url.href;
  } else if (isForm) {
    request.body = await signParams(url.pathname, request.body, secret, exp);
  } else {
    request.body = withExp(request.body, exp);
    request.headers["X-Sign"] = await sign(secret, `${url.pathname}\n${request.body}`);
  }
  return request;
}
