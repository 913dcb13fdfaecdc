//! Pings, idle timeouts, stalls, and which output may wait for more messages.

use super::*;
use crate::state::idempotency::REMEMBER_MS;

const PING: [u8; 2] = [0x89, 0];
const TICK_MS: u64 = 50;
/// Connections of a worker whose pings are spread after a message to all of them.
const CROWD: usize = 1_100;

fn rig(ping_interval_ms: u64, idle_timeout_ms: u64) -> Rig {
    Rig::with(1 << 20, 1 << 30, |config| {
        settings(config).times.ping_interval_ms = ping_interval_ms;
        settings(config).times.idle_timeout_ms = idle_timeout_ms;
        config.slots = 100_000;
    })
}

/// Ticks until `end_ms` have passed since [`NOW`]; returns the time and recipient of each ping.
fn pings(
    rig: &mut Rig,
    from_ms: u64,
    end_ms: u64,
    each: impl FnMut(&mut Rig, u64),
) -> Vec<(u64, u32)> {
    pings_every(TICK_MS, rig, from_ms, end_ms, each)
}

fn pings_every(
    tick_ms: u64,
    rig: &mut Rig,
    from_ms: u64,
    end_ms: u64,
    mut each: impl FnMut(&mut Rig, u64),
) -> Vec<(u64, u32)> {
    let mut pings = Vec::new();
    for later_ms in (from_ms..end_ms).step_by(tick_ms as usize) {
        rig.worker.handle_tick(NOW + later_ms);
        let sent = rig.flush_unchecked();
        let sent = sent.into_iter().filter(|(_, bytes)| *bytes == PING);
        pings.extend(sent.map(|(slot, _)| (later_ms, slot)));
        each(rig, later_ms);
    }
    rig.worker.check();
    pings
}

/// A proxy closes connections that are quiet for 60 s; pings were sent after 60 to 75 s.
#[test]
fn a_quiet_connection_gets_a_frame_within_50_s_again_and_again() {
    let mut rig = rig(45_000, 120_000);
    let slots: Vec<u32> = (0..100).map(|_| rig.connect("u")).collect();
    let pings = pings(&mut rig, TICK_MS, 115_000, |_, _| {});
    for slot in slots {
        let mut last_ms = 0;
        let its = pings.iter().filter(|(_, one)| *one == slot);
        for &(at_ms, _) in its.clone() {
            assert!((45_000..=50_000).contains(&(at_ms - last_ms)), "{last_ms} to {at_ms}");
            last_ms = at_ms;
        }
        assert_eq!(its.count(), 2);
    }
    let most = pings.chunk_by(|one, next| one.0 == next.0).map(<[_]>::len).max();
    assert!(most <= Some(26), "pings are spread: {most:?} in one tick");
    assert_eq!(rig.closed, []);
}

/// After a message to all connections, all were due for a ping at the same time, 45 s later: at a
/// million connections that burst delayed every other message by up to two seconds.
#[test]
fn pings_after_a_message_to_everybody_are_spread() {
    let mut rig = rig(45_000, 120_000);
    rig.connect_many("u", CROWD);
    let each = |rig: &mut Rig, later_ms| {
        if later_ms == 1_000 {
            rig.push("u", 10, 0);
        }
    };
    let pings = pings_every(500, &mut rig, 500, 105_000, each);
    let mut last_ms = vec![1_000; CROWD];
    let mut by_round = vec![0; 28];
    for (at_ms, slot) in pings {
        assert!(at_ms - last_ms[slot as usize] <= 50_000, "{slot} is quiet for more than 50 s");
        last_ms[slot as usize] = at_ms;
        by_round[at_ms as usize / 4_000] += 1;
    }
    assert_eq!(by_round[..3], [0; 3], "a quarter of the interval without pings: {by_round:?}");
    // An eighth a round is even: all have their turn within three quarters of the interval.
    assert!(by_round.iter().all(|&pings| pings <= CROWD / 5), "{by_round:?}");
}

/// Spreading pings must not add any where none is due.
#[test]
fn regular_messages_to_everybody_stand_in_for_pings() {
    let mut rig = rig(45_000, 120_000);
    rig.connect_many("u", CROWD);
    let pings = pings_every(500, &mut rig, 500, 130_000, |rig, later_ms| {
        if later_ms % 30_000 == 1_000 {
            rig.push("u", 10, 0);
        }
        if later_ms % 30_000 == 20_000 {
            for slot in 0..CROWD as u32 {
                rig.worker.handle_frame(slot, Message::Pong(b""), NOW + later_ms);
            }
        }
    });
    // After the first one, the second cannot be predicted.
    assert!(pings.iter().all(|&(at_ms, _)| at_ms < 31_000), "{pings:?}");
}

