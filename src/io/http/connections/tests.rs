use super::*;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

/// Adds connections; returns their keys, and both ends of each.
fn open(max_bytes: usize, count: usize) -> (Connections, Vec<usize>, Vec<UnixStream>) {
    let mut all = Connections::new(max_bytes);
    let ends: Vec<UnixStream> =
        (0..count).map(|_| UnixStream::pair().unwrap()).flat_map(|(a, b)| [a, b]).collect();
    // SAFETY: the tests keep both ends open for as long as the connections are listed.
    let keys = ends.chunks(2).map(|pair| unsafe { all.add(pair[0].as_fd()) }).collect();
    (all, keys, ends)
}

#[test]
fn who_has_waited_longest_makes_way_and_who_is_known_comes_last() {
    let (mut all, keys, _ends) = open(0, 4);
    assert_eq!(all.make_room(5), Room::Now);
    assert!(keys.iter().all(|&key| all.ending(key).is_none()));
    for &key in &keys[..2] {
        all.set_busy(key);
    }
    all.set_known(keys[1]);
    all.set_waiting(keys[1], false);
    let ended = |all: &Connections| {
        let is_ended = |&&key: &&usize| all.ending(key) == Some(Ending::Place);
        keys.iter().filter(is_ended).copied().collect::<Vec<_>>()
    };
    assert_eq!(all.make_room(4), Room::Now);
    assert_eq!(ended(&all), [keys[2]]);
    assert_eq!(all.make_room(3), Room::Now);
    assert_eq!(ended(&all), [keys[2], keys[3]]);
    assert_eq!(all.make_room(2), Room::Now);
    assert_eq!(ended(&all), keys[1..]);
    // Only one with a request in progress is left.
    assert_eq!(all.make_room(1), Room::None);
    all.remove(keys[3]);
    assert_eq!((all.make_room(2), all.make_room(1)), (Room::Now, Room::None));
}

#[test]
fn who_does_not_read_its_answer_makes_way_too() {
    let (mut all, keys, ends) = open(0, 2);
    keys.iter().for_each(|&key| all.set_busy(key));
    assert_eq!(all.make_room(2), Room::None);
    all.set_writing(keys[1], MonotonicMs::new(9));
    assert!(!all.is_quiet(MonotonicMs::new(9)), "a drain waits for it");
    all.set_written(keys[1]);
    assert_eq!(all.make_room(2), Room::None);
    all.set_writing(keys[1], MonotonicMs::new(9));
    assert_eq!(all.make_room(2), Room::Now);
    assert_eq!(all.ending(keys[1]), Some(Ending::Place));
    // What is being sent to it ends as well.
    assert!(sys::send(&ends[2], b"answer").is_err());
}

/// One that read nothing kept a node from ending for `--drain_ms`.
#[test]
fn a_drain_does_not_wait_long_for_who_does_not_read_its_answer() {
    let (mut all, keys, _ends) = open(0, 2);
    keys.iter().for_each(|&key| all.set_busy(key));
    all.set_writing(keys[1], MonotonicMs::new(10_000));
    all.begin_drain(MonotonicMs::new(0), 6_000, MonotonicMs::new(2_000));
    all.handle_tick(MonotonicMs::new(1_999));
    assert_eq!(all.ending(keys[1]), None);
    all.handle_tick(MonotonicMs::new(2_000));
    assert_eq!((all.ending(keys[0]), all.ending(keys[1])), (None, Some(Ending::Late)));
}

#[test]
fn a_drain_closes_idle_connections_one_after_the_other() {
    let (mut all, keys, _ends) = open(0, 12);
    // The last two have not had a request, or have begun their next one.
    keys[..11].iter().for_each(|&key| all.set_busy(key));
    keys[..10].iter().for_each(|&key| all.set_waiting(key, true));
    all.set_waiting(keys[10], false);
    all.begin_drain(MonotonicMs::new(1_000), 6_000, MonotonicMs::new(9_000));
    let ended = |all: &Connections| {
        keys.iter().filter(|&&key| all.ending(key) == Some(Ending::Drained)).count()
    };
    assert_eq!((ended(&all), all.is_quiet(MonotonicMs::new(8_000))), (0, false));
    all.handle_tick(MonotonicMs::new(1_050));
    assert_eq!((ended(&all), all.is_quiet(MonotonicMs::new(8_000))), (5, false));
    // One gets a request at the last moment, another one just before.
    all.revive(keys[0]);
    assert_eq!((ended(&all), all.ask(keys[0], BUFFER_BYTES)), (4, Grant::Granted));
    all.set_busy(keys[9]);
    all.handle_tick(MonotonicMs::new(1_090));
    assert_eq!((ended(&all), all.is_quiet(MonotonicMs::new(8_000))), (8, true));
    all.handle_tick(MonotonicMs::new(7_000));
    assert_eq!((ended(&all), all.ending(keys[9])), (8, None));
}

