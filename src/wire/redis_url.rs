//! The address and credentials of the queue's Redis: `redis://user:password@host:port/db`, or
//! `unix://user:password@/path?db=2`.
//!
//! Errors never quote the text: a misplaced part may be a password.

use std::borrow::Cow;
use std::fmt;
use std::net::Ipv6Addr;
use std::path::PathBuf;
use std::str::FromStr;

use super::percent::{self, PercentError, Plus, encode};

/// The port of a URL without one.
pub const DEFAULT_PORT: u16 = 6379;
/// Maximum length of `sun_path` on Linux, without the terminating NUL.
const MAX_UNIX_PATH: usize = 107;
/// Redis stores the database number in a C int.
const MAX_DB: u32 = i32::MAX as u32;

/// A Redis server and the parameters of a connection to it. A user always comes with a password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RedisUrl {
    pub endpoint: Endpoint,
    pub user: Option<String>,
    pub password: Option<Password>,
    pub db: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// A host name, an IPv4 address, or an IPv6 address without brackets.
    Tcp { host: String, port: u16 },
    /// An absolute path.
    Unix { path: PathBuf },
}

/// A password that is shown only on explicit request.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(String);

impl Password {
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// What is wrong with the text, and the fix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RedisUrlError {
    #[error("it has no scheme; use redis://host:port, or unix:///path/to.sock")]
    NoScheme,
    #[error("its scheme is unknown; use redis://host:port, or unix:///path/to.sock")]
    UnknownScheme,
    #[error(
        "TLS (rediss://) is not supported; use redis://host:port through stunnel, another TLS \
         proxy or a private network"
    )]
    Tls,
    #[error(
        "its host is missing or not a name or address; use redis://host:port, with a password \
         redis://:password@host:port"
    )]
    Host,
    #[error(
        "its host has several colons; put an IPv6 address in brackets, redis://[::1]:6379, and a \
         password before an @, redis://:password@host:port"
    )]
    Colons,
    #[error(
        "its port is not a number from 1 to 65535; use redis://host:6379, with a password \
         redis://:password@host:6379"
    )]
    Port,
    #[error(
        "its database is not a number from 0 to 2147483647; use redis://host:port/0, or \
         unix:///path/to.sock?db=0"
    )]
    Db,
    #[error("its database is given twice; use redis://host:port/0 without ?db=")]
    TwoDbs,
    #[error("its query contains more than db; use ?db=0 or none")]
    Query,
    #[error(
        "the part before the @ may be a user or a password; use redis://:password@host or \
         redis://user:password@host"
    )]
    OneName,
    #[error(
        "an @ or a # is misplaced; write / as %2F, ? as %3F, # as %23 and @ as %40 in a user, a \
         password or a path"
    )]
    Unencoded,
    #[error("a % is not followed by two hexadecimal digits; write % as %25")]
    Percent,
    #[error("its percent-encoded bytes are not UTF-8; write é as %C3%A9")]
    NotUtf8,
    #[error(
        "its socket is not an absolute path of up to 107 bytes; use unix:///path/to.sock, with a \
         password unix://:password@/path/to.sock"
    )]
    UnixPath,
}

impl FromStr for RedisUrl {
    type Err = RedisUrlError;

    fn from_str(text: &str) -> Result<Self, RedisUrlError> {
        let (scheme, rest) = text.split_once("://").ok_or(RedisUrlError::NoScheme)?;
        match scheme.to_ascii_lowercase().as_str() {
            "redis" => tcp(rest),
            "unix" | "redis+unix" => unix(rest),
            "rediss" => Err(RedisUrlError::Tls),
            _ => Err(RedisUrlError::UnknownScheme),
        }
    }
}

/// Parses `user:password@host:port/db?db=0`; everything after the host is optional.
fn tcp(rest: &str) -> Result<RedisUrl, RedisUrlError> {
    let (authority, tail) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    if tail.contains(['@', '#']) {
        return Err(RedisUrlError::Unencoded);
    }
    let (credentials, host) = authority.rsplit_once('@').unwrap_or(("", authority));
    let (user, password) = user_and_password(credentials)?;
    let (host, port) = host_and_port(host)?;
    let (path, query) = tail.split_once('?').unwrap_or((tail, ""));
    let path = path.strip_prefix('/').unwrap_or(path);
    let db = match (path.strip_suffix('/').unwrap_or(path), db_of_query(query)?) {
        ("", db) => db.unwrap_or(0),
        (digits, None) => database(digits)?,
        (_, Some(_)) => return Err(RedisUrlError::TwoDbs),
    };
    Ok(RedisUrl { endpoint: Endpoint::Tcp { host: host.into(), port }, user, password, db })
}

