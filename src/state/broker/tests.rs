//! A broker against a minimal simulated Redis. Whole clusters are tested in `tests/sim`.

use super::*;
use crate::state::projects::{Project, SubscribePolicy};
use crate::state::subscriptions::{BrokerRequest, Relay, Server, To};
use crate::types::{Cid, EventSet, Incarnation, MonotonicMs, Now, Routing, WallMs};
use crate::wire::envelope::{CidsBuf, NamesBuf, TargetsBuf};
use crate::wire::member::{self, Cids, Member, Servers};
use crate::wire::parcel::{self, Answer, Response, Sender};
use crate::wire::publication::Publication;
use crate::wire::sign::Secret;
use std::collections::BTreeMap;

mod forged;
mod ids;
mod late;
mod many_users;
mod reload;
mod replies;
mod resp_text;
mod stalls;

use resp_text::{bulk, commands, message};

fn ms(ms: u64) -> MonotonicMs {
    MonotonicMs::new(ms)
}

const KEYS: (u64, u64) = (1, 2);

/// Output of the broker to its workers.
#[derive(Debug, Default)]
struct Recorder {
    delivered: Vec<(u64, String)>,
    relayed: Vec<(u64, EnvelopeKind)>,
    events: Vec<(usize, WorkerEvent)>,
    answers: Vec<(u32, Outcome)>,
    ready: Vec<usize>,
    refused: Vec<(usize, Interest)>,
    canaries: usize,
    is_full: bool,
}

impl Sink for Recorder {
    fn deliver(&mut self, workers: u64, envelope: &Envelope<'_>, _bytes: &[u8]) {
        let data = std::str::from_utf8(envelope.data).unwrap().trim_matches('"').to_owned();
        self.delivered.push((workers, data));
    }

    fn relay(&mut self, workers: u64, _project: ProjectId, parcel: &[u8]) {
        let kind = Header::read(parcel).unwrap().kind;
        self.relayed.push((workers, kind));
    }

    fn event(&mut self, worker: usize, event: WorkerEvent) {
        self.events.push((worker, event));
    }

    fn answer(&mut self, pusher: Pusher, outcome: Outcome) {
        self.answers.push((pusher.ticket, outcome));
    }

    fn ready(&mut self, worker: usize, _interest: &Interest) {
        self.ready.push(worker);
    }

    fn refuse(&mut self, worker: usize, interest: &Interest) {
        self.refused.push((worker, interest.clone()));
    }

    fn canary(&mut self) {
        self.canaries += 1;
    }

    fn has_room(&self) -> bool {
        !self.is_full
    }
}

struct Setting {
    broker: Broker,
    recorder: Recorder,
    now: Now,
    /// Redis accepts what is published and delivers nothing.
    is_deaf: bool,
    /// Redis answers nothing at all.
    is_silent: bool,
    subscribed: Vec<Vec<u8>>,
    /// Channels that may not be subscribed to.
    forbidden: Vec<Vec<u8>>,
    /// Kinds of the messages published on the channel of events.
    events: Vec<EnvelopeKind>,
    /// Messages of another node: the highest number by channel, and the latest order.
    arrived: BTreeMap<Vec<u8>, u64>,
    order: u64,
    /// Redis's output buffer limit for a subscriber; 0: it does not report one.
    output_limit: usize,
    /// The number that Redis stores for this node's ids, or what it replies instead.
    number: i64,
    refuses_numbers: Option<&'static str>,
    asked_numbers: usize,
}

fn config(workers: usize) -> BrokerConfig {
    let project = Project {
        pid: "p".into(),
        secrets: vec![Secret::new(b"s")],
        allowed_origins: None,
        subscribe: SubscribePolicy::Any,
    };
    BrokerConfig {
        node: NodeId::new(7).unwrap(),
        incarnation: Arc::new(Incarnation::new(WallMs::new(100))),
        workers,
        projects: Arc::new(Projects::new(vec![project]).unwrap()),
        names: ChannelNames::new("x"),
        credentials: Credentials { url: "redis://h".parse().unwrap() },
        queue_timeout_ms: 2_000,
        max_envelope_bytes: 10_000,
        max_outgoing_channels: 100,
        hash_keys: KEYS,
        counters: Arc::default(),
    }
}

