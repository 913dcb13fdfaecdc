//! Shutdown of a node, in phases that its workers take together: it still serves for a while; it
//! refuses everything new and delivers what was accepted; it closes its clients at an even pace;
//! when business servers have been told of all of them, it closes these; it waits for the rest.

use crate::types::MonotonicMs;
use std::sync::atomic::{
    AtomicU8, AtomicUsize,
    Ordering::{AcqRel, Acquire},
};

/// Minimum number of clients that a node closes per second, so that a node with few of them ends
/// early: another node takes more connects than that without noticing.
const MIN_CLOSES_PER_S: u64 = 100;
/// Minimum of the longest `reconnect_after_ms`.
const MIN_SPREAD_MS: u64 = 1_000;

/// What a worker does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DrainStep {
    /// Close the listeners, and refuse connections and pushes from now on. Ask again.
    Refuse,
    /// Close clients until at most `left` of them are open. `may_wait`: those with requests in
    /// progress may stay. `spread_ms`: the maximum of their `reconnect_after_ms`.
    CloseClients {
        left: usize,
        may_wait: bool,
        spread_ms: u32,
    },
    /// Close the business servers. Ask again.
    CloseServers {
        spread_ms: u32,
    },
    Wait,
    /// All have disconnected, or the time is up.
    End,
}

/// How long the phases take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DrainTimes {
    /// How long the node still serves.
    pub delay_ms: u64,
    /// Time from then on until it ends.
    pub window_ms: u64,
    /// The part at the end of it that is kept for the last closing handshakes, at most a quarter.
    pub linger_ms: u64,
}

/// Points that all workers must have reached before one goes beyond them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Milestone {
    /// It accepts nothing new.
    Refuses,
    /// Nothing that it accepted waits for the queue's answer.
    Answered,
    /// Its clients have been sent everything that the node had accepted.
    Delivered,
    /// Its clients are closed, and the events of that are on their way.
    Told,
}

const MILESTONES: usize = 4;

/// Progress of a node's shutdown: one per node, shared by its workers and its broker.
#[derive(Debug)]
pub struct NodeDrain {
    workers: usize,
    /// Whether messages take the way through a queue, which must then confirm that they have come
    /// back ([`NodeDrain::is_round_due`]).
    has_queue: bool,
    /// Number of workers that have reached each milestone.
    reached: [AtomicUsize; MILESTONES],
    /// Confirmations of the queue.
    rounds: AtomicU8,
}

impl NodeDrain {
    pub fn new(workers: usize, has_queue: bool) -> Self {
        Self { workers, has_queue, reached: Default::default(), rounds: AtomicU8::new(0) }
    }

    /// Whether the queue is to confirm that everything published so far has come back and been
    /// handed to the workers: once before clients are closed, once before business servers are.
    pub fn is_round_due(&self) -> bool {
        match self.rounds.load(Acquire) {
            0 => self.have_all(Milestone::Answered),
            1 => self.has_told(),
            _ => false,
        }
    }

    /// Records the queue's confirmation.
    pub fn complete_round(&self) {
        self.rounds.fetch_add(1, AcqRel);
    }

    /// Whether the clients of all workers are closed, and the events of that are on their way.
    pub fn has_told(&self) -> bool {
        self.have_all(Milestone::Told)
    }

    fn reach(&self, milestone: Milestone) {
        self.reached[milestone as usize].fetch_add(1, AcqRel);
    }

    fn have_all(&self, milestone: Milestone) -> bool {
        self.reached[milestone as usize].load(Acquire) >= self.workers
    }

    /// Whether all workers have reached it, and the queue has since confirmed a round.
    fn is_carried(&self, milestone: Milestone) -> bool {
        let rounds = if milestone == Milestone::Answered { 1 } else { 2 };
        self.have_all(milestone) && (!self.has_queue || self.rounds.load(Acquire) >= rounds)
    }
}

/// A worker that shuts down, as [`Drain::step`] sees it.
pub trait DrainingWorker {
    fn times(&self) -> DrainTimes;
    /// Whether something that it accepted waits for the queue's answer, or for room on its way to
    /// others.
    fn awaits_answer(&self) -> bool;
    /// Handles what others have sent. Returns whether its clients have been sent all of it.
    fn has_delivered(&mut self) -> bool;
    /// Number of its open clients.
    fn clients(&self) -> usize;
    /// Number of its open business servers.
    fn servers(&self) -> usize;
    /// Number of open connections of the node.
    fn node_connections(&self) -> usize;
    /// Whether the last connection is gone and other nodes have been notified.
    fn is_empty(&self) -> bool;
}

/// Progress of one worker's shutdown.
#[derive(Debug, Default)]
pub struct Drain {
    phase: Phase,
    reached: Option<Milestone>,
}

#[derive(Debug, Clone, Copy, Default)]
enum Phase {
    #[default]
    Open,
    /// It still serves.
    Announced {
        until: MonotonicMs,
    },
    /// It refuses what is new, and waits for what was accepted.
    Settling(Plan),
    Closing(Plan, Pace),
    /// Its clients are closed; business servers get the disconnect events.
    Telling(Plan, Pace),
    Ending {
        until: MonotonicMs,
    },
}

/// The window of a drain.
#[derive(Debug, Clone, Copy)]
struct Plan {
    /// When closes begin at the latest.
    settle_by: MonotonicMs,
    /// When the last client is closed at the latest, and the last business server.
    close_by: MonotonicMs,
    close_servers_by: MonotonicMs,
    end: MonotonicMs,
}

