//! Commands handed to the publishing link and not yet answered: kept so that they can be sent again
//! in order after a reconnect.

use super::Outcome;
use super::facts::Question;
use super::transit::Transit;
use crate::types::{Cid, MonotonicMs};
use crate::wire::bundle;
use crate::wire::envelope::{EnvelopeKind, Header};
use crate::wire::publication::write_publish;
use std::collections::VecDeque;

/// A message alone in its command, because it is longer than what is bundled, may be what ends the
/// links: longer than what Redis, or the buffers of its subscribers, accept. After this number of
/// links that ended before it was answered it is sent alone, to find out; if that link ends as
/// well, it is never sent again.
const SENDS_BEFORE_SUSPECT: u8 = 2;

/// Buffers of answered commands kept for reuse, and the maximum length of one.
const KEEP_BUFFERS: usize = 64;
const KEEP_BUFFER_BYTES: usize = 16 << 10;

/// Identifies who waits for a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pusher {
    pub worker: usize,
    pub ticket: u32,
}

#[derive(Debug, Clone, Copy)]
enum Purpose {
    Question(Question),
    /// Raises the number of `super::reservation`.
    Reservation,
    /// A canary, a repeated channel number, or an announcement of the node: it is not sent again.
    Announcement(Option<Waiter>),
    Message {
        /// `None`: the pusher was told that the outcome is unknown, or another part of the message
        /// reports it.
        pusher: Option<Pusher>,
        is_last_part: bool,
        /// Whether it may be dropped once its deadline passes: a push, which its pusher repeats, or
        /// a request.
        may_expire: bool,
        has_expired: bool,
        /// Links that ended after it was sent and before it was answered.
        failed_sends: u8,
        /// It ended the last of them: only its number is sent again.
        is_abandoned: bool,
    },
}

/// The worker and connection that wait until an announcement of their business server is out.
pub type Waiter = (usize, Cid);

#[derive(Debug, Clone, Copy)]
struct SentCommand {
    deadline: MonotonicMs,
    what: Purpose,
}

/// One command to Redis: a question, an announcement, or messages of one channel.
#[derive(Debug)]
struct Command {
    entries: usize,
    /// The channel's name, then each envelope as in a bundle; without a channel, the complete
    /// command.
    bytes: Vec<u8>,
    channel_bytes: usize,
    /// Nothing else is in flight with it.
    is_suspect: bool,
}

/// What the oldest unanswered command asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    Question(Question),
    Reservation,
    Announcement(Option<Waiter>),
    /// Number of messages, all of one channel: [`PublishLog::message`] returns them.
    Messages(usize),
}

#[derive(Debug, PartialEq, Eq)]
pub struct AskedMessage {
    pub pusher: Option<Pusher>,
    pub is_last_part: bool,
    /// In an earlier incarnation of the links, which did not bring a reply.
    pub was_sent_before: bool,
    /// Only its number was sent in this incarnation.
    pub is_abandoned: bool,
}

impl AskedMessage {
    fn of(entry: SentCommand) -> Option<Self> {
        match entry.what {
            Purpose::Message { pusher, is_last_part, failed_sends, is_abandoned, .. } => {
                Some(Self { pusher, is_last_part, was_sent_before: failed_sends > 0, is_abandoned })
            }
            Purpose::Question(_) | Purpose::Reservation | Purpose::Announcement(_) => None,
        }
    }
}

/// Redis's replies to the parts of one message.
#[derive(Debug, Default)]
pub struct Parts {
    pub some_accepted: bool,
    pub some_refused: bool,
    /// Refused, but also sent in an earlier incarnation of the links and perhaps published then.
    pub some_unsure: bool,
    /// Refused for its length.
    pub some_too_large: bool,
}

impl Parts {
    pub fn add(&mut self, part: &AskedMessage, is_refused: bool) {
        match is_refused {
            _ if part.is_abandoned => self.some_unsure = true,
            false => self.some_accepted = true,
            true if part.was_sent_before => self.some_unsure = true,
            true => self.some_refused = true,
        }
    }

