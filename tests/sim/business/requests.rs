//! Requests: who sent them, who received them, and their outcomes.

use super::{Business, Profile, ip_of};
use crate::rng::Rng;
use serde_json::Value;
use std::collections::BTreeMap;
use ws_cluster::types::Cid;

/// Maximum delay of a timeout: a tick, a step, and the way to the socket.
const LATE_MS: u64 = 300;
/// Maximum bytes of requests that wait for a business server, and the overhead of each beyond its
/// data.
const MAX_BACKLOG_BYTES: usize = 1 << 20;
const MOST_OVERHEAD_BYTES: usize = 300;
/// Maximum number of one client's waiting requests.
pub const MAX_OF_CLIENT: usize = 1_000;

/// A client's request.
#[derive(Debug, Default)]
pub struct Request {
    pub client: u64,
    pub pid: &'static str,
    pub uid: String,
    pub device: String,
    /// The client's node, that node's incarnation, and its worker.
    pub node: usize,
    pub epoch: u64,
    pub worker: usize,
    /// The `id` of its message.
    pub echo: Option<String>,
    pub data: String,
    pub sent_ms: u64,
    /// Its id in the cluster, once observed.
    pub id: Option<u64>,
    /// The business servers that it was assigned to, and when.
    pub asked: Vec<(u64, u64)>,
    /// It was assigned to nobody: there was no business server, or its client has too many
    /// requests.
    pub has_no_server: bool,
    pub is_too_many: bool,
    /// It could not be sent.
    pub is_unsent: bool,
    /// It waits for room in the assigned server's socket, or for that server's welcome.
    pub is_kept: bool,
    /// When the client's worker learned that the assigned server's node is lost.
    pub lost_ms: Option<u64>,
    /// The business server that received it, and when.
    pub written: Option<(u64, u64)>,
    /// That server's first answer, and when.
    pub answer: Option<(String, u64)>,
    /// What its client received.
    pub told: Option<String>,
}

#[derive(Debug, Default)]
pub struct Requests {
    pub all: Vec<Request>,
    pub by_id: BTreeMap<u64, usize>,
    /// Unanswered requests of each connected client.
    pub open: BTreeMap<u64, Vec<usize>>,
    pub timeout_ms: u64,
    /// Some sockets are slow, so a timeout may be arbitrarily late.
    pub has_slow_clients: bool,
    answers: u64,
    /// Number of answers with data, and of refusals by reason.
    pub outcomes: [u64; 6],
}

pub const REFUSALS: [&str; 5] =
    ["no server", "timeout", "server gone", "too many requests are pending", "the queue is down"];

impl Requests {
    /// Sends a client's request. Returns its number.
    pub fn begin(&mut self, request: Request) -> usize {
        self.open.entry(request.client).or_default().push(self.all.len());
        self.all.push(request);
        self.all.len() - 1
    }

