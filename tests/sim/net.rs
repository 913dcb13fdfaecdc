//! The node and its surroundings: workers, the queues between them, sockets, and the clients and
//! business servers behind them.

mod reloads;
mod sending;
mod servers;
mod sockets;

use super::business::{Business, Said, Server, ip_of, random_events};
use super::checks::{Owed, Receiver, WallClock};
use super::model::{Model, Person, Push};
use super::{Rng, Simulation, now_of};
use std::collections::{BTreeMap, VecDeque};
use std::ops::ControlFlow;
use std::rc::Rc;
use std::sync::Arc;
use ws_cluster::state::active_config::ActiveConfig;
use ws_cluster::state::counters::{CLOSE_CAUSES, Counters, Drop, LostAnswer};
use ws_cluster::state::projects::{Project, ProjectId, Projects, SubscribePolicy};
use ws_cluster::state::servers::Loads;
use ws_cluster::state::settings::{Memory, Settings, Times};
use ws_cluster::state::subscriptions::{self, WorkerEvent};
use ws_cluster::state::{CloseCause, CloseRequest, Identity, Role, Sealed, Worker, WorkerConfig};
use ws_cluster::types::{Cid, ConnKey, Env, Incarnation, Limits, MessageId, NodeId, Now, WallMs};
use ws_cluster::wire::envelope::Envelope;
use ws_cluster::wire::sign::{Secret, sign_hex};
use ws_cluster::wire::websocket::{Inbound, Message, Rest, write_close};

const IDLE_MS: u64 = 2_000;
const PING_MS: u64 = 700;
/// The longest time between two ticks.
const LONGEST_STEP_MS: usize = 100;
const MAX_TAGS: usize = 6;
const MAX_CLIENTS: usize = 40;
const MAX_SERVERS: usize = 6;
const PIDS: [(&str, SubscribePolicy); 3] = [
    ("any", SubscribePolicy::Any),
    ("none", SubscribePolicy::None),
    ("signed", SubscribePolicy::Signed),
];
const UIDS: [&str; 5] = ["u0", "u1", "u 2", "ü3", "a user whose name does not fit in place"];
const TAGS: [&str; 8] = ["t0", "t1", "t2", "t3", "t\"4", "u0", "tag é", "t7"];
const DEVICES: [&str; 3] = ["", "ios", "web"];

/// What a client sent, in the order in which the server must handle it.
#[derive(Debug, Clone)]
enum Intent {
    Subscribe {
        id: Option<String>,
        tags: Vec<String>,
        is_allowed: bool,
    },
    Unsubscribe {
        id: Option<String>,
        tags: Vec<String>,
    },
    Answered {
        kind: &'static str,
        code: u64,
        id: Option<String>,
    },
    Request {
        number: usize,
    },
    /// Of a business server.
    Said(Said),
    Ping(Vec<u8>),
    Pong,
    Close(u16),
    Violation(u16),
}

struct Client {
    worker: usize,
    key: ConnKey,
    /// It is a business server.
    business: Option<Box<Server>>,
    connect_tags: Vec<String>,
    receiver: Receiver,
    /// Bytes that its socket still takes.
    window: usize,
    is_slow: bool,
    /// Answers pings.
    is_lively: bool,
    /// Some send was taken only in part.
    was_short: bool,
    /// Its socket broke.
    is_gone: bool,
    /// The server waits for room in its socket.
    is_blocked: bool,
    /// When the server decided to close it.
    closing_ms: Option<u64>,
    heard_ms: u64,
    /// Sent, but not read by the server.
    up: Vec<u8>,
    intents: VecDeque<Intent>,
    inbound: Option<Box<Inbound>>,
    has_said_goodbye: bool,
    /// A reload has removed its project.
    is_removed: bool,
    unsubscribes_sent: u64,
}

/// A message in flight to another worker.
struct Parcel {
    due_ms: u64,
    item: InboxItem,
}

enum InboxItem {
    Push {
        bytes: Vec<u8>,
        push: Rc<Push>,
        /// Clients whose subscription was acknowledged when the push was accepted.
        promised: Vec<(u64, u64)>,
    },
    Relay(Vec<u8>),
    Event(WorkerEvent),
}

