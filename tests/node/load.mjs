// Loads files of the repository by their paths from its root.

import { readFileSync } from "node:fs";

const root = new URL("../../", import.meta.url);

export const textOf = (path) => readFileSync(new URL(path, root), "utf8");

/** A module by its text: without a package.json a .js file is none to every version of Node. */
export const load = (path) => import(addressOf(path));

/** A module as an address. Nothing lies beside it: what it imports becomes an address, too. */
function addressOf(path) {
  const whole = textOf(path).replace(/ from "(\.[^"]+)"/g, (_, imported) => {
    const file = new URL(imported, new URL(path, root));
    return ` from "${addressOf(file.href)}"`;
  });
  return `data:text/javascript,${encodeURIComponent(whole)}`;
}
