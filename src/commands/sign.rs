//! `sign`: signs a request as a client of the node would.

use super::request::{Keys, Pair, Place, Request, encoded};
use super::{Environment, Output};
use crate::config::{Arguments, Exit};
use crate::io::clock;
use crate::wire::sign::{Secret, sign_hex};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::json;

/// Longest validity that `--exp` accepts, ten years: a longer one is a slip.
const MAX_VALIDITY_S: u64 = 10 * 366 * 86_400;

pub(super) fn run(arguments: &Arguments, env: Environment<'_>) -> Result<Output, Exit> {
    let mut request = Request::of(arguments)?;
    if arguments.has("subprotocol") {
        if !matches!(request.place, Place::Query { .. }) {
            return Err(arguments.wrong("--subprotocol is for the URL of a handshake"));
        }
        request.place = Place::Subprotocol;
    }
    let keys = Keys::of(arguments, env, &request)?;
    let validity_s = validity(arguments)?;
    let now_s = clock::wall().value() / 1_000;
    let text = sign(request, &keys, validity_s.map(|s| now_s + s), arguments.has("json"));
    text.map(Output::good).map_err(|what| arguments.wrong(what))
}

/// Signs the request, and returns what to print.
fn sign(
    mut request: Request,
    keys: &Keys,
    exp: Option<u64>,
    as_json: bool,
) -> Result<String, String> {
    let is_new_body = exp.is_some() && request.place == Place::Json;
    if let Some(exp) = exp {
        add_exp(&mut request, exp)?;
    }
    if request.place == Place::Json && request.sign.is_some() {
        return Err("BODY has a member sign: remove it, it belongs in the header X-Sign".into());
    }
    let text = request.signed_text();
    let secret = keys.own.first().map_or("", String::as_str);
    let sign = sign_hex(&Secret::new(secret.as_bytes()), &[&text]);
    let text = String::from_utf8_lossy(&text);
    Ok(match &request.place {
        Place::Json if as_json => {
            format!("{:#}\n", json!({ "sign": sign, "text": text, "body": request.text }))
        }
        Place::Json if is_new_body => format!("X-Sign: {sign}\n{}\n", request.text),
        Place::Json => format!("X-Sign: {sign}\n"),
        Place::Subprotocol => {
            let query = signed_pairs(&request, &sign);
            let offered = format!("ws-cluster, q.{}", URL_SAFE_NO_PAD.encode(query));
            match as_json {
                true => {
                    let all = json!({ "sign": sign, "text": text, "subprotocol": offered });
                    format!("{all:#}\n")
                }
                false => format!("{offered}\n"),
            }
        }
        Place::Form | Place::Query { .. } => {
            let (before, name) = match &request.place {
                Place::Query { before } => (format!("{before}?"), "url"),
                _ => (String::new(), "body"),
            };
            let signed = format!("{before}{}", signed_pairs(&request, &sign));
            match as_json {
                true => format!("{:#}\n", json!({ "sign": sign, "text": text, name: signed })),
                false => format!("{signed}\n"),
            }
        }
    })
}

/// Returns the parameters, percent-encoded, with their sign.
fn signed_pairs(request: &Request, sign: &str) -> String {
    let pairs = encoded(&request.pairs);
    let separator = if pairs.is_empty() { "" } else { "&" };
    format!("{pairs}{separator}sign={sign}")
}

fn add_exp(request: &mut Request, exp: u64) -> Result<(), String> {
    if request.place == Place::Json {
        if request.exp.is_some() {
            return Err("BODY has exp already: remove it, or omit --exp".into());
        }
        // The rest of the body stays as it is, byte for byte.
        let (before, after) = request.text.split_once('{').unwrap_or_default();
        let separator = if after.trim_start().starts_with('}') { "" } else { "," };
        request.text = format!("{before}{{\"exp\":{exp}{separator}{after}").trim_end().to_owned();
        return Ok(());
    }
    request.pairs.retain(|pair| pair.name != "exp");
    let (name, value) = ("exp".to_owned(), exp.to_string());
    request.pairs.push(Pair { sent: format!("exp={exp}"), name, value });
    Ok(())
}

