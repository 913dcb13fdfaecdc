//! The open HTTP connections of a thread: their deadlines, the order in which they make way, and
//! the memory of requests that have not arrived completely.

use super::BUFFER_BYTES;
use crate::io::fifo::Fifo;
use crate::io::sync::WaitQueue;
use crate::io::sys;
use crate::types::MonotonicMs;
use slab::Slab;
use std::collections::BTreeSet;
use std::net::Shutdown;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

/// Late connections that one tick ends: each wakes a task.
const ENDS_PER_TICK: usize = 64;
/// Entries of the agenda that one tick looks at.
const LOOKS_PER_TICK: usize = 1_024;
/// Connections above the limit that may be closing in favour of new ones: their tasks end them a
/// moment later, and further new connections wait for that.
const MAX_LEAVING: usize = 16;
/// Minimum number of idle connections that a drain closes per second.
const MIN_PARTING_PER_S: u64 = 100;
/// How long a drain waits for the first request of a connection that was accepted before it.
const NEWCOMER_MS: u64 = 500;
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
    /// It is idle, and the node drains.
    Drained,
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
    /// Its place in the agenda: at its deadline or before; `NEVER`: it is not there.
    due: MonotonicMs,
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
    /// It has had a request, and nothing of the next one has arrived.
    is_idle: bool,
    /// A drain closes it at its deadline.
    is_parting: bool,
    /// It has not been answered yet.
    is_new: bool,
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
    /// When to look at a connection's deadline, with its key. A connection is in it once while it
    /// has a deadline. One that is moved to a later time leaves it as it is, so that a request
    /// costs nothing here, and an idle connection only when its entry is due.
    agenda: BTreeSet<(MonotonicMs, usize)>,
    /// Connections with a request in progress that a drain waits for.
    busy: usize,
    /// A drain does not wait for requests that begin now.
    is_draining: bool,
    /// Idle connections that a drain has still to close.
    parting: usize,
    /// Connections that have not been answered yet, and until when a drain waits for them.
    newcomers: usize,
    newcomers_until: MonotonicMs,
    /// The latest generation: later events get larger ones.
    generation: u64,
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
            agenda: BTreeSet::new(),
            busy: 0,
            stalled_ms: 0,
            is_draining: false,
            parting: 0,
            newcomers: 0,
            newcomers_until: MonotonicMs::NEVER,
            generation: 0,
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

    /// Sets the memory for all requests together. What is already taken stays.
    pub fn set_max_bytes(&mut self, max_bytes: usize) {
        self.max_bytes = max_bytes;
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
    /// read their answers delay it until `unread_until` at most. Idle connections are closed one
    /// after the other, within `within_ms`.
    pub fn begin_drain(&mut self, now: MonotonicMs, within_ms: u64, unread_until: MonotonicMs) {
        self.is_draining = true;
        self.newcomers_until = now + NEWCOMER_MS;
        self.part_with_idle(now, within_ms);
        let unread_until = self.awake_at(unread_until);
        let late = |entry: &ConnectionEntry| entry.is_writing && entry.deadline > unread_until;
        let writing = self.table.iter().filter(|(_, entry)| late(entry));
        let writing: Vec<usize> = writing.map(|(key, _)| key).collect();
        writing.into_iter().for_each(|key| self.set_deadline(key, unread_until, Shutdown::Both));
    }

    fn part_with_idle(&mut self, now: MonotonicMs, within_ms: u64) {
        let idle = self.table.iter().filter(|(_, entry)| entry.is_idle);
        let idle: Vec<usize> = idle.map(|(key, _)| key).collect();
        let count = idle.len() as u64;
        let duration_ms = within_ms.min(count * 1_000 / MIN_PARTING_PER_S);
        for (number, key) in (1..).zip(idle) {
            let deadline = self.awake_at(now + duration_ms * number / count);
            let entry = &mut self.table[key];
            entry.is_parting = true;
            self.parting += 1;
            let deadline = deadline.min(entry.deadline);
            self.set_deadline(key, deadline, Shutdown::Read);
        }
    }

    pub(super) fn is_draining(&self) -> bool {
        self.is_draining
    }

    /// Returns whether no request is in progress that began before the drain, or is about to come
    /// on a connection that was accepted before, and whether the idle connections are closed.
    pub fn is_quiet(&self, now: MonotonicMs) -> bool {
        let has_newcomers = self.newcomers > 0 && now < self.newcomers_until;
        self.busy == 0 && self.parting == 0 && !has_newcomers
    }

    /// Adds a connection that waits for its first request and returns its key.
    ///
    /// # Safety
    /// The descriptor must stay open until [`Connections::remove`] takes the connection out.
    pub(super) unsafe fn add(&mut self, socket: BorrowedFd<'_>) -> usize {
        let key = self.table.insert(ConnectionEntry {
            fd: socket.as_raw_fd(),
            deadline: MonotonicMs::NEVER,
            due: MonotonicMs::NEVER,
            side: Shutdown::Read,
            is_busy: false,
            is_known: false,
            waiting: 0,
            is_writing: false,
            is_idle: false,
            is_parting: false,
            is_new: true,
            body: 0,
            body_since: Instant::now(),
            bytes: 0,
            promised: 0,
            ending: None,
            is_leaving: false,
        });
        self.newcomers += 1;
        self.set_waiting(key, false);
        key
    }

    pub(super) fn remove(&mut self, key: usize) {
        self.release(key);
        self.set_awaited(key, false);
        self.set_idle(key, false);
        self.set_answered(key);
        let entry = self.table.remove(key);
        self.agenda.remove(&(entry.due, key));
        if entry.is_leaving {
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
                move |key: usize, generation: u64| {
                    table.get(key).is_some_and(|entry| {
                        entry.waiting == generation
                            && entry.is_known == is_known
                            && !entry.is_leaving
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

    /// Marks a connection as waiting for its peer's next request. `is_idle`: it has had one, and
    /// nothing of the next one has arrived.
    pub(super) fn set_waiting(&mut self, key: usize, is_idle: bool) {
        self.set_awaited(key, false);
        self.set_idle(key, is_idle);
        self.enter_queue(key);
    }

    /// A connection that is not idle any more is not closed by a drain.
    fn set_idle(&mut self, key: usize, is_idle: bool) {
        let entry = &mut self.table[key];
        entry.is_idle = is_idle;
        if !is_idle {
            self.parting -= usize::from(std::mem::take(&mut entry.is_parting));
        }
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
        self.set_answered(key);
        let entry = &mut self.table[key];
        if std::mem::take(&mut entry.is_writing) {
            entry.waiting = 0;
        }
    }

    fn set_answered(&mut self, key: usize) {
        self.newcomers -= usize::from(std::mem::take(&mut self.table[key].is_new));
    }

    /// Queues a connection that waits for its peer: it makes way after those that have waited
    /// longer.
    fn enter_queue(&mut self, key: usize) {
        self.generation += 1;
        let entry = &mut self.table[key];
        entry.waiting = self.generation;
        let is_known = entry.is_known;
        let (table, live) = (&self.table, self.table.len());
        let is_current = |key: usize, generation| {
            table.get(key).is_some_and(|one| one.waiting == generation && one.is_known == is_known)
        };
        let fifo = if is_known { &mut self.known } else { &mut self.unknown };
        fifo.push((key, self.generation), live, is_current);
    }

    /// Marks a connection's request as complete and in progress. The deadline was for the request
    /// to arrive; the answer may take longer, as a profile does.
    pub(super) fn set_busy(&mut self, key: usize) {
        self.set_awaited(key, !self.is_draining);
        self.set_idle(key, false);
        let entry = &mut self.table[key];
        (entry.waiting, entry.body, entry.deadline) = (0, 0, MonotonicMs::NEVER);
    }

    /// Sets whether a drain waits for a connection's request.
    fn set_awaited(&mut self, key: usize, is_busy: bool) {
        let was_busy = std::mem::replace(&mut self.table[key].is_busy, is_busy);
        self.busy = self.busy + usize::from(is_busy) - usize::from(was_busy);
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
            self.generation += 1;
            (entry.body, entry.body_since) = (self.generation, Instant::now());
            let (table, live) = (&self.table, self.table.len());
            let is_current =
                |key: usize, generation| table.get(key).is_some_and(|one| one.body == generation);
            self.bodies.push((key, self.generation), live, is_current);
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
            let is_current = |key: usize, generation: u64| {
                table.get(key).is_some_and(|one| one.body == generation && one.ending.is_none())
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

    /// Lets a connection that was about to be closed go on: its next request has arrived.
    pub(super) fn revive(&mut self, key: usize) {
        if self.table[key].ending.take().is_some() {
            self.ending_bytes -= self.table[key].bytes;
        }
    }

    pub(super) fn ending(&self, key: usize) -> Option<Ending> {
        self.table[key].ending
    }

    /// Sets the deadline of a connection, by [`Connections::awake_at`], and what it then loses.
    pub(super) fn set_deadline(&mut self, key: usize, deadline: MonotonicMs, side: Shutdown) {
        let entry = &mut self.table[key];
        (entry.deadline, entry.side) = (deadline, side);
        if deadline < entry.due {
            self.agenda.remove(&(entry.due, key));
            entry.due = deadline;
            self.agenda.insert((deadline, key));
        }
    }

    /// Handles a stall: this thread did not run for `stall_ms`, and deadlines of peers move by that
    /// much.
    pub fn handle_stall(&mut self, stall_ms: u64) {
        self.stalled_ms += stall_ms;
    }

    /// Returns `now` on the clock by which peers are late. It stands still while this thread does
    /// not run, so no peer is blamed for that time.
    pub(super) fn awake_at(&self, now: MonotonicMs) -> MonotonicMs {
        now - self.stalled_ms
    }

    /// Shuts down the read side of late connections, whose tasks then answer 408; those that do not
    /// read what they are sent are shut down altogether. Ends a bounded number; the others follow
    /// with the next tick.
    pub fn handle_tick(&mut self, now: MonotonicMs) {
        self.check_deadlines(self.awake_at(now));
    }

    /// Returns whether no deadline has to be checked within this time, unless it is set later.
    pub fn is_calm(&self, now: MonotonicMs, within_ms: u64) -> bool {
        let until = self.awake_at(now) + within_ms;
        self.agenda.first().is_none_or(|(due, _)| *due > until)
    }

    /// Returns the number of connections that it looked at.
    fn check_deadlines(&mut self, awake: MonotonicMs) -> usize {
        let (mut looks, mut ends) = (0, 0);
        while looks < LOOKS_PER_TICK && ends < ENDS_PER_TICK {
            let Some(&(due, key)) = self.agenda.first().filter(|(due, _)| *due <= awake) else {
                break;
            };
            looks += 1;
            self.agenda.remove(&(due, key));
            let entry = &mut self.table[key];
            entry.due = MonotonicMs::NEVER;
            let deadline = entry.deadline;
            if deadline <= awake {
                ends += 1;
                let is_parting = entry.is_parting;
                self.set_idle(key, false);
                self.end(key, if is_parting { Ending::Drained } else { Ending::Late });
            } else if deadline < MonotonicMs::NEVER {
                entry.due = deadline;
                self.agenda.insert((deadline, key));
            }
        }
        looks
    }
}

#[cfg(test)]
mod tests;
