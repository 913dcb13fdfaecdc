//! System calls that the standard library lacks; the only `unsafe` of this crate.

use std::io::{self, Error, Read};
use std::mem::{size_of, zeroed};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use io_uring::{IoUring, cqueue, opcode, squeue, types};

const SEND_FLAGS: i32 = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;

/// Gives the calling thread its own descriptor table: lookups in a shared one cost an atomic each.
pub fn own_descriptor_table() -> io::Result<()> {
    // SAFETY: takes no pointers. Descriptors keep their numbers in the copy.
    check(unsafe { libc::unshare(libc::CLONE_FILES) }).map(drop)
}

pub fn pin_to_core(core: usize) -> io::Result<()> {
    if core >= libc::CPU_SETSIZE as usize {
        return Err(Error::from_raw_os_error(libc::EINVAL));
    }
    // SAFETY: an all-zero cpu_set_t is the empty set.
    let mut set: libc::cpu_set_t = unsafe { zeroed() };
    // SAFETY: `core` is below CPU_SETSIZE, as checked above.
    unsafe { libc::CPU_SET(core, &mut set) };
    // SAFETY: the set outlives the call, its size is passed; 0 is the calling thread.
    check(unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set) })
        .map(drop)
        .map_err(|error| Error::other(format!("core {core}: {error}")))
}

/// Makes the calling thread's sleeps end on time, instead of up to 50 us late.
pub fn exact_timers() {
    // SAFETY: PR_SET_TIMERSLACK takes one number and touches no memory.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1 as libc::c_ulong) };
}

/// Raises the limit of open descriptors to `wanted` if it is lower.
pub fn allow_descriptors(wanted: u64) -> io::Result<()> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a live rlimit that the call fills.
    check(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) })?;
    if limit.rlim_cur >= wanted {
        return Ok(());
    }
    limit.rlim_cur = wanted;
    limit.rlim_max = limit.rlim_max.max(wanted);
    // SAFETY: `limit` is a live rlimit that the call reads.
    check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) })
        .map(drop)
        .map_err(|error| Error::other(format!("{wanted} open files: {error}")))
}

/// The standard library listens with a backlog of 128, too small for thousands of simultaneous
/// connects.
pub fn deepen_backlog(listener: RawFd) -> io::Result<()> {
    // SAFETY: takes no pointers; listening again on a listener only changes its backlog.
    check(unsafe { libc::listen(listener, 4_096) }).map(drop)
}

/// Accepts the sockets of a `bench drain`: its control line, on which it reports that all others
/// are open, and those.
pub fn accept_all(listener: &TcpListener, count: usize) -> io::Result<(TcpStream, Vec<TcpStream>)> {
    let (mut control, _) = listener.accept()?;
    control.set_read_timeout(Some(Duration::from_secs(30)))?;
    let mut sockets = Vec::with_capacity(count);
    for _ in 0..count {
        let (socket, _) = listener.accept()?;
        socket.set_nodelay(true)?;
        sockets.push(socket);
    }
    control.read_exact(&mut [0])?;
    Ok((control, sockets))
}

/// Returns the CPU time of the calling thread.
pub fn thread_cpu() -> io::Result<Duration> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a live timespec that the call fills.
    check(unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) })?;
    Ok(Duration::new(time.tv_sec as u64, time.tv_nsec as u32))
}

pub fn send_now(fd: RawFd, bytes: &[u8]) -> io::Result<usize> {
    // SAFETY: pointer and length are those of a live slice that the call only reads.
    let sent = unsafe { libc::send(fd, bytes.as_ptr().cast(), bytes.len(), SEND_FLAGS) };
    usize::try_from(sent).map_err(|_| Error::last_os_error())
}

pub fn receive_now(fd: RawFd, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: pointer and length are those of a live slice that is borrowed mutably.
    let received =
        unsafe { libc::recv(fd, buffer.as_mut_ptr().cast(), buffer.len(), libc::MSG_DONTWAIT) };
    usize::try_from(received).map_err(|_| Error::last_os_error())
}

