//! Business servers as both simulations model them: what each must receive, what it sends, and the
//! outcome of all requests. Nothing here knows how the server does it.
//!
//! Invariants:
//! 1. a business server gets its welcome first, then the subscribed events of clients of its
//!    project, complete for its own worker; each at most once, those of one client in order;
//! 2. a request is written to at most one business server: one that was chosen for it, takes
//!    requests and belongs to the project;
//! 3. a request of a client that stays is answered once: with what the server that got this very
//!    request sent first, byte for byte, or with a refusal whose reason is true;
//! 4. a push of a business server is answered once, in the order of its pushes.

pub mod events;
pub mod requests;

use super::model::Push;
use super::rng::Rng;
use events::Events;
use requests::Requests;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use ws_cluster::types::EventSet;

/// Returns the address of a user's connections: none, IPv4 or IPv6.
pub fn ip_of(uid: &str) -> Option<IpAddr> {
    let last = uid.bytes().last()?;
    match last % 3 {
        0 => None,
        1 => Some(IpAddr::from([192, 0, 2, last])),
        _ => Some(IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::from(last)])),
    }
}

/// Identity of a business server.
#[derive(Debug, Clone, Copy)]
pub struct Profile {
    pub cid: u64,
    pub pid: &'static str,
    pub events: EventSet,
    /// Its node, that node's incarnation, and its worker.
    pub node: usize,
    pub epoch: u64,
    pub worker: usize,
}

/// The true state of all nodes together.
#[derive(Debug, Default)]
pub struct Business {
    /// All that ever connected, and when they ended.
    pub profiles: BTreeMap<u64, Profile>,
    pub ended: BTreeMap<u64, u64>,
    pub events: Events,
    pub requests: Requests,
    /// Events that were received, and that had to be received over the queue.
    pub heard: u64,
    pub checked: u64,
}

impl Business {
    pub fn end(&mut self, server: u64, now_ms: u64) {
        self.ended.entry(server).or_insert(now_ms);
    }
}

/// Something that a business server must be sent next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// An event of a client, and its sequence number.
    Client(u64, usize),
    Node(u16, bool),
}

/// A push in flight.
#[derive(Debug, Clone)]
pub struct SentPush {
    pub echo: Option<String>,
    pub push: Push,
    /// Its idempotency key, by number.
    pub group: Option<usize>,
    pub text: String,
    /// Its message id, once it has begun; `Some(None)`: refused.
    pub begun: Option<Option<u64>>,
}

/// The answer to a push.
#[derive(Debug)]
pub struct PushAnswer {
    pub id: Option<u64>,
    pub is_accepted: bool,
}

/// What a business server sends.
#[derive(Debug, Clone)]
pub enum Said {
    Answer {
        id: String,
        data: String,
    },
    Push,
    /// A message that is answered at once, with this type and code.
    Other {
        kind: &'static str,
        code: u64,
    },
}

/// The state of a connection as its business server sees it.
#[derive(Debug)]
pub struct Server {
    pub profile: Profile,
    /// Peers that, by its worker's count, must acknowledge it before its welcome is sent.
    pub unknown_to: usize,
    pub welcomed_ms: Option<u64>,
    /// Entries of one client arrive in this order.
    pub owed: VecDeque<Told>,
    /// Client events received so far.
    pub got: BTreeSet<(u64, usize)>,
    /// Unanswered pushes that it sent.
    pub pushes: VecDeque<SentPush>,
    /// Requests that it received: unanswered ones, and answered ones.
    asked: Vec<u64>,
    answered: Vec<u64>,
    replies: VecDeque<(&'static str, u64)>,
    /// Percentage of its turns in which it answers.
    diligence: usize,
}

/// Returns a random set of events; mostly all of them.
pub fn random_events(rng: &mut Rng) -> EventSet {
    match rng.below(10) {
        0..5 => EventSet::ALL,
        5 => EventSet::REQUEST,
        6 => EventSet::NONE,
        _ => EventSet::from_bits(rng.number() as u8),
    }
}

impl Server {
    pub fn new(profile: Profile, unknown_to: usize, rng: &mut Rng) -> Self {
        Self {
            profile,
            unknown_to,
            welcomed_ms: None,
            owed: VecDeque::new(),
            got: BTreeSet::new(),
            pushes: VecDeque::new(),
            asked: Vec::new(),
            answered: Vec::new(),
            replies: VecDeque::new(),
            diligence: *rng.pick(&[95, 80, 80, 20, 0]),
        }
    }

