//! A node: a broker, its workers, the channels between them, and what keeps its links open. What
//! `io::broker` and `io::transport` do with sockets and threads is done here with time.

use super::core::{Home, InboxItem, SimWorker, ToBroker};
use super::gaps::Heard;
use super::members::{Draining, Views};
use super::redis::{Delivery, Owner};
use super::truth::QUEUE_TIMEOUT_MS;
use super::{MAX_TAGS, Model, World};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use ws_cluster::state::broker::{
    Broker, BrokerConfig, Event, LinkError, LinkName, Outcome, Pusher, Sink,
};
use ws_cluster::state::counters::{BrokerCounters, Counters};
use ws_cluster::state::projects::ProjectId;
use ws_cluster::state::router::{QueueState, Router};
use ws_cluster::state::servers::Loads;
use ws_cluster::state::settings::{Memory, Settings, Times};
use ws_cluster::state::subscriptions::{BrokerRequest, Interest, Relay, WorkerEvent};
use ws_cluster::state::{QueueNeeds, Worker, WorkerConfig};
use ws_cluster::types::{Env, Incarnation, Limits, NodeId, Now, Routing, WallMs};
use ws_cluster::wire::envelope::{Envelope, EnvelopeKind};
use ws_cluster::wire::parcel::Parcel;
use ws_cluster::wire::publication::Publication;

const LINKS: [LinkName; 2] = [LinkName::Publish, LinkName::Subscribe];
/// As in `io::broker::driver`.
const TICK_MS: u64 = 50;
const BACKOFF_MS: u64 = 100;
const MAX_BACKOFF_MS: u64 = 2_000;
/// A node whose links deliver nothing stays ready for at most this long: a PING every half second,
/// 1.2 s of silence after it, two ticks, and the longest step of this simulator.
const DEAF_MS: u64 = 2_000 + super::LONGEST_STEP_MS;
/// Maximum time until a join is answered, at the latest because its link is given up: silence is
/// measured by a clock that stops while this node does not read.
const ANSWERED_MS: u64 = 2_500 + super::LONGEST_STEP_MS;

enum Driver {
    Waiting { until_ms: u64 },
    Connecting { until_ms: u64, links: Vec<u64> },
    Open { links: [u64; 2] },
}

pub struct Node {
    pub home: Home,
    pub workers: Vec<SimWorker>,
    pub broker: Broker,
    pub counters: Arc<BrokerCounters>,
    pub model: Model,
    pub heard: Heard,
    /// As reported by its events.
    missed: u64,
    driver: Driver,
    unread: [Vec<u8>; 2],
    /// There was no room for the rest.
    is_paused: [bool; 2],
    attempts: u32,
    next_tick_ms: u64,
    /// Its links had a fault that they may not survive.
    has_fault: bool,
    /// The time since which nothing arrives.
    pub deaf_since_ms: Option<u64>,
    /// The queue accepts nothing, as the workers can check at any time.
    is_down: bool,
    /// The time since which it may have missed something.
    pub unclean_since_ms: Option<u64>,
    /// When it was first ready.
    pub born_ready_ms: Option<u64>,
    /// What was reported to it about the other nodes.
    pub views: Views,
    /// An attempt to open its links failed, or open links were lost.
    has_failed: bool,
    /// Offset of its clock into the future.
    pub ahead_ms: u64,
    /// It is shutting down.
    pub draining: Option<Draining>,
    pub has_drained: bool,
    /// Joins that the broker has not answered, and since when.
    asked: BTreeMap<(usize, String), u64>,
    pub losses: u64,
}

/// The broker's messages, which are handled once it has sent them all.
struct Words {
    list: Vec<(usize, InboxItem)>,
    room: usize,
}

impl Sink for Words {
    fn deliver(&mut self, mut workers: u64, _envelope: &Envelope<'_>, bytes: &[u8]) {
        let bytes: Rc<[u8]> = Rc::from(bytes);
        while workers != 0 {
            let worker = workers.trailing_zeros() as usize;
            workers &= workers - 1;
            self.list.push((worker, InboxItem::Deliver(bytes.clone())));
        }
    }

    fn relay(&mut self, mut workers: u64, _project: ProjectId, parcel: &[u8]) {
        let parcel: Rc<[u8]> = Rc::from(parcel);
        while workers != 0 {
            let worker = workers.trailing_zeros() as usize;
            workers &= workers - 1;
            self.list.push((worker, InboxItem::Relay(parcel.clone())));
        }
    }

