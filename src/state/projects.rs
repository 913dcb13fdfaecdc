//! The projects (tenants) that a node serves: an immutable snapshot, replaced as a whole on reload.

use crate::wire::sign::{Secret, sign_hex};
use hashbrown::HashTable;
use siphasher::sip::SipHasher13;
use std::collections::{HashMap, HashSet};
use std::hash::Hasher;

/// Maximum number of ids that one process assigns to projects: an id is never given to another
/// project, because connections, counters and parcels refer to it.
pub const MAX_PROJECT_IDS: usize = 1 << 20;

/// A project's index in [`Projects`], the same in all snapshots of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProjectId(pub u32);

/// Who may subscribe an open connection to more tags.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SubscribePolicy {
    /// Every client, to any tag of its project.
    #[default]
    Any,
    /// Nobody: tags are set only at connect, where they are signed.
    None,
    /// Every client whose message carries a signature over its client id and the tags.
    Signed,
}

#[derive(Debug)]
pub struct Project {
    pub pid: Box<str>,
    /// At least one; several during rotation. Any of them is valid.
    pub secrets: Vec<Secret>,
    /// Browser origins that may connect, exact or `*`. `None` accepts any: the signature is what
    /// authorizes.
    pub allowed_origins: Option<Vec<Box<str>>>,
    pub subscribe: SubscribePolicy,
}

impl Project {
    /// Whether a request with this `Origin` header is accepted. Clients other than browsers send
    /// none and are accepted: the header protects a browser's user, not the server.
    pub fn allows_origin(&self, origin: Option<&str>) -> bool {
        let (Some(origin), Some(allowed)) = (origin, &self.allowed_origins) else { return true };
        allowed.iter().any(|one| &**one == "*" || &**one == origin)
    }

    /// What is left of a project that is no longer served: its name, for what still refers to it.
    fn removed(pid: Box<str>) -> Self {
        let (secrets, allowed_origins) = (Vec::new(), Some(Vec::new()));
        Self { pid, secrets, allowed_origins, subscribe: SubscribePolicy::None }
    }

    fn is_same(&self, other: &Self) -> bool {
        // A secret does not show its key, but signs the same text in the same way.
        let signs = |project: &Self| -> Vec<_> {
            project.secrets.iter().map(|secret| sign_hex(secret, &[])).collect()
        };
        self.subscribe == other.subscribe
            && self.allowed_origins == other.allowed_origins
            && signs(self) == signs(other)
    }
}

/// Two projects of one list share a `pid`; the fields are their indexes in the list.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("project '{pid}' is given twice")]
pub struct DuplicatePid {
    pub pid: Box<str>,
    pub first: usize,
    pub second: usize,
}

/// There are more projects than ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "this process has served {MAX_PROJECT_IDS} different projects, removed ones included, and can \
     add no more: restart it"
)]
pub struct TooManyProjects;

/// How the projects differ from those before them, by pid.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProjectChanges {
    pub added: Vec<Box<str>>,
    /// Other secrets, origins or subscribe policy.
    pub changed: Vec<Box<str>>,
    pub removed: Vec<Box<str>>,
}

/// All projects of a node. Look one up by name once, at connect or per request, and keep the
/// [`ProjectId`]. A project keeps its id over reloads, also if it is removed and comes back.
#[derive(Debug, Default)]
pub struct Projects {
    list: Box<[Project]>,
    /// Those that are served. The others were removed, and only their connections that are being
    /// closed refer to them.
    served: Served,
    /// Indexes into `list`, each once. An unkeyed hash is enough: the operator chooses the pids.
    by_pid: HashTable<u32>,
    /// Origins named by any project; `None`: some project accepts any.
    origins: Option<HashSet<Box<str>>>,
}

/// A set of ids, as bits: a worker compares two of them during a reload.
#[derive(Debug, Default)]
struct Served(Vec<u64>);

