//! `Broker`: a node's side of the queue, whatever carries the bytes.

mod asks;
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
mod reservation;
mod subscriptions;
#[cfg(test)]
mod tests;
mod transit;

use super::counters::BrokerCounters;
use super::orders::Orders;
use super::projects::{ProjectId, Projects};
use super::sequence::OutgoingSequences;
use super::wants::{Interest, Notice};
use crate::types::{Incarnation, MessageId, NodeId};
use crate::wire::envelope::{Envelope, Header, Kind};
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
use subscriptions::Subscriptions;
use transit::Transit;

pub use facts::{Command, SizeLimit};
pub use greeting::Credentials;
pub use link_error::{LinkError, LinkName};
pub use outcome::Outcome;
pub use presence::user_hash;
pub use publish_log::Pusher;

/// The interval at which Redis is asked for a sign of life, on either link.
const PING_EVERY_MS: u64 = 500;
/// How often Redis is asked whether it is a master still, and what it takes.
const ROLE_EVERY_MS: u64 = 1_000;
const LIMITS_EVERY_MS: u64 = 10_000;
/// What waits for Redis's answers at most; beyond, pushes are refused.
const MAX_PENDING_BYTES: usize = 64 << 20;
/// The longest envelope: small words that wait at the same time must not keep it out for ever.
pub const MAX_MESSAGE_BYTES: usize = MAX_PENDING_BYTES - (64 << 10);
/// What waits while it is away at most; beyond, events are lost.
const MAX_WAITING_EVENT_BYTES: usize = 32 << 20;
/// The longest thing that is taken from Redis, or the longest envelope; beyond, the link is cut.
const MAX_BULK_BYTES: usize = 64 << 20;
/// For [`BrokerConfig::max_outgoing_channels`]: about 150 bytes each. With a channel for each user
/// anyone who may push can name as many as he likes.
pub const MAX_OUTGOING_CHANNELS: usize = 1 << 20;
/// Channels in one SUBSCRIBE.
const CHANNELS_PER_COMMAND: usize = 500;

/// What a broker is made with.
#[derive(Debug, Clone)]
pub struct BrokerConfig {
    pub node: NodeId,
    /// Of this run of the node; shared with its workers.
    pub incarnation: Arc<Incarnation>,
    pub workers: usize,
    pub projects: Arc<Projects>,
    pub names: ChannelNames,
    pub credentials: Credentials,
    pub queue_timeout_ms: u64,
    /// The longest envelope that is handed on.
    pub max_envelope_bytes: usize,
    /// Channels that are numbered at once; beyond, a push to another user takes its project's.
    pub max_outgoing_channels: usize,
    /// Seeds of the keyed hashes, unknown to peers.
    pub hash_keys: (u64, u64),
    pub counters: Arc<BrokerCounters>,
}

impl BrokerConfig {
    fn epoch(&self) -> u64 {
        self.incarnation.epoch()
    }

    /// The whole envelope of a word that is no message.
    fn header(&self, kind: Kind, seq: u64, number: u64) -> Header {
        let (origin, epoch) = (self.node, self.epoch());
        Header { kind, origin, epoch, seq, order: 0, id: MessageId(number) }
    }
}

