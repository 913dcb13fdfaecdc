//! Routes what a worker sends to others: to which workers of its node, or to the node's broker.
//!
//! The loop around a worker does the sending: `io::transport` with rings and links, the simulator
//! with queues in memory.

use super::projects::ProjectId;
use super::subscriptions::{BrokerRequest, Relay, To, Unsent, WorkerEvent};
use crate::types::{NodeId, SnowflakeClock};
use crate::wire::envelope::Targets;

/// Routes the output of one worker.
#[derive(Debug, Clone, Copy)]
pub struct Router {
    node: NodeId,
    worker: usize,
    workers: usize,
}

/// A set of workers of a node, at most 64.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WorkerSet(u64);

impl WorkerSet {
    /// One bit per worker.
    pub fn bits(self) -> u64 {
        self.0
    }

    pub fn contains(self, worker: usize) -> bool {
        self.0 >> worker & 1 == 1
    }
}

/// A message to other workers of a node that has no broker.
#[derive(Debug, PartialEq, Eq)]
pub enum WorkerMessage {
    /// Never lost: it waits for room.
    Event(WorkerEvent),
    /// Returned ([`Unsent::Full`]) if there is no room for it.
    Parcel(ProjectId, Relay),
}

/// What the queue accepts at this moment.
#[derive(Debug, Clone, Copy)]
pub struct QueueState {
    pub is_down: bool,
    /// The largest envelope that it carries.
    pub max_bytes: usize,
}

impl Router {
    /// For `worker`, one of `workers`.
    pub fn new(node: NodeId, worker: usize, workers: usize) -> Self {
        Self { node, worker, workers }
    }

    pub fn others(&self) -> WorkerSet {
        let all = u64::MAX >> (64 - self.workers.clamp(1, 64));
        WorkerSet(all & !(1 << self.worker))
    }

    /// Returns the other workers that may have a recipient of a push: a client id names its worker,
    /// any other target may be at all of them.
    pub fn others_with(&self, targets: &Targets<'_>) -> WorkerSet {
        let others = self.others();
        let Some(cids) = targets.cids else { return others };
        let holders = cids.iter().fold(0, |set, cid| set | 1 << self.holder_of(cid.0));
        WorkerSet(others.0 & holders)
    }

    /// Returns the worker of this node that issued a client id, if this node did.
    fn holder_of(&self, cid: u64) -> usize {
        SnowflakeClock::worker_of(cid, self.workers)
    }

    /// Without a broker: returns the message for another worker or, with `None`, for all others.
    /// Requests that concern only a broker return `None`.
    pub fn among_workers(&self, request: BrokerRequest) -> Option<(Option<usize>, WorkerMessage)> {
        let (to, message) = match request {
            BrokerRequest::ServerHere(server) => {
                (None, WorkerMessage::Event(WorkerEvent::ServerHere(server)))
            }
            BrokerRequest::ServerGone(cid) => {
                (None, WorkerMessage::Event(WorkerEvent::ServerGone(cid)))
            }
            BrokerRequest::ServerSeen(cid) => {
                let event = WorkerEvent::ServerKnown(cid);
                (Some(self.holder_of(cid.0)), WorkerMessage::Event(event))
            }
            BrokerRequest::Relay(relay) => {
                let (project, to) = match relay.to {
                    To::Holder { project, cid } => (project, Some(self.holder_of(cid.0))),
                    To::Events(project) => (project, None),
                };
                (to, WorkerMessage::Parcel(project, relay))
            }
            BrokerRequest::Join(_)
            | BrokerRequest::Leave(_)
            | BrokerRequest::UserHere(_)
            | BrokerRequest::UserGone(_) => return None,
        };
        Some((to, message))
    }

