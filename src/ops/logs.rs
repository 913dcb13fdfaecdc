//! The log. The logging thread formats the complete line, hands it to a thread that owns the
//! output, and never waits: lines that the output does not take in time are dropped and counted.

mod event_visitor;
mod file;
mod janitor;
mod line;
mod scrub;
pub mod timestamp;
mod writer;

pub use event_visitor::{EventVisitor, Value, redact};
pub use file::{FileSettings, Rotate};
pub use line::Format;

use crate::io::{clock, threads};
use crate::types::NodeId;
use file::Open;
use line::{Line, Style};
use std::ffi::OsString;
use std::fs::{File, Metadata};
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::panic;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::Context;
use tracing_subscriber::{EnvFilter, Layer, Registry, reload};
use writer::{LogMessage, Output, Writer};

/// Maximum number of messages waiting for the output, and of their bytes; beyond, lines are
/// dropped.
const MAX_MESSAGES: usize = 8_192;
const MAX_BYTES: usize = 8 << 20;
/// The target of log events about panics.
pub const PANICS: &str = "panic";
/// The name of the event that reports why the program ends; [`fail`] reports it to whoever started
/// it.
pub const FAILURE: &str = "failure";
/// Interval between attempts to enqueue while the queue is full.
const PAUSE: Duration = Duration::from_millis(5);

/// The log of this process; tests create others.
static LOGS: OnceLock<Logs> = OnceLock::new();

/// Makes it the log of this process, which the functions below use. The first one stays.
pub fn install(logs: Logs) {
    let _ = LOGS.set(logs);
}

/// The filter of this process's log, which a reload may replace.
static FILTER: OnceLock<FilterHandle> = OnceLock::new();

type FilterHandle = reload::Handle<EnvFilter, Registry>;

/// Returns the filter of this process's log. `text` must be valid; [`set_filter`] replaces it.
pub fn filter(text: &str) -> reload::Layer<EnvFilter, Registry> {
    let (filter, handle) = reload::Layer::new(EnvFilter::new(text));
    let _ = FILTER.set(handle);
    filter
}

/// Replaces the filter of this process's log. `text` must be valid.
pub fn set_filter(text: &str) {
    if let Some(handle) = FILTER.get() {
        // It fails only if the subscriber is gone, and then nothing is logged any more.
        let _ = handle.reload(EnvFilter::new(text));
    }
}

/// Returns the lines dropped since the start: `ws_cluster_log_dropped_total`.
pub fn dropped() -> u64 {
    LOGS.get().map_or(0, Logs::dropped)
}

/// Reopens the file, if there is one, after logrotate has moved it away.
pub fn reopen() {
    LOGS.get().into_iter().for_each(Logs::reopen);
}

/// Returns whether the log goes to a terminal and nowhere else.
pub fn is_on_terminal() -> bool {
    LOGS.get().is_some_and(|logs| logs.is_on_terminal)
}

/// Waits at most `patience` until everything handed over is written.
pub fn flush(patience: Duration) {
    if let Some(logs) = LOGS.get() {
        logs.flush(patience);
    }
}

/// Settings of a log.
#[derive(Debug, Clone)]
pub struct Settings {
    pub format: Format,
    pub node: NodeId,
    /// `None`: standard output.
    pub file: Option<FileSettings>,
}

/// Hands lines to the thread that writes them. Clones share it; the thread ends after the last of
/// them.
#[derive(Debug, Clone)]
pub struct Logs {
    messages: SyncSender<LogMessage>,
    queue: Arc<Queue>,
    style: Style,
    is_file: bool,
    is_on_terminal: bool,
}

/// What the writing thread shares with the others besides the messages.
#[derive(Debug, Default)]
struct Queue {
    /// Total size of the lines that wait.
    bytes: AtomicUsize,
    dropped: AtomicU64,
    must_reopen: AtomicBool,
}

impl Queue {
    fn dropped(&self) -> u64 {
        self.dropped.load(Relaxed)
    }

    fn count_dropped(&self, lines: u64) {
        self.dropped.fetch_add(lines, Relaxed);
    }
}

impl Logs {
    /// Starts the thread; fails if the output cannot be opened. Call it before starting the threads
    /// that log, with signals blocked.
    pub fn start(settings: Settings) -> io::Result<Self> {
        let Settings { format, node, file } = settings;
        let is_file = file.is_some();
        let is_on_terminal = !is_file && io::stdout().is_terminal();
        let style = Style {
            format,
            node: Some(node),
            has_colours: is_on_terminal && std::env::var_os("NO_COLOR").is_none(),
            is_journal: !is_file && is_journal_at(&Open::stdout()?.metadata()?),
        };
        let (messages, received) = sync_channel(MAX_MESSAGES);
        let queue = Arc::new(Queue::default());
        let (opened, is_open) = sync_channel(1);
        let shared = Arc::clone(&queue);
        let write = move || {
            // Uses its own descriptor table: copies in the workers' tables would keep a rotated and
            // deleted file on the disk.
            let unshared = threads::unshare_files().map_err(io::Error::from);
            match unshared.and_then(|()| Output::open(file)) {
                Ok(output) => {
                    let _ = opened.send(Ok(()));
                    Writer::new(received, shared, output, style).run();
                }
                Err(error) => {
                    let _ = opened.send(Err(error));
                }
            }
        };
        threads::spawn("logs", write)?;
        is_open.recv().map_err(io::Error::other)??;
        Ok(Self { messages, queue, style, is_file, is_on_terminal })
    }

