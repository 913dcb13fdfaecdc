//! Scenarios: phases that a population of connections goes through, with traffic and checks.
//!
//! There are three kinds of threads. The driver ([`driver`]) leads: it begins the phases, pushes
//! over HTTP, and decides when a push must have arrived. The crew ([`crew`]) owns the connections,
//! each thread an equal part, and counts arrivals. Canaries ([`canaries`]) have their own thread,
//! so that their latency is the server's and not the crew's.

mod canaries;
mod crew;
mod driver;
pub mod file;
mod ledger;
pub mod plan;
mod receiver;
mod requesters;
mod sender;
mod shared;
mod stats;
mod summary;
mod verdict;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::arguments::Options;
use crate::report::Report;
use crate::run::{self, Common};
use crate::series::Live;
use crate::sys;
use plan::Scenario;
use shared::Shared;

/// What one thread returns.
enum Outcome {
    Crew(Box<crew::Outcome>),
    Driver(Box<driver::Outcome>),
    Canaries(canaries::Outcome),
    Requesters(Box<requesters::Outcome>),
}

/// Runs a scenario. `command` is its name in the report.
pub fn run(options: &Options, command: &str, mut scenario: Scenario) -> Result<Report, String> {
    let mut common = options.check(scenario.population.connections, "")?;
    let crew_threads = common.threads;
    let has_canaries = scenario.phases.iter().any(|phase| phase.canaries.is_some());
    let has_requests = scenario.phases.iter().any(|phase| phase.traffic.requests_per_s > 0.0);
    // One more thread each for the driver, the canaries and the requests.
    let others = usize::from(has_canaries) + usize::from(has_requests);
    common.threads = crew_threads + 1 + others;
    common.live = Box::leak(Box::new(Live::new(common.threads)));
    common.needs_http = true;
    apply(&mut common, &mut scenario)?;
    let shared = Shared::new(&common, &scenario, run::run_number(), crew_threads)?;
    shared.unready.store(others, Ordering::Relaxed);
    let bar = common.bar(scenario.population.connections, command);
    let watch = || {
        let phase = scenario.phases.get(shared.phase()).map_or("", |phase| &phase.name);
        let deliveries = common.live.sum(|thread| &thread.deliveries);
        bar.set_position(shared.open());
        bar.set_message(format!("open  {phase}  {deliveries} deliveries"));
    };
    let body = |t: usize, ready: Result<(), String>| match t {
        t if t < crew_threads => {
            crew::run(&shared, t, ready).map(|crew| Outcome::Crew(Box::new(crew)))
        }
        t if t == crew_threads => {
            driver::run(&shared, ready).map(|driver| Outcome::Driver(Box::new(driver)))
        }
        t if has_canaries && t == crew_threads + 1 => {
            canaries::run(&shared, t, ready).map(Outcome::Canaries)
        }
        t => requesters::run(&shared, t, ready)
            .map(|requesters| Outcome::Requesters(Box::new(requesters))),
    };
    let outcomes = common.run_threads(body, watch)?;
    bar.finish_and_clear();
    summary::summarize(&shared, command, outcomes)
}

/// Applies the scenario's population to the common settings.
fn apply(common: &mut Common, scenario: &mut Scenario) -> Result<(), String> {
    let population = &mut scenario.population;
    if let Some(prefix) = &population.uid_prefix {
        common.identity.uid_prefix.clone_from(prefix);
    }
    common.concurrency = population.concurrency.unwrap_or(common.concurrency);
    common.timeout_ns = population.timeout_ns.unwrap_or(common.timeout_ns);
    if let Some(audience) = Arc::get_mut(&mut population.audience) {
        audience.first_user = common.first_user;
        if audience.devices.is_empty() && !common.identity.device.is_empty() {
            audience.devices.push(common.identity.device.clone());
        }
    }
    common.identity.audience = Some(Arc::clone(&population.audience));
    if scenario.phases.iter().any(|phase| phase.drain) {
        let Some(pid) = common.server_pid else {
            return Err("a phase with drain = true needs --pid-of-server".to_owned());
        };
        if !sys::is_running(pid) {
            return Err(format!("--pid-of-server {pid}: no such process"));
        }
    }
    Ok(())
}