    fn event(&mut self, worker: usize, event: WorkerEvent) {
        self.list.push((worker, InboxItem::Event(event)));
    }

    fn answer(&mut self, pusher: Pusher, outcome: Outcome) {
        self.list.push((pusher.worker, InboxItem::Answer(pusher.ticket, outcome)));
    }

    fn ready(&mut self, worker: usize, interest: &Interest) {
        self.list.push((worker, InboxItem::Ready(interest.clone())));
    }

    fn refuse(&mut self, _worker: usize, interest: &Interest) {
        panic!("{interest:?} is refused, and Redis refused nothing");
    }

    fn canary(&mut self) {
        // For every worker: see `Node::dispatch`.
        self.list.push((usize::MAX, InboxItem::Canary));
    }

    fn has_room(&self) -> bool {
        self.list.len() < self.room
    }
}

impl Node {
    pub fn new(index: usize, workers: usize, births: u64, world: &World) -> Self {
        let (setup, now_ms) = (&world.setup, world.now_ms);
        let number = 7 + index as u16;
        let node = NodeId::new(number).unwrap();
        let hash_keys = (setup.seed, now_ms);
        // Later than its previous incarnation has reserved: epochs identify incarnations here from
        // the start. `state::broker::tests` covers a clock that is behind.
        let ahead_ms = births * 20_000;
        let epoch = now_ms + ahead_ms;
        let incarnation = Arc::new(Incarnation::new(WallMs::new(epoch)));
        let loads = Arc::<Loads>::default();
        let core = |worker| {
            let counters = Arc::new(Counters::default());
            let settings = Settings {
                node,
                workers,
                env: Env::Test,
                limits: Limits { tags: MAX_TAGS, ..Limits::default() },
                times: Times {
                    ping_interval_ms: 3_600_000,
                    idle_timeout_ms: 3_600_000,
                    request_timeout_ms: setup.request_timeout_ms,
                    ..Times::default()
                },
                memory: Memory {
                    outbox_bytes: 1 << 20,
                    worker_outbox_bytes: 1 << 24,
                    server_outbox_bytes: setup.server_outbox_bytes,
                    ..Memory::default()
                },
                idempotency_keys: 1_000,
                ..Settings::default()
            };
            let config = WorkerConfig {
                settings: Arc::new(settings),
                worker,
                projects: setup.projects.clone(),
                slots: 64,
                loads: loads.clone(),
                incarnation: incarnation.clone(),
                hash_keys: (setup.seed, worker as u64),
                queue_needs: Some(QueueNeeds {
                    routing: setup.routing,
                    announces_users: workers > 1,
                    user_keys: hash_keys,
                }),
                counters: counters.clone(),
            };
            SimWorker::new(worker, Worker::new(config, world.now()), counters, loads.clone())
        };
        let counters = Arc::new(BrokerCounters::default());
        let broker = Broker::new(BrokerConfig {
            node,
            incarnation: incarnation.clone(),
            workers,
            projects: setup.projects.clone(),
            names: setup.names.clone(),
            credentials: setup.credentials.clone(),
            queue_timeout_ms: QUEUE_TIMEOUT_MS,
            max_envelope_bytes: 1 << 20,
            // Few, so that users' channels run out.
            max_outgoing_channels: 6,
            hash_keys,
            counters: counters.clone(),
        });
        Self {
            home: Home { node: index, number, epoch, clean_since_ms: None },
            workers: (0..workers).map(core).collect(),
            broker,
            counters,
            model: Model::default(),
            heard: Heard::default(),
            missed: 0,
            driver: Driver::Waiting { until_ms: now_ms },
            unread: Default::default(),
            is_paused: [false; 2],
            attempts: 0,
            next_tick_ms: now_ms + TICK_MS,
            has_fault: false,
            deaf_since_ms: None,
            is_down: true,
            unclean_since_ms: Some(now_ms),
            born_ready_ms: None,
            views: Views::default(),
            has_failed: false,
            ahead_ms,
            draining: None,
            has_drained: false,
            asked: BTreeMap::new(),
            losses: 0,
        }
    }

    /// Returns whether its broker runs on the thread of its only worker.
    fn is_alone(&self) -> bool {
        self.workers.len() == 1
    }

    pub fn links(&self) -> Vec<u64> {
        match &self.driver {
            Driver::Waiting { .. } => Vec::new(),
            Driver::Connecting { links, .. } => links.clone(),
            Driver::Open { links } => links.to_vec(),
        }
    }

