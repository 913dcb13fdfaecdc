//! The measured message: what a push carries, how it is recognized, and which connections have
//! received it.
//!
//! `data` is a JSON string: 32 hex digits, padded with `x` to the wanted size.
//!
//! ```text
//! {"type":"push","id":"1234567890123456789","data":"rrrrssssssssttttttttttttttttppppxxx…"}
//! ```
//! r: the run, so that messages of another run are not counted; s: the sequence number; t: when it
//! was sent, CLOCK_MONOTONIC nanoseconds; p: the pushing connection. A short stamp is only r and s,
//! for the smallest messages; the sender remembers the rest.

use memchr::memmem;

/// Bytes of a push frame's payload around `data`'s text, when the message id has 19 digits.
pub const FRAME_OVERHEAD: usize = r#"{"type":"push","id":"","data":""}"#.len() + 19;

/// The shortest `data` text that carries a stamp.
pub const STAMP_LEN: usize = 32;

/// The shortest one without time and connection.
pub const SHORT_STAMP_LEN: usize = 12;

const DATA: &str = r#""data":""#;

/// Returns the length of `data` for a payload of `bytes`: at least a stamp.
pub fn data_len(bytes: usize) -> usize {
    bytes.saturating_sub(FRAME_OVERHEAD).max(STAMP_LEN)
}

/// Returns the same where a short stamp suffices.
pub fn short_data_len(bytes: usize) -> usize {
    bytes.saturating_sub(FRAME_OVERHEAD).max(SHORT_STAMP_LEN)
}

/// Returns the length of the stamp at the beginning of such a `data`.
pub fn stamp_len(data_len: usize) -> usize {
    if data_len < STAMP_LEN { SHORT_STAMP_LEN } else { STAMP_LEN }
}

/// The contents of a stamp.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    pub run: u16,
    pub seq: u32,
    pub at_ns: u64,
    pub pusher: u16,
}

impl Stamp {
    pub fn write(&self, out: &mut Vec<u8>) {
        write_hex(u64::from(self.run), 4, out);
        write_hex(u64::from(self.seq), 8, out);
        write_hex(self.at_ns, 16, out);
        write_hex(u64::from(self.pusher), 4, out);
    }

    /// Reads the stamp at the beginning of `data`, of whichever run.
    pub fn read(data: &[u8]) -> Option<Stamp> {
        let run = read_hex(data.get(..4)?)? as u16;
        let found = Found(data.get(..STAMP_LEN)?);
        Some(Stamp { run, seq: found.seq()?, at_ns: found.at_ns()?, pusher: found.pusher()? })
    }
}

/// Finds a member by its name. Messages of one kind look alike, so it tries the position in the
/// previous message before searching.
pub struct Member {
    name: &'static str,
    at: usize,
    search: memmem::Finder<'static>,
}

impl Member {
    /// `name`: the text up to the wanted value, such as `"id":"`.
    pub fn new(name: &'static str) -> Member {
        Member { name, at: 0, search: memmem::Finder::new(name) }
    }

    /// Returns everything after the name.
    #[inline]
    pub fn rest<'a>(&mut self, payload: &'a [u8]) -> Option<&'a [u8]> {
        let name = self.name.as_bytes();
        if payload.get(self.at..self.at + name.len()) != Some(name) {
            self.at = self.search.find(payload)?;
        }
        payload.get(self.at + name.len()..)
    }

    /// Returns the text between the name and its closing quote. None of the wanted values has
    /// escapes.
    #[inline]
    pub fn text<'a>(&mut self, payload: &'a [u8]) -> Option<&'a [u8]> {
        let rest = self.rest(payload)?;
        rest.get(..memchr::memchr(b'"', rest)?)
    }
}

/// Finds the stamp of a pushed message.
pub struct Finder {
    run: u16,
    stamp_len: usize,
    data: Member,
}

/// A stamp still in its frame. Its fields are parsed one by one, on demand.
#[derive(Clone, Copy)]
pub struct Found<'a>(&'a [u8]);

impl Finder {
    /// `data_len`: length of `data` in the messages.
    pub fn new(run: u16, data_len: usize) -> Finder {
        Finder { run, stamp_len: stamp_len(data_len), data: Member::new(DATA) }
    }

    /// `None`: not a message of this run.
    #[inline]
    pub fn find<'a>(&mut self, payload: &'a [u8]) -> Option<Found<'a>> {
        let stamp = self.data.rest(payload)?.get(..self.stamp_len)?;
        (read_hex(&stamp[..4])? == u64::from(self.run)).then_some(Found(stamp))
    }
}

