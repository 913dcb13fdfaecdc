// A page's connection to ws-cluster: the part to copy.

/** After so much silence a heartbeat asks whether the node is still there. */
const QUIET_MS = 20_000;
/** It has so long to answer that, or a handshake. */
const PATIENCE_MS = 10_000;
const FIRST_DELAY_MS = 500;
const LAST_DELAY_MS = 30_000;
const KICKED = 4001;
const GOING_AWAY = 1001;

/** The token page will not give this one a URL, however often it is asked. */
export class Refusal extends Error {}

/** One stay in a room: connects with a fresh token each time, and comes back until it is closed. */
export class Connection {
  #token;
  #on;
  #socket = null;
  #isWelcome = false;
  #isClosed = false;
  #attempts = 0;
  #timer = 0;
  #count = 0;
  /** What to call with the answer, by the id of the request. */
  #requests = new Map();

  /**
   * `token()` returns a promise of `{url, protocols}`. Calls `on.connecting()`, `on.welcome(node)`,
   * `on.push(data)`, `on.waiting(ms)` until the next attempt, and `on.end(why)` when it does not
   * come back.
   */
  constructor(token, on) {
    this.#token = token;
    this.#on = on;
    this.#open();
  }

  /** Returns a promise of the answer: `{code, data}` or `{code: 0, msg}`. */
  request(data) {
    if (!this.#isWelcome) return Promise.resolve({ code: 0, msg: "not connected" });
    const id = String(++this.#count);
    this.#send({ type: "request", id, data });
    return new Promise((resolve) => this.#requests.set(id, resolve));
  }

  close() {
    this.#isClosed = true;
    this.#drop();
  }

  async #open() {
    this.#on.connecting();
    try {
      const { url, protocols } = await this.#token();
      if (!this.#isClosed) this.#attach(new WebSocket(url, protocols));
    } catch (error) {
      if (this.#isClosed) return;
      if (error instanceof Refusal) this.#end(error.message);
      else this.#wait(this.#backOff());
    }
  }

  #attach(socket) {
    this.#socket = socket;
    this.#after(PATIENCE_MS, () => this.#lost());
    socket.onmessage = ({ data }) => {
      if (this.#socket !== socket) return;
      this.#listen();
      this.#take(JSON.parse(data));
    };
    socket.onclose = ({ code, reason }) => {
      if (this.#socket === socket) this.#lost(code, reason);
    };
  }

  #take(message) {
    switch (message.type) {
      case "connect":
        this.#isWelcome = true;
        this.#attempts = 0;
        this.#on.welcome(message.node);
        break;
      case "push":
        this.#on.push(message.data);
        break;
      case "response":
      case "error":
        this.#requests.get(message.id)?.(message);
        this.#requests.delete(message.id);
    }
  }

  /** Anything that arrives shows that the node is there. */
  #listen() {
    this.#after(QUIET_MS, () => {
      this.#send({ type: "heartbeat" });
      this.#after(PATIENCE_MS, () => this.#lost());
    });
  }

  #lost(code, reason) {
    this.#drop();
    if (code === KICKED) this.#end("the server has ended this connection");
    else this.#wait((code === GOING_AWAY && reconnectAfter(reason)) || this.#backOff());
  }

  /** Does not wait for the socket's own end: with a dead network that takes long. */
  #drop() {
    clearTimeout(this.#timer);
    this.#socket?.close(1000);
    this.#socket = null;
    this.#isWelcome = false;
    for (const answer of this.#requests.values()) answer({ code: 0, msg: "connection lost" });
    this.#requests.clear();
  }

  #wait(ms) {
    this.#after(ms, () => this.#open());
    this.#on.waiting(ms);
  }

  /** Longer each time, and at random: pages that were lost together do not come back together. */
  #backOff() {
    const ms = Math.min(FIRST_DELAY_MS * 2 ** this.#attempts++, LAST_DELAY_MS);
    return Math.round(ms * (0.5 + Math.random() / 2));
  }

  #end(why) {
    this.#isClosed = true;
    this.#on.end(why);
  }

  #after(ms, action) {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(action, ms);
  }

  #send(message) {
    this.#socket.send(JSON.stringify(message));
  }
}

/** When a node that goes away wants this page back: each gets a time of its own. */
function reconnectAfter(reason) {
  try {
    return Number(JSON.parse(reason).reconnect_after_ms);
  } catch {
    return NaN;
  }
}
