//! Who must get what, expressed with plain lists and loops. Nothing here knows how the server does
//! it.

use std::collections::BTreeMap;
use ws_cluster::types::Cid;
use ws_cluster::wire::envelope::{CidsBuf, NamesBuf, TargetsBuf};

/// An open connection, as its peer would describe it.
#[derive(Debug, Clone)]
pub struct Person {
    pub worker: usize,
    pub pid: &'static str,
    pub uid: String,
    pub device: String,
    /// In the order of subscription.
    pub tags: Vec<String>,
}

#[derive(Debug, Clone)]
pub struct Push {
    pub id: u64,
    pub pid: &'static str,
    pub uids: Option<Vec<String>>,
    pub cids: Option<Vec<u64>>,
    pub tags: Option<Vec<String>>,
    pub devices: Option<Vec<String>>,
    pub except_cids: Option<Vec<u64>>,
    pub accepted_ms: u64,
    pub ttl_ms: u32,
    /// Its pusher, and its sequence number there.
    pub pusher: usize,
    pub number: u64,
    pub data: String,
}

impl Push {
    pub fn is_expired(&self, now_ms: u64) -> bool {
        self.ttl_ms != 0 && now_ms >= self.accepted_ms + u64::from(self.ttl_ms)
    }

    /// Sorts its selectors and removes duplicates, as a JSON reader does.
    pub fn sort_selectors(&mut self) {
        for names in [&mut self.uids, &mut self.tags, &mut self.devices].into_iter().flatten() {
            names.sort();
            names.dedup();
        }
        for cids in [&mut self.cids, &mut self.except_cids].into_iter().flatten() {
            cids.sort();
            cids.dedup();
        }
    }

    /// Returns its selectors as an envelope takes them.
    pub fn targets(&self) -> TargetsBuf {
        let names = |list: &Option<Vec<String>>| {
            list.as_ref().map(|list| {
                let mut names = NamesBuf::default();
                list.iter().for_each(|name| names.push(name));
                names
            })
        };
        let cids = |list: &Option<Vec<u64>>| {
            list.as_ref().map(|list| {
                let mut cids = CidsBuf::default();
                list.iter().for_each(|cid| cids.push(Cid(*cid)));
                cids
            })
        };
        TargetsBuf {
            uids: names(&self.uids),
            cids: cids(&self.cids),
            tags: names(&self.tags),
            devices: names(&self.devices),
            except_cids: cids(&self.except_cids),
        }
    }

    /// Returns whether it is for a connection with these tags.
    pub fn is_for(&self, cid: u64, person: &Person, tags: &[String]) -> bool {
        let given = |list: &Option<Vec<String>>, ok: &dyn Fn(&String) -> bool| match list {
            None => true,
            Some(list) => list.iter().any(ok),
        };
        person.pid == self.pid
            && given(&self.uids, &|uid| *uid == person.uid)
            && given(&self.devices, &|device| *device == person.device)
            && given(&self.tags, &|tag| tags.contains(tag))
            && self.cids.as_ref().is_none_or(|cids| cids.contains(&cid))
            && !self.except_cids.as_ref().is_some_and(|cids| cids.contains(&cid))
    }
}

/// All connections, by client id.
#[derive(Debug, Default)]
pub struct Model {
    pub people: BTreeMap<u64, Person>,
}

impl Model {
    /// Returns the client ids of `worker` that `push` is for.
    pub fn matching(&self, worker: usize, push: &Push) -> Vec<u64> {
        let here = self.people.iter().filter(|(_, person)| person.worker == worker);
        here.filter(|(cid, person)| push.is_for(**cid, person, &person.tags))
            .map(|(cid, _)| *cid)
            .collect()
    }

    /// Subscribes in order; `None` if that would exceed `max` tags, and then nothing has changed.
    pub fn subscribe(&mut self, cid: u64, tags: &[String], max: usize) -> Option<Vec<String>> {
        let person = self.people.get_mut(&cid)?;
        let mut all = person.tags.clone();
        for tag in tags {
            if !all.contains(tag) {
                all.push(tag.clone());
            }
        }
        if all.len() > max {
            return None;
        }
        person.tags = all.clone();
        Some(all)
    }

    pub fn unsubscribe(&mut self, cid: u64, tags: &[String]) -> Vec<String> {
        let Some(person) = self.people.get_mut(&cid) else { return Vec::new() };
        person.tags.retain(|tag| !tags.contains(tag));
        person.tags.clone()
    }
}
