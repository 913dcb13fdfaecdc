//! What the outbox budget counts while a batch that shares its frames is open.

use super::*;

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
    let pending = rig.worker.outbox(slow, NOW_MS).unwrap().pending_bytes();
    assert!(!rig.worker.handle_outbox_written(slow, pending));
    rig.worker.check();
    assert_eq!(rig.worker.counters().outbox_bytes.value(), 0);
    rig.flush();
}

/// The budget needs room in the turn in which the largest outbox got its frame: that one goes, and
/// nobody else pays for bytes that the batch still has.
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
