//! Memory that the WebSocket side has freed, or can do without.

use super::Engine;

impl Engine {
    /// Frees lists that a message to very many has left long, if none is under way; returns how
    /// many bytes that were.
    pub fn trim(&mut self) -> usize {
        if self.sealed.is_empty() { self.worker.trim(&mut self.sealed) } else { 0 }
    }

    /// Bytes of outboxes and unfinished messages that were freed since the worker began.
    pub fn freed_bytes(&self) -> u64 {
        self.worker.freed_bytes() + self.partials.freed_bytes()
    }
}
