//! From a message's selectors to the connections that match.

use super::connection::{Connection, NONE};
use super::directory::Directory;
use crate::types::Cid;
use crate::wire::envelope::Targets;
use slab::Slab;
use smallvec::SmallVec;

/// The selectors of one message, resolved against one worker's directory: names became numbers.
/// `None` where a selector was not given; each list is sorted.
#[derive(Debug)]
struct Selectors<'a> {
    cids: Option<SmallVec<[Cid; 8]>>,
    uids: Option<SmallVec<[&'a [u8]; 8]>>,
    tags: Option<SmallVec<[u32; 8]>>,
    groups: Option<SmallVec<[u32; 8]>>,
}

/// Calls `each` once for every open connection of `project` that `targets` selects.
///
/// `stamp` must be new for every message: a connection that carries it was considered already.
pub fn select(
    directory: &Directory,
    slab: &mut Slab<Connection>,
    project: u32,
    targets: &Targets<'_>,
    stamp: u32,
    mut each: impl FnMut(u32, &mut Connection),
) {
    let Some(selectors) = Selectors::resolve(directory, project, targets) else { return };
    for cid in targets.except_cids.iter().flat_map(|cids| cids.iter()) {
        if let Some(slot) = directory.connection(slab, cid) {
            slab[slot as usize].stamp = stamp;
        }
    }
    // Wherever a candidate came from, it is judged in the same way.
    let mut judge = Judge { selectors: &selectors, project, stamp, each: &mut each };
    // The narrowest selector gives the candidates.
    if let Some(cids) = &selectors.cids {
        for &cid in cids {
            if let Some(slot) = directory.connection(slab, cid) {
                judge.consider(slab, slot, Given::Cids);
            }
        }
    } else if let Some(uids) = &selectors.uids {
        for uid in uids {
            let mut next = directory.user(slab, project, uid).unwrap_or(NONE);
            while next != NONE {
                let slot = next;
                next = slab[slot as usize].user_next;
                judge.consider(slab, slot, Given::Uids);
            }
        }
    } else if let Some(tags) = selectors.tags.as_ref().filter(|_| selectors.is_by_tags(directory)) {
        for &tag in tags {
            for &slot in directory.tag_members(tag) {
                judge.consider(slab, slot, Given::Tags);
            }
        }
    } else {
        let all = directory.project_groups(project);
        for &group in selectors.groups.as_deref().unwrap_or(all) {
            for &slot in directory.group_members(group) {
                judge.consider(slab, slot, Given::Groups);
            }
        }
    }
}

/// Decides about candidates.
struct Judge<'a, 'n, F> {
    selectors: &'a Selectors<'n>,
    project: u32,
    stamp: u32,
    each: &'a mut F,
}

impl<F: FnMut(u32, &mut Connection)> Judge<'_, '_, F> {
    /// Inlined, so that in each loop over candidates what is given is a constant.
    #[inline(always)]
    fn consider(&mut self, slab: &mut Slab<Connection>, slot: u32, given: Given) {
        let connection = &mut slab[slot as usize];
        if connection.stamp != self.stamp && connection.project == self.project {
            connection.stamp = self.stamp;
            if self.selectors.accept(connection, given) {
                (self.each)(slot, connection);
            }
        }
    }
}

/// Which selector a candidate fulfils already, by where it was found.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Given {
    Cids,
    Uids,
    Tags,
    Groups,
}

impl<'a> Selectors<'a> {
    /// `None` where some selector can match nobody here.
    fn resolve(directory: &Directory, project: u32, targets: &Targets<'a>) -> Option<Self> {
        let cids = targets.cids.map(|cids| sorted(cids.iter()));
        let uids = targets.uids.map(|names| sorted(names.iter()));
        let tags = targets
            .tags
            .map(|names| sorted(names.iter().filter_map(|name| directory.tag(project, name))));
        let groups = targets
            .devices
            .map(|names| sorted(names.iter().filter_map(|name| directory.group(project, name))));
        let is_void = cids.as_ref().is_some_and(|list| list.is_empty())
            || uids.as_ref().is_some_and(|list| list.is_empty())
            || tags.as_ref().is_some_and(|list| list.is_empty())
            || groups.as_ref().is_some_and(|list| list.is_empty());
        (!is_void).then_some(Self { cids, uids, tags, groups })
    }

    /// Whether the members of the tags are fewer than those of the devices, where both are given.
    fn is_by_tags(&self, directory: &Directory) -> bool {
        let (Some(tags), Some(groups)) = (&self.tags, &self.groups) else { return true };
        let members: usize = groups.iter().map(|&one| directory.group_members(one).len()).sum();
        tags.iter().map(|&tag| directory.tag_members(tag).len()).sum::<usize>() <= members
    }

    #[inline(always)]
    fn accept(&self, connection: &Connection, given: Given) -> bool {
        let has = |list: &[u32], number: u32| list.binary_search(&number).is_ok();
        let is_user = |uids: &[&[u8]]| uids.binary_search(&connection.uid.as_bytes()).is_ok();
        (given == Given::Uids || self.uids.as_deref().is_none_or(is_user))
            && (given == Given::Tags
                || self.tags.as_deref().is_none_or(|tags| {
                    connection.tags.as_slice().iter().any(|entry| has(tags, entry.tag))
                }))
            && (given == Given::Groups
                || self.groups.as_deref().is_none_or(|groups| has(groups, connection.group)))
    }
}

fn sorted<T: Ord + Copy>(values: impl Iterator<Item = T>) -> SmallVec<[T; 8]> {
    let mut list: SmallVec<[T; 8]> = values.collect();
    list.sort_unstable();
    list
}
