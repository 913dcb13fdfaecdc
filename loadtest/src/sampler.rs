//! The run over time: once a second, the figures of the threads and the servers become a row.

use serde_json::{Value, json};

use crate::metrics::{Scrape, Watcher};
use crate::report::rounded;
use crate::series::{Live, Mark, Snapshot};
use crate::server;
use crate::sys;

const SECOND_NS: u64 = 1_000_000_000;
/// Above this number of rows, neighbouring rows are merged and the interval doubles, so that a run
/// of days fits on a page.
const MAX_ROWS: usize = 1_800;

/// Counts are totals since the start, latencies those since the previous row.
#[derive(Clone, Debug, Default)]
struct Row {
    at_ns: u64,
    welcomed: u64,
    failed: u64,
    dropped: u64,
    open: u64,
    deliveries: u64,
    lost: u64,
    doubled: u64,
    connect: Quantiles,
    latency: Quantiles,
    tool_rss: u64,
    tool_cpu_ns: u64,
    servers: Vec<ServerRow>,
}

/// p50, p99 and maximum in microseconds; `None`: nothing was recorded.
type Quantiles = Option<[f64; 3]>;

#[derive(Clone, Debug, Default)]
struct ServerRow {
    /// `None`: the server did not answer.
    scrape: Option<Scrape>,
    /// Percentage of one core since the previous row.
    cpu_percent: Option<f64>,
    pause_ms: Option<f64>,
    own_pause_ms: Option<f64>,
}

pub struct Sampler {
    live: &'static Live,
    watcher: Option<Watcher>,
    connect: Snapshot,
    latency: Snapshot,
    series: Series,
    interval_ns: u64,
    next_ns: u64,
}

/// The samples of a run.
pub struct Series {
    began_ns: u64,
    rows: Vec<Row>,
    servers: Vec<String>,
    marks: Vec<Mark>,
}

impl Sampler {
    pub fn start(live: &'static Live, watcher: Option<Watcher>) -> Sampler {
        let began_ns = sys::now_ns();
        let servers = watcher.as_ref().map_or(Vec::new(), |watcher| {
            watcher.places().iter().map(|place| place.name()).collect()
        });
        let mut sampler = Sampler {
            live,
            watcher,
            connect: Snapshot::default(),
            latency: Snapshot::default(),
            series: Series { began_ns, rows: Vec::new(), servers, marks: Vec::new() },
            interval_ns: SECOND_NS,
            next_ns: began_ns + SECOND_NS,
        };
        sampler.sample(began_ns, false);
        sampler
    }

    /// Takes a row if one is due. Call it often.
    pub fn turn(&mut self) {
        let now = sys::now_ns();
        if now >= self.next_ns {
            self.sample(now, false);
            self.next_ns = (self.next_ns + self.interval_ns).max(now + self.interval_ns / 2);
        }
    }

    /// Takes the last row.
    pub fn finish(mut self) -> Series {
        self.sample(sys::now_ns(), true);
        self.series.marks = self.live.marks();
        self.series
    }

    fn sample(&mut self, now: u64, is_last: bool) {
        let live = self.live;
        let connect = live.snapshot(|thread| &thread.connect_latency);
        let latency = live.snapshot(|thread| &thread.latency);
        let pid = std::process::id();
        let row = Row {
            at_ns: now,
            welcomed: live.sum(|thread| &thread.welcomed),
            failed: live.sum(|thread| &thread.failed),
            dropped: live.sum(|thread| &thread.dropped),
            open: live.sum(|thread| &thread.open),
            deliveries: live.sum(|thread| &thread.deliveries),
            lost: live.sum(|thread| &thread.lost),
            doubled: live.sum(|thread| &thread.doubled),
            connect: quantiles(&connect.since(&self.connect)),
            latency: quantiles(&latency.since(&self.latency)),
            tool_rss: server::rss(pid).unwrap_or(0) + live.sum(|thread| &thread.process_rss),
            tool_cpu_ns: sys::process_cpu_ns() + live.sum(|thread| &thread.process_cpu_ns),
            servers: self.servers(is_last),
        };
        (self.connect, self.latency) = (connect, latency);
        self.series.rows.push(row);
        if self.series.rows.len() > MAX_ROWS {
            self.series.halve();
            self.interval_ns *= 2;
        }
    }

