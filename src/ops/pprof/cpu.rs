//! Samples the stacks of all threads for a given time. Call it on a separate thread.

use super::records::{Record, records};
use crate::io::perf::{Depth, Sampler};
use crate::io::{clock, sys};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};
use std::{fs, io, thread};

/// Samples per second of a thread's running time: a prime, so that periodic work with a period of
/// whole milliseconds is neither always hit nor always missed.
pub const RATE_HZ: u64 = 199;
/// CPU time between two samples.
pub const PERIOD_NS: u64 = 1_000_000_000 / RATE_HZ;
/// Interval at which the rings are read; they have room for at least six times as long.
const DRAIN_EVERY: Duration = Duration::from_millis(100);

/// What was recorded.
#[derive(Debug)]
pub struct Recording {
    /// Names of the sampled threads.
    pub threads: Vec<String>,
    /// Number of samples of each stack, innermost address first, by thread (index into `threads`).
    pub stacks: HashMap<(usize, Vec<u64>), u64>,
    /// Samples lost because the ring was full.
    pub lost: u64,
    pub depth: Depth,
    /// Nanoseconds since 1970.
    pub began_ns: u64,
    pub lasted: Duration,
}

/// Why there is no [`Recording`].
#[derive(Debug, thiserror::Error)]
pub enum CpuError {
    /// The client has disconnected.
    #[error("its client has disconnected")]
    Cancelled,
    /// The kernel does not let this process profile itself.
    #[error("perf_event_open is refused ({0})")]
    Refused(io::Error),
    #[error("{what} failed: {error}")]
    System { what: &'static str, error: io::Error },
}

/// Samples every thread of this process except the calling one, for `length` or until cancelled.
/// Threads started meanwhile are not sampled.
pub fn record(length: Duration, is_cancelled: &AtomicBool) -> Result<Recording, CpuError> {
    let (depth, mut samplers) = open_all()?;
    let began_ns = clock::wall_us() * 1_000;
    let began = Instant::now();
    for (_, sampler) in &samplers {
        sampler.start().map_err(|error| CpuError::System { what: "starting a sampler", error })?;
    }
    let mut seen = Seen::default();
    while began.elapsed() < length && !is_cancelled.load(Relaxed) {
        thread::sleep(DRAIN_EVERY.min(length.saturating_sub(began.elapsed())));
        seen.take(&mut samplers);
    }
    if is_cancelled.load(Relaxed) {
        return Err(CpuError::Cancelled);
    }
    let lasted = began.elapsed();
    // Records written after this are not read: a sampler ends when it is dropped.
    samplers.iter().for_each(|(_, sampler)| drop(sampler.stop()));
    seen.take(&mut samplers);
    let threads = samplers.into_iter().map(|(name, _)| name).collect();
    Ok(Recording { threads, stacks: seen.stacks, lost: seen.lost, depth, began_ns, lasted })
}

/// Opens a sampler for each thread, with its name, and with kernel stacks if permitted.
fn open_all() -> Result<(Depth, Vec<(String, Sampler)>), CpuError> {
    let threads = threads().map_err(|error| CpuError::System { what: "/proc/self/task", error })?;
    let mut depth = Depth::Kernel;
    let mut samplers = Vec::with_capacity(threads.len());
    for (id, name) in threads {
        let mut opened = Sampler::open(id, PERIOD_NS, depth);
        if depth == Depth::Kernel && opened.as_ref().is_err_and(is_refusal) {
            depth = Depth::User;
            opened = Sampler::open(id, PERIOD_NS, depth);
        }
        match opened {
            Ok(sampler) => samplers.push((name, sampler)),
            Err(error) if is_gone(&error) => {}
            Err(error) if is_refusal(&error) => return Err(CpuError::Refused(error)),
            Err(error) => return Err(CpuError::System { what: "perf_event_open", error }),
        }
    }
    Ok((depth, samplers))
}

/// Returns the process's threads except the calling one, with their names.
fn threads() -> io::Result<Vec<(i32, String)>> {
    let own = sys::thread_id();
    let mut threads = Vec::new();
    for entry in fs::read_dir("/proc/self/task")? {
        let entry = entry?;
        let id = entry.file_name().to_str().and_then(|name| name.parse().ok());
        let Some(id) = id.filter(|&id| id != own) else { continue };
        // A thread that has ended has no name, and the sampler will not find it either.
        let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        threads.push((id, name.trim_end().into()));
    }
    Ok(threads)
}

/// Returns whether permission is missing, a system call filter refuses it, or the kernel lacks the
/// call.
fn is_refusal(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::Unsupported)
}

fn is_gone(error: &io::Error) -> bool {
    // ESRCH has no `ErrorKind`.
    error.raw_os_error() == Some(3)
}

#[derive(Default)]
struct Seen {
    stacks: HashMap<(usize, Vec<u64>), u64>,
    lost: u64,
    buffer: Vec<u8>,
}

impl Seen {
    fn take(&mut self, samplers: &mut [(String, Sampler)]) {
        for (thread, (_, sampler)) in samplers.iter_mut().enumerate() {
            self.buffer.clear();
            sampler.drain(&mut self.buffer);
            for record in records(&self.buffer) {
                match record {
                    Record::Stack(stack) => *self.stacks.entry((thread, stack)).or_default() += 1,
                    Record::Lost(count) => self.lost += count,
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn all_threads_but_the_calling_one_are_listed() {
        let (own, all) = thread::Builder::new()
            .name("lister".into())
            .spawn(|| (sys::thread_id(), threads().unwrap()))
            .unwrap()
            .join()
            .unwrap();
        assert!(!all.is_empty() && all.iter().all(|(id, name)| *id != own && name != "lister"));
    }

    #[test]
    fn a_recording_ends_when_it_is_cancelled() {
        let is_cancelled = Arc::new(AtomicBool::new(false));
        let began = Instant::now();
        let other = Arc::clone(&is_cancelled);
        let recording = thread::spawn(move || record(Duration::from_secs(300), &other));
        thread::sleep(Duration::from_millis(50));
        is_cancelled.store(true, Relaxed);
        let error = recording.join().unwrap().unwrap_err();
        assert!(matches!(error, CpuError::Cancelled | CpuError::Refused(_)), "{error}");
        assert!(began.elapsed() < Duration::from_secs(60));
    }
}
