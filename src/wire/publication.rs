//! A message on its way to Redis: channel names, and what is published on which channel.
//!
//! Channels, with a prefix (`wsc`): `wsc:{pid}` for a project, `wsc:{pid}:n:<node>` for the client
//! ids of one node, `wsc:{pid}:u:<uid>` for one user (with `--routing user`), `wsc:{pid}:e` for the
//! events of its clients, `wsc:nodes` for all nodes and `wsc:node:<node>` for one. `wsc:ids:<node>`
//! is not a channel but a key. The braces are Redis Cluster's hash tags: all channels of a project
//! would share a slot.

use super::envelope::{Envelope, NamesBuf, Targets};
use crate::types::{NodeId, Routing, SnowflakeClock};
use smallvec::SmallVec;
use std::ops::Range;

/// With `--routing user`, pushes to at most this number of users go to the users' own channels.
pub const MAX_USER_CHANNELS: usize = 16;

/// And only if all copies together have at most this number of bytes.
const MAX_COPIES_BYTES: usize = 1 << 20;

/// Most channel names are shorter.
const LIKELY_NAME_BYTES: usize = 64;

/// Writes channel names.
#[derive(Debug, Clone)]
pub struct ChannelNames {
    prefix: Box<str>,
    /// The prefix and the separator before a project's id.
    to_project: Box<str>,
}

impl ChannelNames {
    pub fn new(prefix: &str) -> Self {
        Self { prefix: prefix.into(), to_project: format!("{prefix}:{{").into() }
    }

    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Parses a channel name into its project and channel; `None` for the project's channel of
    /// events.
    pub fn parse<'n>(&self, name: &'n [u8]) -> Option<(&'n [u8], Option<Channel<'n>>)> {
        let rest = name.strip_prefix(self.to_project.as_bytes())?;
        // A project's id never contains a brace.
        let end = rest.iter().position(|&byte| byte == b'}')?;
        let (pid, rest) = (&rest[..end], &rest[end + 1..]);
        let channel = match rest.get(..3) {
            None if rest.is_empty() => Some(Channel::Project),
            None if rest == b":e" => None,
            Some(b":u:") => Some(Channel::User(&rest[3..])),
            Some(b":n:") => {
                let number = std::str::from_utf8(&rest[3..]).ok()?.parse().ok()?;
                Some(Channel::Node(NodeId::new(number)?))
            }
            _ => return None,
        };
        Some((pid, channel))
    }

    pub fn project(&self, out: &mut Vec<u8>, pid: impl AsRef<[u8]>) {
        out.extend_from_slice(self.to_project.as_bytes());
        out.extend_from_slice(pid.as_ref());
        out.push(b'}');
    }

    pub fn node_of_project(&self, out: &mut Vec<u8>, pid: impl AsRef<[u8]>, node: NodeId) {
        self.project(out, pid);
        out.extend_from_slice(b":n:");
        out.extend_from_slice(itoa::Buffer::new().format(node.value()).as_bytes());
    }

    pub fn user(&self, out: &mut Vec<u8>, pid: impl AsRef<[u8]>, uid: &[u8]) {
        self.project(out, pid);
        out.extend_from_slice(b":u:");
        out.extend_from_slice(uid);
    }

    /// Appends the name of the project's channel that a message goes to.
    pub fn write(&self, out: &mut Vec<u8>, pid: &[u8], channel: Channel<'_>) {
        match channel {
            Channel::Project => self.project(out, pid),
            Channel::Node(node) => self.node_of_project(out, pid, node),
            Channel::User(uid) => self.user(out, pid, uid),
        }
    }

    /// Returns the length of the project channel's name, which is a prefix of the user channel's
    /// name; `None` for any other channel.
    pub fn project_of_user(&self, channel: &[u8]) -> Option<usize> {
        let start = self.prefix.len();
        // A project's id never contains a brace.
        let end = start + channel.get(start..)?.iter().position(|&byte| byte == b'}')? + 1;
        channel[end..].starts_with(b":u:").then_some(end)
    }

    pub fn events(&self, out: &mut Vec<u8>, pid: impl AsRef<[u8]>) {
        self.project(out, pid);
        out.extend_from_slice(b":e");
    }

    /// Appends the name of the channel to which every node subscribes.
    pub fn nodes(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.prefix.as_bytes());
        out.extend_from_slice(b":nodes");
    }

    /// Appends the key that stores which ids a node has issued.
    pub fn ids_of_node(&self, out: &mut Vec<u8>, node: NodeId) {
        out.extend_from_slice(self.prefix.as_bytes());
        out.extend_from_slice(b":ids:");
        out.extend_from_slice(itoa::Buffer::new().format(node.value()).as_bytes());
    }

    pub fn node(&self, out: &mut Vec<u8>, node: NodeId) {
        out.extend_from_slice(self.prefix.as_bytes());
        out.extend_from_slice(b":node:");
        out.extend_from_slice(itoa::Buffer::new().format(node.value()).as_bytes());
    }
}

