// The outcome of a request that was tried, in one line. Independent of the page.

/** The node's message, if there is one. */
function reason(response) {
  try {
    const { msg } = JSON.parse(response.text);
    if (typeof msg === "string") return msg;
  } catch {
    // Not JSON: only the status is shown.
  }
  return response.statusText ?? "";
}

/**
 * `answer` is what Swagger UI gets: a response, or `{error, err}` for a bad status (with its
 * response in the error) or no response at all. A browser does not report the cause to a page.
 */
export function outcome(request, answer, origin) {
  const response = answer.error ? answer.err.response : answer;
  if (response) {
    const isGood = response.status < 400;
    const words = isGood ? "" : reason(response);
    return { isGood, text: `${request}: ${response.status}${words && `, ${words}`}` };
  }
  const [why] = String(answer.err?.message ?? "").split("\n");
  const origins = `the project's allowed_origins do not include ${origin}`;
  const causes = `the node was not reached, or ${origins}`;
  return { isGood: false, text: `${request}: no answer (${why.replaceAll("*", "").trim()}): ${causes}` };
}

/** A request that was not sent: the fields that Swagger UI has marked red. */
export function unsent(request, problems) {
  const words = problems.length > 0 ? problems.join(" ") : "a required field is empty";
  return { isGood: false, text: `${request} was not sent: ${words}` };
}
