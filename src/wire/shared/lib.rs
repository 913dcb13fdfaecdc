//! What the server and its load tool have in common on the wire: frames, signatures, and the
//! percent-encoding under a signature. A crate of its own, so that the load tool links nothing else
//! of the server.

#![warn(clippy::unwrap_used, clippy::expect_used)]

pub mod percent;
pub mod sign;
pub mod websocket;
