//! System calls that neither std nor monoio offers, each wrapped once.

use monoio::net::{TcpStream, UnixStream};
use smallvec::SmallVec;
use socket2::{SockAddr, SockRef};
use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::io::{self, IoSlice};
use std::mem::{self, MaybeUninit};
use std::net::{IpAddr, Shutdown, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::time::Duration;

/// Returns a random seed from the kernel.
pub fn random_u64() -> io::Result<u64> {
    Ok(getrandom::u64()?)
}

/// Returns random hash keys that outsiders cannot predict.
pub fn random_keys() -> io::Result<(u64, u64)> {
    Ok((random_u64()?, random_u64()?))
}

/// Returns a random number below `bound`, to spread delays. A node does not start if the kernel
/// gives no random numbers; should they cease later, nothing is spread.
pub fn random_below(bound: u64) -> u64 {
    random_u64().map_or(0, |number| number % bound)
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn check_len(result: isize) -> io::Result<usize> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as usize) }
}

/// Returns whether an error only means "not now".
pub fn is_not_now(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

/// A socket of the executor that lends its descriptor for as long as it is borrowed.
pub trait Lend {
    fn lend(&self) -> BorrowedFd<'_>;
}

impl Lend for TcpStream {
    fn lend(&self) -> BorrowedFd<'_> {
        // SAFETY: the stream keeps its descriptor open until it is dropped.
        unsafe { BorrowedFd::borrow_raw(self.as_raw_fd()) }
    }
}

impl Lend for UnixStream {
    fn lend(&self) -> BorrowedFd<'_> {
        // SAFETY: the stream keeps its descriptor open until it is dropped.
        unsafe { BorrowedFd::borrow_raw(self.as_raw_fd()) }
    }
}

/// Takes a connection away from the executor.
pub fn take_socket(stream: TcpStream) -> OwnedFd {
    // SAFETY: the stream gives up its descriptor, and nothing else owns it.
    unsafe { OwnedFd::from_raw_fd(stream.into_raw_fd()) }
}

/// Reads what is there, without waiting. `Ok(0)`: the peer has ended its side.
pub fn recv(socket: impl AsFd, buffer: &mut [u8]) -> io::Result<usize> {
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: pointer and length are those of a live, writable slice.
    check_len(unsafe {
        libc::recv(fd, buffer.as_mut_ptr().cast(), buffer.len(), libc::MSG_DONTWAIT)
    })
}

/// Returns whether a socket holds unread bytes.
pub fn has_unread(socket: impl AsFd) -> bool {
    let flags = libc::MSG_DONTWAIT | libc::MSG_PEEK;
    let peeked = SockRef::from(&socket).recv_with_flags(&mut [MaybeUninit::uninit()], flags);
    peeked.is_ok_and(|bytes| bytes > 0)
}

/// Returns the size of a memory page.
pub fn page_bytes() -> usize {
    // SAFETY: no memory is involved.
    unsafe { libc::sysconf(libc::_SC_PAGESIZE) as usize }
}

/// Returns the system's monotonic clock, as other processes read it.
pub fn monotonic_us() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: it points to a live, writable timespec.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    time.tv_sec as u64 * 1_000_000 + time.tv_nsec as u64 / 1_000
}

/// Returns the CPU time of this process, including threads that have ended.
pub fn process_cpu_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: it points to a live, writable timespec.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Returns the CPU time of the calling thread.
pub fn own_cpu_ns() -> u64 {
    thread_cpu_ns(ThreadClock(libc::CLOCK_THREAD_CPUTIME_ID)).unwrap_or(0)
}

/// The clock of a thread's CPU time.
#[derive(Debug, Clone, Copy)]
pub struct ThreadClock(libc::clockid_t);

/// Returns the clock of the calling thread; any thread may read it.
pub fn thread_clock() -> ThreadClock {
    let mut clock = libc::CLOCK_THREAD_CPUTIME_ID;
    // SAFETY: the calling thread is alive, for which the call does not fail, and the clock is
    // writable.
    unsafe { libc::pthread_getcpuclockid(libc::pthread_self(), &mut clock) };
    ThreadClock(clock)
}

