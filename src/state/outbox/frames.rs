//! A FIFO queue of frames, in pieces of few sizes; see [`PIECE_BYTES`].

use super::{PIECE_BYTES, Queued, growth, power_below, reserve};
use std::collections::VecDeque;

/// Frames in one piece.
const PIECE: usize = PIECE_BYTES / size_of::<Queued>();

/// Invariant: `first` is empty only if `later` is, and no piece of `later` is empty; all but the
/// last are full, apart from frames taken from the first.
#[derive(Debug, Default)]
pub(super) struct Frames {
    first: VecDeque<Queued>,
    later: VecDeque<VecDeque<Queued>>,
    len: usize,
    /// Of all pieces.
    capacity: usize,
}

impl Frames {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes allocated.
    pub fn allocated(&self) -> usize {
        self.capacity * size_of::<Queued>() + self.later.capacity() * size_of::<VecDeque<Queued>>()
    }

    /// Bytes that adding `count` frames would allocate.
    pub fn growth(&self, mut count: usize) -> usize {
        let last = self.later.back().unwrap_or(&self.first);
        let (mut last_len, mut last_capacity) = (last.len(), last.capacity());
        let (mut len, mut entries, mut pieces) = (self.len, 0, 0);
        while count > 0 {
            let fits = count.min(last_capacity - last_len);
            (count, last_len, len) = (count - fits, last_len + fits, len + fits);
            if count > 0 {
                if last_capacity >= PIECE {
                    (last_len, last_capacity, pieces) = (0, 0, pieces + 1);
                }
                let more = more(len, last_capacity);
                (entries, last_capacity) = (entries + more, last_capacity + more);
            }
        }
        entries * size_of::<Queued>() + growth(&self.later, pieces)
    }

    pub fn push_back(&mut self, frame: Queued) {
        let last = self.later.back_mut().unwrap_or(&mut self.first);
        self.len += 1;
        if last.len() < last.capacity() {
            return last.push_back(frame);
        }
        if last.capacity() >= PIECE {
            let mut piece = VecDeque::with_capacity(more(self.len - 1, 0));
            piece.push_back(frame);
            self.capacity += piece.capacity();
            reserve(&mut self.later);
            return self.later.push_back(piece);
        }
        let before = last.capacity();
        last.reserve_exact(more(self.len - 1, before));
        last.push_back(frame);
        self.capacity += last.capacity() - before;
    }

    pub fn front(&self) -> Option<&Queued> {
        self.first.front()
    }

    pub fn front_mut(&mut self) -> Option<&mut Queued> {
        self.first.front_mut()
    }

    pub fn pop_front(&mut self) -> Option<Queued> {
        let frame = self.first.pop_front()?;
        self.len -= 1;
        if self.first.is_empty()
            && let Some(next) = self.later.pop_front()
        {
            self.capacity -= self.first.capacity();
            self.first = next;
        }
        Some(frame)
    }

    /// Frees what is unused, if that is much.
    pub fn trim(&mut self) {
        if self.later.is_empty() && self.first.capacity() > 64 && self.len < self.capacity / 4 {
            self.first.shrink_to(self.len * 2);
            self.capacity = self.first.capacity();
        }
        if self.later.capacity() > 64 && self.later.len() < self.later.capacity() / 4 {
            self.later.shrink_to(self.later.len() * 2);
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = &Queued> {
        self.first.iter().chain(self.later.iter().flatten())
    }
}

/// Entries by which the last piece of a queue of `len` grows: it doubles. A new one begins with a
/// quarter of the queue at most, so that little of it is unused.
fn more(len: usize, last_capacity: usize) -> usize {
    let wanted = if last_capacity == 0 { power_below(len / 4) } else { last_capacity };
    wanted.min(PIECE - last_capacity)
}

impl IntoIterator for Frames {
    type Item = Queued;
    type IntoIter = std::iter::Chain<
        std::collections::vec_deque::IntoIter<Queued>,
        std::iter::Flatten<std::collections::vec_deque::IntoIter<VecDeque<Queued>>>,
    >;

    fn into_iter(self) -> Self::IntoIter {
        self.first.into_iter().chain(self.later.into_iter().flatten())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::WallMs;

    fn frame(number: usize) -> Queued {
        Queued {
            expires: WallMs::NEVER,
            shared: None,
            bytes: number as u32,
            is_push: true,
            begun: false,
        }
    }

    fn pieces(frames: &Frames) -> impl Iterator<Item = usize> {
        std::iter::once(&frames.first).chain(&frames.later).map(VecDeque::capacity)
    }

    #[test]
    fn a_long_queue_is_in_pieces_and_its_growth_is_foretold() {
        let mut frames = Frames::default();
        let (mut next, mut first) = (0, 0);
        for round in 0..300 {
            let count = round * 7 % 90;
            let (before, growth) = (frames.allocated(), frames.growth(count));
            (0..count).for_each(|_| {
                frames.push_back(frame(next));
                next += 1;
            });
            let grown = frames.allocated() - before;
            // The list of pieces is rounded up.
            assert!((grown..grown + 1_000).contains(&growth), "{round}: {grown}, {growth}");
            assert!(pieces(&frames).all(|capacity| capacity <= PIECE));
            assert_eq!(pieces(&frames).sum::<usize>(), frames.capacity);
            let used = frames.len() * size_of::<Queued>();
            assert!(frames.allocated() <= used + used / 2 + PIECE_BYTES + 1_000, "{used}");
            let taken = if round % 100 == 99 { frames.len() } else { round % 40 };
            for _ in 0..taken.min(frames.len()) {
                assert_eq!(frames.front().unwrap().bytes as usize, first);
                assert_eq!(frames.pop_front().unwrap().bytes as usize, first);
                first += 1;
            }
            frames.trim();
            let left: Vec<usize> = frames.iter().map(|frame| frame.bytes as usize).collect();
            assert!(left.iter().copied().eq(first..next) && frames.len() == left.len());
        }
        let left: Vec<usize> = frames.into_iter().map(|frame| frame.bytes as usize).collect();
        assert!(left.into_iter().eq(first..next));
    }
}
