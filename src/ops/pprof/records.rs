//! The kernel's perf_event_open(2) records, as [`crate::io::perf::Sampler`] hands them over.

/// `PERF_RECORD_LOST`.
const LOST: u32 = 2;
/// `PERF_RECORD_SAMPLE`.
const SAMPLE: u32 = 9;
const HEADER_BYTES: usize = 8;
/// Entries from here on mark whose code follows: the kernel's or the thread's (`PERF_CONTEXT_MAX`).
const CONTEXTS: u64 = -4095_i64 as u64;

/// A record of the kernel.
#[derive(Debug, PartialEq, Eq)]
pub enum Record {
    /// The thread's stack, innermost first: addresses within the running or calling instructions.
    Stack(Vec<u64>),
    /// Number of samples lost because the ring was full.
    Lost(u64),
}

/// Parses the records in `bytes`, which contain only complete ones; skips kinds other than
/// [`Record`].
pub fn records(mut bytes: &[u8]) -> impl Iterator<Item = Record> {
    std::iter::from_fn(move || {
        loop {
            let (kind, body, rest) = split(bytes)?;
            bytes = rest;
            match kind {
                SAMPLE => return Some(Record::Stack(stack(&words(body)))),
                LOST => return Some(Record::Lost(words(body).get(1).copied().unwrap_or(0))),
                _ => {}
            }
        }
    })
}

/// Returns the first record's kind and body, and the rest.
fn split(bytes: &[u8]) -> Option<(u32, &[u8], &[u8])> {
    let header = bytes.first_chunk::<HEADER_BYTES>()?;
    let [k0, k1, k2, k3, _, _, l0, l1] = *header;
    let length = usize::from(u16::from_ne_bytes([l0, l1]));
    let body = bytes.get(HEADER_BYTES..length)?;
    Some((u32::from_ne_bytes([k0, k1, k2, k3]), body, &bytes[length..]))
}

fn words(body: &[u8]) -> Vec<u64> {
    let (words, _) = body.as_chunks::<8>();
    words.iter().map(|word| u64::from_ne_bytes(*word)).collect()
}

/// Converts a call chain, `[count, entries]`, to addresses to look up. The kernel's first address
/// and the thread's first are exact; the others are return addresses, which may be the first byte
/// of the next line or of the next function.
fn stack(words: &[u64]) -> Vec<u64> {
    let Some((&count, entries)) = words.split_first() else { return Vec::new() };
    let mut is_exact = true;
    let mut addresses = Vec::with_capacity(entries.len());
    for &entry in entries.iter().take(count as usize) {
        if entry >= CONTEXTS {
            is_exact = true;
            continue;
        }
        addresses.push(if is_exact { entry } else { entry.saturating_sub(1) });
        is_exact = false;
    }
    addresses
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(kind: u32, words: &[u64]) -> Vec<u8> {
        let mut bytes = kind.to_ne_bytes().to_vec();
        bytes.extend([2, 0]);
        bytes.extend((8 + 8 * words.len() as u16).to_ne_bytes());
        bytes.extend(words.iter().flat_map(|word| word.to_ne_bytes()));
        bytes
    }

    #[test]
    fn stacks_and_losses_are_read_and_others_left_out() {
        let kernel = -128_i64 as u64;
        let user = -512_i64 as u64;
        let high = 0xffff_ffff_8100_0010;
        let mut bytes = record(SAMPLE, &[6, kernel, high, high + 64, user, 0x1000, 0x2000]);
        bytes.extend(record(5, &[1, 2, 3]));
        bytes.extend(record(LOST, &[77, 3]));
        bytes.extend(record(SAMPLE, &[2, user, 0x3000]));
        let found: Vec<Record> = records(&bytes).collect();
        assert_eq!(
            found,
            [
                Record::Stack(vec![high, high + 63, 0x1000, 0x1fff]),
                Record::Lost(3),
                Record::Stack(vec![0x3000]),
            ]
        );
    }

    #[test]
    fn what_is_cut_or_wrong_ends_the_reading() {
        let whole = record(SAMPLE, &[1, 0x3000]);
        for cut in 0..whole.len() {
            assert_eq!(records(&whole[..cut]).count(), 0, "{cut}");
        }
        // A length shorter than the header would loop for ever.
        assert_eq!(records(&[9, 0, 0, 0, 0, 0, 0, 0, 1, 2]).count(), 0);
        // A count beyond the record, and none at all.
        let lies = [record(SAMPLE, &[u64::MAX, 5]), record(SAMPLE, &[])].concat();
        let found: Vec<Record> = records(&lies).collect();
        assert_eq!(found, [Record::Stack(vec![5]), Record::Stack(vec![])]);
    }
}
