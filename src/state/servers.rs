//! Business servers of the whole cluster, as one worker knows them, and the load of each.

use super::projects::ProjectId;
use super::subscriptions::Server;
use crate::types::{Cid, EventSet, NodeId, SnowflakeClock};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// Requests in flight to one business server, summed over the workers of its node.
pub type Load = Arc<AtomicU32>;

/// The loads of all business servers that a node knows, shared by its workers. The lock is taken
/// when a server is added.
#[derive(Debug, Default)]
pub struct Loads(Mutex<LoadTable>);

#[derive(Debug, Default)]
struct LoadTable {
    all: BTreeMap<Cid, Weak<AtomicU32>>,
    /// Number of live entries after the last purge.
    live: usize,
}

/// Number of entries up to which nothing is purged.
const KEPT_LOADS: usize = 64;

impl Loads {
    fn of(&self, cid: Cid) -> Load {
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let LoadTable { all, live } = &mut *table;
        if let Some(load) = all.get(&cid).and_then(Weak::upgrade) {
            return load;
        }
        // Not every time: a node may add thousands.
        if all.len() > 2 * *live + KEPT_LOADS {
            all.retain(|_, load| load.strong_count() > 0);
            *live = all.len();
        }
        let load = Load::default();
        all.insert(cid, Arc::downgrade(&load));
        load
    }

    /// Returns the requests in flight to each business server that is in use. For the simulator and
    /// tests.
    pub fn in_flight(&self) -> BTreeMap<Cid, u32> {
        let table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let counted = table.all.iter().filter_map(|(&cid, load)| Some((cid, load.upgrade()?)));
        counted.map(|(cid, load)| (cid, load.load(Relaxed))).collect()
    }
}

/// How far a business server is from a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Distance {
    /// On this very worker.
    Here,
    /// On another worker of this node.
    SameNode,
    OtherNode,
}

#[derive(Debug)]
struct Known {
    server: Server,
    distance: Distance,
    load: Load,
}

/// Maximum number of business servers compared for one choice: if there are more, each turn
/// compares another part of them.
const COMPARED: usize = 64;

#[derive(Debug, Default)]
struct OfProject {
    /// Servers that accept requests come first.
    list: Vec<Known>,
    takers: usize,
    /// Events wanted by servers that are not on this worker.
    wanted_elsewhere: EventSet,
    /// Where the last choice started.
    turn: usize,
}

/// The business server that a request goes to.
#[derive(Debug, Clone)]
pub struct Choice {
    pub cid: Cid,
    pub load: Load,
}

/// Business servers by project.
#[derive(Debug)]
pub struct Registry {
    node: NodeId,
    worker: usize,
    workers: usize,
    projects: BTreeMap<ProjectId, OfProject>,
    by_cid: BTreeMap<Cid, ProjectId>,
    loads: Arc<Loads>,
}

impl Registry {
    pub fn new(node: NodeId, worker: usize, workers: usize, loads: Arc<Loads>) -> Self {
        let (projects, by_cid) = (BTreeMap::new(), BTreeMap::new());
        Self { node, worker, workers, projects, by_cid, loads }
    }

    pub fn insert(&mut self, server: Server) {
        self.remove(server.cid);
        self.by_cid.insert(server.cid, server.project);
        let known =
            Known { server, distance: self.distance(server.cid), load: self.loads.of(server.cid) };
        let project = self.projects.entry(server.project).or_default();
        match known.server.events.meets(EventSet::REQUEST) {
            true => project.list.insert(project.takers, known),
            false => project.list.push(known),
        }
        project.look_again();
    }

    /// Removes a business server. Returns whether it was known.
    pub fn remove(&mut self, cid: Cid) -> bool {
        let Some(id) = self.by_cid.remove(&cid) else { return false };
        if let Some(project) = self.projects.get_mut(&id) {
            project.list.retain(|known| known.server.cid != cid);
            project.look_again();
            if project.list.is_empty() {
                self.projects.remove(&id);
            }
        }
        true
    }

