//! What the live page shows, read at one moment: raw counters. The page computes rates from their
//! differences and shows a chart only if its numbers are present.

use crate::io::clock;
use crate::io::shared::Shared;
use crate::ops::metrics::read::{self, longest_pauses_us, projects};
use crate::ops::metrics::{self, Value, process};
use crate::ops::node_view::NodeView;
use crate::state::counters::{
    Answered, CLOSE_CAUSES, Counters, DURATION_BOUNDS, Drop, HttpCounters, LATENCY_BOUNDS_US,
    Latencies, PAUSE_BOUNDS_US, Pauses, RecentConnect,
};
use crate::types::NodeId;
use serde::{Serialize, Serializer};
use std::cmp::Reverse;
use std::net::{IpAddr, SocketAddr};
use std::sync::PoisonError;

/// Projects that the page shows by name.
const PROJECTS_BY_NAME: usize = 20;

/// Connections that the page lists as those that opened last.
const RECENT: usize = 8;

/// Reads everything that the page shows; nothing else does.
pub(super) fn snapshot(view: &NodeView) -> serde_json::Result<Vec<u8>> {
    serde_json::to_vec(&Snapshot::of(view))
}

#[derive(Serialize)]
struct Snapshot {
    ts: u64,
    node: u16,
    version: &'static str,
    env: &'static str,
    epoch: u64,
    uptime_ms: u64,
    draining: bool,
    /// The last reload.
    #[serde(skip_serializing_if = "Option::is_none")]
    reload: Option<LastReload>,
    ws: SocketAddr,
    http: SocketAddr,
    #[serde(skip_serializing_if = "Option::is_none")]
    dev_project: Option<DevProject>,
    workers: Vec<Members<Figure>>,
    threads: Vec<ThreadTime>,
    memory_bytes: u64,
    handshakes: Members<u64, u16>,
    requests: Vec<AnsweredRequests>,
    request_duration: Histogram,
    /// The latency of pushes: in total, and by hop.
    push_seconds: Members<Histogram>,
    /// How long workers take to serve all ready tasks, and the part they cause themselves.
    pause_seconds: Members<Histogram>,
    longest_pause_us: Members<u64>,
    answers: Members<u64>,
    queue: QueueState,
    nodes: Vec<NodeState>,
    projects: Vec<ProjectConnections>,
    /// The connections that opened last, the newest first.
    recent: Vec<Recent>,
}

#[derive(Serialize)]
struct LastReload {
    ts: u64,
    ok: bool,
}

#[derive(Serialize)]
struct DevProject {
    pid: &'static str,
    secret: &'static str,
}

#[derive(Serialize)]
struct ThreadTime {
    name: String,
    busy_us: u64,
}

#[derive(Serialize)]
struct AnsweredRequests {
    url: &'static str,
    code: u16,
    count: u64,
}

/// The last count is of values above the last bound.
#[derive(Serialize)]
struct Histogram {
    bounds: Vec<f64>,
    counts: Vec<u64>,
}

/// The `local` queue is always ready and has no counters.
#[derive(Serialize)]
struct QueueState {
    kind: &'static str,
    ready: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    trouble: Option<String>,
    #[serde(flatten)]
    counters: Option<Members<u64>>,
}

#[derive(Serialize)]
struct NodeState {
    node: u16,
    state: &'static str,
}

#[derive(Serialize)]
struct ProjectConnections {
    pid: Box<str>,
    clients: u64,
    servers: u64,
}

#[derive(Serialize)]
struct Recent {
    ts: u64,
    client_id: String,
    pid: Box<str>,
    uid: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    ip: Option<IpAddr>,
}

/// An object whose members are named by a table, in its order.
struct Members<V, K = &'static str>(Vec<(K, V)>);

impl<V: Serialize, K: Serialize> Serialize for Members<V, K> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, value)| (name, value)))
    }
}

/// A member of a worker: a counter, or several by reason.
#[derive(Serialize)]
#[serde(untagged)]
enum Figure {
    Count(u64),
    ByReason(Members<u64>),
}

impl Snapshot {
    fn of(view: &NodeView) -> Self {
        let shared = &*view.shared;
        let now = clock::now();
        let threads = process::tasks();
        let requests = read::answered(shared).into_iter();
        let projects = projects(shared, PROJECTS_BY_NAME).into_iter();
        let both = shared.counters.iter().zip(&shared.http_counters);
        let (request_counts, _) = read::request_counts(shared);
        Self {
            ts: now.wall.value(),
            node: shared.at_start.node.value(),
            version: env!("CARGO_PKG_VERSION"),
            env: shared.at_start.env.name(),
            epoch: shared.started.wall.value(),
            uptime_ms: now.monotonic.since(shared.started.monotonic),
            draining: shared.is_draining(),
            reload: shared.reloads.last().map(|(at, ok)| LastReload { ts: at.value(), ok }),
            ws: view.ws,
            http: view.http,
            dev_project: shared
                .active()
                .settings
                .dev_project
                .map(|(pid, secret)| DevProject { pid, secret }),
            workers: both.map(|(worker, http)| self::worker(worker, http)).collect(),
            threads: threads
                .map(|(_, name, busy_ns)| ThreadTime { name, busy_us: busy_ns / 1_000 })
                .collect(),
            memory_bytes: process::memory()[1],
            handshakes: Members(read::statuses(shared, |http| &http.handshakes)),
            requests: requests
                .map(|(url, code, count)| AnsweredRequests { url, code, count })
                .collect(),
            request_duration: Histogram {
                bounds: DURATION_BOUNDS.into(),
                counts: request_counts.into(),
            },
            push_seconds: push_seconds(shared),
            pause_seconds: pause_seconds(shared),
            longest_pause_us: Members(longest_pauses_us(shared).into()),
            answers: answers(shared),
            queue: queue(shared),
            nodes: nodes(shared),
            projects: projects
                .map(|(clients, servers, pid)| ProjectConnections { pid, clients, servers })
                .collect(),
            recent: recent(shared),
        }
    }
}

