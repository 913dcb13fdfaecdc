//! RFC 6455 frames as a client sees them.

/// What the next bytes of a stream are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Not a whole frame yet.
    Incomplete,
    Frame(Head),
    /// Something that no server may send.
    Broken(&'static str),
}

/// A whole frame: its payload is at `start..end`, the next one begins at `end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    pub opcode: u8,
    pub start: usize,
    pub end: usize,
}

pub const TEXT: u8 = 1;
pub const BINARY: u8 = 2;
pub const CLOSE: u8 = 8;
pub const PING: u8 = 9;

/// Looks at the frame at the beginning of `bytes`.
#[inline]
pub fn parse(bytes: &[u8]) -> Next {
    let [first, second, ..] = *bytes else { return Next::Incomplete };
    if second & 0x80 != 0 {
        return Next::Broken("masked frame from the server");
    }
    if first & 0xf0 != 0x80 {
        return Next::Broken("fragmented or extended frame");
    }
    let (start, len) = match second {
        126 => match bytes.get(2..4) {
            Some(len) => (4, usize::from(u16::from_be_bytes([len[0], len[1]]))),
            None => return Next::Incomplete,
        },
        127 => match bytes.get(2..).and_then(|rest| rest.first_chunk()) {
            Some(len) => (10, u64::from_be_bytes(*len) as usize),
            None => return Next::Incomplete,
        },
        short => (2, usize::from(short)),
    };
    if len > MAX_PAYLOAD {
        return Next::Broken("frame above 64 MiB");
    }
    let end = start + len;
    if bytes.len() < end {
        return Next::Incomplete;
    }
    Next::Frame(Head { opcode: first & 15, start, end })
}

/// Nothing a test sends is near it: beyond, the stream is out of step.
const MAX_PAYLOAD: usize = 64 << 20;

/// A client's Close frame with code 1000, masked with zeros.
pub const CLOSE_1000: &[u8] = &[0x88, 0x82, 0, 0, 0, 0, 0x03, 0xe8];

/// A client's Pong, masked with zeros, which leaves the payload as it is.
pub fn pong(payload: &[u8]) -> Vec<u8> {
    let payload = &payload[..payload.len().min(125)];
    let mut frame = vec![0x8a, 0x80 | payload.len() as u8, 0, 0, 0, 0];
    frame.extend_from_slice(payload);
    frame
}

/// Appends a client's text frame whose payload is these parts, masked with zeros.
pub fn write_text(parts: &[&[u8]], out: &mut Vec<u8>) {
    let len: usize = parts.iter().map(|part| part.len()).sum();
    out.push(0x80 | TEXT);
    match len {
        0..126 => out.push(0x80 | len as u8),
        126..65536 => {
            out.push(0x80 | 126);
            out.extend_from_slice(&(len as u16).to_be_bytes());
        }
        _ => {
            out.push(0x80 | 127);
            out.extend_from_slice(&(len as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(&[0; 4]);
    for part in parts {
        out.extend_from_slice(part);
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// The payloads of these client frames, whose masks are zeros.
    pub fn client_payloads(frames: &[u8]) -> Vec<String> {
        let mut frames = frames.to_vec();
        let mut payloads = Vec::new();
        while !frames.is_empty() {
            unmask(&mut frames);
            let Next::Frame(head) = parse(&frames) else { panic!("not a whole frame") };
            payloads.push(String::from_utf8(frames[head.start..head.end].to_vec()).unwrap());
            frames.drain(..head.end);
        }
        payloads
    }

    /// Makes the first frame one of a server: with a mask of zeros nothing else differs.
    fn unmask(frames: &mut Vec<u8>) {
        frames[1] &= 0x7f;
        let at = match frames[1] {
            126 => 4,
            127 => 10,
            _ => 2,
        };
        frames.drain(at..at + 4);
    }

    fn server_frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![0x80 | opcode];
        match payload.len() {
            len @ 0..126 => frame.push(len as u8),
            len @ 126..65536 => {
                frame.push(126);
                frame.extend_from_slice(&(len as u16).to_be_bytes());
            }
            len => {
                frame.push(127);
                frame.extend_from_slice(&(len as u64).to_be_bytes());
            }
        }
        frame.extend_from_slice(payload);
        frame
    }

    #[test]
    fn cut_at_every_byte() {
        for len in [0, 1, 125, 126, 127, 65535, 65536, 70000] {
            let frame = server_frame(TEXT, &vec![b'x'; len]);
            let step = if len > 1000 { 97 } else { 1 };
            for cut in
                (0..frame.len()).step_by(step).chain(frame.len().saturating_sub(20)..frame.len())
            {
                assert_eq!(parse(&frame[..cut]), Next::Incomplete, "{len} cut at {cut}");
            }
            let whole = Head { opcode: TEXT, start: frame.len() - len, end: frame.len() };
            assert_eq!(parse(&frame), Next::Frame(whole));
            let followed = [frame.as_slice(), &[0x81, 5]].concat();
            assert_eq!(parse(&followed), Next::Frame(whole));
        }
    }

    #[test]
    fn what_no_server_may_send() {
        assert!(matches!(parse(&[0x81, 0x85]), Next::Broken(_)), "masked");
        assert!(matches!(parse(&[0x01, 0x05]), Next::Broken(_)), "fragment");
        assert!(matches!(parse(&[0xc1, 0x05]), Next::Broken(_)), "extension bit");
        let huge = [0x81, 127, 0xff, 0, 0, 0, 0, 0, 0, 0];
        assert!(matches!(parse(&huge), Next::Broken(_)), "length");
    }

    #[test]
    fn a_pong_echoes() {
        assert_eq!(pong(b"hi"), [0x8a, 0x82, 0, 0, 0, 0, b'h', b'i']);
    }

    #[test]
    fn a_text_has_the_shortest_length() {
        let mut out = Vec::new();
        write_text(&[b"h", b"i"], &mut out);
        assert_eq!(out, [0x81, 0x82, 0, 0, 0, 0, b'h', b'i']);
        for len in [125, 126, 65535, 65536] {
            let payload = vec![b'x'; len];
            out.clear();
            write_text(&[&payload], &mut out);
            unmask(&mut out);
            assert_eq!(out, server_frame(TEXT, &payload));
        }
    }
}