pub fn await_writable(fd: RawFd) -> io::Result<()> {
    let mut poll = libc::pollfd { fd, events: libc::POLLOUT, revents: 0 };
    loop {
        // SAFETY: `poll` is one live pollfd, as the length says.
        match check(unsafe { libc::poll(&mut poll, 1, 10_000) }) {
            Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Connects from `source`, with a port that only has to be free towards this `server`. Closing it
/// sends a reset, so that a run leaves no port in TIME_WAIT for the next.
pub fn connect_from(source: Ipv4Addr, server: SocketAddrV4) -> io::Result<OwnedFd> {
    // SAFETY: takes no pointers.
    let fd =
        check(unsafe { libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: the descriptor was just opened and nobody else owns it.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    set_option(fd, libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, &1_i32)?;
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    set_option(fd, libc::SOL_SOCKET, libc::SO_LINGER, &linger)?;
    let length = size_of::<libc::sockaddr_in>() as u32;
    let source = address(SocketAddrV4::new(source, 0));
    // SAFETY: the address is a live sockaddr_in, and `length` its size.
    check(unsafe { libc::bind(fd, (&raw const source).cast(), length) })?;
    let server = address(server);
    // SAFETY: the address is a live sockaddr_in, and `length` its size.
    check(unsafe { libc::connect(fd, (&raw const server).cast(), length) })?;
    Ok(socket)
}

pub struct Epoll(OwnedFd);

impl Epoll {
    pub fn new() -> io::Result<Self> {
        // SAFETY: takes no pointers.
        let fd = check(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
        // SAFETY: the descriptor was just opened and nobody else owns it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    pub fn add(&self, fd: RawFd, token: u64) -> io::Result<()> {
        let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: token };
        // SAFETY: `event` is a live epoll_event that the call reads.
        check(unsafe { libc::epoll_ctl(self.0.as_raw_fd(), libc::EPOLL_CTL_ADD, fd, &mut event) })
            .map(drop)
    }

    pub fn events(capacity: usize) -> Vec<libc::epoll_event> {
        vec![libc::epoll_event { events: 0, u64: 0 }; capacity]
    }

    /// Returns the tokens of readable sockets; if there are none, waits or, with `spin`, returns
    /// none.
    pub fn wait<'a>(
        &self,
        events: &'a mut [libc::epoll_event],
        spin: bool,
    ) -> io::Result<impl Iterator<Item = u64> + 'a> {
        let fd = self.0.as_raw_fd();
        let timeout_ms = if spin { 0 } else { -1 };
        let count = loop {
            // SAFETY: pointer and length are those of a live slice that is borrowed mutably.
            let ready = unsafe {
                libc::epoll_wait(fd, events.as_mut_ptr(), events.len() as i32, timeout_ms)
            };
            match check(ready) {
                Ok(count) => break count as usize,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        };
        Ok(events[..count].iter().map(|event| event.u64))
    }
}

/// Sends one payload to many sockets through io_uring.
///
/// The payload belongs to the ring and is declared behind it, so it is dropped after the ring:
/// no submitted SEND can outlive its bytes, whichever way [`SendRing::send_to_all`] ends.
pub struct SendRing {
    ring: IoUring<squeue::Entry, cqueue::Entry>,
    payload: Box<[u8]>,
}

impl SendRing {
    pub const ENTRIES: usize = 4_096;

    /// Call it on the sending thread: the ring accepts submissions from no other.
    pub fn new(payload: Box<[u8]>) -> io::Result<Self> {
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_submit_all()
            .build(Self::ENTRIES as u32)?;
        Ok(Self { ring, payload })
    }

    pub fn payload(&self) -> &[u8] {
        &self.payload
    }

    /// Submits one SEND for each of at most [`SendRing::ENTRIES`] sockets; `results` get each
    /// return value, bytes or a negative error, in the order of `fds`.
    pub fn send_to_all(&mut self, fds: &[RawFd], results: &mut Vec<i32>) -> io::Result<()> {
        assert!(fds.len() <= Self::ENTRIES, "{} sockets in one chunk", fds.len());
        results.clear();
        results.resize(fds.len(), 0);
        let (pointer, length) = (self.payload.as_ptr(), self.payload.len() as u32);
        let mut queue = self.ring.submission();
        for (index, &fd) in fds.iter().enumerate() {
            let entry = opcode::Send::new(types::Fd(fd), pointer, length)
                .flags(SEND_FLAGS)
                .build()
                .user_data(index as u64);
            // SAFETY: the entry points into `self.payload`, which is never written and outlives
            // the ring; the descriptor is open, and a closed one would merely fail.
            unsafe { queue.push(&entry) }.map_err(|_| Error::other("submission queue full"))?;
        }
        drop(queue);
        let mut left = fds.len();
        while left > 0 {
            match self.ring.submit_and_wait(left) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
            for completion in self.ring.completion() {
                results[completion.user_data() as usize] = completion.result();
                left -= 1;
            }
        }
        Ok(())
    }
}

/// Polls many sockets through io_uring, one-shot, and sends to them.
pub struct PollRing {
    ring: IoUring<squeue::Entry, cqueue::Entry>,
    payload: &'static [u8],
}

impl PollRing {
    const ENTRIES: u32 = 1_024;
    /// The user data of a SEND's completion, in place of a socket's index.
    const SENT: u64 = u64::MAX;

    /// Call it on the thread that uses it.
    pub fn new(payload: &'static [u8]) -> io::Result<Self> {
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_submit_all()
            .setup_cqsize(4 * Self::ENTRIES)
            .build(Self::ENTRIES)?;
        Ok(Self { ring, payload })
    }

    /// Polls `fd` once; `index` comes back from [`PollRing::wait`].
    pub fn poll(&mut self, fd: RawFd, index: u32) -> io::Result<()> {
        let entry = opcode::PollAdd::new(types::Fd(fd), libc::POLLIN as u32).build();
        self.push(&entry.user_data(index.into()))
    }

    /// Queues a SEND of the payload.
    pub fn send(&mut self, fd: RawFd) -> io::Result<()> {
        let (pointer, length) = (self.payload.as_ptr(), self.payload.len() as u32);
        let entry = opcode::Send::new(types::Fd(fd), pointer, length).flags(SEND_FLAGS).build();
        self.push(&entry.user_data(Self::SENT))
    }

    fn push(&mut self, entry: &squeue::Entry) -> io::Result<()> {
        // SAFETY: a poll refers to no memory, a send to the payload, which is static.
        while unsafe { self.ring.submission().push(entry) }.is_err() {
            self.ring.submit()?;
        }
        Ok(())
    }

    /// Submits what is queued, waits for a completion or the timeout, and appends the indices of
    /// ready sockets.
    pub fn wait(&mut self, timeout: Duration, ready: &mut Vec<u32>) -> io::Result<()> {
        let timeout = types::Timespec::from(timeout);
        let arguments = types::SubmitArgs::new().timespec(&timeout);
        match self.ring.submitter().submit_with_args(1, &arguments) {
            Err(error) if ![libc::ETIME, libc::EINTR].map(Some).contains(&error.raw_os_error()) => {
                return Err(error);
            }
            _ => {}
        }
        for completion in self.ring.completion() {
            match (completion.user_data(), completion.result()) {
                (_, result @ ..0) => return Err(Error::from_raw_os_error(-result)),
                (Self::SENT, _) => {}
                (index, _) => ready.push(index as u32),
            }
        }
        Ok(())
    }
}

fn set_option<T>(fd: RawFd, level: i32, name: i32, value: &T) -> io::Result<()> {
    let value: *const T = value;
    // SAFETY: `value` points to a live T, and its size is passed.
    check(unsafe { libc::setsockopt(fd, level, name, value.cast(), size_of::<T>() as u32) })
        .map(drop)
}

fn address(socket: SocketAddrV4) -> libc::sockaddr_in {
    libc::sockaddr_in {
        sin_family: libc::AF_INET as u16,
        sin_port: socket.port().to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from(*socket.ip()).to_be() },
        sin_zero: [0; 8],
    }
}

fn check(result: i32) -> io::Result<i32> {
    if result < 0 { Err(Error::last_os_error()) } else { Ok(result) }
}
