//! What is published: messages of several nodes on the channels of several projects, numbered as
//! their nodes would; and brokers that receive them.

use std::io::{self, Error};
use std::sync::Arc;

use ws_cluster::state::broker::{
    Broker, BrokerConfig, Credentials, LinkName, MAX_OUTGOING_CHANNELS, Sink, user_hash,
};
use ws_cluster::state::counters::BrokerCounters;
use ws_cluster::state::projects::{Project, Projects, SubscribePolicy};
use ws_cluster::state::subscriptions::{BrokerRequest, Interest};
use ws_cluster::types::{Incarnation, MessageId, MonotonicMs, NodeId, Now, WallMs};
use ws_cluster::wire::envelope::{Envelope, Header, NamesBuf, Targets};
use ws_cluster::wire::publication::ChannelNames;
use ws_cluster::wire::resp::write_command;

use super::workers::Workers;
use super::{Way, workers_of};

pub const PROJECTS: usize = 8;
const ORIGINS: usize = 4;
/// Pairs of node and channel, each with its own series of sequence numbers.
pub const PAIRS: usize = PROJECTS * ORIGINS;
const USERS: usize = 10_000;
const HASH_KEYS: (u64, u64) = (0x1234_5678, 0x9abc_def0);

pub struct Load {
    names: ChannelNames,
    pids: Vec<String>,
    uids: Vec<String>,
    /// A JSON string.
    data: Vec<u8>,
    /// No selector: for every client of the project.
    is_for_all: bool,
}

impl Load {
    pub fn new(prefix: &str, bytes: usize, is_for_all: bool) -> Self {
        let text = "x".repeat(bytes.saturating_sub(2));
        Self {
            names: ChannelNames::new(prefix),
            pids: (0..PROJECTS).map(|number| format!("project-{number}")).collect(),
            uids: (0..USERS).map(|number| format!("user-{number}")).collect(),
            data: format!("\"{text}\"").into_bytes(),
            is_for_all,
        }
    }

    /// Returns the sequence number of a message within its series.
    pub fn seq(index: usize) -> u64 {
        (index / PAIRS) as u64 + 1
    }

    /// Writes a message's sequence number into its envelope.
    pub fn number(index: usize, envelope: &mut [u8]) {
        Header::set_numbers(envelope, 1, Self::seq(index), index as u64 + 1);
    }

    /// Writes the channel and the envelope of a message.
    pub fn write(
        &self,
        index: usize,
        channel: &mut Vec<u8>,
        envelope: &mut Vec<u8>,
    ) -> io::Result<()> {
        channel.clear();
        envelope.clear();
        self.names.project(channel, &self.pids[index % PROJECTS]);
        let origin = node(2 + (index / PROJECTS % ORIGINS) as u16)?;
        self.with_message(index, origin, |message| message.encode(envelope));
        Self::number(index, envelope);
        Ok(())
    }

