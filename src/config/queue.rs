//! The part of the configuration that is about the queue between nodes.

use std::str::FromStr;

use super::Exit;
use super::raw_args::RawArgs;
use super::setting::Source;
use crate::state::broker::MAX_MESSAGE_BYTES;
use crate::types::{Limits, Routing};
use crate::wire::redis_url::{DEFAULT_PORT, Endpoint, RedisUrl};

/// What carries messages between nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Queue {
    /// No other node: the workers of this process alone.
    Local,
    /// The publish/subscribe of one Redis.
    Redis,
}

/// The fields of [`super::Config`] that are about the queue.
pub(super) struct QueueSettings {
    pub(super) queue: Queue,
    pub(super) redis: RedisUrl,
    pub(super) redis_prefix: String,
    pub(super) timeout_ms: u64,
    pub(super) routing: Routing,
    pub(super) broker_thread: bool,
    pub(super) idempotency_keys: usize,
}

impl QueueSettings {
    pub(super) fn resolve(
        raw: &RawArgs,
        from: &Source<'_>,
        workers: usize,
        warnings: &mut Vec<String>,
    ) -> Result<Self, Exit> {
        let queue = from.get("queue", &raw.queue);
        let queue = queue.parsed(Queue::Local, "a queue", "give local or redis", "local")?;
        let redis = resolve_redis(raw, from, queue, warnings)?;
        let prefix = from.get("redis_prefix", &raw.redis_prefix).parsed(
            Prefix("wsc".into()),
            "a prefix of names in Redis",
            "give 1 to 64 of A-Z a-z 0-9 _ . : and -, without braces",
            "wsc",
        )?;
        let timeout = from.get("queue_timeout_ms", &raw.queue_timeout_ms);
        let timeout_ms = timeout.number("a time in milliseconds", 2_000, 100..=60_000)?;
        let routing = from.get("routing", &raw.routing);
        let fix = "give project, or user for a channel per connected user as well";
        let routing = routing.parsed(Routing::Project, "a routing", fix, "project")?;
        let broker_thread = resolve_broker_thread(raw, from, workers)?;
        let keys = from.get("idempotency_keys", &raw.idempotency_keys);
        let keys = keys.number("a number of keys", 1_000_000, 1_000..=100_000_000)?;
        Ok(Self {
            queue,
            redis,
            redis_prefix: prefix.0,
            timeout_ms,
            routing,
            broker_thread,
            idempotency_keys: keys as usize,
        })
    }
}

impl QueueSettings {
    /// What may be sent must be something that the queue can carry.
    pub(super) fn check_sizes(&self, limits: &Limits) -> Result<(), Exit> {
        if self.queue == Queue::Local {
            return Ok(());
        }
        let sizes =
            [("max_body_bytes", limits.body_bytes), ("max_message_bytes", limits.message_bytes)];
        match sizes.into_iter().find(|(_, bytes)| *bytes > MAX_MESSAGE_BYTES) {
            Some((flag, bytes)) => Err(Exit::Error(format!(
                "--{flag} {bytes} is more than --queue redis carries in one message, \
                 {MAX_MESSAGE_BYTES} bytes: give e.g. --{flag} 16M"
            ))),
            None => Ok(()),
        }
    }
}

/// The value is never quoted: a URL that cannot be read may hold a password anywhere.
fn resolve_redis(
    raw: &RawArgs,
    from: &Source<'_>,
    queue: Queue,
    warnings: &mut Vec<String>,
) -> Result<RedisUrl, Exit> {
    let setting = from.get("redis", &raw.redis);
    let name = setting.name();
    let Some(text) = &setting.text else { return Ok(local_redis()) };
    let redis: RedisUrl = text
        .parse()
        .map_err(|error| Exit::Error(format!("{name} is not a URL of a Redis server: {error}")))?;
    if redis.password.is_some() && !setting.from_env {
        warnings.push(
            "--redis has a password in it, which every user of this machine can read in the list \
             of processes: give it as WS_CLUSTER_REDIS instead"
                .into(),
        );
    }
    if queue == Queue::Local {
        warnings.push(format!(
            "{name} has no effect with --queue local: give --queue redis, or leave it out"
        ));
    }
    Ok(redis)
}

/// The default, `redis://127.0.0.1:6379/0`.
fn local_redis() -> RedisUrl {
    let endpoint = Endpoint::Tcp { host: "127.0.0.1".into(), port: DEFAULT_PORT };
    RedisUrl { endpoint, user: None, password: None, db: 0 }
}

fn resolve_broker_thread(raw: &RawArgs, from: &Source<'_>, workers: usize) -> Result<bool, Exit> {
    let setting = from.get("broker_thread", &raw.broker_thread);
    let refused = format!(
        "{} needs a single worker, whose thread the broker shares, and there are {workers}: leave \
         it out, or give --workers 1",
        setting.written("false")
    );
    match setting.flag(workers > 1)? {
        false if workers > 1 => Err(Exit::Error(refused)),
        own => Ok(own),
    }
}

impl FromStr for Queue {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "local" => Ok(Self::Local),
            "redis" => Ok(Self::Redis),
            _ => Err(()),
        }
    }
}

/// No braces: a Redis Cluster would hash what is between them alone.
struct Prefix(String);

impl FromStr for Prefix {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let is_name = |b: u8| b.is_ascii_alphanumeric() || b"_.:-".contains(&b);
        match (1..=64).contains(&text.len()) && text.bytes().all(is_name) {
            true => Ok(Self(text.into())),
            false => Err(()),
        }
    }
}
