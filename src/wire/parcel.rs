//! Messages between workers and nodes other than pushes: requests of clients to business servers,
//! the responses, events of clients, and cancellations of requests.
//!
//! A parcel is an envelope of another kind: the same header, fields of its own, then data. Its `id`
//! is the request's.

use super::envelope::{
    EnvelopeError, EnvelopeKind, FIELD_PID, Header, put_data, put_field, take_apart, text, u64_at,
};
use super::json;
use crate::types::{Cid, EventSet, MessageId, NodeId};
use std::net::IpAddr;

const FIELD_TO: u8 = 8;
const FIELD_FROM: u8 = 9;
const FIELD_UID: u8 = 10;
const FIELD_DEVICE: u8 = 11;
const FIELD_STATUS: u8 = 12;
const FIELD_WORKER: u8 = 13;
const FIELD_IP: u8 = 18;

/// Maximum number of requests in one [`Cancel`]: as many as a client may have waiting.
pub const MAX_CANCELLED: usize = 1_000;

/// The node that sends a parcel, and its run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sender {
    pub node: NodeId,
    pub epoch: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Parcel<'a> {
    Request(Request<'a>),
    Response(Response<'a>),
    Events(Events<'a>),
    Cancel(Cancel<'a>),
}

/// A client's request to a business server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request<'a> {
    /// Unique in the cluster; the response has it as well.
    pub id: MessageId,
    /// The business server's connection.
    pub server: Cid,
    pub client: Cid,
    pub pid: &'a str,
    pub uid: &'a str,
    pub device: &'a str,
    /// The client's address; `None` if it is unknown, or the sender's version does not report it.
    pub ip: Option<IpAddr>,
    /// A JSON value, byte for byte.
    pub data: &'a [u8],
}

/// The response to a [`Request`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Response<'a> {
    pub id: MessageId,
    pub client: Cid,
    /// The connection of the business server that was asked.
    pub server: Cid,
    pub pid: &'a str,
    pub answer: Answer<'a>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer<'a> {
    /// The JSON value that the business server sent, byte for byte.
    Data(&'a [u8]),
    /// Its connection ended after the request was written to it.
    Gone,
    /// Its connection ended before the request was written: another server may be asked.
    Unwritten,
    /// It has no room for the request: another server may be asked.
    Full,
    /// It has answered with more than the queue carries.
    TooLarge,
}

/// Events of a project's clients, in order: see [`EventList`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Events<'a> {
    pub sender: Sender,
    /// The sender's worker on which they occurred.
    pub worker: u8,
    pub pid: &'a str,
    pub list: EventList<'a>,
}

/// A client ended before its requests were answered: the business server's worker forgets them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cancel<'a> {
    /// The connection of the business server that was asked.
    pub server: Cid,
    /// The client that asked: only its own requests are forgotten.
    pub client: Cid,
    pub pid: &'a str,
    pub list: CancelList<'a>,
}

/// Ids of requests, u64 each; at most [`MAX_CANCELLED`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CancelList<'a>(&'a [[u8; 8]]);

impl CancelList<'_> {
    pub fn ids(&self) -> impl Iterator<Item = MessageId> {
        self.0.iter().map(|id| MessageId(u64::from_le_bytes(*id)))
    }
}

/// Each event: its kind u8, the length of its text u32, and the text, which is the frame for
/// business servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventList<'a>(pub &'a [u8]);

impl<'a> Iterator for EventList<'a> {
    type Item = Result<(EventSet, &'a str), EnvelopeError>;

    fn next(&mut self) -> Option<Self::Item> {
        let (&kind, rest) = std::mem::take(&mut self.0).split_first()?;
        let event = rest
            .split_first_chunk()
            .and_then(|(length, rest)| rest.split_at_checked(u32::from_le_bytes(*length) as usize));
        let Some((event, rest)) = event else { return Some(Err(EnvelopeError::Truncated)) };
        self.0 = rest;
        Some(text(event).map(|event| (EventSet::from_bits(kind), event)))
    }
}

/// Appends an event to a list; `write` appends its text.
pub fn add_event(list: &mut Vec<u8>, kind: EventSet, write: impl FnOnce(&mut Vec<u8>)) {
    list.push(kind.bits());
    let start = list.len();
    list.extend_from_slice(&[0; 4]);
    write(list);
    let length = (list.len() - start - 4) as u32;
    list[start..start + 4].copy_from_slice(&length.to_le_bytes());
}

impl Request<'_> {
    pub fn encode(&self, sender: Sender, out: &mut Vec<u8>) {
        let start = begin(out, EnvelopeKind::Request, sender, self.id, self.pid);
        put_field(out, FIELD_TO, &self.server.0.to_le_bytes());
        put_field(out, FIELD_FROM, &self.client.0.to_le_bytes());
        put_field(out, FIELD_UID, self.uid.as_bytes());
        put_field(out, FIELD_DEVICE, self.device.as_bytes());
        match self.ip {
            Some(IpAddr::V4(ip)) => put_field(out, FIELD_IP, &ip.octets()),
            Some(IpAddr::V6(ip)) => put_field(out, FIELD_IP, &ip.octets()),
            None => {}
        }
        put_data(out, start, self.data);
    }
}

