//! The thread that leads a scenario: it begins and ends the phases, pushes, and settles pushes once
//! their deliveries must have arrived.

mod push;
mod settle;

use std::sync::atomic::Ordering;

use super::crew::Pace;
use super::ledger::Answer;
use super::plan::{Count, Phase};
use super::sender::Sender;
use super::shared::{Begin, Shared, Unicast};
use super::stats::Times;
use crate::message;
use crate::report::Failures;
use crate::run::Reactor;
use crate::server::{self, Memory};
use crate::sys::{self, CpuTime};

/// What the driver returns at the end.
pub struct Outcome {
    pub phases: Vec<Record>,
    pub pushes: Vec<PushRecord>,
    pub statuses: Failures,
    pub failures: Failures,
    pub cpu: CpuTime,
    /// Why the run ended before its last phase.
    pub ended_early: Option<String>,
    pub began_ns: u64,
    pub ended_ns: u64,
}

/// Figures of one phase.
#[derive(Default)]
pub struct Record {
    pub began_ns: u64,
    pub ended_ns: u64,
    pub server_began: Option<Server>,
    pub server_ended: Option<Server>,
    /// The server's memory over time: nanoseconds since the phase began, bytes.
    pub memory: Vec<(u64, u64)>,
    pub open_at_end: u64,
    /// When the work (connections opened or back, pushes delivered) was done.
    pub done_ns: Option<u64>,
    /// It ended before its work was done.
    pub unfinished: bool,
    pub unicasts: u64,
    pub unicasts_accepted: u64,
    /// From writing a request to its response.
    pub http: Times,
    /// Pushes that were not accepted.
    pub not_accepted: u64,
}

/// The server's CPU time and memory at one moment.
#[derive(Clone, Copy)]
pub struct Server {
    pub cpu_ns: u64,
    pub rss: u64,
}

/// State of one push to many.
#[derive(Clone, Copy)]
pub struct PushRecord {
    pub phase: u16,
    pub to_all: bool,
    /// One of `project_pushes`, which are sent one after the other.
    pub alone: bool,
    pub sent_ns: u64,
    pub answered_ns: u64,
    pub answer: Option<Answer>,
}

const BULK_HTTP: u64 = 1;
const UNICAST_HTTP: u64 = 2;
const IDLE_NS: u64 = 20_000_000;
/// Number of memory samples in a long phase, and the minimum interval between them.
const MEMORY_SAMPLES: u64 = 500;
const MIN_MEMORY_INTERVAL_NS: u64 = 500_000_000;
/// How often a push that everything waits for is checked.
const POLL_NS: u64 = 500_000;
/// How long a phase that cuts connections waits for earlier pushes.
const SETTLE_NS: u64 = 2_000_000_000;

struct Driver<'a> {
    shared: &'a Shared<'a>,
    reactor: Reactor,
    bulk: Sender<'a>,
    unicast: Sender<'a>,
    began_ns: u64,
    records: Vec<Record>,
    pushes: Vec<PushRecord>,
    settled: usize,
    current: usize,
    project: Option<Pace>,
    tagged: Option<Pace>,
    single: Option<Pace>,
    /// Of `project_pushes`: those left to send, and the one in flight.
    left: u32,
    alone: Option<Alone>,
    next_unicast: u32,
    next_tagged: u32,
    open_goal: u64,
}

#[derive(Clone, Copy)]
struct Alone {
    seq: u32,
    open: u64,
    ended: u64,
}

pub fn run(shared: &Shared<'_>, ready: Result<(), String>) -> Result<Outcome, String> {
    let outcome = ready.and_then(|()| drive(shared));
    shared.end();
    outcome
}

