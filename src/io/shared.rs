//! What all workers of a node share: the configuration, immutable, and numbers touched at connect
//! and close.

use super::accept_errors::AcceptErrors;
use super::memory::MemoryLimit;
use crate::state::broker::SizeLimit;
use crate::state::counters::{BrokerCounters, Counter, Counters, HttpCounters, RefusalCounts};
use crate::state::projects::Projects;
use crate::state::servers::Loads;
use crate::types::{Incarnation, Limits, NodeId, Routing};
use crate::wire::redis_url::RedisUrl;
use crate::wire::sign::Token;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// What the workers are told; the meaning of each is that of the flag of the same name.
#[derive(Debug, Clone)]
pub struct Settings {
    pub node: NodeId,
    /// `--env`, as it is written.
    pub env: &'static str,
    /// The pid and the secret of the built-in project, where `dev` runs with it: the console of the
    /// live page fills them in.
    pub dev_project: Option<(&'static str, &'static str)>,
    pub workers: usize,
    pub max_connections: usize,
    pub max_http_connections: usize,
    pub max_handshakes: usize,
    /// The limit of open files of each table (RLIMIT_NOFILE).
    pub open_files: usize,
    pub demand_exp: bool,
    pub ping_interval_ms: u64,
    /// Whether a refused signature is answered with the text that should have been signed.
    pub shows_signed_text: bool,
    pub idle_timeout_ms: u64,
    pub message_timeout_ms: u64,
    pub request_timeout_ms: u64,
    pub handshake_timeout_ms: u64,
    pub keep_alive_ms: u64,
    pub linger_ms: u64,
    /// How long a batch of pushes may wait for more of them; 0: not at all.
    pub coalesce_us: u64,
    pub drain_ms: u64,
    pub limits: Limits,
    pub outbox_bytes: usize,
    pub worker_outbox_bytes: usize,
    pub server_outbox_bytes: usize,
    pub memory_limit: Option<MemoryLimit>,
    pub worker_body_bytes: usize,
    pub worker_inbound_bytes: usize,
    pub idempotency_keys: usize,
    pub echo: bool,
    pub pin: bool,
    /// Names by which the ops ports may be asked, beside their address and localhost.
    pub ops_hosts: Vec<String>,
    /// What requests to the ops ports must bear.
    pub ops_token: Option<Token>,
    /// `None`: the `local` queue.
    pub redis: Option<RedisSettings>,
}

impl Settings {
    /// Connections that one worker can have: address space is reserved for that many.
    pub fn slots(&self) -> usize {
        self.max_connections.min(self.open_files)
    }
}

#[derive(Debug, Clone)]
pub struct RedisSettings {
    pub url: RedisUrl,
    pub prefix: String,
    pub queue_timeout_ms: u64,
    pub routing: Routing,
    /// Whether the broker has a thread of its own; otherwise it is on that of the only worker.
    pub has_own_thread: bool,
    /// Seeds of what workers and the broker both hash.
    pub hash_keys: (u64, u64),
}

/// The ports that clients and backends use, as they were opened.
#[derive(Debug, Clone, Copy)]
pub struct Ports {
    pub ws: u16,
    pub http: u16,
}

/// One per node.
#[derive(Debug)]
pub struct Shared {
    pub settings: Settings,
    /// Set before a worker serves anybody.
    pub ports: OnceLock<Ports>,
    pub projects: Arc<Projects>,
    /// Milliseconds since 1970 at the start.
    pub started_ms: u64,
    pub incarnation: Arc<Incarnation>,
    connections: AtomicUsize,
    draining: AtomicBool,
    pub queue: QueueHealth,
    /// Requests in flight by business server, counted by all workers together.
    pub loads: Arc<Loads>,
    /// One entry a worker.
    pub counters: Vec<Arc<Counters>>,
    pub http_counters: Vec<Arc<HttpCounters>>,
    pub ws_accepts: AcceptErrors,
    pub http_accepts: AcceptErrors,
    /// On the ops ports.
    pub ops_refusals: RefusalCounts,
    pub ops_accept_errors: Counter,
    pub broker_counters: Arc<BrokerCounters>,
    pub memory: MemoryPressure,
}

/// What the process uses of its memory limit, and what workers are asked to give up of it.
#[derive(Debug, Default)]
pub struct MemoryPressure {
    used_bytes: AtomicUsize,
    /// A worker has freed much.
    is_purge_wanted: AtomicBool,
    /// By worker.
    wanted_bytes: Vec<AtomicUsize>,
}

impl MemoryPressure {
    fn new(workers: usize) -> Self {
        let wanted_bytes = (0..workers).map(|_| AtomicUsize::new(0)).collect();
        let is_purge_wanted = AtomicBool::new(false);
        Self { used_bytes: AtomicUsize::new(0), is_purge_wanted, wanted_bytes }
    }

    pub fn used_bytes(&self) -> usize {
        self.used_bytes.load(Relaxed)
    }

    pub fn set_used(&self, bytes: usize) {
        self.used_bytes.store(bytes, Relaxed);
    }

    /// Free memory is to be given back to the system.
    pub fn want_purge(&self) {
        self.is_purge_wanted.store(true, Relaxed);
    }

    pub fn take_purge_wanted(&self) -> bool {
        self.is_purge_wanted.swap(false, Relaxed)
    }

