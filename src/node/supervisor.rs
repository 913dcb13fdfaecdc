//! Tells a service manager how the node is doing, as sd_notify(3) and sd_watchdog_enabled(3)
//! specify: ready, what it does, about to end, alive. Without NOTIFY_SOCKET it does nothing.

use crate::io::pulse::Pulse;
use crate::io::shared::Shared;
use crate::io::sys;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Interval between two status lines, each of which is sent only if it differs from the last.
const STATUS_EVERY: Duration = Duration::from_secs(2);
/// While the node drains it asks for this much more time, this often.
const EXTEND_EVERY: Duration = Duration::from_secs(1);
const EXTENSION: Duration = Duration::from_secs(5);
/// A thread that has not beaten for this time may still be alive, whatever the manager demands: an
/// idle one beats four times a second.
const MIN_PATIENCE: Duration = Duration::from_millis(500);

/// The manager's socket. It is opened for each message: any thread may send one, whatever its
/// descriptor table.
#[derive(Debug)]
pub(super) struct NotifySocket {
    address: SocketAddr,
    is_ready: AtomicBool,
    /// What the manager waits for could not be sent: readiness is reported again.
    is_ready_due: AtomicBool,
    is_stopping_told: AtomicBool,
}

impl NotifySocket {
    /// `address`: a path, or a name in the abstract namespace that begins with `@`.
    fn new(address: &OsStr) -> io::Result<Self> {
        let address = match address.as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
            [b'/', ..] => SocketAddr::from_pathname(address)?,
            _ => return Err(io::Error::other("only paths and abstract names are supported")),
        };
        let no = || AtomicBool::new(false);
        let (is_ready, is_ready_due, is_stopping_told) = (no(), no(), no());
        Ok(Self { address, is_ready, is_ready_due, is_stopping_told })
    }

    /// `address`: that of the manager's socket (NOTIFY_SOCKET). `None`: it cannot be used.
    pub(super) fn of(address: &OsStr) -> Option<Arc<Self>> {
        match Self::new(address) {
            Ok(socket) => Some(Arc::new(socket)),
            Err(error) => {
                tracing::warn!(?address, %error, "NOTIFY_SOCKET cannot be used");
                None
            }
        }
    }

    /// Tells that a reload begins. [`NotifySocket::handle_reloaded`] must follow.
    pub(super) fn handle_reloading(&self) {
        if self.is_ready.load(Relaxed) {
            self.send(&format!("RELOADING=1\nMONOTONIC_USEC={}", sys::monotonic_us()));
        }
    }

    /// Tells that a reload is over, whatever its result.
    pub(super) fn handle_reloaded(&self) {
        if self.is_ready.load(Relaxed) {
            // A manager that is not told waits for the end of the reload.
            let is_sent = self.send("READY=1");
            self.is_ready_due.store(!is_sent, Relaxed);
        }
    }

    /// Tells that a drain begins. Must be called before it does: one without connections may end
    /// before [`Supervisor::look`] sees it, which sends again what cannot be sent now.
    pub(super) fn handle_stopping(&self) {
        self.is_stopping_told.store(self.send("STOPPING=1"), Relaxed);
    }

    /// Sends assignments, one in each line, and returns whether that was possible. Waits for
    /// nothing: the manager may be gone, or may not receive for a while.
    fn send(&self, lines: &str) -> bool {
        let sent = UnixDatagram::unbound().and_then(|socket| {
            socket.set_nonblocking(true)?;
            socket.send_to_addr(lines.as_bytes(), &self.address)
        });
        if let Err(error) = sent {
            tracing::debug!(%error, "the service manager cannot be notified");
            return false;
        }
        true
    }
}

/// What has been reported to the service manager, and when the next report is due.
pub(super) struct Supervisor {
    socket: Arc<NotifySocket>,
    watchdog: Option<Watchdog>,
    status: String,
    next_status: Instant,
    /// Pushes accepted up to the last status, and its time.
    pushes: u64,
    status_at: Instant,
    /// Connections when the drain began, and when to ask for more time; `None`: it has not begun.
    drain: Option<(usize, Instant)>,
}

impl Supervisor {
    pub(super) fn new(socket: Arc<NotifySocket>, watchdog: Option<Duration>, now: Instant) -> Self {
        Self {
            socket,
            watchdog: watchdog.map(|interval| Watchdog::new(interval, now)),
            status: String::new(),
            next_status: now,
            pushes: 0,
            status_at: now,
            drain: None,
        }
    }

    /// Sends what is due. To be called several times a second.
    pub(super) fn look(&mut self, shared: &Shared, pulses: &[Pulse], now: Instant) {
        let mut lines = String::new();
        let is_first = !self.socket.is_ready.load(Relaxed) && shared.unready().is_none();
        let is_ready = self.socket.is_ready_due.swap(false, Relaxed) || is_first;
        if is_ready {
            lines.push_str("READY=1\n");
            self.next_status = now;
        }
        if shared.is_draining() {
            self.tend_drain(shared, now, &mut lines);
        }
        if now >= self.next_status {
            self.next_status = now + STATUS_EVERY;
            let status = self.status(shared, now);
            if status != self.status {
                // A line break would begin another assignment.
                let _ = writeln!(lines, "STATUS={}", status.replace('\n', " "));
                self.status = status;
            }
        }
        if let Some(watchdog) = &mut self.watchdog
            && watchdog.is_due(pulses.iter().map(Pulse::beats), now)
        {
            lines.push_str("WATCHDOG=1\n");
        }
        if lines.is_empty() {
            return;
        }
        if self.socket.send(lines.trim_end()) {
            self.socket.is_stopping_told.fetch_or(self.drain.is_some(), Relaxed);
            self.socket.is_ready.fetch_or(is_ready, Relaxed);
        } else {
            self.socket.is_ready_due.fetch_or(is_ready && !is_first, Relaxed);
            self.forget_last(now);
        }
    }

