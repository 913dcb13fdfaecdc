//! Worker to worker: envelopes over one single-producer ring for each pair, and an eventfd that is
//! written only when the other side sleeps.

use super::wake;
use crate::state::projects::ProjectId;
use crate::state::wants::Notice;
use rtrb::{Consumer, Producer, RingBuffer};
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed, Ordering::SeqCst, fence};
use std::sync::{Arc, Mutex, PoisonError};

/// Envelopes that may wait from one worker to another, with up to 16 workers; beyond, the push is
/// answered 503. With more workers there are more rings, and each is smaller: 54 workers had rings
/// of 280 MB.
const RING_ENTRIES: usize = 4_096;
/// Envelopes that may wait for one worker in all its rings, about.
const ENTRIES_OF_ALL: usize = 65_536;
/// Bytes of envelopes that may wait for one worker, over all its rings; beyond, likewise.
const WAITING_BYTES: usize = 64 << 20;
/// Parcels go into a ring only while more than half of its entries and this are free: the rest is
/// for pushes.
const FREE_BYTES: usize = WAITING_BYTES / 2;
/// Bytes of the parcels for which the rings have no room. A project may take as much as it leaves
/// free.
const LANE_BYTES: usize = 32 << 20;
/// What a waiting parcel takes beside its bytes.
const PARCEL_OVERHEAD_BYTES: usize = 64;

/// What one worker tells another.
#[derive(Debug)]
pub enum Word {
    /// An envelope or a parcel.
    Envelope(Arc<[u8]>),
    Notice(Notice),
}

/// What wakes one worker. Its eventfd is made before the workers get their own tables, so that all
/// have it.
#[derive(Debug)]
pub struct Bell {
    eventfd: OwnedFd,
    asleep: AtomicBool,
    /// Bytes of the envelopes that wait for the owner.
    waiting_bytes: AtomicUsize,
}

impl Bell {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            eventfd: super::sys::eventfd()?,
            asleep: AtomicBool::new(false),
            waiting_bytes: AtomicUsize::new(0),
        })
    }

    /// Wakes the owner if it sleeps. What was put in its rings before is seen by it in any case.
    pub fn ring(&self) {
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
    pub(super) fn waiting_bytes(&self) -> usize {
        self.waiting_bytes.load(Relaxed)
    }

    pub(super) fn add_bytes(&self, bytes: usize) {
        self.waiting_bytes.fetch_add(bytes, Relaxed);
    }

    pub(super) fn take_bytes(&self, bytes: usize) {
        self.waiting_bytes.fetch_sub(bytes, Relaxed);
    }

    /// The owner is about to sleep; it must look at its rings once more after this.
    pub fn fall_asleep(&self) {
        self.asleep.store(true, SeqCst);
        fence(SeqCst);
    }
}

/// Parcels that wait for room, in order for each project. The projects take turns, so that a flood
/// of one's neither refuses another's nor keeps them waiting.
#[derive(Debug, Default)]
struct Lanes {
    of_projects: BTreeMap<ProjectId, Lane>,
    turns: VecDeque<ProjectId>,
    bytes: usize,
    /// Of the next parcel or notice.
    next_place: u64,
}

#[derive(Debug, Default)]
struct Lane {
    waiting: VecDeque<Waiting>,
    bytes: usize,
}

#[derive(Debug)]
struct Waiting {
    place: u64,
    /// `None`: all others.
    to: Option<usize>,
    parcel: Arc<[u8]>,
}

impl Waiting {
    fn cost(&self) -> usize {
        self.parcel.len() + PARCEL_OVERHEAD_BYTES
    }
}

impl Lanes {
    fn place(&mut self) -> u64 {
        self.next_place += 1;
        self.next_place
    }

    /// `false`: the project has used up its share.
    fn push(&mut self, project: ProjectId, to: Option<usize>, parcel: Arc<[u8]>) -> bool {
        let waiting = Waiting { place: self.place(), to, parcel };
        let cost = waiting.cost();
        let its_bytes = self.of_projects.get(&project).map_or(0, |lane| lane.bytes);
        if its_bytes + cost > LANE_BYTES.saturating_sub(self.bytes) {
            return false;
        }
        let lane = self.of_projects.entry(project).or_default();
        if lane.waiting.is_empty() {
            self.turns.push_back(project);
        }
        lane.waiting.push_back(waiting);
        lane.bytes += cost;
        self.bytes += cost;
        true
    }