/// Parses `user:password@/path?db=0`.
fn unix(rest: &str) -> Result<RedisUrl, RedisUrlError> {
    let (authority, tail) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let credentials = match authority {
        "" => "",
        _ => authority.strip_suffix('@').ok_or(RedisUrlError::UnixPath)?,
    };
    // A second @ belongs to the path, or ends a password that contains a /.
    if tail.contains('#') || (tail.contains('@') && !credentials.is_empty()) {
        return Err(RedisUrlError::Unencoded);
    }
    let (user, password) = user_and_password(credentials)?;
    let (path, query) = tail.split_once('?').unwrap_or((tail, ""));
    let path = decode(path.trim_end_matches('/'))?;
    if path.is_empty() || path.len() > MAX_UNIX_PATH || path.contains('\0') {
        return Err(RedisUrlError::UnixPath);
    }
    let db = db_of_query(query)?.unwrap_or(0);
    Ok(RedisUrl { endpoint: Endpoint::Unix { path: path.into() }, user, password, db })
}

/// Without a colon some clients read a user and others a password, so that is rejected. A user
/// without a password gets an empty one, as Redis expects for a user that needs none.
fn user_and_password(text: &str) -> Result<(Option<String>, Option<Password>), RedisUrlError> {
    let (user, password) = match text.split_once(':') {
        Some((user, password)) => (decode(user)?, decode(password)?),
        None if text.is_empty() => return Ok((None, None)),
        None => return Err(RedisUrlError::OneName),
    };
    Ok(match (user.is_empty(), password.is_empty()) {
        (true, true) => (None, None),
        (true, false) => (None, Some(Password(password))),
        (false, _) => (Some(user), Some(Password(password))),
    })
}

fn host_and_port(text: &str) -> Result<(&str, u16), RedisUrlError> {
    let (host, port) = match text.strip_prefix('[') {
        Some(inside) => {
            let (host, rest) = inside.split_once(']').ok_or(RedisUrlError::Host)?;
            if host.parse::<Ipv6Addr>().is_err() || !(rest.is_empty() || rest.starts_with(':')) {
                return Err(RedisUrlError::Host);
            }
            (host, rest.strip_prefix(':'))
        }
        None => {
            let (host, port) = text.split_once(':').map_or((text, None), |(h, p)| (h, Some(p)));
            if port.is_some_and(|port| port.contains(':')) {
                return Err(RedisUrlError::Colons);
            }
            let is_name = |b: u8| b.is_ascii_alphanumeric() || b"-._".contains(&b);
            if host.is_empty() || !host.bytes().all(is_name) {
                return Err(RedisUrlError::Host);
            }
            (host, port)
        }
    };
    match port.map_or(Some(DEFAULT_PORT.into()), number) {
        Some(port @ 1..=65_535) => Ok((host, port as u16)),
        _ => Err(RedisUrlError::Port),
    }
}

fn db_of_query(query: &str) -> Result<Option<u32>, RedisUrlError> {
    match query.strip_prefix("db=") {
        None if query.is_empty() => Ok(None),
        Some(value) if !value.contains('&') => database(value).map(Some),
        _ => Err(RedisUrlError::Query),
    }
}

fn database(text: &str) -> Result<u32, RedisUrlError> {
    number(text).filter(|db| *db <= MAX_DB).ok_or(RedisUrlError::Db)
}

/// Accepts digits only: `parse` alone would accept a `+`.
fn number(text: &str) -> Option<u32> {
    text.parse().ok().filter(|_| text.bytes().all(|b| b.is_ascii_digit()))
}

/// Decodes `%2F` to `/`; a `+` is kept.
fn decode(text: &str) -> Result<String, RedisUrlError> {
    let decoded = percent::decode(text.as_bytes(), Plus::Itself);
    decoded.map(Cow::into_owned).map_err(|error| match error {
        PercentError::Digits => RedisUrlError::Percent,
        PercentError::NotUtf8 => RedisUrlError::NotUtf8,
    })
}

