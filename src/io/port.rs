//! Between the broker's thread and the workers': one pair of single-producer rings for each worker,
//! and a bell on either side.

use super::mailbox::Bell;
use super::queue::{Driver, Host, TICK_MS};
use super::wake::{EventFd, duplicate, wake_sleepers, yield_now};
use crate::state::broker::{Broker, Outcome, Pusher, Sink};
use crate::state::counters::BrokerCounters;
use crate::state::wants::{Ask, Interest, Notice, Relay, To};
use crate::wire::envelope::Envelope;
use crate::wire::publication::Publication;
use rtrb::{Consumer, Producer, RingBuffer};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Words that may wait from a worker to the broker; beyond, pushes are answered 503.
const TO_BROKER_ENTRIES: usize = 4096;
/// Words that may wait from the broker to a worker; beyond, messages are dropped and counted.
const TO_WORKER_ENTRIES: usize = 8192;
/// Bytes of messages that may wait for a worker; beyond, likewise.
const WAITING_BYTES: usize = 64 << 20;
/// Bytes of events that wait for room on the way to the broker; beyond, they are lost and counted.
const MAX_LATE_BYTES: usize = 32 << 20;

#[derive(Debug)]
enum ToBroker {
    Publish(Publication, u32),
    Ask(Ask),
    CanarySeen,
}

/// What the broker tells a worker.
#[derive(Debug)]
pub enum ToWorker {
    /// An envelope or a parcel.
    Deliver(Arc<[u8]>),
    Answer(u32, Outcome),
    Ready(Interest),
    Refused(Interest),
    Notice(Notice),
    Canary,
}

/// A worker's end.
#[derive(Debug)]
pub struct WorkerPort {
    to_broker: Producer<ToBroker>,
    from_broker: Consumer<ToWorker>,
    broker_bell: Arc<Bell>,
    bell: Arc<Bell>,
    /// Asks for which the ring had no room, in order. While there are any the broker sends this
    /// worker everything.
    late_asks: VecDeque<Ask>,
    /// Of the parcels among them.
    late_bytes: usize,
    is_unsure: Arc<AtomicBool>,
}

fn bytes_of(ask: &Ask) -> usize {
    match ask {
        Ask::Relay(relay) => relay.parcel.len(),
        _ => 0,
    }
}

impl WorkerPort {
    pub fn bell(&self) -> &Bell {
        &self.bell
    }

    /// Hands a message over, to be answered with [`ToWorker::Answer`]; gives it back where there is
    /// no room.
    pub fn publish(&mut self, publication: Publication, ticket: u32) -> Result<(), Publication> {
        match self.to_broker.push(ToBroker::Publish(publication, ticket)) {
            Ok(()) => {
                self.broker_bell.ring();
                Ok(())
            }
            Err(rtrb::PushError::Full(ToBroker::Publish(publication, _))) => Err(publication),
            Err(_) => Err(Publication::default()),
        }
    }

    /// Whether [`WorkerPort::publish`] would take something.
    pub fn has_room(&self) -> bool {
        !self.to_broker.is_full()
    }

    pub fn ask(&mut self, ask: Ask) {
        self.late_bytes += bytes_of(&ask);
        self.late_asks.push_back(ask);
        self.send_late_asks();
    }

    /// Hands a parcel over; gives it back where there is no room. Events wait for it: a business
    /// server that misses one of them knows too little of its clients for good.
    pub fn relay(&mut self, relay: Relay) -> Result<(), Relay> {
        let may_wait = matches!(relay.to, To::Events(_))
            && self.late_bytes + relay.parcel.len() <= MAX_LATE_BYTES;
        if !may_wait && (!self.late_asks.is_empty() || self.to_broker.is_full()) {
            return Err(relay);
        }
        self.ask(Ask::Relay(relay));
        Ok(())
    }

    /// Tries again to hand over what there was no room for.
    pub fn has_late_asks(&self) -> bool {
        !self.late_asks.is_empty()
    }

