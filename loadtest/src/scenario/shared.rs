//! State shared by the threads of a scenario: the driver publishes the phase and the pushes, the
//! crew (the threads that own the connections) publishes its progress.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use super::ledger::{Ledger, locked};
use super::plan::{Scenario, unicast_target};
use crate::run::Common;
use crate::series::ThreadLive;
use crate::sys::Waker;

pub struct Shared<'a> {
    pub common: &'a Common,
    pub scenario: &'a Scenario,
    /// The run's number, contained in every message.
    pub run: u16,
    /// Number of threads that own connections.
    pub crew_threads: usize,
    pub ledger: Ledger,
    crew: Vec<Crew>,
    phases: Vec<PhaseState>,
    /// The current phase.
    phase: AtomicUsize,
    /// Counts the driver's requests for the number of missing deliveries.
    pub probe: AtomicU64,
    /// Counts the driver's requests to judge all unicast pushes accepted by then.
    pub judge_unicasts: AtomicU64,
    /// Threads besides crew and driver that are not ready.
    pub unready: AtomicUsize,
    /// Nothing more may be started: the server is about to be stopped, or the run ends.
    pub quiet: AtomicBool,
    /// Unanswered canary pushes.
    pub canaries_pending: AtomicUsize,
    /// Unanswered requests of clients.
    pub requests_pending: AtomicUsize,
}

/// Before the first phase.
pub const NOT_BEGUN: usize = usize::MAX;
/// After the last phase: the threads end.
pub const OVER: usize = usize::MAX - 1;

/// What one thread of the crew publishes. Padded: each is written by one thread, except `due`.
#[repr(align(128))]
pub struct Crew {
    /// The phase that it has entered.
    pub entered: AtomicUsize,
    /// Connections that the phase's work should have open but does not yet.
    pub waiting: AtomicU64,
    /// Connections that ended, on either side.
    pub ended: AtomicU64,
    /// The newest push to many that has arrived, and at how many connections: number << 32 | count.
    pub progress: AtomicU64,
    /// The result of the last probe, and its number.
    pub missing: AtomicU64,
    pub probed: AtomicU64,
    /// Accepted unicast pushes to this thread's connections that are not yet judged.
    pub unicasts: Mutex<VecDeque<Unicast>>,
    pub waker: Waker,
}

#[derive(Clone, Copy)]
pub struct Unicast {
    pub seq: u32,
    pub target: u64,
    pub sent_ns: u64,
}

struct PhaseState {
    began_ns: AtomicU64,
    /// The first unicast push that goes to users of `unicast_range`.
    unicast_from: AtomicU32,
    /// Unicast pushes go to the connections with numbers below this.
    unicast_range: AtomicU64,
    /// Connections to cut, over all threads.
    cut: AtomicU64,
}

/// What the driver sets when a phase begins.
pub struct Begin {
    pub now: u64,
    pub unicast_from: u32,
    pub unicast_range: u64,
    pub cut: u64,
}

