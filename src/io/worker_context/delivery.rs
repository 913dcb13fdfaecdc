//! Messages on their way to a worker's clients: matched, batched, sent.

use super::WorkerContext;
use super::traces::TracedDelivery;
use crate::io::clock::{self, Moment};
use crate::io::sync::yield_now;
use crate::state::PushOutcome;
use crate::types::{Now, WallMs};
use crate::wire::envelope::Envelope;
use crate::wire::trace_context::TraceContext;
use std::time::{Duration, Instant};

/// Slices of pushes to very large audiences that are matched before anything is sent.
const SLICES_FIRST: u32 = 128;

/// A message that this worker received.
#[derive(Debug, Clone, Copy)]
pub(super) struct Received {
    accepted_us: u64,
    received_us: u64,
    expires: Option<WallMs>,
    trace: Option<TracedDelivery>,
}

impl WorkerContext {
    /// Delivers a message to this worker's clients, or begins to.
    pub(in crate::io) fn deliver(&self, envelope: &Envelope<'_>, received_at: Moment) {
        let mut ws_server = self.ws_server.borrow_mut();
        let outcome = ws_server.worker.handle_envelope(envelope, received_at.now());
        if outcome.is_unfinished || (outcome.matched > 0 && !outcome.is_expired) {
            let trace = envelope.trace.filter(|_| self.traces.are_on());
            let received = Received {
                accepted_us: envelope.accepted_us,
                received_us: received_at.wall_us,
                expires: envelope.expires(),
                trace: trace.map(|trace| TracedDelivery {
                    parent: TraceContext::from_bytes(trace),
                    id: envelope.id,
                    project: self.active.borrow().projects.id_of(envelope.pid),
                    received_us: received_at.wall_us,
                    matched: 0,
                }),
            };
            if outcome.is_unfinished {
                self.unfinished.borrow_mut().push_back(received);
            } else {
                self.note_delivered(received, outcome);
            }
        }
        if ws_server.worker.has_output() {
            self.work.notify();
        }
    }

    /// Matches a further slice of pushes to very large audiences.
    fn match_more(&self, now: Now) {
        let mut ws_server = self.ws_server.borrow_mut();
        let mut unfinished = self.unfinished.borrow_mut();
        let had_some = !unfinished.is_empty();
        ws_server.worker.match_more(now, |outcome| {
            if let Some(received) = unfinished.pop_front() {
                self.note_delivered(received, outcome);
            }
        });
        if had_some && ws_server.worker.takes_pushes() {
            self.flushed.wake_all();
        }
    }

    /// Records that the open batch holds a message for all its recipients.
    fn note_delivered(&self, received: Received, outcome: PushOutcome) {
        if outcome.matched == 0 || outcome.is_expired {
            return;
        }
        let Received { accepted_us, received_us, expires, trace } = received;
        self.counters.receive_latency.observe(received_us.saturating_sub(accepted_us));
        self.unwritten.borrow_mut().push((accepted_us, received_us));
        self.hold.add(received_us, expires);
        if let Some(trace) = trace {
            self.traces.add_delivery(TracedDelivery { matched: outcome.matched, ..trace });
        }
    }

    /// Records that what was delivered has been handed to the sockets.
    fn observe_written(&self, delivered: &mut Vec<(u64, u64)>, traced: &[TracedDelivery]) {
        if delivered.is_empty() {
            return;
        }
        let now_us = clock::wall_us();
        self.traces.end_flush(traced, now_us);
        for (accepted_us, received_us) in delivered.drain(..) {
            self.counters.write_latency.observe(now_us.saturating_sub(received_us));
            self.counters.delivery_latency.observe(now_us.saturating_sub(accepted_us));
        }
    }

    /// Records a finished piece of work of the WebSocket side and returns its length.
    pub(in crate::io) fn observe_turn(&self, began: Instant) -> Duration {
        let length = began.elapsed();
        self.counters.turns.observe(length.as_micros() as u64);
        length
    }

    /// Returns how much longer the open batch waits for more messages (`--coalesce_us`); `None` if
    /// it must be sent now. Answers and closes never wait, and take along what was held.
    pub(in crate::io) fn held_for(&self) -> Option<Duration> {
        let left = self.hold.left(clock::wall_us)?;
        let may_wait = self.ws_server.borrow().worker.may_wait() && !self.shared.is_draining();
        may_wait.then_some(left)
    }

    /// Sends what is owed now, and lets other tasks run about every millisecond. What becomes due
    /// in the meantime waits for the next flush: the ring's events have their turn between the two.
    ///
    /// A push to a very large audience is matched completely before it is sent, so that later
    /// pushes share its sends. There is a bound, and anyone who waits for an answer does not wait
    /// for this.
    pub(in crate::io) async fn flush(&self) {
        let mut began = Instant::now();
        let now = clock::now_at(began);
        self.match_more(now);
        if !self.ws_server.borrow().worker.has_output() {
            return;
        }
        let slices = self.slices.replace(self.slices.get() + 1);
        if slices < SLICES_FIRST && self.ws_server.borrow().worker.may_match_first() {
            self.observe_turn(began);
            return;
        }
        self.slices.set(0);
        // What is delivered in the meantime belongs to the next flush.
        let mut delivered = self.unwritten.take();
        self.hold.end();
        let traced = self.traces.begin_flush();
        self.ws_server.borrow_mut().begin_flush(now);
        loop {
            let has_more = self.ws_server.borrow_mut().send_chunk(began);
            self.observe_turn(began);
            if !has_more {
                break;
            }
            yield_now().await;
            began = Instant::now();
            let now = clock::now_at(began);
            self.tick(now);
            self.match_more(now);
        }
        self.observe_written(&mut delivered, &traced);
        if self.unwritten.borrow().is_empty() {
            self.unwritten.replace(delivered);
        }
        self.flushed.wake_all();
    }
}
