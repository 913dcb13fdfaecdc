//! One value of the configuration, whatever its origin, and its errors.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::fmt::{self, Display};
use std::str::FromStr;

use super::GIB;
use super::arguments::Arguments;
use super::config_file::ConfigFile;
use super::flags::{self, Flag, Reload, ValueKind};
use super::mistake::Mistake;
use super::origin::Origin;
use super::text_file::read_text;
use super::variables::is_service_url;
use crate::state::settings::Settings;

/// Where values come from: arguments take precedence over the environment, and that over the config
/// file. What is wrong is collected here, and a default takes its place, so that one pass finds
/// every mistake.
pub(super) struct Source<'a> {
    arguments: &'a Arguments,
    env: &'a dyn Fn(&str) -> Option<String>,
    file: ConfigFile,
    /// The flags read so far; in the end every flag.
    resolved: RefCell<Vec<Resolved>>,
    mistakes: RefCell<Vec<Mistake>>,
    /// Flags whose values are replaced by their defaults.
    unsound: RefCell<Vec<&'static str>>,
    texts: RefCell<Texts>,
    /// For a reload: the values of the running node. Those that need a restart stay.
    in_force: Option<&'a InForce>,
    /// The flags whose values stay although others are given.
    kept: RefCell<BTreeSet<&'static str>>,
}

/// The values of a running node.
#[derive(Debug, Default, Clone)]
pub(super) struct InForce {
    pub(super) resolved: Vec<Resolved>,
    texts: Texts,
    workers: u64,
    /// `--max_connections` of the start.
    most_connections: u64,
}

/// The text that was given for each flag, by name. It may be a secret, and is not shown.
#[derive(Default, Clone)]
struct Texts(HashMap<&'static str, GivenText>);

#[derive(Default, Clone, PartialEq, Eq)]
struct GivenText {
    given: Option<String>,
    /// The value of a secret, which may be in a file of its own.
    secret: Option<String>,
}

impl Texts {
    fn get(&self, flag: &Flag) -> GivenText {
        self.0.get(flag.name).cloned().unwrap_or_default()
    }
}

impl fmt::Debug for Texts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl InForce {
    /// Returns the flags that a reload takes whose value differs from `before`.
    pub(super) fn changed_since(&self, before: &Self) -> Vec<&'static str> {
        let may_change = |reload| matches!(reload, Reload::Takes | Reload::UpToStart);
        let changed = self.resolved.iter().filter(|now| {
            let flag = now.flag;
            let secret = |one: &Self| one.texts.get(flag).secret;
            may_change(flag.reload)
                && (now.value != before.value(flag) || secret(self) != secret(before))
        });
        changed.map(|now| now.flag.name).collect()
    }

    /// Returns whether a reload takes this text for a flag.
    fn takes(&self, flag: &Flag, text: Option<&str>) -> bool {
        match flag.reload {
            Reload::Takes => true,
            Reload::Restart | Reload::Reopen => false,
            // What is no number is reported, not kept.
            Reload::UpToStart => text
                .unwrap_or(flag.default)
                .parse()
                .map_or(true, |number: u64| number <= self.most_connections),
        }
    }

    /// Returns a flag's value; `None` also for a secret.
    pub(super) fn value(&self, flag: &Flag) -> Option<String> {
        let ours = self.resolved.iter().find(|one| one.flag.name == flag.name)?;
        ours.value.clone().filter(|_| !ours.is_hidden)
    }
}

/// A flag's effective value, and its origin.
#[derive(Debug, Clone)]
pub(super) struct Resolved {
    pub(super) flag: &'static Flag,
    /// `None`: it has no value.
    pub(super) value: Option<String>,
    pub(super) origin: Origin,
    /// The value is not shown.
    pub(super) is_hidden: bool,
    /// The value is in a file of its own.
    pub(super) names_file: bool,
}

impl<'a> Source<'a> {
    /// Reads the config file if one is named.
    pub(super) fn new(arguments: &'a Arguments, env: &'a dyn Fn(&str) -> Option<String>) -> Self {
        Self::for_node(arguments, env, None)
    }

