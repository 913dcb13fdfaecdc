//! The projects file: parses TOML to [`Projects`]; errors name file, line, value and fix.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

use super::mistake::{FileText, Mistake};
use super::setting::{Setting, Source};
use super::text_file::read_text;
use crate::state::projects::{Project, Projects, SubscribePolicy};
use crate::types::{Env, Limits, in_one_line, is_pid, quoted, similar, unknown};
use crate::wire::sign::Secret;

/// The secret of the built-in project of `dev` and `test` when no projects file is given.
pub const DEV_SECRET: &str = "dev-secret";
/// The `pid` of that project.
pub const DEV_PID: &str = "1";
/// Minimum length of a secret. A shorter one can be guessed: `prod` refuses it, the others warn.
const MIN_SECRET_BYTES: usize = 16;
/// Maximum number of characters of a value that an error shows.
const SHOWN_CHARS: usize = 80;

/// Reads the projects, at a start or a reload. Without a file, `dev` and `test` have one project,
/// [`DEV_PID`] with [`DEV_SECRET`]; `prod` has none and refuses to start. Every mistake is reported
/// to `from`; projects without one are returned.
pub(super) fn load(
    setting: &Setting<'_>,
    from: &Source<'_>,
    env: Env,
    limits: &Limits,
    warnings: &mut Vec<Mistake>,
) -> Projects {
    let mut notes = Notes { mistakes: Vec::new(), warnings };
    let projects = match &setting.text {
        Some(path) => match read_text(path, from.is_reload()) {
            Ok(text) => {
                let file = ProjectsFile { text: FileText::new(path, &text), limits, env };
                file.parse(&mut notes)
            }
            Err(error) => {
                setting.report(format!(
                    "{} '{path}' cannot be read: {error}; use a TOML file that this user may read, \
                     e.g. {}",
                    setting.name(),
                    setting.written("/etc/ws-cluster/projects.toml")
                ));
                Projects::default()
            }
        },
        None if env == Env::Prod => {
            setting.report(
                "--env prod needs a projects file, e.g. --projects /etc/ws-cluster/projects.toml, \
                 with [[project]] pid = \"…\" secrets = [\"…\"]",
            );
            Projects::default()
        }
        None => {
            let text = format!("[[project]]\npid = '{DEV_PID}'\nsecrets = ['{DEV_SECRET}']\n");
            let text = FileText::new("the built-in project", &text);
            ProjectsFile { text, limits, env }.parse(&mut notes)
        }
    };
    notes.mistakes.into_iter().for_each(|mistake| from.report(mistake));
    projects
}

/// The secrets of a project, as text: for signing, and for finding out how a signature was made.
pub struct ProjectSecrets {
    /// At least one; the first signs.
    pub own: Vec<String>,
    /// The secrets of other projects, with their pids.
    pub others: Vec<(String, String)>,
}

/// Reads the secrets of a project. Returns why it cannot.
pub(super) fn secrets(path: Option<&str>, env: Env, pid: &str) -> Result<ProjectSecrets, String> {
    let Some(path) = path else {
        let is_dev = env != Env::Prod && pid == DEV_PID;
        let own = vec![DEV_SECRET.to_owned()];
        return is_dev.then_some(ProjectSecrets { own, others: Vec::new() }).ok_or_else(|| {
            format!(
                "the secret of project '{pid}' is not known: pass --secret file:/path, or \
                 --projects /etc/ws-cluster/projects.toml"
            )
        });
    };
    let text = read_text(path, false)
        .map_err(|error| format!("the projects file {path} cannot be read: {error}"))?;
    let file = FileText::new(path, &text);
    let (root, errors) = DeTable::parse_recoverable(&text);
    if let Some(error) = errors.first() {
        return Err(file.syntax(error).to_string());
    }
    let (mut own, mut others, mut pids) = (Vec::new(), Vec::new(), Vec::new());
    let list = root.get_ref().get("project").and_then(|list| list.get_ref().as_array());
    for project in list.into_iter().flatten().filter_map(|one| one.get_ref().as_table()) {
        let Some(its) = project.get("pid").and_then(|pid| pid.get_ref().as_str()) else { continue };
        let secrets = project.get("secrets").and_then(|list| list.get_ref().as_array());
        let secrets = secrets.into_iter().flatten().filter_map(|one| one.get_ref().as_str());
        if its == pid {
            own.extend(secrets.map(str::to_owned));
        } else {
            others.extend(secrets.map(|secret| (its.to_owned(), secret.to_owned())));
            pids.push(its);
        }
    }
    match own.is_empty() {
        true => Err(match similar(pid, &pids) {
            Some(nearest) => {
                format!("{path} has no project {}; did you mean \"{nearest}\"?", quoted(pid))
            }
            None => format!("{path} has no project {} with a secret", quoted(pid)),
        }),
        false => Ok(ProjectSecrets { own, others }),
    }
}

