//! The thread that owns the output. It alone blocks: on new lines, and on the output.

use super::event_visitor::EventVisitor;
use super::file::{Failure, FileSettings, LogFile, Open};
use super::line::{Line, Style};
use super::{MAX_MESSAGES, Queue, lines_in};
use crate::io::clock;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::time::{Duration, Instant};
use tracing::Level;

/// Maximum number of bytes that are written together.
const BATCH_BYTES: usize = 64 << 10;
/// Minimum interval between log lines that report dropped lines.
const NOTICE_EVERY: Duration = Duration::from_secs(1);
/// Minimum interval between reports on standard error about a failing log.
const COMPLAINT_EVERY: Duration = Duration::from_secs(60);

/// What the other threads hand over.
#[derive(Debug)]
pub enum LogMessage {
    /// Complete lines, each with its newline.
    Lines(String),
    /// Answered once everything before it is written, or cannot be.
    Flush(SyncSender<()>),
    /// Something else needs attention.
    Wake,
}

/// Where the lines go.
pub enum Output {
    Stdout(Open),
    File(LogFile),
}

impl Output {
    /// Opens the output; standard output without a path.
    pub fn open(settings: Option<FileSettings>) -> io::Result<Self> {
        match settings {
            Some(settings) => LogFile::new(settings).map(Self::File),
            None => Open::stdout().map(Self::Stdout),
        }
    }

    fn room(&self) -> usize {
        match self {
            Self::Stdout(_) => usize::MAX,
            Self::File(file) => file.room(),
        }
    }

    fn write(&mut self, lines: &[u8]) -> Result<Option<io::Error>, Failure> {
        match self {
            Self::Stdout(stdout) => stdout.write(lines).map(|()| None),
            Self::File(file) => file.write(lines, clock::wall().value()),
        }
    }
}

pub struct Writer {
    messages: Receiver<LogMessage>,
    queue: Arc<Queue>,
    output: Output,
    style: Style,
    batch: Vec<u8>,
    /// Dropped lines that the log has already reported.
    reported: u64,
    last_notice: Option<Instant>,
    last_complaint: Option<Instant>,
}

impl Writer {
    pub fn new(
        messages: Receiver<LogMessage>,
        queue: Arc<Queue>,
        output: Output,
        style: Style,
    ) -> Self {
        Self {
            messages,
            queue,
            output,
            style,
            batch: Vec::with_capacity(BATCH_BYTES),
            reported: 0,
            last_notice: None,
            last_complaint: None,
        }
    }

    /// Writes until all senders are dropped.
    pub fn run(mut self) {
        loop {
            match self.receive() {
                Ok(message) => self.take(message),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            // At most this number can have waited; the notice about dropped lines belongs after
            // them.
            for _ in 0..MAX_MESSAGES {
                let Ok(message) = self.messages.try_recv() else { break };
                self.take(message);
            }
            self.write_out();
            self.give_notice();
        }
    }

    /// Receives a message; while a notice is due, checks from time to time whether the output takes
    /// it.
    fn receive(&self) -> Result<LogMessage, RecvTimeoutError> {
        match self.queue.dropped() == self.reported {
            true => self.messages.recv().map_err(|_| RecvTimeoutError::Disconnected),
            false => self.messages.recv_timeout(NOTICE_EVERY),
        }
    }

    fn take(&mut self, message: LogMessage) {
        match message {
            LogMessage::Lines(lines) => {
                self.queue.bytes.fetch_sub(lines.len(), Relaxed);
                if self.batch.len() + lines.len() > self.output.room().min(BATCH_BYTES) {
                    self.write_out();
                }
                self.batch.extend_from_slice(lines.as_bytes());
            }
            LogMessage::Flush(done) => {
                // It may be the last chance to report dropped lines.
                self.last_notice = None;
                self.write_out();
                self.give_notice();
                // The caller may have stopped waiting.
                let _ = done.try_send(());
            }
            LogMessage::Wake => {}
        }
    }

    fn write_out(&mut self) {
        if self.queue.must_reopen.swap(false, Relaxed)
            && let Output::File(file) = &mut self.output
        {
            let result = file.reopen();
            self.complain_of(result.map(|()| None).map_err(Failure::from));
        }
        if !self.batch.is_empty() {
            let result = self.output.write(&self.batch);
            if let Err(Failure { written, .. }) = &result {
                self.queue.count_dropped(lines_in(&self.batch[*written..]));
            }
            self.batch.clear();
            self.complain_of(result);
        }
    }

    /// Reports the lines dropped since the last notice, once there is room again.
    fn give_notice(&mut self) {
        let dropped = self.queue.dropped();
        if dropped == self.reported || is_recent(self.last_notice, NOTICE_EVERY) {
            return;
        }
        self.last_notice = Some(Instant::now());
        let message = format!(
            "{} lines were dropped: see ws_cluster_log_dropped_total",
            dropped - self.reported
        );
        let line = self.style.line(&Line {
            now_ms: clock::wall().value(),
            level: Level::WARN,
            target: module_path!(),
            thread: "logs",
            event: EventVisitor { message, fields: Vec::new() },
        });
        let result = self.output.write(line.as_bytes());
        if result.is_ok() {
            self.reported = dropped;
        }
        self.complain_of(result);
    }

    /// Reports a failure of the log on standard error, because the log cannot report it.
    fn complain_of(&mut self, result: Result<Option<io::Error>, Failure>) {
        let (error, what) = match result {
            Ok(None) => return,
            Ok(Some(error)) => (error, "the log file cannot be rotated and keeps growing"),
            Err(Failure { error, .. }) => (
                error,
                "the log cannot be written: lines are dropped, see ws_cluster_log_dropped_total",
            ),
        };
        if !is_recent(self.last_complaint, COMPLAINT_EVERY) {
            self.last_complaint = Some(Instant::now());
            // If that fails, there is nobody left to report it to.
            let line = format!("ws-cluster: {what} ({error})\n");
            let _ = io::stderr().write_all(line.as_bytes());
        }
    }
}

fn is_recent(last: Option<Instant>, every: Duration) -> bool {
    last.is_some_and(|last| last.elapsed() < every)
}
