//! Last filter before the logs and Sentry: replaces signatures, tokens and passwords by `***`.
//!
//! Types that hold secrets do not show them. This handles text from elsewhere: an error that quotes
//! a URL, a panic that quotes a request.

use std::borrow::Cow;
use std::ops::Range;

const MASK: &str = "***";
/// Digits of an HMAC-SHA256 in hexadecimal. A trace id has half that number.
const SIGN_DIGITS: usize = 64;
/// Names that a secret follows, as `name=`, `"name":` or `name: `.
const NAMES: [&str; 7] =
    ["sign", "token", "secret", "secrets", "password", "authorization", "sentry_key"];

/// Returns whether a field of that name must not be shown at all.
pub fn is_secret_name(name: &str) -> bool {
    let last = name.rsplit(['_', '-', '.']).next().unwrap_or(name);
    NAMES.iter().any(|secret| last.eq_ignore_ascii_case(secret))
}

/// Returns the text without anything that looks like a secret.
pub fn scrub(text: &str) -> Cow<'_, str> {
    let mut out = String::new();
    let mut done = 0;
    let mut at = 0;
    while at < text.len() {
        match secret_at(text, at) {
            Some(secret) => {
                out.push_str(&text[done..secret.start]);
                out.push_str(MASK);
                done = secret.end;
                at = secret.end.max(at + 1);
            }
            None => at += 1,
        }
    }
    if done == 0 && out.is_empty() {
        return Cow::Borrowed(text);
    }
    out.push_str(&text[done..]);
    Cow::Owned(out)
}

/// Returns the secret that begins at `at`, or after the name there.
fn secret_at(text: &str, at: usize) -> Option<Range<usize>> {
    let bytes = text.as_bytes();
    let is_start = at == 0 || !bytes[at - 1].is_ascii_alphanumeric();
    match bytes[at] {
        b':' if bytes[at..].starts_with(b"://") => user_info(bytes, at + 3),
        _ if !is_start => None,
        byte if byte.is_ascii_alphanumeric() => sign(bytes, at).or_else(|| named(bytes, at)),
        _ => None,
    }
}

/// Finds `user:password` in a URL whose authority begins at `from`.
fn user_info(bytes: &[u8], from: usize) -> Option<Range<usize>> {
    let ends = |byte: &u8| byte.is_ascii_whitespace() || b"/?#\"'".contains(byte);
    let length = bytes[from..].iter().position(ends).unwrap_or(bytes.len() - from);
    let at = bytes[from..from + length].iter().rposition(|&byte| byte == b'@')?;
    Some(from..from + at)
}

fn sign(bytes: &[u8], from: usize) -> Option<Range<usize>> {
    let digits = bytes[from..].iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    (digits >= SIGN_DIGITS).then_some(from..from + digits)
}

/// Finds the value after one of [`NAMES`].
fn named(bytes: &[u8], from: usize) -> Option<Range<usize>> {
    let is_name = |byte: &&u8| byte.is_ascii_alphanumeric() || **byte == b'_';
    let name_end = from + bytes[from..].iter().take_while(is_name).count();
    let name = std::str::from_utf8(&bytes[from..name_end]).ok()?;
    if !is_secret_name(name) {
        return None;
    }
    let is_header = name.eq_ignore_ascii_case("authorization") || bytes[..from].ends_with(b"-");
    let blanks = bytes[name_end..].iter().take_while(|byte| **byte == b' ').count();
    let mut start = name_end
        + match &bytes[name_end..] {
            _ if bytes[name_end + blanks..].starts_with(b"=") => blanks + 1,
            [b'"' | b'\'', b':', ..] => 2,
            [b'\\', b'"', b':', ..] => 3,
            [b':', ..] if is_header => 1,
            _ => return None,
        };
    start += bytes[start..].iter().take_while(|byte| b" \\\"'".contains(byte)).count();
    if bytes[start..].starts_with(b"[") {
        let length = bytes[start..].iter().position(|&byte| byte == b']');
        return Some(start..length.map_or(bytes.len(), |length| start + length + 1));
    }
    for scheme in [&b"Bearer "[..], b"Basic "] {
        if bytes[start..].len() > scheme.len()
            && bytes[start..start + scheme.len()].eq_ignore_ascii_case(scheme)
        {
            start += scheme.len();
        }
    }
    let ends = |byte: &u8| byte.is_ascii_whitespace() || b"&\"'\\;,)}]".contains(byte);
    let length = bytes[start..].iter().position(ends).unwrap_or(bytes.len() - start);
    (length > 0 && !bytes[start..].starts_with(MASK.as_bytes())).then_some(start..start + length)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SIGN: &str = "fc693ec296eeb192fb6458696cdcdbabb265af8ab51ac61badcd7a8bb45ffae9";

    #[test]
    fn secrets_become_stars() {
        for (text, scrubbed) in [
            ("redis://app:hunter2@host:1/0", "redis://***@host:1/0"),
            ("redis://:p@ss@host, unix://u:p@/s", "redis://***@host, unix://***@/s"),
            ("/ws/connect?pid=1&sign=abc&uid=2", "/ws/connect?pid=1&sign=***&uid=2"),
            ("X-Sign: abc\r\nHost: x", "X-Sign: ***\r\nHost: x"),
            ("Authorization: Bearer abc.def end", "Authorization: Bearer *** end"),
            (r#"{"sign":"abc","uid":"u"}"#, r#"{"sign":"***","uid":"u"}"#),
            (r#"secrets = ["a","b"] end"#, "secrets = *** end"),
            ("/metrics?token=abc", "/metrics?token=***"),
            ("WS_CLUSTER_OPS_TOKEN=abc", "WS_CLUSTER_OPS_TOKEN=***"),
            ("password='é x'", "password='*** x'"),
        ] {
            assert_eq!(scrub(text), scrubbed);
            assert_eq!(scrub(scrubbed), scrubbed, "twice is once");
        }
        assert_eq!(scrub(&format!("a {SIGN} b")), "a *** b");
        assert_eq!(scrub(&format!("{SIGN}{SIGN}")), "***");
    }

    #[test]
    fn all_else_stays() {
        for text in [
            "exp is in the past: sign a new request",
            "a wrong token: give WS_CLUSTER_OPS_TOKEN",
            "design=1 sign",
            "http://127.0.0.1:6060/x@y",
            "mail@host",
            "4bf92f3577b34da6a3ce929d0e0e4736 is a trace",
            "",
        ] {
            assert!(matches!(scrub(text), Cow::Borrowed(same) if same == text), "{text}");
        }
    }

    #[test]
    fn fields_by_name() {
        for name in ["sign", "Token", "ops_token", "x-sign", "redis.password"] {
            assert!(is_secret_name(name), "{name}");
        }
        for name in ["design", "tokens_left", "error", ""] {
            assert!(!is_secret_name(name), "{name}");
        }
    }

    proptest! {
        #[test]
        fn a_secret_is_found_in_any_text(
            before in r#"[a-z =:/@"'é&?\[]{0,20}"#,
            name in r#"[ &?"'-](sign=|token=|secret": "|password = '|X-Sign: )"#,
            after in r#"([&"' ,\]][a-z =:/@"'é&?]{0,20})?"#,
        ) {
            for secret in ["hunter2", SIGN] {
                let text = format!("{before}{name}{secret}{after}");
                prop_assert!(!scrub(&text).contains(secret), "{}", text);
            }
        }
    }
}
