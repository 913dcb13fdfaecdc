//! Ids of nodes, connections and messages; the format of project ids, user ids, tags and devices.

use super::clock::WallMs;
use super::incarnation::{FIRST_MS, Incarnation, LAST_MS};
use std::fmt;
use std::str::FromStr;

/// A node of the cluster, 0 to 1023 (ten bits of every client id).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct NodeId(u16);

impl NodeId {
    pub const MAX: u16 = 1023;

    /// `None` above [`NodeId::MAX`].
    pub const fn new(node: u16) -> Option<Self> {
        if node <= Self::MAX { Some(Self(node)) } else { None }
    }

    pub const fn value(self) -> u16 {
        self.0
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Why a text is not a valid id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a decimal number of at most 20 digits")]
pub struct IdError;

macro_rules! snowflake_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            /// Decimal digits only: no sign, no blanks.
            fn from_str(text: &str) -> Result<Self, IdError> {
                if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
                    return Err(IdError);
                }
                text.parse().map(Self).map_err(|_| IdError)
            }
        }
    };
}

snowflake_id! {
    /// A client id: one connection, never reused. 41 bits of milliseconds since
    /// [`SnowflakeClock::EPOCH_MS`], 10 bits of node, 12 bits of sequence, of which the top bits
    /// are the worker.
    Cid
}
snowflake_id! {
    /// A message id, with the format of a [`Cid`] and from the same clock, so no message id equals
    /// a client id.
    MessageId
}

/// One connection of one worker: its slab slot, and the generation that distinguishes it from the
/// slot's earlier owners. A late completion with an older generation is ignored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnKey {
    pub slot: u32,
    pub generation: u32,
}

/// Issues strictly increasing snowflake numbers of one worker of one node.
///
/// When a millisecond's sequence is used up it continues with the next millisecond, ahead of the
/// clock, so it neither blocks nor repeats; a clock that steps back, or is outside the range of
/// ids, is ignored until it has caught up. [`Incarnation`] keeps it from ids that other runs of the
/// node issued.
#[derive(Debug)]
pub struct SnowflakeClock {
    node: NodeId,
    worker_bits: u32,
    worker: u64,
    last_ms: u64,
    next_sequence: u64,
}

impl SnowflakeClock {
    /// 2024-01-01T00:00:00Z.
    pub const EPOCH_MS: u64 = FIRST_MS;
    /// The last millisecond that an id can represent.
    pub const MAX_MS: u64 = LAST_MS;
    const SEQUENCE_BITS: u32 = 12;

    /// `workers` is the number of workers of the node (at most 1024), `worker` the index of this
    /// one.
    pub fn new(node: NodeId, worker: usize, workers: usize) -> Self {
        let worker_bits = workers.max(1).next_power_of_two().trailing_zeros();
        assert!(worker_bits <= 10 && worker < workers.max(1), "worker {worker} of {workers}");
        Self { node, worker_bits, worker: worker as u64, last_ms: 0, next_sequence: 0 }
    }

    /// Returns the worker, of `workers`, that issued `id`; for a foreign number an arbitrary or
    /// invalid index.
    pub fn worker_of(id: u64, workers: usize) -> usize {
        let worker_bits = workers.max(1).next_power_of_two().trailing_zeros();
        (id >> (Self::SEQUENCE_BITS - worker_bits) & ((1 << worker_bits) - 1)) as usize
    }

    /// Returns the node that issued `id`.
    pub fn node_of(id: u64) -> NodeId {
        NodeId((id >> Self::SEQUENCE_BITS) as u16 & NodeId::MAX)
    }

    /// Returns the millisecond of `id`, since 1970.
    pub fn ms_of(id: u64) -> u64 {
        Self::EPOCH_MS + (id >> 22)
    }

    /// Returns the millisecond of the latest id; 0: there is none.
    pub fn latest_ms(&self) -> u64 {
        self.last_ms
    }

    pub fn next(&mut self, now: WallMs, incarnation: &Incarnation) -> u64 {
        let sequence_bits = Self::SEQUENCE_BITS - self.worker_bits;
        // A clock beyond the range of ids is ignored.
        let now = if now.value() > Self::MAX_MS { WallMs::default() } else { now };
        let id_ms = incarnation.id_ms(now);
        if id_ms > self.last_ms {
            self.last_ms = id_ms;
            self.next_sequence = 0;
        } else if self.next_sequence == 1 << sequence_bits {
            self.last_ms += 1;
            self.next_sequence = 0;
        }
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        let ms = self.last_ms - Self::EPOCH_MS;
        ms << 22 | u64::from(self.node.value()) << 12 | self.worker << sequence_bits | sequence
    }
}

