//! Keys of recently delivered pushes: a push that is sent again under its key is not delivered
//! twice.

use super::sharded_table::ShardedTable;
use crate::types::MonotonicMs;
use sha2::{Digest, Sha256};
use std::collections::VecDeque;

/// Within this time, pushes with the same project and key reach a client at most once.
pub const REMEMBER_MS: u64 = 5 * 60 * 1000;

/// Entries per chunk of the ring: 20 KiB.
const CHUNK: usize = 1024;
/// Maximum number of keys that one call of [`RememberedKeys::handle_tick`] forgets.
const MAX_FORGOTTEN_PER_TICK: usize = 1000;
/// More than one, so that inserts alone work off a backlog.
const MAX_FORGOTTEN_PER_INSERT: usize = 2;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inserted {
    New,
    /// It was inserted within [`REMEMBER_MS`].
    Repeated,
    /// New, but there was no room: the oldest key was forgotten early.
    NewForgettingOldest,
}

/// Keys of the pushes that this worker has delivered within the last [`REMEMBER_MS`], at most
/// `max_keys`.
///
/// A key costs 20 bytes in the ring and 5 for each bucket of the table, which is between 7/16 and
/// 7/8 full: 26 to 32 bytes (a test computes it). The ring grows by chunks of 1,024 entries and
/// moves nothing.
///
/// The ring is sorted by time: an insert with an earlier time than the one before it is recorded
/// with that one's time.
#[derive(Debug)]
pub struct RememberedKeys {
    max_keys: usize,
    len: usize,
    chunks: VecDeque<Chunk>,
    /// Position of the first entry of the first chunk. Positions increase by one with each key, and
    /// wrap.
    start: u32,
    /// Number of forgotten entries in the first chunk.
    gone: usize,
    /// Positions by hash.
    positions: ShardedTable<u32>,
    /// The latest time of an insert.
    latest: MonotonicMs,
}

/// Only the last chunk has room. There are no chunks without keys, so one spans at most `CHUNK`
/// times [`REMEMBER_MS`]: 85 hours, which fits in 32 bits of milliseconds.
#[derive(Debug)]
struct Chunk {
    base: MonotonicMs,
    entries: Vec<KeyEntry>,
}

#[derive(Debug, Clone, Copy)]
struct KeyEntry {
    key: [u8; 16],
    /// When it was inserted, relative to the chunk's base.
    after_ms: u32,
}

impl RememberedKeys {
    /// Allocates nothing until the first key. The limit is clamped to between 1 and 2^31 keys.
    pub fn new(max_keys: usize) -> Self {
        Self {
            max_keys: max_keys.clamp(1, 1 << 31),
            len: 0,
            chunks: VecDeque::new(),
            start: 0,
            gone: 0,
            positions: ShardedTable::default(),
            latest: MonotonicMs::default(),
        }
    }

    /// Remembers the key if it is new. A repeated key does not extend its time.
    pub fn insert(&mut self, key: &[u8; 16], now: MonotonicMs) -> Inserted {
        let now = now.max(self.latest);
        self.latest = now;
        self.forget_over(now, MAX_FORGOTTEN_PER_INSERT);
        if let Some(position) = self.find(key) {
            if !self.is_over(position, now) {
                return Inserted::Repeated;
            }
            // Expired, but not removed yet: its ring entry stays, without a position.
            self.remove_position(key, position);
        }
        let mut inserted = Inserted::New;
        if self.len >= self.max_keys {
            if !self.is_over(self.first(), now) {
                inserted = Inserted::NewForgettingOldest;
            }
            self.forget_first();
        }
        self.push(key, now);
        inserted
    }

    /// Forgets up to a thousand expired keys and frees memory.
    pub fn handle_tick(&mut self, now: MonotonicMs) {
        self.forget_over(now, MAX_FORGOTTEN_PER_TICK);
    }

    /// Number of keys, including expired ones that no tick or insert has removed yet.
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn first(&self) -> u32 {
        self.start.wrapping_add(self.gone as u32)
    }

    fn find(&self, key: &[u8; 16]) -> Option<u32> {
        let is_it = |position: &u32| entry(&self.chunks, self.start, *position).1.key == *key;
        self.positions.find(table_hash(key), is_it).copied()
    }

    fn is_over(&self, position: u32, now: MonotonicMs) -> bool {
        let (base, entry) = entry(&self.chunks, self.start, position);
        now.since(base + u64::from(entry.after_ms)) >= REMEMBER_MS
    }

