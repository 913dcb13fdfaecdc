//! A thread that owns connections: it opens, cuts and reopens them as the phase requires, and reads
//! what arrives.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};
use std::sync::atomic::Ordering;
use std::thread;

use super::plan::{Random, Reconnect};
use super::receiver::{Receiver, Tally};
use super::shared::{OVER, Shared};
use super::stats::PhaseStats;
use crate::client::{Clients, Closing, Gone, Opening};
use crate::report::{self, Failures};
use crate::run::Reactor;
use crate::sys::{self, CpuTime};

/// What a thread returns at the end.
pub struct Outcome {
    pub stats: Vec<PhaseStats>,
    pub tallies: Vec<Tally>,
    pub failures: Failures,
    pub closed_with_1001: u64,
    pub foreign: u64,
    pub cpu: CpuTime,
}

/// A rate, from a start time on.
pub struct Pace {
    began_ns: u64,
    per_s: f64,
    done: u64,
}

impl Pace {
    /// `per_s` 0: no limit.
    pub fn new(now: u64, per_s: f64) -> Pace {
        Pace { began_ns: now, per_s, done: 0 }
    }

    /// Returns when the next one is due.
    pub fn next_ns(&self) -> u64 {
        match self.per_s > 0.0 {
            true => self.began_ns + (self.done as f64 / self.per_s * 1e9) as u64,
            false => self.began_ns,
        }
    }

    pub fn take(&mut self) {
        self.done += 1;
    }
}

/// Longest wait if nothing is due: the driver wakes a thread when a phase begins.
const IDLE_NS: u64 = 200_000_000;
/// Connections started or churned before arrivals are read again.
const AT_ONCE: usize = 32;
/// Delay before a refused churned connection tries again.
const CHURN_RETRY_NS: u64 = 100_000_000;
const WAKE: u64 = u64::MAX;
/// Connections cut before the thread yields the core.
const CUTS_PER_TURN: usize = 32;

struct Member<'a> {
    shared: &'a Shared<'a>,
    t: usize,
    clients: Clients,
    receiver: Receiver<'a>,
    random: Random,
    /// The next connection that was never opened, and the number to open in total.
    next_new: u64,
    goal: u64,
    opening: Pace,
    /// How ended connections come back; `None`: they do not.
    reconnect: Option<Reconnect>,
    reconnecting: Pace,
    /// Connections to reopen, by time.
    queue: BinaryHeap<Reverse<(u64, u32)>>,
    /// Failed attempts of connections that come back.
    tries: HashMap<u32, u32>,
    churn: Option<Pace>,
    /// Connections closed by churn that are not yet back.
    churning: HashSet<u32>,
    waiting: u64,
}

pub fn run(shared: &Shared<'_>, t: usize, ready: Result<(), String>) -> Result<Outcome, String> {
    // Whatever happens, nobody may wait for this thread.
    let outcome = ready.and_then(|()| member(shared, t));
    if outcome.is_err() {
        shared.end();
    }
    outcome
}

fn member(shared: &Shared<'_>, t: usize) -> Result<Outcome, String> {
    let common = shared.common;
    let mut reactor = Reactor::new()?;
    let waker = &shared.crew(t).waker;
    reactor
        .epoll
        .add(waker.fd(), sys::READABLE, WAKE)
        .map_err(|error| format!("epoll: {error}"))?;
    let opening = Opening {
        concurrency: common.concurrency.div_ceil(shared.crew_threads),
        rate: 0.0,
        timeout_ns: common.timeout_ns,
        sources: common.sources.clone(),
        cycle: None,
    };
    let (first, last) = shared.numbers_of(t);
    let count = (last - first) as usize;
    let mut clients =
        Clients::new(common.identity.clone(), opening, common.first_user + first, count);
    clients.live = Some(shared.live(t));
    clients.populate(count);
    let member = Member {
        shared,
        t,
        clients,
        receiver: Receiver::new(shared, t),
        random: Random::new(t as u64),
        next_new: 0,
        goal: 0,
        opening: Pace::new(0, 0.0),
        reconnect: None,
        reconnecting: Pace::new(0, 0.0),
        queue: BinaryHeap::new(),
        tries: HashMap::new(),
        churn: None,
        churning: HashSet::new(),
        waiting: 0,
    };
    member.run(&mut reactor)
}

