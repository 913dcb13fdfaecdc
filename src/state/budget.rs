//! What a worker has allocated for sockets that do not take it: counted as it is allocated and
//! freed, by whoever holds it, so that nothing has to be walked to know the sum.

use super::counters::{Counters, Drop as DropReason};
use super::outbox::Outbox;
use bytes::Bytes;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

/// What a shared frame takes beside its bytes: its two reference counts and the allocator's share.
const HELD_OVERHEAD_BYTES: usize = 128;

/// The sum, in bytes, shared by everything that counts in it: outboxes, frames that outboxes share,
/// and the rests of closing connections.
#[derive(Debug, Clone)]
pub struct Budget(Rc<Ledger>);

#[derive(Debug)]
struct Ledger {
    /// The sum is one of the worker's counters.
    counters: Arc<Counters>,
    /// What closing connections still have to write, the oldest first.
    rests: RefCell<BTreeMap<u64, Rc<RefCell<Outbox>>>>,
    next_rest: Cell<u64>,
}

impl Budget {
    pub(super) fn new(counters: Arc<Counters>) -> Self {
        Self(Rc::new(Ledger { counters, rests: RefCell::default(), next_rest: Cell::new(0) }))
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
    }

    /// Takes the memory of the oldest rest back: its connection ends without a Close frame.
    /// `false`: there is none.
    pub(super) fn revoke_oldest_rest(&self) -> bool {
        let Some((_, rest)) = self.0.rests.borrow_mut().pop_first() else { return false };
        rest.borrow_mut().revoke();
        true
    }

    /// Calls `each` for every rest. For tests.
    pub(super) fn each_rest(&self, mut each: impl FnMut(&Outbox)) {
        self.0.rests.borrow().values().for_each(|rest| each(&rest.borrow()));
    }
}

/// A frame that several outboxes share. It counts once, from the first that holds it to the last.
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

    /// What a frame of this length counts.
    pub fn cost(bytes: usize) -> usize {
        bytes + HELD_OVERHEAD_BYTES
    }

    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// The last `bytes` of it.
    pub fn tail(&self, bytes: usize) -> &[u8] {
        &self.bytes[self.bytes.len() - bytes..]
    }
}

impl Drop for HeldFrame {
    fn drop(&mut self) {
        self.budget.subtract(Self::cost(self.bytes.len()));
    }
}

/// What a closing connection still has to write before its Close frame: the rest of a frame that is
/// partly written. It counts in its worker's budget until it is dropped, and the worker takes it
/// back first when it needs the memory ([`Rest::is_revoked`]). A push in it counts as delivered if
/// it is written whole, and as dropped otherwise.
#[derive(Debug)]
pub struct Rest {
    outbox: Rc<RefCell<Outbox>>,
    number: u64,
    budget: Budget,
    reason: DropReason,
}

impl Rest {
    /// `outbox` has nothing but the frame that is partly written.
    pub(super) fn new(outbox: Outbox, budget: &Budget, reason: DropReason) -> Self {
        let number = budget.0.next_rest.get();
        budget.0.next_rest.set(number + 1);
        let outbox = Rc::new(RefCell::new(outbox));
        budget.0.rests.borrow_mut().insert(number, Rc::clone(&outbox));
        Self { outbox, number, budget: budget.clone(), reason }
    }

    /// Its memory was taken back: nothing more can be written to this connection.
    pub fn is_revoked(&self) -> bool {
        self.outbox.borrow().is_revoked()
    }

    pub fn pending_bytes(&self) -> usize {
        self.outbox.borrow().pending_bytes()
    }

    /// Hands what is to be written next to `write`, as at most `max` runs of bytes.
    pub fn with_slices<R>(&self, max: usize, write: impl FnOnce(&[&[u8]]) -> R) -> R {
        let outbox = self.outbox.borrow();
        let mut slices: smallvec::SmallVec<[&[u8]; 16]> = smallvec::SmallVec::new();
        outbox.slices(max, |slice| slices.push(slice));
        write(&slices)
    }

    /// `written` bytes of it were sent.
    pub fn advance(&self, written: usize) {
        let delivered = self.outbox.borrow_mut().advance(written);
        self.budget.0.counters.deliveries.add(delivered);
    }
}

impl Drop for Rest {
    fn drop(&mut self) {
        self.budget.0.rests.borrow_mut().remove(&self.number);
        self.budget.0.counters.count_drops(self.reason, self.outbox.borrow().unwritten_pushes());
    }
}
