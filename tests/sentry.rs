//! A real panic of a thread, and more errors than the limit, as Sentry receives them. There is one
//! test, because the reporter and its hook are per process.

mod support;

use serde_json::Value;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;
use support::PATIENCE;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use ws_cluster::ops::logs;
use ws_cluster::ops::sentry::{self, Reporter, Settings};
use ws_cluster::types::{NodeId, version};

const SIGN: &str = "fc693ec296eeb192fb6458696cdcdbabb265af8ab51ac61badcd7a8bb45ffae9";

/// Starts a Sentry that accepts everything; yields the events of each envelope.
fn endpoint() -> (String, Receiver<Value>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let dsn = format!("http://the-key@{}/42", listener.local_addr().unwrap());
    let (sender, events) = mpsc::channel();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = BufReader::new(stream.unwrap());
            while let Some((head, body)) = request(&mut stream) {
                assert!(head.starts_with("POST /api/42/envelope/ HTTP/1.1\r\n"), "{head}");
                assert!(head.to_ascii_lowercase().contains("sentry_key=the-key"), "{head}");
                stream
                    .get_mut()
                    .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
                    .unwrap();
                events_in(&body).for_each(|event| sender.send(event).unwrap());
            }
        }
    });
    (dsn, events)
}

fn request(stream: &mut impl BufRead) -> Option<(String, String)> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if stream.read_line(&mut head).unwrap_or(0) == 0 {
            return None;
        }
    }
    let length = |line: &str| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().unwrap())
    };
    let mut body = vec![0; head.lines().find_map(length).unwrap()];
    stream.read_exact(&mut body).unwrap();
    Some((head, String::from_utf8(body).unwrap()))
}

/// An envelope is a header line, then for each item a header line and the item.
fn events_in(envelope: &str) -> impl Iterator<Item = Value> {
    assert!(!envelope.contains("hunter2") && !envelope.contains(SIGN), "{envelope}");
    let lines: Vec<Value> =
        envelope.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let items = lines[1..].chunks_exact(2).map(|item| (item[0]["type"].clone(), item[1].clone()));
    items
        .filter(|(kind, _)| kind == "event")
        .map(|(_, event)| event)
        .collect::<Vec<_>>()
        .into_iter()
}

#[test]
fn a_panic_and_no_more_errors_than_a_few() {
    let (dsn, events) = endpoint();
    let (dsn, node) = (dsn.parse().unwrap(), NodeId::new(7).unwrap());
    let reporter = Reporter::start(Settings { dsn, node, environment: "test" }).unwrap();
    tracing_subscriber::registry().with(sentry::errors()).init();
    logs::log_panics();
    let next = || events.recv_timeout(PATIENCE).unwrap();

    let worker = thread::Builder::new().name("worker-3".into());
    let panics = || panic!("redis://u:hunter2@host, sign={SIGN}");
    worker.spawn(panics).unwrap().join().unwrap_err();
    let event = next();
    assert_eq!((&event["level"], &event["environment"]), (&"fatal".into(), &"test".into()));
    assert_eq!(event["release"], format!("ws-cluster@{}", version::FULL));
    let tags = serde_json::json!({ "node": "7", "thread": "worker-3", "worker": "3" });
    assert_eq!(event["tags"], tags);
    let exception = &event["exception"]["values"][0];
    assert_eq!(
        (&exception["type"], &exception["mechanism"]["handled"]),
        (&"panic".into(), &false.into())
    );
    assert_eq!(exception["value"], "redis://***@host, sign=***");
    let frames = exception["stacktrace"]["frames"].as_array().unwrap();
    let is_here =
        |frame: &Value| frame["function"].as_str().unwrap_or("").contains("a_panic_and_no");
    assert!(frames.iter().any(is_here), "{frames:#?}");
    assert!(!event["contexts"]["os"].is_null());

    for number in 0..15 {
        tracing::error!(number, token = "hunter2", text = %format_args!("sign={SIGN}"), "an error");
    }
    tracing::warn!("no error");
    for number in 0..9 {
        let event = next();
        assert_eq!((&event["level"], &event["message"]), (&Value::Null, &"an error".into()));
        assert_eq!(event["logger"], "sentry");
        let extra = serde_json::json!({ "number": number, "token": "***", "text": "sign=***" });
        assert_eq!(event["extra"], extra);
    }
    assert_eq!(sentry::unsent(), 6);
    thread::sleep(Duration::from_millis(3_100));
    tracing::error!("a late one");
    let event = next();
    assert_eq!(
        (&event["message"], &event["extra"]["events_not_sent"]),
        (&"a late one".into(), &6.into())
    );
    drop(reporter);
    assert!(events.try_recv().is_err(), "nothing else was sent");
}
