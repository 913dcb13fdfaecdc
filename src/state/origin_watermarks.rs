//! The order of each node's messages over all channels, and which numbers a node can have issued.

use crate::types::{MonotonicMs, NodeId};

/// A node announces its latest order at least once per this number of messages, besides once a
/// second.
pub const ANNOUNCE_EVERY: u64 = 1 << 16;
/// How far beyond the last announcement an order may be. Messages that waited while a link was
/// reopened may overtake an announcement.
const BEYOND_ANNOUNCED: u64 = 4 * ANNOUNCE_EVERY;
/// Number of overtaken announcements, with no other message of their node in between, after which
/// the one that overtook them is considered false. A node announces once a second; late ones, from
/// an earlier run or an old link, arrive all at once.
const RIVALS: u32 = 5;
const RIVALS_MS: u64 = 3_000;
/// No node gets this far: a million messages a second for nine years.
const MAX_ORDER: u64 = 1 << 48;

/// The order of each node's messages over all channels. A node publishes on one link, in order; but
/// a message sent again after one on another channel is late for a node that was not subscribed, or
/// not reached, the first time. Delivering it then would violate the order.
///
/// A node announces its latest order about once a second, on the same link. So an order far beyond
/// the announced one was never issued; and an order received earlier that is beyond a later
/// announcement is false: counting restarts from the announcement.
#[derive(Debug)]
pub struct OriginWatermarks {
    /// By node. 48 KiB.
    origins: Box<[OriginState]>,
}

/// What is known of one run of a node.
#[derive(Debug, Clone, Copy, Default)]
struct OriginState {
    epoch: u64,
    /// The highest order received.
    last: u64,
    /// The latest announced order; 0: none, also for a node that does not announce.
    announced: u64,
    /// The number of that announcement: one from an old link arrives late.
    announcement: u64,
    /// Announcements overtaken since then, and when the first of them arrived.
    rivals: u32,
    rivals_since: MonotonicMs,
}

/// Classification of an announcement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Announcement {
    /// Later than all earlier announcements of its node.
    Fresh,
    /// Fresh, and the order received before was false: counting restarts here.
    Corrects,
    /// It was overtaken, or has no number.
    Stale,
    /// Its node never issued these numbers.
    False,
}

/// Classification of a message's order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Later than everything received from that run of its node.
    Newest,
    /// A later one was received before.
    Late,
    /// From an earlier run: not compared. Its pusher has another connection now.
    Earlier,
}

impl Default for OriginWatermarks {
    fn default() -> Self {
        Self { origins: vec![OriginState::default(); usize::from(NodeId::MAX) + 1].into() }
    }
}

impl OriginWatermarks {
    /// Whether a node can have issued these numbers. A channel's number increases with each of its
    /// messages, the order with those of all channels: it is never less.
    pub fn is_possible(&self, origin: NodeId, epoch: u64, seq: u64, order: u64) -> bool {
        let state = &self.origins[usize::from(origin.value())];
        let limit = match state.announced {
            announced if announced > 0 && epoch == state.epoch => announced + BEYOND_ANNOUNCED,
            _ => MAX_ORDER,
        };
        seq <= order && order <= limit
    }

    /// Records the order of a message.
    pub fn receive(&mut self, origin: NodeId, epoch: u64, order: u64) -> Order {
        let state = &mut self.origins[usize::from(origin.value())];
        if epoch > state.epoch {
            *state = OriginState { epoch, last: order, ..OriginState::default() };
            return Order::Newest;
        }
        if epoch < state.epoch {
            return Order::Earlier;
        }
        let is_late = order <= state.last;
        state.last = state.last.max(order);
        if is_late { Order::Late } else { Order::Newest }
    }

    /// Whether nothing later than `order` was received from that run.
    pub fn is_latest(&self, origin: NodeId, epoch: u64, order: u64) -> bool {
        let state = &self.origins[usize::from(origin.value())];
        epoch == state.epoch && order >= state.last
    }

    /// Forgets announcements when the links are new: those made meanwhile were missed and are
    /// repeated soon.
    pub fn forget_announcements(&mut self) {
        self.origins.iter_mut().for_each(|state| state.announced = 0);
    }

