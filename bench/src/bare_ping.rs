//! `bench bare-ping`: the minimum cost of a ping and its pong, over many idle sockets.
//!
//! There is a thread per descriptor table, as with the server's workers: each polls its sockets on
//! an io_uring, sends 2 bytes to the next of them at intervals, and reads the 6 bytes that come
//! back. The other side is one process per thread (`bench drain --answer`) on another core.

use std::io::{self, Error};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, RawFd};
use std::process::{Child, Command};
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use argh::FromArgs;

use crate::sys::{self, PollRing};

/// Pings N idle loopback sockets in turn, and prints the CPU time of a ping and its pong.
#[derive(FromArgs)]
#[argh(subcommand, name = "bare-ping")]
pub struct Args {
    /// sockets, over all threads (default 10000)
    #[argh(option, default = "10_000")]
    connections: usize,
    /// threads, each with its own table of descriptors (default 1)
    #[argh(option, default = "1")]
    threads: usize,
    /// pings a second, over all threads (default 2000)
    #[argh(option, default = "2_000")]
    rate: u64,
    /// milliseconds between two batches of a thread (default 50)
    #[argh(option, default = "50")]
    every_ms: u64,
    /// how long to ping (default 5)
    #[argh(option, default = "5.0")]
    seconds: f64,
    /// send with send(2), not over io_uring
    #[argh(switch)]
    calls: bool,
    /// the core that pings (default: any)
    #[argh(option)]
    server_core: Option<usize>,
    /// the core that answers (default: any)
    #[argh(option)]
    client_core: Option<usize>,
    /// print one line of JSON
    #[argh(switch)]
    json: bool,
}

#[derive(Default)]
struct Tally {
    pings: u64,
    pongs: u64,
    /// Number of returns from waiting for the ring.
    wakes: u64,
    cpu: Duration,
}

const PING: &[u8] = b"\x89\x00";

pub fn run(args: &Args) -> io::Result<()> {
    let wrong = |text: &str| Err(Error::new(io::ErrorKind::InvalidInput, text));
    if args.threads == 0 || args.connections < args.threads || args.every_ms == 0 {
        return wrong(
            "--threads and --every-ms must be at least 1, and each thread needs a connection",
        );
    }
    if !(args.seconds > 0.0 && args.seconds <= 3_600.0) {
        return wrong("--seconds must be above 0 and at most 3600");
    }
    let start = Barrier::new(args.threads);
    let tallies = thread::scope(|scope| {
        let spawn = |_| scope.spawn(|| serve(args, &start));
        let threads: Vec<_> = (0..args.threads).map(spawn).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|_| Err(Error::other("a thread panicked"))))
            .collect::<io::Result<Vec<Tally>>>()
    })?;
    print(args, &tallies);
    Ok(())
}

fn serve(args: &Args, start: &Barrier) -> io::Result<Tally> {
    let result = open(args);
    // Nobody begins while others are still connecting.
    start.wait();
    let (mut client, control, sockets) = result?;
    let result = ping(args, &sockets);
    drop((control, sockets));
    client.wait()?;
    result
}

fn open(args: &Args) -> io::Result<(Child, TcpStream, Vec<TcpStream>)> {
    sys::own_descriptor_table()?;
    if let Some(core) = args.server_core {
        sys::pin_to_core(core)?;
    }
    let count = args.connections / args.threads;
    sys::allow_descriptors(count as u64 + 64)?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    sys::deepen_backlog(listener.as_raw_fd())?;
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["drain", "--answer", "--bytes", "2", "--connections", &count.to_string()]);
    command.args(["--port", &listener.local_addr()?.port().to_string()]);
    if let Some(core) = args.client_core {
        command.args(["--core", &core.to_string()]);
    }
    let mut client = command.spawn()?;
    match sys::accept_all(&listener, count) {
        Ok((control, sockets)) => Ok((client, control, sockets)),
        Err(error) => {
            client.kill()?;
            client.wait()?;
            Err(error)
        }
    }
}

fn ping(args: &Args, sockets: &[TcpStream]) -> io::Result<Tally> {
    let fds: Vec<RawFd> = sockets.iter().map(AsRawFd::as_raw_fd).collect();
    let mut ring = PollRing::new(PING)?;
    for (index, &fd) in fds.iter().enumerate() {
        ring.poll(fd, index as u32)?;
    }
    let every = Duration::from_millis(args.every_ms);
    let per_batch = args.rate as f64 / args.threads as f64 * every.as_secs_f64();
    let (mut tally, mut buffer, mut next) = (Tally::default(), vec![0; 64 << 10], 0);
    let (began, cpu_before) = (Instant::now(), sys::thread_cpu()?);
    let limit = Duration::from_secs_f64(args.seconds);
    let (mut batches, mut results) = (0, Vec::new());
    loop {
        let elapsed = began.elapsed();
        if elapsed >= limit {
            break;
        }
        let due = every * (batches + 1);
        if elapsed >= due {
            batches += 1;
            let until = (per_batch * f64::from(batches)) as u64;
            while tally.pings < until {
                let fd = fds[next];
                next = (next + 1) % fds.len();
                tally.pings += 1;
                if args.calls {
                    sys::send_now(fd, PING)?;
                } else {
                    ring.send(fd)?;
                }
            }
            continue;
        }
        ring.wait(due.min(limit).saturating_sub(elapsed), &mut results)?;
        tally.wakes += 1;
        for index in results.drain(..) {
            let fd = fds[index as usize];
            match sys::receive_now(fd, &mut buffer) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(bytes) => tally.pongs += bytes as u64 / 6,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
            ring.poll(fd, index)?;
        }
    }
    tally.cpu = sys::thread_cpu()?.saturating_sub(cpu_before);
    Ok(tally)
}

fn print(args: &Args, tallies: &[Tally]) {
    let sum = |field: fn(&Tally) -> u64| tallies.iter().map(field).sum::<u64>();
    let (pings, pongs, wakes) = (sum(|one| one.pings), sum(|one| one.pongs), sum(|one| one.wakes));
    let cpu: Duration = tallies.iter().map(|one| one.cpu).sum();
    let us = cpu.as_secs_f64() * 1e6 / pongs.max(1) as f64;
    let per_wake = pongs as f64 / wakes.max(1) as f64;
    let call = if args.calls { "send(2)" } else { "io_uring SEND" };
    let Args { connections, threads, every_ms, .. } = args;
    let command = std::env::args().skip(1).collect::<Vec<_>>().join(" ");
    if args.json {
        let command = command.escape_default();
        println!(
            "{{\"cpu_us_per_ping\":{us:.2},\"pings\":{pings},\"pongs\":{pongs},\"wakes\":{wakes},\
             \"connections\":{connections},\"threads\":{threads},\"every_ms\":{every_ms},\
             \"call\":\"{call}\",\"command\":\"bench {command}\"}}"
        );
        return;
    }
    println!("{us:.2} us of CPU time for a ping and its pong");
    println!("{pings} pings, {pongs} pongs, {wakes} wakes, {per_wake:.1} pongs per wake, {call}");
    println!("{connections} sockets, {threads} threads, a batch every {every_ms} ms");
    println!("command: bench {command}");
}
