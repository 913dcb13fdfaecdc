//! One worker of a node, and its clients. Their sockets take everything at once: slow ones are the
//! other simulation's.

use super::truth::Truth;
use super::{DEVICES, Model, Owed, Person, Push, Receiver, UIDS, World};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use ws_cluster::state::broker::Outcome;
use ws_cluster::state::counters::Counters;
use ws_cluster::state::idempotency::REMEMBER_MS;
use ws_cluster::state::projects::ProjectId;
use ws_cluster::state::wants::{Ask, Interest, Notice};
use ws_cluster::state::{Identity, Role, Sealed, Worker};
use ws_cluster::types::{Cid, ConnKey};
use ws_cluster::wire::envelope::Envelope;
use ws_cluster::wire::publication::Publication;
use ws_cluster::wire::websocket::Message;

/// What a broker tells a worker.
pub enum Word {
    Deliver(Rc<[u8]>),
    Relay(Rc<[u8]>),
    Notice(Notice),
    Answer(u32, Outcome),
    Ready(Interest),
    Canary,
}

/// What a worker tells its broker.
pub enum ToBroker {
    Publish(Publication, u32),
    Ask(Ask),
    CanarySeen,
}

pub struct Client {
    key: ConnKey,
    connect_tags: Vec<String>,
    pub receiver: Receiver,
    pub unsubscribes: u64,
    /// Ids of pushes.
    pub got: BTreeSet<u64>,
    /// When it got a push with which key.
    pub got_keys: BTreeMap<usize, u64>,
}

/// A handshake that waits.
#[derive(Clone)]
struct Guest {
    project: usize,
    uid: &'static str,
    device: &'static str,
    tags: Vec<String>,
    since_ms: u64,
}

/// What a worker knows of the node that it belongs to.
#[derive(Clone, Copy)]
pub struct Home {
    pub node: usize,
    pub number: u16,
    pub epoch: u64,
    /// Since when it can have missed nothing.
    pub clean_since_ms: Option<u64>,
}

pub struct Core {
    index: usize,
    pub worker: Worker,
    pub counters: Arc<Counters>,
    slots: BTreeMap<u32, u64>,
    pub clients: BTreeMap<u64, Client>,
    waiting: Vec<(Interest, Guest)>,
    pub to_broker: VecDeque<ToBroker>,
    /// From the broker.
    pub inbox: VecDeque<(u64, Word)>,
    /// When a push with which key was here first.
    keys: BTreeMap<usize, u64>,
}

impl Core {
    pub fn new(index: usize, worker: Worker, counters: Arc<Counters>) -> Self {
        Self {
            index,
            worker,
            counters,
            slots: BTreeMap::new(),
            clients: BTreeMap::new(),
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
        };
        self.try_handshake(guest, world, model, home);
    }

    fn try_handshake(&mut self, guest: Guest, world: &mut World, model: &mut Model, home: Home) {
        let project = ProjectId(guest.project as u32);
        let now_ms = world.now_ms;
        let tags: Vec<&str> = guest.tags.iter().map(String::as_str).collect();
        let (uid, device) = (guest.uid, guest.device);
        let identity =
            Identity { project, uid, device, tags: &tags, session_exp: 0, role: Role::Client };
        if let Some(interest) = self.worker.admit(&identity) {
            return self.waiting.push((interest, guest));
        }
        let (key, Cid(cid)) = self.worker.handle_connect(identity, b"", now_ms);
        let pid = super::PIDS[guest.project];
        world.log.note(format!("node {}: {cid} {pid} {uid} connects", home.number));
        self.slots.insert(key.slot, cid);
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
        model.people.insert(cid, Person { worker, pid, uid, device, tags: guest.tags });
    }

    /// A message of a client.
    pub fn hear_client(&mut self, cid: u64, world: &mut World, model: &mut Model) {
        let tags = vec![world.rng.pick(&super::TAGS).to_string()];
        let client = self.clients.get_mut(&cid).unwrap();
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
        let text = serde_json::json!({"type": kind, "tags": tags}).to_string();
        client.receiver.owed.push_back(Owed::Answer { kind, code, id: None, tags: all });
        self.worker.handle_frame(client.key.slot, Message::Text(text.as_bytes()), world.now_ms);
    }

