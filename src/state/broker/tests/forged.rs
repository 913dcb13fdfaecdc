//! Messages that no node has sent: false numbers, unknown kinds, endless bundles, data that is not
//! JSON.

use super::*;
use crate::wire::bundle;

/// Delivers bytes on the project's channel.
fn bring(setting: &mut Setting, payload: &[u8]) {
    let mut bytes = Vec::new();
    message(&mut bytes, b"x:{p}", payload);
    setting.hear(LinkName::Subscribe, &bytes);
}

fn encoded(node: u16, epoch: u64, data: &str, seq: u64, order: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    let targets = TargetsBuf::default();
    envelope(node, epoch, data, &targets).encode(&mut bytes);
    Header::set_numbers(&mut bytes, epoch, seq, order);
    bytes
}

fn delivered(setting: &mut Setting) -> Vec<String> {
    std::mem::take(&mut setting.recorder.delivered).into_iter().map(|(_, data)| data).collect()
}

fn ready() -> Setting {
    let mut setting = Setting::ready(1);
    setting.join(0);
    setting.talk();
    setting
}

#[test]
fn a_false_number_of_its_own_does_not_silence_a_node() {
    let mut setting = ready();
    setting.push(1, "1", &TargetsBuf::default());
    setting.talk();
    for (seq, order) in [(u64::MAX, u64::MAX), (1 << 40, 1), (2, 1 << 40), (900, 900)] {
        bring(&mut setting, &encoded(7, 100, "0", seq, order));
    }
    setting.push(2, "2", &TargetsBuf::default());
    setting.talk();
    assert_eq!(delivered(&mut setting), ["1", "2"]);
    let counters = &setting.broker.config.counters;
    assert_eq!((counters.false_numbers.value(), counters.malformed.value()), (4, 0));
    assert!(counters.missed().is_empty());
}

/// Delivers an announcement of node 9.
fn hear_announcement(
    setting: &mut Setting,
    number: u64,
    order: u64,
    version: u64,
    servers: &[u64],
) {
    let sender = Sender { node: NodeId::new(9).unwrap(), epoch: 5 };
    let here = here(servers);
    let (is_full_state, mut bytes, mut words) = (!servers.is_empty(), Vec::new(), Vec::new());
    let announcement = Member {
        number,
        order,
        is_full_state,
        here: Servers(&here),
        ..Member::new(sender, version)
    };
    announcement.encode(&mut bytes);
    message(&mut words, b"x:nodes", &bytes);
    setting.hear(LinkName::Subscribe, &words);
}

/// Delivers the heartbeat of node 9, with its latest order.
fn announce(setting: &mut Setting, number: u64, order: u64) {
    hear_announcement(setting, number, order, 0, &[]);
}

#[test]
fn false_numbers_of_another_node_are_refused_or_taken_back() {
    let mut setting = ready();
    announce(&mut setting, 1, 10);
    bring(&mut setting, &encoded(9, 5, "1", 3, 11));
    // Nothing near that was announced.
    for (seq, order) in [(u64::MAX, u64::MAX), (12, 11), (4, 1 << 30)] {
        bring(&mut setting, &encoded(9, 5, "0", seq, order));
    }
    bring(&mut setting, &encoded(9, 5, "2", 4, 12));
    assert_eq!(delivered(&mut setting), ["1", "2"]);
    assert_eq!(setting.broker.config.counters.false_numbers.value(), 3);
    // Near it: accepted until the node announces its order.
    bring(&mut setting, &encoded(9, 5, "false", 5_000, 5_000));
    bring(&mut setting, &encoded(9, 5, "3", 5, 13));
    announce(&mut setting, 2, 13);
    bring(&mut setting, &encoded(9, 5, "4", 6, 14));
    bring(&mut setting, &encoded(9, 5, "5", 7, 15));
    assert_eq!(delivered(&mut setting), ["false", "4", "5"]);
    assert_eq!(setting.broker.config.counters.number_resets.value(), 2);
}

/// Its genuine announcements were classified as overtaken: its business servers were gone for good.
#[test]
fn false_numbers_in_the_words_of_a_node_hide_its_business_servers_for_seconds() {
    let mut setting = ready();
    hear_announcement(&mut setting, 1, 10, 1, &[4]);
    assert_eq!(events(&mut setting), ["0: node 9 true", "0: 4 here"]);
    hear_announcement(&mut setting, u64::MAX, 10, 9, &[8]);
    assert_eq!(setting.broker.config.counters.false_numbers.value(), 1);
    assert!(events(&mut setting).is_empty());
    let mut number = 1;
    for (false_number, version, seconds) in
        [(3, 1 << 40, 3), (1 << 40, 1 << 40, 5), (1 << 41, 1, 5)]
    {
        hear_announcement(&mut setting, false_number, 10, version, &[8]);
        assert_eq!(events(&mut setting), ["0: 4 gone", "0: 8 here"]);
        for _ in 0..seconds {
            setting.tick(1_000).unwrap();
            number += 1;
            hear_announcement(&mut setting, number, 10, 1, &[]);
            let said = published(&mut setting, b"x:node:9");
            if said
                .iter()
                .any(|announcement| Member::decode(announcement).unwrap().requests_full_state)
            {
                number += 1;
                hear_announcement(&mut setting, number, 10, 1, &[4]);
            }
        }
        assert_eq!(events(&mut setting), ["0: 8 gone", "0: 4 here"]);
    }
    assert_eq!(setting.broker.config.counters.number_resets.value(), 3);
}

