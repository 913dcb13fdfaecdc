//! Floor 4: arguments and environment to a [`Config`] that is complete, checked and immutable.
//!
//! Two steps, as in ripgrep: [`RawArgs`] is what was typed, every value still text; [`Config`] is
//! what it means. A wrong value names itself and the fix, and says whether it came from a flag or
//! from the environment.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::net::IpAddr;
use std::num::NonZeroUsize;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use argh::FromArgs;
use serde::Deserialize;
use toml::Spanned;
use tracing_subscriber::EnvFilter;

use crate::state::projects::{Project, Projects, SubscribePolicy};
use crate::types::{Limits, NodeId, is_pid};
use crate::wire::sign::Secret;

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

/// The secret of the project that `dev` and `test` have when no projects file is given.
pub const DEV_SECRET: &str = "dev-secret";
/// The `pid` of that project.
pub const DEV_PID: &str = "1";
/// A secret below this many bytes can be guessed; `prod` warns of it.
const SECRET_BYTES_WANTED: usize = 16;
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
        let from = Source { env };
        let mut warnings = Vec::new();

        let env = from.get("env", raw.env).parsed(Env::Dev, "an environment", Env::FIX, "dev")?;
        let echo = from.get("echo", raw.echo.then(|| "true".into())).flag(false)?;
        if echo && env == Env::Prod {
            return Err(Exit::Error(
                "--echo is refused with --env prod: it is for measuring; leave it out, or use \
                 --env test"
                    .into(),
            ));
        }
        let projects_file = from.get("projects", raw.projects).text.map(PathBuf::from);
        let projects = load_projects(projects_file.as_deref(), env, &mut warnings)?;

        let queue =
            from.get("queue", raw.queue).parsed(Queue::Local, "a queue", Queue::FIX, "local")?;
        let bind = from.get("bind", raw.bind).parsed(
            IpAddr::from([0, 0, 0, 0]),
            "an IP address",
            "give an IPv4 or IPv6 address of this machine, or 0.0.0.0 for all",
            "127.0.0.1",
        )?;
        let log = from.get("log", raw.log).parsed(
            LogFilter("info".into()),
            "a log filter",
            "give a level (error, warn, info, debug, trace) or target=level pairs",
            "info,ws_cluster=debug",
        )?;
        let pin = from.get("pin", raw.pin).flag(true)?;

        let port = |flag, arg, default: u16| {
            from.get(flag, arg).number("a port", default.into(), 0..=65_535).map(|n| n as u16)
        };
        let ws_port = port("ws_port", raw.ws_port, 8812)?;
        let http_port = port("http_port", raw.http_port, 8912)?;
        let prometheus_port = port("prometheus_port", raw.prometheus_port, 9091)?;
        distinct_ports(&[
            ("ws_port", ws_port),
            ("http_port", http_port),
            ("prometheus_port", prometheus_port),
        ])?;

        let count = |flag, arg, what, default, range| {
            from.get(flag, arg).number(what, default, range).map(|n| n as usize)
        };
        let node = count("node", raw.node, "a node number", 1, 0..=NodeId::MAX.into())?;
        let workers =
            count("workers", raw.workers, "a number of workers", default_workers(), 1..=64)?;
        let max_connections = count(
            "max_connections",
            raw.max_connections,
            "a number of connections",
            1_000_000,
            1..=100_000_000,
        )?;
        let max_http_connections = count(
            "max_http_connections",
            raw.max_http_connections,
            "a number of connections",
            10_000,
            1..=1_000_000,
        )?;

        let ms = |flag, arg, default, least| {
            from.get(flag, arg).number("a time in milliseconds", default, least..=DAY_MS)
        };
        let drain_ms = ms("drain_ms", raw.drain_ms, 10_000, 0)?;
        let idle_timeout_ms = ms("idle_timeout_ms", raw.idle_timeout_ms, 120_000, 100)?;
        let request_timeout_ms = ms("request_timeout_ms", raw.request_timeout_ms, 10_000, 100)?;
        let keep_alive_ms = ms("keep_alive_ms", raw.keep_alive_ms, 75_000, 100)?;
        let linger_ms = ms("linger_ms", raw.linger_ms, 2_000, 0)?;

        let size = |flag, arg, default, range| {
            from.get(flag, arg).size(default, range).map(|bytes| bytes as usize)
        };
        let limits = Limits {
            message_bytes: size("max_message_bytes", raw.max_message_bytes, 65_536, 128..=GIB)?,
            body_bytes: size("max_body_bytes", raw.max_body_bytes, 1_048_576, 1_024..=GIB)?,
            ..Limits::default()
        };
        let outbox_bytes = size("outbox_bytes", raw.outbox_bytes, 1_048_576, 4_096..=GIB)?;
        let worker_outbox_bytes =
            size("worker_outbox_bytes", raw.worker_outbox_bytes, 268_435_456, 4_096..=1_024 * GIB)?;
        if worker_outbox_bytes < outbox_bytes {
            return Err(Exit::Error(format!(
                "--worker_outbox_bytes {worker_outbox_bytes} is below --outbox_bytes \
                 {outbox_bytes}: one connection would use up its worker; give \
                 --worker_outbox_bytes at least that much"
            )));
        }

        Ok(Self {
            node: NodeId::new(node as u16).unwrap_or_default(),
            bind,
            ws_port,
            http_port,
            prometheus_port,
            queue,
            env,
            workers,
            pin,
            max_connections,
            max_http_connections,
            projects,
            projects_file,
            demand_exp: env == Env::Prod,
            drain_ms,
            idle_timeout_ms,
            request_timeout_ms,
            keep_alive_ms,
            linger_ms,
            limits,
            outbox_bytes,
            worker_outbox_bytes,
            echo,
            log: log.0,
            warnings,
        })
    }
}

