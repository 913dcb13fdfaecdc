//! The connections that opened last, for the live page.

use crate::state::projects::ProjectId;
use crate::types::{Cid, WallMs};
use compact_str::CompactString;
use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

/// Connections remembered for each worker.
const KEPT: usize = 8;

/// A connection as it opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecentConnect {
    pub at: WallMs,
    pub cid: Cid,
    pub project: ProjectId,
    pub uid: CompactString,
    /// The client's address; `None` if it is unknown.
    pub ip: Option<IpAddr>,
}

/// The last connections of one worker, the oldest first. It does not wait for readers: what opens
/// while one looks is left out.
#[derive(Debug, Default)]
pub struct RecentConnects(Mutex<VecDeque<RecentConnect>>);

impl RecentConnects {
    pub fn add(&self, connect: RecentConnect) {
        let Ok(mut list) = self.0.try_lock() else { return };
        if list.len() == KEPT {
            list.pop_front();
        }
        list.push_back(connect);
    }

    pub fn list(&self) -> Vec<RecentConnect> {
        let list = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        list.iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_are_kept() {
        let recent = RecentConnects::default();
        for number in 0..20 {
            let (at, uid) = (WallMs::new(number), CompactString::new("u"));
            let (cid, project) = (Cid(number), ProjectId(0));
            recent.add(RecentConnect { at, cid, project, uid, ip: None });
        }
        let kept: Vec<u64> = recent.list().iter().map(|one| one.cid.0).collect();
        assert_eq!(kept, (20 - KEPT as u64..20).collect::<Vec<_>>());
    }
}