    pub fn send_late_asks(&mut self) {
        while let Some(ask) = self.late_asks.pop_front() {
            let bytes = bytes_of(&ask);
            if let Err(rtrb::PushError::Full(ToBroker::Ask(ask))) =
                self.to_broker.push(ToBroker::Ask(ask))
            {
                self.late_asks.push_front(ask);
                break;
            }
            self.late_bytes -= bytes;
            self.broker_bell.ring();
        }
        self.is_unsure.store(!self.late_asks.is_empty(), Ordering::SeqCst);
    }

    pub fn say_canary_seen(&mut self) {
        // The next one comes in a second.
        if self.to_broker.push(ToBroker::CanarySeen).is_ok() {
            self.broker_bell.ring();
        }
    }

    pub fn receive(&mut self) -> Option<ToWorker> {
        let word = self.from_broker.pop().ok()?;
        if let ToWorker::Deliver(envelope) = &word {
            self.bell.take_bytes(envelope.len());
        }
        Some(word)
    }

    pub fn is_empty(&self) -> bool {
        self.from_broker.is_empty()
    }
}

/// The broker's end of one worker's pair.
#[derive(Debug)]
struct BrokerPort {
    from_worker: Consumer<ToBroker>,
    to_worker: Producer<ToWorker>,
    worker_bell: Arc<Bell>,
    is_unsure: Arc<AtomicBool>,
    /// Answers for which the ring had no room: none is ever lost.
    late: VecDeque<ToWorker>,
    /// Something was put in the ring since the bell was rung.
    is_due: bool,
}

impl BrokerPort {
    /// Tells the worker something that must not be lost.
    fn tell(&mut self, word: ToWorker) {
        self.late.push_back(word);
        self.send_late();
    }

    fn send_late(&mut self) {
        while let Some(word) = self.late.pop_front() {
            if let Err(rtrb::PushError::Full(word)) = self.to_worker.push(word) {
                self.late.push_front(word);
                break;
            }
        }
        self.is_due = true;
    }

    /// Hands a message over; `false`: there is no room.
    fn deliver(&mut self, envelope: &Arc<[u8]>) -> bool {
        let has_room = self.late.is_empty() && self.worker_bell.waiting_bytes() <= WAITING_BYTES;
        if !has_room || self.to_worker.is_full() {
            return false;
        }
        self.worker_bell.add_bytes(envelope.len());
        let pushed = self.to_worker.push(ToWorker::Deliver(Arc::clone(envelope)));
        debug_assert!(pushed.is_ok(), "there was room");
        self.is_due = true;
        true
    }
}

/// The broker's ends of all pairs: where a broker lives that has a thread of its own.
#[derive(Debug)]
pub struct Far {
    ports: RefCell<Vec<BrokerPort>>,
    bell: Arc<Bell>,
    counters: Arc<BrokerCounters>,
}

/// Both ends for all workers of a node. To be called before the threads have their own tables.
pub fn ports(workers: usize, counters: &Arc<BrokerCounters>) -> io::Result<(Vec<WorkerPort>, Far)> {
    let broker_bell = Arc::new(Bell::new()?);
    let (mut near, mut far) = (Vec::new(), Vec::new());
    for _ in 0..workers {
        let bell = Arc::new(Bell::new()?);
        let is_unsure = Arc::new(AtomicBool::new(false));
        let (to_broker, from_worker) = RingBuffer::new(TO_BROKER_ENTRIES);
        let (to_worker, from_broker) = RingBuffer::new(TO_WORKER_ENTRIES);
        near.push(WorkerPort {
            to_broker,
            from_broker,
            broker_bell: Arc::clone(&broker_bell),
            bell: Arc::clone(&bell),
            late_asks: VecDeque::new(),
            late_bytes: 0,
            is_unsure: Arc::clone(&is_unsure),
        });
        far.push(BrokerPort {
            from_worker,
            to_worker,
            worker_bell: bell,
            is_unsure,
            late: VecDeque::new(),
            is_due: false,
        });
    }
    let counters = Arc::clone(counters);
    Ok((near, Far { ports: RefCell::new(far), bell: broker_bell, counters }))
}

