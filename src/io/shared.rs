//! What all workers of a node share: the configuration, which a reload replaces as a whole, and
//! counters that change at connect and close.

use super::accept_errors::AcceptErrors;
use super::memory::MemoryLimit;
use crate::state::active_config::ActiveConfig;
use crate::state::broker::SizeLimit;
use crate::state::counters::{BrokerCounters, Counter, Counters, HttpCounters, RefusalCounts};
use crate::state::drain::NodeDrain;
use crate::state::projects::Projects;
use crate::state::servers::Loads;
use crate::state::settings::Settings;
use crate::types::{Incarnation, Now, WallMs};
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// What a node finds out when it starts.
#[derive(Debug)]
pub struct Start {
    /// When the node starts.
    pub now: Now,
    /// Limit of open files of each descriptor table (RLIMIT_NOFILE).
    pub open_files: usize,
    /// The process's memory limit; `None`: it cannot be read.
    pub memory_limit: Option<MemoryLimit>,
    /// Random seeds of the hash of users.
    pub user_keys: (u64, u64),
}

/// The open ports for clients and backends.
#[derive(Debug, Clone, Copy)]
pub struct Ports {
    pub ws: u16,
    pub http: u16,
}

/// State of a node, one per process.
#[derive(Debug)]
pub struct Shared {
    /// The settings of the start: for those that no reload changes, such as the node's number. The
    /// others are in [`Shared::active`].
    pub at_start: Arc<Settings>,
    /// The configuration in force, and its generation.
    active: Mutex<ActiveConfig>,
    generation: AtomicU64,
    pub open_files: usize,
    /// Seeds of the hash of users, which the workers and the broker share.
    pub user_keys: (u64, u64),
    /// Set before a worker serves any connection.
    pub ports: OnceLock<Ports>,
    /// When the node starts.
    pub started: Now,
    pub incarnation: Arc<Incarnation>,
    connections: AtomicUsize,
    max_connections: AtomicUsize,
    /// The node is about to end, and still serves.
    is_draining: AtomicBool,
    /// It refuses connections and pushes.
    is_refusing: AtomicBool,
    pub drain: NodeDrain,
    pub queue: QueueHealth,
    /// Requests in flight by business server, counted across all workers.
    pub loads: Arc<Loads>,
    /// One entry per worker.
    pub counters: Vec<Arc<Counters>>,
    pub http_counters: Vec<Arc<HttpCounters>>,
    pub ws_accepts: AcceptErrors,
    pub http_accepts: AcceptErrors,
    /// Refusals on the ops ports.
    pub ops_refusals: RefusalCounts,
    pub ops_accept_errors: Counter,
    pub broker_counters: Arc<BrokerCounters>,
    pub memory: MemoryPressure,
    pub reloads: Reloads,
}

/// The reloads of a node, counted by the thread that reloads.
#[derive(Debug, Default)]
pub struct Reloads {
    pub done: Counter,
    pub failed: Counter,
    /// When the last one ended, in wall-clock milliseconds, and whether it failed; 0: none has.
    last_at_ms: Counter,
    last_failed: Counter,
}

impl Reloads {
    pub fn count(&self, is_done: bool, now: WallMs) {
        if is_done { &self.done } else { &self.failed }.add(1);
        self.last_failed.set(u64::from(!is_done));
        self.last_at_ms.set(now.value());
    }

    /// Returns when the last reload ended, and whether it was done; `None`: there was none.
    pub fn last(&self) -> Option<(WallMs, bool)> {
        let at_ms = self.last_at_ms.value();
        (at_ms > 0).then(|| (WallMs::new(at_ms), self.last_failed.value() == 0))
    }
}

/// How much of its memory limit the process uses, and how much the workers are asked to free.
#[derive(Debug, Default)]
pub struct MemoryPressure {
    /// `None`: it cannot be read.
    pub limit: Option<MemoryLimit>,
    used_bytes: AtomicUsize,
    /// A worker has freed much memory.
    is_purge_wanted: AtomicBool,
    /// By worker.
    wanted_bytes: Vec<AtomicUsize>,
}