    /// Records a fault of its links: what is in flight to it may be missed.
    pub fn note_fault(&mut self, now_ms: u64) {
        self.has_fault = true;
        self.home.clean_since_ms = None;
        self.unclean_since_ms.get_or_insert(now_ms);
    }

    /// Returns whether nothing can have been missed since then.
    pub fn is_clean_since(&self, ms: u64) -> bool {
        self.home.clean_since_ms.is_some_and(|since_ms| since_ms <= ms)
    }

    /// Does everything that is due by now.
    pub fn turn(&mut self, world: &mut World) {
        self.drive(world);
        if world.rng.chance(50) {
            self.hear(world);
        }
        if world.now_ms >= self.next_tick_ms {
            self.next_tick_ms = world.now_ms + TICK_MS;
            self.tick(world);
        }
        for worker in 0..self.workers.len() {
            self.work(worker, world);
        }
        self.send(world);
    }

    // Workers.

    fn work(&mut self, worker: usize, world: &mut World) {
        while let Some((due_ms, _)) = self.workers[worker].inbox.front()
            && *due_ms <= world.now_ms
            && let Some((_, item)) = self.workers[worker].inbox.pop_front()
        {
            self.handle_item(worker, item, world);
        }
        self.workers[worker].serve_sockets(world);
        // What a tick left undone is due at once, slice by slice.
        while self.workers[worker].worker.is_overdue() && world.rng.chance(80) {
            self.flush(worker, world);
            self.workers[worker].worker.handle_tick(world.now());
            self.forward_asks(worker, world);
        }
        if world.rng.chance(70) {
            self.flush(worker, world);
        }
    }

    /// Sends what is pending, after the broker has been notified.
    pub fn flush(&mut self, worker: usize, world: &mut World) {
        loop {
            self.forward_asks(worker, world);
            if !self.workers[worker].worker.has_output() {
                return;
            }
            self.workers[worker].flush(world);
        }
    }

    fn handle_item(&mut self, worker: usize, item: InboxItem, world: &mut World) {
        self.workers[worker].handle_item(item, world, &mut self.model, self.home);
    }

    pub fn connect(&mut self, worker: usize, world: &mut World) {
        self.workers[worker].connect(world, &mut self.model, self.home);
        self.forward_asks(worker, world);
    }

    pub fn connect_server(&mut self, worker: usize, world: &mut World) {
        self.workers[worker].connect_server(world, self.home);
        self.forward_asks(worker, world);
    }

    pub fn disconnect(&mut self, worker: usize, cid: u64, world: &mut World) {
        self.flush(worker, world);
        self.workers[worker].disconnect(cid, world, &mut self.model);
        world.log.note(format!("node {}: {cid} leaves", self.home.number));
        self.flush(worker, world);
    }

    /// The broker learns of everything before a client does.
    fn forward_asks(&mut self, worker: usize, world: &mut World) {
        let node = NodeId::new(self.home.number).unwrap();
        let router = Router::new(node, worker, self.workers.len());
        while self.workers[worker].worker.has_broker_requests() {
            for request in self.workers[worker].worker.take_broker_requests() {
                if let BrokerRequest::Relay(relay) = &request {
                    see_request(relay, world);
                }
                let queue = QueueState { is_down: self.is_down, max_bytes: usize::MAX };
                match (router.unsent(&request, queue), request) {
                    (Some(why), BrokerRequest::Relay(relay)) => {
                        self.workers[worker].handle_unsent(&relay, why, world);
                    }
                    (_, request) if self.is_alone() => self.request(worker, &request, world),
                    (_, request) => {
                        self.workers[worker].to_broker.push_back(ToBroker::Request(request))
                    }
                }
            }
        }
    }

    /// Publishes a push, complete except for its outcome.
    pub fn publish(
        &mut self,
        worker: usize,
        ticket: u32,
        world: &mut World,
        envelope: &Envelope<'_>,
    ) {
        let routing = world.setup.routing;
        if self.is_alone() {
            let mut words = Words { list: Vec::new(), room: usize::MAX };
            let pusher = Pusher { worker, ticket };
            self.broker.handle_push(envelope, routing, pusher, world.now().monotonic, &mut words);
            self.dispatch(words, world);
        } else {
            let mut publication = Publication::default();
            publication.add_message(&world.setup.names, routing, envelope);
            self.workers[worker].to_broker.push_back(ToBroker::Publish(publication, ticket));
        }
    }

