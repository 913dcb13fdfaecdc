//! The date in answers: formatted once a second in each thread.

use crate::types::WallMs;
use crate::wire::date::HttpDate;
use std::cell::Cell;

thread_local! {
    /// The last date used, with its second since the Unix epoch.
    static LAST: Cell<Option<(u64, HttpDate)>> = const { Cell::new(None) };
}

pub fn http_date(now: WallMs) -> HttpDate {
    let second = now.value() / 1_000;
    LAST.with(|last| match last.get() {
        Some((formatted, date)) if formatted == second => date,
        _ => {
            let date = HttpDate::at(second);
            last.set(Some((second, date)));
            date
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_that_of_the_second_also_when_the_clock_goes_back() {
        for (now_ms, second) in [(1_999, 1), (1_000, 1), (2_000, 2), (1_000, 1)] {
            assert_eq!(http_date(WallMs::new(now_ms)), HttpDate::at(second));
        }
    }
}