    fn push(&mut self, key: &[u8; 16], now: MonotonicMs) {
        if self.chunks.back().is_none_or(|chunk| chunk.entries.len() == CHUNK) {
            let entries = Vec::with_capacity(CHUNK);
            self.chunks.push_back(Chunk { base: now, entries });
        }
        let position = self.first().wrapping_add(self.len as u32);
        if let Some(chunk) = self.chunks.back_mut() {
            let after_ms = now.since(chunk.base).min(u64::from(u32::MAX)) as u32;
            chunk.entries.push(KeyEntry { key: *key, after_ms });
        }
        self.len += 1;
        let Self { chunks, positions, start, .. } = self;
        let hash_of = |position: &u32| table_hash(&entry(chunks, *start, *position).1.key);
        positions.insert(table_hash(key), position, hash_of);
    }

    fn forget_over(&mut self, now: MonotonicMs, max: usize) {
        for _ in 0..max {
            if self.len == 0 || !self.is_over(self.first(), now) {
                return;
            }
            self.forget_first();
        }
    }

    /// Forgets the first entry, which must exist.
    fn forget_first(&mut self) {
        let position = self.first();
        let key = entry(&self.chunks, self.start, position).1.key;
        self.remove_position(&key, position);
        self.len -= 1;
        self.gone += 1;
        if self.len == 0 {
            self.start = self.first();
            self.gone = 0;
            self.chunks = VecDeque::new();
            self.positions.clear();
        } else if self.gone == CHUNK {
            self.start = self.first();
            self.gone = 0;
            self.chunks.pop_front();
        }
    }

    /// Removes the position from the table if it is still there.
    fn remove_position(&mut self, key: &[u8; 16], position: u32) {
        let Self { chunks, positions, start, .. } = self;
        let hash_of = |position: &u32| table_hash(&entry(chunks, *start, *position).1.key);
        positions.remove(table_hash(key), |other| *other == position, hash_of);
    }
}

/// A 128-bit hash of a project and one of its keys: a truncated SHA-256. The length of `pid` is
/// hashed first, so that no two pairs produce the same input.
pub fn key_hash(pid: &str, key: &str) -> [u8; 16] {
    let mut hasher = Sha256::new();
    hasher.update((pid.len() as u64).to_le_bytes());
    hasher.update(pid);
    hasher.update(key);
    let digest: [u8; 32] = hasher.finalize().into();
    std::array::from_fn(|at| digest[at])
}

/// Returns the entry at a valid position of the ring, with its chunk's base.
fn entry(chunks: &VecDeque<Chunk>, start: u32, position: u32) -> (MonotonicMs, KeyEntry) {
    let index = position.wrapping_sub(start) as usize;
    let chunk = &chunks[index / CHUNK];
    (chunk.base, chunk.entries[index % CHUNK])
}