    // The broker.

    /// Handles what the workers have sent so far.
    fn hear(&mut self, world: &mut World) {
        for worker in 0..self.workers.len() {
            while let Some(message) = self.workers[worker].to_broker.pop_front() {
                match message {
                    ToBroker::Publish(publication, ticket) => {
                        let mut words = Words { list: Vec::new(), room: usize::MAX };
                        let (now, pusher) = (world.now().monotonic, Pusher { worker, ticket });
                        self.broker.handle_publish(&publication, pusher, now, &mut words);
                        self.dispatch(words, world);
                    }
                    ToBroker::Request(request) => self.request(worker, &request, world),
                    ToBroker::CanarySeen => self.broker.handle_canary_seen(worker),
                }
            }
        }
    }

    fn request(&mut self, worker: usize, request: &BrokerRequest, world: &mut World) {
        match request {
            BrokerRequest::Join(interest) => {
                self.names(interest, world).iter().for_each(|name| self.heard.join(name, worker));
                let key = (worker, format!("{interest:?}"));
                assert!(self.asked.insert(key, world.now_ms).is_none(), "asked twice");
            }
            BrokerRequest::Leave(interest) => {
                self.names(interest, world).iter().for_each(|name| self.heard.leave(name, worker));
            }
            _ => {}
        }
        if !matches!(
            request,
            BrokerRequest::UserHere(_) | BrokerRequest::UserGone(_) | BrokerRequest::Relay(_)
        ) {
            world
                .log
                .note(format!("node {}: worker {worker} requests {request:?}", self.home.number));
        }
        let mut words = Words { list: Vec::new(), room: usize::MAX };
        self.broker.handle_request(worker, request, world.now().monotonic, &mut words);
        self.dispatch(words, world);
    }

    fn names(&self, interest: &Interest, world: &World) -> Vec<Vec<u8>> {
        let (names, node) = (&world.setup.names, NodeId::new(self.home.number).unwrap());
        let pid = |project: &ProjectId| super::PIDS[project.0 as usize];
        let mut channels = vec![Vec::new()];
        match interest {
            Interest::Project(project) => {
                names.project(&mut channels[0], pid(project));
                channels.push(Vec::new());
                names.node_of_project(&mut channels[1], pid(project), node);
            }
            Interest::User(project, uid) => {
                assert_eq!(world.setup.routing, Routing::User);
                names.user(&mut channels[0], pid(project), uid.as_bytes());
            }
            Interest::Inbox(project) => {
                names.node_of_project(&mut channels[0], pid(project), node);
            }
            Interest::Events(project) => names.events(&mut channels[0], pid(project)),
        }
        channels
    }

    /// Delivers the broker's messages: at once, or through the workers' queues.
    fn dispatch(&mut self, words: Words, world: &mut World) {
        for event in self.broker.take_events() {
            match event {
                Event::Ready { resent, channels } => {
                    let number = self.home.number;
                    world.log.note(format!("node {number}: ready, {resent} {channels}"));
                    self.attempts = 0;
                    self.is_down = false;
                    self.born_ready_ms.get_or_insert(world.now_ms);
                    if !self.has_fault {
                        self.home.clean_since_ms = Some(world.now_ms);
                        self.unclean_since_ms = None;
                    }
                }
                Event::Missed { origin, channel, missed } => {
                    self.missed += missed;
                    let (number, channel) = (self.home.number, String::from_utf8_lossy(&channel));
                    world.log.note(format!("node {number}: missed {missed} of {origin} {channel}"));
                }
                Event::FalseNumber { .. }
                | Event::Refused { .. }
                | Event::Forbidden { .. }
                | Event::Limit(_) => {}
                other => panic!("{other:?}"),
            }
        }
        for (worker, item) in words.list {
            if let InboxItem::Ready(interest) = &item {
                let key = (worker, format!("{interest:?}"));
                assert!(self.asked.remove(&key).is_some(), "{key:?} is ready, and was not asked");
            }
            if let InboxItem::Answer(ticket, outcome) = &item {
                let Home { node, epoch, .. } = self.home;
                world.truth.decide(node, epoch, *ticket, *outcome, world.now_ms);
            }
            if let InboxItem::Event(event) = item {
                self.view(worker, event);
            }
            if worker != usize::MAX {
                self.tell(worker, item, world);
                continue;
            }
            for worker in 0..self.workers.len() {
                self.tell(worker, InboxItem::Canary, world);
            }
        }
    }

