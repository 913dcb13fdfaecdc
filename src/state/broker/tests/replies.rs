//! Replies and unsolicited messages of Redis.

use super::*;

const MASTER: &[u8] = b"*3\r\n$6\r\nmaster\r\n:0\r\n*0\r\n";
const REPLICA: &[u8] =
    b"*5\r\n$5\r\nslave\r\n$8\r\n10.0.0.1\r\n:6379\r\n$9\r\nconnected\r\n:14\r\n";

/// Returns the commands sent on a link.
fn asked(setting: &mut Setting, link: LinkName) -> Vec<String> {
    let mut out = Vec::new();
    setting.broker.take_outgoing(link, &mut out, usize::MAX);
    let text = |words: Vec<Vec<u8>>| String::from_utf8_lossy(&words.join(&b' ')).into_owned();
    commands(&out).into_iter().map(text).collect()
}

fn answer(setting: &mut Setting, link: LinkName, bytes: &[u8]) -> Result<Handled, LinkError> {
    setting.broker.handle_bytes(link, bytes, setting.now.monotonic, &mut setting.recorder)
}

/// Greets the new publishing link; nothing else was asked on it.
fn greet_publishing(setting: &mut Setting) {
    while let [question] = &asked(setting, LinkName::Publish)[..] {
        let reply = if question == "ROLE" { MASTER } else { b"%0\r\n" };
        answer(setting, LinkName::Publish, reply).unwrap();
    }
}

/// It was taken for the reply to a push of the last link: 200, and lost.
#[test]
fn a_reply_to_nothing_answers_no_push_of_the_last_link() {
    for is_greeted in [false, true] {
        let mut setting = Setting::ready(1);
        setting.push(1, "sent", &TargetsBuf::default());
        assert_eq!(asked(&mut setting, LinkName::Publish).len(), 1);
        setting.broker.handle_lost(&mut setting.recorder);
        setting.broker.handle_open(setting.now);
        if is_greeted {
            greet_publishing(&mut setting);
        }
        let result = answer(&mut setting, LinkName::Publish, b":1\r\n");
        assert_eq!(result, Err(LinkError::Unasked));
        assert!(setting.recorder.answers.is_empty());
        // It is sent again, and answered once.
        setting.broker.handle_lost(&mut setting.recorder);
        setting.broker.handle_open(setting.now);
        setting.talk();
        assert_eq!(setting.recorder.answers, [(1, Outcome::Accepted)]);
    }
}

/// A reply that came along with the previous one was taken for that of the next command, which was
/// not even sent: such a number became the one up to which this run may assign ids.
#[test]
fn a_reply_that_precedes_its_question_answers_none_of_the_greeting_and_no_reservation() {
    let publish = LinkName::Publish;
    let wrong = [&b"%0\r\n"[..], b"+OK\r\n", b":1\r\n", MASTER];
    for reply in wrong {
        let mut setting = Setting::new(1);
        setting.broker.handle_open(setting.now);
        assert_eq!(answer(&mut setting, publish, reply), Err(LinkError::Unasked), "at once");
    }
    let mut setting = Setting::new(1);
    setting.broker.handle_open(setting.now);
    asked(&mut setting, LinkName::Subscribe);
    answer(&mut setting, LinkName::Subscribe, b"%0\r\n").unwrap();
    let mut questions = asked(&mut setting, publish);
    while !questions[0].starts_with("INCRBY") {
        let reply = if questions[0] == "ROLE" { MASTER } else { b"%0\r\n" };
        answer(&mut setting, publish, reply).unwrap();
        questions = asked(&mut setting, publish);
    }
    let both = b":1800000000000\r\n:1\r\n";
    assert_eq!(answer(&mut setting, publish, both), Err(LinkError::Unasked));
    assert!(!setting.broker.reservation.is_kept());
}

/// Pushes were accepted and reached no other node.
#[test]
fn a_master_that_becomes_a_replica_is_left_within_a_second() {
    let mut setting = Setting::ready(1);
    let mut result = None;
    for _ in 0..1_000 / 50 {
        setting.now.monotonic += 50;
        setting.broker.handle_tick(setting.now, &mut setting.recorder).unwrap();
        for question in asked(&mut setting, LinkName::Publish) {
            let reply = match &*question {
                "ROLE" => REPLICA,
                "PING" => b"+PONG\r\n",
                _ => b":1\r\n",
            };
            result = Some(answer(&mut setting, LinkName::Publish, reply));
            if question == "ROLE" {
                break;
            }
        }
        if matches!(result, Some(Err(_))) {
            break;
        }
    }
    let error = result.unwrap().unwrap_err().to_string();
    assert!(error.contains("redis://h:6379/0 is a replica of 10.0.0.1:6379"), "{error}");
    setting.broker.handle_lost(&mut setting.recorder);
    setting.push(1, "no", &TargetsBuf::default());
    assert_eq!(setting.recorder.answers, [(1, Outcome::Unreachable)]);
}

