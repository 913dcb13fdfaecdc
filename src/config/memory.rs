//! What may be unsent, and the memory limit from which the defaults follow.

use super::raw_args::RawArgs;
use super::setting::Source;
use super::{Exit, GIB, limits};
use crate::io::memory::MemoryLimit;
use crate::types::Limits;

/// The highest default of `--worker_outbox_bytes`, and the share of the limit that all workers'
/// outboxes together have by default: the rest is for requests, connections and the program.
const MAX_WORKER_OUTBOX_BYTES: u64 = 256 << 20;
const OUTBOX_SHARE: u64 = 4;
/// The same for HTTP requests, and for messages that have not arrived whole.
const BODY_SHARE: u64 = 8;

/// What may be kept in memory.
#[derive(Debug, Clone)]
pub struct Memory {
    /// Unsent bytes of one connection; beyond: closed with 4000.
    pub outbox_bytes: usize,
    /// Unsent bytes of all connections of one worker; beyond: the largest is closed first.
    pub worker_outbox_bytes: usize,
    /// Unsent bytes of a business server's connection; beyond: closed with 4000.
    pub server_outbox_bytes: usize,
    /// Unsent bytes that the kernel takes for one socket; 0: as it likes.
    pub send_buffer_bytes: usize,
    /// What the process may use; `None`: it cannot be read.
    pub limit: Option<MemoryLimit>,
    /// What HTTP requests of one worker that are not answered may take; beyond: 503.
    pub worker_body_bytes: usize,
    /// Memory of the messages of one worker that have not arrived whole; beyond, the oldest is
    /// closed first with 1008.
    pub worker_inbound_bytes: usize,
}

impl Memory {
    pub(super) fn resolve(
        raw: &RawArgs,
        from: &Source<'_>,
        workers: usize,
        limits: &Limits,
    ) -> Result<Self, Exit> {
        let size = |flag, arg, default, range| {
            from.get(flag, arg).size(default, range).map(|bytes| bytes as usize)
        };
        let setting = from.get("memory_limit_bytes", &raw.memory_limit_bytes);
        let limit = match setting.text {
            Some(_) => Some(MemoryLimit::given(setting.size(0, 32 << 20..=1_024 * GIB)?)),
            None => MemoryLimit::detect(),
        };
        let outbox = size("outbox_bytes", &raw.outbox_bytes, 1_048_576, 4_096..=GIB)?;
        let range = 4_096..=1_024 * GIB;
        let share = limit.as_ref().map_or(u64::MAX, |limit| limit.bytes / OUTBOX_SHARE);
        let default = (share / workers as u64).min(MAX_WORKER_OUTBOX_BYTES).max(outbox as u64);
        let worker_outbox = size("worker_outbox_bytes", &raw.worker_outbox_bytes, default, range)?;
        if worker_outbox < outbox {
            return Err(Exit::Error(format!(
                "--worker_outbox_bytes {worker_outbox} is below --outbox_bytes {outbox}: one \
                 connection would use up its worker; give --worker_outbox_bytes at least that \
                 much"
            )));
        }
        let default = 67_108_864.min(worker_outbox as u64);
        let server_outbox =
            size("server_outbox_bytes", &raw.server_outbox_bytes, default, 4_096..=GIB)?;
        let send_buffer = size("send_buffer_bytes", &raw.send_buffer_bytes, 131_072, 0..=GIB)?;
        if (1..4_096).contains(&send_buffer) {
            return Err(Exit::Error(format!(
                "--send_buffer_bytes {send_buffer} is too small for a frame and its answer: give \
                 4096 or more, or 0 to let the kernel decide"
            )));
        }
        let body_share = limit.as_ref().map_or(u64::MAX, |limit| limit.bytes / BODY_SHARE);
        let body_share = body_share / workers as u64;
        Ok(Self {
            outbox_bytes: outbox,
            worker_outbox_bytes: worker_outbox,
            server_outbox_bytes: server_outbox,
            send_buffer_bytes: send_buffer,
            limit,
            worker_body_bytes: limits::worker_body_bytes(raw, from, limits, body_share)?,
            worker_inbound_bytes: worker_inbound_bytes(raw, from, limits, body_share)?,
        })
    }
}

/// A message takes up to twice its size while it arrives.
fn worker_inbound_bytes(
    raw: &RawArgs,
    from: &Source<'_>,
    limits: &Limits,
    memory_share: u64,
) -> Result<usize, Exit> {
    let longest = limits.message_bytes.max(limits.body_bytes) as u64;
    let setting = from.get("worker_inbound_bytes", &raw.worker_inbound_bytes);
    let name = setting.name();
    let bytes =
        setting.size((64 << 20).min(memory_share).max(4 * longest), 65_536..=1_024 * GIB)?;
    if bytes < 2 * longest {
        return Err(Exit::Error(format!(
            "{name} {bytes} is below twice the longest message ({longest} bytes, of \
             --max_body_bytes and --max_message_bytes): such a message could never arrive; give \
             at least {}",
            2 * longest
        )));
    }
    Ok(bytes as usize)
}
