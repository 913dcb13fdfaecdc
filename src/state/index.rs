//! A hash table of numbers whose keys are stored elsewhere.

const SHARDS: usize = 256;
/// Shards of a small table, and the maximum number of entries it holds.
const FEW_SHARDS: usize = 16;
const FEW: usize = 4_096;
/// Numbers per group.
const GROUP: usize = 8;
/// Average number of them that may be in use.
const FULL: usize = 7;
/// Groups allocated together: 160 bytes, a size class of the allocator. A shard consists of such
/// blocks alone, so growing leaves no holes of other sizes.
const BLOCK: usize = 4;
/// Blocks that a shard keeps regardless of its use.
const KEPT_BLOCKS: usize = 2;
/// Tag of a place not used since its shard was last rebuilt.
const EMPTY: u8 = 0;
/// Tag of a removed entry in a group that had no empty place: a lookup continues past it.
const GONE: u8 = 1;
/// The tag of a used place has this bit and seven bits of the hash.
const USED: u8 = 0x80;
const LOW_BITS: u64 = u64::from_ne_bytes([1; GROUP]);
const HIGH_BITS: u64 = u64::from_ne_bytes([USED; GROUP]);

/// A hash table of numbers whose keys are elsewhere: `hash_of` a number is the hash of its key and
/// needs 64 good bits. It has 256 shards, of which an insert or a removal rebuilds at most one (the
/// insert that turns 16 shards into 256 moves 4,096 numbers). A shard grows by an eighth instead of
/// doubling: an entry takes 6 to 8 bytes, where hashbrown's tables, rounded up by the allocator,
/// take up to 13. It allocates nothing until the first insert.
#[derive(Debug, Default)]
pub(super) struct Index {
    /// Empty, [`FEW_SHARDS`] or [`SHARDS`].
    shards: Box<[Shard]>,
    len: usize,
}

/// Open addressing by groups: a number is in the first group that had room when it was inserted,
/// starting at the one selected by its hash.
#[derive(Debug, Default)]
struct Shard {
    #[expect(clippy::vec_box, reason = "in one piece they would be of many sizes")]
    blocks: Vec<Box<[BlockGroup; BLOCK]>>,
    len: u32,
    gone: u32,
}

/// The unit of one probe: it lies in one or two cache lines.
#[derive(Debug, Clone, Copy, Default)]
struct BlockGroup {
    tags: [u8; GROUP],
    numbers: [u32; GROUP],
}

impl Index {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn find(&self, hash: u64, is_it: impl Fn(u32) -> bool) -> Option<u32> {
        let shard = self.shards.get(self.shard_of(hash))?;
        let (group, place) = shard.place(hash, is_it)?;
        Some(shard.group(group).numbers[place])
    }

    /// Finds a number. The caller may replace it by another one with the same key.
    pub(super) fn find_mut(&mut self, hash: u64, is_it: impl Fn(u32) -> bool) -> Option<&mut u32> {
        let shard = self.shard_of(hash);
        let shard = self.shards.get_mut(shard)?;
        let (group, place) = shard.place(hash, is_it)?;
        Some(&mut shard.group_mut(group).numbers[place])
    }

    /// Adds a number whose key is not present.
    pub(super) fn insert(&mut self, number: u32, hash_of: impl Fn(u32) -> u64) {
        match (self.shards.len(), self.len) {
            (0, _) => self.split_into(FEW_SHARDS, &hash_of),
            (FEW_SHARDS, FEW..) => self.split_into(SHARDS, &hash_of),
            _ => {}
        }
        self.put(number, &hash_of);
        self.len += 1;
    }

    fn put(&mut self, number: u32, hash_of: &impl Fn(u32) -> u64) {
        let hash = hash_of(number);
        let shard = self.shard_of(hash);
        self.shards[shard].insert(hash, number, hash_of);
    }

    fn split_into(&mut self, shards: usize, hash_of: &impl Fn(u32) -> u64) {
        let shards = (0..shards).map(|_| Shard::default()).collect();
        let old = std::mem::replace(&mut self.shards, shards);
        for number in old.iter().flat_map(Shard::numbers) {
            self.put(number, hash_of);
        }
    }

    fn shard_of(&self, hash: u64) -> usize {
        (hash >> 40) as usize & self.shards.len().saturating_sub(1)
    }

