//! `bench growth`: the longest time that a worker spends on one connection, or one key, while its
//! tables grow to a million entries and shrink again: no table may be resized in one step.

use std::hint::black_box;
use std::io::{self, Error};
use std::sync::Arc;
use std::time::Duration;

use argh::FromArgs;
use ws_cluster::state::counters::Counters;
use ws_cluster::state::idempotency::{RememberedKeys, key_hash};
use ws_cluster::state::projects::{Project, ProjectId, Projects, SubscribePolicy};
use ws_cluster::state::sequence::OutgoingSequences;
use ws_cluster::state::settings::{Memory, Settings};
use ws_cluster::state::subscriptions::Interest;
use ws_cluster::state::{Identity, QueueNeeds, Role, Sealed, Worker, WorkerConfig};
use ws_cluster::types::{Incarnation, MonotonicMs, Now, Routing, WallMs};
use ws_cluster::wire::sign::Secret;

use crate::sys;

const NOW_MS: u64 = 1_800_000_000_000;
const NOW: Now = Now { monotonic: MonotonicMs::new(90_000_000), wall: WallMs::new(NOW_MS) };
/// Connections between two flushes.
const FLUSH_EVERY: usize = 64;

/// Grows one worker's tables and prints the longest CPU time of one step.
#[derive(FromArgs)]
#[argh(subcommand, name = "growth")]
pub struct Args {
    /// connections, and keys (default 1000000)
    #[argh(option, default = "1_000_000")]
    entries: usize,
    /// how often; the shortest of the longest steps is printed: what else the machine does is not
    /// the tables' doing (default 3)
    #[argh(option, default = "3")]
    rounds: usize,
}

pub fn run(args: &Args) -> io::Result<()> {
    println!("{}", report(args)?);
    Ok(())
}

/// The longest step of each kind.
#[derive(Debug, Clone, Copy)]
struct Longest {
    connect: Duration,
    leave: Duration,
    key: Duration,
    channel: Duration,
}

fn report(args: &Args) -> io::Result<String> {
    let mut best: Option<Longest> = None;
    for _ in 0..args.rounds.max(1) {
        let (connect, leave) = connections(args.entries)?;
        let (key, channel) = (keys(args.entries)?, channels(args.entries)?);
        let now = Longest { connect, leave, key, channel };
        best = Some(best.map_or(now, |best| Longest {
            connect: best.connect.min(now.connect),
            leave: best.leave.min(now.leave),
            key: best.key.min(now.key),
            channel: best.channel.min(now.channel),
        }));
    }
    let Some(Longest { connect, leave, key, channel }) = best else { return Ok(String::new()) };
    Ok(format!(
        "{} in one worker, each with its own user, tag and device; the longest step: a connect \
         {connect:?}, a disconnect {leave:?}, an idempotency key {key:?}, \
         the first message on a channel {channel:?}",
        args.entries
    ))
}

/// Returns a step's result, and records its CPU time.
fn timed<T>(longest: &mut Duration, step: impl FnOnce() -> T) -> io::Result<T> {
    let before = sys::thread_cpu()?;
    let result = step();
    *longest = (sys::thread_cpu()? - before).max(*longest);
    Ok(result)
}

fn connections(count: usize) -> io::Result<(Duration, Duration)> {
    let mut worker = Worker::new(config(count)?, NOW);
    let mut sealed = Sealed::default();
    let project = ProjectId(0);
    worker.admit(&identity("", "", &[]));
    worker.handle_ready(&Interest::Project(project));
    let (mut connect, mut leave) = (Duration::ZERO, Duration::ZERO);
    for number in 0..count {
        let names = ["user", "tag", "device"].map(|kind| format!("{kind} {number}"));
        let tags = [&*names[1]];
        let identity = identity(&names[0], &names[2], &tags);
        timed(&mut connect, || {
            worker.admit(&identity);
            worker.handle_ready(&Interest::User(project, (&*names[0]).into()));
            black_box(worker.handle_connect(identity, b"", NOW))
        })?;
        if number % FLUSH_EVERY == 0 {
            flush(&mut worker, &mut sealed);
        }
    }
    flush(&mut worker, &mut sealed);
    for slot in 0..count {
        timed(&mut leave, || worker.handle_disconnect(slot as u32))?;
        if slot % FLUSH_EVERY == 0 {
            flush(&mut worker, &mut sealed);
        }
    }
    flush(&mut worker, &mut sealed);
    match worker.connections() {
        0 => Ok((connect, leave)),
        left => Err(Error::other(format!("{left} connections are left"))),
    }
}

fn identity<'a>(uid: &'a str, device: &'a str, tags: &'a [&'a str]) -> Identity<'a> {
    let project = ProjectId(0);
    Identity { project, uid, device, tags, session_exp: 0, role: Role::Client, ip: None }
}

/// Discards what sockets would take.
fn flush(worker: &mut Worker, sealed: &mut Sealed) {
    worker.take_broker_requests();
    while worker.has_output() {
        worker.seal(sealed);
        worker.lay_out(sealed, usize::MAX);
        for index in sealed.part() {
            if let Some(bytes) = sealed.outgoing(index).map(|outgoing| outgoing.bytes.len()) {
                worker.handle_sent(sealed, index, bytes, true);
            }
        }
        for close in worker.finish(sealed) {
            worker.release(close.slot, close.cause);
        }
    }
}

fn keys(count: usize) -> io::Result<Duration> {
    let mut keys = RememberedKeys::new(count);
    let mut longest = Duration::ZERO;
    for number in 0..count {
        let key = key_hash("1", &number.to_string());
        timed(&mut longest, || black_box(keys.insert(&key, NOW.monotonic)))?;
    }
    Ok(longest)
}

/// Publishes on channels of users, as with `--routing user`.
fn channels(count: usize) -> io::Result<Duration> {
    let mut sequences = OutgoingSequences::new((1, 2));
    let mut longest = Duration::ZERO;
    for number in 0..count {
        let channel = format!("wsc:1:user {number}");
        timed(&mut longest, || black_box(sequences.next(channel.as_bytes(), NOW.monotonic)))?;
    }
    Ok(longest)
}

fn config(max_connections: usize) -> io::Result<WorkerConfig> {
    let project = Project {
        pid: "1".into(),
        secrets: vec![Secret::new(b"s")],
        allowed_origins: None,
        subscribe: SubscribePolicy::Any,
    };
    let settings = Settings {
        memory: Memory { worker_outbox_bytes: 1 << 30, ..Memory::default() },
        idempotency_keys: 1_000,
        ..Settings::default()
    };
    Ok(WorkerConfig {
        settings: Arc::new(settings),
        worker: 0,
        projects: Arc::new(Projects::new(vec![project]).map_err(Error::other)?),
        slots: max_connections,
        loads: Arc::default(),
        incarnation: Arc::new(Incarnation::new(WallMs::new(1))),
        hash_keys: (1, 2),
        queue_needs: Some(QueueNeeds {
            routing: Routing::User,
            announces_users: true,
            user_keys: (3, 4),
        }),
        counters: Arc::new(Counters::default()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_come_and_all_go() {
        let args = Args { entries: 2_000, rounds: 1 };
        assert!(report(&args).unwrap().starts_with("2000 in one worker"));
    }
}
