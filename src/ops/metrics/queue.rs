//! What is shown of the queue between nodes.

use super::{Label, encode_counter, encode_gauge, encode_gauge_f64};
use crate::io::shared::Shared;
use crate::state::counters::BrokerCounters;
use crate::state::counters::{Counter, Counters};
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use std::fmt;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabels {
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct MissedLabels {
    origin: u16,
    channel: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct IgnoredLabels {
    reason: &'static str,
}

fn encode_ignored(broker: &BrokerCounters, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let name = "ws_cluster_queue_number_resets";
    let help = "Times that numbers heard of a node could not be right and were reset";
    encode_counter(encoder, name, help, broker.number_resets.value())?;
    let (name, help) = ("ws_cluster_queue_ignored", "Messages that were left out, by reason");
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for (reason, counter) in
        [("unknown_kind", &broker.unknown_kind), ("false_number", &broker.false_numbers)]
    {
        let labels = IgnoredLabels { reason };
        ConstCounter::new(counter.value()).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

/// Whether pushes are accepted; with the `local` queue always, and then that is all.
pub(super) fn encode(shared: &Shared, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let broker = &shared.broker_counters;
    let has_redis = shared.settings.redis.is_some();
    let ready = if has_redis { broker.ready.value() } else { 1 };
    encode_gauge(encoder, "queue_ready", "1 while the queue takes pushes, else 0", ready)?;
    if !has_redis {
        return Ok(());
    }
    let gauges = [
        ("queue_pending_bytes", "Bytes that wait for the queue's answer", &broker.pending_bytes),
        ("queue_channel", "Channels that this node wants to hear", &broker.channels),
        (
            "ws_cluster_queue_channel_refused",
            "Channels that Redis does not let this node hear",
            &broker.channels_refused,
        ),
    ];
    let help = "1 while Redis keeps which client ids this node has given out, else 0";
    encode_gauge(encoder, "ws_cluster_ids_kept", help, broker.ids_kept.value())?;
    for (name, help, gauge) in gauges {
        encode_gauge(encoder, name, help, gauge.value())?;
    }
    let lag_s = broker.lag_ms.value() as f64 / 1e3;
    let help = "Seconds that this node's last word to itself was under way, or has been";
    encode_gauge_f64(encoder, "queue_lag_seconds", help, lag_s)?;
    let nodes = broker.nodes.lock().map_or(0, |nodes| nodes.len() as u64);
    encode_gauge(encoder, "cluster_node", "Nodes that are there, this one too", nodes)?;
    let counters = [
        ("queue_sent_bytes", "Bytes written to the queue's links", &broker.sent_bytes),
        ("queue_received_bytes", "Bytes read from the queue's links", &broker.received_bytes),
        ("queue_link_loss", "Times that the links to the queue were lost", &broker.losses),
        ("queue_resent", "Commands sent again after a reconnect", &broker.resent),
        ("queue_received", "Messages that came from the queue, of any kind", &broker.received),
        ("queue_repeated", "Messages that had come before, and were left out", &broker.repeated),
        ("queue_malformed", "Messages that were no envelope, or too long", &broker.malformed),
        ("queue_foreign", "Messages of another process with this number", &broker.foreign),
    ];
    for (name, help, counter) in counters {
        encode_counter(encoder, name, help, counter.value())?;
    }
    encode_too_large(shared, encoder)?;
    let abandoned = broker.abandoned.value();
    let help = "Messages that are not sent again, because three links to the queue ended with them";
    encode_counter(encoder, "ws_cluster_queue_abandoned", help, abandoned)?;
    encode_ignored(broker, encoder)?;
    let results = [
        ("accepted", &broker.published),
        ("refused", &broker.refused),
        ("unknown", &broker.unknown),
    ];
    let help = "Pushes, by what the queue said of them";
    let mut family = encoder.encode_descriptor("queue_publish", help, None, MetricType::Counter)?;
    for (result, counter) in results {
        let labels = OutcomeLabels { result };
        ConstCounter::new(counter.value()).encode(family.encode_family(&labels)?)?;
    }
    let help = "Messages lost on the way to this node, by node of origin and channel";
    let mut family = encoder.encode_descriptor("queue_missed", help, None, MetricType::Counter)?;
    for ((origin, channel), missed) in broker.missed() {
        let labels = MissedLabels { origin: origin.value(), channel };
        ConstCounter::new(missed).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

fn encode_too_large(shared: &Shared, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let broker = &shared.broker_counters;
    let of_workers = |counter: fn(&Counters) -> &Counter| -> u64 {
        shared.counters.iter().map(|worker| counter(worker).value()).sum()
    };
    let pushes = of_workers(|worker| &worker.too_large_pushes) + broker.too_large_pushes.value();
    let parcels = of_workers(|worker| &worker.too_large_parcels) + broker.too_large_parcels.value();
    let name = "ws_cluster_queue_too_large";
    let help = "Pushes (413), and requests, answers and events, larger than what the queue carries";
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for (what, count) in [("push", pushes), ("parcel", parcels)] {
        let labels = Label::new("what", what);
        ConstCounter::new(count).encode(family.encode_family(&labels)?)?;
    }
    let help = "Bytes of the largest message that the queue carries, as far as it is known";
    let bytes = shared.queue.limit().map_or(0, |limit| limit.bytes as u64);
    encode_gauge(encoder, "ws_cluster_queue_max_message_bytes", help, bytes)
}

/// One more reason of `drop_total`, whose other ones the workers count.
pub(super) fn dropped(shared: &Shared) -> (&'static str, u64) {
    ("worker_full", shared.broker_counters.worker_full.value())
}
