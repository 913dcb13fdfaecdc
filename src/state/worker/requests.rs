//! Requests of this worker's clients: each goes to one business server, and is answered once.

use super::Worker;
use crate::state::connection::{Connection, Phase};
use crate::state::counters::{Answered, LostAnswer};
use crate::state::projects::ProjectId;
use crate::state::servers::{Choice, Load};
use crate::state::wants::{Ask, Relay, To, Unsent};
use crate::types::{Cid, ConnKey, MessageId};
use crate::wire::message;
use crate::wire::parcel::{Answer, Parcel, Request, Response};
use slab::Slab;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::Ordering::Relaxed;

/// Requests of one client, and of all of a worker's, that wait at once; beyond, they are refused.
const MAX_OF_CLIENT: u32 = 1_000;
const MAX_WAITING: usize = 65_536;
/// Bytes of one client's that wait: it leaves room for others.
const MAX_BYTES_OF_CLIENT: usize = 8 << 20;
/// Bytes of the requests that wait, kept so that another server may be asked.
const MAX_WAITING_BYTES: usize = 64 << 20;

const REQUEST_TOO_LARGE: &str = "the request is too large for the queue";
const ANSWER_TOO_LARGE: &str = "the answer is too large for the queue";

/// What happened to a request, for whoever traces it.
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

/// Invariant: every request that waits is in `waiting` once, counts in its server's load and in
/// `by_client` once, and is in `deadlines`, which may hold some that wait no more.
#[derive(Debug, Default)]
pub(super) struct Requests {
    waiting: BTreeMap<MessageId, Waiting>,
    /// In order: all wait equally long.
    deadlines: VecDeque<(u64, MessageId)>,
    by_client: BTreeMap<ConnKey, OfClient>,
    bytes: usize,
}

/// What one client waits for.
#[derive(Debug, Default)]
struct OfClient {
    requests: u32,
    bytes: usize,
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
    was_retried: bool,
}

impl Requests {
    fn has_room(&self, client: ConnKey, bytes: usize) -> bool {
        self.waiting.len() < MAX_WAITING
            && self.bytes + bytes <= MAX_WAITING_BYTES
            && self.by_client.get(&client).is_none_or(|its| {
                its.requests < MAX_OF_CLIENT && its.bytes + bytes <= MAX_BYTES_OF_CLIENT
            })
    }

    fn insert(&mut self, id: MessageId, waiting: Waiting, deadline_ms: u64) {
        waiting.load.fetch_add(1, Relaxed);
        let its = self.by_client.entry(waiting.client).or_default();
        its.requests += 1;
        its.bytes += waiting.data.len();
        self.bytes += waiting.data.len();
        self.deadlines.push_back((deadline_ms, id));
        self.waiting.insert(id, waiting);
    }

    fn remove(&mut self, id: MessageId) -> Option<Waiting> {
        let waiting = self.waiting.remove(&id)?;
        waiting.load.fetch_sub(1, Relaxed);
        self.bytes -= waiting.data.len();
        if let Some(its) = self.by_client.get_mut(&waiting.client) {
            its.requests -= 1;
            its.bytes -= waiting.data.len();
            if its.requests == 0 {
                self.by_client.remove(&waiting.client);
            }
        }
        Some(waiting)
    }

    /// Those that one server was asked.
    pub(super) fn asked_of(&self, server: Cid) -> Vec<MessageId> {
        let is_its = |(_, waiting): &(&MessageId, &Waiting)| waiting.server == server;
        self.waiting.iter().filter(is_its).map(|(&id, _)| id).collect()
    }

    /// The next that has waited too long.
    fn next_late(&mut self, now_ms: u64) -> Option<MessageId> {
        while let Some(&(deadline_ms, id)) = self.deadlines.front() {
            if self.waiting.contains_key(&id) {
                return (deadline_ms <= now_ms).then_some(id);
            }
            self.deadlines.pop_front();
        }
        None
    }

    pub(super) fn handle_clock_step(&mut self, step_ms: i64) {
        for (deadline_ms, _) in &mut self.deadlines {
            *deadline_ms = deadline_ms.saturating_add_signed(step_ms);
        }
    }

    pub(super) fn check(&self) {
        let of_clients: u32 = self.by_client.values().map(|its| its.requests).sum();
        assert_eq!(of_clients as usize, self.waiting.len());
        let of_clients: usize = self.by_client.values().map(|its| its.bytes).sum();
        assert_eq!(of_clients, self.bytes);
        let bytes: usize = self.waiting.values().map(|waiting| waiting.data.len()).sum();
        assert_eq!(bytes, self.bytes);
        let ids: BTreeSet<MessageId> = self.deadlines.iter().map(|&(_, id)| id).collect();
        assert!(self.waiting.keys().all(|id| ids.contains(id)));
    }

    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }
}

