//! What mimalloc, the allocator of the `ws-cluster` program, says of itself.

use libmimalloc_sys::{mi_option_set, mi_option_t, mi_process_info, mi_stats_print_out};
use std::ffi::{CStr, c_char, c_long, c_void};
use std::ptr;

/// What the process has taken from the system.
#[derive(Debug, Clone, Copy, Default)]
pub struct Process {
    /// The most memory that was ever in use.
    pub resident_bytes_peak: usize,
    /// What the allocator may use without asking again, whether it was touched or not.
    pub committed_bytes: usize,
    pub committed_bytes_peak: usize,
}

/// How long free memory is kept, in milliseconds. The bindings do not name this option.
const PURGE_DELAY: mi_option_t = 15;
const NEVER_MS: c_long = i32::MAX as c_long;

/// A thread keeps the last free page of each size class for a number of collects. For blocks of
/// about 10 KiB and more, whose pages have up to 4 MiB, this is that number; small pages are kept.
const COLLECTS: usize = 4;

pub fn process() -> Process {
    let mut process = Process::default();
    let unasked = ptr::null_mut();
    // SAFETY: each is null, which is allowed, or points to a writable number of this frame.
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

/// From now on only [`purge`] gives memory back to the system. Otherwise the first thread that
/// frees a page a second after another page was freed does so, for all threads.
pub fn purge_only_when_asked() {
    // SAFETY: it sets a number.
    unsafe { mi_option_set(PURGE_DELAY, NEVER_MS) };
}

/// Makes what the calling thread has freed available to all threads, and to [`purge`].
pub fn collect() {
    for _ in 0..COLLECTS {
        // SAFETY: no memory is involved that anybody uses.
        unsafe { libmimalloc_sys::mi_collect(false) };
    }
}

/// Gives free memory back to the system. It takes up to 70 ms for 100 MB, so it is not for a thread
/// that others wait for.
pub fn purge() {
    // SAFETY: no memory is involved that anybody uses.
    unsafe { libmimalloc_sys::mi_collect(true) };
}

/// The allocator's own statistics, as text.
pub fn statistics() -> String {
    let mut text = String::new();
    let out: *mut String = &mut text;
    // SAFETY: `append` is called before this returns, on this thread, with `text` behind the
    // pointer, which nothing else uses meanwhile.
    unsafe { mi_stats_print_out(Some(append), out.cast()) };
    text
}

extern "C" fn append(piece: *const c_char, out: *mut c_void) {
    if piece.is_null() {
        return;
    }
    // SAFETY: mimalloc hands over a text that ends with a NUL.
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
        // SAFETY: it reads a number.
        let delay_ms = || unsafe { libmimalloc_sys::mi_option_get(PURGE_DELAY) };
        assert_eq!(delay_ms(), 1_000, "mimalloc's default");
        purge_only_when_asked();
        assert_eq!(delay_ms(), NEVER_MS);
    }

    #[test]
    fn it_tells_what_it_has() {
        assert!(process().resident_bytes_peak > 0);
        // It is not the tests' allocator, and has nothing to tell before its first use.
        drop(statistics());
        assert!(statistics().contains("committed"), "{}", statistics());
    }
}
