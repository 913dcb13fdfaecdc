//! Readers of metrics that are not a single counter.

use super::{Distribution, Labels, Samples};
use crate::io::clock;
use crate::io::shared::Shared;
use crate::state::counters::{
    CLOSE_CAUSES, Counter, Counters, DURATION_BOUNDS, Drop, HttpCounters, LATENCY_BOUNDS_US,
    Latencies, PAUSE_BOUNDS_US, Pauses, ProjectCounters, Refusal, Shed, StatusCounts, URLS,
};
use crate::types::version;

/// Projects shown by name, those with the most connections; the others are summed.
const PROJECTS_BY_NAME: usize = 100;

fn sum(shared: &Shared, of: fn(&Counters) -> &Counter) -> u64 {
    shared.counters.iter().map(|worker| of(worker).value()).sum()
}

/// Returns the sums of a set of status counts over all workers, without zeros.
pub(in crate::ops) fn statuses(
    shared: &Shared,
    counts: impl Fn(&HttpCounters) -> &StatusCounts,
) -> Vec<(u16, u64)> {
    let mut sums: Vec<(u16, u64)> = Vec::new();
    for counters in &shared.http_counters {
        for (index, (status, count)) in counts(counters).iter().enumerate() {
            match sums.get_mut(index) {
                Some(sum) => sum.1 += count,
                None => sums.push((status, count)),
            }
        }
    }
    sums.retain(|&(_, count)| count > 0);
    sums
}

/// Returns path, status and number of the answered requests.
pub(in crate::ops) fn answered(shared: &Shared) -> Vec<(&'static str, u16, u64)> {
    let urls = (0..URLS.len()).flat_map(|index| {
        let statuses = statuses(shared, |http| http.url(index));
        statuses.into_iter().map(move |(status, count)| (URLS[index], status, count))
    });
    urls.collect()
}

pub(super) fn requests_answered(shared: &Shared) -> u64 {
    answered(shared).iter().map(|(_, _, count)| count).sum()
}

pub(super) fn requests(shared: &Shared, samples: &mut Samples) {
    for (url, code, count) in answered(shared) {
        samples.add(vec![("url", url.into()), ("code", code.to_string())], count);
    }
}

pub(super) fn handshakes(shared: &Shared, samples: &mut Samples) {
    for (result, count) in statuses(shared, |http| &http.handshakes) {
        samples.add(vec![("result", result.to_string())], count);
    }
}

/// Returns the number of requests in each bucket and the sum of their durations in seconds.
pub(in crate::ops) fn request_counts(shared: &Shared) -> ([u64; DURATION_BOUNDS.len() + 1], f64) {
    let mut counts = [0; DURATION_BOUNDS.len() + 1];
    let mut sum_s = 0.0;
    for http in &shared.http_counters {
        let (more, more_s) = http.durations();
        counts.iter_mut().zip(more).for_each(|(count, more)| *count += more);
        sum_s += more_s;
    }
    (counts, sum_s)
}

pub(super) fn durations(shared: &Shared) -> Distribution {
    let (counts, sum_s) = request_counts(shared);
    Distribution::new(&DURATION_BOUNDS, &counts, sum_s)
}

/// Returns the number of all workers' latencies in each bucket and their sum in microseconds.
pub(in crate::ops) fn latency_counts(
    shared: &Shared,
    of: fn(&Counters) -> &Latencies,
) -> ([u64; LATENCY_BOUNDS_US.len() + 1], u64) {
    let mut counts = [0; LATENCY_BOUNDS_US.len() + 1];
    let mut sum_us = 0;
    for worker in &shared.counters {
        let (more, more_us) = of(worker).read();
        counts.iter_mut().zip(more).for_each(|(count, more)| *count += more);
        sum_us += more_us;
    }
    (counts, sum_us)
}

pub(super) fn latencies(shared: &Shared, of: fn(&Counters) -> &Latencies) -> Distribution {
    let (counts, sum_us) = latency_counts(shared, of);
    let bounds = LATENCY_BOUNDS_US.map(|us| us as f64 / 1e6);
    Distribution::new(&bounds, &counts, sum_us as f64 / 1e6)
}

pub(super) fn hops(shared: &Shared) -> Vec<Distribution> {
    type Read = fn(&Counters) -> &Latencies;
    let hops: [(&str, Read); 3] = [
        ("queue", |worker| &worker.queue_latency),
        ("receive", |worker| &worker.receive_latency),
        ("write", |worker| &worker.write_latency),
    ];
    let hops = hops.into_iter();
    hops.map(|(hop, of)| latencies(shared, of).with(vec![("hop", hop.into())])).collect()
}

