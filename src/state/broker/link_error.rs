//! The two links to Redis by name, and why one is given up.

use crate::wire::resp::RespError;

/// A link that owes an answer and says nothing for so long is dead. With a ping every half second
/// that is noticed within 2 s.
pub(super) const SILENCE_MS: u64 = 1_200;

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkName {
    Publish,
    Subscribe,
}

/// Why a link is given up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    #[error("Redis does not answer (no word for {SILENCE_MS} ms)")]
    Silent,
    #[error("Redis closed the connection")]
    Closed,
    #[error("{0}")]
    Io(String),
    #[error("Redis refused: {0}")]
    Refused(String),
    #[error("Redis answered something that was not asked")]
    Unasked,
    /// `master`: of which, as far as it is known.
    #[error(
        "Redis at {url} is a replica{master}; pushes would not reach other nodes: point --redis at \
         the master"
    )]
    Replica { url: String, master: String },
    #[error("what Redis sent is not RESP: {0}")]
    Malformed(#[from] RespError),
    #[error(
        "what this node publishes does not come back to it: Redis took it, and did not deliver it"
    )]
    CanaryLost,
}
