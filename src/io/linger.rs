//! Closes that reach the peer: the rest is written, the write side is shut down, and the peer's
//! bytes are read and dropped until its FIN or the deadline. A plain close with unread input sends
//! RST, which destroys the last frame on its way: 0 of 40 Close frames arrived that way, 40 of 40
//! this way.

use super::fifo::Fifo;
use super::ring::{OperationKind, OperationToken, Ring};
use super::sys;
use crate::state::Rest;
use crate::state::chunked_slab::ChunkedSlab;
use crate::types::MonotonicMs;
use std::io;
use std::net::Shutdown;
use std::os::fd::OwnedFd;

/// Maximum number of reads per turn from a peer that keeps sending.
const READS_PER_TURN: usize = 8;

/// Sockets that one check of the deadlines examines, and the maximum that it ends.
const LOOKS_PER_SLICE: usize = 8_192;
const ENDS_PER_SLICE: usize = 64;

#[derive(Debug)]
struct Lingering {
    fd: OwnedFd,
    generation: u32,
    deadline: MonotonicMs,
    /// What is still to be written before the write side is shut down. The rest of a frame comes
    /// first; it stays shared and counts in its worker's budget.
    rest: Option<Rest>,
    last_bytes: Vec<u8>,
    is_refusal: bool,
}

impl Lingering {
    fn has_pending(&self) -> bool {
        self.rest.is_some() || !self.last_bytes.is_empty()
    }

    fn is_revoked(&self) -> bool {
        self.rest.as_ref().is_some_and(Rest::is_revoked)
    }

    /// Writes as much as the socket takes.
    fn write(&mut self) -> io::Result<()> {
        if let Some(rest) = &self.rest {
            let written =
                rest.with_slices(sys::MAX_SLICES, |slices| sys::send_slices(&self.fd, slices))?;
            rest.advance(written);
            if rest.pending_bytes() > 0 {
                return Ok(());
            }
            self.rest = None;
        }
        let written = sys::send(&self.fd, &self.last_bytes)?;
        self.last_bytes.drain(..written);
        Ok(())
    }
}

/// What a socket is sent after the rest of a frame.
#[derive(Debug)]
pub struct Last {
    pub bytes: Vec<u8>,
    /// It refuses a handshake: nothing waits for this socket.
    pub is_refusal: bool,
}

/// All sockets of a worker that are closing.
#[derive(Debug, Default)]
pub struct LingeringSockets {
    sockets: ChunkedSlab<Lingering>,
    by_age: Fifo,
    generation: u32,
    refusals: usize,
    /// The next index to check for a deadline that has passed.
    next: usize,
}

impl LingeringSockets {
    pub fn len(&self) -> usize {
        self.sockets.len()
    }

    /// Returns the number of those that were open connections.
    pub fn connections(&self) -> usize {
        self.sockets.len() - self.refusals
    }

    /// Takes over `fd`: writes `rest` and the last bytes, then closes.
    pub fn add(
        &mut self,
        ring: &mut Ring,
        fd: OwnedFd,
        rest: Option<Rest>,
        last: Last,
        deadline: MonotonicMs,
    ) {
        self.generation = self.generation.wrapping_add(1);
        let generation = self.generation;
        let Last { bytes: last_bytes, is_refusal } = last;
        self.refusals += usize::from(is_refusal);
        let lingering = Lingering { fd, generation, deadline, rest, last_bytes, is_refusal };
        let index = self.sockets.insert(lingering);
        let (sockets, live) = (&self.sockets, self.sockets.len());
        let is_current = |index, generation| is_current(sockets, index, generation);
        self.by_age.push((index, u64::from(self.generation)), live, is_current);
        if self.write(index) {
            self.arm(ring, index);
        } else {
            self.end(index);
        }
    }

