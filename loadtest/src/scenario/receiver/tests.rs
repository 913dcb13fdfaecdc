//! Every possible fault of a server is detected, with no false positives.

use std::sync::Arc;

use argh::FromArgs;

use super::*;
use crate::message::Stamp;
use crate::run::Common;
use crate::scenario::file;
use crate::scenario::plan::{Scenario, Selector};
use crate::scenario::shared::Begin;
use crate::soak::SoakArguments;

const CONNECTIONS: u64 = 4;

fn common() -> Common {
    let arguments = SoakArguments::from_args(&["soak"], &["--threads", "1"]).unwrap();
    arguments.options().check(CONNECTIONS, "").unwrap()
}

fn scenario() -> Scenario {
    let text = "[population]\nconnections = 4\ndevices = ['ios', 'web']\n\
                [[phase]]\nname = 'a'\nduration = 1\nunicast_per_s = 1\n";
    file::parse("s.toml", text).unwrap()
}

struct Bench<'a> {
    receiver: Receiver<'a>,
    marks: [Marks; CONNECTIONS as usize],
}

impl<'a> Bench<'a> {
    /// Opens all connections.
    fn new(shared: &'a Shared<'a>) -> Bench<'a> {
        let now = sys::now_ns();
        let begin = Begin { now, unicast_from: 0, unicast_range: CONNECTIONS, cut: 0 };
        shared.begin(0, &begin);
        let mut receiver = Receiver::new(shared, 0);
        for number in 0..CONNECTIONS as u32 {
            receiver.welcomed(number, b"");
        }
        Bench { receiver, marks: Default::default() }
    }

    fn push(&self, selector: Option<Selector>) -> u32 {
        let sent_ns = sys::now_ns();
        let selector = selector.map(Arc::new);
        self.receiver.shared.ledger.send(Bulk { sent_ns, phase: 0, selector })
    }

    fn arrives(&mut self, kind: u16, seq: u32, at: &[u32]) {
        let run = self.receiver.shared.run;
        let mut data = Vec::new();
        Stamp { run, seq, at_ns: sys::now_ns(), pusher: kind }.write(&mut data);
        let data = String::from_utf8(data).unwrap();
        let frame = format!(r#"{{"type":"push","id":"1","data":"{data}"}}"#);
        for number in at {
            let marks = &mut self.marks[*number as usize];
            self.receiver.frame(*number, marks, frame.as_bytes());
        }
        self.receiver.end_batch();
    }

    fn settles(&mut self, answer: Answer) {
        self.receiver.shared.ledger.settle(answer);
        self.receiver.settle();
    }

    fn ends(&mut self, number: u32, why: Gone) {
        let marks = mem::take(&mut self.marks[number as usize]);
        self.receiver.gone(number, why, &marks);
    }

    fn checks(&self) -> super::super::stats::Checks {
        self.receiver.stats[0].checks
    }
}

#[test]
fn a_push_to_all_that_one_did_not_get_is_lost_there() {
    let (common, scenario) = (common(), scenario());
    let shared = Shared::new(&common, &scenario, 7, 1).unwrap();
    let mut bench = Bench::new(&shared);
    let seq = bench.push(None);
    bench.arrives(BULK, seq, &[0, 1, 2]);
    assert_eq!((shared.arrived(seq), bench.receiver.missing()), (3, 1));
    bench.settles(Answer::Accepted);
    assert_eq!((bench.checks().lost, bench.checks().deliveries), (1, 3));
    let seq = bench.push(None);
    bench.arrives(BULK, seq, &[0, 1, 2, 3]);
    bench.settles(Answer::Accepted);
    assert_eq!((bench.checks().lost, bench.checks().undecided), (1, 0));
}

#[test]
fn twice_late_and_at_the_wrong_one_are_told_apart() {
    let (common, scenario) = (common(), scenario());
    let shared = Shared::new(&common, &scenario, 7, 1).unwrap();
    let mut bench = Bench::new(&shared);
    let (first, second) = (bench.push(None), bench.push(None));
    bench.arrives(BULK, second, &[0, 1, 2, 3]);
    bench.arrives(BULK, first, &[0, 1, 2, 3, 3]);
    assert_eq!((bench.checks().out_of_order, bench.checks().doubled), (4, 1));
    let web = Selector { device: Some(1), ..Selector::default() };
    let seq = bench.push(Some(web));
    bench.arrives(BULK, seq, &[1, 2]);
    assert_eq!(bench.checks().misdelivered, 1);
    bench.settles(Answer::Accepted);
    bench.settles(Answer::Accepted);
    assert_eq!(bench.checks().lost, 0);
    bench.settles(Answer::Accepted);
    assert_eq!(bench.checks().lost, 1, "connection 3 is of the device, too");
}

#[test]
fn who_came_later_or_left_earlier_lost_nothing() {
    let (common, scenario) = (common(), scenario());
    let shared = Shared::new(&common, &scenario, 7, 1).unwrap();
    let mut bench = Bench::new(&shared);
    bench.ends(3, Gone::Closed);
    let seq = bench.push(None);
    bench.ends(2, Gone::Closed);
    bench.receiver.welcomed(3, b"");
    bench.arrives(BULK, seq, &[0, 1, 3]);
    bench.settles(Answer::Accepted);
    assert_eq!((bench.checks().lost, bench.checks().undecided), (0, 1));
    assert_eq!(bench.receiver.stats[0].reopened, 1);
}

#[test]
fn what_was_refused_must_reach_nobody() {
    let (common, scenario) = (common(), scenario());
    let shared = Shared::new(&common, &scenario, 7, 1).unwrap();
    let mut bench = Bench::new(&shared);
    for answer in [Answer::Refused, Answer::Unknown] {
        let seq = bench.push(None);
        bench.arrives(BULK, seq, &[1]);
        bench.settles(answer);
    }
    let checks = bench.checks();
    assert_eq!((checks.refused_but_delivered, checks.lost, checks.undecided), (1, 0, 3));
}

#[test]
fn a_push_to_one_user_is_lost_twice_or_astray() {
    let (common, scenario) = (common(), scenario());
    let shared = Shared::new(&common, &scenario, 7, 1).unwrap();
    let mut bench = Bench::new(&shared);
    let accepted = |seq: u32| {
        let target = shared.target_of(seq);
        shared.accepted(Unicast { seq, target, sent_ns: sys::now_ns() });
        target as u32
    };
    let target = accepted(0);
    bench.arrives(UNICAST, 0, &[target, target, (target + 1) % CONNECTIONS as u32]);
    assert_eq!((bench.checks().doubled, bench.checks().misdelivered), (1, 1));
    assert_eq!(bench.receiver.missing(), 0);
    accepted(1);
    assert_eq!(bench.receiver.missing(), 1);
    bench.receiver.settle_unicasts(u64::MAX);
    assert_eq!(bench.checks().lost, 1);
    let target = accepted(2);
    bench.ends(target, Gone::Dropped);
    bench.receiver.settle_unicasts(u64::MAX);
    assert_eq!((bench.checks().lost, bench.checks().undecided), (1, 1));
}