impl Far {
    pub fn bell(&self) -> &Bell {
        &self.bell
    }

    /// Whether no worker has said anything.
    pub fn is_quiet(&self) -> bool {
        self.ports.borrow().iter().all(|port| port.from_worker.is_empty())
    }
}

impl Host for Far {
    fn sink(&self) -> impl Sink + '_ {
        FarSink(self)
    }

    fn hear(&self, broker: &mut Broker, now_ms: u64) {
        let workers = self.ports.borrow().len();
        let mut unsure = 0;
        for worker in 0..workers {
            // Looked at before the ring: what is not in the ring by then was flagged before.
            if self.ports.borrow()[worker].is_unsure.load(Ordering::SeqCst) {
                unsure |= 1 << worker;
            }
            loop {
                let word = self.ports.borrow_mut()[worker].from_worker.pop();
                match word {
                    Ok(ToBroker::Publish(publication, ticket)) => {
                        let pusher = Pusher { worker, ticket };
                        broker.handle_publish(&publication, pusher, now_ms, &mut FarSink(self));
                    }
                    Ok(ToBroker::Ask(ask)) => {
                        broker.handle_ask(worker, &ask, now_ms, &mut FarSink(self));
                    }
                    Ok(ToBroker::CanarySeen) => broker.handle_canary_seen(worker),
                    Err(_) => break,
                }
            }
            let port = &mut self.ports.borrow_mut()[worker];
            if !port.late.is_empty() {
                port.send_late();
            }
        }
        broker.set_unsure(unsure);
    }

    /// The workers may need it.
    fn may_stay_awake(&self) -> bool {
        false
    }

    fn keep_time(&self) {}

    fn wake(&self) {
        for port in self.ports.borrow_mut().iter_mut() {
            if std::mem::take(&mut port.is_due) {
                port.worker_bell.ring();
            }
        }
    }

    /// A full ring drops; the link is always read, Redis cuts slow subscribers.
    async fn wait_for_room(&self) {}
}

/// Runs a broker on a thread of its own, for as long as the node lives.
pub async fn run(driver: Rc<Driver<Far>>) -> io::Result<()> {
    let mut eventfd = EventFd::new(duplicate(driver.host().bell().eventfd())?)?;
    monoio::spawn(Rc::clone(&driver).run());
    let ticking = Rc::clone(&driver);
    monoio::spawn(async move {
        loop {
            monoio::time::sleep(Duration::from_millis(TICK_MS)).await;
            ticking.handle_tick();
            wake_sleepers();
        }
    });
    // A task like the others: what the executor was started with would not let them have a turn.
    monoio::spawn(async move {
        let mut ticked = Instant::now();
        loop {
            driver.hear();
            // The executor's timers starve while there is always something to hear.
            if ticked.elapsed() >= Duration::from_millis(TICK_MS) {
                ticked = Instant::now();
                driver.handle_tick();
                wake_sleepers();
            }
            driver.host().bell().fall_asleep();
            if driver.host().is_quiet() {
                eventfd.wait().await;
            } else {
                yield_now().await;
            }
        }
    });
    std::future::pending().await
}

struct FarSink<'a>(&'a Far);

