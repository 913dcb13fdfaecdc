//! What the tasks of one worker share: the engine, the ways to others, and the ways to wait for
//! them.

mod hold;
mod memory;
mod pushes;
mod time;
mod traces;

use super::descriptors::Descriptors;
use super::engine::Engine;
use super::http::Connections;
use super::port::ToWorker;
use super::request_counts::RequestCounts;
use super::shared::Shared;
use super::spans::Recorder;
use super::sys;
use super::transport::{Carrier, InlineBroker, Transport};
use super::wake::{Flag, Waiters, yield_now};
use crate::state::counters::Counters;
use crate::state::drain::Drain;
use crate::state::wants::{Interest, Notice};
use crate::wire::envelope::{Envelope, Header, Kind};
use crate::wire::trace_context::TraceContext;
use hold::Hold;
use memory::Reclaim;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};
use time::Schedule;
use traces::{TracedDelivery, Traces};

pub use pushes::{Begun, PushOrigin};

/// What the tasks of one worker share.
pub struct Core {
    pub shared: Arc<Shared>,
    pub index: usize,
    pub engine: RefCell<Engine>,
    pub(super) counters: Arc<Counters>,
    pub(super) transport: Transport,
    /// When each message that the open batch holds was accepted, and came here; microseconds.
    unwritten: RefCell<Vec<(u64, u64)>>,
    hold: Hold,
    traces: Traces,
    /// Something is to be sent.
    pub(super) work: Flag,
    /// Business servers have pushed.
    pub(super) server_pushes: Flag,
    /// A flush ended.
    flushed: Waiters,
    pub http: RefCell<Connections>,
    pub(super) descriptors: Rc<Descriptors>,
    pub(super) requests: RequestCounts,
    last_tick_ms: Cell<u64>,
    schedule: Schedule,
    last_tick: Cell<Instant>,
    reclaim: Reclaim,
    drain: RefCell<Drain>,
    /// The worker has drained.
    pub(super) ended: Flag,
}

impl Core {
    /// `recorder`: where traces go, if anywhere.
    pub fn new(
        shared: Arc<Shared>,
        index: usize,
        mut engine: Engine,
        carrier: Carrier,
        recorder: Option<Recorder>,
        descriptors: Rc<Descriptors>,
    ) -> Rc<Self> {
        engine.worker.set_notes(recorder.is_some());
        let coalesce_us = shared.settings.coalesce_us;
        let http = Connections::new(shared.settings.worker_body_bytes);
        let requests = RequestCounts::new(Arc::clone(&shared.http_counters[index]));
        let transport = Transport::new(Arc::clone(&shared), index, carrier);
        Rc::new(Self {
            requests,
            counters: Arc::clone(&shared.counters[index]),
            shared,
            index,
            engine: RefCell::new(engine),
            transport,
            unwritten: RefCell::default(),
            hold: Hold::new(coalesce_us),
            traces: Traces::new(recorder),
            work: Flag::default(),
            server_pushes: Flag::default(),
            flushed: Waiters::default(),
            http: RefCell::new(http),
            descriptors,
            last_tick_ms: Cell::new(sys::now_ms()),
            schedule: Schedule::default(),
            last_tick: Cell::new(Instant::now()),
            reclaim: Reclaim::default(),
            drain: RefCell::default(),
            ended: Flag::default(),
        })
    }

    /// For a broker on this worker's thread.
    pub fn set_broker(&self, broker: Rc<dyn InlineBroker>) {
        self.transport.set_broker(broker);
    }

    /// Delivers a message to this worker's clients.
    pub(super) fn deliver(&self, envelope: &Envelope<'_>, now_us: u64) {
        let mut engine = self.engine.borrow_mut();
        let outcome = engine.worker.handle_envelope(envelope, now_us / 1_000);
        if outcome.matched > 0 && !outcome.is_expired {
            let waited_us = now_us.saturating_sub(envelope.accepted_us);
            self.counters.receive_latency.observe(waited_us);
            self.unwritten.borrow_mut().push((envelope.accepted_us, now_us));
            self.hold.add(now_us, envelope.expires_ms());
            if let Some(trace) = envelope.trace.filter(|_| self.traces.are_on()) {
                let parent = TraceContext::from_bytes(trace);
                self.traces.add_delivery(TracedDelivery {
                    parent,
                    id: envelope.id,
                    project: self.shared.projects.find(envelope.pid).map(|(project, _)| project),
                    received_us: now_us,
                    matched: outcome.matched,
                });
            }
        }
        if engine.has_output() {
            self.work.raise();
        }
    }

    /// What was delivered has been handed to the sockets.
    fn observe_written(&self, delivered: &mut Vec<(u64, u64)>, traced: &[TracedDelivery]) {
        if delivered.is_empty() {
            return;
        }
        let now_us = sys::now_us();
        self.traces.end_flush(traced, now_us);
        for (accepted_us, received_us) in delivered.drain(..) {
            self.counters.write_latency.observe(now_us.saturating_sub(received_us));
            self.counters.delivery_latency.observe(now_us.saturating_sub(accepted_us));
        }
    }

