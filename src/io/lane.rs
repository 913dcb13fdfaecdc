//! From one thread to another: a bounded single-producer ring, what waits for room in it, and the
//! bell of the thread that reads it. The mailboxes of the workers ([`super::mailbox`]) and the way
//! to a broker's thread and back ([`super::port`]) are made of lanes.
//!
//! Four kinds of words share a lane:
//! - messages are sent only where there is room ([`Lanes::has_room`], [`Lanes::send`]);
//! - answers are never lost: those that find no room wait, and go first ([`Lanes::tell`]);
//! - notices are never lost, and stay in order among themselves ([`Lanes::notify`]);
//! - parcels leave half of the ring to the others, and wait by project ([`Lanes::relay`]).

use super::wake;
use crate::state::projects::ProjectId;
use rtrb::{Consumer, Producer, RingBuffer};
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed, Ordering::SeqCst, fence};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Bytes that may wait for one thread, over all its rings; beyond, messages are refused.
pub(super) const WAITING_BYTES: usize = 64 << 20;
/// Parcels go into a ring only while more than half of its entries are free and at most these bytes
/// wait for its reader: the rest is for messages.
pub(super) const PARCEL_BYTES: usize = WAITING_BYTES / 2;
/// Bytes of the parcels of one thread for which its lanes have no room. A project may take as much
/// as it leaves free.
pub(super) const BACKLOG_BYTES: usize = 32 << 20;
/// How often who sends looks for room while something waits for it: the readers do not say when
/// they have taken something.
pub(super) const LOOK_FOR_ROOM_EVERY: Duration = Duration::from_millis(1);
/// What a waiting parcel takes in a lane beside its bytes.
const PARCEL_OVERHEAD_BYTES: usize = 64;

/// What passes through a lane.
pub trait Load {
    /// What it adds to the bytes that wait for the reader.
    fn bytes(&self) -> usize;
}

/// What wakes one thread. Its eventfd is made before the threads get their own tables, so that all
/// have it. It has a cache line of its own: senders write there.
#[derive(Debug)]
#[repr(align(64))]
pub struct Bell {
    eventfd: OwnedFd,
    asleep: AtomicBool,
    /// Bytes of what waits for the owner.
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

    /// Wakes the owner if it sleeps. What was put in its rings before is seen by it in any case.
    fn ring(&self) {
        fence(SeqCst);
        // Read first: while the owner is awake, its cache line is not taken from it.
        if self.asleep.load(Relaxed) && self.asleep.swap(false, SeqCst) {
            wake::raise(&self.eventfd);
        }
    }

    pub fn eventfd(&self) -> &OwnedFd {
        &self.eventfd
    }

    /// Bytes of what waits for the owner.
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

    /// The owner is about to sleep; it must look at its rings once more after this.
    pub fn fall_asleep(&self) {
        self.asleep.store(true, SeqCst);
        fence(SeqCst);
    }
}

/// Where one thread gets the rings of those who begin to send to it.
#[derive(Debug)]
pub struct Entrance<T> {
    bell: Bell,
    /// Each with the number of its sender.
    rings: Mutex<Vec<(usize, Consumer<T>)>>,
    has_new: AtomicBool,
}

impl<T> Entrance<T> {
    /// To be called before the threads have their own tables of descriptors.
    pub fn new() -> io::Result<Arc<Self>> {
        let (rings, has_new) = (Mutex::default(), AtomicBool::new(false));
        Ok(Arc::new(Self { bell: Bell::new()?, rings, has_new }))
    }
}

/// One thread's end of all lanes to it.
#[derive(Debug)]
pub struct Inbox<T> {
    entrance: Arc<Entrance<T>>,
    rings: Vec<(usize, Consumer<T>)>,
    /// Whose turn it is among `rings`.
    next: usize,
}

impl<T: Load> Inbox<T> {
    pub fn new(entrance: Arc<Entrance<T>>) -> Self {
        Self { entrance, rings: Vec::new(), next: 0 }
    }

    pub fn bell(&self) -> &Bell {
        &self.entrance.bell
    }

    /// Takes over the rings that others have made.
    #[cold]
    fn take_new_rings(&mut self) {
        let Entrance { has_new, rings, .. } = &*self.entrance;
        if has_new.swap(false, SeqCst) {
            self.rings.append(&mut rings.lock().unwrap_or_else(PoisonError::into_inner));
        }
    }

    /// The next word. The senders take turns, so that a busy one leaves the others their room; each
    /// keeps its order.
    #[inline]
    pub fn receive(&mut self) -> Option<T> {
        if self.entrance.has_new.load(Relaxed) {
            self.take_new_rings();
        }
        for _ in 0..self.rings.len() {
            let turn = self.next;
            self.next = if turn + 1 < self.rings.len() { turn + 1 } else { 0 };
            if let Ok(word) = self.rings[turn].1.pop() {
                self.entrance.bell.take_bytes(word.bytes());
                return Some(word);
            }
        }
        None
    }

