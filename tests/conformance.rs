//! RFC 6455 as the Autobahn test suite tests it, family by family, on raw sockets against a server
//! that echoes. A case is the bytes sent, the bytes that must come back, and the close code.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::thread;
use support::{Http, Raw, Server, masked, signed, unmasked};

const CONTINUATION: u8 = 0x00;
const TEXT: u8 = 0x01;
const BINARY: u8 = 0x02;
const CLOSE: u8 = 0x88;
const PING: u8 = 0x89;
const PONG: u8 = 0x8a;
const FIN: u8 = 0x80;

const NORMAL: u16 = 1000;
const PROTOCOL: u16 = 1002;
const NOT_UTF8: u16 = 1007;
const TOO_BIG: u16 = 1009;

const MESSAGE_LIMIT: usize = 17 << 20;

fn echo_server() -> Server {
    let limit = MESSAGE_LIMIT.to_string();
    Server::start(&[
        "--echo",
        "--workers",
        "1",
        "--max_message_bytes",
        &limit,
        "--outbox_bytes",
        "67108864",
    ])
}

/// The bytes to send, and the bytes that must come back.
#[derive(Clone)]
struct Case {
    name: String,
    out: Vec<u8>,
    back: Vec<u8>,
    end: End,
}

#[derive(Clone, Copy, Debug)]
enum End {
    /// The client closes with 1000 after everything it has sent, and gets the same code back.
    ByClient,
    /// The sent bytes contain a Close frame, which is answered with this code and no reason.
    Answered(u16),
    /// The server closes with this code and its own reason.
    Violation(u16),
}

impl Case {
    fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), out: Vec::new(), back: Vec::new(), end: End::ByClient }
    }

    fn send(mut self, first: u8, payload: impl AsRef<[u8]>) -> Self {
        self.out.extend(masked(first, payload.as_ref()));
        self
    }

    fn send_raw(mut self, bytes: &[u8]) -> Self {
        self.out.extend(bytes);
        self
    }

    fn back(mut self, first: u8, payload: impl AsRef<[u8]>) -> Self {
        self.back.extend(unmasked(first, payload.as_ref()));
        self
    }

    /// Adds a complete message, which comes back.
    fn echo(self, kind: u8, payload: impl AsRef<[u8]>) -> Self {
        self.send(FIN | kind, &payload).back(FIN | kind, payload)
    }

    fn ping(self, payload: impl AsRef<[u8]>) -> Self {
        self.send(PING, &payload).back(PONG, payload)
    }

    fn close(self, code: u16, reason: impl AsRef<[u8]>) -> Self {
        let payload = [&code.to_be_bytes(), reason.as_ref()].concat();
        self.send(CLOSE, payload).answered(code)
    }

    fn answered(self, code: u16) -> Self {
        Self { end: End::Answered(code), ..self }
    }

    fn violates(self, code: u16) -> Self {
        Self { end: End::Violation(code), ..self }
    }

    fn ping_unanswered(self) -> Self {
        self.send(PING, "")
    }

    /// Adds a message in fragments that end at `cuts`, and its echo.
    fn fragments(mut self, kind: u8, payload: &[u8], cuts: &[usize]) -> Self {
        let mut start = 0;
        for (index, &end) in cuts.iter().chain([&payload.len()]).enumerate() {
            let opcode = if index == 0 { kind } else { CONTINUATION };
            let fin = if index == cuts.len() { FIN } else { 0 };
            self = self.send(fin | opcode, &payload[start..end]);
            start = end;
        }
        self.back(FIN | kind, payload)
    }

    /// Runs it in one write, and in writes of one byte, or of several if it is long.
    fn run(&self, address: SocketAddr) {
        self.run_in_writes_of(usize::MAX, address);
        self.run_in_writes_of(if self.out.len() < 2_000 { 1 } else { 997 }, address);
    }

    fn run_in_writes_of(&self, bytes: usize, address: SocketAddr) {
        let mut raw = Raw::open(address, "/");
        let mut writer = raw.stream.try_clone().unwrap();
        let write = || {
            self.out.chunks(bytes).for_each(|part| writer.write_all(part).unwrap());
            if let End::ByClient = self.end {
                writer.write_all(&masked(CLOSE, &NORMAL.to_be_bytes())).unwrap();
            }
        };
        // Only data larger than the sockets' buffers must be read while it is written.
        if self.out.len() < 64 << 10 {
            let mut write = write;
            write();
            self.check(&mut raw);
        } else {
            thread::scope(|scope| {
                scope.spawn(write);
                self.check(&mut raw);
            });
        }
    }

    fn check(&self, raw: &mut Raw) {
        let mut back = vec![0; self.back.len()];
        let read = raw.stream.read_exact(&mut back);
        assert!(read.is_ok(), "{}: {read:?}", self.name);
        assert!(back == self.back, "{}: other bytes came back: {:.80?}…", self.name, back);
        let (first, payload) = raw.frame();
        assert_eq!(first, CLOSE, "{}: {payload:.80?}", self.name);
        let code = u16::from_be_bytes([payload[0], payload[1]]);
        let wanted = match self.end {
            End::ByClient => NORMAL,
            End::Answered(code) | End::Violation(code) => code,
        };
        assert_eq!(code, wanted, "{}", self.name);
        match self.end {
            End::Violation(_) => {
                let reason = std::str::from_utf8(&payload[2..]);
                assert!(reason.is_ok_and(|text| !text.is_empty()), "{}", self.name);
            }
            _ => assert_eq!(payload.len(), 2, "{}", self.name),
        }
        let rest = raw.stream.read(&mut [0]);
        assert!(matches!(rest, Ok(0)), "{}: no FIN after the Close frame: {rest:?}", self.name);
    }
}

