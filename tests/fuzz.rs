//! The fuzz targets' checks for a second each, on a stable compiler: random bytes, and mutations of
//! meaningful inputs. `make fuzz` runs the same checks guided by coverage, for any length of time.
//!
//! The inputs are the same each time. `FUZZ_SEED` changes them, `FUZZ_SECONDS` makes more; a
//! failure prints the seed and the input.

use rng::Rng;
use std::panic::catch_unwind;
use std::time::{Duration, Instant};

#[path = "../fuzz/checks/broker.rs"]
mod broker;
#[path = "../fuzz/checks/client_address.rs"]
mod client_address;
#[path = "../fuzz/checks/envelope.rs"]
mod envelope;
#[path = "../fuzz/checks/frames.rs"]
mod frames;
#[path = "../fuzz/checks/http.rs"]
mod http;
#[path = "../fuzz/checks/json.rs"]
mod json;
#[path = "../fuzz/checks/message.rs"]
mod message;
#[path = "../fuzz/checks/params.rs"]
mod params;
#[path = "../fuzz/checks/parcel.rs"]
mod parcel;
#[path = "../fuzz/checks/push.rs"]
mod push;
#[path = "../fuzz/checks/resp.rs"]
mod resp;
#[path = "support/rng.rs"]
mod rng;
#[path = "../fuzz/checks/worker.rs"]
mod worker;

/// Changes an input in a few places: bytes, bits, cuts, repetitions, and pieces of other inputs.
fn mutate(rng: &mut Rng, input: &mut Vec<u8>, others: &[&[u8]]) {
    for _ in 0..=rng.below(4) {
        let at = rng.below(input.len() + 1);
        match rng.below(7) {
            0 if at < input.len() => input[at] = rng.below(256) as u8,
            1 if at < input.len() => input[at] ^= 1 << rng.below(8),
            2 => input.insert(at, rng.below(256) as u8),
            3 => input.truncate(at),
            4 => {
                let end = (at + rng.below(8)).min(input.len());
                input.drain(at..end);
            }
            5 => {
                let end = (at + rng.below(16)).min(input.len());
                let piece = input[at..end].to_vec();
                input.splice(at..at, piece);
            }
            _ => {
                let other = *rng.pick(others);
                let from = rng.below(other.len());
                let end = (from + 1 + rng.below(20)).min(other.len());
                input.splice(at..at, other[from..end].iter().copied());
            }
        }
    }
    input.truncate(2_000);
}

fn fuzz(name: &str, check: fn(&[u8]), seeds: &[&[u8]]) {
    let variable = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seed = variable("FUZZ_SEED").unwrap_or(1);
    let end = Instant::now() + Duration::from_secs(variable("FUZZ_SECONDS").unwrap_or(1));
    let mut rng = Rng(seed);
    let mut runs = 0u64;
    for seed in seeds {
        check(seed);
    }
    while Instant::now() < end {
        for _ in 0..100 {
            let mut input = if rng.chance(12) {
                (0..rng.below(200)).map(|_| rng.below(256) as u8).collect()
            } else {
                rng.pick(seeds).to_vec()
            };
            mutate(&mut rng, &mut input, seeds);
            if catch_unwind(|| check(&input)).is_err() {
                panic!("{name}: FUZZ_SEED={seed}, input {:?}", String::from_utf8_lossy(&input));
            }
            runs += 1;
        }
    }
    println!("{name}: {runs} inputs, FUZZ_SEED={seed}");
}

#[test]
fn envelopes() {
    let header =
        [&[1u8, 0, 200, 0][..], &[7; 36], &[67, 0, 0, 0], &[7; 8], &[1, 1, 0, 0, 0, b'1']].concat();
    let named = [&header[..], &[2, 4, 0, 0, 0, 1, b'u', 1, b'v'], b"{}"].concat();
    fuzz("envelope", envelope::run, &[&header, &named]);
}

#[test]
fn parcels() {
    let head = |kind: u8, data_at: u8| {
        [&[1u8, kind, 200, 0][..], &[7; 36], &[data_at, 0, 0, 0], &[7; 8], &[1, 1, 0, 0, 0, b'1']]
            .concat()
    };
    let ends = [8, 8, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 8, 0, 0, 0, 8, 7, 6, 5, 4, 3, 2, 1];
    let request = [&head(5, 84)[..], &ends, b"{}"].concat();
    let response = [&head(6, 90)[..], &ends, &[12, 1, 0, 0, 0, 0], b"[1]"].concat();
    let events = [&head(7, 64)[..], &[13, 1, 0, 0, 0, 2, 2, 2, 0, 0, 0], b"{}"].concat();
    let cancel = [&head(8, 84)[..], &ends, &[9; 16]].concat();
    let member =
        [&head(4, 74)[..], &[15, 11, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 63, 1, b'p']].concat();
    let bundle = [&[1, 255, request.len() as u8, 0, 0, 0][..], &request].concat();
    let answer = br#"{"type":"response","id":"42","data":{"x":[1]}}"#;
    fuzz("parcel", parcel::run, &[&request, &response, &events, &cancel, &member, &bundle, answer]);
}

