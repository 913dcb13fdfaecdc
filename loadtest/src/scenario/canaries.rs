//! Canaries: a few separate connections that no phase cuts. Each gets every canary push, so their
//! latency and losses show how the server treats clients that nothing else happens to.

use std::sync::atomic::Ordering;

use super::crew::Pace;
use super::ledger::Answer;
use super::receiver::CANARY;
use super::sender::{MAX_PENDING, Sender};
use super::shared::{OVER, Shared};
use super::stats::{Checks, Times};
use crate::client::{Clients, Handler, Opening};
use crate::http;
use crate::message::{self, Arrival, Finder, Marks, STAMP_LEN, Stamp};
use crate::report::Failures;
use crate::run::Reactor;
use crate::series;
use crate::sys::{self, CpuTime};

/// Figures of the canaries in one phase.
#[derive(Default)]
pub struct PhaseOutcome {
    pub pushes: u64,
    pub accepted: u64,
    pub times: Times,
    pub checks: Checks,
}

pub struct Outcome {
    pub phases: Vec<PhaseOutcome>,
    pub failures: Failures,
    pub statuses: Failures,
    pub cpu: CpuTime,
}

const HTTP: u64 = 1 << 32;
const IDLE_NS: u64 = 20_000_000;

/// A push to all canaries.
#[derive(Clone, Copy)]
struct Push {
    phase: u16,
    open: u32,
    arrived: u32,
    answer: Option<Answer>,
}

struct Receiver<'a> {
    shared: &'a Shared<'a>,
    t: usize,
    finder: Finder,
    pushes: Vec<Push>,
    phases: Vec<PhaseOutcome>,
}

impl Handler for Receiver<'_> {
    fn frame(&mut self, _: u32, marks: &mut Marks, payload: &[u8]) {
        let Some((kind, seq, at_ns)) = self
            .finder
            .find(payload)
            .and_then(|found| Some((found.pusher()?, found.seq()?, found.at_ns()?)))
        else {
            return;
        };
        // A push to the whole project reaches canaries, too.
        let Some(push) = self.pushes.get_mut(seq as usize).filter(|_| kind == CANARY) else {
            return;
        };
        let (now, live) = (sys::now_ns(), self.shared.live(self.t));
        let phase = &mut self.phases[usize::from(push.phase)];
        match marks.arrived(seq) {
            Arrival::InOrder => {}
            Arrival::OutOfOrder => phase.checks.out_of_order += 1,
            Arrival::Duplicate | Arrival::Ancient => {
                phase.checks.doubled += 1;
                return series::add(&live.doubled, 1);
            }
        }
        push.arrived += 1;
        phase.checks.deliveries += 1;
        phase.times.record(now.saturating_sub(at_ns));
        live.latency.record(now.saturating_sub(at_ns));
        series::add(&live.deliveries, 1);
    }
}

impl Receiver<'_> {
    /// Returns whether every push is answered and has arrived at all `open` canaries.
    fn has_all(&self, open: u32) -> bool {
        // The earlier ones have arrived, too: they arrive in order.
        let has_arrived = |push: &Push| match push.answer {
            Some(Answer::Accepted) => push.arrived >= push.open.min(open),
            answer => answer.is_some(),
        };
        self.pushes.iter().rev().take(MAX_PENDING).all(has_arrived)
    }
}

pub fn run(shared: &Shared<'_>, t: usize, ready: Result<(), String>) -> Result<Outcome, String> {
    let outcome = ready.and_then(|()| watch(shared, t));
    if outcome.is_err() {
        shared.end();
    }
    outcome
}

/// Returns the number of canaries in the scenario.
pub fn count(shared: &Shared<'_>) -> u64 {
    let canaries = shared.scenario.phases.iter().filter_map(|phase| phase.canaries);
    canaries.map(|canaries| canaries.clients).max().unwrap_or(0)
}

