//! What Redis reports about itself: whether it is a replica, and the largest message it accepts and
//! delivers.

use super::{Event, LinkError};
use crate::wire::resp::{PARAMETERS, Reply, write_command};
use std::fmt;

/// Positions in [`PARAMETERS`].
const QUERY_BUFFER: usize = 0;
const BULK: usize = 1;
const OUTPUT_BUFFER: usize = 2;
const MEMORY: usize = 3;
const CLIENTS: usize = 4;

/// Redis's defaults, assumed where it does not permit us to ask.
const DEFAULT_BYTES: [u64; PARAMETERS.len()] = [1 << 30, 512 << 20, 32 << 20, u64::MAX, u64::MAX];
/// Redis allocates a subscriber's output in blocks of at least this, and counts them whole.
const OUTPUT_BLOCK_BYTES: u64 = 20 << 10;
/// Output that needs no block: a subscriber's fixed buffer holds it, however low the limit.
const UNCOUNTED_BYTES: usize = 512;
/// Redis takes a smaller `maxmemory-clients` for this.
const MIN_CLIENTS_BYTES: u64 = 128 << 10;
/// What a link takes of `maxmemory-clients` while it is idle: 22 KB in Redis 7.
const LINK_BYTES: usize = 32 << 10;
/// Contents of Redis's query buffer besides the message: its command and channel, and the rest of
/// what was read before it.
const QUERY_SLACK_BYTES: usize = 64 << 10;

/// Questions to Redis on the publishing link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Question {
    Ping,
    Role,
    /// The role, where this node's user may not run ROLE: HELLO is permitted to everyone.
    Hello,
    /// The value of a parameter, by index in [`PARAMETERS`].
    Parameter(usize),
}

impl Question {
    /// Questions on a new publishing link before anything is published on it.
    pub const AT_GREETING: [Self; 1 + PARAMETERS.len()] = [
        Self::Role,
        Self::Parameter(QUERY_BUFFER),
        Self::Parameter(BULK),
        Self::Parameter(OUTPUT_BUFFER),
        Self::Parameter(MEMORY),
        Self::Parameter(CLIENTS),
    ];

    pub fn write(self, out: &mut Vec<u8>) {
        match self {
            Self::Ping => write_command(out, &[b"PING"]),
            Self::Role => write_command(out, &[b"ROLE"]),
            Self::Hello => write_command(out, &[b"HELLO"]),
            Self::Parameter(index) => {
                write_command(out, &[b"CONFIG", b"GET", PARAMETERS[index].as_bytes()]);
            }
        }
    }

    fn command(self) -> Command {
        match self {
            Self::Ping => Command::Ping,
            Self::Role | Self::Hello => Command::Role,
            Self::Parameter(_) => Command::ConfigGet,
        }
    }
}

/// Whether Redis refuses a PING with this error but still executes PUBLISH and SUBSCRIBE: it cannot
/// save, it is loading its data, or it is a replica without its primary.
pub(super) fn is_sign_of_life(error: &[u8]) -> bool {
    ["MISCONF", "LOADING", "MASTERDOWN"].iter().any(|word| error.starts_with(word.as_bytes()))
}

/// A command that Redis may forbid to this node's user and that the node can do without.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    Ping,
    Role,
    ConfigGet,
    Unsubscribe,
}

impl Command {
    /// The ACL rule that permits the command.
    pub fn rule(self) -> &'static str {
        match self {
            Self::Ping => "+ping",
            Self::Role => "+role",
            Self::ConfigGet => "+config|get",
            Self::Unsubscribe => "+unsubscribe",
        }
    }

    /// What the node does not do without it.
    pub fn loss(self) -> &'static str {
        match self {
            Self::Ping => "without it, errors count as replies to it",
            Self::Role => "without it, only HELLO with RESP3 tells whether Redis is a master",
            Self::ConfigGet => {
                "without it, Redis's default limits on the size of a message are assumed"
            }
            Self::Unsubscribe => {
                "without it, messages on channels that are no longer needed still arrive"
            }
        }
    }
}

/// The largest message that the queue carries, and what limits it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SizeLimit {
    /// Of an envelope: the data of a push, its selectors, and about 100 bytes.
    pub bytes: usize,
    /// `None`: this node's own limit on bytes that wait for Redis.
    parameter: Option<(&'static str, u64)>,
}

