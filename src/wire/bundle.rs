//! A bundle: several envelopes of one channel in one publication, so that Redis processes one
//! command for all of them.
//!
//! Layout, little-endian: version u8 (1), kind u8 (255), then for each envelope its length u32 and
//! its bytes. A single envelope is published without a bundle.

use super::envelope::EnvelopeError;

/// Maximum number of envelopes in one bundle. The deliveries of a bundle are flushed together, so
/// this bounds how long other work waits.
pub const MAX_ENVELOPES: usize = 16;
/// No envelope is added that would make a bundle longer than this.
pub const MAX_BYTES: usize = 64 << 10;

/// Maximum accepted from other nodes, which may be newer and bundle more. A longer bundle is
/// rejected as a whole.
pub const MAX_RECEIVED_ENVELOPES: usize = 4 * MAX_ENVELOPES;
pub const MAX_RECEIVED_BYTES: usize = 4 * MAX_BYTES;

const HEAD: &[u8] = &[1, 255];
pub const LENGTH_BYTES: usize = 4;

/// Appends an envelope of `length` bytes, written by `write`, in the format of a bundle; returns
/// its bytes.
pub fn add(out: &mut Vec<u8>, length: usize, write: impl FnOnce(&mut Vec<u8>)) -> &mut [u8] {
    out.extend_from_slice(&(length as u32).to_le_bytes());
    let start = out.len();
    write(out);
    debug_assert_eq!(out.len() - start, length);
    &mut out[start..]
}

/// Returns the payload for a number of consecutive [`add`]ed envelopes, in two pieces.
pub fn payload(added: &[u8], envelopes: usize) -> (&'static [u8], &[u8]) {
    match added.get(LENGTH_BYTES..) {
        Some(alone) if envelopes == 1 => (&[], alone),
        _ => (HEAD, added),
    }
}

/// Iterates over consecutive [`add`]ed envelopes.
pub fn added(added: &[u8]) -> impl Iterator<Item = &[u8]> {
    Envelopes { rest: added, is_bundle: true, left: usize::MAX }.map_while(Result::ok)
}

/// Returns the envelopes of a payload: those of a bundle, or the payload itself.
pub fn envelopes(payload: &[u8]) -> Envelopes<'_> {
    match payload.strip_prefix(HEAD) {
        Some(rest) => Envelopes { rest, is_bundle: true, left: MAX_RECEIVED_ENVELOPES },
        None => Envelopes { rest: payload, is_bundle: false, left: 1 },
    }
}

/// See [`envelopes`].
#[derive(Debug, Clone)]
pub struct Envelopes<'a> {
    rest: &'a [u8],
    is_bundle: bool,
    left: usize,
}

impl<'a> Iterator for Envelopes<'a> {
    type Item = Result<&'a [u8], EnvelopeError>;

    fn next(&mut self) -> Option<Self::Item> {
        if !self.is_bundle {
            self.is_bundle = true;
            return Some(Ok(std::mem::take(&mut self.rest)));
        }
        if self.rest.is_empty() {
            return None;
        }
        let rest = std::mem::take(&mut self.rest);
        if self.left == 0 {
            return Some(Err(EnvelopeError::TooMany(MAX_RECEIVED_ENVELOPES)));
        }
        if self.left == MAX_RECEIVED_ENVELOPES && rest.len() > MAX_RECEIVED_BYTES {
            return Some(Err(EnvelopeError::TooLong(MAX_RECEIVED_BYTES)));
        }
        self.left -= 1;
        let envelope = rest
            .split_first_chunk()
            .and_then(|(length, rest)| rest.split_at_checked(u32::from_le_bytes(*length) as usize));
        Some(match envelope {
            Some((envelope, rest)) => {
                self.rest = rest;
                Ok(envelope)
            }
            None => Err(EnvelopeError::Truncated),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    #[test]
    fn an_envelope_alone_is_its_own_payload() {
        for payload in [&b""[..], b"\x01", b"\x01\x00 an envelope"] {
            assert_eq!(envelopes(payload).collect::<Vec<_>>(), [Ok(payload)]);
        }
        assert_eq!(envelopes(HEAD).count(), 0);
    }

    #[test]
    fn a_bundle_is_bounded_in_envelopes_and_in_bytes() {
        let empty = [HEAD, &[0; 16 << 10]].concat();
        let found: Vec<_> = envelopes(&empty).collect();
        assert_eq!(found.len(), MAX_RECEIVED_ENVELOPES + 1);
        assert_eq!(found.last(), Some(&Err(EnvelopeError::TooMany(MAX_RECEIVED_ENVELOPES))));
        let long = [HEAD, &vec![0; 16 << 20]].concat();
        let found: Vec<_> = envelopes(&long).collect();
        assert_eq!(found, [Err(EnvelopeError::TooLong(MAX_RECEIVED_BYTES))]);
    }

    proptest! {
        #[test]
        fn what_is_bundled_comes_out_and_a_cut_bundle_ends_with_an_error(
            list in vec(vec(any::<u8>(), 0..40), 1..20),
        ) {
            let mut together = Vec::new();
            for envelope in &list {
                let write = |out: &mut Vec<u8>| out.extend_from_slice(envelope);
                prop_assert_eq!(add(&mut together, envelope.len(), write), &envelope[..]);
            }
            prop_assert!(added(&together).eq(list.iter().map(Vec::as_slice)));
            let (head, rest) = payload(&together, list.len());
            if list.len() == 1 {
                prop_assert_eq!([head, rest].concat(), &list[0][..]);
            }
            let payload = [HEAD, &together].concat();
            if list.len() > 1 {
                prop_assert_eq!([head, rest].concat(), &payload[..]);
            }
            let found: Result<Vec<_>, _> = envelopes(&payload).collect();
            prop_assert_eq!(found, Ok(list.iter().map(Vec::as_slice).collect()));
            let mut end = payload.len();
            for whole in (0..list.len()).rev() {
                end -= list[whole].len() + LENGTH_BYTES;
                let next = end + LENGTH_BYTES + list[whole].len();
                for cut in end + 1..next {
                    let found: Vec<_> = envelopes(&payload[..cut]).collect();
                    prop_assert_eq!(found.len(), whole + 1);
                    prop_assert!(found[..whole].iter().all(Result::is_ok));
                    prop_assert_eq!(found[whole], Err(EnvelopeError::Truncated));
                }
            }
        }
    }
}