    pub fn dropped(&self) -> u64 {
        self.queue.dropped()
    }

    /// Reports to whoever started the node, on standard output wherever the log goes: the text as
    /// it is or, with JSON, which has one line per event, `event` in its place.
    pub fn print(&self, text: &str, event: EventVisitor) {
        let lines = match self.style.format {
            Format::Text => text,
            Format::Json => &self.style.line(&line(Level::INFO, event)),
        };
        if self.is_file {
            // A node keeps working even if nobody reads where it listens.
            let _ = io::stdout().write_all(lines.as_bytes());
        } else {
            self.hand_over(lines.into());
        }
    }

    /// Reopens the file: the path may name another file now.
    pub fn reopen(&self) {
        self.queue.must_reopen.store(true, Relaxed);
        // A full queue needs no wake-up.
        let _ = self.messages.try_send(LogMessage::Wake);
    }

    /// Waits at most `patience` until everything handed over is written; returns `false` if it is
    /// not.
    pub fn flush(&self, patience: Duration) -> bool {
        let until = Instant::now() + patience;
        let (done, is_done) = sync_channel(1);
        let mut message = LogMessage::Flush(done);
        loop {
            match self.messages.try_send(message) {
                Ok(()) => break,
                Err(TrySendError::Full(back)) if Instant::now() < until => message = back,
                Err(_) => return false,
            }
            thread::sleep(PAUSE);
        }
        is_done.recv_timeout(until.saturating_duration_since(Instant::now())).is_ok()
    }

    /// Takes complete lines, each with its newline. Never blocks.
    fn hand_over(&self, lines: String) {
        let (count, length) = (lines_in(lines.as_bytes()), lines.len());
        let before = self.queue.bytes.fetch_add(length, Relaxed);
        if before + length > MAX_BYTES || self.messages.try_send(LogMessage::Lines(lines)).is_err()
        {
            self.queue.bytes.fetch_sub(length, Relaxed);
            self.queue.count_dropped(count);
        }
    }
}

impl<S: Subscriber> Layer<S> for Logs {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let metadata = event.metadata();
        // Without a log file, [`fail`] reports it on standard error.
        if metadata.name() == FAILURE && !self.is_file {
            return;
        }
        let line = self.style.line(&Line {
            now_ms: clock::wall().value(),
            level: *metadata.level(),
            target: metadata.target(),
            thread: thread::current().name().unwrap_or("unnamed"),
            event: EventVisitor::of(event),
        });
        self.hand_over(line);
    }
}

/// Logs panics before passing them to the previous hook. Call it once.
pub fn log_panics() {
    let next = panic::take_hook();
    panic::set_hook(Box::new(move |panic| {
        let payload = panic.payload();
        let message = payload.downcast_ref::<&str>().copied();
        let message = message.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
        let at = panic.location().map(ToString::to_string).unwrap_or_default();
        tracing::error!(target: PANICS, at, "panicked: {}", message.unwrap_or("without a message"));
        next(panic);
    }));
}

/// Reports on standard error why the program ends, once: as text, or as a JSON log line. It is a
/// single write, so that nothing comes between its parts.
pub fn fail(format: Format, node: Option<NodeId>, why: &str) {
    let is_journal = io::stderr().as_fd().try_clone_to_owned().map(File::from);
    let is_journal = is_journal.and_then(|file| file.metadata()).is_ok_and(|it| is_journal_at(&it));
    let style = Style { format, node, has_colours: false, is_journal };
    let event = EventVisitor { message: why.into(), fields: Vec::new() };
    let text = match format {
        Format::Text if is_journal => format!("<3>ws-cluster: {why}\n"),
        Format::Text => format!("ws-cluster: {why}\n"),
        Format::Json => style.line(&line(Level::ERROR, event)),
    };
    // If that fails, there is nobody left to report it to.
    let _ = io::stderr().write_all(text.as_bytes());
}

/// Returns a line of the program itself, with the current time.
fn line(level: Level, event: EventVisitor) -> Line<'static> {
    Line {
        now_ms: clock::wall().value(),
        level,
        target: env!("CARGO_CRATE_NAME"),
        thread: "main",
        event,
    }
}

/// systemd names the device and inode of its journal (systemd.exec(5), `JOURNAL_STREAM`): whoever
/// starts us may have redirected the output since.
fn is_journal_at(output: &Metadata) -> bool {
    let journal = std::env::var("JOURNAL_STREAM").unwrap_or_default();
    journal == format!("{}:{}", output.dev(), output.ino())
}

fn lines_in(bytes: &[u8]) -> u64 {
    bytes.iter().filter(|&&byte| byte == b'\n').count() as u64
}

fn with_end(path: &Path, end: &str) -> PathBuf {
    let mut text = OsString::from(path);
    text.push(end);
    text.into()
}
