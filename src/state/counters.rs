//! Counters of one worker: written by it alone, read by whoever shows them.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

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

/// How a connection ended.
pub const CLOSE_CAUSES: [&str; 6] =
    ["peer", "violation", "slow_consumer", "idle", "going_away", "gone"];

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

/// Everything `state::Worker` counts.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Counters {
    /// Open connections now.
    pub connections: Counter,
    pub connects: Counter,
    /// Messages accepted by this worker or handed to it.
    pub envelopes: Counter,
    /// Pushes handed to the kernel, whole, one for each connection.
    pub deliveries: Counter,
    /// Data messages that came from clients.
    pub client_messages: Counter,
    /// Bytes waiting in outboxes now.
    pub outbox_bytes: Counter,
    drops: [Counter; Drop::ALL.len()],
    closes: [Counter; CLOSE_CAUSES.len()],
}

impl Counters {
    pub fn count_drops(&self, reason: Drop, n: u64) {
        self.drops[reason as usize].add(n);
    }

    pub fn drops(&self, reason: Drop) -> u64 {
        self.drops[reason as usize].value()
    }

    pub fn count_close(&self, cause: usize) {
        self.closes[cause].add(1);
    }

    pub fn closes(&self, cause: usize) -> u64 {
        self.closes[cause].value()
    }
}
