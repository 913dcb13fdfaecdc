//! Memory that a worker gives up: for the process's limit, and when it has fallen quiet.

use super::Core;
use crate::io::allocator;
use std::cell::Cell;
use std::time::Instant;

/// From so much freed on it is given back to the system.
const MUCH_BYTES: u64 = 4 << 20;
/// Ticks without a byte in or out, after which a worker is quiet.
const QUIET_TICKS: u32 = 4;
/// Ticks after which memory is given back though it never was.
const PATIENCE_TICKS: u32 = 40;

/// What is held of outboxes and requests, and how long there has been something to give back.
#[derive(Debug, Default)]
pub(super) struct Reclaim {
    peak_bytes: Cell<u64>,
    /// Bytes in and out.
    moved_bytes: Cell<u64>,
    quiet_ticks: Cell<u32>,
    due_ticks: Cell<u32>,
}

impl Reclaim {
    /// Whether there is something to give back.
    pub(super) fn is_pending(&self) -> bool {
        self.due_ticks.get() > 0
    }

    /// Whether memory is to be given back in this tick.
    fn is_due(&self, held_bytes: u64, moved_bytes: u64) -> bool {
        let is_quiet = self.moved_bytes.replace(moved_bytes) == moved_bytes;
        self.quiet_ticks.set(if is_quiet { self.quiet_ticks.get() + 1 } else { 0 });
        self.peak_bytes.set(self.peak_bytes.get().max(held_bytes));
        if self.peak_bytes.get() - held_bytes < MUCH_BYTES {
            self.due_ticks.set(0);
            return false;
        }
        self.due_ticks.set(self.due_ticks.get() + 1);
        if self.quiet_ticks.get() < QUIET_TICKS && self.due_ticks.get() < PATIENCE_TICKS {
            return false;
        }
        self.peak_bytes.set(held_bytes);
        self.due_ticks.set(0);
        true
    }
}

impl Core {
    /// In every tick.
    pub(super) fn tend_memory(&self, now_ms: u64) {
        let wanted_bytes = self.shared.memory.take_wanted(self.index);
        if wanted_bytes > 0 {
            self.engine.borrow_mut().worker.shed_memory(wanted_bytes, now_ms);
        }
        let counters = &self.counters;
        let body_bytes = self.shared.http_counters[self.index].body_bytes.value();
        let held_bytes = counters.outbox_bytes.value() + body_bytes;
        let moved_bytes = counters.sent_bytes.value() + counters.received_bytes.value();
        if self.reclaim.is_due(held_bytes, moved_bytes) || wanted_bytes > 0 {
            let begun = Instant::now();
            allocator::collect();
            self.shared.memory.want_purge();
            let took_us = begun.elapsed().as_micros() as u64;
            tracing::debug!(took_us, "freed memory may be given back to the system");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_given_back_once_when_it_is_quiet_or_after_a_while() {
        let reclaim = Reclaim::default();
        let mut moved = 0;
        let mut tick = |held: u64, more: u64| {
            moved += more;
            reclaim.is_due(held, moved)
        };
        assert!(!tick(10 << 20, 1) && !tick(7 << 20, 0) && !tick(7 << 20, 0));
        assert!(!tick(5 << 20, 1), "something moves");
        assert_eq!([0; 5].map(|more| tick(5 << 20, more)), [false, false, false, true, false]);
        assert!(!tick(50 << 20, 0));
        let busy: Vec<bool> = (0..PATIENCE_TICKS).map(|_| tick(0, 1)).collect();
        assert_eq!(busy.iter().position(|&due| due), Some(PATIENCE_TICKS as usize - 1));
    }
}
