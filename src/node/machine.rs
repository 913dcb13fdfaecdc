//! What this machine allows, as far as errors of the start name it.

use std::fs;

/// The kernel's default of `net.ipv4.ip_unprivileged_port_start`.
const FIRST_UNPRIVILEGED_PORT: u16 = 1024;

#[derive(Debug, Clone)]
pub(super) struct Machine {
    /// Ports below are for processes with CAP_NET_BIND_SERVICE.
    pub(super) first_unprivileged_port: u16,
}

impl Machine {
    pub(super) fn look() -> Self {
        let port = number("/proc/sys/net/ipv4/ip_unprivileged_port_start");
        Self { first_unprivileged_port: port.unwrap_or(FIRST_UNPRIVILEGED_PORT) }
    }
}

fn number<T: std::str::FromStr>(file: &str) -> Option<T> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}
