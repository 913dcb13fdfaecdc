use super::*;
use proptest::collection::vec;
use proptest::prelude::*;
use std::collections::HashMap;

fn ms(ms: u64) -> MonotonicMs {
    MonotonicMs::new(ms)
}

const KEYS: (u64, u64) = (1, 2);

fn repeated(sequences: &mut OutgoingSequences, now_ms: u64) -> Vec<(String, u64)> {
    let mut found = Vec::new();
    sequences.repeat_tails(ms(now_ms), |name, seq| {
        found.push((String::from_utf8(name.to_vec()).unwrap(), seq));
    });
    found.sort();
    found
}

fn node(number: u16) -> NodeId {
    NodeId::new(number).unwrap()
}

#[test]
fn numbers_rise_by_one_and_a_refused_one_is_given_again() {
    let mut sequences = OutgoingSequences::new(KEYS);
    assert_eq!([sequences.next(b"a", ms(0)), sequences.next(b"a", ms(0))], [1, 2]);
    assert_eq!(sequences.next(b"b", ms(0)), 1);
    sequences.roll_back(b"a", 2);
    assert_eq!(sequences.next(b"a", ms(0)), 2);
    sequences.roll_back(b"a", 1); // not the latest
    sequences.roll_back(b"a", 3); // never given out
    sequences.roll_back(b"c", 1); // not known
    assert_eq!(sequences.next(b"a", ms(0)), 3);
    sequences.roll_back(b"b", 1);
    sequences.roll_back(b"b", 0);
    assert_eq!(sequences.next(b"b", ms(0)), 1);
    assert_eq!(sequences.len(), 2);
}

/// Receivers took the next message with this number for one that they had missed.
#[test]
fn a_number_that_was_repeated_is_not_given_again() {
    let mut sequences = OutgoingSequences::new(KEYS);
    assert_eq!([sequences.next(b"a", ms(0)), sequences.next(b"a", ms(0))], [1, 2]);
    sequences.handle_reconnect(ms(10));
    assert_eq!(repeated(&mut sequences, 10), [("a".to_string(), 2)]);
    sequences.roll_back(b"a", 2);
    assert_eq!(sequences.next(b"a", ms(10)), 3);
    sequences.roll_back(b"a", 3);
    assert_eq!(sequences.next(b"a", ms(10)), 3);
}

#[test]
fn tails_are_repeated_for_a_minute() {
    let mut sequences = OutgoingSequences::new(KEYS);
    let last = |seq| vec![("a".to_string(), seq)];
    sequences.next(b"a", ms(1_000));
    sequences.next(b"refused", ms(1_000));
    sequences.roll_back(b"refused", 1);
    assert_eq!(repeated(&mut sequences, 3_999), []);
    assert_eq!(repeated(&mut sequences, 4_000), last(1));
    assert_eq!(repeated(&mut sequences, 4_000), []);
    sequences.next(b"a", ms(6_999));
    assert_eq!(repeated(&mut sequences, 7_000), []);
    assert_eq!(repeated(&mut sequences, 9_998), []);
    let times: Vec<u64> =
        (7_000..100_000).filter(|&now| repeated(&mut sequences, now) == last(2)).collect();
    assert_eq!(times, (1..=20).map(|n| 6_999 + n * 3_000).collect::<Vec<_>>());
    assert!(sequences.tails.is_empty());
    sequences.next(b"a", ms(100_000));
    assert_eq!(repeated(&mut sequences, 111_000), last(3)); // late: once
    assert_eq!(repeated(&mut sequences, 111_999), []);
    assert_eq!(repeated(&mut sequences, 112_000), last(3));
    assert_eq!(repeated(&mut sequences, 900_000), last(3)); // and later than its time
    assert_eq!(repeated(&mut sequences, 903_000), []);
}

#[test]
fn a_reconnect_repeats_every_tail() {
    let mut sequences = OutgoingSequences::new(KEYS);
    sequences.next(b"a", ms(0));
    sequences.next(b"b", ms(500_000));
    repeated(&mut sequences, 600_000);
    sequences.handle_reconnect(ms(600_000));
    let both = [("a".to_string(), 1), ("b".to_string(), 1)];
    let times: Vec<u64> =
        (600_000..700_000).filter(|&now| repeated(&mut sequences, now) == both).collect();
    assert_eq!(times, (0..=20).map(|n| 600_000 + n * 3_000).collect::<Vec<_>>());
    // The last message of a is too old for another minute of repeats, that of b is not.
    sequences.handle_reconnect(ms(FORGET_MS));
    assert_eq!(repeated(&mut sequences, FORGET_MS), both[1..]);
    repeated(&mut sequences, 600_000 + FORGET_MS);
    assert_eq!(sequences.len(), 1);
}

