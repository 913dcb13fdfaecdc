//! The part of the configuration that limits what a peer may send.

use super::Exit;
use super::flags::{self, Flag};
use super::setting::Source;
use crate::types::Limits;

/// Memory of a request besides its body and head: input already read of the next one, or of a
/// chunk.
const REQUEST_BYTES: u64 = 64 << 10;
const WORKER_BODY_BYTES: u64 = 64 << 20;

/// Resolves the memory for all HTTP requests of a worker; a single one must not take all of it.
pub(super) fn worker_body_bytes(
    from: &Source<'_>,
    limits: &Limits,
    memory_share: u64,
) -> Result<usize, Exit> {
    let least = (limits.body_bytes + 2 * limits.head_bytes) as u64 + REQUEST_BYTES;
    let default = WORKER_BODY_BYTES.min(memory_share).max(4 * least);
    let bytes = from.get(&flags::WORKER_BODY_BYTES).size_or(default)?;
    if bytes < least {
        return Err(Exit::Error(format!(
            "--worker_body_bytes {bytes} is too small for one request of --max_body_bytes {}: use \
             --worker_body_bytes {least} or more",
            limits.body_bytes
        )));
    }
    Ok(bytes as usize)
}

pub(super) fn resolve(from: &Source<'_>) -> Result<Limits, Exit> {
    let size = |flag: &'static Flag| from.get(flag).size().map(|bytes| bytes as usize);
    let count = |flag: &'static Flag| from.get(flag).number().map(|number| number as usize);
    Ok(Limits {
        message_bytes: size(&flags::MAX_MESSAGE_BYTES)?,
        body_bytes: size(&flags::MAX_BODY_BYTES)?,
        head_bytes: size(&flags::MAX_HEAD_BYTES)?,
        head_fields: count(&flags::MAX_HEAD_FIELDS)?,
        tags: count(&flags::MAX_TAGS)?,
        selector_ids: count(&flags::MAX_SELECTOR_IDS)?,
        batch_messages: count(&flags::MAX_BATCH)?,
        pid_bytes: count(&flags::MAX_PID_BYTES)?,
        uid_bytes: count(&flags::MAX_UID_BYTES)?,
        tag_bytes: count(&flags::MAX_TAG_BYTES)?,
        device_bytes: count(&flags::MAX_DEVICE_BYTES)?,
    })
}
