//! Messages that a client (a `type=1` connection) sends and receives.
//!
//! [`parse`] turns one complete message into a [`ClientMessage`]; text and binary frames hold the
//! same JSON. Each writer appends one JSON text, members in the order of the contract, without
//! whitespace.

use std::borrow::Cow;

use smallvec::SmallVec;

use super::json::{self, JsonError, Members};
use super::request::{is_milliseconds, milliseconds_given};
use super::tags::{TagError, TagList, split};
use crate::types::{Cid, Limits, MessageId, NodeId, WallMs, in_one_line};

/// Maximum bytes of a message's `id`, decoded.
pub const MAX_ID_BYTES: usize = 64;

/// Characters of a value shown in an error.
const SHOWN_CHARS: usize = 40;

const PUSH_HEAD: &[u8] = b"{\"type\":\"push\",\"id\":\"";
const PUSH_DATA: &[u8] = b"\",\"data\":";

/// The `id` of a message, echoed in its reply.
pub type EchoId<'a> = Option<Cow<'a, str>>;

/// Tags in the given order: valid names without duplicates.
pub type Tags<'a> = SmallVec<[Cow<'a, str>; 4]>;

/// One message of a client, borrowed from its frame unless it contains escapes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientMessage<'a> {
    /// At least one tag. `sign` is set if it was sent: whether it is required depends on the
    /// project.
    Subscribe {
        id: EchoId<'a>,
        tags: Tags<'a>,
        sign: Option<Cow<'a, str>>,
    },
    /// At least one tag.
    Unsubscribe {
        id: EchoId<'a>,
        tags: Tags<'a>,
    },
    Heartbeat {
        id: EchoId<'a>,
    },
    /// `data` is a valid JSON value, byte for byte as received.
    Request {
        id: EchoId<'a>,
        data: &'a [u8],
    },
    /// `session_exp` in unix seconds; `sign` is over [`refresh_text`].
    Refresh {
        id: EchoId<'a>,
        session_exp: u64,
        sign: Option<Cow<'a, str>>,
    },
}

/// The error for a message that is rejected; the connection stays open.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct MessageError<'a> {
    /// The message's `id`, if it had a valid one.
    pub id: EchoId<'a>,
    /// The `type` of the reply.
    pub kind: MessageKind,
    pub reason: Refusal,
}

impl MessageError<'_> {
    /// Appends the reply to the client.
    pub fn write(&self, out: &mut Vec<u8>) {
        write_refusal(out, self.kind, self.id.as_deref(), &self.reason.to_string());
    }
}

/// The `type` of a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MessageKind {
    Subscribe,
    Unsubscribe,
    Refresh,
    Error,
}

impl MessageKind {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Subscribe => "subscribe",
            Self::Unsubscribe => "unsubscribe",
            Self::Refresh => "refresh",
            Self::Error => "error",
        }
    }
}

