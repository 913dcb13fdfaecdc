//! What clients and pushers send.

use super::*;

impl Node {
    pub(super) fn send_something(&mut self) {
        let all: Vec<u64> = self.clients.keys().copied().collect();
        if all.is_empty() {
            return;
        }
        let cid = *self.rng.pick(&all);
        let client = &self.clients[&cid];
        if client.has_said_goodbye || client.is_gone {
            return;
        }
        if client.business.is_some() && self.rng.chance(80) {
            return (0..3).for_each(|_| self.server_sends(cid));
        }
        let id = self.rng.chance(50).then(|| format!("i\"{}", self.rng.below(1_000)));
        let tags: Vec<String> =
            (0..1 + self.rng.below(3)).map(|_| self.rng.pick(&TAGS).to_string()).collect();
        let what = match self.clients[&cid].business {
            // Only what both may send.
            Some(_) => 85 + self.rng.below(15),
            None => self.rng.below(100),
        };
        match what {
            // A number at once whose answers may exceed its outbox.
            0 => (0..20).for_each(|_| {
                self.send_subscribe(cid, id.clone(), tags.clone());
                self.send_unsubscribe(cid, id.clone(), tags.clone());
            }),
            1..35 => self.send_subscribe(cid, id, tags),
            35..55 => self.send_unsubscribe(cid, id, tags),
            55..85 => self.send_other(cid, id),
            85..98 if self.client(cid).is_lively => {
                let pongs = std::mem::take(&mut self.client(cid).receiver.pings).max(1);
                (0..pongs).for_each(|_| self.send_frame(cid, 0x8a, b"", Some(Intent::Pong)));
            }
            98 => {
                let code = *self.rng.pick(&[1000, 1001, 3000, 4999]);
                self.send_frame(cid, 0x88, &u16::to_be_bytes(code), Some(Intent::Close(code)));
                self.client(cid).has_said_goodbye = true;
            }
            99 => self.break_a_rule(cid),
            _ => {}
        }
    }

    pub(super) fn send_subscribe(&mut self, cid: u64, id: Option<String>, tags: Vec<String>) {
        let mut text = serde_json::json!({"type": "subscribe", "tags": tags});
        if let Some(id) = &id {
            text["id"] = id.as_str().into();
        }
        let has_sign = self.rng.chance(70);
        if has_sign {
            let mut unique = tags.clone();
            unique.sort();
            unique.dedup();
            let signed = format!("subscribe\n{cid}\n{}", unique.join(","));
            text["sign"] = sign_hex(&Secret::new(b"s"), &[signed.as_bytes()]).into();
        }
        let is_allowed = match self.clients[&cid].receiver.pid {
            "any" => true,
            "signed" => has_sign,
            _ => false,
        };
        self.send_text(cid, &text.to_string(), Intent::Subscribe { id, tags, is_allowed });
    }

    fn send_unsubscribe(&mut self, cid: u64, id: Option<String>, tags: Vec<String>) {
        self.client(cid).unsubscribes_sent += 1;
        let mut text = serde_json::json!({"type": "unsubscribe", "tags": tags});
        if let Some(id) = &id {
            text["id"] = id.as_str().into();
        }
        self.send_text(cid, &text.to_string(), Intent::Unsubscribe { id, tags });
    }