impl fmt::Display for SizeLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the queue carries at most {} bytes, selectors included", self.bytes)?;
        match self.parameter {
            None => write!(f, ": send less, or a reference to the data"),
            Some((name @ "client-output-buffer-limit", value)) => write!(
                f,
                " (Redis: {name} pubsub {value}): send less, or raise it: CONFIG SET {name} \
                 \"pubsub 268435456 67108864 60\""
            ),
            Some((name, value)) => {
                write!(f, " (Redis: {name} {value}): send less, or raise it: CONFIG SET {name} ")?;
                write!(f, "{}", value.saturating_mul(4))
            }
        }
    }
}

/// What Redis has reported in this incarnation of the links.
#[derive(Debug)]
pub(super) struct Facts {
    /// Names the Redis in errors, without a password.
    url: String,
    /// Reported by HELLO.
    is_replica: bool,
    /// Every node of a Redis Cluster delivers what is published on it to all nodes.
    is_cluster: bool,
    may_ask_role: bool,
    may_ask_hello: bool,
    may_ask_parameters: bool,
    /// Bytes by parameter; `None`: unknown.
    parameters: [Option<u64>; PARAMETERS.len()],
    /// Bytes that this node may hold.
    own_bytes: usize,
    /// Live nodes, this one included.
    nodes: usize,
    limit: SizeLimit,
    /// Commands refused so far: each is logged once.
    refused: Vec<Command>,
    events: Vec<Event>,
}

impl Facts {
    pub(super) fn new(url: String, own_bytes: usize) -> Self {
        Self {
            url,
            is_replica: false,
            is_cluster: false,
            may_ask_role: true,
            may_ask_hello: false,
            may_ask_parameters: true,
            parameters: [None; PARAMETERS.len()],
            own_bytes,
            nodes: 1,
            limit: SizeLimit { bytes: own_bytes, parameter: None },
            refused: Vec::new(),
            events: Vec::new(),
        }
    }

    /// The largest message that can be delivered, as of the last [`Facts::settle_limit`].
    pub(super) fn limit(&self) -> SizeLimit {
        self.limit
    }

    /// Handles Redis's refusal of a message for its length.
    pub(super) fn handle_too_long(&mut self, bytes: usize) {
        let most = (bytes as u64).saturating_sub(1);
        let known = &mut self.parameters[BULK];
        *known = Some(known.unwrap_or(most).min(most));
        self.settle_limit(self.nodes);
    }

    /// Recomputes the limit once Redis's parameters are known or have changed, or the number of
    /// live nodes has.
    pub(super) fn settle_limit(&mut self, nodes: usize) {
        self.nodes = nodes;
        let limit = self.size_limit();
        if std::mem::replace(&mut self.limit, limit) != limit {
            self.events.push(Event::Limit(limit));
        }
    }

    /// Resets the facts for new links: they may lead to another Redis.
    pub(super) fn handle_open(&mut self) {
        (self.is_replica, self.is_cluster) = (false, false);
        (self.may_ask_role, self.may_ask_parameters) = (true, true);
        self.may_ask_hello = false;
        self.parameters = [None; PARAMETERS.len()];
    }

    /// Handles the reply to HELLO on the publishing link.
    pub(super) fn handle_hello(&mut self, reply: &Reply<'_>) {
        if let Reply::Server { mode, role } = reply {
            self.may_ask_hello = true;
            self.is_cluster = *mode == b"cluster";
            self.is_replica = matches!(*role, b"replica" | b"slave");
        }
    }

    /// Whether the answer may bring anything new.
    pub(super) fn may_ask(&self, question: Question) -> bool {
        match question {
            Question::Ping => true,
            Question::Role => self.may_ask_role,
            Question::Hello => self.may_ask_hello && !self.may_ask_role,
            Question::Parameter(_) => self.may_ask_parameters,
        }
    }

