//! Connections that are opened, cut and opened again one by one, as a scenario wants it.

use super::{Clients, Closing, Conn, Gone, Handler, Phase};
use crate::message::Marks;
use crate::sys::Epoll;

impl Clients {
    /// Gives `count` connections a slot each: connection n has slot n, before it is opened and
    /// after it is closed. Not for connections that cycle, nor together with `open_more`.
    pub fn populate(&mut self, count: usize) {
        debug_assert!(self.slots.is_empty() && self.opening.cycle.is_none());
        self.slots.reserve_exact(count);
        for number in 0..count as u32 {
            self.slots.push(Conn {
                fd: None,
                number,
                phase: Phase::Free,
                marks: Marks::default(),
                since_ns: 0,
                partial: None,
            });
        }
    }

    /// Whether `concurrency` connections are on their way already.
    pub fn is_busy(&self) -> bool {
        self.pending as usize >= self.opening.concurrency
    }

    /// Starts connection `index`. A failure is reported as [`Gone::Refused`], at once or later.
    pub fn start<H: Handler>(&mut self, index: usize, epoll: &Epoll, handler: &mut H) {
        debug_assert!(self.slots[index].phase == Phase::Free, "it is still in use");
        self.started += 1;
        match self.dial(index as u64, index, epoll) {
            Ok(conn) => self.slots[index] = conn,
            Err(why) => {
                self.refuse(index as u64);
                self.failures.add(&why);
                handler.gone(index as u32, Gone::Refused, &Marks::default());
            }
        }
    }

    pub fn is_open(&self, index: usize) -> bool {
        self.slots[index].phase == Phase::Open
    }

    /// What an open connection has received.
    pub fn marks(&self, index: usize) -> &Marks {
        &self.slots[index].marks
    }

    /// Closes an open connection. [`Gone::Closed`] follows, at once or, where the Close frame wants
    /// an answer, later.
    pub fn cut<H: Handler>(&mut self, index: usize, how: Closing, now: u64, handler: &mut H) {
        if self.slots[index].phase == Phase::Open
            && let Err(end) = self.close(index, how, now)
        {
            self.finish(index, end, handler);
        }
    }

    /// Fails connections without a welcome for too long, and frees those whose Close was not
    /// answered.
    pub fn expire<H: Handler>(&mut self, now: u64, handler: &mut H) {
        self.give_up_late(now, handler);
    }
}
