//! How connections end: their Close frames, a bounded number per turn, and the shutdown of all.

use super::WsServer;
use super::slot::POLLED;
use crate::io::linger::{self, Last};
use crate::io::sys;
use crate::state::drain::Spread;
use crate::state::{CloseCause, CloseRequest};
use crate::wire::message::write_reconnect_reason;
use crate::wire::websocket::write_close;
use std::time::{Duration, Instant};

/// Time that closes may take before others have their turn: each needs several system calls, 10 to
/// 20 us.
const CLOSES: Duration = Duration::from_micros(400);
/// The same while the ring has more than could be taken out of it: each Close frame brings two more
/// events.
const CLOSES_BEHIND: Duration = Duration::from_micros(40);

/// The closes of a shutdown.
#[derive(Debug)]
pub(super) struct Shutdown {
    /// `None`: none is due.
    due: Option<DueCloses>,
    spread: Spread,
    /// Maximum of `reconnect_after_ms`.
    spread_ms: u32,
}

#[derive(Debug, Clone, Copy)]
enum DueCloses {
    /// Until this number is left.
    Clients {
        left: usize,
        may_wait: bool,
    },
    Servers,
}

impl Shutdown {
    pub(super) fn new() -> Self {
        let spread = Spread::new(sys::random_below(1 << 32) as u32);
        Self { due: None, spread, spread_ms: 0 }
    }

    pub(super) fn is_due(&self) -> bool {
        self.due.is_some()
    }
}

impl WsServer {
    /// Returns the number of WebSocket connections that still exist, open or closing. Refused ones
    /// do not count.
    pub fn connections(&self) -> usize {
        self.worker.connections() + self.lingering.connections()
    }

    /// Closes clients with 1001 until `left` are open, some now and some in each of the following
    /// turns. `may_wait`: those with requests in progress may stay; `spread_ms`: the maximum of the
    /// delays that they are advised.
    pub fn close_clients(&mut self, left: usize, may_wait: bool, spread_ms: u32) {
        self.shutdown.due = Some(DueCloses::Clients { left, may_wait });
        self.shutdown.spread_ms = spread_ms;
        self.continue_shutdown();
    }

    /// Closes the business servers in the same way.
    pub fn close_servers(&mut self, spread_ms: u32) {
        self.shutdown.due = Some(DueCloses::Servers);
        self.shutdown.spread_ms = spread_ms;
        self.continue_shutdown();
    }

    /// Carries out some of the closes of a shutdown that are due.
    pub(super) fn continue_shutdown(&mut self) {
        let Shutdown { due, spread, spread_ms } = &mut self.shutdown;
        let delay_ms = || spread.next_ms(*spread_ms);
        let has_more = match *due {
            None => return,
            Some(DueCloses::Clients { left, may_wait }) => {
                self.worker.close_clients(left, may_wait, delay_ms)
            }
            Some(DueCloses::Servers) => self.worker.close_servers(delay_ms),
        };
        if !has_more {
            *due = None;
        }
    }

    /// Carries out closes that are due. The rest follow in later turns: their connections have
    /// already left the directory and keep their slots until then.
    pub(super) fn carry_out_closes(&mut self) {
        if self.closing.is_empty() {
            return;
        }
        let time = if self.ring.has_work() { CLOSES_BEHIND } else { CLOSES };
        let began = Instant::now();
        while let Some(request) = self.closing.pop_front() {
            self.close(request);
            if began.elapsed() >= time {
                return;
            }
        }
        // Do not keep room for a hundred thousand.
        self.closing.shrink_to(1_024);
    }

    fn close(&mut self, CloseRequest { slot, cause }: CloseRequest) {
        tracing::trace!(slot, ?cause, "closed a connection");
        let released = self.worker.release(slot, cause);
        self.drop_inbound(slot);
        let entry = &mut self.slots[slot as usize];
        let Some(fd) = entry.fd.take() else { return };
        self.shared.leave();
        let Some(code) = cause.code() else {
            let is_polled = released.was_blocked || entry.state & POLLED != 0;
            return if is_polled { linger::close(fd) } else { drop(fd) };
        };
        let mut last_bytes = Vec::new();
        match cause {
            CloseCause::GoingAway { reconnect_after_ms } => {
                let mut reason = Vec::new();
                write_reconnect_reason(&mut reason, u64::from(reconnect_after_ms));
                write_close(&mut last_bytes, code, &String::from_utf8_lossy(&reason));
            }
            CloseCause::Violation(violation) => write_close(&mut last_bytes, code, violation.msg),
            CloseCause::MessageTimeout => {
                let timeout_ms = self.active.settings.times.message_timeout_ms;
                let reason = format!("the message was incomplete after {timeout_ms} ms");
                write_close(&mut last_bytes, code, &reason);
            }
            CloseCause::InboundBudget => {
                write_close(
                    &mut last_bytes,
                    code,
                    "too many incomplete messages: send all fragments at once",
                );
            }
            CloseCause::ProjectRemoved => write_close(&mut last_bytes, code, "project removed"),
            CloseCause::SlowConsumer => write_close(&mut last_bytes, code, "slow consumer"),
            CloseCause::Idle => write_close(&mut last_bytes, code, "idle timeout"),
            CloseCause::SessionExpired => write_close(&mut last_bytes, code, "session expired"),
            CloseCause::Peer(_) | CloseCause::Gone => write_close(&mut last_bytes, code, ""),
        }
        let deadline = self.awake() + self.active.settings.times.linger_ms;
        let last = Last { bytes: last_bytes, is_refusal: false };
        self.lingering.add(&mut self.ring, fd, released.rest, last, deadline);
    }
}
