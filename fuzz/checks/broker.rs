//! `Broker` driven by arbitrary bytes: each is an event, those of Redis followed by its data.
//! Whatever the input, it never panics; every push has exactly one outcome, and every join of a
//! project is answered once.

use std::collections::BTreeSet;
use std::sync::Arc;
use ws_cluster::state::broker::{
    Broker, BrokerConfig, Credentials, LinkName, Outcome, Pusher, Sink,
};
use ws_cluster::state::projects::{Project, ProjectId, Projects, SubscribePolicy};
use ws_cluster::state::subscriptions::{BrokerRequest, Interest, WorkerEvent};
use ws_cluster::types::{Incarnation, MessageId, NodeId, Now, Routing, WallMs};
use ws_cluster::wire::envelope::{Envelope, Targets};
use ws_cluster::wire::publication::ChannelNames;
use ws_cluster::wire::sign::Secret;

const WORKERS: usize = 2;

#[derive(Default)]
struct Recorder {
    waiting: BTreeSet<u32>,
    joins: usize,
    /// Workers that received a refusal: they wait for nothing, and may receive more.
    refused: BTreeSet<usize>,
}

impl Sink for Recorder {
    fn deliver(&mut self, workers: u64, envelope: &Envelope<'_>, _bytes: &[u8]) {
        assert!(workers != 0 && workers < 1 << WORKERS);
        assert!(std::str::from_utf8(envelope.data).is_ok());
    }

    fn relay(&mut self, _workers: u64, _project: ProjectId, _parcel: &[u8]) {}

    fn event(&mut self, _worker: usize, _notice: WorkerEvent) {}

    fn answer(&mut self, pusher: Pusher, _outcome: Outcome) {
        assert!(self.waiting.remove(&pusher.ticket), "an answer that nobody waits for");
    }

    fn ready(&mut self, worker: usize, _interest: &Interest) {
        assert!(worker < WORKERS);
        if !self.refused.remove(&worker) {
            assert!(self.joins > 0);
            self.joins -= 1;
        }
    }

    fn refuse(&mut self, worker: usize, _interest: &Interest) {
        assert!(worker < WORKERS);
        if self.refused.insert(worker) {
            self.joins = self.joins.saturating_sub(1);
        }
    }

    fn canary(&mut self) {}

    fn has_room(&self) -> bool {
        true
    }
}

struct Rig {
    broker: Broker,
    recorder: Recorder,
    now: Now,
    tickets: u32,
    has_asked: [bool; WORKERS],
    /// Links are open, or were.
    is_open: bool,
}

impl Rig {
    fn new() -> Self {
        let project = Project {
            pid: "p".into(),
            secrets: vec![Secret::new(b"s")],
            allowed_origins: None,
            subscribe: SubscribePolicy::Any,
        };
        let broker = Broker::new(BrokerConfig {
            node: NodeId::default(),
            incarnation: Arc::new(Incarnation::new(WallMs::new(1))),
            workers: WORKERS,
            projects: Arc::new(Projects::new(vec![project]).expect("one pid")),
            names: ChannelNames::new("x"),
            credentials: Credentials { url: "redis://:p@h/1".parse().expect("a URL") },
            queue_timeout_ms: 500,
            max_envelope_bytes: 1_000,
            max_outgoing_channels: 100,
            hash_keys: (1, 2),
            counters: Arc::default(),
        });
        Self {
            broker,
            recorder: Recorder::default(),
            now: Now::default(),
            tickets: 0,
            has_asked: [false; WORKERS],
            is_open: false,
        }
    }

    /// Opens links if there are none, for example because the previous ones were lost.
    fn open(&mut self) {
        if std::mem::replace(&mut self.is_open, true) {
            self.broker.handle_lost(&mut self.recorder);
        }
        self.broker.handle_open(self.now);
    }

    fn hear(&mut self, link: LinkName, bytes: &[u8]) {
        if self.broker.handle_bytes(link, bytes, self.now.monotonic, &mut self.recorder).is_err() {
            self.broker.handle_lost(&mut self.recorder);
        }
    }

    fn tick(&mut self, ms: u64) {
        self.now += ms;
        if self.broker.handle_tick(self.now, &mut self.recorder).is_err() {
            self.broker.handle_lost(&mut self.recorder);
        }
    }

    fn push(&mut self) {
        let envelope = Envelope {
            origin: NodeId::default(),
            epoch: 1,
            seq: 0,
            accepted_us: 0,
            trace: None,
            id: MessageId(1),
            ttl_ms: 0,
            key: None,
            pid: b"p",
            targets: Targets::default(),
            data: b"1",
        };
        self.tickets += 1;
        self.recorder.waiting.insert(self.tickets);
        let pusher = Pusher { worker: 0, ticket: self.tickets };
        let (routing, now) = (Routing::Project, self.now.monotonic);
        self.broker.handle_push(&envelope, routing, pusher, now, &mut self.recorder);
    }

