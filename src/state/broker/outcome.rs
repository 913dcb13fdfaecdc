//! The outcome of a push, and how it is counted.

use crate::state::counters::BrokerCounters;

/// The outcome of a push.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Accepted,
    /// Not accepted, and not delivered.
    Unreachable,
    Overloaded,
    /// Redis replied with an error.
    Refused,
    /// Larger than what Redis or this node accepts; see [`super::Event::Limit`].
    TooLarge,
    /// No reply in time: it may have been delivered.
    Unknown,
}

impl BrokerCounters {
    /// Counts the outcome of a push that was handed to the queue.
    pub fn count_outcome(&self, outcome: Outcome) {
        match outcome {
            Outcome::Accepted => self.published.add(1),
            Outcome::Unknown => self.unknown.add(1),
            Outcome::TooLarge => self.too_large_pushes.add(1),
            Outcome::Refused | Outcome::Unreachable | Outcome::Overloaded => self.refused.add(1),
        }
    }

    /// Counts a push that was not handed to the queue; the worker counts it as well.
    pub fn count_refusal(&self, outcome: Outcome) {
        if outcome == Outcome::TooLarge {
            self.count_outcome(outcome);
        }
    }
}
