//! WebSocket clients: many per thread, driven by the thread's epoll.

mod population;

use std::collections::BTreeMap;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;

use hdrhistogram::Histogram;
use ws_cluster_wire::websocket::{OpCode, client};

use crate::identity::{self, Identity};
use crate::message::Marks;
use crate::report::{self, Failures};
use crate::series::ThreadLive;
use crate::sys::{self, Epoll};

/// Callbacks of the running command for what happens to open connections.
pub trait Handler {
    /// A text or binary frame arrived on an open connection, that of user `first_user + number`.
    fn frame(&mut self, number: u32, marks: &mut Marks, payload: &[u8]);
    /// A connection received this welcome.
    fn welcomed(&mut self, _number: u32, _payload: &[u8]) {}
    /// Returns the replies to the frames just handed over, for the same connection. Called once per
    /// read, so that many frames that arrived together are answered with one write.
    fn reply(&mut self) -> Option<&mut Vec<u8>> {
        None
    }
    /// The other side ended an open connection.
    fn ended(&mut self, _number: u32) {}
    /// A connection has ended and its slot is free. `marks`: what it had received.
    fn gone(&mut self, _number: u32, _why: Gone, _marks: &Marks) {}
}

/// Why a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gone {
    /// This side closed it.
    Closed,
    /// It was open, and the other side ended it.
    Dropped,
    /// It was never welcomed.
    Refused,
}

/// No test sends payloads near this size: beyond it, the stream is out of step.
const MAX_PAYLOAD: usize = 64 << 20;

/// For commands that ignore what arrives.
pub struct Ignore;

impl Handler for Ignore {
    fn frame(&mut self, _: u32, _: &mut Marks, _: &[u8]) {}
}

/// How a connection is closed right after its welcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closing {
    /// A Close frame; the server closes first: the closing handshake of RFC 6455.
    Clean,
    /// close(): a FIN without a Close frame. Leaves TIME_WAIT here.
    Fin,
    /// A reset: the cheapest for this side.
    Reset,
}

/// How connections are opened.
#[derive(Clone)]
pub struct Opening {
    /// Maximum number of connections between connect and welcome.
    pub concurrency: usize,
    /// Connections per second; 0: no limit.
    pub rate: f64,
    /// Time limit for the welcome.
    pub timeout_ns: u64,
    /// Source addresses to rotate over; empty: the system chooses.
    pub sources: Vec<Ipv4Addr>,
    /// Close every connection as soon as its welcome arrives, and open another in its place.
    pub cycle: Option<Closing>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Free,
    /// Connecting; the request is not yet sent.
    Dialing,
    /// The request is sent; the response head has not arrived.
    Upgrading,
    /// Upgraded, waiting for the welcome.
    Greeting,
    Open,
    /// Our Close frame is sent.
    Closing,
}

/// One connection: 48 bytes.
struct Conn {
    fd: Option<OwnedFd>,
    number: u32,
    phase: Phase,
    marks: Marks,
    /// When connecting (or closing) began.
    since_ns: u64,
    /// The beginning of a frame that is still incomplete.
    partial: Option<Box<Partial>>,
}

struct Partial {
    bytes: Vec<u8>,
}

/// Why a connection ended.
enum End {
    /// This side wanted it to end.
    Expected,
    Failed(String),
}

/// Outcomes of the connections to one node.
#[derive(Clone, Copy, Default)]
pub struct NodeCounts {
    pub welcomed: u64,
    pub refused: u64,
    pub dropped: u64,
}

