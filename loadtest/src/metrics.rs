//! Figures from a server's `/metrics`: CPU time, memory, connections, and how long its workers kept
//! others waiting.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddrV4, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use crate::arguments::resolve_all;
use crate::server;
use crate::sys;

/// Time limit for one response.
const PATIENCE: Duration = Duration::from_secs(3);
/// Responses are cut off here: a node's has about 20 KB.
const MAX_BYTES: u64 = 16 << 20;
const INTERVAL: Duration = Duration::from_secs(1);

/// A source of a server's figures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// `http://host:port/path`
    Url { url: String, address: SocketAddrV4, path: String },
    /// A process on this machine.
    Process(u32),
}

impl Place {
    /// Reads `--metrics`: URLs separated by commas.
    pub fn parse_list(list: &str) -> Result<Vec<Place>, String> {
        list.split(',').map(|url| Place::parse(url.trim())).collect()
    }

    fn parse(url: &str) -> Result<Place, String> {
        let rest = url.strip_prefix("http://").unwrap_or(url);
        if rest.contains("://") {
            return Err(format!("--metrics {url}: only http:// is supported"));
        }
        let (host, path) = match rest.find('/') {
            Some(slash) => rest.split_at(slash),
            None => (rest, "/metrics"),
        };
        let address = resolve_all(host).map_err(|error| format!("--metrics {error}"))?;
        let [address] = address[..] else {
            return Err(format!("--metrics {url} has more than one host"));
        };
        let path = if path == "/" { "/metrics" } else { path };
        Ok(Place::Url { url: format!("http://{host}{path}"), address, path: path.to_owned() })
    }

    pub fn name(&self) -> String {
        match self {
            Place::Url { url, .. } => url.clone(),
            Place::Process(pid) => format!("process {pid}"),
        }
    }

    pub fn read(&self) -> Result<Scrape, String> {
        match self {
            Place::Url { url, address, path } => {
                let text = get(*address, path).map_err(|error| format!("--metrics {url}: {error}"));
                let mut scrape = parse(&text?);
                scrape.at_ns = sys::now_ns();
                Ok(scrape)
            }
            Place::Process(pid) => {
                let rss = server::rss(*pid)?;
                Ok(Scrape {
                    at_ns: sys::now_ns(),
                    cpu_s: server::cpu_ns(*pid) as f64 / 1e9,
                    rss,
                    ..Scrape::default()
                })
            }
        }
    }
}

/// Fetches a page and returns its body.
fn get(address: SocketAddrV4, path: &str) -> Result<String, String> {
    let fault = |error: std::io::Error| crate::client::describe(&error);
    let mut stream = TcpStream::connect_timeout(&address.into(), PATIENCE).map_err(fault)?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(fault)?;
    stream.set_write_timeout(Some(PATIENCE)).map_err(fault)?;
    let request = format!(
        "GET {path} HTTP/1.0\r\nHost: {address}\r\nAccept: text/plain\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).map_err(fault)?;
    let mut answer = Vec::new();
    stream.take(MAX_BYTES).read_to_end(&mut answer).map_err(fault)?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").ok_or("no HTTP response")?;
    match head.split(' ').nth(1) {
        Some("200") => Ok(body.to_owned()),
        status => Err(format!("status {}", status.unwrap_or("missing"))),
    }
}

/// A server's figures at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scrape {
    pub at_ns: u64,
    pub cpu_s: f64,
    pub rss: u64,
    pub connections: Option<u64>,
    /// How long ready tasks waited for a worker.
    pub pauses: Buckets,
    /// The part of it caused by the worker itself, without the core's time for other threads.
    pub own_pauses: Buckets,
    /// Durations of a worker's turns.
    pub turns: Buckets,
}

impl Scrape {
    /// Returns the longest time that workers kept others waiting since `earlier`, in milliseconds,
    /// as the upper bound of its bucket. Servers without a histogram of pauses have one of turns.
    pub fn longest_pause_ms(&self, earlier: &Scrape) -> Option<f64> {
        let pauses = self.pauses.longest_since(&earlier.pauses);
        let longest =
            if self.pauses.is_empty() { self.turns.longest_since(&earlier.turns) } else { pauses };
        longest.map(|seconds| seconds * 1e3)
    }

    /// Returns the same for the workers' own part, if the server exports it.
    pub fn longest_own_pause_ms(&self, earlier: &Scrape) -> Option<f64> {
        self.own_pauses.longest_since(&earlier.own_pauses).map(|seconds| seconds * 1e3)
    }
}

/// A Prometheus histogram: counts at or below a bound in nanoseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Buckets(BTreeMap<u64, u64>);

impl Buckets {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn add(&mut self, le: &str, count: u64) {
        let bound = match le.parse::<f64>() {
            Ok(seconds) if seconds.is_finite() => (seconds * 1e9) as u64,
            _ => u64::MAX,
        };
        *self.0.entry(bound).or_default() += count;
    }

    /// Returns the upper bound in seconds of the highest bucket that grew; `Some(0)`: none did.
    fn longest_since(&self, earlier: &Buckets) -> Option<f64> {
        let came = |(bound, count): (&u64, &u64)| {
            (*bound, count.saturating_sub(earlier.0.get(bound).copied().unwrap_or(0)))
        };
        let (mut below, mut longest, mut last) = (0, 0, 0);
        for (bound, count) in self.0.iter().map(came) {
            // Values above the last finite bound count as that bound, a lower limit.
            let finite = if bound == u64::MAX { last } else { bound };
            if count > below {
                longest = finite;
            }
            (below, last) = (count.max(below), finite);
        }
        (!self.is_empty()).then_some(longest as f64 / 1e9)
    }
}

