//! The pending handshakes of one worker: those whose request has not arrived completely, and those
//! whose valid request waits for the queue.

use crate::io::fifo::Fifo;
use crate::io::ring::GENERATION_MASK;
use crate::state::subscriptions::Interest;
use crate::types::MonotonicMs;
use slab::Slab;
use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::os::fd::OwnedFd;

/// Maximum memory of the requests of all handshakes together, as allocated.
const MAX_BYTES: usize = 16 << 20;

/// A connection whose request has not been answered.
#[derive(Debug)]
pub(super) struct Handshake {
    pub(super) fd: OwnedFd,
    pub(super) generation: u32,
    /// The address of its peer, which may be a proxy.
    pub(super) peer: Option<IpAddr>,
    deadline: MonotonicMs,
    received: Vec<u8>,
    /// The request is complete, and the queue must confirm something first.
    pub(super) is_waiting: bool,
}

/// All pending handshakes. The number and the memory of the incomplete ones are bounded: the oldest
/// makes way for a new one, so that connections which send nothing keep nobody out.
#[derive(Debug, Default)]
pub(super) struct Handshakes {
    table: Slab<Handshake>,
    by_age: Fifo,
    generation: u32,
    /// Complete ones, by index and generation.
    waiting: HashMap<Interest, Vec<(usize, u32)>>,
    waiting_count: usize,
    /// Those whose interest is now in force.
    ready: VecDeque<(usize, u32)>,
    bytes: usize,
}

impl Handshakes {
    /// Returns the number of handshakes; each has a descriptor.
    pub(super) fn len(&self) -> usize {
        self.table.len()
    }

    /// Returns the bytes of all requests, as allocated.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Adds an incomplete one and returns its index.
    pub(super) fn insert(
        &mut self,
        (fd, peer): (OwnedFd, Option<IpAddr>),
        received: Vec<u8>,
        deadline: MonotonicMs,
    ) -> usize {
        self.generation = self.generation.wrapping_add(1);
        self.bytes += received.capacity();
        let generation = self.generation;
        let is_waiting = false;
        let handshake = Handshake { fd, generation, peer, deadline, received, is_waiting };
        let index = self.table.insert(handshake);
        let (table, live) = (&self.table, self.table.len());
        let is_current = |index, generation| is_half_open(table, index, generation);
        self.by_age.push((index, u64::from(generation)), live, is_current);
        index
    }

    pub(super) fn get(&self, index: usize) -> Option<&Handshake> {
        self.table.get(index)
    }

    /// Returns the handshake that a token of the ring names, unless it is over.
    pub(super) fn find(&self, index: usize, generation: u32) -> Option<&Handshake> {
        self.table.get(index).filter(|one| one.generation & GENERATION_MASK == generation)
    }

    pub(super) fn remove(&mut self, index: usize) -> Handshake {
        let handshake = self.table.remove(index);
        self.bytes -= handshake.received.capacity();
        self.waiting_count -= usize::from(handshake.is_waiting);
        handshake
    }

    /// Takes the received bytes for processing; [`Handshakes::keep`] puts them back.
    pub(super) fn take_received(&mut self, index: usize) -> Vec<u8> {
        let received = std::mem::take(&mut self.table[index].received);
        self.bytes -= received.capacity();
        received
    }

    pub(super) fn keep(&mut self, index: usize, received: Vec<u8>) {
        self.bytes += received.capacity();
        self.table[index].received = received;
    }

    /// Lets a valid request wait; it is answered when `interest` is in force.
    pub(super) fn let_wait(&mut self, index: usize, interest: Interest) {
        let handshake = &mut self.table[index];
        self.waiting_count += usize::from(!std::mem::replace(&mut handshake.is_waiting, true));
        self.waiting.entry(interest).or_default().push((index, handshake.generation));
    }

    /// Marks `interest` as in force: [`Handshakes::next_ready`] returns the handshakes that waited
    /// for it one by one.
    pub(super) fn handle_ready(&mut self, interest: &Interest) {
        self.ready.extend(self.waiting.remove(interest).unwrap_or_default());
    }

    /// Returns the next handshake whose interest is in force and which still exists.
    pub(super) fn next_ready(&mut self) -> Option<usize> {
        while let Some((index, generation)) = self.ready.pop_front() {
            let one = self.table.get(index).filter(|one| one.generation == generation);
            if one.is_some_and(|one| one.is_waiting) {
                return Some(index);
            }
        }
        None
    }

    pub(super) fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Returns the oldest incomplete handshake if there are more than `max` of them or they take
    /// too much memory.
    pub(super) fn surplus(&mut self, max: usize) -> Option<usize> {
        let half_open = self.table.len() - self.waiting_count;
        if half_open <= max && self.bytes <= MAX_BYTES {
            return None;
        }
        self.oldest()
    }

    /// Returns the oldest incomplete handshake.
    pub(super) fn oldest(&mut self) -> Option<usize> {
        let table = &self.table;
        self.by_age.oldest(|index, generation| is_half_open(table, index, generation))
    }

    /// Returns at most `max` of those whose deadline has passed.
    pub(super) fn late(&self, awake: MonotonicMs, max: usize) -> Vec<usize> {
        let late = self.table.iter().filter(|(_, one)| one.deadline <= awake);
        late.map(|(index, _)| index).take(max).collect()
    }
}

fn is_half_open(table: &Slab<Handshake>, index: usize, generation: u64) -> bool {
    table.get(index).is_some_and(|one| u64::from(one.generation) == generation && !one.is_waiting)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::projects::ProjectId;
    use std::fs::File;

    #[test]
    fn the_oldest_makes_way_and_memory_is_counted_as_allocated() {
        let mut all = Handshakes::default();
        let deadline = MonotonicMs::new(9);
        let socket = || (OwnedFd::from(File::open("/dev/null").unwrap()), None);
        let indexes: Vec<usize> =
            (0..3).map(|_| all.insert(socket(), Vec::new(), deadline)).collect();
        assert_eq!(all.surplus(3), None);
        assert_eq!(all.surplus(2), Some(indexes[0]));
        // A complete one does not count as surplus, and the next oldest is returned.
        all.let_wait(indexes[0], Interest::Project(ProjectId(0)));
        assert_eq!((all.surplus(2), all.surplus(1)), (None, Some(indexes[1])));
        all.keep(indexes[2], Vec::with_capacity(MAX_BYTES / 2));
        assert_eq!((all.bytes() >= MAX_BYTES / 2, all.surplus(3)), (true, None));
        let more = all.insert(socket(), Vec::with_capacity(MAX_BYTES / 2 + 1), deadline);
        assert_eq!(all.surplus(9), Some(indexes[1]));
        for index in [indexes[1], indexes[2], more] {
            all.remove(index);
        }
        assert_eq!((all.bytes(), all.surplus(0)), (0, None));
        assert_eq!(all.late(deadline, 1), [indexes[0]]);
    }
}
