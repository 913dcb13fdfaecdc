//! A node's life in its log: how it began, what made it end, and how it ended.

use super::Addresses;
use super::error::NodeError;
use super::reload::Reloading;
use super::supervisor::NotifySocket;
use crate::config::Reloader;
use crate::io::clock;
use crate::io::shared::Shared;
use crate::io::sys::{self, Signal};
use crate::io::threads::{self, StartError};
use crate::ops::logs;
use crate::ops::reload::{NeedsRestart, Reload, ReloadError, ReloadReport};
use crate::state::counters::Drop;
use crate::state::settings::Times;
use crate::types::version;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// How long an end by a second signal waits for the log.
const LAST_WORDS: Duration = Duration::from_millis(100);
/// Time in which a signal of another kind counts as part of the first: a terminal sends SIGINT to a
/// whole group, whose leader sends SIGTERM; systemd sends SIGHUP after SIGTERM.
const SAME_INTENT: Duration = Duration::from_secs(1);
/// Time in which a signal of the same kind counts as a duplicate of the first: `timeout` sends
/// SIGTERM to the process and to its group.
const ONE_SENDING: Duration = Duration::from_millis(5);

/// Returns whether SIGHUP ends the node: its terminal was closed or disconnected, and it is not
/// meant to outlive that (nohup).
fn ends_with_terminal() -> bool {
    logs::is_on_terminal() && !sys::ignores(Signal::HangUp)
}

/// Interval between two lines about a drain's progress.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);

/// Logs the progress of a drain.
#[derive(Default)]
pub(super) struct DrainLog {
    /// When it began, with this number of connections; `None`: it has not begun.
    began: Option<(Instant, usize)>,
    lines: u32,
}

impl DrainLog {
    /// Logs a line if one is due. To be called several times a second.
    pub(super) fn look(&mut self, shared: &Shared, now: Instant) {
        if !shared.is_draining() {
            return;
        }
        let left = shared.connections();
        let (began, before) = *self.began.get_or_insert((now, left));
        let elapsed = now.duration_since(began);
        if elapsed >= PROGRESS_EVERY * (self.lines + 1) {
            self.lines += 1;
            let (closed, seconds) = (before.saturating_sub(left), elapsed.as_secs());
            tracing::info!(closed, left, seconds, "draining");
        }
    }
}

/// The life of a node; one per process.
pub(super) struct Lifecycle {
    shared: Arc<Shared>,
    began: Instant,
    /// The signal that began the drain, and its time.
    end: Mutex<Option<(Signal, Instant)>>,
    reloading: Mutex<Reloading>,
    /// A thread waits for its turn to reload.
    is_reload_due: AtomicBool,
    notify: Option<Arc<NotifySocket>>,
}

impl Lifecycle {
    /// `notify`: where a service manager listens, if there is one.
    pub(super) fn new(
        shared: Arc<Shared>,
        reloader: Reloader,
        notify: Option<Arc<NotifySocket>>,
    ) -> Arc<Self> {
        let (end, reloading) = (Mutex::new(None), Mutex::new(Reloading::new(reloader)));
        let is_reload_due = AtomicBool::new(false);
        Arc::new(Self { shared, began: Instant::now(), end, reloading, is_reload_due, notify })
    }

    /// Logs the start. Must be called when every port is open.
    pub(super) fn begin(&self, addresses: &Addresses) {
        let shared = &self.shared;
        let settings = &shared.at_start;
        let queue = if settings.redis.is_some() { "redis" } else { "local" };
        let Addresses { ws, http, metrics, pprof, swagger } = addresses;
        tracing::info!(
            version = version::VERSION,
            commit = version::COMMIT,
            node = settings.node.value(),
            env = settings.env.name(),
            queue,
            projects = shared.active().projects.len(),
            workers = settings.workers,
            io = "io_uring",
            %ws,
            %http,
            %metrics,
            %pprof,
            %swagger,
            max_connections = settings.max_connections,
            max_http_connections = settings.max_http_connections,
            max_message_bytes = settings.limits.message_bytes,
            max_body_bytes = settings.limits.body_bytes,
            outbox_bytes = settings.memory.outbox_bytes,
            worker_outbox_bytes = settings.memory.worker_outbox_bytes,
            open_files = shared.open_files,
            room = shared.room(),
            "started"
        );
    }

    /// Starts the thread that waits for signals. The first terminating signal begins the drain, the
    /// second ends the process.
    pub(super) fn watch_signals(self: &Arc<Self>) -> Result<(), StartError> {
        let lifecycle = Arc::clone(self);
        threads::spawn("signals", move || {
            while let Ok(signal) = sys::wait_for_signal() {
                match signal {
                    Signal::Reopen => logs::reopen(),
                    Signal::HangUp if !ends_with_terminal() => {
                        logs::reopen();
                        lifecycle.reload_soon();
                    }
                    signal => lifecycle.handle_end(signal),
                }
            }
        })
    }

