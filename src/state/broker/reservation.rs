//! The milliseconds from which this node may issue ids, persisted as a number in Redis from one run
//! to the next.
//!
//! The number of a node is a time: every id issued by any of its runs is from a millisecond up to
//! it. A run reads it before anything else, starts after it, and raises it ahead of its own ids. It
//! is only ever increased (INCRBY), so that two processes with one node id cannot lower it.

use super::{Broker, Event, LinkError, Sink};
use crate::state::subscriptions::WorkerEvent;
use crate::types::{MonotonicMs, SnowflakeClock};
use crate::wire::resp::{Reply, write_command};

/// Interval between attempts after a refusal.
const TRY_AGAIN_MS: u64 = 60_000;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Step {
    /// It is unknown what earlier runs used.
    #[default]
    Unread,
    Reading,
    /// Raising the number to `wanted_ms` for the first time.
    Raising {
        wanted_ms: u64,
    },
    Kept,
    /// Redis does not permit this node to store it.
    Refused {
        try_again_at: MonotonicMs,
    },
}

#[derive(Debug, Default)]
pub(super) struct Reservation {
    step: Step,
    /// The milliseconds used by earlier runs have been read.
    has_begun: bool,
    /// The number in Redis, as last received; `None`: it must be read before it is raised, because
    /// the reply to the last command is lost.
    stored_ms: Option<u64>,
    /// A command is in flight that raises the number to this; 0: it reads it.
    raising_to_ms: Option<u64>,
}

impl Reservation {
    /// Whether this run knows what the earlier runs used, or cannot know it.
    fn is_settled(&self) -> bool {
        matches!(self.step, Step::Kept | Step::Refused { .. })
    }

    pub(super) fn is_kept(&self) -> bool {
        self.step == Step::Kept
    }

    /// Whether a reply from Redis is due before anything is subscribed to.
    pub(super) fn is_asking(&self) -> bool {
        matches!(self.step, Step::Reading | Step::Raising { .. })
    }

    /// Handles the loss of the links, and of the reply with them.
    pub(super) fn handle_lost(&mut self) {
        if self.raising_to_ms.take().is_some() {
            self.stored_ms = None;
        }
        if self.is_asking() {
            self.step = Step::Unread;
        }
    }
}

/// Parses Redis's reply to INCRBY; `None`: this was no reply to it. `Err` holds its refusal.
pub(super) fn number_of<'a>(reply: &Reply<'a>) -> Option<Result<i64, &'a [u8]>> {
    match reply {
        Reply::Integer(number) => Some(Ok(*number)),
        Reply::Error(text) => Some(Err(text)),
        _ => None,
    }
}

impl Broker {
    /// Starts after both links are greeted: reads what earlier runs used, then subscribes to
    /// everything.
    pub(super) fn begin_with_reservation(&mut self, now: MonotonicMs) {
        if self.reservation.is_settled() {
            return self.subscribe_to_all(now);
        }
        self.reservation.step = Step::Reading;
        self.ask_for_number(0, now);
    }

    fn ask_for_number(&mut self, add_ms: u64, now: MonotonicMs) {
        self.publishing.out.extend_from_slice(&self.incrby(add_ms));
        self.publishing.handle_asked(self.listening.at(now));
    }

    fn incrby(&self, add_ms: u64) -> Vec<u8> {
        let (mut key, mut command) = (Vec::new(), Vec::new());
        self.config.names.ids_of_node(&mut key, self.config.node);
        let mut number = itoa::Buffer::new();
        write_command(&mut command, &[b"INCRBY", &key, number.format(add_ms).as_bytes()]);
        command
    }

