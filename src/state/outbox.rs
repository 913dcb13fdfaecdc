//! What one connection is still owed: the frames that did not fit its socket.

use bytes::Bytes;
use std::collections::VecDeque;

/// Frames in order, the first perhaps partly written. Frames below 16 KiB are kept as copies, one
/// behind the other in one buffer; larger ones are shared with the batch that made them.
///
/// The owner writes what [`Outbox::slices`] shows and tells [`Outbox::advance`] how much went.
#[derive(Debug, Default)]
pub struct Outbox {
    /// Where its owner's list of outboxes has it; the owner keeps it true.
    pub(super) position: usize,
    frames: VecDeque<Queued>,
    /// The copied frames' bytes; those before `copied_start` are written.
    copied: Vec<u8>,
    copied_start: usize,
    pending_bytes: usize,
    /// Its socket had its turn and left some. Until then its owner is not slow, however much there
    /// is.
    pub(super) was_tried: bool,
}

/// What is left of an outbox when its connection is closed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct BegunRest {
    /// The rest of a frame that is partly written, so that a Close frame may follow it.
    pub bytes: Vec<u8>,
    pub is_push: bool,
    /// Pushes of which nothing was written.
    pub dropped: u64,
}

#[derive(Debug)]
struct Queued {
    /// Bytes of the frame that are still to be written.
    bytes: usize,
    /// Not begun after this moment (milliseconds since 1970); 0: always.
    expires_ms: u64,
    is_push: bool,
    /// Some of it is written already: it must be finished.
    begun: bool,
    shared: Option<Bytes>,
}

impl Outbox {
    /// An empty outbox that stands at `position` in its owner's list.
    pub(super) fn at(position: usize, was_tried: bool) -> Self {
        Self { position, was_tried, ..Self::default() }
    }

    /// Whether more than `limit` bytes wait although the socket had its turn. The frame that is on
    /// its way does not count: one push may be longer than all that a socket takes at once, and a
    /// client that reads it is not slow.
    pub(super) fn is_over(&self, limit: usize) -> bool {
        let first = self.frames.front().map_or(0, |frame| frame.bytes);
        self.was_tried && self.pending_bytes - first > limit
    }

    /// Bytes still to be written.
    pub fn pending_bytes(&self) -> usize {
        self.pending_bytes
    }

    /// Bytes that are this connection's own copies.
    pub fn owned_bytes(&self) -> usize {
        self.copied.len() - self.copied_start
    }

    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// How many of the frames are pushes.
    pub fn pushes(&self) -> u64 {
        self.frames.iter().filter(|frame| frame.is_push).count() as u64
    }

    /// Appends a frame's bytes, copied. `begun`: bytes before these are written already.
    pub fn push(&mut self, frame: &[u8], is_push: bool, expires_ms: u64, begun: bool) {
        self.copied.extend_from_slice(frame);
        self.queue(frame.len(), is_push, expires_ms, begun, None);
    }

    /// Appends a frame that stays shared.
    pub fn push_shared(&mut self, frame: Bytes, is_push: bool, expires_ms: u64, begun: bool) {
        self.queue(frame.len(), is_push, expires_ms, begun, Some(frame));
    }

    fn queue(
        &mut self,
        bytes: usize,
        is_push: bool,
        expires_ms: u64,
        begun: bool,
        shared: Option<Bytes>,
    ) {
        debug_assert!(bytes > 0 && (!begun || self.frames.is_empty()));
        self.pending_bytes += bytes;
        self.frames.push_back(Queued { bytes, expires_ms, is_push, begun, shared });
    }

    /// Takes out the frames that were not begun before their time ran out; returns how many pushes
    /// that were.
    pub fn drop_expired(&mut self, now_ms: u64) -> u64 {
        let has_expired =
            |frame: &Queued| !frame.begun && frame.expires_ms != 0 && frame.expires_ms <= now_ms;
        if !self.frames.iter().any(has_expired) {
            return 0;
        }
        let old = std::mem::replace(self, Self::at(self.position, self.was_tried));
        let mut at = old.copied_start;
        let mut dropped = 0;
        for frame in old.frames {
            let bytes = frame.bytes;
            let expired = has_expired(&frame);
            match frame.shared {
                _ if expired => dropped += u64::from(frame.is_push),
                Some(ref shared) => {
                    self.push_shared(shared.clone(), frame.is_push, frame.expires_ms, frame.begun);
                }
                None => self.push(
                    &old.copied[at..at + bytes],
                    frame.is_push,
                    frame.expires_ms,
                    frame.begun,
                ),
            }
            if frame.shared.is_none() {
                at += bytes;
            }
        }
        dropped
    }