    /// What was due could not be sent, and is due again.
    fn forget_last(&mut self, now: Instant) {
        self.status.clear();
        self.next_status = now;
        if let Some((_, next)) = &mut self.drain {
            *next = now;
        }
        if let Some(watchdog) = &mut self.watchdog {
            watchdog.next = now;
        }
    }

    fn tend_drain(&mut self, shared: &Shared, now: Instant, lines: &mut String) {
        if self.drain.is_none() {
            self.next_status = now;
        }
        if !self.socket.is_stopping_told.load(Relaxed) {
            lines.push_str("STOPPING=1\n");
            self.next_status = now;
        }
        let (_, next) = self.drain.get_or_insert((shared.connections(), now));
        if now >= *next {
            *next = now + EXTEND_EVERY;
            let _ = writeln!(lines, "EXTEND_TIMEOUT_USEC={}", EXTENSION.as_micros());
        }
    }

    fn status(&mut self, shared: &Shared, now: Instant) -> String {
        let accepted: u64 = shared.counters.iter().map(|one| one.pushes_accepted.value()).sum();
        let elapsed_ms = now.duration_since(self.status_at).as_millis() as u64;
        let pushes_per_s = ((accepted - self.pushes) * 1_000).checked_div(elapsed_ms).unwrap_or(0);
        (self.pushes, self.status_at) = (accepted, now);
        let connections = shared.connections();
        if let Some((before, _)) = self.drain {
            return format!("Draining: {connections} of {before} connections left");
        }
        let settings = &shared.at_start;
        let workers = settings.workers;
        let queue = if settings.redis.is_some() { "redis" } else { "local" };
        let figures = format!(
            "{connections} connections, {pushes_per_s} pushes/s, {workers} workers, queue {queue}"
        );
        match shared.unready() {
            None => figures,
            Some(why) => format!("Not ready: {why}. {figures}"),
        }
    }
}

/// Signs of life, while every thread takes turns: one that is stuck ends them.
struct Watchdog {
    /// Half of the time after which the manager acts.
    interval: Duration,
    next: Instant,
    /// By thread: its beats, and when it last beat.
    threads: Vec<(u64, Instant)>,
}

impl Watchdog {
    fn new(timeout: Duration, now: Instant) -> Self {
        Self { interval: timeout / 2, next: now, threads: Vec::new() }
    }

    /// Returns whether a sign of life is due. `beats`: of each thread, `None` if it has ended.
    fn is_due(&mut self, beats: impl Iterator<Item = Option<u64>>, now: Instant) -> bool {
        let mut are_alive = true;
        for (index, beats) in beats.enumerate() {
            if self.threads.len() == index {
                self.threads.push((0, now));
            }
            let (last, at) = &mut self.threads[index];
            if beats.is_none_or(|beats| beats != *last) {
                (*last, *at) = (beats.unwrap_or_default(), now);
            }
            are_alive &= now.duration_since(*at) < self.interval.max(MIN_PATIENCE);
        }
        let is_due = are_alive && now >= self.next;
        if is_due {
            self.next = now + self.interval;
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_does_not_beat_ends_the_signs_of_life() {
        let begin = Instant::now();
        let mut watchdog = Watchdog::new(Duration::from_secs(4), begin);
        let mut is_due = |at_ms, beats: [Option<u64>; 2]| {
            watchdog.is_due(beats.into_iter(), begin + Duration::from_millis(at_ms))
        };
        assert!(is_due(0, [Some(1), Some(1)]), "at once");
        assert!(!is_due(1_000, [Some(2), Some(2)]), "not yet");
        assert!(is_due(2_000, [Some(3), Some(2)]), "the second has beaten a second ago");
        assert!(!is_due(4_000, [Some(4), Some(2)]), "it is stuck");
        assert!(!is_due(60_000, [Some(5), Some(2)]));
        assert!(is_due(60_100, [Some(6), Some(3)]), "it goes on");
        assert!(is_due(62_100, [Some(7), None]), "a thread that has ended is not stuck");
        assert!(is_due(66_100, [Some(8), None]));
    }

    #[test]
    fn addresses_are_paths_or_abstract_names() {
        let socket = |address: &str| NotifySocket::new(OsStr::new(address));
        let abstract_name = socket("@ws-cluster-test").unwrap().address;
        assert_eq!(abstract_name.as_abstract_name(), Some(&b"ws-cluster-test"[..]));
        assert!(socket("/run/systemd/notify").unwrap().address.as_pathname().is_some());
        assert!(socket("vsock:2:1234").is_err() && socket("").is_err());
    }
}
