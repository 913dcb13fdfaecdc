//! The HTTP API: routes, signatures, and the way from a push to its acceptance.

use super::clock::Moment;
use super::date::http_date;
use super::http::{self, Connections, Request, Service};
use super::pauses;
use super::routes::{GET, POST, PUSH, methods_of};
use super::shared::Shared;
use super::worker_context::{PendingPush, PushOrigin, WorkerContext};
use crate::state::active_config::ActiveConfig;
use crate::state::broker::Outcome;
use crate::state::counters::{HttpCounters, Refusal};
use crate::state::projects::Project;
use crate::state::settings::Times;
use crate::types::{Limits, MessageId, Networks, WallMs, quoted, version};
use crate::wire::http::{Body, Head, HttpError};
use crate::wire::json::{self, Members, write_string};
use crate::wire::params::Params;
use crate::wire::push::{Batch, Push, has_sign};
use crate::wire::request::{ApiError, Credentials};
use crate::wire::response::write_response;
use crate::wire::sign::{self, SignPlace, SignRules};
use smallvec::SmallVec;
use std::borrow::Cow;
use std::cell::RefCell;
use std::net::IpAddr;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

/// Maximum total time that the messages of a batch wait for room behind earlier ones.
const MAX_BATCH_WAIT: Duration = Duration::from_secs(1);

const JSON: &str = "application/json";

impl Service for WorkerContext {
    type Pending<'a> = PendingReply<'a>;

    fn limits(&self) -> Limits {
        self.active().settings.limits.clone()
    }

    fn times(&self) -> Times {
        self.active().settings.times
    }

    fn with_trusted_proxies<R>(&self, look: impl FnOnce(&Networks) -> R) -> R {
        look(&self.active.borrow().settings.trusted_proxies)
    }

    fn connections(&self) -> &RefCell<Connections> {
        &self.http
    }

    fn count_refusal(&self, why: Refusal) {
        self.shared.http_counters[self.index].refusals.count(why);
    }

    fn handle_answered(&self) {
        self.requests.flush();
    }

    fn refuse(
        &self,
        origin: Option<&str>,
        ip: Option<IpAddr>,
        error: &HttpError,
        out: &mut Vec<u8>,
    ) {
        let HttpError { status, msg } = *error;
        tracing::debug!(ip = ip.map(tracing::field::display), status, msg, "refused a request");
        let other = HttpCounters::url_of("other");
        self.shared.http_counters[self.index].count(other, error.status, 0, 1);
        let mut reply = Reply {
            context: self,
            origin,
            is_allowed: None,
            is_head: false,
            is_encoded: false,
            keep_alive: false,
            out,
            status: 200,
        };
        reply.refuse(None, &ApiError { status: error.status, msg: error.msg.into() });
    }

    async fn answer(
        &self,
        request: Request<'_>,
        keep_alive: bool,
        out: &mut Vec<u8>,
    ) -> http::Answer<PendingReply<'_>> {
        pauses::take_turn(pauses::REQUEST).await;
        let keep_alive = keep_alive && !self.shared.is_draining();
        let head = request.head;
        let active = self.active();
        let reply = Reply {
            context: self,
            origin: head.origin,
            is_allowed: None,
            is_head: head.method == "HEAD",
            is_encoded: head.content_encoding.is_some(),
            keep_alive,
            out,
            status: 200,
        };
        let read_at = request.read_at;
        let (project, is_signed) = (None, false);
        let active = &*active;
        let mut answer = Answer { context: self, active, head, read_at, project, is_signed, reply };
        let pending = match answer.route(request.body).await {
            Ok(pending) => pending,
            Err(error) => {
                answer.reply.refuse(answer.project, &error);
                None
            }
        };
        let (status, is_known) = (answer.reply.status, answer.is_signed);
        if status >= 400 && tracing::enabled!(tracing::Level::DEBUG) {
            let ip = request.client_ip(&active.settings.trusted_proxies);
            let ip = ip.map(tracing::field::display);
            tracing::debug!(ip, status, path = head.path, "refused a request");
        }
        self.wait_for_room().await;
        let pending = pending.map(|(push, project)| PendingReply {
            push,
            keep_alive,
            origin: request.head.origin.map(Into::into),
            is_allowed: project.allows_origin(request.head.origin),
            started: read_at.instant,
        });
        if pending.is_none() {
            self.requests.add(request.head.path, status, read_at.instant);
        }
        http::Answer { keep_alive, is_known, pending }
    }

    fn poll_finish(
        &self,
        pending: &mut PendingReply<'_>,
        out: &mut Vec<u8>,
        context: &mut Context<'_>,
    ) -> Poll<()> {
        let result = ready!(pending.push.poll_finish(context));
        let result = result.map_err(|outcome| not_accepted(outcome, &self.shared));
        let mut reply = Reply {
            context: self,
            origin: pending.origin.as_deref(),
            is_allowed: Some(pending.is_allowed),
            is_head: false,
            is_encoded: false,
            keep_alive: pending.keep_alive,
            out,
            status: 200,
        };
        reply.answer_push(None, result);
        self.requests.add(PUSH, reply.status, pending.started);
        Poll::Ready(())
    }
}

