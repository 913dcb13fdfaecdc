//! Output still queued for one connection: frames that did not fit in its socket.

mod chunks;
mod frames;

use super::budget::{Budget, HeldFrame};
use crate::types::WallMs;
use chunks::Chunks;
use frames::Frames;
use std::collections::VecDeque;
use std::rc::Rc;

/// Frames in order, the first possibly partly written. Frames below 16 KiB are copied, back to
/// back; larger ones are shared with the batch that created them.
///
/// The owner writes what [`Outbox::slices`] returns and reports the number of written bytes to
/// [`Outbox::advance`].
///
/// Invariant: its allocations count in its worker's [`Budget`]; a shared frame counts there once,
/// however many outboxes hold it.
#[derive(Debug)]
pub struct Outbox {
    budget: Budget,
    /// Bytes it has charged there for its own allocations.
    charged: usize,
    frames: Frames,
    copied: Chunks,
    pending_bytes: usize,
    /// Pending bytes of the shared frames.
    shared_pending_bytes: usize,
    /// Number of frames that are pushes, and that are shared.
    pushes: u32,
    shared: u32,
    /// No frame expires before.
    next_expiry: WallMs,
    /// Its socket was offered the bytes and left some. Until then its owner is not slow, whatever
    /// the size.
    pub(super) was_tried: bool,
    /// The worker needed its memory: only the rest of a partly written frame is left, and nothing
    /// is added.
    is_shed: bool,
    /// That rest was dropped as well: the connection cannot be ended with a Close frame.
    is_revoked: bool,
    /// Its position in the owner's order by size; maintained by the owner.
    pub(super) place: Option<super::by_size::SizePlace>,
}

#[derive(Debug)]
struct Queued {
    /// Dropped if not started by this time.
    expires: WallMs,
    shared: Option<Rc<HeldFrame>>,
    /// Bytes of the frame still to be written.
    bytes: u32,
    is_push: bool,
    /// Partly written: it must be finished.
    begun: bool,
}

/// Largest block of an outbox, and the only size of all but the first few. The blocks of outboxes
/// are mixed in the allocator's pages, and each page has blocks of one size: what a closed
/// connection frees in many sizes, growing outboxes of others cannot use, and with a budget of 2 MB
/// a worker took 12.
const PIECE_BYTES: usize = 4 << 10;

/// Returns the largest power of two that is not above `number`, or 1.
fn power_below(number: usize) -> usize {
    1 << number.max(1).ilog2()
}

/// Overhead of a queued frame.
pub const QUEUED_BYTES: usize = size_of::<Queued>();

/// Makes room for one more entry, growing by a quarter: doubling would leave half unused.
fn reserve<T>(queue: &mut VecDeque<T>) {
    if queue.len() == queue.capacity() {
        queue.reserve_exact((queue.len() / 4).max(1));
    }
}

/// Returns the bytes, rounded up, that this allocates for `count` more entries.
fn growth<T>(queue: &VecDeque<T>, count: usize) -> usize {
    let len = queue.len() + count;
    match len <= queue.capacity() {
        true => 0,
        false => (len + len / 4 + 1 - queue.capacity()) * size_of::<T>(),
    }
}

/// What is to be added to an outbox.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Load {
    pub frames: usize,
    /// Bytes to copy.
    pub copied_bytes: usize,
    /// Cost of shared frames that no outbox holds yet.
    pub held_bytes: usize,
}

impl Outbox {
    /// Returns the budget needed for an outbox to take `load`; `None`: it is yet to be created.
    pub(super) fn growth(outbox: Option<&Self>, load: Load) -> usize {
        let own = match outbox {
            Some(outbox) => {
                outbox.frames.growth(load.frames) + outbox.copied.growth(load.copied_bytes)
            }
            None => {
                size_of::<Self>()
                    + Frames::default().growth(load.frames)
                    + Chunks::default().growth(load.copied_bytes)
            }
        };
        own + load.held_bytes
    }

