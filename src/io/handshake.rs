//! `GET /ws/connect`: from a request's head to an identity, or to the refusal that the contract
//! specifies.

use super::date::http_date;
use super::routes;
use super::shared::Shared;
use crate::state::active_config::ActiveConfig;
use crate::state::projects::ProjectId;
use crate::state::{Identity, Role};
use crate::types::WallMs;
use crate::wire::connect::{Peer, parse_connect, query_of};
use crate::wire::http::{Head, HttpError};
use crate::wire::params::Params;
use crate::wire::request::ApiError;
use crate::wire::response::write_refusal;
use crate::wire::sign::{self, SignPlace, SignRules};
use crate::wire::upgrade::{accept_key, refusal_fields, upgrade, write_switching};
use std::net::IpAddr;

/// The identity of a client in echo mode.
const ECHO: Identity<'static> = Identity {
    project: ProjectId(0),
    uid: "echo",
    device: "",
    tags: &[],
    session_exp: 0,
    role: Role::Client,
    ip: None,
};

/// Judges a complete head by `active`. If it is valid, calls `open` with the identity and the bytes
/// of the 101 response. `ip`: the client's address, if it is known.
pub fn judge<R>(
    head: &Head<'_>,
    ip: Option<IpAddr>,
    shared: &Shared,
    active: &ActiveConfig,
    now: WallMs,
    open: impl FnOnce(Identity<'_>, &[u8]) -> Result<R, ApiError>,
) -> Result<R, ApiError> {
    let node = &*active.settings;
    if head.path != "/ws/connect" && !node.echo {
        return Err(not_found(head.path, shared));
    }
    let key = upgrade(head)?;
    if shared.is_refusing() {
        return Err(refuse(503, "this node is draining: connect to another node"));
    }
    let mut switching = Vec::with_capacity(240);
    let accept = accept_key(key);
    write_switching(&mut switching, &accept, http_date(now), head.offers_protocol);
    if node.echo {
        return open(Identity { ip, ..ECHO }, &switching);
    }
    let query = query_of(head)?;
    let params = Params::parse(&query)?;
    let connect = parse_connect(&params, &node.limits)?;
    let credentials = &connect.credentials;
    let Some((project, settings)) = active.projects.find(&*credentials.pid) else {
        return Err(refuse(403, "unknown project"));
    };
    if !settings.allows_origin(head.origin) {
        return Err(refuse(403, "this Origin is not among the project's allowed_origins"));
    }
    let mut text = Vec::with_capacity(256);
    params.canonical(head.path, &mut text);
    let place = SignPlace::Parameter { is_in_header: head.x_sign.is_some() };
    let rules = SignRules { place, shows_text: node.env.shows_signed_text() };
    sign::check(&settings.secrets, &[&text], credentials.sign, rules)
        .map_err(|msg| ApiError { status: 401, msg })?;
    sign::check_exp(credentials.exp, node.env.demands_exp(), now)?;
    sign::check_session_exp(connect.session_exp, now)?;
    let (uid, role) = match connect.peer {
        Peer::Client { uid } => (uid, Role::Client),
        Peer::BusinessServer { uid, events } => (uid.unwrap_or(""), Role::Server(events)),
    };
    let device = connect.device.unwrap_or("");
    // 0 stands for "no end"; no session that is still to end has it.
    let session_exp = connect.session_exp.unwrap_or(0);
    let tags = &connect.tags;
    open(Identity { project, uid, device, tags, session_exp, role, ip }, &switching)
}

pub fn refuse(status: u16, msg: &'static str) -> ApiError {
    ApiError::from(HttpError { status, msg })
}

fn not_found(path: &str, shared: &Shared) -> ApiError {
    let msg = match shared.ports.get() {
        Some(ports) if routes::methods_of(path).is_some() => {
            format!("not found: {path} is on the HTTP port, {}", ports.http).into()
        }
        _ => "not found: connect to /ws/connect".into(),
    };
    ApiError { status: 404, msg }
}

/// Returns the bytes that refuse a handshake; the connection ends after them.
pub fn refusal(error: &ApiError, now: WallMs) -> Vec<u8> {
    let mut out = Vec::with_capacity(256);
    let retry: &[(&str, &str)] = &[("Retry-After", "1")];
    let fields = if error.status == 503 { retry } else { refusal_fields(error.status) };
    write_refusal(&mut out, error.status, false, http_date(now), fields, &error.msg);
    out
}
