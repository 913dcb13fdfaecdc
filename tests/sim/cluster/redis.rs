//! An in-memory Redis, and the links to it. It works on bytes: commands in, replies out. Like the
//! real one it does one thing at a time, keeps the order within each connection only, and delivers
//! a message to exactly those who are subscribed at that moment.

use super::super::rng::Rng;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use ws_cluster::state::broker::LinkName;
use ws_cluster::wire::bundle;
use ws_cluster::wire::envelope::{EnvelopeKind, Header};
use ws_cluster::wire::member::Member;

/// One direction of a link: bytes in flight, in order.
#[derive(Default)]
struct Pipe {
    chunks: VecDeque<(u64, Vec<u8>)>,
    last_due_ms: u64,
    /// Nothing arrives any more. What is written is kept: the kernel would retransmit it.
    is_dead: bool,
}

impl Pipe {
    fn write(&mut self, mut bytes: &[u8], now_ms: u64, rng: &mut Rng) {
        while !bytes.is_empty() {
            let most = if rng.chance(70) { bytes.len() } else { 1 + rng.below(bytes.len()) };
            let delay = match rng.below(100) {
                0..60 => 0,
                60..97 => rng.below(12),
                _ => rng.below(120),
            };
            self.last_due_ms = self.last_due_ms.max(now_ms + delay as u64);
            self.chunks.push_back((self.last_due_ms, bytes[..most].to_vec()));
            bytes = &bytes[most..];
        }
    }

    fn read(&mut self, now_ms: u64, into: &mut Vec<u8>) {
        while !self.is_dead
            && let Some((due_ms, _)) = self.chunks.front()
            && *due_ms <= now_ms
            && let Some((_, bytes)) = self.chunks.pop_front()
        {
            into.extend_from_slice(&bytes);
        }
    }

    /// Loses everything in flight from a random byte on.
    fn cut(&mut self, rng: &mut Rng) {
        let total: usize = self.chunks.iter().map(|(_, bytes)| bytes.len()).sum();
        let mut left = rng.below(total + 1);
        for (_, bytes) in &mut self.chunks {
            bytes.truncate(left);
            left -= bytes.len();
        }
        self.chunks.retain(|(_, bytes)| !bytes.is_empty());
    }

    /// Delays everything in flight.
    fn delay(&mut self, by_ms: u64) {
        self.chunks.iter_mut().for_each(|(due_ms, _)| *due_ms += by_ms);
    }
}

/// Identity of a connection: its node, and that node's incarnation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    pub node: usize,
    pub epoch: u64,
    pub link: LinkName,
}

struct Link {
    owner: Owner,
    opened_ms: u64,
    up: Pipe,
    down: Pipe,
    /// The node has it open. If not, what has arrived is executed all the same.
    has_peer: bool,
    /// The node notices its end once `down` is read.
    is_cut: bool,
    inbox: Vec<u8>,
    is_resp3: bool,
    is_let_in: bool,
    channels: BTreeSet<Vec<u8>>,
    /// Bytes written to the node, and bytes that it has taken.
    written: u64,
    taken: u64,
    /// Messages sent to it.
    messages: VecDeque<Delivery>,
}

/// A message in flight to a subscriber.
#[derive(Clone)]
pub struct Delivery {
    /// Its end among the bytes of its link.
    end: u64,
    /// The command that brought it: its connection and, if this is the first of the bundle, its
    /// payload.
    command: (u64, usize),
    pub channel: Vec<u8>,
    pub header: Header,
    /// A node announces that it is leaving.
    pub is_last_word: bool,
}

/// An executed PUBLISH.
pub struct Execution {
    pub owner: Owner,
    pub opened_ms: u64,
    pub channel: Vec<u8>,
    pub header: Header,
    /// It was answered with an error, and nobody received it.
    pub is_refused: bool,
    /// A later connection of the same node was faster.
    pub is_late: bool,
    /// A request, an answer or events, complete.
    pub parcel: Option<Vec<u8>>,
}

/// What a node reads from a link.
#[derive(Default)]
pub struct Read {
    pub bytes: Vec<u8>,
    /// The connection has ended.
    pub is_over: bool,
}