    fn tell(&mut self, worker: usize, item: InboxItem, world: &mut World) {
        if self.is_alone() {
            return self.handle_item(worker, item, world);
        }
        let delay_ms = if world.rng.chance(70) { 0 } else { world.rng.number() % 60 };
        let inbox = &mut self.workers[worker].inbox;
        let last_ms = inbox.back().map_or(0, |(due_ms, _)| *due_ms);
        inbox.push_back((last_ms.max(world.now_ms + delay_ms), item));
    }

    fn tick(&mut self, world: &mut World) {
        for worker in 0..self.workers.len() {
            self.workers[worker].worker.handle_tick(world.now());
            self.forward_asks(worker, world);
        }
        let is_round_due = self.draining.as_ref().is_some_and(|it| it.node.is_round_due());
        self.hear(world);
        let mut words = Words { list: Vec::new(), room: usize::MAX };
        let result = self.broker.handle_tick(self.now(world), &mut words);
        self.dispatch(words, world);
        if let Err(error) = result {
            self.lose(error, world);
        }
        self.drain(is_round_due, world);
        assert_eq!(self.broker.stuck_worker(world.now().monotonic), None);
    }

    /// Both clocks as the broker reads them.
    fn now(&self, world: &World) -> Now {
        let now = world.now();
        Now { wall: now.wall + self.ahead_ms, ..now }
    }

    // The links.

    fn drive(&mut self, world: &mut World) {
        let now_ms = world.now_ms;
        match &mut self.driver {
            Driver::Waiting { until_ms } if *until_ms <= now_ms => {
                let until_ms = now_ms + world.rng.number() % 20;
                self.driver = Driver::Connecting { until_ms, links: Vec::new() };
            }
            Driver::Connecting { until_ms, links } if *until_ms <= now_ms => {
                let link = [LinkName::Subscribe, LinkName::Publish][links.len()];
                let owner = Owner { node: self.home.node, epoch: self.home.epoch, link };
                let Some(opened) = world.redis.open(owner, now_ms) else {
                    return self.lose(LinkError::Io("refused".into()), world);
                };
                links.push(opened);
                *until_ms = now_ms + world.rng.number() % 20;
                if let [subscribing, publishing] = links[..] {
                    self.driver = Driver::Open { links: [publishing, subscribing] };
                    let now = self.now(world);
                    self.broker.handle_open(now);
                }
            }
            Driver::Waiting { .. } | Driver::Connecting { .. } => {}
            Driver::Open { links } => {
                let links = *links;
                let first = world.rng.below(2);
                for index in [first, 1 - first] {
                    if let Err(error) = self.read(index, links[index], world) {
                        return self.lose(error, world);
                    }
                }
            }
        }
    }

    fn read(&mut self, index: usize, link: u64, world: &mut World) -> Result<(), LinkError> {
        let read = world.redis.read(link, world.now_ms);
        self.unread[index].extend_from_slice(&read.bytes);
        if !read.bytes.is_empty() || self.is_paused[index] {
            self.hear(world);
            let full = self.is_alone() && world.rng.chance(20);
            let room = if full { world.rng.below(4) } else { usize::MAX };
            let mut words = Words { list: Vec::new(), room };
            let now = world.now().monotonic;
            let bytes = &self.unread[index];
            let result = self.broker.handle_bytes(LINKS[index], bytes, now, &mut words);
            let taken = result.as_ref().map_or(0, |handled| handled.bytes);
            self.unread[index].drain(..taken);
            for Delivery { channel, header, is_last_word, .. } in
                world.redis.take_messages(link, taken)
            {
                if header.kind == EnvelopeKind::Member && header.origin.value() != self.home.number
                {
                    self.views.hear(header.origin.value(), header.epoch, is_last_word);
                }
                self.heard.arrive(&channel, &header);
            }
            self.dispatch(words, world);
            self.views.check();
            self.is_paused[index] = result?.is_paused;
        }
        if read.is_over && !self.is_paused[index] { Err(LinkError::Closed) } else { Ok(()) }
    }

    fn send(&mut self, world: &mut World) {
        let Driver::Open { links } = &self.driver else { return };
        for (name, link) in LINKS.into_iter().zip(*links) {
            while self.broker.has_outgoing(name) {
                let mut out = Vec::new();
                let max = if world.rng.chance(70) { 64 << 10 } else { 1 + world.rng.below(300) };
                self.broker.take_outgoing(name, &mut out, max);
                world.redis.write(link, &out, world.now_ms, &mut world.rng);
                if world.rng.chance(10) {
                    break;
                }
            }
        }
    }

