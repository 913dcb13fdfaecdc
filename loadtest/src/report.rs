//! The results of a run: ordered figures, for people or as one JSON object.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;
use serde_json::{Map, Value, json};

use crate::processes::Part;
use crate::sampler::Series;
use crate::thresholds::{Measured, Thresholds, Verdict};
use crate::{machine, page, sys};

/// Returns a histogram of nanoseconds up to two minutes, exact to three digits.
pub fn new_histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 120_000_000_000, 3)
        .unwrap_or_else(|_| unreachable!("the bounds are constants and valid"))
}

#[inline]
pub fn record(histogram: &mut Histogram<u64>, ns: u64) {
    histogram.saturating_record(ns);
}

/// Adds the recordings of another thread.
pub fn merge(into: &mut Histogram<u64>, from: &Histogram<u64>) {
    // Both have the same bounds, and different ones are the only possible error.
    let _ = into.add(from);
}

/// Returns the quantile in microseconds.
pub fn quantile_us(histogram: &Histogram<u64>, quantile: f64) -> f64 {
    rounded(histogram.value_at_quantile(quantile) as f64 / 1000.0)
}

/// Number of failures by kind.
#[derive(Default)]
pub struct Failures(BTreeMap<String, u64>);

impl Failures {
    pub fn add(&mut self, kind: &str) {
        // Limits the number of kinds, which may contain texts of the server.
        let known = self.0.len() < 100 || self.0.contains_key(kind);
        let kind = if known { kind } else { "other" };
        *self.0.entry(kind.to_owned()).or_default() += 1;
    }

    pub fn merge(&mut self, other: Failures) {
        for (kind, count) in other.0 {
            *self.0.entry(kind).or_default() += count;
        }
    }

    pub fn add_all(&mut self, other: &Failures) {
        for (kind, count) in &other.0 {
            *self.0.entry(kind.clone()).or_default() += count;
        }
    }

    pub fn total(&self) -> u64 {
        self.0.values().sum()
    }

    /// Returns every kind in one line.
    pub fn to_text(&self) -> String {
        let kinds: Vec<_> =
            self.0.iter().map(|(kind, count)| format!("{kind} ({count})")).collect();
        kinds.join(", ")
    }
}

/// The figures of a run. Keys end in their unit; histograms are in microseconds.
pub struct Report {
    figures: Map<String, Value>,
    /// By key: merged when the reports of several processes are combined.
    histograms: BTreeMap<String, Histogram<u64>>,
    failed: bool,
    judged: Measured,
    /// The run over time.
    pub series: Option<Series>,
    pub thresholds: Thresholds,
    verdicts: Vec<Verdict>,
}

impl Report {
    pub fn new(command: &str) -> Report {
        let mut report = Report {
            figures: Map::new(),
            histograms: BTreeMap::new(),
            failed: false,
            judged: Measured::default(),
            series: None,
            thresholds: Thresholds::default(),
            verdicts: Vec::new(),
        };
        report.set("command", command);
        report
    }

    pub fn set(&mut self, key: &str, value: impl Into<Value>) {
        self.figures.insert(key.to_owned(), value.into());
    }

    /// Sets a figure with at most three decimals.
    pub fn set_rounded(&mut self, key: &str, value: f64) {
        self.set(key, rounded(value));
    }

    pub fn set_histogram(&mut self, key: &str, histogram: &Histogram<u64>) {
        if Part::of_this_process().is_child() {
            self.histograms.insert(key.to_owned(), histogram.clone());
        }
        let us = |ns: u64| rounded(ns as f64 / 1000.0);
        let at = |quantile| quantile_us(histogram, quantile);
        let value = json!({
            "count": histogram.len(),
            "min": us(if histogram.is_empty() { 0 } else { histogram.min() }),
            "mean": rounded(histogram.mean() / 1000.0),
            "p50": at(0.5),
            "p90": at(0.9),
            "p99": at(0.99),
            "p99.9": at(0.999),
            "max": us(histogram.max()),
        });
        self.set(key, value);
    }

    /// Sets a count that must be 0: any other makes the run a failure.
    pub fn set_fault(&mut self, key: &str, count: u64) {
        self.failed |= count > 0;
        self.set(key, count);
    }