impl Response<'_> {
    pub fn encode(&self, sender: Sender, out: &mut Vec<u8>) {
        let start = begin(out, EnvelopeKind::Response, sender, self.id, self.pid);
        put_field(out, FIELD_TO, &self.client.0.to_le_bytes());
        put_field(out, FIELD_FROM, &self.server.0.to_le_bytes());
        let (status, data) = match self.answer {
            Answer::Data(data) => (0, data),
            Answer::Gone => (1, &[][..]),
            Answer::Unwritten => (2, &[][..]),
            Answer::Full => (3, &[][..]),
            Answer::TooLarge => (4, &[][..]),
        };
        put_field(out, FIELD_STATUS, &[status]);
        put_data(out, start, data);
    }
}

impl Events<'_> {
    pub fn encode(&self, out: &mut Vec<u8>) {
        let start = begin(out, EnvelopeKind::Events, self.sender, MessageId(0), self.pid);
        put_field(out, FIELD_WORKER, &[self.worker]);
        put_data(out, start, self.list.0);
    }
}

impl Cancel<'_> {
    /// Encodes a cancellation of these requests.
    pub fn encode_of(
        sender: Sender,
        (server, client, pid): (Cid, Cid, &str),
        ids: &[MessageId],
        out: &mut Vec<u8>,
    ) {
        let list: Vec<[u8; 8]> = ids.iter().map(|id| id.0.to_le_bytes()).collect();
        Cancel { server, client, pid, list: CancelList(&list) }.encode(sender, out);
    }

    pub fn encode(&self, sender: Sender, out: &mut Vec<u8>) {
        let start = begin(out, EnvelopeKind::Cancel, sender, MessageId(0), self.pid);
        put_field(out, FIELD_TO, &self.server.0.to_le_bytes());
        put_field(out, FIELD_FROM, &self.client.0.to_le_bytes());
        put_data(out, start, self.list.0.as_flattened());
    }
}

fn begin(out: &mut Vec<u8>, kind: EnvelopeKind, sender: Sender, id: MessageId, pid: &str) -> usize {
    let start = out.len();
    let (origin, epoch) = (sender.node, sender.epoch);
    Header { kind, origin, epoch, seq: 0, order: 0, id }.encode(out);
    put_field(out, FIELD_PID, pid.as_bytes());
    start
}

/// Returns the connection that a request, a response or a cancel is for, without reading the rest.
pub fn addressee(bytes: &[u8]) -> Result<Cid, EnvelopeError> {
    let (_, fields, _) = take_apart(bytes)?;
    for field in fields {
        if let (FIELD_TO, value) = field? {
            return cid(value);
        }
    }
    Err(EnvelopeError::Field)
}

/// Returns the project of a parcel, without reading the rest.
pub fn pid(bytes: &[u8]) -> Result<&[u8], EnvelopeError> {
    let (_, fields, _) = take_apart(bytes)?;
    for field in fields {
        if let (FIELD_PID, value) = field? {
            return Ok(value);
        }
    }
    Err(EnvelopeError::Field)
}

/// Checks that what a parcel of another node sends to sockets is JSON: the data of a request or
/// response, the texts of events.
pub fn check_json(bytes: &[u8]) -> Result<(), EnvelopeError> {
    let (header, _, data) = take_apart(bytes)?;
    let check = |text: &[u8]| json::validate(text).map_err(|_| EnvelopeError::NotJson);
    match header.kind {
        EnvelopeKind::Events => EventList(data).try_for_each(|event| check(event?.1.as_bytes())),
        // A response that reports a failure has no data.
        EnvelopeKind::Response if data.is_empty() => Ok(()),
        EnvelopeKind::Cancel => Ok(()),
        _ => check(data),
    }
}