/// Where a broker's words go. None of them may call the broker.
pub trait Sink {
    /// Hands a message to the workers whose bits are set; `bytes` is the envelope's.
    fn deliver(&mut self, workers: u64, envelope: &Envelope<'_>, bytes: &[u8]);
    /// Hands a parcel of a project to the workers whose bits are set.
    fn relay(&mut self, workers: u64, project: ProjectId, parcel: &[u8]);
    fn notice(&mut self, worker: usize, notice: Notice);
    /// Answers a [`Broker::handle_push`] or a [`Broker::handle_publish`].
    fn answer(&mut self, pusher: Pusher, outcome: Outcome);
    /// Answers an [`Ask::Join`]: it is in force, or the queue is down. After a [`Sink::refuse`]
    /// too, if Redis allows it later.
    fn ready(&mut self, worker: usize, interest: &Interest);
    /// Redis does not let this node hear a channel of it. That may be so from the first
    /// [`Ask::Join`] on, or after it was in force.
    fn refuse(&mut self, worker: usize, interest: &Interest);
    /// Hands the canary to every worker; each tells [`Broker::handle_canary_seen`].
    fn canary(&mut self);
    /// Whether more may be delivered now; otherwise the rest waits.
    fn has_room(&self) -> bool;
}

/// Something to be logged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    Ready {
        resent: usize,
        channels: usize,
    },
    /// Messages of `origin` on `channel` were lost on the way to this node.
    Missed {
        origin: NodeId,
        channel: Box<[u8]>,
        missed: u64,
    },
    /// A number that its node never gave out.
    FalseNumber {
        origin: NodeId,
        channel: Box<[u8]>,
    },
    /// What was heard of a node cannot be right: it counts from now on again. Without a channel:
    /// the order over all of them.
    NumbersReset {
        origin: NodeId,
        channel: Box<[u8]>,
    },
    /// A message of a kind that this node does not know.
    UnknownKind {
        origin: NodeId,
    },
    /// Bytes on a channel that are no envelope.
    Malformed {
        channel: Box<[u8]>,
        error: String,
    },
    TooBig {
        channel: Box<[u8]>,
        bytes: usize,
    },
    /// Another process publishes with this node's number.
    SameNode,
    /// Redis refused a PUBLISH.
    Refused {
        channel: Box<[u8]>,
        error: String,
    },
    /// Redis does not let this node hear a channel; `rule`: what would.
    ChannelRefused {
        channel: Box<[u8]>,
        error: String,
        rule: String,
    },
    /// It does now.
    ChannelAllowed {
        channel: Box<[u8]>,
    },
    /// The largest message that Redis and this node take is another one than before.
    Limit(SizeLimit),
    /// A message that had ended the links three times is not sent again.
    Abandoned {
        channel: Box<[u8]>,
        bytes: usize,
    },
    /// Redis refused a command without which this node goes on.
    Forbidden {
        command: Command,
        error: String,
    },
    /// Redis does not let this node keep which ids were given out.
    IdsNotKept {
        key: String,
        error: String,
    },
}

/// How far the links are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Down,
    /// Greeting, then subscribing.
    Opening,
    /// The first canary is under way, and the other nodes are asked whether they are there.
    Proving,
    Ready,
}

/// How much of some bytes was handled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Handled {
    pub bytes: usize,
    /// The sink has no room: call again with the rest when it has.
    pub is_paused: bool,
}

