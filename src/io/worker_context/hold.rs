//! How long the open batch waits for more messages (`--coalesce_us`).

use crate::types::WallMs;
use std::cell::Cell;
use std::time::Duration;

/// A batch is flushed at least this long before a message in it expires.
const TTL_MARGIN_US: u64 = 1_000;

/// The deadline of the messages in the open batch.
pub(super) struct Hold {
    /// 0: nothing is held.
    coalesce_us: Cell<u64>,
    /// Microseconds since the Unix epoch; `u64::MAX`: the batch holds no message.
    until_us: Cell<u64>,
}

impl Hold {
    pub(super) fn new(coalesce_us: u64) -> Self {
        Self { coalesce_us: Cell::new(coalesce_us), until_us: Cell::new(u64::MAX) }
    }

    /// Sets how long messages from now on are held.
    pub(super) fn set_coalesce_us(&self, coalesce_us: u64) {
        self.coalesce_us.set(coalesce_us);
    }

    /// Adds a message that was received at `received_us`.
    pub(super) fn add(&self, received_us: u64, expires: Option<WallMs>) {
        let coalesce_us = self.coalesce_us.get();
        if coalesce_us == 0 {
            return;
        }
        let mut until_us = self.until_us.get().min(received_us + coalesce_us);
        if let Some(expires) = expires {
            let expires_us = expires.value().saturating_mul(1_000);
            until_us = until_us.min(expires_us.saturating_sub(TTL_MARGIN_US));
        }
        self.until_us.set(until_us);
    }

    /// Ends the hold because the batch is sent.
    pub(super) fn end(&self) {
        self.until_us.set(u64::MAX);
    }

    /// Returns how much longer the batch may wait; `None`: not at all. A batch without a message
    /// does not wait, nor does one whose deadline has moved away because the clock was set back.
    pub(super) fn left(&self, now_us: impl FnOnce() -> u64) -> Option<Duration> {
        let coalesce_us = self.coalesce_us.get();
        if coalesce_us == 0 || self.until_us.get() == u64::MAX {
            return None;
        }
        let left_us = self.until_us.get().checked_sub(now_us())?;
        (1..=coalesce_us).contains(&left_us).then(|| Duration::from_micros(left_us))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_US: u64 = 1_800_000_000_000_000;

    fn left_us(hold: &Hold, now_us: u64) -> Option<u64> {
        hold.left(|| now_us).map(|left| left.as_micros() as u64)
    }

    #[test]
    fn the_oldest_message_gives_the_deadline() {
        let hold = Hold::new(500);
        assert_eq!(left_us(&hold, NOW_US), None);
        hold.add(NOW_US, None);
        hold.add(NOW_US + 300, None);
        assert_eq!(left_us(&hold, NOW_US + 300), Some(200));
        assert_eq!(left_us(&hold, NOW_US + 500), None);
        hold.end();
        assert_eq!(left_us(&hold, NOW_US + 300), None);
        hold.add(NOW_US + 600, None);
        assert_eq!(left_us(&hold, NOW_US + 600), Some(500));
    }

    #[test]
    fn nothing_is_held_without_the_flag() {
        let hold = Hold::new(0);
        hold.add(NOW_US, None);
        assert_eq!(left_us(&hold, NOW_US), None);
    }

    #[test]
    fn a_message_leaves_before_it_expires() {
        let hold = Hold::new(10_000);
        hold.add(NOW_US, Some(WallMs::from_us(NOW_US) + 4));
        assert_eq!(left_us(&hold, NOW_US), Some(3_000));
        hold.add(NOW_US + 10, Some(WallMs::from_us(NOW_US) + 1));
        assert_eq!(left_us(&hold, NOW_US + 10), None);
    }

    #[test]
    fn a_clock_that_is_set_back_prolongs_nothing() {
        let hold = Hold::new(500);
        hold.add(NOW_US, None);
        assert_eq!(left_us(&hold, NOW_US - 3_600_000_000), None);
    }
}
