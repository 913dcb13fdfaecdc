//! Limits that decide the exit code: the maximum loss, the minimum rate and the maximum latency of
//! a run.

use serde_json::{Value, json};

use crate::arguments::Options;

/// The given limits, as written and as a number.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Thresholds {
    max_p99: Option<(String, f64)>,
    max_loss: Option<u64>,
    min_rate: Option<f64>,
    max_pause: Option<(String, f64)>,
    max_server_rss: Option<(String, f64)>,
}

/// The measurements of a run that are judged.
#[derive(Default)]
pub struct Measured {
    /// The histogram that `--max-p99` judges, and its p99 in nanoseconds.
    pub latency: Option<(String, u64)>,
    /// The figure that `--min-rate` judges.
    pub rate: Option<(String, f64)>,
    /// Everything lost, duplicated or misdelivered.
    pub lost: u64,
    pub pause_ms: Option<f64>,
    pub server_rss: Option<u64>,
}

/// A threshold and its result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    threshold: &'static str,
    limit: String,
    measured: String,
    pub kept: bool,
}

impl Thresholds {
    pub fn parse(options: &Options) -> Result<Thresholds, String> {
        let has_metrics = options.metrics.is_some();
        if options.max_pause.is_some() && !has_metrics {
            return Err("--max-pause needs --metrics, which reports the pauses".to_owned());
        }
        if options.max_server_rss.is_some() && !has_metrics && options.pid_of_server.is_none() {
            return Err("--max-server-rss needs --metrics or --pid-of-server".to_owned());
        }
        let time = |option: &str, given: &Option<String>| {
            let nanoseconds = given.as_deref().map(|text| duration_ns(option, text));
            nanoseconds.transpose().map(|ns| given.clone().zip(ns))
        };
        let rss = options.max_server_rss.as_deref().map(bytes).transpose()?;
        if options.min_rate.is_some_and(|rate| !(rate >= 0.0 && rate.is_finite())) {
            return Err("--min-rate must be a number per second".to_owned());
        }
        Ok(Thresholds {
            max_p99: time("--max-p99", &options.max_p99)?,
            max_loss: options.max_loss,
            min_rate: options.min_rate,
            max_pause: time("--max-pause", &options.max_pause)?,
            max_server_rss: options.max_server_rss.clone().zip(rss),
        })
    }

    /// Returns the number of messages that may be lost without failing the run.
    pub fn borne_losses(&self) -> u64 {
        self.max_loss.unwrap_or(0)
    }

    pub fn judge(&self, measured: &Measured) -> Vec<Verdict> {
        let mut verdicts = Vec::new();
        // A missing measurement fails its threshold: a run without the figure must not pass.
        let mut judge = |threshold, limit: String, got: Option<(bool, String)>| {
            let (kept, measured) = got.unwrap_or((false, "not measured".to_owned()));
            verdicts.push(Verdict { threshold, limit, measured, kept });
        };
        if let Some((text, limit_ns)) = &self.max_p99 {
            let got = measured.latency.as_ref().map(|(key, ns)| {
                let ns = *ns as f64;
                (ns <= *limit_ns, format!("{} ({key})", duration_text(ns)))
            });
            judge("max-p99", text.clone(), got);
        }
        if let Some(limit) = self.max_loss {
            let got = (measured.lost <= limit, measured.lost.to_string());
            judge("max-loss", limit.to_string(), Some(got));
        }
        if let Some(limit) = self.min_rate {
            let got = measured
                .rate
                .as_ref()
                .map(|(key, rate)| (*rate >= limit, format!("{rate:.1} ({key})")));
            judge("min-rate", format!("{limit}"), got);
        }
        if let Some((text, limit_ns)) = &self.max_pause {
            let got = measured.pause_ms.map(|ms| (ms * 1e6 <= *limit_ns, duration_text(ms * 1e6)));
            judge("max-pause", text.clone(), got);
        }
        if let Some((text, limit)) = &self.max_server_rss {
            let got = measured.server_rss.map(|rss| {
                let mib = rss as f64 / f64::from(1 << 20);
                (rss as f64 <= *limit, format!("{mib:.1} MiB"))
            });
            judge("max-server-rss", text.clone(), got);
        }
        verdicts
    }
}

impl Verdict {
    pub fn to_text(&self) -> String {
        let Verdict { threshold, limit, measured, kept } = self;
        let word = if *kept { "kept" } else { "BROKEN" };
        format!("threshold {threshold} {limit}: {word}, {measured}")
    }

