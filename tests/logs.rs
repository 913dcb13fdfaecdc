//! Log files written by many threads: rotated, moved away, deleted, full; every line is there once
//! and complete, or is counted.

mod support;

use flate2::read::GzDecoder;
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant, SystemTime};
use support::{PATIENCE, eventually};
use tracing_subscriber::layer::SubscriberExt;
use ws_cluster::ops::logs::{FileSettings, Format, Logs, Rotate, Settings};
use ws_cluster::types::NodeId;

const THREADS: usize = 8;

/// A temporary directory, deleted at the end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let name = format!("ws-cluster-logs-{}-{name}", std::process::id());
        let path = std::env::temp_dir().join(name);
        let _ = fs::remove_dir_all(&path);
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn log(&self) -> PathBuf {
        self.0.join("node.log")
    }

    /// Returns the names of the files, sorted.
    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.0).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.collect();
        names.sort();
        names
    }

    /// Returns the rotated files, oldest first.
    fn rotated(&self) -> Vec<String> {
        self.names()
            .into_iter()
            .filter(|name| name.starts_with("node") && name.contains('Z'))
            .collect()
    }

    fn read(&self, name: &str) -> String {
        let mut text = String::new();
        let mut file = File::open(self.0.join(name)).unwrap();
        match name.ends_with(".gz") {
            true => GzDecoder::new(file).read_to_string(&mut text).unwrap(),
            false => file.read_to_string(&mut text).unwrap(),
        };
        text
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn settings(path: PathBuf, max_bytes: Option<u64>, keep: usize) -> Settings {
    let file = Some(FileSettings { path, rotate: Rotate::Daily, max_bytes, keep });
    Settings { format: Format::Json, node: NodeId::new(7).unwrap(), file }
}

fn start(path: PathBuf) -> Logs {
    Logs::start(settings(path, None, 3)).unwrap()
}

/// Sends what `act` logs to `logs`.
fn logging<R>(logs: &Logs, act: impl FnOnce() -> R) -> R {
    let subscriber = tracing_subscriber::registry().with(logs.clone());
    tracing::subscriber::with_default(subscriber, act)
}

fn log_one(logs: &Logs, number: u64) {
    logging(logs, || tracing::info!(number, "one"));
    assert!(logs.flush(PATIENCE));
}

/// Logs from many threads at once, never more than the queue takes.
fn hammer(logs: &Logs, lines: u64) {
    thread::scope(|scope| {
        for writer in 0..THREADS {
            let write = move || {
                logging(logs, || {
                    for number in 0..lines {
                        tracing::info!(writer, number, text = "ä\n\"", "a line");
                        if number % 500 == 499 {
                            assert!(logs.flush(PATIENCE));
                        }
                    }
                });
            };
            thread::Builder::new()
                .name(format!("worker-{writer}"))
                .spawn_scoped(scope, write)
                .unwrap();
        }
    });
    assert!(logs.flush(PATIENCE));
    assert_eq!(logs.dropped(), 0);
}

/// Checks that every line of every writer is there once, complete, and in order.
fn check_lines(texts: impl IntoIterator<Item = String>, lines: u64) {
    let mut next: BTreeMap<u64, u64> = BTreeMap::new();
    for text in texts {
        assert!(text.is_empty() || text.ends_with('\n'));
        for line in text.lines() {
            let line: serde_json::Value = serde_json::from_str(line).expect(line);
            assert_eq!(line["msg"], "a line");
            assert_eq!(line["fields"]["text"], "ä\n\"");
            let writer = line["fields"]["writer"].as_u64().unwrap();
            assert_eq!(line["thread"], format!("worker-{writer}"));
            let next = next.entry(writer).or_default();
            assert_eq!(line["fields"]["number"], *next, "of writer {writer}");
            *next += 1;
        }
    }
    let all: BTreeMap<u64, u64> = (0..THREADS as u64).map(|writer| (writer, lines)).collect();
    assert_eq!(next, all);
}

fn numbers(text: &str) -> Vec<u64> {
    let number = |line: &str| {
        let line: serde_json::Value = serde_json::from_str(line).expect(line);
        line["fields"]["number"].as_u64()
    };
    text.lines().filter_map(number).collect()
}

#[test]
fn a_hundred_rotations_under_eight_threads_lose_and_tear_nothing() {
    let folder = Folder::new("rotations");
    let max_bytes = 16 << 10;
    let logs = Logs::start(settings(folder.log(), Some(max_bytes), 10_000)).unwrap();
    hammer(&logs, 2_000);
    drop(logs);
    eventually("all are compressed", || folder.rotated().iter().all(|name| name.ends_with(".gz")));
    let rotated = folder.rotated();
    assert!(rotated.len() >= 100, "{} rotations", rotated.len());
    let mut texts: Vec<String> = rotated.iter().map(|name| folder.read(name)).collect();
    texts.push(folder.read("node.log"));
    assert!(texts.iter().all(|text| text.len() as u64 <= max_bytes), "as long as it may be");
    assert_eq!(folder.names().len(), texts.len(), "nothing else is left");
    check_lines(texts, 2_000);
}

#[test]
fn logrotate_moves_files_away_and_nothing_is_lost() {
    let folder = Folder::new("logrotate");
    let logs = start(folder.log());
    let is_over = AtomicBool::new(false);
    let moved = thread::scope(|scope| {
        let mover = scope.spawn(|| {
            let mut moved = Vec::new();
            while !is_over.load(Relaxed) {
                let name = format!("node.log.{}", moved.len() + 1);
                if fs::rename(folder.log(), folder.0.join(&name)).is_ok() {
                    moved.push(name);
                }
                logs.reopen();
                thread::sleep(Duration::from_millis(1));
            }
            moved
        });
        hammer(&logs, 5_000);
        is_over.store(true, Relaxed);
        mover.join().unwrap()
    });
    assert!(moved.len() >= 10, "{} moves", moved.len());
    let mut texts: Vec<String> = moved.iter().map(|name| folder.read(name)).collect();
    texts.extend(fs::read_to_string(folder.log()).ok());
    check_lines(texts, 5_000);
}

#[test]
fn the_oldest_files_go_and_those_of_others_stay() {
    let folder = Folder::new("retention");
    let others = ["node.log.1", "node.log.2.gz", "node.log.bak", "other.log.20200101T000000.000Z"];
    for name in others {
        fs::write(folder.0.join(name), name).unwrap();
    }
    // Left by a process that ended while it was compressing.
    fs::write(folder.0.join("node.log.20210101T000000.000Z"), "left\n").unwrap();
    fs::write(folder.0.join("node.log.20210101T000000.000Z.gz.part"), "half").unwrap();
    let logs = Logs::start(settings(folder.log(), Some(64), 3)).unwrap();
    eventually("the left one is compressed", || {
        folder.rotated() == ["node.log.20210101T000000.000Z.gz"]
    });
    assert_eq!(folder.read("node.log.20210101T000000.000Z.gz"), "left\n");
    for number in 0..20 {
        log_one(&logs, number);
    }
    eventually("three are left, compressed", || {
        let rotated = folder.rotated();
        rotated.len() == 3 && rotated.iter().all(|name| name.ends_with(".gz"))
    });
    let kept: Vec<u64> =
        folder.rotated().iter().flat_map(|name| numbers(&folder.read(name))).collect();
    assert_eq!(kept, [16, 17, 18]);
    assert_eq!(numbers(&folder.read("node.log")), [19]);
    for name in others {
        assert_eq!(fs::read_to_string(folder.0.join(name)).unwrap(), name);
    }
}

#[test]
fn a_file_of_yesterday_is_rotated_with_the_first_line_and_names_sort_by_time() {
    let folder = Folder::new("daily");
    fs::write(folder.log(), "{}\n").unwrap();
    let yesterday = SystemTime::now() - Duration::from_secs(86_400);
    File::options().append(true).open(folder.log()).unwrap().set_modified(yesterday).unwrap();
    // Left by a clock that was ahead.
    let ahead = "node.log.29991231T235959.999Z.gz";
    fs::write(folder.0.join(ahead), "").unwrap();
    let logs = start(folder.log());
    log_one(&logs, 1);
    log_one(&logs, 2);
    eventually("it is compressed", || folder.rotated().iter().all(|name| name.ends_with(".gz")));
    let rotated = folder.rotated();
    assert_eq!(rotated.len(), 2, "{rotated:?}");
    assert_eq!((&*rotated[0], &*rotated[1]), (ahead, "node.log.30000101T000000.000Z.gz"));
    assert_eq!(folder.read(&rotated[1]), "{}\n");
    assert_eq!(numbers(&folder.read("node.log")), [1, 2]);
}

#[test]
fn a_full_disk_drops_and_counts() {
    let logs = start("/dev/full".into());
    for number in 1..=10 {
        log_one(&logs, number);
        assert_eq!(logs.dropped(), number);
    }
}

#[test]
fn a_deleted_file_is_made_again_and_so_is_one_whose_directory_was_away() {
    let folder = Folder::new("deleted");
    let inner = folder.0.join("inner");
    fs::create_dir(&inner).unwrap();
    let path = inner.join("node.log");
    let logs = start(path.clone());
    log_one(&logs, 1);
    fs::remove_file(&path).unwrap();
    log_one(&logs, 2);
    assert_eq!(numbers(&fs::read_to_string(&path).unwrap()), [2]);
    fs::remove_dir_all(&inner).unwrap();
    log_one(&logs, 3);
    log_one(&logs, 4);
    assert_eq!(logs.dropped(), 2);
    fs::create_dir(&inner).unwrap();
    log_one(&logs, 5);
    let text = fs::read_to_string(&path).unwrap();
    assert_eq!(numbers(&text), [5]);
    assert!(text.contains("2 lines were dropped"), "{text}");
}

#[test]
fn a_reader_that_is_stuck_stops_nobody() {
    let folder = Folder::new("stuck");
    assert!(Command::new("mkfifo").arg(folder.log()).status().unwrap().success());
    let error = Logs::start(settings(folder.log(), None, 3)).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(6), "ENXIO at once: nobody reads the pipe");
    let mut options = OpenOptions::new();
    let mut reader = options.read(true).custom_flags(libc::O_NONBLOCK).open(folder.log()).unwrap();
    let logs = start(folder.log());
    let lines = 40_000;
    let began = Instant::now();
    logging(&logs, || (0..lines).for_each(|number| tracing::info!(number, "one")));
    assert!(began.elapsed() < PATIENCE / 3, "{:?}", began.elapsed());
    assert!(!logs.flush(Duration::from_millis(50)), "the reader is still stuck");
    let dropped = logs.dropped();
    assert!(dropped > 0 && dropped < lines, "{dropped}");
    let mut bytes = Vec::new();
    eventually("all is written", || {
        let is_written = logs.flush(Duration::from_millis(1));
        let error = reader.read_to_end(&mut bytes).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::WouldBlock, "nothing more is there");
        is_written
    });
    let text = String::from_utf8(bytes).unwrap();
    let got = numbers(&text);
    assert_eq!(got.len() as u64 + dropped, lines);
    assert!(got.is_sorted_by(|a, b| a < b), "in order, none twice");
    assert!(text.contains(&format!("{dropped} lines were dropped")), "the log says so");
    drop(reader);
    drop(logs);
}

