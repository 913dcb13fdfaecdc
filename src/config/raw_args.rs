//! What was typed: argh's view of the arguments, every value still text.

use argh::FromArgs;

use super::Exit;
use super::setting::Setting;

/// What was typed, every value still text. The names are argh's; `--ws_port` is folded to
/// `--ws-port` before.
#[derive(FromArgs)]
#[argh(
    help_triggers("-h", "--help"),
    description = "ws-cluster: a WebSocket push server, thread per core over io_uring.",
    note = "Names work with underscores as well (--ws_port), and as --ws_port=8812.\n\
            Every flag is an environment variable too: WS_CLUSTER_WS_PORT=8812,\n\
            WS_CLUSTER_ECHO=true; the flag wins, an empty variable counts as absent.\n\
            Sizes take the suffixes K, M and G (1024, 1024^2, 1024^3).\n\
            A port of 0 takes any free one.\n\n\
            The projects file is TOML:\n\n\
            [[project]]\n\
            pid = \"shop\"\n\
            secrets = [\"at least 16 random bytes\"]      # several while rotating\n\
            allowed_origins = [\"https://shop.example\"]  # optional; absent: any\n\
            subscribe = \"any\"                           # any (default), none or signed",
    error_code(0, "asked for help or the version, or ended in order"),
    error_code(2, "a wrong argument or a wrong projects file")
)]
pub(super) struct RawArgs {
    /// print the version and end
    #[argh(switch)]
    pub(super) version: bool,
    /// this node's number in the cluster, 0 to 1023, its own (default 1)
    #[argh(option)]
    pub(super) node: Option<String>,
    /// the port for WebSocket connections (default 8812)
    #[argh(option)]
    pub(super) ws_port: Option<String>,
    /// the port of the HTTP API (default 8912)
    #[argh(option)]
    pub(super) http_port: Option<String>,
    /// the port of the Prometheus metrics (default 9091)
    #[argh(option)]
    pub(super) prometheus_port: Option<String>,
    /// the port of profiles, /debug/pprof/ (default 6060; if that is in use, a free one)
    #[argh(option)]
    pub(super) pprof_port: Option<String>,
    /// the port of the live page and of Swagger UI, /swagger/index.html (default 9092; if that is
    /// in use, a free one)
    #[argh(option)]
    pub(super) swagger_port: Option<String>,
    /// the IP address of the three ports above (default 127.0.0.1); any other needs --ops_token
    #[argh(option)]
    pub(super) ops_bind: Option<String>,
    /// names by which those ports may be asked, separated by commas, beside localhost and the
    /// address they are bound to: a DNS name, that of a proxy
    #[argh(option)]
    pub(super) ops_hosts: Option<String>,
    /// what those ports demand as `Authorization: Bearer`, at least 16 bytes; given as
    /// WS_CLUSTER_OPS_TOKEN, because every user of the machine sees the arguments of a process
    #[argh(option)]
    pub(super) ops_token: Option<String>,
    /// the IP address of the WebSocket port and of the HTTP port (default 127.0.0.1; with --env
    /// prod 0.0.0.0); :: is all of IPv6 and IPv4
    #[argh(option)]
    pub(super) bind: Option<String>,
    /// the IP address of the HTTP port, where it differs (default: that of --bind)
    #[argh(option)]
    pub(super) http_bind: Option<String>,
    /// what carries messages between nodes: local (default), for a node that is alone; or redis,
    /// the publish/subscribe of the server at --redis
    #[argh(option)]
    pub(super) queue: Option<String>,
    /// the server of --queue redis (default redis://127.0.0.1:6379/0), in full
    /// redis://user:password@host:port/db or unix://user:password@/path?db=0; a password is given
    /// as WS_CLUSTER_REDIS, because every user of the machine sees the arguments of a process
    #[argh(option)]
    pub(super) redis: Option<String>,
    /// what the names of channels and keys in Redis begin with, 1 to 64 of A-Z a-z 0-9 _ . : -
    /// (default wsc); the same on all nodes of a cluster, another for each cluster
    #[argh(option)]
    pub(super) redis_prefix: Option<String>,
    /// how long a push waits for the queue's answer before it gets 504, 100 to 60000 (default
    /// 2000)
    #[argh(option)]
    pub(super) queue_timeout_ms: Option<String>,
    /// which channels of the queue a node listens to: project (default), one for each project; or
    /// user, one for each connected user as well, for clusters of many nodes where most pushes
    /// are to single users. The same on all nodes
    #[argh(option)]
    pub(super) routing: Option<String>,
    /// give the queue's connections a thread of their own, true or false (default: true with two
    /// or more workers; a single worker shares its thread)
    #[argh(option)]
    pub(super) broker_thread: Option<String>,
    /// idempotency keys that one worker remembers, 1000 to 100000000 (default 1000000)
    #[argh(option)]
    pub(super) idempotency_keys: Option<String>,
    /// dev (default), test or prod; prod demands --projects and an exp in every signed request
    #[argh(option)]
    pub(super) env: Option<String>,
    /// the projects file (default in dev and test: project 1 with the secret dev-secret)
    #[argh(option)]
    pub(super) projects: Option<String>,
    /// worker threads, 1 to 64 (default: cores - 1)
    #[argh(option)]
    pub(super) workers: Option<String>,
    /// pin every worker to a core, true (default) or false
    #[argh(option)]
    pub(super) pin: Option<String>,
    /// open WebSocket connections of this node (default 1000000)
    #[argh(option)]
    pub(super) max_connections: Option<String>,
    /// open HTTP connections of one worker (default 10000)
    #[argh(option)]
    pub(super) max_http_connections: Option<String>,
    /// handshakes of one worker whose request has not arrived whole; beyond, the oldest is refused
    /// (default 1024, at most a quarter of the worker's descriptors)
    #[argh(option)]
    pub(super) max_handshakes: Option<String>,
    /// how long a stopping node waits for its connections (default 10000)
    #[argh(option)]
    pub(super) drain_ms: Option<String>,
    /// a WebSocket connection on which nothing was sent or received for this long is pinged, at
    /// least 100, at most 5 s late (default 45000, below the 60 s of common proxies)
    #[argh(option)]
    pub(super) ping_interval_ms: Option<String>,
    /// silence after which a WebSocket connection ends, at least 100; it is pinged at half of it
    /// at the latest (default 120000)
    #[argh(option)]
    pub(super) idle_timeout_ms: Option<String>,
    /// time for a WebSocket message to arrive whole; beyond it the connection ends with 1008
    /// (default 30000)
    #[argh(option)]
    pub(super) message_timeout_ms: Option<String>,
    /// time for an HTTP request to arrive whole, beyond it 408; and for a client's request to be
    /// answered by a business server, beyond it "timeout" (default 10000)
    #[argh(option)]
    pub(super) request_timeout_ms: Option<String>,
    /// time for a WebSocket handshake to arrive and to be answered (default: request_timeout_ms)
    #[argh(option)]
    pub(super) handshake_timeout_ms: Option<String>,
    /// time an HTTP connection may wait for its next request (default 620000, above the 600 s
    /// of common load balancers)
    #[argh(option)]
    pub(super) keep_alive_ms: Option<String>,
    /// time a closing connection waits for its peer (default 2000)
    #[argh(option)]
    pub(super) linger_ms: Option<String>,
    /// microseconds that a worker holds pushes back for more of them, so that several share one
    /// send per connection; 0 (default) to 10000. Answers, welcomes and closes are never held
    #[argh(option)]
    pub(super) coalesce_us: Option<String>,
    /// size of a client's message (default 64K)
    #[argh(option)]
    pub(super) max_message_bytes: Option<String>,
    /// size of an HTTP body or of a business server's message (default 1M)
    #[argh(option)]
    pub(super) max_body_bytes: Option<String>,
    /// size of a request's head, 1K to 64K (default 8K)
    #[argh(option)]
    pub(super) max_head_bytes: Option<String>,
    /// header fields of a request, 16 to 256 (default 100)
    #[argh(option)]
    pub(super) max_head_fields: Option<String>,
    /// tags of one connection, 1 to 1024 (default 256)
    #[argh(option)]
    pub(super) max_tags: Option<String>,
    /// ids in one selector of a push, 1 to 10000 (default 1000)
    #[argh(option)]
    pub(super) max_selector_ids: Option<String>,
    /// messages in one batch, 1 to 10000 (default 1000)
    #[argh(option)]
    pub(super) max_batch: Option<String>,
    /// bytes of a project's id, 1 to 255 (default 64)
    #[argh(option)]
    pub(super) max_pid_bytes: Option<String>,
    /// bytes of a user's id, 1 to 255 (default 128)
    #[argh(option)]
    pub(super) max_uid_bytes: Option<String>,
    /// bytes of a tag, 1 to 255 (default 128)
    #[argh(option)]
    pub(super) max_tag_bytes: Option<String>,
    /// bytes of a device, 1 to 255 (default 32)
    #[argh(option)]
    pub(super) max_device_bytes: Option<String>,
    /// unsent bytes of one connection (default 1M)
    #[argh(option)]
    pub(super) outbox_bytes: Option<String>,
    /// memory for what sockets of one worker have not taken (default: a quarter of the memory limit
    /// divided by the workers, at most 256M)
    #[argh(option)]
    pub(super) worker_outbox_bytes: Option<String>,
    /// memory for HTTP requests of one worker; beyond, they get 503 (default 64M, at least four
    /// times max_body_bytes)
    #[argh(option)]
    pub(super) worker_body_bytes: Option<String>,
    /// memory that the process may use (default: the limit of its control group, or all of the
    /// machine's)
    #[argh(option)]
    pub(super) memory_limit_bytes: Option<String>,
    /// unsent bytes that the kernel takes for one socket, 0 to let it decide (default 128K)
    #[argh(option)]
    pub(super) send_buffer_bytes: Option<String>,
    /// unsent bytes of a business server's connection (default 64M)
    #[argh(option)]
    pub(super) server_outbox_bytes: Option<String>,
    /// memory of all WebSocket messages of one worker that have not arrived whole; beyond it the
    /// oldest ends first (default 64M)
    #[argh(option)]
    pub(super) worker_inbound_bytes: Option<String>,
    /// send clients their own frames back, for measuring; refused with --env prod
    #[argh(switch)]
    pub(super) echo: bool,
    /// what to log, a tracing filter (default info)
    #[argh(option)]
    pub(super) log: Option<String>,
    /// text (default), for people; or json, one object a line, for machines
    #[argh(option)]
    pub(super) log_format: Option<String>,
    /// the file to log to (default: standard output); SIGUSR1 and SIGHUP open it anew
    #[argh(option)]
    pub(super) log_path: Option<String>,
    /// begin a new file every hour or day by UTC: hourly, daily (default) or never
    #[argh(option)]
    pub(super) log_rotate: Option<String>,
    /// begin a new file when it would be longer (default 100M); 0: however long
    #[argh(option)]
    pub(super) log_max_bytes: Option<String>,
    /// rotated files to keep, compressed, 1 to 10000 (default 14)
    #[argh(option)]
    pub(super) log_keep: Option<String>,
    /// the Sentry that errors and panics are reported to, https://KEY@HOST/PROJECT; given as
    /// WS_CLUSTER_SENTRY_DSN, because every user of the machine sees the arguments of a process
    #[argh(option)]
    pub(super) sentry_dsn: Option<String>,
}

impl RawArgs {
    pub(super) fn parse(args: &[String]) -> Result<Self, Exit> {
        let folded = fold_names(args)?;
        let folded: Vec<&str> = folded.iter().map(String::as_str).collect();
        Self::from_args(&["ws-cluster"], &folded).map_err(|early| match early.status {
            Ok(()) => Exit::Help(early.output),
            Err(()) => {
                let output = without_urls(early.output, &folded);
                let output = output.split_whitespace().collect::<Vec<_>>().join(" ");
                let output = output.trim_end_matches('.');
                Exit::Error(format!("{output}: ws-cluster --help lists the arguments"))
            }
        })
    }
}

/// A complaint quotes a stray argument, which may be the URL of `--redis` with its password.
fn without_urls(mut output: String, args: &[&str]) -> String {
    for arg in args {
        if arg.contains("://") || arg.contains('@') {
            output = output.replace(arg, "***");
        }
    }
    output
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
