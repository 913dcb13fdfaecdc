//! Floor 2: connections and the output queued for each. No sockets, no clock, no randomness: time,
//! id seeds and hash keys are arguments, and effects on the outside leave through the batch.

pub mod active_config;
mod addresses;
mod batch;
pub mod broker;
mod budget;
mod by_size;
pub mod chunked_queue;
pub mod chunked_slab;
mod connection;
pub mod counters;
mod directory;
pub mod drain;
pub mod idempotency;
mod index;
mod members;
mod origin_watermarks;
mod outbox;
pub mod projects;
mod rest;
pub mod router;
pub mod sequence;
pub mod servers;
pub mod settings;
mod sharded_table;
pub mod subscriptions;
mod targets;
mod worker;

pub use batch::{CloseRequest, Outgoing, Sealed};
pub use connection::CloseCause;
pub use outbox::Outbox;
pub use rest::Rest;
pub use worker::{
    Admission, Identity, Note, PendingRequests, PushOutcome, QueueNeeds, Released, Role,
    ServerPush, Worker, WorkerConfig,
};
