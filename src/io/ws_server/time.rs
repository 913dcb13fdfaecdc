//! Deadlines of a worker's sockets.

use super::WsServer;
use crate::io::handshake::refuse;
use crate::io::sys;
use crate::types::{MonotonicMs, Now};

/// Handshakes that one slice admits.
const ADMISSIONS_PER_SLICE: usize = 64;
/// Handshakes that one slice refuses because they did not arrive in time.
const REFUSALS_PER_SLICE: usize = 32;

impl WsServer {
    /// Handles a stall: this thread did not run for `stall_ms`, and deadlines of peers move by that
    /// much.
    pub fn handle_stall(&mut self, stall_ms: u64) {
        self.worker.handle_stall(stall_ms);
    }

    /// The current time on the clock of [`Worker::awake_at`], by which all deadlines of peers are
    /// set and checked.
    ///
    /// [`Worker::awake_at`]: crate::state::Worker::awake_at
    pub(super) fn awake(&self) -> MonotonicMs {
        self.worker.awake_at(self.now.monotonic)
    }

    pub(super) fn tick_worker(&mut self) {
        let slots = &self.slots;
        let has_unread = |slot: u32| slots[slot as usize].fd.as_ref().is_some_and(sys::has_unread);
        self.worker.handle_tick_with(self.now, has_unread);
    }

    /// Returns whether the last look at the deadlines left work undone.
    pub(super) fn is_overdue(&self) -> bool {
        self.worker.is_overdue()
            || self.has_late_sockets
            || self.shutdown.is_due()
            || self.handshakes.has_ready()
    }

    /// Continues the work that the last look at the deadlines left undone, if any, while the open
    /// batch has room.
    pub(super) fn catch_up(&mut self) {
        if !self.is_overdue() || self.worker.is_full() {
            return;
        }
        self.continue_shutdown();
        if self.worker.is_overdue() {
            self.tick_worker();
        }
        if self.has_late_sockets {
            self.end_late_sockets();
        }
        self.retry_ready();
    }

    /// Admits some of the handshakes whose interest is now in force.
    pub(super) fn retry_ready(&mut self) {
        for _ in 0..ADMISSIONS_PER_SLICE {
            let Some(index) = self.handshakes.next_ready() else { return };
            self.retry_handshake(index);
        }
    }

    /// Refuses handshakes, closes connections with incomplete messages, and ends lingering sockets
    /// whose deadline has passed, a bounded number of each.
    fn end_late_sockets(&mut self) {
        let awake = self.awake();
        let has_late = self.lingering.handle_tick(awake);
        let late = self.handshakes.late(awake, REFUSALS_PER_SLICE);
        let has_late = self.end_late_messages() || has_late;
        self.has_late_sockets = has_late || late.len() == REFUSALS_PER_SLICE;
        for index in late {
            let handshake = self.handshakes.remove(index);
            let error = match handshake.is_waiting {
                true => refuse(503, "the queue did not confirm a subscription in time: try again"),
                false => refuse(408, "the request was not complete within --handshake_timeout_ms"),
            };
            self.refuse_handshake(handshake.fd, handshake.peer, &error);
        }
        self.end_surplus();
    }

    pub fn handle_tick(&mut self, now: Now) {
        self.now = now;
        self.tick_worker();
        self.end_late_sockets();
        if std::mem::take(&mut self.is_accept_paused) {
            self.poll_listener();
        }
    }
}
