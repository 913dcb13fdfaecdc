//! Pushes from backends, over HTTP and over the connections of business servers.

use super::node::Node;
use super::truth::{Certain, Record};
use super::{Cluster, PIDS, Push, TAGS, UIDS};
use crate::rng::Rng;
use std::rc::Rc;
use ws_cluster::state::ServerPush;
use ws_cluster::types::{Limits, MessageId, NodeId, WallMs};
use ws_cluster::wire::envelope::Envelope;
use ws_cluster::wire::publication::Publication;
use ws_cluster::wire::{json, push as wire};

/// As in `io::server_pushes`.
const PUSHES_PER_TURN: usize = 256;

/// A backend with a connection to one worker of some node.
pub struct Pusher {
    number: usize,
    node: usize,
    worker: usize,
    epoch: u64,
    /// Does not wait for a push's outcome before the next.
    is_pipelining: bool,
    last: Option<u64>,
}

impl Cluster {
    pub fn new_pusher(&mut self, node: usize, worker: usize) {
        let Ok(Node { home, .. }) = &self.nodes[node] else { return };
        if self.pushers.len() >= 5 {
            self.pushers.remove(0);
        }
        self.next_pusher += 1;
        let is_pipelining = self.world.rng.chance(40);
        let (number, epoch) = (self.next_pusher, home.epoch);
        self.pushers.push(Pusher { number, node, worker, epoch, is_pipelining, last: None });
    }

    pub fn push_some(&mut self) {
        let nodes = &self.nodes;
        let histories =
            |one: &Pusher| nodes[one.node].as_ref().is_ok_and(|node| node.home.epoch == one.epoch);
        self.pushers.retain(histories);
        if self.pushers.is_empty() {
            return;
        }
        let index = self.world.rng.below(self.pushers.len());
        let pusher = &self.pushers[index];
        let records = &self.world.truth.records;
        let is_waiting = pusher.last.is_some_and(|last| !records[&last].is_told);
        if is_waiting && !pusher.is_pipelining {
            return;
        }
        let count = if pusher.is_pipelining { 1 + self.world.rng.below(5) } else { 1 };
        (0..count).for_each(|_| self.push(index));
    }

    fn push(&mut self, pusher: usize) {
        let Pusher { number, node, worker, .. } = self.pushers[pusher];
        if !self.nodes[node].as_ref().is_ok_and(|node| node.draining.is_none()) {
            return;
        }
        let (mut push, group) = self.new_push();
        push.pusher = number;
        let group = group.or_else(|| {
            let has_key = self.world.rng.chance(12);
            has_key.then(|| self.world.truth.new_group(&push))
        });
        let (id, _) = self.begin_push(node, worker, push, group);
        self.pushers[pusher].last = Some(id.0);
    }

    /// Returns a new push, or repeats one of the last that had a key.
    fn new_push(&mut self) -> (Push, Option<usize>) {
        let everybody: Vec<u64> = self.nodes.iter().flatten().flat_map(known_cids).collect();
        let world = &mut self.world;
        let groups = world.truth.groups.len();
        if world.rng.chance(8) && groups > 0 {
            let number = groups - 1 - world.rng.below(groups.min(4));
            return ((*world.truth.groups[number].push).clone(), Some(number));
        }
        // Some of these fill Redis's output buffer for a subscriber.
        let most_bytes = if world.redis.output_limit == 0 { 3_000 } else { 15_000 };
        (random_push(&mut world.rng, &everybody, self.pushed + 1, most_bytes), None)
    }

    /// Has a worker accept a push. Returns its id and its ticket.
    fn begin_push(
        &mut self,
        index: usize,
        worker: usize,
        mut push: Push,
        group: Option<usize>,
    ) -> (MessageId, u32) {
        let Ok(node) = &mut self.nodes[index] else { panic!("a push at a node that is dead") };
        let now_ms = self.world.now_ms;
        self.pushed += 1;
        let id = node.workers[worker].worker.next_message_id(WallMs::new(now_ms));
        (push.id, push.number, push.accepted_ms) = (id.0, self.pushed, now_ms);
        let push = Rc::new(push);
        let certain = certain_clients(&self.nodes, &push);
        let world = &mut self.world;
        let key = group.map(|group| world.truth.groups[group].key);
        let Ok(node) = &mut self.nodes[index] else { unreachable!() };
        let (epoch, origin) = (node.home.epoch, NodeId::new(node.home.number).unwrap());
        let targets = push.targets();
        let envelope = Envelope {
            origin,
            epoch,
            seq: 0,
            accepted_us: now_ms * 1_000,
            trace: None,
            id,
            ttl_ms: push.ttl_ms,
            key: key.as_ref(),
            pid: push.pid.as_bytes(),
            targets: targets.as_targets(),
            data: push.data.as_bytes(),
        };
        let mut publication = Publication::default();
        publication.add_message(&world.setup.names, world.setup.routing, &envelope);
        let channels = (0..publication.parts.len()).map(|part| publication.channel(part).to_vec());
        let record = Record {
            push: push.clone(),
            group,
            node: index,
            epoch,
            begun_ms: now_ms,
            outcome: None,
            is_told: false,
            parts: channels.map(|channel| (channel, 0)).collect(),
            widened: 0,
            certain,
            was_refused: false,
        };
        let ticket = world.truth.begin(record);
        world.log.note(format!("ticket {ticket}, {group:?}: {push:?}"));
        node.publish(worker, ticket, world, &envelope);
        (id, ticket)
    }

