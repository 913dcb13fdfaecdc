//! The parameters of `GET /ws/connect`.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use smallvec::SmallVec;
use std::borrow::Cow;

use super::http::{Head, PROTOCOL, QueryProtocol};
use super::params::Params;
use super::request::{ApiError, Credentials, Source};
use super::tags::{TagList, split};
use crate::types::{EventSet, Limits, is_device, is_name, unknown};

/// Who wants to connect, and in which role.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connect<'a> {
    pub credentials: Credentials<'a>,
    pub peer: Peer<'a>,
    pub device: Option<&'a str>,
    /// In the given order, without duplicates.
    pub tags: SmallVec<[&'a str; 8]>,
    /// Unix seconds at which the session ends unless it is refreshed.
    pub session_exp: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer<'a> {
    /// `type=1`, the default.
    Client { uid: &'a str },
    /// `type=2`; `events`: those it subscribes to.
    BusinessServer { uid: Option<&'a str>, events: EventSet },
}

/// Returns the query of a handshake, from the URL or from a subprotocol: there it stays out of the
/// access logs of proxies, which contain the URL.
pub fn query_of<'a>(head: &Head<'a>) -> Result<Cow<'a, [u8]>, ApiError> {
    let in_url = head.query.unwrap_or("");
    let encoded = match head.query_protocol {
        QueryProtocol::None => return Ok(Cow::Borrowed(in_url.as_bytes())),
        QueryProtocol::Several => {
            return Err(ApiError::bad("Sec-WebSocket-Protocol has several queries (q.…)"));
        }
        QueryProtocol::One(encoded) => encoded,
    };
    if !head.offers_protocol {
        let msg = format!(
            "Sec-WebSocket-Protocol has a query (q.…) without {PROTOCOL}, which the answer would \
             select: offer both"
        );
        return Err(ApiError::bad(msg));
    }
    if !in_url.is_empty() {
        return Err(ApiError::bad(
            "the query is in the URL and in Sec-WebSocket-Protocol (q.…): use one of them",
        ));
    }
    URL_SAFE_NO_PAD.decode(encoded).map(Cow::Owned).map_err(|_| {
        ApiError::bad(
            "the query in Sec-WebSocket-Protocol (q.…) must be base64url (A-Z a-z 0-9 - _) without \
             padding",
        )
    })
}

/// Parses the parameters of a handshake; 400 if anything is malformed or missing. The caller reads
/// [`Credentials`] first and checks the signature, or its absence.
pub fn parse_connect<'a>(params: &'a Params<'_>, limits: &Limits) -> Result<Connect<'a>, ApiError> {
    let session_exp = params.given("session_exp").map(|exp| exp.unix_seconds("session_exp"));
    Ok(Connect {
        credentials: Credentials::from_params(params, limits)?,
        peer: read_peer(params, limits.uid_bytes)?,
        device: read_device(params, limits.device_bytes)?,
        tags: read_tags(params.get("tags").unwrap_or(""), limits)?,
        session_exp: session_exp.transpose()?,
    })
}

fn read_peer<'a>(params: &'a Params<'_>, max_bytes: usize) -> Result<Peer<'a>, ApiError> {
    let uid = params.get("uid");
    if uid.is_some_and(|uid| !is_name(uid, max_bytes)) {
        let msg = format!("uid must be 1-{max_bytes} bytes without control characters or commas");
        return Err(ApiError::bad(msg));
    }
    match (params.get("type").unwrap_or("1"), uid) {
        ("1", Some(uid)) => Ok(Peer::Client { uid }),
        ("1", None) => Err(ApiError::bad("uid is missing: add the id of the user")),
        ("2", uid) => Ok(Peer::BusinessServer { uid, events: read_events(params)? }),
        _ => Err(ApiError::bad("type must be 1 (client) or 2 (business server)")),
    }
}

/// All events by default.
fn read_events(params: &Params<'_>) -> Result<EventSet, ApiError> {
    let Some(list) = params.get("events") else { return Ok(EventSet::ALL) };
    split(list).enumerate().try_fold(EventSet::NONE, |set, (index, name)| {
        let event = EventSet::named(name).ok_or_else(|| {
            let reason = unknown("event", name, &EventSet::NAMES);
            ApiError::bad(format!("events must be known events: events[{index}] is an {reason}"))
        })?;
        Ok(set.union(event))
    })
}

