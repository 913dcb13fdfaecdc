//! Messages that arrive late or are a node's last.

use super::*;

/// Channels of sixty users repeat their tail every three seconds: a node kept publishing after it
/// had left.
#[test]
fn a_node_that_has_left_says_nothing_more() {
    let mut setting = Setting::ready(1);
    for ticket in 0..60 {
        setting.push_by(Routing::User, ticket, "1", &uids(&[&format!("u{ticket}")]));
        setting.tick(50).unwrap();
    }
    setting.broker.handle_leaving(setting.now.monotonic);
    setting.talk();
    let mut idle = 0;
    for _ in 0..100 {
        setting.now.monotonic += 50;
        setting.broker.handle_tick(setting.now, &mut setting.recorder).unwrap();
        idle += u32::from(setting.broker.has_left() && setting.broker.is_idle());
        setting.talk();
    }
    assert!(idle >= 80, "all but pings: {idle}");
}

/// Its successor was refused for good if its clock was behind.
#[test]
fn a_node_that_left_may_come_back_with_a_clock_that_is_behind() {
    let mut setting = Setting::ready(1);
    say(&mut setting, 9, 1, |_| {});
    assert_eq!(setting.broker.nodes(), 2);
    say(&mut setting, 9, 2, |announcement| announcement.is_leaving = true);
    say(&mut setting, 8, 1, |_| {});
    assert_eq!(setting.broker.nodes(), 1, "a late announcement of an earlier incarnation");
    setting.tick(61_000).unwrap();
    say(&mut setting, 8, 1, |_| {});
    assert_eq!(setting.broker.nodes(), 2);
}

/// As when a virtual machine was paused: what Redis has kept meanwhile is still to be read.
#[test]
fn a_canary_is_not_late_before_it_flew() {
    let mut setting = Setting::ready(1);
    setting.tick(500).unwrap();
    setting.now.monotonic += 10_000;
    setting.is_silent = true;
    for _ in 0..10 {
        setting.now.monotonic += 50;
        assert_eq!(setting.broker.handle_tick(setting.now, &mut setting.recorder), Ok(()));
    }
}

#[test]
fn a_redis_that_cannot_save_is_alive() {
    let mut setting = Setting::ready(1);
    for error in ["MISCONF Redis is configured to save", "LOADING Redis is loading", "MASTERDOWN"] {
        setting.hear(LinkName::Subscribe, format!("-{error}\r\n").as_bytes());
    }
    let refused = b"-NOPERM this user has no permissions\r\n";
    let recorder = &mut setting.recorder;
    let result =
        setting.broker.handle_bytes(LinkName::Subscribe, refused, setting.now.monotonic, recorder);
    assert!(matches!(result, Err(LinkError::Refused(_))));
}

/// A large push over a slow link ended the links three times before it was written.
#[test]
fn a_link_that_takes_what_is_written_is_not_silent() {
    let mut setting = Setting::ready(1);
    setting.is_silent = true;
    setting.push(1, "1", &TargetsBuf::default());
    for _ in 0..10 {
        setting.tick(1_000).unwrap();
        for link in [LinkName::Publish, LinkName::Subscribe] {
            setting.broker.handle_written(link, setting.now.monotonic);
        }
    }
    assert_eq!(setting.tick(2_000), Err(LinkError::Silent));
}

#[test]
fn an_unanswered_push_is_unknown_after_its_time_and_not_delivered_later() {
    let mut setting = Setting::ready(1);
    setting.join(0);
    setting.talk();
    setting.push(1, "late", &TargetsBuf::default());
    setting.broker.handle_lost(&mut setting.recorder);
    assert_eq!(setting.tick(1_950), Ok(()));
    assert!(setting.recorder.answers.is_empty());
    assert_eq!(setting.tick(50), Ok(()));
    assert_eq!(setting.recorder.answers, [(1, Outcome::Unknown)]);
    setting.broker.handle_open(setting.now);
    setting.talk();
    setting.push(2, "next", &TargetsBuf::default());
    setting.talk();
    // Its number was not used up: no gap.
    assert_eq!(setting.recorder.delivered, [(1, "next".into())]);
    assert!(setting.broker.config.counters.missed().is_empty());
}
