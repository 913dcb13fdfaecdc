//! The second simulation: several nodes on one Redis. Brokers and workers are the shipping ones;
//! Redis, the links, the threads' queues, the clients and the pushers are simulated, and so are
//! their faults: links that break or fall silent, a Redis that stops, dies or refuses, nodes that
//! die or shut down. What business servers must receive is in `business`; whether they receive it
//! is checked in `dues`.
//!
//! Invariants:
//! 1. a client gets a push at most once, and of pushes with one key within five minutes only one;
//! 2. one pusher's pushes reach a client in order. If a push was sent twice, and a later one of the
//!    same pusher was published in between, a client that missed the first copy never gets the
//!    push, and that is counted;
//! 3. a push reaches exactly the clients that match it (`core::SimWorker::handle_envelope`);
//! 4. an accepted push that began after a client had its welcome or its answer reaches that client,
//!    unless its node's links had a fault meanwhile, or Redis refused it first and the link was
//!    lost with that answer; then the missing ones are counted, exactly (see `gaps`);
//! 5. a push has one outcome, and it is true: accepted ones were published, refused ones never were
//!    (see `truth`);
//! 6. whoever waits for a subscription gets an answer, at the latest when the loss of the link is
//!    noticed;
//! 7. links are not given up without cause, a silent one is given up within two seconds, and after
//!    the last fault all nodes are soon ready;
//! 8. nothing remains of clients that have left, nor of answered pushes or requests;
//! 9. nodes soon know of each other and of each other's business servers, and no healthy node is
//!    declared lost (see `members`);
//! 10. an event of a client reaches the business servers elsewhere that its worker knows, unless
//!     their node's links had a fault, or Redis refused it (see `dues`); it is not published if
//!     nobody elsewhere subscribes to it;
//! 11. a request is refused only for cause (see `dues`);
//! 12. a message with sequence numbers that its node never issued changes nothing.

mod core;
mod dues;
mod gaps;
mod members;
mod node;
mod pushing;
mod redis;
mod servers;
mod truth;

use super::business::Business;
use super::business::events::History;
use super::checks::{Owed, Receiver};
use super::model::{Model, Person, Push};
use super::rng::Rng;
use super::{Simulation, now_of, numbered_log};
use dues::Due;
use gaps::Missed;
use node::Node;
use pushing::Pusher;
use redis::{Redis, random_output_limit};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use truth::Truth;
use ws_cluster::state::PendingRequests;
use ws_cluster::state::broker::Credentials;
use ws_cluster::state::counters::LostAnswer;
use ws_cluster::state::projects::{Project, Projects, SubscribePolicy};
use ws_cluster::types::{NodeId, Now, Routing};
use ws_cluster::wire::publication::ChannelNames;
use ws_cluster::wire::sign::Secret;

pub const LONGEST_STEP_MS: u64 = 60;
const MAX_TAGS: usize = 6;
const MAX_CLIENTS: usize = 12;
const MAX_SERVERS: usize = 4;
const PIDS: [&str; 2] = ["shop", "game"];
const UIDS: [&str; 6] = ["u0", "u1", "u 2", "ü3", "u:4", "a user whose name is not short"];
const TAGS: [&str; 5] = ["t0", "t1", "t2", "t\"3", "u0"];
const DEVICES: [&str; 3] = ["", "ios", "web"];
/// Time after the last fault within which all nodes are ready: a silent link is noticed, the
/// longest back-off passes, and the next attempt succeeds.
const READY_AGAIN_MS: u64 = 8_000;
/// Last sequence numbers are repeated for a minute.
const QUIET_MS: u64 = 70_000;

/// Settings of a whole run.
pub struct Setup {
    seed: u64,
    routing: Routing,
    projects: Arc<Projects>,
    names: ChannelNames,
    credentials: Credentials,
    /// Workers of each node.
    workers: Vec<usize>,
    /// Average number of steps between two faults; 0: none.
    calm_steps: usize,
    request_timeout_ms: u64,
    server_outbox_bytes: usize,
    /// Some clients send more requests than can be kept.
    has_floods: bool,
}

