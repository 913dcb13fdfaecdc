//! All metrics. `help` is the text of a scrape; docs/operations.md appends `more` to it.

use super::process;
use super::read::{
    self, closes, drops, handshakes, hops, ignored, info, latencies, limited, longest_pauses,
    missed, pauses, requests, sheds,
};
use super::{Metric, MetricGroup, Value};
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
            .help("Seconds from a whole HTTP request to its answer")
            .more(", with a bucket at 0.3");
        Metric::gauge("ws_cluster_http_connection", Value::Http(|http| &http.connections))
            .live("http_connections")
            .help("Open HTTP connections");
        Metric::gauge("ws_cluster_http_body_bytes", Value::Http(|http| &http.body_bytes))
            .help("Bytes allocated for HTTP requests, as of the last tick")
            .more(", beyond the 4 KiB of each connection");
        Metric::counter("ws_cluster_accept_error_total", Value::Node(read::accept_errors))
            .help("Connections that could not be accepted, for want of descriptors or memory");
    }
    "Connections" {
        Metric::gauge("ws_connection", Value::Worker(|worker| &worker.connections))
            .live("connections")
            .help("Open WebSocket connections");
        Metric::gauge("ws_cluster_connections_limit", Value::Node(|shared| shared.room() as u64))
            .help("WebSocket connections that this node has room for: --max_connections, or what \
                the limit of open files leaves")
            .more(", see [Open files](#open-files)");
        Metric::gauge("ws_cluster_project_connection", Value::Samples(read::project_connections))
            .labels("`project`, `type`")
            .help("Open WebSocket connections by project, the 100 with the most by name")
            .more(", the rest as `other`; `type` is `client` or `server`");
        Metric::counter("ws_cluster_connect_total", Value::Worker(|worker| &worker.connects))
            .live("connects")
            .help("WebSocket connections opened");
        Metric::counter("ws_cluster_handshake_total", Value::Samples(handshakes))
            .labels("`result`")
            .help("WebSocket handshakes, by the HTTP status of the answer")
            .more("; 101 is success");
        Metric::gauge("ws_cluster_handshakes", Value::Http(|http| &http.half_open))
            .help("WebSocket handshakes that are not answered, as of the last tick");
        Metric::gauge("ws_cluster_handshake_bytes", Value::Http(|http| &http.handshake_bytes))
            .help("Bytes allocated for the requests of handshakes, as of the last tick");
        Metric::counter("ws_cluster_close_total", Value::Samples(closes))
            .labels("`reason`")
            .help("WebSocket connections closed")
            .more(
                ": `peer`, `violation`, `slow_consumer`, `idle`, `going_away`, `gone`, \
                 `session_expired`, `message_timeout` (a message was not whole in time), \
                 `inbound_budget` (it was the oldest of too many unfinished ones)",
            );
        Metric::counter("ws_cluster_refused_total", Value::Samples(read::refusals))
            .labels("`port`, `reason`")
            .help("Connections refused, or ended in favour of others, for want of room")
            .more(
                ". On `ws`: `max_connections`; `open_files`, no descriptor left for it; \
                 `handshakes`, it was not whole and newer ones took its place. On `http`, and on \
                 `ops` for the ops ports: `connections`, all others had requests under way; \
                 `idle`, a kept connection, `half_request`, one that had sent no whole request, \
                 and `unread`, one that did not read its answer, whose place a newer one took; \
                 `body_bytes`, no memory for the request's body. On `ops` also `host`, `site` and \
                 `token`: requests that were \
                 not allowed, see [The ops ports](#the-ops-ports)",
            );
        Metric::counter("ws_cluster_sent_bytes_total", Value::Worker(|worker| &worker.sent_bytes))
            .live("sent_bytes")
            .help("Bytes that WebSocket connections took");
        Metric::counter(
            "ws_cluster_received_bytes_total",
            Value::Worker(|worker| &worker.received_bytes),
        )
            .live("received_bytes")
            .help("Bytes that came from WebSocket connections, after their handshakes");
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
            .help("Pushes of backends over HTTP and WebSocket, by their result")
            .more(": `accepted`, `refused`");
        Metric::histogram("ws_cluster_push_delivery_seconds", |shared| {
            vec![latencies(shared, |worker| &worker.delivery_latency)]
        })
            .help("Seconds from the acceptance of a push, at whichever node, until a worker has \
                handed it to its sockets")
            .more("; once for each worker with clients for it");
        Metric::histogram("ws_cluster_push_hop_seconds", hops)
            .labels("`hop`")
            .help("Seconds of a push's way: queue, from its acceptance to the queue's answer; \
                receive, from its acceptance to a worker with clients for it; write, from there \
                to the sockets")
            .more(". Between nodes `receive` has the clocks' difference in it");
        Metric::counter("ws_cluster_envelope_total", Value::Worker(|worker| &worker.envelopes))
            .live("envelopes")
            .help("Messages that workers handled, one for each worker");
        Metric::counter("ws_cluster_delivery_total", Value::Worker(|worker| &worker.deliveries))
            .live("deliveries")
            .help("Pushes handed to sockets, one for each connection");
        Metric::counter("ws_cluster_drop_total", Value::Samples(drops))
            .labels("`reason`")
            .help("Pushes that did not reach a connection that they were for")
            .more(
                ": `slow_consumer`, `disconnected`, `closed`, `ttl`; and messages that were kept \
                 from a worker as a whole: `mailbox_full` (answered with 503), `worker_full` (the \
                 broker's ring to it was full)",
            );
        Metric::gauge(
            "ws_cluster_idempotency_key",
            Value::Worker(|worker| &worker.remembered_keys),
        )
            .help("Idempotency keys that are remembered, one for each worker");
        Metric::counter(
            "ws_cluster_idempotency_repeated_total",
            Value::Worker(|worker| &worker.repeated_keys),
        )
            .help("Pushes left out because their key was remembered, one for each worker");
        Metric::counter(
            "ws_cluster_idempotency_forgotten_total",
            Value::Worker(|worker| &worker.forgotten_keys),
        )
            .help("Idempotency keys forgotten before their time, for want of room")
            .more(" (`--idempotency_keys`)");
    }
    "Memory" {
        Metric::gauge("ws_cluster_outbox_bytes", Value::Worker(|worker| &worker.outbox_bytes))
            .live("outbox_bytes")
            .help("Bytes allocated for what sockets have not taken, of closing connections too")
            .more(
                ": each connection's copies with what each frame takes besides, shared frames \
                 once, and the rests of frames that closing connections still have to write",
            );
        Metric::gauge("ws_cluster_outbox_connection", Value::Worker(|worker| &worker.backlogged))
            .help("Connections that did not take all they are owed yet");
        Metric::counter("ws_cluster_outbox_shed_total", Value::Samples(sheds))
            .labels("`reason`")
            .help("Connections that lost what waited for them, by the bound that was reached")
            .more(
                ": `connection` (`--outbox_bytes`), `worker` (`--worker_outbox_bytes`), `memory` \
                 (near `--memory_limit_bytes`), `closing` (it was closing already, and did not \
                 take the rest of a frame)",
            );
        Metric::gauge("ws_cluster_inbound_bytes", Value::Worker(|worker| &worker.inbound_bytes))
            .help("Memory of WebSocket messages that have not arrived whole");
        Metric::gauge("ws_cluster_memory_limit_bytes", Value::Maybe(read::memory_limit))
            .help("Memory that the process may use, from which budgets follow by default");
        Metric::gauge("ws_cluster_memory_used_bytes", Value::Maybe(read::memory_used))
            .help("What of it is used and cannot be taken back by the kernel, as of the last look");
    }
    "Business servers" {
        Metric::gauge("ws_cluster_business_server", Value::Worker(|worker| &worker.servers))
            .live("servers")
            .help("Business servers that are connected")
            .more("; they count in `ws_connection`, too");
        Metric::gauge("ws_cluster_business_server_known", Value::Node(read::servers_known))
            .help("Business servers of the whole cluster that every worker of this node knows of")
            .more(": the same on all nodes");
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
            .help("Requests of clients, by what they got")
            .more(
                ": `answered`, `no_server`, `timeout`, `server_gone`, `overloaded` (too many \
                 wait, or the queue is down), `client_gone` (nothing: the client ended first), \
                 `too_large` (the request or its answer, for the queue)",
            );
        Metric::counter("ws_cluster_limited_total", Value::Samples(limited))
            .labels("`project`, `limit`")
            .help("Requests refused because of a limit, by project")
            .more(": `requests_of_client`, `requests_of_project` (that wait for an answer)");
        Metric::counter(
            "ws_cluster_request_retry_total",
            Value::Worker(|worker| &worker.requests_retried),
        )
            .help("Requests that went to a second business server, because the first was gone");
        Metric::counter("ws_cluster_request_answer_lost_total", Value::Samples(|shared, samples| {
            LostAnswer::ALL.iter().for_each(|&(why, name)| {
                samples.sum(shared, "reason", name, |worker| worker.lost_answers(why));
            });
        }))
            .labels("`reason`")
            .help("Answers of business servers that reached no client")
            .more(
                ": `unasked` (it was not asked that, or has answered already, or too late), \
                 `late` (also where the client is gone) and `forged`, as the client's node sees \
                 it",
            );
        Metric::counter(
            "ws_cluster_event_published_total",
            Value::Worker(|worker| &worker.events_published),
        )
            .help("Events of clients that were published for business servers elsewhere");
        Metric::counter(
            "ws_cluster_event_delivered_total",
            Value::Worker(|worker| &worker.events_delivered),
        )
            .help("Events that business servers were told, one for each of them");
        Metric::counter("ws_cluster_parcel_unsent_total", Value::Node(read::parcels_unsent))
            .help("Requests, answers and events not handed over: the queue was down or full");
        Metric::counter(
            "ws_cluster_parcel_malformed_total",
            Value::Worker(|worker| &worker.parcels_malformed),
        )
            .help("Requests, answers and events of others that could not be read");
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
            .help("Bytes of messages that wait for a worker, as of its last tick");
        Metric::counter(
            "ws_cluster_worker_delivery_total",
            Value::EachWorker(|worker| &worker.deliveries),
        )
            .labels("`worker`")
            .help("Pushes that each worker handed to sockets, one for each connection");
        Metric::counter("ws_cluster_worker_stalled_seconds_total", Value::Float(read::stalled_s))
            .help("Seconds in which workers did not run although deadlines were to be looked at; \
                they do not count towards timeouts of clients")
            .more(" (stopped, kept from a core, a long turn: what is above 100 ms between two \
                looks)");
        Metric::histogram("ws_cluster_worker_turn_seconds", |shared| {
            vec![latencies(shared, |worker| &worker.turns)]
        })
            .help("Seconds that a worker's WebSocket side worked before others had their turn")
            .more("; it is cut to about 1 ms. A part of a pause");
        Metric::histogram("ws_cluster_worker_pause_seconds", |shared| {
            vec![pauses(shared, |worker| &worker.pauses)]
        })
            .help("Seconds that somebody who is ready waits until a worker comes round to it: the \
                length of a round of all its tasks that have work")
            .more(
                ". With more threads than cores most of a long one is the scheduler's doing",
            );
        Metric::histogram("ws_cluster_worker_own_pause_seconds", |shared| {
            vec![pauses(shared, |worker| &worker.own_pauses)]
        })
            .help("The workers' own part of ws_cluster_worker_pause_seconds: processor time, \
                without what other threads had of the core")
            .more(
                " (up to 0.2 ms too much). Above 2 ms is a defect, or one message to very many \
                 connections of one worker",
            );
        Metric::gauge("ws_cluster_worker_longest_pause_seconds", Value::Samples(longest_pauses))
            .labels("`time`")
            .help("The longest pause of the last 5 minutes, if it was longer than 0.5 ms: of all \
                (time=wall), and by the worker's own part (time=own)")
            .more("; 0: none was");
    }
    "The process" {
        Metric::info("ws_cluster_info", Value::Samples(info))
            .labels("`version`, `commit`, `node`, `queue`, `workers`")
            .help("The program, and what it was started as");
        Metric::counter("ws_cluster_thread_busy_seconds_total", Value::Samples(process::busy))
            .labels("`thread`")
            .help("Seconds of processor time that each thread has used")
            .more(": `worker-N`, `broker`, `ops`, …");
        Metric::counter("process_cpu_seconds_total", Value::Float(|_| process::cpu_s()))
            .help("Seconds of processor time");
        Metric::gauge("process_threads", Value::Node(|_| process::threads()))
            .help("Threads");
        Metric::gauge("process_open_fds", Value::Node(|_| process::open_files()))
            .help("Open descriptors in the tables of all threads; each worker has its own");
        Metric::gauge("process_max_fds", Value::Maybe(|_| process::open_files_limit()))
            .help("Descriptors that one table may have");
        Metric::gauge("process_virtual_memory_bytes", Value::Node(|_| process::memory()[0]))
            .help("Bytes of address space; the tables of connections are reserved, not used");
        Metric::gauge("process_resident_memory_bytes", Value::Node(|_| process::memory()[1]))
            .help("Bytes of memory in use");
        Metric::gauge(
            "process_start_time_seconds",
            Value::Float(|shared| shared.started.wall.value() as f64 / 1e3),
        )
            .help("When the process was started, seconds since 1970");
        Metric::counter("ws_cluster_log_dropped_total", Value::Node(|_| logs::dropped()))
            .help("Lines that the log dropped: its output did not take them in time")
            .more(" (a full disk, a reader that is stuck)");
        Metric::counter("ws_cluster_sentry_unsent_total", Value::Node(|_| sentry::unsent()))
            .help("Errors that Sentry did not get: over the limit of a minute, or it refused them");
        Metric::counter(
            "ws_cluster_span_dropped_total",
            Value::Worker(|worker| &worker.spans_dropped),
        )
            .help("Spans of traces that the exporter was too slow for");
    }
    "The queue" {
        Metric::gauge("ws_cluster_queue_ready", Value::Node(read::queue_ready))
            .help("1 while the queue takes pushes, else 0")
            .more("; with `local` always 1");
    }
    "The queue, with `--queue redis`" if redis {
        Metric::gauge("ws_cluster_node", Value::Node(read::nodes))
            .help("Nodes that are there, this one too");
        Metric::gauge("ws_cluster_ids_kept", Value::Broker(|broker| &broker.ids_kept))
            .help("1 while Redis keeps which client ids this node has given out, else 0");
        Metric::gauge(
            "ws_cluster_queue_pending_bytes",
            Value::Broker(|broker| &broker.pending_bytes),
        )
            .live("pending_bytes")
            .help("Bytes that wait for the queue's answer")
            .more("; at 64 MiB pushes get 503");
        Metric::gauge("ws_cluster_queue_lag_seconds", Value::Float(read::lag_s))
            .help("Seconds that this node's last canary to itself was under way, or has been");
        Metric::gauge("ws_cluster_queue_channel", Value::Broker(|broker| &broker.channels))
            .live("channels")
            .help("Channels that this node wants to hear");
        Metric::gauge(
            "ws_cluster_queue_channel_refused",
            Value::Broker(|broker| &broker.channels_refused),
        )
            .help("Channels that Redis does not let this node hear")
            .more(": see its [access rules](#access-rules-of-redis)");
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
            .help("Pushes, by the queue's answer")
            .more(": `accepted`; `refused`, an error (503); `unknown`, no answer in time (504)");
        Metric::counter("ws_cluster_queue_resent_total", Value::Broker(|broker| &broker.resent))
            .live("resent")
            .help("Commands sent again after a reconnect")
            .more(", because the last link brought no answer to them");
        Metric::counter("ws_cluster_queue_received_total", Value::Broker(|broker| &broker.received))
            .live("received")
            .help("Messages that came from the queue, of any kind")
            .more(": pushes (each of those that share a PUBLISH), canaries and repeated numbers");
        Metric::counter("ws_cluster_queue_repeated_total", Value::Broker(|broker| &broker.repeated))
            .help("Messages that had come before, and were left out");
        Metric::counter("ws_cluster_queue_missed_total", Value::Samples(missed))
            .labels("`origin`, `channel`")
            .help("Messages lost on the way to this node, by node of origin and channel")
            .more("; after 1,000 pairs the channel is `other`");
        Metric::counter(
            "ws_cluster_queue_malformed_total",
            Value::Broker(|broker| &broker.malformed),
        )
            .help("Messages that were no envelope, or too long")
            .more(", a bundle of too many, or of another node and not JSON");
        Metric::counter("ws_cluster_queue_foreign_total", Value::Broker(|broker| &broker.foreign))
            .help("Messages of another process with this node's number")
            .more(" (`--node`)");
        Metric::counter("ws_cluster_queue_ignored_total", Value::Samples(ignored))
            .labels("`reason`")
            .help("Messages that were left out, by reason")
            .more(
                ": `unknown_kind`, of a newer node (a rolling upgrade); `unknown_project`, a \
                 request, an answer or events of a project that this node does not serve; \
                 `false_number`, with a number that its node never gave out: something else \
                 publishes on the channels",
            );
        Metric::counter(
            "ws_cluster_queue_number_resets_total",
            Value::Broker(|broker| &broker.number_resets),
        )
            .help("Times that numbers heard of a node could not be right and were reset");
        Metric::gauge(
            "ws_cluster_queue_max_message_bytes",
            Value::Node(read::max_message_bytes),
        )
            .help("Bytes of the largest message that the queue carries, as far as it is known")
            .more(", see [The size of a message](#the-size-of-a-message)");
        Metric::counter("ws_cluster_queue_too_large_total", Value::Samples(read::too_large))
            .labels("`what`")
            .help("Pushes (413), and requests, answers and events, larger than what the queue \
                carries")
            .more(": `push`, `parcel`");
        Metric::counter(
            "ws_cluster_queue_abandoned_total",
            Value::Broker(|broker| &broker.abandoned),
        )
            .help("Messages that are not sent again, because three links to the queue ended with \
                them");
    }
}
