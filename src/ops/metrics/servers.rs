//! What is shown of business servers: requests, answers and events.

use super::{NodeMetrics, encode_counter, encode_gauge, encode_reasons};
use crate::state::counters::{Answered, Counter, LostAnswer, ProjectCounters};
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use std::fmt;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LimitLabels {
    project: String,
    limit: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabels {
    result: &'static str,
}

pub(super) fn encode(node: &NodeMetrics, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let servers = node.sum(|worker| &worker.servers);
    encode_gauge(encoder, "business_server", "Business servers that are connected", servers)?;
    let known = node.0.counters.iter().map(|worker| worker.servers_known.value()).min();
    let help = "Business servers of the whole cluster that every worker of this node knows of";
    encode_gauge(encoder, "business_server_known", help, known.unwrap_or(0))?;
    let help = "Requests of clients, by what they got";
    let mut family =
        encoder.encode_descriptor("request_answer", help, None, MetricType::Counter)?;
    for (how, result) in Answered::ALL {
        let count = node.0.counters.iter().map(|worker| worker.answered(how)).sum::<u64>();
        ConstCounter::new(count).encode(family.encode_family(&ResultLabels { result })?)?;
    }
    encode_limited(node, encoder)?;
    let help = "Answers of business servers that reached no client";
    let lost: Vec<(&'static str, u64)> = LostAnswer::ALL
        .iter()
        .map(|&(why, name)| {
            (name, node.0.counters.iter().map(|worker| worker.lost_answers(why)).sum())
        })
        .collect();
    encode_reasons(encoder, "request_answer_lost", help, &lost)?;
    let broker = &node.0.broker_counters;
    let unsent = node.sum(|worker| &worker.parcels_unsent) + broker.parcels_refused.value();
    let counters = [
        (
            "request_retry",
            "Requests that went to a second business server, because the first was gone",
            node.sum(|worker| &worker.requests_retried),
        ),
        (
            "server_message",
            "Messages from business servers",
            node.sum(|worker| &worker.server_messages),
        ),
        (
            "event_published",
            "Events of clients that were published for business servers elsewhere",
            node.sum(|worker| &worker.events_published),
        ),
        (
            "event_delivered",
            "Events that business servers were told, one for each of them",
            node.sum(|worker| &worker.events_delivered),
        ),
        (
            "parcel_unsent",
            "Requests, answers and events not handed over: the queue was down or full",
            unsent,
        ),
        (
            "parcel_malformed",
            "Requests, answers and events of others that could not be read",
            node.sum(|worker| &worker.parcels_malformed),
        ),
    ];
    for (name, help, value) in counters {
        encode_counter(encoder, name, help, value)?;
    }
    Ok(())
}

/// What was refused because a project, or a connection of its, is at a limit.
fn encode_limited(node: &NodeMetrics, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    type Of = fn(&ProjectCounters) -> &Counter;
    let help = "Refused because of a limit, by project";
    let kind = MetricType::Counter;
    let mut family = encoder.encode_descriptor("ws_cluster_limited", help, None, kind)?;
    let limits: [(&str, Of); 2] = [
        ("requests_of_client", |project| &project.limited_by_client),
        ("requests_of_project", |project| &project.limited_by_project),
    ];
    for (id, project) in node.0.projects.iter() {
        for (limit, of) in limits {
            let workers = node.0.counters.iter();
            let its = workers.filter_map(|worker| worker.projects.get(id.0 as usize));
            let count = its.map(|project| of(project).value()).sum::<u64>();
            if count > 0 {
                let labels = LimitLabels { project: project.pid.to_string(), limit };
                ConstCounter::new(count).encode(family.encode_family(&labels)?)?;
            }
        }
    }
    Ok(())
}
