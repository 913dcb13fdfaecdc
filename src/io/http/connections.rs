//! The open HTTP connections of a thread: their deadlines, who makes way for whom, and the memory
//! of requests that have not arrived whole.

use super::BUFFER_BYTES;
use crate::io::fifo::Fifo;
use crate::io::sys;
use crate::io::wake::Waiters;
use slab::Slab;
use std::net::Shutdown;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

/// Connections that one tick ends because they are late: each wakes a task.
const ENDS_PER_TICK: usize = 64;
/// Connections that may be on their way out, in favour of others, beyond the bound: their tasks end
/// them a moment later, and who comes meanwhile waits for that.
const MAX_LEAVING: usize = 16;
/// From this time on a request that has not arrived whole gives its memory back where others need
/// it; before, those others are refused.
const BODY_PATIENCE: Duration = Duration::from_secs(1);

/// Why a connection is to end before its peer ends it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    /// Its next request did not arrive (whole) in time.
    Late,
    /// Another one needs its place.
    Place,
    /// Other requests need the memory of its own.
    Memory,
}

/// Whether there is a place for one more connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Room {
    Now,
    /// Others are about to leave: ask again when one has.
    Soon,
    None,
}

/// The answer to a request for memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Grant {
    Granted,
    /// Others have been told to give theirs back: ask again when they have.
    Wait,
    /// There is none for this connection.
    Refused,
}

#[derive(Debug)]
struct Entry {
    fd: RawFd,
    deadline_ms: u64,
    /// What ends at the deadline. A write that waits for its peer ends with both sides only.
    side: Shutdown,
    /// A request is under way, and waited for.
    is_busy: bool,
    /// It has made a request that only somebody with a secret can make.
    is_known: bool,
    /// When it began to wait for its peer; 0: it does not.
    waiting: u64,
    /// It waits for its peer to read, not to send.
    is_writing: bool,
    /// When its request began to take memory; 0: it does not, or is whole.
    body: u64,
    body_since: Instant,
    /// The memory of its request, beyond what every connection has.
    bytes: usize,
    /// What it waits for, from those that give theirs back.
    promised: usize,
    ending: Option<Ending>,
    /// It makes way for another one.
    is_leaving: bool,
}

/// All connections of one thread and service.
#[derive(Debug)]
pub struct Connections {
    table: Slab<Entry>,
    /// Requests that begin now are not waited for.
    is_draining: bool,
    /// Numbers moments: a later one has a larger stamp.
    stamp: u64,
    /// Those that wait for their peers, unknown ones and known ones.
    unknown: Fifo,
    known: Fifo,
    /// Those whose request has not arrived whole and takes memory.
    bodies: Fifo,
    leaving: usize,
    /// Raised when one that made way has left.
    left: Rc<Waiters>,
    /// What all requests take together, and may; what those take that are ending.
    bytes: usize,
    max_bytes: usize,
    ending_bytes: usize,
    /// What is promised to those that wait.
    promised_bytes: usize,
    /// All that requests have ever given back.
    freed_bytes: u64,
    /// Raised when memory was given back.
    freed: Rc<Waiters>,
}