/// The losses it reported were counted: 2^64.
#[test]
fn a_tail_without_an_order_is_not_believed_of_a_node_that_has_one() {
    let mut setting = ready();
    announce(&mut setting, 1, 10);
    bring(&mut setting, &encoded(9, 5, "1", 1, 11));
    setting.push(1, "own", &TargetsBuf::default());
    setting.talk();
    for (node, epoch) in [(7, 100), (9, 5)] {
        let (origin, id) = (NodeId::new(node).unwrap(), MessageId(0));
        let mut tail = Vec::new();
        let header =
            Header { kind: EnvelopeKind::Tail, origin, epoch, seq: u64::MAX, order: 0, id };
        header.encode(&mut tail);
        bring(&mut setting, &tail);
    }
    bring(&mut setting, &encoded(9, 5, "2", 2, 12));
    assert_eq!(delivered(&mut setting), ["1", "own", "2"]);
    let counters = &setting.broker.config.counters;
    assert_eq!(counters.false_numbers.value(), 2);
    assert!(counters.missed().is_empty());
}

#[test]
fn a_kind_of_a_newer_node_is_left_out_and_its_number_counts() {
    let mut setting = ready();
    bring(&mut setting, &encoded(9, 5, "1", 1, 1));
    let mut newer = encoded(9, 5, "what is this", 2, 2);
    newer[1] = 77;
    bring(&mut setting, &newer);
    bring(&mut setting, &encoded(9, 5, "3", 3, 3));
    assert_eq!(delivered(&mut setting), ["1", "3"]);
    let counters = &setting.broker.config.counters;
    assert_eq!((counters.unknown_kind.value(), counters.malformed.value()), (1, 0));
    assert!(counters.missed().is_empty(), "{:?}", counters.missed());
}

#[test]
fn data_that_is_not_json_goes_to_nobody() {
    let mut setting = ready();
    for (seq, data) in ["{\"a\":", "hello", "", "1}"].into_iter().enumerate() {
        bring(&mut setting, &encoded(9, 5, data, seq as u64 + 1, seq as u64 + 1));
    }
    bring(&mut setting, &encoded(9, 5, "{\"a\":1}", 5, 5));
    assert_eq!(delivered(&mut setting), ["{\"a\":1}"]);
    let mut parcel = encoded_events("p", b"{\"type\":");
    Header::set_numbers(&mut parcel, 5, 6, 6);
    bring(&mut setting, &parcel);
    assert!(setting.recorder.relayed.is_empty());
    assert_eq!(setting.broker.config.counters.malformed.value(), 5);
}

/// Encodes events of node 9.
fn encoded_events(pid: &str, text: &[u8]) -> Vec<u8> {
    let sender = Sender { node: NodeId::new(9).unwrap(), epoch: 5 };
    let (mut list, mut parcel) = (Vec::new(), Vec::new());
    parcel::add_event(&mut list, EventSet::ALL, |out| out.extend_from_slice(text));
    parcel::Events { sender, worker: 0, pid, list: parcel::EventList(&list) }.encode(&mut parcel);
    parcel
}

#[test]
fn parcels_of_a_project_that_is_not_served_are_counted() {
    let mut setting = ready();
    for (number, pid) in [(1, "q"), (2, "p"), (3, "")] {
        let mut parcel = encoded_events(pid, b"{}");
        Header::set_numbers(&mut parcel, 5, number, number);
        bring(&mut setting, &parcel);
    }
    assert_eq!(setting.recorder.relayed, [(1, EnvelopeKind::Events)]);
    let counters = &setting.broker.config.counters;
    assert_eq!((counters.unknown_project.value(), counters.malformed.value()), (2, 0));
}

#[test]
fn a_bundle_of_millions_of_empty_envelopes_costs_next_to_nothing() {
    let mut setting = ready();
    setting.broker.take_events();
    let head: &[u8] = &[1, 255];
    bring(&mut setting, &[head, &vec![0; 16 << 20]].concat());
    bring(&mut setting, &[head, &vec![0; 100 << 10]].concat());
    let counters = &setting.broker.config.counters;
    let most = 2 + bundle::MAX_RECEIVED_ENVELOPES as u64;
    assert_eq!(counters.malformed.value(), most);
    assert!(setting.broker.take_events().len() as u64 <= most);
    bring(&mut setting, &encoded(9, 5, "1", 1, 1));
    assert_eq!(delivered(&mut setting), ["1"]);
}
