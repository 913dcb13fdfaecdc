//! What became of a push, and how that is counted.

use crate::state::counters::BrokerCounters;

/// What became of a push.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Accepted,
    /// Not accepted, and not delivered.
    Unreachable,
    Overloaded,
    /// Redis answered with an error.
    Refused,
    /// It is larger than what Redis or this node takes; see [`super::Event::Limit`].
    TooLarge,
    /// No answer came in time: it may have been delivered.
    Unknown,
}

impl BrokerCounters {
    /// What became of a push that was handed to the queue.
    pub fn count_outcome(&self, outcome: Outcome) {
        match outcome {
            Outcome::Accepted => self.published.add(1),
            Outcome::Unknown => self.unknown.add(1),
            Outcome::TooLarge => self.too_large_pushes.add(1),
            Outcome::Refused | Outcome::Unreachable | Outcome::Overloaded => self.refused.add(1),
        }
    }

    /// A push was not handed to the queue; the worker counts it, too.
    pub fn count_refusal(&self, outcome: Outcome) {
        if outcome == Outcome::TooLarge {
            self.count_outcome(outcome);
        }
    }
}
