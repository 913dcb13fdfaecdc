//! Floor 4: arguments and environment to a [`Config`] that is complete, checked and immutable.
//!
//! Two steps, as in ripgrep: `RawArgs` is what was typed, every value still text; [`Config`] is
//! what it means. A wrong value names itself and the fix, and says whether it came from a flag or
//! from the environment.

mod bind;
mod limits;
mod logs;
mod memory;
mod ops_hosts;
mod otel;
mod projects_file;
mod queue;
mod raw_args;
mod setting;
mod variables;

use std::cell::RefCell;
use std::net::IpAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::str::FromStr;

use crate::ops::otel::OtelSettings;
use crate::ops::sentry::SentryDsn;
use crate::state::projects::Projects;
use crate::types::{Limits, NodeId, Routing, version};
use crate::wire::redis_url::RedisUrl;
use crate::wire::sign::Token;

use bind::Binds;
use queue::QueueSettings;
use raw_args::RawArgs;
use setting::Source;

pub use bind::Bind;
pub use logs::{LogSettings, log_format};
pub use memory::Memory;
pub use projects_file::{DEV_PID, DEV_SECRET, load_projects};
pub use queue::Queue;

/// What a node runs with. Every value has been checked; nothing in it changes while it runs.
#[derive(Debug)]
pub struct Config {
    pub node: NodeId,
    /// The address that the WebSocket port is bound to.
    pub bind: Bind,
    /// The address that the HTTP port is bound to.
    pub http_bind: Bind,
    /// 0 takes any free port; so do the other two.
    pub ws_port: u16,
    pub http_port: u16,
    pub prometheus_port: u16,
    pub pprof_port: OpsPort,
    pub swagger_port: OpsPort,
    /// The address of those three.
    pub ops_bind: Bind,
    /// Names by which they may be asked, beside that address and localhost.
    pub ops_hosts: Vec<String>,
    /// What a request to them must bear.
    pub ops_token: Option<Token>,
    pub queue: Queue,
    /// Of [`Queue::Redis`], like all up to `idempotency_keys`.
    pub redis: RedisUrl,
    /// What the names of all channels and keys begin with.
    pub redis_prefix: String,
    /// How long a push waits for the queue's answer; beyond: 504.
    pub queue_timeout_ms: u64,
    pub routing: Routing,
    /// Whether the broker has a thread of its own; otherwise it shares the only worker's.
    pub broker_thread: bool,
    /// Keys of pushes that one worker remembers, so that it does not deliver one twice.
    pub idempotency_keys: usize,
    pub env: Env,
    /// Worker threads, 1 to 64.
    pub workers: usize,
    /// Whether each worker is pinned to a core.
    pub pin: bool,
    /// Open WebSocket connections of the whole node; beyond: 503.
    pub max_connections: usize,
    /// Open HTTP connections of one worker; beyond: 503.
    pub max_http_connections: usize,
    /// Handshakes of one worker that are not whole; beyond: the oldest gets 503.
    pub max_handshakes: usize,
    pub projects: Projects,
    /// Where `projects` was read from, for a reload; `None` for the built-in project of `dev`.
    pub projects_file: Option<PathBuf>,
    /// Whether a signed request without `exp` is refused.
    pub demand_exp: bool,
    /// How long a stopping node waits for its connections to leave.
    pub drain_ms: u64,
    /// A WebSocket connection on which nothing went either way for this long is pinged.
    pub ping_interval_ms: u64,
    /// Silence after which a WebSocket connection ends with 4002.
    pub idle_timeout_ms: u64,
    /// A WebSocket message must have arrived whole by then; beyond: closed with 1008.
    pub message_timeout_ms: u64,
    /// A request's head and body must have come whole by then; beyond: 408.
    pub request_timeout_ms: u64,
    /// A WebSocket handshake must be answered by then; beyond: 408, or 503.
    pub handshake_timeout_ms: u64,
    /// How long an HTTP connection may wait for its next request.
    pub keep_alive_ms: u64,
    /// How long a closing connection waits for its peer's FIN.
    pub linger_ms: u64,
    /// How long a worker holds a batch of pushes for more of them, in microseconds.
    pub coalesce_us: u64,
    pub limits: Limits,
    pub memory: Memory,
    /// Whether clients get their own frames back; for measuring only, never in `prod`.
    pub echo: bool,
    /// Where traces go; `None`: nowhere.
    pub otel: Option<OtelSettings>,
    pub logs: LogSettings,
    /// Where errors and panics are reported.
    pub sentry_dsn: Option<SentryDsn>,
    /// The names of all flags that variables may give, too.
    flags: Vec<&'static str>,
    /// What an operator should know at the start, one sentence each; to be logged, not fatal.
    pub warnings: Vec<String>,
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
/// From here on a held push is late to whoever waits for it.
const MAX_COALESCE_US: u64 = 10_000;
const GIB: u64 = 1 << 30;

impl Config {
    /// `args` are those after the program's name; `env` looks up one variable of the environment.
    /// Reads the projects file if one is named.
    pub fn from_args(args: &[String], env: &dyn Fn(&str) -> Option<String>) -> Result<Self, Exit> {
        let raw = RawArgs::parse(args)?;
        if raw.version {
            return Err(Exit::Version(format!("ws-cluster {}\n", version::FULL)));
        }
        let source = Source { env, asked: RefCell::default() };
        let mut config = Self::resolve(&raw, &source)?;
        config.flags = source.asked.into_inner();
        Ok(config)
    }