    /// With a broker: returns why it cannot relay the request; `None`: it gets it. What stays on
    /// this node does not need the queue.
    pub fn unsent(&self, request: &BrokerRequest, queue: QueueState) -> Option<Unsent> {
        let BrokerRequest::Relay(relay) = request else { return None };
        match relay.to {
            To::Holder { cid, .. } if SnowflakeClock::node_of(cid.0) == self.node => None,
            _ if relay.parcel.len() > queue.max_bytes => Some(Unsent::TooLarge),
            To::Holder { .. } if queue.is_down => Some(Unsent::Down),
            // Events wait for the queue at the broker.
            To::Holder { .. } | To::Events(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::subscriptions::{Interest, Server};
    use crate::types::{Cid, EventSet};
    use crate::wire::envelope::CidsBuf;

    const PROJECT: ProjectId = ProjectId(3);

    fn node(number: u16) -> NodeId {
        NodeId::new(number).unwrap()
    }

    /// A client id issued by worker `worker` of 4 of a node.
    fn cid(of: u16, worker: u64) -> Cid {
        Cid(1 << 22 | u64::from(of) << 12 | worker << 10)
    }

    fn set(worker: usize, workers: usize, targets: &Targets<'_>) -> Vec<usize> {
        let set = Router::new(node(7), worker, workers).others_with(targets);
        (0..64).filter(|worker| set.contains(*worker)).collect()
    }

    fn relay(to: To) -> Relay {
        Relay { to, parcel: vec![0; 10] }
    }

    #[test]
    fn a_push_goes_to_others_that_may_have_a_target() {
        assert_eq!(set(1, 4, &Targets::default()), [0, 2, 3]);
        assert_eq!(set(63, 64, &Targets::default()).len(), 63);
        assert_eq!(set(0, 1, &Targets::default()), [0; 0]);
        let mut cids = CidsBuf::default();
        [3, 1, 3].into_iter().for_each(|worker| cids.push(cid(7, worker)));
        let targets = Targets { cids: Some(cids.as_cids()), ..Targets::default() };
        assert_eq!((set(0, 4, &targets), set(1, 4, &targets)), (vec![1, 3], vec![3]));
    }

    #[test]
    fn workers_without_a_broker_are_told_of_servers_and_get_parcels() {
        let router = Router::new(node(7), 0, 4);
        let route = |request| router.among_workers(request);
        let server = Server { cid: cid(7, 0), project: PROJECT, events: EventSet::CONNECT };
        let here = WorkerMessage::Event(WorkerEvent::ServerHere(server));
        assert_eq!(route(BrokerRequest::ServerHere(server)), Some((None, here)));
        let known = WorkerMessage::Event(WorkerEvent::ServerKnown(cid(7, 2)));
        assert_eq!(route(BrokerRequest::ServerSeen(cid(7, 2))), Some((Some(2), known)));
        for (to, worker) in [
            (To::Holder { project: PROJECT, cid: cid(7, 3) }, Some(3)),
            (To::Events(PROJECT), None),
        ] {
            let parcel = WorkerMessage::Parcel(PROJECT, relay(to));
            assert_eq!(route(BrokerRequest::Relay(relay(to))), Some((worker, parcel)));
        }
        assert_eq!(route(BrokerRequest::Join(Interest::Project(PROJECT))), None);
        assert_eq!(route(BrokerRequest::UserHere(1)), None);
    }

    #[test]
    fn a_parcel_needs_the_queue_only_for_other_nodes() {
        let router = Router::new(node(7), 0, 4);
        let why = |to, is_down, max_bytes| {
            router.unsent(&BrokerRequest::Relay(relay(to)), QueueState { is_down, max_bytes })
        };
        let here = To::Holder { project: PROJECT, cid: cid(7, 3) };
        let away = To::Holder { project: PROJECT, cid: cid(8, 3) };
        let events = To::Events(PROJECT);
        assert_eq!([here, away, events].map(|to| why(to, false, 10)), [None; 3]);
        assert_eq!(why(here, true, 9), None);
        assert_eq!((why(away, true, 10), why(events, true, 10)), (Some(Unsent::Down), None));
        let too_large = Some(Unsent::TooLarge);
        assert_eq!((why(away, true, 9), why(events, false, 9)), (too_large, too_large));
        let join = BrokerRequest::Join(Interest::Project(PROJECT));
        assert_eq!(router.unsent(&join, QueueState { is_down: true, max_bytes: 0 }), None);
    }
}