    /// Handles a node's announcement of its order; `number` increases with each of its
    /// announcements, 0 is that of a node that does not count them.
    pub fn announce(
        &mut self,
        origin: NodeId,
        epoch: u64,
        order: u64,
        number: u64,
        now: MonotonicMs,
    ) -> Announcement {
        if number == 0 {
            return Announcement::Stale;
        }
        if order.max(number) > MAX_ORDER {
            return Announcement::False;
        }
        let state = &mut self.origins[usize::from(origin.value())];
        let is_overtaken = (epoch, number) <= (state.epoch, state.announcement);
        if is_overtaken && !state.is_refuted_by_one_more(now) {
            return Announcement::Stale;
        }
        let is_same = epoch == state.epoch;
        let is_false = is_overtaken || is_same && state.last > order;
        let last = if is_same { state.last.min(order) } else { 0 };
        *state = OriginState {
            epoch,
            last,
            announced: order,
            announcement: number,
            ..OriginState::default()
        };
        if is_false { Announcement::Corrects } else { Announcement::Fresh }
    }

    /// Whether a tail without an order may be from that run: only nodes that do not count their
    /// announcements omit it.
    pub fn may_lack_order(&self, origin: NodeId, epoch: u64, seq: u64) -> bool {
        let state = &self.origins[usize::from(origin.value())];
        let counts = epoch == state.epoch && state.announcement > 0;
        !counts && seq <= MAX_ORDER
    }
}

