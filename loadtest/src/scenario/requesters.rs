//! Requests: a few separate clients send them, a business server at each node answers, and both
//! sides are checked as in `loadtest requests`.

use std::iter::repeat_n;
use std::sync::atomic::Ordering;

use super::shared::{OVER, Shared};
use super::stats::{Checks, Times};
use crate::business::{Business, TOKENS};
use crate::client::{Clients, Opening};
use crate::identity::Identity;
use crate::report::{self, Failures};
use crate::requests::answerer::Answerer;
use crate::requests::asker::Asker;
use crate::run::Reactor;
use crate::series;
use crate::sys::{self, CpuTime};

/// Figures of the requests in one phase.
#[derive(Default)]
pub struct PhaseOutcome {
    pub requests: u64,
    pub answered: u64,
    pub times: Times,
}

pub struct Outcome {
    pub phases: Vec<PhaseOutcome>,
    pub checks: Checks,
    /// Requests that were answered with an error.
    pub refusals: Failures,
    pub failures: Failures,
    pub cpu: CpuTime,
}

const CLIENTS: u64 = 16;
/// Requests in flight per client.
const OUTSTANDING: usize = 64;
const IDLE_NS: u64 = 20_000_000;
/// Until the first answer: how soon a client retries if its node knows no server yet.
const ASK_AGAIN_NS: u64 = 5_000_000;

struct Sides<'a> {
    reactor: Reactor,
    clients: Clients,
    servers: Clients,
    asker: Asker,
    answerer: Answerer<'a>,
}

pub fn run(shared: &Shared<'_>, t: usize, ready: Result<(), String>) -> Result<Outcome, String> {
    let outcome = ready.and_then(|()| ask(shared, t));
    if outcome.is_err() {
        shared.end();
    }
    outcome
}

fn ask(shared: &Shared<'_>, t: usize) -> Result<Outcome, String> {
    let common = shared.common;
    let began = CpuTime::of_this_thread();
    let mut identity = Identity { audience: None, ..common.identity.clone() };
    identity.uid_prefix.push_str("asker-");
    let bytes = shared.scenario.phases.iter().find(|phase| phase.traffic.requests_per_s > 0.0);
    let bytes = bytes.map_or(0, |phase| phase.traffic.bytes);
    let mut reactor = Reactor::new()?;
    let ws = identity.ws.clone();
    let business = Business { servers: ws.len() as u64, ws, events: "request" };
    let servers = business.open(common, &mut reactor)?;
    let opening = Opening {
        concurrency: CLIENTS as usize,
        rate: 0.0,
        timeout_ns: common.timeout_ns,
        sources: common.sources.clone(),
        cycle: None,
    };
    let mut clients = Clients::new(identity.clone(), opening, 0, CLIENTS as usize);
    clients.sends = true;
    reactor.open_all(&mut clients, CLIENTS, shared.live(t))?;
    if clients.open < CLIENTS {
        let why = clients.failures.to_text();
        return Err(format!(
            "only {} of {CLIENTS} requesting clients are open: {why}",
            clients.open
        ));
    }
    let answerer = Answerer::new(&identity, 0, shared.run, business.servers);
    let asker = Asker::new(bytes, shared.run, CLIENTS as usize);
    let mut sides = Sides { reactor, clients, servers, asker, answerer };
    for (slot, number) in sides.clients.open_slots() {
        sides.asker.opened(slot, number);
    }
    sides.ask_until_known(common.timeout_ns)?;
    shared.unready.fetch_sub(1, Ordering::AcqRel);
    let phases = sides.drive(shared, t)?;
    let Sides { mut clients, mut servers, asker, answerer, .. } = sides;
    clients.drop_all();
    servers.drop_all();
    let checks = Checks {
        deliveries: asker.answered,
        lost: asker.unanswered(),
        doubled: asker.duplicates + answerer.doubled,
        misdelivered: asker.foreign + answerer.misattributed,
        ..Checks::default()
    };
    let mut failures = clients.failures;
    failures.merge(servers.failures);
    let cpu = CpuTime::of_this_thread().since(began);
    Ok(Outcome { phases, checks, refusals: asker.refusals, failures, cpu })
}

