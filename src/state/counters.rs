//! Counters of one worker: written by it alone, read by whoever shows them.

mod pauses;

use crate::types::NodeId;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

pub use pauses::{LONGEST_OF_MINUTES, PAUSE_BOUNDS_US, Pauses};

/// Why a message that matched an open connection did not reach it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drop {
    /// Its outbox, or the worker's, was over its budget; the connection was closed with 4000.
    SlowConsumer,
    /// The connection broke while it waited.
    Disconnected,
    /// The connection was being closed while it waited.
    Closed,
    /// Its `ttl_ms` ran out.
    Expired,
    /// It did not get into another worker's mailbox (answered 503).
    MailboxFull,
}

impl Drop {
    pub const ALL: [(Self, &str); 5] = [
        (Self::SlowConsumer, "slow_consumer"),
        (Self::Disconnected, "disconnected"),
        (Self::Closed, "closed"),
        (Self::Expired, "ttl"),
        (Self::MailboxFull, "mailbox_full"),
    ];
}

/// Why connections lost what waited for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shed {
    /// More than `--outbox_bytes` waited for it.
    Connection,
    /// It had the most of its worker's budget, which was used up.
    Worker,
    /// It had the most when the process came near its memory limit.
    Memory,
    /// It was closing, and did not take the rest of a frame while its worker's budget was used up.
    Closing,
}

impl Shed {
    pub const ALL: [(Self, &str); 4] = [
        (Self::Connection, "connection"),
        (Self::Worker, "worker"),
        (Self::Memory, "memory"),
        (Self::Closing, "closing"),
    ];
}

/// What a client's request got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answered {
    /// A business server's answer.
    Answered,
    NoServer,
    Timeout,
    ServerGone,
    /// Too many wait, or the queue is down.
    Overloaded,
    /// Nothing: the client that asked ended first.
    ClientGone,
    /// The request, or its answer, is larger than what the queue carries.
    TooLarge,
}

impl Answered {
    pub const ALL: [(Self, &str); 7] = [
        (Self::Answered, "answered"),
        (Self::NoServer, "no_server"),
        (Self::Timeout, "timeout"),
        (Self::ServerGone, "server_gone"),
        (Self::Overloaded, "overloaded"),
        (Self::ClientGone, "client_gone"),
        (Self::TooLarge, "too_large"),
    ];
}

/// Why an answer of a business server reached nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LostAnswer {
    /// It was not asked that, or has answered already, or too late.
    Unasked,
    /// The client's worker had given up, or has had the answer.
    Late,
    /// Another connection was asked.
    Forged,
}

impl LostAnswer {
    pub const ALL: [(Self, &str); 3] =
        [(Self::Unasked, "unasked"), (Self::Late, "late"), (Self::Forged, "forged")];
}

/// Why a connection was refused, or ended in favour of another: for want of room, or on an ops port
/// because it may not ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// A good handshake: `--max_connections` are open.
    MaxConnections,
    /// A handshake, good or not whole: the worker has no descriptor for it.
    OpenFiles,
    /// A handshake that was not whole: newer ones have its place, or its memory.
    Handshakes,
    /// An HTTP connection: all others have requests under way.
    HttpConnections,
    /// An HTTP connection that waited for its next request: a newer one has its place.
    HttpIdle,
    /// One that had not sent a whole request: a newer one has its place.
    HttpHalf,
    /// One that did not read its answer: a newer one has its place.
    HttpUnread,
    /// A request that was not whole: there was no memory for its body.
    HttpBodies,
    /// A request to an ops port that does not name this node, that another site's page has made, or
    /// that does not bear the token.
    OpsHost,
    OpsSite,
    OpsToken,
}

impl Refusal {
    /// With the port, and what the reason is called.
    pub const ALL: [(Self, &str, &str); 11] = [
        (Self::MaxConnections, "ws", "max_connections"),
        (Self::OpenFiles, "ws", "open_files"),
        (Self::Handshakes, "ws", "handshakes"),
        (Self::HttpConnections, "http", "connections"),
        (Self::HttpIdle, "http", "idle"),
        (Self::HttpHalf, "http", "half_request"),
        (Self::HttpUnread, "http", "unread"),
        (Self::HttpBodies, "http", "body_bytes"),
        (Self::OpsHost, "ops", "host"),
        (Self::OpsSite, "ops", "site"),
        (Self::OpsToken, "ops", "token"),
    ];
}

