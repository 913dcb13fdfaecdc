//! Connects the broker's thread and the workers: a lane to and from each worker.

use super::driver::{Driver, Host, TICK_MS};
use crate::io::lane::{Bell, Entrance, Inbox, LOOK_FOR_ROOM_EVERY, Lanes, Load, for_each_bit};
use crate::io::sync::{EventFd, Notify, duplicate, wake_sleepers, yield_now};
use crate::state::broker::{Broker, Outcome, Pusher, Sink};
use crate::state::counters::BrokerCounters;
use crate::state::projects::ProjectId;
use crate::state::subscriptions::{BrokerRequest, Interest, Relay, To, WorkerEvent};
use crate::types::MonotonicMs;
use crate::wire::envelope::Envelope;
use crate::wire::publication::Publication;
use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::slice;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Items that may wait from a worker to the broker; above it, pushes are answered 503.
const TO_BROKER_ENTRIES: usize = 4096;
/// Items that may wait from the broker to a worker; above it, messages are dropped and counted.
const TO_WORKER_ENTRIES: usize = 8192;
/// Index of the broker as a sender to a worker and as a receiver from one: there is no other.
const BROKER: usize = 0;

#[derive(Debug)]
enum ToBroker {
    Publish(Publication, u32),
    Request(BrokerRequest),
    CanarySeen,
}

impl Load for ToBroker {
    fn bytes(&self) -> usize {
        match self {
            Self::Publish(publication, _) => publication.bytes.len(),
            Self::Request(BrokerRequest::Relay(relay)) => relay.parcel.len(),
            Self::Request(_) | Self::CanarySeen => 0,
        }
    }
}

/// What the broker sends to a worker.
#[derive(Debug)]
pub enum ToWorker {
    /// An envelope or a parcel.
    Deliver(Arc<[u8]>),
    Answer(u32, Outcome),
    Ready(Interest),
    Refused(Interest),
    Event(WorkerEvent),
    Canary,
}

impl Load for ToWorker {
    fn bytes(&self) -> usize {
        match self {
            Self::Deliver(bytes) => bytes.len(),
            _ => 0,
        }
    }
}

/// A worker's end.
#[derive(Debug)]
pub struct WorkerEnd {
    lanes: Lanes<ToBroker>,
    inbox: Inbox<ToWorker>,
    /// A request waits for room. Until it is sent, the broker sends this worker everything.
    is_unsure: Arc<AtomicBool>,
}

impl WorkerEnd {
    pub fn bell(&self) -> &Bell {
        self.inbox.bell()
    }

    /// Hands a message over, to be answered with [`ToWorker::Answer`]. Returns `false` if there is
    /// no room.
    pub fn publish(&mut self, publication: Publication, ticket: u32) -> bool {
        if self.has_late() {
            self.send_late();
        }
        let bytes = publication.bytes.len();
        let item = || ToBroker::Publish(publication, ticket);
        let is_sent = self.lanes.send_new(BROKER, bytes, item);
        self.lanes.wake();
        is_sent
    }

    /// Returns whether [`WorkerEnd::publish`] would take a message.
    pub fn has_room(&self) -> bool {
        self.lanes.has_room(BROKER)
    }

    /// Sends the broker a request or an announcement, which is never lost. For parcels use
    /// [`WorkerEnd::relay`].
    pub fn request(&mut self, request: BrokerRequest) {
        let is_end = request.is_end();
        match &request {
            BrokerRequest::ServerHere(_) | BrokerRequest::ServerGone(_) => {
                self.lanes.notify(BROKER, ToBroker::Request(request), is_end);
            }
            _ => self.lanes.answer(BROKER, ToBroker::Request(request)),
        }
        self.handle_sent();
    }

    /// Hands a parcel over. Returns it if its project has used up its share of the backlog.
    pub fn relay(&mut self, relay: Relay) -> Result<(), Relay> {
        let (To::Holder { project, .. } | To::Events(project)) = relay.to;
        let result =
            self.lanes.relay(BROKER, project, ToBroker::Request(BrokerRequest::Relay(relay)));
        self.lanes.wake();
        match result {
            Err(ToBroker::Request(BrokerRequest::Relay(relay))) => Err(relay),
            _ => Ok(()),
        }
    }

    /// Returns whether something waits for [`WorkerEnd::send_late`].
    pub fn has_late(&self) -> bool {
        self.lanes.has_late()
    }

    /// Retries what found no room.
    pub fn send_late(&mut self) {
        self.lanes.flush();
        self.handle_sent();
    }