fn run_all(cases: &[Case]) {
    let server = echo_server();
    cases.iter().for_each(|case| case.run(server.ws));
    server.stop();
}

/// Returns letters that make every position of a long text distinguishable from its neighbours.
fn letters(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| b'!' + (at % 89) as u8).collect()
}

fn octets(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| (at % 251) as u8 ^ 0xfe).collect()
}

fn of_kind(kind: u8, bytes: usize) -> Vec<u8> {
    if kind == TEXT { letters(bytes) } else { octets(bytes) }
}

#[test]
fn family_1_framing() {
    let mut cases = Vec::new();
    for kind in [TEXT, BINARY] {
        for bytes in [0, 1, 125, 126, 127, 128, 65_535, 65_536, 65_537] {
            let payload = of_kind(kind, bytes);
            cases.push(Case::new(format!("1: {bytes} bytes of {kind}")).echo(kind, payload));
        }
        let many = (0..300).fold(Case::new("1: one after the other"), |case, bytes| {
            case.echo(kind, of_kind(kind, bytes))
        });
        cases.push(many);
    }
    for (bits, length) in [(126, &[0u8, 125][..]), (127, &[0, 0, 0, 0, 0, 0, 255, 255])] {
        let head = [&[FIN | TEXT, 0x80 | bits], length].concat();
        cases.push(Case::new("1: a length too long").send_raw(&head).violates(PROTOCOL));
    }
    let sign = [FIN | BINARY, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0];
    cases.push(Case::new("1: a length with its top bit").send_raw(&sign).violates(PROTOCOL));
    let bare = unmasked(FIN | TEXT, b"bare");
    cases.push(Case::new("1: no mask").echo(TEXT, "x").send_raw(&bare).violates(PROTOCOL));
    run_all(&cases);
}

#[test]
fn family_2_pings_and_pongs() {
    let ten = |case: Case| (0..10).fold(case, |case, n| case.ping(format!("payload-{n}")));
    run_all(&[
        Case::new("2.1").ping(""),
        Case::new("2.2").ping("Hello, world!"),
        Case::new("2.3").ping([0x00, 0xff, 0xfe, 0xfd, 0xfc, 0xfb, 0x00, 0xff]),
        Case::new("2.4").ping([0xfe; 125]),
        Case::new("2.5").send(PING, [0xfe; 126]).violates(PROTOCOL),
        Case::new("2.5 pong").send(PONG, [0xfe; 126]).violates(PROTOCOL),
        Case::new("2.5 head alone").send_raw(&[PING, 0x80 | 127]).violates(PROTOCOL),
        Case::new("2.7").send(PONG, ""),
        Case::new("2.8").send(PONG, "unsolicited pong payload"),
        Case::new("2.9").send(PONG, "unsolicited pong payload").ping("ping payload"),
        ten(Case::new("2.10")),
        ten(Case::new("2.11").echo(TEXT, "before")).echo(TEXT, "after"),
    ]);
}

