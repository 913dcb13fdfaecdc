//! The settings of a node that its threads read: resolved once, shared by all of them in one `Arc`,
//! never changed. `config` builds them, and every other floor reads these.

use crate::types::{Env, Limits, Networks, NodeId, Routing};
use crate::wire::redis_url::RedisUrl;
use crate::wire::sign::Token;

/// Each field has the meaning of the flag of the same name, unless it says otherwise.
#[derive(Debug, Clone)]
pub struct Settings {
    pub node: NodeId,
    pub env: Env,
    /// The pid and the secret of the built-in project of `dev`, if it is in use: the console of the
    /// live page prefills them.
    pub dev_project: Option<(&'static str, &'static str)>,
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
    /// Proxies that are believed when they name the client of a connection or a request.
    pub trusted_proxies: Networks,
    pub times: Times,
    pub limits: Limits,
    pub memory: Memory,
    /// Idempotency keys of pushes that one worker remembers, so that it does not deliver one twice.
    pub idempotency_keys: usize,
    /// Whether clients get their own frames back, and nothing unsolicited; for measurements only,
    /// never in `prod`.
    pub echo: bool,
    /// Host names accepted by the ops ports, besides their address and localhost.
    pub ops_hosts: Vec<String>,
    /// Token that requests to the ops ports must carry.
    pub ops_token: Option<Token>,
    /// `None`: the `local` queue.
    pub redis: Option<RedisSettings>,
}

/// Timeouts and intervals.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Times {
    /// How long a stopping node still serves.
    pub drain_delay_ms: u64,
    /// How long it then takes until it ends, at most.
    pub drain_ms: u64,
    /// Time without traffic in either direction after which a WebSocket connection is pinged.
    pub ping_interval_ms: u64,
    /// Silence of the peer after which its WebSocket connection ends with 4002; it is pinged at
    /// half of it at the latest.
    pub idle_timeout_ms: u64,
    /// Time within which a WebSocket message must arrive completely; then closed with 1008.
    pub message_timeout_ms: u64,
    /// Time within which an HTTP request must arrive completely, then 408; and within which a
    /// client's request must be answered by a business server.
    pub request_timeout_ms: u64,
    /// Time within which a WebSocket handshake must be answered; then 408 or 503.
    pub handshake_timeout_ms: u64,
    /// How long an HTTP connection may wait for its next request.
    pub keep_alive_ms: u64,
    /// How long a closing connection waits for its peer's FIN.
    pub linger_ms: u64,
    /// How long a worker holds a batch of pushes for more of them; 0: not at all.
    pub coalesce_us: u64,
}

/// Bounds on memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// Unsent bytes of one connection; above it, closed with 4000.
    pub outbox_bytes: usize,
    /// Unsent bytes of all connections of one worker; above it, the largest is closed first.
    pub worker_outbox_bytes: usize,
    /// Unsent bytes of a business server's connection; above it, closed with 4000.
    pub server_outbox_bytes: usize,
    /// Unsent bytes that the kernel takes for one socket; 0: the kernel decides.
    pub send_buffer_bytes: usize,
    /// Memory of one worker's unanswered HTTP requests; above it, 503.
    pub worker_body_bytes: usize,
    /// Memory of one worker's incomplete messages; above it, the oldest is closed first with 1008.
    pub worker_inbound_bytes: usize,
}

/// Settings of `--queue redis`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RedisSettings {
    pub url: RedisUrl,
    /// The prefix of the names of all channels and keys.
    pub prefix: String,
    /// How long a push waits for the queue's answer; then 504.
    pub queue_timeout_ms: u64,
    pub routing: Routing,
    /// Whether the broker has its own thread; otherwise it runs on that of the only worker.
    pub broker_thread: bool,
}

/// Settings without a single flag, on a machine without a memory limit and with one worker: for
/// tests and measurements, which change what they are about.
impl Default for Settings {
    fn default() -> Self {
        Self {
            node: NodeId::new(1).unwrap_or_default(),
            env: Env::Dev,
            dev_project: None,
            workers: 1,
            pin: true,
            max_connections: 1_000_000,
            max_http_connections: 10_000,
            max_handshakes: 1_024,
            trusted_proxies: Networks::NONE,
            times: Times::default(),
            limits: Limits::default(),
            memory: Memory::default(),
            idempotency_keys: 1_000_000,
            echo: false,
            ops_hosts: Vec::new(),
            ops_token: None,
            redis: None,
        }
    }
}

impl Default for Times {
    fn default() -> Self {
        Self {
            drain_delay_ms: 0,
            drain_ms: 8_000,
            ping_interval_ms: 45_000,
            idle_timeout_ms: 120_000,
            message_timeout_ms: 30_000,
            request_timeout_ms: 10_000,
            handshake_timeout_ms: 10_000,
            keep_alive_ms: 620_000,
            linger_ms: 2_000,
            coalesce_us: 0,
        }
    }
}

impl Default for Memory {
    fn default() -> Self {
        Self {
            outbox_bytes: 1 << 20,
            worker_outbox_bytes: 256 << 20,
            server_outbox_bytes: 64 << 20,
            send_buffer_bytes: 128 << 10,
            worker_body_bytes: 64 << 20,
            worker_inbound_bytes: 64 << 20,
        }
    }
}
