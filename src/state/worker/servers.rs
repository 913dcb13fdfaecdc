//! Business servers connected here: requests to them, and their responses and pushes.

use super::{Note, Worker};
use crate::state::counters::LostAnswer;
use crate::state::projects::ProjectId;
use crate::state::subscriptions::{BrokerRequest, Listener, Relay, Server, To, WorkerEvent};
use crate::types::{Cid, ConnKey, EventSet, MessageId, MonotonicMs, Now};
use crate::wire::message::{self, MessageKind};
use crate::wire::parcel::{Answer, Cancel, Parcel, Request, Response};
use crate::wire::server_message::{self, Client, ServerMessage};
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

/// Maximum unanswered requests of a business server; beyond it, another one is asked.
const MAX_ASKED: usize = 262_144;
/// Maximum bytes of requests waiting for a business server whose socket is full; beyond it, another
/// one is asked.
const MAX_BACKLOG_BYTES: usize = 1 << 20;
/// Maximum bytes of a business server's unanswered pushes; beyond it, its socket is not read.
const MAX_PUSH_BYTES: usize = 1 << 20;
/// How long a request is remembered after the asking node has given up.
const FORGET_AFTER_MS: u64 = 1_000;
/// Maximum number of requests forgotten per tick.
const FORGOTTEN_PER_SLICE: usize = 512;

/// A push from a business server, to be accepted by the code that drives the worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerPush {
    pub key: ConnKey,
    pub project: ProjectId,
    /// The `id` of its message.
    pub echo: Option<Box<str>>,
    /// The complete message, a JSON object.
    pub message: Box<[u8]>,
}

#[derive(Debug)]
struct OwnServer {
    slot: u32,
    server: Server,
    /// Number of peers that must acknowledge it before its welcome is sent. Until then nothing is
    /// sent to it, and it is not read.
    unknown_to: usize,
    /// Unanswered requests: the waiting client and its deadline.
    asked: BTreeMap<MessageId, (Cid, MonotonicMs)>,
    /// Requests not written yet, because its socket is full or it has no welcome.
    backlog: VecDeque<(MessageId, Vec<u8>)>,
    backlog_bytes: usize,
    push_bytes: usize,
}

/// Remaining work for a business server that disconnected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Leaving {
    /// It did not answer this request.
    Unanswered { server: Server, id: MessageId, client: Cid, is_written: bool },
    /// Nobody waits any more for the answer to a request that was not written.
    Forgotten,
    /// All of its requests are answered.
    Done(Cid),
}

/// The business servers of this worker, by client id.
#[derive(Debug, Default)]
pub(super) struct OwnServers {
    all: BTreeMap<Cid, OwnServer>,
    /// Disconnected servers whose requests are not all answered.
    leaving: VecDeque<OwnServer>,
    by_project: BTreeMap<ProjectId, BTreeSet<Cid>>,
    /// When requests are forgotten.
    deadlines: BTreeSet<(MonotonicMs, Cid, MessageId)>,
    pushes: VecDeque<ServerPush>,
}

impl OwnServers {
    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    /// Returns the slot of any of them.
    pub(super) fn any_slot(&self) -> Option<u32> {
        self.all.values().next().map(|own| own.slot)
    }

    /// Returns the slots of servers whose project is one of these, at most `max`.
    pub(super) fn slots_of(&self, is_it: impl Fn(ProjectId) -> bool, max: usize) -> Vec<u32> {
        let cids = self.by_project.iter().filter(|(project, _)| is_it(**project));
        let servers = cids.flat_map(|(_, cids)| cids).filter_map(|cid| self.all.get(cid));
        servers.map(|own| own.slot).take(max).collect()
    }

    pub(super) fn want(&self, project: ProjectId, kind: EventSet) -> bool {
        self.that_want(Some(project), kind).next().is_some()
    }

    pub(super) fn slots_that_want(&self, project: Option<ProjectId>, kind: EventSet) -> Vec<u32> {
        self.that_want(project, kind).map(|own| own.slot).collect()
    }

    fn that_want(
        &self,
        project: Option<ProjectId>,
        kind: EventSet,
    ) -> impl Iterator<Item = &OwnServer> {
        let of_project = project.map(|project| self.by_project.get(&project));
        let wants = move |own: &&OwnServer| own.unknown_to == 0 && own.server.events.meets(kind);
        let named = of_project.into_iter().flatten().flatten();
        let named = named.filter_map(|cid| self.all.get(cid));
        let all = self.all.values().filter(move |_| project.is_none());
        named.chain(all).filter(wants)
    }

    /// Whether to read more from it: not before its welcome, and not while many of its pushes wait.
    pub(super) fn takes_more(&self, cid: Cid) -> bool {
        let takes_more = |own: &OwnServer| own.unknown_to == 0 && own.push_bytes < MAX_PUSH_BYTES;
        self.all.get(&cid).is_none_or(takes_more)
    }