    fn servers(&self, is_last: bool) -> Vec<ServerRow> {
        // A run of seconds has its own samples of the server; this reading happens after the
        // connections are closed.
        let is_short = is_last && self.series.rows.len() < 3;
        let Some(watcher) = &self.watcher else { return Vec::new() };
        let newest = if is_short { watcher.read_now() } else { watcher.newest() };
        let each = newest.into_iter().enumerate();
        each.map(|(i, scrape)| {
            // Compares with the last row that has an answer.
            let rows = self.series.rows.iter().rev();
            let last = rows.map(|row| &row.servers[i]).find(|server| server.scrape.is_some());
            let before = last.and_then(|server| server.scrape.as_ref());
            let (Some(now), Some(before)) = (&scrape, before) else {
                return ServerRow { scrape, ..ServerRow::default() };
            };
            if now.at_ns == before.at_ns {
                // There was no new answer between two rows.
                return last.cloned().unwrap_or_default();
            }
            let elapsed_s = now.at_ns.saturating_sub(before.at_ns) as f64 / 1e9;
            let cpu_percent =
                (elapsed_s > 0.2).then(|| (now.cpu_s - before.cpu_s) * 100.0 / elapsed_s);
            let pause_ms = now.longest_pause_ms(before);
            let own_pause_ms = now.longest_own_pause_ms(before);
            ServerRow { scrape, cpu_percent, pause_ms, own_pause_ms }
        })
        .collect()
    }
}

fn quantiles(interval: &Snapshot) -> Quantiles {
    let at = |quantile| interval.quantile_ns(quantile).map(|ns| rounded(ns as f64 / 1e3));
    Some([at(0.5)?, at(0.99)?, at(1.0)?])
}

/// Merges two neighbours: the mean of the medians, the maximum of the others.
fn merged(a: Quantiles, b: Quantiles) -> Quantiles {
    match (a, b) {
        (Some(a), Some(b)) => Some([rounded((a[0] + b[0]) / 2.0), a[1].max(b[1]), a[2].max(b[2])]),
        _ => a.or(b),
    }
}

fn higher(a: Option<f64>, b: Option<f64>) -> Option<f64> {
    a.into_iter().chain(b).reduce(f64::max)
}

impl Series {
    fn halve(&mut self) {
        let rows = std::mem::take(&mut self.rows);
        let mut rows = rows.into_iter();
        // The first row is the start, which has no predecessor.
        self.rows.extend(rows.next());
        while let Some(one) = rows.next() {
            let Some(mut two) = rows.next() else {
                self.rows.push(one);
                break;
            };
            two.connect = merged(one.connect, two.connect);
            two.latency = merged(one.latency, two.latency);
            for (one, two) in one.servers.iter().zip(&mut two.servers) {
                two.cpu_percent = higher(one.cpu_percent, two.cpu_percent);
                two.pause_ms = higher(one.pause_ms, two.pause_ms);
                two.own_pause_ms = higher(one.own_pause_ms, two.own_pause_ms);
            }
            self.rows.push(two);
        }
    }

    /// Returns the peak memory of the tool and of each server, and the longest pause of a worker.
    pub fn peaks(&self) -> Peaks {
        let servers = || self.rows.iter().flat_map(|row| &row.servers);
        Peaks {
            tool_rss: self.rows.iter().map(|row| row.tool_rss).max().unwrap_or(0),
            tool_rss_before: self.rows.first().map_or(0, |row| row.tool_rss),
            open: self.rows.iter().map(|row| row.open).max().unwrap_or(0),
            server_rss: servers().filter_map(|s| Some(s.scrape.as_ref()?.rss)).max(),
            pause_ms: servers().filter_map(|server| server.pause_ms).reduce(f64::max),
            own_pause_ms: servers().filter_map(|server| server.own_pause_ms).reduce(f64::max),
        }
    }

