//! Swagger UI, and the API descriptions that it and others read. All of it is in the binary: a page
//! that signs must not load code from elsewhere.

use crate::ops::asset::{Asset, CSS, JAVASCRIPT};
use crate::ops::node_view::NodeView;
use crate::ops::openapi;
use crate::ops::reply::Reply;
use crate::wire::http::Head;
use std::net::SocketAddr;

const HTML: &str = "text/html; charset=utf-8";
const JSON: &str = "application/json";
const YAML: &str = "application/yaml";
const TEXT: &str = "text/plain; charset=utf-8";

const PAGE: &str = include_str!("assets/swagger/index.html");
const ASYNCAPI: &str = include_str!("../../../docs/asyncapi.yaml");
/// The address in [`ASYNCAPI`] that is replaced by the node's own.
const NO_NODE: &str = "localhost:8812";

/// A file of the page.
struct File {
    name: &'static str,
    content_type: &'static str,
    bytes: &'static [u8],
    is_gzip: bool,
}

macro_rules! file {
    ($name:literal, $content_type:expr) => {
        File {
            name: $name,
            content_type: $content_type,
            bytes: include_bytes!(concat!("assets/swagger/", $name)),
            is_gzip: false,
        }
    };
    ($name:literal, $content_type:expr, gzip) => {
        File {
            name: $name,
            content_type: $content_type,
            bytes: include_bytes!(concat!("assets/swagger/", $name, ".gz")),
            is_gzip: true,
        }
    };
}

const FILES: [File; 6] = [
    file!("swagger-ui-bundle.js", JAVASCRIPT, gzip),
    file!("swagger-ui.css", CSS, gzip),
    file!("page.js", JAVASCRIPT),
    file!("page.css", CSS),
    file!("NOTICE", TEXT),
    file!("swagger-ui-bundle.js.LICENSE.txt", TEXT),
];

const PAGE_PATH: &str = "/swagger/index.html";
/// Modules that the page's script imports.
const IMPORTED: [Asset; 2] = [
    Asset::script("/swagger/signing.js", include_bytes!("assets/swagger/signing.js")),
    Asset::script("/swagger/outcome.js", include_bytes!("assets/swagger/outcome.js")),
];

/// Answers the request; `None` if the path belongs to another site.
pub fn answer(node: &NodeView, head: &Head<'_>) -> Option<Reply> {
    let http = || format!("http://{}", at(head, node.http));
    Some(match head.path {
        "/openapi.json" => match openapi::json(&http()) {
            Some(json) => description(JSON, json),
            None => Reply::text(500, "not encoded\n"),
        },
        "/openapi.yaml" => description(YAML, openapi::yaml(&http())),
        "/asyncapi.yaml" => description(YAML, ASYNCAPI.replacen(NO_NODE, &at(head, node.ws), 1)),
        "/swagger" | "/swagger/" => {
            let query = head.query.map(|query| format!("?{query}")).unwrap_or_default();
            Reply::text(302, "").with("Location", format!("{PAGE_PATH}{query}"))
        }
        PAGE_PATH => page(&http()),
        path => match IMPORTED.iter().find(|imported| imported.path == path) {
            Some(imported) => imported.answer(head),
            None => file(path.strip_prefix("/swagger/")?)?,
        },
    })
}

pub(super) fn is_page(path: &str) -> bool {
    path == PAGE_PATH
}

/// Returns whether it is one of the files or a path to the page, which are the same on every node.
pub(super) fn is_public(path: &str) -> bool {
    let is_file = |name| FILES.iter().any(|file| file.name == name);
    IMPORTED.iter().any(|imported| imported.path == path)
        || matches!(path, "/swagger" | "/swagger/")
        || path.strip_prefix("/swagger/").is_some_and(is_file)
}

/// Returns where the browser reaches a port of the node: at the host name that it used for this
/// page, unless that is this machine and the port is bound only to a network address.
fn at(head: &Head<'_>, bound: SocketAddr) -> String {
    let host = host(head);
    let is_local = host == "localhost" || host.starts_with("127.") || host == "[::1]";
    let is_elsewhere = !bound.ip().is_loopback() && !bound.ip().is_unspecified();
    match is_local && is_elsewhere {
        true => bound.to_string(),
        false => format!("{host}:{}", bound.port()),
    }
}