/// Parses `--exp`: `60`, `60s`, `5m`, `2h` or `1d`; returns seconds.
fn validity(arguments: &Arguments) -> Result<Option<u64>, Exit> {
    let Some(text) = arguments.option("exp") else { return Ok(None) };
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let unit_s = match unit {
        "" | "s" => Some(1),
        "m" => Some(60),
        "h" => Some(3_600),
        "d" => Some(86_400),
        _ => None,
    };
    let seconds = number.parse::<u64>().ok().zip(unit_s).and_then(|(n, unit)| n.checked_mul(unit));
    match seconds {
        Some(seconds @ 1..=MAX_VALIDITY_S) => Ok(Some(seconds)),
        _ => Err(arguments.wrong(format!(
            "--exp '{text}' is not a time: use a number with s, m, h or d, e.g. 60s"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sign_of(args: &[&str]) -> Result<String, String> {
        let args: Vec<String> = args.iter().map(|arg| (*arg).into()).collect();
        let arguments = Arguments::parse(&args).map_err(|exit| exit.to_string())?;
        let env = Environment { get: &|_| None, all: &[] };
        run(&arguments, env).map(|output| output.text).map_err(|exit| exit.to_string())
    }

    const SIGN: &str = "fc693ec296eeb192fb6458696cdcdbabb265af8ab51ac61badcd7a8bb45ffae9";

    #[test]
    fn the_vector_of_the_contract() {
        let url = "ws://h:8812/ws/connect?pid=1&uid=u 1&type=1";
        let signed = format!("ws://h:8812/ws/connect?pid=1&uid=u%201&type=1&sign={SIGN}\n");
        assert_eq!(sign_of(&["sign", "--secret", "dev-secret", url]), Ok(signed.clone()));
        // The built-in project of dev, and an old sign.
        assert_eq!(
            sign_of(&["sign", "ws://h:8812/ws/connect?sign=00&pid=1&uid=u+1&type=1"]),
            Ok(signed)
        );
        let form = sign_of(&["sign", "--form", "/ws/connect", "uid=u%201&pid=1&type=1"]);
        assert_eq!(form, Ok(format!("uid=u%201&pid=1&type=1&sign={SIGN}\n")));
    }

    #[test]
    fn the_query_of_a_handshake_may_be_a_subprotocol() {
        let url = "/ws/connect?pid=1&uid=u 1&type=1";
        let offered = sign_of(&["sign", "--subprotocol", url]).unwrap();
        let query = offered.trim_end().strip_prefix("ws-cluster, q.").unwrap();
        let query = String::from_utf8(URL_SAFE_NO_PAD.decode(query).unwrap()).unwrap();
        assert_eq!(query, format!("pid=1&uid=u%201&type=1&sign={SIGN}"));
        // An offer can be signed anew.
        let again = sign_of(&["sign", offered.trim_end()]).unwrap();
        assert_eq!(again, offered);
    }

    #[test]
    fn a_json_body_is_signed_byte_for_byte() {
        let secret = Secret::new(b"s");
        let body = "{\"pid\": \"1\", \"data\":1}";
        let sign = sign_hex(&secret, &[b"/ws/push\n", body.as_bytes()]);
        let args = ["sign", "--secret=s", "--json-body", "http://h:8912/ws/push", body];
        assert_eq!(sign_of(&args), Ok(format!("X-Sign: {sign}\n")));
        let with_exp = sign_of(&[&args[..], &["--exp", "1h"]].concat()).unwrap();
        let (header, new) = with_exp.trim_end().split_once('\n').unwrap();
        let sign = sign_hex(&secret, &[b"/ws/push\n", new.as_bytes()]);
        assert_eq!(header, format!("X-Sign: {sign}"));
        let new: serde_json::Value = serde_json::from_str(new).unwrap();
        let left_s = new["exp"].as_u64().unwrap() - clock::wall().value() / 1_000;
        assert!((3_590..=3_600).contains(&left_s) && new["data"] == 1, "{new}");
        let empty =
            sign_of(&["sign", "--secret=s", "--exp=60", "--json-body", "/x", "{}"]).unwrap();
        assert!(empty.contains("\n{\"exp\":") && empty.ends_with("}\n"), "{empty}");
    }

    #[test]
    fn wrong_use_is_refused_with_the_fix() {
        for (args, part) in [
            (&["sign"][..], "one URL is needed"),
            (&["sign", "--form", "/ws/push"], "PATH and BODY are needed"),
            (&["sign", "a?pid=1"], "must begin with a slash"),
            (&["sign", "/a?pid=1&pid=2"], "the parameter \"pid\" is given twice"),
            (&["sign", "/a?x=1"], "no pid"),
            (&["sign", "/a?pid=2"], "the secret of project '2' is not known"),
            (&["sign", "--exp", "soon", "/a?pid=1"], "--exp 'soon' is not a time"),
            (&["sign", "--json-body", "/a", "[1]"], "not a JSON object"),
            (&["sign", "--json-body", "/a", "{"], "BODY is not JSON"),
            (&["sign", "--json-body", "/a", "{\"pid\":\"1\",\"sign\":\"0\"}"], "X-Sign"),
            (
                &["sign", "--exp=1", "--json-body", "/a", "{\"pid\":\"1\",\"exp\":1}"],
                "has exp already",
            ),
            (&["sign", "--secret", "file:/nowhere", "/a?pid=1"], "cannot be read"),
            (&["sign", "--ws_port", "1", "/a?pid=1"], "unknown argument: --ws-port"),
            (&["sign", "/a?pid=1", "b"], "one URL is needed"),
            (&["sign", "q.%"], "is not base64url"),
        ] {
            let error = sign_of(args).unwrap_err();
            assert!(error.contains(part), "{error}\n{part}");
        }
    }
}
