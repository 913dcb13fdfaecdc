//! Business servers of a node without a broker: the workers notify each other. A business server
//! gets its welcome once all of them know it, so that from then on it receives everything.

use super::*;
use crate::business::events::History;
use crate::business::requests::{Request, risen};
use crate::business::{Profile, Told};
use serde_json::{Value, json};
use ws_cluster::state::router::{Router, WorkerMessage};
use ws_cluster::state::subscriptions::{Relay, Unsent};
use ws_cluster::state::{PendingRequests, ServerPush};
use ws_cluster::types::EventSet;
use ws_cluster::wire::parcel::{Answer, Parcel as Package};
use ws_cluster::wire::{json as text, push as wire};

/// How long the queue between two workers is full.
const FULL_MS: u64 = 150;

impl Node {
    // Arrival and departure of clients and business servers.

    pub(super) fn enter_server(
        &mut self,
        worker: usize,
        cid: u64,
        pid: &'static str,
        events: EventSet,
    ) {
        let profile = Profile { cid, pid, events, node: 0, epoch: 1, worker };
        self.business.profiles.insert(cid, profile);
        let others = self.workers.len() - 1;
        let server = Server::new(profile, others, &mut self.rng);
        let client = self.client(cid);
        client.business = Some(Box::new(server));
        client.receiver = Receiver::of_server(cid, pid, 200);
    }

    pub(super) fn enter_client(&mut self, cid: u64, person: Person) {
        let Person { pid, uid, device, tags, .. } = person.clone();
        let history = History { pid, uid, device, node: 200, epoch: 1, happenings: Vec::new() };
        self.business.events.begin(cid, history);
        let detail = (!tags.is_empty()).then(|| ("tags", json!(tags)));
        assert!(self.model.people.insert(cid, person).is_none(), "client id {cid} came twice");
        self.happens(cid, EventSet::CONNECT, detail);
    }

    /// Records that a client's tags differ from `before`.
    pub(super) fn tags_change(&mut self, cid: u64, before: &[String]) {
        let mut new = self.model.people[&cid].tags.clone();
        new.retain(|tag| !before.contains(tag));
        if !new.is_empty() {
            self.happens(cid, EventSet::SUBSCRIBE, Some(("tags", json!(new))));
        }
    }

    /// Records that a client has left these tags, some perhaps named twice.
    pub(super) fn tags_go(&mut self, cid: u64, gone: Vec<String>) {
        let mut each: Vec<String> = Vec::new();
        gone.into_iter().for_each(|tag| {
            if !each.contains(&tag) {
                each.push(tag);
            }
        });
        if !each.is_empty() {
            self.happens(cid, EventSet::UNSUBSCRIBE, Some(("tags", json!(each))));
        }
    }

    /// Records that a client was closed, for one of these reasons.
    pub(super) fn client_goes(&mut self, cid: u64, causes: &[&str]) {
        let detail = match causes {
            [cause] => Some(("reason", json!(cause))),
            _ => None,
        };
        self.happens(cid, EventSet::DISCONNECT, detail);
    }

    /// Records an event of a client: its subscribers must receive it.
    fn happens(&mut self, cid: u64, kind: EventSet, detail: Option<(&str, Value)>) {
        let (worker, pid) = (self.clients[&cid].worker, self.business.events.histories[&cid].pid);
        let told_to = self.told_to(worker, pid, kind);
        let events = &mut self.business.events;
        let index = events.happen(cid, kind, detail, self.wall.now_ms, told_to.clone());
        events.fresh.clear();
        self.owe(worker, pid, kind, Told::Client(cid, index));
        for (server, client) in &self.clients {
            let Some(business) = client.business.as_ref().filter(|one| one.hears(pid, kind)) else {
                continue;
            };
            let is_welcome = business.welcomed_ms.is_some() && client.closing_ms.is_none();
            if client.worker != worker && is_welcome {
                assert!(told_to.contains(server), "{server} is welcome, and not told of {cid}");
                self.dues.push((*server, cid, index));
            }
        }
    }

    /// Returns the business servers of other workers that must receive such an event.
    fn told_to(&self, worker: usize, pid: &str, kind: EventSet) -> Vec<u64> {
        let wants = |known: &&subscriptions::Server| {
            PIDS[known.project.0 as usize].0 == pid && known.events.meets(kind)
        };
        self.workers[worker].told.values().filter(wants).map(|known| known.cid.0).collect()
    }

    /// Adds what the business servers of a worker must receive.
    fn owe(&mut self, worker: usize, pid: &str, kind: EventSet, told: Told) {
        let open = self.clients.values_mut().filter(|one| one.closing_ms.is_none());
        let servers =
            open.filter(|one| one.worker == worker).filter_map(|one| one.business.as_mut());
        servers.filter(|one| one.hears(pid, kind)).for_each(|one| one.owed.push_back(told));
    }

