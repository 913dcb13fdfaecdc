//! Floor 1: bytes to meaning and back, never I/O.

pub mod chunked;
pub mod connect;
pub mod envelope;
pub mod http;
pub mod json;
pub mod message;
pub mod params;
pub mod push;
pub mod request;
pub mod response;
pub mod selectors;
pub mod sign;
pub mod upgrade;
