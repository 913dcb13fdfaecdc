//! Output that sockets did not accept: kept within the budgets, and written when there is room.

use super::Worker;
use crate::state::batch::{Batch, Sealed};
use crate::state::budget::{Budget, HeldFrame};
use crate::state::by_size::SizePlace;
use crate::state::connection::{CloseCause, Connection, NONE};
use crate::state::counters::{Drop, Shed};
use crate::state::outbox::{Load, Outbox};
use crate::state::rest::Rest;
use crate::types::{ConnKey, Now, WallMs};
use std::collections::BTreeMap;
use std::rc::Rc;

/// What happened to a frame queued for a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Owed {
    Done,
    /// The worker has no room for it: [`Worker::owe_in_outbox`] makes some.
    NoRoom,
    /// In the outbox, which is now over its limit.
    OverLimit,
    /// In the outbox, whose place in the order by size is outdated.
    Grown,
}

impl Worker {
    /// Returns the outbox of the connection in `slot`, without expired messages.
    pub fn outbox(&mut self, slot: u32, now: WallMs) -> Option<&Outbox> {
        let outbox = self.connections.get_mut(slot as usize)?.outbox.as_deref_mut()?;
        let expired = outbox.drop_expired(now);
        self.config.counters.count_drops(Drop::Expired, expired);
        self.connections[slot as usize].outbox.as_deref()
    }

    /// Notes that `written` bytes of the outbox were sent. Returns whether some are left, or the
    /// connection is about to be closed as slow.
    pub fn handle_outbox_written(&mut self, slot: u32, written: usize) -> bool {
        let Some(connection) = self.connections.get_mut(slot as usize) else { return false };
        let is_open = connection.is_open();
        let Some(outbox) = connection.outbox.as_deref_mut() else { return false };
        self.config.counters.deliveries.add(outbox.advance(written));
        outbox.was_tried = true;
        // The outbox of a connection waiting for its close stays: nothing may overtake it.
        let waits_for_close = outbox.is_shed() && is_open;
        let is_empty = outbox.is_empty() && !waits_for_close;
        let has_backlog = is_empty && connection.is_server();
        if is_empty && let Some(outbox) = connection.outbox.take() {
            self.forget_outbox(&outbox);
        } else {
            self.reorder(slot);
        }
        if has_backlog {
            self.write_backlog(slot);
        }
        !is_empty
    }

    /// Moves the unsent rest of an entry to the outbox. `was_tried`: the socket was offered these
    /// bytes and left some. Returns `false` if the outbox is over its limit.
    pub(super) fn put_rest_in_outbox(
        &mut self,
        sealed: &Sealed,
        index: usize,
        written: usize,
        was_tried: bool,
    ) -> bool {
        let slot = sealed.slot(index);
        if self.is_shed(slot) {
            self.config.counters.count_drops(Drop::SlowConsumer, sealed.pushes(index));
            return true;
        }
        let mut load = sealed.load_of(index);
        load.copied_bytes = load.copied_bytes.saturating_sub(written);
        self.make_room(slot, self.growth(slot, load));
        let limit = self.outbox_limit_of(&self.connections[slot as usize]);
        let connection = &mut self.connections[slot as usize];
        if connection.outbox.as_ref().is_some_and(|outbox| outbox.is_shed()) {
            // The connection itself had the largest outbox.
            self.config.counters.count_drops(Drop::SlowConsumer, sealed.pushes(index));
            return true;
        }
        if connection.outbox.is_none() {
            connection.outbox = Some(Box::new(Outbox::new(&self.budget, was_tried)));
            self.backlogged += 1;
            self.config.counters.backlogged.set(self.backlogged as u64);
            self.blocked.push(slot);
        }
        let Some(outbox) = connection.outbox.as_deref_mut() else { return true };
        let whole_pushes = sealed.put_rest(index, written, outbox, &self.budget);
        let is_over = outbox.is_over(limit);
        self.config.counters.deliveries.add(whole_pushes);
        self.reorder(slot);
        !is_over
    }

    pub(super) fn forget_outbox(&mut self, outbox: &Outbox) {
        self.backlogged -= 1;
        self.config.counters.backlogged.set(self.backlogged as u64);
        if let Some(place) = outbox.place {
            self.leave_place(place);
        }
    }

