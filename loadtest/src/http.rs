//! Pushes over HTTP: the request, the response, and the keep-alive connection that carries them.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::net::{SocketAddrV4, TcpStream};
use std::os::fd::OwnedFd;
use std::time::Duration;

use memchr::memmem;
use ws_cluster_wire::sign::{Secret, sign_digits};

use crate::client::EXP_SECONDS;
use crate::message::{self, Stamp};
use crate::sys;

/// Writes signed push requests with a JSON body. Nothing is allocated per request.
pub struct PushWriter {
    secret: Secret,
    /// `{"pid":"…",`
    open: Vec<u8>,
    stamp_len: usize,
    filler: Vec<u8>,
    body: Vec<u8>,
    exp: (u64, u64),
}

impl PushWriter {
    /// `data_len`: length of the text in `data`, at least that of a short stamp.
    pub fn new(pid: &str, secret: &str, data_len: usize) -> Self {
        let open = format!("{{\"pid\":{},", serde_json::Value::from(pid));
        let stamp_len = message::stamp_len(data_len);
        PushWriter {
            secret: Secret::new(secret.as_bytes()),
            open: open.into_bytes(),
            stamp_len,
            filler: vec![b'x'; data_len.saturating_sub(stamp_len)],
            body: Vec::new(),
            exp: (0, 0),
        }
    }

    /// Appends one request. `select` writes the selector member with a trailing comma, such as
    /// `"uids":["u1"],`, or nothing for the whole project.
    pub fn write(
        &mut self,
        stamp: Stamp,
        select: impl FnOnce(&mut Vec<u8>),
        host: &str,
        out: &mut Vec<u8>,
    ) {
        let body = &mut self.body;
        body.clear();
        body.extend_from_slice(&self.open);
        select(body);
        body.extend_from_slice(b"\"exp\":");
        write_decimal(self.exp.1, body);
        body.extend_from_slice(b",\"data\":\"");
        let start = body.len();
        stamp.write(body);
        body.truncate(start + self.stamp_len);
        body.extend_from_slice(&self.filler);
        body.extend_from_slice(b"\"}");
        let sign = sign_digits(&self.secret, &[b"/ws/push\n", body]);
        out.extend_from_slice(b"POST /ws/push HTTP/1.1\r\nHost: ");
        out.extend_from_slice(host.as_bytes());
        out.extend_from_slice(b"\r\nContent-Type: application/json\r\nX-Sign: ");
        out.extend_from_slice(&sign);
        out.extend_from_slice(b"\r\nContent-Length: ");
        write_decimal(body.len() as u64, out);
        out.extend_from_slice(b"\r\n\r\n");
        out.extend_from_slice(body);
    }

    /// Keeps `exp` ahead of the clock; call it once per batch.
    pub fn refresh(&mut self, now_ns: u64) {
        let second = now_ns / 1_000_000_000;
        if self.exp.0 != second {
            self.exp = (second, sys::unix_seconds() + EXP_SECONDS);
        }
    }
}

pub fn write_decimal(mut value: u64, out: &mut Vec<u8>) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (value % 10) as u8;
        value /= 10;
        if value == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

/// The parts of a response that a load tool needs.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer<'a> {
    pub status: u16,
    pub body: &'a [u8],
    /// Where the next response begins.
    pub end: usize,
}

/// Parses the response at the beginning of `bytes`; `None` while it is incomplete.
pub fn parse_answer(bytes: &[u8]) -> Result<Option<Answer<'_>>, &'static str> {
    let Some(head_len) = memmem::find(bytes, b"\r\n\r\n") else {
        return if bytes.len() > 64 << 10 {
            Err("the response's head is too long")
        } else {
            Ok(None)
        };
    };
    let head = &bytes[..head_len];
    if !head.starts_with(b"HTTP/1.") {
        return Err("not HTTP");
    }
    let status =
        head.get(9..12).and_then(parse_decimal).ok_or("the response has no status")? as u16;
    let mut content_len = 0;
    for line in head.split(|&byte| byte == b'\n').skip(1) {
        const NAME: &[u8] = b"content-length:";
        if let Some((name, value)) = line.split_at_checked(NAME.len())
            && name.eq_ignore_ascii_case(NAME)
        {
            content_len = parse_decimal(value.trim_ascii()).ok_or("bad Content-Length")? as usize;
        }
    }
    let start = head_len + 4;
    let end = start.checked_add(content_len).ok_or("bad Content-Length")?;
    Ok(bytes.get(start..end).map(|body| Answer { status, body, end }))
}

fn parse_decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || digits.len() > 18 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    Some(digits.iter().fold(0, |value, digit| value * 10 + u64::from(digit - b'0')))
}

/// A push whose response has not arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pending {
    pub seq: u32,
    /// When it was sent.
    pub at_ns: u64,
    /// When it was due: earlier than `at_ns` if, at a given rate, every pusher was busy.
    pub intended_ns: u64,
}

/// A keep-alive HTTP connection. Requests are written to [`Pusher::out`] and leave with
/// [`Pusher::flush`]; responses arrive in the order of [`Pusher::pending`].
pub struct Pusher {
    fd: OwnedFd,
    /// The value of the `Host` header.
    pub host: String,
    pub out: Vec<u8>,
    sent: usize,
    partial: Vec<u8>,
    pub pending: VecDeque<Pending>,
}

