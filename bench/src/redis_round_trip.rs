//! `bench redis-round-trip`: a message published to Redis and read back, with nothing in between
//! but blocking system calls. Compare what a cluster adds to a push with this.

use std::io::{self, Error, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use argh::FromArgs;

use crate::sys;

/// PUBLISHes, waits for the answer and for the message on a second, subscribed connection, and
/// begins again; prints the time from the write to the message.
#[derive(FromArgs)]
#[argh(subcommand, name = "redis-round-trip")]
pub struct Args {
    /// where Redis listens, host:port (default 127.0.0.1:6379)
    #[argh(option, default = "\"127.0.0.1:6379\".to_owned()")]
    redis: String,
    /// the path of its Unix socket, instead of --redis
    #[argh(option)]
    unix: Option<String>,
    /// one RESP3 connection both publishes and is subscribed
    #[argh(switch)]
    resp3: bool,
    /// bytes of a message (default 128)
    #[argh(option, default = "128")]
    bytes: usize,
    /// round trips a second (default: the next begins where the last ended)
    #[argh(option)]
    rate: Option<f64>,
    /// how long to measure (default 3)
    #[argh(option, default = "3.0")]
    seconds: f64,
    /// the core to run on (default: not pinned)
    #[argh(option)]
    core: Option<usize>,
    /// print one line of JSON
    #[argh(switch)]
    json: bool,
}

/// Length of the number, in hex, at the beginning of a message.
const NUMBER_LEN: usize = 16;
const WARMUP: Duration = Duration::from_millis(200);
const TIMEOUT: Duration = Duration::from_secs(5);
/// This program requests no longer item.
const MAX_ITEM: usize = 64 << 20;

pub fn run(args: &Args) -> io::Result<()> {
    if !(NUMBER_LEN..=1 << 20).contains(&args.bytes) {
        return Err(invalid(&format!("--bytes must be {NUMBER_LEN} to 1048576")));
    }
    if !(args.seconds > 0.0 && args.seconds <= 3_600.0) {
        return Err(invalid("--seconds must be above 0 and at most 3600"));
    }
    if args.rate.is_some_and(|rate| !(0.001..=1e9).contains(&rate)) {
        return Err(invalid("--rate must be 0.001 to 1e9"));
    }
    if let Some(core) = args.core {
        sys::pin_to_core(core)?;
    }
    sys::exact_timers();
    let mut links = Links::open(args)?;
    let mut samples = Samples::default();
    let began = Instant::now();
    let measure_from = began + WARMUP;
    let end = measure_from + Duration::from_secs_f64(args.seconds);
    let mut number = 0_u32;
    loop {
        if let Some(rate) = args.rate {
            let intended = began + Duration::from_secs_f64(f64::from(number) / rate);
            thread::sleep(intended.saturating_duration_since(Instant::now()));
        }
        let sent = Instant::now();
        if sent >= end {
            break;
        }
        let came = links.round_trip(u64::from(number))?;
        if sent >= measure_from {
            samples.message.push(sent, came);
            samples.both.push(sent, Instant::now());
        }
        number += 1;
    }
    if samples.both.0.is_empty() {
        return Err(invalid("no round trip was measured: use more --seconds or a higher --rate"));
    }
    print(args, samples, measure_from.elapsed().as_secs_f64());
    Ok(())
}

fn invalid(text: &str) -> Error {
    Error::new(ErrorKind::InvalidInput, text)
}

/// Nanoseconds.
#[derive(Default)]
struct Times(Vec<u64>);

impl Times {
    fn push(&mut self, from: Instant, to: Instant) {
        self.0.push((to - from).as_nanos() as u64);
    }

    /// Returns the quantile of the sorted times in microseconds.
    fn quantile_us(&self, part: f64) -> f64 {
        let last = self.0.len().saturating_sub(1);
        let at = (last as f64 * part).round() as usize;
        self.0.get(at).map_or(0.0, |&ns| ns as f64 / 1e3)
    }
}

#[derive(Default)]
struct Samples {
    /// From just before the write until the message has been read.
    message: Times,
    /// Until the answer to PUBLISH has been read, too.
    both: Times,
}

trait Stream: Read + Write {}

impl<T: Read + Write> Stream for T {}

struct Links {
    /// `None`: the subscribed link publishes as well.
    publisher: Option<Link>,
    subscriber: Link,
    channel: String,
    message: Vec<u8>,
    request: Vec<u8>,
}

impl Links {
    fn open(args: &Args) -> io::Result<Self> {
        let mut subscriber = Link::open(args)?;
        let publisher = match args.resp3 {
            true => {
                subscriber.write(&command(&[b"HELLO", b"3"]))?;
                subscriber.await_item(|item| *item == Item::Other)?;
                None
            }
            false => Some(Link::open(args)?),
        };
        let channel = format!("bench.round-trip.{}", std::process::id());
        subscriber.write(&command(&[b"SUBSCRIBE", channel.as_bytes()]))?;
        subscriber.await_item(|item| *item == Item::Other)?;
        let message = vec![b'x'; args.bytes];
        Ok(Self { publisher, subscriber, channel, message, request: Vec::new() })
    }

    /// Returns when the message had been read; the answer has been read by the return, too.
    fn round_trip(&mut self, number: u64) -> io::Result<Instant> {
        self.message[..NUMBER_LEN].copy_from_slice(format!("{number:016x}").as_bytes());
        self.request.clear();
        let words = [b"PUBLISH".as_slice(), self.channel.as_bytes(), &self.message];
        write_command(&words, &mut self.request);
        let is_message = |item: &Item<'_>| *item == Item::Message(&self.message);
        let is_answer = |item: &Item<'_>| *item == Item::Integer(1);
        if let Some(publisher) = &mut self.publisher {
            publisher.write(&self.request)?;
            self.subscriber.await_item(is_message)?;
            let came = Instant::now();
            publisher.await_item(is_answer)?;
            return Ok(came);
        }
        // On a single link either may arrive first.
        self.subscriber.write(&self.request)?;
        let mut was_message = false;
        self.subscriber.await_item(|item| {
            was_message = is_message(item);
            was_message || is_answer(item)
        })?;
        let first = Instant::now();
        if was_message {
            self.subscriber.await_item(is_answer)?;
            return Ok(first);
        }
        self.subscriber.await_item(is_message)?;
        Ok(Instant::now())
    }
}

struct Link {
    stream: Box<dyn Stream>,
    buffer: Vec<u8>,
    /// Number of bytes read that belong to no item yet.
    filled: usize,
}

impl Link {
    fn open(args: &Args) -> io::Result<Self> {
        let stream: Box<dyn Stream> = match &args.unix {
            Some(path) => {
                let named = |error| Error::other(format!("{path}: {error}"));
                let stream = UnixStream::connect(path).map_err(named)?;
                stream.set_read_timeout(Some(TIMEOUT))?;
                Box::new(stream)
            }
            None => {
                let named = |error| Error::other(format!("{}: {error}", args.redis));
                let stream = TcpStream::connect(&args.redis).map_err(named)?;
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(TIMEOUT))?;
                Box::new(stream)
            }
        };
        Ok(Self { stream, buffer: vec![0; args.bytes + (16 << 10)], filled: 0 })
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Takes the next item, which must satisfy `expected`. Reads only if it is not already there.
    fn await_item(&mut self, expected: impl FnOnce(&Item<'_>) -> bool) -> io::Result<()> {
        loop {
            if let Some((item, end)) = parse(&self.buffer[..self.filled])? {
                if !expected(&item) {
                    return Err(Error::other(format!("Redis sent {item:?}")));
                }
                self.buffer.copy_within(end..self.filled, 0);
                self.filled -= end;
                return Ok(());
            }
            match self.stream.read(&mut self.buffer[self.filled..]) {
                Ok(0) => return Err(Error::new(ErrorKind::UnexpectedEof, "Redis closed the link")),
                Ok(count) => self.filled += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    let text = format!("no reply from Redis for {} s", TIMEOUT.as_secs());
                    return Err(Error::new(ErrorKind::TimedOut, text));
                }
                Err(error) => return Err(error),
            }
        }
    }
}

fn command(words: &[&[u8]]) -> Vec<u8> {
    let mut out = Vec::new();
    write_command(words, &mut out);
    out
}

fn write_command(words: &[&[u8]], out: &mut Vec<u8>) {
    out.extend_from_slice(format!("*{}\r\n", words.len()).as_bytes());
    for word in words {
        out.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        out.extend_from_slice(word);
        out.extend_from_slice(b"\r\n");
    }
}

/// What Redis sends, as far as this program needs it.
#[derive(Debug, PartialEq)]
enum Item<'a> {
    Integer(u64),
    /// The payload of a published message.
    Message(&'a [u8]),
    Error(String),
    /// Greetings and confirmations.
    Other,
}

/// Returns the item at the beginning of `bytes` and its end; `None` while it is incomplete.
fn parse(bytes: &[u8]) -> io::Result<Option<(Item<'_>, usize)>> {
    let Some((kind, count, mut end)) = head(bytes)? else { return Ok(None) };
    let line = &bytes[1..end - 2];
    let item = match kind {
        b':' => Item::Integer(count as u64),
        b'-' => Item::Error(String::from_utf8_lossy(line).into_owned()),
        b'*' | b'>' => {
            let mut texts = [&[][..]; 3];
            for index in 0..count {
                let Some((text, length)) = skip(&bytes[end..])? else { return Ok(None) };
                if let Some(place) = texts.get_mut(index) {
                    *place = text;
                }
                end += length;
            }
            match texts[0] == b"message" {
                true => Item::Message(texts[2]),
                false => Item::Other,
            }
        }
        _ => {
            let Some((_, length)) = skip(bytes)? else { return Ok(None) };
            end = length;
            Item::Other
        }
    };
    Ok(Some((item, end)))
}

/// Returns the text of the item at the beginning, empty if it is not a string, and its end.
fn skip(bytes: &[u8]) -> io::Result<Option<(&[u8], usize)>> {
    let Some((kind, count, mut end)) = head(bytes)? else { return Ok(None) };
    let items = match kind {
        b'$' | b'=' | b'!' => {
            let text = bytes.get(end..end + count);
            return Ok(text
                .filter(|_| bytes.len() >= end + count + 2)
                .map(|t| (t, end + count + 2)));
        }
        b'*' | b'>' | b'~' => count,
        b'%' => 2 * count,
        _ => 0,
    };
    for _ in 0..items {
        let Some((_, length)) = skip(&bytes[end..])? else { return Ok(None) };
        end += length;
    }
    Ok(Some((&[], end)))
}

/// Returns an item's kind, the number in its first line (0 if there is none), and where the line
/// ends.
fn head(bytes: &[u8]) -> io::Result<Option<(u8, usize, usize)>> {
    let Some(line_end) = bytes.windows(2).position(|pair| pair == b"\r\n") else {
        return Ok(None);
    };
    let Some((&kind, line)) = bytes[..line_end].split_first() else {
        return Err(Error::other("Redis sent an empty line"));
    };
    let count = match kind {
        b':' | b'$' | b'=' | b'!' | b'*' | b'>' | b'~' | b'%' => {
            let number = std::str::from_utf8(line).ok().and_then(|line| line.parse::<usize>().ok());
            number.filter(|number| *number <= MAX_ITEM).ok_or_else(|| {
                Error::other(format!("Redis sent {}", String::from_utf8_lossy(&bytes[..line_end])))
            })?
        }
        b'+' | b'-' | b'_' | b'#' | b',' | b'(' => 0,
        _ => return Err(Error::other("this is not Redis")),
    };
    Ok(Some((kind, count, line_end + 2)))
}

fn print(args: &Args, mut samples: Samples, elapsed: f64) {
    samples.message.0.sort_unstable();
    samples.both.0.sort_unstable();
    let count = samples.both.0.len();
    let rate = count as f64 / elapsed;
    let [p50, p90, p99] = [0.5, 0.9, 0.99].map(|part| samples.message.quantile_us(part));
    let both = samples.both.quantile_us(0.5);
    let links = if args.resp3 { "one RESP3 link" } else { "two links" };
    let family = if args.unix.is_some() { "unix" } else { "tcp" };
    let bytes = args.bytes;
    if args.json {
        println!(
            "{{\"p50_us\":{p50:.1},\"p90_us\":{p90:.1},\"p99_us\":{p99:.1},\
             \"both_p50_us\":{both:.1},\"round_trips_per_s\":{rate:.1},\"round_trips\":{count},\
             \"links\":\"{links}\",\"family\":\"{family}\",\"bytes\":{bytes}}}"
        );
        return;
    }
    println!("p50 {p50:.1} us, p90 {p90:.1} us, p99 {p99:.1} us from the write to the message");
    println!("p50 {both:.1} us until PUBLISH was also answered; {rate:.0} round trips/s");
    println!("{count} round trips of {bytes} bytes over {links} ({family})");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_cut_at_every_byte() {
        for (bytes, want) in [
            (b":1\r\n".as_slice(), Item::Integer(1)),
            (b"*3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$4\r\nx\r\ny\r\n", Item::Message(b"x\r\ny")),
            (b">3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$0\r\n\r\n", Item::Message(b"")),
            (b"*3\r\n$9\r\nsubscribe\r\n$1\r\nc\r\n:1\r\n", Item::Other),
            (b"%2\r\n$1\r\na\r\n:3\r\n+b\r\n*1\r\n%1\r\n_\r\n#t\r\n", Item::Other),
            (b"-NOAUTH no\r\n", Item::Error("NOAUTH no".to_owned())),
        ] {
            for cut in 0..bytes.len() {
                assert_eq!(parse(&bytes[..cut]).unwrap(), None, "cut at {cut}");
            }
            let mut more = bytes.to_vec();
            more.extend_from_slice(b":7\r\n");
            assert_eq!(parse(&more).unwrap(), Some((want, bytes.len())));
        }
        for bytes in [b"HTTP/1.1 400\r\n".as_slice(), b"\r\n", b"*-1\r\n", b"$9999999999\r\n"] {
            assert!(parse(bytes).is_err());
        }
    }

    #[test]
    fn a_command_is_an_array_of_texts() {
        assert_eq!(command(&[b"HELLO", b"3"]), b"*2\r\n$5\r\nHELLO\r\n$1\r\n3\r\n");
    }

    #[test]
    fn quantiles() {
        let times = Times((0..=100).map(|us| us * 1_000).collect());
        assert_eq!(
            [0.0, 0.5, 0.99, 1.0].map(|part| times.quantile_us(part)),
            [0.0, 50.0, 99.0, 100.0]
        );
        assert_eq!(Times(Vec::new()).quantile_us(0.5), 0.0);
    }
}
