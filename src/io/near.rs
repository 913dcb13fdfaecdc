//! The inline broker: it runs on the thread of the node's only worker, so nothing crosses threads.

use super::core::Core;
use super::queue::{Driver, Host};
use super::sys;
use super::transport::InlineBroker;
use crate::state::broker::{Broker, Outcome, Pusher, Sink};
use crate::state::projects::ProjectId;
use crate::state::wants::{Ask, Interest, Notice};
use crate::types::Routing;
use crate::wire::envelope::Envelope;
use std::cell::Cell;
use std::rc::Rc;
use std::time::Instant;

pub struct Near {
    core: Rc<Core>,
    /// The canary message has arrived.
    has_canary: Cell<bool>,
}

impl Near {
    pub fn new(core: Rc<Core>) -> Self {
        Self { core, has_canary: Cell::new(false) }
    }
}

impl Host for Near {
    fn sink(&self) -> impl Sink + '_ {
        NearSink { near: self, now_us: None }
    }

    fn hear(&self, broker: &mut Broker, _: u64) {
        if self.has_canary.take() {
            broker.handle_canary_seen(0);
        }
    }

    fn wake(&self) {}

    fn may_stay_awake(&self) -> bool {
        true
    }

    fn keep_time(&self) {
        self.core.tick(sys::now_ms());
    }

    async fn wait_for_room(&self) {
        self.core.wait_for_room().await;
    }
}

impl InlineBroker for Driver<Near> {
    fn push(&self, envelope: &Envelope<'_>, routing: Routing, pusher: Pusher, read_at: Instant) {
        Driver::push(self, envelope, routing, pusher, read_at);
    }

    fn ask(&self, worker: usize, ask: &Ask) {
        Driver::ask(self, worker, ask);
    }

    fn handle_tick(&self) {
        Driver::handle_tick(self);
    }
}

struct NearSink<'a> {
    near: &'a Near,
    /// Read once for everything emitted in one call.
    now_us: Option<u64>,
}

impl NearSink<'_> {
    fn now_us(&mut self) -> u64 {
        *self.now_us.get_or_insert_with(sys::now_us)
    }
}

impl Sink for NearSink<'_> {
    fn deliver(&mut self, _workers: u64, envelope: &Envelope<'_>, _bytes: &[u8]) {
        let now_us = self.now_us();
        self.near.core.deliver(envelope, now_us);
    }

    fn relay(&mut self, _workers: u64, _project: ProjectId, parcel: &[u8]) {
        self.near.core.deliver_parcel(parcel);
    }

    fn notice(&mut self, _worker: usize, notice: Notice) {
        self.near.core.handle_notice(notice);
    }

    fn answer(&mut self, pusher: Pusher, outcome: Outcome) {
        let now_us = self.now_us();
        self.near.core.transport.settle(pusher.ticket, outcome, now_us);
    }

    fn ready(&mut self, _worker: usize, interest: &Interest) {
        self.near.core.handle_ready(interest);
    }

    fn refuse(&mut self, _worker: usize, interest: &Interest) {
        self.near.core.handle_refused(interest);
    }

    fn canary(&mut self) {
        self.near.has_canary.set(true);
    }

    fn has_room(&self) -> bool {
        self.near.core.engine.borrow().worker.takes_pushes()
    }
}
