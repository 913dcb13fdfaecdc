//! A scenario file: TOML to a [`Scenario`], with errors that name file, line, column and key.

mod table;

use std::sync::Arc;

use super::plan::{
    AT_MOST_NS, Audience, Canaries, Count, Cut, DEFAULT_BYTES, Open, Phase, Population, Reconnect,
    Scenario, Traffic,
};
use crate::client::Closing;
use table::{Place, Table};

const FILE_KEYS: &[&str] = &["population", "phase"];
const POPULATION_KEYS: &[&str] = &[
    "connections",
    "uid_prefix",
    "tags",
    "tags_per_client",
    "tag_prefix",
    "device",
    "devices",
    "concurrency",
    "timeout",
];
const PHASE_KEYS: &[&str] = &[
    "name",
    "duration",
    "hold",
    "at_most",
    "until",
    "until_run",
    "open",
    "open_per_s",
    "cut",
    "reconnect",
    "churn_per_s",
    "bytes",
    "project_pushes",
    "project_pushes_per_s",
    "unicast_per_s",
    "tag_pushes_per_s",
    "tags_per_push",
    "with_devices",
    "with_users",
    "requests_per_s",
    "canaries",
    "drain",
];
const CUT_KEYS: &[&str] = &["share", "count", "how"];
const RECONNECT_KEYS: &[&str] = &["jitter", "backoff", "backoff_max", "per_s"];
const CANARY_KEYS: &[&str] = &["clients", "pushes_per_s"];

pub const MAX_CONNECTIONS: u64 = 100_000_000;
pub const MAX_TAGS: u64 = 1_000_000;
const MAX_SECONDS: f64 = 1e6;
pub const MAX_PER_S: f64 = 1e7;
/// Maximum number of ids in a selector.
const MAX_SELECTED: u64 = 1_000;

/// Parses a scenario from the text of `file`.
pub fn parse(file: &str, text: &str) -> Result<Scenario, String> {
    let place = Place { file, text };
    let root = place.parse()?;
    let root = Table::new(&place, root.get_ref(), 0, FILE_KEYS, "a scenario")?;
    let population = root
        .table("population", POPULATION_KEYS)?
        .ok_or_else(|| root.missing("population", "[population] with connections = 1000"))?;
    let population = read_population(&population)?;
    let tables = root.tables("phase", PHASE_KEYS)?;
    let mut phases: Vec<Phase> = Vec::with_capacity(tables.len());
    let mut open = 0;
    for table in &tables {
        let phase = read_phase(table, &population, open)?;
        if phases.iter().any(|other| other.name == phase.name) {
            let text = format!("the name \"{}\" is already used", phase.name);
            return Err(table.error_at("name", &text));
        }
        open = phase.open.map_or(open, |open| open.to);
        if let Some(before) = phases.last()
            && before.drain
        {
            return Err(table.error("no phase can follow one with drain = true"));
        }
        phases.push(phase);
    }
    if phases.is_empty() {
        return Err(root.missing("phase", "[[phase]] with name = \"ramp\" and open = 1000"));
    }
    Ok(Scenario { population, phases })
}

fn read_population(table: &Table<'_>) -> Result<Population, String> {
    let connections = table
        .integer("connections", 1, MAX_CONNECTIONS)?
        .ok_or_else(|| table.missing("connections", "connections = 1000"))?;
    let tags = table.integer("tags", 0, MAX_TAGS)?.unwrap_or(0);
    let default = u64::from(tags > 0);
    let per_client = table.integer("tags_per_client", 0, 256)?.unwrap_or(default);
    if per_client > tags {
        let text =
            format!("{per_client} tags for each client, but there are only {tags}: raise tags");
        return Err(table.error_at("tags_per_client", &text));
    }
    let mut devices = table.texts("devices")?.unwrap_or_default();
    devices.extend(table.text("device")?);
    if let Some(wrong) = devices.iter().find(|device| !is_device(device)) {
        let text = format!("\"{wrong}\": a device must be 1 to 32 of the characters a-z 0-9 _ -");
        return Err(table.error_at("devices", &text));
    }
    let name = |key| -> Result<Option<String>, String> {
        let Some(name) = table.text(key)? else { return Ok(None) };
        match name.len() <= 64
            && !name.contains(['"', '\\', ','])
            && !name.contains(char::is_control)
        {
            true => Ok(Some(name)),
            false => {
                let text = "must be at most 64 bytes, without quotes, backslashes, commas and \
                    control characters";
                Err(table.error_at(key, text))
            }
        }
    };
    let prefix = name("tag_prefix")?.unwrap_or_else(|| "tag".to_owned());
    let timeout = table.number("timeout", 0.1, MAX_SECONDS)?;
    let audience = Audience::new(&prefix, tags as u32, per_client as u32, devices);
    Ok(Population {
        connections,
        audience: Arc::new(audience),
        uid_prefix: name("uid_prefix")?,
        concurrency: table.integer("concurrency", 1, 1_000_000)?.map(|count| count as usize),
        timeout_ns: timeout.map(nanoseconds),
    })
}

