//! Pushes on real sockets: every client gets exactly what matches it, in order, once, whatever else
//! happens on the node. The expectation is computed from plain sets.
//!
//! The choices are the same each time, `PUSH_SEED=7` changes them; thread timing varies each time.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "push/hammer.rs"]
mod hammer;
#[path = "push/model.rs"]
mod model;
#[path = "support/rng.rs"]
mod rng;
mod support;

use hammer::Hammer;
use model::{Person, Selector, pushed, some};
use rng::Rng;
use std::collections::BTreeSet;
use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;
use support::{Http, Raw, Server, escaped, eventually, open_tcp, signed};
use tungstenite::{Message, WebSocket};

/// Two tenants whose users, tags and devices have the same names.
const PROJECTS: [(&str, &str); 2] = [("red", "secret of red"), ("blue.2", "secret of blue")];
const UIDS: [&str; 9] = ["ann", "bob", "u 3", "dörte", "5", "%2C", "g+h", "zoe", "ivy"];
const TAGS: [&str; 7] = ["news", "t 1", "t+2", "sport/ö", "x", "y", "z"];
const DEVICES: [&str; 3] = ["web", "ios", "tv-box_1"];

const CLIENTS: usize = 36;
const PUSHERS: usize = 4;
const ROUNDS: usize = 8;
const PUSHES: usize = 120;
const HAMMERS: usize = 2;

/// A projects file, deleted at the end of the test.
struct ProjectsFile(PathBuf);

impl ProjectsFile {
    fn new(name: &str) -> Self {
        let name = format!("ws-cluster-push-{name}-{}.toml", std::process::id());
        let file = Self(std::env::temp_dir().join(name));
        let project =
            |(pid, secret)| format!("[[project]]\npid = \"{pid}\"\nsecrets = [\"{secret}\"]\n");
        fs::write(&file.0, PROJECTS.map(project).concat()).unwrap();
        file
    }

    fn start(&self, args: &[&str]) -> Server {
        let file = ["--projects", self.0.to_str().unwrap()];
        Server::start(&[&file, args].concat())
    }
}

impl Drop for ProjectsFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn seed() -> u64 {
    let seed = std::env::var("PUSH_SEED").map_or(1, |text| text.parse().unwrap());
    println!("repeat with: PUSH_SEED={seed} cargo test --test push");
    seed
}

#[test]
fn exactly_the_matching_clients_with_one_worker() {
    exactly_the_matching_clients("1");
}

#[test]
fn exactly_the_matching_clients_with_three_workers() {
    exactly_the_matching_clients("3");
}

fn exactly_the_matching_clients(workers: &str) {
    let mut rng = Rng(seed());
    let file = ProjectsFile::new(workers);
    let server = file.start(&["--workers", workers]);
    let mut people: Vec<Person> = Vec::new();
    let mut sockets: Vec<Socket> = Vec::new();
    for _ in 0..CLIENTS {
        let (person, socket) = Socket::open(server.ws, &mut rng);
        people.push(person);
        sockets.push(socket);
    }
    let mut connections: Vec<Http> = (0..PUSHERS).map(|_| Http::open(server.http)).collect();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let (over, server) = (&over, &server);
        // Also if the test fails: otherwise the scope would wait for them for ever.
        let _guard = OnDrop(|| over.store(true, SeqCst));
        let hammers: Vec<_> = (0..HAMMERS)
            .map(|_| {
                let rng = Rng(rng.number());
                let hammer = Hammer::new(server.ws, server.http, PROJECTS[0], rng);
                scope.spawn(move || hammer.strike_until(over))
            })
            .collect();
        for round in 0..ROUNDS {
            for person in &mut people {
                person.plan_change(&mut rng, &TAGS);
            }
            run_round(round, &people, &mut sockets, &mut connections, &mut rng);
        }
        over.store(true, SeqCst);
        hammers.into_iter().for_each(|hammer| hammer.join().unwrap());
    });
    let only_clients = || server.metric("ws_connection") == CLIENTS as u64;
    eventually("only the clients are connected", only_clients);
    for reason in ["slow_consumer", "ttl", "mailbox_full"] {
        assert_eq!(
            server.metric(&format!("ws_cluster_drop_total{{reason=\"{reason}\"}}")),
            0,
            "{reason}"
        );
    }
    sockets.into_iter().for_each(Socket::close);
    eventually("nobody is connected", || server.metric("ws_connection") == 0);
    server.stop();
}