/// Reads the projects anew, for a start or a reload; without a file `dev` and `test` have one
/// project, [`DEV_PID`] with [`DEV_SECRET`], and `prod` has none and refuses.
pub fn load_projects(
    file: Option<&Path>,
    env: Env,
    warnings: &mut Vec<String>,
) -> Result<Projects, Exit> {
    match file {
        Some(file) => {
            let name = file.display().to_string();
            let text = std::fs::read_to_string(file).map_err(|error| {
                Exit::Error(format!(
                    "--projects '{name}' cannot be read: {error}; give a TOML file that this user \
                     may read, e.g. --projects /etc/ws-cluster/projects.toml"
                ))
            })?;
            parse_projects(&name, &text, env, warnings)
        }
        None if env == Env::Prod => Err(Exit::Error(
            "--env prod needs a projects file: give one, e.g. --projects \
             /etc/ws-cluster/projects.toml, with [[project]] pid = \"…\" secrets = [\"…\"]"
                .into(),
        )),
        None => {
            let text = format!("[[project]]\npid = '{DEV_PID}'\nsecrets = ['{DEV_SECRET}']\n");
            parse_projects("the built-in project", &text, env, warnings)
        }
    }
}

/// What was typed, every value still text. The names are argh's; `--ws_port` is folded to
/// `--ws-port` before.
#[derive(FromArgs)]
#[argh(
    help_triggers("-h", "--help"),
    description = "ws-cluster: a WebSocket push server, thread per core over io_uring.",
    note = "Names work with underscores as well (--ws_port), and as --ws_port=8812.\n\
            Every flag is an environment variable too: WS_CLUSTER_WS_PORT=8812, WS_CLUSTER_ECHO=true;\n\
            the flag wins, an empty variable counts as absent.\n\
            Sizes take the suffixes K, M and G (1024, 1024^2, 1024^3). A port of 0 takes any free one.\n\n\
            The projects file is TOML:\n\n\
            [[project]]\n\
            pid = \"shop\"\n\
            secrets = [\"at least 16 random bytes\"]      # several while rotating\n\
            allowed_origins = [\"https://shop.example\"]  # optional; absent: any\n\
            subscribe = \"any\"                           # any (default), none or signed",
    error_code(0, "asked for help or the version, or ended in order"),
    error_code(2, "a wrong argument or a wrong projects file")
)]
struct RawArgs {
    /// print the version and end
    #[argh(switch)]
    version: bool,
    /// this node's number in the cluster, 0 to 1023, its own (default 1)
    #[argh(option)]
    node: Option<String>,
    /// the port for WebSocket connections (default 8812)
    #[argh(option)]
    ws_port: Option<String>,
    /// the port of the HTTP API (default 8912)
    #[argh(option)]
    http_port: Option<String>,
    /// the port of the Prometheus metrics (default 9091)
    #[argh(option)]
    prometheus_port: Option<String>,
    /// the IP address to listen on (default 0.0.0.0)
    #[argh(option)]
    bind: Option<String>,
    /// what carries messages between nodes: local (default)
    #[argh(option)]
    queue: Option<String>,
    /// dev (default), test or prod; prod demands --projects and an exp in every signed request
    #[argh(option)]
    env: Option<String>,
    /// the projects file (default in dev and test: project 1 with the secret dev-secret)
    #[argh(option)]
    projects: Option<String>,
    /// worker threads, 1 to 64 (default: cores - 1)
    #[argh(option)]
    workers: Option<String>,
    /// pin every worker to a core, true (default) or false
    #[argh(option)]
    pin: Option<String>,
    /// open WebSocket connections of this node (default 1000000)
    #[argh(option)]
    max_connections: Option<String>,
    /// open HTTP connections of one worker (default 10000)
    #[argh(option)]
    max_http_connections: Option<String>,
    /// how long a stopping node waits for its connections (default 10000)
    #[argh(option)]
    drain_ms: Option<String>,
    /// silence after which a WebSocket connection ends, at least 100 (default 120000)
    #[argh(option)]
    idle_timeout_ms: Option<String>,
    /// time for a request's head and body to arrive whole (default 10000)
    #[argh(option)]
    request_timeout_ms: Option<String>,
    /// time an HTTP connection may wait for its next request (default 75000)
    #[argh(option)]
    keep_alive_ms: Option<String>,
    /// time a closing connection waits for its peer (default 2000)
    #[argh(option)]
    linger_ms: Option<String>,
    /// size of a client's message (default 64K)
    #[argh(option)]
    max_message_bytes: Option<String>,
    /// size of an HTTP body or of a business server's message (default 1M)
    #[argh(option)]
    max_body_bytes: Option<String>,
    /// unsent bytes of one connection (default 1M)
    #[argh(option)]
    outbox_bytes: Option<String>,
    /// unsent bytes of all connections of one worker (default 256M)
    #[argh(option)]
    worker_outbox_bytes: Option<String>,
    /// send clients their own frames back, for measuring; refused with --env prod
    #[argh(switch)]
    echo: bool,
    /// what to log, a tracing filter (default info)
    #[argh(option)]
    log: Option<String>,
}

