//! `perf_event_open(2)`: stacks of other threads of this process, sampled by the kernel's timer.
//!
//! No signal is sent and nothing runs in the sampled threads: the kernel writes into a ring buffer,
//! which the owner of the [`Sampler`] reads. (A profiler with signal handlers would run in the
//! workers and use descriptors there. Each worker has its own descriptor table, so the same number
//! means another file.)

use super::mmap::Mmap;
use super::sys;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

/// Room for records: 600 ms at the maximum of 199 samples a second with 127 frames each.
const RING_BYTES: usize = 128 << 10;

// linux/perf_event.h.
const TYPE_SOFTWARE: u32 = 1;
const COUNT_CPU_CLOCK: u64 = 0;
const SAMPLE_CALLCHAIN: u64 = 1 << 5;
const FLAG_DISABLED: u64 = 1 << 0;
const FLAG_EXCLUDE_KERNEL: u64 = 1 << 5;
const FLAG_EXCLUDE_HYPERVISOR: u64 = 1 << 6;
const OPEN_CLOEXEC: libc::c_ulong = 1 << 3;
const IOCTL_ENABLE: libc::c_ulong = 0x2400;
const IOCTL_DISABLE: libc::c_ulong = 0x2401;
/// Offsets of the two ring positions in the control page.
const HEAD_AT: usize = 1024;
const TAIL_AT: usize = 1032;

/// `struct perf_event_attr` in its first version (`PERF_ATTR_SIZE_VER0`), which has all that is
/// needed here.
#[repr(C)]
struct Attributes {
    kind: u32,
    size: u32,
    config: u64,
    sample_period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup_events: u32,
    breakpoint_type: u32,
    breakpoint_address: u64,
}

/// Which part of a thread's stack is sampled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// The thread's own code and the kernel's on its behalf. Needs a privilege that not every
    /// process has.
    Kernel,
    /// The thread's own code. Time spent in system calls is not visible.
    User,
}

/// Samples the stacks of one thread while it runs. Call [`Sampler::start`] once, then
/// [`Sampler::drain`] about every 100 ms, and at the end [`Sampler::stop`] and `drain` once more.
#[derive(Debug)]
pub struct Sampler {
    event: OwnedFd,
    ring: Mmap,
    page_bytes: usize,
}

impl Sampler {
    /// Opens a sampler without starting it. `period_ns` is in CPU time of the thread.
    ///
    /// Fails with `PermissionDenied` or `Unsupported` where the machine does not allow it (EACCES,
    /// EPERM, ENOSYS), and with `ESRCH` if there is no such thread (any more).
    pub fn open(thread: i32, period_ns: u64, depth: Depth) -> io::Result<Self> {
        let excluded = if depth == Depth::User { FLAG_EXCLUDE_KERNEL } else { 0 };
        let attributes = Attributes {
            kind: TYPE_SOFTWARE,
            size: size_of::<Attributes>() as u32,
            config: COUNT_CPU_CLOCK,
            sample_period: period_ns,
            sample_type: SAMPLE_CALLCHAIN,
            read_format: 0,
            flags: FLAG_DISABLED | FLAG_EXCLUDE_HYPERVISOR | excluded,
            wakeup_events: 0,
            breakpoint_type: 0,
            breakpoint_address: 0,
        };
        let (any_core, no_group): (libc::c_int, libc::c_int) = (-1, -1);
        // SAFETY: the attributes outlive the call and state their own length.
        let event = unsafe {
            libc::syscall(
                libc::SYS_perf_event_open,
                &raw const attributes,
                thread,
                any_core,
                no_group,
                OPEN_CLOEXEC,
            )
        };
        if event < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: perf_event_open returned a new descriptor that nothing else owns.
        let event = unsafe { OwnedFd::from_raw_fd(event as libc::c_int) };
        let page_bytes = sys::page_bytes();
        let ring = Mmap::shared(&event, page_bytes + RING_BYTES.max(page_bytes));
        Ok(Self { event, ring: ring.map_err(|error| no_ring(&error))?, page_bytes })
    }

    pub fn start(&self) -> io::Result<()> {
        self.control(IOCTL_ENABLE)
    }

    pub fn stop(&self) -> io::Result<()> {
        self.control(IOCTL_DISABLE)
    }