struct SimWorker {
    worker: Worker,
    /// The configuration that it uses.
    active: ActiveConfig,
    counters: Arc<Counters>,
    /// The client in each slot, until it is released.
    slots: BTreeMap<u32, u64>,
    generation: u32,
    /// One queue from each other worker.
    inboxes: Vec<VecDeque<Parcel>>,
    /// What it knows of business servers of other workers.
    told: BTreeMap<u64, subscriptions::Server>,
    /// For each client elsewhere, the last event that was forwarded, and the next one.
    heard_events: BTreeMap<u64, usize>,
    /// Until then the queue to each worker is full; notices for it wait.
    full_until_ms: Vec<u64>,
    late: VecDeque<(usize, WorkerEvent)>,
    matched: u64,
    /// Pushes received by clients that have left.
    received: u64,
    closes: [u64; CLOSE_CAUSES.len()],
}

pub struct Node {
    rng: Rng,
    /// Time as everybody but the wall clock measures it.
    now_ms: u64,
    wall: WallClock,
    config: (usize, usize),
    /// The configuration in force, which workers take later.
    active: ActiveConfig,
    workers: Vec<SimWorker>,
    clients: BTreeMap<u64, Client>,
    model: Model,
    pushed: u64,
    business: Business,
    /// Requests in flight, counted by all workers.
    loads: Arc<Loads>,
    /// Events that business servers must have once everything has arrived: the server, the client
    /// and the event's sequence number.
    dues: Vec<(u64, u64, usize)>,
    is_ending: bool,
    log: VecDeque<String>,
}

impl Simulation for Node {
    fn new(seed: u64) -> Self {
        let mut rng = Rng(seed);
        let now_ms = 1_800_000_000_000 + rng.below(1_000) as u64;
        let workers = 1 + rng.below(4);
        let projects = PIDS.map(|(pid, subscribe)| Project {
            pid: pid.into(),
            secrets: vec![Secret::new(b"s")],
            allowed_origins: None,
            subscribe,
        });
        let projects = Arc::new(Projects::new(projects.into()).unwrap());
        let outbox_bytes = *rng.pick(&[2_000, 40_000, 1 << 20]);
        let worker_outbox_bytes = *rng.pick(&[6_000, 100_000, 1 << 24]);
        let server_outbox_bytes = *rng.pick(&[1_000, 1 << 20]);
        let request_timeout_ms = *rng.pick(&[300, 2_000, 10_000]);
        let loads = Arc::<Loads>::default();
        let incarnation = Arc::new(Incarnation::new(WallMs::new(1)));
        let settings = Arc::new(Settings {
            node: NodeId::new(200).unwrap(),
            workers,
            env: Env::Test,
            limits: Limits { message_bytes: 1_000, tags: MAX_TAGS, ..Limits::default() },
            times: Times {
                ping_interval_ms: PING_MS,
                idle_timeout_ms: IDLE_MS,
                request_timeout_ms,
                ..Times::default()
            },
            memory: Memory {
                outbox_bytes,
                worker_outbox_bytes,
                server_outbox_bytes,
                ..Memory::default()
            },
            idempotency_keys: 1_000,
            ..Settings::default()
        });
        let active = ActiveConfig { generation: 1, settings, projects };
        let core = |worker| {
            let counters = Arc::new(Counters::default());
            let config = WorkerConfig {
                settings: active.settings.clone(),
                worker,
                projects: active.projects.clone(),
                slots: 64,
                loads: loads.clone(),
                incarnation: incarnation.clone(),
                hash_keys: (seed, worker as u64),
                queue_needs: None,
                counters: counters.clone(),
            };
            SimWorker {
                worker: Worker::new(config, now_of(now_ms, now_ms)),
                active: active.clone(),
                counters,
                slots: BTreeMap::new(),
                generation: 0,
                inboxes: (0..workers).map(|_| VecDeque::new()).collect(),
                told: BTreeMap::new(),
                heard_events: BTreeMap::new(),
                full_until_ms: vec![0; workers],
                late: VecDeque::new(),
                matched: 0,
                received: 0,
                closes: [0; CLOSE_CAUSES.len()],
            }
        };
        let mut business = Business::default();
        business.requests.timeout_ms = request_timeout_ms;
        business.requests.has_slow_clients = true;
        Self {
            workers: (0..workers).map(core).collect(),
            active,
            rng,
            now_ms,
            wall: WallClock::steady(now_ms),
            config: (outbox_bytes, worker_outbox_bytes),
            clients: BTreeMap::new(),
            model: Model::default(),
            pushed: 0,
            business,
            loads,
            dues: Vec::new(),
            is_ending: false,
            log: VecDeque::new(),
        }
    }

