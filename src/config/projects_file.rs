//! The projects file: parses TOML to [`Projects`]; errors name file, line, value and fix.

use std::collections::HashMap;
use std::fmt::Display;
use std::path::Path;

use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

use super::Exit;
use crate::state::projects::{Project, Projects, SubscribePolicy};
use crate::types::{Env, Limits, in_one_line, is_pid, unknown};
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
/// [`DEV_PID`] with [`DEV_SECRET`]; `prod` has none and refuses to start.
pub fn load_projects(
    file: Option<&Path>,
    env: Env,
    limits: &Limits,
    warnings: &mut Vec<String>,
) -> Result<Projects, Exit> {
    match file {
        Some(file) => {
            let name = file.display().to_string();
            let text = std::fs::read_to_string(file).map_err(|error| {
                Exit::Error(format!(
                    "--projects '{name}' cannot be read: {error}; use a TOML file that this user \
                     may read, e.g. --projects /etc/ws-cluster/projects.toml"
                ))
            })?;
            parse_projects(&FilePlace { file: &name, text: &text, limits }, env, warnings)
        }
        None if env == Env::Prod => Err(Exit::Error(
            "--env prod needs a projects file, e.g. --projects /etc/ws-cluster/projects.toml, with \
             [[project]] pid = \"…\" secrets = [\"…\"]"
                .into(),
        )),
        None => {
            let text = format!("[[project]]\npid = '{DEV_PID}'\nsecrets = ['{DEV_SECRET}']\n");
            let place = FilePlace { file: "the built-in project", text: &text, limits };
            parse_projects(&place, env, warnings)
        }
    }
}

/// Keys that a project may have.
const KEYS: [&str; 4] = ["pid", "secrets", "allowed_origins", "subscribe"];

type Key<'t> = Spanned<DeString<'t>>;
type Value<'t> = Spanned<DeValue<'t>>;

fn parse_projects(
    place: &FilePlace<'_>,
    env: Env,
    warnings: &mut Vec<String>,
) -> Result<Projects, Exit> {
    let file = place.file;
    let (root, errors) = DeTable::parse_recoverable(place.text);
    let root = root.into_inner();
    let list = root.get("project");
    if let Some(one) = list
        && let DeValue::Table(_) = one.get_ref()
    {
        // Checked before the parser's error: to it, a second [project] is a table given twice.
        let text = "[project] is a single table: write [[project]], with two brackets, for each";
        return Err(place.error(one.span().start, text));
    }
    if let Some(error) = errors.first() {
        // Not the error's own Display: it quotes the line, which may hold a secret.
        let message = error.message().lines().collect::<Vec<_>>().join(", ");
        return Err(match error.span() {
            Some(span) => place.error(span.start, message),
            None => Exit::Error(format!("{file}: {message}")),
        });
    }
    if let Some(key) = root.keys().find(|key| key.get_ref() != "project") {
        return Err(place.error(key.span().start, unknown("key", key.get_ref(), &["project"])));
    }
    let tables = match list.map(Value::get_ref) {
        None => &[][..],
        Some(DeValue::Array(list)) => list,
        Some(_) => return Err(place.no_tables(list)),
    };
    if tables.is_empty() {
        return Err(Exit::Error(format!(
            "{file}: the file contains no project: add at least one [[project]] with pid and \
             secrets"
        )));
    }
    let mut owners = Owners::default();
    let mut projects = Vec::with_capacity(tables.len());
    for one in tables {
        let DeValue::Table(table) = one.get_ref() else {
            return Err(place.no_tables(Some(one)));
        };
        let reader = Reader { place, env, start: one.span().start };
        projects.push(reader.read(table, &mut owners, warnings)?);
    }
    let line = |index: usize| place.line(tables[index].span().start);
    Projects::new(projects).map_err(|double| {
        place.error(
            tables[double.second].span().start,
            format!(
                "pid '{}' is already used on line {}: give every project its own pid; a project \
                 with several secrets has secrets = [\"new\", \"old\"]",
                double.pid,
                line(double.first)
            ),
        )
    })
}

/// Maps each secret to the project in which it was found first.
type Owners = HashMap<String, Owner>;

struct Owner {
    pid: Box<str>,
    /// Where the project begins, and the line of the secret.
    start: usize,
    line: usize,
}

/// Reads one project.
struct Reader<'p, 'a> {
    place: &'p FilePlace<'a>,
    env: Env,
    /// Where it begins in the file.
    start: usize,
}

