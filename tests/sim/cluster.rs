//! The second simulation: nodes on one Redis. Brokers and workers are the shipping ones; Redis, the
//! links, the threads' queues, the clients and the pushers are simulated, and so are their faults:
//! links that break or fall silent, a Redis that stops, dies or refuses, nodes that die.
//!
//! What holds, whatever happens:
//! 1. a client gets a push at most once, and of pushes with one key within five minutes one;
//! 2. one pusher's pushes reach a client in order, also where a push was sent twice, and something
//!    later of the same pusher was published before the second time: who has missed it the first
//!    time misses it for good, and that is counted;
//! 3. a push reaches exactly the clients that match it (`core::Core::handle_envelope`);
//! 4. a push that was accepted, and was begun after a client had its welcome or its answer, reaches
//!    it, unless something happened to its node's links meanwhile, or Redis refused it first and
//!    the link was lost with that answer; then what did not come is counted, exactly (see `gaps`);
//! 5. a push has one outcome, and that is true: accepted ones were published, refused ones never
//!    were (see `truth`);
//! 6. who waits for a subscription is answered, at the latest when the loss of the link is noticed;
//! 7. links are not given up for nothing, a silent one is given up within two seconds, and after
//!    the last fault all nodes are ready soon;
//! 8. nothing stays behind of clients that have left, nor of pushes that were answered.

mod core;
mod gaps;
mod node;
mod redis;
mod truth;

use super::checks::{Owed, Receiver};
use super::model::{Model, Person, Push};
use super::rng::Rng;
use super::{Simulation, numbered_log};
use gaps::Missed;
use node::Node;
use redis::Redis;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use truth::{Certain, Record, Truth};
use ws_cluster::state::broker::Credentials;
use ws_cluster::state::projects::{Project, Projects, SubscribePolicy};
use ws_cluster::types::{MessageId, NodeId, Routing};
use ws_cluster::wire::envelope::Envelope;
use ws_cluster::wire::publication::ChannelNames;
use ws_cluster::wire::sign::Secret;

pub const LONGEST_STEP_MS: u64 = 60;
const MAX_TAGS: usize = 6;
const MAX_CLIENTS: usize = 12;
const PIDS: [&str; 2] = ["shop", "game"];
const UIDS: [&str; 6] = ["u0", "u1", "u 2", "ü3", "u:4", "a user whose name is not short"];
const TAGS: [&str; 5] = ["t0", "t1", "t2", "t\"3", "u0"];
const DEVICES: [&str; 3] = ["", "ios", "web"];
/// After the last fault all nodes are ready within this: a silent link is noticed, the longest
/// back-off and the next attempt.
const READY_AGAIN_MS: u64 = 8_000;
/// Numbers are repeated for a minute.
const QUIET_MS: u64 = 70_000;

/// What is the same in a whole run.
pub struct Setup {
    seed: u64,
    routing: Routing,
    projects: Arc<Projects>,
    names: ChannelNames,
    credentials: Credentials,
    /// Workers of each node.
    workers: Vec<usize>,
    /// One fault in so many steps; 0: none.
    calm_steps: usize,
}

/// Until when a link may be given up though nothing broke.
#[derive(Default)]
pub struct Excuses {
    slow_until_ms: u64,
    refused_until_ms: u64,
}

#[derive(Default)]
pub struct Log {
    now_ms: u64,
    lines: VecDeque<String>,
}

impl Log {
    pub fn note(&mut self, line: String) {
        numbered_log(&mut self.lines, 5000, self.now_ms % 1_000_000_000, line);
    }
}

/// All that is outside of the nodes.
pub struct World {
    rng: Rng,
    now_ms: u64,
    setup: Setup,
    redis: Redis,
    truth: Truth,
    excuses: Excuses,
    log: Log,
}

/// A backend with one connection to a worker of some node.
struct Pusher {
    number: usize,
    node: usize,
    worker: usize,
    epoch: u64,
    /// Does not wait for the outcome of one push before the next.
    is_pipelining: bool,
    last: Option<u64>,
}

pub struct Cluster {
    world: World,
    /// `None`: dead until then.
    nodes: Vec<Result<Node, u64>>,
    pushers: Vec<Pusher>,
    next_pusher: usize,
    pushed: u64,
    stalled_since_ms: Option<u64>,
    redis_down_until_ms: u64,
    refusing_until_ms: u64,
    pub losses: u64,
}