    fn handle_sent(&mut self) {
        let is_unsure = self.lanes.has_late_answers(BROKER);
        if is_unsure != self.is_unsure.load(Ordering::Relaxed) {
            self.is_unsure.store(is_unsure, Ordering::SeqCst);
        }
        self.lanes.wake();
    }

    pub fn confirm_canary(&mut self) {
        // If it does not fit, the next one comes in a second.
        let _ = self.lanes.send(BROKER, ToBroker::CanarySeen);
        self.lanes.wake();
    }

    pub fn receive(&mut self) -> Option<ToWorker> {
        self.inbox.receive()
    }

    pub fn is_empty(&self) -> bool {
        self.inbox.is_empty()
    }
}

/// The broker's ends of all lanes, for a broker with a thread of its own.
pub struct BrokerEnd {
    inbox: RefCell<Inbox<ToBroker>>,
    /// By worker.
    lanes: RefCell<Lanes<ToWorker>>,
    /// By worker: see [`WorkerEnd::is_unsure`].
    are_unsure: Box<[Arc<AtomicBool>]>,
    /// Something waits for room at the workers; [`Host::hear`] retries it.
    waits_for_room: Notify,
    counters: Arc<BrokerCounters>,
}

/// Creates both ends for all workers of a node. Must be called before the threads have their own
/// descriptor tables.
pub fn ends(
    workers: usize,
    counters: &Arc<BrokerCounters>,
) -> io::Result<(Vec<WorkerEnd>, BrokerEnd)> {
    let to_broker = Entrance::new()?;
    let to_workers = (0..workers).map(|_| Entrance::new()).collect::<io::Result<Vec<_>>>()?;
    let are_unsure: Box<[Arc<AtomicBool>]> = (0..workers).map(|_| Arc::default()).collect();
    let lanes = Lanes::new(BROKER, TO_WORKER_ENTRIES, &to_workers);
    let port = |(worker, (entrance, is_unsure)): (_, (_, &Arc<_>))| WorkerEnd {
        lanes: Lanes::new(worker, TO_BROKER_ENTRIES, slice::from_ref(&to_broker)),
        inbox: Inbox::new(entrance),
        is_unsure: Arc::clone(is_unsure),
    };
    let worker_ends = to_workers.into_iter().zip(&are_unsure).enumerate().map(port).collect();
    let broker_end = BrokerEnd {
        inbox: RefCell::new(Inbox::new(Arc::clone(&to_broker))),
        lanes: RefCell::new(lanes),
        are_unsure,
        waits_for_room: Notify::default(),
        counters: Arc::clone(counters),
    };
    Ok((worker_ends, broker_end))
}

impl BrokerEnd {
    /// Calls `look` with the bell that the workers ring.
    pub fn with_bell<R>(&self, look: impl FnOnce(&Bell) -> R) -> R {
        look(self.inbox.borrow().bell())
    }

    /// Returns whether no worker has sent anything.
    pub fn is_quiet(&self) -> bool {
        self.inbox.borrow().is_empty()
    }
}

impl Host for BrokerEnd {
    fn sink(&self, _: Instant) -> impl Sink + '_ {
        BrokerEndSink(self)
    }

    fn receive(&self, broker: &mut Broker, now: MonotonicMs, take_config: &dyn Fn(&mut Broker)) {
        let mut unsure = 0;
        // Read before the rings: whatever is not in a ring by then was flagged before.
        for (worker, is_unsure) in self.are_unsure.iter().enumerate() {
            unsure |= u64::from(is_unsure.load(Ordering::SeqCst)) << worker;
        }
        self.inbox.borrow_mut().receive_all(|worker, item| match item {
            ToBroker::Publish(publication, ticket) => {
                let pusher = Pusher { worker, ticket };
                broker.handle_publish(&publication, pusher, now, &mut BrokerEndSink(self));
            }
            ToBroker::Request(request) => {
                take_config(broker);
                broker.handle_request(worker, &request, now, &mut BrokerEndSink(self))
            }
            ToBroker::CanarySeen => broker.handle_canary_seen(worker),
        });
        let mut lanes = self.lanes.borrow_mut();
        if lanes.has_late() {
            lanes.flush();
        }
        broker.set_unsure(unsure);
    }

    /// No: the workers may need the core.
    fn may_stay_awake(&self) -> bool {
        false
    }

    fn keep_time(&self) {}

    fn wake(&self) {
        let mut lanes = self.lanes.borrow_mut();
        lanes.wake();
        if lanes.has_late() {
            self.waits_for_room.notify();
        }
    }

    /// Does not wait: a full lane drops, and the link is always read, because Redis disconnects
    /// slow subscribers.
    async fn wait_for_room(&self) {}
}