/// With a channel for each user, all tails were repeated in one go, ahead of every push.
#[test]
fn many_tails_are_repeated_a_thousand_at_a_time() {
    let mut sequences = OutgoingSequences::new(KEYS);
    for channel in 0..2_500 {
        sequences.next(format!("{channel}").as_bytes(), ms(0));
    }
    sequences.handle_reconnect(ms(50));
    let mut seen = HashMap::new();
    for (now_ms, count) in [(50, 1_000), (100, 1_000), (150, 500), (200, 0)] {
        let some = repeated(&mut sequences, now_ms);
        assert_eq!(some.len(), count);
        some.into_iter().for_each(|(name, _)| *seen.entry(name).or_insert(0) += 1);
    }
    assert_eq!((seen.len(), seen.values().max()), (2_500, Some(&1)));
    // They are repeated also after a long time without a call.
    let mut now_ms = 3 * FORGET_MS;
    while !sequences.is_empty() {
        assert!(repeated(&mut sequences, now_ms).len() <= 1_000);
        now_ms += 60_000;
        assert!(now_ms < 6 * FORGET_MS);
    }
}

#[test]
fn idle_channels_are_forgotten_and_come_back_above_all_others() {
    let mut sequences = OutgoingSequences::new(KEYS);
    for channel in 0..20_000_u32 {
        sequences.next(&channel.to_le_bytes(), ms(0));
    }
    assert_eq!((sequences.next(b"a", ms(0)), sequences.next(b"a", ms(0))), (1, 2));
    sequences.next(b"stays", ms(1_000));
    repeated_count(&mut sequences, 60_000);
    repeated_count(&mut sequences, FORGET_MS - 1);
    assert_eq!(sequences.len(), 20_002);
    assert_eq!(sequences.ends.len(), 2);
    repeated_count(&mut sequences, FORGET_MS);
    assert_eq!(sequences.len(), 1);
    assert!(sequences.channels.capacity() < 20_000 / 4, "{}", sequences.channels.capacity());
    assert_eq!(sequences.next(b"stays", ms(FORGET_MS)), 2);
    assert_eq!(sequences.next(b"new", ms(FORGET_MS)), 3);
    sequences.roll_back(b"new", 3);
    sequences.roll_back(b"new", 2);
    assert_eq!(sequences.next(b"new", ms(FORGET_MS)), 3);
    repeated_count(&mut sequences, 2 * FORGET_MS - 1);
    assert_eq!(sequences.len(), 2);
}

fn repeated_count(sequences: &mut OutgoingSequences, now_ms: u64) -> usize {
    let mut count = 0;
    loop {
        let before = count;
        sequences.repeat_tails(ms(now_ms), |_, _| count += 1);
        if count == before {
            return count;
        }
    }
}

#[test]
fn a_late_repeat_puts_off_the_end() {
    let mut sequences = OutgoingSequences::new(KEYS);
    sequences.next(b"a", ms(0));
    assert_eq!(repeated(&mut sequences, 2 * FORGET_MS), [("a".to_string(), 1)]);
    repeated(&mut sequences, 2 * FORGET_MS + STALE_MS + 1_000);
    assert_eq!(sequences.len(), 1);
    repeated(&mut sequences, 3 * FORGET_MS - TAIL_FOR_MS);
    assert!(sequences.is_empty() && sequences.ends.is_empty() && sequences.tails.is_empty());
}

#[test]
fn the_end_of_time_is_survived() {
    let mut sequences = OutgoingSequences::new(KEYS);
    sequences.floor = u64::MAX - 1;
    for _ in 0..3 {
        assert_eq!(sequences.next(b"a", ms(u64::MAX)), u64::MAX);
        repeated(&mut sequences, u64::MAX);
        sequences.handle_reconnect(ms(u64::MAX));
        repeated(&mut sequences, u64::MAX);
    }
    let mut origins = Origins::default();
    let now = u64::MAX;
    assert_eq!(origins.receive(node(1), 1, 0, false, ms(now)), Arrival::New { missed: 0 });
    let most = Arrival::New { missed: u64::MAX - 1 };
    assert_eq!(origins.receive(node(1), 1, u64::MAX, false, ms(now)), most);
    assert_eq!(origins.receive(node(1), 1, u64::MAX, false, ms(now)), Arrival::Repeated);
    assert_eq!(origins.receive_tail(node(2), 1, 0, false, ms(0)), Arrival::New { missed: 0 });
    assert_eq!(
        origins.receive_tail(node(2), 1, u64::MAX, false, ms(0)),
        Arrival::New { missed: u64::MAX }
    );
}

