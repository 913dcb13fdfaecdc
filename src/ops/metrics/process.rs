//! What is shown of the process and its threads, read from `/proc` when somebody asks: it costs the
//! workers nothing.

use super::{Label, encode_counter_f64, encode_gauge, encode_gauge_f64};
use crate::io::sys;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

/// A thread, its processor time in seconds, and the descriptors in its table.
struct Thread {
    name: String,
    busy_s: f64,
    files: u64,
}

pub(super) fn encode(encoder: &mut DescriptorEncoder<'_>, epoch_ms: u64) -> fmt::Result {
    let threads = threads();
    let help = "Seconds of processor time that each thread has used";
    let mut family =
        encoder.encode_descriptor("thread_busy_seconds", help, None, MetricType::Counter)?;
    for thread in &threads {
        let labels = Label::new("thread", &thread.name);
        ConstCounter::new(thread.busy_s).encode(family.encode_family(&labels)?)?;
    }
    // Not the sum of the threads: those that have ended count too.
    let busy_s = sys::process_cpu_ns() as f64 / 1e9;
    encode_counter_f64(encoder, "process_cpu_seconds", "Seconds of processor time", busy_s)?;
    encode_gauge(encoder, "process_threads", "Threads", threads.len() as u64)?;
    let files = threads.iter().map(|thread| thread.files).sum();
    let help = "Open descriptors in the tables of all threads; each worker has its own";
    encode_gauge(encoder, "process_open_fds", help, files)?;
    if let Some(limit) = open_files_limit() {
        encode_gauge(encoder, "process_max_fds", "Descriptors that one table may have", limit)?;
    }
    let [virtual_bytes, resident_bytes] = memory();
    let help = "Bytes of address space; the tables of connections are reserved, not used";
    encode_gauge(encoder, "process_virtual_memory_bytes", help, virtual_bytes)?;
    let help = "Bytes of memory in use";
    encode_gauge(encoder, "process_resident_memory_bytes", help, resident_bytes)?;
    let help = "When the process was started, seconds since 1970";
    encode_gauge_f64(encoder, "process_start_time_seconds", help, epoch_ms as f64 / 1e3)
}

/// Bytes of address space, and of memory in use.
pub(in crate::ops) fn memory() -> [u64; 2] {
    let page_bytes = sys::page_bytes() as u64;
    let pages = fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let mut bytes = pages.split(' ').map_while(|pages| pages.parse::<u64>().ok());
    [(); 2].map(|()| page_bytes * bytes.next().unwrap_or(0))
}

/// The directory of each of this process's threads, its name, and the nanoseconds of processor
/// time that it has used.
pub(in crate::ops) fn tasks() -> impl Iterator<Item = (PathBuf, String, u64)> {
    fs::read_dir("/proc/self/task").into_iter().flatten().flatten().filter_map(|task| {
        let path = task.path();
        let name = fs::read_to_string(path.join("comm")).ok()?;
        let schedule = fs::read_to_string(path.join("schedstat")).unwrap_or_default();
        let busy_ns = schedule.split(' ').next().and_then(|ns| ns.parse().ok()).unwrap_or(0);
        Some((path, name.trim_end().to_owned(), busy_ns))
    })
}

/// This process's threads. Those of one name, such as a library's, are told apart by nothing and
/// count together.
fn threads() -> Vec<Thread> {
    let mut threads: Vec<Thread> = Vec::new();
    for (path, name, busy_ns) in tasks() {
        let (busy_s, files) = (busy_ns as f64 / 1e9, files(&path.join("fd")));
        match threads.iter_mut().find(|thread| thread.name == name) {
            Some(thread) => {
                thread.busy_s += busy_s;
                thread.files += files;
            }
            None => threads.push(Thread { name, busy_s, files }),
        }
    }
    threads
}

/// The kernel tells how many there are as the directory's size since Linux 6.2; before, they are
/// counted.
fn files(directory: &Path) -> u64 {
    match fs::metadata(directory).map_or(0, |found| found.len()) {
        0 => fs::read_dir(directory).map_or(0, |list| list.count() as u64),
        count => count,
    }
}

fn open_files_limit() -> Option<u64> {
    let limits = fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits.lines().find(|line| line.starts_with("Max open files"))?;
    line.split_ascii_whitespace().nth(3)?.parse().ok()
}
