//! Timeouts of connections: pings, idle timeouts and ends of sessions, in slices.

use super::Worker;
use super::gone::ANSWERS_PER_SLICE;
use crate::state::connection::{CloseCause, NONE};
use crate::state::settings::Times;
use crate::types::{MonotonicMs, Now, WallMs};
use fastwebsockets::OpCode;

/// Maximum number of slots that one call of [`Worker::handle_tick`] visits.
pub(super) const VISITS_PER_SLICE: usize = 8_192;
/// Maximum pings per call.
const PINGS_PER_SLICE: usize = 512;
/// Maximum closes per call; each produces events for business servers.
pub(super) const CLOSES_PER_SLICE: usize = 64;
/// Maximum duration of one round of the sweep: a ping is late by at most this.
const MAX_ROUND_MS: u64 = 4_000;
/// Maximum time between two slices of the sweep. Few large slices are better than many small ones:
/// pings of one slice are submitted together, and their pongs wake the worker together.
const MAX_SLICE_MS: u64 = 1_000;
/// Fraction of the longest round by which the rounds of two workers differ at most. With equal
/// rounds the hands of all workers would pass connections opened together at the same time.
const ROUND_SPREAD: u64 = 4;
/// Minimum number of slices per round.
const SLICES_PER_ROUND: u64 = 4;
/// Maximum time between two ticks: ends of sessions and the drain wait for one.
const MAX_CALM_MS: u64 = 250;
/// Units of the frame clock per ping interval.
const UNITS_PER_INTERVAL: u64 = 1_024;
/// Maximum number of intervals by which one tick advances the frame clock: it wraps after 64.
const MAX_INTERVALS_PER_TICK: u64 = 16;

/// A message to at least this number of connections may create a crowd: all of them are due for
/// their next ping at the same time.
const CROWD: u64 = 1_024;
/// Fraction of the ping interval in which no connection of a crowd is pinged early.
const CROWD_REST: u64 = 4;

/// A visit epoch that is this number of messages old is renewed: after 2^32 it would equal that of
/// a message again. The hand comes round every 4 s.
const OLD_EPOCHS: u32 = 1 << 30;

/// A hand that goes round the slab and visits one slice at a time. It costs a connection only
/// `last_heard_ms` and `last_frame`, and spreads pings over its round.
#[derive(Debug)]
pub(super) struct Sweep {
    next_slot: usize,
    /// One past the highest slot ever used.
    slots: usize,
    /// The next slot that a shutdown closes.
    next_shutdown: usize,
    /// Number of slots that the hand is behind.
    debt: usize,
    round_ms: u64,
    slice_ms: u64,
    /// Time since the last slice.
    since_slice_ms: u64,
    last_tick: MonotonicMs,
    /// Time since the start.
    elapsed_ms: u64,
    unit_ms: u64,
    /// When the unit was last set, and what the frame clock showed then.
    unit_set_ms: u64,
    unit_set_at: u64,
    /// Completed rounds.
    rounds: usize,
    crowd: Crowd,
}

/// Connections synchronized by a message to most of the worker's connections. Their next pings
/// would be sent in one burst, a ping interval later: at a million connections that took both cores
/// for six seconds. Instead some are pinged earlier, evenly spread over the rounds until then.
#[derive(Debug)]
struct Crowd {
    /// When the last such message was sent, on the frame clock.
    at_ms: Option<u64>,
    /// Quiet time after which a connection may be pinged early. If such messages are regular, it is
    /// longer than the interval between them: they replace pings.
    early_from_ms: u64,
}

/// Remaining allowance of one slice.
#[derive(Debug)]
struct Slice {
    visits: usize,
    pings: usize,
    closes: usize,
    /// The frame shared by all pings of the slice, once it exists.
    ping_frame: u32,
}

