//! A strict parser for HTTP/1.x request heads (RFC 9110, RFC 9112): whatever two parsers could
//! interpret differently (request smuggling) is rejected, never repaired.

use std::mem::MaybeUninit;

use crate::types::Limits;

/// Upper bound of [`Limits::head_fields`].
pub const MAX_FIELDS: usize = 256;

/// The subprotocol of WebSocket connections.
pub const PROTOCOL: &str = "ws-cluster";

/// Replaces a signature that cannot be read.
pub(super) const NO_SIGN: &str = "?";

/// Why a request is rejected: the status and the message for the client.
///
/// After an error of [`parse_head`] or [`super::chunked::Chunked`] the start of the next request is
/// unknown: respond and close.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{status}: {msg}")]
pub struct HttpError {
    pub status: u16,
    pub msg: &'static str,
}

/// The error for a body over [`Limits::body_bytes`].
pub const TOO_LARGE: HttpError =
    HttpError { status: 413, msg: "the body is larger than --max_body_bytes" };

impl HttpError {
    pub(crate) const fn bad(msg: &'static str) -> Self {
        Self { status: 400, msg }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    Http10,
    Http11,
}

/// How the request's body is delimited (RFC 9112, section 6.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Body {
    /// Neither Content-Length nor Transfer-Encoding: no body.
    None,
    /// A body of this number of bytes, not yet checked against [`Limits::body_bytes`].
    Length(u64),
    Chunked,
}

/// A request's head, borrowed from the buffer it was read into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head<'a> {
    pub method: &'a str,
    /// Raw (not decoded), up to the `?`; `*` only with OPTIONS.
    pub path: &'a str,
    /// Raw (not decoded), without the `?`.
    pub query: Option<&'a str>,
    pub version: Version,
    /// Length of the head in the buffer; the body starts there.
    pub head_len: usize,
    pub keep_alive: bool,
    pub body: Body,
    /// The client waits for `100 Continue` before it sends the body.
    pub expect_continue: bool,
    /// The authority of an absolute target, or else the Host field.
    pub host: Option<&'a str>,
    pub origin: Option<&'a str>,
    pub content_type: Option<&'a str>,
    pub x_sign: Option<&'a str>,
    pub authorization: Option<&'a str>,
    /// The last one given: any choice is a valid response.
    pub accept: Option<&'a str>,
    /// The browser's description of the page that made the request (Fetch Metadata).
    pub sec_fetch_site: Option<&'a str>,
    pub traceparent: Option<&'a str>,
    /// The last one given: an omission only costs a transfer.
    pub if_none_match: Option<&'a str>,
    /// `websocket` is among the tokens of Upgrade.
    pub upgrade_websocket: bool,
    /// `upgrade` is among the tokens of Connection.
    pub connection_upgrade: bool,
    pub sec_websocket_key: Option<&'a str>,
    pub sec_websocket_version: Option<&'a str>,
    /// The client offers the subprotocol [`PROTOCOL`].
    pub offers_protocol: bool,
    /// The query that it offers as a subprotocol.
    pub query_protocol: QueryProtocol<'a>,
    /// The first content coding other than `identity`.
    pub content_encoding: Option<&'a str>,
    /// The field Idempotency-Key is present.
    pub has_idempotency_key: bool,
    pub access_control_request_headers: Option<&'a str>,
}

/// A subprotocol that is not one: `q.` and the query of a handshake.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum QueryProtocol<'a> {
    #[default]
    None,
    /// The query, still encoded.
    One(&'a [u8]),
    Several,
}

impl Head<'_> {
    /// Whether the body has this media type; parameters such as `charset` are ignored.
    pub fn content_is(&self, media_type: &str) -> bool {
        let essence = self.content_type.unwrap_or("").split(';').next().unwrap_or("");
        essence.trim_ascii().eq_ignore_ascii_case(media_type)
    }
}

