//! All flags. `help` is shown by `--help`; in docs/configuration.md `more` follows it. A flag takes
//! effect at the start, unless `reload` says more.

use super::super::GIB;
use super::{Flag, FlagGroup, Reload, ValueKind};
use crate::wire::envelope::MAX_NAME_BYTES;
use crate::wire::http::MAX_FIELDS;

macro_rules! groups {
    ($($title:literal { $($flag:ident = $declared:expr;)* })*) => {
        $($(pub(in crate::config) static $flag: Flag = $declared;)*)*
        pub(in crate::config) static GROUPS: &[FlagGroup] =
            &[$(FlagGroup { title: $title, flags: &[$(&$flag),*] }),*];
    };
}

const MIB: u64 = 1 << 20;
/// Longest hold of a push: people would notice a longer one.
const MAX_COALESCE_US: u64 = 10_000;
/// A browser's signed handshake has about 15 fields and 700 bytes: smaller limits would refuse it.
/// A partial head is kept, and parsed again with each further piece, for anyone who opens a
/// connection: larger limits would be cheap to abuse.
const MIN_HEAD_FIELDS: u64 = 16;
const MIN_HEAD_BYTES: u64 = 1_024;
const HEAD_BYTES_LIMIT: u64 = 65_536;
/// A subscription and a disconnect search a connection's tags for each tag: their cost to a worker
/// grows with the square.
const TAGS_LIMIT: u64 = 1_024;
/// A worker looks up all ids of a selector, and accepts all messages of a batch, without serving
/// anyone else in the meantime.
const MAX_IDS: u64 = 10_000;

/// Declares a maximum length of a name: one that no envelope can carry would reach nobody.
const fn name_bytes(name: &'static str) -> Flag {
    Flag::number(name, "a number of bytes", 1, MAX_NAME_BYTES as u64)
}

const fn ip(name: &'static str) -> Flag {
    let (value, what, example) = ("IP", "an IP address", "127.0.0.1");
    let fix = "use an IPv4 or IPv6 address of this machine, not a link-local (fe80::) or multicast \
        one, or 0.0.0.0 (IPv4) or :: (both) for all";
    Flag::new(name, ValueKind::Text { value, what, fix, example })
}

const fn word(
    name: &'static str,
    value: &'static str,
    what: &'static str,
    fix: &'static str,
    example: &'static str,
) -> Flag {
    Flag::new(name, ValueKind::Text { value, what, fix, example })
}