fn watch(shared: &Shared<'_>, t: usize) -> Result<Outcome, String> {
    let common = shared.common;
    let began = CpuTime::of_this_thread();
    sys::run_soon();
    let mut reactor = Reactor::new()?;
    let tag = format!("canary-{:04x}", shared.run);
    let mut identity = common.identity.clone();
    identity.audience = None;
    identity.tags.clone_from(&tag);
    identity.uid_prefix.push_str("canary-");
    let opening = Opening {
        concurrency: 64,
        rate: 0.0,
        timeout_ns: common.timeout_ns,
        sources: common.sources.clone(),
        cycle: None,
    };
    let count = count(shared);
    let mut clients = Clients::new(identity, opening, common.first_user, count as usize);
    reactor.open_all(&mut clients, count, shared.live(t))?;
    if clients.open < count {
        let missing = count - clients.open;
        let why = clients.failures.to_text();
        return Err(format!("{missing} of {count} canaries are not open: {why}"));
    }
    let mut sender = Sender::new(common, 2, HTTP, &reactor)?;
    let mut receiver = Receiver {
        shared,
        t,
        finder: Finder::new(shared.run, STAMP_LEN),
        pushes: Vec::new(),
        phases: shared.scenario.phases.iter().map(|_| PhaseOutcome::default()).collect(),
    };
    shared.unready.fetch_sub(1, Ordering::AcqRel);
    let (mut entered, mut pace) = (None, None);
    loop {
        let now = sys::now_ns();
        let phase = shared.phase();
        if phase == OVER {
            break;
        }
        if let Some(begun) = shared.scenario.phases.get(phase)
            && entered != Some(phase)
        {
            entered = Some(phase);
            pace = begun.canaries.map(|canaries| Pace::new(now, canaries.pushes_per_s));
            sender.set_data_len(message::data_len(begun.traffic.bytes));
            clients.expects_end = begun.drain;
            sender.expects_end = begun.drain;
        }
        sender.refresh(&reactor, now);
        let mut next_ns = now + IDLE_NS;
        while let (Some(pace), Some(phase)) = (&mut pace, entered)
            && sender.can_send()
            && !shared.quiet.load(Ordering::Acquire)
        {
            if pace.next_ns() > now {
                next_ns = next_ns.min(pace.next_ns());
                break;
            }
            let seq = receiver.pushes.len() as u32;
            let stamp = Stamp { run: shared.run, seq, at_ns: pace.next_ns(), pusher: CANARY };
            pace.take();
            let open = clients.open as u32;
            let push = Push { phase: phase as u16, open, arrived: 0, answer: None };
            receiver.pushes.push(push);
            receiver.phases[phase].pushes += 1;
            sender.write(stamp, now, |body| http::write_selector("tags", &tag, body));
        }
        sender.flush(now);
        step(&mut reactor, &mut clients, &mut sender, &mut receiver, next_ns - now)?;
        shared.canaries_pending.store(sender.pending(), Ordering::Release);
        shared.live(t).show(&clients);
    }
    let over_ns = sys::now_ns();
    // A server that is stopping answers no more.
    while !clients.expects_end && !receiver.has_all(clients.open as u32) {
        if sys::now_ns() - over_ns > common.timeout_ns {
            break;
        }
        step(&mut reactor, &mut clients, &mut sender, &mut receiver, IDLE_NS)?;
    }
    judge(&mut receiver, clients.open as u32);
    clients.drop_all();
    let mut failures = std::mem::take(&mut clients.failures);
    failures.merge(sender.failures);
    Ok(Outcome {
        phases: receiver.phases,
        failures,
        statuses: sender.statuses,
        cpu: CpuTime::of_this_thread().since(began),
    })
}

fn step(
    reactor: &mut Reactor,
    clients: &mut Clients,
    sender: &mut Sender<'_>,
    receiver: &mut Receiver<'_>,
    wait_ns: u64,
) -> Result<(), String> {
    let (ready, now) = reactor.wait(wait_ns)?;
    for i in 0..ready {
        let (token, mask) = reactor.epoll.event(i);
        match token {
            HTTP => sender.on_event(mask, &mut reactor.buffer, now),
            _ => clients.on_event(token as usize, mask, now, &mut reactor.buffer, receiver),
        }
    }
    while let Some((pending, _, answer)) = sender.answered.pop_front() {
        let push = &mut receiver.pushes[pending.seq as usize];
        push.answer = Some(answer);
        receiver.phases[usize::from(push.phase)].accepted += u64::from(answer == Answer::Accepted);
    }
    Ok(())
}

/// Counts losses: canaries are never cut, so every open one must have received everything.
fn judge(receiver: &mut Receiver<'_>, open: u32) {
    for push in &receiver.pushes {
        let checks = &mut receiver.phases[usize::from(push.phase)].checks;
        let missing = u64::from(push.open.min(open).saturating_sub(push.arrived));
        match push.answer {
            Some(Answer::Accepted) => checks.lost += missing,
            Some(Answer::Refused) => checks.refused_but_delivered += u64::from(push.arrived),
            Some(Answer::Unknown) | None => checks.undecided += missing,
        }
    }
}
