//! Shared by the tests on real sockets: a running server, signatures, HTTP and raw frames.

// Every test binary has its own copy, and none uses all of it.
#![allow(dead_code)]

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use ws_cluster::wire::sign::{Secret, sign_hex};

/// How long a test waits for what must happen. Everything is expected to take a fraction of it.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Waits until `check` is true.
pub fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !check() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// A ws-cluster on free ports, stopped when dropped.
pub struct Server {
    child: Child,
    /// Its output: its log, and standard error.
    told: Option<[JoinHandle<String>; 2]>,
    pub ws: SocketAddr,
    pub http: SocketAddr,
    pub metrics: SocketAddr,
}

impl Server {
    pub fn start(args: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ws-cluster"));
        command.args(["--ws_port", "0", "--http_port", "0", "--prometheus_port", "0"]);
        command.args(["--bind", "127.0.0.1", "--pin", "false"]).args(args);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut before = String::new();
        let ports = loop {
            let mut line = String::new();
            if stdout.read_line(&mut line).unwrap() == 0 {
                let errors = reading(child.stderr.take().unwrap(), String::new());
                panic!("the server did not start: {before}{}", errors.join().unwrap());
            }
            match line.strip_prefix("ws-cluster listening: ") {
                Some(ports) => break ports.to_owned(),
                None => before.push_str(&line),
            }
        };
        let port = |name: &str| {
            let mut words = ports.split_whitespace();
            words.find_map(|word| word.strip_prefix(name)).unwrap().parse().unwrap()
        };
        let (ws, http, metrics) = (port("ws="), port("http="), port("metrics="));
        let errors = reading(child.stderr.take().unwrap(), String::new());
        Self { child, told: Some([reading(stdout, before), errors]), ws, http, metrics }
    }

    /// Stops it; it must exit successfully and have logged no error.
    pub fn stop(mut self) {
        let status = self.terminate();
        let told = self.told.take().unwrap().map(|told| told.join().unwrap()).concat();
        assert!(status.success(), "{status}\n{told}");
        assert!(!told.contains("panicked") && !told.contains("ERROR"), "{told}");
    }

    fn terminate(&mut self) -> ExitStatus {
        let pid = self.child.id().to_string();
        if let Ok(None) = self.child.try_wait() {
            let _ = Command::new("sh").args(["-c", "kill -TERM \"$0\"", &pid]).status();
        }
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            if Instant::now() > deadline {
                let _ = self.child.kill();
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Returns the series as written in `/metrics`, labels included; 0 if it is absent.
    pub fn metric(&self, series: &str) -> u64 {
        let answer = Http::open(self.metrics).get("/metrics");
        assert_eq!(answer.status, 200, "{}", answer.body);
        let is_it = |line: &&str| line.strip_prefix(series).is_some_and(|n| n.starts_with(' '));
        let found = answer.body.lines().find(is_it);
        found.map_or(0, |line| line.rsplit(' ').next().unwrap().parse().unwrap())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.told.is_some() {
            self.terminate();
        }
    }
}

/// Reads to the end, on a separate thread so that the writer never blocks.
fn reading(mut from: impl Read + Send + 'static, mut text: String) -> JoinHandle<String> {
    thread::spawn(move || {
        let _ = from.read_to_string(&mut text);
        text
    })
}

/// Opens a TCP connection on which a read that never returns is an error.
pub fn open_tcp(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Returns the parameters as a signed query or form.
pub fn signed(path: &str, params: &[(&str, &str)], secret: &str) -> String {
    let mut params = params.to_vec();
    params.sort_unstable();
    let pair = |(name, value): &(&str, &str)| format!("{}={}", escaped(name), escaped(value));
    let query = params.iter().map(pair).collect::<Vec<_>>().join("&");
    let sign =
        sign_hex(&Secret::new(secret.as_bytes()), &[path.as_bytes(), b"\n", query.as_bytes()]);
    format!("{query}&sign={sign}")
}

pub fn escaped(text: &str) -> String {
    text.bytes().fold(String::new(), |mut out, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
        out
    })
}

/// A keep-alive HTTP connection.
pub struct Http {
    stream: BufReader<TcpStream>,
}

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub body: String,
}

impl Http {
    pub fn open(address: SocketAddr) -> Self {
        Self { stream: BufReader::new(open_tcp(address)) }
    }

