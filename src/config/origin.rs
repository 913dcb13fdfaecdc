//! Where a value was given, and how it is written there.

use super::flags::Flag;
use super::mistake::{Mistake, Place};
use serde_json::Value;
use std::fmt::Display;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Origin {
    Default,
    /// A place in the config file.
    File(Place),
    Environment,
    Argument,
}

impl Origin {
    /// Returns a flag's name as it is written at this origin, for errors.
    pub(super) fn name(&self, flag: &Flag) -> String {
        match self {
            Self::Default | Self::Argument => flag.argument(),
            Self::Environment => flag.variable(),
            Self::File(place) => format!("{place}: {}", flag.name),
        }
    }

    /// Returns a flag with a value as it is written at this origin.
    pub(super) fn written(&self, flag: &Flag, value: impl Display) -> String {
        match self {
            Self::Default | Self::Argument => format!("{} {value}", flag.argument()),
            Self::Environment => format!("{}={value}", flag.variable()),
            Self::File(_) => line(flag, &value.to_string()),
        }
    }

    /// Returns the mistake of a value from here. The text may begin with [`Self::name`].
    pub(super) fn mistake(&self, what: String) -> Mistake {
        let Self::File(place) = self else { return what.into() };
        let start = format!("{place}: ");
        Mistake::at(place.clone(), what.strip_prefix(&start).unwrap_or(&what))
    }

    /// Returns the origin for a list of values and their origins.
    pub(super) fn source(&self, flag: &Flag) -> String {
        match self {
            Self::Default => "default".into(),
            Self::File(Place { file, line, .. }) => format!("{file}, line {line}"),
            Self::Environment => flag.variable(),
            Self::Argument => flag.argument(),
        }
    }
}

/// Returns a line of a config file.
pub(super) fn line(flag: &Flag, value: &str) -> String {
    match flag.is_bare(value) {
        true => format!("{} = {value}", flag.name),
        // JSON's escapes are also valid in TOML.
        false => format!("{} = {}", flag.name, Value::from(value)),
    }
}
