//! The projects file: TOML to [`Projects`], with errors that name file, line, value and fix.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::path::Path;

use serde::Deserialize;
use toml::Spanned;

use super::{Env, Exit};
use crate::state::projects::{Project, Projects, SubscribePolicy};
use crate::types::{Limits, is_pid};
use crate::wire::sign::Secret;

/// The secret of the project that `dev` and `test` have when no projects file is given.
pub const DEV_SECRET: &str = "dev-secret";
/// The `pid` of that project.
pub const DEV_PID: &str = "1";
/// A secret below this many bytes can be guessed; `prod` warns of it.
const SECRET_BYTES_WANTED: usize = 16;

/// Reads the projects anew, for a start or a reload; without a file `dev` and `test` have one
/// project, [`DEV_PID`] with [`DEV_SECRET`], and `prod` has none and refuses.
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
                    "--projects '{name}' cannot be read: {error}; give a TOML file that this user \
                     may read, e.g. --projects /etc/ws-cluster/projects.toml"
                ))
            })?;
            parse_projects(&Place { file: &name, text: &text, limits }, env, warnings)
        }
        None if env == Env::Prod => Err(Exit::Error(
            "--env prod needs a projects file: give one, e.g. --projects \
             /etc/ws-cluster/projects.toml, with [[project]] pid = \"…\" secrets = [\"…\"]"
                .into(),
        )),
        None => {
            let text = format!("[[project]]\npid = '{DEV_PID}'\nsecrets = ['{DEV_SECRET}']\n");
            let place = Place { file: "the built-in project", text: &text, limits };
            parse_projects(&place, env, warnings)
        }
    }
}

/// The projects file as it is written. Values that need more than a type are `Spanned`, for the
/// line in the error; secrets stay an untyped value, because serde's own errors quote the value.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ProjectsFile {
    #[serde(default)]
    project: Vec<Spanned<RawProject>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawProject {
    pid: Option<Spanned<String>>,
    secrets: Option<Spanned<toml::Value>>,
    allowed_origins: Option<Vec<Spanned<String>>>,
    subscribe: Option<Spanned<String>>,
}

fn parse_projects(
    place: &Place<'_>,
    env: Env,
    warnings: &mut Vec<String>,
) -> Result<Projects, Exit> {
    let Place { file, text, .. } = *place;
    let raw: ProjectsFile = toml::from_str(text).map_err(|error| {
        // Not the error's own Display: it quotes the line, which may hold a secret.
        let message = error.message().lines().collect::<Vec<_>>().join(", ");
        match error.span() {
            Some(span) => place.error(span.start, message),
            None => Exit::Error(format!("{file}: {message}")),
        }
    })?;
    if raw.project.is_empty() {
        return Err(Exit::Error(format!(
            "{file}: no project in it: add at least one [[project]] with pid and secrets"
        )));
    }
    let starts: Vec<usize> = raw.project.iter().map(|one| one.span().start).collect();
    let mut projects = Vec::with_capacity(raw.project.len());
    for one in raw.project {
        projects.push(resolve_project(place, one, env, warnings)?);
    }
    Projects::new(projects).map_err(|double| {
        place.error(
            starts[double.second],
            format!(
                "pid '{}' was given before, on line {}: give every project its own pid, and \
                 several secrets to one project as secrets = [\"new\", \"old\"]",
                double.pid,
                place.line(starts[double.first])
            ),
        )
    })
}

fn resolve_project(
    place: &Place<'_>,
    raw: Spanned<RawProject>,
    env: Env,
    warnings: &mut Vec<String>,
) -> Result<Project, Exit> {
    let start = raw.span().start;
    let raw = raw.into_inner();
    let Some(pid) = raw.pid else {
        return Err(place.error(start, "a project without pid: add pid = \"…\""));
    };
    check_pid(place, &pid)?;
    let pid = pid.into_inner().into_boxed_str();
    let secrets = resolve_secrets(place, &pid, raw.secrets, start)?;
    let subscribe = match raw.subscribe {
        None => SubscribePolicy::default(),
        Some(subscribe) => match subscribe.get_ref().as_str() {
            "any" => SubscribePolicy::Any,
            "none" => SubscribePolicy::None,
            "signed" => SubscribePolicy::Signed,
            other => {
                return Err(place.error(
                    subscribe.span().start,
                    format!(
                        "subscribe '{other}' of project '{pid}' is not known: give \"any\", \
                         \"none\" or \"signed\""
                    ),
                ));
            }
        },
    };
    for origin in raw.allowed_origins.iter().flatten() {
        if let Err(fix) = check_origin(origin.get_ref()) {
            return Err(place.error(
                origin.span().start,
                format!(
                    "allowed_origins of project '{pid}': '{}' is not an origin: {fix}, e.g. \
                     \"https://app.example.com\" or \"*\"",
                    origin.get_ref()
                ),
            ));
        }
    }
    if env == Env::Prod {
        warn_about(&pid, &secrets, raw.allowed_origins.is_none(), warnings);
    }
    Ok(Project {
        pid,
        secrets: secrets.iter().map(|secret| Secret::new(secret.as_bytes())).collect(),
        allowed_origins: raw.allowed_origins.map(|origins| {
            origins.into_iter().map(|one| one.into_inner().into_boxed_str()).collect()
        }),
        subscribe,
    })
}