impl Setting {
    fn new(workers: usize) -> Self {
        Self {
            broker: Broker::new(config(workers)),
            recorder: Recorder::default(),
            now: Now { monotonic: MonotonicMs::new(1_000), wall: WallMs::default() },
            is_deaf: false,
            is_silent: false,
            subscribed: Vec::new(),
            forbidden: Vec::new(),
            events: Vec::new(),
            arrived: BTreeMap::new(),
            order: 0,
            output_limit: 0,
            number: 0,
            refuses_numbers: None,
            asked_numbers: 0,
        }
    }

    fn ready(workers: usize) -> Self {
        let mut setting = Self::new(workers);
        setting.open();
        assert!(!setting.broker.is_ready(), "what others have is waited for");
        setting.tick(150).unwrap();
        assert!(setting.broker.is_ready());
        setting
    }

    fn open(&mut self) {
        self.broker.handle_open(self.now);
        self.talk();
    }

    /// Lets Redis reply until neither side has anything to send.
    fn talk(&mut self) {
        loop {
            let mut was_quiet = true;
            for link in [LinkName::Subscribe, LinkName::Publish] {
                let mut out = Vec::new();
                self.broker.take_outgoing(link, &mut out, usize::MAX);
                let (mut answers, mut messages) = (Vec::new(), Vec::new());
                for command in commands(&out) {
                    was_quiet = false;
                    self.execute(&command, &mut answers, &mut messages);
                }
                if !self.is_silent {
                    self.hear(link, &answers);
                    self.hear(LinkName::Subscribe, &messages);
                }
            }
            if was_quiet {
                return;
            }
        }
    }

    fn execute(&mut self, command: &[Vec<u8>], answers: &mut Vec<u8>, messages: &mut Vec<u8>) {
        match &command[0][..] {
            b"SUBSCRIBE" if command[1..].iter().any(|one| self.forbidden.contains(one)) => {
                answers.extend_from_slice(b"-NOPERM no permissions to access a channel\r\n");
            }
            b"SUBSCRIBE" => {
                for channel in &command[1..] {
                    self.subscribed.push(channel.clone());
                    answers.extend_from_slice(b">3\r\n$9\r\nsubscribe\r\n");
                    bulk(answers, channel);
                    answers.extend_from_slice(b":1\r\n");
                }
            }
            b"UNSUBSCRIBE" => {
                self.subscribed.retain(|one| !command[1..].contains(one));
                for channel in &command[1..] {
                    answers.extend_from_slice(b">3\r\n$11\r\nunsubscribe\r\n");
                    bulk(answers, channel);
                    answers.extend_from_slice(b":1\r\n");
                }
            }
            b"PUBLISH" => {
                answers.extend_from_slice(b":1\r\n");
                if command[1].ends_with(b":e") {
                    self.events.push(Header::read(&command[2]).unwrap().kind);
                }
                if self.subscribed.contains(&command[1]) && !self.is_deaf {
                    message(messages, &command[1], &command[2]);
                }
            }
            b"INCRBY" => self.execute_incrby(command, answers),
            b"PING" => answers.extend_from_slice(b"+PONG\r\n"),
            b"CONFIG" if self.output_limit > 0 && command[2].ends_with(b"output-buffer-limit") => {
                answers.extend_from_slice(b"%1\r\n");
                bulk(answers, &command[2]);
                bulk(answers, format!("pubsub {} 0 0", self.output_limit).as_bytes());
            }
            _ => answers.extend_from_slice(b"%0\r\n"),
        }
    }

    fn hear(&mut self, link: LinkName, bytes: &[u8]) {
        let handled =
            self.broker.handle_bytes(link, bytes, self.now.monotonic, &mut self.recorder).unwrap();
        assert_eq!(handled.bytes, bytes.len());
    }

    fn tick(&mut self, ms: u64) -> Result<(), LinkError> {
        for _ in 0..ms / 50 {
            self.now.monotonic += 50;
            self.broker.handle_tick(self.now, &mut self.recorder)?;
            self.talk();
        }
        Ok(())
    }

    fn push(&mut self, ticket: u32, data: &str, targets: &TargetsBuf) {
        self.push_by(Routing::Project, ticket, data, targets);
    }