/// Parses one request head at the start of `buf`, which may hold more data after it.
///
/// `Ok(None)`: the head is incomplete and still within the limits; call again with more bytes.
/// Empty lines before the request line are skipped and count towards the head.
pub fn parse_head<'a>(buf: &'a [u8], limits: &Limits) -> Result<Option<Head<'a>>, HttpError> {
    let within = &buf[..buf.len().min(limits.head_bytes)];
    let mut fields = [const { MaybeUninit::uninit() }; MAX_FIELDS];
    let mut request = httparse::Request::new(&mut []);
    let field_limit = limits.head_fields.min(MAX_FIELDS);
    let parsed = request.parse_with_uninit_headers(within, &mut fields[..field_limit]);
    let head_len = match parsed.map_err(refusal)? {
        httparse::Status::Complete(head_len) => head_len,
        httparse::Status::Partial if buf.len() < limits.head_bytes => return Ok(None),
        httparse::Status::Partial => {
            return Err(HttpError {
                status: 431,
                msg: "the request's head is larger than --max_head_bytes",
            });
        }
    };
    if has_bare_lf(&within[..head_len]) {
        return Err(HttpError::bad("a line of the head does not end in CR LF"));
    }
    let method = request.method.unwrap_or("");
    let version = if request.version == Some(0) { Version::Http10 } else { Version::Http11 };
    let target = parse_target(method, request.path.unwrap_or(""))?;
    let mut seen = Fields::default();
    for field in request.headers.iter() {
        seen.add(field.name, field.value)?;
    }
    if version == Version::Http11 && seen.host.is_none() {
        return Err(HttpError::bad("Host is missing"));
    }
    Ok(Some(Head {
        method,
        path: target.path,
        query: target.query,
        version,
        head_len,
        keep_alive: seen.keep_alive(version),
        body: seen.body(version)?,
        expect_continue: seen.expect_continue && version == Version::Http11,
        host: target.authority.or(seen.host),
        origin: seen.origin,
        content_type: seen.content_type,
        x_sign: seen.x_sign,
        authorization: seen.authorization,
        accept: seen.accept,
        sec_fetch_site: seen.sec_fetch_site,
        traceparent: seen.traceparent,
        if_none_match: seen.if_none_match,
        upgrade_websocket: seen.upgrade_websocket,
        connection_upgrade: seen.connection_upgrade,
        sec_websocket_key: seen.sec_websocket_key,
        sec_websocket_version: seen.sec_websocket_version,
        offers_protocol: seen.offers_protocol,
        query_protocol: seen.query_protocol,
        content_encoding: seen.content_encoding,
        has_idempotency_key: seen.has_idempotency_key,
        access_control_request_headers: seen.access_control_request_headers,
    }))
}

fn refusal(error: httparse::Error) -> HttpError {
    use httparse::Error;
    match error {
        Error::TooManyHeaders => HttpError {
            status: 431,
            msg: "the request has more header fields than --max_head_fields",
        },
        Error::Version => HttpError::bad("the version is not HTTP/1.0 or HTTP/1.1"),
        Error::Token | Error::Status => HttpError::bad("the request line is malformed"),
        Error::NewLine => HttpError::bad("a line of the head does not end in CR LF"),
        Error::HeaderName => HttpError::bad("the name of a header field is malformed"),
        Error::HeaderValue => HttpError::bad("the value of a header field is malformed"),
    }
}

/// httparse accepts a lone LF as the end of a line; not every proxy in front of us does. No early
/// exit, so that the loop is vectorized.
fn has_bare_lf(head: &[u8]) -> bool {
    let after_other = |found, pair: &[u8]| found | ((pair[1] == b'\n') & (pair[0] != b'\r'));
    head.first() == Some(&b'\n') || head.windows(2).fold(false, after_other)
}

struct Target<'a> {
    authority: Option<&'a str>,
    path: &'a str,
    query: Option<&'a str>,
}

fn parse_target<'a>(method: &str, target: &'a str) -> Result<Target<'a>, HttpError> {
    if !target.bytes().all(|b| b.is_ascii_graphic() && b != b'#') {
        return Err(HttpError::bad(
            "the target has a fragment or a byte that must be percent-encoded",
        ));
    }
    if target == "*" && method == "OPTIONS" {
        return Ok(Target { authority: None, path: target, query: None });
    }
    let (authority, rest) = if target.starts_with('/') {
        (None, target)
    } else {
        let Some(absolute) = strip_scheme(target) else {
            return Err(HttpError::bad("the target is neither a path nor an http URL"));
        };
        let end = absolute.find(['/', '?']).unwrap_or(absolute.len());
        let (authority, rest) = absolute.split_at(end);
        if authority.is_empty() || !is_host(authority) {
            return Err(HttpError::bad("the target's host is malformed"));
        }
        (Some(authority), rest)
    };
    let (path, query) = match rest.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (rest, None),
    };
    Ok(Target { authority, path: if path.is_empty() { "/" } else { path }, query })
}

