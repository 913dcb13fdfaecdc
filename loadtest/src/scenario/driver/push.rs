//! What the driver pushes in a phase, and to which connections.

use std::sync::Arc;

use super::{Alone, Driver, PushRecord};
use crate::http::write_decimal;
use crate::message::Stamp;
use crate::scenario::ledger::Bulk;
use crate::scenario::plan::Selector;
use crate::scenario::receiver::{BULK, UNICAST};
use crate::scenario::shared::Shared;
use crate::sys;

/// Pushes of one kind written in one turn.
const AT_ONCE: usize = 64;

impl Driver<'_> {
    /// Sends the pushes that are due.
    pub(super) fn push(&mut self, now: u64) {
        self.bulk.refresh(&self.reactor, now);
        self.unicast.refresh(&self.reactor, now);
        if self.phase().cut.is_some() && !self.shared.all_entered(self.current) {
            // Otherwise the first push would coincide with the cut, and who must receive it would
            // be undefined.
            return;
        }
        self.push_alone(now);
        for _ in 0..AT_ONCE {
            let Some(pace) = self.project.as_mut().filter(|pace| pace.next_ns() <= now) else {
                break;
            };
            if !self.bulk.can_send() {
                break;
            }
            let intended_ns = pace.next_ns();
            pace.take();
            self.push_bulk(intended_ns, None, false);
        }
        for _ in 0..AT_ONCE {
            let Some(pace) = self.tagged.as_mut().filter(|pace| pace.next_ns() <= now) else {
                break;
            };
            if !self.bulk.can_send() {
                break;
            }
            let intended_ns = pace.next_ns();
            pace.take();
            let population = &self.shared.scenario.population;
            let selector = self.phase().traffic.selector(
                &population.audience,
                population.connections,
                self.next_tagged,
            );
            self.next_tagged += 1;
            self.push_bulk(intended_ns, Some(Arc::new(selector)), false);
        }
        for _ in 0..AT_ONCE {
            let Some(pace) = self.single.as_mut().filter(|pace| pace.next_ns() <= now) else {
                break;
            };
            if !self.unicast.can_send() {
                break;
            }
            let intended_ns = pace.next_ns();
            pace.take();
            self.push_unicast(intended_ns);
        }
        self.bulk.flush(now);
        self.unicast.flush(now);
    }

    /// Of the pushes sent one after the other, sends the next once all connections have the last.
    fn push_alone(&mut self, now: u64) {
        if let Some(alone) = self.alone {
            let push = &self.pushes[alone.seq as usize];
            let ended = self.shared.sum(|crew| &crew.ended) - alone.ended;
            let has_all = self.shared.arrived(alone.seq) + ended >= alone.open;
            let is_late = now.saturating_sub(push.sent_ns) > self.shared.common.timeout_ns;
            let is_answered = push.answer.is_some();
            if !(is_answered && has_all || is_late) {
                return;
            }
            self.alone = None;
            // If nobody has left meanwhile, everything that should arrive has arrived.
            if has_all && ended == 0 && self.settled == alone.seq as usize && is_answered {
                self.settle_next();
            }
        }
        if self.left > 0 && self.bulk.can_send() {
            self.left -= 1;
            let (open, ended) = (self.shared.open(), self.shared.sum(|crew| &crew.ended));
            let seq = self.push_bulk(sys::now_ns(), None, true);
            self.alone = Some(Alone { seq, open, ended });
        }
    }

    fn push_bulk(&mut self, intended_ns: u64, selector: Option<Arc<Selector>>, alone: bool) -> u32 {
        let shared = self.shared;
        let sent_ns = sys::now_ns();
        let phase = self.current as u16;
        let to_all = selector.is_none();
        let seq = shared.ledger.send(Bulk { sent_ns, phase, selector: selector.clone() });
        let stamp = Stamp { run: shared.run, seq, at_ns: intended_ns, pusher: BULK };
        self.bulk.write(stamp, sent_ns, |body| {
            if let Some(selector) = &selector {
                write_selector(shared, selector, body);
            }
        });
        let push = PushRecord { phase, to_all, alone, sent_ns, answered_ns: sent_ns, answer: None };
        self.pushes.push(push);
        seq
    }

    fn push_unicast(&mut self, intended_ns: u64) {
        let shared = self.shared;
        let seq = self.next_unicast;
        self.next_unicast += 1;
        let target = shared.target_of(seq);
        let stamp = Stamp { run: shared.run, seq, at_ns: intended_ns, pusher: UNICAST };
        self.records[self.current].unicasts += 1;
        self.unicast.write(stamp, sys::now_ns(), |body| {
            body.extend_from_slice(b"\"uids\":[");
            write_uid(shared, target, body);
            body.extend_from_slice(b"],");
        });
    }
}

/// Writes the members that select the receivers, each with a trailing comma.
fn write_selector(shared: &Shared<'_>, selector: &Selector, body: &mut Vec<u8>) {
    let audience = &shared.scenario.population.audience;
    if !selector.tags.is_empty() {
        body.extend_from_slice(b"\"tags\":[");
        for (i, tag) in selector.tags.iter().enumerate() {
            body.extend_from_slice(if i > 0 { b",\"" } else { b"\"" });
            body.extend_from_slice(audience.tag_prefix.as_bytes());
            write_decimal(u64::from(*tag), body);
            body.push(b'"');
        }
        body.extend_from_slice(b"],");
    }
    if let Some(device) = selector.device {
        body.extend_from_slice(b"\"devices\":[\"");
        body.extend_from_slice(audience.devices[device].as_bytes());
        body.extend_from_slice(b"\"],");
    }
    if let Some((from, to)) = selector.users {
        body.extend_from_slice(b"\"uids\":[");
        for n in from..to {
            if n > from {
                body.push(b',');
            }
            write_uid(shared, n, body);
        }
        body.extend_from_slice(b"],");
    }
}

fn write_uid(shared: &Shared<'_>, n: u64, body: &mut Vec<u8>) {
    body.push(b'"');
    body.extend_from_slice(shared.common.identity.uid_prefix.as_bytes());
    write_decimal(shared.common.first_user + n, body);
    body.push(b'"');
}
