//! Redis: whether it is reachable, what it is, and how it is set. A plain blocking client is enough
//! for that.

use super::{Finding, bytes, grouped};
use crate::wire::redis_url::{Endpoint, RedisUrl};
use crate::wire::resp::write_command;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(2);
const PINGS: usize = 20;
/// A longer round trip is not one within a data centre.
const SLOW: Duration = Duration::from_millis(2);
/// Bounds of a reply.
const MAX_BULK_BYTES: usize = 1 << 20;
const MAX_ELEMENTS: usize = 1_024;
const MAX_DEPTH: usize = 4;
/// Redis's default for subscribers.
const DEFAULT_OUTPUT_BYTES: u64 = 32 << 20;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Reply {
    Text(String),
    Error(String),
    List(Vec<Reply>),
    Null,
}

impl Reply {
    fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    /// Returns the second of two texts, as CONFIG GET answers.
    fn parameter(&self) -> Option<&str> {
        match self {
            Self::List(parts) => parts.get(1)?.text(),
            _ => None,
        }
    }
}

trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

struct Client(BufReader<Box<dyn Stream>>);

impl Client {
    fn connect(url: &RedisUrl) -> io::Result<Self> {
        let stream: Box<dyn Stream> = match &url.endpoint {
            Endpoint::Tcp { host, port } => Box::new(connect_tcp(host, *port)?),
            Endpoint::Unix { path } => {
                let stream = UnixStream::connect(path)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.set_write_timeout(Some(PATIENCE))?;
                Box::new(stream)
            }
        };
        Ok(Self(BufReader::new(stream)))
    }

    fn ask(&mut self, command: &[&[u8]]) -> io::Result<Reply> {
        let mut bytes = Vec::new();
        write_command(&mut bytes, command);
        self.0.get_mut().write_all(&bytes)?;
        self.read(0)
    }

