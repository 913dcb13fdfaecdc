//! Deadlines of a worker's sockets.

use super::Engine;
use crate::io::handshake::refuse;
use crate::io::sys;

impl Engine {
    /// The wall clock was set: deadlines stay as far away as they were.
    pub fn handle_clock_step(&mut self, step_ms: i64) {
        self.worker.handle_clock_step(step_ms);
        self.move_deadlines(step_ms);
    }

    /// This thread did not run for `stall_ms`: deadlines of peers move along.
    pub fn handle_stall(&mut self, stall_ms: u64) {
        self.worker.handle_stall(stall_ms);
        self.move_deadlines(stall_ms as i64);
    }

    fn move_deadlines(&mut self, step_ms: i64) {
        self.lingering.handle_clock_step(step_ms);
        self.handshakes.handle_clock_step(step_ms);
    }

    pub(super) fn tick_worker(&mut self) {
        let slots = &self.slots;
        let has_unread = |slot: u32| sys::has_unread(slots[slot as usize].fd);
        self.worker.handle_tick_with(self.now_ms, has_unread);
    }

    pub fn handle_tick(&mut self, now_ms: u64) {
        self.now_ms = now_ms;
        self.tick_worker();
        self.lingering.handle_tick(now_ms);
        for index in self.handshakes.late(now_ms) {
            let handshake = self.handshakes.remove(index);
            let error = match handshake.is_waiting {
                true => refuse(503, "the queue did not confirm a subscription in time: try again"),
                false => refuse(408, "the request did not come whole in time"),
            };
            self.refuse_handshake(handshake.fd, &error);
        }
        self.end_surplus();
        if std::mem::take(&mut self.is_accept_paused) {
            self.poll_listener();
        }
    }
}
