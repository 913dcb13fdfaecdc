//! `bench stalls`: how often a core of this machine stops under a loop that only reads the clock.
//! The server cannot reach a tail latency below this figure.

use std::io;
use std::time::{Duration, Instant};

use argh::FromArgs;

use crate::sys;

/// Counts the moments in which a spinning core was taken away, by their length.
#[derive(FromArgs)]
#[argh(subcommand, name = "stalls")]
pub struct Args {
    /// how long to look (default 4)
    #[argh(option, default = "4.0")]
    seconds: f64,
    /// the core to look at (default 0)
    #[argh(option, default = "0")]
    core: usize,
    /// print one line of JSON
    #[argh(switch)]
    json: bool,
}

/// A gap between two clock readings that the loop itself cannot cause.
const STALL: Duration = Duration::from_micros(100);

pub fn run(args: &Args) -> io::Result<()> {
    sys::pin_to_core(args.core)?;
    let began = Instant::now();
    let length = Duration::from_secs_f64(args.seconds);
    let (mut last, mut stalls) = (began, Vec::new());
    while last - began < length {
        let now = Instant::now();
        if now - last > STALL {
            stalls.push((now - last).as_micros() as u64);
        }
        last = now;
    }
    let per_s = |at_least_us: u64| {
        stalls.iter().filter(|&&us| us >= at_least_us).count() as f64 / args.seconds
    };
    let longest_us = stalls.iter().max().copied().unwrap_or(0);
    let lost = stalls.iter().sum::<u64>() as f64 / 1e4 / args.seconds;
    let (small, large) = (per_s(250), per_s(1_000));
    if args.json {
        println!(
            "{{\"stalls_250us_per_s\":{small:.2},\"stalls_1ms_per_s\":{large:.2},\
             \"longest_us\":{longest_us},\"lost_percent\":{lost:.2}}}"
        );
    } else {
        println!(
            "core {}: {small:.1} stalls of 250 us or more per second, {large:.1} of 1 ms or more, \
             the longest {longest_us} us, {lost:.2} % of the time",
            args.core
        );
    }
    Ok(())
}
