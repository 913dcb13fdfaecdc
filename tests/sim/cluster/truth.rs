//! What was pushed, what Redis did with it, and what was reported to the pushers.

use super::gaps::Published;
use super::redis::Execution;
use super::{Log, Push};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use ws_cluster::state::broker::Outcome;
use ws_cluster::state::idempotency::key_hash;
use ws_cluster::wire::envelope::EnvelopeKind;

/// Maximum time from a push to its answer: the queue's timeout, a tick, and the ways between
/// threads.
pub const QUEUE_TIMEOUT_MS: u64 = 2_000;
const ANSWER_MS: u64 = QUEUE_TIMEOUT_MS + 300;
/// Redis executes a push within this time, unless something prevents it.
const TAKEN_MS: u64 = 500;
/// Maximum time from the pusher's answer until every client has what was published.
const SETTLED_AFTER_MS: u64 = 600;

/// Clients that must get a push, unless they leave or unsubscribe, or their node is cut off.
pub type Certain = BTreeMap<(usize, u64), u64>;

/// One push.
pub struct Record {
    pub push: Rc<Push>,
    /// Its idempotency key, by number.
    pub group: Option<usize>,
    pub node: usize,
    pub epoch: u64,
    pub begun_ms: u64,
    pub outcome: Option<(Outcome, u64)>,
    pub is_told: bool,
    /// Number of executions of each of its commands.
    pub parts: BTreeMap<Vec<u8>, u32>,
    /// Number of executions of a user's command on the project's channel instead.
    pub widened: u32,
    /// By node and client id: the client's number of `unsubscribe`s at that time.
    pub certain: Certain,
    /// Redis refused it. If the answer was lost and it was sent again, a later number may have gone
    /// out before it: then it counts as missed where that arrived.
    pub was_refused: bool,
}

/// Pushes with the same key.
pub struct Group {
    pub key: [u8; 16],
    pub push: Rc<Push>,
    /// Clients that were certain to get each of them, and when the first began.
    pub certain: Option<Certain>,
    pub first_ms: Option<u64>,
}

#[derive(Default)]
pub struct Truth {
    pub records: BTreeMap<u64, Record>,
    pub groups: Vec<Group>,
    /// Pushes that wait for their outcome, by node, epoch and ticket.
    waiting: BTreeMap<(usize, u64, u32), u64>,
    settling: VecDeque<(u64, u64)>,
    pub published: Published,
    next_ticket: u32,
    /// By outcome.
    pub outcomes: [u64; 6],
    pub checked: u64,
}

impl Truth {
    /// Begins a push. Returns its ticket.
    pub fn begin(&mut self, mut record: Record) -> u32 {
        self.next_ticket += 1;
        if let Some(group) = record.group {
            let group = &mut self.groups[group];
            group.first_ms.get_or_insert(record.begun_ms);
            let both = |client: &(usize, u64), unsubscribes: &u64| {
                record.certain.get(client) == Some(unsubscribes)
            };
            let certain = group.certain.get_or_insert_with(|| record.certain.clone());
            certain.retain(|client, unsubscribes| both(client, unsubscribes));
            record.certain = certain.clone();
        }
        let ticket = (record.node, record.epoch, self.next_ticket);
        self.waiting.insert(ticket, record.push.id);
        assert!(self.records.insert(record.push.id, record).is_none(), "a message id came twice");
        self.next_ticket
    }

    pub fn new_group(&mut self, push: &Push) -> usize {
        let number = self.groups.len();
        let key = key_hash(push.pid, &number.to_string());
        let push = Rc::new(push.clone());
        self.groups.push(Group { key, push, certain: None, first_ms: None });
        number
    }

    /// Records a broker's outcome of a push; its pusher is notified a little later.
    pub fn decide(&mut self, node: usize, epoch: u64, ticket: u32, outcome: Outcome, now_ms: u64) {
        let id = self.waiting[&(node, epoch, ticket)];
        let record = self.records.get_mut(&id).unwrap();
        assert!(record.outcome.is_none(), "push {id} has two outcomes");
        record.outcome = Some((outcome, now_ms));
        self.outcomes[outcome as usize] += 1;
        let unpublished = record.parts.values().filter(|times| **times == 0).count();
        match outcome {
            Outcome::Accepted => {
                let is_published = unpublished <= record.widened as usize;
                assert!(is_published, "push {id} was accepted, and never published");
                self.settling.push_back((now_ms + SETTLED_AFTER_MS, id));
            }
            Outcome::Unreachable | Outcome::Overloaded | Outcome::Refused | Outcome::TooLarge => {
                let is_untouched = unpublished == record.parts.len() && record.widened == 0;
                assert!(is_untouched, "push {id} is {outcome:?}, and was published");
            }
            Outcome::Unknown => {}
        }
    }

