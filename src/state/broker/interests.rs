//! What this node is subscribed to, and for which of its workers.

use crate::state::sequence::Origins;
use crate::state::wants::Interest;
use hashbrown::HashTable;
use siphasher::sip::SipHasher13;
use std::hash::Hasher;

/// A channel that this node is, or wants to be, subscribed to.
#[derive(Debug)]
pub struct Channel {
    pub name: Box<[u8]>,
    /// Bit by bit: who has clients that its messages may be for.
    pub workers: u64,
    /// Who waits for the confirmation, and of what.
    waiting: u64,
    interest: Option<Interest>,
    is_confirmed: bool,
    pub origins: Origins,
}

/// What came of the wish to hear a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Joined {
    /// To be subscribed to.
    New,
    /// Subscribed to, and not confirmed.
    Waiting,
    InForce,
}

/// Channels by name.
#[derive(Debug)]
pub struct Interests {
    channels: HashTable<Channel>,
    hash_keys: (u64, u64),
}

impl Interests {
    pub fn new(hash_keys: (u64, u64)) -> Self {
        Self { channels: HashTable::new(), hash_keys }
    }

    /// `worker` wants to hear the channel. `interest`: what it is to be told once that is
    /// confirmed.
    pub fn join(&mut self, name: &[u8], worker: usize, interest: Option<&Interest>) -> Joined {
        let (hash, bit) = (self.hash(name), 1 << worker);
        let keys = self.hash_keys;
        let entry = self.channels.entry(
            hash,
            |channel| *channel.name == *name,
            |channel| hash_of(keys, &channel.name),
        );
        let is_new = matches!(entry, hashbrown::hash_table::Entry::Vacant(_));
        let mut entry = entry.or_insert_with(|| Channel {
            name: name.into(),
            workers: 0,
            waiting: 0,
            interest: None,
            is_confirmed: false,
            origins: Origins::default(),
        });
        let channel = entry.get_mut();
        channel.workers |= bit;
        if channel.is_confirmed {
            return Joined::InForce;
        }
        if let Some(interest) = interest {
            channel.waiting |= bit;
            channel.interest.get_or_insert_with(|| interest.clone());
        }
        if is_new { Joined::New } else { Joined::Waiting }
    }

    /// `worker` does not need the channel any more. Returns whether nobody does: it is forgotten,
    /// and to be unsubscribed from.
    pub fn leave(&mut self, name: &[u8], worker: usize) -> bool {
        let hash = self.hash(name);
        let Ok(mut entry) = self.channels.find_entry(hash, |channel| *channel.name == *name) else {
            return false;
        };
        let channel = entry.get_mut();
        channel.workers &= !(1 << worker);
        channel.waiting &= !(1 << worker);
        if channel.workers != 0 {
            return false;
        }
        entry.remove();
        true
    }

    pub fn find(&mut self, name: &[u8]) -> Option<&mut Channel> {
        let hash = self.hash(name);
        self.channels.find_mut(hash, |channel| *channel.name == *name)
    }

    /// Redis confirmed a subscription: calls `ready` for each worker that waited for it.
    pub fn confirm(&mut self, name: &[u8], ready: impl FnMut(usize, &Interest)) {
        if let Some(channel) = self.find(name) {
            channel.is_confirmed = true;
            channel.tell_waiting(ready);
        }
    }

    /// The link is lost: nothing is confirmed any more, and nobody waits for it.
    pub fn handle_lost(&mut self, mut ready: impl FnMut(usize, &Interest)) {
        for channel in &mut self.channels {
            channel.is_confirmed = false;
            channel.tell_waiting(&mut ready);
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

impl Channel {
    fn tell_waiting(&mut self, mut ready: impl FnMut(usize, &Interest)) {
        let Some(interest) = self.interest.take() else { return };
        let mut waiting = std::mem::take(&mut self.waiting);
        while waiting != 0 {
            ready(waiting.trailing_zeros() as usize, &interest);
            waiting &= waiting - 1;
        }
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
        let mut ready = Vec::new();
        assert_eq!(interests.join(b"a", 0, Some(&interest)), Joined::New);
        assert_eq!(interests.join(b"a", 3, Some(&interest)), Joined::Waiting);
        interests.confirm(b"a", |worker, what| ready.push((worker, what.clone())));
        interests.confirm(b"a", |_, _| panic!("they were told"));
        assert_eq!(ready, [(0, interest.clone()), (3, interest.clone())]);
        assert_eq!(interests.join(b"a", 1, Some(&interest)), Joined::InForce);
        assert_eq!(interests.find(b"a").unwrap().workers, 0b1011);
        assert!(
            !interests.leave(b"a", 0) && !interests.leave(b"a", 3) && !interests.leave(b"b", 1)
        );
        assert!(interests.leave(b"a", 1));
        assert!(interests.find(b"a").is_none() && interests.len() == 0);
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
