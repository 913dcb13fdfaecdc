//! Why a node could not start or continue: the cause, the value and the fix.

use super::machine::Machine;
use crate::config::{Bind, Config};
use crate::io::descriptors::TooFewFiles;
use crate::io::ring::{self, Ring, RingError};
use crate::io::tasks::TaskError;
use crate::io::threads::StartError;
use std::fmt;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::thread::available_parallelism;

/// Entries of the executor rings of the broker and of ops: accepts, HTTP reads and writes,
/// eventfds, timers. A worker's executor ring has as many as its nested ring.
pub(super) const EXECUTOR_ENTRIES: u32 = 1024;
const SYSTEM_CALLS: &str = "io_uring_setup, io_uring_enter, io_uring_register and unshare";

/// Why a node could not start or continue.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    #[error("cannot listen on {flag} {address} ({error}): {fix}")]
    Port { flag: &'static str, address: SocketAddr, error: io::Error, fix: String },
    #[error("{what} ({error}): {fix}")]
    Refused { what: &'static str, error: io::Error, fix: String },
    #[error("{error}: {fix}")]
    Thread { error: StartError, fix: String },
    #[error(
        "the system clock is at {now}, before 2024-01-01, but client ids need the current time: \
         set the clock, or start after it is set (systemd: Wants= and After=time-sync.target)"
    )]
    Clock { now: String },
    #[error("{what} failed: {error}")]
    System { what: &'static str, error: io::Error },
    #[error(transparent)]
    Files(#[from] TooFewFiles),
    /// A socket that a service manager has passed cannot be used.
    #[error("socket activation: {0}")]
    Passed(String),
    #[error("a thread ended early: {0}")]
    Ended(String),
    #[error(
        "{thread} uses CPU time without serving anybody: its io_uring no longer waits, or it is in \
         an endless loop; please report this with the output of `perf record -g` for the thread"
    )]
    Stuck { thread: String },
}

impl NodeError {
    pub(super) fn no_pin(error: io::Error) -> Self {
        let fix = "use --pin false, or allow sched_getaffinity and sched_setaffinity".into();
        Self::Refused { what: "a worker cannot be pinned to a core", error, fix }
    }
}

/// Returns the kernel memory of an executor's ring, which has twice as many completions.
fn executor_bytes(entries: u32) -> u64 {
    ring::memory_bytes(entries, 2 * entries)
}

pub(super) fn system(what: &'static str) -> impl FnOnce(io::Error) -> NodeError {
    move |error| NodeError::System { what, error }
}

/// What the threads of a node need from the machine.
#[derive(Debug, Clone, Copy)]
pub struct Needs {
    pub(super) workers: usize,
    /// Threads with an executor besides the workers: the one of the ops ports, and the broker.
    pub(super) executors: usize,
    pub threads: usize,
    /// Entries of each of a worker's two rings.
    pub(super) ring_entries: u32,
}

impl Needs {
    pub fn of(config: &Config) -> Self {
        let has_broker = config.settings.redis.as_ref().is_some_and(|redis| redis.broker_thread);
        let optional =
            [config.otel.is_some(), config.sentry_dsn.is_some(), config.logs.file.is_some()];
        let others = optional.into_iter().filter(|&is_there| is_there).count();
        let cores = available_parallelism().map_or(1, NonZeroUsize::get);
        Self::new(config.settings.workers, cores, has_broker, others)
    }

    fn new(workers: usize, cores: usize, has_broker: bool, extra_threads: usize) -> Self {
        let executors = 1 + usize::from(has_broker);
        // Plus main, the log and signals.
        let threads = workers + executors + 3 + extra_threads;
        Self { workers, executors, threads, ring_entries: Ring::entries(workers, cores) }
    }

    /// Returns the bytes of memory that the kernel locks for rings.
    pub fn locked_bytes(&self) -> u64 {
        self.workers as u64 * self.worker_bytes() + self.other_bytes()
    }

    /// Returns why the memory for rings is not there.
    pub fn memory_fix(&self, machine: &Machine) -> String {
        let Some(limit) = machine.memlock.filter(|_| !machine.has_ipc_lock) else {
            return "the kernel has no memory for it: check the cgroup's limit (MemoryMax= in the \
                systemd unit, docker run --memory) and the machine's free memory"
                .into();
        };
        let kib = |bytes: u64| bytes.div_ceil(1024);
        format!(
            "locked memory is limited to {} KiB for all processes of user {} together \
             (RLIMIT_MEMLOCK), but this node needs {} KiB: {} for each of {} workers, {} for other \
             threads; raise it (LimitMEMLOCK=infinity in the systemd unit, `ulimit -l unlimited`, \
             docker run --ulimit memlock=-1), or use fewer --workers",
            kib(limit),
            machine.uid,
            kib(self.locked_bytes()),
            kib(self.worker_bytes()),
            self.workers,
            kib(self.other_bytes()),
        )
    }

