//! `bench bare-push`: a push server that does nothing but its system calls, with and without Redis.
//! Compare the server's cost of a push through Redis, and without, with these two figures.
//!
//! It accepts what `loadtest unicast` sends for one user: nothing is verified or selected, every
//! push goes to the WebSocket opened last. Everything that one wait finds ready leaves together:
//! one PUBLISH, one send per connection.

use std::collections::VecDeque;
use std::io::{self, Error, Write};
use std::mem::take;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;

use argh::FromArgs;
use ws_cluster::wire::date::HttpDate;
use ws_cluster::wire::resp::write_command;
use ws_cluster::wire::response::write_response;
use ws_cluster::wire::upgrade::{Key, accept_key, write_switching};
use ws_cluster::wire::websocket::write_text;

use crate::sys;

/// Serves pushes to one user until it is ended, with nothing but system calls.
#[derive(FromArgs)]
#[argh(subcommand, name = "bare-push")]
pub struct Args {
    /// the port of WebSockets on 127.0.0.1
    #[argh(option)]
    ws_port: u16,
    /// the port of pushes on 127.0.0.1
    #[argh(option)]
    http_port: u16,
    /// host:port of a Redis that every push goes through, and whose answer the pusher waits for
    #[argh(option)]
    redis: Option<String>,
}

const WS_LISTENER: u64 = u64::MAX;
const HTTP_LISTENER: u64 = u64::MAX - 1;
const PUBLISHER: u64 = u64::MAX - 2;
const SUBSCRIBER: u64 = u64::MAX - 3;

const READ_BYTES: usize = 128 << 10;
const CHANNEL: &[u8] = b"c";
/// Redis's answer to a PUBLISH that one link received.
const PUBLISHED: &[u8] = b":1\r\n";
/// The beginning of a message on the channel, up to its length.
const MESSAGE: &[u8] = b"*3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$";
const WELCOME: &[u8] = br#"{"type":"connect","code":1,"msg":"success","client_id":"1","node":1}"#;
const PUSH: &[u8] = br#"{"type":"push","id":"1234567890123456789","#;
const ANSWER: &[u8] = br#"{"code":1,"msg":"success","id":"1234567890123456789"}"#;

pub fn run(args: &Args) -> io::Result<()> {
    let listen = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port));
    let (ws, http) = (listen(args.ws_port)?, listen(args.http_port)?);
    let epoll = sys::Epoll::new()?;
    epoll.add(ws.as_raw_fd(), WS_LISTENER)?;
    epoll.add(http.as_raw_fd(), HTTP_LISTENER)?;
    let mut server = Server::default();
    // Every date has the same length.
    let date = HttpDate::at(0);
    write_response(&mut server.answer, 200, true, date, &[], "application/json", ANSWER);
    if let Some(redis) = &args.redis {
        let links = Links::open(redis)?;
        epoll.add(links.publisher.stream.as_raw_fd(), PUBLISHER)?;
        epoll.add(links.subscriber.stream.as_raw_fd(), SUBSCRIBER)?;
        server.links = Some(links);
    }
    let mut events = sys::Epoll::events(64);
    let mut buffer = vec![0; READ_BYTES];
    loop {
        for token in epoll.wait(&mut events, false)? {
            match token {
                WS_LISTENER => server.open(ws.accept()?, true, &epoll)?,
                HTTP_LISTENER => server.open(http.accept()?, false, &epoll)?,
                PUBLISHER => server.read_answers(&mut buffer)?,
                SUBSCRIBER => server.read_messages(&mut buffer)?,
                index => server.read_connection(index as usize, &mut buffer)?,
            }
        }
        server.flush()?;
    }
}

#[derive(Default)]
struct Server {
    /// Removed when they end.
    connections: Vec<Option<Connection>>,
    /// The response to every push.
    answer: Vec<u8>,
    /// The connection that all pushes go to.
    user: Option<usize>,
    links: Option<Links>,
    /// Where the body of a push and its `data` begin, and its end: all requests have the same
    /// layout.
    shape: Option<Shape>,
    /// The frames of the pushes to publish, and their senders.
    frames: Vec<u8>,
    pushers: Vec<usize>,
}

