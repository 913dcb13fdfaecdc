//! Limits of this machine that start-up errors mention. A limit that cannot be read counts as
//! unlimited.

use crate::io::sys;
use std::fs;
use std::path::Path;
use std::str::FromStr;

/// The kernel's default of `net.ipv4.ip_unprivileged_port_start`.
const FIRST_UNPRIVILEGED_PORT: u16 = 1024;
/// Capability numbers, see capabilities(7).
const CAP_IPC_LOCK: u32 = 14;
const CAP_SYS_ADMIN: u32 = 21;

#[derive(Debug, Clone, Default, PartialEq)]
pub struct Machine {
    /// `uname -r`.
    pub kernel: String,
    /// Lower ports require CAP_NET_BIND_SERVICE.
    pub first_unprivileged_port: u16,
    /// A seccomp filter checks the process's system calls.
    pub has_seccomp: bool,
    /// `kernel.io_uring_disabled`: 1 disables it except for CAP_SYS_ADMIN and a group, 2 for all.
    pub io_uring_disabled: u8,
    pub has_sys_admin: bool,
    /// RLIMIT_MEMLOCK does not apply to the process.
    pub has_ipc_lock: bool,
    pub uid: u32,
    /// RLIMIT_MEMLOCK in bytes.
    pub memlock: Option<u64>,
    /// RLIMIT_NPROC.
    pub processes: Option<u64>,
    /// RLIMIT_AS in bytes, and RLIMIT_DATA.
    pub address_space: Option<u64>,
    pub data: Option<u64>,
    /// RLIMIT_NOFILE.
    pub files: Option<u64>,
    /// The lowest `pids.max` of the cgroup and its ancestors.
    pub cgroup_pids: Option<u64>,
}

impl Machine {
    pub fn look() -> Self {
        // If the limit of open files was reached, no file of /proc can be opened.
        Self { files: sys::open_files().ok(), ..Self::look_in(Path::new("/")) }
    }

    /// Reads the limits from the files below `root`.
    pub fn look_in(root: &Path) -> Self {
        let read = |file: &str| fs::read_to_string(root.join(file)).unwrap_or_default();
        let status = read("proc/self/status");
        let capabilities =
            field(&status, "CapEff:").and_then(|hex| u64::from_str_radix(hex, 16).ok());
        let has = |capability: u32| capabilities.is_some_and(|set| set >> capability & 1 == 1);
        let limits = read("proc/self/limits");
        let limit = |name| field(&limits, name).and_then(|soft| soft.parse().ok());
        let port = number(&read("proc/sys/net/ipv4/ip_unprivileged_port_start"));
        let disabled = number(&read("proc/sys/kernel/io_uring_disabled"));
        let kernel = read("proc/sys/kernel/osrelease");
        Self {
            kernel: kernel.trim().into(),
            first_unprivileged_port: port.unwrap_or(FIRST_UNPRIVILEGED_PORT),
            has_seccomp: field(&status, "Seccomp:").is_some_and(|mode| mode != "0"),
            io_uring_disabled: disabled.unwrap_or(0),
            has_sys_admin: has(CAP_SYS_ADMIN),
            has_ipc_lock: has(CAP_IPC_LOCK),
            uid: field(&status, "Uid:").and_then(|uid| uid.parse().ok()).unwrap_or(0),
            memlock: limit("Max locked memory"),
            processes: limit("Max processes"),
            address_space: limit("Max address space"),
            data: limit("Max data size"),
            files: limit("Max open files"),
            cgroup_pids: cgroup_pids(root),
        }
    }
}

/// Returns the first word after a name at the beginning of a line.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    rest.split_whitespace().next()
}

fn number<T: FromStr>(text: &str) -> Option<T> {
    text.trim().parse().ok()
}

fn cgroup_pids(root: &Path) -> Option<u64> {
    let own = fs::read_to_string(root.join("proc/self/cgroup")).ok()?;
    let path = own.lines().find_map(|line| line.strip_prefix("0::"))?;
    let mut limits = Vec::new();
    let mut path = path.trim_end_matches('/');
    loop {
        let file = root.join(format!("sys/fs/cgroup{path}/pids.max"));
        limits.extend(fs::read_to_string(file).ok().and_then(|text| number::<u64>(&text)));
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