impl Connections {
    /// `max_bytes`: what requests may take together, beyond the buffer that every connection has.
    pub fn new(max_bytes: usize) -> Self {
        Self {
            table: Slab::new(),
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

    /// Bytes allocated for requests, beyond the buffer that every connection has.
    pub fn body_bytes(&self) -> usize {
        self.bytes
    }

    /// Bytes of requests that were freed since this thread began.
    pub fn freed_bytes(&self) -> u64 {
        self.freed_bytes
    }

    /// The node drains: what comes from now on does not hold up its end.
    pub fn begin_drain(&mut self) {
        self.is_draining = true;
    }

    /// No request is under way that began before the drain.
    pub fn is_quiet(&self) -> bool {
        self.table.iter().all(|(_, entry)| !entry.is_busy)
    }

    /// Adds a connection that waits for its first request; its key.
    ///
    /// # Safety
    /// The descriptor must stay open until [`Connections::remove`] takes the connection out.
    pub(super) unsafe fn add(&mut self, socket: BorrowedFd<'_>) -> usize {
        let key = self.table.insert(Entry {
            fd: socket.as_raw_fd(),
            deadline_ms: u64::MAX,
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

    /// What wakes when one that made way has left.
    pub(super) fn left(&self) -> Rc<Waiters> {
        Rc::clone(&self.left)
    }

    /// Whether there may be one more connection, where there may be `max`: the one that has waited
    /// longest for its peer makes way, those that are not known before those that are.
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

    /// It waits for its peer's next request from now on.
    pub(super) fn set_waiting(&mut self, key: usize) {
        self.table[key].is_busy = false;
        self.enter_queue(key);
    }

    /// What it is sent waits for its peer, until [`Connections::set_written`].
    pub(super) fn set_writing(&mut self, key: usize, deadline_ms: u64) {
        self.set_deadline(key, deadline_ms, Shutdown::Both);
        if self.table[key].waiting == 0 {
            self.table[key].is_writing = true;
            self.enter_queue(key);
        }
    }

    pub(super) fn set_written(&mut self, key: usize) {
        self.set_deadline(key, u64::MAX, Shutdown::Read);
        let entry = &mut self.table[key];
        if std::mem::take(&mut entry.is_writing) {
            entry.waiting = 0;
        }
    }

    /// It waits for its peer, and makes way after those that have waited for longer.
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

    /// Its request is whole and under way. The deadline was for the request to arrive; its answer
    /// may take longer: a profile does.
    pub(super) fn set_busy(&mut self, key: usize) {
        let entry = &mut self.table[key];
        entry.is_busy = !self.is_draining;
        (entry.waiting, entry.body, entry.deadline_ms) = (0, 0, u64::MAX);
    }

    pub(super) fn set_known(&mut self, key: usize) {
        self.table[key].is_known = true;
    }

    pub(super) fn is_known(&self, key: usize) -> bool {
        self.table[key].is_known
    }

    // Memory.

    /// What wakes when memory was given back.
    pub(super) fn freed(&self) -> Rc<Waiters> {
        Rc::clone(&self.freed)
    }

    /// The buffers of a connection's request are about to have this size together. To be asked
    /// before they are allocated, and after they have become smaller. A request that is refused is
    /// over: what it has is promised to others at once.
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

    /// The same for buffers that the request can do without: nobody makes way for them.
    pub(super) fn ask_for_spare(&mut self, key: usize, buffers: usize) -> bool {
        self.take(key, buffers.saturating_sub(BUFFER_BYTES))
    }

    /// Gives a connection this memory, if it is there.
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
        // A buffer that grows is a new one: the old one is freed.
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

    /// A connection has freed the memory of its request.
    pub(super) fn release(&mut self, key: usize) {
        self.withdraw(key);
        self.give_back(key, 0);
    }

    /// A connection has no more than so much memory any longer.
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

    /// Ends requests that have taken their memory for too long, the oldest first, until there will
    /// be this number of bytes more for `key`.
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

    /// A connection no longer waits for memory.
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
        entry.deadline_ms = u64::MAX;
        let side = if why == Ending::Memory { Shutdown::Read } else { entry.side };
        // SAFETY: whoever added the connection keeps its descriptor open for as long as it is here.
        let socket = unsafe { BorrowedFd::borrow_raw(entry.fd) };
        sys::shutdown(socket, side);
        // It may wait for memory instead of its peer.
        self.freed.wake_all();
    }

    pub(super) fn ending(&self, key: usize) -> Option<Ending> {
        self.table[key].ending
    }

    pub(super) fn set_deadline(&mut self, key: usize, deadline_ms: u64, side: Shutdown) {
        let entry = &mut self.table[key];
        (entry.deadline_ms, entry.side) = (deadline_ms, side);
    }

    /// The wall clock was set: deadlines stay as far away as they were.
    pub fn handle_clock_step(&mut self, step_ms: i64) {
        for (_, entry) in &mut self.table {
            if entry.deadline_ms != u64::MAX {
                entry.deadline_ms = entry.deadline_ms.saturating_add_signed(step_ms);
            }
        }
    }

    /// Ends the reading side of those that are late, and their tasks answer 408; those that do not
    /// read what they are sent end altogether. A bounded number: the others with the next tick.
    pub fn handle_tick(&mut self, now_ms: u64) {
        let late = self.table.iter().filter(|(_, entry)| entry.deadline_ms <= now_ms);
        let late: Vec<usize> = late.map(|(key, _)| key).take(ENDS_PER_TICK).collect();
        late.into_iter().for_each(|key| self.end(key, Ending::Late));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    /// Connections whose other ends are open.
    fn open(max_bytes: usize, count: usize) -> (Connections, Vec<usize>, Vec<UnixStream>) {
        let mut all = Connections::new(max_bytes);
        let ends: Vec<UnixStream> =
            (0..count).map(|_| UnixStream::pair().unwrap()).flat_map(|(a, b)| [a, b]).collect();
        // SAFETY: the tests keep the ends for as long as the connections.
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
        // Only one with a request under way is left.
        assert_eq!(all.make_room(1), Room::None);
        all.remove(keys[3]);
        assert_eq!((all.make_room(2), all.make_room(1)), (Room::Now, Room::None));
    }

    #[test]
    fn who_does_not_read_its_answer_makes_way_too() {
        let (mut all, keys, ends) = open(0, 2);
        keys.iter().for_each(|&key| all.set_busy(key));
        assert_eq!(all.make_room(2), Room::None);
        all.set_writing(keys[1], 9);
        assert!(!all.is_quiet(), "a drain waits for it");
        all.set_written(keys[1]);
        assert_eq!(all.make_room(2), Room::None);
        all.set_writing(keys[1], 9);
        assert_eq!(all.make_room(2), Room::Now);
        assert_eq!(all.ending(keys[1]), Some(Ending::Place));
        // What is under way to it ends as well.
        assert!(sys::send(&ends[2], b"answer").is_err());
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
        // The one that has held it for long gives it back; others wait for that, and end nobody.
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
        // A request that is whole keeps its memory, however long its answer takes.
        all.set_busy(keys[1]);
        assert_eq!(all.ask(keys[2], with(31)), Grant::Refused);
        keys[1..].iter().for_each(|&key| all.remove(key));
        assert_eq!((all.body_bytes(), all.ending_bytes, all.count()), (0, 0, 0));
        assert_eq!((all.promised_bytes, all.freed_bytes()), (0, 160));
    }

    /// Each was refused for the memory of others that had been refused a moment before: none went
    /// on.
    #[test]
    fn of_requests_that_grow_in_step_as_many_go_on_as_there_is_memory_for() {
        let (mut all, keys, _ends) = open(800, 9);
        let (&late, keys) = keys.split_last().unwrap();
        let with = |bytes: usize| BUFFER_BYTES + bytes;
        assert!(keys.iter().all(|&key| all.ask(key, with(100)) == Grant::Granted));
        let mut grants: Vec<Grant> = keys.iter().map(|&key| all.ask(key, with(200))).collect();
        assert_eq!(grants.iter().filter(|&&grant| grant == Grant::Wait).count(), 4);
        // What is promised is not for others.
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