impl Simulation for Cluster {
    fn new(seed: u64) -> Self {
        let mut rng = Rng(seed);
        let now_ms = 1_800_000_000_000 + rng.below(1_000) as u64;
        let project = |pid: &str| Project {
            pid: pid.into(),
            secrets: vec![Secret::new(b"s")],
            allowed_origins: None,
            subscribe: SubscribePolicy::Any,
        };
        let password = rng.chance(30).then_some("secret");
        let (user, db) = (rng.pick(&["", "ann"]), rng.pick(&["", "/3"]));
        let user = if password.is_some() { *user } else { "" };
        let login = password.map(|password| format!("{user}:{password}@")).unwrap_or_default();
        let url = format!("redis://{login}redis{db}").parse().unwrap();
        let setup = Setup {
            seed,
            routing: *rng.pick(&[Routing::Project, Routing::User]),
            projects: Arc::new(
                Projects::new(PIDS.iter().map(|pid| project(pid)).collect()).unwrap(),
            ),
            names: ChannelNames::new("wsc"),
            credentials: Credentials { url },
            workers: (0..2 + rng.below(2)).map(|_| 1 + rng.below(3)).collect(),
            calm_steps: *rng.pick(&[0, 60, 150, 150, 400]),
        };
        let redis = Redis::new(rng.chance(70), password);
        let mut world = World {
            rng,
            now_ms,
            setup,
            redis,
            truth: Truth::default(),
            excuses: Excuses::default(),
            log: Log { now_ms, ..Log::default() },
        };
        let workers = world.setup.workers.clone();
        let line = format!("{workers:?} workers, {:?} routing", world.setup.routing);
        world.log.note(line);
        let nodes =
            workers.iter().enumerate().map(|(node, workers)| Ok(Node::new(node, *workers, &world)));
        Self {
            nodes: nodes.collect(),
            world,
            pushers: Vec::new(),
            next_pusher: 0,
            pushed: 0,
            stalled_since_ms: None,
            redis_down_until_ms: 0,
            refusing_until_ms: 0,
            losses: 0,
        }
    }

    fn step(&mut self) {
        let step_ms = match self.world.rng.below(100) {
            0..40 => 0,
            40..85 => self.world.rng.below(6),
            _ => self.world.rng.below(LONGEST_STEP_MS as usize),
        };
        self.pass(step_ms as u64);
        let calm_steps = self.world.setup.calm_steps;
        if calm_steps > 0 && self.world.rng.below(calm_steps) == 0 {
            self.fault();
        }
        if self.world.rng.below(1_500) == 0 {
            let idle_ms = *self.world.rng.pick(&[3_000, 10_000, 65_000]);
            self.world.log.note(format!("{idle_ms} ms without anything new"));
            self.pass_long(idle_ms);
        }
        for _ in 0..self.world.rng.below(4) {
            self.act();
        }
    }

    /// No more faults: what must have happened has happened, and nothing stays behind.
    fn end(&mut self) {
        self.world.log.note("no more faults".into());
        let end_ms = self.world.now_ms + READY_AGAIN_MS;
        self.redis_down_until_ms = self.world.now_ms;
        self.refusing_until_ms = self.world.now_ms;
        self.world.redis.stalled_until_ms = 0;
        self.nodes.iter_mut().filter_map(|node| node.as_mut().err()).for_each(|dead| *dead = 0);
        while !self.nodes.iter().flatten().all(|node| node.broker.is_ready())
            || self.nodes.iter().any(Result::is_err)
        {
            assert!(self.world.now_ms < end_ms, "some node is not ready");
            self.pass(20);
        }
        self.pass_long(QUIET_MS);
        self.check_missed(true);
        self.world.truth.published.check();
        for node in self.nodes.iter().flatten() {
            assert!(node.broker.is_ready());
            // A ping, a canary and a few tails.
            assert!(node.counters.pending_bytes.value() < 5_000);
            assert!(node.cores.iter().all(|core| !core.is_anybody_waiting()));
        }
        if self.world.rng.chance(30) {
            self.leave_all();
        }
    }

