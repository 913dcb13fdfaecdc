//! HTTP/1.1 over a monoio stream: keep-alive, pipelining, bodies, and every limit of the contract.
//! What the requests mean is the [`Service`]'s business.

use super::linger::close;
use super::shared::Settings;
use super::sys::{self, Side};
use crate::types::Limits;
use crate::wire::chunked::Chunked;
use crate::wire::http::{Body, Head, HttpError, parse_head};
use crate::wire::response::write_refusal;
use monoio::buf::IoBufMut;
use monoio::io::{AsyncReadRent, AsyncWriteRentExt};
use monoio::net::TcpStream;
use slab::Slab;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::os::fd::{AsRawFd, RawFd};
use std::task::{Context, Poll, ready};
use std::time::Instant;

/// Room of a fresh read buffer, and what an idle connection keeps at most.
const BUFFER_BYTES: usize = 4 << 10;
/// What is taken at once from a connection that has sent more than that: a pipeline of requests.
const BULK_BYTES: usize = 16 << 10;
/// Answers to pipelined requests are written when they are this long, or no whole request is left.
const FLUSH_BYTES: usize = 64 << 10;

/// Pipelined requests that may be under way at once.
const MAX_DUE: usize = 256;

/// A whole request.
pub struct Request<'a> {
    pub head: &'a Head<'a>,
    pub body: &'a [u8],
    /// When the last of its bytes were read.
    pub read_at: Moment,
    /// Where it came from; open until it is answered.
    pub connection: RawFd,
}

/// One look at the clocks, for all requests that were read together.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    pub instant: Instant,
    /// Microseconds since 1970.
    pub now_us: u64,
}

impl Moment {
    pub fn now() -> Self {
        Self { instant: Instant::now(), now_us: sys::now_us() }
    }
}

/// What came of a request.
pub struct Answer<B> {
    /// Whether the connection may go on to the next.
    pub keep_alive: bool,
    /// The response waits for this; otherwise it is written already.
    pub begun: Option<B>,
}

/// What answers requests.
pub trait Service {
    /// A request that has begun, and is answered when others have done their part.
    type Begun<'a>
    where
        Self: 'a;

    fn limits(&self) -> &Limits;
    fn times(&self) -> Times;
    /// Begins what the request asks for, and appends the response to `out` if it is known at once.
    /// `keep_alive`: what the client wants.
    fn answer(
        &self,
        request: Request<'_>,
        keep_alive: bool,
        out: &mut Vec<u8>,
    ) -> impl Future<Output = Answer<Self::Begun<'_>>>;
    /// Appends the response to `out` once what has begun is over.
    fn poll_finish(
        &self,
        begun: &mut Self::Begun<'_>,
        out: &mut Vec<u8>,
        context: &mut Context<'_>,
    ) -> Poll<()>;
    /// What was answered until now is about to be written.
    fn handle_answered(&self);
    /// Appends the refusal of a request that never became whole. `origin`: of its head.
    fn refuse(&self, origin: Option<&str>, error: &HttpError, out: &mut Vec<u8>);
    fn connections(&self) -> &RefCell<Connections>;
}

#[derive(Debug, Clone, Copy)]
pub struct Times {
    pub request_timeout_ms: u64,
    pub keep_alive_ms: u64,
    pub linger_ms: u64,
}

impl From<&Settings> for Times {
    fn from(settings: &Settings) -> Self {
        Self {
            request_timeout_ms: settings.request_timeout_ms,
            keep_alive_ms: settings.keep_alive_ms,
            linger_ms: settings.linger_ms,
        }
    }
}

/// The open HTTP connections of a worker, with their deadlines.
#[derive(Debug, Default)]
pub struct Connections(Slab<Entry>);

#[derive(Debug)]
struct Entry {
    fd: RawFd,
    deadline_ms: u64,
    /// What ends at the deadline. A write that waits for its peer ends with both sides only.
    side: Side,
    /// A request is under way.
    is_busy: bool,
    is_late: bool,
}

impl Connections {
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// No request is under way.
    pub fn is_quiet(&self) -> bool {
        self.0.iter().all(|(_, entry)| !entry.is_busy)
    }

    /// The wall clock was set: deadlines stay as far away as they were.
    pub fn handle_clock_step(&mut self, step_ms: i64) {
        for (_, entry) in &mut self.0 {
            if entry.deadline_ms != u64::MAX {
                entry.deadline_ms = entry.deadline_ms.saturating_add_signed(step_ms);
            }
        }
    }

    /// Ends the reading side of those that are late, and their tasks answer 408; those that do not
    /// read what they are sent end altogether.
    pub fn handle_tick(&mut self, now_ms: u64) {
        for (_, entry) in &mut self.0 {
            if entry.deadline_ms <= now_ms {
                entry.is_late = true;
                entry.deadline_ms = u64::MAX;
                sys::shutdown(entry.fd, entry.side);
            }
        }
    }
}

