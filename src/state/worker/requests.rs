//! Requests of this worker's clients: each is sent to one business server and answered once.

use super::Worker;
use crate::state::counters::{Answered, LostAnswer};
use crate::state::projects::ProjectId;
use crate::state::servers::{Choice, Load};
use crate::state::subscriptions::{BrokerRequest, Relay, To, Unsent};
use crate::types::{Cid, ConnKey, MessageId, MonotonicMs, Now};
use crate::wire::message;
use crate::wire::parcel::{self, Answer, Cancel, Parcel, Request, Response};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::Ordering::Relaxed;

/// Maximum waiting requests of one client, and of all clients of a worker; beyond it, requests are
/// refused.
const MAX_OF_CLIENT: u32 = parcel::MAX_CANCELLED as u32;
const MAX_WAITING: usize = 131_072;
/// Maximum bytes of one client's waiting requests: it leaves room for others.
const MAX_BYTES_OF_CLIENT: usize = 8 << 20;
/// Maximum bytes of waiting requests, which are kept so that another server may be asked.
const MAX_WAITING_BYTES: usize = 64 << 20;

const TOO_MANY_OF_PROJECT: &str = "too many requests of this project are pending";

const REQUEST_TOO_LARGE: &str = "the request is too large for the queue";
const ANSWER_TOO_LARGE: &str = "the answer is too large for the queue";

/// An event in the life of a request, for tracing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Note {
    /// A client of this worker asked; it was answered.
    Asked(MessageId),
    Answered {
        id: MessageId,
        project: ProjectId,
        is_error: bool,
    },
    /// A business server of this worker was asked; it answered, or is gone.
    Put(MessageId),
    Replied {
        id: MessageId,
        project: ProjectId,
        is_error: bool,
    },
}

/// Invariant: every waiting request is in `waiting` once, counts in its server's load and in its
/// client's and its project's share once, and its client is open or in `ended`. A request that no
/// longer waits is nowhere.
#[derive(Debug, Default)]
pub(super) struct Requests {
    /// In the order in which they were sent; all have the same timeout.
    waiting: BTreeMap<MessageId, Waiting>,
    by_client: BTreeSet<(ConnKey, MessageId)>,
    by_server: BTreeSet<(Cid, MessageId)>,
    of_clients: BTreeMap<ConnKey, Share>,
    of_projects: BTreeMap<ProjectId, Share>,
    all: Share,
    /// Business servers that are gone, each with the last request sent to it before. A lost node
    /// may come back with the same servers: later requests to them are not affected.
    gone: VecDeque<(Cid, MessageId)>,
    /// Clients that ended before all their requests were freed, and their ids.
    ended: VecDeque<(ConnKey, Cid)>,
}

/// Resources taken by the requests of a client or project.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Share {
    requests: usize,
    bytes: usize,
}

impl Share {
    fn add(&mut self, bytes: usize) {
        self.requests += 1;
        self.bytes += bytes;
    }

    /// Subtracts a request. Returns whether nothing is left.
    fn remove(&mut self, bytes: usize) -> bool {
        self.requests -= 1;
        self.bytes -= bytes;
        self.requests == 0
    }
}

/// Whose share of the table is used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Full {
    Client,
    Project,
}

#[derive(Debug)]
struct Waiting {
    client: ConnKey,
    /// The `id` of the client's message.
    echo: Option<Box<str>>,
    project: ProjectId,
    server: Cid,
    load: Load,
    data: Box<[u8]>,
    /// See [`Worker::awake_at`].
    deadline: MonotonicMs,
    was_retried: bool,
}

impl Requests {
    /// Checks the shares. A project may take as much as it leaves free: half of the table if alone,
    /// a third each for two. So there is always room for a project that has nothing yet.
    fn check_room(&self, client: ConnKey, project: ProjectId, bytes: usize) -> Result<(), Full> {
        let its = self.of_clients.get(&client).copied().unwrap_or_default();
        if its.requests >= MAX_OF_CLIENT as usize || its.bytes + bytes > MAX_BYTES_OF_CLIENT {
            return Err(Full::Client);
        }
        let its = self.of_projects.get(&project).copied().unwrap_or_default();
        let free = MAX_WAITING - self.all.requests;
        let free_bytes = MAX_WAITING_BYTES.saturating_sub(self.all.bytes + bytes);
        if its.requests >= free || its.bytes + bytes > free_bytes {
            return Err(Full::Project);
        }
        Ok(())
    }

    fn insert(&mut self, id: MessageId, waiting: Waiting) {
        waiting.load.fetch_add(1, Relaxed);
        let bytes = waiting.data.len();
        self.of_clients.entry(waiting.client).or_default().add(bytes);
        self.of_projects.entry(waiting.project).or_default().add(bytes);
        self.all.add(bytes);
        self.by_client.insert((waiting.client, id));
        self.by_server.insert((waiting.server, id));
        self.waiting.insert(id, waiting);
    }

