//! The client side: parses frames of this server and encodes frames to it. Used by the load tool,
//! not by the server.
//!
//! Its frames are masked with zeros, so that no payload has to be changed. A predictable mask does
//! not protect proxies on the way (RFC 6455 section 10.3), so this is for tools only.

use super::head::{Head, Sender};
use super::{CONTROL_PAYLOAD_BYTES, OpCode, Violation, close, protocol_error, write_length};

const MASK_BIT: u8 = 0x80;
const MASK: [u8; 4] = [0; 4];

/// A Close frame with code 1000.
pub const CLOSE_NORMAL: &[u8] = &[0x88, 0x82, 0, 0, 0, 0, 0x03, 0xe8];

/// A complete frame of the server.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Frame<'a> {
    pub opcode: OpCode,
    pub payload: &'a [u8],
    /// Length of head and payload: the next frame starts after it.
    pub bytes: usize,
}

/// Parses the frame at the start of `bytes`; `Ok(None)`: incomplete.
///
/// The server sends each message in one frame, so a fragment is a violation. Text is not checked
/// for UTF-8.
#[inline]
pub fn read_frame(bytes: &[u8], max_bytes: usize) -> Result<Option<Frame<'_>>, Violation> {
    let Some(head) = Head::parse(bytes, Sender::Server)? else { return Ok(None) };
    if !head.fin || head.opcode == OpCode::Continuation {
        return Err(protocol_error("a fragmented message, which this server never sends"));
    }
    if head.payload_bytes > max_bytes as u64 {
        return Err(Violation { code: close::TOO_BIG, msg: "message too big" });
    }
    let end = head.head_bytes + head.payload_bytes as usize;
    let payload = bytes.get(head.head_bytes..end);
    Ok(payload.map(|payload| Frame { opcode: head.opcode, payload, bytes: end }))
}

/// Appends a text frame whose payload is the joined `parts`.
pub fn write_text(out: &mut Vec<u8>, parts: &[&[u8]]) {
    let payload_bytes = parts.iter().map(|part| part.len()).sum();
    write_length(out, OpCode::Text, payload_bytes, MASK_BIT);
    out.extend_from_slice(&MASK);
    for part in parts {
        out.extend_from_slice(part);
    }
}

/// Appends the reply to a Ping.
pub fn write_pong(out: &mut Vec<u8>, payload: &[u8]) {
    let payload = &payload[..payload.len().min(CONTROL_PAYLOAD_BYTES)];
    write_length(out, OpCode::Pong, payload.len(), MASK_BIT);
    out.extend_from_slice(&MASK);
    out.extend_from_slice(payload);
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;

    use super::super::{Inbound, Message, write_frame};
    use super::*;

    const MAX_BYTES: usize = 1 << 20;

    #[test]
    fn a_frame_cut_at_every_byte_is_incomplete() {
        for length in [0, 1, 125, 126, 127, 65_535, 65_536, 70_000] {
            let payload = vec![b'x'; length];
            let mut bytes = Vec::new();
            write_frame(&mut bytes, OpCode::Text, &payload);
            let end = bytes.len();
            let step = if length > 1_000 { 97 } else { 1 };
            for cut in (0..end).step_by(step).chain(end.saturating_sub(20)..end) {
                assert_eq!(read_frame(&bytes[..cut], MAX_BYTES), Ok(None), "{length}: {cut}");
            }
            let frame = Frame { opcode: OpCode::Text, payload: &payload, bytes: end };
            assert_eq!(read_frame(&bytes, MAX_BYTES), Ok(Some(frame)));
            let followed = [&bytes[..], &[0x81, 5]].concat();
            assert_eq!(read_frame(&followed, MAX_BYTES), Ok(Some(frame)));
        }
    }

    #[test]
    fn what_no_server_may_send_is_a_violation() {
        let code = |bytes: &[u8]| read_frame(bytes, MAX_BYTES).unwrap_err().code;
        assert_eq!(code(&[0x81, 0x85]), 1002, "masked");
        assert_eq!(code(&[0x01, 0x05]), 1002, "first fragment");
        assert_eq!(code(&[0x80, 0x05]), 1002, "last fragment");
        assert_eq!(code(&[0xc1, 0x05]), 1002, "extension bit");
        assert_eq!(code(&[0x83]), 1002, "reserved opcode");
        assert_eq!(code(&[0x81, 126, 0, 125]), 1002, "not the shortest length");
        assert_eq!(code(&[0x81, 127, 0xff, 0, 0, 0, 0, 0, 0, 0]), 1002, "length above 2^63");
        assert_eq!(code(&[0x81, 127, 0, 0, 0, 0, 0, 0x10, 0, 1]), 1009, "too big");
    }

    #[test]
    fn the_server_reads_what_a_client_writes() {
        let long = vec![b'x'; 65_536];
        let mut bytes = Vec::new();
        write_text(&mut bytes, &[b"h", b"i"]);
        assert_eq!(bytes, [0x81, 0x82, 0, 0, 0, 0, b'h', b'i']);
        write_text(&mut bytes, &[&long[..125]]);
        write_text(&mut bytes, &[&long[..126]]);
        write_text(&mut bytes, &[&long[..65_535]]);
        write_text(&mut bytes, &[&long]);
        write_pong(&mut bytes, b"hi");
        bytes.extend(CLOSE_NORMAL);
        let mut seen = Vec::new();
        Inbound::read(&mut None, &mut bytes, MAX_BYTES, &mut |message| {
            seen.push(match message {
                Message::Text(text) => format!("text of {}", text.len()),
                other => format!("{other:?}"),
            });
            ControlFlow::Continue(())
        })
        .unwrap();
        let texts = [2, 125, 126, 65_535, 65_536].map(|bytes| format!("text of {bytes}"));
        assert_eq!(seen[..5], texts);
        assert_eq!(seen[5..], ["Pong([104, 105])", "Close(1000)"]);
    }
}