    fn push_by(&mut self, routing: Routing, ticket: u32, data: &str, targets: &TargetsBuf) {
        let (envelope, pusher) = (envelope(7, 100, data, targets), Pusher { worker: 0, ticket });
        self.broker.handle_push(&envelope, routing, pusher, self.now.monotonic, &mut self.recorder);
    }

    /// Delivers a message of another node.
    fn arrive(&mut self, seq: u64, data: &str, targets: &TargetsBuf) {
        let mut publication = Publication::default();
        let data = format!("\"{data}\"");
        let (names, envelope) = (ChannelNames::new("x"), envelope(9, 5, &data, targets));
        publication.add_message(&names, Routing::Project, &envelope);
        let encoded = publication.parts[0].envelope.clone();
        let highest = self.arrived.entry(publication.channel(0).to_vec()).or_default();
        // A repeated or late message has the order of its first transmission.
        let is_new = seq > *highest;
        *highest = seq.max(*highest);
        self.order = self.order.max(seq) + u64::from(is_new);
        let order = if is_new { self.order } else { seq };
        let bytes = &mut publication.bytes[encoded.clone()];
        Header::set_numbers(bytes, 5, seq, order);
        let mut bytes = Vec::new();
        message(&mut bytes, publication.channel(0), &publication.bytes[encoded]);
        self.hear(LinkName::Subscribe, &bytes);
    }

    fn join(&mut self, worker: usize) {
        let request = BrokerRequest::Join(Interest::Project(ProjectId(0)));
        self.broker.handle_request(worker, &request, self.now.monotonic, &mut self.recorder);
    }
}

fn envelope<'a>(node: u16, epoch: u64, data: &'a str, targets: &'a TargetsBuf) -> Envelope<'a> {
    Envelope {
        origin: NodeId::new(node).unwrap(),
        epoch,
        seq: 0,
        accepted_us: 0,
        trace: None,
        id: MessageId(1),
        ttl_ms: 0,
        key: None,
        pid: b"p",
        targets: targets.as_targets(),
        data: data.as_bytes(),
    }
}

fn uids(list: &[&str]) -> TargetsBuf {
    let mut names = NamesBuf::default();
    list.iter().for_each(|name| names.push(name));
    TargetsBuf { uids: Some(names), ..TargetsBuf::default() }
}

#[test]
fn a_push_is_answered_when_redis_has_it_and_comes_back_to_those_who_are_meant() {
    let mut setting = Setting::ready(2);
    setting.join(1);
    assert!(setting.recorder.ready.is_empty(), "not before Redis confirmed it");
    setting.talk();
    assert_eq!(setting.recorder.ready, [1]);
    setting.push(5, "hello", &TargetsBuf::default());
    assert!(setting.recorder.answers.is_empty());
    setting.talk();
    assert_eq!(setting.recorder.answers, [(5, Outcome::Accepted)]);
    assert_eq!(setting.recorder.delivered, [(0b10, "hello".into())]);
}

#[test]
fn while_the_links_are_down_nothing_is_accepted_and_nobody_waits() {
    let mut setting = Setting::new(1);
    setting.broker.handle_lost(&mut setting.recorder);
    setting.push(1, "no", &TargetsBuf::default());
    setting.join(0);
    assert_eq!(setting.recorder.answers, [(1, Outcome::Unreachable)]);
    assert_eq!(setting.recorder.ready, [0]);
    setting.broker.handle_open(setting.now);
    setting.push(2, "no", &TargetsBuf::default());
    assert_eq!(setting.recorder.answers[1], (2, Outcome::Unreachable));
    setting.talk();
    let names: [&[u8]; 3] = [b"x:node:7", b"x:{p}", b"x:{p}:n:7"];
    assert!(names.iter().all(|name| setting.subscribed.iter().any(|one| one == name)));
}

#[test]
fn what_was_not_answered_is_sent_again_and_delivered_once() {
    let mut setting = Setting::ready(1);
    setting.join(0);
    setting.talk();
    setting.push(1, "first", &TargetsBuf::default());
    setting.talk();
    // Redis executes the next one, and its reply is lost.
    setting.push(2, "second", &TargetsBuf::default());
    let mut out = Vec::new();
    setting.broker.take_outgoing(LinkName::Publish, &mut out, usize::MAX);
    let command = commands(&out).remove(0);
    let mut bytes = Vec::new();
    message(&mut bytes, &command[1], &command[2]);
    setting.hear(LinkName::Subscribe, &bytes);
    setting.broker.handle_lost(&mut setting.recorder);
    assert_eq!(setting.recorder.answers, [(1, Outcome::Accepted)]);
    setting.broker.handle_open(setting.now);
    setting.talk();
    assert_eq!(setting.recorder.answers, [(1, Outcome::Accepted), (2, Outcome::Accepted)]);
    let data: Vec<&str> = setting.recorder.delivered.iter().map(|(_, data)| &**data).collect();
    assert_eq!(data, ["first", "second"]);
}

