//! One open connection, as plain data.

use super::addresses::Addresses;
use super::outbox::Outbox;
use crate::types::Cid;
use crate::wire::websocket::{Violation, close};
use compact_str::CompactString;
use std::net::{IpAddr, Ipv4Addr};

/// No slot, no entry, end of list: an index that is never valid.
pub const NONE: u32 = u32::MAX;

/// Why a connection ends; determines the code sent to its peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloseCause {
    /// The peer sent Close; its code is sent back (RFC 6455 section 5.5.1).
    Peer(u16),
    /// The peer broke a rule of RFC 6455.
    Violation(Violation),
    /// It did not read fast enough: 4000.
    SlowConsumer,
    /// Nothing was received from it for the idle timeout: 4002.
    Idle,
    /// Its session ended and was not refreshed: 4003.
    SessionExpired,
    /// The node shuts down: 1001, with the advised reconnect delay.
    GoingAway { reconnect_after_ms: u32 },
    /// One of its messages did not arrive completely in time: 1008.
    MessageTimeout,
    /// The worker needed the memory of its incomplete message: 1008.
    InboundBudget,
    /// A reload has removed its project: 1008.
    ProjectRemoved,
    /// The socket is gone: nothing can be sent.
    Gone,
}

impl CloseCause {
    /// Its index in [`super::counters::CLOSE_CAUSES`].
    pub fn index(self) -> usize {
        match self {
            Self::Peer(_) => 0,
            Self::Violation(_) => 1,
            Self::SlowConsumer => 2,
            Self::Idle => 3,
            Self::GoingAway { .. } => 4,
            Self::Gone => 5,
            Self::SessionExpired => 6,
            Self::MessageTimeout => 7,
            Self::InboundBudget => 8,
            Self::ProjectRemoved => 9,
        }
    }

    /// The code of the Close frame; `None` if there is no peer to send it to.
    pub fn code(self) -> Option<u16> {
        match self {
            Self::Peer(code) => Some(code),
            Self::Violation(violation) => Some(violation.code),
            Self::SlowConsumer => Some(close::SLOW_CONSUMER),
            Self::Idle => Some(close::IDLE),
            Self::SessionExpired => Some(close::SESSION_EXPIRED),
            Self::GoingAway { .. } => Some(close::GOING_AWAY),
            Self::MessageTimeout | Self::InboundBudget | Self::ProjectRemoved => {
                Some(close::POLICY)
            }
            Self::Gone => None,
        }
    }
}

/// One subscription: the tag, and this connection's position in the tag's member list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TagRef {
    pub tag: u32,
    pub position: u32,
}

/// Eight bytes in the entry instead of the 24 of a bare `Vec`: there are many connections, and only
/// those with two or more tags pay for the list.
#[derive(Debug)]
pub struct ManyTags(Box<TagList>);

type TagList = Vec<TagRef>;

/// A connection's subscriptions. A single one costs nothing beyond the entry.
#[derive(Debug, Default)]
pub enum TagSet {
    #[default]
    None,
    One(TagRef),
    Many(ManyTags),
}

impl TagSet {
    pub fn as_slice(&self) -> &[TagRef] {
        match self {
            Self::None => &[],
            Self::One(tag) => std::slice::from_ref(tag),
            Self::Many(tags) => &tags.0,
        }
    }

    pub fn as_mut_slice(&mut self) -> &mut [TagRef] {
        match self {
            Self::None => &mut [],
            Self::One(tag) => std::slice::from_mut(tag),
            Self::Many(tags) => &mut tags.0,
        }
    }

    pub fn contains(&self, tag: u32) -> bool {
        self.as_slice().iter().any(|entry| entry.tag == tag)
    }

    pub fn add(&mut self, tag: TagRef) {
        match self {
            Self::None => *self = Self::One(tag),
            Self::One(first) => *self = Self::Many(ManyTags(Box::new(vec![*first, tag]))),
            Self::Many(tags) => tags.0.push(tag),
        }
    }

    /// Removes the entry of `tag`, keeping the order of the others.
    pub fn remove(&mut self, tag: u32) -> Option<TagRef> {
        let at = self.as_slice().iter().position(|entry| entry.tag == tag)?;
        match self {
            Self::None => None,
            Self::One(entry) => {
                let entry = *entry;
                *self = Self::None;
                Some(entry)
            }
            Self::Many(tags) => {
                let entry = tags.0.remove(at);
                match tags.0[..] {
                    [] => *self = Self::None,
                    [last] => *self = Self::One(last),
                    _ => {}
                }
                Some(entry)
            }
        }
    }
}

/// The slab entry. It is at most 104 bytes; ARCHITECTURE.md gives the reason for every field.
#[derive(Debug)]
pub struct Connection {
    pub cid: Cid,
    /// Up to 24 bytes inline, longer ones on the heap.
    pub uid: CompactString,
    pub tags: TagSet,
    pub outbox: Option<Box<Outbox>>,
    pub generation: u32,
    pub project: u32,
    /// The group of its project and device, and its position in the group's member list.
    pub group: u32,
    pub group_position: u32,
    /// Next connection of the same user; `NONE` ends the list.
    pub user_next: u32,
    pub user_previous: u32,
    /// Its entry in the open batch, or `NONE`.
    pub dirty: u32,
    /// Number of the last message that considered it, so that no message reaches it twice.
    pub visit_epoch: u32,
    /// When anything was last received from it, on the worker's millisecond clock, which wraps.
    pub last_heard_ms: u32,
    /// Unix seconds at which its session ends; 0: never.
    pub session_exp: u32,
    /// When a frame was last sent or received, on the sweep's coarse clock, which wraps.
    pub last_frame: u16,
    flags: Flags,
    /// The client's address, in the form that the flags name.
    address: u32,
}

