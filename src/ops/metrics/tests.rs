use super::*;
use crate::ops::doc_tables::DocTables;
use std::collections::HashSet;

fn all() -> impl Iterator<Item = &'static Metric> {
    GROUPS.iter().flat_map(|group| group.metrics)
}

#[test]
fn the_page_has_what_the_table_says() {
    let columns = ["Metric", "Type", "Labels", "What"];
    let mut tables = DocTables::new("monitor.md", "Metrics", "src/ops/metrics/table.rs", &columns);
    for group in GROUPS {
        let row = |metric: &Metric| {
            let Metric { name, kind, labels, help, more, .. } = metric;
            let kind = format!("{kind:?}").to_lowercase();
            [format!("`{name}`"), kind, (*labels).into(), [*help, *more].concat()]
        };
        tables.table(group.title, group.metrics.iter().map(row));
    }
    tables.check().unwrap();
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
