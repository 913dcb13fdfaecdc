//! Limits of the process, and of the system's open files.

use super::root::limit;
use super::{Finding, Host, grouped};
use crate::node::preflight;

/// The kernel counts the memory of rings from this version on.
const COUNTS_RINGS_FROM: (u32, u32) = (6, 14);
const OLDEST_KERNEL: (u32, u32) = (6, 1);

pub(super) fn findings(host: &Host<'_>) -> Vec<Finding> {
    vec![
        kernel(host),
        open_files(host),
        nr_open(host),
        file_max(host),
        locked_memory(host),
        threads(host),
    ]
}

/// Returns the limit of open files that a node would have: it raises the soft limit to the hard
/// one.
pub(super) fn hard_open_files(host: &Host<'_>) -> (u64, u64) {
    let limits = host.root.text("proc/self/limits").unwrap_or_default();
    let (soft, hard) = limit(&limits, "Max open files").unwrap_or((None, None));
    let unlimited = nr_open_of(host);
    (soft.unwrap_or(unlimited), hard.unwrap_or(unlimited))
}

pub(super) fn nr_open_of(host: &Host<'_>) -> u64 {
    host.root.sysctl("fs.nr_open").first().copied().unwrap_or(1_048_576)
}

/// Returns the limit of open files that leaves each worker room for its part of --max_connections.
fn needed_files(host: &Host<'_>) -> u64 {
    let each = host.max_connections().div_ceil(host.workers());
    // The shares for HTTP and handshakes, and the worker itself.
    let wanted = each + each / 100 + 128 + host.workers();
    wanted.next_multiple_of(1_024)
}

fn version_of(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn kernel(host: &Host<'_>) -> Finding {
    let (name, costs) = ("kernel", "io_uring as a node uses it needs Linux 6.1 or later");
    let release = &host.machine.kernel;
    match version_of(release) {
        Some(version) if version < OLDEST_KERNEL => {
            Finding::fail(name, format!("Linux {release}"), costs, "install Linux 6.1 or later")
        }
        _ => Finding::ok(name, format!("Linux {release}"), costs),
    }
}

fn open_files(host: &Host<'_>) -> Finding {
    let (name, costs) = ("open files", "each connection takes a descriptor of its worker's table");
    let (soft, hard) = hard_open_files(host);
    let workers = host.workers();
    let fix = format!(
        "LimitNOFILE={needed} in the systemd unit, `ulimit -n {needed}`, docker run --ulimit \
         nofile={needed}, more --workers, or a lower --max_connections",
        needed = needed_files(host)
    );
    let limits = format!("soft {}, hard {}", grouped(soft), grouped(hard));
    match preflight::room(host.config, usize::try_from(hard).unwrap_or(usize::MAX)) {
        Err(error) => Finding::fail(name, format!("{limits}: {error}"), costs, fix),
        Ok(room) => {
            let room = room as u64;
            let all = room.saturating_mul(workers);
            let each =
                if workers == 1 { "the worker" } else { &format!("each of {workers} workers") };
            let is = format!("{limits}: room for {} connections in {each}", grouped(room));
            if all < host.max_connections() {
                let wanted = grouped(host.max_connections());
                let is = format!("{is}, {} in all; --max_connections is {wanted}", grouped(all));
                return Finding::warn(name, is, costs, fix);
            }
            Finding::ok(name, is, costs)
        }
    }
}

fn nr_open(host: &Host<'_>) -> Finding {
    let (name, costs) = ("fs.nr_open", "no limit of open files can be raised above it");
    let (nr_open, needed) = (nr_open_of(host), needed_files(host));
    let is = grouped(nr_open);
    match nr_open < needed {
        true => {
            let fix = format!("sysctl -w fs.nr_open={needed}, or more --workers");
            let is =
                format!("{is}; a worker's part of --max_connections needs {}", grouped(needed));
            Finding::warn(name, is, costs, fix)
        }
        false => Finding::ok(name, is, costs),
    }
}

fn file_max(host: &Host<'_>) -> Finding {
    let (name, costs) =
        ("fs.file-max", "open files of the whole system, beyond which accept fails");
    let [used, free, most] = host.root.sysctl("fs.file-nr")[..] else {
        return Finding::ok(name, "unknown", costs);
    };
    let left = most.saturating_sub(used.saturating_sub(free));
    if most >= i64::MAX as u64 {
        return Finding::ok(name, format!("unlimited, {} used", grouped(used)), costs);
    }
    let is = format!("{}, {} left", grouped(most), grouped(left));
    let wanted = host.max_connections();
    if left < wanted {
        let fix = format!("sysctl -w fs.file-max={}", most + wanted);
        return Finding::warn(
            name,
            format!("{is}; --max_connections is {}", grouped(wanted)),
            costs,
            fix,
        );
    }
    Finding::ok(name, is, costs)
}

fn locked_memory(host: &Host<'_>) -> Finding {
    let (name, costs) =
        ("locked memory", "the rings of io_uring count towards it since Linux 6.14");
    let needed = host.needs.locked_bytes();
    let needs = format!("this node needs {} KiB", grouped(needed >> 10));
    let counts = version_of(&host.machine.kernel).is_none_or(|it| it >= COUNTS_RINGS_FROM);
    match host.machine.memlock {
        None => Finding::ok(name, format!("unlimited; {needs}"), costs),
        Some(limit) if host.machine.has_ipc_lock => {
            let limit = grouped(limit >> 10);
            Finding::ok(name, format!("{limit} KiB, CAP_IPC_LOCK lifts it; {needs}"), costs)
        }
        Some(limit) if limit >= needed || !counts => {
            Finding::ok(name, format!("{} KiB; {needs}", grouped(limit >> 10)), costs)
        }
        Some(limit) => {
            let fix = "LimitMEMLOCK=infinity in the systemd unit, `ulimit -l unlimited`, docker \
                       run --ulimit memlock=-1, or fewer --workers";
            Finding::fail(name, format!("{} KiB; {needs}", grouped(limit >> 10)), costs, fix)
        }
    }
}

fn threads(host: &Host<'_>) -> Finding {
    let (name, costs) = ("threads", "a node whose threads cannot all start does not start");
    let needed = host.needs.threads as u64;
    let limits = [host.machine.processes, host.machine.cgroup_pids];
    let Some(least) = limits.into_iter().flatten().min() else {
        return Finding::ok(name, format!("unlimited; this node needs {needed}"), costs);
    };
    let is = format!("{} processes and threads; this node needs {needed}", grouped(least));
    match least < needed {
        true => {
            let fix = "LimitNPROC= and TasksMax= in the systemd unit, `ulimit -u`, docker run \
                       --pids-limit, or fewer --workers";
            Finding::fail(name, is, costs, fix)
        }
        false => Finding::ok(name, is, costs),
    }
}
