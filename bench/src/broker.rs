//! `bench broker`: how many messages per second a node's broker reads from Redis and routes to its
//! workers, from a recording and from a live Redis.

mod live;
mod load;
mod own;
mod workers;

use std::fs;
use std::io::{self, Error, ErrorKind};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use argh::FromArgs;
use ws_cluster::state::broker::{Broker, LinkName};
use ws_cluster::state::counters::BrokerCounters;
use ws_cluster::types::MonotonicMs;

use crate::sys;
use load::Load;
use workers::{Counting, Rings, Workers};

/// Feeds the broker with messages of Redis and prints how many a second it reads, numbers, routes
/// and hands to its workers. Only its own time counts, not the reading from the socket nor what
/// workers do then.
#[derive(FromArgs)]
#[argh(subcommand, name = "broker")]
pub struct Args {
    /// a live Redis, host:port: a thread publishes there, and the broker is subscribed (default: a
    /// recording, without Redis)
    #[argh(option)]
    redis: Option<String>,
    /// messages of the recording (default 100000)
    #[argh(option, default = "100_000")]
    messages: usize,
    /// bytes of a message's data (default 128)
    #[argh(option, default = "128")]
    bytes: usize,
    /// how often the recording is played; the medians are printed (default 11)
    #[argh(option, default = "11")]
    rounds: usize,
    /// how long to publish to a live Redis (default 3)
    #[argh(option, default = "3.0")]
    seconds: f64,
    /// the core of the broker (default: not pinned)
    #[argh(option)]
    core: Option<usize>,
    /// print one line of JSON, a list
    #[argh(switch)]
    json: bool,
    /// instead: what a push of this node itself costs that is published, answered and back;
    /// neither with --redis nor with --json
    #[argh(switch)]
    own: bool,
}

/// Bytes per read.
const PIECE_BYTES: usize = 64 << 10;

/// The broker's workers: their number, and whether each message is for all of them.
struct Way {
    name: &'static str,
    workers: usize,
    has_rings: bool,
    is_for_all: bool,
}

impl Way {
    /// Returns the number of workers that get a message.
    fn copies(&self) -> u64 {
        if self.is_for_all { self.workers as u64 } else { 1 }
    }
}

const WAYS: [Way; 3] = [
    Way { name: "1 worker on this thread", workers: 1, has_rings: false, is_for_all: false },
    Way { name: "4 workers, to one each", workers: 4, has_rings: true, is_for_all: false },
    Way { name: "4 workers, to all of them", workers: 4, has_rings: true, is_for_all: true },
];

pub fn run(args: &Args) -> io::Result<()> {
    if !(2..=1 << 20).contains(&args.bytes) {
        return Err(invalid("--bytes must be 2 to 1048576"));
    }
    if args.rounds == 0 || !(load::PAIRS..=10_000_000).contains(&args.messages) {
        return Err(invalid("--rounds must be 1 or more, --messages 32 to 10000000"));
    }
    if !(args.seconds > 0.0 && args.seconds <= 600.0) {
        return Err(invalid("--seconds must be above 0 and at most 600"));
    }
    if args.own && (args.redis.is_some() || args.json) {
        return Err(invalid("--own acts as Redis itself and prints text: omit --redis and --json"));
    }
    if !args.json {
        print_machine();
    }
    if args.own {
        println!("{}", own::run(args)?);
        return Ok(());
    }
    let mut lines = Vec::new();
    for way in &WAYS {
        let line = match &args.redis {
            Some(address) => live::run(args, way, address)?,
            None => play(args, way)?,
        };
        if args.json {
            lines.push(line);
        } else {
            println!("{line}");
        }
    }
    if args.json {
        println!("[{}]", lines.join(","));
    }
    Ok(())
}

