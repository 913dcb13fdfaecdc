//! Tests of one worker, which is given input and asked for its output.

use super::*;
use crate::state::counters::{LostAnswer, Shed};
use crate::state::outbox::Outbox;
use crate::state::projects::{Project, SubscribePolicy};
use crate::state::settings::{Memory, Times};
use crate::state::subscriptions::WorkerEvent;
use crate::types::{Env, Limits, NodeId};
use crate::wire::envelope::{Envelope, NamesBuf, TargetsBuf};
use crate::wire::message;
use crate::wire::parcel::{Answer, Response, Sender};
use crate::wire::sign::{self, Secret};
use crate::wire::websocket::close;

mod budget;
mod reload;
mod requests;
mod slices;
mod time;

const NOW_MS: u64 = 1_800_000_000_000;
const NOW: Now = Now { monotonic: MonotonicMs::new(90_000_000), wall: WallMs::new(NOW_MS) };
const IDLE_MS: u64 = 8_000;
/// Long enough that only the idle timeout pings.
const PING_MS: u64 = 3_600_000;

/// Returns the settings, to change them before the worker is made.
fn settings(config: &mut WorkerConfig) -> &mut Settings {
    Arc::make_mut(&mut config.settings)
}

/// A worker whose output is carried out at once.
struct Rig {
    worker: Worker,
    sealed: Sealed,
    /// Closed slots, with the close code.
    closed: Vec<(u32, Option<u16>)>,
    /// Rests of closing connections whose sockets accept nothing.
    rests: Vec<Rest>,
    /// Bytes that each send accepts.
    room: usize,
    ids: u64,
}

fn client(uid: &str, session_exp: u64) -> Identity<'_> {
    let (project, role) = (ProjectId(0), Role::Client);
    Identity { project, uid, device: "", tags: &[], session_exp, role, ip: None }
}

impl Rig {
    fn new(outbox_bytes: usize, worker_outbox_bytes: usize) -> Self {
        Self::with(outbox_bytes, worker_outbox_bytes, |_| {})
    }

    fn with(
        outbox_bytes: usize,
        worker_outbox_bytes: usize,
        change: impl FnOnce(&mut WorkerConfig),
    ) -> Self {
        let project = Project {
            pid: "1".into(),
            secrets: vec![Secret::new(b"s")],
            allowed_origins: None,
            subscribe: SubscribePolicy::Any,
        };
        let (times, memory) = (Times::default(), Memory::default());
        let settings = Settings {
            env: Env::Test,
            limits: Limits { message_bytes: 1_000, ..Limits::default() },
            times: Times { ping_interval_ms: PING_MS, idle_timeout_ms: IDLE_MS, ..times },
            memory: Memory {
                outbox_bytes,
                worker_outbox_bytes,
                server_outbox_bytes: 1 << 20,
                ..memory
            },
            idempotency_keys: 1_000,
            ..Settings::default()
        };
        let mut config = WorkerConfig {
            settings: Arc::new(settings),
            worker: 0,
            projects: Arc::new(Projects::new(vec![project]).unwrap()),
            slots: 100,
            loads: Arc::default(),
            incarnation: Arc::new(Incarnation::new(WallMs::new(1))),
            hash_keys: (1, 2),
            queue_needs: None,
            counters: Arc::default(),
        };
        change(&mut config);
        let worker = Worker::new(config, NOW);
        let (closed, rests) = (Vec::new(), Vec::new());
        Self { worker, sealed: Sealed::default(), closed, rests, room: usize::MAX, ids: 0 }
    }

    fn connect(&mut self, uid: &str) -> u32 {
        self.connect_until(uid, 0)
    }

    /// Connects many clients of one user, without a check after each.
    fn connect_many(&mut self, uid: &str, count: usize) {
        for index in 1..=count {
            self.worker.handle_connect(client(uid, 0), b"", NOW);
            if index % 64 == 0 || index == count {
                self.flush();
            }
        }
    }

    fn connect_until(&mut self, uid: &str, session_exp: u64) -> u32 {
        let (key, _) = self.worker.handle_connect(client(uid, session_exp), b"", NOW);
        self.flush();
        key.slot
    }

