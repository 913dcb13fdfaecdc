//! The thread that leads a scenario: it begins and ends the phases, pushes, and settles pushes when
//! their deliveries must have arrived.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::crew::Pace;
use super::ledger::{Answer, Bulk};
use super::plan::{Count, Phase, Selector};
use super::receiver::{BULK, UNICAST};
use super::sender::Sender;
use super::shared::{Begin, Shared, Unicast};
use super::stats::Times;
use crate::http::write_decimal;
use crate::message::{self, Stamp};
use crate::report::Failures;
use crate::run::Reactor;
use crate::server::{self, Memory};
use crate::sys::{self, CpuTime};

/// What the driver hands over at the end.
pub struct Outcome {
    pub phases: Vec<Record>,
    pub pushes: Vec<PushRecord>,
    pub statuses: Failures,
    pub failures: Failures,
    pub cpu: CpuTime,
    /// Why the run ended before its last phase did.
    pub ended_early: Option<String>,
    pub began_ns: u64,
    pub ended_ns: u64,
}

/// What is known of one phase.
#[derive(Default)]
pub struct Record {
    pub began_ns: u64,
    pub ended_ns: u64,
    pub server_began: Option<Server>,
    pub server_ended: Option<Server>,
    /// The server's memory over time: nanoseconds from the phase's beginning, bytes.
    pub memory: Vec<(u64, u64)>,
    pub open_at_end: u64,
    /// When the work (connections opened or back, pushes delivered) was done.
    pub done_ns: Option<u64>,
    /// It had to end before its work was done.
    pub unfinished: bool,
    pub unicasts: u64,
    pub unicasts_accepted: u64,
    /// From writing a request to its answer.
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

/// What is known of one push to many.
#[derive(Clone, Copy)]
pub struct PushRecord {
    pub phase: u16,
    pub to_all: bool,
    /// One of `project_pushes`, which go one after the other.
    pub alone: bool,
    pub sent_ns: u64,
    pub answered_ns: u64,
    pub answer: Option<Answer>,
}

const BULK_HTTP: u64 = 1;
const UNICAST_HTTP: u64 = 2;
/// Pushes of one kind that are written in one turn.
const AT_ONCE: usize = 64;
const IDLE_NS: u64 = 20_000_000;
/// How often the server's memory is read in a long phase, and at least how long apart.
const MEMORY_SAMPLES: u64 = 500;
const MIN_MEMORY_INTERVAL_NS: u64 = 500_000_000;
/// How often a push that all wait for is looked at.
const POLL_NS: u64 = 500_000;
/// Longest wait for the answers to a question how much is missing.
const PROBE_NS: u64 = 100_000_000;
/// How long a phase that cuts connections waits for what was pushed before.
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
    /// Of `project_pushes`: how many are left, and the one that is on its way.
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
                // Else nobody could say of those that end whether they had what is on its way.
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
        self.bulk.set_data_len(data_len)?;
        self.unicast.set_data_len(data_len)?;
        let pace = |per_s: f64| (per_s > 0.0).then(|| Pace::new(now, per_s));
        self.project = pace(traffic.project_pushes_per_s);
        self.tagged = pace(traffic.tag_pushes_per_s);
        self.single = pace(traffic.unicast_per_s);
        self.left = traffic.project_pushes;
        if let Some(open) = phase.open {
            self.open_goal = self.open_goal.max(open.to);
        }
        let cut = phase.cut.map_or(0, |cut| match cut.count {
            // A share of those that are to be open, so that the number is known beforehand.
            Count::Share(_) => cut.count.of(self.shared.open()),
            Count::Connections(count) => count,
        });
        self.shared.common.live.mark(&phase.name);
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