fn request(setting: &mut Setting, interest: Interest) {
    let request = BrokerRequest::Join(interest);
    setting.broker.handle_request(0, &request, setting.now.monotonic, &mut setting.recorder);
    setting.talk();
}

fn forbid(setting: &mut Setting, names: &[&str]) {
    setting.forbidden = names.iter().map(|name| name.as_bytes().to_vec()).collect();
}

/// The links of all projects ended, again and again.
#[test]
fn a_channel_that_redis_refuses_costs_only_those_who_need_it() {
    let mut setting = Setting::ready(1);
    let (project, events) = (Interest::Project(ProjectId(0)), Interest::Events(ProjectId(0)));
    forbid(&mut setting, &["x:{p}:e"]);
    request(&mut setting, events.clone());
    request(&mut setting, project.clone());
    assert_eq!(setting.recorder.refused, [(0, events.clone())]);
    assert_eq!(setting.recorder.ready, [0], "the other one is in force");
    let events_logged = setting.broker.take_events();
    let refused = events_logged.iter().find_map(|event| match event {
        Event::ChannelRefused { channel, rule, .. } => Some((&**channel, &**rule)),
        _ => None,
    });
    let rule = "ACL SETUSER default &x:* +publish +subscribe +unsubscribe";
    assert_eq!(refused, Some((&b"x:{p}:e"[..], rule)));
    setting.push(1, "works", &TargetsBuf::default());
    setting.talk();
    assert_eq!(setting.recorder.answers, [(1, Outcome::Accepted)]);
    // Any other worker that asks gets the answer at once.
    setting.broker.handle_request(
        0,
        &BrokerRequest::Join(events.clone()),
        setting.now.monotonic,
        &mut setting.recorder,
    );
    assert_eq!(setting.recorder.refused.len(), 2);
    setting.tick(10_000).unwrap();
    assert_eq!(setting.recorder.refused.len(), 2, "notified once");
    assert_eq!(setting.broker.config.counters.channels_refused.value(), 1);
    // It becomes permitted, which is detected within five seconds.
    setting.forbidden.clear();
    setting.tick(5_100).unwrap();
    assert!(setting.recorder.ready.len() > 1 && setting.subscribed.contains(&b"x:{p}:e".to_vec()));
    assert_eq!(setting.broker.config.counters.channels_refused.value(), 0);
}

#[test]
fn what_was_in_force_and_is_refused_at_the_next_link_is_told() {
    let mut setting = Setting::ready(1);
    let interest = |number: u32| Interest::User(ProjectId(0), format!("u{number}").into());
    (0..1_200).for_each(|number| request(&mut setting, interest(number)));
    request(&mut setting, Interest::Project(ProjectId(0)));
    assert_eq!(setting.recorder.ready.len(), 1_201);
    setting.broker.handle_lost(&mut setting.recorder);
    setting.subscribed.clear();
    forbid(&mut setting, &["x:{p}:u:u7", "x:{p}:u:u900", "x:{p}:n:7"]);
    setting.broker.handle_open(setting.now);
    setting.talk();
    setting.tick(1_000).unwrap();
    assert!(setting.broker.is_ready(), "the others do not wait for it");
    setting.recorder.refused.sort_by_key(|(_, interest)| format!("{interest:?}"));
    let inbox = Interest::Inbox(ProjectId(0));
    let expected = [inbox, Interest::Project(ProjectId(0)), interest(7), interest(900)];
    assert_eq!(setting.recorder.refused, expected.map(|interest| (0, interest)));
    // Of 1,204 channels all but those three, each once.
    assert_eq!(setting.subscribed.len(), 1_201);
    setting.recorder.ready.clear();
    setting.forbidden.clear();
    setting.tick(5_000).unwrap();
    assert_eq!(setting.subscribed.len(), 1_204);
    assert!(setting.recorder.ready.len() >= 3);
}

