//! The time that this node has spent listening to Redis: the clock for timeouts of other nodes.

use super::link_error::LinkName;

/// If two readings of the clock are further apart than this, the thread was suspended in between.
const STEP_MS: u64 = 250;

/// A clock that stops while the host has no room for what Redis sends, and that advances by at most
/// [`STEP_MS`] if the thread was suspended.
///
/// Invariant: it never goes back as long as its input does not.
#[derive(Debug, Default)]
pub(super) struct Listening {
    /// Its value when it was last advanced, and the time of that.
    listened_ms: u64,
    at_ms: u64,
    /// By link: bytes are read but not handled.
    paused: [bool; 2],
}

impl Listening {
    /// Returns its value at `now_ms`.
    pub(super) fn at(&self, now_ms: u64) -> u64 {
        if self.is_paused() {
            return self.listened_ms;
        }
        self.listened_ms + now_ms.saturating_sub(self.at_ms).min(STEP_MS)
    }

    /// Advances the clock. Called every few tens of milliseconds.
    pub(super) fn advance(&mut self, now_ms: u64) {
        self.listened_ms = self.at(now_ms);
        self.at_ms = now_ms.max(self.at_ms);
    }

    /// Sets whether input of a link waits for room from now on.
    pub(super) fn set_paused(&mut self, link: LinkName, is_paused: bool, now_ms: u64) {
        if self.paused[link as usize] != is_paused {
            self.advance(now_ms);
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
