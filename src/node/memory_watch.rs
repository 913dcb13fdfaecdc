//! Returns free memory to the system, and keeps the process below its memory limit. Memory that the
//! outboxes' budgets do not bound exactly (the kernel's buffers, requests, connections) may leave
//! the outboxes less than their budget.

use crate::io::allocator;
use crate::io::memory::MemoryLimit;
use crate::io::shared::Shared;
use std::time::{Duration, Instant};

/// Interval between checks of the memory in use.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Interval between purges that nobody has requested: of what other threads than workers have
/// freed, and workers in small amounts. With nothing to return one takes 50 us and makes no system
/// call, so that nobody needs to keep account of what was freed; after 110 MB it took 12 ms.
const PURGE_EVERY: Duration = Duration::from_secs(1);
/// Minimum interval between sheds: memory that workers give up takes a moment to show.
const SHED_EVERY: Duration = Duration::from_millis(500);
const WARN_EVERY: Duration = Duration::from_secs(10);
/// Percentages of the limit: outboxes are shed from the first, down to the second.
const HIGH_PERCENT: u64 = 85;
const LOW_PERCENT: u64 = 75;

pub(super) struct MemoryWatch {
    /// `None`: there is no limit to watch.
    limit: Option<MemoryLimit>,
    next_purge: Instant,
    next_shed: Instant,
    next_warning: Instant,
}

impl MemoryWatch {
    /// Starts the watch; from here on only [`MemoryWatch::look`] returns memory to the system.
    pub(super) fn new(shared: &Shared) -> Self {
        allocator::purge_only_when_asked();
        let limit = shared.memory.limit.clone();
        let now = Instant::now();
        Self { limit, next_purge: now, next_shed: now, next_warning: now }
    }

    /// Checks the memory in use, and asks workers for some of theirs if it is near the limit.
    pub(super) fn look(&mut self, shared: &Shared) {
        let now = Instant::now();
        if shared.memory.take_purge_wanted() || now >= self.next_purge {
            self.next_purge = now + PURGE_EVERY;
            // Done here because it takes long, and nothing waits for this thread.
            allocator::purge();
        }
        let Some(limit) = &self.limit else { return };
        let Some(used) = limit.used() else { return };
        shared.memory.set_used(used as usize);
        if used < limit.bytes / 100 * HIGH_PERCENT || now < self.next_shed {
            return;
        }
        self.next_shed = now + SHED_EVERY;
        let excess = used - limit.bytes / 100 * LOW_PERCENT;
        let held: Vec<u64> = shared.counters.iter().map(|one| one.outbox_bytes.value()).collect();
        let total: u64 = held.iter().sum();
        if now >= self.next_warning {
            self.next_warning = now + WARN_EVERY;
            tracing::warn!(
                used_bytes = used,
                limit_bytes = limit.bytes,
                limit = limit.source.name(),
                outbox_bytes = total,
                "memory is near its limit: the slowest clients are closed with 4000; raise the \
                 limit, or lower --worker_outbox_bytes or --max_connections"
            );
        }
        for (worker, held) in held.into_iter().enumerate().filter(|(_, held)| *held > 0) {
            let share = u128::from(excess.min(total)) * u128::from(held) / u128::from(total);
            shared.memory.want(worker, share as usize);
        }
    }
}
