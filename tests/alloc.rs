//! The rule of the hot path: after warm-up no allocation per delivered frame, and at most one per
//! worker per envelope, as measured by a counting allocator.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use ws_cluster::state::counters::Counters;
use ws_cluster::state::projects::{Project, ProjectId, Projects, SubscribePolicy};
use ws_cluster::state::settings::Settings;
use ws_cluster::state::{Identity, Role, Sealed, Worker, WorkerConfig};
use ws_cluster::types::{Incarnation, MessageId, MonotonicMs, NodeId, Now, WallMs};
use ws_cluster::wire::envelope::{Envelope, NamesBuf, TargetsBuf};
use ws_cluster::wire::sign::Secret;
use ws_cluster::wire::websocket::Message;

const CONNECTIONS: usize = 10_000;
const NOW_MS: u64 = 1_800_000_000_000;
const NOW: Now = Now { monotonic: MonotonicMs::new(90_000_000), wall: WallMs::new(NOW_MS) };

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

struct Counting;

// SAFETY: every call is passed to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Relaxed);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: `at` came from `System.alloc` or `System.realloc` with this layout.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Relaxed);
        // SAFETY: as in `dealloc`.
        unsafe { System.realloc(at, layout, bytes) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

struct Rig {
    worker: Worker,
    sealed: Sealed,
    sent_bytes: usize,
}

impl Rig {
    fn new() -> Self {
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
            slots: 2 * CONNECTIONS,
            loads: Arc::default(),
            incarnation: Arc::new(Incarnation::new(WallMs::new(1))),
            hash_keys: (1, 2),
            queue_needs: None,
            counters: Arc::new(Counters::default()),
        };
        let worker = Worker::new(config, NOW);
        let mut rig = Self { worker, sealed: Sealed::default(), sent_bytes: 0 };
        for number in 0..CONNECTIONS {
            let uid = format!("user {number}");
            let identity = Identity {
                project: ProjectId(0),
                uid: &uid,
                device: "web",
                tags: &["news"],
                session_exp: 0,
                role: Role::Client,
                ip: Some(Ipv4Addr::LOCALHOST.into()),
            };
            rig.worker.handle_connect(identity, b"", NOW);
            rig.flush();
        }
        rig
    }

    fn flush(&mut self) {
        while self.worker.has_output() {
            self.worker.match_more(NOW, |_| {});
            self.worker.seal(&mut self.sealed);
            self.worker.lay_out(&mut self.sealed, usize::MAX);
            for index in self.sealed.part() {
                let Some(outgoing) = self.sealed.outgoing(index) else { continue };
                let bytes = outgoing.bytes.len();
                self.sent_bytes += bytes;
                self.worker.handle_sent(&self.sealed, index, bytes, true);
            }
            assert!(self.worker.take_blocked().is_empty());
            assert!(self.worker.finish(&mut self.sealed).is_empty());
        }
    }

    fn deliveries(&self) -> u64 {
        self.worker.counters().deliveries.value()
    }
}

/// Delivers `envelopes`, `in_a_batch` at a time; returns allocations and deliveries.
fn measure(rig: &mut Rig, envelopes: &[Vec<u8>], in_a_batch: usize) -> (u64, u64) {
    let before = (ALLOCATIONS.load(Relaxed), rig.deliveries());
    for batch in envelopes.chunks(in_a_batch) {
        for bytes in batch {
            let envelope = Envelope::decode(bytes).unwrap();
            rig.worker.handle_envelope(&envelope, NOW);
        }
        rig.flush();
    }
    (ALLOCATIONS.load(Relaxed) - before.0, rig.deliveries() - before.1)
}

fn envelopes(data: &str, targets: &TargetsBuf, count: u64) -> Vec<Vec<u8>> {
    let encode = |seq| {
        let envelope = Envelope {
            origin: NodeId::new(1).unwrap(),
            epoch: 1,
            seq,
            accepted_us: NOW_MS * 1_000,
            trace: None,
            id: MessageId(1 << 60 | seq),
            ttl_ms: 60_000,
            key: None,
            pid: b"1",
            targets: targets.as_targets(),
            data: data.as_bytes(),
        };
        let mut bytes = Vec::new();
        envelope.encode(&mut bytes);
        bytes
    };
    (0..count).map(encode).collect()
}

fn names(list: &[&str]) -> Option<NamesBuf> {
    let mut names = NamesBuf::default();
    list.iter().for_each(|name| names.push(name));
    Some(names)
}

/// The only test in this binary: the allocator counts the allocations of all threads.
#[test]
fn after_warm_up_a_delivered_frame_allocates_nothing() {
    let mut rig = Rig::new();
    let tag = TargetsBuf { tags: names(&["news"]), ..TargetsBuf::default() };
    let small = format!("\"{}\"", "x".repeat(126));
    let large = format!("\"{}\"", "x".repeat(20_000));
    for (data, in_a_batch) in [(&small, 1), (&small, 4), (&large, 1)] {
        let envelopes = envelopes(data, &tag, 8);
        measure(&mut rig, &envelopes, in_a_batch);
        let (allocations, deliveries) = measure(&mut rig, &envelopes, in_a_batch);
        println!("{} bytes: {allocations} allocations, {deliveries} deliveries", data.len());
        assert_eq!(deliveries, 8 * CONNECTIONS as u64);
        // A large frame is shared: it is one allocation for all its receivers, and one to share it
        // between batches; and a large push to very many is copied until all of it is matched.
        let for_each_push = if data.len() < 1_000 { 0 } else { 3 };
        assert!(allocations <= 8 * for_each_push);
    }

    // To single users, the other extreme: one frame and one search for each.
    let users: Vec<Vec<u8>> = (0..CONNECTIONS)
        .map(|number| {
            let uids = names(&[&format!("user {number}")]);
            let targets = TargetsBuf { uids, ..TargetsBuf::default() };
            envelopes(&small, &targets, 1).swap_remove(0)
        })
        .collect();
    measure(&mut rig, &users, 100);
    let (allocations, deliveries) = measure(&mut rig, &users, 100);
    println!("to single users: {allocations} allocations, {deliveries} deliveries");
    assert_eq!((allocations, deliveries), (0, CONNECTIONS as u64));

    // Clients' messages are answered without an allocation, too.
    let mut talk = || {
        let before = ALLOCATIONS.load(Relaxed);
        for slot in 0..100 {
            for text in
                [r#"{"type":"heartbeat","id":"7"}"#, r#"{"type":"subscribe","tags":"news"}"#]
            {
                rig.worker.handle_frame(slot, Message::Text(text.as_bytes()), NOW);
            }
        }
        rig.flush();
        ALLOCATIONS.load(Relaxed) - before
    };
    // Two batches alternate, so both are warmed up.
    talk();
    talk();
    assert_eq!(talk(), 0);
    assert!(rig.sent_bytes > 0);
}
