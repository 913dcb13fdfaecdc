//! How a worker reaches the other workers of its node, and its broker: by mailboxes if there is no
//! broker, by calls if it runs on the same thread, by lanes if it has its own thread. The rest of
//! the worker does not know which.

use super::broker::pending::{Ticket, Tickets};
use super::broker::threaded::{ToWorker, WorkerEnd};
use super::lane::{Bell, LOOK_FOR_ROOM_EVERY};
use super::mailbox::{Mailbox, MailboxMessage};
use super::shared::Shared;
use super::sync::Notify;
use crate::state::broker::{Outcome, Pusher};
use crate::state::counters::{Counters, Drop as DropReason};
use crate::state::router::{QueueState, Router, WorkerMessage};
use crate::state::subscriptions::{BrokerRequest, Relay, Unsent};
use crate::types::Routing;
use crate::wire::envelope::Envelope;
use crate::wire::publication::{ChannelNames, Publication};
use std::cell::{OnceCell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

/// Carries messages from a worker to others.
pub enum Carrier {
    /// There is no broker.
    Mailbox(Mailbox),
    /// The broker runs on the same thread: see [`Transport::set_broker`].
    Inline,
    Threaded(WorkerEnd),
}

/// A broker on the thread of the node's only worker.
pub trait InlineBroker {
    /// Publishes a message; the outcome goes to [`Transport::settle`].
    fn push(&self, envelope: &Envelope<'_>, routing: Routing, pusher: Pusher, read_at: Instant);
    fn request(&self, worker: usize, request: &BrokerRequest);
    fn handle_tick(&self);
}

enum Way {
    Mailbox(RefCell<Mailbox>),
    Inline { broker: OnceCell<Rc<dyn InlineBroker>>, routing: Routing },
    Threaded { port: RefCell<WorkerEnd>, names: ChannelNames, routing: Routing },
}

/// One worker's end of the transport.
pub struct Transport {
    shared: Arc<Shared>,
    index: usize,
    counters: Arc<Counters>,
    router: Router,
    way: Way,
    tickets: Tickets,
    /// Something waits for room at other workers, or at the broker's thread.
    waits_for_room: Notify,
}

impl Transport {
    pub fn new(shared: Arc<Shared>, index: usize, carrier: Carrier) -> Self {
        let (settings, redis) = (&shared.at_start, shared.at_start.redis.as_ref());
        let routing = redis.map_or(Routing::Project, |redis| redis.routing);
        let way = match carrier {
            Carrier::Mailbox(mailbox) => Way::Mailbox(RefCell::new(mailbox)),
            Carrier::Inline => Way::Inline { broker: OnceCell::new(), routing },
            Carrier::Threaded(port) => Way::Threaded {
                port: RefCell::new(port),
                names: ChannelNames::new(redis.map_or("", |redis| &redis.prefix)),
                routing,
            },
        };
        Self {
            index,
            counters: Arc::clone(&shared.counters[index]),
            router: Router::new(settings.node, index, settings.workers),
            way,
            tickets: Tickets::default(),
            waits_for_room: Notify::default(),
            shared,
        }
    }

    /// Sets the broker for [`Carrier::Inline`], before anything is sent.
    pub fn set_broker(&self, broker: Rc<dyn InlineBroker>) {
        if let Way::Inline { broker: place, .. } = &self.way {
            // Set once in each worker's life.
            let _ = place.set(broker);
        }
    }

    // Pushes.

    /// Hands a message over. Without a ticket it has been accepted, and the caller must deliver it
    /// to this worker's own clients; with one, it comes back for them.
    pub fn push(
        &self,
        envelope: &Envelope<'_>,
        read_at: Instant,
    ) -> Result<Option<Ticket<'_>>, Outcome> {
        match &self.way {
            Way::Mailbox(mailbox) => {
                self.push_to_workers(&mut mailbox.borrow_mut(), envelope).map(|()| None)
            }
            Way::Inline { broker, routing } => {
                let ticket = self.issue(envelope)?;
                if let Some(broker) = broker.get() {
                    let pusher = Pusher { worker: self.index, ticket: ticket.number() };
                    broker.push(envelope, *routing, pusher, read_at);
                }
                Ok(Some(ticket))
            }
            Way::Threaded { port, names, routing } => {
                let ticket = self.issue(envelope)?;
                let mut publication = Publication::default();
                publication.add_message(names, *routing, envelope);
                if !port.borrow_mut().publish(publication, ticket.number()) {
                    self.settle(ticket.number(), Outcome::Overloaded, envelope.accepted_us);
                }
                Ok(Some(ticket))
            }
        }
    }

    fn push_to_workers(
        &self,
        mailbox: &mut Mailbox,
        envelope: &Envelope<'_>,
    ) -> Result<(), Outcome> {
        if mailbox.is_alone() {
            return Ok(());
        }
        let wanted = self.router.others_with(&envelope.targets).bits();
        if !mailbox.has_room(wanted) {
            self.counters.count_drops(DropReason::MailboxFull, 1);
            return Err(Outcome::Overloaded);
        }
        let mut bytes = Vec::with_capacity(envelope.encoded_bytes());
        envelope.encode(&mut bytes);
        mailbox.send(&Arc::from(bytes), wanted);
        Ok(())
    }

    /// Issues a ticket if, as far as is known here, the queue takes the message.
    fn issue(&self, envelope: &Envelope<'_>) -> Result<Ticket<'_>, Outcome> {
        if envelope.encoded_bytes() > self.shared.queue.max_bytes() {
            self.counters.too_large_pushes.add(1);
            return Err(Outcome::TooLarge);
        }
        if self.shared.queue.is_down() {
            return Err(Outcome::Unreachable);
        }
        self.tickets.issue(envelope.accepted_us).ok_or(Outcome::Overloaded)
    }

    /// Handles the queue's answer to a push.
    pub fn settle(&self, ticket: u32, outcome: Outcome, now_us: u64) {
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

    /// Returns whether an answer of the queue is pending.
    pub fn awaits_answer(&self) -> bool {
        !self.tickets.is_empty()
    }

    /// Returns whether the receivers of pushes have room for one more.
    pub fn has_room(&self) -> bool {
        match &self.way {
            Way::Mailbox(mailbox) => mailbox.borrow().has_room(u64::MAX),
            Way::Inline { .. } => true,
            Way::Threaded { port, .. } => port.borrow().has_room(),
        }
    }

    // Announcements and requests to others.

    /// Hands a request to those that it concerns. Returns a parcel that cannot be handed over.
    pub fn forward(&self, request: BrokerRequest) -> Result<(), (Relay, Unsent)> {
        match &self.way {
            Way::Mailbox(mailbox) => self.send_to_workers(&mut mailbox.borrow_mut(), request),
            way => self.send_to_broker(way, request),
        }
    }

    fn send_to_workers(
        &self,
        mailbox: &mut Mailbox,
        request: BrokerRequest,
    ) -> Result<(), (Relay, Unsent)> {
        match self.router.among_workers(request) {
            None => {}
            Some((Some(worker), WorkerMessage::Event(event))) => mailbox.notify(worker, event),
            Some((None, WorkerMessage::Event(event))) => mailbox.notify_all(event),
            Some((to, WorkerMessage::Parcel(project, relay))) => {
                let is_taken = mailbox.relay(project, to, &Arc::from(&relay.parcel[..]));
                return if is_taken { Ok(()) } else { Err((relay, Unsent::Full)) };
            }
        }
        Ok(())
    }

    fn send_to_broker(&self, way: &Way, request: BrokerRequest) -> Result<(), (Relay, Unsent)> {
        let queue = &self.shared.queue;
        let state = QueueState { is_down: queue.is_down(), max_bytes: queue.max_bytes() };
        let unsent = self.router.unsent(&request, state);
        match (way, request) {
            (_, BrokerRequest::Relay(relay)) if let Some(why) = unsent => return Err((relay, why)),
            (Way::Mailbox(_), _) => {}
            (Way::Inline { broker, .. }, request) => {
                broker.get().into_iter().for_each(|broker| broker.request(self.index, &request));
            }
            (Way::Threaded { port, .. }, BrokerRequest::Relay(relay)) => {
                let handed = port.borrow_mut().relay(relay);
                return handed.map_err(|relay| (relay, Unsent::Full));
            }
            (Way::Threaded { port, .. }, request) => port.borrow_mut().request(request),
        }
        Ok(())
    }

    /// Hands over what the other workers, or the broker's thread, had no room for: now, or as soon
    /// as they have some.
    pub fn send_late(&self) {
        if self.has_late() {
            match &self.way {
                Way::Mailbox(mailbox) => mailbox.borrow_mut().send_late(),
                Way::Inline { .. } => {}
                Way::Threaded { port, .. } => port.borrow_mut().send_late(),
            }
            if self.has_late() {
                self.waits_for_room.notify();
            }
        }
    }

    /// Returns whether something waits for room at the other workers, or at the broker's thread.
    pub fn has_late(&self) -> bool {
        match &self.way {
            Way::Mailbox(mailbox) => mailbox.borrow().has_late(),
            Way::Inline { .. } => false,
            Way::Threaded { port, .. } => port.borrow().has_late(),
        }
    }

    /// Retries while something waits for room.
    pub async fn relay_late(&self) {
        loop {
            poll_fn(|context| self.waits_for_room.poll(context)).await;
            monoio::time::sleep(LOOK_FOR_ROOM_EVERY).await;
            self.send_late();
        }
    }

    // Receiving.

    /// Returns the next message of another worker, or of the broker's thread. An inline broker
    /// delivers its messages directly.
    pub fn receive(&self) -> Option<ToWorker> {
        match &self.way {
            Way::Mailbox(mailbox) => Some(match mailbox.borrow_mut().receive()? {
                MailboxMessage::Envelope(bytes) => ToWorker::Deliver(bytes),
                MailboxMessage::Event(event) => ToWorker::Event(event),
            }),
            Way::Inline { .. } => None,
            Way::Threaded { port, .. } => port.borrow_mut().receive(),
        }
    }

    /// Returns whether nothing waits for [`Transport::receive`].
    pub fn has_received_all(&self) -> bool {
        match &self.way {
            Way::Mailbox(mailbox) => mailbox.borrow().is_empty(),
            Way::Inline { .. } => true,
            Way::Threaded { port, .. } => port.borrow().is_empty(),
        }
    }

    /// Reports to the broker that the canary message has arrived.
    pub fn confirm_canary(&self) {
        if let Way::Threaded { port, .. } = &self.way {
            port.borrow_mut().confirm_canary();
        }
    }

    /// Calls `look` with the bell that others ring for this worker; `None` if there is none.
    pub fn with_bell<R>(&self, look: impl FnOnce(&Bell) -> R) -> Option<R> {
        match &self.way {
            Way::Mailbox(mailbox) => Some(look(mailbox.borrow().bell())),
            Way::Inline { .. } => None,
            Way::Threaded { port, .. } => Some(look(port.borrow().bell())),
        }
    }

    // Time.

    /// Returns whether nothing waits for the next tick. An inline broker has deadlines in every
    /// tick.
    pub fn is_calm(&self) -> bool {
        !matches!(self.way, Way::Inline { .. }) && !self.has_late() && self.tickets.is_empty()
    }

    pub fn handle_tick(&self) {
        if let Way::Inline { broker, .. } = &self.way {
            broker.get().into_iter().for_each(|broker| broker.handle_tick());
        }
        self.send_late();
        let waiting_bytes = self.with_bell(Bell::waiting_bytes).unwrap_or(0);
        self.counters.waiting_bytes.set(waiting_bytes as u64);
    }

    /// Returns whether the others know, as far as they have to, that this node leaves.
    pub fn has_announced_leave(&self) -> bool {
        matches!(self.way, Way::Mailbox(_)) || self.shared.queue.is_over()
    }
}