    /// Passes a message of a node to `take`; it has no sequence number.
    pub fn with_message(&self, index: usize, origin: NodeId, take: impl FnOnce(&Envelope<'_>)) {
        let mut uids = NamesBuf::default();
        // A stride that visits all, so that neighbours are not adjacent in a table.
        uids.push(&self.uids[index * 7_919 % USERS]);
        let targets =
            Targets { uids: (!self.is_for_all).then(|| uids.as_names()), ..Targets::default() };
        take(&Envelope {
            origin,
            epoch: 1,
            seq: 0,
            accepted_us: 1_700_000_000_000_000,
            trace: None,
            id: MessageId(index as u64),
            ttl_ms: 0,
            key: None,
            pid: self.pids[index % PROJECTS].as_bytes(),
            targets,
            data: &self.data,
        });
    }

    /// Returns `messages` messages as Redis pushes them to a RESP3 subscriber.
    pub fn recording(&self, messages: usize) -> io::Result<Vec<u8>> {
        let (mut out, mut channel, mut envelope) = (Vec::new(), Vec::new(), Vec::new());
        for index in 0..messages {
            self.write(index, &mut channel, &mut envelope)?;
            write_push(&mut out, &channel, &envelope);
        }
        Ok(out)
    }

    /// Returns `messages` `PUBLISH` commands, and where in them the envelopes begin.
    pub fn commands(&self, messages: usize) -> io::Result<(Vec<u8>, Vec<usize>)> {
        let (mut out, mut channel, mut envelope) = (Vec::new(), Vec::new(), Vec::new());
        let mut envelopes = Vec::with_capacity(messages);
        for index in 0..messages {
            self.write(index, &mut channel, &mut envelope)?;
            write_command(&mut out, &[b"PUBLISH", &channel, &envelope]);
            envelopes.push(out.len() - envelope.len() - b"\r\n".len());
        }
        Ok((out, envelopes))
    }
}

/// Returns a broker whose workers subscribe to all projects, with the users spread over them; its
/// links are down.
pub fn broker(
    load: &Load,
    way: &Way,
) -> io::Result<(Broker, Box<dyn Workers>, Arc<BrokerCounters>)> {
    let (mut workers, counters) = workers_of(way)?;
    let project = |pid: &String| Project {
        pid: pid.as_str().into(),
        secrets: Vec::new(),
        allowed_origins: None,
        subscribe: SubscribePolicy::Any,
    };
    let list = load.pids.iter().map(project).collect();
    let projects = Projects::new(list).map_err(|_| Error::other("two projects share a pid"))?;
    let projects = Arc::new(projects);
    let url = "redis://127.0.0.1:6379/0".parse().map_err(Error::other)?;
    let mut broker = Broker::new(BrokerConfig {
        node: node(1)?,
        incarnation: Arc::new(Incarnation::new(WallMs::new(1))),
        workers: way.workers,
        projects: Arc::clone(&projects),
        names: load.names.clone(),
        credentials: Credentials { url },
        queue_timeout_ms: 2_000,
        max_envelope_bytes: 8 << 20,
        max_outgoing_channels: MAX_OUTGOING_CHANNELS,
        hash_keys: HASH_KEYS,
        counters: Arc::clone(&counters),
    });
    workers.with_sink(&mut |sink| {
        for (project, _) in projects.iter() {
            for worker in 0..way.workers {
                broker.handle_request(
                    worker,
                    &BrokerRequest::Join(Interest::Project(project)),
                    MonotonicMs::default(),
                    sink,
                );
            }
            for (number, uid) in load.uids.iter().enumerate().filter(|_| way.workers > 1) {
                let here = BrokerRequest::UserHere(user_hash(HASH_KEYS, project, uid));
                broker.handle_request(number % way.workers, &here, MonotonicMs::default(), sink);
            }
        }
    });
    workers.drain();
    Ok((broker, workers, counters))
}

/// Opens the broker's links to a stand-in for Redis, until it is ready.
pub fn make_ready(broker: &mut Broker, workers: &mut dyn Workers) -> io::Result<()> {
    let mut result = Ok(());
    workers.with_sink(&mut |sink| result = answer_all(broker, sink));
    workers.drain();
    result
}

fn answer_all(broker: &mut Broker, sink: &mut dyn Sink) -> io::Result<()> {
    let mut waited_ms = 0;
    let mut ids_ms = 0;
    broker.handle_open(Now::default());
    // The answers to each link; messages go to the subscribing link.
    while !broker.is_ready() {
        let mut answers = [Vec::new(), Vec::new()];
        let mut is_silent = true;
        for link in [LinkName::Publish, LinkName::Subscribe] {
            let mut asked = Vec::new();
            broker.take_outgoing(link, &mut asked, usize::MAX);
            is_silent &= asked.is_empty();
            for command in commands_in(&asked)? {
                let answer = &mut answers[link as usize];
                match &command[..] {
                    [b"HELLO", ..] => answer.extend_from_slice(b"%1\r\n$5\r\nproto\r\n:3\r\n"),
                    [b"ROLE"] => answer.extend_from_slice(b"*3\r\n$6\r\nmaster\r\n:0\r\n*0\r\n"),
                    [b"CONFIG", ..] => answer.extend_from_slice(b"%0\r\n"),
                    [b"INCRBY", _, by] => {
                        let by = std::str::from_utf8(by).map_err(Error::other)?;
                        ids_ms += by.parse::<u64>().map_err(Error::other)?;
                        answer.extend_from_slice(format!(":{ids_ms}\r\n").as_bytes());
                    }
                    [b"SUBSCRIBE", channels @ ..] => {
                        for channel in channels {
                            let length = channel.len();
                            let head = format!(">3\r\n$9\r\nsubscribe\r\n${length}\r\n");
                            answer.extend_from_slice(head.as_bytes());
                            answer.extend_from_slice(channel);
                            answer.extend_from_slice(b"\r\n:1\r\n");
                        }
                    }
                    [b"PUBLISH", channel, payload] => {
                        answer.extend_from_slice(b":1\r\n");
                        write_push(&mut answers[LinkName::Subscribe as usize], channel, payload);
                    }
                    _ => return Err(Error::other("the broker sent an unexpected command")),
                }
            }
        }
        if is_silent {
            // It waits for announcements of other nodes.
            waited_ms += 50;
            if waited_ms > 1_000 {
                return Err(Error::other("the broker is not ready and sends nothing"));
            }
            broker.handle_tick(Now::default() + waited_ms, sink).map_err(Error::other)?;
        }
        for (link, answer) in [LinkName::Publish, LinkName::Subscribe].into_iter().zip(&answers) {
            let now = MonotonicMs::new(waited_ms);
            broker.handle_bytes(link, answer, now, sink).map_err(Error::other)?;
        }
    }
    Ok(())
}

/// Returns Redis's answers to PUBLISH commands on either link.
pub fn answers(asked: &[u8]) -> io::Result<[Vec<u8>; 2]> {
    let mut answers = [Vec::new(), Vec::new()];
    for command in commands_in(asked)? {
        let [b"PUBLISH", channel, payload] = &command[..] else { return Err(malformed()) };
        answers[LinkName::Publish as usize].extend_from_slice(b":1\r\n");
        write_push(&mut answers[LinkName::Subscribe as usize], channel, payload);
    }
    Ok(answers)
}

/// Splits complete commands, as a client writes them.
fn commands_in(mut bytes: &[u8]) -> io::Result<Vec<Vec<&[u8]>>> {
    let mut commands = Vec::new();
    while !bytes.is_empty() {
        let words = take_number(&mut bytes, b'*')?;
        let mut command = Vec::with_capacity(words);
        for _ in 0..words {
            let length = take_number(&mut bytes, b'$')?;
            let (word, rest) = bytes.split_at_checked(length).ok_or_else(malformed)?;
            bytes = rest.strip_prefix(b"\r\n").ok_or_else(malformed)?;
            command.push(word);
        }
        commands.push(command);
    }
    Ok(commands)
}

fn take_number(bytes: &mut &[u8], kind: u8) -> io::Result<usize> {
    let end = bytes.iter().position(|&byte| byte == b'\r').ok_or_else(malformed)?;
    let text = bytes[..end].strip_prefix(&[kind]).and_then(|text| std::str::from_utf8(text).ok());
    let number = text.and_then(|text| text.parse().ok()).ok_or_else(malformed)?;
    *bytes = bytes.get(end + b"\r\n".len()..).ok_or_else(malformed)?;
    Ok(number)
}

fn malformed() -> Error {
    Error::other("the broker wrote something that is not a command")
}

fn write_push(out: &mut Vec<u8>, channel: &[u8], payload: &[u8]) {
    out.extend_from_slice(b">3\r\n$7\r\nmessage\r\n");
    for text in [channel, payload] {
        out.extend_from_slice(format!("${}\r\n", text.len()).as_bytes());
        out.extend_from_slice(text);
        out.extend_from_slice(b"\r\n");
    }
}

pub fn node(number: u16) -> io::Result<NodeId> {
    NodeId::new(number).ok_or_else(|| Error::other("no such node"))
}
