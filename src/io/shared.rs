//! What all workers of a node share: the configuration, immutable, and numbers touched at connect
//! and close.

use crate::state::counters::{Counters, HttpCounters};
use crate::state::projects::Projects;
use crate::types::{Limits, NodeId};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

/// What the workers are told; the meaning of each is that of the flag of the same name.
#[derive(Debug, Clone)]
pub struct Settings {
    pub node: NodeId,
    pub workers: usize,
    pub max_connections: usize,
    pub max_http_connections: usize,
    pub demand_exp: bool,
    pub idle_timeout_ms: u64,
    pub request_timeout_ms: u64,
    pub keep_alive_ms: u64,
    pub linger_ms: u64,
    pub drain_ms: u64,
    pub limits: Limits,
    pub outbox_bytes: usize,
    pub worker_outbox_bytes: usize,
    pub echo: bool,
    pub pin: bool,
}

/// One per node.
#[derive(Debug)]
pub struct Shared {
    pub settings: Settings,
    pub projects: Arc<Projects>,
    /// Milliseconds since 1970 at the start: the boot epoch of envelopes.
    pub epoch: u64,
    connections: AtomicUsize,
    draining: AtomicBool,
    /// One entry a worker.
    pub counters: Vec<Arc<Counters>>,
    pub http_counters: Vec<Arc<HttpCounters>>,
}

impl Shared {
    pub fn new(settings: Settings, projects: Projects, epoch: u64) -> Self {
        let workers = settings.workers;
        Self {
            settings,
            projects: Arc::new(projects),
            epoch,
            connections: AtomicUsize::new(0),
            draining: AtomicBool::new(false),
            counters: (0..workers).map(|_| Arc::default()).collect(),
            http_counters: (0..workers).map(|_| Arc::default()).collect(),
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

    /// From here on nothing new is taken in.
    pub fn drain(&self) {
        self.draining.store(true, Relaxed);
    }

    pub fn is_draining(&self) -> bool {
        self.draining.load(Relaxed)
    }
}