    /// Returns the bytes for one worker's rings.
    fn worker_bytes(&self) -> u64 {
        Ring::memory_bytes(self.ring_entries) + executor_bytes(self.ring_entries)
    }

    /// Returns the bytes for the rings of the other threads.
    fn other_bytes(&self) -> u64 {
        Ring::PROBE_BYTES + self.executors as u64 * executor_bytes(EXECUTOR_ENTRIES)
    }

    /// Explains that there is no ring, or none that works.
    pub(super) fn no_ring(&self, error: RingError) -> NodeError {
        let machine = Machine::look();
        let (what, error) = match error {
            RingError::Setup(error) => ("io_uring cannot be set up", error),
            RingError::Enter(error) => ("io_uring_enter is refused", error),
        };
        NodeError::Refused { what, fix: self.ring_fix(&error, &machine), error }
    }

    /// Explains that a ring has stopped working.
    pub(super) fn lost_ring(&self, error: io::Error) -> NodeError {
        let fix = self.ring_fix(&error, &Machine::look());
        NodeError::Refused { what: "io_uring_enter failed in a running worker", error, fix }
    }

    pub(super) fn not_driven(&self, error: TaskError) -> NodeError {
        match error {
            TaskError::Ring(error) => self.lost_ring(error),
            TaskError::Io(error) => NodeError::System { what: "serving", error },
        }
    }

    fn ring_fix(&self, error: &io::Error, machine: &Machine) -> String {
        let kernel = &machine.kernel;
        match error.raw_os_error() {
            Some(libc::EPERM | libc::EACCES | libc::ENOSYS) if machine.io_uring_disabled == 2 => {
                "the sysctl kernel.io_uring_disabled is 2, which forbids io_uring for everybody: \
                 set it to 0 (sysctl -w kernel.io_uring_disabled=0, and a file in /etc/sysctl.d)"
                    .into()
            }
            Some(libc::EPERM) if machine.io_uring_disabled == 1 && !machine.has_sys_admin => {
                "the sysctl kernel.io_uring_disabled is 1, which allows io_uring only with \
                 CAP_SYS_ADMIN or in one group: set it to 0, or set kernel.io_uring_group to the \
                 id of a group that this user is in"
                    .into()
            }
            Some(libc::EPERM | libc::EACCES | libc::ENOSYS) if machine.has_seccomp => seccomp_fix(),
            Some(libc::EPERM | libc::EACCES) => {
                "a security policy of this machine forbids it (SELinux, AppArmor)".into()
            }
            Some(libc::ENOSYS | libc::EINVAL) => {
                format!("Linux 6.1 or later is needed, with CONFIG_IO_URING; this is {kernel}")
            }
            Some(libc::ENOMEM) => self.memory_fix(machine),
            Some(libc::EMFILE) => files_fix(machine),
            _ => format!("Linux 6.1 or later with io_uring is needed; this is {kernel}"),
        }
    }

    /// Explains why a thread besides the node's own is missing.
    pub fn explain(&self, error: io::Error) -> String {
        match StartError::inside(&error) {
            Some(inside) => format!("{inside}: {}", self.thread_fix(inside, &Machine::look())),
            None => error.to_string(),
        }
    }

    /// Explains that a thread could not start, or did not get its own descriptor table.
    pub(super) fn no_thread(&self, error: StartError) -> NodeError {
        let fix = self.thread_fix(&error, &Machine::look());
        NodeError::Thread { error, fix }
    }

