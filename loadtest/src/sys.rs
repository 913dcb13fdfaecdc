//! The operating system: sockets, epoll, clocks, threads.
//!
//! All `unsafe` of the load tool is here, behind functions that are safe to call with any argument.

use std::io;
use std::mem::{size_of, zeroed};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

/// The socket is readable.
pub const READABLE: u32 = libc::EPOLLIN as u32;
/// The socket is writable again.
pub const WRITABLE: u32 = libc::EPOLLOUT as u32;
/// The peer will send nothing more, or the socket failed: read until the end.
pub const ENDED: u32 = (libc::EPOLLRDHUP | libc::EPOLLHUP | libc::EPOLLERR) as u32;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Returns CLOCK_MONOTONIC in nanoseconds.
pub fn now_ns() -> u64 {
    clock_ns(libc::CLOCK_MONOTONIC)
}

/// Returns Unix time in seconds.
pub fn unix_seconds() -> u64 {
    clock_ns(libc::CLOCK_REALTIME) / 1_000_000_000
}

fn clock_ns(clock: libc::clockid_t) -> u64 {
    // SAFETY: all-zero is a valid timespec.
    let mut time: libc::timespec = unsafe { zeroed() };
    // SAFETY: `time` is a valid place for one timespec. The clocks in use always exist.
    unsafe { libc::clock_gettime(clock, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// CPU time used, split as the kernel splits it.
#[derive(Clone, Copy, Default)]
pub struct CpuTime {
    pub user_us: u64,
    pub system_us: u64,
}

impl CpuTime {
    /// Returns the CPU time of the calling thread.
    pub fn of_this_thread() -> CpuTime {
        // SAFETY: all-zero is a valid rusage.
        let mut usage: libc::rusage = unsafe { zeroed() };
        // SAFETY: `usage` is a valid place for one rusage.
        unsafe { libc::getrusage(libc::RUSAGE_THREAD, &mut usage) };
        let us = |t: libc::timeval| t.tv_sec as u64 * 1_000_000 + t.tv_usec as u64;
        CpuTime { user_us: us(usage.ru_utime), system_us: us(usage.ru_stime) }
    }

    pub fn since(self, earlier: CpuTime) -> CpuTime {
        CpuTime {
            user_us: self.user_us.saturating_sub(earlier.user_us),
            system_us: self.system_us.saturating_sub(earlier.system_us),
        }
    }

    pub fn plus(self, other: CpuTime) -> CpuTime {
        CpuTime {
            user_us: self.user_us + other.user_us,
            system_us: self.system_us + other.system_us,
        }
    }

    pub fn total_us(self) -> u64 {
        self.user_us + self.system_us
    }
}

/// Returns the CPU time of this process in nanoseconds, including ended threads.
pub fn process_cpu_ns() -> u64 {
    clock_ns(libc::CLOCK_PROCESS_CPUTIME_ID)
}

/// Makes Ctrl-C and SIGTERM set a flag instead of ending the process. A second one of either kind
/// ends it.
pub fn catch_interrupts() {
    const SIGNALS: [libc::c_int; 2] = [libc::SIGINT, libc::SIGTERM];
    extern "C" fn handler(_: libc::c_int) {
        INTERRUPTED.store(true, Ordering::Relaxed);
        for signal in SIGNALS {
            // SAFETY: signal() is async-signal-safe and SIG_DFL is a valid disposition.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
    }
    let handler: extern "C" fn(libc::c_int) = handler;
    for signal in SIGNALS {
        // SAFETY: the handler only stores to an atomic and calls signal(), both async-signal-safe.
        unsafe { libc::signal(signal, handler as libc::sighandler_t) };
    }
}

/// Returns whether the user interrupted the run.
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// Asks a process to end: SIGTERM.
pub fn terminate(pid: u32) -> io::Result<()> {
    // Above i32::MAX, and 0, there is no process: kill() would take those for groups.
    let pid = i32::try_from(pid).ok().filter(|pid| *pid > 0);
    let pid = pid.ok_or_else(|| io::Error::from_raw_os_error(libc::ESRCH))?;
    // SAFETY: kill() takes two numbers and touches no memory.
    done(unsafe { libc::kill(pid, libc::SIGTERM) })
}

/// Returns whether there is a process with this id.
pub fn is_running(pid: u32) -> bool {
    std::path::Path::new(&format!("/proc/{pid}")).exists()
}

/// Pins the calling thread to one core.
pub fn pin_to_core(core: usize) -> io::Result<()> {
    if core >= libc::CPU_SETSIZE as usize {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // SAFETY: all-zero is the empty cpu_set_t.
    let mut set: libc::cpu_set_t = unsafe { zeroed() };
    // SAFETY: `core` was checked to be inside the set.
    unsafe { libc::CPU_SET(core, &mut set) };
    // SAFETY: `set` is a cpu_set_t and the size given is its size; pid 0 is the calling thread.
    done(unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set) })
}

/// Gives the calling thread its own descriptor table, so that RLIMIT_NOFILE counts per thread.
/// Descriptors open by then exist in both tables.
pub fn own_file_table() -> io::Result<()> {
    // SAFETY: unshare takes no pointers; CLONE_FILES only copies the descriptor table.
    done(unsafe { libc::unshare(libc::CLONE_FILES) })
}

/// Makes timed waits end as exactly as the machine can, instead of within 50 us.
pub fn exact_timers() {
    // SAFETY: PR_SET_TIMERSLACK takes one number and touches no memory.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1 as libc::c_ulong) };
}

/// The kernel's `struct sched_attr`, in its first version.
#[repr(C)]
#[derive(Default)]
struct SchedAttr {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime_ns: u64,
    deadline_ns: u64,
    period_ns: u64,
}

/// Lets the calling thread run soon after it is woken, even beside busy threads of this tool: it
/// must measure the server's time. Before Linux 6.12 it has no effect.
pub fn run_soon() {
    let size = size_of::<SchedAttr>() as u32;
    let mut attr = SchedAttr { size, ..SchedAttr::default() };
    // SAFETY: the structure is writable and has the stated length; 0 is the calling thread.
    if unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &mut attr, size, 0) } != 0 {
        return;
    }
    attr.runtime_ns = 100_000;
    // SAFETY: the structure is readable and states its length; a refusal changes nothing.
    unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &attr, 0) };
}

