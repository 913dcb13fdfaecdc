//! Counters of one worker: written by that worker alone, read by any thread.

mod pauses;
mod recent;

use crate::types::NodeId;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, OnceLock, PoisonError};

pub use pauses::{LONGEST_OF_MINUTES, PAUSE_BOUNDS_US, Pauses};
pub use recent::{RecentConnect, RecentConnects};

/// Why a message that matched an open connection did not reach it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drop {
    /// Its outbox, or the worker's, was over its budget; the connection was closed with 4000.
    SlowConsumer,
    /// The connection broke while the message waited.
    Disconnected,
    /// The connection was being closed while the message waited.
    Closed,
    /// Its `ttl_ms` elapsed.
    Expired,
    /// It did not fit in another worker's mailbox (answered 503).
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

/// Why connections lost their queued output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shed {
    /// More than `--outbox_bytes` were queued for it.
    Connection,
    /// It held the most of its worker's budget, which was used up.
    Worker,
    /// It held the most when the process came near its memory limit.
    Memory,
    /// It was closing and did not accept the rest of a frame while its worker's budget was used up.
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

/// How a client's request was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answered {
    /// By a business server.
    Answered,
    NoServer,
    Timeout,
    ServerGone,
    /// Too many requests wait, or the queue is down.
    Overloaded,
    /// Not at all: the client that asked disconnected first.
    ClientGone,
    /// The request, or its response, is larger than what the queue carries.
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

/// Why a business server's response was discarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LostAnswer {
    /// The server was not asked this, has answered already, or is too late.
    Unasked,
    /// The client's worker had given up or already has the response.
    Late,
    /// Another connection was asked.
    Forged,
}

impl LostAnswer {
    pub const ALL: [(Self, &str); 3] =
        [(Self::Unasked, "unasked"), (Self::Late, "late"), (Self::Forged, "forged")];
}

/// Why a connection was refused, or ended to make room for another: for lack of resources, or on an
/// ops port because it is not authorized.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// A valid handshake: `--max_connections` are open.
    MaxConnections,
    /// A handshake, valid or incomplete: the worker has no descriptor for it.
    OpenFiles,
    /// An incomplete handshake: newer ones took its place or its memory.
    Handshakes,
    /// An HTTP connection: all others have requests in progress.
    HttpConnections,
    /// An HTTP connection that waited for its next request: a newer one took its place.
    HttpIdle,
    /// An HTTP connection that had not sent a complete request: a newer one took its place.
    HttpHalf,
    /// An HTTP connection that did not read its response: a newer one took its place.
    HttpUnread,
    /// An incomplete request: there was no memory for its body.
    HttpBodies,
    /// A request to an ops port that does not name this node, was made by another site's page, or
    /// lacks the token.
    OpsHost,
    OpsSite,
    OpsToken,
}

impl Refusal {
    /// With the port and the label of the reason.
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

/// One counter per reason.
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
pub const CLOSE_CAUSES: [&str; 10] = [
    "peer",
    "violation",
    "slow_consumer",
    "idle",
    "going_away",
    "gone",
    "session_expired",
    "message_timeout",
    "inbound_budget",
    "project_removed",
];

/// A number that one thread increases and others read: no locked instruction.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`. Only the owning worker calls this.
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

/// Histogram of durations: written by one thread, read by others.
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

    /// Returns the count in each bucket (the last one is unbounded), and the sum of the durations.
    pub fn read(&self) -> ([u64; LATENCY_BOUNDS_US.len() + 1], u64) {
        (std::array::from_fn(|bucket| self.counts[bucket].value()), self.sum_us.value())
    }
}

/// Open connections of one project at one worker.
#[derive(Debug, Default)]
pub struct ProjectCounters {
    pub clients: Counter,
    pub servers: Counter,
    /// Requests refused because too many wait, of one connection and of the project.
    pub limited_by_client: Counter,
    pub limited_by_project: Counter,
}

/// The counters of all projects at one worker, by [`super::projects::ProjectId`]. A reload adds
/// some; those that exist stay where they are, because threads count in them.
#[derive(Debug, Default)]
pub struct ProjectTable {
    first: Box<[ProjectCounters]>,
    /// Each twice as long as the one before it.
    more: [OnceLock<Box<[ProjectCounters]>>; MORE_CHUNKS],
}

const FIRST_CHUNK: usize = 64;
/// Enough for [`super::projects::MAX_PROJECT_IDS`].
const MORE_CHUNKS: usize = 15;

impl ProjectTable {
    fn new(projects: usize) -> Self {
        Self { first: chunk(projects), ..Self::default() }
    }

    /// Returns a project's counters; `None`: no metrics are requested.
    pub fn get(&self, project: usize) -> Option<&ProjectCounters> {
        if let Some(counters) = self.first.get(project) {
            return Some(counters);
        }
        // Chunk n begins after FIRST_CHUNK * (2^n - 1) others.
        let index = project - self.first.len();
        let number = (index / FIRST_CHUNK + 1).ilog2() as usize;
        let begin = FIRST_CHUNK * ((1 << number) - 1);
        self.more.get(number)?.get()?.get(index - begin)
    }