struct OnDrop<F: FnMut()>(F);

impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

/// An accepted push, and the subscription changes that had been answered before it.
struct Sent {
    project: usize,
    selector: Selector,
    id: String,
    settled: Vec<bool>,
}

/// What was pushed to one client: message id and data.
type Received = Vec<(String, String)>;

/// Pushers push and clients change their tags at the same time. Every pusher ends with a push to
/// all, so a client has everything of this round once it has those of all pushers.
fn run_round(
    round: usize,
    people: &[Person],
    sockets: &mut [Socket],
    connections: &mut [Http],
    rng: &mut Rng,
) {
    let settled: Vec<AtomicBool> =
        people.iter().map(|person| AtomicBool::new(person.change.is_none())).collect();
    let (sent, received): (Vec<Vec<Sent>>, Vec<Received>) = thread::scope(|scope| {
        let settled = &settled;
        let clients: Vec<_> = sockets
            .iter_mut()
            .zip(people)
            .zip(settled)
            .map(|((socket, person), settled)| {
                scope.spawn(move || socket.live_through(person, settled))
            })
            .collect();
        let pushers: Vec<_> = connections
            .iter_mut()
            .enumerate()
            .map(|(number, http)| {
                let rng = Rng(rng.number());
                let pusher =
                    Pusher { name: format!("{round}.{number}"), http, people, settled, rng };
                scope.spawn(move || pusher.push_all())
            })
            .collect();
        let sent = pushers.into_iter().map(|pusher| pusher.join().unwrap()).collect();
        (sent, clients.into_iter().map(|client| client.join().unwrap()).collect())
    });
    let mut definite = 0;
    for (index, (person, received)) in people.iter().zip(&received).enumerate() {
        for (number, sent) in sent.iter().enumerate() {
            definite += check(&format!("{round}.{number}"), index, person, sent, received);
        }
        let ids: BTreeSet<&str> = received.iter().map(|(id, _)| id.as_str()).collect();
        assert_eq!(ids.len(), received.len(), "a message id twice at {person:?}");
        let is_of_now = |(_, data): &(String, String)| data.starts_with(&format!("{round}."));
        assert!(received.iter().all(is_of_now), "from elsewhere: {received:?} at {person:?}");
    }
    assert!(definite > 0);
}

/// Compares the pushes received from one pusher with the expected ones; returns how many were
/// expected.
fn check(
    name: &str,
    index: usize,
    person: &Person,
    sent: &[Sent],
    received: &[(String, String)],
) -> usize {
    let own = format!("{name}.");
    let mut came = received.iter().filter(|(_, data)| data.starts_with(&own)).peekable();
    let mut definite = 0;
    for (seq, push) in sent.iter().enumerate() {
        let is_own = push.project == person.project;
        let matches = |tags| is_own && push.selector.matches(person, tags);
        let (before, after) = (matches(&person.before), matches(&person.after));
        let (must, may) =
            if push.settled[index] { (after, after) } else { (before && after, before || after) };
        let has_come = came.next_if(|(_, data)| *data == format!("{own}{seq}"));
        if let Some((id, _)) = has_come {
            assert_eq!(*id, push.id, "the id that the push was answered with");
        }
        let what = || format!("{own}{seq} by {:?} at {person:?}", push.selector);
        assert!(has_come.is_some() || !must, "missed: {}", what());
        assert!(has_come.is_none() || may, "not meant for it: {}", what());
        definite += usize::from(must);
    }
    assert_eq!(came.next(), None, "out of order or twice: {name} at {person:?}");
    definite
}