fn check_pid(place: &Place<'_>, pid: &Spanned<String>) -> Result<(), Exit> {
    let max = place.limits.pid_bytes;
    if is_pid(pid.get_ref(), max) {
        return Ok(());
    }
    Err(place.error(
        pid.span().start,
        format!(
            "pid '{}' is not a project id: give 1 to {max} (--max_pid_bytes) of the characters A-Z \
             a-z 0-9 _ . -, e.g. pid = \"shop\"",
            pid.get_ref()
        ),
    ))
}

fn resolve_secrets(
    place: &Place<'_>,
    pid: &str,
    raw: Option<Spanned<toml::Value>>,
    start: usize,
) -> Result<Vec<String>, Exit> {
    let Some(raw) = raw else {
        let text = format!("project '{pid}' has no secrets: add secrets = [\"…\"]");
        return Err(place.error(start, text));
    };
    let at = raw.span().start;
    let list = match raw.into_inner() {
        toml::Value::Array(list) => list,
        _ => {
            let text = format!("secrets of project '{pid}' is not a list: write secrets = [\"…\"]");
            return Err(place.error(at, text));
        }
    };
    if list.is_empty() {
        let text = format!("secrets of project '{pid}' is empty: give at least one, e.g. [\"…\"]");
        return Err(place.error(at, text));
    }
    let mut seen = BTreeSet::new();
    let mut secrets = Vec::with_capacity(list.len());
    for (index, value) in list.into_iter().enumerate() {
        let number = index + 1;
        let problem = match value {
            toml::Value::String(secret) if secret.is_empty() => "is empty: give random text",
            toml::Value::String(secret) if !seen.insert(secret.clone()) => {
                "is there twice: leave one out"
            }
            toml::Value::String(secret) => {
                secrets.push(secret);
                continue;
            }
            _ => "is not a text: put it in quotes",
        };
        let text = format!("secret {number} of project '{pid}' {problem}");
        return Err(place.error(at, text));
    }
    Ok(secrets)
}

fn warn_about(pid: &str, secrets: &[String], any_origin: bool, warnings: &mut Vec<String>) {
    if any_origin {
        warnings.push(format!(
            "project '{pid}' has no allowed_origins: a page of any origin may connect; list the \
             origins, or write [\"*\"] if that is meant"
        ));
    }
    for (index, secret) in secrets.iter().enumerate() {
        let number = index + 1;
        if secret == DEV_SECRET {
            warnings.push(format!(
                "secret {number} of project '{pid}' is the published dev-secret: anyone can sign \
                 with it; give random text of at least {SECRET_BYTES_WANTED} bytes"
            ));
        } else if secret.len() < SECRET_BYTES_WANTED {
            warnings.push(format!(
                "secret {number} of project '{pid}' is shorter than {SECRET_BYTES_WANTED} bytes: \
                 it can be guessed; give random text"
            ));
        }
    }
}

/// An origin as browsers send it (RFC 6454, section 6.2), `null`, or `*`. What a browser never
/// sends would match nothing, silently; so it is refused here, with the way to write it.
fn check_origin(text: &str) -> Result<(), &'static str> {
    if text == "*" || text == "null" {
        return Ok(());
    }
    let Some((scheme, rest)) = text.split_once("://") else {
        return Err("give scheme://host with an optional :port");
    };
    let scheme_ok = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b));
    if !scheme_ok {
        return Err("give scheme://host with an optional :port");
    }
    if rest.contains(['/', '?', '#']) {
        return Err("leave out the path and the slash behind the host");
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
        return Err("give a host name without wildcards, user names or blanks");
    }
    match (scheme, port) {
        ("https", Some("443")) | ("http", Some("80")) => {
            Err("leave out the default port, as browsers do")
        }
        (_, Some(port)) if port.parse::<u16>().is_err() || port.starts_with(['0', '+']) => {
            Err("give a port from 1 to 65535 behind the host")
        }
        _ => Ok(()),
    }
}

