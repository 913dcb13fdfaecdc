//! Worker to worker: envelopes over one single-producer ring for each pair, and an eventfd that is
//! written only when the other side sleeps.

use super::wake;
use crate::state::wants::Notice;
use rtrb::{Consumer, Producer, RingBuffer};
use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed, Ordering::SeqCst, fence};

/// Envelopes that may wait from one worker to another; beyond, the push is answered 503.
const RING_ENTRIES: usize = 4096;
/// Bytes of envelopes that may wait for one worker, over all its rings; beyond, likewise.
const WAITING_BYTES: usize = 64 << 20;

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
        if self.asleep.swap(false, SeqCst) {
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

/// One worker's ends: a ring from and to every other worker.
#[derive(Debug)]
pub struct Mailbox {
    bells: Arc<[Bell]>,
    index: usize,
    /// By worker; `None` for itself.
    outgoing: Vec<Option<Producer<Word>>>,
    incoming: Vec<Consumer<Word>>,
    /// Notices for which a ring had no room, in order: none is ever lost.
    late: VecDeque<(usize, Notice)>,
    /// Whose turn it is among `incoming`.
    next: usize,
}

impl Mailbox {
    /// The mailboxes of all workers of a node.
    pub fn all(workers: usize) -> io::Result<Vec<Self>> {
        let bells: io::Result<Arc<[Bell]>> = (0..workers).map(|_| Bell::new()).collect();
        let bells = bells?;
        let mut mailboxes: Vec<Self> = (0..workers)
            .map(|index| Self {
                bells: Arc::clone(&bells),
                index,
                outgoing: (0..workers).map(|_| None).collect(),
                incoming: Vec::new(),
                late: VecDeque::new(),
                next: 0,
            })
            .collect();
        for from in 0..workers {
            for to in (0..workers).filter(|&to| to != from) {
                let (producer, consumer) = RingBuffer::new(RING_ENTRIES);
                mailboxes[from].outgoing[to] = Some(producer);
                mailboxes[to].incoming.push(consumer);
            }
        }
        Ok(mailboxes)
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
        let has_room = |to: usize, ring: &Producer<_>| {
            !ring.is_full() && self.bells[to].waiting_bytes() <= WAITING_BYTES
        };
        let mut rings = self.outgoing.iter().enumerate();
        rings.all(|(to, ring)| !wanted(to) || ring.as_ref().is_none_or(|ring| has_room(to, ring)))
    }

    /// Hands an envelope to every worker that `wanted` names. Each must have room
    /// ([`Mailbox::has_room`]).
    pub fn send(&mut self, envelope: &Arc<[u8]>, wanted: impl Fn(usize) -> bool) {
        for (to, ring) in self.outgoing.iter_mut().enumerate() {
            if let Some(ring) = ring.as_mut().filter(|_| wanted(to)) {
                self.bells[to].add_bytes(envelope.len());
                let pushed = ring.push(Word::Envelope(Arc::clone(envelope)));
                debug_assert!(pushed.is_ok(), "has_room was asked before");
                self.bells[to].ring();
            }
        }
    }

    /// Tells a worker something that must not be lost.
    pub fn notify(&mut self, to: usize, notice: Notice) {
        self.late.push_back((to, notice));
        self.send_late();
    }

    /// Tells all others.
    pub fn notify_all(&mut self, notice: Notice) {
        for to in (0..self.bells.len()).filter(|&to| to != self.index) {
            self.late.push_back((to, notice));
        }
        self.send_late();
    }

    /// Tries again to hand over what there was no room for.
    pub fn send_late(&mut self) {
        while let Some(&(to, notice)) = self.late.front() {
            let Some(ring) = &mut self.outgoing[to] else { return };
            if ring.push(Word::Notice(notice)).is_err() {
                return;
            }
            self.late.pop_front();
            self.bells[to].ring();
        }
    }

    /// The next word. The senders take turns, so that a busy one leaves the others their room; each
    /// keeps its order.
    pub fn receive(&mut self) -> Option<Word> {
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
        self.incoming.iter().all(Consumer::is_empty)
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
