//! What nodes know of each other and of each other's business servers, compared with the truth; and
//! nodes that shut down.

use super::Cluster;
use super::core::{Client, Home, SimWorker};
use super::node::Node;
use super::{Model, World};
use crate::business::Profile;
use serde_json::json;
use std::collections::{BTreeMap, VecDeque};
use ws_cluster::state::broker::Outcome;
use ws_cluster::state::drain::{Drain, DrainStep, DrainTimes, DrainingWorker, NodeDrain, Spread};
use ws_cluster::state::subscriptions::WorkerEvent;
use ws_cluster::types::EventSet;

/// Time after both nodes are up within which they know everything of each other: each announces its
/// version once a second.
pub const KNOWN_AFTER_MS: u64 = 2_500;
/// A silent node is lost after 5 seconds. Its last announcement came within a second before it fell
/// silent.
const LOST_EARLIEST_MS: u64 = 3_500;
/// Time within which a dead node is lost: delayed announcements still count as signs of life.
const LOST_LATEST_MS: u64 = 9_000;
/// Maximum delay of an announcement within a node.
const NEAR_MS: u64 = 500;
/// How long a shutdown takes at most.
const DRAIN_MS: u64 = 5_000;

/// What a node received from another, and what it reported of it.
pub struct View {
    /// As reported: whether the node is up, and in which incarnation.
    pub is_up: bool,
    pub epoch: u64,
    /// The incarnation last heard, and whether it announced that it is leaving; `None`: nothing
    /// since the node was lost.
    heard: Option<(u64, bool)>,
    /// What must be reported of that: incarnations that begin (`true`) or end.
    due: VecDeque<(bool, u64)>,
}

/// By number.
#[derive(Default)]
pub struct Views {
    all: BTreeMap<u16, View>,
    /// Nodes lost because of their silence, and the known incarnation. Still to be checked.
    lost: Vec<(u16, u64)>,
}

impl Views {
    /// Records an announcement of a node. Workers are notified only of the first announcement of a
    /// later incarnation, unless that is leaving already, and of the leaving of the known one.
    pub fn hear(&mut self, number: u16, epoch: u64, is_last_word: bool) {
        let (is_up, heard, due) = (false, None, VecDeque::new());
        let view = self.all.entry(number).or_insert(View { is_up, epoch, heard, due });
        let (known, has_left) = view.heard.unwrap_or((0, true));
        if known > epoch || known == epoch && has_left {
            return;
        }
        view.heard = Some((epoch, is_last_word));
        let begins = known < epoch && !is_last_word;
        if !has_left && (begins || is_last_word) {
            view.due.push_back((false, known));
        }
        if begins {
            view.due.push_back((true, epoch));
        }
    }

    /// Notifies a worker about a node.
    fn tell(&mut self, number: u16, is_up: bool) {
        let view = self.all.get_mut(&number).expect("a node that was heard");
        match view.due.pop_front() {
            Some((must_be_up, epoch)) => {
                assert_eq!(is_up, must_be_up, "life {epoch} of {number}");
                (view.is_up, view.epoch) = (is_up, epoch);
            }
            None => {
                assert!(view.is_up && !is_up, "{number} is {is_up} for nothing");
                (view.is_up, view.heard) = (false, None);
                self.lost.push((number, view.epoch));
            }
        }
    }

    /// Checks, once everything received has been handled, that all of it was reported.
    pub fn check(&self) {
        for (number, view) in &self.all {
            assert!(view.due.is_empty(), "nobody is told of {number}: {:?}", view.due);
        }
    }
}

impl Node {
    /// Handles a broker's notification of a worker; all workers get the same ones about nodes.
    pub fn view(&mut self, worker: usize, event: WorkerEvent) {
        if let WorkerEvent::Node { node, is_up } = event
            && worker == 0
        {
            self.views.tell(node.value(), is_up);
        }
    }