#[test]
fn gaps_and_repeats_are_counted_by_origin_and_channel() {
    let mut setting = Setting::ready(1);
    setting.join(0);
    setting.talk();
    for seq in [4, 5, 5, 9, 3, 10] {
        setting.arrive(seq, &seq.to_string(), &TargetsBuf::default());
    }
    let data: Vec<&str> = setting.recorder.delivered.iter().map(|(_, data)| &**data).collect();
    assert_eq!(data, ["4", "5", "9", "10"]);
    let counters = &setting.broker.config.counters;
    assert_eq!(counters.repeated.value(), 2);
    let missed: Vec<_> = counters.missed().into_iter().collect();
    assert_eq!(missed, [((NodeId::new(9).unwrap(), "x:{p}".to_owned()), 3)]);
}

#[test]
fn only_workers_that_may_have_a_target_are_woken() {
    let mut setting = Setting::ready(4);
    (0..3).for_each(|worker| setting.join(worker));
    setting.talk();
    let user = |uid| user_hash(KEYS, ProjectId(0), uid);
    let (broker, recorder) = (&mut setting.broker, &mut setting.recorder);
    broker.handle_request(1, &BrokerRequest::UserHere(user("a")), ms(0), recorder);
    broker.handle_request(2, &BrokerRequest::UserHere(user("b")), ms(0), recorder);
    broker.handle_request(3, &BrokerRequest::UserHere(user("b")), ms(0), recorder);
    let mut cids = CidsBuf::default();
    cids.push(Cid(7 << 12 | 2 << 10));
    let cids = TargetsBuf { cids: Some(cids), ..TargetsBuf::default() };
    setting.arrive(1, "all", &TargetsBuf::default());
    setting.arrive(2, "a", &uids(&["a"]));
    setting.arrive(3, "a and b", &uids(&["a", "b"]));
    setting.arrive(4, "nobody", &uids(&["c"]));
    setting.arrive(1, "a client of worker 2", &cids);
    setting.broker.set_unsure(1);
    setting.arrive(5, "who knows", &uids(&["c"]));
    let expected = [
        (0b111, "all"),
        (0b010, "a"),
        (0b110, "a and b"),
        (0b100, "a client of worker 2"),
        (0b001, "who knows"),
    ];
    assert_eq!(setting.recorder.delivered, expected.map(|(set, data)| (set, data.to_owned())));
}

#[test]
fn a_redis_that_says_nothing_is_noticed_within_two_seconds() {
    let mut setting = Setting::ready(1);
    assert_eq!(setting.tick(60_000), Ok(()));
    setting.is_silent = true;
    assert_eq!(setting.tick(2_000), Err(LinkError::Silent));
}

#[test]
fn a_redis_that_delivers_nothing_is_noticed_by_the_canary() {
    let mut setting = Setting::ready(1);
    assert!(setting.tick(10_000).is_ok() && setting.recorder.canaries >= 9);
    setting.is_deaf = true;
    assert_eq!(setting.tick(5_000), Err(LinkError::CanaryLost));
}

#[test]
fn a_worker_that_does_not_hear_the_canary_is_named() {
    let mut setting = Setting::ready(2);
    for _ in 0..100 {
        setting.tick(50).unwrap();
        setting.broker.handle_canary_seen(0);
    }
    assert_eq!(setting.broker.stuck_worker(setting.now.monotonic), Some(1));
    setting.broker.handle_canary_seen(1);
    assert_eq!(setting.broker.stuck_worker(setting.now.monotonic), None);
}

