//! The canary: a message that the node publishes to itself to test that what it publishes comes
//! back.

use super::{Broker, LinkError, LinksState};
use crate::types::MonotonicMs;
use crate::wire::envelope::EnvelopeKind;

/// Interval between canaries.
const CANARY_EVERY_MS: u64 = 1_000;
/// A canary that is not back after this time is lost and the links are reopened. Only what Redis
/// sent at least this long afterwards proves the loss, see `SubscribeLog::read_until`.
const CANARY_LOST_MS: u64 = 2_500;
/// The share of it spent on the next canary becoming due and on asking whether everything is read.
const CANARY_SLACK_MS: u64 = CANARY_EVERY_MS + 100;

#[derive(Debug, Default)]
pub(super) struct Canary {
    pub(super) number: u64,
    pub(super) sent_at: MonotonicMs,
    /// Canaries that Redis has not accepted yet, and when it accepted the last one.
    pub(super) untaken: usize,
    pub(super) taken_at: MonotonicMs,
    /// Redis has delivered it back.
    pub(super) is_back: bool,
    /// When each worker received the oldest canary that it has not handled; 0: it has handled all.
    pub(super) owed_since: Vec<Option<MonotonicMs>>,
}

impl Canary {
    /// Notes that Redis accepted an announcement; `is_canary`: that it was a canary.
    pub(super) fn handle_taken(&mut self, is_canary: bool, now: MonotonicMs) {
        if is_canary {
            self.untaken = self.untaken.saturating_sub(1);
            self.taken_at = now;
        }
    }
}

impl Broker {
    /// Returns a worker that has not handled a canary for too long although canaries come back.
    pub fn stuck_worker(&self, now: MonotonicMs) -> Option<usize> {
        let is_late = |since: &Option<MonotonicMs>| {
            since.is_some_and(|since| now.since(since) > CANARY_LOST_MS)
        };
        self.canary.owed_since.iter().position(is_late).filter(|_| self.is_ready())
    }

    /// Returns whether everything that was handed to this broker before the first call has come
    /// back through the queue, or is lost, and every worker has received it: a canary follows it.
    /// To be called at each tick until it returns `true`.
    pub fn has_come_round(&mut self, now: MonotonicMs) -> bool {
        if !self.is_ready() || self.has_left() {
            self.round = None;
            return true;
        }
        let Some(number) = self.round else {
            if self.canary.is_back {
                self.send_canary(now);
                self.round = Some(self.canary.number);
            }
            return false;
        };
        let is_back = self.canary.is_back || self.canary.number > number;
        let has_come = is_back && self.canary.owed_since.iter().all(Option::is_none);
        if has_come {
            self.round = None;
        }
        has_come
    }

    /// Sends the next canary when it is due. `Err`: the last one is lost.
    pub(super) fn tick_canary(&mut self, now: MonotonicMs) -> Result<(), LinkError> {
        if !self.canary.is_back {
            let late_ms = now.since(self.canary.sent_at);
            let lag_ms = &self.config.counters.lag_ms;
            lag_ms.set(lag_ms.value().max(late_ms));
            // Only data sent after Redis accepted the canary proves the loss: this node itself may
            // have been suspended, or have a backlog of earlier data to read.
            if self.has_heard_since_canary(self.canary_patience_ms()) {
                return Err(LinkError::CanaryLost);
            }
        }
        let is_canary_due = now.since(self.canary.sent_at) >= CANARY_EVERY_MS;
        if self.canary.is_back && is_canary_due && !self.has_left() {
            self.send_canary(now);
        }
        Ok(())
    }

    /// Whether everything is read that Redis sent up to `ms` after it accepted the canary.
    fn has_heard_since_canary(&self, ms: u64) -> bool {
        let canary = &self.canary;
        let heard_ms = self.subscribe_log.read_until().since(canary.taken_at);
        !canary.is_back && canary.untaken == 0 && heard_ms > ms
    }

    fn canary_patience_ms(&self) -> u64 {
        match self.state {
            LinksState::Proving => CANARY_LOST_MS,
            _ => CANARY_LOST_MS - CANARY_SLACK_MS,
        }
    }

    /// Whether the canary, although accepted by Redis, has been out for almost its time limit and
    /// may soon count as lost.
    pub(super) fn is_canary_late(&self, now: MonotonicMs) -> bool {
        let waited_ms = now.since(self.canary.taken_at);
        !self.canary.is_back && self.canary.untaken == 0 && waited_ms > self.canary_patience_ms()
    }

    pub(super) fn send_canary(&mut self, now: MonotonicMs) {
        self.canary.number += 1;
        self.canary.untaken += 1;
        self.canary.sent_at = now;
        self.canary.is_back = false;
        let mut canary = Vec::new();
        self.config.header(EnvelopeKind::Canary, 0, self.canary.number).encode(&mut canary);
        let deadline = self.deadline(now);
        self.log.add_word(&self.own_channel, &canary, None, deadline);
        self.publishing.handle_asked(self.listening.at(now));
    }
}
