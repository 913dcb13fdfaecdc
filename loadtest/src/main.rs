//! Load on a ws-cluster node, and figures about how it bears it.
//!
//! One thread is one event loop: edge-triggered epoll, one receive buffer, frames parsed where they
//! lie, no allocation per message, the clock read once per batch of events.

#![warn(clippy::unwrap_used, clippy::expect_used)]

mod business;
mod client;
mod connect;
mod events;
mod fanout;
mod frame;
mod http;
mod identity;
mod message;
mod report;
mod requests;
mod run;
mod server;
mod sign;
mod sys;
mod unicast;

use std::io::IsTerminal;
use std::net::{SocketAddr, SocketAddrV4, ToSocketAddrs};
use std::process::ExitCode;

use argh::{EarlyExit, FromArgs};

use business::Business;
use client::Closing;
use connect::Connect;
use fanout::Fanout;
use identity::{Identity, Kind};
use report::Report;
use requests::Requests;
use run::Common;
use unicast::Unicast;

/// Load on a ws-cluster node: signed connects, fan-out to many, pushes to one, requests to business
/// servers and events to them, memory per connection.
///
/// Everything is checked while it is measured: each message carries a sequence number, and any that
/// is lost, doubled or (where the order is promised) out of order makes the exit code 1.
/// Server and tool on different cores, or the figures are about their fight for one:
/// start the server under `taskset -c 0` and the tool with `--pin 1`. Where the report says
/// tool_was_bottleneck, the server could do more.
#[derive(FromArgs)]
#[argh(example = "{command_name} connect --connections 10000 --rate 5000 --hold 30
{command_name} connect --cycle --seconds 5 --concurrency 64 --pin 1
{command_name} connect --memory-at 9000,19000 --pid-of-server $(pidof ws-cluster)
{command_name} fanout --connections 10000 --bytes 128 --outstanding 4 --seconds 10 --pin 1
{command_name} unicast --pushers 8 --seconds 10 --json
{command_name} unicast --pushers 1 --await-delivery --http a:8912 --ws b:8812
{command_name} unicast --pushers 64 --rate 20000 --users 1000 --seconds 10
{command_name} requests --clients 64 --seconds 10 --pin 1
{command_name} requests --clients 1 --ws a:8812 --server-ws b:8812
{command_name} events --connections 10000 --servers 2 --ws a:8812 --server-ws a:8812,b:8812")]
#[argh(error_code(1, "something failed, was lost, doubled or out of order; or a wrong option"))]
struct Arguments {
    #[argh(subcommand)]
    command: Command,
}

#[derive(FromArgs)]
#[argh(subcommand)]
enum Command {
    Connect(ConnectArguments),
    Fanout(FanoutArguments),
    Unicast(UnicastArguments),
    Requests(RequestsArguments),
    Events(EventsArguments),
}