    fn read(&mut self, depth: usize) -> io::Result<Reply> {
        let malformed = || io::Error::new(ErrorKind::InvalidData, "the answer is not Redis's");
        let mut line = Vec::new();
        let limit = MAX_BULK_BYTES as u64;
        (&mut self.0).take(limit).read_until(b'\n', &mut line)?;
        if line.is_empty() {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        let line = String::from_utf8_lossy(&line).trim_end().to_owned();
        let kind = line.chars().next().ok_or_else(malformed)?;
        let rest = line.get(1..).ok_or_else(malformed)?;
        let length = || rest.parse::<i64>().map_err(|_| malformed());
        match kind {
            '+' | ':' => Ok(Reply::Text(rest.to_owned())),
            '-' => Ok(Reply::Error(rest.to_owned())),
            '$' | '*' if length()? < 0 => Ok(Reply::Null),
            '$' => {
                let length = usize::try_from(length()?).unwrap_or(usize::MAX);
                if length > MAX_BULK_BYTES {
                    return Err(malformed());
                }
                let mut bulk = vec![0; length + 2];
                self.0.read_exact(&mut bulk)?;
                bulk.truncate(length);
                Ok(Reply::Text(String::from_utf8_lossy(&bulk).into_owned()))
            }
            '*' => {
                let count = usize::try_from(length()?).unwrap_or(usize::MAX);
                if count > MAX_ELEMENTS || depth == MAX_DEPTH {
                    return Err(malformed());
                }
                (0..count).map(|_| self.read(depth + 1)).collect::<io::Result<_>>().map(Reply::List)
            }
            _ => Err(malformed()),
        }
    }
}

fn connect_tcp(host: &str, port: u16) -> io::Result<TcpStream> {
    let mut last = io::Error::new(ErrorKind::NotFound, "the name has no address");
    for address in (host, port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, PATIENCE) {
            Ok(stream) => {
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.set_write_timeout(Some(PATIENCE))?;
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// What was learnt about a Redis.
#[derive(Debug, Default)]
struct Facts {
    /// INFO, as text.
    info: String,
    output_limit: Option<String>,
    policy: Option<String>,
    median: Option<Duration>,
}

impl Facts {
    fn field(&self, name: &str) -> Option<&str> {
        self.info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
    }

    fn number(&self, name: &str) -> Option<u64> {
        self.field(name)?.trim().parse().ok()
    }
}

const REACH_COSTS: &str = "without Redis a node of a cluster refuses every push";

pub(super) fn findings(url: &RedisUrl) -> Vec<Finding> {
    let facts = match ask_all(url) {
        Ok(facts) => facts,
        Err(why) => {
            // Displaying the URL shows its password as ***.
            let fix = "start it, or correct --redis; a firewall or `bind` and `protected-mode` of \
                       redis.conf may refuse this machine";
            return vec![Finding::fail("redis", format!("{url}: {why}"), REACH_COSTS, fix)];
        }
    };
    vec![
        server(url, &facts),
        latency(&facts),
        output_buffer(&facts),
        evictions(&facts),
        clients(&facts),
    ]
}

/// Asks everything; the error is why not even a PING is answered.
fn ask_all(url: &RedisUrl) -> Result<Facts, String> {
    let words = |error: io::Error| match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => "no answer within 2 s".to_owned(),
        _ => error.to_string(),
    };
    let mut client = Client::connect(url).map_err(words)?;
    let mut ask = |command: &[&[u8]]| client.ask(command).map_err(words);
    if let Some(password) = &url.password {
        let password = password.expose().as_bytes();
        let reply = match &url.user {
            Some(user) => ask(&[b"AUTH", user.as_bytes(), password])?,
            None => ask(&[b"AUTH", password])?,
        };
        if let Reply::Error(why) = reply {
            return Err(why);
        }
    }
    if let Reply::Error(why) = ask(&[b"PING"])? {
        return Err(why);
    }
    let mut times = Vec::with_capacity(PINGS);
    for _ in 0..PINGS {
        let began = Instant::now();
        ask(&[b"PING"])?;
        times.push(began.elapsed());
    }
    times.sort();
    // What access rules forbid stays unknown.
    let mut parameter = |name: &[u8]| -> Result<Option<String>, String> {
        Ok(ask(&[b"CONFIG", b"GET", name])?.parameter().map(str::to_owned))
    };
    let output_limit = parameter(b"client-output-buffer-limit")?;
    let policy = parameter(b"maxmemory-policy")?;
    let info = ask(&[b"INFO"])?.text().unwrap_or_default().to_owned();
    Ok(Facts { info, output_limit, policy, median: times.get(PINGS / 2).copied() })
}

fn server(url: &RedisUrl, facts: &Facts) -> Finding {
    let name = "redis";
    let version = facts.field("redis_version").unwrap_or("unknown").trim().to_owned();
    let role = facts.field("role").unwrap_or("unknown").trim();
    let is_cluster = facts.number("cluster_enabled") == Some(1);
    let is = format!("{url}: version {version}, role {role}");
    if role == "slave" && !is_cluster {
        let costs = "a replica accepts pushes but delivers them to no other server";
        return Finding::fail(name, is, costs, "name the master with --redis");
    }
    let major = version.split('.').next().and_then(|major| major.parse::<u32>().ok());
    match major {
        Some(..6) => {
            let costs = "the tests run against Redis 7; before 6 there is no RESP3";
            Finding::warn(name, is, costs, "install Redis 6 or later")
        }
        _ => Finding::ok(name, is, REACH_COSTS),
    }
}

fn latency(facts: &Facts) -> Finding {
    let (name, costs) = ("redis latency", "each push waits for one round trip");
    let Some(median) = facts.median else { return Finding::ok(name, "unknown", costs) };
    let is = format!("{} us, median of {PINGS} PINGs", grouped(median.as_micros() as u64));
    match median > SLOW {
        true => {
            let fix = "run Redis nearer; look for slow commands (SLOWLOG GET) and a busy core";
            Finding::warn(name, is, costs, fix)
        }
        false => Finding::ok(name, is, costs),
    }
}

/// Returns the hard limit, the soft limit and its seconds of a class of clients.
fn limits_of(text: &str, class: &str) -> Option<[u64; 3]> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let at = words.iter().position(|word| *word == class)?;
    let number = |index: usize| words.get(at + index)?.parse().ok();
    Some([number(1)?, number(2)?, number(3)?])
}

fn output_buffer(facts: &Facts) -> Finding {
    let name = "redis output buffer";
    let costs = "Redis cuts a subscriber whose messages exceed it, and a node sends no more than \
                 its share of it at once";
    let limits = facts.output_limit.as_deref().and_then(|text| limits_of(text, "pubsub"));
    let Some([hard, soft, seconds]) = limits else {
        return Finding::ok(name, "unknown: CONFIG GET is not allowed", costs);
    };
    let shown = |limit| if limit == 0 { "unlimited".to_owned() } else { bytes(limit) };
    let is = format!("pubsub {}, {} for {seconds} s", shown(hard), shown(soft));
    match hard != 0 && hard < DEFAULT_OUTPUT_BYTES {
        true => {
            let fix = "CONFIG SET client-output-buffer-limit 'pubsub 268435456 67108864 60'";
            Finding::warn(name, is, costs, fix)
        }
        false => Finding::ok(name, is, costs),
    }
}

fn evictions(facts: &Facts) -> Finding {
    let name = "redis memory";
    let costs = "a Redis that evicts may lose the node's keys, which keep ids apart";
    let max = facts.number("maxmemory").unwrap_or(0);
    let evicted = facts.number("evicted_keys").unwrap_or(0);
    let policy = facts.policy.as_deref().or(facts.field("maxmemory_policy")).unwrap_or("unknown");
    let policy = policy.trim();
    let limit = if max == 0 { "no limit".to_owned() } else { bytes(max) };
    let is = format!("maxmemory {limit}, {policy}, {} evicted", grouped(evicted));
    let may_evict = max > 0 && policy.starts_with("allkeys");
    match may_evict || evicted > 0 {
        true => {
            let fix = "CONFIG SET maxmemory-policy noeviction, or a Redis of its own";
            Finding::warn(name, is, costs, fix)
        }
        false => Finding::ok(name, is, costs),
    }
}

fn clients(facts: &Facts) -> Finding {
    let (name, costs) = ("redis clients", "each node takes two; beyond maxclients it is refused");
    let (Some(now), Some(max)) = (facts.number("connected_clients"), facts.number("maxclients"))
    else {
        return Finding::ok(name, "unknown", costs);
    };
    let is = format!("{} of {}", grouped(now), grouped(max));
    match now + 2 > max {
        true => Finding::fail(name, is, costs, format!("CONFIG SET maxclients {}", max + 1_000)),
        false => Finding::ok(name, is, costs),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::*;
    use std::net::TcpListener;
    use std::thread;

    fn reply(bytes: &str) -> io::Result<Reply> {
        let stream = io::Cursor::new(bytes.as_bytes().to_vec());
        Client(BufReader::new(Box::new(stream))).read(0)
    }

    #[test]
    fn replies_are_read_and_bounded() {
        let text = |text: &str| Reply::Text(text.into());
        assert_eq!(reply("+PONG\r\n").unwrap(), text("PONG"));
        assert_eq!(reply("$3\r\na\r\n\r\n").unwrap(), text("a\r\n"));
        assert_eq!(reply("-ERR x\r\n").unwrap(), Reply::Error("ERR x".into()));
        assert_eq!(reply("$-1\r\n").unwrap(), Reply::Null);
        let list = reply("*2\r\n$1\r\na\r\n:7\r\n").unwrap();
        assert_eq!(list.parameter(), Some("7"));
        assert_eq!(list, Reply::List(vec![text("a"), text("7")]));
        for bad in [
            "",
            "HTTP/1.1 400\r\n",
            "$9999999\r\n",
            "*9999\r\n",
            "$x\r\n",
            "$5\r\nab",
            "*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n:1\r\n",
            "é\r\n",
        ] {
            assert!(reply(bad).is_err(), "{bad}");
        }
    }

    /// Runs the checks against a peer that answers each command with the next of these.
    fn against(answers: Vec<String>) -> Vec<Finding> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("redis://:hunter2@{}", listener.local_addr().unwrap());
        let peer = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            for answer in answers {
                if stream.read(&mut [0; 1024]).is_ok_and(|read| read > 0) {
                    let _ = stream.write_all(answer.as_bytes());
                }
            }
        });
        let found = findings(&url.parse().unwrap());
        peer.join().unwrap();
        assert!(!format!("{found:?}").contains("hunter2"));
        found
    }

