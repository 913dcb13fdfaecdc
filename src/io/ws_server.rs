//! The WebSocket port of one worker: it accepts, handshakes, reads, sends and closes, all on the
//! ring.

mod closing;
mod handshakes;
mod memory;
mod partials;
mod port;
mod sending;
mod sleep;
mod slot;
mod time;

use super::clock;
use super::descriptors::Descriptors;
use super::handshake::{self, refuse};
use super::linger::{self, Last, LingeringSockets};
use super::listener::Listener;
use super::ring::{Completion, GENERATION_MASK, OperationKind, OperationToken, Ring};
use super::shared::Shared;
use super::sys;
use crate::state::active_config::ActiveConfig;
use crate::state::counters::{HttpCounters, Refusal};
use crate::state::settings::Settings;
use crate::state::subscriptions::Interest;
use crate::state::{Admission, CloseRequest, Sealed, Worker};
use crate::types::{ConnKey, MonotonicMs, Now};
use crate::wire::client_address::{self, Start};
use crate::wire::http::parse_head;
use crate::wire::request::ApiError;
use crate::wire::websocket::{Inbound, Rest};
use closing::Shutdown;
use handshakes::Handshakes;
use partials::{Before, Partials};
use slot::{HELD, PAUSED, POLLED, Slot};
use std::collections::VecDeque;
use std::net::IpAddr;
use std::ops::ControlFlow;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Maximum size of one read.
const READ_BYTES: usize = 64 << 10;
/// Bytes that connections may have sent before other tasks run. With messages of a few bytes each,
/// they take about a millisecond.
const BYTES_PER_TURN: usize = 64 << 10;
/// Completions handled per turn, and the time after which the turn ends: one completion may be a
/// complete handshake or the end of a connection. Overdue work shares that time.
const EVENTS_PER_TURN: usize = 512;
const TURN: Duration = Duration::from_micros(600);
/// Time that sockets of connections that have ended get in each turn at least.
const LINGERING: Duration = Duration::from_micros(100);
/// Time for taking completions out of the ring, which costs a tenth of handling them.
const REAPING: Duration = Duration::from_micros(400);
/// Completions between two clock readings.
const EVENTS_PER_LOOK: usize = 8;

const NOT_SUBSCRIBED: &str =
    "Redis does not let this node subscribe to the project's channels: see the node's log";

/// Result of processing the bytes of a handshake.
enum HandshakeResult {
    /// The request's head is incomplete.
    Incomplete,
    /// It is valid, but this interest is not in force yet.
    Waiting(Interest),
    /// The worker has added the connection; the request, and what a proxy has put before it, takes
    /// the first `used` bytes.
    Open { key: ConnKey, used: usize },
    /// `ip`: the address of the client, or of its proxy.
    Refused { error: ApiError, ip: Option<IpAddr> },
}

/// All of a worker's WebSocket side except its executor. Its methods never block.
pub struct WsServer {
    pub worker: Worker,
    /// What `worker` uses.
    active: Rc<ActiveConfig>,
    shared: Arc<Shared>,
    counters: Arc<HttpCounters>,
    ring: Ring,
    /// `None`: the port is closed.
    listener: Option<Listener>,
    /// The port is closed once the connections that wait there are accepted.
    is_port_closing: bool,
    /// Until when a drain waits for their requests.
    newcomers_until: MonotonicMs,
    /// The listener is not polled because the worker ran out of descriptors.
    is_accept_paused: bool,
    slots: Vec<Slot>,
    descriptors: Rc<Descriptors>,
    handshakes: Handshakes,
    lingering: LingeringSockets,
    buffer: Box<[u8]>,
    /// Bytes that were read in this turn, or kept from earlier reads.
    turn_bytes: usize,
    events: Vec<Completion>,
    /// Completions on their way from the ring to `events`.
    reaped: Vec<Completion>,
    /// Events of sockets whose connections have ended. They come after all others: thousands of
    /// clients that are closed together answer together, and who stays does not wait for that.
    lingering_events: VecDeque<OperationToken>,
    sealed: Sealed,
    /// Messages that have not arrived completely.
    partials: Partials,
    /// Closes that are due, to be carried out after everything that was sent before them.
    closing: VecDeque<CloseRequest>,
    /// Deadlines of handshakes or lingering sockets may have passed.
    has_late_sockets: bool,
    shutdown: Shutdown,
    /// Connections wait on the HTTP port, see [`WsServer::poll_http_port`].
    is_http_ready: bool,
    /// Connections whose messages did not fit in the batch, to be read again in the next turn, and
    /// whether they and overdue work come before the ring's events, which is every other time.
    paused_by_batch: VecDeque<u32>,
    paused_first: bool,
    now: Now,
}