    pub(super) fn handle_answer(
        &mut self,
        question: Question,
        reply: &Reply<'_>,
    ) -> Result<(), LinkError> {
        match (question, reply) {
            (Question::Ping, Reply::Pong) => Ok(()),
            (_, Reply::Error(text)) if is_sign_of_life(text) => Ok(()),
            (Question::Ping, Reply::Error(text)) if !is_forbidden(text) => {
                Err(LinkError::Refused(String::from_utf8_lossy(text).into_owned()))
            }
            (_, Reply::Error(text)) if is_forbidden(text) || text.starts_with(b"ERR") => {
                self.handle_refusal(question, text)
            }
            // Redis may be busy, for example: the next question may be answered.
            (_, Reply::Error(_)) => Ok(()),
            (Question::Role, Reply::Role { role, master }) => self.handle_role(role, *master),
            (Question::Parameter(index), Reply::Parameter { name, value })
                if PARAMETERS[index].as_bytes() == *name =>
            {
                self.parameters[index] = self.read_parameter(index, value);
                Ok(())
            }
            (Question::Hello, Reply::Server { .. }) => {
                self.handle_hello(reply);
                match self.is_replica && !self.is_cluster {
                    true => Err(self.is_no_master(None)),
                    false => Ok(()),
                }
            }
            // Redis does not have this parameter or role.
            (Question::Role | Question::Hello | Question::Parameter(_), Reply::Other) => Ok(()),
            _ => Err(LinkError::Unasked),
        }
    }

    fn handle_refusal(&mut self, question: Question, text: &[u8]) -> Result<(), LinkError> {
        match question {
            Question::Ping => {}
            Question::Role => self.may_ask_role = false,
            Question::Hello => self.may_ask_hello = false,
            Question::Parameter(_) => self.may_ask_parameters = false,
        }
        self.note_refusal(question.command(), text);
        match question {
            // HELLO's report is all there is to know.
            Question::Role if self.is_replica && !self.is_cluster => Err(self.is_no_master(None)),
            _ => Ok(()),
        }
    }

    /// Notes that Redis refused a command that the node can do without.
    pub(super) fn note_refusal(&mut self, command: Command, text: &[u8]) {
        if !self.refused.contains(&command) {
            self.refused.push(command);
            let error = String::from_utf8_lossy(text).into_owned();
            self.events.push(Event::Forbidden { command, error });
        }
    }

    fn handle_role(&self, role: &[u8], master: Option<(&[u8], i64)>) -> Result<(), LinkError> {
        match role {
            b"master" => Ok(()),
            b"slave" if self.is_cluster => Ok(()),
            b"slave" => Err(self.is_no_master(master)),
            _ => Err(LinkError::Refused(format!(
                "{} is a Sentinel: point --redis at the master that it reports",
                self.url
            ))),
        }
    }

    fn is_no_master(&self, master: Option<(&[u8], i64)>) -> LinkError {
        let master = master
            .map(|(host, port)| format!(" of {}:{port}", String::from_utf8_lossy(host)))
            .unwrap_or_default();
        LinkError::Replica { url: self.url.clone(), master }
    }

    /// The value of a parameter, or its default.
    fn parameter(&self, index: usize) -> u64 {
        self.parameters[index].unwrap_or(DEFAULT_BYTES[index])
    }

    /// Bytes that Redis holds for one subscriber before it disconnects it.
    fn subscriber_bytes(&self) -> usize {
        let value = self.parameter(OUTPUT_BUFFER);
        let in_blocks = usize::try_from(value.saturating_sub(OUTPUT_BLOCK_BYTES));
        usable(value).min(in_blocks.unwrap_or(usize::MAX)).max(UNCOUNTED_BYTES)
    }

    /// Bytes that this cluster's messages may take of `maxmemory-clients`, the sum over all clients
    /// beyond which Redis disconnects the largest.
    fn clients_bytes(&self) -> usize {
        let usable = usable(self.parameter(CLIENTS));
        let links = 2 * self.nodes * LINK_BYTES;
        // A limit this small is as full of other things as of links.
        usable - links.min(usable / 2)
    }

    /// Copies of a message: one on its way into Redis, one for each node.
    fn copies(&self) -> usize {
        self.nodes + 1
    }

    /// Bytes of this node that Redis may hold for each subscriber. Nodes do not know what others
    /// have in transit: each takes its share.
    pub(super) fn window_bytes(&self) -> usize {
        self.subscriber_bytes().min(self.clients_bytes() / self.copies()) / self.nodes
    }

