//! What is shown of the workers: pushes on their way to sockets, bytes, and who is connected.

use super::{Label, NodeMetrics, encode_counter, encode_counter_f64, encode_gauge};
use crate::io::shared::Shared;
use crate::io::sys;
use crate::state::counters::{
    Counter, Counters, LATENCY_BOUNDS_US, Latencies, PAUSE_BOUNDS_US, Pauses, ProjectCounters,
};
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeLabelSet, EncodeMetric, MetricEncoder, NoLabelSet,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use std::fmt;

/// Projects that are shown by name, those with the most connections; the others in sum.
const PROJECTS_BY_NAME: usize = 100;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ProjectLabels {
    project: String,
    r#type: &'static str,
}

pub(super) fn encode(node: &NodeMetrics, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    encode_pushes(node, encoder)?;
    encode_projects(node, encoder)?;
    let sent = node.sum(|worker| &worker.sent_bytes);
    encode_counter(encoder, "ws_sent_bytes", "Bytes that WebSocket connections took", sent)?;
    let received = node.sum(|worker| &worker.received_bytes);
    let help = "Bytes that came from WebSocket connections, after their handshakes";
    encode_counter(encoder, "ws_received_bytes", help, received)?;
    let dropped = node.sum(|worker| &worker.spans_dropped);
    encode_counter(encoder, "span_dropped", "Spans that the exporter was too slow for", dropped)?;
    let backlogged = node.sum(|worker| &worker.backlogged);
    if let Some(limit) = &node.0.settings.memory_limit {
        let help = "Memory that the process may use, from which budgets follow by default";
        encode_gauge(encoder, "ws_cluster_memory_limit_bytes", help, limit.bytes)?;
        let help = "What of it is used and cannot be taken back by the kernel, as of the last look";
        let used = node.0.memory.used_bytes() as u64;
        encode_gauge(encoder, "ws_cluster_memory_used_bytes", help, used)?;
    }
    let inbound = node.sum(|worker| &worker.inbound_bytes);
    let help = "Memory of WebSocket messages that have not arrived whole";
    encode_gauge(encoder, "ws_cluster_inbound_bytes", help, inbound)?;
    let help = "Connections that did not take all they are owed yet";
    encode_gauge(encoder, "outbox_connection", help, backlogged)?;
    each_gauge(node, encoder, "worker_connection", "Open WebSocket connections of each worker", {
        |worker| &worker.connections
    })?;
    let help = "Bytes of messages that wait for a worker, as of its last tick";
    each_gauge(node, encoder, "worker_waiting_bytes", help, |worker| &worker.waiting_bytes)?;
    let help = "Seconds that a worker's WebSocket side worked before others had their turn";
    let kind = MetricType::Histogram;
    let family = encoder.encode_descriptor("ws_cluster_worker_turn_seconds", help, None, kind)?;
    encode_latencies(node, family, |worker| &worker.turns)?;
    encode_pauses(node, encoder)?;
    let stalled_ms = node.sum(|worker| &worker.stalled_ms);
    let help = "Seconds in which workers did not run although deadlines were to be looked at; \
                they do not count towards timeouts of clients";
    let stalled_s = stalled_ms as f64 / 1e3;
    encode_counter_f64(encoder, "ws_cluster_worker_stalled_seconds", help, stalled_s)?;
    let help = "Pushes that each worker handed to sockets, one for each connection";
    let mut family =
        encoder.encode_descriptor("worker_delivery", help, None, MetricType::Counter)?;
    for (index, worker) in node.0.counters.iter().enumerate() {
        let labels = Label::new("worker", &index.to_string());
        ConstCounter::new(worker.deliveries.value()).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

fn encode_pauses(node: &NodeMetrics, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let kind = MetricType::Histogram;
    let help = "Seconds that somebody who is ready waits until a worker comes round to it: the \
                length of a round of all its tasks that have work";
    let family = encoder.encode_descriptor("ws_cluster_worker_pause_seconds", help, None, kind)?;
    encode_pause_histogram(node, family, |worker| &worker.pauses)?;
    let help = "The workers' own part of ws_cluster_worker_pause_seconds: processor time, without \
                what other threads had of the core";
    let name = "ws_cluster_worker_own_pause_seconds";
    let family = encoder.encode_descriptor(name, help, None, kind)?;
    encode_pause_histogram(node, family, |worker| &worker.own_pauses)?;
    let help = "The longest pause of the last 5 minutes, if it was longer than 0.5 ms: of all \
                (time=wall), and by the worker's own part (time=own)";
    let name = "ws_cluster_worker_longest_pause_seconds";
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (time, longest_us) in longest_pauses(&node.0) {
        let labels = Label::new("time", time);
        let gauge = ConstGauge::new(longest_us as f64 / 1e6);
        gauge.encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

/// Microseconds of the longest pauses of all workers, by whose time it is.
pub(in crate::ops) fn longest_pauses(shared: &Shared) -> [(&'static str, u64); 2] {
    let now_ms = sys::now_ms();
    let longest = |of: fn(&Counters) -> &Pauses| {
        shared.counters.iter().map(|worker| of(worker).longest_us(now_ms)).max().unwrap_or(0)
    };
    [("wall", longest(|worker| &worker.pauses)), ("own", longest(|worker| &worker.own_pauses))]
}

/// Pauses of all workers: how many are in each bucket, and their sum in nanoseconds.
pub(in crate::ops) fn pauses(
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

fn encode_pause_histogram(
    node: &NodeMetrics,
    mut encoder: MetricEncoder<'_>,
    of: fn(&Counters) -> &Pauses,
) -> fmt::Result {
    let (counts, sum_ns) = pauses(&node.0, of);
    let bounds = PAUSE_BOUNDS_US.iter().map(|&us| us as f64 / 1e6).chain([f64::INFINITY]);
    let buckets: Vec<(f64, u64)> = bounds.zip(counts).collect();
    let total = counts.iter().sum();
    encoder.encode_histogram::<NoLabelSet>(sum_ns as f64 / 1e9, total, &buckets, None)
}

fn encode_pushes(node: &NodeMetrics, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let results = [
        ("accepted", node.sum(|worker| &worker.pushes_accepted)),
        ("refused", node.sum(|worker| &worker.pushes_refused)),
    ];
    let help = "Pushes of backends over HTTP and WebSocket, by what became of them";
    let mut family = encoder.encode_descriptor("push", help, None, MetricType::Counter)?;
    for (result, count) in results {
        let labels = Label::new("result", result);
        ConstCounter::new(count).encode(family.encode_family(&labels)?)?;
    }
    let help = "Seconds from the acceptance of a push, at whichever node, until a worker has \
                handed it to its sockets";
    let kind = MetricType::Histogram;
    let family = encoder.encode_descriptor("push_delivery_seconds", help, None, kind)?;
    encode_latencies(node, family, |worker| &worker.delivery_latency)?;
    let help = "Seconds of a push's way: queue, from its acceptance to the queue's answer; \
                receive, from its acceptance to a worker with clients for it; write, from there \
                to the sockets";
    let mut family = encoder.encode_descriptor("push_hop_seconds", help, None, kind)?;
    let mut hop = |hop, latencies: fn(&Counters) -> &Latencies| {
        encode_latencies(node, family.encode_family(&Label::new("hop", hop))?, latencies)
    };
    hop("queue", |worker| &worker.queue_latency)?;
    hop("receive", |worker| &worker.receive_latency)?;
    hop("write", |worker| &worker.write_latency)
}

fn encode_latencies(
    node: &NodeMetrics,
    mut encoder: MetricEncoder<'_>,
    latencies: impl Fn(&Counters) -> &Latencies,
) -> fmt::Result {
    let mut counts = [0; LATENCY_BOUNDS_US.len() + 1];
    let mut sum_us = 0;
    for worker in &node.0.counters {
        let (more, more_us) = latencies(worker).read();
        counts.iter_mut().zip(more).for_each(|(count, more)| *count += more);
        sum_us += more_us;
    }
    let bounds = LATENCY_BOUNDS_US.iter().map(|&us| us as f64 / 1e6).chain([f64::INFINITY]);
    let buckets: Vec<(f64, u64)> = bounds.zip(counts).collect();
    let total = counts.iter().sum();
    encoder.encode_histogram::<NoLabelSet>(sum_us as f64 / 1e6, total, &buckets, None)
}

/// Clients, business servers and pid of the projects that have any: the `named` ones with the most,
/// the rest together as `other`.
pub(in crate::ops) fn projects(shared: &Shared, named: usize) -> Vec<(u64, u64, &str)> {
    let mut list: Vec<(u64, u64, &str)> = Vec::new();
    for (id, project) in shared.projects.iter() {
        let of = |counter: fn(&ProjectCounters) -> &Counter| -> u64 {
            let workers = shared.counters.iter();
            workers
                .filter_map(|one| one.projects.get(id.0 as usize))
                .map(|p| counter(p).value())
                .sum()
        };
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
    list
}

fn encode_projects(node: &NodeMetrics, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let help = "Open WebSocket connections by project, the 100 with the most by name";
    let kind = MetricType::Gauge;
    let mut family = encoder.encode_descriptor("ws_project_connection", help, None, kind)?;
    for (clients, servers, pid) in projects(&node.0, PROJECTS_BY_NAME) {
        for (r#type, count) in [("client", clients), ("server", servers)] {
            let labels = ProjectLabels { project: pid.into(), r#type };
            ConstGauge::new(count as i64).encode(family.encode_family(&labels)?)?;
        }
    }
    Ok(())
}

fn each_gauge(
    node: &NodeMetrics,
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    gauge: impl Fn(&Counters) -> &Counter,
) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (index, worker) in node.0.counters.iter().enumerate() {
        let labels = Label::new("worker", &index.to_string());
        ConstGauge::new(gauge(worker).value() as i64).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}