/// Why a connection ends.
enum End {
    /// The peer ended it, or it broke.
    Peer,
    /// Its next request did not come (whole) in time.
    Late,
    /// The request is refused, and what follows it cannot be read.
    Refused(HttpError),
    /// The answer said so.
    Done,
}

/// Serves one connection to its end.
pub async fn serve<S: Service>(stream: TcpStream, service: &S) {
    let fd = stream.as_raw_fd();
    let side = Side::Read;
    let entry = Entry { fd, deadline_ms: u64::MAX, side, is_busy: false, is_late: false };
    let key = service.connections().borrow_mut().0.insert(entry);
    let mut connection = Connection {
        stream,
        service,
        key,
        input: Vec::new(),
        read_to: 0,
        read_at: Moment::now(),
        out: Vec::new(),
        due: VecDeque::new(),
    };
    connection.run().await;
    service.connections().borrow_mut().0.remove(key);
}

/// A response that is due after others.
enum Due<B> {
    Begun(B),
    Written(Vec<u8>),
}

struct Connection<'s, S: Service + 's> {
    stream: TcpStream,
    service: &'s S,
    key: usize,
    input: Vec<u8>,
    /// So much of `input` has been answered.
    read_to: usize,
    read_at: Moment,
    out: Vec<u8>,
    /// Responses to pipelined requests, in their order, behind `out`.
    due: VecDeque<Due<S::Begun<'s>>>,
}

impl<'s, S: Service> Connection<'s, S> {
    async fn run(&mut self) {
        let mut is_first = true;
        let end = loop {
            match self.next_request(is_first).await {
                Ok(true) => is_first = false,
                Ok(false) => break End::Done,
                Err(end) => break end,
            }
            if let Err(end) = self.write_if_full().await {
                break end;
            }
        };
        let error = match end {
            End::Peer => return,
            End::Done => None,
            End::Late if self.input.len() == self.read_to && !is_first => None,
            End::Late => {
                Some(HttpError { status: 408, msg: "the request did not come whole in time" })
            }
            End::Refused(error) => Some(error),
        };
        self.finish_due().await;
        if let Some(error) = error {
            let head = parse_head(&self.input[self.read_to..], self.service.limits());
            let origin = head.ok().flatten().and_then(|head| head.origin);
            self.service.refuse(origin, &error, &mut self.out);
        }
        if self.write().await.is_ok() {
            self.linger().await;
        }
    }

    /// Reads and answers one request. `Ok(false)`: it was the last.
    async fn next_request(&mut self, is_first: bool) -> Result<bool, End> {
        let times = self.service.times();
        let limits = self.service.limits();
        let mut is_continued = false;
        let mut chunks: Option<(Chunked, Vec<u8>)> = None;
        let mut is_begun = is_first;
        let mut patience_ms = if is_first { times.request_timeout_ms } else { times.keep_alive_ms };
        let mut deadline_ms = None;
        loop {
            // The head is read again whenever more of the body has come: it is short.
            let input = &self.input[self.read_to..];
            let head = parse_head(input, limits).map_err(End::Refused)?;
            if let Some(head) = &head {
                let keep_alive = head.keep_alive;
                let (body, end) = match head.body {
                    Body::None => (Some(&[][..]), head.head_len),
                    Body::Length(length) if length > limits.body_bytes as u64 => {
                        return Err(End::Refused(HttpError {
                            status: 413,
                            msg: "the body is too large",
                        }));
                    }
                    Body::Length(length) => {
                        let end = head.head_len + length as usize;
                        (input.get(head.head_len..end), end)
                    }
                    Body::Chunked => {
                        let (decoder, body) = chunks.get_or_insert_with(Default::default);
                        let fresh = &input[head.head_len..];
                        let decoded = decoder.decode(fresh, body, limits.body_bytes);
                        let (consumed, done) = decoded.map_err(End::Refused)?;
                        (done.then_some(&body[..]), head.head_len + consumed)
                    }
                };
                if let Some(body) = body {
                    set_busy(self.service, self.key, true);
                    let (read_at, connection) = (self.read_at, self.stream.as_raw_fd());
                    let request = Request { head, body, read_at, connection };
                    let mut later = Vec::new();
                    let out = if self.due.is_empty() { &mut self.out } else { &mut later };
                    let answer = self.service.answer(request, keep_alive, out).await;
                    self.read_to += end;
                    let keep_alive = answer.keep_alive;
                    self.take_answer(answer, later);
                    return Ok(keep_alive);
                }
                let head_len = head.head_len;
                if head.expect_continue && !std::mem::replace(&mut is_continued, true) {
                    self.finish_due().await;
                    self.out.extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
                }
                if chunks.is_some() {
                    // All of it is decoded; kept, tiny chunks would take twenty times their data.
                    let head_end = self.read_to + head_len;
                    self.input.truncate(head_end);
                }
            }
            if !is_begun && self.read_to < self.input.len() {
                is_begun = true;
                patience_ms = times.request_timeout_ms;
                deadline_ms = None;
            }
            self.finish_due().await;
            self.write().await?;
            self.set_busy(false);
            let deadline_ms = *deadline_ms.get_or_insert_with(|| sys::now_ms() + patience_ms);
            self.set_deadline(deadline_ms, Side::Read);
            self.read().await?;
        }
    }

