//! Who asked what, who was asked, and what came of it.

use super::{Business, Profile};
use crate::rng::Rng;
use serde_json::Value;
use std::collections::BTreeMap;
use ws_cluster::types::Cid;

/// A timeout comes so much later than its time at most: a tick, a step, and the way to the socket.
const LATE_MS: u64 = 300;
/// So many bytes of requests wait for a business server, each so much longer than its data at most.
const MAX_BACKLOG_BYTES: usize = 1 << 20;
const MOST_OVERHEAD_BYTES: usize = 300;
/// So many requests of one client may wait.
pub const MAX_OF_CLIENT: usize = 1_000;

/// A client's request.
#[derive(Debug, Default)]
pub struct Request {
    pub client: u64,
    pub pid: &'static str,
    pub uid: String,
    pub device: String,
    /// Which node, in which life, and which worker has the client.
    pub node: usize,
    pub epoch: u64,
    pub worker: usize,
    /// The `id` of its message.
    pub echo: Option<String>,
    pub data: String,
    pub sent_ms: u64,
    /// Its id in the cluster, once somebody has seen it.
    pub id: Option<u64>,
    /// The business servers that it was given to, and when.
    pub asked: Vec<(u64, u64)>,
    /// It was given to nobody: there was no business server, or its client has too many.
    pub has_no_server: bool,
    pub is_too_many: bool,
    /// It could not be handed over.
    pub is_unsent: bool,
    /// It waits for room in the socket of the server that is asked, or for its welcome.
    pub is_kept: bool,
    /// When the client's worker was told that the node of the server that is asked is lost.
    pub lost_ms: Option<u64>,
    /// The business server that got it, and when.
    pub written: Option<(u64, u64)>,
    /// What that server answered first, and when.
    pub answer: Option<(String, u64)>,
    /// What its client was told.
    pub told: Option<String>,
}

#[derive(Debug, Default)]
pub struct Requests {
    pub all: Vec<Request>,
    pub by_id: BTreeMap<u64, usize>,
    /// Of each client that is there, those that were not answered.
    pub open: BTreeMap<u64, Vec<usize>>,
    pub timeout_ms: u64,
    /// Some sockets are slow, so that nobody can say how late a timeout may come.
    pub has_slow_clients: bool,
    answers: u64,
    /// Answered with data, and refused by reason.
    pub outcomes: [u64; 6],
}

pub const REFUSALS: [&str; 5] =
    ["no server", "timeout", "server gone", "too many requests wait", "the queue is down"];

impl Requests {
    /// A client asks. Returns the request's number.
    pub fn begin(&mut self, request: Request) -> usize {
        self.open.entry(request.client).or_default().push(self.all.len());
        self.all.push(request);
        self.all.len() - 1
    }