/// A node's side of the queue: publishes what the workers accepted, keeps what was not answered,
/// subscribes to what they need, and routes what comes to those who may have a target.
///
/// Two links, one fate: when either is lost both are made anew. To be called in this order, for
/// each life of the links: [`Broker::handle_open`]; then, in any order, [`Broker::handle_bytes`],
/// [`Broker::handle_tick`] and the workers' calls; [`Broker::handle_lost`] after an `Err` or when a
/// socket broke. What is to be written is in [`Broker::take_outgoing`]. `now_ms` is monotonic.
///
/// Invariant: every message that is accepted here has the next number of its channel, and leaves in
/// that order; what was not answered is sent again before anything new.
#[derive(Debug)]
pub struct Broker {
    config: BrokerConfig,
    state: State,
    publishing: Link,
    subscribing: Link,
    log: PublishLog,
    /// While the links are proved: the log of their last life, which goes on when they are ready.
    /// `log` has only words then.
    held: Option<PublishLog>,
    interests: Interests,
    sequences: OutgoingSequences,
    /// Of the last message.
    order: u64,
    /// The others have been told of.
    announced_order: u64,
    orders: Orders,
    presence: Presence,
    members: Members,
    reservation: Reservation,
    /// See [`Broker::set_wall_ms`].
    wall_ms: u64,
    /// No attempt to open the links has failed yet.
    is_first_attempt: bool,
    /// Workers whose announcements may be late.
    unsure: u64,
    subscriptions: Subscriptions,
    transit: Transit,
    listening: Listening,
    canary: Canary,
    facts: Facts,
    /// When Redis was last asked for its role, and for its limits.
    role_asked_ms: u64,
    limits_asked_ms: u64,
    own_channel: Vec<u8>,
    nodes_channel: Vec<u8>,
    last_name: LastName,
    /// What came of the parts of the message that is being answered.
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
            state: State::Down,
            publishing: Link::new(LinkName::Publish, config.node),
            subscribing: Link::new(LinkName::Subscribe, config.node),
            log: PublishLog::default(),
            held: None,
            interests,
            sequences: OutgoingSequences::new(config.hash_keys),
            order: 0,
            announced_order: 0,
            orders: Orders::default(),
            presence: Presence::default(),
            members: Members::default(),
            reservation: Reservation::default(),
            wall_ms: 0,
            is_first_attempt: true,
            unsure: 0,
            subscriptions: Subscriptions::default(),
            transit: Transit::default(),
            listening: Listening::default(),
            canary: Canary { owed_ms: vec![0; config.workers], ..Canary::default() },
            facts: Facts::new(config.credentials.url.to_string(), MAX_MESSAGE_BYTES),
            role_asked_ms: 0,
            limits_asked_ms: 0,
            own_channel,
            nodes_channel,
            last_name: LastName::default(),
            parts: Parts::default(),
            events: Vec::new(),
            config,
        }
    }

    /// Whether nothing is to be sent to Redis, or waits for its answer.
    pub fn is_idle(&self) -> bool {
        self.log.is_empty() && self.held.as_ref().is_none_or(PublishLog::is_empty)
    }

    /// What waits for Redis's answer.
    pub fn under_way(&self) -> usize {
        self.log.len()
    }

    /// Whether pushes are accepted.
    pub fn is_ready(&self) -> bool {
        self.state == State::Ready
    }

    pub fn has_events(&self) -> bool {
        !self.events.is_empty()
    }

    /// What is to be logged.
    pub fn take_events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }

    // The life of the links.

    /// Both sockets are connected.
    pub fn handle_open(&mut self, now_ms: u64) {
        self.state = State::Opening;
        self.subscriptions.clear();
        self.transit.clear();
        self.orders.forget_announcements();
        self.facts.handle_open();
        (self.role_asked_ms, self.limits_asked_ms) = (now_ms, now_ms);
        self.canary.untaken = 0;
        let listened_ms = self.listening.at(now_ms);
        self.publishing.greet(&self.config.credentials, listened_ms);
        self.subscribing.greet(&self.config.credentials, listened_ms);
    }

    /// The links are gone. What was not answered is kept until they are back.
    pub fn handle_lost(&mut self, sink: &mut dyn Sink) {
        self.state = State::Down;
        self.is_first_attempt = false;
        self.reservation.handle_lost();
        // Nothing will be confirmed: who asks from now on does not wait for it.
        self.subscriptions.clear();
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
            sink.notice(worker, Notice::ServerKnown(cid));
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

    /// Bytes that Redis sent on one of the links. An `Err` ends both.
    pub fn handle_bytes(
        &mut self,
        link: LinkName,
        bytes: &[u8],
        now_ms: u64,
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
            self.handle_reply(link, reply, now_ms, sink)?;
        }
        self.listening.set_paused(link, is_paused, now_ms);
        let listened_ms = self.listening.at(now_ms);
        match link {
            // Until everything is subscribed to, the log waits for us, not for Redis.
            LinkName::Publish => {
                let is_waiting = self.may_publish() && !self.log.is_empty();
                let is_waiting = is_waiting || self.reservation.is_asking();
                self.publishing.handle_heard(listened_ms, is_waiting);
            }
            LinkName::Subscribe => {
                self.subscribing.handle_heard(listened_ms, self.subscriptions.is_waiting());
            }
        }
        Ok(Handled { bytes: at, is_paused })
    }

    fn handle_reply(
        &mut self,
        link: LinkName,
        reply: Reply<'_>,
        now_ms: u64,
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
                self.begin_with_reservation(now_ms);
            }
            return Ok(());
        }
        match link {
            LinkName::Subscribe => self.handle_subscribing(reply, now_ms, sink),
            LinkName::Publish if self.reservation.is_asking() => {
                let number = reservation::number_of(&reply).ok_or(LinkError::Unasked)?;
                self.handle_number(number, now_ms, sink)
            }
            LinkName::Publish => {
                self.handle_taken(&reply, now_ms);
                self.handle_answer(&reply, now_ms, sink)?;
                self.ping_for_room(now_ms);
                self.become_ready(now_ms);
                Ok(())
            }
        }
    }

    /// Everything is subscribed to: this node says what it has, and the canary proves the way. What
    /// was not answered in the last life waits until the other nodes have subscribed, too: what is
    /// published before that they miss.
    fn begin_publishing(&mut self, now_ms: u64) {
        self.state = State::Proving;
        self.held = Some(std::mem::take(&mut self.log));
        self.say_hello(now_ms);
        self.send_canary(now_ms);
    }

    /// Pushes are accepted once the canary is back, and it is known who else is there; before them
    /// goes what was not answered in the last life.
    fn become_ready(&mut self, now_ms: u64) {
        if self.state != State::Proving || !self.canary.is_back || !self.is_settled(now_ms) {
            return;
        }
        // Answers come in the order of the log, and words are few.
        let Some(held) = self.held.take_if(|_| self.log.is_empty()) else { return };
        self.state = State::Ready;
        self.log = held;
        self.log.rewind();
        let resent = self.log.len();
        if resent > 0 {
            self.publishing.handle_asked(self.listening.at(now_ms));
        }
        self.sequences.handle_reconnect(now_ms);
        self.canary.owed_ms.fill(0);
        self.config.counters.resent.add(resent as u64);
        self.config.counters.ready.set(1);
        self.show_nodes();
        self.events.push(Event::Ready { resent, channels: self.interests.len() });
    }

    /// Looks at deadlines: pings, canaries, pushes that wait too long. An `Err` ends the links.
    pub fn handle_tick(&mut self, now_ms: u64, sink: &mut dyn Sink) -> Result<(), LinkError> {
        self.listening.advance(now_ms);
        let listened_ms = self.listening.at(now_ms);
        let counters = &self.config.counters;
        for log in [Some(&mut self.log), self.held.as_mut()].into_iter().flatten() {
            log.expire(listened_ms, |pusher| {
                counters.count_outcome(Outcome::Unknown);
                sink.answer(pusher, Outcome::Unknown);
            });
        }
        counters.pending_bytes.set(self.pending_bytes() as u64);
        counters.channels.set(self.interests.len() as u64);
        counters.channels_refused.set(self.subscriptions.refused() as u64);
        if self.state == State::Down {
            return Ok(());
        }
        self.tick_transit(now_ms);
        let transit_ms = (self.log.due_bytes() / TRANSIT_BYTES_PER_MS) as u64;
        self.publishing.check(listened_ms, transit_ms)?;
        self.subscribing.check(listened_ms, 0)?;
        if self.state == State::Opening {
            return Ok(());
        }
        let deadline_ms = self.deadline_ms(now_ms);
        self.ask_questions(now_ms, deadline_ms);
        if self.subscriptions.is_ping_due(now_ms, self.is_canary_late(now_ms)) {
            self.ping_subscribing(now_ms);
        }
        self.subscribe_again(now_ms);
        self.tick_canary(now_ms)?;
        if self.state == State::Ready && !self.has_left() {
            self.repeat_tails(now_ms, deadline_ms);
        }
        self.renew_reservation(now_ms);
        self.tick_members(now_ms, sink);
        self.become_ready(now_ms);
        Ok(())
    }

    /// Some of what one write did not take is written: it is large, and Redis reads it.
    pub fn handle_written(&mut self, link: LinkName, now_ms: u64) {
        let listened_ms = self.listening.at(now_ms);
        match link {
            LinkName::Publish => self.publishing.handle_progress(listened_ms),
            LinkName::Subscribe => self.subscribing.handle_progress(listened_ms),
        }
    }

    /// Asks on the publishing link what is due. A node that has left only keeps it alive.
    fn ask_questions(&mut self, now_ms: u64, deadline_ms: u64) {
        let has_left = self.has_left();
        let is_due = |asked_ms: &mut u64, every_ms: u64| {
            let is_due = !has_left && now_ms.saturating_sub(*asked_ms) >= every_ms;
            if is_due {
                *asked_ms = now_ms;
            }
            is_due
        };
        let asks_role = is_due(&mut self.role_asked_ms, ROLE_EVERY_MS);
        let asks_limits = is_due(&mut self.limits_asked_ms, LIMITS_EVERY_MS);
        let listened_ms = self.listening.at(now_ms);
        let asks_life = self.log.is_empty() && self.publishing.is_ping_due(listened_ms);
        for question in [Question::Ping, Question::Hello].into_iter().chain(Question::AT_GREETING) {
            let is_due = match question {
                Question::Ping => asks_life,
                Question::Role | Question::Hello => asks_role,
                Question::Parameter(_) => asks_limits,
            };
            if is_due && self.facts.may_ask(question) {
                self.log.add_question(question, deadline_ms);
                self.publishing.handle_asked(listened_ms);
            }
        }
    }

    /// By the clock of [`Listening`].
    fn deadline_ms(&self, now_ms: u64) -> u64 {
        self.listening.at(now_ms) + self.config.queue_timeout_ms
    }

    fn repeat_tails(&mut self, now_ms: u64, deadline_ms: u64) {
        let (config, log, order) = (&self.config, &mut self.log, self.order);
        let mut has_any = false;
        let mut tail = Vec::new();
        self.sequences.repeat_tails(now_ms, |channel, seq| {
            tail.clear();
            Header { order, ..config.header(Kind::Tail, seq, 0) }.encode(&mut tail);
            log.add_word(channel, &tail, None, deadline_ms);
            has_any = true;
        });
        if has_any {
            self.publishing.handle_asked(self.listening.at(now_ms));
        }
    }

    // Out.

    /// Moves at most `max` bytes that are to be written to a link into `out`.
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
        matches!(self.state, State::Proving | State::Ready)
    }

    // What workers say.

    /// What Redis has not answered.
    fn pending_bytes(&self) -> usize {
        self.log.pending_bytes() + self.held.as_ref().map_or(0, PublishLog::pending_bytes)
    }

    /// Bit by bit, the workers that could not announce all their users yet.
    pub fn set_unsure(&mut self, workers: u64) {
        self.unsure = workers;
    }
}
