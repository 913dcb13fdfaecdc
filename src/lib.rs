//! ws-cluster: a WebSocket push server, thread per core over io_uring.

pub mod types;
pub mod wire;
