//! Membership: the nodes of the cluster and their business servers, as each node announces them.
//!
//! Every node sends a heartbeat once a second on a channel to which all subscribe. When a business
//! server connects or leaves, its node announces it at once under the next version; a node that
//! holds a version other than the announced one requests the full state. A node that is silent for
//! too long is lost.

use super::{Broker, LinksState, Sink};
use crate::state::origin_watermarks::{ANNOUNCE_EVERY, Announcement};
use crate::state::projects::Projects;
use crate::state::subscriptions::{Server, WorkerEvent};
use crate::types::{Cid, MonotonicMs, NodeId};
use crate::wire::envelope::EnvelopeError;
use crate::wire::member::{self, Cids, Member, Servers, add_server};
use crate::wire::parcel::Sender;
use std::collections::BTreeMap;
use std::sync::PoisonError;

/// Interval between heartbeats.
const ANNOUNCE_EVERY_MS: u64 = 1_000;
/// A node silent for this time is lost, once everything Redis sent meanwhile is read.
const LOST_AFTER_MS: u64 = 5_000;
/// How long a node that announced its end is remembered: late messages do not bring it back, and a
/// successor whose clock is behind is accepted afterwards.
const FORGET_LEFT_MS: u64 = 60_000;
/// How long a starting node waits for the state of the other nodes.
const SETTLE_MS: u64 = 150;
/// How long other nodes are waited for after the links are back: longer than the longest pause
/// between connection attempts.
const REUNITE_MS: u64 = 1_000;
/// Minimum interval between full states sent, and between requests for one.
const FULL_STATE_EVERY_MS: u64 = 50;

#[derive(Debug, Default)]
pub(super) struct Members {
    own: Vec<Server>,
    version: u64,
    /// Announcements sent in this run.
    announcements: u64,
    others: BTreeMap<NodeId, Other>,
    announced_at: MonotonicMs,
    /// When the full state was last sent; whether it is due again.
    full_state_sent_at: MonotonicMs,
    is_full_state_due: bool,
    /// Until when the state of the other nodes is awaited; only in the first incarnation of the
    /// links.
    settle_until: Option<MonotonicMs>,
    /// When this incarnation of the links began.
    hello_at: MonotonicMs,
    /// Since when this node has received its own messages without a break.
    hears_since: MonotonicMs,
    has_left: bool,
}

/// Another node, in one of its runs.
#[derive(Debug)]
struct Other {
    epoch: u64,
    /// `None`: its state is unknown.
    version: Option<u64>,
    heard_at: MonotonicMs,
    asked_at: Option<MonotonicMs>,
    servers: Vec<Server>,
    /// It has announced its end. Later messages from it are ignored.
    has_left: bool,
}

impl Broker {
    /// Number of live nodes, this one included.
    pub fn nodes(&self) -> usize {
        1 + self.members.others.values().filter(|other| !other.has_left).count()
    }

    // Announcements of this node.

    /// Announces this node once the links are up: sends its full state and requests that of the
    /// others.
    pub(super) fn announce_arrival(&mut self, now: MonotonicMs) {
        self.members.settle_until.get_or_insert(now + SETTLE_MS);
        self.members.hears_since = now;
        self.members.hello_at = now;
        self.announce_full_state(true, now);
    }

    /// Whether the state of the others is known and the earlier nodes are back, or no node has
    /// answered for long enough.
    pub(super) fn is_settled(&self, now: MonotonicMs) -> bool {
        let members = &self.members;
        let is_back = |other: &Other| other.has_left || other.heard_at >= members.hello_at;
        let are_back = members.others.values().all(is_back);
        members.settle_until.is_none_or(|until| now >= until)
            && (are_back || now >= members.hello_at + REUNITE_MS)
    }

    /// Announces the end of this node: its last announcement.
    pub fn handle_leaving(&mut self, now: MonotonicMs) {
        if !self.is_ready() || std::mem::replace(&mut self.members.has_left, true) {
            return;
        }
        let announcement = Member { is_leaving: true, ..self.member() };
        self.announce(&announcement, None, now);
    }