/// Why a message is rejected; its text is the `msg` of the reply.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error(transparent)]
    Json(#[from] JsonError),
    #[error("id must be a string of at most {MAX_ID_BYTES} bytes")]
    Id,
    #[error("type is missing or unknown")]
    Type,
    #[error("tags must be a non-empty comma-separated string or array of strings")]
    Tags,
    /// With its index in the array, and its value as received.
    #[error("tags must be a list of strings: tags[{0}] is {1}")]
    TagType(usize, String),
    #[error(transparent)]
    Tag(#[from] TagError),
    #[error("sign must be a string")]
    Sign,
    #[error("data is missing")]
    Data,
    #[error("this type is for clients (type=1): this is a business server's connection")]
    ForClients,
    #[error("session_exp must be a whole number of unix seconds")]
    SessionExp,
    #[error("{}", milliseconds_given("session_exp", *.0))]
    Milliseconds(u64),
}

/// Parses one message, a JSON object. Unknown members are ignored.
pub fn parse<'a>(text: &'a [u8], limits: &Limits) -> Result<ClientMessage<'a>, MessageError<'a>> {
    let refused = |id, kind, reason| MessageError { id, kind, reason };
    let (members, id) =
        members_and_id(text).map_err(|(id, why)| refused(id, MessageKind::Error, why))?;
    let kind = members.value("type").and_then(|value| json::string(value).ok());
    match kind.as_deref() {
        Some("heartbeat") => Ok(ClientMessage::Heartbeat { id }),
        Some("request") => match members.value("data") {
            Some(data) => Ok(ClientMessage::Request { id, data }),
            None => Err(refused(id, MessageKind::Error, Refusal::Data)),
        },
        Some("subscribe") => match tags_and_sign(&members, limits) {
            Ok((tags, sign)) => Ok(ClientMessage::Subscribe { id, tags, sign }),
            Err(reason) => Err(refused(id, MessageKind::Subscribe, reason)),
        },
        Some("unsubscribe") => match tags(&members, limits) {
            Ok(tags) => Ok(ClientMessage::Unsubscribe { id, tags }),
            Err(reason) => Err(refused(id, MessageKind::Unsubscribe, reason)),
        },
        Some("refresh") => match session_exp_and_sign(&members) {
            Ok((session_exp, sign)) => Ok(ClientMessage::Refresh { id, session_exp, sign }),
            Err(reason) => Err(refused(id, MessageKind::Error, reason)),
        },
        _ => Err(refused(id, MessageKind::Error, Refusal::Type)),
    }
}

/// Returns the text that `sign` covers if a project's `subscribe` is `signed`: the message's tags,
/// without duplicates, sorted by bytes.
pub fn subscribe_text(cid: Cid, tags: &[Cow<'_, str>]) -> Vec<u8> {
    let mut sorted: SmallVec<[&str; 8]> = tags.iter().map(|tag| tag.as_ref()).collect();
    sorted.sort_unstable();
    let mut text = signing_head("subscribe\n", cid);
    for (index, tag) in sorted.iter().enumerate() {
        if index > 0 {
            text.push(b',');
        }
        text.extend_from_slice(tag.as_bytes());
    }
    text
}

/// Returns the text that `sign` covers in a refresh.
pub fn refresh_text(cid: Cid, session_exp: u64) -> Vec<u8> {
    let mut text = signing_head("refresh\n", cid);
    put_number(&mut text, session_exp);
    text
}

/// Appends the first frame of a connection.
pub fn write_welcome(out: &mut Vec<u8>, cid: Cid, node: NodeId) {
    put(out, "{\"type\":\"connect\",\"code\":1,\"msg\":\"success\",\"client_id\":\"");
    put_number(out, cid.0);
    put(out, "\",\"node\":");
    put_number(out, u64::from(node.value()));
    put(out, "}");
}

/// Appends the success of a subscribe or unsubscribe: all tags that the connection now has.
pub fn write_tags<'t>(
    out: &mut Vec<u8>,
    kind: MessageKind,
    id: Option<&str>,
    tags: impl Iterator<Item = &'t str>,
) {
    put_type(out, kind.as_str());
    put(out, ",\"code\":1,\"msg\":\"success\"");
    put_id(out, id);
    put(out, ",\"tags\":[");
    for (index, tag) in tags.enumerate() {
        if index > 0 {
            put(out, ",");
        }
        json::write_string(out, tag);
    }
    put(out, "]}");
}

/// Appends the success of a refresh. The contract defines no members for it.
pub fn write_refreshed(out: &mut Vec<u8>, id: Option<&str>) {
    put_type(out, MessageKind::Refresh.as_str());
    put(out, ",\"code\":1,\"msg\":\"success\"");
    put_id(out, id);
    put(out, "}");
}

/// Appends a refusal; nothing was changed.
pub fn write_refusal(out: &mut Vec<u8>, kind: MessageKind, id: Option<&str>, msg: &str) {
    put_type(out, kind.as_str());
    put(out, ",\"code\":0,\"msg\":");
    json::write_string(out, msg);
    put_id(out, id);
    put(out, "}");
}

