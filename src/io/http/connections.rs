//! The open HTTP connections of a thread: their deadlines, the order in which they make way, and
//! the memory of requests that have not arrived completely.

use super::BUFFER_BYTES;
use crate::io::fifo::Fifo;
use crate::io::sync::WaitQueue;
use crate::io::sys;
use crate::types::MonotonicMs;
use slab::Slab;
use std::net::Shutdown;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

/// Late connections that one tick ends: each wakes a task.
const ENDS_PER_TICK: usize = 64;
/// Connections above the limit that may be closing in favour of new ones: their tasks end them a
/// moment later, and further new connections wait for that.
const MAX_LEAVING: usize = 16;
/// Age from which an incomplete request gives up its memory if others need it; until then, those
/// others are refused.
const BODY_PATIENCE: Duration = Duration::from_secs(1);

/// Why a connection is ended before its peer ends it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    /// Its next request did not arrive (completely) in time.
    Late,
    /// Another connection needs its place.
    Place,
    /// Other requests need its memory.
    Memory,
}

/// Whether there is a place for one more connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Room {
    Now,
    /// Others are about to leave: ask again when one has left.
    Soon,
    None,
}

/// The answer to a request for memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Grant {
    Granted,
    /// Others were asked to give theirs back: ask again when they have.
    Wait,
    /// No memory for this connection.
    Refused,
}

#[derive(Debug)]
struct ConnectionEntry {
    fd: RawFd,
    /// See [`Connections::awake_at`].
    deadline: MonotonicMs,
    /// The side that is shut down at the deadline. Only `Both` ends a write that waits for its
    /// peer.
    side: Shutdown,
    /// A request is in progress, and a drain waits for it.
    is_busy: bool,
    /// It has made a request that proves knowledge of a secret.
    is_known: bool,
    /// Stamp of when it began to wait for its peer; 0: it does not wait.
    waiting: u64,
    /// It waits for its peer to read, not to send.
    is_writing: bool,
    /// Stamp of when its request began to take memory; 0: it takes none or is complete.
    body: u64,
    body_since: Instant,
    /// Memory of its request, beyond what every connection has.
    bytes: usize,
    /// Memory that it waits for and that others are giving back.
    promised: usize,
    ending: Option<Ending>,
    /// It makes way for another connection.
    is_leaving: bool,
}

/// All connections of one thread and service.
#[derive(Debug)]
pub struct Connections {
    table: Slab<ConnectionEntry>,
    /// Time in which this thread did not run.
    stalled_ms: u64,
    /// A drain does not wait for requests that begin now.
    is_draining: bool,
    /// The latest stamp: later events get larger stamps.
    stamp: u64,
    /// Connections that wait for their peers, unknown and known ones.
    unknown: Fifo,
    known: Fifo,
    /// Connections whose request is incomplete and takes memory.
    bodies: Fifo,
    leaving: usize,
    /// Woken when a connection that made way has left.
    left: Rc<WaitQueue>,
    /// Memory that all requests take together, its limit, and the part held by those that are
    /// ending.
    bytes: usize,
    max_bytes: usize,
    ending_bytes: usize,
    /// Memory promised to connections that wait.
    promised_bytes: usize,
    /// Total bytes that requests have ever given back.
    freed_bytes: u64,
    /// Woken when memory was given back.
    freed: Rc<WaitQueue>,
}

impl Connections {
    /// `max_bytes`: memory for all requests together, beyond the buffer that every connection has.
    pub fn new(max_bytes: usize) -> Self {
        Self {
            table: Slab::new(),
            stalled_ms: 0,
            is_draining: false,
            stamp: 0,
            unknown: Fifo::default(),
            known: Fifo::default(),
            bodies: Fifo::default(),
            leaving: 0,
            left: Rc::default(),
            bytes: 0,
            max_bytes,
            ending_bytes: 0,
            promised_bytes: 0,
            freed_bytes: 0,
            freed: Rc::default(),
        }
    }

    pub fn count(&self) -> usize {
        self.table.len()
    }

    /// Returns the bytes allocated for requests, beyond the buffer that every connection has.
    pub fn body_bytes(&self) -> usize {
        self.bytes
    }

    /// Returns the bytes of requests freed since this thread began.
    pub fn freed_bytes(&self) -> u64 {
        self.freed_bytes
    }