    fn size_limit(&self) -> SizeLimit {
        let mut limit = SizeLimit { bytes: self.own_bytes, parameter: None };
        for (index, name) in PARAMETERS.into_iter().enumerate() {
            let value = self.parameter(index);
            let whole = usize::try_from(value).unwrap_or(usize::MAX);
            let bytes = match index {
                QUERY_BUFFER => whole.saturating_sub(QUERY_SLACK_BYTES),
                OUTPUT_BUFFER => self.subscriber_bytes(),
                CLIENTS => self.clients_bytes() / self.copies(),
                // It bounds what is stored, and PUBLISH stores nothing.
                MEMORY => continue,
                _ => whole,
            };
            if bytes < limit.bytes {
                limit = SizeLimit { bytes, parameter: Some((name, value)) };
            }
        }
        limit
    }

    /// Parses the bytes that a parameter allows; of the output buffer limits, the hard limit for
    /// subscribers. The soft limit disconnects a subscriber that stays above it for long,
    /// regardless of message sizes.
    fn read_parameter(&self, index: usize, value: &[u8]) -> Option<u64> {
        let text = std::str::from_utf8(value).ok()?;
        let unless_0 = |bytes: u64| if bytes == 0 { u64::MAX } else { bytes };
        match index {
            OUTPUT_BUFFER => {
                let mut words = text.split_ascii_whitespace();
                words.find(|word| *word == "pubsub")?;
                words.next()?.parse().ok().map(unless_0)
            }
            CLIENTS => {
                let bytes = match text.strip_suffix('%') {
                    // Without a `maxmemory` it limits nothing.
                    Some(percent) => {
                        let hundredth = self.parameters[MEMORY]? / 100;
                        hundredth.saturating_mul(percent.parse().ok()?)
                    }
                    None => text.parse().ok()?,
                };
                Some(unless_0(bytes).max(MIN_CLIENTS_BYTES))
            }
            _ => text.parse().ok(),
        }
    }

    pub(super) fn take_events(&mut self) -> impl Iterator<Item = Event> {
        self.events.drain(..)
    }
}

/// Whether an error reports that this user may not run the command at all.
pub(super) fn is_forbidden(error: &[u8]) -> bool {
    error.starts_with(b"NOPERM") || error.starts_with(b"ERR unknown command")
}

