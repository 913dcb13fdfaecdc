//! Sequence numbers of messages between nodes, per origin and channel. With them a receiver drops
//! duplicates (after a reconnect a publisher sends unanswered messages again, in order) and counts
//! exactly what was lost.
//!
//! A loss is detected when the next message arrives. To detect the loss of a channel's last message
//! too, its number is repeated for a while: the tail.

#[cfg(test)]
mod tests;

use super::chunked_slab::ChunkedSlab;
use super::sharded_table::ShardedTable;
use crate::types::{MonotonicMs, NodeId};
use siphasher::sip::SipHasher13;
use smallvec::SmallVec;
use std::collections::BTreeMap;
use std::hash::Hasher;

/// A channel without a message for this long repeats its last number.
pub const TAIL_EVERY_MS: u64 = 3_000;
/// Channels whose tails one call checks: what is due after a reconnect, or with a channel per user,
/// must not delay pushes.
const REPEATS_PER_CALL: usize = 1_000;
/// How long the tail is repeated after the last message, or after a reconnect.
pub const TAIL_FOR_MS: u64 = 60_000;
/// How long a channel is remembered after its last message, or after the reconnect that made it
/// repeat its tail.
pub const FORGET_MS: u64 = 30 * 60 * 1000;
/// The receiver forgets an origin that was silent for this long.
pub const STALE_MS: u64 = 10 * 60 * 1000;

/// A channel is forgotten `FORGET_MS - TAIL_FOR_MS` after its last repeat. By then no receiver may
/// remember it, or its jump to higher numbers would look like a loss.
const _: () = assert!(STALE_MS + TAIL_FOR_MS + TAIL_EVERY_MS < FORGET_MS);

/// Runs of origins that are distinguished on a channel: all nodes, and as many again that were
/// restarted in the last minutes.
const MAX_LIVES: usize = 2_048;

/// Sequence numbers of what this node publishes: one per channel, increasing by one.
///
/// Every known channel is in `ends` once, and in `tails` once while it has a tail to repeat. Both
/// are read when an entry is due, and it is entered again while there is more to wait for: a
/// message moves nothing in them, and idle channels cost nothing in between.
#[derive(Debug)]
pub struct OutgoingSequences {
    hash_keys: (u64, u64),
    /// Slots of `channels`.
    table: ShardedTable<u32>,
    channels: ChunkedSlab<ChannelNumbers>,
    /// Channels by the millisecond at which to check their tail, which may have been postponed.
    tails: Agenda,
    /// Channels by the second at which to check whether to forget them. Coarser than `tails`, so
    /// that half an hour is 1,800 lists.
    ends: Agenda,
    /// The highest number of any forgotten channel.
    floor: u64,
    /// Slot of the last message's channel: the next one is often on the same channel.
    latest: Option<u32>,
}

#[derive(Debug)]
struct ChannelNumbers {
    name: Box<[u8]>,
    hash: u64,
    last: u64,
    /// `last` when the channel became known: nothing was accepted on it while `last` equals this.
    first: u64,
    /// The last number that was repeated: receivers know it, so it cannot be rolled back.
    repeated: u64,
    message_at: MonotonicMs,
    /// Time of the last message, or of the reconnect after it.
    tail_from: MonotonicMs,
    /// When to repeat `last`, while the channel is in `tails`.
    due: MonotonicMs,
    is_in_tails: bool,
}

/// Slots of channels by the time at which to check them.
type Agenda = BTreeMap<MonotonicMs, Vec<u32>>;

impl OutgoingSequences {
    /// `hash_keys` seed the hash: unknown to peers, so that they cannot cause collisions.
    pub fn new(hash_keys: (u64, u64)) -> Self {
        Self {
            hash_keys,
            table: ShardedTable::default(),
            channels: ChunkedSlab::default(),
            tails: BTreeMap::new(),
            ends: BTreeMap::new(),
            floor: 0,
            latest: None,
        }
    }

    /// Returns the number of the next message on `channel`. An unknown channel starts above the
    /// numbers of all forgotten ones, initially with 1.
    pub fn next(&mut self, channel: &[u8], now: MonotonicMs) -> u64 {
        let slot = self.latest.filter(|&slot| self.is_at(slot, channel)).unwrap_or_else(|| {
            let hash = self.hash(channel);
            self.find(hash, channel).unwrap_or_else(|| self.enter(hash, channel, now))
        });
        self.latest = Some(slot);
        let known = &mut self.channels[slot as usize];
        known.last = known.last.saturating_add(1);
        known.message_at = now;
        known.tail_from = now;
        known.due = now + TAIL_EVERY_MS;
        let (seq, due) = (known.last, known.due);
        if !std::mem::replace(&mut known.is_in_tails, true) {
            self.tails.entry(due).or_default().push(slot);
        }
        seq
    }

    pub fn is_known(&self, channel: &[u8]) -> bool {
        self.find(self.hash(channel), channel).is_some()
    }

