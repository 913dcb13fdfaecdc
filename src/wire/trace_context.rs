//! Trace contexts: the header `traceparent` of W3C Trace Context, and their form in envelopes.

use super::envelope::TRACE_BYTES;

/// A span of a trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceContext {
    pub trace_id: [u8; 16],
    pub span_id: [u8; 8],
    pub is_sampled: bool,
}

impl TraceContext {
    /// Parses `00-<trace id>-<span id>-<flags>`, all in lower-case hexadecimal digits. In a later
    /// version anything that follows is ignored; any other text is `None` and starts a new trace
    /// (section 3.2.2).
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('-');
        let version: [u8; 1] = hex(parts.next()?)?;
        let trace_id: [u8; 16] = hex(parts.next()?)?;
        let span_id: [u8; 8] = hex(parts.next()?)?;
        let flags: [u8; 1] = hex(parts.next()?)?;
        let is_whole = version[0] != 0xff && (version[0] != 0 || parts.next().is_none());
        let is_valid = trace_id != [0; 16] && span_id != [0; 8];
        (is_whole && is_valid).then_some(Self { trace_id, span_id, is_sampled: flags[0] & 1 == 1 })
    }

    pub fn to_bytes(self) -> [u8; TRACE_BYTES] {
        let mut bytes = [0; TRACE_BYTES];
        bytes[..16].copy_from_slice(&self.trace_id);
        bytes[16..24].copy_from_slice(&self.span_id);
        bytes[24] = u8::from(self.is_sampled);
        bytes
    }

    pub fn from_bytes(bytes: &[u8; TRACE_BYTES]) -> Self {
        let (mut trace_id, mut span_id) = ([0; 16], [0; 8]);
        trace_id.copy_from_slice(&bytes[..16]);
        span_id.copy_from_slice(&bytes[16..24]);
        Self { trace_id, span_id, is_sampled: bytes[24] & 1 == 1 }
    }
}

fn hex<const N: usize>(digits: &str) -> Option<[u8; N]> {
    let digits = digits.as_bytes();
    let is_lower = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    if digits.len() != 2 * N || !digits.iter().all(is_lower) {
        return None;
    }
    let value = |byte: u8| if byte <= b'9' { byte - b'0' } else { byte - b'a' + 10 };
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = value(pair[0]) << 4 | value(pair[1]);
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_example_of_the_specification() {
        let text = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let context = TraceContext::parse(text).unwrap();
        assert_eq!(context.trace_id[..2], [0x0a, 0xf7]);
        assert_eq!(context.span_id[6..], [0x33, 0x31]);
        assert!(context.is_sampled);
        assert_eq!(TraceContext::from_bytes(&context.to_bytes()), context);
        let later = text.replacen("00", "cc", 1) + "-what-the-future-holds";
        assert_eq!(TraceContext::parse(&later), Some(context));
        assert!(!TraceContext::parse(&(text[..53].to_owned() + "00")).unwrap().is_sampled);
    }

    #[test]
    fn what_is_not_a_context_is_none() {
        for bad in [
            "",
            "00",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-x",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319-b7ad6b7169203331-01",
        ] {
            assert_eq!(TraceContext::parse(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_a_panic(text in "[0-9a-fé-]{0,60}") {
            let _ = TraceContext::parse(&text);
        }
    }
}
