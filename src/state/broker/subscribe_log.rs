//! The subscribing link: commands sent on it, and Redis's replies: confirmations, and refusals,
//! which affect only those who need the channel.

use super::facts::{self, Command};
use super::link::Link;
use super::{Broker, CHANNELS_PER_COMMAND, Event, LinkError, LinksState, PING_EVERY_MS, Sink};
use crate::state::subscriptions::Interest;
use crate::types::MonotonicMs;
use crate::wire::bundle;
use crate::wire::publication::Channel;
use crate::wire::resp::{Reply, write_command};
use std::collections::{BTreeSet, VecDeque};
use std::ops::Bound;

/// Interval at which refused channels are requested again: Redis's ACL may have changed.
const AGAIN_EVERY_MS: u64 = 5_000;
/// Maximum number requested again at a time, each in a command of its own.
const AGAIN_CHANNELS: usize = 500;

/// A command not answered yet, or not for all of its channels.
#[derive(Debug)]
enum Sent {
    Subscribe {
        /// The names of its channels, in the format of a bundle.
        names: Vec<u8>,
        /// Offset of the first unanswered name.
        at: usize,
        is_renewal: bool,
    },
    /// Number of unanswered channels.
    Unsubscribe(usize),
    /// When it was sent.
    Ping(MonotonicMs),
}

/// Commands in flight on this incarnation of the subscribing link, and the channels that Redis
/// refused.
///
/// Invariant: Redis answers in the order of `sent`, so every reply is for its front.
#[derive(Debug, Default)]
pub(super) struct SubscribeLog {
    sent: VecDeque<Sent>,
    /// Channels that are neither confirmed nor refused.
    unconfirmed: usize,
    /// Those of them wanted when the links came up: pushes wait for these.
    unrenewed: usize,
    /// See [`SubscribeLog::read_until`], and when the last PING was sent.
    read_until: MonotonicMs,
    pinged_at: MonotonicMs,
    /// A PONG is due.
    is_pinging: bool,
    refused: BTreeSet<Box<[u8]>>,
    /// When refused channels were last requested again, and up to which one.
    again_at: MonotonicMs,
    again_after: Box<[u8]>,
}

impl SubscribeLog {
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Whether a reply from Redis is due.
    pub(super) fn is_waiting(&self) -> bool {
        self.unconfirmed > 0 || self.is_pinging
    }

    /// Everything that Redis sent before this time is read: a PING of that time is answered. 0:
    /// unknown. Timeouts of other nodes are measured against it, whatever the backlog to read.
    pub(super) fn read_until(&self) -> MonotonicMs {
        self.read_until
    }

    /// Whether to send a PING. At most one is in flight.
    pub(super) fn is_ping_due(&self, now: MonotonicMs, is_urgent: bool) -> bool {
        let every_ms = if is_urgent { 0 } else { PING_EVERY_MS };
        !self.is_pinging && now.since(self.pinged_at) >= every_ms
    }

    /// Number of channels that Redis does not permit this node to subscribe to.
    pub(super) fn refused(&self) -> usize {
        self.refused.len()
    }

    pub(super) fn subscribe(&mut self, link: &mut Link, channels: &[&[u8]], is_renewal: bool) {
        for some in channels.chunks(CHANNELS_PER_COMMAND) {
            let mut command: Vec<&[u8]> = vec![b"SUBSCRIBE"];
            command.extend(some);
            write_command(&mut link.out, &command);
            let mut names = Vec::new();
            for name in some {
                bundle::add(&mut names, name.len(), |out| out.extend_from_slice(name));
            }
            self.sent.push_back(Sent::Subscribe { names, at: 0, is_renewal });
        }
        self.unconfirmed += channels.len();
        self.unrenewed += if is_renewal { channels.len() } else { 0 };
    }

    pub(super) fn unsubscribe(&mut self, link: &mut Link, channels: &[&[u8]]) {
        let mut command: Vec<&[u8]> = vec![b"UNSUBSCRIBE"];
        command.extend(channels);
        write_command(&mut link.out, &command);
        self.sent.push_back(Sent::Unsubscribe(channels.len()));
        for name in channels {
            self.refused.remove(*name);
        }
    }

    pub(super) fn ping(&mut self, link: &mut Link, now: MonotonicMs) {
        write_command(&mut link.out, &[b"PING"]);
        self.sent.push_back(Sent::Ping(now));
        (self.pinged_at, self.is_pinging) = (now, true);
    }

    /// Takes the oldest command, which is answered or refused.
    fn take_answered(&mut self) -> Option<Sent> {
        let sent = self.sent.pop_front();
        if let Some(Sent::Ping(sent_at)) = sent {
            (self.read_until, self.is_pinging) = (sent_at, false);
        }
        sent
    }

