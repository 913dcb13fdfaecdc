//! Why a node could not start or go on: the cause, the value, and what to do about it.

use super::machine::Machine;
use crate::config::Bind;
use crate::io::descriptors::TooFewFiles;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;

/// Why a node could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    #[error("{flag} {address} cannot be listened on ({error}): {fix}")]
    Port { flag: &'static str, address: SocketAddr, error: io::Error, fix: String },
    #[error(
        "io_uring is not available ({0}): ws-cluster needs Linux 6.1 or later with io_uring allowed"
    )]
    Ring(io::Error),
    #[error("{what} failed: {error}")]
    System { what: &'static str, error: io::Error },
    #[error(transparent)]
    Files(#[from] TooFewFiles),
    #[error("a thread ended early: {0}")]
    Thread(String),
}

pub(super) fn system(what: &'static str) -> impl FnOnce(io::Error) -> NodeError {
    move |error| NodeError::System { what, error }
}

/// A port, and the flags that chose it.
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
                "another process listens there: `ss -ltnp 'sport = :{port}'` as root shows which; \
                 stop it, or give another {flag}"
            ),
            ErrorKind::AddrNotAvailable => format!(
                "{} is not an address of this machine (`ip address` lists them): give one of \
                 those, or 0.0.0.0 (IPv4) or :: (both) for all",
                bind.written()
            ),
            ErrorKind::PermissionDenied if *port < machine.first_unprivileged_port => format!(
                "ports below {first} need CAP_NET_BIND_SERVICE: give {flag} {first} or higher; or \
                 in the systemd unit AmbientCapabilities=CAP_NET_BIND_SERVICE, or setcap \
                 cap_net_bind_service=+ep on the program",
                first = machine.first_unprivileged_port
            ),
            ErrorKind::PermissionDenied => {
                "a security policy of this machine forbids it (SELinux, AppArmor, or seccomp)"
                    .into()
            }
            _ if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => format!(
                "this machine has no IPv6: give {} an IPv4 address, such as 127.0.0.1 or 0.0.0.0",
                bind.name
            ),
            _ => format!("give another {flag}, or another address as {}", bind.name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_that_cannot_be_had_names_the_cause_the_flag_and_the_fix() {
        let machine = Machine { first_unprivileged_port: 1024 };
        let bind = Bind { ip: [10, 9, 8, 7].into(), name: "WS_CLUSTER_BIND".into() };
        let at = |port| PortFlag { flag: "--ws_port", port, bind: bind.clone() };
        for (port, errno, says) in [
            (8812, libc::EADDRINUSE, "`ss -ltnp 'sport = :8812'` as root shows which"),
            (8812, libc::EADDRNOTAVAIL, "WS_CLUSTER_BIND=10.9.8.7 is not an address of this"),
            (80, libc::EACCES, "ports below 1024 need CAP_NET_BIND_SERVICE: give --ws_port 1024"),
            (80, libc::EACCES, "AmbientCapabilities=CAP_NET_BIND_SERVICE"),
            (8812, libc::EACCES, "a security policy of this machine forbids it"),
            (8812, libc::EAFNOSUPPORT, "this machine has no IPv6: give WS_CLUSTER_BIND an IPv4"),
            (8812, libc::EINVAL, "give another --ws_port, or another address as WS_CLUSTER_BIND"),
        ] {
            let fix = at(port).fix(&io::Error::from_raw_os_error(errno), &machine);
            assert!(fix.contains(says), "{fix}");
        }
    }
}
