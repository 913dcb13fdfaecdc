//! Cleans up rotated files on its own thread, so that writing goes on: deletes the oldest and
//! compresses the others. It reads the directory each time, so files of an earlier process are
//! handled, too.

use super::{timestamp, with_end};
use crate::io::{sys, threads};
use flate2::Compression;
use flate2::write::GzEncoder;
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{SyncSender, sync_channel};

/// Wakes the thread, which ends when this is dropped.
#[derive(Debug)]
pub struct Janitor(SyncSender<()>);

impl Janitor {
    /// Starts the thread. Call it on the thread that writes: they share a table of file
    /// descriptors.
    pub fn start(path: PathBuf, keep: usize) -> io::Result<Self> {
        let (sender, wakes) = sync_channel(1);
        let clean = move || {
            sys::give_way();
            while wakes.recv().is_ok() {
                if let Err(error) = clean(&path, keep) {
                    tracing::warn!(%error, "a rotated log file cannot be compressed or deleted");
                }
            }
        };
        threads::spawn("log-janitor", clean)?;
        let janitor = Self(sender);
        janitor.wake();
        Ok(janitor)
    }

    /// Wakes the thread; one pending wake-up is enough.
    pub fn wake(&self) {
        let _ = self.0.try_send(());
    }
}

/// A rotated file, identified by its name.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rotated {
    pub timestamp_ms: u64,
    kind: LogFileKind,
    path: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum LogFileKind {
    Plain,
    Compressed,
    /// An interrupted compression.
    Part,
}

impl LogFileKind {
    /// Parses the rest of the name, after the timestamp.
    fn of(end: &str) -> Option<Self> {
        match end {
            "" => Some(Self::Plain),
            ".gz" => Some(Self::Compressed),
            ".gz.part" => Some(Self::Part),
            _ => None,
        }
    }
}

/// Returns the rotated files of the log at that path, oldest first. Other files beside it are not
/// ours.
pub fn rotated_files(path: &Path) -> io::Result<Vec<Rotated>> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let ours = |text: &str| {
            let rest = text.strip_prefix(&*name)?.strip_prefix('.')?;
            let (timestamp, end) = rest.split_at_checked(timestamp::COMPACT_BYTES)?;
            Some((timestamp::parse_compact(timestamp)?, LogFileKind::of(end)?))
        };
        if let Some((timestamp_ms, kind)) = path.file_name().and_then(|name| ours(name.to_str()?)) {
            found.push(Rotated { timestamp_ms, kind, path });
        }
    }
    found.sort();
    Ok(found)
}

fn clean(path: &Path, keep: usize) -> io::Result<()> {
    let files = rotated_files(path)?;
    let mut timestamps: Vec<u64> = files.iter().map(|file| file.timestamp_ms).collect();
    timestamps.dedup();
    let oldest_kept = timestamps.len().checked_sub(keep).and_then(|first| timestamps.get(first));
    for Rotated { timestamp_ms, kind, path } in &files {
        if oldest_kept.is_some_and(|oldest| timestamp_ms < oldest) || *kind == LogFileKind::Part {
            delete(path)?;
        } else if *kind == LogFileKind::Plain {
            compress(path)?;
        }
    }
    Ok(())
}

/// If somebody else has already deleted it, that is fine.
fn delete(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The compressed file gets its name when it is complete and on the disk; only then is the original
/// deleted. Compression interrupted by a crash is done again.
fn compress(path: &Path) -> io::Result<()> {
    let (part, whole) = (with_end(path, ".gz.part"), with_end(path, ".gz"));
    let result = write_compressed(path, &part).and_then(|()| fs::rename(&part, &whole));
    if result.is_err() {
        let _ = fs::remove_file(&part);
        return result;
    }
    delete(path)
}

fn write_compressed(path: &Path, part: &Path) -> io::Result<()> {
    let mut source = File::open(path)?;
    let part = File::create(part)?;
    part.set_permissions(source.metadata()?.permissions())?;
    let mut encoder = GzEncoder::new(part, Compression::default());
    io::copy(&mut source, &mut encoder)?;
    encoder.finish()?.sync_all()
}
