use super::*;
use std::collections::HashSet;
use std::fmt::Write as _;
use std::{env, fs};

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/operations.md");
const BEGIN: &str = "<!-- Metrics: made by `make docs` from src/ops/metrics/table.rs. -->\n";
const END: &str = "<!-- End of metrics. -->\n";

fn all() -> impl Iterator<Item = &'static Metric> {
    GROUPS.iter().flat_map(|group| group.metrics)
}

fn tables() -> String {
    let mut text = String::new();
    for group in GROUPS {
        let _ = write!(text, "\n**{}**\n\n", group.title);
        text.push_str("| Metric | Type | Labels | What |\n|---|---|---|---|\n");
        for metric in group.metrics {
            let Metric { name, kind, labels, help, more, .. } = metric;
            let kind = format!("{kind:?}").to_lowercase();
            let labels = if labels.is_empty() { " ".into() } else { format!(" {labels} ") };
            let _ = writeln!(text, "| `{name}` | {kind} |{labels}| {help}{more} |");
        }
    }
    text + "\n"
}

#[test]
fn the_page_has_what_the_table_says() {
    let page = fs::read_to_string(PAGE).unwrap();
    let (before, rest) = page.split_once(BEGIN).unwrap();
    let (found, after) = rest.split_once(END).unwrap();
    if env::var_os("RENEW_DOCS").is_some() {
        fs::write(PAGE, [before, BEGIN, &tables(), END, after].concat()).unwrap();
    } else {
        assert!(found == tables(), "docs/operations.md is not what the code says: `make docs`");
    }
}

#[test]
fn every_metric_is_declared_once_with_a_name_of_its_kind() {
    // The metrics of the first version, which others rely on, and those of Prometheus's own
    // clients.
    let first = ["request_total", "request_url_total", "request_duration", "ws_connection"];
    let mut names = HashSet::new();
    for metric in all() {
        let name = metric.name;
        assert!(names.insert(name), "{name} is there twice");
        let has_prefix = name.starts_with("ws_cluster_") || name.starts_with("process_");
        assert!(has_prefix || first.contains(&name), "{name} has no prefix");
        assert_eq!(name.ends_with("_total"), metric.kind == MetricKind::Counter, "{name}");
        assert!(!metric.help.is_empty() && !metric.help.ends_with('.'), "{name}");
    }
}
