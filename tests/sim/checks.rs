//! The client's side: parses what arrives byte by byte, and compares it with what must arrive.

use super::model::Push;
use serde_json::Value;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use ws_cluster::state::Rest;

/// What a closing connection still receives before its Close frame: the socket takes all of it.
pub fn take_rest(rest: Option<Rest>) -> Vec<u8> {
    let Some(rest) = rest else { return Vec::new() };
    let bytes = rest.with_slices(usize::MAX, |slices| slices.concat());
    rest.advance(bytes.len());
    bytes
}

/// What the wall clock shows, and the latest time that it has shown: it may be set back.
#[derive(Debug, Clone, Copy)]
pub struct WallClock {
    pub now_ms: u64,
    pub latest_ms: u64,
}

impl WallClock {
    /// A clock that nobody sets.
    pub fn steady(now_ms: u64) -> Self {
        Self { now_ms, latest_ms: now_ms }
    }
}

/// What the server must send a client, in the required order.
#[derive(Debug, Clone)]
pub enum Owed {
    Welcome,
    Push(Rc<Push>),
    /// An answer of this type; a successful one with `tags` lists them.
    Answer {
        kind: &'static str,
        code: u64,
        id: Option<String>,
        tags: Option<Vec<String>>,
    },
    Pong(Vec<u8>),
}

/// The state of a connection as its client or business server sees it.
#[derive(Debug)]
pub struct Receiver {
    cid: u64,
    pub pid: &'static str,
    node: u16,
    is_server: bool,
    bytes: Vec<u8>,
    pub owed: VecDeque<Owed>,
    /// Texts that other code checks: answers to requests, and everything that a business server
    /// receives.
    pub texts: Vec<String>,
    /// Pushes that arrived completely.
    pub pushes: u64,
    /// The tags of the last answer or of the connect, on which the client may rely.
    pub tags: Option<Vec<String>>,
    pub close_code: Option<u16>,
    /// Server pings that are not yet answered.
    pub pings: usize,
    /// Unsubscribes that were answered.
    pub unsubscribes: u64,
    last_of_pusher: BTreeMap<usize, u64>,
    /// When the first byte of the incomplete frame arrived, by the wall clock.
    begun_ms: u64,
}

impl Receiver {
    pub fn new(cid: u64, pid: &'static str, node: u16) -> Self {
        Self {
            cid,
            pid,
            node,
            is_server: false,
            bytes: Vec::new(),
            owed: VecDeque::from([Owed::Welcome]),
            texts: Vec::new(),
            pushes: 0,
            tags: None,
            close_code: None,
            pings: 0,
            unsubscribes: 0,
            last_of_pusher: BTreeMap::new(),
            begun_ms: 0,
        }
    }

    pub fn of_server(cid: u64, pid: &'static str, node: u16) -> Self {
        let owed = VecDeque::new();
        Self { is_server: true, owed, ..Self::new(cid, pid, node) }
    }

    /// Handles received bytes; `connect_tags` are the tags that it connected with.
    pub fn receive(&mut self, bytes: &[u8], connect_tags: &[String], wall: WallClock) {
        assert!(bytes.is_empty() || self.close_code.is_none(), "bytes after a Close frame");
        if self.bytes.is_empty() {
            self.begun_ms = wall.now_ms;
        }
        self.bytes.extend_from_slice(bytes);
        let mut at = 0;
        while let Some(frame) = server_frame_bytes(&self.bytes[at..])
            && self.bytes.len() - at >= frame
        {
            let frame = self.bytes[at..at + frame].to_vec();
            at += frame.len();
            assert!(self.close_code.is_none(), "a frame after a Close frame");
            self.take_frame(&frame, connect_tags, wall);
            self.begun_ms = wall.now_ms;
        }
        self.bytes.drain(..at);
    }

    /// Its socket is closed: the stream ends with a complete frame, unless the socket broke.
    pub fn end(&self, broke: bool) {
        assert!(broke || self.bytes.is_empty(), "the stream ends inside a frame: {:?}", self.bytes);
        assert!(broke || self.close_code.is_some(), "the stream ends without a Close frame");
    }

    /// Asserts that nothing is in flight to this client: what it has not received has expired.
    pub fn assert_served(&mut self, wall: WallClock) {
        while let Some(owed) = self.owed.pop_front() {
            match owed {
                Owed::Push(push) if push.is_expired(wall.latest_ms) => {}
                owed => panic!("client {} never got {owed:?}", self.cid),
            }
        }
        assert!(self.bytes.is_empty());
    }

