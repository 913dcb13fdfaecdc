//! Bounds on unsent data, and the memory limit from which the defaults follow.

use super::flags;
use super::limits;
use super::setting::Source;
use crate::io::memory::MemoryLimit;
use crate::state::settings::Memory;
use crate::types::Limits;

/// The highest default of `--worker_outbox_bytes`, and the divisor of the limit that gives the
/// default for all workers' outboxes together: the rest is for requests, connections and the
/// program.
const MAX_WORKER_OUTBOX_BYTES: u64 = 256 << 20;
const OUTBOX_SHARE: u64 = 4;
/// The highest default of `--server_outbox_bytes`.
const MAX_SERVER_OUTBOX_BYTES: u64 = 64 << 20;
/// The same divisor for HTTP requests, and for incomplete messages.
const BODY_SHARE: u64 = 8;

/// Resolves the memory limit.
pub(super) fn limit(from: &Source<'_>) -> Option<MemoryLimit> {
    let setting = from.get(&flags::MEMORY_LIMIT_BYTES);
    let limit = match setting.text {
        Some(_) => Some(MemoryLimit::given(setting.size())),
        None => MemoryLimit::detect(),
    };
    if let Some(limit) = &limit {
        from.get(&flags::MEMORY_LIMIT_BYTES).note(flags::size(limit.bytes));
    }
    limit
}

pub(super) fn resolve(
    from: &Source<'_>,
    limit: Option<&MemoryLimit>,
    workers: usize,
    limits: &Limits,
) -> Memory {
    let outbox = from.get(&flags::OUTBOX_BYTES).size();
    let share = limit.map_or(u64::MAX, |limit| limit.bytes / OUTBOX_SHARE);
    let default = (share / workers as u64).min(MAX_WORKER_OUTBOX_BYTES).max(outbox);
    let worker_outbox = from.get(&flags::WORKER_OUTBOX_BYTES).size_or(default);
    let concerned = [&flags::OUTBOX_BYTES, &flags::WORKER_OUTBOX_BYTES];
    if worker_outbox < outbox && from.is_sound(&concerned) {
        let setting = from.get(&flags::WORKER_OUTBOX_BYTES);
        setting.report(format!(
            "{} {worker_outbox} is less than --outbox_bytes {outbox}: one connection could use up \
             its worker's memory; use --worker_outbox_bytes {outbox} or more",
            setting.name()
        ));
    }
    let default = MAX_SERVER_OUTBOX_BYTES.min(worker_outbox);
    let server_outbox = from.get(&flags::SERVER_OUTBOX_BYTES).size_or(default);
    let send_buffer = from.get(&flags::SEND_BUFFER_BYTES).size();
    if (1..4_096).contains(&send_buffer) {
        let setting = from.get(&flags::SEND_BUFFER_BYTES);
        setting.report(format!(
            "{} {send_buffer} is too small for a frame and its reply: use 4096 or more, or 0 to \
             let the kernel decide",
            setting.name()
        ));
    }
    let body_share = limit.map_or(u64::MAX, |limit| limit.bytes / BODY_SHARE);
    let body_share = body_share / workers as u64;
    Memory {
        outbox_bytes: outbox as usize,
        worker_outbox_bytes: worker_outbox as usize,
        server_outbox_bytes: server_outbox as usize,
        send_buffer_bytes: send_buffer as usize,
        worker_body_bytes: limits::worker_body_bytes(from, limits, body_share),
        worker_inbound_bytes: worker_inbound_bytes(from, limits, body_share),
    }
}

/// Resolves `--worker_inbound_bytes`. A message takes up to twice its size while it arrives.
fn worker_inbound_bytes(from: &Source<'_>, limits: &Limits, memory_share: u64) -> usize {
    let longest = limits.message_bytes.max(limits.body_bytes) as u64;
    let setting = from.get(&flags::WORKER_INBOUND_BYTES);
    let bytes = setting.size_or((64 << 20).min(memory_share).max(4 * longest));
    let concerned =
        [&flags::WORKER_INBOUND_BYTES, &flags::MAX_BODY_BYTES, &flags::MAX_MESSAGE_BYTES];
    if bytes < 2 * longest && from.is_sound(&concerned) {
        let setting = from.get(&flags::WORKER_INBOUND_BYTES);
        setting.report(format!(
            "{} {bytes} is less than twice the longest message ({longest} bytes by \
             --max_body_bytes and --max_message_bytes), which could never arrive; use {} or more",
            setting.name(),
            2 * longest
        ));
    }
    bytes as usize
}
