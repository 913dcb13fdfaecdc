//! Capacity that batches keep for reuse, and when they release it: a message to many connections
//! grows lists that no other message may need for hours.

use super::{Batch, Sealed};

/// Capacity that each list may keep even if unused.
const KEPT_BYTES: usize = 16 << 10;

/// The most that any batch has used of each list since the last [`Sealed::trim`].
#[derive(Debug, Default)]
pub(super) struct Peaks {
    bytes: usize,
    scratch: usize,
    frames: usize,
    segments: usize,
    recipients: usize,
}

impl Peaks {
    pub(super) fn note_part(&mut self, scratch: &[u8]) {
        self.scratch = self.scratch.max(scratch.len());
    }

    pub(super) fn note(&mut self, batch: &Batch) {
        self.bytes = self.bytes.max(batch.bytes.len());
        self.frames = self.frames.max(batch.frames.len());
        self.segments = self.segments.max(batch.segments.len());
        self.recipients = self.recipients.max(batch.dirty.len());
    }
}

impl Sealed {
    /// Releases capacity of both batches that none has used since the last call, where that is most
    /// of it; returns the number of bytes freed. If a message to all clients is sent between every
    /// two calls, it always finds its capacity allocated.
    pub(crate) fn trim(&mut self, open: &mut Batch) -> usize {
        let peaks = std::mem::take(&mut self.peaks);
        let mut freed = trim(&mut self.scratch, peaks.scratch);
        freed += trim(&mut self.regions, peaks.recipients);
        for batch in [&mut self.batch, open] {
            freed += trim(&mut batch.bytes, peaks.bytes);
            freed += trim(&mut batch.frames, peaks.frames);
            freed += trim(&mut batch.segments, peaks.segments);
            freed += trim(&mut batch.dirty, peaks.recipients);
        }
        freed
    }
}

/// Shrinks a list of which at most a quarter was used; returns the number of bytes freed.
fn trim<T>(list: &mut Vec<T>, needed: usize) -> usize {
    let needed = needed.max(KEPT_BYTES / size_of::<T>());
    let before = list.capacity();
    if before / 4 >= needed {
        list.shrink_to(needed);
    }
    (before - list.capacity()) * size_of::<T>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::connection::NONE;
    use crate::types::WallMs;

    /// Sends one push to this number of connections.
    fn push(open: &mut Batch, sealed: &mut Sealed, recipients: u32) {
        let frame = open.add_push(5, WallMs::NEVER, |out| out.extend_from_slice(b"hello"));
        (0..recipients).for_each(|slot| open.owe(slot, &mut NONE.clone(), frame));
        sealed.seal(open);
        sealed.lay_out(usize::MAX);
        sealed.finish();
    }

    #[test]
    fn room_for_very_many_is_given_back_when_it_was_not_needed_for_a_while() {
        let (mut open, mut sealed) = (Batch::default(), Sealed::default());
        for _ in 0..4 {
            push(&mut open, &mut sealed, 18_000);
            push(&mut open, &mut sealed, 18_000);
            assert_eq!(sealed.trim(&mut open), 0, "it was needed a moment ago");
        }
        push(&mut open, &mut sealed, 10);
        let freed = sealed.trim(&mut open);
        assert!(freed > 18_000 * (16 + 12 + 24), "{freed}");
        assert_eq!(sealed.trim(&mut open), 0);
        // The contents of an open batch stay.
        let frame = open.add_push(5, WallMs::NEVER, |out| out.extend_from_slice(b"hello"));
        (0..18_000).for_each(|slot| open.owe(slot, &mut NONE.clone(), frame));
        sealed.trim(&mut open);
        sealed.seal(&mut open);
        assert_eq!(sealed.len(), 18_000);
    }
}
