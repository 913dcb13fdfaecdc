//! Statistics and settings of mimalloc, the allocator of the `ws-cluster` program.

use libmimalloc_sys::{mi_option_set, mi_option_t, mi_process_info, mi_stats_print_out};
use std::ffi::{CStr, c_char, c_long, c_void};
use std::ptr;

/// Memory that the process has obtained from the system.
#[derive(Debug, Clone, Copy, Default)]
pub struct Process {
    /// Peak memory in use.
    pub resident_bytes_peak: usize,
    /// Memory that the allocator may use without asking the system again, touched or not.
    pub committed_bytes: usize,
    pub committed_bytes_peak: usize,
}

/// Option: how long free memory is kept, in milliseconds. The bindings do not name it.
const PURGE_DELAY: mi_option_t = 15;
const NEVER_MS: c_long = i32::MAX as c_long;

/// Number of collects for which a thread keeps the last free page of each size class. This applies
/// to blocks of about 10 KiB and more, whose pages have up to 4 MiB; small pages are kept.
const COLLECTS: usize = 4;

pub fn process() -> Process {
    let mut process = Process::default();
    let unasked = ptr::null_mut();
    // SAFETY: each pointer is null, which is allowed, or points to a writable number in this frame.
    unsafe {
        mi_process_info(
            unasked,
            unasked,
            unasked,
            unasked,
            &mut process.resident_bytes_peak,
            &mut process.committed_bytes,
            &mut process.committed_bytes_peak,
            unasked,
        );
    }
    process
}

/// Makes [`purge`] the only way to return memory to the system. By default, the first thread that
/// frees a page more than a second after another page was freed does so, on behalf of all threads.
pub fn purge_only_when_asked() {
    // SAFETY: it only sets a number.
    unsafe { mi_option_set(PURGE_DELAY, NEVER_MS) };
}

/// Makes memory freed by the calling thread available to all threads and to [`purge`].
pub fn collect() {
    for _ in 0..COLLECTS {
        // SAFETY: it touches no memory that is in use.
        unsafe { libmimalloc_sys::mi_collect(false) };
    }
}

/// Returns free memory to the system. This takes up to 70 ms for 100 MB, so do not call it on a
/// thread that others wait for.
pub fn purge() {
    // SAFETY: it touches no memory that is in use.
    unsafe { libmimalloc_sys::mi_collect(true) };
}

/// Returns the allocator's own statistics as text.
pub fn statistics() -> String {
    let mut text = String::new();
    let out: *mut String = &mut text;
    // SAFETY: `append` is called only before this returns and on this thread; the pointer it gets
    // is `text`, which nothing else uses in the meantime.
    unsafe { mi_stats_print_out(Some(append), out.cast()) };
    text
}

extern "C" fn append(piece: *const c_char, out: *mut c_void) {
    if piece.is_null() {
        return;
    }
    // SAFETY: mimalloc passes a NUL-terminated string.
    let piece = unsafe { CStr::from_ptr(piece) };
    // SAFETY: `statistics` passed a String that lives until mimalloc returns.
    let out = unsafe { &mut *out.cast::<String>() };
    out.push_str(&piece.to_string_lossy());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_purge_delay_has_this_number() {
        // SAFETY: it only reads a number.
        let delay_ms = || unsafe { libmimalloc_sys::mi_option_get(PURGE_DELAY) };
        assert_eq!(delay_ms(), 1_000, "mimalloc's default");
        purge_only_when_asked();
        assert_eq!(delay_ms(), NEVER_MS);
    }

    #[test]
    fn it_tells_what_it_has() {
        assert!(process().resident_bytes_peak > 0);
        // It is not the tests' allocator and has no statistics before its first use.
        drop(statistics());
        assert!(statistics().contains("committed"), "{}", statistics());
    }
}
