//! The part of the configuration for the queue between nodes.

use std::str::FromStr;

use super::flags;
use super::mistake::Mistake;
use super::setting::Source;
use crate::state::broker::MAX_MESSAGE_BYTES;
use crate::state::settings::RedisSettings;
use crate::types::{Limits, Routing};
use crate::wire::redis_url::RedisUrl;

/// What carries messages between nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Queue {
    /// No other nodes: only the workers of this process.
    Local,
    /// Pub/Sub of one Redis.
    Redis,
}

/// Resolves `--queue` and the flags of `--queue redis`, which are checked with either.
pub(super) fn resolve(
    from: &Source<'_>,
    workers: usize,
    limits: &Limits,
    warnings: &mut Vec<Mistake>,
) -> Option<RedisSettings> {
    let queue = from.get(&flags::QUEUE).parsed(Queue::Local);
    let url = resolve_redis(from, queue, warnings);
    let fallback = Prefix(flags::REDIS_PREFIX.default.into());
    let Prefix(prefix) = from.get(&flags::REDIS_PREFIX).parsed(fallback);
    let queue_timeout_ms = from.get(&flags::QUEUE_TIMEOUT_MS).number();
    let routing = from.get(&flags::ROUTING).parsed(Routing::Project);
    let broker_thread = resolve_broker_thread(from, workers);
    if queue == Queue::Local {
        return None;
    }
    check_sizes(from, limits);
    // Without a URL there is a mistake, and no node.
    Some(RedisSettings { url: url?, prefix, queue_timeout_ms, routing, broker_thread })
}

/// Checks that Redis can carry everything that may be sent.
fn check_sizes(from: &Source<'_>, limits: &Limits) {
    let sizes = [
        (&flags::MAX_BODY_BYTES, limits.body_bytes),
        (&flags::MAX_MESSAGE_BYTES, limits.message_bytes),
    ];
    for (flag, bytes) in sizes.into_iter().filter(|(_, bytes)| *bytes > MAX_MESSAGE_BYTES) {
        let setting = from.get(flag);
        setting.report(format!(
            "{} {bytes} is more than --queue redis carries in one message, {MAX_MESSAGE_BYTES} \
             bytes: use e.g. {}",
            setting.name(),
            setting.written("16M")
        ));
    }
}

/// Resolves the URL. Errors never quote it: a malformed URL may hold a password anywhere.
fn resolve_redis(from: &Source<'_>, queue: Queue, warnings: &mut Vec<Mistake>) -> Option<RedisUrl> {
    let setting = from.secret(&flags::REDIS);
    let name = setting.name();
    let text = setting.text.as_deref().unwrap_or(flags::REDIS.default);
    let redis: Result<RedisUrl, _> = text.parse();
    let redis = redis
        .map_err(|error| setting.report(format!("{name} is not a Redis URL: {error}")))
        .ok()?;
    match redis.password {
        // Displaying the URL shows its password as ***.
        Some(_) => setting.note(redis.to_string()),
        None => setting.reveal(redis.to_string()),
    }
    if redis.password.is_some() && setting.is_visible() {
        warnings.push(
            "--redis contains a password, which every user of this machine can read in the list of \
             processes: set WS_CLUSTER_REDIS instead"
                .into(),
        );
    }
    if queue == Queue::Local && setting.text.is_some() {
        let what = "has no effect with --queue local: use --queue redis, or omit it";
        warnings.push(setting.origin.mistake(format!("{name} {what}")));
    }
    Some(redis)
}

fn resolve_broker_thread(from: &Source<'_>, workers: usize) -> bool {
    let setting = from.get(&flags::BROKER_THREAD);
    let refused = format!(
        "{} needs a single worker, whose thread the broker shares, but there are {workers}: omit \
         it, or use --workers 1",
        setting.written("false")
    );
    let own = setting.flag_or(workers > 1);
    if !own && workers > 1 && from.is_sound(&[&flags::WORKERS]) {
        from.get(&flags::BROKER_THREAD).report(refused);
    }
    own
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

/// A prefix without braces: a Redis Cluster would hash only what is between them.
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