    fn log(&self) -> &VecDeque<String> {
        &self.world.log.lines
    }

    fn totals(&self) -> Vec<u64> {
        let truth = &self.world.truth;
        let mut totals = truth.outcomes.to_vec();
        totals.extend([truth.checked, self.world.redis.commands, self.losses]);
        for node in self.nodes.iter().flatten() {
            totals.extend(node.cores.iter().map(|core| core.counters.deliveries.value()));
            totals.extend(node.counters.missed().values());
        }
        totals
    }
}

impl Cluster {
    /// Time passes, and everybody does what is due.
    fn pass(&mut self, step_ms: u64) {
        let world = &mut self.world;
        for node in self.nodes.iter_mut().flatten().filter(|_| step_ms > 0) {
            (0..node.cores.len()).for_each(|worker| node.flush(worker, world));
        }
        world.now_ms += step_ms;
        let now_ms = world.now_ms;
        world.log.now_ms = now_ms;
        if now_ms >= self.redis_down_until_ms {
            world.redis.is_up = true;
        }
        if now_ms >= self.refusing_until_ms {
            world.redis.refused_percent = 0;
        }
        if now_ms >= world.redis.stalled_until_ms {
            self.stalled_since_ms = None;
        }
        world.redis.run(now_ms, &mut world.rng);
        for execution in world.redis.take_executions() {
            world.truth.handle_execution(&execution, &mut world.log);
        }
        for index in 0..self.nodes.len() {
            match &mut self.nodes[index] {
                Ok(node) => {
                    node.turn(world);
                    node.check(world, self.stalled_since_ms);
                }
                Err(until_ms) if *until_ms <= now_ms => {
                    world.log.note(format!("node {index} is back"));
                    let workers = world.setup.workers[index];
                    self.nodes[index] = Ok(Node::new(index, workers, world));
                }
                Err(_) => {}
            }
        }
        world.truth.check_waiting(now_ms);
        self.check_settled();
        if self.world.rng.chance(2) {
            self.check_missed(false);
        }
    }

    fn pass_long(&mut self, ms: u64) {
        let until_ms = self.world.now_ms + ms;
        while self.world.now_ms < until_ms {
            let step_ms = 1 + self.world.rng.below(LONGEST_STEP_MS as usize);
            self.pass(step_ms as u64);
        }
    }

    // What clients and pushers do.

    fn act(&mut self) {
        let index = self.world.rng.below(self.nodes.len());
        let Ok(node) = &mut self.nodes[index] else { return };
        let world = &mut self.world;
        let worker = world.rng.below(node.cores.len());
        let here: Vec<u64> = node.model.people.keys().copied().collect();
        match world.rng.below(100) {
            0..8 if here.len() < MAX_CLIENTS => node.connect(worker, world),
            8..11 if !here.is_empty() => {
                let cid = *world.rng.pick(&here);
                let worker = node.model.people[&cid].worker;
                node.disconnect(worker, cid, world);
            }
            11..20 if !here.is_empty() => {
                let cid = *world.rng.pick(&here);
                let worker = node.model.people[&cid].worker;
                node.cores[worker].hear_client(cid, world, &mut node.model);
            }
            20..22 => self.new_pusher(index, worker),
            _ => self.push_some(),
        }
    }

    fn new_pusher(&mut self, node: usize, worker: usize) {
        let Ok(Node { home, .. }) = &self.nodes[node] else { return };
        if self.pushers.len() >= 5 {
            self.pushers.remove(0);
        }
        self.next_pusher += 1;
        let is_pipelining = self.world.rng.chance(40);
        let (number, epoch) = (self.next_pusher, home.epoch);
        self.pushers.push(Pusher { number, node, worker, epoch, is_pipelining, last: None });
    }

