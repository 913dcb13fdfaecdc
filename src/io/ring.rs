//! The nested io_uring: readiness of open connections, and sends that never block.
//!
//! Its contract with the rest is readiness plus non-blocking sends, so that an epoll back end could
//! replace it.

use super::sys;
use io_uring::{IoUring, opcode, squeue, types};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// How long submissions may be refused (EAGAIN, EBUSY) before the ring counts as failed. A kernel
/// that is out of memory refuses for a while; one that refuses for longer does not recover.
const REFUSED_FOR: Duration = Duration::from_secs(1);
/// The smallest size of a memory page.
const PAGE_BYTES: u64 = 4_096;

/// Returns the kernel memory of a ring, which counts towards RLIMIT_MEMLOCK since Linux 6.14: the
/// submission entries, and the completions with the submission index and the ring's head.
pub const fn memory_bytes(entries: u32, completions: u32) -> u64 {
    let (entries, completions) = (entries as u64, completions as u64);
    let (queued, shared) = (64 * entries, 320 + 16 * completions + 4 * entries);
    queued.next_multiple_of(PAGE_BYTES) + shared.next_multiple_of(PAGE_BYTES)
}

/// The purpose of an operation; returned with its completion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum OperationKind {
    Listener = 1,
    Handshake,
    Readable,
    Writable,
    Lingering,
    Send,
    Timer,
}

/// Identifies an operation: its purpose, the index of its entry in that table, and the low 24 bits
/// of the entry's generation, so that a late completion never touches a newer owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OperationToken {
    pub kind: OperationKind,
    pub index: u32,
    pub generation: u32,
}

/// The bits of a generation that a token carries.
pub const GENERATION_MASK: u32 = (1 << 24) - 1;

impl OperationToken {
    pub fn new(kind: OperationKind, index: u32, generation: u32) -> Self {
        Self { kind, index, generation: generation & GENERATION_MASK }
    }

    fn pack(self) -> u64 {
        u64::from(self.kind as u8) << 56 | u64::from(self.generation) << 32 | u64::from(self.index)
    }

    fn unpack(data: u64) -> Option<Self> {
        let kind = match (data >> 56) as u8 {
            1 => OperationKind::Listener,
            2 => OperationKind::Handshake,
            3 => OperationKind::Readable,
            4 => OperationKind::Writable,
            5 => OperationKind::Lingering,
            6 => OperationKind::Send,
            7 => OperationKind::Timer,
            _ => return None,
        };
        Some(Self { kind, index: data as u32, generation: (data >> 32) as u32 & GENERATION_MASK })
    }
}

/// A finished operation. Its result is a negative errno, poll's events or the number of bytes sent.
#[derive(Debug, Clone, Copy)]
pub struct Completion {
    pub token: OperationToken,
    pub result: i32,
}

/// A worker's ring, used by its thread alone.
pub struct Ring {
    ring: IoUring,
    eventfd: OwnedFd,
    /// The timer's timeout. The kernel reads it when the timer is submitted.
    delay: Box<types::Timespec>,
    is_timer_armed: bool,
    /// When the kernel began to refuse submissions.
    refused_since: Option<Instant>,
    /// Why the kernel accepts nothing any more. From then on nothing is submitted.
    failure: Option<io::Error>,
}

/// Why there is no ring.
#[derive(Debug, thiserror::Error)]
pub enum RingError {
    #[error("{0}")]
    Setup(io::Error),
    #[error("{0}")]
    Enter(io::Error),
}

impl Ring {
    /// Maximum number of operations per submission if there are few workers.
    pub const ENTRIES: u32 = 1024;
    /// The same if there are many: more than the sends of one submission.
    pub const FEW_ENTRIES: u32 = 256;
    /// Kernel memory that [`Ring::probe`] takes for a moment.
    pub const PROBE_BYTES: u64 = Self::memory_bytes(Self::PROBE_ENTRIES);
    const PROBE_ENTRIES: u32 = 8;

