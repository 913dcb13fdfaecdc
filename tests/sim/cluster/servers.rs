//! Business servers of one worker: their sockets, which may be slow, what they must receive, and
//! what their worker knows of those elsewhere.

use super::core::{Guest, Home, SimWorker};
use super::{Push, Receiver, World};
use crate::business::requests::{MAX_OF_CLIENT, Request, risen};
use crate::business::{Profile, Said, SentPush, Server, Told, random_events};
use crate::checks::WallClock;
use serde_json::Value;
use std::collections::{BTreeMap, VecDeque};
use ws_cluster::state::broker::Outcome;
use ws_cluster::state::subscriptions::{Relay, Unsent, WorkerEvent};
use ws_cluster::state::{CloseCause, CloseRequest, Role, ServerPush};
use ws_cluster::types::{Cid, ConnKey, EventSet, MessageId, SnowflakeClock};
use ws_cluster::wire::parcel::{Answer, Events, Parcel, Response};
use ws_cluster::wire::websocket::{Message, write_close};

/// The longest time for which a socket takes nothing.
const SLOW_MS: [u64; 3] = [50, 1_000, 4_000];

/// A business server's connection.
pub struct Socket {
    pub key: ConnKey,
    pub server: Server,
    receiver: Receiver,
    /// Until then it takes little or nothing.
    pub slow_until_ms: u64,
    /// When something for it last did not fit.
    pub blocked_ms: u64,
    pub is_blocked: bool,
    /// The worker has closed it, or its socket is gone.
    pub is_closing: bool,
    is_gone: bool,
    /// What its worker has not yet read.
    up: VecDeque<(Said, String)>,
}

/// A push of a business server that waits for the queue's answer.
pub struct PendingPush {
    push: ServerPush,
    ticket: u32,
    result: Option<Result<MessageId, &'static str>>,
    id: MessageId,
}

impl SimWorker {
    // Their lives.

    pub fn connect_server(&mut self, world: &mut World, home: Home) {
        let rng = &mut world.rng;
        let guest = Guest {
            project: rng.below(super::PIDS.len()),
            // Never matched by it.
            uid: if rng.chance(30) { "" } else { super::UIDS[rng.below(super::UIDS.len())] },
            device: super::DEVICES[rng.below(super::DEVICES.len())],
            tags: Vec::new(),
            since_ms: world.now_ms,
            role: Role::Server(random_events(rng)),
        };
        self.try_handshake(guest, world, &mut super::Model::default(), home);
    }