#[test]
fn a_node_that_may_not_hear_itself_says_what_it_needs() {
    let mut setting = Setting::new(1);
    forbid(&mut setting, &["x:nodes"]);
    setting.broker.handle_open(setting.now);
    let result = loop {
        let mut answers = Vec::new();
        for link in [LinkName::Publish, LinkName::Subscribe] {
            let mut out = Vec::new();
            setting.broker.take_outgoing(link, &mut out, usize::MAX);
            let commands = commands(&out);
            let mut bytes = Vec::new();
            commands.iter().for_each(|one| setting.execute(one, &mut bytes, &mut Vec::new()));
            answers.push(answer(&mut setting, link, &bytes));
        }
        if let Some(error) = answers.into_iter().find_map(Result::err) {
            break error.to_string();
        }
    };
    assert!(result.contains("ACL SETUSER default &x:*"), "{result}");
}

#[test]
fn a_confirmation_of_something_else_ends_the_links() {
    for reply in [
        &b">3\r\n$9\r\nsubscribe\r\n$5\r\nx:{p}\r\n:1\r\n"[..],
        b">3\r\n$11\r\nunsubscribe\r\n$5\r\nx:{p}\r\n:1\r\n",
        b"+PONG\r\n",
        b":1\r\n",
    ] {
        let mut setting = Setting::ready(1);
        let result = answer(&mut setting, LinkName::Subscribe, reply);
        assert_eq!(result, Err(LinkError::Unasked));
    }
}

/// After the right to publish on a project's channel was revoked, the repeated number of its last
/// push ended the links of all projects every three seconds.
#[test]
fn a_number_that_redis_refuses_costs_no_link() {
    let mut setting = Setting::ready(1);
    setting.push(1, "before", &TargetsBuf::default());
    setting.talk();
    let mut refused = 0;
    for _ in 0..5_000 / 50 {
        setting.now.monotonic += 50;
        setting.broker.handle_tick(setting.now, &mut setting.recorder).unwrap();
        let mut out = Vec::new();
        setting.broker.take_outgoing(LinkName::Publish, &mut out, usize::MAX);
        for command in commands(&out) {
            let (mut bytes, mut messages) = (Vec::new(), Vec::new());
            if command.get(1).is_some_and(|channel| channel == b"x:{p}") {
                bytes = b"-NOPERM no permissions to access a channel\r\n".to_vec();
                refused += 1;
            } else {
                setting.execute(&command, &mut bytes, &mut messages);
            }
            answer(&mut setting, LinkName::Publish, &bytes).unwrap();
            answer(&mut setting, LinkName::Subscribe, &messages).unwrap();
        }
        setting.talk();
    }
    assert!(refused > 0 && setting.broker.is_ready());
}

#[test]
fn a_missing_right_to_ping_is_said_once() {
    let mut setting = Setting::ready(1);
    let mut pings = 0;
    for _ in 0..2_000 / 50 {
        setting.now.monotonic += 50;
        setting.broker.handle_tick(setting.now, &mut setting.recorder).unwrap();
        for question in asked(&mut setting, LinkName::Subscribe) {
            assert_eq!(question, "PING");
            pings += 1;
            let refused = b"-NOPERM this user has no permissions to run the 'ping' command\r\n";
            answer(&mut setting, LinkName::Subscribe, refused).unwrap();
        }
        setting.talk();
    }
    let events = setting.broker.take_events();
    let said = events
        .iter()
        .filter(|event| matches!(event, Event::Forbidden { command: Command::Ping, .. }));
    assert!(pings >= 2 && said.count() == 1, "{events:?}");
}

#[test]
fn a_business_server_is_known_when_redis_has_it_or_is_away() {
    let mut setting = Setting::ready(2);
    let server = |cid| Server { cid: Cid(cid), project: ProjectId(0), events: EventSet::REQUEST };
    let request = |setting: &mut Setting, request: BrokerRequest| {
        setting.broker.handle_request(1, &request, setting.now.monotonic, &mut setting.recorder);
    };
    request(&mut setting, BrokerRequest::ServerHere(server(5)));
    assert_eq!(events(&mut setting), ["0: 5 here"]);
    setting.talk();
    assert_eq!(events(&mut setting), ["1: 5 known"]);
    request(&mut setting, BrokerRequest::ServerHere(server(6)));
    setting.broker.handle_lost(&mut setting.recorder);
    assert_eq!(events(&mut setting), ["0: 6 here", "1: 6 known"]);
    request(&mut setting, BrokerRequest::ServerHere(server(7)));
    request(&mut setting, BrokerRequest::ServerGone(Cid(5)));
    assert_eq!(events(&mut setting), ["0: 7 here", "1: 7 known", "0: 5 gone"]);
}
