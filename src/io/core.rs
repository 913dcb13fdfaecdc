//! What the tasks of one worker share: the engine, the mailbox, and the ways to wait for them.

mod hold;
mod memory;
mod relays;
mod time;

use super::descriptors::Descriptors;
use super::engine::Engine;
use super::http::{Connections, Moment};
use super::mailbox::{Bell, Mailbox, Word};
use super::near::Near;
use super::port::{ToWorker, WorkerPort};
use super::queue::Driver;
use super::request_counts::RequestCounts;
use super::shared::Shared;
use super::spans::{Recorder, Side, Span, SpanName};
use super::sys;
use super::tickets::{Ticket, Tickets};
use super::wake::{Flag, Waiters, yield_now};
use crate::state::Note;
use crate::state::broker::{Outcome, Pusher};
use crate::state::counters::{Counters, Drop as DropReason};
use crate::state::idempotency::key_hash;
use crate::state::projects::ProjectId;
use crate::state::wants::{Ask, Interest, Notice, Relay, To, Unsent};
use crate::types::{MessageId, Routing, SnowflakeClock};
use crate::wire::envelope::{Envelope, Header, Kind, Targets};
use crate::wire::publication::{ChannelNames, Publication};
use crate::wire::push::Push;
use crate::wire::trace_context::TraceContext;
use hold::Hold;
use memory::Reclaim;
use std::cell::{Cell, OnceCell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use time::Schedule;

/// What carries what a worker accepts to those who have clients for it.
pub enum Queue {
    Local(RefCell<Mailbox>),
    Redis(RedisQueue),
}

/// A worker's way to the broker.
pub struct RedisQueue {
    pub names: ChannelNames,
    pub routing: Routing,
    pub broker: BrokerAt,
}

pub enum BrokerAt {
    /// On this very thread: set once both are made.
    Here(OnceCell<Rc<Driver<Near>>>),
    Thread(RefCell<WorkerPort>),
}

/// Where a push comes from.
#[derive(Debug, Clone, Copy)]
pub struct PushOrigin<'a> {
    pub read_at: Moment,
    pub traceparent: Option<&'a str>,
}

/// The span of a push's acceptance.
#[derive(Debug, Clone, Copy)]
struct PushTrace {
    context: TraceContext,
    parent: Option<[u8; 8]>,
    start_us: u64,
}

/// A traced message that the open batch holds.
#[derive(Debug, Clone, Copy)]
struct TracedDelivery {
    parent: TraceContext,
    id: MessageId,
    project: Option<ProjectId>,
    received_us: u64,
    matched: u64,
}

/// A push that has begun.
pub struct Begun<'a> {
    core: &'a Core,
    id: MessageId,
    /// Few are traced, and what waits is moved about.
    trace: Option<Box<PushTrace>>,
    /// `None`: it is accepted already.
    ticket: Option<Ticket<'a>>,
}

impl Begun<'_> {
    pub fn id(&self) -> MessageId {
        self.id
    }

    /// Whether there is nothing to wait for.
    pub fn is_accepted(&self) -> bool {
        self.ticket.is_none()
    }

    /// Waits until the queue has accepted it; its id.
    pub async fn finish(mut self) -> Result<MessageId, Outcome> {
        poll_fn(|context| self.poll_finish(context)).await
    }

    /// See [`Begun::finish`]; not to be called again once it was ready.
    pub fn poll_finish(&mut self, context: &mut Context<'_>) -> Poll<Result<MessageId, Outcome>> {
        let Some(ticket) = &mut self.ticket else { return Poll::Ready(Ok(self.id)) };
        let outcome = ready!(ticket.poll(context));
        self.core.trace_push(self.trace.as_deref(), self.id, Some(outcome));
        Poll::Ready(match outcome {
            Outcome::Accepted => Ok(self.id),
            refused => Err(refused),
        })
    }
}