    fn thread_fix(&self, error: &StartError, machine: &Machine) -> String {
        let threads = self.threads;
        let is = |error: &io::Error, number| error.raw_os_error() == Some(number);
        match error {
            StartError::Unshare(error) => match error.raw_os_error() {
                Some(libc::EPERM | libc::EACCES | libc::ENOSYS) if machine.has_seccomp => {
                    seccomp_fix()
                }
                Some(libc::EMFILE) => files_fix(machine),
                _ => "every worker needs a table of file descriptors of its own".into(),
            },
            StartError::Spawn { error, .. } if is(error, libc::EAGAIN) => format!(
                "this node needs {threads} threads; user {} may have {} processes and threads in \
                 total (RLIMIT_NPROC: LimitNPROC= in the systemd unit, `ulimit -u`), the cgroup {} \
                 (pids.max: TasksMax= in the unit, docker run --pids-limit){}: raise the limit \
                 that is reached, or use fewer --workers",
                machine.uid,
                Limit(machine.processes),
                Limit(machine.cgroup_pids),
                stacks(machine),
            ),
            StartError::Spawn { error, .. } if is(error, libc::ENOMEM) => format!(
                "this node needs {threads} threads, each with a stack of 2 MiB of address space: \
                 check the memory limits (`ulimit -v`, MemoryMax= in the systemd unit)"
            ),
            StartError::Spawn { .. } if machine.has_seccomp => {
                "a seccomp filter forbids it: allow clone and clone3".into()
            }
            StartError::Spawn { .. } => format!("this node needs {threads} threads"),
        }
    }
}

/// Names the limits that a thread's stack may have reached: they cause the same error.
fn stacks(machine: &Machine) -> String {
    let limits = [("-v", machine.address_space), ("-d", machine.data)];
    let limits = limits.into_iter().filter_map(|(option, bytes)| Some((option, bytes? / 1024)));
    let limits = limits
        .map(|(option, kib)| format!("; its memory is also limited (`ulimit {option}` is {kib})"));
    limits.collect()
}

fn files_fix(machine: &Machine) -> String {
    format!(
        "the limit of open files is {}: raise it (LimitNOFILE= in the systemd unit, `ulimit -n`, \
         docker run --ulimit nofile=)",
        Limit(machine.files)
    )
}

fn seccomp_fix() -> String {
    format!(
        "a seccomp filter forbids it: allow {SYSTEM_CALLS} (docker run --security-opt \
         seccomp=FILE, SystemCallFilter= in the systemd unit)"
    )
}

/// A limit, formatted for display.
struct Limit(Option<u64>);

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(limit) => write!(f, "{limit}"),
            None => f.write_str("unlimited"),
        }
    }
}

/// A port, with the flags that set it.
#[derive(Debug, Clone)]
pub(super) struct PortFlag {
    pub(super) flag: &'static str,
    pub(super) port: u16,
    pub(super) bind: Bind,
}

impl PortFlag {
    pub(super) fn address(&self) -> SocketAddr {
        SocketAddr::new(self.bind.ip, self.port)
    }

    pub(super) fn failed(&self, error: io::Error) -> NodeError {
        let fix = self.fix(&error, &Machine::look());
        NodeError::Port { flag: self.flag, address: self.address(), error, fix }
    }

