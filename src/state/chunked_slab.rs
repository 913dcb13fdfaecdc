//! A slab that never reallocates as a whole.

use std::ops::{Index, IndexMut};

/// Entries per chunk.
const CHUNK: usize = 1 << 10;
/// No entry.
const NONE: u32 = u32::MAX;

/// Values by the index that [`ChunkedSlab::insert`] returned. It grows by a chunk and moves nothing
/// except while its first chunk is still small: a vector of a million tags would copy 32 MB at
/// once. Like a vector it keeps its capacity.
#[derive(Debug)]
pub struct ChunkedSlab<T> {
    chunks: Vec<Vec<SlabEntry<T>>>,
    /// Head of the free list: entries that were in use, each holding the index of the next.
    free: u32,
    len: usize,
}

#[derive(Debug)]
enum SlabEntry<T> {
    Free(u32),
    Used(T),
}

impl<T> Default for ChunkedSlab<T> {
    fn default() -> Self {
        Self { chunks: Vec::new(), free: NONE, len: 0 }
    }
}

impl<T> ChunkedSlab<T> {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// One past the highest index ever used.
    pub fn end(&self) -> usize {
        self.chunks.last().map_or(0, |last| (self.chunks.len() - 1) * CHUNK + last.len())
    }

    /// Adds a value and returns its index.
    pub fn insert(&mut self, value: T) -> usize {
        self.len += 1;
        if self.free != NONE {
            let index = self.free as usize;
            let entry = &mut self.chunks[index / CHUNK][index % CHUNK];
            if let SlabEntry::Free(next) = std::mem::replace(entry, SlabEntry::Used(value)) {
                self.free = next;
            }
            return index;
        }
        let index = self.end();
        if index.is_multiple_of(CHUNK) {
            // The first chunk grows with its contents: most slabs stay small.
            let room = if index == 0 { 0 } else { CHUNK };
            self.chunks.push(Vec::with_capacity(room));
        }
        self.chunks[index / CHUNK].push(SlabEntry::Used(value));
        index
    }

    pub fn get(&self, index: usize) -> Option<&T> {
        match self.chunks.get(index / CHUNK)?.get(index % CHUNK)? {
            SlabEntry::Used(value) => Some(value),
            SlabEntry::Free(_) => None,
        }
    }

    pub fn get_mut(&mut self, index: usize) -> Option<&mut T> {
        match self.chunks.get_mut(index / CHUNK)?.get_mut(index % CHUNK)? {
            SlabEntry::Used(value) => Some(value),
            SlabEntry::Free(_) => None,
        }
    }

    /// Removes a value, if there is one. Its index is reused.
    pub fn try_remove(&mut self, index: usize) -> Option<T> {
        self.get(index)?;
        let entry = &mut self.chunks[index / CHUNK][index % CHUNK];
        let SlabEntry::Used(value) = std::mem::replace(entry, SlabEntry::Free(self.free)) else {
            return None;
        };
        self.free = index as u32;
        self.len -= 1;
        Some(value)
    }

    /// Iterates over all values, with their indexes.
    pub fn iter(&self) -> impl Iterator<Item = (usize, &T)> {
        let all = self.chunks.iter().flatten().enumerate();
        all.filter_map(|(index, entry)| match entry {
            SlabEntry::Used(value) => Some((index, value)),
            SlabEntry::Free(_) => None,
        })
    }
}

/// Panics on a free index, as a slice does out of bounds.
impl<T> Index<usize> for ChunkedSlab<T> {
    type Output = T;

    fn index(&self, index: usize) -> &T {
        match &self.chunks[index / CHUNK][index % CHUNK] {
            SlabEntry::Used(value) => value,
            SlabEntry::Free(_) => panic!("nothing is at {index}"),
        }
    }
}

impl<T> IndexMut<usize> for ChunkedSlab<T> {
    fn index_mut(&mut self, index: usize) -> &mut T {
        match &mut self.chunks[index / CHUNK][index % CHUNK] {
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
        assert_eq!((slab.insert(9), slab.end()), (count + CHUNK - 1, count + CHUNK));
    }
}
