//! What one connection is still owed: the frames that did not fit its socket.

mod chunks;

use super::budget::{Budget, HeldFrame};
use chunks::Chunks;
use std::collections::VecDeque;
use std::rc::Rc;

/// Frames in order, the first perhaps partly written. Frames below 16 KiB are kept as copies, one
/// behind the other; larger ones are shared with the batch that made them.
///
/// The owner writes what [`Outbox::slices`] shows and tells [`Outbox::advance`] how much went.
///
/// Invariant: what it has allocated counts in its worker's [`Budget`], and a frame that is shared
/// counts there once, however many outboxes hold it.
#[derive(Debug)]
pub struct Outbox {
    budget: Budget,
    /// What it has counted there: its own allocations.
    charged: usize,
    frames: VecDeque<Queued>,
    copied: Chunks,
    pending_bytes: usize,
    /// Of the shared frames.
    shared_pending_bytes: usize,
    /// How many frames are pushes, and how many are shared.
    pushes: u32,
    shared: u32,
    /// No frame runs out before.
    next_expiry_ms: u64,
    /// Its socket had its turn and left some. Until then its owner is not slow, however much there
    /// is.
    pub(super) was_tried: bool,
    /// The worker needed its memory: only a frame that is partly written is left, and nothing is
    /// added.
    is_shed: bool,
    /// Not even that: the connection cannot be ended with a Close frame.
    is_revoked: bool,
    /// Where its owner's order by size has it; the owner keeps it true.
    pub(super) place: Option<super::by_size::Place>,
}

#[derive(Debug)]
struct Queued {
    /// Not begun after this moment (milliseconds since 1970); 0: always.
    expires_ms: u64,
    shared: Option<Rc<HeldFrame>>,
    /// Bytes of the frame that are still to be written.
    bytes: u32,
    is_push: bool,
    /// Some of it is written already: it must be finished.
    begun: bool,
}

/// What a frame takes beside its bytes.
pub const QUEUED_BYTES: usize = size_of::<Queued>();

/// Makes room for one more, a quarter more than there is at a time: to double would leave half
/// unused.
fn reserve<T>(queue: &mut VecDeque<T>) {
    if queue.len() == queue.capacity() {
        queue.reserve_exact((queue.len() / 4).max(1));
    }
}

/// What that allocates for `count` more, in bytes, or a little more than it.
fn growth<T>(queue: &VecDeque<T>, count: usize) -> usize {
    let len = queue.len() + count;
    match len <= queue.capacity() {
        true => 0,
        false => (len + len / 4 + 1 - queue.capacity()) * size_of::<T>(),
    }
}

/// What an outbox is to take.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Load {
    pub frames: usize,
    /// Bytes that it copies.
    pub copied_bytes: usize,
    /// What shared frames count that nobody holds yet.
    pub held_bytes: usize,
}

impl Outbox {
    /// What the budget needs for an outbox to take `load`; `None`: it is still to be made.
    pub(super) fn growth(outbox: Option<&Self>, load: Load) -> usize {
        let own = match outbox {
            Some(outbox) => {
                growth(&outbox.frames, load.frames) + outbox.copied.growth(load.copied_bytes)
            }
            None => {
                size_of::<Self>()
                    + growth(&VecDeque::<Queued>::new(), load.frames)
                    + Chunks::default().growth(load.copied_bytes)
            }
        };
        own + load.held_bytes
    }

    pub(super) fn new(budget: &Budget, was_tried: bool) -> Self {
        let mut outbox = Self {
            budget: budget.clone(),
            charged: 0,
            frames: VecDeque::new(),
            copied: Chunks::default(),
            pending_bytes: 0,
            shared_pending_bytes: 0,
            pushes: 0,
            shared: 0,
            next_expiry_ms: u64::MAX,
            was_tried,
            is_shed: false,
            is_revoked: false,
            place: None,
        };
        outbox.charge();
        outbox
    }

    /// Whether more than `limit` bytes wait although the socket had its turn, with what each frame
    /// takes besides. The frame that is on its way does not count: one push may be longer than all
    /// that a socket takes at once, and a client that reads it is not slow.
    pub(super) fn is_over(&self, limit: usize) -> bool {
        let Some(first) = self.frames.front() else { return false };
        let waiting_bytes = self.pending_bytes - first.bytes as usize;
        self.was_tried && waiting_bytes + (self.frames.len() - 1) * QUEUED_BYTES > limit
    }

    /// Bytes still to be written.
    pub fn pending_bytes(&self) -> usize {
        self.pending_bytes
    }

    /// What its worker may have back if it goes, as far as nobody shares it.
    pub(super) fn size(&self) -> usize {
        self.charged + self.shared_pending_bytes
    }

    pub(super) fn is_shed(&self) -> bool {
        self.is_shed
    }

    /// Whether its memory may be taken for others: not before its socket had its turn.
    pub(super) fn may_be_shed(&self) -> bool {
        self.was_tried && !self.is_shed
    }

    pub(super) fn is_revoked(&self) -> bool {
        self.is_revoked
    }

    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// How many of the frames are pushes.
    pub(super) fn unwritten_pushes(&self) -> u64 {
        u64::from(self.pushes)
    }

    /// Appends a frame's bytes, copied. `begun`: bytes before these are written already.
    pub(super) fn push(&mut self, frame: &[u8], is_push: bool, expires_ms: u64, begun: bool) {
        self.copied.push(frame);
        self.queue(frame.len(), is_push, expires_ms, begun, None);
        self.charge();
    }

