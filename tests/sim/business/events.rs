//! Events of clients that business servers must receive.

use super::{Told, ip_of};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use ws_cluster::types::EventSet;
use ws_cluster::wire::parcel;

/// An event's time may be that of its worker's last tick.
const STALE_MS: u64 = 200;

/// An event of a client.
#[derive(Debug)]
pub struct Happening {
    pub kind: EventSet,
    pub at_ms: u64,
    /// Its contents as business servers receive them, without the time.
    said: Value,
    /// Business servers of other workers that its worker knew then and that subscribe to it.
    pub told_to: Vec<u64>,
}

/// A client, from its welcome to its end.
#[derive(Debug)]
pub struct History {
    pub pid: &'static str,
    pub uid: String,
    pub device: String,
    /// The node's number and incarnation.
    pub node: u16,
    pub epoch: u64,
    pub happenings: Vec<Happening>,
}

#[derive(Debug, Default)]
pub struct Events {
    pub histories: BTreeMap<u64, History>,
    /// Events since the last look: the client, and the event's sequence number.
    pub fresh: Vec<(u64, usize)>,
}

impl Events {
    /// Adds a client.
    pub fn begin(&mut self, cid: u64, history: History) {
        assert!(self.histories.insert(cid, history).is_none(), "client id {cid} came twice");
    }

    /// `detail`: the name and value of a member.
    pub fn happen(
        &mut self,
        cid: u64,
        kind: EventSet,
        detail: Option<(&str, Value)>,
        at_ms: u64,
        told_to: Vec<u64>,
    ) -> usize {
        let history = self.histories.get_mut(&cid).unwrap();
        let mut said = json!({
            "type": name_of(kind), "client_id": cid.to_string(), "uid": history.uid,
            "device": history.device, "node": history.node,
        });
        if let Some(ip) = ip_of(&history.uid) {
            said["ip"] = json!(ip);
        }
        if let Some((member, value)) = detail {
            said[member] = value;
        }
        history.happenings.push(Happening { kind, at_ms, said, told_to });
        self.fresh.push((cid, history.happenings.len() - 1));
        history.happenings.len() - 1
    }

    pub fn get(&self, cid: u64, index: usize) -> &Happening {
        &self.histories[&cid].happenings[index]
    }

    /// Returns whether a text contains exactly this event.
    pub fn is_told(&self, cid: u64, index: usize, text: &Value) -> bool {
        let happening = self.get(cid, index);
        let mut text = text.clone();
        if happening.kind == EventSet::DISCONNECT && happening.said.get("reason").is_none() {
            // Any of several reasons.
            text.as_object_mut().map(|members| members.remove("reason"));
        }
        let Some(ts) = text.as_object_mut().and_then(|members| members.remove("ts")) else {
            return false;
        };
        let earliest_ms = match happening.kind {
            EventSet::DISCONNECT => happening.at_ms - STALE_MS,
            _ => happening.at_ms,
        };
        let is_then = ts.as_u64().is_some_and(|ts| (earliest_ms..=happening.at_ms).contains(&ts));
        is_then && text == happening.said
    }

    /// Checks events received from another worker, of the given kind. Each had to be sent to other
    /// workers; none arrives twice, or after a later one of its client. `heard`: the next one
    /// expected of each client.
    pub fn hear(
        &self,
        parcel: &parcel::Events<'_>,
        heard: &mut BTreeMap<u64, usize>,
    ) -> Vec<(EventSet, Told)> {
        let mut list = Vec::new();
        for event in parcel.list {
            let (kind, text) = event.unwrap();
            let json: Value = serde_json::from_str(text).unwrap();
            let found = self.find(&json, |cid| heard.get(&cid).copied().unwrap_or(0));
            let found = found.unwrap_or_else(|| panic!("{text} is twice, late, or not true"));
            let (cid, index) = found;
            heard.insert(cid, index + 1);
            assert_eq!(kind, self.get(cid, index).kind);
            list.push((kind, Told::Client(cid, index)));
        }
        list
    }

    /// Finds the event, among those that had to be sent elsewhere, that a text contains; not one
    /// before `from`.
    pub fn find(&self, text: &Value, from: impl Fn(u64) -> usize) -> Option<(u64, usize)> {
        let cid: u64 = text["client_id"].as_str()?.parse().ok()?;
        let count = self.histories.get(&cid)?.happenings.len();
        let is_it = |index: &usize| {
            !self.get(cid, *index).told_to.is_empty() && self.is_told(cid, *index, text)
        };
        (from(cid)..count).find(is_it).map(|index| (cid, index))
    }
}

fn name_of(kind: EventSet) -> &'static str {
    match kind {
        EventSet::CONNECT => "connect",
        EventSet::DISCONNECT => "disconnect",
        EventSet::SUBSCRIBE => "subscribe",
        EventSet::UNSUBSCRIBE => "unsubscribe",
        other => panic!("{other:?} is nothing that happens to a client"),
    }
}