/// Returns the CPU time of a thread, or `None` if it has ended.
pub fn thread_cpu_ns(ThreadClock(clock): ThreadClock) -> Option<u64> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: it points to a live, writable timespec.
    check(unsafe { libc::clock_gettime(clock, &mut time) }).ok()?;
    Some(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
}

/// Like [`recv`], into the spare capacity of `buffer`.
pub fn recv_spare(socket: impl AsFd, buffer: &mut Vec<u8>) -> io::Result<usize> {
    let spare = buffer.spare_capacity_mut();
    let received = SockRef::from(&socket).recv_with_flags(spare, libc::MSG_DONTWAIT)?;
    // SAFETY: the kernel has just written this many bytes after the buffer's end, within its
    // capacity.
    unsafe { buffer.set_len(buffer.len() + received) };
    Ok(received)
}

/// Takes variables out of the environment, so that no child process inherits them. Returns their
/// values. Other threads may read the environment: while there are any, it is left unchanged.
pub fn take_variables<const N: usize>(names: [&str; N]) -> [Option<OsString>; N] {
    let is_alone = fs::read_dir("/proc/self/task").is_ok_and(|threads| threads.count() == 1);
    names.map(|name| {
        let value = std::env::var_os(name)?;
        if is_alone {
            // SAFETY: no other thread exists, so none reads or writes the environment meanwhile.
            unsafe { std::env::remove_var(name) };
        }
        Some(value)
    })
}

/// The first descriptor that systemd passes.
const FIRST_PASSED: RawFd = 3;

/// Takes over `count` descriptors that the parent process has passed (LISTEN_FDS), closed on exec
/// from here on.
///
/// # Safety
/// Nothing else in this process may own them: the caller must know from LISTEN_PID that the parent
/// opened them for this process, and must call this once, before anything else is opened.
pub(super) unsafe fn take_passed(count: RawFd) -> io::Result<Vec<OwnedFd>> {
    let fds = FIRST_PASSED..FIRST_PASSED.saturating_add(count);
    fds.map(|fd| {
        // SAFETY: no memory is involved; it fails if the descriptor is not open.
        check(unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) })?;
        // SAFETY: it is open, and the caller guarantees that nothing else owns it.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    })
    .collect()
}

/// Returns whether this is a TCP socket that listens.
pub fn is_tcp_listener(socket: impl AsFd) -> bool {
    let fd = socket.as_fd().as_raw_fd();
    let option = |name| {
        let mut value: libc::c_int = 0;
        let mut length = size_of_val(&value) as libc::socklen_t;
        // SAFETY: value and length are writable, and the length is the value's.
        let result = unsafe {
            libc::getsockopt(fd, libc::SOL_SOCKET, name, (&raw mut value).cast(), &mut length)
        };
        check(result).map(|_| value).unwrap_or(-1)
    };
    option(libc::SO_ACCEPTCONN) == 1 && option(libc::SO_PROTOCOL) == libc::IPPROTO_TCP
}

/// Writes as much as the socket takes, without waiting and without SIGPIPE.
pub fn send(socket: impl AsFd, bytes: &[u8]) -> io::Result<usize> {
    SockRef::from(&socket).send_with_flags(bytes, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL)
}

/// Maximum number of slices that [`send_slices`] writes.
pub const MAX_SLICES: usize = 32;

/// Like [`send`], for bytes in several places; only the first [`MAX_SLICES`] are considered.
pub fn send_slices(socket: impl AsFd, slices: &[&[u8]]) -> io::Result<usize> {
    let slices = slices.iter().take(MAX_SLICES).map(|slice| IoSlice::new(slice));
    let slices: SmallVec<[IoSlice<'_>; MAX_SLICES]> = slices.collect();
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    SockRef::from(&socket).send_vectored_with_flags(&slices, flags)
}

/// Whether calls on a socket wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockingMode {
    /// As the executor needs it, whose ring waits instead.
    Blocking,
    NonBlocking,
}

