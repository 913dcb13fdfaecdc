//! The node and its surroundings: workers, the queues between them, sockets and the clients behind
//! them.

mod sending;

use super::checks::{Owed, Receiver};
use super::model::{Model, Person, Push};
use super::{Rng, Simulation};
use std::collections::{BTreeMap, VecDeque};
use std::ops::ControlFlow;
use std::rc::Rc;
use std::sync::Arc;
use ws_cluster::state::counters::{CLOSE_CAUSES, Counters, Drop};
use ws_cluster::state::projects::{Project, ProjectId, Projects, SubscribePolicy};
use ws_cluster::state::{CloseCause, CloseRequest, Identity, Role, Sealed, Worker, WorkerConfig};
use ws_cluster::types::{Cid, ConnKey, Limits, MessageId, NodeId};
use ws_cluster::wire::envelope::Envelope;
use ws_cluster::wire::sign::{Secret, sign_hex};
use ws_cluster::wire::websocket::{Inbound, Message, write_close};

const IDLE_MS: u64 = 2_000;
/// The longest time between two ticks.
const LONGEST_STEP_MS: usize = 100;
const MAX_TAGS: usize = 6;
const MAX_CLIENTS: usize = 40;
const PIDS: [(&str, SubscribePolicy); 3] = [
    ("any", SubscribePolicy::Any),
    ("none", SubscribePolicy::None),
    ("signed", SubscribePolicy::Signed),
];
const UIDS: [&str; 5] = ["u0", "u1", "u 2", "ü3", "a user whose name does not fit in place"];
const TAGS: [&str; 8] = ["t0", "t1", "t2", "t3", "t\"4", "u0", "tag é", "t7"];
const DEVICES: [&str; 3] = ["", "ios", "web"];

/// What a client sent, in the order in which the server must come upon it.
#[derive(Debug, Clone)]
enum Intent {
    Subscribe { id: Option<String>, tags: Vec<String>, is_allowed: bool },
    Unsubscribe { id: Option<String>, tags: Vec<String> },
    Answered { kind: &'static str, code: u64, id: Option<String> },
    Ping(Vec<u8>),
    Pong,
    Close(u16),
    Violation(u16),
}

struct Client {
    worker: usize,
    key: ConnKey,
    connect_tags: Vec<String>,
    receiver: Receiver,
    /// Bytes that its socket still takes.
    window: usize,
    is_slow: bool,
    /// Answers pings.
    is_lively: bool,
    /// Some send was not taken whole.
    was_short: bool,
    /// Its socket broke.
    is_gone: bool,
    /// The server waits for room in its socket.
    is_blocked: bool,
    /// The server decided to close it, at that time.
    closing_ms: Option<u64>,
    heard_ms: u64,
    /// Sent, and not read by the server.
    up: Vec<u8>,
    intents: VecDeque<Intent>,
    inbound: Option<Box<Inbound>>,
    has_said_goodbye: bool,
    unsubscribes_sent: u64,
}

/// A message on its way to another worker.
struct Parcel {
    due_ms: u64,
    bytes: Vec<u8>,
    push: Rc<Push>,
    /// Who had it in writing, when the push was accepted, that they are subscribed.
    promised: Vec<(u64, u64)>,
}

struct Core {
    worker: Worker,
    counters: Arc<Counters>,
    /// Who is in which slot, until it is released.
    slots: BTreeMap<u32, u64>,
    generation: u32,
    /// One queue from each worker.
    inboxes: Vec<VecDeque<Parcel>>,
    matched: u64,
    /// Of clients that have left.
    received: u64,
    /// Rests of frames that were due to sockets that broke meanwhile.
    lost_rests: u64,
    closes: u64,
}

pub struct Node {
    rng: Rng,
    now_ms: u64,
    config: (usize, usize),
    cores: Vec<Core>,
    clients: BTreeMap<u64, Client>,
    model: Model,
    pushed: u64,
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
        let core = |worker| {
            let counters = Arc::new(Counters::default());
            let config = WorkerConfig {
                node: NodeId::new(200).unwrap(),
                worker,
                workers,
                projects: projects.clone(),
                limits: Limits { message_bytes: 1_000, tags: MAX_TAGS, ..Limits::default() },
                max_connections: 64,
                idle_timeout_ms: IDLE_MS,
                outbox_bytes,
                worker_outbox_bytes,
                server_outbox_bytes: 1 << 20,
                request_timeout_ms: 10_000,
                loads: Arc::default(),
                epoch: 1,
                echo: false,
                hash_keys: (seed, worker as u64),
                idempotency_keys: 1_000,
                hearing: None,
                counters: counters.clone(),
            };
            Core {
                worker: Worker::new(config, now_ms),
                counters,
                slots: BTreeMap::new(),
                generation: 0,
                inboxes: (0..workers).map(|_| VecDeque::new()).collect(),
                matched: 0,
                received: 0,
                lost_rests: 0,
                closes: 0,
            }
        };
        Self {
            cores: (0..workers).map(core).collect(),
            rng,
            now_ms,
            config: (outbox_bytes, worker_outbox_bytes),
            clients: BTreeMap::new(),
            model: Model::default(),
            pushed: 0,
            log: VecDeque::new(),
        }
    }

