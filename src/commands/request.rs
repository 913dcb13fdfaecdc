//! A request to sign, or whose signature is checked, as `sign` and `verify-sign` get it.

use super::Environment;
use crate::config::{Arguments, Exit, given_secret, project_secrets};
use crate::wire::params::Params;
use crate::wire::percent::{Plus, decode, encode};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::Value;
use std::io::{self, Read};

/// Where the parameters of a request are.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// In the query of a URL, which begins with this.
    Query {
        before: String,
    },
    Form,
    Json,
    /// The query of a handshake, as a subprotocol.
    Subprotocol,
}

/// The path of a handshake.
const CONNECT: &str = "/ws/connect";

#[derive(Debug)]
pub(super) struct Request {
    pub(super) place: Place,
    pub(super) path: String,
    /// The query, the form or the body as it was given.
    pub(super) text: String,
    /// The parameters of a query or a form in the order in which they were given, decoded, with
    /// their encoded text; without `sign`.
    pub(super) pairs: Vec<Pair>,
    /// The signature inside the text.
    pub(super) sign: Option<String>,
    pub(super) pid: Option<String>,
    /// The value of `exp` as text.
    pub(super) exp: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pair {
    pub(super) name: String,
    pub(super) value: String,
    /// As it was sent.
    pub(super) sent: String,
}

impl Request {
    pub(super) fn of(arguments: &Arguments) -> Result<Self, Exit> {
        let wrong = |what: String| arguments.wrong(what);
        let operands = arguments.operands();
        let text = |body: &String| match body.as_str() {
            "-" => {
                stdin().map_err(|error| wrong(format!("standard input cannot be read: {error}")))
            }
            body => Ok(body.to_owned()),
        };
        match (arguments.has("form"), arguments.has("json-body"), operands) {
            (true, true, _) => Err(wrong("--form and --json-body exclude each other".into())),
            (false, false, [url]) => match subprotocol(url) {
                Some(query) => {
                    let query = query.map_err(|what| wrong(what.into()))?;
                    let (place, path) = (Place::Subprotocol, CONNECT.to_owned());
                    Self::with_params(place, path, query).map_err(wrong)
                }
                None => Self::of_url(url).map_err(wrong),
            },
            (false, false, _) => Err(wrong("one URL is needed, in quotes".into())),
            (true, false, [path, body]) => {
                // A trailing newline comes from the shell.
                let body = text(body)?.trim_end_matches(['\r', '\n']).to_owned();
                Self::with_params(Place::Form, path_of(path).map_err(wrong)?, body).map_err(wrong)
            }
            (false, true, [path, body]) => {
                Self::of_json(path_of(path).map_err(wrong)?, text(body)?).map_err(wrong)
            }
            _ => Err(wrong("PATH and BODY are needed, in quotes".into())),
        }
    }

    fn of_url(url: &str) -> Result<Self, String> {
        let url = url.split('#').next().unwrap_or_default();
        let (before, query) = url.split_once('?').unwrap_or((url, ""));
        let path = path_of(before)?;
        Self::with_params(Place::Query { before: before.to_owned() }, path, query.to_owned())
    }

    fn with_params(place: Place, path: String, text: String) -> Result<Self, String> {
        let (sign, pid, exp) = {
            let params = Params::parse(text.as_bytes());
            let params = params.map_err(|error| error.msg.to_string())?;
            let own = |name: &str| params.get(name).map(str::to_owned);
            (own("sign"), own("pid"), own("exp"))
        };
        let mut pairs = Vec::new();
        for sent in text.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = sent.split_once('=').unwrap_or((sent, ""));
            let [name, value] = [name, value].map(|text| decode(text.as_bytes(), Plus::Space));
            // They were decoded once already, except for a malformed sign.
            if let (Ok(name), Ok(value)) = (name, value)
                && name != "sign"
            {
                let (name, value) = (name.into_owned(), value.into_owned());
                pairs.push(Pair { name, value, sent: sent.to_owned() });
            }
        }
        Ok(Self { place, path, text, pairs, sign, pid, exp })
    }