/// A number for each reason.
#[derive(Debug, Default)]
pub struct RefusalCounts([Counter; Refusal::ALL.len()]);

impl RefusalCounts {
    pub fn count(&self, why: Refusal) {
        self.0[why as usize].add(1);
    }

    pub fn value(&self, why: Refusal) -> u64 {
        self.0[why as usize].value()
    }
}

/// How a connection ended.
pub const CLOSE_CAUSES: [&str; 9] = [
    "peer",
    "violation",
    "slow_consumer",
    "idle",
    "going_away",
    "gone",
    "session_expired",
    "message_timeout",
    "inbound_budget",
];

/// A number that one thread raises and others read: no locked instruction.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Only the owning worker calls this.
    #[inline]
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }

    #[inline]
    pub fn set(&self, n: u64) {
        self.0.store(n, Relaxed);
    }

    pub fn value(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Upper bounds of latencies, in microseconds.
pub const LATENCY_BOUNDS_US: [u64; 19] = [
    25, 50, 100, 200, 400, 800, 1_500, 3_000, 6_000, 12_000, 25_000, 50_000, 100_000, 200_000,
    400_000, 800_000, 1_600_000, 5_000_000, 10_000_000,
];

/// Counts of durations by size: written by one thread, read by others.
#[derive(Debug)]
pub struct Latencies {
    counts: [Counter; LATENCY_BOUNDS_US.len() + 1],
    sum_us: Counter,
}

impl Default for Latencies {
    fn default() -> Self {
        Self { counts: std::array::from_fn(|_| Counter::default()), sum_us: Counter::default() }
    }
}

impl Latencies {
    #[inline]
    pub fn observe(&self, us: u64) {
        let bucket = LATENCY_BOUNDS_US.partition_point(|&bound| bound < us);
        self.counts[bucket].add(1);
        self.sum_us.add(us);
    }

    /// How many are in each bucket (the last is the one without a bound), and their sum.
    pub fn read(&self) -> ([u64; LATENCY_BOUNDS_US.len() + 1], u64) {
        (std::array::from_fn(|bucket| self.counts[bucket].value()), self.sum_us.value())
    }
}

/// Open connections of one project at one worker.
#[derive(Debug, Default)]
pub struct ProjectCounters {
    pub clients: Counter,
    pub servers: Counter,
    /// Requests that were refused: too many of one connection, and of the project, wait.
    pub limited_by_client: Counter,
    pub limited_by_project: Counter,
}

/// Everything that one worker counts.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Counters {
    /// Open connections now.
    pub connections: Counter,
    /// By [`super::projects::ProjectId`]; empty where nobody asks.
    pub projects: Box<[ProjectCounters]>,
    pub connects: Counter,
    /// Pushes that were accepted here, and that were not.
    pub pushes_accepted: Counter,
    pub pushes_refused: Counter,
    /// From the acceptance of a push to the queue's answer.
    pub queue_latency: Latencies,
    /// From the acceptance, at whichever node, to this worker; and from there to the sockets.
    pub receive_latency: Latencies,
    pub write_latency: Latencies,
    /// From the acceptance to the sockets.
    pub delivery_latency: Latencies,
    /// Bytes that sockets took and gave, of WebSocket connections.
    pub sent_bytes: Counter,
    pub received_bytes: Counter,
    /// Connections whose outbox holds something now.
    pub backlogged: Counter,
    /// How long pieces of work of the WebSocket side took, between which others have their turn.
    pub turns: Latencies,
    /// How long it takes to come round to all who are ready, and what of that is processor time.
    pub pauses: Pauses,
    pub own_pauses: Pauses,
    /// Memory of messages that have not arrived whole.
    pub inbound_bytes: Counter,
    /// Milliseconds in which the thread did not run although deadlines were to be looked at.
    pub stalled_ms: Counter,
    /// Spans for which the exporter's ring had no room.
    pub spans_dropped: Counter,
    /// Bytes of what waits in the rings to this worker, as of its last tick.
    pub waiting_bytes: Counter,
    /// Messages accepted by this worker or handed to it.
    pub envelopes: Counter,
    /// Pushes handed to the kernel, whole, one for each connection.
    pub deliveries: Counter,
    /// Data messages that came from clients, and from business servers.
    pub client_messages: Counter,
    pub server_messages: Counter,
    /// Business servers that are connected now.
    pub servers: Counter,
    /// Those of the whole cluster that this worker knows of.
    pub servers_known: Counter,
    /// Events that were published for others, and those that business servers here were told.
    pub events_published: Counter,
    pub events_delivered: Counter,
    /// Requests that went to a second business server, because the first was gone.
    pub requests_retried: Counter,
    /// Parcels of others that could not be read, and own ones that could not be handed over.
    pub parcels_malformed: Counter,
    pub parcels_unsent: Counter,
    /// Pushes (413) and parcels that are larger than what the queue carries.
    pub too_large_pushes: Counter,
    pub too_large_parcels: Counter,
    /// Pushes that were left out because their `idempotency_key` had been here; keys that are
    /// remembered now; keys that were forgotten early, for want of room.
    pub repeated_keys: Counter,
    pub remembered_keys: Counter,
    pub forgotten_keys: Counter,
    /// Bytes allocated now for what sockets have not taken, those of closing connections too.
    pub outbox_bytes: Counter,
    answered: [Counter; Answered::ALL.len()],
    lost_answers: [Counter; LostAnswer::ALL.len()],
    drops: [Counter; Drop::ALL.len()],
    sheds: [Counter; Shed::ALL.len()],
    closes: [Counter; CLOSE_CAUSES.len()],
}