    // Over the connections of business servers.

    /// Has some of them push.
    pub fn push_of_server(&mut self, index: usize, worker: usize, server: u64) {
        let (mut push, group) = self.new_push();
        let world = &mut self.world;
        let Ok(node) = &mut self.nodes[index] else { return };
        let socket = node.workers[worker].servers.get_mut(&server).unwrap();
        if socket.is_closing || socket.server.welcomed_ms.is_none() {
            return;
        }
        // A key belongs to a project, and so does the group.
        if group.is_some() && push.pid != socket.server.profile.pid {
            return;
        }
        push.pid = socket.server.profile.pid;
        push.sort_selectors();
        let number = self.server_pushers.entry(server).or_insert_with(|| {
            self.next_pusher += 1;
            self.next_pusher
        });
        push.pusher = *number;
        let group = group.or_else(|| world.rng.chance(12).then(|| world.truth.new_group(&push)));
        let echo = world.rng.chance(70).then(|| format!("p\"{}", self.pushed));
        let text = socket.server.push(push, group, echo);
        node.workers[worker].push_of_server(server, text);
    }

    /// Begins the pushes that workers have read, as `io::server_pushes` does: several together, and
    /// no more before all of them are answered.
    pub fn begin_server_pushes(&mut self) {
        for index in 0..self.nodes.len() {
            let workers = self.nodes[index].as_ref().map_or(0, |node| node.workers.len());
            for worker in 0..workers {
                let Ok(node) = &mut self.nodes[index] else { break };
                if !node.workers[worker].begun.is_empty() {
                    continue;
                }
                for _ in 0..PUSHES_PER_TURN {
                    let Some(push) = self.nodes[index]
                        .as_mut()
                        .ok()
                        .and_then(|node| node.workers[worker].worker.take_server_push())
                    else {
                        break;
                    };
                    self.begin_server_push(index, worker, push);
                }
            }
        }
    }

    fn begin_server_push(&mut self, index: usize, worker: usize, push: ServerPush) {
        let Ok(node) = &mut self.nodes[index] else { return };
        let is_draining = node.draining.is_some();
        let (sent, group) = node.workers[worker].sent_push(&push);
        let message = push.message.clone();
        let members = json::members(&message).unwrap();
        let (read, _) = wire::Push::from_server(&members, &Limits::default()).unwrap();
        assert_eq!(read.targets.as_targets(), sent.targets().as_targets());
        assert_eq!((&*read.data, read.ttl_ms), (sent.data.as_bytes(), sent.ttl_ms));
        assert_eq!(read.idempotency_key.as_deref(), group.map(|it| it.to_string()).as_deref());
        let begun = (!is_draining).then(|| self.begin_push(index, worker, sent, group));
        let Ok(node) = &mut self.nodes[index] else { return };
        node.workers[worker].begin_push(push, begun, &mut self.world);
    }
}

fn known_cids(node: &Node) -> Vec<u64> {
    node.workers.iter().flat_map(|core| core.slots.values().copied()).collect()
}

/// Returns the clients that are guaranteed to get this.
fn certain_clients(nodes: &[Result<Node, u64>], push: &Push) -> Certain {
    let mut certain = Certain::new();
    for (index, node) in nodes.iter().enumerate() {
        let Ok(node) = node else { continue };
        for (cid, client) in node.workers.iter().flat_map(|core| &core.clients) {
            let tags = client.receiver.tags.as_deref();
            let person = node.model.people.get(cid);
            let is_certain = tags.zip(person).is_some_and(|(tags, person)| {
                push.is_for(*cid, person, tags) && push.is_for(*cid, person, &person.tags)
            });
            if is_certain {
                certain.insert((index, *cid), client.unsubscribes);
            }
        }
    }
    certain
}

fn random_push(rng: &mut Rng, everybody: &[u64], number: u64, most_bytes: usize) -> Push {
    let names = |rng: &mut Rng, percent, from: &[&str]| {
        rng.chance(percent).then(|| {
            let count = if rng.chance(4) { 0 } else { 1 + rng.below(3) };
            (0..count).map(|_| rng.pick(from).to_string()).collect::<Vec<String>>()
        })
    };
    // Those of one node have their own channel.
    let node_of = |cid: &u64| cid >> 12 & 1_023;
    let cids = |rng: &mut Rng, percent| {
        (rng.chance(percent) && !everybody.is_empty()).then(|| {
            let first = *rng.pick(everybody);
            let of_one = rng.chance(60);
            let mut list: Vec<u64> = (0..rng.below(5)).map(|_| *rng.pick(everybody)).collect();
            list.retain(|cid| !of_one || node_of(cid) == node_of(&first));
            list.push(first);
            list
        })
    };
    let filler = "x".repeat(if rng.chance(90) { rng.below(60) } else { rng.below(most_bytes) });
    let pid = *rng.pick(&PIDS);
    Push {
        id: 0,
        pid,
        uids: names(rng, 40, &[&UIDS[..], &["nobody"]].concat()),
        cids: cids(rng, 20),
        tags: names(rng, 25, &TAGS),
        devices: names(rng, 10, &["ios", "web"]),
        except_cids: cids(rng, 10),
        accepted_ms: 0,
        ttl_ms: if rng.chance(10) { 1 + rng.below(500) as u32 } else { 0 },
        pusher: 0,
        number,
        data: format!(r#"{{"pid":"{pid}","n":{number},"x":"{filler}"}}"#),
    }
}