/// Appends the reply to a heartbeat.
pub fn write_heartbeat(out: &mut Vec<u8>, id: Option<&str>, ts: WallMs) {
    put_type(out, "heartbeat");
    put(out, ",\"code\":1");
    put_id(out, id);
    put(out, ",\"ts\":");
    put_number(out, ts.value());
    put(out, "}");
}

/// Appends a business server's response to a request; `data` is the JSON value that it sent, byte
/// for byte.
pub fn write_response(out: &mut Vec<u8>, id: Option<&str>, data: &[u8]) {
    put_type(out, "response");
    put_id(out, id);
    put(out, ",\"code\":1,\"data\":");
    out.extend_from_slice(data);
    put(out, "}");
}

/// Appends the failure of a request: "no server", "timeout" or "server gone".
pub fn write_response_refusal(out: &mut Vec<u8>, id: Option<&str>, msg: &str) {
    put_type(out, "response");
    put_id(out, id);
    put(out, ",\"code\":0,\"msg\":");
    json::write_string(out, msg);
    put(out, "}");
}

/// Appends a push, exactly [`push_bytes`] bytes; `data` is a JSON value, byte for byte.
pub fn write_push(out: &mut Vec<u8>, id: MessageId, data: &[u8]) {
    let start = out.len();
    out.reserve(push_bytes(id, data.len()));
    out.extend_from_slice(PUSH_HEAD);
    put_number(out, id.0);
    out.extend_from_slice(PUSH_DATA);
    out.extend_from_slice(data);
    put(out, "}");
    debug_assert_eq!(out.len() - start, push_bytes(id, data.len()));
}

/// Returns the number of bytes that [`write_push`] appends.
pub fn push_bytes(id: MessageId, data_bytes: usize) -> usize {
    let digits = id.0.checked_ilog10().unwrap_or(0) as usize + 1;
    PUSH_HEAD.len() + digits + PUSH_DATA.len() + data_bytes + 1
}

/// Appends the reason of a close with 1001. At most 44 bytes; RFC 6455 section 5.5 allows 123.
pub fn write_reconnect_reason(out: &mut Vec<u8>, after_ms: u64) {
    put(out, "{\"reconnect_after_ms\":");
    put_number(out, after_ms);
    put(out, "}");
}

/// Returns the members of a message and its `id`; the error of a rejected one holds its `id` if it
/// could be read.
pub(super) fn members_and_id(
    text: &[u8],
) -> Result<(Members<'_>, EchoId<'_>), (EchoId<'_>, Refusal)> {
    let mut members = Members::default();
    let read = json::read_members(text, &mut members);
    match (read, echo_id(&members)) {
        (Ok(()), Ok(id)) => Ok((members, id)),
        (Ok(()), Err(reason)) => Err((None, reason)),
        (Err(error), id) => Err((id.ok().flatten(), error.into())),
    }
}

fn echo_id<'a>(members: &Members<'a>) -> Result<EchoId<'a>, Refusal> {
    let Some(value) = optional(members, "id") else {
        return Ok(None);
    };
    let id = json::string(value).map_err(|_| Refusal::Id)?;
    if id.len() <= MAX_ID_BYTES { Ok(Some(id)) } else { Err(Refusal::Id) }
}

fn tags_and_sign<'a>(
    members: &Members<'a>,
    limits: &Limits,
) -> Result<(Tags<'a>, Option<Cow<'a, str>>), Refusal> {
    Ok((tags(members, limits)?, sign(members)?))
}

pub(super) fn session_exp_and_sign<'a>(
    members: &Members<'a>,
) -> Result<(u64, Option<Cow<'a, str>>), Refusal> {
    let session_exp = members.value("session_exp").and_then(json::integer);
    let session_exp = session_exp.ok_or(Refusal::SessionExp)?;
    if is_milliseconds(session_exp) {
        return Err(Refusal::Milliseconds(session_exp));
    }
    Ok((session_exp, sign(members)?))
}