pub struct Redis {
    links: BTreeMap<u64, Link>,
    next_link: u64,
    has_hello: bool,
    password: Option<&'static str>,
    pub is_up: bool,
    /// Stopped (SIGSTOP) until then.
    pub stalled_until_ms: u64,
    /// Percentage of PUBLISHes that are refused.
    pub refused_percent: usize,
    /// `client-output-buffer-limit pubsub`; 0: querying it is refused.
    pub output_limit: usize,
    /// Commands that found more than a quarter of that in flight to their publisher.
    pub crowded: u64,
    /// The newest publishing connection of each incarnation that has been heard.
    newest: BTreeMap<(usize, u64), u64>,
    /// Its counters by key; they are not persistent.
    numbers: BTreeMap<Vec<u8>, u64>,
    /// Executed since the last call of [`Redis::take_executions`].
    executions: Vec<Execution>,
    pub commands: u64,
}

impl Redis {
    pub fn new(has_hello: bool, password: Option<&'static str>) -> Self {
        Self {
            links: BTreeMap::new(),
            next_link: 0,
            has_hello,
            password,
            is_up: true,
            stalled_until_ms: 0,
            refused_percent: 0,
            output_limit: 0,
            crowded: 0,
            newest: BTreeMap::new(),
            numbers: BTreeMap::new(),
            executions: Vec::new(),
            commands: 0,
        }
    }

    // The nodes' side.

    /// Opens a connection; `None`: refused.
    pub fn open(&mut self, owner: Owner, now_ms: u64) -> Option<u64> {
        if !self.is_up {
            return None;
        }
        self.next_link += 1;
        let link = Link {
            owner,
            opened_ms: now_ms,
            up: Pipe::default(),
            down: Pipe::default(),
            has_peer: true,
            is_cut: false,
            inbox: Vec::new(),
            is_resp3: false,
            is_let_in: self.password.is_none(),
            channels: BTreeSet::new(),
            written: 0,
            taken: 0,
            messages: VecDeque::new(),
        };
        self.links.insert(self.next_link, link);
        Some(self.next_link)
    }

    pub fn write(&mut self, link: u64, bytes: &[u8], now_ms: u64, rng: &mut Rng) {
        if let Some(link) = self.links.get_mut(&link).filter(|link| !link.is_cut) {
            link.up.write(bytes, now_ms, rng);
        }
    }

    pub fn read(&mut self, link: u64, now_ms: u64) -> Read {
        let Some(link) = self.links.get_mut(&link) else {
            return Read { is_over: true, ..Read::default() };
        };
        let mut read = Read::default();
        link.down.read(now_ms, &mut read.bytes);
        read.is_over = link.is_cut && link.down.chunks.is_empty() && !link.down.is_dead;
        read
    }

    /// Records the bytes that the node's broker has taken; returns the messages complete by then.
    pub fn take_messages(&mut self, link: u64, bytes: usize) -> Vec<Delivery> {
        let Some(link) = self.links.get_mut(&link) else { return Vec::new() };
        link.taken += bytes as u64;
        let mut whole = Vec::new();
        while let Some(delivery) = link.messages.pop_front_if(|one| one.end <= link.taken) {
            whole.push(delivery);
        }
        whole
    }

    /// Closes the node's end. What it has sent is still in flight, some of it for long.
    pub fn close(&mut self, link: u64, rng: &mut Rng) {
        let Some(link) = self.links.get_mut(&link) else { return };
        link.has_peer = false;
        link.is_cut = true;
        if link.up.is_dead {
            // The network recovers, and the kernel may or may not have given up.
            link.up.is_dead = false;
            link.up.cut(rng);
        }
        if rng.chance(40) {
            link.up.delay(rng.number() % 3_000);
        }
    }

    /// Returns the number of channels that the node subscribes to.
    pub fn channels(&self, node: usize) -> usize {
        let links = self.links.values().filter(|link| link.has_peer && link.owner.node == node);
        links.map(|link| link.channels.len()).sum()
    }

    // Faults.

    /// Breaks the link: of what is in flight, some prefix arrives.
    pub fn cut(&mut self, link: u64, rng: &mut Rng) {
        if let Some(link) = self.links.get_mut(&link) {
            link.is_cut = true;
            link.up.cut(rng);
            link.down.cut(rng);
        }
    }

