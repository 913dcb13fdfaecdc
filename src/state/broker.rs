//! `Broker`: a node's side of the message queue, independent of I/O.

mod canary;
mod facts;
mod greeting;
mod incoming;
mod interests;
mod link;
mod link_error;
mod listening;
mod members;
mod outcome;
mod outgoing;
mod presence;
mod publish_log;
mod requests;
mod reservation;
mod subscribe_log;
#[cfg(test)]
mod tests;
mod transit;

use super::counters::BrokerCounters;
use super::origin_watermarks::OriginWatermarks;
use super::projects::{ProjectId, Projects};
use super::sequence::OutgoingSequences;
use super::subscriptions::{Interest, WorkerEvent};
use crate::types::{Incarnation, MessageId, MonotonicMs, NodeId, Now, WallMs};
use crate::wire::envelope::{Envelope, EnvelopeKind, Header};
use crate::wire::publication::{ChannelNames, LastName};
use crate::wire::resp::{self, Reply};
use canary::Canary;
use facts::{Facts, Question};
use interests::{Interests, Joined};
use link::{Link, TRANSIT_BYTES_PER_MS};
use listening::Listening;
use members::Members;
use presence::Presence;
use publish_log::{Parts, PublishLog};
use reservation::Reservation;
use std::collections::HashSet;
use std::sync::Arc;
use subscribe_log::SubscribeLog;
use transit::Transit;

pub use facts::{Command, SizeLimit};
pub use greeting::Credentials;
pub use link_error::{LinkError, LinkName};
pub use outcome::Outcome;
pub use presence::user_hash;
pub use publish_log::Pusher;

/// Interval between PINGs to Redis, on either link.
const PING_EVERY_MS: u64 = 500;
/// Interval between checks whether Redis is still a master, and of its limits.
const ROLE_EVERY_MS: u64 = 1_000;
const LIMITS_EVERY_MS: u64 = 10_000;
/// Maximum bytes that wait for Redis's replies; beyond it, pushes are refused.
const MAX_PENDING_BYTES: usize = 64 << 20;
/// The longest envelope: small messages that wait at the same time must not keep it out for ever.
pub const MAX_MESSAGE_BYTES: usize = MAX_PENDING_BYTES - (64 << 10);
/// Maximum bytes that wait while Redis is unavailable; beyond it, events are lost.
const MAX_WAITING_EVENT_BYTES: usize = 32 << 20;
/// The longest value accepted from Redis, unless the longest envelope is larger; beyond it, the
/// link is closed.
const MAX_BULK_BYTES: usize = 64 << 20;
/// For [`BrokerConfig::max_outgoing_channels`]: about 150 bytes each. With a channel per user,
/// anyone who may push can name any number of channels.
pub const MAX_OUTGOING_CHANNELS: usize = 1 << 20;
/// Channels in one SUBSCRIBE.
const CHANNELS_PER_COMMAND: usize = 500;

/// Parameters of a broker.
#[derive(Debug, Clone)]
pub struct BrokerConfig {
    pub node: NodeId,
    /// This run of the node; shared with its workers.
    pub incarnation: Arc<Incarnation>,
    pub workers: usize,
    pub projects: Arc<Projects>,
    pub names: ChannelNames,
    pub credentials: Credentials,
    pub queue_timeout_ms: u64,
    /// The longest envelope that is delivered.
    pub max_envelope_bytes: usize,
    /// Channels that can be numbered at the same time; beyond it, a push to another user is
    /// published on its project's channel.
    pub max_outgoing_channels: usize,
    /// Seeds of the keyed hashes, unknown to peers.
    pub hash_keys: (u64, u64),
    pub counters: Arc<BrokerCounters>,
}

impl BrokerConfig {
    fn epoch(&self) -> u64 {
        self.incarnation.epoch()
    }

    /// The header of a message that carries no push.
    fn header(&self, kind: EnvelopeKind, seq: u64, number: u64) -> Header {
        let (origin, epoch) = (self.node, self.epoch());
        Header { kind, origin, epoch, seq, order: 0, id: MessageId(number) }
    }
}

