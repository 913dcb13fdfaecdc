//! A worker of a node, and its clients. Their sockets take everything at once: slow clients are in
//! the other simulation, slow business servers in `servers`.

use super::servers::{PendingPush, Socket};
use super::truth::Truth;
use super::{DEVICES, History, Model, Owed, Person, Push, Receiver, UIDS, World};
use crate::business::{SentPush, ip_of};
use crate::checks::{WallClock, take_rest};
use crate::now_of;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use ws_cluster::state::broker::Outcome;
use ws_cluster::state::counters::Counters;
use ws_cluster::state::idempotency::REMEMBER_MS;
use ws_cluster::state::projects::ProjectId;
use ws_cluster::state::servers::Loads;
use ws_cluster::state::subscriptions::{BrokerRequest, Interest, Server, WorkerEvent};
use ws_cluster::state::{Admission, Identity, Role, Sealed, Worker};
use ws_cluster::types::{Cid, ConnKey, EventSet};
use ws_cluster::wire::envelope::Envelope;
use ws_cluster::wire::publication::Publication;
use ws_cluster::wire::websocket::Message;

/// A message from a broker to a worker.
pub enum InboxItem {
    Deliver(Rc<[u8]>),
    Relay(Rc<[u8]>),
    Event(WorkerEvent),
    Answer(u32, Outcome),
    Ready(Interest),
    Canary,
}

/// A message from a worker to its broker.
pub enum ToBroker {
    Publish(Publication, u32),
    Request(BrokerRequest),
    CanarySeen,
}

pub struct Client {
    pub key: ConnKey,
    connect_tags: Vec<String>,
    pub receiver: Receiver,
    pub unsubscribes: u64,
    /// Ids of pushes received.
    pub got: BTreeSet<u64>,
    /// When it received a push, by key.
    pub got_keys: BTreeMap<usize, u64>,
}

/// A waiting handshake.
#[derive(Clone)]
pub struct Guest {
    pub project: usize,
    pub uid: &'static str,
    pub device: &'static str,
    pub tags: Vec<String>,
    pub since_ms: u64,
    pub role: Role,
}

/// What a worker knows of its node.
#[derive(Clone, Copy)]
pub struct Home {
    pub node: usize,
    pub number: u16,
    pub epoch: u64,
    /// The time since which it cannot have missed anything.
    pub clean_since_ms: Option<u64>,
}

pub struct SimWorker {
    pub index: usize,
    pub worker: Worker,
    pub counters: Arc<Counters>,
    /// Requests in flight, counted by all workers of the node.
    pub loads: Arc<Loads>,
    pub slots: BTreeMap<u32, u64>,
    pub clients: BTreeMap<u64, Client>,
    pub servers: BTreeMap<u64, Socket>,
    /// Business servers of other workers that this one knows.
    pub told: BTreeMap<u64, Server>,
    /// For each client elsewhere, the last event that was forwarded, and the next one.
    pub heard_events: BTreeMap<u64, usize>,
    /// Pushes of business servers that wait for the queue, in order.
    pub begun: VecDeque<PendingPush>,
    /// Pushes of business servers that have left, which their worker may have read.
    pub orphans: Vec<SentPush>,
    waiting: Vec<(Interest, Guest)>,
    pub to_broker: VecDeque<ToBroker>,
    /// From the broker.
    pub inbox: VecDeque<(u64, InboxItem)>,
    /// When a push first arrived here, by key.
    keys: BTreeMap<usize, u64>,
}

impl SimWorker {
    pub fn new(index: usize, worker: Worker, counters: Arc<Counters>, loads: Arc<Loads>) -> Self {
        Self {
            index,
            worker,
            counters,
            loads,
            slots: BTreeMap::new(),
            clients: BTreeMap::new(),
            servers: BTreeMap::new(),
            told: BTreeMap::new(),
            heard_events: BTreeMap::new(),
            begun: VecDeque::new(),
            orphans: Vec::new(),
            waiting: Vec::new(),
            to_broker: VecDeque::new(),
            inbox: VecDeque::new(),
            keys: BTreeMap::new(),
        }
    }

