//! The simulator: one node of several `state::Worker`s in memory, with simulated sockets, clients
//! that behave and clients that do not, and simulated time. Everything that happens follows from
//! one seed.
//!
//! `SIM_SEED=7` repeats a run, `SIM_STEPS` lengthens each run, `SIM_RUNS` makes more of them. A
//! failure prints its seed and what happened last.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod checks;
mod model;
mod net;
#[path = "../support/rng.rs"]
mod rng;

use rng::Rng;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

fn setting(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

fn run(seed: u64, steps: u64) {
    let mut node = net::Node::new(seed);
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        for _ in 0..steps {
            node.step();
        }
        node.end();
    }));
    if let Err(panic) = outcome {
        eprintln!("the last events:");
        for line in &node.log {
            eprintln!("  {line}");
        }
        eprintln!("repeat with: SIM_SEED={seed} SIM_STEPS={steps} cargo test --test sim");
        resume_unwind(panic);
    }
}

#[test]
fn a_push_reaches_exactly_the_right_clients() {
    let steps = setting("SIM_STEPS").unwrap_or(4_000);
    match setting("SIM_SEED") {
        Some(seed) => run(seed, steps),
        None => {
            let runs = setting("SIM_RUNS").unwrap_or(150);
            let first = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
            let first = first.as_millis() as u64;
            println!("seeds {first} to {}", first + runs - 1);
            (first..first + runs).for_each(|seed| run(seed, steps));
        }
    }
}

#[test]
fn the_same_seed_is_the_same_run() {
    let fingerprint = |seed| {
        let mut node = net::Node::new(seed);
        (0..500).for_each(|_| node.step());
        (node.log.clone(), node.totals())
    };
    assert_eq!(fingerprint(3), fingerprint(3));
}