    pub fn outcome(&self) -> Outcome {
        match self {
            Self { some_unsure: true, .. } => Outcome::Unknown,
            Self { some_refused: true, some_accepted: true, .. } => Outcome::Unknown,
            Self { some_refused: true, some_too_large: true, .. } => Outcome::TooLarge,
            Self { some_refused: true, .. } => Outcome::Refused,
            _ => Outcome::Accepted,
        }
    }
}

/// Entries in the order in which they are sent and answered. Consecutive messages of one channel
/// share a command as long as none of them is sent.
///
/// Invariant: `entries` are those of `commands`, of which the first `sent_commands` are sent.
#[derive(Debug, Default)]
pub struct PublishLog {
    entries: VecDeque<SentCommand>,
    commands: VecDeque<Command>,
    sent_commands: usize,
    /// Bytes of all commands.
    bytes: usize,
    /// Number of entries, from the front, whose deadline has passed.
    expired: usize,
    /// Last in, first out: the most recently answered buffer is still in the processor's cache.
    spare: Vec<Vec<u8>>,
    /// See [`PublishLog::set_window`]; `None`: not known yet.
    window_bytes: Option<usize>,
}

impl PublishLog {
    /// Sets the bytes that may be in transit: messages share a command up to this length. A longer
    /// one would be sent alone, and might be longer than what Redis holds for a subscriber.
    pub fn set_window(&mut self, bytes: usize) {
        self.window_bytes = Some(bytes);
    }

    /// Appends a part of a message: an envelope of the given length, which `write` appends. Returns
    /// its bytes, to be numbered. [`PublishLog::end_message`] follows the last part. Deadlines
    /// never decrease from one call to the next.
    pub fn add_part(
        &mut self,
        channel: &[u8],
        bytes: usize,
        may_expire: bool,
        deadline: MonotonicMs,
        write: impl FnOnce(&mut Vec<u8>),
    ) -> &mut [u8] {
        let what = Purpose::Message {
            pusher: None,
            is_last_part: false,
            may_expire,
            has_expired: false,
            failed_sends: 0,
            is_abandoned: false,
        };
        self.add(channel, bytes, deadline, what, write)
    }

    /// Ends a message whose parts are all added; `waiting`: who gets the outcome.
    pub fn end_message(&mut self, waiting: Option<Pusher>) {
        if let Some(SentCommand { what: Purpose::Message { pusher, is_last_part, .. }, .. }) =
            self.entries.back_mut()
        {
            (*pusher, *is_last_part) = (waiting, true);
        }
    }

    pub fn add_question(&mut self, question: Question, deadline: MonotonicMs) {
        let mut bytes = self.spare.pop().unwrap_or_default();
        question.write(&mut bytes);
        self.bytes += bytes.len();
        let (channel_bytes, is_suspect) = (0, false);
        self.commands.push_back(Command { entries: 1, bytes, channel_bytes, is_suspect });
        self.entries.push_back(SentCommand { deadline, what: Purpose::Question(question) });
    }

    /// Appends a complete command that raises the number of `super::reservation`.
    pub fn add_reservation(&mut self, command: &[u8], deadline: MonotonicMs) {
        self.bytes += command.len();
        let bytes = command.to_vec();
        self.commands.push_back(Command { entries: 1, bytes, channel_bytes: 0, is_suspect: false });
        self.entries.push_back(SentCommand { deadline, what: Purpose::Reservation });
    }

    /// Appends an announcement, an envelope of any kind without a number.
    pub fn add_word(
        &mut self,
        channel: &[u8],
        envelope: &[u8],
        waiter: Option<Waiter>,
        deadline: MonotonicMs,
    ) {
        let write = |out: &mut Vec<u8>| out.extend_from_slice(envelope);
        self.add(channel, envelope.len(), deadline, Purpose::Announcement(waiter), write);
    }