    /// Takes all words, those of one sender after those of another, with the sender's number.
    pub fn receive_all(&mut self, mut handle: impl FnMut(usize, T)) {
        if self.entrance.has_new.load(Relaxed) {
            self.take_new_rings();
        }
        for (from, ring) in &mut self.rings {
            let mut bytes = 0;
            while let Ok(word) = ring.pop() {
                bytes += word.bytes();
                handle(*from, word);
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

/// Bytes of the parcels that wait, by project.
#[derive(Debug, Default)]
struct Shares {
    bytes: usize,
    of_projects: BTreeMap<ProjectId, usize>,
}

impl Shares {
    /// `false`: the project has used up its share.
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
    word: T,
    /// What it takes of its project's share until the last lane has sent it.
    share: Arc<usize>,
}

/// The sender's end of one lane.
#[derive(Debug)]
struct Lane<T> {
    entrance: Arc<Entrance<T>>,
    from: usize,
    entries: usize,
    /// `None`: nothing was sent yet.
    ring: Option<Producer<T>>,
    answers: VecDeque<T>,
    /// Each with the place of the last parcel that must be sent before it.
    notices: VecDeque<(u64, T)>,
    /// In order for each project; a project that has none is not in it.
    parcels: BTreeMap<ProjectId, VecDeque<Waiting<T>>>,
    /// The projects of `parcels`. They take turns, so that a flood of one's neither refuses
    /// another's nor keeps them waiting.
    turns: VecDeque<ProjectId>,
    /// Of the parcel that was last made to wait.
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

    /// Puts a word in the ring, which is made where there is none; gives it back where it is full.
    #[inline]
    fn put(&mut self, word: T) -> Result<(), T> {
        if self.ring.is_none() {
            self.open();
        }
        match &mut self.ring {
            Some(ring) if !ring.is_full() => {
                // Before the push: the reader takes them off once it has the word.
                self.entrance.bell.add_bytes(word.bytes());
                let pushed = ring.push(word);
                debug_assert!(pushed.is_ok(), "there was room");
                Ok(())
            }
            _ => Err(word),
        }
    }

    /// Makes the ring, and leaves its other end at the reader's entrance.
    #[cold]
    fn open(&mut self) {
        let (producer, consumer) = RingBuffer::new(self.entries);
        let mut rings = self.entrance.rings.lock().unwrap_or_else(PoisonError::into_inner);
        rings.push((self.from, consumer));
        self.entrance.has_new.store(true, SeqCst);
        self.ring = Some(producer);
    }

    /// Whether one more message may be put in the ring. None overtakes an answer.
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

    fn keep(&mut self, project: ProjectId, word: T, share: Arc<usize>) {
        self.last_place += 1;
        let waiting = self.parcels.entry(project).or_default();
        if waiting.is_empty() {
            self.turns.push_back(project);
        }
        waiting.push_back(Waiting { place: self.last_place, word, share });
    }

    fn has_late(&self) -> bool {
        !(self.answers.is_empty() && self.notices.is_empty() && self.turns.is_empty())
    }

    /// Tries again to send what waits.
    fn flush(&mut self, shares: &mut Shares) {
        while let Some(word) = self.answers.pop_front() {
            if let Err(word) = self.put(word) {
                return self.answers.push_front(word);
            }
        }
        self.send_parcels(shares);
        self.send_notices();
    }

    /// One parcel of each project in turn, while there is room.
    fn send_parcels(&mut self, shares: &mut Shares) {
        while !self.turns.is_empty()
            && self.has_room_for_parcel()
            && let Some(project) = self.turns.pop_front()
            && let Some(waiting) = self.parcels.get_mut(&project)
            && let Some(Waiting { word, share, .. }) = waiting.pop_front()
        {
            match waiting.is_empty() {
                true => drop(self.parcels.remove(&project)),
                false => self.turns.push_back(project),
            }
            if let Some(bytes) = Arc::into_inner(share) {
                shares.give_back(project, bytes);
            }
            let sent = self.put(word);
            debug_assert!(sent.is_ok(), "there was room");
        }
    }

    fn send_notices(&mut self) {
        if self.notices.is_empty() {
            return;
        }
        let first = |waiting: &VecDeque<Waiting<T>>| waiting.front().map(|parcel| parcel.place);
        let first_place = self.parcels.values().filter_map(first).min().unwrap_or(u64::MAX);
        while let Some((behind, word)) = self.notices.pop_front() {
            let unsent = if behind < first_place { self.put(word) } else { Err(word) };
            if let Err(word) = unsent {
                return self.notices.push_front((behind, word));
            }
        }
    }
}

/// Calls `handle` with each number whose bit is set.
#[inline]
pub(super) fn for_each_bit(mut set: u64, mut handle: impl FnMut(usize)) {
    while set != 0 {
        handle(set.trailing_zeros() as usize);
        set &= set - 1;
    }
}

/// One thread's lanes to others, 64 at most. None of its calls wakes a reader:
/// [`Lanes::wake`] does.
#[derive(Debug)]
pub struct Lanes<T> {
    lanes: Box<[Lane<T>]>,
    shares: Shares,
    /// Bit by bit, the lanes where something waits for room.
    late: u64,
    /// Those whose reader is to be woken.
    due: u64,
}

impl<T: Load> Lanes<T> {
    /// The lanes of the thread with the number `from`; each has so many entries.
    pub fn new(from: usize, entries: usize, entrances: &[Arc<Entrance<T>>]) -> Self {
        let lane = |entrance: &Arc<_>| Lane::new(from, entries, Arc::clone(entrance));
        let lanes = entrances.iter().map(lane).collect();
        Self { lanes, shares: Shares::default(), late: 0, due: 0 }
    }

    /// Whether a lane takes one more message.
    #[inline]
    pub fn has_room(&self, to: usize) -> bool {
        self.lanes[to].has_room()
    }

    /// Sends a message, or gives it back. To be asked before: [`Lanes::has_room`].
    #[inline]
    pub fn send(&mut self, to: usize, word: T) -> Result<(), T> {
        self.due |= 1 << to;
        self.lanes[to].put(word)
    }

    /// Sends a message of so many bytes where there is room; `false`: there is none. `word` makes
    /// it in its place: to move it there costs 8 ns more.
    #[inline]
    pub fn send_new(&mut self, to: usize, bytes: usize, word: impl FnOnce() -> T) -> bool {
        let lane = &mut self.lanes[to];
        if lane.ring.is_none() {
            lane.open();
        }
        let has_room = lane.has_room();
        if has_room && let Some(ring) = &mut lane.ring {
            self.due |= 1 << to;
            lane.entrance.bell.add_bytes(bytes);
            let pushed = ring.push(word());
            debug_assert!(pushed.is_ok(), "there was room");
        }
        has_room
    }

    /// Sends what must not be lost, ahead of all that waits.
    pub fn tell(&mut self, to: usize, word: T) {
        let lane = &mut self.lanes[to];
        self.due |= 1 << to;
        let unsent = if lane.answers.is_empty() { lane.put(word) } else { Err(word) };
        if let Err(word) = unsent {
            lane.answers.push_back(word);
            self.late |= 1 << to;
        }
    }

    /// Sends a notice, which is never lost, after those before it. `follows`: also after the
    /// parcels that wait already. Later parcels may overtake it.
    pub fn notify(&mut self, to: usize, word: T, follows: bool) {
        let lane = &mut self.lanes[to];
        let behind = if follows { lane.last_place } else { 0 };
        lane.notices.push_back((behind, word));
        self.late |= 1 << to;
        self.flush_lane(to);
    }

    /// Sends a parcel, at once or behind what waits of its project; gives it back where the project
    /// has used up its share of what may wait.
    pub fn relay(&mut self, to: usize, project: ProjectId, word: T) -> Result<(), T> {
        let lane = &mut self.lanes[to];
        if lane.takes_parcel(project) {
            self.due |= 1 << to;
            return lane.put(word);
        }
        let share = word.bytes() + PARCEL_OVERHEAD_BYTES;
        if !self.shares.take(project, share) {
            return Err(word);
        }
        lane.keep(project, word, Arc::new(share));
        self.late |= 1 << to;
        Ok(())
    }

    /// As [`Lanes::relay`], to each reader whose bit is set. `word` makes one of so many bytes,
    /// which all of them share. Returns those that do not get it.
    pub fn relay_to_all(
        &mut self,
        to: u64,
        project: ProjectId,
        bytes: usize,
        word: impl Fn() -> T,
    ) -> u64 {
        let mut late = 0u64;
        for_each_bit(to, |to| match self.lanes[to].takes_parcel(project) {
            true => {
                let sent = self.lanes[to].put(word());
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
        for_each_bit(late, |to| self.lanes[to].keep(project, word(), Arc::clone(&share)));
        self.late |= late;
        0
    }

    /// Whether something waits for [`Lanes::flush`].
    pub fn has_late(&self) -> bool {
        self.late != 0
    }

    /// Whether an answer waits for room.
    pub fn has_late_answers(&self, to: usize) -> bool {
        !self.lanes[to].answers.is_empty()
    }

    /// Tries again to send what there was no room for; see [`LOOK_FOR_ROOM_EVERY`].
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

    /// Wakes those to whom something was sent.
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
