//! A lane from one thread to another: a bounded single-producer ring, a backlog of items that wait
//! for room in it, and the bell of the reading thread. The mailboxes of the workers
//! ([`super::mailbox`]) and the connection to a broker's thread ([`super::broker::threaded`]) are
//! made of lanes.
//!
//! Four kinds of items share a lane:
//! - messages are sent only if there is room ([`Lanes::has_room`], [`Lanes::send`]);
//! - answers are never lost: those that find no room wait, and go first ([`Lanes::answer`]);
//! - notices are never lost, and keep their order among themselves ([`Lanes::notify`]);
//! - parcels leave half of the ring to the others, and wait by project ([`Lanes::relay`]).

use super::sync;
use crate::state::projects::ProjectId;
use rtrb::{Consumer, Producer, RingBuffer};
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed, Ordering::SeqCst, fence};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Bytes that may wait for one thread, over all its rings; above it, messages are refused.
pub(super) const WAITING_BYTES: usize = 64 << 20;
/// Bytes above which no parcel is put in a ring. A parcel also needs more than half of the ring's
/// entries to be free: the rest is for messages.
pub(super) const PARCEL_BYTES: usize = WAITING_BYTES / 2;
/// Bytes of one sending thread's parcels that may wait for room. A project may take as much as it
/// leaves free.
pub(super) const BACKLOG_BYTES: usize = 32 << 20;
/// Interval at which a sender looks for room while something waits for it: the readers do not
/// report that they have taken something.
pub(super) const LOOK_FOR_ROOM_EVERY: Duration = Duration::from_millis(1);
/// Size that a waiting parcel counts in a lane besides its bytes.
const PARCEL_OVERHEAD_BYTES: usize = 64;

/// An item that passes through a lane.
pub trait Load {
    /// Returns the bytes that count as waiting for the reader.
    fn bytes(&self) -> usize;
}

/// Wakes one thread. Its eventfd is created before the threads get their own tables, so that all of
/// them have it. It has a cache line of its own because senders write to it.
#[derive(Debug)]
#[repr(align(64))]
pub struct Bell {
    eventfd: OwnedFd,
    asleep: AtomicBool,
    /// Bytes that wait for the owner.
    waiting_bytes: AtomicUsize,
}

impl Bell {
    fn new() -> io::Result<Self> {
        Ok(Self {
            eventfd: super::sys::eventfd()?,
            asleep: AtomicBool::new(false),
            waiting_bytes: AtomicUsize::new(0),
        })
    }

    /// Wakes the owner if it sleeps. The owner sees items that were put in its rings before this in
    /// any case.
    fn ring(&self) {
        fence(SeqCst);
        // Read first: while the owner is awake, this leaves it its cache line.
        if self.asleep.load(Relaxed) && self.asleep.swap(false, SeqCst) {
            sync::raise(&self.eventfd);
        }
    }

    pub fn eventfd(&self) -> &OwnedFd {
        &self.eventfd
    }

    /// Returns the number of bytes that wait for the owner.
    pub fn waiting_bytes(&self) -> usize {
        self.waiting_bytes.load(Relaxed)
    }

    fn add_bytes(&self, bytes: usize) {
        if bytes > 0 {
            self.waiting_bytes.fetch_add(bytes, Relaxed);
        }
    }

    fn take_bytes(&self, bytes: usize) {
        if bytes > 0 {
            self.waiting_bytes.fetch_sub(bytes, Relaxed);
        }
    }

    /// Marks the owner as about to sleep; it must check its rings once more after this.
    pub fn fall_asleep(&self) {
        self.asleep.store(true, SeqCst);
        fence(SeqCst);
    }
}

/// Where one thread receives the rings of those that begin to send to it.
#[derive(Debug)]
pub struct Entrance<T> {
    bell: Bell,
    /// Rings, each with the number of its sender.
    rings: Mutex<Vec<(usize, Consumer<T>)>>,
    has_new: AtomicBool,
}

impl<T> Entrance<T> {
    /// Must be called before the threads have their own descriptor tables.
    pub fn new() -> io::Result<Arc<Self>> {
        let (rings, has_new) = (Mutex::default(), AtomicBool::new(false));
        Ok(Arc::new(Self { bell: Bell::new()?, rings, has_new }))
    }
}

/// The reading end of all lanes to one thread.
#[derive(Debug)]
pub struct Inbox<T> {
    entrance: Arc<Entrance<T>>,
    rings: Vec<(usize, Consumer<T>)>,
    /// The index in `rings` of the next sender to read from.
    next: usize,
}

impl<T: Load> Inbox<T> {
    pub fn new(entrance: Arc<Entrance<T>>) -> Self {
        Self { entrance, rings: Vec::new(), next: 0 }
    }