/// Several facts in one byte.
#[derive(Debug, Clone, Copy, Default)]
struct Flags(u8);

impl Flags {
    const CLOSING: u8 = 1;
    const PINGED: u8 = 1 << 1;
    const SERVER: u8 = 1 << 2;
    const IPV4: u8 = 1 << 3;
    const IPV6: u8 = 1 << 4;

    fn has(self, flag: u8) -> bool {
        self.0 & flag != 0
    }

    fn set(&mut self, flag: u8, on: bool) {
        self.0 = self.0 & !flag | if on { flag } else { 0 };
    }
}

impl Connection {
    pub fn new(cid: Cid, generation: u32, project: u32, uid: &str, heard_ms: u32) -> Self {
        Self {
            cid,
            uid: CompactString::new(uid),
            tags: TagSet::None,
            outbox: None,
            generation,
            project,
            group: NONE,
            group_position: NONE,
            user_next: NONE,
            user_previous: NONE,
            dirty: NONE,
            visit_epoch: 0,
            last_heard_ms: heard_ms,
            session_exp: 0,
            last_frame: 0,
            flags: Flags::default(),
            address: 0,
        }
    }

    /// Whether it is not being closed. A closing one is no longer in the directory; its slot is
    /// released once its last bytes are being written.
    pub fn is_open(&self) -> bool {
        !self.flags.has(Flags::CLOSING)
    }

    pub fn set_closing(&mut self) {
        self.flags.set(Flags::CLOSING, true);
    }

    /// Whether a ping was sent since anything was last received.
    pub fn is_pinged(&self) -> bool {
        self.flags.has(Flags::PINGED)
    }

    pub fn set_pinged(&mut self, is_pinged: bool) {
        self.flags.set(Flags::PINGED, is_pinged);
    }

    /// Whether it belongs to a business server: then it is in no index of the directory, so that no
    /// push finds it.
    pub fn is_server(&self) -> bool {
        self.flags.has(Flags::SERVER)
    }

    pub fn set_server(&mut self) {
        self.flags.set(Flags::SERVER, true);
    }

    /// Stores the client's address: an IPv6 address in `addresses`, until
    /// [`Connection::release_ip`]. It must have none yet.
    pub fn set_ip(&mut self, ip: IpAddr, addresses: &mut Addresses) {
        let flag;
        (flag, self.address) = match ip.to_canonical() {
            IpAddr::V4(ip) => (Flags::IPV4, ip.to_bits()),
            IpAddr::V6(ip) => (Flags::IPV6, addresses.insert(ip)),
        };
        self.flags.set(flag, true);
    }

    /// Returns the client's address; `None` if it is unknown.
    pub fn ip(&self, addresses: &Addresses) -> Option<IpAddr> {
        if self.flags.has(Flags::IPV4) {
            return Some(IpAddr::V4(Ipv4Addr::from_bits(self.address)));
        }
        addresses.get(self.ipv6_index()?).map(IpAddr::V6)
    }

    /// Forgets the client's address.
    pub fn release_ip(&mut self, addresses: &mut Addresses) {
        if let Some(index) = self.ipv6_index() {
            addresses.remove(index);
        }
        self.flags.set(Flags::IPV4 | Flags::IPV6, false);
    }

    /// Returns the index of its IPv6 address, if it has one.
    pub fn ipv6_index(&self) -> Option<u32> {
        self.flags.has(Flags::IPV6).then_some(self.address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_small() {
        assert!(size_of::<Connection>() <= 104, "{}", size_of::<Connection>());
        assert_eq!(size_of::<Connection>(), size_of::<Option<Connection>>());
    }

    #[test]
    fn facts_share_a_byte_and_the_address_is_in_four() {
        let mut addresses = Addresses::default();
        let mut connection = Connection::new(Cid(1), 1, 0, "u", 0);
        assert!(connection.is_open() && !connection.is_pinged() && !connection.is_server());
        assert_eq!(connection.ip(&addresses), None);
        connection.set_server();
        connection.set_pinged(true);
        for (given, ip, held) in [
            ("192.0.2.1", "192.0.2.1", 0),
            ("255.255.255.255", "255.255.255.255", 0),
            ("::ffff:192.0.2.1", "192.0.2.1", 0),
            ("2001:db8::1", "2001:db8::1", 1),
            ("::", "::", 1),
        ] {
            connection.set_ip(given.parse().unwrap(), &mut addresses);
            assert_eq!(connection.ip(&addresses), Some(ip.parse().unwrap()));
            assert_eq!(addresses.len(), held, "{given}");
            connection.release_ip(&mut addresses);
            assert_eq!((connection.ip(&addresses), addresses.len()), (None, 0));
        }
        connection.set_pinged(false);
        connection.set_closing();
        assert!(!connection.is_open() && !connection.is_pinged() && connection.is_server());
    }

    #[test]
    fn tags_keep_their_order() {
        let mut set = TagSet::default();
        for tag in [5, 3, 9] {
            set.add(TagRef { tag, position: 0 });
        }
        assert!(set.remove(4).is_none());
        assert_eq!(set.remove(3).map(|entry| entry.tag), Some(3));
        assert_eq!(set.as_slice().iter().map(|entry| entry.tag).collect::<Vec<_>>(), [5, 9]);
        assert!(set.remove(5).is_some() && matches!(set, TagSet::One(_)));
        assert!(set.remove(9).is_some() && matches!(set, TagSet::None));
    }
}