impl RawArgs {
    fn parse(args: &[String]) -> Result<Self, Exit> {
        let folded = fold_names(args)?;
        let folded: Vec<&str> = folded.iter().map(String::as_str).collect();
        Self::from_args(&["ws-cluster"], &folded).map_err(|early| match early.status {
            Ok(()) => Exit::Help(early.output),
            Err(()) => {
                let output = early.output.split_whitespace().collect::<Vec<_>>().join(" ");
                let output = output.trim_end_matches('.');
                Exit::Error(format!("{output}: ws-cluster --help lists the arguments"))
            }
        })
    }
}

/// `--ws_port=8812` to `--ws-port 8812`: argh knows neither underscores nor the equals sign.
/// Values stay as they are.
fn fold_names(args: &[String]) -> Result<Vec<String>, Exit> {
    let mut folded = Vec::with_capacity(args.len());
    for arg in args {
        let Some(long) = arg.strip_prefix("--") else {
            folded.push(arg.clone());
            continue;
        };
        let (name, value) = match long.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (long, None),
        };
        let name = format!("--{}", name.replace('_', "-"));
        match value {
            None => folded.push(name),
            Some(value) if name == "--echo" => {
                let echo = Setting { flag: "echo", text: Some(value.into()), from_env: false };
                if echo.flag(false)? {
                    folded.push(name);
                }
            }
            Some(value) => folded.extend([name, value.into()]),
        }
    }
    Ok(folded)
}

/// Where a value comes from: the flag if it was typed, else the environment.
struct Source<'a> {
    env: &'a dyn Fn(&str) -> Option<String>,
}

impl Source<'_> {
    fn get(&self, flag: &'static str, arg: Option<String>) -> Setting {
        let from_env = arg.is_none();
        let text = arg.or_else(|| (self.env)(&variable(flag)).filter(|text| !text.is_empty()));
        Setting { flag, text, from_env }
    }
}