#[test]
fn an_error_of_redis_refuses_the_push_and_its_number_is_given_again() {
    let mut setting = Setting::ready(1);
    setting.join(0);
    setting.talk();
    setting.push(1, "before", &TargetsBuf::default());
    setting.talk();
    setting.push(2, "refused", &TargetsBuf::default());
    setting.broker.take_outgoing(LinkName::Publish, &mut Vec::new(), usize::MAX);
    setting.hear(LinkName::Publish, b"-OOM command not allowed\r\n");
    setting.push(3, "after", &TargetsBuf::default());
    setting.talk();
    let (ok, refused) = (Outcome::Accepted, Outcome::Refused);
    assert_eq!(setting.recorder.answers, [(1, ok), (2, refused), (3, ok)]);
    assert!(setting.broker.config.counters.missed().is_empty());
}

#[test]
fn a_message_that_redis_took_in_part_is_neither_accepted_nor_refused() {
    let mut setting = Setting::ready(1);
    for (ticket, replies) in
        [":1\r\n:1\r\n", "-NOPERM\r\n-NOPERM\r\n", ":0\r\n-NOPERM\r\n"].into_iter().enumerate()
    {
        setting.push_by(Routing::User, ticket as u32, "1", &uids(&["a", "b"]));
        setting.broker.take_outgoing(LinkName::Publish, &mut Vec::new(), usize::MAX);
        setting.hear(LinkName::Publish, replies.as_bytes());
    }
    let expected = [Outcome::Accepted, Outcome::Refused, Outcome::Unknown];
    let answers: Vec<Outcome> =
        setting.recorder.answers.iter().map(|(_, outcome)| *outcome).collect();
    assert_eq!(answers, expected);
    let counters = &setting.broker.config.counters;
    let counts = [&counters.published, &counters.refused, &counters.unknown];
    assert_eq!(counts.map(|counter| counter.value()), [1, 1, 1]);
}

#[test]
fn bad_bytes_on_a_channel_cost_nothing_but_themselves() {
    let mut setting = Setting::ready(1);
    setting.join(0);
    setting.talk();
    for payload in [&b""[..], b"x", &[2; 44], &[0xff; 500]] {
        let mut bytes = Vec::new();
        message(&mut bytes, b"x:{p}", payload);
        message(&mut bytes, b"x:node:7", payload);
        setting.hear(LinkName::Subscribe, &bytes);
    }
    setting.arrive(1, &"x".repeat(10_000), &TargetsBuf::default());
    setting.arrive(2, "good", &TargetsBuf::default());
    assert_eq!(setting.recorder.delivered, [(1, "good".into())]);
    assert_eq!(setting.broker.config.counters.malformed.value(), 9);
}

#[test]
fn a_full_sink_pauses_the_reading() {
    let mut setting = Setting::ready(1);
    setting.recorder.is_full = true;
    let bytes = b">0\r\n>0\r\n";
    let (broker, recorder) = (&mut setting.broker, &mut setting.recorder);
    let handled = broker.handle_bytes(LinkName::Subscribe, bytes, ms(1_000), recorder).unwrap();
    assert_eq!(handled, Handled { bytes: 0, is_paused: true });
}

/// A client waited for ever if the second of its two channels was already in use by a business
/// server.
#[test]
fn whoever_needs_two_channels_is_told_when_both_are_in_force() {
    let mut setting = Setting::ready(1);
    let request = |setting: &mut Setting, interest| {
        let request = BrokerRequest::Join(interest);
        setting.broker.handle_request(0, &request, setting.now.monotonic, &mut setting.recorder);
    };
    request(&mut setting, Interest::Inbox(ProjectId(0)));
    setting.talk();
    assert_eq!(setting.recorder.ready.len(), 1);
    request(&mut setting, Interest::Project(ProjectId(0)));
    assert_eq!(setting.recorder.ready.len(), 1, "one of the two is not confirmed");
    setting.talk();
    assert_eq!(setting.recorder.ready.len(), 2);
    request(&mut setting, Interest::Events(ProjectId(0)));
    setting.broker.handle_lost(&mut setting.recorder);
    assert_eq!(setting.recorder.ready.len(), 3, "nobody waits for a link that is lost");
}

/// Delivers an announcement of node 9.
fn say<'a>(setting: &mut Setting, epoch: u64, version: u64, change: impl FnOnce(&mut Member<'a>)) {
    let sender = Sender { node: NodeId::new(9).unwrap(), epoch };
    let mut announcement = Member::new(sender, version);
    change(&mut announcement);
    let (mut envelope, mut bytes) = (Vec::new(), Vec::new());
    announcement.encode(&mut envelope);
    message(&mut bytes, b"x:nodes", &envelope);
    setting.hear(LinkName::Subscribe, &bytes);
}