    fn log(&self) -> &VecDeque<String> {
        &self.log
    }

    /// What was matched, delivered and closed.
    fn totals(&self) -> Vec<u64> {
        let total = |core: &Core| [core.matched, core.counters.deliveries.value(), core.closes];
        self.cores.iter().flat_map(total).collect()
    }

    fn step(&mut self) {
        let worker = self.rng.below(self.cores.len());
        match self.rng.below(1_000) {
            0..600 => self.event(worker),
            600..850 => self.flush(worker),
            850..900 => self.pass_time(),
            900..940 => self.cores[worker].worker.check(),
            940..948 => self.vanish(),
            948..990 => self.change_pace(),
            _ => self.quiesce(),
        }
    }

    /// Everybody leaves, one way or the other, and nothing stays behind.
    fn end(&mut self) {
        self.quiesce();
        if self.rng.chance(50) {
            self.note("shutdown".into());
            for worker in 0..self.cores.len() {
                let rng = &mut self.rng;
                self.cores[worker].worker.handle_shutdown(|| rng.below(5_000) as u32);
                self.notice_closes(worker);
            }
        } else {
            for cid in self.open_clients() {
                self.client(cid).is_gone = true;
                self.notice_break(cid);
            }
        }
        (0..self.cores.len()).for_each(|worker| self.flush(worker));
        assert!(self.clients.is_empty() && self.model.people.is_empty());
        for core in &self.cores {
            core.worker.check();
            assert_eq!(core.worker.connections(), 0);
            assert_eq!(core.counters.connections.value(), 0);
            assert_eq!(core.counters.outbox_bytes.value(), 0);
            let drops: u64 = Drop::ALL.iter().map(|(reason, _)| core.counters.drops(*reason)).sum();
            let delivered = core.counters.deliveries.value();
            let received = core.received..=core.received + core.lost_rests;
            assert!(
                received.contains(&delivered),
                "{delivered} deliveries, received: {received:?}"
            );
            assert_eq!(
                core.matched,
                delivered + drops,
                "a message is neither delivered nor dropped"
            );
        }
    }
}

