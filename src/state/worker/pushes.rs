//! Pushes: matched against the connections, in slices if these are very many.

use super::outboxes::{Owed, deliver};
use super::{PushOutcome, Worker};
use crate::state::batch::{Batch, SharedFrame};
use crate::state::connection::NONE;
use crate::state::counters::Drop;
use crate::state::idempotency::Inserted;
use crate::state::targets::{self, Search, SearchPlace};
use crate::types::{Now, WallMs};
use crate::wire::envelope::Envelope;
use crate::wire::message;
use std::collections::VecDeque;
use std::rc::Rc;

/// Candidates considered per slice: each costs one or two cache misses.
const VISITS_PER_SLICE: usize = 4_096;
/// Pushes waiting to be matched, and their bytes, at which no more are accepted. Pushes that arrive
/// together share the sends of those before them.
const FULL_PUSHES: usize = 256;
const FULL_BYTES: usize = 256 << 10;
/// Buffers kept for later pushes, and the maximum size of each.
const KEPT_BUFFERS: usize = 64;
const KEPT_BYTES: usize = 1 << 10;

/// Pushes being matched, in order: the first may have begun.
///
/// Pushers wait while there are many ([`Worker::takes_pushes`]); beyond that there is at most one
/// per pusher, plus the contents of a bundle.
#[derive(Debug)]
pub(super) struct Pushes {
    unfinished: VecDeque<(Push, Vec<u8>)>,
    bytes: usize,
    spare: Vec<Vec<u8>>,
    /// Candidates that may be considered before the next [`Worker::match_more`].
    pub(super) visits_left: usize,
    pub(super) visits_per_slice: usize,
}

impl Default for Pushes {
    fn default() -> Self {
        Self {
            unfinished: VecDeque::new(),
            bytes: 0,
            spare: Vec::new(),
            visits_left: VISITS_PER_SLICE,
            visits_per_slice: VISITS_PER_SLICE,
        }
    }
}

/// Progress of a push.
#[derive(Debug, Default)]
struct Push {
    project: u32,
    /// Its number; `None`: matching has not begun.
    visit_epoch: Option<u32>,
    place: Option<SearchPlace>,
    frame: PushFrame,
    outcome: PushOutcome,
}

/// The frame of a push.
#[derive(Debug, Default)]
enum PushFrame {
    #[default]
    None,
    /// In the open batch.
    Open(u32),
    /// Shared by an earlier batch.
    Shared(Rc<SharedFrame>),
}

impl Pushes {
    pub(super) fn is_matching(&self) -> bool {
        !self.unfinished.is_empty()
    }

    pub(super) fn is_full(&self) -> bool {
        self.unfinished.len() >= FULL_PUSHES || self.bytes >= FULL_BYTES
    }

    fn add(&mut self, push: Push, envelope: &Envelope<'_>) {
        let mut bytes = self.spare.pop().unwrap_or_default();
        bytes.reserve_exact(envelope.encoded_bytes());
        envelope.encode(&mut bytes);
        self.bytes += bytes.len();
        self.unfinished.push_back((push, bytes));
    }

    /// Takes back the buffer of a completely matched push.
    fn give_back(&mut self, mut bytes: Vec<u8>) {
        self.bytes -= bytes.len();
        if bytes.capacity() <= KEPT_BYTES && self.spare.len() < KEPT_BUFFERS {
            bytes.clear();
            self.spare.push(bytes);
        }
    }

    /// Prepares for `open` being sealed: the next slice writes the frame again, into the next
    /// batch, unless it is shared.
    pub(super) fn handle_seal(&mut self, open: &Batch) {
        if let Some((push, _)) = self.unfinished.front_mut()
            && let PushFrame::Open(frame) = push.frame
        {
            push.frame = open.shared_frame(frame).map_or(PushFrame::None, PushFrame::Shared);
        }
    }
}

impl Worker {
    /// Delivers a message to the matching connections of this worker: queues it for them in the
    /// open batch, or begins to if there are very many. It waits behind a push that is not
    /// completely matched.
    pub fn handle_envelope(&mut self, envelope: &Envelope<'_>, now: Now) -> PushOutcome {
        self.now = now;
        self.config.counters.envelopes.add(1);
        let Some(project) = self.config.projects.id_of(envelope.pid) else {
            return PushOutcome::default();
        };
        if envelope.key.is_some_and(|key| !self.is_first(key)) {
            return PushOutcome::default();
        }
        let mut push = Push { project: project.0, ..Push::default() };
        if !self.pushes.is_matching() && self.match_push(&mut push, envelope) {
            return push.outcome;
        }
        self.pushes.add(push, envelope);
        PushOutcome { is_unfinished: true, ..PushOutcome::default() }
    }