/// The connections of one thread.
///
/// Call [`Clients::open_more`] before every wait, then [`Clients::on_event`] for every event: this
/// way no slot is reused within one batch of events.
pub struct Clients {
    identity: Identity,
    opening: Opening,
    /// The number of the first user here; the n-th connection is user `first_user + n`.
    pub first_user: u64,
    /// The epoll token of the first slot here: several `Clients` can share one epoll.
    pub tokens_from: u64,
    /// Where connect latencies are recorded as well.
    pub live: Option<&'static ThreadLive>,
    /// Whether frames are sent on open connections, which are then watched for writability.
    pub sends: bool,
    slots: Vec<Conn>,
    free: Vec<u32>,
    /// By slot: bytes that the socket has not yet taken.
    unsent: BTreeMap<usize, Vec<u8>>,
    /// The slot from which [`Clients::close_more`] continues.
    closed_to: usize,
    /// Connections whose Close frame is sent but not answered.
    closing: u64,
    /// The server is being stopped: the end of an open connection is no failure.
    pub expects_end: bool,
    request: Vec<u8>,
    /// When opening began, for the rate.
    began_ns: u64,
    checked_ns: u64,
    exp: (u64, u64),
    pub started: u64,
    /// Between connect and welcome.
    pub pending: u64,
    /// Welcomes so far.
    pub welcomed: u64,
    /// Open now.
    pub open: u64,
    /// Never welcomed.
    pub refused: u64,
    /// Welcomed, then ended by the other side.
    pub dropped: u64,
    /// TCP connect to welcome, nanoseconds.
    pub latency: Histogram<u64>,
    /// Reads that returned bytes.
    pub reads: u64,
    pub failures: Failures,
    /// The counts of each of the identity's nodes.
    pub by_node: Vec<NodeCounts>,
    /// Open connections that ended, by close code.
    pub close_codes: BTreeMap<u16, u64>,
}

impl Clients {
    pub fn new(identity: Identity, opening: Opening, first_user: u64, capacity: usize) -> Clients {
        let by_node = vec![NodeCounts::default(); identity.ws.len()];
        Clients {
            identity,
            opening,
            first_user,
            tokens_from: 0,
            live: None,
            sends: false,
            slots: Vec::with_capacity(capacity),
            free: Vec::new(),
            unsent: BTreeMap::new(),
            closed_to: 0,
            closing: 0,
            expects_end: false,
            request: Vec::new(),
            began_ns: 0,
            checked_ns: 0,
            exp: (0, 0),
            started: 0,
            pending: 0,
            welcomed: 0,
            open: 0,
            refused: 0,
            dropped: 0,
            latency: report::new_histogram(),
            reads: 0,
            failures: Failures::default(),
            by_node,
            close_codes: BTreeMap::new(),
        }
    }

    /// Returns whether every connection up to `target` is welcomed or refused.
    pub fn settled(&self, target: u64) -> bool {
        self.started >= target && self.pending == 0
    }

    /// Starts connections until `target` have been started in total, as far as concurrency and rate
    /// allow, and gives up those that take too long. Returns the nanoseconds until the rate allows
    /// more.
    pub fn open_more(&mut self, epoll: &Epoll, target: u64, now: u64) -> u64 {
        if self.began_ns == 0 {
            self.began_ns = now;
        }
        self.give_up_late(now, &mut Ignore);
        // Limited per call, so that what has arrived meanwhile is read.
        for _ in 0..32 {
            let busy = match self.opening.cycle {
                Some(_) => self.slots.len() - self.free.len(),
                None => self.pending as usize,
            };
            if self.started >= target || busy >= self.opening.concurrency {
                return IDLE_NS;
            }
            if self.opening.rate > 0.0 {
                let due_ns = (self.started as f64 / self.opening.rate * 1e9) as u64;
                let due_ns = self.began_ns + due_ns;
                if due_ns > now {
                    return (due_ns - now).min(IDLE_NS);
                }
            }
            self.open_one(epoll);
        }
        0
    }

    fn open_one(&mut self, epoll: &Epoll) {
        let number = self.started;
        self.started += 1;
        let index = self.free.pop().map_or(self.slots.len(), |index| index as usize);
        match self.dial(number, index, epoll) {
            Ok(conn) if index == self.slots.len() => self.slots.push(conn),
            Ok(conn) => self.slots[index] = conn,
            Err(why) => {
                self.refuse(number);
                self.failures.add(&why);
                if index < self.slots.len() {
                    self.free.push(index as u32);
                }
            }
        }
    }