/// Receives the broker's output. No method may call the broker.
pub trait Sink {
    /// Delivers a message to the workers whose bits are set; `bytes` is the encoded envelope.
    fn deliver(&mut self, workers: u64, envelope: &Envelope<'_>, bytes: &[u8]);
    /// Delivers a parcel of a project to the workers whose bits are set.
    fn relay(&mut self, workers: u64, project: ProjectId, parcel: &[u8]);
    fn event(&mut self, worker: usize, event: WorkerEvent);
    /// Answers a [`Broker::handle_push`] or a [`Broker::handle_publish`].
    fn answer(&mut self, pusher: Pusher, outcome: Outcome);
    /// Answers a [`BrokerRequest::Join`]: it is in force, or the queue is down. Also follows a
    /// [`Sink::refuse`] if Redis permits the subscription later.
    fn ready(&mut self, worker: usize, interest: &Interest);
    /// Reports that Redis does not permit this node to subscribe to one of its channels, either at
    /// the first [`BrokerRequest::Join`] or after it was in force.
    fn refuse(&mut self, worker: usize, interest: &Interest);
    /// Delivers the canary to every worker; each confirms with [`Broker::handle_canary_seen`].
    fn canary(&mut self);
    /// Whether more may be delivered now; otherwise the rest waits.
    fn has_room(&self) -> bool;
}

/// An event for the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    Ready {
        resent: usize,
        channels: usize,
    },
    /// Messages from `origin` on `channel` were lost on the way to this node.
    Missed {
        origin: NodeId,
        channel: Box<[u8]>,
        missed: u64,
    },
    /// A number that its node never issued.
    FalseNumber {
        origin: NodeId,
        channel: Box<[u8]>,
    },
    /// The numbers received from a node are inconsistent: counting restarts. Without a channel: the
    /// order over all channels.
    NumbersReset {
        origin: NodeId,
        channel: Box<[u8]>,
    },
    /// A message of a kind unknown to this node.
    UnknownKind {
        origin: NodeId,
    },
    /// Bytes on a channel that are not a valid envelope.
    Malformed {
        channel: Box<[u8]>,
        error: String,
    },
    TooBig {
        channel: Box<[u8]>,
        bytes: usize,
    },
    /// Another process publishes with this node's id.
    SameNode,
    /// Redis refused a PUBLISH.
    Refused {
        channel: Box<[u8]>,
        error: String,
    },
    /// Redis does not permit this node to subscribe to a channel; `rule`: the ACL rule that would
    /// permit it.
    ChannelRefused {
        channel: Box<[u8]>,
        error: String,
        rule: String,
    },
    /// Redis permits it now.
    ChannelAllowed {
        channel: Box<[u8]>,
    },
    /// The largest message that Redis and this node accept has changed.
    Limit(SizeLimit),
    /// A message that has ended the links three times is not sent again.
    Abandoned {
        channel: Box<[u8]>,
        bytes: usize,
    },
    /// Redis refused a command that this node can do without.
    Forbidden {
        command: Command,
        error: String,
    },
    /// Redis does not permit this node to store which ids were issued.
    IdsNotKept {
        key: String,
        error: String,
    },
}

/// State of the links.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LinksState {
    Down,
    /// Greeting, then subscribing.
    Opening,
    /// The first canary is in flight, and the other nodes are asked for their presence.
    Proving,
    Ready,
}

/// How much of the input was handled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Handled {
    pub bytes: usize,
    /// The sink has no room: call again with the rest once it has.
    pub is_paused: bool,
}

