//! Sequence numbers of messages between nodes, for each origin and channel: with them a receiver
//! drops repeats (after a reconnect a publisher sends again whatever was not answered, in order)
//! and counts exactly what was lost.
//!
//! A lost message shows when the next one comes. So that the last one of a channel is missed as
//! well, its number is repeated for a while: the tail.

use crate::types::NodeId;
use hashbrown::HashTable;
use siphasher::sip::SipHasher13;
use slab::Slab;
use smallvec::SmallVec;
use std::collections::BTreeMap;
use std::hash::Hasher;

/// A channel without a message for this long repeats its last number.
pub const TAIL_EVERY_MS: u64 = 3_000;
/// For so long after the last message, or after a reconnect.
pub const TAIL_FOR_MS: u64 = 60_000;
/// A channel is forgotten so long after its last message, or after the reconnect that made it
/// repeat its tail again.
pub const FORGET_MS: u64 = 30 * 60 * 1000;
/// An origin that was silent for this long is forgotten by the receiver.
pub const STALE_MS: u64 = 10 * 60 * 1000;

/// From a channel's last repeat to its being forgotten there are `FORGET_MS - TAIL_FOR_MS`. By then
/// no receiver may remember it, or its jump to higher numbers would look like a loss.
const _: () = assert!(STALE_MS + TAIL_FOR_MS + TAIL_EVERY_MS < FORGET_MS);

const SHARDS: usize = 256;

/// What this node publishes: one number for each channel, rising by one.
///
/// Every known channel is in `ends` once, and in `tails` once while it has a tail to repeat. Both
/// are read when their time comes and entered again for as long as there is something to wait for:
/// a message moves nothing in them, and idle channels cost nothing between their ends. Channels
/// are spread over 256 shards, each with its table and its slab, so that growing one moves a 256th.
#[derive(Debug)]
pub struct OutgoingSequences {
    hash_keys: (u64, u64),
    shards: Box<[Shard]>,
    /// Channels by the millisecond at which to look at their tail: it may have moved on.
    tails: Agenda,
    /// Channels by the second at which to look whether they are to be forgotten. Coarser than
    /// `tails`, so that half an hour is 1,800 lists.
    ends: Agenda,
    /// The highest number of a channel that is forgotten.
    floor: u64,
    len: usize,
}

#[derive(Debug, Default)]
struct Shard {
    table: HashTable<u32>,
    channels: Slab<Channel>,
}

#[derive(Debug)]
struct Channel {
    name: Box<[u8]>,
    hash: u64,
    last: u64,
    /// `last` when the channel became known: nothing was accepted on it while `last` is this.
    first: u64,
    /// The last number that was repeated: it is known, and cannot be taken back.
    repeated: u64,
    message_ms: u64,
    /// The last message, or the reconnect after it.
    tail_from_ms: u64,
    /// When to repeat `last`, while the channel is in `tails`.
    due_ms: u64,
    is_in_tails: bool,
}

/// Channels by the time at which to look at them.
type Agenda = BTreeMap<u64, Vec<Place>>;

/// A slot in a shard's slab.
#[derive(Debug, Clone, Copy)]
struct Place {
    shard: u8,
    slot: u32,
}

impl OutgoingSequences {
    /// `hash_keys` seed the hash: unknown to peers, so that they cannot aim at one bucket.
    pub fn new(hash_keys: (u64, u64)) -> Self {
        Self {
            hash_keys,
            shards: (0..SHARDS).map(|_| Shard::default()).collect(),
            tails: BTreeMap::new(),
            ends: BTreeMap::new(),
            floor: 0,
            len: 0,
        }
    }

    /// The number of the next message on `channel`. A channel that is not known begins above all
    /// numbers of forgotten ones, at first with 1.
    pub fn next(&mut self, channel: &[u8], now_ms: u64) -> u64 {
        let hash = self.hash(channel);
        let place = match self.find(hash, channel) {
            Some(place) => place,
            None => self.enter(hash, channel, now_ms),
        };
        let known = self.channel_mut(place);
        known.last = known.last.saturating_add(1);
        known.message_ms = now_ms;
        known.tail_from_ms = now_ms;
        known.due_ms = now_ms.saturating_add(TAIL_EVERY_MS);
        let (seq, due_ms) = (known.last, known.due_ms);
        if !std::mem::replace(&mut known.is_in_tails, true) {
            self.tails.entry(due_ms).or_default().push(place);
        }
        seq
    }

