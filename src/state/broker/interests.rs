//! The channels this node is subscribed to, and for which of its workers.

use crate::state::sequence::Origins;
use crate::state::sharded_table::{ShardedTable, TablePlace};
use crate::state::subscriptions::Interest;
use siphasher::sip::SipHasher13;
use std::hash::Hasher;

/// A channel that this node is subscribed to or wants to be.
#[derive(Debug)]
pub struct InterestChannel {
    pub name: Box<[u8]>,
    /// Bitmap of the workers that may have recipients for its messages.
    pub workers: u64,
    /// Workers that need it for two interests: a project's clients and its business servers share
    /// the channel of client ids.
    twice: u64,
    /// Workers that wait for the confirmation, and the interest each waits for.
    waiting: Vec<(usize, Interest)>,
    is_confirmed: bool,
    /// Redis does not permit this node to subscribe. The waiting workers were notified.
    is_refused: bool,
    pub origins: Origins,
}

/// Result of a request to join a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Joined {
    /// Has to be subscribed to.
    New,
    /// Subscription sent, not confirmed.
    Waiting,
    /// Redis refused the last subscription.
    Refused,
    InForce,
}

/// Position of a channel in the [`Interests`].
#[derive(Debug, Clone, Copy)]
pub struct InterestPlace(TablePlace);

/// Channels by name.
#[derive(Debug)]
pub struct Interests {
    channels: ShardedTable<InterestChannel>,
    hash_keys: (u64, u64),
    /// Position of the channel looked up last: messages of one channel arrive in runs.
    latest: Option<TablePlace>,
}

impl Interests {
    pub fn new(hash_keys: (u64, u64)) -> Self {
        Self { channels: ShardedTable::default(), hash_keys, latest: None }
    }

    /// Adds `worker` to the channel until it leaves as many times as it joined. `interest`: what to
    /// report to it once the subscription is confirmed.
    pub fn join(&mut self, name: &[u8], worker: usize, interest: Option<&Interest>) -> Joined {
        let (hash, bit) = (self.hash(name), 1 << worker);
        let keys = self.hash_keys;
        let is_it = |channel: &InterestChannel| *channel.name == *name;
        let is_new = self.channels.find(hash, is_it).is_none();
        if is_new {
            let channel = InterestChannel {
                name: name.into(),
                workers: 0,
                twice: 0,
                waiting: Vec::new(),
                is_confirmed: false,
                is_refused: false,
                origins: Origins::default(),
            };
            self.channels.insert(hash, channel, |channel| hash_of(keys, &channel.name));
        }
        let Some(channel) = self.channels.find_mut(hash, is_it) else { return Joined::New };
        channel.twice |= channel.workers & bit;
        channel.workers |= bit;
        if channel.is_confirmed {
            return Joined::InForce;
        }
        if let Some(interest) = interest {
            channel.waiting.push((worker, interest.clone()));
        }
        match is_new {
            true => Joined::New,
            false if channel.is_refused => Joined::Refused,
            false => Joined::Waiting,
        }
    }

    /// Removes `worker` from the channel. Returns whether no worker needs it any more: it is then
    /// forgotten and has to be unsubscribed from.
    pub fn leave(&mut self, name: &[u8], worker: usize) -> bool {
        let (hash, keys) = (self.hash(name), self.hash_keys);
        let is_it = |channel: &InterestChannel| *channel.name == *name;
        let Some(channel) = self.channels.find_mut(hash, is_it) else { return false };
        if channel.twice & 1 << worker != 0 {
            channel.twice &= !(1 << worker);
            return false;
        }
        channel.workers &= !(1 << worker);
        channel.waiting.retain(|(waiting, _)| *waiting != worker);
        if channel.workers != 0 {
            return false;
        }
        self.channels.remove(hash, is_it, |channel| hash_of(keys, &channel.name));
        true
    }

    pub fn find(&mut self, name: &[u8]) -> Option<&mut InterestChannel> {
        let place = self.place(name)?;
        self.at(place)
    }

    /// Returns the channel's position, valid until the next join or leave.
    pub fn place(&mut self, name: &[u8]) -> Option<InterestPlace> {
        let is_it = |channel: &InterestChannel| *channel.name == *name;
        let is_latest = |&place: &TablePlace| self.channels.at(place).is_some_and(is_it);
        if self.latest.filter(is_latest).is_none() {
            self.latest = self.channels.place(self.hash(name), is_it);
        }
        self.latest.map(InterestPlace)
    }

    pub fn at(&mut self, place: InterestPlace) -> Option<&mut InterestChannel> {
        self.channels.at_mut(place.0)
    }