/// What the tasks of one worker share.
pub struct Core {
    pub shared: Arc<Shared>,
    pub index: usize,
    pub engine: RefCell<Engine>,
    pub(super) counters: Arc<Counters>,
    pub queue: Queue,
    pub(super) tickets: Tickets,
    /// When each message that the open batch holds was accepted, and came here; microseconds.
    unwritten: RefCell<Vec<(u64, u64)>>,
    hold: Hold,
    /// `None`: nothing is traced.
    recorder: Option<Recorder>,
    traced: RefCell<Vec<TracedDelivery>>,
    flush_began_us: Cell<u64>,
    /// Something is to be sent.
    pub(super) work: Flag,
    /// Business servers have pushed.
    pub(super) server_pushes: Flag,
    /// Something waits for room at other workers.
    waits_for_room: Flag,
    /// A flush ended.
    flushed: Waiters,
    pub http: RefCell<Connections>,
    pub(super) descriptors: Rc<Descriptors>,
    pub(super) requests: RequestCounts,
    last_tick_ms: Cell<u64>,
    schedule: Schedule,
    last_tick: Cell<Instant>,
    reclaim: Reclaim,
    drain_until_ms: Cell<Option<u64>>,
    has_said_goodbye: Cell<bool>,
    /// The worker has drained.
    pub(super) ended: Flag,
}

impl Core {
    /// `recorder`: where traces go, if anywhere.
    pub fn new(
        shared: Arc<Shared>,
        index: usize,
        mut engine: Engine,
        queue: Queue,
        recorder: Option<Recorder>,
        descriptors: Rc<Descriptors>,
    ) -> Rc<Self> {
        engine.worker.set_notes(recorder.is_some());
        let coalesce_us = shared.settings.coalesce_us;
        let http = Connections::new(shared.settings.worker_body_bytes);
        let requests = RequestCounts::new(Arc::clone(&shared.http_counters[index]));
        Rc::new(Self {
            requests,
            counters: Arc::clone(&shared.counters[index]),
            shared,
            index,
            engine: RefCell::new(engine),
            queue,
            tickets: Tickets::default(),
            unwritten: RefCell::default(),
            hold: Hold::new(coalesce_us),
            recorder,
            traced: RefCell::default(),
            flush_began_us: Cell::new(0),
            work: Flag::default(),
            server_pushes: Flag::default(),
            waits_for_room: Flag::default(),
            flushed: Waiters::default(),
            http: RefCell::new(http),
            descriptors,
            last_tick_ms: Cell::new(sys::now_ms()),
            schedule: Schedule::default(),
            last_tick: Cell::new(Instant::now()),
            reclaim: Reclaim::default(),
            drain_until_ms: Cell::new(None),
            has_said_goodbye: Cell::new(false),
            ended: Flag::default(),
        })
    }