    pub(super) fn send_other(&mut self, cid: u64, id: Option<String>) {
        let quoted = serde_json::json!(id);
        let with_id = |text: &str| match &id {
            Some(_) => format!(r#"{{"id":{quoted},{text}}}"#),
            None => format!("{{{text}}}"),
        };
        let answered = |kind, code| Intent::Answered { kind, code, id: id.clone() };
        let (text, intent) = match self.rng.below(8) {
            0 | 1 => (with_id(r#""type":"heartbeat""#), answered("heartbeat", 1)),
            2 | 6 | 7 => return self.send_request(cid),
            3 => (with_id(r#""type":"jump""#), answered("error", 0)),
            4 => ("{\"type\":".into(), Intent::Answered { kind: "error", code: 0, id: None }),
            _ => {
                let length = self.rng.below(126);
                let payload: Vec<u8> = (0..length).map(|_| self.rng.number() as u8).collect();
                return self.send_frame(cid, 0x89, &payload, Some(Intent::Ping(payload.clone())));
            }
        };
        self.send_text(cid, &text, intent);
    }

    pub(super) fn break_a_rule(&mut self, cid: u64) {
        let (bytes, code): (&[u8], u16) = match self.rng.below(4) {
            0 => (&[0x81, 0x01, b'x'], 1002),
            1 => (&[0xf1, 0x80, 0, 0, 0, 0], 1002),
            2 => (&[0x81, 0x81, 0, 0, 0, 0, 0xff], 1007),
            _ => (&[0x82, 0xfe, 0x7f, 0xff, 0, 0, 0, 0], 1009),
        };
        let client = self.client(cid);
        client.up.extend_from_slice(bytes);
        client.intents.push_back(Intent::Violation(code));
        client.has_said_goodbye = true;
        self.note(format!("{cid} breaks a rule: {code}"));
    }

    /// Sends a message as a text or a binary frame, perhaps in fragments with a ping between them.
    pub(super) fn send_text(&mut self, cid: u64, text: &str, intent: Intent) {
        let opcode = if self.rng.chance(80) { 1 } else { 2 };
        if self.rng.chance(80) {
            return self.send_frame(cid, 0x80 | opcode, text.as_bytes(), Some(intent));
        }
        let cut = self.rng.below(text.len() + 1);
        self.send_frame(cid, opcode, &text.as_bytes()[..cut], None);
        if self.rng.chance(30) {
            self.send_frame(cid, 0x89, b"between", Some(Intent::Ping(b"between".to_vec())));
        }
        self.send_frame(cid, 0x80, &text.as_bytes()[cut..], Some(intent));
    }

    pub(super) fn send_frame(
        &mut self,
        cid: u64,
        first: u8,
        payload: &[u8],
        intent: Option<Intent>,
    ) {
        let mask = (self.rng.number() as u32).to_le_bytes();
        self.note(format!("{cid} sends {first:#x} {intent:?}"));
        let client = self.client(cid);
        client.up.push(first);
        if payload.len() <= 125 {
            client.up.push(0x80 | payload.len() as u8);
        } else {
            client.up.push(0x80 | 126);
            client.up.extend_from_slice(&(payload.len() as u16).to_be_bytes());
        }
        client.up.extend_from_slice(&mask);
        client.up.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        client.intents.extend(intent);
    }

    /// Pushes through `worker`: it delivers at once, the others get the encoded envelope.
    pub(super) fn push(&mut self, worker: usize) {
        let mut push = self.random_push();
        push.pusher = worker * 10 + self.rng.below(2);
        self.begin_push(worker, push);
    }

    /// Has a worker accept a push. Returns its id.
    pub(super) fn begin_push(&mut self, worker: usize, mut push: Push) -> MessageId {
        self.pushed += 1;
        let wall = self.now().wall;
        let id = self.workers[worker].worker.next_message_id(wall);
        (push.id, push.accepted_ms, push.number) = (id.0, self.wall.now_ms, self.pushed);
        let push = Rc::new(push);
        self.note(format!(
            "push at {worker}: {:?}",
            Push { data: String::new(), ..(*push).clone() }
        ));
        let promised: Vec<(u64, u64)> = self
            .clients
            .iter()
            .filter(|(cid, client)| {
                let tags = client.receiver.tags.as_deref();
                let person = self.model.people.get(cid);
                client.unsubscribes_sent == client.receiver.unsubscribes
                    && tags.zip(person).is_some_and(|(tags, p)| push.is_for(**cid, p, tags))
            })
            .map(|(cid, client)| (*cid, client.unsubscribes_sent))
            .collect();
        let targets = push.targets();
        let envelope = Envelope {
            origin: NodeId::new(200).unwrap(),
            epoch: 1,
            seq: push.number,
            accepted_us: push.accepted_ms * 1_000,
            trace: None,
            id: MessageId(push.id),
            ttl_ms: push.ttl_ms,
            key: None,
            pid: push.pid.as_bytes(),
            targets: targets.as_targets(),
            data: push.data.as_bytes(),
        };
        let mut bytes = Vec::new();
        envelope.encode(&mut bytes);
        let wanted = self.router(worker).others_with(&envelope.targets);
        for other in (0..self.workers.len()).filter(|other| *other != worker) {
            if !wanted.contains(other) {
                let matching = self.model.matching(other, &push);
                assert!(matching.is_empty(), "worker {other} is left out, and has {matching:?}");
                continue;
            }
            let due_ms =
                self.now_ms + if self.rng.chance(80) { 0 } else { self.rng.number() % 100 };
            let (bytes, push, promised) = (bytes.clone(), push.clone(), promised.clone());
            let parcel = Parcel { due_ms, item: InboxItem::Push { bytes, push, promised } };
            self.workers[other].inboxes[worker].push_back(parcel);
        }
        self.handle_envelope(worker, &envelope, &push, &promised);
        id
    }

    pub(super) fn random_push(&mut self) -> Push {
        let here: Vec<u64> = self.clients.keys().copied().chain([12_345]).collect();
        let names = |rng: &mut Rng, percent, from: &[&str]| {
            rng.chance(percent).then(|| {
                let count = if rng.chance(4) { 0 } else { 1 + rng.below(3) };
                (0..count).map(|_| rng.pick(from).to_string()).collect()
            })
        };
        let cids = |rng: &mut Rng, percent| {
            rng.chance(percent).then(|| {
                let count = if rng.chance(4) { 0 } else { 1 + rng.below(12) };
                (0..count).map(|_| *rng.pick(&here)).collect()
            })
        };
        let rng = &mut self.rng;
        let pid = *rng.pick(&["any", "any", "none", "signed", "ghost"]);
        let filler = match rng.below(100) {
            0..75 => rng.below(60),
            75..92 => rng.below(2_000),
            92..99 => 16_000 + rng.below(1_000),
            _ => 70_000,
        };
        let (number, filler) = (self.pushed + 1, "x".repeat(filler));
        Push {
            id: 0,
            pid,
            uids: names(rng, 30, &[&UIDS[..], &["nobody"]].concat()),
            cids: cids(rng, 20),
            tags: names(rng, 40, &[&TAGS[..], &["no such tag"]].concat()),
            devices: names(rng, 15, &["ios", "web", "tv"]),
            except_cids: cids(rng, 15),
            accepted_ms: 0,
            ttl_ms: if rng.chance(25) { 1 + rng.below(200) as u32 } else { 0 },
            pusher: 0,
            number,
            data: format!(r#"{{"pid":"{pid}","n":{number},"x":"{filler}"}}"#),
        }
    }
}
