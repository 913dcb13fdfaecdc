//! Floor 1: parsing and encoding of bytes, without I/O.

pub mod api_error;
pub mod bundle;
pub mod chunked;
pub mod client_address;
pub mod connect;
pub mod date;
pub mod envelope;
pub mod forwarded;
pub mod http;
pub mod json;
pub mod member;
pub mod message;
pub mod params;
pub mod parcel;
pub mod proxy_protocol;
pub mod publication;
pub mod push;
pub mod redis_url;
pub mod request;
pub mod resp;
pub mod response;
pub mod selectors;
pub mod server_message;
pub mod sign;
pub mod tags;
pub mod trace_context;
pub mod upgrade;

pub use ws_cluster_wire::{percent, websocket};