/// One was accepted just before, and its request came to a socket that was closed.
#[test]
fn a_drain_waits_a_moment_for_a_first_request() {
    let (mut all, keys, _ends) = open(0, 2);
    all.begin_drain(MonotonicMs::new(1_000), 6_000, MonotonicMs::new(9_000));
    assert!(!all.is_quiet(MonotonicMs::new(1_000)));
    all.set_busy(keys[0]);
    assert!(!all.is_quiet(MonotonicMs::new(1_000)), "it is not answered");
    all.set_writing(keys[0], MonotonicMs::new(9_000));
    all.set_written(keys[0]);
    assert!(!all.is_quiet(MonotonicMs::new(1_000)), "the other one is still silent");
    assert!(all.is_quiet(MonotonicMs::new(1_000 + NEWCOMER_MS)));
    all.remove(keys[1]);
    assert!(all.is_quiet(MonotonicMs::new(1_000)));
}

#[test]
fn many_idle_connections_have_the_whole_time_of_a_drain() {
    let (mut all, keys, _ends) = open(0, 300);
    keys.iter().for_each(|&key| all.set_busy(key));
    keys.iter().for_each(|&key| all.set_waiting(key, true));
    all.begin_drain(MonotonicMs::new(0), 1_000, MonotonicMs::new(9_000));
    for (at_ms, expected) in [(0, 0), (100, 30), (500, 150), (990, 297), (1_000, 300)] {
        (0..=at_ms).step_by(10).for_each(|ms| all.handle_tick(MonotonicMs::new(ms)));
        let ended = keys.iter().filter(|&&key| all.ending(key).is_some()).count();
        assert_eq!(ended, expected, "at {at_ms} ms");
    }
    assert!(all.is_quiet(MonotonicMs::new(8_000)));
}

#[test]
fn who_comes_while_others_leave_waits_for_that() {
    let (mut all, keys, _ends) = open(0, MAX_LEAVING + 1);
    assert_eq!((all.make_room(1), all.make_room(2)), (Room::Soon, Room::Now));
    all.remove(keys[0]);
    assert_eq!(all.make_room(1), Room::Now);
}

#[test]
fn memory_is_for_those_whose_requests_arrive() {
    let (mut all, keys, _ends) = open(100, 4);
    let with = |bytes: usize| BUFFER_BYTES + bytes;
    let age = |all: &mut Connections, key: usize| {
        all.table[key].body_since = Instant::now().checked_sub(BODY_PATIENCE).unwrap();
    };
    assert_eq!(all.ask(keys[0], BUFFER_BYTES), Grant::Granted);
    assert_eq!(all.ask(keys[0], with(60)), Grant::Granted);
    assert_eq!(all.ask(keys[1], with(40)), Grant::Granted);
    assert_eq!(all.body_bytes(), 100);
    // Both have begun just now.
    assert!(!all.ask_for_spare(keys[2], with(1)));
    // The one that has held memory for long gives it back; others wait for that and end no
    // further one.
    age(&mut all, keys[0]);
    assert_eq!(all.ask(keys[2], with(30)), Grant::Wait);
    age(&mut all, keys[1]);
    assert_eq!(all.ask(keys[3], with(30)), Grant::Wait);
    assert_eq!(all.ending(keys[0]), Some(Ending::Memory));
    assert_eq!(all.ending(keys[1]), None);
    assert_eq!(all.ask(keys[0], with(61)), Grant::Refused);
    all.remove(keys[0]);
    assert_eq!(all.ask(keys[2], with(30)), Grant::Granted);
    assert_eq!(all.ask(keys[3], with(30)), Grant::Granted);
    // A complete request keeps its memory, however long its answer takes.
    all.set_busy(keys[1]);
    assert_eq!(all.ask(keys[2], with(31)), Grant::Refused);
    keys[1..].iter().for_each(|&key| all.remove(key));
    assert_eq!((all.body_bytes(), all.ending_bytes, all.count()), (0, 0, 0));
    assert_eq!((all.promised_bytes, all.freed_bytes()), (0, 160));
}

