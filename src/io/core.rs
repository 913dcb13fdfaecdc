//! State shared by the tasks of one worker: the engine, the transport to others, and the wake-ups.

mod delivery;
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
use super::wake::{Flag, Waiters};
use crate::state::counters::Counters;
use crate::state::drain::Drain;
use crate::state::wants::{Interest, Notice};
use crate::wire::envelope::{Envelope, Header, Kind};
use delivery::Received;
use hold::Hold;
use memory::Reclaim;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;
use time::Schedule;
use traces::Traces;

pub use pushes::{Begun, PushOrigin};

/// State shared by the tasks of one worker.
pub struct Core {
    pub shared: Arc<Shared>,
    pub index: usize,
    pub engine: RefCell<Engine>,
    pub(super) counters: Arc<Counters>,
    pub(super) transport: Transport,
    /// When each message in the open batch was accepted, and when it was received here;
    /// microseconds.
    unwritten: RefCell<Vec<(u64, u64)>>,
    /// Messages that the worker has not matched completely, in order.
    unfinished: RefCell<VecDeque<Received>>,
    /// Slices matched since the last flush.
    slices: Cell<u32>,
    hold: Hold,
    traces: Traces,
    /// Raised when something is to be sent.
    pub(super) work: Flag,
    /// Raised when business servers have pushed.
    pub(super) server_pushes: Flag,
    /// Woken when a flush has ended.
    flushed: Waiters,
    pub http: RefCell<Connections>,
    pub(super) descriptors: Rc<Descriptors>,
    pub(super) requests: RequestCounts,
    last_tick_ms: Cell<u64>,
    schedule: Schedule,
    last_tick: Cell<Instant>,
    reclaim: Reclaim,
    drain: RefCell<Drain>,
    /// Raised when the worker has drained.
    pub(super) ended: Flag,
}

impl Core {
    /// `recorder`: where traces go, if they are recorded.
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
            unfinished: RefCell::default(),
            slices: Cell::new(0),
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

    /// Sets the broker that runs on this worker's thread.
    pub fn set_broker(&self, broker: Rc<dyn InlineBroker>) {
        self.transport.set_broker(broker);
    }

    /// Delivers a parcel of another worker or node to this worker.
    pub(super) fn deliver_parcel(&self, bytes: &[u8]) {
        let mut engine = self.engine.borrow_mut();
        engine.worker.handle_parcel(bytes, sys::now_ms());
        if engine.worker.has_output() || engine.worker.has_asks() {
            self.work.raise();
        }
    }

    pub(super) fn handle_notice(&self, notice: Notice) {
        self.engine.borrow_mut().worker.handle_notice(notice, sys::now_ms());
        self.work.raise();
    }

    /// Admits the clients that waited for `interest`, which is now in force.
    pub(super) fn handle_ready(&self, interest: &Interest) {
        self.engine.borrow_mut().handle_ready(interest, sys::now_ms());
        self.work.raise();
    }

    /// Refuses the clients that waited for `interest`, because the queue refuses it.
    pub(super) fn handle_refused(&self, interest: &Interest) {
        self.engine.borrow_mut().handle_refused(interest, sys::now_ms());
        self.work.raise();
    }

    /// Sends the broker, or the other workers, what they must know before anything else is sent to
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

    /// Waits until the open batch has room and few pushes wait to be matched. Pushers that are
    /// faster than the sockets wait here.
    pub async fn wait_for_room(&self) {
        self.flushed.wait_until(|| self.engine.borrow().worker.takes_pushes()).await;
    }

    /// Returns the wall clock as of the last tick, in milliseconds since the Unix epoch.
    pub(super) fn coarse_now_ms(&self) -> u64 {
        self.last_tick_ms.get()
    }

    /// Handles one message of another worker, or of the broker's thread. Returns `false` if there
    /// is none.
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
