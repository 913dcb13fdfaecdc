//! What was handed to the publishing link and not answered: kept, so that it can be sent again in
//! order after a reconnect. The commands themselves are kept, one behind the other, as they are
//! sent.

use super::Outcome;
use crate::wire::envelope::{Header, Kind};
use crate::wire::publication::{Publication, write_publish};
use std::collections::VecDeque;
use std::ops::Range;

/// Answered bytes in front of the rest are given up when there are so many, and more of them than
/// of the rest.
const COMPACT_BYTES: usize = 256 << 10;
/// An empty log keeps at most this much memory.
const KEEP_BYTES: usize = 1 << 20;

/// Who waits for an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pusher {
    pub worker: usize,
    pub ticket: u32,
}

#[derive(Debug)]
enum What {
    Ping,
    /// A canary, or the repeated number of a channel: nobody waits for it, and it is not sent
    /// again.
    Word,
    Message {
        /// Relative to the command's first byte.
        channel: Range<usize>,
        envelope: Range<usize>,
        /// `None`: it was told that the outcome is unknown, or another part of its message will
        /// tell it.
        pusher: Option<Pusher>,
        is_last_part: bool,
        has_expired: bool,
        was_sent_before: bool,
    },
}

#[derive(Debug)]
struct Entry {
    bytes: usize,
    deadline_ms: u64,
    what: What,
}

/// The oldest command that is not answered.
#[derive(Debug, PartialEq, Eq)]
pub enum Answered<'a> {
    Ping,
    Word,
    Message(AnsweredMessage<'a>),
}

#[derive(Debug, PartialEq, Eq)]
pub struct AnsweredMessage<'a> {
    pub channel: &'a [u8],
    pub seq: u64,
    pub pusher: Option<Pusher>,
    pub is_last_part: bool,
    /// In an earlier life of the links, which did not bring its answer.
    pub was_sent_before: bool,
}

/// Answers to the commands of one message.
#[derive(Debug, Default)]
pub struct Parts {
    pub some_accepted: bool,
    pub some_refused: bool,
    /// Refused, but sent in an earlier life of the links too, and perhaps published then.
    pub some_unsure: bool,
}

impl Parts {
    pub fn outcome(&self) -> Outcome {
        match self {
            Self { some_unsure: true, .. } => Outcome::Unknown,
            Self { some_refused: true, some_accepted: true, .. } => Outcome::Unknown,
            Self { some_refused: true, .. } => Outcome::Refused,
            _ => Outcome::Accepted,
        }
    }
}

/// Commands in the order in which they are sent and answered.
///
/// Invariant: `bytes[start..]` is the commands of `entries`, one behind the other, and
/// `start <= sent <= bytes.len()`.
#[derive(Debug, Default)]
pub struct PublishLog {
    bytes: Vec<u8>,
    start: usize,
    sent: usize,
    entries: VecDeque<Entry>,
    /// So many entries from the front are past their deadline.
    expired: usize,
}

impl PublishLog {
    /// Appends a message; its envelopes are numbered. Deadlines never fall from one call to the
    /// next.
    pub fn add_message(&mut self, publication: &Publication, pusher: Pusher, deadline_ms: u64) {
        let mut start = 0;
        let last = publication.parts.len() - 1;
        for (index, part) in publication.parts.iter().enumerate() {
            let relative = |range: &Range<usize>| range.start - start..range.end - start;
            let what = What::Message {
                channel: relative(&part.channel),
                envelope: relative(&part.envelope),
                pusher: (index == last).then_some(pusher),
                is_last_part: index == last,
                has_expired: false,
                was_sent_before: false,
            };
            self.entries.push_back(Entry { bytes: part.end - start, deadline_ms, what });
            start = part.end;
        }
        self.bytes.extend_from_slice(&publication.bytes);
    }

    pub fn add_ping(&mut self, deadline_ms: u64) {
        self.add(deadline_ms, What::Ping, |out| out.extend_from_slice(b"*1\r\n$4\r\nPING\r\n"));
    }

    /// Appends a canary or a tail: an envelope that is nothing but its header.
    pub fn add_word(&mut self, channel: &[u8], header: &Header, deadline_ms: u64) {
        self.add(deadline_ms, What::Word, |out| {
            write_publish(out, channel, Header::BYTES, |out| header.encode(out));
        });
    }

