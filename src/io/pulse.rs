//! Detects threads that no longer take turns. The executor swallows errors of its ring and retries
//! at once: such a thread runs none of our code any more and cannot report it itself.

use super::sys::{self, ThreadClock};
use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{
    AtomicU8, AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};
use std::thread;

/// CPU time that a thread may use between two beats, which are some tens of milliseconds apart. A
/// thread that gets no core, or waits, uses none. Far above the longest turn: a worker that sends a
/// push to a million connections uses 4 to 8 s.
const STUCK_NS: u64 = 60_000_000_000;
/// The same while no task of ours runs: all of it is used by the executor and the kernel.
const IDLE_STUCK_NS: u64 = 4_000_000_000;

/// A round of tasks has begun.
const IN_ROUND: u8 = 1;
/// All tasks of the last round have had their turn.
const IDLE: u8 = 2;
/// There are no more rounds.
const ENDED: u8 = 3;

#[derive(Debug, Default)]
struct Heart {
    beats: AtomicU64,
    /// [`IN_ROUND`], [`IDLE`] or [`ENDED`]; 0: the thread does not report its rounds.
    state: AtomicU8,
}

impl Heart {
    /// Counts a beat. Only its own thread may call it: an atomic addition would cost several times
    /// as much.
    fn beat(&self) {
        self.beats.store(self.beats.load(Relaxed).wrapping_add(1), Relaxed);
    }
}

thread_local! {
    static HEART: RefCell<Option<Arc<Heart>>> = const { RefCell::new(None) };
}

/// A thread's pulse, as its watcher sees it.
#[derive(Debug)]
pub struct Pulse {
    name: String,
    heart: Arc<Heart>,
    clock: ThreadClock,
    last_beats: u64,
    /// CPU time at the last beat that was observed.
    last_ns: u64,
}

impl Pulse {
    /// Starts the pulse of the calling thread, which must call [`beat`] from here on.
    pub fn begin() -> Self {
        let heart = Arc::new(Heart::default());
        HEART.set(Some(Arc::clone(&heart)));
        let (name, clock) =
            (thread::current().name().unwrap_or("unnamed").into(), sys::thread_clock());
        let last_ns = sys::thread_cpu_ns(clock).unwrap_or(0);
        Self { name, heart, clock, last_beats: 0, last_ns }
    }

    /// Returns the thread's name if it uses CPU time without beating. Call it about every second.
    pub fn stuck_thread(&mut self) -> Option<String> {
        self.has_spent(STUCK_NS, IDLE_STUCK_NS).then(|| self.name.clone())
    }

    /// Returns the number of beats, which grows several times a second; `None`: the thread has
    /// ended or is about to.
    pub fn beats(&self) -> Option<u64> {
        let is_ending = self.heart.state.load(Relaxed) == ENDED;
        sys::thread_cpu_ns(self.clock).filter(|_| !is_ending)?;
        Some(self.heart.beats.load(Relaxed))
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns whether the thread has used `limit_ns` of CPU time since its last beat, or
    /// `idle_limit_ns` of it outside a round.
    fn has_spent(&mut self, limit_ns: u64, idle_limit_ns: u64) -> bool {
        // A thread that has ended is not stuck.
        let Some(now_ns) = sys::thread_cpu_ns(self.clock) else { return false };
        // In this order: `IDLE` means that the last round has ended, that its beat is visible
        // below, and that no other round has begun since.
        let is_idle = self.heart.state.load(Acquire) == IDLE;
        let beats = self.heart.beats.load(Relaxed);
        if beats != self.last_beats {
            (self.last_beats, self.last_ns) = (beats, now_ns);
        }
        let limit_ns = if is_idle { idle_limit_ns } else { limit_ns };
        now_ns.saturating_sub(self.last_ns) >= limit_ns
    }
}

/// Records that the calling thread takes turns.
pub fn beat() {
    with_heart(Heart::beat);
}

/// Records that the first task of a round of the calling thread runs. Its caller must also call
/// [`end_round`].
pub fn begin_round() {
    with_heart(|heart| heart.state.store(IN_ROUND, Relaxed));
}

/// Records that every ready task of the calling thread has had its turn. This counts as a beat.
pub fn end_round() {
    with_heart(|heart| {
        heart.beat();
        heart.state.store(IDLE, Release);
    });
}

/// Records that the calling thread has no more rounds. Its shutdown may take long.
pub fn end_rounds() {
    with_heart(|heart| heart.state.store(ENDED, Relaxed));
}

fn with_heart(tell: impl FnOnce(&Heart)) {
    HEART.with_borrow(|heart| heart.as_deref().map(tell));
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn is_stuck(pulse: &mut Pulse) -> bool {
        pulse.stuck_thread().is_some()
    }

    fn spend(pulse: &Pulse) {
        let until_ns = sys::thread_cpu_ns(pulse.clock).unwrap() + 2_000_000;
        while sys::thread_cpu_ns(pulse.clock).unwrap() < until_ns {}
    }

    #[test]
    fn a_thread_that_sleeps_or_has_ended_is_not_stuck() {
        let mut own = Pulse::begin();
        beat();
        assert!(!is_stuck(&mut own) && own.last_beats == 1);
        thread::sleep(Duration::from_millis(10));
        assert!(!is_stuck(&mut own));
        let mut ended = thread::spawn(Pulse::begin).join().unwrap();
        assert!(!is_stuck(&mut ended));
    }

    #[test]
    fn who_spends_time_without_a_beat_is_stuck_and_a_beat_ends_that() {
        let mut own = Pulse::begin();
        spend(&own);
        assert!(own.has_spent(1_000_000, u64::MAX) && !is_stuck(&mut own));
        beat();
        assert!(!own.has_spent(1_000_000, u64::MAX));
    }

    /// The executor swallows errors of its ring: a node used a minute of CPU time before it ended.
    #[test]
    fn what_is_spent_without_a_round_counts_sooner() {
        let mut own = Pulse::begin();
        let mut is_idly_stuck = |what: fn()| {
            what();
            spend(&own);
            own.has_spent(u64::MAX, 1_000_000)
        };
        assert!(!is_idly_stuck(|| {}), "nobody says when it has rounds");
        assert!(!is_idly_stuck(begin_round), "it may be a long one");
        // A beat, observed at this check; and the time used after it.
        assert!(!is_idly_stuck(end_round));
        assert!(is_idly_stuck(|| {}));
        assert!(!is_idly_stuck(begin_round));
        assert!(!is_idly_stuck(end_round));
        assert!(!is_idly_stuck(end_rounds), "its end may take long");
    }
}
