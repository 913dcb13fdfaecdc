//! The batch: finished frames of one loop turn and their recipients, so that each connection is
//! written to once.

mod room;

use super::Outbox;
use super::budget::{Budget, HeldFrame};
use super::connection::{CloseCause, NONE};
use super::outbox::Load;
use crate::types::WallMs;
use crate::wire::websocket;
use bytes::Bytes;
use fastwebsockets::OpCode;
use room::Peaks;
use std::cell::RefCell;
use std::ops::Range;
use std::rc::{Rc, Weak};

/// Frames of at least this size are shared instead of copied.
pub const SHARED_FRAME_BYTES: usize = 16 << 10;
/// A batch that holds more bytes than this is flushed before more input is accepted.
pub const FULL_BATCH_BYTES: usize = 256 << 10;
/// A batch with more pending segments than this is flushed too: about 0.1 s of sends.
const FULL_BATCH_SEGMENTS: usize = 64 << 10;
/// A batch with more bytes than this to copy together for its recipients is flushed too.
const FULL_BATCH_APART_BYTES: usize = 32 << 20;

/// Frames stored back to back, and for each recipient connection the list of its segments. A run of
/// consecutive frames is one segment, so that it is sent as one slice.
///
/// Invariant: a segment is either a run of small frames, consecutive in `bytes`, or one shared
/// frame.
#[derive(Debug, Default)]
pub struct Batch {
    bytes: Vec<u8>,
    frames: Vec<Frame>,
    shared: Vec<Rc<SharedFrame>>,
    shared_bytes: usize,
    /// Bytes of non-contiguous frames, summed over all recipients: these must be copied.
    apart_bytes: usize,
    dirty: Vec<Dirty>,
    segments: Vec<Segment>,
    closes: Vec<CloseRequest>,
    /// The batch holds a reply or a close: a peer waits for it.
    is_urgent: bool,
    /// 0 or 1, alternating from batch to batch: the lowest bit of the entry mark that connections
    /// keep. It distinguishes entries of the open batch from those of a sealed one being laid out.
    parity: u32,
}

/// A frame that its waiting recipients share. It counts in the budget from the first outbox that
/// holds it to the last. The batch does not count as a holder, so that memory an outbox releases is
/// released at once.
#[derive(Debug)]
pub(super) struct SharedFrame {
    bytes: Bytes,
    held: RefCell<Weak<HeldFrame>>,
}

impl SharedFrame {
    fn is_held(&self) -> bool {
        self.held.borrow().strong_count() > 0
    }

    fn hold(&self, budget: &Budget) -> Rc<HeldFrame> {
        let mut held = self.held.borrow_mut();
        held.upgrade().unwrap_or_else(|| {
            let frame = HeldFrame::new(self.bytes.clone(), budget);
            *held = Rc::downgrade(&frame);
            frame
        })
    }
}

#[derive(Debug, Clone, Copy)]
struct Frame {
    start: u32,
    bytes: u32,
    /// Index in `shared`, or `NONE`.
    shared: u32,
    is_push: bool,
    expires: WallMs,
}

#[derive(Debug, Clone, Copy)]
struct Segment {
    first: u32,
    end: u32,
    next: u32,
}

#[derive(Debug, Clone, Copy)]
struct Dirty {
    slot: u32,
    head: u32,
    tail: u32,
    pushes: u32,
}

/// A connection to close once everything before it is written.
#[derive(Debug, Clone)]
pub struct CloseRequest {
    pub slot: u32,
    pub cause: CloseCause,
}

/// Location of one connection's bytes in a sealed batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Region {
    Bytes {
        start: usize,
        end: usize,
    },
    Scratch {
        start: usize,
        end: usize,
    },
    Shared {
        index: usize,
    },
    /// Not sent from the batch: the frames were moved to the outbox.
    Outbox,
}

