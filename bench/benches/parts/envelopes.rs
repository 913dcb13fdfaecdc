//! A message between workers and nodes: its envelope, and the way to and from Redis.

use std::hint::black_box;

use criterion::{Criterion, Throughput};
use memchr::memchr_iter;
use ws_cluster::types::{MessageId, NodeId};
use ws_cluster::wire::envelope::{Envelope, NamesBuf, TargetsBuf};
use ws_cluster::wire::publication;
use ws_cluster::wire::resp::{self, Reply};

use crate::{copy, pair, text};

const CHANNEL: &[u8] = b"wsc:{1}";
const MAX_BYTES: usize = 64 << 20;

pub fn measure(criterion: &mut Criterion) {
    let mut buffer = Vec::with_capacity(1 << 20);
    for bytes in [12, 128, 4 << 10] {
        let work = Throughput::Bytes(bytes as u64);
        let (targets, data) = (one_user(), text(bytes));
        let envelope = envelope(&targets, &data);
        let (mut encoded, mut out) = (Vec::new(), Vec::with_capacity(1 << 20));
        envelope.encode(&mut encoded);
        pair(
            criterion,
            &format!("encode an envelope of {bytes} bytes"),
            work.clone(),
            || {
                out.clear();
                black_box(&envelope).encode(&mut out);
                black_box(out.as_slice()).len()
            },
            ("memcpy of the envelope", || copy(&mut buffer, &encoded)),
        );
        pair(
            criterion,
            &format!("decode an envelope of {bytes} bytes"),
            work.clone(),
            || Envelope::decode(black_box(&encoded)).is_ok_and(|one| black_box(one).ttl_ms == 0),
            ("memcpy of the envelope", || copy(&mut buffer, &encoded)),
        );
        let message = message(&encoded);
        pair(
            criterion,
            &format!("read a message of Redis of {bytes} bytes"),
            work.clone(),
            || {
                let read = resp::read(black_box(&message), MAX_BYTES);
                assert!(matches!(black_box(read), Ok(Some((Reply::Message { .. }, _)))));
            },
            ("memchr for the line feeds", || memchr_iter(b'\n', black_box(&message)).count()),
        );
        let mut command = Vec::new();
        let write = |out: &mut Vec<u8>| {
            out.clear();
            let length = black_box(encoded.len());
            publication::write_publish(out, black_box(CHANNEL), length, |out| {
                out.extend_from_slice(&encoded);
            });
            black_box(out.as_slice()).len()
        };
        write(&mut command);
        pair(
            criterion,
            &format!("write a PUBLISH of {bytes} bytes"),
            work,
            || write(&mut out),
            ("memcpy of the command", || copy(&mut buffer, &command)),
        );
    }
}

fn one_user() -> TargetsBuf {
    let mut uids = NamesBuf::default();
    uids.push("user 12345");
    TargetsBuf { uids: Some(uids), ..TargetsBuf::default() }
}

fn envelope<'a>(targets: &'a TargetsBuf, data: &'a [u8]) -> Envelope<'a> {
    Envelope {
        origin: NodeId::new(1).unwrap(),
        epoch: 1,
        seq: 7,
        accepted_us: 1_800_000_000_000_000,
        trace: None,
        id: MessageId(1_234_567_890_123_456_789),
        ttl_ms: 0,
        key: None,
        pid: b"1",
        targets: targets.as_targets(),
        data,
    }
}

/// Returns what Redis sends to a subscriber, in RESP3.
fn message(payload: &[u8]) -> Vec<u8> {
    let mut bytes = b">3\r\n$7\r\nmessage\r\n".to_vec();
    for part in [CHANNEL, payload] {
        bytes.extend_from_slice(format!("${}\r\n", part.len()).as_bytes());
        bytes.extend_from_slice(part);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes
}