    fn control(&self, what: libc::c_ulong) -> io::Result<()> {
        // SAFETY: neither request takes a pointer.
        match unsafe { libc::ioctl(self.event.as_raw_fd(), what as _, 0) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Appends the records written since the last call, complete ones only, each laid out as
    /// perf_event_open(2) describes under "MMAP layout".
    pub fn drain(&mut self, records: &mut Vec<u8>) {
        // Acquire: everything before the head has been written. Only this side moves the tail.
        let head = self.position(HEAD_AT).load(Ordering::Acquire);
        let tail = self.position(TAIL_AT).load(Ordering::Relaxed);
        let capacity = self.ring.len() - self.page_bytes;
        let fresh = (head.wrapping_sub(tail) as usize).min(capacity);
        let from = tail as usize % capacity;
        let to_end = fresh.min(capacity - from);
        self.copy(from, to_end, records);
        self.copy(0, fresh - to_end, records);
        // Release: the space is given back only after it has been copied.
        self.position(TAIL_AT).store(head, Ordering::Release);
    }

    fn position(&self, at: usize) -> &AtomicU64 {
        // SAFETY: the control page holds an aligned u64 at this offset, the kernel and this thread
        // access it atomically as a whole, and the mapping lives as long as `self`.
        unsafe { &*self.ring.start().add(at).cast::<AtomicU64>() }
    }

    fn copy(&self, from: usize, length: usize, records: &mut Vec<u8>) {
        debug_assert!(self.page_bytes + from + length <= self.ring.len());
        records.reserve(length);
        // SAFETY: the source lies inside the mapping, between tail and head, where the kernel does
        // not write; the destination behind the vector's end has just been reserved, and the copy
        // initialises it before the length includes it.
        unsafe {
            let source = self.ring.start().add(self.page_bytes + from);
            let end = records.as_mut_ptr().add(records.len());
            std::ptr::copy_nonoverlapping(source, end, length);
            records.set_len(records.len() + length);
        }
    }
}

/// Rewraps the error: the ring was refused, not the event, and callers must not confuse the two.
fn no_ring(error: &io::Error) -> io::Error {
    io::Error::other(format!(
        "no memory for its buffer ({error}): raise kernel.perf_event_mlock_kb or the limit of \
         locked memory"
    ))
}

#[cfg(test)]
mod tests {
    use super::super::sys;
    use super::*;
    use std::sync::atomic::AtomicBool;
    use std::sync::atomic::Ordering::Relaxed;
    use std::sync::mpsc;
    use std::thread;
    use std::time::{Duration, Instant};

    #[test]
    fn a_busy_thread_is_sampled() {
        static OVER: AtomicBool = AtomicBool::new(false);
        let (name, named) = mpsc::channel();
        let busy = thread::spawn(move || {
            name.send(sys::thread_id()).unwrap();
            while !OVER.load(Relaxed) {
                std::hint::spin_loop();
            }
        });
        let opened = Sampler::open(named.recv().unwrap(), 1_000_000, Depth::User);
        let mut sampler = match opened {
            Ok(sampler) => sampler,
            // The machine forbids it: nothing to test.
            Err(_) => return OVER.store(true, Relaxed),
        };
        let mut records = Vec::new();
        sampler.drain(&mut records);
        assert!(records.is_empty(), "not started");
        sampler.start().unwrap();
        let patience = Instant::now() + Duration::from_secs(10);
        while records.len() < 100 * 24 && Instant::now() < patience {
            thread::sleep(Duration::from_millis(10));
            sampler.drain(&mut records);
        }
        sampler.stop().unwrap();
        OVER.store(true, Relaxed);
        busy.join().unwrap();
        assert!(records.len() >= 100 * 24);
        // Complete records, one behind the other, also where the ring wrapped around.
        let mut rest = &records[..];
        while !rest.is_empty() {
            let length = usize::from(u16::from_ne_bytes([rest[6], rest[7]]));
            assert!(length >= 24 && length % 8 == 0);
            rest = &rest[length..];
        }
    }

    #[test]
    fn a_thread_that_is_gone_is_an_error() {
        let gone = thread::spawn(sys::thread_id).join().unwrap();
        assert!(Sampler::open(gone, 1_000_000, Depth::User).is_err());
    }
}