    fn add(&mut self, deadline_ms: u64, what: What, write: impl FnOnce(&mut Vec<u8>)) {
        let start = self.bytes.len();
        write(&mut self.bytes);
        self.entries.push_back(Entry { bytes: self.bytes.len() - start, deadline_ms, what });
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Commands that are not answered.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Bytes of the commands that are not answered.
    pub fn pending_bytes(&self) -> usize {
        self.bytes.len() - self.start
    }

    pub fn has_unsent(&self) -> bool {
        self.sent < self.bytes.len()
    }

    /// Moves at most `max` bytes that were not sent into `out`.
    pub fn take_unsent(&mut self, out: &mut Vec<u8>, max: usize) {
        let end = self.bytes.len().min(self.sent.saturating_add(max));
        out.extend_from_slice(&self.bytes[self.sent..end]);
        self.sent = end;
    }

    /// What the next answer is for; `None`: nothing that was sent waits for one.
    pub fn front(&self) -> Option<Answered<'_>> {
        let entry = self.entries.front()?;
        let command = self.bytes[self.start..self.sent].get(..entry.bytes)?;
        Some(match &entry.what {
            What::Ping => Answered::Ping,
            What::Word => Answered::Word,
            What::Message { channel, envelope, pusher, is_last_part, was_sent_before, .. } => {
                Answered::Message(AnsweredMessage {
                    channel: &command[channel.clone()],
                    seq: Header::read(&command[envelope.clone()]).map_or(0, |header| header.seq),
                    pusher: *pusher,
                    is_last_part: *is_last_part,
                    was_sent_before: *was_sent_before,
                })
            }
        })
    }

    /// Forgets the oldest command: it was answered.
    pub fn pop_front(&mut self) {
        let Some(entry) = self.entries.pop_front() else { return };
        self.expired = self.expired.saturating_sub(1);
        self.start += entry.bytes;
        debug_assert!(self.start <= self.sent);
        if self.entries.is_empty() {
            debug_assert_eq!(self.start, self.bytes.len());
            self.bytes.clear();
            self.bytes.shrink_to(KEEP_BYTES);
            (self.start, self.sent) = (0, 0);
        } else if self.start >= COMPACT_BYTES && self.start * 2 > self.bytes.len() {
            self.bytes.drain(..self.start);
            self.sent -= self.start;
            self.start = 0;
        }
    }

    /// Calls `expire` for each pusher whose deadline has passed. Its command stays: an answer to it
    /// is still due.
    pub fn expire(&mut self, now_ms: u64, mut expire: impl FnMut(Pusher)) {
        while let Some(entry) = self.entries.get_mut(self.expired)
            && entry.deadline_ms <= now_ms
        {
            self.expired += 1;
            if let What::Message { pusher, has_expired, .. } = &mut entry.what {
                *has_expired = true;
                if let Some(pusher) = pusher.take() {
                    expire(pusher);
                }
            }
        }
    }

