//! The envelope: the encoding of an accepted message between workers and between nodes.
//!
//! Layout, little-endian; offsets in bytes:
//!
//! ```text
//!  0 version u8 (1)    1 kind u8     2 origin node u16    4 boot epoch u64    12 seq u64
//! 20 accepted_us u64  28 message id u64  36 ttl_ms u32 (0: none)  40 offset of data u32
//! 44 order u64
//! 52 fields, each: kind u8, length u32, bytes           then: raw data, to the end
//! ```
//!
//! A reader skips unknown field kinds and rejects unknown versions. The [`Header`], the first 52
//! bytes, holds everything that only the broker needs.

use crate::types::{Cid, Limits, MessageId, NodeId, WallMs};

const VERSION: u8 = 1;
const FIXED_BYTES: usize = 52;
/// A field's kind and length.
const FIELD_HEAD_BYTES: usize = 5;

pub(super) const FIELD_PID: u8 = 1;
const FIELD_UIDS: u8 = 2;
const FIELD_CIDS: u8 = 3;
const FIELD_TAGS: u8 = 4;
const FIELD_DEVICES: u8 = 5;
const FIELD_EXCEPT_CIDS: u8 = 6;
const FIELD_KEY: u8 = 7;
pub(super) const FIELD_TRACE: u8 = 17;

/// A trace id, a span id, and flags (W3C Trace Context), as bytes.
pub const TRACE_BYTES: usize = 25;

const KIND_OFFSET: usize = 1;
const ORIGIN_OFFSET: usize = 2;
const EPOCH_OFFSET: usize = 4;
const SEQ_OFFSET: usize = 12;
const ACCEPTED_OFFSET: usize = 20;
const ID_OFFSET: usize = 28;
const TTL_OFFSET: usize = 36;
const DATA_OFFSET: usize = 40;
const ORDER_OFFSET: usize = 44;

/// Returns the length of the longest envelope of any kind that nodes with these limits exchange.
///
/// The data of a form may grow sixfold as JSON (a control character becomes `\u0001`), a client id
/// fourfold (`1,` becomes eight bytes); a head is at most 64 KiB. A client's request keeps its
/// length. Events are at most 64 KiB plus one event, with all tags of its client.
pub fn max_bytes(limits: &Limits) -> usize {
    let longest = limits.message_bytes.max(6 * limits.body_bytes);
    longest + (512 << 10) + limits.tag_list_bytes()
}

/// Why bytes are not a valid envelope.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    #[error("the envelope ends within its header")]
    Truncated,
    #[error("envelope version {0} is newer than this node")]
    Version(u8),
    #[error("a field of the envelope is malformed")]
    Field,
    #[error("the data of the envelope is not JSON")]
    NotJson,
    #[error("a bundle of more than {0} envelopes")]
    TooMany(usize),
    #[error("a bundle of more than {0} bytes")]
    TooLong(usize),
}

/// The purpose of an envelope.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EnvelopeKind {
    /// A message to deliver.
    Message,
    /// Replaces a message whose pusher was told that its outcome is unknown: it uses up the number,
    /// and nothing is delivered.
    Void,
    /// Repeats the last number of a channel, so that the loss of a last message is detected.
    Tail,
    /// A message of a node to itself, once a second; its number takes the place of the message id.
    Canary,
    /// An announcement of a node to the others (`wire::member`).
    Member,
    /// A client's request, a business server's response, and events of clients (`wire::parcel`).
    Request,
    Response,
    Events,
    /// The client of these requests is gone (`wire::parcel`).
    Cancel,
    /// An unknown kind, from a newer node. Only its number is used.
    Newer,
}

impl EnvelopeKind {
    const ALL: [Self; 9] = [
        Self::Message,
        Self::Void,
        Self::Tail,
        Self::Canary,
        Self::Member,
        Self::Request,
        Self::Response,
        Self::Events,
        Self::Cancel,
    ];
}

/// The fixed part of an envelope: its sender and its sequence numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    pub kind: EnvelopeKind,
    pub origin: NodeId,
    /// When the origin was started, in milliseconds since 1970: distinguishes the runs of a node.
    pub epoch: u64,
    /// Increases by one per origin and channel.
    pub seq: u64,
    /// Increases with each message of an origin, on any channel.
    pub order: u64,
    /// The message's id, or a canary's number.
    pub id: MessageId,
}