#[test]
fn traffic_in_either_direction_is_as_good_as_a_ping() {
    let mut rig = rig(1_000, 120_000);
    let (listens, speaks, quiet) = (rig.connect("listens"), rig.connect("s"), rig.connect("q"));
    let pings = pings(&mut rig, TICK_MS, 10_000, |rig, later_ms| {
        if later_ms % 800 == 0 {
            rig.push("listens", 10, 0);
            rig.worker.handle_frame(speaks, Message::Pong(b""), NOW + later_ms);
        }
    });
    assert!((7..=10).contains(&pings.len()), "{pings:?}");
    assert!(pings.iter().all(|&(_, slot)| slot == quiet && slot != listens));
}

/// It gets output all the time, yet its peer may be gone.
#[test]
fn who_only_listens_is_pinged_before_it_counts_as_silent() {
    let mut rig = rig(1_000, 8_000);
    let slot = rig.connect("u");
    let pings = pings(&mut rig, TICK_MS, 9_200, |rig, later_ms| {
        if later_ms % 500 == 0 && rig.closed.is_empty() {
            rig.push("u", 10, 0);
        }
    });
    assert!(matches!(pings[..], [(4_000..5_100, _)]), "{pings:?}");
    assert_eq!(rig.closed, [(slot, Some(close::IDLE))]);
}

/// All silent clients got 4002 without a ping after the process had been suspended for 2.6 s.
#[test]
fn time_in_which_the_worker_did_not_run_is_no_silence() {
    let mut rig = rig(45_000, 4_000);
    let slot = rig.connect("u");
    assert_eq!(pings(&mut rig, TICK_MS, 1_900, |_, _| {}), []);
    rig.worker.handle_stall(2_600);
    let pinged = pings(&mut rig, 4_500, 5_500, |_, _| {});
    assert!(matches!(pinged[..], [(4_500..5_200, _)]), "{pinged:?}");
    assert_eq!(rig.closed, []);
    assert_eq!(pings(&mut rig, 5_500, 7_300, |_, _| {}), []);
    assert_eq!(rig.closed, [(slot, Some(close::IDLE))]);
}

/// A proxy's clock does not stop with ours.
#[test]
fn pings_are_due_by_the_clock_of_others_also_after_a_stall() {
    let mut rig = rig(4_000, 1_000_000);
    rig.connect("u");
    rig.worker.handle_stall(30_000);
    assert_eq!(pings(&mut rig, 30_000, 30_200, |_, _| {}).len(), 1);
}

#[test]
fn bytes_that_were_not_read_are_no_silence() {
    let mut rig = rig(45_000, 4_000);
    let slot = rig.connect("u");
    for later_ms in (50..=30_000).step_by(50) {
        rig.worker.handle_tick_with(NOW + later_ms, |_| true);
        rig.flush();
    }
    assert!(rig.worker.is_open(slot));
    // Unless its input is not read because it does not read its output.
    rig.room = 0;
    for _ in 0..60 {
        rig.push("u", 10_000, 0);
        rig.flush();
    }
    for later_ms in (30_050..=36_000).step_by(50) {
        rig.worker.handle_tick_with(NOW + later_ms, |_| true);
        rig.flush();
    }
    assert_eq!(rig.closed, [(slot, Some(close::IDLE))]);
}

/// A late sweep pings first and closes later.
#[test]
fn nobody_is_closed_without_a_ping_before() {
    let mut rig = rig(3_600_000, 4_000);
    let slot = rig.connect("u");
    rig.worker.handle_tick(NOW + 1_000_000);
    assert!(rig.flush().contains(&(slot, PING.to_vec())));
    rig.worker.handle_tick(NOW + 1_001_900);
    assert_eq!((rig.flush(), rig.closed.len()), (Vec::new(), 0));
    rig.worker.handle_tick(NOW + 1_002_500);
    rig.flush();
    assert_eq!(rig.closed, [(slot, Some(close::IDLE))]);
}

