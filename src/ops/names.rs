//! Decides which requests to the ops ports are answered at all: those that name this node and were
//! not made by another site's page.
//!
//! A page of another site can make its name resolve to this node (DNS rebinding), and could then
//! read what the node shows to its own machine. The browser sends that name as Host. Addresses
//! cannot be rebound.

use super::pages;
use super::reload;
use super::reply::Reply;
use super::site::Site;
use crate::state::counters::Refusal;
use crate::wire::http::Head;
use std::net::IpAddr;

/// Maximum number of bytes quoted of a name.
const QUOTED_BYTES: usize = 100;

/// The host names that the ops ports accept.
#[derive(Debug)]
pub struct Names<'a> {
    /// The address that the ports are bound to.
    pub bound: IpAddr,
    /// `--ops_hosts`.
    pub more: &'a [String],
}

impl Names<'_> {
    /// Returns the refusal of a request that does not name this node.
    pub(super) fn check(&self, host: Option<&str>) -> Result<(), Reply> {
        let Some(host) = host else {
            let text = "name this node in the Host header, e.g. Host: localhost\n";
            return Err(refusal(421, text.to_owned()));
        };
        let name = without_port(host);
        if self.is_known(name) {
            return Ok(());
        }
        let name: String = name.chars().take(QUOTED_BYTES).collect();
        let address = if self.bound.is_unspecified() {
            "one of its addresses".into()
        } else {
            self.bound.to_string()
        };
        let text = format!(
            "Host {name} is not a name of this node: use localhost or {address}, or start the node \
             with --ops_hosts {name}\n"
        );
        Err(refusal(421, text))
    }

    fn is_known(&self, name: &str) -> bool {
        if name.eq_ignore_ascii_case("localhost") {
            return true;
        }
        let bare = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
        let address: Option<IpAddr> = bare.parse().ok();
        if address.is_some_and(|address| {
            address == self.bound || address.is_loopback() || self.bound.is_unspecified()
        }) {
            return true;
        }
        self.more.iter().any(|one| one.eq_ignore_ascii_case(bare))
    }
}

/// Returns the refusal of a request made by another site's page, if that would reveal or cost
/// something: the page cannot read the answer, but it could have a profile taken.
pub(super) fn check_site(site: Site, head: &Head<'_>) -> Result<(), Reply> {
    let shows_node = site == Site::Pages && pages::shows_node(head.path);
    let costs = site == Site::Pprof && head.path.len() > "/debug/pprof/".len()
        || site == Site::Pages && head.path == reload::PATH;
    let from = head.sec_fetch_site.unwrap_or("none");
    let is_foreign = match from {
        "none" | "same-origin" => false,
        // Another port of this machine is the same site.
        "same-site" => shows_node || head.path == reload::PATH,
        _ => shows_node || costs,
    };
    let same_origin = |origin: &str| {
        let authority = origin.split_once("://").map(|(_, authority)| authority);
        authority.zip(head.host).is_some_and(|(one, other)| one.eq_ignore_ascii_case(other))
    };
    let has_foreign_origin = head.origin.is_some_and(|origin| !same_origin(origin));
    if is_foreign || has_foreign_origin && (shows_node || costs) {
        let text = "pages of other sites may not request this: type its URL into the address bar\n";
        return Err(refusal(403, text.to_owned()));
    }
    Ok(())
}

/// Returns the reason under which a refusal is counted.
pub(super) fn reason_of(status: u16) -> Option<Refusal> {
    match status {
        401 => Some(Refusal::OpsToken),
        403 => Some(Refusal::OpsSite),
        421 => Some(Refusal::OpsHost),
        _ => None,
    }
}

fn refusal(status: u16, text: String) -> Reply {
    Reply::text(status, text).with("X-Content-Type-Options", "nosniff")
}