impl Sweep {
    /// `worker`: this worker's index among `workers`.
    pub(super) fn new(times: &Times, (worker, workers): (usize, usize), now: MonotonicMs) -> Self {
        let mut sweep = Self {
            next_slot: 0,
            slots: 0,
            next_shutdown: 0,
            debt: 0,
            round_ms: 0,
            slice_ms: 0,
            since_slice_ms: 0,
            last_tick: now,
            elapsed_ms: 0,
            unit_ms: 1,
            unit_set_ms: 0,
            unit_set_at: 0,
            rounds: 0,
            crowd: Crowd { at_ms: None, early_from_ms: 0 },
        };
        sweep.set_times(times, (worker, workers));
        // Staggers the slices of the workers.
        sweep.since_slice_ms = sweep.slice_ms * worker as u64 / workers.max(1) as u64;
        sweep
    }

    /// Sets the intervals. The frame clock goes on from where it is in the new unit, which is a
    /// fraction of the ping interval: a connection that was quiet for half of the old interval has
    /// half of the new one left. So pings stay spread as they are, and none is later than the
    /// longer of the two intervals.
    pub(super) fn set_times(&mut self, times: &Times, (worker, workers): (usize, usize)) {
        let Times { ping_interval_ms, idle_timeout_ms, .. } = *times;
        let round_ms = MAX_ROUND_MS.min(idle_timeout_ms / 8).min(ping_interval_ms / 8);
        let shorter_ms = round_ms / ROUND_SPREAD * worker as u64 / workers.max(1) as u64;
        self.round_ms = (round_ms - shorter_ms).max(1);
        self.slice_ms = (self.round_ms / SLICES_PER_ROUND).clamp(1, MAX_SLICE_MS);
        let unit_ms = (ping_interval_ms / UNITS_PER_INTERVAL).max(1);
        if unit_ms != self.unit_ms {
            self.unit_set_at = self.units();
            self.unit_set_ms = self.elapsed_ms;
            self.unit_ms = unit_ms;
        }
    }

    /// Units of the frame clock since the start.
    fn units(&self) -> u64 {
        self.unit_set_at + (self.elapsed_ms - self.unit_set_ms) / self.unit_ms
    }

    /// Notes a message to `matched` of the worker's connections.
    pub(super) fn handle_push(&mut self, matched: u64, open: usize, ping_interval_ms: u64) {
        if matched < CROWD || matched < open as u64 / 2 {
            return;
        }
        let since_ms = self.crowd.at_ms.map_or(u64::MAX, |at_ms| self.elapsed_ms - at_ms);
        self.crowd.at_ms = Some(self.elapsed_ms);
        if since_ms > MAX_SLICE_MS {
            let rest_ms = ping_interval_ms / CROWD_REST;
            let is_regular = since_ms <= ping_interval_ms;
            self.crowd.early_from_ms =
                if is_regular { rest_ms.max(since_ms + since_ms / 2) } else { rest_ms };
        }
    }

    /// Whether it is this connection's turn to be pinged before the interval is over. Each has one
    /// turn between the time from which it may be pinged early and the end of the interval.
    fn is_early(&self, slot: u32, quiet_ms: u64, ping_interval_ms: u64) -> bool {
        let Some(at_ms) = self.crowd.at_ms else { return false };
        let Crowd { early_from_ms, .. } = self.crowd;
        if quiet_ms < early_from_ms || self.elapsed_ms - at_ms > ping_interval_ms + self.round_ms {
            return false;
        }
        let turns =
            (ping_interval_ms.saturating_sub(early_from_ms) / self.round_ms).max(1) as usize;
        slot as usize % turns == self.rounds % turns
    }

    pub(super) fn handle_connect(&mut self, slot: u32) {
        self.slots = self.slots.max(slot as usize + 1);
    }

    fn calm_ms(&self) -> u64 {
        self.slice_ms.min(MAX_CALM_MS)
    }

    pub(super) fn slots(&self) -> usize {
        self.slots
    }

    /// The current time in the format of a connection's `last_frame`.
    #[inline]
    pub(super) fn frame_clock(&self) -> u16 {
        self.units() as u16
    }

    /// Milliseconds since the frame clock read `last_frame`.
    fn quiet_ms(&self, last_frame: u16) -> u64 {
        u64::from(self.frame_clock().wrapping_sub(last_frame)) * self.unit_ms
    }