impl Served {
    fn insert(&mut self, id: usize) {
        if self.0.len() <= id / 64 {
            self.0.resize(id / 64 + 1, 0);
        }
        self.0[id / 64] |= 1 << (id % 64);
    }

    fn contains(&self, id: usize) -> bool {
        self.0.get(id / 64).is_some_and(|word| word & 1 << (id % 64) != 0)
    }

    fn len(&self) -> usize {
        self.0.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// Returns whether it has an id that the other does not have.
    fn exceeds(&self, other: &Self) -> bool {
        let others = other.0.iter().chain(std::iter::repeat(&0));
        self.0.iter().zip(others).any(|(ours, others)| ours & !others != 0)
    }
}

impl Projects {
    pub fn new(list: Vec<Project>) -> Result<Self, DuplicatePid> {
        let mut seen = HashMap::with_capacity(list.len());
        for (second, project) in list.iter().enumerate() {
            if let Some(first) = seen.insert(&project.pid, second) {
                return Err(DuplicatePid { pid: project.pid.clone(), first, second });
            }
        }
        let mut served = Served::default();
        (0..list.len()).for_each(|id| served.insert(id));
        Ok(Self::of(list, served))
    }

    /// Each pid is there once.
    fn of(list: Vec<Project>, served: Served) -> Self {
        let mut by_pid: HashTable<u32> = HashTable::with_capacity(list.len());
        let hash_at = |at: u32| hash_of(list[at as usize].pid.as_bytes());
        for index in 0..list.len() as u32 {
            by_pid.insert_unique(hash_at(index), index, |&at| hash_at(at));
        }
        // A removed project accepts none.
        let takes_any = list.iter().any(|project| project.allows_origin(Some("*")));
        let named = list.iter().filter_map(|project| project.allowed_origins.as_ref()).flatten();
        let origins = (!takes_any).then(|| named.cloned().collect());
        Self { list: list.into(), served, by_pid, origins }
    }

    /// Returns these projects as the successors of `before`: projects of both keep their ids, new
    /// ones get new ids, and ids of removed ones stay theirs.
    pub fn succeed(self, before: &Self) -> Result<(Self, ProjectChanges), TooManyProjects> {
        let mut changes = ProjectChanges::default();
        let mut list: Vec<Project> =
            before.list.iter().map(|old| Project::removed(old.pid.clone())).collect();
        let mut served = Served::default();
        for project in self.list {
            let pid = project.pid.clone();
            let id = match before.id_of(&*pid) {
                Some(ProjectId(id)) => {
                    let id = id as usize;
                    if !before.served.contains(id) {
                        changes.added.push(pid);
                    } else if !before.list[id].is_same(&project) {
                        changes.changed.push(pid);
                    }
                    list[id] = project;
                    id
                }
                None if list.len() >= MAX_PROJECT_IDS => return Err(TooManyProjects),
                None => {
                    changes.added.push(pid);
                    list.push(project);
                    list.len() - 1
                }
            };
            served.insert(id);
        }
        let is_gone = |&id: &usize| before.served.contains(id) && !served.contains(id);
        let gone = (0..before.list.len()).filter(is_gone);
        changes.removed = gone.map(|id| list[id].pid.clone()).collect();
        Ok((Self::of(list, served), changes))
    }

    /// Returns whether a project that `before` served is not served any more.
    pub fn removes_any_of(&self, before: &Self) -> bool {
        before.served.exceeds(&self.served)
    }

    /// Returns whether a project is served that `before` did not serve.
    pub fn adds_any_to(&self, before: &Self) -> bool {
        self.served.exceeds(&before.served)
    }

    /// Whether any project accepts requests from this origin; the cost does not depend on the
    /// number of projects.
    pub fn any_allows_origin(&self, origin: &str) -> bool {
        !self.is_empty() && self.origins.as_ref().is_none_or(|named| named.contains(origin))
    }

    /// Finds a project that is served: for what authorizes a request.
    pub fn find(&self, pid: impl AsRef<[u8]>) -> Option<(ProjectId, &Project)> {
        let id = self.id_of(pid)?;
        self.serves(id).then(|| (id, &self.list[id.0 as usize]))
    }