impl<'a> Shared<'a> {
    pub fn new(
        common: &'a Common,
        scenario: &'a Scenario,
        run: u16,
        crew_threads: usize,
    ) -> Result<Shared<'a>, String> {
        let crew = (0..crew_threads)
            .map(|_| {
                Ok(Crew {
                    entered: AtomicUsize::new(NOT_BEGUN),
                    waiting: AtomicU64::new(0),
                    ended: AtomicU64::new(0),
                    progress: AtomicU64::new(0),
                    missing: AtomicU64::new(0),
                    probed: AtomicU64::new(0),
                    unicasts: Mutex::new(VecDeque::new()),
                    waker: Waker::new().map_err(|error| format!("eventfd: {error}"))?,
                })
            })
            .collect::<Result<_, String>>()?;
        let phase = |_| PhaseState {
            began_ns: AtomicU64::new(u64::MAX),
            unicast_from: AtomicU32::new(u32::MAX),
            unicast_range: AtomicU64::new(0),
            cut: AtomicU64::new(0),
        };
        Ok(Shared {
            common,
            scenario,
            run,
            crew_threads,
            ledger: Ledger::default(),
            crew,
            phases: scenario.phases.iter().map(phase).collect(),
            phase: AtomicUsize::new(NOT_BEGUN),
            probe: AtomicU64::new(0),
            judge_unicasts: AtomicU64::new(0),
            unready: AtomicUsize::new(0),
            quiet: AtomicBool::new(false),
            canaries_pending: AtomicUsize::new(0),
            requests_pending: AtomicUsize::new(0),
        })
    }

    pub fn crew(&self, t: usize) -> &Crew {
        &self.crew[t]
    }

    pub fn live(&self, t: usize) -> &'static ThreadLive {
        self.common.live.of(t)
    }

    pub fn phase(&self) -> usize {
        self.phase.load(Ordering::Acquire)
    }

    /// Begins a phase in all threads.
    pub fn begin(&self, phase: usize, begin: &Begin) {
        let state = &self.phases[phase];
        state.began_ns.store(begin.now, Ordering::Relaxed);
        state.unicast_range.store(begin.unicast_range, Ordering::Relaxed);
        state.unicast_from.store(begin.unicast_from, Ordering::Relaxed);
        state.cut.store(begin.cut, Ordering::Relaxed);
        self.phase.store(phase, Ordering::Release);
        self.wake_all();
    }

    /// Ends all threads.
    pub fn end(&self) {
        self.phase.store(OVER, Ordering::Release);
        self.wake_all();
    }

    pub fn is_over(&self) -> bool {
        self.phase() == OVER
    }

    pub fn wake_all(&self) {
        self.crew.iter().for_each(|crew| crew.waker.wake());
    }

    pub fn sum(&self, field: impl Fn(&Crew) -> &AtomicU64) -> u64 {
        self.crew.iter().map(|crew| field(crew).load(Ordering::Acquire)).sum()
    }

    /// Returns whether every thread of the crew is in this phase.
    pub fn all_entered(&self, phase: usize) -> bool {
        self.crew.iter().all(|crew| crew.entered.load(Ordering::Acquire) == phase)
    }

    pub fn open(&self) -> u64 {
        (0..self.crew_threads).map(|t| self.live(t).open.load(Ordering::Acquire)).sum()
    }

    /// Returns at how many connections this push to many has arrived, counting threads where it is
    /// the newest.
    pub fn arrived(&self, seq: u32) -> u64 {
        let progress = self.crew.iter().map(|crew| crew.progress.load(Ordering::Acquire));
        progress
            .filter(|value| value >> 32 == u64::from(seq))
            .map(|value| value & 0xffff_ffff)
            .sum()
    }

    pub fn began_ns(&self, phase: usize) -> u64 {
        self.phases[phase].began_ns.load(Ordering::Acquire)
    }

    /// Returns the phase of something sent at this time.
    pub fn phase_at(&self, at_ns: u64) -> usize {
        let began = |phase: &usize| self.began_ns(*phase) <= at_ns;
        (0..self.phases.len()).rev().find(began).unwrap_or(0)
    }

    /// Returns the connection that a unicast push goes to.
    pub fn target_of(&self, seq: u32) -> u64 {
        let is_of = |state: &&PhaseState| state.unicast_from.load(Ordering::Acquire) <= seq;
        let state = self.phases.iter().rev().find(is_of);
        unicast_target(seq, state.map_or(0, |state| state.unicast_range.load(Ordering::Relaxed)))
    }

    /// Returns the number of connections that thread `t` cuts in this phase.
    pub fn cut_of(&self, phase: usize, t: usize) -> u64 {
        let total = self.phases[phase].cut.load(Ordering::Relaxed);
        let (t, threads) = (t as u64, self.crew_threads as u64);
        total * (t + 1) / threads - total * t / threads
    }

    /// Returns thread `t`'s connections as a half-open range of numbers.
    pub fn numbers_of(&self, t: usize) -> (u64, u64) {
        let (total, threads) = (self.scenario.population.connections, self.crew_threads as u64);
        (total * t as u64 / threads, total * (t as u64 + 1) / threads)
    }

    /// Returns the thread that owns this connection.
    pub fn owner_of(&self, n: u64) -> usize {
        let (total, threads) = (self.scenario.population.connections, self.crew_threads as u64);
        (((n + 1) * threads - 1) / total.max(1)) as usize
    }

    /// Returns the number of connections that thread `t` opens if `total` should be open. Rounding
    /// makes the sum differ from `total` by less than one per thread, but not if that is all of
    /// them.
    pub fn goal_of(&self, t: usize, total: u64) -> u64 {
        let (first, last) = self.numbers_of(t);
        let threads = self.crew_threads as u64;
        match total >= self.scenario.population.connections {
            true => last - first,
            false => ((total + threads - 1 - t as u64) / threads).min(last - first),
        }
    }

    /// Hands an accepted unicast push to the thread that owns its target.
    pub fn accepted(&self, unicast: Unicast) {
        locked(&self.crew(self.owner_of(unicast.target)).unicasts).push_back(unicast);
    }
}