    /// Updates the place of the connection in `slot` in the order by size, which contains only open
    /// connections whose socket had its turn.
    pub(super) fn reorder(&mut self, slot: u32) {
        let Some(connection) = self.connections.get_mut(slot as usize) else { return };
        let is_open = connection.is_open();
        let Some(outbox) = connection.outbox.as_deref_mut() else { return };
        let is_in_order = outbox.may_be_shed() && is_open;
        let size = outbox.size();
        match outbox.place.take() {
            Some(place) if is_in_order && place.fits(size) => outbox.place = Some(place),
            before => {
                before.into_iter().for_each(|place| self.leave_place(place));
                if is_in_order {
                    let place = self.by_size.insert(slot, size);
                    if let Some(outbox) = self.connections[slot as usize].outbox.as_deref_mut() {
                        outbox.place = Some(place);
                    }
                }
            }
        }
    }

    pub(super) fn leave_place(&mut self, place: SizePlace) {
        if let Some(moved) = self.by_size.remove(place)
            && let Some(moved) = self.connections[moved as usize].outbox.as_mut()
        {
            moved.place = Some(place);
        }
    }

    fn growth(&self, slot: u32, load: Load) -> usize {
        Outbox::growth(self.connections[slot as usize].outbox.as_deref(), load)
    }

    /// Makes room in the worker's budget for `bytes` more for the connection in `slot`. The rests
    /// of closing connections go first, oldest first; then the largest outboxes, whose connections
    /// are closed, including this one if it would be the largest.
    pub(super) fn make_room(&mut self, slot: u32, bytes: usize) {
        while self.budget.bytes() + bytes > self.config.settings.memory.worker_outbox_bytes {
            if self.revoke_rest() {
                continue;
            }
            let Some(largest) = self.by_size.largest() else { return };
            let size = |slot: u32| {
                let outbox = self.connections[slot as usize].outbox.as_ref();
                outbox.filter(|outbox| outbox.place.is_some()).map(|outbox| outbox.size())
            };
            if size(slot).is_some_and(|own| own + bytes >= size(largest).unwrap_or(0)) {
                return self.shed(slot, Shed::Worker);
            }
            self.shed(largest, Shed::Worker);
        }
    }

    /// Frees `bytes` held for slow sockets, or as much as there is: the process is near its memory
    /// limit.
    pub fn shed_memory(&mut self, bytes: usize, now: Now) {
        self.now = now;
        let most = self.budget.bytes().saturating_sub(bytes);
        while self.budget.bytes() > most {
            if self.revoke_rest() {
                continue;
            }
            let Some(largest) = self.by_size.largest() else { break };
            self.shed(largest, Shed::Memory);
        }
        self.close_shed();
    }

    /// Returns `false` if there is none.
    fn revoke_rest(&mut self) -> bool {
        let has_any = self.rests.revoke_oldest();
        if has_any {
            self.config.counters.count_shed(Shed::Closing);
        }
        has_any
    }

    /// Frees at once what a connection holds, except the rest of a partly written frame.
    /// [`Worker::close_shed`] closes it.
    fn shed(&mut self, slot: u32, why: Shed) {
        let Some(outbox) = self.connections[slot as usize].outbox.as_deref_mut() else { return };
        self.config.counters.count_shed(why);
        self.config.counters.count_drops(Drop::SlowConsumer, outbox.shed());
        self.reorder(slot);
        let generation = self.connections[slot as usize].generation;
        self.shed.push_back(ConnKey { slot, generation });
    }

    /// Whether the output of the connection in `slot` was freed. It gets no more output, and no
    /// input is accepted from it.
    pub(super) fn is_shed(&self, slot: u32) -> bool {
        let connection = self.connections.get(slot as usize);
        connection.and_then(|one| one.outbox.as_ref()).is_some_and(|outbox| outbox.is_shed())
    }

    /// Closes some of the connections whose memory was taken. The rest follows in the next tick,
    /// which is due at once.
    ///
    /// Not while a batch is laid out: business servers are notified, after everything the batch
    /// holds for them. Nor while another event is being sent to them: each receives events in
    /// order.
    pub(super) fn close_shed(&mut self) {
        if std::mem::replace(&mut self.holds_closes, true) {
            return;
        }
        while self.shed_closes_left > 0
            && let Some(ConnKey { slot, generation }) = self.shed.pop_front()
        {
            let connection = self.connections.get(slot as usize);
            // It may have been closed for another reason by now.
            if connection.is_some_and(|one| one.generation == generation) {
                self.shed_closes_left -= 1;
                self.close(slot, CloseCause::SlowConsumer);
            }
        }
        self.holds_closes = false;
        self.is_overdue |= !self.shed.is_empty();
    }

    /// Closes a connection that leaves too much unread.
    pub(super) fn close_slow(&mut self, slot: u32) {
        if self.is_open(slot) && !self.is_shed(slot) {
            self.shed(slot, Shed::Connection);
            self.close_shed();
        }
    }

