//! The addresses that a node listens on.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use super::DEV_SECRET;
use super::flags::{self, Flag, PREFIX};
use super::mistake::Mistake;
use super::setting::Source;
use crate::state::projects::Projects;
use crate::types::Env;
use crate::wire::sign::{Secret, sign_hex};

/// An address to listen on, and its origin, for errors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bind {
    pub ip: IpAddr,
    /// The flag, the variable or the place in the config file that set it.
    pub name: String,
}

/// The addresses of the WebSocket port and of the HTTP port.
#[derive(Debug)]
pub(super) struct Binds {
    pub(super) ws: Bind,
    pub(super) http: Bind,
}

impl Binds {
    /// Resolves the addresses. Outside `prod` a node listens on this machine only unless --bind
    /// says otherwise: its built-in project has a published secret.
    pub(super) fn resolve(from: &Source<'_>, env: Env) -> Self {
        let default = match env {
            Env::Prod => IpAddr::from([0, 0, 0, 0]),
            Env::Dev | Env::Test => IpAddr::from([127, 0, 0, 1]),
        };
        let ws = Bind::resolve(from, &flags::BIND, default);
        let own = Bind::resolve(from, &flags::HTTP_BIND, ws.ip);
        let http = if from.get(&flags::HTTP_BIND).text.is_some() { own } else { ws.clone() };
        Self { ws, http }
    }
}

/// Warns if others can reach a port and sign with the published secret; `prod` warns of that secret
/// wherever it listens.
pub(super) fn warn_of_dev_secret(
    binds: [&Bind; 2],
    env: Env,
    projects: &Projects,
    warnings: &mut Vec<Mistake>,
) {
    let known = sign_hex(&Secret::new(DEV_SECRET.as_bytes()), &[]);
    let is_known = |secret: &Secret| sign_hex(secret, &[]) == known;
    let mut projects = projects.iter().map(|(_, project)| project);
    let project = projects.find(|project| project.secrets.iter().any(is_known));
    let open = binds.into_iter().find(|bind| !bind.ip.is_loopback());
    if let (Some(project), Some(bind), false) = (project, open, env == Env::Prod) {
        warnings.push(format!(
            "{} is reachable from other machines, and project '{}' has the published dev-secret, \
             so anyone who reaches the port can sign: use a projects file with a secret of your \
             own (--projects), or omit {} to listen on 127.0.0.1",
            bind.written(),
            project.pid,
            bind.name
        ).into());
    }
}

impl Bind {
    pub(super) fn resolve(from: &Source<'_>, flag: &'static Flag, default: IpAddr) -> Self {
        let setting = from.get(flag);
        let name = setting.name();
        let Address(ip) = setting.parsed_or(Address(default));
        Self { ip, name }
    }

    /// Returns the name and address as given.
    pub fn written(&self) -> String {
        let separator = match &*self.name {
            name if name.starts_with("--") => " ",
            name if name.starts_with(PREFIX) => "=",
            // A place in the config file.
            _ => " = ",
        };
        format!("{}{separator}{}", self.name, self.ip)
    }
}

/// An IP address that clients can reach; IPv6 may stand in brackets, as in a URL.
struct Address(IpAddr);

/// The kernel would listen on group addresses, but nobody could connect; a link-local address needs
/// its link.
fn is_reachable(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => !ip.is_multicast() && !ip.is_broadcast(),
        IpAddr::V6(ip) => !ip.is_multicast() && !ip.is_unicast_link_local(),
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Address {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let ip: IpAddr = match text.strip_prefix('[') {
            Some(rest) => {
                let inner = rest.strip_suffix(']').ok_or(())?;
                inner.parse().map(IpAddr::V6).map_err(|_| ())?
            }
            None => text.parse().map_err(|_| ())?,
        };
        // ::ffff:127.0.0.1 is 127.0.0.1.
        Some(Self(ip.to_canonical())).filter(|Self(ip)| is_reachable(*ip)).ok_or(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::Config;
    use super::*;

    fn config(line: &str) -> Config {
        let args: Vec<String> = line.split_whitespace().map(String::from).collect();
        Config::from_args(&args, &|_| None).unwrap()
    }

    #[test]
    fn brackets_are_for_ipv6_alone() {
        let parse = |text: &str| text.parse::<Address>().ok().map(|address| address.0.to_string());
        for (text, ip) in [
            ("127.0.0.1", Some("127.0.0.1")),
            ("::", Some("::")),
            ("[::]", Some("::")),
            ("[::1]", Some("::1")),
            ("[127.0.0.1]", None),
            ("[::1", None),
            ("::1]", None),
            ("[]", None),
            ("localhost", None),
            ("[::ffff:127.0.0.1]", Some("127.0.0.1")),
            ("224.0.0.1", None),
            ("255.255.255.255", None),
            ("ff02::1", None),
            ("fe80::1", None),
            ("fe80::1%eth0", None),
        ] {
            assert_eq!(parse(text).as_deref(), ip, "{text}");
        }
    }

    #[test]
    fn the_http_port_follows_bind_unless_it_has_an_address_of_its_own() {
        for (line, ws, http, name) in [
            ("", "127.0.0.1", "127.0.0.1", "--bind"),
            ("--env test", "127.0.0.1", "127.0.0.1", "--bind"),
            ("--bind ::1", "::1", "::1", "--bind"),
            ("--http_bind [::1]", "127.0.0.1", "::1", "--http_bind"),
            ("--bind 0.0.0.0 --http_bind 127.0.0.2", "0.0.0.0", "127.0.0.2", "--http_bind"),
        ] {
            let config = config(line);
            assert_eq!(config.bind.ip.to_string(), ws, "{line}");
            let http_bind = (config.http_bind.ip.to_string(), &*config.http_bind.name);
            assert_eq!(http_bind, (http.into(), name), "{line}");
        }
    }

    #[test]
    fn the_published_secret_and_an_open_port_are_warned_of() {
        for (line, named) in [
            ("", None),
            ("--bind 127.0.0.9", None),
            ("--bind [::1]", None),
            ("--bind ::ffff:127.0.0.1", None),
            ("--bind 0.0.0.0", Some("--bind 0.0.0.0 is reachable from other")),
            ("--bind ::", Some("--bind :: is")),
            ("--http_bind 0.0.0.0", Some("--http_bind 0.0.0.0 is")),
            ("--env test --bind 10.0.0.1", Some("--bind 10.0.0.1 is")),
        ] {
            let warnings = config(line).warnings;
            assert_eq!(warnings.len(), usize::from(named.is_some()), "{warnings:?}");
            if let Some(named) = named {
                assert!(warnings[0].what.starts_with(named), "{warnings:?}");
            }
        }
    }
}