    /// Starts the connection with this number in slot `index`.
    fn dial(&mut self, number: u64, index: usize, epoll: &Epoll) -> Result<Conn, String> {
        let since_ns = sys::now_ns();
        let sources = &self.opening.sources;
        let source = match sources.len() {
            0 => None,
            count => Some(sources[number as usize % count]),
        };
        let node = self.identity.node_of(self.first_user + number);
        let failed = |error: io::Error| format!("connect: {}", describe(&error));
        let fd = sys::start_connect(node, source).map_err(failed)?;
        if self.sends {
            sys::send_at_once(&fd).map_err(failed)?;
        }
        self.write_request(number, since_ns);
        // On one machine the handshake is over when connect() returns, so the request can often be
        // sent now.
        let phase = match sys::send(&fd, &self.request) {
            Ok(sent) if sent == self.request.len() => Phase::Upgrading,
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(failed(error)),
            _ => Phase::Dialing,
        };
        let interest = match self.sends || phase == Phase::Dialing {
            true => sys::READABLE | sys::WRITABLE,
            false => sys::READABLE,
        };
        epoll
            .add(&fd, interest, self.tokens_from + index as u64)
            .map_err(|error| format!("epoll: {}", describe(&error)))?;
        self.pending += 1;
        Ok(Conn {
            fd: Some(fd),
            number: number as u32,
            phase,
            marks: Marks::default(),
            since_ns,
            partial: None,
        })
    }

    fn node_of(&mut self, number: u64) -> &mut NodeCounts {
        &mut self.by_node[self.identity.node_index(self.first_user + number)]
    }

    fn refuse(&mut self, number: u64) {
        self.refused += 1;
        self.node_of(number).refused += 1;
    }

    fn write_request(&mut self, number: u64, now: u64) {
        let second = now / 1_000_000_000;
        if self.exp.0 != second {
            self.exp = (second, sys::unix_seconds() + EXP_SECONDS);
        }
        self.request.clear();
        self.identity.request(self.first_user + number, self.exp.1, &mut self.request);
    }

    /// Reads and handles what has arrived on a connection.
    #[inline]
    pub fn on_event<H: Handler>(
        &mut self,
        index: usize,
        mask: u32,
        now: u64,
        buffer: &mut [u8],
        handler: &mut H,
    ) {
        if mask & sys::WRITABLE != 0
            && self.slots[index].phase == Phase::Dialing
            && let Err(end) = self.send_request(index)
        {
            return self.finish(index, end, handler);
        }
        if mask & sys::WRITABLE != 0 && !self.unsent.is_empty() {
            let unsent = self.unsent.remove(&index).unwrap_or_default();
            self.send(index, &unsent);
        }
        loop {
            let conn = &mut self.slots[index];
            let Some(fd) = &conn.fd else { return };
            let got = match sys::recv(fd, buffer) {
                Ok(0) => return self.finish(index, End::Failed("closed".to_owned()), handler),
                Ok(got) => got,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => return self.finish(index, End::Failed(describe(&error)), handler),
            };
            self.reads += 1;
            let read = self.on_bytes(index, &buffer[..got], now, handler);
            if let Some(reply) = handler.reply() {
                self.send(index, reply);
                reply.clear();
            }
            if let Err(end) = read {
                return self.finish(index, end, handler);
            }
            if got < buffer.len() && mask & sys::ENDED == 0 {
                return;
            }
        }
    }

    fn send_request(&mut self, index: usize) -> Result<(), End> {
        let number = u64::from(self.slots[index].number);
        self.write_request(number, sys::now_ns());
        let conn = &mut self.slots[index];
        let Some(fd) = &conn.fd else { return Ok(()) };
        match sys::send(fd, &self.request) {
            Ok(sent) if sent == self.request.len() => {
                conn.phase = Phase::Upgrading;
                Ok(())
            }
            Ok(_) => {
                Err(End::Failed("the request did not fit into the socket's buffer".to_owned()))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(End::Failed(describe(&error))),
        }
    }

    /// Sends complete frames on a connection if it is open. What the socket does not take leaves as
    /// soon as it is writable again; if it is broken, the next read reports it.
    pub fn send(&mut self, index: usize, bytes: &[u8]) {
        debug_assert!(self.sends, "nobody watches whether the socket takes bytes again");
        let conn = &self.slots[index];
        let (Phase::Open, Some(fd), false) = (conn.phase, &conn.fd, bytes.is_empty()) else {
            return;
        };
        if let Some(unsent) = self.unsent.get_mut(&index) {
            return unsent.extend_from_slice(bytes);
        }
        let mut at = 0;
        while at < bytes.len() {
            match sys::send(fd, &bytes[at..]) {
                Ok(sent) => at += sent,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.unsent.insert(index, bytes[at..].to_vec());
                    return;
                }
                Err(_) => return,
            }
        }
    }

    /// Returns the slots of the open connections, each with its number.
    pub fn open_slots(&self) -> impl Iterator<Item = (usize, u32)> {
        let open = self.slots.iter().enumerate().filter(|(_, conn)| conn.phase == Phase::Open);
        open.map(|(index, conn)| (index, conn.number))
    }