/// Parses the Prometheus text format. Sums over all labels but `le`.
fn parse(text: &str) -> Scrape {
    let mut scrape = Scrape::default();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (name, rest) = match line.split_once('{') {
            Some((name, rest)) => (name, rest),
            None => line.split_once(' ').unwrap_or((line, "")),
        };
        let (labels, value) = rest.rsplit_once('}').unwrap_or(("", rest));
        let Some(value) = value.split_whitespace().next().and_then(|v| v.parse::<f64>().ok())
        else {
            continue;
        };
        let le = || {
            let (_, rest) = labels.split_once("le=\"")?;
            rest.split_once('"').map(|(le, _)| le)
        };
        match name {
            "process_cpu_seconds_total" | "process_cpu_seconds" => scrape.cpu_s = value,
            "process_resident_memory_bytes" => scrape.rss = value as u64,
            "ws_connection" => {
                scrape.connections = Some(scrape.connections.unwrap_or(0) + value as u64);
            }
            "ws_cluster_worker_pause_seconds_bucket" => {
                scrape.pauses.add(le().unwrap_or("+Inf"), value as u64);
            }
            "ws_cluster_worker_own_pause_seconds_bucket" => {
                scrape.own_pauses.add(le().unwrap_or("+Inf"), value as u64);
            }
            "ws_cluster_worker_turn_seconds_bucket" => {
                scrape.turns.add(le().unwrap_or("+Inf"), value as u64);
            }
            _ => {}
        }
    }
    scrape
}

/// A thread that queries every server once a second, so that a slow response delays nobody here. It
/// ends with the process.
pub struct Watcher {
    places: Vec<Place>,
    newest: Arc<Mutex<Vec<Option<Scrape>>>>,
}

impl Watcher {
    /// Starts the thread; `None`: there is no server to query.
    pub fn start(places: &[Place]) -> Option<Watcher> {
        if places.is_empty() {
            return None;
        }
        let newest: Vec<_> = places.iter().map(|place| place.read().ok()).collect();
        let watcher = Watcher { places: places.to_vec(), newest: Arc::new(Mutex::new(newest)) };
        let (places, newest) = (watcher.places.clone(), Arc::clone(&watcher.newest));
        thread::spawn(move || {
            loop {
                thread::sleep(INTERVAL);
                for (i, place) in places.iter().enumerate() {
                    let read = place.read().ok();
                    newest.lock().unwrap_or_else(PoisonError::into_inner)[i] = read;
                }
            }
        });
        Some(watcher)
    }

    pub fn places(&self) -> &[Place] {
        &self.places
    }

    /// Returns the last figures of each server; `None` for one that does not answer.
    pub fn newest(&self) -> Vec<Option<Scrape>> {
        self.newest.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Queries now: the end of a run is rarely a whole second after the last query.
    pub fn read_now(&self) -> Vec<Option<Scrape>> {
        self.places.iter().map(|place| place.read().ok()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# HELP ws_connection Open\nws_connection 7\nprocess_cpu_seconds_total 1.5\n\
        process_resident_memory_bytes 1048576\n\
        ws_cluster_worker_turn_seconds_bucket{worker=\"0\",le=\"0.001\"} 5\n\
        ws_cluster_worker_turn_seconds_bucket{worker=\"1\",le=\"0.001\"} 5\n\
        ws_cluster_worker_turn_seconds_bucket{le=\"0.002\"} 12\n\
        ws_cluster_worker_turn_seconds_bucket{le=\"+Inf\"} 12\nother{a=\"b}\"} nonsense\n";

    #[test]
    fn a_page_is_read() {
        let scrape = parse(TEXT);
        assert_eq!((scrape.connections, scrape.cpu_s, scrape.rss), (Some(7), 1.5, 1 << 20));
        assert_eq!(scrape.longest_pause_ms(&Scrape::default()), Some(2.0));
        assert_eq!(scrape.longest_pause_ms(&scrape), Some(0.0));
        assert_eq!(parse("").longest_pause_ms(&Scrape::default()), None);
        let later = TEXT.replace("+Inf\"} 12", "+Inf\"} 13");
        assert_eq!(parse(&later).longest_pause_ms(&scrape), Some(2.0), "above the last bound");
    }

    #[test]
    fn places_are_urls_or_addresses() {
        let name = |text: &str| Place::parse(text).map(|place| place.name());
        assert_eq!(name("127.0.0.1:9091").unwrap(), "http://127.0.0.1:9091/metrics");
        assert_eq!(name("http://127.0.0.1:1/m").unwrap(), "http://127.0.0.1:1/m");
        assert!(name("https://127.0.0.1:1/").unwrap_err().contains("only http://"));
        assert!(name("nowhere").is_err());
        assert_eq!(Place::parse_list("127.0.0.1:1, 127.0.0.1:2").unwrap().len(), 2);
        let this = Place::Process(std::process::id()).read().unwrap();
        assert!(this.rss > 0 && this.cpu_s > 0.0);
    }
}
