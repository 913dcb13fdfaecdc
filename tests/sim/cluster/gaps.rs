//! The number of messages that a node must have counted as missed, computed with plain maps.
//!
//! A broker begins to count an origin's incarnation on a channel with the first sequence number
//! that it receives from it, the baseline, and forgets it when it leaves the channel. Every later
//! number is one of three:
//! - it arrived as a message or a Void before any higher one: not missed. A Void stands for a
//!   message whose pusher was told that its outcome is unknown; it uses the number up;
//! - a higher one arrived before it, or a message that its node published later on any channel:
//!   missed once, even if it arrives later (then nobody gets it). It may be an accepted message,
//!   one of unknown outcome, a Void that was lost itself, or a number that was refused and could
//!   not be taken back, because later ones were in flight or because it had been sent before and
//!   perhaps published: the one false gap that is allowed;
//! - it is above all that arrived: not yet missed. After a minute with all links up there is none:
//!   the broker has received the highest number that Redis was ever sent, in a message, a Void or a
//!   tail, of every origin that still lives.

use std::collections::{BTreeMap, BTreeSet};
use ws_cluster::types::NodeId;
use ws_cluster::wire::envelope::{EnvelopeKind, Header};

/// An incarnation of a node, on a channel.
pub type Origin = (Vec<u8>, NodeId, u64);
pub type Missed = BTreeMap<(NodeId, String), u64>;

/// What was sent to Redis.
#[derive(Default)]
pub struct Published {
    /// Sequence numbers of executed messages and Voids, and of refused ones.
    done: BTreeMap<Origin, BTreeSet<u64>>,
    refused: BTreeMap<Origin, BTreeSet<u64>>,
    highest: BTreeMap<Origin, u64>,
}

impl Published {
    pub fn note(&mut self, channel: &[u8], header: &Header, is_refused: bool) {
        let origin = (channel.to_vec(), header.origin, header.epoch);
        match (header.kind, is_refused) {
            (EnvelopeKind::Canary | EnvelopeKind::Member, _) | (EnvelopeKind::Tail, true) => return,
            (_, true) => {
                self.refused.entry(origin).or_default().insert(header.seq);
                return;
            }
            (EnvelopeKind::Tail, false) => {}
            (_, false) => {
                self.done.entry(origin.clone()).or_default().insert(header.seq);
            }
        }
        let highest = self.highest.entry(origin).or_default();
        *highest = header.seq.max(*highest);
    }

    /// Checks that no number is skipped without cause.
    pub fn check(&self) {
        for (origin, highest) in &self.highest {
            for seq in 1..=*highest {
                let has = |map: &BTreeMap<Origin, BTreeSet<u64>>| {
                    map.get(origin).is_some_and(|set| set.contains(&seq))
                };
                assert!(
                    has(&self.done) || has(&self.refused),
                    "number {seq} of {highest} on {:?} of {} was never sent",
                    String::from_utf8_lossy(&origin.0),
                    origin.1
                );
            }
        }
    }
}

struct Known {
    base: u64,
    last: u64,
    /// Messages and Voids above the baseline that were the highest on arrival.
    arrived: u64,
}

#[derive(Default)]
struct Channel {
    /// Some for two reasons: client ids of a project's clients and of its business servers.
    workers: Vec<usize>,
    origins: BTreeMap<(NodeId, u64), Known>,
}

/// What one incarnation of a node has received.
#[derive(Default)]
pub struct Heard {
    channels: BTreeMap<Vec<u8>, Channel>,
    /// The latest message of each node's incarnation, over all channels.
    orders: BTreeMap<(NodeId, u64), u64>,
    /// On channels that it has left.
    left: Missed,
}

impl Heard {
    pub fn join(&mut self, channel: &[u8], worker: usize) {
        self.channels.entry(channel.to_vec()).or_default().workers.push(worker);
    }

    pub fn leave(&mut self, name: &[u8], worker: usize) {
        let Some(channel) = self.channels.get_mut(name) else { return };
        let at = channel.workers.iter().position(|one| *one == worker).expect("it was joined");
        channel.workers.swap_remove(at);
        if channel.workers.is_empty() {
            let channel = self.channels.remove(name).unwrap();
            for ((origin, _), known) in channel.origins {
                add(&mut self.left, origin, name, known.last - known.base - known.arrived);
            }
        }
    }

    pub fn len(&self) -> usize {
        self.channels.len()
    }

    /// Records an arrival. Returns whether it must be passed on.
    pub fn arrive(&mut self, channel: &[u8], header: &Header) -> bool {
        let Some(channel) = self.channels.get_mut(channel) else { return false };
        if matches!(header.kind, EnvelopeKind::Canary | EnvelopeKind::Member) {
            return false;
        }
        let incarnation = (header.origin, header.epoch);
        let known = channel.origins.get(&incarnation).map(|known| known.last);
        let is_new = known.is_none_or(|last| header.seq > last);
        if !is_new {
            return false;
        }
        let is_tail = header.kind == EnvelopeKind::Tail;
        let mut is_late = false;
        if !is_tail {
            // An incarnation that another one has followed is too old to be late.
            let is_latest =
                self.orders.keys().all(|one| one.0 != incarnation.0 || one.1 <= incarnation.1);
            let order = self.orders.entry(incarnation).or_default();
            is_late = is_latest && header.order <= *order;
            *order = header.order.max(*order);
        }
        let is_base = known.is_none();
        let known = channel.origins.entry(incarnation).or_insert(Known {
            base: header.seq - u64::from(is_late),
            last: header.seq,
            arrived: 0,
        });
        known.last = header.seq;
        known.arrived += u64::from(!is_base && !is_tail && !is_late);
        !is_late && header.kind == EnvelopeKind::Message
    }

    /// Returns what must be counted by now; `quiet`: once nothing is in flight, what was published,
    /// and the incarnations that go on.
    pub fn missed(&self, quiet: Option<(&Published, &[(NodeId, u64)])>) -> Missed {
        let mut missed = self.left.clone();
        for (name, channel) in &self.channels {
            for ((origin, epoch), known) in &channel.origins {
                let mut last = known.last;
                if let Some((published, alive)) = quiet
                    && alive.contains(&(*origin, *epoch))
                {
                    last = published.highest[&(name.clone(), *origin, *epoch)];
                }
                add(&mut missed, *origin, name, last - known.base - known.arrived);
            }
        }
        missed
    }
}

fn add(all: &mut Missed, origin: NodeId, channel: &[u8], missed: u64) {
    if missed > 0 {
        let key = (origin, String::from_utf8_lossy(channel).into_owned());
        *all.entry(key).or_default() += missed;
    }
}
