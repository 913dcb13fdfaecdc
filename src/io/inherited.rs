//! What a service manager passes to the process: listening sockets, and where to send notifications
//! (sd_listen_fds(3), sd_notify(3), sd_watchdog_enabled(3)).

use super::sys;
use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

/// Taken over from the parent process once, when the program starts.
#[derive(Debug, Default)]
pub struct Inherited {
    /// The sockets that were passed, each with its name, which may be empty.
    pub sockets: Vec<(OwnedFd, String)>,
    /// The address of the notification socket (NOTIFY_SOCKET).
    pub notify_socket: Option<OsString>,
    /// Time after which the manager ends a process that sends no sign of life.
    pub watchdog: Option<Duration>,
}

impl Inherited {
    /// Takes everything, and removes the variables so that no child process acts on them. To be
    /// called once, before any thread is started and any file is opened.
    pub fn take() -> io::Result<Self> {
        let [fds, fds_pid, names, notify_socket, watchdog_us, watchdog_pid] =
            sys::take_variables([
                "LISTEN_FDS",
                "LISTEN_PID",
                "LISTEN_FDNAMES",
                "NOTIFY_SOCKET",
                "WATCHDOG_USEC",
                "WATCHDOG_PID",
            ]);
        let count = if is_own(fds_pid.as_ref()) { number(fds.as_ref()).unwrap_or(0) } else { 0 };
        // SAFETY: LISTEN_PID is this process's, so the parent opened them for it; this is called
        // once, before anything is opened.
        let sockets = unsafe { sys::take_passed(count) }.map_err(|error| {
            io::Error::new(error.kind(), format!("LISTEN_FDS is {count}, but: {error}"))
        })?;
        let names = names.map(|names| names.to_string_lossy().into_owned()).unwrap_or_default();
        let mut names = names.split(':').map(str::to_owned);
        let named = |socket| (socket, names.next().unwrap_or_default());
        let sockets = sockets.into_iter().map(named).collect();
        let watches = watchdog_pid.is_none() || is_own(watchdog_pid.as_ref());
        let watchdog = number(watchdog_us.as_ref()).filter(|us| watches && *us > 0);
        Ok(Self { sockets, notify_socket, watchdog: watchdog.map(Duration::from_micros) })
    }
}

fn number<T: std::str::FromStr>(value: Option<&OsString>) -> Option<T> {
    value?.to_str()?.parse().ok()
}

fn is_own(pid: Option<&OsString>) -> bool {
    number(pid) == Some(std::process::id())
}
