//! Floor 4: arguments and environment to a [`Config`] that is complete, checked and immutable.
//!
//! Two steps, as in ripgrep: `RawArgs` is what was typed, every value still text; [`Config`] is
//! what it means. A wrong value names itself and the fix, and says whether it came from a flag or
//! from the environment.

mod projects_file;
mod raw_args;
mod setting;

use std::net::IpAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::str::FromStr;

use tracing_subscriber::EnvFilter;

use crate::state::projects::Projects;
use crate::types::{Limits, NodeId};

use raw_args::RawArgs;
use setting::Source;

pub use projects_file::{DEV_PID, DEV_SECRET, load_projects};

/// What a node runs with. Every value has been checked; nothing in it changes while it runs.
#[derive(Debug)]
pub struct Config {
    pub node: NodeId,
    /// The address that the WebSocket and the HTTP port are bound to.
    pub bind: IpAddr,
    /// 0 takes any free port; so do the other two.
    pub ws_port: u16,
    pub http_port: u16,
    pub prometheus_port: u16,
    pub queue: Queue,
    pub env: Env,
    /// Worker threads, 1 to 64.
    pub workers: usize,
    /// Whether each worker is pinned to a core.
    pub pin: bool,
    /// Open WebSocket connections of the whole node; beyond: 503.
    pub max_connections: usize,
    /// Open HTTP connections of one worker; beyond: 503.
    pub max_http_connections: usize,
    pub projects: Projects,
    /// Where `projects` was read from, for a reload; `None` for the built-in project of `dev`.
    pub projects_file: Option<PathBuf>,
    /// Whether a signed request without `exp` is refused.
    pub demand_exp: bool,
    /// How long a stopping node waits for its connections to leave.
    pub drain_ms: u64,
    /// Silence after which a WebSocket connection ends with 4002.
    pub idle_timeout_ms: u64,
    /// A request's head and body must have come whole by then; beyond: 408.
    pub request_timeout_ms: u64,
    /// How long an HTTP connection may wait for its next request.
    pub keep_alive_ms: u64,
    /// How long a closing connection waits for its peer's FIN.
    pub linger_ms: u64,
    pub limits: Limits,
    /// Unsent bytes of one connection; beyond: closed with 4000.
    pub outbox_bytes: usize,
    /// Unsent bytes of all connections of one worker; beyond: the largest is closed first.
    pub worker_outbox_bytes: usize,
    /// Whether clients get their own frames back; for measuring only, never in `prod`.
    pub echo: bool,
    /// A filter of `tracing`, already checked: `info`, `ws_cluster=debug,info`.
    pub log: String,
    /// What an operator should know at the start, one sentence each; to be logged, not fatal.
    pub warnings: Vec<String>,
}

/// What carries messages between nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Queue {
    /// No other node: the workers of this process alone.
    Local,
}

/// How strict the node is. `Test` behaves like `Dev`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Env {
    Dev,
    Test,
    Prod,
}

/// Why there is no [`Config`]; what is to be printed and the code to end with.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Exit {
    /// `--help`: standard output, code 0.
    #[error("{0}")]
    Help(String),
    /// `--version`: standard output, code 0.
    #[error("{0}")]
    Version(String),
    /// A wrong argument or projects file: standard error, code 2.
    #[error("ws-cluster: {0}")]
    Error(String),
}

impl Exit {
    pub fn code(&self) -> u8 {
        match self {
            Self::Help(_) | Self::Version(_) => 0,
            Self::Error(_) => 2,
        }
    }
}

const DAY_MS: u64 = 86_400_000;
const GIB: u64 = 1 << 30;

impl Config {
    /// `args` are those after the program's name; `env` looks up one variable of the environment.
    /// Reads the projects file if one is named.
    pub fn from_args(args: &[String], env: &dyn Fn(&str) -> Option<String>) -> Result<Self, Exit> {
        let raw = RawArgs::parse(args)?;
        if raw.version {
            return Err(Exit::Version(format!("ws-cluster {}\n", env!("CARGO_PKG_VERSION"))));
        }
        Self::resolve(&raw, &Source { env })
    }

