use std::io::Read;
use std::os::unix::net::UnixStream;

use super::*;
use crate::identity::ACCEPT;
use crate::identity::tests::identity;

struct Count(Vec<Vec<u8>>);

impl Handler for Count {
    fn frame(&mut self, _: u32, _: &mut Marks, payload: &[u8]) {
        self.0.push(payload.to_vec());
    }
}

fn waiting_client() -> Clients {
    let opening =
        Opening { concurrency: 1, rate: 0.0, timeout_ns: 1, sources: Vec::new(), cycle: None };
    let mut clients = Clients::new(identity(), opening, 0, 1);
    clients.slots.push(Conn {
        fd: None,
        number: 0,
        phase: Phase::Upgrading,
        marks: Marks::default(),
        since_ns: 0,
        partial: None,
    });
    clients.pending = 1;
    clients
}

fn stream() -> Vec<u8> {
    let mut stream = b"HTTP/1.1 101 Switching Protocols\r\nsec-websocket-accept: ".to_vec();
    stream.extend_from_slice(ACCEPT);
    stream.extend_from_slice(b"\r\n\r\n");
    for payload in [
        r#"{"type":"connect","code":1,"msg":"success","client_id":"7","node":200}"#.to_owned(),
        "first".to_owned(),
        "y".repeat(300),
        String::new(),
    ] {
        match payload.len() {
            len @ 0..126 => stream.extend_from_slice(&[0x81, len as u8]),
            len => stream.extend_from_slice(&[0x81, 126, (len >> 8) as u8, len as u8]),
        }
        stream.extend_from_slice(payload.as_bytes());
    }
    stream
}

#[test]
fn a_stream_cut_anywhere_brings_the_same_messages() {
    let stream = stream();
    let want = vec![b"first".to_vec(), vec![b'y'; 300], Vec::new()];
    for cut in 0..=stream.len() {
        let mut clients = waiting_client();
        let mut got = Count(Vec::new());
        for part in [&stream[..cut], &stream[cut..]] {
            assert!(clients.on_bytes(0, part, 9, &mut got).is_ok());
        }
        assert_eq!(got.0, want, "cut at {cut}");
        assert_eq!((clients.welcomed, clients.pending, clients.open), (1, 0, 1));
        assert!(clients.slots[0].partial.is_none());
    }
}

#[test]
fn what_a_socket_does_not_take_leaves_later() {
    let (near, mut far) = UnixStream::pair().unwrap();
    let mut clients = waiting_client();
    clients.sends = true;
    clients.slots[0].fd = Some(near.into());
    clients.slots[0].phase = Phase::Open;
    let bytes: Vec<u8> = (0..2_000_000).map(|i: u32| i as u8).collect();
    for part in bytes.chunks(100_000) {
        clients.send(0, part);
    }
    assert!(!clients.unsent.is_empty(), "it took everything");
    let mut got = vec![0; bytes.len()];
    let mut at = 0;
    far.set_nonblocking(true).unwrap();
    while at < got.len() {
        at += far.read(&mut got[at..]).unwrap();
        clients.on_event(0, sys::WRITABLE, 9, &mut [0; 64], &mut Ignore);
    }
    assert!(got == bytes && clients.unsent.is_empty());
}

#[test]
fn a_stream_byte_by_byte_brings_the_same_messages() {
    let mut clients = waiting_client();
    let mut got = Count(Vec::new());
    for byte in stream() {
        assert!(clients.on_bytes(0, &[byte], 9, &mut got).is_ok());
    }
    assert_eq!(got.0.len(), 3);
}
