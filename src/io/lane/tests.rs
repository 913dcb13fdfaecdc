//! The order in which waiting items are sent.

use super::*;

/// A text; each of its bytes counts.
impl Load for Arc<str> {
    fn bytes(&self) -> usize {
        self.len()
    }
}

const ENTRIES: usize = 4;
const A: ProjectId = ProjectId(0);
const B: ProjectId = ProjectId(1);

/// One thread's lanes to others.
fn lanes(readers: usize) -> (Lanes<Arc<str>>, Vec<Inbox<Arc<str>>>) {
    let entrances: Vec<_> = (0..readers).map(|_| Entrance::new().unwrap()).collect();
    (Lanes::new(0, ENTRIES, &entrances), entrances.into_iter().map(Inbox::new).collect())
}

/// Reads everything while the sender looks for room after each item.
fn read(lanes: &mut Lanes<Arc<str>>, inbox: &mut Inbox<Arc<str>>) -> Vec<String> {
    let mut items = Vec::new();
    while let Some(item) = inbox.receive() {
        items.push(item.to_string());
        lanes.flush();
    }
    items
}

fn relay(lanes: &mut Lanes<Arc<str>>, project: ProjectId, items: &[&str]) {
    for &item in items {
        lanes.relay(0, project, item.into()).unwrap();
    }
}

#[test]
fn answers_go_first_notices_in_order_and_parcels_in_turn() {
    let (mut lanes, mut inboxes) = lanes(1);
    relay(&mut lanes, A, &["a1", "a2", "a3", "a4", "a5"]);
    relay(&mut lanes, B, &["b1", "b2"]);
    lanes.notify(0, "a is gone".into(), true);
    lanes.notify(0, "c is here".into(), false);
    relay(&mut lanes, A, &["a6"]);
    for answer in ["1", "2", "3"] {
        lanes.answer(0, answer.into());
    }
    assert!(lanes.has_late_answers(0) && !lanes.has_room(0), "nothing overtakes an answer");
    let items = read(&mut lanes, &mut inboxes[0]);
    let expected = "a1 a2 1 2 3 a3 b1 a4 b2 a5 a is gone c is here a6";
    assert_eq!(items.join(" "), expected);
    assert!(!lanes.has_late() && lanes.waiting_bytes() == 0 && inboxes[0].is_empty());
    assert_eq!(inboxes[0].bell().waiting_bytes(), 0);
}

/// The announcement of a new server used to wait for all requests of other projects.
#[test]
fn a_notice_that_ends_nothing_does_not_wait_for_parcels() {
    let (mut lanes, mut inboxes) = lanes(1);
    relay(&mut lanes, A, &["a1", "a2", "a3", "a4", "a5"]);
    lanes.notify(0, "b is here".into(), false);
    let items = read(&mut lanes, &mut inboxes[0]);
    assert_eq!(items.join(" "), "a1 a2 b is here a3 a4 a5");
}

#[test]
fn a_parcel_that_waits_for_several_readers_counts_once_until_the_last_has_it() {
    let (mut lanes, mut inboxes) = lanes(3);
    let item: Arc<str> = "x".repeat(1_000).into();
    let relay = |lanes: &mut Lanes<Arc<str>>, to| {
        assert_eq!(lanes.relay_to_all(to, A, item.len(), || Arc::clone(&item)), 0);
    };
    for _ in 0..ENTRIES / 2 {
        relay(&mut lanes, 0b011);
    }
    relay(&mut lanes, 0b111);
    assert_eq!(inboxes[2].receive().unwrap().len(), 1_000, "it does not wait for the others");
    assert_eq!(lanes.waiting_bytes(), 1_000 + 2 * PARCEL_OVERHEAD_BYTES);
    assert_eq!(read(&mut lanes, &mut inboxes[0]).len(), ENTRIES / 2 + 1);
    assert_eq!(lanes.waiting_bytes(), 1_000 + 2 * PARCEL_OVERHEAD_BYTES);
    assert_eq!(read(&mut lanes, &mut inboxes[1]).len(), ENTRIES / 2 + 1);
    assert_eq!((lanes.waiting_bytes(), lanes.has_late()), (0, false));
}

#[test]
fn a_reader_hears_all_senders_and_knows_who_they_are() {
    let entrance: Arc<Entrance<Arc<str>>> = Entrance::new().unwrap();
    let mut inbox = Inbox::new(Arc::clone(&entrance));
    let mut senders: Vec<_> =
        (0..3).map(|from| Lanes::new(from, ENTRIES, std::slice::from_ref(&entrance))).collect();
    assert!(inbox.is_empty() && inbox.receive().is_none());
    for (from, item) in [(2, "from 2"), (0, "from 0"), (2, "again from 2")] {
        senders[from].send(0, item.into()).unwrap();
    }
    assert_eq!((inbox.is_empty(), senders[1].rings(), senders[2].rings()), (false, 0, 1));
    let mut heard = Vec::new();
    inbox.receive_all(|from, item| heard.push((from, item.to_string())));
    let expected = [(2, "from 2"), (2, "again from 2"), (0, "from 0")];
    assert_eq!(heard, expected.map(|(from, item)| (from, item.to_owned())));
    assert_eq!((inbox.rings(), inbox.bell().waiting_bytes()), (2, 0));
}