impl WsServer {
    pub fn new(
        worker: Worker,
        active: Rc<ActiveConfig>,
        shared: Arc<Shared>,
        counters: Arc<HttpCounters>,
        ring: Ring,
        listener: Listener,
        descriptors: Rc<Descriptors>,
    ) -> Self {
        let mut ws_server = Self {
            slots: Vec::with_capacity(shared.slots()),
            worker,
            active,
            shared,
            counters,
            ring,
            listener: Some(listener),
            is_port_closing: false,
            newcomers_until: MonotonicMs::NEVER,
            is_accept_paused: false,
            descriptors,
            handshakes: Handshakes::default(),
            lingering: LingeringSockets::default(),
            buffer: vec![0; READ_BYTES].into_boxed_slice(),
            turn_bytes: 0,
            events: Vec::with_capacity(EVENTS_PER_TURN),
            reaped: Vec::new(),
            lingering_events: VecDeque::new(),
            sealed: Sealed::default(),
            partials: Partials::default(),
            closing: VecDeque::new(),
            has_late_sockets: false,
            shutdown: Shutdown::new(),
            is_http_ready: false,
            paused_by_batch: VecDeque::new(),
            paused_first: false,
            now: clock::now(),
        };
        ws_server.poll_listener();
        ws_server
    }

    /// Takes another configuration. Handshakes that wait are judged by it.
    pub fn reload(&mut self, active: Rc<ActiveConfig>, now: Now) {
        self.now = now;
        self.worker.reload(&active, now);
        self.active = active;
    }

    pub fn ring(&mut self) -> &mut Ring {
        &mut self.ring
    }

    /// Returns the number of sockets that still exist, open or closing.
    pub fn sockets(&self) -> usize {
        self.worker.connections() + self.lingering.len()
    }

    /// Returns the number of descriptors of this port's sockets, including handshakes.
    pub fn descriptors_in_use(&self) -> usize {
        self.sockets() + self.handshakes.len()
    }

    /// Handles completions, as many as fit in one turn, which began at `began`.
    pub fn turn(&mut self, began: Instant, now: Now) {
        self.now = now;
        self.turn_bytes = 0;
        self.carry_out_closes();
        self.paused_first = !self.paused_first;
        if self.paused_first {
            self.resume_paused();
            self.catch_up();
        }
        self.reap();
        let mut events = std::mem::take(&mut self.events);
        let mut handled = 0;
        while let Some(&event) = events.get(handled)
            && !self.worker.is_full()
            && self.turn_bytes < BYTES_PER_TURN
            && (handled % EVENTS_PER_LOOK != 0 || began.elapsed() < TURN)
        {
            self.handle_event(event);
            handled += 1;
        }
        events.drain(..handled);
        self.events = events;
        if !self.paused_first {
            self.resume_paused();
            if began.elapsed() < TURN {
                self.catch_up();
            }
        }
        self.handle_lingering(began);
    }

    /// Reaps what the ring has, and what it has deferred: the kernel runs only some 20 pieces of
    /// that work at a time, and one at the end would wait for as many turns as there are before it.
    fn reap(&mut self) {
        let began = Instant::now();
        // Empty between turns; kept for its capacity.
        let mut reaped = std::mem::take(&mut self.reaped);
        while began.elapsed() < REAPING {
            self.ring.run_deferred();
            self.ring.reap(EVENTS_PER_TURN.saturating_sub(self.events.len()), &mut reaped);
            if reaped.is_empty() {
                break;
            }
            reaped.drain(..).for_each(|event| self.keep(event));
        }
        self.reaped = reaped;
    }

