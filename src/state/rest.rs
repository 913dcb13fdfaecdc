//! Output that closing connections still have to write.

use super::counters::{Counters, Drop as DropReason};
use super::outbox::Outbox;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

/// The remaining output of a worker's closing connections.
#[derive(Debug, Clone)]
pub(super) struct Rests(Rc<Ledger>);

#[derive(Debug)]
struct Ledger {
    counters: Arc<Counters>,
    /// Oldest first.
    by_age: RefCell<BTreeMap<u64, Rc<RefCell<Outbox>>>>,
    next: Cell<u64>,
}

impl Rests {
    pub(super) fn new(counters: Arc<Counters>) -> Self {
        Self(Rc::new(Ledger { counters, by_age: RefCell::default(), next: Cell::new(0) }))
    }

    /// Frees the memory of the oldest rest: its connection ends without a Close frame. `false`:
    /// there is none.
    pub(super) fn revoke_oldest(&self) -> bool {
        let Some((_, rest)) = self.0.by_age.borrow_mut().pop_first() else { return false };
        rest.borrow_mut().revoke();
        true
    }

    /// Calls `each` for every rest. For tests.
    pub(super) fn each(&self, mut each: impl FnMut(&Outbox)) {
        self.0.by_age.borrow().values().for_each(|rest| each(&rest.borrow()));
    }
}

/// What a closing connection still has to write before its Close frame: the rest of a partly
/// written frame. It counts in its worker's budget until it is dropped, and is the first memory
/// that the worker takes back ([`Rest::is_revoked`]). A push in it counts as delivered once it is
/// completely written, otherwise as dropped.
#[derive(Debug)]
pub struct Rest {
    outbox: Rc<RefCell<Outbox>>,
    number: u64,
    rests: Rests,
    reason: DropReason,
}

impl Rest {
    /// `outbox` holds only the partly written frame.
    pub(super) fn new(outbox: Outbox, rests: &Rests, reason: DropReason) -> Self {
        let number = rests.0.next.get();
        rests.0.next.set(number + 1);
        let outbox = Rc::new(RefCell::new(outbox));
        rests.0.by_age.borrow_mut().insert(number, Rc::clone(&outbox));
        Self { outbox, number, rests: rests.clone(), reason }
    }

    /// Whether its memory was taken back: nothing more can be written to this connection.
    pub fn is_revoked(&self) -> bool {
        self.outbox.borrow().is_revoked()
    }

    pub fn pending_bytes(&self) -> usize {
        self.outbox.borrow().pending_bytes()
    }

    /// Passes the bytes to write next to `write`, as at most `max` slices.
    pub fn with_slices<R>(&self, max: usize, write: impl FnOnce(&[&[u8]]) -> R) -> R {
        let outbox = self.outbox.borrow();
        let mut slices: smallvec::SmallVec<[&[u8]; 16]> = smallvec::SmallVec::new();
        outbox.slices(max, |slice| slices.push(slice));
        write(&slices)
    }

    /// Removes `written` bytes that were sent.
    pub fn advance(&self, written: usize) {
        let delivered = self.outbox.borrow_mut().advance(written);
        self.rests.0.counters.deliveries.add(delivered);
    }
}

impl Drop for Rest {
    fn drop(&mut self) {
        self.rests.0.by_age.borrow_mut().remove(&self.number);
        self.rests.0.counters.count_drops(self.reason, self.outbox.borrow().unwritten_pushes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::budget::{Budget, HeldFrame};
    use crate::types::WallMs;
    use bytes::Bytes;

    #[test]
    fn a_closing_connection_keeps_the_begun_frame_alone_and_counts_it_until_the_end() {
        let counters = Arc::<Counters>::default();
        let (budget, rests) = (Budget::new(counters.clone()), Rests::new(counters.clone()));
        let mut begun = Outbox::new(&budget, true);
        begun.push(b"rest", true, WallMs::NEVER, true);
        begun.push(b"next", true, WallMs::NEVER, false);
        assert_eq!((begun.shed(), begun.pending_bytes()), (1, 4));
        let rest = Rest::new(begun, &rests, DropReason::Closed);
        assert!(counters.outbox_bytes.value() > 0);
        assert_eq!(rest.with_slices(9, |slices| slices.concat()), b"rest");
        rest.advance(4);
        drop(rest);
        assert_eq!((counters.deliveries.value(), counters.drops(DropReason::Closed)), (1, 0));
        let mut whole = Outbox::new(&budget, true);
        whole.push(b"next", true, WallMs::NEVER, false);
        assert!(whole.shed() == 1 && whole.is_empty());
        drop(whole);
        assert_eq!(counters.outbox_bytes.value(), 0);
    }

    #[test]
    fn a_rest_that_is_taken_back_leaves_nothing_and_counts_as_dropped() {
        let counters = Arc::<Counters>::default();
        let (budget, list) = (Budget::new(counters.clone()), Rests::new(counters.clone()));
        let rests = [&[b'a'; 100][..], b"b"].map(|frame| {
            let mut outbox = Outbox::new(&budget, true);
            outbox.push(frame, true, WallMs::NEVER, true);
            Rest::new(outbox, &list, DropReason::Closed)
        });
        let before = budget.bytes();
        assert!(list.revoke_oldest() && rests[0].is_revoked() && !rests[1].is_revoked());
        assert!(budget.bytes() + 100 <= before);
        assert!(list.revoke_oldest() && !list.revoke_oldest());
        drop(rests);
        assert_eq!((budget.bytes(), counters.drops(DropReason::Closed)), (0, 2));
    }

    /// 1,500 clients that held one frame of 1 MB held 1.3 GB once they were closed.
    #[test]
    fn a_shared_frame_counts_once_however_many_hold_it() {
        let counters = Arc::<Counters>::default();
        let (budget, list) = (Budget::new(counters.clone()), Rests::new(counters));
        let bytes = Bytes::from(vec![b'x'; 1 << 20]);
        let held = HeldFrame::new(bytes, &budget);
        let outbox = |_| {
            let mut outbox = Outbox::new(&budget, true);
            outbox.push_shared(held.clone(), (1 << 20) - 10, true, WallMs::NEVER);
            outbox.shed();
            Rest::new(outbox, &list, DropReason::Closed)
        };
        let rests: Vec<Rest> = (0..1_500).map(outbox).collect();
        assert!(budget.bytes() < (1 << 20) + 1_500 * 400, "{}", budget.bytes());
        drop(held);
        assert!(rests.iter().all(|rest| rest.pending_bytes() == (1 << 20) - 10));
        drop(rests);
        assert_eq!(budget.bytes(), 0);
    }
}