    /// Begins a drain: requests that begin from now on do not delay its end, and peers that do not
    /// read their answers delay it until `unread_until` at most.
    pub fn begin_drain(&mut self, unread_until: MonotonicMs) {
        self.is_draining = true;
        let unread_until = self.awake_at(unread_until);
        for (_, entry) in self.table.iter_mut().filter(|(_, entry)| entry.is_writing) {
            entry.deadline = entry.deadline.min(unread_until);
        }
    }

    pub(super) fn is_draining(&self) -> bool {
        self.is_draining
    }

    /// Returns whether no request is in progress that began before the drain.
    pub fn is_quiet(&self) -> bool {
        self.table.iter().all(|(_, entry)| !entry.is_busy)
    }

    /// Adds a connection that waits for its first request and returns its key.
    ///
    /// # Safety
    /// The descriptor must stay open until [`Connections::remove`] takes the connection out.
    pub(super) unsafe fn add(&mut self, socket: BorrowedFd<'_>) -> usize {
        let key = self.table.insert(ConnectionEntry {
            fd: socket.as_raw_fd(),
            deadline: MonotonicMs::NEVER,
            side: Shutdown::Read,
            is_busy: false,
            is_known: false,
            waiting: 0,
            is_writing: false,
            body: 0,
            body_since: Instant::now(),
            bytes: 0,
            promised: 0,
            ending: None,
            is_leaving: false,
        });
        self.set_waiting(key);
        key
    }

    pub(super) fn remove(&mut self, key: usize) {
        self.release(key);
        if self.table.remove(key).is_leaving {
            self.leaving -= 1;
            self.left.wake_all();
        }
    }

    // Places.

    /// Returns the queue that is woken when a connection that made way has left.
    pub(super) fn left(&self) -> Rc<WaitQueue> {
        Rc::clone(&self.left)
    }

    /// Returns whether one more connection fits below `max`. The one that has waited longest for
    /// its peer makes way, unknown ones before known ones.
    pub(super) fn make_room(&mut self, max: usize) -> Room {
        while self.table.len() - self.leaving >= max {
            if self.leaving >= MAX_LEAVING {
                return Room::Soon;
            }
            let table = &self.table;
            let is_waiting = |is_known: bool| {
                move |key: usize, stamp: u64| {
                    table.get(key).is_some_and(|entry| {
                        entry.waiting == stamp && entry.is_known == is_known && !entry.is_leaving
                    })
                }
            };
            let oldest = self.unknown.oldest(is_waiting(false));
            let Some(key) = oldest.or_else(|| self.known.oldest(is_waiting(true))) else {
                return Room::None;
            };
            self.leaving += 1;
            self.table[key].is_leaving = true;
            self.end(key, Ending::Place);
        }
        Room::Now
    }

    /// Marks a connection as waiting for its peer's next request.
    pub(super) fn set_waiting(&mut self, key: usize) {
        self.table[key].is_busy = false;
        self.enter_queue(key);
    }

    /// Marks a connection as waiting for its peer to read, until [`Connections::set_written`].
    pub(super) fn set_writing(&mut self, key: usize, deadline: MonotonicMs) {
        self.set_deadline(key, deadline, Shutdown::Both);
        if self.table[key].waiting == 0 {
            self.table[key].is_writing = true;
            self.enter_queue(key);
        }
    }

    pub(super) fn set_written(&mut self, key: usize) {
        self.set_deadline(key, MonotonicMs::NEVER, Shutdown::Read);
        let entry = &mut self.table[key];
        if std::mem::take(&mut entry.is_writing) {
            entry.waiting = 0;
        }
    }

    /// Queues a connection that waits for its peer: it makes way after those that have waited
    /// longer.
    fn enter_queue(&mut self, key: usize) {
        self.stamp += 1;
        let entry = &mut self.table[key];
        entry.waiting = self.stamp;
        let is_known = entry.is_known;
        let (table, live) = (&self.table, self.table.len());
        let is_current = |key: usize, stamp| {
            table.get(key).is_some_and(|one| one.waiting == stamp && one.is_known == is_known)
        };
        let fifo = if is_known { &mut self.known } else { &mut self.unknown };
        fifo.push((key, self.stamp), live, is_current);
    }

    /// Marks a connection's request as complete and in progress. The deadline was for the request
    /// to arrive; the answer may take longer, as a profile does.
    pub(super) fn set_busy(&mut self, key: usize) {
        let entry = &mut self.table[key];
        entry.is_busy = !self.is_draining;
        (entry.waiting, entry.body, entry.deadline) = (0, 0, MonotonicMs::NEVER);
    }

