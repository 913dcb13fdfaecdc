//! Whether a worker's WebSocket side may sleep, and for how long.

use super::WsServer;
use std::time::Duration;

impl WsServer {
    /// Returns whether a look at the deadlines and at the ring would find work.
    pub fn has_work(&mut self) -> bool {
        self.worker.has_output()
            || self.has_events()
            || self.ring.has_queued()
            || self.worker.has_broker_requests()
            || self.worker.has_server_pushes()
    }

    /// Submits what is queued and lets completions raise the eventfd again. Returns `false` if
    /// there is something to handle already. `held_for`: how long the open batch may wait, if at
    /// all; the eventfd is raised when that time is over.
    pub fn may_sleep(&mut self, held_for: Option<Duration>) -> bool {
        if let Some(delay) = held_for {
            self.ring.start_timer(delay);
        }
        if (held_for.is_none() && self.worker.has_output()) || self.has_events() {
            return false;
        }
        self.ring.run_deferred();
        if self.has_events() {
            return false;
        }
        self.ring.set_eventfd(true);
        // Completions that arrived between the check and the switch did not raise the eventfd.
        let may_sleep = !self.has_events();
        if !may_sleep {
            self.ring.set_eventfd(false);
        }
        may_sleep
    }

    /// Returns whether only the sweep is due: no socket, message or request has a pending deadline.
    pub fn is_calm(&self) -> bool {
        !self.is_accept_paused
            && self.handshakes.len() == 0
            && self.lingering.len() == 0
            && self.partials.is_empty()
            && self.closing.is_empty()
            && self.paused_by_batch.is_empty()
            && !self.is_overdue()
            && self.worker.is_calm()
    }
}
