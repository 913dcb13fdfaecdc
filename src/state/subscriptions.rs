//! Subscriptions that a worker needs from the queue for its clients.

use super::chunked_queue::ChunkedQueue;
use super::projects::ProjectId;
use super::sharded_table::ShardedTable;
use crate::types::{Cid, EventSet, MonotonicMs, NodeId, Routing};
use compact_str::CompactString;
use siphasher::sip::SipHasher13;
use smallvec::SmallVec;
use std::hash::Hasher;

/// Maximum number of idle subscriptions that one tick checks.
const LOOKS_PER_TICK: usize = 512;
/// How long a subscription is kept after the last client that needed it disconnects: clients come
/// back.
pub const LEAVE_AFTER_MS: u64 = 60_000;

/// A group of channels that are needed together.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Interest {
    /// A project's channel, and the channel of its client ids of this node.
    Project(ProjectId),
    /// A user's channel, with `--routing user`.
    User(ProjectId, CompactString),
    /// The channel of a project's client ids of this node, for business servers.
    Inbox(ProjectId),
    /// Events of a project's clients.
    Events(ProjectId),
}

/// A connection that needs subscriptions.
#[derive(Debug, Clone, Copy)]
pub enum Listener<'a> {
    Client {
        uid: &'a str,
    },
    /// A business server; `events`: those it wants of clients.
    Server {
        hears_events: bool,
    },
}

/// A worker's request to the broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BrokerRequest {
    /// Answered once it is in force.
    Join(Interest),
    Leave(Interest),
    /// The first connection of a user (its [`user_hash`]) was opened, the last one closed. Sent
    /// only if there are several workers to choose from.
    UserHere(u64),
    UserGone(u64),
    /// A business server connected, disconnected. The first is answered with
    /// [`WorkerEvent::ServerKnown`].
    ServerHere(Server),
    ServerGone(Cid),
    /// This worker now knows a business server of another worker. Sent only without a broker.
    ServerSeen(Cid),
    Relay(Relay),
}

/// A parcel for other workers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relay {
    pub to: To,
    pub parcel: Vec<u8>,
}

/// Why a parcel could not be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unsent {
    /// The queue is down.
    Down,
    /// There was no room on the way to the broker or to another worker.
    Full,
    /// The parcel is larger than what the queue carries.
    TooLarge,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum To {
    /// The worker, on any node, that holds this connection.
    Holder { project: ProjectId, cid: Cid },
    /// All workers with business servers of the project that want its events.
    Events(ProjectId),
}

/// A business server's connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Server {
    pub cid: Cid,
    pub project: ProjectId,
    pub events: EventSet,
}

/// A message to a worker from the broker or another worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WorkerEvent {
    ServerHere(Server),
    ServerGone(Cid),
    /// Every worker that must know of this worker's business server does.
    ServerKnown(Cid),
    /// A node joined, or is lost with all its business servers.
    Node {
        node: NodeId,
        is_up: bool,
    },
    /// An earlier run of this node may have issued ids from milliseconds up to this one.
    IdsBegin {
        used_ms: u64,
    },
}

impl BrokerRequest {
    /// Whether it ends something: messages handed over earlier must be handled first.
    pub fn is_end(&self) -> bool {
        matches!(self, Self::ServerGone(_))
    }
}

