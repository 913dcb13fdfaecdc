//! Connections of one port that cannot be accepted.

use std::io;
use std::time::{Duration, Instant};

/// The least time between two lines of the log.
const LOGGED_EVERY: Duration = Duration::from_secs(10);
/// How long the port rests: descriptors and memory do not come back by asking for them.
const PAUSE: Duration = Duration::from_millis(100);

/// Says when to go on, and logs what an operator should know, at most every 10 s.
#[derive(Debug)]
pub struct AcceptErrors {
    /// The flag that chooses the port.
    port: &'static str,
    logged: Option<Instant>,
    unlogged: u64,
}

impl AcceptErrors {
    pub fn new(port: &'static str) -> Self {
        Self { port, logged: None, unlogged: 0 }
    }

    /// How long to wait before the next attempt.
    pub fn handle(&mut self, error: &io::Error) -> Duration {
        // It was the peer's: the next one may be there already.
        if error.kind() == io::ErrorKind::ConnectionAborted {
            return Duration::ZERO;
        }
        if self.logged.is_some_and(|logged| logged.elapsed() < LOGGED_EVERY) {
            self.unlogged += 1;
            return PAUSE;
        }
        self.logged = Some(Instant::now());
        let (port, unlogged) = (self.port, std::mem::take(&mut self.unlogged));
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
        let mut errors = AcceptErrors::new("--http_port");
        let full = io::Error::from_raw_os_error(libc::EMFILE);
        assert!(fix(&full).contains("LimitNOFILE="));
        for unlogged in 0..100 {
            assert_eq!((errors.unlogged, errors.handle(&full)), (unlogged.max(1) - 1, PAUSE));
        }
        errors.logged = Instant::now().checked_sub(LOGGED_EVERY);
        errors.handle(&full);
        assert_eq!(errors.unlogged, 0);
        let aborted = io::Error::from_raw_os_error(libc::ECONNABORTED);
        assert_eq!(errors.handle(&aborted), Duration::ZERO);
    }
}
