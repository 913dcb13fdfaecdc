//! Encodes HTTP/1.1 responses.

use super::date::HttpDate;
use super::json::write_string;

/// Appends a complete response: status line, `Date`, `extra` fields, body with its Content-Length.
///
/// `extra` and `content_type` must not contain CR or LF. A 204 and a 304 carry neither body nor
/// length (RFC 9110, section 8.6). An empty body has no Content-Type.
pub fn write_response(
    out: &mut Vec<u8>,
    status: u16,
    keep_alive: bool,
    date: HttpDate,
    extra: &[(&str, &str)],
    content_type: &str,
    body: &[u8],
) {
    let is_bodiless = matches!(status, 204 | 304);
    debug_assert!(!is_bodiless || body.is_empty());
    out.reserve(200 + body.len());
    write_status_line(out, status, date);
    for (name, value) in extra {
        write_field(out, name, value);
    }
    if !body.is_empty() {
        write_field(out, "Content-Type", content_type);
    }
    if !is_bodiless {
        write_field(out, "Content-Length", itoa::Buffer::new().format(body.len()));
    }
    if !keep_alive {
        write_field(out, "Connection", "close");
    }
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(body);
}

/// Appends an error response with the body `{"code":0,"msg":"…"}`.
pub fn write_refusal(
    out: &mut Vec<u8>,
    status: u16,
    keep_alive: bool,
    date: HttpDate,
    extra: &[(&str, &str)],
    msg: &str,
) {
    let mut body = Vec::with_capacity(msg.len() + 24);
    body.extend_from_slice(br#"{"code":0,"msg":"#);
    write_string(&mut body, msg);
    body.push(b'}');
    write_response(out, status, keep_alive, date, extra, "application/json", &body);
}

/// Appends the status line, and the date that every response has.
pub(super) fn write_status_line(out: &mut Vec<u8>, status: u16, date: HttpDate) {
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(itoa::Buffer::new().format(status).as_bytes());
    out.push(b' ');
    out.extend_from_slice(reason(status).as_bytes());
    out.extend_from_slice(b"\r\nDate: ");
    out.extend_from_slice(date.as_bytes());
    out.extend_from_slice(b"\r\n");
}

pub(super) fn write_field(out: &mut Vec<u8>, name: &str, value: &str) {
    debug_assert!(!name.bytes().chain(value.bytes()).any(|b| matches!(b, b'\r' | b'\n')));
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value.as_bytes());
    out.extend_from_slice(b"\r\n");
}

fn reason(status: u16) -> &'static str {
    match status {
        101 => "Switching Protocols",
        200 => "OK",
        204 => "No Content",
        304 => "Not Modified",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        411 => "Length Required",
        413 => "Content Too Large",
        415 => "Unsupported Media Type",
        421 => "Misdirected Request",
        426 => "Upgrade Required",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DATE: &str = "Date: Sun, 06 Nov 1994 08:49:37 GMT";

    fn date() -> HttpDate {
        HttpDate::at(784_111_777)
    }

    fn written(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        write(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_response_is_compact() {
        let out = written(|out| write_response(out, 200, true, date(), &[], "text/plain", b"ok"));
        let end = "Content-Type: text/plain\r\nContent-Length: 2\r\n\r\nok";
        assert_eq!(out, format!("HTTP/1.1 200 OK\r\n{DATE}\r\n{end}"));
        let vary = [("Vary", "Origin")];
        let out = written(|out| write_response(out, 204, true, date(), &vary, "", b""));
        assert_eq!(out, format!("HTTP/1.1 204 No Content\r\n{DATE}\r\nVary: Origin\r\n\r\n"));
        let tag = [("ETag", "\"1\"")];
        let out = written(|out| write_response(out, 304, true, date(), &tag, "", b""));
        assert_eq!(out, format!("HTTP/1.1 304 Not Modified\r\n{DATE}\r\nETag: \"1\"\r\n\r\n"));
    }

    #[test]
    fn a_refusal_says_why_in_json() {
        let extra = [("Retry-After", "1")];
        let msg = "a \"b\" \\ \n é";
        let out = written(|out| write_refusal(out, 503, false, date(), &extra, msg));
        let start = format!("HTTP/1.1 503 Service Unavailable\r\n{DATE}\r\nRetry-After: 1\r\n");
        let end = "Content-Type: application/json\r\nContent-Length: 35\r\nConnection: close\r\n\
                   \r\n{\"code\":0,\"msg\":\"a \\\"b\\\" \\\\ \\n é\"}";
        assert_eq!(out, start + end);
    }

    #[test]
    fn every_status_of_the_contract_has_its_phrase() {
        for status in
            [101, 200, 204, 400, 401, 403, 404, 405, 408, 411, 413, 415, 426, 429, 431, 503, 504]
        {
            assert!(!reason(status).is_empty(), "{status}");
        }
    }
}
