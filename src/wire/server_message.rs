//! Messages that a business server (a `type=2` connection) sends and receives.

use super::json;
use super::message::{
    EchoId, MessageError, MessageKind, Refusal, members_and_id, put, put_id, put_number, put_type,
    session_exp_and_sign,
};
use crate::types::{Cid, MessageId, NodeId, WallMs};
use std::borrow::Cow;
use std::io::Write;
use std::net::IpAddr;

/// One message of a business server, borrowed from its frame unless it contains escapes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerMessage<'a> {
    /// Its other members are those of an HTTP push; they are parsed when it is accepted.
    Push {
        id: EchoId<'a>,
    },
    /// `id`: of the request that it answers; `None` if it is not a valid id. `data` is a valid JSON
    /// value, byte for byte as received.
    Response {
        id: Option<MessageId>,
        data: &'a [u8],
    },
    Heartbeat {
        id: EchoId<'a>,
    },
    Refresh {
        id: EchoId<'a>,
        session_exp: u64,
        sign: Option<Cow<'a, str>>,
    },
}

/// Parses one message, a JSON object. Unknown members are ignored.
pub fn parse(text: &[u8]) -> Result<ServerMessage<'_>, MessageError<'_>> {
    let refused = |id, reason| MessageError { id, kind: MessageKind::Error, reason };
    let (members, id) = members_and_id(text).map_err(|(id, reason)| refused(id, reason))?;
    let kind = members.value("type").and_then(|value| json::string(value).ok());
    match kind.as_deref() {
        Some("push") => Ok(ServerMessage::Push { id }),
        Some("response") => match members.value("data") {
            Some(data) => {
                let id = id.and_then(|id| id.parse().ok());
                Ok(ServerMessage::Response { id, data })
            }
            None => Err(refused(id, Refusal::Data)),
        },
        Some("heartbeat") => Ok(ServerMessage::Heartbeat { id }),
        Some("refresh") => match session_exp_and_sign(&members) {
            Ok((session_exp, sign)) => Ok(ServerMessage::Refresh { id, session_exp, sign }),
            Err(reason) => Err(refused(id, reason)),
        },
        Some("subscribe" | "unsubscribe" | "request") => Err(refused(id, Refusal::ForClients)),
        _ => Err(refused(id, Refusal::Type)),
    }
}

/// A client, as identified in events and requests.
#[derive(Debug, Clone, Copy)]
pub struct Client<'a> {
    pub cid: Cid,
    pub uid: &'a str,
    pub device: &'a str,
    /// `None`: unknown, or from a node that does not report it.
    pub ip: Option<IpAddr>,
}

/// The contents of an event besides its client.
#[derive(Debug, Clone, Copy)]
pub enum Detail<'a, 't> {
    None,
    Reason(&'a str),
    Tags(&'a [&'t str]),
}

/// Appends an event of a client at `node`.
pub fn write_event(
    out: &mut Vec<u8>,
    kind: &str,
    client: Client<'_>,
    node: NodeId,
    ts: WallMs,
    detail: Detail<'_, '_>,
) {
    put_type(out, kind);
    put(out, ",");
    put_client(out, client);
    put(out, ",\"node\":");
    put_number(out, u64::from(node.value()));
    put(out, ",\"ts\":");
    put_number(out, ts.value());
    match detail {
        Detail::None => {}
        Detail::Reason(reason) => {
            put(out, ",\"reason\":");
            json::write_string(out, reason);
        }
        Detail::Tags(tags) => {
            put(out, ",\"tags\":[");
            for (index, tag) in tags.iter().enumerate() {
                put(out, if index > 0 { "," } else { "" });
                json::write_string(out, tag);
            }
            put(out, "]");
        }
    }
    put(out, "}");
}

/// Appends the event of a node that joined, or is lost.
pub fn write_node(out: &mut Vec<u8>, node: NodeId, is_up: bool, ts: WallMs) {
    put_type(out, "node");
    put(out, ",\"state\":\"");
    put(out, if is_up { "up" } else { "lost" });
    put(out, "\",\"node\":");
    put_number(out, u64::from(node.value()));
    put(out, ",\"ts\":");
    put_number(out, ts.value());
    put(out, "}");
}

/// Appends a client's request; `data` is the JSON value that it sent, byte for byte.
pub fn write_request(out: &mut Vec<u8>, id: MessageId, from: Client<'_>, data: &[u8]) {
    put_type(out, "request");
    put(out, ",\"id\":\"");
    put_number(out, id.0);
    put(out, "\",\"from\":{");
    put_client(out, from);
    put(out, "},\"data\":");
    out.extend_from_slice(data);
    put(out, "}");
}

/// Appends the reply to a business server's push that the queue has accepted.
pub fn write_push_accepted(out: &mut Vec<u8>, id: Option<&str>, message_id: MessageId) {
    put_type(out, "push");
    put(out, ",\"code\":1");
    put_id(out, id);
    put(out, ",\"message_id\":\"");
    put_number(out, message_id.0);
    put(out, "\"}");
}