impl Header {
    pub fn read(bytes: &[u8]) -> Result<Self, EnvelopeError> {
        let fixed = bytes.get(..FIXED_BYTES).ok_or(EnvelopeError::Truncated)?;
        if fixed[0] != VERSION {
            return Err(EnvelopeError::Version(fixed[0]));
        }
        let origin = u16::from_le_bytes([fixed[ORIGIN_OFFSET], fixed[ORIGIN_OFFSET + 1]]);
        let kind = EnvelopeKind::ALL.get(usize::from(fixed[KIND_OFFSET])).copied();
        Ok(Self {
            kind: kind.unwrap_or(EnvelopeKind::Newer),
            origin: NodeId::new(origin).ok_or(EnvelopeError::Field)?,
            epoch: u64_at(fixed, EPOCH_OFFSET),
            seq: u64_at(fixed, SEQ_OFFSET),
            order: u64_at(fixed, ORDER_OFFSET),
            id: MessageId(u64_at(fixed, ID_OFFSET)),
        })
    }

    /// The length of an envelope that consists of a header only.
    pub const BYTES: usize = FIXED_BYTES;

    /// Appends an envelope that consists of this header only.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.to_bytes());
    }

    fn to_bytes(self) -> [u8; FIXED_BYTES] {
        let mut bytes = [0; FIXED_BYTES];
        let mut put = |offset: usize, value: &[u8]| {
            bytes[offset..offset + value.len()].copy_from_slice(value);
        };
        put(0, &[VERSION, self.kind as u8]);
        put(ORIGIN_OFFSET, &self.origin.value().to_le_bytes());
        put(EPOCH_OFFSET, &self.epoch.to_le_bytes());
        put(SEQ_OFFSET, &self.seq.to_le_bytes());
        put(ID_OFFSET, &self.id.0.to_le_bytes());
        put(DATA_OFFSET, &(FIXED_BYTES as u32).to_le_bytes());
        put(ORDER_OFFSET, &self.order.to_le_bytes());
        bytes
    }

    /// Sets the numbers of an encoded envelope, and its epoch: it may have been encoded before that
    /// was known.
    pub fn set_numbers(envelope: &mut [u8], epoch: u64, seq: u64, order: u64) {
        envelope[EPOCH_OFFSET..EPOCH_OFFSET + 8].copy_from_slice(&epoch.to_le_bytes());
        envelope[SEQ_OFFSET..SEQ_OFFSET + 8].copy_from_slice(&seq.to_le_bytes());
        envelope[ORDER_OFFSET..ORDER_OFFSET + 8].copy_from_slice(&order.to_le_bytes());
    }
}

/// One accepted message, borrowed from its encoded bytes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Envelope<'a> {
    pub origin: NodeId,
    /// When the origin was started, in milliseconds since 1970: distinguishes the runs of a node.
    pub epoch: u64,
    /// Increases by one per origin and channel.
    pub seq: u64,
    /// When the origin accepted the message, microseconds since 1970.
    pub accepted_us: u64,
    /// The span in which it was accepted, if it is traced.
    pub trace: Option<&'a [u8; TRACE_BYTES]>,
    pub id: MessageId,
    /// Milliseconds after `accepted_us` during which it may be delivered; 0: always.
    pub ttl_ms: u32,
    /// Hash of its project and `idempotency_key`, if it has one: a client gets at most one of
    /// several messages with the same hash.
    pub key: Option<&'a [u8; 16]>,
    pub pid: &'a [u8],
    pub targets: Targets<'a>,
    /// The JSON value that the client receives, byte for byte.
    pub data: &'a [u8],
}

impl<'a> Envelope<'a> {
    /// Returns the time from which it is no longer delivered, in milliseconds since 1970.
    pub fn expires(&self) -> Option<WallMs> {
        let accepted = WallMs::from_us(self.accepted_us);
        (self.ttl_ms != 0).then(|| accepted + u64::from(self.ttl_ms))
    }

