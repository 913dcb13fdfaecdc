//! The two clocks. A time of one is never compared with, or converted to, a time of the other.

use std::fmt;
use std::ops::{Add, AddAssign, Sub};

macro_rules! clock_time {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(u64);

        impl $name {
            /// Later than every reading of the clock.
            pub const NEVER: Self = Self(u64::MAX);

            pub const fn new(ms: u64) -> Self {
                Self(ms)
            }

            /// Milliseconds since the clock's origin.
            pub const fn value(self) -> u64 {
                self.0
            }

            /// Milliseconds from `earlier` to `self`; 0 if `earlier` is later.
            pub const fn since(self, earlier: Self) -> u64 {
                self.0.saturating_sub(earlier.0)
            }
        }

        impl Add<u64> for $name {
            type Output = Self;

            /// The time `ms` later, at most [`Self::NEVER`].
            fn add(self, ms: u64) -> Self {
                Self(self.0.saturating_add(ms))
            }
        }

        impl AddAssign<u64> for $name {
            fn add_assign(&mut self, ms: u64) {
                *self = *self + ms;
            }
        }

        impl Sub<u64> for $name {
            type Output = Self;

            /// The time `ms` earlier, at least the clock's origin.
            fn sub(self, ms: u64) -> Self {
                Self(self.0.saturating_sub(ms))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

clock_time! {
    /// A time on the clock that nobody sets: for deadlines, ages and silence. Its origin is
    /// arbitrary, so it is meaningless outside of this process.
    MonotonicMs
}
clock_time! {
    /// A time as others know it, in milliseconds since 1970: for ids, and for times exchanged with
    /// clients, servers and nodes. Operators and NTP set this clock.
    WallMs
}

impl WallMs {
    /// Unix seconds, as signatures and sessions carry them.
    pub const fn from_s(s: u64) -> Self {
        Self(s.saturating_mul(1_000))
    }

    /// Microseconds since 1970, as envelopes carry them.
    pub const fn from_us(us: u64) -> Self {
        Self(us / 1_000)
    }
}

/// One reading of both clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Now {
    pub monotonic: MonotonicMs,
    pub wall: WallMs,
}

impl Add<u64> for Now {
    type Output = Self;

    /// The reading `ms` later, if nobody sets the wall clock.
    fn add(self, ms: u64) -> Self {
        Self { monotonic: self.monotonic + ms, wall: self.wall + ms }
    }
}

impl AddAssign<u64> for Now {
    fn add_assign(&mut self, ms: u64) {
        *self = *self + ms;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_neither_wrap_nor_panic() {
        let (zero, one) = (WallMs::default(), WallMs::new(1));
        assert_eq!((one - 2, one.since(WallMs::NEVER)), (zero, 0));
        assert_eq!((WallMs::NEVER + 1, WallMs::NEVER.since(one)), (WallMs::NEVER, u64::MAX - 1));
        assert_eq!(WallMs::from_s(u64::MAX), WallMs::NEVER);
        assert_eq!(WallMs::from_us(1_999), one);
    }
}
