// The token of the ops ports. It is removed from the URL, which histories and screens keep, or
// requested in a form; this tab stores it and sends it only in a header.

const KEY = "ws-cluster-ops-token";
/** Characters that a header may contain. */
const SENDABLE = /^[\x20-\x7e]+$/;
const byId = (id) => document.getElementById(id);

/** If the browser forbids storage, the token lasts as long as the page. */
let token = null;
try {
  token = sessionStorage.getItem(KEY);
} catch {
  // Without storage there is none.
}

function keep(given) {
  token = given;
  try {
    if (given === null) sessionStorage.removeItem(KEY);
    else sessionStorage.setItem(KEY, given);
  } catch {
    // See above.
  }
}

function takeFromAddress() {
  const url = new URL(location.href);
  const given = url.searchParams.get("token");
  if (given === null) return;
  if (SENDABLE.test(given)) keep(given);
  url.searchParams.delete("token");
  history.replaceState(history.state, "", url);
}

takeFromAddress();

/** Shows the form until a token is typed in. */
function ask(problem) {
  const form = byId("token");
  const field = byId("token-field");
  byId("token-problem").textContent = problem;
  form.hidden = false;
  field.value = "";
  field.focus();
  return new Promise((resolve) => {
    form.onsubmit = (submitted) => {
      submitted.preventDefault();
      const given = field.value.trim();
      if (!SENDABLE.test(given)) {
        byId("token-problem").textContent = "A token may contain only printable ASCII characters.";
        return;
      }
      keep(given);
      field.value = "";
      byId("token-problem").textContent = "";
      form.hidden = true;
      resolve();
    };
  });
}

let asking = null;

/** Shows the form if the node refused the token that was sent, or got none. */
function askOnce(sent) {
  // Another request was refused as well, or a new token has been entered meanwhile.
  if (asking === null && sent === token) {
    const problem = sent === null ? "" : "The node refuses this token.";
    keep(null);
    asking = ask(problem).finally(() => (asking = null));
  }
  return asking;
}

/**
 * Like fetch, with the token. If the node requires one, the page asks for it and sends the request
 * again; `onAsk` is called before that.
 */
export async function fetchWithToken(address, options = () => ({}), onAsk = () => {}) {
  for (;;) {
    const sent = token;
    const headers = sent === null ? {} : { Authorization: `Bearer ${sent}` };
    const answer = await fetch(address, { ...options(), headers, cache: "no-store" });
    if (answer.status !== 401) return answer;
    onAsk();
    await askOnce(sent);
  }
}
