//! State shared by the tasks of one worker: the WebSocket port, the transport to others, and the
//! wake-ups.

mod delivery;
mod hold;
mod memory;
mod pushes;
mod time;
mod traces;

use super::broker::threaded::ToWorker;
use super::clock::{self, Moment};
use super::descriptors::Descriptors;
use super::http::Connections;
use super::http_port::HttpPort;
use super::listener::Listener;
use super::request_counts::RequestCounts;
use super::shared::Shared;
use super::spans::Recorder;
use super::sync::{Notify, WaitQueue};
use super::transport::{Carrier, InlineBroker, Transport};
use super::ws_server::WsServer;
use crate::state::active_config::ActiveConfig;
use crate::state::counters::Counters;
use crate::state::drain::Drain;
use crate::state::subscriptions::{Interest, WorkerEvent};
use crate::types::{Now, WallMs};
use crate::wire::envelope::{Envelope, EnvelopeKind, Header};
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

pub use pushes::{PendingPush, PushOrigin};

/// State shared by the tasks of one worker.
pub struct WorkerContext {
    pub shared: Arc<Shared>,
    pub(super) active: RefCell<Rc<ActiveConfig>>,
    pub index: usize,
    pub ws_server: RefCell<WsServer>,
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
    pub(super) work: Notify,
    /// Raised when business servers have pushed.
    pub(super) server_pushes: Notify,
    /// Woken when a flush has ended.
    flushed: WaitQueue,
    pub http: RefCell<Connections>,
    pub(super) http_port: HttpPort,
    pub(super) descriptors: Rc<Descriptors>,
    pub(super) requests: RequestCounts,
    last_tick: Cell<Now>,
    schedule: Schedule,
    reclaim: Reclaim,
    drain: RefCell<Drain>,
    /// Raised when the worker has drained.
    pub(super) ended: Notify,
}

impl WorkerContext {
    /// `active`: what `ws_server` uses; `recorder`: where traces go, if they are recorded.
    pub fn new(
        shared: Arc<Shared>,
        active: Rc<ActiveConfig>,
        index: usize,
        (mut ws_server, http_port): (WsServer, HttpPort),
        carrier: Carrier,
        recorder: Option<Recorder>,
        descriptors: Rc<Descriptors>,
    ) -> Rc<Self> {
        ws_server.worker.set_notes(recorder.is_some());
        let coalesce_us = active.settings.times.coalesce_us;
        let http = Connections::new(active.settings.memory.worker_body_bytes);
        let requests = RequestCounts::new(Arc::clone(&shared.http_counters[index]));
        let transport = Transport::new(Arc::clone(&shared), index, carrier);
        Rc::new(Self {
            requests,
            counters: Arc::clone(&shared.counters[index]),
            shared,
            active: RefCell::new(active),
            index,
            ws_server: RefCell::new(ws_server),
            transport,
            unwritten: RefCell::default(),
            unfinished: RefCell::default(),
            slices: Cell::new(0),
            hold: Hold::new(coalesce_us),
            traces: Traces::new(recorder),
            work: Notify::default(),
            server_pushes: Notify::default(),
            flushed: WaitQueue::default(),
            http: RefCell::new(http),
            http_port,
            descriptors,
            last_tick: Cell::new(clock::now()),
            schedule: Schedule::default(),
            reclaim: Reclaim::default(),
            drain: RefCell::default(),
            ended: Notify::default(),
        })
    }

    /// Sets the broker that runs on this worker's thread.
    pub fn set_broker(&self, broker: Rc<dyn InlineBroker>) {
        self.transport.set_broker(broker);
    }

    /// Returns the configuration that this worker uses now. Keep it for one request at most: a
    /// reload frees the old one when no worker has it any more.
    pub(super) fn active(&self) -> Rc<ActiveConfig> {
        Rc::clone(&self.active.borrow())
    }

    /// Takes the configuration that a reload has put in force, if it has. The last one to give the
    /// old one up is the thread that reloads.
    fn take_config(&self, now: Now) {
        let generation = self.shared.generation();
        if self.active.borrow().generation == generation {
            return;
        }
        let active = Rc::new(self.shared.active());
        let settings = &active.settings;
        self.hold.set_coalesce_us(settings.times.coalesce_us);
        self.http.borrow_mut().set_max_bytes(settings.memory.worker_body_bytes);
        self.descriptors.set_maxima(settings.max_handshakes, settings.max_http_connections);
        self.ws_server.borrow_mut().reload(Rc::clone(&active), now);
        self.counters.config_generation.set(active.generation);
        self.active.replace(active);
    }

