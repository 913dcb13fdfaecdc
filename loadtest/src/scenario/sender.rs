//! A pushing HTTP connection of the driver: in order, pipelined, reconnected when it is lost.

use std::collections::VecDeque;

use super::ledger::Answer;
use crate::client::describe;
use crate::http::{Pending, PushWriter, Pusher};
use crate::message::{STAMP_LEN, Stamp};
use crate::report::Failures;
use crate::run::{Common, Reactor};
use crate::sys;

/// Maximum number of unanswered requests; further ones wait.
pub const MAX_PENDING: usize = 512;
/// Interval between attempts to connect.
const RETRY_NS: u64 = 500_000_000;
/// Servers close connections that are idle for long; one idle for this long is replaced, so that no
/// push coincides with its end.
const FRESH_NS: u64 = 3_000_000_000;

pub struct Sender<'a> {
    common: &'a Common,
    /// The index of this connection in the driver.
    index: usize,
    token: u64,
    pusher: Option<Pusher>,
    retry_ns: u64,
    used_ns: u64,
    /// When the connection was lost, if there is none.
    pub lost_since_ns: Option<u64>,
    writer: PushWriter,
    /// Answered pushes that have not been processed: number of the push, when it was sent, when it
    /// was answered.
    pub answered: VecDeque<(Pending, u64, Answer)>,
    pub statuses: Failures,
    pub failures: Failures,
    /// The server is being stopped: the end of the connection is no failure.
    pub expects_end: bool,
}

impl<'a> Sender<'a> {
    pub fn new(
        common: &'a Common,
        index: usize,
        token: u64,
        reactor: &Reactor,
    ) -> Result<Sender<'a>, String> {
        let mut sender = Sender {
            common,
            index,
            token,
            pusher: None,
            retry_ns: 0,
            used_ns: sys::now_ns(),
            lost_since_ns: None,
            writer: PushWriter::new(&common.identity.pid, &common.secret, STAMP_LEN),
            answered: VecDeque::new(),
            statuses: Failures::default(),
            failures: Failures::default(),
            expects_end: false,
        };
        let http = common.http_of(index);
        sender.connect(reactor).map_err(|error| format!("http {http}: {error}"))?;
        Ok(sender)
    }

    fn connect(&mut self, reactor: &Reactor) -> std::io::Result<()> {
        let pusher = Pusher::connect(self.common.http_of(self.index))?;
        reactor.epoll.add(pusher.fd(), sys::READABLE | sys::WRITABLE, self.token)?;
        self.pusher = Some(pusher);
        self.lost_since_ns = None;
        Ok(())
    }

    /// Sets the length of the text in `data` from now on.
    pub fn set_data_len(&mut self, data_len: usize) {
        self.writer = PushWriter::new(&self.common.identity.pid, &self.common.secret, data_len);
    }

    /// Keeps signatures valid and the connection up; call it before the writes of a turn.
    pub fn refresh(&mut self, reactor: &Reactor, now: u64) {
        self.writer.refresh(now);
        if self.pending() > 0 {
            self.used_ns = now;
        }
        if self.pusher.is_some() && now.saturating_sub(self.used_ns) > FRESH_NS {
            self.used_ns = now;
            if let Err(error) = self.connect(reactor) {
                self.lose(&error, now);
            }
        }
        if self.pusher.is_none() && !self.expects_end && now >= self.retry_ns {
            // The next target, if there are several.
            self.index += 1;
            self.retry_ns = now + RETRY_NS;
            if let Err(error) = self.connect(reactor) {
                self.failures.add(&format!("http: {}", describe(&error)));
            }
        }
    }

    pub fn can_send(&self) -> bool {
        self.pusher.as_ref().is_some_and(|pusher| pusher.pending.len() < MAX_PENDING)
    }

    /// Returns the number of unanswered requests.
    pub fn pending(&self) -> usize {
        self.pusher.as_ref().map_or(0, |pusher| pusher.pending.len())
    }

    /// Writes a push, which leaves with [`Sender::flush`].
    pub fn write(&mut self, stamp: Stamp, sent_ns: u64, select: impl FnOnce(&mut Vec<u8>)) {
        if let Some(pusher) = &mut self.pusher {
            self.writer.write(stamp, select, &pusher.host, &mut pusher.out);
            self.used_ns = sent_ns;
            let pending = Pending { seq: stamp.seq, at_ns: sent_ns, intended_ns: stamp.at_ns };
            pusher.pending.push_back(pending);
        }
    }

    pub fn flush(&mut self, now: u64) {
        if let Some(pusher) = &mut self.pusher
            && let Err(error) = pusher.flush()
        {
            self.lose(&error, now);
        }
    }

    pub fn on_event(&mut self, mask: u32, buffer: &mut [u8], now: u64) {
        let Some(pusher) = &mut self.pusher else { return };
        let (answered, statuses) = (&mut self.answered, &mut self.statuses);
        let result = pusher.flush().and_then(|()| {
            pusher.read(mask, buffer, |pending, answer| {
                if answer.status != 200 {
                    statuses.add(&answer.status.to_string());
                }
                answered.push_back((pending, sys::now_ns(), Answer::of(answer.status)));
            })
        });
        if let Err(error) = result {
            self.lose(&error, now);
        }
    }

    /// The connection is lost, and with it the responses to pushes in flight.
    fn lose(&mut self, error: &std::io::Error, now: u64) {
        if !self.expects_end && self.pending() > 0 {
            self.failures.add(&format!("http: {}", describe(error)));
        }
        if let Some(pusher) = self.pusher.take() {
            let unknown = pusher.pending.into_iter().map(|push| (push, now, Answer::Unknown));
            self.answered.extend(unknown);
        }
        self.lost_since_ns = Some(now);
        self.retry_ns = now + RETRY_NS;
    }
}
