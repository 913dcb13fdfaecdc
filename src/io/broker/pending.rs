//! Pushes of one worker that wait for the queue's answer.

use crate::state::broker::Outcome;
use slab::Slab;
use std::cell::RefCell;
use std::task::{Context, Poll, Waker};

/// Maximum number of waiting pushes of a worker; above it, pushes are refused.
const MAX_WAITING: usize = 65_536;

#[derive(Debug)]
enum TicketState {
    Waiting(Option<Waker>),
    Answered(Outcome),
    /// Nothing waits for it any more; the answer is still to come.
    Abandoned,
}

#[derive(Debug, Default)]
pub struct Tickets(RefCell<Slab<TicketEntry>>);

#[derive(Debug)]
struct TicketEntry {
    state: TicketState,
    /// When it was issued, in microseconds since the Unix epoch.
    issued_us: u64,
}

impl Tickets {
    /// Issues a ticket to wait for an answer; `None` if too many wait already.
    pub fn issue(&self, now_us: u64) -> Option<Ticket<'_>> {
        let mut entries = self.0.borrow_mut();
        if entries.len() >= MAX_WAITING {
            return None;
        }
        let entry = TicketEntry { state: TicketState::Waiting(None), issued_us: now_us };
        Some(Ticket { tickets: self, key: entries.insert(entry) })
    }

    /// Records the answer to a ticket, which gets exactly one. Returns when it was issued.
    pub fn answer(&self, key: u32, outcome: Outcome) -> Option<u64> {
        let mut entries = self.0.borrow_mut();
        let entry = entries.get_mut(key as usize)?;
        let issued_us = entry.issued_us;
        match std::mem::replace(&mut entry.state, TicketState::Answered(outcome)) {
            TicketState::Waiting(waker) => waker.into_iter().for_each(Waker::wake),
            TicketState::Abandoned | TicketState::Answered(_) => {
                entries.remove(key as usize);
            }
        }
        Some(issued_us)
    }

    pub fn is_empty(&self) -> bool {
        self.0.borrow().is_empty()
    }
}

/// Gives the outcome of a push once it is known.
#[derive(Debug)]
pub struct Ticket<'a> {
    tickets: &'a Tickets,
    key: usize,
}

impl Ticket<'_> {
    pub fn number(&self) -> u32 {
        self.key as u32
    }

    pub fn poll(&mut self, context: &Context<'_>) -> Poll<Outcome> {
        match self.tickets.0.borrow_mut().get_mut(self.key).map(|entry| &mut entry.state) {
            Some(TicketState::Answered(outcome)) => Poll::Ready(*outcome),
            Some(TicketState::Waiting(waker)) => {
                *waker = Some(context.waker().clone());
                Poll::Pending
            }
            _ => Poll::Ready(Outcome::Unknown),
        }
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        let mut entries = self.tickets.0.borrow_mut();
        match entries.get_mut(self.key).map(|entry| &mut entry.state) {
            Some(TicketState::Answered(_)) => {
                entries.remove(self.key);
            }
            Some(state) => *state = TicketState::Abandoned,
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn poll(ticket: &mut Ticket<'_>) -> Poll<Outcome> {
        ticket.poll(&Context::from_waker(Waker::noop()))
    }

    #[test]
    fn a_ticket_gets_its_own_answer_and_none_that_was_for_another() {
        let tickets = Tickets::default();
        let mut first = tickets.issue(1).unwrap();
        let second = tickets.issue(1).unwrap();
        assert_eq!(poll(&mut first), Poll::Pending);
        let abandoned = second.number();
        drop(second);
        // Its slot stays taken until its answer has arrived.
        let mut third = tickets.issue(1).unwrap();
        assert_ne!(third.number(), abandoned);
        tickets.answer(abandoned, Outcome::Refused);
        tickets.answer(first.number(), Outcome::Accepted);
        assert_eq!(poll(&mut first), Poll::Ready(Outcome::Accepted));
        assert_eq!(poll(&mut third), Poll::Pending);
        tickets.answer(third.number(), Outcome::Unknown);
        assert_eq!(poll(&mut third), Poll::Ready(Outcome::Unknown));
        drop((first, third));
        assert!(tickets.is_empty());
    }
}