    /// Sets a count of messages that did not arrive correctly; `--max-loss` of them are tolerated
    /// (0).
    pub fn set_lost(&mut self, key: &str, count: u64) {
        self.judged.lost += count;
        self.set(key, count);
    }

    /// Sets the latency that `--max-p99` judges, including the wait for a turn if there is a rate.
    pub fn set_judged_latency(&mut self, key: &str, histogram: &Histogram<u64>) {
        self.judged.latency = Some((key.to_owned(), histogram.value_at_quantile(0.99)));
        self.set_histogram(key, histogram);
    }

    /// Sets the rate per second that `--min-rate` judges.
    pub fn set_judged_rate(&mut self, key: &str, per_s: f64) {
        self.judged.rate = Some((key.to_owned(), per_s));
        self.set_rounded(key, per_s);
    }

    pub fn set_failures(&mut self, key: &str, failures: &Failures) {
        self.failed |= failures.total() > 0;
        self.set(key, json!(failures.0));
    }

    /// Adds the figures of one part of the run, under `phases`. A failure there fails the run.
    pub fn set_phase(&mut self, name: &str, mut phase: Report) {
        self.failed |= phase.failed;
        phase.figures.shift_remove("command");
        let phases = self.figures.entry(PHASES).or_insert_with(|| json!({}));
        if let Value::Object(phases) = phases {
            phases.insert(name.to_owned(), Value::Object(phase.figures));
        }
    }

    /// Makes the run a failure for a reason other than a figure.
    pub fn fail(&mut self) {
        self.failed = true;
    }

    /// Judges the thresholds and adds what every report contains: the tool's own memory, the
    /// machine, the time and the command. Call it once, at the end.
    pub fn conclude(&mut self) {
        if let Some(peaks) = self.series.as_ref().map(Series::peaks) {
            self.set("tool_rss_peak_bytes", peaks.tool_rss);
            if peaks.open > 0 {
                let grown = peaks.tool_rss.saturating_sub(peaks.tool_rss_before) as f64;
                self.set_rounded("tool_rss_bytes_per_connection", grown / peaks.open as f64);
            }
            if let Some(rss) = peaks.server_rss {
                self.set("server_rss_peak_bytes", rss);
            }
            if let Some(pause_ms) = peaks.pause_ms {
                self.set_rounded("server_longest_pause_ms", pause_ms);
            }
            if let Some(pause_ms) = peaks.own_pause_ms {
                self.set_rounded("server_longest_own_pause_ms", pause_ms);
            }
            self.judged.pause_ms = peaks.own_pause_ms.or(peaks.pause_ms);
            self.judged.server_rss = peaks.server_rss;
        }
        if sys::interrupted() {
            self.set("interrupted", true);
        }
        self.verdicts = self.thresholds.judge(&self.judged);
        if !self.verdicts.is_empty() {
            let verdicts: Vec<Value> = self.verdicts.iter().map(Verdict::to_json).collect();
            self.set(THRESHOLDS, verdicts);
        }
        self.set("date", machine::date());
        self.set("version", env!("CARGO_PKG_VERSION"));
        self.set("machine", machine::describe());
        self.set("command_line", machine::command_line());
    }

    /// Returns what a child hands to the process that combines several reports.
    pub fn to_parts(&self) -> Value {
        let histograms = self.histograms.iter().map(|(key, histogram)| {
            let pairs = histogram.iter_recorded();
            let pairs = pairs.map(|pair| json!([pair.value_iterated_to(), pair.count_at_value()]));
            (key.clone(), pairs.collect::<Value>())
        });
        json!({
            "figures": self.figures,
            "histograms": histograms.collect::<Map<_, _>>(),
            "judged_latency": self.judged.latency.as_ref().map(|(key, _)| key),
            "judged_rate": self.judged.rate,
            "lost": self.judged.lost,
            "failed": self.failed,
        })
    }

