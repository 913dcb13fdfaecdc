//! The outcome of a message: delivered, lost or undecided.

use crate::message::Marks;

/// Evidence on a push to many. All counts are of matching connections welcomed before it was sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Evidence {
    /// Open now.
    pub open: u32,
    /// Ended since, after receiving it.
    pub ended_with: u32,
    /// Ended since, without receiving it.
    pub ended_without: u32,
    /// Ended since; whether it was received is no longer known.
    pub ended_unknown: u32,
    /// Closed by a draining server before receiving it: such a server must first deliver what it
    /// has accepted.
    pub owed: u32,
    /// Arrivals, each connection's first.
    pub arrived: u32,
}

impl Evidence {
    /// Records that a connection that should get push `number` ended. `drained`: by a draining
    /// server.
    pub fn connection_ended(&mut self, marks: &Marks, number: u32, drained: bool) {
        match marks.has(number) {
            Some(true) => self.ended_with += 1,
            Some(false) if drained => self.owed += 1,
            Some(false) => self.ended_without += 1,
            None => self.ended_unknown += 1,
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    pub lost: u64,
    pub undecided: u64,
}

/// A connection that stays open must get the message. One that ended might have got it, had it
/// stayed: that is no loss, but undecided.
pub fn of_bulk(evidence: Evidence) -> Verdict {
    let Evidence { open, ended_with, ended_without, ended_unknown, owed, arrived } = evidence;
    let lost = (open + ended_with).saturating_sub(arrived) + owed;
    Verdict { lost: lost.into(), undecided: (ended_without + ended_unknown).into() }
}

/// The state of a connection when its message is settled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Presence {
    /// It was never open, or is reconnecting.
    #[default]
    Away,
    /// Open since then.
    Open(u64),
    /// Closed since then.
    Left(u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Lost,
    Undecided,
    /// No connection was open to receive it.
    Absent,
}

/// Judges a message to one connection, sent at `sent_ns`, that has not arrived in time.
pub fn of_unicast(presence: Presence, sent_ns: u64) -> Fate {
    match presence {
        Presence::Open(since) if since < sent_ns => Fate::Lost,
        // It came back meanwhile. Whether its previous connection was open then is no longer known.
        Presence::Open(_) => Fate::Undecided,
        Presence::Left(at) if at < sent_ns => Fate::Absent,
        Presence::Left(_) => Fate::Undecided,
        Presence::Away => Fate::Absent,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bulk([open, ended_with, ended_without, ended_unknown, arrived]: [u32; 5]) -> (u64, u64) {
        let evidence =
            Evidence { open, ended_with, ended_without, ended_unknown, owed: 0, arrived };
        let Verdict { lost, undecided } = of_bulk(evidence);
        (lost, undecided)
    }

    #[test]
    fn those_who_stayed_must_have_it() {
        assert_eq!(bulk([10, 0, 0, 0, 10]), (0, 0));
        assert_eq!(bulk([10, 0, 0, 0, 8]), (2, 0));
        assert_eq!(bulk([0, 0, 0, 0, 0]), (0, 0));
    }

    #[test]
    fn who_was_cut_before_it_came_lost_nothing() {
        assert_eq!(bulk([8, 0, 2, 0, 8]), (0, 2));
        assert_eq!(bulk([7, 1, 2, 0, 8]), (0, 2));
    }

    #[test]
    fn an_arrival_at_one_who_left_hides_no_loss() {
        // Three received it and left; one of the seven who stayed did not.
        assert_eq!(bulk([7, 3, 0, 0, 9]), (1, 0));
        // What nobody remembers does not count as lost.
        assert_eq!(bulk([7, 0, 0, 3, 9]), (0, 3));
        assert_eq!(bulk([7, 0, 0, 3, 5]), (2, 3));
    }

    #[test]
    fn marks_tell_what_a_connection_had_when_it_ended() {
        let mut marks = Marks::default();
        marks.arrived(100);
        marks.arrived(102);
        let mut evidence = Evidence::default();
        for number in [100, 101, 102, 103, 3] {
            evidence.connection_ended(&marks, number, false);
        }
        let wanted =
            Evidence { ended_with: 2, ended_without: 2, ended_unknown: 1, ..Evidence::default() };
        assert_eq!(evidence, wanted);
    }

    #[test]
    fn a_server_that_drains_owes_what_it_accepted() {
        let mut marks = Marks::default();
        marks.arrived(7);
        let mut evidence = Evidence { arrived: 1, ..Evidence::default() };
        evidence.connection_ended(&marks, 7, true);
        assert_eq!(of_bulk(evidence), Verdict::default());
        evidence.connection_ended(&marks, 8, true);
        assert_eq!(of_bulk(evidence), Verdict { lost: 1, undecided: 0 });
    }

    #[test]
    fn a_message_to_one_is_lost_only_where_it_was_open_throughout() {
        assert_eq!(of_unicast(Presence::Open(5), 6), Fate::Lost);
        assert_eq!(of_unicast(Presence::Open(6), 6), Fate::Undecided);
        assert_eq!(of_unicast(Presence::Left(5), 6), Fate::Absent);
        assert_eq!(of_unicast(Presence::Left(7), 6), Fate::Undecided);
        assert_eq!(of_unicast(Presence::Away, 6), Fate::Absent);
    }
}
