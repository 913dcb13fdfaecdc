//! `Worker`: the application logic, one instance per core.

mod events;
mod gone;
mod lifecycle;
mod messages;
mod outboxes;
mod pushes;
mod reload;
mod requests;
mod servers;
mod shutdown;
mod sweep;
#[cfg(test)]
mod tests;

use super::addresses::Addresses;
use super::batch::{Batch, CloseRequest, Sealed};
use super::budget::Budget;
use super::by_size::BySize;
use super::connection::{CloseCause, Connection, NONE};
use super::counters::{Counters, Drop};
use super::directory::Directory;
use super::idempotency::RememberedKeys;
use super::projects::{ProjectId, Projects};
use super::rest::{Rest, Rests};
use super::servers::{Loads, Registry};
use super::settings::Settings;
use super::subscriptions::{BrokerRequest, Interest, Subscriptions};
use crate::types::{
    Cid, ConnKey, EventSet, Incarnation, MessageId, MonotonicMs, Now, Routing, SnowflakeClock,
    WallMs,
};
use crate::wire::parcel::Sender;
use crate::wire::websocket::{Message, Violation};
use events::PendingEvents;
use fastwebsockets::OpCode;
use gone::ANSWERS_PER_SLICE;
use lifecycle::UsedIds;
use outboxes::{Owed, deliver};
use pushes::Pushes;
use reload::Removal;
use requests::Requests;
use servers::OwnServers;
use sweep::{CLOSES_PER_SLICE, Sweep};

pub use requests::Note;
pub use servers::ServerPush;
use slab::Slab;
use std::collections::{BTreeSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;

/// Parameters of a worker.
#[derive(Debug, Clone)]
pub struct WorkerConfig {
    pub settings: Arc<Settings>,
    /// This run of the node; shared with its other workers and its broker.
    pub incarnation: Arc<Incarnation>,
    /// This worker's index.
    pub worker: usize,
    pub projects: Arc<Projects>,
    /// Number of connections for which address space is reserved.
    pub slots: usize,
    /// Requests in flight by business server, shared by the node's workers.
    pub loads: Arc<Loads>,
    /// Seeds of the keyed hashes, unknown to peers.
    pub hash_keys: (u64, u64),
    /// `None`: the `local` queue, where everything accepted is received.
    pub queue_needs: Option<QueueNeeds>,
    pub counters: Arc<Counters>,
}

/// How a worker receives what other nodes accept.
#[derive(Debug, Clone, Copy)]
pub struct QueueNeeds {
    pub routing: Routing,
    /// Whether the users of its connections are announced to the broker, which then chooses between
    /// workers.
    pub announces_users: bool,
    /// Seeds of [`user_hash`], shared by the broker and all its workers.
    pub user_keys: (u64, u64),
}

/// Identity of a connection: the outcome of a handshake with a valid signature.
#[derive(Debug, Clone, Copy)]
pub struct Identity<'a> {
    pub project: ProjectId,
    pub uid: &'a str,
    /// Empty if none was given.
    pub device: &'a str,
    /// Valid, without duplicates, at most `limits.tags`.
    pub tags: &'a [&'a str],
    /// Unix seconds at which the session ends with 4003 unless refreshed; 0: never.
    pub session_exp: u64,
    pub role: Role,
    /// The client's address; `None` if it is unknown.
    pub ip: Option<IpAddr>,
}

/// Role of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Client,
    /// A business server, and the events it subscribes to.
    Server(EventSet),
}

/// Outcome of a push on this worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PushOutcome {
    /// Connections that it matches.
    pub matched: u64,
    /// It expired before it could be queued for them.
    pub is_expired: bool,
    /// Not all candidates were considered: [`Worker::match_more`] reports the outcome later.
    pub is_unfinished: bool,
}

/// Requests in progress at a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PendingRequests {
    /// Waiting requests of its clients.
    pub waiting: usize,
    /// Requests to its business servers: unanswered, and unwritten.
    pub asked: usize,
    pub unwritten: usize,
}

/// A connection removed from the slab: what its socket still needs.
#[derive(Debug)]
pub struct Released {
    pub generation: u32,
    /// The rest of a partly written frame: it precedes a Close frame.
    pub rest: Option<Rest>,
    /// It was waiting for its socket to become writable.
    pub was_blocked: bool,
}

