//! What sockets did not take: kept within the budgets, and written when there is room.

use super::Worker;
use crate::state::batch::Sealed;
use crate::state::connection::{CloseCause, Phase};
use crate::state::counters::Drop;
use crate::state::outbox::Outbox;
use bytes::Bytes;

impl Worker {
    /// What the connection in `slot` still waits for, expired messages taken out.
    pub fn outbox(&mut self, slot: u32, now_ms: u64) -> Option<&Outbox> {
        let outbox = self.connections.get_mut(slot as usize)?.outbox.as_deref_mut()?;
        let before = outbox.owned_bytes();
        self.config.counters.count_drops(Drop::Expired, outbox.drop_expired(now_ms));
        self.outbox_bytes -= before - outbox.owned_bytes();
        Some(outbox)
    }

    /// `written` bytes of its outbox went out. Returns whether some are left.
    pub fn handle_outbox_written(&mut self, slot: u32, written: usize) -> bool {
        let Some(connection) = self.connections.get_mut(slot as usize) else { return false };
        let Some(outbox) = connection.outbox.as_deref_mut() else { return false };
        let before = outbox.owned_bytes();
        self.config.counters.deliveries.add(outbox.advance(written));
        self.outbox_bytes -= before - outbox.owned_bytes();
        outbox.was_tried = true;
        let is_empty = outbox.is_empty();
        let has_backlog = is_empty && connection.is_server;
        if is_empty && let Some(outbox) = connection.outbox.take() {
            self.forget_outbox(&outbox);
        }
        if has_backlog {
            self.write_backlog(slot);
        }
        self.config.counters.outbox_bytes.set(self.outbox_bytes as u64);
        !is_empty
    }

    /// `was_tried`: the socket was offered these bytes and left some. `false`: the outbox is over
    /// its limit.
    pub(super) fn put_rest_in_outbox(
        &mut self,
        sealed: &Sealed,
        index: usize,
        written: usize,
        was_tried: bool,
    ) -> bool {
        let slot = sealed.slot(index);
        let limit = self.outbox_limit_of(&self.connections[slot as usize]);
        let connection = &mut self.connections[slot as usize];
        if connection.outbox.is_none() {
            let position = self.backlogged.len();
            connection.outbox = Some(Box::new(Outbox::at(position, was_tried)));
            self.backlogged.push(slot);
            self.config.counters.backlogged.set(self.backlogged.len() as u64);
            self.blocked.push(slot);
        }
        let outbox = connection.outbox.get_or_insert_default();
        let before = outbox.owned_bytes();
        let whole_pushes = sealed.put_rest(index, written, outbox);
        self.outbox_bytes += outbox.owned_bytes() - before;
        let is_over = outbox.is_over(limit);
        let counters = &self.config.counters;
        counters.deliveries.add(whole_pushes);
        counters.outbox_bytes.set(self.outbox_bytes as u64);
        !is_over
    }

    pub(super) fn forget_outbox(&mut self, outbox: &Outbox) {
        self.outbox_bytes -= outbox.owned_bytes();
        self.config.counters.outbox_bytes.set(self.outbox_bytes as u64);
        self.backlogged.swap_remove(outbox.position);
        self.config.counters.backlogged.set(self.backlogged.len() as u64);
        if let Some(&moved) = self.backlogged.get(outbox.position)
            && let Some(moved) = self.connections[moved as usize].outbox.as_mut()
        {
            moved.position = outbox.position;
        }
    }

    /// Over the worker's budget the largest outbox goes first. What is shared counts once, however
    /// many hold it. Those that are being closed are on their way out with what they hold.
    pub(super) fn enforce_budget(&mut self) {
        self.held_frames.retain(|frame| !frame.is_unique());
        let held_bytes: usize = self.held_frames.iter().map(Bytes::len).sum();
        let total = self.outbox_bytes + held_bytes;
        let mut excess = total.saturating_sub(self.config.worker_outbox_bytes);
        if excess == 0 {
            return;
        }
        let mut open = Vec::new();
        for &slot in &self.backlogged {
            let connection = &self.connections[slot as usize];
            let Some(outbox) = &connection.outbox else { continue };
            if connection.phase == Phase::Closing {
                excess = excess.saturating_sub(outbox.pending_bytes());
            } else if outbox.was_tried {
                open.push((outbox.pending_bytes(), slot));
            }
        }
        open.sort_unstable();
        while excess > 0
            && let Some((bytes, slot)) = open.pop()
        {
            excess = excess.saturating_sub(bytes);
            self.close(slot, CloseCause::SlowConsumer);
        }
    }
}
