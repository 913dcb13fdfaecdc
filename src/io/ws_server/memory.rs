//! Memory that the WebSocket side has freed or can do without.

use super::WsServer;

impl WsServer {
    /// Frees oversized lists that a message to a very large audience has left, if none is in
    /// progress. Returns the number of bytes freed.
    pub fn trim(&mut self) -> usize {
        if self.sealed.is_empty() { self.worker.trim(&mut self.sealed) } else { 0 }
    }

    /// Returns the bytes of outboxes and unfinished messages freed since the worker began.
    pub fn freed_bytes(&self) -> u64 {
        self.worker.freed_bytes() + self.partials.freed_bytes()
    }
}