fn drive(shared: &Shared<'_>) -> Result<Outcome, String> {
    let reactor = Reactor::new()?;
    let common = shared.common;
    let bulk = Sender::new(common, 0, BULK_HTTP, &reactor)?;
    let unicast = Sender::new(common, 1, UNICAST_HTTP, &reactor)?;
    while shared.unready.load(Ordering::Acquire) > 0 && !shared.is_over() && !sys::interrupted() {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let driver = Driver {
        shared,
        reactor,
        bulk,
        unicast,
        began_ns: sys::now_ns(),
        records: Vec::new(),
        pushes: Vec::new(),
        settled: 0,
        current: 0,
        project: None,
        tagged: None,
        single: None,
        left: 0,
        alone: None,
        next_unicast: 0,
        next_tagged: 0,
        open_goal: 0,
    };
    driver.run()
}

impl<'a> Driver<'a> {
    fn run(mut self) -> Result<Outcome, String> {
        let began = CpuTime::of_this_thread();
        let mut ended_early = None;
        for index in 0..self.shared.scenario.phases.len() {
            if self.shared.scenario.phases[index].drain {
                self.wait_for_answers()?;
            }
            self.begin(index)?;
            ended_early = self.run_phase()?;
            self.end();
            if ended_early.is_some() {
                break;
            }
            let next = self.shared.scenario.phases.get(index + 1);
            if next.is_some_and(|next| next.cut.is_some() || next.drain) {
                // Otherwise it would be unknown whether connections that end had received what is
                // in flight.
                self.settle_all(SETTLE_NS, false)?;
            }
        }
        self.shared.quiet.store(true, Ordering::Release);
        self.settle_all(self.shared.common.timeout_ns, true)?;
        let mut failures = self.bulk.failures;
        failures.merge(self.unicast.failures);
        let mut statuses = self.bulk.statuses;
        statuses.merge(self.unicast.statuses);
        Ok(Outcome {
            phases: self.records,
            pushes: self.pushes,
            statuses,
            failures,
            cpu: CpuTime::of_this_thread().since(began),
            ended_early,
            began_ns: self.began_ns,
            ended_ns: sys::now_ns(),
        })
    }

    fn phase(&self) -> &'a Phase {
        &self.shared.scenario.phases[self.current]
    }

    fn server(&self) -> Option<Server> {
        let pid = self.shared.common.server_pid?;
        let rss = Memory::of(pid).map_or(0, |memory| memory.rss);
        Some(Server { cpu_ns: server::cpu_ns(pid), rss })
    }

    fn begin(&mut self, index: usize) -> Result<(), String> {
        self.current = index;
        let (phase, server) = (self.phase(), self.server());
        let now = sys::now_ns();
        self.records.push(Record { began_ns: now, server_began: server, ..Record::default() });
        let traffic = &phase.traffic;
        let data_len = message::data_len(traffic.bytes);
        self.bulk.set_data_len(data_len);
        self.unicast.set_data_len(data_len);
        let pace = |per_s: f64| (per_s > 0.0).then(|| Pace::new(now, per_s));
        self.project = pace(traffic.project_pushes_per_s);
        self.tagged = pace(traffic.tag_pushes_per_s);
        self.single = pace(traffic.unicast_per_s);
        self.left = traffic.project_pushes;
        if let Some(open) = phase.open {
            self.open_goal = self.open_goal.max(open.to);
        }
        let cut = phase.cut.map_or(0, |cut| match cut.count {
            // A share of the connections that should be open, so that the number is known
            // beforehand.
            Count::Share(_) => cut.count.of(self.shared.open()),
            Count::Connections(count) => count,
        });
        self.shared.common.live.mark(&phase.name);
        self.shared.common.announce(&phase.name);
        let begin =
            Begin { now, unicast_from: self.next_unicast, unicast_range: self.open_goal, cut };
        self.shared.begin(index, &begin);
        if phase.drain
            && let Some(pid) = self.shared.common.server_pid
        {
            sys::terminate(pid).map_err(|error| format!("SIGTERM to {pid}: {error}"))?;
        }
        Ok(())
    }

    /// Returns why the run must end early, if it must.
    fn run_phase(&mut self) -> Result<Option<String>, String> {
        loop {
            let now = sys::now_ns();
            self.push(now);
            self.settle_due(now);
            self.sample_memory(now);
            if self.is_over(now) {
                return Ok(None);
            }
            if sys::interrupted() {
                return Ok(Some("interrupted".to_owned()));
            }
            if self.shared.is_over() {
                return Ok(Some("a thread failed".to_owned()));
            }
            if self.server_is_gone(now) {
                return Ok(Some("the server has ended".to_owned()));
            }
            self.step(self.wait_ns(now))?;
        }
    }

    /// Samples the server's memory if the phase is long enough to have a trend.
    fn sample_memory(&mut self, now: u64) {
        let Some(pid) = self.shared.common.server_pid else { return };
        let interval_ns = (self.phase().duration_ns / MEMORY_SAMPLES).max(MIN_MEMORY_INTERVAL_NS);
        let record = &mut self.records[self.current];
        let at_ns = now - record.began_ns;
        if at_ns >= record.memory.last().map_or(0, |(last_ns, _)| last_ns + interval_ns)
            && let Ok(memory) = Memory::of(pid)
        {
            record.memory.push((at_ns, memory.rss));
        }
    }

    fn wait_ns(&self, now: u64) -> u64 {
        let paces = [&self.project, &self.tagged, &self.single];
        let next_ns = paces.into_iter().flatten().map(Pace::next_ns).min().unwrap_or(u64::MAX);
        let poll_ns = if self.alone.is_some() { POLL_NS } else { IDLE_NS };
        match self.bulk.can_send() && self.unicast.can_send() {
            true => next_ns.saturating_sub(now).min(poll_ns),
            false => poll_ns,
        }
    }

    /// Waits, then reads and records responses.
    fn step(&mut self, wait_ns: u64) -> Result<(), String> {
        let (ready, now) = self.reactor.wait(wait_ns)?;
        for i in 0..ready {
            let (token, mask) = self.reactor.epoll.event(i);
            let buffer = &mut self.reactor.buffer;
            match token {
                BULK_HTTP => self.bulk.on_event(mask, buffer, now),
                _ => self.unicast.on_event(mask, buffer, now),
            }
        }
        while let Some((pending, at_ns, answer)) = self.bulk.answered.pop_front() {
            let push = &mut self.pushes[pending.seq as usize];
            push.answered_ns = at_ns;
            push.answer = Some(answer);
            let record = &mut self.records[usize::from(push.phase)];
            record.not_accepted += u64::from(answer != Answer::Accepted);
            record.http.record(at_ns.saturating_sub(pending.at_ns));
        }
        while let Some((pending, at_ns, answer)) = self.unicast.answered.pop_front() {
            let phase = self.shared.phase_at(pending.at_ns);
            let record = &mut self.records[phase];
            record.http.record(at_ns.saturating_sub(pending.at_ns));
            if answer == Answer::Accepted {
                record.unicasts_accepted += 1;
                let target = self.shared.target_of(pending.seq);
                let unicast = Unicast { seq: pending.seq, target, sent_ns: pending.at_ns };
                self.shared.accepted(unicast);
            } else {
                record.not_accepted += 1;
            }
        }
        Ok(())
    }

    fn work_is_done(&self) -> bool {
        let phase = self.phase();
        let shared = self.shared;
        let connections_done = (phase.open.is_none()
            && (phase.cut.is_none() || phase.reconnect.is_none()))
            || shared.all_entered(self.current) && shared.sum(|crew| &crew.waiting) == 0;
        let pushes_done = self.left == 0 && self.alone.is_none();
        connections_done && pushes_done && (!phase.drain || shared.open() == 0)
    }

    fn is_over(&mut self, now: u64) -> bool {
        let phase = self.phase();
        let is_done = self.work_is_done();
        let record = &mut self.records[self.current];
        if is_done && record.done_ns.is_none() {
            record.done_ns = Some(now);
        }
        let elapsed_ns = now - record.began_ns;
        if !is_done {
            record.unfinished = elapsed_ns >= phase.at_most_ns;
            return record.unfinished;
        }
        let held_ns = now - record.done_ns.unwrap_or(now);
        held_ns >= phase.hold_ns
            && elapsed_ns >= phase.duration_ns
            && now - self.began_ns >= phase.until_run_ns
    }

    /// Returns whether nobody is connected any more and no push could be sent for the duration of a
    /// connect timeout.
    fn server_is_gone(&self, now: u64) -> bool {
        let since_ns = self.bulk.lost_since_ns.unwrap_or(u64::MAX);
        let is_long = now.saturating_sub(since_ns) > self.shared.common.timeout_ns;
        !self.phase().drain && is_long && self.shared.open() == 0
    }

    fn end(&mut self) {
        let server = self.server();
        let open = self.shared.open();
        let record = &mut self.records[self.current];
        record.ended_ns = sys::now_ns();
        record.server_ended = server;
        record.open_at_end = open;
        self.left = 0;
        self.alone = None;
    }
}
