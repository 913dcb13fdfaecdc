//! Messages that have not arrived completely: when they began, and how much memory they take
//! together.

use super::WsServer;
use super::slot::HELD;
use crate::state::CloseCause;
use crate::types::MonotonicMs;
use crate::wire::websocket::Inbound;
use std::collections::BTreeSet;

/// Connections that one slice closes because their message is late.
const ENDS_PER_SLICE: usize = 64;

/// Invariant: a slot is listed here, with the time its message began, exactly while it has an
/// `inbound`, and `bytes` is the total that all of those have allocated.
#[derive(Debug, Default)]
pub(super) struct Partials {
    by_age: BTreeSet<(MonotonicMs, u32)>,
    bytes: usize,
    /// Total bytes ever freed.
    freed_bytes: u64,
}

/// What a slot held of a message before more was read.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Before {
    since: Option<MonotonicMs>,
    bytes: usize,
    is_fragmented: bool,
}

impl Before {
    pub(super) fn of(inbound: Option<&Inbound>) -> Self {
        inbound.map_or(Self::default(), |inbound| Self {
            since: Some(MonotonicMs::new(inbound.since_ms)),
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

    /// Updates a slot that now has `inbound`. `is_another`: what is left of it began with this
    /// read.
    fn update(
        &mut self,
        slot: u32,
        before: Before,
        inbound: Option<&mut Inbound>,
        is_another: bool,
        awake: MonotonicMs,
    ) {
        let after_bytes = inbound.as_ref().map_or(0, |inbound| inbound.allocated_bytes());
        self.bytes = self.bytes - before.bytes + after_bytes;
        self.freed_bytes += before.bytes.saturating_sub(after_bytes) as u64;
        let since = before.since.filter(|_| !is_another && inbound.is_some());
        if let Some(old) = before.since.filter(|_| since.is_none()) {
            self.by_age.remove(&(old, slot));
        }
        let Some(inbound) = inbound else { return };
        let since = since.unwrap_or_else(|| {
            self.by_age.insert((awake, slot));
            awake
        });
        inbound.since_ms = since.value();
    }
}

impl WsServer {
    /// Records what a slot holds of a message; beyond the worker's budget the oldest is dropped
    /// first.
    pub(super) fn note_inbound(&mut self, slot: u32, before: Before, is_another: bool) {
        let inbound = self.slots[slot as usize].inbound.as_deref_mut();
        if inbound.is_none() && before.since.is_none() {
            return;
        }
        let awake = self.worker.awake_at(self.now.monotonic);
        self.partials.update(slot, before, inbound, is_another, awake);
        while self.partials.bytes > self.active.settings.memory.worker_inbound_bytes
            && let Some(&(_, oldest)) = self.partials.by_age.first()
        {
            self.end_partial(oldest, CloseCause::InboundBudget);
        }
        self.worker.counters().inbound_bytes.set(self.partials.bytes as u64);
    }

    /// Frees what a slot holds of a message.
    pub(super) fn drop_inbound(&mut self, slot: u32) {
        let Some(inbound) = self.slots[slot as usize].inbound.take() else { return };
        let awake = self.awake();
        self.partials.update(slot, Before::of(Some(&inbound)), None, true, awake);
        self.worker.counters().inbound_bytes.set(self.partials.bytes as u64);
    }

    fn end_partial(&mut self, slot: u32, cause: CloseCause) {
        self.drop_inbound(slot);
        self.worker.handle_unfinished(slot, cause);
    }

    /// Closes some connections whose message has not arrived completely in time. Returns whether
    /// there are more.
    pub(super) fn end_late_messages(&mut self) -> bool {
        let awake = self.awake();
        let timeout_ms = self.active.settings.times.message_timeout_ms;
        for _ in 0..ENDS_PER_SLICE {
            let Some(&(since, slot)) = self.partials.by_age.first() else { return false };
            if since + timeout_ms > awake {
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
            self.partials.update(slot, before, inbound, true, awake);
        }
        true
    }
}
