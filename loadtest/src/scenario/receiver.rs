//! What a thread's connections receive, and whether that is correct.

use std::mem;
use std::sync::atomic::Ordering;

use super::ledger::{Answer, Bulk, locked};
use super::shared::{Shared, Unicast};
use super::stats::PhaseStats;
use super::verdict::{self, Evidence, Fate, Presence};
use crate::client::{Gone, Handler};
use crate::message::{Arrival, Finder, Marks, STAMP_LEN, SeqSet};
use crate::series;
use crate::sys;

/// The kind of a push, in the stamp's field for the pushing connection of other commands.
pub const BULK: u16 = 0;
pub const UNICAST: u16 = 1;
pub const CANARY: u16 = 2;

/// Set in an entry of `presence` for a connection that has ended: the rest is the time.
const LEFT: u64 = 1 << 63;

pub struct Receiver<'a> {
    shared: &'a Shared<'a>,
    t: usize,
    /// This thread's connections, a half-open range of numbers.
    first: u64,
    last: u64,
    finder: Finder,
    /// By connection: the time since when it is open or, with [`LEFT`], closed, in nanoseconds; or
    /// 0.
    presence: Vec<u64>,
    /// This thread's copy of the ledger, and its evidence on each push.
    bulk: Vec<Bulk>,
    tallies: Vec<Tally>,
    settled: u32,
    /// The pushes in this batch, and when each was due.
    touched: Vec<(u32, u64)>,
    unicast_seen: SeqSet,
    /// By connection: the last unicast push that arrived, plus one.
    last_unicast: Vec<u32>,
    /// By phase.
    pub stats: Vec<PhaseStats>,
    phase: usize,
    /// Connections that ended in this batch: their number in this thread, and the reason.
    pub gone: Vec<(u32, Gone)>,
    pub welcomes: Vec<u32>,
    /// Messages of other runs.
    pub foreign: u64,
}

/// A thread's evidence on one push to many.
#[derive(Clone, Copy, Default)]
pub struct Tally {
    /// Everything but `open`, which is counted on demand.
    evidence: Evidence,
    /// Arrivals of this batch.
    batch: u32,
    pub last_ns: u64,
}

