//! Connections to Redis: opened, and their bytes brought to the broker and back.

use super::pauses;
use super::queue::{Driver, Host};
use super::sys::{self, Side};
use super::threads;
use super::wake::{sleep, timeout, yield_now};
use crate::state::broker::{LinkError, LinkName};
use crate::wire::redis_url::{Endpoint, RedisUrl};
use monoio::buf::{IoBuf, IoBufMut};
use monoio::io::{AsyncReadRent, AsyncWriteRent, Split, Splitable};
use monoio::net::{TcpStream, UnixStream};
use std::future::poll_fn;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;
use std::sync::mpsc;
use std::time::Duration;

const CONNECT_TIMEOUT: Duration = Duration::from_millis(1_000);
/// What one read takes at most; a longer message makes the buffer grow until it has come whole.
const READ_BYTES: usize = 128 << 10;
/// What one write offers at most.
const WRITE_BYTES: usize = 256 << 10;

/// Ends both directions of a connection that tasks wait on: their reads and writes return.
pub(super) struct Closer(OwnedFd);

impl Drop for Closer {
    fn drop(&mut self) {
        sys::shutdown(sys::number(&self.0), Side::Both);
    }
}

/// Connects to Redis and starts the tasks that serve the link. Each tells
/// [`Driver::handle_task_end`] when it ends.
pub(super) async fn open<H: Host>(
    driver: &Rc<Driver<H>>,
    link: LinkName,
    url: &RedisUrl,
) -> Result<Closer, LinkError> {
    match &url.endpoint {
        Endpoint::Unix { path } => {
            let stream = in_time(UnixStream::connect(path)).await;
            let stream = stream.map_err(|error| explain(url, &error))?;
            start(driver, link, stream, url)
        }
        Endpoint::Tcp { host, port } => {
            let addresses = resolve(host, *port).await.map_err(|error| explain(url, &error))?;
            let mut last_error = io::Error::new(io::ErrorKind::NotFound, "no address");
            for address in addresses {
                match in_time(TcpStream::connect_addr(address)).await {
                    Ok(stream) => {
                        let nodelay = stream.set_nodelay(true);
                        nodelay.map_err(|error| explain(url, &error))?;
                        return start(driver, link, stream, url);
                    }
                    Err(error) => last_error = error,
                }
            }
            Err(explain(url, &last_error))
        }
    }
}

async fn in_time<S>(connect: impl Future<Output = io::Result<S>>) -> io::Result<S> {
    let timed_out = || io::Error::from(io::ErrorKind::TimedOut);
    timeout(CONNECT_TIMEOUT, connect).await.ok_or_else(timed_out)?
}

fn explain(url: &RedisUrl, error: &io::Error) -> LinkError {
    LinkError::Io(format!("cannot connect to {url}: {error}"))
}

