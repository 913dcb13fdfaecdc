//! Validation of signatures, and the errors for invalid ones; the shared crate computes them.

use std::borrow::Cow;

use super::http::HttpError;
use crate::types::{WallMs, in_one_line};

pub use ws_cluster_wire::sign::{Secret, Token, is_sign, sign_hex, verify};

/// How long after its `exp` a request is still accepted: clocks differ.
const EXP_LEEWAY_MS: u64 = 5_000;
/// Characters of the signed text shown by an error in development.
const SHOWN_CHARS: usize = 1_000;

/// How a request carries its signature, and how much an error reveals.
#[derive(Debug, Clone, Copy)]
pub struct SignRules {
    pub place: SignPlace,
    /// Whether an error shows the text that should have been signed; in development only.
    pub shows_text: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SignPlace {
    /// A parameter of a query or a form. `is_in_header`: the request has X-Sign.
    Parameter { is_in_header: bool },
    /// X-Sign, because the body is JSON. `is_in_body`: the body has a member `sign`.
    Header { is_in_body: bool },
    /// A member of a WebSocket message.
    Member,
}

/// Checks that `sign` is the signature of the joined `parts` under one of the secrets; otherwise
/// returns the error message.
pub fn check(
    secrets: &[Secret],
    parts: &[&[u8]],
    sign: Option<&str>,
    rules: SignRules,
) -> Result<(), Cow<'static, str>> {
    let problem = match (sign.filter(|sign| !sign.is_empty()), rules.place) {
        (Some(sign), _) if verify(secrets, parts, sign) => return Ok(()),
        (Some(sign), _) if is_sign(sign) => "bad sign",
        (Some(_), _) => "sign must be 64 lower-case hex digits",
        (None, SignPlace::Header { is_in_body: true }) => {
            "for JSON, sign belongs in the header X-Sign"
        }
        (None, SignPlace::Header { .. }) => "sign is missing: add the header X-Sign",
        (None, SignPlace::Parameter { is_in_header: true }) => {
            "sign belongs in the query or the form: X-Sign is for JSON"
        }
        (None, SignPlace::Parameter { .. }) => "sign is missing: add the parameter sign",
        (None, SignPlace::Member) => "sign is missing: add the member sign",
    };
    if !rules.shows_text {
        return Err(problem.into());
    }
    Err(format!("{problem}; the text to sign is: {}", shown(&parts.concat())).into())
}

/// Formats the signed text for an error.
fn shown(text: &[u8]) -> String {
    // A character has at most four bytes.
    let begin = String::from_utf8_lossy(&text[..text.len().min(4 * SHOWN_CHARS + 4)]);
    let line = in_one_line(&begin, SHOWN_CHARS);
    let is_cut = begin.chars().nth(SHOWN_CHARS).is_some();
    if is_cut { format!("{line} ({} bytes in all)", text.len()) } else { line }
}

/// Checks that a request with this `exp` (unix seconds) is still valid: 401 five seconds after it,
/// and if it is missing but required (`--env prod`).
pub fn check_exp(exp: Option<u64>, demanded: bool, now: WallMs) -> Result<(), HttpError> {
    match exp {
        Some(exp) if now > WallMs::from_s(exp) + EXP_LEEWAY_MS => {
            Err(HttpError { status: 401, msg: "exp is in the past: sign a new request" })
        }
        None if demanded => Err(HttpError {
            status: 401,
            msg: "exp is missing: add the time in unix seconds until which the request is valid",
        }),
        _ => Ok(()),
    }
}

/// Checks the end of a session (unix seconds): 400 if it is past.
pub fn check_session_exp(session_exp: Option<u64>, now: WallMs) -> Result<(), HttpError> {
    match session_exp {
        Some(exp) if WallMs::from_s(exp) <= now => Err(HttpError::bad(SESSION_IS_OVER)),
        _ => Ok(()),
    }
}

/// The error for a session that would end at once.
const SESSION_IS_OVER: &str = "session_exp is in the past: use a time in the future, in unix \
    seconds";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_says_what_is_wrong_with_the_sign() {
        let secrets = [Secret::new(b"hunter2")];
        let check = |sign: Option<&str>, place, shows_text| {
            let parts: [&[u8]; 3] = [b"/ws/push", b"\n", b"{\"a\":\"\\n\"}"];
            check(&secrets, &parts, sign, SignRules { place, shows_text })
        };
        let (other, good) =
            ("0".repeat(64), sign_hex(&secrets[0], &[b"/ws/push\n{\"a\":\"\\n\"}"]));
        let (header, in_body) =
            (SignPlace::Header { is_in_body: false }, SignPlace::Header { is_in_body: true });
        let (parameter, in_header) = (
            SignPlace::Parameter { is_in_header: false },
            SignPlace::Parameter { is_in_header: true },
        );
        for place in [header, in_body, parameter, in_header, SignPlace::Member] {
            assert_eq!(check(Some(&good), place, true), Ok(()));
            assert_eq!(check(Some(&other), place, false), Err("bad sign".into()));
            let malformed = Err("sign must be 64 lower-case hex digits".into());
            assert_eq!(check(Some(&good.to_uppercase()), place, false), malformed);
        }
        for sign in [None, Some("")] {
            for (place, start) in [
                (header, "sign is missing: add the header X-Sign"),
                (in_body, "for JSON, sign belongs in the header X-Sign"),
                (parameter, "sign is missing: add the parameter sign"),
                (in_header, "sign belongs in the query or the form: X-Sign is for JSON"),
                (SignPlace::Member, "sign is missing: add the member sign"),
            ] {
                assert_eq!(check(sign, place, false), Err(start.into()));
                let text = r#"; the text to sign is: /ws/push\n{"a":"\\n"}"#;
                assert_eq!(check(sign, place, true), Err(format!("{start}{text}").into()));
            }
        }
    }

    #[test]
    fn a_long_text_to_sign_is_cut() {
        assert_eq!(shown("é".repeat(1_000).as_bytes()), "é".repeat(1_000));
        let cut = format!("{}… (2002 bytes in all)", "é".repeat(1_000));
        assert_eq!(shown("é".repeat(1_001).as_bytes()), cut);
        assert_eq!(shown(b"\xff\0"), "\u{fffd}\\0");
        assert!(shown(&[0xff; 1 << 20]).len() < 4_000);
    }

    #[test]
    fn a_session_ends_in_the_future() {
        let is_good = |exp, now_ms| check_session_exp(exp, WallMs::new(now_ms)).is_ok();
        assert!(is_good(None, u64::MAX) && is_good(Some(100), 99_999));
        assert!(!is_good(Some(100), 100_000) && !is_good(Some(0), 1));
        assert!(!is_good(Some(100), 200_000) && !is_good(Some(u64::MAX), u64::MAX));
    }

    #[test]
    fn exp_has_five_seconds_of_leeway() {
        let status = |exp, demanded, now_ms| {
            check_exp(exp, demanded, WallMs::new(now_ms)).map_err(|e| e.status)
        };
        assert_eq!(status(Some(100), true, 105_000), Ok(()));
        assert_eq!(status(Some(100), false, 105_001), Err(401));
        assert_eq!(status(Some(u64::MAX), true, u64::MAX), Ok(()));
        assert_eq!(status(None, false, 1), Ok(()));
        assert_eq!(status(None, true, 1), Err(401));
    }
}
