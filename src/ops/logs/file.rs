//! The file of `--log_path`: whole lines at its end, a new one in its place when it is full or old,
//! or when somebody has moved it away.

use super::janitor::{Janitor, rotated_files};
use super::{stamp, with_end};
use std::fs::{self, File, Metadata, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::thread;
use std::time::{Duration, Instant, UNIX_EPOCH};

/// Uids and addresses of clients are not for every user of the machine.
const MODE: u32 = 0o640;
/// How long a start waits for the process before it to let go of the file.
const RESTART_PATIENCE: Duration = Duration::from_millis(300);
/// How soon a non-blocking output is asked again.
const PAUSE: Duration = Duration::from_millis(10);

/// `--log_rotate`: when a file is old. By UTC.
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
    /// The number of the hour or day in which a moment is.
    fn period(self, ms: u64) -> u64 {
        match self {
            Self::Hourly => ms / 3_600_000,
            Self::Daily => ms / 86_400_000,
            Self::Never => 0,
        }
    }
}

/// What a log in files is told.
#[derive(Debug, Clone)]
pub struct FileSettings {
    pub path: PathBuf,
    pub rotate: Rotate,
    /// A file does not become longer, unless one line is; `None`: no limit.
    pub max_bytes: Option<u64>,
    /// Files that are kept beside the one that is written.
    pub keep: usize,
}

/// Why lines did not get to where they belong.
#[derive(Debug)]
pub struct Failure {
    pub error: io::Error,
    /// So many bytes of them are there: whole lines.
    pub written: usize,
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self { error, written: 0 }
    }
}

/// Writes only whole lines, in order. Between two writes the file is what its path names, or was,
/// until [`LogFile::reopen`].
#[derive(Debug)]
pub struct LogFile {
    settings: FileSettings,
    /// `None`: it is to be opened with the next line.
    open: Option<Open>,
    /// The stamp of the newest rotated file: the next is later, whatever the clock says.
    last_stamp_ms: u64,
    janitor: Janitor,
}

/// Something that takes lines.
#[derive(Debug)]
pub struct Open {
    file: File,
    /// Pipes and devices are not rotated.
    is_regular: bool,
    length: u64,
    /// That of its first line.
    period: u64,
    /// The last byte is not the end of a line.
    is_torn: bool,
}

impl LogFile {
    /// Opens the file. Another process must not have it: it would rotate it, too.
    pub fn new(settings: FileSettings) -> io::Result<Self> {
        let open = Open::new(&settings.path, settings.rotate)?;
        open.lock()?;
        let rotated = rotated_files(&settings.path).unwrap_or_default();
        let last_stamp_ms = rotated.last().map_or(0, |newest| newest.stamp_ms);
        let janitor = Janitor::start(settings.path.clone(), settings.keep)?;
        Ok(Self { settings, open: Some(open), last_stamp_ms, janitor })
    }

    /// The path may name another file now. Where it cannot be opened, the next line tries again.
    pub fn reopen(&mut self) -> io::Result<()> {
        self.open = None;
        self.open = Some(Open::new(&self.settings.path, self.settings.rotate)?);
        Ok(())
    }

    /// How many bytes of lines fit the file that is open.
    pub fn room(&self) -> usize {
        match (self.settings.max_bytes, &self.open) {
            (Some(max), Some(open)) if open.is_regular => max.saturating_sub(open.length) as usize,
            _ => usize::MAX,
        }
    }

    /// Writes whole lines. Where they do not all get there, none of them is there in part.
    /// `Ok(Some)`: they are there, but the file could not be rotated.
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

    /// Puts a new file in the place of the open one. What can fail comes first, and leaves all as
    /// it was; no line is written meanwhile, so that the old file is complete when it has its name.
    fn rotate(&mut self, open: &Open, now_ms: u64) -> io::Result<Open> {
        let FileSettings { path, rotate, .. } = &self.settings;
        let is_ours = fs::metadata(path).is_ok_and(|there| open.is_same(&there));
        if !is_ours {
            return Open::new(path, *rotate);
        }
        let next_path = with_end(path, ".next");
        let next = Open::new(&next_path, *rotate)?;
        let stamp_ms = now_ms.max(self.last_stamp_ms + 1);
        let rotated = with_end(path, &format!(".{}", stamp::compact(stamp_ms)));
        fs::rename(path, &rotated).inspect_err(|_| drop(fs::remove_file(&next_path)))?;
        fs::rename(&next_path, path).inspect_err(|_| drop(fs::rename(&rotated, path)))?;
        self.last_stamp_ms = stamp_ms;
        self.janitor.wake();
        Ok(next)
    }
}

impl Open {
    pub fn stdout() -> io::Result<Self> {
        let file = File::from(io::stdout().as_fd().try_clone_to_owned()?);
        // A file that the shell has opened is not ours to cut or to rotate.
        Ok(Self { file, is_regular: false, length: 0, period: 0, is_torn: false })
    }

    fn new(path: &Path, rotate: Rotate) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.append(true).create(true).mode(MODE);
        // A named pipe that nobody reads is an error then, and not for ever. Files do not care.
        options.custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
        let file = options.open(path)?;
        let metadata = file.metadata()?;
        if metadata.is_file() {
            // So that no other log begins to write to it. Who has it before is not kept out here.
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

    /// Makes sure that no other log has the file. File systems without locks do without.
    fn lock(&self) -> io::Result<()> {
        if !self.is_regular {
            return Ok(());
        }
        let until = Instant::now() + RESTART_PATIENCE;
        loop {
            match self.file.try_lock() {
                Err(TryLockError::WouldBlock) if Instant::now() < until => thread::sleep(PAUSE),
                Err(TryLockError::WouldBlock) => {
                    return Err(io::Error::new(ErrorKind::ResourceBusy, "another process has it"));
                }
                _ => return Ok(()),
            }
        }
    }

    pub fn metadata(&self) -> io::Result<Metadata> {
        self.file.metadata()
    }

    /// Its length may have been changed from outside; `None`: it has been deleted.
    fn look(mut self) -> io::Result<Option<Self>> {
        let metadata = self.metadata()?;
        self.length = metadata.len();
        Ok((!self.is_regular || metadata.nlink() > 0).then_some(self))
    }

    fn is_same(&self, there: &Metadata) -> bool {
        self.metadata().is_ok_and(|own| (own.dev(), own.ino()) == (there.dev(), there.ino()))
    }

    /// Writes whole lines. Where they do not all get there, none of them is there in part: what is
    /// there of a line is taken back, or where that cannot be, ended.
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

/// A process that was killed, or a disk that was full, may have left a part of a line. A file that
/// may not be read is taken for whole.
fn ends_with_a_line(path: &Path, length: u64) -> bool {
    let mut last = [b'\n'];
    let read = File::open(path).and_then(|file| file.read_at(&mut last, length - 1));
    read.is_err() || last == [b'\n']
}

/// Like `Write::write_all`, but says how far it came, and waits for an output that is not ready.
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