/// One core's connections and the output queued for them.
///
/// Input goes in through `handle_*`, each call with the time `now` that the caller has read; these
/// methods write into the open batch. Then, while
/// [`Worker::has_output`]: [`Worker::match_more`], [`Worker::seal`] the batch; [`Worker::lay_out`]
/// a part of it, send each [`Sealed::outgoing`] of [`Sealed::part`] and report to
/// [`Worker::handle_sent`], until [`Sealed::is_last_part`]; then [`Worker::finish`] it and
/// [`Worker::release`] the slots of the closes it returns. A non-empty outbox is written whenever
/// its socket has room ([`Worker::outbox`], [`Worker::handle_outbox_written`]).
///
/// Invariant: a connection's bytes are sent in the order outbox, sealed batch, open batch. A
/// connection is in the directory exactly while its phase is open.
#[derive(Debug)]
pub struct Worker {
    config: WorkerConfig,
    outbox_limit: usize,
    connections: Slab<Connection>,
    /// The addresses of clients that have no room in their entry.
    addresses: Addresses,
    directory: Directory,
    open: Batch,
    ids: SnowflakeClock,
    generation: u32,
    visit_epoch: u32,
    born: MonotonicMs,
    /// Time in which this thread did not run. See [`Worker::awake_at`].
    stalled_ms: u64,
    /// Connections that have an outbox.
    backlogged: usize,
    /// Memory allocated for output that sockets have not accepted.
    budget: Budget,
    rests: Rests,
    /// Open connections whose socket did not accept everything, by the size of their outbox.
    by_size: BySize,
    /// Scratch lists of a push: slots whose outbox outgrew its place, and slots for which there was
    /// no room.
    grown: Vec<u32>,
    without_room: Vec<u32>,
    /// Connections to close as slow: they had to make room, or left too much unread. Their outboxes
    /// are already freed.
    shed: VecDeque<ConnKey>,
    /// How many of them may be closed before the next tick.
    shed_closes_left: usize,
    /// Closing them is suspended.
    holds_closes: bool,
    /// Slots whose outbox just got its first bytes: to be written once the socket has room.
    blocked: Vec<u32>,
    sweep: Sweep,
    is_overdue: bool,
    used_ids: Option<UsedIds>,
    removal: Option<Removal>,
    /// Requests that may be answered or freed before the next tick because their business server or
    /// client is gone, or they have timed out.
    answers_left: usize,
    /// Session ends: unix seconds, slot, generation. Contains only connections whose session has an
    /// end.
    sessions: BTreeSet<(u64, u32, u32)>,
    subscriptions: Subscriptions,
    remembered: RememberedKeys,
    /// Pushes that are not completely matched.
    pushes: Pushes,
    /// The cluster's business servers, and those connected here.
    registry: Registry,
    own_servers: OwnServers,
    /// Slots of business servers that just got their welcome.
    welcomed: Vec<u32>,
    /// Requests of this worker's clients that wait for a response.
    requests: Requests,
    /// Events still to be sent to business servers elsewhere.
    pending_events: PendingEvents,
    /// Buffer for the text of an event, kept for reuse.
    event_text: Vec<u8>,
    /// What happened to requests, if notes are enabled.
    notes: Option<Vec<Note>>,
    /// The latest time passed to it.
    now: Now,
}

/// Whether a connection may be accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Admission {
    Now,
    /// Once this interest is in force.
    After(Interest),
    /// The queue does not permit this node to receive what the connection needs.
    Refused,
}

impl Worker {
    pub fn new(config: WorkerConfig, now: Now) -> Self {
        let reserved = config.slots.min(NONE as usize - 1);
        Self {
            outbox_limit: reload::outbox_limit(&config.settings),
            connections: Slab::with_capacity(reserved),
            addresses: Addresses::default(),
            directory: Directory::new(config.hash_keys),
            open: Batch::default(),
            ids: SnowflakeClock::new(config.settings.node, config.worker, config.settings.workers),
            generation: 0,
            visit_epoch: 0,
            born: now.monotonic,
            stalled_ms: 0,
            backlogged: 0,
            budget: Budget::new(Arc::clone(&config.counters)),
            rests: Rests::new(Arc::clone(&config.counters)),
            by_size: BySize::default(),
            grown: Vec::new(),
            without_room: Vec::new(),
            shed: VecDeque::new(),
            shed_closes_left: CLOSES_PER_SLICE,
            holds_closes: false,
            blocked: Vec::new(),
            sweep: Sweep::new(
                &config.settings.times,
                (config.worker, config.settings.workers),
                now.monotonic,
            ),
            is_overdue: false,
            used_ids: None,
            removal: None,
            answers_left: ANSWERS_PER_SLICE,
            sessions: BTreeSet::new(),
            subscriptions: Subscriptions::new(
                config.queue_needs.map(|queue_needs| queue_needs.routing),
                config.hash_keys,
                now.monotonic,
            ),
            remembered: RememberedKeys::new(config.settings.idempotency_keys),
            pushes: Pushes::default(),
            registry: Registry::new(
                config.settings.node,
                config.worker,
                config.settings.workers,
                Arc::clone(&config.loads),
            ),
            own_servers: OwnServers::default(),
            welcomed: Vec::new(),
            requests: Requests::default(),
            pending_events: PendingEvents::default(),
            event_text: Vec::new(),
            notes: None,
            now,
            config,
        }
    }