    /// Adds a completion to those that wait to be handled.
    fn keep(&mut self, event: Completion) {
        match event.token.kind {
            OperationKind::Lingering => self.lingering_events.push_back(event.token),
            _ => self.events.push(event),
        }
    }

    /// Handles events of connections that have ended: in the rest of the turn, or in `LINGERING`.
    fn handle_lingering(&mut self, turn_began: Instant) {
        let began = Instant::now();
        while let Some(token) = self.lingering_events.pop_front() {
            self.lingering.handle_ready(&mut self.ring, token, &mut self.buffer);
            if began.elapsed() >= LINGERING && turn_began.elapsed() >= TURN {
                return;
            }
        }
        self.lingering_events.shrink_to(1_024);
    }

    /// Returns whether there are completions to handle or work that was set aside.
    pub fn has_events(&mut self) -> bool {
        !self.events.is_empty()
            || !self.lingering_events.is_empty()
            || !self.closing.is_empty()
            || !self.paused_by_batch.is_empty()
            || self.is_overdue()
            || self.ring.has_work()
    }

    fn handle_event(&mut self, event: Completion) {
        let token = event.token;
        match token.kind {
            OperationKind::Listener if token.index == port::HTTP_PORT => self.is_http_ready = true,
            OperationKind::Listener => self.accept(),
            OperationKind::Handshake => self.continue_handshake(token),
            OperationKind::Readable => self.read(token),
            OperationKind::Writable => {
                let is_it = |slot: &Slot| slot.is_generation(token.generation);
                if self.slots.get(token.index as usize).is_some_and(is_it) {
                    self.write_outbox(token.index);
                }
            }
            // Lingering: `reap` sets them apart. Send: reaped by the code that sent it.
            OperationKind::Lingering | OperationKind::Send => {}
            OperationKind::Timer => self.ring.end_timer(),
        }
    }

    // Handshakes.

    /// Begins a handshake. Under load the request has often arrived by the time the connection is
    /// accepted.
    fn begin_handshake(&mut self, fd: OwnedFd, peer: Option<IpAddr>) {
        let mut buffer = std::mem::take(&mut self.buffer);
        match sys::recv(&fd, &mut buffer) {
            Ok(0) => {}
            Ok(bytes) => match self.check_handshake(&buffer[..bytes], peer) {
                HandshakeResult::Incomplete => {
                    self.keep_handshake(fd, peer, buffer[..bytes].to_vec());
                }
                HandshakeResult::Waiting(interest) => {
                    let index = self.insert_handshake(fd, peer, buffer[..bytes].to_vec());
                    self.handshakes.let_wait(index, interest);
                }
                HandshakeResult::Open { key, used } => {
                    self.open(key, fd, &mut buffer[used..bytes]);
                }
                HandshakeResult::Refused { error, ip } => self.refuse_handshake(fd, ip, &error),
            },
            Err(error) if sys::is_not_now(&error) => self.keep_handshake(fd, peer, Vec::new()),
            Err(_) => {}
        }
        self.buffer = buffer;
    }

    fn keep_handshake(&mut self, fd: OwnedFd, peer: Option<IpAddr>, received: Vec<u8>) {
        let index = self.insert_handshake(fd, peer, received);
        if let Some(handshake) = self.handshakes.get(index) {
            let token =
                OperationToken::new(OperationKind::Handshake, index as u32, handshake.generation);
            self.ring.poll_readable(&handshake.fd, token);
        }
        self.end_surplus();
    }

    fn insert_handshake(&mut self, fd: OwnedFd, peer: Option<IpAddr>, received: Vec<u8>) -> usize {
        let deadline = self.awake() + self.active.settings.times.handshake_timeout_ms;
        self.handshakes.insert((fd, peer), received, deadline)
    }