impl Counters {
    pub fn new(projects: usize) -> Self {
        let projects = (0..projects).map(|_| ProjectCounters::default()).collect();
        Self { projects, ..Self::default() }
    }

    pub fn count_drops(&self, reason: Drop, n: u64) {
        self.drops[reason as usize].add(n);
    }

    pub fn drops(&self, reason: Drop) -> u64 {
        self.drops[reason as usize].value()
    }

    pub fn count_shed(&self, why: Shed) {
        self.sheds[why as usize].add(1);
    }

    pub fn sheds(&self, why: Shed) -> u64 {
        self.sheds[why as usize].value()
    }

    pub fn count_answered(&self, how: Answered) {
        self.answered[how as usize].add(1);
    }

    pub fn answered(&self, how: Answered) -> u64 {
        self.answered[how as usize].value()
    }

    pub fn count_lost_answer(&self, why: LostAnswer) {
        self.lost_answers[why as usize].add(1);
    }

    pub fn lost_answers(&self, why: LostAnswer) -> u64 {
        self.lost_answers[why as usize].value()
    }

    pub fn count_close(&self, cause: usize) {
        self.closes[cause].add(1);
    }

    pub fn closes(&self, cause: usize) -> u64 {
        self.closes[cause].value()
    }
}

/// Pairs of node and channel whose missed messages are told apart; those beyond count as `other`.
const MISSED_PAIRS: usize = 1_000;

/// What the broker counts.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct BrokerCounters {
    /// 1 while the queue takes pushes and its messages arrive here.
    pub ready: Counter,
    /// 1 while Redis keeps which ids this node has given out.
    pub ids_kept: Counter,
    /// Lives of the links that were lost.
    pub losses: Counter,
    /// Pushes that the queue accepted, refused, and did not answer in time.
    pub published: Counter,
    pub refused: Counter,
    pub unknown: Counter,
    /// Commands that were sent again after a reconnect.
    pub resent: Counter,
    /// Messages that came from the queue; those that had come before; what was no envelope.
    pub received: Counter,
    pub repeated: Counter,
    pub malformed: Counter,
    /// Messages with numbers that their nodes never gave out; how often a number that was heard
    /// turned out to be one.
    pub false_numbers: Counter,
    pub number_resets: Counter,
    /// Messages of a kind that this node does not know.
    pub unknown_kind: Counter,
    /// Parcels of projects that this node does not serve.
    pub unknown_project: Counter,
    /// Messages of another process with this node's number.
    pub foreign: Counter,
    /// Messages that were dropped because a worker's ring was full.
    pub worker_full: Counter,
    /// Pushes and parcels that are larger than what the queue carries: it carried more when their
    /// worker looked.
    pub too_large_pushes: Counter,
    pub too_large_parcels: Counter,
    /// Messages that are not sent again, because three links ended with them.
    pub abandoned: Counter,
    /// Parcels (requests, answers, events) that could not be published: the queue was down or full.
    pub parcels_refused: Counter,
    /// Bytes written to and read from the queue's links.
    pub sent_bytes: Counter,
    pub received_bytes: Counter,
    /// Milliseconds that the last canary was under way, or that one which is late has been.
    pub lag_ms: Counter,
    /// The nodes that are there, this one too.
    pub nodes: Mutex<Vec<NodeId>>,
    /// Bytes of pushes that wait for the queue's answer now.
    pub pending_bytes: Counter,
    /// Channels that this node wants to hear now, and those of them that Redis forbids it to.
    pub channels: Counter,
    pub channels_refused: Counter,
    missed: Mutex<BTreeMap<(NodeId, String), u64>>,
}