    pub fn begin_drain(&mut self, world: &mut World) {
        world.log.note(format!("node {} is told to end", self.home.number));
        let workers = self.workers.len();
        self.draining.get_or_insert_with(|| Draining {
            node: NodeDrain::new(workers, true),
            workers: (0..workers).map(|_| Some(Drain::default())).collect(),
            spread: Spread::new(world.rng.number() as u32),
            began_ms: world.now_ms,
            has_closed_any: false,
        });
        self.workers.iter_mut().for_each(SimWorker::send_guests_away);
    }

    /// Whether its clients are being closed, or were.
    pub fn is_closing(&self) -> bool {
        let is_closing = |drain: &Option<Drain>| drain.as_ref().is_none_or(Drain::is_closing);
        self.draining.as_ref().is_some_and(|drain| drain.workers.iter().any(is_closing))
    }

    /// Drives the shutdown, at each tick. `is_round_due`: the queue was to confirm a round before
    /// the broker last heard its workers.
    pub fn drain(&mut self, is_round_due: bool, world: &mut World) {
        let Some(mut draining) = self.draining.take() else { return };
        let now = world.now().monotonic;
        if is_round_due && self.broker.has_come_round(now) {
            draining.node.complete_round();
        }
        for worker in 0..self.workers.len() {
            self.drain_worker(worker, &mut draining, world);
        }
        let is_gone = |core: &SimWorker| core.worker.connections() == 0 && core.has_told_all();
        if draining.node.has_told() && self.workers.iter().all(is_gone) {
            self.broker.handle_leaving(now);
        }
        self.has_drained = draining.workers.iter().all(Option::is_none);
        self.draining = Some(draining);
    }

    fn drain_worker(&mut self, worker: usize, draining: &mut Draining, world: &mut World) {
        let Some(drain) = &mut draining.workers[worker] else { return };
        let connections = self.workers.iter().map(|core| core.worker.connections()).sum();
        let has_left = self.broker.has_left() && self.broker.is_idle();
        loop {
            let mut view = DrainView {
                core: &self.workers[worker],
                is_awaited: world.truth.is_waiting(self.home.node),
                connections,
                has_left: has_left || !self.broker.is_ready(),
            };
            match drain.step(world.now().monotonic, &draining.node, &mut view) {
                DrainStep::Refuse => {}
                DrainStep::CloseClients { left, may_wait, spread_ms } => {
                    let is_first = !std::mem::replace(&mut draining.has_closed_any, true);
                    if is_first && world.now_ms < draining.began_ms + DRAIN_MS / 2 {
                        self.check_delivered(world);
                    }
                    let core = &mut self.workers[worker];
                    let next_ms = || draining.spread.next_ms(spread_ms);
                    core.close_clients(left, may_wait, next_ms, world, &mut self.model);
                    return self.flush(worker, world);
                }
                DrainStep::CloseServers { .. } => {
                    self.workers[worker].close_servers(world);
                    self.flush(worker, world);
                }
                DrainStep::Wait => return,
                DrainStep::End => return draining.workers[worker] = None,
            }
        }
    }

    /// Checks, before the first client is closed, that the clients here have everything that this
    /// node accepted.
    fn check_delivered(&self, world: &World) {
        let Home { node, epoch, clean_since_ms, .. } = self.home;
        let Some(clean_since_ms) = clean_since_ms else { return };
        for (id, record) in &world.truth.records {
            let is_accepted = matches!(record.outcome, Some((Outcome::Accepted, _)));
            let is_own = record.node == node && record.epoch == epoch;
            let is_simple = record.group.is_none() && record.push.ttl_ms == 0;
            let was_clean = record.begun_ms >= clean_since_ms && !record.was_refused;
            if !(is_accepted && is_own && is_simple && was_clean) {
                continue;
            }
            for ((_, cid), unsubscribes) in record.certain.iter().filter(|one| one.0.0 == node) {
                let client = self.workers.iter().find_map(|core| core.clients.get(cid));
                let client = client.filter(|one| one.unsubscribes == *unsubscribes);
                let has_it = client.is_none_or(|client| client.got.contains(id));
                assert!(has_it, "{cid} is about to be closed without push {id}");
            }
        }
    }
}