/// A node's side of the queue: publishes what the workers accepted, keeps it until it is answered,
/// subscribes to the channels they need, and routes incoming messages to workers that may have a
/// recipient.
///
/// The two links live and die together: when either is lost, both are reopened. Calling order for
/// each incarnation of the links: [`Broker::handle_open`]; then, in any order,
/// [`Broker::handle_bytes`], [`Broker::handle_tick`] and the calls of the workers; then
/// [`Broker::handle_lost`] after an `Err` or a socket error. [`Broker::take_outgoing`] returns the
/// bytes to write.
///
/// Invariant: every message accepted here gets the next number of its channel and is sent in that
/// order; unanswered messages are sent again before any new one.
#[derive(Debug)]
pub struct Broker {
    config: BrokerConfig,
    state: LinksState,
    publishing: Link,
    subscribing: Link,
    log: PublishLog,
    /// While the links are being proved: the log of their previous incarnation, which continues
    /// once they are ready. Until then `log` holds only announcements.
    held: Option<PublishLog>,
    interests: Interests,
    sequences: OutgoingSequences,
    /// Order of the last message.
    order: u64,
    /// Order last announced to the other nodes.
    announced_order: u64,
    watermarks: OriginWatermarks,
    presence: Presence,
    members: Members,
    reservation: Reservation,
    /// The time by which ids are reserved, as of the last tick.
    wall: WallMs,
    /// No attempt to open the links has failed so far.
    is_first_attempt: bool,
    /// Workers whose user announcements may be late.
    unsure: u64,
    subscribe_log: SubscribeLog,
    transit: Transit,
    listening: Listening,
    canary: Canary,
    /// Number of the canary that [`Broker::has_come_round`] waits for.
    round: Option<u64>,
    facts: Facts,
    /// When Redis was last asked for its role, and for its limits.
    role_asked_at: MonotonicMs,
    limits_asked_at: MonotonicMs,
    own_channel: Vec<u8>,
    nodes_channel: Vec<u8>,
    last_name: LastName,
    /// Outcomes of the parts of the message that is being answered.
    parts: Parts,
    events: Vec<Event>,
}

impl Broker {
    pub fn new(config: BrokerConfig) -> Self {
        let mut own_channel = Vec::new();
        config.names.node(&mut own_channel, config.node);
        let mut nodes_channel = Vec::new();
        config.names.nodes(&mut nodes_channel);
        let mut interests = Interests::new(config.hash_keys);
        interests.join(&nodes_channel, 0, None);
        for worker in 0..config.workers {
            interests.join(&own_channel, worker, None);
        }
        Self {
            state: LinksState::Down,
            publishing: Link::new(LinkName::Publish, config.node),
            subscribing: Link::new(LinkName::Subscribe, config.node),
            log: PublishLog::default(),
            held: None,
            interests,
            sequences: OutgoingSequences::new(config.hash_keys),
            order: 0,
            announced_order: 0,
            watermarks: OriginWatermarks::default(),
            presence: Presence::default(),
            members: Members::default(),
            reservation: Reservation::default(),
            wall: WallMs::default(),
            is_first_attempt: true,
            unsure: 0,
            subscribe_log: SubscribeLog::default(),
            transit: Transit::default(),
            listening: Listening::default(),
            canary: Canary { owed_since: vec![None; config.workers], ..Canary::default() },
            round: None,
            facts: Facts::new(config.credentials.url.to_string(), MAX_MESSAGE_BYTES),
            role_asked_at: MonotonicMs::default(),
            limits_asked_at: MonotonicMs::default(),
            own_channel,
            nodes_channel,
            last_name: LastName::default(),
            parts: Parts::default(),
            events: Vec::new(),
            config,
        }
    }

    /// Takes other projects, which have the ids of those before them, and other limits. Must be
    /// called before a request of a worker that has taken them.
    pub fn reload(&mut self, projects: Arc<Projects>, max_envelope_bytes: usize, now: MonotonicMs) {
        let adds_any = projects.adds_any_to(&self.config.projects);
        self.config.projects = projects;
        // Never less: messages that were accepted by the limit before are on their way.
        self.config.max_envelope_bytes = self.config.max_envelope_bytes.max(max_envelope_bytes);
        if adds_any {
            self.review_members(now);
        }
    }

