//! Sends what connections are owed: directly, through the ring, or from their outboxes.

use super::WsServer;
use super::slot::Slot;
use crate::io::ring::{OperationKind, OperationToken};
use crate::io::sys;
use crate::types::Now;
use smallvec::SmallVec;
use std::ops::Range;
use std::time::{Duration, Instant};

/// Sends per submission, of 4 to 9 us each, and the time after which other tasks run.
const SENDS_PER_SUBMISSION: usize = 64;
const SENDING: Duration = Duration::from_micros(400);
/// Up to this number, closes are carried out with the flush before them; more in the next turns.
const CLOSES_PER_FLUSH: usize = 8;
/// At or below this many sends, plain system calls are cheaper than the ring.
const DIRECT_SENDS: usize = 2;

impl WsServer {
    /// Begins to send everything owed now; call [`WsServer::send_chunk`] afterwards until it
    /// returns `false`.
    pub fn begin_flush(&mut self, now: Now) {
        self.now = now;
        self.worker.seal(&mut self.sealed);
    }

    /// Sends to a bounded number of connections. Returns whether there are more; if not, the
    /// requested closes have begun or are left to the next turn.
    pub fn send_chunk(&mut self, began: Instant) -> bool {
        loop {
            self.worker.lay_out(&mut self.sealed, SENDS_PER_SUBMISSION);
            let part = self.sealed.part();
            if part.len() <= DIRECT_SENDS {
                self.send_directly(part);
            } else {
                self.send_through_ring(part);
            }
            if self.sealed.is_last_part() {
                break;
            }
            if began.elapsed() >= SENDING {
                return true;
            }
        }
        for slot in self.worker.take_blocked() {
            self.write_outbox(slot);
        }
        for slot in self.worker.take_welcomed() {
            self.resume(slot);
        }
        self.closing.extend(self.worker.finish(&mut self.sealed));
        if self.closing.len() <= CLOSES_PER_FLUSH {
            self.carry_out_closes();
        }
        false
    }

    fn send_directly(&mut self, part: Range<usize>) {
        for index in part {
            let Some(outgoing) = self.sealed.outgoing(index) else { continue };
            let length = outgoing.bytes.len();
            let fd = self.slots[outgoing.slot as usize].fd.as_ref();
            let result = match fd.map(|fd| sys::send(fd, outgoing.bytes)) {
                Some(Ok(written)) => written as i32,
                Some(Err(error)) => -error.raw_os_error().unwrap_or(libc::EIO),
                None => -libc::EBADF,
            };
            self.handle_sent(index, length, result);
        }
    }

    fn send_through_ring(&mut self, part: Range<usize>) {
        if self.ring.failure().is_some() {
            return;
        }
        let mut under_way = 0;
        for index in part {
            let Some(outgoing) = self.sealed.outgoing(index) else { continue };
            let (bytes, length) = (outgoing.bytes.as_ptr(), outgoing.bytes.len());
            let Some(fd) = &self.slots[outgoing.slot as usize].fd else {
                self.handle_sent(index, length, -libc::EBADF);
                continue;
            };
            let token = OperationToken::new(OperationKind::Send, index as u32, 0);
            // SAFETY: the bytes belong to the sealed batch's part, which nothing changes before the
            // next one is laid out or `finish`. This function returns only when every send has
            // completed, or when the ring has failed and accepts nothing more. If it unwinds, here
            // or in `handle_sent`, what was submitted is over, because such a send completes within
            // its submission; what is still queued is never submitted: the panic ends this thread,
            // the only one that enters the ring, and dropping a ring submits nothing.
            unsafe { self.ring.send(fd, bytes, length, token) };
            under_way += 1;
        }
        self.ring.submit();
        let mut reaped = Vec::with_capacity(under_way);
        loop {
            self.ring.reap(usize::MAX, &mut reaped);
            for completion in reaped.drain(..) {
                if completion.token.kind != OperationKind::Send {
                    self.keep(completion);
                    continue;
                }
                under_way -= 1;
                let index = completion.token.index as usize;
                let length = self.sealed.outgoing(index).map_or(0, |outgoing| outgoing.bytes.len());
                self.handle_sent(index, length, completion.result);
            }
            if under_way == 0 || self.ring.failure().is_some() {
                return;
            }
            self.ring.submit_and_wait();
        }
    }

    fn handle_sent(&mut self, index: usize, length: usize, result: i32) {
        let refused = [libc::EAGAIN, libc::EINTR, libc::ENOBUFS, libc::ENOMEM];
        if result >= 0 {
            self.worker.counters().sent_bytes.add(result as u64);
            let whole = result as usize == length;
            self.worker.handle_sent(&self.sealed, index, result as usize, whole);
        } else if refused.contains(&-result) {
            self.worker.handle_sent(&self.sealed, index, 0, false);
        } else {
            self.worker.handle_send_error(&self.sealed, index);
        }
    }

    /// Writes as much of the connection's outbox as the socket takes.
    pub(super) fn write_outbox(&mut self, slot: u32) {
        let Slot { fd: Some(fd), state: generation, .. } = &self.slots[slot as usize] else {
            return;
        };
        let Some(outbox) = self.worker.outbox(slot, self.now.wall) else { return };
        let sent = {
            let mut slices: SmallVec<[&[u8]; sys::MAX_SLICES]> = SmallVec::new();
            outbox.slices(sys::MAX_SLICES, |slice| slices.push(slice));
            sys::send_slices(fd, &slices)
        };
        let written = match sent {
            Ok(written) => {
                self.worker.counters().sent_bytes.add(written as u64);
                written
            }
            Err(error) if sys::is_not_now(&error) => 0,
            Err(_) => return self.worker.handle_disconnect(slot),
        };
        if self.worker.handle_outbox_written(slot, written) {
            self.ring
                .poll_writable(fd, OperationToken::new(OperationKind::Writable, slot, *generation));
        }
        self.resume(slot);
    }
}
