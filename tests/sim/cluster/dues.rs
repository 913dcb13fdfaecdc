//! What clients and business servers must have received by now, if nothing prevented it.

use super::Cluster;
use super::members::KNOWN_AFTER_MS;
use super::node::Node;
use super::servers::Socket;
use crate::business::requests::Request;
use ws_cluster::types::{EventSet, NodeId, SnowflakeClock};
use ws_cluster::wire::parcel::Parcel;
use ws_cluster::wire::publication::ChannelNames;

/// On a queue that is up, everything arrives within this time.
const ARRIVED_MS: u64 = 1_500;
const LOOK_AGAIN_MS: u64 = 200;

/// An event that a business server must receive.
pub struct Due {
    look_ms: u64,
    client: u64,
    index: usize,
    server: u64,
}

enum Verdict {
    /// Something prevented it.
    Excused,
    NotYet,
    Judge,
}

impl Cluster {
    /// Plans that events of clients reach every business server known to their worker, whatever
    /// happens to their node, as long as it goes on and nothing happens to the business server's
    /// node.
    pub fn plan_events(&mut self) {
        for (client, index) in std::mem::take(&mut self.world.business.events.fresh) {
            let happening = self.world.business.events.get(client, index);
            for &server in &happening.told_to {
                let Some((listener, socket)) = self.socket(server) else { continue };
                let is_welcome = socket.server.welcomed_ms.is_some_and(|ms| ms <= happening.at_ms);
                if is_welcome && listener.is_clean_since(happening.at_ms) {
                    let look_ms = happening.at_ms + ARRIVED_MS;
                    self.dues.push(Due { look_ms, client, index, server });
                }
            }
        }
    }

    pub fn check_dues(&mut self) {
        let now_ms = self.world.now_ms;
        for mut due in std::mem::take(&mut self.dues) {
            let verdict = if due.look_ms > now_ms { Verdict::NotYet } else { self.judge(&due) };
            match verdict {
                Verdict::Excused => {}
                Verdict::NotYet => {
                    if due.look_ms <= now_ms {
                        due.look_ms = now_ms + LOOK_AGAIN_MS;
                    }
                    self.dues.push(due);
                }
                Verdict::Judge => {
                    let Due { client, index, server, .. } = due;
                    let has_it = self
                        .socket(server)
                        .is_some_and(|(_, socket)| socket.server.got.contains(&(client, index)));
                    let happening = self.world.business.events.get(client, index);
                    assert!(has_it, "business server {server} was never told {happening:?}");
                    self.world.business.checked += 1;
                }
            }
        }
    }

    fn judge(&self, due: &Due) -> Verdict {
        let (now_ms, business) = (self.world.now_ms, &self.world.business);
        let Due { client, index, server, .. } = *due;
        let at_ms = business.events.get(client, index).at_ms;
        let Some((listener, socket)) = self.socket(server) else { return Verdict::Excused };
        if !listener.is_clean_since(at_ms) || self.world.refused_ms >= at_ms {
            return Verdict::Excused;
        }
        let history = &business.events.histories[&client];
        let (node, epoch) = (usize::from(history.node) - 7, history.epoch);
        let teller = self.nodes[node].as_ref().ok().filter(|node| node.home.epoch == epoch);
        let settled_ms = now_ms - ARRIVED_MS;
        let has_told = match (teller, self.departures.get(&(node, epoch))) {
            (Some(teller), _) => teller.is_clean_since(settled_ms),
            (None, Some((left_ms, true))) => *left_ms <= settled_ms,
            (None, _) => return Verdict::Excused,
        };
        let is_calm = self.world.trouble_ms < settled_ms;
        let is_read = !socket.is_blocked && socket.blocked_ms < settled_ms;
        if has_told && is_calm && is_read { Verdict::Judge } else { Verdict::NotYet }
    }

    /// Returns a connected business server.
    fn socket(&self, server: u64) -> Option<(&Node, &Socket)> {
        let profile = self.world.business.profiles.get(&server)?;
        let node = self.nodes[profile.node].as_ref().ok()?;
        let socket = node.workers.get(profile.worker)?.servers.get(&server)?;
        (node.home.epoch == profile.epoch && !socket.is_closing).then_some((node, socket))
    }

