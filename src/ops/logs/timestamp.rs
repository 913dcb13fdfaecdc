//! Timestamps as text: RFC 3339 for lines, and without separators for file names, whose order by
//! name is the order in time. Always UTC.

use crate::types::date_of;

/// The format of a timestamp in a file name; each 0 stands for any digit.
const PATTERN: &[u8; COMPACT_BYTES] = b"00000000T000000.000Z";
/// The length of such a timestamp.
pub const COMPACT_BYTES: usize = 20;
const DAY_MS: u64 = 86_400_000;

/// Formats milliseconds since 1970 as `2026-03-04T12:34:56.789Z`.
pub fn rfc3339(ms: u64) -> String {
    let (year, month, day) = date_of(ms / DAY_MS);
    let [hour, minute, second, milli] = time(ms % DAY_MS);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{milli:03}Z")
}

/// Formats as `20260304T123456.789Z`.
pub fn compact(ms: u64) -> String {
    let mut text = rfc3339(ms);
    text.retain(|c| !matches!(c, '-' | ':'));
    text
}

/// Parses the output of [`compact`]; `None` for anything else.
pub fn parse_compact(text: &str) -> Option<u64> {
    let bytes = text.as_bytes();
    let matches = |(byte, wanted): (&u8, &u8)| match wanted {
        b'0' => byte.is_ascii_digit(),
        _ => byte == wanted,
    };
    if bytes.len() != PATTERN.len() || !bytes.iter().zip(PATTERN).all(matches) {
        return None;
    }
    let number = |from: usize, to: usize| text[from..to].parse::<u64>().ok();
    let days = days(number(0, 4)?, number(4, 6)?, number(6, 8)?)?;
    let seconds = (number(9, 11)? * 60 + number(11, 13)?) * 60 + number(13, 15)?;
    Some(days * DAY_MS + seconds * 1_000 + number(16, 19)?)
}

fn time(ms: u64) -> [u64; 4] {
    [ms / 3_600_000, ms / 60_000 % 60, ms / 1_000 % 60, ms % 1_000]
}

/// Returns the days from 1970-01-01 to that date; `None` before it.
fn days(year: u64, month: u64, day: u64) -> Option<u64> {
    let year = year.checked_sub(u64::from(month <= 2))?;
    let (era, year_of_era) = (year / 400, year % 400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day.checked_sub(1)?;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    (era * 146_097 + day_of_era).checked_sub(719_468)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn moments_that_date_knows() {
        for (ms, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399_999, "2000-02-28T23:59:59.999Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (1_772_627_696_789, "2026-03-04T12:34:56.789Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
        ] {
            assert_eq!(rfc3339(ms), text);
        }
        assert_eq!(compact(1_772_627_696_789), "20260304T123456.789Z");
    }

    #[test]
    fn other_names_are_no_stamps() {
        for text in ["", "1", "20260304T123456.789", "20260304-123456.789Z", "20260304T123456.78éZ"]
        {
            assert_eq!(parse_compact(text), None, "{text}");
        }
        assert_eq!(parse_compact("00000000T000000.000Z"), None);
    }

    proptest! {
        #[test]
        fn stamps_sort_as_moments_and_come_back(a in 0..250_000_000_000_000u64, b in any::<u32>()) {
            let (early, late) = (compact(a), compact(a + u64::from(b) + 1));
            prop_assert!(early < late);
            prop_assert_eq!(parse_compact(&early), Some(a));
        }
    }
}
