//! RESP2 and RESP3, the protocol of the Redis link: replies of Redis, and commands to it.
//!
//! [`read`] parses one reply at the front of a buffer, in place. Almost all traffic on the link is
//! channel messages, so these have a fast path of their own; for everything else the parser
//! determines little more than its length.
//!
//! Bytes are parsed from left to right and judged as they arrive. So more bytes never change the
//! verdict on the first ones, neither a reply nor an error.

/// Maximum length of a simple string, error or number, without its CRLF.
const MAX_LINE_BYTES: usize = 64 << 10;
/// Maximum number of elements in one reply, over all levels; a pair of a map counts as two.
const MAX_ELEMENTS: usize = 4_096;
/// Maximum nesting depth of aggregates.
const MAX_DEPTH: usize = 8;

/// The start of a message: as a RESP3 push, and in RESP2.
const PUSHED_MESSAGE: &[u8; 17] = b">3\r\n$7\r\nmessage\r\n";
const LISTED_MESSAGE: &[u8; 17] = b"*3\r\n$7\r\nmessage\r\n";

/// Redis parameters that limit what it accepts and delivers. `maxmemory` does not, but
/// `maxmemory-clients`, which follows it, may be a percentage of it.
pub const PARAMETERS: [&str; 5] = [
    "client-query-buffer-limit",
    "proto-max-bulk-len",
    "client-output-buffer-limit",
    "maxmemory",
    "maxmemory-clients",
];

/// Why bytes are not valid RESP, or exceed our limits. The link must be closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RespError {
    #[error("the bytes are not RESP")]
    Malformed,
    #[error("a string or a line of the reply is longer than allowed")]
    TooLong,
    #[error("the reply is nested more than 8 levels deep")]
    TooDeep,
    #[error("the reply has more than 4096 elements")]
    TooMany,
}