/// 18,000 sessions that ended within one second stalled their worker for a third of it.
#[test]
fn many_ends_at_once_come_in_slices() {
    let mut rig = rig(45_000, 120_000);
    let ends_s = NOW_MS / 1_000 + 1;
    let slots: Vec<u32> = (0..200).map(|_| rig.connect_until("u", ends_s)).collect();
    let open = |rig: &Rig| slots.iter().filter(|&&slot| rig.worker.is_open(slot)).count();
    let mut slices = 0;
    while open(&rig) > 0 {
        let before = open(&rig);
        rig.worker.handle_tick(NOW + 1_000);
        slices += 1;
        assert!((1..=100).contains(&(before - open(&rig))), "one slice");
        assert_eq!(rig.worker.is_overdue(), open(&rig) > 0);
        rig.flush();
    }
    assert!(slices > 2 && rig.closed.len() == 200);
}

#[test]
fn a_shutdown_comes_in_slices_and_closes_as_many_as_it_is_told() {
    let mut rig = rig(45_000, 120_000);
    let clients: Vec<u32> = (0..200).map(|_| rig.connect("u")).collect();
    let server = rig.serve();
    assert_eq!((rig.worker.clients(), rig.worker.servers()), (200, 1));
    assert!(!rig.worker.close_clients(200, false, || 1), "none is to be closed");
    assert!(!rig.worker.close_clients(190, false, || 1) && rig.worker.clients() == 190);
    let mut slices = 1;
    while rig.worker.close_clients(0, false, || 1) {
        slices += 1;
        rig.flush();
        assert!(rig.closed.len() <= 100 * slices);
    }
    rig.flush();
    assert!(slices > 2 && clients.iter().all(|&slot| !rig.worker.is_open(slot)));
    assert!(rig.closed.len() == 200 && rig.worker.is_open(server));
    assert!(!rig.worker.close_servers(|| 1));
    rig.flush();
    assert_eq!(rig.closed.last(), Some(&(server, Some(1001))));
}

#[test]
fn many_silent_peers_are_closed_in_slices() {
    let mut rig = rig(3_600_000, 4_000);
    (0..200).for_each(|_| _ = rig.connect("u"));
    for silent_ms in (50..4_000).step_by(50) {
        rig.worker.handle_tick(NOW + silent_ms);
        rig.flush();
    }
    rig.worker.handle_tick(NOW + 60_000);
    rig.flush();
    assert!((1..=100).contains(&rig.closed.len()) && rig.worker.is_overdue());
    while rig.worker.is_overdue() {
        rig.worker.handle_tick(NOW + 60_000);
        rig.flush();
    }
    assert_eq!(rig.closed.len(), 200);
}