impl Node {
    /// One thing that can happen at any time, also while a batch is being sent.
    fn event(&mut self, worker: usize) {
        match self.rng.below(100) {
            0..8 => self.connect(worker),
            8..38 => self.send_something(),
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
        let project = self.rng.below(PIDS.len());
        let uid = *self.rng.pick(&UIDS);
        let device = *self.rng.pick(&DEVICES);
        let count = self.rng.below(4);
        let mut tags: Vec<&str> = Vec::new();
        for _ in 0..count {
            let tag = *self.rng.pick(&TAGS);
            if !tags.contains(&tag) {
                tags.push(tag);
            }
        }
        let core = &mut self.cores[worker];
        let identity = Identity {
            project: ProjectId(project as u32),
            uid,
            device,
            tags: &tags,
            session_exp: 0,
            role: Role::Client,
        };
        let (key, Cid(cid)) = core.worker.handle_connect(identity, b"", self.now_ms);
        assert!(core.slots.insert(key.slot, cid).is_none(), "slot {} is taken", key.slot);
        assert!(key.generation > core.generation, "a generation was given out twice");
        core.generation = key.generation;
        let pid = PIDS[project].0;
        let tags: Vec<String> = tags.into_iter().map(String::from).collect();
        let person =
            Person { worker, pid, uid: uid.into(), device: device.into(), tags: tags.clone() };
        assert!(self.model.people.insert(cid, person).is_none(), "client id {cid} came twice");
        let client = Client {
            worker,
            key,
            connect_tags: tags,
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
            unsubscribes_sent: 0,
        };
        self.note(format!("connect {cid} {pid} {uid} to {worker}, slot {}", key.slot));
        self.clients.insert(cid, client);
        self.notice_closes(worker);
    }

    /// The worker reads from one of its sockets.
    fn read(&mut self, worker: usize) {
        let core = &self.cores[worker];
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
            self.cores[worker].worker.handle_violation(slot, violation);
        }
        self.client(cid).inbound = inbound;
        self.notice_closes(worker);
    }

