//! Floor 0: what the other floors talk about. Ids and limits; no I/O, no clock, no randomness.

mod events;
mod ids;
mod incarnation;
mod limits;
mod routing;
pub mod version;

pub use events::EventSet;
pub use ids::{
    Cid, ConnKey, IdError, MessageId, NodeId, SnowflakeClock, is_device, is_name, is_pid,
};
pub use incarnation::Incarnation;
pub use limits::Limits;
pub use routing::Routing;