/// Runs a broker on a thread of its own, for as long as the node lives.
pub async fn run(driver: Rc<Driver<BrokerEnd>>) -> io::Result<()> {
    let mut eventfd = EventFd::new(driver.host().with_bell(|bell| duplicate(bell.eventfd()))?)?;
    monoio::spawn(Rc::clone(&driver).run());
    let ticking = Rc::clone(&driver);
    monoio::spawn(async move {
        loop {
            monoio::time::sleep(Duration::from_millis(TICK_MS)).await;
            ticking.handle_tick();
            wake_sleepers();
        }
    });
    let relaying = Rc::clone(&driver);
    monoio::spawn(async move {
        loop {
            poll_fn(|context| relaying.host().waits_for_room.poll(context)).await;
            monoio::time::sleep(LOOK_FOR_ROOM_EVERY).await;
            relaying.receive();
        }
    });
    // A spawned task like the others: the executor's root task would not let them have a turn.
    monoio::spawn(async move {
        let mut ticked = Instant::now();
        loop {
            driver.receive();
            // The executor's timers starve while there is always something to receive.
            if ticked.elapsed() >= Duration::from_millis(TICK_MS) {
                ticked = Instant::now();
                driver.handle_tick();
                wake_sleepers();
            }
            driver.host().with_bell(Bell::fall_asleep);
            if driver.host().is_quiet() {
                eventfd.wait().await;
            } else {
                yield_now().await;
            }
        }
    });
    std::future::pending().await
}

struct BrokerEndSink<'a>(&'a BrokerEnd);