#[test]
fn arrivals_are_new_repeated_or_after_a_loss() {
    use Arrival::{New, Repeated};
    let mut origins = Origins::default();
    for (seconds, origin, epoch, seq, expected) in [
        (0, 1, 9, 100, New { missed: 0 }),
        (0, 1, 9, 101, New { missed: 0 }),
        (0, 1, 9, 101, Repeated),
        (0, 1, 9, 100, Repeated),
        (0, 2, 9, 1, New { missed: 0 }),
        (1, 1, 9, 105, New { missed: 3 }),
        (1, 2, 9, 2, New { missed: 0 }),
        (2, 1, 10, 1, New { missed: 0 }), // started again
        (2, 1, 10, 3, New { missed: 1 }),
        (601, 1, 10, 3, Repeated),         // 599 s later, and heard
        (601, 2, 9, 9, New { missed: 0 }), // 600 s later
        (1_200, 1, 10, 5, New { missed: 1 }),
        (1_800, 1, 10, 4, New { missed: 0 }),
    ] {
        let arrival = origins.receive(node(origin), epoch, seq, false, ms(seconds * 1_000));
        assert_eq!(arrival, expected, "{seq} of {origin} at {seconds}");
    }
    assert_eq!(size_of::<Origins>(), 32);
}

/// Redis may process what a node sent before it died after what it sent since: the numbers of
/// neither run start over.
#[test]
fn two_lives_of_an_origin_are_told_apart() {
    use Arrival::{New, Repeated};
    let mut origins = Origins::default();
    for (epoch, seq, expected) in [
        (1, 7, New { missed: 0 }),
        (2, 1, New { missed: 0 }),
        (2, 2, New { missed: 0 }),
        (1, 8, New { missed: 0 }),
        (2, 2, Repeated),
        (2, 4, New { missed: 1 }),
        (1, 8, Repeated),
    ] {
        assert_eq!(
            origins.receive(node(1), epoch, seq, false, ms(0)),
            expected,
            "{seq} of {epoch}"
        );
    }
}

#[test]
fn tails_show_what_was_lost_last() {
    let mut origins = Origins::default();
    assert_eq!(origins.receive_tail(node(1), 9, 50, false, ms(0)), Arrival::New { missed: 0 });
    assert_eq!(origins.receive(node(1), 9, 50, false, ms(0)), Arrival::Repeated);
    assert_eq!(origins.receive(node(1), 9, 51, false, ms(0)), Arrival::New { missed: 0 });
    for (seq, missed) in [(51, 0), (54, 3), (54, 0), (53, 0)] {
        assert_eq!(
            origins.receive_tail(node(1), 9, seq, false, ms(0)),
            Arrival::New { missed },
            "{seq}"
        );
    }
    assert_eq!(origins.receive(node(1), 9, 55, false, ms(0)), Arrival::New { missed: 0 });
    assert_eq!(origins.receive_tail(node(1), 10, 80, false, ms(0)), Arrival::New { missed: 0 });
    assert_eq!(
        origins.receive_tail(node(1), 10, 81, false, ms(STALE_MS)),
        Arrival::New { missed: 0 }
    );
}

#[test]
fn an_origin_that_has_gone_makes_room() {
    let mut origins = Origins::default();
    for origin in 0..1_000_u16 {
        origins.receive(node(origin), 1, 1, false, ms(u64::from(origin) * STALE_MS / 4));
    }
    assert_eq!(origins.known.len(), 4);
}

/// A naive model of what a channel has sent: every call visits all channels.
#[derive(Default)]
struct Plain {
    last: u64,
    first: u64,
    repeated: u64,
    message_ms: u64,
    tail_from_ms: u64,
    /// The times at which a repeat is due.
    owed: Vec<u64>,
}