    /// Returns the message that carries it.
    pub fn text(&self, number: usize) -> String {
        let Request { echo, data, .. } = &self.all[number];
        let id = echo.as_ref().map(|echo| format!(r#""id":{},"#, Value::from(&**echo)));
        format!(r#"{{"type":"request",{}"data":{data}}}"#, id.unwrap_or_default())
    }

    /// Returns data for the next request.
    pub fn data(&self, rng: &mut Rng) -> String {
        let number = self.all.len();
        let filler = if rng.chance(90) { rng.below(60) } else { rng.below(3_000) };
        match rng.below(3) {
            0 => format!(r#"{{"n":{number},"x":"{}"}}"#, "x".repeat(filler)),
            1 => format!("{{ \"x\": [1.50e+3 , null],\t\"n\" :{number} }}"),
            _ => format!(r#"{{"n":{number}}}"#),
        }
    }

    /// Returns an `id` for a client's next request, or none. Waiting requests of a client have
    /// distinct ids, so that an answer identifies its request.
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

    /// Returns the number of a client's unanswered requests.
    pub fn open_of(&self, client: u64) -> usize {
        self.open.get(&client).map_or(0, Vec::len)
    }

    /// Forgets a client that has left: nobody waits for its answers.
    pub fn forget_client(&mut self, client: u64) {
        self.open.remove(&client);
    }

    /// Checks the choice after a client's worker has read a request: it goes to the business server
    /// with the fewest in flight, among equals to the nearest. `candidates`: the eligible servers
    /// and their distances; `before` and `after`: requests in flight.
    pub fn judge_choice(
        &mut self,
        number: usize,
        candidates: &BTreeMap<u64, u8>,
        before: &BTreeMap<Cid, u32>,
        after: &BTreeMap<Cid, u32>,
        now_ms: u64,
    ) {
        let (client, bytes) = (self.all[number].client, self.all[number].data.len());
        // One on the same worker reports at once that it has no room.
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

    /// Returns the request that has this data.
    pub fn number_of(&self, data: &[u8]) -> usize {
        let json: Value = serde_json::from_slice(data).expect("the data of a request");
        let number = json["n"].as_u64().unwrap() as usize;
        assert_eq!(self.all[number].data.as_bytes(), data, "the data is not what was asked");
        number
    }

    /// Records the id under which it is observed.
    pub fn identify(&mut self, number: usize, id: u64) {
        let known = *self.all[number].id.get_or_insert(id);
        assert_eq!(known, id, "request {number} has two ids");
        assert_eq!(*self.by_id.entry(id).or_insert(number), number, "id {id} came twice");
    }

    /// Assigns it to a business server: to a second one only if the first has not received it.
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

    /// Sends a business server all requests that were waiting for it.
    pub fn send_kept(&mut self, server: u64) {
        for number in self.open.values().flatten() {
            let request = &mut self.all[*number];
            request.is_kept &= request.asked.last().is_none_or(|(asked, _)| *asked != server);
        }
    }

    /// Records that the complete frame of a request has reached a business server; if both are on
    /// one worker, it was not observed on its way.
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
        let ip = ip_of(&request.uid).map(|ip| format!(r#","ip":"{ip}""#));
        let from = format!(
            r#"{{"client_id":"{}","uid":{},"device":{}{}}}"#,
            request.client,
            Value::from(&*request.uid),
            Value::from(&*request.device),
            ip.unwrap_or_default()
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

    /// Returns data that nobody has sent before.
    pub fn new_answer(&mut self) -> u64 {
        self.answers += 1;
        self.answers
    }

    /// Records that a worker has read a business server's answer. It counts if the request is
    /// assigned to that server and this is its first answer. Returns `false` for a guess that is
    /// correct before the request has arrived: whether it counts is undefined.
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
            "too many requests are pending" => {
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

    /// Returns whether a business server may have had no room for another request of this size.
    pub fn is_full(&self, server: u64, more: usize, since_ms: u64) -> bool {
        let is_its = |one: &&Request| one.asked.iter().any(|(asked, _)| *asked == server);
        let is_unwritten = |one: &&Request| one.written.is_none_or(|(_, ms)| ms >= since_ms);
        let unwritten = self.all.iter().filter(is_unwritten).filter(is_its);
        let bytes: usize = unwritten.map(|one| one.data.len() + MOST_OVERHEAD_BYTES).sum();
        bytes + more > MAX_BACKLOG_BYTES
    }

    /// Checks that no request waits longer than is allowed.
    pub fn check(&self, now_ms: u64) {
        for number in self.open.values().flatten() {
            let waited_ms = now_ms - self.all[*number].sent_ms;
            let most_ms = self.timeout_ms + LATE_MS;
            assert!(waited_ms <= most_ms, "request {number} is not answered: {waited_ms} ms");
        }
    }
}

/// Returns the business server whose requests in flight increased by one.
pub fn risen(before: &BTreeMap<Cid, u32>, after: &BTreeMap<Cid, u32>) -> Option<u64> {
    let rises = |(cid, load): &(&Cid, &u32)| **load > before.get(cid).copied().unwrap_or(0);
    let mut all = after.iter().filter(rises).map(|(cid, _)| cid.0);
    let one = all.next();
    assert_eq!(all.next(), None, "two are asked at once");
    one
}

impl Business {
    /// Checks an answer that reached a client: it must be exactly what the server assigned to this
    /// very request sent, or a refusal whose reason is true. Returns the request's number.
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
