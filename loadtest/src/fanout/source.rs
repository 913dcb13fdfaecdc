//! The pushing side of `loadtest fanout`: thread 0, with one pipelined HTTP connection to each node
//! that takes pushes.

use std::net::SocketAddrV4;
use std::sync::atomic::Ordering;

use hdrhistogram::Histogram;

use super::{Fanout, HTTP, MAX_OUTSTANDING, SLOTS, Shared};
use crate::client::{self, IDLE_NS};
use crate::http::{self, PushWriter, Pusher};
use crate::message::{self, Stamp};
use crate::report::{self, Failures};
use crate::run::{Common, Pushes};
use crate::series::{self, Live};
use crate::sys::{self, Epoll};

/// Thread 0's state of the messages.
pub struct Source<'a> {
    shared: &'a Shared,
    live: &'static Live,
    settings: &'a Fanout,
    /// Message `seq` goes over pusher number `seq mod pushers`.
    pushers: Vec<(SocketAddrV4, Pusher)>,
    writer: PushWriter,
    run: u16,
    next: u32,
    /// Incomplete messages, oldest first: sequence number and when it was pushed.
    in_flight: Vec<(u32, u64)>,
    began_ns: u64,
    pub end_ns: u64,
    timeout_ns: u64,
    pub done: Pushed,
}

/// Outcome of the pushes.
pub struct Pushed {
    /// By sequence number: whether the server accepted it.
    pub accepted: Vec<bool>,
    pub incomplete: u64,
    pub completed_measured: u64,
    pub http_latency: Histogram<u64>,
    /// By node.
    pub pushes: Vec<Pushes>,
    pub statuses: Failures,
    pub failures: Failures,
    pub server_ns: Option<u64>,
}

