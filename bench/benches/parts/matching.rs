//! From the selectors of a push to the matching connections, in a worker of 10,000 clients.
//!
//! The messages have expired: they are matched and counted, but not delivered.

use std::collections::HashMap;
use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, Throughput};
use ws_cluster::state::counters::Counters;
use ws_cluster::state::projects::{Project, ProjectId, Projects, SubscribePolicy};
use ws_cluster::state::settings::Settings;
use ws_cluster::state::{Identity, Role, Sealed, Worker, WorkerConfig};
use ws_cluster::types::{Incarnation, MessageId, MonotonicMs, NodeId, Now, WallMs};
use ws_cluster::wire::envelope::{Envelope, NamesBuf, TargetsBuf};
use ws_cluster::wire::sign::Secret;

use crate::pair;

const NOW_MS: u64 = 1_800_000_000_000;
const NOW: Now = Now { monotonic: MonotonicMs::new(90_000_000), wall: WallMs::new(NOW_MS) };
const CLIENTS: usize = 10_000;
/// Each tag has a hundredth of the clients, each device a tenth.
const TAGS: usize = 100;
const DEVICES: usize = 10;

pub fn measure(criterion: &mut Criterion) {
    let mut worker = crowd();
    let others = Others::new();
    let (tag, device) = ("tag 7", "device 7");
    let mut next = 0;
    let mut next_user = move || {
        next = (next + 7_919) % CLIENTS;
        next
    };
    let names = (0..CLIENTS).map(|number| format!("user {number}")).collect::<Vec<_>>();
    let users: Vec<TargetsBuf> =
        names.iter().map(|name| selectors(Some(name), None, None)).collect();
    let mut next_name = next_user;
    pair(
        criterion,
        "match one user of 10,000",
        Throughput::Elements(1),
        || matched(&mut worker, &users[next_user()], 1),
        ("look it up and read its entry", || others.user(black_box(&names[next_name()]))),
    );
    let cases = [
        ("match a tag of 100 clients", selectors(None, Some(tag), None), others.tag(7), 100),
        ("match a device of 1,000", selectors(None, None, Some(device)), others.device(7), 1_000),
        (
            "match a tag and a device, 100 of 1,000",
            selectors(None, Some(tag), Some(device)),
            others.tag(7),
            100,
        ),
        ("match all of a project, 10,000", selectors(None, None, None), others.all(), CLIENTS),
    ];
    for (part, targets, slots, expected) in cases {
        pair(
            criterion,
            part,
            Throughput::Elements(expected as u64),
            || matched(&mut worker, &targets, expected as u64),
            ("read and mark the same entries", || others.mark(black_box(&slots))),
        );
    }
}

/// Has the worker match a push; `expected`: number of matches.
fn matched(worker: &mut Worker, targets: &TargetsBuf, expected: u64) {
    let envelope = Envelope {
        origin: NodeId::new(1).unwrap(),
        epoch: 1,
        seq: 1,
        accepted_us: NOW_MS * 1_000,
        trace: None,
        id: MessageId(1),
        ttl_ms: 1,
        key: None,
        pid: b"1",
        targets: targets.as_targets(),
        data: b"{}",
    };
    let mut outcome = worker.handle_envelope(black_box(&envelope), NOW + 1_000);
    while outcome.is_unfinished {
        worker.match_more(NOW + 1_000, |finished| outcome = finished);
    }
    assert_eq!(outcome.matched, expected);
}

fn selectors(uid: Option<&str>, tag: Option<&str>, device: Option<&str>) -> TargetsBuf {
    let list = |name: Option<&str>| {
        name.map(|name| {
            let mut names = NamesBuf::default();
            names.push(name);
            names
        })
    };
    TargetsBuf { uids: list(uid), tags: list(tag), devices: list(device), ..TargetsBuf::default() }
}

fn crowd() -> Worker {
    let project = Project {
        pid: "1".into(),
        secrets: vec![Secret::new(b"s")],
        allowed_origins: None,
        subscribe: SubscribePolicy::Any,
    };
    let settings = Settings { idempotency_keys: 1_000, ..Settings::default() };
    let config = WorkerConfig {
        settings: Arc::new(settings),
        worker: 0,
        projects: Arc::new(Projects::new(vec![project]).unwrap()),
        slots: 2 * CLIENTS,
        loads: Arc::default(),
        incarnation: Arc::new(Incarnation::new(WallMs::new(1))),
        hash_keys: (1, 2),
        queue_needs: None,
        counters: Arc::new(Counters::default()),
    };
    let mut worker = Worker::new(config, NOW);
    let mut sealed = Sealed::default();
    for number in 0..CLIENTS {
        let (uid, tag) = (format!("user {number}"), format!("tag {}", number % TAGS));
        let identity = Identity {
            project: ProjectId(0),
            uid: &uid,
            device: &format!("device {}", number % DEVICES),
            tags: &[&tag],
            session_exp: 0,
            role: Role::Client,
            ip: None,
        };
        worker.handle_connect(identity, b"", NOW);
        worker.seal(&mut sealed);
        worker.lay_out(&mut sealed, usize::MAX);
        for index in sealed.part() {
            let Some(outgoing) = sealed.outgoing(index) else { continue };
            let bytes = outgoing.bytes.len();
            worker.handle_sent(&sealed, index, bytes, true);
        }
        worker.finish(&mut sealed);
    }
    worker
}

/// Offset of an entry's mark in [`Others`]: the same as that of a connection's visit epoch.
const EPOCH: usize = 10;

/// The same clients, in entries of the same size as a connection's.
struct Others {
    users: HashMap<String, usize>,
    entries: std::cell::RefCell<Vec<[u64; 13]>>,
}

impl Others {
    fn new() -> Self {
        let users = (0..CLIENTS).map(|number| (format!("user {number}"), number)).collect();
        Self { users, entries: vec![[0; 13]; CLIENTS].into() }
    }

    fn user(&self, name: &str) -> u64 {
        let slot = self.users[name];
        let mut entries = self.entries.borrow_mut();
        entries[slot][0] += 1;
        entries[slot][0]
    }

    fn tag(&self, number: usize) -> Vec<u32> {
        (0..CLIENTS).filter(|slot| slot % TAGS == number).map(|slot| slot as u32).collect()
    }

    fn device(&self, number: usize) -> Vec<u32> {
        (0..CLIENTS).filter(|slot| slot % DEVICES == number).map(|slot| slot as u32).collect()
    }

    /// A worker has a project's clients by device.
    fn all(&self) -> Vec<u32> {
        (0..DEVICES).flat_map(|number| self.device(number)).collect()
    }

    fn mark(&self, slots: &[u32]) -> u64 {
        let mut entries = self.entries.borrow_mut();
        slots.iter().fold(0, |sum, &slot| {
            let entry = &mut entries[slot as usize];
            entry[EPOCH] += 1;
            sum + entry[0]
        })
    }
}