    /// Whether this node has announced its end.
    pub fn has_left(&self) -> bool {
        self.members.has_left
    }

    pub(super) fn handle_server_here(
        &mut self,
        worker: usize,
        server: Server,
        now: MonotonicMs,
        sink: &mut dyn Sink,
    ) {
        self.members.own.push(server);
        self.members.version += 1;
        self.tell_others(worker, WorkerEvent::ServerHere(server), sink);
        if !self.may_publish() {
            return sink.event(worker, WorkerEvent::ServerKnown(server.cid));
        }
        let mut here = Vec::new();
        put_server(&mut here, &self.config.projects, &server);
        let announcement = Member { here: Servers(&here), ..self.member() };
        self.announce(&announcement, Some((worker, server.cid)), now);
    }

    pub(super) fn handle_server_gone(
        &mut self,
        worker: usize,
        cid: Cid,
        now: MonotonicMs,
        sink: &mut dyn Sink,
    ) {
        let before = self.members.own.len();
        self.members.own.retain(|server| server.cid != cid);
        if self.members.own.len() == before {
            return;
        }
        self.members.version += 1;
        self.tell_others(worker, WorkerEvent::ServerGone(cid), sink);
        if self.may_publish() {
            let gone = cid.0.to_le_bytes();
            let announcement = Member { gone: Cids(&gone), ..self.member() };
            self.announce(&announcement, None, now);
        }
    }

    /// Notifies this node's other workers.
    fn tell_others(&self, worker: usize, event: WorkerEvent, sink: &mut dyn Sink) {
        for other in (0..self.config.workers).filter(|&other| other != worker) {
            sink.event(other, event);
        }
    }

    /// Requests the full state of the other nodes: business servers that they have announced may be
    /// of projects that this node did not serve until now.
    pub(super) fn review_members(&mut self, now: MonotonicMs) {
        // Until it arrives, their heartbeats remind of it.
        self.members.others.values_mut().for_each(|other| other.version = None);
        if self.may_publish() {
            self.announce_full_state(true, now);
        }
    }

