//! What the live page shows, read at one moment: raw counters. The page computes rates from their
//! differences and shows a chart only if its numbers are present.

use crate::io::shared::Shared;
use crate::io::sys;
use crate::ops::metrics::read::{self, longest_pauses_us, projects};
use crate::ops::metrics::{self, Value, process};
use crate::ops::node_view::NodeView;
use crate::ops::pages::json::{self, Object};
use crate::state::counters::{
    Answered, CLOSE_CAUSES, Counters, DURATION_BOUNDS, Drop, HttpCounters, LATENCY_BOUNDS_US,
    Latencies, PAUSE_BOUNDS_US, Pauses,
};
use crate::types::NodeId;
use std::sync::PoisonError;

/// Projects that the page shows by name.
const PROJECTS_BY_NAME: usize = 20;

/// Reads everything that the page shows; nothing else does.
pub(super) fn snapshot(view: &NodeView) -> Vec<u8> {
    let shared = &*view.shared;
    json::object(|top| {
        node(top, view);
        let both = shared.counters.iter().zip(&shared.http_counters);
        top.objects("workers", both, |one, (worker, http)| self::worker(one, worker, http));
        top.objects("threads", process::tasks(), |one, (_, name, busy_ns)| {
            one.text("name", &name);
            one.value("busy_us", busy_ns / 1_000);
        });
        top.value("memory_bytes", process::memory()[1]);
        requests(top, shared);
        pushes(top, shared);
        pauses(top, shared);
        servers(top, shared);
        queue(top, shared);
        top.objects("nodes", nodes(shared), |one, node| {
            let is_leaving = node == shared.settings.node && shared.is_draining();
            one.value("node", node.value());
            one.text("state", if is_leaving { "draining" } else { "up" });
        });
        let projects = projects(shared, PROJECTS_BY_NAME);
        top.objects("projects", projects, |one, (clients, servers, pid)| {
            one.text("pid", pid);
            one.value("clients", clients);
            one.value("servers", servers);
        });
    })
}

/// Returns the nodes that this node currently hears.
fn nodes(shared: &Shared) -> Vec<NodeId> {
    let heard = shared.broker_counters.nodes.lock().unwrap_or_else(PoisonError::into_inner).clone();
    if heard.is_empty() { vec![shared.settings.node] } else { heard }
}

fn node(top: &mut Object<'_>, view: &NodeView) {
    let shared = &*view.shared;
    let now_ms = sys::now_ms();
    top.value("ts", now_ms);
    top.value("node", shared.settings.node.value());
    top.text("version", env!("CARGO_PKG_VERSION"));
    top.text("env", shared.settings.env);
    top.value("epoch", shared.started_ms);
    top.value("uptime_ms", now_ms.saturating_sub(shared.started_ms));
    top.value("draining", shared.is_draining());
    top.text("ws", &view.ws.to_string());
    top.text("http", &view.http.to_string());
    if let Some((pid, secret)) = shared.settings.dev_project {
        top.object("dev_project", |project| {
            project.text("pid", pid);
            project.text("secret", secret);
        });
    }
}

fn worker(one: &mut Object<'_>, worker: &Counters, http: &HttpCounters) {
    for (name, value) in metrics::live() {
        match *value {
            Value::Worker(of) | Value::EachWorker(of) => one.value(name, of(worker).value()),
            Value::Http(of) => one.value(name, of(http).value()),
            _ => {}
        }
    }
    one.value("pushes_accepted", worker.pushes_accepted.value());
    one.value("pushes_refused", worker.pushes_refused.value());
    one.object("drops", |drops| {
        for (reason, name) in Drop::ALL {
            drops.value(name, worker.drops(reason));
        }
    });
    one.object("closes", |closes| {
        for (cause, name) in CLOSE_CAUSES.into_iter().enumerate() {
            closes.value(name, worker.closes(cause));
        }
    });
}

fn requests(top: &mut Object<'_>, shared: &Shared) {
    top.object("handshakes", |handshakes| {
        for (status, count) in read::statuses(shared, |http| &http.handshakes) {
            handshakes.value(&status.to_string(), count);
        }
    });
    top.objects("requests", read::answered(shared), |one, (url, code, count)| {
        one.text("url", url);
        one.value("code", code);
        one.value("count", count);
    });
    let (counts, _) = read::request_counts(shared);
    top.object("request_duration", |histogram| {
        // The last count is of values above the last bound.
        histogram.values("bounds", DURATION_BOUNDS);
        histogram.values("counts", counts);
    });
}

/// Writes the latency of pushes: in total, and by hop.
fn pushes(top: &mut Object<'_>, shared: &Shared) {
    type Read = fn(&Counters) -> &Latencies;
    let hops: [(&str, Read); 4] = [
        ("delivery", |worker| &worker.delivery_latency),
        ("queue", |worker| &worker.queue_latency),
        ("receive", |worker| &worker.receive_latency),
        ("write", |worker| &worker.write_latency),
    ];
    top.object("push_seconds", |all| {
        for (name, latencies) in hops {
            let (counts, _) = read::latency_counts(shared, latencies);
            all.object(name, |histogram| {
                histogram.values("bounds", LATENCY_BOUNDS_US.map(|us| us as f64 / 1e6));
                histogram.values("counts", counts);
            });
        }
    });
}

/// Writes how long workers take to serve all ready tasks, and the part they cause themselves.
fn pauses(top: &mut Object<'_>, shared: &Shared) {
    type Read = fn(&Counters) -> &Pauses;
    let kinds: [(&str, Read); 2] =
        [("wall", |worker| &worker.pauses), ("own", |worker| &worker.own_pauses)];
    top.object("pause_seconds", |all| {
        for (name, of) in kinds {
            let (counts, _) = read::pause_counts(shared, of);
            all.object(name, |histogram| {
                histogram.values("bounds", PAUSE_BOUNDS_US.map(|us| us as f64 / 1e6));
                histogram.values("counts", counts);
            });
        }
    });
    top.object("longest_pause_us", |longest| {
        for (time, us) in longest_pauses_us(shared) {
            longest.value(time, us);
        }
    });
}

fn servers(top: &mut Object<'_>, shared: &Shared) {
    top.object("answers", |answers| {
        for (how, name) in Answered::ALL {
            let of_workers = shared.counters.iter().map(|worker| worker.answered(how));
            answers.value(name, of_workers.sum::<u64>());
        }
    });
}

/// Writes the state of the queue. The `local` queue is always ready and has no other counters.
fn queue(top: &mut Object<'_>, shared: &Shared) {
    let broker = &shared.broker_counters;
    top.object("queue", |queue| {
        let has_redis = shared.settings.redis.is_some();
        queue.text("kind", if has_redis { "redis" } else { "local" });
        queue.value("ready", !has_redis || broker.ready.value() == 1);
        if let Some(trouble) = shared.queue.trouble() {
            queue.text("trouble", &trouble);
        }
        if !has_redis {
            return;
        }
        for (name, value) in metrics::live() {
            if let Value::Broker(of) = *value {
                queue.value(name, of(broker).value());
            }
        }
        for (name, counter) in [
            ("published", &broker.published),
            ("refused", &broker.refused),
            ("unknown", &broker.unknown),
            ("worker_full", &broker.worker_full),
            ("lag_ms", &broker.lag_ms),
        ] {
            queue.value(name, counter.value());
        }
        queue.value("missed", broker.missed().values().sum::<u64>());
    });
}