    fn remove(&mut self, id: MessageId) -> Option<Waiting> {
        let waiting = self.waiting.remove(&id)?;
        waiting.load.fetch_sub(1, Relaxed);
        let bytes = waiting.data.len();
        if self.of_clients.get_mut(&waiting.client).is_some_and(|its| its.remove(bytes)) {
            self.of_clients.remove(&waiting.client);
        }
        if self.of_projects.get_mut(&waiting.project).is_some_and(|its| its.remove(bytes)) {
            self.of_projects.remove(&waiting.project);
        }
        self.all.remove(bytes);
        self.by_client.remove(&(waiting.client, id));
        self.by_server.remove(&(waiting.server, id));
        Some(waiting)
    }

    /// Moves the request to another server.
    fn move_to(&mut self, id: MessageId, choice: Choice) {
        let Some(waiting) = self.waiting.get_mut(&id) else { return };
        waiting.load.fetch_sub(1, Relaxed);
        choice.load.fetch_add(1, Relaxed);
        self.by_server.remove(&(waiting.server, id));
        self.by_server.insert((choice.cid, id));
        (waiting.server, waiting.load, waiting.was_retried) = (choice.cid, choice.load, true);
    }

    /// Notes that a server is gone: its requests are to be refused ([`Requests::next_of_gone`]).
    pub(super) fn handle_gone(&mut self, server: Cid) {
        let all = (server, MessageId(0))..=(server, MessageId(u64::MAX));
        self.gone.extend(self.by_server.range(all).next_back());
    }

    /// Returns the next request to a server that is gone.
    pub(super) fn next_of_gone(&mut self) -> Option<MessageId> {
        while let Some(&last) = self.gone.front() {
            let first = (last.0, MessageId(0));
            if let Some(&(_, id)) = self.by_server.range(first..=last).next() {
                return Some(id);
            }
            self.gone.pop_front();
        }
        None
    }

    pub(super) fn has_gone(&self) -> bool {
        !self.gone.is_empty()
    }

    /// Notes that a client ended: its requests are to be freed ([`Requests::next_of_ended`]).
    fn handle_ended(&mut self, client: ConnKey, cid: Cid) {
        if self.of_clients.contains_key(&client) {
            self.ended.push_back((client, cid));
        }
    }

    /// Returns the next request of a client that ended, with the client's id.
    fn next_of_ended(&mut self) -> Option<(MessageId, Cid)> {
        while let Some(&(client, cid)) = self.ended.front() {
            let all = (client, MessageId(0))..=(client, MessageId(u64::MAX));
            if let Some(&(_, id)) = self.by_client.range(all).next() {
                return Some((id, cid));
            }
            self.ended.pop_front();
        }
        None
    }

    pub(super) fn has_ended(&self) -> bool {
        !self.ended.is_empty()
    }

    /// Returns the next request that has timed out.
    fn next_late(&self, awake: MonotonicMs) -> Option<MessageId> {
        let (&id, waiting) = self.waiting.first_key_value()?;
        (waiting.deadline <= awake).then_some(id)
    }

    pub(super) fn has_late(&self, awake: MonotonicMs) -> bool {
        self.next_late(awake).is_some()
    }

    pub(super) fn check(&self, is_open: impl Fn(ConnKey) -> bool) {
        let mut of_clients: BTreeMap<ConnKey, Share> = BTreeMap::new();
        let mut of_projects: BTreeMap<ProjectId, Share> = BTreeMap::new();
        let mut all = Share::default();
        for (&id, waiting) in &self.waiting {
            let bytes = waiting.data.len();
            of_clients.entry(waiting.client).or_default().add(bytes);
            of_projects.entry(waiting.project).or_default().add(bytes);
            all.add(bytes);
            assert!(self.by_client.contains(&(waiting.client, id)));
            assert!(self.by_server.contains(&(waiting.server, id)));
            let has_ended = self.ended.iter().any(|&(client, _)| client == waiting.client);
            let may_wait = is_open(waiting.client) || has_ended;
            assert!(may_wait, "a client that has gone waits");
        }
        assert_eq!((&of_clients, &of_projects), (&self.of_clients, &self.of_projects));
        assert_eq!(all, self.all);
        assert_eq!((self.by_client.len(), self.by_server.len()), (all.requests, all.requests));
    }

    pub(super) fn len(&self) -> usize {
        self.all.requests
    }
}

