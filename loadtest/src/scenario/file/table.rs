//! A table of a TOML file: its members by type, and errors with their position.

use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

type Key<'t> = Spanned<DeString<'t>>;
type Value<'t> = Spanned<DeValue<'t>>;

pub struct Place<'a> {
    pub file: &'a str,
    pub text: &'a str,
}

impl<'a> Place<'a> {
    pub fn parse(&self) -> Result<Spanned<DeTable<'a>>, String> {
        DeTable::parse(self.text).map_err(|error| {
            let message = error.message().lines().collect::<Vec<_>>().join(", ");
            self.error(error.span().map_or(0, |span| span.start), &message)
        })
    }

    fn error(&self, at: usize, text: &str) -> String {
        let before = &self.text[..at.min(self.text.len())];
        let line = 1 + before.matches('\n').count();
        let column = 1 + before.rsplit('\n').next().unwrap_or("").chars().count();
        format!("{}:{line}:{column}: {text}", self.file)
    }
}

pub struct Table<'t> {
    place: &'t Place<'t>,
    members: &'t DeTable<'t>,
    /// Its position in the text.
    at: usize,
}

impl<'t> Table<'t> {
    /// Fails if there are members that are not `known`.
    pub fn new(
        place: &'t Place<'t>,
        members: &'t DeTable<'t>,
        at: usize,
        known: &[&str],
        what: &str,
    ) -> Result<Table<'t>, String> {
        let is_known = |key: &&Key<'_>| !known.contains(&&**key.get_ref());
        match members.keys().find(is_known) {
            None => Ok(Table { place, members, at }),
            Some(key) => {
                let hint = nearest(key.get_ref(), known);
                let text = format!("unknown key \"{}\" in {what}; {hint}", key.get_ref());
                Err(place.error(key.span().start, &text))
            }
        }
    }

    pub fn error(&self, text: &str) -> String {
        self.place.error(self.at, text)
    }

    /// Returns an error about a member, or about the table if there is no such member.
    pub fn error_at(&self, key: &str, text: &str) -> String {
        let at = self.members.get(key).map_or(self.at, |value| value.span().start);
        self.place.error(at, &format!("{key}: {text}"))
    }

    pub fn missing(&self, key: &str, example: &str) -> String {
        self.error(&format!("{key} is missing: add {example}"))
    }

    fn wrong(&self, key: &str, wanted: &str) -> String {
        let found = self.members.get(key).map_or("", |value| value.get_ref().type_str());
        self.error_at(key, &format!("{wanted} is expected, not {found}"))
    }

    fn get(&self, key: &str) -> Option<&'t Value<'t>> {
        self.members.get(key)
    }

    pub fn integer(&self, key: &str, min: u64, max: u64) -> Result<Option<u64>, String> {
        let wanted = format!("a whole number, {min} to {max},");
        let Some(value) = self.get(key) else { return Ok(None) };
        let DeValue::Integer(integer) = value.get_ref() else {
            return Err(self.wrong(key, &wanted));
        };
        match u64::from_str_radix(integer.as_str(), integer.radix()) {
            Ok(number) if (min..=max).contains(&number) => Ok(Some(number)),
            _ => Err(self.error_at(key, &format!("{integer} is not from {min} to {max}"))),
        }
    }

    pub fn number(&self, key: &str, min: f64, max: f64) -> Result<Option<f64>, String> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let number = match value.get_ref() {
            DeValue::Integer(integer) => {
                i64::from_str_radix(integer.as_str(), integer.radix()).ok().map(|n| n as f64)
            }
            DeValue::Float(float) => float.as_str().parse().ok(),
            _ => return Err(self.wrong(key, &format!("a number, {min} to {max},"))),
        };
        match number {
            Some(number) if (min..=max).contains(&number) => Ok(Some(number)),
            _ => {
                let shown = &self.place.text[value.span()];
                Err(self.error_at(key, &format!("{shown} is not from {min} to {max}")))
            }
        }
    }

    pub fn boolean(&self, key: &str) -> Result<Option<bool>, String> {
        let value = self.get(key).map(|value| value.get_ref().as_bool());
        value.map(|value| value.ok_or_else(|| self.wrong(key, "true or false"))).transpose()
    }

    pub fn is_text(&self, key: &str) -> bool {
        self.get(key).is_some_and(|value| value.get_ref().is_str())
    }

    pub fn text(&self, key: &str) -> Result<Option<String>, String> {
        let value = self.get(key).map(|value| value.get_ref().as_str().map(str::to_owned));
        value.map(|value| value.ok_or_else(|| self.wrong(key, "a text in quotes"))).transpose()
    }

    pub fn texts(&self, key: &str) -> Result<Option<Vec<String>>, String> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let wrong = || self.wrong(key, "a list of texts, such as [\"ios\", \"web\"],");
        let list = value.get_ref().as_array().ok_or_else(wrong)?;
        let text =
            |value: &Value<'_>| value.get_ref().as_str().map(str::to_owned).ok_or_else(wrong);
        list.iter().map(text).collect::<Result<_, _>>().map(Some)
    }

    pub fn table(&self, key: &str, known: &[&str]) -> Result<Option<Table<'t>>, String> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let wanted = format!("a table with {}", known.join(", "));
        let table = value.get_ref().as_table().ok_or_else(|| self.wrong(key, &wanted))?;
        Table::new(self.place, table, value.span().start, known, key).map(Some)
    }

    /// Returns the tables of a list; none if there is no such member.
    pub fn tables(&self, key: &str, known: &[&str]) -> Result<Vec<Table<'t>>, String> {
        let Some(value) = self.get(key) else { return Ok(Vec::new()) };
        let wanted = format!("[[{key}]] with two brackets, for each,");
        let list = value.get_ref().as_array().ok_or_else(|| self.wrong(key, &wanted))?;
        let table = |value: &'t Value<'t>| {
            let at = value.span().start;
            let table = value.get_ref().as_table().ok_or_else(|| self.wrong(key, &wanted))?;
            Table::new(self.place, table, at, known, &format!("[[{key}]]"))
        };
        list.iter().map(table).collect()
    }
}

/// Names the known key that was most likely meant, or all of them.
fn nearest(key: &str, known: &[&str]) -> String {
    let distance = |one: &&&str| strsim::osa_distance(&key.to_lowercase(), one);
    match known.iter().min_by_key(distance) {
        Some(nearest) if distance(&nearest) <= key.chars().count().max(nearest.len()) / 2 => {
            format!("did you mean \"{nearest}\"?")
        }
        _ => format!("known are {}", known.join(", ")),
    }
}