    fn log(&self) -> &VecDeque<String> {
        &self.log
    }

    /// Returns the numbers of matches, deliveries and closes.
    fn totals(&self) -> Vec<u64> {
        let closes = |core: &SimWorker| core.closes.iter().sum();
        let total =
            |core: &SimWorker| [core.matched, core.counters.deliveries.value(), closes(core)];
        let business = &self.business;
        let mut totals = business.requests.outcomes.to_vec();
        totals.extend([business.heard, business.checked]);
        totals.extend(self.workers.iter().flat_map(total));
        totals
    }

    fn step(&mut self) {
        let worker = self.rng.below(self.workers.len());
        match self.rng.below(1_000) {
            0..600 => self.event(worker),
            600..850 => self.flush(worker),
            850..900 => self.pass_time(),
            900..940 => self.workers[worker].worker.check(),
            940..948 => self.vanish(),
            948..985 => self.change_pace(),
            985..987 => self.reload(),
            987..990 => self.take_config(worker),
            _ => self.quiesce(),
        }
    }

    /// Disconnects everybody, in one way or another; nothing may remain.
    fn end(&mut self) {
        self.quiesce();
        self.is_ending = true;
        if self.rng.chance(50) {
            self.note("shutdown".into());
            for worker in 0..self.workers.len() {
                let rng = &mut self.rng;
                let core = &mut self.workers[worker].worker;
                while core.close_clients(0, false, || rng.below(5_000) as u32) {}
                self.notice_closes(worker);
            }
            for worker in 0..self.workers.len() {
                while self.workers[worker].worker.close_servers(|| 1_000) {}
                self.notice_closes(worker);
            }
        } else {
            for cid in self.open_clients() {
                self.client(cid).is_gone = true;
                self.notice_break(cid);
            }
        }
        (0..self.workers.len()).for_each(|worker| self.flush(worker));
        assert!(self.clients.is_empty() && self.model.people.is_empty());
        self.forget_requests();
        for core in &self.workers {
            core.worker.check();
            assert_eq!(core.worker.connections(), 0);
            assert_eq!(core.counters.connections.value(), 0);
            assert_eq!(core.counters.outbox_bytes.value(), 0);
            let drops: u64 = Drop::ALL.iter().map(|(reason, _)| core.counters.drops(*reason)).sum();
            let delivered = core.counters.deliveries.value();
            assert_eq!(delivered, core.received, "not everything that counts as delivered was");
            assert_eq!(
                core.matched,
                delivered + drops,
                "a message is neither delivered nor dropped"
            );
        }
    }
}

impl Node {
    /// Performs one action that can happen at any time, even while a batch is being sent.
    fn event(&mut self, worker: usize) {
        match self.rng.below(100) {
            0..8 => self.connect(worker),
            8..10 => self.begin_server_pushes(worker),
            10..38 => self.send_something(),
            38..62 => self.read(worker),
            62..76 => self.push(worker),
            76..90 => self.deliver_parcels(worker, false),
            _ => self.write_blocked(worker),
        }
    }