    /// Marks a subscription as confirmed. Returns the workers that waited for it, each with its
    /// interest.
    pub fn confirm(&mut self, name: &[u8]) -> Vec<(usize, Interest)> {
        let Some(channel) = self.find(name) else { return Vec::new() };
        (channel.is_confirmed, channel.is_refused) = (true, false);
        std::mem::take(&mut channel.waiting)
    }

    /// Marks a subscription as refused. `interests`: those it is part of. Returns which worker
    /// needs which of them; `None`: they were notified already, or no worker needs it. They keep
    /// waiting for its confirmation.
    pub fn refuse(
        &mut self,
        name: &[u8],
        interests: &[Interest],
    ) -> Option<Vec<(usize, Interest)>> {
        let channel = self.find(name).filter(|channel| !channel.is_refused)?;
        (channel.is_confirmed, channel.is_refused) = (false, true);
        let mut workers = channel.workers;
        while workers != 0 {
            let worker = workers.trailing_zeros() as usize;
            workers &= workers - 1;
            for interest in interests {
                let one = (worker, interest.clone());
                if !channel.waiting.contains(&one) {
                    channel.waiting.push(one);
                }
            }
        }
        Some(channel.waiting.clone())
    }

    /// Whether any worker needs the channel.
    pub fn has(&self, name: &[u8]) -> bool {
        self.channels.find(self.hash(name), |channel| *channel.name == *name).is_some()
    }

    pub fn is_in_force(&mut self, name: &[u8]) -> bool {
        self.find(name).is_some_and(|channel| channel.is_confirmed)
    }

    /// Handles the loss of the link: nothing is confirmed any more, and no worker waits for it.
    pub fn handle_lost(&mut self, mut ready: impl FnMut(usize, &Interest)) {
        for channel in self.channels.iter_mut() {
            (channel.is_confirmed, channel.is_refused) = (false, false);
            for (worker, interest) in std::mem::take(&mut channel.waiting) {
                ready(worker, &interest);
            }
        }
    }

    pub fn names(&self) -> impl Iterator<Item = &[u8]> {
        self.channels.iter().map(|channel| &*channel.name)
    }

    pub fn len(&self) -> usize {
        self.channels.len()
    }

    fn hash(&self, name: &[u8]) -> u64 {
        hash_of(self.hash_keys, name)
    }
}

fn hash_of(keys: (u64, u64), name: &[u8]) -> u64 {
    let mut hasher = SipHasher13::new_with_keys(keys.0, keys.1);
    hasher.write(name);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::projects::ProjectId;

    #[test]
    fn a_channel_is_subscribed_to_once_and_left_by_the_last() {
        let mut interests = Interests::new((1, 2));
        let interest = Interest::Project(ProjectId(7));
        assert_eq!(interests.join(b"a", 0, Some(&interest)), Joined::New);
        assert_eq!(interests.join(b"a", 3, Some(&interest)), Joined::Waiting);
        assert!(!interests.is_in_force(b"a"));
        let ready = interests.confirm(b"a");
        assert!(interests.is_in_force(b"a"));
        assert_eq!(interests.confirm(b"a"), [], "they were told");
        assert_eq!(ready, [(0, interest.clone()), (3, interest.clone())]);
        assert_eq!(interests.join(b"a", 1, Some(&interest)), Joined::InForce);
        assert_eq!(interests.find(b"a").unwrap().workers, 0b1011);
        assert!(
            !interests.leave(b"a", 0) && !interests.leave(b"a", 3) && !interests.leave(b"b", 1)
        );
        assert!(interests.leave(b"a", 1));
        assert!(interests.find(b"a").is_none() && interests.len() == 0);
    }

    /// A project's clients and its business servers share the channel of its client ids.
    #[test]
    fn whoever_waits_for_one_channel_is_told_of_the_own_interest() {
        let mut interests = Interests::new((1, 2));
        let (project, inbox) = (ProjectId(7), Interest::Inbox(ProjectId(7)));
        interests.join(b"a", 0, Some(&Interest::Project(project)));
        interests.join(b"a", 0, Some(&inbox));
        let ready = interests.confirm(b"a");
        assert_eq!(ready, [(0, Interest::Project(project)), (0, inbox)]);
        assert!(!interests.leave(b"a", 0), "it needs it for the other one");
        assert_eq!(interests.find(b"a").unwrap().workers, 1);
        assert!(interests.leave(b"a", 0));
    }

    #[test]
    fn nobody_waits_for_a_link_that_is_lost() {
        let mut interests = Interests::new((1, 2));
        let interest = Interest::User(ProjectId(7), "u".into());
        interests.join(b"a", 2, Some(&interest));
        let mut ready = Vec::new();
        interests.handle_lost(|worker, _| ready.push(worker));
        interests.handle_lost(|worker, _| ready.push(worker));
        assert_eq!(ready, [2]);
        // It is still wanted, and not confirmed.
        assert_eq!(interests.join(b"a", 2, None), Joined::Waiting);
    }
}