    /// Appends the envelope's bytes to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        let Self { origin, epoch, seq, id, .. } = *self;
        let kind = EnvelopeKind::Message;
        Header { kind, origin, epoch, seq, order: 0, id }.encode(out);
        out[start + ACCEPTED_OFFSET..][..8].copy_from_slice(&self.accepted_us.to_le_bytes());
        out[start + TTL_OFFSET..][..4].copy_from_slice(&self.ttl_ms.to_le_bytes());
        self.each_field(|kind, value| put_field(out, kind, value));
        put_data(out, start, self.data);
    }

    /// Returns the number of bytes that [`Envelope::encode`] appends.
    pub fn encoded_bytes(&self) -> usize {
        let mut bytes = FIXED_BYTES + self.data.len();
        self.each_field(|_, value| bytes += FIELD_HEAD_BYTES + value.len());
        bytes
    }

    fn each_field(&self, mut put: impl FnMut(u8, &[u8])) {
        put(FIELD_PID, self.pid);
        let Targets { uids, cids, tags, devices, except_cids } = &self.targets;
        // Not a loop, which would build a list of them first, for each message.
        uids.inspect(|names| put(FIELD_UIDS, names.bytes));
        cids.inspect(|cids| put(FIELD_CIDS, cids.bytes));
        tags.inspect(|names| put(FIELD_TAGS, names.bytes));
        devices.inspect(|names| put(FIELD_DEVICES, names.bytes));
        except_cids.inspect(|cids| put(FIELD_EXCEPT_CIDS, cids.bytes));
        self.key.inspect(|key| put(FIELD_KEY, &key[..]));
        self.trace.inspect(|trace| put(FIELD_TRACE, &trace[..]));
    }

    /// Parses the envelope of a message, which fills `bytes` completely. Never allocates.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, EnvelopeError> {
        Self::decode_after(Header::read(bytes)?, bytes)
    }

    /// As [`Envelope::decode`], for a header already read. In place: moving an envelope costs as
    /// much as parsing it.
    #[inline(always)]
    pub fn decode_after(header: Header, bytes: &'a [u8]) -> Result<Self, EnvelopeError> {
        let (fields, data) = fields_and_data(bytes)?;
        if header.kind != EnvelopeKind::Message {
            return Err(EnvelopeError::Field);
        }
        let mut envelope = Self {
            origin: header.origin,
            epoch: header.epoch,
            seq: header.seq,
            accepted_us: u64_at(bytes, ACCEPTED_OFFSET),
            trace: None,
            id: header.id,
            ttl_ms: u32_at(bytes, TTL_OFFSET),
            key: None,
            pid: b"",
            targets: Targets::default(),
            data,
        };
        for field in fields {
            let (kind, value) = field?;
            envelope.set_field(kind, value)?;
        }
        if envelope.pid.is_empty() {
            return Err(EnvelopeError::Field);
        }
        Ok(envelope)
    }

    fn set_field(&mut self, kind: u8, value: &'a [u8]) -> Result<(), EnvelopeError> {
        let targets = &mut self.targets;
        match kind {
            FIELD_PID => self.pid = value,
            FIELD_UIDS => targets.uids = Some(Names::decode(value)?),
            FIELD_CIDS => targets.cids = Some(Cids::decode(value)?),
            FIELD_TAGS => targets.tags = Some(Names::decode(value)?),
            FIELD_DEVICES => targets.devices = Some(Names::decode(value)?),
            FIELD_EXCEPT_CIDS => targets.except_cids = Some(Cids::decode(value)?),
            FIELD_TRACE => {
                self.trace = Some(value.try_into().map_err(|_| EnvelopeError::Field)?);
            }
            FIELD_KEY => self.key = Some(value.try_into().map_err(|_| EnvelopeError::Field)?),
            _ => {}
        }
        Ok(())
    }
}

/// The recipients of a message: the given selectors are intersected, the values within one form a
/// union, and no selector means every client of the project. A selector that is given but empty
/// matches nobody.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Targets<'a> {
    pub uids: Option<Names<'a>>,
    pub cids: Option<Cids<'a>>,
    pub tags: Option<Names<'a>>,
    pub devices: Option<Names<'a>>,
    /// Excluded from the result.
    pub except_cids: Option<Cids<'a>>,
}

/// The longest name (pid, uid, tag or device) that an envelope can carry: lists of names, and a
/// project's id among business servers (`wire::member`), store its length in one byte.
pub const MAX_NAME_BYTES: usize = u8::MAX as usize;

/// A list of names (uids, tags or devices), each of 1 to [`MAX_NAME_BYTES`] bytes. They are only
/// compared: invalid UTF-8 matches nobody.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Names<'a> {
    bytes: &'a [u8],
}

impl<'a> Names<'a> {
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let mut rest = self.bytes;
        std::iter::from_fn(move || {
            let (name, tail) = take_name(rest)?;
            rest = tail;
            Some(name)
        })
    }

    fn decode(bytes: &'a [u8]) -> Result<Self, EnvelopeError> {
        let mut rest = bytes;
        while !rest.is_empty() {
            rest = take_name(rest).ok_or(EnvelopeError::Field)?.1;
        }
        Ok(Self { bytes })
    }
}

/// A list of client ids.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cids<'a> {
    bytes: &'a [u8],
}

