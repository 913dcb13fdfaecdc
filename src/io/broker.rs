//! The node's broker and its links to Redis: who drives it, and on which thread.
//!
//! The [`driver`] keeps the links open and hands replies to [`crate::state::broker::Broker`]. With
//! one worker it runs on that worker's thread ([`inline`]), with several on its own ([`threaded`]).

mod connect;
pub mod driver;
pub mod inline;
pub(super) mod pending;
pub mod threaded;
