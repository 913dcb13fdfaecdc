//! Entries of a table in the order in which they were added.

use std::collections::VecDeque;

/// The length up to which entries that are gone are not cleared away.
const SLACK: usize = 64;

/// Holds indexes into a table, each with the stamp that its entry had. An entry that is gone, or
/// has another stamp by now, is skipped: whoever removes an entry has nothing to do here.
#[derive(Debug, Default)]
pub struct Fifo(VecDeque<(usize, u64)>);

impl Fifo {
    /// Adds an entry behind all others. `live`: the number of entries that the table has;
    /// `is_current`: whether an entry still has that stamp. Constant time, amortized.
    pub fn push(
        &mut self,
        (index, stamp): (usize, u64),
        live: usize,
        is_current: impl Fn(usize, u64) -> bool,
    ) {
        if self.0.len() > 2 * live + SLACK {
            self.0.retain(|&(index, stamp)| is_current(index, stamp));
        }
        self.0.push_back((index, stamp));
    }

    /// The index of the oldest entry that is still current.
    pub fn oldest(&mut self, is_current: impl Fn(usize, u64) -> bool) -> Option<usize> {
        while let Some(&(index, stamp)) = self.0.front() {
            if is_current(index, stamp) {
                return Some(index);
            }
            self.0.pop_front();
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_that_is_left_comes_first_and_the_others_do_not_pile_up() {
        let mut stamps = [0; 4];
        let mut fifo = Fifo::default();
        for stamp in 1..10_000_u64 {
            let index = stamp as usize % stamps.len();
            stamps[index] = stamp;
            fifo.push((index, stamp), stamps.len(), |index, stamp| stamps[index] == stamp);
            assert!(fifo.0.len() <= 2 * stamps.len() + SLACK + 1);
        }
        let oldest = *stamps.iter().min().unwrap();
        let is_current = |index: usize, stamp| stamps[index] == stamp;
        assert_eq!(fifo.oldest(is_current), Some(oldest as usize % 4));
        assert_eq!(fifo.oldest(|_, _| false), None);
    }
}