/// A node's shutdown.
pub struct Draining {
    pub node: NodeDrain,
    /// `None`: the worker has ended.
    workers: Vec<Option<Drain>>,
    spread: Spread,
    began_ms: u64,
    has_closed_any: bool,
}

/// A worker as its drain sees it.
struct DrainView<'a> {
    core: &'a SimWorker,
    is_awaited: bool,
    connections: usize,
    has_left: bool,
}

impl DrainingWorker for DrainView<'_> {
    fn times(&self) -> DrainTimes {
        DrainTimes { delay_ms: 0, window_ms: DRAIN_MS, linger_ms: 1_000 }
    }

    fn awaits_answer(&self) -> bool {
        self.is_awaited || !self.core.begun.is_empty() || !self.core.has_told_all()
    }

    fn has_delivered(&mut self) -> bool {
        self.core.inbox.is_empty() && !self.core.worker.is_matching()
    }

    fn clients(&self) -> usize {
        self.core.worker.clients()
    }

    fn servers(&self) -> usize {
        self.core.worker.servers()
    }

    fn node_connections(&self) -> usize {
        self.connections
    }

    fn is_empty(&self) -> bool {
        self.core.worker.connections() == 0 && self.has_left
    }
}

impl SimWorker {
    fn close_clients(
        &mut self,
        left: usize,
        may_wait: bool,
        mut reconnect_after_ms: impl FnMut() -> u32,
        world: &mut World,
        model: &mut Model,
    ) {
        while self.worker.close_clients(left, may_wait, &mut reconnect_after_ms) {}
        let is_closed = |client: &Client| !self.worker.is_open(client.key.slot);
        let closed = self.clients.iter().filter(|(_, client)| is_closed(client));
        let closed: Vec<u64> = closed.map(|(cid, _)| *cid).collect();
        for cid in closed {
            // It may have been closing before.
            if model.people.remove(&cid).is_some() {
                let detail = Some(("reason", json!("going_away")));
                self.happens(cid, EventSet::DISCONNECT, detail, world);
            }
        }
    }

    fn close_servers(&mut self, world: &mut World) {
        for (cid, socket) in &mut self.servers {
            if !std::mem::replace(&mut socket.is_closing, true) {
                world.business.end(*cid, world.now_ms);
            }
        }
        while self.worker.close_servers(|| 1_000) {}
    }
}

impl Cluster {
    /// Checks that a node is declared lost only if it is, or if nobody could hear it for about five
    /// seconds.
    pub fn judge_losses(&mut self) {
        let now_ms = self.world.now_ms;
        for index in 0..self.nodes.len() {
            let Ok(node) = &mut self.nodes[index] else { continue };
            let by = node.home.number;
            for (number, epoch) in std::mem::take(&mut node.views.lost) {
                let Ok(lost) = &self.nodes[usize::from(number) - 7] else { continue };
                if lost.home.epoch != epoch || lost.is_closing() {
                    continue;
                }
                match (lost.unclean_since_ms, lost.home.clean_since_ms) {
                    (Some(since_ms), _) => {
                        let silent_ms = now_ms - since_ms;
                        let is_late = silent_ms >= LOST_EARLIEST_MS;
                        assert!(is_late, "node {by} loses {number} after {silent_ms} ms");
                    }
                    (None, Some(since_ms)) => {
                        let is_back = now_ms - since_ms <= KNOWN_AFTER_MS;
                        assert!(is_back, "node {by} loses {number}, which is well");
                    }
                    (None, None) => panic!("node {number} is neither clean nor not"),
                }
            }
        }
    }

    fn is_settled(&self, node: &Node) -> bool {
        let since_ms = self.world.now_ms - KNOWN_AFTER_MS;
        node.is_clean_since(since_ms) && self.world.trouble_ms < since_ms
    }

