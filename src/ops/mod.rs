//! Floor 3: what operators look at. Nothing here can slow or stop a worker.

pub mod metrics;