    /// A request was answered, in `later` if others are due before it.
    fn take_answer(&mut self, answer: Answer<S::Begun<'s>>, later: Vec<u8>) {
        match answer.begun {
            Some(begun) => self.due.push_back(Due::Begun(begun)),
            None if self.due.is_empty() => {}
            None => self.due.push_back(Due::Written(later)),
        }
    }

    /// Writes the responses that wait for others, in order.
    async fn finish_due(&mut self) {
        poll_fn(|context| {
            while let Some(due) = self.due.front_mut() {
                match due {
                    Due::Begun(begun) => {
                        ready!(self.service.poll_finish(begun, &mut self.out, context));
                    }
                    Due::Written(bytes) => self.out.extend_from_slice(bytes),
                }
                self.due.pop_front();
            }
            Poll::Ready(())
        })
        .await;
    }

    async fn write_if_full(&mut self) -> Result<(), End> {
        if self.out.len() >= FLUSH_BYTES || self.due.len() >= MAX_DUE {
            self.finish_due().await;
            self.write().await?;
            self.read_at = Moment::now();
        }
        Ok(())
    }

    async fn read(&mut self) -> Result<(), End> {
        let mut input = std::mem::take(&mut self.input);
        input.drain(..std::mem::take(&mut self.read_to));
        // Also where the next request has begun: a large one does not leave its room behind.
        let needed = input.len().max(BUFFER_BYTES);
        if input.capacity() > 4 * needed || input.is_empty() {
            input.shrink_to(needed);
        }
        let used = input.len();
        input.reserve(if used == 0 { BUFFER_BYTES } else { used });
        let room = input.capacity();
        let (result, slice) = self.stream.read(input.slice_mut(used..room)).await;
        self.input = slice.into_inner();
        if self.input.len() == room && room < BULK_BYTES && matches!(result, Ok(1..)) {
            self.input.reserve(BULK_BYTES);
            // Whatever comes of this, the next read says it.
            let _ = sys::recv_spare(self.stream.as_raw_fd(), &mut self.input);
        }
        self.read_at = Moment::now();
        match result {
            Ok(0) | Err(_) if self.is_late() => Err(End::Late),
            Ok(0) | Err(_) => Err(End::Peer),
            Ok(_) => Ok(()),
        }
    }

    async fn write(&mut self) -> Result<(), End> {
        if self.out.is_empty() {
            return Ok(());
        }
        self.service.handle_answered();
        let deadline_ms = sys::now_ms() + self.service.times().request_timeout_ms;
        self.set_deadline(deadline_ms, Side::Both);
        let out = std::mem::take(&mut self.out);
        let (result, mut out) = self.stream.write_all(out).await;
        out.clear();
        out.shrink_to(BUFFER_BYTES);
        self.out = out;
        self.set_deadline(u64::MAX, Side::Read);
        result.map(drop).map_err(|_| End::Peer)
    }

    /// Ends the write side and reads until the peer has ended its own, so that the last answer
    /// arrives.
    async fn linger(&mut self) {
        sys::shutdown(self.stream.as_raw_fd(), Side::Write);
        self.set_deadline(sys::now_ms() + self.service.times().linger_ms, Side::Read);
        while !self.is_late() {
            self.input.clear();
            self.read_to = 0;
            if self.read().await.is_err() {
                return;
            }
        }
    }

    fn is_late(&self) -> bool {
        self.service.connections().borrow().0[self.key].is_late
    }

    fn set_busy(&self, is_busy: bool) {
        set_busy(self.service, self.key, is_busy);
    }

    fn set_deadline(&self, deadline_ms: u64, side: Side) {
        let entry = &mut self.service.connections().borrow_mut().0[self.key];
        (entry.deadline_ms, entry.side) = (deadline_ms, side);
    }
}

fn set_busy<S: Service>(service: &S, key: usize, is_busy: bool) {
    let entry = &mut service.connections().borrow_mut().0[key];
    entry.is_busy = is_busy;
    if is_busy {
        // The deadline was for the request to arrive. Its answer may take longer: a profile does.
        entry.deadline_ms = u64::MAX;
    }
}

/// Refuses a connection that there is no room for.
pub fn refuse_connection(fd: RawFd) {
    let mut out = Vec::new();
    let retry = [("Retry-After", "1")];
    write_refusal(&mut out, 503, false, &retry, "this node has too many HTTP connections");
    // Best effort: there is nothing to do for one that does not take it.
    let _ = sys::send(fd, &out);
    close(fd);
}