    fn add(
        &mut self,
        channel: &[u8],
        length: usize,
        deadline: MonotonicMs,
        what: Purpose,
        write: impl FnOnce(&mut Vec<u8>),
    ) -> &mut [u8] {
        if !self.may_join_last(channel, length, &what) {
            let mut bytes = self.spare.pop().unwrap_or_default();
            bytes.extend_from_slice(channel);
            self.bytes += channel.len();
            let is_suspect = length > bundle::MAX_BYTES
                && matches!(what, Purpose::Message { failed_sends: SENDS_BEFORE_SUSPECT.., .. });
            let channel_bytes = channel.len();
            self.commands.push_back(Command { entries: 0, bytes, channel_bytes, is_suspect });
        }
        self.bytes += bundle::LENGTH_BYTES + length;
        self.entries.push_back(SentCommand { deadline, what });
        // The command exists, or was just added.
        self.commands.back_mut().map_or(&mut [], |command| command.add(length, write))
    }

    /// Whether the last command is unsent and has room for another envelope of this length.
    fn may_join_last(&self, channel: &[u8], length: usize, what: &Purpose) -> bool {
        let (Some(command), true) = (self.commands.back(), self.has_unsent()) else { return false };
        let is_message = |what: &Purpose| matches!(what, Purpose::Message { .. });
        let added_bytes = bundle::LENGTH_BYTES + length;
        is_message(what)
            && self.entries.back().is_some_and(|last| is_message(&last.what))
            && command.entries < bundle::MAX_ENVELOPES
            && command.envelope_bytes() + length <= bundle::MAX_BYTES
            && self.window_bytes.is_none_or(|most| command.bytes.len() + added_bytes <= most)
            && command.channel() == channel
    }