fn here(cids: &[u64]) -> Vec<u8> {
    let mut list = Vec::new();
    for &cid in cids {
        let server = member::Server { cid: Cid(cid), events: EventSet::ALL, pid: "p" };
        member::add_server(&mut list, &server);
    }
    list
}

fn events(setting: &mut Setting) -> Vec<String> {
    let said = std::mem::take(&mut setting.recorder.events).into_iter();
    said.map(|(worker, event)| match event {
        WorkerEvent::ServerHere(server) => format!("{worker}: {} here", server.cid),
        WorkerEvent::ServerGone(cid) => format!("{worker}: {cid} gone"),
        WorkerEvent::ServerKnown(cid) => format!("{worker}: {cid} known"),
        WorkerEvent::Node { node, is_up } => format!("{worker}: node {node} {is_up}"),
        WorkerEvent::IdsBegin { used_ms } => format!("{worker}: ids after {used_ms}"),
    })
    .collect()
}

/// Returns the announcements published on a channel since the last call.
fn published(setting: &mut Setting, channel: &[u8]) -> Vec<Vec<u8>> {
    let mut out = Vec::new();
    setting.broker.take_outgoing(LinkName::Publish, &mut out, usize::MAX);
    let list = commands(&out);
    let mut answers = Vec::new();
    list.iter().for_each(|_| answers.extend_from_slice(b":1\r\n"));
    if !answers.is_empty() {
        setting.hear(LinkName::Publish, &answers);
    }
    list.into_iter().filter(|words| words[1] == channel).map(|words| words[2].clone()).collect()
}

#[test]
fn another_nodes_business_servers_are_told_of_as_they_come_and_go() {
    let mut setting = Setting::ready(1);
    let list = here(&[5, 6]);
    say(&mut setting, 1, 2, |announcement| {
        (announcement.is_full_state, announcement.here) = (true, Servers(&list))
    });
    assert_eq!(events(&mut setting), ["0: node 9 true", "0: 5 here", "0: 6 here"]);
    assert_eq!(setting.broker.nodes(), 2);
    let list = here(&[7]);
    say(&mut setting, 1, 3, |announcement| announcement.here = Servers(&list));
    say(&mut setting, 1, 3, |_| {});
    let gone = 5_u64.to_le_bytes();
    say(&mut setting, 1, 4, |announcement| announcement.gone = Cids(&gone));
    assert_eq!(events(&mut setting), ["0: 7 here", "0: 5 gone"]);
    let list = here(&[7, 8]);
    say(&mut setting, 1, 9, |announcement| {
        (announcement.is_full_state, announcement.here) = (true, Servers(&list))
    });
    assert_eq!(events(&mut setting), ["0: 6 gone", "0: 8 here"]);
    say(&mut setting, 2, 0, |announcement| announcement.is_full_state = true);
    assert_eq!(events(&mut setting), ["0: node 9 false", "0: node 9 true"]);
    say(&mut setting, 1, 9, |_| {});
    say(&mut setting, 2, 0, |announcement| announcement.is_leaving = true);
    say(&mut setting, 2, 0, |_| {});
    assert_eq!(
        events(&mut setting),
        ["0: node 9 false"],
        "nothing comes after its last announcement"
    );
    assert_eq!(setting.broker.nodes(), 1);
}

#[test]
fn whoever_missed_a_change_asks_for_everything() {
    let mut setting = Setting::ready(1);
    say(&mut setting, 1, 2, |announcement| announcement.is_full_state = true);
    published(&mut setting, b"");
    let list = here(&[7]);
    say(&mut setting, 1, 4, |announcement| announcement.here = Servers(&list));
    say(&mut setting, 1, 4, |_| {});
    let asked = published(&mut setting, b"x:node:9");
    assert_eq!(asked.len(), 1, "once");
    assert!(Member::decode(&asked[0]).unwrap().requests_full_state);
    events(&mut setting);
    say(&mut setting, 1, 4, |announcement| {
        (announcement.is_full_state, announcement.here) = (true, Servers(&list))
    });
    assert_eq!(events(&mut setting), ["0: 7 here"]);
    // When asked, it sends its full state.
    setting.now.monotonic += 100;
    say(&mut setting, 1, 4, |announcement| announcement.requests_full_state = true);
    let said = published(&mut setting, b"x:nodes");
    assert!(said.iter().any(|announcement| Member::decode(announcement).unwrap().is_full_state));
}

