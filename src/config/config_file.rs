//! The file of `--config`: TOML, one key for each flag.

use std::collections::HashMap;
use std::fs;

use toml::de::{DeTable, DeValue};

use super::Exit;
use super::flags::{self, Flag};
use super::origin::Origin;
use crate::types::{quoted, similar};

/// The values of a config file, still text.
#[derive(Debug, Default)]
pub(super) struct ConfigFile {
    path: String,
    /// By flag name.
    values: HashMap<&'static str, Found>,
}

#[derive(Debug)]
struct Found {
    text: String,
    line: usize,
    column: usize,
}

impl ConfigFile {
    /// Reads the file. `name` is the flag or variable that names it.
    pub(super) fn read(path: &str, name: &str) -> Result<Self, Exit> {
        let text = fs::read_to_string(path).map_err(|error| {
            Exit::Error(format!(
                "{name} '{path}' cannot be read: {error}; use a TOML file that this user may read, \
                 e.g. /etc/ws-cluster/config.toml"
            ))
        })?;
        Self::parse(path, &text)
    }

    fn parse(path: &str, text: &str) -> Result<Self, Exit> {
        let error = |at: usize, what: &str| {
            let (line, column) = place(text, at);
            Exit::Error(format!("{path}, line {line}, column {column}: {what}"))
        };
        let (root, errors) = DeTable::parse_recoverable(text);
        if let Some(first) = errors.first() {
            // Not the error's own Display: it quotes the line, which may hold a secret.
            let message = first.message().lines().collect::<Vec<_>>().join(", ");
            return Err(error(first.span().map_or(0, |span| span.start), &message));
        }
        let mut values = HashMap::new();
        for (key, value) in root.into_inner() {
            let at = key.span().start;
            let flag = flags::find(key.get_ref()).filter(|flag| flag.name != flags::CONFIG.name);
            let Some(flag) = flag else { return Err(error(at, &unknown(key.get_ref()))) };
            let text_of_value = match value.get_ref() {
                DeValue::String(text) => text.to_string(),
                DeValue::Integer(number) => number.to_string(),
                DeValue::Boolean(is_true) => is_true.to_string(),
                _ => {
                    let what = format!("{} must be a string, an integer, true or false", flag.name);
                    return Err(error(value.span().start, &what));
                }
            };
            let (line, column) = place(text, at);
            values.insert(flag.name, Found { text: text_of_value, line, column });
        }
        Ok(Self { path: path.to_owned(), values })
    }

    /// Returns the value of a flag and its place; empty text counts as absent, as in the
    /// environment.
    pub(super) fn value(&self, flag: &Flag) -> Option<(String, Origin)> {
        let Found { text, line, column } = self.values.get(flag.name)?;
        let origin = Origin::File { path: self.path.clone(), line: *line, column: *column };
        (!text.is_empty()).then(|| (text.clone(), origin))
    }
}

fn unknown(key: &str) -> String {
    if key == flags::CONFIG.name {
        return "a config file cannot include another one: remove config".into();
    }
    let hint = match similar(key, &flags::names()) {
        Some(nearest) => format!("did you mean \"{nearest}\"?"),
        None => "the keys are the flags that ws-cluster --help lists".into(),
    };
    format!("unknown key {}; {hint}", quoted(key))
}

/// Returns line and column of a byte, both counted from 1.
fn place(text: &str, at: usize) -> (usize, usize) {
    let before = text.get(..at).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |end| end + 1);
    (1 + before.matches('\n').count(), 1 + before[line_start..].chars().count())
}
