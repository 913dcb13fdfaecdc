//! Mailboxes between workers: one lane for each pair.

use super::lane::{Bell, Entrance, Inbox, Lanes, Load, for_each_bit};
use crate::state::projects::ProjectId;
use crate::state::subscriptions::WorkerEvent;
use std::io;
use std::sync::Arc;

/// Envelopes that may wait from one worker to another, with up to 16 workers; above it, the push is
/// answered 503. With more workers there are more rings, so each is smaller: the rings of 54
/// workers took 280 MB.
const RING_ENTRIES: usize = 4_096;
/// Approximate number of envelopes that may wait for one worker in all its rings.
const ENTRIES_OF_ALL: usize = 65_536;

/// What one worker sends to another.
#[derive(Debug)]
pub enum MailboxMessage {
    /// An envelope or a parcel.
    Envelope(Arc<[u8]>),
    Event(WorkerEvent),
}

impl Load for MailboxMessage {
    fn bytes(&self) -> usize {
        match self {
            Self::Envelope(bytes) => bytes.len(),
            Self::Event(_) => 0,
        }
    }
}

/// One worker's ends of the lanes to and from every other worker.
#[derive(Debug)]
pub struct Mailbox {
    /// By worker; the lane to itself stays empty.
    lanes: Lanes<MailboxMessage>,
    inbox: Inbox<MailboxMessage>,
    /// Bit set of the other workers.
    others: u64,
}

fn ring_entries(workers: usize) -> usize {
    RING_ENTRIES.min(1 << (ENTRIES_OF_ALL / workers.max(1)).ilog2())
}

impl Mailbox {
    /// Creates the mailboxes of all workers of a node, 64 at most.
    pub fn all(workers: usize) -> io::Result<Vec<Self>> {
        let entrances = (0..workers).map(|_| Entrance::new()).collect::<io::Result<Vec<_>>>()?;
        let everybody = u64::MAX >> (u64::BITS as usize - workers);
        let mailbox = |(index, entrance): (usize, &Arc<Entrance<MailboxMessage>>)| Self {
            lanes: Lanes::new(index, ring_entries(workers), &entrances),
            inbox: Inbox::new(Arc::clone(entrance)),
            others: everybody & !(1 << index),
        };
        Ok(entrances.iter().enumerate().map(mailbox).collect())
    }

    /// Returns its owner's bell.
    pub fn bell(&self) -> &Bell {
        self.inbox.bell()
    }

    pub fn is_alone(&self) -> bool {
        self.others == 0
    }

    /// Returns whether every other worker whose bit is set has room for one more envelope.
    pub fn has_room(&self, to: u64) -> bool {
        let mut has_room = true;
        for_each_bit(to & self.others, |to| has_room &= self.lanes.has_room(to));
        has_room
    }

    /// Hands an envelope to every other worker whose bit is set. Each must have room
    /// ([`Mailbox::has_room`]).
    pub fn send(&mut self, envelope: &Arc<[u8]>, to: u64) {
        for_each_bit(to & self.others, |to| {
            let sent = self.lanes.send(to, MailboxMessage::Envelope(Arc::clone(envelope)));
            debug_assert!(sent.is_ok(), "has_room was asked before");
        });
        self.lanes.wake();
    }

    /// Hands a parcel to one worker, or (`None`) to all others, at once or behind the waiting
    /// parcels of its project. Returns `false` if the project has used up its share of the backlog,
    /// so that some of them do not get it.
    pub fn relay(&mut self, project: ProjectId, to: Option<usize>, parcel: &Arc<[u8]>) -> bool {
        let to = to.map_or(self.others, |to| 1 << to);
        let message = || MailboxMessage::Envelope(Arc::clone(parcel));
        let refused = self.lanes.relay_to_all(to, project, parcel.len(), message);
        self.lanes.wake();
        refused == 0
    }

    /// Returns whether something waits for [`Mailbox::send_late`].
    pub fn has_late(&self) -> bool {
        self.lanes.has_late()
    }

    /// Sends a worker an event, which is never lost.
    pub fn notify(&mut self, to: usize, event: WorkerEvent) {
        self.lanes.notify(to, MailboxMessage::Event(event), event.is_end());
        self.lanes.wake();
    }

    /// Sends an event to all other workers.
    pub fn notify_all(&mut self, event: WorkerEvent) {
        let is_end = event.is_end();
        for_each_bit(self.others, |to| self.lanes.notify(to, MailboxMessage::Event(event), is_end));
        self.lanes.wake();
    }

    /// Retries what found no room.
    pub fn send_late(&mut self) {
        self.lanes.flush();
        self.lanes.wake();
    }

    /// Returns the next message; the senders take turns.
    pub fn receive(&mut self) -> Option<MailboxMessage> {
        self.inbox.receive()
    }

