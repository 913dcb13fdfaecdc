//! The file of `--log_path`: complete lines are appended, and a new file takes its place when it is
//! full or old, or when somebody has moved it away.

use super::janitor::{Janitor, rotated_files};
use super::{timestamp, with_end};
use std::fs::{self, File, Metadata, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::thread;
use std::time::{Duration, Instant, UNIX_EPOCH};

/// Uids and client addresses must not be readable by every user of the machine.
const MODE: u32 = 0o640;
/// How long a start waits for the previous process to release the file.
const RESTART_PATIENCE: Duration = Duration::from_millis(300);
/// Interval between attempts to write to a non-blocking output.
const PAUSE: Duration = Duration::from_millis(10);

/// `--log_rotate`: when a file is rotated, in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rotate {
    Hourly,
    Daily,
    Never,
}

impl FromStr for Rotate {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "hourly" => Ok(Self::Hourly),
            "daily" => Ok(Self::Daily),
            "never" => Ok(Self::Never),
            _ => Err(()),
        }
    }
}

impl Rotate {
    /// Returns the number of the hour or day that contains this time.
    fn period(self, ms: u64) -> u64 {
        match self {
            Self::Hourly => ms / 3_600_000,
            Self::Daily => ms / 86_400_000,
            Self::Never => 0,
        }
    }
}

/// Settings of a log in files.
#[derive(Debug, Clone)]
pub struct FileSettings {
    pub path: PathBuf,
    pub rotate: Rotate,
    /// Maximum length of a file, exceeded only by a single longer line; `None`: no limit.
    pub max_bytes: Option<u64>,
    /// Number of rotated files to keep.
    pub keep: usize,
}

/// Why lines were not written.
#[derive(Debug)]
pub struct Failure {
    pub error: io::Error,
    /// Bytes that were written: complete lines.
    pub written: usize,
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self { error, written: 0 }
    }
}

/// Writes only complete lines, in order. Between two writes the file is the one that its path
/// names, or named until [`LogFile::reopen`].
#[derive(Debug)]
pub struct LogFile {
    settings: FileSettings,
    /// `None`: the next line opens it.
    open: Option<Open>,
    /// The timestamp of the newest rotated file: the next one is later, whatever the clock reads.
    last_stamp_ms: u64,
    janitor: Janitor,
}

/// An output for lines.
#[derive(Debug)]
pub struct Open {
    file: File,
    /// Pipes and devices are not rotated.
    is_regular: bool,
    length: u64,
    /// The period of its first line.
    period: u64,
    /// The last byte does not end a line.
    is_torn: bool,
}

impl LogFile {
    /// Opens the file. Fails if another process has it, because that process would rotate it, too.
    pub fn new(settings: FileSettings) -> io::Result<Self> {
        let open = Open::new(&settings.path, settings.rotate)?;
        open.lock()?;
        let rotated = rotated_files(&settings.path).unwrap_or_default();
        let last_stamp_ms = rotated.last().map_or(0, |newest| newest.timestamp_ms);
        let janitor = Janitor::start(settings.path.clone(), settings.keep)?;
        Ok(Self { settings, open: Some(open), last_stamp_ms, janitor })
    }

    /// Reopens the file: the path may name another one now. If it cannot be opened, the next line
    /// tries again.
    pub fn reopen(&mut self) -> io::Result<()> {
        self.open = None;
        self.open = Some(Open::new(&self.settings.path, self.settings.rotate)?);
        Ok(())
    }

    /// Returns the number of bytes that still fit the open file.
    pub fn room(&self) -> usize {
        match (self.settings.max_bytes, &self.open) {
            (Some(max), Some(open)) if open.is_regular => max.saturating_sub(open.length) as usize,
            _ => usize::MAX,
        }
    }

    /// Writes complete lines: if writing fails, no line is left there in part. `Ok(Some)`: they are
    /// written, but the file could not be rotated.
    pub fn write(&mut self, lines: &[u8], now_ms: u64) -> Result<Option<io::Error>, Failure> {
        let still_there = match self.open.take() {
            Some(open) => open.look()?,
            None => None,
        };
        let mut open = match still_there {
            Some(open) => open,
            None => Open::new(&self.settings.path, self.settings.rotate)?,
        };
        let mut trouble = None;
        if self.is_due(&open, lines.len(), now_ms) {
            match self.rotate(&open, now_ms) {
                Ok(next) => open = next,
                Err(error) => trouble = Some(error),
            }
        }
        if open.length == 0 {
            open.period = self.settings.rotate.period(now_ms);
        }
        let result = open.write(lines);
        self.open = Some(open);
        result.map(|()| trouble)
    }

    fn is_due(&self, open: &Open, more: usize, now_ms: u64) -> bool {
        let is_old = self.settings.rotate.period(now_ms) > open.period;
        let is_full = self.settings.max_bytes.is_some_and(|max| open.length + more as u64 > max);
        open.is_regular && open.length > 0 && (is_old || is_full)
    }

