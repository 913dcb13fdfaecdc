//! All metrics. `help` is their HELP line in a scrape; docs/monitor.md appends `more` to it.

use super::process;
use super::read::{
    self, closes, drops, handshakes, hops, ignored, info, latencies, limited, longest_pauses,
    missed, pauses, requests, sheds,
};
use super::{Metric, MetricGroup, Value};
use crate::io::shared::Shared;
use crate::ops::{logs, sentry};
use crate::state::counters::{Answered, LostAnswer};

macro_rules! metrics {
    ($($title:literal $(if $condition:ident)? { $($metric:expr;)* })*) => {
        pub(super) static GROUPS: &[MetricGroup] = &[$(MetricGroup {
            title: $title,
            needs_redis: metrics!(@ $($condition)?),
            metrics: &[$($metric),*],
        }),*];
    };
    (@ redis) => { true };
    (@) => { false };
}

metrics! {
    "HTTP" {
        Metric::counter("request_total", Value::Node(read::requests_answered))
            .help("HTTP requests answered");
        Metric::counter("request_url_total", Value::Samples(requests))
            .labels("`url`, `code`")
            .help("HTTP requests answered, by path and status")
            .more("; unknown paths are `other`");
        Metric::histogram("request_duration", |shared| vec![read::durations(shared)])
            .help("Seconds from the end of an HTTP request to its response")
            .more(", with a bucket at 0.3");
        Metric::gauge("ws_cluster_http_connection", Value::Http(|http| &http.connections))
            .live("http_connections")
            .help("Open HTTP connections");
        Metric::gauge("ws_cluster_http_body_bytes", Value::Http(|http| &http.body_bytes))
            .help("Bytes allocated for HTTP requests, as of the last tick")
            .more(", beyond the 4 KiB of each connection");
        Metric::counter("ws_cluster_accept_error_total", Value::Node(read::accept_errors))
            .help("Connections that could not be accepted for lack of descriptors or memory");
    }
    "Connections" {
        Metric::gauge("ws_connection", Value::Worker(|worker| &worker.connections))
            .live("connections")
            .help("Open WebSocket connections");
        Metric::gauge("ws_cluster_connections_limit", Value::Node(|shared| shared.room() as u64))
            .help("Maximum number of WebSocket connections: --max_connections, or fewer if the \
                limit of open files leaves room for fewer")
            .more(", see [Open files](tune.md#open-files)");
        Metric::gauge("ws_cluster_project_connection", Value::Samples(read::project_connections))
            .labels("`project`, `type`")
            .help("Open WebSocket connections by project, for the 100 projects with the most")
            .more("; the rest are `other`; `type` is `client` or `server`");
        Metric::counter("ws_cluster_connect_total", Value::Worker(|worker| &worker.connects))
            .live("connects")
            .help("WebSocket connections opened");
        Metric::counter("ws_cluster_handshake_total", Value::Samples(handshakes))
            .labels("`result`")
            .help("WebSocket handshakes, by the HTTP status of the response")
            .more("; 101 is success");
        Metric::gauge("ws_cluster_handshakes", Value::Http(|http| &http.half_open))
            .help("WebSocket handshakes in progress, as of the last tick");
        Metric::gauge("ws_cluster_handshake_bytes", Value::Http(|http| &http.handshake_bytes))
            .help("Bytes allocated for the requests of handshakes, as of the last tick");
        Metric::counter("ws_cluster_close_total", Value::Samples(closes))
            .labels("`reason`")
            .help("WebSocket connections closed")
            .more(
                ": `peer`, `violation`, `slow_consumer`, `idle`, `going_away`, `gone`, \
                 `session_expired`, `message_timeout` (a message was still incomplete after \
                 `--message_timeout_ms`), `inbound_budget` (incomplete messages exceeded \
                 `--worker_inbound_bytes`, and this connection's was the oldest), \
                 `project_removed` (a reload has removed its project)",
            );
        Metric::gauge("ws_cluster_draining", Value::Node(|shared| shared.is_draining().into()))
            .help("1 while this node drains, else 0");
        Metric::gauge(
            "ws_cluster_drain_remaining_connections",
            Value::Node(|shared| shared.to_drain() as u64),
        )
            .help("WebSocket connections that a drain has still to close; 0 while there is none");
        Metric::counter("ws_cluster_refused_total", Value::Samples(read::refusals))
            .labels("`port`, `reason`")
            .help("Connections refused, or closed to make room for others, because a limit was \
                reached")
            .more(
                ". On `ws`: `max_connections`; `open_files`, no descriptor was left; `handshakes`, \
                 an incomplete handshake was closed to make room for newer ones. On `http`, and on \
                 `ops` for the ops ports: `connections`, refused because all others had requests \
                 in progress; closed to make room for a newer one: `idle`, a keep-alive \
                 connection, `half_request`, one whose request was incomplete, and `unread`, one \
                 that did not read its response; `body_bytes`, no memory for the request's body. \
                 On `ops` also `host`, `site` and `token`: requests that were not allowed, see \
                 [The ops ports](#the-ops-ports)",
            );
        Metric::counter("ws_cluster_sent_bytes_total", Value::Worker(|worker| &worker.sent_bytes))
            .live("sent_bytes")
            .help("Bytes sent to WebSocket connections");
        Metric::counter(
            "ws_cluster_received_bytes_total",
            Value::Worker(|worker| &worker.received_bytes),
        )
            .live("received_bytes")
            .help("Bytes received from WebSocket connections after their handshakes");
        Metric::counter(
            "ws_cluster_client_message_total",
            Value::Worker(|worker| &worker.client_messages),
        )
            .live("client_messages")
            .help("Data messages from clients");
    }
    "Pushes" {
        Metric::counter("ws_cluster_push_total", Value::Samples(read::pushes))
            .labels("`result`")
            .help("Pushes from backends over HTTP and WebSocket, by result")
            .more(": `accepted`, `refused`");
        Metric::histogram("ws_cluster_push_delivery_seconds", |shared| {
            vec![latencies(shared, |worker| &worker.delivery_latency)]
        })
            .help("Seconds from the acceptance of a push, at any node, until a worker has written \
                it to its sockets")
            .more("; counted once for each worker with matching clients");
        Metric::histogram("ws_cluster_push_hop_seconds", hops)
            .labels("`hop`")
            .help("Seconds of a push's stages: queue, from its acceptance to the queue's reply; \
                receive, from its acceptance to its arrival at a worker with matching clients; \
                write, from there to the sockets")
            .more(". Between nodes `receive` includes the difference of their clocks");
        Metric::counter("ws_cluster_envelope_total", Value::Worker(|worker| &worker.envelopes))
            .live("envelopes")
            .help("Envelopes handled by workers, counted once for each worker");
        Metric::counter("ws_cluster_delivery_total", Value::Worker(|worker| &worker.deliveries))
            .live("deliveries")
            .help("Pushes written to sockets, counted once for each connection");
        Metric::counter("ws_cluster_drop_total", Value::Samples(drops))
            .labels("`reason`")
            .help("Pushes that did not reach a matching connection")
            .more(
                ": `slow_consumer`, `disconnected`, `closed`, `ttl`; and messages that did not \
                 reach a worker at all: `mailbox_full` (answered with 503), `worker_full` (the \
                 broker's ring to the worker was full)",
            );
        Metric::gauge(
            "ws_cluster_idempotency_key",
            Value::Worker(|worker| &worker.remembered_keys),
        )
            .help("Idempotency keys remembered, counted once for each worker");
        Metric::counter(
            "ws_cluster_idempotency_repeated_total",
            Value::Worker(|worker| &worker.repeated_keys),
        )
            .help("Pushes dropped as repeats because their idempotency key was remembered, counted \
                once for each worker");
        Metric::counter(
            "ws_cluster_idempotency_forgotten_total",
            Value::Worker(|worker| &worker.forgotten_keys),
        )
            .help("Idempotency keys evicted before they expired, because the table was full")
            .more(" (`--idempotency_keys`)");
    }
    "Memory" {
        Metric::gauge("ws_cluster_outbox_bytes", Value::Worker(|worker| &worker.outbox_bytes))
            .live("outbox_bytes")
            .help("Bytes allocated for unsent frames, including those of closing connections")
            .more(
                ": each connection's own frames with their overhead, shared frames once, and the \
                 remainders of frames that closing connections still have to write",
            );
        Metric::gauge("ws_cluster_outbox_connection", Value::Worker(|worker| &worker.backlogged))
            .help("Connections with unsent frames");
        Metric::counter("ws_cluster_outbox_shed_total", Value::Samples(sheds))
            .labels("`reason`")
            .help("Connections whose unsent frames were dropped, by the limit that was reached")
            .more(
                ": `connection` (`--outbox_bytes`), `worker` (`--worker_outbox_bytes`), `memory` \
                 (close to `--memory_limit_bytes`), `closing` (the connection was already closing, \
                 and its peer did not read the rest of a frame)",
            );
        Metric::gauge("ws_cluster_inbound_bytes", Value::Worker(|worker| &worker.inbound_bytes))
            .help("Bytes allocated for incomplete WebSocket messages");
        Metric::gauge("ws_cluster_memory_limit_bytes", Value::Maybe(read::memory_limit))
            .help("Memory that the process may use, from which default budgets are derived");
        Metric::gauge("ws_cluster_memory_used_bytes", Value::Maybe(read::memory_used))
            .help("Memory in use that the kernel cannot reclaim, as of the last check");
    }
    "Business servers" {
        Metric::gauge("ws_cluster_business_server", Value::Worker(|worker| &worker.servers))
            .live("servers")
            .help("Business servers connected to this node")
            .more("; they also count in `ws_connection`");
        Metric::gauge("ws_cluster_business_server_known", Value::Node(read::servers_known))
            .help("Business servers of the whole cluster that every worker of this node knows of")
            .more("; the same on all nodes");
        Metric::counter(
            "ws_cluster_server_message_total",
            Value::Worker(|worker| &worker.server_messages),
        )
            .live("server_messages")
            .help("Messages from business servers");
        Metric::counter("ws_cluster_request_answer_total", Value::Samples(|shared, samples| {
            Answered::ALL.iter().for_each(|&(how, name)| {
                samples.sum(shared, "result", name, |worker| worker.answered(how));
            });
        }))
            .labels("`result`")
            .help("Requests from clients, by result")
            .more(
                ": `answered`, `no_server`, `timeout`, `server_gone`, `overloaded` (too many \
                 pending, or the queue is down), `client_gone` (the client disconnected before the \
                 answer), `too_large` (the request or its answer is too large for the queue)",
            );
        Metric::counter("ws_cluster_limited_total", Value::Samples(limited))
            .labels("`project`, `limit`")
            .help("Requests refused because of a limit, by project")
            .more(": pending requests of one client (`requests_of_client`) or of the project \
                (`requests_of_project`)");
        Metric::counter(
            "ws_cluster_request_retry_total",
            Value::Worker(|worker| &worker.requests_retried),
        )
            .help("Requests sent to a second business server because the first had disconnected");
        Metric::counter("ws_cluster_request_answer_lost_total", Value::Samples(|shared, samples| {
            LostAnswer::ALL.iter().for_each(|&(why, name)| {
                samples.sum(shared, "reason", name, |worker| worker.lost_answers(why));
            });
        }))
            .labels("`reason`")
            .help("Answers of business servers that reached no client")
            .more(
                ": `unasked` (to a request that it did not get, has already answered or has \
                 answered too late); as seen by the client's node: `late` (also if the client is \
                 gone) and `forged`",
            );
        Metric::counter(
            "ws_cluster_event_published_total",
            Value::Worker(|worker| &worker.events_published),
        )
            .help("Events of clients published for business servers on other nodes");
        Metric::counter(
            "ws_cluster_event_delivered_total",
            Value::Worker(|worker| &worker.events_delivered),
        )
            .help("Events sent to business servers, counted once for each server");
        Metric::counter("ws_cluster_parcel_unsent_total", Value::Node(read::parcels_unsent))
            .help("Requests, answers and events not published because the queue was down or full");
        Metric::counter(
            "ws_cluster_parcel_malformed_total",
            Value::Worker(|worker| &worker.parcels_malformed),
        )
            .help("Requests, answers and events from other nodes that could not be parsed");
    }
    "Workers" {
        Metric::gauge(
            "ws_cluster_worker_connection",
            Value::EachWorker(|worker| &worker.connections),
        )
            .labels("`worker`")
            .help("Open WebSocket connections of each worker");
        Metric::gauge(
            "ws_cluster_worker_waiting_bytes",
            Value::EachWorker(|worker| &worker.waiting_bytes),
        )
            .labels("`worker`")
            .live("waiting_bytes")
            .help("Bytes of messages waiting for each worker, as of its last tick");
        Metric::counter(
            "ws_cluster_worker_delivery_total",
            Value::EachWorker(|worker| &worker.deliveries),
        )
            .labels("`worker`")
            .help("Pushes that each worker wrote to sockets, counted once for each connection");
        Metric::counter("ws_cluster_worker_stalled_seconds_total", Value::Float(read::stalled_s))
            .help("Seconds in which workers did not run although deadlines were due; they do not \
                count towards timeouts of clients")
            .more(" (the process was stopped, the worker got no core, or a turn was long: whatever \
                exceeds 100 ms between two checks)");
        Metric::histogram("ws_cluster_worker_turn_seconds", |shared| {
            vec![latencies(shared, |worker| &worker.turns)]
        })
            .help("Seconds that a worker's WebSocket task ran before it yielded to others")
            .more("; limited to about 1 ms. A part of a pause");
        Metric::histogram("ws_cluster_worker_pause_seconds", |shared| {
            vec![pauses(shared, |worker| &worker.pauses)]
        })
            .help("Seconds that something ready waits until a worker gets to it: the length of one \
                round of all its tasks that have work")
            .more(
                ". With more threads than cores, most of a long pause is due to the scheduler",
            );
        Metric::histogram("ws_cluster_worker_own_pause_seconds", |shared| {
            vec![pauses(shared, |worker| &worker.own_pauses)]
        })
            .help("The workers' own part of ws_cluster_worker_pause_seconds: CPU time, without the \
                time in which other threads had the core")
            .more(
                " (up to 0.2 ms too much). More than 2 ms is a defect, or one message to very many \
                 connections of one worker",
            );
        Metric::gauge("ws_cluster_worker_longest_pause_seconds", Value::Samples(longest_pauses))
            .labels("`time`")
            .help("The longest pause of the last 5 minutes, by elapsed time (time=wall) and by the \
                worker's own CPU time (time=own); 0 if none was longer than 0.5 ms");
    }
    "The process" {
        Metric::info("ws_cluster_info", Value::Samples(info))
            .labels("`version`, `commit`, `node`, `queue`, `workers`")
            .help("Version and start configuration of this node; the value is always 1");
        Metric::counter("ws_cluster_reload_total", Value::Samples(read::reloads))
            .labels("`result`")
            .help("Reloads of the configuration")
            .more(
                ": `ok`; `error`, it was wrong, and the one before stayed in force. See \
                 [Reload](drain.md#reload)",
            );
        Metric::gauge("ws_cluster_config_generation", Value::Node(Shared::generation))
            .help("Number of the configuration in force: 1 at the start, and one more with each \
                reload that changed something");
        Metric::counter("ws_cluster_thread_busy_seconds_total", Value::Samples(process::busy))
            .labels("`thread`")
            .help("Seconds of CPU time used by each thread")
            .more(": `worker-N`, `broker`, `ops`, …");
        Metric::counter("process_cpu_seconds_total", Value::Float(|_| process::cpu_s()))
            .help("Seconds of CPU time used by the process");
        Metric::gauge("process_threads", Value::Node(|_| process::threads()))
            .help("Threads of the process");
        Metric::gauge("process_open_fds", Value::Node(|_| process::open_files()))
            .help("Open file descriptors of all threads; each worker has a table of its own");
        Metric::gauge("process_max_fds", Value::Maybe(|_| process::open_files_limit()))
            .help("Maximum number of file descriptors in one table");
        Metric::gauge("process_virtual_memory_bytes", Value::Node(|_| process::memory()[0]))
            .help("Bytes of address space, most of it reserved for tables of connections");
        Metric::gauge("process_resident_memory_bytes", Value::Node(|_| process::memory()[1]))
            .help("Bytes of resident memory");
        Metric::gauge(
            "process_start_time_seconds",
            Value::Float(|shared| shared.started.wall.value() as f64 / 1e3),
        )
            .help("Start time of the process in unix seconds");
        Metric::counter("ws_cluster_log_dropped_total", Value::Node(|_| logs::dropped()))
            .help("Log lines dropped because the output was too slow")
            .more(" (a full disk, a reader that is stuck)");
        Metric::counter("ws_cluster_sentry_unsent_total", Value::Node(|_| sentry::unsent()))
            .help("Errors not reported to Sentry: over the limit per minute, or refused by it");
        Metric::counter(
            "ws_cluster_span_dropped_total",
            Value::Worker(|worker| &worker.spans_dropped),
        )
            .help("Trace spans dropped because the exporter was too slow");
    }
    "The queue" {
        Metric::gauge("ws_cluster_queue_ready", Value::Node(read::queue_ready))
            .help("1 while the queue accepts pushes, else 0")
            .more("; with `local` always 1");
    }
    "The queue, with `--queue redis`" if redis {
        Metric::gauge("ws_cluster_node", Value::Node(read::nodes))
            .help("Live nodes of the cluster, including this one");
        Metric::gauge("ws_cluster_ids_kept", Value::Broker(|broker| &broker.ids_kept))
            .help("1 while Redis records the client ids that this node has assigned, else 0");
        Metric::gauge(
            "ws_cluster_queue_pending_bytes",
            Value::Broker(|broker| &broker.pending_bytes),
        )
            .live("pending_bytes")
            .help("Bytes sent to the queue that it has not replied to yet")
            .more("; at 64 MiB pushes get 503");
        Metric::gauge("ws_cluster_queue_lag_seconds", Value::Float(read::lag_s))
            .help("Seconds that this node's last canary took to come back through the queue, or \
                has been waiting if it is still out");
        Metric::gauge("ws_cluster_queue_channel", Value::Broker(|broker| &broker.channels))
            .live("channels")
            .help("Channels that this node needs to be subscribed to");
        Metric::gauge(
            "ws_cluster_queue_channel_refused",
            Value::Broker(|broker| &broker.channels_refused),
        )
            .help("Channels that Redis does not let this node subscribe to")
            .more(": see its [access rules](cluster.md#access-rules-of-redis)");
        Metric::counter(
            "ws_cluster_queue_sent_bytes_total",
            Value::Broker(|broker| &broker.sent_bytes),
        )
            .live("sent_bytes")
            .help("Bytes written to the queue's links");
        Metric::counter(
            "ws_cluster_queue_received_bytes_total",
            Value::Broker(|broker| &broker.received_bytes),
        )
            .live("received_bytes")
            .help("Bytes read from the queue's links");
        Metric::counter("ws_cluster_queue_link_loss_total", Value::Broker(|broker| &broker.losses))
            .live("losses")
            .help("Times that the links to the queue were lost")
            .more(" after they had been ready");
        Metric::counter("ws_cluster_queue_publish_total", Value::Samples(read::publishes))
            .labels("`result`")
            .help("Pushes, by the queue's reply")
            .more(": `accepted`; `refused`, an error (503); `unknown`, no reply in time (504)");
        Metric::counter("ws_cluster_queue_resent_total", Value::Broker(|broker| &broker.resent))
            .live("resent")
            .help("Commands sent again after a reconnect")
            .more(", because there was no reply to them on the previous link");
        Metric::counter("ws_cluster_queue_received_total", Value::Broker(|broker| &broker.received))
            .live("received")
            .help("Messages received from the queue, of any kind")
            .more(": pushes (each of those that share a PUBLISH), canaries and repeats");
        Metric::counter("ws_cluster_queue_repeated_total", Value::Broker(|broker| &broker.repeated))
            .help("Messages dropped as repeats because they had been received before");
        Metric::counter("ws_cluster_queue_missed_total", Value::Samples(missed))
            .labels("`origin`, `channel`")
            .help("Messages lost on the way to this node, by origin node and channel")
            .more("; after 1,000 pairs the channel is `other`");
        Metric::counter(
            "ws_cluster_queue_malformed_total",
            Value::Broker(|broker| &broker.malformed),
        )
            .help("Messages that were not a valid envelope, or too long")
            .more(", bundles of too many envelopes, or from another node and not JSON");
        Metric::counter("ws_cluster_queue_foreign_total", Value::Broker(|broker| &broker.foreign))
            .help("Messages from another process with this node's number")
            .more(" (`--node`)");
        Metric::counter("ws_cluster_queue_ignored_total", Value::Samples(ignored))
            .labels("`reason`")
            .help("Messages ignored, by reason")
            .more(
                ": `unknown_kind`, from a newer node (a rolling upgrade); `unknown_project`, a \
                 request, an answer or events of a project that this node does not serve; \
                 `false_number`, with a sequence number that its node never assigned: something \
                 else publishes on the channels",
            );
        Metric::counter(
            "ws_cluster_queue_number_resets_total",
            Value::Broker(|broker| &broker.number_resets),
        )
            .help("Times that a node's recorded sequence number could not be right and was reset");
        Metric::gauge(
            "ws_cluster_queue_max_message_bytes",
            Value::Node(read::max_message_bytes),
        )
            .help("Size in bytes of the largest message that the queue carries, as far as known")
            .more(", see [The size of a message](cluster.md#the-size-of-a-message)");
        Metric::counter("ws_cluster_queue_too_large_total", Value::Samples(read::too_large))
            .labels("`what`")
            .help("Messages too large for the queue: pushes (413), and requests, answers and \
                events")
            .more(": `push`, `parcel`");
        Metric::counter(
            "ws_cluster_queue_abandoned_total",
            Value::Broker(|broker| &broker.abandoned),
        )
            .help("Messages given up because three links to the queue in a row ended with them");
    }
}
