//! `health`: asks the node on this machine whether it is ready. Blocking TCP is enough for that.

use super::{Environment, Output};
use crate::config::{Arguments, Exit, local_http_port};
use serde_json::{Value, json};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

const DEFAULT_TIMEOUT_MS: u64 = 2_000;
const MAX_TIMEOUT_MS: u64 = 600_000;
/// A longer answer is not one of a node.
const MAX_ANSWER_BYTES: usize = 64 << 10;

pub(super) fn run(arguments: &Arguments, env: Environment<'_>) -> Result<Output, Exit> {
    let timeout = timeout(arguments)?;
    let address = local_http_port(arguments, env.get)?;
    let url = format!("http://{address}/readyz");
    let began = Instant::now();
    let answer = ask(address, "/readyz", began + timeout);
    let elapsed_ms = began.elapsed().as_millis() as u64;
    let is_ready = answer.as_ref().is_ok_and(|answer| answer.status == 200);
    let text = if arguments.has("json") {
        let (status, body, error) = match answer {
            Ok(answer) => (Some(answer.status), Some(answer.body()), None),
            Err(error) => (None, None, Some(described(&error))),
        };
        let all = json!({
            "ready": is_ready, "url": url, "status": status, "body": body, "error": error,
            "elapsed_ms": elapsed_ms,
        });
        format!("{all:#}\n")
    } else {
        match answer {
            Ok(answer) if is_ready => format!("ready: {url} answered {}\n", answer.status),
            Ok(answer) => {
                format!("not ready: {url} answered {}{}\n", answer.status, answer.reason())
            }
            Err(error) => format!("not ready: {url}: {}\n", described(&error)),
        }
    };
    Ok(Output::of(text, is_ready))
}

fn timeout(arguments: &Arguments) -> Result<Duration, Exit> {
    let Some(text) = arguments.option("timeout_ms") else {
        return Ok(Duration::from_millis(DEFAULT_TIMEOUT_MS));
    };
    match text.parse() {
        Ok(ms @ 1..=MAX_TIMEOUT_MS) => Ok(Duration::from_millis(ms)),
        _ => Err(arguments.wrong(format!(
            "--timeout_ms '{text}' is not a time in milliseconds: use a number from 1 to \
             {MAX_TIMEOUT_MS}"
        ))),
    }
}

/// Asks the node whose HTTP port this is for its number; `None`: no node listens there.
pub(super) fn node_at(address: SocketAddr) -> Option<u64> {
    let answer = ask(address, "/version", Instant::now() + Duration::from_secs(1)).ok()?;
    answer.body()["node"].as_u64().filter(|_| answer.status == 200)
}

#[derive(Debug)]
struct Answer {
    status: u16,
    text: String,
}

impl Answer {
    /// Returns the body as JSON if it is JSON, else as text.
    fn body(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|_| Value::from(&*self.text))
    }

    /// Returns the node's reason, in one line.
    fn reason(&self) -> String {
        let body = self.body();
        let reason = body["msg"].as_str().unwrap_or(&self.text);
        let reason = crate::types::in_one_line(reason.trim(), 300);
        if reason.is_empty() { reason } else { format!(": {reason}") }
    }
}