    fn connect(&mut self, worker: usize) {
        if self.clients.len() >= MAX_CLIENTS {
            return;
        }
        let servers = self.clients.values().filter(|client| client.business.is_some()).count();
        let is_server = servers < MAX_SERVERS && self.rng.chance(15);
        let project = ProjectId(self.rng.below(PIDS.len()) as u32);
        if !self.serves(worker, project) {
            return;
        }
        let uid = *self.rng.pick(&UIDS);
        let device = *self.rng.pick(&DEVICES);
        let count = if is_server { 0 } else { self.rng.below(4) };
        let mut tags: Vec<&str> = Vec::new();
        for _ in 0..count {
            let tag = *self.rng.pick(&TAGS);
            if !tags.contains(&tag) {
                tags.push(tag);
            }
        }
        let role = match is_server {
            true => Role::Server(random_events(&mut self.rng)),
            false => Role::Client,
        };
        let now = self.now();
        let core = &mut self.workers[worker];
        let (session_exp, ip) = (0, ip_of(uid));
        let identity = Identity { project, uid, device, tags: &tags, session_exp, role, ip };
        let (key, Cid(cid)) = core.worker.handle_connect(identity, b"", now);
        assert!(core.slots.insert(key.slot, cid).is_none(), "slot {} is taken", key.slot);
        assert!(key.generation > core.generation, "a generation was given out twice");
        core.generation = key.generation;
        let pid = PIDS[project.0 as usize].0;
        let tags: Vec<String> = tags.into_iter().map(String::from).collect();
        self.note(format!("connect {cid} {pid} {uid} to {worker}, slot {}, {role:?}", key.slot));
        let client = Client {
            worker,
            key,
            business: None,
            connect_tags: tags.clone(),
            receiver: Receiver::new(cid, pid, 200),
            window: 0,
            is_slow: self.rng.chance(15),
            is_lively: self.rng.chance(80),
            was_short: false,
            is_gone: false,
            is_blocked: false,
            closing_ms: None,
            heard_ms: self.now_ms,
            up: Vec::new(),
            intents: VecDeque::new(),
            inbound: None,
            has_said_goodbye: false,
            is_removed: false,
            unsubscribes_sent: 0,
        };
        self.clients.insert(cid, client);
        match role {
            Role::Server(events) => self.enter_server(worker, cid, pid, events),
            Role::Client => {
                let (uid, device) = (uid.to_string(), device.to_string());
                let person = Person { worker, pid, uid, device, tags };
                self.enter_client(cid, person);
            }
        }
        self.notice_closes(worker);
    }

    /// Has the worker read from one of its sockets.
    fn read(&mut self, worker: usize) {
        let core = &self.workers[worker];
        let can_read = |client: &Client| {
            client.worker == worker
                && client.closing_ms.is_none()
                && !client.up.is_empty()
                && core.worker.wants_input(client.key.slot)
        };
        let ready: Vec<u64> =
            self.clients.iter().filter(|(_, c)| can_read(c)).map(|(cid, _)| *cid).collect();
        if ready.is_empty() {
            return;
        }
        let cid = *self.rng.pick(&ready);
        let most = if self.rng.chance(50) { usize::MAX } else { 1 + self.rng.below(20) };
        let client = self.client(cid);
        let slot = client.key.slot;
        let count = most.min(client.up.len());
        let mut fresh: Vec<u8> = client.up.drain(..count).collect();
        let mut inbound = client.inbound.take();
        let result = Inbound::read(&mut inbound, &mut fresh, 1_000, &mut |message| {
            self.handle_message(cid, slot, message)
        });
        if let Err(violation) = result {
            match self.client(cid).intents.pop_front() {
                Some(Intent::Violation(code)) => assert_eq!(code, violation.code),
                other => panic!("{violation} where {other:?} was sent"),
            }
            self.workers[worker].worker.handle_violation(slot, violation);
        }
        self.client(cid).inbound = inbound;
        self.notice_closes(worker);
    }

    fn handle_message(
        &mut self,
        cid: u64,
        slot: u32,
        mut message: Message<'_>,
    ) -> ControlFlow<Rest> {
        let now_ms = self.now_ms;
        let client = self.clients.get_mut(&cid).unwrap();
        client.heard_ms = now_ms;
        let worker = client.worker;
        let answer = |kind, code, id, tags| Owed::Answer { kind, code, id, tags };
        let owed = match client.intents.pop_front().expect("a message that nobody sent") {
            Intent::Subscribe { id, tags, is_allowed } => {
                let before = self.model.people[&cid].tags.clone();
                let all = is_allowed.then(|| self.model.subscribe(cid, &tags, MAX_TAGS)).flatten();
                self.tags_change(cid, &before);
                Some(answer("subscribe", u64::from(all.is_some()), id, all))
            }
            Intent::Unsubscribe { id, tags } => {
                let before = self.model.people[&cid].tags.clone();
                let left = self.model.unsubscribe(cid, &tags);
                let mut gone = tags;
                gone.retain(|tag| before.contains(tag));
                self.tags_go(cid, gone);
                Some(answer("unsubscribe", 1, id, Some(left)))
            }
            Intent::Request { number } => {
                return self.handle_request(cid, number, message);
            }
            Intent::Said(said) => {
                let business = client.business.as_mut().unwrap();
                if !business.is_read(&said, &mut self.business.requests, now_ms) {
                    message = Message::Pong(b"");
                }
                None
            }
            Intent::Answered { kind, code, id } => Some(answer(kind, code, id, None)),
            Intent::Ping(payload) => {
                assert_eq!(message, Message::Ping(&payload));
                Some(Owed::Pong(payload))
            }
            Intent::Pong => None,
            Intent::Close(code) => {
                assert_eq!(message, Message::Close(code));
                None
            }
            Intent::Violation(code) => panic!("{message:?} where a rule was broken: {code}"),
        };
        let is_asked = owed.is_some();
        self.client(cid).receiver.owed.extend(owed);
        let now = self.now();
        let wants_more = self.workers[worker].worker.handle_frame(slot, message, now);
        assert!(!is_asked || !self.workers[worker].worker.may_wait(), "an answer may be held");
        self.notice_closes(worker);
        if wants_more { ControlFlow::Continue(()) } else { ControlFlow::Break(Rest::Dropped) }
    }

