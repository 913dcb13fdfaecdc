// Swagger UI with a field for the secret: requests to /ws/… are signed before they are sent.

// An import, so that no code of this page runs before it can sign.
import { fetchWithToken } from "../token.js";
import { outcome, unsent } from "./outcome.js";
import { signRequest } from "./signing.js";

const byId = (id) => document.getElementById(id);

function showState(text) {
  byId("signing-state").textContent = text;
}

/** Swagger UI shows a response below the whole form: this line is where the user looks. */
function showOutcome({ text, isGood }) {
  byId("outcome").textContent = text;
  byId("outcome").dataset.state = isGood ? "good" : "bad";
}

/** Paths outside /ws/ are not signed. */
function intercept(request) {
  showOutcome({ text: "", isGood: true });
  if (!new URL(request.url).pathname.startsWith("/ws/")) return request;
  const secret = byId("secret").value;
  if (secret === "") {
    showState("No secret: the request was sent without a sign.");
    return request;
  }
  const exp = byId("exp").checked ? Math.floor(Date.now() / 1000) + 60 : undefined;
  showState("");
  return signRequest(request, secret, exp);
}

/** Removes Swagger UI's own authorization inputs: they would send the secret as the sign. */
const withoutAuthorize = {
  wrapComponents: { authorizeBtn: () => () => null, authorizeOperationBtn: () => () => null },
};

/**
 * A form starts with the values of its example, and empty fields are not sent: an empty selector
 * matches nobody. By default, Swagger UI makes up values and sends all of them.
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
/** Time after a refusal to send until Swagger UI has marked the invalid fields. */
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

/** Marks are cleared before they are set, and when a form is reset: then there are none. */
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
  showState("This page was loaded over plain HTTP: pushes from here can be read in transit.");
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
  const text = `openapi.json: ${error.message}. Reload the page once the node responds.`;
  showOutcome({ text, isGood: false });
});