/// One channel that a [`Publication`] goes to: the position of the channel's name in its bytes,
/// directly followed by the envelope.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    pub channel: Range<usize>,
    pub envelope: Range<usize>,
}

/// One message on its way to a broker on another thread, complete except for the numbers of its
/// envelopes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Publication {
    pub bytes: Vec<u8>,
    /// More than one only for a push to several users with channels of their own.
    pub parts: SmallVec<[Part; 1]>,
}

impl Publication {
    /// Appends the parts that bring `envelope` to every node that may hold a recipient.
    pub fn add_message(&mut self, names: &ChannelNames, routing: Routing, envelope: &Envelope<'_>) {
        route(routing, envelope, |channel, envelope| {
            let start = self.bytes.len();
            self.bytes.reserve(envelope.encoded_bytes() + LIKELY_NAME_BYTES);
            names.write(&mut self.bytes, envelope.pid, channel);
            let middle = self.bytes.len();
            envelope.encode(&mut self.bytes);
            self.parts.push(Part { channel: start..middle, envelope: middle..self.bytes.len() });
        });
    }

    pub fn channel(&self, part: usize) -> &[u8] {
        &self.bytes[self.parts[part].channel.clone()]
    }
}

/// The channel name written last, and its project: the next message is often on the same channel.
#[derive(Debug, Default)]
pub struct LastName {
    /// Empty: not a project's own channel.
    pid: Vec<u8>,
    name: Vec<u8>,
}

impl LastName {
    pub fn get(&mut self, names: &ChannelNames, pid: &[u8], channel: Channel<'_>) -> &[u8] {
        let is_projects = channel == Channel::Project;
        if !is_projects || pid != self.pid || pid.is_empty() {
            self.pid.clear();
            self.name.clear();
            names.write(&mut self.name, pid, channel);
            if is_projects {
                self.pid.extend_from_slice(pid);
            }
        }
        &self.name
    }
}

/// A channel of a project.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Channel<'a> {
    /// The channel of all nodes with clients of the project.
    Project,
    /// The channel of a node's client ids.
    Node(NodeId),
    User(&'a [u8]),
}

/// Calls `each` with the parts that bring `envelope` to every node that may hold a recipient.
///
/// Client ids of one node go to that node's channel. Those of several nodes go to the project's:
/// one part, accepted as a whole.
pub fn route(
    routing: Routing,
    envelope: &Envelope<'_>,
    mut each: impl FnMut(Channel<'_>, &Envelope<'_>),
) {
    let targets = &envelope.targets;
    if let Some(node) = only_node(targets) {
        return each(Channel::Node(node), envelope);
    }
    let users = targets.uids.filter(|_| routing == Routing::User && targets.cids.is_none());
    // A worker accepts one message per key: of several with the same key only one user would get
    // it.
    let most = if envelope.key.is_some() { 1 } else { MAX_USER_CHANNELS };
    let is_few = |count: usize| {
        let copies_bytes = count * envelope.data.len();
        count == 1 || (2..=most).contains(&count) && copies_bytes <= MAX_COPIES_BYTES
    };
    match users {
        Some(uids) if is_few(uids.iter().count()) => {
            for (index, uid) in uids.iter().enumerate() {
                if uids.iter().take(index).any(|earlier| earlier == uid) {
                    continue;
                }
                // A node with two of the users gets two messages, each for one of them.
                let mut one = NamesBuf::default();
                one.push(uid);
                let targets = Targets { uids: Some(one.as_names()), ..*targets };
                each(Channel::User(uid), &Envelope { targets, ..*envelope });
            }
        }
        _ => each(Channel::Project, envelope),
    }
}