    /// Whether nothing waits to be sent to Redis or to be answered by it.
    pub fn is_idle(&self) -> bool {
        self.log.is_empty() && self.held.as_ref().is_none_or(PublishLog::is_empty)
    }

    /// Number of entries that wait for Redis's reply.
    pub fn under_way(&self) -> usize {
        self.log.len()
    }

    /// Whether pushes are accepted.
    pub fn is_ready(&self) -> bool {
        self.state == LinksState::Ready
    }

    pub fn has_events(&self) -> bool {
        !self.events.is_empty()
    }

    /// Returns the events to log.
    pub fn take_events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }

    // Life cycle of the links.

    /// Starts greeting Redis: both sockets are connected.
    pub fn handle_open(&mut self, now: Now) {
        self.wall = now.wall;
        let now = now.monotonic;
        self.state = LinksState::Opening;
        self.subscribe_log.clear();
        self.transit.clear();
        self.watermarks.forget_announcements();
        self.facts.handle_open();
        (self.role_asked_at, self.limits_asked_at) = (now, now);
        self.canary.untaken = 0;
        let listened = self.listening.at(now);
        self.publishing.greet(&self.config.credentials, listened);
        self.subscribing.greet(&self.config.credentials, listened);
    }

    /// Handles the loss of the links. Unanswered messages are kept until they are back.
    pub fn handle_lost(&mut self, sink: &mut dyn Sink) {
        self.state = LinksState::Down;
        self.is_first_attempt = false;
        self.reservation.handle_lost();
        // Nothing will be confirmed: workers that ask from now on do not wait for it.
        self.subscribe_log.clear();
        self.listening.handle_lost();
        self.publishing.close();
        self.subscribing.close();
        let mut told = HashSet::new();
        self.interests.handle_lost(|worker, interest| {
            if told.insert((worker, interest.clone())) {
                sink.ready(worker, interest);
            }
        });
        for (worker, cid) in self.log.take_waiters() {
            sink.event(worker, WorkerEvent::ServerKnown(cid));
        }
        if let Some(held) = self.held.take() {
            self.log = held;
        }
        let (counters, events) = (&self.config.counters, &mut self.events);
        self.log.handle_lost(|channel, bytes, pusher| {
            counters.abandoned.add(1);
            events.push(Event::Abandoned { channel: channel.into(), bytes });
            if let Some(pusher) = pusher {
                counters.count_outcome(Outcome::Unknown);
                sink.answer(pusher, Outcome::Unknown);
            }
        });
        self.config.counters.ready.set(0);
    }

    /// Handles bytes that Redis sent on one of the links. An `Err` ends both.
    pub fn handle_bytes(
        &mut self,
        link: LinkName,
        bytes: &[u8],
        now: MonotonicMs,
        sink: &mut dyn Sink,
    ) -> Result<Handled, LinkError> {
        let mut at = 0;
        let mut is_paused = false;
        let max_bytes = self.config.max_envelope_bytes.max(MAX_BULK_BYTES);
        while at < bytes.len() {
            if !sink.has_room() {
                is_paused = true;
                break;
            }
            let Some((reply, length)) = resp::read(&bytes[at..], max_bytes)? else { break };
            at += length;
            self.handle_reply(link, reply, now, sink)?;
        }
        self.listening.set_paused(link, is_paused, now);
        let listened = self.listening.at(now);
        match link {
            // Until every subscription is requested, the log waits for us, not for Redis.
            LinkName::Publish => {
                let is_waiting = self.may_publish() && !self.log.is_empty();
                let is_waiting = is_waiting || self.reservation.is_asking();
                self.publishing.handle_heard(listened, is_waiting);
            }
            LinkName::Subscribe => {
                self.subscribing.handle_heard(listened, self.subscribe_log.is_waiting());
            }
        }
        Ok(Handled { bytes: at, is_paused })
    }

    fn handle_reply(
        &mut self,
        link: LinkName,
        reply: Reply<'_>,
        now: MonotonicMs,
        sink: &mut dyn Sink,
    ) -> Result<(), LinkError> {
        let greeted = match link {
            LinkName::Publish => &mut self.publishing,
            LinkName::Subscribe => &mut self.subscribing,
        };
        if !greeted.is_greeted() {
            greeted.handle_greeting(&reply, &self.config.credentials, &mut self.facts)?;
            match link == LinkName::Publish && self.publishing.is_greeted() {
                true => self.settle_limit(),
                false => self.events.extend(self.facts.take_events()),
            }
            if self.publishing.is_greeted() && self.subscribing.is_greeted() {
                self.begin_with_reservation(now);
            }
            return Ok(());
        }
        match link {
            LinkName::Subscribe => self.handle_subscribing(reply, now, sink),
            LinkName::Publish if self.reservation.is_asking() => {
                if self.publishing.has_unsent() {
                    return Err(LinkError::Unasked);
                }
                let number = reservation::number_of(&reply).ok_or(LinkError::Unasked)?;
                self.handle_number(number, now, sink)
            }
            LinkName::Publish => {
                self.handle_taken(&reply, now);
                self.handle_answer(&reply, now, sink)?;
                self.ping_for_room(now);
                self.become_ready(now);
                Ok(())
            }
        }
    }

    /// Starts the proof of the links once all subscriptions are in place: this node announces its
    /// state, and the canary tests the path. Messages left unanswered by the previous incarnation
    /// wait until the other nodes have subscribed as well: anything published earlier would not
    /// reach them.
    fn begin_publishing(&mut self, now: MonotonicMs) {
        self.state = LinksState::Proving;
        self.held = Some(std::mem::take(&mut self.log));
        self.announce_arrival(now);
        self.send_canary(now);
    }

    /// Accepts pushes once the canary is back and the other nodes are known; messages left
    /// unanswered by the previous incarnation are sent first.
    fn become_ready(&mut self, now: MonotonicMs) {
        if self.state != LinksState::Proving || !self.canary.is_back || !self.is_settled(now) {
            return;
        }
        // Replies arrive in the order of the log, and announcements are few.
        let Some(held) = self.held.take_if(|_| self.log.is_empty()) else { return };
        self.state = LinksState::Ready;
        self.log = held;
        self.log.rewind();
        let resent = self.log.len();
        if resent > 0 {
            self.publishing.handle_asked(self.listening.at(now));
        }
        self.sequences.handle_reconnect(now);
        self.canary.owed_since.fill(None);
        self.config.counters.resent.add(resent as u64);
        self.config.counters.ready.set(1);
        self.show_nodes();
        self.events.push(Event::Ready { resent, channels: self.interests.len() });
    }

    /// Checks deadlines: pings, canaries, pushes that wait too long. An `Err` ends the links.
    pub fn handle_tick(&mut self, now: Now, sink: &mut dyn Sink) -> Result<(), LinkError> {
        self.wall = now.wall;
        let now = now.monotonic;
        self.listening.advance(now);
        let listened = self.listening.at(now);
        let counters = &self.config.counters;
        for log in [Some(&mut self.log), self.held.as_mut()].into_iter().flatten() {
            log.expire(listened, |pusher| {
                counters.count_outcome(Outcome::Unknown);
                sink.answer(pusher, Outcome::Unknown);
            });
        }
        counters.pending_bytes.set(self.pending_bytes() as u64);
        counters.channels.set(self.interests.len() as u64);
        counters.channels_refused.set(self.subscribe_log.refused() as u64);
        if self.state == LinksState::Down {
            return Ok(());
        }
        self.tick_transit(now);
        let transit_ms = (self.log.due_bytes() / TRANSIT_BYTES_PER_MS) as u64;
        self.publishing.check(listened, transit_ms)?;
        self.subscribing.check(listened, 0)?;
        if self.state == LinksState::Opening {
            return Ok(());
        }
        let deadline = self.deadline(now);
        self.ask_questions(now, deadline);
        if self.subscribe_log.is_ping_due(now, self.is_canary_late(now)) {
            self.ping_subscribing(now);
        }
        self.subscribe_again(now);
        self.tick_canary(now)?;
        if self.state == LinksState::Ready && !self.has_left() {
            self.repeat_tails(now, deadline);
        }
        self.renew_reservation(now);
        self.tick_members(now, sink);
        self.become_ready(now);
        Ok(())
    }

    /// Notes that part of a large write has been taken: Redis is reading it.
    pub fn handle_written(&mut self, link: LinkName, now: MonotonicMs) {
        let listened = self.listening.at(now);
        match link {
            LinkName::Publish => self.publishing.handle_progress(listened),
            LinkName::Subscribe => self.subscribing.handle_progress(listened),
        }
    }

    /// Sends the questions that are due on the publishing link. A node that has left only keeps the
    /// link alive.
    fn ask_questions(&mut self, now: MonotonicMs, deadline: MonotonicMs) {
        let has_left = self.has_left();
        let is_due = |asked_at: &mut MonotonicMs, every_ms: u64| {
            let is_due = !has_left && now.since(*asked_at) >= every_ms;
            if is_due {
                *asked_at = now;
            }
            is_due
        };
        let asks_role = is_due(&mut self.role_asked_at, ROLE_EVERY_MS);
        let asks_limits = is_due(&mut self.limits_asked_at, LIMITS_EVERY_MS);
        let listened = self.listening.at(now);
        let asks_life = self.log.is_empty() && self.publishing.is_ping_due(listened);
        for question in [Question::Ping, Question::Hello].into_iter().chain(Question::AT_GREETING) {
            let is_due = match question {
                Question::Ping => asks_life,
                Question::Role | Question::Hello => asks_role,
                Question::Parameter(_) => asks_limits,
            };
            if is_due && self.facts.may_ask(question) {
                self.log.add_question(question, deadline);
                self.publishing.handle_asked(listened);
            }
        }
    }

    /// On the clock of [`Listening`].
    fn deadline(&self, now: MonotonicMs) -> MonotonicMs {
        self.listening.at(now) + self.config.queue_timeout_ms
    }

    fn repeat_tails(&mut self, now: MonotonicMs, deadline: MonotonicMs) {
        let (config, log, order) = (&self.config, &mut self.log, self.order);
        let mut has_any = false;
        let mut tail = Vec::new();
        self.sequences.repeat_tails(now, |channel, seq| {
            tail.clear();
            Header { order, ..config.header(EnvelopeKind::Tail, seq, 0) }.encode(&mut tail);
            log.add_word(channel, &tail, None, deadline);
            has_any = true;
        });
        if has_any {
            self.publishing.handle_asked(self.listening.at(now));
        }
    }

    // Output.

    /// Moves at most `max` bytes to write to a link into `out`.
    pub fn take_outgoing(&mut self, link: LinkName, out: &mut Vec<u8>, max: usize) {
        match link {
            LinkName::Subscribe => self.subscribing.take_outgoing(out, max),
            LinkName::Publish if self.publishing.out.is_empty() => {
                if self.may_publish() {
                    self.log.take_unsent(&mut self.transit, out, max);
                }
            }
            LinkName::Publish => self.publishing.take_outgoing(out, max),
        }
    }

    pub fn has_outgoing(&self, link: LinkName) -> bool {
        match link {
            LinkName::Subscribe => !self.subscribing.out.is_empty(),
            LinkName::Publish => {
                !self.publishing.out.is_empty()
                    || self.may_publish() && self.log.may_send(&self.transit)
            }
        }
    }

    fn may_publish(&self) -> bool {
        matches!(self.state, LinksState::Proving | LinksState::Ready)
    }

    // Input from workers.

    /// Bytes that Redis has not answered.
    fn pending_bytes(&self) -> usize {
        self.log.pending_bytes() + self.held.as_ref().map_or(0, PublishLog::pending_bytes)
    }

    /// Sets the bitmap of workers that could not announce all their users yet.
    pub fn set_unsure(&mut self, workers: u64) {
        self.unsure = workers;
    }
}
