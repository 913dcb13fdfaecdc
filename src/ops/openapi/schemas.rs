//! Requests and responses of the HTTP API as its description shows them. The readers are in
//! `wire::request`, `wire::push` and `wire::selectors`, whose limits are used here.

use crate::types::{Limits, NodeId};
use crate::wire::push::{MAX_IDEMPOTENCY_KEY_BYTES, MAX_TTL_MS};
use crate::wire::request::MAX_UNIX_SECONDS;
use std::borrow::Cow;
use utoipa::openapi::schema::{ArrayBuilder, ObjectBuilder, OneOfBuilder, SchemaType, Type};
use utoipa::openapi::{Ref, RefOr, Schema};
use utoipa::{IntoParams, PartialSchema, ToSchema};

// Bodies of requests. A member that may be absent is `required = false`, not an `Option`: a
// selector may not be null, and the members that may have that in their values.

/// A push as JSON, signed with `X-Sign`. It has `data` and any of the selectors; unknown members
/// are refused.
#[derive(ToSchema)]
#[schema(example = json!({"data": {"hello": "world"}, "pid": "1", "uids": ["alice"]}))]
pub struct Push {
    pub pid: Pid,
    #[schema(required = false)]
    pub uids: Uids,
    #[schema(required = false)]
    pub cids: Cids,
    #[schema(required = false)]
    pub tags: Tags,
    #[schema(required = false)]
    pub devices: Devices,
    #[schema(required = false)]
    pub except_cids: Cids,
    pub data: Data,
    #[schema(required = false)]
    pub ttl_ms: TtlMs,
    #[schema(required = false)]
    pub idempotency_key: OptionalKey,
    #[schema(required = false)]
    pub transient: Transient,
    #[schema(required = false)]
    pub exp: Exp,
}

/// One message of a batch: a push without `pid` and `exp`.
#[derive(ToSchema)]
pub struct Message {
    #[schema(required = false)]
    pub uids: Uids,
    #[schema(required = false)]
    pub cids: Cids,
    #[schema(required = false)]
    pub tags: Tags,
    #[schema(required = false)]
    pub devices: Devices,
    #[schema(required = false)]
    pub except_cids: Cids,
    pub data: Data,
    #[schema(required = false)]
    pub ttl_ms: TtlMs,
    #[schema(required = false)]
    pub idempotency_key: OptionalKey,
    #[schema(required = false)]
    pub transient: Transient,
}

/// Messages that are accepted in order, with one signature for all. A message that is refused, or
/// is not an object at all, affects only its own result.
#[derive(ToSchema)]
#[schema(example = json!({
    "messages": [{"data": "for alice", "uids": ["alice"]}, {"data": 2, "tags": ["news"]}],
    "pid": "1",
}))]
pub struct Batch {
    pub pid: Pid,
    #[schema(schema_with = messages)]
    pub messages: (),
    #[schema(required = false)]
    pub exp: Exp,
}

/// A push as a query or a form: every value is text.
#[derive(ToSchema, IntoParams)]
#[into_params(parameter_in = Query)]
#[schema(example = json!({
    "data": "hello",
    "pid": "1",
    "sign": "4081a67e82d70ebc3fd4eeba58d21c0e842b59784edd8c6d9685bd3634f227ce",
    "uids": "alice",
}))]
pub struct PushForm {
    /// The project.
    #[param(required = false)]
    pub pid: PidText,
    /// Users, comma-separated.
    #[schema(required = false)]
    #[param(required = false)]
    pub uids: UidList,
    /// Client ids, comma-separated.
    #[schema(required = false)]
    #[param(required = false)]
    pub cids: CidList,
    /// Tags, comma-separated.
    #[schema(required = false)]
    #[param(required = false)]
    pub tags: TagList,
    /// Devices, comma-separated.
    #[schema(required = false)]
    #[param(required = false)]
    pub devices: DeviceList,
    /// Client ids that do not get the push even if they match, comma-separated.
    #[schema(required = false)]
    #[param(required = false)]
    pub except_cids: CidList,
    /// What the clients receive, as a JSON string.
    #[param(required = false)]
    pub data: String,
    /// Milliseconds after acceptance until which the push is delivered.
    #[schema(required = false)]
    #[param(required = false)]
    pub ttl_ms: Milliseconds,
    /// Pushes with the same `pid` and key within 5 minutes reach a client at most once.
    #[schema(required = false)]
    #[param(required = false)]
    pub idempotency_key: IdempotencyKey,
    /// `true` keeps the push out of the history that clients resume from. This version keeps none.
    #[schema(required = false)]
    #[param(required = false)]
    pub transient: TransientText,
    /// Unix seconds until which the request is valid; after that, with 5 s of leeway, it gets 401.
    #[schema(required = false)]
    #[param(required = false)]
    pub exp: UnixSeconds,
    /// The signature of a form; without it, the request gets 401.
    #[schema(required = false)]
    #[param(ignore)]
    pub sign: Sign,
}

/// A header of a push in any format.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
pub struct Trace {
    /// W3C Trace Context: the trace that the push belongs to, if spans are recorded.
    #[param(required = false)]
    pub traceparent: String,
}

