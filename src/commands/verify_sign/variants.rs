//! The usual mistakes of signing, step by step: each changes the text, the key or the computation.

use super::super::request::{Keys, Pair, Place, Request, encoded};
use super::{Difference, Step, difference};
use crate::wire::params::Params;
use crate::wire::sign::{Secret, sign_hex};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};
use std::borrow::Cow;

/// More mistakes than this at once are not looked for: there would be too many to try.
const MAX_MISTAKES: usize = 2;
/// The paths that are signed.
const PATHS: [&str; 3] = ["/ws/connect", "/ws/push", "/ws/push/batch"];

/// A form of one part; it is right if it has no `mistake`.
struct Variant<T> {
    mistake: Option<Cow<'static, str>>,
    value: T,
}

fn right<T>(value: T) -> Variant<T> {
    Variant { mistake: None, value }
}

fn wrong<T>(mistake: impl Into<Cow<'static, str>>, value: T) -> Variant<T> {
    Variant { mistake: Some(mistake.into()), value }
}

/// Looks for the way in which a signature was made.
pub(super) struct Search<'a> {
    pub(super) request: &'a Request,
    pub(super) keys: &'a Keys,
    /// The right text.
    pub(super) signed: &'a [u8],
}

impl Search<'_> {
    /// Returns the fewest mistakes that lead to these digits; none: the signature is right. `None`:
    /// it was made in another way.
    pub(super) fn find(&self, digits: &str) -> Option<Vec<Difference>> {
        let (texts, keys) = (self.texts(), self.keys());
        let mut best: Option<Vec<Difference>> = None;
        for text in &texts {
            for key in &keys {
                let mistakes = text.mistake.len() + usize::from(key.mistake.is_some());
                if mistakes > MAX_MISTAKES || best.as_ref().is_some_and(|b| b.len() <= mistakes) {
                    continue;
                }
                let is_right = mistakes == 0;
                let how = computed(digits, &key.value, &text.value, is_right);
                let Some(how) = how else { continue };
                let mut found: Vec<Difference> = Vec::new();
                found.extend(text.mistake.iter().map(|what| difference(Step::Text, what.clone())));
                let of_key = key.mistake.iter();
                found.extend(of_key.map(|what| difference(Step::Key, what.clone())));
                found.extend(how.map(|what| difference(Step::Encoding, what)));
                if best.as_ref().is_none_or(|best| found.len() < best.len()) {
                    best = Some(found);
                }
            }
        }
        // There may be thousands of other projects: only with the right text.
        best.or_else(|| {
            let mut others = self.keys.others.iter();
            let (pid, _) = others.find(|(_, secret)| {
                sign_hex(&Secret::new(secret.as_bytes()), &[self.signed]) == digits
            })?;
            let what = format!("signed with a secret of project '{pid}'");
            Some(vec![difference(Step::Key, what)])
        })
    }

    /// Returns the texts that may have been signed, each with its mistakes; the right one first.
    fn texts(&self) -> Vec<Text> {
        let (paths, bodies) = (self.paths(), self.bodies());
        let separators = [
            right("\n"),
            wrong("there is nothing between path and parameters: put a newline there", ""),
            wrong("path and parameters are separated by ?: put a newline there", "?"),
            wrong("path and parameters are separated by \\r\\n: use \\n alone", "\r\n"),
            wrong("the newline is a backslash and an n: put a real newline there", "\\n"),
            wrong("path and parameters are separated by &: put a newline there", "&"),
        ];
        let ends = [
            right(""),
            wrong("the text ends with a newline: remove it", "\n"),
            wrong("the text ends with \\r\\n: remove it", "\r\n"),
        ];
        let mut texts = vec![Text { mistake: Vec::new(), value: self.signed.to_vec() }];
        for path in &paths {
            for separator in &separators {
                for body in &bodies {
                    for end in &ends {
                        let parts =
                            [&path.mistake, &separator.mistake, &body.mistake, &end.mistake];
                        let mistake: Vec<String> =
                            parts.into_iter().flatten().map(ToString::to_string).collect();
                        if (1..=MAX_MISTAKES).contains(&mistake.len()) {
                            let parts = [&path.value, separator.value, &body.value, end.value];
                            texts.push(Text { mistake, value: parts.concat().into_bytes() });
                        }
                    }
                }
            }
        }
        // The body alone: one mistake, not two.
        for body in &bodies {
            let mut mistake = vec!["the path and the newline after it are missing".to_owned()];
            mistake.extend(body.mistake.as_ref().map(ToString::to_string));
            texts.push(Text { mistake, value: body.value.clone().into_bytes() });
        }
        texts.sort_by_key(|text| text.mistake.len());
        texts
    }

    fn paths(&self) -> Vec<Variant<String>> {
        let path = &self.request.path;
        let mut paths = vec![right(path.clone())];
        for other in PATHS.iter().filter(|other| *other != path) {
            let what = format!("signed for the path {other}, but sent to {path}");
            paths.push(wrong(what, (*other).to_owned()));
        }
        if let Place::Query { before } = &self.request.place
            && before != path
        {
            let what = "the whole URL is signed: only its path, such as /ws/connect, belongs there";
            paths.push(wrong(what, before.clone()));
        }
        paths.push(wrong("the path is missing before the newline", String::new()));
        paths.push(wrong("the path ends with a slash: remove it", format!("{path}/")));
        let bare = path.trim_start_matches('/').to_owned();
        paths.push(wrong("the path has no slash at its beginning", bare));
        paths
    }

    /// Returns the forms of what follows the path.
    fn bodies(&self) -> Vec<Variant<String>> {
        match self.request.place {
            Place::Json => json_bodies(&self.request.text),
            Place::Form | Place::Query { .. } | Place::Subprotocol => param_bodies(self.request),
        }
    }

    fn keys(&self) -> Vec<Variant<Vec<u8>>> {
        let mut keys: Vec<Variant<Vec<u8>>> =
            self.keys.own.iter().map(|secret| right(secret.clone().into_bytes())).collect();
        for secret in &self.keys.siblings {
            let what = "signed with another secret of the project";
            keys.push(wrong(what, secret.clone().into_bytes()));
        }
        for secret in self.keys.own.iter().chain(&self.keys.siblings) {
            for (what, key) in [
                ("the key ends with a newline: remove it", format!("{secret}\n")),
                ("the key ends with \\r\\n: remove it", format!("{secret}\r\n")),
                ("the key ends with a space: remove it", format!("{secret} ")),
                ("the key begins with a space: remove it", format!(" {secret}")),
                ("the key is in quotes: remove them", format!("\"{secret}\"")),
                ("the secret has white space around it, which the key lacks", secret.trim().into()),
            ] {
                keys.push(wrong(what, key.into_bytes()));
            }
            if let Some(bytes) = from_hex(secret) {
                let what = "the secret was decoded from hex: use its text as it is";
                keys.push(wrong(what, bytes));
            }
            if let Ok(bytes) = STANDARD.decode(secret) {
                let what = "the secret was decoded from base64: use its text as it is";
                keys.push(wrong(what, bytes));
            }
        }
        keys.push(wrong("the key is empty", Vec::new()));
        keys
    }
}

