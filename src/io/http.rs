//! HTTP/1.1 over a monoio stream: keep-alive, pipelining, bodies, and every limit of the contract.
//! The [`Service`] decides what the requests mean.

mod connections;

pub use connections::Connections;

use super::clock::{self, Moment};
use super::date::http_date;
use super::linger::close;
use super::pauses;
use super::sys::{self, Lend};
use crate::state::counters::Refusal;
use crate::state::settings::Times;
use crate::types::{Limits, MonotonicMs, Networks};
use crate::wire::chunked::Chunked;
use crate::wire::client_address::{self, Start, Via};
use crate::wire::http::{Body, Head, HttpError, TOO_LARGE, parse_head};
use crate::wire::response::write_refusal;
use connections::{Ending, Grant, Room};
use monoio::buf::IoBufMut;
use monoio::io::{AsyncReadRent, AsyncWriteRentExt};
use monoio::net::TcpStream;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::net::{IpAddr, Shutdown};
use std::os::fd::BorrowedFd;
use std::task::{Context, Poll, ready};

/// Size of a fresh read buffer, and the maximum that an idle connection keeps.
const BUFFER_BYTES: usize = 4 << 10;
/// Size of a further read from a connection that has sent more than that: pipelined requests.
const BULK_BYTES: usize = 16 << 10;
/// Answers to pipelined requests are written when they reach this size, or when no complete request
/// is left.
const FLUSH_BYTES: usize = 64 << 10;
/// The same for peers that have not signed a request: it bounds what a peer that does not read
/// makes a worker hold, and how long one connection keeps it busy before others have a turn.
const UNKNOWN_FLUSH_BYTES: usize = BUFFER_BYTES;

/// Pipelined requests that may be in progress at once.
const MAX_DUE: usize = 256;

/// A complete request.
pub struct Request<'a> {
    pub head: &'a Head<'a>,
    pub body: &'a [u8],
    /// When its last bytes were read.
    pub read_at: Moment,
    /// The connection that it came from.
    pub connection: BorrowedFd<'a>,
    /// How its client is found, which may be behind proxies.
    via: Via,
    head_bytes: &'a [u8],
}

impl Request<'_> {
    /// Returns the address of its client, if it is known.
    pub fn client_ip(&self, trusted_proxies: &Networks) -> Option<IpAddr> {
        self.via.client(self.head_bytes, trusted_proxies)
    }
}

/// Outcome of a request.
pub struct Answer<B> {
    /// Whether the connection may go on to the next request.
    pub keep_alive: bool,
    /// Whether the request proves knowledge of a secret.
    pub is_known: bool,
    /// The response waits for this; `None`: it has been written.
    pub pending: Option<B>,
}

/// Answers requests.
pub trait Service {
    /// A request that has begun and is answered when others have done their part.
    type Pending<'a>
    where
        Self: 'a;

    /// The limits and times in force now: a connection may wait for longer than they last.
    fn limits(&self) -> Limits;
    fn times(&self) -> Times;
    /// Calls `look` with the proxies that are believed when they name a client.
    fn with_trusted_proxies<R>(&self, look: impl FnOnce(&Networks) -> R) -> R {
        look(&Networks::NONE)
    }
    /// Maximum time that a connection without a known peer may wait for its next request.
    fn unknown_ms(&self) -> u64 {
        u64::MAX
    }
    /// Begins what the request asks for, and appends the response to `out` if it is known at once.
    /// `keep_alive`: what the client wants.
    fn answer(
        &self,
        request: Request<'_>,
        keep_alive: bool,
        out: &mut Vec<u8>,
    ) -> impl Future<Output = Answer<Self::Pending<'_>>>;
    /// Appends the response to `out` once the request that has begun is finished.
    fn poll_finish(
        &self,
        pending: &mut Self::Pending<'_>,
        out: &mut Vec<u8>,
        context: &mut Context<'_>,
    ) -> Poll<()>;
    /// Called when the answers up to now are about to be written.
    fn handle_answered(&self);
    /// Appends the refusal of a request that never became complete. `origin`: from its head; `ip`:
    /// the address of the client, or of its proxy.
    fn refuse(
        &self,
        origin: Option<&str>,
        ip: Option<IpAddr>,
        error: &HttpError,
        out: &mut Vec<u8>,
    );
    fn connections(&self) -> &RefCell<Connections>;
    fn count_refusal(&self, why: Refusal);
}