    fn of_json(path: String, text: String) -> Result<Self, String> {
        let body: Value =
            serde_json::from_str(&text).map_err(|error| format!("BODY is not JSON: {error}"))?;
        let Value::Object(members) = body else {
            return Err("BODY is not a JSON object: write {\"pid\":\"…\",…}".into());
        };
        let member = |name: &str| match members.get(name) {
            Some(Value::String(text)) => Some(text.clone()),
            Some(Value::Null) | None => None,
            Some(other) => Some(other.to_string()),
        };
        let (sign, pid, exp) = (member("sign"), member("pid"), member("exp"));
        Ok(Self { place: Place::Json, path, text, pairs: Vec::new(), sign, pid, exp })
    }

    /// Returns the text that the node signs.
    pub(super) fn signed_text(&self) -> Vec<u8> {
        let mut signed = Vec::new();
        match self.place {
            Place::Json => {
                signed.extend_from_slice(self.path.as_bytes());
                signed.push(b'\n');
                signed.extend_from_slice(self.text.as_bytes());
            }
            Place::Query { .. } | Place::Form | Place::Subprotocol => {
                let encoded = encoded(&self.pairs);
                // It was parsed before.
                let params = Params::parse(encoded.as_bytes()).unwrap_or_default();
                params.canonical(&self.path, &mut signed);
            }
        }
        signed
    }
}

/// Returns the pairs percent-encoded, in their order.
pub(super) fn encoded(pairs: &[Pair]) -> String {
    let mut out = Vec::new();
    for pair in pairs {
        if !out.is_empty() {
            out.push(b'&');
        }
        encode(&pair.name, &mut out);
        out.push(b'=');
        encode(&pair.value, &mut out);
    }
    // Encoded text is ASCII.
    String::from_utf8(out).unwrap_or_default()
}

/// Returns the path of a URL, or of a text that is only a path.
fn path_of(text: &str) -> Result<String, String> {
    let path = match text.split_once("://") {
        Some((_, rest)) => rest.find('/').map_or("", |at| &rest[at..]),
        None => text,
    };
    if path.contains('?') {
        return Err("PATH has a query: parameters come from one place only".into());
    }
    match path.starts_with('/') {
        true => Ok(path.to_owned()),
        false => Err("the path must begin with a slash, e.g. /ws/push".into()),
    }
}

/// Decodes the query that is offered as a subprotocol, `ws-cluster, q.…`; `None`: it is a URL.
fn subprotocol(text: &str) -> Option<Result<String, &'static str>> {
    let offers = text.strip_prefix("ws-cluster").map_or(text, |rest| rest.trim_start_matches(','));
    let digits = offers.trim().strip_prefix("q.")?;
    let query = URL_SAFE_NO_PAD.decode(digits).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    Some(query.ok_or("what follows q. is not base64url without padding"))
}

fn stdin() -> io::Result<String> {
    let mut text = String::new();
    io::stdin().read_to_string(&mut text)?;
    Ok(text)
}

/// The secrets that may have been used. Never shown.
pub(super) struct Keys {
    /// Any of them is right; the first signs. At least one.
    pub(super) own: Vec<String>,
    /// Others of the same project, if one was given explicitly.
    pub(super) siblings: Vec<String>,
    /// Those of other projects, with their pids.
    pub(super) others: Vec<(String, String)>,
}

impl Keys {
    pub(super) fn of(
        arguments: &Arguments,
        env: Environment<'_>,
        request: &Request,
    ) -> Result<Self, Exit> {
        let variable = || (env.get)("WS_CLUSTER_SECRET").filter(|text| !text.is_empty());
        let given = match arguments.option("secret") {
            Some(text) => Some(given_secret("--secret", text)?),
            None => variable().map(|text| given_secret("WS_CLUSTER_SECRET", &text)).transpose()?,
        };
        let pid = request.pid.as_deref();
        let of_project = |pid: &str| project_secrets(arguments, env.get, pid);
        match (given, pid) {
            (Some(given), pid) => {
                let known = pid.and_then(|pid| of_project(pid).ok());
                let (siblings, others) =
                    known.map_or((Vec::new(), Vec::new()), |known| (known.own, known.others));
                let siblings = siblings.into_iter().filter(|one| *one != given).collect();
                Ok(Self { own: vec![given], siblings, others })
            }
            (None, Some(pid)) => {
                let known = of_project(pid)?;
                Ok(Self { own: known.own, siblings: Vec::new(), others: known.others })
            }
            (None, None) => Err(arguments.wrong(
                "the request has no pid, so its secret is not known: pass --secret file:/path",
            )),
        }
    }
}
