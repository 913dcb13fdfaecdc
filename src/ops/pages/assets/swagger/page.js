// Swagger UI with a field for the secret: requests to /ws/… are signed as they leave.

// An import, so that nothing of this page runs before it can sign.
import { fetchWithToken } from "../token.js";
import { outcome, unsent } from "./outcome.js";
import { signRequest } from "./signing.js";

const byId = (id) => document.getElementById(id);

function showState(text) {
  byId("signing-state").textContent = text;
}

/** Swagger UI unfolds an answer below all that was typed in: this stands where one looks. */
function showOutcome({ text, isGood }) {
  byId("outcome").textContent = text;
  byId("outcome").dataset.state = isGood ? "good" : "bad";
}

/** The node's own pages take no sign. */
function intercept(request) {
  showOutcome({ text: "", isGood: true });
  if (!new URL(request.url).pathname.startsWith("/ws/")) return request;
  const secret = byId("secret").value;
  if (secret === "") {
    showState("No secret: the request left without a sign.");
    return request;
  }
  const exp = byId("exp").checked ? Math.floor(Date.now() / 1000) + 60 : undefined;
  showState("");
  return signRequest(request, secret, exp);
}

/** An input for a secret would send it as the sign. */
const withoutAuthorize = {
  wrapComponents: { authorizeBtn: () => () => null, authorizeOperationBtn: () => () => null },
};

/**
 * A form begins as its example, and what is empty in it is not sent: an empty selector matches
 * nobody. By itself Swagger UI makes values up, and sends all of them.
 */
const withFormsAsTheirExample = {
  wrapComponents: {
    RequestBody: (Original, { React }) => ({ requestBody, ...props }) => {
      const begun = requestBody.update("content", (types) => types.map((type) => {
        const example = type.getIn(["schema", "example"]);
        return type.updateIn(["schema", "properties"], (properties) => properties?.map(
          (property, name) => property.set("example", example?.get(name) ?? "")));
      }));
      return React.createElement(Original, { ...props, requestBody: begun });
    },
    ParameterIncludeEmpty: (Original, { React }) => ({ isIncludedOptions, ...props }) => {
      const left = { ...isIncludedOptions, defaultValue: false };
      return React.createElement(Original, { ...props, isIncludedOptions: left });
    },
  },
};

const named = (path, method) => `${method.toUpperCase()} ${path}`;
/** Swagger UI marks what is wrong this long after it has refused to send. */
const MARKED_MS = 100;

const withOutcomes = {
  statePlugins: {
    spec: {
      wrapActions: {
        setResponse: (original) => (path, method, answer) => {
          showOutcome(outcome(named(path, method), answer, location.origin));
          return original(path, method, answer);
        },
        clearValidateParams: (original, system) => (pathMethod) => {
          setTimeout(() => showUnsent(system, pathMethod), MARKED_MS);
          return original(pathMethod);
        },
      },
    },
  },
};

/** It clears its marks before it sets them, and where a form is reset: then there are none. */
function showUnsent({ specSelectors, oas3Selectors }, [path, method]) {
  const problems = specSelectors.validationErrors([path, method]);
  const missing = oas3Selectors.requestBodyErrors(path, method);
  if (problems.length > 0 || missing?.size > 0) showOutcome(unsent(named(path, method), problems));
}

const dark = matchMedia("(prefers-color-scheme: dark)");
const followScheme = () => document.documentElement.classList.toggle("dark-mode", dark.matches);
dark.addEventListener("change", followScheme);
followScheme();

byId("signing").addEventListener("submit", (submitted) => submitted.preventDefault());
if (!window.isSecureContext) {
  showState("This page came over plain HTTP: what is pushed from here can be read on its way.");
}

async function open() {
  const answer = await fetchWithToken("../openapi.json");
  if (!answer.ok) throw new Error(`${answer.status} ${answer.statusText}`);
  SwaggerUIBundle({ ...settings, spec: await answer.json() });
}

const settings = {
  dom_id: "#swagger-ui",
  presets: [SwaggerUIBundle.presets.apis],
  plugins: [withoutAuthorize, withFormsAsTheirExample, withOutcomes],
  deepLinking: true,
  // Models come after the operations, collapsed: the operations already show what they take and
  // answer.
  defaultModelsExpandDepth: 0,
  tryItOutEnabled: true,
  displayRequestDuration: true,
  requestInterceptor: intercept,
};

open().catch((error) => {
  const text = `openapi.json: ${error.message}. Load the page again once the node answers.`;
  showOutcome({ text, isGood: false });
});
