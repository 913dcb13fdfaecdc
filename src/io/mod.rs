//! Floor 3: sockets, rings and threads. The only floor with `unsafe`.
//!
//! A worker's thread runs a monoio executor. The WebSocket port (accept, handshakes, open
//! connections, closes) uses the [`ring`] nested in it, driven by one task ([`drive`]); the HTTP
//! API consists of straight-line monoio tasks ([`http`], [`api`]).

pub mod accept_errors;
pub mod allocator;
pub mod api;
pub mod core;
pub mod date;
pub mod descriptors;
pub mod drive;
pub mod engine;
mod fifo;
pub mod handshake;
pub mod http;
pub mod lane;
mod linger;
pub mod listener;
pub mod mailbox;
pub mod map;
pub mod memory;
pub mod near;
pub mod pauses;
pub mod perf;
pub mod port;
pub mod pulse;
pub mod queue;
mod redis;
mod request_counts;
pub mod ring;
pub mod routes;
mod server_pushes;
pub mod shared;
pub mod spans;
pub mod sys;
pub mod threads;
mod tickets;
pub mod transport;
pub mod wake;