    /// Takes back the number of a message that the queue refused. If it is the channel's latest it
    /// is issued again and counts as no loss; otherwise later numbers, or its repeat, are in flight
    /// and it counts as one.
    pub fn roll_back(&mut self, channel: &[u8], seq: u64) {
        let Some(slot) = self.find(self.hash(channel), channel) else { return };
        let known = &mut self.channels[slot as usize];
        if known.last == seq && seq > known.first.max(known.repeated) {
            known.last -= 1;
        }
    }

    /// Calls `repeat` for the channels whose last number is due to be repeated: after every
    /// [`TAIL_EVERY_MS`] of idleness until [`TAIL_FOR_MS`], each at most once per call however
    /// late; if there are very many, some are left to the next call. Then forgets expired channels,
    /// to the second.
    pub fn repeat_tails(&mut self, now: MonotonicMs, mut repeat: impl FnMut(&[u8], u64)) {
        // Taken out completely: what is entered again meanwhile is for a later call.
        let mut due = take_until(&mut self.tails, now);
        for slot in due.by_ref().take(REPEATS_PER_CALL) {
            let known = &mut self.channels[slot as usize];
            if known.due <= now {
                if known.last > known.first {
                    known.repeated = known.last;
                    repeat(&known.name, known.last);
                }
                known.plan_next_repeat(now);
            }
            if known.is_in_tails {
                let due = known.due;
                self.tails.entry(due).or_default().push(slot);
            }
        }
        let rest: Vec<u32> = due.collect();
        if !rest.is_empty() {
            self.tails.entry(now).or_default().extend(rest);
        }
        for slot in take_until(&mut self.ends, now) {
            let known = &mut self.channels[slot as usize];
            let end = whole_second(known.tail_from + FORGET_MS);
            // Its last repeat may have been postponed to a later call.
            if end <= now && !known.is_in_tails {
                self.forget(slot);
            } else {
                self.ends.entry(end.max(whole_second(now + 1))).or_default().push(slot);
            }
        }
    }

    /// Handles a reconnect. Channels are repeated for [`TAIL_FOR_MS`] from now, starting with the
    /// next `repeat_tails`; except those about to be forgotten, whose last message is older than
    /// [`FORGET_MS`]: a link that breaks often would keep them for ever.
    pub fn handle_reconnect(&mut self, now: MonotonicMs) {
        let mut due = Vec::with_capacity(self.channels.len());
        for (slot, known) in self.channels.iter_mut() {
            known.is_in_tails = now.since(known.message_at) < FORGET_MS;
            if known.is_in_tails {
                known.tail_from = now;
                known.due = now;
                due.push(slot as u32);
            }
        }
        self.tails = BTreeMap::from([(now, due)]);
    }

    /// Number of known channels.
    pub fn len(&self) -> usize {
        self.channels.len()
    }

    pub fn is_empty(&self) -> bool {
        self.channels.is_empty()
    }

    fn hash(&self, channel: &[u8]) -> u64 {
        let mut hasher = SipHasher13::new_with_keys(self.hash_keys.0, self.hash_keys.1);
        hasher.write(channel);
        hasher.finish()
    }

    fn find(&self, hash: u64, channel: &[u8]) -> Option<u32> {
        let is_it = |slot: &u32| {
            let known = &self.channels[*slot as usize];
            known.hash == hash && *known.name == *channel
        };
        self.table.find(hash, is_it).copied()
    }

    fn is_at(&self, slot: u32, channel: &[u8]) -> bool {
        self.channels.get(slot as usize).is_some_and(|known| *known.name == *channel)
    }

    fn enter(&mut self, hash: u64, channel: &[u8], now: MonotonicMs) -> u32 {
        let slot = self.channels.insert(ChannelNumbers {
            name: channel.into(),
            hash,
            last: self.floor,
            first: self.floor,
            repeated: self.floor,
            message_at: now,
            tail_from: now,
            due: now,
            is_in_tails: false,
        }) as u32;
        self.table.insert(hash, slot, |slot| self.channels[*slot as usize].hash);
        let end = whole_second(now + FORGET_MS);
        self.ends.entry(end).or_default().push(slot);
        slot
    }

    /// Removes a channel that is in neither list: it was taken out of `ends`, and its last repeat,
    /// which took it out of `tails`, is `FORGET_MS - TAIL_FOR_MS` ago.
    fn forget(&mut self, slot: u32) {
        let Some(known) = self.channels.try_remove(slot as usize) else { return };
        debug_assert!(!known.is_in_tails);
        self.floor = self.floor.max(known.last);
        let hash_of = |slot: &u32| self.channels[*slot as usize].hash;
        self.table.remove(known.hash, |it| *it == slot, hash_of);
    }
}