    pub(super) fn new(budget: &Budget, was_tried: bool) -> Self {
        let mut outbox = Self {
            budget: budget.clone(),
            charged: 0,
            frames: Frames::default(),
            copied: Chunks::default(),
            pending_bytes: 0,
            shared_pending_bytes: 0,
            pushes: 0,
            shared: 0,
            next_expiry: WallMs::NEVER,
            was_tried,
            is_shed: false,
            is_revoked: false,
            place: None,
        };
        outbox.charge();
        outbox
    }

    /// Whether more than `limit` bytes, overhead included, wait although the socket had its turn.
    /// The frame being written does not count: one push may be longer than what a socket takes at
    /// once, and a client that reads it is not slow.
    pub(super) fn is_over(&self, limit: usize) -> bool {
        let Some(first) = self.frames.front() else { return false };
        let waiting_bytes = self.pending_bytes - first.bytes as usize;
        self.was_tried && waiting_bytes + (self.frames.len() - 1) * QUEUED_BYTES > limit
    }

    /// Bytes still to be written.
    pub fn pending_bytes(&self) -> usize {
        self.pending_bytes
    }

    /// Memory that its worker regains if it is dropped, apart from frames that others share.
    pub(super) fn size(&self) -> usize {
        self.charged + self.shared_pending_bytes
    }

    pub(super) fn is_shed(&self) -> bool {
        self.is_shed
    }

    /// Whether its memory may be taken for others: only after its socket had its turn.
    pub(super) fn may_be_shed(&self) -> bool {
        self.was_tried && !self.is_shed
    }

    pub(super) fn is_revoked(&self) -> bool {
        self.is_revoked
    }

    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Number of queued pushes.
    pub(super) fn unwritten_pushes(&self) -> u64 {
        u64::from(self.pushes)
    }

    /// Appends a copy of a frame's bytes. `begun`: the bytes before these are already written.
    pub(super) fn push(&mut self, frame: &[u8], is_push: bool, expires: WallMs, begun: bool) {
        self.copied.push(frame);
        self.queue(frame.len(), is_push, expires, begun, None);
        self.charge();
    }

    /// Appends the last `bytes` of a frame that stays shared.
    pub(super) fn push_shared(
        &mut self,
        frame: Rc<HeldFrame>,
        bytes: usize,
        is_push: bool,
        expires: WallMs,
    ) {
        let begun = bytes < frame.len();
        self.queue(bytes, is_push, expires, begun, Some(frame));
        self.charge();
    }

    fn queue(
        &mut self,
        bytes: usize,
        is_push: bool,
        expires: WallMs,
        begun: bool,
        shared: Option<Rc<HeldFrame>>,
    ) {
        debug_assert!(bytes > 0 && (!begun || self.frames.is_empty()));
        self.pending_bytes += bytes;
        self.pushes += u32::from(is_push);
        if shared.is_some() {
            self.shared += 1;
            self.shared_pending_bytes += bytes;
        }
        if !begun {
            self.next_expiry = self.next_expiry.min(expires);
        }
        self.frames.push_back(Queued { expires, shared, bytes: bytes as u32, is_push, begun });
    }

    /// Charges what it has allocated now.
    fn charge(&mut self) {
        let allocated = size_of::<Self>() + self.frames.allocated() + self.copied.allocated();
        if allocated > self.charged {
            self.budget.add(allocated - self.charged);
        } else {
            self.budget.subtract(self.charged - allocated);
        }
        self.charged = allocated;
    }

    /// Drops the frames that expired before they were started; returns the number of pushes among
    /// them.
    pub(super) fn drop_expired(&mut self, now: WallMs) -> u64 {
        if now < self.next_expiry {
            return 0;
        }
        self.keep(|frame| frame.begun || frame.expires > now)
    }

