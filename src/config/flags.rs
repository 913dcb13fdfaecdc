//! What a flag is. Each is declared once, in [`table`]; from that come the arguments, `--help`, the
//! variables of the environment, the config file, `print-config`, and the tables of
//! docs/operations.md.

mod docs;
mod help;
mod table;

use super::GIB;

pub(super) use docs::size;
pub(super) use help::help;
pub(super) use table::*;

/// A value that a node can be given.
#[derive(Debug)]
pub(super) struct Flag {
    /// With underscores: as an argument, as a key of the config file, and in capitals behind
    /// `WS_CLUSTER_` as a variable.
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    /// The default as it could be typed; empty where there is none, or where it is computed.
    pub(super) default: &'static str,
    /// In words, where the default is computed.
    computed: &'static str,
    /// For `--help`, and the beginning of its row in the docs.
    help: &'static str,
    /// The rest of that row.
    #[cfg_attr(not(test), expect(dead_code, reason = "a test makes and checks the docs"))]
    more: &'static str,
    /// Its value is shown nowhere, and may be `file:` and the path of a file that has it.
    pub(super) is_secret: bool,
}

/// What a value may be.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    /// A whole number in these bounds; `what` it is, for errors.
    Number { what: &'static str, min: u64, max: u64 },
    /// A number of bytes in these bounds.
    Size { min: u64, max: u64 },
    /// `true` or `false`.
    Bool,
    /// The same, and `true` where it stands alone as an argument.
    Switch,
    /// A text with a form: what it is, how to give one, and an example.
    Text { value: &'static str, what: &'static str, fix: &'static str, example: &'static str },
    /// A text that its reader checks.
    Free { value: &'static str },
}

/// Flags that belong together.
pub(super) struct Group {
    pub(super) title: &'static str,
    pub(super) flags: &'static [&'static Flag],
}

/// All flags.
pub(super) fn all() -> impl Iterator<Item = &'static Flag> {
    GROUPS.iter().flat_map(|group| group.flags.iter().copied())
}

/// The names of all flags.
pub(super) fn names() -> Vec<&'static str> {
    all().map(|flag| flag.name).collect()
}

pub(super) fn find(name: &str) -> Option<&'static Flag> {
    all().find(|flag| flag.name == name)
}

impl Flag {
    const fn new(name: &'static str, kind: Kind) -> Self {
        let (default, computed, help, more) = ("", "", "", "");
        Self { name, kind, default, computed, help, more, is_secret: false }
    }

    const fn number(name: &'static str, what: &'static str, min: u64, max: u64) -> Self {
        Self::new(name, Kind::Number { what, min, max })
    }

    const fn port(name: &'static str) -> Self {
        Self::number(name, "a port", 0, 65_535)
    }

    /// A time of at least `min` milliseconds, at most a day.
    const fn ms(name: &'static str, min: u64) -> Self {
        Self::number(name, "a time in milliseconds", min, 86_400_000)
    }

    const fn size(name: &'static str, min: u64, max: u64) -> Self {
        Self::new(name, Kind::Size { min, max })
    }

    const fn bool(name: &'static str) -> Self {
        Self::new(name, Kind::Bool)
    }

    const fn free(name: &'static str, value: &'static str) -> Self {
        Self::new(name, Kind::Free { value })
    }

    const fn secret(name: &'static str, value: &'static str) -> Self {
        Self { is_secret: true, ..Self::free(name, value) }
    }

    const fn default(self, default: &'static str) -> Self {
        Self { default, ..self }
    }

    /// The default follows from something else.
    const fn computed(self, computed: &'static str) -> Self {
        Self { computed, ..self }
    }

    const fn help(self, help: &'static str) -> Self {
        Self { help, ..self }
    }

    const fn more(self, more: &'static str) -> Self {
        Self { more, ..self }
    }

    /// How its variable is named.
    pub(super) fn variable(&self) -> String {
        format!("{PREFIX}{}", self.name.to_ascii_uppercase())
    }

    /// As it is shown: that of an argument.
    pub(super) fn argument(&self) -> String {
        format!("--{}", self.name)
    }

    /// Whether a value stands in the config file without quotes.
    pub(super) fn is_bare(&self, value: &str) -> bool {
        match self.kind {
            Kind::Number { .. } | Kind::Size { .. } => value.bytes().all(|b| b.is_ascii_digit()),
            Kind::Bool | Kind::Switch => true,
            Kind::Text { .. } | Kind::Free { .. } => false,
        }
    }
}

/// What the variables' names begin with.
pub(super) const PREFIX: &str = "WS_CLUSTER_";
