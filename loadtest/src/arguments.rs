//! The options common to all commands, and their checks.

use std::io::IsTerminal;
use std::net::{SocketAddr, SocketAddrV4, ToSocketAddrs};
use std::sync::Mutex;

use ws_cluster_wire::sign::Secret;

use crate::business::Business;
use crate::identity::{Identity, Kind};
use crate::metrics::Place;
use crate::processes::Part;
use crate::run::{self, Common};
use crate::series::Live;
use crate::thresholds::Thresholds;

/// Declares a subcommand with its own options and the common ones, because argh cannot flatten a
/// struct into another. `options` returns the common ones as one struct.
macro_rules! subcommand {
    (
        $(#[$about:meta])*
        pub struct $name:ident {
            $( $(#[$option:meta])* $field:ident: [$($kind:tt)+], )*
        }
    ) => {
        #[derive(argh::FromArgs)]
        $(#[$about])*
        pub struct $name {
            $( $(#[$option])* $field: $($kind)+, )*

            /// the nodes' WebSocket ports, host:port, separated by commas; connections are spread
            /// over them in turn (127.0.0.1:8812)
            #[argh(option, default = "\"127.0.0.1:8812\".to_owned()")]
            ws: String,

            /// the nodes' HTTP ports, host:port, separated by commas; pushes are spread over them
            /// in turn (127.0.0.1:8912)
            #[argh(option, default = "\"127.0.0.1:8912\".to_owned()")]
            http: String,

            /// the project (1)
            #[argh(option, default = "\"1\".to_owned()")]
            pid: String,

            /// the project's secret (the variable WS_CLUSTER_SECRET, else dev-secret)
            #[argh(option)]
            secret: Option<String>,

            /// prefix of the uids; a number follows (u)
            #[argh(option, default = "\"u\".to_owned()")]
            uid_prefix: String,

            /// the number of the first user (0); tools that run at the same time need different
            /// ones
            #[argh(option, default = "0")]
            first_user: u64,

            /// the device sent at connect (none)
            #[argh(option, default = "String::new()")]
            device: String,

            /// maximum number of connects in progress, over all threads (64)
            #[argh(option, default = "64")]
            concurrency: usize,

            /// connects per second, over all threads (as many as possible)
            #[argh(option, default = "0.0")]
            connect_rate: f64,

            /// seconds after which a connect has failed or a message is lost (5)
            #[argh(option, default = "5.0")]
            timeout: f64,

            /// number of threads, each with its own table of open files (as many as the limit of
            /// open files requires)
            #[argh(option)]
            threads: Option<usize>,

            /// cores for the threads, such as 1 or 2,3 (not pinned)
            #[argh(option)]
            pin: Option<String>,

            /// source addresses 127.0.0.1, .2 and so on to rotate over (32 or more)
            #[argh(option)]
            sources: Option<usize>,

            /// process id of the server on this machine, to report its CPU time and, if requested,
            /// its memory
            #[argh(option)]
            pid_of_server: Option<u32>,

            /// URLs of the nodes' metrics, such as http://127.0.0.1:9091/metrics, separated by
            /// commas: CPU time, memory, connections and worker pauses, once a second (with
            /// --pid-of-server, CPU time and memory)
            #[argh(option)]
            metrics: Option<String>,

            /// write the report with charts over time to this file, one HTML page
            #[argh(option)]
            report: Option<String>,

            /// fail if the 99th percentile of the latencies exceeds this, such as 500us, 5ms, 1.5s;
            /// which latencies depends on the command; with --rate they count from the intended
            /// time
            #[argh(option)]
            max_p99: Option<String>,

            /// maximum number of messages that may be lost, duplicated or misdelivered (0)
            #[argh(option)]
            max_loss: Option<u64>,

            /// fail below this rate per second: connects, deliveries, requests
            #[argh(option)]
            min_rate: Option<f64>,

            /// fail if a worker of the server paused for longer through its own work, such as 2ms
            /// (needs --metrics)
            #[argh(option)]
            max_pause: Option<String>,

            /// fail if the server's memory exceeds this, such as 512M (needs --metrics or
            /// --pid-of-server)
            #[argh(option)]
            max_server_rss: Option<String>,

            /// number of processes, each with a share of the connections, and one report for all:
            /// connect, fanout (a tag for each process), unicast (1; more if threads cannot have
            /// their own tables of open files and one is too small)
            #[argh(option)]
            processes: Option<u64>,

            /// print one JSON object, and no progress
            #[argh(switch)]
            json: bool,
        }

        impl $name {
            /// Returns the options common to all commands.
            pub fn options(&self) -> crate::arguments::Options {
                crate::arguments::Options {
                    ws: self.ws.clone(),
                    http: self.http.clone(),
                    pid: self.pid.clone(),
                    secret: self.secret.clone(),
                    uid_prefix: self.uid_prefix.clone(),
                    first_user: self.first_user,
                    device: self.device.clone(),
                    concurrency: self.concurrency,
                    connect_rate: self.connect_rate,
                    timeout: self.timeout,
                    threads: self.threads,
                    pin: self.pin.clone(),
                    sources: self.sources,
                    pid_of_server: self.pid_of_server,
                    json: self.json,
                    metrics: self.metrics.clone(),
                    report: self.report.clone(),
                    max_p99: self.max_p99.clone(),
                    max_loss: self.max_loss,
                    min_rate: self.min_rate,
                    max_pause: self.max_pause.clone(),
                    max_server_rss: self.max_server_rss.clone(),
                    processes: self.processes,
                }
            }
        }
    };
}
pub(crate) use subcommand;

/// The common options as given.
pub struct Options {
    pub ws: String,
    pub http: String,
    pub pid: String,
    pub secret: Option<String>,
    pub uid_prefix: String,
    pub first_user: u64,
    pub device: String,
    pub concurrency: usize,
    pub connect_rate: f64,
    pub timeout: f64,
    pub threads: Option<usize>,
    pub pin: Option<String>,
    pub sources: Option<usize>,
    pub pid_of_server: Option<u32>,
    pub json: bool,
    pub metrics: Option<String>,
    pub report: Option<String>,
    pub max_p99: Option<String>,
    pub max_loss: Option<u64>,
    pub min_rate: Option<f64>,
    pub max_pause: Option<String>,
    pub max_server_rss: Option<String>,
    pub processes: Option<u64>,
}

impl Options {
    fn is_parent(&self) -> bool {
        self.processes.is_some_and(|count| count > 1) && !Part::of_this_process().is_child()
    }

    /// Checks the common options. `tags` are the tags of the connections.
    pub fn check(&self, connections: u64, tags: &str) -> Result<Common, String> {
        let ws = resolve_all(&self.ws)?;
        let secret = match &self.secret {
            Some(secret) => secret.clone(),
            None => std::env::var("WS_CLUSTER_SECRET").unwrap_or_else(|_| "dev-secret".to_owned()),
        };
        if self.concurrency == 0 || self.threads == Some(0) {
            return Err("--concurrency and --threads must be at least 1".to_owned());
        }
        if self.uid_prefix.contains(['"', '\\', ',']) {
            return Err("--uid-prefix must not contain quotes, backslashes or commas".to_owned());
        }
        let metrics = match (&self.metrics, self.pid_of_server) {
            _ if Part::of_this_process().is_child() => Vec::new(),
            (Some(list), _) => Place::parse_list(list)?,
            (None, Some(pid)) => vec![Place::Process(pid)],
            (None, None) => Vec::new(),
        };
        let part = Part::of_this_process();
        let (connections, users_before) = part.share(connections);
        let threads = self.threads.map(|threads| threads.div_ceil(part.count as usize));
        // With several processes, the parent owns no connections itself.
        let own = if self.is_parent() { 1 } else { connections };
        let derived = run::derive(&ws, own, threads, self.sources)?;
        Ok(Common {
            identity: Identity {
                ws,
                secret: Secret::new(secret.as_bytes()),
                pid: self.pid.clone(),
                uid_prefix: self.uid_prefix.clone(),
                tags: tags.to_owned(),
                device: self.device.clone(),
                audience: None,
                kind: Kind::Client,
            },
            http: resolve_all(&self.http)?,
            secret,
            connections,
            threads: derived.threads,
            concurrency: self.concurrency.div_ceil(part.count as usize),
            rate: self.connect_rate / part.count as f64,
            timeout_ns: nanoseconds("--timeout", self.timeout)?,
            sources: derived.sources,
            first_user: self.first_user + users_before,
            pin: self.pin.as_deref().map_or(Ok(Vec::new()), |list| numbers("--pin", list))?,
            progress: !self.json && !part.is_child() && std::io::stderr().is_terminal(),
            // The parent reads the server's figures.
            server_pid: self.pid_of_server.filter(|_| !part.is_child()),
            part,
            // One run is one process: this is never freed, and every thread may keep it.
            metrics,
            thresholds: Thresholds::parse(self)?,
            needs_http: false,
            series: Mutex::new(None),
            live: Box::leak(Box::new(Live::new(derived.threads))),
        })
    }
}

/// Resolves the nodes of the business servers; `events` are the events that they receive.
pub fn business(servers: u64, ws: &str, events: &'static str) -> Result<Business, String> {
    if !(1..=100).contains(&servers) {
        return Err("--servers must be 1 to 100".to_owned());
    }
    Ok(Business { servers, ws: resolve_all(ws)?, events })
}

/// Rewrites `--a_b` as `--a-b`, and `--a=b` as two words.
pub fn fold(words: impl Iterator<Item = String>) -> Vec<String> {
    let mut folded = Vec::new();
    for word in words {
        match word.strip_prefix("--").map(|rest| rest.split_once('=').unwrap_or((rest, ""))) {
            Some((name, value)) => {
                folded.push(format!("--{}", name.replace('_', "-")));
                if word.contains('=') {
                    folded.push(value.to_owned());
                }
            }
            None => folded.push(word),
        }
    }
    folded
}

/// Resolves addresses separated by commas, at least one.
pub fn resolve_all(list: &str) -> Result<Vec<SocketAddrV4>, String> {
    list.split(',').map(|address| resolve(address.trim())).collect()
}

fn resolve(address: &str) -> Result<SocketAddrV4, String> {
    let found = address.to_socket_addrs().map_err(|error| format!("{address}: {error}"))?;
    found
        .filter_map(|address| match address {
            SocketAddr::V4(address) => Some(address),
            SocketAddr::V6(_) => None,
        })
        .next()
        .ok_or_else(|| format!("{address} has no IPv4 address"))
}

pub fn nanoseconds(option: &str, seconds: f64) -> Result<u64, String> {
    if !(0.0..=1e6).contains(&seconds) {
        return Err(format!("{option} {seconds} must be 0 to 1,000,000 seconds"));
    }
    Ok((seconds * 1e9) as u64)
}

/// Checks the rate given to a command.
pub fn check_rate(rate: Option<f64>) -> Result<(), String> {
    match rate {
        Some(rate) if !(rate > 0.0 && rate <= 1e9) => {
            Err(format!("--rate {rate} must be above 0 and at most 1e9"))
        }
        _ => Ok(()),
    }
}

pub fn numbers<T: std::str::FromStr>(option: &str, list: &str) -> Result<Vec<T>, String> {
    list.split(',')
        .map(|number| {
            number.trim().parse().map_err(|_| format!("{option}: {number} is not a number"))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn underscores_and_equals_signs_are_folded() {
        let words = ["x", "--a_b=c_d", "--e_f", "g_h", "--", "-1"].map(str::to_owned);
        let want = ["x", "--a-b", "c_d", "--e-f", "g_h", "--", "-1"];
        assert_eq!(fold(words.into_iter()), want);
    }

    #[test]
    fn lists_and_addresses() {
        assert_eq!(numbers::<u64>("--x", "1, 2").unwrap(), [1, 2]);
        assert!(numbers::<u64>("--x", "1,b").is_err());
        let both = resolve_all("127.0.0.1:80, 127.0.0.2:81").unwrap();
        assert_eq!(both.iter().map(SocketAddrV4::port).collect::<Vec<_>>(), [80, 81]);
        assert!(resolve_all("nowhere").is_err() && resolve_all("127.0.0.1:80,").is_err());
        assert!(nanoseconds("--x", -1.0).is_err() && nanoseconds("--x", f64::NAN).is_err());
    }
}