impl BrokerCounters {
    /// Messages of `origin` on a channel were lost on the way to this node.
    pub fn count_missed(&self, origin: NodeId, channel: &[u8], missed: u64) {
        let mut all = self.missed.lock().unwrap_or_else(PoisonError::into_inner);
        let mut key = (origin, String::from_utf8_lossy(channel).into_owned());
        if all.len() >= MISSED_PAIRS && !all.contains_key(&key) {
            key.1 = "other".into();
        }
        *all.entry(key).or_default() += missed;
    }

    /// Messages missed, by origin and channel.
    pub fn missed(&self) -> BTreeMap<(NodeId, String), u64> {
        self.missed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The statuses that a response or a handshake can end with.
pub const STATUSES: [u16; 18] =
    [101, 200, 204, 400, 401, 403, 404, 405, 408, 411, 413, 415, 426, 429, 431, 500, 503, 504];

/// A number for each status of [`STATUSES`].
#[derive(Debug, Default)]
pub struct StatusCounts([Counter; STATUSES.len()]);

impl StatusCounts {
    /// A status that is not in the list counts as 500.
    pub fn count(&self, status: u16, times: u64) {
        let place = |wanted| STATUSES.iter().position(|&one| one == wanted);
        if let Some(index) = place(status).or_else(|| place(500)) {
            self.0[index].add(times);
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = (u16, u64)> {
        STATUSES.iter().zip(&self.0).map(|(&status, counter)| (status, counter.value()))
    }
}

/// The paths that are told apart; anything else is `other`.
pub const URLS: [&str; 6] =
    ["/ws/push", "/ws/push/batch", "/healthz", "/readyz", "/version", "other"];

/// Upper bounds of `request_duration`, in seconds.
pub const DURATION_BOUNDS: [f64; 14] = [
    0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.3, 1.0,
    10.0,
];

/// What one worker's HTTP port counts.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct HttpCounters {
    urls: [StatusCounts; URLS.len()],
    durations: [Counter; DURATION_BOUNDS.len() + 1],
    duration_us: Counter,
    /// Open HTTP connections now.
    pub connections: Counter,
    /// WebSocket handshakes, by the status that they were answered with.
    pub handshakes: StatusCounts,
    /// Connections that could not be accepted, for want of descriptors or memory.
    pub accept_errors: Counter,
    /// Open WebSocket connections that the worker has descriptors for.
    pub max_connections: Counter,
    /// Handshakes that are not over now, and the bytes of their requests, as allocated.
    pub half_open: Counter,
    pub handshake_bytes: Counter,
    /// Bytes allocated for HTTP requests now.
    pub body_bytes: Counter,
    pub refusals: RefusalCounts,
}

impl HttpCounters {
    /// Counts requests that were answered alike. `url`: of [`HttpCounters::url_of`].
    pub fn count(&self, url: usize, status: u16, duration_us: u64, requests: u64) {
        self.urls[url].count(status, requests);
        let seconds = duration_us as f64 / 1e6;
        let bucket = DURATION_BOUNDS.partition_point(|&bound| bound < seconds);
        self.durations[bucket].add(requests);
        self.duration_us.add(duration_us * requests);
    }

    /// The place of a path in [`URLS`].
    pub fn url_of(path: &str) -> usize {
        let other = URLS.len() - 1;
        URLS[..other].iter().position(|&url| url == path).unwrap_or(other)
    }

    pub fn url(&self, index: usize) -> &StatusCounts {
        &self.urls[index]
    }

    /// Requests in each bucket (the last is the one without a bound), and the sum of seconds.
    pub fn durations(&self) -> ([u64; DURATION_BOUNDS.len() + 1], f64) {
        let counts = std::array::from_fn(|bucket| self.durations[bucket].value());
        (counts, self.duration_us.value() as f64 / 1e6)
    }
}
