//! `/debug/pprof/`: what there is, each with a line to paste.

use super::super::server::Reply;
use super::{DEFAULT_SECONDS, MAX_SECONDS};
use crate::wire::http::Head;
use crate::wire::params::{Params, encode};

const PAGE: &str = include_str!("index.html");
/// Where a client says no host.
const DEFAULT_HOST: &str = "127.0.0.1:6060";

/// What there is: the path below `/debug/pprof/`, what it is, whether it takes `seconds`, and a
/// line to paste, in which `URL` stands for the address.
const PROFILES: [(&str, &str, bool, &str); 4] = [
    (
        "profile",
        "Where the threads spend processor time: a profile for go tool pprof, Speedscope and \
         others (pprof's protobuf in gzip).",
        true,
        "go tool pprof -http=: 'URL'",
    ),
    (
        "flamegraph",
        "The same as a flame graph, an SVG for the browser.",
        true,
        "curl -fo flamegraph.svg 'URL'",
    ),
    (
        "heap",
        "Memory, as the allocator, the kernel and the node itself count it: text.",
        false,
        "curl -f 'URL'",
    ),
    (
        "cmdline",
        "The node's arguments, with NULs between them; secrets are masked.",
        false,
        "curl -fs 'URL' | xargs -0 echo",
    ),
];

/// The page for people.
pub fn page(head: &Head<'_>) -> Reply {
    let host = head.host.filter(|host| host.is_ascii()).unwrap_or(DEFAULT_HOST);
    let params = Params::parse(head.query.unwrap_or("").as_bytes()).unwrap_or_default();
    let token = params.get("token").map(|token| {
        let mut text = b"token=".to_vec();
        encode(token, &mut text);
        String::from_utf8_lossy(&text).into_owned()
    });
    let mut rows = String::new();
    for (name, what, takes_seconds, line) in PROFILES {
        let seconds = takes_seconds.then(|| "seconds=10".to_string());
        let query: Vec<String> = seconds.into_iter().chain(token.clone()).collect();
        let mark = if query.is_empty() { "" } else { "?" };
        let path = format!("/debug/pprof/{name}{mark}{}", query.join("&"));
        let line = escaped(&line.replace("URL", &format!("http://{host}{path}")));
        let path = escaped(&path);
        rows.push_str(&format!(
            "<dt><a href=\"{path}\">{name}</a></dt>\n<dd>{what}\n<pre>{line}</pre></dd>\n"
        ));
    }
    let note = if cfg!(frame_pointers) {
        ""
    } else {
        "<p>This program was built without frame pointers: stacks are cut short.</p>"
    };
    let page = PAGE
        .replace("{profiles}", &rows)
        .replace("{note}", note)
        .replace("{default}", &DEFAULT_SECONDS.to_string())
        .replace("{max}", &MAX_SECONDS.to_string());
    Reply::new(200, "text/html; charset=utf-8", page)
}

/// The same as text, for whoever asked for something else.
pub fn list() -> String {
    let mut text = "not here. There is, below /debug/pprof/:\n".to_string();
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

    fn page_of(request: &str) -> String {
        let head = parse_head(request.as_bytes(), &Limits::default()).unwrap().unwrap();
        String::from_utf8(page(&head).body).unwrap()
    }

    #[test]
    fn it_names_all_with_lines_to_paste() {
        let page = page_of("GET /debug/pprof/ HTTP/1.1\r\nHost: node-1:6060\r\n\r\n");
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
    fn what_a_client_sent_is_no_markup() {
        let page = page_of("GET /debug/pprof/?token=a%22%3Cb%26c HTTP/1.1\r\nHost: h<i\r\n\r\n");
        assert!(page.contains("seconds=10&amp;token=a%22%3Cb%26c\""), "{page}");
        assert!(!page.contains("<b") && !page.contains("h<i"), "{page}");
    }
}