/// Why a connection ends.
enum End {
    /// The peer ended it, or it broke.
    Peer,
    /// Its next request did not arrive (completely) in time.
    Late,
    /// The request is refused, and what follows it cannot be read.
    Refused(HttpError),
    /// Another connection needs its place.
    Place,
    /// The same, but the peer did not read what it was sent.
    Unread,
    /// The answer ends the connection.
    Done,
}

const LATE: HttpError =
    HttpError { status: 408, msg: "the request was not complete within --request_timeout_ms" };
/// There is no memory for the request.
const NO_MEMORY: HttpError =
    HttpError { status: 503, msg: "this node has too many requests in progress: try again" };
/// There are too many connections to keep one that has sent no complete request.
const NO_PLACE: HttpError =
    HttpError { status: 503, msg: "this node has too many HTTP connections: try again" };

/// A connection that is listed in the [`Connections`] of its service.
#[must_use]
pub struct Admitted {
    stream: TcpStream,
    key: usize,
    peer: IpAddr,
}

/// Lists a connection, to be served. `peer`: its address.
pub fn admit(connections: &RefCell<Connections>, stream: TcpStream, peer: IpAddr) -> Admitted {
    // SAFETY: only `serve` takes the stream out of `Admitted`, and it removes the connection from
    // the table before it closes the stream. If its future is dropped before it ends, the thread's
    // runtime is ending, and nothing looks into the table any more.
    let key = unsafe { connections.borrow_mut().add(stream.lend()) };
    Admitted { stream, key, peer }
}

/// Serves one connection to its end.
pub async fn serve<S: Service>(admitted: Admitted, service: &S) {
    let Admitted { stream, key, peer } = admitted;
    let mut connection = Connection {
        stream,
        service,
        key,
        via: Via::Client(Some(peer)),
        first_deadline: None,
        input: Vec::new(),
        read_to: 0,
        read_at: Moment::read(),
        out: Vec::new(),
        due: VecDeque::new(),
    };
    connection.run().await;
    service.connections().borrow_mut().remove(key);
}

/// A response that is due after others.
enum Due<B> {
    Pending(B),
    Written(Vec<u8>),
}

struct Connection<'s, S: Service + 's> {
    stream: TcpStream,
    service: &'s S,
    key: usize,
    /// How the client is found; its peer's address until its first bytes were read.
    via: Via,
    /// The deadline of the first request, which began with the connection.
    first_deadline: Option<MonotonicMs>,
    input: Vec<u8>,
    /// Length of the part of `input` that has been answered.
    read_to: usize,
    read_at: Moment,
    out: Vec<u8>,
    /// Responses to pipelined requests, in order, to follow `out`.
    due: VecDeque<Due<S::Pending<'s>>>,
}

impl<'s, S: Service> Connection<'s, S> {
    async fn run(&mut self) {
        let mut is_first = true;
        let end = self.answer_all(&mut is_first).await;
        let error = match end {
            End::Peer => return,
            End::Unread => return self.service.count_refusal(Refusal::HttpUnread),
            End::Done => None,
            End::Place if self.is_idle() && !is_first => {
                return self.service.count_refusal(Refusal::HttpIdle);
            }
            End::Place => {
                self.service.count_refusal(Refusal::HttpHalf);
                Some(NO_PLACE)
            }
            End::Late if self.is_idle() && !is_first => None,
            End::Late => Some(LATE),
            End::Refused(error) => Some(error),
        };
        if error == Some(NO_MEMORY) {
            self.service.count_refusal(Refusal::HttpBodies);
        }
        let mut refusal = Vec::new();
        if let Some(error) = error {
            let head = parse_head(&self.input[self.read_to..], &self.service.limits());
            let origin = head.ok().flatten().and_then(|head| head.origin);
            self.service.refuse(origin, self.via.peer(), &error, &mut refusal);
        }
        // Others may wait for its memory, and its peer may take a long time.
        self.drop_input();
        self.finish_due().await;
        self.out.append(&mut refusal);
        if self.ending() == Some(Ending::Place) {
            // Needed at once: the rest that the socket does not take is not waited for.
            self.service.handle_answered();
            let _ = sys::send(self.stream.lend(), &self.out);
        } else if self.write().await.is_ok() {
            self.linger().await;
        }
    }