impl<'a> Cids<'a> {
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = Cid> + use<'a> {
        self.bytes.chunks_exact(8).map(|chunk| Cid(u64_at(chunk, 0)))
    }

    pub fn contains(&self, cid: Cid) -> bool {
        self.bytes.chunks_exact(8).any(|chunk| u64_at(chunk, 0) == cid.0)
    }

    fn decode(bytes: &'a [u8]) -> Result<Self, EnvelopeError> {
        if bytes.len().is_multiple_of(8) { Ok(Self { bytes }) } else { Err(EnvelopeError::Field) }
    }
}

/// Builds [`Targets`]; reused for each message, so that it allocates only while it grows.
#[derive(Debug, Default)]
pub struct TargetsBuf {
    pub uids: Option<NamesBuf>,
    pub cids: Option<CidsBuf>,
    pub tags: Option<NamesBuf>,
    pub devices: Option<NamesBuf>,
    pub except_cids: Option<CidsBuf>,
}

impl TargetsBuf {
    pub fn as_targets(&self) -> Targets<'_> {
        Targets {
            uids: self.uids.as_ref().map(NamesBuf::as_names),
            cids: self.cids.as_ref().map(CidsBuf::as_cids),
            tags: self.tags.as_ref().map(NamesBuf::as_names),
            devices: self.devices.as_ref().map(NamesBuf::as_names),
            except_cids: self.except_cids.as_ref().map(CidsBuf::as_cids),
        }
    }
}

/// Builds [`Names`].
#[derive(Debug, Default)]
pub struct NamesBuf {
    bytes: Vec<u8>,
    count: usize,
}

impl NamesBuf {
    /// Appends one name. The caller has checked it (`is_name`, `is_device`) against limits of at
    /// most [`MAX_NAME_BYTES`].
    pub fn push(&mut self, name: impl AsRef<[u8]>) {
        let name = name.as_ref();
        debug_assert!((1..=MAX_NAME_BYTES).contains(&name.len()));
        self.bytes.push(name.len() as u8);
        self.bytes.extend_from_slice(name);
        self.count += 1;
    }

    pub fn len(&self) -> usize {
        self.count
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub fn as_names(&self) -> Names<'_> {
        Names { bytes: &self.bytes }
    }
}

/// Builds [`Cids`].
#[derive(Debug, Default)]
pub struct CidsBuf {
    bytes: Vec<u8>,
}

impl CidsBuf {
    pub fn push(&mut self, cid: Cid) {
        self.bytes.extend_from_slice(&cid.0.to_le_bytes());
    }

    pub fn len(&self) -> usize {
        self.bytes.len() / 8
    }

    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub fn as_cids(&self) -> Cids<'_> {
        Cids { bytes: &self.bytes }
    }
}

/// Appends a field to an envelope.
pub(super) fn put_field(out: &mut Vec<u8>, kind: u8, value: &[u8]) {
    let [a, b, c, d] = (value.len() as u32).to_le_bytes();
    out.extend_from_slice(&[kind, a, b, c, d]);
    out.extend_from_slice(value);
}

/// Ends the envelope that starts at `start` by appending its data.
pub(super) fn put_data(out: &mut Vec<u8>, start: usize, data: &[u8]) {
    let data_offset = (out.len() - start) as u32;
    out[start + DATA_OFFSET..][..4].copy_from_slice(&data_offset.to_le_bytes());
    out.extend_from_slice(data);
}

/// Splits an envelope of any kind into header, fields and data.
pub(super) fn take_apart(bytes: &[u8]) -> Result<(Header, Fields<'_>, &[u8]), EnvelopeError> {
    let header = Header::read(bytes)?;
    let (fields, data) = fields_and_data(bytes)?;
    Ok((header, fields, data))
}

fn fields_and_data(bytes: &[u8]) -> Result<(Fields<'_>, &[u8]), EnvelopeError> {
    if bytes.len() < FIXED_BYTES {
        return Err(EnvelopeError::Truncated);
    }
    let data_offset = u32_at(bytes, DATA_OFFSET) as usize;
    if data_offset < FIXED_BYTES {
        return Err(EnvelopeError::Field);
    }
    let (head, data) = bytes.split_at_checked(data_offset).ok_or(EnvelopeError::Truncated)?;
    Ok((Fields { rest: &head[FIXED_BYTES..] }, data))
}

/// Iterates over the fields of an envelope: kind and value. Ends after an error.
pub(super) struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u8, &'a [u8]), EnvelopeError>;

    fn next(&mut self) -> Option<Self::Item> {
        let rest = std::mem::take(&mut self.rest);
        if rest.is_empty() {
            return None;
        }
        let Some((head, rest)) = rest.split_at_checked(FIELD_HEAD_BYTES) else {
            return Some(Err(EnvelopeError::Truncated));
        };
        let Some((value, rest)) = rest.split_at_checked(u32_at(head, 1) as usize) else {
            return Some(Err(EnvelopeError::Truncated));
        };
        self.rest = rest;
        Some(Ok((head[0], value)))
    }
}

