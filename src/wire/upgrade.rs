//! The WebSocket opening handshake, server side (RFC 6455, section 4.2).

use base64::Engine;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use sha1::{Digest, Sha1};

use super::date::HttpDate;
use super::http::{Body, Head, HttpError, PROTOCOL, Version};
use super::response::{write_field, write_status_line};

const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
const KEY_BYTES: usize = 16;
const KEY_CHARS: usize = 24;
const ACCEPT_CHARS: usize = 28;

/// Unused bits in the last character of a key may have any value: other servers accept them.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(DecodePaddingMode::RequireCanonical),
);

/// A valid Sec-WebSocket-Key: base64 of 16 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key<'a>(&'a str);

/// Checks that the request is an opening handshake of version 13, and returns its key.
///
/// Fails with 405 if it is not a GET, with 426 if it does not ask for WebSocket version 13, with
/// 400 if the handshake is malformed. The response to a 405 or 426 carries [`refusal_fields`].
pub fn upgrade<'a>(head: &Head<'a>) -> Result<Key<'a>, HttpError> {
    if head.method != "GET" {
        return Err(HttpError { status: 405, msg: "a WebSocket handshake must be a GET" });
    }
    if head.version == Version::Http10 {
        return Err(HttpError::bad("a WebSocket handshake needs HTTP/1.1"));
    }
    if !head.upgrade_websocket || !head.connection_upgrade {
        let msg = "not a WebSocket handshake: send Upgrade: websocket and Connection: Upgrade";
        return Err(HttpError { status: 426, msg });
    }
    if head.sec_websocket_version != Some("13") {
        return Err(HttpError { status: 426, msg: "Sec-WebSocket-Version must be 13" });
    }
    if !matches!(head.body, Body::None | Body::Length(0)) {
        // Its bytes would be taken for frames.
        return Err(HttpError::bad("a WebSocket handshake must not have a body"));
    }
    head.sec_websocket_key
        .and_then(Key::parse)
        .ok_or(HttpError::bad("Sec-WebSocket-Key must be base64 of 16 bytes"))
}

impl<'a> Key<'a> {
    pub fn parse(text: &'a str) -> Option<Self> {
        let mut bytes = [0; KEY_BYTES + 2];
        let decoded = BASE64.decode_slice(text, &mut bytes);
        (text.len() == KEY_CHARS && decoded == Ok(KEY_BYTES)).then_some(Self(text))
    }
}

/// Returns the value of Sec-WebSocket-Accept.
pub fn accept_key(key: Key<'_>) -> [u8; ACCEPT_CHARS] {
    let digest = Sha1::new().chain_update(key.0).chain_update(GUID).finalize();
    let mut accept = [0; ACCEPT_CHARS];
    let written = BASE64.encode_slice(digest, &mut accept);
    debug_assert_eq!(written, Ok(ACCEPT_CHARS));
    accept
}

/// Returns the header fields required in the response to a rejected handshake.
pub fn refusal_fields(status: u16) -> &'static [(&'static str, &'static str)] {
    match status {
        405 => &[("Allow", "GET")],
        // RFC 9110, section 15.5.22: a 426 names the protocol to upgrade to, and Connection lists
        // Upgrade.
        426 => {
            &[("Upgrade", "websocket"), ("Connection", "Upgrade"), ("Sec-WebSocket-Version", "13")]
        }
        _ => &[],
    }
}