    /// Lets nothing arrive from now on, without notifying anybody.
    pub fn deafen(&mut self, link: u64) {
        if let Some(link) = self.links.get_mut(&link) {
            link.up.is_dead = true;
            link.down.is_dead = true;
        }
    }

    /// Ends Redis. What it had sent may arrive.
    pub fn die(&mut self, rng: &mut Rng) {
        self.is_up = false;
        if self.output_limit > 0 {
            self.output_limit = random_output_limit(rng);
        }
        self.numbers.clear();
        self.stalled_until_ms = 0;
        for link in self.links.values_mut() {
            link.is_cut = true;
            link.inbox.clear();
            link.channels.clear();
            link.up.chunks.clear();
            link.down.cut(rng);
        }
    }

    // Redis's own side.

    pub fn take_executions(&mut self) -> Vec<Execution> {
        std::mem::take(&mut self.executions)
    }

    /// Executes what has arrived, or part of it: connections take turns at random.
    pub fn run(&mut self, now_ms: u64, rng: &mut Rng) {
        if !self.is_up {
            return self.links.retain(|_, link| link.has_peer);
        }
        for link in self.links.values_mut() {
            link.up.read(now_ms, &mut link.inbox);
        }
        if now_ms < self.stalled_until_ms {
            return;
        }
        let mut most = if rng.chance(80) { usize::MAX } else { rng.below(6) };
        let mut ready: Vec<u64> = self.links.keys().copied().collect();
        ready.retain(|link| command_bytes(&self.links[link].inbox).is_some());
        while !ready.is_empty() && most > 0 {
            let index = rng.below(ready.len());
            let id = ready[index];
            for _ in 0..1 + rng.below(4) {
                let Some(bytes) = command_bytes(&self.links[&id].inbox) else { break };
                let link = self.links.get_mut(&id).unwrap();
                let command: Vec<u8> = link.inbox.drain(..bytes).collect();
                self.execute(id, &arguments(&command), now_ms, rng);
                most = most.saturating_sub(1);
            }
            if command_bytes(&self.links[&id].inbox).is_none() {
                ready.swap_remove(index);
            }
        }
        self.links.retain(|_, link| {
            let is_done = link.up.chunks.is_empty() && command_bytes(&link.inbox).is_none();
            link.has_peer || !is_done
        });
    }