// Responses.

/// Success.
#[derive(ToSchema)]
#[schema(example = json!({"code": 1, "msg": "success"}))]
pub struct Success {
    #[schema(schema_with = one)]
    pub code: (),
    #[schema(schema_with = success)]
    pub msg: (),
}

/// The queue has accepted the message.
#[derive(ToSchema)]
#[schema(example = json!({"code": 1, "id": "7340032000001", "msg": "success"}))]
pub struct Accepted {
    #[schema(schema_with = one)]
    pub code: (),
    #[schema(schema_with = success)]
    pub msg: (),
    pub id: MessageId,
}

/// The queue has accepted at least one message; the results are in the order of the messages.
#[derive(ToSchema)]
#[schema(example = json!({
    "code": 1,
    "msg": "success",
    "results": [
        {"code": 1, "id": "7340032000002"},
        {"code": 0, "msg": "data is missing: add the value that the clients receive"},
    ],
}))]
pub struct BatchAccepted {
    #[schema(schema_with = one)]
    pub code: (),
    #[schema(schema_with = success)]
    pub msg: (),
    #[schema(schema_with = results)]
    pub results: (),
}

/// Refused; `msg` is the reason.
#[derive(ToSchema)]
#[schema(example = json!({"code": 0, "msg": "sign is missing: add the header X-Sign"}))]
pub struct Refused {
    #[schema(schema_with = zero)]
    pub code: (),
    #[schema(min_length = 1)]
    pub msg: String,
}

/// Refused; `msg` is the reason. If the batch itself was well-formed, but none of its messages was
/// accepted, it has `results`.
#[derive(ToSchema)]
#[schema(example = json!({
    "code": 0,
    "msg": "no message was accepted",
    "results": [{"code": 0, "msg": "data is missing: add the value that the clients receive"}],
}))]
pub struct BatchRefused {
    #[schema(schema_with = zero)]
    pub code: (),
    #[schema(min_length = 1)]
    pub msg: String,
    #[schema(required = false, schema_with = results)]
    pub results: (),
}

/// A message of a batch that was accepted.
#[derive(ToSchema)]
pub struct AcceptedResult {
    #[schema(schema_with = one)]
    pub code: (),
    pub id: MessageId,
}

/// Name and version of the program.
#[derive(ToSchema)]
#[schema(example = json!({
    "code": 1, "commit": "78d5361a2b", "msg": "success", "name": "ws-cluster", "node": 200,
    "version": "0.1.0",
}))]
pub struct Version {
    #[schema(schema_with = one)]
    pub code: (),
    #[schema(schema_with = success)]
    pub msg: (),
    #[schema(schema_with = product)]
    pub name: (),
    pub version: String,
    /// The Git commit that it was built from, with `-dirty` appended if there were uncommitted
    /// changes, or
    /// `unknown`.
    pub commit: String,
    #[schema(schema_with = node)]
    pub node: (),
}

// Values. No attribute can express their constraints, so they are built.

/// Defines a type of the description by the expression that builds its schema.
macro_rules! value {
    ($name:ident, $schema:expr) => {
        pub struct $name;

        impl ToSchema for $name {}

        impl PartialSchema for $name {
            fn schema() -> RefOr<Schema> {
                $schema.into()
            }
        }
    };
}

/// A uid or a tag, as an ECMA-262 regular expression.
const NAME: &str = r"[^,\u0000-\u001f\u007f-\u009f]{1,128}";
/// The same in a comma-separated list, whose elements may be surrounded by blanks.
const LISTED_NAME: &str = concat!(
    r"[^, \u0000-\u001f\u007f-\u009f]",
    r"([^,\u0000-\u001f\u007f-\u009f]{0,126}[^, \u0000-\u001f\u007f-\u009f])?"
);
const DEVICE: &str = "[a-z0-9_-]{1,32}";
/// A client id has 63 bits.
const CID: &str = "[0-9]{1,19}";
/// Up to [`MAX_UNIX_SECONDS`].
const UNIX_SECONDS: &str = "0*[0-9]{1,11}";
/// Up to [`MAX_TTL_MS`].
const TTL_MS: &str = "0*([1-9][0-9]{0,7}|[1-5][0-9]{8}|60[0-3][0-9]{6}|604[0-7][0-9]{5}|604800000)";