    /// Returns the number of entries of each worker's ring for this number of workers and cores.
    /// With more than four workers on a core, none has much to do at once, and large rings would
    /// take most of an idle node's memory.
    pub fn entries(workers: usize, cores: usize) -> u32 {
        if workers > 4 * cores { Self::FEW_ENTRIES } else { Self::ENTRIES }
    }

    /// Returns the kernel memory of a ring with this number of entries.
    pub const fn memory_bytes(entries: u32) -> u64 {
        memory_bytes(entries, 4 * entries)
    }

    pub fn new(entries: u32) -> io::Result<Self> {
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_submit_all()
            .setup_taskrun_flag()
            .setup_cqsize(4 * entries)
            .build(entries)?;
        let eventfd = sys::eventfd()?;
        ring.submitter().register_eventfd(eventfd.as_raw_fd())?;
        Ok(Self {
            ring,
            eventfd,
            delay: Box::default(),
            is_timer_armed: false,
            refused_since: None,
            failure: None,
        })
    }

    /// Checks that this machine lets a process create such a ring and use it: a no-op goes through
    /// it, with the same kind of wait as the executor uses.
    pub fn probe() -> Result<(), RingError> {
        let mut ring = Self::new(Self::PROBE_ENTRIES).map_err(RingError::Setup)?;
        // SAFETY: a no-op refers to no memory.
        let queued = unsafe { ring.ring.submission().push(&opcode::Nop::new().build()) };
        queued.map_err(|error| RingError::Enter(io::Error::other(error)))?;
        let patience = types::Timespec::new().sec(1);
        let wait = types::SubmitArgs::new().timespec(&patience);
        ring.ring.submitter().submit_with_args(1, &wait).map_err(RingError::Enter)?;
        Ok(())
    }

    /// Returns why the kernel accepts nothing any more, or `None` if it does.
    pub fn failure(&self) -> Option<&io::Error> {
        self.failure.as_ref()
    }

    /// Returns the eventfd, which becomes readable when there is something to reap (a ring of this
    /// kind does not wake a poller itself).
    pub fn eventfd(&self) -> &OwnedFd {
        &self.eventfd
    }

    /// Polls once for readiness; errors and hang-ups count as ready. The descriptor must stay open
    /// until then (`shutdown` it to get the completion early).
    pub fn poll_readable(&mut self, socket: impl AsFd, token: OperationToken) {
        self.poll(socket.as_fd(), libc::POLLIN as u32, token);
    }

    /// As [`Ring::poll_readable`], for a listener. `is_shared`: several workers poll it, and one
    /// connection shall wake only one of them.
    pub fn poll_listener(&mut self, listener: impl AsFd, is_shared: bool, token: OperationToken) {
        let exclusive = if is_shared { libc::EPOLLEXCLUSIVE as u32 } else { 0 };
        self.poll(listener.as_fd(), libc::POLLIN as u32 | exclusive, token);
    }

    pub fn poll_writable(&mut self, socket: impl AsFd, token: OperationToken) {
        self.poll(socket.as_fd(), libc::POLLOUT as u32, token);
    }

    fn poll(&mut self, socket: BorrowedFd<'_>, events: u32, token: OperationToken) {
        let fd = types::Fd(socket.as_raw_fd());
        let entry = opcode::PollAdd::new(fd, events).build();
        self.push(&entry.user_data(token.pack()));
    }

    /// Raises the eventfd after `delay`, with microsecond rather than tick precision, and with a
    /// completion that [`Ring::end_timer`] acknowledges. While a timer runs, no second one is
    /// started: a caller that is woken too early checks again.
    pub fn start_timer(&mut self, delay: Duration) {
        if std::mem::replace(&mut self.is_timer_armed, true) {
            return;
        }
        *self.delay = types::Timespec::from(delay);
        let entry = opcode::Timeout::new(&raw const *self.delay).build();
        self.push(&entry.user_data(OperationToken::new(OperationKind::Timer, 0, 0).pack()));
    }

    /// Records that the timer's completion was reaped.
    pub fn end_timer(&mut self) {
        self.is_timer_armed = false;
    }