/// Part of a limit on buffers that messages may fill: Redis counts what its allocator returned, a
/// quarter more at worst.
fn usable(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX) / 5 * 4
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: Question = Question::Parameter(OUTPUT_BUFFER);

    fn facts() -> Facts {
        Facts::new("redis://h:6379/0".into(), 64 << 20)
    }

    fn answer(facts: &mut Facts, index: usize, value: &str) {
        let reply =
            Reply::Parameter { name: PARAMETERS[index].as_bytes(), value: value.as_bytes() };
        facts.handle_answer(Question::Parameter(index), &reply).unwrap();
    }

    #[test]
    fn the_smallest_bound_is_named_with_its_fix() {
        let mut facts = facts();
        let default = facts.size_limit();
        assert_eq!(default.bytes, (32 << 20) / 5 * 4, "Redis's own default");
        answer(&mut facts, OUTPUT_BUFFER, "normal 0 0 0 slave 268435456 67108864 60 pubsub 0 0 0");
        assert_eq!(facts.size_limit(), SizeLimit { bytes: 64 << 20, parameter: None });
        answer(&mut facts, QUERY_BUFFER, "1048576");
        let limit = facts.size_limit();
        assert_eq!(limit.bytes, (1 << 20) - (64 << 10));
        let text = limit.to_string();
        for word in ["983040", "client-query-buffer-limit 1048576", "CONFIG SET"] {
            assert!(text.contains(word), "{text}");
        }
        answer(&mut facts, OUTPUT_BUFFER, "normal 0 0 0 slave 0 0 0 pubsub 65536 0 0");
        assert!(facts.size_limit().to_string().contains("pubsub 65536"));
        // The next link may lead to another Redis.
        facts.handle_open();
        assert_eq!(facts.size_limit(), default);
    }

    /// All clients of Redis share `maxmemory-clients`: a message is held once on its way in, and
    /// once for each node.
    #[test]
    fn the_memory_of_all_clients_is_shared_by_the_nodes() {
        let mut facts = facts();
        let default = facts.size_limit();
        answer(&mut facts, MEMORY, "0");
        for value in ["0", "50%", "x%", "-1", ""] {
            answer(&mut facts, CLIENTS, value);
            assert_eq!(facts.size_limit(), default, "{value}");
        }
        for (memory, value) in [("0", "10485760"), ("104857600", "10%")] {
            answer(&mut facts, MEMORY, memory);
            answer(&mut facts, CLIENTS, value);
            facts.settle_limit(1);
            let alone = facts.limit();
            assert_eq!(alone.bytes, ((8 << 20) - 2 * LINK_BYTES) / 2);
            assert_eq!(facts.window_bytes(), alone.bytes);
            assert!(alone.to_string().contains("maxmemory-clients 10485760"), "{alone}");
            facts.settle_limit(4);
            assert_eq!(facts.limit().bytes, ((8 << 20) - 8 * LINK_BYTES) / 5);
            assert_eq!(facts.window_bytes(), facts.limit().bytes / 4);
            assert_eq!(facts.take_events().last(), Some(Event::Limit(facts.limit)));
        }
        answer(&mut facts, CLIENTS, "1");
        facts.settle_limit(100);
        assert!(facts.limit().bytes > 256 && facts.window_bytes() > 0);
    }

    #[test]
    fn what_cannot_be_read_changes_nothing() {
        let mut facts = facts();
        let default = facts.size_limit();
        for value in ["", "pubsub", "pubsub x 0 0", "normal 1 1 1"] {
            answer(&mut facts, OUTPUT_BUFFER, value);
        }
        answer(&mut facts, BULK, "-1");
        facts.handle_answer(CONFIG, &Reply::Other).unwrap();
        assert_eq!(facts.size_limit(), default);
        let name = PARAMETERS[QUERY_BUFFER].as_bytes();
        let other = Reply::Parameter { name, value: b"1" };
        assert_eq!(facts.handle_answer(CONFIG, &other), Err(LinkError::Unasked));
        assert_eq!(
            facts.handle_answer(Question::Role, &Reply::Integer(1)),
            Err(LinkError::Unasked)
        );
    }

    #[test]
    fn a_replica_is_refused_and_named_unless_it_is_a_clusters() {
        let replica = Reply::Role { role: b"slave", master: Some((b"10.0.0.1", 6380)) };
        let mut facts = facts();
        let error = facts.handle_answer(Question::Role, &replica).unwrap_err().to_string();
        assert!(error.contains("redis://h:6379/0 is a replica of 10.0.0.1:6380"), "{error}");
        assert!(error.contains("point --redis at the master"), "{error}");
        facts.handle_hello(&Reply::Server { mode: b"cluster", role: b"replica" });
        assert_eq!(facts.handle_answer(Question::Role, &replica), Ok(()));
        let sentinel = Reply::Role { role: b"sentinel", master: None };
        assert!(facts.handle_answer(Question::Role, &sentinel).is_err());
    }

    /// Where ROLE is not permitted, HELLO has reported the role.
    #[test]
    fn a_missing_right_is_noted_once_and_hello_answers_instead() {
        let refused = Reply::Error(b"NOPERM this user has no permissions to run 'role'");
        let mut facts = facts();
        for _ in 0..2 {
            facts.handle_open();
            facts.handle_hello(&Reply::Server { mode: b"standalone", role: b"master" });
            for question in [Question::Role, CONFIG, Question::Ping] {
                assert_eq!(facts.handle_answer(question, &refused), Ok(()));
            }
            assert!(!facts.may_ask(Question::Role) && !facts.may_ask(CONFIG));
        }
        assert_eq!(facts.take_events().count(), 3);
        let replica = Reply::Server { mode: b"standalone", role: b"replica" };
        facts.handle_hello(&replica);
        let error = facts.handle_answer(Question::Role, &refused).unwrap_err();
        assert!(matches!(error, LinkError::Replica { .. }));
        assert!(facts.may_ask(Question::Hello));
        let error = facts.handle_answer(Question::Hello, &replica).unwrap_err();
        assert!(matches!(error, LinkError::Replica { .. }));
        let busy = Reply::Error(b"BUSY Redis is busy running a script");
        assert!(facts.handle_answer(Question::Ping, &busy).is_err());
    }
}
