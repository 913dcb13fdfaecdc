//! The time that this node has spent listening to Redis: the clock for timeouts of other nodes.

use super::link_error::LinkName;
use crate::types::MonotonicMs;

/// If two readings of the clock are further apart than this, the thread was suspended in between.
const STEP_MS: u64 = 250;

/// A clock that stops while the host has no room for what Redis sends, and that advances by at most
/// [`STEP_MS`] if the thread was suspended.
///
/// Invariant: it never goes back as long as its input does not.
#[derive(Debug, Default)]
pub(super) struct Listening {
    /// Its value when it was last advanced, and the time of that.
    listened: MonotonicMs,
    at: MonotonicMs,
    /// By link: bytes are read but not handled.
    paused: [bool; 2],
}

impl Listening {
    /// Returns its value at `now`.
    pub(super) fn at(&self, now: MonotonicMs) -> MonotonicMs {
        if self.is_paused() {
            return self.listened;
        }
        self.listened + now.since(self.at).min(STEP_MS)
    }

    /// Advances the clock. Called every few tens of milliseconds.
    pub(super) fn advance(&mut self, now: MonotonicMs) {
        self.listened = self.at(now);
        self.at = now.max(self.at);
    }

    /// Sets whether input of a link waits for room from now on.
    pub(super) fn set_paused(&mut self, link: LinkName, is_paused: bool, now: MonotonicMs) {
        if self.paused[link as usize] != is_paused {
            self.advance(now);
            self.paused[link as usize] = is_paused;
        }
    }

    /// Resets the pauses: the links are gone, and their unhandled input with them.
    pub(super) fn handle_lost(&mut self) {
        self.paused = [false; 2];
    }

    fn is_paused(&self) -> bool {
        self.paused.contains(&true)
    }
}