/// Appends the reply to a push that the queue has not accepted, or whose outcome is unknown.
pub fn write_push_refused(out: &mut Vec<u8>, id: Option<&str>, msg: &str) {
    put_type(out, "push");
    put(out, ",\"code\":0,\"msg\":");
    json::write_string(out, msg);
    put_id(out, id);
    put(out, "}");
}

fn put_client(out: &mut Vec<u8>, client: Client<'_>) {
    put(out, "\"client_id\":\"");
    put_number(out, client.cid.0);
    put(out, "\",\"uid\":");
    json::write_string(out, client.uid);
    put(out, ",\"device\":");
    json::write_string(out, client.device);
    if let Some(ip) = client.ip {
        put(out, ",\"ip\":\"");
        put_ip(out, ip);
        put(out, "\"");
    }
}

fn put_ip(out: &mut Vec<u8>, ip: IpAddr) {
    // A `Vec` takes everything.
    let _ = write!(out, "{ip}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    const CLIENT: Client<'_> = Client { cid: Cid(7), uid: "a\"b", device: "ios", ip: None };

    fn written(write: impl FnOnce(&mut Vec<u8>)) -> serde_json::Value {
        let mut out = Vec::new();
        write(&mut out);
        serde_json::from_slice(&out).unwrap()
    }

    fn refusal(text: &str) -> String {
        let answer = written(|out| parse(text.as_bytes()).unwrap_err().write(out));
        assert_eq!((&answer["type"], &answer["code"]), (&json!("error"), &json!(0)));
        format!("{} {}", answer["id"], answer["msg"].as_str().unwrap())
    }

    #[test]
    fn a_business_server_says_what_the_contract_lets_it_say() {
        let read = |text: &'static str| parse(text.as_bytes()).unwrap();
        assert_eq!(
            read(r#"{"type":"push","uids":["a"],"data":1,"id":"7"}"#),
            ServerMessage::Push { id: Some("7".into()) }
        );
        assert_eq!(
            read(r#"{"type":"response","id":"42","data": {"x" : 1}}"#),
            ServerMessage::Response { id: Some(MessageId(42)), data: b"{\"x\" : 1}" }
        );
        for id in [r#""id":"x","#, "", r#""id":"-1","#] {
            let text = format!(r#"{{"type":"response",{id}"data":null}}"#);
            let expected = ServerMessage::Response { id: None, data: b"null" };
            assert_eq!(parse(text.as_bytes()), Ok(expected));
        }
        assert_eq!(read(r#"{"type":"heartbeat"}"#), ServerMessage::Heartbeat { id: None });
    }

    #[test]
    fn refusals_say_why() {
        assert_eq!(refusal(r#"{"type":"response","id":"4"}"#), r#""4" data is missing"#);
        assert!(refusal(r#"{"type":"subscribe","tags":"a"}"#).contains("for clients"));
        assert!(refusal(r#"{"type":"connect"}"#).contains("type is missing or unknown"));
        assert!(refusal("[]").starts_with("null "));
        assert!(refusal(r#"{"type":"push","id":7}"#).contains("id must be"));
    }

    #[test]
    fn events_have_the_members_of_the_contract() {
        let node = NodeId::new(200).unwrap();
        let ts = WallMs::new(5);
        let event = |kind, detail| written(|out| write_event(out, kind, CLIENT, node, ts, detail));
        assert_eq!(
            event("connect", Detail::None),
            json!({"type":"connect","client_id":"7","uid":"a\"b","device":"ios","node":200,"ts":5})
        );
        for (ip, text) in [("192.0.2.1", "192.0.2.1"), ("2001:DB8:0::1", "2001:db8::1")] {
            let client = Client { ip: ip.parse().ok(), ..CLIENT };
            let event = written(|out| write_event(out, "connect", client, node, ts, Detail::None));
            assert_eq!(event["ip"], json!(text));
            let request = written(|out| write_request(out, MessageId(9), client, b"[1]"));
            assert_eq!(request["from"]["ip"], json!(text));
        }
        let subscribed = event("subscribe", Detail::Tags(&["x", "y"]));
        assert_eq!(subscribed["tags"], json!(["x", "y"]));
        assert_eq!(event("disconnect", Detail::Reason("idle"))["reason"], json!("idle"));
        assert_eq!(
            written(|out| write_node(out, node, false, ts)),
            json!({"type":"node","state":"lost","node":200,"ts":5})
        );
        assert_eq!(
            written(|out| write_request(out, MessageId(9), CLIENT, b"[1]")),
            json!({"type":"request","id":"9","from":{"client_id":"7","uid":"a\"b","device":"ios"},
                   "data":[1]})
        );
        assert_eq!(
            written(|out| write_push_accepted(out, Some("7"), MessageId(9))),
            json!({"type":"push","code":1,"id":"7","message_id":"9"})
        );
        assert_eq!(
            written(|out| write_push_refused(out, None, "why")),
            json!({"type":"push","code":0,"msg":"why"})
        );
    }

    proptest! {
        #[test]
        fn any_text_cut_anywhere_never_panics(text in r#"[{}":,pushresonid0-9\\\[\] ]{0,60}"#) {
            for cut in 0..=text.len() {
                let _ = parse(&text.as_bytes()[..cut]);
            }
        }
    }
}