impl OriginState {
    /// Counts an overtaken announcement. Returns whether the one that overtook it is refuted.
    fn is_refuted_by_one_more(&mut self, now: MonotonicMs) -> bool {
        if self.rivals == 0 {
            self.rivals_since = now;
        }
        self.rivals += 1;
        let lasted_ms = now.since(self.rivals_since);
        self.rivals >= RIVALS && lasted_ms >= RIVALS_MS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> MonotonicMs {
        MonotonicMs::new(ms)
    }

    fn node(number: u16) -> NodeId {
        NodeId::new(number).unwrap()
    }

    #[test]
    fn what_comes_after_later_messages_of_its_node_is_late() {
        let mut watermarks = OriginWatermarks::default();
        for (origin, epoch, order, expected) in [
            (1023, 5, 7, Order::Newest),
            (1023, 5, 9, Order::Newest),
            (0, 1, 1, Order::Newest),
            (1023, 5, 8, Order::Late),
            (1023, 5, 10, Order::Newest),
            (1023, 4, 1, Order::Earlier),
            (1023, 6, 1, Order::Newest),
            (1023, 6, 1, Order::Late),
        ] {
            assert_eq!(
                watermarks.receive(node(origin), epoch, order),
                expected,
                "{order} of {epoch}"
            );
        }
    }

    /// A node's announcement with the number `number`, received in that second.
    fn announce(
        watermarks: &mut OriginWatermarks,
        epoch: u64,
        order: u64,
        number: u64,
    ) -> Announcement {
        watermarks.announce(node(3), epoch, order, number, ms(1_000 * number))
    }

    #[test]
    fn an_order_that_was_never_given_out_is_refused_or_taken_back() {
        let mut watermarks = OriginWatermarks::default();
        assert_eq!(announce(&mut watermarks, 5, 100, 1), Announcement::Fresh);
        assert!(watermarks.is_possible(node(3), 5, 90, 101));
        assert!(!watermarks.is_possible(node(3), 5, 102, 101), "a channel is never ahead");
        assert!(!watermarks.is_possible(node(3), 5, 1, 1 << 40));
        assert!(!watermarks.is_possible(node(4), 5, 1, u64::MAX), "also where nothing is known");
        assert_eq!(watermarks.receive(node(3), 5, 101), Order::Newest);
        // Possible but false: accepted until the next announcement.
        assert_eq!(watermarks.receive(node(3), 5, 5_000), Order::Newest);
        assert_eq!(watermarks.receive(node(3), 5, 102), Order::Late);
        assert_eq!(announce(&mut watermarks, 5, 100, 1), Announcement::Stale, "that one is known");
        assert_eq!(announce(&mut watermarks, 5, 102, 2), Announcement::Corrects);
        assert_eq!(watermarks.receive(node(3), 5, 103), Order::Newest);
        assert!(watermarks.is_latest(node(3), 5, 103) && !watermarks.is_latest(node(3), 5, 102));
        assert_eq!(announce(&mut watermarks, 5, 103, 3), Announcement::Fresh);
    }

    #[test]
    fn a_life_that_no_node_announces_gives_way_to_one_that_is_announced() {
        for is_announced in [false, true] {
            let mut watermarks = OriginWatermarks::default();
            announce(&mut watermarks, 5, 100, 1);
            assert_eq!(watermarks.receive(node(3), u64::MAX, 7), Order::Newest);
            if is_announced {
                announce(&mut watermarks, u64::MAX, 7, 1);
            }
            for number in 2..6 {
                let heard = announce(&mut watermarks, 5, 110, number);
                assert_eq!(heard, Announcement::Stale, "it may be late");
            }
            assert_eq!(announce(&mut watermarks, 5, 110, 6), Announcement::Corrects);
            assert_eq!(watermarks.receive(node(3), 5, 111), Order::Newest);
        }
    }

    /// The node's later announcements were classified as coming from an old link: after 262,144
    /// more messages all its messages were refused.
    #[test]
    fn a_number_of_an_announcement_that_was_never_given_out_silences_nobody() {
        let mut watermarks = OriginWatermarks::default();
        announce(&mut watermarks, 5, 100, 1);
        for number in [MAX_ORDER + 1, u64::MAX] {
            let heard = watermarks.announce(node(3), 5, 100, number, ms(1_500));
            assert_eq!(heard, Announcement::False);
        }
        // Possible.
        watermarks.announce(node(3), 5, 100, MAX_ORDER, ms(1_500));
        for number in 2..6 {
            assert_eq!(announce(&mut watermarks, 5, 110, number), Announcement::Stale);
        }
        let order = 10 * BEYOND_ANNOUNCED;
        assert!(!watermarks.is_possible(node(3), 5, 1, order));
        assert_eq!(announce(&mut watermarks, 5, order, 6), Announcement::Corrects);
        assert!(watermarks.is_possible(node(3), 5, 1, order));
        assert_eq!(announce(&mut watermarks, 5, order, 7), Announcement::Fresh);
    }

    #[test]
    fn only_a_node_that_does_not_count_leaves_out_the_order_of_a_tail() {
        let mut watermarks = OriginWatermarks::default();
        assert_eq!(announce(&mut watermarks, 5, 9, 0), Announcement::Stale);
        assert!(watermarks.may_lack_order(node(3), 5, 9));
        assert!(!watermarks.may_lack_order(node(3), 5, u64::MAX));
        // It has published nothing yet.
        announce(&mut watermarks, 5, 0, 1);
        watermarks.forget_announcements();
        assert!(
            !watermarks.may_lack_order(node(3), 5, 9) && watermarks.may_lack_order(node(3), 4, 9)
        );
    }

    #[test]
    fn late_words_of_the_life_before_do_not_end_a_new_one() {
        let mut watermarks = OriginWatermarks::default();
        announce(&mut watermarks, 5, 100, 1);
        // Its first announcement was missed.
        assert_eq!(watermarks.receive(node(3), 6, 1), Order::Newest);
        assert_eq!(announce(&mut watermarks, 5, 101, 2), Announcement::Stale);
        assert_eq!(watermarks.announce(node(3), 6, 1, 1, ms(2_500)), Announcement::Fresh);
        for number in 3..20 {
            // All at once, or while the new run is received.
            assert_eq!(
                watermarks.announce(node(3), 5, 102, number, ms(3_000)),
                Announcement::Stale
            );
        }
        for number in 2..30 {
            let heard = watermarks.announce(node(3), 6, 1, number, ms(1_000 * number + 2_000));
            assert_eq!(heard, Announcement::Fresh);
            assert_eq!(announce(&mut watermarks, 5, 102, number + 20), Announcement::Stale);
        }
        assert_eq!(watermarks.receive(node(3), 6, 2), Order::Newest);
    }
}