#[test]
fn family_3_reserved_bits() {
    let mut cases = Vec::new();
    for rsv in 1..8u8 {
        let bits = rsv << 4;
        for first in [FIN | TEXT, FIN | BINARY, TEXT, PING, PONG, CLOSE] {
            let case = Case::new(format!("3: {rsv} on {first:#x}"));
            cases.push(case.clone().send(first | bits, "").violates(PROTOCOL));
            let among = case.echo(TEXT, "Hello, world!").send(first | bits, "Hello, world!");
            cases.push(among.ping_unanswered().violates(PROTOCOL));
        }
        let inside = Case::new(format!("3: {rsv} on a continuation")).send(TEXT, "one");
        cases.push(inside.send(FIN | CONTINUATION | bits, "two").violates(PROTOCOL));
    }
    run_all(&cases);
}

#[test]
fn family_4_opcodes() {
    let mut cases = Vec::new();
    for opcode in (3..8).chain(11..16) {
        for payload in ["", "reserved opcode payload"] {
            for first in [opcode, FIN | opcode] {
                let case = Case::new(format!("4: {first:#x} {payload}"));
                cases.push(case.clone().send(first, payload).violates(PROTOCOL));
                let among = case.echo(TEXT, "Hello, world!").send(first, payload);
                cases.push(among.ping_unanswered().violates(PROTOCOL));
            }
        }
    }
    run_all(&cases);
}

#[test]
fn family_5_fragmentation() {
    let mut cases = Vec::new();
    for control in [PING, PONG, CLOSE] {
        let halves = Case::new(format!("5.1, 5.2: {control:#x} in fragments"));
        let halves = halves.send(control & !FIN, "fragment1").send(FIN | CONTINUATION, "fragment2");
        cases.push(halves.violates(PROTOCOL));
    }
    for kind in [TEXT, BINARY] {
        cases.push(Case::new("5.3").fragments(kind, b"fragment1fragment2", &[9]));
        cases.push(Case::new("5.3 empty ones").fragments(kind, b"x", &[0, 0, 1, 1]));
        let ping = Case::new("5.6").send(kind, "fragment1").ping("ping payload");
        let both = "fragment1fragment2";
        cases.push(ping.send(FIN | CONTINUATION, "fragment2").back(FIN | kind, both));
        let pong = Case::new("5.6 pong").send(kind, "fragment1").send(PONG, "unasked");
        cases.push(pong.send(FIN | CONTINUATION, "fragment2").back(FIN | kind, both));
        for fin in [FIN, 0] {
            let nothing = Case::new(format!("5.9 to 5.14: {fin}"));
            let nothing = nothing.send(fin | CONTINUATION, "non-continuation payload");
            cases.push(nothing.send(FIN | kind, "Hello, world!").violates(PROTOCOL));
            let behind = Case::new(format!("5.15: {fin}")).fragments(kind, b"onetwo", &[3]);
            let behind = behind.send(fin | CONTINUATION, "fragment3");
            cases.push(behind.send(fin | kind, "fragment4").violates(PROTOCOL));
            for other in [TEXT, BINARY] {
                let new = Case::new("5.18").send(kind, "fragment1").send(fin | other, "fragment2");
                cases.push(new.violates(PROTOCOL));
            }
        }
        let five = Case::new("5.19").send(kind, "fragment1").send(CONTINUATION, "fragment2");
        let five = five.ping("pongme 1!").send(CONTINUATION, "fragment3");
        let five = five.send(CONTINUATION, "fragment4").ping("pongme 2!");
        let five = five.send(FIN | CONTINUATION, "fragment5");
        let all = "fragment1fragment2fragment3fragment4fragment5";
        cases.push(five.back(FIN | kind, all).echo(kind, "and on"));
        let payload = of_kind(kind, 300);
        let each: Vec<usize> = (1..300).collect();
        cases.push(Case::new("5: at every byte").fragments(kind, &payload, &each));
    }
    run_all(&cases);
    rounds_of_5_20();
}

