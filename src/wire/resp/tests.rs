//! Bytes of a real Redis (7.0), invalid input, and property tests; the crate `redis-protocol`
//! independently determines the length and kind of a reply.

use super::*;
use proptest::collection::{hash_map, hash_set, vec};
use proptest::prelude::*;
use redis_protocol::resp2::types::OwnedFrame as Frame2;
use redis_protocol::resp3::types::OwnedFrame as Frame3;
use redis_protocol::{resp2, resp3};

const MAX_BYTES: usize = 1_000;

fn message<'a>(channel: &'a [u8], payload: &'a [u8]) -> Reply<'a> {
    Reply::Message { channel, payload }
}

fn bulk(out: &mut Vec<u8>, string: &[u8]) {
    write_length(out, b'$', string.len());
    out.extend_from_slice(string);
    out.extend_from_slice(b"\r\n");
}

fn message_bytes(kind: u8, channel: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    write_length(&mut bytes, kind, 3);
    for string in [b"message", channel, payload] {
        bulk(&mut bytes, string);
    }
    bytes
}

/// The reply is complete with its last byte and not before, whatever follows.
fn check_whole(bytes: &[u8], reply: Reply<'_>) {
    for end in 0..bytes.len() {
        assert_eq!(read(&bytes[..end], MAX_BYTES), Ok(None), "{:?}", bytes[..end].escape_ascii());
    }
    for tail in [&b""[..], b"\r\n", b"+OK\r\n", b"x"] {
        let bytes_and_tail = [bytes, tail].concat();
        let got = read(&bytes_and_tail, MAX_BYTES);
        assert_eq!(got, Ok(Some((reply, bytes.len()))), "{:?}", bytes.escape_ascii());
        assert_eq!(read_any(&bytes_and_tail, MAX_BYTES), got);
    }
}

/// Rejected from some byte on, always with the same error.
fn check_refused(bytes: &[u8], error: RespError) {
    let text = bytes.escape_ascii();
    let mut is_refused = false;
    for end in 0..=bytes.len() {
        let got = read(&bytes[..end], MAX_BYTES);
        assert_eq!(read_any(&bytes[..end], MAX_BYTES), got);
        is_refused |= got.is_err();
        assert_eq!(got, if is_refused { Err(error) } else { Ok(None) }, "{text:?} to {end}");
    }
    assert!(is_refused, "{text:?}");
}

