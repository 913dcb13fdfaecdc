//! Floor 2: who is here and what belongs to whom; no sockets, no clock, no randomness.

pub mod projects;
