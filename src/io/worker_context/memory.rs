//! Memory that a worker gives up: under memory pressure of the process, and when it has become
//! quiet.

use super::WorkerContext;
use crate::io::allocator;
use crate::types::{MonotonicMs, Now};
use std::cell::Cell;
use std::time::Instant;

/// Freed bytes from which memory is given back to the system.
const MUCH_BYTES: u64 = 1 << 20;
/// Ticks without a byte in, out or freed after which a worker counts as quiet.
const QUIET_TICKS: u32 = 4;
/// Ticks after which memory is given back even if the worker was never quiet.
const PATIENCE_TICKS: u32 = 40;
/// Interval between checks for oversized lists.
const TRIM_EVERY_MS: u64 = 4_000;

/// Bytes freed since memory was last given back, and for how many ticks they have been many.
///
/// It counts bytes freed, not the decrease of bytes held: where requests replace each other, as
/// much is held as before, but the freed blocks have other sizes than the next requests need.
#[derive(Debug, Default)]
pub(super) struct Reclaim {
    /// Total when memory was last given back, and in the last tick.
    given_back_bytes: Cell<u64>,
    freed_bytes: Cell<u64>,
    /// Bytes received and sent.
    moved_bytes: Cell<u64>,
    quiet_ticks: Cell<u32>,
    due_ticks: Cell<u32>,
    /// Lists have been trimmed.
    has_trimmed: Cell<bool>,
    trimmed: Cell<MonotonicMs>,
}

impl Reclaim {
    /// Returns whether there is memory to give back.
    pub(super) fn is_pending(&self) -> bool {
        self.due_ticks.get() > 0
    }

    /// Returns whether memory is to be given back in this tick. `freed_bytes` and `moved_bytes` are
    /// totals since the worker began.
    fn is_due(&self, freed_bytes: u64, moved_bytes: u64) -> bool {
        let is_quiet = self.moved_bytes.replace(moved_bytes) == moved_bytes
            && self.freed_bytes.replace(freed_bytes) == freed_bytes;
        self.quiet_ticks.set(if is_quiet { self.quiet_ticks.get() + 1 } else { 0 });
        if freed_bytes - self.given_back_bytes.get() < MUCH_BYTES && !self.has_trimmed.get() {
            return false;
        }
        self.due_ticks.set(self.due_ticks.get() + 1);
        if self.quiet_ticks.get() < QUIET_TICKS && self.due_ticks.get() < PATIENCE_TICKS {
            return false;
        }
        self.given_back_bytes.set(freed_bytes);
        self.has_trimmed.set(false);
        self.due_ticks.set(0);
        true
    }

    fn is_trim_due(&self, now: MonotonicMs) -> bool {
        let is_due = now.since(self.trimmed.get()) >= TRIM_EVERY_MS;
        if is_due {
            self.trimmed.set(now);
        }
        is_due
    }
}

impl WorkerContext {
    /// Frees, trims and gives back memory as needed. Called in every tick.
    pub(super) fn tend_memory(&self, now: Now) {
        let wanted_bytes = self.shared.memory.take_wanted(self.index);
        if wanted_bytes > 0 {
            self.ws_server.borrow_mut().worker.shed_memory(wanted_bytes, now);
        }
        if self.reclaim.is_trim_due(now.monotonic) && self.ws_server.borrow_mut().trim() > 0 {
            self.reclaim.has_trimmed.set(true);
        }
        let counters = &self.counters;
        let freed_bytes = self.ws_server.borrow().freed_bytes() + self.http.borrow().freed_bytes();
        let moved_bytes = counters.sent_bytes.value() + counters.received_bytes.value();
        if self.reclaim.is_due(freed_bytes, moved_bytes) || wanted_bytes > 0 {
            let begun = Instant::now();
            allocator::collect();
            self.shared.memory.want_purge();
            let took_us = begun.elapsed().as_micros() as u64;
            tracing::debug!(took_us, "returned freed memory to the system");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn memory_is_given_back_once_when_it_is_quiet_or_after_a_while() {
        let reclaim = Reclaim::default();
        let (mut freed, mut moved) = (0, 0);
        let mut tick = |more_freed: u64, more_moved: u64| {
            (freed, moved) = (freed + more_freed, moved + more_moved);
            reclaim.is_due(freed, moved)
        };
        assert!(!tick(MIB / 2, 1) && !tick(0, 0) && !tick(0, 0) && !tick(0, 0) && !tick(0, 0));
        assert!(!tick(MIB / 2, 0), "more may be freed");
        assert!(!tick(0, 1), "something moves");
        assert_eq!([0; 5].map(|more| tick(0, more)), [false, false, false, true, false]);
        // Requests that replace each other all the time.
        let busy: Vec<bool> = (0..PATIENCE_TICKS).map(|_| tick(MIB, 0)).collect();
        assert_eq!(busy.iter().position(|&due| due), Some(PATIENCE_TICKS as usize - 1));
    }

    #[test]
    fn lists_that_were_trimmed_are_given_back_however_short_they_were() {
        let reclaim = Reclaim::default();
        let now = MonotonicMs::new(9_000);
        assert!(reclaim.is_trim_due(now) && !reclaim.is_trim_due(now + (TRIM_EVERY_MS - 1)));
        assert!(reclaim.is_trim_due(now + TRIM_EVERY_MS));
        reclaim.has_trimmed.set(true);
        assert_eq!([0; 5].map(|_| reclaim.is_due(0, 0)), [false, false, false, true, false]);
    }
}