    /// Finds the id of a project, which may have been removed: for what was accepted before, and
    /// concerns its connections until they are closed.
    pub fn id_of(&self, pid: impl AsRef<[u8]>) -> Option<ProjectId> {
        let pid = pid.as_ref();
        let is_it = |&index: &u32| self.list[index as usize].pid.as_bytes() == pid;
        self.by_pid.find(hash_of(pid), is_it).map(|&index| ProjectId(index))
    }

    /// Returns the project, which may have been removed; `None` for an id of a later snapshot.
    pub fn get(&self, id: ProjectId) -> Option<&Project> {
        self.list.get(id.0 as usize)
    }

    /// Returns whether the project is served.
    pub fn serves(&self, id: ProjectId) -> bool {
        self.served.contains(id.0 as usize)
    }

    /// Returns all projects, removed ones included.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (ProjectId, &Project)> {
        self.list.iter().enumerate().map(|(index, project)| (ProjectId(index as u32), project))
    }

    /// Returns the number of ids: each is less than this.
    pub fn ids(&self) -> usize {
        self.list.len()
    }

    /// Returns the number of projects that are served.
    pub fn len(&self) -> usize {
        self.served.len()
    }

    pub fn is_empty(&self) -> bool {
        self.served.0.iter().all(|word| *word == 0)
    }
}

