//! The description of the HTTP API (OpenAPI 3.1), generated from the types and functions beside it.
//! `docs/openapi.yaml` holds the same description, for readers without a node.

pub mod paths;
pub mod schemas;

use utoipa::openapi::schema::AdditionalProperties;
use utoipa::openapi::security::{ApiKey, ApiKeyValue, SecurityScheme};
use utoipa::openapi::{OpenApi, RefOr, Required, Schema};
use utoipa::{Modify, OpenApi as _, ToSchema};

/// The description for readers without a node, and the address used there instead of a node's.
const YAML: &str = include_str!("../../docs/openapi.yaml");
const NO_NODE: &str = "http://localhost:8912";

/// Returns the description as JSON, with the address of the node's HTTP port.
pub fn json(address: &str) -> Option<String> {
    let mut api = HttpApi::openapi();
    for server in api.servers.iter_mut().flatten() {
        server.url = address.to_owned();
    }
    api.to_json().ok()
}

/// Returns it as YAML, likewise.
pub fn yaml(address: &str) -> String {
    YAML.replacen(NO_NODE, address, 1)
}

#[derive(utoipa::OpenApi)]
#[openapi(
    info(title = "ws-cluster HTTP API", description = include_str!("openapi/intro.md")),
    servers((url = "http://localhost:8912")),
    tags((name = "push", description = "Signed."), (name = "node", description = "Unsigned.")),
    paths(paths::push, paths::push_batch, paths::healthz, paths::readyz, paths::version),
    components(schemas(
        schemas::AcceptedResult,
        schemas::CidList,
        schemas::DeviceList,
        schemas::Message,
        schemas::MessageResult,
        schemas::TagList,
        schemas::UidList,
    )),
    modifiers(&Signs, &OfPushes),
)]
struct HttpApi;

/// The two ways to send a signature.
struct Signs;

impl Modify for Signs {
    fn modify(&self, api: &mut OpenApi) {
        let components = api.components.get_or_insert_default();
        let header = "The sign of a JSON body.";
        let header = ApiKey::Header(ApiKeyValue::with_description("X-Sign", header));
        components.add_security_scheme("X-Sign", SecurityScheme::ApiKey(header));
        let parameter = "The sign of a query; in a form it is a parameter of the form.";
        let parameter = ApiKey::Query(ApiKeyValue::with_description("sign", parameter));
        components.add_security_scheme("sign", SecurityScheme::ApiKey(parameter));
    }
}

/// A push may be a query instead of a body, and unknown members are refused: the macros can express
/// neither.
struct OfPushes;

impl Modify for OfPushes {
    fn modify(&self, api: &mut OpenApi) {
        let push = api.paths.paths.get_mut("/ws/push").and_then(|path| path.post.as_mut());
        if let Some(RefOr::T(body)) = push.and_then(|push| push.request_body.as_mut()) {
            body.required = Some(Required::False);
        }
        let schemas = api.components.as_mut().map(|components| &mut components.schemas);
        let Some(schemas) = schemas else { return };
        for name in [
            schemas::Push::name(),
            schemas::PushForm::name(),
            schemas::Batch::name(),
            schemas::Message::name(),
        ] {
            if let Some(RefOr::T(Schema::Object(push))) = schemas.get_mut(&*name) {
                push.additional_properties = Some(Box::new(AdditionalProperties::FreeForm(false)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{env, fs};

    #[test]
    fn the_file_is_what_the_code_says() {
        let head = "# Made by `make openapi` from src/ops/openapi.rs and its folder.\n";
        let text = head.to_owned() + &yaml_serde::to_string(&HttpApi::openapi()).unwrap();
        if env::var_os("RENEW_OPENAPI").is_some() {
            let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/openapi.yaml");
            fs::write(path, text).unwrap();
        } else {
            assert!(text == YAML, "docs/openapi.yaml is not what the code says: `make openapi`");
        }
    }

    #[test]
    fn the_address_is_the_nodes_own() {
        let address = "http://node-1.example:8922";
        for text in [json(address).unwrap(), yaml(address)] {
            assert!(text.contains(address) && !text.contains(NO_NODE));
        }
    }
}