/// Keys that a project may have.
const KEYS: [&str; 4] = ["pid", "secrets", "allowed_origins", "subscribe"];

type Key<'t> = Spanned<DeString<'t>>;
type Value<'t> = Spanned<DeValue<'t>>;

/// What is found in a file.
struct Notes<'w> {
    mistakes: Vec<Mistake>,
    warnings: &'w mut Vec<Mistake>,
}

/// The projects file, and what its projects are checked against.
struct ProjectsFile<'a> {
    text: FileText<'a>,
    limits: &'a Limits,
    env: Env,
}

impl ProjectsFile<'_> {
    fn parse(&self, notes: &mut Notes<'_>) -> Projects {
        let (root, errors) = DeTable::parse_recoverable(self.text.text);
        let root = root.into_inner();
        let list = root.get("project");
        if let Some(one) = list
            && let DeValue::Table(_) = one.get_ref()
        {
            // Instead of the parser's error: to it, a second [project] is a table given twice.
            let text =
                "[project] is a single table: write [[project]], with two brackets, for each";
            notes.mistakes.push(self.text.mistake(one.span().start, text));
            return Projects::default();
        }
        let mut found = Found::default();
        if errors.is_empty() {
            self.part(&root, &mut found, notes);
        } else {
            self.sections(&errors, &mut found, notes);
        }
        if found.projects.is_empty() && notes.mistakes.is_empty() {
            let text = "the file contains no project: add at least one [[project]] with pid and \
                        secrets";
            notes.mistakes.push(self.text.mistake(0, text));
        }
        // No pid is there twice.
        Projects::new(found.projects).unwrap_or_default()
    }

    /// Reads a file that is not TOML section by section: a string or a list without its end makes
    /// the parser see mistakes in everything behind it. `errors`: of the whole file.
    fn sections(&self, errors: &[toml::de::Error], found: &mut Found, notes: &mut Notes<'_>) {
        let before = notes.mistakes.len();
        for text in self.text.sections() {
            let (root, errors) = DeTable::parse_recoverable(text.text);
            let part = ProjectsFile { text, ..*self };
            match errors.first() {
                Some(error) => notes.mistakes.push(part.text.syntax(error)),
                None => part.part(root.get_ref(), found, notes),
            }
        }
        // Sections that contradict each other.
        if notes.mistakes.len() == before {
            notes.mistakes.extend(errors.iter().map(|error| self.text.syntax(error)));
        }
    }

    /// Reads a part that is TOML.
    fn part(&self, root: &DeTable<'_>, found: &mut Found, notes: &mut Notes<'_>) {
        for key in root.keys().filter(|key| key.get_ref() != "project") {
            let what = unknown("key", key.get_ref(), &["project"]);
            notes.mistakes.push(self.text.mistake(key.span().start, what));
        }
        let list = root.get("project");
        match list.map(Value::get_ref) {
            Some(DeValue::Array(tables)) => {
                tables.iter().for_each(|one| self.project(one, found, notes));
            }
            Some(_) => notes.mistakes.push(self.no_tables(list)),
            None => {}
        }
    }

    fn project(&self, one: &Value<'_>, found: &mut Found, notes: &mut Notes<'_>) {
        let start = one.span().start;
        let DeValue::Table(table) = one.get_ref() else {
            notes.mistakes.push(self.no_tables(Some(one)));
            return;
        };
        let project = Reader { file: self, start }.read(table, &mut found.owners, notes);
        let Some(project) = project else { return };
        match found.lines.entry(project.pid.clone()) {
            Entry::Vacant(place) => {
                place.insert(self.text.line(start));
                found.projects.push(project);
            }
            Entry::Occupied(first) => {
                let what = format!(
                    "pid '{}' is already used on line {}: give every project its own pid; a \
                     project with several secrets has secrets = [\"new\", \"old\"]",
                    project.pid,
                    first.get()
                );
                notes.mistakes.push(self.text.mistake(start, what));
            }
        }
    }

    fn no_tables(&self, value: Option<&Value<'_>>) -> Mistake {
        let at = value.map_or(0, |value| value.span().start);
        self.text.mistake(at, "project must be a list of tables: write [[project]] for each")
    }
}

