//! `verify-sign`: whether a node would accept a signature, and if not, which step went wrong. It
//! makes the usual mistakes itself, in [`variants`], and looks for the one that leads to this sign.

mod variants;

use super::request::{Keys, Place, Request};
use super::{Environment, Output};
use crate::config::{Arguments, Exit, demands_exp};
use crate::io::clock;
use crate::ops::logs::timestamp;
use crate::types::{WallMs, in_one_line};
use crate::wire::sign::{Secret, check_exp, is_sign, sign_hex};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};
use serde_json::{Value, json};
use std::fmt::Write as _;
use variants::Search;

/// From here on a time is in milliseconds by mistake.
const MS_FROM: u64 = 100_000_000_000;
const SHOWN_CHARS: usize = 2_000;

/// A step of signing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Text,
    Key,
    Encoding,
    Exp,
}

impl Step {
    fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Key => "key",
            Self::Encoding => "encoding",
            Self::Exp => "exp",
        }
    }
}

/// What differs from what the node expects in one step.
#[derive(Debug, PartialEq, Eq)]
struct Difference {
    step: Step,
    what: String,
}

fn difference(step: Step, what: impl Into<String>) -> Difference {
    Difference { step, what: what.into() }
}

/// What was found out about a signature.
#[derive(Debug)]
struct Verdict {
    /// Empty: it is valid, unless the mistake is `unknown`.
    differences: Vec<Difference>,
    /// It is not right, and no usual mistake leads to it.
    is_unknown: bool,
    text: String,
    /// The sign that the node expects.
    expected: String,
}

impl Verdict {
    fn is_valid(&self) -> bool {
        self.differences.is_empty() && !self.is_unknown
    }
}

pub(super) fn run(arguments: &Arguments, env: Environment<'_>) -> Result<Output, Exit> {
    let request = Request::of(arguments)?;
    let given = match (&request.place, arguments.option("sign")) {
        (Place::Json, Some(sign)) => Some(without_name(sign).to_owned()),
        (Place::Json, None) if request.sign.is_none() => {
            return Err(arguments.wrong("--sign is needed: the header X-Sign of the request"));
        }
        (Place::Json, None) => request.sign.clone(),
        (_, Some(_)) => {
            return Err(arguments.wrong("--sign is for --json-body: others carry sign inside"));
        }
        (_, None) => request.sign.clone(),
    };
    let keys = Keys::of(arguments, env, &request)?;
    let mut verdict = verdict(&request, given.as_deref().unwrap_or_default(), &keys);
    if request.place == Place::Json && arguments.option("sign").is_none() {
        let what = "sign is in the body: for JSON it belongs in the header X-Sign";
        verdict.differences.push(difference(Step::Encoding, what));
    }
    let is_demanded = demands_exp(arguments, env.get);
    verdict.differences.extend(exp(request.exp.as_deref(), is_demanded, clock::wall()));
    let text = match arguments.has("json") {
        true => as_json(&verdict),
        false => as_text(&verdict),
    };
    Ok(Output::of(text, verdict.is_valid()))
}

/// Returns the value of a header that was given with its name, as `sign` prints it.
fn without_name(header: &str) -> &str {
    match header.split_once(':') {
        Some((name, value)) if name.eq_ignore_ascii_case("x-sign") => value.trim(),
        _ => header,
    }
}

fn verdict(request: &Request, given: &str, keys: &Keys) -> Verdict {
    let signed = request.signed_text();
    let secret = keys.own.first().map_or("", String::as_str);
    let expected = sign_hex(&Secret::new(secret.as_bytes()), &[&signed]);
    let text = in_one_line(&String::from_utf8_lossy(&signed), SHOWN_CHARS);
    let verdict = |differences, is_unknown| Verdict { differences, is_unknown, text, expected };
    let (digits, encoding) = match digits(given) {
        Ok(found) => found,
        Err(what) => return verdict(vec![difference(Step::Encoding, what)], false),
    };
    let encoding = encoding.map(|what| difference(Step::Encoding, what));
    match (Search { request, keys, signed: &signed }.find(&digits), encoding) {
        (Some(mut found), encoding) => {
            found.extend(encoding);
            verdict(found, false)
        }
        (None, encoding) => verdict(encoding.into_iter().collect(), true),
    }
}