impl Batch {
    /// Returns false also if frames went only to outboxes: only a flush releases their space.
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty() && self.closes.is_empty()
    }

    pub fn is_full(&self) -> bool {
        self.bytes.len() + self.shared_bytes > FULL_BATCH_BYTES
            || self.segments.len() > FULL_BATCH_SEGMENTS
            || self.apart_bytes > FULL_BATCH_APART_BYTES
    }

    /// Whether the batch may stay open for more messages: nothing in it is a reply.
    pub fn may_wait(&self) -> bool {
        !self.is_urgent && !self.is_full()
    }

    /// Adds a text frame, filled by `write`, that its recipient waits for: a reply or a request.
    pub fn add_text(&mut self, write: impl FnOnce(&mut Vec<u8>)) -> u32 {
        self.is_urgent = true;
        self.add_event(write)
    }

    /// Adds an unsolicited text frame, filled by `write`.
    pub fn add_event(&mut self, write: impl FnOnce(&mut Vec<u8>)) -> u32 {
        let start = self.bytes.len();
        websocket::write_text(&mut self.bytes, write);
        self.seal_frame(start, false, WallMs::NEVER)
    }

    /// Adds a frame of any kind. All except pings are replies.
    pub fn add_frame(&mut self, opcode: OpCode, payload: &[u8]) -> u32 {
        self.is_urgent |= opcode != OpCode::Ping;
        let start = self.bytes.len();
        websocket::write_frame(&mut self.bytes, opcode, payload);
        self.seal_frame(start, false, WallMs::NEVER)
    }

    /// Adds bytes that are not a frame: the handshake response.
    pub fn add_raw(&mut self, bytes: &[u8]) -> u32 {
        self.is_urgent = true;
        let start = self.bytes.len();
        self.bytes.extend_from_slice(bytes);
        self.seal_frame(start, false, WallMs::NEVER)
    }

    /// Adds a push frame; `write` fills its payload of `payload_bytes`.
    pub fn add_push(
        &mut self,
        payload_bytes: usize,
        expires: WallMs,
        write: impl FnOnce(&mut Vec<u8>),
    ) -> u32 {
        if payload_bytes >= SHARED_FRAME_BYTES {
            // Exact capacity, so that sharing it needs no second allocation.
            let mut frame =
                Vec::with_capacity(websocket::head_bytes(payload_bytes) + payload_bytes);
            websocket::write_head(&mut frame, OpCode::Text, payload_bytes);
            write(&mut frame);
            let frame = SharedFrame { bytes: Bytes::from(frame), held: RefCell::default() };
            return self.add_shared(Rc::new(frame), expires);
        }
        let start = self.bytes.len();
        websocket::write_head(&mut self.bytes, OpCode::Text, payload_bytes);
        write(&mut self.bytes);
        self.seal_frame(start, true, expires)
    }

    /// Adds a push frame that another batch may hold as well.
    pub(super) fn add_shared(&mut self, frame: Rc<SharedFrame>, expires: WallMs) -> u32 {
        let (shared, bytes) = (self.shared.len() as u32, frame.bytes.len());
        self.shared_bytes += bytes;
        self.shared.push(frame);
        let bytes = bytes as u32;
        self.frames.push(Frame { start: 0, bytes, shared, is_push: true, expires });
        self.frames.len() as u32 - 1
    }

    /// Returns `frame` if it is a shared one.
    pub(super) fn shared_frame(&self, frame: u32) -> Option<Rc<SharedFrame>> {
        self.shared.get(self.frames[frame as usize].shared as usize).map(Rc::clone)
    }

    fn seal_frame(&mut self, start: usize, is_push: bool, expires: WallMs) -> u32 {
        let bytes = (self.bytes.len() - start) as u32;
        self.frames.push(Frame { start: start as u32, bytes, shared: NONE, is_push, expires });
        self.frames.len() as u32 - 1
    }

    /// Queues `frame` for the connection in `slot`; `dirty` is that connection's entry in this
    /// batch or in the sealed one.
    #[inline]
    pub fn owe(&mut self, slot: u32, dirty: &mut u32, frame: u32) {
        let Frame { is_push, bytes, .. } = self.frames[frame as usize];
        let is_push = u32::from(is_push);
        if *dirty == NONE || *dirty & 1 != self.parity {
            *dirty = self.mark_of(self.dirty.len());
            let segment = self.add_segment(frame);
            self.dirty.push(Dirty { slot, head: segment, tail: segment, pushes: is_push });
            return;
        }
        let index = (*dirty >> 1) as usize;
        let entry = self.dirty[index];
        self.dirty[index].pushes += is_push;
        let is_apart = entry.head != entry.tail;
        let tail = &mut self.segments[entry.tail as usize];
        let small = |index: u32| self.frames[index as usize].shared == NONE;
        if tail.end == frame && small(frame) && small(tail.end - 1) {
            tail.end += 1;
            self.apart_bytes += if is_apart { bytes as usize } else { 0 };
            return;
        }
        let (first, last) = (self.frames[tail.first as usize], self.frames[tail.end as usize - 1]);
        let before_last = if first.shared == NONE { last.start - first.start } else { 0 };
        let run_bytes = before_last + last.bytes;
        self.apart_bytes += (bytes + if is_apart { 0 } else { run_bytes }) as usize;
        let segment = self.add_segment(frame);
        self.segments[entry.tail as usize].next = segment;
        self.dirty[index].tail = segment;
    }

    /// The mark by which a connection refers to entry `index` of this batch.
    fn mark_of(&self, index: usize) -> u32 {
        (index as u32) << 1 | self.parity
    }

    fn add_segment(&mut self, frame: u32) -> u32 {
        self.segments.push(Segment { first: frame, end: frame + 1, next: NONE });
        self.segments.len() as u32 - 1
    }

    pub fn close(&mut self, request: CloseRequest) {
        self.is_urgent = true;
        self.closes.push(request);
    }

    /// Appends one frame to a non-empty outbox.
    pub(super) fn put_frame(&self, frame: u32, outbox: &mut Outbox, budget: &Budget) {
        self.put_in_outbox(frame, 0, outbox, budget);
    }

    pub(super) fn is_push(&self, frame: u32) -> bool {
        self.frames[frame as usize].is_push
    }

    /// The load of a frame on an outbox that receives it: a frame that others already hold adds
    /// nothing.
    pub(super) fn load_of(&self, frame: u32) -> Load {
        let frame = self.frames[frame as usize];
        let (copied_bytes, held_bytes) = match self.shared.get(frame.shared as usize) {
            None => (frame.bytes as usize, 0),
            Some(shared) if shared.is_held() => (0, 0),
            Some(_) => (0, HeldFrame::cost(frame.bytes as usize)),
        };
        Load { frames: 1, copied_bytes, held_bytes }
    }

    fn put_in_outbox(&self, frame: u32, skip: usize, outbox: &mut Outbox, budget: &Budget) {
        let frame = self.frames[frame as usize];
        match self.shared.get(frame.shared as usize) {
            None => {
                let bytes = &self.bytes[frame.start as usize..][..frame.bytes as usize];
                outbox.push(&bytes[skip..], frame.is_push, frame.expires, skip > 0);
            }
            Some(shared) => {
                let bytes = frame.bytes as usize - skip;
                outbox.push_shared(shared.hold(budget), bytes, frame.is_push, frame.expires);
            }
        }
    }

    fn segments_of(&self, dirty: usize) -> impl Iterator<Item = Segment> {
        let mut next = self.dirty[dirty].head;
        std::iter::from_fn(move || {
            let segment = *self.segments.get(next as usize)?;
            next = segment.next;
            Some(segment)
        })
    }
}

