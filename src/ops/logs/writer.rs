//! The thread that owns the output. It alone waits: for lines, and for the output to take them.

use super::file::{Failure, FileSettings, LogFile, Open};
use super::line::{Line, Style};
use super::said::Said;
use super::{MAX_WORDS, Queue, lines_in};
use crate::io::sys;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::time::{Duration, Instant};
use tracing::Level;

/// Lines are written together, up to so many bytes.
const BATCH_BYTES: usize = 64 << 10;
/// How often the log says that lines were dropped.
const NOTICE_EVERY: Duration = Duration::from_secs(1);
/// How often standard error is told what is wrong with the log.
const COMPLAINT_EVERY: Duration = Duration::from_secs(60);

/// What the other threads hand over.
#[derive(Debug)]
pub enum Word {
    /// Whole lines, each with its end.
    Lines(String),
    /// To be answered when everything before it is written, or cannot be.
    Flush(SyncSender<()>),
    /// There is something else to look at.
    Wake,
}

/// Where the lines go.
pub enum Output {
    Stdout(Open),
    File(LogFile),
}

impl Output {
    /// Standard output without a path.
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
            Self::File(file) => file.write(lines, sys::now_ms()),
        }
    }
}

pub struct Writer {
    words: Receiver<Word>,
    queue: Arc<Queue>,
    output: Output,
    style: Style,
    batch: Vec<u8>,
    /// Of the lines that were dropped, those that the log has told of.
    told: u64,
    last_notice: Option<Instant>,
    last_complaint: Option<Instant>,
}

impl Writer {
    pub fn new(words: Receiver<Word>, queue: Arc<Queue>, output: Output, style: Style) -> Self {
        Self {
            words,
            queue,
            output,
            style,
            batch: Vec::with_capacity(BATCH_BYTES),
            told: 0,
            last_notice: None,
            last_complaint: None,
        }
    }

    /// Writes until all senders are gone.
    pub fn run(mut self) {
        loop {
            match self.receive() {
                Ok(word) => self.take(word),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            // So many can have waited; what was dropped belongs behind them.
            for _ in 0..MAX_WORDS {
                let Ok(word) = self.words.try_recv() else { break };
                self.take(word);
            }
            self.write_out();
            self.give_notice();
        }
    }

    /// Without a word, looks after a while whether the output takes a notice that is owed.
    fn receive(&self) -> Result<Word, RecvTimeoutError> {
        match self.queue.dropped() == self.told {
            true => self.words.recv().map_err(|_| RecvTimeoutError::Disconnected),
            false => self.words.recv_timeout(NOTICE_EVERY),
        }
    }

    fn take(&mut self, word: Word) {
        match word {
            Word::Lines(lines) => {
                self.queue.bytes.fetch_sub(lines.len(), Relaxed);
                if self.batch.len() + lines.len() > self.output.room().min(BATCH_BYTES) {
                    self.write_out();
                }
                self.batch.extend_from_slice(lines.as_bytes());
            }
            Word::Flush(done) => {
                // It may be the last chance to tell of what was dropped.
                self.last_notice = None;
                self.write_out();
                self.give_notice();
                // Whoever asked may have stopped waiting.
                let _ = done.try_send(());
            }
            Word::Wake => {}
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

    /// Tells of lines that were dropped since the last time, once there is room again.
    fn give_notice(&mut self) {
        let dropped = self.queue.dropped();
        if dropped == self.told || is_recent(self.last_notice, NOTICE_EVERY) {
            return;
        }
        self.last_notice = Some(Instant::now());
        let message =
            format!("{} lines were dropped: see ws_cluster_log_dropped_total", dropped - self.told);
        let line = self.style.line(&Line {
            now_ms: sys::now_ms(),
            level: Level::WARN,
            target: module_path!(),
            thread: "logs",
            said: Said { message, fields: Vec::new() },
        });
        let result = self.output.write(line.as_bytes());
        if result.is_ok() {
            self.told = dropped;
        }
        self.complain_of(result);
    }

    /// The log cannot tell what is wrong with the log.
    fn complain_of(&mut self, result: Result<Option<io::Error>, Failure>) {
        let (error, what) = match result {
            Ok(None) => return,
            Ok(Some(error)) => (error, "the log file cannot be rotated, and grows"),
            Err(Failure { error, .. }) => (
                error,
                "the log cannot be written: lines are dropped, see ws_cluster_log_dropped_total",
            ),
        };
        if !is_recent(self.last_complaint, COMPLAINT_EVERY) {
            self.last_complaint = Some(Instant::now());
            // There is nobody left to tell if that fails.
            let line = format!("ws-cluster: {what} ({error})\n");
            let _ = io::stderr().write_all(line.as_bytes());
        }
    }
}

fn is_recent(last: Option<Instant>, every: Duration) -> bool {
    last.is_some_and(|last| last.elapsed() < every)
}