    /// Notes the confirmation of a channel. `None`: it was not requested.
    fn confirm(&mut self, channel: &[u8]) -> Option<()> {
        let Some(Sent::Subscribe { names, at, is_renewal }) = self.sent.front_mut() else {
            return None;
        };
        if bundle::added(&names[*at..]).next() != Some(channel) {
            return None;
        }
        *at += bundle::LENGTH_BYTES + channel.len();
        let (is_over, is_renewal) = (*at == names.len(), *is_renewal);
        if is_over {
            self.sent.pop_front();
        }
        self.settle(1, is_renewal);
        Some(())
    }

    /// Notes the number of channels that are confirmed, refused, or requested again in another
    /// command.
    fn settle(&mut self, channels: usize, is_renewal: bool) {
        self.unconfirmed -= channels;
        self.unrenewed -= if is_renewal { channels } else { 0 };
    }

    /// Notes the confirmation of an unsubscribe. `None`: it was not requested.
    fn leave_one(&mut self) -> Option<()> {
        match self.sent.front_mut() {
            Some(Sent::Unsubscribe(left @ 2..)) => *left -= 1,
            Some(Sent::Unsubscribe(_)) => drop(self.sent.pop_front()),
            _ => return None,
        }
        Some(())
    }

    /// Takes those refused channels that are due to be requested again.
    fn take_again(&mut self, now: MonotonicMs) -> Vec<Box<[u8]>> {
        if self.refused.is_empty() || now.since(self.again_at) < AGAIN_EVERY_MS {
            return Vec::new();
        }
        self.again_at = now;
        let after = (Bound::Excluded(&*self.again_after), Bound::Unbounded);
        let some: Vec<Box<[u8]>> =
            self.refused.range::<[u8], _>(after).take(AGAIN_CHANNELS).cloned().collect();
        // The end of the list, or an empty one: start over.
        self.again_after = match some.last() {
            Some(last) if some.len() == AGAIN_CHANNELS => last.clone(),
            _ => Box::default(),
        };
        some
    }
}

impl Broker {
    /// Handles a reply on the subscribing link after its greeting.
    pub(super) fn handle_subscribing(
        &mut self,
        reply: Reply<'_>,
        now: MonotonicMs,
        sink: &mut dyn Sink,
    ) -> Result<(), LinkError> {
        match reply {
            Reply::Message { channel, payload } => {
                self.handle_message(channel, payload, now, sink);
            }
            Reply::Subscribed { channel } => {
                self.subscribe_log.confirm(channel).ok_or(LinkError::Unasked)?;
                self.handle_subscribed(channel, sink);
                self.begin_if_renewed(now);
            }
            Reply::Unsubscribed { .. } => {
                self.subscribe_log.leave_one().ok_or(LinkError::Unasked)?;
            }
            Reply::Pong => match self.subscribe_log.take_answered() {
                Some(Sent::Ping(_)) => self.handle_pong(now),
                _ => return Err(LinkError::Unasked),
            },
            Reply::Error(text) => self.handle_subscribing_error(text, now, sink)?,
            // A push message of another type.
            Reply::Other => {}
            _ => return Err(LinkError::Unasked),
        }
        Ok(())
    }

    fn handle_subscribing_error(
        &mut self,
        text: &[u8],
        now: MonotonicMs,
        sink: &mut dyn Sink,
    ) -> Result<(), LinkError> {
        let forbidden = match self.subscribe_log.take_answered() {
            None if facts::is_sign_of_life(text) => return Ok(()),
            Some(Sent::Ping(_)) if facts::is_sign_of_life(text) => {
                self.handle_pong(now);
                return Ok(());
            }
            Some(Sent::Subscribe { names, at, is_renewal }) if text.starts_with(b"NOPERM") => {
                let names: Vec<&[u8]> = bundle::added(&names[at..]).collect();
                self.subscribe_log.settle(names.len(), is_renewal);
                self.handle_refused(&names, is_renewal, text, sink)?;
                self.subscribing.handle_asked(self.listening.at(now));
                self.begin_if_renewed(now);
                return Ok(());
            }
            Some(Sent::Ping(_)) if facts::is_forbidden(text) => {
                self.handle_pong(now);
                Command::Ping
            }
            Some(Sent::Unsubscribe(_)) if facts::is_forbidden(text) => Command::Unsubscribe,
            _ => return Err(self.refused(text)),
        };
        self.facts.note_refusal(forbidden, text);
        self.events.extend(self.facts.take_events());
        Ok(())
    }

