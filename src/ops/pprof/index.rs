//! `/debug/pprof/`: the available profiles, each with a command to paste.

use super::super::access::GATE_POLICY;
use super::super::reply::Reply;
use super::{DEFAULT_SECONDS, MAX_SECONDS};
use crate::wire::http::Head;

const PAGE: &str = include_str!("index.html");
/// Used if the client sends no Host.
const DEFAULT_HOST: &str = "127.0.0.1:6060";

/// The profiles: the path below `/debug/pprof/`, a description, whether it takes `seconds`, and a
/// command to paste, in which `URL` stands for the address.
///
/// If a token is required, the commands read it from the shell that they are pasted into: a page
/// that shows it would leak it in every screenshot.
const PROFILES: [(&str, &str, bool, &str); 4] = [
    (
        "profile",
        "CPU time of the threads: a profile for go tool pprof, Speedscope and others (gzipped \
         pprof protobuf).",
        true,
        "go tool pprof -http=: 'URL'",
    ),
    (
        "flamegraph",
        "The same as a flame graph, an SVG for browsers.",
        true,
        "curl -fo flamegraph.svg 'URL'",
    ),
    (
        "heap",
        "Memory as the allocator, the kernel and the node itself count it, as text.",
        false,
        "curl -f 'URL'",
    ),
    (
        "cmdline",
        "The node's arguments, separated by NULs; secrets are masked.",
        false,
        "curl -fs 'URL' | xargs -0 echo",
    ),
];

/// Returns the page for people.
pub fn page(head: &Head<'_>, has_token: bool) -> Reply {
    let host = head.host.filter(|host| host.is_ascii()).unwrap_or(DEFAULT_HOST);
    let mut rows = String::new();
    for (name, what, takes_seconds, line) in PROFILES {
        let path = format!("/debug/pprof/{name}{}", if takes_seconds { "?seconds=10" } else { "" });
        let line = if has_token { with_token(line) } else { line.into() };
        let line = escaped(&line.replace("URL", &format!("http://{host}{path}")));
        rows.push_str(&format!(
            "<dt><a href=\"{path}\">{name}</a></dt>\n<dd>{what}\n<pre>{line}</pre></dd>\n"
        ));
    }
    let note = if cfg!(frame_pointers) {
        ""
    } else {
        "<p>This program was built without frame pointers: stacks are truncated.</p>"
    };
    let page = PAGE
        .replace("{profiles}", &rows)
        .replace("{note}", note)
        .replace("{default}", &DEFAULT_SECONDS.to_string())
        .replace("{max}", &MAX_SECONDS.to_string());
    Reply::new(200, "text/html; charset=utf-8", page)
        .with("Content-Security-Policy", GATE_POLICY)
        .with("Referrer-Policy", "no-referrer")
}

/// curl sends the token in a header; `go tool pprof` accepts only a URL.
fn with_token(line: &str) -> String {
    if line.starts_with("curl ") {
        line.replace("'URL'", "-H \"Authorization: Bearer $WS_CLUSTER_OPS_TOKEN\" 'URL'")
    } else {
        line.replace("'URL'", "\"URL&token=$WS_CLUSTER_OPS_TOKEN\"")
    }
}

/// Returns the same as text, for other clients.
pub fn list() -> String {
    let mut text = "not found. Available below /debug/pprof/:\n".to_string();
    for (name, what, takes_seconds, _) in PROFILES {
        let seconds = if takes_seconds { "?seconds=N" } else { "" };
        text.push_str(&format!("  {name}{seconds}: {what}\n"));
    }
    text
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Limits;
    use crate::wire::http::parse_head;

    fn page_of(request: &str, has_token: bool) -> String {
        let head = parse_head(request.as_bytes(), &Limits::default()).unwrap().unwrap();
        String::from_utf8(page(&head, has_token).body).unwrap()
    }

    #[test]
    fn it_names_all_with_lines_to_paste() {
        let page = page_of("GET /debug/pprof/ HTTP/1.1\r\nHost: node-1:6060\r\n\r\n", false);
        for (name, ..) in PROFILES {
            assert!(page.contains(&format!("http://node-1:6060/debug/pprof/{name}")), "{name}");
            assert!(list().contains(name));
        }
        assert!(page.contains("href=\"/debug/pprof/profile?seconds=10\""), "{page}");
        for left in ["{profiles}", "{note}", "{default}", "{max}"] {
            assert!(!page.contains(left), "{left}");
        }
        assert!(page.contains("1 to 300") && page.contains("30"));
    }

    #[test]
    fn lines_and_links_do_not_show_the_token() {
        let page = page_of("GET /debug/pprof/?token=abc HTTP/1.1\r\nHost: h\r\n\r\n", true);
        assert!(!page.contains("abc"), "{page}");
        for line in [
            "go tool pprof -http=: &quot;http://h/debug/pprof/profile?seconds=10&amp;token=\
             $WS_CLUSTER_OPS_TOKEN&quot;",
            "curl -fo flamegraph.svg -H &quot;Authorization: Bearer $WS_CLUSTER_OPS_TOKEN&quot; \
             'http://h/debug/pprof/flamegraph?seconds=10'",
        ] {
            assert!(page.contains(line), "{line} in {page}");
        }
    }

    #[test]
    fn what_a_client_sent_is_no_markup() {
        let page = page_of("GET /debug/pprof/ HTTP/1.1\r\nHost: h<i\r\n\r\n", false);
        assert!(!page.contains("h<i"), "{page}");
    }
}