    /// Takes the waiters of announcements, which need not wait any more.
    pub fn take_waiters(&mut self) -> Vec<Waiter> {
        let waiter = |entry: &mut SentCommand| match &mut entry.what {
            Purpose::Announcement(waiter) => waiter.take(),
            Purpose::Question(_) | Purpose::Reservation | Purpose::Message { .. } => None,
        };
        self.entries.iter_mut().filter_map(waiter).collect()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Number of unanswered entries.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Bytes of unanswered commands.
    pub fn pending_bytes(&self) -> usize {
        self.bytes
    }

    fn has_unsent(&self) -> bool {
        self.sent_commands < self.commands.len()
    }

    /// Whether a reply from Redis is due.
    pub fn has_sent(&self) -> bool {
        self.sent_commands > 0
    }

    /// Length of the next command to send.
    pub fn next_bytes(&self) -> Option<usize> {
        self.commands.get(self.sent_commands).map(|command| command.bytes.len())
    }

    /// Whether the next command may be sent now: there is one, there is room in transit, and
    /// neither it nor what is in flight has to be alone.
    pub fn may_send(&self, transit: &Transit) -> bool {
        let is_alone = |command: &Command| command.is_suspect;
        match self.commands.get(self.sent_commands) {
            None => false,
            Some(next) if !transit.has_room(next.bytes.len()) => false,
            Some(_) if self.sent_commands == 0 => true,
            Some(next) => !is_alone(next) && !self.commands.front().is_some_and(is_alone),
        }
    }

    /// Appends unsent commands to `out` until it has `max` bytes or more.
    pub fn take_unsent(&mut self, transit: &mut Transit, out: &mut Vec<u8>, max: usize) {
        while out.len() < max
            && self.may_send(transit)
            && let Some(command) = self.commands.get(self.sent_commands)
        {
            command.write(out);
            if !command.channel().is_empty() {
                transit.handle_sent(command.bytes.len());
            }
            self.sent_commands += 1;
        }
    }

    /// What the next reply answers; `None`: nothing sent waits for one.
    pub fn front(&self) -> Option<Asked> {
        let command = self.commands.front().filter(|_| self.sent_commands > 0)?;
        Some(match self.entries.front()?.what {
            Purpose::Question(question) => Asked::Question(question),
            Purpose::Reservation => Asked::Reservation,
            Purpose::Announcement(waiter) => Asked::Announcement(waiter),
            Purpose::Message { .. } => Asked::Messages(command.entries),
        })
    }

    /// Returns one message of the oldest command.
    pub fn message(&self, index: usize) -> Option<AskedMessage> {
        self.entries.get(index).copied().and_then(AskedMessage::of)
    }

    /// Returns channel and number of one message of the oldest command.
    pub fn channel_and_seq(&self, index: usize) -> Option<(&[u8], u64)> {
        let command = self.commands.front()?;
        let envelope = bundle::added(command.envelopes()).nth(index)?;
        Some((command.channel(), Header::read(envelope).ok()?.seq))
    }

    /// Returns the channel of the oldest command.
    pub fn front_channel(&self) -> &[u8] {
        self.commands.front().map_or(&[], Command::channel)
    }

    /// Bytes of the envelopes of the oldest command.
    pub fn front_bytes(&self) -> usize {
        self.commands.front().map_or(0, Command::envelope_bytes)
    }

    /// Bytes of the oldest command, if a reply to it is due.
    pub fn due_bytes(&self) -> usize {
        let front = self.commands.front().filter(|_| self.sent_commands > 0);
        front.map_or(0, |command| command.bytes.len())
    }

    /// Removes the oldest command, which was answered. `each` gets its messages.
    pub fn pop_front(&mut self, mut each: impl FnMut(AskedMessage)) {
        let Some(command) = self.commands.pop_front() else { return };
        self.expired = self.expired.saturating_sub(command.entries);
        self.sent_commands -= 1;
        self.bytes -= command.bytes.len();
        self.entries.drain(..command.entries).filter_map(AskedMessage::of).for_each(&mut each);
        let mut bytes = command.bytes;
        if self.spare.len() < KEEP_BUFFERS && (1..=KEEP_BUFFER_BYTES).contains(&bytes.capacity()) {
            bytes.clear();
            self.spare.push(bytes);
        }
    }

    /// Calls `expire` for each pusher whose deadline has passed. The message stays: its reply is
    /// still due.
    pub fn expire(&mut self, now: MonotonicMs, mut expire: impl FnMut(Pusher)) {
        while let Some(entry) = self.entries.get_mut(self.expired)
            && entry.deadline <= now
        {
            self.expired += 1;
            if let Purpose::Message { pusher, may_expire, has_expired, .. } = &mut entry.what {
                *has_expired = *may_expire;
                if let Some(pusher) = pusher.take() {
                    expire(pusher);
                }
            }
        }
    }

    /// Handles the loss of the link: what was sent will not be answered, and nothing on the next
    /// link is a reply to it. Calls `abandon` with channel, bytes and pusher of a message that was
    /// in flight on the earlier lost links, and alone on this one: it is what ends them.
    pub fn handle_lost(&mut self, mut abandon: impl FnMut(&[u8], usize, Option<Pusher>)) {
        let mut entries = self.entries.iter_mut();
        for command in self.commands.iter().take(self.sent_commands) {
            for entry in entries.by_ref().take(command.entries) {
                let Purpose::Message { failed_sends, is_abandoned, pusher, .. } = &mut entry.what
                else {
                    continue;
                };
                *failed_sends = failed_sends.saturating_add(1);
                if command.is_suspect {
                    *is_abandoned = true;
                    abandon(command.channel(), command.envelope_bytes(), pusher.take());
                }
            }
        }
        self.sent_commands = 0;
    }

    /// Prepares a new link: everything unanswered is sent again, in order. A message past its
    /// deadline keeps only its number: its pusher may have pushed again.
    pub fn rewind(&mut self) {
        let old = std::mem::take(self);
        self.window_bytes = old.window_bytes;
        let mut entries = old.entries.into_iter();
        for command in &old.commands {
            let entries = entries.by_ref().take(command.entries);
            for (entry, envelope) in entries.zip(bundle::added(command.envelopes())) {
                self.add_again(command.channel(), envelope, entry);
            }
        }
    }

    fn add_again(&mut self, channel: &[u8], envelope: &[u8], entry: SentCommand) {
        let Purpose::Message { has_expired, is_abandoned, .. } = entry.what else { return };
        match Header::read(envelope) {
            Ok(header) if has_expired || is_abandoned => {
                self.expired += usize::from(has_expired);
                let void = Header { kind: EnvelopeKind::Void, ..header };
                let write = |out: &mut Vec<u8>| void.encode(out);
                self.add(channel, Header::BYTES, entry.deadline, entry.what, write);
            }
            _ => {
                let write = |out: &mut Vec<u8>| out.extend_from_slice(envelope);
                self.add(channel, envelope.len(), entry.deadline, entry.what, write);
            }
        }
    }
}

impl Command {
    fn channel(&self) -> &[u8] {
        &self.bytes[..self.channel_bytes]
    }