/// Returns the node of all client ids of a selector, if it is the same.
fn only_node(targets: &Targets<'_>) -> Option<NodeId> {
    let mut nodes = targets.cids?.iter().map(|cid| SnowflakeClock::node_of(cid.0));
    let first = nodes.next()?;
    nodes.all(|node| node == first).then_some(first)
}

/// Appends a `PUBLISH` with a payload of `length` bytes, which `write` appends.
pub fn write_publish(
    out: &mut Vec<u8>,
    channel: &[u8],
    length: usize,
    write: impl FnOnce(&mut Vec<u8>),
) {
    out.extend_from_slice(b"*3\r\n$7\r\nPUBLISH\r\n");
    add_bulk(out, channel.len(), |out| out.extend_from_slice(channel));
    add_bulk(out, length, write);
}

/// Appends a bulk string of `length` bytes, which `write` appends.
fn add_bulk(out: &mut Vec<u8>, length: usize, write: impl FnOnce(&mut Vec<u8>)) {
    out.push(b'$');
    out.extend_from_slice(itoa::Buffer::new().format(length).as_bytes());
    out.extend_from_slice(b"\r\n");
    let start = out.len();
    write(out);
    debug_assert_eq!(out.len() - start, length);
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Cid, MessageId};
    use crate::wire::envelope::{CidsBuf, TargetsBuf};

    #[test]
    fn a_users_channel_begins_with_its_projects_name() {
        let names = ChannelNames::new("wsc");
        for (uid, expected) in [("a", Some(10)), ("b}:u:", Some(10))] {
            let mut name = Vec::new();
            names.user(&mut name, "shop", uid.as_bytes());
            assert_eq!(names.project_of_user(&name), expected);
            assert_eq!(&name[..10], b"wsc:{shop}");
        }
        let mut name = Vec::new();
        names.project(&mut name, "shop");
        assert_eq!(names.project_of_user(&name), None);
        names.node_of_project(&mut name, "shop", NodeId::new(1).unwrap());
        assert_eq!(names.project_of_user(&name), None);
        for other in [&b""[..], b"wsc", b"wsc:nodes", b"wsc:{"] {
            assert_eq!(names.project_of_user(other), None);
        }
    }

    fn publication(routing: Routing, targets: &TargetsBuf, key: Option<&[u8; 16]>) -> Publication {
        let envelope = Envelope {
            origin: NodeId::new(7).unwrap(),
            epoch: 1,
            seq: 0,
            accepted_us: 3_000,
            trace: None,
            id: MessageId(4),
            ttl_ms: 5,
            key,
            pid: b"shop",
            targets: targets.as_targets(),
            data: b"{}",
        };
        let mut publication = Publication::default();
        publication.add_message(&ChannelNames::new("wsc"), routing, &envelope);
        publication
    }

    fn channels(routing: Routing, targets: &TargetsBuf) -> Vec<String> {
        let publication = publication(routing, targets, None);
        let name = |part| String::from_utf8(publication.channel(part).to_vec()).unwrap();
        (0..publication.parts.len()).map(name).collect()
    }

    fn names(list: &[&str]) -> Option<NamesBuf> {
        let mut names = NamesBuf::default();
        list.iter().for_each(|name| names.push(name));
        Some(names)
    }

    fn cids(nodes: &[u64]) -> Option<CidsBuf> {
        let mut cids = CidsBuf::default();
        nodes.iter().for_each(|node| cids.push(Cid(node << 12 | 1)));
        Some(cids)
    }

    #[test]
    fn channels_follow_the_selectors() {
        let (project, user) = (Routing::Project, Routing::User);
        let all = TargetsBuf::default();
        let some = TargetsBuf { uids: names(&["a", "b:c", "a"]), ..TargetsBuf::default() };
        let of_node = TargetsBuf { cids: cids(&[200, 200]), ..some_uids() };
        let of_two = TargetsBuf { cids: cids(&[200, 1023]), ..some_uids() };
        let nobody = TargetsBuf { cids: cids(&[]), ..TargetsBuf::default() };
        for routing in [project, user] {
            assert_eq!(channels(routing, &all), ["wsc:{shop}"]);
            assert_eq!(channels(routing, &of_node), ["wsc:{shop}:n:200"]);
            assert_eq!(channels(routing, &of_two), ["wsc:{shop}"]);
            assert_eq!(channels(routing, &nobody), ["wsc:{shop}"]);
        }
        assert_eq!(channels(project, &some), ["wsc:{shop}"]);
        assert_eq!(channels(user, &some), ["wsc:{shop}:u:a", "wsc:{shop}:u:b:c"]);
        let many: Vec<String> = (0..17).map(|number| number.to_string()).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let many = TargetsBuf { uids: names(&many), ..TargetsBuf::default() };
        assert_eq!(channels(user, &many), ["wsc:{shop}"]);
    }

    fn some_uids() -> TargetsBuf {
        TargetsBuf { uids: names(&["a"]), ..TargetsBuf::default() }
    }

    #[test]
    fn each_part_is_a_channel_and_an_envelope() {
        let some = TargetsBuf { uids: names(&["a", "b"]), ..TargetsBuf::default() };
        let publication = publication(Routing::User, &some, None);
        let mut start = 0;
        for (part, uid) in [(0, "a"), (1, "b")] {
            let Part { channel, envelope } = publication.parts[part].clone();
            assert_eq!((channel.start, channel.end), (start, envelope.start));
            assert_eq!(publication.channel(part), format!("wsc:{{shop}}:u:{uid}").as_bytes());
            let decoded = Envelope::decode(&publication.bytes[envelope.clone()]).unwrap();
            assert_eq!(decoded.targets.uids.unwrap().iter().collect::<Vec<_>>(), [uid.as_bytes()]);
            start = envelope.end;
        }
        assert_eq!(start, publication.bytes.len());
    }

    #[test]
    fn a_name_that_is_kept_is_the_one_that_would_be_written() {
        let (names, mut last) = (ChannelNames::new("wsc"), LastName::default());
        let node = Channel::Node(NodeId::new(3).unwrap());
        for (pid, channel) in [
            ("", Channel::Project),
            ("a", Channel::Project),
            ("a", Channel::Project),
            ("a", node),
            ("a", Channel::Project),
            ("a", Channel::User(b"a")),
            ("a", Channel::User(b"b")),
            ("b", Channel::Project),
            ("", Channel::Project),
        ] {
            let mut expected = Vec::new();
            names.write(&mut expected, pid.as_bytes(), channel);
            assert_eq!(last.get(&names, pid.as_bytes(), channel), expected);
        }
    }

    #[test]
    fn a_publish_is_three_bulk_strings() {
        let mut out = Vec::new();
        write_publish(&mut out, b"wsc:{p}", 3, |out| out.extend_from_slice(b"abc"));
        assert_eq!(out, b"*3\r\n$7\r\nPUBLISH\r\n$7\r\nwsc:{p}\r\n$3\r\nabc\r\n");
    }

    /// A node with both users accepted the first part and took the second for a duplicate.
    #[test]
    fn a_key_is_on_one_part() {
        for (uids, channel) in [(&["a", "b"][..], "wsc:{shop}"), (&["a"], "wsc:{shop}:u:a")] {
            let targets = TargetsBuf { uids: names(uids), ..TargetsBuf::default() };
            let publication = publication(Routing::User, &targets, Some(&[7; 16]));
            assert_eq!(publication.parts.len(), 1);
            assert_eq!(publication.channel(0), channel.as_bytes());
        }
    }

    #[test]
    fn a_node_has_a_channel_of_its_own() {
        let mut name = Vec::new();
        ChannelNames::new("wsc").node(&mut name, NodeId::new(200).unwrap());
        assert_eq!(name, b"wsc:node:200");
        name.clear();
        ChannelNames::new("wsc").events(&mut name, "p");
        assert_eq!(name, b"wsc:{p}:e");
    }
}