    /// The queue refused the message with this number. If it is the channel's latest it is given
    /// out again, and nobody counts a loss; otherwise later ones, or its repeat, are under way, and
    /// it is one.
    pub fn roll_back(&mut self, channel: &[u8], seq: u64) {
        let Some(place) = self.find(self.hash(channel), channel) else { return };
        let known = self.channel_mut(place);
        if known.last == seq && seq > known.first.max(known.repeated) {
            known.last -= 1;
        }
    }

    /// Names the channels whose last number is to be repeated now: after every [`TAIL_EVERY_MS`]
    /// of idleness until [`TAIL_FOR_MS`], each once in a call however late that is. Then forgets
    /// those whose time is over, to the second.
    pub fn repeat_tails(&mut self, now_ms: u64, mut repeat: impl FnMut(&[u8], u64)) {
        // Taken out whole: what is entered again meanwhile is for a later call.
        for place in take_until(&mut self.tails, now_ms) {
            let known = self.channel_mut(place);
            if known.due_ms <= now_ms {
                if known.last > known.first {
                    known.repeated = known.last;
                    repeat(&known.name, known.last);
                }
                known.plan_next_repeat(now_ms);
            }
            if known.is_in_tails {
                let due_ms = known.due_ms;
                self.tails.entry(due_ms).or_default().push(place);
            }
        }
        for place in take_until(&mut self.ends, now_ms / 1000) {
            let end_ms = self.channel_mut(place).tail_from_ms.saturating_add(FORGET_MS);
            match end_ms.div_ceil(1000) {
                second if second <= now_ms / 1000 => self.forget(place),
                second => self.ends.entry(second).or_default().push(place),
            }
        }
    }

    /// The link is back. Channels are repeated for [`TAIL_FOR_MS`] from now, at first by the next
    /// `repeat_tails`; not those that are about to be forgotten, because their last message is
    /// older than [`FORGET_MS`]: a link that breaks often would keep them for ever.
    pub fn handle_reconnect(&mut self, now_ms: u64) {
        let mut due = Vec::with_capacity(self.len);
        for (number, shard) in self.shards.iter_mut().enumerate() {
            for (slot, known) in &mut shard.channels {
                known.is_in_tails = now_ms.saturating_sub(known.message_ms) < FORGET_MS;
                if known.is_in_tails {
                    known.tail_from_ms = now_ms;
                    known.due_ms = now_ms;
                    due.push(Place { shard: number as u8, slot: slot as u32 });
                }
            }
        }
        self.tails = BTreeMap::from([(now_ms, due)]);
    }

    /// How many channels are known.
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn hash(&self, channel: &[u8]) -> u64 {
        let mut hasher = SipHasher13::new_with_keys(self.hash_keys.0, self.hash_keys.1);
        hasher.write(channel);
        hasher.finish()
    }

    fn find(&self, hash: u64, channel: &[u8]) -> Option<Place> {
        let shard = shard_of(hash);
        let Shard { table, channels } = &self.shards[usize::from(shard)];
        let is_it = |slot: &u32| {
            let known = &channels[*slot as usize];
            known.hash == hash && *known.name == *channel
        };
        table.find(hash, is_it).map(|&slot| Place { shard, slot })
    }

    fn channel_mut(&mut self, place: Place) -> &mut Channel {
        &mut self.shards[usize::from(place.shard)].channels[place.slot as usize]
    }

    fn enter(&mut self, hash: u64, channel: &[u8], now_ms: u64) -> Place {
        let shard = shard_of(hash);
        let Shard { table, channels } = &mut self.shards[usize::from(shard)];
        let slot = channels.insert(Channel {
            name: channel.into(),
            hash,
            last: self.floor,
            first: self.floor,
            repeated: self.floor,
            message_ms: now_ms,
            tail_from_ms: now_ms,
            due_ms: now_ms,
            is_in_tails: false,
        }) as u32;
        table.insert_unique(hash, slot, |slot| channels[*slot as usize].hash);
        let place = Place { shard, slot };
        let end = now_ms.saturating_add(FORGET_MS).div_ceil(1000);
        self.ends.entry(end).or_default().push(place);
        self.len += 1;
        place
    }