    /// Continues incomplete pushes by a slice while the open batch has room; calls `finished` with
    /// the outcome of each completed one. Call it before each [`Worker::seal`].
    pub fn match_more(&mut self, now: Now, mut finished: impl FnMut(PushOutcome)) {
        self.pushes.visits_left = self.pushes.visits_per_slice;
        while self.pushes.visits_left > 0
            && !self.open.is_full()
            && let Some((mut push, bytes)) = self.pushes.unfinished.pop_front()
        {
            self.now = now;
            let is_over = match Envelope::decode(&bytes) {
                Ok(envelope) => self.match_push(&mut push, &envelope),
                // It was encoded here.
                Err(_) => true,
            };
            if !is_over {
                return self.pushes.unfinished.push_front((push, bytes));
            }
            finished(push.outcome);
            self.pushes.give_back(bytes);
        }
        if self.pushes.unfinished.is_empty() {
            // Capacity for hundreds is not kept.
            self.pushes.unfinished.shrink_to(KEPT_BUFFERS);
        }
    }

    /// Queues a push for the next connections that it selects. Returns whether it is complete.
    fn match_push(&mut self, push: &mut Push, envelope: &Envelope<'_>) -> bool {
        let expires = envelope.expires().unwrap_or(WallMs::NEVER);
        let is_expired = expires <= self.now.wall;
        let visit_epoch = *push.visit_epoch.get_or_insert_with(|| {
            // No connection carries this epoch: the sweep ensures that none is carried for long.
            self.visit_epoch = self.visit_epoch.wrapping_add(1);
            self.visit_epoch
        });
        let (batch, budget) = (&mut self.open, &self.budget);
        let (grown, without_room) = (&mut self.grown, &mut self.without_room);
        let frame_clock = self.sweep.frame_clock();
        let mut frame = match &push.frame {
            PushFrame::Open(frame) => *frame,
            _ => NONE,
        };
        let mut matched = 0;
        let mut over_limit: Vec<u32> = Vec::new();
        let (limit, max_bytes) =
            (self.outbox_limit, self.config.settings.memory.worker_outbox_bytes);
        let search = Search {
            project: push.project,
            targets: &envelope.targets,
            visit_epoch,
            from: push.place,
        };
        let each = |slot: u32, connection: &mut _| {
            matched += 1;
            if is_expired {
                return;
            }
            if frame == NONE {
                frame = add_frame(batch, &push.frame, envelope, expires);
            }
            let connection: &mut super::Connection = connection;
            connection.last_frame = frame_clock;
            match deliver(batch, budget, max_bytes, connection, slot, frame, limit) {
                Owed::Done => {}
                Owed::Grown => grown.push(slot),
                Owed::OverLimit => over_limit.push(slot),
                Owed::NoRoom => without_room.push(slot),
            }
        };
        let visits = &mut self.pushes.visits_left;
        push.place = targets::select(&self.directory, &mut self.connections, &search, visits, each);
        if frame != NONE {
            push.frame = PushFrame::Open(frame);
        }
        push.outcome.matched += matched;
        if is_expired {
            self.config.counters.count_drops(Drop::Expired, matched);
            push.outcome.is_expired = true;
        } else if push.place.is_none() {
            let interval_ms = self.config.settings.times.ping_interval_ms;
            self.sweep.handle_push(push.outcome.matched, self.connections.len(), interval_ms);
        }
        while let Some(slot) = self.grown.pop() {
            self.reorder(slot);
        }
        for slot in over_limit {
            self.close_slow(slot);
        }
        while let Some(slot) = self.without_room.pop() {
            self.owe_in_outbox(slot, frame);
        }
        self.close_shed();
        push.place.is_none()
    }

    /// Whether no push with this key was handled within five minutes.
    fn is_first(&mut self, key: &[u8; 16]) -> bool {
        let counters = &self.config.counters;
        match self.remembered.insert(key, self.now.monotonic) {
            Inserted::New => {}
            Inserted::NewForgettingOldest => counters.forgotten_keys.add(1),
            Inserted::Repeated => {
                counters.repeated_keys.add(1);
                return false;
            }
        }
        counters.remembered_keys.set(self.remembered.len() as u64);
        true
    }
}

fn add_frame(
    batch: &mut Batch,
    before: &PushFrame,
    envelope: &Envelope<'_>,
    expires: WallMs,
) -> u32 {
    if let PushFrame::Shared(frame) = before {
        return batch.add_shared(Rc::clone(frame), expires);
    }
    let payload_bytes = message::push_bytes(envelope.id, envelope.data.len());
    batch.add_push(payload_bytes, expires, |out| {
        message::write_push(out, envelope.id, envelope.data);
    })
}
