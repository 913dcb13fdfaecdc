//! The outbox budget while a batch that shares its frames is open.

use super::*;
use crate::state::subscriptions::{Relay, Server};
use crate::wire::parcel::{Events, Parcel};

/// The open batch kept the frame in the count after the last outbox had written it.
#[test]
fn a_shared_frame_counts_only_while_an_outbox_holds_it() {
    let mut rig = Rig::new(1 << 20, 1 << 20);
    let slow = rig.connect("slow");
    rig.room = 0;
    rig.push("slow", 100, 0);
    rig.flush();
    rig.push("slow", 20_000, 0);
    rig.worker.check();
    let pending = rig.worker.outbox(slow, NOW.wall).unwrap().pending_bytes();
    assert!(!rig.worker.handle_outbox_written(slow, pending));
    rig.worker.check();
    assert_eq!(rig.worker.counters().outbox_bytes.value(), 0);
    rig.flush();
}

/// The budget needs room in the turn in which the largest outbox got its frame: that one is
/// dropped, and no other connection pays for bytes that the batch still holds.
#[test]
fn the_largest_outbox_gives_its_room_back_at_once() {
    let mut rig = Rig::new(1 << 20, 100_000);
    let slots = ["a", "b", "c"].map(|uid| rig.connect(uid));
    rig.room = 0;
    for uid in ["a", "b", "c"] {
        rig.push(uid, 5_000, 0);
    }
    rig.flush();
    rig.push("b", 70_000, 0);
    rig.push("c", 50_000, 0);
    rig.flush();
    assert_eq!(rig.closed, [(slots[1], Some(close::SLOW_CONSUMER))]);
    assert!(rig.worker.is_open(slots[0]) && rig.worker.is_open(slots[2]));
}

