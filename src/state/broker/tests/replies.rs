//! What Redis answers, and what it says unasked.

use super::*;

const MASTER: &[u8] = b"*3\r\n$6\r\nmaster\r\n:0\r\n*0\r\n";
const REPLICA: &[u8] =
    b"*5\r\n$5\r\nslave\r\n$8\r\n10.0.0.1\r\n:6379\r\n$9\r\nconnected\r\n:14\r\n";

/// What is asked on a link, command by command.
fn asked(setting: &mut Setting, link: LinkName) -> Vec<String> {
    let mut out = Vec::new();
    setting.broker.take_outgoing(link, &mut out, usize::MAX);
    let text = |words: Vec<Vec<u8>>| String::from_utf8_lossy(&words.join(&b' ')).into_owned();
    commands(&out).into_iter().map(text).collect()
}

fn answer(setting: &mut Setting, link: LinkName, bytes: &[u8]) -> Result<Handled, LinkError> {
    setting.broker.handle_bytes(link, bytes, setting.now_ms, &mut setting.said)
}

/// The new publishing link is greeted, and nothing was asked on it besides.
fn greet_publishing(setting: &mut Setting) {
    while let [question] = &asked(setting, LinkName::Publish)[..] {
        let reply = if question == "ROLE" { MASTER } else { b"%0\r\n" };
        answer(setting, LinkName::Publish, reply).unwrap();
    }
}

/// It was taken for the answer to a push of the last link: 200, and lost.
#[test]
fn a_reply_to_nothing_answers_no_push_of_the_last_link() {
    for is_greeted in [false, true] {
        let mut setting = Setting::ready(1);
        setting.push(1, "sent", &TargetsBuf::default());
        assert_eq!(asked(&mut setting, LinkName::Publish).len(), 1);
        setting.broker.handle_lost(&mut setting.said);
        setting.broker.handle_open(setting.now_ms);
        if is_greeted {
            greet_publishing(&mut setting);
        }
        let result = answer(&mut setting, LinkName::Publish, b":1\r\n");
        assert_eq!(result, Err(LinkError::Unasked));
        assert!(setting.said.answers.is_empty());
        // It is sent again, and answered once.
        setting.broker.handle_lost(&mut setting.said);
        setting.broker.handle_open(setting.now_ms);
        setting.talk();
        assert_eq!(setting.said.answers, [(1, Outcome::Accepted)]);
    }
}

/// Pushes were accepted, and reached no other node.
#[test]
fn a_master_that_becomes_a_replica_is_left_within_a_second() {
    let mut setting = Setting::ready(1);
    let mut result = None;
    for _ in 0..1_000 / 50 {
        setting.now_ms += 50;
        setting.broker.handle_tick(setting.now_ms, &mut setting.said).unwrap();
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
    setting.broker.handle_lost(&mut setting.said);
    setting.push(1, "no", &TargetsBuf::default());
    assert_eq!(setting.said.answers, [(1, Outcome::Unreachable)]);
}
