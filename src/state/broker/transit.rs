//! Bytes that were published and that Redis may still hold for subscribers.
//!
//! Redis copies each message into the output buffer of every subscriber and disconnects a
//! subscriber whose buffer exceeds `client-output-buffer-limit pubsub`. Each single message is
//! smaller than that; this bounds the sum in transit. Whether subscribers have taken it is judged
//! by this node's own subscribing link: what Redis had accepted before a PING on that link has left
//! its buffer when the PING is answered.

use super::{Broker, LinkName};
use crate::types::MonotonicMs;
use crate::wire::bundle;
use crate::wire::resp::Reply;
use std::collections::VecDeque;

/// A channel that this node is not subscribed to does not show on its own link. A large message
/// there counts for the time that a gigabit link takes to carry it.
const UNHEARD_BYTES_PER_MS: u64 = 128 << 10;

/// Invariant: the bytes in transit are at most `window_bytes`, or one command.
#[derive(Debug)]
pub(super) struct Transit {
    window_bytes: usize,
    /// Sent and not answered.
    sent_bytes: usize,
    /// Answered and not known to have left Redis.
    unseen_bytes: usize,
    /// As `unseen_bytes`, and answered before the PING in flight.
    pinged_bytes: usize,
    /// On channels that this node is not subscribed to: bytes, and until when they count.
    unheard: VecDeque<(usize, MonotonicMs)>,
    unheard_bytes: usize,
}

impl Default for Transit {
    /// Unbounded: Redis's limit is not known.
    fn default() -> Self {
        Self {
            window_bytes: usize::MAX,
            sent_bytes: 0,
            unseen_bytes: 0,
            pinged_bytes: 0,
            unheard: VecDeque::new(),
            unheard_bytes: 0,
        }
    }
}

impl Transit {
    /// Resets the state for new links, for which Redis holds nothing.
    pub(super) fn clear(&mut self) {
        *self = Self { window_bytes: self.window_bytes, ..Self::default() };
    }

    fn bytes(&self) -> usize {
        self.sent_bytes + self.unseen_bytes + self.pinged_bytes + self.unheard_bytes
    }

    /// Whether a command of this length may be sent now.
    pub(super) fn has_room(&self, bytes: usize) -> bool {
        let in_transit = self.bytes();
        in_transit == 0 || bytes <= self.window_bytes.saturating_sub(in_transit)
    }

    pub(super) fn handle_sent(&mut self, bytes: usize) {
        self.sent_bytes += bytes;
    }

    /// Notes Redis's reply to a command. `receivers`: subscribers it delivers to; `is_heard`: this
    /// node is one of them.
    fn handle_answered(&mut self, bytes: usize, receivers: i64, is_heard: bool, now: MonotonicMs) {
        self.sent_bytes -= bytes;
        if receivers == 0 {
            return;
        }
        if is_heard {
            self.unseen_bytes += bytes;
            return;
        }
        let since = self.unheard.back().map_or(now, |&(_, until)| until.max(now));
        self.unheard.push_back((bytes, since + bytes as u64 / UNHEARD_BYTES_PER_MS));
        self.unheard_bytes += bytes;
    }

    /// Notes that a PING is sent on the subscribing link.
    fn handle_pinged(&mut self) {
        self.pinged_bytes += std::mem::take(&mut self.unseen_bytes);
    }

    /// Notes that the PING is answered.
    fn handle_pong(&mut self) {
        self.pinged_bytes = 0;
    }

    fn tick(&mut self, now: MonotonicMs) {
        while let Some((bytes, _)) = self.unheard.pop_front_if(|(_, until)| *until <= now) {
            self.unheard_bytes -= bytes;
        }
    }
}