    /// Makes sure that this worker has a descriptor for one more socket; `false` if it has none.
    fn make_room(&mut self) -> bool {
        while self.descriptors_in_use() >= self.descriptors.websocket_sockets() {
            if self.lingering.end_oldest() {
                continue;
            }
            let Some(index) = self.handshakes.oldest() else { return false };
            self.end_handshake(index, Refusal::OpenFiles);
        }
        true
    }

    /// Refuses incomplete handshakes, the oldest first, until they are within their bounds.
    pub(super) fn end_surplus(&mut self) {
        while let Some(index) = self.handshakes.surplus(self.descriptors.max_handshakes()) {
            self.end_handshake(index, Refusal::Handshakes);
        }
        self.counters.handshake_bytes.set(self.handshakes.bytes() as u64);
        self.counters.half_open.set(self.handshakes.len() as u64);
    }

    fn end_handshake(&mut self, index: usize, why: Refusal) {
        let handshake = self.handshakes.remove(index);
        self.refuse_at_once(handshake.fd, handshake.peer, why);
    }

    /// Refuses a connection that may no longer keep its descriptor.
    fn refuse_at_once(&mut self, fd: OwnedFd, peer: Option<IpAddr>, why: Refusal) {
        self.counters.refusals.count(why);
        let error = refuse(503, "this node has too many connections: try again");
        self.note_refused(peer, &error);
        // Best effort: there is nothing to do for a peer that does not take it.
        let _ = sys::send(&fd, &handshake::refusal(&error, self.now.wall));
        linger::close(fd);
    }

    /// Continues handshakes whose interest is now in force.
    pub fn handle_ready(&mut self, interest: &Interest, now: Now) {
        self.now = now;
        self.worker.handle_ready(interest);
        self.handshakes.handle_ready(interest);
        self.retry_ready();
    }

    /// Continues handshakes whose interest will not be in force.
    pub fn handle_refused(&mut self, interest: &Interest, now: Now) {
        self.now = now;
        self.worker.handle_refused(interest);
        self.handshakes.handle_ready(interest);
        self.retry_ready();
    }

    fn continue_handshake(&mut self, token: OperationToken) {
        let index = token.index as usize;
        let Some(handshake) = self.handshakes.find(index, token.generation) else { return };
        let mut buffer = std::mem::take(&mut self.buffer);
        match sys::recv(&handshake.fd, &mut buffer) {
            Ok(0) => drop(self.handshakes.remove(index)),
            Ok(bytes) => {
                let mut received = self.handshakes.take_received(index);
                received.reserve_exact(bytes);
                received.extend_from_slice(&buffer[..bytes]);
                self.handshakes.keep(index, received);
                if self.retry_handshake(index)
                    && let Some(handshake) = self.handshakes.get(index)
                {
                    self.ring.poll_readable(&handshake.fd, token);
                    self.end_surplus();
                }
            }
            Err(error) if sys::is_not_now(&error) => {
                self.ring.poll_readable(&handshake.fd, token);
            }
            Err(_) => drop(self.handshakes.remove(index)),
        }
        self.buffer = buffer;
    }

    /// Processes what a handshake has sent. Returns whether its request is still incomplete.
    fn retry_handshake(&mut self, index: usize) -> bool {
        if self.handshakes.get(index).is_none() {
            return false;
        }
        let peer = self.handshakes.get(index).and_then(|handshake| handshake.peer);
        let mut received = self.handshakes.take_received(index);
        match self.check_handshake(&received, peer) {
            HandshakeResult::Incomplete => {
                self.handshakes.keep(index, received);
                return true;
            }
            HandshakeResult::Waiting(interest) => {
                self.handshakes.keep(index, received);
                self.handshakes.let_wait(index, interest);
            }
            HandshakeResult::Open { key, used } => {
                let fd = self.handshakes.remove(index).fd;
                self.open(key, fd, &mut received[used..]);
            }
            HandshakeResult::Refused { error, ip } => {
                let fd = self.handshakes.remove(index).fd;
                self.refuse_handshake(fd, ip, &error);
            }
        }
        false
    }