    /// A worker has one request outstanding at a time, as `Subscriptions` ensures.
    fn request(&mut self, worker: usize) {
        let interest = Interest::Project(ProjectId(0));
        let asked = &mut self.has_asked[worker];
        *asked = !*asked;
        let request = if *asked {
            self.recorder.joins += 1;
            BrokerRequest::Join(interest)
        } else if self.recorder.joins > 0 {
            // It leaves only channels that are in force.
            *asked = true;
            return;
        } else {
            BrokerRequest::Leave(interest)
        };
        self.broker.handle_request(worker, &request, self.now.monotonic, &mut self.recorder);
    }

    /// Redis answers the commands, and delivers what was published.
    fn talk(&mut self) {
        for link in [LinkName::Subscribe, LinkName::Publish] {
            let mut out = Vec::new();
            self.broker.take_outgoing(link, &mut out, usize::MAX);
            let (mut answers, mut messages) = (Vec::new(), Vec::new());
            for command in commands(&out) {
                match command[0] {
                    b"SUBSCRIBE" => {
                        for channel in &command[1..] {
                            answers.extend_from_slice(b">3\r\n$9\r\nsubscribe\r\n");
                            bulk(&mut answers, channel);
                            answers.extend_from_slice(b":1\r\n");
                        }
                    }
                    b"UNSUBSCRIBE" => {
                        for channel in &command[1..] {
                            answers.extend_from_slice(b">3\r\n$11\r\nunsubscribe\r\n");
                            bulk(&mut answers, channel);
                            answers.extend_from_slice(b":1\r\n");
                        }
                    }
                    b"PUBLISH" => {
                        answers.extend_from_slice(b":1\r\n");
                        messages.extend_from_slice(b">3\r\n$7\r\nmessage\r\n");
                        bulk(&mut messages, command[1]);
                        bulk(&mut messages, command[2]);
                    }
                    b"INCRBY" => answers.extend_from_slice(b":1800000000000\r\n"),
                    b"PING" => answers.extend_from_slice(b"+PONG\r\n"),
                    b"HELLO" | b"CONFIG" => answers.extend_from_slice(b"%0\r\n"),
                    b"ROLE" => {
                        answers.extend_from_slice(b"*3\r\n$6\r\nmaster\r\n:0\r\n*0\r\n");
                    }
                    _ => answers.extend_from_slice(b"+OK\r\n"),
                }
            }
            self.hear(link, &answers);
            self.hear(LinkName::Subscribe, &messages);
        }
    }
}

/// Returns the commands in the broker's output, which must be complete and well-formed.
fn commands(mut bytes: &[u8]) -> Vec<Vec<&[u8]>> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let count = number(&mut bytes, b'*');
        let mut command = Vec::new();
        for _ in 0..count {
            let length = number(&mut bytes, b'$');
            command.push(&bytes[..length]);
            assert_eq!(&bytes[length..length + 2], b"\r\n");
            bytes = &bytes[length + 2..];
        }
        found.push(command);
    }
    found
}

fn number(bytes: &mut &[u8], kind: u8) -> usize {
    assert_eq!(bytes[0], kind);
    let end = bytes.windows(2).position(|two| two == b"\r\n").expect("a line");
    let digits = std::str::from_utf8(&bytes[1..end]).expect("digits");
    *bytes = &bytes[end + 2..];
    digits.parse().expect("a number")
}

fn bulk(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(format!("${}\r\n", bytes.len()).as_bytes());
    out.extend_from_slice(bytes);
    out.extend_from_slice(b"\r\n");
}

pub fn run(mut bytes: &[u8]) {
    let mut rig = Rig::new();
    while let Some((&event, rest)) = bytes.split_first() {
        bytes = rest;
        match event % 16 {
            0..5 => rig.talk(),
            5 => rig.open(),
            6 => rig.broker.handle_lost(&mut rig.recorder),
            7..10 => rig.push(),
            10 => rig.tick(u64::from(event) * 10),
            11 => rig.tick(50),
            12 => rig.request(usize::from(event / 16) % WORKERS),
            _ => {
                let length = usize::from(event / 16 * 8).min(bytes.len());
                let link = if event % 16 == 13 { LinkName::Publish } else { LinkName::Subscribe };
                rig.hear(link, &bytes[..length]);
                bytes = &bytes[length..];
            }
        }
    }
    // When links end, nobody may be left waiting for a subscription, nor any push for its outcome.
    rig.broker.handle_lost(&mut rig.recorder);
    assert_eq!(rig.recorder.joins, 0);
    // In steps: time without ticks does not count as Redis's silence.
    (0..200).for_each(|_| rig.tick(50));
    assert!(rig.recorder.waiting.is_empty(), "{:?}", rig.recorder.waiting);
}
