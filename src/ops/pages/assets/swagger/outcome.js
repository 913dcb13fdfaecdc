// The outcome of a request that was tried, in one line. Independent of the page.

/** The node's own words, where it has said any. */
function reason(response) {
  try {
    const { msg } = JSON.parse(response.text);
    if (typeof msg === "string") return msg;
  } catch {
    // Not JSON: the status must suffice.
  }
  return response.statusText ?? "";
}

/**
 * `answer` is what Swagger UI gets: a response, or `{error, err}` where that is a bad status (with
 * its response in the error) or no answer at all. A browser tells a page nothing of why there is
 * none.
 */
export function outcome(request, answer, origin) {
  const response = answer.error ? answer.err.response : answer;
  if (response) {
    const isGood = response.status < 400;
    const words = isGood ? "" : reason(response);
    return { isGood, text: `${request}: ${response.status}${words && `, ${words}`}` };
  }
  const [why] = String(answer.err?.message ?? "").split("\n");
  const causes = `the node was not reached, or the project's allowed_origins leave ${origin} out`;
  return { isGood: false, text: `${request}: no answer (${why.replaceAll("*", "").trim()}): ${causes}` };
}

/** A request that did not leave: what Swagger UI has marked red. */
export function unsent(request, problems) {
  const words = problems.length > 0 ? problems.join(" ") : "a required field is empty";
  return { isGood: false, text: `${request} was not sent: ${words}` };
}