impl Broker {
    /// Handles a reply to the oldest command; a refused command delivers nothing.
    pub(super) fn handle_taken(&mut self, reply: &Reply<'_>, now: MonotonicMs) {
        let receivers = if let Reply::Integer(count) = reply { *count } else { 0 };
        let channel = self.log.front_channel();
        if channel.is_empty() {
            return;
        }
        let bytes = self.log.due_bytes();
        let is_heard = bytes <= bundle::MAX_BYTES || self.interests.has(channel);
        self.transit.handle_answered(bytes, receivers, is_heard, now);
    }

    /// Sends a PING on the subscribing link if commands wait for it or soon will.
    pub(super) fn ping_for_room(&mut self, now: MonotonicMs) {
        let Transit { unseen_bytes, window_bytes, .. } = self.transit;
        let is_urgent = unseen_bytes > window_bytes / 2 || self.is_held_back();
        if unseen_bytes > 0 && is_urgent && self.subscribe_log.is_ping_due(now, true) {
            self.ping_subscribing(now);
        }
    }

    pub(super) fn ping_subscribing(&mut self, now: MonotonicMs) {
        self.subscribe_log.ping(&mut self.subscribing, now);
        self.subscribing.handle_asked(self.listening.at(now));
        self.transit.handle_pinged();
    }

    /// Handles Redis's reply to the PING, or its refusal.
    pub(super) fn handle_pong(&mut self, now: MonotonicMs) {
        self.transit.handle_pong();
        self.ping_for_room(now);
    }

    /// Whether a command waits for bytes in transit.
    fn is_held_back(&self) -> bool {
        let next = self.log.next_bytes();
        self.may_publish() && next.is_some_and(|bytes| !self.transit.has_room(bytes))
    }

    /// Recomputes limit and window once Redis's limits are known or have changed, or the number of
    /// live nodes has.
    pub(super) fn settle_limit(&mut self) {
        self.facts.settle_limit(self.nodes());
        self.events.extend(self.facts.take_events());
        let window_bytes = self.facts.window_bytes();
        self.transit.window_bytes = window_bytes;
        for log in [Some(&mut self.log), self.held.as_mut()].into_iter().flatten() {
            log.set_window(window_bytes);
        }
    }

    pub(super) fn tick_transit(&mut self, now: MonotonicMs) {
        if self.publishing.is_greeted() {
            self.settle_limit();
        }
        self.transit.tick(now);
        self.ping_for_room(now);
        if self.is_held_back() && !self.log.has_sent() {
            // No reply is due from it: we do not ask.
            self.handle_written(LinkName::Publish, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> MonotonicMs {
        MonotonicMs::new(ms)
    }

    #[test]
    fn what_redis_may_hold_is_bounded_and_one_command_always_goes() {
        let mut transit = Transit { window_bytes: 100, ..Transit::default() };
        assert!(transit.has_room(1_000), "alone");
        transit.handle_sent(60);
        assert!(transit.has_room(40) && !transit.has_room(41));
        transit.handle_answered(60, 2, true, ms(0));
        assert!(!transit.has_room(41), "its answer is not its arrival");
        transit.handle_pinged();
        transit.handle_sent(30);
        transit.handle_answered(30, 1, true, ms(0));
        transit.handle_pong();
        assert!(transit.has_room(70) && !transit.has_room(71), "30 came after the PING");
        transit.clear();
        assert!(transit.has_room(1_000) && transit.window_bytes == 100);
    }

    #[test]
    fn a_large_message_that_is_not_heard_here_counts_for_its_time_on_the_way() {
        let mut transit = Transit { window_bytes: 25 << 20, ..Transit::default() };
        for (receivers, has_room) in [(0, true), (1, false)] {
            transit.handle_sent(20 << 20);
            transit.handle_answered(20 << 20, receivers, false, ms(1_000));
            assert_eq!(transit.has_room(20 << 20), has_room);
        }
        transit.handle_pinged();
        transit.handle_pong();
        transit.tick(ms(1_159));
        assert!(!transit.has_room(20 << 20));
        transit.tick(ms(1_160));
        assert_eq!(transit.bytes(), 0);
    }
}