impl Server {
    fn open(
        &mut self,
        (stream, _): (TcpStream, SocketAddr),
        is_ws: bool,
        epoll: &sys::Epoll,
    ) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let index = self.connections.len();
        epoll.add(stream.as_raw_fd(), index as u64)?;
        self.connections.push(Some(Connection { is_ws, ..Connection::new(stream) }));
        Ok(())
    }

    fn read_connection(&mut self, index: usize, buffer: &mut [u8]) -> io::Result<()> {
        let Some(connection) = &mut self.connections[index] else { return Ok(()) };
        let Some(count) = connection.read(buffer)? else {
            // Closing a descriptor ends its watch.
            self.connections[index] = None;
            return Ok(());
        };
        if connection.is_ws {
            if self.user != Some(index) && connection.shake_hands(&buffer[..count]) {
                self.user = Some(index);
            }
            return Ok(());
        }
        let mut whole = take(&mut connection.rest);
        let mut bytes = &buffer[..count];
        if !whole.is_empty() {
            whole.extend_from_slice(bytes);
            bytes = &whole;
        }
        while let Some(shape) = self.shape_of(bytes) {
            self.take_request(index, &bytes[..shape.end], &shape);
            bytes = &bytes[shape.end..];
        }
        if let Some(connection) = &mut self.connections[index] {
            connection.rest.extend_from_slice(bytes);
        }
        Ok(())
    }

    /// Returns the shape of the request at the beginning, if it is complete.
    fn shape_of(&mut self, bytes: &[u8]) -> Option<Shape> {
        let is_same = |shape: &&Shape| {
            bytes.get(shape.body - 4..shape.body) == Some(b"\r\n\r\n")
                && bytes.get(shape.data..shape.data + 7) == Some(b"\"data\":")
                && bytes.get(shape.end - 1) == Some(&b'}')
        };
        if let Some(shape) = self.shape.as_ref().filter(is_same) {
            return Some(*shape);
        }
        let shape = Shape::of(bytes)?;
        if shape.data > 0 {
            self.shape = Some(shape);
        }
        Some(shape)
    }

    fn take_request(&mut self, index: usize, request: &[u8], shape: &Shape) {
        // A request without data asks whether this server is ready.
        if shape.data == 0 {
            return self.answer(index);
        }
        let out = match (&self.links, self.user.and_then(|user| self.connections[user].as_mut())) {
            (None, Some(user)) => &mut user.out,
            _ => &mut self.frames,
        };
        write_text(out, |out| {
            out.extend_from_slice(PUSH);
            out.extend_from_slice(&request[shape.data..]);
        });
        match self.links {
            None => self.answer(index),
            Some(_) => self.pushers.push(index),
        }
    }

    fn answer(&mut self, index: usize) {
        if let Some(connection) = &mut self.connections[index] {
            connection.out.extend_from_slice(&self.answer);
        }
    }

    fn read_answers(&mut self, buffer: &mut [u8]) -> io::Result<()> {
        let Some(links) = &mut self.links else { return Ok(()) };
        let bytes = links.publisher.read_all(buffer)?;
        let count = bytes.len() / PUBLISHED.len();
        for answer in bytes.chunks_exact(PUBLISHED.len()) {
            if answer != PUBLISHED {
                return Err(Error::other("Redis did not reply :1"));
            }
            for index in links.published.pop_front().unwrap_or_default() {
                if let Some(connection) = &mut self.connections[index] {
                    connection.out.extend_from_slice(&self.answer);
                }
            }
        }
        links.publisher.rest = bytes[count * PUBLISHED.len()..].to_vec();
        Ok(())
    }

    fn read_messages(&mut self, buffer: &mut [u8]) -> io::Result<()> {
        let Some(links) = &mut self.links else { return Ok(()) };
        let bytes = links.subscriber.read_all(buffer)?;
        let mut at = 0;
        while let Some((frames, end)) = message(&bytes[at..]) {
            if let Some(user) = self.user.and_then(|user| self.connections[user].as_mut()) {
                user.out.extend_from_slice(frames);
            }
            at += end;
        }
        links.subscriber.rest = bytes[at..].to_vec();
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        if let Some(links) = &mut self.links
            && !self.pushers.is_empty()
        {
            write_command(&mut links.publisher.out, &[b"PUBLISH", CHANNEL, &self.frames]);
            links.published.push_back(take(&mut self.pushers));
            self.frames.clear();
            links.publisher.flush()?;
        }
        self.connections.iter_mut().flatten().try_for_each(Connection::flush)
    }
}

/// Offsets in a request: of the body, of `"data":` in it (0: there is none), of the end.
#[derive(Clone, Copy)]
struct Shape {
    body: usize,
    data: usize,
    end: usize,
}

