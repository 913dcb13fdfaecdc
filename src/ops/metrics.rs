//! `/metrics` for Prometheus.

pub(super) mod process;
mod queue;
mod servers;
mod text;
pub(super) mod workers;

use super::reply::Reply;
use crate::io::shared::Shared;
use crate::state::counters::{
    CLOSE_CAUSES, Counter, Counters, DURATION_BOUNDS, Drop, HttpCounters, Refusal,
};
use crate::state::counters::{Shed, StatusCounts, URLS};
use crate::types::version;
use crate::wire::http::Head;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeLabel, EncodeLabelSet, EncodeMetric, LabelSetEncoder, NoLabelSet,
    text::encode,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use std::fmt;
use std::sync::Arc;

/// What `/metrics` shows.
pub fn registry(shared: &Arc<Shared>) -> Registry {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(NodeMetrics(Arc::clone(shared))));
    registry
}

/// Answers a request to the Prometheus port.
pub fn answer(registry: &Registry, head: &Head<'_>) -> Reply {
    if head.path != "/metrics" {
        return Reply::text(404, "see /metrics\n");
    }
    let mut text = String::new();
    if encode(&mut text, registry).is_err() {
        return Reply::text(500, "not encoded\n");
    }
    let reply = if text::wants_plain(head.accept) {
        Reply::new(200, text::PLAIN, text::to_plain(&text))
    } else {
        Reply::new(200, text::OPEN_METRICS, text)
    };
    reply.with("Vary", "Accept")
}

