//! The cost of a push does not grow with unrelated state: other clients, devices, tags, tenants,
//! and frames held for slow clients. Once, 260 slow clients cut the push rate of all others to a
//! tenth.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::sync::Arc;
use std::time::{Duration, Instant};
use ws_cluster::state::counters::Counters;
use ws_cluster::state::projects::{Project, ProjectId, Projects, SubscribePolicy};
use ws_cluster::state::settings::{Memory, Settings};
use ws_cluster::state::{Identity, Role, Sealed, Worker, WorkerConfig};
use ws_cluster::types::{Incarnation, MessageId, MonotonicMs, NodeId, Now, WallMs};
use ws_cluster::wire::envelope::{Envelope, NamesBuf, TargetsBuf};
use ws_cluster::wire::sign::Secret;

const NOW_MS: u64 = 1_800_000_000_000;
const NOW: Now = Now { monotonic: MonotonicMs::new(90_000_000), wall: WallMs::new(NOW_MS) };
/// Slow clients, each with its own device and tag and a frame that is kept for it; and projects.
const OTHERS: usize = 4_000;
const PROJECTS: usize = 4_000;

struct Rig {
    worker: Worker,
    sealed: Sealed,
}

impl Rig {
    fn new(projects: usize) -> Self {
        let project = |number: usize| Project {
            pid: format!("tenant {number}").into(),
            secrets: vec![Secret::new(b"s")],
            allowed_origins: None,
            subscribe: SubscribePolicy::Any,
        };
        let settings = Settings {
            memory: Memory { worker_outbox_bytes: 1 << 30, ..Memory::default() },
            idempotency_keys: 1_000,
            ..Settings::default()
        };
        let config = WorkerConfig {
            settings: Arc::new(settings),
            worker: 0,
            projects: Arc::new(Projects::new((0..projects).map(project).collect()).unwrap()),
            slots: 2 * OTHERS,
            loads: Arc::default(),
            incarnation: Arc::new(Incarnation::new(WallMs::new(1))),
            hash_keys: (1, 2),
            queue_needs: None,
            counters: Arc::new(Counters::default()),
        };
        Self { worker: Worker::new(config, NOW), sealed: Sealed::default() }
    }

    fn connect(&mut self, uid: &str, device: &str, tag: &str) {
        let identity = Identity {
            project: ProjectId(0),
            uid,
            device,
            tags: &[tag],
            session_exp: 0,
            role: Role::Client,
            ip: None,
        };
        self.worker.handle_connect(identity, b"", NOW);
        self.flush(true);
    }

    fn push(&mut self, targets: &TargetsBuf, data: &str) {
        let envelope = Envelope {
            origin: NodeId::new(1).unwrap(),
            epoch: 1,
            seq: 1,
            accepted_us: NOW_MS * 1_000,
            trace: None,
            id: MessageId(1),
            ttl_ms: 0,
            key: None,
            pid: b"tenant 0",
            targets: targets.as_targets(),
            data: data.as_bytes(),
        };
        assert_eq!(self.worker.handle_envelope(&envelope, NOW).matched, 1);
    }

    fn flush(&mut self, takes: bool) {
        while self.worker.has_output() {
            self.worker.match_more(NOW, |_| {});
            self.worker.seal(&mut self.sealed);
            self.worker.lay_out(&mut self.sealed, usize::MAX);
            for index in self.sealed.part() {
                let Some(outgoing) = self.sealed.outgoing(index) else { continue };
                let taken = if takes { outgoing.bytes.len() } else { 0 };
                self.worker.handle_sent(&self.sealed, index, taken, takes);
            }
            self.worker.take_blocked();
            assert!(self.worker.finish(&mut self.sealed).is_empty());
        }
    }

    /// Returns the shortest time that 200 pushes to one client took.
    fn measure(&mut self) -> Duration {
        let targets = TargetsBuf {
            uids: names("me"),
            devices: names("my device"),
            tags: names("my tag"),
            ..TargetsBuf::default()
        };
        let mut round = || {
            let begun = Instant::now();
            for _ in 0..200 {
                self.push(&targets, "1");
                self.flush(true);
            }
            begun.elapsed()
        };
        (0..20).map(|_| round()).min().unwrap()
    }
}

fn names(name: &str) -> Option<NamesBuf> {
    let mut names = NamesBuf::default();
    names.push(name);
    Some(names)
}

#[test]
fn a_push_costs_the_same_whatever_others_hold() {
    let mut rig = Rig::new(1);
    rig.connect("me", "my device", "my tag");
    let alone = rig.measure();

    let mut rig = Rig::new(PROJECTS);
    let large = format!("\"{}\"", "x".repeat(16 << 10));
    for number in 0..OTHERS {
        let uid = format!("slow {number}");
        rig.connect(&uid, &format!("device {number}"), &format!("tag {number}"));
        rig.push(&TargetsBuf { uids: names(&uid), ..TargetsBuf::default() }, &large);
        rig.flush(false);
    }
    rig.connect("me", "my device", "my tag");
    let among_others = rig.measure();
    println!("200 pushes: {alone:?} alone, {among_others:?} among {OTHERS} others");
    assert_eq!(rig.worker.counters().backlogged.value() as usize, OTHERS);
    assert!(among_others < 4 * alone, "{among_others:?} instead of {alone:?}");
}