    /// Takes the first of a lane, if `may_go`; a lane that is empty then has no turn any more.
    fn pop(
        &mut self,
        project: ProjectId,
        may_go: impl FnOnce(Option<usize>) -> bool,
    ) -> Option<Waiting> {
        let lane = self.of_projects.get_mut(&project)?;
        let waiting = match lane.waiting.front() {
            Some(first) if may_go(first.to) => lane.waiting.pop_front()?,
            _ => return None,
        };
        lane.bytes -= waiting.cost();
        self.bytes -= waiting.cost();
        if lane.waiting.is_empty() {
            self.of_projects.remove(&project);
        }
        Some(waiting)
    }

    /// The place of the one that has waited longest.
    fn first_place(&self) -> u64 {
        let first = |lane: &Lane| lane.waiting.front().map(|waiting| waiting.place);
        self.of_projects.values().filter_map(first).min().unwrap_or(u64::MAX)
    }
}

/// Where a worker gets the rings that others have begun to send to it with.
#[derive(Debug, Default)]
struct Entrance {
    rings: Mutex<Vec<Consumer<Word>>>,
    has_new: AtomicBool,
}

/// One worker's ends: a ring from and to every other worker, from its first word on.
#[derive(Debug)]
pub struct Mailbox {
    bells: Arc<[Bell]>,
    entrances: Arc<[Entrance]>,
    index: usize,
    ring_entries: usize,
    /// By worker; `None`: nothing was sent to it.
    outgoing: Vec<Option<Producer<Word>>>,
    incoming: Vec<Consumer<Word>>,
    /// Notices for which a ring had no room, in order: none is ever lost. Each has its place among
    /// the parcels that wait: what was said before it is heard before it.
    late: VecDeque<(u64, usize, Notice)>,
    lanes: Lanes,
    /// Whose turn it is among `incoming`.
    next: usize,
}

impl Mailbox {
    /// The mailboxes of all workers of a node.
    pub fn all(workers: usize) -> io::Result<Vec<Self>> {
        let bells: io::Result<Arc<[Bell]>> = (0..workers).map(|_| Bell::new()).collect();
        let bells = bells?;
        let entrances: Arc<[Entrance]> = (0..workers).map(|_| Entrance::default()).collect();
        let ring_entries = RING_ENTRIES.min(1 << (ENTRIES_OF_ALL / workers.max(1)).ilog2());
        let mailboxes = (0..workers)
            .map(|index| Self {
                bells: Arc::clone(&bells),
                entrances: Arc::clone(&entrances),
                index,
                ring_entries,
                outgoing: (0..workers).map(|_| None).collect(),
                incoming: Vec::new(),
                late: VecDeque::new(),
                lanes: Lanes::default(),
                next: 0,
            })
            .collect();
        Ok(mailboxes)
    }

    fn others(&self) -> impl Iterator<Item = usize> + use<> {
        let index = self.index;
        (0..self.bells.len()).filter(move |&other| other != index)
    }

    /// The ring to `to`, made where there is none.
    fn ring_to(&mut self, to: usize) -> &mut Producer<Word> {
        let (entrance, entries) = (&self.entrances[to], self.ring_entries);
        self.outgoing[to].get_or_insert_with(|| {
            let (producer, consumer) = RingBuffer::new(entries);
            entrance.rings.lock().unwrap_or_else(PoisonError::into_inner).push(consumer);
            entrance.has_new.store(true, SeqCst);
            producer
        })
    }

    /// Takes over the rings that others have made.
    fn take_new_rings(&mut self) {
        let entrance = &self.entrances[self.index];
        if entrance.has_new.swap(false, SeqCst) {
            let mut rings = entrance.rings.lock().unwrap_or_else(PoisonError::into_inner);
            self.incoming.append(&mut rings);
        }
    }

    /// Its owner's bell.
    pub fn bell(&self) -> &Bell {
        &self.bells[self.index]
    }

    pub fn is_alone(&self) -> bool {
        self.bells.len() == 1
    }

    /// Whether every worker that `wanted` names (all others without) has room for one more.
    pub fn has_room(&self, wanted: impl Fn(usize) -> bool) -> bool {
        self.others().filter(|&to| wanted(to)).all(|to| {
            let has_entry = self.outgoing[to].as_ref().is_none_or(|ring| !ring.is_full());
            has_entry && self.bells[to].waiting_bytes() <= WAITING_BYTES
        })
    }

    /// Hands an envelope to every worker that `wanted` names. Each must have room
    /// ([`Mailbox::has_room`]).
    pub fn send(&mut self, envelope: &Arc<[u8]>, wanted: impl Fn(usize) -> bool) {
        for to in self.others().filter(|&to| wanted(to)) {
            self.bells[to].add_bytes(envelope.len());
            let pushed = self.ring_to(to).push(Word::Envelope(Arc::clone(envelope)));
            debug_assert!(pushed.is_ok(), "has_room was asked before");
            self.bells[to].ring();
        }
    }