    pub(super) fn set_known(&mut self, key: usize) {
        self.table[key].is_known = true;
    }

    pub(super) fn is_known(&self, key: usize) -> bool {
        self.table[key].is_known
    }

    // Memory.

    /// Returns the queue that is woken when memory was given back.
    pub(super) fn freed(&self) -> Rc<WaitQueue> {
        Rc::clone(&self.freed)
    }

    /// Requests memory so that the buffers of a connection's request may have this size together.
    /// Call it before they are allocated, and after they have become smaller. A refused request is
    /// over: its memory is promised to others at once.
    pub(super) fn ask(&mut self, key: usize, buffers: usize) -> Grant {
        self.withdraw(key);
        let wanted = buffers.saturating_sub(BUFFER_BYTES);
        if self.take(key, wanted) {
            return Grant::Granted;
        }
        let entry = &self.table[key];
        if entry.ending.is_some() {
            return Grant::Refused;
        }
        self.free(key, wanted - entry.bytes)
    }

    /// Requests memory for buffers that the request can do without: nobody makes way for them.
    pub(super) fn ask_for_spare(&mut self, key: usize, buffers: usize) -> bool {
        self.take(key, buffers.saturating_sub(BUFFER_BYTES))
    }

    /// Gives a connection this memory if it is available.
    fn take(&mut self, key: usize, wanted: usize) -> bool {
        let entry = &mut self.table[key];
        if wanted <= entry.bytes {
            self.give_back(key, wanted);
            return true;
        }
        let more = wanted - entry.bytes;
        if entry.ending.is_some() || self.bytes + self.promised_bytes + more > self.max_bytes {
            return false;
        }
        // A buffer that grows is a new allocation: the old one is freed.
        self.freed_bytes += entry.bytes as u64;
        self.bytes += more;
        entry.bytes = wanted;
        if entry.body == 0 {
            self.stamp += 1;
            (entry.body, entry.body_since) = (self.stamp, Instant::now());
            let (table, live) = (&self.table, self.table.len());
            let is_current =
                |key: usize, stamp| table.get(key).is_some_and(|one| one.body == stamp);
            self.bodies.push((key, self.stamp), live, is_current);
        }
        true
    }

    /// Gives back all memory of a connection's request.
    pub(super) fn release(&mut self, key: usize) {
        self.withdraw(key);
        self.give_back(key, 0);
    }

    /// Reduces a connection's memory to `left`.
    fn give_back(&mut self, key: usize, left: usize) {
        let entry = &mut self.table[key];
        let less = entry.bytes - left;
        if left == 0 {
            entry.body = 0;
        }
        if less > 0 {
            entry.bytes = left;
            self.bytes -= less;
            self.freed_bytes += less as u64;
            if entry.ending.is_some() {
                self.ending_bytes -= less;
            }
            self.freed.wake_all();
        }
    }

    /// Ends requests that have held memory for too long, the oldest first, until `more` bytes will
    /// be available for `key`.
    fn free(&mut self, key: usize, more: usize) -> Grant {
        while self.bytes - self.ending_bytes + self.promised_bytes + more > self.max_bytes {
            let table = &self.table;
            let is_current = |key: usize, stamp: u64| {
                table.get(key).is_some_and(|one| one.body == stamp && one.ending.is_none())
            };
            match self.bodies.oldest(is_current) {
                Some(oldest)
                    if oldest != key
                        && self.table[oldest].body_since.elapsed() >= BODY_PATIENCE =>
                {
                    self.end(oldest, Ending::Memory);
                }
                _ => {
                    self.set_ending(key, Ending::Memory);
                    return Grant::Refused;
                }
            }
        }
        self.table[key].promised = more;
        self.promised_bytes += more;
        Grant::Wait
    }

    /// Withdraws a connection's claim to promised memory.
    fn withdraw(&mut self, key: usize) {
        self.promised_bytes -= std::mem::take(&mut self.table[key].promised);
    }

    // Ends.

    fn set_ending(&mut self, key: usize, why: Ending) {
        self.withdraw(key);
        let entry = &mut self.table[key];
        if entry.ending.replace(why).is_none() {
            self.ending_bytes += entry.bytes;
        }
    }