    pub fn counters(&self) -> &Counters {
        &self.config.counters
    }

    pub fn connections(&self) -> usize {
        self.connections.len()
    }

    /// Returns a number that no other message or connection of the cluster has.
    pub fn next_message_id(&mut self, now: WallMs) -> MessageId {
        MessageId(self.ids.next(now, &self.config.incarnation))
    }

    /// Returns what must be in force before a connection like this may be accepted, so that it
    /// misses nothing once it has its welcome. Missing interests are requested
    /// ([`Worker::take_broker_requests`]).
    pub fn admit(&mut self, identity: &Identity<'_>) -> Admission {
        let (project, listener) =
            (identity.project, lifecycle::listener(identity.role, identity.uid));
        match self.subscriptions.admit(project, listener) {
            None => Admission::Now,
            Some(_) if self.subscriptions.is_refused(project, listener) => Admission::Refused,
            Some(interest) => Admission::After(interest),
        }
    }

    /// Handles the queue's refusal of an interest. Existing connections stay open.
    pub fn handle_refused(&mut self, interest: &Interest) {
        self.subscriptions.handle_refused(interest);
    }

    /// Handles the broker's answer: the interest is in force, or the queue is unavailable and
    /// cannot confirm it.
    pub fn handle_ready(&mut self, interest: &Interest) {
        self.subscriptions.handle_ready(interest);
    }

    /// Takes the requests to the broker, in order. Hand them over before anything is sent.
    pub fn take_broker_requests(&mut self) -> Vec<BrokerRequest> {
        self.send_pending_events();
        self.subscriptions.take_broker_requests()
    }

    pub fn has_broker_requests(&self) -> bool {
        self.subscriptions.has_broker_requests() || !self.pending_events.is_empty()
    }

    /// Notes that the connection in `slot` received something, possibly only part of a frame: it is
    /// not silent.
    pub fn handle_input(&mut self, slot: u32, now: Now) {
        self.now = now;
        let heard_ms = self.heard_ms();
        let connection = &mut self.connections[slot as usize];
        connection.last_heard_ms = heard_ms;
        connection.last_frame = self.sweep.frame_clock();
        connection.set_pinged(false);
    }

    /// Handles one message or control frame of the connection in `slot`. Returns whether to read
    /// more from it.
    pub fn handle_frame(&mut self, slot: u32, frame: Message<'_>, now: Now) -> bool {
        if !self.takes_frames(slot) {
            return false;
        }
        self.handle_input(slot, now);
        match frame {
            Message::Ping(payload) => {
                let frame = self.open.add_frame(OpCode::Pong, payload);
                self.owe(slot, frame);
            }
            Message::Pong(_) => {}
            Message::Close(code) => self.close(slot, CloseCause::Peer(code)),
            Message::Text(payload) | Message::Binary(payload) => {
                self.config.counters.client_messages.add(1);
                if self.config.settings.echo {
                    let kind = if matches!(frame, Message::Text(_)) {
                        OpCode::Text
                    } else {
                        OpCode::Binary
                    };
                    let frame = self.open.add_frame(kind, payload);
                    self.owe(slot, frame);
                } else if self.connections[slot as usize].is_server() {
                    self.handle_server_message(slot, payload, now);
                } else {
                    self.handle_message(slot, payload, now);
                }
            }
        }
        self.takes_frames(slot)
    }

    fn takes_frames(&self, slot: u32) -> bool {
        self.is_open(slot) && !self.is_shed(slot)
    }