#[test]
fn client_frames() {
    let text = b"\x02\x03\x05\x81\x85\x01\x02\x03\x04igohn\x89\x80\x01\x02\x03\x04";
    let parts = b"\x01\x02\x01\x81\x00\x00\x00\x00a\
        \x80\x81\x00\x00\x00\x00b\x88\x82\x00\x00\x00\x00\x03\xe8";
    fuzz("frames", frames::run, &[text, parts]);
}

#[test]
fn http_requests() {
    let push = b"\x02\x05\x09POST /ws/push?a=b HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc";
    let chunked = b"\x01\x03POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n\
        3\r\nabc\r\n0\r\n\r\n";
    let chunks = b"\x02\x01\x04a;x=y\r\n0123456789\r\n0\r\nTrailer: x\r\n\r\n";
    fuzz("http", http::run, &[push, chunked, chunks]);
}

#[test]
fn the_address_of_a_client() {
    let forwarded = b"\x00GET / HTTP/1.1\r\nHost: a\r\n\
        X-Forwarded-For: 1.2.3.4, [::1]:9, 10.0.0.1\r\nx-forwarded-for: 10.0.0.2\r\n\r\n";
    let line = b"\x01PROXY TCP6 2001:db9::1 ::1 65535 1\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n";
    let unknown = b"\x02PROXY UNKNOWN\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n";
    let binary = b"\x00\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x10\
        \x01\x02\x03\x04\x05\x06\x07\x08\0\x01\0\x02\
        \x04\0\x01xGET / HTTP/1.1\r\nHost: a\r\n\r\n";
    let local = b"\x03\r\n\r\n\0\r\nQUIT\n\x20\0\0\0GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    fuzz("client_address", client_address::run, &[forwarded, line, unknown, binary, local]);
}

#[test]
fn json_texts() {
    let object = br#"{"a":[1,-2.5e+7,true,null,"\ud83d\ude00\n"],"b":{"c":{}}, "\u0061b":""}"#;
    fuzz("json", json::run, &[object, b"[[],[{}],0.1]", "\"é😀\"".as_bytes()]);
}

#[test]
fn client_messages() {
    let subscribe = br#"{"type":"subscribe","tags":["a","b"],"id":"7","sign":"ab"}"#;
    let refresh = br#"{"type":"refresh","session_exp":1700000000,"sign":"ab"}"#;
    let request = br#"{"type":"request","id":"r","data":{"x":[1]}}"#;
    fuzz("message", message::run, &[subscribe, refresh, request, br#"{"type":"heartbeat"}"#]);
}

#[test]
fn parameters() {
    fuzz("params", params::run, &[b"pid=1&uid=u+1&tags=a%2Cb&sign=ab", b"a=%C3%A9&b&c=~"]);
}

#[test]
fn pushes() {
    let one =
        br#"{"pid":1,"uids":"a,b","cids":[1,"2"],"tags":["t"],"devices":"ios","data":{"x":1}}"#;
    let batch =
        br#"{"pid":"1","exp":9,"messages":[{"data":1,"ttl_ms":5},{"uids":[],"data":[]},0]}"#;
    let server = br#"{"type":"push","id":null,"data":1,"uids":"a, b","transient":true,"uid":1}"#;
    fuzz("push", push::run, &[one, batch, server]);
}

#[test]
fn redis_replies() {
    let messages = b"\xff>3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$2\r\n{}\r\n\
        *3\r\n$7\r\nmessage\r\n$2\r\ncd\r\n$0\r\n\r\n+PONG\r\n*2\r\n$4\r\npong\r\n$0\r\n\r\n";
    let subscribed = b"\x0b>3\r\n$9\r\nsubscribe\r\n$1\r\nc\r\n:1\r\n\
        *3\r\n$11\r\nunsubscribe\r\n$-1\r\n:0\r\n>3\r\n$11\r\nunsubscribe\r\n_\r\n:-7\r\n";
    let others = b"\x20%2\r\n$1\r\na\r\n*-1\r\n#t\r\n~1\r\n,1.5\r\n-ERR no\r\n!2\r\nno\r\n\
        |1\r\n+a\r\n:1\r\n(12\r\n=5\r\ntxt:a\r\n*1\r\n*1\r\n*1\r\n*0\r\n";
    fuzz("resp", resp::run, &[messages, subscribed, others]);
}

#[test]
fn a_worker() {
    let all: Vec<u8> =
        (0..=255u8).flat_map(|number| [number, number.wrapping_mul(37), 9]).collect();
    fuzz("worker", worker::run, &[&all, &all[..100]]);
}

#[test]
fn the_broker() {
    let life =
        b"\x05\x00\x00\x00\x00\x0c\x00\x07\x08\x00\x0b\x09\x06\x05\x00\x00\x00\x00\x1c\x00\x0c";
    let message =
        b"\x05\x00\x00\x00\x00\x0c\x00\xfe>3\r\n$7\r\nmessage\r\n$5\r\nx:{p}\r\n$2\r\nab\r\n";
    let refused = b"\x05\x00\x00\x00\x00\x07\x4d-OOM command not allowed\r\n\x00";
    fuzz("broker", broker::run, &[life, message, refused]);
}
