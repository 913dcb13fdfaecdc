//! Reloads: projects come and go, and secrets are rotated, while clients send and receive. Each
//! worker takes another configuration at a time of its own, before it next ticks.

use super::*;
use ws_cluster::state::active_config::ActiveConfig;

/// Clients sign with the first one throughout.
const SECRETS: [&[u8]; 3] = [b"s", b"t", b"u"];

impl Node {
    /// Puts other projects and times in force.
    pub(super) fn reload(&mut self) {
        let rng = &mut self.rng;
        let mut list = Vec::new();
        for (pid, subscribe) in PIDS {
            if rng.chance(75) {
                let count = 1 + rng.below(SECRETS.len());
                let mut secrets: Vec<Secret> =
                    SECRETS[..count].iter().map(|one| Secret::new(one)).collect();
                secrets.reverse();
                let (pid, allowed_origins) = (pid.into(), None);
                list.push(Project { pid, secrets, allowed_origins, subscribe });
            }
        }
        let first = rng.below(list.len().max(1));
        list.rotate_left(first);
        let ping_interval_ms = *rng.pick(&[PING_MS, PING_MS / 3, 2 * PING_MS]);
        let before = &self.active.projects;
        let (projects, _) = Projects::new(list).unwrap().succeed(before).unwrap();
        for (id, (pid, _)) in PIDS.iter().enumerate() {
            assert_eq!(projects.id_of(pid), Some(ProjectId(id as u32)), "ids are stable");
        }
        let served: Vec<&str> = PIDS
            .into_iter()
            .map(|(pid, _)| pid)
            .filter(|pid| projects.find(pid).is_some())
            .collect();
        let mut settings = (*self.active.settings).clone();
        settings.times.ping_interval_ms = ping_interval_ms;
        let generation = self.active.generation + 1;
        self.note(format!("reload {generation}: {served:?}, ping after {ping_interval_ms} ms"));
        let (settings, projects) = (Arc::new(settings), Arc::new(projects));
        self.active = ActiveConfig { generation, settings, projects };
    }

    /// Has a worker take what is in force, and tick.
    pub(super) fn take_config(&mut self, worker: usize) {
        if self.workers[worker].active.generation == self.active.generation {
            return;
        }
        let (active, now) = (self.active.clone(), self.now());
        for client in self.clients.values_mut().filter(|client| client.worker == worker) {
            client.is_removed |= active.projects.find(client.receiver.pid).is_none();
        }
        let core = &mut self.workers[worker];
        core.worker.reload(&active, now);
        core.active = active;
        // All clients of a removed project are closed in one slice, its business servers later.
        self.workers[worker].worker.handle_tick(now);
        self.notice_closes(worker);
        self.send_late(worker);
        self.check_waiting(worker);
        for (cid, client) in self.clients.iter().filter(|(_, client)| client.worker == worker) {
            let stays = !client.is_removed || client.business.is_some();
            assert!(stays || client.closing_ms.is_some(), "{cid} is not closed");
        }
        self.workers[worker].worker.check();
    }

    /// Returns whether a worker accepts connections of a project.
    pub(super) fn serves(&self, worker: usize, project: ProjectId) -> bool {
        self.workers[worker].active.projects.serves(project)
    }
}