    /// `peer`: the address of the connection's peer, which may be a proxy.
    fn check_handshake(&mut self, bytes: &[u8], peer: Option<IpAddr>) -> HandshakeResult {
        let mut ip = peer;
        let result = self.judge_handshake(bytes, &mut ip);
        result.unwrap_or_else(|error| HandshakeResult::Refused { error, ip })
    }

    /// Sets `ip`, the address of the peer, to that of the client once it is known.
    fn judge_handshake(
        &mut self,
        bytes: &[u8],
        ip: &mut Option<IpAddr>,
    ) -> Result<HandshakeResult, ApiError> {
        let active = Rc::clone(&self.active);
        let Settings { limits, trusted_proxies, .. } = &*active.settings;
        let start = client_address::start(bytes, *ip, trusted_proxies, limits.head_bytes)?;
        let Start::Request { via, skip } = start else { return Ok(HandshakeResult::Incomplete) };
        *ip = via.peer();
        let Some(head) = parse_head(&bytes[skip..], limits)? else {
            return Ok(HandshakeResult::Incomplete);
        };
        let used = skip + head.head_len;
        *ip = via.client(&bytes[skip..used], trusted_proxies);
        let (worker, shared, now) = (&mut self.worker, &self.shared, self.now);
        let (descriptors, counters) = (&self.descriptors, &self.counters);
        handshake::judge(&head, *ip, shared, &active, now.wall, |identity, switching| {
            match worker.admit(&identity) {
                Admission::Now => {}
                Admission::After(interest) => return Ok(HandshakeResult::Waiting(interest)),
                Admission::Refused => return Err(refuse(503, NOT_SUBSCRIBED)),
            }
            let full = if worker.connections() >= descriptors.connections() {
                Some(Refusal::OpenFiles)
            } else {
                (!shared.enter()).then_some(Refusal::MaxConnections)
            };
            if let Some(why) = full {
                counters.refusals.count(why);
                return Err(refuse(503, "this node is full: connect to another node"));
            }
            let (key, _) = worker.handle_connect(identity, switching, now);
            Ok(HandshakeResult::Open { key, used })
        })
    }

    /// Makes `fd` an open connection. `bytes`: frames that came in the same packet as the
    /// handshake, before the welcome.
    fn open(&mut self, key: ConnKey, fd: OwnedFd, bytes: &mut [u8]) {
        self.counters.handshakes.count(101, 1);
        if tracing::enabled!(tracing::Level::DEBUG) {
            let ip = self.worker.ip(key.slot).map(tracing::field::display);
            let client_id = self.worker.cid(key.slot).map(tracing::field::display);
            tracing::debug!(client_id, ip, slot = key.slot, "opened a connection");
        }
        self.fill_slot(key.slot, key.generation, fd);
        if !bytes.is_empty() {
            if self.worker.wants_input(key.slot) {
                self.handle_bytes(key.slot, bytes);
            } else {
                let entry = &mut self.slots[key.slot as usize];
                Inbound::keep(&mut entry.inbound, bytes);
                entry.state |= HELD;
                self.note_inbound(key.slot, Before::default(), true);
            }
        }
        self.read_on(key.slot);
    }

    fn refuse_handshake(&mut self, fd: OwnedFd, ip: Option<IpAddr>, error: &ApiError) {
        self.note_refused(ip, error);
        let deadline = self.awake() + self.active.settings.times.linger_ms;
        let bytes = handshake::refusal(error, self.now.wall);
        let last = Last { bytes, is_refusal: true };
        self.lingering.add(&mut self.ring, fd, None, last, deadline);
    }

    /// Counts a refused handshake. `ip`: the address of its client, or of its proxy.
    fn note_refused(&self, ip: Option<IpAddr>, error: &ApiError) {
        self.counters.handshakes.count(error.status, 1);
        let ip = ip.map(tracing::field::display);
        tracing::debug!(ip, status = error.status, msg = &*error.msg, "refused a handshake");
    }