impl MemoryPressure {
    fn new(limit: Option<MemoryLimit>, workers: usize) -> Self {
        let wanted_bytes = (0..workers).map(|_| AtomicUsize::new(0)).collect();
        let is_purge_wanted = AtomicBool::new(false);
        Self { limit, used_bytes: AtomicUsize::new(0), is_purge_wanted, wanted_bytes }
    }

    pub fn used_bytes(&self) -> usize {
        self.used_bytes.load(Relaxed)
    }

    pub fn set_used(&self, bytes: usize) {
        self.used_bytes.store(bytes, Relaxed);
    }

    /// Requests that free memory be given back to the system.
    pub fn want_purge(&self) {
        self.is_purge_wanted.store(true, Relaxed);
    }

    pub fn take_purge_wanted(&self) -> bool {
        self.is_purge_wanted.swap(false, Relaxed)
    }

    /// Asks a worker to free this number of bytes of its outboxes.
    pub fn want(&self, worker: usize, bytes: usize) {
        self.wanted_bytes[worker].store(bytes, Relaxed);
    }

    /// Takes the number of bytes that a worker has been asked to free.
    pub fn take_wanted(&self, worker: usize) -> usize {
        match self.wanted_bytes[worker].load(Relaxed) {
            0 => 0,
            _ => self.wanted_bytes[worker].swap(0, Relaxed),
        }
    }
}

/// Whether the queue accepts pushes; any thread may read it. The broker sets it; the `local` queue
/// is always up.
#[derive(Debug)]
pub struct QueueHealth {
    is_down: AtomicBool,
    /// The node drains, and has sent its last announcement to the others.
    is_over: AtomicBool,
    /// The problem that [`QueueHealth::trouble`] reports; locked only when it changes or is read.
    trouble: Mutex<Option<String>>,
    /// The largest envelope that the queue carries, and the reason.
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

    /// Returns what bounds [`QueueHealth::max_bytes`].
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

    /// Returns the problem to report to an operator; `None` if there is none.
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

    /// Records that the queue works but this worker does not take what comes from it.
    pub fn set_stuck(&self, worker: usize) {
        *self.lock() = Some(format!("worker {worker} does not process messages from the queue"));
    }

