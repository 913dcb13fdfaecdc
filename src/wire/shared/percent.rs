//! Strict percent-encoding (RFC 3986): a `%` without two hexadecimal digits is an error, where the
//! `percent-encoding` crate leaves it unchanged.

use std::borrow::Cow;

/// The meaning of a `+`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plus {
    /// A plus sign, as in a URL's path and user.
    Itself,
    /// A space, as in a form and a query.
    Space,
}

/// Why a text cannot be decoded; formatted to follow a subject.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PercentError {
    #[error("has a % that is not followed by two hexadecimal digits")]
    Digits,
    #[error("is not UTF-8")]
    NotUtf8,
}

/// Decodes a text. Allocates only if something is encoded.
pub fn decode(text: &[u8], plus: Plus) -> Result<Cow<'_, str>, PercentError> {
    let is_special = |byte: u8| byte == b'%' || (byte == b'+' && plus == Plus::Space);
    if !text.iter().any(|&byte| is_special(byte)) {
        return std::str::from_utf8(text).map(Cow::Borrowed).map_err(|_| PercentError::NotUtf8);
    }
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        if !is_special(byte) {
            decoded.push(byte);
        } else if byte == b'+' {
            decoded.push(b' ');
        } else {
            let (digits, tail) = rest.split_first_chunk().ok_or(PercentError::Digits)?;
            decoded.push(hex_byte(*digits).ok_or(PercentError::Digits)?);
            rest = tail;
        }
    }
    String::from_utf8(decoded).map(Cow::Owned).map_err(|_| PercentError::NotUtf8)
}

fn hex_byte(digits: [u8; 2]) -> Option<u8> {
    let [high, low] = digits.map(|digit| char::from(digit).to_digit(16));
    Some((high? << 4 | low?) as u8)
}

/// Appends the text with all but the unreserved characters encoded, with upper-case digits.
pub fn encode(text: &str, out: &mut Vec<u8>) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    for &byte in text.as_bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            out.push(byte);
        } else {
            out.extend([b'%', HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
        }
    }
}

/// Appends `name=value&…`, percent-encoded as a signed text requires. For signing, the caller
/// passes the pairs sorted by name.
pub fn write_query<'p>(pairs: impl Iterator<Item = (&'p str, &'p str)>, out: &mut Vec<u8>) {
    for (index, (name, value)) in pairs.enumerate() {
        if index > 0 {
            out.push(b'&');
        }
        encode(name, out);
        out.push(b'=');
        encode(value, out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_plus_is_a_space_only_in_forms() {
        assert_eq!(decode(b"a+%2B%c3%A9", Plus::Space).unwrap(), "a +é");
        assert_eq!(decode(b"a+%2B%c3%A9", Plus::Itself).unwrap(), "a++é");
        assert!(matches!(decode(b"a+b", Plus::Itself), Ok(Cow::Borrowed("a+b"))));
    }

    #[test]
    fn what_is_malformed_is_an_error() {
        for bad in ["%", "a%2", "%zz", "%+1", "%2%"] {
            assert_eq!(decode(bad.as_bytes(), Plus::Space), Err(PercentError::Digits), "{bad}");
        }
        for bad in [&b"%ff"[..], b"%C3", b"\xff", b"a+\xff"] {
            assert_eq!(decode(bad, Plus::Space), Err(PercentError::NotUtf8));
        }
    }

    #[test]
    fn a_query_is_encoded_for_its_signature() {
        let mut out = Vec::new();
        write_query([("a", "x y"), ("b", ""), ("tags", "a,b~é+")].into_iter(), &mut out);
        assert_eq!(String::from_utf8(out).unwrap(), "a=x%20y&b=&tags=a%2Cb~%C3%A9%2B");
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(text in "\\PC{0,20}") {
            let mut encoded = Vec::new();
            encode(&text, &mut encoded);
            prop_assert_eq!(decode(&encoded, Plus::Space).unwrap(), &*text);
            prop_assert_eq!(decode(&encoded, Plus::Itself).unwrap(), &*text);
        }
    }
}