impl Pusher {
    pub fn connect(http: SocketAddrV4) -> io::Result<Pusher> {
        let stream = TcpStream::connect_timeout(&http.into(), Duration::from_secs(5))?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        Ok(Pusher {
            fd: stream.into(),
            host: http.to_string(),
            out: Vec::new(),
            sent: 0,
            partial: Vec::new(),
            pending: VecDeque::new(),
        })
    }

    pub fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    /// Sends as much of the written requests as the socket takes. The rest goes with the next call;
    /// watch the socket for writability.
    pub fn flush(&mut self) -> io::Result<()> {
        while self.sent < self.out.len() {
            match sys::send(&self.fd, &self.out[self.sent..]) {
                Ok(sent) => self.sent += sent,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        self.out.clear();
        self.sent = 0;
        Ok(())
    }

    /// Reads the responses that have arrived. An error means that the connection has ended.
    pub fn read(
        &mut self,
        mask: u32,
        buffer: &mut [u8],
        mut answered: impl FnMut(Pending, Answer<'_>),
    ) -> io::Result<()> {
        loop {
            let got = match sys::recv(&self.fd, buffer) {
                Ok(0) => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "closed")),
                Ok(got) => got,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            };
            if self.partial.is_empty() {
                let used = answers(&buffer[..got], &mut self.pending, &mut answered)?;
                self.partial.extend_from_slice(&buffer[used..got]);
            } else {
                self.partial.extend_from_slice(&buffer[..got]);
                let used = answers(&self.partial, &mut self.pending, &mut answered)?;
                self.partial.drain(..used);
            }
            if got < buffer.len() && mask & sys::ENDED == 0 {
                return Ok(());
            }
        }
    }
}

/// Hands out every complete response at the beginning of `bytes` and returns their length.
fn answers(
    bytes: &[u8],
    pending: &mut VecDeque<Pending>,
    answered: &mut impl FnMut(Pending, Answer<'_>),
) -> io::Result<usize> {
    let mut at = 0;
    while at < bytes.len() {
        let Some(answer) = parse_answer(&bytes[at..]).map_err(io::Error::other)? else { break };
        let Some(asked) = pending.pop_front() else {
            return Err(io::Error::other("a response without a request"));
        };
        at += answer.end;
        answered(asked, answer);
    }
    Ok(at)
}

/// Writes `"name":["value"],`.
pub fn write_selector(name: &str, value: &str, out: &mut Vec<u8>) {
    // Writing to a vector cannot fail.
    let _ = write!(out, "\"{name}\":[{}],", serde_json::Value::from(value));
}

#[cfg(test)]
mod tests {
    use super::*;
    use ws_cluster_wire::sign::sign_hex;

    #[test]
    fn a_request_is_signed_over_its_raw_body() {
        let mut writer = PushWriter::new("1", "dev-secret", 40);
        writer.exp = (0, 1_700_000_000);
        let stamp = Stamp { run: 1, seq: 2, at_ns: 3, pusher: 4 };
        let mut out = Vec::new();
        let select = |body: &mut Vec<u8>| write_selector("uids", "u\"1", body);
        writer.write(stamp, select, "127.0.0.1:8912", &mut out);
        let out = String::from_utf8(out).unwrap();
        let (head, body) = out.split_once("\r\n\r\n").unwrap();
        assert_eq!(
            body,
            "{\"pid\":\"1\",\"uids\":[\"u\\\"1\"],\"exp\":1700000000,\
             \"data\":\"00010000000200000000000000030004xxxxxxxx\"}"
        );
        let json: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!(json["data"].as_str().map(str::len), Some(40));
        let sign = sign_hex(&Secret::new(b"dev-secret"), &[b"/ws/push\n", body.as_bytes()]);
        assert_eq!(
            head,
            format!(
                "POST /ws/push HTTP/1.1\r\nHost: 127.0.0.1:8912\r\n\
                 Content-Type: application/json\r\nX-Sign: {sign}\r\nContent-Length: {}",
                body.len()
            )
        );
    }

    #[test]
    fn an_answer_cut_at_every_byte() {
        let bytes = b"HTTP/1.1 503 Busy\r\ncontent-LENGTH:  5\r\nx: y\r\n\r\nhelloHTTP";
        let end = bytes.len() - 4;
        for cut in 0..end {
            assert_eq!(parse_answer(&bytes[..cut]), Ok(None), "cut at {cut}");
        }
        assert_eq!(parse_answer(bytes), Ok(Some(Answer { status: 503, body: b"hello", end })));
        assert!(parse_answer(b"what is this\r\n\r\n").is_err());
        assert!(parse_answer(b"HTTP/1.1 200 ok\r\nContent-Length: -1\r\n\r\n").is_err());
    }

    #[test]
    fn pipelined_answers_meet_their_requests() {
        let ask = |seq| Pending { seq, at_ns: 0, intended_ns: 0 };
        let mut pending = VecDeque::from([ask(1), ask(2), ask(3)]);
        let bytes = b"HTTP/1.1 200 ok\r\nContent-Length: 0\r\n\r\nHTTP/1.1 400 no\r\n\r\nHTT";
        let mut got = Vec::new();
        let used =
            answers(bytes, &mut pending, &mut |ask, answer| got.push((ask.seq, answer.status)));
        assert_eq!(used.unwrap(), bytes.len() - 3);
        assert_eq!(got, [(1, 200), (2, 400)]);
        assert_eq!(pending, [ask(3)]);
    }

    #[test]
    fn decimals() {
        for value in [0, 9, 10, 1_700_000_000, u64::MAX] {
            let mut out = Vec::new();
            write_decimal(value, &mut out);
            assert_eq!(out, value.to_string().as_bytes());
        }
    }
}