/// A project id: 1 to `max_bytes` bytes of `[A-Za-z0-9_.-]`.
pub fn is_pid(text: &str, max_bytes: usize) -> bool {
    (1..=max_bytes).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

/// A user id or a tag: 1 to `max_bytes` bytes, no control characters, no comma.
pub fn is_name(text: &str, max_bytes: usize) -> bool {
    (1..=max_bytes).contains(&text.len()) && !text.chars().any(|c| c.is_control() || c == ',')
}

/// A device: 1 to `max_bytes` bytes of `[a-z0-9_-]`.
pub fn is_device(text: &str, max_bytes: usize) -> bool {
    (1..=max_bytes).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'_' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snowflakes_rise_and_carry_node_and_worker() {
        let mut clock = SnowflakeClock::new(NodeId::new(200).unwrap(), 2, 3);
        let now = SnowflakeClock::EPOCH_MS + 5;
        let incarnation = Incarnation::new(WallMs::new(now));
        let mut last = 0;
        for step in 0..5_000u64 {
            let now = WallMs::new(if step == 4_000 { now - 3 } else { now });
            let id = clock.next(now, &incarnation);
            assert!(id > last);
            assert_eq!(SnowflakeClock::node_of(id).value(), 200);
            assert_eq!(id >> 10 & 3, 2);
            assert_eq!(SnowflakeClock::worker_of(id, 3), 2);
            last = id;
        }
        assert_eq!(last >> 22, 5 + 4_999 / 1024);
    }

    #[test]
    fn no_id_is_given_out_twice_whatever_the_clock_does() {
        let mut clock = SnowflakeClock::new(NodeId::new(200).unwrap(), 0, 1);
        let last_ms = SnowflakeClock::MAX_MS;
        let now_ms = SnowflakeClock::EPOCH_MS + 1_000_000;
        let incarnation = Incarnation::new(WallMs::default());
        let mut last = None;
        // No battery and no NTP; then the clock is set, set back, and out of range.
        for now_ms in [0, 12_000, now_ms, now_ms - 900_000, 0, last_ms + 1, u64::MAX, now_ms] {
            for _ in 0..10_000 {
                let id = clock.next(WallMs::new(now_ms), &incarnation);
                assert!(last.is_none_or(|last| id > last), "{id} at {now_ms}");
                last = Some(id);
            }
        }
        // The previous run had ids up to a later time.
        incarnation.begin(now_ms + 77_000);
        let id = clock.next(WallMs::new(now_ms), &incarnation);
        assert_eq!(SnowflakeClock::ms_of(id), now_ms + 77_001);
        assert_eq!(clock.latest_ms(), now_ms + 77_001);
    }

    #[test]
    fn ids_are_digits_only() {
        assert_eq!("18446744073709551615".parse(), Ok(Cid(u64::MAX)));
        for bad in ["", "+1", "-1", " 1", "1 ", "18446744073709551616", "0x1", "1.0"] {
            assert_eq!(bad.parse::<Cid>(), Err(IdError), "{bad:?}");
        }
    }

    #[test]
    fn names_keep_the_contract() {
        assert!(is_pid("a.B_9-", 64) && !is_pid("", 64) && !is_pid("a/b", 64));
        assert!(is_name("u 1 é", 128) && !is_name("a,b", 128) && !is_name("a\u{7f}", 128));
        assert!(!is_name("", 128));
        assert!(is_device("ios_1-x", 32) && !is_device("iOS", 32) && !is_device("", 32));
    }

    #[test]
    fn names_are_bounded_in_bytes() {
        for max in [1, 32, 255] {
            let (fits, long) = ("x".repeat(max), "x".repeat(max + 1));
            assert!(is_pid(&fits, max) && !is_pid(&long, max), "{max}");
            assert!(is_name(&fits, max) && !is_name(&long, max), "{max}");
            assert!(is_device(&fits, max) && !is_device(&long, max), "{max}");
        }
        assert!(is_name("éé", 4) && !is_name("éé", 3));
    }
}
