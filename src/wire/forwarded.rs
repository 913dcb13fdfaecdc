//! X-Forwarded-For: the addresses that a request has come through, the client's first, as each
//! proxy has appended that of its own peer.

use crate::types::Networks;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const NAME: &str = "x-forwarded-for";

/// Returns the address of the client whose request has come through the trusted proxy `peer`: the
/// last entry that is not a trusted proxy itself. If all are trusted it is the first one; what
/// precedes a malformed entry is not looked at. `head`: the bytes of a request's head that
/// [`super::http::parse_head`] accepts.
pub fn client_of(peer: IpAddr, head: &[u8], trusted: &Networks) -> IpAddr {
    let mut client = peer;
    for entry in entries_from_last(head) {
        let Some(ip) = parse_entry(entry) else { break };
        client = ip;
        if !trusted.contains(ip) {
            break;
        }
    }
    client
}

/// Iterates over the entries of all fields of this name, which count as one list. Empty elements of
/// a list are skipped (RFC 9110, section 5.6.1.2).
fn entries_from_last(head: &[u8]) -> impl Iterator<Item = &[u8]> {
    let values = head.rsplit(|&b| b == b'\n').filter_map(|line| {
        let (name, value) = line.split_at_checked(NAME.len())?;
        value.strip_prefix(b":").filter(|_| name.eq_ignore_ascii_case(NAME.as_bytes()))
    });
    let entries = values.flat_map(|value| value.rsplit(|&b| b == b','));
    entries.map(<[u8]>::trim_ascii).filter(|entry| !entry.is_empty())
}

/// Parses an address, with or without a port; an IPv6 address with a port is in brackets, and may
/// be so without one.
fn parse_entry(entry: &[u8]) -> Option<IpAddr> {
    let entry = std::str::from_utf8(entry).ok()?;
    if let Some(rest) = entry.strip_prefix('[') {
        let (ip, port) = rest.split_once(']')?;
        let is_whole = port.is_empty() || is_port(port.strip_prefix(':')?);
        let ip: Ipv6Addr = ip.parse().ok()?;
        return is_whole.then(|| IpAddr::V6(ip).to_canonical());
    }
    if let Ok(ip) = entry.parse::<IpAddr>() {
        return Some(ip.to_canonical());
    }
    let (ip, port) = entry.split_once(':')?;
    let ip: Ipv4Addr = ip.parse().ok()?;
    is_port(port).then_some(IpAddr::V4(ip))
}

fn is_port(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_digit()) && text.parse::<u16>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PEER: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    fn client(fields: &str) -> String {
        let head = format!("GET /x-forwarded-for: HTTP/1.1\r\nHost: x\r\n{fields}\r\n\r\n");
        let trusted = Networks::parse("127.0.0.1, 10.0.0.0/8, 2001:db8::/32").unwrap();
        client_of(PEER, head.as_bytes(), &trusted).to_string()
    }

    fn listed(entries: &str) -> String {
        client(&format!("X-Forwarded-For: {entries}"))
    }

    #[test]
    fn the_last_entry_that_is_not_trusted_is_the_client() {
        for (entries, ip) in [
            ("192.0.2.1", "192.0.2.1"),
            ("192.0.2.9, 192.0.2.1", "192.0.2.1"),
            ("192.0.2.9,192.0.2.1 ,10.1.2.3,\t2001:db8::1", "192.0.2.1"),
            ("10.0.0.3, 10.0.0.2, 10.0.0.1", "10.0.0.3"),
            ("::1", "::1"),
            ("::ffff:192.0.2.1", "192.0.2.1"),
            ("192.0.2.1, ::ffff:10.0.0.1", "192.0.2.1"),
        ] {
            assert_eq!(listed(entries), ip, "{entries}");
        }
    }

    #[test]
    fn a_malformed_entry_ends_the_search() {
        for malformed in ["unknown", "192.0.2", "_hidden", "1.2.3.4:x", "[::1", "::1]", "\u{e9}"] {
            assert_eq!(listed(malformed), "127.0.0.1");
            assert_eq!(listed(&format!("192.0.2.1, {malformed}, 10.0.0.1")), "10.0.0.1");
            assert_eq!(listed(&format!("{malformed}, 192.0.2.1, 10.0.0.1")), "192.0.2.1");
        }
    }

    #[test]
    fn entries_may_have_ports_and_brackets() {
        for (entry, ip) in [
            ("192.0.2.1:4711", "192.0.2.1"),
            ("[2001:db9::7]", "2001:db9::7"),
            ("[2001:db9::7]:4711", "2001:db9::7"),
            ("[::ffff:192.0.2.1]:1", "192.0.2.1"),
            ("[192.0.2.1]", "127.0.0.1"),
            ("192.0.2.1:", "127.0.0.1"),
            ("192.0.2.1:65536", "127.0.0.1"),
            ("[::1]4711", "127.0.0.1"),
            ("[::1]:", "127.0.0.1"),
        ] {
            assert_eq!(listed(entry), ip, "{entry}");
        }
    }

    #[test]
    fn several_fields_are_one_list_and_empty_elements_do_not_count() {
        let two = "x-forwarded-FOR: 192.0.2.1, 192.0.2.2\r\nX: y\r\nX-Forwarded-For:10.0.0.1";
        assert_eq!(client(two), "192.0.2.2");
        assert_eq!(
            client("X-Forwarded-For: 192.0.2.1\r\nX-Forwarded-For: 10.0.0.1, bad"),
            "127.0.0.1"
        );
        assert_eq!(listed(""), "127.0.0.1");
        assert_eq!(listed("192.0.2.1,, ,10.0.0.1,"), "192.0.2.1");
        assert_eq!(
            client("X-Forwarded-For2: 192.0.2.1\r\nY: X-Forwarded-For: 192.0.2.2"),
            "127.0.0.1"
        );
        assert_eq!(client("X: y"), "127.0.0.1");
    }

    proptest! {
        #[test]
        fn any_head_never_panics(fields in "(X-Forwarded-For: [0-9a-f.:, \\[\\]]{0,40}\r\n){0,3}") {
            let _ = client(&fields);
        }

        /// Whatever a client sends, its own address is found: a proxy appends it.
        #[test]
        fn nothing_that_a_client_sends_hides_its_address(sent in "[0-9a-fx.:, \\[\\]]{0,60}") {
            prop_assert_eq!(listed(&format!("{sent}, 192.0.2.1")), "192.0.2.1");
            let fields = format!("X-Forwarded-For: {sent}\r\nX-Forwarded-For: 192.0.2.1, 10.0.0.1");
            prop_assert_eq!(client(&fields), "192.0.2.1");
        }
    }
}
