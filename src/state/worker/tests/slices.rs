//! Pushes matched in slices, and batches laid out in parts, while clients connect, disconnect,
//! subscribe and read slowly.

use super::*;
use std::collections::{BTreeMap, BTreeSet};

const NAMES: usize = 3;

struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.0 >> 33) as usize % end
    }

    fn some(&mut self) -> Option<BTreeSet<usize>> {
        let names = (0..NAMES).filter(|_| self.below(2) == 0).collect::<BTreeSet<_>>();
        (!names.is_empty()).then_some(names)
    }
}

#[derive(Default)]
struct Client {
    device: usize,
    tags: BTreeSet<usize>,
    bytes: Vec<u8>,
}

/// Clients that must get a push, and clients that may: those that changed before it was completely
/// matched.
#[derive(Default)]
struct Told {
    must: BTreeSet<u32>,
    may: BTreeSet<u32>,
}

/// Clients are named by their generations.
struct Crowd {
    rig: Rig,
    random: Random,
    here: BTreeMap<u32, u32>,
    clients: BTreeMap<u32, Client>,
    pushes: Vec<Told>,
    finished: usize,
    is_over: bool,
}

impl Crowd {
    fn new(seed: u64) -> Self {
        let mut rig = Rig::new(1 << 20, 1 << 30);
        rig.worker.pushes.visits_per_slice = 1 + seed as usize % 7;
        rig.worker.pushes.visits_left = 0;
        Self {
            rig,
            random: Random(seed),
            here: BTreeMap::new(),
            clients: BTreeMap::new(),
            pushes: Vec::new(),
            finished: 0,
            is_over: false,
        }
    }

    /// Notes that a client changed: pushes that are not completely matched may miss it.
    fn changes(&mut self, client: u32) {
        for push in &mut self.pushes[self.finished..] {
            push.must.remove(&client);
            push.may.insert(client);
        }
    }

    fn connect(&mut self) {
        let (device, tags) = (self.random.below(NAMES), self.random.some().unwrap_or_default());
        let names: Vec<String> = tags.iter().map(|tag| format!("t{tag}")).collect();
        let identity = Identity {
            project: ProjectId(0),
            uid: &format!("u{}", self.random.below(5)),
            device: &format!("d{device}"),
            tags: &names.iter().map(|name| &**name).collect::<Vec<_>>(),
            session_exp: 0,
            role: Role::Client,
            ip: None,
        };
        let (ConnKey { slot, generation }, _) = self.rig.worker.handle_connect(identity, b"", NOW);
        self.here.insert(slot, generation);
        self.clients.insert(generation, Client { device, tags, bytes: Vec::new() });
        self.changes(generation);
    }

    fn push(&mut self) {
        let (tags, devices) = (self.random.some(), self.random.some());
        let matches = |client: &Client| {
            devices.as_ref().is_none_or(|devices| devices.contains(&client.device))
                && tags.as_ref().is_none_or(|tags| !tags.is_disjoint(&client.tags))
        };
        let must = self.here.values().filter(|&one| matches(&self.clients[one])).copied().collect();
        let names = |prefix: &str, set: &Option<BTreeSet<usize>>| {
            set.as_ref().map(|set| {
                let mut names = NamesBuf::default();
                set.iter().for_each(|name| names.push(format!("{prefix}{name}")));
                names
            })
        };
        let targets = TargetsBuf {
            tags: names("t", &tags),
            devices: names("d", &devices),
            ..TargetsBuf::default()
        };
        // One in eight is a shared frame.
        let padding = if self.random.below(8) == 0 { 20_000 } else { 10 };
        let data = format!("\"#{}#{}\"", self.pushes.len(), "x".repeat(padding));
        let outcome = self.rig.worker.handle_envelope(
            &Envelope {
                origin: NodeId::new(1).unwrap(),
                epoch: 0,
                seq: 1,
                accepted_us: NOW_MS * 1_000,
                trace: None,
                id: MessageId(1),
                ttl_ms: 0,
                key: None,
                pid: b"1",
                targets: targets.as_targets(),
                data: data.as_bytes(),
            },
            NOW,
        );
        self.pushes.push(Told { must, may: BTreeSet::new() });
        self.finished += usize::from(!outcome.is_unfinished);
    }

    fn match_more(&mut self) {
        let finished = &mut self.finished;
        self.rig.worker.match_more(NOW, |_| *finished += 1);
    }