    /// Handles a violation of RFC 6455 by the peer.
    pub fn handle_violation(&mut self, slot: u32, violation: Violation) {
        self.close(slot, CloseCause::Violation(violation));
    }

    /// Closes a connection whose incomplete message is not waited for any longer.
    pub fn handle_unfinished(&mut self, slot: u32, cause: CloseCause) {
        self.close(slot, cause);
    }

    /// Handles the loss of the connection's socket.
    pub fn handle_disconnect(&mut self, slot: u32) {
        self.close(slot, CloseCause::Gone);
    }

    // Output, in the order in which the loop calls it.

    pub fn has_output(&self) -> bool {
        !self.open.is_empty() || self.pushes.is_matching()
    }

    /// Whether the open batch is so large that it must be sent before more input is accepted.
    pub fn is_full(&self) -> bool {
        self.open.is_full()
    }

    /// Whether a push may be accepted: the batch has room, and few pushes wait to be matched.
    pub fn takes_pushes(&self) -> bool {
        !self.open.is_full() && !self.pushes.is_full()
    }

    /// Whether the open batch may stay open for a moment, so that more messages share its sends: it
    /// contains no reply and has room.
    pub fn may_wait(&self) -> bool {
        self.open.may_wait() && !self.pushes.is_matching()
    }

    /// Whether a push is not completely matched, and nothing already queued is urgent.
    pub fn may_match_first(&self) -> bool {
        self.pushes.is_matching() && self.open.may_wait()
    }

    /// Whether a push is not completely matched.
    pub fn is_matching(&self) -> bool {
        self.pushes.is_matching()
    }

    /// Ends the open batch, to be laid out part by part. `sealed` must be finished.
    pub fn seal(&mut self, sealed: &mut Sealed) {
        self.pushes.handle_seal(&self.open);
        sealed.seal(&mut self.open);
    }

    /// Lays out the next part of a sealed batch for sending, of at most `max` entries; the part
    /// before it must be sent. A large batch in one piece would delay other tasks.
    pub fn lay_out(&mut self, sealed: &mut Sealed, max: usize) {
        sealed.lay_out(max);
        let mut over_limit: Vec<u32> = Vec::new();
        for index in sealed.part() {
            let slot = sealed.slot(index);
            let connection = &mut self.connections[slot as usize];
            // It may have an entry in the open batch by now.
            if connection.dirty == sealed.mark_of(index) {
                connection.dirty = NONE;
            }
            if connection.outbox.is_some() || sealed.is_for_outbox(index) {
                sealed.redirect_to_outbox(index);
                if !self.put_rest_in_outbox(sealed, index, 0, false) {
                    over_limit.push(slot);
                }
            }
        }
        // Business servers are notified, after everything this batch holds for them.
        for slot in over_limit {
            self.close_slow(slot);
        }
        self.close_shed();
    }

    /// Notes that the kernel accepted `written` bytes of entry `index`: all, some, or (full socket)
    /// none.
    pub fn handle_sent(&mut self, sealed: &Sealed, index: usize, written: usize, whole: bool) {
        if whole {
            self.config.counters.deliveries.add(sealed.pushes(index));
        } else if !self.put_rest_in_outbox(sealed, index, written, true) {
            self.close_slow(sealed.slot(index));
        }
        self.close_shed();
    }

    /// Handles the kernel's refusal of entry `index`: the socket is broken.
    pub fn handle_send_error(&mut self, sealed: &Sealed, index: usize) {
        self.config.counters.count_drops(Drop::Disconnected, sealed.pushes(index));
        self.close(sealed.slot(index), CloseCause::Gone);
    }

    /// Ends a batch that was sent; the closes it returns are due now.
    pub fn finish(&mut self, sealed: &mut Sealed) -> Vec<CloseRequest> {
        sealed.finish()
    }