    fn resolve(raw: &RawArgs, from: &Source<'_>) -> Result<Self, Exit> {
        let mut warnings = Vec::new();
        let env = from.get("env", &raw.env).parsed(Env::Dev, "an environment", Env::FIX, "dev")?;
        let echo = resolve_echo(raw, from, env)?;
        let projects_file = from.get("projects", &raw.projects).text.map(PathBuf::from);
        let projects = load_projects(projects_file.as_deref(), env, &mut warnings)?;
        let queue = from.get("queue", &raw.queue);
        let queue = queue.parsed(Queue::Local, "a queue", Queue::FIX, "local")?;
        let bind = resolve_bind(raw, from)?;
        let log = resolve_log(raw, from)?;
        let pin = from.get("pin", &raw.pin).flag(true)?;
        let ports = Ports::resolve(raw, from)?;
        let counts = Counts::resolve(raw, from)?;
        let ms = |flag, arg, default, least| {
            from.get(flag, arg).number("a time in milliseconds", default, least..=DAY_MS)
        };
        let drain_ms = ms("drain_ms", &raw.drain_ms, 10_000, 0)?;
        let idle_timeout_ms = ms("idle_timeout_ms", &raw.idle_timeout_ms, 120_000, 100)?;
        let request_timeout_ms = ms("request_timeout_ms", &raw.request_timeout_ms, 10_000, 100)?;
        let keep_alive_ms = ms("keep_alive_ms", &raw.keep_alive_ms, 75_000, 100)?;
        let linger_ms = ms("linger_ms", &raw.linger_ms, 2_000, 0)?;
        let sizes = Sizes::resolve(raw, from)?;

        Ok(Self {
            node: counts.node,
            bind,
            ws_port: ports.ws,
            http_port: ports.http,
            prometheus_port: ports.prometheus,
            queue,
            env,
            workers: counts.workers,
            pin,
            max_connections: counts.max_connections,
            max_http_connections: counts.max_http_connections,
            projects,
            projects_file,
            demand_exp: env == Env::Prod,
            drain_ms,
            idle_timeout_ms,
            request_timeout_ms,
            keep_alive_ms,
            linger_ms,
            limits: sizes.limits,
            outbox_bytes: sizes.outbox,
            worker_outbox_bytes: sizes.worker_outbox,
            echo,
            log,
            warnings,
        })
    }
}

fn resolve_echo(raw: &RawArgs, from: &Source<'_>, env: Env) -> Result<bool, Exit> {
    let echo = from.get("echo", &raw.echo.then(|| "true".into())).flag(false)?;
    if echo && env == Env::Prod {
        return Err(Exit::Error(
            "--echo is refused with --env prod: it is for measuring; leave it out, or use \
             --env test"
                .into(),
        ));
    }
    Ok(echo)
}

fn resolve_bind(raw: &RawArgs, from: &Source<'_>) -> Result<IpAddr, Exit> {
    from.get("bind", &raw.bind).parsed(
        IpAddr::from([0, 0, 0, 0]),
        "an IP address",
        "give an IPv4 or IPv6 address of this machine, or 0.0.0.0 for all",
        "127.0.0.1",
    )
}

fn resolve_log(raw: &RawArgs, from: &Source<'_>) -> Result<String, Exit> {
    let filter = from.get("log", &raw.log).parsed(
        LogFilter("info".into()),
        "a log filter",
        "give a level (error, warn, info, debug, trace) or target=level pairs",
        "info,ws_cluster=debug",
    )?;
    Ok(filter.0)
}

/// The ports, each its own.
struct Ports {
    ws: u16,
    http: u16,
    prometheus: u16,
}

impl Ports {
    fn resolve(raw: &RawArgs, from: &Source<'_>) -> Result<Self, Exit> {
        let port = |flag, arg, default: u16| {
            from.get(flag, arg).number("a port", default.into(), 0..=65_535).map(|n| n as u16)
        };
        let ws = port("ws_port", &raw.ws_port, 8812)?;
        let http = port("http_port", &raw.http_port, 8912)?;
        let prometheus = port("prometheus_port", &raw.prometheus_port, 9091)?;
        distinct_ports(&[("ws_port", ws), ("http_port", http), ("prometheus_port", prometheus)])?;
        Ok(Self { ws, http, prometheus })
    }
}

