//! The time in which this node listened to Redis: what others are given time by.

use super::link_error::LinkName;

/// Two looks at the clock that are further apart than this: the thread stood still meanwhile.
const STEP_MS: u64 = 250;

/// A clock that stands while the host has no room for what Redis sends, and that moves by at most
/// [`STEP_MS`] when the thread stood still.
///
/// Invariant: it never goes back, for times that do not.
#[derive(Debug, Default)]
pub(super) struct Listening {
    /// What it showed when it was last advanced, and when that was.
    listened_ms: u64,
    at_ms: u64,
    /// By link: something is read and not handled.
    paused: [bool; 2],
}

impl Listening {
    /// What it shows at `now_ms`.
    pub(super) fn at(&self, now_ms: u64) -> u64 {
        if self.is_paused() {
            return self.listened_ms;
        }
        self.listened_ms + now_ms.saturating_sub(self.at_ms).min(STEP_MS)
    }

    /// To be called every few tens of milliseconds.
    pub(super) fn advance(&mut self, now_ms: u64) {
        self.listened_ms = self.at(now_ms);
        self.at_ms = now_ms.max(self.at_ms);
    }

    /// Whether what a link brought waits for room from now on.
    pub(super) fn set_paused(&mut self, link: LinkName, is_paused: bool, now_ms: u64) {
        if self.paused[link as usize] != is_paused {
            self.advance(now_ms);
            self.paused[link as usize] = is_paused;
        }
    }

    /// The links are gone, and what they brought with them.
    pub(super) fn handle_lost(&mut self) {
        self.paused = [false; 2];
    }

    fn is_paused(&self) -> bool {
        self.paused.contains(&true)
    }
}