    /// The same for a reload: flags that need a restart have the values in force.
    pub(super) fn for_node(
        arguments: &'a Arguments,
        env: &'a dyn Fn(&str) -> Option<String>,
        in_force: Option<&'a InForce>,
    ) -> Self {
        let mut source = Self {
            arguments,
            env,
            file: ConfigFile::default(),
            resolved: RefCell::default(),
            mistakes: RefCell::default(),
            unsound: RefCell::default(),
            texts: RefCell::default(),
            in_force,
            kept: RefCell::default(),
        };
        let (path, name) = {
            let setting = source.get(&flags::CONFIG);
            (setting.text.clone(), setting.name())
        };
        if let Some(path) = path {
            source.file = ConfigFile::read(
                &path,
                &name,
                source.is_reload(),
                &mut source.mistakes.borrow_mut(),
            );
        }
        source
    }

    pub(super) fn is_reload(&self) -> bool {
        self.in_force.is_some()
    }

    pub(super) fn env(&self) -> &'a dyn Fn(&str) -> Option<String> {
        self.env
    }

    pub(super) fn report(&self, mistake: impl Into<Mistake>) {
        self.mistakes.borrow_mut().push(mistake.into());
    }

    /// Returns whether all of these flags have the values that were given. What contradicts a
    /// default that replaces a wrong value is no mistake of its own.
    pub(super) fn is_sound(&self, flags: &[&'static Flag]) -> bool {
        let unsound = self.unsound.borrow();
        !flags.iter().any(|flag| unsound.contains(&flag.name))
    }

    /// Returns what is wrong, in the order in which it was found.
    pub(super) fn mistakes(&self) -> Vec<Mistake> {
        self.mistakes.borrow().clone()
    }

    pub(super) fn get(&self, flag: &'static Flag) -> Setting<'_> {
        let in_env = || (self.env)(&flag.variable()).filter(|text| !text.is_empty());
        let (text, origin) = if let Some(text) = self.arguments.value(flag) {
            (Some(text.to_owned()), Origin::Argument)
        } else if let Some(text) = in_env() {
            (Some(text), Origin::Environment)
        } else if let Some((text, origin)) = self.file.value(flag) {
            (Some(text), origin)
        } else {
            (None, Origin::Default)
        };
        let text = self.or_in_force(flag, text, |texts| texts.given);
        self.texts.borrow_mut().0.entry(flag.name).or_default().given = text.clone();
        let default = Some(flag.default).filter(|text| !text.is_empty()).map(String::from);
        let (value, is_hidden) = match &text {
            Some(_) if flag.is_secret => (None, true),
            _ => (text.clone().or(default), false),
        };
        let names_file = is_hidden && text.as_ref().is_some_and(|text| text.starts_with("file:"));
        let resolved = Resolved { flag, value, origin: origin.clone(), is_hidden, names_file };
        self.resolved.borrow_mut().push(resolved);
        Setting { flag, text, origin, is_from_file: false, source: self }
    }

    /// Returns the value of a secret, which may be in a file of its own.
    pub(super) fn secret(&self, flag: &'static Flag) -> Setting<'_> {
        let mut setting = self.get(flag);
        if let Some(path) = setting.text.as_deref().and_then(|text| text.strip_prefix("file:")) {
            let read = read_secret(&setting.name(), path, self.is_reload());
            setting.text = read.map_err(|what| setting.report(what)).ok();
            setting.is_from_file = true;
        }
        setting.text = self.or_in_force(flag, setting.text, |texts| texts.secret);
        self.texts.borrow_mut().0.entry(flag.name).or_default().secret = setting.text.clone();
        setting
    }

    /// Returns the text in force instead of another one that needs a restart.
    fn or_in_force(
        &self,
        flag: &'static Flag,
        text: Option<String>,
        of: impl FnOnce(GivenText) -> Option<String>,
    ) -> Option<String> {
        let Some(in_force) = self.in_force.filter(|one| !one.takes(flag, text.as_deref())) else {
            return text;
        };
        let before = of(in_force.texts.get(flag));
        if text != before {
            self.kept.borrow_mut().insert(flag.name);
        }
        before
    }

    /// Returns the number of workers of the running node, for a reload.
    pub(super) fn running_workers(&self) -> Option<u64> {
        self.in_force.map(|in_force| in_force.workers)
    }

    /// Returns every flag with its value, in the order of [`flags::all`], and those flags whose
    /// values stay although others are given. `settings`: what they resolve to.
    pub(super) fn finish(self, settings: &Settings) -> (InForce, Vec<&'static Flag>) {
        let mut resolved = self.resolved.into_inner();
        let place = |name| flags::all().position(|flag| flag.name == name);
        resolved.sort_by_key(|one| place(one.flag.name));
        resolved.dedup_by(|later, earlier| later.flag.name == earlier.flag.name);
        let kept = self.kept.into_inner();
        let kept = flags::all().filter(|flag| kept.contains(flag.name)).collect();
        let at_start = settings.max_connections as u64;
        let most_connections = self.in_force.map_or(at_start, |one| one.most_connections);
        let (texts, workers) = (self.texts.into_inner(), settings.workers as u64);
        (InForce { resolved, texts, workers, most_connections }, kept)
    }
}

/// Reads the file of a secret: one line. `name` is what refers to it, for an error.
pub(super) fn read_secret(name: &str, path: &str, is_reload: bool) -> Result<String, String> {
    let text = read_text(path, is_reload).map_err(|error| {
        format!(
            "{name}: the file {path} cannot be read: {error}; use file:/path with a file that this \
             user may read"
        )
    })?;
    let text = text.trim_end_matches(['\n', '\r']);
    match text.is_empty() || text.contains(['\n', '\r']) {
        true => Err(format!("{name}: the file {path} must contain exactly one line, the value")),
        false => Ok(text.to_owned()),
    }
}

/// One value, still text, that can report its own errors.
pub(super) struct Setting<'s> {
    flag: &'static Flag,
    pub(super) text: Option<String>,
    pub(super) origin: Origin,
    /// It was read from a file of its own.
    is_from_file: bool,
    source: &'s Source<'s>,
}

impl Setting<'_> {
    pub(super) fn number(self) -> u64 {
        let default = self.flag.default.parse().unwrap_or_default();
        self.number_or(default)
    }

    /// Returns the number. `default` is for a flag whose default is computed; so it is in
    /// `size_or`.
    pub(super) fn number_or(self, default: u64) -> u64 {
        let (what, range) = match self.flag.kind {
            ValueKind::Number { what, min, max } => (what, min..=max),
            _ => ("a number", 0..=u64::MAX),
        };
        let Some(text) = &self.text else { return self.take_default(default) };
        let digits_only = text.bytes().all(|b| b.is_ascii_digit());
        match text.parse() {
            Ok(number) if digits_only && range.contains(&number) => number,
            _ => {
                let fix = format!("use a number from {} to {}", range.start(), range.end());
                self.refuse(what, &fix, default);
                default
            }
        }
    }

    pub(super) fn size(self) -> u64 {
        let default = parse_size(self.flag.default).unwrap_or_default();
        self.sized(default)
    }

    pub(super) fn size_or(self, default: u64) -> u64 {
        if self.text.is_none() {
            self.note(flags::size(default));
        }
        self.sized(default)
    }

    fn sized(self, default: u64) -> u64 {
        let range = match self.flag.kind {
            ValueKind::Size { min, max } => min..=max,
            _ => 0..=u64::MAX,
        };
        let Some(text) = &self.text else { return default };
        match parse_size(text) {
            Some(bytes) if range.contains(&bytes) => bytes,
            _ => {
                let fix = format!(
                    "use a number of bytes from {} to {}, optionally with K, M or G",
                    range.start(),
                    range.end()
                );
                self.refuse("a size", &fix, default);
                default
            }
        }
    }

    pub(super) fn flag(self) -> bool {
        let default = self.flag.default == "true";
        self.flag_or(default)
    }

    pub(super) fn flag_or(self, default: bool) -> bool {
        match self.text.as_deref() {
            None => self.take_default(default),
            Some("true" | "1") => true,
            Some("false" | "0") => false,
            Some(_) => {
                self.refuse("true or false", "use one of them", default);
                default
            }
        }
    }

    /// Parses the value of a flag that has a form and a default. `fallback` takes the place of a
    /// wrong one.
    pub(super) fn parsed<T: FromStr>(self, fallback: T) -> T {
        let text = self.text.as_deref().unwrap_or(self.flag.default);
        text.parse().unwrap_or_else(|_| {
            self.refuse_form();
            fallback
        })
    }

    pub(super) fn parsed_or<T: FromStr + Display>(self, default: T) -> T {
        match &self.text {
            None => self.take_default(default),
            Some(text) => text.parse().unwrap_or_else(|_| {
                self.refuse_form();
                default
            }),
        }
    }

    fn refuse_form(&self) {
        match (self.flag.name, self.text.as_deref(), self.flag.kind) {
            ("queue", Some(text @ "redis-stream"), _) => self.report(format!(
                "{} is planned for a later version: use {} or local",
                self.written(text),
                self.written("redis")
            )),
            (_, _, ValueKind::Text { what, fix, example, .. }) => self.refuse(what, fix, example),
            _ => self.refuse("a value", "use another", self.flag.default),
        }
    }

    /// Reports that the value is not what it has to be.
    pub(super) fn refuse(&self, what: &str, fix: &str, example: impl Display) {
        self.report(self.wrong(what, fix, example));
    }

    pub(super) fn wrong(&self, what: &str, fix: &str, example: impl Display) -> String {
        let name = self.name();
        let value = self.text.as_deref().unwrap_or_default();
        let is_variable = self.origin == Origin::Environment;
        let service = name.strip_suffix("_PORT").filter(|_| is_variable && is_service_url(value));
        if let Some(service) = service {
            let service = service.to_ascii_lowercase().replace('_', "-");
            return format!(
                "{name} '{value}' is not {what}: Kubernetes sets it for the service {service}; set \
                 enableServiceLinks: false in the pod's spec, rename the service, or pass --{} \
                 {example}",
                self.flag.name
            );
        }
        let example = self.written(example);
        format!("{name} '{value}' is not {what}: {fix}, e.g. {example}")
    }

    /// Reports a mistake in this value, which a default replaces. The text may begin with
    /// [`Self::name`].
    pub(super) fn report(&self, what: impl Into<String>) {
        self.source.unsound.borrow_mut().push(self.flag.name);
        self.source.report(self.origin.mistake(what.into()));
    }

    /// Returns the flag, the variable or the place in the config file, depending on its origin.
    pub(super) fn name(&self) -> String {
        self.origin.name(self.flag)
    }

    /// Returns this setting with a value, written as at the origin of another one.
    pub(super) fn sibling(&self, other: &Self, value: impl Display) -> String {
        other.origin.written(self.flag, value)
    }

    /// Returns the setting with a value, written as at its origin.
    pub(super) fn written(&self, value: impl Display) -> String {
        self.origin.written(self.flag, value)
    }

    /// Returns whether every user of the machine can read the value in the list of processes.
    pub(super) fn is_visible(&self) -> bool {
        self.text.is_some() && self.origin == Origin::Argument && !self.is_from_file
    }

    fn take_default<T: Display>(&self, default: T) -> T {
        self.note(default.to_string());
        default
    }

    /// Records the effective value for `print-config`.
    pub(super) fn note(&self, value: String) {
        self.resolve(|ours| ours.value = Some(value));
    }

    /// Records the value of a secret flag that turns out to be no secret.
    pub(super) fn reveal(&self, value: String) {
        self.resolve(|ours| (ours.value, ours.is_hidden) = (Some(value), false));
    }

    fn resolve(&self, change: impl FnOnce(&mut Resolved)) {
        let mut resolved = self.source.resolved.borrow_mut();
        if let Some(ours) = resolved.iter_mut().find(|one| one.flag.name == self.flag.name) {
            change(ours);
        }
    }
}

/// Parses `64K`, `1M` or `2G`, in lower case and with `iB` as well, or plain bytes.
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
