//! `print-config`: the effective configuration, and the origin of each value.

use std::fmt::Write as _;

use super::flags::GROUPS;
use super::mistake::Mistake;
use super::origin::line;
use super::setting::Resolved;
use serde_json::{Value, json};

const HIDDEN: &str = "***";
/// Column at which comments begin.
const COMMENT_COLUMN: usize = 40;

/// Returns a config file that reproduces the configuration, except for its secrets.
pub(super) fn as_toml(resolved: &[Resolved]) -> String {
    let mut text = String::new();
    for group in GROUPS {
        // Writing to a String cannot fail, here and below.
        let _ = writeln!(text, "{}# {}", if text.is_empty() { "" } else { "\n" }, group.title);
        for flag in group.flags {
            let its = resolved.iter().filter(|one| one.flag.name == flag.name);
            its.for_each(|one| print(one, &mut text));
        }
    }
    text
}

fn print(one: &Resolved, text: &mut String) {
    let flag = one.flag;
    let setting = match (&one.value, one.is_hidden) {
        (value, true) => format!("# {}", line(flag, value.as_deref().unwrap_or(HIDDEN))),
        (None, false) => format!("# {} =", flag.name),
        // A file cannot name itself.
        (Some(value), false) if flag.name == "config" => format!("# {}", line(flag, value)),
        (Some(value), false) => line(flag, value),
    };
    let origin = one.origin.source(flag);
    let hidden = if one.is_hidden { ", secret" } else { "" };
    let _ = writeln!(text, "{setting:COMMENT_COLUMN$} # {origin}{hidden}");
}

pub(super) fn as_json(resolved: &[Resolved], warnings: &[Mistake]) -> String {
    let warnings: Vec<String> = warnings.iter().map(ToString::to_string).collect();
    let settings = resolved.iter().map(|one| {
        let value = match (&one.value, one.is_hidden) {
            (None, true) => Some(HIDDEN),
            (value, _) => value.as_deref(),
        };
        json!({
            "name": one.flag.name,
            "value": value,
            "source": one.origin.source(one.flag),
            "secret": one.is_hidden,
        })
    });
    let settings: Vec<Value> = settings.collect();
    let all = json!({ "settings": settings, "warnings": warnings });
    format!("{all:#}\n")
}