/// 5.20: each pong is awaited before the next fragment goes out, and the message comes last.
fn rounds_of_5_20() {
    let server = echo_server();
    let mut raw = Raw::open(server.ws, "/");
    for round in 0..50u8 {
        let opcode = if round == 0 { TEXT } else { CONTINUATION };
        raw.stream.write_all(&masked(opcode, b"more ")).unwrap();
        raw.stream.write_all(&masked(PING, &[round])).unwrap();
        assert_eq!(raw.frame(), (PONG, vec![round]));
    }
    raw.stream.write_all(&masked(FIN | CONTINUATION, b"end")).unwrap();
    assert_eq!(raw.frame(), (FIN | TEXT, format!("{}end", "more ".repeat(50)).into_bytes()));
    raw.stream.write_all(&masked(CLOSE, &NORMAL.to_be_bytes())).unwrap();
    assert_eq!(raw.close_code(), NORMAL);
    server.stop();
}

/// Markus Kuhn's valid sequences, as the suite has them.
const VALID_UTF8: [&[u8]; 25] = [
    b"",
    "κόσμε".as_bytes(),
    "Hello-µ@ßöäüàá-UTF-8!!".as_bytes(),
    b"\x00",
    b"\x7f",
    b"\xc2\x80",
    b"\xdf\xbf",
    b"\xe0\xa0\x80",
    b"\xef\xbf\xbf",
    b"\xf0\x90\x80\x80",
    b"\xf4\x8f\xbf\xbf",
    b"\xed\x9f\xbf",
    b"\xee\x80\x80",
    b"\xef\xbf\xbd",
    b"\xef\xbf\xbe",
    b"\xf0\x9f\xbf\xbe",
    b"\xf0\x9f\xbf\xbf",
    b"\xf0\xaf\xbf\xbe",
    b"\xf1\x8f\xbf\xbf",
    b"\xf2\xbf\xbf\xbe",
    b"\xf3\xbf\xbf\xbf",
    b"\xf4\x8f\xbf\xbe",
    b"\xef\xb7\x90",
    "\u{feff}bom".as_bytes(),
    "𝄞 and 😀".as_bytes(),
];

const INVALID_UTF8: [&[u8]; 56] = [
    // 6.3: a surrogate in the middle of a text.
    b"\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5\xed\xa0\x80edited",
    // 6.4: beyond the last code point.
    b"\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5\xf4\x90\x80\x80edited",
    // 6.6 and 6.7: five and six bytes.
    b"\xf8\x88\x80\x80\x80",
    b"\xfc\x84\x80\x80\x80\x80",
    b"\xf7\xbf\xbf\xbf",
    b"\xfb\xbf\xbf\xbf\xbf",
    b"\xfd\xbf\xbf\xbf\xbf\xbf",
    b"\xf4\x90\x80\x80",
    // 6.10 and 6.11: continuation bytes without a start.
    b"\x80",
    b"\xbf",
    b"\x80\xbf",
    b"\x80\xbf\x80",
    b"\x80\xbf\x80\xbf",
    b"\x80\xbf\x80\xbf\x80",
    b"\x80\xbf\x80\xbf\x80\xbf",
    // 6.12 and 6.13: start bytes followed by a blank.
    b"\xc0 ",
    b"\xc2 \xdf ",
    b"\xe0 \xef ",
    b"\xf0 \xf4 ",
    b"\xf8 \xfb ",
    b"\xfc \xfd ",
    // 6.14 and 6.15: truncated.
    b"\xc0",
    b"\xe0\x80",
    b"\xe0\xa0",
    b"\xf0\x80\x80",
    b"\xf0\x90\x80",
    b"\xf8\x80\x80\x80",
    b"\xfc\x80\x80\x80\x80",
    b"\xdf",
    b"\xef\xbf",
    b"\xf7\xbf\xbf",
    b"\xfb\xbf\xbf\xbf",
    b"\xfd\xbf\xbf\xbf\xbf",
    b"\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce",
    b"\xdf\xef\xbf\xf4\x8f\xbf",
    // 6.16: never in UTF-8.
    b"\xfe",
    b"\xff",
    b"\xfe\xfe\xff\xff",
    // 6.17 to 6.19: overlong.
    b"\xc0\xaf",
    b"\xe0\x80\xaf",
    b"\xf0\x80\x80\xaf",
    b"\xf8\x80\x80\x80\xaf",
    b"\xfc\x80\x80\x80\x80\xaf",
    b"\xc1\xbf",
    b"\xe0\x9f\xbf",
    b"\xf0\x8f\xbf\xbf",
    b"\xc0\x80",
    b"\xe0\x80\x80",
    // 6.20 and 6.21: surrogates, single and in pairs.
    b"\xed\xa0\x80",
    b"\xed\xad\xbf",
    b"\xed\xae\x80",
    b"\xed\xaf\xbf",
    b"\xed\xb0\x80",
    b"\xed\xbf\xbf",
    b"\xed\xa0\x80\xed\xb0\x80",
    b"\xed\xaf\xbf\xed\xbf\xbf",
];

