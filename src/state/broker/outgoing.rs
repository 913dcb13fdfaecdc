//! Messages that workers publish.

use super::publish_log::PublishLog;
use super::{
    Broker, BrokerConfig, LinksState, MAX_PENDING_BYTES, MAX_WAITING_EVENT_BYTES, Outcome, Pusher,
    Sink,
};
use crate::state::sequence::OutgoingSequences;
use crate::types::{MonotonicMs, Routing};
use crate::wire::envelope::{Envelope, Header};
use crate::wire::publication::{LastName, Publication, route};

/// Numbers messages to publish and keeps them until they are answered.
struct Acceptor<'a> {
    config: &'a BrokerConfig,
    epoch: u64,
    sequences: &'a mut OutgoingSequences,
    order: &'a mut u64,
    log: &'a mut PublishLog,
    now: MonotonicMs,
    deadline: MonotonicMs,
}

impl Acceptor<'_> {
    /// Accepts one part of a message: an envelope of the given length, which `write` appends.
    fn add(
        &mut self,
        channel: &[u8],
        bytes: usize,
        may_expire: bool,
        write: impl FnOnce(&mut Vec<u8>),
    ) {
        let mut channel = channel;
        if self.sequences.len() >= self.config.max_outgoing_channels
            && !self.sequences.is_known(channel)
            && let Some(length) = self.config.names.project_of_user(channel)
        {
            // Every node that has the user also subscribes to the project's channel.
            channel = &channel[..length];
        }
        let seq = self.sequences.next(channel, self.now);
        *self.order += 1;
        let envelope = self.log.add_part(channel, bytes, may_expire, self.deadline, write);
        Header::set_numbers(envelope, self.epoch, seq, *self.order);
    }

    fn add_encoded(&mut self, channel: &[u8], envelope: &[u8], may_expire: bool) {
        let write = |out: &mut Vec<u8>| out.extend_from_slice(envelope);
        self.add(channel, envelope.len(), may_expire, write);
    }
}

impl Broker {
    /// Accepts a worker's message. The sink gets the outcome, at once or later.
    pub fn handle_push(
        &mut self,
        envelope: &Envelope<'_>,
        routing: Routing,
        pusher: Pusher,
        now: MonotonicMs,
        sink: &mut dyn Sink,
    ) {
        let bytes = envelope.encoded_bytes();
        if let Some(outcome) = self.refusal(bytes, bytes) {
            self.config.counters.count_refusal(outcome);
            return sink.answer(pusher, outcome);
        }
        let (mut acceptor, last_name) = self.acceptor(now);
        let names = &acceptor.config.names;
        route(routing, envelope, |channel, envelope| {
            let name = last_name.get(names, envelope.pid, channel);
            acceptor.add(name, envelope.encoded_bytes(), true, |out| envelope.encode(out));
        });
        acceptor.log.end_message(Some(pusher));
        self.announce_order(now);
    }

    /// As [`Broker::handle_push`], for a worker on another thread.
    pub fn handle_publish(
        &mut self,
        publication: &Publication,
        pusher: Pusher,
        now: MonotonicMs,
        sink: &mut dyn Sink,
    ) {
        let sizes = publication.parts.iter().map(|part| part.envelope.len());
        let largest = sizes.max().unwrap_or(0);
        if let Some(outcome) = self.refusal(publication.bytes.len(), largest) {
            self.config.counters.count_refusal(outcome);
            return sink.answer(pusher, outcome);
        }
        let (mut acceptor, _) = self.acceptor(now);
        for (index, part) in publication.parts.iter().enumerate() {
            let envelope = &publication.bytes[part.envelope.clone()];
            acceptor.add_encoded(publication.channel(index), envelope, true);
        }
        acceptor.log.end_message(Some(pusher));
        self.announce_order(now);
    }

    /// Publishes a worker's parcel on a channel; nobody waits for the outcome. Events are kept
    /// while the queue is unavailable: a business server that misses one would never learn that
    /// state of its clients.
    pub(super) fn handle_parcel(
        &mut self,
        channel: &[u8],
        parcel: &[u8],
        is_events: bool,
        now: MonotonicMs,
    ) {
        if parcel.len() > self.facts.limit().bytes {
            return self.config.counters.too_large_parcels.add(1);
        }
        let may_wait = is_events
            && self.state != LinksState::Ready
            && self.pending_bytes() + parcel.len() <= MAX_WAITING_EVENT_BYTES;
        if !may_wait && self.refusal(parcel.len(), parcel.len()).is_some() {
            return self.config.counters.parcels_refused.add(1);
        }
        let (mut acceptor, _) = self.acceptor(now);
        acceptor.add_encoded(channel, parcel, !is_events);
        acceptor.log.end_message(None);
        self.announce_order(now);
    }

    /// Returns why a message is not accepted now. `bytes`: of all its parts; `largest`: of one
    /// envelope.
    fn refusal(&self, bytes: usize, largest: usize) -> Option<Outcome> {
        match self.state {
            _ if largest > self.facts.limit().bytes => Some(Outcome::TooLarge),
            LinksState::Ready if self.pending_bytes() + bytes <= MAX_PENDING_BYTES => None,
            LinksState::Ready => Some(Outcome::Overloaded),
            _ => Some(Outcome::Unreachable),
        }
    }

    fn acceptor(&mut self, now: MonotonicMs) -> (Acceptor<'_>, &mut LastName) {
        if self.log.is_empty() && self.state == LinksState::Ready {
            self.publishing.handle_asked(self.listening.at(now));
        }
        let deadline = self.deadline(now);
        let acceptor = Acceptor {
            config: &self.config,
            epoch: self.config.epoch(),
            sequences: &mut self.sequences,
            order: &mut self.order,
            log: self.held.as_mut().unwrap_or(&mut self.log),
            now,
            deadline,
        };
        (acceptor, &mut self.last_name)
    }
}