    /// Hands a parcel to one worker, or (`None`) to all others: at once, or behind what waits of
    /// its project. `false`: the project has used up its share of what may wait.
    pub fn relay(&mut self, project: ProjectId, to: Option<usize>, parcel: Arc<[u8]>) -> bool {
        if !self.lanes.of_projects.contains_key(&project) && self.has_room_for_parcel(to) {
            self.send(&parcel, |worker| to.is_none_or(|to| to == worker));
            return true;
        }
        self.lanes.push(project, to, parcel)
    }

    fn has_room_for_parcel(&self, to: Option<usize>) -> bool {
        self.others().filter(|&worker| to.is_none_or(|to| to == worker)).all(|worker| {
            let ring = self.outgoing[worker].as_ref();
            ring.is_none_or(|ring| ring.slots() > self.ring_entries / 2)
                && self.bells[worker].waiting_bytes() <= FREE_BYTES
        })
    }

    /// Whether something waits for [`Mailbox::send_late`].
    pub fn has_late(&self) -> bool {
        !self.lanes.turns.is_empty() || !self.late.is_empty()
    }

    /// Tells a worker something that must not be lost.
    pub fn notify(&mut self, to: usize, notice: Notice) {
        self.late.push_back((self.lanes.place(), to, notice));
        self.send_late();
    }

    /// Tells all others.
    pub fn notify_all(&mut self, notice: Notice) {
        for to in (0..self.bells.len()).filter(|&to| to != self.index) {
            self.late.push_back((self.lanes.place(), to, notice));
        }
        self.send_late();
    }

    /// Tries again to hand over what there was no room for.
    pub fn send_late(&mut self) {
        self.send_lanes();
        if self.late.is_empty() {
            return;
        }
        let before = self.lanes.first_place();
        while let Some(&(place, to, notice)) = self.late.front() {
            if place > before {
                return;
            }
            if self.ring_to(to).push(Word::Notice(notice)).is_err() {
                return;
            }
            self.late.pop_front();
            self.bells[to].ring();
        }
    }

    /// One parcel of each project in turn, until none of them has room.
    fn send_lanes(&mut self) {
        let mut blocked = 0;
        while blocked < self.lanes.turns.len()
            && let Some(project) = self.lanes.turns.pop_front()
        {
            let mut lanes = std::mem::take(&mut self.lanes);
            let sent = lanes.pop(project, |to| self.has_room_for_parcel(to));
            if lanes.of_projects.contains_key(&project) {
                lanes.turns.push_back(project);
            }
            self.lanes = lanes;
            match sent {
                Some(Waiting { to, parcel, .. }) => {
                    self.send(&parcel, |worker| to.is_none_or(|to| to == worker));
                    blocked = 0;
                }
                None => blocked += 1,
            }
        }
    }

    /// The next word. The senders take turns, so that a busy one leaves the others their room; each
    /// keeps its order.
    pub fn receive(&mut self) -> Option<Word> {
        self.take_new_rings();
        for _ in 0..self.incoming.len() {
            let turn = self.next;
            self.next = (turn + 1) % self.incoming.len();
            if let Ok(word) = self.incoming[turn].pop() {
                if let Word::Envelope(envelope) = &word {
                    self.bell().take_bytes(envelope.len());
                }
                return Some(word);
            }
        }
        None
    }