#[test]
fn family_6_utf8() {
    let mut cases = Vec::new();
    for text in VALID_UTF8 {
        let mut case = Case::new(format!("6 valid: {text:x?}")).echo(TEXT, text);
        for cut in 0..=text.len() {
            case = case.fragments(TEXT, text, &[cut]);
        }
        let each: Vec<usize> = (0..text.len()).collect();
        let case = case.fragments(TEXT, text, &each).ping("between");
        let long = [&letters(4_095), text, &letters(70_000)[..]].concat();
        cases.push(case.fragments(TEXT, &long, &[4_095, 4_096, 4_097]));
    }
    for text in INVALID_UTF8 {
        let case = Case::new(format!("6 invalid: {text:x?}")).echo(TEXT, "good");
        cases.push(case.clone().send(FIN | TEXT, text).violates(NOT_UTF8));
        // A binary message may contain it.
        cases.push(case.clone().echo(BINARY, text).fragments(BINARY, text, &[text.len() / 2]));
        let cuts = (0..=text.len()).map(|cut| vec![cut]).chain([(0..text.len()).collect()]);
        for cuts in cuts {
            let back = case.back.clone();
            let broken = case.clone().fragments(TEXT, text, &cuts).violates(NOT_UTF8);
            cases.push(Case { back, ..broken });
        }
        let behind = [&letters(200), text].concat();
        cases.push(case.send(FIN | TEXT, behind).violates(NOT_UTF8));
    }
    // 6.4: rejected as soon as the fragment arrives, without the rest of the message.
    let start = "κόσμε".as_bytes();
    let early = Case::new("6.4.1").send(TEXT, start).send(CONTINUATION, b"\xf4\x90\x80\x80");
    cases.push(early.violates(NOT_UTF8));
    let early = Case::new("6.4.2").send(TEXT, [start, b"\xf4"].concat());
    cases.push(early.send(CONTINUATION, b"\x90").violates(NOT_UTF8));
    run_all(&cases);
}