    /// Handles readiness of the socket that `token` identifies.
    pub fn handle_ready(&mut self, ring: &mut Ring, token: OperationToken, buffer: &mut [u8]) {
        let index = token.index as usize;
        let is_it = |socket: &Lingering| {
            OperationToken::new(token.kind, token.index, socket.generation) == token
        };
        let Some(socket) = self.sockets.get(index).filter(|socket| is_it(socket)) else { return };
        let goes_on =
            if socket.has_pending() { self.write(index) } else { discard(&socket.fd, buffer) };
        if goes_on {
            self.arm(ring, index);
        } else {
            self.end(index);
        }
    }

    /// Ends some of the sockets whose deadline has passed, or whose rest was revoked; a peer that
    /// never read gets RST. Returns whether there may be more.
    pub fn handle_tick(&mut self, awake: MonotonicMs) -> bool {
        let places = self.sockets.end();
        let mut ends = ENDS_PER_SLICE;
        for _ in 0..places.min(LOOKS_PER_SLICE) {
            self.next = if self.next < places { self.next } else { 0 };
            let index = self.next;
            self.next += 1;
            let is_over = |socket: &Lingering| socket.deadline <= awake || socket.is_revoked();
            if self.sockets.get(index).is_some_and(is_over)
                && let Some(socket) = self.remove(index)
            {
                sys::set_reset_on_close(&socket.fd);
                close(socket.fd);
                ends -= 1;
            }
            if ends == 0 {
                return true;
            }
        }
        false
    }

    fn remove(&mut self, index: usize) -> Option<Lingering> {
        let socket = self.sockets.try_remove(index)?;
        self.refusals -= usize::from(socket.is_refusal);
        Some(socket)
    }

    /// Ends the oldest early, to free its descriptor. Returns `false` if there is none.
    pub fn end_oldest(&mut self) -> bool {
        let sockets = &self.sockets;
        let oldest = self.by_age.oldest(|index, generation| is_current(sockets, index, generation));
        let Some(socket) = oldest.and_then(|index| self.remove(index)) else { return false };
        if socket.has_pending() {
            sys::set_reset_on_close(&socket.fd);
        }
        close(socket.fd);
        true
    }

    /// Writes as much as the socket takes, and shuts down the write side once all is written.
    /// Returns `false` if the socket is broken, or if the rest of a frame was revoked and nothing
    /// may follow the part already sent.
    fn write(&mut self, index: usize) -> bool {
        let socket = &mut self.sockets[index];
        if socket.is_revoked() {
            sys::set_reset_on_close(&socket.fd);
            return false;
        }
        if socket.has_pending() {
            match socket.write() {
                Ok(()) => {}
                Err(error) if sys::is_not_now(&error) => {}
                Err(_) => return false,
            }
        }
        if !socket.has_pending() {
            sys::shutdown(&socket.fd, Shutdown::Write);
        }
        true
    }

    fn arm(&self, ring: &mut Ring, index: usize) {
        let socket = &self.sockets[index];
        let token = OperationToken::new(OperationKind::Lingering, index as u32, socket.generation);
        if socket.has_pending() {
            ring.poll_writable(&socket.fd, token);
        } else {
            ring.poll_readable(&socket.fd, token);
        }
    }

    fn end(&mut self, index: usize) {
        // Its poll has just fired, and so has every earlier poll: dropping the socket is enough.
        self.remove(index);
    }
}

fn is_current(sockets: &ChunkedSlab<Lingering>, index: usize, generation: u64) -> bool {
    sockets.get(index).is_some_and(|socket| u64::from(socket.generation) == generation)
}

/// Reads and drops input. Returns `false` if the peer has ended its side.
fn discard(socket: &OwnedFd, buffer: &mut [u8]) -> bool {
    for _ in 0..READS_PER_TURN {
        match sys::recv(socket, buffer) {
            Ok(0) => return false,
            Ok(_) => {}
            Err(error) => return sys::is_not_now(&error),
        }
    }
    true
}

/// Closes a socket on which a poll may still be pending. The poll keeps the socket open until it
/// fires, and the shutdown makes it fire.
pub fn close(socket: OwnedFd) {
    sys::shutdown(&socket, Shutdown::Both);
}