/// Returns the node's name as the browser knows it. Anything that is not a name or an address, and
/// so could mean something else where it is inserted, is left out.
fn host<'a>(head: &Head<'a>) -> &'a str {
    let given = head.host.unwrap_or("");
    let name = match given.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => given,
    };
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    let inside = name.strip_prefix('[').and_then(|name| name.strip_suffix(']'));
    let is_good = match inside {
        Some(address) => address.bytes().all(|b| b.is_ascii_hexdigit() || matches!(b, b':' | b'.')),
        None => !name.is_empty() && name.bytes().all(is_plain),
    };
    if is_good { name } else { "localhost" }
}

fn description(content_type: &'static str, text: String) -> Reply {
    Reply::new(200, content_type, text).with("Cache-Control", "no-cache")
}

fn page(http: &str) -> Reply {
    // A policy cannot contain an IPv6 address.
    let node = if http.contains('[') { "http:" } else { http };
    let policy = format!(
        "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; \
         img-src 'self' data:; connect-src 'self' {node}; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    Reply::new(200, HTML, PAGE)
        .with("Content-Security-Policy", policy)
        .with("Referrer-Policy", "no-referrer")
        .with("Cache-Control", "no-store")
}

fn file(name: &str) -> Option<Reply> {
    let file = FILES.iter().find(|file| file.name == name)?;
    let reply = Reply::new(200, file.content_type, file.bytes).with("Cache-Control", "no-cache");
    // Every browser accepts it; RFC 9110 allows sending it to clients that do not object.
    Some(if file.is_gzip { reply.with("Content-Encoding", "gzip") } else { reply })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Limits;
    use crate::wire::http::parse_head;

    fn host_of(field: &str) -> String {
        let request = format!("GET / HTTP/1.1\r\nHost: {field}\r\n\r\n");
        let head = parse_head(request.as_bytes(), &Limits::default()).unwrap().unwrap();
        host(&head).to_owned()
    }

    #[test]
    fn a_port_that_is_bound_elsewhere_is_named_by_its_address() {
        for (asked, bound, wanted) in [
            ("localhost:9092", "127.0.0.1:8912", "localhost:8912"),
            ("localhost:9092", "0.0.0.0:8912", "localhost:8912"),
            ("localhost:9092", "10.0.0.9:8912", "10.0.0.9:8912"),
            ("127.0.0.1:9092", "[fd00::9]:8912", "[fd00::9]:8912"),
            ("push.example:9092", "10.0.0.9:8912", "push.example:8912"),
        ] {
            let request = format!("GET / HTTP/1.1\r\nHost: {asked}\r\n\r\n");
            let head = parse_head(request.as_bytes(), &Limits::default()).unwrap().unwrap();
            assert_eq!(at(&head, bound.parse().unwrap()), wanted);
        }
    }

    #[test]
    fn the_host_is_the_browsers() {
        for (field, expected) in [
            ("localhost:9092", "localhost"),
            ("node-1.example", "node-1.example"),
            ("127.0.0.1:9092", "127.0.0.1"),
            ("[::1]:9092", "[::1]"),
            ("[fe80::1]", "[fe80::1]"),
            ("", "localhost"),
            (":9092", "localhost"),
            ("a;script-src:9092", "localhost"),
            ("a\"b", "localhost"),
            ("[::1", "localhost"),
        ] {
            assert_eq!(host_of(field), expected, "{field}");
        }
    }

    #[test]
    fn every_file_of_the_page_is_there() {
        let after = |name| PAGE.split(name).skip(1).filter_map(|rest| rest.split('"').next());
        let links = after(" href=\"").chain(after(" src=\""));
        let links: Vec<&str> = links.filter(|link| !link.starts_with("data:")).collect();
        assert_eq!(links.len(), FILES.len() + 4, "{links:?}");
        for link in links {
            assert!(link.starts_with("../") || file(link).is_some(), "{link}");
        }
    }
}
