//! Memory that a worker has allocated for sockets that accept no data: counted by its holder on
//! allocation and release, so that the sum is known without a walk.

use super::counters::Counters;
use bytes::Bytes;
use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

/// Overhead of a shared frame: its two reference counts and the allocator's share.
const HELD_OVERHEAD_BYTES: usize = 128;

/// The sum, in bytes, shared by everything that counts in it: outboxes, frames that outboxes share,
/// and the remaining output of closing connections.
#[derive(Debug, Clone)]
pub struct Budget(Rc<Sum>);

#[derive(Debug)]
struct Sum {
    /// Stores the sum as one of the worker's counters.
    counters: Arc<Counters>,
    /// Total bytes freed so far.
    freed_bytes: Cell<u64>,
}

impl Budget {
    pub(super) fn new(counters: Arc<Counters>) -> Self {
        Self(Rc::new(Sum { counters, freed_bytes: Cell::new(0) }))
    }

    pub(super) fn bytes(&self) -> usize {
        self.0.counters.outbox_bytes.value() as usize
    }

    pub(super) fn add(&self, bytes: usize) {
        self.0.counters.outbox_bytes.add(bytes as u64);
    }

    pub(super) fn subtract(&self, bytes: usize) {
        debug_assert!(bytes <= self.bytes());
        self.0.counters.outbox_bytes.set(self.bytes().saturating_sub(bytes) as u64);
        self.0.freed_bytes.set(self.0.freed_bytes.get() + bytes as u64);
    }

    /// Bytes freed since the worker started.
    pub(super) fn freed_bytes(&self) -> u64 {
        self.0.freed_bytes.get()
    }
}

/// A frame shared by several outboxes. It counts once, from its first holder to its last.
#[derive(Debug)]
pub struct HeldFrame {
    bytes: Bytes,
    budget: Budget,
}

impl HeldFrame {
    pub fn new(bytes: Bytes, budget: &Budget) -> Rc<Self> {
        budget.add(Self::cost(bytes.len()));
        Rc::new(Self { bytes, budget: budget.clone() })
    }

    /// Bytes that a frame of this length counts.
    pub fn cost(bytes: usize) -> usize {
        bytes + HELD_OVERHEAD_BYTES
    }

    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Returns its last `bytes`.
    pub fn tail(&self, bytes: usize) -> &[u8] {
        &self.bytes[self.bytes.len() - bytes..]
    }
}

impl Drop for HeldFrame {
    fn drop(&mut self) {
        self.budget.subtract(Self::cost(self.bytes.len()));
    }
}
