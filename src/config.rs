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
mod mistake;
mod ops_hosts;
mod origin;
mod otel;
mod print;
mod projects_file;
mod queue;
mod reload;
mod setting;
mod text_file;
mod trusted_proxies;
mod variables;

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::num::NonZeroUsize;
use std::path::PathBuf;

use crate::io::memory::MemoryLimit;
use crate::ops::otel::OtelSettings;
use crate::ops::sentry::SentryDsn;
use crate::state::projects::Projects;
use crate::state::settings::{Settings, Times};
use crate::types::{Env, NodeId};
use crate::wire::sign::Token;

use bind::Binds;
use origin::Origin;
use setting::{InForce, Resolved, Source};

pub use arguments::Arguments;
pub use bind::Bind;
pub use flags::{COMMANDS, Command, CommandOption, CommandSpec, Flag, flag_groups};
pub use logs::{LogSettings, log_format};
pub use mistake::{Mistake, Place};
pub use projects_file::{DEV_PID, DEV_SECRET, ProjectSecrets};
pub use reload::{Reloader, Reread};

/// The configuration of a node. Every value has been checked. A reload of a running node makes
/// another one ([`Reloader`]).
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
    /// The file of `projects`; `None` for the built-in project of `dev`.
    pub projects_file: Option<PathBuf>,
    /// The process's memory limit; `None`: it cannot be read.
    pub memory_limit: Option<MemoryLimit>,
    /// Where traces are sent; `None`: nowhere.
    pub otel: Option<OtelSettings>,
    pub logs: LogSettings,
    /// Where errors and panics are reported.
    pub sentry_dsn: Option<SentryDsn>,
    arguments: Arguments,
    /// Every flag with its effective value.
    in_force: InForce,
    /// Warnings for the operator, one sentence each; logged at the start, not fatal.
    pub warnings: Vec<Mistake>,
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
        Self::of(&Arguments::parse(args)?, env)
    }

    /// Resolves the configuration; fails with the first mistake.
    pub fn of(arguments: &Arguments, env: &dyn Fn(&str) -> Option<String>) -> Result<Self, Exit> {
        let (config, mistakes) = Self::check(arguments, env);
        match mistakes.first() {
            Some(first) => Err(Exit::Error(first.to_string())),
            None => Ok(config),
        }
    }

    /// Resolves the configuration, and returns every mistake in it: if there are any, defaults
    /// stand in for wrong values. Starts nothing, opens no port, and logs nothing.
    pub fn check(
        arguments: &Arguments,
        env: &dyn Fn(&str) -> Option<String>,
    ) -> (Self, Vec<Mistake>) {
        let source = Source::new(arguments, env);
        let mut config = Self::resolve(&source);
        let mistakes = source.mistakes();
        (config.in_force, _) = source.finish(&config.settings);
        config.arguments = arguments.clone();
        (config, mistakes)
    }

    fn resolve(from: &Source<'_>) -> Self {
        let mut warnings = Vec::new();
        let env = from.get(&flags::ENV).parsed(Env::Dev);
        let echo = resolve_echo(from, env);
        let projects_setting = from.get(&flags::PROJECTS);
        let projects_file = projects_setting.text.as_deref().map(PathBuf::from);
        let limits = limits::resolve(from);
        let projects = projects_file::load(&projects_setting, from, env, &limits, &mut warnings);
        let Binds { ws: bind, http: http_bind } = Binds::resolve(from, env);
        bind::warn_of_dev_secret([&bind, &http_bind], env, &projects, &mut warnings);
        let (ops_bind, ops_hosts, ops_token) = resolve_ops(from, &mut warnings);
        let mut otel_warnings = Vec::new();
        let otel = otel::from_env(from.env(), &mut otel_warnings);
        warnings.extend(otel_warnings.into_iter().map(Mistake::from));
        let logs = LogSettings::resolve(from, &mut warnings);
        let sentry_dsn = resolve_sentry(from, &mut warnings);
        let ports = Ports::resolve(from, [bind.ip, http_bind.ip, ops_bind.ip]);
        let count = |flag: &'static Flag| from.get(flag).number() as usize;
        let workers = from.running_workers().unwrap_or_else(default_workers);
        let workers = from.get(&flags::WORKERS).number_or(workers) as usize;
        let memory_limit = memory::limit(from);
        let has_dev_project = env == Env::Dev && projects_file.is_none();
        let settings = Settings {
            node: NodeId::new(from.get(&flags::NODE).number() as u16).unwrap_or_default(),
            env,
            dev_project: has_dev_project.then_some((DEV_PID, DEV_SECRET)),
            workers,
            pin: from.get(&flags::PIN).flag(),
            max_connections: count(&flags::MAX_CONNECTIONS),
            max_http_connections: count(&flags::MAX_HTTP_CONNECTIONS),
            max_handshakes: count(&flags::MAX_HANDSHAKES),
            trusted_proxies: trusted_proxies::resolve(from),
            times: resolve_times(from),
            memory: memory::resolve(from, memory_limit.as_ref(), workers, &limits),
            idempotency_keys: count(&flags::IDEMPOTENCY_KEYS),
            echo,
            ops_hosts,
            ops_token,
            redis: queue::resolve(from, workers, &limits, &mut warnings),
            limits,
        };
        Self {
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
            arguments: Arguments::default(),
            in_force: InForce::default(),
            warnings,
        }
    }

    /// Warns of environment variables that look like the node's but are unknown.
    pub fn warn_of_unknown<'a>(&mut self, variables: impl IntoIterator<Item = (&'a str, &'a str)>) {
        let unknown = variables::unknown(variables, &flags::names());
        self.warnings.extend(unknown.into_iter().map(Mistake::from));
    }

    /// Returns the output of `print-config`.
    pub fn printed(&self, as_json: bool) -> String {
        match as_json {
            true => print::as_json(&self.in_force.resolved, &self.warnings),
            false => print::as_toml(&self.in_force.resolved),
        }
    }

    /// Returns where this machine reaches the HTTP port.
    pub fn local_http(&self) -> SocketAddr {
        local(self.http_bind.ip, self.ports.http)
    }

    /// Returns whether a secret is written in the config file itself.
    pub fn has_secret_in_file(&self) -> bool {
        let is_secret = |one: &&Resolved| one.is_hidden && !one.names_file;
        self.in_force
            .resolved
            .iter()
            .filter(is_secret)
            .any(|one| matches!(one.origin, Origin::File(_)))
    }

    /// Returns the path of the config file, if there is one.
    pub fn config_file(&self) -> Option<&str> {
        let mut resolved = self.in_force.resolved.iter();
        resolved.find(|one| one.flag.name == flags::CONFIG.name)?.value.as_deref()
    }
}