#[test]
fn family_7_closing() {
    let text = "Hello World!";
    let mut cases = vec![
        Case::new("7.1.1").echo(TEXT, text).close(NORMAL, ""),
        Case::new("7.1.2").close(NORMAL, "").send(CLOSE, 1001u16.to_be_bytes()),
        Case::new("7.1.3").close(NORMAL, "").ping_unanswered(),
        Case::new("7.1.4").close(NORMAL, "").send(FIN | TEXT, text),
        Case::new("7.1.5").send(TEXT, "one").close(NORMAL, "").send(FIN | CONTINUATION, "two"),
        Case::new("7.1.6").echo(TEXT, letters(256 << 10)).close(NORMAL, "").ping_unanswered(),
        Case::new("7.1 nonsense behind").close(NORMAL, "").send_raw(&[0xff; 100]),
        Case::new("7.3.1").send(CLOSE, "").answered(NORMAL),
        Case::new("7.3.2").send(CLOSE, "a").violates(PROTOCOL),
        Case::new("7.3.3").close(NORMAL, ""),
        Case::new("7.3.4").close(NORMAL, text),
        Case::new("7.3.5").close(NORMAL, letters(123)),
        Case::new("7.3.5 in UTF-8").close(NORMAL, "κόσμε".repeat(11)),
        Case::new("7.3.6").close(NORMAL, letters(124)).violates(PROTOCOL),
    ];
    for reason in INVALID_UTF8 {
        let case = Case::new(format!("7.5.1: {reason:x?}")).echo(TEXT, text);
        cases.push(case.close(NORMAL, reason).violates(NOT_UTF8));
    }
    // 1014 is as registered as its neighbours, and was once treated as a violation.
    let good = (1000..=1003).chain(1007..=1014).chain([3000, 3001, 3999, 4000, 4001, 4999]);
    for code in good {
        cases.push(Case::new(format!("7.7: {code}")).close(code, ""));
        cases.push(Case::new(format!("7.7: {code}")).close(code, "a reason"));
    }
    let bad = [0, 1, 999, 1004, 1005, 1006, 1100, 2000, 2999, 5000, 65_535];
    for code in bad.into_iter().chain(1015..1030) {
        cases.push(Case::new(format!("7.9: {code}")).close(code, "").violates(PROTOCOL));
        cases.push(Case::new(format!("7.9: {code}")).close(code, "reason").violates(PROTOCOL));
    }
    run_all(&cases);
}

#[test]
fn family_7_a_client_that_just_ends() {
    let server = echo_server();
    for sent in [&b""[..], &masked(TEXT, b"begun"), &masked(FIN | TEXT, b"cut")[..5]] {
        let mut raw = Raw::open(server.ws, "/");
        raw.stream.write_all(sent).unwrap();
        raw.stream.shutdown(Shutdown::Write).unwrap();
        assert!(raw.is_at_end());
    }
    support::eventually("all are gone", || server.metric("ws_connection") == 0);
    server.stop();
}

#[test]
fn family_9_limits() {
    let server = echo_server();
    let address = server.ws;
    for kind in [TEXT, BINARY] {
        for bytes in [64 << 10, 256 << 10, 1 << 20, 4 << 20, 8 << 20, 16 << 20] {
            let case = Case::new(format!("9.1, 9.2: {bytes} bytes"));
            case.echo(kind, of_kind(kind, bytes)).run_in_writes_of(usize::MAX, address);
        }
        let payload = of_kind(kind, 16 << 20);
        for bytes in [64, 256, 1 << 10, 4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20] {
            let cuts: Vec<usize> = (bytes..payload.len()).step_by(bytes).collect();
            let case = Case::new(format!("9.3, 9.4: in fragments of {bytes} bytes"));
            case.fragments(kind, &payload, &cuts).run_in_writes_of(usize::MAX, address);
        }
        let case = Case::new("9.5, 9.6").echo(kind, of_kind(kind, 1 << 20));
        for bytes in [64, 128, 256, 512, 1024, 2048] {
            case.run_in_writes_of(bytes, address);
        }
        let largest = of_kind(kind, MESSAGE_LIMIT);
        let case = Case::new("9: the limit itself").echo(kind, &largest);
        case.run_in_writes_of(usize::MAX, address);
        let head = &masked(FIN | kind, &[&largest[..], b"x"].concat())[..14];
        Case::new("9: one too many").send_raw(head).violates(TOO_BIG).run(address);
        let begun = Case::new("9: one too many in fragments").send(kind, &largest);
        let begun = begun.send(FIN | CONTINUATION, "x").violates(TOO_BIG);
        begun.run_in_writes_of(usize::MAX, address);
    }
    server.stop();
}