impl ChannelNumbers {
    /// Plans the repeat after one of `last`: at the next multiple of [`TAIL_EVERY_MS`], whatever
    /// was skipped, unless the tail ends before.
    fn plan_next_repeat(&mut self, now: MonotonicMs) {
        let every = (now.since(self.due) / TAIL_EVERY_MS).saturating_add(1);
        self.due += every.saturating_mul(TAIL_EVERY_MS);
        self.is_in_tails = self.due <= self.tail_from + TAIL_FOR_MS;
        // A late repeat, after a long time without a call: receivers have just received the
        // channel's number, so its end is as far away as after any last repeat.
        self.tail_from = self.tail_from.max(now - TAIL_FOR_MS);
    }
}

/// Returns `time`, or the beginning of the next second.
fn whole_second(time: MonotonicMs) -> MonotonicMs {
    MonotonicMs::new(time.value().div_ceil(1_000).saturating_mul(1_000))
}

/// Removes the entries with keys up to `last`.
fn take_until(map: &mut Agenda, last: MonotonicMs) -> impl Iterator<Item = u32> + use<> {
    let later = map.split_off(&(last + 1));
    std::mem::replace(map, later).into_values().flatten()
}

/// What the subscriber of one channel knows of its publishers. Lives as long as the subscription.
///
/// With one origin it takes 32 bytes and no allocation. There are never more entries than runs of
/// origins, and one that was silent for long makes room for the next new one.
#[derive(Debug, Default)]
pub struct Origins {
    /// The most recently heard one comes first.
    known: SmallVec<[Known; 1]>,
}

#[derive(Debug, Clone, Copy)]
struct Known {
    epoch: u64,
    last: u64,
    /// In seconds: 32 bits last until the year 2106.
    heard_s: u32,
    origin: NodeId,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    /// The first of this run of the origin, the next in sequence, or the first after `missed` lost
    /// ones.
    New { missed: u64 },
    /// It was received before.
    Repeated,
    /// The last known number was never issued: counting restarts from this one.
    Reset,
}

impl Origins {
    /// Handles a message with the number `seq`. It sets the baseline if it is the first of this
    /// origin and epoch (another epoch: the node was restarted), or the first after [`STALE_MS`],
    /// to the second.
    ///
    /// `is_newest`: it is later than everything received from its origin, on any channel. If its
    /// number is then not higher than the last one, the last one was false.
    pub fn receive(
        &mut self,
        origin: NodeId,
        epoch: u64,
        seq: u64,
        is_newest: bool,
        now: MonotonicMs,
    ) -> Arrival {
        match self.advance(origin, epoch, seq, now) {
            None => Arrival::New { missed: 0 },
            Some(0) if is_newest => {
                self.known[0].last = seq;
                Arrival::Reset
            }
            Some(0) => Arrival::Repeated,
            Some(advance) => Arrival::New { missed: advance - 1 },
        }
    }

    /// Handles the origin's repeat of its last number `seq`. Sets the baseline where `receive`
    /// would.
    ///
    /// `is_latest`: nothing was received that the origin published after this. A higher number was
    /// then false.
    pub fn receive_tail(
        &mut self,
        origin: NodeId,
        epoch: u64,
        seq: u64,
        is_latest: bool,
        now: MonotonicMs,
    ) -> Arrival {
        match self.advance(origin, epoch, seq, now) {
            Some(0) if is_latest && self.known[0].last > seq => {
                self.known[0].last = seq;
                Arrival::Reset
            }
            advance => Arrival::New { missed: advance.unwrap_or(0) },
        }
    }

    /// Returns by how much `seq` exceeds the last number; `None` if it sets the baseline.
    fn advance(&mut self, origin: NodeId, epoch: u64, seq: u64, now: MonotonicMs) -> Option<u64> {
        let now_s = u32::try_from(now.value() / 1000).unwrap_or(u32::MAX);
        let heard = Known { epoch, last: seq, heard_s: now_s, origin };
        // Not the origin alone: messages of its previous run may arrive after those of the next.
        let is_it = |known: &Known| (known.origin, known.epoch) == (origin, epoch);
        let Some(at) = self.known.iter().position(is_it) else {
            if let Some(gone) = self.known.iter_mut().find(|known| known.is_stale(now_s)) {
                *gone = heard;
                return None;
            }
            // Beyond that some are not runs of real nodes.
            self.known.truncate(MAX_LIVES - 1);
            self.known.push(heard);
            return None;
        };
        if at > 0 {
            self.known.swap(0, at);
        }
        let known = &mut self.known[0];
        if known.is_stale(now_s) {
            *known = heard;
            return None;
        }
        let advance = seq.saturating_sub(known.last);
        known.last = known.last.max(seq);
        known.heard_s = now_s;
        Some(advance)
    }
}

impl Known {
    fn is_stale(&self, now_s: u32) -> bool {
        u64::from(now_s.saturating_sub(self.heard_s)) >= STALE_MS / 1000
    }
}