#[test]
fn what_cannot_be_a_log_is_said_at_the_start() {
    let folder = Folder::new("start");
    let fails = |path: PathBuf| Logs::start(settings(path, None, 3)).unwrap_err().kind();
    assert_eq!(fails(folder.0.clone()), ErrorKind::IsADirectory);
    assert_eq!(fails(folder.0.join("nowhere/node.log")), ErrorKind::NotFound);
    let logs = start(folder.log());
    assert_eq!(fails(folder.log()), ErrorKind::ResourceBusy, "another log has it");
    log_one(&logs, 1);
    drop(logs);
    eventually("the first lets go", || Logs::start(settings(folder.log(), None, 3)).is_ok());
}

#[test]
fn a_file_that_logrotate_truncates_is_written_from_its_beginning() {
    let folder = Folder::new("truncated");
    let logs = start(folder.log());
    log_one(&logs, 1);
    File::options().write(true).open(folder.log()).unwrap().set_len(0).unwrap();
    log_one(&logs, 2);
    assert_eq!(numbers(&folder.read("node.log")), [2]);
}

#[test]
fn what_a_killed_process_has_left_of_a_line_is_ended() {
    let folder = Folder::new("torn");
    fs::write(folder.log(), "{}\n{\"half\":").unwrap();
    let logs = start(folder.log());
    log_one(&logs, 1);
    let text = folder.read("node.log");
    let whole = text.strip_prefix("{}\n{\"half\":\n").unwrap();
    assert_eq!(numbers(whole), [1]);
}
