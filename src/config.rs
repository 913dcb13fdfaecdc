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
mod trusted_proxies;
mod variables;

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroUsize;
use std::path::PathBuf;

use crate::io::memory::MemoryLimit;
use crate::ops::otel::OtelSettings;
use crate::ops::sentry::SentryDsn;
use crate::state::projects::Projects;
use crate::state::settings::{Settings, Times};
use crate::types::{Env, NodeId, version};
use crate::wire::sign::Token;

use arguments::{Arguments, Command};
use bind::Binds;
use flags::Flag;
use setting::{Resolved, Source};

pub use bind::Bind;
pub use logs::{LogSettings, log_format};
pub use projects_file::{DEV_PID, DEV_SECRET, load_projects};

/// The configuration of a node. Every value has been checked; nothing changes while the node runs.
#[derive(Debug)]
pub struct Config {
    /// What the node's threads read; the other fields are for its start.
    pub settings: Settings,
    /// The address of the WebSocket port.
    pub bind: Bind,
    /// The address of the HTTP port.
    pub http_bind: Bind,
    /// The address of the other three ports.
    pub ops_bind: Bind,
    pub ports: Ports,
    pub projects: Projects,
    /// The file of `projects`, for a reload; `None` for the built-in project of `dev`.
    pub projects_file: Option<PathBuf>,
    /// The process's memory limit; `None`: it cannot be read.
    pub memory_limit: Option<MemoryLimit>,
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
        let count = |flag: &'static Flag| from.get(flag).number().map(|count| count as usize);
        let workers = from.get(&flags::WORKERS).number_or(default_workers())? as usize;
        let memory_limit = memory::limit(from)?;
        let has_dev_project = env == Env::Dev && projects_file.is_none();
        let settings = Settings {
            node: NodeId::new(from.get(&flags::NODE).number()? as u16).unwrap_or_default(),
            env,
            dev_project: has_dev_project.then_some((DEV_PID, DEV_SECRET)),
            workers,
            pin: from.get(&flags::PIN).flag()?,
            max_connections: count(&flags::MAX_CONNECTIONS)?,
            max_http_connections: count(&flags::MAX_HTTP_CONNECTIONS)?,
            max_handshakes: count(&flags::MAX_HANDSHAKES)?,
            trusted_proxies: trusted_proxies::resolve(from)?,
            times: resolve_times(from)?,
            memory: memory::resolve(from, memory_limit.as_ref(), workers, &limits)?,
            idempotency_keys: count(&flags::IDEMPOTENCY_KEYS)?,
            echo,
            ops_hosts,
            ops_token,
            redis: queue::resolve(from, workers, &limits, &mut warnings)?,
            limits,
        };
        Ok(Self {
            settings,
            bind,
            http_bind,
            ops_bind,
            ports,
            projects,
            projects_file,
            memory_limit,
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
}

fn resolve_echo(from: &Source<'_>, env: Env) -> Result<bool, Exit> {
    let echo = from.get(&flags::ECHO).flag()?;
    if echo && env == Env::Prod {
        return Err(Exit::Error(
            "--echo is refused with --env prod: it is for benchmarks; omit it, or use --env test"
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
                "the ops token must be at least 16 printable ASCII characters, e.g. from openssl \
                 rand -hex 32"
                    .into(),
            ))
        }
        None if !bind.ip.is_loopback() => Err(Exit::Error(format!(
            "{} shows metrics, profiles and the console to other machines: set \
             WS_CLUSTER_OPS_TOKEN as well, or omit {}",
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
            "{name} is not a Sentry DSN: use https://KEY@HOST/PROJECT, as shown on the project's \
             Client Keys page"
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
        "{what} in the list of processes, which every user of this machine can read: set \
         {variable} instead"
    )
}

/// The ports, all different. 0 takes any free port.
#[derive(Debug, Clone, Copy)]
pub struct Ports {
    pub ws: u16,
    pub http: u16,
    pub prometheus: u16,
    pub pprof: OpsPort,
    pub swagger: OpsPort,
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

fn resolve_times(from: &Source<'_>) -> Result<Times, Exit> {
    let time = |flag: &'static Flag| from.get(flag).number();
    let request_timeout_ms = time(&flags::REQUEST_TIMEOUT_MS)?;
    let handshake = from.get(&flags::HANDSHAKE_TIMEOUT_MS);
    Ok(Times {
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

#[cfg(test)]
mod tests;