/// What is counted in pieces.
struct Counts {
    node: NodeId,
    workers: usize,
    max_connections: usize,
    max_http_connections: usize,
}

impl Counts {
    fn resolve(raw: &RawArgs, from: &Source<'_>) -> Result<Self, Exit> {
        let connections = |flag, arg, default, max| {
            from.get(flag, arg).number("a number of connections", default, 1..=max)
        };
        let node = from.get("node", &raw.node).number("a node number", 1, 0..=NodeId::MAX.into());
        let workers = from.get("workers", &raw.workers);
        let workers = workers.number("a number of workers", default_workers(), 1..=64);
        let open = connections("max_connections", &raw.max_connections, 1_000_000, 100_000_000);
        let http =
            connections("max_http_connections", &raw.max_http_connections, 10_000, 1_000_000);
        Ok(Self {
            node: NodeId::new(node? as u16).unwrap_or_default(),
            workers: workers? as usize,
            max_connections: open? as usize,
            max_http_connections: http? as usize,
        })
    }
}

/// What is counted in bytes.
struct Sizes {
    limits: Limits,
    outbox: usize,
    worker_outbox: usize,
}

impl Sizes {
    fn resolve(raw: &RawArgs, from: &Source<'_>) -> Result<Self, Exit> {
        let size = |flag, arg, default, range| {
            from.get(flag, arg).size(default, range).map(|bytes| bytes as usize)
        };
        let limits = Limits {
            message_bytes: size("max_message_bytes", &raw.max_message_bytes, 65_536, 128..=GIB)?,
            body_bytes: size("max_body_bytes", &raw.max_body_bytes, 1_048_576, 1_024..=GIB)?,
            ..Limits::default()
        };
        let outbox = size("outbox_bytes", &raw.outbox_bytes, 1_048_576, 4_096..=GIB)?;
        let range = 4_096..=1_024 * GIB;
        let worker_outbox =
            size("worker_outbox_bytes", &raw.worker_outbox_bytes, 268_435_456, range)?;
        if worker_outbox < outbox {
            return Err(Exit::Error(format!(
                "--worker_outbox_bytes {worker_outbox} is below --outbox_bytes {outbox}: one \
                 connection would use up its worker; give --worker_outbox_bytes at least that \
                 much"
            )));
        }
        Ok(Self { limits, outbox, worker_outbox })
    }
}

fn default_workers() -> u64 {
    let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get) as u64;
    cores.saturating_sub(1).clamp(1, 64)
}

fn distinct_ports(ports: &[(&str, u16)]) -> Result<(), Exit> {
    for (index, (flag, port)) in ports.iter().enumerate() {
        let earlier = ports[..index].iter().find(|(_, other)| *port != 0 && other == port);
        if let Some((other, _)) = earlier {
            return Err(Exit::Error(format!(
                "--{other} and --{flag} are both {port}: give each its own port, e.g. --{flag} {}",
                port.checked_add(100).unwrap_or(0)
            )));
        }
    }
    Ok(())
}

impl Queue {
    const FIX: &str = "give local";
}

impl FromStr for Queue {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        if text == "local" { Ok(Self::Local) } else { Err(()) }
    }
}

impl Env {
    const FIX: &str = "give dev, test or prod";
}

impl FromStr for Env {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "dev" => Ok(Self::Dev),
            "test" => Ok(Self::Test),
            "prod" => Ok(Self::Prod),
            _ => Err(()),
        }
    }
}

struct LogFilter(String);

