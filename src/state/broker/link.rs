//! One of the two links to Redis: its greeting, and whether it is alive.

use super::PING_EVERY_MS;
use super::facts::Facts;
use super::greeting::{Credentials, Greeting};
use super::link_error::{LinkError, LinkName, SILENCE_MS};
use crate::types::{MonotonicMs, NodeId};
use crate::wire::resp::Reply;

/// Rate at which a large command extends the timeout: buffers on the way hold some of it without a
/// sign of progress.
pub(super) const TRANSIT_BYTES_PER_MS: usize = 8 << 10;

#[derive(Debug)]
pub(super) struct Link {
    which: LinkName,
    /// As shown by `CLIENT LIST`.
    name: String,
    greeting: Option<Greeting>,
    /// Bytes to write; on the publishing link only the greeting, the rest is in the log.
    pub(super) out: Vec<u8>,
    /// Since when a reply has been due.
    waiting_since: Option<MonotonicMs>,
    asked_at: MonotonicMs,
}

impl Link {
    pub(super) fn new(which: LinkName, node: NodeId) -> Self {
        let what = match which {
            LinkName::Publish => "publish",
            LinkName::Subscribe => "subscribe",
        };
        Self {
            which,
            name: format!("ws-cluster-{node}-{what}"),
            greeting: None,
            out: Vec::new(),
            waiting_since: None,
            asked_at: MonotonicMs::default(),
        }
    }

    pub(super) fn greet(&mut self, credentials: &Credentials, now: MonotonicMs) {
        self.out.clear();
        self.greeting = Some(Greeting::start(self.which, credentials, &self.name, &mut self.out));
        self.waiting_since = Some(now);
        self.asked_at = now;
    }

    pub(super) fn close(&mut self) {
        self.greeting = None;
        self.out.clear();
        self.waiting_since = None;
    }

    pub(super) fn is_greeted(&self) -> bool {
        self.greeting.as_ref().is_some_and(Greeting::is_done)
    }

    /// Whether the last command is not written yet, and thus cannot be answered.
    pub(super) fn has_unsent(&self) -> bool {
        !self.out.is_empty()
    }

    pub(super) fn handle_greeting(
        &mut self,
        reply: &Reply<'_>,
        credentials: &Credentials,
        facts: &mut Facts,
    ) -> Result<(), LinkError> {
        let Some(greeting) = &mut self.greeting else {
            // Some refusals are unsolicited: too many clients, protected mode.
            return Err(match reply {
                Reply::Error(text) => {
                    LinkError::Refused(String::from_utf8_lossy(text).into_owned())
                }
                _ => LinkError::Unasked,
            });
        };
        // Only a refusal may come before anything is asked.
        if !self.out.is_empty() && !matches!(reply, Reply::Error(_)) {
            return Err(LinkError::Unasked);
        }
        greeting.handle_reply(reply, credentials, &self.name, facts, &mut self.out)
    }

    pub(super) fn take_outgoing(&mut self, out: &mut Vec<u8>, max: usize) {
        if out.is_empty() {
            // Take everything, whatever its size: nothing is copied.
            return std::mem::swap(out, &mut self.out);
        }
        let count = self.out.len().min(max);
        out.extend_from_slice(&self.out[..count]);
        self.out.drain(..count);
    }

    // Liveness, on the clock of `super::listening`.

    /// Notes that something was sent that Redis must answer.
    pub(super) fn handle_asked(&mut self, now: MonotonicMs) {
        self.asked_at = now;
        self.waiting_since.get_or_insert(now);
    }

    /// Notes that something was received. `is_waiting`: more replies are due.
    pub(super) fn handle_heard(&mut self, now: MonotonicMs, is_waiting: bool) {
        self.waiting_since = (is_waiting || !self.is_greeted()).then_some(now);
    }

    /// Notes progress: the link is alive, and its replies are still due.
    pub(super) fn handle_progress(&mut self, now: MonotonicMs) {
        self.waiting_since = self.waiting_since.map(|_| now);
    }

    pub(super) fn is_ping_due(&self, now: MonotonicMs) -> bool {
        self.waiting_since.is_none() && now.since(self.asked_at) >= PING_EVERY_MS
    }

    /// Checks the reply timeout. `transit_ms`: see [`TRANSIT_BYTES_PER_MS`].
    pub(super) fn check(&self, now: MonotonicMs, transit_ms: u64) -> Result<(), LinkError> {
        let patience_ms = SILENCE_MS + transit_ms;
        let silent = |since: MonotonicMs| now.since(since) > patience_ms;
        if self.waiting_since.is_some_and(silent) { Err(LinkError::Silent) } else { Ok(()) }
    }
}