    pub fn get(&mut self, target: &str) -> Answer {
        self.ask(&format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n"))
    }

    /// Posts a JSON body, signed in a header.
    pub fn post_json(&mut self, path: &str, body: &str, secret: &str) -> Answer {
        let parts: [&[u8]; 3] = [path.as_bytes(), b"\n", body.as_bytes()];
        let sign = sign_hex(&Secret::new(secret.as_bytes()), &parts);
        let length = body.len();
        self.ask(&format!(
            "POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n\
             X-Sign: {sign}\r\nContent-Length: {length}\r\n\r\n{body}"
        ))
    }

    pub fn post_form(&mut self, path: &str, form: &str) -> Answer {
        let length = form.len();
        self.ask(&format!(
            "POST {path} HTTP/1.1\r\nHost: x\r\n\
             Content-Type: application/x-www-form-urlencoded\r\n\
             Content-Length: {length}\r\n\r\n{form}"
        ))
    }

    /// Sends a complete request and reads its response.
    pub fn ask(&mut self, request: &str) -> Answer {
        self.stream.get_mut().write_all(request.as_bytes()).unwrap();
        self.answer()
    }

    pub fn answer(&mut self) -> Answer {
        let (mut status, mut length) = (0, 0);
        loop {
            let mut line = String::new();
            assert_ne!(self.stream.read_line(&mut line).unwrap(), 0, "ended inside a head");
            if let Some(rest) = line.strip_prefix("HTTP/1.1 ") {
                status = rest[..3].parse().unwrap();
            } else if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            } else if line == "\r\n" {
                break;
            }
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body).unwrap();
        Answer { status, body: String::from_utf8(body).unwrap() }
    }
}

/// Returns the request that opens a WebSocket connection, with a fixed key.
pub fn handshake(target: &str) -> String {
    format!(
        "GET {target} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
}

/// The answer to the key in [`handshake`] (RFC 6455 section 1.3).
pub const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// A WebSocket connection on which the test writes the bytes itself.
pub struct Raw {
    pub stream: TcpStream,
}

impl Raw {
    /// Connects and completes the handshake.
    pub fn open(address: SocketAddr, target: &str) -> Self {
        let mut raw = Self { stream: open_tcp(address) };
        raw.stream.write_all(handshake(target).as_bytes()).unwrap();
        let head = raw.head();
        assert!(head.starts_with("HTTP/1.1 101 ") && head.contains(ACCEPT), "{head}");
        raw
    }

    /// Reads the response's head and not one byte more.
    pub fn head(&mut self) -> String {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(self.exactly(1)[0]);
        }
        String::from_utf8(head).unwrap()
    }

    pub fn exactly(&mut self, bytes: usize) -> Vec<u8> {
        let mut read = vec![0; bytes];
        self.stream.read_exact(&mut read).unwrap();
        read
    }

    /// Reads the next frame; returns its first byte and payload.
    pub fn frame(&mut self) -> (u8, Vec<u8>) {
        let head = self.exactly(2);
        let number = |bytes: Vec<u8>| bytes.iter().fold(0, |sum, &b| sum << 8 | usize::from(b));
        let length = match head[1] {
            126 => number(self.exactly(2)),
            127 => number(self.exactly(8)),
            short => usize::from(short),
        };
        assert!(head[1] < 128, "a server does not mask");
        (head[0], self.exactly(length))
    }

    /// Reads to the Close frame and to the end of the stream after it; returns its code.
    pub fn close_code(&mut self) -> u16 {
        loop {
            let (first, payload) = self.frame();
            if first == 0x88 {
                assert!(std::str::from_utf8(&payload[2..]).is_ok(), "a reason is UTF-8");
                assert!(self.is_at_end(), "bytes after the Close frame");
                return u16::from_be_bytes([payload[0], payload[1]]);
            }
        }
    }

    /// Returns whether the stream ends here, with FIN: a reset is an error.
    pub fn is_at_end(&mut self) -> bool {
        self.stream.read(&mut [0]).unwrap() == 0
    }
}

/// Returns a client's frame with that first byte.
pub fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
    let mask = [0x37, 0xfa, 0x21, 0x3d];
    let mut frame = vec![first];
    write_length(&mut frame, 0x80, payload.len());
    frame.extend(mask);
    frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, key)| byte ^ key));
    frame
}

/// Returns a server's frame with that first byte.
pub fn unmasked(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![first];
    write_length(&mut frame, 0, payload.len());
    frame.extend(payload);
    frame
}

fn write_length(frame: &mut Vec<u8>, mask_bit: u8, length: usize) {
    match length {
        0..=125 => frame.push(mask_bit | length as u8),
        126..=0xffff => {
            frame.push(mask_bit | 126);
            frame.extend((length as u16).to_be_bytes());
        }
        _ => {
            frame.push(mask_bit | 127);
            frame.extend((length as u64).to_be_bytes());
        }
    }
}