fn variable(flag: &str) -> String {
    format!("WS_CLUSTER_{}", flag.to_ascii_uppercase())
}

/// One value, still text, that knows how to complain about itself.
struct Setting {
    flag: &'static str,
    text: Option<String>,
    from_env: bool,
}

impl Setting {
    fn number(self, what: &str, default: u64, range: RangeInclusive<u64>) -> Result<u64, Exit> {
        let Some(text) = &self.text else { return Ok(default) };
        let digits_only = text.bytes().all(|b| b.is_ascii_digit());
        match text.parse() {
            Ok(number) if digits_only && range.contains(&number) => Ok(number),
            _ => {
                let fix = format!("give a number from {} to {}", range.start(), range.end());
                Err(self.wrong(what, &fix, default))
            }
        }
    }

    fn size(self, default: u64, range: RangeInclusive<u64>) -> Result<u64, Exit> {
        let Some(text) = &self.text else { return Ok(default) };
        match parse_size(text) {
            Some(bytes) if range.contains(&bytes) => Ok(bytes),
            _ => {
                let fix = format!(
                    "give bytes from {} to {}, or a number with K, M or G",
                    range.start(),
                    range.end()
                );
                Err(self.wrong("a size", &fix, default))
            }
        }
    }

    fn flag(self, default: bool) -> Result<bool, Exit> {
        match self.text.as_deref() {
            None => Ok(default),
            Some("true" | "1") => Ok(true),
            Some("false" | "0") => Ok(false),
            Some(_) => Err(self.wrong("true or false", "give one of the two", default)),
        }
    }

    fn parsed<T: FromStr>(
        self,
        default: T,
        what: &str,
        fix: &str,
        example: &str,
    ) -> Result<T, Exit> {
        let Some(text) = &self.text else { return Ok(default) };
        text.parse().map_err(|_| match (self.flag, text.as_str()) {
            ("queue", "redis" | "redis-stream") => Exit::Error(format!(
                "{} comes with a later version: use {}",
                self.written(text),
                self.written("local")
            )),
            _ => self.wrong(what, fix, example),
        })
    }

    fn wrong(&self, what: &str, fix: &str, example: impl Display) -> Exit {
        let name = if self.from_env { variable(self.flag) } else { format!("--{}", self.flag) };
        let value = self.text.as_deref().unwrap_or_default();
        let example = self.written(example);
        Exit::Error(format!("{name} '{value}' is not {what}: {fix}, e.g. {example}"))
    }

    /// The setting with a value, in the way in which it was given.
    fn written(&self, value: impl Display) -> String {
        match self.from_env {
            true => format!("{}={value}", variable(self.flag)),
            false => format!("--{} {value}", self.flag),
        }
    }
}

