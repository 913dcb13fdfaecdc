//! The tasks that serve a link: bytes from Redis to the broker, and back.

use super::{Driver, Host};
use crate::io::broker::connect::Stream;
use crate::io::pauses;
use crate::io::sync::yield_now;
use crate::io::sys::{self, Lend};
use crate::state::broker::{LinkError, LinkName};
use monoio::buf::{IoBuf, IoBufMut};
use monoio::io::{AsyncReadRent, AsyncWriteRent, Split, Splitable};
use std::future::poll_fn;
use std::io;
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::rc::Rc;

/// Maximum size of one read; a longer message makes the buffer grow until it has arrived
/// completely.
const READ_BYTES: usize = 128 << 10;
/// Maximum size of one write.
const WRITE_BYTES: usize = 256 << 10;

/// Shuts down both directions of a connection that tasks wait on, so that their reads and writes
/// return.
pub(super) struct Closer(OwnedFd);

impl Drop for Closer {
    fn drop(&mut self) {
        sys::shutdown(&self.0, Shutdown::Both);
    }
}

impl<H: Host> Driver<H> {
    /// Starts the tasks. Each calls [`Driver::handle_task_end`] when it ends.
    pub(super) fn serve(self: &Rc<Self>, link: LinkName, stream: Stream) -> io::Result<Closer> {
        match stream {
            Stream::Tcp(stream) => start(self, link, stream),
            Stream::Unix(stream) => start(self, link, stream),
        }
    }
}

fn start<H, S>(driver: &Rc<Driver<H>>, link: LinkName, stream: S) -> io::Result<Closer>
where
    H: Host,
    S: Split + AsyncReadRent + AsyncWriteRent + Lend + 'static,
{
    // What a lost link has not sent is sent again on the next one and must not arrive after that.
    sys::set_reset_on_close(stream.lend());
    // Progress of bytes that the kernel holds is not visible.
    sys::bound_unsent(stream.lend(), WRITE_BYTES);
    let closer = stream.lend().try_clone_to_owned()?;
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

/// Passes what Redis sends to the broker, until the link ends.
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
/// Before each write, tasks that are ready have a turn, and so do those that its completions make
/// ready: what they publish goes along. A write costs as much as several pushes, and wakes Redis.
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

/// Writes all of it. Anything that takes more than one write is large and the socket is full, so
/// each further write shows that Redis reads.
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