    fn end(&mut self, key: usize, why: Ending) {
        self.set_ending(key, why);
        let entry = &mut self.table[key];
        entry.deadline = MonotonicMs::NEVER;
        let side = if why == Ending::Memory { Shutdown::Read } else { entry.side };
        // SAFETY: whoever added the connection keeps its descriptor open for as long as it is
        // listed here.
        let socket = unsafe { BorrowedFd::borrow_raw(entry.fd) };
        sys::shutdown(socket, side);
        // It may be waiting for memory instead of its peer.
        self.freed.wake_all();
    }

    pub(super) fn ending(&self, key: usize) -> Option<Ending> {
        self.table[key].ending
    }

    pub(super) fn set_deadline(&mut self, key: usize, deadline: MonotonicMs, side: Shutdown) {
        let deadline = self.awake_at(deadline);
        let entry = &mut self.table[key];
        (entry.deadline, entry.side) = (deadline, side);
    }

    /// Handles a stall: this thread did not run for `stall_ms`, and deadlines of peers move by that
    /// much.
    pub fn handle_stall(&mut self, stall_ms: u64) {
        self.stalled_ms += stall_ms;
    }

    /// Returns `now` on the clock by which peers are late. It stands still while this thread does
    /// not run, so no peer is blamed for that time.
    fn awake_at(&self, now: MonotonicMs) -> MonotonicMs {
        now - self.stalled_ms
    }

