//! The nested io_uring: readiness of open connections, and sends that never wait.
//!
//! Its contract towards the rest is readiness plus non-blocking sends, so that an epoll back end
//! could stand in its place.

use super::sys;
use io_uring::{IoUring, opcode, squeue, types};
use std::io;
use std::os::fd::{OwnedFd, RawFd};

/// What an operation was for; comes back with its completion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    Listener = 1,
    Handshake,
    Readable,
    Writable,
    Lingering,
    Send,
}

/// Names an operation: what for, which entry of that table, and the low 24 bits of the generation
/// that the entry had, so that a late completion never touches a newer owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Token {
    pub kind: Kind,
    pub index: u32,
    pub generation: u32,
}

/// The bits of a generation that a token carries.
pub const GENERATION_MASK: u32 = (1 << 24) - 1;

impl Token {
    pub fn new(kind: Kind, index: u32, generation: u32) -> Self {
        Self { kind, index, generation: generation & GENERATION_MASK }
    }

    fn pack(self) -> u64 {
        u64::from(self.kind as u8) << 56 | u64::from(self.generation) << 32 | u64::from(self.index)
    }

    fn unpack(data: u64) -> Option<Self> {
        let kind = match (data >> 56) as u8 {
            1 => Kind::Listener,
            2 => Kind::Handshake,
            3 => Kind::Readable,
            4 => Kind::Writable,
            5 => Kind::Lingering,
            6 => Kind::Send,
            _ => return None,
        };
        Some(Self { kind, index: data as u32, generation: (data >> 32) as u32 & GENERATION_MASK })
    }
}

/// A finished operation: a negative errno, or poll's events, or the bytes sent.
#[derive(Debug, Clone, Copy)]
pub struct Completion {
    pub token: Token,
    pub result: i32,
}

/// One per worker, used by its thread alone.
pub struct Ring {
    ring: IoUring,
    eventfd: OwnedFd,
}

impl Ring {
    /// Sends that one submission carries at most.
    pub const ENTRIES: u32 = 1024;

    pub fn new() -> io::Result<Self> {
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_submit_all()
            .setup_taskrun_flag()
            .setup_cqsize(4 * Self::ENTRIES)
            .build(Self::ENTRIES)?;
        let eventfd = sys::eventfd()?;
        ring.submitter().register_eventfd(sys::number(&eventfd))?;
        Ok(Self { ring, eventfd })
    }

    /// Becomes readable when there is something to reap (a ring of this kind wakes no poller
    /// itself).
    pub fn eventfd(&self) -> &OwnedFd {
        &self.eventfd
    }

    /// Asks once for readiness; errors and hang-ups count as ready. The descriptor must stay open
    /// until then (`shutdown` it to be told early).
    pub fn poll_readable(&mut self, fd: RawFd, token: Token) {
        self.poll(fd, libc::POLLIN, token);
    }

    pub fn poll_writable(&mut self, fd: RawFd, token: Token) {
        self.poll(fd, libc::POLLOUT, token);
    }

    fn poll(&mut self, fd: RawFd, events: libc::c_short, token: Token) {
        let entry = opcode::PollAdd::new(types::Fd(fd), events as u32).build();
        self.push(&entry.user_data(token.pack()));
    }

    /// Queues a send that does not wait. The bytes must live until [`Ring::submit`] returns and
    /// every send of this round is reaped: all of them have completed by then, whole, short or
    /// EAGAIN.
    ///
    /// # Safety
    /// `bytes` must stay valid and unchanged until its completion was reaped.
    pub unsafe fn send(&mut self, fd: RawFd, bytes: *const u8, length: usize, token: Token) {
        let entry = opcode::Send::new(types::Fd(fd), bytes, length.min(1 << 30) as u32)
            .flags(libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL)
            .build();
        self.push(&entry.user_data(token.pack()));
    }

    fn push(&mut self, entry: &squeue::Entry) {
        loop {
            // SAFETY: a poll refers to no memory; for a send the caller of `send` promises it.
            if unsafe { self.ring.submission().push(entry) }.is_ok() {
                return;
            }
            self.submit();
        }
    }

    /// Hands the queued operations to the kernel.
    pub fn submit(&mut self) {
        self.enter(0);
    }

    /// Hands over what is queued and waits for at least one completion.
    pub fn submit_and_wait(&mut self) {
        self.enter(1);
    }

    fn enter(&mut self, wanted: usize) {
        // EINTR and EBUSY leave the queue as it is: the caller comes again.
        let _ = self.ring.submit_and_wait(wanted);
    }

    /// Runs the kernel's deferred work, so that its completions are there to be reaped.
    pub fn run_deferred(&mut self) {
        let getevents = 1; // IORING_ENTER_GETEVENTS
        let queued = self.ring.submission().len() as u32;
        // SAFETY: no argument beyond numbers is passed.
        let _ =
            unsafe { self.ring.submitter().enter::<libc::sigset_t>(queued, 0, getevents, None) };
    }

    /// Whether completions, or work that leads to them, are waiting.
    pub fn has_work(&mut self) -> bool {
        self.ring.submission().taskrun() || !self.ring.completion().is_empty()
    }

    /// Takes at most `max` completions.
    pub fn reap(&mut self, max: usize, out: &mut Vec<Completion>) {
        out.extend(self.ring.completion().take(max).filter_map(|entry| {
            let token = Token::unpack(entry.user_data())?;
            Some(Completion { token, result: entry.result() })
        }));
    }

    /// While it is off, completions do not raise the eventfd: half of them are for one's own sends.
    pub fn set_eventfd(&mut self, on: bool) {
        let queue = self.ring.completion();
        if on { queue.enable_eventfd() } else { queue.disable_eventfd() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;

    #[test]
    fn tokens_survive_the_ring() {
        let kinds = [Kind::Listener, Kind::Handshake, Kind::Readable];
        for kind in kinds.into_iter().chain([Kind::Writable, Kind::Lingering, Kind::Send]) {
            let token = Token::new(kind, u32::MAX - 1, u32::MAX);
            assert_eq!(Token::unpack(token.pack()), Some(token));
            assert_eq!(token.generation, GENERATION_MASK);
        }
        assert_eq!(Token::unpack(0), None);
    }

    #[test]
    fn readiness_and_sends_complete() {
        let (mut near, far) = UnixStream::pair().unwrap();
        let mut ring = Ring::new().unwrap();
        let token = Token::new(Kind::Readable, 7, 3);
        ring.poll_readable(far.as_raw_fd(), token);
        let bytes = b"hello";
        // SAFETY: `bytes` is static.
        unsafe {
            ring.send(far.as_raw_fd(), bytes.as_ptr(), 5, Token::new(Kind::Send, 1, 0));
        }
        ring.submit();
        let mut done = Vec::new();
        ring.reap(8, &mut done);
        assert_eq!(done.len(), 1);
        assert_eq!((done[0].token.kind, done[0].result), (Kind::Send, 5));
        near.write_all(b"x").unwrap();
        done.clear();
        ring.run_deferred();
        ring.reap(8, &mut done);
        assert_eq!(done[0].token, token);
    }
}