    pub fn disconnect(&mut self, cid: u64, model: &mut Model) {
        let client = &self.clients[&cid];
        model.people.remove(&cid);
        self.worker.handle_disconnect(client.key.slot);
        // What it is owed is sent before its slot is free.
    }

    /// Sends what is owed. Whoever forwards this worker's asks must have done so.
    pub fn flush(&mut self, now_ms: u64) {
        assert!(!self.worker.has_asks());
        let mut sealed = Sealed::default();
        while self.worker.has_output() {
            self.worker.seal(&mut sealed);
            for index in 0..sealed.len() {
                let Some(outgoing) = sealed.outgoing(index) else { continue };
                let cid = self.slots[&outgoing.slot];
                let client = self.clients.get_mut(&cid).unwrap();
                client.receiver.receive(outgoing.bytes, &client.connect_tags, now_ms);
                let bytes = outgoing.bytes.len();
                self.worker.handle_sent(&sealed, index, bytes, true);
            }
            for close in self.worker.finish(&mut sealed) {
                let cid = self.slots.remove(&close.slot).unwrap();
                let client = self.clients.remove(&cid).unwrap();
                let released = self.worker.release(close.slot, close.cause);
                assert_eq!(released.generation, client.key.generation);
            }
        }
    }

    /// Nothing is under way to any client, and no handshake waits too long.
    pub fn check(&mut self, now_ms: u64) {
        if !self.worker.has_output() {
            let clients = self.clients.values_mut();
            clients.for_each(|client| client.receiver.assert_served(now_ms));
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

    // What the broker says.

    pub fn handle_word(&mut self, word: Word, world: &mut World, model: &mut Model, home: Home) {
        match word {
            Word::Deliver(bytes) => {
                let envelope = Envelope::decode(&bytes).unwrap();
                self.handle_envelope(&envelope, world.now_ms, &world.truth, model);
            }
            Word::Relay(parcel) => self.worker.handle_parcel(&parcel, world.now_ms),
            Word::Notice(notice) => self.worker.handle_notice(notice, world.now_ms),
            Word::Answer(ticket, outcome) => {
                world.log.note(format!("node {}: ticket {ticket} {outcome:?}", home.number));
                world.truth.tell(home.node, home.epoch, ticket);
            }
            Word::Ready(interest) => {
                self.worker.handle_ready(&interest);
                let waiting = std::mem::take(&mut self.waiting);
                for (wanted, guest) in waiting {
                    match wanted == interest {
                        true => self.try_handshake(guest, world, model, home),
                        false => self.waiting.push((wanted, guest)),
                    }
                }
            }
            Word::Canary => self.to_broker.push_back(ToBroker::CanarySeen),
        }
    }

    /// The heart: what a worker does with a message is exactly what the model says.
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
            assert_eq!(client.receiver.pid, envelope.pid, "a push of another project");
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
        let outcome = self.worker.handle_envelope(envelope, now_ms);
        assert_eq!(outcome.matched, matching.len() as u64, "push {id} matches {matching:?}");
    }
}

/// The push as one of its commands carries it: with `--routing user` one for each of its users.
fn part_of(push: &Push, envelope: &Envelope<'_>) -> Push {
    let mut part = push.clone();
    assert_eq!(envelope.pid, push.pid);
    assert_eq!(envelope.data, push.data.as_bytes(), "the data is not what was pushed");
    assert_eq!((envelope.accepted_us, envelope.ttl_ms), (push.accepted_ms * 1_000, push.ttl_ms));
    part.uids = envelope.targets.uids.map(|uids| uids.iter().map(String::from).collect());
    let targets = part.targets();
    assert_eq!(envelope.targets, targets.as_targets());
    for uid in part.uids.iter().flatten() {
        assert!(push.uids.as_ref().is_some_and(|uids| uids.contains(uid)));
    }
    part
}