groups! {
    "The node" {
        CONFIG = Flag::free("config", "FILE")
            .help("a TOML file of these flags; each key is a flag's name without the dashes")
            .more(", see [The config file](#the-config-file)")
            .reload(Reload::Takes);
        NODE = Flag::number("node", "a node number", 0, 1_023).default("1")
            .help("this node's number, unique in the cluster");
        ENV = word("env", "ENV", "an environment", "use dev, test or prod", "dev").default("dev")
            .choices(&["dev", "test", "prod"])
            .help(
                "`dev`, `test` or `prod`; `prod` requires --projects and an `exp` in every signed \
                 request",
            );
        PROJECTS = Flag::free("projects", "FILE")
            .help("the projects file; without one, dev and test have project `1` with the secret \
                `dev-secret`")
            .more(", see [Projects](#projects)")
            .reload(Reload::Takes);
        WORKERS = Flag::number("workers", "a number of workers", 1, 64).computed("cores - 1")
            .help("worker threads");
        PIN = Flag::bool("pin").default("true").help("pin every worker to a core");
        ECHO = Flag::new("echo", ValueKind::Switch).default("false")
            .help("echo every client's frames back, for benchmarks; refused with `--env prod`");
    }
    "Addresses and ports" {
        WS_PORT = Flag::port("ws_port").default("8812")
            .help("the port for WebSocket connections")
            .more("; here and below, 0 picks any free port");
        HTTP_PORT = Flag::port("http_port").default("8912").help("the port of the HTTP API");
        BIND = ip("bind").computed("127.0.0.1; with `--env prod` 0.0.0.0")
            .help("the IP address of these two ports; :: means all IPv6 and IPv4 addresses")
            .more(", see [Addresses](#addresses)");
        HTTP_BIND = ip("http_bind").computed("that of --bind")
            .help("the IP address of the HTTP port, if it differs");
        TRUSTED_PROXIES = Flag::free("trusted_proxies", "NETWORKS")
            .help("proxies in front of these two ports, as IP networks separated by commas, e.g. \
                10.0.0.0/8,::1: a client's address is what they report, with the PROXY protocol or \
                X-Forwarded-For")
            .more(", see [The client's address](proxies.md#the-clients-address)")
            .reload(Reload::Takes);
        PROMETHEUS_PORT = Flag::port("prometheus_port").default("9091")
            .help("the port of the Prometheus metrics");
        PPROF_PORT = Flag::port("pprof_port").default("6060")
            .help("the port of profiles, /debug/pprof/; if the default is in use, a free one is \
                chosen and logged");
        SWAGGER_PORT = Flag::port("swagger_port").default("9092")
            .help("the port of the live page and of Swagger UI, /swagger/index.html; if the \
                default is in use, a free one is chosen and logged");
        OPS_BIND = ip("ops_bind").default("127.0.0.1")
            .help("the IP address of the three ports above; anything but loopback needs \
                --ops_token");
        OPS_HOSTS = Flag::free("ops_hosts", "NAMES")
            .help("further host names that requests to those three ports may use, separated by \
                commas: a DNS name, a proxy's name; localhost and their address always work")
            .more(". See [The ops ports](monitor.md#the-ops-ports)")
            .reload(Reload::Takes);
        OPS_TOKEN = Flag::secret("ops_token", "TOKEN")
            .help("the token that those three require as `Authorization: Bearer TOKEN`, at least \
                16 characters")
            .more(
                ", or as `?token=…` for tools that accept only a URL; a browser shows a form for \
                 it",
            )
            .reload(Reload::Takes);
    }
    "The queue between nodes" {
        QUEUE = word("queue", "QUEUE", "a queue", "use local or redis", "local").default("local")
            .choices(&["local", "redis"])
            .help(
                "what carries messages between nodes: `local`, for a single node; `redis`, Pub/Sub \
                 of the server at --redis",
            );
        REDIS = Flag::secret("redis", "URL").default("redis://127.0.0.1:6379/0")
            .help("the server of `--queue redis`: `redis://user:password@host:port/db` or \
                `unix://user:password@/path?db=0`")
            .more(", see [The URL of Redis](#the-url-of-redis)");
        REDIS_PREFIX = word(
            "redis_prefix",
            "PREFIX",
            "a prefix of names in Redis",
            "use 1 to 64 of A-Z a-z 0-9 _ . : and -, without braces",
            "wsc",
        )
            .default("wsc")
            .help("prefix of all channels and keys in Redis, 1 to 64 of `A-Z a-z 0-9 _ . : -`; the \
                same on all nodes of a cluster, different for each cluster");
        QUEUE_TIMEOUT_MS = Flag::number("queue_timeout_ms", "a time in milliseconds", 100, 60_000)
            .default("2000")
            .help("time that a push waits for the queue's reply; after that it is answered with \
                504");
        ROUTING = word(
            "routing",
            "ROUTING",
            "a routing",
            "use project, or user for a channel per connected user as well",
            "project",
        )
            .default("project")
            .choices(&["project", "user"])
            .help("the channels that a node subscribes to: `project`, one for each project; \
                `user`, one for each connected user as well, for clusters of many nodes where most \
                pushes are to single users. The same on all nodes");
        BROKER_THREAD = Flag::bool("broker_thread").computed("true with two or more workers")
            .help("run the queue's connections on a thread of their own; a single worker shares \
                its thread with them unless this is `true`");
        IDEMPOTENCY_KEYS = Flag::number("idempotency_keys", "a number of keys", 1_000, 100_000_000)
            .default("1000000")
            .help("idempotency keys that one worker remembers");
    }
    "Connections and timeouts" {
        MAX_CONNECTIONS =
            Flag::number("max_connections", "a number of connections", 1, 100_000_000)
            .default("1000000")
            .help("maximum number of open WebSocket connections on this node; further ones get 503")
            .more(". The limit of open files may leave room for fewer, see [Open \
                files](tune.md#open-files)")
            .reload(Reload::UpToStart);
        MAX_HTTP_CONNECTIONS =
            Flag::number("max_http_connections", "a number of connections", 1, 1_000_000)
            .default("10000")
            .help("maximum number of open HTTP connections on one worker")
            .more(
                ", at most half of its [descriptors](tune.md#open-files); above it, the connection \
                 that has waited longest for its peer is closed, or the new one gets 503 if all \
                 have requests in progress",
            )
            .reload(Reload::Takes);
        MAX_HANDSHAKES = Flag::number("max_handshakes", "a number of handshakes", 1, 1_000_000)
            .default("1024")
            .help("maximum number of handshakes on one worker whose request is incomplete, at most \
                a quarter of its descriptors; above it, the oldest gets 503")
            .reload(Reload::Takes);
        DRAIN_DELAY_MS = Flag::ms("drain_delay_ms", 0).default("0")
            .help("time that a stopping node still accepts connections and requests while \
                `/readyz` says 503, so that a load balancer notices first")
            .more(", see [Shutdown](drain.md#shutdown)")
            .reload(Reload::Takes);
        DRAIN_MS = Flag::ms("drain_ms", 0).default("8000")
            .help("time that a stopping node then takes to close its connections, evenly; keep \
                the sum of both below what the service manager waits for")
            .more(" (`docker stop`: 10 s)")
            .reload(Reload::Takes);
        PING_INTERVAL_MS = Flag::ms("ping_interval_ms", 100).default("45000")
            .help("a WebSocket connection that has been idle for this long is pinged, at most 5 s \
                late; keep it below the idle timeout of every proxy in front")
            .more(", see [Behind a proxy](proxies.md)")
            .reload(Reload::Takes);
        IDLE_TIMEOUT_MS = Flag::ms("idle_timeout_ms", 100).default("120000")
            .help("a WebSocket connection whose peer has sent nothing for this long is closed with \
                4002; it is pinged after half of it at the latest")
            .more(", so that it can answer")
            .reload(Reload::Takes);
        MESSAGE_TIMEOUT_MS = Flag::ms("message_timeout_ms", 100).default("30000")
            .help("time for all fragments of a WebSocket message to arrive; after that the \
                connection is closed with 1008")
            .more(". 64 KiB in 30 s is 17 kbit/s")
            .reload(Reload::Takes);
        REQUEST_TIMEOUT_MS = Flag::ms("request_timeout_ms", 100).default("10000")
            .help("time for a complete HTTP request to arrive, after that it gets 408; and for a \
                business server to answer a client's request, after that the client gets \
                \"timeout\"")
            .reload(Reload::Takes);
        HANDSHAKE_TIMEOUT_MS =
            Flag::ms("handshake_timeout_ms", 100).computed("that of --request_timeout_ms")
            .help("time for a complete WebSocket handshake to arrive; after that it gets 408")
            .more("; and for Redis to confirm the subscriptions it needs, after that it gets 503")
            .reload(Reload::Takes);
        KEEP_ALIVE_MS = Flag::ms("keep_alive_ms", 100).default("620000")
            .help("time that an HTTP connection may wait for its next request; keep it above the \
                idle timeout of a proxy that keeps connections open")
            .more(", see [Behind a proxy](proxies.md)")
            .reload(Reload::Takes);
        LINGER_MS = Flag::ms("linger_ms", 0).default("2000")
            .help("time that a closing connection waits for its peer to close")
            .reload(Reload::Takes);
        COALESCE_US = Flag::number("coalesce_us", "a time in microseconds", 0, MAX_COALESCE_US)
            .default("0")
            .help("time in microseconds that a worker holds pushes to collect more of them, so \
                that several share one send per connection; replies, welcomes and closes are never \
                held")
            .more(
                ": they are sent at once, with everything held before them; a push with a \
                 `ttl_ms` is sent before it expires. [When it pays](measured.md#coalescing)",
            )
            .reload(Reload::Takes);
    }
    "Limits of what peers send" {
        MAX_MESSAGE_BYTES = Flag::size("max_message_bytes", 128, GIB).default("64K")
            .help("maximum size of a client's message; a larger one closes the connection with \
                1009")
            .reload(Reload::Takes);
        MAX_BODY_BYTES = Flag::size("max_body_bytes", 1_024, GIB).default("1M")
            .help("maximum size of an HTTP body (larger: 413) and of a business server's message \
                (larger: 1009)")
            .more(". With `--queue redis` 63M at most")
            .reload(Reload::Takes);
        MAX_HEAD_BYTES =
            Flag::size("max_head_bytes", MIN_HEAD_BYTES, HEAD_BYTES_LIMIT).default("8K")
            .help("maximum size of a request's head (larger: 431)")
            .reload(Reload::Takes);
        MAX_HEAD_FIELDS = Flag::number(
            "max_head_fields",
            "a number of header fields",
            MIN_HEAD_FIELDS,
            MAX_FIELDS as u64,
        )
            .default("100")
            .help("maximum number of header fields in a request (more: 431)")
            .reload(Reload::Takes);
        MAX_TAGS = Flag::number("max_tags", "a number of tags", 1, TAGS_LIMIT).default("256")
            .help("maximum number of tags of one connection (more: 400, or a refused message)")
            .reload(Reload::Takes);
        MAX_SELECTOR_IDS = Flag::number("max_selector_ids", "a number of ids", 1, MAX_IDS)
            .default("1000")
            .help("maximum number of ids in one selector of a push (more: 400)")
            .reload(Reload::Takes);
        MAX_BATCH = Flag::number("max_batch", "a number of messages", 1, MAX_IDS).default("1000")
            .help("maximum number of messages in one batch (more: 400)")
            .reload(Reload::Takes);
        MAX_PID_BYTES = name_bytes("max_pid_bytes").default("64")
            .help("maximum length of a project id in bytes (longer: 400; in the projects file, an \
                error)")
            .reload(Reload::Takes);
        MAX_UID_BYTES = name_bytes("max_uid_bytes").default("128")
            .help("maximum length of a user id in bytes (longer: 400)")
            .reload(Reload::Takes);
        MAX_TAG_BYTES = name_bytes("max_tag_bytes").default("128")
            .help("maximum length of a tag in bytes (longer: 400, or a refused message)")
            .reload(Reload::Takes);
        MAX_DEVICE_BYTES = name_bytes("max_device_bytes").default("32")
            .help("maximum length of a device in bytes (longer: 400)")
            .reload(Reload::Takes);
    }
    "Memory" {
        MEMORY_LIMIT_BYTES = Flag::size("memory_limit_bytes", 32 * MIB, 1_024 * GIB)
            .computed("the cgroup's limit, else the machine's memory")
            .help("memory that the process may use; other defaults are derived from it")
            .more(", see [Memory](tune.md#memory)");
        OUTBOX_BYTES = Flag::size("outbox_bytes", 4_096, GIB).default("1M")
            .help("maximum unsent bytes of one connection; above it, the connection is closed with \
                4000 (slow consumer)")
            .more(
                ". Everything behind the frame that is being sent counts, plus 24 bytes for each \
                 frame. At least twice --max_message_bytes",
            )
            .reload(Reload::Takes);
        WORKER_OUTBOX_BYTES = Flag::size("worker_outbox_bytes", 4_096, 1_024 * GIB)
            .computed("a quarter of the memory limit, divided by --workers, at most 256M")
            .help("memory for the unsent bytes of all connections of one worker; above it, the \
                connection with the largest outbox is closed with 4000")
            .more(
                ". Allocated memory counts, shared frames once. Closing connections lose the rest \
                 of their frame first",
            )
            .reload(Reload::Takes);
        SERVER_OUTBOX_BYTES = Flag::size("server_outbox_bytes", 4_096, GIB)
            .computed("64M, at most --worker_outbox_bytes")
            .help("maximum unsent bytes of a business server's connection; above it, the \
                connection is closed with 4000")
            .reload(Reload::Takes);
        SEND_BUFFER_BYTES = Flag::size("send_buffer_bytes", 0, GIB).default("128K")
            .help("unsent bytes that the kernel buffers for one socket (SO_SNDBUF); 0 lets it \
                decide")
            .more(", up to 4 MB. Its cost is in [Memory](tune.md#memory)");
        WORKER_BODY_BYTES = Flag::size("worker_body_bytes", 1_024, 1_024 * GIB)
            .computed("64M, or an eighth of the memory limit divided by --workers")
            .help("memory for the HTTP requests of one worker; above it, requests get 503")
            .more(
                ". By default at least four times --max_body_bytes, see [Incomplete \
                 requests](tune.md#incomplete-requests)",
            )
            .reload(Reload::Takes);
        WORKER_INBOUND_BYTES = Flag::size("worker_inbound_bytes", 65_536, 1_024 * GIB)
            .computed("64M, or an eighth of the memory limit divided by --workers")
            .help("memory for all incomplete WebSocket messages of one worker; above it, the \
                connection whose message is the oldest is closed with 1008")
            .more(". At least twice the longest message")
            .reload(Reload::Takes);
    }
    "Logs and error reports" {
        LOG = Flag::free("log", "FILTER").default("info")
            .help("what to log: a level (error, warn, info, debug, trace, off), with or without \
                target=level pairs, e.g. `info,ws_cluster=debug`")
            .more("; any other word is refused. If no level is given, targets that no pair names \
                are logged from info on. See [Logs](monitor.md#logs), also for the flags below")
            .reload(Reload::Takes);
        LOG_FORMAT = word("log_format", "FORMAT", "a log format", "use text or json", "json")
            .default("text")
            .choices(&["text", "json"])
            .help("`text`, for people; `json`, one object per line, for machines");
        LOG_PATH = Flag::free("log_path", "FILE")
            .help("the file to log to; without it, standard output. SIGUSR1 and SIGHUP reopen it")
            .reload(Reload::Reopen);
        LOG_ROTATE = word(
            "log_rotate",
            "WHEN",
            "a rotation interval",
            "use hourly, daily or never",
            "daily",
        )
            .default("daily")
            .choices(&["hourly", "daily", "never"])
            .help("start a new log file every hour or day (UTC): `hourly`, `daily` or `never`");
        LOG_MAX_BYTES = Flag::size("log_max_bytes", 65_536, 1_024 * GIB).default("100M")
            .help("maximum size of a log file, after which a new one is started; 0: no maximum");
        LOG_KEEP = Flag::number("log_keep", "a number of files", 1, 10_000).default("14")
            .help("number of rotated log files to keep, compressed");
        SENTRY_DSN = Flag::secret("sentry_dsn", "DSN")
            .help("the Sentry project to report errors and panics to, https://KEY@HOST/PROJECT")
            .more(", see [Sentry](monitor.md#sentry)");
    }
}