    fn take_frame(&mut self, frame: &[u8], connect_tags: &[String], wall: WallClock) {
        let head = match frame[1] {
            126 => 4,
            127 => 10,
            _ => 2,
        };
        assert!(frame[1] < 128, "a masked frame of the server");
        let payload = &frame[head..];
        match (head, payload.len()) {
            (2, 0..=125) | (4, 126..=65_535) | (10, 65_536..) => {}
            _ => panic!("a length not in its shortest form"),
        }
        match frame[0] {
            0x81 => self.take_text(payload, connect_tags, wall),
            0x88 => self.close_code = Some(u16::from_be_bytes([payload[0], payload[1]])),
            0x89 => {
                assert!(payload.is_empty());
                self.pings += 1;
            }
            0x8a => match self.next_owed(None, wall) {
                Some(Owed::Pong(expected)) => assert_eq!(payload, expected),
                other => panic!("client {}: a pong instead of {other:?}", self.cid),
            },
            other => panic!("first byte {other:#x} of a frame"),
        }
    }

    fn take_text(&mut self, payload: &[u8], connect_tags: &[String], wall: WallClock) {
        let text = std::str::from_utf8(payload).unwrap();
        if self.is_server || text.starts_with(r#"{"type":"response","#) {
            assert!(self.is_server || self.tags.is_some(), "an answer before the welcome");
            return self.texts.push(text.into());
        }
        let json: Value = serde_json::from_str(text).unwrap();
        let kind = json["type"].as_str().unwrap();
        let id: Option<u64> =
            (kind == "push").then(|| json["id"].as_str().unwrap().parse().unwrap());
        match self.next_owed(id, wall) {
            Some(Owed::Push(push)) => {
                assert_eq!(Some(push.id), id, "client {}: not the push that was due", self.cid);
                let expected =
                    format!(r#"{{"type":"push","id":"{}","data":{}}}"#, push.id, push.data);
                assert!(text == expected, "the data is not what was pushed");
                assert!(!push.is_expired(self.begun_ms), "a push after its ttl_ms");
                assert_eq!(push.pid, self.pid, "a push of another project");
                let last = self.last_of_pusher.insert(push.pusher, push.number);
                assert!(
                    last.is_none_or(|last| last < push.number),
                    "client {}: push {} is twice or out of order, after the {last:?}th",
                    self.cid,
                    push.id
                );
                self.pushes += 1;
            }
            Some(Owed::Welcome) => {
                assert_eq!(kind, "connect");
                assert_eq!(json["client_id"].as_str().unwrap(), self.cid.to_string());
                let node = Some(u64::from(self.node));
                assert_eq!((json["code"].as_u64(), json["node"].as_u64()), (Some(1), node));
                self.tags = Some(connect_tags.to_vec());
            }
            Some(Owed::Answer { kind: expected, code, id, tags }) => {
                assert_eq!((kind, json["code"].as_u64()), (expected, Some(code)), "{json}");
                assert_eq!(json.get("id").and_then(Value::as_str), id.as_deref());
                self.unsubscribes += u64::from(kind == "unsubscribe");
                if let Some(tags) = tags {
                    assert_eq!(json["tags"], Value::from(tags.clone()));
                    self.tags = Some(tags);
                }
            }
            other => panic!("client {}: {json} instead of {other:?}", self.cid),
        }
    }

    /// Takes the next entry that is due. Pushes that have expired at some time may be missing.
    fn next_owed(&mut self, push_id: Option<u64>, wall: WallClock) -> Option<Owed> {
        loop {
            match self.owed.pop_front()? {
                Owed::Push(push) if Some(push.id) != push_id && push.is_expired(wall.latest_ms) => {
                }
                owed => return Some(owed),
            }
        }
    }
}

/// Returns the length of the server frame at the beginning of `bytes`, head included; `None` if its
/// head is incomplete.
fn server_frame_bytes(bytes: &[u8]) -> Option<usize> {
    let length_at = |width: usize| {
        let digits = bytes.get(2..2 + width)?;
        Some(digits.iter().fold(0usize, |sum, &byte| sum << 8 | usize::from(byte)) + 2 + width)
    };
    match bytes.get(1)? & 0x7f {
        126 => length_at(2),
        127 => length_at(8),
        short => Some(2 + usize::from(short)),
    }
}