impl<'a> Receiver<'a> {
    pub fn new(shared: &'a Shared<'a>, t: usize) -> Receiver<'a> {
        let (first, last) = shared.numbers_of(t);
        let count = (last - first) as usize;
        let phases = &shared.scenario.phases;
        let has_unicast = phases.iter().any(|phase| phase.traffic.unicast_per_s > 0.0);
        Receiver {
            shared,
            t,
            first,
            last,
            finder: Finder::new(shared.run, STAMP_LEN),
            presence: vec![0; count],
            bulk: Vec::new(),
            tallies: Vec::new(),
            settled: 0,
            touched: Vec::with_capacity(64),
            unicast_seen: SeqSet::default(),
            last_unicast: vec![0; if has_unicast { count } else { 0 }],
            stats: phases.iter().map(|_| PhaseStats::default()).collect(),
            phase: 0,
            gone: Vec::new(),
            welcomes: Vec::new(),
            foreign: 0,
        }
    }

    pub fn enter(&mut self, phase: usize) {
        self.phase = phase;
    }

    pub fn stats(&mut self) -> &mut PhaseStats {
        &mut self.stats[self.phase]
    }

    #[inline]
    fn bulk_arrived(&mut self, number: u32, marks: &mut Marks, seq: u32, at_ns: u64) {
        if seq as usize >= self.bulk.len() {
            self.shared.ledger.copy_sent(&mut self.bulk);
        }
        let Some(push) = self.bulk.get(seq as usize) else {
            self.foreign += 1;
            return;
        };
        let checks = &mut self.stats[usize::from(push.phase)].checks;
        let n = self.first + u64::from(number);
        let audience = &self.shared.scenario.population.audience;
        if push.selector.as_ref().is_some_and(|selector| !selector.matches(audience, n)) {
            checks.misdelivered += 1;
            return;
        }
        match marks.arrived(seq) {
            Arrival::InOrder => {}
            Arrival::OutOfOrder => checks.out_of_order += 1,
            // Order is guaranteed, so a message this far behind has already arrived.
            Arrival::Duplicate | Arrival::Ancient => {
                checks.doubled += 1;
                return series::add(&self.shared.live(self.t).doubled, 1);
            }
        }
        if self.tallies.len() <= seq as usize {
            self.tallies.resize(self.bulk.len(), Tally::default());
        }
        // A connection welcomed after it was sent may receive it, but need not.
        if self.presence[number as usize] >= push.sent_ns {
            checks.deliveries += 1;
            return;
        }
        let tally = &mut self.tallies[seq as usize];
        if tally.batch == 0 {
            self.touched.push((seq, at_ns));
        }
        tally.batch += 1;
    }

    #[inline]
    fn unicast_arrived(&mut self, number: u32, seq: u32, at_ns: u64) {
        let now = sys::now_ns();
        let phase = self.shared.phase_at(at_ns);
        let stats = &mut self.stats[phase];
        let n = self.first + u64::from(number);
        if self.shared.target_of(seq) != n {
            stats.checks.misdelivered += 1;
            return;
        }
        let live = self.shared.live(self.t);
        if !self.unicast_seen.insert(seq) {
            // A user who came back while the push was in flight may get it on both connections.
            if self.presence[number as usize] < at_ns {
                stats.checks.doubled += 1;
                series::add(&live.doubled, 1);
            }
            return;
        }
        if let Some(last) = self.last_unicast.get_mut(number as usize) {
            stats.checks.out_of_order += u64::from(seq < *last);
            *last = (*last).max(seq + 1);
        }
        let waited_ns = now.saturating_sub(at_ns);
        stats.unicast.record(waited_ns);
        stats.checks.deliveries += 1;
        live.latency.record(waited_ns);
        series::add(&live.deliveries, 1);
    }

    /// Records the batch. All deliveries of a push in one batch have the same latency.
    pub fn end_batch(&mut self) {
        if self.touched.is_empty() {
            return;
        }
        let now = sys::now_ns();
        let live = self.shared.live(self.t);
        for (seq, at_ns) in self.touched.drain(..) {
            let tally = &mut self.tallies[seq as usize];
            let batch = mem::take(&mut tally.batch);
            tally.evidence.arrived += batch;
            tally.last_ns = now;
            let push = &self.bulk[seq as usize];
            let stats = &mut self.stats[usize::from(push.phase)];
            let waited_ns = now.saturating_sub(at_ns);
            let times = match push.selector {
                None => &mut stats.project,
                Some(_) => &mut stats.tagged,
            };
            times.record_n(waited_ns, u64::from(batch));
            stats.checks.deliveries += u64::from(batch);
            live.latency.record_n(waited_ns, batch);
            series::add(&live.deliveries, u64::from(batch));
            let progress = u64::from(seq) << 32 | u64::from(tally.evidence.arrived);
            self.shared.crew(self.t).progress.fetch_max(progress, Ordering::AcqRel);
        }
    }

    /// Records that a connection of this thread ended: what it has not received by now is not lost.
    /// `drained`: a draining server closed it.
    pub fn left(&mut self, number: u32, marks: &Marks, drained: bool) {
        let since_ns = self.presence[number as usize];
        if since_ns == 0 || since_ns & LEFT != 0 {
            return;
        }
        self.presence[number as usize] = sys::now_ns() | LEFT;
        series::add(&self.shared.crew(self.t).ended, 1);
        self.shared.ledger.copy_sent(&mut self.bulk);
        self.tallies.resize(self.bulk.len(), Tally::default());
        let audience = &self.shared.scenario.population.audience;
        let n = self.first + u64::from(number);
        for seq in (self.settled..self.bulk.len() as u32).rev() {
            let push = &self.bulk[seq as usize];
            if push.sent_ns <= since_ns {
                break;
            }
            if push.selector.as_ref().is_none_or(|selector| selector.matches(audience, n)) {
                self.tallies[seq as usize].evidence.connection_ended(marks, seq, drained);
            }
        }
    }

    /// Judges the pushes that the driver has settled.
    pub fn settle(&mut self) {
        while self.settled < self.shared.ledger.settled() {
            let seq = self.settled;
            self.settled += 1;
            self.shared.ledger.copy_sent(&mut self.bulk);
            self.tallies.resize(self.bulk.len(), Tally::default());
            let arrived = u64::from(self.tallies[seq as usize].evidence.arrived);
            let phase = usize::from(self.bulk[seq as usize].phase);
            match self.shared.ledger.answer(seq) {
                Answer::Accepted => {
                    let verdict = verdict::of_bulk(self.evidence(seq));
                    let checks = &mut self.stats[phase].checks;
                    checks.lost += verdict.lost;
                    checks.undecided += verdict.undecided;
                    series::add(&self.shared.live(self.t).lost, verdict.lost);
                }
                Answer::Refused => self.stats[phase].checks.refused_but_delivered += arrived,
                Answer::Unknown => {
                    let verdict = verdict::of_bulk(self.evidence(seq));
                    self.stats[phase].checks.undecided += verdict.lost + verdict.undecided;
                }
            }
        }
    }

    /// Judges the unicast pushes sent before `before_ns`.
    pub fn settle_unicasts(&mut self, before_ns: u64) {
        loop {
            let mut unicasts = locked(&self.shared.crew(self.t).unicasts);
            let Some(unicast) = unicasts.pop_front_if(|unicast| unicast.sent_ns < before_ns) else {
                return;
            };
            drop(unicasts);
            self.settle_unicast(unicast);
        }
    }

    /// Returns the fate of a unicast push that has not arrived by now; `None`: it has.
    fn fate(&self, unicast: &Unicast) -> Option<Fate> {
        if self.unicast_seen.contains(unicast.seq) {
            return None;
        }
        let presence = match self.presence[(unicast.target - self.first) as usize] {
            0 => Presence::Away,
            left if left & LEFT != 0 => Presence::Left(left & !LEFT),
            since => Presence::Open(since),
        };
        Some(verdict::of_unicast(presence, unicast.sent_ns))
    }

    fn settle_unicast(&mut self, unicast: Unicast) {
        let Some(fate) = self.fate(&unicast) else { return };
        let phase = self.shared.phase_at(unicast.sent_ns);
        let checks = &mut self.stats[phase].checks;
        match fate {
            Fate::Lost => {
                checks.lost += 1;
                series::add(&self.shared.live(self.t).lost, 1);
            }
            Fate::Undecided => checks.undecided += 1,
            Fate::Absent => {}
        }
    }

    /// Returns the current evidence on a push to many.
    fn evidence(&self, seq: u32) -> Evidence {
        let push = &self.bulk[seq as usize];
        let is_due = |since_ns: u64| since_ns != 0 && since_ns < push.sent_ns;
        let mut open = 0;
        match &push.selector {
            // A time with `LEFT` is greater than any other.
            None => {
                open = self.presence.iter().filter(|since_ns| is_due(**since_ns)).count() as u32
            }
            Some(selector) => {
                let audience = &self.shared.scenario.population.audience;
                selector.for_each(audience, self.first, self.last, |n| {
                    open += u32::from(is_due(self.presence[(n - self.first) as usize]));
                });
            }
        }
        let tally = self.tallies.get(seq as usize).copied().unwrap_or_default();
        Evidence { open, ..tally.evidence }
    }

    /// Returns the number of deliveries that would be lost if all pushes were settled now.
    pub fn missing(&mut self) -> u64 {
        self.shared.ledger.copy_sent(&mut self.bulk);
        let unsettled = self.settled..self.bulk.len() as u32;
        let bulk: u64 = unsettled.map(|seq| verdict::of_bulk(self.evidence(seq)).lost).sum();
        let unicasts = locked(&self.shared.crew(self.t).unicasts);
        let is_missing = |unicast: &&Unicast| self.fate(unicast) == Some(Fate::Lost);
        bulk + unicasts.iter().filter(is_missing).count() as u64
    }

    /// Returns this thread's figures: by phase, and by number of the push.
    pub fn into_results(self) -> (Vec<PhaseStats>, Vec<Tally>) {
        (self.stats, self.tallies)
    }
}

