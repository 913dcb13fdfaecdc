//! Indexes of the connections: by client id, user, tag and device.
//!
//! The tables hold slab slots and look everything else up in the slab, including the hash of a name
//! when they grow: storing it beside the slot took 4 of 9 bytes, and 20 of a connection's.

use super::chunked_slab::ChunkedSlab;
use super::connection::{Connection, NONE, TagRef};
use super::index::Index;
use super::members::Members;
use crate::types::{Cid, SnowflakeClock};
use compact_str::CompactString;
use siphasher::sip::SipHasher13;
use slab::Slab;
use std::hash::Hasher;

/// Invariant (asserted by [`Directory::check`]): it contains exactly the open connections of the
/// slab, each once by client id, once in its user's chain, once in its group, and once in each of
/// its tags.
#[derive(Debug)]
pub struct Directory {
    keys: (u64, u64),
    by_cid: Index,
    /// Ids from milliseconds up to this one match no connection.
    hidden_ms: u64,
    /// The first connection of each user's chain.
    by_user: Index,
    by_tag: Index,
    by_group: Index,
    tags: ChunkedSlab<Tag>,
    groups: ChunkedSlab<DeviceGroup>,
    /// The groups of each project.
    project_groups: Vec<Members>,
}

#[derive(Debug)]
struct Tag {
    project: u32,
    name: CompactString,
    members: Members,
}

/// The connections of one project with one device; `device` is empty for those that gave none.
#[derive(Debug)]
struct DeviceGroup {
    project: u32,
    device: CompactString,
    members: Members,
    /// Its position among its project's groups.
    position: u32,
}

impl Directory {
    /// `keys` seed the hashes: unknown to peers, so that they cannot cause collisions.
    pub fn new(keys: (u64, u64)) -> Self {
        Self {
            keys,
            by_cid: Index::default(),
            hidden_ms: 0,
            by_user: Index::default(),
            by_tag: Index::default(),
            by_group: Index::default(),
            tags: ChunkedSlab::default(),
            groups: ChunkedSlab::default(),
            project_groups: Vec::new(),
        }
    }

    /// Adds the connection in `slot`, which is already in `slab`, without tags.
    pub fn insert(&mut self, slab: &mut Slab<Connection>, slot: u32, device: &str) {
        let keys = self.keys;
        self.by_cid.insert(slot, |slot| hash_of_cid(keys, slab, slot));
        let (project, uid) = (slab[slot as usize].project, slab[slot as usize].uid.clone());
        let user_hash = self.hash(project, uid.as_bytes());
        match self.by_user.find_mut(user_hash, |head| is_user(slab, head, project, uid.as_bytes()))
        {
            Some(head) => {
                let next = std::mem::replace(head, slot);
                slab[next as usize].user_previous = slot;
                slab[slot as usize].user_next = next;
            }
            None => self.by_user.insert(slot, |head| hash_of_user(keys, slab, head)),
        }
        let group = self.enter_group(project, device);
        slab[slot as usize].group = group;
        slab[slot as usize].group_position = self.groups[group as usize].members.push(slot);
    }

    /// Removes the connection in `slot` from all indexes.
    pub fn remove(&mut self, slab: &mut Slab<Connection>, slot: u32) {
        for tag in std::mem::take(&mut slab[slot as usize].tags).as_slice() {
            self.leave_tag(slab, *tag);
        }
        let (keys, connection) = (self.keys, &slab[slot as usize]);
        let cid_hash = hash_of_cid(keys, slab, slot);
        self.by_cid.remove(cid_hash, |other| other == slot, |slot| hash_of_cid(keys, slab, slot));
        let (next, previous) = (connection.user_next, connection.user_previous);
        if previous == NONE {
            let hash_of = |head| hash_of_user(keys, slab, head);
            let user_hash = hash_of(slot);
            if next == NONE {
                self.by_user.remove(user_hash, |head| head == slot, hash_of);
            } else if let Some(head) = self.by_user.find_mut(user_hash, |head| head == slot) {
                *head = next;
            }
        } else {
            slab[previous as usize].user_next = next;
        }
        if next != NONE {
            slab[next as usize].user_previous = previous;
        }
        self.leave_group(slab, slot);
    }

    /// Subscribes the connection in `slot` to `name`; `false` if it is already subscribed.
    pub fn subscribe(&mut self, slab: &mut Slab<Connection>, slot: u32, name: &str) -> bool {
        let project = slab[slot as usize].project;
        let hash = self.hash(project, name.as_bytes());
        let found = self.by_tag.find(hash, |tag| self.is_tag(tag, project, name.as_bytes()));
        let tag = match found {
            Some(tag) if slab[slot as usize].tags.contains(tag) => return false,
            Some(tag) => tag,
            None => {
                let name = CompactString::new(name);
                let tag = Tag { project, name, members: Members::default() };
                let tag = self.tags.insert(tag) as u32;
                self.by_tag.insert(tag, |tag| hash_of_tag(self.keys, &self.tags, tag));
                tag
            }
        };
        let position = self.tags[tag as usize].members.push(slot);
        slab[slot as usize].tags.add(TagRef { tag, position });
        true
    }

