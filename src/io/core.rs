//! What the tasks of one worker share: the engine, the mailbox, and the ways to wait for them.

use super::engine::Engine;
use super::http::Connections;
use super::mailbox::Mailbox;
use super::shared::Shared;
use super::sys;
use super::wake::{Flag, Waiters, yield_now};
use crate::state::counters::Drop as DropReason;
use crate::types::{MessageId, NodeId, SnowflakeClock};
use crate::wire::envelope::{Envelope, Targets};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

/// How often deadlines are looked at.
pub(super) const TICK_MS: u64 = 50;
/// From this difference to the monotonic clock on, the wall clock was set.
const CLOCK_STEP_MS: i64 = 500;
/// `reconnect_after_ms` is between the first and both together, so that a node's clients do not
/// come back all at once.
const RECONNECT_MIN_MS: u64 = 1_000;
const RECONNECT_SPREAD_MS: u64 = 5_000;

/// What the tasks of one worker share.
pub struct Core {
    pub shared: Arc<Shared>,
    pub index: usize,
    pub engine: RefCell<Engine>,
    pub(super) mailbox: RefCell<Mailbox>,
    /// Something is to be sent.
    pub(super) work: Flag,
    /// A flush ended.
    flushed: Waiters,
    next_seq: Cell<u64>,
    pub http: RefCell<Connections>,
    last_tick_ms: Cell<u64>,
    last_tick: Cell<Instant>,
    drain_until_ms: Cell<Option<u64>>,
    has_said_goodbye: Cell<bool>,
    /// The worker has drained.
    pub(super) ended: Flag,
}

impl Core {
    pub fn new(shared: Arc<Shared>, index: usize, engine: Engine, mailbox: Mailbox) -> Rc<Self> {
        Rc::new(Self {
            shared,
            index,
            engine: RefCell::new(engine),
            mailbox: RefCell::new(mailbox),
            work: Flag::default(),
            flushed: Waiters::default(),
            next_seq: Cell::new(1),
            http: RefCell::default(),
            last_tick_ms: Cell::new(sys::now_ms()),
            last_tick: Cell::new(Instant::now()),
            drain_until_ms: Cell::new(None),
            has_said_goodbye: Cell::new(false),
            ended: Flag::default(),
        })
    }

    /// Accepts a message: delivers it to this worker's connections and hands it to the other
    /// workers.
    /// `None`: some worker's mailbox is full, and nobody got it.
    pub fn accept_push(
        &self,
        pid: &str,
        targets: Targets<'_>,
        data: &[u8],
        ttl_ms: u32,
        now_ms: u64,
    ) -> Option<MessageId> {
        let mut mailbox = self.mailbox.borrow_mut();
        let mut engine = self.engine.borrow_mut();
        let wanted = self.workers_of(&targets);
        if !mailbox.is_alone() && !mailbox.has_room(wanted) {
            engine.worker.counters().count_drops(DropReason::MailboxFull, 1);
            return None;
        }
        let id = engine.worker.next_message_id(now_ms);
        let envelope = Envelope {
            origin: self.node(),
            epoch: self.shared.epoch,
            seq: self.next_seq.replace(self.next_seq.get() + 1),
            accepted_ms: now_ms,
            id,
            ttl_ms,
            pid,
            targets,
            data,
        };
        if !mailbox.is_alone() {
            let mut bytes = Vec::with_capacity(256 + data.len());
            envelope.encode(&mut bytes);
            mailbox.send(&Arc::from(bytes), wanted);
        }
        engine.worker.handle_envelope(&envelope, now_ms);
        if engine.has_output() {
            self.work.raise();
        }
        Some(id)
    }

    /// Which workers may have a target: a client id names its worker, anything else may be at all.
    fn workers_of(&self, targets: &Targets<'_>) -> impl Fn(usize) -> bool + Copy + use<> {
        let workers = self.shared.settings.workers;
        let wanted = targets.cids.map(|cids| {
            cids.iter().fold(0u64, |set, cid| set | 1 << SnowflakeClock::worker_of(cid.0, workers))
        });
        move |worker| wanted.is_none_or(|set| set >> worker & 1 == 1)
    }

