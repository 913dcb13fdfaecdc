//! `--processes`: the tool starts itself several times, each with a share of the connections, and
//! prints one report. It also does so by itself if threads cannot have their own tables of open
//! files and one table is too small.
//!
//! A child gets its share from the environment ([`PART`]) and writes lines of JSON to its standard
//! output: `sample` twice a second, `ready` when its connections are open (it continues when it
//! reads a line on its standard input), and `report` at the end.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};

use crate::arguments::Options;
use crate::report::Report;
use crate::run::{Common, SPARE_FILES};
use crate::series::{Live, ThreadLive};
use crate::{preflight, server, sys};

/// A child's share: `index/count`.
const PART: &str = "LOADTEST_PART";

/// The share of this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    pub index: u64,
    pub count: u64,
}

impl Part {
    pub fn of_this_process() -> Part {
        let text = std::env::var(PART).unwrap_or_default();
        let numbers = text.split_once('/').and_then(|(index, count)| {
            Some(Part { index: index.parse().ok()?, count: count.parse().ok()? })
        });
        numbers.filter(|part| part.index < part.count).unwrap_or(Part { index: 0, count: 1 })
    }

    pub fn is_child(self) -> bool {
        self.count > 1
    }

    /// Returns this process's share of `total`, and the sum of the shares before it.
    pub fn share(self, total: u64) -> (u64, u64) {
        let before =
            |index: u64| (u128::from(total) * u128::from(index) / u128::from(self.count)) as u64;
        (before(self.index + 1) - before(self.index), before(self.index))
    }
}

/// Writes a sample of a child's counters to the parent.
pub fn tell_sample(live: &Live) {
    let sum = |field: fn(&ThreadLive) -> &std::sync::atomic::AtomicU64| live.sum(field);
    tell(&json!({"sample": {
        "counters": [
            sum(|t| &t.welcomed), sum(|t| &t.dropped), sum(|t| &t.open), sum(|t| &t.deliveries),
            sum(|t| &t.lost), sum(|t| &t.doubled), sum(|t| &t.failed),
        ],
        "connect": live.snapshot(|t| &t.connect_latency).sparse(),
        "latency": live.snapshot(|t| &t.latency).sparse(),
        "rss": server::rss(std::process::id()).unwrap_or(0),
        "cpu_ns": sys::process_cpu_ns(),
    }}));
}

/// Reports that the connections are open, and waits until those of all processes are.
pub fn meet() {
    tell(&json!({"ready": true}));
    let mut line = String::new();
    // End of input means that the parent has ended: the run ends as by Ctrl-C.
    let _ = std::io::stdin().lock().read_line(&mut line);
}

pub fn tell_report(report: &Report) {
    tell(&json!({"report": report.to_parts()}));
}

fn tell(value: &Value) {
    let mut out = std::io::stdout().lock();
    // If the parent is gone, the line is not needed.
    let _ = writeln!(out, "{value}").and_then(|()| out.flush());
}

/// Returns the number of processes that a run of `connections` needs; 1: this one suffices.
pub fn needed(options: &Options, connections: u64) -> u64 {
    if Part::of_this_process().is_child() {
        return 1;
    }
    if let Some(count) = options.processes {
        return count;
    }
    let limit = sys::raise_file_limit().saturating_sub(SPARE_FILES).max(1);
    // The thread of this test ends, so its table affects nobody.
    let tried = std::thread::spawn(sys::own_file_table).join();
    match connections > limit && !matches!(tried, Ok(Ok(()))) {
        true => connections.div_ceil(limit),
        false => 1,
    }
}

/// Runs the same command `count` times and returns one report.
pub fn run(options: &Options, name: &str, connections: u64, count: u64) -> Result<Report, String> {
    if !(2..=64).contains(&count) || connections < count {
        return Err(format!("--processes {count} must be 1 to 64, and no more than connections"));
    }
    let mut common = options.check(connections, "")?;
    common.threads = count as usize;
    common.live = Box::leak(Box::new(Live::new(count as usize)));
    common.needs_http = name != "connect";
    for warning in preflight::check(&common)? {
        eprintln!("loadtest: warning: {warning}");
    }
    let mut children = Vec::new();
    for index in 0..count {
        children.push(Mutex::new(start(index, count)?));
    }
    let unready = AtomicUsize::new(count as usize);
    let bar = common.bar(connections, name);
    let mut last = (sys::now_ns(), 0);
    let mut is_told = false;
    let watch = || {
        let (now, work) = (sys::now_ns(), common.live.sum(|thread| &thread.deliveries));
        if now - last.0 > 500_000_000 {
            let rate = (work - last.1) as f64 * 1e9 / (now - last.0) as f64;
            bar.set_message(format!("{rate:.0} deliveries/s of {count} processes"));
            last = (now, work);
        }
        bar.set_position(common.live.sum(|thread| &thread.welcomed));
        if sys::interrupted() && !is_told {
            is_told = true;
            for child in &children {
                let child = child.lock().unwrap_or_else(PoisonError::into_inner);
                // A child that has ended needs no signal.
                let _ = sys::terminate(child.id());
            }
        }
    };
    let body = |t: usize| Ok(follow(&common, &children[t], t, &unready, &children));
    let outcomes = common.run_here(count as usize, body, watch)?;
    bar.finish_and_clear();
    let mut parts = Vec::new();
    for (index, outcome) in outcomes.into_iter().enumerate() {
        let mut child = children[index].lock().unwrap_or_else(PoisonError::into_inner);
        // It has reported everything, or has ended.
        let status = child.wait().map_err(|error| format!("process {index}: {error}"))?;
        parts.push(
            outcome.ok_or_else(|| format!("process {index} ended without a report: {status}"))?,
        );
    }
    let mut report = common.report(name);
    report.add_parts(&parts)?;
    report.set("processes", count);
    Ok(report)
}