    /// Connects a business server that receives all events.
    fn serve(&mut self) -> u32 {
        let identity = Identity {
            project: ProjectId(0),
            uid: "",
            device: "",
            tags: &[],
            session_exp: 0,
            role: Role::Server(EventSet::ALL),
            ip: None,
        };
        let (key, _) = self.worker.handle_connect(identity, b"", NOW);
        self.flush();
        key.slot
    }

    /// The types of the messages sent to a connection.
    fn types_to(&mut self, slot: u32) -> Vec<String> {
        let text = self.text_to(slot);
        let types = text.split(r#"{"type":""#).skip(1);
        types.map(|rest| rest.split('"').next().unwrap_or("").to_string()).collect()
    }

    /// The text sent to a connection, including its outbox.
    fn text_to(&mut self, slot: u32) -> String {
        let sent = self.flush();
        let mut bytes =
            sent.into_iter().filter(|one| one.0 == slot).flat_map(|one| one.1).collect();
        let read = |bytes: &mut Vec<u8>, outbox: &Outbox| {
            outbox.slices(usize::MAX, |slice| bytes.extend_from_slice(slice));
            outbox.pending_bytes()
        };
        if let Some(pending) =
            self.worker.outbox(slot, NOW.wall).map(|outbox| read(&mut bytes, outbox))
        {
            self.worker.handle_outbox_written(slot, pending);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Pushes a JSON string of `bytes` bytes to one user, without a flush.
    fn push(&mut self, uid: &str, bytes: usize, ttl_ms: u32) {
        self.push_with(uid, bytes, ttl_ms, None, NOW);
    }

    fn push_with(
        &mut self,
        uid: &str,
        bytes: usize,
        ttl_ms: u32,
        key: Option<&[u8; 16]>,
        now: Now,
    ) {
        self.ids += 1;
        let mut uids = NamesBuf::default();
        uids.push(uid);
        let data = format!("\"{}\"", "x".repeat(bytes - 2));
        let targets = TargetsBuf { uids: Some(uids), ..TargetsBuf::default() };
        let envelope = Envelope {
            origin: NodeId::new(1).unwrap(),
            epoch: 0,
            seq: self.ids,
            accepted_us: NOW_MS * 1_000,
            trace: None,
            id: MessageId(self.ids),
            ttl_ms,
            key,
            pid: b"1",
            targets: targets.as_targets(),
            data: data.as_bytes(),
        };
        self.worker.handle_envelope(&envelope, now);
    }

    fn flush(&mut self) -> Vec<(u32, Vec<u8>)> {
        let sent = self.flush_unchecked();
        self.worker.check();
        sent
    }

    /// The check reads all that the worker has, which takes long after each of very many steps.
    fn flush_unchecked(&mut self) -> Vec<(u32, Vec<u8>)> {
        let mut sent = Vec::new();
        while self.worker.has_output() {
            self.worker.match_more(NOW, |_| {});
            self.worker.seal(&mut self.sealed);
            self.worker.lay_out(&mut self.sealed, usize::MAX);
            for index in self.sealed.part() {
                let Some(outgoing) = self.sealed.outgoing(index) else { continue };
                let taken = self.room.min(outgoing.bytes.len());
                sent.push((outgoing.slot, outgoing.bytes[..taken].to_vec()));
                let whole = taken == outgoing.bytes.len();
                self.worker.handle_sent(&self.sealed, index, taken, whole);
            }
            for CloseRequest { slot, cause } in self.worker.finish(&mut self.sealed) {
                if let Some(rest) = self.worker.release(slot, cause).rest {
                    match self.room {
                        0 => self.rests.push(rest),
                        _ => rest.advance(rest.pending_bytes()),
                    }
                }
                self.closed.push((slot, cause.code()));
            }
        }
        sent
    }

    fn drops(&self, reason: Drop) -> u64 {
        self.worker.counters().drops(reason)
    }
}

#[test]
fn a_connection_that_leaves_more_than_its_budget_unread_is_closed_with_4000() {
    let mut rig = Rig::new(5_000, 1 << 20);
    let (slow, other) = (rig.connect("slow"), rig.connect("other"));
    rig.room = 0;
    for _ in 0..4 {
        rig.push("slow", 1_000, 0);
        rig.flush();
    }
    assert_eq!(rig.closed, []);
    rig.push("slow", 1_000, 0);
    rig.push("slow", 1_000, 0);
    rig.flush();
    assert_eq!(rig.closed, [(slow, Some(close::SLOW_CONSUMER))]);
    assert_eq!((rig.drops(Drop::SlowConsumer), rig.worker.counters().deliveries.value()), (6, 0));
    assert!(rig.worker.is_open(other) && rig.worker.counters().outbox_bytes.value() == 0);
}

/// Runs that mix shared and copied frames cannot be one slice, so they are sent through the outbox.
/// If there were many, their connection was closed as slow before its socket was offered anything.
#[test]
fn nobody_is_slow_before_the_socket_had_its_turn() {
    let mut rig = Rig::new(50_000, 60_000);
    let slot = rig.connect("fast");
    for _ in 0..4 {
        rig.push("fast", 20_000, 0);
        rig.push("fast", 15_500, 0);
    }
    assert_eq!(rig.flush(), []);
    assert_eq!(rig.worker.take_blocked(), [slot]);
    rig.push("fast", 1_000, 0);
    rig.flush();
    assert_eq!(rig.closed, []);
    let pending = rig.worker.outbox(slot, NOW.wall).unwrap().pending_bytes();
    assert!(!rig.worker.handle_outbox_written(slot, pending));
    assert_eq!(rig.worker.counters().deliveries.value(), 9);
}

#[test]
fn the_workers_budget_closes_the_largest_outbox_first() {
    let mut rig = Rig::new(1 << 20, 42_000);
    let slots = ["a", "b", "c"].map(|uid| rig.connect(uid));
    rig.room = 0;
    for (uid, bytes) in [("a", 13_000), ("b", 15_900), ("c", 9_000)] {
        rig.push(uid, bytes, 0);
    }
    rig.flush();
    assert_eq!(rig.closed, []);
    rig.push("c", 5_000, 0);
    rig.flush();
    assert_eq!(rig.closed, [(slots[1], Some(close::SLOW_CONSUMER))]);
    assert!(rig.worker.is_open(slots[0]) && rig.worker.is_open(slots[2]));
    assert_eq!(rig.worker.counters().sheds(Shed::Worker), 1);
}

/// The budget was enforced after every client had its copy: 32M became 200 MB.
#[test]
fn a_push_to_many_slow_clients_stays_within_the_workers_budget() {
    let budget = 400_000;
    let mut rig = Rig::new(1 << 20, budget);
    let slots: Vec<u32> = (0..90).map(|_| rig.connect("u")).collect();
    rig.room = 0;
    let mut largest = 0;
    for _ in 0..10 {
        rig.push("u", 15_000, 0);
        largest = largest.max(rig.worker.counters().outbox_bytes.value());
        rig.flush();
        largest = largest.max(rig.worker.counters().outbox_bytes.value());
    }
    assert!(largest <= budget as u64 + 16_384, "{largest}");
    while rig.worker.is_overdue() {
        rig.worker.handle_tick(NOW);
        rig.flush();
    }
    let open = slots.iter().filter(|&&slot| rig.worker.is_open(slot)).count();
    assert!((1..30).contains(&open), "{open}");
    let (closed, sheds) = (90 - open as u64, rig.worker.counters().sheds(Shed::Worker));
    assert_eq!((closed, rig.closed.len() as u64), (sheds, sheds));
    assert!(rig.drops(Drop::SlowConsumer) >= closed);
}

/// Each of 1,500 clients got a copy of the unwritten rest of a frame that all shared.
#[test]
fn whoever_closes_shares_the_rest_of_a_frame_within_the_workers_budget() {
    for budget in [1 << 20, 150_000] {
        let mut rig = Rig::new(1 << 20, budget);
        for _ in 0..90 {
            rig.connect("u");
        }
        rig.room = 10;
        rig.push("u", 100_000, 0);
        rig.push("u", 100_000, 0);
        rig.flush();
        rig.room = 0;
        while rig.worker.close_clients(0, false, || 1_000) {
            rig.flush();
        }
        rig.flush();
        assert_eq!((rig.closed.len(), rig.worker.connections()), (90, 0));
        let held = rig.worker.counters().outbox_bytes.value();
        assert!(held <= 150_000, "{held}");
        // A rest whose memory the budget needs is dropped and is no delivery.
        let other = rig.connect("other");
        rig.push("other", 15_000, 0);
        Arc::make_mut(&mut rig.worker.config.settings).memory.worker_outbox_bytes = 20_000;
        rig.flush();
        assert!(rig.rests.iter().all(Rest::is_revoked) && rig.worker.is_open(other));
        rig.rests.clear();
        assert_eq!(rig.drops(Drop::Closed) + rig.drops(Drop::SlowConsumer), 180);
        assert_eq!(rig.worker.counters().deliveries.value(), 0);
        rig.worker.check();
    }
}

#[test]
fn what_waits_longer_than_its_ttl_is_dropped_and_counted() {
    let mut rig = Rig::new(1 << 20, 1 << 20);
    let slot = rig.connect("u");
    rig.room = 10;
    rig.push("u", 100, 50);
    rig.flush();
    rig.push("u", 200, 50);
    rig.push("u", 300, 51);
    rig.flush();
    // The first was begun, so it is finished regardless of time; the last has a millisecond left.
    let whole = |bytes: usize| bytes + 32 + if bytes > 90 { 4 } else { 2 };
    let pending = rig.worker.outbox(slot, NOW.wall + 50).unwrap().pending_bytes();
    assert_eq!(pending, whole(100) - 10 + whole(300));
    assert_eq!(rig.drops(Drop::Expired), 1);
    // Nothing is left of an outbox whose messages all expired.
    assert!(rig.worker.handle_outbox_written(slot, whole(100) - 10));
    assert!(rig.worker.outbox(slot, NOW.wall + 51).unwrap().is_empty());
    assert!(!rig.worker.handle_outbox_written(slot, 0));
    assert!(rig.worker.outbox(slot, NOW.wall + 51).is_none());
    assert_eq!((rig.drops(Drop::Expired), rig.worker.counters().deliveries.value()), (2, 1));
    rig.worker.check();
}

#[test]
fn silence_is_pinged_at_half_of_the_timeout_and_closed_at_the_whole() {
    let mut rig = Rig::new(1 << 20, 1 << 20);
    let (silent, lively) = (rig.connect("silent"), rig.connect("lively"));
    let mut pinged = Vec::new();
    for tick in 1..=16 {
        let now_ms = NOW + tick * IDLE_MS / 16;
        rig.worker.handle_tick(now_ms);
        let sent = rig.flush();
        pinged.extend(sent.into_iter().map(|(slot, bytes)| (slot, bytes, tick)));
        if tick % 4 == 0 {
            rig.worker.handle_frame(lively, Message::Pong(b""), now_ms);
        }
    }
    rig.worker.handle_tick(NOW + IDLE_MS + IDLE_MS / 8);
    rig.flush();
    let [(slot, ping, at)] = &pinged[..] else { panic!("one ping, not {pinged:?}") };
    assert_eq!((*slot, &ping[..]), (silent, &[0x89, 0][..]));
    assert!((8..=10).contains(at), "{at}");
    assert_eq!(rig.closed, [(silent, Some(close::IDLE))]);
}

/// What arrives after a stall may be handled before the stall is noticed. A time a millisecond
/// earlier than the one before made every connection look silent for 49 days.
#[test]
fn a_clock_that_steps_back_closes_nobody() {
    let mut rig = Rig::new(1 << 20, 1 << 20);
    let slot = rig.connect("u");
    rig.worker.handle_frame(slot, Message::Pong(b""), NOW + 5_000);
    rig.worker.handle_tick(NOW + 4_000);
    rig.worker.handle_tick(NOW + 4_999);
    assert_eq!(rig.flush(), []);
    assert_eq!(rig.closed, []);
    for silent_ms in [IDLE_MS / 2, IDLE_MS] {
        rig.worker.handle_tick(NOW + 5_000 + silent_ms);
        rig.flush();
    }
    assert_eq!(rig.closed, [(slot, Some(close::IDLE))]);
}

/// The rest of a partly written push is sent before the Close frame: it counts as delivered. A
/// partly written reply is no push.
#[test]
fn a_message_that_is_partly_written_is_counted_once() {
    let mut rig = Rig::new(1 << 20, 1 << 20);
    let [a, b, c] = ["a", "b", "c"].map(|uid| rig.connect(uid));
    rig.room = 3;
    rig.push("a", 100, 0);
    rig.push("b", 100, 0);
    rig.worker.handle_frame(c, Message::Text(br#"{"type":"heartbeat"}"#), NOW);
    rig.flush();
    rig.worker.handle_frame(a, Message::Close(1000), NOW);
    rig.worker.handle_disconnect(b);
    rig.worker.handle_disconnect(c);
    rig.flush();
    assert_eq!(rig.closed, [(a, Some(1000)), (b, None), (c, None)]);
    assert_eq!(rig.worker.counters().deliveries.value(), 1);
    assert_eq!((rig.drops(Drop::Disconnected), rig.drops(Drop::Closed)), (1, 0));
}

#[test]
fn a_session_ends_at_its_time_unless_a_signed_refresh_moves_it() {
    let mut rig = Rig::new(5_000, 1 << 20);
    let exp = NOW_MS / 1_000 + 5;
    let slots =
        [rig.connect_until("ends", exp), rig.connect_until("goes on", exp), rig.connect("free")];
    let refresh = |rig: &mut Rig, slot, secret: &[u8], session_exp| {
        let text = message::refresh_text(rig.worker.cid(slot).unwrap(), session_exp);
        let sign = sign::sign_hex(&Secret::new(secret), &[&text]);
        let frame = format!(r#"{{"type":"refresh","session_exp":{session_exp},"sign":"{sign}"}}"#);
        rig.worker.handle_frame(slot, Message::Text(frame.as_bytes()), NOW);
        let sent = rig.flush();
        String::from_utf8(sent[0].1[2..].to_vec()).unwrap()
    };
    let success = r#"{"type":"refresh","code":1,"msg":"success"}"#;
    assert_eq!(refresh(&mut rig, slots[1], b"s", exp + 5), success);
    assert!(
        refresh(&mut rig, slots[0], b"other", exp + 5).contains(r#""code":0,"msg":"bad sign""#)
    );
    assert!(refresh(&mut rig, slots[2], b"s", exp + 5).contains("without session_exp"));
    for (later_ms, closed) in [(4_999, 0), (5_000, 1), (9_999, 1), (10_000, 2)] {
        rig.worker.handle_tick(NOW + later_ms);
        for slot in slots.into_iter().filter(|&slot| rig.worker.is_open(slot)).collect::<Vec<_>>() {
            rig.worker.handle_frame(slot, Message::Pong(b""), NOW + later_ms);
        }
        rig.flush();
        assert_eq!(rig.closed.len(), closed, "{later_ms}");
    }
    let expected = [slots[0], slots[1]].map(|slot| (slot, Some(close::SESSION_EXPIRED)));
    assert_eq!(rig.closed, expected);
}

#[test]
fn frames_that_only_outboxes_got_are_flushed_away() {
    // They stayed in the open batch, which finally was full of them with nothing to send: every
    // pusher waited for a flush that never came.
    let mut rig = Rig::new(1 << 20, 1 << 30);
    rig.connect("slow");
    rig.room = 0;
    rig.push("slow", 1_000, 0);
    rig.flush();
    for _ in 0..300 {
        rig.push("slow", 1_000, 0);
    }
    assert!(rig.worker.is_full() && rig.worker.has_output());
    rig.flush();
    assert!(!rig.worker.is_full());
    assert!(rig.closed.is_empty());
}

/// The event followed the reply that closed the client, when its device was no longer known: the
/// worker panicked.
#[test]
fn a_client_that_its_own_answers_close_as_slow_is_told_of_in_order() {
    let mut rig = Rig::new(5_000, 1 << 20);
    let server = rig.serve();
    let slow = rig.connect("slow");
    rig.room = 10;
    rig.push("slow", 1_000, 0);
    rig.flush();
    for number in 0..100 {
        let text = format!(r#"{{"type":"subscribe","tags":"a tag with the number {number}"}}"#);
        if !rig.worker.handle_frame(slow, Message::Text(text.as_bytes()), NOW) {
            break;
        }
    }
    assert!(!rig.worker.is_open(slow));
    let types = rig.types_to(server);
    let Some((last, subscribes)) = types.split_last() else { panic!("nothing is told") };
    assert!(last == "disconnect" && subscribes.iter().all(|kind| kind == "subscribe"), "{types:?}");
}

/// A business server that was connected but did not read was reported as gone.
#[test]
fn a_request_that_a_business_server_has_no_room_for_is_one_too_many() {
    let mut rig = Rig::new(5_000, 1 << 20);
    let (server, client) = (rig.serve(), rig.connect("u"));
    rig.room = 0;
    let data = "x".repeat(60_000);
    let text = format!(r#"{{"type":"request","data":"{data}"}}"#);
    for _ in 0..20 {
        rig.worker.handle_frame(client, Message::Text(text.as_bytes()), NOW);
        rig.flush();
    }
    assert!(rig.worker.is_open(server));
    rig.room = usize::MAX;
    let refusal = r#"{"type":"response","code":0,"msg":"too many requests are pending"}"#;
    assert_eq!(rig.text_to(client).matches(refusal).count(), 2, "1 is written, 17 wait");
}

#[test]
fn an_answer_in_the_name_of_another_business_server_is_not_taken() {
    let mut rig = Rig::new(5_000, 1 << 20);
    let (server, client) = (rig.serve(), rig.connect("u"));
    let request = br#"{"type":"request","id":"r","data":1}"#;
    rig.worker.handle_frame(client, Message::Text(request), NOW);
    let asked = rig.text_to(server);
    let (_, id) = asked.split_once(r#""request","id":""#).unwrap();
    let id = MessageId(id.split('"').next().unwrap().parse().unwrap());
    let answer_of = |rig: &mut Rig, server: Cid, data: &[u8]| {
        let client = rig.worker.connections[client as usize].cid;
        let answer = Answer::Data(data);
        let mut parcel = Vec::new();
        let response = Response { id, client, server, pid: "1", answer };
        response.encode(Sender { node: NodeId::new(2).unwrap(), epoch: 1 }, &mut parcel);
        rig.worker.handle_parcel(&parcel, NOW);
    };
    answer_of(&mut rig, Cid(7), b"\"forged\"");
    let own = rig.worker.connections[server as usize].cid;
    answer_of(&mut rig, own, b"\"own\"");
    assert_eq!(rig.worker.config.counters.lost_answers(LostAnswer::Forged), 1);
    let text = rig.text_to(client);
    assert!(text.contains("own") && !text.contains("forged"), "{text}");
}

/// A batch that closed a connection while it was laid out queued the event as if it was open: the
/// worker panicked.
#[test]
fn who_is_closed_while_a_batch_is_laid_out_is_told_of_behind_it() {
    let mut rig = Rig::new(5_000, 1 << 20);
    let (slow, server) = (rig.connect("slow"), rig.serve());
    rig.push("slow", 100, 0);
    rig.worker.seal(&mut rig.sealed);
    rig.worker.lay_out(&mut rig.sealed, usize::MAX);
    // While that is being sent:
    (0..6).for_each(|_| rig.push("slow", 1_000, 0));
    rig.worker.handle_frame(server, Message::Text(br#"{"type":"heartbeat"}"#), NOW);
    rig.worker.handle_sent(&rig.sealed, 0, 10, false);
    rig.worker.finish(&mut rig.sealed);
    assert_eq!(rig.types_to(server), ["heartbeat", "disconnect"]);
    assert_eq!(rig.closed, [(slow, Some(close::SLOW_CONSUMER))]);
}

/// Frames of 16 KiB and more are shared, and were in no budget: slow clients, each with its own
/// messages, could hold a worker's memory many times over.
#[test]
fn shared_frames_count_in_the_workers_budget() {
    let mut rig = Rig::new(1 << 20, 100_000);
    let slots = ["a", "b", "c", "d"].map(|uid| rig.connect(uid));
    rig.room = 0;
    for uid in ["a", "b", "c", "a", "d"] {
        rig.push(uid, 30_000, 0);
        rig.flush();
    }
    assert_eq!(rig.closed, [(slots[0], Some(close::SLOW_CONSUMER))]);
    assert!(slots[1..].iter().all(|&slot| rig.worker.is_open(slot)));
}

/// Four hundred connections got every other frame of the batch: each frame was copied for each of
/// them, without a limit on the total.
#[test]
fn what_is_copied_together_for_a_crowd_is_bounded() {
    let mut rig = Rig::new(1 << 30, 1 << 30);
    (0..400).for_each(|_| _ = rig.connect("crowd"));
    rig.connect("other");
    let mut rounds = 0;
    while !rig.worker.is_full() {
        rig.push("crowd", 1_000, 0);
        rig.push("other", 10, 0);
        rounds += 1;
    }
    assert!((70..100).contains(&rounds), "{rounds}");
    let sent: usize = rig.flush().iter().map(|(_, bytes)| bytes.len()).sum();
    assert!(sent > rounds * 400 * 1_000 && !rig.worker.is_full());
}

/// Redis was unavailable when this node started; later it reports which ids the previous run
/// issued.
#[test]
fn clients_whose_ids_may_be_those_of_an_earlier_run_are_sent_away() {
    let mut rig = Rig::new(1_000_000, 1_000_000);
    let early = rig.connect("early");
    rig.worker.handle_worker_event(WorkerEvent::IdsBegin { used_ms: NOW_MS + 5_000 }, NOW);
    rig.flush();
    assert_eq!(rig.closed, [(early, Some(close::GOING_AWAY))]);
    rig.worker.config.incarnation.begin(NOW_MS + 5_000);
    rig.connect("late");
    rig.worker.handle_worker_event(WorkerEvent::IdsBegin { used_ms: NOW_MS + 5_000 }, NOW);
    rig.flush();
    assert_eq!((rig.closed.len(), rig.worker.connections()), (1, 1));
    rig.worker.check();
}

/// All 20,000 were closed in one turn: 30 ms.
#[test]
fn very_many_clients_of_an_earlier_run_go_in_slices_and_are_nobody_from_the_first() {
    let mut rig = Rig::new(1_000_000, 1_000_000);
    let slots: Vec<u32> = (0..500).map(|_| rig.connect("early")).collect();
    let last = rig.worker.cid(slots[499]).unwrap();
    rig.worker.handle_worker_event(WorkerEvent::IdsBegin { used_ms: NOW_MS + 5_000 }, NOW);
    assert_eq!(rig.worker.directory.connection(&rig.worker.connections, last), None);
    let mut slices = 1;
    while rig.worker.is_overdue() {
        rig.flush();
        assert!(rig.closed.len() <= slices * 64, "{} after {slices}", rig.closed.len());
        rig.worker.handle_tick(NOW);
        slices += 1;
    }
    rig.flush();
    assert_eq!((rig.closed.len(), rig.worker.connections()), (500, 0));
    rig.worker.config.incarnation.begin(NOW_MS + 5_000);
    let late = rig.connect("late");
    let cid = rig.worker.cid(late).unwrap();
    assert_eq!(rig.worker.directory.connection(&rig.worker.connections, cid), Some(late));
    rig.worker.check();
}

/// Stamps wrap after 2^32 messages; the sweep renews very old ones before that, without a walk over
/// all connections.
#[test]
fn a_connection_that_was_considered_very_long_ago_is_considered_again() {
    let mut rig = Rig::new(1_000_000, 1_000_000);
    let slot = rig.connect("u");
    let seen = rig.worker.connections[slot as usize].visit_epoch;
    let mut now_ms = NOW;
    for quarter in 1..=4 {
        rig.worker.visit_epoch = seen.wrapping_add(quarter << 30).wrapping_sub(1);
        // A full round of the sweep, including its pings.
        for _ in 0..100 {
            now_ms += 50;
            rig.worker.handle_tick(now_ms);
        }
        rig.worker.handle_input(slot, now_ms);
    }
    rig.flush();
    rig.push("u", 10, 0);
    assert_eq!(rig.worker.visit_epoch, seen);
    assert_eq!(rig.flush().len(), 1, "the push of the epoch that it once had");
}
