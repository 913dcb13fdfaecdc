//! The node as the sites see it.

use crate::io::shared::Shared;
use std::net::SocketAddr;
use std::sync::Arc;

/// What the node's threads share, and the addresses of its public ports.
pub struct NodeView {
    pub shared: Arc<Shared>,
    pub ws: SocketAddr,
    pub http: SocketAddr,
}
