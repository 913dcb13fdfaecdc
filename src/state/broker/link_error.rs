//! Names of the two links to Redis, and the errors that end one.

use crate::wire::resp::RespError;

/// A link on which a reply is due and nothing arrives for this time is dead. With a PING every half
/// second it is detected within 2 s.
pub(super) const SILENCE_MS: u64 = 1_200;

/// Names one of the two links.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkName {
    Publish,
    Subscribe,
}

/// Why a link is given up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    #[error("Redis does not answer (no reply for {SILENCE_MS} ms)")]
    Silent,
    #[error("Redis closed the connection")]
    Closed,
    #[error("{0}")]
    Io(String),
    #[error("Redis refused: {0}")]
    Refused(String),
    #[error("Redis sent a reply that matches no command")]
    Unasked,
    /// `master`: the address of its master, if known.
    #[error(
        "Redis at {url} is a replica{master}; pushes would not reach other nodes: point --redis at \
         the master"
    )]
    Replica { url: String, master: String },
    #[error("Redis sent malformed data: {0}")]
    Malformed(#[from] RespError),
    #[error("this node's own messages do not come back: Redis accepts but does not deliver them")]
    CanaryLost,
}