    pub fn bell(&self) -> &Bell {
        &self.entrance.bell
    }

    /// Takes over the rings that senders have created.
    #[cold]
    fn take_new_rings(&mut self) {
        let Entrance { has_new, rings, .. } = &*self.entrance;
        if has_new.swap(false, SeqCst) {
            self.rings.append(&mut rings.lock().unwrap_or_else(PoisonError::into_inner));
        }
    }

    /// Returns the next item. The senders take turns, so that a busy one leaves the others their
    /// room; each sender's items stay in order.
    #[inline]
    pub fn receive(&mut self) -> Option<T> {
        if self.entrance.has_new.load(Relaxed) {
            self.take_new_rings();
        }
        for _ in 0..self.rings.len() {
            let turn = self.next;
            self.next = if turn + 1 < self.rings.len() { turn + 1 } else { 0 };
            if let Ok(item) = self.rings[turn].1.pop() {
                self.entrance.bell.take_bytes(item.bytes());
                return Some(item);
            }
        }
        None
    }

    /// Takes all items, sender by sender, each with the sender's number.
    pub fn receive_all(&mut self, mut handle: impl FnMut(usize, T)) {
        if self.entrance.has_new.load(Relaxed) {
            self.take_new_rings();
        }
        for (from, ring) in &mut self.rings {
            let mut bytes = 0;
            while let Ok(item) = ring.pop() {
                bytes += item.bytes();
                handle(*from, item);
            }
            self.entrance.bell.take_bytes(bytes);
        }
    }

    pub fn is_empty(&self) -> bool {
        !self.entrance.has_new.load(SeqCst) && self.rings.iter().all(|(_, ring)| ring.is_empty())
    }

    #[cfg(test)]
    pub fn rings(&self) -> usize {
        self.rings.len()
    }
}

/// Bytes of waiting parcels, by project.
#[derive(Debug, Default)]
struct Shares {
    bytes: usize,
    of_projects: BTreeMap<ProjectId, usize>,
}

impl Shares {
    /// Takes bytes of a project's share. Returns `false` if it is used up.
    fn take(&mut self, project: ProjectId, bytes: usize) -> bool {
        let its_bytes = self.of_projects.get(&project).copied().unwrap_or(0) + bytes;
        let has_room = its_bytes <= BACKLOG_BYTES.saturating_sub(self.bytes);
        if has_room {
            self.of_projects.insert(project, its_bytes);
            self.bytes += bytes;
        }
        has_room
    }

    fn give_back(&mut self, project: ProjectId, bytes: usize) {
        self.bytes -= bytes;
        if let Some(its_bytes) = self.of_projects.get_mut(&project) {
            *its_bytes -= bytes;
            if *its_bytes == 0 {
                self.of_projects.remove(&project);
            }
        }
    }
}

/// A parcel that waits for room.
#[derive(Debug)]
struct Waiting<T> {
    place: u64,
    item: T,
    /// Bytes that it takes of its project's share until the last lane has sent it.
    share: Arc<usize>,
}

/// The sender's end of one lane.
#[derive(Debug)]
struct Lane<T> {
    entrance: Arc<Entrance<T>>,
    from: usize,
    entries: usize,
    /// `None`: nothing has been sent yet.
    ring: Option<Producer<T>>,
    answers: VecDeque<T>,
    /// Notices, each with the place of the last parcel that must be sent before it.
    notices: VecDeque<(u64, T)>,
    /// Parcels in order for each project; a project without any has no entry.
    parcels: BTreeMap<ProjectId, VecDeque<Waiting<T>>>,
    /// The projects of `parcels`. They take turns, so that a flood from one project neither refuses
    /// another's parcels nor delays them.
    turns: VecDeque<ProjectId>,
    /// Place of the last parcel that had to wait.
    last_place: u64,
}

impl<T: Load> Lane<T> {
    fn new(from: usize, entries: usize, entrance: Arc<Entrance<T>>) -> Self {
        Self {
            entrance,
            from,
            entries,
            ring: None,
            answers: VecDeque::new(),
            notices: VecDeque::new(),
            parcels: BTreeMap::new(),
            turns: VecDeque::new(),
            last_place: 0,
        }
    }

    /// Puts an item in the ring, creating the ring if there is none. Returns the item if the ring
    /// is full.
    #[inline]
    fn put(&mut self, item: T) -> Result<(), T> {
        if self.ring.is_none() {
            self.open();
        }
        match &mut self.ring {
            Some(ring) if !ring.is_full() => {
                // Before the push: the reader subtracts them once it has the item.
                self.entrance.bell.add_bytes(item.bytes());
                let pushed = ring.push(item);
                debug_assert!(pushed.is_ok(), "there was room");
                Ok(())
            }
            _ => Err(item),
        }
    }