/// Accepts the next connection of a non-blocking listener, closed on exec. `socket2` needs a second
/// system call to make it non-blocking. Returns the peer's address as well.
pub fn accept(listener: impl AsFd, mode: BlockingMode) -> io::Result<(OwnedFd, Option<IpAddr>)> {
    let listener = listener.as_fd().as_raw_fd();
    let flags = match mode {
        BlockingMode::Blocking => libc::SOCK_CLOEXEC,
        BlockingMode::NonBlocking => libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC,
    };
    let accept = |address: *mut libc::sockaddr_storage, length: *mut libc::socklen_t| {
        // SAFETY: `address` points to a writable storage of the size in `length`, which is
        // writable, too: that is what `SockAddr::try_init` passes.
        check(unsafe { libc::accept4(listener, address.cast(), length, flags) })
    };
    // SAFETY: accept4 writes an address of the family that it names, and its length. If it fails,
    // so does the closure.
    let (fd, address) = unsafe { SockAddr::try_init(accept) }?;
    // SAFETY: accept4 returned a new descriptor that nothing else owns.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    Ok((fd, address.as_socket().map(|address| address.ip())))
}

/// Makes a later close send RST instead of waiting for a peer that reads nothing.
pub fn set_reset_on_close(socket: impl AsFd) {
    // It fails for a socket that is gone, for which nothing waits.
    let _ = SockRef::from(&socket).set_linger(Some(Duration::ZERO));
}

/// Bounds the bytes that the kernel takes and cannot send yet.
pub fn bound_unsent(socket: impl AsFd, bytes: usize) {
    let bytes = libc::c_int::try_from(bytes).unwrap_or(libc::c_int::MAX);
    let length = size_of_val(&bytes) as libc::socklen_t;
    let (level, name) = (libc::IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT);
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: the value outlives the call and has the stated length. A socket that is already gone
    // reports its error at the next read.
    unsafe { libc::setsockopt(fd, level, name, (&raw const bytes).cast(), length) };
}

/// Shuts down one side of a connection, or both.
pub fn shutdown(socket: impl AsFd, side: Shutdown) {
    // It fails for a connection that has already ended.
    let _ = SockRef::from(&socket).shutdown(side);
}

/// Creates a counter that one thread raises to wake another. A `read` of it blocks while it is
/// zero.
pub fn eventfd() -> io::Result<OwnedFd> {
    // SAFETY: no memory is involved.
    let fd = check(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) })?;
    // SAFETY: eventfd returned a new descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Raises an eventfd by one.
pub fn wake(eventfd: impl AsFd) {
    let one = 1u64.to_ne_bytes();
    let fd = eventfd.as_fd().as_raw_fd();
    // SAFETY: the buffer is eight readable bytes. If the counter is full, its reader has been
    // woken.
    unsafe { libc::write(fd, one.as_ptr().cast(), one.len()) };
}

/// Gives the calling thread its own file-descriptor table, with copies of what is open now.
pub fn unshare_files() -> io::Result<()> {
    // SAFETY: only the calling thread's table changes.
    check(unsafe { libc::unshare(libc::CLONE_FILES) }).map(drop)
}

/// Pins the calling thread to the `index`-th of the cores that it may run on.
pub fn pin_to_core(index: usize) -> io::Result<()> {
    // SAFETY: all-zero is an empty set.
    let mut allowed: libc::cpu_set_t = unsafe { mem::zeroed() };
    let bytes = size_of::<libc::cpu_set_t>();
    // SAFETY: the set is writable and has the stated length.
    check(unsafe { libc::sched_getaffinity(0, bytes, &mut allowed) })?;
    let cores: Vec<usize> = (0..8 * bytes)
        // SAFETY: every index is below the set's size.
        .filter(|&core| unsafe { libc::CPU_ISSET(core, &allowed) })
        .collect();
    let Some(&core) = cores.get(index % cores.len().max(1)) else { return Ok(()) };
    // SAFETY: all-zero is an empty set.
    let mut wanted: libc::cpu_set_t = unsafe { mem::zeroed() };
    // SAFETY: the core comes from a set, so it is below the set's size.
    unsafe { libc::CPU_SET(core, &mut wanted) };
    // SAFETY: the set is readable and has the stated length.
    check(unsafe { libc::sched_setaffinity(0, bytes, &wanted) }).map(drop)
}