/// Until when a link may be given up although nothing broke.
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

/// Everything outside the nodes.
pub struct World {
    rng: Rng,
    now_ms: u64,
    setup: Setup,
    redis: Redis,
    /// Number of incarnations that followed another one.
    births: u64,
    truth: Truth,
    business: Business,
    /// Requests whose answers have reached their clients, still to be checked.
    answered: Vec<usize>,
    excuses: Excuses,
    /// When Redis last was away, stopped, refused something, or got a backlog held back because its
    /// output buffers are small; when it last refused.
    trouble_ms: u64,
    refused_ms: u64,
    log: Log,
}

impl World {
    fn now(&self) -> Now {
        now_of(self.now_ms, self.now_ms)
    }
}

pub struct Cluster {
    world: World,
    /// `Err`: dead until then.
    nodes: Vec<Result<Node, u64>>,
    /// When each node last died.
    died_ms: BTreeMap<usize, u64>,
    /// Incarnations that shut down: when they ended, and whether they sent everything.
    departures: BTreeMap<(usize, u64), (u64, bool)>,
    pushers: Vec<Pusher>,
    server_pushers: BTreeMap<u64, usize>,
    next_pusher: usize,
    pushed: u64,
    dues: Vec<Due>,
    /// Number of refused requests that were checked in detail.
    judged: u64,
    is_ending: bool,
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
            request_timeout_ms: *rng.pick(&[400, 2_500, 10_000]),
            has_floods: rng.chance(10),
            server_outbox_bytes: *rng.pick(&[2_000, 1 << 20, 1 << 20]),
        };
        let mut redis = Redis::new(rng.chance(70), password);
        // The requests of a flood would go out one by one.
        if !setup.has_floods && rng.chance(30) {
            redis.output_limit = random_output_limit(&mut rng);
        }
        let mut world = World {
            rng,
            now_ms,
            setup,
            redis,
            births: 0,
            truth: Truth::default(),
            business: Business::default(),
            answered: Vec::new(),
            excuses: Excuses::default(),
            trouble_ms: 0,
            refused_ms: 0,
            log: Log { now_ms, ..Log::default() },
        };
        world.business.requests.timeout_ms = world.setup.request_timeout_ms;
        let workers = world.setup.workers.clone();
        let line = format!("{workers:?} workers, {:?} routing", world.setup.routing);
        world.log.note(line);
        let nodes = workers
            .iter()
            .enumerate()
            .map(|(node, workers)| Ok(Node::new(node, *workers, 0, &world)));
        Self {
            nodes: nodes.collect(),
            world,
            died_ms: BTreeMap::new(),
            departures: BTreeMap::new(),
            pushers: Vec::new(),
            server_pushers: BTreeMap::new(),
            next_pusher: 0,
            pushed: 0,
            dues: Vec::new(),
            judged: 0,
            is_ending: false,
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

    /// Stops the faults: everything due must have happened, and nothing may remain.
    fn end(&mut self) {
        self.world.log.note("no more faults".into());
        self.is_ending = true;
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
        self.check_quiet();
        self.check_missed(true);
        self.world.truth.published.check();
        for node in self.nodes.iter().flatten() {
            assert!(node.broker.is_ready());
            // Room for a ping, a canary and a few tails.
            assert!(node.counters.pending_bytes.value() < 5_000);
            assert!(node.workers.iter().all(|core| !core.is_anybody_waiting()));
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
        let business = &self.world.business;
        totals.extend(business.requests.outcomes);
        totals.extend([business.heard, business.checked, self.judged, self.world.redis.crowded]);
        for node in self.nodes.iter().flatten() {
            totals.extend(node.workers.iter().map(|core| core.counters.deliveries.value()));
            totals.extend(node.counters.missed().values());
        }
        totals
    }
}

impl Cluster {
    /// Lets time pass, and everybody do what is due.
    fn pass(&mut self, step_ms: u64) {
        let world = &mut self.world;
        for node in self.nodes.iter_mut().flatten().filter(|_| step_ms > 0) {
            (0..node.workers.len()).for_each(|worker| node.flush(worker, world));
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
        if world.redis.refused_percent > 0 {
            (world.trouble_ms, world.refused_ms) = (now_ms, now_ms);
        }
        if !world.redis.is_up || now_ms < world.redis.stalled_until_ms {
            world.trouble_ms = now_ms;
        }
        world.redis.run(now_ms, &mut world.rng);
        for execution in world.redis.take_executions() {
            if let Some(parcel) = &execution.parcel {
                self.check_parcel(&execution.channel, parcel);
            }
            let world = &mut self.world;
            if world.redis.output_limit > 0 && world.truth.is_from_backlog(&execution, now_ms) {
                world.trouble_ms = now_ms;
            }
            world.truth.handle_execution(&execution, &mut world.log);
        }
        self.turn_nodes();
        self.begin_server_pushes();
        self.world.truth.check_waiting(now_ms);
        self.world.business.requests.check(now_ms);
        self.judge_answers();
        self.judge_losses();
        self.plan_events();
        self.check_dues();
        self.check_settled();
        if self.world.rng.chance(2) {
            self.check_missed(false);
            self.check_views();
            self.check_told();
        }
    }

    fn turn_nodes(&mut self) {
        let world = &mut self.world;
        let now_ms = world.now_ms;
        for index in 0..self.nodes.len() {
            match &mut self.nodes[index] {
                Ok(node) => {
                    node.turn(world);
                    node.check(world, self.stalled_since_ms);
                    if node.has_drained {
                        let has_told = node.broker.has_left() && node.broker.is_idle();
                        let epoch = node.home.epoch;
                        let ms = if self.is_ending { 0 } else { world.rng.number() % 1_500 };
                        self.end_node(index, now_ms + ms);
                        self.departures.insert((index, epoch), (now_ms, has_told));
                        return;
                    }
                }
                Err(until_ms) if *until_ms <= now_ms => {
                    world.log.note(format!("node {index} is back"));
                    let workers = world.setup.workers[index];
                    world.births += 1;
                    self.nodes[index] = Ok(Node::new(index, workers, world.births, world));
                }
                Err(_) => {}
            }
        }
    }

    /// Keeps a node dead until then.
    fn end_node(&mut self, index: usize, until_ms: u64) {
        let world = &mut self.world;
        if let Ok(node) = std::mem::replace(&mut self.nodes[index], Err(until_ms)) {
            world.log.note(format!("node {} dies", node.home.number));
            self.losses += node.losses;
            self.died_ms.insert(index, world.now_ms);
            node.die(world);
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
        if node.draining.is_some() {
            return;
        }
        let world = &mut self.world;
        let worker = world.rng.below(node.workers.len());
        let here: Vec<u64> = node.model.people.keys().copied().collect();
        let servers: Vec<(usize, u64)> = node
            .workers
            .iter()
            .flat_map(|core| core.servers.keys().map(|server| (core.index, *server)))
            .collect();
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
                node.workers[worker].hear_client(cid, world, &mut node.model);
            }
            20..22 => self.new_pusher(index, worker),
            22..24 if servers.len() < MAX_SERVERS => node.connect_server(worker, world),
            24 if !servers.is_empty() => {
                // Preferably one that has not read all of its requests.
                let is_slow = |(worker, server): &&(usize, u64)| {
                    node.workers[*worker].servers[server].is_blocked
                };
                let slow = servers.iter().find(is_slow).filter(|_| world.rng.chance(80));
                let (worker, server) = *slow.unwrap_or_else(|| world.rng.pick(&servers));
                if slow.is_some() || world.rng.chance(40) {
                    node.workers[worker].leave_server(server, world);
                }
            }
            25..50 if !servers.is_empty() => {
                let (worker, server) = *world.rng.pick(&servers);
                match world.rng.chance(15) {
                    true => self.push_of_server(index, worker, server),
                    false => (0..3).for_each(|_| node.workers[worker].hear_server(server, world)),
                }
            }
            50..62 if !here.is_empty() => {
                let cid = *world.rng.pick(&here);
                let worker = node.model.people[&cid].worker;
                node.workers[worker].request_something(cid, world, node.home);
            }
            _ => self.push_some(),
        }
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
                node.note_fault(now_ms);
                world.redis.cut(*link, &mut world.rng);
            }
            40..55 => {
                let Ok(node) = &mut self.nodes[index] else { return };
                let links = node.links();
                if links.len() < 2 || node.deaf_since_ms.is_some() {
                    return;
                }
                world.log.note(format!("node {}: links fall silent", node.home.number));
                node.note_fault(now_ms);
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
                self.nodes.iter_mut().flatten().for_each(|node| node.note_fault(now_ms));
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
            90..94 => {
                if let Ok(node) = &mut self.nodes[index] {
                    node.begin_drain(world);
                }
            }
            _ => {
                let most_ms = *world.rng.pick(&[1_500, 1_500, 12_000]);
                let until_ms = now_ms + 5 + world.rng.number() % most_ms;
                self.end_node(index, until_ms);
            }
        }
    }

    // Checks.

    /// Checks that the matching clients have a push that was accepted a while ago, unless their
    /// node was cut off.
    fn check_settled(&mut self) {
        while let Some(id) = self.world.truth.next_settled(self.world.now_ms) {
            let truth = &mut self.world.truth;
            let record = &truth.records[&id];
            for ((index, cid), unsubscribes) in &record.certain {
                let Ok(node) = &self.nodes[*index] else { continue };
                let client = node.workers.iter().find_map(|core| core.clients.get(cid));
                let begun_ms = match record.group {
                    Some(group) => truth.groups[group].first_ms.unwrap_or(record.begun_ms),
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

    /// Checks that nothing is in flight any more.
    fn check_quiet(&self) {
        let business = &self.world.business;
        assert!(business.requests.open.values().all(Vec::is_empty), "requests without an answer");
        self.check_views();
        self.check_told();
        for (node, core) in self.workers() {
            assert_eq!(core.worker.pending_requests(), PendingRequests::default());
            assert!(core.loads.in_flight().values().all(|load| *load == 0));
            assert!(core.begun.is_empty() && !core.worker.has_server_pushes());
            assert_eq!(core.counters.lost_answers(LostAnswer::Forged), 0);
            let elsewhere = self.workers().filter(|(other, holder)| {
                (other.home.node, holder.index) != (node.home.node, core.index)
            });
            let servers: usize = elsewhere.map(|(_, holder)| holder.servers.len()).sum();
            assert_eq!(core.told.len(), servers, "what node {} knows", node.home.number);
            for socket in core.servers.values() {
                assert!(socket.server.unknown_to == 0 && !socket.is_blocked && !socket.is_closing);
                assert!(socket.server.pushes.is_empty(), "pushes without an answer");
            }
        }
    }

    fn check_missed(&self, is_quiet: bool) {
        let epochs: Vec<(NodeId, u64)> = self.nodes.iter().flatten().map(incarnation).collect();
        for node in self.nodes.iter().flatten() {
            let quiet = (&self.world.truth.published, &epochs[..]);
            let expected: Missed = node.heard.missed(is_quiet.then_some(quiet));
            node.check_missed(&expected);
        }
    }

    /// A minute after the last client has left, a node subscribes only to its own channels.
    fn leave_all(&mut self) {
        for node in self.nodes.iter_mut().flatten() {
            let here: Vec<(u64, usize)> =
                node.model.people.iter().map(|(cid, person)| (*cid, person.worker)).collect();
            for (cid, worker) in here {
                node.disconnect(worker, cid, &mut self.world);
            }
            for core in &mut node.workers {
                let servers: Vec<u64> = core.servers.keys().copied().collect();
                servers.into_iter().for_each(|server| core.leave_server(server, &mut self.world));
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

fn incarnation(node: &Node) -> (NodeId, u64) {
    (NodeId::new(node.home.number).unwrap(), node.home.epoch)
}