    /// Returns one slot after the other, again and again.
    pub(super) fn next_to_shut_down(&mut self) -> u32 {
        let slot = if self.next_shutdown < self.slots { self.next_shutdown } else { 0 };
        self.next_shutdown = slot + 1;
        slot as u32
    }

    fn advance(&mut self, now: MonotonicMs, ping_interval_ms: u64) {
        let elapsed_ms = now.since(self.last_tick);
        self.last_tick = now;
        self.elapsed_ms += elapsed_ms.min(MAX_INTERVALS_PER_TICK * ping_interval_ms);
        self.since_slice_ms += elapsed_ms;
        // A tick may come slightly early: see `WorkerContext::plan_tick`.
        if self.since_slice_ms < self.slice_ms - self.calm_ms() / 4 {
            return;
        }
        let slice_ms = std::mem::take(&mut self.since_slice_ms);
        let share = (self.slots as u64).saturating_mul(slice_ms).div_ceil(self.round_ms);
        self.debt = (self.debt as u64 + share).min(self.slots as u64) as usize;
    }

    /// Returns the next slot that is due for a visit.
    fn next(&mut self) -> Option<u32> {
        self.debt = self.debt.checked_sub(1)?;
        if self.next_slot >= self.slots {
            self.next_slot = 0;
            self.rounds += 1;
        }
        self.next_slot += 1;
        Some(self.next_slot as u32 - 1)
    }
}

impl Worker {
    /// As [`Worker::handle_tick_with`], for sockets that hold no unread bytes.
    pub fn handle_tick(&mut self, now: Now) {
        self.handle_tick_with(now, |_| false);
    }

    /// Ends expired sessions, pings connections without a frame in either direction for the ping
    /// interval, and closes those whose peer was silent for the idle timeout. Each call does a
    /// bounded part of it; while [`Worker::is_overdue`] there is more to do at once.
    ///
    /// `has_unread`: whether the socket of a slot holds unread bytes. Its peer is then not silent.
    pub fn handle_tick_with(&mut self, now: Now, has_unread: impl FnMut(u32) -> bool) {
        self.now = now;
        self.config.incarnation.note_latest(self.ids.latest_ms());
        let mut slice = Slice {
            visits: VISITS_PER_SLICE,
            pings: PINGS_PER_SLICE,
            closes: CLOSES_PER_SLICE,
            ping_frame: NONE,
        };
        self.subscriptions.handle_tick(now.monotonic);
        self.shed_closes_left = CLOSES_PER_SLICE;
        self.close_shed();
        self.answers_left = ANSWERS_PER_SLICE;
        self.free_for_ended();
        self.answer_for_gone();
        self.expire_requests();
        self.remembered.handle_tick(now.monotonic);
        self.config.counters.remembered_keys.set(self.remembered.len() as u64);
        self.close_used_ids(slice.closes);
        self.close_removed(slice.closes);
        self.end_sessions(now.wall, &mut slice);
        self.sweep.advance(now.monotonic, self.config.settings.times.ping_interval_ms);
        self.sweep_slice(&mut slice, has_unread);
        self.is_overdue = self.sweep.debt > 0
            || self.has_ended_session(now.wall)
            || self.has_unanswered()
            || self.requests.has_ended()
            || self.used_ids.is_some()
            || self.has_removed()
            || !self.shed.is_empty()
            || self.requests.has_late(self.awake())
            || self.own_servers.has_late(self.awake());
    }

    /// Time between two ticks while [`Worker::is_calm`].
    pub fn calm_ms(&self) -> u64 {
        self.sweep.calm_ms()
    }

    /// Whether only the sweep, or the end of a session, waits for a tick.
    pub fn is_calm(&self) -> bool {
        self.backlogged == 0
            && self.shed.is_empty()
            && self.requests.len() == 0
            && !self.requests.has_ended()
            && self.used_ids.is_none()
            && self.removal.is_none()
            && self.own_servers.pending() == (0, 0)
            && !self.has_broker_requests()
    }

    /// Whether the last tick left work to do.
    pub fn is_overdue(&self) -> bool {
        self.is_overdue
    }

