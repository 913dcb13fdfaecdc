//! A hash table that never reallocates as a whole.

use hashbrown::HashTable;

const SHARDS: usize = 256;
/// Capacity that a shard keeps regardless of its use.
const KEPT_ROOM: usize = 64;

/// A hash table in 256 shards, of which an insert or a removal rebuilds at most one: with a million
/// entries it moves 4,000, where a single table stalled a worker for 176 ms. It allocates nothing
/// until the first insert. The caller provides hashes and comparisons; a hash needs 64 good bits.
#[derive(Debug)]
pub(super) struct ShardedTable<T> {
    /// Empty, or [`SHARDS`].
    shards: Box<[HashTable<T>]>,
    len: usize,
}

/// Position of an entry, valid until the next insert or removal.
#[derive(Debug, Clone, Copy)]
pub(super) struct TablePlace {
    shard: u8,
    bucket: usize,
}

impl<T> Default for ShardedTable<T> {
    fn default() -> Self {
        Self { shards: Box::default(), len: 0 }
    }
}

impl<T> ShardedTable<T> {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn find(&self, hash: u64, is_it: impl FnMut(&T) -> bool) -> Option<&T> {
        self.shards.get(usize::from(shard_of(hash)))?.find(hash, is_it)
    }

    pub(super) fn find_mut(&mut self, hash: u64, is_it: impl FnMut(&T) -> bool) -> Option<&mut T> {
        self.shards.get_mut(usize::from(shard_of(hash)))?.find_mut(hash, is_it)
    }

    /// Adds an entry that is not present. `hash_of`: the hash of an entry.
    pub(super) fn insert(&mut self, hash: u64, value: T, hash_of: impl Fn(&T) -> u64) {
        if self.shards.is_empty() {
            self.shards = (0..SHARDS).map(|_| HashTable::new()).collect();
        }
        self.shards[usize::from(shard_of(hash))].insert_unique(hash, value, hash_of);
        self.len += 1;
    }

    /// Removes an entry, and frees memory once three quarters of a shard are unused.
    pub(super) fn remove(
        &mut self,
        hash: u64,
        is_it: impl FnMut(&T) -> bool,
        hash_of: impl Fn(&T) -> u64,
    ) -> Option<T> {
        let shard = self.shards.get_mut(usize::from(shard_of(hash)))?;
        let (value, _) = shard.find_entry(hash, is_it).ok()?.remove();
        self.len -= 1;
        if shard.capacity() > KEPT_ROOM && shard.len() < shard.capacity() / 4 {
            shard.shrink_to(shard.len() * 2, hash_of);
        }
        Some(value)
    }

    /// Removes all entries and frees the memory.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    pub(super) fn place(&self, hash: u64, is_it: impl FnMut(&T) -> bool) -> Option<TablePlace> {
        let shard = shard_of(hash);
        let bucket = self.shards.get(usize::from(shard))?.find_bucket_index(hash, is_it)?;
        Some(TablePlace { shard, bucket })
    }

    /// Returns the entry at a place, if there is one.
    pub(super) fn at(&self, place: TablePlace) -> Option<&T> {
        self.shards.get(usize::from(place.shard))?.get_bucket(place.bucket)
    }

    pub(super) fn at_mut(&mut self, place: TablePlace) -> Option<&mut T> {
        self.shards.get_mut(usize::from(place.shard))?.get_bucket_mut(place.bucket)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.shards.iter().flatten()
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.shards.iter_mut().flatten()
    }

    /// Bytes allocated.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        let tables = self.shards.iter().map(HashTable::allocation_size);
        tables.sum::<usize>() + size_of_val(&*self.shards)
    }
}

/// Uses other bits than those by which a shard places and distinguishes its entries.
fn shard_of(hash: u64) -> u8 {
    (hash >> 40) as u8
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    fn hash_of(number: &u64) -> u64 {
        number.wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }

    /// A single table of a million entries stalled a worker for 176 ms whenever it grew.
    #[test]
    fn no_insert_and_no_removal_moves_more_than_a_shard() {
        const COUNT: u64 = 100_000;
        let moved = Cell::new(0);
        let counted = |number: &u64| {
            moved.set(moved.get() + 1);
            hash_of(number)
        };
        let mut table = ShardedTable::default();
        let mut most = 0;
        for number in 0..COUNT {
            moved.set(0);
            table.insert(hash_of(&number), number, counted);
            most = moved.get().max(most);
        }
        let share = COUNT as usize / SHARDS;
        assert!(share / 2 < most && most < 2 * share, "{most} of {COUNT} moved at once");
        let bytes = table.bytes();
        most = 0;
        for number in 1..COUNT {
            moved.set(0);
            assert_eq!(table.remove(hash_of(&number), |&it| it == number, counted), Some(number));
            most = moved.get().max(most);
        }
        assert!(most < share, "{most} of {COUNT} moved at once");
        assert_eq!(table.find(hash_of(&0), |&it| it == 0), Some(&0));
        assert!(table.len() == 1 && table.bytes() < bytes / 4, "{} of {bytes}", table.bytes());
    }

    #[test]
    fn entries_are_found_changed_and_taken_out() {
        let mut table = ShardedTable::default();
        let is_one = |&number: &u64| number == 1;
        assert!(table.find(hash_of(&1), is_one).is_none() && table.bytes() == 0);
        assert_eq!(table.remove(hash_of(&1), is_one, hash_of), None);
        (1..=300).for_each(|number| table.insert(hash_of(&number), number, hash_of));
        let place = table.place(hash_of(&1), is_one).unwrap();
        assert_eq!(table.at(place), Some(&1));
        assert_eq!(table.at_mut(place), Some(&mut 1));
        assert_eq!(table.find_mut(hash_of(&300), |&it| it == 300), Some(&mut 300));
        assert_eq!(table.iter().sum::<u64>(), 300 * 301 / 2);
        assert_eq!(table.iter_mut().count(), table.len());
        assert_eq!(table.remove(hash_of(&1), is_one, hash_of), Some(1));
        assert!(table.at(place).is_none() && table.len() == 299);
        table.clear();
        assert_eq!((table.len(), table.bytes()), (0, 0));
    }
}