impl Sink for FarSink<'_> {
    fn deliver(&mut self, workers: u64, _envelope: &Envelope<'_>, bytes: &[u8]) {
        self.relay(workers, bytes);
    }

    fn notice(&mut self, worker: usize, notice: Notice) {
        self.0.ports.borrow_mut()[worker].tell(ToWorker::Notice(notice));
    }

    fn relay(&mut self, mut workers: u64, bytes: &[u8]) {
        let envelope: Arc<[u8]> = Arc::from(bytes);
        let mut ports = self.0.ports.borrow_mut();
        while workers != 0 {
            let worker = workers.trailing_zeros() as usize;
            workers &= workers - 1;
            if !ports[worker].deliver(&envelope) {
                self.0.counters.worker_full.add(1);
            }
        }
    }

    fn answer(&mut self, pusher: Pusher, outcome: Outcome) {
        let word = ToWorker::Answer(pusher.ticket, outcome);
        self.0.ports.borrow_mut()[pusher.worker].tell(word);
    }

    fn ready(&mut self, worker: usize, interest: &Interest) {
        self.0.ports.borrow_mut()[worker].tell(ToWorker::Ready(interest.clone()));
    }

    fn refuse(&mut self, worker: usize, interest: &Interest) {
        self.0.ports.borrow_mut()[worker].tell(ToWorker::Refused(interest.clone()));
    }

    fn canary(&mut self) {
        for port in self.0.ports.borrow_mut().iter_mut() {
            port.tell(ToWorker::Canary);
        }
    }

    fn has_room(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{MessageId, NodeId};
    use crate::wire::envelope::Targets;

    fn pair(workers: usize) -> (Vec<WorkerPort>, Far, Arc<BrokerCounters>) {
        let counters = Arc::default();
        let (near, far) = ports(workers, &counters).unwrap();
        (near, far, counters)
    }

    fn deliver(far: &Far, workers: u64, bytes: &[u8]) {
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
        far.sink().deliver(workers, &envelope, bytes);
        far.wake();
    }

    #[test]
    fn messages_go_where_they_are_wanted_and_beyond_a_full_ring_they_are_counted() {
        let (mut near, far, counters) = pair(3);
        for _ in 0..TO_WORKER_ENTRIES + 5 {
            deliver(&far, 0b101, b"x");
            // This one keeps up.
            assert!(matches!(near[2].receive(), Some(ToWorker::Deliver(_))));
        }
        assert_eq!(counters.worker_full.value(), 5);
        assert!(near[1].is_empty());
        let mut taken = 0;
        while near[0].receive().is_some() {
            taken += 1;
        }
        assert_eq!(taken, TO_WORKER_ENTRIES);
        assert_eq!(near[0].bell().waiting_bytes(), 0);
    }

    #[test]
    fn large_messages_fill_a_ring_by_their_bytes() {
        let (mut near, far, counters) = pair(1);
        let large = vec![0; 1 << 20];
        while counters.worker_full.value() == 0 {
            deliver(&far, 1, &large);
        }
        assert_eq!(near[0].bell().waiting_bytes(), WAITING_BYTES + (1 << 20));
        near[0].receive().unwrap();
        deliver(&far, 1, &large);
        assert_eq!(counters.worker_full.value(), 1);
    }

    #[test]
    fn answers_are_late_rather_than_lost_and_keep_their_order() {
        let (mut near, far, counters) = pair(1);
        let answers = TO_WORKER_ENTRIES as u32 + 10;
        for ticket in 0..answers {
            far.sink().answer(Pusher { worker: 0, ticket }, Outcome::Accepted);
        }
        deliver(&far, 1, b"after them");
        assert_eq!(counters.worker_full.value(), 1, "nothing overtakes an answer");
        for ticket in 0..answers {
            let Some(ToWorker::Answer(found, Outcome::Accepted)) = near[0].receive() else {
                panic!("ticket {ticket} has no answer");
            };
            assert_eq!(found, ticket);
            if near[0].is_empty() {
                far.ports.borrow_mut()[0].send_late();
            }
        }
        assert!(near[0].is_empty());
    }

    #[test]
    fn a_worker_that_cannot_announce_all_its_users_says_so() {
        let (mut near, far, _) = pair(1);
        for user in 0..=TO_BROKER_ENTRIES as u64 {
            near[0].ask(Ask::UserHere(user));
        }
        let is_unsure = || far.ports.borrow()[0].is_unsure.load(Ordering::SeqCst);
        assert!(is_unsure());
        assert!(near[0].publish(Publication::default(), 1).is_err(), "the push is refused");
        let mut asked = 0;
        while let Ok(word) = far.ports.borrow_mut()[0].from_worker.pop() {
            assert!(matches!(word, ToBroker::Ask(Ask::UserHere(user)) if user == asked));
            asked += 1;
            near[0].send_late_asks();
        }
        assert_eq!(asked, TO_BROKER_ENTRIES as u64 + 1);
        assert!(!is_unsure() && far.is_quiet());
    }
}