fn sign<'a>(members: &Members<'a>) -> Result<Option<Cow<'a, str>>, Refusal> {
    optional(members, "sign").map(json::string).transpose().map_err(|_| Refusal::Sign)
}

/// Returns an optional member; `null` counts as absent.
fn optional<'a>(members: &Members<'a>, name: &str) -> Option<&'a [u8]> {
    members.value(name).filter(|value| !json::is_null(value))
}

fn tags<'a>(members: &Members<'a>, limits: &Limits) -> Result<Tags<'a>, Refusal> {
    let value = members.value("tags").ok_or(Refusal::Tags)?;
    let mut tags = TagList::new(limits);
    if json::is_array(value) {
        for (index, element) in json::elements(value)?.enumerate() {
            let element = element?;
            let is_none = |_| Refusal::TagType(index, shown(element));
            tags.push(json::string(element).map_err(is_none)?)?;
        }
    } else {
        match json::string(value).map_err(|_| Refusal::Tags)? {
            Cow::Borrowed(list) => split(list).try_for_each(|tag| tags.push(tag.into()))?,
            Cow::Owned(list) => {
                split(&list).try_for_each(|tag| tags.push(tag.to_owned().into()))?;
            }
        }
    }
    let tags = tags.finish()?;
    if tags.is_empty() { Err(Refusal::Tags) } else { Ok(tags) }
}

fn signing_head(head: &str, cid: Cid) -> Vec<u8> {
    let mut text = head.as_bytes().to_vec();
    put_number(&mut text, cid.0);
    text.push(b'\n');
    text
}

pub(super) fn put(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(text.as_bytes());
}

pub(super) fn put_number(out: &mut Vec<u8>, number: u64) {
    put(out, itoa::Buffer::new().format(number));
}

/// Starts the object with its type, which needs no escapes.
pub(super) fn put_type(out: &mut Vec<u8>, kind: &str) {
    put(out, "{\"type\":\"");
    put(out, kind);
    put(out, "\"");
}

pub(super) fn put_id(out: &mut Vec<u8>, id: Option<&str>) {
    if let Some(id) = id {
        put(out, ",\"id\":");
        json::write_string(out, id);
    }
}

