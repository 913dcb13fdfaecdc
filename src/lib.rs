//! ws-cluster: a WebSocket push server, thread per core over io_uring.

#![warn(clippy::unwrap_used, clippy::expect_used)]

pub mod commands;
pub mod config;
pub mod io;
pub mod node;
pub mod ops;
pub mod state;
pub mod types;
pub mod wire;
