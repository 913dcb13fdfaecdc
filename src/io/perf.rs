//! `perf_event_open(2)`: stacks of other threads of this process, taken by the kernel's timer.
//!
//! No signal is sent and nothing runs in the sampled threads: the kernel writes into a ring of
//! memory, which whoever holds the [`Sampler`] reads. (A profiler with signal handlers would run in
//! the workers, and would use descriptors there, where numbers mean other things: each worker has
//! a table of its own.)

use super::map::Map;
use super::sys;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

/// Room for records: at 199 samples a second of 127 frames, the most there can be, for 600 ms.
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
/// Where the ring's page of control has its two positions.
const HEAD_AT: usize = 1024;
const TAIL_AT: usize = 1032;

/// `struct perf_event_attr` as it was first (`PERF_ATTR_SIZE_VER0`): all that is needed here.
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

/// What is sampled of a thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// The thread's own code and the kernel's on its behalf; needs a right that not all have.
    Kernel,
    /// The thread's own code. Time in system calls is not seen.
    User,
}

/// Takes the stacks of one thread while that runs. Call [`Sampler::start`] once, then
/// [`Sampler::drain`] every 100 ms or so, [`Sampler::stop`] and `drain` again.
#[derive(Debug)]
pub struct Sampler {
    event: OwnedFd,
    ring: Map,
    page_bytes: usize,
}

impl Sampler {
    /// Begins nothing yet. `period_ns`: of the thread's time on a core.
    ///
    /// `PermissionDenied` and `Unsupported` where the machine does not allow it (EACCES, EPERM,
    /// ENOSYS), `ESRCH` where there is no such thread (any more).
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
        // SAFETY: the attributes live through the call and say how long they are.
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
        let ring = Map::shared(&event, page_bytes + RING_BYTES.max(page_bytes));
        Ok(Self { event, ring: ring.map_err(|error| no_ring(&error))?, page_bytes })
    }

    pub fn start(&self) -> io::Result<()> {
        self.control(IOCTL_ENABLE)
    }

    pub fn stop(&self) -> io::Result<()> {
        self.control(IOCTL_DISABLE)
    }

    fn control(&self, what: libc::c_ulong) -> io::Result<()> {
        // SAFETY: these two take no memory.
        match unsafe { libc::ioctl(self.event.as_raw_fd(), what as _, 0) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Appends the records that have come since the last call, whole ones, each as
    /// perf_event_open(2) lays it out under "MMAP layout".
    pub fn drain(&mut self, records: &mut Vec<u8>) {
        // Acquire: what stands before the head has been written. Only this side moves the tail.
        let head = self.position(HEAD_AT).load(Ordering::Acquire);
        let tail = self.position(TAIL_AT).load(Ordering::Relaxed);
        let capacity = self.ring.len() - self.page_bytes;
        let fresh = (head.wrapping_sub(tail) as usize).min(capacity);
        let from = tail as usize % capacity;
        let to_end = fresh.min(capacity - from);
        self.copy(from, to_end, records);
        self.copy(0, fresh - to_end, records);
        // Release: the room is given back only after it has been copied.
        self.position(TAIL_AT).store(head, Ordering::Release);
    }

    fn position(&self, at: usize) -> &AtomicU64 {
        // SAFETY: the control page holds an aligned u64 there, the kernel and this thread access
        // it as a whole, and the mapping lives as long as `self`.
        unsafe { &*self.ring.start().add(at).cast::<AtomicU64>() }
    }

    fn copy(&self, from: usize, length: usize, records: &mut Vec<u8>) {
        debug_assert!(self.page_bytes + from + length <= self.ring.len());
        records.reserve(length);
        // SAFETY: the source is inside the mapping, between tail and head, where the kernel does
        // not write; the room behind the vector's end has just been reserved, and is initialised
        // by the copy before it counts.
        unsafe {
            let source = self.ring.start().add(self.page_bytes + from);
            let end = records.as_mut_ptr().add(records.len());
            std::ptr::copy_nonoverlapping(source, end, length);
            records.set_len(records.len() + length);
        }
    }
}

/// Refused for another reason than the event: it is not to be taken for one.
fn no_ring(error: &io::Error) -> io::Error {
    io::Error::other(format!(
        "no memory for what it writes ({error}): raise kernel.perf_event_mlock_kb, or the limit of \
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
            // A machine that forbids it: nothing to see.
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
        // Whole records, one behind the other, also where the ring began anew.
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