    /// Shows what is to be written next, in order, as at most `max` runs of bytes.
    pub fn slices<'a>(&'a self, max: usize, mut show: impl FnMut(&'a [u8])) {
        let mut run = self.copied_start..self.copied_start;
        let mut shown = 0;
        for frame in &self.frames {
            match &frame.shared {
                None => run.end += frame.bytes,
                Some(shared) => {
                    if !run.is_empty() {
                        show(&self.copied[run.clone()]);
                        run.start = run.end;
                        shown += 1;
                    }
                    if shown + 1 >= max {
                        return;
                    }
                    show(shared);
                    shown += 1;
                }
            }
            if shown + 1 >= max {
                break;
            }
        }
        if !run.is_empty() {
            show(&self.copied[run]);
        }
    }

    /// `written` bytes went out; returns how many pushes are whole now.
    pub fn advance(&mut self, mut written: usize) -> u64 {
        debug_assert!(written <= self.pending_bytes);
        self.pending_bytes -= written;
        let mut pushes = 0;
        while written > 0 {
            let Some(frame) = self.frames.front_mut() else { break };
            let step = written.min(frame.bytes);
            written -= step;
            frame.bytes -= step;
            frame.begun = true;
            match &mut frame.shared {
                None => self.copied_start += step,
                Some(shared) => bytes::Buf::advance(shared, step),
            }
            if frame.bytes == 0 {
                pushes += u64::from(frame.is_push);
                self.frames.pop_front();
            }
        }
        if self.copied_start > self.copied.len() / 2 {
            self.copied.drain(..self.copied_start);
            self.copied_start = 0;
        }
        pushes
    }

    /// Keeps only the rest of a frame that is partly written.
    pub fn into_begun_rest(self) -> BegunRest {
        let pushes = self.pushes();
        match self.frames.front() {
            Some(frame) if frame.begun => BegunRest {
                bytes: match &frame.shared {
                    Some(shared) => shared.to_vec(),
                    None => self.copied[self.copied_start..][..frame.bytes].to_vec(),
                },
                is_push: frame.is_push,
                dropped: pushes - u64::from(frame.is_push),
            },
            _ => BegunRest { dropped: pushes, ..BegunRest::default() },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(outbox: &Outbox, max: usize) -> Vec<Vec<u8>> {
        let mut slices = Vec::new();
        outbox.slices(max, |slice| slices.push(slice.to_vec()));
        slices
    }

    #[test]
    fn frames_leave_in_order_whatever_the_socket_takes() {
        for step in 1..12 {
            let mut outbox = Outbox::default();
            outbox.push(b"bc", true, 0, true);
            outbox.push(b"de", false, 0, false);
            outbox.push_shared(Bytes::from_static(b"SHARED"), true, 0, false);
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
            assert_eq!((outbox.pending_bytes(), outbox.owned_bytes()), (0, 0));
        }
    }

    #[test]
    fn what_is_shown_is_bounded() {
        let mut outbox = Outbox::default();
        for _ in 0..5 {
            outbox.push(b"a", true, 0, false);
            outbox.push_shared(Bytes::from_static(b"B"), true, 0, false);
        }
        for max in 2..9 {
            let slices = shown(&outbox, max);
            assert!(!slices.is_empty() && slices.len() <= max, "{max}: {slices:?}");
            assert!(b"aBaBaBaBaB".starts_with(&slices.concat()[..]));
        }
    }

    #[test]
    fn the_frame_that_is_being_sent_does_not_count_against_the_limit() {
        let mut outbox = Outbox::at(0, true);
        outbox.push(&[b'a'; 100], true, 0, true);
        assert!(!outbox.is_over(10));
        outbox.push(b"0123456789", true, 0, false);
        assert!(!outbox.is_over(10));
        outbox.push(b"b", true, 0, false);
        assert!(outbox.is_over(10));
    }

    #[test]
    fn expired_frames_go_unless_begun() {
        let mut outbox = Outbox::default();
        outbox.push(b"a1", true, 10, true);
        outbox.push(b"b", true, 10, false);
        outbox.push(b"c", true, 11, false);
        outbox.push_shared(Bytes::from_static(b"D"), true, 5, false);
        outbox.push(b"e", false, 0, false);
        assert_eq!(outbox.drop_expired(9), 1);
        assert_eq!(outbox.drop_expired(10), 1);
        assert_eq!(shown(&outbox, 9).concat(), b"a1ce");
    }

    #[test]
    fn closing_finishes_the_begun_frame_and_drops_the_rest() {
        let mut outbox = Outbox::default();
        outbox.push(b"rest", true, 0, true);
        outbox.push(b"next", true, 0, false);
        let rest = BegunRest { bytes: b"rest".to_vec(), is_push: true, dropped: 1 };
        assert_eq!(outbox.into_begun_rest(), rest);
        let mut outbox = Outbox::default();
        outbox.push(b"next", true, 0, false);
        assert_eq!(outbox.into_begun_rest(), BegunRest { dropped: 1, ..BegunRest::default() });
    }
}