    /// Returns columns of equal length. Rates are since the previous row.
    pub fn to_json(&self) -> Value {
        let rows = &self.rows;
        let column = |of: &dyn Fn(&Row) -> Value| rows.iter().map(of).collect::<Vec<Value>>();
        let rate = |of: &dyn Fn(&Row) -> u64| {
            let before = std::iter::once(None).chain(rows.iter().map(Some));
            let rates = rows.iter().zip(before).map(|(row, before)| {
                let before = before?;
                let elapsed_s = row.at_ns.saturating_sub(before.at_ns) as f64 / 1e9;
                let came = of(row).saturating_sub(of(before)) as f64;
                // The last row may follow right after another, and its rate would be noise.
                (elapsed_s > 0.2).then(|| rounded(came / elapsed_s))
            });
            rates.collect::<Vec<_>>()
        };
        let quantile = |of: &dyn Fn(&Row) -> Quantiles, i: usize| {
            rows.iter().map(|row| of(row).map(|all| all[i])).collect::<Vec<_>>()
        };
        let seconds = |ns: u64| rounded(ns.saturating_sub(self.began_ns) as f64 / 1e9);
        let marks = self.marks.iter();
        json!({
            "at_s": column(&|row| json!(seconds(row.at_ns))),
            "connects_per_s": rate(&|row| row.welcomed),
            "open": column(&|row| json!(row.open)),
            "connects_failed": column(&|row| json!(row.failed)),
            "ended_by_server": column(&|row| json!(row.dropped)),
            "connect_p50_us": quantile(&|row| row.connect, 0),
            "connect_p99_us": quantile(&|row| row.connect, 1),
            "connect_max_us": quantile(&|row| row.connect, 2),
            "deliveries_per_s": rate(&|row| row.deliveries),
            "latency_p50_us": quantile(&|row| row.latency, 0),
            "latency_p99_us": quantile(&|row| row.latency, 1),
            "latency_max_us": quantile(&|row| row.latency, 2),
            "lost": column(&|row| json!(row.lost)),
            "doubled": column(&|row| json!(row.doubled)),
            "tool_cpu_percent": rate(&|row| row.tool_cpu_ns / 10_000_000),
            "tool_rss_bytes": column(&|row| json!(row.tool_rss)),
            "servers": self.servers.iter().enumerate().map(|(i, name)| {
                let scraped = |of: &dyn Fn(&Scrape) -> Value| {
                    column(&|row| row.servers[i].scrape.as_ref().map_or(Value::Null, of))
                };
                json!({
                    "name": name,
                    "cpu_percent": column(&|row| json!(row.servers[i].cpu_percent.map(rounded))),
                    "rss_bytes": scraped(&|scrape| json!(scrape.rss)),
                    "connections": scraped(&|scrape| json!(scrape.connections)),
                    "longest_pause_ms": column(&|row| json!(row.servers[i].pause_ms)),
                    "longest_own_pause_ms": column(&|row| json!(row.servers[i].own_pause_ms)),
                })
            }).collect::<Vec<_>>(),
            "marks": marks.map(|mark| json!({
                "at_s": seconds(mark.at_ns),
                "name": mark.name,
            })).collect::<Vec<_>>(),
        })
    }
}

/// The peak values of a run.
pub struct Peaks {
    pub tool_rss: u64,
    /// The tool's memory before the first connection.
    pub tool_rss_before: u64,
    pub open: u64,
    pub server_rss: Option<u64>,
    pub pause_ms: Option<f64>,
    pub own_pause_ms: Option<f64>,
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;

    #[test]
    fn rows_are_halved_without_losing_a_peak() {
        let live: &'static Live = Box::leak(Box::new(Live::new(1)));
        let mut sampler = Sampler::start(live, None);
        let began_ns = sampler.series.began_ns;
        for second in 1..=2_000u64 {
            live.of(0).deliveries.store(second * 10, Ordering::Relaxed);
            live.of(0).latency.record_n(if second == 999 { 5_000_000 } else { 1_000_000 }, 10);
            sampler.sample(began_ns + second * SECOND_NS, false);
        }
        let series = sampler.series;
        assert!(series.rows.len() < MAX_ROWS, "{}", series.rows.len());
        let json = series.to_json();
        let rates = json["deliveries_per_s"].as_array().unwrap();
        assert_eq!(rates.len(), series.rows.len());
        assert!(rates[1..].iter().all(|rate| *rate == 10.0), "{rates:?}");
        assert_eq!(json["at_s"][1], 2.0);
        let longest = json["latency_max_us"].as_array().unwrap().iter();
        let longest = longest.filter_map(Value::as_f64).fold(0.0, f64::max);
        assert!((5_000.0..5_100.0).contains(&longest), "{longest}");
    }

    #[test]
    fn servers_are_columns_too() {
        let live: &'static Live = Box::leak(Box::new(Live::new(1)));
        let place = crate::metrics::Place::Process(std::process::id());
        let sampler = Sampler::start(live, Watcher::start(&[place]));
        live.mark("push");
        let series = sampler.finish();
        assert!(series.peaks().server_rss.unwrap() > 0);
        let json = series.to_json();
        assert_eq!(json["servers"][0]["rss_bytes"].as_array().unwrap().len(), 2);
        assert_eq!(json["marks"][0]["name"], "push");
        assert_eq!(json["servers"][0]["longest_pause_ms"][1], Value::Null);
    }
}
