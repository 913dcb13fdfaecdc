//! Puts another configuration in force while the node runs.

use crate::config::{Exit, Reloader, Reread};
use crate::io::shared::Shared;
use crate::ops::logs;
use crate::ops::reload::{ReloadError, ReloadReport};
use crate::state::active_config::ActiveConfig;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// How long all threads together may take to use another configuration. An idle worker looks after
/// 250 ms, a busy one after 50 ms.
const PATIENCE: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// Reloads the configuration of a node. One thread at a time uses it.
pub(super) struct Reloading {
    reloader: Reloader,
    /// Configurations that were in force. They are freed here: freeing ten thousand projects would
    /// be a pause of a worker.
    retired: Vec<ActiveConfig>,
}

impl Reloading {
    pub(super) fn new(reloader: Reloader) -> Self {
        Self { reloader, retired: Vec::new() }
    }

    /// Reads the configuration, checks all of it, and puts it in force. Returns when every thread
    /// uses it. After an error the old one is still in force.
    pub(super) fn reload(&mut self, shared: &Shared) -> Result<ReloadReport, ReloadError> {
        let mut reread = self.reloader.read().map_err(wrong)?;
        let projects = std::mem::take(&mut reread.config.projects);
        let (projects, changes) = projects
            .succeed(&shared.active().projects)
            .map_err(|error| ReloadError::Wrong(error.to_string()))?;
        if shared.is_draining() {
            // A drain has begun while the files were read: it goes by the configuration it began
            // with.
            return Err(ReloadError::Draining);
        }
        let Reread { config, changed, needs_restart, .. } = &reread;
        let mut report = ReloadReport {
            changed: changed.clone(),
            needs_restart: needs_restart.clone(),
            warnings: config.warnings.iter().map(ToString::to_string).collect(),
            projects: changes,
        };
        if report.changes_anything() {
            if changed.contains(&"log") {
                logs::set_filter(&config.logs.filter);
            }
            let before = shared.activate(config.settings.clone(), projects);
            report.warnings.extend(await_threads(shared, before.generation + 1));
            self.retired.push(before);
            self.retired.retain(|one| Arc::strong_count(&one.projects) > 1);
        }
        self.reloader.accept(reread);
        Ok(report)
    }
}

fn wrong(exit: Exit) -> ReloadError {
    ReloadError::Wrong(exit.reason().to_owned())
}

/// Waits until every thread uses this generation. Returns a warning if one takes too long.
fn await_threads(shared: &Shared, generation: u64) -> Option<String> {
    let began = Instant::now();
    while !shared.is_taken(generation) {
        if shared.is_draining() {
            return None;
        }
        if began.elapsed() >= PATIENCE {
            let late = PATIENCE.as_secs();
            return Some(format!(
                "a thread has not used the new configuration within {late} s: it will when it \
                 next runs"
            ));
        }
        thread::sleep(LOOK_EVERY);
    }
    None
}