    fn execute(&mut self, id: u64, arguments: &[&[u8]], now_ms: u64, rng: &mut Rng) {
        self.commands += 1;
        let name = std::str::from_utf8(arguments[0]).unwrap();
        let (has_hello, password) = (self.has_hello, self.password);
        let link = self.links.get_mut(&id).unwrap();
        let reply: &[u8] = match name {
            "HELLO" if !has_hello => b"-ERR unknown command 'HELLO'\r\n",
            "HELLO" => {
                let auth = arguments.iter().position(|word| *word == b"AUTH");
                let given = auth.map(|at| arguments[at + 2]);
                link.is_let_in |= given == password.map(str::as_bytes);
                link.is_resp3 = link.is_let_in;
                match link.is_let_in {
                    true => b"%2\r\n$6\r\nserver\r\n$5\r\nredis\r\n$7\r\nmodules\r\n*0\r\n",
                    false => b"-WRONGPASS invalid username-password pair\r\n",
                }
            }
            "AUTH" => {
                link.is_let_in = arguments.last().copied() == password.map(str::as_bytes);
                if link.is_let_in { b"+OK\r\n" } else { b"-WRONGPASS no\r\n" }
            }
            _ if !link.is_let_in => b"-NOAUTH Authentication required.\r\n",
            "CLIENT" | "SELECT" => b"+OK\r\n",
            "ROLE" => b"*3\r\n$6\r\nmaster\r\n:0\r\n*0\r\n",
            "CONFIG" if self.output_limit > 0 => {
                let mut reply = Vec::from(if link.is_resp3 { "%1\r\n" } else { "*2\r\n" });
                let value = match std::str::from_utf8(arguments[2]).unwrap() {
                    "client-output-buffer-limit" => {
                        format!("normal 0 0 0 slave 0 0 0 pubsub {} 0 0", self.output_limit)
                    }
                    _ => (1_u64 << 30).to_string(),
                };
                for bytes in [arguments[2], value.as_bytes()] {
                    reply.extend_from_slice(format!("${}\r\n", bytes.len()).as_bytes());
                    reply.extend_from_slice(bytes);
                    reply.extend_from_slice(b"\r\n");
                }
                return link.tell(&reply, now_ms, rng);
            }
            "CONFIG" => b"-NOPERM this user has no permissions to run the 'config|get' command\r\n",
            "PING" if !link.is_resp3 && !link.channels.is_empty() => {
                b"*2\r\n$4\r\npong\r\n$0\r\n\r\n"
            }
            "PING" => b"+PONG\r\n",
            "SUBSCRIBE" | "UNSUBSCRIBE" => {
                for channel in &arguments[1..] {
                    let link = self.links.get_mut(&id).unwrap();
                    match name {
                        "SUBSCRIBE" => link.channels.insert(channel.to_vec()),
                        _ => link.channels.remove(*channel),
                    };
                    let kind = name.to_lowercase();
                    let mut reply = vec![if link.is_resp3 { b'>' } else { b'*' }];
                    let head = format!("3\r\n${}\r\n{kind}\r\n${}\r\n", kind.len(), channel.len());
                    reply.extend_from_slice(head.as_bytes());
                    reply.extend_from_slice(channel);
                    let count = link.channels.len();
                    reply.extend_from_slice(format!("\r\n:{count}\r\n").as_bytes());
                    link.tell(&reply, now_ms, rng);
                }
                return;
            }
            "INCRBY" => {
                let number = self.numbers.entry(arguments[1].to_vec()).or_default();
                *number += std::str::from_utf8(arguments[2]).unwrap().parse::<u64>().unwrap();
                let reply = format!(":{number}\r\n");
                return self.links.get_mut(&id).unwrap().tell(reply.as_bytes(), now_ms, rng);
            }
            "PUBLISH" => return self.publish(id, arguments[1], arguments[2], now_ms, rng),
            other => panic!("Redis was told {other}"),
        };
        link.tell(reply, now_ms, rng);
    }

    fn publish(&mut self, id: u64, channel: &[u8], payload: &[u8], now_ms: u64, rng: &mut Rng) {
        let envelopes = envelopes_of(payload);
        let read = |envelope: &&[u8]| Header::read(envelope).expect("an envelope");
        let headers: Vec<Header> = envelopes.iter().map(read).collect();
        let link = self.links.get_mut(&id).unwrap();
        assert!(link.channels.is_empty(), "a subscribed link publishes");
        let newest = self.newest.entry((link.owner.node, link.owner.epoch)).or_default();
        *newest = id.max(*newest);
        let is_refused = rng.chance(self.refused_percent);
        let is_late = id < *newest;
        let is_last_word = headers[0].kind == EnvelopeKind::Member
            && Member::decode(envelopes[0]).expect("an announcement of a node").is_leaving;
        let both = headers.iter().zip(envelopes);
        self.executions.extend(both.map(|(&header, envelope)| Execution {
            owner: link.owner,
            opened_ms: link.opened_ms,
            channel: channel.to_vec(),
            header,
            is_refused,
            is_late,
            parcel: is_parcel(header.kind).then(|| envelope.to_vec()),
        }));
        if is_refused {
            return link.tell(b"-OOM command not allowed\r\n", now_ms, rng);
        }
        // Sometimes somebody else publishes a message with sequence numbers that no node issued.
        let forged = rng.chance(3) && headers[0].kind == EnvelopeKind::Message;
        let forged = forged.then(|| {
            let mut bytes = envelopes_of(payload)[0].to_vec();
            let number = (1 << 49) + rng.number() % (1 << 62);
            let order = if rng.chance(50) { number } else { headers[0].order };
            Header::set_numbers(&mut bytes, headers[0].epoch, number, order);
            bytes
        });
        let mut receivers = 0;
        for link in self.links.values_mut().filter(|link| link.channels.contains(channel)) {
            receivers += 1;
            let mut message = Vec::new();
            link.write_message(&mut message, channel, payload);
            // The link may break after it, before the forged message has arrived.
            let end = link.written + message.len() as u64;
            if let Some(forged) = &forged {
                link.write_message(&mut message, channel, forged);
            }
            let channel = channel.to_vec();
            let each = headers.iter().enumerate().map(|(index, &header)| Delivery {
                end,
                command: (id, if index == 0 { payload.len() } else { 0 }),
                channel: channel.clone(),
                header,
                is_last_word,
            });
            link.messages.extend(each);
            link.tell(&message, now_ms, rng);
        }
        let link = self.links.get_mut(&id).unwrap();
        link.tell(format!(":{receivers}\r\n").as_bytes(), now_ms, rng);
        self.check_under_way(id);
    }