    /// Keeps only the rest of a partly written frame and accepts no more; returns the number of
    /// dropped pushes.
    pub(super) fn shed(&mut self) -> u64 {
        self.is_shed = true;
        self.keep(|frame| frame.begun)
    }

    /// Drops the frames for which `is_kept` is false; returns the number of pushes among them.
    fn keep(&mut self, is_kept: impl Fn(&Queued) -> bool) -> u64 {
        let before = self.pushes;
        let frames = std::mem::take(&mut self.frames);
        let mut old = std::mem::take(&mut self.copied);
        (self.pending_bytes, self.shared_pending_bytes) = (0, 0);
        (self.pushes, self.shared, self.next_expiry) = (0, 0, WallMs::NEVER);
        for frame in frames {
            let is_kept = is_kept(&frame);
            let bytes = frame.bytes as usize;
            if frame.shared.is_none() {
                old.take(bytes, |run| {
                    if is_kept {
                        self.copied.push(run)
                    }
                });
            }
            if is_kept {
                self.queue(bytes, frame.is_push, frame.expires, frame.begun, frame.shared);
            }
        }
        self.charge();
        u64::from(before - self.pushes)
    }

    /// Frees all of its memory.
    pub(super) fn revoke(&mut self) {
        self.is_revoked = true;
        self.frames = Frames::default();
        self.copied = Chunks::default();
        (self.pending_bytes, self.shared_pending_bytes, self.shared) = (0, 0, 0);
        self.charge();
    }

    /// Passes the bytes to write next to `show`, in order, as at most `max` slices.
    pub fn slices<'a>(&'a self, max: usize, mut show: impl FnMut(&'a [u8])) {
        let mut left = max;
        let mut cursor = self.copied.cursor();
        if self.shared == 0 {
            return cursor.show(self.pending_bytes, &mut left, &mut show);
        }
        let mut run = 0;
        for frame in self.frames.iter() {
            let Some(shared) = &frame.shared else {
                run += frame.bytes as usize;
                continue;
            };
            cursor.show(std::mem::take(&mut run), &mut left, &mut show);
            if left == 0 {
                return;
            }
            show(shared.tail(frame.bytes as usize));
            left -= 1;
            if left == 0 {
                return;
            }
        }
        cursor.show(run, &mut left, &mut show);
    }

    /// Removes `written` bytes; returns the number of pushes that are completely written now.
    pub(super) fn advance(&mut self, mut written: usize) -> u64 {
        debug_assert!(written <= self.pending_bytes);
        self.pending_bytes -= written;
        let before = self.pushes;
        while written > 0 {
            let Some(frame) = self.frames.front_mut() else { break };
            let step = written.min(frame.bytes as usize);
            written -= step;
            frame.bytes -= step as u32;
            frame.begun = true;
            match &frame.shared {
                None => self.copied.take(step, |_| {}),
                Some(_) => self.shared_pending_bytes -= step,
            }
            if frame.bytes == 0 {
                self.pushes -= u32::from(frame.is_push);
                self.shared -= u32::from(frame.shared.is_some());
                self.frames.pop_front();
            }
        }
        self.frames.trim();
        self.charge();
        u64::from(before - self.pushes)
    }

    /// The shared frames. For tests.
    pub(super) fn held_frames(&self) -> impl Iterator<Item = &Rc<HeldFrame>> {
        self.frames.iter().filter_map(|frame| frame.shared.as_ref())
    }

