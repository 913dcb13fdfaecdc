//! Whether a thread still takes turns. The executor swallows errors of its ring and tries again at
//! once: such a thread runs none of our code any more, and can say nothing about it itself.

use super::sys::{self, ThreadClock};
use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;

/// Processor time that a thread may spend between two beats, which are some tens of milliseconds
/// apart. A thread that is not given a core, or waits, spends none. Far above the longest turn: one
/// worker that sends a push to a million connections spends 4 to 8 s.
const STUCK_NS: u64 = 60_000_000_000;

thread_local! {
    static BEATS: RefCell<Option<Arc<AtomicU64>>> = const { RefCell::new(None) };
}

/// A thread's pulse, for whoever watches it.
#[derive(Debug)]
pub struct Pulse {
    name: String,
    beats: Arc<AtomicU64>,
    clock: ThreadClock,
    last_beats: u64,
    /// Processor time at the last beat that was seen.
    last_ns: u64,
}

impl Pulse {
    /// That of the calling thread, which is to call [`beat`] from here on.
    pub fn begin() -> Self {
        let beats = Arc::new(AtomicU64::new(0));
        BEATS.set(Some(Arc::clone(&beats)));
        let (name, clock) =
            (thread::current().name().unwrap_or("unnamed").into(), sys::thread_clock());
        let last_ns = sys::thread_cpu_ns(clock).unwrap_or(0);
        Self { name, beats, clock, last_beats: 0, last_ns }
    }

    /// The thread's name, if it does nothing but spend time. To be asked every second or so.
    pub fn stuck_thread(&mut self) -> Option<String> {
        self.has_spent(STUCK_NS).then(|| self.name.clone())
    }

    /// Whether it has spent as much processor time since its last beat.
    fn has_spent(&mut self, limit_ns: u64) -> bool {
        // A thread that has ended is not stuck.
        let Some(now_ns) = sys::thread_cpu_ns(self.clock) else { return false };
        let beats = self.beats.load(Relaxed);
        if beats != self.last_beats {
            (self.last_beats, self.last_ns) = (beats, now_ns);
        }
        now_ns.saturating_sub(self.last_ns) >= limit_ns
    }
}

/// The calling thread takes turns.
pub fn beat() {
    BEATS.with_borrow(|beats| {
        if let Some(beats) = beats {
            beats.fetch_add(1, Relaxed);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_thread_that_sleeps_or_has_ended_is_not_stuck() {
        let mut own = Pulse::begin();
        beat();
        assert!(!own.has_spent(STUCK_NS) && own.last_beats == 1);
        thread::sleep(Duration::from_millis(10));
        assert!(!own.has_spent(STUCK_NS));
        let mut ended = thread::spawn(Pulse::begin).join().unwrap();
        assert!(!ended.has_spent(STUCK_NS));
    }

    #[test]
    fn who_spends_time_without_a_beat_is_stuck_and_a_beat_ends_that() {
        let mut own = Pulse::begin();
        let until_ns = own.last_ns + 2_000_000;
        while sys::thread_cpu_ns(own.clock).unwrap() < until_ns {}
        assert!(own.has_spent(1_000_000) && !own.has_spent(STUCK_NS));
        beat();
        assert!(!own.has_spent(1_000_000));
    }
}