    /// Sends a Close frame on up to `count` more open connections, oldest first.
    pub fn close_more(&mut self, count: usize, now: u64) {
        let to = self.slots.len().min(self.closed_to + count);
        for index in std::mem::replace(&mut self.closed_to, to)..to {
            if self.slots[index].phase == Phase::Open
                && let Err(end) = self.close(index, Closing::Clean, now)
            {
                self.finish(index, end, &mut Ignore);
            }
        }
    }

    /// Drops every connection. A descriptor is meaningless in another thread, so a thread calls
    /// this before it hands its clients over.
    pub fn drop_all(&mut self) {
        self.slots.clear();
    }

    /// Returns whether no connection is left, not even a closing one.
    pub fn all_gone(&self) -> bool {
        self.slots.iter().all(|conn| conn.phase == Phase::Free)
    }

    /// Handles the next bytes of a connection's stream.
    #[inline]
    fn on_bytes<H: Handler>(
        &mut self,
        index: usize,
        bytes: &[u8],
        now: u64,
        handler: &mut H,
    ) -> Result<(), End> {
        let Some(mut partial) = self.slots[index].partial.take() else {
            let used = self.consume(index, bytes, now, handler)?;
            if used < bytes.len() {
                let rest = Partial { bytes: bytes[used..].to_vec() };
                self.slots[index].partial = Some(Box::new(rest));
            }
            return Ok(());
        };
        partial.bytes.extend_from_slice(bytes);
        let used = self.consume(index, &partial.bytes, now, handler)?;
        partial.bytes.drain(..used);
        if !partial.bytes.is_empty() {
            self.slots[index].partial = Some(partial);
        }
        Ok(())
    }

    /// Handles every complete frame or head at the beginning of `bytes` and returns their length.
    #[inline]
    fn consume<H: Handler>(
        &mut self,
        index: usize,
        bytes: &[u8],
        now: u64,
        handler: &mut H,
    ) -> Result<usize, End> {
        let mut at = 0;
        if self.slots[index].phase == Phase::Upgrading {
            match identity::upgrade(bytes).map_err(End::Failed)? {
                None => return Ok(0),
                Some(head) => at = head,
            }
            self.slots[index].phase = Phase::Greeting;
        }
        loop {
            let rest = &bytes[at..];
            let frame = match client::read_frame(rest, MAX_PAYLOAD) {
                Ok(Some(frame)) => frame,
                Ok(None) => return Ok(at),
                Err(violation) => return Err(End::Failed(violation.msg.to_owned())),
            };
            let conn = &mut self.slots[index];
            let is_message = matches!(frame.opcode, OpCode::Text | OpCode::Binary);
            if conn.phase == Phase::Open && is_message {
                handler.frame(conn.number, &mut conn.marks, frame.payload);
            } else {
                self.on_rare(index, frame.opcode, frame.payload, now, handler)?;
            }
            at += frame.bytes;
        }
    }

