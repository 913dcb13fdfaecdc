//! Floor 1: bytes to meaning and back, never I/O.

pub mod chunked;
pub mod envelope;
pub mod http;
pub mod json;
pub mod message;
pub mod params;
pub mod response;
pub mod sign;
pub mod upgrade;
