//! What a worker wants to hear from the queue, because its clients may be meant.

use super::chunked_queue::ChunkedQueue;
use super::projects::ProjectId;
use super::sharded_table::ShardedTable;
use crate::types::{Cid, EventSet, NodeId, Routing};
use compact_str::CompactString;
use siphasher::sip::SipHasher13;
use smallvec::SmallVec;
use std::hash::Hasher;

/// Subscriptions that one tick considers leaving.
const LOOKS_PER_TICK: usize = 512;
/// A subscription is left so long after the last client that needed it: clients come back.
pub const LEAVE_AFTER_MS: u64 = 60_000;

/// A group of channels that is needed as a whole.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Interest {
    /// A project's channel, and that of its client ids of this node.
    Project(ProjectId),
    /// A user's channel, with `--routing user`.
    User(ProjectId, CompactString),
    /// The channel of a project's client ids of this node, for business servers.
    Inbox(ProjectId),
    /// What happens to a project's clients.
    Events(ProjectId),
}

/// Who needs to hear something.
#[derive(Debug, Clone, Copy)]
pub enum Listener<'a> {
    Client {
        uid: &'a str,
    },
    /// A business server; `events`: of clients.
    Server {
        hears_events: bool,
    },
}

/// What a worker tells the broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ask {
    /// To be answered once it is in force.
    Join(Interest),
    Leave(Interest),
    /// The first connection of a user (its [`user_hash`]) came, the last one went. Told only where
    /// there are several workers to choose from.
    UserHere(u64),
    UserGone(u64),
    /// A business server came, went. The first is answered with [`Notice::ServerKnown`].
    ServerHere(Server),
    ServerGone(Cid),
    /// This worker knows of a business server of another one now. Where there is no broker.
    ServerSeen(Cid),
    Relay(Relay),
}

/// A parcel for others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relay {
    pub to: To,
    pub parcel: Vec<u8>,
}

/// Why a parcel could not be handed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unsent {
    /// The queue is down.
    Down,
    /// There was no room on the way to it, or to another worker.
    Full,
    /// It is larger than what the queue carries.
    TooLarge,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum To {
    /// The worker, of whichever node, that holds this connection.
    Holder { project: ProjectId, cid: Cid },
    /// Whoever has business servers of the project that want to hear its events.
    Events(ProjectId),
}

/// A business server's connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Server {
    pub cid: Cid,
    pub project: ProjectId,
    pub events: EventSet,
}

/// What the broker, or another worker, tells a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notice {
    ServerHere(Server),
    ServerGone(Cid),
    /// Whoever must know of this worker's business server does.
    ServerKnown(Cid),
    /// A node came, or is lost with all that it held.
    Node {
        node: NodeId,
        is_up: bool,
    },
    /// An earlier run of this node may have given out ids of milliseconds up to this one.
    IdsBegin {
        used_ms: u64,
    },
}

impl Ask {
    /// Whether it ends something: what was handed over before it must be heard before it.
    pub fn is_end(&self) -> bool {
        matches!(self, Self::ServerGone(_))
    }
}

