//! Matches a message's selectors to connections.

use super::connection::{Connection, NONE};
use super::directory::Directory;
use super::members::Members;
use crate::types::Cid;
use crate::wire::envelope::Targets;
use slab::Slab;
use smallvec::SmallVec;

/// The selectors of one message, resolved against one worker's directory: names became numbers.
/// `None` for a selector that was not given; each list is sorted.
#[derive(Debug)]
struct Selectors<'a> {
    cids: Option<SmallVec<[Cid; 8]>>,
    uids: Option<SmallVec<[&'a [u8]; 8]>>,
    tags: Option<SmallVec<[u32; 8]>>,
    groups: Option<SmallVec<[u32; 8]>>,
}

/// A message whose recipients are searched for.
#[derive(Debug)]
pub struct Search<'a> {
    pub project: u32,
    pub targets: &'a Targets<'a>,
    /// Unique to the message: a connection that carries it was already considered.
    pub visit_epoch: u32,
    /// Where the last slice ended; `None`: this is the first slice.
    pub from: Option<SearchPlace>,
}

/// The place at which the next slice of a search continues.
///
/// Member lists are visited from the end, because the last member takes the place of one that
/// leaves: that one was already considered, as its visit epoch shows. Members added meanwhile are
/// behind everything still to be visited.
#[derive(Debug, Clone, Copy)]
pub struct SearchPlace {
    given: Given,
    /// The next list: the number of its tag or device; for all devices of a project, its index
    /// among them.
    list: u32,
    /// Number of its members still to be visited.
    members: usize,
}

/// Calls `each` once for every open connection of the project that the targets select. Subtracts
/// the considered connections of tags and devices from `visits` and stops when none are left: it
/// then returns where to continue. Connections may come and go until it is finished, but no other
/// message may be searched for.
pub fn select(
    directory: &Directory,
    slab: &mut Slab<Connection>,
    search: &Search<'_>,
    visits: &mut usize,
    mut each: impl FnMut(u32, &mut Connection),
) -> Option<SearchPlace> {
    let Search { project, targets, visit_epoch, from } = *search;
    let selectors = Selectors::resolve(directory, project, targets)?;
    if from.is_none() {
        for cid in targets.except_cids.iter().flat_map(|cids| cids.iter()) {
            if let Some(slot) = directory.connection(slab, cid) {
                slab[slot as usize].visit_epoch = visit_epoch;
            }
        }
    }
    // Every candidate is judged in the same way, whatever its source.
    let mut judge = Judge { selectors: &selectors, project, visit_epoch, visits, each: &mut each };
    // The narrowest selector provides the candidates.
    if let Some(cids) = &selectors.cids {
        for &cid in cids {
            if let Some(slot) = directory.connection(slab, cid) {
                judge.consider(slab, slot, Given::Cids);
            }
        }
        return None;
    }
    if let Some(uids) = &selectors.uids {
        for uid in uids {
            let mut next = directory.user(slab, project, uid).unwrap_or(NONE);
            while next != NONE {
                let slot = next;
                next = slab[slot as usize].user_next;
                judge.consider(slab, slot, Given::Uids);
            }
        }
        return None;
    }
    let given = from.map_or_else(|| selectors.narrower(directory), |place| place.given);
    match (given, &selectors.tags, &selectors.groups) {
        (Given::Tags, Some(tags), _) => {
            let members = |tag| directory.tag_members(tag);
            judge.consider_lists(slab, tags, from, (Given::Tags, members))
        }
        (Given::Groups, _, Some(groups)) => {
            let members = |group| directory.group_members(group);
            judge.consider_lists(slab, groups, from, (Given::Groups, members))
        }
        _ => judge.consider_all(slab, directory, from),
    }
}

/// Decides about candidates.
struct Judge<'a, 'n, F> {
    selectors: &'a Selectors<'n>,
    project: u32,
    visit_epoch: u32,
    visits: &'a mut usize,
    each: &'a mut F,
}