    fn node(&self) -> NodeId {
        self.shared.settings.node
    }

    /// Waits until the open batch has room: what pushes faster than the sockets take waits here.
    pub async fn wait_for_room(&self) {
        self.flushed.wait_until(|| !self.engine.borrow().worker.is_full()).await;
    }

    /// Sends what is owed now, and lets other tasks run about every millisecond. What becomes due
    /// meanwhile waits for the next flush: the ring's events have their turn between the two.
    pub(super) async fn flush(&self) {
        if !self.engine.borrow().has_output() {
            return;
        }
        self.engine.borrow_mut().begin_flush(sys::now_ms());
        while self.engine.borrow_mut().send_chunk() {
            yield_now().await;
            self.tick(sys::now_ms());
        }
        self.flushed.wake_all();
    }

    /// Looks at the deadlines, if that is due. The executor's timers starve while some task is
    /// always ready, so the sending loop calls this too.
    pub(super) fn tick(&self, now_ms: u64) {
        if now_ms.abs_diff(self.last_tick_ms.get()) < TICK_MS {
            return;
        }
        self.notice_clock_step(now_ms);
        self.engine.borrow_mut().handle_tick(now_ms);
        self.http.borrow_mut().handle_tick(now_ms);
        if self.shared.is_draining() {
            self.drain(now_ms);
        }
        self.work.raise();
    }

    /// Deadlines are in wall time, as everything that is told to clients is; when that clock is
    /// set, they move along.
    fn notice_clock_step(&self, now_ms: u64) {
        let now = Instant::now();
        let elapsed_ms = now.duration_since(self.last_tick.replace(now)).as_millis() as i64;
        let wall_ms = now_ms.wrapping_sub(self.last_tick_ms.replace(now_ms)) as i64;
        let step_ms = wall_ms - elapsed_ms;
        if step_ms.abs() < CLOCK_STEP_MS {
            return;
        }
        tracing::warn!(step_ms, "the clock was set");
        self.engine.borrow_mut().handle_clock_step(step_ms);
        self.http.borrow_mut().handle_clock_step(step_ms);
        let until_ms = self.drain_until_ms.get();
        self.drain_until_ms.set(until_ms.map(|until_ms| until_ms.saturating_add_signed(step_ms)));
    }

    /// First nothing new is accepted anywhere; a tick later every client is closed, after what was
    /// accepted for it; then the worker ends when all have gone or the time is up.
    fn drain(&self, now_ms: u64) {
        let Some(until_ms) = self.drain_until_ms.get() else {
            let drain_ms = self.shared.settings.drain_ms;
            return self.drain_until_ms.set(Some(now_ms + drain_ms.saturating_sub(4 * TICK_MS)));
        };
        if !self.has_said_goodbye.replace(true) {
            while self.receive_one() {}
            let spread = || (RECONNECT_MIN_MS + sys::random_u64() % RECONNECT_SPREAD_MS) as u32;
            return self.engine.borrow_mut().worker.handle_shutdown(spread);
        }
        let is_drained = self.engine.borrow().sockets() == 0 && self.http.borrow().is_quiet();
        if is_drained || now_ms >= until_ms {
            self.ended.raise();
        }
    }

    /// Delivers one envelope of another worker; `false`: there is none.
    pub(super) fn receive_one(&self) -> bool {
        let Some(bytes) = self.mailbox.borrow_mut().receive() else { return false };
        match Envelope::decode(&bytes) {
            Ok(envelope) => {
                let mut engine = self.engine.borrow_mut();
                engine.worker.handle_envelope(&envelope, sys::now_ms());
                if engine.has_output() {
                    self.work.raise();
                }
            }
            Err(error) => tracing::error!(%error, "an envelope of this very node is malformed"),
        }
        true
    }
}