/// Looks a host up on a thread of its own: the system's resolver blocks.
async fn resolve(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    if let Ok(address) = host.parse() {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    let (sender, receiver) = mpsc::channel();
    let host = host.to_owned();
    threads::spawn("resolve", move || {
        let found = (&*host, port).to_socket_addrs().map(|found| found.collect::<Vec<_>>());
        // Nobody listens any more where it took too long.
        let _ = sender.send(found);
    })?;
    for _ in 0..20 {
        match receiver.try_recv() {
            Ok(found) => return found,
            Err(mpsc::TryRecvError::Empty) => sleep(Duration::from_millis(50)).await,
            Err(mpsc::TryRecvError::Disconnected) => break,
        }
    }
    Err(io::Error::new(io::ErrorKind::TimedOut, "its name is not resolved"))
}

fn start<H, S>(
    driver: &Rc<Driver<H>>,
    link: LinkName,
    stream: S,
    url: &RedisUrl,
) -> Result<Closer, LinkError>
where
    H: Host,
    S: Split + AsyncReadRent + AsyncWriteRent + AsRawFd + 'static,
{
    // What a lost link has not sent is sent again on the next one, and shall not come after that.
    sys::set_reset_on_close(stream.as_raw_fd());
    // What the kernel holds is not seen to move.
    sys::bound_unsent(stream.as_raw_fd(), WRITE_BYTES);
    let closer = sys::duplicate(stream.as_raw_fd()).map_err(|error| explain(url, &error))?;
    let (reader, writer) = stream.into_split();
    let reading = Rc::clone(driver);
    pauses::spawn(async move {
        let result = read_all(&reading, link, reader).await;
        reading.handle_task_end(result);
    });
    let writing = Rc::clone(driver);
    pauses::spawn(async move {
        let result = write_all(&writing, link, writer).await;
        writing.handle_task_end(result);
    });
    Ok(Closer(closer))
}

/// Brings what Redis sends to the broker, until the link ends.
async fn read_all<H: Host>(
    driver: &Driver<H>,
    link: LinkName,
    mut reader: impl AsyncReadRent,
) -> Result<(), LinkError> {
    let mut buffer: Vec<u8> = Vec::new();
    loop {
        let used = buffer.len();
        if used == 0 {
            buffer.shrink_to(READ_BYTES);
        }
        buffer.reserve(READ_BYTES.max(used).saturating_sub(used));
        if buffer.capacity() - used < READ_BYTES / 8 {
            buffer.reserve(READ_BYTES);
        }
        let room = buffer.capacity();
        let (result, slice) = reader.read(buffer.slice_mut(used..room)).await;
        buffer = slice.into_inner();
        match result {
            Ok(0) => return Err(LinkError::Closed),
            Ok(bytes) => driver.counters().received_bytes.add(bytes as u64),
            Err(error) => return Err(LinkError::Io(error.to_string())),
        }
        let mut at = 0;
        loop {
            let handled = driver.handle_bytes(link, &buffer[at..])?;
            at += handled.bytes;
            if !handled.is_paused {
                break;
            }
            driver.host().wait_for_room().await;
        }
        buffer.drain(..at);
    }
}

/// Writes what the broker has for Redis, until the link ends.
///
/// Before each write those who are ready have a turn, and those whom its completions make ready:
/// what they publish goes along. A write costs as much as several pushes, and wakes Redis.
async fn write_all<H: Host>(
    driver: &Driver<H>,
    link: LinkName,
    mut writer: impl AsyncWriteRent,
) -> Result<(), LinkError> {
    let mut bytes = Vec::new();
    loop {
        bytes.clear();
        bytes.shrink_to(2 * WRITE_BYTES);
        yield_now().await;
        yield_now().await;
        if driver.is_ending() {
            return Ok(());
        }
        driver.take_outgoing(link, &mut bytes, WRITE_BYTES);
        if bytes.is_empty() {
            if link == LinkName::Publish {
                driver.stay_awake().await;
            }
            poll_fn(|context| driver.outgoing(link).poll(context)).await;
            continue;
        }
        bytes = write_whole(driver, link, &mut writer, bytes).await?;
    }
}

/// Writes all of it. What takes more than one write is large, and the socket full: each that
/// follows says that Redis reads.
async fn write_whole<H: Host>(
    driver: &Driver<H>,
    link: LinkName,
    writer: &mut impl AsyncWriteRent,
    bytes: Vec<u8>,
) -> Result<Vec<u8>, LinkError> {
    let mut rest = bytes.slice(..);
    loop {
        let (result, slice) = writer.write(rest).await;
        let written = match result {
            Ok(0) => return Err(LinkError::Closed),
            Ok(written) => written,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(error) => return Err(LinkError::Io(error.to_string())),
        };
        driver.counters().sent_bytes.add(written as u64);
        let (begin, end) = (slice.begin() + written, slice.end());
        let bytes = slice.into_inner();
        if begin == end {
            return Ok(bytes);
        }
        if written > 0 {
            driver.handle_written(link);
        }
        rest = bytes.slice(begin..end);
    }
}