    fn push_some(&mut self) {
        let nodes = &self.nodes;
        let lives =
            |one: &Pusher| nodes[one.node].as_ref().is_ok_and(|node| node.home.epoch == one.epoch);
        self.pushers.retain(lives);
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
        let Pusher { number: pusher_number, node: index, worker, .. } = self.pushers[pusher];
        let everybody: Vec<u64> = self.nodes.iter().flatten().flat_map(known_cids).collect();
        let Ok(node) = &mut self.nodes[index] else { return };
        let world = &mut self.world;
        let now_ms = world.now_ms;
        self.pushed += 1;
        let id = node.cores[worker].worker.next_message_id(now_ms).0;
        let (is_repeat, has_key) = (world.rng.chance(8), world.rng.chance(12));
        let mut group = None;
        let mut push = match world.truth.groups.len() {
            groups if is_repeat && groups > 0 => {
                let number = groups - 1 - world.rng.below(groups.min(4));
                group = Some(number);
                (*world.truth.groups[number].push).clone()
            }
            _ => random_push(&mut world.rng, &everybody, self.pushed),
        };
        (push.id, push.pusher, push.number) = (id, pusher_number, self.pushed);
        push.accepted_ms = now_ms;
        let push = Rc::new(push);
        let certain = certain_clients(&self.nodes, &push);
        let world = &mut self.world;
        if has_key && group.is_none() {
            group = Some(world.truth.new_group(&push, &certain, now_ms));
        }
        let key = group.map(|group| world.truth.groups[group].key);
        let Ok(node) = &mut self.nodes[index] else { return };
        let (epoch, origin) = (node.home.epoch, NodeId::new(node.home.number).unwrap());
        let targets = push.targets();
        let envelope = Envelope {
            origin,
            epoch,
            seq: 0,
            accepted_us: now_ms * 1_000,
            trace: None,
            id: MessageId(id),
            ttl_ms: push.ttl_ms,
            key: key.as_ref(),
            pid: push.pid,
            targets: targets.as_targets(),
            data: push.data.as_bytes(),
        };
        let (names, routing) = (world.setup.names.clone(), world.setup.routing);
        let mut publication = Default::default();
        fill(&mut publication, &names, routing, &envelope);
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
            certain,
            was_refused: false,
        };
        let ticket = world.truth.begin(record);
        world.log.note(format!("pusher {pusher_number}, ticket {ticket}, {group:?}: {push:?}"));
        self.pushers[pusher].last = Some(id);
        node.publish(worker, ticket, world, |publication| {
            fill(publication, &names, routing, &envelope);
        });
    }

    // Faults.

    fn fault(&mut self) {
        let index = self.world.rng.below(self.nodes.len());
        let world = &mut self.world;
        let now_ms = world.now_ms;
        match world.rng.below(100) {
            0..40 => {
                let Ok(node) = &mut self.nodes[index] else { return };
                let links = node.links();
                let Some(link) = links.get(world.rng.below(2)) else { return };
                world.log.note(format!("node {}: a link is cut", node.home.number));
                node.note_fault();
                world.redis.cut(*link, &mut world.rng);
            }
            40..55 => {
                let Ok(node) = &mut self.nodes[index] else { return };
                let links = node.links();
                if links.len() < 2 || node.deaf_since_ms.is_some() {
                    return;
                }
                world.log.note(format!("node {}: links fall silent", node.home.number));
                node.note_fault();
                node.deaf_since_ms = Some(now_ms);
                let which = world.rng.below(3);
                links
                    .iter()
                    .enumerate()
                    .filter(|(index, _)| *index != which)
                    .for_each(|(_, link)| world.redis.deafen(*link));
            }
            55..67 if world.redis.is_up => {
                let ms = world.rng.number() % *world.rng.pick(&[10, 3_000]);
                world.log.note(format!("redis dies for {ms} ms"));
                world.redis.die(&mut world.rng);
                self.redis_down_until_ms = now_ms + ms;
                self.stalled_since_ms = None;
                self.nodes.iter_mut().flatten().for_each(Node::note_fault);
            }
            67..80 if world.redis.is_up && self.stalled_since_ms.is_none() => {
                let ms = 50 + world.rng.number() % *world.rng.pick(&[300, 3_000]);
                world.log.note(format!("redis stops for {ms} ms"));
                world.redis.stalled_until_ms = now_ms + ms;
                self.stalled_since_ms = Some(now_ms);
                world.excuses.slow_until_ms = now_ms + ms + 1_500;
            }
            80..90 => {
                world.redis.refused_percent = 1 + world.rng.below(60);
                self.refusing_until_ms = now_ms + world.rng.number() % 300;
                world.excuses.refused_until_ms = self.refusing_until_ms + 1_500;
                world.log.note(format!("redis refuses {} %", world.redis.refused_percent));
            }
            _ => {
                let until_ms = now_ms + 5 + world.rng.number() % 1_500;
                if let Ok(node) = std::mem::replace(&mut self.nodes[index], Err(until_ms)) {
                    world.log.note(format!("node {} dies", node.home.number));
                    self.losses += node.losses;
                    node.die(world);
                }
            }
        }
    }

    // Checks.

    /// Who was to get a push that was accepted a while ago has it, unless its node was cut off.
    fn check_settled(&mut self) {
        while let Some(id) = self.world.truth.next_settled(self.world.now_ms) {
            let truth = &mut self.world.truth;
            let record = &truth.records[&id];
            for ((index, cid), unsubscribes) in &record.certain {
                let Ok(node) = &self.nodes[*index] else { continue };
                let client = node.cores.iter().find_map(|core| core.clients.get(cid));
                let begun_ms = match record.group {
                    Some(group) => truth.groups[group].first_ms,
                    None => record.begun_ms,
                };
                let was_clean = node.home.clean_since_ms.is_some_and(|since| since <= begun_ms);
                let Some(client) = client.filter(|one| one.unsubscribes == *unsubscribes) else {
                    continue;
                };
                if !was_clean || record.push.ttl_ms != 0 || record.was_refused {
                    continue;
                }
                let has_it = match record.group {
                    Some(group) => client.got_keys.contains_key(&group),
                    None => client.got.contains(&id),
                };
                let number = node.home.number;
                let (group, push) = (record.group, &record.push);
                assert!(has_it, "{cid} of node {number} never got key {group:?}, {push:?}");
                truth.checked += 1;
            }
        }
    }

    fn check_missed(&self, is_quiet: bool) {
        let epochs: Vec<(NodeId, u64)> = self.nodes.iter().flatten().map(life).collect();
        for node in self.nodes.iter().flatten() {
            let quiet = (&self.world.truth.published, &epochs[..]);
            let expected: Missed = node.heard.missed(is_quiet.then_some(quiet));
            node.check_missed(&expected);
        }
    }

    /// A minute after the last client has left nothing is heard any more but oneself.
    fn leave_all(&mut self) {
        for node in self.nodes.iter_mut().flatten() {
            let here: Vec<(u64, usize)> =
                node.model.people.iter().map(|(cid, person)| (*cid, person.worker)).collect();
            for (cid, worker) in here {
                node.disconnect(worker, cid, &mut self.world);
            }
        }
        self.pass_long(62_000);
        for node in self.nodes.iter().flatten() {
            assert_eq!(node.heard.len(), 0);
            assert_eq!(node.counters.channels.value(), 2);
            assert_eq!(self.world.redis.channels(node.home.node), 2);
        }
    }
}