    /// Brings a parcel of another worker or node to this worker.
    pub(super) fn deliver_parcel(&self, bytes: &[u8]) {
        let mut engine = self.engine.borrow_mut();
        engine.worker.handle_parcel(bytes, sys::now_ms());
        if engine.has_output() || engine.worker.has_asks() {
            self.work.raise();
        }
    }

    pub(super) fn handle_notice(&self, notice: Notice) {
        self.engine.borrow_mut().worker.handle_notice(notice, sys::now_ms());
        self.work.raise();
    }

    /// What clients wait for is in force: those that waited are let in.
    pub(super) fn handle_ready(&self, interest: &Interest) {
        self.engine.borrow_mut().handle_ready(interest, sys::now_ms());
        self.work.raise();
    }

    /// What clients wait for is refused by the queue, and so are they.
    pub(super) fn handle_refused(&self, interest: &Interest) {
        self.engine.borrow_mut().handle_refused(interest, sys::now_ms());
        self.work.raise();
    }

    /// Tells the broker, or the other workers, what they must know before anything else is sent to
    /// clients.
    pub(super) fn forward_asks(&self) {
        while self.engine.borrow().worker.has_asks() {
            let asks = self.engine.borrow_mut().worker.take_asks();
            for ask in asks {
                if let Err((relay, why)) = self.transport.forward(ask) {
                    self.engine.borrow_mut().worker.handle_unsent(&relay, why);
                }
            }
        }
        self.transport.send_late();
        self.trace_requests();
        if self.engine.borrow().worker.has_server_pushes() {
            self.server_pushes.raise();
        }
    }

    fn trace_requests(&self) {
        if self.traces.are_on() {
            let notes = self.engine.borrow_mut().worker.take_notes();
            notes.into_iter().for_each(|note| self.traces.note(note));
        }
    }

    /// Waits until the open batch has room: what pushes faster than the sockets take waits here.
    pub async fn wait_for_room(&self) {
        self.flushed.wait_until(|| !self.engine.borrow().worker.is_full()).await;
    }

    /// A piece of work of the WebSocket side is over; its length.
    pub(super) fn observe_turn(&self, began: Instant) -> Duration {
        let length = began.elapsed();
        self.counters.turns.observe(length.as_micros() as u64);
        length
    }

    /// How much longer the open batch waits for more messages (`--coalesce_us`); `None`: it is to
    /// be sent now. Answers and closes never wait, and take along what was held.
    pub(super) fn held_for(&self) -> Option<Duration> {
        let left = self.hold.left(sys::now_us)?;
        let may_wait = self.engine.borrow().worker.may_wait() && !self.shared.is_draining();
        may_wait.then_some(left)
    }

    /// Sends what is owed now, and lets other tasks run about every millisecond. What becomes due
    /// meanwhile waits for the next flush: the ring's events have their turn between the two.
    pub(super) async fn flush(&self) {
        if !self.engine.borrow().has_output() {
            return;
        }
        // What is delivered meanwhile is for the next flush.
        let mut delivered = self.unwritten.take();
        self.hold.end();
        let traced = self.traces.begin_flush();
        self.engine.borrow_mut().begin_flush(sys::now_ms());
        loop {
            let began = Instant::now();
            let has_more = self.engine.borrow_mut().send_chunk();
            self.observe_turn(began);
            if !has_more {
                break;
            }
            yield_now().await;
            self.tick(sys::now_ms());
        }
        self.observe_written(&mut delivered, &traced);
        if self.unwritten.borrow().is_empty() {
            self.unwritten.replace(delivered);
        }
        self.flushed.wake_all();
    }

    /// Milliseconds since 1970 as of the last tick, not long ago.
    pub(super) fn coarse_now_ms(&self) -> u64 {
        self.last_tick_ms.get()
    }

    /// Takes one word of another worker, or of the broker's thread; `false`: there is none.
    pub(super) fn receive_one(&self) -> bool {
        let Some(word) = self.transport.receive() else { return false };
        match word {
            ToWorker::Deliver(bytes) => self.deliver_bytes(&bytes),
            ToWorker::Answer(ticket, outcome) => {
                self.transport.settle(ticket, outcome, sys::now_us());
            }
            ToWorker::Ready(interest) => self.handle_ready(&interest),
            ToWorker::Refused(interest) => self.handle_refused(&interest),
            ToWorker::Notice(notice) => self.handle_notice(notice),
            ToWorker::Canary => self.transport.say_canary_seen(),
        }
        true
    }

    fn deliver_bytes(&self, bytes: &[u8]) {
        if Header::read(bytes).is_ok_and(|header| header.kind != Kind::Message) {
            return self.deliver_parcel(bytes);
        }
        match Envelope::decode(bytes) {
            Ok(envelope) => self.deliver(&envelope, sys::now_us()),
            Err(error) => tracing::error!(%error, "an envelope of this very node is malformed"),
        }
    }
}