/// The kernel's `struct sched_attr`, with the length of its first version.
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

/// Requests this time slice for the calling thread instead of the scheduler's default (about 3 ms):
/// it runs sooner after a wake-up, and more often for less time. Its share stays the same. Has no
/// effect before Linux 6.12.
pub fn ask_for_slices_of(slice_ns: u64) -> io::Result<()> {
    let size = size_of::<SchedAttr>() as u32;
    let mut attr = SchedAttr { size, ..SchedAttr::default() };
    // SAFETY: the structure is writable and has the stated length; 0 is the calling thread.
    let read = unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &mut attr, size, 0) };
    check(read as i32)?;
    attr.runtime_ns = slice_ns;
    // SAFETY: the structure is readable and states its length; 0 is the calling thread.
    check(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &attr, 0) } as i32).map(drop)
}

/// A signal that the process handles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    Terminate,
    Interrupt,
    /// SIGUSR1: reopen files.
    Reopen,
    /// SIGHUP: the same, or the terminal is gone.
    HangUp,
}

impl Signal {
    fn number(self) -> libc::c_int {
        match self {
            Self::Terminate => libc::SIGTERM,
            Self::Interrupt => libc::SIGINT,
            Self::Reopen => libc::SIGUSR1,
            Self::HangUp => libc::SIGHUP,
        }
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Terminate => "SIGTERM",
            Self::Interrupt => "SIGINT",
            Self::Reopen => "SIGUSR1",
            Self::HangUp => "SIGHUP",
        })
    }
}

/// Blocks signals so that they do not end the process; [`wait_for_signal`] takes them. SIGXFSZ
/// stays blocked: a write to a file that may not grow then fails with an error. SIGUSR2 is ignored.
/// Must be called before any other thread exists, so that all inherit the mask.
pub fn block_signals() -> io::Result<()> {
    // SAFETY: no handler is installed.
    unsafe { libc::signal(libc::SIGUSR2, libc::SIG_IGN) };
    let mut set = awaited_signals();
    // SAFETY: the set is initialised.
    unsafe { libc::sigaddset(&mut set, libc::SIGXFSZ) };
    // SAFETY: the set is initialised; the old mask is not requested.
    match unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

/// Blocks the signals that end no node, SIGHUP and SIGUSR1: while it reads its configuration they
/// would. They are taken once it runs. The others still end a start that hangs.
pub fn block_requests() -> io::Result<()> {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigemptyset initialises the set before anything reads it; the old mask is not
    // requested.
    let result = unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), libc::SIGHUP);
        libc::sigaddset(set.as_mut_ptr(), libc::SIGUSR1);
        libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), std::ptr::null_mut())
    };
    match result {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

/// Waits for the next signal.
pub fn wait_for_signal() -> io::Result<Signal> {
    let set = awaited_signals();
    let mut signal = 0;
    // SAFETY: both point to initialised memory in this frame.
    match unsafe { libc::sigwait(&set, &mut signal) } {
        0 if signal == libc::SIGUSR1 => Ok(Signal::Reopen),
        0 if signal == libc::SIGHUP => Ok(Signal::HangUp),
        0 if signal == libc::SIGINT => Ok(Signal::Interrupt),
        0 => Ok(Signal::Terminate),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

/// Drops pending signals of this kind.
pub fn drop_pending(signal: Signal) {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    let at_once = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: sigemptyset initialises the set before anything reads it; the time is readable.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), signal.number());
        libc::sigtimedwait(set.as_ptr(), std::ptr::null_mut(), &at_once);
    }
}

