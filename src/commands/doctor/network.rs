//! Settings of the kernel's TCP.

use super::capacity::{CONNTRACK, Capacity};
use super::{Finding, Host, grouped};
use crate::io::listener::BACKLOG;

/// Below this many ports a program that opens many connections from here to one address runs out.
const MANY_PORTS: u64 = 28_000;

pub(super) fn findings(host: &Host<'_>, capacity: &Capacity) -> Vec<Finding> {
    let connections = capacity.connections();
    vec![
        somaxconn(host),
        syn_backlog(host),
        tcp_mem(host, connections),
        buffers(host, "net.ipv4.tcp_rmem"),
        buffers(host, "net.ipv4.tcp_wmem"),
        port_range(host),
        conntrack(host, capacity.connections_without(CONNTRACK)),
    ]
}

fn somaxconn(host: &Host<'_>) -> Finding {
    let costs = "connections that wait to be accepted; in a storm of reconnects further ones are \
                 dropped and come back after a second or more";
    backlog(host, "net.core.somaxconn", costs)
}

fn syn_backlog(host: &Host<'_>) -> Finding {
    let costs = "handshakes of TCP that wait for their last packet; beyond it the kernel drops \
                 them or sends cookies";
    backlog(host, "net.ipv4.tcp_max_syn_backlog", costs)
}

fn backlog(host: &Host<'_>, name: &'static str, costs: &str) -> Finding {
    let wanted = BACKLOG as u64;
    match host.root.sysctl(name).first() {
        Some(&is) if is < wanted => {
            let fix = format!("sysctl -w {name}={wanted}");
            Finding::warn(
                name,
                format!("{}; a worker asks for {}", grouped(is), grouped(wanted)),
                costs,
                fix,
            )
        }
        Some(&is) => Finding::ok(name, grouped(is), costs),
        None => Finding::ok(name, "unknown", costs),
    }
}

fn tcp_mem(host: &Host<'_>, connections: u64) -> Finding {
    let name = "net.ipv4.tcp_mem";
    let costs = "pages that all sockets' buffers may take; a message to all connections takes a \
                 page for each, and beyond the limit TCP slows down and resets";
    let [low, pressure, high] = host.root.sysctl(name)[..] else {
        return Finding::ok(name, "unknown", costs);
    };
    let is = format!("{} {} {} pages", grouped(low), grouped(pressure), grouped(high));
    match pressure < connections {
        true => {
            let fix = format!(
                "sysctl -w net.ipv4.tcp_mem='{connections} {} {}'",
                connections + connections / 2,
                2 * connections
            );
            let is = format!("{is}; {} connections may need as many", grouped(connections));
            Finding::warn(name, is, costs, fix)
        }
        false => Finding::ok(name, is, costs),
    }
}

/// The sizes that a socket's buffer begins with and grows to. The node bounds what it leaves unsent
/// itself.
fn buffers(host: &Host<'_>, name: &'static str) -> Finding {
    let costs = "least, initial and greatest bytes of a socket's buffer; an idle socket takes none \
                 of it, a small greatest one slows distant clients";
    let [least, initial, most] = host.root.sysctl(name)[..] else {
        return Finding::ok(name, "unknown", costs);
    };
    let is = format!("{} {} {} bytes", grouped(least), grouped(initial), grouped(most));
    match most < 262_144 {
        true => {
            let fix = format!("sysctl -w {name}='4096 131072 6291456'");
            Finding::warn(name, is, costs, fix)
        }
        false => Finding::ok(name, is, costs),
    }
}

fn port_range(host: &Host<'_>) -> Finding {
    let name = "net.ipv4.ip_local_port_range";
    let costs = "ports for connections that begin here: of a proxy or a load test on this machine, \
                 to one address; above half of it the kernel searches 30 times as long";
    let [first, last] = host.root.sysctl(name)[..] else {
        return Finding::ok(name, "unknown", costs);
    };
    let ports = (last + 1).saturating_sub(first);
    let is = format!("{first} to {last}, {} ports", grouped(ports));
    match ports < MANY_PORTS {
        true => Finding::warn(name, is, costs, format!("sysctl -w {name}='1024 65535'")),
        false => Finding::ok(name, is, costs),
    }
}

fn conntrack(host: &Host<'_>, connections: u64) -> Finding {
    let (name, costs) = (
        CONNTRACK,
        "the firewall's table has an entry for each connection; when it is full, packets of new \
         ones are dropped",
    );
    let number = |name: &str| host.root.sysctl(name).first().copied();
    let Some(max) = number("net.netfilter.nf_conntrack_max") else {
        return Finding::ok(name, "not loaded", costs);
    };
    let count = number("net.netfilter.nf_conntrack_count").unwrap_or(0);
    let is = format!("{} entries, {} used", grouped(max), grouped(count));
    let fix = format!(
        "sysctl -w net.netfilter.nf_conntrack_max={}, or no tracking of these ports (nft: notrack)",
        (2 * connections).max(max)
    );
    if count >= max / 20 * 19 {
        return Finding::fail(name, is, costs, fix);
    }
    match max - count < connections {
        true => {
            let is = format!("{is}; {} connections need as many", grouped(connections));
            Finding::warn(name, is, costs, fix)
        }
        false => Finding::ok(name, is, costs),
    }
}
