//! Parameters of a query or a form (`application/x-www-form-urlencoded`), and their text as covered
//! by a request's signature.

use std::borrow::Cow;

use smallvec::SmallVec;

use super::api_error::ApiError;
use super::http::NO_SIGN;
use super::percent::{Plus, decode, write_query};
use crate::types::quoted;

/// Unknown parameters are ignored, but each costs memory and sorting time.
const MAX_PARAMS: usize = 256;

/// Decoded parameters with unique names, sorted by name (by its bytes).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Params<'a> {
    pairs: SmallVec<[(Cow<'a, str>, Cow<'a, str>); 12]>,
}

impl<'a> Params<'a> {
    /// Parses `a=b&c=d`. `+` and `%20` are spaces, empty pairs are skipped, a parameter without `=`
    /// has an empty value. Allocates only for encoded values.
    ///
    /// Fails with 400 on a duplicate name, a `%` without two hexadecimal digits, invalid UTF-8 (in
    /// `sign` it counts as a wrong signature: 401), and more than 256 parameters.
    pub fn parse(text: &'a [u8]) -> Result<Self, ApiError> {
        let mut pairs = SmallVec::new();
        for pair in text.split(|&b| b == b'&').filter(|pair| !pair.is_empty()) {
            if pairs.len() == MAX_PARAMS {
                return Err(ApiError::bad("more than 256 parameters"));
            }
            let end = pair.iter().position(|&b| b == b'=');
            let (name, value) = match end {
                Some(end) => (&pair[..end], &pair[end + 1..]),
                None => (pair, &[][..]),
            };
            let name = decode(name, Plus::Space)
                .map_err(|problem| ApiError::bad(format!("the name of a parameter {problem}")))?;
            let value = match decode(value, Plus::Space) {
                Err(_) if name == "sign" => Cow::Borrowed(NO_SIGN),
                value => value.map_err(|problem| {
                    ApiError::bad(format!("the parameter {} {problem}", quoted(&name)))
                })?,
            };
            pairs.push((name, value));
        }
        pairs.sort_unstable_by(|a: &(Cow<'a, str>, _), b| a.0.cmp(&b.0));
        if let Some(two) = pairs.windows(2).find(|two| two[0].0 == two[1].0) {
            return Err(ApiError::bad(format!(
                "the parameter {} is given twice",
                quoted(&two[0].0)
            )));
        }
        Ok(Self { pairs })
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        // A dozen at most in practice: a linear search is cheaper than a binary one.
        self.pairs.iter().find(|pair| pair.0 == name).map(|pair| pair.1.as_ref())
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.pairs.iter().map(|pair| pair.0.as_ref())
    }

    pub fn is_empty(&self) -> bool {
        self.pairs.is_empty()
    }

    /// Appends the signed text: `path`, a line feed, then every parameter except `sign`,
    /// percent-encoded (RFC 3986: unreserved characters bare, upper-case digits), sorted by name.
    pub fn canonical(&self, path: &str, out: &mut Vec<u8>) {
        out.extend_from_slice(path.as_bytes());
        out.push(b'\n');
        let signed = self.pairs.iter().filter(|pair| pair.0 != "sign");
        write_query(signed.map(|(name, value)| (&**name, &**value)), out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::percent::encode;
    use proptest::collection::{btree_map, vec};
    use proptest::prelude::*;

    fn params(text: &str) -> Params<'_> {
        Params::parse(text.as_bytes()).unwrap()
    }

    fn canonical(text: &str, path: &str) -> String {
        let mut out = Vec::new();
        params(text).canonical(path, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn values_are_decoded() {
        let params = params("&b=1+2%203&&a=%C3%A9%2c=&flag&=x&");
        assert_eq!(params.get("b"), Some("1 2 3"));
        assert_eq!(params.get("a"), Some("é,="));
        assert_eq!(params.get("flag"), Some(""));
        assert_eq!(params.get(""), Some("x"));
        assert_eq!(params.get("c"), None);
        assert!(Params::parse(b"").unwrap().is_empty());
    }

    #[test]
    fn plain_values_are_borrowed() {
        assert!(params("a=b,c").pairs.iter().all(|pair| matches!(pair.1, Cow::Borrowed(_))));
    }

    #[test]
    fn the_canonical_text_of_the_contract() {
        let text = "/ws/connect\npid=1&type=1&uid=u%201";
        assert_eq!(canonical("uid=u+1&pid=1&sign=00&type=1", "/ws/connect"), text);
        assert_eq!(canonical("uid=u%201&type=%31&pid=1", "/ws/connect"), text);
        assert_eq!(
            canonical("b=%7e%2f%e9%80%80*&a-b._=&A", "/"),
            "/\nA=&a-b._=&b=~%2F%E9%80%80%2A"
        );
        assert_eq!(canonical("sign=00", "/p"), "/p\n");
    }

    #[test]
    fn malformed_parameters_are_refused() {
        for bad in [
            "a=%", "a=%2", "a=%zz", "a=%+1", "%=1", "a=%ff", "a=%C3", "a=1&a=1", "a&%61", "x=1&a&x",
        ] {
            assert_eq!(Params::parse(bad.as_bytes()).map_err(|e| e.status), Err(400), "{bad}");
        }
        assert!(Params::parse(b"a=\xff").is_err());
        let many = |count: usize| (0..count).map(|i| format!("p{i}&")).collect::<String>();
        assert!(Params::parse(many(256).as_bytes()).is_ok());
        assert!(Params::parse(many(257).as_bytes()).is_err());
    }

    #[test]
    fn a_refusal_names_the_parameter() {
        let msg = |text: &str| Params::parse(text.as_bytes()).unwrap_err().msg;
        assert_eq!(msg("uid=1&a=2&u%69d=3"), "the parameter \"uid\" is given twice");
        assert_eq!(msg("a%0a=1&a%0a"), "the parameter \"a\\n\" is given twice");
        assert_eq!(msg("uid=%ff"), "the parameter \"uid\" is not UTF-8");
        assert!(msg("uid=%4").starts_with("the parameter \"uid\" has a % that is not"));
        assert!(msg("%zz=1").starts_with("the name of a parameter has a % that is not"));
        let long = "n".repeat(9_000);
        assert!(msg(&format!("{long}&{long}")).len() < 100);
    }

    proptest! {
        #[test]
        fn any_bytes_cut_anywhere_never_panic(bytes in vec(any::<u8>(), 0..60)) {
            for cut in 0..=bytes.len() {
                let _ = Params::parse(&bytes[..cut]);
            }
        }

        #[test]
        fn what_is_encoded_is_decoded(
            pairs in btree_map("\\PC{0,9}", "\\PC{0,9}", 0..6),
        ) {
            let mut text = Vec::new();
            for (name, value) in &pairs {
                encode(name, &mut text);
                text.push(b'=');
                encode(value, &mut text);
                text.push(b'&');
            }
            let params = Params::parse(&text).unwrap();
            for (name, value) in &pairs {
                prop_assert_eq!(params.get(name), Some(value.as_str()));
            }
        }
    }
}