/// The name or address in `host[:port]`.
fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => {
            // An IPv6 address without a port is in brackets.
            if name.contains(':') && !name.ends_with(']') { host } else { name }
        }
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Limits;
    use crate::wire::http::parse_head;

    #[test]
    fn a_request_names_this_node() {
        let more = ["node-1.example".into()];
        let names = |bound: &str| Names { bound: bound.parse().unwrap(), more: &more };
        let check = |bound, host| names(bound).check(Some(host)).is_ok();
        for bound in ["127.0.0.1", "10.0.0.7", "0.0.0.0", "::1"] {
            for host in [
                "localhost",
                "LocalHost:9092",
                "127.0.0.1",
                "127.0.0.1:9092",
                "127.8.8.8:1",
                "[::1]",
                "[::1]:9092",
                "node-1.example",
                "Node-1.Example:80",
            ] {
                assert!(check(bound, host), "{bound} {host}");
            }
            for host in [
                "evil.example",
                "evil.example:9092",
                "localhost.evil.example",
                "127.0.0.1.evil.example",
                "xnode-1.example",
                "",
                ":9092",
                "[evil]:1",
                "localhost:9092x",
            ] {
                assert!(!check(bound, host), "{bound} {host}");
            }
        }
        assert!(check("10.0.0.7", "10.0.0.7:9091") && !check("10.0.0.7", "10.0.0.8"));
        // Any address is accepted: a rebound name is never an address.
        assert!(check("0.0.0.0", "192.168.1.2:9091") && check("::", "[fe80::1]:9091"));
        assert!(names("::1").check(None).is_err());
    }

    #[test]
    fn a_refusal_names_the_host_and_the_flag_and_is_short() {
        let names = Names { bound: [127, 0, 0, 1].into(), more: &[] };
        let refused = names.check(Some("evil.example:9092")).unwrap_err();
        let text = String::from_utf8(refused.body).unwrap();
        assert_eq!(refused.status, 421);
        assert!(text.contains("--ops_hosts evil.example\n"), "{text}");
        let long = names.check(Some(&"x".repeat(8_000))).unwrap_err();
        assert!(long.body.len() < 400);
    }

    #[test]
    fn another_sites_page_gets_neither_the_node_nor_a_profile() {
        let check = |site, path: &str, fields: &str| {
            let request = format!("GET {path} HTTP/1.1\r\nHost: localhost:9092\r\n{fields}\r\n");
            let head = parse_head(request.as_bytes(), &Limits::default()).unwrap().unwrap();
            check_site(site, &head).is_ok()
        };
        let live = |fields| check(Site::Pages, "/live.json", fields);
        let profile = |fields| check(Site::Pprof, "/debug/pprof/profile?seconds=300", fields);
        for own in [
            "",
            "Sec-Fetch-Site: none\r\n",
            "Sec-Fetch-Site: same-origin\r\n",
            "Origin: http://localhost:9092\r\n",
        ] {
            assert!(live(own) && profile(own), "{own}");
        }
        for foreign in [
            "Sec-Fetch-Site: cross-site\r\n",
            "Origin: http://evil.example\r\n",
            "Origin: null\r\n",
            "Origin: http://localhost:3000\r\n",
        ] {
            assert!(!live(foreign) && !profile(foreign), "{foreign}");
            assert!(
                check(Site::Pages, "/", foreign) && check(Site::Pprof, "/debug/pprof/", foreign)
            );
        }
        let reload = |fields| check(Site::Pages, "/reload", fields);
        assert!(reload("") && reload("Sec-Fetch-Site: same-origin\r\n"));
        for foreign in ["Sec-Fetch-Site: cross-site\r\n", "Sec-Fetch-Site: same-site\r\n"] {
            assert!(!reload(foreign), "{foreign}");
        }
        assert!(!reload("Origin: http://evil.example\r\n"));
        // The live page links to the profiles, which are on another port.
        assert!(!live("Sec-Fetch-Site: same-site\r\n") && profile("Sec-Fetch-Site: same-site\r\n"));
    }
}