impl Worker {
    /// Handles a client's request: sends it to the business server with the fewest in flight.
    pub(super) fn handle_client_request(
        &mut self,
        slot: u32,
        echo: Option<&str>,
        data: &[u8],
        now: Now,
    ) {
        let connection = &self.connections[slot as usize];
        let project = ProjectId(connection.project);
        let client = ConnKey { slot, generation: connection.generation };
        if let Err(full) = self.requests.check_room(client, project, data.len()) {
            let msg = match full {
                Full::Client => "too many requests are pending",
                Full::Project => TOO_MANY_OF_PROJECT,
            };
            self.count_limited(project, full);
            return self.answer_refusal(slot, echo, msg, Answered::Overloaded);
        }
        let Some(choice) = self.registry.choose(project, None) else {
            return self.answer_refusal(slot, echo, "no server", Answered::NoServer);
        };
        let id = self.next_message_id(now.wall);
        let Choice { cid: server, load } = choice;
        let (echo, data) = (echo.map(Into::into), data.into());
        let deadline = self.awake() + self.config.settings.times.request_timeout_ms;
        let was_retried = false;
        let waiting = Waiting { client, echo, project, server, load, data, deadline, was_retried };
        self.requests.insert(id, waiting);
        self.note(Note::Asked(id));
        self.send_request(id);
    }

    /// Sends a waiting request to its chosen server.
    fn send_request(&mut self, id: MessageId) {
        let Some(waiting) = self.requests.waiting.get(&id) else { return };
        let Some(client) = self.connections.get(waiting.client.slot as usize) else { return };
        let (server, project) = (waiting.server, waiting.project);
        let pid = self.config.projects.get(project).map_or("", |project| &project.pid);
        let device = self.directory.device(client.group);
        let (uid, ip, data) = (&*client.uid, client.ip(&self.addresses), &*waiting.data);
        let request = Request { id, server, client: client.cid, pid, uid, device, ip, data };
        let mut parcel = Vec::with_capacity(data.len() + 256);
        request.encode(self.sender(), &mut parcel);
        if self.registry.is_here(server) {
            return self.handle_parcel(&parcel, self.now);
        }
        // After the events of its client: the server must know whom it answers.
        self.send_pending_events();
        let to = To::Holder { project, cid: server };
        self.subscriptions.request(BrokerRequest::Relay(Relay { to, parcel }));
    }

    /// Handles a response. It counts only from the connection that was asked.
    pub(super) fn handle_response(&mut self, response: &Response<'_>) {
        let id = response.id;
        let Some(waiting) = self.requests.waiting.get(&id) else {
            return self.config.counters.count_lost_answer(LostAnswer::Late);
        };
        if waiting.server != response.server {
            return self.config.counters.count_lost_answer(LostAnswer::Forged);
        }
        if !self.is_there(waiting.client) {
            let _ = self.free_request(id);
            return self.config.counters.count_lost_answer(LostAnswer::Late);
        }
        match response.answer {
            Answer::Data(data) => {
                self.finish_request(id, Answered::Answered, |out, echo| {
                    message::write_response(out, echo, data);
                });
            }
            Answer::Unwritten | Answer::Full if self.ask_another(id) => {}
            Answer::Gone | Answer::Unwritten => self.refuse_request(id, "server gone"),
            Answer::Full => self.refuse_request(id, "too many requests are pending"),
            Answer::TooLarge => self.refuse_request(id, ANSWER_TOO_LARGE),
        }
    }

    /// Whether a client waits for answers.
    pub(super) fn has_requests(&self, client: ConnKey) -> bool {
        self.requests.of_clients.contains_key(&client)
    }

    /// Asks another server if only one has been asked and there is another. Returns whether it did.
    fn ask_another(&mut self, id: MessageId) -> bool {
        let waiting = self.requests.waiting.get(&id).filter(|waiting| !waiting.was_retried);
        let Some(waiting) = waiting else { return false };
        let Some(choice) = self.registry.choose(waiting.project, Some(waiting.server)) else {
            return false;
        };
        self.requests.move_to(id, choice);
        self.config.counters.requests_retried.add(1);
        self.send_request(id);
        true
    }

    /// Handles a parcel that could not be sent.
    pub fn handle_unsent(&mut self, relay: &Relay, why: Unsent) {
        let counters = &self.config.counters;
        match why {
            Unsent::Down | Unsent::Full => counters.parcels_unsent.add(1),
            Unsent::TooLarge => counters.too_large_parcels.add(1),
        }
        match (Parcel::decode(&relay.parcel), relay.to) {
            (Ok(Parcel::Request(request)), _) => {
                let msg = match why {
                    Unsent::Down => "the queue is down",
                    Unsent::Full => "too many requests are pending",
                    Unsent::TooLarge => REQUEST_TOO_LARGE,
                };
                self.refuse_request(request.id, msg);
            }
            // The client that asked must not wait in vain.
            (Ok(Parcel::Response(response)), To::Holder { project, .. })
                if why == Unsent::TooLarge =>
            {
                let Response { id, client, server, .. } = response;
                self.respond(project, id, client, server, Answer::TooLarge);
            }
            _ => {}
        }
    }