    /// Checks requests that were refused: a refusal needs a cause.
    pub fn judge_answers(&mut self) {
        let business = &self.world.business;
        for number in std::mem::take(&mut self.world.answered) {
            let request = &business.requests.all[number];
            let told = request.told.as_deref().unwrap();
            let Some(&(server, asked_ms)) = request.asked.last() else { continue };
            let Some((holder, socket)) = self.holder(server) else { continue };
            let Ok(node) = &self.nodes[request.node] else { continue };
            // Within a node nothing goes through Redis.
            let is_near = request.node == holder.home.node;
            let is_well = node.is_clean_since(request.sent_ms)
                && holder.is_clean_since(request.sent_ms)
                && self.world.trouble_ms < request.sent_ms;
            if !is_near && !is_well {
                continue;
            }
            if told.contains(r#""msg":"server gone""#) {
                assert_eq!(request.answer, None, "{server} answered {request:?} before it went");
                let may_have_moved = self.another_ended_unseen(request, server);
                if request.is_kept && request.asked.len() == 1 && !may_have_moved {
                    let other = self.another(server, node);
                    assert_eq!(other, None, "instead of {server} none is asked: {request:?}");
                }
            }
            if !told.contains(r#""msg":"timeout""#) {
                continue;
            }
            let end_ms = request.sent_ms + business.requests.timeout_ms;
            let was_late = |since_ms: u64| since_ms + ARRIVED_MS >= end_ms;
            if let Some((_, answered_ms)) = request.answer {
                assert!(was_late(answered_ms), "{server} answered in time: {request:?}");
            } else if let Some(&ended_ms) = business.ended.get(&server) {
                // Another server of the client's worker may have been assigned the request and have
                // kept it, too.
                let has_moved = request.is_kept && is_near;
                assert!(has_moved || was_late(ended_ms), "{server} was gone: {request:?}");
            } else if request.written.is_none() {
                let was_slow = socket.is_none_or(|socket| socket.blocked_ms >= asked_ms);
                assert!(was_slow || was_late(asked_ms), "{server} never got {request:?}");
            }
            self.judged += 1;
        }
    }

    /// Returns whether another business server of the client's worker ended meanwhile: the request
    /// may have been assigned to it instead, without an observable parcel, and have been kept
    /// there, too.
    fn another_ended_unseen(&self, request: &Request, server: u64) -> bool {
        let business = &self.world.business;
        business.ended.iter().any(|(cid, ended_ms)| {
            let one = &business.profiles[cid];
            let is_near =
                (one.node, one.epoch, one.worker) == (request.node, request.epoch, request.worker);
            is_near && one.pid == request.pid && *cid != server && *ended_ms >= request.sent_ms
        })
    }

    /// Returns another business server that a node knew when this one ended, for the same requests.
    fn another(&self, server: u64, node: &Node) -> Option<u64> {
        let business = &self.world.business;
        let known_ms = business.ended.get(&server)? - KNOWN_AFTER_MS;
        let pid = business.profiles[&server].pid;
        let is_known = |holder: &Node| {
            let are_clean = node.is_clean_since(known_ms) && holder.is_clean_since(known_ms);
            let is_near = holder.home.node == node.home.node;
            is_near || are_clean && self.world.trouble_ms < known_ms
        };
        let all = self.workers().filter(|(holder, _)| is_known(holder));
        let mut sockets = all.flat_map(|(_, core)| core.servers.values());
        let other = sockets.find(|socket| {
            let takes = socket.server.hears(pid, EventSet::REQUEST);
            let was_welcome = socket.server.welcomed_ms.is_some_and(|ms| ms < known_ms);
            takes && was_welcome && !socket.is_closing
        });
        other.map(|socket| socket.server.profile.cid)
    }

    /// Returns the node of a business server, in the same incarnation, and its socket if it is
    /// connected.
    fn holder(&self, server: u64) -> Option<(&Node, Option<&Socket>)> {
        let profile = self.world.business.profiles.get(&server)?;
        let node = self.nodes[profile.node].as_ref().ok()?;
        let socket = node.workers.get(profile.worker)?.servers.get(&server);
        (node.home.epoch == profile.epoch).then_some((node, socket))
    }

    /// Checks that everything published besides pushes goes to channels with subscribers, and that
    /// no event is published that nobody elsewhere subscribes to.
    pub fn check_parcel(&self, channel: &[u8], bytes: &[u8]) {
        let names = &self.world.setup.names;
        let mut expected = Vec::new();
        let of_holder = |names: &ChannelNames, out: &mut Vec<u8>, pid: &str, cid: u64| {
            let node: NodeId = SnowflakeClock::node_of(cid);
            names.node_of_project(out, pid, node);
        };
        match Parcel::decode(bytes).unwrap() {
            Parcel::Request(request) => {
                of_holder(names, &mut expected, request.pid, request.server.0);
            }
            Parcel::Response(response) => {
                of_holder(names, &mut expected, response.pid, response.client.0);
            }
            Parcel::Cancel(cancel) => of_holder(names, &mut expected, cancel.pid, cancel.server.0),
            Parcel::Events(events) => {
                names.events(&mut expected, events.pid);
                for event in events.list {
                    let (_, text) = event.unwrap();
                    let json = serde_json::from_str(text).unwrap();
                    let found = self.world.business.events.find(&json, |_| 0);
                    assert!(found.is_some(), "{text} is published, and nobody wants to hear it");
                }
            }
        }
        assert_eq!(channel, expected, "the channel of a parcel");
    }
}
