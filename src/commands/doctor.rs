//! `doctor`: what a node needs from this machine, part by part, and how many connections the host
//! can hold. The checks are functions of a [`Host`]: files below a directory, and a configuration.

mod capacity;
mod host;
mod limits;
mod network;
mod redis;
mod root;
mod service;
#[cfg(test)]
mod tests;

use super::{Environment, Output};
use crate::config::{Arguments, Config, Exit};
use crate::node::{Machine, Needs};
use capacity::Capacity;
use root::Root;
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::io::{IsTerminal, stdout};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Status {
    Ok,
    /// A node runs, but less well, or with fewer connections.
    Warn,
    /// A node cannot start, or cannot serve.
    Fail,
}

impl Status {
    fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "FAIL",
        }
    }

    fn colour(self) -> &'static str {
        match self {
            Self::Ok => "\x1b[32m",
            Self::Warn => "\x1b[33m",
            Self::Fail => "\x1b[31m",
        }
    }
}

/// The result of one check.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Finding {
    name: &'static str,
    status: Status,
    /// What is.
    is: String,
    /// What it is good for, and what it costs if it is wrong.
    costs: String,
    /// The command or setting that mends it; empty: nothing to mend.
    fix: String,
}

impl Finding {
    fn ok(name: &'static str, is: impl Into<String>, costs: &str) -> Self {
        let (is, costs, fix) = (is.into(), costs.to_owned(), String::new());
        Self { name, status: Status::Ok, is, costs, fix }
    }

    fn warn(
        name: &'static str,
        is: impl Into<String>,
        costs: &str,
        fix: impl Into<String>,
    ) -> Self {
        Self { status: Status::Warn, fix: fix.into(), ..Self::ok(name, is, costs) }
    }

    fn fail(
        name: &'static str,
        is: impl Into<String>,
        costs: &str,
        fix: impl Into<String>,
    ) -> Self {
        Self { status: Status::Fail, fix: fix.into(), ..Self::ok(name, is, costs) }
    }
}

/// What is checked.
struct Host<'a> {
    root: Root,
    machine: Machine,
    config: &'a Config,
    needs: Needs,
}

impl<'a> Host<'a> {
    fn new(root: Root, config: &'a Config) -> Self {
        let machine = Machine::look_in(root.path());
        Self { root, machine, config, needs: Needs::of(config) }
    }

    fn workers(&self) -> u64 {
        self.config.settings.workers as u64
    }

    fn max_connections(&self) -> u64 {
        self.config.settings.max_connections as u64
    }

    /// Runs the checks that only read files.
    fn look(&self, capacity: &Capacity) -> Vec<Finding> {
        let mut findings = limits::findings(self);
        findings.extend(network::findings(self, capacity));
        findings.extend(host::findings(self));
        findings
    }
}

pub(super) fn run(arguments: &Arguments, env: Environment<'_>) -> Result<Output, Exit> {
    let config = Config::of(arguments, env.get)?;
    let host = Host::new(Root::new("/"), &config);
    let capacity = Capacity::of(&host);
    let mut findings = host.look(&capacity);
    findings.extend(host::live_findings(&host));
    findings.extend(service::findings(&config));
    if let Some(settings) = &config.settings.redis {
        findings.extend(redis::findings(&settings.url));
    }
    let is_good = findings.iter().all(|finding| finding.status != Status::Fail);
    let has_colours = stdout().is_terminal() && (env.get)("NO_COLOR").is_none();
    let text = match arguments.has("json") {
        true => as_json(&findings, &capacity),
        false => as_text(&findings, &capacity, has_colours),
    };
    Ok(Output::of(text, is_good))
}

fn as_text(findings: &[Finding], capacity: &Capacity, has_colours: bool) -> String {
    let width = findings.iter().map(|finding| finding.name.len()).max().unwrap_or_default();
    let mut text = String::new();
    // Writing to a String cannot fail, here and below.
    for Finding { name, status, is, costs, fix } in findings {
        let (colour, end) = if has_colours { (status.colour(), "\x1b[0m") } else { ("", "") };
        let _ = writeln!(text, "{colour}{:4}{end}  {name:width$}  {is}", status.name());
        if *status != Status::Ok {
            let indent = width + 8;
            let _ = writeln!(text, "{:indent$}costs: {costs}", "");
            let _ = writeln!(text, "{:indent$}fix:   {fix}", "");
        }
    }
    text.push('\n');
    text.push_str(&capacity.as_text());
    let count = |status| findings.iter().filter(|finding| finding.status == status).count();
    let (warnings, failures) = (count(Status::Warn), count(Status::Fail));
    let _ = writeln!(text, "\n{} ok, {warnings} warn, {failures} fail", count(Status::Ok));
    text
}

fn as_json(findings: &[Finding], capacity: &Capacity) -> String {
    let entry = |finding: &Finding| {
        json!({
            "name": finding.name,
            "status": finding.status.name().to_ascii_lowercase(),
            "is": finding.is,
            "costs": finding.costs,
            "fix": finding.fix,
        })
    };
    let checks: Vec<Value> = findings.iter().map(entry).collect();
    format!("{:#}\n", json!({ "checks": checks, "capacity": capacity.as_json() }))
}

/// Formats a number with commas between thousands.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Formats a number of bytes for people.
fn bytes(number: u64) -> String {
    match number {
        0..1_048_576 => format!("{} KiB", number >> 10),
        1_048_576..10_737_418_240 => format!("{} MiB", number >> 20),
        _ => format!("{} GiB", number >> 30),
    }
}