struct Text {
    mistake: Vec<String>,
    value: Vec<u8>,
}

/// Returns whether the digits are computed from this key and text: `Some(None)` as they should be,
/// `Some(Some(…))` in another way, which is tried only if both `are_right`.
fn computed(
    digits: &str,
    key: &[u8],
    text: &[u8],
    are_right: bool,
) -> Option<Option<&'static str>> {
    if sign_hex(&Secret::new(key), &[text]) == digits {
        return Some(None);
    }
    if !are_right {
        return None;
    }
    let plain = |parts: [&[u8]; 2]| {
        let hash = parts.iter().fold(Sha256::new(), |hash, part| hash.chain_update(part));
        hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect::<String>()
    };
    if plain([key, text]) == digits || plain([text, key]) == digits {
        return Some(Some("the sign is a plain SHA-256 of key and text: use HMAC-SHA256"));
    }
    let is_swapped = sign_hex(&Secret::new(text), &[key]) == digits;
    is_swapped.then_some(Some("key and text of the HMAC are swapped"))
}

/// Returns a text in which pairs are joined, each formatted by `form`.
fn joined(pairs: &[Pair], form: impl Fn(&Pair) -> String) -> String {
    pairs.iter().map(form).collect::<Vec<_>>().join("&")
}

fn param_bodies(request: &Request) -> Vec<Variant<String>> {
    let given = &request.pairs;
    let mut sorted = given.clone();
    sorted.sort_by(|one, other| one.name.cmp(&other.name));
    let plain = |pair: &Pair| format!("{}={}", pair.name, pair.value);
    let sent = |pair: &Pair| pair.sent.clone();
    let one = |pair: &Pair| encoded(std::slice::from_ref(pair));
    let plus = |pair: &Pair| one(pair).replace("%20", "+");
    let commas = |pair: &Pair| one(pair).replace("%2C", ",");
    let lower = |pair: &Pair| lower_digits(&one(pair));
    let bare = |pair: &Pair| {
        let marks = [("%21", "!"), ("%27", "'"), ("%28", "("), ("%29", ")"), ("%2A", "*")];
        marks.iter().fold(one(pair), |text, (code, mark)| text.replace(code, mark))
    };
    let twice = |pair: &Pair| one(pair).replace('%', "%25");
    let mut bodies = vec![right(joined(&sorted, one))];
    let mut add = |what: &'static str, form: &dyn Fn(&Pair) -> String| {
        bodies.push(wrong(what, joined(&sorted, form)));
        let what = format!("{what}; and the parameters are not sorted by name");
        bodies.push(wrong(what, joined(given, form)));
    };
    add("a space is written as +: use %20", &plus);
    add("commas are not encoded: write them as %2C", &commas);
    add("values are not percent-encoded", &plain);
    add("the encoding of the URL is kept: decode, then encode each name and value", &sent);
    add("percent-encoding has lower-case digits: use %2C, not %2c", &lower);
    add("!'()* are not encoded, as by encodeURIComponent: encode them too", &bare);
    add("values are encoded twice", &twice);
    bodies.push(wrong("the parameters are not sorted by name", joined(given, one)));
    for index in 0..sorted.len() {
        let mut fewer = sorted.clone();
        let left_out = fewer.remove(index);
        let what = format!("the parameter {} is not signed", left_out.name);
        bodies.push(wrong(what, joined(&fewer, one)));
    }
    let mut with_sign = sorted.clone();
    let (name, value, sent) = ("sign".to_owned(), String::new(), "sign=".to_owned());
    with_sign.push(Pair { name, value, sent });
    with_sign.sort_by(|one, other| one.name.cmp(&other.name));
    let what = "an empty parameter sign is signed: leave it out";
    bodies.push(wrong(what, joined(&with_sign, one)));
    // What does not differ from the right text explains nothing.
    let is_right = bodies[0].value.clone();
    bodies.retain(|body| body.mistake.is_none() || body.value != is_right);
    bodies
}