/// A push that waits for the queue's answer, with what its response needs of the request.
pub struct PendingReply<'a> {
    push: PendingPush<'a>,
    keep_alive: bool,
    origin: Option<Box<str>>,
    /// The project allows this origin.
    is_allowed: bool,
    started: Instant,
}

/// A request on its way to its response.
struct Answer<'c, 'a, 'r, 'h> {
    context: &'c WorkerContext,
    /// What it is judged by, whatever a reload does in the meantime.
    active: &'a ActiveConfig,
    head: &'r Head<'h>,
    read_at: Moment,
    /// The project that the request claims; known before its signature is checked.
    project: Option<&'a Project>,
    is_signed: bool,
    reply: Reply<'c, 'r>,
}

/// Where the response to a request is written, with what it needs of the request.
struct Reply<'c, 'r> {
    context: &'c WorkerContext,
    origin: Option<&'r str>,
    /// Whether the origin is allowed, if that is known; otherwise its project says it.
    is_allowed: Option<bool>,
    is_head: bool,
    /// The request's body has a Content-Encoding.
    is_encoded: bool,
    keep_alive: bool,
    out: &'r mut Vec<u8>,
    status: u16,
}

/// A push that has begun, and its project.
type PendingOf<'c, 'a> = (PendingPush<'c>, &'a Project);

/// Fields of a response.
type Fields<'a> = SmallVec<[(&'a str, &'a str); 6]>;

