//! The address of a connection's client, which may be behind proxies: from the address of the peer,
//! a header of the PROXY protocol, and X-Forwarded-For. Only trusted proxies are believed.

use super::forwarded;
use super::http::HttpError;
use super::proxy_protocol::{self, Beginning};
use crate::types::Networks;
use std::net::IpAddr;

/// The error for a header of the PROXY protocol from anyone else.
const NOT_TRUSTED: HttpError = HttpError::bad(
    "this connection begins with the PROXY protocol, and its peer is not in --trusted_proxies",
);

/// The start of a connection, before its first request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// More bytes are needed.
    Incomplete,
    /// The first request begins after `skip` bytes.
    Request { via: Via, skip: usize },
}

/// How a connection's client is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Via {
    /// It is known. `None`: its address is not, because the peer was gone when it was asked for.
    Client(Option<IpAddr>),
    /// The peer is a trusted proxy, and each request names its client.
    Proxy(IpAddr),
}

/// Determines from the first bytes of a connection how its client is found. `max_bytes` bounds a
/// header of the PROXY protocol.
pub fn start(
    bytes: &[u8],
    peer: Option<IpAddr>,
    trusted: &Networks,
    max_bytes: usize,
) -> Result<Start, HttpError> {
    let peer = peer.map(|ip| ip.to_canonical());
    let Some(proxy) = peer.filter(|&ip| trusted.contains(ip)) else {
        return match proxy_protocol::has_signature(bytes) {
            None => Ok(Start::Incomplete),
            Some(true) => Err(NOT_TRUSTED),
            Some(false) => Ok(Start::Request { via: Via::Client(peer), skip: 0 }),
        };
    };
    Ok(match proxy_protocol::read(bytes, max_bytes)? {
        Beginning::Incomplete => Start::Incomplete,
        Beginning::Other => Start::Request { via: Via::Proxy(proxy), skip: 0 },
        Beginning::Header(header) => {
            let client = header.client.unwrap_or(proxy);
            Start::Request { via: Via::Client(Some(client)), skip: header.len }
        }
    })
}

impl Via {
    /// Returns the address of the client of a request. `head`: its bytes, which
    /// [`super::http::parse_head`] accepts.
    pub fn client(self, head: &[u8], trusted: &Networks) -> Option<IpAddr> {
        match self {
            Self::Client(ip) => ip,
            Self::Proxy(peer) => Some(forwarded::client_of(peer, head, trusted)),
        }
    }

    /// Returns the address to report while no request can be read.
    pub fn peer(self) -> Option<IpAddr> {
        match self {
            Self::Client(ip) => ip,
            Self::Proxy(peer) => Some(peer),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORWARDED: &[u8] = b"GET / HTTP/1.1\r\nX-Forwarded-For: 192.0.2.1\r\n\r\n";

    fn client(peer: &str, bytes: &[u8]) -> Result<String, u16> {
        let trusted = Networks::parse("127.0.0.1, ::1").unwrap();
        let start = start(bytes, Some(peer.parse().unwrap()), &trusted, 1_024);
        match start.map_err(|error| error.status)? {
            Start::Incomplete => Ok("incomplete".into()),
            Start::Request { via, skip } => {
                Ok(via.client(&bytes[skip..], &trusted).unwrap().to_string())
            }
        }
    }

    #[test]
    fn only_trusted_proxies_are_believed() {
        assert_eq!(client("127.0.0.1", FORWARDED), Ok("192.0.2.1".into()));
        assert_eq!(client("::ffff:127.0.0.1", FORWARDED), Ok("192.0.2.1".into()));
        assert_eq!(client("127.0.0.2", FORWARDED), Ok("127.0.0.2".into()));
        assert_eq!(client("::ffff:192.0.2.7", FORWARDED), Ok("192.0.2.7".into()));
        let line = b"PROXY TCP4 192.0.2.2 10.0.0.1 1 2\r\n";
        for peer in ["127.0.0.2", "::2"] {
            for cut in 0..6 {
                assert_eq!(client(peer, &line[..cut]), Ok("incomplete".into()));
            }
            assert_eq!(client(peer, &line[..6]), Err(400));
            assert_eq!(client(peer, b"\r\n\r\n\0\r\nQUIT\n"), Err(400));
        }
    }

    #[test]
    fn the_proxy_protocol_takes_precedence() {
        for (line, ip) in [("TCP4 192.0.2.2 10.0.0.1 1 2", "192.0.2.2"), ("UNKNOWN", "::1")] {
            let bytes = [format!("PROXY {line}\r\n").as_bytes(), FORWARDED].concat();
            assert_eq!(client("::1", &bytes), Ok(ip.into()));
        }
    }

    #[test]
    fn a_peer_without_an_address_is_not_trusted() {
        let everybody = Networks::parse("0.0.0.0/0, ::/0").unwrap();
        let expected = Start::Request { via: Via::Client(None), skip: 0 };
        assert_eq!(start(FORWARDED, None, &everybody, 1_024), Ok(expected));
    }
}