/// Returns where this machine reaches the HTTP port of a node with these arguments. Nothing else of
/// the configuration is read: whoever asks may not be allowed to read the projects.
pub fn local_http_port(
    arguments: &Arguments,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<SocketAddr, Exit> {
    let source = Source::new(arguments, env);
    let environment = source.get(&flags::ENV).parsed(Env::Dev);
    let Binds { http, .. } = Binds::resolve(&source, environment);
    let setting = source.get(&flags::HTTP_PORT);
    let name = setting.written(0);
    let port = setting.number() as u16;
    if let Some(first) = source.mistakes().first() {
        return Err(Exit::Error(first.to_string()));
    }
    if port == 0 {
        return Err(Exit::Error(format!(
            "{name} is any free port, which only the node's log names: pass --http_port with that \
             port"
        )));
    }
    Ok(local(http.ip, port))
}

/// Returns the address at which this machine reaches a port that listens on `ip`.
fn local(ip: IpAddr, port: u16) -> SocketAddr {
    let ip = match ip {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::from([127, 0, 0, 1]),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, port)
}

/// Returns whether the node with these arguments demands an `exp` in every request.
pub fn demands_exp(arguments: &Arguments, env: &dyn Fn(&str) -> Option<String>) -> bool {
    Source::new(arguments, env).get(&flags::ENV).parsed(Env::Dev).demands_exp()
}

/// Returns the secrets of a project, as the node with these arguments reads them.
pub fn project_secrets(
    arguments: &Arguments,
    env: &dyn Fn(&str) -> Option<String>,
    pid: &str,
) -> Result<ProjectSecrets, Exit> {
    let source = Source::new(arguments, env);
    let environment = source.get(&flags::ENV).parsed(Env::Dev);
    let file = source.get(&flags::PROJECTS).text;
    match source.mistakes().first() {
        Some(first) => Err(Exit::Error(first.to_string())),
        None => projects_file::secrets(file.as_deref(), environment, pid).map_err(Exit::Error),
    }
}

/// Reads the secret that an option of a command gives, which may be `file:` and a path.
pub fn given_secret(name: &str, text: &str) -> Result<String, Exit> {
    match text.strip_prefix("file:") {
        Some(path) => setting::read_secret(name, path, false).map_err(Exit::Error),
        None => Ok(text.to_owned()),
    }
}

fn resolve_echo(from: &Source<'_>, env: Env) -> bool {
    let echo = from.get(&flags::ECHO).flag();
    if echo && env == Env::Prod {
        let setting = from.get(&flags::ECHO);
        setting.report(format!(
            "{} is refused with --env prod: it is for benchmarks; omit it, or use --env test",
            setting.name()
        ));
    }
    echo
}

/// Resolves the ops ports. Anyone who reaches them sees the whole node, so other machines need a
/// token.
fn resolve_ops(
    from: &Source<'_>,
    warnings: &mut Vec<Mistake>,
) -> (Bind, Vec<String>, Option<Token>) {
    let bind = Bind::resolve(from, &flags::OPS_BIND, IpAddr::from([127, 0, 0, 1]));
    let setting = from.secret(&flags::OPS_TOKEN);
    if setting.is_visible() {
        warnings.push(visible("--ops_token is", "WS_CLUSTER_OPS_TOKEN").into());
    }
    let is_good = |text: &str| text.len() >= 16 && text.bytes().all(|b| b.is_ascii_graphic());
    let token = match &setting.text {
        Some(text) if !is_good(text) => {
            setting.report(
                "the ops token must be at least 16 printable ASCII characters, e.g. from openssl \
                 rand -hex 32",
            );
            None
        }
        None if !bind.ip.is_loopback() && from.is_sound(&[&flags::OPS_TOKEN]) => {
            from.get(&flags::OPS_BIND).report(format!(
                "{} shows metrics, profiles and the console to other machines: set \
                 WS_CLUSTER_OPS_TOKEN as well, or omit {}",
                bind.written(),
                bind.name
            ));
            None
        }
        text => text.clone().map(Token::new),
    };
    (bind, ops_hosts::resolve(from), token)
}

/// Resolves the Sentry DSN. Errors do not quote it: it contains a key.
fn resolve_sentry(from: &Source<'_>, warnings: &mut Vec<Mistake>) -> Option<SentryDsn> {
    let setting = from.secret(&flags::SENTRY_DSN);
    let parsed = setting.text.as_ref()?.parse().map_err(|()| {
        let name = setting.name();
        setting.report(format!(
            "{name} is not a Sentry DSN: use https://KEY@HOST/PROJECT, as shown on the project's \
             Client Keys page"
        ));
    });
    if setting.is_visible() {
        warnings.push(visible("--sentry_dsn is", "WS_CLUSTER_SENTRY_DSN").into());
    }
    parsed.ok()
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
    fn resolve(from: &Source<'_>, [ws_ip, http_ip, ops_ip]: [IpAddr; 3]) -> Self {
        let port = |flag: &'static Flag| from.get(flag).number() as u16;
        let ws = port(&flags::WS_PORT);
        let http = port(&flags::HTTP_PORT);
        let prometheus = port(&flags::PROMETHEUS_PORT);
        let mut taken: Vec<(&'static Flag, SocketAddr)> = vec![
            (&flags::WS_PORT, SocketAddr::new(ws_ip, ws)),
            (&flags::HTTP_PORT, SocketAddr::new(http_ip, http)),
            (&flags::PROMETHEUS_PORT, SocketAddr::new(ops_ip, prometheus)),
        ];
        let mut ops_port = |flag: &'static Flag| {
            let mut port = port(flag);
            let setting = from.get(flag);
            let is_given = setting.text.is_some();
            let is_free = |port| !taken.iter().any(|(_, other)| overlap(*other, port));
            if !is_given && !is_free(SocketAddr::new(ops_ip, port)) {
                port = 0;
                setting.note(port.to_string());
            }
            taken.push((flag, SocketAddr::new(ops_ip, port)));
            OpsPort { port, is_given }
        };
        let pprof = ops_port(&flags::PPROF_PORT);
        let swagger = ops_port(&flags::SWAGGER_PORT);
        check_distinct(from, &taken);
        Self { ws, http, prometheus, pprof, swagger }
    }
}