    /// Queues a send that does not block. With MSG_DONTWAIT the kernel executes it inside the call
    /// that submits it: it copies what the socket takes, and completes the send in full, short or
    /// with EAGAIN. It neither polls nor passes the send to another thread, so it does not read
    /// `bytes` after the submission.
    ///
    /// # Safety
    /// While the send is queued, `bytes` must stay valid and unchanged. It is queued until it is
    /// submitted, at the latest until its completion is reaped; once the ring has failed or is
    /// dropped, queued sends are never submitted.
    pub unsafe fn send(
        &mut self,
        socket: impl AsFd,
        bytes: *const u8,
        length: usize,
        token: OperationToken,
    ) {
        let fd = types::Fd(socket.as_fd().as_raw_fd());
        let entry = opcode::Send::new(fd, bytes, length.min(1 << 30) as u32)
            .flags(libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL)
            .build();
        self.push(&entry.user_data(token.pack()));
    }

    fn push(&mut self, entry: &squeue::Entry) {
        loop {
            // SAFETY: a poll refers to no memory; for a send, the caller of `send` guarantees it; a
            // timer refers to `self.delay`, which the kernel reads when the timer is submitted: its
            // heap allocation lives as long as the ring, and it is written to only while no timer
            // is queued or running.
            let is_queued = unsafe { self.ring.submission().push(entry) }.is_ok();
            if is_queued || self.failure.is_some() {
                return;
            }
            self.submit();
        }
    }

    /// Submits the queued operations, if there are any.
    pub fn submit(&mut self) {
        if self.has_queued() {
            self.enter(0);
        }
    }

    /// Returns whether operations wait for the next submission.
    pub fn has_queued(&mut self) -> bool {
        !self.ring.submission().is_empty()
    }

    /// Submits what is queued and waits for at least one completion.
    pub fn submit_and_wait(&mut self) {
        self.enter(1);
    }

    fn enter(&mut self, wanted: usize) {
        if self.failure.is_none() {
            let result = self.ring.submit_and_wait(wanted);
            self.note(result);
        }
    }

    /// Submits the queued operations and runs the kernel's deferred work, so that completions can
    /// be reaped. Does not enter the kernel if there is neither.
    pub fn run_deferred(&mut self) {
        let queue = self.ring.submission();
        let (queued, is_deferred) = (queue.len() as u32, queue.taskrun() || queue.cq_overflow());
        drop(queue);
        if self.failure.is_some() || (queued == 0 && !is_deferred) {
            return;
        }
        let getevents = 1; // IORING_ENTER_GETEVENTS
        // SAFETY: all arguments are plain numbers.
        let result =
            unsafe { self.ring.submitter().enter::<libc::sigset_t>(queued, 0, getevents, None) };
        self.note(result);
    }

    /// Records the result of an enter. EINTR, EAGAIN and EBUSY leave the queue as it is: the caller
    /// retries.
    fn note(&mut self, result: io::Result<usize>) {
        let Err(error) = result else {
            self.refused_since = None;
            return;
        };
        match error.raw_os_error() {
            Some(libc::EINTR) => {}
            Some(libc::EAGAIN | libc::EBUSY) => {
                let since = *self.refused_since.get_or_insert_with(Instant::now);
                if since.elapsed() >= REFUSED_FOR {
                    self.failure = Some(error);
                }
            }
            _ => self.failure = Some(error),
        }
    }

    /// Returns whether completions, or work that leads to them, are waiting.
    pub fn has_work(&mut self) -> bool {
        let queue = self.ring.submission();
        let is_deferred = queue.taskrun() || queue.cq_overflow();
        drop(queue);
        is_deferred || !self.ring.completion().is_empty()
    }

    /// Reaps at most `max` completions.
    pub fn reap(&mut self, max: usize, out: &mut Vec<Completion>) {
        out.extend(self.ring.completion().take(max).filter_map(|entry| {
            let token = OperationToken::unpack(entry.user_data())?;
            Some(Completion { token, result: entry.result() })
        }));
    }