    // Clients.

    pub fn connect(&mut self, world: &mut World, model: &mut Model, home: Home) {
        let rng = &mut world.rng;
        let mut tags: Vec<String> = Vec::new();
        for _ in 0..rng.below(3) {
            let tag = rng.pick(&super::TAGS).to_string();
            if !tags.contains(&tag) {
                tags.push(tag);
            }
        }
        let guest = Guest {
            project: rng.below(super::PIDS.len()),
            uid: UIDS[rng.below(UIDS.len())],
            device: DEVICES[rng.below(DEVICES.len())],
            tags,
            since_ms: world.now_ms,
            role: Role::Client,
        };
        self.try_handshake(guest, world, model, home);
    }

    pub fn try_handshake(
        &mut self,
        guest: Guest,
        world: &mut World,
        model: &mut Model,
        home: Home,
    ) {
        let project = ProjectId(guest.project as u32);
        let tags: Vec<&str> = guest.tags.iter().map(String::as_str).collect();
        let (uid, device, role) = (guest.uid, guest.device, guest.role);
        let (session_exp, ip) = (0, ip_of(uid));
        let identity = Identity { project, uid, device, tags: &tags, session_exp, role, ip };
        match self.worker.admit(&identity) {
            Admission::Now => {}
            Admission::After(interest) => return self.waiting.push((interest, guest)),
            Admission::Refused => panic!("{uid} is refused, and Redis refused nothing"),
        }
        let (key, Cid(cid)) = self.worker.handle_connect(identity, b"", world.now());
        let pid = super::PIDS[guest.project];
        world.log.note(format!(
            "node {} worker {}: {cid} {pid} {uid} connects, {role:?}",
            home.number, self.index
        ));
        self.slots.insert(key.slot, cid);
        if let Role::Server(events) = role {
            return self.enter_server(key, cid, (pid, events), world, home);
        }
        let client = Client {
            key,
            connect_tags: guest.tags.clone(),
            receiver: Receiver::new(cid, pid, home.number),
            unsubscribes: 0,
            got: BTreeSet::new(),
            got_keys: BTreeMap::new(),
        };
        assert!(self.clients.insert(cid, client).is_none(), "client id {cid} came twice");
        let (worker, uid, device) = (self.index, uid.to_string(), device.to_string());
        let life = History {
            pid,
            uid: uid.clone(),
            device: device.clone(),
            node: home.number,
            epoch: home.epoch,
            happenings: Vec::new(),
        };
        world.business.events.begin(cid, life);
        let detail = (!guest.tags.is_empty()).then(|| ("tags", json!(guest.tags)));
        self.happens(cid, EventSet::CONNECT, detail, world);
        self.notice_ends(world);
        model.people.insert(cid, Person { worker, pid, uid, device, tags: guest.tags });
    }

    /// Handles a message of a client.
    pub fn hear_client(&mut self, cid: u64, world: &mut World, model: &mut Model) {
        let tag = world.rng.pick(&super::TAGS).to_string();
        let (tags, had_it) = (vec![tag.clone()], model.people[&cid].tags.contains(&tag));
        let client = self.clients.get_mut(&cid).unwrap();
        let slot = client.key.slot;
        let (kind, code, all) = match world.rng.below(3) {
            0 => {
                client.unsubscribes += 1;
                ("unsubscribe", 1, Some(model.unsubscribe(cid, &tags)))
            }
            _ => {
                let all = model.subscribe(cid, &tags, super::MAX_TAGS);
                ("subscribe", u64::from(all.is_some()), all)
            }
        };
        let has_it = model.people[&cid].tags.contains(&tag);
        let text = json!({"type": kind, "tags": tags}).to_string();
        client.receiver.owed.push_back(Owed::Answer { kind, code, id: None, tags: all });
        let detail = Some(("tags", json!([tag])));
        match (had_it, has_it) {
            (false, true) => self.happens(cid, EventSet::SUBSCRIBE, detail, world),
            (true, false) => self.happens(cid, EventSet::UNSUBSCRIBE, detail, world),
            _ => {}
        }
        self.worker.handle_frame(slot, Message::Text(text.as_bytes()), world.now());
        self.notice_ends(world);
    }