    /// Removes all business servers of a node, in one pass over the known ones, and returns them.
    pub fn remove_node(&mut self, node: NodeId) -> Vec<Cid> {
        let is_its = |cid: Cid| SnowflakeClock::node_of(cid.0) == node;
        let removed: Vec<Cid> = self.by_cid.keys().copied().filter(|&cid| is_its(cid)).collect();
        if removed.is_empty() {
            return removed;
        }
        self.by_cid.retain(|&cid, _| !is_its(cid));
        self.projects.retain(|_, project| {
            project.list.retain(|known| !is_its(known.server.cid));
            project.look_again();
            !project.list.is_empty()
        });
        removed
    }

    pub fn len(&self) -> usize {
        self.by_cid.len()
    }

    pub fn is_empty(&self) -> bool {
        self.by_cid.is_empty()
    }

    /// Events wanted by business servers of the project that are not on this worker.
    pub fn wanted_elsewhere(&self, project: ProjectId) -> EventSet {
        self.projects.get(&project).map_or(EventSet::NONE, |project| project.wanted_elsewhere)
    }

    /// Chooses the server that accepts requests and has the fewest in flight, the nearest of
    /// equals; servers equal in both take turns. `except`: not this one. If there are more than
    /// [`COMPARED`], it compares the next ones in turn, so that the cost of a request does not
    /// depend on their number.
    pub fn choose(&mut self, project: ProjectId, except: Option<Cid>) -> Option<Choice> {
        let project = self.projects.get_mut(&project)?;
        let count = project.takers;
        project.turn = (project.turn + 1) % count.max(1);
        let turn = project.turn;
        let in_turn = (0..count).map(|index| &project.list[(turn + index) % count]);
        let best = in_turn
            .filter(|known| Some(known.server.cid) != except)
            .take(COMPARED)
            .min_by_key(|known| (known.load.load(Relaxed), known.distance))?;
        Some(Choice { cid: best.server.cid, load: Arc::clone(&best.load) })
    }

    /// Whether this worker holds the connection.
    pub fn is_here(&self, cid: Cid) -> bool {
        self.distance(cid) == Distance::Here
    }

    fn distance(&self, cid: Cid) -> Distance {
        if SnowflakeClock::node_of(cid.0) != self.node {
            Distance::OtherNode
        } else if SnowflakeClock::worker_of(cid.0, self.workers) != self.worker {
            Distance::SameNode
        } else {
            Distance::Here
        }
    }
}

impl OfProject {
    fn look_again(&mut self) {
        let takes_requests = |known: &&Known| known.server.events.meets(EventSet::REQUEST);
        self.takers = self.list.iter().filter(takes_requests).count();
        let elsewhere = self.list.iter().filter(|known| known.distance != Distance::Here);
        let union = |set: EventSet, known: &Known| set.union(known.server.events);
        self.wanted_elsewhere = elsewhere.fold(EventSet::NONE, union);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Incarnation, WallMs};

    const SHOP: ProjectId = ProjectId(3);

    /// On node 1, which has two workers.
    fn registry(worker: usize, loads: &Arc<Loads>) -> Registry {
        Registry::new(NodeId::new(1).unwrap(), worker, 2, Arc::clone(loads))
    }

    fn cid(node: u16, worker: usize) -> Cid {
        Cid(SnowflakeClock::new(NodeId::new(node).unwrap(), worker, 2)
            .next(WallMs::new(5), &Incarnation::new(WallMs::new(5))))
    }

    fn server(cid: Cid, events: EventSet) -> Server {
        Server { cid, project: SHOP, events }
    }

    fn take(registry: &mut Registry) -> Cid {
        let choice = registry.choose(SHOP, None).unwrap();
        choice.load.fetch_add(1, Relaxed);
        choice.cid
    }