/// Plays the recording to a new broker in each round; returns the text to print.
fn play(args: &Args, way: &Way) -> io::Result<String> {
    if let Some(core) = args.core {
        sys::pin_to_core(core)?;
    }
    let load = Load::new("wsc", args.bytes, way.is_for_all);
    let recording = load.recording(args.messages)?;
    let mut wall_ns = Vec::new();
    let mut cpu_ns = Vec::new();
    for _ in 0..args.rounds {
        let (mut broker, mut workers, counters) = load::broker(&load, way)?;
        load::make_ready(&mut broker, &mut *workers)?;
        let mut own = OwnTime::default();
        let now = MonotonicMs::default();
        let mut buffer: Vec<u8> = Vec::with_capacity(2 * PIECE_BYTES);
        for piece in recording.chunks(PIECE_BYTES) {
            // Stands for the read, after which the bytes are in the cache, too.
            buffer.extend_from_slice(piece);
            let handled = own.handle_bytes(&mut broker, &buffer, now, &mut *workers)?;
            buffer.drain(..handled);
            workers.drain();
        }
        check(way, args.messages as u64, &*workers, &counters)?;
        wall_ns.push(own.wall.as_nanos() as f64 / args.messages as f64);
        cpu_ns.push(own.cpu.as_nanos() as f64 / args.messages as f64);
    }
    let (wall, cpu) = (median(&mut wall_ns), median(&mut cpu_ns));
    let message_bytes = recording.len() as f64 / args.messages as f64;
    let fastest = wall_ns.first().copied().unwrap_or(wall);
    let slowest = wall_ns.last().copied().unwrap_or(wall);
    if args.json {
        return Ok(format!(
            "{{\"source\":\"recording\",\"way\":\"{}\",\"messages\":{},\"bytes\":{},\
             \"messages_per_s\":{:.0},\"ns\":{wall:.1},\"cpu_ns\":{cpu:.1},\
             \"min_ns\":{fastest:.1},\"max_ns\":{slowest:.1},\"rounds\":{}}}",
            way.name,
            args.messages,
            args.bytes,
            1e9 / wall,
            args.rounds
        ));
    }
    Ok(format!(
        "{}: {:.0} messages/s, {wall:.0} ns each ({fastest:.0} to {slowest:.0}; {cpu:.0} ns of CPU \
         time), {message_bytes:.0} bytes each in RESP",
        way.name,
        1e9 / wall
    ))
}

/// The time spent in [`Broker::handle_bytes`].
#[derive(Default)]
struct OwnTime {
    wall: Duration,
    /// Without the time used by the machine's other processes.
    cpu: Duration,
}

impl OwnTime {
    /// Passes what was read from the subscribing link to the broker; returns the bytes it took.
    fn handle_bytes(
        &mut self,
        broker: &mut Broker,
        bytes: &[u8],
        now: MonotonicMs,
        workers: &mut dyn Workers,
    ) -> io::Result<usize> {
        let mut handled = Ok(0);
        let (cpu, wall) = (sys::thread_cpu()?, Instant::now());
        workers.with_sink(&mut |sink| {
            let result = broker.handle_bytes(LinkName::Subscribe, bytes, now, sink);
            handled = result.map(|handled| handled.bytes);
        });
        self.wall += wall.elapsed();
        self.cpu += sys::thread_cpu()?.saturating_sub(cpu);
        handled.map_err(Error::other)
    }
}

/// Checks that every message reached its destination: a figure of a broker that drops is
/// meaningless.
fn check(
    way: &Way,
    messages: u64,
    workers: &dyn Workers,
    counters: &BrokerCounters,
) -> io::Result<()> {
    let copies = way.copies();
    let wrong =
        counters.repeated.value() + counters.malformed.value() + counters.worker_full.value();
    if workers.delivered() != messages * copies || wrong > 0 || !counters.missed().is_empty() {
        return Err(Error::other(format!(
            "{}: {} of {} were forwarded, {} dropped; missed: {:?}",
            way.name,
            workers.delivered(),
            messages * copies,
            wrong,
            counters.missed()
        )));
    }
    Ok(())
}

/// Returns the workers for this way.
fn workers_of(way: &Way) -> io::Result<(Box<dyn Workers>, Arc<BrokerCounters>)> {
    let counters = Arc::new(BrokerCounters::default());
    let workers: Box<dyn Workers> = match way.has_rings {
        true => Box::new(Rings::new(way.workers, &counters)?),
        false => Box::new(Counting::default()),
    };
    Ok((workers, counters))
}

/// Sorts the values and returns their median.
fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

fn print_machine() {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let model =
        cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split(": ").nth(1));
    let cores = thread::available_parallelism().map_or(0, usize::from);
    let load = read("/proc/loadavg");
    println!(
        "Machine: {cores} cores, {}, Linux {}; load {}",
        model.unwrap_or("unknown processor"),
        read("/proc/sys/kernel/osrelease").trim(),
        load.split(' ').next().unwrap_or("unknown")
    );
    let command: Vec<String> = std::env::args().collect();
    println!("Command: {}", command.join(" "));
}

fn invalid(text: &str) -> Error {
    Error::new(ErrorKind::InvalidInput, text)
}

#[cfg(test)]
impl Default for Args {
    fn default() -> Self {
        let (redis, core, json, own) = (None, None, false, false);
        Self { redis, messages: 2_000, bytes: 128, rounds: 1, seconds: 1.0, core, json, own }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_message_is_handed_on_whatever_the_workers_are() {
        let args = Args { messages: 2_000, rounds: 2, json: true, ..Args::default() };
        for way in &WAYS {
            let line = play(&args, way).unwrap();
            assert!(line.contains("\"messages\":2000,"), "{line}");
        }
    }
}
