//! A reload: other settings and projects while connections are open.

use super::Worker;
use super::sweep::VISITS_PER_SLICE;
use crate::state::active_config::ActiveConfig;
use crate::state::connection::CloseCause;
use crate::state::projects::ProjectId;
use crate::state::settings::Settings;
use crate::types::{MonotonicMs, Now};
use std::sync::Arc;

/// How long business servers of a removed project stay after its clients: workers close those at
/// slightly different times, and their disconnect events should arrive.
pub(super) const SERVERS_AFTER_MS: u64 = 1_000;

/// Progress of closing the connections of removed projects: clients, then business servers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Removal {
    /// The next slot that is checked for a client.
    next_slot: usize,
    /// When business servers are closed.
    servers_at: MonotonicMs,
}

/// Returns the maximum unsent bytes of a client.
pub(super) fn outbox_limit(settings: &Settings) -> usize {
    settings.memory.outbox_bytes.max(2 * settings.limits.message_bytes)
}

impl Worker {
    /// Takes another configuration, whose projects have the same ids as those before them. Begins
    /// to close the connections of removed projects.
    pub fn reload(&mut self, active: &ActiveConfig, now: Now) {
        self.now = now;
        let settings = Arc::clone(&active.settings);
        let before = std::mem::replace(&mut self.config.projects, Arc::clone(&active.projects));
        self.outbox_limit = outbox_limit(&settings);
        self.sweep.set_times(&settings.times, (self.config.worker, settings.workers));
        self.config.settings = settings;
        if self.config.projects.removes_any_of(&before) {
            // Also if connections of an earlier removal are still being closed.
            let servers_at = now.monotonic + SERVERS_AFTER_MS;
            self.removal = Some(Removal { next_slot: 0, servers_at });
            self.is_overdue = true;
        }
    }

    /// Continues closing the connections of removed projects, a bounded number per call. The rest
    /// follows in the next tick, which is due at once while [`Worker::has_removed`].
    pub(super) fn close_removed(&mut self, mut closes: usize) {
        let Some(Removal { mut next_slot, servers_at }) = self.removal else { return };
        let end = self.sweep.slots().min(next_slot + VISITS_PER_SLICE);
        while closes > 0 && next_slot < end {
            let slot = next_slot as u32;
            next_slot += 1;
            if self.is_of_removed(slot) && !self.connections[slot as usize].is_server() {
                closes -= 1;
                self.close(slot, CloseCause::ProjectRemoved);
            }
        }
        self.removal = Some(Removal { next_slot, servers_at });
        if next_slot < self.sweep.slots() {
            return;
        }
        let servers = self.own_servers.slots_of(|project| self.is_removed(project), closes);
        if servers_at <= self.now.monotonic || servers.is_empty() {
            if servers.len() < closes {
                self.removal = None;
            }
            servers.into_iter().for_each(|slot| self.close(slot, CloseCause::ProjectRemoved));
        }
    }

    /// Returns whether there are connections of removed projects to close now.
    pub(super) fn has_removed(&self) -> bool {
        self.removal.is_some_and(|removal| {
            removal.next_slot < self.sweep.slots() || removal.servers_at <= self.now.monotonic
        })
    }

    fn is_of_removed(&self, slot: u32) -> bool {
        self.connections
            .get(slot as usize)
            .is_some_and(|one| one.is_open() && self.is_removed(ProjectId(one.project)))
    }

    fn is_removed(&self, project: ProjectId) -> bool {
        !self.config.projects.serves(project)
    }
}