impl<'a> Parcel<'a> {
    /// Parses a parcel, which fills `bytes` completely. Never allocates. The data of a request or a
    /// response is UTF-8; its sender has checked that it is JSON.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, EnvelopeError> {
        let (header, fields, data) = take_apart(bytes)?;
        let (mut pid, mut uid, mut device, mut ip) = ("", "", "", None);
        let (mut to, mut from, mut status, mut worker) = (None, None, None, None);
        for field in fields {
            let (kind, value) = field?;
            match kind {
                FIELD_PID => pid = text(value)?,
                FIELD_UID => uid = text(value)?,
                FIELD_DEVICE => device = text(value)?,
                FIELD_IP => ip = Some(address(value)?),
                FIELD_TO => to = Some(cid(value)?),
                FIELD_FROM => from = Some(cid(value)?),
                FIELD_STATUS => status = value.first().copied(),
                FIELD_WORKER => worker = value.first().copied(),
                _ => {}
            }
        }
        let id = header.id;
        let missing = EnvelopeError::Field;
        if pid.is_empty() {
            return Err(missing);
        }
        let utf8 = |data: &'a [u8]| simdutf8::basic::from_utf8(data).map(|_| data);
        Ok(match header.kind {
            EnvelopeKind::Request => Self::Request(Request {
                id,
                server: to.ok_or(missing)?,
                client: from.ok_or(missing)?,
                pid,
                uid,
                device,
                ip,
                data: utf8(data).map_err(|_| missing)?,
            }),
            EnvelopeKind::Response => Self::Response(Response {
                id,
                client: to.ok_or(missing)?,
                server: from.ok_or(missing)?,
                pid,
                answer: match status {
                    Some(0) => Answer::Data(utf8(data).map_err(|_| missing)?),
                    Some(1) => Answer::Gone,
                    Some(2) => Answer::Unwritten,
                    Some(3) => Answer::Full,
                    Some(4) => Answer::TooLarge,
                    _ => return Err(missing),
                },
            }),
            EnvelopeKind::Events => Self::Events(Events {
                sender: Sender { node: header.origin, epoch: header.epoch },
                worker: worker.ok_or(missing)?,
                pid,
                list: EventList(data),
            }),
            EnvelopeKind::Cancel => Self::Cancel(Cancel {
                server: to.ok_or(missing)?,
                client: from.ok_or(missing)?,
                pid,
                list: match data.as_chunks() {
                    (ids, []) if ids.len() <= MAX_CANCELLED => CancelList(ids),
                    _ => return Err(missing),
                },
            }),
            _ => return Err(missing),
        })
    }
}

fn cid(value: &[u8]) -> Result<Cid, EnvelopeError> {
    match value.len() {
        8 => Ok(Cid(u64_at(value, 0))),
        _ => Err(EnvelopeError::Field),
    }
}