    /// Makes room for this number of projects.
    pub fn grow(&self, projects: usize) {
        let mut room = self.first.len();
        for (number, more) in self.more.iter().enumerate() {
            if room >= projects {
                return;
            }
            room += more.get_or_init(|| chunk(FIRST_CHUNK << number)).len();
        }
    }
}

fn chunk(projects: usize) -> Box<[ProjectCounters]> {
    (0..projects).map(|_| ProjectCounters::default()).collect()
}

/// All counters of one worker.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Counters {
    /// Connections open now.
    pub connections: Counter,
    pub projects: ProjectTable,
    /// The generation of the configuration that this worker uses.
    pub config_generation: Counter,
    pub connects: Counter,
    /// The connections that opened last.
    pub recent: RecentConnects,
    /// Pushes that were accepted and rejected here.
    pub pushes_accepted: Counter,
    pub pushes_refused: Counter,
    /// From accepting a push to the queue's reply.
    pub queue_latency: Latencies,
    /// From accepting a push, at any node, to its arrival at this worker; from there to the
    /// sockets.
    pub receive_latency: Latencies,
    pub write_latency: Latencies,
    /// From accepting a push to writing it to the sockets.
    pub delivery_latency: Latencies,
    /// Bytes written to and read from the sockets of WebSocket connections.
    pub sent_bytes: Counter,
    pub received_bytes: Counter,
    /// Connections whose outbox is not empty now.
    pub backlogged: Counter,
    /// Durations of the WebSocket side's work items, between which other tasks run.
    pub turns: Latencies,
    /// Durations of full loop turns over all ready tasks, and the CPU time in them.
    pub pauses: Pauses,
    pub own_pauses: Pauses,
    /// Memory of incomplete incoming messages.
    pub inbound_bytes: Counter,
    /// Milliseconds in which the thread did not run although deadlines were due to be checked.
    pub stalled_ms: Counter,
    /// Spans for which the exporter's ring had no room.
    pub spans_dropped: Counter,
    /// Bytes waiting in the rings to this worker, as of its last tick.
    pub waiting_bytes: Counter,
    /// Messages accepted by this worker or passed to it.
    pub envelopes: Counter,
    /// Pushes completely handed to the kernel, one per connection.
    pub deliveries: Counter,
    /// Data messages received from clients, and from business servers.
    pub client_messages: Counter,
    pub server_messages: Counter,
    /// Business servers connected now.
    pub servers: Counter,
    /// Business servers of the whole cluster that this worker knows.
    pub servers_known: Counter,
    /// Events published for other workers, and events sent to business servers here.
    pub events_published: Counter,
    pub events_delivered: Counter,
    /// Requests that went to a second business server because the first was gone.
    pub requests_retried: Counter,
    /// Received parcels that could not be parsed, and own ones that could not be handed over.
    pub parcels_malformed: Counter,
    pub parcels_unsent: Counter,
    /// Pushes (413) and parcels larger than what the queue carries.
    pub too_large_pushes: Counter,
    pub too_large_parcels: Counter,
    /// Pushes dropped because their `idempotency_key` was seen before; keys remembered now; keys
    /// forgotten early for lack of room.
    pub repeated_keys: Counter,
    pub remembered_keys: Counter,
    pub forgotten_keys: Counter,
    /// Bytes allocated now for output that sockets have not accepted, those of closing connections
    /// included.
    pub outbox_bytes: Counter,
    answered: [Counter; Answered::ALL.len()],
    lost_answers: [Counter; LostAnswer::ALL.len()],
    drops: [Counter; Drop::ALL.len()],
    sheds: [Counter; Shed::ALL.len()],
    closes: [Counter; CLOSE_CAUSES.len()],
}