/// `64K`, `1M`, `2G`, also with `iB` behind and in lower case, or plain bytes.
fn parse_size(text: &str) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, suffix) = text.split_at(digits);
    let unit = match suffix.to_ascii_lowercase().as_str() {
        "" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => GIB,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(unit)
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

/// The projects file as it is written. Values that need more than a type are `Spanned`, for the
/// line in the error; secrets stay an untyped value, because serde's own errors quote the value.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ProjectsFile {
    #[serde(default)]
    project: Vec<Spanned<RawProject>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawProject {
    pid: Option<Spanned<String>>,
    secrets: Option<Spanned<toml::Value>>,
    allowed_origins: Option<Vec<Spanned<String>>>,
    subscribe: Option<Spanned<String>>,
}

fn parse_projects(
    file: &str,
    text: &str,
    env: Env,
    warnings: &mut Vec<String>,
) -> Result<Projects, Exit> {
    let place = Place { file, text };
    let raw: ProjectsFile = toml::from_str(text).map_err(|error| {
        // Not the error's own Display: it quotes the line, which may hold a secret.
        let message = error.message().lines().collect::<Vec<_>>().join(", ");
        match error.span() {
            Some(span) => place.error(span.start, message),
            None => Exit::Error(format!("{file}: {message}")),
        }
    })?;
    if raw.project.is_empty() {
        return Err(Exit::Error(format!(
            "{file}: no project in it: add at least one [[project]] with pid and secrets"
        )));
    }
    let starts: Vec<usize> = raw.project.iter().map(|one| one.span().start).collect();
    let mut projects = Vec::with_capacity(raw.project.len());
    for one in raw.project {
        projects.push(resolve_project(&place, one, env, warnings)?);
    }
    Projects::new(projects).map_err(|double| {
        place.error(
            starts[double.second],
            format!(
                "pid '{}' was given before, on line {}: give every project its own pid, and \
                 several secrets to one project as secrets = [\"new\", \"old\"]",
                double.pid,
                place.line(starts[double.first])
            ),
        )
    })
}

fn resolve_project(
    place: &Place<'_>,
    raw: Spanned<RawProject>,
    env: Env,
    warnings: &mut Vec<String>,
) -> Result<Project, Exit> {
    let start = raw.span().start;
    let raw = raw.into_inner();
    let Some(pid) = raw.pid else {
        return Err(place.error(start, "a project without pid: add pid = \"…\""));
    };
    if !is_pid(pid.get_ref()) {
        return Err(place.error(
            pid.span().start,
            format!(
                "pid '{}' is not a project id: give 1 to 64 of the characters A-Z a-z 0-9 _ . -, \
                 e.g. pid = \"shop\"",
                pid.get_ref()
            ),
        ));
    }
    let pid = pid.into_inner().into_boxed_str();
    let secrets = resolve_secrets(place, &pid, raw.secrets, start)?;
    let subscribe = match raw.subscribe {
        None => SubscribePolicy::default(),
        Some(subscribe) => match subscribe.get_ref().as_str() {
            "any" => SubscribePolicy::Any,
            "none" => SubscribePolicy::None,
            "signed" => SubscribePolicy::Signed,
            other => {
                return Err(place.error(
                    subscribe.span().start,
                    format!(
                        "subscribe '{other}' of project '{pid}' is not known: give \"any\", \
                         \"none\" or \"signed\""
                    ),
                ));
            }
        },
    };
    for origin in raw.allowed_origins.iter().flatten() {
        if let Err(fix) = check_origin(origin.get_ref()) {
            return Err(place.error(
                origin.span().start,
                format!(
                    "allowed_origins of project '{pid}': '{}' is not an origin: {fix}, e.g. \
                     \"https://app.example.com\" or \"*\"",
                    origin.get_ref()
                ),
            ));
        }
    }
    if env == Env::Prod {
        warn_about(&pid, &secrets, raw.allowed_origins.is_none(), warnings);
    }
    Ok(Project {
        pid,
        secrets: secrets.iter().map(|secret| Secret::new(secret.as_bytes())).collect(),
        allowed_origins: raw.allowed_origins.map(|origins| {
            origins.into_iter().map(|one| one.into_inner().into_boxed_str()).collect()
        }),
        subscribe,
    })
}

fn resolve_secrets(
    place: &Place<'_>,
    pid: &str,
    raw: Option<Spanned<toml::Value>>,
    start: usize,
) -> Result<Vec<String>, Exit> {
    let Some(raw) = raw else {
        let text = format!("project '{pid}' has no secrets: add secrets = [\"…\"]");
        return Err(place.error(start, text));
    };
    let at = raw.span().start;
    let list = match raw.into_inner() {
        toml::Value::Array(list) => list,
        _ => {
            let text = format!("secrets of project '{pid}' is not a list: write secrets = [\"…\"]");
            return Err(place.error(at, text));
        }
    };
    if list.is_empty() {
        let text = format!("secrets of project '{pid}' is empty: give at least one, e.g. [\"…\"]");
        return Err(place.error(at, text));
    }
    let mut seen = BTreeSet::new();
    let mut secrets = Vec::with_capacity(list.len());
    for (index, value) in list.into_iter().enumerate() {
        let number = index + 1;
        let problem = match value {
            toml::Value::String(secret) if secret.is_empty() => "is empty: give random text",
            toml::Value::String(secret) if !seen.insert(secret.clone()) => {
                "is there twice: leave one out"
            }
            toml::Value::String(secret) => {
                secrets.push(secret);
                continue;
            }
            _ => "is not a text: put it in quotes",
        };
        let text = format!("secret {number} of project '{pid}' {problem}");
        return Err(place.error(at, text));
    }
    Ok(secrets)
}

fn warn_about(pid: &str, secrets: &[String], any_origin: bool, warnings: &mut Vec<String>) {
    if any_origin {
        warnings.push(format!(
            "project '{pid}' has no allowed_origins: a page of any origin may connect; list the \
             origins, or write [\"*\"] if that is meant"
        ));
    }
    for (index, secret) in secrets.iter().enumerate() {
        let number = index + 1;
        if secret == DEV_SECRET {
            warnings.push(format!(
                "secret {number} of project '{pid}' is the published dev-secret: anyone can sign \
                 with it; give random text of at least {SECRET_BYTES_WANTED} bytes"
            ));
        } else if secret.len() < SECRET_BYTES_WANTED {
            warnings.push(format!(
                "secret {number} of project '{pid}' is shorter than {SECRET_BYTES_WANTED} bytes: \
                 it can be guessed; give random text"
            ));
        }
    }
}

/// An origin as browsers send it (RFC 6454, section 6.2), `null`, or `*`. What a browser never
/// sends would match nothing, silently; so it is refused here, with the way to write it.
fn check_origin(text: &str) -> Result<(), &'static str> {
    if text == "*" || text == "null" {
        return Ok(());
    }
    let Some((scheme, rest)) = text.split_once("://") else {
        return Err("give scheme://host with an optional :port");
    };
    let scheme_ok = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b));
    if !scheme_ok {
        return Err("give scheme://host with an optional :port");
    }
    if rest.contains(['/', '?', '#']) {
        return Err("leave out the path and the slash behind the host");
    }
    if text.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err("write it in lower case, as browsers send it");
    }
    if !rest.is_ascii() {
        return Err("write the host in its xn-- form, as browsers send it");
    }
    let (host, port) = match rest.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (rest, None),
    };
    let host_ok = match host.strip_prefix('[').and_then(|inner| inner.strip_suffix(']')) {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            !host.is_empty()
                && host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b))
        }
    };
    if !host_ok {
        return Err("give a host name without wildcards, user names or blanks");
    }
    match (scheme, port) {
        ("https", Some("443")) | ("http", Some("80")) => {
            Err("leave out the default port, as browsers do")
        }
        (_, Some(port)) if port.parse::<u16>().is_err() || port.starts_with(['0', '+']) => {
            Err("give a port from 1 to 65535 behind the host")
        }
        _ => Ok(()),
    }
}