    /// Delivers a parcel of another worker or node to this worker.
    pub(super) fn deliver_parcel(&self, bytes: &[u8], now: Now) {
        let mut ws_server = self.ws_server.borrow_mut();
        ws_server.worker.handle_parcel(bytes, now);
        if ws_server.worker.has_output() || ws_server.worker.has_broker_requests() {
            self.work.notify();
        }
    }

    pub(super) fn handle_worker_event(&self, event: WorkerEvent, now: Now) {
        self.ws_server.borrow_mut().worker.handle_worker_event(event, now);
        self.work.notify();
    }

    /// Admits the clients that waited for `interest`, which is now in force.
    pub(super) fn handle_ready(&self, interest: &Interest, now: Now) {
        self.ws_server.borrow_mut().handle_ready(interest, now);
        self.work.notify();
    }

    /// Refuses the clients that waited for `interest`, because the queue refuses it.
    pub(super) fn handle_refused(&self, interest: &Interest, now: Now) {
        self.ws_server.borrow_mut().handle_refused(interest, now);
        self.work.notify();
    }

    /// Sends the broker, or the other workers, what they must know before anything else is sent to
    /// clients.
    pub(super) fn forward_requests(&self) {
        while self.ws_server.borrow().worker.has_broker_requests() {
            let requests = self.ws_server.borrow_mut().worker.take_broker_requests();
            for request in requests {
                if let Err((relay, why)) = self.transport.forward(request) {
                    self.ws_server.borrow_mut().worker.handle_unsent(&relay, why);
                }
            }
        }
        self.transport.send_late();
        self.trace_requests();
        if self.ws_server.borrow().worker.has_server_pushes() {
            self.server_pushes.notify();
        }
    }

    fn trace_requests(&self) {
        if self.traces.are_on() {
            let notes = self.ws_server.borrow_mut().worker.take_notes();
            notes.into_iter().for_each(|note| self.traces.note(note));
        }
    }

    /// Waits for connections on the HTTP port.
    pub(super) fn poll_http_port(&self, listener: &Listener) {
        self.ws_server.borrow_mut().poll_http_port(listener);
        self.work.notify();
    }

    /// Waits until the open batch has room and few pushes wait to be matched. Pushers that are
    /// faster than the sockets wait here.
    pub async fn wait_for_room(&self) {
        self.flushed.wait_until(|| self.ws_server.borrow().worker.takes_pushes()).await;
    }

    /// Returns the wall clock as of the last tick.
    pub(super) fn coarse_wall(&self) -> WallMs {
        self.last_tick.get().wall
    }

    /// Handles one message of another worker, or of the broker's thread. Returns `false` if there
    /// is none. `instant` was read a few messages ago at most.
    pub(super) fn receive_one(&self, instant: Instant) -> bool {
        let Some(message) = self.transport.receive() else { return false };
        let at = Moment::at(instant);
        match message {
            ToWorker::Deliver(bytes) => self.deliver_bytes(&bytes, at),
            ToWorker::Answer(ticket, outcome) => {
                self.transport.settle(ticket, outcome, at.wall_us);
            }
            ToWorker::Ready(interest) => self.handle_ready(&interest, at.now()),
            ToWorker::Refused(interest) => self.handle_refused(&interest, at.now()),
            ToWorker::Event(event) => self.handle_worker_event(event, at.now()),
            ToWorker::Canary => self.transport.confirm_canary(),
        }
        true
    }

    fn deliver_bytes(&self, bytes: &[u8], at: Moment) {
        if Header::read(bytes).is_ok_and(|header| header.kind != EnvelopeKind::Message) {
            return self.deliver_parcel(bytes, at.now());
        }
        match Envelope::decode(bytes) {
            Ok(envelope) => self.deliver(&envelope, at),
            Err(error) => tracing::error!(%error, "an envelope of this node's own is malformed"),
        }
    }
}