impl Sink for BrokerEndSink<'_> {
    fn deliver(&mut self, workers: u64, _envelope: &Envelope<'_>, bytes: &[u8]) {
        let envelope: Arc<[u8]> = Arc::from(bytes);
        let mut lanes = self.0.lanes.borrow_mut();
        for_each_bit(workers, |worker| {
            let item = || ToWorker::Deliver(Arc::clone(&envelope));
            if !lanes.send_new(worker, envelope.len(), item) {
                self.0.counters.worker_full.add(1);
            }
        });
    }

    fn relay(&mut self, workers: u64, project: ProjectId, parcel: &[u8]) {
        let parcel: Arc<[u8]> = Arc::from(parcel);
        let item = || ToWorker::Deliver(Arc::clone(&parcel));
        let mut lanes = self.0.lanes.borrow_mut();
        let refused = lanes.relay_to_all(workers, project, parcel.len(), item);
        self.0.counters.worker_full.add(u64::from(refused.count_ones()));
    }

    fn event(&mut self, worker: usize, event: WorkerEvent) {
        let mut lanes = self.0.lanes.borrow_mut();
        match event {
            // Goes before the first welcome, whatever else waits.
            WorkerEvent::IdsBegin { .. } => lanes.answer(worker, ToWorker::Event(event)),
            _ => lanes.notify(worker, ToWorker::Event(event), event.is_end()),
        }
    }

    fn answer(&mut self, pusher: Pusher, outcome: Outcome) {
        let item = ToWorker::Answer(pusher.ticket, outcome);
        self.0.lanes.borrow_mut().answer(pusher.worker, item);
    }

    fn ready(&mut self, worker: usize, interest: &Interest) {
        self.0.lanes.borrow_mut().answer(worker, ToWorker::Ready(interest.clone()));
    }

    fn refuse(&mut self, worker: usize, interest: &Interest) {
        self.0.lanes.borrow_mut().answer(worker, ToWorker::Refused(interest.clone()));
    }

    fn canary(&mut self) {
        let mut lanes = self.0.lanes.borrow_mut();
        (0..self.0.are_unsure.len()).for_each(|worker| lanes.answer(worker, ToWorker::Canary));
    }

    fn has_room(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::lane::{BACKLOG_BYTES, PARCEL_BYTES, WAITING_BYTES};
    use crate::types::{Cid, MessageId, NodeId};
    use crate::wire::envelope::Targets;

    fn pair(workers: usize) -> (Vec<WorkerEnd>, BrokerEnd, Arc<BrokerCounters>) {
        let counters = Arc::default();
        let (worker_ends, broker_end) = ends(workers, &counters).unwrap();
        (worker_ends, broker_end, counters)
    }

    fn deliver(broker_end: &BrokerEnd, workers: u64, bytes: &[u8]) {
        let envelope = Envelope {
            origin: NodeId::default(),
            epoch: 1,
            seq: 1,
            accepted_us: 0,
            trace: None,
            id: MessageId(1),
            ttl_ms: 0,
            key: None,
            pid: b"p",
            targets: Targets::default(),
            data: b"1",
        };
        broker_end.sink(Instant::now()).deliver(workers, &envelope, bytes);
        broker_end.wake();
    }

    #[test]
    fn messages_go_where_they_are_wanted_and_beyond_a_full_ring_they_are_counted() {
        let (mut worker_ends, broker_end, counters) = pair(3);
        for _ in 0..TO_WORKER_ENTRIES + 5 {
            deliver(&broker_end, 0b101, b"x");
            // This one keeps up.
            assert!(matches!(worker_ends[2].receive(), Some(ToWorker::Deliver(_))));
        }
        assert_eq!(counters.worker_full.value(), 5);
        assert!(worker_ends[1].is_empty());
        let mut taken = 0;
        while worker_ends[0].receive().is_some() {
            taken += 1;
        }
        assert_eq!(taken, TO_WORKER_ENTRIES);
        assert_eq!(worker_ends[0].bell().waiting_bytes(), 0);
    }

    #[test]
    fn large_messages_fill_a_ring_by_their_bytes() {
        let (mut worker_ends, broker_end, counters) = pair(1);
        let large = vec![0; 1 << 20];
        while counters.worker_full.value() == 0 {
            deliver(&broker_end, 1, &large);
        }
        assert_eq!(worker_ends[0].bell().waiting_bytes(), WAITING_BYTES + (1 << 20));
        worker_ends[0].receive().unwrap();
        deliver(&broker_end, 1, &large);
        assert_eq!(counters.worker_full.value(), 1);
    }

    #[test]
    fn answers_are_late_rather_than_lost_and_keep_their_order() {
        let (mut worker_ends, broker_end, counters) = pair(1);
        let answers = TO_WORKER_ENTRIES as u32 + 10;
        for ticket in 0..answers {
            broker_end.sink(Instant::now()).answer(Pusher { worker: 0, ticket }, Outcome::Accepted);
        }
        deliver(&broker_end, 1, b"after them");
        assert_eq!(counters.worker_full.value(), 1, "nothing overtakes an answer");
        for ticket in 0..answers {
            let Some(ToWorker::Answer(found, Outcome::Accepted)) = worker_ends[0].receive() else {
                panic!("ticket {ticket} has no answer");
            };
            assert_eq!(found, ticket);
            if worker_ends[0].is_empty() {
                broker_end.lanes.borrow_mut().flush();
            }
        }
        assert!(worker_ends[0].is_empty());
    }

    #[test]
    fn a_worker_that_cannot_announce_all_its_users_says_so() {
        let (mut worker_ends, broker_end, _) = pair(1);
        for user in 0..=TO_BROKER_ENTRIES as u64 {
            worker_ends[0].request(BrokerRequest::UserHere(user));
        }
        let is_unsure = || broker_end.are_unsure[0].load(Ordering::SeqCst);
        assert!(is_unsure());
        assert!(!worker_ends[0].publish(Publication::default(), 1), "the push is refused");
        let mut asked = 0;
        while !broker_end.is_quiet() {
            for item in heard(&broker_end) {
                let expected = BrokerRequest::UserHere(asked);
                assert!(matches!(item, ToBroker::Request(request) if request == expected));
                asked += 1;
            }
            worker_ends[0].send_late();
        }
        assert_eq!(asked, TO_BROKER_ENTRIES as u64 + 1);
        assert!(!is_unsure());
    }

    const LOUD: ProjectId = ProjectId(0);
    const CALM: ProjectId = ProjectId(1);

    /// Returns what the broker takes in one call.
    fn heard(broker_end: &BrokerEnd) -> Vec<ToBroker> {
        let mut words = Vec::new();
        broker_end.inbox.borrow_mut().receive_all(|_, item| words.push(item));
        words
    }

    /// Returns the messages by name, parcels by project and text.
    fn all_heard(worker_ends: &mut WorkerEnd, broker_end: &BrokerEnd) -> Vec<String> {
        let mut names = Vec::new();
        while !broker_end.is_quiet() {
            names.extend(heard(broker_end).into_iter().map(|item| match item {
                ToBroker::Publish(..) => "push".into(),
                ToBroker::Request(BrokerRequest::Relay(relay)) => {
                    String::from_utf8(relay.parcel).unwrap()
                }
                ToBroker::Request(BrokerRequest::Join(_)) => "join".into(),
                ToBroker::Request(BrokerRequest::ServerGone(_)) => "server gone".into(),
                item => panic!("{item:?}"),
            }));
            worker_ends.send_late();
        }
        names
    }

    fn place_of(name: &str, names: &[String]) -> usize {
        names.iter().position(|one| one == name).unwrap()
    }

    /// Requests of one project used to fill the ring: others' requests were refused, and their
    /// pushes too.
    #[test]
    fn a_flood_of_one_projects_parcels_to_the_broker_leaves_room_for_others_and_for_pushes() {
        let (mut worker_ends, broker_end, _) = pair(1);
        let request = |project, text: &str| {
            let to = To::Holder { project, cid: Cid(1) };
            Relay { to, parcel: text.into() }
        };
        let loud: Vec<String> = (0..50_000).map(|number| format!("loud {number}")).collect();
        for text in &loud {
            worker_ends[0].relay(request(LOUD, text)).unwrap();
        }
        worker_ends[0].relay(request(CALM, "calm")).unwrap();
        worker_ends[0].request(BrokerRequest::ServerGone(Cid(1)));
        assert!(worker_ends[0].publish(Publication::default(), 1), "pushes have room");
        worker_ends[0].request(BrokerRequest::Join(Interest::Project(CALM)));
        let mut names = all_heard(&mut worker_ends[0], &broker_end);
        assert!(place_of("push", &names) <= TO_BROKER_ENTRIES / 2);
        assert!(place_of("join", &names) <= TO_BROKER_ENTRIES / 2 + 1);
        assert!(place_of("calm", &names) <= TO_BROKER_ENTRIES / 2 + 4);
        assert_eq!(names.last().unwrap(), "server gone", "behind what it had answered");
        names.retain(|name| name.starts_with("loud"));
        assert_eq!(names, loud);
        assert!(!worker_ends[0].has_late());
    }

    /// They also used to fill the ring from the broker, and messages of other projects were
    /// dropped.
    #[test]
    fn a_flood_of_one_projects_parcels_to_a_worker_leaves_room_for_others_and_for_pushes() {
        let (mut worker_ends, broker_end, counters) = pair(2);
        let loud: Vec<String> = (0..50_000).map(|number| format!("loud {number}")).collect();
        for text in &loud {
            broker_end.sink(Instant::now()).relay(0b11, LOUD, text.as_bytes());
            // This one keeps up.
            assert!(matches!(worker_ends[1].receive(), Some(ToWorker::Deliver(_))));
        }
        broker_end.sink(Instant::now()).relay(1, CALM, b"calm");
        broker_end.sink(Instant::now()).event(0, WorkerEvent::ServerGone(Cid(1)));
        deliver(&broker_end, 1, b"push");
        broker_end.sink(Instant::now()).answer(Pusher { worker: 0, ticket: 1 }, Outcome::Accepted);
        let mut names = Vec::new();
        while let Some(item) = worker_ends[0].receive() {
            names.push(match item {
                ToWorker::Deliver(bytes) => String::from_utf8(bytes.to_vec()).unwrap(),
                ToWorker::Answer(..) => "answer".into(),
                ToWorker::Event(_) => "server gone".into(),
                item => panic!("{item:?}"),
            });
            broker_end.lanes.borrow_mut().flush();
        }
        assert!(place_of("push", &names) <= TO_WORKER_ENTRIES / 2);
        assert!(place_of("answer", &names) <= TO_WORKER_ENTRIES / 2 + 1);
        assert!(place_of("calm", &names) <= TO_WORKER_ENTRIES / 2 + 4);
        assert_eq!(names.last().unwrap(), "server gone");
        names.retain(|name| name.starts_with("loud"));
        assert_eq!(names, loud);
        assert_eq!(counters.worker_full.value(), 0);
        assert!(!broker_end.lanes.borrow().has_late() && worker_ends[1].is_empty());
    }

    #[test]
    fn parcels_that_wait_have_a_bound_and_each_project_a_share() {
        let (_worker_ends, broker_end, counters) = pair(1);
        let parcel = vec![0; 1 << 20];
        let fill = |project| {
            let before = counters.worker_full.value();
            let sent = (0..100).take_while(|_| {
                broker_end.sink(Instant::now()).relay(1, ProjectId(project), &parcel);
                counters.worker_full.value() == before
            });
            sent.count()
        };
        let in_ring = (PARCEL_BYTES >> 20) + 1;
        assert_eq!([fill(0), fill(1)], [in_ring + (BACKLOG_BYTES >> 21), BACKLOG_BYTES >> 22]);
        deliver(&broker_end, 1, b"push");
        assert_eq!(counters.worker_full.value(), 2, "pushes have room");
    }
}