impl Notice {
    /// Whether it ends something: what was handed over before it must be heard before it.
    pub fn is_end(&self) -> bool {
        matches!(self, Self::ServerGone(_) | Self::Node { is_up: false, .. })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum State {
    #[default]
    Unknown,
    Asked,
    /// The queue does not let this node hear it. It is asked for again and again.
    Refused,
    InForce,
}

#[derive(Debug, Default)]
struct Want {
    listeners: u32,
    state: State,
    /// It is in the queue of those that may be left.
    is_queued: bool,
    /// When its last listener went.
    idle_since_ms: u64,
}

#[derive(Debug, Default)]
struct ProjectWants {
    pushes: Want,
    inbox: Want,
    events: Want,
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

/// By user. The hash is keyed, so that clients cannot aim at one bucket.
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

/// Which interests a worker's clients need, and which are in force.
///
/// Before a client is taken in, [`Wants::admit`] says whether it has to wait for something; then
/// [`Wants::join`] and at its end [`Wants::leave`]. What the broker must know is in
/// [`Wants::take_asks`], in order.
#[derive(Debug)]
pub struct Wants {
    /// `None`: the `local` queue; nothing is needed.
    routing: Option<Routing>,
    /// By [`ProjectId`].
    projects: Vec<ProjectWants>,
    users: UserWants,
    /// Since when, oldest first.
    idle: ChunkedQueue<(u64, Interest)>,
    asks: Vec<Ask>,
    /// The last tick's time, by a clock that nobody sets: precise enough for minutes.
    now_ms: u64,
    /// How far the wall clock is ahead of that one.
    ahead_ms: i64,
}

impl Wants {
    pub fn new(
        routing: Option<Routing>,
        projects: usize,
        hash_keys: (u64, u64),
        now_ms: u64,
    ) -> Self {
        Self {
            routing,
            projects: (0..projects).map(|_| ProjectWants::default()).collect(),
            users: UserWants { table: ShardedTable::default(), hash_keys },
            idle: ChunkedQueue::default(),
            asks: Vec::new(),
            now_ms,
            ahead_ms: 0,
        }
    }

    /// What has to be in force before a client, or a business server, is told that it is connected;
    /// `None`: nothing more. Asks for it.
    pub fn admit(&mut self, project: ProjectId, listener: Listener<'_>) -> Option<Interest> {
        self.needs(project, listener).into_iter().find(|interest| {
            if let Interest::User(project, uid) = interest {
                self.users.insert(*project, uid);
            }
            let is_new = self.find(interest).is_some_and(|want| {
                let is_new = want.state == State::Unknown;
                if is_new {
                    want.state = State::Asked;
                }
                is_new
            });
            if is_new {
                self.asks.push(Ask::Join(interest.clone()));
            }
            self.find(interest).is_some_and(|want| want.state != State::InForce)
        })
    }

    /// It came.
    pub fn join(&mut self, project: ProjectId, listener: Listener<'_>) {
        for interest in self.needs(project, listener) {
            if let Some(want) = self.find(&interest) {
                want.listeners += 1;
            }
        }
    }

    /// It went.
    pub fn leave(&mut self, project: ProjectId, listener: Listener<'_>) {
        let now_ms = self.now_ms;
        for interest in self.needs(project, listener) {
            let Some(want) = self.find(&interest) else { continue };
            want.listeners = want.listeners.saturating_sub(1);
            if want.listeners == 0 && want.is_to_be_queued(now_ms) {
                self.idle.push_back((now_ms, interest));
            }
        }
    }

    /// The broker's answer to an [`Ask::Join`].
    pub fn handle_ready(&mut self, interest: &Interest) {
        let now_ms = self.now_ms;
        self.settle(interest, State::InForce, now_ms);
    }

    /// The queue does not let this node hear something that is asked for, or was in force.
    pub fn handle_refused(&mut self, interest: &Interest) {
        let now_ms = self.now_ms;
        self.settle(interest, State::Refused, now_ms);
    }

    fn settle(&mut self, interest: &Interest, state: State, now_ms: u64) {
        if let Some(want) = self.find(interest).filter(|want| want.state != State::Unknown) {
            want.state = state;
            // Who asked may have gone meanwhile.
            if want.listeners == 0 && want.is_to_be_queued(now_ms) {
                self.idle.push_back((now_ms, interest.clone()));
            }
        }
    }

    /// Whether the queue refuses something that this listener needs.
    pub fn is_refused(&mut self, project: ProjectId, listener: Listener<'_>) -> bool {
        let mut needs = self.needs(project, listener).into_iter();
        needs.any(|interest| self.find(&interest).is_some_and(|want| want.state == State::Refused))
    }

    /// Leaves what nobody has needed for a minute, a bounded number at a time.
    pub fn handle_tick(&mut self, now_ms: u64) {
        let now_ms = now_ms.saturating_add_signed(-self.ahead_ms);
        self.now_ms = now_ms;
        let mut looks = LOOKS_PER_TICK;
        while looks > 0
            && let Some((since_ms, _)) = self.idle.front()
            && since_ms + LEAVE_AFTER_MS <= now_ms
            && let Some((_, interest)) = self.idle.pop_front()
        {
            looks -= 1;
            let Some(want) = self.find(&interest) else { continue };
            want.is_queued = false;
            if want.listeners > 0 || matches!(want.state, State::Unknown | State::Asked) {
                continue;
            }
            let since_ms = want.idle_since_ms;
            if since_ms + LEAVE_AFTER_MS > now_ms {
                // Somebody came and went meanwhile.
                want.is_queued = true;
                self.idle.push_back((since_ms, interest));
                continue;
            }
            want.state = State::Unknown;
            if let Interest::User(project, uid) = &interest {
                self.users.remove(*project, uid);
            }
            self.asks.push(Ask::Leave(interest));
        }
    }

    pub fn handle_clock_step(&mut self, step_ms: i64) {
        self.ahead_ms = self.ahead_ms.saturating_add(step_ms);
    }

    /// The broker is to know this besides.
    pub fn tell(&mut self, ask: Ask) {
        self.asks.push(ask);
    }

    /// What the broker must know, in order.
    pub fn take_asks(&mut self) -> Vec<Ask> {
        std::mem::take(&mut self.asks)
    }

    pub fn has_asks(&self) -> bool {
        !self.asks.is_empty()
    }

    /// In the order in which it is asked for.
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
        let project = self.projects.get_mut(id.0 as usize)?;
        Some(match interest {
            Interest::Project(_) => &mut project.pushes,
            Interest::Inbox(_) => &mut project.inbox,
            Interest::Events(_) => &mut project.events,
            Interest::User(_, uid) => return self.users.find(*id, uid),
        })
    }
}

impl Want {
    /// Nobody needs it from now on. Returns whether it has to be queued.
    fn is_to_be_queued(&mut self, now_ms: u64) -> bool {
        self.idle_since_ms = now_ms;
        !std::mem::replace(&mut self.is_queued, true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHOP: ProjectId = ProjectId(1);

    fn client(uid: &str) -> Listener<'_> {
        Listener::Client { uid }
    }

    fn wants(routing: Routing) -> Wants {
        Wants::new(Some(routing), 2, (1, 2), 1_000)
    }

    #[test]
    fn the_local_queue_needs_nothing() {
        let mut wants = Wants::new(None, 2, (1, 2), 0);
        assert_eq!(wants.admit(SHOP, client("u")), None);
        wants.join(SHOP, client("u"));
        wants.leave(SHOP, client("u"));
        wants.handle_tick(1 << 40);
        assert!(!wants.has_asks());
    }

    #[test]
    fn the_first_client_waits_and_the_others_do_not_ask_again() {
        let mut wants = wants(Routing::Project);
        let project = Interest::Project(SHOP);
        assert_eq!(wants.admit(SHOP, client("a")), Some(project.clone()));
        assert_eq!(wants.admit(SHOP, client("b")), Some(project.clone()));
        assert_eq!(wants.take_asks(), [Ask::Join(project.clone())]);
        wants.handle_ready(&project);
        assert_eq!(wants.admit(SHOP, client("a")), None);
        assert!(!wants.has_asks());
    }

    #[test]
    fn a_users_channel_is_needed_after_its_projects() {
        let mut wants = wants(Routing::User);
        let (project, user) = (Interest::Project(SHOP), Interest::User(SHOP, "a".into()));
        assert_eq!(wants.admit(SHOP, client("a")), Some(project.clone()));
        wants.handle_ready(&project);
        assert_eq!(wants.admit(SHOP, client("a")), Some(user.clone()));
        wants.handle_ready(&user);
        assert_eq!(wants.admit(SHOP, client("a")), None);
        assert_eq!(wants.take_asks(), [Ask::Join(project), Ask::Join(user)]);
    }

    #[test]
    fn it_is_left_a_minute_after_the_last_client_and_not_if_one_came_back() {
        let mut wants = wants(Routing::User);
        let (project, user) = (Interest::Project(SHOP), Interest::User(SHOP, "a".into()));
        for interest in [&project, &user] {
            wants.admit(SHOP, client("a"));
            wants.handle_ready(interest);
        }
        wants.take_asks();
        wants.join(SHOP, client("a"));
        wants.handle_tick(5_000);
        wants.leave(SHOP, client("a"));
        wants.join(SHOP, client("a"));
        wants.handle_tick(5_000 + LEAVE_AFTER_MS);
        assert!(!wants.has_asks());
        wants.leave(SHOP, client("a"));
        wants.handle_tick(5_000 + LEAVE_AFTER_MS + 30_000);
        wants.join(SHOP, client("a"));
        wants.leave(SHOP, client("a"));
        wants.handle_tick(5_000 + 2 * LEAVE_AFTER_MS + 30_000 - 1);
        assert!(!wants.has_asks());
        wants.handle_tick(5_000 + 2 * LEAVE_AFTER_MS + 30_000);
        let mut asks = wants.take_asks();
        asks.sort_by_key(|ask| format!("{ask:?}"));
        assert_eq!(asks, [Ask::Leave(project.clone()), Ask::Leave(user)]);
        assert_eq!(wants.users.table.len(), 0);
        assert_eq!(wants.admit(SHOP, client("a")), Some(project));
    }

    /// Set back by an hour, nothing was left for an hour.
    #[test]
    fn a_step_of_the_clock_changes_no_minute() {
        let mut wants = wants(Routing::Project);
        let project = Interest::Project(SHOP);
        wants.admit(SHOP, client("a"));
        wants.handle_ready(&project);
        wants.take_asks();
        let now_ms = 4_000_000;
        wants.join(SHOP, client("a"));
        wants.handle_tick(now_ms);
        // Once in the queue, and its time begins again.
        wants.leave(SHOP, client("a"));
        wants.handle_tick(now_ms + 1_000);
        wants.join(SHOP, client("a"));
        wants.leave(SHOP, client("a"));
        wants.handle_clock_step(-3_600_000);
        let now_ms = now_ms + 1_000 - 3_600_000;
        for later_ms in [0, LEAVE_AFTER_MS - 1_000, LEAVE_AFTER_MS - 1] {
            wants.handle_tick(now_ms + later_ms);
            assert!(!wants.has_asks(), "{later_ms}");
        }
        wants.handle_tick(now_ms + LEAVE_AFTER_MS);
        assert_eq!(wants.take_asks(), [Ask::Leave(project)]);
    }

    #[test]
    fn a_business_server_needs_its_inbox_and_the_events_that_it_wants() {
        let mut wants = wants(Routing::User);
        let (quiet, all) =
            (Listener::Server { hears_events: false }, Listener::Server { hears_events: true });
        let (inbox, events) = (Interest::Inbox(SHOP), Interest::Events(SHOP));
        assert_eq!(wants.admit(SHOP, quiet), Some(inbox.clone()));
        wants.handle_ready(&inbox);
        assert_eq!(wants.admit(SHOP, quiet), None);
        assert_eq!(wants.admit(SHOP, all), Some(events.clone()));
        wants.handle_ready(&events);
        assert_eq!(wants.take_asks(), [Ask::Join(inbox.clone()), Ask::Join(events.clone())]);
        wants.join(SHOP, quiet);
        wants.join(SHOP, all);
        wants.leave(SHOP, all);
        wants.handle_tick(2_000 + LEAVE_AFTER_MS);
        assert_eq!(wants.take_asks(), [Ask::Leave(events)]);
    }

    #[test]
    fn what_nobody_waited_for_in_the_end_is_left_too() {
        let mut wants = wants(Routing::Project);
        let project = Interest::Project(SHOP);
        wants.admit(SHOP, client("a"));
        wants.take_asks();
        wants.handle_ready(&project);
        wants.handle_tick(1_000 + LEAVE_AFTER_MS);
        assert_eq!(wants.take_asks(), [Ask::Leave(project)]);
    }

    /// Whoever came next was let in, and heard nothing.
    #[test]
    fn what_is_refused_is_not_asked_for_again_and_is_left_like_anything_else() {
        let mut wants = wants(Routing::Project);
        let project = Interest::Project(SHOP);
        wants.handle_ready(&project);
        assert!(wants.admit(SHOP, client("a")).is_some(), "nobody had asked for it");
        wants.take_asks();
        wants.handle_refused(&project);
        assert!(wants.is_refused(SHOP, client("b")));
        assert!(wants.admit(SHOP, client("b")).is_some() && !wants.has_asks());
        wants.handle_ready(&project);
        assert!(!wants.is_refused(SHOP, client("b")));
        assert_eq!(wants.admit(SHOP, client("b")), None);
        wants.handle_refused(&project);
        wants.handle_tick(1_000 + LEAVE_AFTER_MS);
        assert_eq!(wants.take_asks(), [Ask::Leave(project)]);
        assert!(!wants.is_refused(SHOP, client("b")));
    }
}