    /// Creates the ring and leaves its other end at the reader's entrance.
    #[cold]
    fn open(&mut self) {
        let (producer, consumer) = RingBuffer::new(self.entries);
        let mut rings = self.entrance.rings.lock().unwrap_or_else(PoisonError::into_inner);
        rings.push((self.from, consumer));
        self.entrance.has_new.store(true, SeqCst);
        self.ring = Some(producer);
    }

    /// Returns whether one more message fits in the ring. No message overtakes an answer.
    #[inline]
    fn has_room(&self) -> bool {
        self.answers.is_empty()
            && self.ring.as_ref().is_none_or(|ring| !ring.is_full())
            && self.entrance.bell.waiting_bytes() <= WAITING_BYTES
    }

    fn has_room_for_parcel(&self) -> bool {
        self.answers.is_empty()
            && self.ring.as_ref().is_none_or(|ring| ring.slots() > self.entries / 2)
            && self.entrance.bell.waiting_bytes() <= PARCEL_BYTES
    }

    fn takes_parcel(&self, project: ProjectId) -> bool {
        !self.parcels.contains_key(&project) && self.has_room_for_parcel()
    }

    fn keep(&mut self, project: ProjectId, item: T, share: Arc<usize>) {
        self.last_place += 1;
        let waiting = self.parcels.entry(project).or_default();
        if waiting.is_empty() {
            self.turns.push_back(project);
        }
        waiting.push_back(Waiting { place: self.last_place, item, share });
    }

    fn has_late(&self) -> bool {
        !(self.answers.is_empty() && self.notices.is_empty() && self.turns.is_empty())
    }

    /// Retries everything that waits.
    fn flush(&mut self, shares: &mut Shares) {
        while let Some(item) = self.answers.pop_front() {
            if let Err(item) = self.put(item) {
                return self.answers.push_front(item);
            }
        }
        self.send_parcels(shares);
        self.send_notices();
    }

    /// Sends one parcel of each project in turn, while there is room.
    fn send_parcels(&mut self, shares: &mut Shares) {
        while !self.turns.is_empty()
            && self.has_room_for_parcel()
            && let Some(project) = self.turns.pop_front()
            && let Some(waiting) = self.parcels.get_mut(&project)
            && let Some(Waiting { item, share, .. }) = waiting.pop_front()
        {
            match waiting.is_empty() {
                true => drop(self.parcels.remove(&project)),
                false => self.turns.push_back(project),
            }
            if let Some(bytes) = Arc::into_inner(share) {
                shares.give_back(project, bytes);
            }
            let sent = self.put(item);
            debug_assert!(sent.is_ok(), "there was room");
        }
    }

    fn send_notices(&mut self) {
        if self.notices.is_empty() {
            return;
        }
        let first = |waiting: &VecDeque<Waiting<T>>| waiting.front().map(|parcel| parcel.place);
        let first_place = self.parcels.values().filter_map(first).min().unwrap_or(u64::MAX);
        while let Some((behind, item)) = self.notices.pop_front() {
            let unsent = if behind < first_place { self.put(item) } else { Err(item) };
            if let Err(item) = unsent {
                return self.notices.push_front((behind, item));
            }
        }
    }
}

/// Calls `handle` with the index of each set bit.
#[inline]
pub(super) fn for_each_bit(mut set: u64, mut handle: impl FnMut(usize)) {
    while set != 0 {
        handle(set.trailing_zeros() as usize);
        set &= set - 1;
    }
}

/// One thread's lanes to others, 64 at most. None of its calls wakes a reader except
/// [`Lanes::wake`].
#[derive(Debug)]
pub struct Lanes<T> {
    lanes: Box<[Lane<T>]>,
    shares: Shares,
    /// Bit set of the lanes where something waits for room.
    late: u64,
    /// Bit set of the lanes whose reader is to be woken.
    due: u64,
}

impl<T: Load> Lanes<T> {
    /// Creates the lanes of the thread with the number `from`, with this number of entries each.
    pub fn new(from: usize, entries: usize, entrances: &[Arc<Entrance<T>>]) -> Self {
        let lane = |entrance: &Arc<_>| Lane::new(from, entries, Arc::clone(entrance));
        let lanes = entrances.iter().map(lane).collect();
        Self { lanes, shares: Shares::default(), late: 0, due: 0 }
    }

    /// Returns whether a lane takes one more message.
    #[inline]
    pub fn has_room(&self, to: usize) -> bool {
        self.lanes[to].has_room()
    }