    pub fn disconnect(&mut self, cid: u64, world: &mut World, model: &mut Model) {
        let slot = self.clients[&cid].key.slot;
        model.people.remove(&cid);
        let says_goodbye = world.rng.chance(30);
        let reason = if says_goodbye { "peer" } else { "gone" };
        self.happens(cid, EventSet::DISCONNECT, Some(("reason", json!(reason))), world);
        match says_goodbye {
            true => drop(self.worker.handle_frame(slot, Message::Close(1000), world.now())),
            false => self.worker.handle_disconnect(slot),
        }
        self.notice_ends(world);
        // What it must receive is sent before its slot is free.
    }

    /// Sends the open batch. The caller must already have forwarded this worker's requests to the
    /// broker.
    pub fn flush(&mut self, world: &mut World) {
        assert!(!self.worker.has_broker_requests());
        let mut sealed = Sealed::default();
        self.worker.match_more(world.now(), |_| {});
        self.worker.seal(&mut sealed);
        self.worker.lay_out(&mut sealed, usize::MAX);
        for index in sealed.part() {
            let Some(outgoing) = sealed.outgoing(index) else { continue };
            let (cid, bytes) = (self.slots[&outgoing.slot], outgoing.bytes);
            let taken = match self.clients.contains_key(&cid) {
                true => self.client_takes(cid, bytes, world),
                false => self.server_takes(cid, bytes, world),
            };
            self.worker.handle_sent(&sealed, index, taken, taken == bytes.len());
            self.notice_ends(world);
        }
        for slot in self.worker.take_blocked() {
            let cid = self.slots[&slot];
            self.servers.get_mut(&cid).expect("a client that is slow").is_blocked = true;
        }
        let closes = self.worker.finish(&mut sealed);
        self.notice_ends(world);
        for close in closes {
            let cid = self.slots.remove(&close.slot).unwrap();
            let released = self.worker.release(close.slot, close.cause);
            let generation = match self.clients.remove(&cid) {
                Some(client) => {
                    world.business.requests.forget_client(cid);
                    client.key.generation
                }
                None => self.end_server(cid, &close, &take_rest(released.rest), world).generation,
            };
            assert_eq!(released.generation, generation);
        }
    }

    fn client_takes(&mut self, cid: u64, bytes: &[u8], world: &mut World) -> usize {
        let client = self.clients.get_mut(&cid).unwrap();
        client.receiver.receive(bytes, &client.connect_tags, WallClock::steady(world.now_ms));
        for text in client.receiver.texts.drain(..) {
            let number = world.business.hear_answer(cid, &text, world.now_ms);
            world.answered.push(number);
        }
        bytes.len()
    }

    /// Checks that nothing is in flight to anybody, and that no handshake waits too long.
    pub fn check(&mut self, now_ms: u64) {
        if !self.worker.has_output() {
            let clients = self.clients.values_mut();
            clients.for_each(|client| client.receiver.assert_served(WallClock::steady(now_ms)));
            self.check_servers();
        }
        for (interest, guest) in &self.waiting {
            let waited_ms = now_ms - guest.since_ms;
            assert!(waited_ms <= 6_000, "a handshake waits {waited_ms} ms for {interest:?}");
        }
        self.worker.check();
    }

    pub fn is_anybody_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Refuses waiting handshakes from now on.
    pub fn send_guests_away(&mut self) {
        self.waiting.clear();
    }

    /// Returns whether the broker has received everything.
    pub fn has_told_all(&self) -> bool {
        self.to_broker.is_empty() && !self.worker.has_broker_requests()
    }

