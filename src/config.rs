//! Floor 5: resolves arguments, environment and config file to a [`Config`] that is complete,
//! checked and immutable.
//!
//! Two steps, as in ripgrep: `Arguments` and `ConfigFile` hold what was written, every value still
//! text; [`Config`] holds what it means. `flags` declares every flag once. An error about a value
//! names the value, the place where it was given, and the fix.

mod arguments;
mod bind;
mod config_file;
mod flags;
mod limits;
mod logs;
mod memory;
mod ops_hosts;
mod origin;
mod otel;
mod print;
mod projects_file;
mod queue;
mod setting;
mod variables;

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::str::FromStr;

use crate::ops::otel::OtelSettings;
use crate::ops::sentry::SentryDsn;
use crate::state::projects::Projects;
use crate::types::{Limits, NodeId, Routing, version};
use crate::wire::redis_url::RedisUrl;
use crate::wire::sign::Token;

use arguments::{Arguments, Command};
use bind::Binds;
use flags::Flag;
use queue::QueueSettings;
use setting::{Resolved, Source};

pub use bind::Bind;
pub use logs::{LogSettings, log_format};
pub use memory::Memory;
pub use projects_file::{DEV_PID, DEV_SECRET, load_projects};
pub use queue::Queue;

/// The configuration of a node. Every value has been checked; nothing changes while the node runs.
#[derive(Debug)]
pub struct Config {
    pub node: NodeId,
    /// The address of the WebSocket port.
    pub bind: Bind,
    /// The address of the HTTP port.
    pub http_bind: Bind,
    /// 0 takes any free port; this holds for the other two as well.
    pub ws_port: u16,
    pub http_port: u16,
    pub prometheus_port: u16,
    pub pprof_port: OpsPort,
    pub swagger_port: OpsPort,
    /// The address of those three ports.
    pub ops_bind: Bind,
    /// Host names accepted by them, besides that address and localhost.
    pub ops_hosts: Vec<String>,
    /// The token that requests to them must carry.
    pub ops_token: Option<Token>,
    pub queue: Queue,
    /// Only for [`Queue::Redis`], like all fields up to `idempotency_keys`.
    pub redis: RedisUrl,
    /// The prefix of the names of all channels and keys.
    pub redis_prefix: String,
    /// How long a push waits for the queue's answer; then 504.
    pub queue_timeout_ms: u64,
    pub routing: Routing,
    /// Whether the broker has its own thread; otherwise it shares the only worker's.
    pub broker_thread: bool,
    /// Idempotency keys of pushes that one worker remembers, so that it does not deliver one twice.
    pub idempotency_keys: usize,
    pub env: Env,
    /// Worker threads, 1 to 64.
    pub workers: usize,
    /// Whether each worker is pinned to a core.
    pub pin: bool,
    /// Maximum of open WebSocket connections of the whole node; above it, 503.
    pub max_connections: usize,
    /// Maximum of open HTTP connections of one worker; above it, 503.
    pub max_http_connections: usize,
    /// Maximum of incomplete handshakes of one worker; above it, the oldest gets 503.
    pub max_handshakes: usize,
    pub projects: Projects,
    /// The file of `projects`, for a reload; `None` for the built-in project of `dev`.
    pub projects_file: Option<PathBuf>,
    /// Whether a signed request without `exp` is refused.
    pub demand_exp: bool,
    /// How long a stopping node waits for its connections to leave.
    pub drain_ms: u64,
    /// Time without traffic in either direction after which a WebSocket connection is pinged.
    pub ping_interval_ms: u64,
    /// Silence after which a WebSocket connection ends with 4002.
    pub idle_timeout_ms: u64,
    /// Time within which a WebSocket message must arrive completely; then closed with 1008.
    pub message_timeout_ms: u64,
    /// Time within which a request's head and body must arrive completely; then 408.
    pub request_timeout_ms: u64,
    /// Time within which a WebSocket handshake must be answered; then 408 or 503.
    pub handshake_timeout_ms: u64,
    /// How long an HTTP connection may wait for its next request.
    pub keep_alive_ms: u64,
    /// How long a closing connection waits for its peer's FIN.
    pub linger_ms: u64,
    /// How long a worker holds a batch of pushes for more of them, in microseconds.
    pub coalesce_us: u64,
    pub limits: Limits,
    pub memory: Memory,
    /// Whether clients get their own frames back; for measurements only, never in `prod`.
    pub echo: bool,
    /// Where traces are sent; `None`: nowhere.
    pub otel: Option<OtelSettings>,
    pub logs: LogSettings,
    /// Where errors and panics are reported.
    pub sentry_dsn: Option<SentryDsn>,
    command: Command,
    /// Every flag with its effective value.
    resolved: Vec<Resolved>,
    /// Warnings for the operator, one sentence each; logged at the start, not fatal.
    pub warnings: Vec<String>,
}

