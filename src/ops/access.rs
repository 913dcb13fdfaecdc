//! Access control of the ops ports. Without the token, a browser gets a page with a field for it;
//! any other client gets a text that names the header.

use super::asset::Asset;
use super::reply::Reply;
use crate::wire::http::Head;
use crate::wire::params::Params;
use crate::wire::sign::Token;

const GATE: &str = include_str!("pages/assets/gate.html");
/// The page contains nothing about a client or the node. What it shows once it has the token
/// inherits this policy, and a flame graph has its style and its script inline.
pub const GATE_POLICY: &str = "default-src 'none'; script-src 'self' 'unsafe-inline'; \
     style-src 'self' 'unsafe-inline'; img-src data:; connect-src 'self'; base-uri 'none'; \
     form-action 'none'; frame-ancestors 'none'";

/// The files with which the gate and the pages ask for the token. They are the same on every node.
const FILES: [Asset; 3] = [
    Asset::script("/gate.js", include_bytes!("pages/assets/gate.js")),
    Asset::script("/token.js", include_bytes!("pages/assets/token.js")),
    Asset::css("/token.css", include_bytes!("pages/assets/token.css")),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// No token is required, or the header carries it (RFC 6750, section 2.1).
    Granted,
    /// The URL carries it as `?token=` (section 2.3), for tools that accept only a URL.
    InAddress,
    Denied,
}

impl Access {
    pub fn of(demanded: Option<&Token>, head: &Head<'_>) -> Self {
        let Some(token) = demanded else { return Self::Granted };
        match head.authorization.and_then(|value| value.split_once(' ')) {
            Some((scheme, given)) if scheme.eq_ignore_ascii_case("bearer") && token.is(given) => {
                Self::Granted
            }
            Some(_) => Self::Denied,
            None => {
                let params = Params::parse(head.query.unwrap_or("").as_bytes());
                let is_right =
                    |params: Params<'_>| params.get("token").is_some_and(|t| token.is(t));
                if params.is_ok_and(is_right) { Self::InAddress } else { Self::Denied }
            }
        }
    }
}

/// Returns whether a person opens this URL: only browsers ask for HTML by name.
pub fn is_browser(head: &Head<'_>) -> bool {
    let types = head.accept.unwrap_or("").split(',');
    let mut names = types.map(|one| one.split(';').next().unwrap_or("").trim());
    names.any(|name| name.eq_ignore_ascii_case("text/html"))
}

/// Returns a file that is served without a token on every port.
pub fn file(head: &Head<'_>) -> Option<Reply> {
    FILES.iter().find(|file| file.path == head.path).map(|file| file.answer(head))
}

/// Returns the response to a missing or wrong token.
pub fn refusal(head: &Head<'_>) -> Reply {
    if is_browser(head) {
        return unauthorized(gate());
    }
    let text = "send Authorization: Bearer with the node's WS_CLUSTER_OPS_TOKEN\n";
    unauthorized(Reply::text(401, text))
}

/// Returns a page that takes the token out of the URL or asks for it, then shows what is there.
pub fn gate() -> Reply {
    Reply::new(200, "text/html; charset=utf-8", GATE)
        .with("Content-Security-Policy", GATE_POLICY)
        .with("Referrer-Policy", "no-referrer")
        .with("Cache-Control", "no-store")
}

/// Turns the reply into one for a client that must present a token first.
pub fn unauthorized(mut reply: Reply) -> Reply {
    reply.status = 401;
    reply.fields.retain(|(name, _)| !matches!(*name, "ETag" | "Cache-Control"));
    reply
        .with("Cache-Control", "no-store")
        .with("Vary", "Accept")
        .with("WWW-Authenticate", "Bearer realm=\"ws-cluster\"")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Limits;
    use crate::wire::http::parse_head;

    const TOKEN: &str = "a-token-of-24-characters";

    fn with_head<T>(target: &str, fields: &str, look: impl Fn(&Head<'_>) -> T) -> T {
        let request = format!("GET {target} HTTP/1.1\r\nHost: x\r\n{fields}\r\n");
        look(&parse_head(request.as_bytes(), &Limits::default()).unwrap().unwrap())
    }

    #[test]
    fn the_header_comes_before_the_address() {
        let token = Token::new(TOKEN.into());
        let right = format!("Authorization: bearer {TOKEN}\r\n");
        let wrong = "Authorization: Bearer another\r\n";
        let in_address = format!("/?token={TOKEN}");
        for (target, fields, expected) in [
            ("/", &*right, Access::Granted),
            ("/?token=no", &*right, Access::Granted),
            (&in_address, "", Access::InAddress),
            (&in_address, wrong, Access::Denied),
            ("/?token=no", "", Access::Denied),
            ("/", "", Access::Denied),
        ] {
            let access = with_head(target, fields, |head| Access::of(Some(&token), head));
            assert_eq!(access, expected, "{target} {fields}");
        }
        assert_eq!(with_head("/", wrong, |head| Access::of(None, head)), Access::Granted);
    }

    #[test]
    fn a_browser_asks_for_html_by_name() {
        for (accept, expected) in [
            ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", true),
            ("application/json, Text/HTML;q=0.5", true),
            ("*/*", false),
            ("text/plain", false),
        ] {
            let fields = format!("Accept: {accept}\r\n");
            assert_eq!(with_head("/", &fields, is_browser), expected, "{accept}");
        }
        assert!(!with_head("/", "", is_browser));
    }

    #[test]
    fn every_page_has_the_form_of_the_gate() {
        let (_, rest) = GATE.split_once("<form id=\"token\"").unwrap();
        let (_, fields) = rest.split_once('>').unwrap();
        let (fields, _) = fields.split_once("</form>").unwrap();
        for page in [
            include_str!("pages/assets/live/index.html"),
            include_str!("pages/assets/swagger/index.html"),
        ] {
            assert!(page.contains("<form id=\"token\" hidden>") && page.contains(fields));
        }
    }
}
