//! The projects (tenants) that a node serves: an immutable snapshot, replaced as a whole on reload.

use crate::wire::sign::Secret;
use hashbrown::HashTable;
use siphasher::sip::SipHasher13;
use std::collections::HashSet;
use std::hash::Hasher;

/// A project's index in one [`Projects`] snapshot, in configuration order.
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
}

/// Two projects of one list share a `pid`; the fields are their indexes in the list.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("project '{pid}' is given twice")]
pub struct DuplicatePid {
    pub pid: Box<str>,
    pub first: usize,
    pub second: usize,
}

/// All projects of a node. Look one up by name once, at connect or per request, and keep the
/// [`ProjectId`]: it is an index that stays valid for this snapshot.
#[derive(Debug, Default)]
pub struct Projects {
    list: Box<[Project]>,
    /// Indexes into `list`, each once. An unkeyed hash is enough: the operator chooses the pids.
    by_pid: HashTable<u32>,
    /// Origins named by any project; `None`: some project accepts any.
    origins: Option<HashSet<Box<str>>>,
}

impl Projects {
    pub fn new(list: Vec<Project>) -> Result<Self, DuplicatePid> {
        let mut by_pid: HashTable<u32> = HashTable::with_capacity(list.len());
        for (second, project) in list.iter().enumerate() {
            let pid = &project.pid;
            let (hash, is_it) =
                (hash_of(pid.as_bytes()), |&at: &u32| list[at as usize].pid == *pid);
            if let Some(&first) = by_pid.find(hash, is_it) {
                return Err(DuplicatePid { pid: pid.clone(), first: first as usize, second });
            }
            let hash_at = |&at: &u32| hash_of(list[at as usize].pid.as_bytes());
            by_pid.insert_unique(hash, second as u32, hash_at);
        }
        let takes_any = list.iter().any(|project| project.allows_origin(Some("*")));
        let named = list.iter().filter_map(|project| project.allowed_origins.as_ref()).flatten();
        let origins = (!takes_any).then(|| named.cloned().collect());
        Ok(Self { list: list.into(), by_pid, origins })
    }

    /// Whether any project accepts requests from this origin; the cost does not depend on the
    /// number of projects.
    pub fn any_allows_origin(&self, origin: &str) -> bool {
        !self.is_empty() && self.origins.as_ref().is_none_or(|named| named.contains(origin))
    }

    pub fn find(&self, pid: impl AsRef<[u8]>) -> Option<(ProjectId, &Project)> {
        let pid = pid.as_ref();
        let is_it = |&index: &u32| self.list[index as usize].pid.as_bytes() == pid;
        let index = *self.by_pid.find(hash_of(pid), is_it)?;
        Some((ProjectId(index), &self.list[index as usize]))
    }

    /// Returns the project; `None` for an id of another, larger snapshot.
    pub fn get(&self, id: ProjectId) -> Option<&Project> {
        self.list.get(id.0 as usize)
    }

    pub fn iter(&self) -> impl ExactSizeIterator<Item = (ProjectId, &Project)> {
        self.list.iter().enumerate().map(|(index, project)| (ProjectId(index as u32), project))
    }

    pub fn len(&self) -> usize {
        self.list.len()
    }

    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
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
    fn debug_shows_no_secret() {
        let mut shop = project("shop", None);
        shop.secrets = vec![Secret::new(b"hunter2")];
        assert!(!format!("{shop:?}").contains("hunter2"));
    }
}