    fn resolve(raw: &RawArgs, from: &Source<'_>) -> Result<Self, Exit> {
        let mut warnings = Vec::new();
        let env = from.get("env", &raw.env).parsed(Env::Dev, "an environment", Env::FIX, "dev")?;
        let echo = resolve_echo(raw, from, env)?;
        let projects_file = from.get("projects", &raw.projects).text.map(PathBuf::from);
        let limits = limits::resolve(raw, from)?;
        let projects = load_projects(projects_file.as_deref(), env, &limits, &mut warnings)?;
        let Binds { ws: bind, http: http_bind } = Binds::resolve(raw, from, env)?;
        bind::warn_of_dev_secret([&bind, &http_bind], env, &projects, &mut warnings);
        let (ops_bind, ops_hosts, ops_token) = resolve_ops(raw, from, &mut warnings)?;
        let otel = otel::from_env(from.env, &mut warnings);
        let logs = LogSettings::resolve(raw, from, &mut warnings)?;
        let sentry_dsn = resolve_sentry(raw, from, &mut warnings)?;
        let ports = Ports::resolve(raw, from)?;
        let counts = Counts::resolve(raw, from)?;
        let memory = Memory::resolve(raw, from, counts.workers, &limits)?;
        let queue = QueueSettings::resolve(raw, from, counts.workers, &mut warnings)?;
        queue.check_sizes(&limits)?;
        let times = Times::resolve(raw, from)?;

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
            flags: Vec::new(),
            warnings,
        })
    }

    /// Warns of variables of the environment that look like the node's and are not.
    pub fn warn_of_unknown<'a>(&mut self, variables: impl IntoIterator<Item = (&'a str, &'a str)>) {
        self.warnings.extend(variables::unknown(variables, &self.flags));
    }

    /// Whether clients may connect to the built-in project in development.
    pub fn has_dev_project(&self) -> bool {
        self.env == Env::Dev && self.projects_file.is_none()
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

/// Whoever reaches these ports sees the whole node: from other machines only with a token.
fn resolve_ops(
    raw: &RawArgs,
    from: &Source<'_>,
    warnings: &mut Vec<String>,
) -> Result<(Bind, Vec<String>, Option<Token>), Exit> {
    let bind = Bind::resolve(from, "ops_bind", &raw.ops_bind, IpAddr::from([127, 0, 0, 1]))?;
    let setting = from.get("ops_token", &raw.ops_token);
    if setting.text.is_some() && !setting.from_env {
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
        text => Ok((bind, ops_hosts::resolve(raw, from)?, text.map(Token::new))),
    }
}

/// The value is not quoted: it has a key in it.
fn resolve_sentry(
    raw: &RawArgs,
    from: &Source<'_>,
    warnings: &mut Vec<String>,
) -> Result<Option<SentryDsn>, Exit> {
    let setting = from.get("sentry_dsn", &raw.sentry_dsn);
    let Some(text) = &setting.text else { return Ok(None) };
    let dsn = text.parse().map_err(|()| {
        let name = setting.name();
        Exit::Error(format!(
            "{name} is not a DSN of Sentry: give https://KEY@HOST/PROJECT, as the project's page \
             Client Keys shows it"
        ))
    })?;
    if !setting.from_env {
        warnings.push(visible("--sentry_dsn is", "WS_CLUSTER_SENTRY_DSN"));
    }
    Ok(Some(dsn))
}

/// Warns of a secret that was given as a flag.
fn visible(what: &str, variable: &str) -> String {
    format!(
        "{what} in the list of processes, which every user of this machine can read: give it as \
         {variable} instead"
    )
}

/// The ports, each its own.
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
    /// Somebody asked for it. Otherwise any other will do where it is taken.
    pub is_given: bool,
}