impl<F: FnMut(u32, &mut Connection)> Judge<'_, '_, F> {
    /// Considers the members of some tags or devices, whose numbers are sorted.
    #[inline(always)]
    fn consider_lists<'d>(
        &mut self,
        slab: &mut Slab<Connection>,
        lists: &[u32],
        from: Option<SearchPlace>,
        (given, members_of): (Given, impl Fn(u32) -> &'d Members),
    ) -> Option<SearchPlace> {
        // The list at which the last slice stopped may be gone.
        let first = from.map_or(0, |place| lists.partition_point(|&list| list < place.list));
        for &list in &lists[first..] {
            let end = from.filter(|place| place.list == list).map_or(usize::MAX, |it| it.members);
            if let Some(members) = self.consider_members(slab, members_of(list), end, given) {
                return Some(SearchPlace { given, list, members });
            }
        }
        None
    }

    /// Considers all connections of the project.
    fn consider_all(
        &mut self,
        slab: &mut Slab<Connection>,
        directory: &Directory,
        from: Option<SearchPlace>,
    ) -> Option<SearchPlace> {
        let given = Given::Project;
        let groups = directory.project_groups(self.project)?;
        let mut end = from.map_or(usize::MAX, |place| place.members);
        let mut next = from.map_or(groups.len(), |place| place.list as usize + 1);
        if next > groups.len() {
            // The last device took the place of another one.
            (next, end) = (groups.len(), usize::MAX);
        }
        while let Some(list) = next.checked_sub(1)
            && let Some(group) = groups.get(list)
        {
            let group = directory.group_members(group);
            if let Some(members) = self.consider_members(slab, group, end, given) {
                return Some(SearchPlace { given, list: list as u32, members });
            }
            (next, end) = (list, usize::MAX);
        }
        None
    }

    /// Considers the first `end` members of a list, starting with the last of them. Returns the
    /// number left for the next slice.
    #[inline(always)]
    fn consider_members(
        &mut self,
        slab: &mut Slab<Connection>,
        members: &Members,
        end: usize,
        given: Given,
    ) -> Option<usize> {
        let mut left = end.min(members.len());
        for chunk in members.chunks_to(left).rev() {
            let visited = chunk.len().min(*self.visits);
            for &slot in chunk[chunk.len() - visited..].iter().rev() {
                self.consider(slab, slot, given);
            }
            *self.visits -= visited;
            left -= visited;
            if visited < chunk.len() {
                return Some(left);
            }
        }
        None
    }

    /// Inlined, so that `given` is a constant in each loop over candidates.
    #[inline(always)]
    fn consider(&mut self, slab: &mut Slab<Connection>, slot: u32, given: Given) {
        let connection = &mut slab[slot as usize];
        if connection.visit_epoch != self.visit_epoch && connection.project == self.project {
            connection.visit_epoch = self.visit_epoch;
            if self.selectors.accept(connection, given) {
                (self.each)(slot, connection);
            }
        }
    }
}

/// The selector that a candidate already satisfies because of where it was found.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Given {
    Cids,
    Uids,
    Tags,
    Groups,
    Project,
}

impl<'a> Selectors<'a> {
    /// Resolves the selectors; `None` if one of them matches nobody here.
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

    /// Returns which of tags and devices has fewer members, where both are given.
    fn narrower(&self, directory: &Directory) -> Given {
        match (&self.tags, &self.groups) {
            (None, None) => Given::Project,
            (Some(_), None) => Given::Tags,
            (None, Some(_)) => Given::Groups,
            (Some(tags), Some(groups)) => {
                let tagged: usize = tags.iter().map(|&tag| directory.tag_members(tag).len()).sum();
                let members = groups.iter().map(|&group| directory.group_members(group).len());
                if tagged <= members.sum() { Given::Tags } else { Given::Groups }
            }
        }
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