    /// Removes a number, and frees memory once three quarters of a shard are unused.
    pub(super) fn remove(
        &mut self,
        hash: u64,
        is_it: impl Fn(u32) -> bool,
        hash_of: impl Fn(u32) -> u64,
    ) {
        let shard = self.shard_of(hash);
        let shard = self.shards.get_mut(shard);
        if shard.is_some_and(|shard| shard.remove(hash, is_it, hash_of)) {
            self.len -= 1;
        }
    }

    /// Bytes allocated.
    #[cfg(test)]
    fn bytes(&self) -> usize {
        let pointers = |shard: &Shard| shard.blocks.capacity() * size_of::<usize>();
        let blocks = |shard: &Shard| shard.blocks.len() * BLOCK * size_of::<BlockGroup>();
        let shards = self.shards.iter().map(|shard| pointers(shard) + blocks(shard));
        shards.sum::<usize>() + size_of_val(&*self.shards)
    }
}

impl Shard {
    fn place(&self, hash: u64, is_it: impl Fn(u32) -> bool) -> Option<(usize, usize)> {
        if self.blocks.is_empty() {
            return None;
        }
        let mut at = self.first_group(hash);
        // At least one place is empty.
        loop {
            let group = self.group(at);
            let mut hits = group.with_tag(tag_of(hash));
            while hits != 0 {
                let place = hits.trailing_zeros() as usize / 8;
                if is_it(group.numbers[place]) {
                    return Some((at, place));
                }
                hits &= hits - 1;
            }
            if group.has_empty() {
                return None;
            }
            at = self.next_group(at);
        }
    }

    fn insert(&mut self, hash: u64, number: u32, hash_of: impl Fn(u32) -> u64) {
        let in_use = self.len + self.gone;
        if in_use as usize >= FULL * self.groups() {
            self.move_into(self.len as usize + self.len as usize / 8 + 1, hash_of);
        }
        self.put(hash, number);
    }

    fn put(&mut self, hash: u64, number: u32) {
        let mut at = self.first_group(hash);
        loop {
            let group = self.group_mut(at);
            if let Some(place) = group.tags.iter().position(|&tag| tag < USED) {
                let was_gone = group.tags[place] == GONE;
                group.tags[place] = tag_of(hash);
                group.numbers[place] = number;
                self.gone -= u32::from(was_gone);
                self.len += 1;
                return;
            }
            at = self.next_group(at);
        }
    }

    fn remove(
        &mut self,
        hash: u64,
        is_it: impl Fn(u32) -> bool,
        hash_of: impl Fn(u32) -> u64,
    ) -> bool {
        let Some((group, place)) = self.place(hash, is_it) else { return false };
        let group = self.group_mut(group);
        // If the group has an empty place, no insert ever went past it for lack of room.
        let tag = if group.has_empty() { EMPTY } else { GONE };
        group.tags[place] = tag;
        self.gone += u32::from(tag == GONE);
        self.len -= 1;
        let (len, blocks) = (self.len as usize, self.blocks.len());
        if blocks > KEPT_BLOCKS && len < FULL * self.groups() / 4 {
            self.move_into(2 * len, hash_of);
        }
        true
    }

    /// Moves all entries into as many blocks as `wanted` of them need.
    fn move_into(&mut self, wanted: usize, hash_of: impl Fn(u32) -> u64) {
        let numbers: Vec<u32> = self.numbers().collect();
        for group in self.blocks.iter_mut().flat_map(|block| block.iter_mut()) {
            group.tags = [EMPTY; GROUP];
        }
        let blocks = wanted.div_ceil(FULL * BLOCK).max(1);
        self.blocks.truncate(blocks);
        self.blocks.shrink_to(blocks);
        self.blocks.reserve_exact(blocks - self.blocks.len());
        self.blocks.resize_with(blocks, Box::default);
        (self.len, self.gone) = (0, 0);
        for number in numbers {
            self.put(hash_of(number), number);
        }
    }

    fn numbers(&self) -> impl Iterator<Item = u32> {
        let groups = self.blocks.iter().flat_map(|block| block.iter());
        let entries = groups.flat_map(|group| group.tags.into_iter().zip(group.numbers));
        entries.filter(|&(tag, _)| tag >= USED).map(|(_, number)| number)
    }

    fn groups(&self) -> usize {
        BLOCK * self.blocks.len()
    }

    fn group(&self, at: usize) -> &BlockGroup {
        &self.blocks[at / BLOCK][at % BLOCK]
    }

    fn group_mut(&mut self, at: usize) -> &mut BlockGroup {
        &mut self.blocks[at / BLOCK][at % BLOCK]
    }