impl Shape {
    fn of(bytes: &[u8]) -> Option<Self> {
        let body = find(bytes, b"\r\n\r\n")? + 4;
        let head = std::str::from_utf8(&bytes[..body]).ok()?;
        let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
        let end = body + length.map_or(Some(0), |length| length.parse().ok())?;
        let data = find(bytes.get(body..end)?, b"\"data\":").map_or(0, |data| body + data);
        Some(Self { body, data, end })
    }
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

/// Returns what was published, and where its message ends.
fn message(bytes: &[u8]) -> Option<(&[u8], usize)> {
    let rest = bytes.strip_prefix(MESSAGE)?;
    let digits = rest.iter().position(|&byte| byte == b'\r')?;
    let length: usize = std::str::from_utf8(&rest[..digits]).ok()?.parse().ok()?;
    let begin = MESSAGE.len() + digits + 2;
    let end = begin + length + 2;
    (bytes.len() >= end).then(|| (&bytes[begin..begin + length], end))
}

struct Links {
    publisher: Connection,
    subscriber: Connection,
    /// Those that wait for answers, by PUBLISH.
    published: VecDeque<Vec<usize>>,
}

impl Links {
    fn open(address: &str) -> io::Result<Self> {
        let connect = || -> io::Result<Connection> {
            let stream = TcpStream::connect(address)?;
            stream.set_nodelay(true)?;
            Ok(Connection::new(stream))
        };
        let (publisher, mut subscriber) = (connect()?, connect()?);
        let mut command = Vec::new();
        write_command(&mut command, &[b"SUBSCRIBE", CHANNEL]);
        subscriber.stream.write_all(&command)?;
        let mut confirmed = vec![0; b"*3\r\n$9\r\nsubscribe\r\n$1\r\nc\r\n:1\r\n".len()];
        io::Read::read_exact(&mut subscriber.stream, &mut confirmed)?;
        Ok(Self { publisher, subscriber, published: VecDeque::new() })
    }
}

struct Connection {
    stream: TcpStream,
    is_ws: bool,
    /// Bytes read that are still incomplete.
    rest: Vec<u8>,
    out: Vec<u8>,
}

impl Connection {
    fn new(stream: TcpStream) -> Self {
        Self { stream, is_ws: false, rest: Vec::new(), out: Vec::new() }
    }

    /// Returns the number of bytes read; `None` if the connection has ended.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        match sys::receive_now(self.stream.as_raw_fd(), buffer) {
            Ok(count) => Ok((count > 0).then_some(count)),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Returns the bytes read, after those left over from the last time.
    fn read_all(&mut self, buffer: &mut [u8]) -> io::Result<Vec<u8>> {
        let count = self.read(buffer)?.ok_or_else(|| Error::other("Redis closed a link"))?;
        let mut bytes = take(&mut self.rest);
        bytes.extend_from_slice(&buffer[..count]);
        Ok(bytes)
    }

    /// Answers the opening handshake and sends the welcome; returns false while it is incomplete.
    fn shake_hands(&mut self, bytes: &[u8]) -> bool {
        self.rest.extend_from_slice(bytes);
        let head = String::from_utf8_lossy(&self.rest);
        if !head.ends_with("\r\n\r\n") {
            return false;
        }
        let is_key = |line: &&str| line.to_ascii_lowercase().starts_with("sec-websocket-key:");
        let key = head.lines().find(is_key).and_then(|line| Key::parse(line[18..].trim()));
        let Some(key) = key else { return false };
        write_switching(&mut self.out, &accept_key(key), HttpDate::at(0), false);
        write_text(&mut self.out, |out| out.extend_from_slice(WELCOME));
        true
    }

    fn flush(&mut self) -> io::Result<()> {
        let mut sent = 0;
        while sent < self.out.len() {
            match sys::send_now(self.stream.as_raw_fd(), &self.out[sent..]) {
                Ok(count) => sent += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    sys::await_writable(self.stream.as_raw_fd())?;
                }
                // The next read returns its end.
                Err(_) => break,
            }
        }
        self.out.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_cut_at_every_byte() {
        let bytes = b"POST /ws/push HTTP/1.1\r\nContent-Length: 20\r\n\r\n{\"uids\":[],\"data\":1}";
        for cut in 0..bytes.len() {
            assert!(Shape::of(&bytes[..cut]).is_none(), "cut at {cut}");
        }
        let more = [&bytes[..], b"POST"].concat();
        let shape = Shape::of(&more).unwrap();
        assert_eq!(&more[shape.data..shape.end], b"\"data\":1}");
        let mut server = Server::default();
        assert_eq!(server.shape_of(&more).unwrap().end, bytes.len());
        assert_eq!(server.shape_of(&more).unwrap().data, shape.data);
        assert!(server.shape_of(&bytes[..bytes.len() - 1]).is_none());
    }

    #[test]
    fn a_message_cut_at_every_byte() {
        let bytes = b"*3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$12\r\nhello\r\nhello\r\n";
        for cut in 0..bytes.len() {
            assert!(message(&bytes[..cut]).is_none(), "cut at {cut}");
        }
        let more = [&bytes[..], b"*3"].concat();
        assert_eq!(message(&more), Some((&b"hello\r\nhello"[..], bytes.len())));
    }
}
