//! Wire code shared by the server and its load tool: frames, signatures, and the percent-encoding
//! under a signature. A separate crate, so that the load tool links nothing else of the server.

#![warn(clippy::unwrap_used, clippy::expect_used)]

pub mod percent;
pub mod sign;
pub mod websocket;