    fn lock(&self) -> MutexGuard<'_, Option<String>> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    pub fn new(settings: Settings, projects: Projects, start: Start) -> Self {
        let Start { now: started, open_files, memory_limit, user_keys } = start;
        let (workers, max_connections) = (settings.workers, settings.max_connections);
        let drain = NodeDrain::new(workers, settings.redis.is_some());
        let (at_start, projects) = (Arc::new(settings), Arc::new(projects));
        let ids = projects.ids();
        let active = ActiveConfig { generation: 1, settings: Arc::clone(&at_start), projects };
        Self {
            at_start,
            generation: AtomicU64::new(active.generation),
            active: Mutex::new(active),
            open_files,
            user_keys,
            ports: OnceLock::new(),
            started,
            incarnation: Arc::new(Incarnation::new(started.wall)),
            connections: AtomicUsize::new(0),
            max_connections: AtomicUsize::new(max_connections),
            is_draining: AtomicBool::new(false),
            is_refusing: AtomicBool::new(false),
            drain,
            queue: QueueHealth::default(),
            loads: Arc::default(),
            broker_counters: Arc::default(),
            counters: (0..workers).map(|_| Arc::new(Counters::new(ids))).collect(),
            http_counters: (0..workers).map(|_| Arc::default()).collect(),
            ops_refusals: RefusalCounts::default(),
            ws_accepts: AcceptErrors::new("--ws_port"),
            http_accepts: AcceptErrors::new("--http_port"),
            ops_accept_errors: Counter::default(),
            memory: MemoryPressure::new(memory_limit, workers),
            reloads: Reloads::default(),
        }
    }

    /// Returns the configuration in force. Locks: a worker and the broker call it only when
    /// [`Shared::generation`] has changed.
    pub fn active(&self) -> ActiveConfig {
        self.active.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns the generation of [`Shared::active`]. A message that was sent under a generation is
    /// received at that one or a later one.
    #[inline]
    pub fn generation(&self) -> u64 {
        self.generation.load(Acquire)
    }

    /// Puts another configuration in force, and returns the one before it. Each thread takes it
    /// before its next tick ends.
    pub fn activate(&self, settings: Settings, projects: Projects) -> ActiveConfig {
        let ids = projects.ids();
        self.counters.iter().for_each(|worker| worker.projects.grow(ids));
        let max_connections = settings.max_connections.min(self.at_start.max_connections);
        self.max_connections.store(max_connections, Relaxed);
        let (settings, projects) = (Arc::new(settings), Arc::new(projects));
        let mut active = self.active.lock().unwrap_or_else(PoisonError::into_inner);
        let generation = active.generation + 1;
        let before =
            std::mem::replace(&mut *active, ActiveConfig { generation, settings, projects });
        self.generation.store(generation, Release);
        before
    }

    /// Returns whether all workers, and the broker if there is one, use this generation or a later
    /// one.
    pub fn is_taken(&self, generation: u64) -> bool {
        let by_broker = self.at_start.redis.is_none()
            || self.broker_counters.config_generation.value() >= generation;
        by_broker
            && self.counters.iter().all(|worker| worker.config_generation.value() >= generation)
    }

    /// Returns the maximum number of connections of one worker: address space is reserved for them.
    pub fn slots(&self) -> usize {
        self.at_start.max_connections.min(self.open_files)
    }

    /// Takes a place among `--max_connections`; returns `false` if there is none. [`Shared::leave`]
    /// gives it back.
    pub fn enter(&self) -> bool {
        let before = self.connections.fetch_add(1, Relaxed);
        if before < self.max_connections() {
            return true;
        }
        self.leave();
        false
    }

    /// Returns `--max_connections`: at most that of the start.
    fn max_connections(&self) -> usize {
        self.max_connections.load(Relaxed)
    }

    pub fn leave(&self) {
        self.connections.fetch_sub(1, Relaxed);
    }

    /// Returns the number of open WebSocket connections of the node.
    pub fn connections(&self) -> usize {
        self.connections.load(Relaxed)
    }

    /// Returns the number of WebSocket connections for which this node has room.
    pub fn room(&self) -> usize {
        let of_workers = self.http_counters.iter().map(|one| one.max_connections.value());
        self.max_connections().min(of_workers.sum::<u64>() as usize)
    }

    /// Returns why no WebSocket client is admitted; `None` if at least one worker has room.
    pub fn full(&self) -> Option<String> {
        let has_room = |(counters, http): (&Arc<Counters>, &Arc<HttpCounters>)| {
            counters.connections.value() < http.max_connections.value()
        };
        let open = self.connections();
        let is_full = open >= self.max_connections()
            || !self.counters.iter().zip(&self.http_counters).any(has_room);
        is_full.then(|| {
            format!("full: {open} WebSocket connections are open, and the maximum is {}", {
                self.room()
            })
        })
    }

    /// Begins to drain: the node reports that it is not ready, and refuses what is new after
    /// `--drain_delay_ms`.
    pub fn begin_drain(&self) {
        self.is_draining.store(true, Relaxed);
    }

    pub fn is_draining(&self) -> bool {
        self.is_draining.load(Relaxed)
    }

    /// Refuses connections and pushes from here on.
    pub fn refuse(&self) {
        self.is_refusing.store(true, Relaxed);
    }

    pub fn is_refusing(&self) -> bool {
        self.is_refusing.load(Relaxed)
    }

    /// Returns why the node is not ready; `None` if it is.
    pub fn unready(&self) -> Option<String> {
        let is_draining = self.is_draining().then(|| "draining".to_owned());
        is_draining.or_else(|| self.queue.trouble()).or_else(|| self.full())
    }

    /// Returns the number of connections that a drain has still to close; 0 before it begins.
    pub fn to_drain(&self) -> usize {
        if self.is_draining() { self.connections() } else { 0 }
    }
}