    /// Bytes charged for its own allocations. For tests.
    pub(super) fn charged(&self) -> usize {
        self.charged
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        self.budget.subtract(self.charged);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use std::sync::Arc;

    fn budget() -> Budget {
        Budget::new(Arc::default())
    }

    fn share(outbox: &mut Outbox, bytes: &'static [u8], expires: WallMs) {
        let held = HeldFrame::new(Bytes::from_static(bytes), &outbox.budget.clone());
        outbox.push_shared(held, bytes.len(), true, expires);
    }

    fn shown(outbox: &Outbox, max: usize) -> Vec<Vec<u8>> {
        let mut slices = Vec::new();
        outbox.slices(max, |slice| slices.push(slice.to_vec()));
        slices
    }

    #[test]
    fn frames_leave_in_order_whatever_the_socket_takes() {
        for step in 1..12 {
            let mut outbox = Outbox::new(&budget(), true);
            outbox.push(b"bc", true, WallMs::NEVER, true);
            outbox.push(b"de", false, WallMs::NEVER, false);
            share(&mut outbox, b"SHARED", WallMs::NEVER);
            outbox.push(b"fg", true, WallMs::NEVER, false);
            let (mut sent, mut pushes) = (Vec::new(), 0);
            while !outbox.is_empty() {
                let next: Vec<u8> = shown(&outbox, 4).concat();
                assert_eq!(next.len(), outbox.pending_bytes());
                let taken = step.min(next.len());
                sent.extend_from_slice(&next[..taken]);
                pushes += outbox.advance(taken);
            }
            assert_eq!((sent.as_slice(), pushes), (b"bcdeSHAREDfg".as_slice(), 3));
            assert_eq!((outbox.pending_bytes(), outbox.shared), (0, 0));
        }
    }

    #[test]
    fn what_is_shown_is_bounded() {
        let mut outbox = Outbox::new(&budget(), true);
        for _ in 0..5 {
            outbox.push(b"a", true, WallMs::NEVER, false);
            share(&mut outbox, b"B", WallMs::NEVER);
        }
        for max in 2..9 {
            let slices = shown(&outbox, max);
            assert!(!slices.is_empty() && slices.len() <= max, "{max}: {slices:?}");
            assert!(b"aBaBaBaBaB".starts_with(&slices.concat()[..]));
        }
    }

    #[test]
    fn the_frame_that_is_being_sent_does_not_count_against_the_limit() {
        let mut outbox = Outbox::new(&budget(), true);
        outbox.push(&[b'a'; 100], true, WallMs::NEVER, true);
        assert!(!outbox.is_over(10));
        outbox.push(b"0123456789", true, WallMs::NEVER, false);
        assert!(!outbox.is_over(10 + QUEUED_BYTES));
        outbox.push(b"b", true, WallMs::NEVER, false);
        assert!(outbox.is_over(10 + QUEUED_BYTES));
    }

    #[test]
    fn expired_frames_go_unless_begun() {
        let mut outbox = Outbox::new(&budget(), true);
        outbox.push(b"a1", true, WallMs::new(10), true);
        outbox.push(b"b", true, WallMs::new(10), false);
        outbox.push(b"c", true, WallMs::new(11), false);
        share(&mut outbox, b"D", WallMs::new(5));
        outbox.push(b"e", false, WallMs::NEVER, false);
        assert_eq!(outbox.drop_expired(WallMs::new(9)), 1);
        assert_eq!(outbox.drop_expired(WallMs::new(10)), 1);
        assert_eq!(shown(&outbox, 9).concat(), b"a1ce");
    }

    /// Small frames took three times what was counted.
    #[test]
    fn what_is_allocated_counts_not_what_is_in_it() {
        let budget = budget();
        let mut outbox = Outbox::new(&budget, true);
        for _ in 0..10_000 {
            outbox.push(&[b'x'; 20], true, WallMs::NEVER, false);
        }
        let least = 10_000 * (20 + QUEUED_BYTES);
        assert!((least..least * 3 / 2).contains(&budget.bytes()), "{}", budget.bytes());
        assert!(outbox.is_over(least - 100) && !outbox.is_over(least));
        outbox.advance(9_990 * 20);
        assert!(budget.bytes() < 20_000, "{}", budget.bytes());
        drop(outbox);
        assert_eq!(budget.bytes(), 0);
    }
}
