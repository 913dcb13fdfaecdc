//! io_uring, memory, clock and cores.

use super::root::count_cpus;
use super::{Finding, Host, bytes};
use crate::io::sys::{self, ClockState};
use crate::io::{clock, threads};
use crate::node::{NodeError, preflight};
use std::io;

/// The checks that only read files.
pub(super) fn findings(host: &Host<'_>) -> Vec<Finding> {
    vec![
        io_uring_setting(host),
        huge_pages(host),
        cores(host),
        quota(host),
        governor(host),
        memory(host),
        swap(host),
    ]
}

/// The checks that need the kernel itself.
pub(super) fn live_findings(host: &Host<'_>) -> Vec<Finding> {
    let now = preflight::clock(clock::wall());
    vec![
        ring(preflight::ring(&host.needs)),
        descriptor_tables(),
        clock_finding(now, sys::clock_state()),
    ]
}

/// Splits an error of a start into what is and the fix.
fn parts(error: &NodeError) -> (String, String) {
    let text = error.to_string();
    match text.split_once("): ").or_else(|| text.split_once(": ")) {
        Some((is, fix)) if is.contains('(') => (format!("{is})"), fix.to_owned()),
        Some((is, fix)) => (is.to_owned(), fix.to_owned()),
        None => (text, String::new()),
    }
}

fn ring(probed: Result<(), NodeError>) -> Finding {
    let (name, costs) = ("io_uring", "a node does all I/O of its connections over it");
    match probed {
        Ok(()) => Finding::ok(name, "a ring was created and used", costs),
        Err(error) => {
            let (is, fix) = parts(&error);
            Finding::fail(name, is, costs, fix)
        }
    }
}

fn io_uring_setting(host: &Host<'_>) -> Finding {
    let name = "kernel.io_uring_disabled";
    let costs = "0 allows io_uring, 1 allows it to CAP_SYS_ADMIN and the group of \
                 kernel.io_uring_group, 2 to nobody";
    let fix = "sysctl -w kernel.io_uring_disabled=0";
    match host.machine.io_uring_disabled {
        0 => Finding::ok(name, "0", costs),
        2 => Finding::fail(name, "2", costs, fix),
        // Whether the user is in the group shows when a ring is created.
        _ if host.machine.has_sys_admin => Finding::ok(name, "1, with CAP_SYS_ADMIN", costs),
        other => {
            let fix = format!("{fix}, or kernel.io_uring_group with a group of the node's user");
            Finding::warn(name, other.to_string(), costs, fix)
        }
    }
}

/// Whether a thread may have its own table of file descriptors, as each worker has.
fn descriptor_tables() -> Finding {
    let (name, costs) = ("descriptor tables", "every worker has its own: unshare(CLONE_FILES)");
    match std::thread::spawn(threads::unshare_files).join() {
        Ok(Ok(())) => Finding::ok(name, "a thread can have its own", costs),
        Ok(Err(error)) => {
            let fix = "allow unshare in the seccomp filter (docker run --security-opt \
                       seccomp=FILE, SystemCallFilter= in the systemd unit)";
            Finding::fail(name, error.to_string(), costs, fix)
        }
        Err(_) => Finding::warn(name, "unknown", costs, "report this"),
    }
}

fn huge_pages(host: &Host<'_>) -> Finding {
    let name = "huge pages";
    let costs = "with transparent huge pages a connection of 134 bytes took 551; the node turns \
                 them off for itself";
    let mode = host.root.text("sys/kernel/mm/transparent_hugepage/enabled").unwrap_or_default();
    let chosen = mode.split(['[', ']']).nth(1).unwrap_or("unknown");
    match (chosen, host.root.status("THP_enabled").as_deref()) {
        ("always", Some("1")) => {
            let fix = "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled";
            Finding::warn(name, "always, also in this process", costs, fix)
        }
        ("always", _) => Finding::ok(name, "always; off in this process", costs),
        _ => Finding::ok(name, chosen, costs),
    }
}

fn clock_finding(now: Result<(), NodeError>, state: io::Result<ClockState>) -> Finding {
    let name = "clock";
    let costs = "client ids, exp of signatures and ttl_ms follow the wall clock; nodes must agree \
                 within seconds";
    let fix = "timedatectl set-ntp true, or install chrony; in a container on its host";
    match (now, state) {
        (Err(error), _) => {
            let (is, fix) = parts(&error);
            Finding::fail(name, is, costs, fix)
        }
        (Ok(()), Ok(ClockState { is_synchronised: true, max_error_us })) => {
            Finding::ok(name, format!("synchronised, within {} ms", max_error_us / 1_000), costs)
        }
        (Ok(()), Ok(_)) => {
            Finding::warn(name, "no time service synchronises the kernel's clock", costs, fix)
        }
        (Ok(()), Err(error)) => {
            Finding::ok(name, format!("whether it is synchronised is unknown: {error}"), costs)
        }
    }
}

fn cores(host: &Host<'_>) -> Finding {
    let (name, costs) = (
        "cores",
        "each worker is a thread that wants a core; where workers share cores, latencies rise",
    );
    let allowed = host.root.status("Cpus_allowed_list").unwrap_or_default();
    let online = host.root.text("sys/devices/system/cpu/online").unwrap_or_default();
    let isolated = host.root.text("sys/devices/system/cpu/isolated").unwrap_or_default();
    let count = count_cpus(&allowed);
    let mut is = format!("{count} of {} ({allowed})", count_cpus(&online).max(count));
    if !isolated.is_empty() {
        is.push_str(&format!(", isolated: {isolated}"));
    }
    let workers = host.config.settings.workers;
    is.push_str(&format!("; --workers {workers}"));
    match count > 0 && workers > count {
        true => {
            let fix = format!(
                "--workers {} unless more are needed for open files, a wider CPUAffinity= in the \
                 systemd unit, or a larger machine",
                count.saturating_sub(1).max(1)
            );
            Finding::warn(name, is, costs, fix)
        }
        false => Finding::ok(name, is, costs),
    }
}

