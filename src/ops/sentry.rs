//! Reports errors and panics to Sentry. Without a DSN none of this runs: no thread, no hook, no
//! inspection of events.
//!
//! The thread that logs an error builds the event and hands it to a thread that posts it; only a
//! panicking thread waits until it is posted, because the process may end with it.

mod budget;
mod post;

use super::logs::{EventVisitor, PANICS, Value, redact};
use crate::types::{NodeId, version};
use ::sentry::protocol::{Event, Value as Json};
use ::sentry::types::Dsn;
use ::sentry::{ClientInitGuard, ClientOptions, Level};
use budget::Budget;
use post::Post;
use std::fmt;
use std::io;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};
use tracing::Subscriber;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

/// How long the end of the process, and a panicking thread, wait for events to be posted.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Events that were not sent since the start.
static UNSENT: AtomicU64 = AtomicU64::new(0);

/// Unsent events that a later event has reported.
static REPORTED: AtomicU64 = AtomicU64::new(0);

/// Returns the events that Sentry did not get: over the limit per minute, or not accepted.
pub fn unsent() -> u64 {
    UNSENT.load(Relaxed)
}

/// The address of a Sentry project, and its key.
#[derive(Clone)]
pub struct SentryDsn(Dsn);

impl FromStr for SentryDsn {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        text.parse().map(Self).map_err(|_| ())
    }
}

impl fmt::Debug for SentryDsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Settings of a reporter.
#[derive(Debug, Clone)]
pub struct Settings {
    pub dsn: SentryDsn,
    pub node: NodeId,
    /// The value of `--env`.
    pub environment: &'static str,
}

/// Reports until it is dropped, which waits briefly for events still to be posted.
pub struct Reporter {
    _client: ClientInitGuard,
}

impl Reporter {
    /// Starts the posting thread and installs the hook that reports panics.
    pub fn start(settings: Settings) -> io::Result<Self> {
        let Settings { dsn, node, environment } = settings;
        let post = Post::start(&dsn.0)?;
        let budget = Budget::new(Instant::now());
        let mut options = ClientOptions::new()
            .release(format!("{}@{}", env!("CARGO_PKG_NAME"), version::FULL))
            .environment(environment)
            .in_app_include(["ws_cluster"])
            .max_breadcrumbs(0)
            .shutdown_timeout(LAST_WORDS)
            .transport(Arc::new(post))
            .before_send(move |event| finished(event, node, &budget));
        options.dsn = Some(dsn.0);
        Ok(Self { _client: ::sentry::init(options) })
    }
}

/// Returns a layer that turns error logs into events. A stack trace would add little to the
/// message, and resolving its names would hold a worker up.
pub fn errors<S: Subscriber + for<'a> LookupSpan<'a>>() -> impl Layer<S> {
    Errors.with_filter(LevelFilter::ERROR)
}

struct Errors;

impl<S: Subscriber> Layer<S> for Errors {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        let metadata = event.metadata();
        // Panics have their own hook.
        if metadata.target() == PANICS {
            return;
        }
        let EventVisitor { message, fields } = EventVisitor::of(event);
        let extra = fields.into_iter().map(|(name, value)| (name.into(), json(value))).collect();
        ::sentry::capture_event(Event {
            level: Level::Error,
            logger: Some(metadata.target().into()),
            message: Some(message),
            extra,
            ..Event::default()
        });
    }
}

fn json(value: Value) -> Json {
    match value {
        Value::Signed(number) => number.into(),
        Value::Unsigned(number) => number.into(),
        Value::Float(number) => number.into(),
        Value::Bool(truth) => truth.into(),
        Value::Quoted(text) | Value::Text(text) => text.into(),
    }
}

/// Returns the event as it is sent; `None` if over the limit. Called on the thread that it is
/// about.
fn finished(mut event: Event<'static>, node: NodeId, budget: &Budget) -> Option<Event<'static>> {
    if !budget.take(Instant::now()) {
        UNSENT.fetch_add(1, Relaxed);
        return None;
    }
    let thread = thread::current();
    let name = thread.name().unwrap_or("unnamed");
    event.tags.insert("node".into(), node.to_string());
    event.tags.insert("thread".into(), name.into());
    if let Some(worker) = name.strip_prefix("worker-") {
        event.tags.insert("worker".into(), worker.into());
    }
    let unsent = unsent();
    let unreported = unsent - REPORTED.swap(unsent, Relaxed).min(unsent);
    if unreported > 0 {
        event.extra.insert("events_not_sent".into(), unreported.into());
    }
    // A panic message may quote anything.
    for text in event.exception.values.iter_mut().filter_map(|panic| panic.value.as_mut()) {
        *text = redact(format_args!("{text}"));
    }
    Some(event)
}