impl Reader<'_, '_> {
    fn read(
        &self,
        table: &DeTable<'_>,
        owners: &mut Owners,
        warnings: &mut Vec<String>,
    ) -> Result<Project, Exit> {
        let is_known = |key: &Key<'_>| KEYS.contains(&&**key.get_ref());
        if let Some(key) = table.keys().find(|key| !is_known(key)) {
            let at = key.span().start;
            return Err(self.place.error(at, unknown("key", key.get_ref(), &KEYS)));
        }
        let pid = self.pid(table.get("pid"))?;
        let secrets = self.secrets(&pid, table.get("secrets"), owners, warnings)?;
        let origins = table.get("allowed_origins");
        let allowed_origins = origins.map(|origins| self.origins(&pid, origins)).transpose()?;
        let subscribe = self.subscribe(&pid, table.get("subscribe"))?;
        if self.env == Env::Prod && allowed_origins.is_none() {
            warnings.push(format!(
                "project '{pid}' has no allowed_origins: pages of any origin may connect; list the \
                 origins, or write [\"*\"] if that is intended"
            ));
        }
        Ok(Project { pid, secrets, allowed_origins, subscribe })
    }

    fn pid(&self, value: Option<&Value<'_>>) -> Result<Box<str>, Exit> {
        let Some(value) = value else {
            let text = "the project has no pid: add pid = \"…\"";
            return Err(self.place.error(self.start, text));
        };
        let max = self.place.limits.pid_bytes;
        let problem = match value.get_ref() {
            DeValue::String(pid) if is_pid(pid, max) => return Ok((**pid).into()),
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
        Err(self.place.error(value.span().start, problem))
    }

    fn secrets(
        &self,
        pid: &str,
        value: Option<&Value<'_>>,
        owners: &mut Owners,
        warnings: &mut Vec<String>,
    ) -> Result<Vec<Secret>, Exit> {
        let Some(value) = value else {
            let text = format!("project '{pid}' has no secrets: add secrets = [\"…\"]");
            return Err(self.place.error(self.start, text));
        };
        let problem = match value.get_ref() {
            DeValue::Array(list) if !list.is_empty() => {
                let numbered = list.iter().enumerate();
                return numbered
                    .map(|(index, value)| {
                        let secret = NamedSecret { pid, number: index + 1, value };
                        self.secret(&secret, owners, warnings)
                    })
                    .collect();
            }
            DeValue::Array(_) => "is empty: use at least one, e.g. [\"…\"]",
            _ => "is not a list: write secrets = [\"…\"]",
        };
        let text = format!("secrets of project '{pid}' {problem}");
        Err(self.place.error(value.span().start, text))
    }

    /// Reads a secret. No error or warning shows it.
    fn secret(
        &self,
        named: &NamedSecret<'_, '_>,
        owners: &mut Owners,
        warnings: &mut Vec<String>,
    ) -> Result<Secret, Exit> {
        let &NamedSecret { pid, number, value } = named;
        let (at, is_prod) = (value.span().start, self.env == Env::Prod);
        let line = self.place.line(at);
        let refused = |problem: &str| {
            Err(self.place.error(at, format!("secret {number} of project '{pid}' {problem}")))
        };
        let mut warn = |problem: String| {
            let file = self.place.file;
            warnings
                .push(format!("{file}, line {line}: secret {number} of project '{pid}' {problem}"));
        };
        let DeValue::String(secret) = value.get_ref() else {
            return refused("is not a string: put it in quotes");
        };
        if secret.is_empty() {
            return refused("is empty: use random text");
        }
        if secret.ends_with(['\n', '\r']) {
            return refused("ends in a newline, probably by mistake: remove it");
        }
        if secret.trim() != &**secret {
            return refused("begins or ends with white space, probably by mistake: remove it");
        }
        let is_published = **secret == *DEV_SECRET;
        match owners.get(&**secret) {
            Some(owner) if owner.start == self.start => {
                return refused("is given twice: remove one");
            }
            // Outside `prod` the published one is no secret. Two projects with the same pid are
            // refused once all have been read.
            Some(owner) if *owner.pid != *pid && (is_prod || !is_published) => {
                let problem = format!(
                    "is also that of project '{}' on line {}: whoever signs for one could sign for \
                     the other; give each its own",
                    owner.pid, owner.line
                );
                if is_prod {
                    return refused(&problem);
                }
                warn(problem);
            }
            _ => {
                let owner = Owner { pid: pid.into(), start: self.start, line };
                owners.insert((**secret).into(), owner);
            }
        }
        let bytes = secret.len();
        if is_prod && let Some(problem) = weakness(secret) {
            return refused(&problem);
        }
        if bytes < MIN_SECRET_BYTES && !is_published {
            warn(format!(
                "has only {bytes} bytes and can be guessed: --env prod requires at least \
                 {MIN_SECRET_BYTES}"
            ));
        }
        Ok(Secret::new(secret.as_bytes()))
    }

    fn origins(&self, pid: &str, value: &Value<'_>) -> Result<Vec<Box<str>>, Exit> {
        let wrong = |at, problem: &str| {
            self.place.error(at, format!("allowed_origins of project '{pid}'{problem}"))
        };
        let DeValue::Array(list) = value.get_ref() else {
            let problem = " is not a list: write allowed_origins = [\"https://app.example.com\"]";
            return Err(wrong(value.span().start, problem));
        };
        let mut origins = Vec::with_capacity(list.len());
        for value in list {
            let DeValue::String(origin) = value.get_ref() else {
                return Err(wrong(value.span().start, ": an origin is a string: put it in quotes"));
            };
            if let Err(fix) = check_origin(origin) {
                let problem = format!(
                    ": '{origin}' is not an origin: {fix}, e.g. \"https://app.example.com\" or \
                     \"*\""
                );
                return Err(wrong(value.span().start, &problem));
            }
            origins.push((**origin).into());
        }
        Ok(origins)
    }

    fn subscribe(&self, pid: &str, value: Option<&Value<'_>>) -> Result<SubscribePolicy, Exit> {
        let Some(value) = value else { return Ok(SubscribePolicy::default()) };
        match value.get_ref().as_str() {
            Some("any") => Ok(SubscribePolicy::Any),
            Some("none") => Ok(SubscribePolicy::None),
            Some("signed") => Ok(SubscribePolicy::Signed),
            other => {
                let fix = "use \"any\", \"none\" or \"signed\"";
                let text = match other.map(|other| in_one_line(other, SHOWN_CHARS)) {
                    Some(other) => {
                        format!("subscribe '{other}' of project '{pid}' is unknown: {fix}")
                    }
                    None => format!("subscribe of project '{pid}' is not a string: {fix}"),
                };
                Err(self.place.error(value.span().start, text))
            }
        }
    }
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

/// The projects file, to find the line of an error, and the limits for ids in it.
struct FilePlace<'a> {
    file: &'a str,
    text: &'a str,
    limits: &'a Limits,
}

impl FilePlace<'_> {
    fn line(&self, at: usize) -> usize {
        1 + self.text.bytes().take(at).filter(|&b| b == b'\n').count()
    }

