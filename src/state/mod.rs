//! Floor 2: who is here and what each is owed. No sockets, no clock, no randomness: time, ids'
//! seeds and hash keys come in as arguments, what must happen outside goes out through the batch.

mod batch;
mod connection;
pub mod counters;
mod directory;
mod outbox;
pub mod projects;
mod targets;
mod worker;

pub use batch::{CloseRequest, Outgoing, Sealed};
pub use connection::CloseCause;
pub use outbox::Outbox;
pub use worker::{Identity, PushOutcome, Released, Worker, WorkerConfig};