fn strip_scheme(target: &str) -> Option<&str> {
    ["http://", "https://"].iter().find_map(|scheme| {
        let head = target.get(..scheme.len())?;
        head.eq_ignore_ascii_case(scheme).then(|| &target[scheme.len()..])
    })
}

fn is_host(text: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_graphic() && !matches!(b, b'/' | b'?' | b'#' | b'@' | b',');
    text.bytes().all(allowed)
}

/// The header fields that matter, gathered in one pass.
#[derive(Default)]
struct Fields<'a> {
    host: Option<&'a str>,
    origin: Option<&'a str>,
    content_type: Option<&'a str>,
    x_sign: Option<&'a str>,
    traceparent: Option<&'a str>,
    authorization: Option<&'a str>,
    accept: Option<&'a str>,
    sec_fetch_site: Option<&'a str>,
    if_none_match: Option<&'a str>,
    sec_websocket_key: Option<&'a str>,
    sec_websocket_version: Option<&'a str>,
    offers_protocol: bool,
    query_protocol: QueryProtocol<'a>,
    content_encoding: Option<&'a str>,
    has_idempotency_key: bool,
    access_control_request_headers: Option<&'a str>,
    content_length: Option<&'a str>,
    transfer_encoding: Option<&'a str>,
    expect_continue: bool,
    upgrade_websocket: bool,
    connection_upgrade: bool,
    connection_close: bool,
}

impl<'a> Fields<'a> {
    fn add(&mut self, name: &str, value: &'a [u8]) -> Result<(), HttpError> {
        // The length rules out almost every field before any bytes are compared.
        let is = |wanted: &str| name.eq_ignore_ascii_case(wanted);
        match name.len() {
            4 if is("host") => {
                once(&mut self.host, value, "Host is given twice")?;
                if !self.host.is_some_and(is_host) {
                    return Err(HttpError::bad("Host is malformed"));
                }
            }
            6 if is("origin") => once(&mut self.origin, value, "Origin is given twice")?,
            6 if is("x-sign") => {
                // Non-text is not a valid signature: 401.
                let sign = std::str::from_utf8(value).unwrap_or(NO_SIGN).as_bytes();
                once(&mut self.x_sign, sign, "X-Sign is given twice")?;
            }
            6 if is("accept") => self.accept = std::str::from_utf8(value).ok(),
            6 if is("expect") => {
                self.expect_continue = value.eq_ignore_ascii_case(b"100-continue");
            }
            7 if is("upgrade") => {
                self.upgrade_websocket |=
                    tokens(value).any(|t| t.eq_ignore_ascii_case(b"websocket"));
            }
            10 if is("connection") => self.add_connection(value),
            11 if is("traceparent") => self.add_traceparent(value),
            12 if is("content-type") => {
                once(&mut self.content_type, value, "Content-Type is given twice")?;
            }
            13 if is("authorization") => {
                once(&mut self.authorization, value, "Authorization is given twice")?;
            }
            13 if is("if-none-match") => self.if_none_match = std::str::from_utf8(value).ok(),
            14 if is("sec-fetch-site") => {
                // Non-text is not this node's own page.
                self.sec_fetch_site = Some(std::str::from_utf8(value).unwrap_or("cross-site"));
            }
            14 if is("content-length") => {
                once(&mut self.content_length, value, "Content-Length is given twice")?;
            }
            15 if is("idempotency-key") => self.has_idempotency_key = true,
            16 if is("content-encoding") => self.add_content_encoding(value),
            17 if is("transfer-encoding") => {
                once(&mut self.transfer_encoding, value, "Transfer-Encoding is given twice")?;
            }
            17 if is("sec-websocket-key") => {
                once(&mut self.sec_websocket_key, value, "Sec-WebSocket-Key is given twice")?;
            }
            21 if is("sec-websocket-version") => {
                let twice = "Sec-WebSocket-Version is given twice";
                once(&mut self.sec_websocket_version, value, twice)?;
            }
            22 if is("sec-websocket-protocol") => self.add_protocols(value),
            29 | 30 => self.add_preflight(name, value)?,
            _ => {}
        }
        Ok(())
    }

    /// A duplicate starts a new trace (W3C Trace Context, section 3.2.1).
    fn add_traceparent(&mut self, value: &'a [u8]) {
        let is_first = self.traceparent.is_none();
        self.traceparent = std::str::from_utf8(value).ok().filter(|_| is_first).or(Some(""));
    }

