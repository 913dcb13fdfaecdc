//! In which order the messages of each node come, over all channels.

use crate::types::NodeId;

/// The order of each node's messages over all channels. Each publishes on one link, in order; but a
/// message that is sent again after one on another channel comes late to who was not subscribed, or
/// not reached, the first time. To deliver it then would break the order.
#[derive(Debug)]
pub struct Orders {
    /// By node: its life, and the highest number of it that was heard. 16 KiB.
    lives: Box<[(u64, u64)]>,
}

impl Default for Orders {
    fn default() -> Self {
        Self { lives: vec![(0, 0); usize::from(NodeId::MAX) + 1].into() }
    }
}

impl Orders {
    /// Whether a message comes after all that were heard of that life of its node. Words of an
    /// earlier life are not compared: who pushed them has another connection now.
    pub fn receive(&mut self, origin: NodeId, epoch: u64, order: u64) -> bool {
        let life = &mut self.lives[usize::from(origin.value())];
        if epoch > life.0 {
            *life = (epoch, order);
            return true;
        }
        let is_late = epoch == life.0 && order <= life.1;
        if epoch == life.0 {
            life.1 = life.1.max(order);
        }
        !is_late
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_after_later_messages_of_its_node_is_late() {
        let mut orders = Orders::default();
        for (origin, epoch, order, expected) in [
            (1023, 5, 7, true),
            (1023, 5, 9, true),
            (0, 1, 1, true),
            (1023, 5, 8, false),
            (1023, 5, 10, true),
            (1023, 4, 1, true),
            (1023, 6, 1, true),
            (1023, 6, 1, false),
        ] {
            assert_eq!(
                orders.receive(NodeId::new(origin).unwrap(), epoch, order),
                expected,
                "{order} of {epoch}"
            );
        }
    }
}