/// Returns the signals to wait for. SIGINT is left out if the parent had it ignored: a shell does
/// that for background jobs, so that Ctrl-C does not reach them. A blocked signal would be received
/// nevertheless.
fn awaited_signals() -> libc::sigset_t {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigemptyset initialises the set before anything reads it.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), libc::SIGTERM);
        libc::sigaddset(set.as_mut_ptr(), libc::SIGUSR1);
        libc::sigaddset(set.as_mut_ptr(), libc::SIGHUP);
        if !is_ignored(libc::SIGINT) {
            libc::sigaddset(set.as_mut_ptr(), libc::SIGINT);
        }
        set.assume_init()
    }
}

/// Returns whether the parent had this signal ignored, as nohup does with SIGHUP.
pub fn ignores(signal: Signal) -> bool {
    is_ignored(signal.number())
}

fn is_ignored(signal: libc::c_int) -> bool {
    // SAFETY: all-zero is a valid sigaction.
    let mut action: libc::sigaction = unsafe { mem::zeroed() };
    // SAFETY: nothing is installed; the old action is writable.
    unsafe { libc::sigaction(signal, std::ptr::null(), &mut action) };
    action.sa_sigaction == libc::SIG_IGN
}

/// Lowers the calling thread's priority, so that busier threads run first.
pub fn give_way() {
    // SAFETY: no memory is involved. On Linux, 0 means the calling thread alone.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 10) };
}

/// Turns transparent huge pages off for this process: with them, mimalloc's arenas made a
/// connection of 134 bytes take 551.
extern "C" fn disable_huge_pages() {
    // SAFETY: no memory is involved.
    unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0) };
}

/// Runs before `main`, which starts after the first allocation: by then that already had 4 MB of
/// huge pages.
#[used]
// SAFETY: the section holds functions that the loader calls; this one only enters the kernel, so it
// needs nothing that is not initialised yet.
#[unsafe(link_section = ".init_array.00099")]
static AT_LOAD: extern "C" fn() = disable_huge_pages;

/// Returns the soft limit of open files. Asks the kernel without opening a file.
pub fn open_files() -> io::Result<u64> {
    limit_of_open_files().map(|limit| limit.rlim_cur)
}

fn limit_of_open_files() -> io::Result<libc::rlimit> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the struct is writable.
    check(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) })?;
    Ok(limit)
}

/// Raises the soft limit of open files to the hard one and returns it.
pub fn raise_open_files() -> io::Result<u64> {
    let mut limit = limit_of_open_files()?;
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: the struct is readable.
    check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) })?;
    Ok(limit.rlim_max)
}

/// What the kernel knows about the wall clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClockState {
    /// A time service sets it.
    pub is_synchronised: bool,
    pub max_error_us: i64,
}

pub fn clock_state() -> io::Result<ClockState> {
    // SAFETY: all-zero is a valid timex, which changes nothing.
    let mut time: libc::timex = unsafe { mem::zeroed() };
    // SAFETY: the struct is writable.
    let state = check(unsafe { libc::adjtimex(&mut time) })?;
    let is_synchronised = state != libc::TIME_ERROR && time.status & libc::STA_UNSYNC == 0;
    Ok(ClockState { is_synchronised, max_error_us: time.maxerror })
}

/// Returns whether the peer has ended at least its side of a connection, or is gone.
pub fn has_peer_ended(socket: impl AsFd) -> bool {
    let fd = socket.as_fd().as_raw_fd();
    let mut asked = libc::pollfd { fd, events: libc::POLLRDHUP, revents: 0 };
    // SAFETY: one writable entry; the timeout is 0.
    unsafe { libc::poll(&mut asked, 1, 0) > 0 }
}

/// Returns the peer's address.
pub fn peer_address(socket: impl AsFd) -> Option<SocketAddr> {
    SockRef::from(&socket).peer_addr().ok()?.as_socket()
}

/// Returns the calling thread's id, as in `/proc/self/task`.
pub fn thread_id() -> i32 {
    // SAFETY: no memory is involved.
    unsafe { libc::gettid() }
}

/// Lowers the calling thread's priority so that on busy cores it gets about a tenth of one: others
/// hardly wait for it, and it still finishes.
pub fn yield_to_others() {
    let (this_thread, niceness) = (0, 10);
    // SAFETY: no memory is involved. If the call fails, the thread continues as before.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, this_thread, niceness) };
}
