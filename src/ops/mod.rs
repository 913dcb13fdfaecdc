//! Floor 4: what operators see of a node, on separate ports and a separate thread, so that nothing
//! here can slow or stop a worker.

mod access;
mod asset;
mod client;
#[cfg(test)]
pub(crate) mod doc_tables;
mod job;
pub mod logs;
pub mod metrics;
mod names;
mod node_view;
pub mod openapi;
pub mod otel;
pub mod pages;
pub mod pprof;
pub mod reload;
mod reply;
pub mod sentry;
pub mod server;
pub mod site;