fn hash_of(pid: &[u8]) -> u64 {
    let mut hasher = SipHasher13::new();
    hasher.write(pid);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn project(pid: &str, origins: Option<&[&str]>) -> Project {
        Project {
            pid: pid.into(),
            secrets: vec![Secret::new(b"s")],
            allowed_origins: origins.map(|list| list.iter().map(|&one| one.into()).collect()),
            subscribe: SubscribePolicy::Any,
        }
    }

    #[test]
    fn found_by_pid_in_any_order() {
        let pids = ["shop", "1", "z", "a", "10", "2"];
        let projects = Projects::new(pids.iter().map(|pid| project(pid, None)).collect()).unwrap();
        assert_eq!(projects.len(), 6);
        for (index, pid) in pids.iter().enumerate() {
            let (id, found) = projects.find(pid).unwrap();
            assert_eq!((id.0 as usize, &*found.pid), (index, *pid));
            assert_eq!(&*projects.get(id).unwrap().pid, *pid);
        }
        assert!(projects.find("").is_none() && projects.find("sho").is_none());
        assert!(projects.get(ProjectId(6)).is_none());
        let seen: Vec<_> = projects.iter().map(|(id, one)| (id.0, &*one.pid)).collect();
        assert_eq!(seen[..2], [(0, "shop"), (1, "1")]);
        assert!(Projects::default().is_empty() && Projects::default().find("1").is_none());
    }

    #[test]
    fn a_pid_given_twice_is_refused() {
        let list = ["b", "a", "b"].map(|pid| project(pid, None)).into();
        let error = Projects::new(list).unwrap_err();
        assert_eq!(error, DuplicatePid { pid: "b".into(), first: 0, second: 2 });
    }

    #[test]
    fn origins_are_exact_a_star_or_absent() {
        let any = project("1", None);
        assert!(any.allows_origin(None) && any.allows_origin(Some("https://a.example")));
        let star = project("1", Some(&["*"]));
        assert!(star.allows_origin(None) && star.allows_origin(Some("null")));
        let one = project("1", Some(&["https://a.example", "https://b.example:8443"]));
        assert!(one.allows_origin(None) && one.allows_origin(Some("https://b.example:8443")));
        for bad in ["http://a.example", "https://a.example:443", "https://x.a.example", "", "*"] {
            assert!(!one.allows_origin(Some(bad)), "{bad}");
        }
        let nobody = project("1", Some(&[]));
        assert!(nobody.allows_origin(None) && !nobody.allows_origin(Some("https://a.example")));
    }

    #[test]
    fn an_origin_that_some_project_takes() {
        let takes = |lists: &[Option<&[&str]>], origin| {
            let list = lists.iter().enumerate();
            let list = list.map(|(pid, origins)| project(&pid.to_string(), *origins)).collect();
            Projects::new(list).unwrap().any_allows_origin(origin)
        };
        let (nobody, one): (Option<&[&str]>, Option<&[&str]>) = (Some(&[]), Some(&["https://a"]));
        assert!(takes(&[nobody, one], "https://a") && !takes(&[nobody, one], "https://b"));
        assert!(takes(&[one, None], "https://b") && takes(&[one, Some(&["*"])], "https://b"));
        assert!(!takes(&[nobody], "*") && !takes(&[], "https://a"));
    }

    #[test]
    fn ids_are_stable_over_reloads() {
        let of = |pids: &[&str]| {
            Projects::new(pids.iter().map(|pid| project(pid, None)).collect()).unwrap()
        };
        let id = |projects: &Projects, pid: &str| projects.find(pid).map(|(id, _)| id.0);
        let first = of(&["a", "b", "c"]);
        let (second, changes) = of(&["d", "c", "a"]).succeed(&first).unwrap();
        let ids = |projects: &Projects| ["a", "b", "c", "d"].map(|pid| id(projects, pid));
        assert_eq!(ids(&second), [Some(0), None, Some(2), Some(3)]);
        assert_eq!((second.len(), second.ids()), (3, 4));
        assert_eq!(
            changes,
            ProjectChanges { added: vec!["d".into()], changed: vec![], removed: vec!["b".into()] }
        );
        assert!(second.removes_any_of(&first) && second.adds_any_to(&first));
        // What was accepted before still finds its project, but nothing can be signed for it.
        let b = second.id_of("b").unwrap();
        assert!(!second.serves(b) && second.get(b).unwrap().secrets.is_empty());
        assert_eq!(&*second.get(b).unwrap().pid, "b");
        let (third, changes) = of(&["b"]).succeed(&second).unwrap();
        assert_eq!(ids(&third), [None, Some(1), None, None]);
        assert_eq!(changes.added, ["b".into()]);
        assert_eq!(changes.removed.len(), 3);
        let (same, changes) = of(&["b"]).succeed(&third).unwrap();
        assert_eq!(changes, ProjectChanges::default());
        assert!(!same.removes_any_of(&third) && !same.adds_any_to(&third));
    }

    #[test]
    fn another_secret_origin_or_policy_is_a_change() {
        let before = Projects::new(vec![project("a", None)]).unwrap();
        let changed = |change: fn(&mut Project)| {
            let mut a = project("a", None);
            change(&mut a);
            Projects::new(vec![a]).unwrap().succeed(&before).unwrap().1.changed.len()
        };
        assert_eq!(changed(|_| {}), 0);
        assert_eq!(changed(|a| a.secrets.push(Secret::new(b"t"))), 1);
        assert_eq!(changed(|a| a.secrets = vec![Secret::new(b"t")]), 1);
        assert_eq!(changed(|a| a.allowed_origins = Some(Vec::new())), 1);
        assert_eq!(changed(|a| a.subscribe = SubscribePolicy::None), 1);
    }

    #[test]
    fn a_removed_projects_origins_are_not_accepted_any_more() {
        let a: &[&str] = &["https://a"];
        let list = vec![project("a", Some(a)), project("b", Some(&["https://b"]))];
        let before = Projects::new(list).unwrap();
        let after = Projects::new(vec![project("b", Some(&["https://b"]))]).unwrap();
        let (after, _) = after.succeed(&before).unwrap();
        assert!(before.any_allows_origin("https://a") && !after.any_allows_origin("https://a"));
        assert!(after.any_allows_origin("https://b"));
    }

    #[test]
    fn debug_shows_no_secret() {
        let mut shop = project("shop", None);
        shop.secrets = vec![Secret::new(b"hunter2")];
        assert!(!format!("{shop:?}").contains("hunter2"));
    }
}
