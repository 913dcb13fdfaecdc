//! Insertion order of the entries of a table.

use std::collections::VecDeque;

/// Length up to which stale entries are not cleared away.
const SLACK: usize = 64;

/// Holds indexes into a table, each with the generation that its entry had. An entry that has been
/// removed or has a new generation is skipped, so that removing an entry needs no work here.
#[derive(Debug, Default)]
pub struct Fifo(VecDeque<(usize, u64)>);

impl Fifo {
    /// Adds an entry at the back. `live`: the number of entries in the table; `is_current`: whether
    /// an entry still has that generation. Amortized constant time.
    pub fn push(
        &mut self,
        (index, generation): (usize, u64),
        live: usize,
        is_current: impl Fn(usize, u64) -> bool,
    ) {
        if self.0.len() > 2 * live + SLACK {
            self.0.retain(|&(index, generation)| is_current(index, generation));
        }
        self.0.push_back((index, generation));
    }

    /// Returns the index of the oldest entry that is still current.
    pub fn oldest(&mut self, is_current: impl Fn(usize, u64) -> bool) -> Option<usize> {
        while let Some(&(index, generation)) = self.0.front() {
            if is_current(index, generation) {
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
        let mut generations = [0; 4];
        let mut fifo = Fifo::default();
        for generation in 1..10_000_u64 {
            let index = generation as usize % generations.len();
            generations[index] = generation;
            fifo.push((index, generation), generations.len(), |index, generation| {
                generations[index] == generation
            });
            assert!(fifo.0.len() <= 2 * generations.len() + SLACK + 1);
        }
        let oldest = *generations.iter().min().unwrap();
        let is_current = |index: usize, generation| generations[index] == generation;
        assert_eq!(fifo.oldest(is_current), Some(oldest as usize % 4));
        assert_eq!(fifo.oldest(|_, _| false), None);
    }
}
