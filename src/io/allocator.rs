//! What mimalloc, the allocator of the `ws-cluster` program, says of itself.

use libmimalloc_sys::{mi_process_info, mi_stats_print_out};
use std::ffi::{CStr, c_char, c_void};
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

/// Makes what the calling thread has freed available to all threads, and to [`purge`].
pub fn collect() {
    // SAFETY: no memory is involved that anybody uses.
    unsafe { libmimalloc_sys::mi_collect(false) };
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
    fn it_tells_what_it_has() {
        assert!(process().resident_bytes_peak > 0);
        // It is not the tests' allocator, and has nothing to tell before its first use.
        drop(statistics());
        assert!(statistics().contains("committed"), "{}", statistics());
    }
}