    /// Takes the slots whose outbox got its first bytes since the last call: write them when their
    /// socket has room.
    pub fn take_blocked(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.blocked)
    }

    /// Frees the slot of a connection whose close is due.
    pub fn release(&mut self, slot: u32, cause: CloseCause) -> Released {
        let mut connection = self.connections.remove(slot as usize);
        debug_assert!(!connection.is_open());
        connection.release_ip(&mut self.addresses);
        let outbox = connection.outbox.take();
        let was_blocked = outbox.is_some();
        let rest = outbox.and_then(|outbox| self.rest_of(outbox, cause));
        Released { generation: connection.generation, rest, was_blocked }
    }

    /// Whether to read the peer's next messages: not while it leaves half its outbox unread.
    pub fn wants_input(&self, slot: u32) -> bool {
        self.connections.get(slot as usize).is_some_and(|connection| {
            self.takes_frames(slot)
                && !self.leaves_unread(slot)
                && (!connection.is_server() || self.own_servers.takes_more(connection.cid))
        })
    }

    /// The longest message that the connection in `slot` may send.
    pub fn message_limit(&self, slot: u32) -> usize {
        let limits = &self.config.settings.limits;
        match self.connections.get(slot as usize) {
            Some(connection) if connection.is_server() => limits.body_bytes,
            _ => limits.message_bytes,
        }
    }

    /// Whether the connection in `slot` exists and is not being closed.
    pub fn is_open(&self, slot: u32) -> bool {
        self.connections.get(slot as usize).is_some_and(Connection::is_open)
    }

    /// Returns the client id of the connection in `slot`.
    pub fn cid(&self, slot: u32) -> Option<Cid> {
        self.connections.get(slot as usize).map(|connection| connection.cid)
    }

    /// Returns the address of the client in `slot`, if it is known.
    pub fn ip(&self, slot: u32) -> Option<IpAddr> {
        self.connections.get(slot as usize)?.ip(&self.addresses)
    }

    /// Returns the requests in progress. For the simulator and tests.
    pub fn pending_requests(&self) -> PendingRequests {
        let (asked, unwritten) = self.own_servers.pending();
        PendingRequests { waiting: self.requests.len(), asked, unwritten }
    }

    /// Panics unless directory and slab agree; visits everything. For the simulator and tests.
    pub fn check(&self) {
        let is_open = Connection::is_open;
        let is_client = |connection: &Connection| is_open(connection) && !connection.is_server();
        self.directory.check(&self.connections, is_client);
        let servers = self.connections.iter().filter(|(_, c)| is_open(c) && c.is_server());
        assert_eq!(servers.count(), self.own_servers.len());
        self.own_servers.check(|slot| self.connections[slot as usize].outbox.is_none());
        self.requests.check(|key| {
            self.is_open(key.slot)
                && self.connections[key.slot as usize].generation == key.generation
        });
        self.check_outboxes();
        let with_end = self.connections.iter().filter(|(_, c)| is_open(c) && c.session_exp != 0);
        assert_eq!(with_end.count(), self.sessions.len());
        let addresses = self.connections.iter().filter_map(|(_, c)| c.ipv6_index());
        let addresses: BTreeSet<u32> = addresses.collect();
        assert!(addresses.iter().all(|&index| self.addresses.get(index).is_some()));
        assert_eq!(addresses.len(), self.addresses.len());
    }

    // Helpers.

    /// Queues a frame of the open batch for one connection.
    fn owe(&mut self, slot: u32, frame: u32) {
        let limit = self.outbox_limit_of(&self.connections[slot as usize]);
        let max_bytes = self.config.settings.memory.worker_outbox_bytes;
        let (batch, connection) = (&mut self.open, &mut self.connections[slot as usize]);
        connection.last_frame = self.sweep.frame_clock();
        match deliver(batch, &self.budget, max_bytes, connection, slot, frame, limit) {
            Owed::Done => {}
            Owed::Grown => self.reorder(slot),
            Owed::OverLimit => self.close_slow(slot),
            Owed::NoRoom => {
                self.owe_in_outbox(slot, frame);
                self.close_shed();
            }
        }
    }

    /// Returns `now` on the clock by which peers are late or silent. It stands still while this
    /// thread does not run, so no peer is blamed for that time.
    pub fn awake_at(&self, now: MonotonicMs) -> MonotonicMs {
        now - self.stalled_ms
    }

    /// The current time on that clock.
    fn awake(&self) -> MonotonicMs {
        self.awake_at(self.now.monotonic)
    }

    /// The same, in the format of a connection's `last_heard_ms`.
    fn heard_ms(&self) -> u32 {
        self.awake().since(self.born) as u32
    }

    fn outbox_limit_of(&self, connection: &Connection) -> usize {
        if connection.is_server() {
            self.config.settings.memory.server_outbox_bytes
        } else {
            self.outbox_limit
        }
    }

    /// The sender as parcels name this worker.
    fn sender(&self) -> Sender {
        Sender { node: self.config.settings.node, epoch: self.config.incarnation.epoch() }
    }
}