    /// Switches the eventfd on or off. While it is off, completions do not raise it: half of them
    /// are for the worker's own sends.
    pub fn set_eventfd(&mut self, on: bool) {
        let queue = self.ring.completion();
        if on { queue.enable_eventfd() } else { queue.disable_eventfd() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    #[test]
    fn tokens_survive_the_ring() {
        let kinds = [OperationKind::Listener, OperationKind::Handshake, OperationKind::Readable];
        for kind in kinds.into_iter().chain([
            OperationKind::Writable,
            OperationKind::Lingering,
            OperationKind::Send,
            OperationKind::Timer,
        ]) {
            let token = OperationToken::new(kind, u32::MAX - 1, u32::MAX);
            assert_eq!(OperationToken::unpack(token.pack()), Some(token));
            assert_eq!(token.generation, GENERATION_MASK);
        }
        assert_eq!(OperationToken::unpack(0), None);
    }

    #[test]
    fn the_memory_of_a_worker_is_what_the_kernel_charges() {
        // Measured on Linux 6.18: 240 KiB together with the executor's ring, which takes 104 of
        // them.
        assert_eq!(memory_bytes(1_024, 2_048), 104 << 10);
        assert_eq!(Ring::memory_bytes(1_024), 136 << 10);
        assert_eq!((Ring::entries(8, 2), Ring::entries(9, 2)), (1_024, 256));
        assert_eq!((memory_bytes(256, 512), Ring::memory_bytes(256)), (28 << 10, 36 << 10));
    }

    #[test]
    fn a_ring_that_the_kernel_refuses_fails_and_takes_no_more() {
        Ring::probe().unwrap();
        let mut ring = Ring::new(Ring::ENTRIES).unwrap();
        ring.submit();
        assert!(ring.failure().is_none());
        // Replaces the ring's descriptor with a file that is no ring.
        let file = std::fs::File::open("/dev/null").unwrap();
        // SAFETY: no memory is involved; the ring's mappings stay.
        unsafe { libc::dup2(file.as_raw_fd(), ring.ring.as_raw_fd()) };
        ring.poll_readable(&file, OperationToken::new(OperationKind::Readable, 0, 0));
        ring.run_deferred();
        assert_eq!(ring.failure().and_then(io::Error::raw_os_error), Some(libc::EOPNOTSUPP));
        // A full queue no longer waits for room.
        for index in 0..=Ring::ENTRIES {
            ring.poll_readable(&file, OperationToken::new(OperationKind::Readable, index, 0));
        }
        ring.submit_and_wait();
        assert!(!ring.has_work());
    }

    #[test]
    fn a_timer_completes_once_and_can_be_started_again() {
        let mut ring = Ring::new(Ring::ENTRIES).unwrap();
        for _ in 0..3 {
            let began = Instant::now();
            ring.start_timer(Duration::from_micros(500));
            ring.start_timer(Duration::from_secs(60));
            ring.submit_and_wait();
            let mut done = Vec::new();
            ring.reap(8, &mut done);
            assert_eq!(
                done.iter().map(|one| one.token.kind).collect::<Vec<_>>(),
                [OperationKind::Timer]
            );
            assert!(began.elapsed() >= Duration::from_micros(500));
            ring.end_timer();
        }
    }

    #[test]
    fn readiness_and_sends_complete() {
        let (mut near, far) = UnixStream::pair().unwrap();
        let mut ring = Ring::new(Ring::ENTRIES).unwrap();
        let token = OperationToken::new(OperationKind::Readable, 7, 3);
        ring.poll_readable(&far, token);
        let bytes = b"hello";
        // SAFETY: `bytes` is static.
        unsafe {
            ring.send(&far, bytes.as_ptr(), 5, OperationToken::new(OperationKind::Send, 1, 0));
        }
        ring.submit();
        let mut done = Vec::new();
        ring.reap(8, &mut done);
        assert_eq!(done.len(), 1);
        assert_eq!((done[0].token.kind, done[0].result), (OperationKind::Send, 5));
        near.write_all(b"x").unwrap();
        done.clear();
        ring.run_deferred();
        ring.reap(8, &mut done);
        assert_eq!(done[0].token, token);
    }
}