/// Returns the number of all workers' pauses in each bucket and their sum in nanoseconds.
pub(in crate::ops) fn pause_counts(
    shared: &Shared,
    of: fn(&Counters) -> &Pauses,
) -> ([u64; PAUSE_BOUNDS_US.len() + 1], u64) {
    let mut counts = [0; PAUSE_BOUNDS_US.len() + 1];
    let mut sum_ns = 0;
    for worker in &shared.counters {
        let (more, more_ns) = of(worker).read();
        counts.iter_mut().zip(more).for_each(|(count, more)| *count += more);
        sum_ns += more_ns;
    }
    (counts, sum_ns)
}

pub(super) fn pauses(shared: &Shared, of: fn(&Counters) -> &Pauses) -> Distribution {
    let (counts, sum_ns) = pause_counts(shared, of);
    let bounds = PAUSE_BOUNDS_US.map(|us| us as f64 / 1e6);
    Distribution::new(&bounds, &counts, sum_ns as f64 / 1e9)
}

/// Returns the longest pauses of all workers in microseconds, by cause.
pub(in crate::ops) fn longest_pauses_us(shared: &Shared) -> [(&'static str, u64); 2] {
    let now = clock::monotonic();
    let longest = |of: fn(&Counters) -> &Pauses| {
        shared.counters.iter().map(|worker| of(worker).longest_us(now)).max().unwrap_or(0)
    };
    [("wall", longest(|worker| &worker.pauses)), ("own", longest(|worker| &worker.own_pauses))]
}

pub(super) fn longest_pauses(shared: &Shared, samples: &mut Samples) {
    for (time, longest_us) in longest_pauses_us(shared) {
        samples.add_f64(vec![("time", time.into())], longest_us as f64 / 1e6);
    }
}

pub(super) fn stalled_s(shared: &Shared) -> f64 {
    sum(shared, |worker| &worker.stalled_ms) as f64 / 1e3
}

pub(super) fn accept_errors(shared: &Shared) -> u64 {
    let of_workers = shared.http_counters.iter().map(|http| http.accept_errors.value());
    of_workers.sum::<u64>() + shared.ops_accept_errors.value()
}

pub(super) fn closes(shared: &Shared, samples: &mut Samples) {
    for (cause, name) in CLOSE_CAUSES.into_iter().enumerate() {
        samples.sum(shared, "reason", name, |worker| worker.closes(cause));
    }
}

pub(super) fn sheds(shared: &Shared, samples: &mut Samples) {
    for (why, name) in Shed::ALL {
        samples.sum(shared, "reason", name, |worker| worker.sheds(why));
    }
}

/// Counts what the workers dropped, and the broker if it has a ring to each of them.
pub(super) fn drops(shared: &Shared, samples: &mut Samples) {
    for (reason, name) in Drop::ALL {
        samples.sum(shared, "reason", name, |worker| worker.drops(reason));
    }
    let worker_full = shared.broker_counters.worker_full.value();
    samples.add(vec![("reason", "worker_full".into())], worker_full);
}

pub(super) fn refusals(shared: &Shared, samples: &mut Samples) {
    for (why, port, reason) in Refusal::ALL {
        let labels = |port: &str| vec![("port", port.into()), ("reason", reason.into())];
        let of_workers = shared.http_counters.iter().map(|http| http.refusals.value(why));
        let of_ops = shared.ops_refusals.value(why);
        let count = if port == "ops" { of_ops } else { of_workers.sum::<u64>() };
        samples.add(labels(port), count);
        // The ops ports refuse connections for the same reasons.
        if port == "http" {
            samples.add(labels("ops"), of_ops);
        }
    }
}

pub(super) fn pushes(shared: &Shared, samples: &mut Samples) {
    samples.sum(shared, "result", "accepted", |worker| worker.pushes_accepted.value());
    samples.sum(shared, "result", "refused", |worker| worker.pushes_refused.value());
}

/// Returns clients, business servers and pid of the projects that have any: the `named` ones with
/// the most by name, the rest summed as `other`.
pub(in crate::ops) fn projects(shared: &Shared, named: usize) -> Vec<(u64, u64, Box<str>)> {
    let projects = shared.active().projects;
    let mut list: Vec<(u64, u64, &str)> = Vec::new();
    // Those of removed projects count until they are closed.
    for (id, project) in projects.iter() {
        let of = |counter| of_project(shared, id.0 as usize, counter);
        let (clients, servers) = (of(|project| &project.clients), of(|project| &project.servers));
        if clients + servers > 0 {
            list.push((clients, servers, &project.pid));
        }
    }
    list.sort_unstable_by_key(|&(clients, servers, pid)| (u64::MAX - clients - servers, pid));
    let rest = list.split_off(list.len().min(named));
    if !rest.is_empty() {
        let sum = |of: fn(&(u64, u64, &str)) -> u64| rest.iter().map(of).sum();
        list.push((sum(|one| one.0), sum(|one| one.1), "other"));
    }
    list.into_iter().map(|(clients, servers, pid)| (clients, servers, pid.into())).collect()
}

fn of_project(shared: &Shared, index: usize, counter: fn(&ProjectCounters) -> &Counter) -> u64 {
    let its = shared.counters.iter().filter_map(|worker| worker.projects.get(index));
    its.map(|project| counter(project).value()).sum()
}

pub(super) fn project_connections(shared: &Shared, samples: &mut Samples) {
    for (clients, servers, pid) in projects(shared, PROJECTS_BY_NAME) {
        for (kind, count) in [("client", clients), ("server", servers)] {
            samples.add(vec![("project", pid.to_string()), ("type", kind.into())], count);
        }
    }
}

/// Counts refusals because a project, or one of its connections, is at a limit.
pub(super) fn limited(shared: &Shared, samples: &mut Samples) {
    type Of = fn(&ProjectCounters) -> &Counter;
    let limits: [(&str, Of); 2] = [
        ("requests_of_client", |project| &project.limited_by_client),
        ("requests_of_project", |project| &project.limited_by_project),
    ];
    for (id, project) in shared.active().projects.iter() {
        for (limit, of) in limits {
            let count = of_project(shared, id.0 as usize, of);
            if count > 0 {
                let pid = project.pid.to_string();
                samples.add(vec![("project", pid), ("limit", limit.into())], count);
            }
        }
    }
}

pub(super) fn memory_limit(shared: &Shared) -> Option<u64> {
    shared.memory.limit.as_ref().map(|limit| limit.bytes)
}

pub(super) fn memory_used(shared: &Shared) -> Option<u64> {
    memory_limit(shared).map(|_| shared.memory.used_bytes() as u64)
}

pub(super) fn servers_known(shared: &Shared) -> u64 {
    shared.counters.iter().map(|worker| worker.servers_known.value()).min().unwrap_or(0)
}

pub(super) fn parcels_unsent(shared: &Shared) -> u64 {
    let by_broker = shared.broker_counters.parcels_refused.value();
    sum(shared, |worker| &worker.parcels_unsent) + by_broker
}

pub(super) fn info(shared: &Shared, samples: &mut Samples) {
    let settings = &shared.at_start;
    let labels: Labels = vec![
        ("version", version::VERSION.to_owned()),
        ("commit", version::COMMIT.to_owned()),
        ("node", settings.node.to_string()),
        ("queue", if settings.redis.is_some() { "redis" } else { "local" }.to_owned()),
        ("workers", settings.workers.to_string()),
    ];
    samples.add(labels, 1);
}

pub(super) fn reloads(shared: &Shared, samples: &mut Samples) {
    let reloads = &shared.reloads;
    for (result, counter) in [("ok", &reloads.done), ("error", &reloads.failed)] {
        samples.add(vec![("result", result.into())], counter.value());
    }
}

/// With the `local` queue, pushes are always accepted.
pub(super) fn queue_ready(shared: &Shared) -> u64 {
    if shared.at_start.redis.is_some() { shared.broker_counters.ready.value() } else { 1 }
}

pub(super) fn nodes(shared: &Shared) -> u64 {
    shared.broker_counters.nodes.lock().map_or(0, |nodes| nodes.len() as u64)
}

pub(super) fn lag_s(shared: &Shared) -> f64 {
    shared.broker_counters.lag_ms.value() as f64 / 1e3
}

pub(super) fn publishes(shared: &Shared, samples: &mut Samples) {
    let broker = &shared.broker_counters;
    for (result, counter) in [
        ("accepted", &broker.published),
        ("refused", &broker.refused),
        ("unknown", &broker.unknown),
    ] {
        samples.add(vec![("result", result.into())], counter.value());
    }
}

pub(super) fn missed(shared: &Shared, samples: &mut Samples) {
    for ((origin, channel), missed) in shared.broker_counters.missed() {
        samples.add(vec![("origin", origin.to_string()), ("channel", channel)], missed);
    }
}

pub(super) fn ignored(shared: &Shared, samples: &mut Samples) {
    let broker = &shared.broker_counters;
    let reasons = [
        ("unknown_kind", &broker.unknown_kind),
        ("unknown_project", &broker.unknown_project),
        ("false_number", &broker.false_numbers),
    ];
    for (reason, counter) in reasons {
        samples.add(vec![("reason", reason.into())], counter.value());
    }
}

pub(super) fn too_large(shared: &Shared, samples: &mut Samples) {
    let broker = &shared.broker_counters;
    let pushes = sum(shared, |worker| &worker.too_large_pushes) + broker.too_large_pushes.value();
    let parcels =
        sum(shared, |worker| &worker.too_large_parcels) + broker.too_large_parcels.value();
    for (what, count) in [("push", pushes), ("parcel", parcels)] {
        samples.add(vec![("what", what.into())], count);
    }
}

pub(super) fn max_message_bytes(shared: &Shared) -> u64 {
    shared.queue.limit().map_or(0, |limit| limit.bytes as u64)
}