    pub fn is_empty(&self) -> bool {
        self.inbox.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::lane::{BACKLOG_BYTES, PARCEL_BYTES, WAITING_BYTES};
    use crate::types::Cid;

    fn receive(mailbox: &mut Mailbox) -> Option<Arc<[u8]>> {
        match mailbox.receive()? {
            MailboxMessage::Envelope(envelope) => Some(envelope),
            MailboxMessage::Event(event) => panic!("{event:?}"),
        }
    }

    /// An event used to be lost if the ring was full of envelopes.
    #[test]
    fn events_wait_for_room_and_keep_their_order() {
        let mut all = Mailbox::all(2).unwrap();
        while all[0].has_room(u64::MAX) {
            all[0].send(&Arc::from(*b"x"), u64::MAX);
        }
        for number in 0..3 {
            all[0].notify_all(WorkerEvent::ServerGone(Cid(number)));
        }
        let mut gone = Vec::new();
        while let Some(message) = all[1].receive() {
            if let MailboxMessage::Event(WorkerEvent::ServerGone(cid)) = message {
                gone.push(cid.0);
            }
            all[0].send_late();
        }
        assert_eq!(gone, [0, 1, 2]);
    }

    /// 66,000 requests of one project used to fill the ring: others' requests were refused, and
    /// their pushes too.
    #[test]
    fn a_flood_of_one_projects_parcels_leaves_room_for_others_and_for_pushes() {
        let mut all = Mailbox::all(2).unwrap();
        let (loud, calm) = (ProjectId(0), ProjectId(1));
        let number = |number: u32| -> Arc<[u8]> { Arc::from(number.to_le_bytes()) };
        for index in 0..50_000 {
            assert!(all[0].relay(loud, Some(1), &number(index)));
        }
        assert!(all[0].relay(calm, Some(1), &number(u32::MAX)));
        all[0].notify_all(WorkerEvent::ServerGone(Cid(9)));
        assert!(all[0].has_room(u64::MAX), "pushes have room");
        let (mut heard, mut calm_at, mut gone_at) = (Vec::new(), None, None);
        for at in 0.. {
            match all[1].receive() {
                Some(MailboxMessage::Envelope(parcel)) if *parcel == u32::MAX.to_le_bytes() => {
                    calm_at = Some(at);
                }
                Some(MailboxMessage::Envelope(parcel)) => heard.push(parcel),
                Some(MailboxMessage::Event(_)) => gone_at = Some(at),
                None => break,
            }
            all[0].send_late();
        }
        let expected: Vec<Arc<[u8]>> = (0..50_000).map(number).collect();
        assert_eq!(heard, expected);
        assert!(calm_at.unwrap() <= RING_ENTRIES / 2 + 2, "{calm_at:?}");
        assert_eq!(gone_at, Some(50_001), "behind what was said before it");
        assert!(!all[0].has_late() && all[0].lanes.waiting_bytes() == 0);
    }

    #[test]
    fn parcels_that_wait_have_a_bound_and_each_project_a_share() {
        let mut all = Mailbox::all(2).unwrap();
        let parcel: Arc<[u8]> = Arc::from(vec![0; 1 << 20]);
        let mut fill = |project| {
            let taken = |_: &usize| all[0].relay(ProjectId(project), Some(1), &parcel);
            (0..100).take_while(taken).count()
        };
        let in_ring = (PARCEL_BYTES >> 20) + 1;
        assert_eq!([fill(0), fill(1)], [in_ring + (BACKLOG_BYTES >> 21), BACKLOG_BYTES >> 22]);
    }

    #[test]
    fn envelopes_arrive_in_order_and_only_where_wanted() {
        let mut all = Mailbox::all(3).unwrap();
        for number in 0..RING_ENTRIES {
            assert!(all[0].has_room(1 << 1));
            all[0].send(&Arc::from((number as u32).to_le_bytes()), 1 << 1);
        }
        assert!(!all[0].has_room(u64::MAX) && all[0].has_room(1 << 2));
        assert!(all[2].is_empty() && all[2].receive().is_none());
        for number in 0..RING_ENTRIES {
            assert_eq!(receive(&mut all[1]).as_deref(), Some(&(number as u32).to_le_bytes()[..]));
        }
        assert!(all[1].is_empty() && all[0].is_empty());
    }

    #[test]
    fn rings_are_made_when_they_are_used_and_are_smaller_where_there_are_many() {
        let mut all = Mailbox::all(54).unwrap();
        all[7].send(&Arc::from(*b"x"), 1 << 9);
        assert!(!all[9].is_empty() && receive(&mut all[9]).is_some() && all[9].is_empty());
        let rings = |mailbox: &Mailbox| mailbox.lanes.rings();
        assert_eq!((rings(&all[7]), all.iter().map(rings).sum::<usize>()), (1, 1));
        assert_eq!(all[9].inbox.rings(), 1);
        assert_eq!([54, 16, 1].map(ring_entries), [1_024, RING_ENTRIES, RING_ENTRIES]);
    }

    #[test]
    fn large_envelopes_fill_a_mailbox_by_their_bytes() {
        let mut all = Mailbox::all(2).unwrap();
        let large: Arc<[u8]> = Arc::from(vec![0; 1 << 20]);
        let mut sent = 0;
        while all[0].has_room(u64::MAX) {
            all[0].send(&large, u64::MAX);
            sent += 1;
        }
        assert_eq!(sent, (WAITING_BYTES >> 20) + 1);
        assert!(all[1].receive().is_some() && all[0].has_room(u64::MAX));
    }

    #[test]
    fn a_busy_sender_does_not_keep_the_others_waiting() {
        let mut all = Mailbox::all(3).unwrap();
        for _ in 0..100 {
            all[0].send(&Arc::from(*b"busy"), 1 << 2);
        }
        all[1].send(&Arc::from(*b"rare"), 1 << 2);
        let first: Vec<_> = (0..2).filter_map(|_| receive(&mut all[2])).collect();
        assert!(first.iter().any(|envelope| **envelope == *b"rare"));
    }
}
