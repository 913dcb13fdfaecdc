//! Settles pushes once they must have arrived; the threads then judge them.

use std::sync::atomic::Ordering;

use super::{Driver, IDLE_NS};
use crate::sys;

/// Longest wait for the threads' counts of missing deliveries.
const PROBE_NS: u64 = 100_000_000;

impl Driver<'_> {
    pub(super) fn settle_next(&mut self) {
        let answer = self.pushes[self.settled].answer.unwrap_or_default();
        self.shared.ledger.settle(answer);
        self.settled += 1;
    }

    /// Settles pushes whose response, or its deadline, is older than the delivery timeout.
    pub(super) fn settle_due(&mut self, now: u64) {
        let timeout_ns = self.shared.common.timeout_ns;
        while let Some(push) = self.pushes.get(self.settled) {
            let is_due = match push.answer {
                Some(_) => now.saturating_sub(push.answered_ns) > timeout_ns,
                None => now.saturating_sub(push.sent_ns) > 2 * timeout_ns,
            };
            let is_awaited = self.alone.is_some_and(|alone| alone.seq as usize == self.settled);
            if !is_due || is_awaited {
                break;
            }
            self.settle_next();
        }
    }

    /// Waits up to `at_most_ns` until everything due has arrived, and has all threads judge it. If
    /// something is still missing, it is judged only if `is_final`.
    pub(super) fn settle_all(&mut self, at_most_ns: u64, is_final: bool) -> Result<(), String> {
        let shared = self.shared;
        let began_ns = sys::now_ns();
        let is_complete = loop {
            let probe = shared.probe.fetch_add(1, Ordering::AcqRel) + 1;
            shared.wake_all();
            let asked_ns = sys::now_ns();
            self.bulk.flush(asked_ns);
            self.unicast.flush(asked_ns);
            let has_answered = |t: usize| shared.crew(t).probed.load(Ordering::Acquire) == probe;
            let mut answered = false;
            while !answered && sys::now_ns() < asked_ns + PROBE_NS {
                self.step(PROBE_NS / 20)?;
                answered = (0..shared.crew_threads).all(has_answered);
            }
            let is_quiet = self.bulk.pending() + self.unicast.pending() == 0;
            if answered && is_quiet && shared.sum(|crew| &crew.missing) == 0 {
                break true;
            }
            if sys::now_ns() - began_ns > at_most_ns || shared.is_over() {
                break false;
            }
        };
        if !is_complete && !is_final {
            return Ok(());
        }
        while self.settled < self.pushes.len() {
            self.settle_next();
        }
        shared.judge_unicasts.fetch_add(1, Ordering::AcqRel);
        shared.wake_all();
        Ok(())
    }

    /// Returns the number of unanswered pushes, canary pushes and requests.
    fn pending(&self) -> usize {
        let canaries = self.shared.canaries_pending.load(Ordering::Acquire);
        let requests = self.shared.requests_pending.load(Ordering::Acquire);
        self.bulk.pending() + self.unicast.pending() + canaries + requests
    }

    /// Before the server gets SIGTERM: stops pushing and waits until all pushes are answered.
    pub(super) fn wait_for_answers(&mut self) -> Result<(), String> {
        let began_ns = sys::now_ns();
        self.shared.quiet.store(true, Ordering::Release);
        // Canaries push at most once more before they notice.
        self.step(2 * IDLE_NS)?;
        while self.pending() > 0 && sys::now_ns() - began_ns < self.shared.common.timeout_ns {
            self.step(IDLE_NS)?;
        }
        self.bulk.expects_end = true;
        self.unicast.expects_end = true;
        Ok(())
    }
}
