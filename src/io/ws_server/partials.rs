//! Messages that have not arrived completely: when they began, and how much memory they take
//! together.

use super::WsServer;
use super::slot::HELD;
use crate::state::CloseCause;
use crate::wire::websocket::Inbound;
use std::collections::BTreeSet;

/// Connections that one slice closes because their message is late.
const ENDS_PER_SLICE: usize = 64;

/// Invariant: a slot is listed here, with the time its message began, exactly while it has an
/// `inbound`, and `bytes` is the total that all of those have allocated.
#[derive(Debug, Default)]
pub(super) struct Partials {
    by_age: BTreeSet<(u64, u32)>,
    bytes: usize,
    /// Total bytes ever freed.
    freed_bytes: u64,
    /// How far the wall clock is ahead of the clock by which messages age: clock steps, and time in
    /// which this thread did not run.
    ahead_ms: i64,
}

/// What a slot held of a message before more was read.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Before {
    since_ms: Option<u64>,
    bytes: usize,
    is_fragmented: bool,
}

impl Before {
    pub(super) fn of(inbound: Option<&Inbound>) -> Self {
        inbound.map_or(Self::default(), |inbound| Self {
            since_ms: Some(inbound.since_ms),
            bytes: inbound.allocated_bytes(),
            is_fragmented: inbound.is_fragmented(),
        })
    }

    pub(super) fn is_fragmented(self) -> bool {
        self.is_fragmented
    }
}

impl Partials {
    pub(super) fn is_empty(&self) -> bool {
        self.by_age.is_empty()
    }

    pub(super) fn freed_bytes(&self) -> u64 {
        self.freed_bytes
    }

    pub(super) fn handle_clock_step(&mut self, step_ms: i64) {
        self.ahead_ms = self.ahead_ms.saturating_add(step_ms);
    }

    fn age_clock(&self, now_ms: u64) -> u64 {
        now_ms.saturating_add_signed(-self.ahead_ms)
    }

    /// Updates a slot that now has `inbound`. `is_another`: what is left of it began with this
    /// read.
    fn update(
        &mut self,
        slot: u32,
        before: Before,
        inbound: Option<&mut Inbound>,
        is_another: bool,
        now_ms: u64,
    ) {
        let after_bytes = inbound.as_ref().map_or(0, |inbound| inbound.allocated_bytes());
        self.bytes = self.bytes - before.bytes + after_bytes;
        self.freed_bytes += before.bytes.saturating_sub(after_bytes) as u64;
        let since_ms = before.since_ms.filter(|_| !is_another && inbound.is_some());
        if let Some(old_ms) = before.since_ms.filter(|_| since_ms.is_none()) {
            self.by_age.remove(&(old_ms, slot));
        }
        let Some(inbound) = inbound else { return };
        inbound.since_ms = since_ms.unwrap_or_else(|| {
            let since_ms = self.age_clock(now_ms);
            self.by_age.insert((since_ms, slot));
            since_ms
        });
    }
}

impl WsServer {
    /// Records what a slot holds of a message; beyond the worker's budget the oldest is dropped
    /// first.
    pub(super) fn note_inbound(&mut self, slot: u32, before: Before, is_another: bool) {
        let inbound = self.slots[slot as usize].inbound.as_deref_mut();
        if inbound.is_none() && before.since_ms.is_none() {
            return;
        }
        self.partials.update(slot, before, inbound, is_another, self.now_ms);
        while self.partials.bytes > self.shared.settings.memory.worker_inbound_bytes
            && let Some(&(_, oldest)) = self.partials.by_age.first()
        {
            self.end_partial(oldest, CloseCause::InboundBudget);
        }
        self.worker.counters().inbound_bytes.set(self.partials.bytes as u64);
    }

    /// Frees what a slot holds of a message.
    pub(super) fn drop_inbound(&mut self, slot: u32) {
        let Some(inbound) = self.slots[slot as usize].inbound.take() else { return };
        self.partials.update(slot, Before::of(Some(&inbound)), None, true, self.now_ms);
        self.worker.counters().inbound_bytes.set(self.partials.bytes as u64);
    }

    fn end_partial(&mut self, slot: u32, cause: CloseCause) {
        self.drop_inbound(slot);
        self.worker.handle_unfinished(slot, cause);
    }

    /// Closes some connections whose message has not arrived completely in time. Returns whether
    /// there are more.
    pub(super) fn end_late_messages(&mut self) -> bool {
        let now_ms = self.partials.age_clock(self.now_ms);
        let timeout_ms = self.shared.settings.times.message_timeout_ms;
        for _ in 0..ENDS_PER_SLICE {
            let Some(&(since_ms, slot)) = self.partials.by_age.first() else { return false };
            if since_ms + timeout_ms > now_ms {
                return false;
            }
            let entry = &mut self.slots[slot as usize];
            if entry.state & HELD == 0 {
                self.end_partial(slot, CloseCause::MessageTimeout);
                continue;
            }
            // Its input is unread because of this node, or because its peer does not read.
            let before = Before::of(entry.inbound.as_deref());
            let inbound = entry.inbound.as_deref_mut();
            self.partials.update(slot, before, inbound, true, self.now_ms);
        }
        true
    }
}
