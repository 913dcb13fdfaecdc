//! What a business server is told of.

/// Requests, and kinds of events: what a business server wants, or what one thing is.
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
    /// Events of clients, which the nodes publish where somebody wants them.
    pub const OF_CLIENTS: Self =
        Self(Self::CONNECT.0 | Self::DISCONNECT.0 | Self::SUBSCRIBE.0 | Self::UNSUBSCRIBE.0);

    const NAMES: [(&'static str, Self); 6] = [
        ("request", Self::REQUEST),
        ("connect", Self::CONNECT),
        ("disconnect", Self::DISCONNECT),
        ("subscribe", Self::SUBSCRIBE),
        ("unsubscribe", Self::UNSUBSCRIBE),
        ("node", Self::NODE),
    ];

    /// Reads `request,disconnect`; an empty list is nothing. `None` for a name that is not known.
    pub fn parse(list: &str) -> Option<Self> {
        if list.is_empty() {
            return Some(Self::NONE);
        }
        list.split(',').try_fold(Self::NONE, |set, name| {
            let (_, one) = Self::NAMES.iter().find(|(known, _)| *known == name)?;
            Some(set.union(*one))
        })
    }

    pub const fn bits(self) -> u8 {
        self.0
    }

    /// Bits of a later version are left out.
    pub const fn from_bits(bits: u8) -> Self {
        Self(bits & Self::ALL.0)
    }

    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether the two have anything in common.
    pub const fn meets(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_make_a_set() {
        let all = "request,connect,disconnect,subscribe,unsubscribe,node";
        assert_eq!(EventSet::parse(all), Some(EventSet::ALL));
        assert_eq!(EventSet::parse(""), Some(EventSet::NONE));
        let two = EventSet::parse("disconnect,request,request").unwrap();
        assert_eq!(two, EventSet::REQUEST.union(EventSet::DISCONNECT));
        assert!(two.meets(EventSet::OF_CLIENTS) && !two.meets(EventSet::NODE));
        for bad in ["push", "request,", ",", "Request", "request node"] {
            assert_eq!(EventSet::parse(bad), None, "{bad}");
        }
        assert_eq!(EventSet::from_bits(0xff), EventSet::ALL);
    }
}