    /// Finds a server, including one that disconnected.
    fn find(&mut self, server: Cid) -> Option<&mut OwnServer> {
        let is_it = |own: &&mut OwnServer| own.server.cid == server;
        self.all.get_mut(&server).or_else(|| self.leaving.iter_mut().find(is_it))
    }

    /// Returns the next step for disconnected servers. Unwritten requests come first, as another
    /// server may still be asked.
    pub(super) fn next_leaving(&mut self) -> Option<Leaving> {
        let own = self.leaving.front_mut()?;
        let server = own.server;
        let (asked, is_written) = match own.backlog.pop_front() {
            Some((id, _)) => match own.asked.remove(&id) {
                Some(asked) => ((id, asked), false),
                None => return Some(Leaving::Forgotten),
            },
            None => match own.asked.pop_first() {
                Some(asked) => (asked, true),
                None => {
                    self.leaving.pop_front();
                    return Some(Leaving::Done(server.cid));
                }
            },
        };
        let (id, (client, deadline)) = asked;
        self.deadlines.remove(&(deadline, server.cid, id));
        Some(Leaving::Unanswered { server, id, client, is_written })
    }

    pub(super) fn has_leaving(&self) -> bool {
        !self.leaving.is_empty()
    }

    /// Forgets a request that the client no longer waits for. If it is not written yet, it never
    /// will be.
    pub(super) fn forget(&mut self, server: Cid, id: MessageId, client: Cid) {
        let Some(own) = self.find(server) else { return };
        let Entry::Occupied(asked) = own.asked.entry(id) else { return };
        let (whose, deadline) = *asked.get();
        if whose == client {
            asked.remove();
            self.deadlines.remove(&(deadline, server, id));
        }
    }

    /// Forgets some of the requests that nobody waits for any more. `awake`: see
    /// [`Worker::awake_at`].
    pub(super) fn forget_late(&mut self, awake: MonotonicMs) {
        for _ in 0..FORGOTTEN_PER_SLICE {
            let late = self.deadlines.first().copied().filter(|late| late.0 <= awake);
            let Some((_, server, id)) = late else { return };
            self.deadlines.pop_first();
            if let Some(own) = self.find(server) {
                own.asked.remove(&id);
            }
        }
    }

    pub(super) fn has_late(&self, awake: MonotonicMs) -> bool {
        self.deadlines.first().is_some_and(|&(deadline, ..)| deadline <= awake)
    }

    /// Number of unanswered requests, and of unwritten ones.
    pub(super) fn pending(&self) -> (usize, usize) {
        let all = || self.all.values().chain(&self.leaving);
        let asked = all().map(|own| own.asked.len()).sum();
        (asked, all().map(|own| own.backlog.len()).sum())
    }

    /// Checks the invariants. `has_room`: whether output for the connection in a slot goes to its
    /// socket.
    pub(super) fn check(&self, has_room: impl Fn(u32) -> bool) {
        for (cid, own) in &self.all {
            let bytes: usize = own.backlog.iter().map(|(_, text)| text.len()).sum();
            assert_eq!(bytes, own.backlog_bytes);
            let may_wait = own.unknown_to > 0 || !has_room(own.slot);
            assert!(may_wait || own.backlog.is_empty(), "requests wait, and there is room");
            let of_project = self.by_project.get(&own.server.project);
            assert!(of_project.is_some_and(|list| list.contains(cid)));
        }
        let (asked, _) = self.pending();
        assert_eq!(asked, self.deadlines.len(), "what was answered is nowhere");
        let listed: usize = self.by_project.values().map(BTreeSet::len).sum();
        assert_eq!(listed, self.all.len());
    }
}

impl Worker {
    // Life cycle.

    pub(super) fn enter_server(&mut self, slot: u32, project: ProjectId, events: EventSet) {
        let cid = self.connections[slot as usize].cid;
        let server = Server { cid, project, events };
        let unknown_to = match self.config.queue_needs {
            // The broker acknowledges for all.
            Some(_) => 1,
            None => self.config.settings.workers - 1,
        };
        let own = OwnServer {
            slot,
            server,
            unknown_to,
            asked: BTreeMap::new(),
            backlog: VecDeque::new(),
            backlog_bytes: 0,
            push_bytes: 0,
        };
        self.own_servers.all.insert(cid, own);
        self.own_servers.by_project.entry(project).or_default().insert(cid);
        self.config.counters.servers.set(self.own_servers.len() as u64);
        self.subscriptions.request(BrokerRequest::ServerHere(server));
        if unknown_to == 0 {
            self.welcome_server(cid);
        }
    }