impl Plan {
    fn new(now: MonotonicMs, times: DrainTimes) -> Self {
        let DrainTimes { window_ms, linger_ms, .. } = times;
        let kept_ms = linger_ms.min(window_ms / 4);
        Self {
            settle_by: now + window_ms / 2,
            close_by: now + (window_ms - kept_ms),
            close_servers_by: now + (window_ms - kept_ms / 2),
            end: now + window_ms,
        }
    }
}

/// Closes clients evenly: after each part of the time, the same part of them.
#[derive(Debug, Clone, Copy)]
struct Pace {
    began: MonotonicMs,
    duration_ms: u64,
    clients: usize,
    spread_ms: u32,
}

impl Pace {
    fn new(now: MonotonicMs, plan: &Plan, clients: usize, node_connections: usize) -> Self {
        let needed_ms = node_connections as u64 * 1_000 / MIN_CLOSES_PER_S;
        let duration_ms = needed_ms.min(plan.close_by.since(now));
        // Clients that come back evenly during the closes and this time after them: then connects
        // are never more frequent than 4/3 of their mean.
        let left_ms = plan.end.since(now + duration_ms).min(duration_ms / 3);
        let spread_ms = left_ms.max(MIN_SPREAD_MS) as u32;
        Self { began: now, duration_ms, clients, spread_ms }
    }

    /// Number of clients that may still be open.
    fn left(&self, now: MonotonicMs) -> usize {
        let left_ms = (self.began + self.duration_ms).since(now);
        (self.clients as u128 * u128::from(left_ms) / u128::from(self.duration_ms.max(1))) as usize
    }
}

impl Drain {
    /// Returns the next step; called at each tick once the node drains.
    pub fn step(
        &mut self,
        now: MonotonicMs,
        node: &NodeDrain,
        worker: &mut impl DrainingWorker,
    ) -> DrainStep {
        match self.phase {
            Phase::Open => {
                self.phase = Phase::Announced { until: now + worker.times().delay_ms };
                self.step(now, node, worker)
            }
            Phase::Announced { until } if now < until => DrainStep::Wait,
            Phase::Announced { .. } => {
                self.phase = Phase::Settling(Plan::new(now, worker.times()));
                DrainStep::Refuse
            }
            Phase::Settling(plan) => {
                if !self.has_settled(node, worker) && now < plan.settle_by {
                    return DrainStep::Wait;
                }
                let (clients, connections) = (worker.clients(), worker.node_connections());
                self.phase = Phase::Closing(plan, Pace::new(now, &plan, clients, connections));
                self.step(now, node, worker)
            }
            Phase::Closing(plan, pace) => {
                let (open, left) = (worker.clients(), pace.left(now));
                if open == 0 {
                    self.phase = Phase::Telling(plan, pace);
                    return self.step(now, node, worker);
                }
                let (may_wait, spread_ms) = (now < plan.close_by, pace.spread_ms);
                match open > left {
                    true => DrainStep::CloseClients { left, may_wait, spread_ms },
                    false => DrainStep::Wait,
                }
            }
            Phase::Telling(plan, pace) => {
                if !self.has_told(node, worker) && now < plan.close_servers_by {
                    return DrainStep::Wait;
                }
                self.phase = Phase::Ending { until: plan.end };
                DrainStep::CloseServers { spread_ms: pace.spread_ms }
            }
            Phase::Ending { until } => match worker.is_empty() || now >= until {
                true => DrainStep::End,
                false => DrainStep::Wait,
            },
        }
    }

    /// Whether clients are being closed, or were.
    pub fn is_closing(&self) -> bool {
        matches!(self.phase, Phase::Closing(..) | Phase::Telling(..) | Phase::Ending { .. })
    }

    /// Whether everything that any worker accepted has been sent to the clients of all workers.
    fn has_settled(&mut self, node: &NodeDrain, worker: &mut impl DrainingWorker) -> bool {
        self.reach(Milestone::Refuses, node);
        if node.have_all(Milestone::Refuses) && !worker.awaits_answer() {
            self.reach(Milestone::Answered, node);
        }
        // In this order: what was sent before the milestone is received after it.
        if node.is_carried(Milestone::Answered) && worker.has_delivered() {
            self.reach(Milestone::Delivered, node);
        }
        node.have_all(Milestone::Delivered)
    }

    /// Whether this worker's business servers have been told of the closes of all workers.
    fn has_told(&mut self, node: &NodeDrain, worker: &mut impl DrainingWorker) -> bool {
        if !worker.awaits_answer() {
            self.reach(Milestone::Told, node);
        }
        self.reached == Some(Milestone::Told)
            && (worker.servers() == 0 || node.is_carried(Milestone::Told) && worker.has_delivered())
    }

    fn reach(&mut self, milestone: Milestone, node: &NodeDrain) {
        if self.reached < Some(milestone) {
            self.reached = Some(milestone);
            node.reach(milestone);
        }
    }
}

/// Delays that are spread evenly, whatever the number of them: multiples of the golden ratio leave
/// no gap and no cluster, as random numbers do.
#[derive(Debug)]
pub struct Spread(u32);

impl Spread {
    /// `seed`: where the sequence begins.
    pub fn new(seed: u32) -> Self {
        Self(seed)
    }

    /// Returns the next delay, below `spread_ms`.
    pub fn next_ms(&mut self, spread_ms: u32) -> u32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9);
        ((u64::from(self.0) * u64::from(spread_ms)) >> 32) as u32
    }
}

#[cfg(test)]
mod tests;
