//! In which order the messages of each node come, over all channels, and which numbers it can have
//! given out.

use crate::types::NodeId;

/// A node announces its latest order at least once in this many messages, besides once a second.
pub const ANNOUNCE_EVERY: u64 = 1 << 16;
/// How far beyond the last announcement an order may be. An announcement may be overtaken by what
/// waited while a link was made anew.
const BEYOND_ANNOUNCED: u64 = 4 * ANNOUNCE_EVERY;
/// A life that only messages told of is false where an earlier one goes on to be announced, once a
/// second: the words of a node that was started anew come late, but are few.
const RIVALS: u32 = 5;
/// No node comes this far: a million messages a second for nine years.
const MAX_ORDER: u64 = 1 << 48;

/// The order of each node's messages over all channels. Each publishes on one link, in order; but a
/// message that is sent again after one on another channel comes late to who was not subscribed, or
/// not reached, the first time. To deliver it then would break the order.
///
/// A node announces its latest order about once a second, on the same link. So an order far beyond
/// the announced one was never given out; and where one was heard that is beyond a later
/// announcement, it cannot be right: what follows counts from the announcement.
#[derive(Debug)]
pub struct Orders {
    /// By node. 40 KiB.
    lives: Box<[Life]>,
}

/// What is known of a life of a node.
#[derive(Debug, Clone, Copy, Default)]
struct Life {
    epoch: u64,
    /// The highest order that was heard.
    last: u64,
    /// The latest that was announced; 0: none, of a node that does not announce, too.
    announced: u64,
    /// The number of that announcement: one from an old link comes late.
    announcement: u64,
    /// While this life was not announced: how often an earlier one was.
    rivals: u32,
}

/// What a message's order says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// It is later than all that were heard of that life of its node.
    Newest,
    /// A later one was heard before.
    Late,
    /// Of an earlier life: not compared. Who pushed it has another connection now.
    Earlier,
}

impl Default for Orders {
    fn default() -> Self {
        Self { lives: vec![Life::default(); usize::from(NodeId::MAX) + 1].into() }
    }
}

impl Orders {
    /// Whether a node can have given out these numbers. A channel's number rises with each of its
    /// messages, the order with those of all channels: it is never behind.
    pub fn is_possible(&self, origin: NodeId, epoch: u64, seq: u64, order: u64) -> bool {
        let life = &self.lives[usize::from(origin.value())];
        let limit = match life.announced {
            announced if announced > 0 && epoch == life.epoch => announced + BEYOND_ANNOUNCED,
            _ => MAX_ORDER,
        };
        seq <= order && order <= limit
    }

    /// Notes the order of a message.
    pub fn receive(&mut self, origin: NodeId, epoch: u64, order: u64) -> Order {
        let life = &mut self.lives[usize::from(origin.value())];
        if epoch > life.epoch {
            *life = Life { epoch, last: order, ..Life::default() };
            return Order::Newest;
        }
        if epoch < life.epoch {
            return Order::Earlier;
        }
        let is_late = order <= life.last;
        life.last = life.last.max(order);
        if is_late { Order::Late } else { Order::Newest }
    }

    /// Whether nothing was heard of that life that is later than `order`.
    pub fn is_latest(&self, origin: NodeId, epoch: u64, order: u64) -> bool {
        let life = &self.lives[usize::from(origin.value())];
        epoch == life.epoch && order >= life.last
    }

    /// The links are new: what others announced meanwhile was missed, and is said again soon.
    pub fn forget_announcements(&mut self) {
        self.lives.iter_mut().for_each(|life| life.announced = 0);
    }

    /// A node says which order it has come to; `number` rises with each of its announcements.
    /// Returns whether what was heard of it could not be right, and counts from there again.
    pub fn announce(&mut self, origin: NodeId, epoch: u64, order: u64, number: u64) -> bool {
        let life = &mut self.lives[usize::from(origin.value())];
        if order == 0 || order > MAX_ORDER {
            return false;
        }
        if epoch < life.epoch && life.announcement == 0 {
            life.rivals += 1;
        }
        let is_false_life = life.rivals == RIVALS;
        if epoch > life.epoch || is_false_life {
            *life = Life { epoch, announced: order, announcement: number, ..Life::default() };
            return is_false_life;
        }
        let is_stale = number <= life.announcement;
        if epoch < life.epoch || is_stale {
            return false;
        }
        (life.announced, life.announcement, life.rivals) = (order, number, 0);
        let is_wrong = life.last > order;
        life.last = life.last.min(order);
        is_wrong
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(number: u16) -> NodeId {
        NodeId::new(number).unwrap()
    }

    #[test]
    fn what_comes_after_later_messages_of_its_node_is_late() {
        let mut orders = Orders::default();
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
            assert_eq!(orders.receive(node(origin), epoch, order), expected, "{order} of {epoch}");
        }
    }

    #[test]
    fn an_order_that_was_never_given_out_is_refused_or_taken_back() {
        let mut orders = Orders::default();
        assert!(!orders.announce(node(3), 5, 100, 1));
        assert!(orders.is_possible(node(3), 5, 90, 101));
        assert!(!orders.is_possible(node(3), 5, 102, 101), "a channel is never ahead");
        assert!(!orders.is_possible(node(3), 5, 1, 1 << 40));
        assert!(!orders.is_possible(node(4), 5, 1, u64::MAX), "also where nothing is known");
        assert_eq!(orders.receive(node(3), 5, 101), Order::Newest);
        // Within what is possible, and false: until the next announcement.
        assert_eq!(orders.receive(node(3), 5, 5_000), Order::Newest);
        assert_eq!(orders.receive(node(3), 5, 102), Order::Late);
        assert!(!orders.announce(node(3), 5, 100, 1), "that one is known");
        assert!(orders.announce(node(3), 5, 102, 2));
        assert_eq!(orders.receive(node(3), 5, 103), Order::Newest);
        assert!(orders.is_latest(node(3), 5, 103) && !orders.is_latest(node(3), 5, 102));
        assert!(!orders.announce(node(3), 5, 103, 3));
    }

    #[test]
    fn a_life_that_no_node_has_announced_gives_way_to_one_that_is_announced() {
        let mut orders = Orders::default();
        orders.announce(node(3), 5, 100, 1);
        assert_eq!(orders.receive(node(3), u64::MAX, 7), Order::Newest);
        for number in 2..6 {
            assert!(!orders.announce(node(3), 5, 110, number), "it may be late");
        }
        assert!(orders.announce(node(3), 5, 110, 6));
        assert_eq!(orders.receive(node(3), 5, 111), Order::Newest);
    }

    #[test]
    fn late_words_of_the_life_before_do_not_end_a_new_one() {
        let mut orders = Orders::default();
        orders.announce(node(3), 5, 100, 1);
        // What it said first was missed.
        assert_eq!(orders.receive(node(3), 6, 1), Order::Newest);
        assert!(!orders.announce(node(3), 5, 101, 2));
        assert!(!orders.announce(node(3), 6, 1, 1));
        for number in 3..20 {
            assert!(!orders.announce(node(3), 5, 102, number));
        }
        assert_eq!(orders.receive(node(3), 6, 2), Order::Newest);
    }
}
