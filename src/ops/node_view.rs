//! The node as the ops sites see it.

use crate::io::shared::Shared;
use std::net::SocketAddr;
use std::sync::Arc;

/// State shared by the node's threads, and the addresses of its public ports.
pub struct NodeView {
    pub shared: Arc<Shared>,
    pub ws: SocketAddr,
    pub http: SocketAddr,
}