    fn add_connection(&mut self, value: &[u8]) {
        for token in tokens(value) {
            self.connection_upgrade |= token.eq_ignore_ascii_case(b"upgrade");
            self.connection_close |= token.eq_ignore_ascii_case(b"close");
        }
    }

    fn add_protocols(&mut self, value: &'a [u8]) {
        for token in tokens(value) {
            self.offers_protocol |= token == PROTOCOL.as_bytes();
            if let Some(query) = token.strip_prefix(b"q.") {
                self.query_protocol = match self.query_protocol {
                    QueryProtocol::None => QueryProtocol::One(query),
                    _ => QueryProtocol::Several,
                };
            }
        }
    }

    /// Fields of the preflight that a browser sends before a cross-origin request.
    fn add_preflight(&mut self, name: &str, value: &'a [u8]) -> Result<(), HttpError> {
        if name.eq_ignore_ascii_case("access-control-request-headers") {
            let twice = "Access-Control-Request-Headers is given twice";
            once(&mut self.access_control_request_headers, value, twice)?;
        }
        Ok(())
    }

    fn add_content_encoding(&mut self, value: &'a [u8]) {
        let is_coding = |t: &&[u8]| !t.is_empty() && !t.eq_ignore_ascii_case(b"identity");
        let coding = tokens(value).find(is_coding);
        let coding = coding.map(|coding| std::str::from_utf8(coding).unwrap_or("?"));
        self.content_encoding = self.content_encoding.or(coding);
    }

    fn keep_alive(&self, version: Version) -> bool {
        // An HTTP/1.0 client that asks for keep-alive waits for a field that confirms it: closing
        // is simpler.
        !self.connection_close && version == Version::Http11
    }

    fn body(&self, version: Version) -> Result<Body, HttpError> {
        match (self.transfer_encoding, self.content_length) {
            (None, None) => Ok(Body::None),
            (None, Some(digits)) => parse_length(digits),
            (Some(_), Some(_)) => {
                Err(HttpError::bad("Transfer-Encoding and Content-Length exclude each other"))
            }
            (Some(coding), None)
                if version == Version::Http11 && coding.eq_ignore_ascii_case("chunked") =>
            {
                Ok(Body::Chunked)
            }
            (Some(_), None) => {
                Err(HttpError::bad("Transfer-Encoding must be exactly chunked, over HTTP/1.1"))
            }
        }
    }
}

fn parse_length(digits: &str) -> Result<Body, HttpError> {
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(HttpError::bad("Content-Length is not one decimal number"));
    }
    let length = digits.parse();
    length.map(Body::Length).map_err(|_| TOO_LARGE)
}

fn once<'a>(
    slot: &mut Option<&'a str>,
    value: &'a [u8],
    twice: &'static str,
) -> Result<(), HttpError> {
    let text = std::str::from_utf8(value)
        .map_err(|_| HttpError::bad("the value of a header field is not UTF-8"))?;
    match slot.replace(text) {
        None => Ok(()),
        Some(_) => Err(HttpError::bad(twice)),
    }
}