/// Returns the cores that the lowest `cpu.max` of the control groups allows.
fn quota_of(host: &Host<'_>) -> Option<f64> {
    let of = |directory: String| {
        let text = host.root.text(&format!("{directory}/cpu.max"))?;
        let (quota_us, period_us) = text.split_once(' ')?;
        Some(quota_us.parse::<f64>().ok()? / period_us.parse::<f64>().ok()?)
    };
    host.root.cgroups().into_iter().filter_map(of).min_by(f64::total_cmp)
}

fn quota(host: &Host<'_>) -> Finding {
    let name = "CPU quota";
    let costs = "a node that has used its quota stands still for the rest of the period, up to \
                 100 ms";
    match quota_of(host) {
        None => Finding::ok(name, "none", costs),
        Some(cores) => {
            let is = format!("{cores:.2} cores (cpu.max of the control group)");
            let workers = host.config.settings.workers as f64;
            // Besides the workers: the broker, ops and the log.
            match cores < workers + 0.5 {
                true => {
                    let fix = format!(
                        "a quota of at least {:.0} cores (CPUQuota= in the systemd unit, docker \
                         run --cpus, the limit of the pod), or none and whole cores, or fewer \
                         --workers",
                        workers + 1.0
                    );
                    Finding::warn(name, is, costs, fix)
                }
                false => Finding::ok(name, is, costs),
            }
        }
    }
}

fn governor(host: &Host<'_>) -> Finding {
    let (name, costs) = ("frequency", "cores that clock down while idle answer later");
    let governor = host.root.text("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor");
    match governor.as_deref() {
        None => Finding::ok(name, "not set by this kernel", costs),
        Some("powersave") => {
            let driver = host.root.text("sys/devices/system/cpu/cpu0/cpufreq/scaling_driver");
            // Its powersave is dynamic.
            if driver.is_some_and(|name| name.contains("pstate")) {
                return Finding::ok(name, "powersave, which is dynamic with this driver", costs);
            }
            Finding::warn(name, "powersave", costs, "cpupower frequency-set -g performance")
        }
        Some(other) => Finding::ok(name, other, costs),
    }
}

fn memory(host: &Host<'_>) -> Finding {
    let name = "memory";
    let costs = "the limit bounds connections and outboxes; above it the kernel ends the process";
    let Some(limit) = &host.config.memory_limit else {
        return Finding::ok(name, "unknown", costs);
    };
    let is = format!("{} ({})", bytes(limit.bytes), limit.source.name());
    match host.root.meminfo("MemAvailable") {
        Some(available) if available < limit.bytes / 2 => {
            let is = format!("{is}, but only {} are available", bytes(available));
            let fix = "end other programs, or set --memory_limit_bytes to what is the node's";
            Finding::warn(name, is, costs, fix)
        }
        Some(available) => {
            Finding::ok(name, format!("{is}, {} available", bytes(available)), costs)
        }
        None => Finding::ok(name, is, costs),
    }
}

fn swap(host: &Host<'_>) -> Finding {
    let (name, costs) = ("swap", "a worker that needs a page from disk stands still for it");
    let of_groups = host.root.cgroups().into_iter();
    let limits =
        of_groups.filter_map(|group| host.root.number(&format!("{group}/memory.swap.max")));
    let total = host.root.meminfo("SwapTotal").unwrap_or(0);
    match (total, limits.min()) {
        (0, _) => Finding::ok(name, "none", costs),
        (total, Some(0)) => {
            Finding::ok(name, format!("{}, none for this control group", bytes(total)), costs)
        }
        (total, _) => {
            let fix = "MemorySwapMax=0 in the systemd unit, docker run --memory-swap equal to \
                       --memory, or swapoff -a";
            Finding::warn(name, bytes(total), costs, fix)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::*;

    #[test]
    fn a_clock_is_judged() {
        let good = ClockState { is_synchronised: true, max_error_us: 7_000 };
        let finding = clock_finding(Ok(()), Ok(good));
        assert_eq!((finding.status, &*finding.is), (Status::Ok, "synchronised, within 7 ms"));
        let free = ClockState { is_synchronised: false, ..good };
        assert_eq!(clock_finding(Ok(()), Ok(free)).status, Status::Warn);
        let unknown = io::Error::from_raw_os_error(libc::EPERM);
        assert_eq!(clock_finding(Ok(()), Err(unknown)).status, Status::Ok);
        let error = NodeError::Clock { now: "1970".into() };
        let finding = clock_finding(Err(error), Ok(good));
        assert_eq!(finding.status, Status::Fail);
        assert!(finding.fix.contains("time-sync.target"), "{finding:?}");
    }

    #[test]
    fn a_refused_ring_fails_with_the_fix() {
        let error = NodeError::Refused {
            what: "io_uring cannot be set up",
            error: io::Error::from_raw_os_error(libc::EPERM),
            fix: "allow it".into(),
        };
        let finding = ring(Err(error));
        assert_eq!((finding.status, &*finding.fix), (Status::Fail, "allow it"));
        assert!(finding.is.starts_with("io_uring cannot be set up (Operation not"), "{finding:?}");
    }
}