    // What they send.

    pub(super) fn server_sends(&mut self, cid: u64) {
        let business = self.clients.get_mut(&cid).unwrap().business.as_mut().unwrap();
        if business.welcomed_ms.is_some() && self.rng.chance(10) {
            let mut push = self.random_push();
            let echo = self.rng.chance(70).then(|| format!("p\"{}", self.pushed));
            let business = self.client(cid).business.as_mut().unwrap();
            (push.pid, push.pusher) = (business.profile.pid, cid as usize);
            push.sort_selectors();
            // A longer one is refused by its reader, which the client's test covers.
            push.data.truncate(0);
            push.data.push_str(&format!(r#"{{"by":"{cid}","x":[1 , 2]}}"#));
            let text = business.push(push, None, echo);
            return self.send_text(cid, &text, Intent::Said(Said::Push));
        }
        let requests = &mut self.business.requests;
        if let Some((said, text)) = business.speak(&mut self.rng, requests) {
            self.send_text(cid, &text, Intent::Said(said));
        }
    }

    pub(super) fn send_request(&mut self, cid: u64) {
        let Some(person) = self.model.people.get(&cid) else { return };
        let requests = &mut self.business.requests;
        let data = requests.data(&mut self.rng);
        if data.len() > 700 {
            return;
        }
        let number = requests.begin(Request {
            client: cid,
            pid: person.pid,
            uid: person.uid.clone(),
            device: person.device.clone(),
            epoch: 1,
            worker: person.worker,
            echo: requests.echo(cid, &mut self.rng),
            data,
            ..Request::default()
        });
        let text = self.business.requests.text(number);
        self.send_text(cid, &text, Intent::Request { number });
    }

    /// Has a worker read a request.
    pub(super) fn handle_request(
        &mut self,
        cid: u64,
        number: usize,
        message: Message<'_>,
    ) -> ControlFlow<Rest> {
        let (now_ms, now, client) = (self.now_ms, self.now(), &self.clients[&cid]);
        let (worker, slot, pid) = (client.worker, client.key.slot, client.receiver.pid);
        self.business.requests.all[number].sent_ms = now_ms;
        let elsewhere = self.told_to(worker, pid, EventSet::REQUEST);
        let mut candidates: BTreeMap<u64, u8> = elsewhere.into_iter().map(|cid| (cid, 1)).collect();
        for (server, client) in self.clients.iter().filter(|(_, one)| one.worker == worker) {
            let takes = |one: &Server| one.hears(pid, EventSet::REQUEST);
            if client.closing_ms.is_none() && client.business.as_deref().is_some_and(takes) {
                candidates.insert(*server, 0);
            }
        }
        let before = self.loads.in_flight();
        let wants_more = self.workers[worker].worker.handle_frame(slot, message, now);
        let after = self.loads.in_flight();
        self.business.requests.judge_choice(number, &candidates, &before, &after, now_ms);
        self.notice_closes(worker);
        if wants_more { ControlFlow::Continue(()) } else { ControlFlow::Break(Rest::Dropped) }
    }

    /// Accepts at once the pushes that workers have read.
    pub(super) fn begin_server_pushes(&mut self, worker: usize) {
        while let Some(push) = self.workers[worker].worker.take_server_push() {
            let ServerPush { key, echo, message, .. } = &push;
            let members = text::members(message).unwrap();
            let (read, _) = wire::Push::from_server(&members, &Limits::default()).unwrap();
            // Pushes of business servers that have left since are covered by the other simulation.
            let Some(business) = self.business_of(worker, key) else { continue };
            let sent = business.next_push().expect("a push that nobody sent").clone();
            assert_eq!(sent.text.as_bytes(), &**message);
            assert_eq!(sent.echo.as_deref(), echo.as_deref());
            assert_eq!(read.targets.as_targets(), sent.push.targets().as_targets());
            let id = self.begin_push(worker, sent.push);
            if let Some(business) = self.business_of(worker, key) {
                business.begin_push(Some(id.0));
            }
            self.workers[worker].worker.answer_push(&push, Ok(id));
            self.notice_closes(worker);
        }
    }

    fn business_of(&mut self, worker: usize, key: &ConnKey) -> Option<&mut Server> {
        let mut clients = self.clients.values_mut();
        clients.find(|one| one.worker == worker && one.key == *key)?.business.as_deref_mut()
    }

    pub(super) fn begin_all_server_pushes(&mut self) {
        (0..self.workers.len()).for_each(|worker| self.begin_server_pushes(worker));
    }

    // What they receive.

    pub(super) fn hear_texts(&mut self, cid: u64) {
        let client = self.clients.get_mut(&cid).unwrap();
        let was_welcome = client.business.as_ref().is_none_or(|one| one.welcomed_ms.is_some());
        hear_texts(cid, client, &mut self.business, self.now_ms);
        let is_welcome = client.business.as_ref().is_some_and(|one| one.welcomed_ms.is_some());
        if is_welcome && !was_welcome {
            let worker = client.worker;
            for (other, core) in
                self.workers.iter().enumerate().filter(|(other, _)| *other != worker)
            {
                let knows = core.told.contains_key(&cid) || client.closing_ms.is_some();
                assert!(knows, "{cid} is welcome, and worker {other} does not know of it");
            }
        }
    }

    // Between the workers.

    /// As `io::transport` does without a broker.
    pub(super) fn forward_asks(&mut self, worker: usize) {
        let router = self.router(worker);
        while self.workers[worker].worker.has_broker_requests() {
            for request in self.workers[worker].worker.take_broker_requests() {
                match router.among_workers(request) {
                    Some((to, WorkerMessage::Event(event))) => self.tell(worker, to, event),
                    Some((to, WorkerMessage::Parcel(_, relay))) => {
                        self.hand_over(worker, to, relay);
                    }
                    None => panic!("a broker is asked where there is none"),
                }
            }
        }
    }

    pub(super) fn router(&self, worker: usize) -> Router {
        Router::new(NodeId::new(200).unwrap(), worker, self.workers.len())
    }

    /// Returns one worker, or all others.
    fn receivers(&self, worker: usize, to: Option<usize>) -> Vec<usize> {
        let is_meant = |other: &usize| to.map_or(*other != worker, |to| to == *other);
        (0..self.workers.len()).filter(is_meant).collect()
    }

    fn tell(&mut self, worker: usize, to: Option<usize>, event: WorkerEvent) {
        for other in self.receivers(worker, to) {
            self.workers[worker].late.push_back((other, event));
        }
        self.send_late(worker);
    }

    /// Sends waiting notices, which are never lost but may be overtaken.
    pub(super) fn send_late(&mut self, worker: usize) {
        while let Some((to, event)) = self.workers[worker].late.front().copied()
            && !self.is_full(worker, to)
        {
            self.workers[worker].late.pop_front();
            self.put(worker, to, InboxItem::Event(event));
        }
    }

    fn is_full(&self, worker: usize, to: usize) -> bool {
        self.now_ms < self.workers[worker].full_until_ms[to]
    }

    pub(super) fn make_room(&mut self) {
        for worker in 0..self.workers.len() {
            self.workers[worker].full_until_ms.fill(0);
            self.send_late(worker);
        }
    }

    fn put(&mut self, worker: usize, to: usize, item: InboxItem) {
        let due_ms = self.now_ms + if self.rng.chance(80) { 0 } else { self.rng.number() % 100 };
        self.workers[to].inboxes[worker].push_back(Parcel { due_ms, item });
        if self.rng.below(300) == 0 {
            self.workers[worker].full_until_ms[to] = self.now_ms + self.rng.number() % FULL_MS;
        }
    }

    fn hand_over(&mut self, worker: usize, to: Option<usize>, relay: Relay) {
        let wanted = self.receivers(worker, to);
        let package = Package::decode(&relay.parcel).unwrap();
        if let Package::Request(request) = &package {
            let requests = &mut self.business.requests;
            let number = requests.number_of(request.data);
            requests.identify(number, request.id.0);
            requests.ask(number, request.server.0, self.now_ms);
        }
        if wanted.iter().all(|to| !self.is_full(worker, *to)) {
            return wanted
                .into_iter()
                .for_each(|to| self.put(worker, to, InboxItem::Relay(relay.parcel.clone())));
        }
        match package {
            Package::Request(request) => {
                let requests = &mut self.business.requests;
                let number = requests.number_of(request.data);
                requests.all[number].is_too_many = true;
            }
            Package::Events(events) => {
                for event in events.list {
                    let (_, text) = event.unwrap();
                    let json = serde_json::from_str(text).unwrap();
                    let events = &self.business.events;
                    self.dues.retain(|(_, cid, index)| !events.is_told(*cid, *index, &json));
                }
            }
            Package::Response(_) | Package::Cancel(_) => {}
        }
        self.workers[worker].worker.handle_unsent(&relay, Unsent::Full);
        self.notice_closes(worker);
    }

    pub(super) fn handle_relay(&mut self, worker: usize, bytes: &[u8]) {
        let package = Package::decode(bytes).unwrap();
        if let Package::Events(events) = &package {
            let heard = &mut self.workers[worker].heard_events;
            for (kind, told) in self.business.events.hear(events, heard) {
                self.owe(worker, events.pid, kind, told);
            }
        }
        let (now, before) = (self.now(), self.loads.in_flight());
        self.workers[worker].worker.handle_parcel(bytes, now);
        if let Package::Response(response) = &package
            && let Some(server) = risen(&before, &self.loads.in_flight())
        {
            let may_retry = matches!(response.answer, Answer::Unwritten | Answer::Full);
            assert!(may_retry, "{server} is asked without a reason");
        }
        self.notice_closes(worker);
    }

    pub(super) fn handle_worker_event(&mut self, worker: usize, event: WorkerEvent) {
        let told = &mut self.workers[worker].told;
        match event {
            WorkerEvent::ServerHere(server) => drop(told.insert(server.cid.0, server)),
            WorkerEvent::ServerGone(Cid(cid)) => {
                assert!(self.business.ended.contains_key(&cid), "{cid} is there");
                told.remove(&cid);
            }
            WorkerEvent::ServerKnown(Cid(cid)) => {
                let client = self.clients.get_mut(&cid).filter(|one| one.closing_ms.is_none());
                if let Some(business) = client.and_then(|client| client.business.as_mut()) {
                    business.unknown_to -= 1;
                }
            }
            WorkerEvent::Node { .. } => panic!("there is one node"),
            WorkerEvent::IdsBegin { .. } => panic!("there is no Redis"),
        }
        let now = self.now();
        self.workers[worker].worker.handle_worker_event(event, now);
        self.notice_closes(worker);
    }

    // What must hold.

    /// Checks that nothing is in flight to business servers.
    pub(super) fn check_servers(&mut self) {
        let is_here = |client: &Client| !client.is_gone && client.closing_ms.is_none();
        for client in self.clients.values().filter(|client| is_here(client)) {
            client.business.iter().for_each(|business| {
                business.assert_served();
                assert!(business.pushes.iter().all(|push| push.begun.is_none()), "no answer");
            });
        }
        for (server, cid, index) in std::mem::take(&mut self.dues) {
            let Some(client) = self.clients.get(&server).filter(|one| is_here(one)) else {
                continue;
            };
            let has_it = client.business.as_ref().unwrap().got.contains(&(cid, index));
            let happening = self.business.events.get(cid, index);
            assert!(has_it, "{server} was never told of {cid}: {happening:?}");
            self.business.checked += 1;
        }
        for (worker, core) in self.workers.iter().enumerate() {
            let elsewhere = self.clients.values().filter(|client| client.worker != worker);
            let servers = elsewhere.filter(|client| client.business.is_some()).count();
            assert_eq!(core.told.len(), servers, "what worker {worker} knows");
        }
    }

    /// Checks that no request waits longer than is allowed.
    pub(super) fn check_waiting(&self, worker: usize) {
        let requests = &self.business.requests;
        let after_ms = self.now_ms - requests.timeout_ms;
        let is_young = |one: &&Request| one.worker == worker && one.sent_ms > after_ms;
        let most = requests.all.iter().filter(is_young).count();
        assert!(self.workers[worker].worker.pending_requests().waiting <= most);
    }

    /// After everybody has left, lets time pass until no request is remembered.
    pub(super) fn forget_requests(&mut self) {
        let end_ms = self.now_ms + self.business.requests.timeout_ms + 2_000;
        while self.now_ms < end_ms {
            self.advance(LONGEST_STEP_MS as u64, LONGEST_STEP_MS as i64);
            self.make_room();
            for worker in 0..self.workers.len() {
                self.deliver_parcels(worker, true);
                self.flush(worker);
                let now = self.now();
                self.workers[worker].worker.handle_tick(now);
            }
        }
        for core in &self.workers {
            assert_eq!(core.worker.pending_requests(), PendingRequests::default());
            assert!(core.told.is_empty() && !core.worker.has_broker_requests());
            assert_eq!(core.counters.lost_answers(LostAnswer::Forged), 0);
        }
        assert!(self.loads.in_flight().values().all(|load| *load == 0));
    }
}

/// Checks the texts that a client received and that are judged here.
pub(super) fn hear_texts(cid: u64, client: &mut Client, business: &mut Business, now_ms: u64) {
    for text in client.receiver.texts.drain(..) {
        let Some(server) = &mut client.business else {
            business.hear_answer(cid, &text, now_ms);
            continue;
        };
        if let Some((sent, answer)) = server.hear(&text, business, now_ms) {
            assert_eq!((answer.is_accepted, answer.id), (true, sent.begun.flatten()));
        }
    }
}