/// One value sent by Redis, borrowed from the read buffer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Reply<'a> {
    /// A message on a subscribed channel: a RESP3 push, or a RESP2 array, of "message", channel and
    /// payload.
    Message {
        channel: &'a [u8],
        payload: &'a [u8],
    },
    /// Confirms one channel of a SUBSCRIBE.
    Subscribed {
        channel: &'a [u8],
    },
    /// Confirms one channel of an UNSUBSCRIBE; `None`: there was none to unsubscribe from.
    Unsubscribed {
        channel: Option<&'a [u8]>,
    },
    /// `+PONG`, or the RESP2 array of "pong" and "" that a subscribed link gets.
    Pong,
    Integer(i64),
    /// An error reply; the text with its code, e.g. `NOAUTH Authentication required.`
    Error(&'a [u8]),
    /// Any other simple string, e.g. `OK`.
    Simple(&'a [u8]),
    /// From HELLO: the server's mode (`standalone`, `cluster`, `sentinel`) and its role.
    Server {
        mode: &'a [u8],
        role: &'a [u8],
    },
    /// From ROLE: `master`, `slave` or `sentinel`; for a replica also host and port of its master.
    Role {
        role: &'a [u8],
        master: Option<(&'a [u8], i64)>,
    },
    /// One of [`PARAMETERS`], from CONFIG GET.
    Parameter {
        name: &'a [u8],
        value: &'a [u8],
    },
    /// Any other complete value (other maps and pushes, bulk strings, nulls, doubles, …), skipped.
    Other,
}

/// Reads the first reply of `bytes` in place: `Ok(None)` while it is incomplete; otherwise the
/// reply and its length in bytes, including a preceding attribute. Never allocates.
///
/// `max_bytes` is the maximum length of a bulk string, and thus of a payload. A longer one is
/// rejected by its announced length, before it arrives; while one is arriving, only its length is
/// parsed again.
pub fn read<'a>(
    bytes: &'a [u8],
    max_bytes: usize,
) -> Result<Option<(Reply<'a>, usize)>, RespError> {
    match read_message(bytes, max_bytes) {
        Some(whole) => Ok(Some(whole)),
        None => read_any(bytes, max_bytes),
    }
}

/// Appends one command as an array of bulk strings.
pub fn write_command(out: &mut Vec<u8>, args: &[&[u8]]) {
    write_length(out, b'*', args.len());
    for arg in args {
        write_length(out, b'$', arg.len());
        out.extend_from_slice(arg);
        out.extend_from_slice(b"\r\n");
    }
}

fn write_length(out: &mut Vec<u8>, kind: u8, length: usize) {
    out.push(kind);
    out.extend_from_slice(itoa::Buffer::new().format(length).as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// The fast path: a complete message in its usual form. `None` for anything else, which
/// [`read_any`] then parses.
fn read_message(bytes: &[u8], max_bytes: usize) -> Option<(Reply<'_>, usize)> {
    let head = bytes.first_chunk::<17>()?;
    let is_message = head == PUSHED_MESSAGE || head == LISTED_MESSAGE;
    // The limit applies to the first string as well.
    if !is_message || max_bytes < b"message".len() {
        return None;
    }
    let mut reader = Reader::new(bytes, max_bytes);
    reader.at = head.len();
    let channel = reader.plain_bulk()?;
    let payload = reader.plain_bulk()?;
    Some((Reply::Message { channel, payload }, reader.at))
}

/// Reads any reply, including messages.
fn read_any(bytes: &[u8], max_bytes: usize) -> Result<Option<(Reply<'_>, usize)>, RespError> {
    let mut reader = Reader::new(bytes, max_bytes);
    match reader.reply() {
        Ok(reply) => Ok(Some((reply, reader.at))),
        Err(Stop::Incomplete) => Ok(None),
        Err(Stop::Refused(error)) => Err(error),
    }
}

/// Why reading stopped.
#[derive(Debug, Clone, Copy)]
enum Stop {
    /// Valid so far, but incomplete.
    Incomplete,
    Refused(RespError),
}

impl From<RespError> for Stop {
    fn from(error: RespError) -> Self {
        Self::Refused(error)
    }
}

/// A complete scalar, or the head of an aggregate.
#[derive(Debug, Clone, Copy)]
enum RespToken<'a> {
    Simple(&'a [u8]),
    Error(&'a [u8]),
    Integer(i64),
    Bulk(&'a [u8]),
    Null,
    /// A boolean, a double, a big number, or a verbatim string.
    Scalar,
    /// Followed by this number of values; a pair of a map is two.
    Aggregate {
        kind: u8,
        members: usize,
    },
    /// Followed by this number of values, and then by the value they describe.
    Attribute {
        members: usize,
    },
}

/// A read position in the bytes of one reply.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    max_bytes: usize,
    /// Number of further elements allowed in the reply.
    elements_left: usize,
}

impl<'a> Reader<'a> {
    fn new(bytes: &'a [u8], max_bytes: usize) -> Self {
        // No slice is longer than this, and the sum of two such lengths does not overflow.
        let max_bytes = max_bytes.min(isize::MAX as usize);
        Self { bytes, at: 0, max_bytes, elements_left: MAX_ELEMENTS }
    }

    fn reply(&mut self) -> Result<Reply<'a>, Stop> {
        Ok(match self.value(1)? {
            RespToken::Simple(b"PONG") => Reply::Pong,
            RespToken::Simple(text) => Reply::Simple(text),
            RespToken::Error(text) => Reply::Error(text),
            RespToken::Integer(number) => Reply::Integer(number),
            RespToken::Aggregate { kind, members } => {
                let mut first = [RespToken::Scalar; 3];
                let (mut mode, mut role, mut previous) = (None, None, RespToken::Scalar);
                for index in 0..members {
                    let member = self.value(2)?;
                    if let RespToken::Aggregate { members, .. } = member {
                        self.skip(members, 2)?;
                    }
                    if let Some(place) = first.get_mut(index) {
                        *place = member;
                    }
                    match (previous, member) {
                        (RespToken::Bulk(b"mode"), RespToken::Bulk(value)) => mode = Some(value),
                        (RespToken::Bulk(b"role"), RespToken::Bulk(value)) => role = Some(value),
                        _ => {}
                    }
                    previous = member;
                }
                match (kind, mode, role) {
                    (b'%', Some(mode), Some(role)) => Reply::Server { mode, role },
                    _ => aggregate_reply(kind, members, first),
                }
            }
            _ => Reply::Other,
        })
    }

    /// Reads the token of the next value, at `depth` if it is an aggregate; attributes before it
    /// are skipped.
    fn value(&mut self, depth: usize) -> Result<RespToken<'a>, Stop> {
        loop {
            match self.token()? {
                RespToken::Attribute { members } => self.skip(members, depth)?,
                token => return Ok(token),
            }
        }
    }

    /// Skips the members of an aggregate at `depth` (the outermost: 1). Not recursive: the nesting
    /// of the input must not exhaust the stack.
    fn skip(&mut self, members: usize, depth: usize) -> Result<(), Stop> {
        let mut left = [0; MAX_DEPTH + 1];
        let mut level = depth;
        left[level] = members;
        loop {
            while left[level] == 0 {
                if level == depth {
                    return Ok(());
                }
                level -= 1;
            }
            let inside = match self.token()? {
                // The value that it describes follows.
                RespToken::Attribute { members } => members,
                RespToken::Aggregate { members, .. } => {
                    left[level] -= 1;
                    members
                }
                _ => {
                    left[level] -= 1;
                    continue;
                }
            };
            level += 1;
            *left.get_mut(level).ok_or(RespError::TooDeep)? = inside;
        }
    }

    fn token(&mut self) -> Result<RespToken<'a>, Stop> {
        let kind = self.peek(0)?;
        self.at += 1;
        match kind {
            b'$' | b'*' if self.is_null()? => Ok(RespToken::Null),
            b'$' => self.bulk().map(RespToken::Bulk),
            b'!' => self.bulk().map(RespToken::Error),
            b'=' => match self.bulk()? {
                [_, _, _, b':', ..] => Ok(RespToken::Scalar),
                _ => Err(RespError::Malformed.into()),
            },
            b'*' | b'>' | b'~' => Ok(RespToken::Aggregate { kind, members: self.members(1)? }),
            b'%' => Ok(RespToken::Aggregate { kind, members: self.members(2)? }),
            b'|' => {
                // An attribute without members counts as well: any number of them may follow one
                // another.
                self.elements_left = self.elements_left.checked_sub(1).ok_or(RespError::TooMany)?;
                Ok(RespToken::Attribute { members: self.members(2)? })
            }
            b'+' => self.line().map(RespToken::Simple),
            b'-' => self.line().map(RespToken::Error),
            b':' | b',' | b'(' | b'#' | b'_' => {
                let line = self.line()?;
                Ok(scalar(kind, line).ok_or(RespError::Malformed)?)
            }
            _ => Err(RespError::Malformed.into()),
        }
    }

    /// Whether a length is `-1`, RESP2's null; consumes it then.
    fn is_null(&mut self) -> Result<bool, Stop> {
        if self.peek(0)? != b'-' {
            return Ok(false);
        }
        self.at += 1;
        if self.peek(0)? != b'1' {
            return Err(RespError::Malformed.into());
        }
        self.at += 1;
        self.line_end()?;
        Ok(true)
    }

    /// Reads the number of values in an aggregate of groups of `each`.
    fn members(&mut self, each: usize) -> Result<usize, Stop> {
        let count = self.length(self.elements_left / each, RespError::TooMany)? * each;
        self.elements_left -= count;
        Ok(count)
    }

    /// Reads a bulk string after its `$`.
    #[inline]
    fn bulk(&mut self) -> Result<&'a [u8], Stop> {
        let length = self.length(self.max_bytes, RespError::TooLong)?;
        let rest = &self.bytes[self.at..];
        let string = rest.get(..length).ok_or(Stop::Incomplete)?;
        self.at += length;
        self.line_end()?;
        Ok(string)
    }

    /// Reads a bulk string with its `$`, if it is complete.
    #[inline]
    fn plain_bulk(&mut self) -> Option<&'a [u8]> {
        if *self.bytes.get(self.at)? != b'$' {
            return None;
        }
        self.at += 1;
        self.bulk().ok()
    }

    /// Reads a length and its CRLF: decimal digits, in the shortest form. A length above `limit`
    /// fails with `excess`, at the first digit too many.
    #[inline]
    fn length(&mut self, limit: usize, excess: RespError) -> Result<usize, Stop> {
        let mut length = 0usize;
        let mut digits = 0;
        loop {
            let byte = self.peek(0)?;
            match byte {
                b'0'..=b'9' if digits == 0 || length != 0 => {
                    length = length.saturating_mul(10).saturating_add(usize::from(byte - b'0'));
                    if length > limit {
                        return Err(excess.into());
                    }
                }
                b'\r' if digits != 0 => break,
                _ => return Err(RespError::Malformed.into()),
            }
            digits += 1;
            self.at += 1;
        }
        self.line_end()?;
        Ok(length)
    }

    /// Reads up to the next CRLF. A lone CR or LF is rejected.
    fn line(&mut self) -> Result<&'a [u8], Stop> {
        let rest = &self.bytes[self.at..];
        let possible = &rest[..rest.len().min(MAX_LINE_BYTES + 1)];
        let Some(end) = possible.iter().position(|byte| matches!(byte, b'\r' | b'\n')) else {
            let is_over = rest.len() > MAX_LINE_BYTES;
            return Err(if is_over { RespError::TooLong.into() } else { Stop::Incomplete });
        };
        self.at += end;
        self.line_end()?;
        Ok(&rest[..end])
    }

    #[inline]
    fn line_end(&mut self) -> Result<(), Stop> {
        if self.peek(0)? != b'\r' || self.peek(1)? != b'\n' {
            return Err(RespError::Malformed.into());
        }
        self.at += 2;
        Ok(())
    }

    #[inline]
    fn peek(&self, ahead: usize) -> Result<u8, Stop> {
        self.bytes.get(self.at + ahead).copied().ok_or(Stop::Incomplete)
    }
}