    pub fn tell(&mut self, node: usize, epoch: u64, ticket: u32) {
        let id = self.waiting.remove(&(node, epoch, ticket));
        self.records.get_mut(&id.expect("it is told twice")).unwrap().is_told = true;
    }

    /// Handles a command that Redis executed.
    pub fn handle_execution(&mut self, execution: &Execution, log: &mut Log) {
        let Execution { channel, header, is_refused, .. } = execution;
        self.published.note(channel, header, *is_refused);
        if matches!(header.kind, EnvelopeKind::Canary | EnvelopeKind::Member) {
            return;
        }
        let (kind, seq, name) = (header.kind, header.seq, String::from_utf8_lossy(channel));
        let late = if execution.is_late { ", late" } else { "" };
        let refused = if *is_refused { ", refused" } else { "" };
        log.note(format!(
            "redis: {kind:?} {seq} of {} on {name} {}{late}{refused}",
            header.origin, header.id
        ));
        if header.kind == EnvelopeKind::Tail {
            return;
        }
        if execution.parcel.is_some() {
            return;
        }
        let id = header.id.0;
        let Some(record) = self.records.get_mut(&id) else {
            // A request or an answer that waited too long.
            return assert_eq!(header.kind, EnvelopeKind::Void, "nobody pushed this");
        };
        record.was_refused |= *is_refused;
        if *is_refused {
            return;
        }
        assert_eq!((record.node, record.epoch), (execution.owner.node, header.epoch));
        if header.kind == EnvelopeKind::Void {
            let is_unknown = matches!(record.outcome, Some((Outcome::Unknown, _)));
            assert!(is_unknown, "push {id} is taken back, and its pusher was not told");
            return;
        }
        match record.parts.get_mut(channel) {
            Some(times) => *times += 1,
            None => {
                let is_projects =
                    |user: &Vec<u8>| user.starts_with(&[channel, &b":u:"[..]].concat());
                assert!(record.parts.keys().any(is_projects), "not a channel of this push");
                record.widened += 1;
            }
        }
        match record.outcome {
            Some((Outcome::Unknown, told_ms)) => assert!(
                execution.opened_ms <= told_ms,
                "push {id} is sent again after its pusher was told that it is unknown"
            ),
            Some((Outcome::Accepted, _)) | None => {}
            Some((outcome, _)) => panic!("push {id} is {outcome:?}, and was published"),
        }
    }

    /// Returns whether a node has a backlog: Redis took one of its pushes late, and with it
    /// everything that the node sends.
    pub fn is_from_backlog(&self, execution: &Execution, now_ms: u64) -> bool {
        let record = self.records.get(&execution.header.id.0);
        let is_behind = record.is_some_and(|record| is_behind(record.begun_ms, now_ms));
        is_behind && !execution.is_late
    }

    /// Checks that nobody waits longer than is allowed.
    pub fn check_waiting(&self, now_ms: u64) {
        for id in self.waiting.values() {
            let waited_ms = now_ms - self.records[id].begun_ms;
            assert!(waited_ms <= ANSWER_MS, "push {id} has no outcome after {waited_ms} ms");
        }
    }

    /// Returns whether some push at a node has no outcome.
    pub fn is_waiting(&self, node: usize) -> bool {
        self.waiting.keys().any(|(other, ..)| *other == node)
    }

    /// The node died: its pushers will never know.
    pub fn forget_waiting(&mut self, node: usize) {
        self.waiting.retain(|(other, ..), _| *other != node);
    }

    /// Returns the next accepted push that must have reached everybody by now.
    pub fn next_settled(&mut self, now_ms: u64) -> Option<u64> {
        let (due_ms, _) = self.settling.front()?;
        let is_due = *due_ms <= now_ms;
        self.settling.pop_front_if(|_| is_due).map(|(_, id)| id)
    }
}

/// Whether a push was taken late, be it the first time or once more after a reconnect.
fn is_behind(begun_ms: u64, taken_ms: u64) -> bool {
    begun_ms + TAKEN_MS < taken_ms
}

/// Redis stood still, or a node's links were lost, while the output limit was small. What the node
/// held back meanwhile went out a window at a time, and an event in it counted as lost: all had
/// been well for long enough.
#[test]
fn a_backlog_outlasts_what_made_it() {
    let begun_ms = 2_000;
    assert!(!is_behind(begun_ms, begun_ms + TAKEN_MS));
    assert!(is_behind(begun_ms, begun_ms + TAKEN_MS + 1));
}