/// Appends the 101 that completes the handshake; with [`PROTOCOL`] if it was offered.
pub fn write_switching(
    out: &mut Vec<u8>,
    accept: &[u8; ACCEPT_CHARS],
    date: HttpDate,
    is_offered: bool,
) {
    write_status_line(out, 101, date);
    write_field(out, "Upgrade", "websocket");
    write_field(out, "Connection", "Upgrade");
    out.extend_from_slice(b"Sec-WebSocket-Accept: ");
    out.extend_from_slice(accept);
    out.extend_from_slice(b"\r\n");
    if is_offered {
        write_field(out, "Sec-WebSocket-Protocol", PROTOCOL);
    }
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Limits;
    use crate::wire::http::parse_head;
    use proptest::prelude::*;

    const KEY: &str = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    const UPGRADE: &str = "Upgrade: websocket\r\nConnection: keep-alive, UPGRADE\r\n";
    const VERSION: &str = "Sec-WebSocket-Version: 13\r\n";

    fn status(line: &str, fields: &[&str]) -> u16 {
        let text = format!("{line}\r\nHost: x\r\n{}\r\n", fields.concat());
        let head = parse_head(text.as_bytes(), &Limits::default()).unwrap().unwrap();
        upgrade(&head).map_or_else(|error| error.status, |_| 101)
    }

    #[test]
    fn the_example_of_rfc_6455() {
        let accept = accept_key(Key::parse("dGhlIHNhbXBsZSBub25jZQ==").unwrap());
        assert_eq!(&accept, b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        for (is_offered, field) in [(false, ""), (true, "Sec-WebSocket-Protocol: ws-cluster\r\n")] {
            let mut out = Vec::new();
            write_switching(&mut out, &accept, HttpDate::at(784_111_777), is_offered);
            let start = "HTTP/1.1 101 Switching Protocols\r\n\
                         Date: Sun, 06 Nov 1994 08:49:37 GMT\r\n\
                         Upgrade: websocket\r\nConnection: Upgrade\r\n\
                         Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n";
            assert_eq!(String::from_utf8(out).unwrap(), format!("{start}{field}\r\n"));
        }
    }

    #[test]
    fn handshakes_are_taken_or_refused_with_their_status() {
        let get = "GET /ws/connect HTTP/1.1";
        assert_eq!(status(get, &[UPGRADE, VERSION, KEY]), 101);
        assert_eq!(status(get, &[UPGRADE, VERSION, KEY, "Content-Length: 0\r\n"]), 101);
        assert_eq!(status(get, &[UPGRADE, VERSION, KEY, "Content-Length: 1\r\n"]), 400);
        assert_eq!(status("POST / HTTP/1.1", &[UPGRADE, VERSION, KEY]), 405);
        assert_eq!(status("GET / HTTP/1.0", &[UPGRADE, VERSION, KEY]), 400);
        assert_eq!(status(get, &[]), 426);
        assert_eq!(status(get, &["Upgrade: websocket\r\n", VERSION, KEY]), 426);
        assert_eq!(status(get, &["Upgrade: h2c\r\nConnection: Upgrade\r\n", VERSION, KEY]), 426);
        assert_eq!(status(get, &[UPGRADE, KEY]), 426);
        assert_eq!(status(get, &[UPGRADE, "Sec-WebSocket-Version: 8\r\n", KEY]), 426);
        assert_eq!(status(get, &[UPGRADE, VERSION]), 400);
    }

    #[test]
    fn a_key_is_base64_of_16_bytes() {
        assert!(Key::parse("AQIDBAUGBwgJCgsMDQ4PEC==").is_some());
        assert!(Key::parse("AQIDBAUGBwgJCgsMDQ4PEB==").is_some());
        for bad in [
            "",
            "AQIDBAUGBwgJCgsMDQ4PEC",
            "AQIDBAUGBwgJCgsMDQ4PEC=",
            "AQIDBAUGBwgJCgsMDQ4PECA=",
            "AQIDBAUGBwgJCgsMDQ4PECAA",
            "AQIDBAUGBwgJCgsMDQ4P-_==",
            "AQIDBAUGBwgJCgsMDQ4P E==",
            "AQIDBAUGBwgJCgsMDQ4PECAAAAAAAAAA",
        ] {
            assert_eq!(Key::parse(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_key_never_panics(text in "\\PC{0,40}") {
            let _ = Key::parse(&text);
        }
    }
}
