//! A node's announcements to all others: its heartbeat, and the business servers it holds.
//!
//! Its set of business servers has a version that increases by one with each change. An
//! announcement holds the full set or one change; one without a change repeats the version, so that
//! a node that missed something can request the full set.

use super::envelope::{
    EnvelopeError, EnvelopeKind, Header, put_data, put_field, take_apart, u64_at,
};
use super::parcel::Sender;
use crate::types::{Cid, EventSet, MessageId};

const FIELD_FLAGS: u8 = 14;
const FIELD_HERE: u8 = 15;
const FIELD_GONE: u8 = 16;

const IS_FULL_STATE: u8 = 1;
const REQUESTS_FULL_STATE: u8 = 2;
const IS_LEAVING: u8 = 4;

/// One announcement of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member<'a> {
    pub sender: Sender,
    /// Increases with each announcement of a run of its node; 0: from a node that does not number
    /// them.
    pub number: u64,
    /// The order of the latest message that its node has issued.
    pub order: u64,
    /// Version of its business servers, after this announcement.
    pub version: u64,
    /// `here` is its full set.
    pub is_full_state: bool,
    /// The others are requested to send their full sets.
    pub requests_full_state: bool,
    /// The node shuts down.
    pub is_leaving: bool,
    pub here: Servers<'a>,
    pub gone: Cids<'a>,
}

/// A business server's connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Server<'a> {
    pub cid: Cid,
    pub events: EventSet,
    pub pid: &'a str,
}

/// Each server: client id u64, events u8, length of the project's id u8, the project's id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Servers<'a>(pub &'a [u8]);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cids<'a>(pub &'a [u8]);

impl<'a> Iterator for Servers<'a> {
    type Item = Result<Server<'a>, EnvelopeError>;

    fn next(&mut self) -> Option<Self::Item> {
        let bytes = std::mem::take(&mut self.0);
        if bytes.is_empty() {
            return None;
        }
        let Some((head, rest)) = bytes.split_at_checked(10) else {
            return Some(Err(EnvelopeError::Truncated));
        };
        let Some((pid, rest)) = rest.split_at_checked(usize::from(head[9])) else {
            return Some(Err(EnvelopeError::Truncated));
        };
        self.0 = rest;
        let (cid, events) = (Cid(u64_at(head, 0)), EventSet::from_bits(head[8]));
        let pid = std::str::from_utf8(pid).map_err(|_| EnvelopeError::Field);
        Some(pid.map(|pid| Server { cid, events, pid }))
    }
}

impl Iterator for Cids<'_> {
    type Item = Cid;

    fn next(&mut self) -> Option<Cid> {
        let (first, rest) = self.0.split_at_checked(8)?;
        self.0 = rest;
        Some(Cid(u64_at(first, 0)))
    }
}

/// Appends a business server to the bytes of [`Servers`]. Its project's id must have at most
/// `MAX_NAME_BYTES` bytes.
pub fn add_server(list: &mut Vec<u8>, server: &Server<'_>) {
    list.extend_from_slice(&server.cid.0.to_le_bytes());
    list.push(server.events.bits());
    list.push(server.pid.len() as u8);
    list.extend_from_slice(server.pid.as_bytes());
}

impl<'a> Member<'a> {
    /// Returns an announcement without a change.
    pub fn new(sender: Sender, version: u64) -> Self {
        let (here, gone) = (Servers::default(), Cids::default());
        Self {
            sender,
            number: 0,
            order: 0,
            version,
            is_full_state: false,
            requests_full_state: false,
            is_leaving: false,
            here,
            gone,
        }
    }

    pub fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        let Sender { node: origin, epoch } = self.sender;
        let id = MessageId(self.version);
        let (seq, order) = (self.number, self.order);
        Header { kind: EnvelopeKind::Member, origin, epoch, seq, order, id }.encode(out);
        let flag = |is_set, flag| if is_set { flag } else { 0 };
        let flags = flag(self.is_full_state, IS_FULL_STATE)
            | flag(self.requests_full_state, REQUESTS_FULL_STATE);
        put_field(out, FIELD_FLAGS, &[flags | flag(self.is_leaving, IS_LEAVING)]);
        put_field(out, FIELD_HERE, self.here.0);
        put_field(out, FIELD_GONE, self.gone.0);
        put_data(out, start, b"");
    }

    pub fn decode(bytes: &'a [u8]) -> Result<Self, EnvelopeError> {
        let (header, fields, _) = take_apart(bytes)?;
        if header.kind != EnvelopeKind::Member {
            return Err(EnvelopeError::Field);
        }
        let sender = Sender { node: header.origin, epoch: header.epoch };
        let mut member = Self::new(sender, header.id.0);
        (member.number, member.order) = (header.seq, header.order);
        for field in fields {
            let (kind, value) = field?;
            match kind {
                FIELD_FLAGS => {
                    let flags = value.first().copied().unwrap_or(0);
                    member.is_full_state = flags & IS_FULL_STATE != 0;
                    member.requests_full_state = flags & REQUESTS_FULL_STATE != 0;
                    member.is_leaving = flags & IS_LEAVING != 0;
                }
                FIELD_HERE => member.here = Servers(value),
                FIELD_GONE => member.gone = Cids(value),
                _ => {}
            }
        }
        let Servers(all) = member.here;
        Servers(all).try_for_each(|server| server.map(drop))?;
        if !member.gone.0.len().is_multiple_of(8) {
            return Err(EnvelopeError::Field);
        }
        Ok(member)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::NodeId;
    use proptest::prelude::*;

    fn announcement(list: &[u8]) -> Member<'_> {
        let sender = Sender { node: NodeId::new(1023).unwrap(), epoch: 5 };
        let (here, gone) = (Servers(list), Cids(&[1; 16]));
        Member { is_full_state: true, is_leaving: true, here, gone, ..Member::new(sender, 77) }
    }

    fn list() -> Vec<u8> {
        let mut list = Vec::new();
        for (cid, events, pid) in [(1, EventSet::ALL, "a"), (u64::MAX, EventSet::NONE, "b.c")] {
            add_server(&mut list, &Server { cid: Cid(cid), events, pid });
        }
        list
    }

    #[test]
    fn what_goes_in_comes_out() {
        let list = list();
        let mut bytes = Vec::new();
        announcement(&list).encode(&mut bytes);
        let found = Member::decode(&bytes).unwrap();
        assert_eq!(found, announcement(&list));
        let servers: Vec<_> = found.here.map(Result::unwrap).collect();
        assert_eq!(servers[1], Server { cid: Cid(u64::MAX), events: EventSet::NONE, pid: "b.c" });
        assert_eq!(found.gone.collect::<Vec<_>>(), [Cid(0x0101_0101_0101_0101); 2]);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(at in 0..200_usize, byte: u8, cut in 0..140_usize) {
            let list = list();
            let mut bytes = Vec::new();
            announcement(&list).encode(&mut bytes);
            let place = at % bytes.len();
            bytes[place] = byte;
            bytes.truncate(cut);
            if let Ok(found) = Member::decode(&bytes) {
                prop_assert!(found.here.count() <= 2 && found.gone.count() <= 2);
            }
        }
    }
}