    /// Handles `stall_ms` in which this thread did not run. No peer counts as silent, and no answer
    /// as late, for time in which nothing was read; pings are due all the same.
    pub fn handle_stall(&mut self, stall_ms: u64) {
        self.stalled_ms += stall_ms;
    }

    fn has_ended_session(&self, now: WallMs) -> bool {
        let first = self.sessions.first();
        first.is_some_and(|&(session_exp, ..)| WallMs::from_s(session_exp) <= now)
    }

    fn end_sessions(&mut self, now: WallMs, slice: &mut Slice) {
        while slice.closes > 0
            && self.has_ended_session(now)
            && let Some(&(_, slot, _)) = self.sessions.first()
        {
            slice.closes -= 1;
            self.close(slot, CloseCause::SessionExpired);
        }
    }

    fn sweep_slice(&mut self, slice: &mut Slice, mut has_unread: impl FnMut(u32) -> bool) {
        while slice.visits > 0
            && slice.pings > 0
            && slice.closes > 0
            && !self.open.is_full()
            && let Some(slot) = self.sweep.next()
        {
            slice.visits -= 1;
            self.look_at(slot, slice, &mut has_unread);
        }
    }

    fn look_at(&mut self, slot: u32, slice: &mut Slice, has_unread: &mut impl FnMut(u32) -> bool) {
        let heard_ms = self.heard_ms();
        let (is_echo, calm_ms) = (self.config.settings.echo, self.calm_ms());
        let idle_timeout_ms = self.config.settings.times.idle_timeout_ms;
        let Some(connection) = self.connections.get_mut(slot as usize) else { return };
        if !connection.is_open() {
            return;
        }
        if self.visit_epoch.wrapping_sub(connection.visit_epoch) > OLD_EPOCHS {
            // Not the epoch of the last message, which may not have considered it yet.
            connection.visit_epoch = self.visit_epoch.wrapping_sub(1);
        }
        let silent_ms = heard_ms.wrapping_sub(connection.last_heard_ms) as i32;
        let Ok(mut silent_ms) = u64::try_from(silent_ms) else {
            // It was heard after a stall that was noticed later: silence is measured from here.
            connection.last_heard_ms = heard_ms;
            return;
        };
        if silent_ms >= idle_timeout_ms {
            let may_answer = connection.is_pinged() || is_echo;
            // It leaves its output unread, so that its input is not read.
            if may_answer && (self.leaves_unread(slot) || !has_unread(slot)) {
                slice.closes -= 1;
                return self.close(slot, CloseCause::Idle);
            }
            let connection = &mut self.connections[slot as usize];
            // Half of the time is left for the answer to a ping.
            silent_ms = if may_answer { 0 } else { idle_timeout_ms / 2 };
            connection.last_heard_ms = heard_ms.wrapping_sub(silent_ms as u32);
        }
        let connection = &self.connections[slot as usize];
        // The frame clock may be a tick behind: outside a crowd no connection is pinged early.
        let interval_ms = self.config.settings.times.ping_interval_ms;
        let quiet_ms = self.sweep.quiet_ms(connection.last_frame);
        let is_quiet =
            quiet_ms >= interval_ms + calm_ms || self.sweep.is_early(slot, quiet_ms, interval_ms);
        let is_doubtful = silent_ms >= idle_timeout_ms / 2 && !connection.is_pinged();
        if (is_quiet || is_doubtful) && !is_echo {
            slice.pings -= 1;
            self.ping(slot, slice);
        }
    }

    fn ping(&mut self, slot: u32, slice: &mut Slice) {
        if slice.ping_frame == NONE {
            slice.ping_frame = self.open.add_frame(OpCode::Ping, b"");
        }
        self.connections[slot as usize].set_pinged(true);
        self.owe(slot, slice.ping_frame);
    }

    /// Whether the peer leaves so much unread that its input is not read.
    pub(super) fn leaves_unread(&self, slot: u32) -> bool {
        let connection = &self.connections[slot as usize];
        let limit = self.outbox_limit_of(connection);
        connection.outbox.as_ref().is_some_and(|outbox| outbox.pending_bytes() >= limit / 2)
    }
}