/// How strict the node is. `Test` behaves like `Dev`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Env {
    Dev,
    Test,
    Prod,
}

/// Why there is no [`Config`]; holds what to print and determines the exit code.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Exit {
    /// The output of `--help` or `--version`: standard output, code 0.
    #[error("{0}")]
    Output(String),
    /// A wrong argument, config file or projects file: standard error, code 2.
    #[error("ws-cluster: {0}")]
    Error(String),
}

impl Exit {
    pub fn code(&self) -> u8 {
        match self {
            Self::Output(_) => 0,
            Self::Error(_) => 2,
        }
    }
}

const GIB: u64 = 1 << 30;

impl Config {
    /// Resolves the configuration. `args` are those after the program's name; `env` looks up an
    /// environment variable. Reads the config file and the projects file if they are named.
    pub fn from_args(args: &[String], env: &dyn Fn(&str) -> Option<String>) -> Result<Self, Exit> {
        let arguments = Arguments::parse(args)?;
        if arguments.command == Command::Version {
            return Err(Exit::Output(format!("ws-cluster {}\n", version::FULL)));
        }
        let source = Source::new(&arguments, env)?;
        let mut config = Self::resolve(&source)?;
        config.resolved = source.resolved();
        config.command = arguments.command;
        Ok(config)
    }

    fn resolve(from: &Source<'_>) -> Result<Self, Exit> {
        let mut warnings = Vec::new();
        let env = from.get(&flags::ENV).parsed()?;
        let echo = resolve_echo(from, env)?;
        let projects_file = from.get(&flags::PROJECTS).text.map(PathBuf::from);
        let limits = limits::resolve(from)?;
        let projects = load_projects(projects_file.as_deref(), env, &limits, &mut warnings)?;
        let Binds { ws: bind, http: http_bind } = Binds::resolve(from, env)?;
        bind::warn_of_dev_secret([&bind, &http_bind], env, &projects, &mut warnings);
        let (ops_bind, ops_hosts, ops_token) = resolve_ops(from, &mut warnings)?;
        let otel = otel::from_env(from.env(), &mut warnings);
        let logs = LogSettings::resolve(from, &mut warnings)?;
        let sentry_dsn = resolve_sentry(from, &mut warnings)?;
        let ports = Ports::resolve(from, [bind.ip, http_bind.ip, ops_bind.ip])?;
        let counts = Counts::resolve(from)?;
        let memory = Memory::resolve(from, counts.workers, &limits)?;
        let queue = QueueSettings::resolve(from, counts.workers, &mut warnings)?;
        queue.check_sizes(&limits)?;
        let times = Times::resolve(from)?;

        Ok(Self {
            node: counts.node,
            bind,
            http_bind,
            ws_port: ports.ws,
            http_port: ports.http,
            prometheus_port: ports.prometheus,
            pprof_port: ports.pprof,
            swagger_port: ports.swagger,
            ops_bind,
            ops_hosts,
            ops_token,
            queue: queue.queue,
            redis: queue.redis,
            redis_prefix: queue.redis_prefix,
            queue_timeout_ms: queue.timeout_ms,
            routing: queue.routing,
            broker_thread: queue.broker_thread,
            idempotency_keys: queue.idempotency_keys,
            env,
            workers: counts.workers,
            pin: counts.pin,
            max_connections: counts.max_connections,
            max_http_connections: counts.max_http_connections,
            max_handshakes: counts.max_handshakes,
            projects,
            projects_file,
            demand_exp: env == Env::Prod,
            drain_ms: times.drain_ms,
            ping_interval_ms: times.ping_interval_ms,
            idle_timeout_ms: times.idle_timeout_ms,
            message_timeout_ms: times.message_timeout_ms,
            request_timeout_ms: times.request_timeout_ms,
            handshake_timeout_ms: times.handshake_timeout_ms,
            keep_alive_ms: times.keep_alive_ms,
            linger_ms: times.linger_ms,
            coalesce_us: times.coalesce_us,
            limits,
            memory,
            echo,
            otel,
            logs,
            sentry_dsn,
            command: Command::default(),
            resolved: Vec::new(),
            warnings,
        })
    }