impl Found<'_> {
    #[inline]
    pub fn seq(&self) -> Option<u32> {
        read_hex(&self.0[4..12]).map(|seq| seq as u32)
    }

    /// `None`: the stamp is short.
    #[inline]
    pub fn at_ns(&self) -> Option<u64> {
        read_hex(self.0.get(12..28)?)
    }

    #[inline]
    pub fn pusher(&self) -> Option<u16> {
        read_hex(self.0.get(28..)?).map(|pusher| pusher as u16)
    }
}

/// The messages of a sequence that one connection has received: the next expected one and the 64
/// before.
#[derive(Clone, Copy, Default)]
pub struct Marks {
    next: u32,
    seen: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    InOrder,
    /// New, but a later one has already arrived.
    OutOfOrder,
    Duplicate,
    /// More than 64 messages behind: whether it is new is unknown.
    Ancient,
}

impl Marks {
    #[inline]
    pub fn arrived(&mut self, seq: u32) -> Arrival {
        if seq >= self.next {
            let step = seq - self.next + 1;
            self.seen = self.seen.checked_shl(step).unwrap_or(0) | 1;
            self.next = seq + 1;
            return Arrival::InOrder;
        }
        let Some(bit) = 1u64.checked_shl(self.next - 1 - seq) else { return Arrival::Ancient };
        if self.seen & bit != 0 {
            return Arrival::Duplicate;
        }
        self.seen |= bit;
        Arrival::OutOfOrder
    }

    /// Returns whether a later message of the same pusher arrived before this one, if messages go
    /// to `pushers` in turn.
    pub fn overtaken(&self, seq: u32, pushers: u32) -> bool {
        let later = (1..=64).map_while(|turn: u32| seq.checked_add(turn.checked_mul(pushers)?));
        later.take_while(|later| *later < self.next).any(|later| {
            1u64.checked_shl(self.next - 1 - later).is_some_and(|bit| self.seen & bit != 0)
        })
    }

    /// Returns whether this one has arrived; `None`: it is too far behind to know.
    pub fn has(&self, seq: u32) -> Option<bool> {
        if seq >= self.next {
            return Some(false);
        }
        let bit = 1u64.checked_shl(self.next - 1 - seq)?;
        Some(self.seen & bit != 0)
    }
}

/// A growing set of sequence numbers.
#[derive(Default)]
pub struct SeqSet {
    words: Vec<u64>,
}

impl SeqSet {
    /// Inserts a number; returns whether it was new.
    #[inline]
    pub fn insert(&mut self, seq: u32) -> bool {
        let (word, bit) = (seq as usize / 64, 1u64 << (seq % 64));
        if word >= self.words.len() {
            self.words.resize((word + 1).next_power_of_two(), 0);
        }
        let new = self.words[word] & bit == 0;
        self.words[word] |= bit;
        new
    }

    pub fn contains(&self, seq: u32) -> bool {
        let word = self.words.get(seq as usize / 64);
        word.is_some_and(|word| word & 1 << (seq % 64) != 0)
    }

    /// Returns the number of those that are not in `other`.
    pub fn missing_in(&self, other: &SeqSet) -> u64 {
        let others = other.words.iter().copied().chain(std::iter::repeat(0));
        self.words.iter().zip(others).map(|(a, b)| u64::from((a & !b).count_ones())).sum()
    }
}

pub fn write_hex(value: u64, digits: u32, out: &mut Vec<u8>) {
    for i in (0..digits).rev() {
        out.push(b"0123456789abcdef"[(value >> (4 * i)) as usize & 15]);
    }
}

/// Parses lower-case hex digits, as [`write_hex`] writes them.
#[inline]
pub fn read_hex(digits: &[u8]) -> Option<u64> {
    let mut value = 0;
    let mut bad = 0;
    for &digit in digits {
        let nibble = NIBBLES[usize::from(digit)];
        bad |= nibble;
        value = value << 4 | u64::from(nibble & 15);
    }
    (bad < 16).then_some(value)
}

