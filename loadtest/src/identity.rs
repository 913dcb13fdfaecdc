//! Who connects, and the handshake until a connection is open: the upgrade request, its response,
//! and the welcome.

use std::net::SocketAddrV4;
use std::sync::Arc;

use memchr::memmem;
use ws_cluster_wire::percent::write_query;
use ws_cluster_wire::sign::{Secret, sign_digits};

use crate::scenario::plan::Audience;

/// Every client uses the key of RFC 6455 section 1.3, so the response is known beforehand.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
pub const ACCEPT: &[u8] = b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// Who connects, and where to.
#[derive(Clone)]
pub struct Identity {
    /// The nodes, used in turn by user number; at least one.
    pub ws: Vec<SocketAddrV4>,
    pub secret: Secret,
    pub pid: String,
    pub uid_prefix: String,
    pub tags: String,
    pub device: String,
    /// Tags and device of each connection, replacing the common ones.
    pub audience: Option<Arc<Audience>>,
    pub kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Client,
    /// A business server, without a uid, and the events that it receives.
    Business {
        events: &'static str,
    },
}

impl Identity {
    /// Returns the node that the user with this number connects to.
    pub fn node_of(&self, user: u64) -> SocketAddrV4 {
        self.ws[self.node_index(user)]
    }

    /// Returns the index of that node.
    pub fn node_index(&self, user: u64) -> usize {
        (user % self.ws.len() as u64) as usize
    }

    /// Appends the upgrade request of the user with this number.
    pub fn request(&self, user: u64, exp: u64, out: &mut Vec<u8>) {
        let exp = exp.to_string();
        let (kind, events, uid) = match self.kind {
            Kind::Client => ("1", "", format!("{}{user}", self.uid_prefix)),
            Kind::Business { events } => ("2", events, String::new()),
        };
        let audience = self.audience.as_ref().filter(|_| self.kind == Kind::Client);
        let own = audience.map(|audience| audience.parameters(user));
        let (tags, device) = match &own {
            Some((tags, device)) => (tags.as_str(), *device),
            None => (self.tags.as_str(), self.device.as_str()),
        };
        let all = [
            ("device", device),
            ("events", events),
            ("exp", &exp),
            ("pid", &self.pid),
            ("tags", tags),
            ("type", kind),
            ("uid", &uid),
        ];
        debug_assert!(all.is_sorted_by_key(|(name, _)| *name), "as the signed text wants them");
        out.extend_from_slice(b"GET /ws/connect?");
        let start = out.len();
        write_query(all.into_iter().filter(|(_, value)| !value.is_empty()), out);
        let sign = sign_digits(&self.secret, &[b"/ws/connect\n", &out[start..]]);
        out.extend_from_slice(b"&sign=");
        out.extend_from_slice(&sign);
        out.extend_from_slice(
            format!(
                " HTTP/1.1\r\nHost: {}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                 Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n\r\n",
                self.node_of(user)
            )
            .as_bytes(),
        );
    }

    /// Returns the number of the user with this uid; `None`: it is not one of this tool's.
    pub fn user_of(&self, uid: &[u8]) -> Option<u64> {
        decimal(uid.strip_prefix(self.uid_prefix.as_bytes())?)
    }
}

/// Returns the end of a response head that upgrades; `None` while it is incomplete.
pub fn upgrade(bytes: &[u8]) -> Result<Option<usize>, String> {
    let Some(end) = memmem::find(bytes, b"\r\n\r\n") else { return Ok(None) };
    let head = &bytes[..end];
    if !head.starts_with(b"HTTP/1.1 101") {
        let status = head.get(9..12).map_or("?".into(), String::from_utf8_lossy);
        return Err(format!("status {status}"));
    }
    if memmem::find(head, ACCEPT).is_none() {
        return Err("wrong Sec-WebSocket-Accept".to_owned());
    }
    Ok(Some(end + 4))
}

pub fn is_welcome(payload: &[u8]) -> bool {
    let has = |what: &str| memmem::find(payload, what.as_bytes()).is_some();
    has(r#""type":"connect""#) && has(r#""code":1"#) && has(r#""client_id":""#)
}

/// Parses a number as in a uid or a client id.
pub fn decimal(digits: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(digits).ok()?;
    // `parse` accepts a sign, too.
    text.parse().ok().filter(|_| digits[0].is_ascii_digit())
}

#[cfg(test)]
pub mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    pub fn identity() -> Identity {
        Identity {
            ws: vec![SocketAddrV4::new(Ipv4Addr::LOCALHOST, 8812)],
            secret: Secret::new(b"dev-secret"),
            pid: "1".to_owned(),
            uid_prefix: "u ".to_owned(),
            tags: String::new(),
            device: String::new(),
            audience: None,
            kind: Kind::Client,
        }
    }

    fn request(identity: &Identity, user: u64) -> String {
        let mut request = Vec::new();
        identity.request(user, 1_700_000_000, &mut request);
        String::from_utf8(request).unwrap()
    }

    #[test]
    fn refusals_say_why() {
        let refused = upgrade(b"HTTP/1.1 401 Unauthorized\r\n\r\n{}");
        assert_eq!(refused, Err("status 401".to_owned()));
        assert_eq!(upgrade(b"HTTP/1.1 101 "), Ok(None));
        assert!(upgrade(b"HTTP/1.1 101 ok\r\n\r\n").is_err());
    }

    #[test]
    fn only_what_is_given_is_signed() {
        let request = request(&identity(), 1);
        let start = "GET /ws/connect?exp=1700000000&pid=1&type=1&uid=u%201&sign=";
        assert!(request.starts_with(start), "{request}");
        assert!(request.ends_with("\r\n\r\n"));
    }

    #[test]
    fn a_business_server_has_no_uid() {
        let identity =
            Identity { kind: Kind::Business { events: "connect,disconnect" }, ..identity() };
        let request = request(&identity, 1);
        let start = "GET /ws/connect?events=connect%2Cdisconnect&exp=1700000000&pid=1&type=2&sign=";
        assert!(request.starts_with(start), "{request}");
    }

    #[test]
    fn users_take_the_nodes_in_turn() {
        let node = |port| SocketAddrV4::new(Ipv4Addr::LOCALHOST, port);
        let identity = Identity { ws: vec![node(1), node(2)], ..identity() };
        assert_eq!([0, 1, 2].map(|user| identity.node_of(user).port()), [1, 2, 1]);
        assert!(request(&identity, 3).contains("\r\nHost: 127.0.0.1:2\r\n"));
    }

    #[test]
    fn a_uid_names_its_user() {
        let identity = identity();
        assert_eq!(identity.user_of(b"u 17"), Some(17));
        for uid in [b"u 1x".as_slice(), b"v 1", b"u ", b"u +1", b""] {
            assert_eq!(identity.user_of(uid), None);
        }
    }
}