    /// Has another thread reload: signals that end the node do not wait for it.
    fn reload_soon(self: &Arc<Self>) {
        if self.is_reload_due.swap(true, Relaxed) {
            // The one that waits reads what is in the files now.
            return;
        }
        let lifecycle = Arc::clone(self);
        let started = threads::spawn("reload", move || {
            // It logs the result, and there is nobody else to report it to.
            let _ = lifecycle.reload();
        });
        if let Err(error) = started {
            self.is_reload_due.store(false, Relaxed);
            tracing::error!("the configuration was not reloaded: {error}");
        }
    }

    /// Reads the configuration again and puts it in force, or keeps the one before and returns why.
    /// One reload at a time; logs and counts it.
    pub(super) fn reload(&self) -> Result<ReloadReport, ReloadError> {
        let mut reloading = self.reloading.lock().unwrap_or_else(PoisonError::into_inner);
        self.is_reload_due.store(false, Relaxed);
        // systemd sends SIGHUP after SIGTERM.
        let refuse = || {
            tracing::debug!("the node drains: the configuration stays");
            Err(ReloadError::Draining)
        };
        if self.shared.is_draining() {
            return refuse();
        }
        let began = Instant::now();
        self.notify.iter().for_each(|socket| socket.handle_reloading());
        let result = reloading.reload(&self.shared);
        self.notify.iter().for_each(|socket| socket.handle_reloaded());
        if matches!(result, Err(ReloadError::Draining)) {
            return refuse();
        }
        self.shared.reloads.count(result.is_ok(), clock::wall());
        match &result {
            Ok(report) => self.log_reload(report, began.elapsed()),
            Err(error) => tracing::error!(
                "the configuration was not reloaded, and the one before stays in force: {error}"
            ),
        }
        result
    }

    fn log_reload(&self, report: &ReloadReport, took: Duration) {
        for warning in &report.warnings {
            tracing::warn!("{warning}");
        }
        for NeedsRestart { flag, value } in &report.needs_restart {
            match value {
                Some(value) => tracing::warn!(
                    "--{flag} has another value now, which takes effect with the next start; \
                     {value} stays in force"
                ),
                None => tracing::warn!(
                    "--{flag} has another value now, which takes effect with the next start; the \
                     one before stays in force"
                ),
            }
        }
        let ReloadReport { changed, projects, .. } = report;
        tracing::info!(
            changed = changed.join(" "),
            projects_added = projects.added.len(),
            projects_changed = projects.changed.len(),
            projects_removed = projects.removed.len(),
            generation = self.shared.generation(),
            took_ms = took.as_millis() as u64,
            "reloaded"
        );
    }

    fn handle_end(&self, signal: Signal) {
        let mut end = self.end.lock().unwrap_or_else(PoisonError::into_inner);
        match *end {
            None => {
                *end = Some((signal, Instant::now()));
                let Times { drain_delay_ms, drain_ms, .. } = self.shared.active().settings.times;
                tracing::info!(
                    drain_delay_ms,
                    drain_ms,
                    "draining: a second signal stops the node at once"
                );
                if let Some(notify) = &self.notify {
                    notify.handle_stopping();
                }
                self.shared.begin_drain();
                thread::sleep(ONE_SENDING);
                sys::drop_pending(signal);
            }
            Some((first, at)) if first != signal && at.elapsed() < SAME_INTENT => {
                tracing::debug!(%signal, "the signal is ignored: the drain has just begun");
            }
            Some(_) => {
                drop(end);
                self.log_end(&format!("a second signal, {signal}"));
                logs::flush(LAST_WORDS);
                std::process::exit(143);
            }
        }
    }

    /// Logs the end of the node. Must be called once, with its result.
    pub(super) fn handle_result(&self, result: &Result<(), NodeError>) {
        let end = *self.end.lock().unwrap_or_else(PoisonError::into_inner);
        match (result, end) {
            (Ok(()), Some((signal, _))) => self.log_end(&signal.to_string()),
            (Ok(()), None) => self.log_end("drained"),
            (Err(_), _) => self.log_end("an error"),
        }
    }

    fn log_end(&self, why: &str) {
        let end = *self.end.lock().unwrap_or_else(PoisonError::into_inner);
        let shared = &self.shared;
        let sum = |of: fn(&crate::state::counters::Counters) -> u64| -> u64 {
            shared.counters.iter().map(|worker| of(worker)).sum()
        };
        let dropped = sum(|worker| Drop::ALL.iter().map(|(reason, _)| worker.drops(*reason)).sum());
        tracing::info!(
            why,
            uptime_s = self.began.elapsed().as_secs(),
            drained_ms = end.map_or(0, |(_, at)| at.elapsed().as_millis() as u64),
            connections_served = sum(|worker| worker.connects.value()),
            pushes_accepted = sum(|worker| worker.pushes_accepted.value()),
            messages_delivered = sum(|worker| worker.deliveries.value()),
            messages_dropped = dropped + shared.broker_counters.worker_full.value(),
            "stopped"
        );
    }
}

impl Reload for Lifecycle {
    fn reload(&self) -> Result<ReloadReport, ReloadError> {
        Self::reload(self)
    }
}
