//! Input from Redis: replies to published commands, and messages on the channels.

use super::interests::InterestPlace;
use super::publish_log::Asked;
use super::reservation::number_of;
use super::{Broker, Event, LinkError, Sink, user_hash};
use crate::state::origin_watermarks::Order;
use crate::state::projects::ProjectId;
use crate::state::sequence::Arrival;
use crate::state::subscriptions::WorkerEvent;
use crate::types::{Cid, MonotonicMs, NodeId, SnowflakeClock};
use crate::wire::bundle;
use crate::wire::envelope::{Envelope, EnvelopeError, EnvelopeKind, Header};
use crate::wire::json;
use crate::wire::parcel;
use crate::wire::resp::Reply;

/// Redis's last reply on a link that sends a string above its `proto-max-bulk-len`.
const TOO_LONG: &[u8] = b"ERR Protocol error: invalid bulk length";

impl Broker {
    /// Handles a reply on the publishing link: to the oldest unanswered command.
    pub(super) fn handle_answer(
        &mut self,
        reply: &Reply<'_>,
        now: MonotonicMs,
        sink: &mut dyn Sink,
    ) -> Result<(), LinkError> {
        let mut is_refused = false;
        match (self.log.front(), reply) {
            (Some(Asked::Question(question)), reply) => {
                self.facts.handle_answer(question, reply)?;
                self.settle_limit();
            }
            (Some(Asked::Reservation), reply) => {
                let number = number_of(reply).ok_or(LinkError::Unasked)?;
                self.handle_renewed(number, now)?;
            }
            (Some(Asked::Announcement(_)), Reply::Error(text)) => {
                let channel: Box<[u8]> = self.log.front_channel().into();
                if self.is_vital(&channel) || !text.starts_with(b"NOPERM") {
                    return Err(self.refused(text));
                }
                // For example the last number of a project's channel: its pushes are refused as
                // well.
                let error = String::from_utf8_lossy(text).into_owned();
                self.events.push(Event::Refused { channel, error });
            }
            (Some(Asked::Announcement(waiter)), Reply::Integer(_)) => {
                self.canary.handle_taken(self.log.front_channel() == self.own_channel, now);
                if let Some((worker, cid)) = waiter {
                    sink.event(worker, WorkerEvent::ServerKnown(cid));
                }
            }
            (Some(Asked::Messages(_)), Reply::Integer(_)) => {}
            (Some(Asked::Messages(count)), Reply::Error(text)) => {
                // A number that may have been published must not be reused. Last first: what
                // precedes it is then the channel's latest.
                for index in (0..count).rev() {
                    let was_sent = self.log.message(index).is_some_and(|one| one.was_sent_before);
                    if let Some((channel, seq)) = self.log.channel_and_seq(index)
                        && !was_sent
                    {
                        self.sequences.roll_back(channel, seq);
                    }
                }
                if text.starts_with(TOO_LONG) {
                    self.facts.handle_too_long(self.log.front_bytes());
                    self.events.extend(self.facts.take_events());
                    self.parts.some_too_large = true;
                }
                let error = String::from_utf8_lossy(text).into_owned();
                let channel = self.log.front_channel().into();
                self.events.push(Event::Refused { channel, error });
                is_refused = true;
            }
            _ => return Err(LinkError::Unasked),
        }
        let Self { log, parts, config, .. } = self;
        log.pop_front(|message| {
            parts.add(&message, is_refused);
            if message.is_last_part {
                let outcome = std::mem::take(parts).outcome();
                // If nobody waits, the outcome was already reported as unknown.
                if let Some(pusher) = message.pusher {
                    config.counters.count_outcome(outcome);
                    sink.answer(pusher, outcome);
                }
            }
        });
        Ok(())
    }

    /// Handles a message on a channel: one envelope or a bundle of them.
    pub(super) fn handle_message(
        &mut self,
        channel_name: &[u8],
        payload: &[u8],
        now: MonotonicMs,
        sink: &mut dyn Sink,
    ) {
        let place = self.interests.place(channel_name);
        for envelope in bundle::envelopes(payload) {
            self.config.counters.received.add(1);
            match (envelope, place) {
                (Ok(envelope), Some(place)) => {
                    self.handle_envelope((channel_name, place), envelope, now, sink);
                }
                // Just unsubscribed, or never requested.
                (Ok(_), None) => {}
                (Err(error), _) => self.refuse_envelope(channel_name, error.to_string()),
            }
        }
    }