    fn member(&self) -> Member<'static> {
        let sender = Sender { node: self.config.node, epoch: self.config.epoch() };
        Member::new(sender, self.members.version)
    }

    /// Encodes an announcement for sending: numbered, with the order of the latest message before
    /// it.
    fn encode_announcement(&mut self, announcement: &Member<'_>) -> Vec<u8> {
        self.members.announcements += 1;
        self.announced_order = self.order;
        let mut bytes = Vec::new();
        Member { number: self.members.announcements, order: self.order, ..*announcement }
            .encode(&mut bytes);
        bytes
    }

    /// Announces this node's order if much was published since the last announcement.
    pub(super) fn announce_order(&mut self, now: MonotonicMs) {
        if self.state == LinksState::Ready && self.order - self.announced_order >= ANNOUNCE_EVERY {
            let announcement = self.member();
            self.announce(&announcement, None, now);
        }
    }

    fn announce_full_state(&mut self, requests_full_state: bool, now: MonotonicMs) {
        let mut here = Vec::new();
        for server in &self.members.own {
            put_server(&mut here, &self.config.projects, server);
        }
        let announcement = Member {
            is_full_state: true,
            requests_full_state,
            here: Servers(&here),
            ..self.member()
        };
        self.announce(&announcement, None, now);
        self.members.full_state_sent_at = now;
        self.members.is_full_state_due = false;
    }

    /// Publishes an announcement to all nodes; `waiter`: notified once Redis has it.
    fn announce(
        &mut self,
        announcement: &Member<'_>,
        waiter: Option<(usize, Cid)>,
        now: MonotonicMs,
    ) {
        let bytes = self.encode_announcement(announcement);
        let deadline = self.deadline(now);
        self.log.add_word(&self.nodes_channel, &bytes, waiter, deadline);
        self.publishing.handle_asked(self.listening.at(now));
        self.members.announced_at = now;
    }

    /// Sends announcements that are due and detects silent nodes.
    pub(super) fn tick_members(&mut self, now: MonotonicMs, sink: &mut dyn Sink) {
        let members = &self.members;
        if members.has_left {
            return;
        }
        let since_full_state_ms = now.since(members.full_state_sent_at);
        if members.is_full_state_due && since_full_state_ms >= FULL_STATE_EVERY_MS {
            self.announce_full_state(false, now);
        } else if now.since(members.announced_at) >= ANNOUNCE_EVERY_MS {
            let announcement = self.member();
            self.announce(&announcement, None, now);
        }
        let is_over = |other: &Other| other.has_left && now.since(other.heard_at) > FORGET_LEFT_MS;
        self.members.others.retain(|_, other| !is_over(other));
        let since = self.members.hears_since;
        let until = self.subscribe_log.read_until();
        let is_lost = |other: &Other| {
            !other.has_left && until.since(other.heard_at.max(since)) > LOST_AFTER_MS
        };
        let others = self.members.others.iter();
        let lost: Vec<NodeId> =
            others.filter(|(_, other)| is_lost(other)).map(|(&node, _)| node).collect();
        for node in lost {
            self.members.others.remove(&node);
            self.report_node(node, false, sink);
        }
    }

    // Announcements of other nodes.

    pub(super) fn handle_member(
        &mut self,
        payload: &[u8],
        now: MonotonicMs,
        sink: &mut dyn Sink,
    ) -> Result<(), EnvelopeError> {
        let announcement = Member::decode(payload)?;
        let Sender { node, epoch } = announcement.sender;
        if node == self.config.node {
            return Ok(());
        }
        let heard =
            self.watermarks.announce(node, epoch, announcement.order, announcement.number, now);
        match heard {
            Announcement::False => {
                let channel = self.nodes_channel.clone();
                self.note_false_number(node, &channel);
                return Ok(());
            }
            Announcement::Corrects => self.note_reset(node, b""),
            Announcement::Fresh | Announcement::Stale => {}
        }
        let known = self.members.others.get(&node);
        if known.is_some_and(|other| other.epoch > epoch || other.epoch == epoch && other.has_left)
        {
            return Ok(());
        }
        let is_same = known.is_some_and(|other| other.epoch == epoch);
        if announcement.is_leaving {
            let was_there = known.is_some_and(|other| !other.has_left);
            let left = Other { has_left: true, ..Other::new(epoch, now) };
            self.members.others.insert(node, left);
            if was_there {
                self.report_node(node, false, sink);
            }
            return Ok(());
        }
        if !is_same {
            if known.is_some_and(|other| !other.has_left) {
                self.report_node(node, false, sink);
            }
            self.members.others.insert(node, Other::new(epoch, now));
            self.report_node(node, true, sink);
        }
        self.take_servers(&announcement, heard, now, sink);
        if announcement.requests_full_state {
            match now.since(self.members.full_state_sent_at) >= FULL_STATE_EVERY_MS {
                true if self.may_publish() => self.announce_full_state(false, now),
                _ => self.members.is_full_state_due = true,
            }
        }
        Ok(())
    }

    /// Takes the announced business servers of a live node; `heard`: how its announcement was
    /// classified.
    fn take_servers(
        &mut self,
        announcement: &Member<'_>,
        heard: Announcement,
        now: MonotonicMs,
        sink: &mut dyn Sink,
    ) {
        let node = announcement.sender.node;
        let Some(other) = self.members.others.get_mut(&node) else { return };
        other.heard_at = now;
        let is_behind = other.version.is_some_and(|version| version > announcement.version);
        match heard {
            // From an old link, and overtaken: it would undo later changes.
            Announcement::Stale if is_behind => return,
            // The node never issued that version.
            Announcement::Fresh if is_behind => {
                other.version = None;
                self.note_reset(node, b"");
            }
            // Its state may be as wrong as its numbers were.
            Announcement::Corrects => other.version = None,
            _ => {}
        }
        let Some(other) = self.members.others.get_mut(&node) else { return };
        let here = servers_of(announcement, &self.config.projects);
        let mut events: Vec<WorkerEvent> = Vec::new();
        // An announcement without a change may carry the version of one that was missed.
        let is_change = !announcement.here.0.is_empty() || !announcement.gone.0.is_empty();
        if announcement.is_full_state {
            let is_in = |list: &[Server], cid: Cid| list.iter().any(|server| server.cid == cid);
            let gone = other.servers.iter().filter(|server| !is_in(&here, server.cid));
            events.extend(gone.map(|server| WorkerEvent::ServerGone(server.cid)));
            let new = here.iter().filter(|server| !is_in(&other.servers, server.cid));
            events.extend(new.map(|&server| WorkerEvent::ServerHere(server)));
            other.servers = here;
            other.version = Some(announcement.version);
        } else if is_change
            && other.version.is_some_and(|version| version + 1 == announcement.version)
        {
            other.version = Some(announcement.version);
            events.extend(here.iter().map(|&server| WorkerEvent::ServerHere(server)));
            other.servers.extend(here);
            for cid in announcement.gone {
                other.servers.retain(|server| server.cid != cid);
                events.push(WorkerEvent::ServerGone(cid));
            }
        }
        let misses_some = other.version != Some(announcement.version);
        let may_ask = |asked_at: MonotonicMs| now.since(asked_at) >= FULL_STATE_EVERY_MS;
        if misses_some && other.asked_at.is_none_or(may_ask) {
            self.request(node, now);
        }
        for event in events {
            (0..self.config.workers).for_each(|worker| sink.event(worker, event));
        }
    }

    /// Requests the full state of one node.
    fn request(&mut self, node: NodeId, now: MonotonicMs) {
        if !self.may_publish() {
            return;
        }
        if let Some(other) = self.members.others.get_mut(&node) {
            other.asked_at = Some(now);
        }
        let mut channel = Vec::new();
        self.config.names.node(&mut channel, node);
        let bytes =
            self.encode_announcement(&Member { requests_full_state: true, ..self.member() });
        let deadline = self.deadline(now);
        self.log.add_word(&channel, &bytes, None, deadline);
        self.publishing.handle_asked(self.listening.at(now));
    }

    /// Publishes the live nodes for the monitoring pages.
    pub(super) fn show_nodes(&self) {
        let others = self.members.others.iter().filter(|(_, other)| !other.has_left);
        let mut nodes: Vec<NodeId> = others.map(|(&node, _)| node).collect();
        nodes.push(self.config.node);
        nodes.sort_unstable();
        *self.config.counters.nodes.lock().unwrap_or_else(PoisonError::into_inner) = nodes;
    }

    fn report_node(&mut self, node: NodeId, is_up: bool, sink: &mut dyn Sink) {
        self.show_nodes();
        let workers = 0..self.config.workers;
        workers.for_each(|worker| sink.event(worker, WorkerEvent::Node { node, is_up }));
    }
}

impl Other {
    fn new(epoch: u64, now: MonotonicMs) -> Self {
        let servers = Vec::new();
        Self { epoch, version: None, heard_at: now, asked_at: None, servers, has_left: false }
    }
}

fn put_server(list: &mut Vec<u8>, projects: &Projects, server: &Server) {
    let Some(project) = projects.get(server.project) else { return };
    let Server { cid, events, .. } = *server;
    add_server(list, &member::Server { cid, events, pid: &project.pid });
}

/// Returns the announced servers whose projects this node serves or has served.
fn servers_of(announcement: &Member<'_>, projects: &Projects) -> Vec<Server> {
    let known = |server: member::Server<'_>| {
        let project = projects.id_of(server.pid)?;
        Some(Server { cid: server.cid, project, events: server.events })
    };
    announcement.here.filter_map(|server| known(server.ok()?)).collect()
}