fn read_device<'a>(params: &'a Params<'_>, max_bytes: usize) -> Result<Option<&'a str>, ApiError> {
    match params.get("device") {
        Some(device) if !is_device(device, max_bytes) => {
            Err(ApiError::bad(format!("device must be 1-{max_bytes} bytes of [a-z0-9_-]")))
        }
        device => Ok(device),
    }
}

/// An empty list means no tags. Duplicate tags count once.
fn read_tags<'t>(list: &'t str, limits: &Limits) -> Result<SmallVec<[&'t str; 8]>, ApiError> {
    let mut tags = TagList::new(limits);
    let read = split(list).try_for_each(|tag| tags.push(tag)).and_then(|()| tags.finish());
    read.map_err(|error| ApiError::bad(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::http::parse_head;
    use proptest::prelude::*;

    fn refusal(query: &str) -> String {
        let params = Params::parse(query.as_bytes()).unwrap();
        let error = parse_connect(&params, &Limits::default()).unwrap_err();
        assert_eq!(error.status, 400);
        error.msg.into_owned()
    }

    #[test]
    fn a_client_connects() {
        let query = "pid=1&uid=u+1&device=ios&tags=b,+a+,b&exp=9&session_exp=10&sign=ab&events=x";
        let params = Params::parse(query.as_bytes()).unwrap();
        let connect = parse_connect(&params, &Limits::default()).unwrap();
        assert_eq!(connect.peer, Peer::Client { uid: "u 1" });
        assert_eq!(connect.device, Some("ios"));
        assert_eq!(connect.tags.as_slice(), ["b", "a"]);
        assert_eq!(connect.session_exp, Some(10));
        let credentials = Credentials { pid: "1".into(), exp: Some(9), sign: Some("ab") };
        assert_eq!(connect.credentials, credentials);
    }

    #[test]
    fn a_business_server_needs_no_uid() {
        let params = Params::parse(b"pid=1&type=2&tags=").unwrap();
        let connect = parse_connect(&params, &Limits::default()).unwrap();
        assert_eq!(connect.peer, Peer::BusinessServer { uid: None, events: EventSet::ALL });
        assert!(connect.tags.is_empty() && connect.credentials.sign.is_none());
    }

    #[test]
    fn a_business_server_narrows_what_it_is_told_of() {
        let params = Params::parse(b"pid=1&uid=s&type=2&events=request,+node").unwrap();
        let connect = parse_connect(&params, &Limits::default()).unwrap();
        let events = EventSet::REQUEST.union(EventSet::NODE);
        assert_eq!(connect.peer, Peer::BusinessServer { uid: Some("s"), events });
    }

    #[test]
    fn refusals_name_the_parameter() {
        let cases = [
            ("uid=u", "pid is missing"),
            ("pid=a/b&uid=u", "pid must be"),
            ("pid=1", "uid is missing"),
            ("pid=1&uid=", "uid must be"),
            ("pid=1&uid=a,b", "uid must be"),
            ("pid=1&uid=u&type=3", "type must be"),
            ("pid=1&uid=u&type=", "type must be"),
            ("pid=1&uid=u&type=01", "type must be"),
            ("pid=1&uid=u&device=iOS", "device must be"),
            ("pid=1&uid=u&tags=a,,b", "tags must be a list, each element 1-128 bytes without"),
            ("pid=1&uid=u&exp=soon", "exp must be"),
            ("pid=1&uid=u&session_exp=-1", "session_exp must be"),
            (
                "pid=1&type=2&events=request,connects",
                "events must be known events: events[1] is an unknown event \"connects\"",
            ),
            (
                "pid=1&type=2&events=request,",
                "events must be known events: events[1] is an unknown event \"\"",
            ),
            ("pid=1&uid=u&session_exp=1700000000000", "session_exp must be in unix seconds: 17"),
        ];
        for (query, start) in cases {
            let msg = refusal(query);
            assert!(msg.starts_with(start), "{query}: {msg}");
        }
    }

    #[test]
    fn the_query_is_in_one_place() {
        let query = |target: &str, protocols: &str| {
            let head = format!(
                "GET /ws/connect{target} HTTP/1.1\r\nHost: x\r\n\
                 Sec-WebSocket-Protocol: {protocols}\r\n\r\n"
            );
            let head = parse_head(head.as_bytes(), &Limits::default()).unwrap().unwrap();
            let query = query_of(&head).map(|query| String::from_utf8(query.into()).unwrap());
            query.map_err(|error| (error.status, error.msg.into_owned()))
        };
        assert_eq!(query("?a=b", "x"), Ok("a=b".into()));
        assert_eq!(query("?a=b", "ws-cluster, Q.YQ"), Ok("a=b".into()));
        for target in ["", "?"] {
            assert_eq!(query(target, "ws-cluster"), Ok(String::new()));
            assert_eq!(query(target, "ws-cluster, q.YT1iJmM9w6k"), Ok("a=b&c=é".into()));
            assert_eq!(query(target, "q.YT1i,x,ws-cluster"), Ok("a=b".into()));
            let two_fields = "q.YT1i\r\nsec-websocket-protocol: ws-cluster";
            assert_eq!(query(target, two_fields), Ok("a=b".into()));
            assert_eq!(query(target, "ws-cluster,q."), Ok(String::new()));
        }
        for (target, protocols, word) in [
            ("?a=b", "ws-cluster, q.YT1i", "use one of them"),
            ("", "q.YT1i", "offer both"),
            ("", "ws-clusters, q.YT1i", "offer both"),
            ("", "ws-cluster, q.YT1i, q.YT1i", "several"),
            ("", "ws-cluster, q.YT1i\r\nSec-WebSocket-Protocol: q.YT1i", "several"),
            ("", "ws-cluster, q.YQ==", "base64url"),
            ("", "ws-cluster, q.YR", "base64url"),
            ("", "ws-cluster, q.Y", "base64url"),
            ("", "ws-cluster, q.++++", "base64url"),
            ("", "ws-cluster, q.YT1i YT1i", "base64url"),
            ("", "ws-cluster, q.\u{e9}", "base64url"),
        ] {
            let (status, msg) = query(target, protocols).unwrap_err();
            assert!(status == 400 && msg.contains(word), "{target} {protocols}: {msg}");
        }
    }

    #[test]
    fn tags_are_bounded_once_repetitions_are_gone() {
        let list = |count: usize| (0..count).map(|i| format!("t{i},")).collect::<String>() + "t0";
        let limits = Limits::default();
        assert_eq!(read_tags(&list(256), &limits).unwrap().len(), 256);
        assert!(read_tags(&list(257), &limits).is_err());
        let limits = Limits { tags: 2, ..limits };
        assert_eq!(read_tags("a,b,a", &limits).unwrap().as_slice(), ["a", "b"]);
        let error = read_tags("a,b,c", &limits).unwrap_err();
        assert_eq!(error.msg, "too many tags: at most 2 for one connection");
    }

    #[test]
    fn names_are_bounded_in_bytes() {
        let limits = Limits {
            pid_bytes: 2,
            uid_bytes: 3,
            tag_bytes: 4,
            device_bytes: 5,
            ..Limits::default()
        };
        let read = |query: &str| {
            let params = Params::parse(query.as_bytes()).unwrap();
            parse_connect(&params, &limits).map(drop).map_err(|error| error.msg)
        };
        assert_eq!(read("pid=pp&uid=uuu&tags=tttt,t&device=ddddd"), Ok(()));
        for (query, start) in [
            ("pid=ppp&uid=u", "pid must be 1-2 bytes"),
            ("pid=p&uid=uuuu", "uid must be 1-3 bytes"),
            ("pid=p&type=2&uid=uuuu", "uid must be 1-3 bytes"),
            ("pid=p&uid=u&tags=t,ttttt", "tags must be a list, each element 1-4 bytes"),
            ("pid=p&uid=u&device=dddddd", "device must be 1-5 bytes"),
        ] {
            let msg = read(query).unwrap_err();
            assert!(msg.starts_with(start), "{query}: {msg}");
        }
    }

    proptest! {
        #[test]
        fn any_query_cut_anywhere_never_panics(query in "[a-z0-9=&%,+]{0,60}") {
            let query = format!("pid=1&uid=u&tags={query}&type=1");
            for cut in 0..=query.len() {
                if let Ok(params) = Params::parse(&query.as_bytes()[..cut]) {
                    let _ = parse_connect(&params, &Limits::default());
                }
            }
        }
    }
}
