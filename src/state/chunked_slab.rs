//! A slab that never reallocates as a whole.

use std::ops::{Index, IndexMut};

/// Entries per chunk.
const CHUNK: usize = 1 << 10;
/// No entry.
const NONE: u32 = u32::MAX;

/// Values by the index that [`ChunkedSlab::insert`] returned. It grows by a chunk and moves nothing
/// except while its first chunk is still small: a vector of a million tags would copy 32 MB at
/// once. It frees the chunks that become empty, all but one.
#[derive(Debug)]
pub struct ChunkedSlab<T> {
    chunks: Vec<Chunk<T>>,
    /// The chunks that are not full; those without memory come first and are used last.
    with_room: Vec<u32>,
    /// An empty chunk has kept its memory.
    has_spare: bool,
    len: usize,
}

#[derive(Debug)]
struct Chunk<T> {
    entries: Vec<SlabEntry<T>>,
    /// Head of the free list: entries that were in use, each holding the index of the next.
    free: u32,
    used: usize,
}

#[derive(Debug)]
enum SlabEntry<T> {
    Free(u32),
    Used(T),
}

impl<T> Default for ChunkedSlab<T> {
    fn default() -> Self {
        Self { chunks: Vec::new(), with_room: Vec::new(), has_spare: false, len: 0 }
    }
}

impl<T> ChunkedSlab<T> {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// At least one past the highest index in use.
    pub fn end(&self) -> usize {
        self.chunks.last().map_or(0, |last| (self.chunks.len() - 1) * CHUNK + last.entries.len())
    }

    /// Adds a value and returns its index.
    pub fn insert(&mut self, value: T) -> usize {
        self.len += 1;
        let number = self.with_room.last().map_or(self.chunks.len(), |&number| number as usize);
        if number == self.chunks.len() {
            self.chunks.push(Chunk { entries: Vec::new(), free: NONE, used: 0 });
            self.with_room.push(number as u32);
        }
        let chunk = &mut self.chunks[number];
        if chunk.used == 0 && chunk.entries.capacity() > 0 {
            self.has_spare = false;
        }
        // The first chunk grows with its contents: most slabs stay small.
        if chunk.entries.capacity() == 0 && number > 0 {
            chunk.entries.reserve_exact(CHUNK);
        }
        chunk.used += 1;
        if chunk.used == CHUNK {
            self.with_room.pop();
        }
        let place = match chunk.free {
            NONE => {
                chunk.entries.push(SlabEntry::Used(value));
                chunk.entries.len() - 1
            }
            place => {
                let entry = &mut chunk.entries[place as usize];
                if let SlabEntry::Free(next) = std::mem::replace(entry, SlabEntry::Used(value)) {
                    chunk.free = next;
                }
                place as usize
            }
        };
        number * CHUNK + place
    }

    pub fn get(&self, index: usize) -> Option<&T> {
        match self.chunks.get(index / CHUNK)?.entries.get(index % CHUNK)? {
            SlabEntry::Used(value) => Some(value),
            SlabEntry::Free(_) => None,
        }
    }

    pub fn get_mut(&mut self, index: usize) -> Option<&mut T> {
        match self.chunks.get_mut(index / CHUNK)?.entries.get_mut(index % CHUNK)? {
            SlabEntry::Used(value) => Some(value),
            SlabEntry::Free(_) => None,
        }
    }

    /// Removes a value, if there is one. Its index is reused.
    pub fn try_remove(&mut self, index: usize) -> Option<T> {
        self.get(index)?;
        let (number, place) = (index / CHUNK, index % CHUNK);
        let chunk = &mut self.chunks[number];
        let entry = std::mem::replace(&mut chunk.entries[place], SlabEntry::Free(chunk.free));
        let SlabEntry::Used(value) = entry else { return None };
        chunk.free = place as u32;
        chunk.used -= 1;
        self.len -= 1;
        if chunk.used == CHUNK - 1 {
            self.with_room.push(number as u32);
        }
        if chunk.used == 0 {
            // One is kept: a value that comes and goes allocates nothing.
            chunk.free = NONE;
            if std::mem::replace(&mut self.has_spare, true) {
                chunk.entries = Vec::new();
                self.with_room.retain(|&other| other as usize != number);
                self.with_room.insert(0, number as u32);
            } else {
                chunk.entries.clear();
            }
        }
        Some(value)
    }