    /// Answers some of the requests that have timed out.
    pub(super) fn expire_requests(&mut self) {
        let awake = self.awake();
        while self.answers_left > 0
            && let Some(id) = self.requests.next_late(awake)
        {
            self.answers_left -= 1;
            self.refuse_request(id, "timeout");
        }
        self.own_servers.forget_late(awake);
    }

    /// Handles the end of a client: nobody waits for the responses to its requests, here or at the
    /// servers. Requests for which this turn has no time are freed in the next tick, which is due
    /// at once.
    pub(super) fn free_requests(&mut self, client: ConnKey) {
        let cid = self.connections[client.slot as usize].cid;
        self.requests.handle_ended(client, cid);
        self.free_for_ended();
    }

    /// Frees some of the requests of clients that ended.
    pub(super) fn free_for_ended(&mut self) {
        let mut elsewhere: BTreeMap<(ProjectId, Cid, Cid), Vec<MessageId>> = BTreeMap::new();
        while self.answers_left > 0
            && let Some((id, client)) = self.requests.next_of_ended()
        {
            self.answers_left -= 1;
            let Some((project, server)) = self.free_request(id) else { break };
            match self.registry.is_here(server) {
                true => self.own_servers.forget(server, id, client),
                false => elsewhere.entry((project, server, client)).or_default().push(id),
            }
        }
        // One parcel for each server that the client asked, smaller than the requests were.
        for ((project, server, client), ids) in elsewhere {
            let pid = self.config.projects.get(project).map_or("", |project| &project.pid);
            let mut parcel = Vec::new();
            Cancel::encode_of(self.sender(), (server, client, pid), &ids, &mut parcel);
            let to = To::Holder { project, cid: server };
            self.subscriptions.request(BrokerRequest::Relay(Relay { to, parcel }));
        }
        self.is_overdue |= self.requests.has_ended();
    }

    /// Frees a request whose client ended. Returns the server it was sent to.
    fn free_request(&mut self, id: MessageId) -> Option<(ProjectId, Cid)> {
        let Waiting { project, server, .. } = self.requests.remove(id)?;
        self.note(Note::Answered { id, project, is_error: true });
        self.config.counters.count_answered(Answered::ClientGone);
        Some((project, server))
    }

    fn is_there(&self, client: ConnKey) -> bool {
        let connection = self.connections.get(client.slot as usize);
        connection.is_some_and(|one| one.generation == client.generation && one.is_open())
    }

    fn count_limited(&self, project: ProjectId, full: Full) {
        let Some(counters) = self.config.counters.projects.get(project.0 as usize) else { return };
        match full {
            Full::Client => counters.limited_by_client.add(1),
            Full::Project => counters.limited_by_project.add(1),
        }
    }

    pub(super) fn refuse_request(&mut self, id: MessageId, msg: &str) {
        let answered = match msg {
            "timeout" => Answered::Timeout,
            "server gone" => Answered::ServerGone,
            REQUEST_TOO_LARGE | ANSWER_TOO_LARGE => Answered::TooLarge,
            _ => Answered::Overloaded,
        };
        self.finish_request(id, answered, |out, echo| {
            message::write_response_refusal(out, echo, msg);
        });
    }

    fn finish_request(
        &mut self,
        id: MessageId,
        answered: Answered,
        write: impl FnOnce(&mut Vec<u8>, Option<&str>),
    ) {
        let Some(client) = self.requests.waiting.get(&id).map(|waiting| waiting.client) else {
            return;
        };
        if !self.is_there(client) {
            let _ = self.free_request(id);
            return;
        }
        let Some(waiting) = self.requests.remove(id) else { return };
        let is_error = answered != Answered::Answered;
        self.note(Note::Answered { id, project: waiting.project, is_error });
        self.config.counters.count_answered(answered);
        let frame = self.open.add_text(|out| write(out, waiting.echo.as_deref()));
        self.owe(waiting.client.slot, frame);
    }

    /// Sets whether requests are noted from now on; the notes must be taken.
    pub fn set_notes(&mut self, is_noting: bool) {
        self.notes = is_noting.then(Vec::new);
    }

    pub fn take_notes(&mut self) -> Vec<Note> {
        self.notes.as_mut().map(std::mem::take).unwrap_or_default()
    }

    pub(super) fn note(&mut self, note: Note) {
        if let Some(notes) = &mut self.notes {
            notes.push(note);
        }
    }

    fn answer_refusal(&mut self, slot: u32, echo: Option<&str>, msg: &str, answered: Answered) {
        self.config.counters.count_answered(answered);
        let frame = self.open.add_text(|out| message::write_response_refusal(out, echo, msg));
        self.owe(slot, frame);
    }
}
