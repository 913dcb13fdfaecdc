//! From a live Redis: one thread publishes as fast as Redis answers, the broker is fed from a
//! subscribed, blocking socket. There are three busy threads, Redis being one: on a machine with
//! fewer cores only CPU time shows what the broker needs.

use std::io::{self, Error, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use ws_cluster::state::broker::{Broker, LinkName};
use ws_cluster::types::Now;

use super::load::{self, Load};
use super::workers::Workers;
use super::{Args, OwnTime, Way, check, invalid};
use crate::sys;

/// Maximum number of bytes per read.
const READ_BYTES: usize = 128 << 10;
/// Commands per write, the same number for each series of sequence numbers.
const BATCH: usize = 32 * load::PAIRS;
/// Maximum number of messages in flight: Redis disconnects subscribers that fall further behind.
const MAX_UNDER_WAY: u64 = 16_384;
const TICK: Duration = Duration::from_millis(50);
const TIMEOUT: Duration = Duration::from_secs(5);

/// State shared by the publishing thread and the broker's.
#[derive(Default)]
struct Progress {
    delivered: AtomicU64,
    is_over: AtomicBool,
}

/// A broker and its two links.
struct Node {
    broker: Broker,
    workers: Box<dyn Workers>,
    publishing: TcpStream,
    subscribing: TcpStream,
    began: Instant,
    ticked: Instant,
    buffer: Vec<u8>,
    filled: usize,
    own: OwnTime,
}

/// Publishes for the requested time; returns the text to print.
pub fn run(args: &Args, way: &Way, address: &str) -> io::Result<String> {
    let prefix = format!("bench.broker.{}", std::process::id());
    let load = Load::new(&prefix, args.bytes, way.is_for_all);
    if (MAX_UNDER_WAY as usize) * args.bytes > 16 << 20 {
        return Err(invalid("--bytes must be at most 1024 with --redis"));
    }
    let (broker, workers, counters) = load::broker(&load, way)?;
    let mut node = Node::open(broker, workers, address)?;
    if let Some(core) = args.core {
        sys::pin_to_core(core)?;
    }
    let copies = way.copies();
    let length = Duration::from_secs_f64(args.seconds);
    let progress = Progress::default();
    let began = Instant::now();
    let (published, took) = thread::scope(|scope| {
        let publisher = thread::Builder::new().spawn_scoped(scope, || {
            let published = publish(&load, address, length, &progress);
            progress.is_over.store(true, Relaxed);
            published
        })?;
        let fed = node.feed(&progress, copies);
        // Ends the publisher if the broker failed.
        progress.delivered.store(u64::MAX, Relaxed);
        let published = publisher.join().map_err(|_| Error::other("the publisher panicked"))??;
        fed?;
        let deadline = Instant::now() + TIMEOUT;
        while node.workers.delivered() < published * copies && Instant::now() < deadline {
            node.read_once()?;
        }
        io::Result::Ok((published, began.elapsed()))
    })?;
    check(way, published, &*node.workers, &counters)?;
    let rate = published as f64 / took.as_secs_f64();
    let wall = node.own.wall.as_nanos() as f64 / published as f64;
    let cpu = node.own.cpu.as_nanos() as f64 / published as f64;
    if args.json {
        return Ok(format!(
            "{{\"source\":\"redis\",\"way\":\"{}\",\"messages\":{published},\"bytes\":{},\
             \"redis_messages_per_s\":{rate:.0},\"messages_per_s\":{:.0},\"ns\":{wall:.1},\
             \"cpu_ns\":{cpu:.1}}}",
            way.name,
            args.bytes,
            1e9 / cpu
        ));
    }
    Ok(format!(
        "{}: Redis sent {rate:.0} messages/s; the broker spent {cpu:.0} ns of CPU time on each \
         ({wall:.0} ns elapsed): it could handle {:.0}/s on a core of its own",
        way.name,
        1e9 / cpu
    ))
}

/// Publishes for the given time, and returns the number of messages.
fn publish(load: &Load, address: &str, length: Duration, progress: &Progress) -> io::Result<u64> {
    let mut link = connect(address)?;
    let (mut commands, envelopes) = load.commands(BATCH)?;
    let mut answers = [0; 16 << 10];
    let (mut published, mut unanswered) = (0_u64, 0_usize);
    let began = Instant::now();
    loop {
        while published.saturating_sub(progress.delivered.load(Relaxed)) > MAX_UNDER_WAY {
            thread::sleep(Duration::from_micros(50));
        }
        let is_last = began.elapsed() >= length;
        if !is_last {
            for (index, &at) in envelopes.iter().enumerate() {
                Load::number(published as usize + index, &mut commands[at..]);
            }
            link.write_all(&commands)?;
            published += BATCH as u64;
            unanswered += BATCH;
        }
        // The next batch is in flight while this one is answered.
        while unanswered > if is_last { 0 } else { BATCH } {
            let count = link.read(&mut answers)?;
            let lines = answers[..count].iter().filter(|&&byte| byte == b'\n').count();
            if count == 0 || answers[..count].contains(&b'-') || lines > unanswered {
                return Err(Error::other("Redis refused a PUBLISH"));
            }
            unanswered -= lines;
        }
        if is_last {
            return Ok(published);
        }
    }
}

fn connect(address: &str) -> io::Result<TcpStream> {
    let named = |error| Error::other(format!("{address}: {error}"));
    let stream = TcpStream::connect(address).map_err(named)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    Ok(stream)
}

impl Node {
    /// Connects, and waits until the broker is ready.
    fn open(broker: Broker, workers: Box<dyn Workers>, address: &str) -> io::Result<Self> {
        let now = Instant::now();
        let mut node = Self {
            broker,
            workers,
            publishing: connect(address)?,
            subscribing: connect(address)?,
            began: now,
            ticked: now,
            buffer: vec![0; 2 * READ_BYTES],
            filled: 0,
            own: OwnTime::default(),
        };
        // Its answers are polled; the subscribing link is read with blocking reads.
        node.publishing.set_nonblocking(true)?;
        node.subscribing.set_read_timeout(Some(Duration::from_millis(10)))?;
        node.broker.handle_open(node.now());
        while !node.broker.is_ready() {
            if node.began.elapsed() > TIMEOUT {
                return Err(Error::new(ErrorKind::TimedOut, "the broker did not become ready"));
            }
            node.talk()?;
            node.read_once()?;
        }
        node.own = OwnTime::default();
        Ok(node)
    }

    /// Both clocks are of the benchmark: nobody else sees the time.
    fn now(&self) -> Now {
        Now::default() + (self.began.elapsed().as_millis() as u64 + 1)
    }

    /// Reads until the publisher has ended.
    fn feed(&mut self, progress: &Progress, copies: u64) -> io::Result<()> {
        while !progress.is_over.load(Relaxed) {
            self.read_once()?;
            progress.delivered.store(self.workers.delivered() / copies, Relaxed);
        }
        Ok(())
    }

    /// Reads the subscribing link once.
    fn read_once(&mut self) -> io::Result<()> {
        let room = self.filled + READ_BYTES;
        match self.subscribing.read(&mut self.buffer[self.filled..room]) {
            Ok(0) => return Err(Error::new(ErrorKind::UnexpectedEof, "Redis closed the link")),
            Ok(count) => self.filled += count,
            Err(error) if is_nothing(&error) => {}
            Err(error) => return Err(error),
        }
        let now = self.now().monotonic;
        let bytes = &self.buffer[..self.filled];
        let handled = self.own.handle_bytes(&mut self.broker, bytes, now, &mut *self.workers)?;
        self.buffer.copy_within(handled..self.filled, 0);
        self.filled -= handled;
        self.workers.drain();
        if self.ticked.elapsed() >= TICK {
            self.ticked = Instant::now();
            self.tick()?;
        }
        Ok(())
    }

    fn tick(&mut self) -> io::Result<()> {
        let now = self.now();
        let broker = &mut self.broker;
        let mut result = Ok(());
        self.workers.with_sink(&mut |sink| result = broker.handle_tick(now, sink));
        result.map_err(Error::other)?;
        self.talk()
    }

    /// Writes what the broker has for Redis, and reads the answers on the publishing link.
    fn talk(&mut self) -> io::Result<()> {
        let mut out = Vec::new();
        self.broker.take_outgoing(LinkName::Publish, &mut out, usize::MAX);
        // A few hundred bytes of greetings, canaries and pings fit into the socket's buffer.
        self.publishing.write_all(&out)?;
        out.clear();
        self.broker.take_outgoing(LinkName::Subscribe, &mut out, usize::MAX);
        self.subscribing.write_all(&out)?;
        let mut answers = vec![0; 16 << 10];
        match self.publishing.read(&mut answers) {
            Ok(count) => answers.truncate(count),
            Err(error) if is_nothing(&error) => return Ok(()),
            Err(error) => return Err(error),
        }
        let now = self.now().monotonic;
        let broker = &mut self.broker;
        let mut result = Ok(());
        self.workers.with_sink(&mut |sink| {
            let handled = broker.handle_bytes(LinkName::Publish, &answers, now, sink);
            result = handled.map_err(Error::other).and_then(|handled| {
                let is_whole = handled.bytes == answers.len();
                if is_whole { Ok(()) } else { Err(Error::other("Redis sent only half of a reply")) }
            });
        });
        self.workers.drain();
        result
    }
}

fn is_nothing(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}