    /// Begins to push a message: at once it has its id and its place in the order; whether it is
    /// accepted [`Begun::finish`] tells.
    pub fn begin_push(
        &self,
        pid: &str,
        push: &Push<'_>,
        origin: PushOrigin<'_>,
    ) -> Result<Begun<'_>, Outcome> {
        let parent = origin.traceparent.and_then(TraceContext::parse);
        let recorder = self.recorder.as_ref();
        let trace = recorder.and_then(|recorder| recorder.begin(parent)).map(|context| PushTrace {
            context,
            parent: parent.map(|parent| parent.span_id),
            start_us: origin.read_at.now_us,
        });
        let begun = self.try_begin(pid, push, origin.read_at, trace);
        match &begun {
            Ok(begun) if begun.is_accepted() => {
                self.counters.pushes_accepted.add(1);
                self.trace_push(begun.trace.as_deref(), begun.id, None);
            }
            Ok(_) => {}
            Err(_) => self.counters.pushes_refused.add(1),
        }
        begun
    }

    /// A push was accepted, or not. `queued`: what the queue said.
    fn trace_push(&self, trace: Option<&PushTrace>, id: MessageId, queued: Option<Outcome>) {
        let (Some(recorder), Some(trace)) = (&self.recorder, trace) else { return };
        let span = Span {
            name: SpanName::PushAccepted,
            context: trace.context,
            parent: trace.parent,
            start_us: trace.start_us,
            end_us: sys::now_us(),
            project: None,
            id,
            count: 0,
            is_error: queued.is_some_and(|outcome| outcome != Outcome::Accepted),
            worker: 0,
        };
        if queued.is_some() {
            let context = recorder.below(&trace.context);
            let parent = Some(trace.context.span_id);
            recorder.record(Span { name: SpanName::PushQueued, context, parent, ..span });
        }
        recorder.record(span);
    }

    fn try_begin(
        &self,
        pid: &str,
        push: &Push<'_>,
        read_at: Moment,
        trace: Option<PushTrace>,
    ) -> Result<Begun<'_>, Outcome> {
        let now_us = read_at.now_us;
        let trace_bytes = trace.map(|trace| trace.context.to_bytes());
        let key = push.idempotency_key.as_deref().map(|key| key_hash(pid, key));
        let id = self.engine.borrow_mut().worker.next_message_id(now_us / 1_000);
        let envelope = Envelope {
            origin: self.shared.settings.node,
            epoch: self.shared.incarnation.epoch(),
            seq: 0,
            accepted_us: now_us,
            trace: trace_bytes.as_ref(),
            id,
            ttl_ms: push.ttl_ms,
            key: key.as_ref(),
            pid: pid.as_bytes(),
            targets: push.targets.as_targets(),
            data: &push.data,
        };
        let ticket = match &self.queue {
            Queue::Local(mailbox) => {
                self.hand_to_all(&mut mailbox.borrow_mut(), &envelope, now_us)?;
                None
            }
            Queue::Redis(redis) => Some(self.publish(redis, &envelope, read_at.instant)?),
        };
        Ok(Begun { core: self, id, ticket, trace: trace.map(Box::new) })
    }

    /// The queue's answer to a push came.
    pub(super) fn settle(&self, ticket: u32, outcome: Outcome, now_us: u64) {
        match outcome {
            Outcome::Accepted => self.counters.pushes_accepted.add(1),
            _ => self.counters.pushes_refused.add(1),
        }
        if let Some(issued_us) = self.tickets.answer(ticket, outcome)
            && !matches!(outcome, Outcome::Overloaded | Outcome::TooLarge)
        {
            self.counters.queue_latency.observe(now_us.saturating_sub(issued_us));
        }
    }

    /// The `local` queue: to the other workers, and to this one's own clients.
    fn hand_to_all(
        &self,
        mailbox: &mut Mailbox,
        envelope: &Envelope<'_>,
        now_us: u64,
    ) -> Result<(), Outcome> {
        if !mailbox.is_alone() {
            let wanted = self.workers_of(&envelope.targets);
            if !mailbox.has_room(wanted) {
                self.counters.count_drops(DropReason::MailboxFull, 1);
                return Err(Outcome::Overloaded);
            }
            let mut bytes = Vec::with_capacity(envelope.encoded_bytes());
            envelope.encode(&mut bytes);
            mailbox.send(&Arc::from(bytes), wanted);
        }
        self.deliver(envelope, now_us);
        Ok(())
    }

    /// The `redis` queue: to the broker; own clients get it when it comes back.
    fn publish(
        &self,
        redis: &RedisQueue,
        envelope: &Envelope<'_>,
        read_at: Instant,
    ) -> Result<Ticket<'_>, Outcome> {
        if envelope.encoded_bytes() > self.shared.queue.max_bytes() {
            self.counters.too_large_pushes.add(1);
            return Err(Outcome::TooLarge);
        }
        if self.shared.queue.is_down() {
            return Err(Outcome::Unreachable);
        }
        let ticket = self.tickets.issue(envelope.accepted_us).ok_or(Outcome::Overloaded)?;
        match &redis.broker {
            BrokerAt::Here(driver) => {
                let pusher = Pusher { worker: self.index, ticket: ticket.number() };
                if let Some(driver) = driver.get() {
                    driver.push(envelope, redis.routing, pusher, read_at);
                }
            }
            BrokerAt::Thread(port) => {
                let mut publication = Publication::default();
                publication.add_message(&redis.names, redis.routing, envelope);
                let handed = port.borrow_mut().publish(publication, ticket.number());
                if handed.is_err() {
                    self.settle(ticket.number(), Outcome::Overloaded, envelope.accepted_us);
                }
            }
        }
        Ok(ticket)
    }

    /// Which workers may have a target: a client id names its worker, anything else may be at all.
    fn workers_of(&self, targets: &Targets<'_>) -> impl Fn(usize) -> bool + Copy + use<> {
        let workers = self.shared.settings.workers;
        let wanted = targets.cids.map(|cids| {
            cids.iter().fold(0u64, |set, cid| set | 1 << SnowflakeClock::worker_of(cid.0, workers))
        });
        move |worker| wanted.is_none_or(|set| set >> worker & 1 == 1)
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
            if let (Some(trace), Some(_)) = (envelope.trace, &self.recorder) {
                let parent = TraceContext::from_bytes(trace);
                self.traced.borrow_mut().push(TracedDelivery {
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
        traced.iter().for_each(|delivery| self.trace_delivery(delivery, now_us));
        for (accepted_us, received_us) in delivered.drain(..) {
            self.counters.write_latency.observe(now_us.saturating_sub(received_us));
            self.counters.delivery_latency.observe(now_us.saturating_sub(accepted_us));
        }
    }

    fn trace_delivery(&self, delivery: &TracedDelivery, now_us: u64) {
        let Some(recorder) = &self.recorder else { return };
        let received = recorder.below(&delivery.parent);
        let span = Span {
            name: SpanName::PushReceived,
            context: received,
            parent: Some(delivery.parent.span_id),
            start_us: delivery.received_us,
            end_us: now_us,
            project: delivery.project,
            id: delivery.id,
            count: delivery.matched,
            is_error: false,
            worker: 0,
        };
        let context = recorder.below(&received);
        let (parent, start_us) = (Some(received.span_id), self.flush_began_us.get());
        recorder.record(Span { name: SpanName::PushWritten, context, parent, start_us, ..span });
        recorder.record(span);
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
                match &self.queue {
                    Queue::Local(mailbox) => self.tell_workers(mailbox, ask),
                    Queue::Redis(redis) => self.tell_broker(redis, ask),
                }
            }
        }
        self.send_late();
        self.trace_requests();
        if self.engine.borrow().worker.has_server_pushes() {
            self.server_pushes.raise();
        }
    }

    fn trace_requests(&self) {
        let Some(recorder) = &self.recorder else { return };
        for note in self.engine.borrow_mut().worker.take_notes() {
            match note {
                Note::Asked(id) => recorder.begin_request(id, Side::Client),
                Note::Put(id) => recorder.begin_request(id, Side::Server),
                Note::Answered { id, project, is_error } => {
                    recorder.end_request(id, Side::Client, project, is_error);
                }
                Note::Replied { id, project, is_error } => {
                    recorder.end_request(id, Side::Server, project, is_error);
                }
            }
        }
    }

    fn tell_broker(&self, redis: &RedisQueue, ask: Ask) {
        if let Ask::Relay(relay) = &ask
            && let Some(why) = self.unsent(relay)
        {
            return self.engine.borrow_mut().worker.handle_unsent(relay, why);
        }
        match (&redis.broker, ask) {
            (BrokerAt::Here(driver), ask) => {
                driver.get().into_iter().for_each(|driver| driver.ask(self.index, &ask));
            }
            (BrokerAt::Thread(port), Ask::Relay(relay)) => {
                if let Err(relay) = port.borrow_mut().relay(relay) {
                    self.engine.borrow_mut().worker.handle_unsent(&relay, Unsent::Full);
                }
            }
            (BrokerAt::Thread(port), ask) => port.borrow_mut().ask(ask),
        }
    }

    /// Why a parcel cannot take the way over Redis; what stays on this node does not need it.
    fn unsent(&self, relay: &Relay) -> Option<Unsent> {
        let queue = &self.shared.queue;
        match relay.to {
            To::Holder { cid, .. }
                if SnowflakeClock::node_of(cid.0) == self.shared.settings.node =>
            {
                None
            }
            _ if relay.parcel.len() > queue.max_bytes() => Some(Unsent::TooLarge),
            To::Holder { .. } if queue.is_down() => Some(Unsent::Down),
            // Events wait for it at the broker.
            To::Holder { .. } | To::Events(_) => None,
        }
    }

    /// Waits until the open batch has room: what pushes faster than the sockets take waits here.
    pub async fn wait_for_room(&self) {
        self.flushed.wait_until(|| !self.engine.borrow().worker.is_full()).await;
    }

    /// Waits until those who take pushes from this worker have room for one more, or `until` then:
    /// of what comes in one piece, nothing shall be refused because of what is before it.
    pub async fn wait_for_takers(&self, until: Instant) {
        let has_room = || match &self.queue {
            Queue::Local(mailbox) => mailbox.borrow().has_room(|_| true),
            Queue::Redis(RedisQueue { broker: BrokerAt::Thread(port), .. }) => {
                port.borrow().has_room()
            }
            Queue::Redis(_) => true,
        };
        // They are on other threads, and do not say when they have taken something.
        while !has_room() && Instant::now() < until {
            yield_now().await;
        }
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
        let traced = self.traced.take();
        if !traced.is_empty() {
            self.flush_began_us.set(sys::now_us());
        }
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
        match &self.queue {
            Queue::Local(mailbox) => {
                let Some(word) = mailbox.borrow_mut().receive() else { return false };
                match word {
                    Word::Envelope(bytes) => self.deliver_bytes(&bytes),
                    Word::Notice(notice) => self.handle_notice(notice),
                }
            }
            Queue::Redis(RedisQueue { broker: BrokerAt::Here(_), .. }) => return false,
            Queue::Redis(RedisQueue { broker: BrokerAt::Thread(port), .. }) => {
                let Some(word) = port.borrow_mut().receive() else { return false };
                match word {
                    ToWorker::Deliver(bytes) => self.deliver_bytes(&bytes),
                    ToWorker::Answer(ticket, outcome) => {
                        self.settle(ticket, outcome, sys::now_us());
                    }
                    ToWorker::Ready(interest) => self.handle_ready(&interest),
                    ToWorker::Refused(interest) => self.handle_refused(&interest),
                    ToWorker::Notice(notice) => self.handle_notice(notice),
                    ToWorker::Canary => port.borrow_mut().say_canary_seen(),
                }
            }
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

    /// Whether nothing waits for [`Core::receive_one`].
    pub(super) fn has_heard_all(&self) -> bool {
        match &self.queue {
            Queue::Local(mailbox) => mailbox.borrow().is_empty(),
            Queue::Redis(RedisQueue { broker: BrokerAt::Thread(port), .. }) => {
                port.borrow().is_empty()
            }
            Queue::Redis(_) => true,
        }
    }

    /// Looks at the bell that others ring for this worker; `None`: there are no others.
    pub(super) fn with_bell<R>(&self, look: impl FnOnce(&Bell) -> R) -> Option<R> {
        match &self.queue {
            Queue::Local(mailbox) => Some(look(mailbox.borrow().bell())),
            Queue::Redis(RedisQueue { broker: BrokerAt::Thread(port), .. }) => {
                Some(look(port.borrow().bell()))
            }
            Queue::Redis(_) => None,
        }
    }
}
