//! Strict WebSocket frames (RFC 6455): parses those of a client and encodes those of the server.
//!
//! [`Inbound::read`] turns bytes into [`Message`]s in place: it unmasks in the caller's buffer,
//! keeps the rest of a frame only while there is one, and reports every violation with its close
//! code. [`client`] is the other side.

mod head;

pub mod client;

use fastwebsockets::unmask;
use std::ops::ControlFlow;

use head::{Head, Sender};

pub use fastwebsockets::OpCode;

/// Maximum length of a server frame's head.
const MAX_HEAD_BYTES: usize = 10;
/// Maximum payload of a control frame (RFC 6455 section 5.5).
const CONTROL_PAYLOAD_BYTES: usize = 125;

/// Close codes of the contract.
pub mod close {
    pub const NORMAL: u16 = 1000;
    pub const GOING_AWAY: u16 = 1001;
    pub const PROTOCOL: u16 = 1002;
    pub const NOT_UTF8: u16 = 1007;
    pub const POLICY: u16 = 1008;
    pub const TOO_BIG: u16 = 1009;
    pub const SLOW_CONSUMER: u16 = 4000;
    pub const IDLE: u16 = 4002;
    pub const SESSION_EXPIRED: u16 = 4003;
}

/// A violation of the protocol, with the close code for the peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{msg} (close code {code})")]
pub struct Violation {
    pub code: u16,
    pub msg: &'static str,
}

const fn protocol_error(msg: &'static str) -> Violation {
    Violation { code: close::PROTOCOL, msg }
}