fn take_name(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (&length, rest) = bytes.split_first()?;
    if length == 0 || rest.len() < usize::from(length) {
        return None;
    }
    Some(rest.split_at(usize::from(length)))
}

pub(super) fn text(bytes: &[u8]) -> Result<&str, EnvelopeError> {
    std::str::from_utf8(bytes).map_err(|_| EnvelopeError::Field)
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn names(list: &[String]) -> NamesBuf {
        let mut names = NamesBuf::default();
        list.iter().for_each(|name| names.push(name));
        names
    }

    fn cids(list: &[u64]) -> CidsBuf {
        let mut cids = CidsBuf::default();
        list.iter().for_each(|&cid| cids.push(Cid(cid)));
        cids
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded_and_what_is_cut_is_refused(
            uids in proptest::option::of(proptest::collection::vec("[a-zé]{1,9}", 0..4)),
            tags in proptest::option::of(proptest::collection::vec("[a-zé]{1,9}", 0..4)),
            one in proptest::option::of(proptest::collection::vec(any::<u64>(), 0..4)),
            except in proptest::option::of(proptest::collection::vec(any::<u64>(), 0..4)),
            numbers: (u64, u64, u64, u64, u32),
            key: Option<[u8; 16]>,
            trace: Option<[u8; TRACE_BYTES]>,
            data: Vec<u8>,
        ) {
            let targets = TargetsBuf {
                uids: uids.as_deref().map(names),
                tags: tags.as_deref().map(names),
                cids: one.as_deref().map(cids),
                devices: None,
                except_cids: except.as_deref().map(cids),
            };
            let envelope = Envelope {
                origin: NodeId::new(1023).unwrap(),
                epoch: numbers.0,
                seq: numbers.1,
                accepted_us: numbers.2,
                trace: trace.as_ref(),
                id: MessageId(numbers.3),
                ttl_ms: numbers.4,
                key: key.as_ref(),
                pid: b"p",
                targets: targets.as_targets(),
                data: &data,
            };
            let mut bytes = Vec::new();
            envelope.encode(&mut bytes);
            prop_assert_eq!(envelope.encoded_bytes(), bytes.len());
            prop_assert_eq!(Envelope::decode(&bytes), Ok(envelope));
            Header::set_numbers(&mut bytes, envelope.epoch, 7, 9);
            let numbered = Header {
                kind: EnvelopeKind::Message,
                origin: envelope.origin,
                epoch: envelope.epoch,
                seq: 7,
                order: 9,
                id: envelope.id,
            };
            prop_assert_eq!(Header::read(&bytes), Ok(numbered));
            for cut in 0..bytes.len() - data.len() {
                prop_assert!(Envelope::decode(&bytes[..cut]).is_err(), "cut at {}", cut);
            }
        }
    }

    #[test]
    fn a_header_alone_is_read_back_and_is_no_message() {
        for kind in EnvelopeKind::ALL {
            let header = Header {
                kind,
                origin: NodeId::new(3).unwrap(),
                epoch: 1 << 60,
                seq: u64::MAX,
                order: 1 << 50,
                id: MessageId(9),
            };
            let mut bytes = Vec::new();
            header.encode(&mut bytes);
            assert_eq!(Header::read(&bytes), Ok(header));
            assert_eq!(Header::read(&bytes[..51]), Err(EnvelopeError::Truncated));
            assert!(Envelope::decode(&bytes).is_err());
        }
    }

    #[test]
    fn a_reader_skips_unknown_fields_and_refuses_unknown_versions() {
        let envelope = Envelope {
            origin: NodeId::new(7).unwrap(),
            epoch: 1,
            seq: 2,
            accepted_us: 3_000,
            trace: None,
            id: MessageId(4),
            ttl_ms: 5,
            key: None,
            pid: b"p",
            targets: Targets::default(),
            data: b"{}",
        };
        let mut bytes = Vec::new();
        envelope.encode(&mut bytes);
        let data_offset = u32_at(&bytes, 40) as usize;
        let mut field = Vec::new();
        put_field(&mut field, 200, b"from the future");
        let later = (data_offset + field.len()) as u32;
        bytes.splice(data_offset..data_offset, field);
        bytes[40..44].copy_from_slice(&later.to_le_bytes());
        assert_eq!(Envelope::decode(&bytes), Ok(envelope));
        bytes[0] = 2;
        assert_eq!(Envelope::decode(&bytes), Err(EnvelopeError::Version(2)));
    }
}