/// Iterates over the elements of a comma-separated field value.
fn tokens(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|&b| b == b',').map(<[u8]>::trim_ascii)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> Result<Option<Head<'_>>, HttpError> {
        parse_head(text.as_bytes(), &Limits::default())
    }

    fn head(text: &str) -> Head<'_> {
        parse(text).unwrap().unwrap()
    }

    fn status(text: &str) -> u16 {
        match parse(text) {
            Err(error) => error.status,
            Ok(head) => panic!("{text:?} was taken: {head:?}"),
        }
    }

    const HANDSHAKE: &str = "GET /ws/connect?pid=1&uid=u%201 HTTP/1.1\r\nHost: a.example:8812\r\n\
        Upgrade: WebSocket\r\nConnection: keep-alive, Upgrade\r\nOrigin: https://a.example\r\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";

    #[test]
    fn a_handshake_is_read_in_one_pass() {
        let head = head(HANDSHAKE);
        assert_eq!((head.method, head.path), ("GET", "/ws/connect"));
        assert_eq!(head.query, Some("pid=1&uid=u%201"));
        assert_eq!(head.head_len, HANDSHAKE.len());
        assert_eq!(head.host, Some("a.example:8812"));
        assert_eq!(head.origin, Some("https://a.example"));
        assert_eq!(head.sec_websocket_key, Some("dGhlIHNhbXBsZSBub25jZQ=="));
        assert_eq!(head.sec_websocket_version, Some("13"));
        assert!(head.upgrade_websocket && head.connection_upgrade && head.keep_alive);
        assert_eq!(head.body, Body::None);
    }

    #[test]
    fn a_post_keeps_what_follows_for_the_next() {
        let text = "\r\n\r\nPOST /ws/push HTTP/1.1\r\nhost: x\r\nCONTENT-TYPE: Application/JSON ; \
            charset=utf-8\r\nX-Sign:  ab \r\nContent-Length: 2\r\nExpect: 100-Continue\r\n\r\n\
            {}GET /";
        let head = head(text);
        assert_eq!(head.if_none_match, None);
        assert_eq!(&text[head.head_len..], "{}GET /");
        assert_eq!(head.body, Body::Length(2));
        assert_eq!(head.x_sign, Some("ab"));
        assert!(head.expect_continue && head.content_is("application/json"));
        assert!(!head.content_is("application"));
    }

    #[test]
    fn codings_of_the_body_and_offered_protocols_are_noted() {
        let noted = |fields: &str| {
            let text = format!("POST / HTTP/1.1\r\nHost: x\r\n{fields}\r\n");
            let head = head(&text);
            let coding = head.content_encoding.map(str::to_owned);
            (coding, head.has_idempotency_key, head.offers_protocol)
        };
        assert_eq!(
            noted("Content-Encoding: Identity\r\nContent-Encoding:\r\n"),
            (None, false, false)
        );
        let both = "content-encoding: identity, gzip\r\nIdempotency-Key: k\r\n";
        assert_eq!(noted(both), (Some("gzip".into()), true, false));
        let offers = |list: &str| noted(&format!("Sec-WebSocket-Protocol: {list}\r\n")).2;
        assert!(offers("ws-cluster") && offers("a, ws-cluster,q.eA"));
        assert!(offers("a\r\nSec-WebSocket-Protocol: ws-cluster"));
        assert!(!offers("ws-clusters, x") && !offers("WS-Cluster") && !offers(""));
    }

    #[test]
    fn keep_alive_follows_version_and_connection() {
        let cases = [
            ("HTTP/1.1", "", true),
            ("HTTP/1.1", "Connection: close\r\n", false),
            ("HTTP/1.1", "Connection: x\r\nConnection: Keep-Alive, CLOSE\r\n", false),
            ("HTTP/1.1", "If-None-Match: \"a\"\r\nIf-None-Match: \"b\"\r\n", true),
            ("HTTP/1.0", "", false),
            ("HTTP/1.0", "Connection: keep-alive\r\n", false),
        ];
        for (version, fields, keep_alive) in cases {
            let text = format!("GET / {version}\r\nHost: x\r\n{fields}\r\n");
            assert_eq!(head(&text).keep_alive, keep_alive, "{text:?}");
        }
        assert_eq!(head("GET / HTTP/1.0\r\n\r\n").host, None);
    }

    #[test]
    fn absolute_targets_are_stripped() {
        let cases = [
            ("http://a.example/p?q=1", "/p", Some("q=1"), "a.example"),
            ("HTTP://[::1]:80/p", "/p", None, "[::1]:80"),
            ("http://a", "/", None, "a"),
            ("https://a?q", "/", Some("q"), "a"),
            ("//p?", "//p", Some(""), "h"),
        ];
        for (target, path, query, host) in cases {
            let text = format!("GET {target} HTTP/1.1\r\nHost: h\r\n\r\n");
            let head = head(&text);
            assert_eq!((head.path, head.query, head.host), (path, query, Some(host)), "{target}");
        }
        assert_eq!(head("OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n").path, "*");
        for bad in
            ["*", "p", "http://", "http:///p", "http://u@h/", "ftp://h/", "/a#b", "/\u{e9}", "h:80"]
        {
            assert_eq!(status(&format!("GET {bad} HTTP/1.1\r\nHost: h\r\n\r\n")), 400, "{bad}");
        }
    }

    #[test]
    fn what_could_be_understood_in_two_ways_is_refused() {
        let bad = [
            "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
            "Content-Length: 5\r\nContent-Length: 5\r\n",
            "Content-Length: 5, 5\r\n",
            "Content-Length: +5\r\n",
            "Content-Length: 0x5\r\n",
            "Content-Length:\r\n",
            "Content-Length: 5 5\r\n",
            "Transfer-Encoding: gzip, chunked\r\n",
            "Transfer-Encoding: identity\r\n",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding:\r\n",
            "Host: second\r\n",
            "A: b\r\n folded\r\n",
            " A: b\r\n",
            "A : b\r\n",
            "A\r\n",
            ": b\r\n",
            "A: b\nC: d\r\n",
            "A: b\rC: d\r\n",
            "A: \0\r\n",
            "A\0: b\r\n",
            "X-Sign: a\r\nX-Sign: b\r\n",
        ];
        for fields in bad {
            assert_eq!(
                status(&format!("POST / HTTP/1.1\r\nHost: x\r\n{fields}\r\n")),
                400,
                "{fields:?}"
            );
        }
        let lines = [
            "GET / HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n",
            "GET / HTTP/2.0\r\nHost: x\r\n\r\n",
            "GET / HTTP/1.2\r\nHost: x\r\n\r\n",
            "GET /\r\nHost: x\r\n\r\n",
            "GET  / HTTP/1.1\r\nHost: x\r\n\r\n",
            "GET / HTTP/1.1 \r\nHost: x\r\n\r\n",
            "GET / HTTP/1.1\nHost: x\n\n",
            "\nGET / HTTP/1.1\r\nHost: x\r\n\r\n",
            "G\tT / HTTP/1.1\r\nHost: x\r\n\r\n",
            "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n",
            "\u{16}\u{3}\u{1}",
        ];
        for text in lines {
            assert_eq!(status(text), 400, "{text:?}");
        }
        let chunked = "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: Chunked\r\n\r\n";
        assert_eq!(head(chunked).body, Body::Chunked);
        let huge = "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\n";
        assert_eq!(status(huge), 413);
    }

    #[test]
    fn heads_are_bounded_in_bytes_and_fields() {
        let start = "GET / HTTP/1.1\r\nHost: x\r\n";
        let filled = |bytes: usize| {
            let value = "v".repeat(bytes - start.len() - "A: \r\n\r\n".len());
            format!("{start}A: {value}\r\n\r\n")
        };
        assert_eq!(head(&filled(8 << 10)).head_len, 8 << 10);
        assert_eq!(status(&filled((8 << 10) + 1)), 431);
        assert_eq!(status(&format!("{start}A: {}", "v".repeat(9_000))), 431);
        assert_eq!(status(&format!("GET /{}", "v".repeat(9_000))), 431);
        assert_eq!(status(&"\r\n".repeat(4_096)), 431);
        assert!(parse(&format!("{start}{}\r\n", "A: b\r\n".repeat(99))).unwrap().is_some());
        assert_eq!(status(&format!("{start}{}\r\n", "A: b\r\n".repeat(100))), 431);
    }

    #[test]
    fn heads_are_bounded_as_the_limits_say() {
        let status = |fields: usize, limits: &Limits| {
            let text =
                format!("GET / HTTP/1.1\r\nHost: x\r\n{}\r\n", "A: b\r\n".repeat(fields - 1));
            parse_head(text.as_bytes(), limits).map(|head| head.is_some()).map_err(|e| e.status)
        };
        let limits = Limits { head_fields: MAX_FIELDS, ..Limits::default() };
        assert_eq!(status(MAX_FIELDS, &limits), Ok(true));
        assert_eq!(status(MAX_FIELDS + 1, &limits), Err(431));
        // 27 bytes, plus 6 for each field after the first.
        let limits = Limits { head_bytes: 27 + 6 * 10, ..limits };
        assert_eq!((status(11, &limits), status(12, &limits)), (Ok(true), Err(431)));
    }

    #[test]
    fn a_head_cut_anywhere_is_incomplete() {
        for cut in 0..HANDSHAKE.len() {
            assert_eq!(parse(&HANDSHAKE[..cut]), Ok(None), "cut at {cut}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse_head(&bytes, &Limits::default());
        }

        #[test]
        fn a_damaged_head_never_panics(
            at in 0..HANDSHAKE.len(), byte: u8, cut in 0..HANDSHAKE.len(),
        ) {
            let mut bytes = HANDSHAKE.as_bytes().to_vec();
            bytes[at] = byte;
            for end in [cut, bytes.len()] {
                if let Ok(Some(head)) = parse_head(&bytes[..end], &Limits::default()) {
                    prop_assert!(head.head_len <= end);
                    prop_assert!(bytes[..head.head_len].ends_with(b"\r\n\r\n"));
                }
            }
        }
    }
}