/// Through Redis a response arrived after the event that its business server was gone, and the
/// client received that error instead.
#[test]
fn a_parcel_for_another_worker_of_this_node_does_not_take_the_way_over_redis() {
    let mut setting = Setting::new(2);
    let sender = Sender { node: NodeId::new(7).unwrap(), epoch: 100 };
    let (id, server, pid) = (MessageId(1), Cid(5), "p");
    for (cid, expected) in
        [(7 << 12 | 1 << 11, &[(0b10, EnvelopeKind::Response)][..]), (9 << 12, &[])]
    {
        let client = Cid(cid);
        let mut parcel = Vec::new();
        Response { id, client, server, pid, answer: Answer::Gone }.encode(sender, &mut parcel);
        let to = To::Holder { project: ProjectId(0), cid: client };
        let request = BrokerRequest::Relay(Relay { to, parcel });
        setting.broker.handle_request(0, &request, setting.now.monotonic, &mut setting.recorder);
        assert_eq!(std::mem::take(&mut setting.recorder.relayed), expected);
    }
}

/// Messages taken by a broken link may arrive after those of the next one. Business servers that
/// connected meanwhile were gone until the next second, and so were their requests.
#[test]
fn a_word_that_was_overtaken_takes_nothing_back() {
    let mut setting = Setting::ready(1);
    let (before, after) = (here(&[5]), here(&[5, 6]));
    say(&mut setting, 1, 2, |announcement| {
        (announcement.is_full_state, announcement.here) = (true, Servers(&after))
    });
    events(&mut setting);
    published(&mut setting, b"");
    say(&mut setting, 1, 1, |announcement| {
        (announcement.is_full_state, announcement.here) = (true, Servers(&before))
    });
    say(&mut setting, 1, 1, |_| {});
    assert_eq!(events(&mut setting), [""; 0]);
    assert_eq!(published(&mut setting, b"x:node:9").len(), 0, "nothing is asked");
}

#[test]
fn a_node_that_is_silent_is_lost_and_one_whose_broker_stood_still_is_not() {
    let mut setting = Setting::ready(1);
    say(&mut setting, 1, 0, |announcement| announcement.is_full_state = true);
    events(&mut setting);
    setting.tick(4_900).unwrap();
    assert_eq!(events(&mut setting), [""; 0]);
    // This very thread was suspended: it has not listened.
    setting.now.monotonic += 1_100;
    setting.broker.handle_tick(setting.now, &mut setting.recorder).unwrap();
    setting.talk();
    assert_eq!(events(&mut setting), [""; 0]);
    setting.tick(5_100).unwrap();
    assert_eq!(events(&mut setting), ["0: node 9 false"]);
}

#[test]
fn what_waited_for_the_queue_goes_when_the_others_are_back_or_time_is_up() {
    for is_back in [true, false] {
        let mut setting = Setting::ready(1);
        say(&mut setting, 1, 0, |_| {});
        setting.broker.handle_lost(&mut setting.recorder);
        let sender = Sender { node: NodeId::new(7).unwrap(), epoch: 100 };
        let mut parcel = Vec::new();
        let list = parcel::EventList(&[]);
        parcel::Events { sender, worker: 0, pid: "p", list }.encode(&mut parcel);
        let relay = Relay { to: To::Events(ProjectId(0)), parcel };
        let now = setting.now.monotonic;
        setting.broker.handle_request(0, &BrokerRequest::Relay(relay), now, &mut setting.recorder);
        setting.now.monotonic += 100;
        setting.broker.handle_open(setting.now);
        setting.talk();
        setting.tick(900).unwrap();
        assert!(!setting.broker.is_ready() && setting.events.is_empty());
        match is_back {
            true => say(&mut setting, 1, 0, |_| {}),
            false => setting.now.monotonic += 50,
        }
        setting.tick(100).unwrap();
        assert!(setting.broker.is_ready());
        // The number follows what it numbers.
        assert_eq!(setting.events, [EnvelopeKind::Events, EnvelopeKind::Tail]);
    }
}
