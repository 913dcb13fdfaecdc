//! How a worker ends, in phases: nothing new is accepted anywhere; then every client is closed,
//! after what was accepted for it; then the worker waits until all have gone.

/// What a worker that is told to end does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DrainStep {
    /// From now on connections and pushes are refused; what was accepted is waited for.
    Refuse,
    /// Every client is closed.
    Close,
    Wait,
    /// All have gone, or the time is up.
    End,
}

/// How far it is.
#[derive(Debug, Default)]
pub struct Drain {
    phase: Phase,
}

#[derive(Debug, Default)]
enum Phase {
    #[default]
    Open,
    Refusing {
        until_ms: u64,
    },
    Closing {
        until_ms: u64,
    },
}

impl Drain {
    /// The next step, at each tick once the node drains. It has `drain_ms` from the first call on.
    ///
    /// `is_awaited`: whether the queue has still to answer for a push that was accepted; the
    /// clients are to have it before they go. `is_empty`: whether nobody is left, and others know.
    pub fn step(
        &mut self,
        now_ms: u64,
        drain_ms: u64,
        is_awaited: impl FnOnce() -> bool,
        is_empty: impl FnOnce() -> bool,
    ) -> DrainStep {
        match self.phase {
            Phase::Open => {
                self.phase = Phase::Refusing { until_ms: now_ms + drain_ms };
                DrainStep::Refuse
            }
            Phase::Refusing { until_ms } => {
                if is_awaited() && now_ms < until_ms {
                    return DrainStep::Wait;
                }
                self.phase = Phase::Closing { until_ms };
                DrainStep::Close
            }
            Phase::Closing { until_ms } => {
                if is_empty() || now_ms >= until_ms {
                    DrainStep::End
                } else {
                    DrainStep::Wait
                }
            }
        }
    }

    /// Whether clients are closed, or were.
    pub fn is_closing(&self) -> bool {
        matches!(self.phase, Phase::Closing { .. })
    }

    /// The clock was set.
    pub fn handle_clock_step(&mut self, step_ms: i64) {
        if let Phase::Refusing { until_ms } | Phase::Closing { until_ms } = &mut self.phase {
            *until_ms = until_ms.saturating_add_signed(step_ms);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_accepted_is_waited_for_then_all_are_closed_then_they_go() {
        let mut drain = Drain::default();
        let mut step =
            |now_ms, is_awaited, is_empty| drain.step(now_ms, 1_000, || is_awaited, || is_empty);
        assert_eq!(step(5_000, false, true), DrainStep::Refuse);
        assert_eq!(step(5_050, true, true), DrainStep::Wait);
        assert_eq!(step(5_100, false, true), DrainStep::Close);
        assert_eq!(step(5_150, false, false), DrainStep::Wait);
        assert_eq!(step(5_200, true, true), DrainStep::End);
    }

    #[test]
    fn it_ends_in_time_whatever_is_left() {
        let mut drain = Drain::default();
        let step = |drain: &mut Drain, now_ms| drain.step(now_ms, 1_000, || true, || false);
        assert_eq!(step(&mut drain, 5_000), DrainStep::Refuse);
        drain.handle_clock_step(-2_000);
        assert_eq!(step(&mut drain, 3_999), DrainStep::Wait);
        assert_eq!(step(&mut drain, 4_000), DrainStep::Close);
        assert_eq!(step(&mut drain, 4_000), DrainStep::End);
    }
}
