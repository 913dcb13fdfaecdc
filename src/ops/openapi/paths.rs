//! Request and responses of each path of the HTTP port. The functions exist only for their
//! descriptions; `io::api` answers the requests.

use super::schemas::{
    Accepted, Batch, BatchAccepted, BatchRefused, Push, PushForm, Refused, Success, Trace, Version,
};
use utoipa::IntoResponses;

/// What any request may be answered.
#[derive(IntoResponses)]
pub enum AnyRequest {
    /// The request did not come whole within `--request_timeout_ms`.
    #[response(status = 408)]
    Late(Refused),
    /// The body is over `--max_body_bytes` (1 MiB), or a push is larger than what the queue
    /// carries: then the text has the figure, the setting of Redis, and the fix.
    #[response(status = 413)]
    LargeBody(Refused),
    /// The head is over `--max_head_bytes` (8 KiB) or `--max_head_fields` (100).
    #[response(status = 431)]
    LargeHead(Refused),
}

/// The request is malformed.
#[derive(IntoResponses)]
#[response(status = 400)]
pub struct Malformed(pub Refused);

/// The node has too many HTTP connections.
#[derive(IntoResponses)]
#[response(status = 503, headers(("Retry-After" = u32, description = "Seconds.")))]
pub struct Crowded(pub Refused);

/// What a request to be signed may be answered besides.
#[derive(IntoResponses)]
pub enum SignedRequest {
    /// A bad, missing or expired sign. `msg` says which; with `--env dev` also the text that should
    /// have been signed.
    #[response(status = 401, example = json!({"code": 0, "msg": "sign is missing (X-Sign)"}))]
    Unsigned(Refused),
    /// An unknown project.
    #[response(status = 403, example = json!({"code": 0, "msg": "unknown project"}))]
    UnknownProject(Refused),
    /// Neither a body with `Content-Length` or `Transfer-Encoding`, nor a query.
    #[response(status = 411)]
    WithoutLength(Refused),
    /// The body is neither a form nor JSON, or it is compressed; a batch is JSON.
    #[response(
        status = 415,
        headers(("Accept-Encoding" = String, description = "`identity`, where the body has a \
            `Content-Encoding` that is not taken.")),
    )]
    OtherContent(Refused),
}

/// Send one message to the matching clients.
///
/// Parameters come from exactly one place: the query, a form or a JSON body. A query and a form
/// carry `sign` as a parameter, a JSON body has it in `X-Sign`. Selectors that are given are
/// intersected, the values within one are a union; none means every client of the project. A
/// selector that is given but empty matches nobody. No selector ever reaches another project.
/// Unknown parameters are refused: a misspelt selector would reach everybody.
#[utoipa::path(
    post,
    path = "/ws/push",
    tag = "push",
    params(PushForm, Trace),
    request_body(
        description = "Absent where the parameters are the query.",
        content((Push = "application/json"), (PushForm = "application/x-www-form-urlencoded")),
    ),
    responses(
        (
            status = 200,
            description = "The queue has accepted the message: with `--queue local` the workers \
                           of the node, with `--queue redis` Redis has answered.",
            body = Accepted,
        ),
        (
            status = 400,
            description = "Malformed: the request, a parameter, the JSON; parameters in two \
                           places, one given twice, an unknown one; a field `Idempotency-Key`, \
                           which would not be signed.",
            body = Refused,
            examples(
                ("without data" = (value = json!(
                    {"code": 0, "msg": "data is missing: what the clients shall receive"}
                ))),
                ("twice" = (value = json!(
                    {"code": 0, "msg": "the member \"data\" of the JSON object is given twice"}
                ))),
                ("unknown" = (value = json!(
                    {"code": 0, "msg": "unknown member \"uid\"; did you mean \"uids\"?"}
                ))),
            ),
        ),
        AnyRequest,
        SignedRequest,
        (
            status = 503,
            description = "Not accepted: try again, or push to another node.",
            body = Refused,
            headers(("Retry-After" = u32, description = "Seconds.")),
            examples(
                ("down" = (value = json!({
                    "code": 0,
                    "msg": "the queue is down: not accepted, try again or push to another node",
                }))),
                ("refused" = (value = json!(
                    {"code": 0, "msg": "the queue refused the message: see the node's log"}
                ))),
                ("overloaded" = (value = json!(
                    {"code": 0, "msg": "the node is overloaded: not accepted, try again"}
                ))),
                ("draining" = (value = json!(
                    {"code": 0, "msg": "this node is draining: push to another"}
                ))),
                ("crowded" = (value = json!(
                    {"code": 0, "msg": "too many requests are on their way to this node: try again"}
                ))),
            ),
        ),
        (
            status = 504,
            description = "Outcome unknown: the queue was given the message and did not answer \
                           within `--queue_timeout_ms`. It may be delivered. With an \
                           `idempotency_key`: push again with the same key.",
            body = Refused,
            example = json!({
                "code": 0,
                "msg": "outcome unknown",
            }),
        ),
    ),
    security(("X-Sign" = []), ("sign" = [])),
)]
pub fn push() {}

/// Send up to 1,000 messages (`--max_batch`), accepted in order.
///
/// JSON only, with one signature for all. 200 if any message was accepted, otherwise the status of
/// the first that was refused.
#[utoipa::path(
    post,
    path = "/ws/push/batch",
    tag = "push",
    params(Trace),
    request_body = Batch,
    responses(
        (status = 200, description = "At least one message was accepted.", body = BatchAccepted),
        (
            status = 400,
            description = "The batch is malformed, or no message of it was accepted.",
            body = BatchRefused,
        ),
        AnyRequest,
        SignedRequest,
        (
            status = 503,
            description = "No message was accepted: try again, or push to another node.",
            body = BatchRefused,
            headers(("Retry-After" = u32, description = "Seconds.")),
        ),
        (
            status = 504,
            description = "Outcome unknown, as of a push; no message is known to be accepted.",
            body = BatchRefused,
        ),
    ),
    security(("X-Sign" = [])),
)]
pub fn push_batch() {}

/// The process is up.
#[utoipa::path(
    get,
    path = "/healthz",
    tag = "node",
    responses(
        (status = 200, description = "It is up.", body = Success),
        Malformed,
        AnyRequest,
        Crowded,
    ),
)]
pub fn healthz() {}

/// The node takes connections and pushes, and hears those of other nodes.
#[utoipa::path(
    get,
    path = "/readyz",
    tag = "node",
    responses(
        (status = 200, description = "It does.", body = Success),
        Malformed,
        AnyRequest,
        (
            status = 503,
            description = "It drains, the queue is down, a worker does not take what the queue \
                           brings, no worker has room for a WebSocket connection; or the node has \
                           too many HTTP connections.",
            body = Refused,
            headers(("Retry-After" = u32, description = "Seconds.")),
            example = json!({"code": 0, "msg": "draining"}),
        ),
    ),
)]
pub fn readyz() {}

/// What runs here.
#[utoipa::path(
    get,
    path = "/version",
    tag = "node",
    responses(
        (status = 200, description = "Name, version, commit and node.", body = Version),
        Malformed,
        AnyRequest,
        Crowded,
    ),
)]
pub fn version() {}
