//! Which ids earlier runs of the node issued, as stored in Redis.

use super::*;
use crate::types::SnowflakeClock;

const NOW_MS: u64 = 1_800_000_000_000;

impl Setting {
    pub fn execute_incrby(&mut self, command: &[Vec<u8>], answers: &mut Vec<u8>) {
        self.asked_numbers += 1;
        if let Some(error) = self.refuses_numbers {
            answers.extend_from_slice(format!("-{error}\r\n").as_bytes());
            return;
        }
        let key = String::from_utf8(command[1].clone()).unwrap();
        assert_eq!(key, "x:ids:7");
        self.number += std::str::from_utf8(&command[2]).unwrap().parse::<i64>().unwrap();
        answers.extend_from_slice(format!(":{}\r\n", self.number).as_bytes());
    }
}

/// A run that starts at `now_ms` by its clock, with a Redis that stores `number`.
fn run(now_ms: u64, number: i64) -> Setting {
    let mut setting = Setting::new(1);
    setting.broker = Broker::new(BrokerConfig {
        incarnation: Arc::new(Incarnation::new(WallMs::new(now_ms))),
        ..config(1)
    });
    setting.number = number;
    setting.now.wall = WallMs::new(now_ms);
    setting
}

fn id_ms(setting: &Setting, now_ms: u64) -> u64 {
    let mut clock = SnowflakeClock::new(NodeId::new(7).unwrap(), 0, 1);
    SnowflakeClock::ms_of(clock.next(WallMs::new(now_ms), &setting.broker.config.incarnation))
}

/// Starts at 12:00:00, dies at once, and starts again by a clock that reads 11:59:55.
#[test]
fn a_node_that_starts_again_with_its_clock_behind_repeats_no_id() {
    let mut first = run(NOW_MS, 0);
    first.open();
    first.tick(150).unwrap();
    let last_ms = id_ms(&first, NOW_MS + 200);
    assert_eq!(last_ms, NOW_MS + 200);

    let mut second = run(NOW_MS - 5_000, first.number);
    // It is not known yet which ids were issued: new interests wait.
    second.join(0);
    assert!(second.recorder.ready.is_empty());
    second.open();
    second.tick(150).unwrap();
    assert!(second.broker.is_ready());
    assert_eq!(second.recorder.ready, [0]);
    assert!(id_ms(&second, NOW_MS - 4_800) > last_ms);
    let used_ms = first.number as u64;
    assert_eq!(second.recorder.events[0], (0, WorkerEvent::IdsBegin { used_ms }));
    assert!(second.broker.config.epoch() > used_ms, "others take it for the later run");
    assert!(second.number > first.number);
}

#[test]
fn what_is_reserved_goes_on_before_the_clock_and_is_not_asked_for_all_the_time() {
    let mut setting = run(NOW_MS, 0);
    setting.open();
    setting.tick(150).unwrap();
    assert_eq!(setting.number as u64, NOW_MS + 10_000);
    let before = setting.asked_numbers;
    for second in 1..=20 {
        setting.now.wall = WallMs::new(NOW_MS + second * 1_000);
        setting.tick(1_000).unwrap();
        assert!(id_ms(&setting, NOW_MS + second * 1_000) == NOW_MS + second * 1_000);
        assert!(setting.number as u64 >= NOW_MS + second * 1_000 + 9_000);
    }
    assert!(setting.asked_numbers - before <= 20);
    // Redis was emptied: the full number is stored again.
    setting.number = 0;
    setting.now.wall = WallMs::new(NOW_MS + 23_000);
    setting.tick(200).unwrap();
    assert_eq!(setting.number as u64, NOW_MS + 33_000);
}

#[test]
fn where_redis_refuses_to_keep_it_the_node_works_and_says_so_once() {
    let mut setting = run(NOW_MS, 0);
    setting.refuses_numbers = Some("NOPERM no permissions to run 'incrby'");
    setting.open();
    setting.tick(5_000).unwrap();
    assert!(setting.broker.is_ready());
    let events = setting.broker.take_events();
    let said = events.iter().filter(|event| matches!(event, Event::IdsNotKept { .. }));
    assert_eq!((said.count(), setting.asked_numbers), (1, 1));
    assert_eq!(id_ms(&setting, NOW_MS + 5_000_000), NOW_MS + 5_000_000);
    setting.tick(60_000).unwrap();
    assert_eq!((setting.broker.take_events(), setting.asked_numbers), (vec![], 2));
    // An administrator grants it.
    setting.refuses_numbers = None;
    setting.number = NOW_MS as i64;
    setting.now.wall = WallMs::new(NOW_MS + 60_000);
    setting.tick(60_000).unwrap();
    assert_eq!(setting.number as u64, NOW_MS + 70_000);
    assert_eq!(setting.broker.config.counters.ids_kept.value(), 1);
}

#[test]
fn a_number_that_is_no_time_is_refused_by_name() {
    for number in [-1, i64::MAX, SnowflakeClock::MAX_MS as i64] {
        let mut setting = run(NOW_MS, number);
        setting.broker.handle_open(setting.now);
        let error = (0..20).find_map(|_| answer_once(&mut setting).err()).expect("it is refused");
        let error = error.to_string();
        assert!(error.contains("x:ids:7") && error.contains(&number.to_string()), "{error}");
    }
}

/// Redis answers what the broker has asked so far.
fn answer_once(setting: &mut Setting) -> Result<(), LinkError> {
    for link in [LinkName::Subscribe, LinkName::Publish] {
        let (mut out, mut answers) = (Vec::new(), Vec::new());
        setting.broker.take_outgoing(link, &mut out, usize::MAX);
        for command in commands(&out) {
            setting.execute(&command, &mut answers, &mut Vec::new());
        }
        setting.broker.handle_bytes(
            link,
            &answers,
            setting.now.monotonic,
            &mut setting.recorder,
        )?;
    }
    Ok(())
}