/// Each used to be refused for the memory of others that had been refused a moment before, so
/// none made progress.
#[test]
fn of_requests_that_grow_in_step_as_many_go_on_as_there_is_memory_for() {
    let (mut all, keys, _ends) = open(800, 9);
    let (&late, keys) = keys.split_last().unwrap();
    let with = |bytes: usize| BUFFER_BYTES + bytes;
    assert!(keys.iter().all(|&key| all.ask(key, with(100)) == Grant::Granted));
    let mut grants: Vec<Grant> = keys.iter().map(|&key| all.ask(key, with(200))).collect();
    assert_eq!(grants.iter().filter(|&&grant| grant == Grant::Wait).count(), 4);
    // Promised memory is not given to others.
    all.release(keys[0]);
    assert_eq!(grants[0], Grant::Refused);
    assert!(!all.ask_for_spare(late, with(1)));
    for (&key, _) in keys.iter().zip(&grants).filter(|(_, grant)| **grant == Grant::Refused) {
        all.release(key);
    }
    for (&key, grant) in keys.iter().zip(&mut grants).filter(|(_, one)| **one == Grant::Wait) {
        *grant = all.ask(key, with(200));
    }
    assert_eq!(grants.iter().filter(|&&grant| grant == Grant::Granted).count(), 4);
    assert_eq!((all.body_bytes(), all.promised_bytes, all.ending_bytes), (800, 0, 0));
}

/// Every tick used to walk over all connections.
#[test]
fn a_tick_costs_nothing_for_connections_that_are_not_due() {
    const COUNT: usize = 200;
    let at = MonotonicMs::new;
    let (mut all, keys, _ends) = open(0, COUNT);
    for &key in &keys {
        all.set_deadline(key, at(10_000), Shutdown::Read);
    }
    let (&late, others) = keys.split_first().unwrap();
    for &key in others {
        // A request, its answer, and the wait for the next one.
        all.set_busy(key);
        all.set_writing(key, at(11_000));
        all.set_written(key);
        all.set_waiting(key, false);
        all.set_deadline(key, at(600_000), Shutdown::Read);
    }
    assert_eq!((all.check_deadlines(at(9_999)), all.agenda.len()), (0, COUNT));
    // Once for all: the deadlines that the agenda has of them have been moved.
    assert_eq!(all.check_deadlines(at(10_000)), COUNT);
    assert_eq!(all.ending(late), Some(Ending::Late));
    assert!(others.iter().all(|&key| all.ending(key).is_none()));
    for now_ms in (10_000..600_000).step_by(50) {
        assert_eq!(all.check_deadlines(at(now_ms)), 0);
        assert_eq!(all.is_calm(at(now_ms), 250), now_ms < 600_000 - 250);
    }
    // A deadline that comes nearer is kept.
    all.set_deadline(others[0], at(20_000), Shutdown::Read);
    assert!(!all.is_calm(at(19_750), 250));
    assert_eq!(all.check_deadlines(at(20_000)), 1);
    assert_eq!(all.ending(others[0]), Some(Ending::Late));
    // Those that are late together are ended in slices.
    let mut ended = 1;
    while all.check_deadlines(at(600_000)) > 0 {
        let is_late = |&&key: &&usize| all.ending(key) == Some(Ending::Late);
        let before = std::mem::replace(&mut ended, others.iter().filter(is_late).count());
        assert!(ended - before <= ENDS_PER_TICK);
    }
    assert_eq!((ended, all.agenda.len()), (others.len(), 0));
    keys.iter().for_each(|&key| all.remove(key));
    assert!(all.agenda.is_empty() && all.is_quiet(MonotonicMs::new(8_000)));
}

/// The deadline of a request that arrives in pieces is set again with each: it used to lose
/// what a stall had added.
#[test]
fn a_stall_moves_a_deadline_that_is_set_again_too() {
    let (mut all, keys, _ends) = open(0, 1);
    let at = MonotonicMs::new;
    let deadline = all.awake_at(at(1_000)) + 100;
    all.set_deadline(keys[0], deadline, Shutdown::Read);
    all.handle_stall(5_000);
    all.set_written(keys[0]);
    all.set_deadline(keys[0], deadline, Shutdown::Read);
    all.handle_tick(at(6_099));
    assert_eq!(all.ending(keys[0]), None);
    all.handle_tick(at(6_100));
    assert_eq!(all.ending(keys[0]), Some(Ending::Late));
}