/// The projects found so far.
#[derive(Default)]
struct Found {
    projects: Vec<Project>,
    /// The line of each pid.
    lines: HashMap<Box<str>, usize>,
    owners: Owners,
}

/// Maps each secret to the project in which it was found first.
type Owners = HashMap<String, Owner>;

struct Owner {
    pid: Box<str>,
    /// Where the project begins, and the line of the secret.
    start: usize,
    line: usize,
}

/// Stands for a pid that is missing or wrong.
const NO_PID: &str = "?";

/// Reads one project.
struct Reader<'p, 'a> {
    file: &'p ProjectsFile<'a>,
    /// Where it begins in the file.
    start: usize,
}

impl Reader<'_, '_> {
    /// Returns the project if nothing is wrong with it.
    fn read(
        &self,
        table: &DeTable<'_>,
        owners: &mut Owners,
        notes: &mut Notes<'_>,
    ) -> Option<Project> {
        let before = notes.mistakes.len();
        let is_known = |key: &Key<'_>| KEYS.contains(&&**key.get_ref());
        for key in table.keys().filter(|key| !is_known(key)) {
            let what = unknown("key", key.get_ref(), &KEYS);
            notes.mistakes.push(self.mistake(key.span().start, what));
        }
        let pid = self.pid(table.get("pid"), notes);
        let secrets = self.secrets(&pid, table.get("secrets"), owners, notes);
        let origins = table.get("allowed_origins");
        let allowed_origins = origins.map(|origins| self.origins(&pid, origins, notes));
        let subscribe = self.subscribe(&pid, table.get("subscribe"), notes);
        if self.file.env == Env::Prod && allowed_origins.is_none() {
            let what = format!(
                "project '{pid}' has no allowed_origins: pages of any origin may connect; list the \
                 origins, or write [\"*\"] if that is intended"
            );
            notes.warnings.push(self.mistake(self.start, what));
        }
        let is_good = notes.mistakes.len() == before;
        is_good.then_some(Project { pid, secrets, allowed_origins, subscribe })
    }

    fn mistake(&self, at: usize, what: impl Into<String>) -> Mistake {
        self.file.text.mistake(at, what)
    }

    fn pid(&self, value: Option<&Value<'_>>, notes: &mut Notes<'_>) -> Box<str> {
        let Some(value) = value else {
            let what = "the project has no pid: add pid = \"…\"";
            notes.mistakes.push(self.mistake(self.start, what));
            return NO_PID.into();
        };
        let max = self.file.limits.pid_bytes;
        let problem = match value.get_ref() {
            DeValue::String(pid) if is_pid(pid, max) => return (**pid).into(),
            DeValue::String(pid) => format!(
                "pid '{}' is not a project id: use 1 to {max} (--max_pid_bytes) of the characters \
                 A-Z a-z 0-9 _ . -, e.g. pid = \"shop\"",
                in_one_line(pid, SHOWN_CHARS)
            ),
            DeValue::Integer(number) => {
                format!("pid = {number} is a number: put it in quotes, pid = \"{number}\"")
            }
            _ => "pid is not a string: put it in quotes, e.g. pid = \"shop\"".into(),
        };
        notes.mistakes.push(self.mistake(value.span().start, problem));
        NO_PID.into()
    }

