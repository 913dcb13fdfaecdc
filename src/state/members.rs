//! The members of a tag or a device: a list that never reallocates as a whole.

use std::mem;

/// Numbers per chunk: 16 KiB.
const CHUNK: usize = 1 << 12;

/// Numbers in no particular order, each at a place that its owner remembers. Up to a chunk it is
/// one vector; beyond that it grows and shrinks by chunks: a vector of a million copied 4 MB when
/// it doubled.
#[derive(Debug)]
pub enum Members {
    Few(Vec<u32>),
    /// All full except the last, which is not empty; at least two.
    #[expect(clippy::box_collection, reason = "most lists are short, and pay for what this takes")]
    Many(Box<Vec<Vec<u32>>>),
}

impl Default for Members {
    fn default() -> Self {
        Self::Few(Vec::new())
    }
}

impl Members {
    pub fn len(&self) -> usize {
        match self {
            Self::Few(list) => list.len(),
            Self::Many(chunks) => (chunks.len() - 1) * CHUNK + chunks.last().map_or(0, Vec::len),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The first `end` numbers (at most all of them), in slices.
    pub fn chunks_to(&self, end: usize) -> impl DoubleEndedIterator<Item = &[u32]> {
        let chunks = match self {
            Self::Few(list) => std::slice::from_ref(list),
            Self::Many(chunks) => chunks,
        };
        let chunks = chunks[..end.div_ceil(CHUNK)].iter().enumerate();
        chunks.map(move |(index, chunk)| &chunk[..chunk.len().min(end - index * CHUNK)])
    }

    pub fn get(&self, place: usize) -> Option<u32> {
        match self {
            Self::Few(list) => list.get(place).copied(),
            Self::Many(chunks) => chunks.get(place / CHUNK)?.get(place % CHUNK).copied(),
        }
    }

    /// Adds a number and returns its place.
    pub fn push(&mut self, number: u32) -> u32 {
        let place = self.len() as u32;
        match self {
            Self::Few(list) if list.len() == CHUNK => {
                *self = Self::Many(Box::new(vec![mem::take(list), chunk_of(number)]));
            }
            Self::Few(list) => {
                // Exact capacity, not the four that a vector starts with: most tags of a large node
                // have one member.
                if list.is_empty() {
                    list.reserve_exact(1);
                }
                list.push(number);
            }
            Self::Many(chunks) => match chunks.last_mut() {
                Some(last) if last.len() < CHUNK => last.push(number),
                _ => chunks.push(chunk_of(number)),
            },
        }
        place
    }

    /// Removes the number at `place`. The last number moves there and is returned, unless it is the
    /// removed one.
    pub fn swap_remove(&mut self, place: usize) -> Option<u32> {
        let last = match self {
            Self::Few(list) => list.pop(),
            Self::Many(chunks) => {
                let last = chunks.last_mut().and_then(Vec::pop);
                if chunks.last().is_some_and(Vec::is_empty) {
                    chunks.pop();
                }
                last
            }
        };
        self.shrink();
        let at = match self {
            Self::Few(list) => list.get_mut(place)?,
            Self::Many(chunks) => chunks.get_mut(place / CHUNK)?.get_mut(place % CHUNK)?,
        };
        *at = last?;
        last
    }

    /// Frees memory: an empty chunk at once, the capacity of a short list once only a quarter of it
    /// is used.
    fn shrink(&mut self) {
        match self {
            Self::Few(list) => {
                if list.capacity() > 64 && list.len() < list.capacity() / 4 {
                    list.shrink_to(list.len() * 2);
                }
            }
            Self::Many(chunks) => {
                if chunks.len() == 1
                    && let Some(list) = chunks.pop()
                {
                    *self = Self::Few(list);
                }
            }
        }
    }
}

fn chunk_of(number: u32) -> Vec<u32> {
    let mut chunk = Vec::with_capacity(CHUNK);
    chunk.push(number);
    chunk
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_agrees_with_a_vector_while_it_grows_and_shrinks() {
        let (mut members, mut list, mut random) = (Members::default(), Vec::new(), 1_u64);
        for round in 0..6 * CHUNK as u32 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            // It grows to three chunks and is emptied, with constant churn.
            let is_growing = round < 4 * CHUNK as u32;
            if is_growing != (random >> 60 == 0) || list.is_empty() {
                assert_eq!(members.push(round) as usize, list.len());
                list.push(round);
            } else {
                let place = (random >> 33) as usize % list.len();
                list.swap_remove(place);
                assert_eq!(members.swap_remove(place), list.get(place).copied());
            }
            assert_eq!((members.len(), members.is_empty()), (list.len(), list.is_empty()));
            assert_eq!(members.get(list.len()), None);
            if round.is_multiple_of(64) {
                let end = round as usize % (list.len() + 1);
                assert_eq!(members.chunks_to(end).collect::<Vec<_>>().concat(), list[..end]);
                assert!((0..list.len()).all(|place| members.get(place) == Some(list[place])));
            }
        }
        while let Some(last) = list.len().checked_sub(1) {
            list.pop();
            assert_eq!(members.swap_remove(last), None);
            assert_eq!(members.len(), list.len());
        }
    }

    #[test]
    fn it_is_no_larger_than_a_vector_and_moves_nothing_when_it_grows() {
        assert_eq!(size_of::<Members>(), size_of::<Vec<u32>>());
        let mut members = Members::default();
        members.push(0);
        assert!(matches!(&members, Members::Few(list) if list.capacity() == 1));
        (1..2 * CHUNK as u32).for_each(|number| _ = members.push(number));
        let places = |members: &Members| {
            members.chunks_to(members.len()).map(<[u32]>::as_ptr).collect::<Vec<_>>()
        };
        let before = places(&members);
        (0..4 * CHUNK as u32).for_each(|number| _ = members.push(number));
        assert_eq!(before[..], places(&members)[..before.len()]);
        // A long list frees its chunks, and finally its capacity.
        while members.len() > 10 {
            members.swap_remove(0);
        }
        assert!(matches!(&members, Members::Few(list) if list.capacity() <= 64), "{members:?}");
    }
}