    /// The message that carries it.
    pub fn text(&self, number: usize) -> String {
        let Request { echo, data, .. } = &self.all[number];
        let id = echo.as_ref().map(|echo| format!(r#""id":{},"#, Value::from(&**echo)));
        format!(r#"{{"type":"request",{}"data":{data}}}"#, id.unwrap_or_default())
    }

    /// Data of the next request.
    pub fn data(&self, rng: &mut Rng) -> String {
        let number = self.all.len();
        let filler = if rng.chance(90) { rng.below(60) } else { rng.below(3_000) };
        match rng.below(3) {
            0 => format!(r#"{{"n":{number},"x":"{}"}}"#, "x".repeat(filler)),
            1 => format!("{{ \"x\": [1.50e+3 , null],\t\"n\" :{number} }}"),
            _ => format!(r#"{{"n":{number}}}"#),
        }
    }

    /// An `id` for the next request of a client, or none: of those that wait each has another one,
    /// so that it is known which of them is answered.
    pub fn echo(&self, client: u64, rng: &mut Rng) -> Option<String> {
        let mut open = self.open.get(&client).into_iter().flatten();
        let echo = match rng.below(4) {
            0 => None,
            1 => Some("a\"gain".to_string()),
            _ => return Some(format!("q{}", self.all.len())),
        };
        let is_used = open.any(|number| self.all[*number].echo == echo);
        if is_used { Some(format!("q{}", self.all.len())) } else { echo }
    }

    /// How many of a client's requests were not answered.
    pub fn open_of(&self, client: u64) -> usize {
        self.open.get(&client).map_or(0, Vec::len)
    }

    /// A client is gone: nobody waits for its answers.
    pub fn forget_client(&mut self, client: u64) {
        self.open.remove(&client);
    }

    /// A client's worker has read a request: it is given to the one that has the fewest in flight,
    /// the nearest of equals. `candidates`: those that it may be given to, and how far each is;
    /// `before` and `after`: what is in flight.
    pub fn judge_choice(
        &mut self,
        number: usize,
        candidates: &BTreeMap<u64, u8>,
        before: &BTreeMap<Cid, u32>,
        after: &BTreeMap<Cid, u32>,
        now_ms: u64,
    ) {
        let (client, bytes) = (self.all[number].client, self.all[number].data.len());
        // One of this very worker says at once that it has no room.
        let is_full = |cid: u64| candidates[&cid] == 0 && self.is_full(cid, bytes, now_ms);
        let Some(server) = risen(before, after) else {
            let has_no_room = candidates.keys().any(|cid| is_full(*cid));
            let is_too_many = self.open_of(client) > MAX_OF_CLIENT || has_no_room;
            let request = &mut self.all[number];
            (request.has_no_server, request.is_too_many) = (candidates.is_empty(), is_too_many);
            let is_true = request.has_no_server || request.is_too_many;
            return assert!(is_true, "request {number} is given to none of {candidates:?}");
        };
        assert!(candidates.contains_key(&server), "{server} is asked, there are {candidates:?}");
        let rank = |cid: u64| (before.get(&Cid(cid)).copied().unwrap_or(0), candidates[&cid]);
        let best = *candidates.keys().min_by_key(|cid| rank(**cid)).unwrap();
        let is_best = rank(best) == rank(server) || is_full(best);
        assert!(is_best, "{server} is asked, of {candidates:?} {best} is better");
        self.ask(number, server, now_ms);
    }

    /// The request whose data this is.
    pub fn number_of(&self, data: &[u8]) -> usize {
        let json: Value = serde_json::from_slice(data).expect("the data of a request");
        let number = json["n"].as_u64().unwrap() as usize;
        assert_eq!(self.all[number].data.as_bytes(), data, "the data is not what was asked");
        number
    }

    /// It is seen under this id.
    pub fn identify(&mut self, number: usize, id: u64) {
        let known = *self.all[number].id.get_or_insert(id);
        assert_eq!(known, id, "request {number} has two ids");
        assert_eq!(*self.by_id.entry(id).or_insert(number), number, "id {id} came twice");
    }

    /// It is given to a business server: to a second one only if the first has not got it.
    pub fn ask(&mut self, number: usize, server: u64, now_ms: u64) {
        let request = &mut self.all[number];
        if request.asked.last().is_some_and(|(asked, _)| *asked == server) {
            return;
        }
        assert!(request.asked.len() < 2, "request {number} goes to a third server");
        assert_eq!(request.written, None, "request {number} was written, and goes to {server}");
        request.asked.push((server, now_ms));
        (request.is_kept, request.lost_ms) = (false, None);
    }

    /// A business server is asked all that waited for it.
    pub fn send_kept(&mut self, server: u64) {
        for number in self.open.values().flatten() {
            let request = &mut self.all[*number];
            request.is_kept &= request.asked.last().is_none_or(|(asked, _)| *asked != server);
        }
    }

    /// The whole frame of a request has come to a business server; if it is of the
    /// client's worker nobody saw it on its way.
    pub fn write(&mut self, server: &Profile, text: &str, json: &Value, now_ms: u64) -> u64 {
        let id: u64 = json["id"].as_str().unwrap().parse().unwrap();
        let number = json["data"]["n"].as_u64().unwrap() as usize;
        self.identify(number, id);
        let request = &self.all[number];
        if (request.node, request.epoch, request.worker)
            == (server.node, server.epoch, server.worker)
        {
            self.ask(number, server.cid, now_ms);
        }
        let server = server.cid;
        let request = &mut self.all[number];
        let from = format!(
            r#"{{"client_id":"{}","uid":{},"device":{}}}"#,
            request.client,
            Value::from(&*request.uid),
            Value::from(&*request.device)
        );
        let data = &request.data;
        let expected = format!(r#"{{"type":"request","id":"{id}","from":{from},"data":{data}}}"#);
        assert!(text == expected, "{text} instead of {expected}");
        let is_asked = request.asked.last().is_some_and(|(asked, _)| *asked == server);
        assert!(is_asked, "{server} gets request {number}, asked were {:?}", request.asked);
        assert_eq!(request.written, None, "request {number} is written twice");
        request.written = Some((server, now_ms));
        id
    }

    /// Data that nobody has sent before.
    pub fn new_answer(&mut self) -> u64 {
        self.answers += 1;
        self.answers
    }

    /// A business server's answer is read by its worker. It counts if that server is asked, and
    /// this is its first. Returns `false` for a guess that is right before the request is there:
    /// whether it counts nobody can tell.
    pub fn answer(&mut self, server: u64, id: &str, data: &str, now_ms: u64) -> bool {
        let number = id.parse().ok().and_then(|id: u64| self.by_id.get(&id));
        let Some(request) = number.map(|number| &mut self.all[*number]) else { return true };
        if request.asked.last().is_none_or(|(asked, _)| *asked != server) {
            return true;
        }
        if request.written.is_some() {
            request.answer.get_or_insert_with(|| (data.into(), now_ms));
        }
        request.written.is_some()
    }

    fn is_true(&self, request: &Request, msg: &str, business: &Business, now_ms: u64) -> bool {
        let end_ms = request.sent_ms + self.timeout_ms;
        match msg {
            "no server" => request.has_no_server,
            "too many requests wait" => {
                let bytes = request.data.len();
                let is_full = |(server, ms): &(u64, u64)| self.is_full(*server, bytes, *ms);
                request.is_too_many || request.asked.iter().any(is_full)
            }
            "timeout" => {
                let is_soon = self.has_slow_clients || now_ms <= end_ms + LATE_MS;
                let is_lost = request.lost_ms.is_some_and(|lost_ms| lost_ms < end_ms);
                !request.asked.is_empty() && now_ms >= end_ms && is_soon && !is_lost
            }
            "server gone" => {
                let has_ended = |(server, _): &(u64, u64)| business.ended.contains_key(server);
                request.lost_ms.is_some() || request.asked.iter().any(has_ended)
            }
            "the queue is down" => request.is_unsent,
            _ => false,
        }
    }

    /// Whether a business server may have had no room for one more request of so many bytes.
    pub fn is_full(&self, server: u64, more: usize, since_ms: u64) -> bool {
        let is_its = |one: &&Request| one.asked.iter().any(|(asked, _)| *asked == server);
        let is_unwritten = |one: &&Request| one.written.is_none_or(|(_, ms)| ms >= since_ms);
        let unwritten = self.all.iter().filter(is_unwritten).filter(is_its);
        let bytes: usize = unwritten.map(|one| one.data.len() + MOST_OVERHEAD_BYTES).sum();
        bytes + more > MAX_BACKLOG_BYTES
    }

    /// Nobody waits for longer than is allowed.
    pub fn check(&self, now_ms: u64) {
        for number in self.open.values().flatten() {
            let waited_ms = now_ms - self.all[*number].sent_ms;
            let most_ms = self.timeout_ms + LATE_MS;
            assert!(waited_ms <= most_ms, "request {number} is not answered: {waited_ms} ms");
        }
    }
}

/// The business server that is asked one thing more.
pub fn risen(before: &BTreeMap<Cid, u32>, after: &BTreeMap<Cid, u32>) -> Option<u64> {
    let rises = |(cid, load): &(&Cid, &u32)| **load > before.get(cid).copied().unwrap_or(0);
    let mut all = after.iter().filter(rises).map(|(cid, _)| cid.0);
    let one = all.next();
    assert_eq!(all.next(), None, "two are asked at once");
    one
}

impl Business {
    /// An answer has come to a client: exactly what the server that was asked for this very request
    /// sent, or a refusal that is true. Returns the request's number.
    pub fn hear_answer(&mut self, client: u64, text: &str, now_ms: u64) -> usize {
        let json: Value = serde_json::from_str(text).unwrap();
        let echo = json.get("id").and_then(Value::as_str);
        let head = match echo {
            Some(echo) => format!(r#"{{"type":"response","id":{},"#, Value::from(echo)),
            None => r#"{"type":"response","#.to_string(),
        };
        let rest = text.strip_prefix(&*head).expect("the head of an answer");
        let requests = &self.requests;
        let mut open = requests.open.get(&client).into_iter().flatten().enumerate();
        let found = open.find(|(_, number)| requests.all[**number].echo.as_deref() == echo);
        let (at, &number) = found.unwrap_or_else(|| panic!("client {client} never asked: {text}"));
        let request = &requests.all[number];
        let kind = match json["code"].as_u64() {
            Some(1) => {
                let answer = request.answer.as_ref().map(|(data, _)| data.as_str());
                let expected = answer.map(|data| format!(r#""code":1,"data":{data}}}"#));
                assert!(Some(rest) == expected.as_deref(), "{text} to {request:#?}");
                0
            }
            Some(0) => {
                let msg = json["msg"].as_str().unwrap();
                assert_eq!(rest, format!(r#""code":0,"msg":{}}}"#, Value::from(msg)));
                let is_true = requests.is_true(request, msg, self, now_ms);
                assert!(
                    is_true,
                    "{text} at {now_ms}, after {}, is not true of {request:#?}",
                    requests.timeout_ms
                );
                1 + REFUSALS.iter().position(|one| *one == msg).expect("a known refusal")
            }
            code => panic!("code {code:?}"),
        };
        let requests = &mut self.requests;
        requests.open.get_mut(&client).unwrap().remove(at);
        requests.all[number].told = Some(text.into());
        requests.outcomes[kind] += 1;
        number
    }
}
