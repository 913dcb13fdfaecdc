//! The part of the configuration that limits what a peer may send.

use super::flags::{self, Flag};
use super::setting::Source;
use crate::types::Limits;

/// Memory of a request besides its body and head: input already read of the next one, or of a
/// chunk.
const REQUEST_BYTES: u64 = 64 << 10;
const WORKER_BODY_BYTES: u64 = 64 << 20;

/// Resolves the memory for all HTTP requests of a worker; a single one must not take all of it.
pub(super) fn worker_body_bytes(from: &Source<'_>, limits: &Limits, memory_share: u64) -> usize {
    let least = (limits.body_bytes + 2 * limits.head_bytes) as u64 + REQUEST_BYTES;
    let default = WORKER_BODY_BYTES.min(memory_share).max(4 * least);
    let bytes = from.get(&flags::WORKER_BODY_BYTES).size_or(default);
    let concerned = [&flags::WORKER_BODY_BYTES, &flags::MAX_BODY_BYTES, &flags::MAX_HEAD_BYTES];
    if bytes < least && from.is_sound(&concerned) {
        let setting = from.get(&flags::WORKER_BODY_BYTES);
        setting.report(format!(
            "{} {bytes} is too small for one request of --max_body_bytes {}: use \
             --worker_body_bytes {least} or more",
            setting.name(),
            limits.body_bytes
        ));
    }
    bytes as usize
}

pub(super) fn resolve(from: &Source<'_>) -> Limits {
    let size = |flag: &'static Flag| from.get(flag).size() as usize;
    let count = |flag: &'static Flag| from.get(flag).number() as usize;
    Limits {
        message_bytes: size(&flags::MAX_MESSAGE_BYTES),
        body_bytes: size(&flags::MAX_BODY_BYTES),
        head_bytes: size(&flags::MAX_HEAD_BYTES),
        head_fields: count(&flags::MAX_HEAD_FIELDS),
        tags: count(&flags::MAX_TAGS),
        selector_ids: count(&flags::MAX_SELECTOR_IDS),
        batch_messages: count(&flags::MAX_BATCH),
        pid_bytes: count(&flags::MAX_PID_BYTES),
        uid_bytes: count(&flags::MAX_UID_BYTES),
        tag_bytes: count(&flags::MAX_TAG_BYTES),
        device_bytes: count(&flags::MAX_DEVICE_BYTES),
    }
}