value!(Pid, {
    let description = "The project id. An integer stands for its decimal text.";
    one_of(&[PidText::name()]).item(integer()).description(Some(description))
});
value!(PidText, text("[A-Za-z0-9_.-]{1,64}"));
value!(Data, {
    let description = "Any JSON value, nested at most 128 levels deep. Clients receive it byte for \
        byte.";
    ObjectBuilder::new().schema_type(SchemaType::AnyValue).description(Some(description))
});
value!(Uids, list("Users", UidList::name(), text(NAME), Some(integer())));
value!(Tags, list("Tags", TagList::name(), text(NAME), None));
value!(Devices, list("Devices", DeviceList::name(), text(DEVICE), None));
value!(Cids, list("Client ids", CidList::name(), text(CID), Some(u64())));
value!(UidList, text_list(LISTED_NAME));
value!(TagList, text_list(LISTED_NAME));
value!(DeviceList, text_list(DEVICE));
value!(CidList, text_list(CID));
value!(TtlMs, {
    let description = "Milliseconds after acceptance until which the push is delivered.";
    one_of(&[Milliseconds::name()]).item(text(TTL_MS)).item(null()).description(Some(description))
});
value!(Milliseconds, integer().minimum(Some(1)).maximum(Some(MAX_TTL_MS as usize)));
value!(Exp, {
    let description = "Unix seconds until which the request is valid; after that, with 5 s of \
        leeway, it gets 401. `--env prod` requires it.";
    one_of(&[UnixSeconds::name()])
        .item(text(UNIX_SECONDS))
        .item(null())
        .description(Some(description))
});
value!(UnixSeconds, integer().minimum(Some(0)).maximum(Some(MAX_UNIX_SECONDS as usize)));
value!(IdempotencyKey, {
    let description = "1-64 bytes. Pushes with the same `pid` and key within 5 minutes, at any \
        node, reach a client at most once, and all are answered with success.";
    let key = ObjectBuilder::new().schema_type(Type::String).min_length(Some(1));
    key.max_length(Some(MAX_IDEMPOTENCY_KEY_BYTES)).description(Some(description))
});
value!(OptionalKey, one_of(&[IdempotencyKey::name()]).item(null()));
value!(Transient, {
    let description = "`true` keeps the push out of the history that clients resume from. This \
                       version keeps none.";
    let boolean = ObjectBuilder::new().schema_type(Type::Boolean);
    OneOfBuilder::new().item(boolean).item(null()).description(Some(description))
});
value!(TransientText, {
    ObjectBuilder::new().schema_type(Type::String).enum_values(Some(["true", "false"]))
});
value!(Sign, text("[0-9a-f]{64}"));
value!(MessageId, {
    let description = "A decimal number that is never assigned twice.";
    text("[0-9]{1,20}").description(Some(description))
});
value!(MessageResult, one_of(&[AcceptedResult::name(), Refused::name()]));

/// Returns the schema of a text that matches the regular expression as a whole.
fn text(pattern: &str) -> ObjectBuilder {
    ObjectBuilder::new().schema_type(Type::String).pattern(Some(format!("^{pattern}$")))
}

/// A text that is empty, or all blanks, has no elements.
fn text_list(element: &str) -> ObjectBuilder {
    let element = format!(r"{element}[ \t]*");
    text(&format!(r"[ \t]*({element}(,[ \t]*{element})*)?"))
}

/// Returns the schema of a selector: a text list, an array, or a single integer. `text` and
/// `integer` are the schemas of an element.
fn list(
    what: &str,
    text_list: Cow<'static, str>,
    text: ObjectBuilder,
    integer: Option<ObjectBuilder>,
) -> OneOfBuilder {
    let max = Limits::default().selector_ids;
    let description = format!(
        "{what}: comma-separated, with optional spaces around each element, or an array; at most \
         {max}, counting duplicates. An empty list matches nobody; null is refused."
    );
    let integer = integer.map(ObjectBuilder::build);
    let element = integer.iter().cloned().fold(OneOfBuilder::new().item(text), OneOfBuilder::item);
    let array = ArrayBuilder::new().items(element).max_items(Some(max));
    let list = one_of(&[text_list]).item(array);
    integer.into_iter().fold(list, OneOfBuilder::item).description(Some(description))
}

/// Returns the schema that accepts one of these.
fn one_of(names: &[Cow<'static, str>]) -> OneOfBuilder {
    let schemas = names.iter().map(|name| Ref::from_schema_name(&**name));
    schemas.fold(OneOfBuilder::new(), OneOfBuilder::item)
}

fn integer() -> ObjectBuilder {
    ObjectBuilder::new().schema_type(Type::Integer)
}

fn u64() -> ObjectBuilder {
    integer().minimum(Some(0)).maximum(Some(u64::MAX as usize))
}

/// A null, which counts as absent.
fn null() -> ObjectBuilder {
    ObjectBuilder::new().schema_type(Type::Null)
}

fn node() -> ObjectBuilder {
    integer().minimum(Some(0)).maximum(Some(NodeId::MAX))
}

fn messages() -> ArrayBuilder {
    let max = Limits::default().batch_messages;
    let message = Ref::from_schema_name(Message::name());
    ArrayBuilder::new().items(message).min_items(Some(1)).max_items(Some(max))
}

fn results() -> ArrayBuilder {
    ArrayBuilder::new().items(Ref::from_schema_name(MessageResult::name()))
}

fn zero() -> ObjectBuilder {
    integer().enum_values(Some([0]))
}

fn one() -> ObjectBuilder {
    integer().enum_values(Some([1]))
}

fn success() -> ObjectBuilder {
    ObjectBuilder::new().schema_type(Type::String).enum_values(Some(["success"]))
}

fn product() -> ObjectBuilder {
    ObjectBuilder::new().schema_type(Type::String).enum_values(Some([env!("CARGO_PKG_NAME")]))
}