/// Parses an IPv4 or an IPv6 address.
fn address(value: &[u8]) -> Result<IpAddr, EnvelopeError> {
    if let Ok(octets) = <[u8; 4]>::try_from(value) {
        return Ok(IpAddr::from(octets));
    }
    let octets = <[u8; 16]>::try_from(value).map_err(|_| EnvelopeError::Field)?;
    Ok(IpAddr::from(octets).to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SENDER: Sender = Sender { node: NodeId::new(7).unwrap(), epoch: 9 };

    fn request() -> Request<'static> {
        Request {
            id: MessageId(1),
            server: Cid(2),
            client: Cid(3),
            pid: "p",
            uid: "u é",
            device: "",
            ip: None,
            data: b"{\"a\": 1}",
        }
    }

    fn response(answer: Answer<'_>) -> Response<'_> {
        Response { id: MessageId(1), client: Cid(3), server: Cid(2), pid: "p", answer }
    }

    fn encoded(encode: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let mut out = Vec::new();
        encode(&mut out);
        out
    }

    #[test]
    fn what_goes_in_comes_out() {
        let bytes = encoded(|out| request().encode(SENDER, out));
        assert_eq!(Parcel::decode(&bytes), Ok(Parcel::Request(request())));
        assert_eq!((addressee(&bytes), pid(&bytes)), (Ok(Cid(2)), Ok(&b"p"[..])));
        for answer in [Answer::Data(b"null"), Answer::Gone, Answer::Unwritten, Answer::Full] {
            let bytes = encoded(|out| response(answer).encode(SENDER, out));
            assert_eq!(Parcel::decode(&bytes), Ok(Parcel::Response(response(answer))));
            assert_eq!(addressee(&bytes), Ok(Cid(3)));
        }
        let ids = [MessageId(1), MessageId(u64::MAX)];
        let bytes = encoded(|out| Cancel::encode_of(SENDER, (Cid(2), Cid(3), "p"), &ids, out));
        let Ok(Parcel::Cancel(cancel)) = Parcel::decode(&bytes) else { panic!() };
        assert_eq!((cancel.server, cancel.client, cancel.pid), (Cid(2), Cid(3), "p"));
        assert!(cancel.list.ids().eq(ids));
        assert_eq!((addressee(&bytes), check_json(&bytes)), (Ok(Cid(2)), Ok(())));
    }

    /// The field is newer than the others: during an upgrade some nodes do not send it, and those
    /// that do not know it skip it.
    #[test]
    fn a_request_carries_the_address_of_its_client_if_it_is_known() {
        let mut before = 0;
        for (ip, more_bytes) in [(None, 0), (Some("192.0.2.1"), 9), (Some("2001:db8::1"), 21)] {
            let ip = ip.map(|ip| ip.parse().unwrap());
            let sent = Request { ip, ..request() };
            let bytes = encoded(|out| sent.encode(SENDER, out));
            assert_eq!(Parcel::decode(&bytes), Ok(Parcel::Request(sent)));
            before = if ip.is_none() { bytes.len() } else { before };
            assert_eq!(bytes.len(), before + more_bytes);
        }
        let with_field = |kind, value: &[u8]| {
            let mut out = Vec::new();
            let start = begin(&mut out, EnvelopeKind::Request, SENDER, MessageId(1), "p");
            put_field(&mut out, FIELD_TO, &[0; 8]);
            put_field(&mut out, FIELD_FROM, &[0; 8]);
            put_field(&mut out, kind, value);
            put_data(&mut out, start, b"1");
            Parcel::decode(&out).map(|parcel| match parcel {
                Parcel::Request(request) => request.ip.map(|ip| ip.to_string()),
                other => panic!("{other:?}"),
            })
        };
        let mapped = [&[0; 10][..], &[255, 255, 192, 0, 2, 1]].concat();
        assert_eq!(with_field(FIELD_IP, &mapped), Ok(Some("192.0.2.1".into())));
        assert_eq!(with_field(200, b"a field of a newer version"), Ok(None));
        for length in [0, 3, 5, 15, 17] {
            assert!(with_field(FIELD_IP, &vec![1; length]).is_err(), "{length}");
        }
    }

    #[test]
    fn events_keep_their_order() {
        let mut list = Vec::new();
        for (kind, text) in [(EventSet::CONNECT, "{}"), (EventSet::SUBSCRIBE, "")] {
            add_event(&mut list, kind, |out| out.extend_from_slice(text.as_bytes()));
        }
        let events = Events { sender: SENDER, worker: 5, pid: "p", list: EventList(&list) };
        let bytes = encoded(|out| events.encode(out));
        let Ok(Parcel::Events(found)) = Parcel::decode(&bytes) else { panic!() };
        assert_eq!(found, events);
        let found: Vec<_> = found.list.map(Result::unwrap).collect();
        assert_eq!(found, [(EventSet::CONNECT, "{}"), (EventSet::SUBSCRIBE, "")]);
        let cut: Vec<_> = EventList(&list[..list.len() - 1]).collect();
        assert!(cut[0].is_ok() && cut[1].is_err() && cut.len() == 2);
    }

    #[test]
    fn what_is_incomplete_is_refused() {
        let mut out = Vec::new();
        let start = begin(&mut out, EnvelopeKind::Request, SENDER, MessageId(1), "p");
        put_field(&mut out, FIELD_TO, &[0; 7]);
        put_data(&mut out, start, b"1");
        assert!(Parcel::decode(&out).is_err() && addressee(&out).is_err());
        let other = Request { data: b"\xff", ..request() };
        assert!(Parcel::decode(&encoded(|out| other.encode(SENDER, out))).is_err());
        let nobody = Request { pid: "", ..request() };
        assert!(Parcel::decode(&encoded(|out| nobody.encode(SENDER, out))).is_err());
        let cancel = |count: usize| {
            let ids = vec![MessageId(1); count];
            encoded(|out| Cancel::encode_of(SENDER, (Cid(2), Cid(3), "p"), &ids, out))
        };
        let most = cancel(MAX_CANCELLED);
        assert!(Parcel::decode(&most).is_ok() && Parcel::decode(&most[..most.len() - 1]).is_err());
        assert!(Parcel::decode(&cancel(MAX_CANCELLED + 1)).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(at in 0..90_usize, byte: u8, cut in 0..120_usize) {
            let mut bytes = encoded(|out| request().encode(SENDER, out));
            let place = at % bytes.len();
            bytes[place] = byte;
            bytes.truncate(cut);
            let _ = Parcel::decode(&bytes);
            let _ = (addressee(&bytes), pid(&bytes));
        }
    }
}