    fn lose(&mut self, error: LinkError, world: &mut World) {
        let now_ms = world.now_ms;
        world.log.note(format!("node {}: {error}", self.home.number));
        let is_explained = match &error {
            LinkError::Refused(_) => now_ms < world.excuses.refused_until_ms,
            LinkError::Silent | LinkError::CanaryLost => now_ms < world.excuses.slow_until_ms,
            LinkError::Io(_) => !world.redis.is_up,
            _ => false,
        };
        assert!(is_explained || self.has_fault, "the links are given up for nothing: {error}");
        self.has_failed = true;
        let was_ready = self.broker.is_ready();
        self.losses += u64::from(was_ready);
        for link in self.links() {
            world.redis.close(link, &mut world.rng);
        }
        let mut words = Words { list: Vec::new(), room: usize::MAX };
        self.broker.handle_lost(&mut words);
        self.is_down = true;
        self.home.clean_since_ms = None;
        self.unclean_since_ms.get_or_insert(now_ms);
        self.dispatch(words, world);
        assert!(self.asked.is_empty(), "nobody waits for a link that is lost: {:?}", self.asked);
        (self.unread, self.is_paused) = Default::default();
        (self.has_fault, self.deaf_since_ms) = (false, None);
        self.attempts = if was_ready { 0 } else { self.attempts + 1 };
        let backoff_ms = (BACKOFF_MS << self.attempts.min(8)).min(MAX_BACKOFF_MS);
        let jittered_ms = backoff_ms / 2 + world.rng.number() % (backoff_ms / 2);
        self.driver = Driver::Waiting { until_ms: now_ms + jittered_ms };
    }

    /// Ends the process, whatever it was doing.
    pub fn die(self, world: &mut World) {
        for link in self.links() {
            world.redis.close(link, &mut world.rng);
        }
        world.truth.forget_waiting(self.home.node);
        for core in &self.workers {
            core.servers.keys().for_each(|server| world.business.end(*server, world.now_ms));
            let requests = &mut world.business.requests;
            core.clients.keys().for_each(|client| requests.forget_client(*client));
        }
    }

    /// Checks what must hold at any time.
    pub fn check(&mut self, world: &World, stalled_since_ms: Option<u64>) {
        let now_ms = world.now_ms;
        let has_links = matches!(self.driver, Driver::Open { .. });
        let may_wait = has_links || !self.has_failed;
        assert!(may_wait || self.asked.is_empty(), "{:?} wait for nothing", self.asked);
        for (key, since_ms) in &self.asked {
            let waited_ms = now_ms - since_ms;
            assert!(waited_ms <= ANSWERED_MS, "{key:?} is not answered after {waited_ms} ms");
        }
        if self.broker.is_ready()
            && let Some(since_ms) =
                [self.deaf_since_ms, stalled_since_ms].into_iter().flatten().min()
        {
            let deaf_ms = now_ms - since_ms;
            assert!(deaf_ms <= DEAF_MS, "ready, and nothing has come for {deaf_ms} ms");
        }
        self.workers.iter_mut().for_each(|core| core.check(now_ms));
        let in_flight = self.workers[0].loads.in_flight();
        let waiting = self.workers.iter().map(|core| core.worker.pending_requests().waiting);
        assert_eq!(in_flight.values().sum::<u32>() as usize, waiting.sum::<usize>());
    }

    /// Checks that the count of missed messages is exact.
    pub fn check_missed(&self, expected: &super::gaps::Missed) {
        let counted = self.counters.missed();
        for key in expected.keys().chain(counted.keys()) {
            let (is, must) = (counted.get(key), expected.get(key));
            assert_eq!(is, must, "counted, and missed, of {key:?} at node {}", self.home.number);
        }
        assert_eq!(self.missed, expected.values().sum::<u64>());
    }
}

/// Observes a request on its way to a business server.
fn see_request(relay: &Relay, world: &mut World) {
    if let Ok(Parcel::Request(request)) = Parcel::decode(&relay.parcel) {
        let requests = &mut world.business.requests;
        let number = requests.number_of(request.data);
        requests.identify(number, request.id.0);
        requests.ask(number, request.server.0, world.now_ms);
    }
}