    fn any(&mut self) -> Option<(u32, u32)> {
        let index = self.random.below(self.here.len().max(1));
        self.here.iter().nth(index).map(|(&slot, &client)| (slot, client))
    }

    fn event(&mut self) {
        match self.random.below(8) {
            0 if self.here.len() < 20 => self.connect(),
            1 => {
                let Some((slot, client)) = self.any() else { return };
                self.rig.worker.handle_disconnect(slot);
                self.here.remove(&slot);
                self.changes(client);
            }
            2 | 3 => {
                let Some((slot, client)) = self.any() else { return };
                let (tag, comes) = (self.random.below(NAMES), self.random.below(2) == 0);
                let kind = if comes { "subscribe" } else { "unsubscribe" };
                let text = format!(r#"{{"type":"{kind}","tags":["t{tag}"]}}"#);
                self.rig.worker.handle_frame(slot, Message::Text(text.as_bytes()), NOW);
                let tags = &mut self.clients.get_mut(&client).unwrap().tags;
                _ = if comes { tags.insert(tag) } else { tags.remove(&tag) };
                self.changes(client);
            }
            4 => self.match_more(),
            5 => {
                let Some((slot, client)) = self.any() else { return };
                self.read_outbox(slot, client);
            }
            _ => self.push(),
        }
        self.rig.worker.check();
    }

    fn read_outbox(&mut self, slot: u32, client: u32) {
        let bytes = &mut self.clients.get_mut(&client).unwrap().bytes;
        let Some(outbox) = self.rig.worker.outbox(slot, NOW.wall) else { return };
        outbox.slices(usize::MAX, |slice| bytes.extend_from_slice(slice));
        let pending = outbox.pending_bytes();
        self.rig.worker.handle_outbox_written(slot, pending);
    }

    /// Sends a batch part by part, with changes in between.
    fn flush(&mut self) {
        self.match_more();
        let mut sealed = std::mem::take(&mut self.rig.sealed);
        self.rig.worker.seal(&mut sealed);
        while !sealed.is_last_part() {
            let most = 1 + self.random.below(4);
            self.rig.worker.lay_out(&mut sealed, most);
            for index in sealed.part() {
                let Some(outgoing) = sealed.outgoing(index) else { continue };
                let client = self.rig.worker.connections[outgoing.slot as usize].generation;
                let taken = if self.random.below(3) == 0 { 0 } else { outgoing.bytes.len() };
                let bytes = &mut self.clients.get_mut(&client).unwrap().bytes;
                bytes.extend_from_slice(&outgoing.bytes[..taken]);
                self.rig.worker.handle_sent(&sealed, index, taken, taken == outgoing.bytes.len());
            }
            if !self.is_over {
                self.event();
            }
        }
        for CloseRequest { slot, cause } in self.rig.worker.finish(&mut sealed) {
            self.rig.worker.release(slot, cause);
        }
        self.rig.sealed = sealed;
    }

    fn check(&self, seed: u64) {
        assert_eq!(self.finished, self.pushes.len());
        let mut got: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
        for (&client, Client { bytes, .. }) in &self.clients {
            let text = String::from_utf8_lossy(bytes);
            let numbers = text.split('#').skip(1).step_by(2).map(|number| number.parse().unwrap());
            let numbers: Vec<usize> = numbers.collect();
            assert!(numbers.is_sorted_by(|a, b| a < b), "seed {seed}: {client} gets {numbers:?}");
            got.insert(client, numbers);
        }
        for (number, Told { must, may }) in self.pushes.iter().enumerate() {
            for (client, got) in &got {
                let has = got.binary_search(&number).is_ok();
                let is_here = self.here.values().any(|one| one == client);
                assert!(has || !must.contains(client) || !is_here, "seed {seed}: {number} is lost");
                assert!(!has || must.contains(client) || may.contains(client), "seed {seed}");
            }
        }
    }
}

#[test]
fn who_is_there_throughout_gets_every_push_once_and_in_order() {
    for seed in 0..300 {
        let mut crowd = Crowd::new(seed);
        (0..6).for_each(|_| crowd.connect());
        for _ in 0..60 {
            crowd.event();
            if crowd.random.below(4) == 0 {
                crowd.flush();
            }
        }
        crowd.is_over = true;
        while crowd.rig.worker.has_output() {
            crowd.flush();
        }
        for (slot, client) in crowd.here.clone() {
            crowd.read_outbox(slot, client);
        }
        crowd.rig.worker.check();
        crowd.check(seed);
    }
}
