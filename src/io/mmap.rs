//! Memory that is shared with the kernel.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::{self, NonNull};

/// A shared mapping, unmapped on drop.
#[derive(Debug)]
pub struct Mmap {
    start: NonNull<u8>,
    bytes: usize,
}

impl Mmap {
    /// Maps what the descriptor shares with the kernel, for reading and writing.
    pub fn shared(fd: &OwnedFd, bytes: usize) -> io::Result<Self> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let (place, fd) = (ptr::null_mut(), fd.as_raw_fd());
        // SAFETY: the kernel chooses an address range that nothing else uses.
        let start = unsafe { libc::mmap(place, bytes, protection, libc::MAP_SHARED, fd, 0) };
        match NonNull::new(start.cast::<u8>()) {
            Some(place) if start != libc::MAP_FAILED => Ok(Self { start: place, bytes }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    pub fn start(&self) -> *const u8 {
        self.start.as_ptr()
    }

    pub fn len(&self) -> usize {
        self.bytes
    }

    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }
}

impl Drop for Mmap {
    fn drop(&mut self) {
        // SAFETY: `shared` made the mapping with this length, and all borrows of it have ended.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}