/// Returns the text with the digits of its percent-encoding in lower case.
fn lower_digits(text: &str) -> String {
    let mut left = 0;
    let lower = |c: char| {
        if c == '%' {
            left = 2;
        } else if left > 0 {
            left -= 1;
            return c.to_ascii_lowercase();
        }
        c
    };
    text.chars().map(lower).collect()
}

fn json_bodies(text: &str) -> Vec<Variant<String>> {
    let compact = without_blanks(text, "");
    let mut bodies = vec![right(text.to_owned())];
    for (what, body) in [
        ("the body that was sent has white space at its end", text.trim_end().to_owned()),
        ("the body that was signed had no blanks: sign the bytes that are sent", compact),
        (
            "the body that was signed had a blank behind each comma and colon: sign the bytes that \
             are sent",
            without_blanks(text, " "),
        ),
        ("slashes are escaped in one of the texts: sign the bytes that are sent", escaped(text)),
        (
            "slashes are escaped in one of the texts: sign the bytes that are sent",
            text.replace("\\/", "/"),
        ),
    ] {
        bodies.push(wrong(what, body));
    }
    if let Ok(serde_json::Value::Object(members)) = serde_json::from_str(text) {
        let pairs = members.iter().filter(|(name, _)| *name != "sign").map(|(name, value)| {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            Pair { name: name.clone(), sent: String::new(), value }
        });
        let pairs: Vec<Pair> = pairs.collect();
        let mut query = Vec::new();
        let encoded = encoded(&pairs);
        if let Ok(params) = Params::parse(encoded.as_bytes()) {
            params.canonical("", &mut query);
        }
        let query = String::from_utf8_lossy(query.get(1..).unwrap_or_default()).into_owned();
        bodies.push(wrong("the members are signed as a query: for JSON sign the body", query));
    }
    bodies.retain(|body| body.mistake.is_none() || body.value != text);
    bodies
}

fn escaped(text: &str) -> String {
    text.replace("\\/", "/").replace('/', "\\/")
}

/// Returns JSON without white space between its tokens, with `blank` behind commas and colons.
fn without_blanks(text: &str, blank: &str) -> String {
    let (mut out, mut is_string, mut is_escaped) = (String::new(), false, false);
    for c in text.chars() {
        match c {
            _ if is_string => {
                is_string = c != '"' || is_escaped;
                is_escaped = c == '\\' && !is_escaped;
            }
            '"' => is_string = true,
            ' ' | '\t' | '\n' | '\r' => continue,
            _ => {}
        }
        out.push(c);
        if !is_string && matches!(c, ',' | ':') {
            out.push_str(blank);
        }
    }
    out
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let is_hex = text.len() >= 2
        && text.len().is_multiple_of(2)
        && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let pairs = text.as_bytes().chunks(2).map(|pair| str::from_utf8(pair).ok());
    is_hex.then(|| pairs.map(|pair| u8::from_str_radix(pair?, 16).ok()).collect())?
}