    #[test]
    fn a_redis_is_judged_by_its_answers() {
        let bulk = |text: &str| format!("${}\r\n{text}\r\n", text.len());
        let pair = |name: &str, value: &str| format!("*2\r\n{}{}", bulk(name), bulk(value));
        let answers = |info: &str, limit: &str, policy: &str| {
            let mut all = vec!["+OK\r\n".to_owned()];
            all.extend(vec!["+PONG\r\n".to_owned(); 1 + PINGS]);
            all.push(pair("client-output-buffer-limit", limit));
            all.push(pair("maxmemory-policy", policy));
            all.push(bulk(info));
            all
        };
        let info = "redis_version:7.0.15\r\nrole:master\r\nmaxmemory:0\r\nevicted_keys:0\r\n\
                    connected_clients:3\r\nmaxclients:10000\r\n";
        let limit = "normal 0 0 0 slave 268435456 67108864 60 pubsub 33554432 8388608 60";
        let good = against(answers(info, limit, "noeviction"));
        // A busy machine may be slow.
        let mut others = good.iter().filter(|finding| finding.name != "redis latency");
        assert!(others.all(|finding| finding.status == Status::Ok), "{good:?}");
        assert!(good[0].is.contains("version 7.0.15, role master"), "{good:?}");
        assert_eq!(good[2].is, "pubsub 32 MiB, 8 MiB for 60 s");
        let info = "redis_version:5.0.1\r\nrole:slave\r\nmaxmemory:1048576\r\nevicted_keys:9\r\n\
                    connected_clients:10\r\nmaxclients:10\r\n";
        let bad = against(answers(info, "pubsub 1048576 0 0", "allkeys-lru"));
        let status: Vec<Status> = bad.iter().map(|finding| finding.status).collect();
        assert_eq!(status[0], Status::Fail, "{bad:?}");
        assert_eq!(status[2..], [Status::Warn, Status::Warn, Status::Fail], "{bad:?}");
        let refused = against(vec!["-WRONGPASS invalid\r\n".into()]);
        assert!(refused[0].is.ends_with("WRONGPASS invalid") && refused.len() == 1, "{refused:?}");
    }

    #[test]
    fn a_redis_that_is_not_there_fails() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("redis://{}", listener.local_addr().unwrap());
        drop(listener);
        let found = findings(&url.parse().unwrap());
        assert!(found[0].status == Status::Fail && found[0].is.contains("refused"), "{found:?}");
    }
}
