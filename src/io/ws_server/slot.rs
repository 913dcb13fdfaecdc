//! What the WebSocket server stores for an open connection, besides what its worker stores.

use crate::io::ring::GENERATION_MASK;
use crate::wire::websocket::Inbound;
use std::os::fd::OwnedFd;

/// The socket of an open connection, at the index of its slab slot.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) inbound: Option<Box<Inbound>>,
    /// `None`: the slot is free.
    pub(super) fd: Option<OwnedFd>,
    /// Generation in the low 24 bits; above them `POLLED`, `PAUSED` and `HELD`.
    pub(super) state: u32,
}

const _: () = assert!(size_of::<Slot>() == 16, "a descriptor's niche is the free slot");

/// Not read until its outbox has drained, or until the replies to its messages have been sent.
pub(super) const PAUSED: u32 = 1 << 31;
/// A poll for its next bytes is pending.
pub(super) const POLLED: u32 = 1 << 30;
/// Its `inbound` may hold complete messages.
pub(super) const HELD: u32 = 1 << 29;

impl Slot {
    pub(super) fn is_generation(&self, generation: u32) -> bool {
        self.fd.is_some() && self.state & GENERATION_MASK == generation
    }
}
