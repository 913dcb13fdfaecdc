//! Pushes: from the parameters of `POST /ws/push`, from the messages of `POST /ws/push/batch` and
//! from a business server's `push` frame.

use std::borrow::Cow;

use super::envelope::TargetsBuf;
use super::json::{self, Members};
use super::params::Params;
use super::request::{ApiError, Given, Source, read_exp};
use super::selectors::read_targets;
use crate::types::{Limits, unknown};

/// The longest `ttl_ms`: seven days.
pub const MAX_TTL_MS: u64 = 7 * 24 * 60 * 60 * 1_000;
pub const MAX_IDEMPOTENCY_KEY_BYTES: usize = 64;

/// Members allowed in every push, however it is sent.
const MEMBERS: [&str; 9] = [
    "uids",
    "cids",
    "tags",
    "devices",
    "except_cids",
    "data",
    "ttl_ms",
    "idempotency_key",
    "transient",
];

/// Where a push comes from, which determines the members allowed besides [`MEMBERS`].
#[derive(Clone, Copy, PartialEq, Eq)]
enum Origin {
    /// A request of its own.
    Request,
    /// A message of a batch.
    Batch,
    /// A business server's frame.
    Server,
}

impl Origin {
    const fn members(self) -> &'static [&'static str] {
        match self {
            Self::Request => &["pid", "exp", "sign"],
            Self::Batch => &[],
            Self::Server => &["exp", "type", "id"],
        }
    }

    /// Rejects unknown members: a misspelt selector would reach every client.
    fn refuse_unknown<'a>(self, source: impl Source<'a>) -> Result<(), ApiError> {
        let is_known = |name: &str| MEMBERS.contains(&name) || self.members().contains(&name);
        let Some(name) = source.find_unknown(is_known) else { return Ok(()) };
        let place = match (self, &*name) {
            (Self::Batch, "pid" | "exp") => "of a message: it belongs beside \"messages\"",
            (Self::Server, "pid" | "sign") => {
                "of a business server's push: it has neither pid nor sign"
            }
            _ => return Err(unknown_member(&name, &[&MEMBERS, self.members()])),
        };
        Err(ApiError::bad(format!("unknown member \"{name}\" {place}")))
    }
}

fn unknown_member(name: &str, known: &[&[&str]]) -> ApiError {
    ApiError::bad(unknown("member", name, &known.concat()))
}

/// Rejects a member `sign` in a JSON body, where it would be ignored.
fn refuse_sign(members: &Members<'_>) -> Result<(), ApiError> {
    match has_sign(members) {
        true => Err(ApiError::bad(
            "unknown member \"sign\": for JSON, sign belongs in the header X-Sign",
        )),
        false => Ok(()),
    }
}

/// Whether a JSON body carries the signature that belongs in X-Sign.
pub fn has_sign(members: &Members<'_>) -> bool {
    members.optional("sign").is_some()
}

