//! Signatures: lower-case hexadecimal digits of an HMAC-SHA256.

use std::borrow::Cow;
use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

use super::http::HttpError;
use crate::types::in_one_line;

const MAC_BYTES: usize = 32;
/// SHA-256's block, to which HMAC brings every key.
const BLOCK_BYTES: usize = 64;
/// How long after its `exp` a request is still taken: clocks differ.
const EXP_LEEWAY_MS: u64 = 5_000;
/// Characters of the signed text that a refusal shows in development.
const SHOWN_CHARS: usize = 1_000;

/// One secret of a project, as the state of an HMAC that has taken in the key: every use copies it
/// and saves hashing the key again.
#[derive(Clone)]
pub struct Secret {
    keyed: Hmac<Sha256>,
}

impl Secret {
    pub fn new(secret: &[u8]) -> Self {
        // RFC 2104: a longer key is replaced by its hash, a shorter one is filled up with zeros.
        let mut block = [0; BLOCK_BYTES];
        if secret.len() > BLOCK_BYTES {
            block[..MAC_BYTES].copy_from_slice(&Sha256::digest(secret));
        } else {
            block[..secret.len()].copy_from_slice(secret);
        }
        Self { keyed: Hmac::new(&block.into()) }
    }

    fn mac(&self, parts: &[&[u8]]) -> Hmac<Sha256> {
        let mut mac = self.keyed.clone();
        for part in parts {
            mac.update(part);
        }
        mac
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// A secret that is shown as it is (RFC 6750): kept as the state that compares it in constant time.
#[derive(Clone)]
pub struct Token {
    keyed: Secret,
    mac: [u8; MAC_BYTES],
}

impl Token {
    pub fn new(token: String) -> Self {
        // Both are hashed under it, so that the comparison does not tell how much of it is right.
        let keyed = Secret::new(token.as_bytes());
        let mac = keyed.mac(&[token.as_bytes()]).finalize().into_bytes().into();
        Self { keyed, mac }
    }

    pub fn is(&self, given: &str) -> bool {
        self.keyed.mac(&[given.as_bytes()]).verify_slice(&self.mac).is_ok()
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Whether `sign` is the signature of the joined `parts` under one of the secrets. Every secret is
/// tried and compared in constant time; anything but 64 lower-case hexadecimal digits is false.
pub fn verify(secrets: &[Secret], parts: &[&[u8]], sign: &str) -> bool {
    let Some(mac) = parse_hex(sign.as_bytes()) else { return false };
    let matches = |found, secret: &Secret| found | secret.mac(parts).verify_slice(&mac).is_ok();
    secrets.iter().fold(false, matches)
}

/// How a request carries its sign, and how much a refusal tells.
#[derive(Debug, Clone, Copy)]
pub struct SignRules {
    pub place: SignPlace,
    /// Whether a refusal shows the text that should have been signed; in development only.
    pub shows_text: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SignPlace {
    /// A parameter of a query or a form. `is_in_header`: the request has X-Sign.
    Parameter { is_in_header: bool },
    /// X-Sign, because the body is JSON. `is_in_body`: that has a member `sign`.
    Header { is_in_body: bool },
    /// A member of a WebSocket message.
    Member,
}

/// Whether `sign` is the signature of the joined `parts` under one of the secrets; the error is the
/// sentence that refuses it.
pub fn check(
    secrets: &[Secret],
    parts: &[&[u8]],
    sign: Option<&str>,
    rules: SignRules,
) -> Result<(), Cow<'static, str>> {
    let problem = match (sign.filter(|sign| !sign.is_empty()), rules.place) {
        (Some(sign), _) if verify(secrets, parts, sign) => return Ok(()),
        (Some(sign), _) if parse_hex(sign.as_bytes()).is_some() => "bad sign",
        (Some(_), _) => "sign must be 64 lower-case hex digits",
        (None, SignPlace::Header { is_in_body: true }) => "sign belongs in X-Sign for JSON",
        (None, SignPlace::Header { .. }) => "sign is missing (X-Sign)",
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

/// The signed text as an error shows it.
fn shown(text: &[u8]) -> String {
    // A character has at most four bytes.
    let begin = String::from_utf8_lossy(&text[..text.len().min(4 * SHOWN_CHARS + 4)]);
    let line = in_one_line(&begin, SHOWN_CHARS);
    let is_cut = begin.chars().nth(SHOWN_CHARS).is_some();
    if is_cut { format!("{line} ({} bytes in all)", text.len()) } else { line }
}

/// The signature of the joined `parts`.
pub fn sign_hex(secret: &Secret, parts: &[&[u8]]) -> String {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let mac = secret.mac(parts).finalize().into_bytes();
    let digits =
        mac.iter().flat_map(|byte| [HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
    digits.map(char::from).collect()
}

/// Whether a request with that `exp` (unix seconds) is still good: 401 five seconds after it, and
/// where it is demanded (`--env prod`) but missing.
pub fn check_exp(exp: Option<u64>, demanded: bool, now_ms: u64) -> Result<(), HttpError> {
    match exp {
        Some(exp) if now_ms > exp.saturating_mul(1_000).saturating_add(EXP_LEEWAY_MS) => {
            Err(HttpError { status: 401, msg: "exp is past: sign the request anew" })
        }
        None if demanded => Err(HttpError {
            status: 401,
            msg: "exp is missing: unix seconds until which it is good",
        }),
        _ => Ok(()),
    }
}

/// Whether a session may end at that time (unix seconds): 400 where it is over.
pub fn check_session_exp(session_exp: Option<u64>, now_ms: u64) -> Result<(), HttpError> {
    match session_exp {
        Some(exp) if exp.saturating_mul(1_000) <= now_ms => Err(HttpError::bad(SESSION_IS_OVER)),
        _ => Ok(()),
    }
}

/// The refusal of a session that would end at once.
const SESSION_IS_OVER: &str = "session_exp is past: give unix seconds that are still to come";

fn parse_hex(digits: &[u8]) -> Option<[u8; MAC_BYTES]> {
    let digits: &[u8; 2 * MAC_BYTES] = digits.try_into().ok()?;
    let mut bytes = [0; MAC_BYTES];
    // Looked up, and judged once at the end: no branch could guess whether a digit is a letter.
    let mut seen = 0;
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let [high, low] = [LOWER_HEX[usize::from(pair[0])], LOWER_HEX[usize::from(pair[1])]];
        seen |= high | low;
        *byte = high << 4 | low & 15;
    }
    (seen < 16).then_some(bytes)
}

/// The value of each lower-case hexadecimal digit; 255 for any other byte.
const LOWER_HEX: [u8; 256] = {
    let mut values = [255; 256];
    let mut value = 0;
    while value < 16 {
        values[b"0123456789abcdef"[value] as usize] = value as u8;
        value += 1;
    }
    values
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::params::Params;
    use proptest::prelude::*;

    const SIGN: &str = "fc693ec296eeb192fb6458696cdcdbabb265af8ab51ac61badcd7a8bb45ffae9";

    #[test]
    fn the_vector_of_the_contract() {
        let params = Params::parse(b"pid=1&uid=u+1&type=1").unwrap();
        let mut text = Vec::new();
        params.canonical("/ws/connect", &mut text);
        let secrets = [Secret::new(b"old"), Secret::new(b"dev-secret")];
        assert_eq!(sign_hex(&secrets[1], &[&text]), SIGN);
        assert!(verify(&secrets, &[&text], SIGN));
        assert!(verify(&secrets, &[b"/ws/connect", b"\n", b"pid=1&type=1&uid=u%201"], SIGN));
        assert!(!verify(&secrets, &[&text, b" "], SIGN));
        assert!(!verify(&secrets[..1], &[&text], SIGN));
        assert!(!verify(&[], &[&text], SIGN));
    }

    #[test]
    fn long_keys_are_hashed_as_rfc_4231_says() {
        let secret = Secret::new(&[0xaa; 131]);
        let text = b"Test Using Larger Than Block-Size Key - Hash Key First";
        assert_eq!(
            sign_hex(&secret, &[text]),
            "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54"
        );
    }

    #[test]
    fn only_64_lower_case_digits_are_a_sign() {
        let secrets = [Secret::new(b"s")];
        let sign = sign_hex(&secrets[0], &[b"x"]);
        assert!(verify(&secrets, &[b"x"], &sign));
        for bad in [
            "",
            &sign[1..],
            &sign.to_uppercase(),
            &format!("{sign}0"),
            &format!("0{}", &sign[..63]),
        ] {
            assert!(!verify(&secrets, &[b"x"], bad), "{bad}");
        }
    }

    #[test]
    fn no_other_character_stands_for_a_digit() {
        let secrets = [Secret::new(b"s")];
        let sign = sign_hex(&secrets[0], &[b"x"]);
        for place in [0, 1, 62, 63] {
            for byte in 0..128 {
                let mut other = sign.clone().into_bytes();
                let is_same = std::mem::replace(&mut other[place], byte) == byte;
                let other = String::from_utf8(other).unwrap();
                assert_eq!(verify(&secrets, &[b"x"], &other), is_same, "{other:?}");
            }
        }
    }

    #[test]
    fn a_token_is_itself_and_nothing_else() {
        let token = Token::new("0123456789abcdef".into());
        assert!(token.is("0123456789abcdef"));
        for other in ["", "0123456789abcde", "0123456789abcdeF", "0123456789abcdef0"] {
            assert!(!token.is(other), "{other}");
        }
        assert_eq!(format!("{token:?}"), "***");
    }

    #[test]
    fn a_secret_prints_as_stars() {
        assert_eq!(format!("{:?}", Secret::new(b"dev-secret")), "***");
    }

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
                (header, "sign is missing (X-Sign)"),
                (in_body, "sign belongs in X-Sign for JSON"),
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
        let is_good = |exp, now_ms| check_session_exp(exp, now_ms).is_ok();
        assert!(is_good(None, u64::MAX) && is_good(Some(100), 99_999));
        assert!(!is_good(Some(100), 100_000) && !is_good(Some(0), 1));
        assert!(!is_good(Some(100), 200_000) && !is_good(Some(u64::MAX), u64::MAX));
    }

    #[test]
    fn exp_has_five_seconds_of_leeway() {
        let status = |exp, demanded, now_ms| check_exp(exp, demanded, now_ms).map_err(|e| e.status);
        assert_eq!(status(Some(100), true, 105_000), Ok(()));
        assert_eq!(status(Some(100), false, 105_001), Err(401));
        assert_eq!(status(Some(u64::MAX), true, u64::MAX), Ok(()));
        assert_eq!(status(None, false, 1), Ok(()));
        assert_eq!(status(None, true, 1), Err(401));
    }

    proptest! {
        #[test]
        fn what_is_signed_is_verified_however_it_is_cut(
            key in proptest::collection::vec(any::<u8>(), 0..100),
            text in proptest::collection::vec(any::<u8>(), 0..100),
            cut in 0usize..100,
            junk in "\\PC{0,70}",
        ) {
            let secret = Secret::new(&key);
            let sign = sign_hex(&secret, &[&text]);
            let (first, second) = text.split_at(cut.min(text.len()));
            let secrets = [secret];
            prop_assert!(verify(&secrets, &[first, second], &sign));
            prop_assert!(!verify(&secrets, &[&text], &junk));
        }
    }
}