    pub fn is_empty(&self) -> bool {
        !self.entrances[self.index].has_new.load(SeqCst)
            && self.incoming.iter().all(Consumer::is_empty)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Cid;

    fn receive(mailbox: &mut Mailbox) -> Option<Arc<[u8]>> {
        match mailbox.receive()? {
            Word::Envelope(envelope) => Some(envelope),
            Word::Notice(notice) => panic!("{notice:?}"),
        }
    }

    /// One was lost where the ring was full of envelopes.
    #[test]
    fn notices_wait_for_room_and_keep_their_order() {
        let mut all = Mailbox::all(2).unwrap();
        while all[0].has_room(|_| true) {
            all[0].send(&Arc::from(*b"x"), |_| true);
        }
        for number in 0..3 {
            all[0].notify_all(Notice::ServerGone(Cid(number)));
        }
        let mut gone = Vec::new();
        while let Some(word) = all[1].receive() {
            if let Word::Notice(Notice::ServerGone(cid)) = word {
                gone.push(cid.0);
            }
            all[0].send_late();
        }
        assert_eq!(gone, [0, 1, 2]);
    }

    /// 66,000 requests of one project filled the ring: others were refused, and their pushes too.
    #[test]
    fn a_flood_of_one_projects_parcels_leaves_room_for_others_and_for_pushes() {
        let mut all = Mailbox::all(2).unwrap();
        let (loud, calm) = (ProjectId(0), ProjectId(1));
        let number = |number: u32| Arc::from(number.to_le_bytes());
        for index in 0..50_000 {
            assert!(all[0].relay(loud, Some(1), number(index)));
        }
        assert!(all[0].relay(calm, Some(1), number(u32::MAX)));
        all[0].notify_all(Notice::ServerGone(Cid(9)));
        assert!(all[0].has_room(|_| true), "pushes have room");
        let (mut heard, mut calm_at, mut gone_at) = (Vec::new(), None, None);
        for at in 0.. {
            match all[1].receive() {
                Some(Word::Envelope(parcel)) if *parcel == u32::MAX.to_le_bytes() => {
                    calm_at = Some(at);
                }
                Some(Word::Envelope(parcel)) => heard.push(parcel),
                Some(Word::Notice(_)) => gone_at = Some(at),
                None => break,
            }
            all[0].send_late();
        }
        let expected: Vec<Arc<[u8]>> = (0..50_000).map(number).collect();
        assert_eq!(heard, expected);
        assert!(calm_at.unwrap() <= RING_ENTRIES / 2 + 2, "{calm_at:?}");
        assert_eq!(gone_at, Some(50_001), "behind what was said before it");
        assert!(!all[0].has_late() && all[0].lanes.bytes == 0);
    }

    #[test]
    fn parcels_that_wait_have_a_bound_and_each_project_a_share() {
        let mut all = Mailbox::all(2).unwrap();
        let parcel: Arc<[u8]> = Arc::from(vec![0; 1 << 20]);
        let mut fill = |project| {
            let taken = |_: &usize| all[0].relay(ProjectId(project), Some(1), Arc::clone(&parcel));
            (0..100).take_while(taken).count()
        };
        let in_ring = (FREE_BYTES >> 20) + 1;
        assert_eq!([fill(0), fill(1)], [in_ring + (LANE_BYTES >> 21), LANE_BYTES >> 22]);
    }

    #[test]
    fn envelopes_arrive_in_order_and_only_where_wanted() {
        let mut all = Mailbox::all(3).unwrap();
        for number in 0..RING_ENTRIES {
            assert!(all[0].has_room(|to| to == 1));
            all[0].send(&Arc::from((number as u32).to_le_bytes()), |to| to == 1);
        }
        assert!(!all[0].has_room(|_| true) && all[0].has_room(|to| to == 2));
        assert!(all[2].is_empty() && all[2].receive().is_none());
        for number in 0..RING_ENTRIES {
            assert_eq!(receive(&mut all[1]).as_deref(), Some(&(number as u32).to_le_bytes()[..]));
        }
        assert!(all[1].is_empty() && all[0].is_empty());
    }

    #[test]
    fn rings_are_made_when_they_are_used_and_are_smaller_where_there_are_many() {
        let mut all = Mailbox::all(54).unwrap();
        all[7].send(&Arc::from(*b"x"), |to| to == 9);
        assert!(!all[9].is_empty() && receive(&mut all[9]).is_some() && all[9].is_empty());
        let rings = |mailbox: &Mailbox| mailbox.outgoing.iter().flatten().count();
        assert_eq!((rings(&all[7]), all.iter().map(rings).sum::<usize>()), (1, 1));
        assert_eq!((all[7].ring_entries, all[9].incoming.len()), (1_024, 1));
        assert_eq!(Mailbox::all(16).unwrap()[0].ring_entries, RING_ENTRIES);
    }

    #[test]
    fn large_envelopes_fill_a_mailbox_by_their_bytes() {
        let mut all = Mailbox::all(2).unwrap();
        let large: Arc<[u8]> = Arc::from(vec![0; 1 << 20]);
        let mut sent = 0;
        while all[0].has_room(|_| true) {
            all[0].send(&large, |_| true);
            sent += 1;
        }
        assert_eq!(sent, (WAITING_BYTES >> 20) + 1);
        assert!(all[1].receive().is_some() && all[0].has_room(|_| true));
    }

    #[test]
    fn a_busy_sender_does_not_keep_the_others_waiting() {
        let mut all = Mailbox::all(3).unwrap();
        for _ in 0..100 {
            all[0].send(&Arc::from(*b"busy"), |to| to == 2);
        }
        all[1].send(&Arc::from(*b"rare"), |to| to == 2);
        let first: Vec<_> = (0..2).filter_map(|_| receive(&mut all[2])).collect();
        assert!(first.iter().any(|envelope| **envelope == *b"rare"));
    }
}
