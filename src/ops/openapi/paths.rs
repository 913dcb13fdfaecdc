//! Request and responses of each path of the HTTP port. The functions exist only for their
//! descriptions; `io::api` answers the requests.

use super::schemas::{
    Accepted, Batch, BatchAccepted, BatchRefused, Push, PushForm, Refused, Success, Trace, Version,
};
use utoipa::IntoResponses;

/// Responses that every request may get.
#[derive(IntoResponses)]
pub enum AnyRequest {
    /// The request was not complete within `--request_timeout_ms`.
    #[response(status = 408)]
    Late(Refused),
    /// The body is larger than `--max_body_bytes` (1 MiB), or a push is larger than the queue
    /// carries; then `msg` names the size, the Redis setting and the fix.
    #[response(status = 413)]
    LargeBody(Refused),
    /// The head exceeds `--max_head_bytes` (8 KiB) or `--max_head_fields` (100).
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

/// Further responses to a signed request.
#[derive(IntoResponses)]
pub enum SignedRequest {
    /// A bad, missing or expired sign. `msg` says which; with `--env dev` it also shows the text
    /// that should have been signed.
    #[response(status = 401, example = json!({"code": 0, "msg": "sign is missing: add the header \
        X-Sign"}))]
    Unsigned(Refused),
    /// An unknown project.
    #[response(status = 403, example = json!({"code": 0, "msg": "unknown project"}))]
    UnknownProject(Refused),
    /// The request has neither a query nor a body with `Content-Length` or `Transfer-Encoding`.
    #[response(status = 411)]
    WithoutLength(Refused),
    /// The body is neither a form nor JSON, or it is compressed; a batch must be JSON.
    #[response(
        status = 415,
        headers(("Accept-Encoding" = String, description = "`identity`, if the body has an \
            unsupported `Content-Encoding`.")),
    )]
    OtherContent(Refused),
}

/// Send one message to the matching clients.
///
/// Parameters come from exactly one place: the query, a form or a JSON body. A query and a form
/// carry `sign` as a parameter; for a JSON body it is in `X-Sign`. Selectors are intersected; the
/// values within one are a union; without selectors, the push goes to every client of the project.
/// An empty selector matches nobody. No selector ever reaches another project. Unknown parameters
/// are refused: a misspelt selector would reach everybody.
#[utoipa::path(
    post,
    path = "/ws/push",
    tag = "push",
    params(PushForm, Trace),
    request_body(
        description = "Absent if the parameters are in the query.",
        content((Push = "application/json"), (PushForm = "application/x-www-form-urlencoded")),
    ),
    responses(
        (
            status = 200,
            description = "The queue has accepted the message: with `--queue local` the workers of \
                the node, with `--queue redis` Redis has confirmed it.",
            body = Accepted,
        ),
        (
            status = 400,
            description = "The request, a parameter or the JSON is malformed; parameters are in \
                two places, one is given twice or unknown; or the request has a header \
                `Idempotency-Key`, which would not be signed.",
            body = Refused,
            examples(
                ("without data" = (value = json!(
                    {"code": 0, "msg": "data is missing: add the value that the clients receive"}
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
                    "msg": "the queue is down and the push was not accepted: try again, or push to \
                        another node",
                }))),
                ("refused" = (value = json!(
                    {"code": 0, "msg": "the queue refused the message: see the node's log"}
                ))),
                ("overloaded" = (value = json!(
                    {"code": 0, "msg": "the node is overloaded and the push was not accepted: try \
                        again"}
                ))),
                ("draining" = (value = json!(
                    {"code": 0, "msg": "this node is draining: push to another node"}
                ))),
                ("crowded" = (value = json!(
                    {"code": 0, "msg": "this node has too many requests in progress: try again"}
                ))),
            ),
        ),
        (
            status = 504,
            description = "Outcome unknown: the message was sent to the queue, which did not reply \
                within `--queue_timeout_ms`. It may be delivered. With an `idempotency_key`, push \
                again with the same key.",
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
/// JSON only, with one signature for all messages. 200 if any message was accepted, otherwise the
/// status of the first one that was refused.
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
            description = "The batch is malformed, or none of its messages was accepted.",
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
            description = "Outcome unknown, as for a push; no message is known to be accepted.",
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
        (status = 200, description = "The process is up.", body = Success),
        Malformed,
        AnyRequest,
        Crowded,
    ),
)]
pub fn healthz() {}

/// Whether the node accepts connections and pushes and receives those of other nodes.
#[utoipa::path(
    get,
    path = "/readyz",
    tag = "node",
    responses(
        (status = 200, description = "The node is ready.", body = Success),
        Malformed,
        AnyRequest,
        (
            status = 503,
            description = "The node drains, the queue is down, a worker does not process messages \
                from the queue, or no worker has room for a WebSocket connection; or the node has \
                too many HTTP connections.",
            body = Refused,
            headers(("Retry-After" = u32, description = "Seconds.")),
            example = json!({"code": 0, "msg": "draining"}),
        ),
    ),
)]
pub fn readyz() {}

/// Name and version of the program.
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