/// Unsolicited output may be held; a reply may not, and takes the rest along.
#[test]
fn an_answer_or_a_close_ends_the_wait_of_a_batch() {
    let mut rig = rig(1_000, 120_000);
    let (reader, server) = (rig.connect("reader"), rig.serve());
    let requests = [
        Message::Text(br#"{"type":"heartbeat","id":"1"}"#),
        Message::Ping(b""),
        Message::Text(br#"{"type":"request","id":"1","data":1}"#),
        Message::Close(1_000),
    ];
    let mut now = NOW;
    for request in requests {
        now += 2_000;
        let what = format!("{request:?}");
        rig.worker.handle_tick(now);
        rig.push("reader", 10, 0);
        let node = NodeId::new(2).unwrap();
        rig.worker.handle_worker_event(WorkerEvent::Node { node, is_up: true }, now);
        assert!(rig.worker.may_wait(), "before {what}");
        rig.worker.handle_frame(reader, request, now);
        assert!(!rig.worker.may_wait(), "what {what} asks for waits");
        let sent = rig.flush();
        let to_server = sent.into_iter().filter(|one| one.0 == server).flat_map(|one| one.1);
        let to_server: Vec<u8> = to_server.collect();
        let has = |bytes: &[u8]| to_server.windows(bytes.len()).any(|at| at == bytes);
        assert!(has(&PING) && has(b"node"), "{what} leaves something behind");
        assert!(rig.worker.may_wait(), "after {what}");
    }
    let identity = Identity {
        project: ProjectId(0),
        uid: "guest",
        device: "",
        tags: &[],
        session_exp: 0,
        role: Role::Client,
        ip: None,
    };
    rig.worker.handle_connect(identity, b"", NOW + 10_000);
    assert!(!rig.worker.may_wait(), "a welcome waits");
}

/// `now`, if the wall clock had been set by `step_ms` before.
fn stepped(now: Now, step_ms: i64) -> Now {
    Now { wall: WallMs::new(now.wall.value().saturating_add_signed(step_ms)), ..now }
}

const HOUR_MS: i64 = 3_600_000;

#[test]
fn a_clock_that_is_set_closes_nobody_as_idle() {
    for step_ms in [HOUR_MS, -HOUR_MS] {
        let mut rig = Rig::new(5_000, 1 << 20);
        rig.connect("u");
        rig.worker.handle_tick(NOW + IDLE_MS / 4);
        let now = stepped(NOW + IDLE_MS / 4, step_ms);
        for wait_ms in [0, IDLE_MS / 8, IDLE_MS / 2] {
            rig.worker.handle_tick(now + wait_ms);
            rig.flush();
        }
        assert_eq!(rig.closed, [], "step {step_ms}");
        rig.worker.handle_tick(now + IDLE_MS);
        rig.flush();
        assert_eq!(rig.closed.len(), 1, "step {step_ms}");
    }
}

#[test]
fn a_clock_that_is_set_ends_no_request_early_or_late() {
    for step_ms in [HOUR_MS, -HOUR_MS] {
        let mut rig = rig(45_000, 120_000);
        let (client, _server) = (rig.connect("u"), rig.serve());
        let request = Message::Text(br#"{"type":"request","id":"r","data":1}"#);
        rig.worker.handle_frame(client, request, NOW);
        let now = stepped(NOW, step_ms);
        // The server's worker remembers it for a second longer.
        for (later_ms, waiting, asked) in [(9_999, 1, 1), (10_000, 0, 1), (11_000, 0, 0)] {
            rig.worker.handle_tick(now + later_ms);
            rig.flush();
            let left = PendingRequests { waiting, asked, unwritten: 0 };
            assert_eq!(rig.worker.pending_requests(), left, "step {step_ms}, {later_ms} ms");
        }
    }
}

#[test]
fn a_clock_that_is_set_changes_no_age_of_a_key() {
    let key = [7; 16];
    for step_ms in [HOUR_MS, -HOUR_MS] {
        let mut rig = rig(45_000, 120_000);
        let slot = rig.connect("u");
        let now = stepped(NOW, step_ms);
        for (now, count) in
            [(NOW, 1), (now, 0), (now + (REMEMBER_MS - 1), 0), (now + REMEMBER_MS, 1)]
        {
            rig.push_with("u", 10, 0, Some(&key), now);
            assert_eq!(rig.text_to(slot).matches("push").count(), count, "step {step_ms}");
        }
    }
}

/// When the clock was set back by an hour, nothing was unsubscribed from for an hour.
#[test]
fn a_clock_that_is_set_changes_no_minute_of_a_subscription() {
    for step_ms in [HOUR_MS, -HOUR_MS] {
        let queue_needs =
            QueueNeeds { routing: Routing::Project, announces_users: false, user_keys: (1, 2) };
        let mut rig = Rig::with(1 << 20, 1 << 30, |config| config.queue_needs = Some(queue_needs));
        let interest = Interest::Project(ProjectId(0));
        assert_eq!(rig.worker.admit(&client("u", 0)), Admission::After(interest.clone()));
        rig.worker.handle_ready(&interest);
        let slot = rig.connect("u");
        rig.worker.take_broker_requests();
        rig.worker.handle_tick(NOW);
        rig.worker.handle_disconnect(slot);
        rig.flush();
        let now = stepped(NOW, step_ms);
        for later_ms in [0, 59_999] {
            rig.worker.handle_tick(now + later_ms);
            assert_eq!(rig.worker.take_broker_requests(), [], "step {step_ms}, {later_ms} ms");
        }
        rig.worker.handle_tick(now + 60_000);
        let requests = rig.worker.take_broker_requests();
        assert_eq!(requests, [BrokerRequest::Leave(interest)], "step {step_ms}");
    }
}

/// What others gave as a time ends at that time.
#[test]
fn sessions_and_messages_end_by_the_clock_that_is_set() {
    let mut rig = rig(45_000, 120_000);
    let slot = rig.connect_until("u", (NOW_MS + HOUR_MS as u64) / 1_000);
    rig.push_with("u", 10, 1_000, None, stepped(NOW, HOUR_MS));
    assert_eq!((rig.text_to(slot), rig.drops(Drop::Expired)), (String::new(), 1));
    rig.worker.handle_tick(NOW + 1);
    rig.flush();
    assert_eq!(rig.closed, []);
    rig.worker.handle_tick(stepped(NOW + 2, HOUR_MS));
    rig.flush();
    assert_eq!(rig.closed, [(slot, Some(close::SESSION_EXPIRED))]);
}