    fn secrets(
        &self,
        pid: &str,
        value: Option<&Value<'_>>,
        owners: &mut Owners,
        notes: &mut Notes<'_>,
    ) -> Vec<Secret> {
        let Some(value) = value else {
            let what = format!("project '{pid}' has no secrets: add secrets = [\"…\"]");
            notes.mistakes.push(self.mistake(self.start, what));
            return Vec::new();
        };
        let problem = match value.get_ref() {
            DeValue::Array(list) if !list.is_empty() => {
                let numbered = list.iter().enumerate();
                let secrets = numbered.filter_map(|(index, value)| {
                    let secret = NamedSecret { pid, number: index + 1, value };
                    self.secret(&secret, owners, notes)
                });
                return secrets.collect();
            }
            DeValue::Array(_) => "is empty: use at least one, e.g. [\"…\"]",
            _ => "is not a list: write secrets = [\"…\"]",
        };
        let what = format!("secrets of project '{pid}' {problem}");
        notes.mistakes.push(self.mistake(value.span().start, what));
        Vec::new()
    }

    /// Reads a secret. No error or warning shows it.
    fn secret(
        &self,
        named: &NamedSecret<'_, '_>,
        owners: &mut Owners,
        notes: &mut Notes<'_>,
    ) -> Option<Secret> {
        let &NamedSecret { pid, number, value } = named;
        let note = |problem: String| {
            let what = format!("secret {number} of project '{pid}' {problem}");
            self.mistake(value.span().start, what)
        };
        let DeValue::String(secret) = value.get_ref() else {
            notes.mistakes.push(note("is not a string: put it in quotes".into()));
            return None;
        };
        let problem = shape(secret).map(String::from);
        let (shared, is_refused) = self.shared(named, secret, owners);
        let is_prod = self.file.env == Env::Prod;
        let weak = weakness(secret).filter(|_| is_prod);
        if let Some(problem) = problem.or(shared.clone().filter(|_| is_refused)).or(weak) {
            notes.mistakes.push(note(problem));
            return None;
        }
        notes.warnings.extend(shared.map(note));
        let bytes = secret.len();
        if bytes < MIN_SECRET_BYTES && **secret != *DEV_SECRET {
            notes.warnings.push(note(format!(
                "has only {bytes} bytes and can be guessed: --env prod requires at least \
                 {MIN_SECRET_BYTES}"
            )));
        }
        Some(Secret::new(secret.as_bytes()))
    }

    /// Returns what is wrong with a secret that was there before, and whether it is refused.
    fn shared(
        &self,
        named: &NamedSecret<'_, '_>,
        secret: &str,
        owners: &mut Owners,
    ) -> (Option<String>, bool) {
        let is_prod = self.file.env == Env::Prod;
        match owners.get(secret) {
            Some(owner) if owner.start == self.file.text.in_file(self.start) => {
                (Some("is given twice: remove one".into()), true)
            }
            // Outside `prod` the published one is no secret. Two projects with the same pid are
            // refused for that.
            Some(owner) if *owner.pid != *named.pid && (is_prod || secret != DEV_SECRET) => {
                let problem = format!(
                    "is also that of project '{}' on line {}: whoever signs for one could sign for \
                     the other; give each its own",
                    owner.pid, owner.line
                );
                (Some(problem), is_prod)
            }
            _ => {
                let line = self.file.text.line(named.value.span().start);
                let start = self.file.text.in_file(self.start);
                let owner = Owner { pid: named.pid.into(), start, line };
                owners.insert(secret.into(), owner);
                (None, false)
            }
        }
    }

    fn origins(&self, pid: &str, value: &Value<'_>, notes: &mut Notes<'_>) -> Vec<Box<str>> {
        let wrong = |at, problem: &str| {
            self.mistake(at, format!("allowed_origins of project '{pid}'{problem}"))
        };
        let DeValue::Array(list) = value.get_ref() else {
            let problem = " is not a list: write allowed_origins = [\"https://app.example.com\"]";
            notes.mistakes.push(wrong(value.span().start, problem));
            return Vec::new();
        };
        let mut origins = Vec::with_capacity(list.len());
        for value in list {
            let DeValue::String(origin) = value.get_ref() else {
                let problem = ": an origin is a string: put it in quotes";
                notes.mistakes.push(wrong(value.span().start, problem));
                continue;
            };
            if let Err(fix) = check_origin(origin) {
                let problem = format!(
                    ": '{origin}' is not an origin: {fix}, e.g. \"https://app.example.com\" or \
                     \"*\""
                );
                notes.mistakes.push(wrong(value.span().start, &problem));
                continue;
            }
            origins.push((**origin).into());
        }
        origins
    }