    /// Returns the envelopes, in the format of a bundle.
    fn envelopes(&self) -> &[u8] {
        &self.bytes[self.channel_bytes..]
    }

    /// Length of the envelopes without the framing of a bundle.
    fn envelope_bytes(&self) -> usize {
        self.envelopes().len() - self.entries * bundle::LENGTH_BYTES
    }

    fn add(&mut self, length: usize, write: impl FnOnce(&mut Vec<u8>)) -> &mut [u8] {
        self.entries += 1;
        bundle::add(&mut self.bytes, length, write)
    }

    /// Appends the command in Redis's protocol.
    fn write(&self, out: &mut Vec<u8>) {
        if self.channel_bytes == 0 {
            return out.extend_from_slice(&self.bytes);
        }
        let (head, envelopes) = bundle::payload(self.envelopes(), self.entries);
        write_publish(out, self.channel(), head.len() + envelopes.len(), |out| {
            out.extend_from_slice(head);
            out.extend_from_slice(envelopes);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{MessageId, NodeId};
    use crate::wire::envelope::{Envelope, Targets};
    use crate::wire::resp;

    fn ms(ms: u64) -> MonotonicMs {
        MonotonicMs::new(ms)
    }

    fn add(log: &mut PublishLog, seq: u64, data: &[u8], pusher: Option<Pusher>, deadline_ms: u64) {
        let envelope = Envelope {
            origin: NodeId::new(1).unwrap(),
            epoch: 1,
            seq: 0,
            accepted_us: 0,
            trace: None,
            id: MessageId(seq),
            ttl_ms: 0,
            key: None,
            pid: b"p",
            targets: Targets::default(),
            data,
        };
        let write = |out: &mut Vec<u8>| envelope.encode(out);
        let part = log.add_part(b"x:{p}", envelope.encoded_bytes(), true, ms(deadline_ms), write);
        Header::set_numbers(part, 1, seq, seq);
        log.end_message(pusher);
    }

    fn pusher(ticket: u32) -> Option<Pusher> {
        Some(Pusher { worker: 0, ticket })
    }

    /// Returns the kinds and numbers of the envelopes in the commands to send.
    fn sent(log: &mut PublishLog) -> Vec<Vec<(EnvelopeKind, u64)>> {
        let mut out = Vec::new();
        log.take_unsent(&mut Transit::default(), &mut out, usize::MAX);
        let mut found = Vec::new();
        let mut rest = &out[..];
        while !rest.is_empty() {
            // The reader reports an array of three bulk strings as "other"; its last one is ours.
            let (_, length) = resp::read(rest, 1 << 20).unwrap().unwrap();
            let command = &rest[..length];
            rest = &rest[length..];
            let Some(at) = command.windows(4).position(|four| four == b"x:{p") else { continue };
            let line_end = |bytes: &[u8]| bytes.windows(2).position(|two| two == b"\r\n").unwrap();
            let bulk = &command[at + line_end(&command[at..]) + 3..];
            let payload = &bulk[line_end(bulk) + 2..bulk.len() - 2];
            let header = |envelope| Header::read(envelope).unwrap();
            let headers = bundle::envelopes(payload).map(|envelope| header(envelope.unwrap()));
            found.push(headers.map(|header| (header.kind, header.seq)).collect());
        }
        found
    }

    /// Returns number and pusher of each message of the oldest command.
    fn front(log: &PublishLog) -> Vec<(u64, Option<u32>)> {
        let Some(Asked::Messages(count)) = log.front() else { return Vec::new() };
        let one = |index| {
            let message = log.message(index).unwrap();
            (log.channel_and_seq(index).unwrap().1, message.pusher.map(|pusher| pusher.ticket))
        };
        (0..count).map(one).collect()
    }

    #[test]
    fn messages_of_one_channel_share_a_command_and_its_answer() {
        let mut log = PublishLog::default();
        for seq in 1..=3 {
            add(&mut log, seq, b"1", pusher(seq as u32), 10);
        }
        assert_eq!(log.front(), None, "nothing was sent");
        let all =
            [(EnvelopeKind::Message, 1), (EnvelopeKind::Message, 2), (EnvelopeKind::Message, 3)];
        assert_eq!(sent(&mut log), [all]);
        log.add_question(Question::Ping, ms(10));
        add(&mut log, 4, b"1", pusher(4), 10);
        assert_eq!(sent(&mut log), [[(EnvelopeKind::Message, 4)]]);
        assert_eq!(front(&log), [(1, Some(1)), (2, Some(2)), (3, Some(3))]);
        log.pop_front(drop);
        assert_eq!(log.front(), Some(Asked::Question(Question::Ping)));
        log.pop_front(drop);
        assert_eq!(front(&log), [(4, Some(4))]);
        log.pop_front(drop);
        assert!(log.is_empty() && log.pending_bytes() == 0 && !log.may_send(&Transit::default()));
    }

    #[test]
    fn a_bundle_ends_at_another_channel_and_at_its_limits() {
        let mut log = PublishLog::default();
        for seq in 1..=20 {
            add(&mut log, seq, b"1", pusher(0), 10);
        }
        let mut tail = Vec::new();
        let (kind, origin) = (EnvelopeKind::Tail, NodeId::new(1).unwrap());
        Header { kind, origin, epoch: 1, seq: 20, order: 0, id: MessageId(0) }.encode(&mut tail);
        log.add_word(b"x:{p}", &tail, None, ms(10));
        let half = vec![b'1'; bundle::MAX_BYTES / 2 + 1];
        for seq in 21..=22 {
            add(&mut log, seq, &half, pusher(0), 10);
        }
        add(&mut log, 23, &[&half[..], &half].concat(), pusher(0), 10);
        let counts: Vec<usize> = sent(&mut log).iter().map(Vec::len).collect();
        assert_eq!(counts, [bundle::MAX_ENVELOPES, 4, 1, 1, 1, 1]);
    }

    /// A bundle was as long as 64 KiB even where Redis held less for a subscriber: it cut the
    /// links of all nodes, and 200 was the answer.
    #[test]
    fn a_bundle_is_no_longer_than_the_window_even_when_it_is_sent_again() {
        let mut log = PublishLog::default();
        log.set_window(10_000);
        for seq in 1..=20 {
            add(&mut log, seq, &[b'1'; 3_000], pusher(0), 10);
        }
        add(&mut log, 21, &[b'1'; 20_000], pusher(0), 10);
        for _ in 0..2 {
            assert!(log.commands.iter().rev().skip(1).all(|command| command.bytes.len() <= 10_000));
            let counts: Vec<usize> = sent(&mut log).iter().map(Vec::len).collect();
            assert_eq!(counts, [3, 3, 3, 3, 3, 3, 2, 1], "a longer one is alone");
            log.handle_lost(|_, _, _| unreachable!());
            log.rewind();
        }
    }

    #[test]
    fn no_more_is_taken_than_was_asked_for_and_one_command() {
        let mut log = PublishLog::default();
        for seq in 1..=40 {
            add(&mut log, seq, b"1", pusher(0), 10);
        }
        let mut out = Vec::new();
        let mut transit = Transit::default();
        log.take_unsent(&mut transit, &mut out, 1);
        assert!(log.may_send(&transit));
        assert_eq!(front(&log).len(), bundle::MAX_ENVELOPES);
        let before = out.len();
        log.take_unsent(&mut transit, &mut out, before);
        assert_eq!(out.len(), before);
    }

    #[test]
    fn what_is_past_its_deadline_only_keeps_its_number_when_it_is_sent_again() {
        let mut log = PublishLog::default();
        add(&mut log, 1, b"late", pusher(1), 10);
        log.add_question(Question::Ping, ms(10));
        add(&mut log, 2, b"in time", pusher(2), 20);
        sent(&mut log);
        let mut expired = Vec::new();
        log.expire(ms(10), |one| expired.push(one.ticket));
        log.expire(ms(10), |one| expired.push(one.ticket));
        assert_eq!(expired, [1]);
        log.handle_lost(|_, _, _| unreachable!());
        assert_eq!(log.front(), None, "nothing of the next link is an answer to it");
        log.rewind();
        assert_eq!(log.len(), 2, "a ping is not repeated");
        assert_eq!(sent(&mut log), [[(EnvelopeKind::Void, 1), (EnvelopeKind::Message, 2)]]);
        log.expire(ms(20), |one| expired.push(one.ticket));
        assert_eq!(expired, [1, 2]);
        // A second reconnect before any reply.
        log.handle_lost(|_, _, _| unreachable!());
        log.rewind();
        assert_eq!(sent(&mut log), [[(EnvelopeKind::Void, 1), (EnvelopeKind::Void, 2)]]);
        assert_eq!(front(&log), [(1, None), (2, None)]);
        assert!(log.message(0).unwrap().was_sent_before);
    }

    #[test]
    fn memory_is_given_back_while_the_log_never_empties() {
        let mut log = PublishLog::default();
        let large = vec![b'1'; 64 << 10];
        add(&mut log, 1, &large, pusher(0), 1);
        for seq in 2..500 {
            add(&mut log, seq, &large, pusher(0), 1);
            sent(&mut log);
            log.pop_front(drop);
            let buffers = log.commands.iter().map(|command| &command.bytes).chain(&log.spare);
            let kept: usize = buffers.map(Vec::capacity).sum();
            assert!(kept < 2 << 20, "{kept}");
        }
        assert_eq!(front(&log), [(499, Some(0))]);
    }

    /// A message that Redis does not accept was sent again for ever and ended the links each time.
    #[test]
    fn what_ends_three_links_is_not_sent_again_and_costs_no_other_message() {
        let mut log = PublishLog::default();
        let large = vec![b'1'; 65 << 10];
        add(&mut log, 1, b"before", pusher(1), 10);
        add(&mut log, 2, &large, pusher(2), 10);
        add(&mut log, 3, &large, pusher(3), 10);
        let lose = |log: &mut PublishLog| {
            let mut abandoned = Vec::new();
            log.handle_lost(|channel, bytes, pusher| {
                assert!(channel == b"x:{p}" && bytes > large.len());
                abandoned.push(pusher.unwrap().ticket);
            });
            log.rewind();
            abandoned
        };
        let all = [
            [(EnvelopeKind::Message, 1)],
            [(EnvelopeKind::Message, 2)],
            [(EnvelopeKind::Message, 3)],
        ];
        for _ in 0..2 {
            assert_eq!(sent(&mut log), all);
            assert_eq!(lose(&mut log), [0; 0]);
        }
        // A small message is not suspected; a large one is sent alone.
        assert_eq!(sent(&mut log), all[..1]);
        log.pop_front(drop);
        assert_eq!(sent(&mut log), all[1..2]);
        assert_eq!(sent(&mut log), [[]; 0], "nothing goes along");
        assert_eq!(lose(&mut log), [2]);
        assert_eq!(sent(&mut log), [[(EnvelopeKind::Void, 2)]], "its number is kept");
        assert!(log.message(0).unwrap().is_abandoned);
        log.pop_front(drop);
        assert_eq!(sent(&mut log), all[2..]);
        log.pop_front(drop);
        assert!(log.is_empty() && log.pending_bytes() == 0);
    }
}
