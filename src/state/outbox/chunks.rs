//! A FIFO byte buffer in pieces: growing moves nothing, and written bytes are freed piece by piece.

use super::{PIECE_BYTES, power_below};
use std::collections::VecDeque;

/// Minimum length of a piece.
const MIN_PIECE_BYTES: usize = 64;

#[derive(Debug, Default)]
pub(super) struct Chunks {
    /// None is empty.
    pieces: VecDeque<Vec<u8>>,
    /// Bytes taken from the first piece.
    head: usize,
    /// Bytes in the buffer.
    len: usize,
    /// Capacity of all pieces.
    capacity: usize,
}

/// A read position in the buffer.
#[derive(Debug)]
pub(super) struct Cursor<'a> {
    chunks: &'a Chunks,
    piece: usize,
    at: usize,
}

impl Chunks {
    /// Bytes allocated.
    pub fn allocated(&self) -> usize {
        self.capacity + self.pieces.capacity() * size_of::<Vec<u8>>()
    }

    /// Bytes that [`Chunks::push`] of `bytes` bytes would allocate.
    pub fn growth(&self, bytes: usize) -> usize {
        let spare = self.pieces.back().map_or(0, |last| last.capacity() - last.len());
        let mut rest = bytes.saturating_sub(spare);
        let (mut len, mut growth, mut pieces) = (self.len + bytes - rest, 0, 0);
        while rest > 0 {
            let wanted = wanted(rest, len);
            let fits = rest.min(wanted);
            (len, rest) = (len + fits, rest - fits);
            (growth, pieces) = (growth + wanted, pieces + 1);
        }
        growth + super::growth(&self.pieces, pieces)
    }

    pub fn push(&mut self, mut bytes: &[u8]) {
        if let Some(last) = self.pieces.back_mut() {
            let (fits, rest) = bytes.split_at(bytes.len().min(last.capacity() - last.len()));
            last.extend_from_slice(fits);
            self.len += fits.len();
            bytes = rest;
        }
        while !bytes.is_empty() {
            let wanted = wanted(bytes.len(), self.len);
            let (fits, rest) = bytes.split_at(bytes.len().min(wanted));
            let mut piece = Vec::with_capacity(wanted);
            piece.extend_from_slice(fits);
            self.len += fits.len();
            self.capacity += piece.capacity();
            super::reserve(&mut self.pieces);
            self.pieces.push_back(piece);
            bytes = rest;
        }
    }

    /// Removes the first `count` bytes, passing them to `each` in slices.
    pub fn take(&mut self, mut count: usize, mut each: impl FnMut(&[u8])) {
        while count > 0
            && let Some(first) = self.pieces.front()
        {
            let end = first.len().min(self.head + count);
            each(&first[self.head..end]);
            count -= end - self.head;
            self.len -= end - self.head;
            self.head = end;
            if end == first.len() {
                self.capacity -= first.capacity();
                self.pieces.pop_front();
                self.head = 0;
            }
        }
    }

    pub fn cursor(&self) -> Cursor<'_> {
        Cursor { chunks: self, piece: 0, at: self.head }
    }
}

/// Length of the next piece of a buffer of `len` bytes that gets `more`: about a quarter of it, for
/// few pieces, and little of them unused.
fn wanted(more: usize, len: usize) -> usize {
    more.max(power_below(len / 4)).clamp(MIN_PIECE_BYTES, PIECE_BYTES)
}

impl<'a> Cursor<'a> {
    /// Passes the next `count` bytes to `show`, in at most `left` slices, which it subtracts.
    pub fn show(&mut self, mut count: usize, left: &mut usize, show: &mut impl FnMut(&'a [u8])) {
        while count > 0
            && *left > 0
            && let Some(piece) = self.chunks.pieces.get(self.piece)
        {
            let end = piece.len().min(self.at + count);
            if end > self.at {
                show(&piece[self.at..end]);
                *left -= 1;
            }
            count -= end - self.at;
            self.at = end;
            if end == piece.len() && count > 0 {
                (self.piece, self.at) = (self.piece + 1, 0);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_in_comes_out_and_little_is_unused() {
        let mut chunks = Chunks::default();
        let bytes: Vec<u8> = (0..200_000u32).map(|n| (n % 251) as u8).collect();
        let mut rest = &bytes[..];
        let mut length = 1;
        while !rest.is_empty() {
            let (some, others) = rest.split_at(rest.len().min(length));
            chunks.push(some);
            rest = others;
            length = length * 7 % 3_001 + 1;
            let used = bytes.len() - rest.len();
            assert!(chunks.allocated() <= used + used / 3 + 4_000, "{used}");
        }
        let mut shown = Vec::new();
        let mut left = usize::MAX;
        chunks.cursor().show(bytes.len(), &mut left, &mut |run| shown.extend_from_slice(run));
        assert!(shown == bytes && usize::MAX - left < 80, "{}", usize::MAX - left);
        let mut taken = Vec::new();
        while taken.len() < bytes.len() {
            chunks.take(777, |run| taken.extend_from_slice(run));
            assert!(chunks.allocated() <= bytes.len() - taken.len() + 2 * PIECE_BYTES);
        }
        assert!(taken == bytes && chunks.capacity == 0 && chunks.len == 0);
    }
}
