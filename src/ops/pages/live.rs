//! The live page at `/`: its files, and `/live.json`, which it polls once a second.

mod snapshot;

use crate::ops::asset::Asset;
use crate::ops::node_view::NodeView;
use crate::ops::reply::Reply;
use crate::wire::http::Head;
use std::net::IpAddr;

const PAGE: Asset = Asset {
    path: "/",
    content_type: "text/html; charset=utf-8",
    bytes: include_bytes!("assets/live/index.html"),
};

const SNAPSHOT: &str = "/live.json";

const FILES: [Asset; 8] = [
    Asset::css("/live/live.css", include_bytes!("assets/live/live.css")),
    Asset::script("/live/live.js", include_bytes!("assets/live/live.js")),
    Asset::script("/live/panels.js", include_bytes!("assets/live/panels.js")),
    Asset::script("/live/chart.js", include_bytes!("assets/live/chart.js")),
    Asset::script("/live/figures.js", include_bytes!("assets/live/figures.js")),
    Asset::script("/live/console.js", include_bytes!("assets/live/console.js")),
    Asset::script("/live/frames.js", include_bytes!("assets/live/frames.js")),
    Asset::script("/live/inputs.js", include_bytes!("assets/live/inputs.js")),
];

/// Answers the request; `None` if the path is not the live page's.
pub(super) fn answer(node: &NodeView, head: &Head<'_>) -> Option<Reply> {
    match head.path {
        "/" => {
            let policy = policy(head.host, [node.ws.ip(), node.http.ip()]);
            let reply = PAGE.answer(head).with("Content-Security-Policy", policy);
            // The URL may contain the token until the page has removed it.
            Some(reply.with("Referrer-Policy", "no-referrer"))
        }
        SNAPSHOT => {
            let Ok(json) = snapshot::snapshot(node) else {
                return Some(Reply::text(500, "not encoded\n"));
            };
            let reply = Reply::new(200, "application/json", json);
            let reply = reply.with("Cache-Control", "no-store");
            let reply = reply.with("Cross-Origin-Resource-Policy", "same-origin");
            Some(reply.with("X-Content-Type-Options", "nosniff"))
        }
        path => FILES.iter().find(|file| file.path == path).map(|file| file.answer(head)),
    }
}

pub(super) fn is_page(path: &str) -> bool {
    path == PAGE.path
}

pub(super) fn shows_node(path: &str) -> bool {
    path == SNAPSHOT
}

pub(super) fn is_public(path: &str) -> bool {
    FILES.iter().any(|file| file.path == path)
}

/// Returns the content security policy. Scripts load from here only, and nothing that is written
/// into the page runs. The console connects to the ports of the host that the page was loaded from,
/// and of the addresses that the node is bound to. A policy cannot name an IPv6 address: where one
/// is needed, only the protocols are named.
fn policy(host: Option<&str>, bound: [IpAddr; 2]) -> String {
    let mut hosts = vec![host_name(host.unwrap_or(""))];
    for ip in bound.into_iter().filter(|ip| !ip.is_unspecified()) {
        hosts.push(ip.is_ipv4().then(|| ip.to_string()));
    }
    let named: Option<Vec<String>> = hosts.into_iter().collect();
    let to = match named {
        None => " ws: wss: http: https:".into(),
        Some(mut hosts) => {
            hosts.sort_unstable();
            hosts.dedup();
            let schemes = ["ws", "wss", "http", "https"];
            let of = |host: &String| schemes.map(|scheme| format!(" {scheme}://{host}:*")).concat();
            hosts.iter().map(of).collect::<String>()
        }
    };
    format!(
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; \
         connect-src 'self'{to}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
}

/// Returns the name or IPv4 address in `host[:port]`.
fn host_name(host: &str) -> Option<String> {
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    (!name.is_empty() && name.bytes().all(is_plain)).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_console_may_go_to_the_node_and_nowhere_else() {
        let any = IpAddr::from([0, 0, 0, 0]);
        let connect = |host, bound| {
            let policy = policy(host, bound);
            let (_, rest) = policy.split_once("connect-src 'self' ").unwrap();
            rest.split_once(';').unwrap().0.to_owned()
        };
        assert_eq!(
            connect(Some("a.example:9092"), [any, any]),
            "ws://a.example:* wss://a.example:* http://a.example:* https://a.example:*"
        );
        let two = connect(Some("localhost:9092"), [IpAddr::from([127, 0, 0, 1]); 2]);
        assert!(two.contains("ws://localhost:* ") && two.contains("ws://127.0.0.1:* "), "{two}");
        assert_eq!(two.matches("127.0.0.1").count(), 4, "{two}");
        for host in [None, Some("[::1]:9092"), Some("a;script-src:1"), Some("a'b")] {
            assert_eq!(connect(host, [any, any]), "ws: wss: http: https:", "{host:?}");
        }
        let v6 = IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1]);
        assert_eq!(connect(Some("localhost"), [v6, any]), "ws: wss: http: https:");
    }
}
