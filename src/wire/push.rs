//! Pushes: from the parameters of `POST /ws/push`, from the messages of `POST /ws/push/batch` and
//! from a business server's `push` frame.

use std::borrow::Cow;

use super::envelope::TargetsBuf;
use super::json::{self, Members};
use super::params::Params;
use super::request::{ApiError, Given, Source};
use super::selectors::read_targets;
use crate::types::Limits;

/// The longest `ttl_ms`: seven days.
pub const MAX_TTL_MS: u64 = 7 * 24 * 60 * 60 * 1_000;
pub const MAX_IDEMPOTENCY_KEY_BYTES: usize = 64;

/// What one push says, the credentials aside.
#[derive(Debug)]
pub struct Push<'a> {
    pub targets: TargetsBuf,
    /// The JSON value that the clients receive, byte for byte.
    pub data: Cow<'a, [u8]>,
    /// Milliseconds after acceptance during which it may be delivered; 0: always.
    pub ttl_ms: u32,
    /// 1-64 bytes.
    pub idempotency_key: Option<Cow<'a, str>>,
}

impl<'a> Push<'a> {
    /// From a query or a form: `data` becomes a JSON string.
    pub fn from_params(params: &'a Params<'_>, limits: &Limits) -> Result<Self, ApiError> {
        Self::read(params, limits)
    }

    /// From a JSON object: `data` stays the very value that was sent.
    pub fn from_json(members: &Members<'a>, limits: &Limits) -> Result<Self, ApiError> {
        Self::read(members, limits)
    }

    fn read(source: impl Source<'a>, limits: &Limits) -> Result<Self, ApiError> {
        let data = match source.given("data") {
            Some(Given::Json(value)) => Cow::Borrowed(value),
            Some(Given::Text(text)) => {
                let mut value = Vec::new();
                json::write_string(&mut value, text);
                Cow::Owned(value)
            }
            None => return Err(ApiError::bad("data is missing: what the clients shall receive")),
        };
        Ok(Self {
            targets: read_targets(source, limits)?,
            data,
            ttl_ms: source.given("ttl_ms").map_or(Ok(0), read_ttl)?,
            idempotency_key: source.given("idempotency_key").map(read_key).transpose()?,
        })
    }
}

/// The messages of a batch: an array of 1 to [`Limits::batch_messages`] elements.
#[derive(Debug, Clone)]
pub struct Batch<'a> {
    messages: json::Elements<'a>,
    count: usize,
}

impl<'a> Batch<'a> {
    pub fn from_json(members: &Members<'a>, limits: &Limits) -> Result<Self, ApiError> {
        let Some(array) = members.value("messages").filter(|value| json::is_array(value)) else {
            return Err(ApiError::bad("messages is missing or not an array of objects"));
        };
        let messages = json::elements(array)?;
        let max = limits.batch_messages;
        let mut count = 0;
        for message in messages.clone() {
            message?;
            count += 1;
            if count > max {
                return Err(ApiError::bad(format!("messages: at most {max} in one batch")));
            }
        }
        if count == 0 {
            return Err(ApiError::bad("messages is empty: send at least one"));
        }
        Ok(Self { messages, count })
    }

    /// How many messages there are, good and bad: one result is due for each.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Never: an empty batch is refused.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The messages in order. An error is that message's result and says nothing about the others.
    pub fn pushes(&self, limits: &Limits) -> impl Iterator<Item = Result<Push<'a>, ApiError>> {
        self.messages.clone().map(|message| Push::from_json(&json::members(message?)?, limits))
    }
}

fn read_ttl(given: Given<'_>) -> Result<u32, ApiError> {
    let ttl_ms = given.number("ttl_ms")?;
    if !(1..=MAX_TTL_MS).contains(&ttl_ms) {
        return Err(ApiError::bad("ttl_ms must be 1 to 604800000 milliseconds (7 days)"));
    }
    u32::try_from(ttl_ms).map_err(|_| ApiError::bad("ttl_ms is too big"))
}

