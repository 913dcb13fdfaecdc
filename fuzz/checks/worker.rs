//! `state::Worker` driven by arbitrary bytes: each pair is an event and its argument. The directory
//! must agree with the slab throughout, and nothing may remain once everybody has left.

use std::net::IpAddr;
use std::ops::ControlFlow;
use std::sync::Arc;
use ws_cluster::state::counters::{Counters, Drop};
use ws_cluster::state::projects::{Project, ProjectId, Projects, SubscribePolicy};
use ws_cluster::state::settings::{Memory, Settings, Times};
use ws_cluster::state::{CloseRequest, Identity, Role, Sealed, Worker, WorkerConfig};
use ws_cluster::types::{
    Cid, Env, EventSet, Incarnation, Limits, MessageId, MonotonicMs, NodeId, Now, WallMs,
};
use ws_cluster::wire::envelope::{CidsBuf, Envelope, NamesBuf, TargetsBuf};
use ws_cluster::wire::sign::Secret;
use ws_cluster::wire::websocket::{Inbound, Message, Rest};

const NAMES: [&str; 4] = ["a", "b", "c", "a name that is too long to be kept in place"];
const LIMITS: Limits = Limits {
    message_bytes: 200,
    body_bytes: 1 << 20,
    head_bytes: 8 << 10,
    head_fields: 100,
    tags: 3,
    selector_ids: 100,
    batch_messages: 100,
    pid_bytes: 64,
    uid_bytes: 128,
    tag_bytes: 128,
    device_bytes: 32,
};

struct Rig {
    worker: Worker,
    counters: Arc<Counters>,
    sealed: Sealed,
    /// In use, each with its client id and the rest of its last frame.
    open: Vec<(u32, Cid, Option<Box<Inbound>>)>,
    now: Now,
    matched: u64,
    ids: u64,
    room: usize,
}

fn name(number: u8) -> &'static str {
    NAMES[usize::from(number) % NAMES.len()]
}

impl Rig {
    fn new() -> Self {
        let project = |pid: &str| Project {
            pid: pid.into(),
            secrets: vec![Secret::new(b"s")],
            allowed_origins: None,
            subscribe: SubscribePolicy::Any,
        };
        let counters = Arc::new(Counters::default());
        let settings = Settings {
            node: NodeId::default(),
            env: Env::Test,
            limits: LIMITS,
            times: Times {
                ping_interval_ms: 300,
                idle_timeout_ms: 1_000,
                request_timeout_ms: 10_000,
                ..Times::default()
            },
            memory: Memory {
                outbox_bytes: 600,
                worker_outbox_bytes: 1_000,
                server_outbox_bytes: 1 << 20,
                ..Memory::default()
            },
            idempotency_keys: 1_000,
            ..Settings::default()
        };
        let config = WorkerConfig {
            settings: Arc::new(settings),
            worker: 0,
            projects: Arc::new(Projects::new(vec![project("0"), project("1")]).expect("two pids")),
            slots: 16,
            loads: Arc::default(),
            incarnation: Arc::new(Incarnation::new(WallMs::new(1))),
            hash_keys: (1, 2),
            queue_needs: None,
            counters: counters.clone(),
        };
        let now =
            Now { monotonic: MonotonicMs::new(90_000_000), wall: WallMs::new(1_800_000_000_000) };
        let worker = Worker::new(config, now);
        let sealed = Sealed::default();
        Self { worker, counters, sealed, open: Vec::new(), now, matched: 0, ids: 0, room: 1 << 20 }
    }

    /// Returns the number of further bytes that the event used.
    fn event(&mut self, kind: u8, argument: u8, rest: &[u8]) -> usize {
        let at = usize::from(argument) % self.open.len().max(1);
        match kind % 10 {
            0 | 1 if self.open.len() < 12 => {
                let tags: &[&str] = if argument & 1 == 0 { &[] } else { &[name(argument >> 1)] };
                let identity = Identity {
                    project: ProjectId(u32::from(argument >> 7)),
                    uid: name(argument >> 3),
                    device: ["", "ios"][usize::from(argument >> 5 & 1)],
                    tags,
                    session_exp: u64::from(argument >> 6) * (self.now.wall.value() / 1_000 + 1),
                    role: match kind / 10 % 3 {
                        0 => Role::Server(EventSet::from_bits(argument | 1)),
                        _ => Role::Client,
                    },
                    ip: match argument % 3 {
                        0 => None,
                        1 => Some(IpAddr::from([192, 0, 2, argument])),
                        _ => Some(IpAddr::from([u16::from(argument); 8])),
                    },
                };
                let (key, cid) = self.worker.handle_connect(identity, b"", self.now);
                self.open.push((key.slot, cid, None));
            }
            2 | 3 if !self.open.is_empty() => {
                let count = usize::from(kind / 10 * 4).min(rest.len());
                self.read(at, &rest[..count]);
                return count;
            }
            4 if kind / 10 % 4 == 3 && !self.open.is_empty() => {
                let slot = self.open[at].0;
                let text: &[u8] = match argument & 64 {
                    0 => br#"{"type":"request","id":"r","data":[1]}"#,
                    _ => br#"{"type":"push","id":"p","data":[1]}"#,
                };
                self.worker.handle_frame(slot, Message::Text(text), self.now);
            }
            4 => self.push(kind, argument),
            5 => self.flush(),
            6 => self.room = usize::from(argument) * 4,
            7 if !self.open.is_empty() => {
                let slot = self.open[at].0;
                if self.worker.outbox(slot, self.now.wall).is_some() {
                    let pending = self.worker.outbox(slot, self.now.wall);
                    let pending = pending.map_or(0, |outbox| outbox.pending_bytes());
                    self.worker.handle_outbox_written(slot, pending.min(usize::from(kind)));
                }
            }
            8 => {
                self.now += u64::from(argument);
                self.worker.handle_tick(self.now);
            }
            9 if !self.open.is_empty() => self.worker.handle_disconnect(self.open[at].0),
            _ => {}
        }
        0
    }