    /// Combines the reports of several processes.
    pub fn add_parts(&mut self, parts: &[Value]) -> Result<(), String> {
        let first = parts.first().and_then(|part| part["figures"].as_object());
        for key in first.ok_or("no process wrote a report")?.keys() {
            let values: Vec<&Value> = parts.iter().map(|part| &part["figures"][key]).collect();
            let of_all: Vec<&Value> =
                parts.iter().filter_map(|part| part["histograms"].get(key)).collect();
            if of_all.is_empty() {
                let value = together(key, &values);
                self.set(key, value);
                continue;
            }
            let mut histogram = new_histogram();
            for pair in of_all.into_iter().filter_map(Value::as_array).flatten() {
                let (ns, count) = (pair[0].as_u64().unwrap_or(0), pair[1].as_u64().unwrap_or(0));
                histogram.saturating_record_n(ns, count);
            }
            match parts[0]["judged_latency"].as_str() == Some(key) {
                true => self.set_judged_latency(key, &histogram),
                false => self.set_histogram(key, &histogram),
            }
        }
        for part in parts {
            self.judged.lost += part["lost"].as_u64().unwrap_or(0);
            self.failed |= part["failed"] != false;
        }
        if let Some(key) = parts[0]["judged_rate"][0].as_str() {
            let rates = parts.iter().filter_map(|part| part["judged_rate"][1].as_f64());
            self.set_judged_rate(key, rates.sum());
        }
        Ok(())
    }

    /// Returns the report as one page with charts.
    pub fn to_html(&self) -> String {
        let series = self.series.as_ref().map_or(Value::Null, Series::to_json);
        page::render(&self.value(), &series)
    }

    pub fn failed(&self) -> bool {
        let is_broken = self.verdicts.iter().any(|verdict| !verdict.kept);
        self.failed || is_broken || self.judged.lost > self.thresholds.borne_losses()
    }

    pub fn to_json(&self) -> String {
        self.value().to_string()
    }

    fn value(&self) -> Value {
        let mut figures = self.figures.clone();
        figures.insert("ok".to_owned(), Value::from(!self.failed()));
        Value::Object(figures)
    }

    pub fn to_text(&self) -> String {
        let mut text = lines(&self.figures, "");
        if let Some(Value::Object(phases)) = self.figures.get(PHASES) {
            for (name, phase) in phases {
                text.push_str(&format!("\n{name}\n"));
                text.push_str(&phase.as_object().map_or(String::new(), |map| lines(map, "  ")));
            }
        }
        for verdict in &self.verdicts {
            text.push_str(&format!("{}\n", verdict.to_text()));
        }
        text
    }
}

/// Combines one figure of several processes.
fn together(key: &str, values: &[&Value]) -> Value {
    const SAME: [&str; 5] =
        ["command", "outstanding", "pipeline", "payload_bytes", "payload_bytes_wanted"];
    let Some(first) = values.first() else { return Value::Null };
    let numbers: Vec<f64> = values.iter().filter_map(|value| value.as_f64()).collect();
    let is_longest = key == "elapsed_s" || key.ends_with("_percent");
    match first {
        Value::Number(number) if SAME.contains(&key) => Value::from(number.clone()),
        Value::Number(_) if is_longest => {
            Value::from(rounded(numbers.iter().copied().fold(0.0, f64::max)))
        }
        Value::Number(_) if key.contains("_us_per_") => {
            Value::from(rounded(numbers.iter().sum::<f64>() / numbers.len() as f64))
        }
        Value::Number(number) if number.is_u64() => {
            Value::from(values.iter().filter_map(|value| value.as_u64()).sum::<u64>())
        }
        Value::Number(_) => Value::from(rounded(numbers.iter().sum())),
        Value::Bool(_) => Value::from(values.iter().any(|value| **value == true)),
        Value::Object(_) => {
            let mut sums = Map::new();
            for name in values.iter().filter_map(|value| value.as_object()).flat_map(Map::keys) {
                let each: Vec<&Value> = values.iter().filter_map(|value| value.get(name)).collect();
                sums.insert(name.clone(), together(name, &each));
            }
            Value::Object(sums)
        }
        Value::Array(items) => {
            let items = items.iter().enumerate().map(|(i, _)| {
                let each: Vec<&Value> = values.iter().filter_map(|value| value.get(i)).collect();
                together(key, &each)
            });
            items.collect()
        }
        other => (*other).clone(),
    }
}

