//! Events that a business server can subscribe to.

/// A set of requests and kinds of events: those a business server wants, or the kind of a single
/// event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct EventSet(u8);

impl EventSet {
    pub const NONE: Self = Self(0);
    pub const REQUEST: Self = Self(1);
    pub const CONNECT: Self = Self(1 << 1);
    pub const DISCONNECT: Self = Self(1 << 2);
    pub const SUBSCRIBE: Self = Self(1 << 3);
    pub const UNSUBSCRIBE: Self = Self(1 << 4);
    pub const NODE: Self = Self(1 << 5);
    pub const ALL: Self = Self((1 << 6) - 1);
    /// Events of clients, which the nodes publish if any business server wants them.
    pub const OF_CLIENTS: Self =
        Self(Self::CONNECT.0 | Self::DISCONNECT.0 | Self::SUBSCRIBE.0 | Self::UNSUBSCRIBE.0);

    /// The name of each kind, in the order of their bits.
    pub const NAMES: [&'static str; 6] =
        ["request", "connect", "disconnect", "subscribe", "unsubscribe", "node"];

    /// Returns the kind with that name; `None` if there is none.
    pub fn named(name: &str) -> Option<Self> {
        let bit = Self::NAMES.iter().position(|known| *known == name)?;
        Some(Self(1 << bit))
    }

    pub const fn bits(self) -> u8 {
        self.0
    }

    /// Bits of a later version are dropped.
    pub const fn from_bits(bits: u8) -> Self {
        Self(bits & Self::ALL.0)
    }

    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether the two sets intersect.
    pub const fn meets(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_make_a_set() {
        let sets = [
            EventSet::REQUEST,
            EventSet::CONNECT,
            EventSet::DISCONNECT,
            EventSet::SUBSCRIBE,
            EventSet::UNSUBSCRIBE,
            EventSet::NODE,
        ];
        assert_eq!(EventSet::NAMES.map(EventSet::named), sets.map(Some));
        assert_eq!(sets.into_iter().fold(EventSet::NONE, EventSet::union), EventSet::ALL);
        let two = EventSet::REQUEST.union(EventSet::DISCONNECT);
        assert!(two.meets(EventSet::OF_CLIENTS) && !two.meets(EventSet::NODE));
        for bad in ["push", "", "Request", "request node"] {
            assert_eq!(EventSet::named(bad), None, "{bad}");
        }
        assert_eq!(EventSet::from_bits(0xff), EventSet::ALL);
    }
}