impl<'c, 'a, 'h> Answer<'c, 'a, '_, 'h> {
    /// Routes a request. A push that has begun is returned, to be answered later.
    async fn route(&mut self, body: &[u8]) -> Result<Option<PendingOf<'c, 'a>>, ApiError> {
        let (path, method) = (self.head.path, self.head.method);
        let Some(allowed) = methods_of(path) else { return Err(self.not_found()) };
        match method {
            "OPTIONS" => self.preflight(allowed),
            "POST" if allowed == POST && path == PUSH => return self.push(body),
            "POST" if allowed == POST => self.push_batch(body).await?,
            "GET" | "HEAD" if allowed == GET => self.status_page(),
            _ => {
                self.reply.respond(
                    405,
                    None,
                    &[("Allow", allowed)],
                    b"{\"code\":0,\"msg\":\"method not allowed\"}",
                );
            }
        }
        Ok(None)
    }

    fn not_found(&self) -> ApiError {
        let msg = match self.context.shared.ports.get() {
            Some(ports) if self.head.path == "/ws/connect" => {
                format!("not found: /ws/connect is on the WebSocket port, {}", ports.ws).into()
            }
            _ => "not found".into(),
        };
        ApiError { status: 404, msg }
    }

    // Pages without a signature.

    fn status_page(&mut self) {
        if self.head.path == "/readyz"
            && let Some(msg) = self.context.shared.unready()
        {
            return self.reply.refuse(None, &ApiError { status: 503, msg: msg.into() });
        }
        match self.head.path {
            "/version" => {
                let node = self.context.shared.at_start.node;
                let (version, commit) = (version::VERSION, version::COMMIT);
                let program =
                    format!(r#""name":"ws-cluster","version":"{version}","commit":"{commit}""#);
                let body = format!(r#"{{"code":1,"msg":"success",{program},"node":{node}}}"#);
                self.reply.respond(200, None, &[], body.as_bytes());
            }
            _ => self.reply.respond(200, None, &[], b"{\"code\":1,\"msg\":\"success\"}"),
        }
    }

    /// Answers a CORS preflight request.
    fn preflight(&mut self, allowed: &str) {
        let asked = self.head.access_control_request_headers;
        let project = self.head.query.and_then(|query| {
            let params = Params::parse(query.as_bytes()).ok()?;
            Some(self.active.projects.find(params.get("pid")?)?.1)
        });
        let fields = [
            ("Allow", allowed),
            ("Access-Control-Allow-Methods", allowed),
            ("Access-Control-Allow-Headers", asked.unwrap_or("Content-Type, X-Sign")),
            ("Access-Control-Max-Age", "600"),
        ];
        self.reply.respond(204, project, &fields, b"");
    }

    // Pushes.

    fn push(&mut self, body: &[u8]) -> Result<Option<PendingOf<'c, 'a>>, ApiError> {
        let head = self.head;
        let limits = &self.active.settings.limits;
        let now = self.read_at.wall();
        let project;
        let result = match parameters(head, body)? {
            Parameters::Json => {
                let members = json::members(body)?;
                project = self.authorize_json(&members, body, now)?;
                Push::from_json(&members, limits).and_then(|push| self.begin(project, &push))
            }
            Parameters::Text(text) => {
                let params = Params::parse(text)?;
                let credentials = Credentials::from_params(&params, limits)?;
                let place = SignPlace::Parameter { is_in_header: head.x_sign.is_some() };
                project = self.authorize(&credentials, now, |secrets, shows_text| {
                    let mut canonical = Vec::with_capacity(256);
                    params.canonical(head.path, &mut canonical);
                    let rules = SignRules { place, shows_text };
                    sign::check(secrets, &[&canonical], credentials.sign, rules)
                })?;
                Push::from_params(&params, limits).and_then(|push| self.begin(project, &push))
            }
        };
        match result {
            Ok(pending) if !pending.is_accepted() => return Ok(Some((pending, project))),
            Ok(pending) => self.reply.answer_push(Some(project), Ok(pending.id())),
            Err(error) => self.reply.refuse(Some(project), &error),
        }
        Ok(None)
    }

    async fn push_batch(&mut self, body: &[u8]) -> Result<(), ApiError> {
        let limits = &self.active.settings.limits;
        let now = self.read_at.wall();
        let Parameters::Json = parameters(self.head, body)? else {
            return Err(error(415, "a batch must be JSON: send Content-Type: application/json"));
        };
        let members = json::members(body)?;
        let project = self.authorize_json(&members, body, now)?;
        let batch = match Batch::from_json(&members, limits) {
            Ok(batch) => batch,
            Err(error) => {
                self.reply.refuse(Some(project), &error);
                return Ok(());
            }
        };
        let mut pending = Vec::with_capacity(batch.len());
        let until = Instant::now() + MAX_BATCH_WAIT;
        for push in batch.pushes(limits) {
            self.context.wait_for_room().await;
            self.context.wait_for_takers(until).await;
            pending.push(push.and_then(|push| self.begin(project, &push)));
        }
        let mut results = Vec::with_capacity(48 * batch.len());
        let mut first_error = None;
        let mut accepted = 0;
        for one in pending {
            results.push(b',');
            match finish(one, &self.context.shared).await {
                Ok(id) => {
                    accepted += 1;
                    results.extend_from_slice(b"{\"code\":1,\"id\":\"");
                    results.extend_from_slice(itoa::Buffer::new().format(id.0).as_bytes());
                    results.extend_from_slice(b"\"}");
                }
                Err(error) => {
                    results.extend_from_slice(b"{\"code\":0,\"msg\":");
                    write_string(&mut results, &error.msg);
                    results.push(b'}');
                    first_error.get_or_insert(error.status);
                }
            }
        }
        let (status, start) = match first_error {
            Some(status) if accepted == 0 => {
                (status, &b"{\"code\":0,\"msg\":\"no message was accepted\",\"results\":["[..])
            }
            _ => (200, &b"{\"code\":1,\"msg\":\"success\",\"results\":["[..]),
        };
        let response = [start, &results[1..], b"]}"].concat();
        self.reply.respond(status, Some(project), &[], &response);
        Ok(())
    }

    fn authorize_json<'b>(
        &mut self,
        members: &Members<'b>,
        body: &[u8],
        now: WallMs,
    ) -> Result<&'a Project, ApiError>
    where
        'h: 'b,
    {
        let limits = &self.active.settings.limits;
        let credentials = Credentials::from_json(members, self.head.x_sign, limits)?;
        let path = self.head.path.as_bytes();
        let place = SignPlace::Header { is_in_body: has_sign(members) };
        self.authorize(&credentials, now, |secrets, shows_text| {
            let rules = SignRules { place, shows_text };
            sign::check(secrets, &[path, b"\n", body], credentials.sign, rules)
        })
    }

    /// Returns the project of a request with a valid signature, or 403 or 401, checked in this
    /// order.
    fn authorize(
        &mut self,
        credentials: &Credentials<'_>,
        now: WallMs,
        check: impl FnOnce(&[sign::Secret], bool) -> Result<(), Cow<'static, str>>,
    ) -> Result<&'a Project, ApiError> {
        let active = self.active;
        let Some((_, project)) = active.projects.find(&*credentials.pid) else {
            return Err(error(403, "unknown project"));
        };
        self.project = Some(project);
        check(&project.secrets, active.settings.env.shows_signed_text())
            .map_err(|msg| ApiError { status: 401, msg })?;
        self.is_signed = true;
        sign::check_exp(credentials.exp, active.settings.env.demands_exp(), now)?;
        Ok(project)
    }

    fn begin(&self, project: &Project, push: &Push<'_>) -> Result<PendingPush<'c>, ApiError> {
        if self.context.shared.is_refusing() {
            return Err(error(503, "this node is draining: push to another node"));
        }
        let origin = PushOrigin { read_at: self.read_at, traceparent: self.head.traceparent };
        let pending = self.context.begin_push(&project.pid, push, origin);
        pending.map_err(|outcome| not_accepted(outcome, &self.context.shared))
    }
}