    /// Puts a frame of the open batch into the outbox of a connection, making room for it.
    pub(super) fn owe_in_outbox(&mut self, slot: u32, frame: u32) {
        if self.is_shed(slot) {
            let pushes = u64::from(self.open.is_push(frame));
            return self.config.counters.count_drops(Drop::SlowConsumer, pushes);
        }
        self.make_room(slot, self.growth(slot, self.open.load_of(frame)));
        let limit = self.outbox_limit_of(&self.connections[slot as usize]);
        let connection = &mut self.connections[slot as usize];
        let Some(outbox) = connection.outbox.as_deref_mut() else { return };
        if outbox.is_shed() {
            let pushes = u64::from(self.open.is_push(frame));
            return self.config.counters.count_drops(Drop::SlowConsumer, pushes);
        }
        self.open.put_frame(frame, outbox, &self.budget);
        if outbox.is_over(limit) {
            self.close_slow(slot);
        } else {
            self.reorder(slot);
        }
    }

    /// Returns what a closing connection that had `outbox` still has to write.
    pub(super) fn rest_of(&mut self, mut outbox: Box<Outbox>, cause: CloseCause) -> Option<Rest> {
        self.forget_outbox(&outbox);
        outbox.place = None;
        let reason = match cause {
            CloseCause::SlowConsumer => Drop::SlowConsumer,
            CloseCause::Gone => Drop::Disconnected,
            _ => Drop::Closed,
        };
        let counters = &self.config.counters;
        counters.count_drops(reason, outbox.shed());
        if outbox.is_empty() {
            return None;
        }
        let rest = Rest::new(*outbox, &self.rests, reason);
        // Without a socket it is dropped here, and counted as dropped.
        (cause != CloseCause::Gone).then_some(rest)
    }

    /// Bytes of outboxes freed since the worker started.
    pub fn freed_bytes(&self) -> u64 {
        self.budget.freed_bytes()
    }

    /// Shrinks lists of which no batch has used a quarter since the last call; returns the number
    /// of bytes freed. `sealed` must be finished.
    pub fn trim(&mut self, sealed: &mut Sealed) -> usize {
        sealed.trim(&mut self.open)
    }

    /// Panics unless the counters match the contents; visits everything.
    pub(super) fn check_outboxes(&self) {
        let with_outbox = self.connections.iter().filter(|(_, c)| c.outbox.is_some()).count();
        assert_eq!(with_outbox, self.backlogged);
        let mut held = BTreeMap::new();
        let mut bytes = 0;
        let mut count = |outbox: &Outbox| {
            bytes += outbox.charged();
            for frame in outbox.held_frames() {
                held.insert(Rc::as_ptr(frame), frame.len());
            }
        };
        let mut in_order = 0;
        for (slot, connection) in &self.connections {
            let Some(outbox) = &connection.outbox else { continue };
            count(outbox);
            let is_in_order = outbox.may_be_shed() && connection.is_open();
            assert_eq!(outbox.place.is_some(), is_in_order);
            assert!(outbox.place.is_none_or(|place| place.fits(outbox.size())));
            in_order += usize::from(is_in_order);
            let key = ConnKey { slot: slot as u32, generation: connection.generation };
            let waits_for_close = outbox.is_shed() && connection.is_open();
            assert!(!waits_for_close || self.shed.contains(&key), "nobody closes it");
        }
        assert_eq!(in_order, self.by_size.len());
        self.rests.each(count);
        let frames = held.values().map(|&bytes| HeldFrame::cost(bytes));
        assert_eq!(bytes + frames.sum::<usize>(), self.budget.bytes());
    }
}

/// Queues `frame` for a connection: in its entry of the open batch, or behind its outbox.
#[inline]
pub(super) fn deliver(
    batch: &mut Batch,
    budget: &Budget,
    max_bytes: usize,
    connection: &mut Connection,
    slot: u32,
    frame: u32,
    limit: usize,
) -> Owed {
    match &mut connection.outbox {
        Some(outbox) if connection.dirty == NONE => {
            let growth = Outbox::growth(Some(outbox), batch.load_of(frame));
            if outbox.is_shed() || budget.bytes() + growth > max_bytes {
                return Owed::NoRoom;
            }
            batch.put_frame(frame, outbox, budget);
            match outbox.place {
                _ if outbox.is_over(limit) => Owed::OverLimit,
                Some(place) if !place.fits(outbox.size()) => Owed::Grown,
                _ => Owed::Done,
            }
        }
        _ => {
            batch.owe(slot, &mut connection.dirty, frame);
            Owed::Done
        }
    }
}
