//! What nodes know of each other and of each other's business servers, compared with the truth; and
//! nodes that shut down.

use super::Cluster;
use super::core::SimWorker;
use super::node::Node;
use super::{Model, World};
use crate::business::Profile;
use serde_json::json;
use std::collections::{BTreeMap, VecDeque};
use ws_cluster::state::drain::{Drain, DrainStep};
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
/// How long a shutdown waits for what was accepted before.
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
        self.draining.get_or_insert_default();
        self.workers.iter_mut().for_each(SimWorker::send_guests_away);
    }

    /// Drives the shutdown, at each tick.
    pub fn drain(&mut self, world: &mut World) {
        let Some(drain) = &mut self.draining else { return };
        let is_awaited = || {
            world.truth.is_waiting(self.home.node)
                || self.workers.iter().any(|core| !core.begun.is_empty())
        };
        let broker = &mut self.broker;
        let is_empty = || broker.has_left() && broker.is_idle() || !broker.is_ready();
        match drain.step(world.now().monotonic, DRAIN_MS, is_awaited, is_empty) {
            DrainStep::Refuse => {}
            DrainStep::Close => {
                for worker in 0..self.workers.len() {
                    self.workers[worker].shut_down(world, &mut self.model);
                    self.flush(worker, world);
                }
            }
            DrainStep::Wait => {
                let is_gone =
                    |core: &SimWorker| core.worker.connections() == 0 && core.has_told_all();
                if drain.is_closing() && self.workers.iter().all(is_gone) {
                    broker.handle_leaving(world.now().monotonic);
                }
            }
            DrainStep::End => self.has_drained = true,
        }
    }
}

impl SimWorker {
    /// Closes business servers first, so that those elsewhere receive the clients' events.
    fn shut_down(&mut self, world: &mut World, model: &mut Model) {
        for (cid, socket) in &mut self.servers {
            socket.is_closing = true;
            world.business.end(*cid, world.now_ms);
        }
        let clients: Vec<u64> = self.clients.keys().copied().collect();
        for cid in clients {
            // It may be closing.
            if model.people.remove(&cid).is_some() {
                let detail = Some(("reason", json!("going_away")));
                self.happens(cid, EventSet::DISCONNECT, detail, world);
            }
        }
        while self.worker.handle_shutdown(|| 1_000) {}
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
                if lost.home.epoch != epoch || lost.draining.as_ref().is_some_and(Drain::is_closing)
                {
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