impl Reply<'_, '_> {
    fn answer_push(&mut self, project: Option<&Project>, result: Result<MessageId, ApiError>) {
        match result {
            Ok(id) => {
                let mut response: SmallVec<[u8; 96]> = SmallVec::new();
                response.extend_from_slice(b"{\"code\":1,\"msg\":\"success\",\"id\":\"");
                response.extend_from_slice(itoa::Buffer::new().format(id.0).as_bytes());
                response.extend_from_slice(b"\"}");
                self.respond(200, project, &[], &response);
            }
            Err(error) => self.refuse(project, &error),
        }
    }

    fn refuse(&mut self, project: Option<&Project>, error: &ApiError) {
        let mut body = Vec::with_capacity(128);
        body.extend_from_slice(b"{\"code\":0,\"msg\":");
        write_string(&mut body, &error.msg);
        body.push(b'}');
        self.respond(error.status, project, &[], &body);
    }

    /// Writes a response. `project`: determines the allowed origins for a browser; if it is
    /// unknown, those of any project count.
    fn respond(
        &mut self,
        status: u16,
        project: Option<&Project>,
        extra: &[(&str, &str)],
        body: &[u8],
    ) {
        self.status = status;
        let mut fields: Fields<'_> = extra.iter().copied().collect();
        match status {
            503 => fields.push(("Retry-After", "1")),
            // Not for a 415 with another reason (RFC 9110, section 12.5.3).
            415 if self.is_encoded => fields.push(("Accept-Encoding", "identity")),
            _ => {}
        }
        if let Some(origin) = self.origin {
            self.add_cors(origin, project, &mut fields);
        }
        let date = http_date(self.context.coarse_wall());
        write_response(self.out, status, self.keep_alive, date, &fields, JSON, body);
        if self.is_head {
            // Content-Length stays what a GET would have (RFC 9110, section 8.6).
            self.out.truncate(self.out.len() - body.len());
        }
    }

