//! Shutdown of a worker, in phases: it refuses everything new; then it closes every client, after
//! sending what was accepted for it; then it waits until all have disconnected.

use crate::types::MonotonicMs;

/// The next action of a worker that shuts down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DrainStep {
    /// Refuse connections and pushes from now on; wait for what was accepted.
    Refuse,
    /// Close every client.
    Close,
    Wait,
    /// All have disconnected, or the time is up.
    End,
}

/// Progress of the shutdown.
#[derive(Debug, Default)]
pub struct Drain {
    phase: Phase,
}

#[derive(Debug, Default)]
enum Phase {
    #[default]
    Open,
    Refusing {
        until: MonotonicMs,
    },
    Closing {
        until: MonotonicMs,
    },
}

impl Drain {
    /// Returns the next step; called at each tick once the node drains. The drain ends `drain_ms`
    /// after the first call.
    ///
    /// `is_awaited`: whether the queue has still to answer for an accepted push, which clients
    /// should receive before they are closed. `is_empty`: whether no connection is left and other
    /// nodes have been notified.
    pub fn step(
        &mut self,
        now: MonotonicMs,
        drain_ms: u64,
        is_awaited: impl FnOnce() -> bool,
        is_empty: impl FnOnce() -> bool,
    ) -> DrainStep {
        match self.phase {
            Phase::Open => {
                self.phase = Phase::Refusing { until: now + drain_ms };
                DrainStep::Refuse
            }
            Phase::Refusing { until } => {
                if is_awaited() && now < until {
                    return DrainStep::Wait;
                }
                self.phase = Phase::Closing { until };
                DrainStep::Close
            }
            Phase::Closing { until } => {
                if is_empty() || now >= until {
                    DrainStep::End
                } else {
                    DrainStep::Wait
                }
            }
        }
    }

    /// Whether clients are being closed, or were.
    pub fn is_closing(&self) -> bool {
        matches!(self.phase, Phase::Closing { .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_accepted_is_waited_for_then_all_are_closed_then_they_go() {
        let mut drain = Drain::default();
        let mut step = |now_ms, is_awaited, is_empty| {
            drain.step(MonotonicMs::new(now_ms), 1_000, || is_awaited, || is_empty)
        };
        assert_eq!(step(5_000, false, true), DrainStep::Refuse);
        assert_eq!(step(5_050, true, true), DrainStep::Wait);
        assert_eq!(step(5_100, false, true), DrainStep::Close);
        assert_eq!(step(5_150, false, false), DrainStep::Wait);
        assert_eq!(step(5_200, true, true), DrainStep::End);
    }

    #[test]
    fn it_ends_in_time_whatever_is_left() {
        let mut drain = Drain::default();
        let mut step = |now_ms| drain.step(MonotonicMs::new(now_ms), 1_000, || true, || false);
        assert_eq!(step(5_000), DrainStep::Refuse);
        assert_eq!(step(5_999), DrainStep::Wait);
        assert_eq!(step(6_000), DrainStep::Close);
        assert_eq!(step(6_000), DrainStep::End);
    }
}
