//! Signatures: lower-case hex of HMAC-SHA256 over the path, a newline and the parameters.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// A signature as it travels: 64 hex digits.
pub type Sign = [u8; 64];

/// Signs for one secret and one path. The key and the path are hashed once; a signature costs only
/// the text behind them.
#[derive(Clone)]
pub struct Signer {
    fed: Hmac<Sha256>,
}

impl Signer {
    /// # Errors
    /// When the HMAC refuses the secret; HMAC-SHA256 takes any.
    pub fn new(secret: &str, path: &str) -> Result<Signer, String> {
        let mut fed = Hmac::<Sha256>::new_from_slice(secret.as_bytes())
            .map_err(|_| "the secret cannot be used as a key".to_owned())?;
        fed.update(path.as_bytes());
        fed.update(b"\n");
        Ok(Signer { fed })
    }

    /// The signature of a raw JSON body or of a canonical query.
    pub fn sign(&self, text: &[u8]) -> Sign {
        let mut mac = self.fed.clone();
        mac.update(text);
        let mut sign = [0; 64];
        for (pair, byte) in sign.chunks_exact_mut(2).zip(mac.finalize().into_bytes()) {
            pair[0] = HEX[usize::from(byte >> 4)];
            pair[1] = HEX[usize::from(byte & 15)];
        }
        sign
    }

    /// Appends `name=value&…&sign=…`. The parameters must come sorted by name.
    pub fn signed_query(&self, parameters: &[(&str, &str)], out: &mut Vec<u8>) {
        debug_assert!(parameters.is_sorted_by_key(|(name, _)| *name));
        let start = out.len();
        for (i, (name, value)) in parameters.iter().enumerate() {
            if i > 0 {
                out.push(b'&');
            }
            percent_encode(name, out);
            out.push(b'=');
            percent_encode(value, out);
        }
        let sign = self.sign(&out[start..]);
        out.extend_from_slice(b"&sign=");
        out.extend_from_slice(&sign);
    }
}

const HEX: &[u8; 16] = b"0123456789abcdef";

/// RFC 3986 with only the unreserved characters bare, as the canonical text wants it.
fn percent_encode(text: &str, out: &mut Vec<u8>) {
    for &byte in text.as_bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(byte);
        } else {
            let upper = |nibble: u8| HEX[usize::from(nibble)].to_ascii_uppercase();
            out.extend_from_slice(&[b'%', upper(byte >> 4), upper(byte & 15)]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_vector_of_the_protocol() {
        let signer = Signer::new("dev-secret", "/ws/connect").unwrap();
        let mut query = Vec::new();
        signer.signed_query(&[("pid", "1"), ("type", "1"), ("uid", "u 1")], &mut query);
        assert_eq!(
            String::from_utf8(query).unwrap(),
            "pid=1&type=1&uid=u%201&\
             sign=fc693ec296eeb192fb6458696cdcdbabb265af8ab51ac61badcd7a8bb45ffae9"
        );
    }

    #[test]
    fn everything_but_unreserved_is_encoded_in_upper_case() {
        let mut out = Vec::new();
        percent_encode("a,b~c/é+", &mut out);
        assert_eq!(out, b"a%2Cb~c%2F%C3%A9%2B");
    }
}