/// A connection whose memory was taken while business servers received its event: to the second of
/// them it subscribed after it was gone.
#[test]
fn each_business_server_hears_one_thing_after_the_other() {
    let mut rig = Rig::new(1 << 20, 1 << 20);
    let servers = [rig.serve(), rig.serve()];
    let slow = rig.connect("slow");
    servers.iter().for_each(|&server| _ = rig.types_to(server));
    rig.room = 0;
    rig.push("slow", 10_000, 0);
    rig.flush();
    rig.worker.handle_frame(servers[0], Message::Text(br#"{"type":"heartbeat"}"#), NOW);
    rig.flush();
    let held_bytes = rig.worker.counters().outbox_bytes.value() as usize;
    Arc::make_mut(&mut rig.worker.config.settings).memory.worker_outbox_bytes = held_bytes + 10;
    rig.worker.handle_frame(slow, Message::Text(br#"{"type":"subscribe","tags":"a"}"#), NOW);
    assert!(!rig.worker.is_open(slow));
    rig.room = usize::MAX;
    for server in servers.into_iter().rev() {
        let types = rig.types_to(server);
        assert_eq!(&types[types.len() - 2..], ["subscribe", "disconnect"]);
        rig.worker.handle_frame(server, Message::Text(br#"{"type":"heartbeat"}"#), NOW);
    }
}

impl Rig {
    /// Connects a business server that must receive the next event and has no room for it: the
    /// connection that holds the most is closed.
    fn serve_without_room(&mut self) {
        let server = self.serve();
        let known = WorkerEvent::ServerKnown(self.worker.cid(server).unwrap());
        self.worker.handle_worker_event(known, NOW);
        self.room = 0;
        self.worker.handle_frame(server, Message::Text(br#"{"type":"heartbeat"}"#), NOW);
        self.flush();
        let held_bytes = self.worker.counters().outbox_bytes.value() as usize;
        Arc::make_mut(&mut self.worker.config.settings).memory.worker_outbox_bytes =
            held_bytes + 10;
    }
}

/// A client's memory was taken while this worker's business servers received its subscribe event:
/// those of other workers and nodes received its disconnect first, and then the subscribe.
#[test]
fn business_servers_elsewhere_hear_of_an_end_last() {
    let mut rig = Rig::new(1 << 20, 1 << 20);
    let mut other =
        Rig::with(1 << 20, 1 << 20, |config| settings(config).node = NodeId::new(2).unwrap());
    let far = other.serve();
    let (cid, events) = (other.worker.cid(far).unwrap(), EventSet::ALL);
    let here = Server { cid, project: ProjectId(0), events };
    rig.worker.handle_worker_event(WorkerEvent::ServerHere(here), NOW);
    let slow = rig.connect("slow");
    rig.room = 0;
    rig.push("slow", 10_000, 0);
    rig.flush();
    rig.serve_without_room();
    rig.relays();
    rig.worker.handle_frame(slow, Message::Text(br#"{"type":"subscribe","tags":"a"}"#), NOW);
    assert!(!rig.worker.is_open(slow));
    let relays = rig.relays();
    let [Relay { parcel, .. }] = &relays[..] else { panic!("all events in one parcel") };
    let Ok(Parcel::Events(Events { list, .. })) = Parcel::decode(parcel) else { panic!() };
    let kinds: Vec<EventSet> = list.into_iter().map(|event| event.unwrap().0).collect();
    assert_eq!(kinds, [EventSet::SUBSCRIBE, EventSet::DISCONNECT]);
}

/// The second connection of a user ended while business servers received the disconnect of the
/// first: each found the other in the directory, and the broker was never notified that the user is
/// gone.
#[test]
fn a_user_whose_connections_end_together_is_gone() {
    let queue_needs =
        QueueNeeds { routing: Routing::Project, announces_users: true, user_keys: (1, 2) };
    let mut rig = Rig::with(1 << 20, 1 << 20, |config| config.queue_needs = Some(queue_needs));
    let (first, second) = (rig.connect("u"), rig.connect("u"));
    rig.room = 0;
    rig.push("u", 10_000, 0);
    rig.flush();
    let pending = rig.worker.outbox(first, NOW.wall).unwrap().pending_bytes();
    rig.worker.handle_outbox_written(first, pending);
    rig.serve_without_room();
    rig.worker.take_broker_requests();
    rig.worker.handle_disconnect(first);
    assert!(!rig.worker.is_open(second));
    let requests = rig.worker.take_broker_requests();
    assert_eq!(
        requests.iter().filter(|request| matches!(request, BrokerRequest::UserGone(_))).count(),
        1,
        "{requests:?}"
    );
}

/// Room was made for the bytes of a frame, not for what storing them allocates: a worker exceeded
/// its budget by a part of each outbox.
#[test]
fn what_keeping_a_frame_allocates_is_within_the_budget() {
    let budget = 300_000;
    let mut rig = Rig::new(1 << 20, budget);
    (0..8).for_each(|number| _ = rig.connect(&number.to_string()));
    rig.room = 0;
    for (number, bytes) in (0..2_000).zip([40, 700, 3_000, 10_000].into_iter().cycle()) {
        rig.push(&(number % 8).to_string(), bytes, 0);
        if number % 3 == 0 {
            rig.flush();
        }
        let held_bytes = rig.worker.counters().outbox_bytes.value() as usize;
        assert!(held_bytes <= budget, "{held_bytes}");
    }
    assert!(rig.worker.counters().sheds(Shed::Worker) > 0);
}

/// Every client too slow for a push was closed in the turn of that push.
#[test]
fn many_that_are_too_slow_are_closed_in_slices_and_give_their_memory_back_at_once() {
    let mut rig = Rig::new(5_000, 1 << 30);
    let slots: Vec<u32> = (0..100).map(|_| rig.connect("u")).collect();
    rig.room = 1;
    for _ in 0..5 {
        rig.push("u", 1_000, 0);
        rig.flush();
    }
    assert!(rig.closed.is_empty());
    let held_bytes = rig.worker.counters().outbox_bytes.value();
    (0..2).for_each(|_| rig.push("u", 1_000, 0));
    let freed_bytes = rig.worker.counters().outbox_bytes.value();
    assert!(freed_bytes * 3 < held_bytes, "{freed_bytes} of {held_bytes}");
    rig.flush();
    assert!((1..=64).contains(&rig.closed.len()) && rig.worker.is_overdue());
    // A waiting connection reads the rest of its output, gets no more, and its input is ignored.
    let waits = *slots.iter().find(|&&slot| rig.worker.is_open(slot)).unwrap();
    let pending = rig.worker.outbox(waits, NOW.wall).unwrap().pending_bytes();
    assert!(rig.worker.handle_outbox_written(waits, pending) && !rig.worker.wants_input(waits));
    rig.push("u", 1_000, 0);
    assert!(!rig.worker.handle_frame(waits, Message::Ping(b""), NOW));
    assert!(rig.flush().iter().all(|sent| sent.0 != waits));
    assert!(rig.worker.outbox(waits, NOW.wall).unwrap().is_empty());
    // Another one disconnects, and its slot gets a new owner.
    let goes = *slots.iter().rev().find(|&&slot| rig.worker.is_open(slot)).unwrap();
    rig.worker.handle_disconnect(goes);
    rig.flush();
    rig.room = usize::MAX;
    let fresh: Vec<u32> = (0..rig.closed.len()).map(|_| rig.connect("fresh")).collect();
    assert!(fresh.contains(&goes));
    while rig.worker.is_overdue() {
        rig.worker.handle_tick(NOW);
        rig.flush();
    }
    assert!(rig.closed.contains(&(waits, Some(close::SLOW_CONSUMER))));
    assert_eq!((rig.closed.len(), rig.worker.connections()), (100, fresh.len()));
    assert!(fresh.iter().all(|&slot| rig.worker.is_open(slot)));
    assert_eq!(rig.worker.counters().sheds(Shed::Connection), 100);
    let (delivered, dropped) =
        (rig.worker.counters().deliveries.value(), rig.drops(Drop::SlowConsumer));
    // The sixth push was one too many for all; the next two matched those still waiting.
    let matched = 6 * 100 + 2 * (100 - 64);
    assert_eq!(delivered + dropped + rig.drops(Drop::Disconnected), matched);
    rig.worker.check();
}