    fn handle_envelope(
        &mut self,
        (channel_name, place): (&[u8], InterestPlace),
        payload: &[u8],
        now: MonotonicMs,
        sink: &mut dyn Sink,
    ) {
        let counters = &self.config.counters;
        // Nothing in an envelope changes the subscriptions.
        let Some(workers) = self.interests.at(place).map(|channel| channel.workers) else { return };
        let header = match Header::read(payload) {
            Ok(header) => header,
            Err(error) => return self.refuse_envelope(channel_name, error.to_string()),
        };
        if header.origin == self.config.node && header.epoch != self.config.epoch() {
            counters.foreign.add(1);
            // An older epoch may be this node's own previous run: a stalled Redis keeps messages
            // for long.
            if header.epoch > self.config.epoch() {
                self.events.push(Event::SameNode);
            }
        }
        match header.kind {
            EnvelopeKind::Canary => self.handle_canary(&header, now, sink),
            EnvelopeKind::Member => {
                if let Err(error) = self.handle_member(payload, now, sink) {
                    self.refuse_envelope(channel_name, error.to_string());
                }
            }
            EnvelopeKind::Newer if header.seq == 0 => self.note_unknown_kind(&header),
            _ if !self.may_have_given_out(&header) => {
                self.note_false_number(header.origin, channel_name);
            }
            _ => {
                if self.is_next((channel_name, place), &header, now) {
                    self.hand_on((channel_name, workers), header, payload, sink);
                }
            }
        }
    }

    /// Whether the message's node may have issued these numbers. This node knows what it issued
    /// itself.
    fn may_have_given_out(&self, header: &Header) -> bool {
        let Header { origin, epoch, seq, order, .. } = *header;
        match self.is_own(header) {
            true => seq <= order && order <= self.order,
            // A tail of an older node has no order.
            false if header.kind == EnvelopeKind::Tail && order == 0 => {
                self.watermarks.may_lack_order(origin, epoch, seq)
            }
            false => self.watermarks.is_possible(origin, epoch, seq, order),
        }
    }

    fn is_own(&self, header: &Header) -> bool {
        (header.origin, header.epoch) == (self.config.node, self.config.epoch())
    }

    fn note_unknown_kind(&mut self, header: &Header) {
        self.config.counters.unknown_kind.add(1);
        self.events.push(Event::UnknownKind { origin: header.origin });
    }

    /// Notes the number of a message or a tail and the messages missed before it. Returns whether
    /// to deliver it.
    fn is_next(
        &mut self,
        (channel_name, place): (&[u8], InterestPlace),
        header: &Header,
        now: MonotonicMs,
    ) -> bool {
        let Some(channel) = self.interests.at(place) else { return false };
        let (origin, epoch, seq) = (header.origin, header.epoch, header.seq);
        let mut is_late = false;
        let arrival = match header.kind {
            EnvelopeKind::Tail => {
                let is_latest = self.watermarks.is_latest(origin, epoch, header.order);
                channel.origins.receive_tail(origin, epoch, seq, is_latest, now)
            }
            _ => {
                let order = self.watermarks.receive(origin, epoch, header.order);
                is_late = order == Order::Late;
                let is_newest = order == Order::Newest;
                channel.origins.receive(origin, epoch, seq, is_newest, now)
            }
        };
        let missed = match arrival {
            Arrival::New { missed } => missed + u64::from(is_late),
            Arrival::Repeated => {
                self.config.counters.repeated.add(1);
                return false;
            }
            Arrival::Reset => {
                self.note_reset(origin, channel_name);
                0
            }
        };
        if header.kind == EnvelopeKind::Newer {
            self.note_unknown_kind(header);
        }
        if missed > 0 {
            self.config.counters.count_missed(origin, channel_name, missed);
            let channel = channel_name.into();
            self.events.push(Event::Missed { origin, channel, missed });
        }
        !is_late
            && !matches!(header.kind, EnvelopeKind::Void | EnvelopeKind::Tail | EnvelopeKind::Newer)
    }

    /// Delivers a message or a parcel to the workers it is for.
    fn hand_on(
        &mut self,
        (channel_name, workers): (&[u8], u64),
        header: Header,
        payload: &[u8],
        sink: &mut dyn Sink,
    ) {
        if payload.len() > self.config.max_envelope_bytes {
            self.config.counters.malformed.add(1);
            let (channel, bytes) = (channel_name.into(), payload.len());
            return self.events.push(Event::TooBig { channel, bytes });
        }
        // What this node accepted, it has checked.
        let is_own = self.is_own(&header);
        if !is_own
            && header.kind != EnvelopeKind::Message
            && let Err(error) = parcel::check_json(payload)
        {
            return self.refuse_envelope(channel_name, error.to_string());
        }
        match header.kind {
            EnvelopeKind::Message => self.route(channel_name, workers, header, payload, sink),
            // This node's workers have received them already.
            EnvelopeKind::Events if is_own => {}
            // Every worker whose business servers want these events.
            EnvelopeKind::Events => {
                if let Some(project) = self.project_of(channel_name, payload) {
                    sink.relay(workers, project, payload);
                }
            }
            _ => self.route_to_one(channel_name, workers, payload, sink),
        }
    }

