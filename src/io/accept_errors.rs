//! Errors of accepting connections on one port.

use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Minimum interval between two log lines.
const LOGGED_EVERY: Duration = Duration::from_secs(10);
/// How long accepting pauses: retrying does not bring back descriptors or memory.
const PAUSE: Duration = Duration::from_millis(100);

/// Decides when to retry, and logs what an operator should know, at most every 10 s regardless of
/// how many threads accept on the port.
#[derive(Debug)]
pub struct AcceptErrors {
    /// The flag that sets the port.
    port: &'static str,
    logged: Mutex<Logged>,
}

#[derive(Debug)]
struct Logged {
    last: Option<Instant>,
    /// Errors since the last log line.
    unlogged: u64,
}

impl AcceptErrors {
    pub const fn new(port: &'static str) -> Self {
        Self { port, logged: Mutex::new(Logged { last: None, unlogged: 0 }) }
    }

    /// Returns how long to wait before the next attempt.
    pub fn handle(&self, error: &io::Error) -> Duration {
        // The peer caused it: the next connection may be there already.
        if error.kind() == io::ErrorKind::ConnectionAborted {
            return Duration::ZERO;
        }
        let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        if logged.last.is_some_and(|last| last.elapsed() < LOGGED_EVERY) {
            logged.unlogged += 1;
            return PAUSE;
        }
        let Logged { unlogged, .. } =
            std::mem::replace(&mut *logged, Logged { last: Some(Instant::now()), unlogged: 0 });
        drop(logged);
        let port = self.port;
        tracing::warn!(%error, port, unlogged, "cannot accept connections{}", fix(error));
        PAUSE
    }
}

fn fix(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EMFILE) => {
            ": raise the limit of open files (LimitNOFILE= in a systemd unit, ulimit -n in a shell)"
        }
        Some(libc::ENFILE) => ": raise the limit of the machine (sysctl fs.file-max)",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_rests_and_logs_once() {
        let errors = AcceptErrors::new("--http_port");
        let unlogged = || errors.logged.lock().unwrap().unlogged;
        let full = io::Error::from_raw_os_error(libc::EMFILE);
        assert!(fix(&full).contains("LimitNOFILE="));
        for count in 0..100_u64 {
            assert_eq!((unlogged(), errors.handle(&full)), (count.saturating_sub(1), PAUSE));
        }
        errors.logged.lock().unwrap().last = Instant::now().checked_sub(LOGGED_EVERY);
        errors.handle(&full);
        assert_eq!(unlogged(), 0);
        let aborted = io::Error::from_raw_os_error(libc::ECONNABORTED);
        assert_eq!(errors.handle(&aborted), Duration::ZERO);
    }
}