fn recent(shared: &Shared) -> Vec<Recent> {
    let projects = shared.active().projects;
    let mut recent: Vec<RecentConnect> =
        shared.counters.iter().flat_map(|worker| worker.recent.list()).collect();
    recent.sort_by_key(|one| Reverse(one.cid));
    let listed = recent.into_iter().take(RECENT).filter_map(|one| {
        let RecentConnect { at, cid, project, uid, ip } = one;
        let pid = projects.get(project)?.pid.clone();
        Some(Recent { ts: at.value(), client_id: cid.to_string(), pid, uid: uid.into(), ip })
    });
    listed.collect()
}

/// Returns the nodes that this node currently hears.
fn nodes(shared: &Shared) -> Vec<NodeState> {
    let own = shared.at_start.node;
    let mut nodes =
        shared.broker_counters.nodes.lock().unwrap_or_else(PoisonError::into_inner).clone();
    if nodes.is_empty() {
        nodes.push(own);
    }
    let state = |node: NodeId| {
        let is_leaving = node == own && shared.is_draining();
        NodeState { node: node.value(), state: if is_leaving { "draining" } else { "up" } }
    };
    nodes.into_iter().map(state).collect()
}

fn worker(worker: &Counters, http: &HttpCounters) -> Members<Figure> {
    let counts = metrics::live().filter_map(|(name, value)| match *value {
        Value::Worker(of) | Value::EachWorker(of) => Some((name, of(worker).value())),
        Value::Http(of) => Some((name, of(http).value())),
        _ => None,
    });
    let pushes = [
        ("pushes_accepted", worker.pushes_accepted.value()),
        ("pushes_refused", worker.pushes_refused.value()),
    ];
    let drops = Drop::ALL.into_iter().map(|(reason, name)| (name, worker.drops(reason)));
    let closes = CLOSE_CAUSES.into_iter().enumerate();
    let closes = closes.map(|(cause, name)| (name, worker.closes(cause)));
    let counts = counts.chain(pushes).map(|(name, count)| (name, Figure::Count(count)));
    let by_reason = [
        ("drops", Figure::ByReason(Members(drops.collect()))),
        ("closes", Figure::ByReason(Members(closes.collect()))),
    ];
    Members(counts.chain(by_reason).collect())
}

fn push_seconds(shared: &Shared) -> Members<Histogram> {
    type Read = fn(&Counters) -> &Latencies;
    let hops: [(&str, Read); 4] = [
        ("delivery", |worker| &worker.delivery_latency),
        ("queue", |worker| &worker.queue_latency),
        ("receive", |worker| &worker.receive_latency),
        ("write", |worker| &worker.write_latency),
    ];
    let histogram = |of| {
        let (counts, _) = read::latency_counts(shared, of);
        Histogram { bounds: seconds(&LATENCY_BOUNDS_US), counts: counts.into() }
    };
    Members(hops.map(|(hop, of)| (hop, histogram(of))).into())
}

fn pause_seconds(shared: &Shared) -> Members<Histogram> {
    type Read = fn(&Counters) -> &Pauses;
    let kinds: [(&str, Read); 2] =
        [("wall", |worker| &worker.pauses), ("own", |worker| &worker.own_pauses)];
    let histogram = |of| {
        let (counts, _) = read::pause_counts(shared, of);
        Histogram { bounds: seconds(&PAUSE_BOUNDS_US), counts: counts.into() }
    };
    Members(kinds.map(|(kind, of)| (kind, histogram(of))).into())
}

fn seconds(bounds_us: &[u64]) -> Vec<f64> {
    bounds_us.iter().map(|&us| us as f64 / 1e6).collect()
}

/// Returns the results of requests to business servers.
fn answers(shared: &Shared) -> Members<u64> {
    let sum = |how| shared.counters.iter().map(|worker| worker.answered(how)).sum();
    Members(Answered::ALL.into_iter().map(|(how, name)| (name, sum(how))).collect())
}

fn queue(shared: &Shared) -> QueueState {
    let has_redis = shared.at_start.redis.is_some();
    QueueState {
        kind: if has_redis { "redis" } else { "local" },
        ready: !has_redis || shared.broker_counters.ready.value() == 1,
        trouble: shared.queue.trouble(),
        counters: has_redis.then(|| broker(shared)),
    }
}

fn broker(shared: &Shared) -> Members<u64> {
    let broker = &shared.broker_counters;
    let declared = metrics::live().filter_map(|(name, value)| match *value {
        Value::Broker(of) => Some((name, of(broker).value())),
        _ => None,
    });
    let others = [
        ("published", broker.published.value()),
        ("refused", broker.refused.value()),
        ("unknown", broker.unknown.value()),
        ("worker_full", broker.worker_full.value()),
        ("lag_ms", broker.lag_ms.value()),
        ("missed", broker.missed().values().sum()),
    ];
    Members(declared.chain(others).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_stay_in_the_order_of_their_table() {
        let counters = Some(Members(vec![("sent", 2), ("lost", 1)]));
        let queue = QueueState { kind: "redis", ready: false, trouble: None, counters };
        let json = serde_json::to_string(&queue).unwrap();
        assert_eq!(json, r#"{"kind":"redis","ready":false,"sent":2,"lost":1}"#);
        let by_status = Members(vec![(503_u16, 1), (101, 2)]);
        assert_eq!(serde_json::to_string(&by_status).unwrap(), r#"{"503":1,"101":2}"#);
    }
}