/// Returns the digits of a sign, and what is wrong with their encoding.
fn digits(given: &str) -> Result<(String, Option<String>), String> {
    if is_sign(given) {
        return Ok((given.to_owned(), None));
    }
    if given.is_empty() {
        return Err("sign is missing: add 64 lower-case hex digits".into());
    }
    let trimmed = given.trim();
    let lower = trimmed.to_ascii_lowercase();
    let bare = ["sha256=", "sha256:", "0x", "hmac-sha256 "];
    let bare = bare.iter().find_map(|start| lower.strip_prefix(start));
    for (digits, what) in [
        (Some(trimmed), "the sign has white space around it: remove it"),
        (Some(&*lower), "the sign has upper-case hex digits: use lower-case ones"),
        (bare, "the sign has a prefix: send only the 64 hex digits"),
    ] {
        if let Some(digits) = digits.filter(|digits| is_sign(digits)) {
            return Ok((digits.to_owned(), Some(what.into())));
        }
    }
    // A plus in a query is a space.
    let text = trimmed.replace(' ', "+");
    for engine in [STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD] {
        let Ok(bytes) = engine.decode(&text) else { continue };
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        if is_sign(&hex) {
            return Ok((hex, Some("the sign is base64: use lower-case hex".into())));
        }
        let inner = String::from_utf8(bytes).unwrap_or_default();
        if is_sign(&inner) {
            return Ok((
                inner,
                Some("the sign is base64 of the hex digits: omit the base64".into()),
            ));
        }
    }
    let length = trimmed.chars().count();
    let is_hex = trimmed.bytes().all(|byte| byte.is_ascii_hexdigit());
    Err(match (is_hex, length) {
        (true, 32) => "the sign has 32 hex digits, as MD5 has: use HMAC-SHA256".into(),
        (true, 40) => "the sign has 40 hex digits, as SHA-1 has: use HMAC-SHA256".into(),
        (true, 96) => "the sign has 96 hex digits, as SHA-384 has: use HMAC-SHA256".into(),
        (true, 128) => "the sign has 128 hex digits, as SHA-512 has: use HMAC-SHA256".into(),
        (true, _) => format!("the sign has {length} hex digits: it must have 64"),
        (false, _) => format!(
            "the sign is not hex: it has {length} characters, and must be 64 \
                               lower-case hex digits"
        ),
    })
}

/// Returns what is wrong with `exp`.
fn exp(text: Option<&str>, is_demanded: bool, now: WallMs) -> Option<Difference> {
    let Some(text) = text else {
        let what = "exp is missing: --env prod demands the time until which the request is valid";
        return is_demanded.then(|| difference(Step::Exp, what));
    };
    let what = match text.parse::<u64>() {
        Err(_) => format!("exp {} is not a time in unix seconds", in_one_line(text, 40)),
        Ok(ms @ MS_FROM..) => {
            format!("exp {ms} is in milliseconds: use seconds, {}", ms / 1_000)
        }
        Ok(s) => {
            check_exp(Some(s), false, now).err()?;
            let ago_s = now.since(WallMs::from_s(s)) / 1_000;
            let at = timestamp::rfc3339(WallMs::from_s(s).value());
            format!("exp {s} ({at}) passed {ago_s} s ago: sign a new request")
        }
    };
    Some(difference(Step::Exp, what))
}

fn as_text(verdict: &Verdict) -> String {
    if verdict.is_valid() {
        return "valid\n".into();
    }
    let mut text = String::new();
    // Writing to a String cannot fail, here and below.
    for Difference { step, what } in &verdict.differences {
        let _ = writeln!(text, "not valid: {}: {what}", step.name());
    }
    if verdict.is_unknown {
        text.push_str(
            "not valid: neither this text with this key nor a usual mistake leads to this sign: \
             compare the text below with the one that was signed, else the secret differs\n",
        );
    }
    if verdict.is_unknown || verdict.differences.iter().any(|one| one.step != Step::Exp) {
        let _ = writeln!(text, "text to sign: {}", verdict.text);
        let _ = writeln!(text, "its sign:     {}", verdict.expected);
    }
    text
}

fn as_json(verdict: &Verdict) -> String {
    let differences = verdict.differences.iter();
    let differences: Vec<Value> = differences
        .map(|Difference { step, what }| json!({ "step": step.name(), "message": what }))
        .collect();
    let all = json!({
        "valid": verdict.is_valid(),
        "differences": differences,
        "unknown": verdict.is_unknown,
        "text": verdict.text,
        "sign": verdict.expected,
    });
    format!("{all:#}\n")
}

#[cfg(test)]
mod tests;