    fn handle_message(&mut self, cid: u64, slot: u32, message: Message<'_>) -> ControlFlow<()> {
        let now_ms = self.now_ms;
        let client = self.clients.get_mut(&cid).unwrap();
        client.heard_ms = now_ms;
        let worker = client.worker;
        let answer = |kind, code, id, tags| Owed::Answer { kind, code, id, tags };
        let owed = match client.intents.pop_front().expect("a message that nobody sent") {
            Intent::Subscribe { id, tags, is_allowed } => {
                let all = is_allowed.then(|| self.model.subscribe(cid, &tags, MAX_TAGS)).flatten();
                Some(answer("subscribe", u64::from(all.is_some()), id, all))
            }
            Intent::Unsubscribe { id, tags } => {
                Some(answer("unsubscribe", 1, id, Some(self.model.unsubscribe(cid, &tags))))
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
        client.receiver.owed.extend(owed);
        let wants_more = self.cores[worker].worker.handle_frame(slot, message, now_ms);
        self.notice_closes(worker);
        if wants_more { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    }

    /// The parcels that are due arrive; each queue in its order.
    fn deliver_parcels(&mut self, worker: usize, all: bool) {
        for from in 0..self.cores.len() {
            while let Some(parcel) = self.cores[worker].inboxes[from].front()
                && (all || (parcel.due_ms <= self.now_ms && self.rng.chance(80)))
                && let Some(parcel) = self.cores[worker].inboxes[from].pop_front()
            {
                let envelope = Envelope::decode(&parcel.bytes).unwrap();
                self.handle_envelope(worker, &envelope, &parcel.push, &parcel.promised);
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
        let core = &mut self.cores[worker];
        let outcome = core.worker.handle_envelope(envelope, self.now_ms);
        assert_eq!(outcome.matched, matching.len() as u64, "push {} matches {matching:?}", push.id);
        core.matched += outcome.matched;
        self.notice_closes(worker);
    }

    /// Sends the open batch and carries out the closes that follow it, until there is no more.
    fn flush(&mut self, worker: usize) {
        let mut sealed = Sealed::default();
        while self.cores[worker].worker.has_output() {
            self.cores[worker].worker.seal(&mut sealed);
            self.notice_closes(worker);
            for index in 0..sealed.len() {
                if self.rng.chance(15) {
                    self.event(worker);
                }
                if let Some(outgoing) = sealed.outgoing(index) {
                    let sent = self.send(worker, outgoing.slot, outgoing.bytes);
                    let core = &mut self.cores[worker];
                    match sent {
                        Some(written) => {
                            let whole = written == outgoing.bytes.len();
                            core.worker.handle_sent(&sealed, index, written, whole);
                        }
                        None => core.worker.handle_send_error(&sealed, index),
                    }
                    self.notice_closes(worker);
                }
            }
            for slot in self.cores[worker].worker.take_blocked() {
                let cid = self.cores[worker].slots[&slot];
                self.client(cid).is_blocked = true;
            }
            let closes = self.cores[worker].worker.finish(&mut sealed);
            self.notice_closes(worker);
            closes.into_iter().for_each(|close| self.carry_out_close(worker, close));
        }
    }

    /// What the socket in `slot` takes of `bytes`; `None`: it is broken.
    fn send(&mut self, worker: usize, slot: u32, bytes: &[u8]) -> Option<usize> {
        let cid = self.cores[worker].slots[&slot];
        let now_ms = self.now_ms;
        let fast_window = match self.rng.below(100) {
            0..85 => usize::MAX,
            85..95 => self.rng.below(bytes.len()),
            _ => 0,
        };
        let client = self.client(cid);
        if client.is_gone {
            return None;
        }
        if !client.is_slow {
            client.window = fast_window;
        }
        let taken = client.window.min(bytes.len());
        client.window -= taken;
        client.was_short |= taken < bytes.len();
        client.receiver.receive(&bytes[..taken], &client.connect_tags, now_ms);
        Some(taken)
    }

    fn carry_out_close(&mut self, worker: usize, request: CloseRequest) {
        let CloseRequest { slot, cause } = request;
        let core = &mut self.cores[worker];
        let cid = core.slots.remove(&slot).expect("a close of a free slot");
        let mut client = self.clients.remove(&cid).unwrap();
        let closing_ms = client.closing_ms.expect("a close that was never decided");
        match cause {
            CloseCause::Idle => {
                assert!(closing_ms - client.heard_ms >= IDLE_MS, "closed too early")
            }
            CloseCause::SlowConsumer => {
                assert!(client.was_short, "closed as slow though it took everything");
            }
            CloseCause::Gone => assert!(client.is_gone),
            CloseCause::Peer(_) | CloseCause::Violation(_) => assert!(client.has_said_goodbye),
            CloseCause::GoingAway { .. } => {}
            CloseCause::SessionExpired => panic!("no connection here has a session_exp"),
        }
        let released = core.worker.release(slot, cause);
        assert_eq!(released.generation, client.key.generation);
        let is_told = !client.is_gone && cause != CloseCause::Gone;
        if is_told {
            let mut last = released.rest;
            write_close(&mut last, cause.code().unwrap(), "");
            client.receiver.receive(&last, &client.connect_tags, self.now_ms);
            assert_eq!(client.receiver.close_code, cause.code());
        } else if cause != CloseCause::Gone && !released.rest.is_empty() {
            core.lost_rests += 1;
        }
        client.receiver.end(!is_told);
        core.received += client.receiver.pushes;
        self.note(format!("{cid} closed: {cause:?}"));
    }

    /// A socket that was full has room again.
    fn write_blocked(&mut self, worker: usize) {
        let is_blocked = |c: &Client| c.worker == worker && c.is_blocked && c.closing_ms.is_none();
        let blocked: Vec<u64> =
            self.clients.iter().filter(|(_, c)| is_blocked(c)).map(|(cid, _)| *cid).collect();
        if blocked.is_empty() {
            return;
        }
        let cid = *self.rng.pick(&blocked);
        let room = match self.client(cid).is_slow {
            true => self.rng.below(600),
            false => usize::MAX,
        };
        self.write_outbox(cid, room);
    }

    fn write_outbox(&mut self, cid: u64, room: usize) {
        let now_ms = self.now_ms;
        let slices = 1 + self.rng.below(5);
        let client = self.clients.get_mut(&cid).unwrap();
        if client.is_gone {
            return self.notice_break(cid);
        }
        let core = &mut self.cores[client.worker];
        let mut bytes = Vec::new();
        if let Some(outbox) = core.worker.outbox(client.key.slot, now_ms) {
            outbox.slices(slices, |slice| bytes.extend_from_slice(slice));
            assert!(outbox.is_empty() || slices < 2 || !bytes.is_empty());
        }
        client.window = room;
        let taken = room.min(bytes.len());
        client.window -= taken;
        client.receiver.receive(&bytes[..taken], &client.connect_tags, now_ms);
        client.is_blocked = core.worker.handle_outbox_written(client.key.slot, taken);
        client.was_short |= client.is_blocked;
    }

    fn pass_time(&mut self) {
        (0..self.cores.len()).for_each(|worker| self.flush(worker));
        self.now_ms += 1 + self.rng.below(LONGEST_STEP_MS) as u64;
        for worker in 0..self.cores.len() {
            self.cores[worker].worker.handle_tick(self.now_ms);
            self.notice_closes(worker);
        }
        for (cid, client) in self.clients.iter().filter(|(_, c)| c.closing_ms.is_none()) {
            let silent_ms = self.now_ms - client.heard_ms;
            let longest_ms = IDLE_MS + IDLE_MS / 8 + 2 * LONGEST_STEP_MS as u64;
            assert!(silent_ms <= longest_ms, "{cid} is silent for {silent_ms} ms");
        }
    }

    /// A client's socket breaks; the server learns of it now or with its next send.
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
        self.cores[worker].worker.handle_disconnect(slot);
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

    /// Everything that is under way arrives: then every client has what it is owed.
    fn quiesce(&mut self) {
        self.note("quiesce".into());
        let workers = self.cores.len();
        (0..workers).for_each(|worker| self.deliver_parcels(worker, true));
        loop {
            (0..workers).for_each(|worker| self.flush(worker));
            let open = self.open_clients();
            let blocked = open.into_iter().filter(|cid| self.clients[cid].is_blocked);
            let blocked: Vec<u64> = blocked.collect();
            let is_calm = |core: &Core| {
                !core.worker.has_output() && core.inboxes.iter().all(|inbox| inbox.is_empty())
            };
            if blocked.is_empty() && self.cores.iter().all(is_calm) {
                break;
            }
            blocked.into_iter().for_each(|cid| self.write_outbox(cid, usize::MAX));
            (0..workers).for_each(|worker| self.deliver_parcels(worker, true));
        }
        let now_ms = self.now_ms;
        for client in self.clients.values_mut().filter(|c| !c.is_gone && c.closing_ms.is_none()) {
            client.receiver.assert_served(now_ms);
        }
        self.cores.iter().for_each(|core| core.worker.check());
        for (worker, core) in self.cores.iter().enumerate() {
            let here = self.model.people.values().filter(|person| person.worker == worker).count();
            assert_eq!(core.worker.connections(), here);
            assert_eq!(core.counters.connections.value(), here as u64);
        }
    }

    /// The worker closed somebody by itself: from now on nothing is for them.
    fn notice_closes(&mut self, worker: usize) {
        let core = &mut self.cores[worker];
        let closes = (0..CLOSE_CAUSES.len()).map(|cause| core.counters.closes(cause)).sum();
        if core.closes == closes {
            return;
        }
        let before = std::mem::replace(&mut core.closes, closes);
        let mut found = 0;
        for (slot, cid) in &core.slots {
            let client = self.clients.get_mut(cid).unwrap();
            if client.closing_ms.is_none() && !core.worker.is_open(*slot) {
                client.closing_ms = Some(self.now_ms);
                self.model.people.remove(cid);
                found += 1;
            }
        }
        assert_eq!(found, closes - before);
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
            let (workers, config) = (self.cores.len(), self.config);
            self.log.push_back(format!("{workers} workers, outbox budgets {config:?}"));
        }
        if self.log.len() > 80 {
            self.log.remove(1);
        }
        self.log.push_back(format!("{} {line}", self.now_ms));
    }
}