    /// Delivers the parcels that are due; each queue in its order.
    fn deliver_parcels(&mut self, worker: usize, all: bool) {
        for from in 0..self.workers.len() {
            while let Some(parcel) = self.workers[worker].inboxes[from].front()
                && (all || (parcel.due_ms <= self.now_ms && self.rng.chance(80)))
                && let Some(parcel) = self.workers[worker].inboxes[from].pop_front()
            {
                match parcel.item {
                    InboxItem::Push { bytes, push, promised } => {
                        let envelope = Envelope::decode(&bytes).unwrap();
                        self.handle_envelope(worker, &envelope, &push, &promised);
                    }
                    InboxItem::Relay(bytes) => self.handle_relay(worker, &bytes),
                    InboxItem::Event(event) => self.handle_worker_event(worker, event),
                }
            }
        }
    }

    fn handle_envelope(
        &mut self,
        worker: usize,
        envelope: &Envelope<'_>,
        push: &Rc<Push>,
        promised: &[(u64, u64)],
    ) {
        let matching = self.model.matching(worker, push);
        for (cid, unsubscribes) in promised {
            let is_here = self.model.people.get(cid).is_some_and(|p| p.worker == worker);
            if is_here && self.clients[cid].unsubscribes_sent == *unsubscribes {
                assert!(matching.contains(cid), "{cid} was told that it would get this");
            }
        }
        for cid in &matching {
            self.client(*cid).receiver.owed.push_back(Owed::Push(push.clone()));
        }
        let now = self.now();
        let core = &mut self.workers[worker];
        let outcome = core.worker.handle_envelope(envelope, now);
        assert_eq!(outcome.matched, matching.len() as u64, "push {} matches {matching:?}", push.id);
        core.matched += outcome.matched;
        self.notice_closes(worker);
    }

    fn pass_time(&mut self) {
        (0..self.workers.len()).for_each(|worker| self.flush(worker));
        let step_ms = 1 + self.rng.below(LONGEST_STEP_MS) as u64;
        self.advance(step_ms, step_ms as i64);
        self.tick();
        if self.rng.chance(2) {
            let most_ms = *self.rng.pick(&[1_000, 3_600_000]);
            let step_ms = self.rng.below(2 * most_ms + 1) as i64 - most_ms as i64;
            self.note(format!("the wall clock is set by {step_ms} ms"));
            self.advance(0, step_ms);
            self.tick();
        }
        for (cid, client) in self.clients.iter().filter(|(_, c)| c.closing_ms.is_none()) {
            let silent_ms = self.now_ms - client.heard_ms;
            let longest_ms = IDLE_MS + IDLE_MS / 8 + 2 * LONGEST_STEP_MS as u64;
            assert!(silent_ms <= longest_ms, "{cid} is silent for {silent_ms} ms");
        }
    }

    fn advance(&mut self, ms: u64, wall_ms: i64) {
        self.now_ms += ms;
        let now_ms = self.wall.now_ms.saturating_add_signed(wall_ms);
        self.wall = WallClock { now_ms, latest_ms: self.wall.latest_ms.max(now_ms) };
    }

    fn now(&self) -> Now {
        now_of(self.now_ms, self.wall.now_ms)
    }

    fn tick(&mut self) {
        for worker in 0..self.workers.len() {
            let now = self.now();
            self.workers[worker].worker.handle_tick(now);
            self.notice_closes(worker);
            self.send_late(worker);
            self.check_waiting(worker);
        }
    }