    /// The number of bytes of its outboxes that a worker is to free.
    pub fn want(&self, worker: usize, bytes: usize) {
        self.wanted_bytes[worker].store(bytes, Relaxed);
    }

    /// What a worker is to free; asked for once.
    pub fn take_wanted(&self, worker: usize) -> usize {
        match self.wanted_bytes[worker].load(Relaxed) {
            0 => 0,
            _ => self.wanted_bytes[worker].swap(0, Relaxed),
        }
    }
}

/// Whether the queue takes pushes, as every thread may ask. The broker says it; with the `local`
/// queue nobody has to.
#[derive(Debug)]
pub struct QueueHealth {
    is_down: AtomicBool,
    /// The node drains, and has said its last word to the others.
    is_over: AtomicBool,
    /// Why [`QueueHealth::trouble`] has something to tell; the lock is taken when that changes, and
    /// when somebody asks.
    trouble: Mutex<Option<String>>,
    /// The largest envelope that the queue carries, and why.
    max_bytes: AtomicUsize,
    limit: Mutex<Option<SizeLimit>>,
}

impl Default for QueueHealth {
    fn default() -> Self {
        Self {
            is_down: AtomicBool::new(false),
            is_over: AtomicBool::new(false),
            trouble: Mutex::new(None),
            max_bytes: AtomicUsize::new(usize::MAX),
            limit: Mutex::new(None),
        }
    }
}

impl QueueHealth {
    pub fn max_bytes(&self) -> usize {
        self.max_bytes.load(Relaxed)
    }

    /// What bounds [`QueueHealth::max_bytes`].
    pub fn limit(&self) -> Option<SizeLimit> {
        *self.limit.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn set_limit(&self, limit: SizeLimit) {
        *self.limit.lock().unwrap_or_else(PoisonError::into_inner) = Some(limit);
        self.max_bytes.store(limit.bytes, Relaxed);
    }

    pub fn is_down(&self) -> bool {
        self.is_down.load(Relaxed)
    }

    pub fn is_over(&self) -> bool {
        self.is_over.load(Relaxed)
    }

    pub fn set_over(&self) {
        self.is_over.store(true, Relaxed);
    }

    /// What an operator should know; `None`: all is well.
    pub fn trouble(&self) -> Option<String> {
        self.lock().clone()
    }

    pub fn set_down(&self, reason: &str) {
        *self.lock() = Some(format!("the queue is down: {reason}"));
        self.is_down.store(true, Relaxed);
    }

    pub fn set_ready(&self) {
        self.lock().take();
        self.is_down.store(false, Relaxed);
    }

    /// The queue works, but this worker does not take what comes from it.
    pub fn set_stuck(&self, worker: usize) {
        *self.lock() = Some(format!("worker {worker} does not take what the queue brings"));
    }

    fn lock(&self) -> MutexGuard<'_, Option<String>> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    pub fn new(settings: Settings, projects: Projects, started_ms: u64) -> Self {
        let workers = settings.workers;
        let projects = Arc::new(projects);
        Self {
            settings,
            ports: OnceLock::new(),
            projects: Arc::clone(&projects),
            started_ms,
            incarnation: Arc::new(Incarnation::new(started_ms)),
            connections: AtomicUsize::new(0),
            draining: AtomicBool::new(false),
            queue: QueueHealth::default(),
            loads: Arc::default(),
            broker_counters: Arc::default(),
            counters: (0..workers).map(|_| Arc::new(Counters::new(projects.len()))).collect(),
            http_counters: (0..workers).map(|_| Arc::default()).collect(),
            ops_refusals: RefusalCounts::default(),
            ws_accepts: AcceptErrors::new("--ws_port"),
            http_accepts: AcceptErrors::new("--http_port"),
            ops_accept_errors: Counter::default(),
            memory: MemoryPressure::new(workers),
        }
    }

    /// Takes a place among `--max_connections`; `false` when there is none. To be given back by
    /// [`Shared::leave`].
    pub fn enter(&self) -> bool {
        let before = self.connections.fetch_add(1, Relaxed);
        if before < self.settings.max_connections {
            return true;
        }
        self.leave();
        false
    }

    pub fn leave(&self) {
        self.connections.fetch_sub(1, Relaxed);
    }

    /// Open WebSocket connections of the node.
    pub fn connections(&self) -> usize {
        self.connections.load(Relaxed)
    }

    /// The number of WebSocket connections that this node has room for.
    pub fn room(&self) -> usize {
        let of_workers = self.http_counters.iter().map(|one| one.max_connections.value());
        self.settings.max_connections.min(of_workers.sum::<u64>() as usize)
    }

    /// Why no WebSocket client is let in; `None`: at least one worker has room.
    pub fn full(&self) -> Option<String> {
        let has_room = |(counters, http): (&Arc<Counters>, &Arc<HttpCounters>)| {
            counters.connections.value() < http.max_connections.value()
        };
        let open = self.connections();
        let is_full = open >= self.settings.max_connections
            || !self.counters.iter().zip(&self.http_counters).any(has_room);
        is_full.then(|| {
            format!("full: {open} WebSocket connections are open, and there is room for {}", {
                self.room()
            })
        })
    }

    /// From here on nothing new is taken in.
    pub fn drain(&self) {
        self.draining.store(true, Relaxed);
    }

    pub fn is_draining(&self) -> bool {
        self.draining.load(Relaxed)
    }
}
