//! Live figures of a run: counters and latencies of each thread, written without locks by that
//! thread alone and read by the sampler.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use serde_json::Value;

use crate::client::Clients;
use crate::sys;

/// The counters of one thread. All of them only grow, except `open`. Padded: threads share no cache
/// line.
#[derive(Default)]
#[repr(C, align(128))]
pub struct ThreadLive {
    /// Connections welcomed, reconnects included.
    pub welcomed: AtomicU64,
    /// Connections that were never welcomed.
    pub failed: AtomicU64,
    /// Connections that the server ended.
    pub dropped: AtomicU64,
    /// Connections open now.
    pub open: AtomicU64,
    /// Measured work done: deliveries, answers, events.
    pub deliveries: AtomicU64,
    /// Messages known to be lost so far.
    pub lost: AtomicU64,
    /// Messages received twice.
    pub doubled: AtomicU64,
    /// If this stands for another process: its memory and its CPU time.
    pub process_rss: AtomicU64,
    pub process_cpu_ns: AtomicU64,
    /// TCP connect to welcome.
    pub connect_latency: Latencies,
    /// The command's own measurement: push to delivery, request to answer.
    pub latency: Latencies,
}

impl ThreadLive {
    pub fn show(&self, clients: &Clients) {
        self.welcomed.store(clients.welcomed, Ordering::Relaxed);
        self.dropped.store(clients.dropped, Ordering::Relaxed);
        self.open.store(clients.open, Ordering::Relaxed);
        // Last, so that whoever sees all connections decided also sees the outcomes.
        self.failed.store(clients.refused, Ordering::Release);
    }
}

/// Adds to a counter that only the calling thread writes: cheaper than an atomic addition.
#[inline]
pub fn add(counter: &AtomicU64, count: u64) {
    counter.store(counter.load(Ordering::Relaxed) + count, Ordering::Relaxed);
}

/// Sets a counter that only the calling thread writes.
#[inline]
pub fn store(counter: &AtomicU64, value: u64) {
    counter.store(value, Ordering::Relaxed);
}

/// The counters of all threads, and the named times for the charts.
pub struct Live {
    threads: Vec<ThreadLive>,
    marks: Mutex<Vec<Mark>>,
}

/// A named time from which something else happens: a phase began.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    pub at_ns: u64,
    pub name: String,
}

impl Live {
    pub fn new(threads: usize) -> Live {
        Live {
            threads: (0..threads).map(|_| ThreadLive::default()).collect(),
            marks: Mutex::new(Vec::new()),
        }
    }

    pub fn of(&self, t: usize) -> &ThreadLive {
        &self.threads[t]
    }

    pub fn sum(&self, field: impl Fn(&ThreadLive) -> &AtomicU64) -> u64 {
        self.threads.iter().map(|thread| field(thread).load(Ordering::Acquire)).sum()
    }

    /// Returns the latencies of all threads so far.
    pub fn snapshot(&self, field: impl Fn(&ThreadLive) -> &Latencies) -> Snapshot {
        let mut snapshot = Snapshot::default();
        self.threads.iter().for_each(|thread| snapshot.add(field(thread)));
        snapshot
    }

    /// Marks the current time with the name of what begins.
    pub fn mark(&self, name: &str) {
        let mut marks = self.marks.lock().unwrap_or_else(PoisonError::into_inner);
        marks.push(Mark { at_ns: sys::now_ns(), name: name.to_owned() });
    }

    pub fn marks(&self) -> Vec<Mark> {
        self.marks.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns the number of decided connections: welcomed or failed.
    pub fn decided(&self) -> u64 {
        self.sum(|thread| &thread.failed) + self.sum(|thread| &thread.welcomed)
    }
}

/// Buckets per doubling: a value is exact to 1.6 percent.
const STEPS: u64 = 64;
const STEP_BITS: u32 = STEPS.trailing_zeros();
/// Up to 2^38 ns, four and a half minutes.
const OCTAVES: u32 = 38 - STEP_BITS;
const BUCKETS: usize = ((OCTAVES + 1) as u64 * STEPS) as usize;

/// A histogram of nanoseconds that one thread writes and others read: 8 KiB of growing counts. The
/// values of an interval are the difference of two [`Snapshot`]s.
#[repr(C)]
pub struct Latencies([AtomicU32; BUCKETS]);

impl Default for Latencies {
    fn default() -> Latencies {
        Latencies([const { AtomicU32::new(0) }; BUCKETS])
    }
}

impl Latencies {
    /// Records a value. Only the owning thread may call it.
    #[inline]
    pub fn record_n(&self, ns: u64, count: u32) {
        let counter = &self.0[bucket_of(ns)];
        counter.store(counter.load(Ordering::Relaxed).wrapping_add(count), Ordering::Relaxed);
    }

