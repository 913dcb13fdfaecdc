//! Floor 3: sockets, rings and threads. The only floor with `unsafe`.
//!
//! A worker's thread runs a monoio executor. The WebSocket port (accept, handshakes, open
//! connections, closes) uses the [`ring`] nested in it, driven by one task ([`tasks`]); the HTTP
//! API consists of straight-line monoio tasks ([`http`], [`api`]).

pub mod accept_errors;
pub mod allocator;
pub mod api;
pub mod broker;
pub mod clock;
pub mod date;
pub mod descriptors;
mod fifo;
pub mod handshake;
pub mod http;
mod http_accept;
pub mod http_port;
pub mod inherited;
pub mod lane;
mod linger;
pub mod listener;
pub mod mailbox;
pub mod memory;
pub mod mmap;
pub mod pauses;
pub mod perf;
pub mod pulse;
mod request_counts;
pub mod ring;
pub mod routes;
mod server_pushes;
pub mod shared;
pub mod spans;
pub mod sync;
pub mod sys;
pub mod tasks;
pub mod threads;
pub mod transport;
pub mod worker_context;
pub mod ws_server;
