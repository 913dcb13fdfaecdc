//! The value of the `Date` header (RFC 9110, section 5.6.7).

use crate::types::date_of;
use std::fmt;

const BYTES: usize = "Sun, 06 Nov 1994 08:49:37 GMT".len();
/// The last second of the year 9999: the format has no later ones.
const MAX_SECONDS: u64 = 253_402_300_799;
/// 1970-01-01 was a Thursday.
const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// A time in whole seconds, as text.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct HttpDate([u8; BYTES]);

impl HttpDate {
    pub fn at(unix_seconds: u64) -> Self {
        let seconds = unix_seconds.min(MAX_SECONDS);
        let (days, second) = (seconds / 86_400, seconds % 86_400);
        let (year, month, day) = date_of(days);
        let (weekday, month) = (DAYS[(days % 7) as usize], MONTHS[month as usize - 1]);
        let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
        let text =
            format!("{weekday}, {day:02} {month} {year} {hour:02}:{minute:02}:{second:02} GMT");
        let mut bytes = [0; BYTES];
        bytes.copy_from_slice(text.as_bytes());
        Self(bytes)
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for HttpDate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn moments_as_text() {
        for (seconds, text) in [
            (0, "Thu, 01 Jan 1970 00:00:00 GMT"),
            (784_111_777, "Sun, 06 Nov 1994 08:49:37 GMT"),
            (1_709_251_199, "Thu, 29 Feb 2024 23:59:59 GMT"),
            (MAX_SECONDS, "Fri, 31 Dec 9999 23:59:59 GMT"),
            (u64::MAX, "Fri, 31 Dec 9999 23:59:59 GMT"),
        ] {
            assert_eq!(format!("{:?}", HttpDate::at(seconds)), text);
        }
    }

    proptest! {
        #[test]
        fn any_moment_has_a_text(seconds: u64, this_age in 0..MAX_SECONDS) {
            for seconds in [seconds, this_age] {
                prop_assert!(HttpDate::at(seconds).as_bytes().ends_with(b" GMT"));
            }
        }
    }
}