/// The projects file, to say on which line something is wrong, and what the ids in it may be.
struct Place<'a> {
    file: &'a str,
    text: &'a str,
    limits: &'a Limits,
}

impl Place<'_> {
    fn line(&self, at: usize) -> usize {
        1 + self.text.bytes().take(at).filter(|&b| b == b'\n').count()
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
        let place = Place { file: "p.toml", text, limits: &Limits::default() };
        parse_projects(&place, env, &mut warnings)
            .map(|projects| (projects, warnings))
            .map_err(|exit| exit.to_string())
    }

    #[test]
    fn a_whole_projects_file() {
        let text = "[[project]]\npid = \"1\"\nsecrets = [\"new\", \"old\"]\n\n[[project]]\n\
                    pid = \"shop.eu\"\nsecrets = [\"s\"]\nallowed_origins = \
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
            (String::new(), "p.toml: no project in it: add at least one [[project]]"),
            ("# nothing\n".into(), "p.toml: no project in it"),
            (format!("{full}{full}"), "p.toml, line 4: pid 'a' was given before, on line 1"),
            (format!("{head}secrets = []\n"), "p.toml, line 3: secrets of project 'a' is emp"),
            (
                format!("{head}secrets = ['x', '']\n"),
                "p.toml, line 3: secret 2 of project 'a' is empty: give",
            ),
            (
                format!("{head}secrets = ['x', 'x']\n"),
                "p.toml, line 3: secret 2 of project 'a' is there twice",
            ),
            (format!("{head}secrets = [7]\n"), "p.toml, line 3: secret 1 of project 'a' is no"),
            (head.into(), "p.toml, line 1: project 'a' has no secrets: add"),
            ("\n[[project]]\nsecrets = ['s']\n".into(), "p.toml, line 2: a project without p"),
            (
                full.replace("'a'", "'a b'"),
                "p.toml, line 2: pid 'a b' is not a project id: give 1 to 64 (--max",
            ),
            (full.replace("'a'", "''"), "p.toml, line 2: pid '' is not a project id"),
            (full.replace("'a'", "1"), "p.toml, line 2: invalid type: integer `1`"),
            (
                format!("{full}subscribe = 'all'\n"),
                "p.toml, line 4: subscribe 'all' of project 'a' is not known: give \"any\"",
            ),
            (format!("{full}secret = 's'\n"), "p.toml, line 4: unknown field `secret`"),
            (format!("[projects]\n{full}"), "p.toml, line 1: unknown field `projects`"),
            (format!("{full}x = \n"), "p.toml, line 4: "),
        ] {
            let error = projects(&text, Env::Dev).unwrap_err();
            let wanted = format!("ws-cluster: {wanted}");
            assert!(error.starts_with(&wanted), "{error}\n{wanted}");
        }
    }

    #[test]
    fn a_pid_is_bounded() {
        let text = format!("[[project]]\npid = '{}'\nsecrets = ['s']\n", "p".repeat(65));
        let parse = |pid_bytes| {
            let limits = Limits { pid_bytes, ..Limits::default() };
            let place = Place { file: "p.toml", text: &text, limits: &limits };
            parse_projects(&place, Env::Dev, &mut Vec::new()).map_err(|exit| exit.to_string())
        };
        assert_eq!(parse(65).unwrap().len(), 1);
        assert!(parse(64).unwrap_err().contains("give 1 to 64 (--max_pid_bytes) of the char"));
    }

    #[test]
    fn malformed_origins() {
        for (bad, fix) in [
            ("a.example", "give scheme://host"),
            ("://a.example", "give scheme://host"),
            ("", "give scheme://host"),
            ("https://a.example/", "leave out the path"),
            ("https://a.example/x", "leave out the path"),
            ("https://A.example", "write it in lower case"),
            ("https://bücher.example", "write the host in its xn-- form"),
            ("https://*.example", "give a host name without wildcards"),
            ("https://", "give a host name"),
            ("https://u@a.example", "give a host name"),
            ("https://[::g]", "give a host name"),
            ("https://a.example:443", "leave out the default port"),
            ("http://a.example:80", "leave out the default port"),
            ("https://a.example:", "give a port from 1 to 65535"),
            ("https://a.example:65536", "give a port from 1 to 65535"),
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

    /// A parser's error quotes what it stumbled over, and that would put a secret into the log.
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