/// Formats the full URL, with `***` for the password.
impl fmt::Display for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.endpoint {
            Endpoint::Tcp { .. } => "redis://",
            Endpoint::Unix { .. } => "unix://",
        })?;
        f.write_str(&encoded(self.user.as_deref().unwrap_or_default()))?;
        if self.password.is_some() {
            f.write_str(":***@")?;
        }
        match &self.endpoint {
            Endpoint::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}")?,
            Endpoint::Tcp { host, port } => write!(f, "{host}:{port}")?,
            Endpoint::Unix { path } => {
                let path = path.to_string_lossy();
                let parts: Vec<String> = path.split('/').map(encoded).collect();
                return write!(f, "{}?db={}", parts.join("/"), self.db);
            }
        }
        write!(f, "/{}", self.db)
    }
}

fn encoded(text: &str) -> String {
    let mut out = Vec::new();
    encode(text, &mut out);
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn url(text: &str) -> RedisUrl {
        text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    /// Host, port, user, password, database.
    type Tcp<'a> = (&'a str, u16, Option<&'a str>, Option<&'a str>, u32);

    #[test]
    fn every_form_over_tcp() {
        let cases: [(&str, Tcp<'_>); 21] = [
            ("redis://host", ("host", 6379, None, None, 0)),
            ("REDIS://Host.", ("Host.", 6379, None, None, 0)),
            ("redis://host/", ("host", 6379, None, None, 0)),
            ("redis://host:7000", ("host", 7000, None, None, 0)),
            ("redis://host:65535/15", ("host", 65_535, None, None, 15)),
            ("redis://host/3/", ("host", 6379, None, None, 3)),
            ("redis://host?db=4", ("host", 6379, None, None, 4)),
            ("redis://host/?db=2147483647", ("host", 6379, None, None, 2_147_483_647)),
            ("redis://host?", ("host", 6379, None, None, 0)),
            ("redis://10.0.0.1:1/0", ("10.0.0.1", 1, None, None, 0)),
            ("redis://a-b_c.svc.local", ("a-b_c.svc.local", 6379, None, None, 0)),
            ("redis://[::1]:6380/0", ("::1", 6380, None, None, 0)),
            ("redis://[fe80::2]", ("fe80::2", 6379, None, None, 0)),
            ("redis://:pass@host", ("host", 6379, None, Some("pass"), 0)),
            ("redis://user:pass@host:1/2", ("host", 1, Some("user"), Some("pass"), 2)),
            ("redis://u:p@[::1]/2", ("::1", 6379, Some("u"), Some("p"), 2)),
            ("redis://user:@host", ("host", 6379, Some("user"), Some(""), 0)),
            ("redis://:@host", ("host", 6379, None, None, 0)),
            ("redis://@host", ("host", 6379, None, None, 0)),
            ("redis://u:a@b:c@host", ("host", 6379, Some("u"), Some("a@b:c"), 0)),
            ("redis://%C3%A9%3a:%2F+%25%40@host", ("host", 6379, Some("é:"), Some("/+%@"), 0)),
        ];
        for (text, (host, port, user, password, db)) in cases {
            let url = url(text);
            let endpoint = Endpoint::Tcp { host: host.into(), port };
            assert_eq!(url.endpoint, endpoint, "{text}");
            assert_eq!(url.user.as_deref(), user, "{text}");
            assert_eq!(url.password.as_ref().map(Password::expose), password, "{text}");
            assert_eq!(url.db, db, "{text}");
        }
    }

    #[test]
    fn every_form_over_a_unix_socket() {
        for (text, path, user, password, db) in [
            ("unix:///path/to.sock", "/path/to.sock", None, None, 0),
            ("unix:///path/to.sock/", "/path/to.sock", None, None, 0),
            ("redis+unix:///s?db=3", "/s", None, None, 3),
            ("unix:///a@b%20c%3F", "/a@b c?", None, None, 0),
            ("unix://user:pass@/s?db=2", "/s", Some("user"), Some("pass"), 2),
            ("unix://:p@?#%2F@/s", "/s", None, Some("p@?#/"), 0),
        ] {
            let url = url(text);
            assert_eq!(url.endpoint, Endpoint::Unix { path: path.into() }, "{text}");
            assert_eq!(url.user.as_deref(), user, "{text}");
            assert_eq!(url.password.as_ref().map(Password::expose), password, "{text}");
            assert_eq!(url.db, db, "{text}");
        }
    }

    #[test]
    fn what_is_wrong_is_named_with_the_fix() {
        use RedisUrlError::*;
        let long = format!("unix:///{}", "x".repeat(107));
        for (text, wanted) in [
            ("", NoScheme),
            ("host:6379", NoScheme),
            ("user:hunter2@host", NoScheme),
            ("redis:host", NoScheme),
            ("hunter2://host", UnknownScheme),
            ("rediss://:hunter2@host", Tls),
            ("redis://", Host),
            ("redis:///0", Host),
            ("redis://:hunter2@", Host),
            ("redis://:6379", Host),
            ("redis://a b", Host),
            ("redis://h%41", Host),
            ("redis://bücher", Host),
            ("redis://[::1", Host),
            ("redis://[::g]", Host),
            ("redis://[::1]6379", Host),
            ("redis://::1", Colons),
            ("redis://user:hunter2:host", Colons),
            ("redis://user:hunter2", Port),
            ("redis://host:", Port),
            ("redis://host:0", Port),
            ("redis://host:65536", Port),
            ("redis://host:+1", Port),
            ("redis://[::1]:x", Port),
            ("redis://host/x", Db),
            ("redis://host/1/2", Db),
            ("redis://host/-1", Db),
            ("redis://host/2147483648", Db),
            ("redis://host?db=", Db),
            ("redis://host/1?db=1", TwoDbs),
            ("redis://host?password=hunter2", Query),
            ("redis://host?db=1&timeout=1", Query),
            ("redis://hunter2@host", OneName),
            ("redis://:hun/ter2@host", Unencoded),
            ("redis://:hun?ter2@host", Unencoded),
            ("redis://:hun#ter2@host", Unencoded),
            ("redis://host#hunter2", Unencoded),
            ("redis://:hunter2%@host", Percent),
            ("redis://:hunter2%2@host", Percent),
            ("redis://:%zzhunter2@host", Percent),
            ("redis://:hunter2%ff@host", NotUtf8),
            ("unix://", UnixPath),
            ("unix:///", UnixPath),
            ("unix://path/to.sock", UnixPath),
            ("unix:///%00", UnixPath),
            ("unix://:hun/ter2@/s", UnixPath),
            ("unix://:hunter@/2@/s", Unencoded),
            (&*long, UnixPath),
            ("unix://hunter2@/s", OneName),
            ("unix:///s?x=1", Query),
        ] {
            let error = text.parse::<RedisUrl>().unwrap_err();
            assert_eq!(error, wanted, "{text}");
            let message = error.to_string();
            assert!(message.contains("; ") && !message.contains("hunter"), "{message}");
        }
        assert!(NoScheme.to_string().contains("use redis://host:port"));
        assert!(Tls.to_string().contains("stunnel"));
    }

    #[test]
    fn a_password_shows_itself_nowhere() {
        for (text, shown) in [
            ("redis://host", "redis://host:6379/0"),
            ("redis://[::1]:1/2", "redis://[::1]:1/2"),
            ("redis://:hunter2@host", "redis://:***@host:6379/0"),
            ("redis://u%40:hunter2@host", "redis://u%40:***@host:6379/0"),
            ("unix:///s%3F/t", "unix:///s%3F/t?db=0"),
            ("unix://u:hunter2@/s?db=1", "unix://u:***@/s?db=1"),
        ] {
            let url = url(text);
            assert_eq!(url.to_string(), shown);
            let debug = format!("{url:?} {url:#?} {:?}", url.password);
            assert!(!debug.contains("hunter2"), "{debug}");
            assert_eq!(debug.contains("***"), url.password.is_some(), "{debug}");
        }
    }

    proptest! {
        #[test]
        fn any_text_never_panics(text in "(redis|unix)://[\\PC:@/?%\\[\\]0-9]{0,30}") {
            for cut in (0..=text.len()).filter(|cut| text.is_char_boundary(*cut)) {
                let _ = text[..cut].parse::<RedisUrl>();
            }
        }

        #[test]
        fn what_is_encoded_is_read(user in "\\PC{1,9}", password in "\\PC{0,9}", db in 0..=MAX_DB) {
            let (encoded_user, encoded_password) = (encoded(&user), encoded(&password));
            for at in [format!("redis://{encoded_user}:{encoded_password}@h/{db}"),
                       format!("unix://{encoded_user}:{encoded_password}@/h?db={db}")] {
                let url = url(&at);
                prop_assert_eq!(url.user.as_deref(), Some(&*user));
                prop_assert_eq!(url.password.as_ref().map(Password::expose), Some(&*password));
                prop_assert_eq!(url.db, db);
                let masked = RedisUrl { password: Some(Password("***".into())), ..url.clone() };
                prop_assert_eq!(url.to_string().parse(), Ok(masked));
            }
        }
    }
}