    /// Answers requests until the connection ends. `is_first`: none has been answered.
    async fn answer_all(&mut self, is_first: &mut bool) -> End {
        if let Err(end) = self.read_start().await {
            return end;
        }
        loop {
            match self.next_request(*is_first).await {
                Ok(true) => *is_first = false,
                Ok(false) => return End::Done,
                Err(end) => return end,
            }
            if let Err(end) = self.write_if_full().await {
                return end;
            }
        }
    }

    /// Reads the first bytes of the connection, until it is known who its client is: a proxy may
    /// put a header before the first request.
    async fn read_start(&mut self) -> Result<(), End> {
        let deadline = self.begin_wait(self.patience_ms(true), false);
        self.first_deadline = Some(deadline);
        loop {
            let max_bytes = self.service.limits().head_bytes;
            let start = self.service.with_trusted_proxies(|trusted| {
                client_address::start(&self.input, self.via.peer(), trusted, max_bytes)
            });
            if let Start::Request { via, skip } = start.map_err(End::Refused)? {
                (self.via, self.read_to) = (via, skip);
                return Ok(());
            }
            self.set_deadline(deadline, Shutdown::Read);
            let (end_of_body, chunk_bytes) = (0, 0);
            self.read(end_of_body, chunk_bytes).await?;
        }
    }

    /// Returns whether nothing of a next request has arrived.
    fn is_idle(&self) -> bool {
        self.input.len() == self.read_to
    }

    /// Reads and answers one request. Returns `Ok(false)` if it was the last.
    async fn next_request(&mut self, is_first: bool) -> Result<bool, End> {
        let mut is_continued = false;
        let mut chunks: Option<(Chunked, Vec<u8>)> = None;
        let mut is_begun = is_first;
        let mut patience_ms = self.patience_ms(is_first);
        // The end of the request's body in `input`, if known.
        let mut end_of_body = 0;
        let mut deadline = self.first_deadline.take();
        loop {
            // The head is parsed again whenever more of the body has arrived: it is short.
            let input = &self.input[self.read_to..];
            let (head, max_bytes) = next_head(self.service, input)?;
            if let Some(head) = &head {
                let keep_alive = head.keep_alive;
                let (body, end) = match head.body {
                    Body::None => (Some(&[][..]), head.head_len),
                    Body::Length(length) if length > max_bytes as u64 => {
                        return Err(End::Refused(TOO_LARGE));
                    }
                    Body::Length(length) => {
                        let end = head.head_len + length as usize;
                        end_of_body = end;
                        (input.get(head.head_len..end), end)
                    }
                    Body::Chunked => {
                        let fresh = &input[head.head_len..];
                        let chunks = chunks.get_or_insert_with(Default::default);
                        let (consumed, done) = self.decode(fresh, chunks).await?;
                        (done.then_some(&chunks.1[..]), head.head_len + consumed)
                    }
                };
                if let Some(body) = body {
                    self.service.connections().borrow_mut().set_busy(self.key);
                    let (read_at, connection) = (self.read_at, self.stream.lend());
                    let (via, head_bytes) = (self.via, &input[..head.head_len]);
                    let request = Request { head, body, read_at, connection, via, head_bytes };
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
                    // All of it is decoded; if it were kept, tiny chunks would take twenty times
                    // their data.
                    let head_end = self.read_to + head_len;
                    self.input.truncate(head_end);
                }
            }
            if !is_begun && self.read_to < self.input.len() {
                is_begun = true;
                patience_ms = self.service.times().request_timeout_ms;
                deadline = None;
            }
            self.finish_due().await;
            self.write().await?;
            let deadline = *deadline.get_or_insert_with(|| self.begin_wait(patience_ms, !is_begun));
            self.set_deadline(deadline, Shutdown::Read);
            let chunk_bytes = chunks.as_ref().map_or(0, |(_, body)| body.capacity());
            self.read(end_of_body, chunk_bytes).await?;
        }
    }

    /// Returns how long the connection may wait for its next request.
    fn patience_ms(&self, is_first: bool) -> u64 {
        let times = self.service.times();
        let ms = if is_first { times.request_timeout_ms } else { times.keep_alive_ms };
        let is_known = self.service.connections().borrow().is_known(self.key);
        if is_known { ms } else { ms.min(self.service.unknown_ms()) }
    }

    /// Marks the connection as waiting for its peer, and returns its deadline.
    fn begin_wait(&self, patience_ms: u64, is_idle: bool) -> MonotonicMs {
        self.service.connections().borrow_mut().set_waiting(self.key, is_idle);
        self.deadline_in(patience_ms)
    }