fn fill(
    publication: &mut ws_cluster::wire::publication::Publication,
    names: &ChannelNames,
    routing: Routing,
    envelope: &Envelope<'_>,
) {
    publication.add_message(names, routing, envelope);
}

fn life(node: &Node) -> (NodeId, u64) {
    (NodeId::new(node.home.number).unwrap(), node.home.epoch)
}

fn known_cids(node: &Node) -> Vec<u64> {
    node.model.people.keys().copied().collect()
}

/// Who has it in writing that they will get this.
fn certain_clients(nodes: &[Result<Node, u64>], push: &Push) -> Certain {
    let mut certain = Certain::new();
    for (index, node) in nodes.iter().enumerate() {
        let Ok(node) = node else { continue };
        for (cid, client) in node.cores.iter().flat_map(|core| &core.clients) {
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

fn random_push(rng: &mut Rng, everybody: &[u64], number: u64) -> Push {
    let names = |rng: &mut Rng, percent, from: &[&str]| {
        rng.chance(percent).then(|| {
            let count = if rng.chance(4) { 0 } else { 1 + rng.below(3) };
            (0..count).map(|_| rng.pick(from).to_string()).collect::<Vec<String>>()
        })
    };
    // Those of one node have a channel of their own.
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
    let filler = "x".repeat(if rng.chance(90) { rng.below(60) } else { rng.below(3_000) });
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
