//! Slots ordered by a size that changes often: finding a largest one and moving one take constant
//! time.

/// Sizes are compared by their highest bits, in steps of an eighth. Sizes below 8 are equal.
const STEPS: usize = 8;
const BUCKETS: usize = (usize::BITS as usize - 2) * STEPS;
const WORDS: usize = BUCKETS.div_ceil(64);

/// Position of a slot; kept beside what the slot stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SizePlace {
    bucket: u16,
    position: u32,
}

#[derive(Debug)]
pub struct BySize {
    buckets: Box<[Vec<u32>]>,
    /// Bitmap of the non-empty buckets.
    occupied: [u64; WORDS],
    len: usize,
}

impl Default for BySize {
    fn default() -> Self {
        let buckets = (0..BUCKETS).map(|_| Vec::new()).collect();
        Self { buckets, occupied: [0; WORDS], len: 0 }
    }
}

impl SizePlace {
    /// Whether it is the right position for this size.
    pub fn fits(self, size: usize) -> bool {
        usize::from(self.bucket) == bucket_of(size)
    }
}

impl BySize {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn insert(&mut self, slot: u32, size: usize) -> SizePlace {
        let bucket = bucket_of(size);
        let position = self.buckets[bucket].len() as u32;
        self.buckets[bucket].push(slot);
        self.occupied[bucket / 64] |= 1 << (bucket % 64);
        self.len += 1;
        SizePlace { bucket: bucket as u16, position }
    }

    /// Removes the slot at `place`; returns the slot that is moved there, if any.
    #[must_use]
    pub fn remove(&mut self, place: SizePlace) -> Option<u32> {
        let bucket = usize::from(place.bucket);
        let list = &mut self.buckets[bucket];
        list.swap_remove(place.position as usize);
        self.len -= 1;
        if list.is_empty() {
            self.occupied[bucket / 64] &= !(1 << (bucket % 64));
            *list = Vec::new();
        }
        self.buckets[bucket].get(place.position as usize).copied()
    }

    /// Returns a slot that no other exceeds by more than an eighth.
    pub fn largest(&self) -> Option<u32> {
        let (word, bits) = self.occupied.iter().enumerate().rev().find(|(_, bits)| **bits != 0)?;
        let bucket = word * 64 + bits.ilog2() as usize;
        self.buckets[bucket].last().copied()
    }
}

/// Increases with the size, in steps of at most an eighth of it.
fn bucket_of(size: usize) -> usize {
    let size = size.max(STEPS);
    let octave = size.ilog2() as usize - 3;
    octave * STEPS + (size >> octave) - STEPS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_rise_with_the_size_in_small_steps() {
        let mut last = 0;
        for size in (0..10_000).chain([1 << 20, 1 << 40, usize::MAX]) {
            let bucket = bucket_of(size);
            assert!(bucket >= last && bucket < BUCKETS, "{size}");
            last = bucket;
        }
        for size in 8..100_000usize {
            assert!(bucket_of(size + size / 8 + 1) > bucket_of(size), "{size}");
        }
    }

    #[test]
    fn the_largest_is_found_whatever_moved() {
        let mut order = BySize::default();
        let mut sizes: Vec<usize> =
            (1..=200).map(|n: usize| n * n * 37 % 5_000 + n * 100).collect();
        let mut places: Vec<SizePlace> =
            sizes.iter().enumerate().map(|(slot, &size)| order.insert(slot as u32, size)).collect();
        while let Some(slot) = order.largest() {
            let (size, largest) = (sizes[slot as usize], *sizes.iter().max().unwrap());
            assert!(size + size / 8 + 1 >= largest, "{size} of {largest}");
            let slot = slot as usize;
            if let Some(moved) = order.remove(places[slot]) {
                places[moved as usize] = places[slot];
            }
            sizes[slot] /= 3;
            if sizes[slot] >= STEPS {
                places[slot] = order.insert(slot as u32, sizes[slot]);
            }
        }
        assert_eq!((order.len(), order.occupied), (0, [0; WORDS]));
    }
}