    /// Checks that nodes that are up are known to be up, and dead ones are known to be lost.
    pub fn check_views(&self) {
        let now_ms = self.world.now_ms;
        let settled = self.nodes.iter().flatten().filter(|node| self.is_settled(node));
        for node in settled {
            for (index, other) in self.nodes.iter().enumerate() {
                let number = 7 + index as u16;
                if index == node.home.node {
                    continue;
                }
                let view = node.views.all.get(&number);
                let by = node.home.number;
                match other {
                    Ok(other) if self.is_settled(other) && other.draining.is_none() => {
                        let is_known =
                            view.is_some_and(|one| one.is_up && one.epoch == other.home.epoch);
                        assert!(is_known, "node {by} does not know {number}");
                    }
                    Err(_) => {
                        let died_ms = self.died_ms[&index];
                        let is_long_ago = died_ms + LOST_LATEST_MS < now_ms;
                        if is_long_ago && node.is_clean_since(died_ms) {
                            let is_lost = view.is_none_or(|view| !view.is_up);
                            assert!(is_lost, "node {by} knows {number}, which is dead");
                        }
                    }
                    Ok(_) => {}
                }
            }
        }
    }

    /// Checks that every worker knows the connected business servers, and soon no others.
    pub fn check_told(&self) {
        let now_ms = self.world.now_ms;
        let business = &self.world.business;
        for (node, core) in self.workers() {
            for (other, holder) in self.workers() {
                let is_same_node = node.home.node == other.home.node;
                if is_same_node && core.index == holder.index {
                    continue;
                }
                let is_settled = is_same_node || self.is_settled(node) && self.is_settled(other);
                for socket in holder.servers.values().filter(|socket| !socket.is_closing) {
                    let Profile { cid, events, .. } = socket.server.profile;
                    let welcomed_ms = socket.server.welcomed_ms;
                    let is_old = welcomed_ms.is_some_and(|ms| ms + KNOWN_AFTER_MS < now_ms);
                    let told = core.told.get(&cid).map(|told| told.events);
                    if is_old && is_settled && other.draining.is_none() {
                        let by = node.home.number;
                        assert_eq!(told, Some(events), "what node {by} knows of {cid}");
                    }
                }
            }
            for cid in core.told.keys() {
                let Some(ended_ms) = business.ended.get(cid) else { continue };
                let profile = &business.profiles[cid];
                let holder = self.nodes[profile.node].as_ref().ok();
                let holder = holder.filter(|holder| holder.home.epoch == profile.epoch);
                let most_ms = match holder {
                    Some(holder) if holder.home.node == node.home.node => NEAR_MS,
                    Some(holder) if self.is_settled(holder) => KNOWN_AFTER_MS,
                    Some(_) => continue,
                    None => LOST_LATEST_MS,
                };
                let known_ms = now_ms - ended_ms;
                let must_know = self.is_settled(node) && node.is_clean_since(*ended_ms);
                let by = node.home.number;
                assert!(
                    known_ms <= most_ms || !must_know,
                    "node {by} knows {cid}, which is gone for {known_ms} ms"
                );
            }
        }
    }

    pub fn workers(&self) -> impl Iterator<Item = (&Node, &SimWorker)> {
        let nodes = self.nodes.iter().flatten();
        nodes.flat_map(|node| node.workers.iter().map(move |core| (node, core)))
    }
}

/// The first announcement that a restarted node received from another said that it was leaving:
/// nothing was reported, then the next incarnation was. The earlier incarnation was mistaken for
/// the reported one.
#[test]
fn a_life_whose_last_word_is_heard_first_is_not_the_one_that_is_told_of() {
    let mut views = Views::default();
    views.hear(8, 5, true);
    views.check();
    views.hear(8, 6, false);
    views.tell(8, true);
    assert!(views.all[&8].is_up && views.all[&8].epoch == 6);
    // Two successive incarnations in one read: both are reported.
    views.hear(8, 6, true);
    views.hear(8, 6, false);
    views.hear(8, 7, false);
    views.tell(8, false);
    views.tell(8, true);
    views.check();
    assert!(views.all[&8].is_up && views.all[&8].epoch == 7);
    // Silence, then the same incarnation again.
    views.tell(8, false);
    views.hear(8, 7, false);
    views.tell(8, true);
    assert_eq!((views.lost, views.all[&8].epoch), (vec![(8, 7)], 7));
}
