//! Flags. Each is declared once, in [`table`]; arguments, `--help`, the environment variables, the
//! config file, `print-config` and the tables of docs/configuration.md are derived from it.

mod commands;
mod docs;
mod help;
mod table;

use super::GIB;

pub use commands::{COMMANDS, Command, CommandOption, CommandSpec};
pub(super) use docs::size;
pub(super) use help::{help, help_of};
pub(super) use table::*;

/// A setting of a node.
#[derive(Debug)]
pub struct Flag {
    /// With underscores: it is the argument, the key in the config file, and in capitals after
    /// `WS_CLUSTER_` the variable.
    pub(super) name: &'static str,
    pub(super) kind: ValueKind,
    /// The default as it could be typed; empty if there is none or it is computed.
    pub(super) default: &'static str,
    /// Describes a computed default.
    computed: &'static str,
    /// For `--help`, and as the beginning of its row in the docs.
    help: &'static str,
    /// The rest of that row.
    #[cfg_attr(not(test), expect(dead_code, reason = "a test makes and checks the docs"))]
    more: &'static str,
    /// What a reload does with it.
    pub(super) reload: Reload,
    /// Its value is never shown, and may be `file:` with the path of a file that holds it.
    pub(super) is_secret: bool,
    /// All words that are values of it; empty if there are too many.
    choices: &'static [&'static str],
}

/// What a reload of a running node (SIGHUP, `POST /reload`) does with a flag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reload {
    /// Another value takes effect.
    Takes,
    /// Another number takes effect if it is not larger than that of the start, by which tables are
    /// sized.
    UpToStart,
    /// Nothing: another value takes effect with the next start.
    Restart,
    /// The same value is used anew: the file that it names is opened again.
    Reopen,
}

/// The form of a value.
#[derive(Debug, Clone, Copy)]
pub(super) enum ValueKind {
    /// A whole number within these bounds; `what` names it in errors.
    Number { what: &'static str, min: u64, max: u64 },
    /// A number of bytes within these bounds.
    Size { min: u64, max: u64 },
    /// `true` or `false`.
    Bool,
    /// The same; `true` if the argument stands alone.
    Switch,
    /// Text of a certain form: what it is, how to give it, and an example.
    Text { value: &'static str, what: &'static str, fix: &'static str, example: &'static str },
    /// Text that the code that uses it checks.
    Free { value: &'static str },
}

/// Flags that belong together.
pub struct FlagGroup {
    pub title: &'static str,
    pub flags: &'static [&'static Flag],
}

/// Returns all flags, by group.
pub fn flag_groups() -> &'static [FlagGroup] {
    GROUPS
}

/// Returns all flags.
pub(super) fn all() -> impl Iterator<Item = &'static Flag> {
    GROUPS.iter().flat_map(|group| group.flags.iter().copied())
}

/// Returns the names of all flags.
pub(super) fn names() -> Vec<&'static str> {
    all().map(|flag| flag.name).collect()
}

pub(super) fn find(name: &str) -> Option<&'static Flag> {
    all().find(|flag| flag.name == name)
}

impl Flag {
    const fn new(name: &'static str, kind: ValueKind) -> Self {
        let (default, computed, help, more) = ("", "", "", "");
        let (reload, is_secret, choices) = (Reload::Restart, false, &[]);
        Self { name, kind, default, computed, help, more, reload, is_secret, choices }
    }

    const fn number(name: &'static str, what: &'static str, min: u64, max: u64) -> Self {
        Self::new(name, ValueKind::Number { what, min, max })
    }

    const fn port(name: &'static str) -> Self {
        Self::number(name, "a port", 0, 65_535)
    }

    /// A duration of at least `min` milliseconds and at most a day.
    const fn ms(name: &'static str, min: u64) -> Self {
        Self::number(name, "a time in milliseconds", min, 86_400_000)
    }

    const fn size(name: &'static str, min: u64, max: u64) -> Self {
        Self::new(name, ValueKind::Size { min, max })
    }

    const fn bool(name: &'static str) -> Self {
        Self::new(name, ValueKind::Bool)
    }

    const fn free(name: &'static str, value: &'static str) -> Self {
        Self::new(name, ValueKind::Free { value })
    }

    const fn secret(name: &'static str, value: &'static str) -> Self {
        Self { is_secret: true, ..Self::free(name, value) }
    }

    const fn default(self, default: &'static str) -> Self {
        Self { default, ..self }
    }

    /// Declares a default that is computed from something else.
    const fn computed(self, computed: &'static str) -> Self {
        Self { computed, ..self }
    }

    /// Declares the words that are its values.
    const fn choices(self, choices: &'static [&'static str]) -> Self {
        Self { choices, ..self }
    }

    const fn help(self, help: &'static str) -> Self {
        Self { help, ..self }
    }

    const fn more(self, more: &'static str) -> Self {
        Self { more, ..self }
    }

    /// Declares what a reload does with it.
    const fn reload(self, reload: Reload) -> Self {
        Self { reload, ..self }
    }

    /// Returns the word that stands for its value in a description; `None`: it may stand alone.
    pub fn value_name(&self) -> Option<&'static str> {
        match self.kind {
            ValueKind::Number { .. } => Some("N"),
            ValueKind::Size { .. } => Some("BYTES"),
            ValueKind::Bool => Some("true|false"),
            ValueKind::Switch => None,
            ValueKind::Text { value, .. } | ValueKind::Free { value } => Some(value),
        }
    }

    /// Returns the words that are its values; empty if there are too many to list.
    pub fn value_words(&self) -> &'static [&'static str] {
        match self.kind {
            ValueKind::Bool | ValueKind::Switch => &["true", "false"],
            _ => self.choices,
        }
    }

    /// Returns its description for people: its purpose, bounds and default.
    pub fn about(&self) -> String {
        help::about(self)
    }

    /// Returns its purpose in a few words.
    pub fn summary(&self) -> String {
        self.help.split([';', ':', '(']).next().unwrap_or_default().trim().replace('`', "")
    }

    /// Returns the name of its environment variable.
    pub fn variable(&self) -> String {
        format!("{PREFIX}{}", self.name.to_ascii_uppercase())
    }

    /// Returns its name as an argument, which is also the one shown.
    pub fn argument(&self) -> String {
        format!("--{}", self.name)
    }

    /// Returns whether a value needs no quotes in the config file.
    pub(super) fn is_bare(&self, value: &str) -> bool {
        match self.kind {
            ValueKind::Number { .. } | ValueKind::Size { .. } => {
                value.bytes().all(|b| b.is_ascii_digit())
            }
            ValueKind::Bool | ValueKind::Switch => true,
            ValueKind::Text { .. } | ValueKind::Free { .. } => false,
        }
    }
}

/// The prefix of the variables' names.
pub(super) const PREFIX: &str = "WS_CLUSTER_";
