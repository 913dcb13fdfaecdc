//! IPv6 addresses of clients.

use super::chunked_slab::ChunkedSlab;
use std::net::Ipv6Addr;

/// The addresses that have no room in a slab entry, by the index that the entry holds instead: 20
/// bytes each, only for those who come over IPv6. Does not grow in one piece.
#[derive(Debug, Default)]
pub struct Addresses(ChunkedSlab<Ipv6Addr>);

impl Addresses {
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Adds an address and returns its index.
    pub fn insert(&mut self, ip: Ipv6Addr) -> u32 {
        self.0.insert(ip) as u32
    }

    pub fn get(&self, index: u32) -> Option<Ipv6Addr> {
        self.0.get(index as usize).copied()
    }

    /// Removes an address. Its index is reused.
    pub fn remove(&mut self, index: u32) {
        self.0.try_remove(index as usize);
    }
}