impl Handler for Receiver<'_> {
    #[inline]
    fn frame(&mut self, number: u32, marks: &mut Marks, payload: &[u8]) {
        let Some((kind, seq, at_ns)) = self
            .finder
            .find(payload)
            .and_then(|found| Some((found.pusher()?, found.seq()?, found.at_ns()?)))
        else {
            self.foreign += 1;
            return;
        };
        match kind {
            BULK => self.bulk_arrived(number, marks, seq, at_ns),
            UNICAST => self.unicast_arrived(number, seq, at_ns),
            CANARY => {
                let phase = self.shared.phase_at(at_ns);
                self.stats[phase].checks.misdelivered += 1;
            }
            _ => self.foreign += 1,
        }
    }

    fn welcomed(&mut self, number: u32, _: &[u8]) {
        let now = sys::now_ns();
        let before = mem::replace(&mut self.presence[number as usize], now);
        let stats = &mut self.stats[self.phase];
        if before & LEFT != 0 {
            stats.reopened += 1;
            stats.back.record(now.saturating_sub(before & !LEFT));
        } else {
            stats.opened += 1;
        }
        stats.last_welcome_ns = now;
        self.welcomes.push(number);
    }

    fn gone(&mut self, number: u32, why: Gone, marks: &Marks) {
        let drains = self.shared.scenario.phases[self.phase].drain;
        self.left(number, marks, drains && why == Gone::Dropped);
        let stats = &mut self.stats[self.phase];
        match why {
            Gone::Refused => stats.refused += 1,
            Gone::Dropped => stats.dropped += 1,
            Gone::Closed => {}
        }
        self.gone.push((number, why));
    }
}

#[cfg(test)]
mod tests;