    /// Handles the reply to the command of [`Broker::begin_with_reservation`].
    pub(super) fn handle_number(
        &mut self,
        number: Result<i64, &[u8]>,
        now: MonotonicMs,
        sink: &mut dyn Sink,
    ) -> Result<(), LinkError> {
        let stored_ms = match number {
            Ok(number) => self.checked(number)?,
            Err(text) if text.starts_with(b"LOADING") => {
                return Err(LinkError::Refused(String::from_utf8_lossy(text).into_owned()));
            }
            Err(text) => {
                self.give_up_reservation(text, now);
                self.subscribe_to_all(now);
                return Ok(());
            }
        };
        self.reservation.stored_ms = Some(stored_ms);
        match self.reservation.step {
            Step::Raising { wanted_ms } => {
                self.config.incarnation.reserve(stored_ms.min(wanted_ms));
                self.reservation.step = Step::Kept;
                self.config.counters.ids_kept.set(1);
                self.subscribe_to_all(now);
            }
            _ => {
                // If read again, it may be what this run has raised it to.
                if !std::mem::replace(&mut self.reservation.has_begun, true) {
                    self.config.incarnation.begin(stored_ms);
                    let event = WorkerEvent::IdsBegin { used_ms: stored_ms };
                    let workers = (0..self.config.workers).filter(|_| stored_ms > 0);
                    workers.for_each(|worker| sink.event(worker, event));
                }
                let wanted_ms = self.config.incarnation.wanted_until_ms(self.wall);
                let wanted_ms = wanted_ms.unwrap_or(stored_ms);
                self.reservation.step = Step::Raising { wanted_ms };
                self.ask_for_number(wanted_ms.saturating_sub(stored_ms), now);
            }
        }
        Ok(())
    }

    /// Raises the number when ids come near it; the links are up.
    pub(super) fn renew_reservation(&mut self, now: MonotonicMs) {
        let may_try = match self.reservation.step {
            Step::Kept => true,
            Step::Refused { try_again_at } => now >= try_again_at,
            _ => false,
        };
        if !may_try || self.reservation.raising_to_ms.is_some() {
            return;
        }
        let (wanted_ms, add_ms) = match self.reservation.stored_ms {
            None => (0, 0),
            Some(stored_ms) => {
                let wanted_ms = self.config.incarnation.wanted_until_ms(self.wall);
                let Some(wanted_ms) = wanted_ms else { return };
                (wanted_ms, wanted_ms.saturating_sub(stored_ms))
            }
        };
        self.reservation.raising_to_ms = Some(wanted_ms);
        let command = self.incrby(add_ms);
        self.log.add_reservation(&command, self.deadline(now));
        self.publishing.handle_asked(self.listening.at(now));
    }

    /// Handles the reply to [`Broker::renew_reservation`].
    pub(super) fn handle_renewed(
        &mut self,
        number: Result<i64, &[u8]>,
        now: MonotonicMs,
    ) -> Result<(), LinkError> {
        let Some(wanted_ms) = self.reservation.raising_to_ms.take() else { return Ok(()) };
        match number {
            Ok(number) => {
                let stored_ms = self.checked(number)?;
                self.reservation.stored_ms = Some(stored_ms);
                if !self.reservation.is_kept() {
                    // Ids followed the clock until now: nothing is reserved.
                    self.config.incarnation.reserve(0);
                    self.reservation.step = Step::Kept;
                    self.config.counters.ids_kept.set(1);
                } else if wanted_ms > 0 && stored_ms >= wanted_ms {
                    // Less than that if Redis has lost its data: the next tick raises it again.
                    self.config.incarnation.reserve(wanted_ms);
                }
            }
            Err(text) => self.give_up_reservation(text, now),
        }
        Ok(())
    }

    fn give_up_reservation(&mut self, text: &[u8], now: MonotonicMs) {
        let is_known = matches!(self.reservation.step, Step::Refused { .. });
        self.reservation.step = Step::Refused { try_again_at: now + TRY_AGAIN_MS };
        self.reservation.stored_ms = None;
        self.config.incarnation.follow_clock();
        self.config.counters.ids_kept.set(0);
        if !is_known {
            let error = String::from_utf8_lossy(text).into_owned();
            self.events.push(Event::IdsNotKept { key: self.ids_key(), error });
        }
    }

    fn ids_key(&self) -> String {
        let mut key = Vec::new();
        self.config.names.ids_of_node(&mut key, self.config.node);
        String::from_utf8_lossy(&key).into_owned()
    }

    /// Rejects a number that is not the time of an id: it would repeat ids or use them up.
    fn checked(&self, number: i64) -> Result<u64, LinkError> {
        let latest_ms = SnowflakeClock::MAX_MS - TRY_AGAIN_MS;
        u64::try_from(number).ok().filter(|&ms| ms <= latest_ms).ok_or_else(|| {
            LinkError::Refused(format!(
                "the key {} holds {number}, which is not the time of a client id: delete it",
                self.ids_key()
            ))
        })
    }
}