/// The member with the figures of the parts of a run.
const PHASES: &str = "phases";
/// The member with the thresholds, each a line of the text.
const THRESHOLDS: &str = "thresholds";

/// Returns a line for each figure except those of phases.
fn lines(figures: &Map<String, Value>, indent: &str) -> String {
    let figures =
        || figures.iter().filter(|(key, _)| ![PHASES, THRESHOLDS].contains(&key.as_str()));
    let width = figures().map(|(key, _)| key.len()).max().unwrap_or(0) + 2;
    figures()
        .map(|(key, value)| format!("{indent}{:width$}{}\n", key.replace('_', " "), plain(value)))
        .collect()
}

pub fn rounded(value: f64) -> f64 {
    if value.is_finite() { (value * 1000.0).round() / 1000.0 } else { 0.0 }
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Object(map) if map.is_empty() => "none".to_owned(),
        Value::Object(map) => {
            let parts: Vec<_> =
                map.iter().map(|(key, value)| format!("{key} {}", plain(value))).collect();
            parts.join("  ")
        }
        Value::Array(values) => {
            let lines: Vec<_> = values.iter().map(plain).collect();
            lines.join("; ")
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_reads_the_same_for_people_and_programs() {
        let mut report = Report::new("connect");
        report.set_rounded("connects_per_s", 1.23456);
        report.set_fault("lost", 0);
        assert!(!report.failed());
        report.set_fault("duplicates", 2);
        let json: Value = serde_json::from_str(&report.to_json()).unwrap();
        assert_eq!(json["connects_per_s"], 1.235);
        assert_eq!(json["ok"], false);
        assert!(report.to_text().contains("connects per s  1.235\n"));
    }

    #[test]
    fn histograms_are_in_microseconds() {
        let mut histogram = new_histogram();
        record(&mut histogram, 1_500_000);
        let mut report = Report::new("x");
        report.set_histogram("latency_us", &histogram);
        let json: Value = serde_json::from_str(&report.to_json()).unwrap();
        let p50 = json["latency_us"]["p50"].as_f64().unwrap();
        assert!((p50 - 1500.0).abs() < 2.0, "{p50}");
    }

    #[test]
    fn figures_of_several_processes_become_one() {
        let one = |figure: Value| {
            json!({"figures": figure, "histograms": {"x_us": [[1000, 2]]},
            "judged_latency": "x_us", "judged_rate": ["a_per_s", 2.5], "lost": 1, "failed": false})
        };
        let parts = [
            one(json!({"n": 1, "elapsed_s": 2.0, "x_us": {}, "a_per_s": 2.5, "outstanding": 4,
                "tool_was_bottleneck": false, "failures": {"reset": 1},
                "t": [{"p": 1, "ws": "a"}]})),
            one(json!({"n": 2, "elapsed_s": 3.0, "x_us": {}, "a_per_s": 2.5, "outstanding": 4,
                "tool_was_bottleneck": true, "failures": {"closed": 5},
                "t": [{"p": 2, "ws": "a"}]})),
        ];
        let mut report = Report::new("connect");
        report.add_parts(&parts).unwrap();
        let figures = Value::Object(report.figures.clone());
        assert_eq!((&figures["n"], &figures["elapsed_s"]), (&json!(3), &json!(3.0)));
        assert_eq!((&figures["a_per_s"], &figures["outstanding"]), (&json!(5.0), &json!(4)));
        assert_eq!(figures["failures"], json!({"reset": 1, "closed": 5}));
        assert_eq!(figures["t"], json!([{"p": 3, "ws": "a"}]));
        assert_eq!((&figures["x_us"]["count"], report.judged.lost), (&json!(4), 2));
        assert!(figures["tool_was_bottleneck"] == true && report.failed());
        assert!(Report::new("x").add_parts(&[]).is_err());
    }

    #[test]
    fn kinds_of_failure_are_bounded() {
        let mut failures = Failures::default();
        for i in 0..1000 {
            failures.add(&i.to_string());
        }
        assert_eq!(failures.total(), 1000);
        assert!(failures.0.len() <= 101);
    }
}