    /// Returns why the run must end, if it must.
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
                return Ok(Some("the server is gone".to_owned()));
            }
            self.step(self.wait_ns(now))?;
        }
    }

    /// Reads the server's memory now and then, where the phase is long enough to have a trend.
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

    /// Waits, reads answers and books them.
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

    /// Pushes what is due.
    fn push(&mut self, now: u64) {
        self.bulk.refresh(&self.reactor, now);
        self.unicast.refresh(&self.reactor, now);
        self.push_alone(now);
        for _ in 0..AT_ONCE {
            let Some(pace) = self.project.as_mut().filter(|pace| pace.next_ns() <= now) else {
                break;
            };
            if !self.bulk.can_send() {
                break;
            }
            let intended_ns = pace.next_ns();
            pace.take();
            self.push_bulk(intended_ns, None, false);
        }
        for _ in 0..AT_ONCE {
            let Some(pace) = self.tagged.as_mut().filter(|pace| pace.next_ns() <= now) else {
                break;
            };
            if !self.bulk.can_send() {
                break;
            }
            let intended_ns = pace.next_ns();
            pace.take();
            let population = &self.shared.scenario.population;
            let selector = self.phase().traffic.selector(
                &population.audience,
                population.connections,
                self.next_tagged,
            );
            self.next_tagged += 1;
            self.push_bulk(intended_ns, Some(Arc::new(selector)), false);
        }
        for _ in 0..AT_ONCE {
            let Some(pace) = self.single.as_mut().filter(|pace| pace.next_ns() <= now) else {
                break;
            };
            if !self.unicast.can_send() {
                break;
            }
            let intended_ns = pace.next_ns();
            pace.take();
            self.push_unicast(intended_ns);
        }
        self.bulk.flush(now);
        self.unicast.flush(now);
    }

    /// Of the pushes that go one after the other, sends the next when all have the last.
    fn push_alone(&mut self, now: u64) {
        if let Some(alone) = self.alone {
            let push = &self.pushes[alone.seq as usize];
            let ended = self.shared.sum(|crew| &crew.ended) - alone.ended;
            let has_all = self.shared.arrived(alone.seq) + ended >= alone.open;
            let is_late = now.saturating_sub(push.sent_ns) > self.shared.common.timeout_ns;
            let is_answered = push.answer.is_some();
            if !(is_answered && has_all || is_late) {
                return;
            }
            self.alone = None;
            // With nobody gone meanwhile, all that is to arrive has arrived.
            if has_all && ended == 0 && self.settled == alone.seq as usize && is_answered {
                self.settle_next();
            }
        }
        if self.left > 0 && self.bulk.can_send() {
            self.left -= 1;
            let (open, ended) = (self.shared.open(), self.shared.sum(|crew| &crew.ended));
            let seq = self.push_bulk(sys::now_ns(), None, true);
            self.alone = Some(Alone { seq, open, ended });
        }
    }

    fn push_bulk(&mut self, intended_ns: u64, selector: Option<Arc<Selector>>, alone: bool) -> u32 {
        let shared = self.shared;
        let sent_ns = sys::now_ns();
        let phase = self.current as u16;
        let to_all = selector.is_none();
        let seq = shared.ledger.send(Bulk { sent_ns, phase, selector: selector.clone() });
        let stamp = Stamp { run: shared.run, seq, at_ns: intended_ns, pusher: BULK };
        self.bulk.write(stamp, sent_ns, |body| {
            if let Some(selector) = &selector {
                write_selector(shared, selector, body);
            }
        });
        let push = PushRecord { phase, to_all, alone, sent_ns, answered_ns: sent_ns, answer: None };
        self.pushes.push(push);
        seq
    }

    fn push_unicast(&mut self, intended_ns: u64) {
        let shared = self.shared;
        let seq = self.next_unicast;
        self.next_unicast += 1;
        let target = shared.target_of(seq);
        let stamp = Stamp { run: shared.run, seq, at_ns: intended_ns, pusher: UNICAST };
        self.records[self.current].unicasts += 1;
        self.unicast.write(stamp, sys::now_ns(), |body| {
            body.extend_from_slice(b"\"uids\":[");
            write_uid(shared, target, body);
            body.extend_from_slice(b"],");
        });
    }

    fn settle_next(&mut self) {
        let answer = self.pushes[self.settled].answer.unwrap_or_default();
        self.shared.ledger.settle(answer);
        self.settled += 1;
    }

    /// Settles pushes that were answered, or should have been, for as long as a delivery may take.
    fn settle_due(&mut self, now: u64) {
        let timeout_ns = self.shared.common.timeout_ns;
        while let Some(push) = self.pushes.get(self.settled) {
            let is_due = match push.answer {
                Some(_) => now.saturating_sub(push.answered_ns) > timeout_ns,
                None => now.saturating_sub(push.sent_ns) > 2 * timeout_ns,
            };
            let is_awaited = self.alone.is_some_and(|alone| alone.seq as usize == self.settled);
            if !is_due || is_awaited {
                break;
            }
            self.settle_next();
        }
    }

    /// Waits until everything has arrived that is to arrive, for `at_most_ns`, and has all threads
    /// judge it. Where something is missing by then it is judged only if that is `final`.
    fn settle_all(&mut self, at_most_ns: u64, is_final: bool) -> Result<(), String> {
        let shared = self.shared;
        let began_ns = sys::now_ns();
        let is_complete = loop {
            let probe = shared.probe.fetch_add(1, Ordering::AcqRel) + 1;
            shared.wake_all();
            let asked_ns = sys::now_ns();
            self.bulk.flush(asked_ns);
            self.unicast.flush(asked_ns);
            let has_answered = |t: usize| shared.crew(t).probed.load(Ordering::Acquire) == probe;
            let mut answered = false;
            while !answered && sys::now_ns() < asked_ns + PROBE_NS {
                self.step(PROBE_NS / 20)?;
                answered = (0..shared.crew_threads).all(has_answered);
            }
            let is_quiet = self.bulk.pending() + self.unicast.pending() == 0;
            if answered && is_quiet && shared.sum(|crew| &crew.missing) == 0 {
                break true;
            }
            if sys::now_ns() - began_ns > at_most_ns || shared.is_over() {
                break false;
            }
        };
        if !is_complete && !is_final {
            return Ok(());
        }
        while self.settled < self.pushes.len() {
            self.settle_next();
        }
        shared.judge_unicasts.fetch_add(1, Ordering::AcqRel);
        shared.wake_all();
        Ok(())
    }

    /// What is without an answer: pushes, those of canaries, and requests.
    fn pending(&self) -> usize {
        let canaries = self.shared.canaries_pending.load(Ordering::Acquire);
        let requests = self.shared.requests_pending.load(Ordering::Acquire);
        self.bulk.pending() + self.unicast.pending() + canaries + requests
    }

    /// Before the server is told to stop: nothing more is pushed, and all that was is answered.
    fn wait_for_answers(&mut self) -> Result<(), String> {
        let began_ns = sys::now_ns();
        self.shared.quiet.store(true, Ordering::Release);
        // Canaries push once more at most before they see it.
        self.step(2 * IDLE_NS)?;
        while self.pending() > 0 && sys::now_ns() - began_ns < self.shared.common.timeout_ns {
            self.step(IDLE_NS)?;
        }
        self.bulk.expects_end = true;
        self.unicast.expects_end = true;
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

    /// Whether nobody is connected any more and no push can be sent for as long as a connect may
    /// take.
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

/// Writes the members that select who gets a push, each with a comma behind it.
fn write_selector(shared: &Shared<'_>, selector: &Selector, body: &mut Vec<u8>) {
    let audience = &shared.scenario.population.audience;
    if !selector.tags.is_empty() {
        body.extend_from_slice(b"\"tags\":[");
        for (i, tag) in selector.tags.iter().enumerate() {
            body.extend_from_slice(if i > 0 { b",\"" } else { b"\"" });
            body.extend_from_slice(audience.tag_prefix.as_bytes());
            write_decimal(u64::from(*tag), body);
            body.push(b'"');
        }
        body.extend_from_slice(b"],");
    }
    if let Some(device) = selector.device {
        body.extend_from_slice(b"\"devices\":[\"");
        body.extend_from_slice(audience.devices[device].as_bytes());
        body.extend_from_slice(b"\"],");
    }
    if let Some((from, to)) = selector.users {
        body.extend_from_slice(b"\"uids\":[");
        for n in from..to {
            if n > from {
                body.push(b',');
            }
            write_uid(shared, n, body);
        }
        body.extend_from_slice(b"],");
    }
}

fn write_uid(shared: &Shared<'_>, n: u64, body: &mut Vec<u8>) {
    body.push(b'"');
    body.extend_from_slice(shared.common.identity.uid_prefix.as_bytes());
    write_decimal(shared.common.first_user + n, body);
    body.push(b'"');
}