    /// Sends a message, or returns it if the ring is full. Check [`Lanes::has_room`] first.
    #[inline]
    pub fn send(&mut self, to: usize, item: T) -> Result<(), T> {
        self.due |= 1 << to;
        self.lanes[to].put(item)
    }

    /// Sends a message of `bytes` bytes if there is room; returns `false` otherwise. `item` builds
    /// it in place: moving it there would cost 8 ns more.
    #[inline]
    pub fn send_new(&mut self, to: usize, bytes: usize, item: impl FnOnce() -> T) -> bool {
        let lane = &mut self.lanes[to];
        if lane.ring.is_none() {
            lane.open();
        }
        let has_room = lane.has_room();
        if has_room && let Some(ring) = &mut lane.ring {
            self.due |= 1 << to;
            lane.entrance.bell.add_bytes(bytes);
            let pushed = ring.push(item());
            debug_assert!(pushed.is_ok(), "there was room");
        }
        has_room
    }

    /// Sends an answer, which is never lost, ahead of everything that waits.
    pub fn answer(&mut self, to: usize, item: T) {
        let lane = &mut self.lanes[to];
        self.due |= 1 << to;
        let unsent = if lane.answers.is_empty() { lane.put(item) } else { Err(item) };
        if let Err(item) = unsent {
            lane.answers.push_back(item);
            self.late |= 1 << to;
        }
    }

    /// Sends a notice, which is never lost, after earlier notices. `follows`: also after the
    /// parcels that wait already. Later parcels may overtake it.
    pub fn notify(&mut self, to: usize, item: T, follows: bool) {
        let lane = &mut self.lanes[to];
        let behind = if follows { lane.last_place } else { 0 };
        lane.notices.push_back((behind, item));
        self.late |= 1 << to;
        self.flush_lane(to);
    }

    /// Sends a parcel, at once or behind the waiting parcels of its project. Returns it if the
    /// project has used up its share of the backlog.
    pub fn relay(&mut self, to: usize, project: ProjectId, item: T) -> Result<(), T> {
        let lane = &mut self.lanes[to];
        if lane.takes_parcel(project) {
            self.due |= 1 << to;
            return lane.put(item);
        }
        let share = item.bytes() + PARCEL_OVERHEAD_BYTES;
        if !self.shares.take(project, share) {
            return Err(item);
        }
        lane.keep(project, item, Arc::new(share));
        self.late |= 1 << to;
        Ok(())
    }

    /// Like [`Lanes::relay`], for each reader whose bit is set. `item` makes one item; all of them
    /// share the same `bytes` bytes. Returns the bits of the readers that do not get it.
    pub fn relay_to_all(
        &mut self,
        to: u64,
        project: ProjectId,
        bytes: usize,
        item: impl Fn() -> T,
    ) -> u64 {
        let mut late = 0u64;
        for_each_bit(to, |to| match self.lanes[to].takes_parcel(project) {
            true => {
                let sent = self.lanes[to].put(item());
                debug_assert!(sent.is_ok(), "there was room");
                self.due |= 1 << to;
            }
            false => late |= 1 << to,
        });
        if late == 0 {
            return 0;
        }
        let share = bytes + late.count_ones() as usize * PARCEL_OVERHEAD_BYTES;
        if !self.shares.take(project, share) {
            return late;
        }
        let share = Arc::new(share);
        for_each_bit(late, |to| self.lanes[to].keep(project, item(), Arc::clone(&share)));
        self.late |= late;
        0
    }

    /// Returns whether something waits for [`Lanes::flush`].
    pub fn has_late(&self) -> bool {
        self.late != 0
    }

    /// Returns whether an answer waits for room.
    pub fn has_late_answers(&self, to: usize) -> bool {
        !self.lanes[to].answers.is_empty()
    }

    /// Retries everything that found no room; see [`LOOK_FOR_ROOM_EVERY`].
    pub fn flush(&mut self) {
        for_each_bit(self.late, |to| self.flush_lane(to));
    }

    fn flush_lane(&mut self, to: usize) {
        self.lanes[to].flush(&mut self.shares);
        self.due |= 1 << to;
        if !self.lanes[to].has_late() {
            self.late &= !(1 << to);
        }
    }

    /// Wakes the readers to which something was sent.
    #[inline]
    pub fn wake(&mut self) {
        for_each_bit(std::mem::take(&mut self.due), |to| self.lanes[to].entrance.bell.ring());
    }

    #[cfg(test)]
    pub fn rings(&self) -> usize {
        self.lanes.iter().filter(|lane| lane.ring.is_some()).count()
    }

    #[cfg(test)]
    pub fn waiting_bytes(&self) -> usize {
        self.shares.bytes
    }
}

#[cfg(test)]
mod tests;
