//! Connections that are opened, cut and reopened one by one, for scenarios.

use super::{Clients, Closing, Conn, Gone, Handler, Phase};
use crate::message::Marks;
use crate::sys::Epoll;

impl Clients {
    /// Gives `count` connections a slot each: connection n has slot n, before it is opened and
    /// after it is closed. Not for cycled connections, nor together with `open_more`.
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

    /// Returns whether `concurrency` connections are already between connect and welcome.
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

    /// Returns what an open connection has received.
    pub fn marks(&self, index: usize) -> &Marks {
        &self.slots[index].marks
    }

    /// Closes an open connection. [`Gone::Closed`] follows at once or, after a Close frame, once it
    /// is answered.
    pub fn cut<H: Handler>(&mut self, index: usize, how: Closing, now: u64, handler: &mut H) {
        if self.slots[index].phase == Phase::Open
            && let Err(end) = self.close(index, how, now)
        {
            self.finish(index, end, handler);
        }
    }

    /// Fails connections that have waited too long for a welcome, and frees those whose Close was
    /// not answered.
    pub fn expire<H: Handler>(&mut self, now: u64, handler: &mut H) {
        self.give_up_late(now, handler);
    }
}
