// Swagger UI with a secret beside it: what is sent to /ws/… is signed as it leaves.

// An import, so that nothing of this page runs before it can sign.
import { signRequest } from "./signing.js";

const byId = (id) => document.getElementById(id);

function showState(text) {
  byId("signing-state").textContent = text;
}

/** Loading the description is a request, too; and the node's own pages take no sign. */
function intercept(request) {
  if (request.loadSpec || !new URL(request.url).pathname.startsWith("/ws/")) return request;
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

const dark = matchMedia("(prefers-color-scheme: dark)");
const followScheme = () => document.documentElement.classList.toggle("dark-mode", dark.matches);
dark.addEventListener("change", followScheme);
followScheme();

byId("signing").addEventListener("submit", (submitted) => submitted.preventDefault());
if (!window.isSecureContext) {
  showState("This page came over plain HTTP: what is pushed from here can be read on its way.");
}

SwaggerUIBundle({
  dom_id: "#swagger-ui",
  // The query may hold the token of the ops ports.
  url: `../openapi.json${location.search}`,
  presets: [SwaggerUIBundle.presets.apis],
  plugins: [withoutAuthorize, withFormsAsTheirExample],
  deepLinking: true,
  tryItOutEnabled: true,
  displayRequestDuration: true,
  requestInterceptor: intercept,
});
