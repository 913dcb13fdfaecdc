//! `bench bare-send`: one thread sends the same bytes to every socket, round after round.
//!
//! The receiving side is another process on another core (`bench drain`) that only reads, as the
//! load tool would at best. The thread has its own descriptor table and core, as a worker has.

use std::io::{self, Error, Read};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, RawFd};
use std::process::{Child, Command};
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use argh::FromArgs;

use crate::sys;

/// Sends to N loopback sockets as fast as the kernel allows, and prints sends per second.
#[derive(FromArgs)]
#[argh(subcommand, name = "bare-send")]
pub struct Args {
    /// sockets to send to (default 10000)
    #[argh(option, default = "10_000")]
    connections: usize,
    /// bytes of one send (default 132)
    #[argh(option, default = "132")]
    bytes: usize,
    /// how long to send (default 3)
    #[argh(option, default = "3.0")]
    seconds: f64,
    /// send over io_uring instead of send(2)
    #[argh(switch)]
    ring: bool,
    /// rounds follow each other without waiting (the default)
    #[argh(switch)]
    free: bool,
    /// begin a round only when at most this many would be unconfirmed, itself included
    #[argh(option)]
    outstanding: Option<u64>,
    /// the receiver never sleeps, so that no send has to wake it
    #[argh(switch)]
    spin: bool,
    /// threads that send, each with its own table of descriptors and a receiver of its own; more
    /// than one run on any core (default 1)
    #[argh(option, default = "1")]
    threads: usize,
    /// the core that sends (default 0)
    #[argh(option, default = "0")]
    server_core: usize,
    /// the core that receives (default 1)
    #[argh(option, default = "1")]
    client_core: usize,
    /// print one line of JSON
    #[argh(switch)]
    json: bool,
}

#[derive(Default)]
struct Tally {
    rounds: u64,
    sends: u64,
    /// Sends that found the socket full, and were repeated once it had room.
    full: u64,
    /// Sends that the socket took only in part; the rest followed.
    short: u64,
    elapsed: Duration,
    cpu: Duration,
    /// Most CPU time of [`SLICE`] sends in a row.
    longest_slice: Duration,
}

/// Sends between two looks at the thread's CPU time: as many as a worker's ring sends at a time.
const SLICE: usize = 64;

pub fn run(args: &Args) -> io::Result<()> {
    let wrong = |text: &str| Err(Error::new(io::ErrorKind::InvalidInput, text));
    if args.free && args.outstanding.is_some() {
        return wrong("use --free or --outstanding, not both");
    }
    if args.connections == 0 || args.bytes == 0 || args.outstanding == Some(0) {
        return wrong("--connections, --bytes and --outstanding must be at least 1");
    }
    if !(args.seconds > 0.0 && args.seconds <= 3_600.0) {
        return wrong("--seconds must be above 0 and at most 3600");
    }
    if args.threads == 0 || args.connections < args.threads {
        return wrong("--threads must be at least 1, and each thread needs a connection");
    }
    let start = Barrier::new(args.threads);
    let tally = thread::scope(|scope| {
        let spawn = |_| scope.spawn(|| serve(args, &start));
        let threads: Vec<_> = (0..args.threads).map(spawn).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|_| Err(Error::other("a thread panicked"))))
            .try_fold(Tally::default(), |sum, tally| tally.map(|tally| sum.and(&tally)))
    })?;
    print(args, &tally);
    Ok(())
}

impl Tally {
    /// Adds the figures of another thread that sent at the same time.
    fn and(self, other: &Tally) -> Tally {
        Tally {
            rounds: self.rounds + other.rounds,
            sends: self.sends + other.sends,
            full: self.full + other.full,
            short: self.short + other.short,
            elapsed: self.elapsed.max(other.elapsed),
            cpu: self.cpu + other.cpu,
            longest_slice: self.longest_slice.max(other.longest_slice),
        }
    }
}

fn serve(args: &Args, start: &Barrier) -> io::Result<Tally> {
    let result = open(args);
    // Nobody sends while others are still connecting.
    start.wait();
    let (mut client, control, sockets) = result?;
    let tally = send_rounds(args, control, &sockets);
    // This closes its sockets, so it ends by itself unless it failed to start.
    drop(sockets);
    if tally.is_err() {
        client.kill()?;
    }
    client.wait()?;
    tally
}

fn open(args: &Args) -> io::Result<(Child, TcpStream, Vec<TcpStream>)> {
    sys::own_descriptor_table()?;
    if args.threads == 1 {
        sys::pin_to_core(args.server_core)?;
    }
    let count = args.connections / args.threads;
    sys::allow_descriptors(count as u64 + 64)?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    sys::deepen_backlog(listener.as_raw_fd())?;
    let mut client = spawn_client(args, count, listener.local_addr()?.port())?;
    match sys::accept_all(&listener, count) {
        Ok((control, sockets)) => Ok((client, control, sockets)),
        Err(error) => {
            client.kill()?;
            client.wait()?;
            Err(error)
        }
    }
}

fn spawn_client(args: &Args, count: usize, port: u16) -> io::Result<Child> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["drain", "--port", &port.to_string()]);
    command.args(["--connections", &count.to_string()]);
    command.args(["--bytes", &args.bytes.to_string()]);
    if args.threads == 1 {
        command.args(["--core", &args.client_core.to_string()]);
    }
    if let Some(outstanding) = args.outstanding {
        command.args(["--outstanding", &outstanding.to_string()]);
    }
    if args.spin {
        command.arg("--spin");
    }
    command.spawn()
}

