//! With a channel for each user: more users than channels that can be numbered at the same time.

use super::*;

#[test]
fn users_beyond_the_bound_are_reached_by_their_projects_channel() {
    let mut setting = Setting::ready(1);
    setting.join(0);
    setting.talk();
    for number in 0..300 {
        let targets = user(number);
        setting.push_by(Routing::User, number, &number.to_string(), &targets);
    }
    setting.talk();
    assert!(setting.broker.sequences.len() <= 101, "{}", setting.broker.sequences.len());
    // No node is subscribed to a user's channel here: everything arrived on the project's.
    let arrived: Vec<_> = setting.recorder.delivered.iter().map(|(_, data)| data.clone()).collect();
    let first = 300 - arrived.len() as u32;
    assert!((90..=100).contains(&first), "{first}");
    assert_eq!(arrived, (first..300).map(|number| number.to_string()).collect::<Vec<_>>());
    let accepted: Vec<_> = (0..300).map(|ticket| (ticket, Outcome::Accepted)).collect();
    assert_eq!(setting.recorder.answers, accepted);

    // A user whose channel is known keeps it.
    setting.push_by(Routing::User, 300, "again", &user(0));
    setting.talk();
    assert_eq!(setting.recorder.delivered.len(), arrived.len());
}

#[test]
fn of_several_users_each_is_reached_once() {
    let mut setting = Setting::ready(1);
    setting.join(0);
    for number in 0..100 {
        setting.push_by(Routing::User, number, "first", &user(number));
    }
    setting.talk();
    setting.recorder = Recorder::default();
    let mut uids = NamesBuf::default();
    for number in [0, 500, 501] {
        uids.push(format!("u{number}"));
    }
    let targets = TargetsBuf { uids: Some(uids), ..TargetsBuf::default() };
    setting.push_by(Routing::User, 7, "second", &targets);
    setting.talk();
    assert_eq!(setting.recorder.delivered, [(1, "second".to_owned()), (1, "second".to_owned())]);
    assert_eq!(setting.recorder.answers, [(7, Outcome::Accepted)]);
}

fn user(number: u32) -> TargetsBuf {
    let mut uids = NamesBuf::default();
    uids.push(format!("u{number}"));
    TargetsBuf { uids: Some(uids), ..TargetsBuf::default() }
}

#[test]
fn what_a_worker_on_another_thread_hands_over_is_published_in_the_same_way() {
    let (mut here, mut there) = (Setting::ready(1), Setting::ready(1));
    let three: TargetsBuf = {
        let mut uids = NamesBuf::default();
        ["a", "b", "a", "c"].iter().for_each(|uid| uids.push(uid));
        TargetsBuf { uids: Some(uids), ..TargetsBuf::default() }
    };
    let published = |setting: &mut Setting| {
        let mut out = Vec::new();
        setting.broker.take_outgoing(LinkName::Publish, &mut out, usize::MAX);
        out
    };
    assert_eq!(published(&mut here), published(&mut there));
    let mut tickets = 0..;
    for targets in &[TargetsBuf::default(), user(1), three] {
        for routing in [Routing::Project, Routing::User] {
            let ticket = tickets.next().unwrap();
            here.push_by(routing, ticket, "1", targets);
            let mut publication = Publication::default();
            let envelope = envelope(7, 100, "1", targets);
            publication.add_message(&ChannelNames::new("x"), routing, &envelope);
            let (pusher, now) = (Pusher { worker: 0, ticket }, there.now.monotonic);
            there.broker.handle_publish(&publication, pusher, now, &mut there.recorder);
        }
    }
    let bytes = published(&mut here);
    assert!(commands(&bytes).len() > 3);
    assert_eq!(bytes, published(&mut there));
    for setting in [&mut here, &mut there] {
        let (now, recorder) = (setting.now.monotonic, &mut setting.recorder);
        setting.broker.handle_bytes(LinkName::Publish, b":1\r\n:1\r\n", now, recorder).unwrap();
    }
    assert_eq!(here.recorder.answers, there.recorder.answers);
    let bundle = [0, 1, 2].map(|ticket| (ticket, Outcome::Accepted));
    assert_eq!(here.recorder.answers[..3], bundle);
}