    /// Returns whether its worker must send it such an event.
    pub fn hears(&self, pid: &str, kind: EventSet) -> bool {
        self.unknown_to == 0 && self.profile.pid == pid && self.profile.events.meets(kind)
    }

    /// Asserts that nothing is in flight to it.
    pub fn assert_served(&self) {
        let cid = self.profile.cid;
        assert!(self.owed.is_empty(), "business server {cid} never got {:?}", self.owed);
        assert!(self.replies.is_empty(), "business server {cid} never got {:?}", self.replies);
        assert_eq!(self.unknown_to == 0, self.welcomed_ms.is_some(), "the welcome of {cid}");
    }

    // What it receives.

    /// Handles a received text. Returns the answer to a push, for the caller who knows the push's
    /// outcome.
    pub fn hear(
        &mut self,
        text: &str,
        business: &mut Business,
        now_ms: u64,
    ) -> Option<(SentPush, PushAnswer)> {
        let Profile { cid, pid, events, .. } = self.profile;
        let json: Value = serde_json::from_str(text).unwrap();
        let kind = json["type"].as_str().unwrap();
        if self.welcomed_ms.is_none() {
            let welcome = (kind, json["code"].as_u64(), json["client_id"].as_str().unwrap());
            assert_eq!(welcome, ("connect", Some(1), &*cid.to_string()));
            assert_eq!(self.unknown_to, 0, "{cid} is welcomed, and not everybody knows of it");
            self.welcomed_ms = Some(now_ms);
            return None;
        }
        match kind {
            "push" => return Some(self.hear_push_answer(&json)),
            _ if json.get("code").is_some() => {
                let reply = Some((kind, json["code"].as_u64().unwrap()));
                assert_eq!(self.replies.pop_front(), reply, "a reply to business server {cid}");
            }
            "request" => {
                let id = business.requests.write(&self.profile, text, &json, now_ms);
                let number = business.requests.by_id[&id];
                assert!(events.meets(EventSet::REQUEST), "{cid} takes no requests");
                assert_eq!(business.requests.all[number].pid, pid, "of another project");
                self.asked.push(id);
            }
            _ => self.hear_event(&json, business),
        }
        None
    }

    fn hear_event(&mut self, json: &Value, business: &mut Business) {
        let Profile { cid, pid, events, .. } = self.profile;
        // In order for each client, and for nodes.
        let client: Option<u64> =
            json.get("client_id").map(|cid| cid.as_str().unwrap().parse().unwrap());
        let is_it = |told: &Told| match told {
            Told::Client(cid, _) => Some(*cid) == client,
            Told::Node(..) => client.is_none(),
        };
        let at = self.owed.iter().position(is_it);
        match at.and_then(|at| self.owed.remove(at)) {
            Some(Told::Client(client, index)) => {
                let is_it = business.events.is_told(client, index, json);
                let happening = business.events.get(client, index);
                assert!(is_it, "business server {cid}: {json} instead of {happening:?}");
                assert!(events.meets(happening.kind), "{cid} does not want {json}");
                assert_eq!(business.events.histories[&client].pid, pid, "of another project");
                assert!(self.got.insert((client, index)), "{cid} is told twice of {json}");
                business.heard += 1;
            }
            Some(Told::Node(node, is_up)) => {
                let state = if is_up { "up" } else { "lost" };
                let ts = &json["ts"];
                let expected = json!({"type": "node", "state": state, "node": node, "ts": ts});
                assert_eq!(*json, expected, "what business server {cid} hears of a node");
            }
            None => panic!("business server {cid} is told {json}, and is owed nothing"),
        }
    }

    fn hear_push_answer(&mut self, json: &Value) -> (SentPush, PushAnswer) {
        let cid = self.profile.cid;
        let sent = self.pushes.pop_front().expect("an answer to no push");
        assert_eq!(json.get("id").and_then(Value::as_str), sent.echo.as_deref(), "{cid}: {json}");
        assert!(sent.begun.is_some(), "{cid}: an answer to a push that nobody has accepted");
        let is_accepted = match json["code"].as_u64() {
            Some(1) => true,
            Some(0) => {
                assert!(json["msg"].is_string());
                false
            }
            code => panic!("code {code:?}"),
        };
        let id = json.get("message_id").map(|id| id.as_str().unwrap().parse().unwrap());
        (sent, PushAnswer { id, is_accepted })
    }

