//! Checks before a run: whether the servers listen, and whether this machine has enough
//! descriptors, ports and memory. What cannot work ends the run before it starts; what may not work
//! is a warning.

use std::fs;
use std::net::{SocketAddrV4, TcpStream};
use std::time::Duration;

use crate::client;
use crate::machine;
use crate::run::Common;

const PATIENCE: Duration = Duration::from_secs(3);
/// Kernel memory of one end of an idle connection: socket, file, directory entry, epoll. Measured
/// with 15,000 connections on Linux 6.18: 8.6 KB for both ends.
const KERNEL_BYTES_PER_END: u64 = 4_300;
/// This tool's own memory per connection.
const OWN_BYTES: u64 = 64;
/// The server's memory per idle connection, if it runs on this machine.
const SERVER_BYTES: u64 = 250;

/// Checks everything; returns the warnings.
pub fn check(common: &Common) -> Result<Vec<String>, String> {
    for ws in &common.identity.ws {
        reach("--ws", *ws)?;
    }
    if common.needs_http {
        for http in &common.http {
            reach("--http", *http)?;
        }
    }
    for place in &common.metrics {
        place.read()?;
    }
    let needed = Needed {
        connections: common.connections,
        targets: common.identity.ws.len() as u64,
        sources: common.sources.len() as u64,
        is_local: common.identity.ws.iter().all(|ws| ws.ip().is_loopback()),
    };
    needed.fits(&Machine::read())
}

/// Checks that the address accepts connections.
fn reach(option: &str, address: SocketAddrV4) -> Result<(), String> {
    match TcpStream::connect_timeout(&address.into(), PATIENCE) {
        Ok(_) => Ok(()),
        Err(error) => Err(format!(
            "{option} {address} cannot be reached: {}. Start the server there, or pass its address \
             with {option}",
            client::describe(&error)
        )),
    }
}

/// The limits of this machine; `None`: unknown.
struct Machine {
    files_free: Option<u64>,
    ports: u64,
    memory_free: Option<u64>,
    /// Pages that TCP may use for the buffers of all sockets.
    tcp_pages: Option<u64>,
}

impl Machine {
    fn read() -> Machine {
        let numbers = |path: &str| -> Vec<u64> {
            let text = fs::read_to_string(path).unwrap_or_default();
            text.split_whitespace().map_while(|word| word.parse().ok()).collect()
        };
        let files = numbers("/proc/sys/fs/file-nr");
        let ports = numbers("/proc/sys/net/ipv4/ip_local_port_range");
        let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let available = machine::kib(&memory, "MemAvailable:").map(|kib| kib * 1024);
        Machine {
            files_free: match files[..] {
                [used, free, most] => Some(most.saturating_sub(used.saturating_sub(free))),
                _ => None,
            },
            ports: match ports[..] {
                [first, last] => last.saturating_sub(first) + 1,
                _ => 28_232,
            },
            memory_free: available.into_iter().chain(cgroup_free()).min(),
            tcp_pages: numbers("/proc/sys/net/ipv4/tcp_mem").get(2).copied(),
        }
    }
}

/// Returns the memory that the control group of this process may still allocate.
fn cgroup_free() -> Option<u64> {
    let text = fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::"))?;
    let number = |name: &str| -> Option<u64> {
        let path = format!("/sys/fs/cgroup{}/{name}", path.trim_end_matches('/'));
        fs::read_to_string(path).ok()?.trim().parse().ok()
    };
    number("memory.max")?.checked_sub(number("memory.current")?)
}

/// What a run needs.
struct Needed {
    connections: u64,
    targets: u64,
    /// Source addresses; 0: the system chooses.
    sources: u64,
    /// The servers' ends of the connections are also on this machine.
    is_local: bool,
}

