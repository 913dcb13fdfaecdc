//! One value of the configuration, from a flag or from the environment, and how it complains.

use std::cell::RefCell;
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::str::FromStr;

use super::variables::is_service_url;
use super::{Exit, GIB};

/// Where a value comes from: the flag if it was typed, else the environment.
pub(super) struct Source<'a> {
    pub(super) env: &'a dyn Fn(&str) -> Option<String>,
    /// The flags that were asked for: in the end all that there are.
    pub(super) asked: RefCell<Vec<&'static str>>,
}

/// What the variables' names begin with.
pub(super) const PREFIX: &str = "WS_CLUSTER_";

impl Source<'_> {
    pub(super) fn get(&self, flag: &'static str, arg: &Option<String>) -> Setting {
        self.asked.borrow_mut().push(flag);
        let from_env = arg.is_none();
        let text =
            arg.clone().or_else(|| (self.env)(&variable(flag)).filter(|text| !text.is_empty()));
        Setting { flag, text, from_env }
    }
}

fn variable(flag: &str) -> String {
    format!("{PREFIX}{}", flag.to_ascii_uppercase())
}

/// One value, still text, that knows how to complain about itself.
pub(super) struct Setting {
    pub(super) flag: &'static str,
    pub(super) text: Option<String>,
    pub(super) from_env: bool,
}

impl Setting {
    pub(super) fn number(
        self,
        what: &str,
        default: u64,
        range: RangeInclusive<u64>,
    ) -> Result<u64, Exit> {
        let Some(text) = &self.text else { return Ok(default) };
        let digits_only = text.bytes().all(|b| b.is_ascii_digit());
        match text.parse() {
            Ok(number) if digits_only && range.contains(&number) => Ok(number),
            _ => {
                let fix = format!("give a number from {} to {}", range.start(), range.end());
                Err(self.wrong(what, &fix, default))
            }
        }
    }

    pub(super) fn size(self, default: u64, range: RangeInclusive<u64>) -> Result<u64, Exit> {
        let Some(text) = &self.text else { return Ok(default) };
        match parse_size(text) {
            Some(bytes) if range.contains(&bytes) => Ok(bytes),
            _ => {
                let fix = format!(
                    "give bytes from {} to {}, or a number with K, M or G",
                    range.start(),
                    range.end()
                );
                Err(self.wrong("a size", &fix, default))
            }
        }
    }

    pub(super) fn flag(self, default: bool) -> Result<bool, Exit> {
        match self.text.as_deref() {
            None => Ok(default),
            Some("true" | "1") => Ok(true),
            Some("false" | "0") => Ok(false),
            Some(_) => Err(self.wrong("true or false", "give one of the two", default)),
        }
    }

    pub(super) fn parsed<T: FromStr>(
        self,
        default: T,
        what: &str,
        fix: &str,
        example: &str,
    ) -> Result<T, Exit> {
        let Some(text) = &self.text else { return Ok(default) };
        text.parse().map_err(|_| match (self.flag, text.as_str()) {
            ("queue", "redis-stream") => Exit::Error(format!(
                "{} comes with a later version: use {} or local",
                self.written(text),
                self.written("redis")
            )),
            _ => self.wrong(what, fix, example),
        })
    }

    pub(super) fn wrong(&self, what: &str, fix: &str, example: impl Display) -> Exit {
        let name = self.name();
        let value = self.text.as_deref().unwrap_or_default();
        let service = name.strip_suffix("_PORT").filter(|_| self.from_env && is_service_url(value));
        if let Some(service) = service {
            let service = service.to_ascii_lowercase().replace('_', "-");
            return Exit::Error(format!(
                "{name} '{value}' is not {what}: Kubernetes sets it for the service {service}; set \
                 enableServiceLinks: false in the pod's spec, give the service another name, or \
                 pass --{} {example}",
                self.flag
            ));
        }
        let example = self.written(example);
        Exit::Error(format!("{name} '{value}' is not {what}: {fix}, e.g. {example}"))
    }

    /// The flag or the variable, in the way in which it was given.
    pub(super) fn name(&self) -> String {
        if self.from_env { variable(self.flag) } else { format!("--{}", self.flag) }
    }

    /// This setting with a value, in the way in which another one was given.
    pub(super) fn sibling(&self, other: &Self, value: impl Display) -> String {
        Self { flag: self.flag, text: None, from_env: other.from_env }.written(value)
    }

    /// The setting with a value, in the way in which it was given.
    pub(super) fn written(&self, value: impl Display) -> String {
        match self.from_env {
            true => format!("{}={value}", variable(self.flag)),
            false => format!("--{} {value}", self.flag),
        }
    }
}

/// `64K`, `1M`, `2G`, also with `iB` behind and in lower case, or plain bytes.
pub(super) fn parse_size(text: &str) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, suffix) = text.split_at(digits);
    let unit = match suffix.to_ascii_lowercase().as_str() {
        "" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => GIB,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(unit)
}