    /// It is in neither of the two lists: it was taken out of `ends`, and the last repeat, which
    /// took it out of `tails`, is `FORGET_MS - TAIL_FOR_MS` ago.
    fn forget(&mut self, place: Place) {
        let Shard { table, channels } = &mut self.shards[usize::from(place.shard)];
        let known = channels.remove(place.slot as usize);
        debug_assert!(!known.is_in_tails);
        self.floor = self.floor.max(known.last);
        self.len -= 1;
        if let Ok(found) = table.find_entry(known.hash, |slot| *slot == place.slot) {
            found.remove();
        }
        if channels.is_empty() {
            self.shards[usize::from(place.shard)] = Shard::default();
        } else if table.capacity() > 64 && table.len() < table.capacity() / 4 {
            table.shrink_to(table.len() * 2, |slot| channels[*slot as usize].hash);
            // Gives back what is free at the slab's end; the rest is there for the next channels.
            channels.shrink_to_fit();
        }
    }
}

impl Channel {
    /// `last` was repeated. The next time is the next multiple of [`TAIL_EVERY_MS`], whatever was
    /// left out, unless the tail ends before.
    fn plan_next_repeat(&mut self, now_ms: u64) {
        let every = (now_ms.saturating_sub(self.due_ms) / TAIL_EVERY_MS).saturating_add(1);
        self.due_ms = self.due_ms.saturating_add(every.saturating_mul(TAIL_EVERY_MS));
        self.is_in_tails = self.due_ms <= self.tail_from_ms.saturating_add(TAIL_FOR_MS);
        // A repeat that comes late, when nobody asked for long: receivers have heard of the channel
        // just now, so its end is as far away as after any last repeat.
        self.tail_from_ms = self.tail_from_ms.max(now_ms.saturating_sub(TAIL_FOR_MS));
    }
}

/// Other bits than those by which the table places and tells apart its entries.
fn shard_of(hash: u64) -> u8 {
    (hash >> 40) as u8
}

/// Takes out what is under keys up to `last`.
fn take_until(map: &mut Agenda, last: u64) -> impl Iterator<Item = Place> + use<> {
    let later = last.checked_add(1).map(|from| map.split_off(&from)).unwrap_or_default();
    std::mem::replace(map, later).into_values().flatten()
}

/// What the subscriber of one channel knows of its publishers. Lives as long as the subscription.
///
/// With one origin it is 32 bytes and no allocation. There are never more entries than lives of
/// origins, and one that was not heard of for long makes room for the next new one.
#[derive(Debug, Default)]
pub struct Origins {
    /// The one that was heard last comes first.
    known: SmallVec<[Known; 1]>,
}

#[derive(Debug, Clone, Copy)]
struct Known {
    epoch: u64,
    last: u64,
    /// In seconds: 32 bits of them last until the year 2106.
    heard_s: u32,
    origin: NodeId,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    /// The first of this origin's life, the next in turn, or the first after `missed` lost ones.
    New { missed: u64 },
    /// It was here already.
    Repeated,
}

impl Origins {
    /// A message with the number `seq` arrived. It sets the baseline if it is the first that is
    /// heard of this origin and epoch (another epoch: the node was started again), or the first
    /// after [`STALE_MS`], to the second.
    pub fn receive(&mut self, origin: NodeId, epoch: u64, seq: u64, now_ms: u64) -> Arrival {
        match self.advance(origin, epoch, seq, now_ms) {
            None => Arrival::New { missed: 0 },
            Some(0) => Arrival::Repeated,
            Some(advance) => Arrival::New { missed: advance - 1 },
        }
    }

    /// The origin repeats that its last number is `seq`: how many of its messages were missed.
    /// Sets the baseline where `receive` would.
    pub fn receive_tail(&mut self, origin: NodeId, epoch: u64, seq: u64, now_ms: u64) -> u64 {
        self.advance(origin, epoch, seq, now_ms).unwrap_or(0)
    }