    /// Handles the refusal of a whole command: Redis does not name the channel, so halves of the
    /// command are requested until it is found.
    fn handle_refused(
        &mut self,
        names: &[&[u8]],
        is_renewal: bool,
        text: &[u8],
        sink: &mut dyn Sink,
    ) -> Result<(), LinkError> {
        if let [name] = names {
            return self.refuse_channel(name, text, sink);
        }
        let is_wanted = |name: &&&[u8]| self.interests.has(name);
        let wanted: Vec<&[u8]> = names.iter().filter(is_wanted).copied().collect();
        let (first, second) = wanted.split_at(wanted.len() / 2);
        for half in [first, second] {
            self.subscribe_log.subscribe(&mut self.subscribing, half, is_renewal);
        }
        Ok(())
    }

    fn refuse_channel(
        &mut self,
        name: &[u8],
        text: &[u8],
        sink: &mut dyn Sink,
    ) -> Result<(), LinkError> {
        if self.is_vital(name) {
            return Err(self.refused(text));
        }
        let interests = self.interests_of(name);
        let Some(told) = self.interests.refuse(name, &interests) else { return Ok(()) };
        for (worker, interest) in told {
            sink.refuse(worker, &interest);
        }
        if self.subscribe_log.refused.insert(name.into()) {
            let error = String::from_utf8_lossy(text).into_owned();
            let rule = self.acl_rule();
            self.events.push(Event::ChannelRefused { channel: name.into(), error, rule });
        }
        Ok(())
    }

    /// Handles the confirmation of a channel: notifies workers for which it was the last one
    /// pending.
    fn handle_subscribed(&mut self, channel: &[u8], sink: &mut dyn Sink) {
        if self.subscribe_log.refused.remove(channel) {
            // The others may be permitted now as well.
            self.subscribe_log.again_at = MonotonicMs::default();
            self.events.push(Event::ChannelAllowed { channel: channel.into() });
        }
        for (worker, interest) in self.interests.confirm(channel) {
            let names = self.channel_names(&interest);
            if names.iter().all(|name| self.interests.is_in_force(name)) {
                sink.ready(worker, &interest);
            }
        }
    }

    pub(super) fn subscribe_to_all(&mut self, now: MonotonicMs) {
        let Self { interests, subscribe_log, subscribing, .. } = self;
        let mut names: Vec<&[u8]> = interests.names().collect();
        names.sort_unstable();
        subscribe_log.subscribe(subscribing, &names, true);
        subscribing.handle_asked(self.listening.at(now));
    }

    /// Requests refused channels again.
    pub(super) fn subscribe_again(&mut self, now: MonotonicMs) {
        for name in self.subscribe_log.take_again(now) {
            self.subscribe_log.subscribe(&mut self.subscribing, &[&name], false);
            self.subscribing.handle_asked(self.listening.at(now));
        }
    }

    fn begin_if_renewed(&mut self, now: MonotonicMs) {
        if self.subscribe_log.unrenewed == 0 && self.state == LinksState::Opening {
            self.begin_publishing(now);
        }
    }

    /// Whether the links need the channel: without these two a node receives neither itself nor the
    /// others.
    pub(super) fn is_vital(&self, channel: &[u8]) -> bool {
        channel == self.own_channel || channel == self.nodes_channel
    }

    /// Describes Redis's refusal of something that the links cannot do without.
    pub(super) fn refused(&self, error: &[u8]) -> LinkError {
        let mut text = String::from_utf8_lossy(error).into_owned();
        if error.starts_with(b"NOPERM") {
            text += &format!(": {}", self.acl_rule());
        }
        LinkError::Refused(text)
    }

    /// The ACL rule that permits this node's user everything it needs.
    pub(super) fn acl_rule(&self) -> String {
        let user = self.config.credentials.url.user.as_deref().unwrap_or("default");
        let prefix = self.config.names.prefix();
        format!("ACL SETUSER {user} &{prefix}:* +publish +subscribe +unsubscribe")
    }

    /// Returns the interests that a channel is part of.
    fn interests_of(&self, channel: &[u8]) -> Vec<Interest> {
        let Some((pid, what)) = self.config.names.parse(channel) else { return Vec::new() };
        let Some(project) = self.config.projects.id_of(pid) else { return Vec::new() };
        match what {
            None => vec![Interest::Events(project)],
            Some(Channel::Project) => vec![Interest::Project(project)],
            Some(Channel::Node(_)) => vec![Interest::Project(project), Interest::Inbox(project)],
            Some(Channel::User(uid)) => {
                vec![Interest::User(project, String::from_utf8_lossy(uid).into())]
            }
        }
    }
}