    /// Iterates over all values, with their indexes.
    pub fn iter(&self) -> impl Iterator<Item = (usize, &T)> {
        let all = self.chunks.iter().enumerate().flat_map(|(number, chunk)| {
            let entries = chunk.entries.iter().enumerate();
            entries.map(move |(place, entry)| (number * CHUNK + place, entry))
        });
        all.filter_map(|(index, entry)| match entry {
            SlabEntry::Used(value) => Some((index, value)),
            SlabEntry::Free(_) => None,
        })
    }

    /// The same, to change them.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (usize, &mut T)> {
        let all = self.chunks.iter_mut().enumerate().flat_map(|(number, chunk)| {
            let entries = chunk.entries.iter_mut().enumerate();
            entries.map(move |(place, entry)| (number * CHUNK + place, entry))
        });
        all.filter_map(|(index, entry)| match entry {
            SlabEntry::Used(value) => Some((index, value)),
            SlabEntry::Free(_) => None,
        })
    }

    /// Values for which memory is allocated.
    #[cfg(test)]
    pub(super) fn capacity(&self) -> usize {
        self.chunks.iter().map(|chunk| chunk.entries.capacity()).sum()
    }
}

/// Panics on a free index, as a slice does out of bounds.
impl<T> Index<usize> for ChunkedSlab<T> {
    type Output = T;

    fn index(&self, index: usize) -> &T {
        match &self.chunks[index / CHUNK].entries[index % CHUNK] {
            SlabEntry::Used(value) => value,
            SlabEntry::Free(_) => panic!("nothing is at {index}"),
        }
    }
}

impl<T> IndexMut<usize> for ChunkedSlab<T> {
    fn index_mut(&mut self, index: usize) -> &mut T {
        match &mut self.chunks[index / CHUNK].entries[index % CHUNK] {
            SlabEntry::Used(value) => value,
            SlabEntry::Free(_) => panic!("nothing is at {index}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_keep_their_places_and_free_ones_are_used_again() {
        let mut slab = ChunkedSlab::default();
        let count = 2 * CHUNK + 10;
        for number in 0..count {
            assert_eq!(slab.insert(number), number);
        }
        // No inserted value has moved.
        let first = &raw const slab[CHUNK];
        (0..CHUNK).for_each(|number| _ = slab.insert(number));
        assert_eq!(first, &raw const slab[CHUNK]);
        assert_eq!((slab.len(), slab.end()), (count + CHUNK, count + CHUNK));
        for index in [5, CHUNK + 1] {
            assert_eq!(slab.try_remove(index), Some(index));
            assert_eq!((slab.try_remove(index), slab.get(index)), (None, None));
        }
        assert_eq!(slab.iter().count(), slab.len());
        assert_eq!([slab.insert(7), slab.insert(8)], [CHUNK + 1, 5]);
        slab[5] += 1;
        assert_eq!((slab[5], slab.get_mut(CHUNK + 1)), (9, Some(&mut 7)));
        (0..slab.end()).for_each(|index| _ = slab.try_remove(index));
        assert!(slab.is_empty() && slab.get(0).is_none());
        assert!(slab.capacity() <= CHUNK, "{}", slab.capacity());
        let again = slab.insert(9);
        assert_eq!((slab[again], slab.len(), slab.iter().count()), (9, 1, 1));
    }

    /// A slab that had been large once used to stay so.
    #[test]
    fn chunks_that_become_empty_are_freed_and_used_again() {
        let mut slab = ChunkedSlab::default();
        let count = 100 * CHUNK;
        (0..count).for_each(|number| _ = slab.insert(number));
        // The oldest leave, and one that came and goes keeps allocating nothing.
        (0..90 * CHUNK).for_each(|index| assert_eq!(slab.try_remove(index), Some(index)));
        assert!(slab.capacity() <= 12 * CHUNK, "{}", slab.capacity());
        let before = slab.capacity();
        for number in 0..10 {
            let index = slab.insert(number);
            let with_it = slab.capacity();
            assert_eq!(slab.try_remove(index), Some(number));
            assert_eq!(slab.capacity(), with_it);
            assert!(with_it <= before + CHUNK);
        }
        assert!((90 * CHUNK..count).all(|index| slab[index] == index));
        let mut places: Vec<usize> = (0..count).map(|number| slab.insert(number)).collect();
        places.extend(90 * CHUNK..count);
        places.sort_unstable();
        places.dedup();
        assert_eq!((places.len(), slab.len()), (count + 10 * CHUNK, count + 10 * CHUNK));
        slab.iter_mut().for_each(|(index, value)| *value = index);
        assert!(places.iter().all(|&index| slab[index] == index));
    }
}