    /// The link is new: everything that was not answered is to be sent again, in order. What is
    /// past its deadline only keeps its number: its pusher may have pushed again.
    pub fn rewind(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        let mut at = self.start;
        let sent = self.sent;
        (self.start, self.sent, self.expired) = (0, 0, 0);
        for mut entry in std::mem::take(&mut self.entries) {
            let command = &bytes[at..at + entry.bytes];
            let was_sent = at < sent;
            at += entry.bytes;
            let What::Message { channel, envelope, has_expired, was_sent_before, .. } =
                &mut entry.what
            else {
                continue;
            };
            *was_sent_before |= was_sent;
            let start = self.bytes.len();
            let header = Header::read(&command[envelope.clone()]);
            match header {
                Ok(header) if *has_expired => {
                    let void = Header { kind: Kind::Void, ..header };
                    let name = &command[channel.clone()];
                    let ranges = write_publish(&mut self.bytes, name, Header::BYTES, |out| {
                        void.encode(out);
                    });
                    *channel = ranges.0.start - start..ranges.0.end - start;
                    *envelope = ranges.1.start - start..ranges.1.end - start;
                    self.expired += 1;
                }
                _ => self.bytes.extend_from_slice(command),
            }
            entry.bytes = self.bytes.len() - start;
            self.entries.push_back(entry);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{MessageId, NodeId, Routing};
    use crate::wire::envelope::{Envelope, Targets};
    use crate::wire::publication::ChannelNames;
    use crate::wire::resp;

    fn message(seq: u64, data: &[u8]) -> Publication {
        let mut publication = Publication::default();
        let envelope = Envelope {
            origin: NodeId::new(1).unwrap(),
            epoch: 1,
            seq: 0,
            accepted_ms: 0,
            id: MessageId(seq),
            ttl_ms: 0,
            key: None,
            pid: "p",
            targets: Targets::default(),
            data,
        };
        publication.add_message(&ChannelNames::new("x"), Routing::Project, &envelope);
        publication.set_numbers(0, seq, seq);
        publication
    }

    fn pusher(ticket: u32) -> Pusher {
        Pusher { worker: 0, ticket }
    }

    /// The kinds and numbers of the envelopes in what is to be sent.
    fn sent(log: &mut PublishLog) -> Vec<(Kind, u64)> {
        let mut out = Vec::new();
        log.take_unsent(&mut out, usize::MAX);
        let mut found = Vec::new();
        let mut rest = &out[..];
        while !rest.is_empty() {
            // An array of three bulk strings is "other" to the reader; its last one is ours.
            let (_, length) = resp::read(rest, 1 << 20).unwrap().unwrap();
            let command = &rest[..length];
            rest = &rest[length..];
            let Some(at) = command.windows(4).rposition(|four| four == b"x:{p") else { continue };
            let line_end = |bytes: &[u8]| bytes.windows(2).position(|two| two == b"\r\n").unwrap();
            let bulk = &command[at + line_end(&command[at..]) + 3..];
            let header = Header::read(&bulk[line_end(bulk) + 2..]).unwrap();
            found.push((header.kind, header.seq));
        }
        found
    }

    fn front(log: &PublishLog) -> Option<(u64, Option<u32>)> {
        match log.front()? {
            Answered::Message(one) => Some((one.seq, one.pusher.map(|pusher| pusher.ticket))),
            _ => None,
        }
    }

    #[test]
    fn commands_are_answered_in_the_order_in_which_they_were_sent() {
        let mut log = PublishLog::default();
        for seq in 1..=3 {
            log.add_message(&message(seq, b"1"), pusher(seq as u32), 10);
        }
        assert_eq!(log.front(), None, "nothing was sent");
        assert_eq!(sent(&mut log), [(Kind::Message, 1), (Kind::Message, 2), (Kind::Message, 3)]);
        for seq in 1..=3 {
            assert_eq!(front(&log), Some((seq, Some(seq as u32))));
            log.pop_front();
        }
        assert!(log.is_empty() && log.pending_bytes() == 0 && !log.has_unsent());
    }

    #[test]
    fn what_is_past_its_deadline_only_keeps_its_number_when_it_is_sent_again() {
        let mut log = PublishLog::default();
        log.add_message(&message(1, b"late"), pusher(1), 10);
        log.add_ping(10);
        log.add_message(&message(2, b"in time"), pusher(2), 20);
        sent(&mut log);
        let mut expired = Vec::new();
        log.expire(10, |one| expired.push(one.ticket));
        log.expire(10, |one| expired.push(one.ticket));
        assert_eq!(expired, [1]);
        log.rewind();
        assert_eq!(log.len(), 2, "a ping is not repeated");
        assert_eq!(sent(&mut log), [(Kind::Void, 1), (Kind::Message, 2)]);
        log.expire(20, |one| expired.push(one.ticket));
        assert_eq!(expired, [1, 2]);
        // A second reconnect before any answer.
        log.rewind();
        assert_eq!(sent(&mut log), [(Kind::Void, 1), (Kind::Void, 2)]);
        assert_eq!(front(&log), Some((1, None)));
    }

    #[test]
    fn a_part_that_was_sent_in_pieces_is_sent_again_whole() {
        let mut log = PublishLog::default();
        log.add_message(&message(1, b"data"), pusher(1), 10);
        log.take_unsent(&mut Vec::new(), 7);
        assert!(log.front().is_none() && log.has_unsent());
        log.rewind();
        assert_eq!(sent(&mut log), [(Kind::Message, 1)]);
    }

    #[test]
    fn memory_is_given_back_while_the_log_never_empties() {
        let mut log = PublishLog::default();
        let large = vec![b'1'; 64 << 10];
        log.add_message(&message(1, &large), pusher(0), 1);
        for seq in 2..500 {
            log.add_message(&message(seq, &large), pusher(0), 1);
            sent(&mut log);
            log.pop_front();
            assert!(log.bytes.capacity() < 2 << 20, "{}", log.bytes.capacity());
        }
        assert_eq!(front(&log), Some((499, Some(0))));
    }
}