    /// Warns of environment variables that look like the node's but are unknown.
    pub fn warn_of_unknown<'a>(&mut self, variables: impl IntoIterator<Item = (&'a str, &'a str)>) {
        self.warnings.extend(variables::unknown(variables, &flags::names()));
    }

    /// Returns the output of `print-config`; `None`: run a node.
    pub fn printed(&self) -> Option<String> {
        match self.command {
            Command::Serve | Command::Version => None,
            Command::PrintConfig { as_json: true } => {
                Some(print::as_json(&self.resolved, &self.warnings))
            }
            Command::PrintConfig { as_json: false } => Some(print::as_toml(&self.resolved)),
        }
    }

    /// Returns whether clients may connect to the built-in project in development.
    pub fn has_dev_project(&self) -> bool {
        self.env == Env::Dev && self.projects_file.is_none()
    }
}

fn resolve_echo(from: &Source<'_>, env: Env) -> Result<bool, Exit> {
    let echo = from.get(&flags::ECHO).flag()?;
    if echo && env == Env::Prod {
        return Err(Exit::Error(
            "--echo is refused with --env prod: it is for measuring; leave it out, or use \
             --env test"
                .into(),
        ));
    }
    Ok(echo)
}

/// Resolves the ops ports. Anyone who reaches them sees the whole node, so other machines need a
/// token.
fn resolve_ops(
    from: &Source<'_>,
    warnings: &mut Vec<String>,
) -> Result<(Bind, Vec<String>, Option<Token>), Exit> {
    let bind = Bind::resolve(from, &flags::OPS_BIND, IpAddr::from([127, 0, 0, 1]))?;
    let setting = from.secret(&flags::OPS_TOKEN)?;
    if setting.is_visible() {
        warnings.push(visible("--ops_token is", "WS_CLUSTER_OPS_TOKEN"));
    }
    match setting.text {
        Some(text) if text.len() < 16 || !text.bytes().all(|byte| byte.is_ascii_graphic()) => {
            Err(Exit::Error(
                "the ops token must be at least 16 printable ASCII characters: openssl rand -hex 32"
                    .into(),
            ))
        }
        None if !bind.ip.is_loopback() => Err(Exit::Error(format!(
            "{} shows metrics, profiles and the console to other machines: give \
             WS_CLUSTER_OPS_TOKEN, too, or leave {} out",
            bind.written(),
            bind.name
        ))),
        text => Ok((bind, ops_hosts::resolve(from)?, text.map(Token::new))),
    }
}

/// Resolves the Sentry DSN. Errors do not quote it: it contains a key.
fn resolve_sentry(
    from: &Source<'_>,
    warnings: &mut Vec<String>,
) -> Result<Option<SentryDsn>, Exit> {
    let setting = from.secret(&flags::SENTRY_DSN)?;
    let Some(text) = &setting.text else { return Ok(None) };
    let dsn = text.parse().map_err(|()| {
        let name = setting.name();
        Exit::Error(format!(
            "{name} is not a DSN of Sentry: give https://KEY@HOST/PROJECT, as the project's page \
             Client Keys shows it"
        ))
    })?;
    if setting.is_visible() {
        warnings.push(visible("--sentry_dsn is", "WS_CLUSTER_SENTRY_DSN"));
    }
    Ok(Some(dsn))
}

/// Returns the warning about a secret given as a flag.
fn visible(what: &str, variable: &str) -> String {
    format!(
        "{what} in the list of processes, which every user of this machine can read: give it as \
         {variable} instead"
    )
}

/// The ports, all different.
struct Ports {
    ws: u16,
    http: u16,
    prometheus: u16,
    pprof: OpsPort,
    swagger: OpsPort,
}

/// A port that the node can do without.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpsPort {
    pub port: u16,
    /// It was requested explicitly. Otherwise any other port will do if it is in use.
    pub is_given: bool,
}

impl Ports {
    /// Resolves the ports. The addresses are those of `--bind`, `--http_bind` and `--ops_bind`.
    fn resolve(from: &Source<'_>, [ws_ip, http_ip, ops_ip]: [IpAddr; 3]) -> Result<Self, Exit> {
        let port = |flag: &'static Flag| from.get(flag).number().map(|port| port as u16);
        let ws = port(&flags::WS_PORT)?;
        let http = port(&flags::HTTP_PORT)?;
        let prometheus = port(&flags::PROMETHEUS_PORT)?;
        let mut taken = vec![
            ("ws_port", SocketAddr::new(ws_ip, ws)),
            ("http_port", SocketAddr::new(http_ip, http)),
            ("prometheus_port", SocketAddr::new(ops_ip, prometheus)),
        ];
        let mut ops_port = |flag: &'static Flag| {
            let mut port = port(flag)?;
            let setting = from.get(flag);
            let is_given = setting.text.is_some();
            let is_free = |port| !taken.iter().any(|(_, other)| overlap(*other, port));
            if !is_given && !is_free(SocketAddr::new(ops_ip, port)) {
                port = 0;
                setting.note(port.to_string());
            }
            taken.push((flag.name, SocketAddr::new(ops_ip, port)));
            Ok(OpsPort { port, is_given })
        };
        let pprof = ops_port(&flags::PPROF_PORT)?;
        let swagger = ops_port(&flags::SWAGGER_PORT)?;
        distinct_ports(&taken)?;
        Ok(Self { ws, http, prometheus, pprof, swagger })
    }
}