    /// Handles everything but a message on an open connection.
    fn on_rare<H: Handler>(
        &mut self,
        index: usize,
        opcode: OpCode,
        payload: &[u8],
        now: u64,
        handler: &mut H,
    ) -> Result<(), End> {
        let conn = &mut self.slots[index];
        match opcode {
            OpCode::Text | OpCode::Binary if conn.phase == Phase::Greeting => {
                if !identity::is_welcome(payload) {
                    let text = String::from_utf8_lossy(&payload[..payload.len().min(120)]);
                    return Err(End::Failed(format!("not a welcome: {text}")));
                }
                let took_ns = now.saturating_sub(conn.since_ns);
                report::record(&mut self.latency, took_ns);
                if let Some(live) = self.live {
                    live.connect_latency.record(took_ns);
                }
                conn.phase = Phase::Open;
                self.pending -= 1;
                self.welcomed += 1;
                let node = self.identity.node_index(self.first_user + u64::from(conn.number));
                self.by_node[node].welcomed += 1;
                self.open += 1;
                handler.welcomed(conn.number, payload);
                // Closed at once if connections are cycled.
                self.opening.cycle.map_or(Ok(()), |closing| self.close(index, closing, now))
            }
            OpCode::Close => {
                let code = payload.first_chunk().map_or(1005, |code| u16::from_be_bytes(*code));
                match conn.phase {
                    // The server answered our Close; it closes the socket first.
                    Phase::Closing => Ok(()),
                    Phase::Open => {
                        *self.close_codes.entry(code).or_default() += 1;
                        Err(End::Failed(format!("closed with {code}")))
                    }
                    _ => Err(End::Failed(format!("closed with {code} before the welcome"))),
                }
            }
            OpCode::Ping => {
                let mut pong = Vec::new();
                client::write_pong(&mut pong, payload);
                match (self.unsent.get_mut(&index), &conn.fd) {
                    // Sent in between, it would be in the middle of a frame.
                    (Some(unsent), _) => unsent.extend_from_slice(&pong),
                    (None, Some(fd)) => {
                        // If the socket is full, the Pong is lost, and the server has to notice.
                        let _ = sys::send(fd, &pong);
                    }
                    (None, None) => {}
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Closes an open connection in the given way.
    fn close(&mut self, index: usize, closing: Closing, now: u64) -> Result<(), End> {
        debug_assert!(!self.unsent.contains_key(&index), "a frame would be cut off");
        self.open -= 1;
        self.closing += 1;
        let conn = &mut self.slots[index];
        conn.phase = Phase::Closing;
        conn.since_ns = now;
        let Some(fd) = &conn.fd else { return Ok(()) };
        match closing {
            Closing::Clean => match sys::send(fd, client::CLOSE_NORMAL) {
                Ok(_) => Ok(()),
                Err(error) => Err(End::Failed(format!("close: {}", describe(&error)))),
            },
            Closing::Fin => Err(End::Expected),
            Closing::Reset => {
                sys::reset_on_close(fd).map_err(|error| End::Failed(describe(&error)))?;
                Err(End::Expected)
            }
        }
    }

    /// Ends the connection: counts the reason and frees its slot.
    fn finish<H: Handler>(&mut self, index: usize, end: End, handler: &mut H) {
        let conn = &mut self.slots[index];
        let phase = std::mem::replace(&mut conn.phase, Phase::Free);
        let number = conn.number;
        conn.fd = None;
        conn.partial = None;
        self.unsent.remove(&index);
        if self.opening.cycle.is_some() {
            self.free.push(index as u32);
        }
        let marks = std::mem::take(&mut conn.marks);
        let why = match (phase, end) {
            (Phase::Free, _) => return,
            (Phase::Closing, _) => {
                self.closing -= 1;
                Gone::Closed
            }
            (Phase::Open, End::Failed(why)) => {
                self.open -= 1;
                self.dropped += 1;
                self.node_of(u64::from(number)).dropped += 1;
                if !self.expects_end {
                    self.failures.add(&format!("while open: {why}"));
                }
                handler.ended(number);
                Gone::Dropped
            }
            (_, End::Expected) => Gone::Closed,
            (_, End::Failed(why)) => {
                self.pending -= 1;
                self.refuse(u64::from(number));
                let step = if phase == Phase::Dialing { "connect" } else { "handshake" };
                self.failures.add(&format!("{step}: {why}"));
                Gone::Refused
            }
        };
        handler.gone(number, why, &marks);
    }

    /// Fails connections that have waited too long for a welcome, and frees those whose Close was
    /// not answered.
    fn give_up_late<H: Handler>(&mut self, now: u64, handler: &mut H) {
        let nobody_waits = self.pending == 0 && self.closing == 0;
        if nobody_waits || now.saturating_sub(self.checked_ns) < 250_000_000 {
            return;
        }
        self.checked_ns = now;
        for index in 0..self.slots.len() {
            let conn = &self.slots[index];
            let waits = !matches!(conn.phase, Phase::Free | Phase::Open);
            if waits && now.saturating_sub(conn.since_ns) > self.opening.timeout_ns {
                if conn.phase == Phase::Closing {
                    self.failures.add("close: no reply in time");
                }
                self.finish(index, End::Failed("no welcome in time".to_owned()), handler);
            }
        }
    }
}

/// How long a thread waits when nothing is due: the interval at which it checks for Ctrl-C.
pub const IDLE_NS: u64 = 20_000_000;

/// Validity of a signature.
pub const EXP_SECONDS: u64 = 120;

pub fn describe(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "refused".to_owned(),
        io::ErrorKind::ConnectionReset => "reset".to_owned(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests;