impl Member<'_> {
    fn run(mut self, reactor: &mut Reactor) -> Result<Outcome, String> {
        let began = CpuTime::of_this_thread();
        let mut entered = None;
        let (mut probed, mut judged) = (0, 0);
        loop {
            let phase = self.shared.phase();
            if phase == OVER {
                break;
            }
            let now = sys::now_ns();
            if entered != Some(phase) && phase < self.shared.scenario.phases.len() {
                entered = Some(phase);
                self.enter(phase, now);
            }
            let wait_ns = self.start_more(reactor, now);
            self.show();
            if let Some(phase) = entered {
                self.shared.crew(self.t).entered.store(phase, Ordering::Release);
            }
            let (ready, now) = reactor.wait(wait_ns)?;
            for i in 0..ready {
                let (token, mask) = reactor.epoll.event(i);
                if token != WAKE {
                    let index = token as usize;
                    let buffer = &mut reactor.buffer;
                    self.clients.on_event(index, mask, now, buffer, &mut self.receiver);
                }
            }
            self.clients.expire(now, &mut self.receiver);
            self.receiver.end_batch();
            self.receiver.settle();
            let judge = self.shared.judge_unicasts.load(Ordering::Acquire);
            let timeout_ns = self.shared.common.timeout_ns;
            let before_ns = if judge == judged { now.saturating_sub(timeout_ns) } else { now };
            judged = judge;
            self.receiver.settle_unicasts(before_ns);
            self.book_ends(now);
            let probe = self.shared.probe.load(Ordering::Acquire);
            if probe != probed {
                probed = probe;
                let crew = self.shared.crew(self.t);
                crew.missing.store(self.receiver.missing(), Ordering::Relaxed);
                crew.probed.store(probe, Ordering::Release);
            }
        }
        self.receiver.settle();
        self.receiver.settle_unicasts(u64::MAX);
        self.book_connects();
        self.show();
        let cpu = CpuTime::of_this_thread().since(began);
        self.clients.drop_all();
        let closed_with_1001 = self.clients.close_codes.get(&1001).copied().unwrap_or(0);
        let failures = std::mem::take(&mut self.clients.failures);
        let foreign = self.receiver.foreign;
        let (stats, tallies) = self.receiver.into_results();
        Ok(Outcome { stats, tallies, failures, closed_with_1001, foreign, cpu })
    }

    /// Records the connect latencies of the phase that ends.
    fn book_connects(&mut self) {
        let latency = std::mem::replace(&mut self.clients.latency, report::new_histogram());
        self.receiver.stats().connect.add(&latency);
    }

    fn show(&self) {
        self.shared.live(self.t).show(&self.clients);
        self.shared.crew(self.t).waiting.store(self.waiting, Ordering::Release);
    }

    /// Enters a phase.
    fn enter(&mut self, index: usize, now: u64) {
        let phase = &self.shared.scenario.phases[index];
        self.book_connects();
        self.receiver.enter(index);
        let threads = self.shared.crew_threads as f64;
        if let Some(open) = phase.open {
            let goal = self.shared.goal_of(self.t, open.to).max(self.goal);
            self.waiting += goal - self.goal;
            self.goal = goal;
            self.opening = Pace::new(now, open.per_s / threads);
        }
        if let Some(reconnect) = phase.reconnect {
            self.reconnect = Some(reconnect);
            self.reconnecting = Pace::new(now, reconnect.per_s / threads);
        } else if phase.cut.is_some() || phase.drain {
            self.reconnect = None;
        }
        self.clients.expects_end = phase.drain;
        self.churn = (phase.churn_per_s > 0.0).then(|| Pace::new(now, phase.churn_per_s / threads));
        if let Some(cut) = phase.cut {
            self.cut(self.shared.cut_of(index, self.t), cut.how, phase.reconnect.is_some(), now);
        }
    }

    /// Cuts connections at once, spread over all open ones.
    fn cut(&mut self, count: u64, how: Closing, come_back: bool, now: u64) {
        let open: Vec<usize> = self.clients.open_slots().map(|(index, _)| index).collect();
        let count = open.len().min(count as usize);
        for i in 0..count {
            let index = open[i * open.len() / count];
            self.close(index, how, now);
            if i % CUTS_PER_TURN == 0 {
                thread::yield_now();
            }
        }
        self.receiver.stats().cut += count as u64;
        if come_back {
            self.waiting += count as u64;
        }
    }

    fn close(&mut self, index: usize, how: Closing, now: u64) {
        let marks = *self.clients.marks(index);
        self.receiver.left(index as u32, &marks, false);
        self.clients.cut(index, how, now, &mut self.receiver);
    }

    /// Records connections that ended or were welcomed, and schedules the return of those that
    /// ended.
    fn book_ends(&mut self, now: u64) {
        for number in std::mem::take(&mut self.receiver.welcomes) {
            self.tries.remove(&number);
            if !self.churning.remove(&number) {
                self.waiting = self.waiting.saturating_sub(1);
            }
        }
        for (number, why) in std::mem::take(&mut self.receiver.gone) {
            if self.churning.contains(&number) {
                let after_ns = if why == Gone::Refused { CHURN_RETRY_NS } else { 0 };
                self.queue.push(Reverse((now + after_ns, number)));
                continue;
            }
            let Some(reconnect) = self.reconnect else {
                if why == Gone::Refused {
                    self.waiting = self.waiting.saturating_sub(1);
                }
                continue;
            };
            let after_ns = match why {
                Gone::Refused => {
                    let tries = self.tries.entry(number).or_default();
                    *tries += 1;
                    let backoff_ns = reconnect.backoff_ns.saturating_mul(1 << (*tries - 1).min(20));
                    let backoff_ns = backoff_ns.min(reconnect.backoff_max_ns);
                    backoff_ns / 2 + self.random.below(backoff_ns / 2 + 1)
                }
                Gone::Dropped | Gone::Closed => self.random.below(reconnect.jitter_ns + 1),
            };
            self.waiting += u64::from(why == Gone::Dropped);
            self.queue.push(Reverse((now + after_ns, number)));
        }
    }

    /// Starts what is due. Returns how long nothing more is due.
    fn start_more(&mut self, reactor: &Reactor, now: u64) -> u64 {
        let mut next_ns = now + IDLE_NS;
        if let Some(churn) = &mut self.churn
            && !self.shared.quiet.load(Ordering::Acquire)
        {
            let mut due = 0;
            while due < AT_ONCE && churn.next_ns() <= now {
                churn.take();
                due += 1;
            }
            next_ns = next_ns.min(churn.next_ns());
            for _ in 0..due {
                self.churn_one(now);
            }
            self.book_ends(now);
        }
        for _ in 0..AT_ONCE {
            if self.clients.is_busy() {
                // A welcome or an end makes room, and each is an event.
                return next_ns.saturating_sub(now).min(IDLE_NS / 8);
            }
            let back_ns =
                self.queue.peek().map_or(u64::MAX, |Reverse((due_ns, number))| {
                    match self.churning.contains(number) {
                        true => *due_ns,
                        false => (*due_ns).max(self.reconnecting.next_ns()),
                    }
                });
            if back_ns <= now {
                if let Some(Reverse((_, number))) = self.queue.pop() {
                    if !self.churning.contains(&number) {
                        self.reconnecting.take();
                    }
                    self.clients.start(number as usize, &reactor.epoll, &mut self.receiver);
                }
                continue;
            }
            let new_ns = match self.next_new < self.goal {
                true => self.opening.next_ns(),
                false => u64::MAX,
            };
            if new_ns > now {
                let due_ns = next_ns.min(back_ns).min(new_ns);
                // Connections refused at once must be recorded soon.
                let longest_ns = if self.receiver.gone.is_empty() { IDLE_NS } else { 0 };
                return due_ns.saturating_sub(now).min(longest_ns);
            }
            self.opening.take();
            let index = self.next_new as usize;
            self.next_new += 1;
            self.clients.start(index, &reactor.epoll, &mut self.receiver);
        }
        0
    }

    /// Closes an open connection, which comes back at once.
    fn churn_one(&mut self, now: u64) {
        for _ in 0..16 {
            let number = self.random.below(self.next_new) as u32;
            if (u64::from(number)) < self.next_new && self.clients.is_open(number as usize) {
                self.churning.insert(number);
                self.receiver.stats().churned += 1;
                // Half of them send a Close frame, the others just vanish.
                let how = match self.random.below(2) {
                    0 => Closing::Clean,
                    _ => Closing::Reset,
                };
                return self.close(number as usize, how, now);
            }
        }
    }
}