/// A subcommand with its own options and the common ones: argh cannot flatten a struct into
/// another.
macro_rules! subcommand {
    (
        $(#[$about:meta])*
        struct $name:ident {
            $( $(#[$option:meta])* $field:ident: [$($kind:tt)+], )*
        }
    ) => {
        #[derive(FromArgs)]
        $(#[$about])*
        struct $name {
            $( $(#[$option])* $field: $($kind)+, )*

            /// the node's WebSocket port, host:port (127.0.0.1:8812)
            #[argh(option, default = "\"127.0.0.1:8812\".to_owned()")]
            ws: String,

            /// the node's HTTP port, host:port (127.0.0.1:8912)
            #[argh(option, default = "\"127.0.0.1:8912\".to_owned()")]
            http: String,

            /// the project (1)
            #[argh(option, default = "\"1\".to_owned()")]
            pid: String,

            /// the project's secret (the environment's WS_CLUSTER_SECRET, else dev-secret)
            #[argh(option)]
            secret: Option<String>,

            /// what uids begin with; a number follows (u)
            #[argh(option, default = "\"u\".to_owned()")]
            uid_prefix: String,

            /// the number of the first user (0); tools that run at once need different ones
            #[argh(option, default = "0")]
            first_user: u64,

            /// the device told at connect (none)
            #[argh(option, default = "String::new()")]
            device: String,

            /// connects on their way at once, over all threads (64)
            #[argh(option, default = "64")]
            concurrency: usize,

            /// connects per second, over all threads (as many as go)
            #[argh(option, default = "0.0")]
            connect_rate: f64,

            /// seconds after which a connect has failed or a message is lost (5)
            #[argh(option, default = "5.0")]
            timeout: f64,

            /// threads, each with its own table of open files (as many as the limit of open files
            /// makes necessary)
            #[argh(option)]
            threads: Option<usize>,

            /// cores for the threads, such as 1 or 2,3 (not pinned)
            #[argh(option)]
            pin: Option<String>,

            /// source addresses 127.0.0.1, .2 and so on to rotate over (32 or more)
            #[argh(option)]
            sources: Option<usize>,

            /// process id of the server on this machine: its CPU time, and its memory where asked
            #[argh(option)]
            pid_of_server: Option<u32>,

            /// print one JSON object, and no progress
            #[argh(switch)]
            json: bool,
        }

        impl $name {
            /// Checks the common options. `tags` are those of the connections.
            fn common(&self, connections: u64, tags: &str) -> Result<Common, String> {
                let ws = resolve(&self.ws)?;
                let secret = match &self.secret {
                    Some(secret) => secret.clone(),
                    None => std::env::var("WS_CLUSTER_SECRET")
                        .unwrap_or_else(|_| "dev-secret".to_owned()),
                };
                if self.concurrency == 0 || self.threads == Some(0) {
                    return Err("--concurrency and --threads begin at 1".to_owned());
                }
                if self.uid_prefix.contains(['"', '\\', ',']) {
                    return Err("--uid-prefix: no quotes, backslashes or commas".to_owned());
                }
                let derived = run::derive(ws, connections, self.threads, self.sources)?;
                Ok(Common {
                    identity: Identity {
                        ws: vec![ws],
                        signer: run::signer(&secret)?,
                        pid: self.pid.clone(),
                        uid_prefix: self.uid_prefix.clone(),
                        tags: tags.to_owned(),
                        device: self.device.clone(),
                        kind: Kind::Client,
                    },
                    http: resolve(&self.http)?,
                    secret,
                    connections,
                    threads: derived.threads,
                    concurrency: self.concurrency,
                    rate: self.connect_rate,
                    timeout_ns: nanoseconds("--timeout", self.timeout)?,
                    sources: derived.sources,
                    first_user: self.first_user,
                    pin: self.pin.as_deref().map_or(Ok(Vec::new()), |list| numbers("--pin", list))?,
                    progress: !self.json && std::io::stderr().is_terminal(),
                    server_pid: self.pid_of_server,
                })
            }
        }
    };
}

subcommand! {
    /// Opens signed connections, each its own user, and checks every welcome. Reports connects per
    /// second and the time from TCP connect to welcome; with --cycle as many connects as go; with
    /// --memory-at what a connection costs the server.
    #[argh(subcommand, name = "connect")]
    struct ConnectArguments {
        /// how many connections (1000; the last of --memory-at)
        #[argh(option)]
        connections: [Option<u64>],

        /// connects per second, over all threads (as many as go); the same as --connect-rate
        #[argh(option)]
        rate: [Option<f64>],

        /// seconds to keep all of them open after the last welcome (0)
        #[argh(option, default = "0.0")]
        hold: [f64],

        /// tags told at connect, separated by commas (none)
        #[argh(option, default = "String::new()")]
        tags: [String],

        /// open, wait for the welcome, close at once, again and again; a connect counts when its
        /// welcome arrived
        #[argh(switch)]
        cycle: [bool],

        /// how --cycle closes: clean (Close frame, the server closes first), fin, reset (clean)
        #[argh(option, default = "\"clean\".to_owned()")]
        close: [String],

        /// how long --cycle goes on (10)
        #[argh(option, default = "10.0")]
        seconds: [f64],

        /// read the server's memory with this many connections open, such as 9000,19000, and
        /// report the slope; needs --pid-of-server
        #[argh(option)]
        memory_at: [Option<String>],
    }
}

subcommand! {
    /// Pushes messages that every connection gets. A message is complete when all of them have it;
    /// then the next one is pushed, over one pipelined HTTP connection.
    #[argh(subcommand, name = "fanout")]
    struct FanoutArguments {
        /// how many connections (1000)
        #[argh(option, default = "1000")]
        connections: [u64],

        /// size of the WebSocket payload, the whole push object with an id of 19 digits; at least
        /// 84 (128)
        #[argh(option, default = "128")]
        bytes: [usize],

        /// messages in flight, 1 to 32 (1)
        #[argh(option, default = "1")]
        outstanding: [usize],

        /// how long to push, after the warm-up (10)
        #[argh(option, default = "10.0")]
        seconds: [f64],

        /// seconds of pushing before anything is measured (0.5); losses count there too
        #[argh(option, default = "0.5")]
        warmup: [f64],

        /// end after this many messages, the warm-up's included
        #[argh(option)]
        messages: [Option<u32>],

        /// the tag that connections have and messages go to (load)
        #[argh(option, default = "\"load\".to_owned()")]
        tag: [String],

        /// push to the whole project instead of the tag
        #[argh(switch)]
        project: [bool],
    }
}

subcommand! {
    /// Pushes messages to one user each over keep-alive HTTP connections with one request on its
    /// way each, or with as many as --pipeline says. With --rate a push that is late counts from
    /// when it was meant to be sent in intended_to_answer_us, and from when it was sent in the
    /// other latencies.
    #[argh(subcommand, name = "unicast")]
    struct UnicastArguments {
        /// HTTP connections that push (8)
        #[argh(option, default = "8")]
        pushers: [usize],

        /// requests on their way on each of them, written before the first answer (1)
        #[argh(option, default = "1")]
        pipeline: [usize],

        /// a push is over when it is answered and its message has arrived (when it is answered)
        #[argh(switch)]
        await_delivery: [bool],

        /// users with one connection each, pushed to in turn (1)
        #[argh(option, default = "1")]
        users: [u64],

        /// pushes per second over all pushers (each pushes as soon as its last push is over)
        #[argh(option)]
        rate: [Option<f64>],

        /// size of the WebSocket payload, the whole push object with an id of 19 digits; at least
        /// 84 (128)
        #[argh(option, default = "128")]
        bytes: [usize],

        /// how long to push, after the warm-up (10)
        #[argh(option, default = "10.0")]
        seconds: [f64],

        /// seconds of pushing before anything is measured (0.5); losses count there too
        #[argh(option, default = "0.5")]
        warmup: [f64],

        /// tags told at connect, separated by commas (none)
        #[argh(option, default = "String::new()")]
        tags: [String],
    }
}

subcommand! {
    /// Clients send requests and business servers answer them, both on this side, in one thread.
    /// Every request gets exactly one answer, its own, or the run fails. With --rate a request that
    /// is late counts from when it was meant to be sent in intended_to_answer_us.
    #[argh(subcommand, name = "requests")]
    struct RequestsArguments {
        /// clients, each one connection and one user (8)
        #[argh(option, default = "8")]
        clients: [u64],

        /// business servers, each one connection (1)
        #[argh(option, default = "1")]
        servers: [u64],

        /// the nodes that they connect to in turn, host:port, separated by commas (as --ws)
        #[argh(option)]
        server_ws: [Option<String>],

        /// requests on their way on each client, sent before the first answer (1)
        #[argh(option, default = "1")]
        outstanding: [usize],

        /// requests per second over all clients (each asks as soon as it is answered)
        #[argh(option)]
        rate: [Option<f64>],

        /// size of a request's WebSocket payload; at least 76 (128)
        #[argh(option, default = "128")]
        bytes: [usize],

        /// how long to ask, after the warm-up (10)
        #[argh(option, default = "10.0")]
        seconds: [f64],

        /// seconds of asking before anything is measured (0.5); losses count there too
        #[argh(option, default = "0.5")]
        warmup: [f64],
    }
}

subcommand! {
    /// Opens clients in a storm while business servers listen for connect and disconnect, then
    /// closes all of them. Every server hears of each client's connect once, and then of its
    /// disconnect once, or the run fails. welcome_to_event_us is exact with --connect-rate; in a
    /// storm both are often read at once, and are 0 apart.
    #[argh(subcommand, name = "events")]
    struct EventsArguments {
        /// how many clients (1000)
        #[argh(option, default = "1000")]
        connections: [u64],

        /// business servers, each one connection; all are welcome before the first client
        /// connects (1)
        #[argh(option, default = "1")]
        servers: [u64],

        /// the nodes that they connect to in turn, host:port, separated by commas (as --ws)
        #[argh(option)]
        server_ws: [Option<String>],

        /// tags told at connect, separated by commas (none)
        #[argh(option, default = "String::new()")]
        tags: [String],
    }
}

fn main() -> ExitCode {
    let arguments = fold(std::env::args());
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (program, rest) = words.split_first().unwrap_or((&"loadtest", &[]));
    let command = match Arguments::from_args(&[program], rest) {
        Ok(arguments) => arguments.command,
        Err(EarlyExit { output, status: Ok(()) }) => {
            println!("{output}");
            return ExitCode::SUCCESS;
        }
        Err(EarlyExit { output, status: Err(()) }) => {
            eprintln!("{output}Run {program} --help for more.");
            return ExitCode::FAILURE;
        }
    };
    sys::catch_interrupts();
    let (json, result) = match command {
        Command::Connect(arguments) => (arguments.json, run_connect(&arguments)),
        Command::Fanout(arguments) => (arguments.json, run_fanout(&arguments)),
        Command::Unicast(arguments) => (arguments.json, run_unicast(&arguments)),
        Command::Requests(arguments) => (arguments.json, run_requests(&arguments)),
        Command::Events(arguments) => (arguments.json, run_events(&arguments)),
    };
    match result {
        Ok(report) => {
            println!("{}", if json { report.to_json() } else { report.to_text() });
            if report.failed() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
        }
        Err(error) => {
            eprintln!("loadtest: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run_connect(arguments: &ConnectArguments) -> Result<Report, String> {
    let memory_at: Vec<u64> = match &arguments.memory_at {
        None => Vec::new(),
        Some(list) => numbers("--memory-at", list)?,
    };
    if !memory_at.is_sorted() || memory_at.first() == Some(&0) {
        return Err("--memory-at: growing counts above 0".to_owned());
    }
    if !memory_at.is_empty() && (arguments.pid_of_server.is_none() || arguments.cycle) {
        return Err("--memory-at goes with --pid-of-server and without --cycle".to_owned());
    }
    let last = memory_at.last().copied();
    let connections = match arguments.cycle {
        true => arguments.concurrency as u64,
        false => last.or(arguments.connections).unwrap_or(1000),
    };
    let closing = match arguments.close.as_str() {
        "clean" => Closing::Clean,
        "fin" => Closing::Fin,
        "reset" => Closing::Reset,
        other => return Err(format!("--close {other}: clean, fin or reset")),
    };
    let mut common = arguments.common(connections, &arguments.tags)?;
    common.rate = arguments.rate.unwrap_or(common.rate);
    let cycle_ns = nanoseconds("--seconds", arguments.seconds)?;
    let settings = Connect {
        hold_ns: nanoseconds("--hold", arguments.hold)?,
        cycle: arguments.cycle.then_some((closing, cycle_ns)),
        memory_at,
    };
    connect::run(&common, &settings)
}

fn run_fanout(arguments: &FanoutArguments) -> Result<Report, String> {
    if !(1..=fanout::MAX_OUTSTANDING).contains(&arguments.outstanding) {
        return Err(format!("--outstanding: 1 to {}", fanout::MAX_OUTSTANDING));
    }
    let tag = (!arguments.project).then(|| arguments.tag.clone());
    let common = arguments.common(arguments.connections, tag.as_deref().unwrap_or(""))?;
    nanoseconds("--seconds", arguments.seconds)?;
    nanoseconds("--warmup", arguments.warmup)?;
    let settings = Fanout {
        bytes: arguments.bytes,
        outstanding: arguments.outstanding,
        seconds: arguments.seconds,
        warmup_seconds: arguments.warmup,
        messages: arguments.messages,
        tag,
    };
    fanout::run(&common, &settings)
}

fn run_unicast(arguments: &UnicastArguments) -> Result<Report, String> {
    let common = arguments.common(arguments.users, &arguments.tags)?;
    let threads = common.threads as u64;
    if arguments.users < threads || (arguments.pushers as u64) < threads {
        return Err(format!("{threads} threads need as many --users and --pushers"));
    }
    if arguments.pushers > 10_000 {
        return Err("--pushers: 10,000 at most".to_owned());
    }
    if !(1..=1_000).contains(&arguments.pipeline) {
        return Err("--pipeline: 1 to 1,000".to_owned());
    }
    if arguments.rate.is_some_and(|rate| rate.is_nan() || rate <= 0.0) {
        return Err("--rate: above 0".to_owned());
    }
    nanoseconds("--seconds", arguments.seconds)?;
    nanoseconds("--warmup", arguments.warmup)?;
    let settings = Unicast {
        pushers: arguments.pushers,
        pipeline: arguments.pipeline,
        await_delivery: arguments.await_delivery,
        rate: arguments.rate,
        bytes: arguments.bytes,
        seconds: arguments.seconds,
        warmup_seconds: arguments.warmup,
    };
    unicast::run(&common, &settings)
}

fn run_requests(arguments: &RequestsArguments) -> Result<Report, String> {
    let common = arguments.common(arguments.clients, "")?;
    if common.threads > 1 {
        return Err("requests: one thread, in which clients and servers take turns".to_owned());
    }
    if !(1..=10_000).contains(&arguments.clients) {
        return Err("--clients: 1 to 10,000".to_owned());
    }
    if !(1..=1_000).contains(&arguments.outstanding) {
        return Err("--outstanding: 1 to 1,000".to_owned());
    }
    if arguments.rate.is_some_and(|rate| rate.is_nan() || rate <= 0.0) {
        return Err("--rate: above 0".to_owned());
    }
    nanoseconds("--seconds", arguments.seconds)?;
    nanoseconds("--warmup", arguments.warmup)?;
    let ws = arguments.server_ws.as_deref().unwrap_or(&arguments.ws);
    let settings = Requests {
        business: business(arguments.servers, ws, "request")?,
        outstanding: arguments.outstanding,
        rate: arguments.rate,
        bytes: arguments.bytes,
        seconds: arguments.seconds,
        warmup_seconds: arguments.warmup,
    };
    requests::run(&common, &settings)
}

fn run_events(arguments: &EventsArguments) -> Result<Report, String> {
    let common = arguments.common(arguments.connections, &arguments.tags)?;
    let ws = arguments.server_ws.as_deref().unwrap_or(&arguments.ws);
    events::run(&common, &business(arguments.servers, ws, "connect,disconnect")?)
}

fn business(servers: u64, ws: &str, events: &'static str) -> Result<Business, String> {
    if !(1..=100).contains(&servers) {
        return Err("--servers: 1 to 100".to_owned());
    }
    let ws = ws.split(',').map(resolve).collect::<Result<_, _>>()?;
    Ok(Business { servers, ws, events })
}

/// `--a_b` becomes `--a-b`, and `--a=b` becomes two words.
fn fold(words: impl Iterator<Item = String>) -> Vec<String> {
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

fn resolve(address: &str) -> Result<SocketAddrV4, String> {
    let found = address.to_socket_addrs().map_err(|error| format!("{address}: {error}"))?;
    found
        .filter_map(|address| match address {
            SocketAddr::V4(address) => Some(address),
            SocketAddr::V6(_) => None,
        })
        .next()
        .ok_or_else(|| format!("{address}: no IPv4 address"))
}

fn nanoseconds(option: &str, seconds: f64) -> Result<u64, String> {
    if !(0.0..=1e6).contains(&seconds) {
        return Err(format!("{option} {seconds}: 0 to 1,000,000 seconds"));
    }
    Ok((seconds * 1e9) as u64)
}

fn numbers<T: std::str::FromStr>(option: &str, list: &str) -> Result<Vec<T>, String> {
    list.split(',')
        .map(|number| number.trim().parse().map_err(|_| format!("{option}: {number}?")))
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
    fn options_are_parsed_with_underscores() {
        let words = ["connect", "--memory_at", "9,19", "--pid_of_server=7"].map(str::to_owned);
        let words = fold(words.into_iter());
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let arguments = Arguments::from_args(&["loadtest"], &words).unwrap();
        let Command::Connect(connect) = arguments.command else { panic!("not connect") };
        assert_eq!(connect.memory_at.as_deref(), Some("9,19"));
        assert_eq!(connect.pid_of_server, Some(7));
        let common = connect.common(19, "").unwrap();
        assert_eq!((common.threads, common.sources.len()), (1, 32));
    }

    #[test]
    fn lists_and_addresses() {
        assert_eq!(numbers::<u64>("--x", "1, 2").unwrap(), [1, 2]);
        assert!(numbers::<u64>("--x", "1,b").is_err());
        assert_eq!(resolve("127.0.0.1:80").unwrap().port(), 80);
        assert!(resolve("nowhere").is_err());
        assert!(nanoseconds("--x", -1.0).is_err() && nanoseconds("--x", f64::NAN).is_err());
    }
}
