// Signs the requests of Swagger UI before they are sent.

import { sign, signedQuery } from "../sign.js";

/** A query or a form with its sign, which replaces an existing one. */
function signParams(path, text, secret, exp) {
  const params = [...new URLSearchParams(text)].filter(([name]) => name !== "sign");
  if (exp !== undefined && !params.some(([name]) => name === "exp")) {
    params.push(["exp", String(exp)]);
  }
  return signedQuery(path, params, secret);
}

/**
 * A JSON body with `exp` before its members, unless it has one. Anything but an object is
 * unchanged.
 */
export function withExp(body, exp) {
  let message = null;
  try {
    message = JSON.parse(body);
  } catch {
    // The node reports what is wrong with it.
  }
  const isObject = message !== null && typeof message === "object" && !Array.isArray(message);
  if (exp === undefined || !isObject || Object.hasOwn(message, "exp")) return body;
  return body.replace("{", `{"exp":${exp}${Object.keys(message).length > 0 ? "," : ""}`);
}

/** Signs a request of Swagger UI: `url`, `headers`, and `body` as text if there is one. */
export function signRequest(request, secret, exp) {
  const url = new URL(request.url);
  const isForm = Object.entries(request.headers ?? {}).some(([name, value]) =>
    name.toLowerCase() === "content-type" && /^application\/x-www-form-urlencoded\b/i.test(value));
  if (!request.body) {
    url.search = signParams(url.pathname, url.search, secret, exp);
    request.url = url.href;
  } else if (isForm) {
    request.body = signParams(url.pathname, request.body, secret, exp);
  } else {
    request.body = withExp(request.body, exp);
    request.headers["X-Sign"] = sign(secret, `${url.pathname}\n${request.body}`);
  }
  return request;
}