/// Returns whether a server accepts it as a device.
pub fn is_device(text: &str) -> bool {
    let is_allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_-".contains(&b);
    (1..=32).contains(&text.len()) && text.bytes().all(is_allowed)
}

/// `open`: connections opened by the phases before.
fn read_phase(table: &Table<'_>, population: &Population, open: u64) -> Result<Phase, String> {
    let seconds = |key| -> Result<Option<u64>, String> {
        Ok(table.number(key, 0.0, MAX_SECONDS)?.map(nanoseconds))
    };
    let name = table.text("name")?.ok_or_else(|| table.missing("name", "name = \"ramp\""))?;
    if !(1..=40).contains(&name.len()) || name.contains(char::is_control) {
        return Err(table.error_at("name", "must be 1 to 40 bytes without control characters"));
    }
    let phase = Phase {
        name,
        duration_ns: seconds("duration")?.unwrap_or(0),
        hold_ns: seconds("hold")?.unwrap_or(0),
        at_most_ns: seconds("at_most")?.unwrap_or(AT_MOST_NS),
        until_run_ns: seconds("until_run")?.unwrap_or(0),
        open: read_open(table, population, open)?,
        cut: table.table("cut", CUT_KEYS)?.map(|cut| read_cut(&cut)).transpose()?,
        reconnect: read_reconnect(table)?,
        churn_per_s: rate(table, "churn_per_s")?,
        traffic: read_traffic(table)?,
        canaries: table
            .table("canaries", CANARY_KEYS)?
            .map(|own| read_canaries(&own))
            .transpose()?,
        drain: table.boolean("drain")?.unwrap_or(false),
    };
    check_phase(table, population, phase)
}

/// Checks that the settings of a phase fit together.
fn check_phase(
    table: &Table<'_>,
    population: &Population,
    mut phase: Phase,
) -> Result<Phase, String> {
    let traffic = &phase.traffic;
    if let Some(until) = table.text("until")? {
        if until != "all back" {
            let text = format!("\"{until}\": the only condition is \"all back\"");
            return Err(table.error_at("until", &text));
        }
        if phase.cut.is_none() || phase.reconnect.is_none() {
            return Err(table.error_at("until", "\"all back\" needs cut and reconnect"));
        }
        if phase.duration_ns > 0 {
            phase.at_most_ns = phase.duration_ns;
            phase.duration_ns = 0;
        }
    }
    if traffic.tag_pushes_per_s > 0.0 && population.audience.tags == 0 {
        return Err(table.error_at("tag_pushes_per_s", "there are no tags: set population.tags"));
    }
    if traffic.with_devices && population.audience.devices.is_empty() {
        let text = "there are no devices: set population.devices";
        return Err(table.error_at("with_devices", text));
    }
    let bulk_rates = traffic.project_pushes_per_s > 0.0 || traffic.tag_pushes_per_s > 0.0;
    if traffic.project_pushes > 0 && bulk_rates {
        let text = "these are sent one after the other, alone: put the pushes per second into a \
            phase of their own";
        return Err(table.error_at("project_pushes", text));
    }
    if phase.drain && (traffic.any() || phase.canaries.is_some() || phase.churn_per_s > 0.0) {
        return Err(
            table.error_at("drain", "no traffic, canaries or churn while the server drains")
        );
    }
    let lasts = phase.duration_ns > 0 || phase.hold_ns > 0 || phase.until_run_ns > 0;
    if !lasts && !phase.has_work() {
        return Err(table.error("this phase has no end: add duration = 10 (seconds)"));
    }
    Ok(phase)
}