fn send_rounds(args: &Args, mut control: TcpStream, sockets: &[TcpStream]) -> io::Result<Tally> {
    let fds: Vec<RawFd> = sockets.iter().map(AsRawFd::as_raw_fd).collect();
    let mut sender = Sender::new(args)?;
    let mut tally = Tally::default();
    let mut confirmed = 0;
    let limit = Duration::from_secs_f64(args.seconds);
    let (started, cpu_before) = (Instant::now(), sys::thread_cpu()?);
    while started.elapsed() < limit {
        if let Some(outstanding) = args.outstanding {
            await_confirmations(&mut control, &mut confirmed, tally.rounds, outstanding)?;
        }
        sender.round(&fds, &mut tally)?;
        tally.rounds += 1;
    }
    tally.elapsed = started.elapsed();
    tally.cpu = sys::thread_cpu()?.saturating_sub(cpu_before);
    Ok(tally)
}

/// Returns when the round after `rounds` may begin: all but `outstanding - 1` have fully arrived.
fn await_confirmations(
    control: &mut TcpStream,
    confirmed: &mut u64,
    rounds: u64,
    outstanding: u64,
) -> io::Result<()> {
    let mut acks = [0; 64];
    while *confirmed + outstanding <= rounds {
        match control.read(&mut acks)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => *confirmed += count as u64,
        }
    }
    Ok(())
}

enum Sender {
    Calls { payload: Box<[u8]> },
    Ring { ring: Box<sys::SendRing>, results: Vec<i32> },
}

impl Sender {
    fn new(args: &Args) -> io::Result<Self> {
        let payload = vec![b'x'; args.bytes].into_boxed_slice();
        if !args.ring {
            return Ok(Self::Calls { payload });
        }
        Ok(Self::Ring { ring: Box::new(sys::SendRing::new(payload)?), results: Vec::new() })
    }

    fn round(&mut self, fds: &[RawFd], tally: &mut Tally) -> io::Result<()> {
        match self {
            Self::Calls { payload } => {
                let mut before = sys::thread_cpu()?;
                for slice in fds.chunks(SLICE) {
                    for &fd in slice {
                        let sent = sys::send_now(fd, payload);
                        finish(fd, payload, sent, tally)?;
                    }
                    let after = sys::thread_cpu()?;
                    tally.longest_slice = tally.longest_slice.max(after.saturating_sub(before));
                    before = after;
                }
            }
            Self::Ring { ring, results } => {
                for chunk in fds.chunks(sys::SendRing::ENTRIES) {
                    ring.send_to_all(chunk, results)?;
                    for (&fd, &result) in chunk.iter().zip(results.iter()) {
                        let sent = match result {
                            0.. => Ok(result as usize),
                            _ => Err(Error::from_raw_os_error(-result)),
                        };
                        finish(fd, ring.payload(), sent, tally)?;
                    }
                }
            }
        }
        Ok(())
    }
}

/// Counts a first attempt, and then sends what the socket did not take.
fn finish(
    fd: RawFd,
    payload: &[u8],
    mut sent: io::Result<usize>,
    tally: &mut Tally,
) -> io::Result<()> {
    let mut done = 0;
    loop {
        match sent {
            Ok(count) => {
                done += count;
                if done == payload.len() {
                    tally.sends += 1;
                    return Ok(());
                }
                tally.short += 1;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                tally.full += 1;
                sys::await_writable(fd)?;
            }
            Err(error) => return Err(error),
        }
        sent = sys::send_now(fd, &payload[done..]);
    }
}

fn print(args: &Args, tally: &Tally) {
    let seconds = tally.elapsed.as_secs_f64();
    let rate = tally.sends as f64 / seconds;
    let ns = seconds * 1e9 / tally.sends.max(1) as f64;
    let cpu_ns = tally.cpu.as_secs_f64() * 1e9 / tally.sends.max(1) as f64;
    let longest_ms = tally.longest_slice.as_secs_f64() * 1e3;
    let call = if args.ring { "io_uring SEND" } else { "send(2)" };
    let mode = match args.outstanding {
        Some(outstanding) => format!("outstanding {outstanding}"),
        None => "free".into(),
    };
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let kernel = kernel.trim();
    let command = std::env::args().skip(1).collect::<Vec<_>>().join(" ");
    let Args { connections, bytes, threads, .. } = args;
    let Tally { rounds, sends, full, short, .. } = tally;
    if args.json {
        let command = command.escape_default();
        println!(
            "{{\"sends_per_s\":{rate:.0},\"ns_per_send\":{ns:.1},\"cpu_ns_per_send\":{cpu_ns:.1},\
             \"longest_slice_ms\":{longest_ms:.3},\"sends\":{sends},\
             \"rounds\":{rounds},\"seconds\":{seconds:.3},\"full\":{full},\
             \"short\":{short},\"call\":\"{call}\",\"mode\":\"{mode}\",\"connections\":\
             {connections},\"threads\":{threads},\"bytes\":{bytes},\"cores\":{cores},\
             \"kernel\":\"{kernel}\",\
             \"command\":\"bench {command}\"}}"
        );
        return;
    }
    println!("{rate:.0} sends/s, {ns:.0} ns per send, {cpu_ns:.0} ns of them CPU time");
    println!(
        "{call}, {mode}, {connections} sockets, {bytes} bytes, {rounds} rounds, {seconds:.2} s"
    );
    println!(
        "{full} sends found the socket full, {short} were partial; both were continued until \
         complete"
    );
    if !args.ring {
        println!("{SLICE} sends in a row took at most {longest_ms:.3} ms of CPU time");
    }
    println!("machine: {cores} cores, Linux {kernel}");
    println!("command: bench {command}");
}
