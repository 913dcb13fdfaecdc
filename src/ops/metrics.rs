//! `/metrics` for Prometheus. Each metric is declared once, in [`table`]; the scrape, the counters
//! of the live page and the tables of docs/monitor.md are derived from that.

pub(super) mod process;
pub(super) mod read;
mod table;
mod text;

use super::reply::Reply;
use crate::io::shared::Shared;
use crate::state::counters::{BrokerCounters, Counter, Counters, HttpCounters};
use crate::wire::http::Head;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeMetric, MetricEncoder, NoLabelSet, text::encode,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use std::fmt;
use std::sync::Arc;

use table::GROUPS;

/// Returns everything that `/metrics` shows.
pub fn registry(shared: &Arc<Shared>) -> Registry {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(NodeMetrics(Arc::clone(shared))));
    registry
}

/// Answers a request to the Prometheus port.
pub fn answer(registry: &Registry, head: &Head<'_>) -> Reply {
    if head.path != "/metrics" {
        return Reply::text(404, "not found: the metrics are at /metrics\n");
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

/// Returns what the live page shows of each worker and of the queue, under the names it uses.
pub(super) fn live() -> impl Iterator<Item = (&'static str, &'static Value)> {
    let all = GROUPS.iter().flat_map(|group| group.metrics);
    all.filter_map(|metric| metric.live.map(|name| (name, &metric.value)))
}

/// Metrics that belong together.
struct MetricGroup {
    #[cfg_attr(not(test), expect(dead_code, reason = "a test makes and checks the docs"))]
    title: &'static str,
    /// Present only with `--queue redis`.
    needs_redis: bool,
    metrics: &'static [Metric],
}

/// A metric of the node.
struct Metric {
    /// The name in a scrape: that of a counter ends in `_total`.
    name: &'static str,
    kind: MetricKind,
    /// Its label names, for the docs.
    #[cfg_attr(not(test), expect(dead_code, reason = "a test makes and checks the docs"))]
    labels: &'static str,
    help: &'static str,
    /// Further text for the docs.
    #[cfg_attr(not(test), expect(dead_code, reason = "a test makes and checks the docs"))]
    more: &'static str,
    /// Its name on the live page, if that shows it per worker or for the queue.
    live: Option<&'static str>,
    value: Value,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum MetricKind {
    Counter,
    Gauge,
    Histogram,
    Info,
}

/// The source of a metric's value.
pub(in crate::ops) enum Value {
    /// A counter of each worker, shown as their sum.
    Worker(fn(&Counters) -> &Counter),
    /// A counter of each worker, shown per worker.
    EachWorker(fn(&Counters) -> &Counter),
    /// A counter of each worker's HTTP side, shown as their sum.
    Http(fn(&HttpCounters) -> &Counter),
    Broker(fn(&BrokerCounters) -> &Counter),
    Node(fn(&Shared) -> u64),
    Float(fn(&Shared) -> f64),
    /// Left out if it cannot be determined.
    Maybe(fn(&Shared) -> Option<u64>),
    /// Several values, each with labels.
    Samples(fn(&Shared, &mut Samples)),
    Histogram(fn(&Shared) -> Vec<Distribution>),
}

type Labels = Vec<(&'static str, String)>;

/// Values of one metric.
#[derive(Debug, Default)]
pub(in crate::ops) struct Samples(Vec<(Labels, Number)>);

#[derive(Debug, Clone, Copy)]
enum Number {
    Whole(u64),
    Float(f64),
}

/// A histogram.
#[derive(Debug)]
pub(in crate::ops) struct Distribution {
    labels: Labels,
    /// Upper bounds, each with the number of values above the bound before it.
    buckets: Vec<(f64, u64)>,
    sum: f64,
}

impl Samples {
    fn add(&mut self, labels: Labels, value: u64) {
        self.0.push((labels, Number::Whole(value)));
    }

    fn add_f64(&mut self, labels: Labels, value: f64) {
        self.0.push((labels, Number::Float(value)));
    }

    /// Adds the sum over all workers.
    fn sum(
        &mut self,
        shared: &Shared,
        label: &'static str,
        value: &str,
        of: impl Fn(&Counters) -> u64,
    ) {
        let sum = shared.counters.iter().map(|worker| of(worker)).sum();
        self.add(vec![(label, value.into())], sum);
    }
}

impl Distribution {
    /// `counts` has one element more than `bounds`: the values above all of them.
    fn new(bounds: &[f64], counts: &[u64], sum: f64) -> Self {
        let bounds = bounds.iter().copied().chain([f64::INFINITY]);
        Self { labels: Vec::new(), buckets: bounds.zip(counts.iter().copied()).collect(), sum }
    }

    fn with(self, labels: Labels) -> Self {
        Self { labels, ..self }
    }
}

impl Metric {
    const fn new(name: &'static str, kind: MetricKind, value: Value) -> Self {
        Self { name, kind, labels: "", help: "", more: "", live: None, value }
    }

    const fn counter(name: &'static str, value: Value) -> Self {
        Self::new(name, MetricKind::Counter, value)
    }

    const fn gauge(name: &'static str, value: Value) -> Self {
        Self::new(name, MetricKind::Gauge, value)
    }

    const fn info(name: &'static str, value: Value) -> Self {
        Self::new(name, MetricKind::Info, value)
    }

    const fn histogram(name: &'static str, read: fn(&Shared) -> Vec<Distribution>) -> Self {
        Self::new(name, MetricKind::Histogram, Value::Histogram(read))
    }

    const fn labels(self, labels: &'static str) -> Self {
        Self { labels, ..self }
    }

    const fn help(self, help: &'static str) -> Self {
        Self { help, ..self }
    }

    const fn more(self, more: &'static str) -> Self {
        Self { more, ..self }
    }

    const fn live(self, name: &'static str) -> Self {
        Self { live: Some(name), ..self }
    }

    /// Returns the name of its family: the encoder adds the suffix of its kind.
    fn family(&self) -> &'static str {
        let suffix = match self.kind {
            MetricKind::Counter => "_total",
            MetricKind::Info => "_info",
            MetricKind::Gauge | MetricKind::Histogram => "",
        };
        self.name.strip_suffix(suffix).unwrap_or(self.name)
    }

    fn samples(&self, shared: &Shared) -> Samples {
        let mut samples = Samples::default();
        let workers = shared.counters.iter();
        match self.value {
            Value::Worker(of) => {
                samples.add(Labels::new(), workers.map(|worker| of(worker).value()).sum());
            }
            Value::EachWorker(of) => workers.enumerate().for_each(|(index, worker)| {
                samples.add(vec![("worker", index.to_string())], of(worker).value());
            }),
            Value::Http(of) => {
                let workers = shared.http_counters.iter();
                samples.add(Labels::new(), workers.map(|http| of(http).value()).sum());
            }
            Value::Broker(of) => samples.add(Labels::new(), of(&shared.broker_counters).value()),
            Value::Node(read) => samples.add(Labels::new(), read(shared)),
            Value::Float(read) => samples.add_f64(Labels::new(), read(shared)),
            Value::Maybe(read) => {
                read(shared).into_iter().for_each(|value| samples.add(Labels::new(), value));
            }
            Value::Samples(read) => read(shared, &mut samples),
            Value::Histogram(_) => {}
        }
        samples
    }

    fn encode(&self, shared: &Shared, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        if let Value::Maybe(read) = self.value
            && read(shared).is_none()
        {
            return Ok(());
        }
        let kind = match self.kind {
            MetricKind::Counter => MetricType::Counter,
            MetricKind::Gauge => MetricType::Gauge,
            MetricKind::Histogram => MetricType::Histogram,
            MetricKind::Info => MetricType::Info,
        };
        let mut family = encoder.encode_descriptor(self.family(), self.help, None, kind)?;
        if let Value::Histogram(read) = self.value {
            for one in read(shared) {
                if one.labels.is_empty() {
                    return one.encode(family);
                }
                one.encode(family.encode_family(&one.labels)?)?;
            }
        }
        for (labels, value) in self.samples(shared).0 {
            if self.kind == MetricKind::Info {
                return Info::new(labels).encode(family);
            }
            // An empty set of labels would be shown as empty braces.
            if labels.is_empty() {
                return self.encode_value(value, family);
            }
            self.encode_value(value, family.encode_family(&labels)?)?;
        }
        Ok(())
    }

    fn encode_value(&self, value: Number, encoder: MetricEncoder<'_>) -> fmt::Result {
        match (self.kind, value) {
            (MetricKind::Counter, Number::Whole(value)) => ConstCounter::new(value).encode(encoder),
            (MetricKind::Counter, Number::Float(value)) => ConstCounter::new(value).encode(encoder),
            (_, Number::Whole(value)) => ConstGauge::new(value as i64).encode(encoder),
            (_, Number::Float(value)) => ConstGauge::new(value).encode(encoder),
        }
    }
}

impl Distribution {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        let count = self.buckets.iter().map(|(_, count)| count).sum();
        encoder.encode_histogram::<NoLabelSet>(self.sum, count, &self.buckets, None)
    }
}

#[derive(Debug)]
struct NodeMetrics(Arc<Shared>);

impl Collector for NodeMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let has_redis = self.0.at_start.redis.is_some();
        for group in GROUPS.iter().filter(|group| has_redis || !group.needs_redis) {
            for metric in group.metrics {
                metric.encode(&self.0, &mut encoder)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