impl Needed {
    fn fits(&self, machine: &Machine) -> Result<Vec<String>, String> {
        let connections = self.connections;
        let ends = if self.is_local { 2 } else { 1 };
        if let Some(free) = machine.files_free
            && connections * ends > free
        {
            let fit = free / ends;
            let need = connections * ends - free;
            return Err(format!(
                "{connections} connections need {} open files, but the system has only {free} \
                 left, enough for {fit}. Raise fs.file-max by {need}: sysctl -w \
                 fs.file-max=$(($(cat /proc/sys/fs/file-max) + {need}))",
                connections * ends
            ));
        }
        let pairs = self.sources.max(1) * self.targets;
        if connections > machine.ports * pairs {
            let fit = machine.ports * pairs;
            let sources = connections.div_ceil(machine.ports * self.targets);
            let fix = match self.is_local {
                true => format!("Use more source addresses: --sources {sources}"),
                false => {
                    "Widen the range, sysctl -w net.ipv4.ip_local_port_range='1024 65535', use \
                     more server addresses in --ws, or use more machines"
                        .to_owned()
                }
            };
            return Err(format!(
                "{connections} connections need as many ports, but {} to each of {} targets from \
                 {} source addresses are only {fit}. {fix}",
                machine.ports,
                self.targets,
                self.sources.max(1)
            ));
        }
        Ok(self.warnings(machine))
    }

    fn warnings(&self, machine: &Machine) -> Vec<String> {
        let mut warnings = Vec::new();
        let connections = self.connections;
        let (per_connection, ends) = match self.is_local {
            true => (2 * KERNEL_BYTES_PER_END + OWN_BYTES + SERVER_BYTES, 2),
            false => (KERNEL_BYTES_PER_END + OWN_BYTES, 1),
        };
        if let Some(free) = machine.memory_free
            && connections * per_connection > free
        {
            warnings.push(format!(
                "{connections} connections need about {} MiB of memory, but only {} MiB are \
                 available, enough for about {} (--connections {})",
                (connections * per_connection) >> 20,
                free >> 20,
                free / per_connection,
                free / per_connection
            ));
        }
        // A non-empty socket buffer takes at least one page.
        if let Some(pages) = machine.tcp_pages
            && connections * ends > pages
        {
            warnings.push(format!(
                "a message to {connections} connections at once may take {} pages of TCP memory, \
                 but the system allows {pages}: if it is slow or resets connections, run sysctl -w \
                 net.ipv4.tcp_mem='{pages} {pages} {}'",
                connections * ends,
                2 * connections * ends
            ));
        }
        warnings
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine() -> Machine {
        Machine {
            files_free: Some(100_000),
            ports: 28_000,
            memory_free: Some(1 << 30),
            tcp_pages: Some(90_000),
        }
    }

    #[test]
    fn what_does_not_fit_is_said_with_what_would() {
        let needed =
            |connections, sources, is_local| Needed { connections, targets: 1, sources, is_local };
        assert_eq!(needed(40_000, 2, true).fits(&machine()), Ok(Vec::new()));
        let files = needed(60_000, 32, true).fits(&machine()).unwrap_err();
        assert!(
            files.contains("enough for 50000") && files.contains("file-max) + 20000"),
            "{files}"
        );
        let ports = needed(40_000, 1, true).fits(&machine()).unwrap_err();
        assert!(ports.contains("28000") && ports.contains("--sources 2"), "{ports}");
        let ports = needed(40_000, 0, false).fits(&machine()).unwrap_err();
        assert!(ports.contains("net.ipv4.ip_local_port_range"), "{ports}");
        let small = Machine { memory_free: Some(100 << 20), tcp_pages: Some(1000), ..machine() };
        let warnings = needed(40_000, 8, true).fits(&small).unwrap();
        assert!(warnings[0].contains("--connections 117"), "{warnings:?}");
        assert!(warnings[1].contains("net.ipv4.tcp_mem='1000 1000 160000'"), "{warnings:?}");
    }

    #[test]
    fn an_address_where_nobody_listens_is_named() {
        // Bound and dropped: nobody uses this port now.
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let std::net::SocketAddr::V4(address) = listener.local_addr().unwrap() else { panic!() };
        assert_eq!(reach("--ws", address), Ok(()));
        drop(listener);
        let error = reach("--ws", address).unwrap_err();
        assert!(error.contains("refused") && error.contains(&address.to_string()), "{error}");
        assert!(Machine::read().ports > 0);
    }
}
