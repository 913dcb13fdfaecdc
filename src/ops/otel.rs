//! Exports traces to an OpenTelemetry collector: OTLP over HTTP, from its own thread.

use super::client;
use crate::io::shared::Shared;
use crate::io::spans::{Sampler, Span, SpanName};
use crate::io::threads::{self, StartError};
use crate::state::projects::Projects;
use crate::types::version;
use prost::Message;
use rtrb::Consumer;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

/// Interval at which the workers' rings are read; what they hold leaves in one request.
const EVERY: Duration = Duration::from_millis(500);
/// Maximum number of spans in one request; the rest follows in the next.
const MAX_SPANS: usize = 2_048;
/// Minimum interval between warnings about a collector that does not answer.
const WARNING_EVERY: Duration = Duration::from_secs(60);

/// How long the end of a node waits for its last spans to be sent.
const LAST_SPANS: Duration = Duration::from_secs(1);
/// As the exporters of OpenTelemetry name themselves.
const USER_AGENT: &str = concat!("OTel-OTLP-Exporter-ws-cluster/", env!("CARGO_PKG_VERSION"));

/// Where traces are sent, and with which attributes.
#[derive(Debug, Clone, PartialEq)]
pub struct OtelSettings {
    /// The complete URL, e.g. `http://collector:4318/v1/traces`.
    pub url: String,
    /// Header fields of each request; their values may be secret.
    pub headers: Vec<(String, Hidden)>,
    pub timeout: Duration,
    /// `service.name` first.
    pub attributes: Vec<(String, String)>,
    pub sampler: Sampler,
}

/// Text that is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Hidden(pub String);

impl std::fmt::Debug for Hidden {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

/// The exporter's thread, from outside.
pub struct Exporter {
    /// Its end is what the thread waits for; nothing is sent.
    stop: Sender<Never>,
    ended: Receiver<Never>,
}

enum Never {}

impl Exporter {
    /// Starts the thread.
    pub fn start(
        settings: OtelSettings,
        shared: Arc<Shared>,
        sources: Vec<Consumer<Span>>,
    ) -> Result<Self, StartError> {
        let (stop, stopped) = mpsc::channel();
        let (end, ended) = mpsc::channel();
        threads::spawn("otel", move || {
            run(&settings, &shared, sources, &stopped);
            drop::<Sender<Never>>(end);
        })?;
        Ok(Self { stop, ended })
    }

    /// Has the last spans sent. Must be called when the workers have ended. A collector that does
    /// not answer delays the end of the node by `LAST_SPANS`, not more.
    pub fn finish(self) {
        drop(self.stop);
        let _ = self.ended.recv_timeout(LAST_SPANS);
    }
}

/// Exports spans until it is asked to stop; then those that are left.
fn run(
    settings: &OtelSettings,
    shared: &Shared,
    mut sources: Vec<Consumer<Span>>,
    stopped: &Receiver<Never>,
) {
    let agent = client::agent(settings.timeout);
    let mut last_warning: Option<Instant> = None;
    let mut lost = 0_u64;
    let mut is_last = false;
    loop {
        let spans = take(&mut sources);
        if spans.is_empty() {
            if is_last {
                return;
            }
            is_last = stopped.recv_timeout(EVERY).is_err_and(|it| it != RecvTimeoutError::Timeout);
            continue;
        }
        let count = spans.len() as u64;
        let body = request(settings, shared, &spans).encode_to_vec();
        let mut post = agent.post(&settings.url).header("Content-Type", "application/x-protobuf");
        if !settings.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("user-agent")) {
            post = post.header("User-Agent", USER_AGENT);
        }
        for (name, value) in &settings.headers {
            post = post.header(name, &value.0);
        }
        let error = match post.send(&body[..]) {
            Ok(answer) if answer.status().is_success() => None,
            Ok(answer) => Some(format!("HTTP status {}", answer.status())),
            Err(error) => Some(error.to_string()),
        };
        if let Some(error) = error {
            lost += count;
            if last_warning.is_none_or(|at| at.elapsed() >= WARNING_EVERY) {
                last_warning = Some(Instant::now());
                let dropped: u64 =
                    shared.counters.iter().map(|worker| worker.spans_dropped.value()).sum();
                tracing::warn!(%error, lost, dropped, "the OpenTelemetry collector does not accept \
                    spans");
            }
        }
    }
}

fn take(sources: &mut [Consumer<Span>]) -> Vec<Span> {
    let mut spans = Vec::new();
    for source in sources {
        while spans.len() < MAX_SPANS
            && let Ok(span) = source.pop()
        {
            spans.push(span);
        }
    }
    spans
}