    // What the broker sends.

    pub fn handle_item(
        &mut self,
        item: InboxItem,
        world: &mut World,
        model: &mut Model,
        home: Home,
    ) {
        match item {
            InboxItem::Deliver(bytes) => {
                let envelope = Envelope::decode(&bytes).unwrap();
                self.handle_envelope(&envelope, world.now_ms, &world.truth, model);
                self.notice_ends(world);
            }
            InboxItem::Relay(parcel) => self.handle_parcel(&parcel, world, home),
            InboxItem::Event(event) => self.handle_worker_event(event, world, home),
            InboxItem::Answer(ticket, outcome) => {
                world.log.note(format!("node {}: ticket {ticket} {outcome:?}", home.number));
                world.truth.tell(home.node, home.epoch, ticket);
                self.finish_pushes(Some((ticket, outcome)), world);
            }
            InboxItem::Ready(interest) => {
                self.worker.handle_ready(&interest);
                let waiting = std::mem::take(&mut self.waiting);
                for (wanted, guest) in waiting {
                    match wanted == interest {
                        true => self.try_handshake(guest, world, model, home),
                        false => self.waiting.push((wanted, guest)),
                    }
                }
            }
            InboxItem::Canary => self.to_broker.push_back(ToBroker::CanarySeen),
        }
    }

    /// The core check: a worker does with a message exactly what the model does.
    fn handle_envelope(
        &mut self,
        envelope: &Envelope<'_>,
        now_ms: u64,
        truth: &Truth,
        model: &Model,
    ) {
        let id = envelope.id.0;
        let record = &truth.records[&id];
        assert!(
            matches!(record.outcome, None | Some((Outcome::Accepted | Outcome::Unknown, _))),
            "push {id} is {:?}, and is delivered",
            record.outcome
        );
        let part = part_of(&record.push, envelope);
        let mut matching = model.matching(self.index, &part);
        if let Some(group) = record.group {
            match self.keys.get(&group) {
                Some(first_ms) if now_ms - first_ms < REMEMBER_MS => matching.clear(),
                _ => drop(self.keys.insert(group, now_ms)),
            }
        }
        for cid in &matching {
            let client = self.clients.get_mut(cid).unwrap();
            assert_eq!(client.receiver.pid.as_bytes(), envelope.pid, "a push of another project");
            if !record.push.is_expired(now_ms) {
                assert!(client.got.insert(id), "client {cid} gets push {id} twice");
                if let Some(group) = record.group {
                    let before_ms = client.got_keys.insert(group, now_ms);
                    let is_over = |before_ms| now_ms - before_ms >= REMEMBER_MS;
                    assert!(before_ms.is_none_or(is_over), "{cid} gets key {group} twice");
                }
            }
            client.receiver.owed.push_back(Owed::Push(Rc::clone(&record.push)));
        }
        let outcome = self.worker.handle_envelope(envelope, now_of(now_ms, now_ms));
        assert_eq!(outcome.matched, matching.len() as u64, "push {id} matches {matching:?}");
    }
}

/// Returns the push as one of its commands carries it: with `--routing user`, one for each of its
/// users.
fn part_of(push: &Push, envelope: &Envelope<'_>) -> Push {
    let mut part = push.clone();
    assert_eq!(envelope.pid, push.pid.as_bytes());
    assert_eq!(envelope.data, push.data.as_bytes(), "the data is not what was pushed");
    assert_eq!((envelope.accepted_us, envelope.ttl_ms), (push.accepted_ms * 1_000, push.ttl_ms));
    let text = |uid: &[u8]| String::from_utf8(uid.to_vec()).unwrap();
    part.uids = envelope.targets.uids.map(|uids| uids.iter().map(text).collect());
    let targets = part.targets();
    assert_eq!(envelope.targets, targets.as_targets());
    for uid in part.uids.iter().flatten() {
        assert!(push.uids.as_ref().is_some_and(|uids| uids.contains(uid)));
    }
    part
}
