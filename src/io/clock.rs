//! Reads the two clocks. Everything below takes times as arguments.

use crate::types::{MonotonicMs, Now, WallMs};
use std::sync::LazyLock;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Origin of [`MonotonicMs`]: one for all threads, because the ops thread reads what others noted.
static ORIGIN: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Returns the monotonic clock.
pub fn monotonic() -> MonotonicMs {
    monotonic_at(Instant::now())
}

/// Returns the monotonic clock as of `at`.
pub fn monotonic_at(at: Instant) -> MonotonicMs {
    MonotonicMs::new(at.saturating_duration_since(*ORIGIN).as_millis() as u64)
}

/// Returns the wall clock.
pub fn wall() -> WallMs {
    WallMs::from_us(wall_us())
}

/// Returns the wall clock in microseconds since 1970.
pub fn wall_us() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as u64)
}

/// Returns both clocks.
pub fn now() -> Now {
    now_at(Instant::now())
}

/// Returns both clocks; `at` was just read.
pub fn now_at(at: Instant) -> Now {
    Now { monotonic: monotonic_at(at), wall: wall() }
}

/// One reading of both clocks, finer than [`Now`]. Things that were read together share one.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    pub instant: Instant,
    /// Microseconds since 1970.
    pub wall_us: u64,
}

impl Moment {
    pub fn read() -> Self {
        Self::at(Instant::now())
    }

    /// `instant` was read a moment ago.
    pub fn at(instant: Instant) -> Self {
        Self { instant, wall_us: wall_us() }
    }

    pub fn wall(self) -> WallMs {
        WallMs::from_us(self.wall_us)
    }

    pub fn now(self) -> Now {
        Now { monotonic: monotonic_at(self.instant), wall: self.wall() }
    }
}