    fn no_tables(&self, value: Option<&Value<'_>>) -> Exit {
        let at = value.map_or(0, |value| value.span().start);
        self.error(at, "project must be a list of tables: write [[project]] for each")
    }

    fn error(&self, at: usize, text: impl Display) -> Exit {
        Exit::Error(format!("{}, line {}: {text}", self.file, self.line(at)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn projects(text: &str, env: Env) -> Result<(Projects, Vec<String>), String> {
        let mut warnings = Vec::new();
        let place = FilePlace { file: "p.toml", text, limits: &Limits::default() };
        parse_projects(&place, env, &mut warnings)
            .map(|projects| (projects, warnings))
            .map_err(|exit| exit.to_string())
    }

    #[test]
    fn a_whole_projects_file() {
        let text = "[[project]]\npid = \"1\"\nsecrets = [\"new-random-secret\", \
                    \"old-random-secret\"]\n\n[[project]]\npid = \"shop.eu\"\n\
                    secrets = [\"dev-secret\"]\nallowed_origins = \
                    [\"https://a.example\", \
                    \"http://localhost:3000\", \"http://[::1]:8080\", \"null\", \"*\", \
                    \"app+x://host\"]\nsubscribe = \"signed\"\n";
        let (projects, warnings) = projects(text, Env::Dev).unwrap();
        assert!(warnings.is_empty());
        let (_, first) = projects.find("1").unwrap();
        assert_eq!((first.secrets.len(), first.subscribe), (2, SubscribePolicy::Any));
        let (_, shop) = projects.find("shop.eu").unwrap();
        assert_eq!(shop.subscribe, SubscribePolicy::Signed);
        assert_eq!(shop.allowed_origins.as_ref().unwrap().len(), 6);
    }

    #[test]
    fn a_wrong_projects_file_names_the_line_the_value_and_the_fix() {
        let head = "[[project]]\npid = 'a'\n";
        let full = "[[project]]\npid = 'a'\nsecrets = ['s']\n";
        for (text, wanted) in [
            (String::new(), "p.toml: the file contains no project: add at least"),
            ("# nothing\n".into(), "p.toml: the file contains no project"),
            (format!("{full}{full}"), "p.toml, line 4: pid 'a' is already used on line 1"),
            (format!("{head}secrets = []\n"), "p.toml, line 3: secrets of project 'a' is emp"),
            (
                format!("{head}secrets = ['x', '']\n"),
                "p.toml, line 3: secret 2 of project 'a' is empty: use",
            ),
            (
                format!("{head}secrets = ['x', 'x']\n"),
                "p.toml, line 3: secret 2 of project 'a' is given twice",
            ),
            (format!("{head}secrets = [7]\n"), "p.toml, line 3: secret 1 of project 'a' is no"),
            (
                format!("{head}secrets = [\n  'x',\n  \"s\\n\",\n]\n"),
                "p.toml, line 5: secret 2 of project 'a' ends in a newline",
            ),
            (
                format!("{head}secrets = ['                    ']\n"),
                "p.toml, line 3: secret 1 of project 'a' begins or ends with white",
            ),
            (
                format!("{head}secrets = [\"\\n0123456789abcdef\"]\n"),
                "p.toml, line 3: secret 1 of project 'a' begins or ends with white",
            ),
            (
                full.replace("[[project]]", "[project]"),
                "p.toml, line 1: [project] is a single table: write [[project]], with two brackets",
            ),
            (
                format!("{full}{full}").replace("[[project]]", "[project]"),
                "p.toml, line 4: [project] is a single table: write [[project]], with two brackets",
            ),
        ] {
            assert_refused(&text, wanted);
        }
    }

    fn assert_refused(text: &str, wanted: &str) {
        let error = projects(text, Env::Dev).unwrap_err();
        let wanted = format!("ws-cluster: {wanted}");
        assert!(error.starts_with(&wanted), "{error}\n{wanted}");
    }

    #[test]
    fn values_of_another_type_and_unknown_keys_are_refused_with_their_line() {
        let head = "[[project]]\npid = 'a'\n";
        let full = "[[project]]\npid = 'a'\nsecrets = ['s']\n";
        for (text, wanted) in [
            ("\nproject = 1\n".into(), "p.toml, line 2: project must be a list of tables: wr"),
            ("project = [1]\n".into(), "p.toml, line 1: project must be a list of tables: wr"),
            (
                format!("{full}allowed_origins = '*'\n"),
                "p.toml, line 4: allowed_origins of project \
             'a' is not a list: write",
            ),
            (
                format!("{full}allowed_origins = [1]\n"),
                "p.toml, line 4: allowed_origins of project 'a': an origin is a string",
            ),
            (
                format!("{full}subscribe = 1\n"),
                "p.toml, line 4: subscribe of project 'a' is not a str",
            ),
            (head.into(), "p.toml, line 1: project 'a' has no secrets: add"),
            ("\n[[project]]\nsecrets = ['s']\n".into(), "p.toml, line 2: the project has no p"),
            (
                full.replace("'a'", "'a b'"),
                "p.toml, line 2: pid 'a b' is not a project id: use 1 to 64 (--max",
            ),
            (full.replace("'a'", "''"), "p.toml, line 2: pid '' is not a project id"),
            (
                full.replace("'a'", "1"),
                "p.toml, line 2: pid = 1 is a number: put it in quotes, pid = \"1\"",
            ),
            (full.replace("'a'", "[]"), "p.toml, line 2: pid is not a string: put it in quotes"),
            (
                format!("{full}subscribe = 'all'\n"),
                "p.toml, line 4: subscribe 'all' of project 'a' is unknown: use \"any\"",
            ),
            (
                format!("{full}secret = 's'\n"),
                "p.toml, line 4: unknown key \"secret\"; did you mean \"secrets\"?",
            ),
            (
                format!("[projects]\n{full}"),
                "p.toml, line 1: unknown key \"projects\"; did you mean \"project\"?",
            ),
            ("[[project]]\npid = 'a'\nx = 1\n".into(), "p.toml, line 3: unknown key \"x\"; kn"),
            (format!("{full}x = \n"), "p.toml, line 4: "),
        ] {
            assert_refused(&text, wanted);
        }
    }

    #[test]
    fn prod_refuses_secrets_that_can_be_guessed_and_others_warn() {
        let of = |secret: &str| format!("[[project]]\npid = 'a'\nsecrets = ['{secret}']\n");
        let short = projects(&of("fifteen--bytes-"), Env::Prod).unwrap_err();
        assert!(short.contains("p.toml, line 3: secret 1 of project 'a' has only 15"), "{short}");
        let published = projects(&of(DEV_SECRET), Env::Prod).unwrap_err();
        assert!(published.contains("line 3: secret 1 of project 'a' is the publ"), "{published}");
        let (_, warnings) = projects(&of("sixteen--bytes--"), Env::Prod).unwrap();
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert!(warnings[0].contains("allowed_origins"));
        for env in [Env::Dev, Env::Test] {
            let (_, warnings) = projects(&of("short"), env).unwrap();
            assert_eq!(warnings.len(), 1);
            assert!(warnings[0].starts_with("p.toml, line 3: secret 1 of project 'a' has only 5"));
            let both = of("sixteen--bytes--") + &of("sixteen--bytes--").replace("'a'", "'b'");
            let (_, warnings) = projects(&both, env).unwrap();
            let shared =
                "line 6: secret 1 of project 'b' is also that of project 'a' on line 3: whoever";
            assert!(warnings.len() == 1 && warnings[0].contains(shared), "{warnings:?}");
            let refused = projects(&both, Env::Prod).unwrap_err();
            assert!(refused.contains(shared), "{refused}");
            // This one is public: it is nobody's secret.
            let both = of(DEV_SECRET) + &of(DEV_SECRET).replace("'a'", "'b'");
            assert!(projects(&both, env).unwrap().1.is_empty());
        }
    }

    #[test]
    fn a_pid_is_bounded() {
        let text = format!("[[project]]\npid = '{}'\nsecrets = ['s']\n", "p".repeat(65));
        let parse = |pid_bytes| {
            let limits = Limits { pid_bytes, ..Limits::default() };
            let place = FilePlace { file: "p.toml", text: &text, limits: &limits };
            parse_projects(&place, Env::Dev, &mut Vec::new()).map_err(|exit| exit.to_string())
        };
        assert_eq!(parse(65).unwrap().len(), 1);
        assert!(parse(64).unwrap_err().contains("use 1 to 64 (--max_pid_bytes) of the char"));
    }

    #[test]
    fn malformed_origins() {
        for (bad, fix) in [
            ("a.example", "use scheme://host"),
            ("://a.example", "use scheme://host"),
            ("", "use scheme://host"),
            ("https://a.example/", "omit the slash and the path"),
            ("https://a.example/x", "omit the slash and the path"),
            ("https://A.example", "write it in lower case"),
            ("https://bücher.example", "write the host in its xn-- form"),
            ("https://*.example", "use a host name without wildcards"),
            ("https://", "use a host name"),
            ("https://u@a.example", "use a host name"),
            ("https://[::g]", "use a host name"),
            ("https://a.example:443", "omit the default port"),
            ("http://a.example:80", "omit the default port"),
            ("https://a.example:", "use a port from 1 to 65535"),
            ("https://a.example:65536", "use a port from 1 to 65535"),
        ] {
            let text = format!(
                "[[project]]\npid='a'\nsecrets=['s']\nallowed_origins = [\n'*',\n'{bad}']\n"
            );
            let error = projects(&text, Env::Dev).unwrap_err();
            let wanted = format!(
                "ws-cluster: p.toml, line 6: allowed_origins of project 'a': '{bad}' is not an \
                 origin: {fix}"
            );
            assert!(error.starts_with(&wanted), "{error}\n{wanted}");
        }
    }

    /// A parser's error quotes the offending text, which would put a secret into the log.
    #[test]
    fn no_error_shows_a_secret() {
        for text in [
            "[[project]]\npid='a'\nsecrets='hunter2'\n",
            "[[project]]\npid='a'\nsecrets=[hunter2]\n",
            "[[project]]\npid='a'\nsecrets=['hunter2' x]\n",
            "[[project]]\npid='a'\nsecrets={new='hunter2'}\n",
            "[[project]]\npid='a'\nsecrets=['hunter2', 'hunter2']\n",
            "[[project]]\npid='a'\nsecrets=['hunter2\n",
        ] {
            let error = projects(text, Env::Dev).unwrap_err();
            assert!(error.contains("p.toml, line 3"), "{error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
    }
}