    fn subscribe(
        &self,
        pid: &str,
        value: Option<&Value<'_>>,
        notes: &mut Notes<'_>,
    ) -> SubscribePolicy {
        let Some(value) = value else { return SubscribePolicy::default() };
        match value.get_ref().as_str() {
            Some("any") => SubscribePolicy::Any,
            Some("none") => SubscribePolicy::None,
            Some("signed") => SubscribePolicy::Signed,
            other => {
                let fix = "use \"any\", \"none\" or \"signed\"";
                let what = match other.map(|other| in_one_line(other, SHOWN_CHARS)) {
                    Some(other) => {
                        format!("subscribe '{other}' of project '{pid}' is unknown: {fix}")
                    }
                    None => format!("subscribe of project '{pid}' is not a string: {fix}"),
                };
                notes.mistakes.push(self.mistake(value.span().start, what));
                SubscribePolicy::default()
            }
        }
    }
}

/// Returns why a text cannot be a secret in any environment.
fn shape(secret: &str) -> Option<&'static str> {
    if secret.is_empty() {
        return Some("is empty: use random text");
    }
    if secret.ends_with(['\n', '\r']) {
        return Some("ends in a newline, probably by mistake: remove it");
    }
    let has_blanks = secret.trim() != secret;
    has_blanks.then_some("begins or ends with white space, probably by mistake: remove it")
}

/// Returns why `prod` refuses a secret.
fn weakness(secret: &str) -> Option<String> {
    let problem = match secret.len() {
        _ if secret == DEV_SECRET => {
            "is the published dev-secret, with which anyone can sign".into()
        }
        bytes @ ..MIN_SECRET_BYTES => format!(
            "has only {bytes} bytes and can be guessed: --env prod requires at least \
             {MIN_SECRET_BYTES}"
        ),
        _ => return None,
    };
    Some(format!("{problem}; use random text, e.g. from openssl rand -hex 32"))
}

/// A secret, with what an error needs to refer to it.
struct NamedSecret<'n, 't> {
    pid: &'n str,
    /// Counted from 1.
    number: usize,
    value: &'n Value<'t>,
}

/// Checks an origin: as browsers send it (RFC 6454, section 6.2), `null` or `*`. Anything that a
/// browser never sends would silently match nothing, so it is refused here, with the way to write
/// it.
fn check_origin(text: &str) -> Result<(), &'static str> {
    if text == "*" || text == "null" {
        return Ok(());
    }
    let Some((scheme, rest)) = text.split_once("://") else {
        return Err("use scheme://host with an optional :port");
    };
    let scheme_ok = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b));
    if !scheme_ok {
        return Err("use scheme://host with an optional :port");
    }
    if rest.contains(['/', '?', '#']) {
        return Err("omit the slash and the path after the host");
    }
    if text.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err("write it in lower case, as browsers send it");
    }
    if !rest.is_ascii() {
        return Err("write the host in its xn-- form, as browsers send it");
    }
    let (host, port) = match rest.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (rest, None),
    };
    let host_ok = match host.strip_prefix('[').and_then(|inner| inner.strip_suffix(']')) {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            !host.is_empty()
                && host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b))
        }
    };
    if !host_ok {
        return Err("use a host name without wildcards, user names or spaces");
    }
    match (scheme, port) {
        ("https", Some("443")) | ("http", Some("80")) => {
            Err("omit the default port, as browsers do")
        }
        (_, Some(port)) if port.parse::<u16>().is_err() || port.starts_with(['0', '+']) => {
            Err("use a port from 1 to 65535 after the host")
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