/// Interprets an outermost aggregate; `first` are its first members, as far as it has them.
fn aggregate_reply<'a>(kind: u8, members: usize, first: [RespToken<'a>; 3]) -> Reply<'a> {
    use RespToken::{Bulk, Integer, Null};
    match (kind, members, first) {
        (b'>' | b'*', 3, [Bulk(b"message"), Bulk(channel), Bulk(payload)]) => {
            Reply::Message { channel, payload }
        }
        (b'>' | b'*', 3, [Bulk(b"subscribe"), Bulk(channel), Integer(_)]) => {
            Reply::Subscribed { channel }
        }
        (b'>' | b'*', 3, [Bulk(b"unsubscribe"), Bulk(channel), Integer(_)]) => {
            Reply::Unsubscribed { channel: Some(channel) }
        }
        (b'>' | b'*', 3, [Bulk(b"unsubscribe"), Null, Integer(_)]) => {
            Reply::Unsubscribed { channel: None }
        }
        (b'*', 2, [Bulk(b"pong"), Bulk(b""), _]) => Reply::Pong,
        (b'*', 3, [Bulk(role @ b"master"), Integer(_), _])
        | (b'*', 2, [Bulk(role @ b"sentinel"), _, _]) => Reply::Role { role, master: None },
        (b'*', 5, [Bulk(role @ b"slave"), Bulk(host), Integer(port)]) => {
            Reply::Role { role, master: Some((host, port)) }
        }
        (b'%' | b'*', 2, [Bulk(name), Bulk(value), _])
            if PARAMETERS.iter().any(|known| known.as_bytes() == name) =>
        {
            Reply::Parameter { name, value }
        }
        _ => Reply::Other,
    }
}

/// Parses a scalar of one line; `None` if it is malformed.
fn scalar<'a>(kind: u8, line: &[u8]) -> Option<RespToken<'a>> {
    let text = str::from_utf8(line).ok()?;
    match kind {
        b':' => text.parse().ok().map(RespToken::Integer),
        b',' => text.parse::<f64>().ok().map(|_| RespToken::Scalar),
        b'(' => {
            let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
            let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
            is_number.then_some(RespToken::Scalar)
        }
        b'#' => matches!(text, "t" | "f").then_some(RespToken::Scalar),
        b'_' => text.is_empty().then_some(RespToken::Null),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