impl Sides<'_> {
    fn step(&mut self, wait_ns: u64) -> Result<u64, String> {
        let (ready, now) = self.reactor.wait(wait_ns)?;
        self.asker.now = now;
        for i in 0..ready {
            let (token, mask) = self.reactor.epoll.event(i);
            let buffer = &mut self.reactor.buffer;
            if token < TOKENS {
                self.clients.on_event(token as usize, mask, now, buffer, &mut self.asker);
            } else {
                let index = (token - TOKENS) as usize;
                self.servers.on_event(index, mask, now, buffer, &mut self.answerer);
            }
        }
        Ok(now)
    }

    /// Has every client send requests until it gets an answer: a server's welcome at its node does
    /// not guarantee that other nodes know it by then.
    fn ask_until_known(&mut self, timeout_ns: u64) -> Result<(), String> {
        let (began_ns, mut again_ns) = (sys::now_ns(), 0);
        self.asker.unserved = Some(Vec::new());
        while self.asker.answered < CLIENTS {
            let now = sys::now_ns();
            if sys::interrupted() || now - began_ns > timeout_ns {
                return Err("no business server answers".to_owned());
            }
            if let Some(unserved) = &mut self.asker.unserved
                && now >= again_ns
            {
                self.asker.idle.extend(unserved.drain(..));
                again_ns = now + ASK_AGAIN_NS;
            }
            self.asker.turn(&mut self.clients);
            self.step(ASK_AGAIN_NS)?;
            // Clients with an answer wait for the others.
            self.asker.idle.clear();
        }
        self.asker.unserved = None;
        Ok(())
    }

    fn drive(&mut self, shared: &Shared<'_>, t: usize) -> Result<Vec<PhaseOutcome>, String> {
        let mut phases: Vec<PhaseOutcome> = Vec::new();
        phases.resize_with(shared.scenario.phases.len(), PhaseOutcome::default);
        for (_, number) in self.clients.open_slots() {
            self.asker.idle.extend(repeat_n(number, OUTSTANDING));
        }
        self.asker.end_ns = 0;
        let mut entered = None;
        let mut before = (self.asker.next, self.asker.answered);
        let mut over_since_ns = None;
        loop {
            let now = sys::now_ns();
            let phase = shared.phase();
            if entered != Some(phase) {
                if let Some(outcome) = entered.and_then(|entered: usize| phases.get_mut(entered)) {
                    outcome.requests = u64::from(self.asker.next - before.0);
                    outcome.answered = self.asker.answered - before.1;
                    let times = &mut self.asker.intended_latency;
                    outcome.times.add(&std::mem::replace(times, report::new_histogram()));
                }
                before = (self.asker.next, self.asker.answered);
                entered = Some(phase);
                self.enter(shared, phase, now);
            }
            if shared.quiet.load(Ordering::Acquire) || phase == OVER {
                self.asker.end_ns = 0;
            }
            let wait_ns = self.asker.turn(&mut self.clients);
            self.step(wait_ns.min(IDLE_NS))?;
            let unanswered = self.asker.unanswered();
            shared.requests_pending.store(unanswered as usize, Ordering::Release);
            series::store(&shared.live(t).deliveries, self.asker.answered);
            if phase == OVER {
                let since_ns = *over_since_ns.get_or_insert(now);
                if unanswered == 0 || now - since_ns > shared.common.timeout_ns {
                    return Ok(phases);
                }
            }
        }
    }

    fn enter(&mut self, shared: &Shared<'_>, phase: usize, now: u64) {
        let Some(phase) = shared.scenario.phases.get(phase) else { return };
        let per_s = phase.traffic.requests_per_s;
        self.clients.expects_end = phase.drain;
        self.servers.expects_end = phase.drain;
        self.asker.end_ns = if per_s > 0.0 { u64::MAX } else { 0 };
        self.asker.began = (now, self.asker.next);
        self.asker.interval_ns = 1e9 / per_s.max(1e-9);
        self.asker.measure_from_ns = now;
    }
}
