//! One run of a node's process: the epoch that distinguishes it from earlier runs, and the
//! milliseconds from which it may issue ids.

use super::clock::WallMs;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Milliseconds at the end of the reservation that the clock alone does not enter: they are for ids
/// that outrun the clock, because a millisecond's numbers are used up or the clock is behind.
pub const SPARE_MS: u64 = 2_000;
/// The first and the last millisecond of an id: 2024-01-01T00:00:00Z, and 41 bits from there on,
/// which last until 2093.
pub(super) const FIRST_MS: u64 = 1_704_067_200_000;
pub(super) const LAST_MS: u64 = FIRST_MS + (1 << 41) - 1;
/// How far beyond the clock ids are reserved. A run restarted within this time starts after the
/// reserved range.
const AHEAD_MS: u64 = 10_000;
/// The reservation is renewed when the clock has advanced by this.
const RENEW_MS: u64 = 1_000;

/// Shared by the workers of a node and its broker. The workers read it for every id; the broker
/// writes it, once at the start and then about once a second.
///
/// With Redis the broker stores a number there for the node: every id issued by any run is from a
/// millisecond up to it. [`Incarnation::begin`] is called once it has been read, and
/// [`Incarnation::reserve`] whenever a higher one is stored. Without Redis neither is called, and
/// ids follow the clock.
#[derive(Debug)]
pub struct Incarnation {
    epoch_ms: AtomicU64,
    /// Ids are from this millisecond or later ones.
    floor_ms: AtomicU64,
    /// Ids follow the clock up to [`SPARE_MS`] before this.
    until_ms: AtomicU64,
    /// The latest millisecond of an id, as of the workers' last ticks.
    latest_ms: AtomicU64,
}

impl Incarnation {
    /// `now`: the time of the start.
    pub fn new(now: WallMs) -> Self {
        let now_ms = now.value();
        Self {
            epoch_ms: AtomicU64::new(now_ms),
            floor_ms: AtomicU64::new(now_ms.clamp(FIRST_MS, LAST_MS)),
            until_ms: AtomicU64::new(u64::MAX),
            latest_ms: AtomicU64::new(0),
        }
    }

    /// Returns the epoch, higher than those of earlier runs: the time of the start, or the
    /// millisecond after the previous run's reservation.
    pub fn epoch(&self) -> u64 {
        self.epoch_ms.load(Relaxed)
    }

    /// Starts after the earlier runs, which may have issued ids from milliseconds up to `used_ms`.
    /// Call it before anything is published.
    pub fn begin(&self, used_ms: u64) {
        self.floor_ms.fetch_max(used_ms + 1, Relaxed);
        self.epoch_ms.fetch_max(used_ms + 1, Relaxed);
        self.until_ms.store(used_ms + SPARE_MS, Relaxed);
    }

    /// Allows this run to issue ids from milliseconds up to `until_ms`.
    pub fn reserve(&self, until_ms: u64) {
        self.until_ms.store(until_ms, Relaxed);
    }

    /// Lets ids follow the clock: the reservation is not stored anywhere.
    pub fn follow_clock(&self) {
        self.until_ms.store(u64::MAX, Relaxed);
    }

    /// Returns up to where ids should be reserved now; `None`: the reservation is sufficient.
    pub fn wanted_until_ms(&self, now: WallMs) -> Option<u64> {
        let latest_ms = self.latest_ms.load(Relaxed).max(self.floor_ms.load(Relaxed));
        let now_ms = now.value().min(LAST_MS - AHEAD_MS);
        let wanted_ms = (now_ms + AHEAD_MS).max(latest_ms + 2 * SPARE_MS);
        (self.until_ms.load(Relaxed) < wanted_ms - RENEW_MS).then_some(wanted_ms)
    }

    /// Notes that a worker has issued ids from milliseconds up to `latest_ms`.
    pub fn note_latest(&self, latest_ms: u64) {
        if self.latest_ms.load(Relaxed) < latest_ms {
            self.latest_ms.fetch_max(latest_ms, Relaxed);
        }
    }

    /// Returns the millisecond for an id issued now.
    pub(super) fn id_ms(&self, now: WallMs) -> u64 {
        let reserved_ms = self.until_ms.load(Relaxed).saturating_sub(SPARE_MS);
        now.value().min(reserved_ms).max(self.floor_ms.load(Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_MS: u64 = 1_800_000_000_000;
    const NOW: WallMs = WallMs::new(NOW_MS);

    #[test]
    fn a_run_whose_clock_is_behind_comes_after_the_run_before() {
        let run = Incarnation::new(NOW);
        run.begin(NOW_MS + 5_000);
        assert_eq!((run.epoch(), run.id_ms(NOW)), (NOW_MS + 5_001, NOW_MS + 5_001));
        let until_ms = run.wanted_until_ms(NOW).unwrap();
        assert_eq!(until_ms, NOW_MS + 10_000, "far enough for the clock and for what is used");
        run.reserve(until_ms);
        assert_eq!(run.wanted_until_ms(NOW + 900), None);
        assert!(run.wanted_until_ms(NOW + 1_100).is_some());
    }

    #[test]
    fn ids_do_not_follow_a_clock_beyond_what_is_reserved() {
        let run = Incarnation::new(NOW);
        run.begin(0);
        assert_eq!(run.epoch(), NOW_MS);
        run.reserve(run.wanted_until_ms(NOW).unwrap());
        assert_eq!(run.id_ms(NOW + 7_000), NOW_MS + 7_000);
        assert_eq!(run.id_ms(NOW + 3_600_000), NOW_MS + 8_000, "the clock jumped ahead");
        run.note_latest(NOW_MS + 9_500);
        assert_eq!(run.wanted_until_ms(NOW), Some(NOW_MS + 13_500), "ids outrun the clock");
        run.follow_clock();
        assert_eq!(run.id_ms(NOW + 3_600_000), NOW_MS + 3_600_000);
        assert_eq!(run.wanted_until_ms(WallMs::NEVER), None);
    }
}