/// A keep-alive connection to the HTTP port, which pushes for both projects.
struct Pusher<'t> {
    name: String,
    http: &'t mut Http,
    people: &'t [Person],
    settled: &'t [AtomicBool],
    rng: Rng,
}

impl Pusher<'_> {
    fn push_all(mut self) -> Vec<Sent> {
        let mut sent = Vec::new();
        // The first one, to all, tells the clients to begin their changes.
        (0..PROJECTS.len()).for_each(|project| self.push(project, Selector::default(), &mut sent));
        while sent.len() < PUSHES {
            if sent.len() > PUSHES * 3 / 4 {
                // The rest comes after every answer, so all of it is guaranteed.
                eventually("every change is answered", || {
                    self.settled.iter().all(|settled| settled.load(SeqCst))
                });
            }
            let project = self.rng.below(PROJECTS.len());
            if self.rng.chance(15) {
                self.push_batch(project, &mut sent);
            } else {
                let selector = self.selector();
                self.push(project, selector, &mut sent);
            }
        }
        for (pid, secret) in PROJECTS {
            let body = format!(r#"{{"pid":"{pid}","data":"fence {}"}}"#, self.name);
            let answer = self.http.post_json("/ws/push", &body, secret);
            assert_eq!(answer.status, 200, "{}", answer.body);
        }
        sent
    }

    fn selector(&mut self) -> Selector {
        let rng = &mut self.rng;
        // Includes client ids of the other project, which match nothing.
        let cids: Vec<String> = self.people.iter().map(|person| person.cid.clone()).collect();
        let mut names = |percent, from: &[&str]| {
            rng.chance(percent)
                .then(|| some(rng, from, 3).into_iter().map(String::from).collect::<Vec<_>>())
        };
        let uids = names(35, &[&UIDS[..], &["nobody"]].concat());
        let tags = names(45, &[&TAGS[..], &["no such tag"]].concat());
        let devices = names(20, &DEVICES);
        let cids_wanted = rng.chance(20).then(|| some(rng, &cids, 8));
        let except = rng.chance(15).then(|| some(rng, &cids, 8));
        Selector { uids, cids: cids_wanted, tags, devices, except }
    }

    fn push(&mut self, project: usize, selector: Selector, sent: &mut Vec<Sent>) {
        let (pid, secret) = PROJECTS[project];
        let settled = self.settled();
        let data = format!("{}.{}", self.name, sent.len());
        let answer = match self.rng.below(4) {
            0 => {
                let form = self.form(pid, secret, &data, &selector);
                self.http.post_form("/ws/push", &form)
            }
            1 => {
                let query = self.form(pid, secret, &data, &selector);
                let head = format!("POST /ws/push?{query} HTTP/1.1\r\nHost: x\r\n");
                self.http.ask(&format!("{head}Content-Length: 0\r\n\r\n"))
            }
            _ => {
                let members = selector.json_members(self.rng.chance(50));
                let body = format!(r#"{{"pid":"{pid}",{members}"data":"{data}"}}"#);
                self.http.post_json("/ws/push", &body, secret)
            }
        };
        assert_eq!(answer.status, 200, "{}", answer.body);
        let id = answer.body.strip_prefix(r#"{"code":1,"msg":"success","id":""#);
        let id = id.and_then(|rest| rest.strip_suffix("\"}")).expect("a message id").into();
        sent.push(Sent { project, selector, id, settled });
    }

    fn push_batch(&mut self, project: usize, sent: &mut Vec<Sent>) {
        let (pid, secret) = PROJECTS[project];
        let settled = self.settled();
        let count = 1 + self.rng.below(5);
        let selectors: Vec<Selector> = (0..count).map(|_| self.selector()).collect();
        let message = |(index, selector): (usize, &Selector)| {
            let data = format!("{}.{}", self.name, sent.len() + index);
            format!(r#"{{{}"data":"{data}"}}"#, selector.json_members(true))
        };
        let messages = selectors.iter().enumerate().map(message).collect::<Vec<_>>().join(",");
        let body = format!(r#"{{"pid":"{pid}","messages":[{messages}]}}"#);
        let answer = self.http.post_json("/ws/push/batch", &body, secret);
        assert_eq!(answer.status, 200, "{}", answer.body);
        let ids: Vec<&str> = answer.body.split(r#"{"code":1,"id":""#).skip(1).collect();
        assert_eq!(ids.len(), selectors.len(), "{}", answer.body);
        for (selector, rest) in selectors.into_iter().zip(ids) {
            let id = rest.split('"').next().unwrap().into();
            sent.push(Sent { project, selector, id, settled: settled.clone() });
        }
    }

    fn settled(&self) -> Vec<bool> {
        self.settled.iter().map(|settled| settled.load(SeqCst)).collect()
    }

    fn form(&self, pid: &str, secret: &str, data: &str, selector: &Selector) -> String {
        let lists = selector.lists();
        let joined: Vec<(&str, String)> =
            lists.iter().map(|(name, list)| (*name, list.join(","))).collect();
        let mut params = vec![("pid", pid), ("data", data)];
        params.extend(joined.iter().map(|(name, list)| (*name, list.as_str())));
        signed("/ws/push", &params, secret)
    }
}

/// A client's connection.
struct Socket(WebSocket<TcpStream>);

impl Socket {
    fn open(address: SocketAddr, rng: &mut Rng) -> (Person, Self) {
        let project = rng.below(PROJECTS.len());
        let uid = *rng.pick(&UIDS);
        let device = if rng.chance(80) { *rng.pick(&DEVICES) } else { "" };
        let tags: BTreeSet<String> = if rng.chance(70) {
            some(rng, &TAGS, 4).into_iter().map(String::from).collect()
        } else {
            BTreeSet::new()
        };
        let list = tags.iter().map(String::as_str).collect::<Vec<_>>().join(",");
        let (pid, secret) = PROJECTS[project];
        let mut params = vec![("pid", pid), ("uid", uid)];
        if !device.is_empty() {
            params.push(("device", device));
        }
        if !list.is_empty() {
            params.push(("tags", &list));
        }
        let query = signed("/ws/connect", &params, secret);
        let url = format!("ws://{address}/ws/connect?{query}");
        let (socket, response) = tungstenite::client(url, open_tcp(address)).unwrap();
        assert_eq!(response.status().as_u16(), 101);
        let mut socket = Self(socket);
        let welcome = socket.text();
        let start = r#"{"type":"connect","code":1,"msg":"success","client_id":""#;
        let cid = welcome.strip_prefix(start).and_then(|rest| rest.split('"').next());
        let cid = cid.expect("a welcome").to_string();
        let (uid, device) = (uid.into(), device.into());
        let (before, after) = (tags.clone(), tags);
        (Person { project, uid, device, cid, before, after, change: None }, socket)
    }

    fn text(&mut self) -> String {
        match self.0.read().unwrap() {
            Message::Text(text) => text.to_string(),
            other => panic!("not a text: {other:?}"),
        }
    }

    /// Reads until every pusher has ended its round; requests the change of tags after the first
    /// push, and records when it was answered.
    fn live_through(&mut self, person: &Person, settled: &AtomicBool) -> Received {
        let mut received = Vec::new();
        let mut fences = BTreeSet::new();
        let mut change = person.change.as_ref();
        let mut answered = change.is_none();
        while fences.len() < PUSHERS || !answered {
            let text = self.text();
            if let Some((id, data)) = pushed(&text) {
                if data.starts_with("fence ") {
                    assert!(fences.insert(data.to_string()), "twice: {text}");
                    continue;
                }
                received.push((id.to_string(), data.to_string()));
                if let Some(change) = change.take() {
                    self.0.send(Message::text(change.message())).unwrap();
                }
            } else {
                assert!(!answered && change.is_none(), "unasked: {text}");
                person.check_reply(&text);
                answered = true;
                settled.store(true, SeqCst);
            }
        }
        received
    }

    fn close(mut self) {
        self.0.close(None).unwrap();
        loop {
            match self.0.read() {
                Ok(message) => assert!(message.is_close(), "{message}"),
                Err(tungstenite::Error::ConnectionClosed) => return,
                Err(error) => panic!("{error}"),
            }
        }
    }
}

#[test]
fn a_slow_client_is_closed_with_4000_and_the_others_get_everything() {
    for workers in ["1", "3"] {
        let file = ProjectsFile::new(&format!("slow-{workers}"));
        let args = ["--workers", workers, "--outbox_bytes", "65536", "--linger_ms", "60000"];
        slow_client(&file.start(&args));
    }
}

/// Pushes 16 KiB to all until a client that reads nothing is closed; then reads what was sent to
/// it.
fn slow_client(server: &Server) {
    let mut rng = Rng(1);
    let (pid, secret) = PROJECTS[0];
    let slow = signed("/ws/connect", &[("pid", pid), ("uid", "slow")], secret);
    let mut slow = Raw::open(server.ws, &format!("/ws/connect?{slow}"));
    let mut others: Vec<(Person, Socket)> = Vec::new();
    while others.len() < 6 {
        let (person, socket) = Socket::open(server.ws, &mut rng);
        match person.project {
            0 => others.push((person, socket)),
            _ => socket.close(),
        }
    }
    let padding = "p".repeat(16 << 10);
    let mut http = Http::open(server.http);
    let mut pushes = 0;
    let slow_closes = || server.metric("ws_cluster_close_total{reason=\"slow_consumer\"}");
    while pushes % 16 != 0 || slow_closes() == 0 {
        assert!(pushes < 8_000, "128 MiB, and the slow one is still there");
        let body = format!(r#"{{"pid":"{pid}","data":"{pushes} {padding}"}}"#);
        assert_eq!(http.post_json("/ws/push", &body, secret).status, 200);
        for (_, socket) in &mut others {
            let text = socket.text();
            let (_, data) = pushed(&text).expect("a push");
            assert_eq!(data.split(' ').next().unwrap(), pushes.to_string());
        }
        pushes += 1;
    }
    assert!(slow.frame().1.starts_with(br#"{"type":"connect""#));
    let mut came = 0;
    let code = loop {
        let (first, payload) = slow.frame();
        if first == 0x88 {
            break u16::from_be_bytes([payload[0], payload[1]]);
        }
        let text = String::from_utf8(payload).unwrap();
        let (_, data) = pushed(&text).expect("a push");
        assert_eq!(data, format!("{came} {padding}"), "whole and in order");
        came += 1;
    };
    assert_eq!(code, 4000);
    assert!(slow.is_at_end());
    let dropped = server.metric("ws_cluster_drop_total{reason=\"slow_consumer\"}");
    assert!(came < pushes && (1..=pushes - came).contains(&dropped), "{came} {dropped} {pushes}");
    assert_eq!(server.metric("ws_cluster_delivery_total"), others.len() as u64 * pushes + came);
    for reason in ["disconnected", "closed", "ttl", "mailbox_full"] {
        assert_eq!(
            server.metric(&format!("ws_cluster_drop_total{{reason=\"{reason}\"}}")),
            0,
            "{reason}"
        );
    }
    assert_eq!(slow_closes(), 1);
    others.into_iter().for_each(|(_, socket)| socket.close());
}

#[test]
fn names_survive_every_spelling() {
    assert_eq!(escaped("a b+ö,%"), "a%20b%2B%C3%B6%2C%25");
}
