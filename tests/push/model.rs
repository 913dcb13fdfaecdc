//! Who must get a push, computed with plain sets and no index.

use super::Rng;
use std::collections::BTreeSet;

/// A client as the test knows it.
#[derive(Debug)]
pub struct Person {
    /// Index of its project.
    pub project: usize,
    pub uid: String,
    /// Empty: none.
    pub device: String,
    pub cid: String,
    /// Its tags until its change in this round is answered, and from then on.
    pub before: BTreeSet<String>,
    pub after: BTreeSet<String>,
    pub change: Option<Change>,
}

#[derive(Debug)]
pub struct Change {
    verb: &'static str,
    tags: Vec<String>,
}

impl Change {
    pub fn message(&self) -> String {
        let Self { verb, tags } = self;
        format!(r#"{{"type":"{verb}","id":"7","tags":"{}"}}"#, tags.join(","))
    }
}

impl Person {
    /// Chooses the change that it will request in the next round.
    pub fn plan_change(&mut self, rng: &mut Rng, names: &[&str]) {
        self.before = self.after.clone();
        self.change = rng.chance(70).then(|| {
            let tags = some(rng, names, 3).into_iter().map(String::from).collect();
            let verb = if rng.chance(60) { "subscribe" } else { "unsubscribe" };
            Change { verb, tags }
        });
        for tag in self.change.iter().flat_map(|change| &change.tags) {
            if self.change.as_ref().is_some_and(|change| change.verb == "subscribe") {
                self.after.insert(tag.clone());
            } else {
                self.after.remove(tag);
            }
        }
    }

    /// Checks that the reply repeats the id and lists all current tags.
    pub fn check_reply(&self, text: &str) {
        let verb = self.change.as_ref().map_or("", |change| change.verb);
        let start = format!(r#"{{"type":"{verb}","code":1,"msg":"success","id":"7","tags":["#);
        let tags = text.strip_prefix(&start).and_then(|rest| rest.strip_suffix("]}"));
        let tags = tags.unwrap_or_else(|| panic!("not the reply to {verb}: {text}"));
        let tags: BTreeSet<&str> = tags
            .split(',')
            .filter(|tag| !tag.is_empty())
            .map(|tag| tag.trim_matches('"'))
            .collect();
        assert!(tags.iter().eq(&self.after), "{text} at {self:?}");
    }
}

/// Given selectors are intersected; the values within one are a union.
#[derive(Debug, Default)]
pub struct Selector {
    pub uids: Option<Vec<String>>,
    pub cids: Option<Vec<String>>,
    pub tags: Option<Vec<String>>,
    pub devices: Option<Vec<String>>,
    pub except: Option<Vec<String>>,
}

impl Selector {
    pub fn matches(&self, person: &Person, tags: &BTreeSet<String>) -> bool {
        let has = |list: &Option<Vec<String>>, name| list.as_ref().is_none_or(|l| l.contains(name));
        let is_excepted = self.except.as_ref().is_some_and(|list| list.contains(&person.cid));
        let has_tag =
            self.tags.as_ref().is_none_or(|list| list.iter().any(|tag| tags.contains(tag)));
        has(&self.uids, &person.uid)
            && has(&self.cids, &person.cid)
            && has(&self.devices, &person.device)
            && has_tag
            && !is_excepted
    }

    /// Returns the given members, by their names on the wire.
    pub fn lists(&self) -> Vec<(&'static str, &[String])> {
        let Self { uids, cids, tags, devices, except } = self;
        [
            ("uids", uids),
            ("cids", cids),
            ("tags", tags),
            ("devices", devices),
            ("except_cids", except),
        ]
        .into_iter()
        .filter_map(|(name, list)| Some((name, list.as_deref()?)))
        .collect()
    }

    /// Returns JSON members, each with a trailing comma; lists as arrays or as texts.
    pub fn json_members(&self, as_arrays: bool) -> String {
        let member = |(name, list): (&str, &[String])| {
            if as_arrays {
                format!(r#""{name}":["{}"],"#, list.join("\",\""))
            } else {
                format!(r#""{name}":"{}","#, list.join(","))
            }
        };
        self.lists().into_iter().map(member).collect()
    }
}

/// Returns message id and data of a push whose data is plain text.
pub fn pushed(text: &str) -> Option<(&str, &str)> {
    let rest = text.strip_prefix(r#"{"type":"push","id":""#)?.strip_suffix("\"}")?;
    rest.split_once(r#"","data":""#)
}

/// Returns one to `most` of `from`, possibly with a repetition.
pub fn some<T: Clone>(rng: &mut Rng, from: &[T], most: usize) -> Vec<T> {
    (0..1 + rng.below(most)).map(|_| rng.pick(from).clone()).collect()
}