impl<'a> Source<'a> {
    pub fn new(
        common: &Common,
        settings: &'a Fanout,
        shared: &'a Shared,
        run: u16,
        epoll: &Epoll,
    ) -> Result<Source<'a>, String> {
        let pushers = common.http.iter().enumerate().map(|(i, http)| {
            let pusher = connect(*http, i, epoll);
            pusher.map(|pusher| (*http, pusher)).map_err(|error| format!("http {http}: {error}"))
        });
        let data_len = message::short_data_len(settings.bytes);
        Ok(Source {
            shared,
            live: common.live,
            settings,
            pushers: pushers.collect::<Result<_, _>>()?,
            writer: PushWriter::new(&common.identity.pid, &common.secret, data_len),
            run,
            next: 0,
            in_flight: Vec::with_capacity(MAX_OUTSTANDING),
            began_ns: 0,
            end_ns: 0,
            timeout_ns: common.timeout_ns,
            done: Pushed {
                accepted: Vec::new(),
                incomplete: 0,
                completed_measured: 0,
                http_latency: report::new_histogram(),
                pushes: vec![Pushes::default(); common.http.len()],
                statuses: Failures::default(),
                failures: Failures::default(),
                server_ns: None,
            },
        })
    }

    /// Begins to push; from `measure_from_ns` on, pushes are measured.
    pub fn start(&mut self, now: u64, measure_from_ns: u64) {
        self.began_ns = now;
        self.end_ns = measure_from_ns + (self.settings.seconds * 1e9) as u64;
        self.shared.measure_from_ns.store(measure_from_ns, Ordering::Relaxed);
        self.shared.began_ns.store(now, Ordering::Release);
    }

    /// Removes complete and overdue messages, and pushes new ones up to the limit. Returns how long
    /// there is nothing more to do.
    pub fn turn(&mut self, now: u64, epoll: &Epoll) -> u64 {
        let measure_from_ns = self.shared.measure_from_ns.load(Ordering::Relaxed);
        let (shared, live, timeout_ns) = (self.shared, self.live, self.timeout_ns);
        let (mut complete, mut overdue) = (0, 0);
        self.in_flight.retain(|&(seq, at_ns)| {
            if shared.is_complete(seq) {
                complete += u64::from(at_ns >= measure_from_ns);
                return false;
            }
            let late = now.saturating_sub(at_ns) > timeout_ns;
            if late {
                overdue += 1;
                let got = shared.delivered[seq as usize % SLOTS].load(Ordering::Relaxed);
                let open = live.sum(|thread| &thread.open);
                series::add(&live.of(0).lost, open.saturating_sub(got));
            }
            !late
        });
        self.done.completed_measured += complete;
        self.done.incomplete += overdue;
        self.writer.refresh(now);
        let mut wait_ns = IDLE_NS;
        let mut wrote = vec![false; self.pushers.len()];
        while self.in_flight.len() < self.settings.outstanding && !self.is_over(now) {
            let due_ns = self.settings.intended_ns(self.began_ns, self.next).unwrap_or(0);
            if due_ns > now {
                wait_ns = wait_ns.min(due_ns - now);
                break;
            }
            wrote[self.push()] = true;
        }
        for i in (0..wrote.len()).filter(|&i| wrote[i]) {
            if let Err(error) = self.pushers[i].1.flush() {
                self.reconnect(i, &error, epoll);
            }
        }
        wait_ns
    }

    fn is_over(&self, now: u64) -> bool {
        now >= self.end_ns
            || self.settings.messages.is_some_and(|messages| self.next >= messages)
            || self.shared.active.load(Ordering::Acquire) == 0
            || sys::interrupted()
    }

    /// Writes the next message and returns the index of its pusher.
    fn push(&mut self) -> usize {
        let seq = self.next;
        self.next += 1;
        let active = self.shared.active.load(Ordering::Acquire);
        let slot = &self.shared.slots[seq as usize % SLOTS];
        self.shared.delivered[seq as usize % SLOTS].store(0, Ordering::Relaxed);
        slot.store(u64::from(seq) << 32 | active, Ordering::Release);
        let index = seq as usize % self.pushers.len();
        let at_ns = sys::now_ns();
        self.shared.sent_ns[seq as usize % SLOTS].store(at_ns, Ordering::Release);
        let stamp = Stamp { run: self.run, seq, at_ns, pusher: index as u16 };
        let tag = self.settings.tag.as_deref();
        let select = |body: &mut Vec<u8>| {
            if let Some(tag) = tag {
                http::write_selector("tags", tag, body);
            }
        };
        let (_, pusher) = &mut self.pushers[index];
        self.writer.write(stamp, select, &pusher.host, &mut pusher.out);
        pusher.pending.push_back(http::Pending { seq, at_ns, intended_ns: at_ns });
        self.in_flight.push((seq, at_ns));
        self.done.accepted.push(false);
        self.done.pushes[index].sent += 1;
        index
    }

    pub fn on_http(&mut self, index: usize, mask: u32, now: u64, buffer: &mut [u8], epoll: &Epoll) {
        let measure_from_ns = self.shared.measure_from_ns.load(Ordering::Relaxed);
        let Some((_, pusher)) = self.pushers.get_mut(index) else { return };
        let mut result = match mask & sys::WRITABLE {
            0 => Ok(()),
            _ => pusher.flush(),
        };
        if result.is_ok() {
            result = pusher.read(mask, buffer, |asked, answer| {
                if answer.status == 200 {
                    self.done.accepted[asked.seq as usize] = true;
                    self.done.pushes[index].accepted += 1;
                    if asked.at_ns >= measure_from_ns {
                        let took_ns = now.saturating_sub(asked.at_ns);
                        report::record(&mut self.done.http_latency, took_ns);
                    }
                } else {
                    self.done.statuses.add(&answer.status.to_string());
                    self.in_flight.retain(|&(seq, _)| seq != asked.seq);
                }
            });
        }
        if let Err(error) = result {
            self.reconnect(index, &error, epoll);
        }
    }

    fn reconnect(&mut self, index: usize, error: &std::io::Error, epoll: &Epoll) {
        self.done.failures.add(&format!("http: {}", client::describe(error)));
        let count = self.pushers.len();
        self.in_flight.retain(|&(seq, _)| seq as usize % count != index);
        let (http, pusher) = &mut self.pushers[index];
        match connect(*http, index, epoll) {
            Ok(again) => *pusher = again,
            Err(error) => {
                self.done.failures.add(&format!("http: {}", client::describe(&error)));
                self.end_ns = 0;
            }
        }
    }

    /// Returns whether there is nothing left to send or to wait for.
    pub fn is_done(&self, now: u64) -> bool {
        let waits_for_answer = self.pushers.iter().any(|(_, pusher)| !pusher.pending.is_empty())
            && now < self.end_ns.saturating_add(self.timeout_ns)
            && self.end_ns != 0;
        self.is_over(now) && self.in_flight.is_empty() && !waits_for_answer
    }
}

fn connect(http: SocketAddrV4, index: usize, epoll: &Epoll) -> std::io::Result<Pusher> {
    let pusher = Pusher::connect(http)?;
    epoll.add(pusher.fd(), sys::READABLE | sys::WRITABLE, HTTP + index as u64)?;
    Ok(pusher)
}