    /// Decodes what has arrived of a chunked body. Returns the number of bytes used and whether the
    /// body is complete.
    async fn decode(
        &self,
        fresh: &[u8],
        (decoder, body): &mut (Chunked, Vec<u8>),
    ) -> Result<(usize, bool), End> {
        let max_bytes = self.service.limits().body_bytes;
        if body.capacity() < body.len() + fresh.len() {
            let more = fresh.len().max(body.len().min(max_bytes - body.len()));
            let buffers = self.input.capacity() + body.len() + more;
            ask(self.service, self.key, buffers).await?;
            body.reserve_exact(more);
        }
        decoder.decode(fresh, body, max_bytes).map_err(End::Refused)
    }

    /// Takes the answer to a request; its response is in `later` if others are due before it.
    fn take_answer(&mut self, answer: Answer<S::Pending<'s>>, later: Vec<u8>) {
        if answer.is_known {
            self.service.connections().borrow_mut().set_known(self.key);
        }
        match answer.pending {
            Some(pending) => self.due.push_back(Due::Pending(pending)),
            None if self.due.is_empty() => {}
            None => self.due.push_back(Due::Written(later)),
        }
    }

    /// Writes the responses that wait for others, in order.
    async fn finish_due(&mut self) {
        poll_fn(|context| {
            while let Some(due) = self.due.front_mut() {
                match due {
                    Due::Pending(pending) => {
                        ready!(self.service.poll_finish(pending, &mut self.out, context));
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
        let length = self.out.len();
        let is_full = length >= FLUSH_BYTES
            || length >= UNKNOWN_FLUSH_BYTES
                && !self.service.connections().borrow().is_known(self.key);
        if is_full || self.due.len() >= MAX_DUE {
            self.finish_due().await;
            self.write().await?;
            self.read_at = Moment::read();
        }
        Ok(())
    }

    /// Reads more. `end_of_body`: the end of the request's body within the unanswered input, if
    /// known; `chunk_bytes`: memory allocated elsewhere for its body.
    async fn read(&mut self, end_of_body: usize, chunk_bytes: usize) -> Result<(), End> {
        let mut input = std::mem::take(&mut self.input);
        input.drain(..std::mem::take(&mut self.read_to));
        // Shrink also if the next request has begun, so that a large one does not leave its buffer
        // behind.
        let needed = input.len().max(BUFFER_BYTES);
        if input.capacity() > 4 * needed || input.is_empty() {
            input.shrink_to(needed);
        }
        let used = input.len();
        // Double the buffer, but do not grow it much beyond what the request will need.
        let more = match used {
            0 => BUFFER_BYTES,
            _ if end_of_body > used => used.min((end_of_body - used).max(BUFFER_BYTES)),
            _ => used,
        };
        let room = input.capacity().max(used + more);
        self.input = input;
        ask(self.service, self.key, room + chunk_bytes).await?;
        let mut input = std::mem::take(&mut self.input);
        input.reserve_exact(room - used);
        let room = input.capacity();
        let (result, slice) = self.stream.read(input.slice_mut(used..room)).await;
        self.input = slice.into_inner();
        if self.input.len() == room && room < BULK_BYTES && matches!(result, Ok(1..)) {
            let buffers = room + BULK_BYTES + chunk_bytes;
            let connections = self.service.connections();
            if connections.borrow_mut().ask_for_spare(self.key, buffers) {
                self.input.reserve_exact(BULK_BYTES);
                // Whatever the result, the next read reports it.
                let _ = sys::recv_spare(self.stream.lend(), &mut self.input);
            }
        }
        pauses::take_turn(pauses::READ).await;
        self.read_at = Moment::read();
        match result {
            Ok(0) | Err(_) if self.has_come_last() => Ok(()),
            Ok(0) | Err(_) => Err(end_of(self.ending())),
            Ok(_) => Ok(()),
        }
    }

    /// Returns whether a request came to an idle connection while a drain was about to close it.
    fn has_come_last(&mut self) -> bool {
        if self.ending() != Some(Ending::Drained) {
            return false;
        }
        let has_come = sys::recv_spare(self.stream.lend(), &mut self.input).is_ok_and(|it| it > 0);
        if has_come {
            self.service.connections().borrow_mut().revive(self.key);
        }
        has_come
    }

    async fn write(&mut self) -> Result<(), End> {
        if self.out.is_empty() {
            return Ok(());
        }
        self.service.handle_answered();
        let times = self.service.times();
        let is_draining = self.service.connections().borrow().is_draining();
        let patience_ms = if is_draining { times.linger_ms } else { times.request_timeout_ms };
        let deadline = self.deadline_in(patience_ms.min(times.request_timeout_ms));
        self.service.connections().borrow_mut().set_writing(self.key, deadline);
        let out = std::mem::take(&mut self.out);
        let (result, mut out) = self.stream.write_all(out).await;
        out.clear();
        out.shrink_to(BUFFER_BYTES);
        self.out = out;
        self.service.connections().borrow_mut().set_written(self.key);
        result.map(drop).map_err(|_| match self.ending() {
            Some(Ending::Place) => End::Unread,
            _ => End::Peer,
        })
    }

    /// Shuts down the write side and reads until the peer has ended its own, so that the last
    /// answer arrives.
    async fn linger(&mut self) {
        sys::shutdown(self.stream.lend(), Shutdown::Write);
        self.service.connections().borrow_mut().set_waiting(self.key, false);
        let deadline = self.deadline_in(self.service.times().linger_ms);
        self.set_deadline(deadline, Shutdown::Read);
        while !matches!(self.ending(), Some(Ending::Late | Ending::Place | Ending::Drained)) {
            self.input.clear();
            self.read_to = 0;
            let (end_of_body, chunk_bytes) = (0, 0);
            if self.read(end_of_body, chunk_bytes).await.is_err() {
                return;
            }
        }
    }

    fn drop_input(&mut self) {
        (self.input, self.read_to) = (Vec::new(), 0);
        self.service.connections().borrow_mut().release(self.key);
    }

    fn ending(&self) -> Option<Ending> {
        self.service.connections().borrow().ending(self.key)
    }

    /// Returns the deadline after `ms`, by [`Connections::awake_at`].
    fn deadline_in(&self, ms: u64) -> MonotonicMs {
        self.service.connections().borrow().awake_at(clock::monotonic()) + ms
    }

    fn set_deadline(&self, deadline: MonotonicMs, side: Shutdown) {
        self.service.connections().borrow_mut().set_deadline(self.key, deadline, side);
    }
}

/// Parses the head of a request, if it has arrived. Returns it with the maximum size of its body.
fn next_head<'i, S: Service>(
    service: &S,
    input: &'i [u8],
) -> Result<(Option<Head<'i>>, usize), End> {
    let limits = service.limits();
    let head = parse_head(input, &limits).map_err(End::Refused)?;
    Ok((head, limits.body_bytes))
}

/// Waits until the buffers of a request may have this size together.
async fn ask<S: Service>(service: &S, key: usize, buffers: usize) -> Result<(), End> {
    let connections = service.connections();
    let mut grant = connections.borrow_mut().ask(key, buffers);
    if grant == Grant::Wait {
        let freed = connections.borrow().freed();
        let may_go_on = || {
            grant = connections.borrow_mut().ask(key, buffers);
            grant != Grant::Wait
        };
        freed.wait_until(may_go_on).await;
    }
    match grant {
        Grant::Granted => Ok(()),
        _ => Err(end_of(connections.borrow().ending(key))),
    }
}

fn end_of(ending: Option<Ending>) -> End {
    match ending {
        None => End::Peer,
        Some(Ending::Late) => End::Late,
        Some(Ending::Place) => End::Place,
        Some(Ending::Memory) => End::Refused(NO_MEMORY),
        Some(Ending::Drained) => End::Done,
    }
}

/// Returns whether one more connection fits below `max`, once those that make way for it have left.
pub async fn make_room(connections: &RefCell<Connections>, max: usize) -> bool {
    let left = connections.borrow().left();
    let mut room = Room::Soon;
    let is_known = || {
        room = connections.borrow_mut().make_room(max);
        room != Room::Soon
    };
    left.wait_until(is_known).await;
    room == Room::Now
}

/// Refuses a connection for which there is no room.
pub fn refuse_connection(stream: TcpStream) {
    let socket = sys::take_socket(stream);
    let mut out = Vec::new();
    let retry = [("Retry-After", "1")];
    let date = http_date(clock::wall());
    write_refusal(&mut out, NO_PLACE.status, false, date, &retry, NO_PLACE.msg);
    // Best effort: there is nothing to do for a peer that does not take it.
    let _ = sys::send(&socket, &out);
    close(socket);
}