const NIBBLES: [u8; 256] = {
    let mut table = [0xff; 256];
    let mut i = 0;
    while i < 16 {
        table[b"0123456789abcdef"[i] as usize] = i as u8;
        i += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(stamp: Stamp, id: &str, data_len: usize) -> Vec<u8> {
        let mut payload = format!(r#"{{"type":"push","id":"{id}","data":""#).into_bytes();
        let start = payload.len();
        stamp.write(&mut payload);
        payload.truncate(start + stamp_len(data_len));
        payload.resize(start + data_len, b'x');
        payload.extend_from_slice(br#""}"#);
        payload
    }

    #[test]
    fn a_stamp_is_found_wherever_data_is() {
        let stamp = Stamp { run: 0xbeef, seq: 77, at_ns: 0x1234_5678_9abc_def0, pusher: 9 };
        let mut finder = Finder::new(0xbeef, data_len(128));
        for id in ["1234567890123456789", "1", "1234567890123456789"] {
            let payload = frame(stamp, id, data_len(128));
            let found = finder.find(&payload).unwrap();
            assert_eq!(found.seq(), Some(77));
            assert_eq!(found.at_ns(), Some(0x1234_5678_9abc_def0));
            assert_eq!(found.pusher(), Some(9));
        }
        let payload = frame(stamp, "1", data_len(128));
        assert!(Finder::new(1, data_len(128)).find(&payload).is_none(), "another run");
        assert!(finder.find(br#"{"type":"push","data":"short"}"#).is_none());
        assert!(finder.find(b"").is_none());
    }

    #[test]
    fn the_smallest_message_carries_twelve_bytes() {
        let stamp = Stamp { run: 0xbeef, seq: 77, at_ns: 5, pusher: 9 };
        let payload = frame(stamp, "1234567890123456789", short_data_len(0));
        assert!(payload.ends_with(br#""data":"beef0000004d"}"#));
        assert_eq!(payload.len(), FRAME_OVERHEAD + 12);
        let mut finder = Finder::new(0xbeef, short_data_len(0));
        let found = finder.find(&payload).unwrap();
        assert_eq!((found.seq(), found.at_ns(), found.pusher()), (Some(77), None, None));
        assert_eq!(short_data_len(128), data_len(128));
    }

    #[test]
    fn bytes_is_the_size_of_the_payload() {
        let stamp = Stamp { run: 1, seq: 1, at_ns: 1, pusher: 0 };
        assert_eq!(frame(stamp, "1234567890123456789", data_len(128)).len(), 128);
        assert_eq!(frame(stamp, "1234567890123456789", data_len(4096)).len(), 4096);
        let shortest = FRAME_OVERHEAD + STAMP_LEN;
        assert_eq!(frame(stamp, "1234567890123456789", data_len(1)).len(), shortest);
    }

    #[test]
    fn marks_tell_new_from_late_from_twice() {
        let mut marks = Marks::default();
        assert_eq!(marks.arrived(0), Arrival::InOrder);
        assert_eq!(marks.arrived(3), Arrival::InOrder);
        assert_eq!(marks.arrived(1), Arrival::OutOfOrder);
        assert_eq!(marks.arrived(1), Arrival::Duplicate);
        assert_eq!(marks.arrived(0), Arrival::Duplicate);
        assert_eq!(marks.arrived(3), Arrival::Duplicate);
        assert_eq!(marks.arrived(67), Arrival::InOrder);
        assert_eq!(marks.arrived(2), Arrival::Ancient);
        assert_eq!(marks.arrived(4), Arrival::OutOfOrder);
        assert_eq!(marks.arrived(500), Arrival::InOrder);
        assert_eq!(marks.arrived(499), Arrival::OutOfOrder);
    }

    #[test]
    fn only_messages_of_the_same_pusher_overtake() {
        let mut marks = Marks::default();
        for seq in [0, 3, 1] {
            marks.arrived(seq);
        }
        assert!(!marks.overtaken(1, 3), "3 is of another pusher");
        assert!(marks.overtaken(1, 2) && marks.overtaken(1, 1));
        assert_eq!(marks.arrived(4), Arrival::InOrder);
        assert!(marks.overtaken(1, 3));
    }

    #[test]
    fn sets_are_compared_whatever_their_length() {
        let (mut a, mut b) = (SeqSet::default(), SeqSet::default());
        assert!(a.insert(3) && a.insert(1000) && !a.insert(3));
        assert!(b.insert(3));
        assert!(a.contains(1000) && !a.contains(999) && !b.contains(1000));
        assert_eq!((a.missing_in(&b), b.missing_in(&a)), (1, 0));
    }

    #[test]
    fn members_are_found_wherever_they_are() {
        let mut id = Member::new(r#""id":""#);
        for payload in [
            r#"{"type":"request","id":"7","from":{"client_id":"8"}}"#,
            r#"{"from":{"client_id":"8"},"id":"7"}"#,
            r#"{"type":"request","id":"7"}"#,
        ] {
            assert_eq!(id.text(payload.as_bytes()), Some(b"7".as_slice()), "{payload}");
        }
        assert_eq!(id.text(br#"{"client_id":"8"}"#), None);
        assert_eq!(id.text(br#"{"id":"7"#), None, "no end");
    }

    #[test]
    fn a_stamp_is_read_as_it_was_written() {
        let stamp = Stamp { run: 1, seq: 2, at_ns: 3, pusher: 4 };
        let mut data = Vec::new();
        stamp.write(&mut data);
        assert_eq!(Stamp::read(&data), Some(stamp));
        assert_eq!(Stamp::read(&data[..31]), None);
        assert_eq!(Stamp::read(&[b'g'; 32]), None);
    }
}