impl FromStr for LogFilter {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        EnvFilter::builder().parse(text).map(|_| Self(text.into())).map_err(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::setting::parse_size;
    use super::*;

    fn config(line: &str) -> Result<Config, Exit> {
        config_with(line, &[])
    }

    fn config_with(line: &str, env: &[(&str, &str)]) -> Result<Config, Exit> {
        let args: Vec<String> = line.split_whitespace().map(String::from).collect();
        Config::from_args(&args, &|name| {
            env.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).into())
        })
    }

    fn error(result: Result<Config, Exit>) -> String {
        let exit = result.unwrap_err();
        assert_eq!(exit.code(), 2, "{exit}");
        exit.to_string()
    }

    #[test]
    fn defaults() {
        let config = config("").unwrap();
        assert_eq!(config.node.value(), 1);
        assert_eq!((config.ws_port, config.http_port, config.prometheus_port), (8812, 8912, 9091));
        assert_eq!(config.bind, IpAddr::from([0, 0, 0, 0]));
        assert_eq!((config.queue, config.env), (Queue::Local, Env::Dev));
        assert!((1..=64).contains(&config.workers) && config.pin && !config.echo);
        assert_eq!((config.max_connections, config.max_http_connections), (1_000_000, 10_000));
        assert_eq!((config.drain_ms, config.idle_timeout_ms), (10_000, 120_000));
        assert_eq!((config.request_timeout_ms, config.keep_alive_ms), (10_000, 75_000));
        assert_eq!(config.linger_ms, 2_000);
        assert_eq!(config.limits, Limits::default());
        assert_eq!((config.outbox_bytes, config.worker_outbox_bytes), (1 << 20, 256 << 20));
        assert_eq!(config.log, "info");
        assert!(!config.demand_exp && config.warnings.is_empty());
        assert!(config.projects_file.is_none());
        let (_, project) = config.projects.find("1").unwrap();
        assert_eq!((project.secrets.len(), config.projects.len()), (1, 1));
        assert!(project.allowed_origins.is_none());
    }

    #[test]
    fn the_seeds_line_works_in_every_spelling() {
        for line in [
            "--node 200 --ws_port 8812 --http_port 8912 --queue local --env dev",
            "--node 200 --ws-port 8812 --http-port 8912 --queue local --env dev",
            "--node=200 --ws_port=8812 --http-port=8912 --queue=local --env=dev",
        ] {
            let config = config(line).unwrap();
            assert_eq!((config.node.value(), config.ws_port, config.http_port), (200, 8812, 8912));
        }
    }

    #[test]
    fn every_flag_is_taken() {
        let config = config(
            "--node 0 --ws_port 0 --http_port 0 --prometheus_port 0 --bind ::1 --queue local \
             --env test --workers 64 --pin false --max_connections 5 --max_http_connections 6 \
             --drain_ms 0 --idle_timeout_ms 100 --request_timeout_ms 200 --keep_alive_ms 300 \
             --linger_ms 0 --max_message_bytes 1k --max_body_bytes 2MiB --outbox_bytes 8K \
             --worker_outbox_bytes 1G --echo --log ws_cluster=debug,info",
        )
        .unwrap();
        assert_eq!((config.node.value(), config.ws_port, config.http_port), (0, 0, 0));
        assert_eq!((config.prometheus_port, config.bind.to_string()), (0, "::1".into()));
        assert_eq!((config.env, config.workers, config.pin), (Env::Test, 64, false));
        assert_eq!((config.max_connections, config.max_http_connections), (5, 6));
        assert_eq!((config.drain_ms, config.idle_timeout_ms), (0, 100));
        assert_eq!((config.request_timeout_ms, config.keep_alive_ms), (200, 300));
        assert_eq!((config.linger_ms, config.limits.message_bytes), (0, 1 << 10));
        assert_eq!(config.limits.body_bytes, 2 << 20);
        assert_eq!((config.outbox_bytes, config.worker_outbox_bytes), (8 << 10, 1 << 30));
        assert!(config.echo && !config.demand_exp && config.projects.find("1").is_some());
        assert_eq!(config.log, "ws_cluster=debug,info");
    }

    #[test]
    fn the_environment_counts_where_no_flag_was_given() {
        let env = [("WS_CLUSTER_WS_PORT", "1"), ("WS_CLUSTER_NODE", "7"), ("WS_CLUSTER_LOG", "")];
        let config = config_with("--ws_port 2", &env).unwrap();
        assert_eq!((config.ws_port, config.node.value(), &*config.log), (2, 7, "info"));
        assert!(config_with("", &[("WS_CLUSTER_ECHO", "true")]).unwrap().echo);
        assert!(!config_with("--echo=false", &[]).unwrap().echo);
        assert!(!config_with("", &[("WS_CLUSTER_PIN", "0")]).unwrap().pin);
        assert_eq!(
            error(config_with("", &[("WS_CLUSTER_WS_PORT", "abc")])),
            "ws-cluster: WS_CLUSTER_WS_PORT 'abc' is not a port: give a number from 0 to 65535, \
             e.g. WS_CLUSTER_WS_PORT=8812"
        );
        assert_eq!(
            error(config_with("", &[("WS_CLUSTER_QUEUE", "redis")])),
            "ws-cluster: WS_CLUSTER_QUEUE=redis comes with a later version: use \
             WS_CLUSTER_QUEUE=local"
        );
    }

    #[test]
    fn help_and_version_end_with_0() {
        for line in ["-h", "--help", "--ws_port 1 --help"] {
            let exit = config(line).unwrap_err();
            assert!(matches!(exit, Exit::Help(_)) && exit.code() == 0);
            let text = exit.to_string();
            for part in ["--worker-outbox-bytes", "WS_CLUSTER_WS_PORT", "[[project]]", "--ws_port"]
            {
                assert!(text.contains(part), "{part} in {text}");
            }
        }
        let exit = config("--version").unwrap_err();
        assert_eq!(exit.code(), 0);
        assert_eq!(exit.to_string(), format!("ws-cluster {}\n", env!("CARGO_PKG_VERSION")));
    }

    #[test]
    fn every_wrong_value_names_itself_and_the_fix() {
        let ms = "a time in milliseconds: give a number from";
        for (flag, bad, what) in [
            ("node", "1024", "a node number: give a number from 0 to 1023, e.g. --node 1"),
            ("node", "-1", "a node number: give a number from 0 to 1023, e.g. --node 1"),
            ("ws_port", "abc", "a port: give a number from 0 to 65535, e.g. --ws_port 8812"),
            ("ws_port", "+1", "a port: give a number from 0 to 65535, e.g. --ws_port 8812"),
            ("http_port", "65536", "a port: give a number from 0 to 65535, e.g. --http_port 8912"),
            ("prometheus_port", "9e3", "a port: give a number from 0 to 65535, e.g. --p"),
            ("bind", "localhost", "an IP address: give an IPv4 or IPv6 address"),
            ("queue", "kafka", "a queue: give local, e.g. --queue local"),
            ("env", "staging", "an environment: give dev, test or prod, e.g. --env dev"),
            ("env", "Prod", "an environment: give dev, test or prod, e.g. --env dev"),
            ("workers", "0", "a number of workers: give a number from 1 to 64"),
            ("workers", "65", "a number of workers: give a number from 1 to 64"),
            ("pin", "yes", "true or false: give one of the two, e.g. --pin true"),
            ("max_connections", "1M", "a number of connections: give a number from 1 to"),
            ("max_http_connections", "0", "a number of connections: give a number from 1 to"),
            ("drain_ms", "10s", &format!("{ms} 0 to 86400000, e.g. --drain_ms 10000")),
            ("idle_timeout_ms", "99", &format!("{ms} 100 to 86400000, e.g. --idle")),
            ("request_timeout_ms", "0", &format!("{ms} 100 to 86400000, e.g. --request")),
            ("keep_alive_ms", "1.5", &format!("{ms} 100 to 86400000, e.g. --keep_alive_ms 75000")),
            ("linger_ms", "86400001", &format!("{ms} 0 to 86400000, e.g. --linger_ms 2000")),
            ("max_message_bytes", "127", "a size: give bytes from 128 to 1073741824, or a number"),
            ("max_body_bytes", "2G", "a size: give bytes from 1024 to 1073741824, or a number"),
            ("outbox_bytes", "1KB", "a size: give bytes from 4096 to 1073741824, or a number"),
            ("worker_outbox_bytes", "99999999999G", "a size: give bytes from 4096 to"),
            ("log", "info=loud", "a log filter: give a level"),
        ] {
            let text = error(config(&format!("--{flag} {bad}")));
            let wanted = format!("ws-cluster: --{flag} '{bad}' is not {what}");
            assert!(text.starts_with(&wanted), "{text}\n{wanted}");
        }
        let text = error(config("--echo=loud"));
        assert!(text.starts_with("ws-cluster: --echo 'loud' is not true or false"), "{text}");
        let text = error(config("--projects /nowhere/p.toml"));
        assert!(text.starts_with("ws-cluster: --projects '/nowhere/p.toml' cannot be"), "{text}");
    }

    #[test]
    fn unknown_and_broken_arguments() {
        for (line, part) in [
            ("--nope 1", "Unrecognized argument: --nope"),
            ("stray", "Unrecognized argument: stray"),
            ("--ws_port", "No value provided for option '--ws-port'"),
            ("--node 1 --node 2", "'--node'"),
        ] {
            let text = error(config(line));
            assert!(text.starts_with("ws-cluster: ") && text.contains(part), "{text}");
            assert!(text.ends_with(": ws-cluster --help lists the arguments"), "{text}");
        }
    }

    #[test]
    fn values_that_contradict_each_other() {
        assert_eq!(
            error(config("--queue redis")),
            "ws-cluster: --queue redis comes with a later version: use --queue local"
        );
        let text = error(config("--queue redis-stream"));
        assert!(text.contains("--queue redis-stream comes with a later version"), "{text}");
        assert_eq!(
            error(config("--http_port 8812")),
            "ws-cluster: --ws_port and --http_port are both 8812: give each its own port, e.g. \
             --http_port 8912"
        );
        let text = error(config("--outbox_bytes 2M --worker_outbox_bytes 1M"));
        assert!(text.contains("give --worker_outbox_bytes at least that much"), "{text}");
        let text = error(config("--env prod --echo"));
        assert!(text.starts_with("ws-cluster: --echo is refused with --env prod"), "{text}");
        let text = error(config("--env prod"));
        assert!(text.starts_with("ws-cluster: --env prod needs a projects file"), "{text}");
    }

    #[test]
    fn prod_demands_exp_and_warns() {
        let file = std::env::temp_dir().join(format!("ws-cluster-{}.toml", std::process::id()));
        let text = "[[project]]\npid = 'shop'\nsecrets = ['short', 'dev-secret', \
                    '0123456789abcdef']\n[[project]]\npid = 'ok'\nsecrets = \
                    ['0123456789abcdef']\nallowed_origins = []\n";
        std::fs::write(&file, text).unwrap();
        let config = config(&format!("--env prod --projects {}", file.display()));
        std::fs::remove_file(&file).unwrap();
        let config = config.unwrap();
        assert!(config.demand_exp && config.projects.find("1").is_none());
        assert_eq!(config.projects_file.as_deref(), Some(&*file));
        let starts = [
            "project 'shop' has no allowed_origins",
            "secret 1 of project 'shop' is shorter than 16 bytes",
            "secret 2 of project 'shop' is the published dev-secret",
        ];
        assert_eq!(config.warnings.len(), starts.len(), "{:?}", config.warnings);
        for (warning, start) in config.warnings.iter().zip(starts) {
            assert!(warning.starts_with(start), "{warning}");
        }
        let debug = format!("{config:?}");
        assert!(!debug.contains("0123456789abcdef") && !debug.contains("'short'"), "{debug}");
    }

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("0", Some(0)),
            ("65536", Some(65_536)),
            ("64K", Some(65_536)),
            ("64kib", Some(65_536)),
            ("2M", Some(2 << 20)),
            ("3GiB", Some(3 << 30)),
            ("", None),
            ("K", None),
            ("-1", None),
            ("1.5M", None),
            ("1 M", None),
            ("1T", None),
            ("18446744073709551615G", None),
        ] {
            assert_eq!(parse_size(text), bytes, "{text}");
        }
    }
}