fn request(settings: &OtelSettings, shared: &Shared, spans: &[Span]) -> ExportRequest {
    let mut attributes: Vec<KeyValue> =
        settings.attributes.iter().map(|(key, value)| text(key, value)).collect();
    let own = [
        ("service.version", version::FULL.to_owned()),
        ("service.instance.id", shared.at_start.node.to_string()),
    ];
    // The environment's values take precedence.
    for (key, value) in own {
        if settings.attributes.iter().all(|(given, _)| given != key) {
            attributes.push(text(key, &value));
        }
    }
    let scope = Scope { name: "ws-cluster".into(), version: env!("CARGO_PKG_VERSION").into() };
    let projects = shared.active().projects;
    let spans = spans.iter().map(|span| encode(&projects, span)).collect();
    ExportRequest {
        resource_spans: vec![ResourceSpans {
            resource: Some(Resource { attributes }),
            scope_spans: vec![ScopeSpans { scope: Some(scope), spans }],
        }],
    }
}

fn encode(projects: &Projects, span: &Span) -> SpanMessage {
    // SPAN_KIND_SERVER 2, CLIENT 3, PRODUCER 4, CONSUMER 5, INTERNAL 1.
    let (name, kind) = match span.name {
        SpanName::PushAccepted => ("push accepted", 2),
        SpanName::PushQueued => ("push queued", 4),
        SpanName::PushReceived => ("push received", 5),
        SpanName::PushWritten => ("push written", 1),
        SpanName::Request => ("request", 2),
        SpanName::Response => ("response", 3),
    };
    let mut attributes = vec![
        text("messaging.message.id", &span.id.to_string()),
        text("thread.name", &format!("worker-{}", span.worker)),
    ];
    if let Some(project) = span.project.and_then(|project| projects.get(project)) {
        attributes.push(text("ws.project", &project.pid));
    }
    if matches!(span.name, SpanName::PushReceived | SpanName::PushWritten) {
        attributes.push(number("ws.connections", span.count));
    }
    SpanMessage {
        trace_id: span.context.trace_id.to_vec(),
        span_id: span.context.span_id.to_vec(),
        parent_span_id: span.parent.map(|id| id.to_vec()).unwrap_or_default(),
        name: name.into(),
        kind,
        start_time_unix_nano: span.start_us * 1_000,
        end_time_unix_nano: span.end_us.max(span.start_us) * 1_000,
        attributes,
        // STATUS_CODE_ERROR
        status: span.is_error.then_some(Status { code: 2 }),
    }
}

fn text(key: &str, value: &str) -> KeyValue {
    let value = AnyValue { string: Some(value.into()), int: None };
    KeyValue { key: key.into(), value: Some(value) }
}

fn number(key: &str, value: u64) -> KeyValue {
    let value = AnyValue { string: None, int: Some(value as i64) };
    KeyValue { key: key.into(), value: Some(value) }
}

// The messages of opentelemetry/proto/collector/trace/v1 and trace/v1, as far as they are used; the
// field numbers are theirs. `AnyValue` is a oneof there: exactly one field is set here.

#[derive(Clone, PartialEq, Message)]
struct ExportRequest {
    #[prost(message, repeated, tag = "1")]
    resource_spans: Vec<ResourceSpans>,
}

#[derive(Clone, PartialEq, Message)]
struct ResourceSpans {
    #[prost(message, optional, tag = "1")]
    resource: Option<Resource>,
    #[prost(message, repeated, tag = "2")]
    scope_spans: Vec<ScopeSpans>,
}

#[derive(Clone, PartialEq, Message)]
struct Resource {
    #[prost(message, repeated, tag = "1")]
    attributes: Vec<KeyValue>,
}

#[derive(Clone, PartialEq, Message)]
struct ScopeSpans {
    #[prost(message, optional, tag = "1")]
    scope: Option<Scope>,
    #[prost(message, repeated, tag = "2")]
    spans: Vec<SpanMessage>,
}

#[derive(Clone, PartialEq, Message)]
struct Scope {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    version: String,
}

#[derive(Clone, PartialEq, Message)]
struct SpanMessage {
    #[prost(bytes = "vec", tag = "1")]
    trace_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    span_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    parent_span_id: Vec<u8>,
    #[prost(string, tag = "5")]
    name: String,
    #[prost(int32, tag = "6")]
    kind: i32,
    #[prost(fixed64, tag = "7")]
    start_time_unix_nano: u64,
    #[prost(fixed64, tag = "8")]
    end_time_unix_nano: u64,
    #[prost(message, repeated, tag = "9")]
    attributes: Vec<KeyValue>,
    #[prost(message, optional, tag = "15")]
    status: Option<Status>,
}

#[derive(Clone, PartialEq, Message)]
struct KeyValue {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(message, optional, tag = "2")]
    value: Option<AnyValue>,
}

#[derive(Clone, PartialEq, Message)]
struct AnyValue {
    #[prost(string, optional, tag = "1")]
    string: Option<String>,
    #[prost(int64, optional, tag = "3")]
    int: Option<i64>,
}

#[derive(Clone, PartialEq, Message)]
struct Status {
    #[prost(int32, tag = "3")]
    code: i32,
}