proptest! {
    #[test]
    fn sequences_as_a_plain_map_would(
        steps in vec((0_u8..14, 0_u8..6, 0_u64..5_000, 0_u8..60), 0..300),
    ) {
        let mut sequences = OutgoingSequences::new(KEYS);
        let mut plain: HashMap<String, Plain> = HashMap::new();
        let (mut now, mut floor) = (1_000_000_u64, 0);
        for (action, name, later, leap) in steps {
            now += later + if leap == 0 { later * 400 } else { 0 };
            let name = name.to_string();
            match action {
                0..=4 => {
                    let known = plain.entry(name.clone()).or_insert_with(|| Plain {
                        last: floor,
                        first: floor,
                        ..Plain::default()
                    });
                    known.last += 1;
                    (known.message_ms, known.tail_from_ms) = (now, now);
                    known.owed = (1..=20).map(|n| now + n * 3_000).collect();
                    prop_assert_eq!(sequences.next(name.as_bytes(), ms(now)), known.last);
                }
                5 => if let Some(known) = plain.get_mut(&name) {
                    let seq = known.last.saturating_sub(later % 2);
                    if seq == known.last && seq > known.first && seq > known.repeated {
                        known.last -= 1;
                    }
                    sequences.roll_back(name.as_bytes(), seq);
                },
                6 => {
                    for known in plain.values_mut() {
                        known.owed.clear();
                        if now - known.message_ms < FORGET_MS {
                            known.tail_from_ms = now;
                            known.owed = (0..=20).map(|n| now + n * 3_000).collect();
                        }
                    }
                    sequences.handle_reconnect(ms(now));
                }
                _ => {
                    let mut expected = Vec::new();
                    for (name, known) in &mut plain {
                        let before = known.owed.len();
                        known.owed.retain(|&at| at > now);
                        if known.owed.len() < before {
                            known.tail_from_ms = known.tail_from_ms.max(now - TAIL_FOR_MS);
                            if known.last > known.first {
                                known.repeated = known.last;
                                expected.push((name.clone(), known.last));
                            }
                        }
                    }
                    expected.sort();
                    prop_assert_eq!(repeated(&mut sequences, now), expected);
                    let second = now / 1_000 * 1_000;
                    plain.retain(|_, known| {
                        let stays = known.tail_from_ms + FORGET_MS > second;
                        floor = if stays { floor } else { floor.max(known.last) };
                        stays
                    });
                }
            }
            prop_assert_eq!(sequences.len(), plain.len());
            let ends: usize = sequences.ends.values().map(Vec::len).sum();
            prop_assert_eq!(ends, plain.len());
            let tails: usize = sequences.tails.values().map(Vec::len).sum();
            prop_assert!(tails <= plain.len());
        }
    }

    /// Messages of three nodes, some lost, some sent again in order: received and missed messages
    /// together equal those sent.
    #[test]
    fn nothing_is_counted_twice(
        steps in vec((0_u16..3, 0_u8..10, 1_usize..8), 0..300),
    ) {
        let mut origins = Origins::default();
        let mut heard: HashMap<u16, Vec<u64>> = HashMap::new();
        let mut sent = [0_u64; 3];
        let mut missed = [0_u64; 3];
        for (origin, action, again) in steps {
            let from = usize::from(origin);
            let arrivals: Vec<u64> = match action {
                0 | 1 if sent[from] > 0 => { sent[from] += 1; continue } // lost
                2 => {
                    let end = sent[from];
                    (end.saturating_sub(again as u64).max(1)..=end).collect()
                }
                3 if sent[from] > 0 => {
                    let tail = origins.receive_tail(node(origin), 7, sent[from], false, ms(0));
                    let Arrival::New { missed: more } = tail else { panic!("{tail:?}") };
                    missed[from] += more;
                    let heard = heard.entry(origin).or_default().len() as u64;
                    prop_assert_eq!(heard + missed[from], sent[from]);
                    continue;
                }
                _ => { sent[from] += 1; vec![sent[from]] }
            };
            for seq in arrivals {
                let list = heard.entry(origin).or_default();
                match origins.receive(node(origin), 7, seq, false, ms(0)) {
                    Arrival::Repeated | Arrival::Reset => {
                        prop_assert!(missed[from] > 0 || list.contains(&seq));
                    }
                    Arrival::New { missed: lost } => {
                        prop_assert!(!list.contains(&seq));
                        list.push(seq);
                        missed[from] += lost;
                        prop_assert_eq!(list.len() as u64 + missed[from], seq);
                    }
                }
            }
        }
    }
}

/// One message with a number that its node never issued, then genuine messages of the node.
#[test]
fn a_number_that_was_false_gives_way_to_the_next_message_or_tail() {
    let mut origins = Origins::default();
    origins.receive(node(1), 9, 5, true, ms(0));
    assert_eq!(origins.receive(node(1), 9, 800, false, ms(0)), Arrival::New { missed: 794 });
    assert_eq!(origins.receive(node(1), 9, 5, false, ms(0)), Arrival::Repeated, "sent again");
    assert_eq!(origins.receive(node(1), 9, 6, true, ms(0)), Arrival::Reset);
    assert_eq!(origins.receive(node(1), 9, 7, true, ms(0)), Arrival::New { missed: 0 });
    origins.receive(node(1), 9, 900, false, ms(0));
    let tail =
        |origins: &mut Origins, is_latest| origins.receive_tail(node(1), 9, 7, is_latest, ms(0));
    assert_eq!(tail(&mut origins, false), Arrival::New { missed: 0 }, "of an old link");
    assert_eq!(tail(&mut origins, true), Arrival::Reset);
    assert_eq!(origins.receive(node(1), 9, 8, true, ms(0)), Arrival::New { missed: 0 });
}

#[test]
fn lives_that_are_none_are_bounded() {
    let mut origins = Origins::default();
    for epoch in 0..10_000 {
        origins.receive(node(1), epoch, 1, true, ms(0));
    }
    assert!(origins.known.len() <= MAX_LIVES);
}