    #[test]
    fn the_least_busy_one_is_chosen_and_the_nearest_of_equals() {
        let loads = Arc::default();
        let mut registry = registry(0, &loads);
        let (here, near, far) = (cid(1, 0), cid(1, 1), cid(2, 0));
        assert!(registry.choose(SHOP, None).is_none());
        for cid in [far, near, here] {
            registry.insert(server(cid, EventSet::ALL));
        }
        let first: Vec<Cid> = (0..6).map(|_| take(&mut registry)).collect();
        assert_eq!(first, [here, near, far, here, near, far]);
        assert_eq!(registry.choose(SHOP, Some(here)).unwrap().cid, near);
        assert!(registry.remove(near) && !registry.remove(near));
        assert_eq!(registry.choose(SHOP, Some(here)).unwrap().cid, far);
        assert!(registry.choose(ProjectId(0), None).is_none());
    }

    #[test]
    fn a_nodes_workers_count_together() {
        let loads = Arc::default();
        let (mut one, mut other) = (registry(0, &loads), registry(1, &loads));
        let (first, second) = (cid(2, 0), cid(3, 0));
        for registry in [&mut one, &mut other] {
            registry.insert(server(first, EventSet::ALL));
            registry.insert(server(second, EventSet::ALL));
        }
        assert_ne!(take(&mut one), take(&mut other));
        assert_ne!(take(&mut one), take(&mut other));
        one.remove(first);
        other.remove(first);
        one.insert(server(first, EventSet::ALL));
        assert_eq!(take(&mut one), first, "a new life begins with nothing");
    }

    #[test]
    fn equals_take_turns() {
        let loads = Arc::default();
        let mut registry = registry(0, &loads);
        let far = [cid(2, 0), cid(3, 0), cid(4, 0)];
        far.iter().for_each(|&cid| registry.insert(server(cid, EventSet::ALL)));
        let mut chosen: Vec<Cid> =
            (0..3).map(|_| registry.choose(SHOP, None).unwrap().cid).collect();
        chosen.sort();
        assert_eq!(chosen, far);
    }

    #[test]
    fn of_very_many_all_have_their_turn() {
        let loads = Arc::default();
        let mut registry = registry(0, &loads);
        let count = 3 * COMPARED as u16;
        registry.insert(server(cid(1, 0), EventSet::CONNECT));
        (2..2 + count).for_each(|node| registry.insert(server(cid(node, 0), EventSet::ALL)));
        let mut chosen: Vec<Cid> = (0..count).map(|_| take(&mut registry)).collect();
        chosen.sort();
        chosen.dedup();
        assert!(chosen.len() > count as usize / 2, "{}", chosen.len());
        assert!(!chosen.contains(&cid(1, 0)), "it takes no requests");
    }

    #[test]
    fn what_is_wanted_elsewhere_follows_those_that_are_there() {
        let loads = Arc::default();
        let mut registry = registry(0, &loads);
        registry.insert(server(cid(1, 0), EventSet::ALL));
        assert_eq!(registry.wanted_elsewhere(SHOP), EventSet::NONE);
        registry.insert(server(cid(1, 1), EventSet::CONNECT));
        registry.insert(server(cid(2, 1), EventSet::DISCONNECT));
        let both = EventSet::CONNECT.union(EventSet::DISCONNECT);
        assert_eq!(registry.wanted_elsewhere(SHOP), both);
        assert!(registry.choose(SHOP, Some(cid(1, 0))).is_none(), "they take no requests");
        let node = NodeId::new(2).unwrap();
        assert_eq!(registry.remove_node(node), [cid(2, 1)]);
        assert!(registry.remove_node(node).is_empty() && !registry.remove(cid(2, 1)));
        assert_eq!(registry.wanted_elsewhere(SHOP), EventSet::CONNECT);
        assert!(!registry.is_empty());
    }
}
