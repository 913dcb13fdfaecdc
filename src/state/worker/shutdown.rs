//! Closing all connections of a node that shuts down, in slices.

use super::Worker;
use super::gone::ANSWERS_PER_SLICE;
use super::sweep::{CLOSES_PER_SLICE, VISITS_PER_SLICE};
use crate::state::connection::{CloseCause, Connection};
use crate::types::ConnKey;

impl Worker {
    /// Returns the number of open clients.
    pub fn clients(&self) -> usize {
        let open = self.config.counters.connections.value() as usize;
        open.saturating_sub(self.own_servers.len())
    }

    /// Returns the number of open business servers.
    pub fn servers(&self) -> usize {
        self.own_servers.len()
    }

    /// Closes clients with 1001 until `left` of them are open, a bounded number per call;
    /// `reconnect_after_ms` returns the delay to advise to each. Call it from the time on at which
    /// no connection is accepted. Returns whether there are more to be closed at once.
    ///
    /// `may_wait`: whether clients that wait for answers of business servers are left out.
    pub fn close_clients(
        &mut self,
        left: usize,
        may_wait: bool,
        mut reconnect_after_ms: impl FnMut() -> u32,
    ) -> bool {
        let (mut closes, mut left_out) = (CLOSES_PER_SLICE, 0);
        let slots = self.sweep.slots();
        for _ in 0..slots.min(VISITS_PER_SLICE) {
            if closes == 0 || self.clients() <= left {
                break;
            }
            let slot = self.sweep.next_to_shut_down();
            let is_client = |one: &Connection| one.is_open() && !one.is_server();
            let connection = self.connections.get(slot as usize).filter(|one| is_client(one));
            let Some(connection) = connection else { continue };
            let client = ConnKey { slot, generation: connection.generation };
            if may_wait && self.has_requests(client) {
                left_out += 1;
                continue;
            }
            closes -= 1;
            let reconnect_after_ms = reconnect_after_ms();
            self.close(slot, CloseCause::GoingAway { reconnect_after_ms });
        }
        self.clients() > left && (closes == 0 || left_out == 0 && slots > VISITS_PER_SLICE)
    }

    /// Closes business servers with 1001, a bounded number per call. Returns whether there are
    /// more, or requests to them that are not answered yet.
    #[must_use = "while there are more, it is to be called again"]
    pub fn close_servers(&mut self, mut reconnect_after_ms: impl FnMut() -> u32) -> bool {
        self.answers_left = ANSWERS_PER_SLICE;
        self.answer_for_gone();
        for _ in 0..CLOSES_PER_SLICE {
            let Some(slot) = self.own_servers.any_slot() else { break };
            let reconnect_after_ms = reconnect_after_ms();
            self.close(slot, CloseCause::GoingAway { reconnect_after_ms });
        }
        self.own_servers.len() > 0 || self.has_unanswered()
    }
}