    /// Removes a subscription; `false` if there is none.
    pub fn unsubscribe(&mut self, slab: &mut Slab<Connection>, slot: u32, name: &str) -> bool {
        let project = slab[slot as usize].project;
        let Some(tag) = self.tag(project, name.as_bytes()) else { return false };
        let Some(entry) = slab[slot as usize].tags.remove(tag) else { return false };
        self.leave_tag(slab, entry);
        true
    }

    /// Hides the connections with ids from milliseconds up to this one; 0: hides none.
    pub fn hide_ids(&mut self, hidden_ms: u64) {
        self.hidden_ms = hidden_ms;
    }

    pub fn connection(&self, slab: &Slab<Connection>, cid: Cid) -> Option<u32> {
        if SnowflakeClock::ms_of(cid.0) <= self.hidden_ms {
            return None;
        }
        self.find_cid(slab, cid)
    }

    fn find_cid(&self, slab: &Slab<Connection>, cid: Cid) -> Option<u32> {
        let hash = self.hash(0, &cid.0.to_le_bytes());
        self.by_cid.find(hash, |slot| slab[slot as usize].cid == cid)
    }

    /// Returns the first of a user's connections; the others follow by `user_next`.
    pub fn user(&self, slab: &Slab<Connection>, project: u32, uid: &[u8]) -> Option<u32> {
        let hash = self.hash(project, uid);
        self.by_user.find(hash, |head| is_user(slab, head, project, uid))
    }

    pub fn tag(&self, project: u32, name: &[u8]) -> Option<u32> {
        let hash = self.hash(project, name);
        self.by_tag.find(hash, |tag| self.is_tag(tag, project, name))
    }

    pub fn tag_name(&self, tag: u32) -> &str {
        &self.tags[tag as usize].name
    }

    pub fn tag_members(&self, tag: u32) -> &Members {
        &self.tags[tag as usize].members
    }

    pub fn group(&self, project: u32, device: &[u8]) -> Option<u32> {
        let hash = self.hash(project, device);
        self.by_group.find(hash, |group| {
            let group = &self.groups[group as usize];
            group.project == project && group.device.as_bytes() == device
        })
    }

    /// The device given at connect by the members of a group; empty if none.
    pub fn device(&self, group: u32) -> &str {
        &self.groups[group as usize].device
    }

    /// Returns the groups of a project; `None`: it has no connections here.
    pub fn project_groups(&self, project: u32) -> Option<&Members> {
        self.project_groups.get(project as usize)
    }

    pub fn group_members(&self, group: u32) -> &Members {
        &self.groups[group as usize].members
    }

    /// Panics unless directory and slab agree. For the simulator and tests: it visits everything.
    pub fn check(&self, slab: &Slab<Connection>, is_open: impl Fn(&Connection) -> bool) {
        let mut open = 0;
        let mut subscriptions = 0;
        for (slot, connection) in slab.iter().filter(|(_, connection)| is_open(connection)) {
            let slot = slot as u32;
            open += 1;
            assert_eq!(self.find_cid(slab, connection.cid), Some(slot));
            let group = &self.groups[connection.group as usize];
            assert_eq!(group.members.get(connection.group_position as usize), Some(slot));
            assert_eq!(group.project, connection.project);
            let listed = &self.project_groups[connection.project as usize];
            assert_eq!(listed.get(group.position as usize), Some(connection.group));
            let found = self.group(connection.project, group.device.as_bytes());
            assert_eq!(found, Some(connection.group));
            let mut next = self.user(slab, connection.project, connection.uid.as_bytes());
            while next != Some(slot) {
                let other = &slab[next.unwrap_or(NONE) as usize];
                assert_eq!((other.project, &other.uid), (connection.project, &connection.uid));
                next = Some(other.user_next);
            }
            for tag in connection.tags.as_slice() {
                subscriptions += 1;
                let members = &self.tags[tag.tag as usize].members;
                assert_eq!(members.get(tag.position as usize), Some(slot));
                assert_eq!(self.tags[tag.tag as usize].project, connection.project);
            }
        }
        assert_eq!(self.by_cid.len(), open);
        assert_eq!(self.groups.iter().map(|(_, group)| group.members.len()).sum::<usize>(), open);
        assert_eq!(
            self.tags.iter().map(|(_, tag)| tag.members.len()).sum::<usize>(),
            subscriptions
        );
        assert_eq!(self.by_tag.len(), self.tags.len());
        assert!(self.tags.iter().all(|(_, tag)| !tag.members.is_empty()));
        assert!(self.groups.iter().all(|(_, group)| !group.members.is_empty()));
        assert_eq!(self.by_group.len(), self.groups.len());
        assert_eq!(self.project_groups.iter().map(Members::len).sum::<usize>(), self.groups.len());
        let heads = slab.iter().filter(|(_, c)| is_open(c) && c.user_previous == NONE).count();
        assert_eq!(self.by_user.len(), heads);
    }