/// One complete message or control frame, unmasked.
#[derive(Debug, PartialEq, Eq)]
pub enum Message<'a> {
    /// Valid UTF-8.
    Text(&'a [u8]),
    Binary(&'a [u8]),
    Ping(&'a [u8]),
    Pong(&'a [u8]),
    /// The code is one that may be sent back; 1000 if the peer gave none.
    Close(u16),
}

impl Message<'_> {
    /// Whether it is a control frame rather than an application message.
    pub fn is_control(&self) -> bool {
        matches!(self, Self::Ping(_) | Self::Pong(_) | Self::Close(_))
    }
}

/// What happens to the bytes after the message at which reading stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rest {
    /// They are read together with the next ones.
    Kept,
    Dropped,
}

/// State that a connection keeps between reads: the bytes of an incomplete frame and the fragments
/// of an incomplete message. It exists only while there is either.
#[derive(Debug, Default)]
pub struct Inbound {
    raw: Vec<u8>,
    message: Vec<u8>,
    /// `Text` or `Binary` while a fragmented message is incomplete.
    kind: Option<OpCode>,
    /// Length of the prefix of `message` known to be valid UTF-8.
    valid: usize,
    /// For the owner: when the first of the kept bytes arrived.
    pub since_ms: u64,
}

impl Inbound {
    /// Reads `fresh` after the bytes in `kept` and passes every complete message to `on`, in order,
    /// until `on` stops it or a rule is violated.
    ///
    /// `max_bytes` limits a message's payload, all fragments together.
    pub fn read(
        kept: &mut Option<Box<Self>>,
        fresh: &mut [u8],
        max_bytes: usize,
        on: &mut impl FnMut(Message<'_>) -> ControlFlow<Rest>,
    ) -> Result<(), Violation> {
        let Some(mut inbound) = kept.take() else {
            let mut inbound = Self::default();
            let consumed = inbound.drain(fresh, max_bytes, on)?;
            if let Some(consumed) = consumed {
                inbound.raw.extend_from_slice(&fresh[consumed..]);
                if !inbound.is_idle() {
                    *kept = Some(Box::new(inbound));
                }
            }
            return Ok(());
        };
        let consumed = if inbound.raw.is_empty() {
            let consumed = inbound.drain(fresh, max_bytes, on)?;
            if let Some(consumed) = consumed {
                inbound.raw.extend_from_slice(&fresh[consumed..]);
            }
            consumed
        } else {
            let mut raw = std::mem::take(&mut inbound.raw);
            raw.extend_from_slice(fresh);
            let consumed = inbound.drain(&mut raw, max_bytes, on)?;
            if let Some(consumed) = consumed {
                raw.drain(..consumed);
            }
            inbound.raw = raw;
            consumed
        };
        if consumed.is_some() && !inbound.is_idle() {
            *kept = Some(inbound);
        }
        Ok(())
    }

    /// Keeps `fresh` for the next read.
    pub fn keep(kept: &mut Option<Box<Self>>, fresh: &[u8]) {
        if !fresh.is_empty() {
            kept.get_or_insert_default().raw.extend_from_slice(fresh);
        }
    }

    /// Number of kept bytes that are not yet parsed as frames.
    pub fn raw_bytes(&self) -> usize {
        self.raw.len()
    }

    /// Bytes of memory allocated.
    pub fn allocated_bytes(&self) -> usize {
        size_of::<Self>() + self.raw.capacity() + self.message.capacity()
    }

    /// Whether a fragmented message is incomplete.
    pub fn is_fragmented(&self) -> bool {
        self.kind.is_some()
    }

    fn is_idle(&self) -> bool {
        self.raw.is_empty() && self.kind.is_none()
    }

    /// Parses the complete frames of `bytes`; returns the number of bytes used, `None` if the rest
    /// is dropped.
    fn drain(
        &mut self,
        bytes: &mut [u8],
        max_bytes: usize,
        on: &mut impl FnMut(Message<'_>) -> ControlFlow<Rest>,
    ) -> Result<Option<usize>, Violation> {
        let mut at = 0;
        while let Some(head) = Head::parse(&bytes[at..], Sender::Client)? {
            let joined = if head.is_control() { 0 } else { self.message.len() };
            if head.payload_bytes > (max_bytes as u64).saturating_sub(joined as u64) {
                return Err(Violation { code: close::TOO_BIG, msg: "message too big" });
            }
            let start = at + head.head_bytes;
            let end = start + head.payload_bytes as usize;
            if bytes.len() < end {
                break;
            }
            let payload = &mut bytes[start..end];
            unmask(payload, head.mask);
            at = end;
            match self.handle_frame(&head, payload, on)? {
                ControlFlow::Continue(()) => {}
                ControlFlow::Break(Rest::Kept) => break,
                ControlFlow::Break(Rest::Dropped) => return Ok(None),
            }
        }
        Ok(Some(at))
    }

    fn handle_frame(
        &mut self,
        head: &Head,
        payload: &[u8],
        on: &mut impl FnMut(Message<'_>) -> ControlFlow<Rest>,
    ) -> Result<ControlFlow<Rest>, Violation> {
        match (head.opcode, self.kind) {
            (OpCode::Ping, _) => Ok(on(Message::Ping(payload))),
            (OpCode::Pong, _) => Ok(on(Message::Pong(payload))),
            (OpCode::Close, _) => Ok(on(Message::Close(close_code(payload)?))),
            (OpCode::Continuation, None) => Err(protocol_error(
                "a continuation frame without a message to continue (RFC 6455 section 5.4)",
            )),
            (OpCode::Text | OpCode::Binary, Some(_)) => {
                Err(protocol_error("a new message inside a fragmented one (RFC 6455 section 5.4)"))
            }
            (OpCode::Text, None) if head.fin => {
                simdutf8::basic::from_utf8(payload).map_err(|_| NOT_UTF8)?;
                Ok(on(Message::Text(payload)))
            }
            (OpCode::Binary, None) if head.fin => Ok(on(Message::Binary(payload))),
            (opcode, _) => {
                let kind = *self.kind.get_or_insert(opcode);
                self.message.extend_from_slice(payload);
                if kind == OpCode::Text {
                    self.check_utf8(head.fin)?;
                }
                if !head.fin {
                    return Ok(ControlFlow::Continue(()));
                }
                let message = std::mem::take(&mut self.message);
                self.kind = None;
                self.valid = 0;
                Ok(on(if kind == OpCode::Text {
                    Message::Text(&message)
                } else {
                    Message::Binary(&message)
                }))
            }
        }
    }

    /// Checks the text of the fragments received so far; a character may be cut only if more
    /// follows.
    fn check_utf8(&mut self, whole: bool) -> Result<(), Violation> {
        match simdutf8::compat::from_utf8(&self.message[self.valid..]) {
            Ok(text) => self.valid += text.len(),
            Err(error) if error.error_len().is_none() && !whole => {
                self.valid += error.valid_up_to()
            }
            Err(_) => return Err(NOT_UTF8),
        }
        Ok(())
    }
}

const NOT_UTF8: Violation = Violation { code: close::NOT_UTF8, msg: "text is not UTF-8" };

/// Returns the code to answer a Close frame with (RFC 6455 sections 5.5.1 and 7.4).
fn close_code(payload: &[u8]) -> Result<u16, Violation> {
    match payload {
        [] => Ok(close::NORMAL),
        [_] => {
            Err(protocol_error("a close frame with a payload of one byte (RFC 6455 section 5.5.1)"))
        }
        [high, low, reason @ ..] => {
            let code = u16::from_be_bytes([*high, *low]);
            // RFC 6455 and later IANA registrations (1012 to 1014); then the ranges free for use.
            if !matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999) {
                return Err(protocol_error(
                    "a close code that must not be sent (RFC 6455 section 7.4)",
                ));
            }
            simdutf8::basic::from_utf8(reason).map_err(|_| NOT_UTF8)?;
            Ok(code)
        }
    }
}

/// Appends an unmasked frame to `out`.
pub fn write_frame(out: &mut Vec<u8>, opcode: OpCode, payload: &[u8]) {
    write_head(out, opcode, payload.len());
    out.extend_from_slice(payload);
}

/// Appends the head of an unmasked, final frame whose payload of `payload_bytes` follows.
pub fn write_head(out: &mut Vec<u8>, opcode: OpCode, payload_bytes: usize) {
    write_length(out, opcode, payload_bytes, 0);
}

/// Appends the head of a final frame up to its length, with `mask_bit` in the length byte.
#[inline(always)]
fn write_length(out: &mut Vec<u8>, opcode: OpCode, payload_bytes: usize, mask_bit: u8) {
    out.push(0x80 | opcode as u8);
    if payload_bytes <= CONTROL_PAYLOAD_BYTES {
        out.push(mask_bit | payload_bytes as u8);
    } else if let Ok(length) = u16::try_from(payload_bytes) {
        out.push(mask_bit | 126);
        out.extend_from_slice(&length.to_be_bytes());
    } else {
        out.push(mask_bit | 127);
        out.extend_from_slice(&(payload_bytes as u64).to_be_bytes());
    }
}

/// Returns the number of bytes that [`write_head`] appends.
pub fn head_bytes(payload_bytes: usize) -> usize {
    match payload_bytes {
        0..=CONTROL_PAYLOAD_BYTES => 2,
        126..=0xffff => 4,
        _ => MAX_HEAD_BYTES,
    }
}

/// Appends a text frame whose payload `write` appends; its length need not be known in advance.
pub fn write_text(out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    write(out);
    let payload_bytes = out.len() - start - 4;
    if payload_bytes <= CONTROL_PAYLOAD_BYTES {
        out.copy_within(start + 4.., start + 2);
        out.truncate(out.len() - 2);
        out[start..start + 2].copy_from_slice(&[0x80 | OpCode::Text as u8, payload_bytes as u8]);
    } else if let Ok(length) = u16::try_from(payload_bytes) {
        let [high, low] = length.to_be_bytes();
        out[start..start + 4].copy_from_slice(&[0x80 | OpCode::Text as u8, 126, high, low]);
    } else {
        let mut head = Vec::with_capacity(MAX_HEAD_BYTES);
        write_head(&mut head, OpCode::Text, payload_bytes);
        out.splice(start..start + 4, head);
    }
}

/// Appends a Close frame. `reason` is truncated to fit a control frame, at a character boundary.
pub fn write_close(out: &mut Vec<u8>, code: u16, reason: &str) {
    let reason = &reason[..reason.floor_char_boundary(CONTROL_PAYLOAD_BYTES - 2)];
    write_head(out, OpCode::Close, 2 + reason.len());
    out.extend_from_slice(&code.to_be_bytes());
    out.extend_from_slice(reason.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// An owned copy of what was read.
    #[derive(Debug, Clone, PartialEq)]
    enum Seen {
        Text(Vec<u8>),
        Binary(Vec<u8>),
        Ping(Vec<u8>),
        Pong(Vec<u8>),
        Close(u16),
    }

    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut out = vec![first];
        match payload.len() {
            n @ 0..126 => out.push(0x80 | n as u8),
            n @ 126..=0xffff => {
                out.push(0x80 | 126);
                out.extend((n as u16).to_be_bytes());
            }
            n => {
                out.push(0x80 | 127);
                out.extend((n as u64).to_be_bytes());
            }
        }
        let mask = [7, 200, 3, 91];
        out.extend(mask);
        out.extend(payload.iter().enumerate().map(|(i, b)| b ^ mask[i % 4]));
        out
    }

    fn read_in_parts(bytes: &[u8], cut: usize, max: usize) -> (Vec<Seen>, Option<u16>, bool) {
        let mut kept = None;
        let mut seen = Vec::new();
        for part in [&bytes[..cut], &bytes[cut..]] {
            let result = Inbound::read(&mut kept, &mut part.to_vec(), max, &mut |message| {
                seen.push(match message {
                    Message::Text(b) => Seen::Text(b.to_vec()),
                    Message::Binary(b) => Seen::Binary(b.to_vec()),
                    Message::Ping(b) => Seen::Ping(b.to_vec()),
                    Message::Pong(b) => Seen::Pong(b.to_vec()),
                    Message::Close(code) => Seen::Close(code),
                });
                ControlFlow::Continue(())
            });
            if let Err(violation) = result {
                return (seen, Some(violation.code), false);
            }
        }
        (seen, None, kept.is_some())
    }

    /// Reads the bytes split at every position: the outcome is the same.
    fn read(bytes: &[u8], max: usize) -> (Vec<Seen>, Option<u16>, bool) {
        let whole = read_in_parts(bytes, 0, max);
        for cut in 1..=bytes.len() {
            assert_eq!(read_in_parts(bytes, cut, max), whole, "cut at {cut}");
        }
        whole
    }

    #[test]
    fn whole_and_fragmented_messages_arrive() {
        let mut bytes = frame(0x81, b"hi");
        bytes.extend(frame(0x01, "é".as_bytes().split_at(1).0));
        bytes.extend(frame(0x89, b"now"));
        bytes.extend(frame(0x80, "é".as_bytes().split_at(1).1));
        bytes.extend(frame(0x02, &[255]));
        bytes.extend(frame(0x00, &[]));
        bytes.extend(frame(0x80, &[254]));
        bytes.extend(frame(0x8a, b""));
        bytes.extend(frame(0x88, &[3, 232]));
        let expected = vec![
            Seen::Text(b"hi".into()),
            Seen::Ping(b"now".into()),
            Seen::Text("é".into()),
            Seen::Binary(vec![255, 254]),
            Seen::Pong(vec![]),
            Seen::Close(1000),
        ];
        assert_eq!(read(&bytes, 100), (expected, None, false));
    }

    #[test]
    fn every_violation_has_its_code() {
        let cases: &[(&[u8], u16)] = &[
            (&[0xc1], 1002),
            (&[0xa1], 1002),
            (&[0x91], 1002),
            (&[0x83], 1002),
            (&[0x8b], 1002),
            (&[0x81, 0x02], 1002),
            (&[0x09], 1002),
            (&[0x89, 0x80 | 126], 1002),
            (&[0x81, 0x80 | 126, 0, 125], 1002),
            (&[0x81, 0x80 | 127, 0, 0, 0, 0, 0, 0, 255, 255], 1002),
            (&[0x81, 0x80 | 127, 128, 0, 0, 0, 0, 1, 0, 0], 1002),
        ];
        for (bytes, code) in cases {
            assert_eq!(read(bytes, 1 << 20).1, Some(*code), "{bytes:x?}");
        }
        assert_eq!(read(&frame(0x80, b"x"), 100).1, Some(1002));
        let both = [frame(0x01, b"x"), frame(0x81, b"y")].concat();
        assert_eq!(read(&both, 100).1, Some(1002));
        assert_eq!(read(&frame(0x81, &[0xff]), 100).1, Some(1007));
        assert_eq!(read(&frame(0x01, &[0x61, 0xff]), 100).1, Some(1007));
        assert_eq!(read(&frame(0x88, &[3]), 100).1, Some(1002));
        assert_eq!(read(&frame(0x88, &[3, 232, 0xff]), 100).1, Some(1007));
        for code in [0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65535u16] {
            assert_eq!(read(&frame(0x88, &code.to_be_bytes()), 100).1, Some(1002), "{code}");
        }
        for code in [1000, 1001, 1007, 1011, 1012, 1014, 3000, 3999, 4000, 4999u16] {
            assert_eq!(read(&frame(0x88, &code.to_be_bytes()), 100).0, [Seen::Close(code)]);
        }
    }

    #[test]
    fn a_message_over_the_limit_is_refused_before_it_is_there() {
        assert_eq!(read(&frame(0x82, &[1; 100]), 100).1, None);
        assert_eq!(read(&frame(0x82, &[1; 101])[..8], 100).1, Some(1009));
        let fragments = [frame(0x02, &[1; 60]), frame(0x80, &[1; 41])].concat();
        assert_eq!(read(&fragments, 100).1, Some(1009));
    }

    #[test]
    fn breaking_off_drops_the_rest_or_keeps_it() {
        let bytes = [frame(0x81, b"a"), frame(0x81, b"b"), frame(0x81, b"c")].concat();
        for rest in [Rest::Dropped, Rest::Kept] {
            let mut kept = None;
            let mut seen = Vec::new();
            for fresh in [&bytes[..], &[], &[], &[]] {
                Inbound::read(&mut kept, &mut fresh.to_vec(), 100, &mut |message| {
                    seen.push(format!("{message:?}"));
                    ControlFlow::Break(rest)
                })
                .unwrap();
            }
            let all = ["Text([97])", "Text([98])", "Text([99])"];
            let dropped = rest == Rest::Dropped;
            assert_eq!((seen.len(), kept.is_some()), (if dropped { 1 } else { 3 }, false));
            assert_eq!(seen, all[..seen.len()]);
        }
    }

    #[test]
    fn what_is_kept_is_read_first() {
        let bytes = [frame(0x81, b"a"), frame(0x81, b"b")].concat();
        let mut kept = None;
        Inbound::keep(&mut kept, &[]);
        assert!(kept.is_none());
        Inbound::keep(&mut kept, &bytes[..3]);
        Inbound::keep(&mut kept, &bytes[3..8]);
        let mut seen = Vec::new();
        Inbound::read(&mut kept, &mut bytes[8..].to_vec(), 100, &mut |message| {
            seen.push(format!("{message:?}"));
            ControlFlow::Continue(())
        })
        .unwrap();
        assert_eq!(seen, ["Text([97])", "Text([98])"]);
    }

    #[test]
    fn text_written_in_place_makes_the_same_frame() {
        for length in [0, 1, 125, 126, 65_535, 65_536] {
            let mut out = vec![9];
            write_text(&mut out, |out| out.extend(std::iter::repeat_n(b'x', length)));
            let mut direct = vec![9];
            write_frame(&mut direct, OpCode::Text, &vec![b'x'; length]);
            assert_eq!(out, direct);
        }
        let mut out = Vec::new();
        write_close(&mut out, 4000, &"é".repeat(80));
        assert_eq!(out.len(), 2 + 124);
    }

    proptest! {
        #[test]
        fn random_bytes_read_the_same_however_cut(
            bytes in proptest::collection::vec(any::<u8>(), 0..40),
            valid in proptest::collection::vec(
                (0u8..16, any::<bool>(), proptest::collection::vec(any::<u8>(), 0..5)),
                0..6,
            ),
        ) {
            let mut all = Vec::new();
            for (opcode, fin, payload) in valid {
                all.extend(frame(opcode | if fin { 0x80 } else { 0 }, &payload));
            }
            all.extend(bytes);
            read(&all, 30);
        }
    }
}