fn read_open(
    table: &Table<'_>,
    population: &Population,
    before: u64,
) -> Result<Option<Open>, String> {
    let per_s = rate(table, "open_per_s")?;
    let Some(to) = table.integer("open", 0, MAX_CONNECTIONS)? else {
        return match per_s > 0.0 {
            true => Err(table
                .error_at("open_per_s", "the number of connections is missing: add open = 1000")),
            false => Ok(None),
        };
    };
    if to > population.connections {
        let text = format!("{to} is above population.connections, {}", population.connections);
        return Err(table.error_at("open", &text));
    }
    if to < before {
        let text = format!("{before} are already open; close some with cut");
        return Err(table.error_at("open", &text));
    }
    Ok(Some(Open { to, per_s }))
}

fn read_cut(table: &Table<'_>) -> Result<Cut, String> {
    let share = table.number("share", 0.0, 1.0)?;
    let count = table.integer("count", 0, MAX_CONNECTIONS)?;
    let count = match (share, count) {
        (Some(share), None) => Count::Share(share),
        (None, Some(count)) => Count::Connections(count),
        (Some(_), Some(_)) => return Err(table.error_at("count", "use share or count, not both")),
        (None, None) => return Err(table.missing("share", "share = 0.2 or count = 200")),
    };
    let how = match table.text("how")?.as_deref() {
        None | Some("reset") => Closing::Reset,
        Some("fin") => Closing::Fin,
        Some("close") => Closing::Clean,
        Some(other) => {
            let text = format!("\"{other}\" must be reset, fin or close (a Close frame)");
            return Err(table.error_at("how", &text));
        }
    };
    Ok(Cut { count, how })
}

fn read_reconnect(phase: &Table<'_>) -> Result<Option<Reconnect>, String> {
    let default = Reconnect::AT_ONCE;
    if phase.is_text("reconnect") {
        return match phase.text("reconnect")?.as_deref() {
            Some("at once") => Ok(Some(default)),
            _ => {
                Err(phase
                    .error_at("reconnect", "must be \"at once\" or { jitter = 2, backoff = 0.5 }"))
            }
        };
    }
    let Some(table) = phase.table("reconnect", RECONNECT_KEYS)? else { return Ok(None) };
    let seconds = |key, default: u64| -> Result<u64, String> {
        Ok(table.number(key, 0.0, MAX_SECONDS)?.map_or(default, nanoseconds))
    };
    Ok(Some(Reconnect {
        jitter_ns: seconds("jitter", 0)?,
        backoff_ns: seconds("backoff", default.backoff_ns)?,
        backoff_max_ns: seconds("backoff_max", default.backoff_max_ns)?,
        per_s: rate(&table, "per_s")?,
    }))
}

fn read_canaries(table: &Table<'_>) -> Result<Canaries, String> {
    Ok(Canaries {
        clients: table.integer("clients", 1, 10_000)?.unwrap_or(100),
        pushes_per_s: table.number("pushes_per_s", 0.01, MAX_PER_S)?.unwrap_or(50.0),
    })
}

fn read_traffic(table: &Table<'_>) -> Result<Traffic, String> {
    let selected = |key, default| -> Result<u32, String> {
        Ok(table.integer(key, 0, MAX_SELECTED)?.unwrap_or(default) as u32)
    };
    Ok(Traffic {
        bytes: table.integer("bytes", 1, 1 << 20)?.map_or(DEFAULT_BYTES, |bytes| bytes as usize),
        project_pushes: table.integer("project_pushes", 0, 1_000_000)?.unwrap_or(0) as u32,
        project_pushes_per_s: rate(table, "project_pushes_per_s")?,
        unicast_per_s: rate(table, "unicast_per_s")?,
        tag_pushes_per_s: rate(table, "tag_pushes_per_s")?,
        tags_per_push: selected("tags_per_push", 1)?.max(1),
        with_devices: table.boolean("with_devices")?.unwrap_or(false),
        with_users: selected("with_users", 0)?,
        requests_per_s: rate(table, "requests_per_s")?,
    })
}

fn rate(table: &Table<'_>, key: &'static str) -> Result<f64, String> {
    Ok(table.number(key, 0.0, MAX_PER_S)?.unwrap_or(0.0))
}

fn nanoseconds(seconds: f64) -> u64 {
    (seconds * 1e9) as u64
}

#[cfg(test)]
mod tests;
