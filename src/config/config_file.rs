//! The file of `--config`: TOML, one key for each flag.

use std::collections::HashMap;

use toml::de::{DeTable, DeValue};

use super::flags::{self, Flag};
use super::mistake::{FileText, Mistake, Place};
use super::origin::Origin;
use super::text_file::read_text;
use crate::types::{quoted, similar};

/// The values of a config file, still text.
#[derive(Debug, Default)]
pub(super) struct ConfigFile {
    /// By flag name.
    values: HashMap<&'static str, Found>,
}

#[derive(Debug)]
struct Found {
    text: String,
    place: Place,
}

impl ConfigFile {
    /// Reads the file; what is wrong in it is added to `mistakes`. `name` is the flag or variable
    /// that names it.
    pub(super) fn read(
        path: &str,
        name: &str,
        is_reload: bool,
        mistakes: &mut Vec<Mistake>,
    ) -> Self {
        match read_text(path, is_reload) {
            Ok(text) => Self::parse(&FileText::new(path, &text), mistakes),
            Err(error) => {
                let what = format!(
                    "{name} '{path}' cannot be read: {error}; use a TOML file that this user may \
                     read, e.g. /etc/ws-cluster/config.toml"
                );
                mistakes.push(what.into());
                Self::default()
            }
        }
    }

    fn parse(file: &FileText<'_>, mistakes: &mut Vec<Mistake>) -> Self {
        let (root, errors) = DeTable::parse_recoverable(file.text);
        let mut found: Vec<Mistake> = errors.iter().map(|error| file.syntax(error)).collect();
        // What follows a mistake in its line is often no mistake of its own.
        found.dedup_by_key(|one| one.place.as_ref().map(|place| place.line));
        let broken: Vec<usize> =
            found.iter().filter_map(|one| one.place.as_ref()).map(|place| place.line).collect();
        let mut values = HashMap::new();
        for (key, value) in root.into_inner() {
            let place = file.place(key.span().start);
            // What the parser makes of a line that is not TOML says nothing more about it.
            if broken.contains(&place.line) {
                continue;
            }
            let flag = flags::find(key.get_ref()).filter(|flag| flag.name != flags::CONFIG.name);
            let Some(flag) = flag else {
                found.push(Mistake::at(place, unknown(key.get_ref())));
                continue;
            };
            let text = match value.get_ref() {
                DeValue::String(text) => text.to_string(),
                DeValue::Integer(number) => number.to_string(),
                DeValue::Boolean(is_true) => is_true.to_string(),
                _ => {
                    let what = format!("{} must be a string, an integer, true or false", flag.name);
                    found.push(file.mistake(value.span().start, what));
                    continue;
                }
            };
            values.insert(flag.name, Found { text, place });
        }
        found.sort_by(|one, other| one.place.cmp(&other.place));
        mistakes.append(&mut found);
        Self { values }
    }

    /// Returns the value of a flag and its place; empty text counts as absent, as in the
    /// environment.
    pub(super) fn value(&self, flag: &Flag) -> Option<(String, Origin)> {
        let Found { text, place } = self.values.get(flag.name)?;
        (!text.is_empty()).then(|| (text.clone(), Origin::File(place.clone())))
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