    /// Replaces the open file by a new one. What can fail comes first and leaves everything as it
    /// was; no line is written meanwhile, so the old file is complete when it gets its name.
    fn rotate(&mut self, open: &Open, now_ms: u64) -> io::Result<Open> {
        let FileSettings { path, rotate, .. } = &self.settings;
        let is_ours = fs::metadata(path).is_ok_and(|there| open.is_same(&there));
        if !is_ours {
            return Open::new(path, *rotate);
        }
        let next_path = with_end(path, ".next");
        let next = Open::new(&next_path, *rotate)?;
        let timestamp_ms = now_ms.max(self.last_stamp_ms + 1);
        let rotated = with_end(path, &format!(".{}", timestamp::compact(timestamp_ms)));
        fs::rename(path, &rotated).inspect_err(|_| drop(fs::remove_file(&next_path)))?;
        fs::rename(&next_path, path).inspect_err(|_| drop(fs::rename(&rotated, path)))?;
        self.last_stamp_ms = timestamp_ms;
        self.janitor.wake();
        Ok(next)
    }
}

impl Open {
    pub fn stdout() -> io::Result<Self> {
        let file = File::from(io::stdout().as_fd().try_clone_to_owned()?);
        // A file that the shell has opened is not ours to truncate or rotate.
        Ok(Self { file, is_regular: false, length: 0, period: 0, is_torn: false })
    }

    fn new(path: &Path, rotate: Rotate) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.append(true).create(true).mode(MODE);
        // Makes a named pipe without a reader an error instead of a hang. It does not affect files.
        options.custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
        let file = options.open(path)?;
        let metadata = file.metadata()?;
        if metadata.is_file() {
            // Keeps other logs from starting to write to it. A process that already has it is not
            // kept out here.
            let _ = file.try_lock();
        }
        let length = metadata.len();
        let modified = metadata.modified().ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok());
        let modified_ms = modified.map_or(0, |since| since.as_millis() as u64);
        Ok(Self {
            file,
            is_regular: metadata.is_file(),
            length,
            period: rotate.period(modified_ms),
            is_torn: metadata.is_file() && length > 0 && !ends_with_a_line(path, length),
        })
    }

    /// Makes sure that no other log has the file. On file systems without locks it succeeds.
    fn lock(&self) -> io::Result<()> {
        if !self.is_regular {
            return Ok(());
        }
        let until = Instant::now() + RESTART_PATIENCE;
        loop {
            match self.file.try_lock() {
                Err(TryLockError::WouldBlock) if Instant::now() < until => thread::sleep(PAUSE),
                Err(TryLockError::WouldBlock) => {
                    return Err(io::Error::new(
                        ErrorKind::ResourceBusy,
                        "another process is using it",
                    ));
                }
                _ => return Ok(()),
            }
        }
    }

    pub fn metadata(&self) -> io::Result<Metadata> {
        self.file.metadata()
    }

    /// Checks the length, which may have changed from outside; `None`: the file has been deleted.
    fn look(mut self) -> io::Result<Option<Self>> {
        let metadata = self.metadata()?;
        self.length = metadata.len();
        Ok((!self.is_regular || metadata.nlink() > 0).then_some(self))
    }

    fn is_same(&self, there: &Metadata) -> bool {
        self.metadata().is_ok_and(|own| (own.dev(), own.ino()) == (there.dev(), there.ino()))
    }

    /// Writes complete lines. If that fails, no line is left there in part: the fragment is
    /// truncated or, if that is impossible, ended with a newline.
    pub fn write(&mut self, lines: &[u8]) -> Result<(), Failure> {
        if self.is_torn {
            write_all(&mut self.file, b"\n")?;
            self.is_torn = false;
            self.length += 1;
        }
        write_all(&mut self.file, lines).map_err(|Failure { error, written }| {
            let whole = lines[..written].iter().rposition(|&byte| byte == b'\n');
            let whole = whole.map_or(0, |end| end + 1);
            self.is_torn = written > whole && !self.take_back(written, whole);
            Failure { error, written: whole }
        })?;
        self.length += lines.len() as u64;
        Ok(())
    }

    fn take_back(&self, written: usize, whole: usize) -> bool {
        let is_as_left = |now: Metadata| now.len() == self.length + written as u64;
        self.is_regular
            && self.metadata().is_ok_and(is_as_left)
            && self.file.set_len(self.length + whole as u64).is_ok()
    }
}

/// A killed process or a full disk may have left part of a line. A file that may not be read is
/// assumed to end with a complete line.
fn ends_with_a_line(path: &Path, length: u64) -> bool {
    let mut last = [b'\n'];
    let read = File::open(path).and_then(|file| file.read_at(&mut last, length - 1));
    read.is_err() || last == [b'\n']
}

/// Like `Write::write_all`, but reports the number of bytes written and waits for an output that is
/// not ready.
fn write_all(file: &mut File, bytes: &[u8]) -> Result<(), Failure> {
    let mut written = 0;
    while written < bytes.len() {
        match file.write(&bytes[written..]) {
            Ok(0) => return Err(Failure { error: ErrorKind::WriteZero.into(), written }),
            Ok(more) => written += more,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(PAUSE),
            Err(error) => return Err(Failure { error, written }),
        }
    }
    Ok(())
}