/// The contents of one push, without the credentials.
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
    /// Parses a query or a form: `data` becomes a JSON string.
    pub fn from_params(params: &'a Params<'_>, limits: &Limits) -> Result<Self, ApiError> {
        Self::read(params, Origin::Request, limits)
    }

    /// Parses a JSON body: `data` stays byte for byte as received.
    pub fn from_json(members: &Members<'a>, limits: &Limits) -> Result<Self, ApiError> {
        refuse_sign(members)?;
        Self::read(members, Origin::Request, limits)
    }

    /// Parses a business server's frame; with `exp` if it has one, which the caller checks.
    pub fn from_server(
        members: &Members<'a>,
        limits: &Limits,
    ) -> Result<(Self, Option<u64>), ApiError> {
        Ok((Self::read(members, Origin::Server, limits)?, read_exp(members)?))
    }

    fn read(source: impl Source<'a>, origin: Origin, limits: &Limits) -> Result<Self, ApiError> {
        origin.refuse_unknown(source)?;
        source.optional("transient").map(check_transient).transpose()?;
        let data = match source.given("data") {
            Some(Given::Json(value)) => Cow::Borrowed(value),
            Some(Given::Text(text)) => {
                let mut value = Vec::new();
                json::write_string(&mut value, text);
                Cow::Owned(value)
            }
            None => {
                return Err(ApiError::bad(
                    "data is missing: add the value that the clients receive",
                ));
            }
        };
        Ok(Self {
            targets: read_targets(source, limits)?,
            data,
            ttl_ms: source.optional("ttl_ms").map_or(Ok(0), read_ttl)?,
            idempotency_key: source.optional("idempotency_key").map(read_key).transpose()?,
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
        Self::refuse_unknown(members)?;
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

    fn refuse_unknown(members: &Members<'_>) -> Result<(), ApiError> {
        const KNOWN: [&str; 4] = ["pid", "messages", "exp", "sign"];
        refuse_sign(members)?;
        let Some(name) = members.find_unknown(|name| KNOWN.contains(&name)) else { return Ok(()) };
        if MEMBERS.contains(&&*name) {
            return Err(ApiError::bad(format!(
                "unknown member \"{name}\" of a batch: it belongs in each of its \"messages\""
            )));
        }
        Err(unknown_member(&name, &[&KNOWN]))
    }

    /// Returns the number of messages, valid and invalid: one result is due for each.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Always false: an empty batch is rejected.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Iterates over the messages in order. An error is the result of that message only.
    pub fn pushes(&self, limits: &Limits) -> impl Iterator<Item = Result<Push<'a>, ApiError>> {
        self.messages.clone().map(|message| {
            let members = json::members(message?)?;
            Push::read(&members, Origin::Batch, limits)
        })
    }
}

fn read_ttl(given: Given<'_>) -> Result<u32, ApiError> {
    let ttl_ms = given.number("ttl_ms")?;
    if !(1..=MAX_TTL_MS).contains(&ttl_ms) {
        return Err(ApiError::bad("ttl_ms must be 1 to 604800000 milliseconds (7 days)"));
    }
    u32::try_from(ttl_ms).map_err(|_| ApiError::bad("ttl_ms is too big"))
}

/// `transient` has no effect: there is no history to exclude the push from.
fn check_transient(given: Given<'_>) -> Result<(), ApiError> {
    match given {
        Given::Json(b"true" | b"false") | Given::Text("true" | "false") => Ok(()),
        _ => Err(ApiError::bad("transient must be true or false")),
    }
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

    /// Formats the push in one line: data, ttl, key, uids.
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
            from_form("pid=1&data=a%22%0A%C3%A9&uids=u1&ttl_ms=500&idempotency_key=k&sign=x&exp=1"),
            r#""a\"\né" 500 Some("k") Some(["u1"])"#
        );
        assert_eq!(from_form("data"), r#""" 0 None None"#);
        assert_eq!(
            from_form("uids=u1"),
            "400: data is missing: add the value that the clients receive"
        );
    }

    #[test]
    fn json_data_stays_byte_for_byte() {
        for data in ["null", "1.50e+3", r#"{"a" : [ 1,2 ] , "a":"\u0041"}"#, r#""x\/""#, "false"] {
            let body = format!(r#"{{ "uids":["u1"], "data" : {data} , "pid":1}}"#);
            assert_eq!(from_json(&body), format!(r#"{data} 0 None Some(["u1"])"#));
        }
        assert_eq!(from_json("{}"), "400: data is missing: add the value that the clients receive");
    }

    #[test]
    fn ttl_and_key_are_bounded() {
        assert!(from_form("data=&ttl_ms=604800000").contains("604800000"));
        let key = "k".repeat(64);
        assert!(from_form(&format!("data=&idempotency_key={key}")).contains(&key));
        for bad in ["0", "604800001", "4294967296", "99999999999999999999", "-1", "1.0", "[1]"] {
            let answer = from_json(&format!(r#"{{"data":1,"ttl_ms":{bad}}}"#));
            assert!(answer.starts_with("400: ttl_ms must be"), "{bad}: {answer}");
        }
        for bad in ["7", "\"\"", &format!("\"{key}k\"")] {
            let answer = from_json(&format!(r#"{{"data":1,"idempotency_key":{bad}}}"#));
            assert!(answer.starts_with("400: idempotency_key must be"), "{bad}: {answer}");
        }
        for good in ["true", "false"] {
            assert_eq!(from_json(&format!(r#"{{"data":1,"transient":{good}}}"#)), "1 0 None None");
            assert_eq!(from_form(&format!("data=&transient={good}")), r#""" 0 None None"#);
        }
        for bad in ["1", "\"true\"", "[]"] {
            let answer = from_json(&format!(r#"{{"data":1,"transient":{bad}}}"#));
            assert_eq!(answer, "400: transient must be true or false", "{bad}");
        }
        assert_eq!(from_form("data=&transient=1"), "400: transient must be true or false");
    }

    /// `{"uid":"bob"}` was taken for a push without a selector and reached the whole project.
    #[test]
    fn unknown_members_are_refused() {
        for (name, meant) in [
            ("uid", "uids"),
            ("tag", "tags"),
            ("cid", "cids"),
            ("uids[]", "uids"),
            ("except_uids", "except_cids"),
            ("Uids", "uids"),
            ("ttl", "ttl_ms"),
            ("idempotency-key", "idempotency_key"),
        ] {
            let refused = format!("400: unknown member \"{name}\"; did you mean \"{meant}\"?");
            let body = format!(r#"{{"pid":1,"data":1,"{name}":"bob"}}"#);
            if name != "ttl" {
                assert_eq!(from_json(&body), refused);
                assert_eq!(from_form(&format!("pid=1&data=1&{name}=bob")), refused);
            }
            assert!(from_json(&body).contains(meant), "{name}");
            let of_batch = batch(&format!(r#"{{"messages":[{{"data":1,"{name}":7}}]}}"#)).unwrap();
            assert!(of_batch[0].starts_with("400: unknown member"), "{name}: {}", of_batch[0]);
            let members = json::members(body.as_bytes()).unwrap();
            let of_server = Push::from_server(&members, &Limits::default());
            assert_eq!(of_server.unwrap_err().status, 400);
        }
        let user = from_json(r#"{"data":1,"user":null}"#);
        assert!(user.starts_with("400: unknown member \"user\"; known are \"uids\","), "{user}");
        let sign = "400: unknown member \"sign\": for JSON, sign belongs in the header X-Sign";
        assert_eq!(from_json(r#"{"data":1,"sign":"ab"}"#), sign);
        assert_eq!(from_json(r#"{"data":1,"sign":null}"#), "1 0 None None");
    }

    #[test]
    fn a_member_in_the_wrong_place_is_told_its_place() {
        let refused = |body: &str| batch(body).unwrap_err().msg.into_owned();
        let lines = batch(r#"{"messages":[{"data":1,"pid":"2"},{"data":1,"exp":9}]}"#).unwrap();
        let pid = r#"400: unknown member "pid" of a message: it belongs beside "messages""#;
        assert_eq!(lines, [pid.to_owned(), pid.replace("pid", "exp")]);
        assert_eq!(
            refused(r#"{"idempotency_key":"k","messages":[{"data":1}]}"#),
            "unknown member \"idempotency_key\" of a batch: it belongs in each of its \"messages\""
        );
        assert_eq!(
            refused(r#"{"message":[{"data":1}]}"#),
            r#"unknown member "message"; did you mean "messages"?"#
        );
        assert!(refused(r#"{"messages":[{"data":1}],"sign":"ab"}"#).contains("X-Sign"));
        let server = |body: &str| {
            let members = json::members(body.as_bytes()).unwrap();
            let read = Push::from_server(&members, &Limits::default());
            read.map(|(push, exp)| (line(Ok(push)), exp)).map_err(|error| error.msg.into_owned())
        };
        assert_eq!(
            server(r#"{"type":"push","id":"7","data":1,"exp":9}"#),
            Ok(("1 0 None None".into(), Some(9)))
        );
        let neither =
            "unknown member \"pid\" of a business server's push: it has neither pid nor sign";
        assert_eq!(server(r#"{"pid":1,"data":1}"#), Err(neither.into()));
    }

    /// Serializers write `null` for unset members.
    #[test]
    fn null_is_absent_but_for_a_selector() {
        let body = r#"{"data":null,"ttl_ms":null,"idempotency_key":null,"transient":null}"#;
        assert_eq!(from_json(body), "null 0 None None");
        for selector in ["uids", "cids", "tags", "devices", "except_cids"] {
            let answer = from_json(&format!(r#"{{"data":1,"{selector}":null}}"#));
            assert!(answer.starts_with(&format!("400: {selector} must be")), "{answer}");
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
