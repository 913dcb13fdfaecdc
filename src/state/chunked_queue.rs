//! A queue that never reallocates as a whole.

use std::collections::VecDeque;

/// Entries per chunk.
const CHUNK: usize = 1 << 10;

/// A FIFO queue. It grows by a chunk and moves nothing except while its first chunk is still small;
/// an empty chunk is freed.
#[derive(Debug)]
pub struct ChunkedQueue<T> {
    /// None is empty, except possibly the only one.
    chunks: VecDeque<VecDeque<T>>,
    len: usize,
}

impl<T> Default for ChunkedQueue<T> {
    fn default() -> Self {
        Self { chunks: VecDeque::new(), len: 0 }
    }
}

impl<T> ChunkedQueue<T> {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn push_back(&mut self, value: T) {
        self.len += 1;
        match self.chunks.back_mut() {
            Some(last) if last.len() < CHUNK => last.push_back(value),
            last => {
                // The first chunk grows with its contents: most queues stay short.
                let mut chunk = VecDeque::with_capacity(if last.is_some() { CHUNK } else { 1 });
                chunk.push_back(value);
                self.chunks.push_back(chunk);
            }
        }
    }

    pub fn front(&self) -> Option<&T> {
        self.chunks.front()?.front()
    }

    pub fn pop_front(&mut self) -> Option<T> {
        let is_only = self.chunks.len() == 1;
        let first = self.chunks.front_mut()?;
        let value = first.pop_front()?;
        self.len -= 1;
        // The only chunk is kept: a short queue does not allocate for each of its entries.
        if first.is_empty() && !(is_only && first.capacity() <= CHUNK / 8) {
            self.chunks.pop_front();
        }
        Some(value)
    }
}

impl<T> Extend<T> for ChunkedQueue<T> {
    fn extend<I: IntoIterator<Item = T>>(&mut self, values: I) {
        values.into_iter().for_each(|value| self.push_back(value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_first_comes_first_and_room_is_given_back() {
        let mut queue = ChunkedQueue::default();
        let mut next = 0;
        for round in 0..10 {
            queue.extend(round * 500..(round + 1) * 500);
            for _ in 0..200 {
                assert_eq!(queue.front(), Some(&next));
                assert_eq!(queue.pop_front(), Some(next));
                next += 1;
            }
            assert_eq!(queue.len(), 500 * (round + 1) - next);
            assert!(queue.chunks.len() <= queue.len() / CHUNK + 2);
            assert!(queue.chunks.iter().all(|chunk| chunk.capacity() <= 2 * CHUNK));
        }
        while queue.pop_front() == Some(next) {
            next += 1;
        }
        assert_eq!((next, queue.is_empty(), queue.front()), (5_000, true, None));
        assert!(queue.chunks.is_empty());
    }
}