/// A batch that accepts no more frames and is sent part by part. Each part is sent before the next
/// one is laid out.
#[derive(Debug, Default)]
pub struct Sealed {
    batch: Batch,
    /// Buffer in which non-contiguous segments of the part are gathered.
    scratch: Vec<u8>,
    /// Index of the part's first entry; the part has one entry per region.
    first: usize,
    regions: Vec<Region>,
    peaks: Peaks,
}

/// The bytes to send to one connection.
#[derive(Debug, Clone, Copy)]
pub struct Outgoing<'a> {
    pub slot: u32,
    pub bytes: &'a [u8],
}

impl Sealed {
    /// Number of entries over all parts.
    pub fn len(&self) -> usize {
        self.batch.dirty.len()
    }

    pub fn is_empty(&self) -> bool {
        self.batch.dirty.is_empty()
    }

    /// Entries of the part that is laid out.
    pub fn part(&self) -> Range<usize> {
        self.first..self.first + self.regions.len()
    }

    /// Whether this is the last part.
    pub fn is_last_part(&self) -> bool {
        self.part().end == self.len()
    }

    /// Returns what to send for entry `index` of this part; `None` if it is in the outbox.
    #[inline]
    pub fn outgoing(&self, index: usize) -> Option<Outgoing<'_>> {
        let bytes = match self.regions[index - self.first] {
            Region::Bytes { start, end } => &self.batch.bytes[start..end],
            Region::Scratch { start, end } => &self.scratch[start..end],
            Region::Shared { index } => &self.batch.shared[index].bytes[..],
            Region::Outbox => return None,
        };
        Some(Outgoing { slot: self.batch.dirty[index].slot, bytes })
    }

    pub(super) fn slot(&self, index: usize) -> u32 {
        self.batch.dirty[index].slot
    }

    pub(super) fn pushes(&self, index: usize) -> u64 {
        u64::from(self.batch.dirty[index].pushes)
    }

    /// Takes over the contents of `open` and leaves it empty, with its capacity.
    pub(super) fn seal(&mut self, open: &mut Batch) {
        debug_assert!(self.batch.is_empty() && self.regions.is_empty());
        std::mem::swap(&mut self.batch, open);
        open.parity = self.batch.parity ^ 1;
    }

    /// Lays out the next part of at most `max` entries, gathering non-contiguous segments.
    pub(super) fn lay_out(&mut self, max: usize) {
        self.first = self.part().end;
        let end = self.len().min(self.first.saturating_add(max));
        self.scratch.clear();
        self.regions.clear();
        for index in self.first..end {
            let region = self.gather(index);
            self.regions.push(region);
        }
        self.peaks.note_part(&self.scratch);
    }

    /// The mark by which the connection of entry `index` refers to it, unless it has an entry in
    /// the open batch.
    pub(super) fn mark_of(&self, index: usize) -> u32 {
        self.batch.mark_of(index)
    }

    fn gather(&mut self, index: usize) -> Region {
        let dirty = self.batch.dirty[index];
        let head = self.batch.segments[dirty.head as usize];
        let first = self.batch.frames[head.first as usize];
        if head.next == NONE {
            return if first.shared == NONE {
                let last = self.batch.frames[head.end as usize - 1];
                Region::Bytes {
                    start: first.start as usize,
                    end: (last.start + last.bytes) as usize,
                }
            } else {
                Region::Shared { index: first.shared as usize }
            };
        }
        let start = self.scratch.len();
        let mut next = dirty.head;
        while let Some(&segment) = self.batch.segments.get(next as usize) {
            let first = self.batch.frames[segment.first as usize];
            if first.shared != NONE {
                self.scratch.truncate(start);
                return Region::Outbox;
            }
            let last = self.batch.frames[segment.end as usize - 1];
            let run = first.start as usize..(last.start + last.bytes) as usize;
            self.scratch.extend_from_slice(&self.batch.bytes[run]);
            next = segment.next;
        }
        Region::Scratch { start, end: self.scratch.len() }
    }

    pub(super) fn redirect_to_outbox(&mut self, index: usize) {
        self.regions[index - self.first] = Region::Outbox;
    }

    pub(super) fn is_for_outbox(&self, index: usize) -> bool {
        self.regions[index - self.first] == Region::Outbox
    }

    /// The load of entry `index` on an outbox that receives it, or less if part of it is already
    /// written.
    pub(super) fn load_of(&self, index: usize) -> Load {
        let mut load = Load::default();
        for segment in self.batch.segments_of(index) {
            let first = self.batch.frames[segment.first as usize];
            let last = self.batch.frames[segment.end as usize - 1];
            load.frames += (segment.end - segment.first) as usize;
            match first.shared {
                NONE => load.copied_bytes += (last.start + last.bytes - first.start) as usize,
                _ => load.held_bytes += self.batch.load_of(segment.first).held_bytes,
            }
        }
        load
    }

    /// Moves what remains of entry `index` after `written` bytes to `outbox`; returns the number of
    /// pushes that are completely written.
    pub(super) fn put_rest(
        &self,
        index: usize,
        written: usize,
        outbox: &mut Outbox,
        budget: &Budget,
    ) -> u64 {
        let mut skip = written;
        let mut whole_pushes = 0;
        for segment in self.batch.segments_of(index) {
            for number in segment.first..segment.end {
                let frame = self.batch.frames[number as usize];
                if skip >= frame.bytes as usize {
                    skip -= frame.bytes as usize;
                    whole_pushes += u64::from(frame.is_push);
                } else {
                    self.batch.put_in_outbox(number, skip, outbox, budget);
                    skip = 0;
                }
            }
        }
        whole_pushes
    }

    /// Ends the batch: returns the closes that follow it and keeps the buffers for the next one.
    pub(super) fn finish(&mut self) -> Vec<CloseRequest> {
        debug_assert!(self.is_last_part());
        self.first = 0;
        let batch = &mut self.batch;
        self.peaks.note(batch);
        batch.dirty.clear();
        batch.segments.clear();
        batch.frames.clear();
        batch.shared.clear();
        (batch.shared_bytes, batch.apart_bytes) = (0, 0);
        batch.is_urgent = false;
        batch.bytes.clear();
        batch.bytes.shrink_to(2 * FULL_BATCH_BYTES);
        self.scratch.clear();
        self.scratch.shrink_to(2 * FULL_BATCH_BYTES);
        self.regions.clear();
        std::mem::take(&mut batch.closes)
    }
}