fn ask(address: SocketAddr, path: &str, until: Instant) -> io::Result<Answer> {
    let left = || match until.saturating_duration_since(Instant::now()) {
        Duration::ZERO => Err(io::Error::from(ErrorKind::TimedOut)),
        left => Ok(left),
    };
    let mut stream = TcpStream::connect_timeout(&address, left()?)?;
    stream.set_write_timeout(Some(left()?))?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut bytes = Vec::new();
    let mut piece = [0; 4096];
    loop {
        stream.set_read_timeout(Some(left()?))?;
        match stream.read(&mut piece) {
            Ok(0) => return parse(&bytes, true)?.ok_or_else(|| ErrorKind::UnexpectedEof.into()),
            Ok(read) => bytes.extend_from_slice(&piece[..read]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        if let Some(answer) = parse(&bytes, false)? {
            return Ok(answer);
        }
        if bytes.len() > MAX_ANSWER_BYTES {
            return Err(no_http());
        }
    }
}

/// Parses an answer; `None` if it is not complete. `is_all`: the peer has ended its side.
fn parse(bytes: &[u8], is_all: bool) -> io::Result<Option<Answer>> {
    let mut fields = [httparse::EMPTY_HEADER; 64];
    let mut response = httparse::Response::new(&mut fields);
    let head = match response.parse(bytes).map_err(|_| no_http())? {
        httparse::Status::Complete(head) => head,
        httparse::Status::Partial => return Ok(None),
    };
    let status = response.code.unwrap_or_default();
    let mut fields = response.headers.iter();
    let length = fields.find(|field| field.name.eq_ignore_ascii_case("content-length"));
    let length = length.and_then(|field| str::from_utf8(field.value).ok()?.parse::<usize>().ok());
    let body = &bytes[head..];
    let is_whole = is_all || length.is_some_and(|length| body.len() >= length);
    let text = || String::from_utf8_lossy(body).into_owned();
    Ok(is_whole.then(|| Answer { status, text: text() }))
}

fn no_http() -> io::Error {
    io::Error::new(ErrorKind::InvalidData, "the answer is not HTTP: another program listens there")
}

/// Returns an error in words; the system's differ for a timeout.
fn described(error: &io::Error) -> String {
    match error.kind() {
        ErrorKind::TimedOut | ErrorKind::WouldBlock => "no answer in time".into(),
        ErrorKind::ConnectionRefused => "connection refused: no node listens there".into(),
        ErrorKind::UnexpectedEof => "the connection ended before the answer".into(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use std::thread;

    /// Runs the command against a peer that answers with these bytes.
    fn health(answer: &'static str, json: bool) -> Output {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port().to_string();
        let peer = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.read(&mut [0; 1024]);
            let _ = stream.write_all(answer.as_bytes());
        });
        let mut args = vec!["health".to_owned(), "--http_port".into(), port.clone()];
        args.extend(json.then(|| "--json".to_owned()));
        let env = Environment { get: &|_| None, all: &[] };
        let mut output = run(&Arguments::parse(&args).unwrap(), env).unwrap();
        peer.join().unwrap();
        output.text = output.text.replace(&port, "PORT");
        output
    }

    #[test]
    fn a_node_is_ready_or_not() {
        let at = "http://127.0.0.1:PORT/readyz";
        for (answer, text, code) in [
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
                format!("ready: {at} answered 200\n"),
                0,
            ),
            (
                "HTTP/1.1 503 x\r\n\r\n{\"code\":0,\"msg\":\"queue: connecting\"}",
                format!("not ready: {at} answered 503: queue: connecting\n"),
                1,
            ),
            (
                "HTTP/1.1 404 x\r\ncontent-length: 0\r\n\r\n",
                format!("not ready: {at} answered 404\n"),
                1,
            ),
            (
                "HTTP/1.1 200",
                format!("not ready: {at}: the connection ended before the answer\n"),
                1,
            ),
            (
                "-ERR unknown command\r\n",
                format!("not ready: {at}: the answer is not HTTP: another program listens there\n"),
                1,
            ),
        ] {
            assert_eq!(health(answer, false), Output { text, code });
        }
        let output = health("HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\n{\"node\":200}", true);
        let json: Value = serde_json::from_str(&output.text).unwrap();
        assert_eq!((json["ready"].as_bool(), json["status"].as_u64()), (Some(true), Some(200)));
    }

    #[test]
    fn a_wrong_time_and_an_unknown_port_are_wrong_use() {
        let env = Environment { get: &|_| None, all: &[] };
        for (line, part) in [
            ("health --timeout_ms 0", "--timeout_ms '0' is not a time"),
            ("health --http_port 0", "--http_port 0 is any free port"),
            ("health --http_port x", "--http_port 'x' is not a port"),
        ] {
            let args: Vec<String> = line.split_whitespace().map(String::from).collect();
            let error = run(&Arguments::parse(&args).unwrap(), env).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