#[test]
fn a_subscriber_of_resp3() {
    let hello =
        b"%7\r\n$6\r\nserver\r\n$5\r\nredis\r\n$7\r\nversion\r\n$6\r\n7.0.15\r\n$5\r\nproto\
        \r\n:3\r\n$2\r\nid\r\n:4\r\n$4\r\nmode\r\n$10\r\nstandalone\r\n$4\r\nrole\r\n$6\r\nmaster\
        \r\n$7\r\nmodules\r\n*0\r\n";
    let session: &[(&[u8], Reply<'_>)] = &[
        (hello, Reply::Server { mode: b"standalone", role: b"master" }),
        (b">3\r\n$9\r\nsubscribe\r\n$1\r\nc\r\n:1\r\n", Reply::Subscribed { channel: b"c" }),
        (b">3\r\n$9\r\nsubscribe\r\n$1\r\nd\r\n:2\r\n", Reply::Subscribed { channel: b"d" }),
        (b"+PONG\r\n", Reply::Pong),
        (b">3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$7\r\npayload\r\n", message(b"c", b"payload")),
        (b":1\r\n", Reply::Integer(1)),
        (b"_\r\n", Reply::Other),
        (
            b">3\r\n$11\r\nunsubscribe\r\n$1\r\nc\r\n:1\r\n",
            Reply::Unsubscribed { channel: Some(b"c") },
        ),
        (b">3\r\n$11\r\nunsubscribe\r\n_\r\n:0\r\n", Reply::Unsubscribed { channel: None }),
        (b">3\r\n$10\r\npsubscribe\r\n$2\r\nc*\r\n:1\r\n", Reply::Other),
        (b">4\r\n$8\r\npmessage\r\n$2\r\nc*\r\n$1\r\nc\r\n$2\r\np2\r\n", Reply::Other),
        (b">3\r\n$10\r\nssubscribe\r\n$1\r\ns\r\n:1\r\n", Reply::Other),
        (b",1.5\r\n", Reply::Other),
        (b"~0\r\n", Reply::Other),
        (b"+OK\r\n", Reply::Simple(b"OK")),
        (b">2\r\n$10\r\ninvalidate\r\n*1\r\n$1\r\nk\r\n", Reply::Other),
        (b">2\r\n$10\r\ninvalidate\r\n_\r\n", Reply::Other),
        (b"=22\r\ntxt:Redis ver. 7.0.15\n\r\n", Reply::Other),
    ];
    let mut stream = Vec::new();
    for (bytes, reply) in session {
        check_whole(bytes, *reply);
        stream.extend_from_slice(bytes);
    }
    let (mut at, mut seen) = (0, Vec::new());
    while let Ok(Some((reply, taken))) = read(&stream[at..], MAX_BYTES) {
        seen.push(reply);
        at += taken;
    }
    assert!(at == stream.len() && seen.iter().eq(session.iter().map(|(_, reply)| reply)));
}

#[test]
fn what_redis_says_of_itself() {
    let parameter = |value| Reply::Parameter { name: b"proto-max-bulk-len", value };
    let replica = Reply::Role { role: b"slave", master: Some((b"10.0.0.1", 6379)) };
    let replies: &[(&[u8], Reply<'_>)] = &[
        (b"*3\r\n$6\r\nmaster\r\n:14\r\n*1\r\n*3\r\n$1\r\nh\r\n$4\r\n6380\r\n$1\r\n0\r\n", {
            Reply::Role { role: b"master", master: None }
        }),
        (b"*5\r\n$5\r\nslave\r\n$8\r\n10.0.0.1\r\n:6379\r\n$9\r\nconnected\r\n:14\r\n", replica),
        (b"*2\r\n$8\r\nsentinel\r\n*1\r\n$1\r\nm\r\n", {
            Reply::Role { role: b"sentinel", master: None }
        }),
        (b"%1\r\n$18\r\nproto-max-bulk-len\r\n$7\r\n1048576\r\n", parameter(b"1048576")),
        (b"*2\r\n$18\r\nproto-max-bulk-len\r\n$1\r\n0\r\n", parameter(b"0")),
        (b"%1\r\n$9\r\nmaxmemory\r\n$1\r\n0\r\n", {
            Reply::Parameter { name: b"maxmemory", value: b"0" }
        }),
        (b"%1\r\n$4\r\nsave\r\n$1\r\n0\r\n", Reply::Other),
    ];
    for (bytes, reply) in replies {
        check_whole(bytes, *reply);
    }
}

#[test]
fn a_subscriber_of_resp2() {
    let refused = b"-ERR Can't execute 'publish': only (P|S)SUBSCRIBE / (P|S)UNSUBSCRIBE / PING / \
        QUIT / RESET are allowed in this context\r\n";
    let hello = b"*14\r\n$6\r\nserver\r\n$5\r\nredis\r\n$7\r\nversion\r\n$6\r\n7.0.15\r\n$5\r\n\
        proto\r\n:2\r\n$2\r\nid\r\n:3\r\n$4\r\nmode\r\n$10\r\nstandalone\r\n$4\r\nrole\r\n$6\r\n\
        master\r\n$7\r\nmodules\r\n*0\r\n";
    let session: &[(&[u8], Reply<'_>)] = &[
        (b"-NOAUTH Authentication required.\r\n", Reply::Error(b"NOAUTH Authentication required.")),
        (hello, Reply::Other),
        (b"$1\r\nb\r\n", Reply::Other),
        (b"$-1\r\n", Reply::Other),
        (b"*-1\r\n", Reply::Other),
        (b"*3\r\n$9\r\nsubscribe\r\n$1\r\nc\r\n:1\r\n", Reply::Subscribed { channel: b"c" }),
        (b"*2\r\n$4\r\npong\r\n$0\r\n\r\n", Reply::Pong),
        (b"*3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$2\r\n{}\r\n", message(b"c", b"{}")),
        (refused, Reply::Error(&refused[1..refused.len() - 2])),
        (
            b"*3\r\n$11\r\nunsubscribe\r\n$1\r\nd\r\n:0\r\n",
            Reply::Unsubscribed { channel: Some(b"d") },
        ),
        (b"*3\r\n$11\r\nunsubscribe\r\n$-1\r\n:0\r\n", Reply::Unsubscribed { channel: None }),
        (b"*3\r\n$10\r\npsubscribe\r\n$2\r\nc*\r\n:1\r\n", Reply::Other),
        (b"+RESET\r\n", Reply::Simple(b"RESET")),
    ];
    session.iter().for_each(|(bytes, reply)| check_whole(bytes, *reply));
}

/// The output of `DEBUG PROTOCOL` of a real Redis, and what no Redis sends but may.
#[test]
fn every_type() {
    let attributed =
        b"|1\r\n$14\r\nkey-popularity\r\n*2\r\n$7\r\nkey:123\r\n:90\r\n$39\r\nSome real \
        reply following the attribute\r\n";
    for (bytes, reply) in [
        (&b"$11\r\nHello World\r\n"[..], Reply::Other),
        (b":12345\r\n", Reply::Integer(12_345)),
        (b",3.141\r\n", Reply::Other),
        (b"*3\r\n:0\r\n:1\r\n:2\r\n", Reply::Other),
        (b"~3\r\n:0\r\n:1\r\n:2\r\n", Reply::Other),
        (b"%3\r\n:0\r\n#f\r\n:1\r\n#t\r\n:2\r\n#f\r\n", Reply::Other),
        (attributed, Reply::Other),
        (b">2\r\n$16\r\nserver-cpu-usage\r\n:42\r\n", Reply::Other),
        (b"=29\r\ntxt:This is a verbatim\nstring\r\n", Reply::Other),
        (b"#t\r\n", Reply::Other),
        (b"(1234567999999999999999999999999999999\r\n", Reply::Other),
        // The same, nested.
        (b"(-1\r\n", Reply::Other),
        (b":-9223372036854775808\r\n", Reply::Integer(i64::MIN)),
        (b":+7\r\n", Reply::Integer(7)),
        (b",-inf\r\n", Reply::Other),
        (b",nan\r\n", Reply::Other),
        (b",1e-7\r\n", Reply::Other),
        (b"!8\r\nERR a\r\nb\r\n", Reply::Error(b"ERR a\r\nb")),
        (b"+\r\n", Reply::Simple(b"")),
        (b"$0\r\n\r\n", Reply::Other),
        (b"$2\r\n\r\n\r\n", Reply::Other),
        (b"*0\r\n", Reply::Other),
        (b">0\r\n", Reply::Other),
        (b"%0\r\n", Reply::Other),
        (b"=4\r\nmkd:\r\n", Reply::Other),
        // Attributes: before a reply, inside one, about a member of another, and without members.
        (b"|1\r\n+a\r\n:1\r\n+OK\r\n", Reply::Simple(b"OK")),
        (b"|0\r\n|1\r\n|0\r\n:1\r\n|0\r\n:2\r\n:3\r\n", Reply::Integer(3)),
        (
            b"|0\r\n>3\r\n|1\r\n:1\r\n*1\r\n:1\r\n$7\r\nmessage\r\n$1\r\nc\r\n|0\r\n$1\r\np\r\n",
            message(b"c", b"p"),
        ),
        (b"*2\r\n*1\r\n|1\r\n:1\r\n:2\r\n:3\r\n:4\r\n", Reply::Other),
    ] {
        check_whole(bytes, reply);
    }
}

#[test]
fn what_only_looks_like_a_message() {
    for bytes in [
        &b">3\r\n$7\r\nmessage\r\n$1\r\nc\r\n:1\r\n"[..],
        b">3\r\n$7\r\nmessage\r\n$-1\r\n$1\r\np\r\n",
        b">3\r\n$7\r\nmessage\r\n+c\r\n$1\r\np\r\n",
        b">3\r\n$7\r\nmessage\r\n*1\r\n$1\r\nc\r\n$1\r\np\r\n",
        b">3\r\n+message\r\n$1\r\nc\r\n$1\r\np\r\n",
        b">2\r\n$7\r\nmessage\r\n$1\r\nc\r\n",
        b">4\r\n$7\r\nmessage\r\n$1\r\nc\r\n$1\r\np\r\n:1\r\n",
        b"~3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$1\r\np\r\n",
        b"*1\r\n>3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$1\r\np\r\n",
        b"*3\r\n$9\r\nsubscribe\r\n$1\r\nc\r\n$1\r\n1\r\n",
        b"*3\r\n$9\r\nsubscribe\r\n$-1\r\n:1\r\n",
        b"*2\r\n$4\r\npong\r\n$1\r\nx\r\n",
        b">2\r\n$4\r\npong\r\n$0\r\n\r\n",
    ] {
        check_whole(bytes, Reply::Other);
    }
}

#[test]
fn what_is_not_resp() {
    for bytes in [
        &b"x"[..],
        b"\r\n",
        b"PING\r\n",
        b"+OK\rx",
        b"+OK\n",
        b"+O\r\r\n",
        b"$\r\n",
        b"$+1\r\na\r\n",
        b"$-2\r\n",
        b"$-0\r\n",
        b"$-1x",
        b"$-1\n",
        b"$01\r\na\r\n",
        b"$00\r\n\r\n",
        b"$1 \r\na\r\n",
        b"$1\n",
        b"$1\r\nab\r\n",
        b"$1\r\na\n",
        b"$1\r\na\rb",
        b"$?\r\n;1\r\na\r\n;0\r\n",
        b"*?\r\n:1\r\n.\r\n",
        b"*1\r\n.\r\n",
        b"*-2\r\n",
        b">-1\r\n",
        b"~-1\r\n",
        b"%-1\r\n",
        b"|-1\r\n",
        b"!-1\r\n",
        b"=-1\r\n",
        b"=3\r\ntxt\r\n",
        b"=4\r\ntext\r\n",
        b":\r\n",
        b":-\r\n",
        b":1.0\r\n",
        b":9223372036854775808\r\n",
        b": 1\r\n",
        b",\r\n",
        b",x\r\n",
        b",1,5\r\n",
        b"(\r\n",
        b"(-\r\n",
        b"(1e3\r\n",
        b"#\r\n",
        b"#T\r\n",
        b"#true\r\n",
        b"_x\r\n",
        b">3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$1\r\npp\r\n",
        b">3\r\n$7\r\nmessage\r\n$01\r\nc\r\n$1\r\np\r\n",
        b"*3\r\n$7\r\nmessage\r\n$1\r\nc\rx",
        b"*1\r\nx",
    ] {
        check_refused(bytes, RespError::Malformed);
    }
}

#[test]
fn the_limits() {
    let fits = vec![b'x'; MAX_BYTES];
    check_whole(&message_bytes(b'>', b"c", &fits), message(b"c", &fits));
    for bytes in [
        &b"$1001\r\n"[..],
        b"$99999999999999999999999999999999\r\n",
        b"!1001",
        b"=1001",
        b"*1\r\n$1001",
        b">3\r\n$7\r\nmessage\r\n$1001",
        b">3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$1001\r\n",
        b"|1\r\n$1001",
    ] {
        check_refused(bytes, RespError::TooLong);
    }
    let short = message_bytes(b'>', b"c", b"p");
    assert_eq!(read(&short, 6), Err(RespError::TooLong), "the word itself is too long");
    assert_eq!(read(&short, 7), Ok(Some((message(b"c", b"p"), short.len()))));
    let huge = format!("${}\r\n", usize::MAX);
    assert_eq!(read(huge.as_bytes(), usize::MAX), Err(RespError::TooLong));
    let huge = format!("${}\r\n", isize::MAX);
    assert_eq!(read(huge.as_bytes(), usize::MAX), Ok(None));

    for kind in ["+", "-", "(", ":", ","] {
        let digits = "1".repeat(MAX_LINE_BYTES);
        let line = format!("{kind}{digits}");
        assert_eq!(read(line.as_bytes(), 0), Ok(None));
        assert_eq!(read(format!("{line}\r").as_bytes(), 0), Ok(None));
        let whole = read(format!("{line}\r\n").as_bytes(), 0).map(|whole| whole.map(|(_, n)| n));
        let refused = Err(RespError::Malformed);
        assert_eq!(whole, if kind == ":" { refused } else { Ok(Some(line.len() + 2)) });
        assert_eq!(read(format!("{line}1").as_bytes(), 0), Err(RespError::TooLong));
        assert_eq!(read(format!("{line}1\r\n").as_bytes(), 0), Err(RespError::TooLong));
    }

    check_refused(b"*4097", RespError::TooMany);
    check_refused(b">99999999999999999999999999999999", RespError::TooMany);
    check_refused(b"%2049", RespError::TooMany);
    check_refused(b"*2\r\n%2048", RespError::TooMany);
    check_refused(b"*4095\r\n*1\r\n:1\r\n:1\r\n*1", RespError::TooMany);
    let all = [&b"*4096\r\n"[..], &b":1\r\n".repeat(4_096)].concat();
    assert_eq!(read(&all, 0), Ok(Some((Reply::Other, all.len()))));
    let all = [&b"%2048\r\n"[..], &b":1\r\n".repeat(4_096)].concat();
    assert_eq!(read(&all, 0), Ok(Some((Reply::Other, all.len()))));
    assert_eq!(read(&b"|0\r\n".repeat(4_096), 0), Ok(None));
    assert_eq!(read(&b"|0\r\n".repeat(4_097), 0), Err(RespError::TooMany));

    for kind in ["*1\r\n", "~1\r\n", ">1\r\n", "%1\r\n+k\r\n"] {
        check_whole(format!("{}:1\r\n", kind.repeat(8)).as_bytes(), Reply::Other);
        check_whole(format!("{}*-1\r\n", kind.repeat(8)).as_bytes(), Reply::Other);
        check_refused(kind.repeat(9).as_bytes(), RespError::TooDeep);
        check_refused(format!("{}*0\r\n", kind.repeat(8)).as_bytes(), RespError::TooDeep);
    }
    check_refused("|1\r\n".repeat(9).as_bytes(), RespError::TooDeep);
    assert_eq!(read(&b"*1\r\n".repeat(100_000), 0), Err(RespError::TooDeep));
}

/// If the part of a payload that has arrived were scanned, this would take for ever.
#[test]
fn waiting_for_a_payload_costs_its_head_only() {
    let max_bytes = 64 << 20;
    for kind in [b'>', b'*'] {
        let bytes = message_bytes(kind, b"c", &vec![b'\r'; max_bytes]);
        for end in bytes.len() - 100_000..bytes.len() {
            assert_eq!(read(&bytes[..end], max_bytes), Ok(None));
        }
        assert!(matches!(read(&bytes, max_bytes), Ok(Some((Reply::Message { .. }, _)))));
    }
}

#[test]
fn commands() {
    let mut out = b"before".to_vec();
    write_command(&mut out, &[b"SUBSCRIBE", b"", b"a\r\nb\0\xff"]);
    assert_eq!(out, b"before*3\r\n$9\r\nSUBSCRIBE\r\n$0\r\n\r\n$6\r\na\r\nb\0\xff\r\n");
}

/// A keyword, or anything.
fn string() -> impl Strategy<Value = Vec<u8>> {
    let words = &["message", "subscribe", "unsubscribe", "pong", "", "\r\n", "$1\r\n"];
    prop_oneof![
        3 => prop::sample::select(&words[..]).prop_map(|word| word.as_bytes().to_vec()),
        2 => vec(any::<u8>(), 0..40),
    ]
}

fn line() -> impl Strategy<Value = String> {
    prop_oneof![Just("PONG".into()), Just("OK".into()), "[^\r\n]{0,20}"]
}

fn leaf3(attributes: Option<resp3::types::OwnedAttributes>) -> impl Strategy<Value = Frame3> {
    use resp3::types::VerbatimStringFormat::{Markdown, Text};
    let given = attributes.clone();
    let leaves = (0..10, string(), line(), any::<(bool, i64, f64, i128)>());
    leaves.prop_map(move |(kind, data, line, (truth, integer, double, big))| {
        let attributes = given.clone();
        match kind {
            0 => Frame3::BlobError { data, attributes },
            1 => Frame3::SimpleString { data: line.into(), attributes },
            2 => Frame3::SimpleError { data: line, attributes },
            3 => Frame3::Boolean { data: truth, attributes },
            4 => Frame3::Null,
            5 => Frame3::Number { data: integer, attributes },
            6 => Frame3::Double { data: double, attributes },
            7 => Frame3::BigNumber { data: big.to_string().into(), attributes },
            8 => {
                let format = if truth { Text } else { Markdown };
                Frame3::VerbatimString { data, format, attributes }
            }
            _ => Frame3::BlobString { data, attributes },
        }
    })
}

fn attributes3() -> impl Strategy<Value = Option<resp3::types::OwnedAttributes>> {
    prop_oneof![
        3 => Just(None),
        1 => hash_map(leaf3(None), leaf3(None), 1..3).prop_map(Some),
    ]
}

/// The shape of a known reply, with members that may or may not fit it.
fn shape3() -> impl Strategy<Value = Vec<Frame3>> {
    let blob = || string().prop_map(|data| Frame3::BlobString { data, attributes: None });
    let number = any::<i64>().prop_map(|data| Frame3::Number { data, attributes: None });
    let last = prop_oneof![3 => blob(), 3 => number, 1 => leaf3(None)];
    let middle = prop_oneof![5 => blob(), 1 => Just(Frame3::Null), 1 => leaf3(None)];
    let members = (blob(), middle, vec(last, 0..3));
    members.prop_map(|(first, second, rest)| [vec![first, second], rest].concat())
}

fn frame3() -> impl Strategy<Value = Frame3> {
    let inner = attributes3().prop_flat_map(leaf3).prop_recursive(4, 40, 5, |inner| {
        let parts = (vec(inner.clone(), 0..5), attributes3());
        prop_oneof![
            parts.prop_map(|(data, attributes)| Frame3::Array { data, attributes }),
            (hash_map(leaf3(None), inner, 0..4), attributes3())
                .prop_map(|(data, attributes)| Frame3::Map { data, attributes }),
            (hash_set(leaf3(None), 0..4), attributes3())
                .prop_map(|(data, attributes)| Frame3::Set { data, attributes }),
        ]
    });
    let members = prop_oneof![shape3(), vec(inner.clone(), 0..5)];
    let listed = (any::<bool>(), members, attributes3()).prop_map(|(is_push, data, attributes)| {
        if is_push { Frame3::Push { data, attributes } } else { Frame3::Array { data, attributes } }
    });
    prop_oneof![inner, listed]
}

fn encode3(frame: &Frame3) -> Vec<u8> {
    use resp3::types::Resp3Frame;
    let mut bytes = vec![0; frame.encode_len(false)];
    let length = resp3::encode::complete::encode(&mut bytes, frame, false).unwrap();
    bytes.truncate(length);
    bytes
}

fn expected3(frame: &Frame3) -> Reply<'_> {
    use Frame3::{Array, BlobError, BlobString, Null, Number, Push, SimpleError, SimpleString};
    let (data, is_push) = match frame {
        SimpleString { data, .. } if data == b"PONG" => return Reply::Pong,
        SimpleString { data, .. } => return Reply::Simple(data),
        SimpleError { data, .. } => return Reply::Error(data.as_bytes()),
        BlobError { data, .. } => return Reply::Error(data),
        Number { data, .. } => return Reply::Integer(*data),
        Array { data, .. } => (data, false),
        Push { data, .. } => (data, true),
        _ => return Reply::Other,
    };
    let [BlobString { data: word, .. }, rest @ ..] = &data[..] else { return Reply::Other };
    match (&word[..], rest) {
        (b"message", [BlobString { data: channel, .. }, BlobString { data: payload, .. }]) => {
            message(channel, payload)
        }
        (b"subscribe", [BlobString { data: channel, .. }, Number { .. }]) => {
            Reply::Subscribed { channel }
        }
        (b"unsubscribe", [BlobString { data: channel, .. }, Number { .. }]) => {
            Reply::Unsubscribed { channel: Some(channel) }
        }
        (b"unsubscribe", [Null, Number { .. }]) => Reply::Unsubscribed { channel: None },
        (b"pong", [BlobString { data, .. }]) if data.is_empty() && !is_push => Reply::Pong,
        _ => Reply::Other,
    }
}

fn frame2() -> impl Strategy<Value = Frame2> {
    let leaf = prop_oneof![
        3 => string().prop_map(Frame2::BulkString),
        1 => line().prop_map(|line| Frame2::SimpleString(line.into())),
        1 => line().prop_map(Frame2::Error),
        2 => any::<i64>().prop_map(Frame2::Integer),
        1 => Just(Frame2::Null),
    ];
    leaf.prop_recursive(4, 40, 5, |inner| vec(inner, 0..5).prop_map(Frame2::Array))
}

fn expected2(frame: &Frame2) -> Reply<'_> {
    use Frame2::{Array, BulkString, Error, Integer, Null, SimpleString};
    let data = match frame {
        SimpleString(text) if text == b"PONG" => return Reply::Pong,
        SimpleString(text) => return Reply::Simple(text),
        Error(text) => return Reply::Error(text.as_bytes()),
        Integer(number) => return Reply::Integer(*number),
        Array(data) => data,
        _ => return Reply::Other,
    };
    let [BulkString(word), rest @ ..] = &data[..] else { return Reply::Other };
    match (&word[..], rest) {
        (b"message", [BulkString(channel), BulkString(payload)]) => message(channel, payload),
        (b"subscribe", [BulkString(channel), Integer(_)]) => Reply::Subscribed { channel },
        (b"unsubscribe", [BulkString(channel), Integer(_)]) => {
            Reply::Unsubscribed { channel: Some(channel) }
        }
        (b"unsubscribe", [Null, Integer(_)]) => Reply::Unsubscribed { channel: None },
        (b"pong", [BulkString(text)]) if text.is_empty() => Reply::Pong,
        _ => Reply::Other,
    }
}

proptest! {
    #[test]
    fn redis_protocol_agrees_on_resp3(frame in frame3()) {
        let bytes = encode3(&frame);
        check_whole(&bytes, expected3(&frame));
        let (_, taken) = resp3::decode::complete::decode(&bytes).unwrap().unwrap();
        prop_assert_eq!(taken, bytes.len());
    }

    #[test]
    fn redis_protocol_agrees_on_resp2(frame in frame2()) {
        use resp2::types::Resp2Frame;
        let mut bytes = vec![0; frame.encode_len(false)];
        let length = resp2::encode::encode(&mut bytes, &frame, false).unwrap();
        bytes.truncate(length);
        check_whole(&bytes, expected2(&frame));
        let (_, taken) = resp2::decode::decode(&bytes).unwrap().unwrap();
        prop_assert_eq!(taken, bytes.len());
    }

    #[test]
    fn messages_come_back(is_push: bool, channel in string(), payload in string()) {
        let bytes = message_bytes(if is_push { b'>' } else { b'*' }, &channel, &payload);
        check_whole(&bytes, message(&channel, &payload));
        prop_assert_eq!(
            read_message(&bytes, MAX_BYTES),
            Some((message(&channel, &payload), bytes.len()))
        );
    }

    #[test]
    fn commands_come_back(args in vec(string(), 0..6)) {
        let mut bytes = Vec::new();
        write_command(&mut bytes, &args.iter().map(Vec::as_slice).collect::<Vec<_>>());
        let frame = Frame2::Array(args.into_iter().map(Frame2::BulkString).collect());
        let (decoded, taken) = resp2::decode::decode(&bytes).unwrap().unwrap();
        prop_assert_eq!(taken, bytes.len());
        check_whole(&bytes, expected2(&frame));
        prop_assert_eq!(decoded, frame);
    }

    /// Also for near-messages, and for limits that are just too small.
    #[test]
    fn the_fast_path_says_what_the_other_says(
        is_push: bool,
        channel in string(),
        payload in string(),
        change in prop::option::of((any::<prop::sample::Index>(), any::<u8>())),
        max_bytes in prop_oneof![Just(MAX_BYTES), 0usize..50, 0usize..10],
    ) {
        let mut bytes = message_bytes(if is_push { b'>' } else { b'*' }, &channel, &payload);
        if let Some((at, byte)) = change {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        for end in 0..=bytes.len() {
            let (bytes, any) = (&bytes[..end], read_any(&bytes[..end], max_bytes));
            prop_assert_eq!(read(bytes, max_bytes), any);
            if let Some(whole) = read_message(bytes, max_bytes) {
                prop_assert_eq!(any, Ok(Some(whole)));
            }
        }
    }

    /// The verdict on the first bytes stays the same when more arrive.
    #[test]
    fn more_bytes_change_nothing(
        bytes in vec(prop::sample::select(&b"+-:$*_#,(!=%~>|?01234\r\n\r\n\r\nat"[..]), 0..60),
    ) {
        let mut said = Ok(None);
        for end in 0..=bytes.len() {
            let now = read(&bytes[..end], 3);
            prop_assert!(said == Ok(None) || said == now);
            said = now;
        }
    }
}