impl Worker {
    /// A client asks: hands the request to the business server that has the fewest in flight.
    pub(super) fn handle_client_request(
        &mut self,
        slot: u32,
        echo: Option<&str>,
        data: &[u8],
        now_ms: u64,
    ) {
        let connection = &self.connections[slot as usize];
        let project = ProjectId(connection.project);
        let client = ConnKey { slot, generation: connection.generation };
        if !self.requests.has_room(client, data.len()) {
            return self.answer_refusal(slot, echo, "too many requests wait", Answered::Overloaded);
        }
        let Some(choice) = self.registry.choose(project, None) else {
            return self.answer_refusal(slot, echo, "no server", Answered::NoServer);
        };
        let id = self.next_message_id(now_ms);
        let Choice { cid: server, load } = choice;
        let (echo, data) = (echo.map(Into::into), data.into());
        let waiting = Waiting { client, echo, project, server, load, data, was_retried: false };
        self.requests.insert(id, waiting, now_ms + self.config.request_timeout_ms);
        self.note(Note::Asked(id));
        self.send_request(id, now_ms);
    }

    /// Brings a request that waits to the server that is chosen for it.
    fn send_request(&mut self, id: MessageId, now_ms: u64) {
        let Some(waiting) = self.requests.waiting.get(&id) else { return };
        let Some(client) = self.connections.get(waiting.client.slot as usize) else { return };
        let (server, project) = (waiting.server, waiting.project);
        let pid = self.config.projects.get(project).map_or("", |project| &project.pid);
        let device = self.directory.device(client.group);
        let (uid, data) = (&*client.uid, &*waiting.data);
        let request = Request { id, server, client: client.cid, pid, uid, device, data };
        let mut parcel = Vec::with_capacity(data.len() + 256);
        request.encode(self.sender(), &mut parcel);
        if self.registry.is_here(server) {
            return self.handle_parcel(&parcel, now_ms);
        }
        // Behind what happened to its client: the server is to know whom it answers.
        self.send_untold();
        let to = To::Holder { project, cid: server };
        self.wants.tell(Ask::Relay(Relay { to, parcel }));
    }

    /// An answer came. It counts only from the connection that was asked.
    pub(super) fn handle_response(&mut self, response: &Response<'_>, now_ms: u64) {
        let id = response.id;
        let Some(waiting) = self.requests.waiting.get(&id) else {
            return self.config.counters.count_lost_answer(LostAnswer::Late);
        };
        if waiting.server != response.server {
            return self.config.counters.count_lost_answer(LostAnswer::Forged);
        }
        match response.answer {
            Answer::Data(data) => {
                self.finish_request(id, Answered::Answered, |out, echo| {
                    message::write_response(out, echo, data);
                });
            }
            Answer::Unwritten | Answer::Full if self.ask_another(id, now_ms) => {}
            Answer::Gone | Answer::Unwritten => self.refuse_request(id, "server gone"),
            Answer::Full => self.refuse_request(id, "too many requests wait"),
            Answer::TooLarge => self.refuse_request(id, ANSWER_TOO_LARGE),
        }
    }

    /// Returns whether there is another server, none but one was asked, and the client to be
    /// answered is still there.
    fn ask_another(&mut self, id: MessageId, now_ms: u64) -> bool {
        let waiting = self.requests.waiting.get_mut(&id).filter(|waiting| !waiting.was_retried);
        let Some(waiting) = waiting else { return false };
        let Some(choice) = self.registry.choose(waiting.project, Some(waiting.server)) else {
            return false;
        };
        if !is_open(&self.connections, waiting.client) {
            return false;
        }
        waiting.load.fetch_sub(1, Relaxed);
        choice.load.fetch_add(1, Relaxed);
        (waiting.server, waiting.load, waiting.was_retried) = (choice.cid, choice.load, true);
        self.config.counters.requests_retried.add(1);
        self.send_request(id, now_ms);
        true
    }

    /// It could not be handed over.
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
                    Unsent::Full => "too many requests wait",
                    Unsent::TooLarge => REQUEST_TOO_LARGE,
                };
                self.refuse_request(request.id, msg);
            }
            // Who asked shall not wait for it in vain.
            (Ok(Parcel::Response(response)), To::Holder { project, .. })
                if why == Unsent::TooLarge =>
            {
                let Response { id, client, server, .. } = response;
                self.respond(project, id, client, server, Answer::TooLarge);
            }
            _ => {}
        }
    }

    /// Answers those that have waited too long.
    pub(super) fn expire_requests(&mut self, now_ms: u64) {
        while let Some(id) = self.requests.next_late(now_ms) {
            self.refuse_request(id, "timeout");
        }
        self.own_servers.forget_late(now_ms);
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
        let Some(waiting) = self.requests.remove(id) else { return };
        let is_error = answered != Answered::Answered;
        self.note(Note::Answered { id, project: waiting.project, is_error });
        if !is_open(&self.connections, waiting.client) {
            return self.config.counters.count_lost_answer(LostAnswer::ClientGone);
        }
        self.config.counters.count_answered(answered);
        let frame = self.open.add_text(|out| write(out, waiting.echo.as_deref()));
        self.owe(waiting.client.slot, frame);
    }

    /// Whether requests are noted from here on; what is noted must be taken.
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

fn is_open(connections: &Slab<Connection>, key: ConnKey) -> bool {
    connections.get(key.slot as usize).is_some_and(|connection| {
        connection.generation == key.generation && connection.phase == Phase::Open
    })
}