    #[inline]
    pub fn record(&self, ns: u64) {
        self.record_n(ns, 1);
    }
}

impl Latencies {
    /// Sets the counts from [`Snapshot::sparse`].
    pub fn set_sparse(&self, pairs: &Value) {
        for pair in pairs.as_array().into_iter().flatten() {
            if let (Some(bucket), Some(count)) = (pair[0].as_u64(), pair[1].as_u64())
                && let Some(counter) = self.0.get(bucket as usize)
            {
                counter.store(count as u32, Ordering::Relaxed);
            }
        }
    }
}

fn bucket_of(ns: u64) -> usize {
    if ns < STEPS {
        return ns as usize;
    }
    let octave = ns.ilog2() - STEP_BITS;
    let step = (ns >> octave) - STEPS;
    ((u64::from(octave) + 1) * STEPS + step).min(BUCKETS as u64 - 1) as usize
}

/// Returns the highest value of a bucket.
fn highest_of(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    if bucket < STEPS {
        return bucket;
    }
    let (octave, step) = (bucket / STEPS - 1, bucket % STEPS);
    ((STEPS + step + 1) << octave) - 1
}

/// The counts of several [`Latencies`] at one time, or those of an interval.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot(Vec<u32>);

impl Default for Snapshot {
    fn default() -> Snapshot {
        Snapshot(vec![0; BUCKETS])
    }
}

impl Snapshot {
    pub fn add(&mut self, latencies: &Latencies) {
        for (sum, count) in self.0.iter_mut().zip(&latencies.0) {
            *sum = sum.wrapping_add(count.load(Ordering::Relaxed));
        }
    }

    /// Returns what was recorded since `earlier`.
    pub fn since(&self, earlier: &Snapshot) -> Snapshot {
        let both = self.0.iter().zip(&earlier.0);
        Snapshot(both.map(|(now, was)| now.wrapping_sub(*was)).collect())
    }

    /// Returns the non-empty buckets with their counts.
    pub fn sparse(&self) -> Vec<[u64; 2]> {
        let counts = self.0.iter().enumerate().filter(|(_, count)| **count > 0);
        counts.map(|(bucket, count)| [bucket as u64, u64::from(*count)]).collect()
    }

    pub fn count(&self) -> u64 {
        self.0.iter().map(|count| u64::from(*count)).sum()
    }

    /// Returns the quantile in nanoseconds; `None`: nothing was recorded.
    pub fn quantile_ns(&self, quantile: f64) -> Option<u64> {
        let total = self.count();
        let rank = ((total as f64 * quantile).ceil() as u64).clamp(1, total.max(1));
        let mut seen = 0;
        let bucket = self.0.iter().position(|count| {
            seen += u64::from(*count);
            seen >= rank
        })?;
        Some(highest_of(bucket))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_in_a_bucket_that_is_exact_to_two_percent() {
        for exponent in 0..38 {
            for ns in [1u64 << exponent, (1 << exponent) + (1 << exponent) / 3] {
                let highest = highest_of(bucket_of(ns));
                assert!(highest >= ns && highest <= ns + ns / 50, "{ns}: {highest}");
            }
        }
        assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn an_interval_is_the_difference_of_two_snapshots() {
        let (one, other) = (Latencies::default(), Latencies::default());
        one.record_n(1_000, 50);
        let snapshot = |all: [&Latencies; 2]| {
            let mut snapshot = Snapshot::default();
            all.into_iter().for_each(|latencies| snapshot.add(latencies));
            snapshot
        };
        let before = snapshot([&one, &other]);
        one.record_n(2_000_000, 98);
        other.record(3_000_000);
        other.record(70_000_000);
        let interval = snapshot([&one, &other]).since(&before);
        assert_eq!(interval.count(), 100);
        let near = |quantile, want: u64| {
            let got = interval.quantile_ns(quantile).unwrap();
            assert!(got.abs_diff(want) < want / 50, "{quantile}: {got}");
        };
        near(0.5, 2_000_000);
        near(0.99, 3_000_000);
        near(1.0, 70_000_000);
        assert_eq!(before.since(&before).quantile_ns(0.5), None);
    }
}