    /// Routes a request or a response to the worker of the connection it is for.
    fn route_to_one(
        &mut self,
        channel_name: &[u8],
        workers: u64,
        payload: &[u8],
        sink: &mut dyn Sink,
    ) {
        match parcel::addressee(payload) {
            Ok(cid) => {
                let worker = SnowflakeClock::worker_of(cid.0, self.config.workers);
                let wanted = workers & 1 << worker;
                if wanted != 0
                    && let Some(project) = self.project_of(channel_name, payload)
                {
                    sink.relay(wanted, project, payload);
                }
            }
            Err(error) => self.refuse_envelope(channel_name, error.to_string()),
        }
    }

    /// Returns the project of a parcel. `None`, counted: it has none, or this node does not serve
    /// it.
    fn project_of(&mut self, channel_name: &[u8], parcel: &[u8]) -> Option<ProjectId> {
        match parcel::pid(parcel) {
            Ok(pid) => {
                let found = self.config.projects.id_of(pid);
                if found.is_none() {
                    self.config.counters.unknown_project.add(1);
                }
                found
            }
            Err(error) => {
                self.refuse_envelope(channel_name, error.to_string());
                None
            }
        }
    }

    /// Routes a message to the workers that may have a recipient.
    fn route(
        &mut self,
        channel_name: &[u8],
        workers: u64,
        header: Header,
        payload: &[u8],
        sink: &mut dyn Sink,
    ) {
        let envelope = match Envelope::decode_after(header, payload) {
            Ok(envelope) => envelope,
            Err(error) => return self.refuse_envelope(channel_name, error.to_string()),
        };
        // A client would have to close the connection (RFC 6455, section 8.1).
        if simdutf8::basic::from_utf8(envelope.data).is_err() {
            return self.refuse_envelope(channel_name, "its data is not UTF-8".into());
        }
        if !self.is_own(&header) && json::validate(envelope.data).is_err() {
            return self.refuse_envelope(channel_name, EnvelopeError::NotJson.to_string());
        }
        let wanted = self.workers_of(&envelope, workers);
        if wanted != 0 {
            sink.deliver(wanted, &envelope, payload);
        }
    }

    /// Returns those of `workers` that may hold a recipient: a client id names its worker, a user
    /// is where it was announced, any other target may be at all of them.
    fn workers_of(&self, envelope: &Envelope<'_>, workers: u64) -> u64 {
        if workers.is_power_of_two() {
            return workers;
        }
        let config = &self.config;
        if let Some(cids) = envelope.targets.cids {
            let worker_of = |cid: Cid| SnowflakeClock::worker_of(cid.0, config.workers);
            return workers & cids.iter().fold(0, |set, cid| set | 1 << worker_of(cid));
        }
        let Some(uids) = envelope.targets.uids else { return workers };
        let Some(project) = config.projects.id_of(envelope.pid) else { return 0 };
        let users = uids.iter().map(|uid| user_hash(config.hash_keys, project, uid));
        workers & users.fold(self.unsure, |set, user| set | self.presence.workers_of(user))
    }

    fn handle_canary(&mut self, header: &Header, now: MonotonicMs, sink: &mut dyn Sink) {
        let is_own = header.origin == self.config.node && header.epoch == self.config.epoch();
        if !is_own || header.id.0 != self.canary.number || self.canary.is_back {
            return;
        }
        self.canary.is_back = true;
        self.config.counters.lag_ms.set(now.since(self.canary.sent_at));
        self.canary.owed_since.iter_mut().for_each(|since| _ = since.get_or_insert(now));
        sink.canary();
        self.become_ready(now);
    }

    pub(super) fn note_false_number(&mut self, origin: NodeId, channel: &[u8]) {
        self.config.counters.false_numbers.add(1);
        self.events.push(Event::FalseNumber { origin, channel: channel.into() });
    }

    /// Reports that the numbers received from a node were inconsistent.
    pub(super) fn note_reset(&mut self, origin: NodeId, channel: &[u8]) {
        self.config.counters.number_resets.add(1);
        self.events.push(Event::NumbersReset { origin, channel: channel.into() });
    }

    fn refuse_envelope(&mut self, channel: &[u8], error: String) {
        self.config.counters.malformed.add(1);
        self.events.push(Event::Malformed { channel: channel.into(), error });
    }
}