/// Ends this process, as by Ctrl-C, when its parent ends.
pub fn end_with_parent() {
    // SAFETY: PR_SET_PDEATHSIG takes one number and touches no memory.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM as libc::c_ulong) };
}

/// Raises the soft limit of open files to the hard one and returns it.
pub fn raise_file_limit() -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a valid place for one rlimit.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) } != 0 {
        return 1024;
    }
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: `limit` is a valid rlimit; a refusal leaves the old limit in force.
    unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) };
    limit.rlim_cur
}

/// Starts a TCP connection without waiting for it, from `source` if one is given.
pub fn start_connect(to: SocketAddrV4, source: Option<Ipv4Addr>) -> io::Result<OwnedFd> {
    let kind = libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: socket() takes no pointers.
    let raw = unsafe { libc::socket(libc::AF_INET, kind, 0) };
    done(raw)?;
    // SAFETY: `raw` was just opened and nothing else owns it.
    let fd = unsafe { OwnedFd::from_raw_fd(raw) };
    if let Some(source) = source {
        // The port is chosen at connect(), where the full four-tuple counts: 28,000 connections per
        // source and destination instead of per source.
        set_option(&fd, libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, &1i32)?;
        let address = raw_address(SocketAddrV4::new(source, 0));
        // SAFETY: `address` is a sockaddr_in and the length given is its length.
        done(unsafe { libc::bind(raw, (&raw const address).cast(), length_of(&address)) })?;
    }
    let address = raw_address(to);
    // SAFETY: `address` is a sockaddr_in and the length given is its length.
    match done(unsafe { libc::connect(raw, (&raw const address).cast(), length_of(&address)) }) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
        _ => Ok(fd),
    }
}

/// Lets small writes leave at once. Otherwise each waits until the previous one is acknowledged,
/// and a peer with nothing to send takes 40 ms for that.
pub fn send_at_once(fd: &OwnedFd) -> io::Result<()> {
    set_option(fd, libc::IPPROTO_TCP, libc::TCP_NODELAY, &1i32)
}

/// Makes the close of this socket a reset: no FIN, no TIME_WAIT.
pub fn reset_on_close(fd: &OwnedFd) -> io::Result<()> {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    set_option(fd, libc::SOL_SOCKET, libc::SO_LINGER, &linger)
}

/// Sends what the socket takes now.
#[inline]
pub fn send(fd: &OwnedFd, bytes: &[u8]) -> io::Result<usize> {
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: the pointer and length are those of a live slice.
    let sent = unsafe { libc::send(fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), flags) };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(sent as usize) }
}

