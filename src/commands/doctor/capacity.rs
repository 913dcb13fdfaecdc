//! How many connections this host can hold, and what bounds them.

use super::limits::{hard_open_files, nr_open_of};
use super::{Host, grouped};
use crate::node::preflight;
use serde_json::{Value, json};
use std::fmt::Write as _;

/// Memory of the process for an idle connection with a uid and a tag, measured from ten thousand to
/// a million connections (docs/scaling.md), and of the kernel for one end.
const USER_BYTES: u64 = 210;
const KERNEL_BYTES: u64 = 4_500;
/// Memory of a worker before its first connection, and of the rest of the program.
const WORKER_BYTES: u64 = 490 << 10;
const PROGRAM_BYTES: u64 = 24 << 20;
/// From this percentage of the memory limit on, clients are closed.
const USABLE_PERCENT: u64 = 85;

/// The bound of the firewall's table.
pub(super) const CONNTRACK: &str = "conntrack";

/// A bound on the number of connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Bound {
    what: &'static str,
    connections: u64,
}

/// All bounds, the lowest first.
#[derive(Debug)]
pub(super) struct Capacity {
    bounds: Vec<Bound>,
    /// Connections that a message to all of them may reach at once without pressure on TCP memory.
    at_once: Option<u64>,
}

impl Capacity {
    pub(super) fn of(host: &Host<'_>) -> Self {
        let workers = host.workers();
        let mut bounds = vec![bound("--max_connections", host.max_connections())];
        let room = |files: u64| {
            let room = preflight::room(host.config, usize::try_from(files).unwrap_or(usize::MAX));
            room.map_or(0, |room| room as u64).saturating_mul(workers)
        };
        let (_, hard) = hard_open_files(host);
        bounds.push(bound("open files of the workers", room(hard)));
        bounds.push(bound("fs.nr_open, to which the limit can be raised", room(nr_open_of(host))));
        bounds.extend(memory(host));
        if let [used, free, most] = host.root.sysctl("fs.file-nr")[..] {
            let left = most.saturating_sub(used.saturating_sub(free));
            bounds.push(bound("fs.file-max", left));
        }
        let conntrack = |name: &str| {
            host.root.sysctl(&format!("net.netfilter.nf_conntrack_{name}")).first().copied()
        };
        if let Some(max) = conntrack("max") {
            let left = max.saturating_sub(conntrack("count").unwrap_or(0));
            bounds.push(bound(CONNTRACK, left));
        }
        bounds.sort_by_key(|bound| bound.connections);
        let at_once = host.root.sysctl("net.ipv4.tcp_mem").get(1).copied();
        Self { bounds, at_once }
    }

    /// Returns the number of connections that the host can hold.
    pub(super) fn connections(&self) -> u64 {
        self.bounds.first().map_or(0, |bound| bound.connections)
    }

    /// Returns the number of connections that it could hold without this bound.
    pub(super) fn connections_without(&self, what: &str) -> u64 {
        let mut others = self.bounds.iter().filter(|bound| bound.what != what);
        others.next().map_or(0, |bound| bound.connections)
    }

    pub(super) fn as_text(&self) -> String {
        let mut text = String::new();
        let most = self.connections();
        let what = self.bounds.first().map_or("nothing", |bound| bound.what);
        // Writing to a String cannot fail, here and below.
        let _ =
            writeln!(text, "This host can hold {} connections, bounded by {what}:", grouped(most));
        for bound in &self.bounds {
            let _ = writeln!(text, "{:>16}  {}", grouped(bound.connections), bound.what);
        }
        if let Some(at_once) = self.at_once.filter(|at_once| *at_once < most) {
            let at_once = grouped(at_once);
            let _ = writeln!(
                text,
                "A message to more than {at_once} of them at once may exceed net.ipv4.tcp_mem."
            );
        }
        text
    }

    pub(super) fn as_json(&self) -> Value {
        let bounds = self.bounds.iter();
        let bounds: Vec<Value> = bounds
            .map(|bound| json!({ "what": bound.what, "connections": bound.connections }))
            .collect();
        json!({
            "connections": self.connections(),
            "bounded_by": self.bounds.first().map(|bound| bound.what),
            "bounds": bounds,
            "at_once": self.at_once,
        })
    }
}

fn bound(what: &'static str, connections: u64) -> Bound {
    Bound { what, connections }
}

fn memory(host: &Host<'_>) -> Option<Bound> {
    let limit = host.config.memory_limit.as_ref()?.bytes;
    let usable = limit / 100 * USABLE_PERCENT;
    let usable = host.root.meminfo("MemAvailable").map_or(usable, |free| usable.min(free));
    let fixed = PROGRAM_BYTES + host.workers() * WORKER_BYTES;
    let connections = usable.saturating_sub(fixed) / (USER_BYTES + KERNEL_BYTES);
    Some(bound("memory, at 210 bytes each and 4,500 of the kernel's, idle", connections))
}