impl WorkerEvent {
    /// Whether it ends something: messages handed over earlier must be handled first.
    pub fn is_end(&self) -> bool {
        matches!(self, Self::ServerGone(_) | Self::Node { is_up: false, .. })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum SubscriptionState {
    #[default]
    Unknown,
    Asked,
    /// The queue does not permit this node to subscribe. It is requested again and again.
    Refused,
    InForce,
}

#[derive(Debug, Default)]
struct Want {
    listeners: u32,
    state: SubscriptionState,
    /// It is in the queue of idle interests.
    is_queued: bool,
    /// When its last listener left.
    idle_since: MonotonicMs,
}

#[derive(Debug, Default)]
struct ProjectWants {
    pushes: Want,
    inbox: Want,
    events: Want,
}

/// By [`ProjectId`], in chunks that exist from their first use on: it never grows in one piece,
/// whatever a reload adds.
#[derive(Debug, Default)]
struct WantsOfProjects(Vec<Option<Box<[ProjectWants; WANTS_PER_CHUNK]>>>);

const WANTS_PER_CHUNK: usize = 64;

impl WantsOfProjects {
    fn get_mut(&mut self, project: ProjectId) -> &mut ProjectWants {
        let index = project.0 as usize;
        let (chunk, place) = (index / WANTS_PER_CHUNK, index % WANTS_PER_CHUNK);
        if self.0.len() <= chunk {
            self.0.resize_with(chunk + 1, || None);
        }
        let chunk = self.0[chunk]
            .get_or_insert_with(|| Box::new(std::array::from_fn(|_| ProjectWants::default())));
        &mut chunk[place]
    }
}

/// What the connections of one user need.
#[derive(Debug)]
struct UserWant {
    project: ProjectId,
    uid: CompactString,
    want: Want,
}

impl UserWant {
    fn is_of(&self, project: ProjectId, uid: &str) -> bool {
        self.project == project && self.uid == uid
    }
}

/// By user. The hash is keyed, so that clients cannot cause collisions.
#[derive(Debug)]
struct UserWants {
    table: ShardedTable<UserWant>,
    hash_keys: (u64, u64),
}

impl UserWants {
    fn find(&mut self, project: ProjectId, uid: &str) -> Option<&mut Want> {
        let hash = user_hash(self.hash_keys, project, uid);
        self.table.find_mut(hash, |user| user.is_of(project, uid)).map(|user| &mut user.want)
    }

    fn insert(&mut self, project: ProjectId, uid: &CompactString) {
        if self.find(project, uid).is_some() {
            return;
        }
        let keys = self.hash_keys;
        let user = UserWant { project, uid: uid.clone(), want: Want::default() };
        let hash = user_hash(keys, project, uid);
        self.table.insert(hash, user, |user| user_hash(keys, user.project, &user.uid));
    }

    fn remove(&mut self, project: ProjectId, uid: &str) {
        let keys = self.hash_keys;
        let hash_of = |user: &UserWant| user_hash(keys, user.project, &user.uid);
        let hash = user_hash(keys, project, uid);
        self.table.remove(hash, |user| user.is_of(project, uid), hash_of);
    }
}

fn user_hash(keys: (u64, u64), project: ProjectId, uid: &str) -> u64 {
    let mut hasher = SipHasher13::new_with_keys(keys.0, keys.1);
    hasher.write_u32(project.0);
    hasher.write(uid.as_bytes());
    hasher.finish()
}

/// The interests that a worker's clients need, and which are in force.
///
/// Calling order for each client: [`Subscriptions::admit`] returns whether it has to wait for an
/// interest; then [`Subscriptions::join`], and at its end [`Subscriptions::leave`].
/// [`Subscriptions::take_broker_requests`] returns the requests to the broker, in order.
#[derive(Debug)]
pub struct Subscriptions {
    /// `None`: the `local` queue, which needs no subscriptions.
    routing: Option<Routing>,
    projects: WantsOfProjects,
    users: UserWants,
    /// Idle interests with the time since when, oldest first.
    idle: ChunkedQueue<(MonotonicMs, Interest)>,
    requests: Vec<BrokerRequest>,
    /// Time of the last tick: precise enough for minutes.
    now: MonotonicMs,
}

impl Subscriptions {
    pub fn new(routing: Option<Routing>, hash_keys: (u64, u64), now: MonotonicMs) -> Self {
        Self {
            routing,
            projects: WantsOfProjects::default(),
            users: UserWants { table: ShardedTable::default(), hash_keys },
            idle: ChunkedQueue::default(),
            requests: Vec::new(),
            now,
        }
    }

    /// Returns the interest that must be in force before a client or business server gets its
    /// welcome, and requests it; `None`: nothing is missing.
    pub fn admit(&mut self, project: ProjectId, listener: Listener<'_>) -> Option<Interest> {
        self.needs(project, listener).into_iter().find(|interest| {
            if let Interest::User(project, uid) = interest {
                self.users.insert(*project, uid);
            }
            let is_new = self.find(interest).is_some_and(|want| {
                let is_new = want.state == SubscriptionState::Unknown;
                if is_new {
                    want.state = SubscriptionState::Asked;
                }
                is_new
            });
            if is_new {
                self.requests.push(BrokerRequest::Join(interest.clone()));
            }
            self.find(interest).is_some_and(|want| want.state != SubscriptionState::InForce)
        })
    }

    /// Adds a listener.
    pub fn join(&mut self, project: ProjectId, listener: Listener<'_>) {
        for interest in self.needs(project, listener) {
            if let Some(want) = self.find(&interest) {
                want.listeners += 1;
            }
        }
    }

    /// Removes a listener.
    pub fn leave(&mut self, project: ProjectId, listener: Listener<'_>) {
        let now = self.now;
        for interest in self.needs(project, listener) {
            let Some(want) = self.find(&interest) else { continue };
            want.listeners = want.listeners.saturating_sub(1);
            if want.listeners == 0 && want.is_to_be_queued(now) {
                self.idle.push_back((now, interest));
            }
        }
    }

    /// Handles the broker's answer to a [`BrokerRequest::Join`].
    pub fn handle_ready(&mut self, interest: &Interest) {
        let now = self.now;
        self.settle(interest, SubscriptionState::InForce, now);
    }

    /// Handles the queue's refusal of an interest that was requested or in force.
    pub fn handle_refused(&mut self, interest: &Interest) {
        let now = self.now;
        self.settle(interest, SubscriptionState::Refused, now);
    }

    fn settle(&mut self, interest: &Interest, state: SubscriptionState, now: MonotonicMs) {
        if let Some(want) =
            self.find(interest).filter(|want| want.state != SubscriptionState::Unknown)
        {
            want.state = state;
            // The connection that asked may be gone by now.
            if want.listeners == 0 && want.is_to_be_queued(now) {
                self.idle.push_back((now, interest.clone()));
            }
        }
    }

    /// Whether the queue refuses something that this listener needs.
    pub fn is_refused(&mut self, project: ProjectId, listener: Listener<'_>) -> bool {
        let mut needs = self.needs(project, listener).into_iter();
        needs.any(|interest| {
            self.find(&interest).is_some_and(|want| want.state == SubscriptionState::Refused)
        })
    }

    /// Unsubscribes from interests that nobody has needed for a minute, a bounded number at a time.
    pub fn handle_tick(&mut self, now: MonotonicMs) {
        self.now = now;
        let mut looks = LOOKS_PER_TICK;
        while looks > 0
            && let Some((since, _)) = self.idle.front()
            && *since + LEAVE_AFTER_MS <= now
            && let Some((_, interest)) = self.idle.pop_front()
        {
            looks -= 1;
            let Some(want) = self.find(&interest) else { continue };
            want.is_queued = false;
            if want.listeners > 0
                || matches!(want.state, SubscriptionState::Unknown | SubscriptionState::Asked)
            {
                continue;
            }
            let since = want.idle_since;
            if since + LEAVE_AFTER_MS > now {
                // A listener joined and left in the meantime.
                want.is_queued = true;
                self.idle.push_back((since, interest));
                continue;
            }
            want.state = SubscriptionState::Unknown;
            if let Interest::User(project, uid) = &interest {
                self.users.remove(*project, uid);
            }
            self.requests.push(BrokerRequest::Leave(interest));
        }
    }

    /// Queues another request to the broker.
    pub fn request(&mut self, request: BrokerRequest) {
        self.requests.push(request);
    }

    /// Takes the requests to the broker, in order.
    pub fn take_broker_requests(&mut self) -> Vec<BrokerRequest> {
        std::mem::take(&mut self.requests)
    }

    pub fn has_broker_requests(&self) -> bool {
        !self.requests.is_empty()
    }

    /// Returns the interests of a listener, in the order in which they are requested.
    fn needs(&self, project: ProjectId, listener: Listener<'_>) -> SmallVec<[Interest; 2]> {
        let mut needs = SmallVec::new();
        match (self.routing, listener) {
            (None, _) => {}
            (Some(routing), Listener::Client { uid }) => {
                needs.push(Interest::Project(project));
                if routing == Routing::User {
                    needs.push(Interest::User(project, uid.into()));
                }
            }
            (Some(_), Listener::Server { hears_events }) => {
                needs.push(Interest::Inbox(project));
                if hears_events {
                    needs.push(Interest::Events(project));
                }
            }
        }
        needs
    }

    fn find(&mut self, interest: &Interest) -> Option<&mut Want> {
        let (Interest::Project(id)
        | Interest::User(id, _)
        | Interest::Inbox(id)
        | Interest::Events(id)) = interest;
        let project = self.projects.get_mut(*id);
        Some(match interest {
            Interest::Project(_) => &mut project.pushes,
            Interest::Inbox(_) => &mut project.inbox,
            Interest::Events(_) => &mut project.events,
            Interest::User(_, uid) => return self.users.find(*id, uid),
        })
    }
}

impl Want {
    /// Marks it as idle from now on. Returns whether it has to be queued.
    fn is_to_be_queued(&mut self, now: MonotonicMs) -> bool {
        self.idle_since = now;
        !std::mem::replace(&mut self.is_queued, true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> MonotonicMs {
        MonotonicMs::new(ms)
    }

    const SHOP: ProjectId = ProjectId(1);

    fn client(uid: &str) -> Listener<'_> {
        Listener::Client { uid }
    }

    fn subscriptions(routing: Routing) -> Subscriptions {
        Subscriptions::new(Some(routing), (1, 2), ms(1_000))
    }

    #[test]
    fn the_local_queue_needs_nothing() {
        let mut subscriptions = Subscriptions::new(None, (1, 2), ms(0));
        assert_eq!(subscriptions.admit(SHOP, client("u")), None);
        subscriptions.join(SHOP, client("u"));
        subscriptions.leave(SHOP, client("u"));
        subscriptions.handle_tick(ms(1 << 40));
        assert!(!subscriptions.has_broker_requests());
    }

    #[test]
    fn the_first_client_waits_and_the_others_do_not_ask_again() {
        let mut subscriptions = subscriptions(Routing::Project);
        let project = Interest::Project(SHOP);
        assert_eq!(subscriptions.admit(SHOP, client("a")), Some(project.clone()));
        assert_eq!(subscriptions.admit(SHOP, client("b")), Some(project.clone()));
        assert_eq!(subscriptions.take_broker_requests(), [BrokerRequest::Join(project.clone())]);
        subscriptions.handle_ready(&project);
        assert_eq!(subscriptions.admit(SHOP, client("a")), None);
        assert!(!subscriptions.has_broker_requests());
    }

    #[test]
    fn a_users_channel_is_needed_after_its_projects() {
        let mut subscriptions = subscriptions(Routing::User);
        let (project, user) = (Interest::Project(SHOP), Interest::User(SHOP, "a".into()));
        assert_eq!(subscriptions.admit(SHOP, client("a")), Some(project.clone()));
        subscriptions.handle_ready(&project);
        assert_eq!(subscriptions.admit(SHOP, client("a")), Some(user.clone()));
        subscriptions.handle_ready(&user);
        assert_eq!(subscriptions.admit(SHOP, client("a")), None);
        assert_eq!(
            subscriptions.take_broker_requests(),
            [BrokerRequest::Join(project), BrokerRequest::Join(user)]
        );
    }

    #[test]
    fn it_is_left_a_minute_after_the_last_client_and_not_if_one_came_back() {
        let mut subscriptions = subscriptions(Routing::User);
        let (project, user) = (Interest::Project(SHOP), Interest::User(SHOP, "a".into()));
        for interest in [&project, &user] {
            subscriptions.admit(SHOP, client("a"));
            subscriptions.handle_ready(interest);
        }
        subscriptions.take_broker_requests();
        subscriptions.join(SHOP, client("a"));
        subscriptions.handle_tick(ms(5_000));
        subscriptions.leave(SHOP, client("a"));
        subscriptions.join(SHOP, client("a"));
        subscriptions.handle_tick(ms(5_000) + LEAVE_AFTER_MS);
        assert!(!subscriptions.has_broker_requests());
        subscriptions.leave(SHOP, client("a"));
        subscriptions.handle_tick(ms(5_000) + LEAVE_AFTER_MS + 30_000);
        subscriptions.join(SHOP, client("a"));
        subscriptions.leave(SHOP, client("a"));
        subscriptions.handle_tick(ms(5_000) + 2 * LEAVE_AFTER_MS + 30_000 - 1);
        assert!(!subscriptions.has_broker_requests());
        subscriptions.handle_tick(ms(5_000) + 2 * LEAVE_AFTER_MS + 30_000);
        let mut requests = subscriptions.take_broker_requests();
        requests.sort_by_key(|request| format!("{request:?}"));
        assert_eq!(requests, [BrokerRequest::Leave(project.clone()), BrokerRequest::Leave(user)]);
        assert_eq!(subscriptions.users.table.len(), 0);
        assert_eq!(subscriptions.admit(SHOP, client("a")), Some(project));
    }

    #[test]
    fn who_joins_and_leaves_again_starts_the_minute_over() {
        let mut subscriptions = subscriptions(Routing::Project);
        let project = Interest::Project(SHOP);
        subscriptions.admit(SHOP, client("a"));
        subscriptions.handle_ready(&project);
        subscriptions.take_broker_requests();
        let now = ms(4_000_000);
        subscriptions.join(SHOP, client("a"));
        subscriptions.handle_tick(now);
        subscriptions.leave(SHOP, client("a"));
        subscriptions.handle_tick(now + 1_000);
        subscriptions.join(SHOP, client("a"));
        subscriptions.leave(SHOP, client("a"));
        let now = now + 1_000;
        for later_ms in [0, LEAVE_AFTER_MS - 1_000, LEAVE_AFTER_MS - 1] {
            subscriptions.handle_tick(now + later_ms);
            assert!(!subscriptions.has_broker_requests(), "{later_ms}");
        }
        subscriptions.handle_tick(now + LEAVE_AFTER_MS);
        assert_eq!(subscriptions.take_broker_requests(), [BrokerRequest::Leave(project)]);
    }

    #[test]
    fn a_business_server_needs_its_inbox_and_the_events_that_it_wants() {
        let mut subscriptions = subscriptions(Routing::User);
        let (quiet, all) =
            (Listener::Server { hears_events: false }, Listener::Server { hears_events: true });
        let (inbox, events) = (Interest::Inbox(SHOP), Interest::Events(SHOP));
        assert_eq!(subscriptions.admit(SHOP, quiet), Some(inbox.clone()));
        subscriptions.handle_ready(&inbox);
        assert_eq!(subscriptions.admit(SHOP, quiet), None);
        assert_eq!(subscriptions.admit(SHOP, all), Some(events.clone()));
        subscriptions.handle_ready(&events);
        assert_eq!(
            subscriptions.take_broker_requests(),
            [BrokerRequest::Join(inbox.clone()), BrokerRequest::Join(events.clone())]
        );
        subscriptions.join(SHOP, quiet);
        subscriptions.join(SHOP, all);
        subscriptions.leave(SHOP, all);
        subscriptions.handle_tick(ms(2_000) + LEAVE_AFTER_MS);
        assert_eq!(subscriptions.take_broker_requests(), [BrokerRequest::Leave(events)]);
    }

    #[test]
    fn what_nobody_waited_for_in_the_end_is_left_too() {
        let mut subscriptions = subscriptions(Routing::Project);
        let project = Interest::Project(SHOP);
        subscriptions.admit(SHOP, client("a"));
        subscriptions.take_broker_requests();
        subscriptions.handle_ready(&project);
        subscriptions.handle_tick(ms(1_000) + LEAVE_AFTER_MS);
        assert_eq!(subscriptions.take_broker_requests(), [BrokerRequest::Leave(project)]);
    }

    /// The next client was admitted and received nothing.
    #[test]
    fn what_is_refused_is_not_asked_for_again_and_is_left_like_anything_else() {
        let mut subscriptions = subscriptions(Routing::Project);
        let project = Interest::Project(SHOP);
        subscriptions.handle_ready(&project);
        assert!(subscriptions.admit(SHOP, client("a")).is_some(), "nobody had asked for it");
        subscriptions.take_broker_requests();
        subscriptions.handle_refused(&project);
        assert!(subscriptions.is_refused(SHOP, client("b")));
        assert!(
            subscriptions.admit(SHOP, client("b")).is_some()
                && !subscriptions.has_broker_requests()
        );
        subscriptions.handle_ready(&project);
        assert!(!subscriptions.is_refused(SHOP, client("b")));
        assert_eq!(subscriptions.admit(SHOP, client("b")), None);
        subscriptions.handle_refused(&project);
        subscriptions.handle_tick(ms(1_000) + LEAVE_AFTER_MS);
        assert_eq!(subscriptions.take_broker_requests(), [BrokerRequest::Leave(project)]);
        assert!(!subscriptions.is_refused(SHOP, client("b")));
    }
}
