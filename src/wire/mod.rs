//! Floor 1: bytes to meaning and back, never I/O.

pub mod envelope;
pub mod json;
pub mod message;
