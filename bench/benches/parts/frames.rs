//! WebSocket frames: read, unmasked, checked as UTF-8, written.

use std::hint::black_box;
use std::ops::ControlFlow;

use criterion::{Criterion, Throughput};
use fastwebsockets::OpCode;
use memchr::memchr;
use ws_cluster::wire::message;
use ws_cluster::wire::websocket::{self, Inbound, Message};

use crate::{copy, pair, text};

/// Keeps letters ASCII: a buffer is unmasked again and again, and must be valid text each time.
const MASK: [u8; 4] = [1, 2, 3, 4];
const MAX_BYTES: usize = 1 << 20;

pub fn measure(criterion: &mut Criterion) {
    let mut buffer = Vec::with_capacity(MAX_BYTES);
    for bytes in [12, 128, 16 << 10] {
        let work = Throughput::Bytes(bytes as u64);
        let (mut frame, mut payload) = (masked(bytes), text(bytes));
        pair(
            criterion,
            &format!("read a frame of {bytes} bytes"),
            work,
            || read(&mut frame),
            ("unmask and check it as UTF-8", || {
                fastwebsockets::unmask(black_box(&mut payload), MASK);
                simdutf8::basic::from_utf8(&payload).is_ok()
            }),
        );
    }
    let mut frames = masked(12).repeat(100);
    let mut payload = text(1_200);
    pair(
        criterion,
        "read 100 frames of 12 bytes",
        Throughput::Elements(100),
        || read(&mut frames),
        ("unmask and check them as UTF-8", || {
            payload.chunks_exact_mut(12).fold(0, |sum, payload| {
                fastwebsockets::unmask(black_box(payload), MASK);
                sum + usize::from(simdutf8::basic::from_utf8(payload).is_ok())
            })
        }),
    );
    for bytes in [128, 16 << 10] {
        let work = Throughput::Bytes(bytes as u64);
        let (mut payload, from) = (text(bytes), text(bytes));
        pair(
            criterion,
            &format!("unmask {bytes} bytes"),
            work.clone(),
            || fastwebsockets::unmask(black_box(&mut payload), MASK),
            ("memcpy", || copy(&mut buffer, &from)),
        );
        let accented: Vec<u8> = "é".bytes().chain(text(14)).cycle().take(bytes).collect();
        for (what, bytes_of) in [("letters", from.clone()), ("accented text", accented)] {
            pair(
                criterion,
                &format!("check {bytes} bytes of {what} as UTF-8"),
                work.clone(),
                || simdutf8::basic::from_utf8(black_box(&bytes_of)).is_ok(),
                ("memchr", || memchr(0, black_box(&bytes_of)).is_none()),
            );
        }
    }
    for bytes in [12, 128, 4 << 10] {
        let (data, work) = (text(bytes), Throughput::Bytes(bytes as u64));
        let id = ws_cluster::types::MessageId(1_234_567_890_123_456_789);
        let payload_bytes = message::push_bytes(id, data.len());
        let (mut out, mut written) = (Vec::with_capacity(MAX_BYTES), Vec::new());
        let write = |out: &mut Vec<u8>| {
            out.clear();
            websocket::write_head(out, OpCode::Text, payload_bytes);
            message::write_push(out, id, black_box(&data));
            black_box(out.as_slice()).len()
        };
        write(&mut written);
        pair(
            criterion,
            &format!("write the frame of a push of {bytes} bytes"),
            work,
            || write(&mut out),
            ("memcpy of the frame", || copy(&mut buffer, &written)),
        );
    }
}

/// Returns a client's text frame.
fn masked(bytes: usize) -> Vec<u8> {
    let mut frame = vec![0x81];
    match bytes {
        0..=125 => frame.push(0x80 | bytes as u8),
        _ => {
            frame.push(0x80 | 126);
            frame.extend_from_slice(&(bytes as u16).to_be_bytes());
        }
    }
    frame.extend_from_slice(&MASK);
    frame.extend_from_slice(&text(bytes));
    frame
}

fn read(frames: &mut [u8]) -> usize {
    let (mut kept, mut count) = (None, 0);
    let result = Inbound::read(&mut kept, black_box(frames), MAX_BYTES, &mut |message| {
        count += usize::from(matches!(black_box(message), Message::Text(_)));
        ControlFlow::Continue(())
    });
    assert!(result.is_ok() && kept.is_none());
    count
}