impl Counters {
    pub fn new(projects: usize) -> Self {
        Self { projects: ProjectTable::new(projects), ..Self::default() }
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

/// Pairs of node and channel for which missed messages are counted separately; further ones count
/// as `other`.
const MISSED_PAIRS: usize = 1_000;

/// Counters of the broker.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct BrokerCounters {
    /// The generation of the configuration that the broker uses.
    pub config_generation: Counter,
    /// 1 while the queue accepts pushes and its messages arrive here.
    pub ready: Counter,
    /// 1 while Redis stores which ids this node has issued.
    pub ids_kept: Counter,
    /// Times that the links were lost.
    pub losses: Counter,
    /// Pushes that the queue accepted, refused, and did not answer in time.
    pub published: Counter,
    pub refused: Counter,
    pub unknown: Counter,
    /// Commands that were sent again after a reconnect.
    pub resent: Counter,
    /// Messages received from the queue; repeated ones; malformed ones.
    pub received: Counter,
    pub repeated: Counter,
    pub malformed: Counter,
    /// Messages with numbers that their nodes never issued; times that an accepted number turned
    /// out to be false.
    pub false_numbers: Counter,
    pub number_resets: Counter,
    /// Messages of a kind unknown to this node.
    pub unknown_kind: Counter,
    /// Parcels of projects that this node does not serve.
    pub unknown_project: Counter,
    /// Messages of another process with this node's id.
    pub foreign: Counter,
    /// Messages dropped because a worker's ring was full.
    pub worker_full: Counter,
    /// Pushes and parcels larger than what the queue carries: the limit was higher when their
    /// worker checked it.
    pub too_large_pushes: Counter,
    pub too_large_parcels: Counter,
    /// Messages not sent again because three links ended with them.
    pub abandoned: Counter,
    /// Parcels (requests, responses, events) that could not be published: the queue was down or
    /// full.
    pub parcels_refused: Counter,
    /// Bytes written to and read from the queue's links.
    pub sent_bytes: Counter,
    pub received_bytes: Counter,
    /// Round-trip time of the last canary, or the age of one that is overdue, in milliseconds.
    pub lag_ms: Counter,
    /// The live nodes, this one included.
    pub nodes: Mutex<Vec<NodeId>>,
    /// Bytes of pushes that wait for the queue's reply now.
    pub pending_bytes: Counter,
    /// Channels that this node wants to be subscribed to now, and those of them that Redis forbids.
    pub channels: Counter,
    pub channels_refused: Counter,
    missed: Mutex<BTreeMap<(NodeId, String), u64>>,
}

impl BrokerCounters {
    /// Counts messages of `origin` on a channel that were lost on the way to this node.
    pub fn count_missed(&self, origin: NodeId, channel: &[u8], missed: u64) {
        let mut all = self.missed.lock().unwrap_or_else(PoisonError::into_inner);
        let mut key = (origin, String::from_utf8_lossy(channel).into_owned());
        if all.len() >= MISSED_PAIRS && !all.contains_key(&key) {
            key.1 = "other".into();
        }
        *all.entry(key).or_default() += missed;
    }

    /// Returns the missed messages by origin and channel.
    pub fn missed(&self) -> BTreeMap<(NodeId, String), u64> {
        self.missed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The status codes of a response or a handshake.
pub const STATUSES: [u16; 18] =
    [101, 200, 204, 400, 401, 403, 404, 405, 408, 411, 413, 415, 426, 429, 431, 500, 503, 504];

/// One counter for each status of [`STATUSES`].
#[derive(Debug, Default)]
pub struct StatusCounts([Counter; STATUSES.len()]);

impl StatusCounts {
    /// Counts a status; one that is not in the list counts as 500.
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

/// Paths that are counted separately; any other is `other`.
pub const URLS: [&str; 6] =
    ["/ws/push", "/ws/push/batch", "/healthz", "/readyz", "/version", "other"];

/// Upper bounds of `request_duration`, in seconds.
pub const DURATION_BOUNDS: [f64; 14] = [
    0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.3, 1.0,
    10.0,
];

/// Counters of one worker's HTTP port.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct HttpCounters {
    urls: [StatusCounts; URLS.len()],
    durations: [Counter; DURATION_BOUNDS.len() + 1],
    duration_us: Counter,
    /// HTTP connections open now.
    pub connections: Counter,
    /// WebSocket handshakes, by the status of the response.
    pub handshakes: StatusCounts,
    /// Connections that could not be accepted for lack of descriptors or memory.
    pub accept_errors: Counter,
    /// Maximum open WebSocket connections for which the worker has descriptors.
    pub max_connections: Counter,
    /// Handshakes in progress, and the bytes allocated for their requests.
    pub half_open: Counter,
    pub handshake_bytes: Counter,
    /// Bytes allocated for HTTP requests now.
    pub body_bytes: Counter,
    pub refusals: RefusalCounts,
}

impl HttpCounters {
    /// Counts requests with the same outcome. `url`: from [`HttpCounters::url_of`].
    pub fn count(&self, url: usize, status: u16, duration_us: u64, requests: u64) {
        self.urls[url].count(status, requests);
        let seconds = duration_us as f64 / 1e6;
        let bucket = DURATION_BOUNDS.partition_point(|&bound| bound < seconds);
        self.durations[bucket].add(requests);
        self.duration_us.add(duration_us * requests);
    }

    /// Returns the index of a path in [`URLS`].
    pub fn url_of(path: &str) -> usize {
        let other = URLS.len() - 1;
        URLS[..other].iter().position(|&url| url == path).unwrap_or(other)
    }

    pub fn url(&self, index: usize) -> &StatusCounts {
        &self.urls[index]
    }

    /// Returns the requests in each bucket (the last one is unbounded), and the sum in seconds.
    pub fn durations(&self) -> ([u64; DURATION_BOUNDS.len() + 1], f64) {
        let counts = std::array::from_fn(|bucket| self.durations[bucket].value());
        (counts, self.duration_us.value() as f64 / 1e6)
    }
}
