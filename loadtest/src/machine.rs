//! What a report states about the machine, the time and the command.

use std::fs;
use std::thread;

use serde_json::{Value, json};

use crate::sys;

pub fn describe() -> Value {
    let cpu_info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpu = cpu_info.lines().find_map(|line| line.strip_prefix("model name"));
    let memory_info = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    json!({
        "host": first_line("/proc/sys/kernel/hostname"),
        "kernel": format!("Linux {}", first_line("/proc/sys/kernel/osrelease")),
        "cpu": cpu.map(|rest| rest.trim_start_matches([' ', '\t', ':']).to_owned()),
        "cores": thread::available_parallelism().map_or(0, usize::from),
        "memory_bytes": kib(&memory_info, "MemTotal:").map(|kib| kib * 1024),
    })
}

/// Returns the value of a line in /proc/meminfo.
pub fn kib(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

fn first_line(path: &str) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().next().unwrap_or("").to_owned()
}

/// Returns the command line quoted for a shell, without the secret.
pub fn command_line() -> String {
    let mut words: Vec<String> = Vec::new();
    let mut is_secret = false;
    for word in std::env::args() {
        let shown = match word.split_once('=') {
            _ if is_secret => "…".to_owned(),
            Some(("--secret", _)) => "--secret=…".to_owned(),
            _ => word.clone(),
        };
        is_secret = word == "--secret";
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./:,=@%+".contains(&byte);
        words.push(
            match !shown.is_empty() && (shown.bytes().all(is_plain) || shown.ends_with('…')) {
                true => shown,
                false => format!("'{}'", shown.replace('\'', r"'\''")),
            },
        );
    }
    if let Some(program) = words.first_mut() {
        *program = program.rsplit('/').next().unwrap_or("loadtest").to_owned();
    }
    words.join(" ")
}

/// Returns the current date and time in UTC.
pub fn date() -> String {
    date_of(sys::unix_seconds())
}

/// ISO 8601. Days are counted from March, so that a leap day is the last of its year.
fn date_of(unix_seconds: u64) -> String {
    let (days, second) = (unix_seconds / 86_400 + 719_468, unix_seconds % 86_400);
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (year, month) = match month < 10 {
        true => (era * 400 + year, month + 3),
        false => (era * 400 + year + 1, month - 9),
    };
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        for (seconds, want) in [
            (0, "1970-01-01 00:00:00 UTC"),
            (951_782_399, "2000-02-28 23:59:59 UTC"),
            (951_782_400, "2000-02-29 00:00:00 UTC"),
            (1_709_251_199, "2024-02-29 23:59:59 UTC"),
            (4_107_542_400, "2100-03-01 00:00:00 UTC"),
        ] {
            assert_eq!(date_of(seconds), want);
        }
    }

    #[test]
    fn the_machine_is_described() {
        let machine = describe();
        assert!(machine["cores"].as_u64().unwrap() > 0);
        assert!(machine["memory_bytes"].as_u64().unwrap() > 1 << 20);
        assert_eq!(kib("MemTotal:   12 kB\nMemFree: 3 kB\n", "MemFree:"), Some(3));
    }
}