fn start(index: u64, count: u64) -> Result<Child, String> {
    let program =
        std::env::current_exe().map_err(|error| format!("the path of this program: {error}"))?;
    Command::new(program)
        .args(std::env::args().skip(1))
        .env(PART, format!("{index}/{count}"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        // Ctrl-C reaches the parent, which signals the children.
        .process_group(0)
        .spawn()
        .map_err(|error| format!("process {index}: {error}"))
}

/// Reads one child's output until it ends; returns its report.
fn follow(
    common: &Common,
    child: &Mutex<Child>,
    t: usize,
    unready: &AtomicUsize,
    all: &[Mutex<Child>],
) -> Option<Value> {
    let output: Option<ChildStdout> =
        child.lock().unwrap_or_else(PoisonError::into_inner).stdout.take();
    let mut is_ready = false;
    let mut found = None;
    let meet = || {
        // The last one lets all continue. A child that has ended is not waited for.
        if unready.fetch_sub(1, Ordering::AcqRel) == 1 {
            for child in all {
                let mut child = child.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(input) = &mut child.stdin {
                    let _ = input.write_all(b"go\n").and_then(|()| input.flush());
                }
            }
        }
    };
    for line in BufReader::new(output?).lines().map_while(Result::ok) {
        let Ok(Value::Object(mut said)) = serde_json::from_str::<Value>(&line) else { continue };
        if let Some(sample) = said.get("sample") {
            show(common.live.of(t), sample);
        } else if said.contains_key("ready") && !is_ready {
            is_ready = true;
            meet();
        } else if let Some(report) = said.remove("report") {
            found = Some(report);
        }
    }
    if !is_ready {
        meet();
    }
    found
}

/// Shows a child's sample as if the child were a thread.
fn show(live: &ThreadLive, sample: &Value) {
    let counters = [
        &live.welcomed,
        &live.dropped,
        &live.open,
        &live.deliveries,
        &live.lost,
        &live.doubled,
        &live.failed,
    ];
    for (i, counter) in counters.into_iter().enumerate() {
        counter.store(sample["counters"][i].as_u64().unwrap_or(0), Ordering::Release);
    }
    live.connect_latency.set_sparse(&sample["connect"]);
    live.latency.set_sparse(&sample["latency"]);
    live.process_rss.store(sample["rss"].as_u64().unwrap_or(0), Ordering::Relaxed);
    live.process_cpu_ns.store(sample["cpu_ns"].as_u64().unwrap_or(0), Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_all_there_is() {
        let part = |index| Part { index, count: 3 };
        assert_eq!([0, 1, 2].map(|i| part(i).share(10)), [(3, 0), (3, 3), (4, 6)]);
        assert_eq!(Part { index: 0, count: 1 }.share(u64::MAX), (u64::MAX, 0));
        assert!(!Part::of_this_process().is_child());
    }

    #[test]
    fn a_sample_arrives_as_it_was() {
        let (child, parent) = (Live::new(2), Live::new(1));
        child.of(0).welcomed.store(5, Ordering::Relaxed);
        child.of(1).welcomed.store(6, Ordering::Relaxed);
        child.of(1).latency.record_n(1_000_000, 7);
        let sample = json!({
            "counters": [child.sum(|t| &t.welcomed), 0, 0, 0, 0, 0, 2],
            "connect": [],
            "latency": child.snapshot(|t| &t.latency).sparse(),
            "rss": 9,
            "cpu_ns": 8,
        });
        show(parent.of(0), &sample);
        assert_eq!(parent.decided(), 13);
        assert_eq!(parent.snapshot(|t| &t.latency), child.snapshot(|t| &t.latency));
        assert_eq!(parent.of(0).process_rss.load(Ordering::Relaxed), 9);
    }
}