    // What it sends.

    /// Returns the next message that it sends, and its text; `None`: nothing. Answers may be
    /// correct, late, repeated, or to requests that others got.
    pub fn speak(&mut self, rng: &mut Rng, requests: &mut Requests) -> Option<(Said, String)> {
        self.welcomed_ms?;
        let ids = requests.by_id.len();
        let id = match rng.below(100) {
            0..80 if !self.asked.is_empty() => {
                if !rng.chance(self.diligence) {
                    return None;
                }
                let at = rng.below(self.asked.len());
                let id = self.asked.swap_remove(at);
                self.answered.push(id);
                id.to_string()
            }
            80..84 if !self.answered.is_empty() => rng.pick(&self.answered).to_string(),
            84..87 if ids > 0 => requests.by_id.keys().nth(rng.below(ids)).unwrap().to_string(),
            87..89 if !self.asked.is_empty() => (rng.pick(&self.asked) ^ 1 << 50).to_string(),
            89 => rng.pick(&["", "0", "x", "-1", "18446744073709551616"]).to_string(),
            90..92 => {
                let (text, kind, code) = *rng.pick(&[
                    (r#"{"type":"heartbeat"}"#, "heartbeat", 1),
                    (r#"{"type":"subscribe","tags":"t0"}"#, "error", 0),
                    (r#"{"type":"request","data":1}"#, "error", 0),
                    (r#"{"type":"response","id":"1"}"#, "error", 0),
                    ("{", "error", 0),
                ]);
                return Some((Said::Other { kind, code }, text.into()));
            }
            _ => return None,
        };
        let number = requests.new_answer();
        let data = match rng.below(3) {
            0 => format!("[ {number},\"\\u00e9\" ]"),
            1 => format!(r#"{{"answer":{number},"x":"{}"}}"#, "y".repeat(rng.below(200))),
            _ => number.to_string(),
        };
        let text = format!(r#"{{"type":"response","id":{},"data":{data}}}"#, Value::from(&*id));
        Some((Said::Answer { id, data }, text))
    }

    /// Records that its worker reads the message; `false`: it must be treated as never sent.
    pub fn is_read(&mut self, said: &Said, requests: &mut Requests, now_ms: u64) -> bool {
        match said {
            Said::Answer { id, data } => {
                return requests.answer(self.profile.cid, id, data, now_ms);
            }
            Said::Push => {}
            Said::Other { kind, code } => self.replies.push_back((kind, *code)),
        }
        true
    }

    /// Sends a push. Returns its text.
    pub fn push(&mut self, push: Push, group: Option<usize>, echo: Option<String>) -> String {
        let mut members = json!({"type": "push"});
        for (name, list) in [("uids", &push.uids), ("tags", &push.tags), ("devices", &push.devices)]
        {
            if let Some(list) = list {
                members[name] = json!(list);
            }
        }
        for (name, list) in [("cids", &push.cids), ("except_cids", &push.except_cids)] {
            if let Some(list) = list {
                members[name] = list.iter().map(u64::to_string).collect();
            }
        }
        if let Some(echo) = &echo {
            members["id"] = json!(echo);
        }
        if let Some(group) = group {
            members["idempotency_key"] = json!(group.to_string());
        }
        if push.ttl_ms > 0 {
            members["ttl_ms"] = json!(push.ttl_ms);
        }
        let head = members.to_string();
        let head = head.strip_suffix('}').unwrap();
        let text = format!(r#"{head},"data":{}}}"#, push.data);
        let (begun, kept) = (None, text.clone());
        self.pushes.push_back(SentPush { echo, push, group, text: kept, begun });
        text
    }

    /// Returns the next push that its worker reads.
    pub fn next_push(&self) -> Option<&SentPush> {
        self.pushes.iter().find(|push| push.begun.is_none())
    }

    /// Records that this push has begun or is refused.
    pub fn begin_push(&mut self, id: Option<u64>) {
        let next = self.pushes.iter_mut().find(|push| push.begun.is_none());
        next.expect("a push that nobody sent").begun = Some(id);
    }
}