    fn add_cors<'f>(&self, origin: &'f str, project: Option<&Project>, fields: &mut Fields<'f>) {
        let is_allowed = self.is_allowed.unwrap_or_else(|| match project {
            Some(project) => project.allows_origin(Some(origin)),
            None => self.context.active().projects.any_allows_origin(origin),
        });
        fields.push(("Vary", "Origin"));
        if is_allowed {
            fields.push(("Access-Control-Allow-Origin", origin));
            if fields.iter().any(|(name, _)| *name == "Retry-After") {
                fields.push(("Access-Control-Expose-Headers", "Retry-After"));
            }
        } else {
            fields.retain(|(name, _)| !name.starts_with("Access-Control-"));
        }
    }
}

pub(super) async fn finish(
    pending: Result<PendingPush<'_>, ApiError>,
    shared: &Shared,
) -> Result<MessageId, ApiError> {
    pending?.finish().await.map_err(|outcome| not_accepted(outcome, shared))
}

/// Returns the answer to a push that the queue refused or did not confirm.
pub(super) fn not_accepted(outcome: Outcome, shared: &Shared) -> ApiError {
    match outcome {
        Outcome::Unreachable => error(
            503,
            "the queue is down and the push was not accepted: try again, or push to another node",
        ),
        Outcome::TooLarge => {
            let limit = shared.queue.limit().map_or_else(String::new, |limit| limit.to_string());
            ApiError { status: 413, msg: format!("the push is too large: {limit}").into() }
        }
        Outcome::Refused => error(503, "the queue refused the message: see the node's log"),
        Outcome::Unknown | Outcome::Accepted => error(504, "outcome unknown"),
        Outcome::Overloaded => {
            error(503, "the node is overloaded and the push was not accepted: try again")
        }
    }
}

fn error(status: u16, msg: &'static str) -> ApiError {
    HttpError { status, msg }.into()
}

/// Where a request's parameters are.
enum Parameters<'a> {
    /// In the body.
    Json,
    /// In a query or a form, still encoded.
    Text(&'a [u8]),
}

/// Returns the place of the parameters, of which there must be exactly one.
fn parameters<'a>(head: &Head<'a>, body: &'a [u8]) -> Result<Parameters<'a>, ApiError> {
    if head.has_idempotency_key {
        return Err(error(
            400,
            "the header Idempotency-Key is not signed: send the parameter idempotency_key instead",
        ));
    }
    if let Some(coding) = head.content_encoding {
        let coding = quoted(coding);
        let msg = format!("Content-Encoding {coding} is not supported: send the body uncompressed")
            .into();
        return Err(ApiError { status: 415, msg });
    }
    let query = head.query.unwrap_or("");
    if body.is_empty() && !query.is_empty() {
        return Ok(Parameters::Text(query.as_bytes()));
    }
    if head.body == Body::None {
        return Err(error(411, "send the parameters in the query, or a body with Content-Length"));
    }
    if !query.is_empty() {
        return Err(error(
            400,
            "parameters in two places: send them in the query or in the body, not both",
        ));
    }
    if head.content_is(JSON) {
        Ok(Parameters::Json)
    } else if head.content_is("application/x-www-form-urlencoded") {
        Ok(Parameters::Text(body))
    } else {
        Err(error(415, "send Content-Type: application/json or application/x-www-form-urlencoded"))
    }
}
