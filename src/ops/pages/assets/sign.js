// The signatures of docs/protocol.md, for the live page and for Swagger UI. Browsers have a
// built-in SHA-256 (crypto.subtle), but only in secure contexts: a page loaded over plain HTTP from
// another machine has none. So this one is always used, and only one needs tests.

const bytesOf = (text) => new TextEncoder().encode(text);

const primes = (count) => {
  const found = [];
  for (let n = 2; found.length < count; n++) {
    if (found.every((prime) => n % prime !== 0)) found.push(n);
  }
  return found;
};

/** The first 32 bits of the fraction (FIPS 180-4, sections 4.2.2 and 5.3.3). */
const fraction = (number) => ((number - Math.floor(number)) * 2 ** 32) >>> 0;
const ROUNDS = primes(64).map((prime) => fraction(Math.cbrt(prime)));
const START = primes(8).map((prime) => fraction(Math.sqrt(prime)));
const BLOCK = 64;

const turned = (word, by) => (word >>> by) | (word << (32 - by));

function compress(state, view, at, words) {
  for (let i = 0; i < 16; i++) words[i] = view.getUint32(at + 4 * i);
  for (let i = 16; i < 64; i++) {
    const [a, b] = [words[i - 15], words[i - 2]];
    const first = turned(a, 7) ^ turned(a, 18) ^ (a >>> 3);
    const second = turned(b, 17) ^ turned(b, 19) ^ (b >>> 10);
    words[i] = words[i - 16] + first + words[i - 7] + second;
  }
  let [a, b, c, d, e, f, g, h] = state;
  for (let i = 0; i < 64; i++) {
    const mixed = turned(e, 6) ^ turned(e, 11) ^ turned(e, 25);
    const one = (h + mixed + ((e & f) ^ (~e & g)) + ROUNDS[i] + words[i]) | 0;
    const other = (turned(a, 2) ^ turned(a, 13) ^ turned(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
    [h, g, f, e, d, c, b, a] = [g, f, e, (d + one) | 0, c, b, a, (one + other) | 0];
  }
  [a, b, c, d, e, f, g, h].forEach((word, index) => (state[index] += word));
}

/** SHA-256 (FIPS 180-4) of bytes. */
export function sha256(bytes) {
  // A one bit, zeros, and the 64-bit length in bits, whose upper half is computed by division.
  const padded = new Uint8Array(Math.ceil((bytes.length + 9) / BLOCK) * BLOCK);
  padded.set(bytes);
  padded[bytes.length] = 0x80;
  const view = new DataView(padded.buffer);
  view.setUint32(padded.length - 8, Math.floor(bytes.length / 2 ** 29));
  view.setUint32(padded.length - 4, bytes.length << 3);
  const state = Uint32Array.from(START);
  const words = new Uint32Array(64);
  for (let at = 0; at < padded.length; at += BLOCK) compress(state, view, at, words);
  const digest = new DataView(new ArrayBuffer(32));
  state.forEach((word, index) => digest.setUint32(4 * index, word));
  return new Uint8Array(digest.buffer);
}

function joined(...parts) {
  const all = new Uint8Array(parts.reduce((length, part) => length + part.length, 0));
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return all;
}

/** HMAC-SHA256 (RFC 2104) of a text, in lower-case hex. */
export function sign(secret, text) {
  const key = bytesOf(secret);
  const block = new Uint8Array(BLOCK);
  block.set(key.length > BLOCK ? sha256(key) : key);
  const inner = sha256(joined(block.map((byte) => byte ^ 0x36), bytesOf(text)));
  const outer = sha256(joined(block.map((byte) => byte ^ 0x5c), inner));
  return Array.from(outer, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** One name or value, percent-encoded as in RFC 3986: unreserved characters bare. */
function quote(text) {
  const hex = (character) => "%" + character.charCodeAt(0).toString(16).toUpperCase();
  return encodeURIComponent(text).replace(/[!'()*]/g, hex);
}

/** `params`: pairs of names and values, decoded. What is signed is also what is sent. */
export function canonical(params) {
  const sorted = [...params].sort(([one], [other]) => byBytes(one, other));
  return sorted.map((pair) => pair.map(quote).join("=")).join("&");
}

/** The pairs as a query or a form to a path, with its sign. */
export function signedQuery(path, params, secret) {
  const query = canonical(params);
  return `${query}&sign=${sign(secret, `${path}\n${query}`)}`;
}

/** The signature of a subscribe, if the project requires it: each tag once, sorted by bytes. */
export function signedTags(clientId, tags, secret) {
  const sorted = [...new Set(tags)].sort(byBytes);
  return sign(secret, `subscribe\n${clientId}\n${sorted.join(",")}`);
}

/** Compares texts by their bytes: JavaScript's own order differs above U+FFFF. */
function byBytes(one, other) {
  const [a, b] = [bytesOf(one), bytesOf(other)];
  const at = a.findIndex((byte, index) => byte !== b[index]);
  return at < 0 ? a.length - b.length : a[at] - (b[at] ?? -1);
}