    fn fill_slot(&mut self, slot: u32, generation: u32, fd: OwnedFd) {
        let index = slot as usize;
        if self.slots.len() <= index {
            self.slots.resize_with(index + 1, || Slot { inbound: None, fd: None, state: 0 });
        }
        let state = generation & GENERATION_MASK;
        self.slots[index] = Slot { inbound: None, fd: Some(fd), state };
    }

    // Reading.

    fn read(&mut self, token: OperationToken) {
        let slot = token.index;
        let Some(entry) = self.slots.get_mut(slot as usize) else { return };
        if !entry.is_generation(token.generation) {
            return;
        }
        entry.state &= !POLLED;
        let Some(fd) = &entry.fd else { return };
        let mut buffer = std::mem::take(&mut self.buffer);
        match sys::recv(fd, &mut buffer) {
            Ok(0) => self.worker.handle_disconnect(slot),
            Ok(bytes) => self.handle_bytes(slot, &mut buffer[..bytes]),
            Err(error) if sys::is_not_now(&error) => {}
            Err(_) => self.worker.handle_disconnect(slot),
        }
        self.buffer = buffer;
        self.read_on(slot);
    }

    /// Reads messages until their replies have to be sent first.
    fn handle_bytes(&mut self, slot: u32, bytes: &mut [u8]) {
        if !self.worker.is_open(slot) {
            return;
        }
        let inbound = &mut self.slots[slot as usize].inbound;
        let before = Before::of(inbound.as_deref());
        self.turn_bytes += bytes.len() + inbound.as_ref().map_or(0, |kept| kept.raw_bytes());
        let (worker, now) = (&mut self.worker, self.now);
        let max_bytes = worker.message_limit(slot);
        worker.handle_input(slot, now);
        worker.counters().received_bytes.add(bytes.len() as u64);
        let (mut is_held, mut ends_another) = (false, false);
        let result = Inbound::read(inbound, bytes, max_bytes, &mut |message| {
            // Control frames may come between the fragments of a message.
            ends_another |= !(before.is_fragmented() && message.is_control());
            if !worker.handle_frame(slot, message, now) {
                return ControlFlow::Break(Rest::Dropped);
            }
            is_held = worker.is_full() || !worker.wants_input(slot);
            if is_held { ControlFlow::Break(Rest::Kept) } else { ControlFlow::Continue(()) }
        });
        if let Err(violation) = result {
            worker.handle_violation(slot, violation);
        }
        if is_held && worker.is_open(slot) {
            self.slots[slot as usize].state |= HELD;
        }
        self.note_inbound(slot, before, ends_another);
    }

    /// Polls for the connection's next bytes, unless it is closing or does not read its replies.
    fn read_on(&mut self, slot: u32) {
        let wants_input = self.worker.wants_input(slot);
        let entry = &mut self.slots[slot as usize];
        if wants_input && entry.state & HELD != 0 {
            entry.state |= PAUSED;
            self.paused_by_batch.push_back(slot);
        } else if wants_input && let Some(fd) = &entry.fd {
            entry.state = entry.state & !PAUSED | POLLED;
            let token = OperationToken::new(OperationKind::Readable, slot, entry.state);
            self.ring.poll_readable(fd, token);
        } else {
            entry.state |= PAUSED;
        }
    }

    /// Resumes reading a connection that was left unread, if it should be read again.
    pub fn resume(&mut self, slot: u32) {
        let is_paused = |entry: &Slot| entry.fd.is_some() && entry.state & PAUSED != 0;
        if !self.slots.get(slot as usize).is_some_and(is_paused) || !self.worker.wants_input(slot) {
            return;
        }
        let entry = &mut self.slots[slot as usize];
        if entry.state & HELD != 0 {
            entry.state &= !HELD;
            self.handle_bytes(slot, &mut []);
        }
        self.read_on(slot);
    }

    /// Resumes connections that the last batch had no room for, in order, each once.
    fn resume_paused(&mut self) {
        for _ in 0..self.paused_by_batch.len() {
            if self.worker.is_full() || self.turn_bytes >= BYTES_PER_TURN {
                return;
            }
            let Some(slot) = self.paused_by_batch.pop_front() else { return };
            self.resume(slot);
        }
    }
}
