//! What a worker wants to hear from the queue, because its clients may be meant.

use super::projects::ProjectId;
use crate::types::Routing;
use compact_str::CompactString;
use hashbrown::HashMap;
use siphasher::sip::SipHasher13;
use std::collections::VecDeque;
use std::hash::BuildHasher;

/// A subscription is left so long after the last client that needed it: clients come back.
pub const LEAVE_AFTER_MS: u64 = 60_000;

/// A group of channels that is needed as a whole.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Interest {
    /// A project's channel, and that of its client ids of this node.
    Project(ProjectId),
    /// A user's channel, with `--routing user`.
    User(ProjectId, CompactString),
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
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum State {
    #[default]
    Unknown,
    Asked,
    InForce,
}

#[derive(Debug, Default)]
struct Want {
    clients: u32,
    state: State,
    /// It is in the queue of those that may be left.
    is_queued: bool,
    /// When its last client went.
    idle_since_ms: u64,
}

#[derive(Debug)]
struct Keyed((u64, u64));

impl BuildHasher for Keyed {
    type Hasher = SipHasher13;

    fn build_hasher(&self) -> SipHasher13 {
        SipHasher13::new_with_keys(self.0.0, self.0.1)
    }
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
    projects: Vec<Want>,
    users: HashMap<(ProjectId, CompactString), Want, Keyed>,
    /// Since when, oldest first.
    idle: VecDeque<(u64, Interest)>,
    asks: Vec<Ask>,
    /// The last tick's time: precise enough for minutes.
    now_ms: u64,
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
            projects: (0..projects).map(|_| Want::default()).collect(),
            users: HashMap::with_hasher(Keyed(hash_keys)),
            idle: VecDeque::new(),
            asks: Vec::new(),
            now_ms,
        }
    }

    /// What has to be in force before a client of this user is told that it is connected; `None`:
    /// nothing more. Asks for it.
    pub fn admit(&mut self, project: ProjectId, uid: &str) -> Option<Interest> {
        let routing = self.routing?;
        let asks = &mut self.asks;
        let want = self.projects.get_mut(project.0 as usize)?;
        if !want.is_in_force(asks, || Interest::Project(project)) {
            return Some(Interest::Project(project));
        }
        if routing == Routing::User {
            let key = (project, CompactString::from(uid));
            let interest = Interest::User(project, key.1.clone());
            if !self.users.entry(key).or_default().is_in_force(asks, || interest.clone()) {
                return Some(interest);
            }
        }
        None
    }

    /// A client came.
    pub fn join(&mut self, project: ProjectId, uid: &str) {
        self.for_each(project, uid, |want, _| want.clients += 1);
    }

    /// A client went.
    pub fn leave(&mut self, project: ProjectId, uid: &str) {
        let now_ms = self.now_ms;
        let mut idle = std::mem::take(&mut self.idle);
        self.for_each(project, uid, |want, interest| {
            want.clients = want.clients.saturating_sub(1);
            if want.clients == 0 && want.is_to_be_queued(now_ms) {
                idle.push_back((now_ms, interest()));
            }
        });
        self.idle = idle;
    }

    /// The broker's answer to an [`Ask::Join`].
    pub fn handle_ready(&mut self, interest: &Interest) {
        let now_ms = self.now_ms;
        if let Some(want) = self.find(interest) {
            want.state = State::InForce;
            // Who asked may have gone meanwhile.
            if want.clients == 0 && want.is_to_be_queued(now_ms) {
                self.idle.push_back((now_ms, interest.clone()));
            }
        }
    }

    /// Leaves what nobody has needed for a minute.
    pub fn handle_tick(&mut self, now_ms: u64) {
        self.now_ms = now_ms;
        while let Some((since_ms, _)) = self.idle.front()
            && since_ms + LEAVE_AFTER_MS <= now_ms
            && let Some((_, interest)) = self.idle.pop_front()
        {
            let Some(want) = self.find(&interest) else { continue };
            want.is_queued = false;
            if want.clients > 0 || want.state != State::InForce {
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
                self.users.remove(&(*project, uid.clone()));
            }
            self.asks.push(Ask::Leave(interest));
        }
    }

    pub fn handle_clock_step(&mut self, step_ms: i64) {
        self.now_ms = self.now_ms.saturating_add_signed(step_ms);
        for (since_ms, _) in &mut self.idle {
            *since_ms = since_ms.saturating_add_signed(step_ms);
        }
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

    fn for_each(
        &mut self,
        project: ProjectId,
        uid: &str,
        mut act: impl FnMut(&mut Want, &dyn Fn() -> Interest),
    ) {
        let Some(routing) = self.routing else { return };
        if let Some(want) = self.projects.get_mut(project.0 as usize) {
            act(want, &|| Interest::Project(project));
        }
        if routing == Routing::User {
            let uid = CompactString::from(uid);
            if let Some(want) = self.users.get_mut(&(project, uid.clone())) {
                act(want, &|| Interest::User(project, uid.clone()));
            }
        }
    }

    fn find(&mut self, interest: &Interest) -> Option<&mut Want> {
        match interest {
            Interest::Project(project) => self.projects.get_mut(project.0 as usize),
            Interest::User(project, uid) => self.users.get_mut(&(*project, uid.clone())),
        }
    }
}