    /// Breaks a client's socket; the server notices now or with its next send.
    fn vanish(&mut self) {
        let open = self.open_clients();
        if open.is_empty() {
            return;
        }
        let cid = *self.rng.pick(&open);
        self.note(format!("{cid} vanishes"));
        self.client(cid).is_gone = true;
        if self.rng.chance(50) {
            self.notice_break(cid);
        }
    }

    fn notice_break(&mut self, cid: u64) {
        let client = self.client(cid);
        let (worker, slot) = (client.worker, client.key.slot);
        self.workers[worker].worker.handle_disconnect(slot);
        self.notice_closes(worker);
    }

    fn change_pace(&mut self) {
        let open = self.open_clients();
        if !open.is_empty() {
            let cid = *self.rng.pick(&open);
            let client = self.client(cid);
            client.is_slow = !client.is_slow;
            client.window = 0;
        }
    }

    /// Lets everything in flight arrive: then every client has what it must have.
    fn quiesce(&mut self) {
        self.note("quiesce".into());
        let workers = self.workers.len();
        (0..workers).for_each(|worker| self.deliver_parcels(worker, true));
        loop {
            (0..workers).for_each(|worker| self.flush(worker));
            let open = self.open_clients();
            let blocked = open.into_iter().filter(|cid| self.clients[cid].is_blocked);
            let blocked: Vec<u64> = blocked.collect();
            self.begin_all_server_pushes();
            self.make_room();
            let is_calm = |core: &SimWorker| {
                !core.worker.has_output()
                    && !core.worker.has_broker_requests()
                    && !core.worker.has_server_pushes()
                    && core.inboxes.iter().all(|inbox| inbox.is_empty())
            };
            if blocked.is_empty() && self.workers.iter().all(is_calm) {
                break;
            }
            blocked.into_iter().for_each(|cid| self.write_outbox(cid, usize::MAX));
            (0..workers).for_each(|worker| self.deliver_parcels(worker, true));
        }
        let wall = self.wall;
        for client in self.clients.values_mut().filter(|c| !c.is_gone && c.closing_ms.is_none()) {
            client.receiver.assert_served(wall);
        }
        self.check_servers();
        self.workers.iter().for_each(|core| core.worker.check());
        for (worker, core) in self.workers.iter().enumerate() {
            let here = self.clients.values().filter(|client| client.worker == worker).count();
            assert_eq!(core.worker.connections(), here);
            assert_eq!(core.counters.connections.value(), here as u64);
        }
    }

    /// Handles connections that the worker closed by itself: from now on they receive nothing.
    fn notice_closes(&mut self, worker: usize) {
        let core = &mut self.workers[worker];
        let closes = std::array::from_fn(|cause| core.counters.closes(cause));
        if core.closes == closes {
            return;
        }
        let before = std::mem::replace(&mut core.closes, closes);
        let causes = (0..closes.len()).filter(|cause| closes[*cause] > before[*cause]);
        let causes: Vec<&str> = causes.map(|cause| CLOSE_CAUSES[cause]).collect();
        let is_closed = |(slot, cid): &(&u32, &u64)| {
            self.clients[cid].closing_ms.is_none() && !core.worker.is_open(**slot)
        };
        let closed = core.slots.iter().filter(is_closed).map(|(_, cid)| *cid);
        let mut closed: Vec<u64> = closed.collect();
        let count = closes.iter().sum::<u64>() - before.iter().sum::<u64>();
        assert_eq!(closed.len() as u64, count);
        // Business servers that were closed last were notified of those that were closed first.
        closed.sort_by_key(|cid| self.clients[cid].business.is_some());
        for cid in closed {
            self.client(cid).closing_ms = Some(self.now_ms);
            match self.model.people.remove(&cid) {
                Some(_) => self.client_goes(cid, &causes),
                None => self.business.end(cid, self.now_ms),
            }
        }
    }

    fn open_clients(&self) -> Vec<u64> {
        let open = self.clients.iter().filter(|(_, client)| client.closing_ms.is_none());
        open.map(|(cid, _)| *cid).collect()
    }

    fn client(&mut self, cid: u64) -> &mut Client {
        self.clients.get_mut(&cid).unwrap()
    }

    fn note(&mut self, line: String) {
        if self.log.is_empty() {
            let (workers, config) = (self.workers.len(), self.config);
            self.log.push_back(format!("{workers} workers, outbox budgets {config:?}"));
        }
        if self.log.len() > 80 {
            self.log.remove(1);
        }
        self.log.push_back(format!("{} {line}", self.now_ms));
    }
}
