//! Signatures: lower-case hexadecimal digits of an HMAC-SHA256.

use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

const MAC_BYTES: usize = 32;
/// Block size of SHA-256, to which HMAC pads every key.
const BLOCK_BYTES: usize = 64;

/// One secret of a project, as the state of an HMAC that has consumed the key: every use copies it,
/// which saves hashing the key again.
#[derive(Clone)]
pub struct Secret {
    keyed: Hmac<Sha256>,
}

impl Secret {
    pub fn new(secret: &[u8]) -> Self {
        // RFC 2104: a longer key is replaced by its hash, a shorter one is padded with zeros.
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

/// A bearer token, sent in the clear (RFC 6750): kept as a state that compares it in constant time.
#[derive(Clone)]
pub struct Token {
    keyed: Secret,
    mac: [u8; MAC_BYTES],
}

impl Token {
    pub fn new(token: String) -> Self {
        // Both are hashed under it, so that the comparison does not reveal how much of a token is
        // right.
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
/// tried and compared in constant time; returns false for anything but 64 lower-case hexadecimal
/// digits.
pub fn verify(secrets: &[Secret], parts: &[&[u8]], sign: &str) -> bool {
    let Some(mac) = parse_hex(sign.as_bytes()) else { return false };
    let matches = |found, secret: &Secret| found | secret.mac(parts).verify_slice(&mac).is_ok();
    secrets.iter().fold(false, matches)
}

/// Whether the text has the form of a signature: 64 lower-case hexadecimal digits.
pub fn is_sign(text: &str) -> bool {
    parse_hex(text.as_bytes()).is_some()
}

/// Returns the signature of the joined `parts`.
pub fn sign_hex(secret: &Secret, parts: &[&[u8]]) -> String {
    sign_digits(secret, parts).map(char::from).iter().collect()
}

/// Returns the digits of [`sign_hex`] without allocating.
pub fn sign_digits(secret: &Secret, parts: &[&[u8]]) -> [u8; 2 * MAC_BYTES] {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let mut digits = [0; 2 * MAC_BYTES];
    for (pair, byte) in digits.chunks_exact_mut(2).zip(secret.mac(parts).finalize().into_bytes()) {
        pair[0] = HEX[usize::from(byte >> 4)];
        pair[1] = HEX[usize::from(byte & 15)];
    }
    digits
}

fn parse_hex(digits: &[u8]) -> Option<[u8; MAC_BYTES]> {
    let digits: &[u8; 2 * MAC_BYTES] = digits.try_into().ok()?;
    let mut bytes = [0; MAC_BYTES];
    // A table lookup, checked once at the end: no branch could predict whether a digit is a letter.
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
    use proptest::prelude::*;

    const SIGN: &str = "fc693ec296eeb192fb6458696cdcdbabb265af8ab51ac61badcd7a8bb45ffae9";

    #[test]
    fn the_vector_of_the_contract() {
        let text: &[u8] = b"/ws/connect\npid=1&type=1&uid=u%201";
        let secrets = [Secret::new(b"old"), Secret::new(b"dev-secret")];
        assert_eq!(sign_hex(&secrets[1], &[text]), SIGN);
        assert!(verify(&secrets, &[text], SIGN));
        assert!(verify(&secrets, &[b"/ws/connect", b"\n", b"pid=1&type=1&uid=u%201"], SIGN));
        assert!(!verify(&secrets, &[text, b" "], SIGN));
        assert!(!verify(&secrets[..1], &[text], SIGN));
        assert!(!verify(&[], &[text], SIGN));
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
