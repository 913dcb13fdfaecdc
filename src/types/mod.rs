//! Floor 0: the vocabulary of the other floors. Ids, names, dates and limits; no I/O, no clock, no
//! randomness.

mod calendar;
mod clock;
mod env;
mod events;
mod ids;
mod incarnation;
mod limits;
mod names;
mod networks;
mod routing;
pub mod version;

pub use calendar::date_of;
pub use clock::{MonotonicMs, Now, WallMs};
pub use env::Env;
pub use events::EventSet;
pub use ids::{
    Cid, ConnKey, IdError, MessageId, NodeId, SnowflakeClock, is_device, is_name, is_pid,
};
pub use incarnation::Incarnation;
pub use limits::Limits;
pub use names::{in_one_line, quoted, similar, unknown};
pub use networks::{NetworkError, Networks};
pub use routing::Routing;