    /// By how much `seq` is above the last number; `None` where it is the baseline.
    fn advance(&mut self, origin: NodeId, epoch: u64, seq: u64, now_ms: u64) -> Option<u64> {
        let now_s = u32::try_from(now_ms / 1000).unwrap_or(u32::MAX);
        let heard = Known { epoch, last: seq, heard_s: now_s, origin };
        // Not the origin alone: words of its last life may come after those of the next.
        let is_it = |known: &Known| (known.origin, known.epoch) == (origin, epoch);
        let Some(at) = self.known.iter().position(is_it) else {
            match self.known.iter_mut().find(|known| known.is_stale(now_s)) {
                Some(gone) => *gone = heard,
                None => self.known.push(heard),
            }
            return None;
        };
        self.known.swap(0, at);
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;
    use std::collections::HashMap;

    const KEYS: (u64, u64) = (1, 2);

    fn repeated(sequences: &mut OutgoingSequences, now_ms: u64) -> Vec<(String, u64)> {
        let mut found = Vec::new();
        sequences.repeat_tails(now_ms, |name, seq| {
            found.push((String::from_utf8(name.to_vec()).unwrap(), seq));
        });
        found.sort();
        found
    }

    fn node(number: u16) -> NodeId {
        NodeId::new(number).unwrap()
    }

    #[test]
    fn numbers_rise_by_one_and_a_refused_one_is_given_again() {
        let mut sequences = OutgoingSequences::new(KEYS);
        assert_eq!([sequences.next(b"a", 0), sequences.next(b"a", 0)], [1, 2]);
        assert_eq!(sequences.next(b"b", 0), 1);
        sequences.roll_back(b"a", 2);
        assert_eq!(sequences.next(b"a", 0), 2);
        sequences.roll_back(b"a", 1); // not the latest
        sequences.roll_back(b"a", 3); // never given out
        sequences.roll_back(b"c", 1); // not known
        assert_eq!(sequences.next(b"a", 0), 3);
        sequences.roll_back(b"b", 1);
        sequences.roll_back(b"b", 0);
        assert_eq!(sequences.next(b"b", 0), 1);
        assert_eq!(sequences.len(), 2);
    }

    /// Receivers took the next message with this number for one that they had missed before.
    #[test]
    fn a_number_that_was_repeated_is_not_given_again() {
        let mut sequences = OutgoingSequences::new(KEYS);
        assert_eq!([sequences.next(b"a", 0), sequences.next(b"a", 0)], [1, 2]);
        sequences.handle_reconnect(10);
        assert_eq!(repeated(&mut sequences, 10), [("a".to_string(), 2)]);
        sequences.roll_back(b"a", 2);
        assert_eq!(sequences.next(b"a", 10), 3);
        sequences.roll_back(b"a", 3);
        assert_eq!(sequences.next(b"a", 10), 3);
    }

    #[test]
    fn tails_are_repeated_for_a_minute() {
        let mut sequences = OutgoingSequences::new(KEYS);
        let last = |seq| vec![("a".to_string(), seq)];
        sequences.next(b"a", 1_000);
        sequences.next(b"refused", 1_000);
        sequences.roll_back(b"refused", 1);
        assert_eq!(repeated(&mut sequences, 3_999), []);
        assert_eq!(repeated(&mut sequences, 4_000), last(1));
        assert_eq!(repeated(&mut sequences, 4_000), []);
        sequences.next(b"a", 6_999);
        assert_eq!(repeated(&mut sequences, 7_000), []);
        assert_eq!(repeated(&mut sequences, 9_998), []);
        let times: Vec<u64> =
            (7_000..100_000).filter(|&now| repeated(&mut sequences, now) == last(2)).collect();
        assert_eq!(times, (1..=20).map(|n| 6_999 + n * 3_000).collect::<Vec<_>>());
        assert!(sequences.tails.is_empty());
        sequences.next(b"a", 100_000);
        assert_eq!(repeated(&mut sequences, 111_000), last(3)); // late: once
        assert_eq!(repeated(&mut sequences, 111_999), []);
        assert_eq!(repeated(&mut sequences, 112_000), last(3));
        assert_eq!(repeated(&mut sequences, 900_000), last(3)); // and later than its time
        assert_eq!(repeated(&mut sequences, 903_000), []);
    }

    #[test]
    fn a_reconnect_repeats_every_tail() {
        let mut sequences = OutgoingSequences::new(KEYS);
        sequences.next(b"a", 0);
        sequences.next(b"b", 500_000);
        repeated(&mut sequences, 600_000);
        sequences.handle_reconnect(600_000);
        let both = [("a".to_string(), 1), ("b".to_string(), 1)];
        let times: Vec<u64> =
            (600_000..700_000).filter(|&now| repeated(&mut sequences, now) == both).collect();
        assert_eq!(times, (0..=20).map(|n| 600_000 + n * 3_000).collect::<Vec<_>>());
        // The last message of a is too old for another minute, that of b is not.
        sequences.handle_reconnect(FORGET_MS);
        assert_eq!(repeated(&mut sequences, FORGET_MS), both[1..]);
        repeated(&mut sequences, 600_000 + FORGET_MS);
        assert_eq!(sequences.len(), 1);
    }

    #[test]
    fn idle_channels_are_forgotten_and_come_back_above_all_others() {
        let mut sequences = OutgoingSequences::new(KEYS);
        for channel in 0..20_000_u32 {
            sequences.next(&channel.to_le_bytes(), 0);
        }
        assert_eq!((sequences.next(b"a", 0), sequences.next(b"a", 0)), (1, 2));
        sequences.next(b"stays", 1_000);
        repeated_count(&mut sequences, 60_000);
        repeated_count(&mut sequences, FORGET_MS - 1);
        assert_eq!(sequences.len(), 20_002);
        assert_eq!(sequences.ends.len(), 2);
        repeated_count(&mut sequences, FORGET_MS);
        assert_eq!(sequences.len(), 1);
        // Empty shards have given everything back.
        let full = sequences.shards.iter().filter(|shard| shard.channels.capacity() > 0);
        assert_eq!(full.count(), 1);
        assert_eq!(sequences.next(b"stays", FORGET_MS), 2);
        assert_eq!(sequences.next(b"new", FORGET_MS), 3);
        sequences.roll_back(b"new", 3);
        sequences.roll_back(b"new", 2);
        assert_eq!(sequences.next(b"new", FORGET_MS), 3);
        repeated_count(&mut sequences, 2 * FORGET_MS - 1);
        assert_eq!(sequences.len(), 2);
    }

    fn repeated_count(sequences: &mut OutgoingSequences, now_ms: u64) -> usize {
        let mut count = 0;
        sequences.repeat_tails(now_ms, |_, _| count += 1);
        count
    }

    #[test]
    fn a_late_repeat_puts_off_the_end() {
        let mut sequences = OutgoingSequences::new(KEYS);
        sequences.next(b"a", 0);
        assert_eq!(repeated(&mut sequences, 2 * FORGET_MS), [("a".to_string(), 1)]);
        repeated(&mut sequences, 2 * FORGET_MS + STALE_MS + 1_000);
        assert_eq!(sequences.len(), 1);
        repeated(&mut sequences, 3 * FORGET_MS - TAIL_FOR_MS);
        assert!(sequences.is_empty() && sequences.ends.is_empty() && sequences.tails.is_empty());
    }

    #[test]
    fn the_end_of_time_is_survived() {
        let mut sequences = OutgoingSequences::new(KEYS);
        sequences.floor = u64::MAX - 1;
        for _ in 0..3 {
            assert_eq!(sequences.next(b"a", u64::MAX), u64::MAX);
            repeated(&mut sequences, u64::MAX);
            sequences.handle_reconnect(u64::MAX);
            repeated(&mut sequences, u64::MAX);
        }
        let mut origins = Origins::default();
        let now = u64::MAX;
        assert_eq!(origins.receive(node(1), 1, 0, now), Arrival::New { missed: 0 });
        let most = Arrival::New { missed: u64::MAX - 1 };
        assert_eq!(origins.receive(node(1), 1, u64::MAX, now), most);
        assert_eq!(origins.receive(node(1), 1, u64::MAX, now), Arrival::Repeated);
        assert_eq!(origins.receive_tail(node(2), 1, 0, 0), 0);
        assert_eq!(origins.receive_tail(node(2), 1, u64::MAX, 0), u64::MAX);
    }

    #[test]
    fn arrivals_are_new_repeated_or_after_a_loss() {
        use Arrival::{New, Repeated};
        let mut origins = Origins::default();
        for (seconds, origin, epoch, seq, expected) in [
            (0, 1, 9, 100, New { missed: 0 }),
            (0, 1, 9, 101, New { missed: 0 }),
            (0, 1, 9, 101, Repeated),
            (0, 1, 9, 100, Repeated),
            (0, 2, 9, 1, New { missed: 0 }),
            (1, 1, 9, 105, New { missed: 3 }),
            (1, 2, 9, 2, New { missed: 0 }),
            (2, 1, 10, 1, New { missed: 0 }), // started again
            (2, 1, 10, 3, New { missed: 1 }),
            (601, 1, 10, 3, Repeated),         // 599 s later, and heard
            (601, 2, 9, 9, New { missed: 0 }), // 600 s later
            (1_200, 1, 10, 5, New { missed: 1 }),
            (1_800, 1, 10, 4, New { missed: 0 }),
        ] {
            let arrival = origins.receive(node(origin), epoch, seq, seconds * 1_000);
            assert_eq!(arrival, expected, "{seq} of {origin} at {seconds}");
        }
        assert_eq!(size_of::<Origins>(), 32);
    }

    /// Redis may come to what a node sent before it died after what it sent since: neither the
    /// numbers of the one life nor those of the other begin anew.
    #[test]
    fn two_lives_of_an_origin_are_told_apart() {
        use Arrival::{New, Repeated};
        let mut origins = Origins::default();
        for (epoch, seq, expected) in [
            (1, 7, New { missed: 0 }),
            (2, 1, New { missed: 0 }),
            (2, 2, New { missed: 0 }),
            (1, 8, New { missed: 0 }),
            (2, 2, Repeated),
            (2, 4, New { missed: 1 }),
            (1, 8, Repeated),
        ] {
            assert_eq!(origins.receive(node(1), epoch, seq, 0), expected, "{seq} of {epoch}");
        }
    }

    #[test]
    fn tails_show_what_was_lost_last() {
        let mut origins = Origins::default();
        assert_eq!(origins.receive_tail(node(1), 9, 50, 0), 0);
        assert_eq!(origins.receive(node(1), 9, 50, 0), Arrival::Repeated);
        assert_eq!(origins.receive(node(1), 9, 51, 0), Arrival::New { missed: 0 });
        for (seq, missed) in [(51, 0), (54, 3), (54, 0), (53, 0)] {
            assert_eq!(origins.receive_tail(node(1), 9, seq, 0), missed, "{seq}");
        }
        assert_eq!(origins.receive(node(1), 9, 55, 0), Arrival::New { missed: 0 });
        assert_eq!(origins.receive_tail(node(1), 10, 80, 0), 0);
        assert_eq!(origins.receive_tail(node(1), 10, 81, STALE_MS), 0);
    }

    #[test]
    fn an_origin_that_has_gone_makes_room() {
        let mut origins = Origins::default();
        for origin in 0..1_000_u16 {
            origins.receive(node(origin), 1, 1, u64::from(origin) * STALE_MS / 4);
        }
        assert_eq!(origins.known.len(), 4);
    }

    /// What a channel has sent, plainly: looked at for all channels each time.
    #[derive(Default)]
    struct Plain {
        last: u64,
        first: u64,
        repeated: u64,
        message_ms: u64,
        tail_from_ms: u64,
        /// The times at which a repeat is owed.
        owed: Vec<u64>,
    }

    proptest! {
        #[test]
        fn sequences_as_a_plain_map_would(
            steps in vec((0_u8..14, 0_u8..6, 0_u64..5_000, 0_u8..60), 0..300),
        ) {
            let mut sequences = OutgoingSequences::new(KEYS);
            let mut plain: HashMap<String, Plain> = HashMap::new();
            let (mut now, mut floor) = (1_000_000_u64, 0);
            for (action, name, later, leap) in steps {
                now += later + if leap == 0 { later * 400 } else { 0 };
                let name = name.to_string();
                match action {
                    0..=4 => {
                        let known = plain.entry(name.clone()).or_insert_with(|| Plain {
                            last: floor,
                            first: floor,
                            ..Plain::default()
                        });
                        known.last += 1;
                        (known.message_ms, known.tail_from_ms) = (now, now);
                        known.owed = (1..=20).map(|n| now + n * 3_000).collect();
                        prop_assert_eq!(sequences.next(name.as_bytes(), now), known.last);
                    }
                    5 => if let Some(known) = plain.get_mut(&name) {
                        let seq = known.last.saturating_sub(later % 2);
                        if seq == known.last && seq > known.first && seq > known.repeated {
                            known.last -= 1;
                        }
                        sequences.roll_back(name.as_bytes(), seq);
                    },
                    6 => {
                        for known in plain.values_mut() {
                            known.owed.clear();
                            if now - known.message_ms < FORGET_MS {
                                known.tail_from_ms = now;
                                known.owed = (0..=20).map(|n| now + n * 3_000).collect();
                            }
                        }
                        sequences.handle_reconnect(now);
                    }
                    _ => {
                        let mut expected = Vec::new();
                        for (name, known) in &mut plain {
                            let before = known.owed.len();
                            known.owed.retain(|&at| at > now);
                            if known.owed.len() < before {
                                known.tail_from_ms = known.tail_from_ms.max(now - TAIL_FOR_MS);
                                if known.last > known.first {
                                    known.repeated = known.last;
                                    expected.push((name.clone(), known.last));
                                }
                            }
                        }
                        expected.sort();
                        prop_assert_eq!(repeated(&mut sequences, now), expected);
                        let second = now / 1_000 * 1_000;
                        plain.retain(|_, known| {
                            let stays = known.tail_from_ms + FORGET_MS > second;
                            floor = if stays { floor } else { floor.max(known.last) };
                            stays
                        });
                    }
                }
                prop_assert_eq!(sequences.len(), plain.len());
                let ends: usize = sequences.ends.values().map(Vec::len).sum();
                prop_assert_eq!(ends, plain.len());
                let tails: usize = sequences.tails.values().map(Vec::len).sum();
                prop_assert!(tails <= plain.len());
            }
        }

        /// Messages of three nodes, some lost, some sent again in order: what arrived once and what
        /// is counted as missed is together what was sent.
        #[test]
        fn nothing_is_counted_twice(
            steps in vec((0_u16..3, 0_u8..10, 1_usize..8), 0..300),
        ) {
            let mut origins = Origins::default();
            let mut heard: HashMap<u16, Vec<u64>> = HashMap::new();
            let mut sent = [0_u64; 3];
            let mut missed = [0_u64; 3];
            for (origin, action, again) in steps {
                let from = usize::from(origin);
                let arrivals: Vec<u64> = match action {
                    0 | 1 if sent[from] > 0 => { sent[from] += 1; continue } // lost
                    2 => {
                        let end = sent[from];
                        (end.saturating_sub(again as u64).max(1)..=end).collect()
                    }
                    3 if sent[from] > 0 => {
                        missed[from] += origins.receive_tail(node(origin), 7, sent[from], 0);
                        let heard = heard.entry(origin).or_default().len() as u64;
                        prop_assert_eq!(heard + missed[from], sent[from]);
                        continue;
                    }
                    _ => { sent[from] += 1; vec![sent[from]] }
                };
                for seq in arrivals {
                    let list = heard.entry(origin).or_default();
                    match origins.receive(node(origin), 7, seq, 0) {
                        Arrival::Repeated => prop_assert!(missed[from] > 0 || list.contains(&seq)),
                        Arrival::New { missed: lost } => {
                            prop_assert!(!list.contains(&seq));
                            list.push(seq);
                            missed[from] += lost;
                            prop_assert_eq!(list.len() as u64 + missed[from], seq);
                        }
                    }
                }
            }
        }
    }
}
