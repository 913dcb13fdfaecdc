//! `bench bare-wake`: how long a message takes that only wakes one sleeping thread after another.
//!
//! A push that a client receives wakes the thread that handles it, the thread that holds the
//! client, and the client's own thread. Beside a load, no server can deliver it faster than these
//! threads, which do nothing else, pass it on.

use std::io::{self, Error, Read};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use argh::FromArgs;

/// Passes messages along a chain of sleeping threads, and prints how long they are under way.
#[derive(FromArgs)]
#[argh(subcommand, name = "bare-wake")]
pub struct Args {
    /// threads that a message wakes one after the other (default 3)
    #[argh(option, default = "3")]
    hops: usize,
    /// messages a second (default 50)
    #[argh(option, default = "50")]
    rate: u32,
    /// how long to send (default 5)
    #[argh(option, default = "5.0")]
    seconds: f64,
    /// end earlier, when standard input ends
    #[argh(switch)]
    until_eof: bool,
    /// print one line of JSON
    #[argh(switch)]
    json: bool,
}

pub fn run(args: &Args) -> io::Result<()> {
    let wrong = |text: &str| Err(Error::new(io::ErrorKind::InvalidInput, text));
    if args.hops == 0 || args.rate == 0 || args.rate > 10_000 {
        return wrong("--hops begins at 1, and --rate is from 1 to 10000");
    }
    if !(args.seconds > 0.0 && args.seconds <= 86_400.0) {
        return wrong("--seconds must be above 0 and at most 86400");
    }
    let (first, mut last) = channel();
    for _ in 1..args.hops {
        let (next, receiver) = channel();
        let from = std::mem::replace(&mut last, receiver);
        thread::Builder::new().spawn(move || pass_on(&from, &next))?;
    }
    let end = args.until_eof.then(end_of_input).transpose()?;
    let sender = thread::Builder::new().spawn({
        let (period, length) = (Duration::from_secs(1) / args.rate, args.seconds);
        move || send(&first, period, Duration::from_secs_f64(length), end.as_ref())
    })?;
    // The last hop is this thread.
    let mut took: Vec<Duration> = last.iter().map(|due: Instant| due.elapsed()).collect();
    sender.join().map_err(|_| Error::other("the sending thread panicked"))?;
    took.sort_unstable();
    let at = |share: f64| {
        let index = (took.len() as f64 * share) as usize;
        took.get(index.min(took.len().saturating_sub(1))).map_or(0, |took| took.as_micros())
    };
    let (p50, p99, max) = (at(0.5), at(0.99), at(1.0));
    if args.json {
        let count = took.len();
        println!("{{\"messages\":{count},\"p50_us\":{p50},\"p99_us\":{p99},\"max_us\":{max}}}");
    } else {
        println!(
            "{} messages over {} threads: p50 {p50} us, p99 {p99} us, the longest {max} us",
            took.len(),
            args.hops
        );
    }
    Ok(())
}

/// Sends the time at which each message is due: one that is sent late counts from then.
fn send(first: &Sender<Instant>, period: Duration, length: Duration, end: Option<&Receiver<()>>) {
    let began = Instant::now();
    let mut due = began + period;
    while due - began <= length {
        let wait = due.saturating_duration_since(Instant::now());
        let is_over = match end {
            Some(end) => end.recv_timeout(wait) != Err(std::sync::mpsc::RecvTimeoutError::Timeout),
            None => {
                thread::sleep(wait);
                false
            }
        };
        if is_over || first.send(due).is_err() {
            return;
        }
        due += period;
    }
}

fn pass_on(from: &Receiver<Instant>, to: &Sender<Instant>) {
    for due in from {
        if to.send(due).is_err() {
            return;
        }
    }
}

/// Returns a channel that is closed when standard input ends.
fn end_of_input() -> io::Result<Receiver<()>> {
    let (open, end) = channel::<()>();
    thread::Builder::new().spawn(move || {
        let mut buffer = [0; 64];
        while io::stdin().read(&mut buffer).is_ok_and(|bytes| bytes > 0) {}
        drop(open);
    })?;
    Ok(end)
}