fn read_key(given: Given<'_>) -> Result<Cow<'_, str>, ApiError> {
    let key = given.text("idempotency_key")?;
    if !(1..=MAX_IDEMPOTENCY_KEY_BYTES).contains(&key.len()) {
        return Err(ApiError::bad("idempotency_key must be 1-64 bytes"));
    }
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{MessageId, NodeId};
    use crate::wire::envelope::{Envelope, max_bytes};
    use proptest::prelude::*;

    /// The push in one line: data, ttl, key, uids.
    fn line(push: Result<Push<'_>, ApiError>) -> String {
        match push {
            Err(error) => format!("{}: {}", error.status, error.msg),
            Ok(push) => {
                let targets = push.targets.as_targets();
                let name = |uid| str::from_utf8(uid).unwrap();
                let uids = targets.uids.map(|uids| uids.iter().map(name).collect::<Vec<_>>());
                let data = str::from_utf8(&push.data).unwrap();
                format!("{data} {} {:?} {uids:?}", push.ttl_ms, push.idempotency_key)
            }
        }
    }

    fn from_form(form: &str) -> String {
        line(Push::from_params(&Params::parse(form.as_bytes()).unwrap(), &Limits::default()))
    }

    fn from_json(body: &str) -> String {
        let members = json::members(body.as_bytes());
        line(members.map_err(ApiError::from).and_then(|m| Push::from_json(&m, &Limits::default())))
    }

    fn batch(body: &str) -> Result<Vec<String>, ApiError> {
        let limits = Limits { batch_messages: 3, ..Limits::default() };
        let batch = Batch::from_json(&json::members(body.as_bytes())?, &limits)?;
        let lines: Vec<String> = batch.pushes(&limits).map(line).collect();
        assert_eq!(lines.len(), batch.len());
        Ok(lines)
    }

    #[test]
    fn a_forms_data_becomes_a_json_string() {
        assert_eq!(
            from_form("pid=1&data=a%22%0A%C3%A9&uids=u1&ttl_ms=500&idempotency_key=k&other=x"),
            r#""a\"\né" 500 Some("k") Some(["u1"])"#
        );
        assert_eq!(from_form("data"), r#""" 0 None None"#);
        assert_eq!(from_form("uids=u1"), "400: data is missing: what the clients shall receive");
    }

    #[test]
    fn json_data_stays_byte_for_byte() {
        for data in ["null", "1.50e+3", r#"{"a" : [ 1,2 ] , "a":"\u0041"}"#, r#""x\/""#, "false"] {
            let body = format!(r#"{{ "uids":["u1"], "data" : {data} , "pid":1}}"#);
            assert_eq!(from_json(&body), format!(r#"{data} 0 None Some(["u1"])"#));
        }
        assert_eq!(from_json("{}"), "400: data is missing: what the clients shall receive");
    }

    #[test]
    fn ttl_and_key_are_bounded() {
        assert!(from_form("data=&ttl_ms=604800000").contains("604800000"));
        let key = "k".repeat(64);
        assert!(from_form(&format!("data=&idempotency_key={key}")).contains(&key));
        for bad in
            ["0", "604800001", "4294967296", "99999999999999999999", "-1", "1.0", "null", "[1]"]
        {
            let answer = from_json(&format!(r#"{{"data":1,"ttl_ms":{bad}}}"#));
            assert!(answer.starts_with("400: ttl_ms must be"), "{bad}: {answer}");
        }
        for bad in ["null", "7", "\"\"", &format!("\"{key}k\"")] {
            let answer = from_json(&format!(r#"{{"data":1,"idempotency_key":{bad}}}"#));
            assert!(answer.starts_with("400: idempotency_key must be"), "{bad}: {answer}");
        }
    }

    #[test]
    fn a_bad_message_spoils_only_its_own_result() {
        let body =
            r#"{"pid":1,"messages":[{"data":1},{"data":1,"data":2},{"uids":"u","data":{}}]}"#;
        let lines = batch(body).unwrap();
        assert_eq!(lines[0], "1 0 None None");
        assert!(lines[1].starts_with("400: "), "{}", lines[1]);
        assert_eq!(lines[2], r#"{} 0 None Some(["u"])"#);
        let lines = batch(r#"{"messages":[7,{"data":1,"cids":"x"}]}"#).unwrap();
        assert!(lines[0].starts_with("400: ") && lines[1].starts_with("400: cids"), "{lines:?}");
    }

    #[test]
    fn batches_are_bounded() {
        for bad in [
            "{}",
            r#"{"messages":{}}"#,
            r#"{"messages":[]}"#,
            r#"{"messages":[1,2,3,4]}"#,
            "[]",
            "{",
        ] {
            assert_eq!(batch(bad).unwrap_err().status, 400, "{bad}");
        }
    }

    #[test]
    fn what_grows_most_is_an_envelope_that_nodes_take() {
        let limits = Limits { selector_ids: 10_000, ..Limits::default() };
        let envelope_bytes = |push: &Push<'_>| {
            let envelope = Envelope {
                origin: NodeId::default(),
                epoch: 1,
                seq: 0,
                accepted_us: 0,
                trace: None,
                id: MessageId(1),
                ttl_ms: 0,
                key: None,
                pid: b"p",
                targets: push.targets.as_targets(),
                data: &push.data,
            };
            envelope.encoded_bytes()
        };
        let form = format!("data={}", "\u{1}".repeat(limits.body_bytes - "data=".len()));
        let params = Params::parse(form.as_bytes()).unwrap();
        let push = Push::from_params(&params, &limits).unwrap();
        assert!(envelope_bytes(&push) > 5 * limits.body_bytes);
        assert!(envelope_bytes(&push) <= max_bytes(&limits));
        let cids: Vec<String> = (0..10_000).map(|cid| cid.to_string()).collect();
        let body = format!(r#"{{"cids":[{}],"data":1}}"#, cids.join(","));
        let push = Push::from_json(&json::members(body.as_bytes()).unwrap(), &limits).unwrap();
        assert!(body.len() < limits.body_bytes && envelope_bytes(&push) <= max_bytes(&limits));
    }

    proptest! {
        #[test]
        fn a_body_cut_anywhere_never_panics(
            cut in 0usize..200, at in 0usize..200, byte in 0x20u8..0x7f,
        ) {
            let body = r#"{"pid":1,"messages":[{"uids":["u1",2],"data":{"a":[1]},"ttl_ms":5},
                {"cids":"1,2","data":"x","idempotency_key":"k"},{"data":null}],"data":"\u00e9"}"#;
            let mut body = body.to_owned().into_bytes();
            if let Some(target) = body.get_mut(at) {
                *target = byte;
            }
            body.truncate(cut);
            let text = String::from_utf8_lossy(&body);
            let _ = batch(&text);
            let _ = from_json(&text);
        }
    }
}