/// The projects file, to say on which line something is wrong.
struct Place<'a> {
    file: &'a str,
    text: &'a str,
}

impl Place<'_> {
    fn line(&self, at: usize) -> usize {
        1 + self.text.bytes().take(at).filter(|&b| b == b'\n').count()
    }

    fn error(&self, at: usize, text: impl Display) -> Exit {
        Exit::Error(format!("{}, line {}: {text}", self.file, self.line(at)))
    }
}

#[cfg(test)]
mod tests {
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

    fn projects(text: &str, env: Env) -> Result<(Projects, Vec<String>), String> {
        let mut warnings = Vec::new();
        parse_projects("p.toml", text, env, &mut warnings)
            .map(|projects| (projects, warnings))
            .map_err(|exit| exit.to_string())
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
    fn a_whole_projects_file() {
        let text = "[[project]]\npid = \"1\"\nsecrets = [\"new\", \"old\"]\n\n[[project]]\n\
                    pid = \"shop.eu\"\nsecrets = [\"s\"]\nallowed_origins = [\"https://a.example\", \
                    \"http://localhost:3000\", \"http://[::1]:80\", \"null\", \"*\", \
                    \"app+x://host\"]\nsubscribe = \"signed\"\n";
        // The one origin that browsers would send without its port.
        let text = text.replace("[::1]:80", "[::1]:8080");
        let (projects, warnings) = projects(&text, Env::Dev).unwrap();
        assert!(warnings.is_empty());
        let (_, first) = projects.find("1").unwrap();
        assert_eq!((first.secrets.len(), first.subscribe), (2, SubscribePolicy::Any));
        let (_, shop) = projects.find("shop.eu").unwrap();
        assert_eq!(shop.subscribe, SubscribePolicy::Signed);
        assert_eq!(shop.allowed_origins.as_ref().unwrap().len(), 6);
    }

    #[test]
    fn a_wrong_projects_file_names_the_line_the_value_and_the_fix() {
        let head = "[[project]]\npid = 'a'\n";
        let full = "[[project]]\npid = 'a'\nsecrets = ['s']\n";
        for (text, wanted) in [
            (String::new(), "p.toml: no project in it: add at least one [[project]]"),
            ("# nothing\n".into(), "p.toml: no project in it"),
            (format!("{full}{full}"), "p.toml, line 4: pid 'a' was given before, on line 1"),
            (format!("{head}secrets = []\n"), "p.toml, line 3: secrets of project 'a' is emp"),
            (
                format!("{head}secrets = ['x', '']\n"),
                "p.toml, line 3: secret 2 of project 'a' is empty: give",
            ),
            (
                format!("{head}secrets = ['x', 'x']\n"),
                "p.toml, line 3: secret 2 of project 'a' is there twice",
            ),
            (format!("{head}secrets = [7]\n"), "p.toml, line 3: secret 1 of project 'a' is no"),
            (head.into(), "p.toml, line 1: project 'a' has no secrets: add"),
            ("\n[[project]]\nsecrets = ['s']\n".into(), "p.toml, line 2: a project without p"),
            (
                full.replace("'a'", "'a b'"),
                "p.toml, line 2: pid 'a b' is not a project id: give 1 to 64 of",
            ),
            (full.replace("'a'", "''"), "p.toml, line 2: pid '' is not a project id"),
            (full.replace("'a'", "1"), "p.toml, line 2: invalid type: integer `1`"),
            (
                format!("{full}subscribe = 'all'\n"),
                "p.toml, line 4: subscribe 'all' of project 'a' is not known: give \"any\"",
            ),
            (format!("{full}secret = 's'\n"), "p.toml, line 4: unknown field `secret`"),
            (format!("[projects]\n{full}"), "p.toml, line 1: unknown field `projects`"),
            (format!("{full}x = \n"), "p.toml, line 4: "),
        ] {
            let error = projects(&text, Env::Dev).unwrap_err();
            let wanted = format!("ws-cluster: {wanted}");
            assert!(error.starts_with(&wanted), "{error}\n{wanted}");
        }
    }

    #[test]
    fn malformed_origins() {
        for (bad, fix) in [
            ("a.example", "give scheme://host"),
            ("://a.example", "give scheme://host"),
            ("", "give scheme://host"),
            ("https://a.example/", "leave out the path"),
            ("https://a.example/x", "leave out the path"),
            ("https://A.example", "write it in lower case"),
            ("https://bücher.example", "write the host in its xn-- form"),
            ("https://*.example", "give a host name without wildcards"),
            ("https://", "give a host name"),
            ("https://u@a.example", "give a host name"),
            ("https://[::g]", "give a host name"),
            ("https://a.example:443", "leave out the default port"),
            ("http://a.example:80", "leave out the default port"),
            ("https://a.example:", "give a port from 1 to 65535"),
            ("https://a.example:65536", "give a port from 1 to 65535"),
        ] {
            let text = format!(
                "[[project]]\npid='a'\nsecrets=['s']\nallowed_origins = [\n'*',\n'{bad}']\n"
            );
            let error = projects(&text, Env::Dev).unwrap_err();
            let wanted = format!(
                "ws-cluster: p.toml, line 6: allowed_origins of project 'a': '{bad}' is not an \
                 origin: {fix}"
            );
            assert!(error.starts_with(&wanted), "{error}\n{wanted}");
        }
    }

    /// A parser's error quotes what it stumbled over, and that would put a secret into the log.
    #[test]
    fn no_error_shows_a_secret() {
        for text in [
            "[[project]]\npid='a'\nsecrets='hunter2'\n",
            "[[project]]\npid='a'\nsecrets=[hunter2]\n",
            "[[project]]\npid='a'\nsecrets=['hunter2' x]\n",
            "[[project]]\npid='a'\nsecrets={new='hunter2'}\n",
            "[[project]]\npid='a'\nsecrets=['hunter2', 'hunter2']\n",
            "[[project]]\npid='a'\nsecrets=['hunter2\n",
        ] {
            let error = projects(text, Env::Dev).unwrap_err();
            assert!(error.contains("p.toml, line 3"), "{error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
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
