//! Metrics of the process and its threads, read from `/proc` on request: they cost the workers
//! nothing.

use super::Samples;
use crate::io::shared::Shared;
use crate::io::sys;
use std::fs;
use std::path::{Path, PathBuf};

/// CPU time by thread. Threads of the same name, such as a library's, cannot be told apart and are
/// summed.
pub(super) fn busy(_: &Shared, samples: &mut Samples) {
    let mut threads: Vec<(String, u64)> = Vec::new();
    for (_, name, busy_ns) in tasks() {
        match threads.iter_mut().find(|thread| thread.0 == name) {
            Some(thread) => thread.1 += busy_ns,
            None => threads.push((name, busy_ns)),
        }
    }
    for (name, busy_ns) in threads {
        samples.add_f64(vec![("thread", name)], busy_ns as f64 / 1e9);
    }
}

/// Not the sum over the threads: threads that have ended count, too.
pub(super) fn cpu_s() -> f64 {
    sys::process_cpu_ns() as f64 / 1e9
}

pub(super) fn threads() -> u64 {
    tasks().count() as u64
}

/// Open descriptors in the tables of all threads.
pub(super) fn open_files() -> u64 {
    tasks().map(|(path, _, _)| files(&path.join("fd"))).sum()
}

/// Returns the bytes of address space and of resident memory.
pub(in crate::ops) fn memory() -> [u64; 2] {
    let page_bytes = sys::page_bytes() as u64;
    let pages = fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let mut bytes = pages.split(' ').map_while(|pages| pages.parse::<u64>().ok());
    [(); 2].map(|()| page_bytes * bytes.next().unwrap_or(0))
}

/// Returns each thread's directory in `/proc`, its name, and the nanoseconds of CPU time that it
/// has used.
pub(in crate::ops) fn tasks() -> impl Iterator<Item = (PathBuf, String, u64)> {
    fs::read_dir("/proc/self/task").into_iter().flatten().flatten().filter_map(|task| {
        let path = task.path();
        let name = fs::read_to_string(path.join("comm")).ok()?;
        let schedule = fs::read_to_string(path.join("schedstat")).unwrap_or_default();
        let busy_ns = schedule.split(' ').next().and_then(|ns| ns.parse().ok()).unwrap_or(0);
        Some((path, name.trim_end().to_owned(), busy_ns))
    })
}

/// Since Linux 6.2 the directory's size is the number of files; before that, they are counted.
fn files(directory: &Path) -> u64 {
    match fs::metadata(directory).map_or(0, |found| found.len()) {
        0 => fs::read_dir(directory).map_or(0, |list| list.count() as u64),
        count => count,
    }
}

pub(super) fn open_files_limit() -> Option<u64> {
    let limits = fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits.lines().find(|line| line.starts_with("Max open files"))?;
    line.split_ascii_whitespace().nth(3)?.parse().ok()
}
