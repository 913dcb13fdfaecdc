//! Limits of this machine that start-up errors mention. A limit that cannot be read counts as
//! unlimited.

use crate::io::sys;
use std::fs;
use std::str::FromStr;

/// The kernel's default of `net.ipv4.ip_unprivileged_port_start`.
const FIRST_UNPRIVILEGED_PORT: u16 = 1024;
/// Capability numbers, see capabilities(7).
const CAP_IPC_LOCK: u32 = 14;
const CAP_SYS_ADMIN: u32 = 21;

#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Machine {
    /// `uname -r`.
    pub(super) kernel: String,
    /// Lower ports require CAP_NET_BIND_SERVICE.
    pub(super) first_unprivileged_port: u16,
    /// A seccomp filter checks the process's system calls.
    pub(super) has_seccomp: bool,
    /// `kernel.io_uring_disabled`: 1 disables it except for CAP_SYS_ADMIN and a group, 2 for all.
    pub(super) io_uring_disabled: u8,
    pub(super) has_sys_admin: bool,
    /// RLIMIT_MEMLOCK does not apply to the process.
    pub(super) has_ipc_lock: bool,
    pub(super) uid: u32,
    /// RLIMIT_MEMLOCK in bytes.
    pub(super) memlock: Option<u64>,
    /// RLIMIT_NPROC.
    pub(super) processes: Option<u64>,
    /// RLIMIT_AS in bytes, and RLIMIT_DATA.
    pub(super) address_space: Option<u64>,
    pub(super) data: Option<u64>,
    /// RLIMIT_NOFILE.
    pub(super) files: Option<u64>,
    /// The lowest `pids.max` of the cgroup and its ancestors.
    pub(super) cgroup_pids: Option<u64>,
}

impl Machine {
    pub(super) fn look() -> Self {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let capabilities =
            field(&status, "CapEff:").and_then(|hex| u64::from_str_radix(hex, 16).ok());
        let has = |capability: u32| capabilities.is_some_and(|set| set >> capability & 1 == 1);
        let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
        let limit = |name| field(&limits, name).and_then(|soft| soft.parse().ok());
        let port = number("/proc/sys/net/ipv4/ip_unprivileged_port_start");
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Self {
            kernel: kernel.trim().into(),
            first_unprivileged_port: port.unwrap_or(FIRST_UNPRIVILEGED_PORT),
            has_seccomp: field(&status, "Seccomp:").is_some_and(|mode| mode != "0"),
            io_uring_disabled: number("/proc/sys/kernel/io_uring_disabled").unwrap_or(0),
            has_sys_admin: has(CAP_SYS_ADMIN),
            has_ipc_lock: has(CAP_IPC_LOCK),
            uid: field(&status, "Uid:").and_then(|uid| uid.parse().ok()).unwrap_or(0),
            memlock: limit("Max locked memory"),
            processes: limit("Max processes"),
            address_space: limit("Max address space"),
            data: limit("Max data size"),
            // If this is the limit that was reached, no file of /proc can be opened.
            files: sys::open_files().ok(),
            cgroup_pids: cgroup_pids(),
        }
    }
}

/// Returns the first word after a name at the beginning of a line.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    rest.split_whitespace().next()
}

fn number<T: FromStr>(file: &str) -> Option<T> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

fn cgroup_pids() -> Option<u64> {
    let own = fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = own.lines().find_map(|line| line.strip_prefix("0::"))?;
    let mut limits = Vec::new();
    let mut path = path.trim_end_matches('/');
    loop {
        limits.extend(number::<u64>(&format!("/sys/fs/cgroup{path}/pids.max")));
        match path.rsplit_once('/') {
            Some((above, _)) => path = above,
            None => return limits.into_iter().min(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_proc() {
        let limits = "Limit                     Soft Limit           Hard Limit\n\
                      Max processes             96365                96365\n\
                      Max locked memory         unlimited            unlimited\n";
        assert_eq!(field(limits, "Max processes"), Some("96365"));
        assert_eq!(field(limits, "Max locked memory"), Some("unlimited"));
        assert_eq!(field("Uid:\t1000\t1000\n", "Uid:"), Some("1000"));
        assert_eq!(field("Uid:\t1000\t1000\n", "Seccomp:"), None);
        let machine = Machine::look();
        assert!(machine.kernel.starts_with(|c: char| c.is_ascii_digit()), "{machine:?}");
        assert!(machine.files.is_some(), "{machine:?}");
    }
}
