//! The inline broker: it runs on the thread of the node's only worker, so nothing crosses threads.

use super::driver::{Driver, Host};
use crate::io::clock::{self, Moment};
use crate::io::transport::InlineBroker;
use crate::io::worker_context::WorkerContext;
use crate::state::broker::{Broker, Outcome, Pusher, Sink};
use crate::state::projects::ProjectId;
use crate::state::subscriptions::{BrokerRequest, Interest, WorkerEvent};
use crate::types::{MonotonicMs, Routing};
use crate::wire::envelope::Envelope;
use std::cell::Cell;
use std::rc::Rc;
use std::time::Instant;

pub struct InlineHost {
    context: Rc<WorkerContext>,
    /// The canary message has arrived.
    has_canary: Cell<bool>,
}

impl InlineHost {
    pub fn new(context: Rc<WorkerContext>) -> Self {
        Self { context, has_canary: Cell::new(false) }
    }
}

impl Host for InlineHost {
    fn sink(&self, at: Instant) -> impl Sink + '_ {
        InlineSink { host: self, at, moment: None }
    }

    /// Requests come from [`Driver::request`].
    fn receive(&self, broker: &mut Broker, _: MonotonicMs, _: &dyn Fn(&mut Broker)) {
        if self.has_canary.take() {
            broker.handle_canary_seen(0);
        }
    }

    fn wake(&self) {}

    fn may_stay_awake(&self) -> bool {
        true
    }

    fn keep_time(&self) {
        self.context.tick(clock::now());
    }

    async fn wait_for_room(&self) {
        self.context.wait_for_room().await;
    }
}

impl InlineBroker for Driver<InlineHost> {
    fn push(&self, envelope: &Envelope<'_>, routing: Routing, pusher: Pusher, read_at: Instant) {
        Driver::push(self, envelope, routing, pusher, read_at);
    }

    fn request(&self, worker: usize, request: &BrokerRequest) {
        Driver::request(self, worker, request);
    }

    fn handle_tick(&self) {
        Driver::handle_tick(self);
    }
}

struct InlineSink<'a> {
    host: &'a InlineHost,
    at: Instant,
    /// Read once for everything emitted in one call.
    moment: Option<Moment>,
}

impl InlineSink<'_> {
    fn moment(&mut self) -> Moment {
        *self.moment.get_or_insert_with(|| Moment::at(self.at))
    }
}

impl Sink for InlineSink<'_> {
    fn deliver(&mut self, _workers: u64, envelope: &Envelope<'_>, _bytes: &[u8]) {
        let moment = self.moment();
        self.host.context.deliver(envelope, moment);
    }

    fn relay(&mut self, _workers: u64, _project: ProjectId, parcel: &[u8]) {
        let now = self.moment().now();
        self.host.context.deliver_parcel(parcel, now);
    }

    fn event(&mut self, _worker: usize, event: WorkerEvent) {
        let now = self.moment().now();
        self.host.context.handle_worker_event(event, now);
    }

    fn answer(&mut self, pusher: Pusher, outcome: Outcome) {
        let wall_us = self.moment().wall_us;
        self.host.context.transport.settle(pusher.ticket, outcome, wall_us);
    }

    fn ready(&mut self, _worker: usize, interest: &Interest) {
        let now = self.moment().now();
        self.host.context.handle_ready(interest, now);
    }

    fn refuse(&mut self, _worker: usize, interest: &Interest) {
        let now = self.moment().now();
        self.host.context.handle_refused(interest, now);
    }

    fn canary(&mut self) {
        self.host.has_canary.set(true);
    }

    fn has_room(&self) -> bool {
        self.host.context.ws_server.borrow().worker.takes_pushes()
    }
}