    fn hash(&self, project: u32, bytes: &[u8]) -> u64 {
        hash(self.keys, project, bytes)
    }

    fn is_tag(&self, tag: u32, project: u32, name: &[u8]) -> bool {
        let tag = &self.tags[tag as usize];
        tag.project == project && tag.name.as_bytes() == name
    }

    fn leave_tag(&mut self, slab: &mut Slab<Connection>, entry: TagRef) {
        let tag = &mut self.tags[entry.tag as usize];
        if let Some(moved) = tag.members.swap_remove(entry.position as usize) {
            let entries = slab[moved as usize].tags.as_mut_slice();
            if let Some(moved) = entries.iter_mut().find(|other| other.tag == entry.tag) {
                moved.position = entry.position;
            }
        } else if tag.members.is_empty() {
            let hash_of = |tag| hash_of_tag(self.keys, &self.tags, tag);
            self.by_tag.remove(hash_of(entry.tag), |tag| tag == entry.tag, hash_of);
            self.tags.try_remove(entry.tag as usize);
        }
    }

    fn enter_group(&mut self, project: u32, device: &str) -> u32 {
        if let Some(group) = self.group(project, device.as_bytes()) {
            return group;
        }
        if self.project_groups.len() <= project as usize {
            self.project_groups.resize_with(project as usize + 1, Members::default);
        }
        let list = &mut self.project_groups[project as usize];
        let (device, position) = (CompactString::new(device), list.len() as u32);
        let group = DeviceGroup { project, device, members: Members::default(), position };
        let group = self.groups.insert(group) as u32;
        list.push(group);
        self.by_group.insert(group, |group| hash_of_group(self.keys, &self.groups, group));
        group
    }

    fn leave_group(&mut self, slab: &mut Slab<Connection>, slot: u32) {
        let Connection { group: number, group_position, .. } = slab[slot as usize];
        let group = &mut self.groups[number as usize];
        if let Some(moved) = group.members.swap_remove(group_position as usize) {
            slab[moved as usize].group_position = group_position;
        } else if group.members.is_empty() {
            self.forget_group(number);
        }
    }

    fn forget_group(&mut self, number: u32) {
        let Some(group) = self.groups.try_remove(number as usize) else { return };
        let DeviceGroup { project, device, position, .. } = group;
        let list = &mut self.project_groups[project as usize];
        if let Some(moved) = list.swap_remove(position as usize) {
            self.groups[moved as usize].position = position;
        }
        let hash = self.hash(project, device.as_bytes());
        let hash_of = |group| hash_of_group(self.keys, &self.groups, group);
        self.by_group.remove(hash, |group| group == number, hash_of);
    }
}

type Keys = (u64, u64);

fn hash(keys: Keys, project: u32, bytes: &[u8]) -> u64 {
    let mut hasher = SipHasher13::new_with_keys(keys.0, keys.1);
    hasher.write_u32(project);
    hasher.write(bytes);
    hasher.finish()
}

fn hash_of_cid(keys: Keys, slab: &Slab<Connection>, slot: u32) -> u64 {
    hash(keys, 0, &slab[slot as usize].cid.0.to_le_bytes())
}

fn hash_of_user(keys: Keys, slab: &Slab<Connection>, head: u32) -> u64 {
    let connection = &slab[head as usize];
    hash(keys, connection.project, connection.uid.as_bytes())
}

fn hash_of_tag(keys: Keys, tags: &ChunkedSlab<Tag>, tag: u32) -> u64 {
    let tag = &tags[tag as usize];
    hash(keys, tag.project, tag.name.as_bytes())
}

fn hash_of_group(keys: Keys, groups: &ChunkedSlab<DeviceGroup>, group: u32) -> u64 {
    let group = &groups[group as usize];
    hash(keys, group.project, group.device.as_bytes())
}

fn is_user(slab: &Slab<Connection>, head: u32, project: u32, uid: &[u8]) -> bool {
    let connection = &slab[head as usize];
    connection.project == project && connection.uid.as_bytes() == uid
}