/// 9.7 and 9.8: a thousand messages, each awaited; then another thousand without waiting.
#[test]
fn family_9_round_trips() {
    let server = echo_server();
    for kind in [TEXT, BINARY] {
        for bytes in [0, 16, 64, 256, 1_024, 4_096] {
            let (out, back) = messages_of(kind, bytes);
            let mut raw = Raw::open(server.ws, "/");
            for _ in 0..1_000 {
                raw.stream.write_all(&out).unwrap();
                assert!(raw.exactly(back.len()) == back);
            }
            let mut writer = raw.stream.try_clone().unwrap();
            thread::scope(|scope| {
                scope.spawn(|| writer.write_all(&out.repeat(1_000)).unwrap());
                assert!(raw.exactly(1_000 * back.len()) == back.repeat(1_000));
            });
            raw.stream.write_all(&masked(CLOSE, &NORMAL.to_be_bytes())).unwrap();
            assert_eq!(raw.close_code(), NORMAL);
        }
    }
    server.stop();
}

fn messages_of(kind: u8, bytes: usize) -> (Vec<u8>, Vec<u8>) {
    let payload = of_kind(kind, bytes);
    (masked(FIN | kind, &payload), unmasked(FIN | kind, &payload))
}

/// The handshake and the first frames in one packet: nothing is lost between the two readers.
#[test]
fn frames_come_with_the_handshake() {
    let server = echo_server();
    let frames = [masked(FIN | TEXT, b"early"), masked(PING, b"?"), masked(TEXT, b"half ")];
    let request = [support::handshake("/").into_bytes(), frames.concat()].concat();
    let mut stream: TcpStream = support::open_tcp(server.ws);
    stream.write_all(&request).unwrap();
    let mut raw = Raw { stream };
    let head = raw.head();
    assert!(head.starts_with("HTTP/1.1 101 ") && head.contains(support::ACCEPT), "{head}");
    assert_eq!(raw.frame(), (FIN | TEXT, b"early".to_vec()));
    assert_eq!(raw.frame(), (PONG, b"?".to_vec()));
    raw.stream.write_all(&masked(FIN | CONTINUATION, b"whole")).unwrap();
    assert_eq!(raw.frame(), (FIN | TEXT, b"half whole".to_vec()));
    server.stop();
}

/// Without `--echo` the first frame is the welcome, and the same reader enforces the same rules.
#[test]
fn without_echo_the_first_frame_is_the_welcome() {
    let server = Server::start(&["--workers", "1", "--node", "200"]);
    let query = signed("/ws/connect", &[("pid", "1"), ("uid", "u 1")], "dev-secret");
    let open = || {
        let mut raw = Raw::open(server.ws, &format!("/ws/connect?{query}"));
        let (first, payload) = raw.frame();
        let text = String::from_utf8(payload).unwrap();
        assert_eq!(first, FIN | TEXT);
        let start = r#"{"type":"connect","code":1,"msg":"success","client_id":""#;
        let cid = text.strip_prefix(start).and_then(|rest| rest.strip_suffix(r#"","node":200}"#));
        assert!(cid.is_some_and(|cid| cid.parse::<u64>().is_ok()), "{text}");
        raw
    };
    let mut raw = open();
    raw.stream.write_all(&masked(FIN | TEXT, b"not JSON")).unwrap();
    let (first, payload) = raw.frame();
    assert_eq!(first, FIN | TEXT);
    assert!(payload.starts_with(br#"{"type":"error","code":0,"msg":""#));
    raw.stream.write_all(&masked(CLOSE, &3000u16.to_be_bytes())).unwrap();
    assert_eq!(raw.close_code(), 3000);
    for (bytes, code) in [
        (masked(FIN | TEXT, b"\xff"), NOT_UTF8),
        (masked(FIN | 3, b""), PROTOCOL),
        (masked(FIN | TEXT, &letters((64 << 10) + 1)), TOO_BIG),
    ] {
        let mut raw = open();
        raw.stream.write_all(&bytes).unwrap();
        assert_eq!(raw.close_code(), code);
    }
    assert_eq!(Http::open(server.http).get("/readyz").status, 200);
    server.stop();
}
