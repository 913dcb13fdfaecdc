//! The part of the configuration that is about what a peer may send.

use std::ops::RangeInclusive;

use super::raw_args::RawArgs;
use super::setting::Source;
use super::{Exit, GIB};
use crate::types::Limits;
use crate::wire::envelope::MAX_NAME_BYTES;
use crate::wire::http::MAX_FIELDS;

/// A signed handshake of a browser has some 15 fields and 700 bytes: smaller limits would refuse
/// it. A head is kept, and read anew with each piece of it, for whoever opens a connection: larger
/// ones would be cheap to fill.
const HEAD_FIELDS: RangeInclusive<u64> = 16..=MAX_FIELDS as u64;
const HEAD_BYTES: RangeInclusive<u64> = 1_024..=65_536;
/// A subscription and a disconnect look through the tags of a connection for each of them: what
/// they cost a worker grows with the square.
const TAGS: RangeInclusive<u64> = 1..=1_024;
/// A worker looks up all ids of a selector, and takes all messages of a batch, without serving
/// anybody else meanwhile.
const IDS: RangeInclusive<u64> = 1..=10_000;
/// What no envelope can carry would reach nobody.
const NAME_BYTES: RangeInclusive<u64> = 1..=MAX_NAME_BYTES as u64;

/// Beside its body and its head: what is read of the next one, or of a chunk.
const REQUEST_BYTES: u64 = 64 << 10;
const WORKER_BODY_BYTES: u64 = 64 << 20;

/// What all HTTP requests of a worker may take; a single one must not take all of it.
pub(super) fn worker_body_bytes(
    raw: &RawArgs,
    from: &Source<'_>,
    limits: &Limits,
    memory_share: u64,
) -> Result<usize, Exit> {
    let least = (limits.body_bytes + 2 * limits.head_bytes) as u64 + REQUEST_BYTES;
    let default = WORKER_BODY_BYTES.min(memory_share).max(4 * least);
    let setting = from.get("worker_body_bytes", &raw.worker_body_bytes);
    let bytes = setting.size(default, 1_024..=1_024 * GIB)?;
    if bytes < least {
        return Err(Exit::Error(format!(
            "--worker_body_bytes {bytes} has no room for one request of --max_body_bytes {}: give \
             --worker_body_bytes {least} or more",
            limits.body_bytes
        )));
    }
    Ok(bytes as usize)
}

pub(super) fn resolve(raw: &RawArgs, from: &Source<'_>) -> Result<Limits, Exit> {
    let default = Limits::default();
    let size = |flag, arg, default: usize, range| {
        from.get(flag, arg).size(default as u64, range).map(|bytes| bytes as usize)
    };
    let count = |flag, arg, what, default: usize, range| {
        from.get(flag, arg).number(what, default as u64, range).map(|number| number as usize)
    };
    let name = |flag, arg, default| count(flag, arg, "a number of bytes", default, NAME_BYTES);
    let ids = |flag, arg, what, default| count(flag, arg, what, default, IDS);
    let fields = "a number of header fields";
    Ok(Limits {
        message_bytes: size(
            "max_message_bytes",
            &raw.max_message_bytes,
            default.message_bytes,
            128..=GIB,
        )?,
        body_bytes: size("max_body_bytes", &raw.max_body_bytes, default.body_bytes, 1_024..=GIB)?,
        head_bytes: size("max_head_bytes", &raw.max_head_bytes, default.head_bytes, HEAD_BYTES)?,
        head_fields: count(
            "max_head_fields",
            &raw.max_head_fields,
            fields,
            default.head_fields,
            HEAD_FIELDS,
        )?,
        tags: count("max_tags", &raw.max_tags, "a number of tags", default.tags, TAGS)?,
        selector_ids: ids(
            "max_selector_ids",
            &raw.max_selector_ids,
            "a number of ids",
            default.selector_ids,
        )?,
        batch_messages: ids(
            "max_batch",
            &raw.max_batch,
            "a number of messages",
            default.batch_messages,
        )?,
        pid_bytes: name("max_pid_bytes", &raw.max_pid_bytes, default.pid_bytes)?,
        uid_bytes: name("max_uid_bytes", &raw.max_uid_bytes, default.uid_bytes)?,
        tag_bytes: name("max_tag_bytes", &raw.max_tag_bytes, default.tag_bytes)?,
        device_bytes: name("max_device_bytes", &raw.max_device_bytes, default.device_bytes)?,
    })
}