    /// Reads the bytes as they are, and again as the payload of a text frame.
    fn read(&mut self, at: usize, bytes: &[u8]) {
        let mut framed = vec![0x81, 0x80 | bytes.len().min(125) as u8, 0, 0, 0, 0];
        framed.extend_from_slice(&bytes[..bytes.len().min(125)]);
        for mut fresh in [framed, bytes.to_vec()] {
            let (slot, _, inbound) = &mut self.open[at];
            if !self.worker.wants_input(*slot) {
                return;
            }
            let (worker, now) = (&mut self.worker, self.now);
            let result =
                Inbound::read(
                    inbound,
                    &mut fresh,
                    LIMITS.message_bytes,
                    &mut |message| match worker.handle_frame(*slot, message, now) {
                        true => ControlFlow::Continue(()),
                        false => ControlFlow::Break(Rest::Dropped),
                    },
                );
            if let Err(violation) = result {
                self.worker.handle_violation(*slot, violation);
            }
        }
    }

    fn push(&mut self, kind: u8, argument: u8) {
        let names = |given: u8| {
            (kind & given != 0).then(|| {
                let mut names = NamesBuf::default();
                names.push(name(argument));
                names.push(name(argument >> 2));
                names
            })
        };
        let mut cids = CidsBuf::default();
        self.open.iter().step_by(2).for_each(|(_, cid, _)| cids.push(*cid));
        let mut targets = TargetsBuf {
            uids: names(16),
            tags: names(32),
            devices: names(64),
            ..Default::default()
        };
        if argument & 128 != 0 {
            targets.except_cids = Some(cids);
        } else if kind & 128 != 0 {
            targets.cids = Some(cids);
        }
        self.ids += 1;
        let data = format!("\"{}\"", "x".repeat(usize::from(argument) << (argument % 8)));
        let envelope = Envelope {
            origin: NodeId::default(),
            epoch: 0,
            seq: self.ids,
            accepted_us: self.now.wall.value() * 1_000,
            trace: None,
            id: MessageId(self.ids),
            ttl_ms: u32::from(argument % 3) * 50,
            key: None,
            pid: [b"0", b"1", b"2"][usize::from(argument >> 4) % 3],
            targets: targets.as_targets(),
            data: data.as_bytes(),
        };
        self.matched += self.worker.handle_envelope(&envelope, self.now).matched;
    }

    fn flush(&mut self) {
        self.worker.take_broker_requests();
        while let Some(push) = self.worker.take_server_push() {
            let result = if self.room == 8 { Err("refused") } else { Ok(MessageId(1)) };
            self.worker.answer_push(&push, result);
        }
        while self.worker.has_output() {
            let matched = &mut self.matched;
            self.worker.match_more(self.now, |outcome| *matched += outcome.matched);
            self.worker.seal(&mut self.sealed);
            self.worker.lay_out(&mut self.sealed, usize::MAX);
            for index in self.sealed.part() {
                let Some(outgoing) = self.sealed.outgoing(index) else { continue };
                let (bytes, taken) = (outgoing.bytes.len(), outgoing.bytes.len().min(self.room));
                if self.room == 4 {
                    self.worker.handle_send_error(&self.sealed, index);
                } else {
                    self.worker.handle_sent(&self.sealed, index, taken, taken == bytes);
                }
            }
            self.worker.take_blocked();
            for CloseRequest { slot, cause } in self.worker.finish(&mut self.sealed) {
                self.worker.release(slot, cause);
                self.open.retain(|(other, ..)| *other != slot);
            }
        }
        self.worker.check();
    }
}

pub fn run(bytes: &[u8]) {
    let mut rig = Rig::new();
    let mut rest = bytes;
    while let [kind, argument, tail @ ..] = rest {
        let taken = rig.event(*kind, *argument, tail);
        rest = &tail[taken..];
        rig.worker.check();
    }
    while rig.worker.close_clients(0, false, || 1) {}
    while rig.worker.close_servers(|| 1) {}
    rig.flush();
    assert!(rig.open.is_empty() && rig.worker.connections() == 0);
    assert_eq!(rig.counters.outbox_bytes.value(), 0);
    let drops: u64 = Drop::ALL.iter().map(|(reason, _)| rig.counters.drops(*reason)).sum();
    assert_eq!(rig.matched, rig.counters.deliveries.value() + drops);
}
