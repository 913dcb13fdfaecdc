//! Simulators. `net`: one node of several `state::Worker`s in memory, with simulated sockets and
//! with well-behaved and misbehaving clients. `cluster`: several nodes, each with a broker, on a
//! simulated Redis, with simple clients and links that break. Time is simulated, and everything
//! that happens follows from one seed.
//!
//! The seeds are the same each time, so that a failure is due to a change. `SIM_RUNS=300` makes
//! more runs, with new seeds (`make sim`); `SIM_SEED=7` repeats one, with both the runs begin at
//! that seed; `SIM_STEPS` lengthens each. A failure prints its seed and the last events.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod business;
mod checks;
mod cluster;
mod model;
mod net;
#[path = "../support/rng.rs"]
mod rng;

use business::requests::REFUSALS;
use rng::Rng;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use ws_cluster::types::{MonotonicMs, Now, WallMs};

trait Simulation {
    fn new(seed: u64) -> Self;
    fn step(&mut self);
    /// Lets everything finish, and checks what remains.
    fn end(&mut self);
    fn log(&self) -> &VecDeque<String>;
    /// Returns counts of what was done: the same for the same seed.
    fn totals(&self) -> Vec<u64>;
}

fn setting(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

fn run<S: Simulation>(test: &str, seed: u64, steps: u64) -> S {
    let mut simulation = S::new(seed);
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        for _ in 0..steps {
            simulation.step();
        }
        simulation.end();
    }));
    if let Err(panic) = outcome {
        eprintln!("the last events:");
        for line in simulation.log() {
            eprintln!("  {line}");
        }
        eprintln!("repeat with: SIM_SEED={seed} SIM_STEPS={steps} cargo test --test sim {test}");
        resume_unwind(panic);
    }
    simulation
}

/// Makes many runs, or the requested one. Returns the sum of their totals.
fn run_many<S: Simulation>(test: &str, runs: u64, steps: u64) -> Vec<u64> {
    let steps = setting("SIM_STEPS").unwrap_or(steps);
    let (first, runs) = match (setting("SIM_SEED"), setting("SIM_RUNS")) {
        (Some(seed), runs) => (seed, runs.unwrap_or(1)),
        (None, None) => (1, runs),
        (None, Some(runs)) => {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
            (now.as_millis() as u64, runs)
        }
    };
    println!("seeds {first} to {}", first + runs - 1);
    let mut sum: Vec<u64> = Vec::new();
    for seed in first..first + runs {
        let totals = run::<S>(test, seed, steps).totals();
        sum.resize(sum.len().max(totals.len()), 0);
        sum.iter_mut().zip(totals).for_each(|(sum, one)| *sum += one);
    }
    sum
}

/// The time of a simulation is the one by which everything is measured; the wall clock may show
/// another, and the monotonic clock has an origin of its own.
fn now_of(now_ms: u64, wall_ms: u64) -> Now {
    const ORIGIN_MS: u64 = 1_799_999_000_000;
    Now { monotonic: MonotonicMs::new(now_ms - ORIGIN_MS), wall: WallMs::new(wall_ms) }
}

/// Keeps the first line, and the last `most` of the others.
fn numbered_log(lines: &mut VecDeque<String>, most: usize, now_ms: u64, line: String) {
    if lines.len() > most {
        lines.remove(1);
    }
    lines.push_back(format!("{now_ms} {line}"));
}

fn print_requests(totals: &[u64]) {
    println!("requests answered {}, then {REFUSALS:?}: {:?}", totals[0], &totals[1..6]);
    println!("events told {}, of those between workers checked {}", totals[6], totals[7]);
}

fn fingerprint<S: Simulation>(seed: u64) -> (VecDeque<String>, Vec<u64>) {
    let mut simulation = S::new(seed);
    (0..500).for_each(|_| simulation.step());
    (simulation.log().clone(), simulation.totals())
}

#[test]
fn a_push_reaches_exactly_the_right_clients() {
    let test = "a_push_reaches_exactly_the_right_clients";
    print_requests(&run_many::<net::Node>(test, 150, 4_000));
}

#[test]
fn a_cluster_loses_nothing_that_it_does_not_count() {
    let test = "a_cluster_loses_nothing_that_it_does_not_count";
    let totals = run_many::<cluster::Cluster>(test, 30, 2_000);
    let (outcomes, rest) = totals.split_at(6);
    println!("accepted, unreachable, overloaded, refused, too large, unknown: {outcomes:?}");
    println!("deliveries checked {}, commands {}, losses {}", rest[0], rest[1], rest[2]);
    print_requests(&rest[3..]);
    println!("refusals judged {}, output buffers that filled {}", rest[11], rest[12]);
}

#[test]
fn the_same_seed_is_the_same_run() {
    assert_eq!(fingerprint::<net::Node>(3), fingerprint::<net::Node>(3));
    assert_eq!(fingerprint::<cluster::Cluster>(3), fingerprint::<cluster::Cluster>(3));
}
