//! The tables of flags in docs/configuration.md.

use super::{Flag, GIB, ValueKind};

/// Returns the bounds of a value if they are informative.
pub(super) fn bounds(flag: &Flag) -> Option<String> {
    match flag.kind {
        ValueKind::Number { what: "a port", .. } => None,
        ValueKind::Number { min, max, .. } => Some(format!("{min} to {max}")),
        ValueKind::Size { min, max } => Some(format!("{} to {}", size(min), size(max))),
        ValueKind::Bool | ValueKind::Switch | ValueKind::Text { .. } | ValueKind::Free { .. } => {
            None
        }
    }
}

/// Formats a number of bytes with the largest suffix that divides it evenly.
pub(in crate::config) fn size(bytes: u64) -> String {
    let units = [(GIB, "G"), (1 << 20, "M"), (1 << 10, "K")];
    let unit = units.into_iter().find(|(unit, _)| bytes >= *unit && bytes.is_multiple_of(*unit));
    match unit {
        Some((unit, suffix)) => format!("{}{suffix}", bytes / unit),
        None => bytes.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{GROUPS, Reload, all};
    use super::*;
    use crate::ops::doc_tables::DocTables;
    use std::collections::HashSet;

    fn row(flag: &Flag) -> [String; 5] {
        let default = match [flag.computed, flag.default] {
            ["", "false"] if matches!(flag.kind, ValueKind::Switch) => "off",
            ["", default] | [default, _] => default,
        };
        let reload = match flag.reload {
            Reload::Takes => "yes",
            Reload::UpToStart => "up to that of the start",
            Reload::Restart => "no",
            Reload::Reopen => "reopened",
        };
        let bounds = bounds(flag).unwrap_or_default();
        let meaning = [flag.help, flag.more].concat();
        let [default, bounds, meaning] = [default, &bounds, &meaning].map(quoted_flags);
        [format!("`--{}`", flag.name), default, bounds, reload.into(), meaning]
    }

    /// Formats names of flags as code.
    fn quoted_flags(text: &str) -> String {
        let words = text.split(' ').map(|word| match word.strip_prefix("--") {
            Some(name) => {
                let is_name = |c: char| c.is_ascii_lowercase() || c == '_';
                let end = name.find(|c| !is_name(c)).unwrap_or(name.len());
                format!("`--{}`{}", &name[..end], &name[end..])
            }
            None => word.to_owned(),
        });
        words.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn the_page_has_what_the_table_says() {
        let columns = ["Flag", "Default", "Bounds", "Reload", "Meaning"];
        let source = "src/config/flags/table.rs";
        let mut tables = DocTables::new("configuration.md", "Flags", source, &columns);
        for group in GROUPS {
            tables.table(group.title, group.flags.iter().map(|flag| row(flag)));
        }
        tables.check().unwrap();
    }

    #[test]
    fn every_flag_is_declared_once_and_explained() {
        let mut names = HashSet::new();
        for flag in all() {
            assert!(names.insert(flag.name), "{} is there twice", flag.name);
            assert!(!flag.help.is_empty() && !flag.help.ends_with('.'), "{}", flag.name);
            assert!(flag.default.is_empty() || flag.computed.is_empty(), "{}", flag.name);
        }
    }

    #[test]
    fn sizes_are_short() {
        for (bytes, text) in [(0, "0"), (100, "100"), (1_024, "1K"), (1_048_576, "1M")] {
            assert_eq!(size(bytes), text);
        }
        assert_eq!([size(65 << 10), size(GIB), size(1_024 * GIB)], ["65K", "1G", "1024G"]);
    }
}
