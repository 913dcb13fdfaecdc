//! The client of a connection is found at the same byte wherever its first bytes are split, and
//! nobody but a trusted proxy can claim another address.

use std::net::IpAddr;
use ws_cluster::types::{Limits, Networks};
use ws_cluster::wire::client_address::{Start, Via, start};
use ws_cluster::wire::http::parse_head;

/// The first byte selects the peer.
pub fn run(input: &[u8]) {
    let [peer, bytes @ ..] = input else { return };
    let trusted = Networks::parse("127.0.0.1, 10.0.0.0/8, 2001:db8::/32").expect("it is a list");
    let limits = Limits { head_bytes: 512, head_fields: 8, ..Limits::default() };
    let peers = ["127.0.0.1", "::ffff:10.0.0.1", "2001:db8::1", "192.0.2.1", "::1"];
    let peer: IpAddr = peers[usize::from(*peer) % peers.len()].parse().expect("it is an address");
    let peer = peer.to_canonical();
    let begin = |bytes: &[u8]| start(bytes, Some(peer), &trusted, limits.head_bytes);
    let whole = begin(bytes);
    for cut in 0..bytes.len() {
        match begin(&bytes[..cut]) {
            Ok(Start::Incomplete) => {}
            known => assert_eq!(known, whole, "cut at {cut}"),
        }
    }
    let Ok(Start::Request { via, skip }) = whole else { return };
    assert!(skip <= limits.head_bytes.min(bytes.len()));
    let rest = &bytes[skip..];
    let client = match parse_head(rest, &limits) {
        Ok(Some(head)) => via.client(&rest[..head.head_len], &trusted),
        _ => via.peer(),
    };
    let client = client.expect("the address of the peer is known");
    assert_eq!(client, client.to_canonical());
    if trusted.contains(peer) {
        assert!(skip > 0 || via == Via::Proxy(peer));
    } else {
        assert_eq!((client, skip), (peer, 0));
    }
}