impl Ports {
    fn resolve(raw: &RawArgs, from: &Source<'_>) -> Result<Self, Exit> {
        let port = |flag, arg: &Option<String>, default: u16| {
            from.get(flag, arg).number("a port", default.into(), 0..=65_535).map(|n| n as u16)
        };
        let ws = port("ws_port", &raw.ws_port, 8812)?;
        let http = port("http_port", &raw.http_port, 8912)?;
        let prometheus = port("prometheus_port", &raw.prometheus_port, 9091)?;
        let mut taken = vec![("ws_port", ws), ("http_port", http), ("prometheus_port", prometheus)];
        let mut ops_port = |flag, arg: &Option<String>, default: u16| {
            let is_given = from.get(flag, arg).text.is_some();
            let mut port = port(flag, arg, default)?;
            if !is_given && taken.iter().any(|(_, other)| *other == port) {
                port = 0;
            }
            taken.push((flag, port));
            Ok(OpsPort { port, is_given })
        };
        let pprof = ops_port("pprof_port", &raw.pprof_port, 6060)?;
        let swagger = ops_port("swagger_port", &raw.swagger_port, 9092)?;
        distinct_ports(&taken)?;
        Ok(Self { ws, http, prometheus, pprof, swagger })
    }
}

/// What is counted in pieces.
struct Counts {
    node: NodeId,
    workers: usize,
    max_connections: usize,
    max_http_connections: usize,
    max_handshakes: usize,
    /// Whether each worker has a core.
    pin: bool,
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
        let half_open = from.get("max_handshakes", &raw.max_handshakes);
        let half_open = half_open.number("a number of handshakes", 1_024, 1..=1_000_000);
        Ok(Self {
            node: NodeId::new(node? as u16).unwrap_or_default(),
            workers: workers? as usize,
            max_connections: open? as usize,
            max_http_connections: http? as usize,
            max_handshakes: half_open? as usize,
            pin: from.get("pin", &raw.pin).flag(true)?,
        })
    }
}

/// How long what may take, in milliseconds.
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
    fn resolve(raw: &RawArgs, from: &Source<'_>) -> Result<Self, Exit> {
        let ms = |flag, arg, default, least| {
            from.get(flag, arg).number("a time in milliseconds", default, least..=DAY_MS)
        };
        let request_timeout_ms = ms("request_timeout_ms", &raw.request_timeout_ms, 10_000, 100)?;
        let handshake = &raw.handshake_timeout_ms;
        Ok(Self {
            drain_ms: ms("drain_ms", &raw.drain_ms, 10_000, 0)?,
            ping_interval_ms: ms("ping_interval_ms", &raw.ping_interval_ms, 45_000, 100)?,
            idle_timeout_ms: ms("idle_timeout_ms", &raw.idle_timeout_ms, 120_000, 100)?,
            message_timeout_ms: ms("message_timeout_ms", &raw.message_timeout_ms, 30_000, 100)?,
            request_timeout_ms,
            handshake_timeout_ms: ms("handshake_timeout_ms", handshake, request_timeout_ms, 100)?,
            keep_alive_ms: ms("keep_alive_ms", &raw.keep_alive_ms, 620_000, 100)?,
            linger_ms: ms("linger_ms", &raw.linger_ms, 2_000, 0)?,
            coalesce_us: from.get("coalesce_us", &raw.coalesce_us).number(
                "a time in microseconds",
                0,
                0..=MAX_COALESCE_US,
            )?,
        })
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

impl Env {
    const FIX: &str = "give dev, test or prod";

    /// As it is written.
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
