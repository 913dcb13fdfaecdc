//! Histogram of a worker's pauses, and the longest of the last minutes.

use super::Counter;
use crate::types::MonotonicMs;

/// Upper bounds of the buckets, in microseconds.
pub const PAUSE_BOUNDS_US: [u64; 12] =
    [100, 250, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 500_000, 2_000_000];

/// Minutes that [`Pauses::longest_us`] looks back, the current one included.
pub const LONGEST_OF_MINUTES: u64 = 5;

/// Histogram of pauses by length: written by one thread, read by others.
#[derive(Debug)]
pub struct Pauses {
    counts: [Counter; PAUSE_BOUNDS_US.len() + 1],
    sum_ns: Counter,
    /// The longest pause of each of the last minutes, as encoded by [`pack`]; the index of a minute
    /// is its number modulo the length.
    longest: [Counter; LONGEST_OF_MINUTES as usize],
}

impl Default for Pauses {
    fn default() -> Self {
        Self {
            counts: std::array::from_fn(|_| Counter::default()),
            sum_ns: Counter::default(),
            longest: std::array::from_fn(|_| Counter::default()),
        }
    }
}

impl Pauses {
    #[inline]
    pub fn observe(&self, ns: u64) {
        let bucket = match ns / 1_000 {
            us if us <= PAUSE_BOUNDS_US[0] => 0,
            us => PAUSE_BOUNDS_US.partition_point(|&bound| bound < us),
        };
        self.counts[bucket].add(1);
        self.sum_ns.add(ns);
    }

    /// Records a pause that may be the longest of its minute.
    pub fn note_longest(&self, ns: u64, now: MonotonicMs) {
        let minute = minute_of(now);
        let place = &self.longest[(minute % LONGEST_OF_MINUTES) as usize];
        let (kept_minute, kept_us) = unpack(place.value());
        let us = (ns / 1_000).min(u64::from(u32::MAX));
        if kept_minute != minute || kept_us < us {
            place.set(pack(minute, us));
        }
    }

    /// Returns the longest recorded pause of the last [`LONGEST_OF_MINUTES`]; 0: none.
    pub fn longest_us(&self, now: MonotonicMs) -> u64 {
        let now = minute_of(now);
        let kept = self.longest.iter().map(|place| unpack(place.value()));
        let recent = kept.filter(|&(minute, _)| {
            (now.saturating_sub(LONGEST_OF_MINUTES - 1)..=now).contains(&minute)
        });
        recent.map(|(_, us)| us).max().unwrap_or(0)
    }

    /// Returns the count in each bucket (the last one is unbounded), and the sum of the pauses.
    pub fn read(&self) -> ([u64; PAUSE_BOUNDS_US.len() + 1], u64) {
        (std::array::from_fn(|bucket| self.counts[bucket].value()), self.sum_ns.value())
    }
}

fn minute_of(now: MonotonicMs) -> u64 {
    (now.value() / 60_000) & u64::from(u32::MAX)
}

/// Packs both into one number, so that no reader sees the minute of one pause with the length of
/// another.
fn pack(minute: u64, us: u64) -> u64 {
    (minute << 32) | us
}

fn unpack(kept: u64) -> (u64, u64) {
    (kept >> 32, kept & u64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_is_in_the_first_bucket_that_holds_it() {
        let pauses = Pauses::default();
        for ns in [0, 100_999, 101_000, 2_000_000, 2_001_000, 3_000_000_000] {
            pauses.observe(ns);
        }
        let (counts, sum_ns) = pauses.read();
        assert_eq!(counts, [2, 1, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 1]);
        assert_eq!(sum_ns, 3_004_202_999);
    }

    #[test]
    fn the_longest_is_that_of_the_last_minutes() {
        let pauses = Pauses::default();
        let minute = |number: u64| MonotonicMs::new(90_000_000 + number * 60_000);
        assert_eq!(pauses.longest_us(minute(0)), 0);
        pauses.note_longest(9_000_000, minute(0));
        pauses.note_longest(4_000_000, minute(0));
        pauses.note_longest(5_000_000, minute(2));
        assert_eq!(pauses.longest_us(minute(4)), 9_000);
        assert_eq!(pauses.longest_us(minute(5)), 5_000);
        // The same index as minute 2.
        pauses.note_longest(1_000_000, minute(7));
        assert_eq!(pauses.longest_us(minute(7)), 1_000);
        assert_eq!(pauses.longest_us(minute(12)), 0);
    }
}