    /// Appends the last `bytes` of a frame that stays shared.
    pub(super) fn push_shared(
        &mut self,
        frame: Rc<HeldFrame>,
        bytes: usize,
        is_push: bool,
        expires_ms: u64,
    ) {
        let begun = bytes < frame.len();
        self.queue(bytes, is_push, expires_ms, begun, Some(frame));
        self.charge();
    }

    fn queue(
        &mut self,
        bytes: usize,
        is_push: bool,
        expires_ms: u64,
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
        if expires_ms != 0 && !begun {
            self.next_expiry_ms = self.next_expiry_ms.min(expires_ms);
        }
        reserve(&mut self.frames);
        self.frames.push_back(Queued { expires_ms, shared, bytes: bytes as u32, is_push, begun });
    }

    /// Counts what it has allocated now.
    fn charge(&mut self) {
        let allocated =
            size_of::<Self>() + self.frames.capacity() * QUEUED_BYTES + self.copied.allocated();
        if allocated > self.charged {
            self.budget.add(allocated - self.charged);
        } else {
            self.budget.subtract(self.charged - allocated);
        }
        self.charged = allocated;
    }

    /// Takes out the frames that were not begun before their time ran out; returns how many pushes
    /// that were.
    pub(super) fn drop_expired(&mut self, now_ms: u64) -> u64 {
        if now_ms < self.next_expiry_ms {
            return 0;
        }
        self.keep(|frame| frame.begun || frame.expires_ms == 0 || frame.expires_ms > now_ms)
    }

    /// Keeps only the rest of a frame that is partly written, and takes no more; returns how many
    /// pushes went.
    pub(super) fn shed(&mut self) -> u64 {
        self.is_shed = true;
        self.keep(|frame| frame.begun)
    }

    /// Drops the frames that are not to be kept; returns how many of them were pushes.
    fn keep(&mut self, is_kept: impl Fn(&Queued) -> bool) -> u64 {
        let before = self.pushes;
        let frames = std::mem::take(&mut self.frames);
        let mut old = std::mem::take(&mut self.copied);
        (self.pending_bytes, self.shared_pending_bytes) = (0, 0);
        (self.pushes, self.shared, self.next_expiry_ms) = (0, 0, u64::MAX);
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
                self.queue(bytes, frame.is_push, frame.expires_ms, frame.begun, frame.shared);
            }
        }
        self.charge();
        u64::from(before - self.pushes)
    }

    /// Gives all of its memory back.
    pub(super) fn revoke(&mut self) {
        self.is_revoked = true;
        self.frames = VecDeque::new();
        self.copied = Chunks::default();
        (self.pending_bytes, self.shared_pending_bytes, self.shared) = (0, 0, 0);
        self.charge();
    }

    /// Shows what is to be written next, in order, as at most `max` runs of bytes.
    pub fn slices<'a>(&'a self, max: usize, mut show: impl FnMut(&'a [u8])) {
        let mut left = max;
        let mut cursor = self.copied.cursor();
        if self.shared == 0 {
            return cursor.show(self.pending_bytes, &mut left, &mut show);
        }
        let mut run = 0;
        for frame in &self.frames {
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

    /// `written` bytes went out; returns how many pushes are whole now.
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
        if self.frames.capacity() > 64 && self.frames.len() < self.frames.capacity() / 4 {
            self.frames.shrink_to(self.frames.len() * 2);
        }
        self.charge();
        u64::from(before - self.pushes)
    }

    /// The frames that are shared. For tests.
    pub(super) fn held_frames(&self) -> impl Iterator<Item = &Rc<HeldFrame>> {
        self.frames.iter().filter_map(|frame| frame.shared.as_ref())
    }

    /// What it counts for itself. For tests.
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

    fn share(outbox: &mut Outbox, bytes: &'static [u8], expires_ms: u64) {
        let held = HeldFrame::new(Bytes::from_static(bytes), &outbox.budget.clone());
        outbox.push_shared(held, bytes.len(), true, expires_ms);
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
            outbox.push(b"bc", true, 0, true);
            outbox.push(b"de", false, 0, false);
            share(&mut outbox, b"SHARED", 0);
            outbox.push(b"fg", true, 0, false);
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
            outbox.push(b"a", true, 0, false);
            share(&mut outbox, b"B", 0);
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
        outbox.push(&[b'a'; 100], true, 0, true);
        assert!(!outbox.is_over(10));
        outbox.push(b"0123456789", true, 0, false);
        assert!(!outbox.is_over(10 + QUEUED_BYTES));
        outbox.push(b"b", true, 0, false);
        assert!(outbox.is_over(10 + QUEUED_BYTES));
    }

    #[test]
    fn expired_frames_go_unless_begun() {
        let mut outbox = Outbox::new(&budget(), true);
        outbox.push(b"a1", true, 10, true);
        outbox.push(b"b", true, 10, false);
        outbox.push(b"c", true, 11, false);
        share(&mut outbox, b"D", 5);
        outbox.push(b"e", false, 0, false);
        assert_eq!(outbox.drop_expired(9), 1);
        assert_eq!(outbox.drop_expired(10), 1);
        assert_eq!(shown(&outbox, 9).concat(), b"a1ce");
    }

    /// Small frames took three times what was counted.
    #[test]
    fn what_is_allocated_counts_not_what_is_in_it() {
        let budget = budget();
        let mut outbox = Outbox::new(&budget, true);
        for _ in 0..10_000 {
            outbox.push(&[b'x'; 20], true, 0, false);
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
