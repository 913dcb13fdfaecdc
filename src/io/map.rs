//! Memory that stands for something else: a ring that is shared with the kernel, or a file.

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::ptr::{self, NonNull};

/// Such memory, until this is dropped.
#[derive(Debug)]
pub struct Map {
    start: NonNull<u8>,
    bytes: usize,
}

impl Map {
    /// What the descriptor shares with the kernel, to be read and written.
    pub fn shared(fd: &OwnedFd, bytes: usize) -> io::Result<Self> {
        Self::new(fd.as_raw_fd(), bytes, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED)
    }

    fn new(fd: RawFd, bytes: usize, protection: i32, kind: i32) -> io::Result<Self> {
        // SAFETY: the kernel chooses a place that nothing else uses.
        let start = unsafe { libc::mmap(ptr::null_mut(), bytes, protection, kind, fd, 0) };
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

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: `new` made the mapping, of that length, and whoever borrowed from it is gone.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}

/// A program or a library, to be read where it lies in the page cache.
#[derive(Debug)]
pub struct MappedFile(Map);

impl MappedFile {
    /// The file must be one of which this process has code in memory: the kernel forbids to write
    /// to a program that runs, and whoever writes over a library ends all that have it in use, with
    /// or without this.
    pub fn open(file: &File) -> io::Result<Self> {
        let bytes = file.metadata()?.len() as usize;
        Map::new(file.as_raw_fd(), bytes, libc::PROT_READ, libc::MAP_PRIVATE).map(Self)
    }
}

impl Deref for MappedFile {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: all of it is readable and lives as long as `self`; nobody writes to it, as
        // `open` demands.
        unsafe { std::slice::from_raw_parts(self.0.start(), self.0.len()) }
    }
}