    pub fn enter_server(
        &mut self,
        key: ConnKey,
        cid: u64,
        (pid, events): (&'static str, EventSet),
        world: &mut World,
        home: Home,
    ) {
        let Home { node, epoch, .. } = home;
        let profile = Profile { cid, pid, events, node, epoch, worker: self.index };
        world.business.profiles.insert(cid, profile);
        let socket = Socket {
            key,
            server: Server::new(profile, 1, &mut world.rng),
            receiver: Receiver::of_server(cid, pid, home.number),
            slow_until_ms: 0,
            blocked_ms: 0,
            is_blocked: false,
            is_closing: false,
            is_gone: false,
            up: VecDeque::new(),
        };
        assert!(self.servers.insert(cid, socket).is_none(), "client id {cid} came twice");
    }

    /// Disconnects a business server, in one way or another.
    pub fn leave_server(&mut self, cid: u64, world: &mut World) {
        let Some(socket) = self.servers.get_mut(&cid).filter(|socket| !socket.is_closing) else {
            return;
        };
        let slot = socket.key.slot;
        world.log.note(format!("business server {cid} leaves"));
        if world.rng.chance(50) {
            socket.is_gone = true;
            self.worker.handle_disconnect(slot);
        } else {
            self.worker.handle_frame(slot, Message::Close(1000), world.now());
        }
        self.notice_ends(world);
    }

    /// Handles those that the worker has closed by itself.
    pub fn notice_ends(&mut self, world: &mut World) {
        for (cid, socket) in &mut self.servers {
            if !socket.is_closing && !self.worker.is_open(socket.key.slot) {
                socket.is_closing = true;
                world.business.end(*cid, world.now_ms);
            }
        }
    }

    /// Removes one whose slot is free.
    pub fn end_server(
        &mut self,
        cid: u64,
        close: &CloseRequest,
        rest: &[u8],
        world: &mut World,
    ) -> ConnKey {
        let mut socket = self.servers.remove(&cid).unwrap();
        assert!(socket.is_closing, "a close that was never decided");
        if close.cause == CloseCause::SlowConsumer {
            assert!(socket.blocked_ms > 0, "closed as slow though it took everything");
        }
        if let Some(code) = close.cause.code()
            && !socket.is_gone
        {
            let mut last = rest.to_vec();
            write_close(&mut last, code, "");
            self.hear(&mut socket, &last, world);
            assert_eq!(socket.receiver.close_code, Some(code));
        }
        world.log.note(format!("business server {cid} closed: {:?}", close.cause));
        self.orphans.extend(socket.server.pushes.into_iter().filter(|push| push.begun.is_none()));
        socket.key
    }

    // Their sockets.

    /// Returns how much of these bytes a business server's socket takes.
    pub fn server_takes(&mut self, cid: u64, bytes: &[u8], world: &mut World) -> usize {
        let mut socket = self.servers.remove(&cid).unwrap();
        let room = socket.room(world);
        let taken = room.min(bytes.len());
        if taken < bytes.len() {
            socket.blocked_ms = world.now_ms;
        }
        self.hear(&mut socket, &bytes[..taken], world);
        self.servers.insert(cid, socket);
        taken
    }

    fn hear(&self, socket: &mut Socket, bytes: &[u8], world: &mut World) {
        socket.receiver.receive(bytes, &[], WallClock::steady(world.now_ms));
        for text in std::mem::take(&mut socket.receiver.texts) {
            let answer = socket.server.hear(&text, &mut world.business, world.now_ms);
            let Some((sent, answer)) = answer else { continue };
            // `None`: refused by its worker.
            let Some(id) = sent.begun.flatten() else {
                assert!(!answer.is_accepted);
                continue;
            };
            let record = &world.truth.records[&id];
            assert!(record.is_told, "push {id} is acknowledged before the queue's answer");
            let is_accepted = matches!(record.outcome, Some((Outcome::Accepted, _)));
            let expected = (is_accepted, is_accepted.then_some(id));
            assert_eq!((answer.is_accepted, answer.id), expected, "{:?}", record.outcome);
        }
    }

    /// Serves sockets that have room again, and reads what business servers have sent.
    pub fn serve_sockets(&mut self, world: &mut World) {
        let cids: Vec<u64> = self.servers.keys().copied().collect();
        for cid in cids {
            let socket = &self.servers[&cid];
            if socket.is_blocked && !socket.is_closing && world.rng.chance(60) {
                self.write_outbox(cid, world);
            }
            while self.read_one(cid, world) {}
        }
    }

    fn write_outbox(&mut self, cid: u64, world: &mut World) {
        let slices = 2 + world.rng.below(4);
        let mut socket = self.servers.remove(&cid).unwrap();
        let slot = socket.key.slot;
        let mut bytes = Vec::new();
        if let Some(outbox) = self.worker.outbox(slot, world.now().wall) {
            outbox.slices(slices, |slice| bytes.extend_from_slice(slice));
        }
        let taken = socket.room(world).min(bytes.len());
        self.hear(&mut socket, &bytes[..taken], world);
        socket.is_blocked = self.worker.handle_outbox_written(slot, taken);
        match socket.is_blocked {
            true => socket.blocked_ms = world.now_ms,
            false => world.business.requests.send_kept(cid),
        }
        self.servers.insert(cid, socket);
        self.notice_ends(world);
    }

    fn read_one(&mut self, cid: u64, world: &mut World) -> bool {
        let Some(socket) = self.servers.get_mut(&cid).filter(|socket| !socket.is_closing) else {
            return false;
        };
        let slot = socket.key.slot;
        if !self.worker.wants_input(slot) {
            return false;
        }
        let Some((said, text)) = socket.up.pop_front() else { return false };
        if socket.server.is_read(&said, &mut world.business.requests, world.now_ms) {
            self.worker.handle_frame(slot, Message::Text(text.as_bytes()), world.now());
            self.notice_ends(world);
        }
        true
    }

    /// Lets one of them send something, or become slow.
    pub fn hear_server(&mut self, cid: u64, world: &mut World) {
        let Some(socket) = self.servers.get_mut(&cid).filter(|socket| !socket.is_closing) else {
            return;
        };
        if world.rng.chance(1) {
            let most_ms = *world.rng.pick(&SLOW_MS);
            socket.slow_until_ms = world.now_ms + world.rng.number() % most_ms;
            world.log.note(format!("business server {cid} is slow"));
        }
        if let Some((said, text)) =
            socket.server.speak(&mut world.rng, &mut world.business.requests)
        {
            world.log.note(format!("business server {cid} says {text}"));
            socket.up.push_back((said, text));
        }
    }

    /// Sends a push.
    pub fn push_of_server(&mut self, cid: u64, text: String) {
        let socket = self.servers.get_mut(&cid).unwrap();
        socket.up.push_back((Said::Push, text));
    }

    // Requests to them.

    /// Sends one request; in some runs, now and then many at once, or large ones.
    pub fn request_something(&mut self, client: u64, world: &mut World, home: Home) {
        if world.setup.has_floods && world.rng.chance(2) {
            let (count, filler) = *world.rng.pick(&[(MAX_OF_CLIENT + 5, 0), (25, 60_000)]);
            for _ in 0..count {
                let number = world.business.requests.all.len();
                let data = format!(r#"{{"n":{number},"x":"{}"}}"#, "x".repeat(filler));
                self.request(client, data, world, home);
            }
            return;
        }
        let data = world.business.requests.data(&mut world.rng);
        self.request(client, data, world, home);
    }

    /// Sends a client's request.
    fn request(&mut self, client: u64, data: String, world: &mut World, home: Home) {
        let now_ms = world.now_ms;
        let requests = &mut world.business.requests;
        let echo = requests.echo(client, &mut world.rng);
        let Home { node, epoch, .. } = home;
        let history = &world.business.events.histories[&client];
        let (pid, worker) = (history.pid, self.index);
        let number = requests.begin(Request {
            client,
            pid,
            uid: history.uid.clone(),
            device: history.device.clone(),
            node,
            epoch,
            worker,
            echo,
            data,
            sent_ms: now_ms,
            ..Request::default()
        });
        let text = requests.text(number);
        world.log.note(format!("{client} requests {text:.200}"));
        let candidates = self.candidates(pid, home);
        let before = (self.loads.in_flight(), self.worker.pending_requests().unwritten);
        let slot = self.clients[&client].key.slot;
        self.worker.handle_frame(slot, Message::Text(text.as_bytes()), world.now());
        self.notice_ends(world);
        let after = (self.loads.in_flight(), self.worker.pending_requests().unwritten);
        let requests = &mut world.business.requests;
        requests.judge_choice(number, &candidates, &before.0, &after.0, now_ms);
        requests.all[number].is_kept = after.1 > before.1;
    }

    /// Returns the servers that take requests of a project, and their distances.
    fn candidates(&self, pid: &str, home: Home) -> BTreeMap<u64, u8> {
        let distance = |cid: u64| match SnowflakeClock::node_of(cid).value() == home.number {
            true => 1,
            false => 2,
        };
        let elsewhere = self.told_to(pid, EventSet::REQUEST).into_iter();
        let mut all: BTreeMap<u64, u8> = elsewhere.map(|cid| (cid, distance(cid))).collect();
        let open = self.servers.iter().filter(|(_, socket)| !socket.is_closing);
        let here = open.filter(|(_, socket)| socket.server.hears(pid, EventSet::REQUEST));
        all.extend(here.map(|(cid, _)| (*cid, 0)));
        all
    }

    // What they must receive.

    /// Returns the business servers of other workers that must receive such an event.
    fn told_to(&self, pid: &str, kind: EventSet) -> Vec<u64> {
        let wants = |known: &&ws_cluster::state::subscriptions::Server| {
            super::PIDS[known.project.0 as usize] == pid && known.events.meets(kind)
        };
        self.told.values().filter(wants).map(|known| known.cid.0).collect()
    }

    /// Records an event of a client: its subscribers must receive it.
    pub fn happens(
        &mut self,
        cid: u64,
        kind: EventSet,
        detail: Option<(&str, Value)>,
        world: &mut World,
    ) {
        let pid = world.business.events.histories[&cid].pid;
        let told_to = self.told_to(pid, kind);
        let index = world.business.events.happen(cid, kind, detail, world.now_ms, told_to);
        self.owe(pid, kind, Told::Client(cid, index));
    }

    fn owe(&mut self, pid: &str, kind: EventSet, told: Told) {
        let open = self.servers.values_mut().filter(|socket| !socket.is_closing);
        let hears = |socket: &&mut Socket| socket.server.hears(pid, kind);
        open.filter(hears).for_each(|socket| socket.server.owed.push_back(told));
    }

    /// Handles a parcel from elsewhere.
    pub fn handle_parcel(&mut self, bytes: &[u8], world: &mut World, home: Home) {
        match Parcel::decode(bytes).unwrap() {
            Parcel::Events(events) => self.hear_events(&events, world, home),
            Parcel::Request(request) => {
                let number = world.business.requests.number_of(request.data);
                world.business.requests.identify(number, request.id.0);
                let before = self.worker.pending_requests().unwritten;
                self.worker.handle_parcel(bytes, world.now());
                let is_kept = self.worker.pending_requests().unwritten > before;
                world.business.requests.all[number].is_kept = is_kept;
                return self.notice_ends(world);
            }
            Parcel::Response(response) => {
                return self.handle_response(bytes, &response, world);
            }
            Parcel::Cancel(_) => {}
        }
        self.worker.handle_parcel(bytes, world.now());
        self.notice_ends(world);
    }

    /// Ignores what this very worker has published: its own servers have it already.
    fn hear_events(&mut self, events: &Events<'_>, world: &mut World, home: Home) {
        let is_of_node = (events.sender.node.value(), events.sender.epoch);
        if is_of_node == (home.number, home.epoch) && usize::from(events.worker) == self.index {
            return;
        }
        for (kind, told) in world.business.events.hear(events, &mut self.heard_events) {
            self.owe(events.pid, kind, told);
        }
    }

    /// If the request was not written, another server may be assigned.
    fn handle_response(&mut self, bytes: &[u8], response: &Response<'_>, world: &mut World) {
        let before = self.loads.in_flight();
        self.worker.handle_parcel(bytes, world.now());
        self.notice_ends(world);
        if let Some(server) = risen(&before, &self.loads.in_flight()) {
            let may_retry = matches!(response.answer, Answer::Unwritten | Answer::Full);
            assert!(may_retry, "{server} is asked without a reason");
            let number = world.business.requests.by_id[&response.id.0];
            world.business.requests.ask(number, server, world.now_ms);
        }
    }

    /// Handles the broker's notification about business servers and nodes.
    pub fn handle_worker_event(&mut self, event: WorkerEvent, world: &mut World, home: Home) {
        let number = home.number;
        world.log.note(format!("node {number} worker {}: {event:?}", self.index));
        match event {
            WorkerEvent::ServerHere(server) => {
                let profile = &world.business.profiles[&server.cid.0];
                let pid = super::PIDS[server.project.0 as usize];
                assert_eq!((profile.pid, profile.events), (pid, server.events));
                self.told.insert(server.cid.0, server);
            }
            WorkerEvent::IdsBegin { .. } => {}
            WorkerEvent::ServerGone(Cid(cid)) => {
                let has_ended = world.business.ended.contains_key(&cid);
                assert!(has_ended, "node {number} is told that {cid} is gone, and it is there");
                self.told.remove(&cid);
            }
            WorkerEvent::ServerKnown(Cid(cid)) => {
                if let Some(socket) = self.servers.get_mut(&cid).filter(|one| !one.is_closing) {
                    assert_eq!(socket.server.unknown_to, 1, "{cid} is known twice");
                    socket.server.unknown_to = 0;
                    world.business.requests.send_kept(cid);
                }
            }
            WorkerEvent::Node { node, is_up } => {
                if !is_up {
                    let is_its = |cid: &u64| SnowflakeClock::node_of(*cid) == node;
                    self.told.retain(|cid, _| !is_its(cid));
                    let requests = &mut world.business.requests;
                    for request in requests.open.values().flatten() {
                        let request = &mut requests.all[*request];
                        let is_ours = (request.node, request.epoch, request.worker)
                            == (home.node, home.epoch, self.index);
                        let asked = request.asked.last();
                        if is_ours && asked.is_some_and(|(server, _)| is_its(server)) {
                            request.lost_ms.get_or_insert(world.now_ms);
                        }
                    }
                }
                let told = Told::Node(node.value(), is_up);
                for pid in super::PIDS {
                    self.owe(pid, EventSet::NODE, told);
                }
            }
        }
        self.worker.handle_worker_event(event, world.now());
        self.notice_ends(world);
    }

    /// Handles a parcel that was not sent: the queue is down.
    pub fn handle_unsent(&mut self, relay: &Relay, why: Unsent, world: &mut World) {
        if let Ok(Parcel::Request(request)) = Parcel::decode(&relay.parcel) {
            let requests = &mut world.business.requests;
            let number = requests.number_of(request.data);
            requests.all[number].is_unsent = true;
        }
        self.worker.handle_unsent(relay, why);
    }

    // Their pushes.

    /// Returns the push that a business server sent, which may have left.
    pub fn sent_push(&mut self, push: &ServerPush) -> (Push, Option<usize>) {
        let is_it = |sent: &&SentPush| sent.text.as_bytes() == &*push.message;
        let sent = match self.servers.values().find(|socket| socket.key == push.key) {
            Some(socket) => socket.server.next_push().filter(is_it),
            None => self.orphans.iter().find(is_it),
        };
        let sent = sent.expect("a push that nobody sent");
        assert_eq!(sent.echo.as_deref(), push.echo.as_deref());
        (sent.push.clone(), sent.group)
    }

    /// Gives it a place in the order, a message id and a ticket; without them it is refused.
    pub fn begin_push(
        &mut self,
        push: ServerPush,
        begun: Option<(MessageId, u32)>,
        world: &mut World,
    ) {
        if let Some(socket) = self.servers.values_mut().find(|socket| socket.key == push.key) {
            socket.server.begin_push(begun.map(|(id, _)| id.0));
        }
        let refusal = begun.is_none().then_some(Err("this node is draining: push to another node"));
        let (id, ticket) = begun.unwrap_or((MessageId(0), 0));
        self.begun.push_back(PendingPush { push, ticket, result: refusal, id });
        // It may have been refused at once.
        let record = world.truth.records.get(&id.0).filter(|record| record.is_told);
        let outcome = record.and_then(|record| record.outcome);
        self.finish_pushes(outcome.map(|(outcome, _)| (ticket, outcome)), world);
    }

    /// Reports the queue's answers in the order of the pushes.
    pub fn finish_pushes(&mut self, answer: Option<(u32, Outcome)>, world: &mut World) {
        if let Some((ticket, outcome)) = answer {
            let begun = self.begun.iter_mut().find(|begun| begun.ticket == ticket);
            begun.into_iter().for_each(|begun| {
                begun.result = Some(match outcome {
                    Outcome::Accepted => Ok(begun.id),
                    _ => Err("not accepted"),
                });
            });
        }
        while let Some(result) = self.begun.front().and_then(|begun| begun.result)
            && let Some(PendingPush { push, .. }) = self.begun.pop_front()
        {
            self.worker.answer_push(&push, result);
        }
        self.notice_ends(world);
    }

    // What must hold.

    pub fn check_servers(&self) {
        let open = self.servers.values().filter(|socket| !socket.is_closing);
        assert_eq!(open.clone().count() as u64, self.counters.servers.value());
        for socket in open.filter(|socket| !socket.is_blocked) {
            socket.server.assert_served();
        }
    }
}

impl Socket {
    fn room(&self, world: &mut World) -> usize {
        match world.now_ms < self.slow_until_ms {
            true if world.rng.chance(90) => 0,
            true => world.rng.below(60),
            false => usize::MAX,
        }
    }
}