    pub fn to_json(&self) -> Value {
        json!({
            "threshold": self.threshold,
            "limit": self.limit,
            "measured": self.measured,
            "kept": self.kept,
        })
    }
}

/// Parses a duration such as 5ms, in nanoseconds.
fn duration_ns(option: &str, text: &str) -> Result<f64, String> {
    let wrong = || format!("{option} {text} must be a number with a unit, e.g. 500us, 5ms or 1.5s");
    let (number, factor) = None
        .or_else(|| text.strip_suffix("us").map(|number| (number, 1e3)))
        .or_else(|| text.strip_suffix("ms").map(|number| (number, 1e6)))
        .or_else(|| text.strip_suffix('s').map(|number| (number, 1e9)))
        .ok_or_else(wrong)?;
    match number.trim().parse::<f64>() {
        Ok(number) if number >= 0.0 && number.is_finite() => Ok(number * factor),
        _ => Err(wrong()),
    }
}

/// Parses a size such as 512M, in bytes.
fn bytes(text: &str) -> Result<f64, String> {
    let wrong =
        || format!("--max-server-rss {text} must be a number of bytes, or a number with K, M or G");
    let (number, factor) = match text.char_indices().last() {
        Some((at, 'K' | 'k')) => (&text[..at], 10),
        Some((at, 'M' | 'm')) => (&text[..at], 20),
        Some((at, 'G' | 'g')) => (&text[..at], 30),
        _ => (text, 0),
    };
    match number.trim().parse::<f64>() {
        Ok(number) if number >= 0.0 && number.is_finite() => Ok(number * f64::from(1u32 << factor)),
        _ => Err(wrong()),
    }
}

fn duration_text(ns: f64) -> String {
    match ns {
        ns if ns < 1e6 => format!("{:.1} us", ns / 1e3),
        ns if ns < 1e9 => format!("{:.1} ms", ns / 1e6),
        ns => format!("{:.2} s", ns / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broken_threshold_is_named_with_what_was_measured() {
        let thresholds = Thresholds {
            max_p99: Some(("5ms".to_owned(), 5e6)),
            max_loss: Some(3),
            min_rate: Some(1000.0),
            max_pause: Some(("2ms".to_owned(), 2e6)),
            max_server_rss: Some(("1M".to_owned(), 1048576.0)),
        };
        let mut measured = Measured {
            latency: Some(("push_to_delivery_us".to_owned(), 7_200_000)),
            rate: Some(("deliveries_per_s".to_owned(), 999.96)),
            lost: 3,
            pause_ms: None,
            server_rss: Some(1 << 20),
        };
        let texts = |measured: &Measured| {
            thresholds.judge(measured).iter().map(Verdict::to_text).collect::<Vec<_>>()
        };
        assert_eq!(
            texts(&measured),
            [
                "threshold max-p99 5ms: BROKEN, 7.2 ms (push_to_delivery_us)",
                "threshold max-loss 3: kept, 3",
                "threshold min-rate 1000: BROKEN, 1000.0 (deliveries_per_s)",
                "threshold max-pause 2ms: BROKEN, not measured",
                "threshold max-server-rss 1M: kept, 1.0 MiB",
            ]
        );
        measured.latency = Some(("x".to_owned(), 5_000_000));
        measured.lost = 4;
        measured.pause_ms = Some(1.5);
        let verdicts = thresholds.judge(&measured);
        let kept: Vec<bool> = verdicts.iter().map(|verdict| verdict.kept).collect();
        assert_eq!(kept, [true, false, false, true, true]);
    }

    #[test]
    fn units_are_read() {
        assert_eq!(duration_ns("--x", "500us"), Ok(5e5));
        assert_eq!(duration_ns("--x", "1.5s"), Ok(1.5e9));
        assert_eq!(duration_ns("--x", "2 ms"), Ok(2e6));
        for wrong in ["5", "ms", "-1ms", "NaNs", ""] {
            assert!(duration_ns("--x", wrong).unwrap_err().contains("500us"), "{wrong}");
        }
        assert_eq!((bytes("2K"), bytes("1.5g")), (Ok(2048.0), Ok(1.5 * f64::from(1 << 30))));
        assert!(bytes("many").is_err() && bytes("").is_err());
    }
}
