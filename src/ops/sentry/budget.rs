//! Limits the number of events sent: a recurring error must not cost a month's quota.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Events that may be sent at once, and how soon one more may follow: at most 30 in any minute.
const BURST: u32 = 10;
const EVERY: Duration = Duration::from_secs(3);

/// A token bucket, one token per event.
#[derive(Debug)]
pub struct Budget(Mutex<Bucket>);

#[derive(Debug)]
struct Bucket {
    tokens: u32,
    /// When the last token was added, or could have been.
    filled_at: Instant,
}

impl Budget {
    pub fn new(now: Instant) -> Self {
        Self(Mutex::new(Bucket { tokens: BURST, filled_at: now }))
    }

    /// Returns whether another event may be sent.
    pub fn take(&self, now: Instant) -> bool {
        let mut bucket = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let since = now.saturating_duration_since(bucket.filled_at);
        let more = (since.as_millis() / EVERY.as_millis()).min(u128::from(BURST)) as u32;
        bucket.tokens = (bucket.tokens + more).min(BURST);
        if bucket.tokens == BURST {
            bucket.filled_at = now;
        } else {
            bucket.filled_at += EVERY * more;
        }
        let may = bucket.tokens > 0;
        bucket.tokens -= u32::from(may);
        may
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_burst_and_then_one_every_three_seconds() {
        let start = Instant::now();
        let budget = Budget::new(start);
        let taken = |ms| budget.take(start + Duration::from_millis(ms));
        assert_eq!((0..20).filter(|_| taken(1)).count(), 10);
        assert!(!taken(2_999) && taken(3_001) && !taken(3_001) && !taken(6_000) && taken(6_001));
        assert_eq!((0..20).filter(|_| taken(3_600_000)).count(), 10);
    }

    proptest! {
        #[test]
        fn never_more_than_thirty_in_a_minute(steps in prop::collection::vec(0..5_000u64, 200)) {
            let start = Instant::now();
            let budget = Budget::new(start);
            let mut now_ms = 0;
            let mut sent = Vec::new();
            for step in steps {
                now_ms += step;
                if budget.take(start + Duration::from_millis(now_ms)) {
                    sent.push(now_ms);
                }
            }
            for window in sent.windows(31) {
                prop_assert!(window[30] - window[0] >= 60_000);
            }
        }
    }
}
