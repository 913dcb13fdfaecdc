//! The canary: what a node publishes to itself, to know whether what it publishes comes back.

use super::{Broker, LinkError, State};
use crate::wire::envelope::Kind;

/// The interval at which it flies.
const CANARY_EVERY_MS: u64 = 1_000;
/// One that is not back after this long is lost: the links are made anew. Only what Redis sent that
/// much later proves it, see `Subscriptions::read_until_ms`.
const CANARY_LOST_MS: u64 = 2_500;
/// This much of it is for the next canary to be due, and for the question whether all is read.
const CANARY_SLACK_MS: u64 = CANARY_EVERY_MS + 100;

#[derive(Debug, Default)]
pub(super) struct Canary {
    pub(super) number: u64,
    pub(super) sent_ms: u64,
    /// Canaries that Redis has not taken yet, and when it took the last.
    pub(super) untaken: usize,
    pub(super) taken_ms: u64,
    /// Redis has returned it.
    pub(super) is_back: bool,
    /// When each worker got the oldest that it has not handled; 0: it has handled all.
    pub(super) owed_ms: Vec<u64>,
}

impl Canary {
    /// Redis took a word: one of them, or another.
    pub(super) fn handle_taken(&mut self, is_canary: bool, now_ms: u64) {
        if is_canary {
            self.untaken = self.untaken.saturating_sub(1);
            self.taken_ms = now_ms;
        }
    }
}

impl Broker {
    /// A worker that has not handled a canary for long, though they come back.
    pub fn stuck_worker(&self, now_ms: u64) -> Option<usize> {
        let is_late =
            |&owed_ms: &u64| owed_ms > 0 && now_ms.saturating_sub(owed_ms) > CANARY_LOST_MS;
        self.canary.owed_ms.iter().position(is_late).filter(|_| self.is_ready())
    }

    /// Sends the next one when it is due. `Err`: the last one is lost.
    pub(super) fn tick_canary(&mut self, now_ms: u64) -> Result<(), LinkError> {
        if !self.canary.is_back {
            let late_ms = now_ms.saturating_sub(self.canary.sent_ms);
            let lag_ms = &self.config.counters.lag_ms;
            lag_ms.set(lag_ms.value().max(late_ms));
            // Only what was sent since Redis took it says that it is lost: this node itself may
            // have stood still, or have much to read that was sent before.
            if self.has_heard_since_canary(self.canary_patience_ms()) {
                return Err(LinkError::CanaryLost);
            }
        }
        let is_canary_due = now_ms.saturating_sub(self.canary.sent_ms) >= CANARY_EVERY_MS;
        if self.canary.is_back && is_canary_due && !self.has_left() {
            self.send_canary(now_ms);
        }
        Ok(())
    }

    /// Whether everything is read that Redis sent within this time after it took the canary.
    fn has_heard_since_canary(&self, ms: u64) -> bool {
        let canary = &self.canary;
        let heard_ms = self.subscriptions.read_until_ms().saturating_sub(canary.taken_ms);
        !canary.is_back && canary.untaken == 0 && heard_ms > ms
    }

    fn canary_patience_ms(&self) -> u64 {
        match self.state {
            State::Proving => CANARY_LOST_MS,
            _ => CANARY_LOST_MS - CANARY_SLACK_MS,
        }
    }

    /// Redis took the canary long enough ago that it may soon be lost.
    pub(super) fn is_canary_late(&self, now_ms: u64) -> bool {
        let taken_ms = now_ms.saturating_sub(self.canary.taken_ms);
        !self.canary.is_back && self.canary.untaken == 0 && taken_ms > self.canary_patience_ms()
    }

    pub(super) fn send_canary(&mut self, now_ms: u64) {
        self.canary.number += 1;
        self.canary.untaken += 1;
        self.canary.sent_ms = now_ms;
        self.canary.is_back = false;
        let mut canary = Vec::new();
        self.config.header(Kind::Canary, 0, self.canary.number).encode(&mut canary);
        let deadline_ms = self.deadline_ms(now_ms);
        self.log.add_word(&self.own_channel, &canary, None, deadline_ms);
        self.publishing.handle_asked(self.listening.at(now_ms));
    }
}
