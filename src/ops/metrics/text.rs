//! The two text formats: OpenMetrics, and the older one of Prometheus (`text/plain` 0.0.4).

use std::fmt::Write as _;

pub(super) const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
pub(super) const PLAIN: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Returns whether a client prefers the older format (RFC 9110, section 12.5.1). Without a
/// preference it gets OpenMetrics.
pub(super) fn wants_plain(accept: Option<&str>) -> bool {
    let (mut plain, mut open) = (0, 0);
    for range in accept.unwrap_or("").split(',') {
        let mut parts = range.split(';').map(str::trim);
        let media_type = parts.next().unwrap_or("").to_ascii_lowercase();
        let quality = parts.find_map(quality).unwrap_or(1_000);
        match &*media_type {
            "text/plain" | "text/*" => plain = quality.max(plain),
            "application/openmetrics-text" | "application/*" | "*/*" => open = quality.max(open),
            _ => {}
        }
    }
    plain > open
}

/// Returns a parameter `q=0.5` in thousandths.
fn quality(parameter: &str) -> Option<u32> {
    let value = parameter.strip_prefix("q=").or_else(|| parameter.strip_prefix("Q="))?;
    let quality: f32 = value.trim().parse().ok().filter(|q| (0.0..=1.0).contains(q))?;
    Some((quality * 1_000.0) as u32)
}

/// Converts OpenMetrics text to the older format, in which a counter's family has the name of its
/// samples and there is neither an info metric nor an end marker.
pub(super) fn to_plain(open_metrics: &str) -> String {
    let mut out = String::with_capacity(open_metrics.len() + 2_048);
    let mut help = "";
    for line in open_metrics.lines() {
        let Some(comment) = line.strip_prefix("# ") else {
            out.push_str(line);
            out.push('\n');
            continue;
        };
        let (word, rest) = comment.split_once(' ').unwrap_or((comment, ""));
        let (name, value) = rest.split_once(' ').unwrap_or((rest, ""));
        match word {
            "HELP" => help = value,
            "TYPE" => {
                let (suffix, kind) = match value {
                    "counter" => ("_total", "counter"),
                    "info" => ("_info", "gauge"),
                    "unknown" => ("", "untyped"),
                    kind => ("", kind),
                };
                // Writing to a String cannot fail.
                let _ = writeln!(out, "# HELP {name}{suffix} {}", help.replace("\\\"", "\""));
                let _ = writeln!(out, "# TYPE {name}{suffix} {kind}");
            }
            // The name already contains the unit.
            _ => {}
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_format_is_the_one_that_is_asked_for() {
        let prometheus_2 = "application/openmetrics-text;version=1.0.0,\
                            application/openmetrics-text;version=0.0.1;q=0.75,\
                            text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        for (accept, plain) in [
            (None, false),
            (Some(""), false),
            (Some("*/*"), false),
            (Some(prometheus_2), false),
            (Some("application/openmetrics-text"), false),
            (Some("text/plain, application/openmetrics-text"), false),
            (Some("text/plain;q=0"), false),
            (Some("text/plain"), true),
            (Some("Text/Plain; version=0.0.4; charset=utf-8"), true),
            (Some("text/*"), true),
            (Some("text/plain;version=0.0.4;q=0.3,*/*;q=0.1"), true),
            (Some("application/openmetrics-text; q=0.2, text/plain ;Q=0.9"), true),
            (Some("application/json"), false),
            (Some("text/plain;q=x"), true),
        ] {
            assert_eq!(wants_plain(accept), plain, "{accept:?}");
        }
    }

    #[test]
    fn families_are_named_as_their_samples_are() {
        let open = "# HELP request HTTP \\\"requests\\\".\n# TYPE request counter\n\
                    request_total 5\n# HELP ws_cluster What runs.\n# TYPE ws_cluster info\n\
                    ws_cluster_info{a=\"b\"} 1\n# HELP lag_seconds Lag.\n\
                    # TYPE lag_seconds gauge\n# UNIT lag_seconds seconds\nlag_seconds 0.5\n\
                    # HELP x X.\n# TYPE x unknown\nx 1\n# EOF\n";
        assert_eq!(
            to_plain(open),
            "# HELP request_total HTTP \"requests\".\n# TYPE request_total counter\n\
             request_total 5\n# HELP ws_cluster_info What runs.\n# TYPE ws_cluster_info gauge\n\
             ws_cluster_info{a=\"b\"} 1\n# HELP lag_seconds Lag.\n# TYPE lag_seconds gauge\n\
             lag_seconds 0.5\n# HELP x X.\n# TYPE x untyped\nx 1\n"
        );
    }
}