/// A key is already a hash.
fn table_hash(key: &[u8; 16]) -> u64 {
    u64::from_le_bytes(std::array::from_fn(|at| key[at]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;
    use std::collections::HashSet;

    const MINUTE: u64 = 60_000;
    const NOW: MonotonicMs = MonotonicMs::new(MINUTE);

    fn key(number: u32) -> [u8; 16] {
        key_hash("1", &number.to_string())
    }

    fn bytes(keys: &RememberedKeys) -> usize {
        let chunks =
            keys.chunks.iter().map(|chunk| chunk.entries.capacity() * size_of::<KeyEntry>());
        chunks.sum::<usize>() + keys.chunks.capacity() * size_of::<Chunk>() + keys.positions.bytes()
    }

    #[test]
    fn a_key_is_new_once_in_five_minutes() {
        use Inserted::{New, NewForgettingOldest, Repeated};
        let mut keys = RememberedKeys::new(3);
        for (minute, number, expected) in [
            (100, 1, New),
            (100, 1, Repeated),
            (101, 2, New),
            (104, 1, Repeated), // does not lengthen
            (105, 1, New),
            (105, 2, Repeated),
            (105, 3, New),
            (105, 4, NewForgettingOldest), // 2
            (105, 2, NewForgettingOldest), // 1
            (106, 3, Repeated),
            (106, 1, NewForgettingOldest), // 3
            (110, 5, New),                 // 4 and 2 are over, room without force
            (110, 1, Repeated),
            (109, 5, Repeated),
            (90, 6, New),
            (114, 6, Repeated), // as if inserted at 110, the latest
            (115, 6, New),
        ] {
            let inserted = keys.insert(&key(number), MonotonicMs::new(minute * MINUTE));
            assert_eq!(inserted, expected, "{number} at {minute}");
        }
        let mut exact = RememberedKeys::new(3);
        assert_eq!(exact.insert(&key(1), NOW), New);
        assert_eq!(exact.insert(&key(1), NOW + REMEMBER_MS - 1), Repeated);
        assert_eq!(exact.insert(&key(1), NOW + REMEMBER_MS), New);
    }

    #[test]
    fn ticks_are_bounded_and_give_everything_back() {
        let mut keys = RememberedKeys::new(1_000_000);
        assert_eq!(bytes(&keys), 0);
        for number in 0..5_500 {
            assert_eq!(keys.insert(&key(number), NOW), Inserted::New);
        }
        keys.handle_tick(NOW + REMEMBER_MS - 1);
        assert_eq!(keys.len(), 5_500);
        for left in [4_500, 3_500, 2_500] {
            keys.handle_tick(NOW + REMEMBER_MS);
            assert_eq!(keys.len(), left);
        }
        // Expired and not yet forgotten: treated as new, once.
        for number in 5_400..5_500 {
            assert_eq!(keys.insert(&key(number), NOW + REMEMBER_MS), Inserted::New);
            assert_eq!(keys.insert(&key(number), NOW + REMEMBER_MS), Inserted::Repeated);
        }
        for _ in 0..3 {
            keys.handle_tick(NOW + REMEMBER_MS);
        }
        assert_eq!(keys.len(), 100);
        assert_eq!(keys.insert(&key(5_499), NOW + REMEMBER_MS), Inserted::Repeated);
        keys.handle_tick(NOW + 2 * REMEMBER_MS);
        assert!(keys.is_empty());
        assert_eq!(bytes(&keys), 0);
    }

    #[test]
    fn bytes_for_each_key() {
        assert_eq!(size_of::<KeyEntry>(), 20);
        let mut keys = RememberedKeys::new(250_000);
        let mut most = 0.0_f64;
        for number in 0..300_000 {
            keys.insert(&key(number), NOW + u64::from(number));
            let each = |keys: &RememberedKeys| bytes(keys) as f64 / keys.len() as f64;
            if number == 99_999 {
                assert!(each(&keys) < 28.0, "{} bytes", each(&keys));
            }
            if number > 50_000 && number % 1_000 == 0 {
                most = most.max(each(&keys));
            }
        }
        assert!(most < 33.0, "{most} bytes");
        assert_eq!(keys.len(), 250_000);
    }

    #[test]
    fn positions_wrap() {
        let mut keys = RememberedKeys::new(3_000);
        keys.start = u32::MAX - 1_500;
        for number in 0..9_000 {
            let expected =
                if number < 3_000 { Inserted::New } else { Inserted::NewForgettingOldest };
            assert_eq!(keys.insert(&key(number), NOW), expected);
            assert_eq!(keys.insert(&key(number), NOW), Inserted::Repeated);
            let oldest = number.saturating_sub(2_999);
            assert_eq!(keys.insert(&key(oldest), NOW), Inserted::Repeated, "{oldest}");
        }
        assert_eq!(keys.positions.len(), 3_000);
    }

    #[test]
    fn no_two_pairs_share_a_hash() {
        let pairs = [("1", "23"), ("12", "3"), ("123", ""), ("", "123"), ("1", "2"), ("2", "1")];
        let hashes: HashSet<_> = pairs.iter().map(|(pid, key)| key_hash(pid, key)).collect();
        assert_eq!(hashes.len(), pairs.len());
        // printf '\1\0\0\0\0\0\0\0p42' | sha256sum
        let known = [
            0x25, 0x8b, 0x96, 0xee, 0x32, 0x5a, 0x1c, 0x23, 0x30, 0x84, 0xec, 0xb0, 0x3f, 0x4c,
            0x44, 0xf5,
        ];
        assert_eq!(key_hash("p", "42"), known);
    }

    proptest! {
        /// Against a plain list of (key, time inserted), oldest first.
        #[test]
        fn as_a_list_would(
            max_keys in 1_usize..40,
            steps in vec((0_u32..60, 0_u64..40_000, 0_u8..20), 0..400),
        ) {
            let mut keys = RememberedKeys::new(max_keys);
            let mut list: Vec<(u32, MonotonicMs)> = Vec::new();
            let mut now = MonotonicMs::new(1_000_000_000);
            for (number, later, action) in steps {
                now += later;
                if action == 0 {
                    keys.handle_tick(now);
                    list.retain(|(_, at)| now.since(*at) < REMEMBER_MS);
                    prop_assert_eq!(keys.len(), list.len());
                    prop_assert_eq!(bytes(&keys) == 0, list.is_empty());
                    continue;
                }
                list.retain(|(_, at)| now.since(*at) < REMEMBER_MS);
                let expected = if list.iter().any(|(other, _)| *other == number) {
                    Inserted::Repeated
                } else {
                    list.push((number, now));
                    if list.len() > max_keys {
                        list.remove(0);
                        Inserted::NewForgettingOldest
                    } else {
                        Inserted::New
                    }
                };
                prop_assert_eq!(keys.insert(&key(number), now), expected);
                prop_assert!(keys.len() <= max_keys);
            }
        }
    }
}