    fn fix(&self, error: &io::Error, machine: &Machine) -> String {
        let Self { flag, port, bind } = self;
        match error.kind() {
            ErrorKind::AddrInUse => format!(
                "the port is in use: stop the process that uses it (`ss -ltnp 'sport = :{port}'` \
                 as root shows it), or use another {flag}"
            ),
            ErrorKind::AddrNotAvailable => format!(
                "{} is not an address of this machine (`ip address` lists them): use one of those, \
                 or 0.0.0.0 (IPv4) or :: (both) for all",
                bind.written()
            ),
            ErrorKind::PermissionDenied if *port < machine.first_unprivileged_port => format!(
                "ports below {first} need CAP_NET_BIND_SERVICE: use {flag} {first} or higher; or \
                 in the systemd unit AmbientCapabilities=CAP_NET_BIND_SERVICE, or setcap \
                 cap_net_bind_service=+ep on the program",
                first = machine.first_unprivileged_port
            ),
            ErrorKind::PermissionDenied => {
                "a security policy of this machine forbids it (SELinux, AppArmor, or seccomp)"
                    .into()
            }
            _ if error.raw_os_error() == Some(libc::EMFILE) => files_fix(machine),
            _ if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => format!(
                "this machine has no IPv6: set {} to an IPv4 address, e.g. 127.0.0.1 or 0.0.0.0",
                bind.name
            ),
            _ => format!("use another {flag}, or another address as {}", bind.name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_that_cannot_be_had_names_the_cause_the_flag_and_the_fix() {
        let machine =
            Machine { first_unprivileged_port: 1024, files: Some(8), ..Machine::default() };
        let bind = Bind { ip: [10, 9, 8, 7].into(), name: "WS_CLUSTER_BIND".into() };
        let at = |port| PortFlag { flag: "--ws_port", port, bind: bind.clone() };
        for (port, errno, says) in [
            (8812, libc::EADDRINUSE, "`ss -ltnp 'sport = :8812'` as root shows it)"),
            (8812, libc::EADDRNOTAVAIL, "WS_CLUSTER_BIND=10.9.8.7 is not an address of this"),
            (80, libc::EACCES, "ports below 1024 need CAP_NET_BIND_SERVICE: use --ws_port 1024"),
            (80, libc::EACCES, "AmbientCapabilities=CAP_NET_BIND_SERVICE"),
            (8812, libc::EACCES, "a security policy of this machine forbids it"),
            (8812, libc::EMFILE, "the limit of open files is 8: raise it (LimitNOFILE="),
            (8812, libc::EAFNOSUPPORT, "this machine has no IPv6: set WS_CLUSTER_BIND to an"),
            (8812, libc::EINVAL, "use another --ws_port, or another address as WS_CLUSTER_BIND"),
        ] {
            let fix = at(port).fix(&io::Error::from_raw_os_error(errno), &machine);
            assert!(fix.contains(says), "{fix}");
        }
    }

    fn errno(number: i32) -> io::Error {
        io::Error::from_raw_os_error(number)
    }

    #[test]
    fn a_ring_that_is_refused_names_who_refuses_it() {
        let needs = Needs::new(33, 32, true, 0);
        let fix = |error: i32, machine: &Machine| needs.ring_fix(&errno(error), machine);
        let machine = Machine { kernel: "5.10.0".into(), ..Machine::default() };
        assert!(fix(libc::EINVAL, &machine).contains(
            "6.1 or later is needed, with CONFIG_IO_URING; \
                                                      this is 5.10.0"
        ));
        assert!(fix(libc::ENOSYS, &machine).contains("CONFIG_IO_URING"));
        assert!(fix(libc::EPERM, &machine).contains("SELinux"));
        assert!(fix(libc::ENOMEM, &machine).contains("MemoryMax="));
        let filtered = Machine { has_seccomp: true, ..machine.clone() };
        for error in [libc::EPERM, libc::EACCES, libc::ENOSYS] {
            assert!(
                fix(error, &filtered).contains("seccomp filter forbids it: allow io_uring_set")
            );
        }
        let off = Machine { io_uring_disabled: 2, has_sys_admin: true, ..filtered.clone() };
        assert!(fix(libc::EPERM, &off).contains("kernel.io_uring_disabled is 2"));
        let off = Machine { io_uring_disabled: 1, ..machine.clone() };
        assert!(fix(libc::EPERM, &off).contains("kernel.io_uring_disabled is 1"));
        let admin = Machine { has_sys_admin: true, ..off };
        assert!(fix(libc::EPERM, &admin).contains("SELinux"));
        let limited = Machine { memlock: Some(8 << 20), uid: 7, ..machine };
        let text = fix(libc::ENOMEM, &limited);
        for part in ["8192 KiB", "of user 7", "needs 8136 KiB: 240 for each of 33", "LimitMEMLOCK="]
        {
            assert!(text.contains(part), "{text}");
        }
        let text = Needs::new(33, 8, true, 0).ring_fix(&errno(libc::ENOMEM), &limited);
        assert!(text.contains("needs 2328 KiB: 64 for each of 33"), "{text}");
        let locks = Machine { has_ipc_lock: true, ..limited };
        assert!(fix(libc::ENOMEM, &locks).contains("MemoryMax="));
    }

    #[test]
    fn a_thread_that_cannot_be_started_names_the_limits() {
        let needs = Needs::new(2, 2, false, 1);
        let machine = Machine { uid: 7, processes: Some(12), ..Machine::default() };
        let spawn = |number| StartError::Spawn { name: "worker-1".into(), error: errno(number) };
        let text = needs.thread_fix(&spawn(libc::EAGAIN), &machine);
        for part in ["needs 7 threads; user 7 may have 12 ", "the cgroup unlimited", "TasksMax="] {
            assert!(text.contains(part), "{text}");
        }
        assert!(!text.contains("ulimit -d"), "{text}");
        let small = Machine { data: Some(8 << 20), ..machine.clone() };
        let text = needs.thread_fix(&spawn(libc::EAGAIN), &small);
        assert!(text.contains("its memory is also limited (`ulimit -d` is 8192)"), "{text}");
        assert!(needs.thread_fix(&spawn(libc::ENOMEM), &machine).contains("ulimit -v"));
        let filtered = Machine { has_seccomp: true, ..machine };
        assert!(needs.thread_fix(&spawn(libc::EPERM), &filtered).contains("allow clone"));
        let unshare = StartError::Unshare(errno(libc::EPERM));
        assert!(needs.thread_fix(&unshare, &filtered).contains("and unshare (docker run"));
    }
}