#[derive(Debug)]
struct NodeMetrics(Arc<Shared>);

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct UrlLabels {
    url: &'static str,
    code: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabels {
    result: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RefusalLabels {
    port: &'static str,
    reason: &'static str,
}

impl NodeMetrics {
    fn sum(&self, counter: impl Fn(&Counters) -> &Counter) -> u64 {
        self.0.counters.iter().map(|counters| counter(counters).value()).sum()
    }

    fn sum_http(&self, counter: impl Fn(&HttpCounters) -> &Counter) -> u64 {
        self.0.http_counters.iter().map(|counters| counter(counters).value()).sum()
    }

    /// Sums of a set of status counts over all workers, those that are not zero.
    fn statuses(&self, counts: impl Fn(&HttpCounters) -> &StatusCounts) -> Vec<(u16, u64)> {
        let mut sums: Vec<(u16, u64)> = Vec::new();
        for counters in &self.0.http_counters {
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

    fn encode_requests(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let urls: Vec<_> = (0..URLS.len())
            .map(|index| (URLS[index], self.statuses(|http| http.url(index))))
            .collect();
        let total = urls.iter().flat_map(|(_, statuses)| statuses).map(|(_, count)| count).sum();
        encode_counter(encoder, "request", "HTTP requests answered", total)?;
        let help = "HTTP requests answered, by path and status";
        let mut family =
            encoder.encode_descriptor("request_url", help, None, MetricType::Counter)?;
        for (url, statuses) in urls {
            for (code, count) in statuses {
                let labels = UrlLabels { url, code };
                ConstCounter::new(count).encode(family.encode_family(&labels)?)?;
            }
        }
        let mut counts = [0; DURATION_BOUNDS.len() + 1];
        let mut sum = 0.0;
        for counters in &self.0.http_counters {
            let (worker_counts, worker_sum) = counters.durations();
            counts.iter_mut().zip(worker_counts).for_each(|(count, more)| *count += more);
            sum += worker_sum;
        }
        let bounds = DURATION_BOUNDS.into_iter().chain([f64::INFINITY]);
        let buckets: Vec<(f64, u64)> = bounds.zip(counts).collect();
        let help = "Seconds from a whole HTTP request to its answer";
        let kind = MetricType::Histogram;
        let mut histogram = encoder.encode_descriptor("request_duration", help, None, kind)?;
        histogram.encode_histogram::<NoLabelSet>(sum, counts.iter().sum(), &buckets, None)
    }

    fn encode_info(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let settings = &self.0.settings;
        let labels = vec![
            ("version", version::VERSION.to_owned()),
            ("commit", version::COMMIT.to_owned()),
            ("node", settings.node.to_string()),
            ("queue", if settings.redis.is_some() { "redis" } else { "local" }.to_owned()),
            ("workers", settings.workers.to_string()),
        ];
        let help = "The program, and what it was started as";
        let kind = MetricType::Info;
        Info::new(labels).encode(encoder.encode_descriptor("ws_cluster", help, None, kind)?)
    }

    /// The room for connections, and who found none.
    fn encode_room(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "WebSocket connections that this node has room for: --max_connections, or what \
                    the limit of open files leaves";
        encode_gauge(encoder, "ws_cluster_connections_limit", help, self.0.room() as u64)?;
        let half_open = self.sum_http(|http| &http.half_open);
        let help = "WebSocket handshakes that are not answered, as of the last tick";
        encode_gauge(encoder, "ws_cluster_handshakes", help, half_open)?;
        let bytes = self.sum_http(|http| &http.handshake_bytes);
        let help = "Bytes allocated for the requests of handshakes, as of the last tick";
        encode_gauge(encoder, "ws_cluster_handshake_bytes", help, bytes)?;
        let bodies = self.sum_http(|http| &http.body_bytes);
        let help = "Bytes allocated for HTTP requests, as of the last tick";
        encode_gauge(encoder, "ws_cluster_http_body_bytes", help, bodies)?;
        let help = "Connections refused, or ended in favour of others, for want of room";
        let kind = MetricType::Counter;
        let mut family = encoder.encode_descriptor("ws_cluster_refused", help, None, kind)?;
        for (why, port, reason) in Refusal::ALL {
            let of_workers = self.0.http_counters.iter().map(|http| http.refusals.value(why));
            let of_ops = self.0.ops_refusals.value(why);
            let count = if port == "ops" { of_ops } else { of_workers.sum::<u64>() };
            let labels = RefusalLabels { port, reason };
            ConstCounter::new(count).encode(family.encode_family(&labels)?)?;
            if port == "http" {
                let labels = RefusalLabels { port: "ops", reason };
                ConstCounter::new(of_ops).encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }

    fn encode_keys(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let remembered = self.sum(|worker| &worker.remembered_keys);
        let help = "Idempotency keys that are remembered, one for each worker";
        encode_gauge(encoder, "idempotency_key", help, remembered)?;
        let repeated = self.sum(|worker| &worker.repeated_keys);
        let help = "Pushes left out because their key was remembered, one for each worker";
        encode_counter(encoder, "idempotency_repeated", help, repeated)?;
        let forgotten = self.sum(|worker| &worker.forgotten_keys);
        let help = "Idempotency keys forgotten before their time, for want of room";
        encode_counter(encoder, "idempotency_forgotten", help, forgotten)
    }
}

impl Collector for NodeMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let encoder = &mut encoder;
        self.encode_requests(encoder)?;
        let connections = self.sum(|worker| &worker.connections);
        encode_gauge(encoder, "ws_connection", "Open WebSocket connections", connections)?;
        let http = self.sum_http(|http| &http.connections);
        encode_gauge(encoder, "http_connection", "Open HTTP connections", http)?;
        let outbox = self.sum(|worker| &worker.outbox_bytes);
        encode_gauge(
            encoder,
            "outbox_bytes",
            "Bytes allocated for what sockets have not taken, of closing connections too",
            outbox,
        )?;
        let counters: [(&str, &str, u64); 5] = [
            ("ws_connect", "WebSocket connections opened", self.sum(|worker| &worker.connects)),
            (
                "envelope",
                "Messages that workers handled, one for each worker",
                self.sum(|worker| &worker.envelopes),
            ),
            (
                "delivery",
                "Pushes handed to sockets, one for each connection",
                self.sum(|worker| &worker.deliveries),
            ),
            ("client_message", "Messages from clients", self.sum(|worker| &worker.client_messages)),
            (
                "accept_error",
                "Connections that could not be accepted",
                self.sum_http(|http| &http.accept_errors) + self.0.ops_accept_errors.value(),
            ),
        ];
        for (name, help, value) in counters {
            encode_counter(encoder, name, help, value)?;
        }
        self.encode_info(encoder)?;
        self.encode_room(encoder)?;
        workers::encode(self, encoder)?;
        process::encode(encoder, self.0.started_ms)?;
        encode_reports(encoder)?;
        servers::encode(self, encoder)?;
        queue::encode(&self.0, encoder)?;
        self.encode_keys(encoder)?;
        let help = "Pushes that did not reach a connection that they were for";
        let mut drops: Vec<(&'static str, u64)> = Drop::ALL
            .iter()
            .map(|&(reason, name)| (name, self.0.counters.iter().map(|c| c.drops(reason)).sum()))
            .collect();
        drops.push(queue::dropped(&self.0));
        encode_reasons(encoder, "drop", help, &drops)?;
        let closes: Vec<(&'static str, u64)> = CLOSE_CAUSES
            .iter()
            .enumerate()
            .map(|(cause, &name)| (name, self.0.counters.iter().map(|one| one.closes(cause)).sum()))
            .collect();
        let sheds = Shed::ALL
            .map(|(why, name)| (name, self.0.counters.iter().map(|one| one.sheds(why)).sum()));
        let help = "Connections that lost what waited for them, by the bound that was reached";
        encode_reasons(encoder, "ws_cluster_outbox_shed", help, &sheds)?;
        encode_reasons(encoder, "ws_close", "WebSocket connections closed", &closes)?;
        let help = "WebSocket handshakes, by the HTTP status of the answer";
        let mut family =
            encoder.encode_descriptor("ws_handshake", help, None, MetricType::Counter)?;
        for (result, count) in self.statuses(|http| &http.handshakes) {
            let labels = ResultLabels { result };
            ConstCounter::new(count).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

/// One label whose name is told.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Label(&'static str, String);

impl Label {
    fn new(name: &'static str, value: &str) -> Self {
        Self(name, value.into())
    }
}

impl EncodeLabelSet for Label {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        (self.0, &*self.1).encode(encoder.encode_label())
    }
}

/// What the node could not report elsewhere.
fn encode_reports(encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let help = "Lines that the log dropped: its output did not take them in time";
    encode_counter(encoder, "log_dropped", help, super::logs::dropped())?;
    let help = "Errors that Sentry did not get: over the limit of a minute, or it refused them";
    encode_counter(encoder, "sentry_unsent", help, super::sentry::unsent())
}

fn encode_counter_f64(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    value: f64,
) -> fmt::Result {
    let metric = ConstCounter::new(value);
    metric.encode(encoder.encode_descriptor(name, help, None, MetricType::Counter)?)
}

fn encode_gauge_f64(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    value: f64,
) -> fmt::Result {
    let metric = ConstGauge::new(value);
    metric.encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)
}

fn encode_counter(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    value: u64,
) -> fmt::Result {
    let metric = ConstCounter::new(value);
    metric.encode(encoder.encode_descriptor(name, help, None, MetricType::Counter)?)
}

fn encode_gauge(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    value: u64,
) -> fmt::Result {
    let metric = ConstGauge::new(value as i64);
    metric.encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)
}

fn encode_reasons(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    reasons: &[(&'static str, u64)],
) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for &(reason, count) in reasons {
        let labels = ReasonLabels { reason };
        ConstCounter::new(count).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}