impl Want {
    /// Nobody needs it from now on. Returns whether it has to be queued.
    fn is_to_be_queued(&mut self, now_ms: u64) -> bool {
        self.idle_since_ms = now_ms;
        !std::mem::replace(&mut self.is_queued, true)
    }

    fn is_in_force(&mut self, asks: &mut Vec<Ask>, interest: impl FnOnce() -> Interest) -> bool {
        if self.state == State::Unknown {
            self.state = State::Asked;
            asks.push(Ask::Join(interest()));
        }
        self.state == State::InForce
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHOP: ProjectId = ProjectId(1);

    fn wants(routing: Routing) -> Wants {
        Wants::new(Some(routing), 2, (1, 2), 1_000)
    }

    #[test]
    fn the_local_queue_needs_nothing() {
        let mut wants = Wants::new(None, 2, (1, 2), 0);
        assert_eq!(wants.admit(SHOP, "u"), None);
        wants.join(SHOP, "u");
        wants.leave(SHOP, "u");
        wants.handle_tick(1 << 40);
        assert!(!wants.has_asks());
    }

    #[test]
    fn the_first_client_waits_and_the_others_do_not_ask_again() {
        let mut wants = wants(Routing::Project);
        let project = Interest::Project(SHOP);
        assert_eq!(wants.admit(SHOP, "a"), Some(project.clone()));
        assert_eq!(wants.admit(SHOP, "b"), Some(project.clone()));
        assert_eq!(wants.take_asks(), [Ask::Join(project.clone())]);
        wants.handle_ready(&project);
        assert_eq!(wants.admit(SHOP, "a"), None);
        assert!(!wants.has_asks());
    }

    #[test]
    fn a_users_channel_is_needed_after_its_projects() {
        let mut wants = wants(Routing::User);
        let (project, user) = (Interest::Project(SHOP), Interest::User(SHOP, "a".into()));
        assert_eq!(wants.admit(SHOP, "a"), Some(project.clone()));
        wants.handle_ready(&project);
        assert_eq!(wants.admit(SHOP, "a"), Some(user.clone()));
        wants.handle_ready(&user);
        assert_eq!(wants.admit(SHOP, "a"), None);
        assert_eq!(wants.take_asks(), [Ask::Join(project), Ask::Join(user)]);
    }

    #[test]
    fn it_is_left_a_minute_after_the_last_client_and_not_if_one_came_back() {
        let mut wants = wants(Routing::User);
        let (project, user) = (Interest::Project(SHOP), Interest::User(SHOP, "a".into()));
        for interest in [&project, &user] {
            wants.admit(SHOP, "a");
            wants.handle_ready(interest);
        }
        wants.take_asks();
        wants.join(SHOP, "a");
        wants.handle_tick(5_000);
        wants.leave(SHOP, "a");
        wants.join(SHOP, "a");
        wants.handle_tick(5_000 + LEAVE_AFTER_MS);
        assert!(!wants.has_asks());
        wants.leave(SHOP, "a");
        wants.handle_tick(5_000 + LEAVE_AFTER_MS + 30_000);
        wants.join(SHOP, "a");
        wants.leave(SHOP, "a");
        wants.handle_tick(5_000 + 2 * LEAVE_AFTER_MS + 30_000 - 1);
        assert!(!wants.has_asks());
        wants.handle_tick(5_000 + 2 * LEAVE_AFTER_MS + 30_000);
        let mut asks = wants.take_asks();
        asks.sort_by_key(|ask| format!("{ask:?}"));
        assert_eq!(asks, [Ask::Leave(project.clone()), Ask::Leave(user)]);
        assert!(wants.users.is_empty());
        assert_eq!(wants.admit(SHOP, "a"), Some(project));
    }

    #[test]
    fn what_nobody_waited_for_in_the_end_is_left_too() {
        let mut wants = wants(Routing::Project);
        let project = Interest::Project(SHOP);
        wants.admit(SHOP, "a");
        wants.take_asks();
        wants.handle_ready(&project);
        wants.handle_tick(1_000 + LEAVE_AFTER_MS);
        assert_eq!(wants.take_asks(), [Ask::Leave(project)]);
    }
}