    /// Checks that what was published on a connection and is in flight to the publishing node fits
    /// into one output buffer, unless it is a single command.
    fn check_under_way(&mut self, id: u64) {
        let owner = Owner { link: LinkName::Subscribe, ..self.links[&id].owner };
        let mut before = self.links.range(..id).rev();
        let Some((_, own)) = before.find(|(_, link)| link.owner == owner) else { return };
        if self.output_limit == 0 || own.is_cut || !own.has_peer {
            return;
        }
        let commands = own.messages.iter().map(|one| one.command).filter(|one| one.0 == id);
        let sizes: Vec<usize> = commands.map(|one| one.1).filter(|bytes| *bytes > 0).collect();
        let bytes = sizes.iter().sum::<usize>();
        let most = self.output_limit / 5 * 4;
        assert!(sizes.len() == 1 || bytes <= most, "{sizes:?} are under way of {most}");
        self.crowded += u64::from(sizes.len() > 1 && bytes > most / 4);
    }
}

/// Returns an output limit; some hold no more than a large bundle.
pub fn random_output_limit(rng: &mut Rng) -> usize {
    *rng.pick(&[90_000, 90_000, 120_000, 32 << 20])
}

fn envelopes_of(payload: &[u8]) -> Vec<&[u8]> {
    bundle::envelopes(payload).collect::<Result<_, _>>().expect("a whole bundle")
}

impl Link {
    fn write_message(&self, out: &mut Vec<u8>, channel: &[u8], payload: &[u8]) {
        out.push(if self.is_resp3 { b'>' } else { b'*' });
        out.extend_from_slice(b"3\r\n$7\r\nmessage\r\n");
        for bytes in [channel, payload] {
            out.extend_from_slice(format!("${}\r\n", bytes.len()).as_bytes());
            out.extend_from_slice(bytes);
            out.extend_from_slice(b"\r\n");
        }
    }

    fn tell(&mut self, bytes: &[u8], now_ms: u64, rng: &mut Rng) {
        if self.has_peer && !self.is_cut {
            self.written += bytes.len() as u64;
            self.down.write(bytes, now_ms, rng);
        }
    }
}

fn is_parcel(kind: EnvelopeKind) -> bool {
    matches!(
        kind,
        EnvelopeKind::Request
            | EnvelopeKind::Response
            | EnvelopeKind::Events
            | EnvelopeKind::Cancel
    )
}

/// Returns the length of the first command, if it is complete.
fn command_bytes(bytes: &[u8]) -> Option<usize> {
    let (count, mut at) = length(bytes, 0, b'*')?;
    for _ in 0..count {
        let (length, start) = length(bytes, at, b'$')?;
        at = start + length + 2;
    }
    (at <= bytes.len()).then_some(at)
}

fn arguments(command: &[u8]) -> Vec<&[u8]> {
    let (count, mut at) = length(command, 0, b'*').unwrap();
    let mut next = || {
        let (length, start) = length(command, at, b'$').unwrap();
        at = start + length + 2;
        assert_eq!(&command[at - 2..at], b"\r\n");
        &command[start..start + length]
    };
    (0..count).map(|_| next()).collect()
}

/// Parses a number on its line; returns it and where the next line begins.
fn length(bytes: &[u8], at: usize, kind: u8) -> Option<(usize, usize)> {
    let line = bytes.get(at..)?;
    let end = line.windows(2).position(|pair| pair == b"\r\n")?;
    assert_eq!(line[0], kind, "not a command: {:?}", String::from_utf8_lossy(line));
    Some((std::str::from_utf8(&line[1..end]).unwrap().parse().unwrap(), at + end + 2))
}