    /// Notes that one more peer knows of it.
    fn handle_known(&mut self, cid: Cid) {
        let Some(own) = self.own_servers.all.get_mut(&cid).filter(|own| own.unknown_to > 0) else {
            return;
        };
        own.unknown_to -= 1;
        if own.unknown_to == 0 {
            self.welcome_server(cid);
        }
    }

    fn welcome_server(&mut self, cid: Cid) {
        let Some(own) = self.own_servers.all.get(&cid) else { return };
        let slot = own.slot;
        self.registry.insert(own.server);
        self.show_known();
        self.welcome(slot);
        self.write_backlog(slot);
        self.welcomed.push(slot);
    }

    /// Takes the business servers that got their welcome since the last call: they are to be read
    /// again.
    pub fn take_welcomed(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.welcomed)
    }

    /// Handles the end of a business server: it is asked nothing more, and its requests are
    /// answered, some in each turn.
    pub(super) fn leave_server(&mut self, slot: u32) {
        let cid = self.connections[slot as usize].cid;
        let Some(own) = self.own_servers.all.remove(&cid) else { return };
        let Server { project, events, .. } = own.server;
        if let Some(list) = self.own_servers.by_project.get_mut(&project) {
            list.remove(&cid);
            if list.is_empty() {
                self.own_servers.by_project.remove(&project);
            }
        }
        self.config.counters.servers.set(self.own_servers.len() as u64);
        self.registry.remove(cid);
        self.show_known();
        let hears_events = events.meets(EventSet::OF_CLIENTS);
        self.subscriptions.leave(project, Listener::Server { hears_events });
        self.own_servers.leaving.push_back(own);
        self.answer_for_gone();
    }

    // Requests to it.

    /// Handles a parcel of another worker: a request, a response, or events.
    pub fn handle_parcel(&mut self, bytes: &[u8], now: Now) {
        self.now = now;
        match Parcel::decode(bytes) {
            Ok(Parcel::Request(request)) => self.handle_request(&request),
            Ok(Parcel::Response(response)) => self.handle_response(&response),
            Ok(Parcel::Events(events)) => self.handle_events(&events),
            Ok(Parcel::Cancel(Cancel { server, client, list, .. })) => {
                list.ids().for_each(|id| self.own_servers.forget(server, id, client));
            }
            Err(_) => self.config.counters.parcels_malformed.add(1),
        }
    }

    fn handle_request(&mut self, request: &Request<'_>) {
        let Request { id, server, client, pid, uid, device, ip, data } = *request;
        let Some(project) = self.config.projects.id_of(pid) else { return };
        let deadline =
            self.awake() + self.config.settings.times.request_timeout_ms + FORGET_AFTER_MS;
        let own = self.own_servers.all.get_mut(&server);
        let Some(own) = own.filter(|own| own.server.project == project) else {
            return self.respond(project, id, client, server, Answer::Unwritten);
        };
        if own.backlog_bytes + data.len() > MAX_BACKLOG_BYTES || own.asked.len() >= MAX_ASKED {
            return self.respond(project, id, client, server, Answer::Full);
        }
        match own.asked.entry(id) {
            Entry::Occupied(_) => return,
            Entry::Vacant(vacant) => _ = vacant.insert((client, deadline)),
        }
        self.own_servers.deadlines.insert((deadline, server, id));
        let (slot, is_known) = (own.slot, own.unknown_to == 0);
        self.note(Note::Put(id));
        let from = Client { cid: client, uid, device, ip };
        if is_known && self.connections[slot as usize].outbox.is_none() {
            let frame =
                self.open.add_text(|out| server_message::write_request(out, id, from, data));
            return self.owe(slot, frame);
        }
        let mut text = Vec::new();
        server_message::write_request(&mut text, id, from, data);
        if let Some(own) = self.own_servers.all.get_mut(&server) {
            own.backlog_bytes += text.len();
            own.backlog.push_back((id, text));
        }
    }

    /// Writes queued requests to a server whose socket has room again.
    pub(super) fn write_backlog(&mut self, slot: u32) {
        let cid = self.connections[slot as usize].cid;
        let Some(own) = self.own_servers.all.get_mut(&cid).filter(|own| own.unknown_to == 0) else {
            return;
        };
        own.backlog_bytes = 0;
        for (id, text) in std::mem::take(&mut own.backlog) {
            // It may have timed out by now.
            let is_due =
                self.own_servers.all.get(&cid).is_some_and(|own| own.asked.contains_key(&id));
            if is_due {
                let frame = self.open.add_text(|out| out.extend_from_slice(&text));
                self.owe(slot, frame);
            }
        }
    }

    /// Sends a response to the client's worker.
    pub(super) fn respond(
        &mut self,
        project: ProjectId,
        id: MessageId,
        client: Cid,
        server: Cid,
        answer: Answer<'_>,
    ) {
        let projects = Arc::clone(&self.config.projects);
        let pid = projects.get(project).map_or("", |project| &project.pid);
        let response = Response { id, client, server, pid, answer };
        if self.registry.is_here(client) {
            return self.handle_response(&response);
        }
        let mut parcel = Vec::new();
        response.encode(self.sender(), &mut parcel);
        let to = To::Holder { project, cid: client };
        self.subscriptions.request(BrokerRequest::Relay(Relay { to, parcel }));
    }

    // Messages from it.

    pub(super) fn handle_server_message(&mut self, slot: u32, payload: &[u8], now: Now) {
        self.config.counters.server_messages.add(1);
        let frame = match server_message::parse(payload) {
            Ok(ServerMessage::Push { id }) => {
                return self.take_push(slot, id.as_deref(), payload);
            }
            Ok(ServerMessage::Response { id, data }) => return self.take_answer(slot, id, data),
            Ok(ServerMessage::Heartbeat { id }) => {
                self.open.add_text(|out| message::write_heartbeat(out, id.as_deref(), now.wall))
            }
            Ok(ServerMessage::Refresh { id, session_exp, sign }) => {
                let result = self.refresh(slot, session_exp, sign.as_deref());
                self.open.add_text(|out| match result {
                    Ok(()) => message::write_refreshed(out, id.as_deref()),
                    Err(msg) => {
                        message::write_refusal(out, MessageKind::Refresh, id.as_deref(), &msg)
                    }
                })
            }
            Err(error) => self.open.add_text(|out| error.write(out)),
        };
        self.owe(slot, frame);
    }

    /// Takes a response. It counts only from the connection that was asked, and once.
    fn take_answer(&mut self, slot: u32, id: Option<MessageId>, data: &[u8]) {
        let cid = self.connections[slot as usize].cid;
        let own = self.own_servers.all.get_mut(&cid);
        let asked = own.and_then(|own| Some((own.server.project, id?, own.asked.remove(&id?)?)));
        match asked {
            Some((project, id, (client, deadline))) => {
                self.own_servers.deadlines.remove(&(deadline, cid, id));
                self.note(Note::Replied { id, project, is_error: false });
                self.respond(project, id, client, cid, Answer::Data(data));
            }
            None => self.config.counters.count_lost_answer(LostAnswer::Unasked),
        }
    }

    fn take_push(&mut self, slot: u32, echo: Option<&str>, payload: &[u8]) {
        let connection = &self.connections[slot as usize];
        let key = ConnKey { slot, generation: connection.generation };
        let Some(own) = self.own_servers.all.get_mut(&connection.cid) else { return };
        own.push_bytes += payload.len();
        let (echo, message) = (echo.map(Into::into), payload.into());
        let project = own.server.project;
        self.own_servers.pushes.push_back(ServerPush { key, project, echo, message });
    }

    /// Takes the next push of a business server, in order; answer each with
    /// [`Worker::answer_push`].
    pub fn take_server_push(&mut self) -> Option<ServerPush> {
        self.own_servers.pushes.pop_front()
    }

    pub fn has_server_pushes(&self) -> bool {
        !self.own_servers.pushes.is_empty()
    }

    /// Sends the result of a push: its id, or why it was not accepted.
    pub fn answer_push(&mut self, push: &ServerPush, result: Result<MessageId, &str>) {
        let ConnKey { slot, generation } = push.key;
        let Some(connection) = self.connections.get(slot as usize) else { return };
        if connection.generation != generation {
            return;
        }
        let Some(own) = self.own_servers.all.get_mut(&connection.cid) else { return };
        own.push_bytes -= push.message.len();
        let echo = push.echo.as_deref();
        let frame = self.open.add_text(|out| match result {
            Ok(id) => server_message::write_push_accepted(out, echo, id),
            Err(msg) => server_message::write_push_refused(out, echo, msg),
        });
        self.owe(slot, frame);
    }

    /// Handles an event from the broker or another worker.
    pub fn handle_worker_event(&mut self, event: WorkerEvent, now: Now) {
        self.now = now;
        match event {
            WorkerEvent::ServerHere(server) => {
                self.registry.insert(server);
                self.show_known();
                if self.config.queue_needs.is_none() {
                    self.subscriptions.request(BrokerRequest::ServerSeen(server.cid));
                }
            }
            WorkerEvent::ServerGone(cid) => {
                self.registry.remove(cid);
                self.forget_servers(&[cid]);
            }
            WorkerEvent::ServerKnown(cid) => self.handle_known(cid),
            WorkerEvent::Node { node, is_up } => self.handle_node(node, is_up),
            WorkerEvent::IdsBegin { used_ms } => self.handle_used_ids(used_ms),
        }
    }
}
