// The page that a browser gets instead of a response that needs the token. A navigation cannot send
// the header, so this page requests the response with it and shows it.

import { fetchWithToken } from "./token.js";

const state = document.getElementById("gate-state");

/** The file name that a response suggests. */
function fileName(answer) {
  const disposition = answer.headers.get("Content-Disposition") ?? "";
  return disposition.match(/^attachment; filename="([^"]+)"/)?.[1];
}

async function show(answer) {
  const type = answer.headers.get("Content-Type") ?? "";
  const name = fileName(answer);
  if (type.startsWith("text/html")) {
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    document.documentElement.replaceWith(page.documentElement);
  } else if (name === undefined && !type.startsWith("image/")) {
    const text = document.createElement("pre");
    text.textContent = await answer.text();
    document.body.replaceChildren(text);
  } else {
    const address = URL.createObjectURL(await answer.blob());
    if (name === undefined) return location.replace(address);
    const link = Object.assign(document.createElement("a"), { href: address, download: name });
    link.click();
    state.textContent = `Saved as ${name}.`;
  }
}

async function open() {
  state.textContent = "Loading…";
  await show(await fetchWithToken(location.href));
}

open().catch((error) => {
  state.textContent = `The node does not respond: ${error.message}. Reload the page.`;
});
