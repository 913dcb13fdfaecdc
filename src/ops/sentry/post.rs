//! The thread that posts envelopes: the only one that waits for Sentry.

use super::UNSENT;
use crate::io::threads;
use crate::ops::client::agent;
use ::sentry::types::Dsn;
use ::sentry::{Envelope, Transport};
use std::io;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};
use ureq::Agent;

/// Maximum number of waiting envelopes; further ones are dropped.
const MAX_WAITING: usize = 32;
/// Time limit for a response.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Time in which nothing is sent after a rate limit (HTTP 429) without `Retry-After`.
const QUIET: Duration = Duration::from_secs(60);
const MAX_QUIET: Duration = Duration::from_secs(3_600);
/// Minimum interval between log lines about events that are not accepted.
const COMPLAINT_EVERY: Duration = Duration::from_secs(60);
/// Interval between attempts to enqueue while the queue is full.
const PAUSE: Duration = Duration::from_millis(5);

#[derive(Debug)]
enum Task {
    Send(Box<Envelope>),
    /// Answered once everything before it is posted.
    Flush(SyncSender<()>),
}

/// Hands envelopes to the thread, which ends when this is dropped.
#[derive(Debug)]
pub struct Post(SyncSender<Task>);

impl Post {
    /// Starts the thread. Call it with signals blocked.
    pub fn start(dsn: &Dsn) -> io::Result<Self> {
        let (sender, tasks) = sync_channel(MAX_WAITING);
        let postman = Postman {
            agent: agent(TIMEOUT),
            url: dsn.envelope_api_url().to_string(),
            auth: dsn.to_auth(Some(concat!("ws-cluster/", env!("CARGO_PKG_VERSION")))).to_string(),
            quiet_until: None,
            last_complaint: None,
        };
        let (ready, is_ready) = sync_channel(1);
        let work = move || {
            // Keeps its sockets out of the workers' descriptor tables.
            let unshared = threads::unshare_files();
            let has_failed = unshared.is_err();
            let _ = ready.send(unshared);
            if !has_failed {
                postman.work(&tasks);
            }
        };
        threads::spawn("sentry", work)?;
        is_ready.recv().map_err(io::Error::other)??;
        Ok(Self(sender))
    }
}

impl Transport for Post {
    fn send_envelope(&self, envelope: Envelope) {
        if self.0.try_send(Task::Send(Box::new(envelope))).is_err() {
            UNSENT.fetch_add(1, Relaxed);
        }
    }

    fn flush(&self, timeout: Duration) -> bool {
        let until = Instant::now() + timeout;
        let (done, is_done) = sync_channel(1);
        let mut task = Task::Flush(done);
        loop {
            match self.0.try_send(task) {
                Ok(()) => break,
                Err(TrySendError::Full(back)) if Instant::now() < until => task = back,
                Err(_) => return false,
            }
            thread::sleep(PAUSE);
        }
        is_done.recv_timeout(until.saturating_duration_since(Instant::now())).is_ok()
    }
}

struct Postman {
    agent: Agent,
    url: String,
    auth: String,
    /// Sentry's rate limit lasts until then.
    quiet_until: Option<Instant>,
    last_complaint: Option<Instant>,
}

impl Postman {
    fn work(mut self, tasks: &Receiver<Task>) {
        while let Ok(task) = tasks.recv() {
            match task {
                Task::Send(envelope) => self.send(&envelope),
                Task::Flush(done) => {
                    // The caller may have stopped waiting.
                    let _ = done.try_send(());
                }
            }
        }
    }

    fn send(&mut self, envelope: &Envelope) {
        let left = self.quiet_until.map(|until| until.saturating_duration_since(Instant::now()));
        let result = match left {
            Some(left) if !left.is_zero() => {
                let retry_s = left.as_secs_f64().ceil();
                Err(format!("rate-limited by Sentry (HTTP 429), retrying in {retry_s} s"))
            }
            _ => self.post(envelope),
        };
        if let Err(error) = result {
            UNSENT.fetch_add(1, Relaxed);
            if self.last_complaint.is_none_or(|last| last.elapsed() >= COMPLAINT_EVERY) {
                self.last_complaint = Some(Instant::now());
                tracing::warn!(%error, "Sentry does not accept events");
            }
        }
    }

    fn post(&mut self, envelope: &Envelope) -> Result<(), String> {
        let mut body = Vec::new();
        envelope.to_writer(&mut body).map_err(|error| error.to_string())?;
        let request = self.agent.post(&self.url).header("X-Sentry-Auth", &self.auth);
        let request = request.header("Content-Type", "application/x-sentry-envelope");
        let response = request.send(&body[..]).map_err(|error| error.to_string())?;
        let status = response.status().as_u16();
        if status == 429 {
            let wanted = response.headers().get("retry-after");
            let seconds = wanted.and_then(|value| value.to_str().ok()?.parse().ok());
            let quiet = seconds.map_or(QUIET, Duration::from_secs).min(MAX_QUIET);
            self.quiet_until = Some(Instant::now() + quiet);
        }
        match status {
            200..=299 => Ok(()),
            _ => Err(format!("HTTP status {status}")),
        }
    }
}
