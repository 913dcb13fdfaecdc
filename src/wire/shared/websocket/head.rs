//! The head of a frame, from either side.

use fastwebsockets::OpCode;

use super::{CONTROL_PAYLOAD_BYTES, Violation, protocol_error};

/// A client must mask its frames, a server must not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sender {
    Client,
    Server,
}

#[derive(Debug)]
pub struct Head {
    pub fin: bool,
    pub opcode: OpCode,
    /// Zeros, which change nothing, in a server's frame.
    pub mask: [u8; 4],
    pub head_bytes: usize,
    pub payload_bytes: u64,
}

impl Head {
    /// Parses a head. `Ok(None)`: incomplete. A violation is reported as soon as its byte has
    /// arrived.
    #[inline(always)]
    pub fn parse(bytes: &[u8], sender: Sender) -> Result<Option<Self>, Violation> {
        let Some(&first) = bytes.first() else { return Ok(None) };
        if first & 0x70 != 0 {
            return Err(protocol_error("a reserved bit is set (RFC 6455 section 5.2)"));
        }
        let fin = first & 0x80 != 0;
        let opcode = OpCode::try_from(first & 0x0f)
            .map_err(|_| protocol_error("a reserved opcode (RFC 6455 section 5.2)"))?;
        let control = is_control(opcode);
        if control && !fin {
            return Err(protocol_error("a fragmented control frame (RFC 6455 section 5.5)"));
        }
        let Some(&second) = bytes.get(1) else { return Ok(None) };
        match (sender, second & 0x80 != 0) {
            (Sender::Client, true) | (Sender::Server, false) => {}
            (Sender::Client, false) => {
                return Err(protocol_error("an unmasked client frame (RFC 6455 section 5.1)"));
            }
            (Sender::Server, true) => {
                return Err(protocol_error("a masked server frame (RFC 6455 section 5.1)"));
            }
        }
        let short = usize::from(second & 0x7f);
        if control && short > CONTROL_PAYLOAD_BYTES {
            return Err(protocol_error("a control frame over 125 bytes (RFC 6455 section 5.5)"));
        }
        let extended_bytes = match short {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        let Some(extended) = bytes.get(2..2 + extended_bytes) else { return Ok(None) };
        let payload_bytes = if extended_bytes == 0 {
            short as u64
        } else {
            let length = extended.iter().fold(0u64, |sum, &byte| sum << 8 | u64::from(byte));
            let minimal = if extended_bytes == 2 { length > 125 } else { length > 0xffff };
            if !minimal || length >> 63 != 0 {
                return Err(protocol_error(
                    "a length not in its shortest form (RFC 6455 section 5.2)",
                ));
            }
            length
        };
        let mut head_bytes = 2 + extended_bytes;
        let mut mask = [0; 4];
        if sender == Sender::Client {
            let Some(given) = bytes[head_bytes..].first_chunk() else { return Ok(None) };
            mask = *given;
            head_bytes += mask.len();
        }
        Ok(Some(Self { fin, opcode, mask, head_bytes, payload_bytes }))
    }

    pub fn is_control(&self) -> bool {
        is_control(self.opcode)
    }
}

fn is_control(opcode: OpCode) -> bool {
    matches!(opcode, OpCode::Close | OpCode::Ping | OpCode::Pong)
}