    /// Uses other bits of the hash than those that select a shard and form a tag.
    fn first_group(&self, hash: u64) -> usize {
        ((u64::from(hash as u32) * self.groups() as u64) >> 32) as usize
    }

    fn next_group(&self, at: usize) -> usize {
        if at + 1 == self.groups() { 0 } else { at + 1 }
    }
}

impl BlockGroup {
    /// Returns the high bit of each byte that equals the tag; next to a match, a tag that differs
    /// in its lowest bit may match as well.
    fn with_tag(&self, tag: u8) -> u64 {
        let others = u64::from_le_bytes(self.tags) ^ (LOW_BITS * u64::from(tag));
        others.wrapping_sub(LOW_BITS) & !others & HIGH_BITS
    }

    fn has_empty(&self) -> bool {
        self.with_tag(EMPTY) != 0
    }
}

fn tag_of(hash: u64) -> u8 {
    (hash >> 57) as u8 | USED
}

#[cfg(test)]
mod tests {
    use super::*;
    use siphasher::sip::SipHasher13;
    use std::cell::Cell;
    use std::collections::BTreeSet;
    use std::hash::Hasher;

    fn hash_of(number: u32) -> u64 {
        let mut hasher = SipHasher13::new_with_keys(1, 2);
        hasher.write_u32(number);
        hasher.finish()
    }

    fn has(index: &Index, number: u32) -> bool {
        index.find(hash_of(number), |other| other == number).is_some()
    }

    /// A single table of a million entries stalled a worker for 176 ms whenever it grew.
    #[test]
    fn it_grows_by_parts_of_a_shard_and_stays_small() {
        const COUNT: u32 = 100_000;
        let moved = Cell::new(0);
        let counted = |number| {
            moved.set(moved.get() + 1);
            hash_of(number)
        };
        let (mut index, mut most, mut all) = (Index::default(), 0, 0);
        for number in 0..COUNT {
            moved.set(0);
            index.insert(number, counted);
            all += moved.get();
            if number as usize != FEW {
                most = most.max(moved.get());
            }
            if number >= 10_000 && number.is_multiple_of(1_000) {
                let bytes = index.bytes() as f64 / f64::from(number);
                assert!(bytes < 9.5, "{bytes} bytes of {number}");
            }
        }
        let share = COUNT as usize / SHARDS;
        assert!(share / 2 < most && most < 2 * share, "{most} moved at once");
        assert!(all < 9 * COUNT as usize, "{all} moved in all");
        assert!((0..COUNT).all(|number| has(&index, number)) && !has(&index, COUNT));
        let bytes = index.bytes();
        most = 0;
        for number in 1..COUNT {
            moved.set(0);
            index.remove(hash_of(number), |other| other == number, counted);
            most = most.max(moved.get());
        }
        assert!(most < share && has(&index, 0), "{most} moved at once");
        assert!(index.len() == 1 && index.bytes() < bytes / 4, "{} of {bytes}", index.bytes());
    }

    #[test]
    fn it_agrees_with_a_set_while_numbers_come_and_go() {
        let (mut index, mut set, mut random) = (Index::default(), BTreeSet::new(), 1_u64);
        assert!(!has(&index, 1) && index.bytes() == 0);
        index.insert(1, hash_of);
        assert!(index.bytes() < 1_000, "{}", index.bytes());
        index.remove(hash_of(1), |other| other == 1, hash_of);
        for round in 0..200_000 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            // It fills, empties, and fills again.
            let range = if round % 80_000 < 50_000 { 12_000 } else { 300 };
            let number = (random >> 33) as u32 % range;
            if set.insert(number) {
                index.insert(number, hash_of);
            } else {
                set.remove(&number);
                index.remove(hash_of(number), |other| other == number, hash_of);
            }
            assert_eq!((index.len(), has(&index, number)), (set.len(), set.contains(&number)));
        }
        assert!((0..12_000).all(|number| has(&index, number) == set.contains(&number)));
        // Churn alone does not make it larger.
        let bytes = index.bytes();
        for number in 20_000..100_000 {
            index.insert(number, hash_of);
            index.remove(hash_of(number), |other| other == number, hash_of);
        }
        assert!(index.bytes() <= 2 * bytes, "{} of {bytes}", index.bytes());
        let number = set.first().copied().unwrap_or_default();
        if let Some(found) = index.find_mut(hash_of(number), |other| other == number) {
            *found = 500_000;
        }
        assert_eq!(index.find(hash_of(number), |other| other == 500_000), Some(500_000));
    }
}