/// Receives what has arrived.
#[inline]
pub fn recv(fd: &OwnedFd, into: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the pointer and length are those of a live, exclusively borrowed slice.
    let got = unsafe {
        libc::recv(fd.as_raw_fd(), into.as_mut_ptr().cast(), into.len(), libc::MSG_DONTWAIT)
    };
    if got < 0 { Err(io::Error::last_os_error()) } else { Ok(got as usize) }
}

/// Makes another thread's [`Epoll::wait`] return.
pub struct Waker(OwnedFd);

impl Waker {
    pub fn new() -> io::Result<Waker> {
        // SAFETY: eventfd() takes no pointers.
        let raw = unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) };
        done(raw)?;
        // SAFETY: `raw` was just opened and nothing else owns it.
        Ok(Waker(unsafe { OwnedFd::from_raw_fd(raw) }))
    }

    /// With edge-triggered epoll every write is an edge: nobody needs to read the counter.
    pub fn wake(&self) {
        let one = 1u64;
        // SAFETY: eight readable bytes; the only error, a full counter, means that it is awake.
        unsafe { libc::write(self.0.as_raw_fd(), (&raw const one).cast(), 8) };
    }

    pub fn fd(&self) -> &OwnedFd {
        &self.0
    }
}

/// An edge-triggered epoll instance and its batch of events.
pub struct Epoll {
    fd: OwnedFd,
    events: Vec<libc::epoll_event>,
    ready: usize,
}

impl Epoll {
    /// `batch`: maximum number of events that one wait returns.
    pub fn new(batch: usize) -> io::Result<Epoll> {
        // SAFETY: epoll_create1() takes no pointers.
        let raw = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        done(raw)?;
        // SAFETY: `raw` was just opened and nothing else owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(raw) };
        let events = vec![libc::epoll_event { events: 0, u64: 0 }; batch.max(1)];
        Ok(Epoll { fd, events, ready: 0 })
    }

    /// Watches `fd` until it is closed. Edge-triggered: a reader that got less than it asked for
    /// has emptied the socket.
    pub fn add(&self, fd: &OwnedFd, interest: u32, token: u64) -> io::Result<()> {
        let events = interest | (libc::EPOLLRDHUP | libc::EPOLLET) as u32;
        let mut event = libc::epoll_event { events, u64: token };
        // SAFETY: both descriptors are open and `event` is a valid epoll_event.
        done(unsafe {
            libc::epoll_ctl(
                self.fd.as_raw_fd(),
                libc::EPOLL_CTL_ADD,
                fd.as_raw_fd(),
                &raw mut event,
            )
        })
    }

    /// Waits for events, at most `timeout_ns`, and returns their number. An interrupting signal is
    /// not an event.
    pub fn wait(&mut self, timeout_ns: u64) -> io::Result<usize> {
        let timeout = libc::timespec {
            tv_sec: (timeout_ns / 1_000_000_000) as libc::time_t,
            tv_nsec: (timeout_ns % 1_000_000_000) as libc::c_long,
        };
        // SAFETY: the events pointer and count are those of our vector, the timespec lives through
        // the call, and no signal mask is given.
        let ready = unsafe {
            libc::syscall(
                libc::SYS_epoll_pwait2,
                self.fd.as_raw_fd(),
                self.events.as_mut_ptr(),
                self.events.len() as libc::c_int,
                &raw const timeout,
                std::ptr::null::<libc::sigset_t>(),
                0usize,
            )
        };
        self.ready = 0;
        if ready < 0 {
            let error = io::Error::last_os_error();
            return if error.kind() == io::ErrorKind::Interrupted { Ok(0) } else { Err(error) };
        }
        self.ready = ready as usize;
        Ok(self.ready)
    }

    /// Returns the token and the mask of event `i` of the last wait.
    #[inline]
    pub fn event(&self, i: usize) -> (u64, u32) {
        let event = &self.events[..self.ready][i];
        (event.u64, event.events)
    }
}

fn set_option<T>(fd: &OwnedFd, level: i32, name: i32, value: &T) -> io::Result<()> {
    let fd: BorrowedFd<'_> = std::os::fd::AsFd::as_fd(fd);
    // SAFETY: `value` is readable for the size given, and every caller passes the type that the
    // option takes (an int or a linger).
    done(unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            name,
            std::ptr::from_ref(value).cast(),
            length_of(value),
        )
    })
}

fn raw_address(address: SocketAddrV4) -> libc::sockaddr_in {
    libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: address.port().to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from(*address.ip()).to_be() },
        sin_zero: [0; 8],
    }
}

fn length_of<T>(_: &T) -> libc::socklen_t {
    size_of::<T>() as libc::socklen_t
}

fn done(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
