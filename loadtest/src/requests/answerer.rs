//! The business servers' side of `loadtest requests`: answers requests and checks the stated
//! sender.

use ws_cluster_wire::websocket::client;

use crate::client::Handler;
use crate::identity::Identity;
use crate::message::{Marks, Member, SeqSet, Stamp};

const ANSWER: [&[u8]; 3] = [br#"{"type":"response","id":""#, br#"","data":""#, br#""}"#];

pub struct Answerer<'a> {
    identity: &'a Identity,
    first_user: u64,
    run: u16,
    kind: Member,
    id: Member,
    uid: Member,
    data: Member,
    /// The answers to the requests of one read.
    out: Vec<u8>,
    /// Requests by server.
    pub got: Vec<u64>,
    seen: SeqSet,
    /// Requests that a server had already received.
    pub doubled: u64,
    /// Requests that name another user than their sender.
    pub misattributed: u64,
    pub foreign_frames: u64,
}

impl<'a> Answerer<'a> {
    /// Answers all requests, and checks those of this run.
    pub fn new(identity: &'a Identity, first_user: u64, run: u16, servers: u64) -> Answerer<'a> {
        Answerer {
            identity,
            first_user,
            run,
            kind: Member::new(r#""type":""#),
            id: Member::new(r#""id":""#),
            uid: Member::new(r#""uid":""#),
            data: Member::new(r#""data":""#),
            out: Vec::new(),
            got: vec![0; servers as usize],
            seen: SeqSet::default(),
            doubled: 0,
            misattributed: 0,
            foreign_frames: 0,
        }
    }
}

impl Handler for Answerer<'_> {
    #[inline]
    fn frame(&mut self, number: u32, _: &mut Marks, payload: &[u8]) {
        let (Some(b"request"), Some(id), Some(data)) =
            (self.kind.text(payload), self.id.text(payload), self.data.text(payload))
        else {
            self.foreign_frames += 1;
            return;
        };
        let [open, middle, close] = ANSWER;
        client::write_text(&mut self.out, &[open, id, middle, data, close]);
        let Some(stamp) = Stamp::read(data).filter(|stamp| stamp.run == self.run) else {
            self.foreign_frames += 1;
            return;
        };
        self.got[number as usize] += 1;
        self.doubled += u64::from(!self.seen.insert(stamp.seq));
        let from = self.uid.text(payload).and_then(|uid| self.identity.user_of(uid));
        let is_of_asker = from == Some(self.first_user + u64::from(stamp.pusher));
        self.misattributed += u64::from(!is_of_asker);
    }

    fn reply(&mut self) -> Option<&mut Vec<u8>> {
        (!self.out.is_empty()).then_some(&mut self.out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::tests::identity;
    use crate::requests::tests::client_payloads;

    #[test]
    fn what_one_read_brought_is_answered_with_one_write() {
        let identity = identity();
        let mut answerer = Answerer::new(&identity, 10, 7, 1);
        let mut ask = |seq: u32, pusher: u16, uid: &str| {
            let mut data = Vec::new();
            Stamp { run: 7, seq, at_ns: 3, pusher }.write(&mut data);
            let data = String::from_utf8(data).unwrap() + "xx";
            let from = format!(r#"{{"client_id":"3","uid":"{uid}","device":""}}"#);
            let request =
                format!(r#"{{"type":"request","id":"i{seq}","from":{from},"data":"{data}"}}"#);
            answerer.frame(0, &mut Marks::default(), request.as_bytes());
            (data, [answerer.doubled, answerer.misattributed, answerer.foreign_frames])
        };
        assert_eq!(ask(0, 0, "u 10").1, [0; 3]);
        let (data, faults) = ask(1, 2, "u 12");
        assert_eq!(faults, [0; 3]);
        assert_eq!(ask(1, 2, "u 12").1, [1, 0, 0]);
        assert_eq!(ask(2, 2, "u 10").1, [1, 1, 0]);
        let event = br#"{"type":"node","state":"up","node":1,"ts":1}"#;
        answerer.frame(0, &mut Marks::default(), event);
        assert_eq!((answerer.foreign_frames, answerer.got[0]), (1, 4));
        let answers = client_payloads(answerer.reply().unwrap());
        assert_eq!(answers.len(), 4);
        assert_eq!(answers[1], format!(r#"{{"type":"response","id":"i1","data":"{data}"}}"#));
    }
}
