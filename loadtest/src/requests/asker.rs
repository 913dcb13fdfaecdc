//! The clients' side of `loadtest requests`: sends requests and checks the answers.

use std::collections::VecDeque;

use hdrhistogram::Histogram;
use ws_cluster_wire::websocket::client;

use crate::client::{Clients, Handler, IDLE_NS};
use crate::message::{self, Marks, Member, STAMP_LEN, Stamp};
use crate::report::{self, Failures};
use crate::series::ThreadLive;
use crate::sys;

const ID_LEN: usize = 8;
const ASK: [&[u8]; 3] = [br#"{"type":"request","id":""#, br#"","data":""#, br#""}"#];

/// An unanswered request.
#[derive(Clone, Copy)]
struct Pending {
    id: u32,
    seq: u32,
    at_ns: u64,
    /// When it was due: earlier than the sending if, at a given rate, every client was waiting.
    intended_ns: u64,
}

/// The requests of one client.
#[derive(Default)]
struct Asking {
    slot: usize,
    next_id: u32,
    pending: VecDeque<Pending>,
}

pub struct Asker {
    run: u16,
    clients: Vec<Asking>,
    /// Clients that may send a request, one entry per request that they may send.
    pub idle: VecDeque<u32>,
    /// During start-up: clients whose node knew no server.
    pub unserved: Option<Vec<u32>>,
    pub refused_at_first: u64,
    kind: Member,
    id: Member,
    code: Member,
    msg: Member,
    data: Member,
    filler: Vec<u8>,
    pub next: u32,
    /// The id and the stamp of the request being written.
    id_text: Vec<u8>,
    stamp_text: Vec<u8>,
    /// Requests of one client, sent together.
    out: Vec<u8>,
    writing: Option<u32>,
    pub answered: u64,
    pub measured: u64,
    pub duplicates: u64,
    pub foreign: u64,
    pub foreign_frames: u64,
    pub refusals: Failures,
    pub latency: Histogram<u64>,
    /// The same from when the request was due: includes the wait for a free client.
    pub intended_latency: Histogram<u64>,
    /// Where latencies are recorded as well.
    pub live: Option<&'static ThreadLive>,
    /// The time of the current batch.
    pub now: u64,
    pub last_ns: u64,
    /// When the pace begins, and with which request.
    pub began: (u64, u32),
    pub measure_from_ns: u64,
    pub end_ns: u64,
    /// Nanoseconds from one request to the next; 0: at once.
    pub interval_ns: f64,
}

impl Asker {
    /// Sends payloads of `bytes`, or of the minimum size if that is larger.
    pub fn new(bytes: usize, run: u16, clients: usize) -> Asker {
        let overhead: usize = ASK.iter().map(|part| part.len()).sum();
        let filler = bytes.saturating_sub(overhead + ID_LEN + STAMP_LEN);
        Asker {
            run,
            clients: (0..clients).map(|_| Asking::default()).collect(),
            idle: VecDeque::new(),
            unserved: None,
            refused_at_first: 0,
            kind: Member::new(r#""type":""#),
            id: Member::new(r#""id":""#),
            code: Member::new(r#""code":"#),
            msg: Member::new(r#""msg":""#),
            data: Member::new(r#""data":""#),
            filler: vec![b'x'; filler],
            next: 0,
            id_text: Vec::new(),
            stamp_text: Vec::new(),
            out: Vec::new(),
            writing: None,
            answered: 0,
            measured: 0,
            duplicates: 0,
            foreign: 0,
            foreign_frames: 0,
            refusals: Failures::default(),
            latency: report::new_histogram(),
            intended_latency: report::new_histogram(),
            live: None,
            now: 0,
            last_ns: 0,
            began: (0, 0),
            measure_from_ns: u64::MAX,
            end_ns: u64::MAX,
            interval_ns: 0.0,
        }
    }

    /// Records that the client with this number is open in this slot and may send requests.
    pub fn opened(&mut self, slot: usize, number: u32) {
        self.clients[number as usize].slot = slot;
        self.idle.push_back(number);
    }

    /// Returns the size of a request's payload, the same for all.
    pub fn payload_len(&self) -> usize {
        ASK.iter().map(|part| part.len()).sum::<usize>() + ID_LEN + STAMP_LEN + self.filler.len()
    }

    fn refused(&mut self, payload: &[u8]) {
        let why = self.msg.text(payload).unwrap_or(b"no msg");
        self.refusals.add(&String::from_utf8_lossy(why));
    }

    /// Returns whether the data is exactly that of this client's request.
    fn is_answer_to(&mut self, asked: Pending, number: u32, payload: &[u8]) -> bool {
        let Some((stamp, rest)) =
            self.data.text(payload).and_then(|data| data.split_at_checked(STAMP_LEN))
        else {
            return false;
        };
        let Pending { seq, at_ns, .. } = asked;
        let own = Stamp { run: self.run, seq, at_ns, pusher: number as u16 };
        Stamp::read(stamp) == Some(own) && rest == self.filler
    }

    fn book(&mut self, asked: Pending) {
        if asked.at_ns >= self.measure_from_ns {
            self.measured += 1;
            self.last_ns = self.now;
            report::record(&mut self.latency, self.now.saturating_sub(asked.at_ns));
            let waited_ns = self.now.saturating_sub(asked.intended_ns);
            report::record(&mut self.intended_latency, waited_ns);
        }
        if let Some(live) = self.live {
            // Without a rate both times are equal.
            live.latency.record(self.now.saturating_sub(asked.intended_ns));
        }
    }

    /// Sends the requests that are allowed and due. Returns how long there is nothing more to do.
    pub fn turn(&mut self, clients: &mut Clients) -> u64 {
        while let Some(&number) = self.idle.front() {
            let now = sys::now_ns();
            if self.is_over(now) {
                break;
            }
            let (began_ns, first) = self.began;
            let intended_ns = match self.interval_ns {
                0.0 => now,
                interval_ns => began_ns + (f64::from(self.next - first) * interval_ns) as u64,
            };
            if intended_ns > now {
                self.flush(clients);
                return (intended_ns - now).min(IDLE_NS);
            }
            if self.writing.is_some_and(|writing| writing != number) {
                self.flush(clients);
            }
            self.idle.pop_front();
            self.ask(number, now, intended_ns);
        }
        self.flush(clients);
        IDLE_NS
    }

    fn ask(&mut self, number: u32, at_ns: u64, intended_ns: u64) {
        let client = &mut self.clients[number as usize];
        let (id, seq) = (client.next_id, self.next);
        client.next_id += 1;
        self.next += 1;
        client.pending.push_back(Pending { id, seq, at_ns, intended_ns });
        self.id_text.clear();
        message::write_hex(u64::from(id), ID_LEN as u32, &mut self.id_text);
        self.stamp_text.clear();
        let stamp = Stamp { run: self.run, seq, at_ns, pusher: number as u16 };
        stamp.write(&mut self.stamp_text);
        let [open, middle, close] = ASK;
        let parts = [open, &self.id_text, middle, &self.stamp_text, &self.filler, close];
        client::write_text(&mut self.out, &parts);
        self.writing = Some(number);
    }

    fn flush(&mut self, clients: &mut Clients) {
        if let Some(number) = self.writing.take() {
            clients.send(self.clients[number as usize].slot, &self.out);
            self.out.clear();
        }
    }

    fn is_over(&self, now: u64) -> bool {
        now >= self.end_ns || sys::interrupted()
    }

    pub fn unanswered(&self) -> u64 {
        self.clients.iter().map(|client| client.pending.len() as u64).sum()
    }
}

impl Handler for Asker {
    #[inline]
    fn frame(&mut self, number: u32, _: &mut Marks, payload: &[u8]) {
        match self.kind.text(payload) {
            Some(b"response") => {}
            Some(b"error") => return self.refused(payload),
            _ => {
                self.foreign_frames += 1;
                return;
            }
        }
        let client = &mut self.clients[number as usize];
        let id = self.id.text(payload).filter(|id| id.len() == ID_LEN);
        let Some(id) = id.and_then(message::read_hex) else {
            self.foreign += 1;
            return;
        };
        let place = client.pending.iter().position(|asked| u64::from(asked.id) == id);
        let Some(asked) = place.and_then(|place| client.pending.remove(place)) else {
            match id < u64::from(client.next_id) {
                true => self.duplicates += 1,
                false => self.foreign += 1,
            }
            return;
        };
        if self.code.rest(payload).is_none_or(|code| code.first() != Some(&b'1')) {
            if let (Some(unserved), Some(b"no server")) =
                (&mut self.unserved, self.msg.text(payload))
            {
                self.refused_at_first += 1;
                return unserved.push(number);
            }
            self.refused(payload);
        } else if self.is_answer_to(asked, number, payload) {
            self.answered += 1;
            self.book(asked);
        } else {
            self.foreign += 1;
        }
        self.idle.push_back(number);
    }

    fn ended(&mut self, number: u32) {
        self.idle.retain(|idle| *idle != number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::requests::tests::client_payloads;

    fn asker() -> Asker {
        let mut asker = Asker::new(80, 7, 2);
        asker.measure_from_ns = 0;
        for number in [0, 1, 1] {
            asker.ask(number, 5, 5);
        }
        asker
    }

    fn answers(asker: &Asker) -> Vec<String> {
        client_payloads(&asker.out)
            .iter()
            .map(|text| {
                text.replace("request", "response").replacen(",\"data", ",\"code\":1,\"data", 1)
            })
            .collect()
    }

    #[test]
    fn requests_of_different_clients_have_the_same_ids() {
        let asker = asker();
        let asked = client_payloads(&asker.out);
        let id = |text: &str| text[..35].to_owned();
        assert_eq!(id(&asked[0]), r#"{"type":"request","id":"00000000",""#);
        assert_eq!(id(&asked[1]), id(&asked[0]));
        assert!(asked[2].starts_with(r#"{"type":"request","id":"00000001",""#));
        assert!(asked.iter().all(|text| text.len() == 80 && text.ends_with(r#"xxxx"}"#)));
        assert_eq!(asker.payload_len(), 80);
    }

    #[test]
    fn each_request_has_one_answer_its_own() {
        let mut asker = asker();
        let answers = answers(&asker);
        let mut marks = Marks::default();
        let mut frame = |asker: &mut Asker, number: u32, text: &str| {
            asker.frame(number, &mut marks, text.as_bytes());
        };
        frame(&mut asker, 1, &answers[2]);
        frame(&mut asker, 1, &answers[1]);
        assert_eq!((asker.answered, asker.measured, asker.unanswered()), (2, 2, 1));
        frame(&mut asker, 1, &answers[2]);
        assert_eq!(asker.duplicates, 1);
        frame(&mut asker, 0, &answers[2]);
        assert_eq!(asker.foreign, 1, "an id that was not asked for here");
        frame(&mut asker, 0, &answers[1]);
        assert_eq!(asker.foreign, 2, "the right id with the data of another client");
        assert_eq!((asker.answered, asker.duplicates, asker.unanswered()), (2, 1, 0));
        assert_eq!(asker.idle, [1, 1, 0]);
    }

    #[test]
    fn refusals_are_no_answers() {
        let mut asker = asker();
        let mut marks = Marks::default();
        let refusal = r#"{"type":"response","id":"00000000","code":0,"msg":"no server"}"#;
        asker.unserved = Some(Vec::new());
        asker.frame(0, &mut marks, refusal.as_bytes());
        assert_eq!((asker.refusals.total(), asker.refused_at_first), (0, 1));
        asker.unserved = None;
        asker.frame(1, &mut marks, refusal.as_bytes());
        asker.frame(1, &mut marks, br#"{"type":"error","code":0,"msg":"what?"}"#);
        asker.frame(1, &mut marks, br#"{"type":"push","id":"1","data":1}"#);
        assert_eq!(asker.refusals.to_text(), "no server (1), what? (1)");
        assert_eq!((asker.answered, asker.foreign_frames, asker.unanswered()), (0, 1, 1));
    }
}