/// The counts.
struct Counts {
    node: NodeId,
    workers: usize,
    max_connections: usize,
    max_http_connections: usize,
    max_handshakes: usize,
    /// Whether each worker is pinned to a core.
    pin: bool,
}

impl Counts {
    fn resolve(from: &Source<'_>) -> Result<Self, Exit> {
        let count = |flag: &'static Flag| from.get(flag).number().map(|count| count as usize);
        let node = from.get(&flags::NODE).number()?;
        Ok(Self {
            node: NodeId::new(node as u16).unwrap_or_default(),
            workers: from.get(&flags::WORKERS).number_or(default_workers())? as usize,
            max_connections: count(&flags::MAX_CONNECTIONS)?,
            max_http_connections: count(&flags::MAX_HTTP_CONNECTIONS)?,
            max_handshakes: count(&flags::MAX_HANDSHAKES)?,
            pin: from.get(&flags::PIN).flag()?,
        })
    }
}

/// Timeouts and intervals, in milliseconds unless named otherwise.
struct Times {
    drain_ms: u64,
    ping_interval_ms: u64,
    idle_timeout_ms: u64,
    message_timeout_ms: u64,
    request_timeout_ms: u64,
    handshake_timeout_ms: u64,
    keep_alive_ms: u64,
    linger_ms: u64,
    coalesce_us: u64,
}

impl Times {
    fn resolve(from: &Source<'_>) -> Result<Self, Exit> {
        let time = |flag: &'static Flag| from.get(flag).number();
        let request_timeout_ms = time(&flags::REQUEST_TIMEOUT_MS)?;
        let handshake = from.get(&flags::HANDSHAKE_TIMEOUT_MS);
        Ok(Self {
            drain_ms: time(&flags::DRAIN_MS)?,
            ping_interval_ms: time(&flags::PING_INTERVAL_MS)?,
            idle_timeout_ms: time(&flags::IDLE_TIMEOUT_MS)?,
            message_timeout_ms: time(&flags::MESSAGE_TIMEOUT_MS)?,
            request_timeout_ms,
            handshake_timeout_ms: handshake.number_or(request_timeout_ms)?,
            keep_alive_ms: time(&flags::KEEP_ALIVE_MS)?,
            linger_ms: time(&flags::LINGER_MS)?,
            coalesce_us: time(&flags::COALESCE_US)?,
        })
    }
}

fn default_workers() -> u64 {
    let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get) as u64;
    cores.saturating_sub(1).clamp(1, 64)
}

/// Returns whether the two addresses cannot both be listened on.
fn overlap(one: SocketAddr, other: SocketAddr) -> bool {
    let takes = |all: IpAddr, ip: IpAddr| match all {
        IpAddr::V4(all) => all.is_unspecified() && ip.is_ipv4(),
        // Includes IPv4.
        IpAddr::V6(all) => all.is_unspecified(),
    };
    let (ip, other_ip) = (one.ip(), other.ip());
    let is_same = ip == other_ip || takes(ip, other_ip) || takes(other_ip, ip);
    is_same && one.port() == other.port() && one.port() != 0
}

fn distinct_ports(ports: &[(&str, SocketAddr)]) -> Result<(), Exit> {
    for (index, (flag, at)) in ports.iter().enumerate() {
        let port = at.port();
        let earlier = ports[..index].iter().find(|(_, other)| overlap(*at, *other));
        if let Some((other, _)) = earlier {
            return Err(Exit::Error(format!(
                "--{other} and --{flag} are both {port}: give each its own port, e.g. --{flag} {}",
                port.checked_add(100).unwrap_or(0)
            )));
        }
    }
    Ok(())
}

impl Env {
    /// Returns the name as it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::Dev => "dev",
            Self::Test => "test",
            Self::Prod => "prod",
        }
    }
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

#[cfg(test)]
mod tests;
