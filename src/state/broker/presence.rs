//! Which workers have connections of which users, so that a push to one user wakes one worker.

use crate::state::projects::ProjectId;
use crate::state::sharded_table::ShardedTable;
use siphasher::sip::SipHasher13;
use std::hash::Hasher;

/// The key of a user: a keyed hash, so that nobody can construct a collision. Among a million users
/// two collide with a probability of 3 in 10^8; when one of them leaves, the worker of the other
/// would then be passed over.
pub fn user_hash(keys: (u64, u64), project: ProjectId, uid: impl AsRef<[u8]>) -> u64 {
    let mut hasher = SipHasher13::new_with_keys(keys.0, keys.1);
    hasher.write_u32(project.0);
    hasher.write(uid.as_ref());
    hasher.finish()
}

#[derive(Debug, Default)]
pub(super) struct Presence {
    /// User hash and the bitmap of its workers, 16 bytes a user.
    users: ShardedTable<(u64, u64)>,
}

impl Presence {
    pub fn insert(&mut self, user: u64, worker: usize) {
        match self.users.find_mut(user, |one| one.0 == user) {
            Some((_, workers)) => *workers |= 1 << worker,
            None => self.users.insert(user, (user, 1 << worker), |one| one.0),
        }
    }

    pub fn remove(&mut self, user: u64, worker: usize) {
        let Some((_, workers)) = self.users.find_mut(user, |one| one.0 == user) else { return };
        *workers &= !(1 << worker);
        if *workers == 0 {
            self.users.remove(user, |one| one.0 == user, |one| one.0);
        }
    }

    pub fn workers_of(&self, user: u64) -> u64 {
        self.users.find(user, |one| one.0 == user).map_or(0, |one| one.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_where_they_were_announced() {
        let mut presence = Presence::default();
        let user = |uid| user_hash((1, 2), ProjectId(0), uid);
        assert_ne!(user("a"), user_hash((1, 2), ProjectId(1), "a"));
        presence.insert(user("a"), 0);
        presence.insert(user("a"), 63);
        presence.insert(user("b"), 5);
        assert_eq!(presence.workers_of(user("a")), 1 | 1 << 63);
        presence.remove(user("a"), 0);
        presence.remove(user("c"), 0);
        assert_eq!([presence.workers_of(user("a")), presence.workers_of(user("b"))], [1 << 63, 32]);
        presence.remove(user("a"), 63);
        presence.remove(user("b"), 5);
        assert_eq!(presence.users.len(), 0);
    }
}