fn resolve_times(from: &Source<'_>) -> Times {
    let time = |flag: &'static Flag| from.get(flag).number();
    let request_timeout_ms = time(&flags::REQUEST_TIMEOUT_MS);
    let handshake = from.get(&flags::HANDSHAKE_TIMEOUT_MS);
    Times {
        drain_delay_ms: time(&flags::DRAIN_DELAY_MS),
        drain_ms: time(&flags::DRAIN_MS),
        ping_interval_ms: time(&flags::PING_INTERVAL_MS),
        idle_timeout_ms: time(&flags::IDLE_TIMEOUT_MS),
        message_timeout_ms: time(&flags::MESSAGE_TIMEOUT_MS),
        request_timeout_ms,
        handshake_timeout_ms: handshake.number_or(request_timeout_ms),
        keep_alive_ms: time(&flags::KEEP_ALIVE_MS),
        linger_ms: time(&flags::LINGER_MS),
        coalesce_us: time(&flags::COALESCE_US),
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

fn check_distinct(from: &Source<'_>, ports: &[(&'static Flag, SocketAddr)]) {
    for (index, (flag, at)) in ports.iter().enumerate() {
        let port = at.port();
        let earlier = ports[..index].iter().find(|(_, other)| overlap(*at, *other));
        if let Some((other, _)) = earlier
            && from.is_sound(&[flag, other])
        {
            from.get(flag).report(format!(
                "--{} and --{} are both {port}: give each its own port, e.g. --{} {}",
                other.name,
                flag.name,
                flag.name,
                port.checked_add(100).unwrap_or(0)
            ));
        }
    }
}

#[cfg(test)]
mod tests;