    /// Shuts down the read side of late connections, whose tasks then answer 408; those that do not
    /// read what they are sent are shut down altogether. Ends a bounded number; the others follow
    /// with the next tick.
    pub fn handle_tick(&mut self, now: MonotonicMs) {
        let awake = self.awake_at(now);
        let late = self.table.iter().filter(|(_, entry)| entry.deadline <= awake);
        let late: Vec<usize> = late.map(|(key, _)| key).take(ENDS_PER_TICK).collect();
        late.into_iter().for_each(|key| self.end(key, Ending::Late));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    /// Adds connections; returns their keys, and both ends of each.
    fn open(max_bytes: usize, count: usize) -> (Connections, Vec<usize>, Vec<UnixStream>) {
        let mut all = Connections::new(max_bytes);
        let ends: Vec<UnixStream> =
            (0..count).map(|_| UnixStream::pair().unwrap()).flat_map(|(a, b)| [a, b]).collect();
        // SAFETY: the tests keep both ends open for as long as the connections are listed.
        let keys = ends.chunks(2).map(|pair| unsafe { all.add(pair[0].as_fd()) }).collect();
        (all, keys, ends)
    }

    #[test]
    fn who_has_waited_longest_makes_way_and_who_is_known_comes_last() {
        let (mut all, keys, _ends) = open(0, 4);
        assert_eq!(all.make_room(5), Room::Now);
        assert!(keys.iter().all(|&key| all.ending(key).is_none()));
        for &key in &keys[..2] {
            all.set_busy(key);
        }
        all.set_known(keys[1]);
        all.set_waiting(keys[1]);
        let ended = |all: &Connections| {
            let is_ended = |&&key: &&usize| all.ending(key) == Some(Ending::Place);
            keys.iter().filter(is_ended).copied().collect::<Vec<_>>()
        };
        assert_eq!(all.make_room(4), Room::Now);
        assert_eq!(ended(&all), [keys[2]]);
        assert_eq!(all.make_room(3), Room::Now);
        assert_eq!(ended(&all), [keys[2], keys[3]]);
        assert_eq!(all.make_room(2), Room::Now);
        assert_eq!(ended(&all), keys[1..]);
        // Only one with a request in progress is left.
        assert_eq!(all.make_room(1), Room::None);
        all.remove(keys[3]);
        assert_eq!((all.make_room(2), all.make_room(1)), (Room::Now, Room::None));
    }

    #[test]
    fn who_does_not_read_its_answer_makes_way_too() {
        let (mut all, keys, ends) = open(0, 2);
        keys.iter().for_each(|&key| all.set_busy(key));
        assert_eq!(all.make_room(2), Room::None);
        all.set_writing(keys[1], MonotonicMs::new(9));
        assert!(!all.is_quiet(), "a drain waits for it");
        all.set_written(keys[1]);
        assert_eq!(all.make_room(2), Room::None);
        all.set_writing(keys[1], MonotonicMs::new(9));
        assert_eq!(all.make_room(2), Room::Now);
        assert_eq!(all.ending(keys[1]), Some(Ending::Place));
        // What is being sent to it ends as well.
        assert!(sys::send(&ends[2], b"answer").is_err());
    }

    /// One that read nothing kept a node from ending for `--drain_ms`.
    #[test]
    fn a_drain_does_not_wait_long_for_who_does_not_read_its_answer() {
        let (mut all, keys, _ends) = open(0, 2);
        keys.iter().for_each(|&key| all.set_busy(key));
        all.set_writing(keys[1], MonotonicMs::new(10_000));
        all.begin_drain(MonotonicMs::new(2_000));
        all.handle_tick(MonotonicMs::new(1_999));
        assert_eq!(all.ending(keys[1]), None);
        all.handle_tick(MonotonicMs::new(2_000));
        assert_eq!((all.ending(keys[0]), all.ending(keys[1])), (None, Some(Ending::Late)));
    }

    #[test]
    fn who_comes_while_others_leave_waits_for_that() {
        let (mut all, keys, _ends) = open(0, MAX_LEAVING + 1);
        assert_eq!((all.make_room(1), all.make_room(2)), (Room::Soon, Room::Now));
        all.remove(keys[0]);
        assert_eq!(all.make_room(1), Room::Now);
    }

    #[test]
    fn memory_is_for_those_whose_requests_arrive() {
        let (mut all, keys, _ends) = open(100, 4);
        let with = |bytes: usize| BUFFER_BYTES + bytes;
        let age = |all: &mut Connections, key: usize| {
            all.table[key].body_since = Instant::now().checked_sub(BODY_PATIENCE).unwrap();
        };
        assert_eq!(all.ask(keys[0], BUFFER_BYTES), Grant::Granted);
        assert_eq!(all.ask(keys[0], with(60)), Grant::Granted);
        assert_eq!(all.ask(keys[1], with(40)), Grant::Granted);
        assert_eq!(all.body_bytes(), 100);
        // Both have begun just now.
        assert!(!all.ask_for_spare(keys[2], with(1)));
        // The one that has held memory for long gives it back; others wait for that and end no
        // further one.
        age(&mut all, keys[0]);
        assert_eq!(all.ask(keys[2], with(30)), Grant::Wait);
        age(&mut all, keys[1]);
        assert_eq!(all.ask(keys[3], with(30)), Grant::Wait);
        assert_eq!(all.ending(keys[0]), Some(Ending::Memory));
        assert_eq!(all.ending(keys[1]), None);
        assert_eq!(all.ask(keys[0], with(61)), Grant::Refused);
        all.remove(keys[0]);
        assert_eq!(all.ask(keys[2], with(30)), Grant::Granted);
        assert_eq!(all.ask(keys[3], with(30)), Grant::Granted);
        // A complete request keeps its memory, however long its answer takes.
        all.set_busy(keys[1]);
        assert_eq!(all.ask(keys[2], with(31)), Grant::Refused);
        keys[1..].iter().for_each(|&key| all.remove(key));
        assert_eq!((all.body_bytes(), all.ending_bytes, all.count()), (0, 0, 0));
        assert_eq!((all.promised_bytes, all.freed_bytes()), (0, 160));
    }

    /// Each used to be refused for the memory of others that had been refused a moment before, so
    /// none made progress.
    #[test]
    fn of_requests_that_grow_in_step_as_many_go_on_as_there_is_memory_for() {
        let (mut all, keys, _ends) = open(800, 9);
        let (&late, keys) = keys.split_last().unwrap();
        let with = |bytes: usize| BUFFER_BYTES + bytes;
        assert!(keys.iter().all(|&key| all.ask(key, with(100)) == Grant::Granted));
        let mut grants: Vec<Grant> = keys.iter().map(|&key| all.ask(key, with(200))).collect();
        assert_eq!(grants.iter().filter(|&&grant| grant == Grant::Wait).count(), 4);
        // Promised memory is not given to others.
        all.release(keys[0]);
        assert_eq!(grants[0], Grant::Refused);
        assert!(!all.ask_for_spare(late, with(1)));
        for (&key, _) in keys.iter().zip(&grants).filter(|(_, grant)| **grant == Grant::Refused) {
            all.release(key);
        }
        for (&key, grant) in keys.iter().zip(&mut grants).filter(|(_, one)| **one == Grant::Wait) {
            *grant = all.ask(key, with(200));
        }
        assert_eq!(grants.iter().filter(|&&grant| grant == Grant::Granted).count(), 4);
        assert_eq!((all.body_bytes(), all.promised_bytes, all.ending_bytes), (800, 0, 0));
    }
}