/// Formats JSON for an error.
fn shown(value: &[u8]) -> String {
    in_one_line(&String::from_utf8_lossy(value), SHOWN_CHARS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use proptest::sample::{Index, select};
    use serde_json::json;

    fn read(text: &str) -> Result<ClientMessage<'_>, MessageError<'_>> {
        parse(text.as_bytes(), &Limits::default())
    }

    fn refusal(text: &str) -> String {
        written(|out| read(text).unwrap_err().write(out))
    }

    fn written(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        write(&mut out);
        String::from_utf8(out).unwrap()
    }

    fn tag_list<'a>(tags: &[&'a str]) -> Tags<'a> {
        tags.iter().map(|tag| Cow::Borrowed(*tag)).collect()
    }

    #[test]
    fn a_client_says_what_the_contract_lets_it_say() {
        assert_eq!(
            read(r#"{"type":"subscribe","tags":"a,b,a","id":"7"}"#),
            Ok(ClientMessage::Subscribe {
                id: Some("7".into()),
                tags: tag_list(&["a", "b"]),
                sign: None
            })
        );
        assert_eq!(
            read(r#"{"sign":"ff","tags":["b","\u0061","b"],"unknown":[{}],"type":"subscribe"}"#),
            Ok(ClientMessage::Subscribe {
                id: None,
                tags: tag_list(&["b", "a"]),
                sign: Some("ff".into())
            })
        );
        assert_eq!(
            read(r#"{"type":"unsubscribe","tags":"a\u002cb"}"#),
            Ok(ClientMessage::Unsubscribe { id: None, tags: tag_list(&["a", "b"]) })
        );
        assert_eq!(read(r#"{"type":"heartbeat"}"#), Ok(ClientMessage::Heartbeat { id: None }));
        assert_eq!(
            read(r#"{"type":"request","id":"r\n","data": {"x": 1e999} }"#),
            Ok(ClientMessage::Request { id: Some("r\n".into()), data: b"{\"x\": 1e999}" })
        );
        assert_eq!(
            read(r#"{"type":"refresh","session_exp":1700000000,"sign":"ab"}"#),
            Ok(ClientMessage::Refresh {
                id: None,
                session_exp: 1_700_000_000,
                sign: Some("ab".into())
            })
        );
    }

    /// Serializers write `null` for unset members.
    #[test]
    fn null_is_no_id_and_no_sign() {
        assert_eq!(
            read(r#"{"type":"heartbeat","id":null}"#),
            Ok(ClientMessage::Heartbeat { id: None })
        );
        let (tags, subscribe) =
            (tag_list(&["a"]), r#"{"type":"subscribe","tags":"a","sign":null}"#);
        assert_eq!(read(subscribe), Ok(ClientMessage::Subscribe { id: None, tags, sign: None }));
        assert_eq!(
            read(r#"{"type":"refresh","session_exp":1,"sign":null}"#),
            Ok(ClientMessage::Refresh { id: None, session_exp: 1, sign: None })
        );
        assert_eq!(
            read(r#"{"type":"request","data":null}"#),
            Ok(ClientMessage::Request { id: None, data: b"null" })
        );
    }

    #[test]
    fn blanks_around_the_tags_of_a_list_are_left_out() {
        let unsubscribes = |tags: &str, expected: &[&str]| {
            let text = format!(r#"{{"type":"unsubscribe","tags":{tags}}}"#);
            let tags = tag_list(expected);
            assert_eq!(read(&text), Ok(ClientMessage::Unsubscribe { id: None, tags }), "{text}");
        };
        unsubscribes(r#""a, b c""#, &["a", "b c"]);
        unsubscribes(r#""\u0061 ,\tb c ""#, &["a", "b c"]);
        unsubscribes(r#"[" a"]"#, &[" a"]);
    }

    #[test]
    fn the_usual_message_borrows() {
        let Ok(ClientMessage::Subscribe { id: Some(Cow::Borrowed("7")), tags, .. }) =
            read(r#"{"type":"subscribe","tags":"a,b,c,d","id":"7"}"#)
        else {
            panic!("an id without escapes is borrowed");
        };
        assert!(!tags.spilled() && tags.iter().all(|tag| matches!(tag, Cow::Borrowed(_))));
    }

    #[test]
    fn what_is_no_message_is_an_error_with_its_id() {
        for (text, answer) in [
            ("", r#"{"type":"error","code":0,"msg":"the JSON ends too early"}"#),
            ("[]", r#"{"type":"error","code":0,"msg":"not a JSON object"}"#),
            (
                r#"{"type":"jump","id":"a\"b"}"#,
                r#"{"type":"error","code":0,"msg":"type is missing or unknown","id":"a\"b"}"#,
            ),
            (
                r#"{"id":"","type":"request"}"#,
                r#"{"type":"error","code":0,"msg":"data is missing","id":""}"#,
            ),
            (
                r#"{"type":"heartbeat","id":7}"#,
                r#"{"type":"error","code":0,"msg":"id must be a string of at most 64 bytes"}"#,
            ),
            (
                r#"{"type":"heartbeat","type":"heartbeat"}"#,
                concat!(
                    r#"{"type":"error","code":0,"msg":"the member \"type\" of the JSON object is "#,
                    r#"given twice"}"#
                ),
            ),
        ] {
            assert_eq!(refusal(text), answer, "{text}");
        }
        let with_id = |id: String| format!(r#"{{"type":"heartbeat","id":"{id}"}}"#);
        assert!(read(&with_id("é".repeat(32))).is_ok());
        assert_eq!(read(&with_id("x".repeat(65))).unwrap_err().reason, Refusal::Id);
    }

    #[test]
    fn refused_tags_are_answered_with_the_type_of_the_message() {
        assert_eq!(
            refusal(r#"{"type":"subscribe","id":"7"}"#),
            concat!(
                r#"{"type":"subscribe","code":0,"msg":"tags must be a non-empty comma-separated "#,
                r#"string or array of strings","id":"7"}"#
            )
        );
        let malformed = |index, tag: &str| {
            Refusal::Tag(TagError::Malformed { index, tag: tag.into(), max: 128 })
        };
        for (value, reason) in [
            (r#""""#, Refusal::Tags),
            (r#"" ""#, Refusal::Tags),
            ("[]", Refusal::Tags),
            (r#"["a",1]"#, Refusal::TagType(1, "1".into())),
            ("null", Refusal::Tags),
            (r#""a,,b""#, malformed(1, "")),
            (r#"["a,b"]"#, malformed(0, "a,b")),
            (r#""a\n""#, malformed(0, "a\n")),
        ] {
            let text = format!(r#"{{"type":"unsubscribe","id":"7","tags":{value}}}"#);
            let error = read(&text).unwrap_err();
            let expected =
                MessageError { id: Some("7".into()), kind: MessageKind::Unsubscribe, reason };
            assert_eq!(error, expected, "{value}");
        }
        let sign = read(r#"{"type":"subscribe","tags":"a","sign":1}"#).unwrap_err();
        assert_eq!((sign.kind, sign.reason), (MessageKind::Subscribe, Refusal::Sign));
        for bad in ["\"1\"", "-1", "1.5", "null"] {
            let text = format!(r#"{{"type":"refresh","session_exp":{bad},"sign":""}}"#);
            let error = read(&text).unwrap_err();
            assert_eq!(
                (error.kind, error.reason),
                (MessageKind::Error, Refusal::SessionExp),
                "{bad}"
            );
        }
        let refused = refusal(r#"{"type":"refresh","session_exp":100000000000,"sign":""}"#);
        assert!(refused.contains("session_exp must be in unix seconds: 100000000000"), "{refused}");
    }

    #[test]
    fn many_tags_keep_their_order_up_to_the_limit() {
        let mut numbers: Vec<String> = (0..256).map(|n| (n * 7 % 257).to_string()).collect();
        numbers.push(numbers[0].clone());
        for kind in ["subscribe", "unsubscribe"] {
            let array = json!({"type": kind, "tags": numbers}).to_string();
            let list = json!({"type": kind, "tags": numbers.join(",")}).to_string();
            for text in [array, list] {
                let Ok(
                    ClientMessage::Subscribe { tags, .. } | ClientMessage::Unsubscribe { tags, .. },
                ) = read(&text)
                else {
                    panic!("257 entries of which two are alike are 256 tags");
                };
                assert_eq!(tags.as_slice(), &numbers[..256]);
            }
            let tags = [&numbers[..], &["new".into()]].concat();
            let text = json!({"type": kind, "tags": tags}).to_string();
            assert_eq!(read(&text).unwrap_err().reason, Refusal::Tag(TagError::TooMany(256)));
        }
    }

    #[test]
    fn tags_are_bounded_as_the_limits_say() {
        let limits = Limits { tags: 2, tag_bytes: 3, ..Limits::default() };
        let reason = |tags: &str| {
            let text = json!({"type": "subscribe", "tags": tags}).to_string();
            parse(text.as_bytes(), &limits).map(drop).map_err(|error| error.reason.to_string())
        };
        assert_eq!(reason("abc,b,abc"), Ok(()));
        assert_eq!(reason("a,b,c"), Err("too many tags: at most 2 for one connection".into()));
        let msg = "tags must be a list, each element 1-3 bytes without control characters or \
            commas: tags[0] is \"abcd\"";
        assert_eq!(reason("abcd"), Err(msg.into()));
    }

    #[test]
    fn signing_texts() {
        let tags = tag_list(&["b", "a", "é"]);
        assert_eq!(subscribe_text(Cid(42), &tags), "subscribe\n42\na,b,é".as_bytes());
        assert_eq!(refresh_text(Cid(42), 1_700_000_000), b"refresh\n42\n1700000000");
    }

    #[test]
    fn answers_have_the_members_of_the_contract_in_its_order() {
        let node = NodeId::new(200).unwrap();
        assert_eq!(
            written(|out| write_welcome(out, Cid(9), node)),
            r#"{"type":"connect","code":1,"msg":"success","client_id":"9","node":200}"#
        );
        assert_eq!(
            written(|out| write_tags(
                out,
                MessageKind::Subscribe,
                Some("7"),
                ["a", "b"].into_iter()
            )),
            r#"{"type":"subscribe","code":1,"msg":"success","id":"7","tags":["a","b"]}"#
        );
        assert_eq!(
            written(|out| write_tags(out, MessageKind::Unsubscribe, None, std::iter::empty())),
            r#"{"type":"unsubscribe","code":1,"msg":"success","tags":[]}"#
        );
        assert_eq!(
            written(|out| write_refreshed(out, Some("7"))),
            r#"{"type":"refresh","code":1,"msg":"success","id":"7"}"#
        );
        assert_eq!(
            written(|out| write_heartbeat(out, None, WallMs::new(1_700_000_000_000))),
            r#"{"type":"heartbeat","code":1,"ts":1700000000000}"#
        );
        assert_eq!(
            written(|out| write_heartbeat(out, Some("h"), WallMs::new(1))),
            r#"{"type":"heartbeat","code":1,"id":"h","ts":1}"#
        );
        assert_eq!(
            written(|out| write_refusal(out, MessageKind::Error, None, "a \"b\"")),
            r#"{"type":"error","code":0,"msg":"a \"b\""}"#
        );
        assert_eq!(
            written(|out| write_response(out, Some("r1"), b"[1]")),
            r#"{"type":"response","id":"r1","code":1,"data":[1]}"#
        );
        assert_eq!(
            written(|out| write_response_refusal(out, Some("r1"), "no server")),
            r#"{"type":"response","id":"r1","code":0,"msg":"no server"}"#
        );
        assert_eq!(
            written(|out| write_reconnect_reason(out, 1500)),
            r#"{"reconnect_after_ms":1500}"#
        );
    }

    #[test]
    fn a_push_is_as_long_as_announced() {
        for id in [0, 9, 10, 999, 1000, u64::MAX] {
            let text = written(|out| write_push(out, MessageId(id), b" null"));
            assert_eq!(text, format!(r#"{{"type":"push","id":"{id}","data": null}}"#));
            assert_eq!(push_bytes(MessageId(id), 5), text.len());
        }
    }

    proptest! {
        #[test]
        fn whatever_a_client_sends_is_a_message_or_an_error_with_an_answer(
            kind in select(
                &["subscribe", "unsubscribe", "heartbeat", "request", "refresh", "x"][..]
            ),
            id in "[a\"\\\\é😀]{0,40}", tags in prop::collection::vec("[a-cé\", ]{0,3}", 0..40),
            at: Index, byte: u8,
        ) {
            let text = json!({
                "type": kind, "id": id, "tags": tags, "data": tags, "sign": id, "session_exp": 1,
            });
            let mut text = text.to_string().into_bytes();
            if let Ok(ClientMessage::Subscribe { tags: read, .. }) =
                parse(&text, &Limits::default())
            {
                let mut first = Vec::new();
                for tag in &tags {
                    if !first.contains(tag) {
                        first.push(tag.clone());
                    }
                }
                prop_assert_eq!(read.as_slice(), &first[..]);
            }
            for end in 0..text.len() {
                prop_assert!(parse(&text[..end], &Limits::default()).is_err());
            }
            let at = at.index(text.len());
            text[at] = byte;
            if let Err(error) = parse(&text, &Limits::default()) {
                let answer = written(|out| error.write(out));
                let answer: serde_json::Value = serde_json::from_str(&answer).unwrap();
                prop_assert_eq!(&answer["code"], 0);
                prop_assert_eq!(answer["id"].as_str(), error.id.as_deref());
            }
        }
    }
}
