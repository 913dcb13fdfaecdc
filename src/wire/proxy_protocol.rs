//! The PROXY protocol, versions 1 and 2: a header before the first byte of a connection, in which a
//! proxy names the client that it speaks for
//! (<https://www.haproxy.org/download/3.2/doc/proxy-protocol.txt>).

use super::http::HttpError;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const V1_SIGNATURE: &[u8] = b"PROXY ";
const V2_SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// Longest line of version 1, with its CR LF.
const V1_MAX_BYTES: usize = 107;
/// Signature, version and command, family and protocol, length of the rest.
const V2_FIXED_BYTES: usize = 16;
const IPV4_BYTES: usize = 12;
const IPV6_BYTES: usize = 36;
const UNIX_BYTES: usize = 216;

/// How a connection begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beginning {
    /// Too few bytes to say, or an incomplete header.
    Incomplete,
    /// Not with a header.
    Other,
    Header(ProxyHeader),
}

/// A complete header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProxyHeader {
    /// Bytes that it takes.
    pub len: usize,
    /// The address of the client. `None`: the proxy speaks for itself (LOCAL, as in a health
    /// check), or for a client without an IP address or of an unknown kind.
    pub client: Option<IpAddr>,
}

/// Whether the bytes begin with the signature of a header; `None`: too few to say.
pub fn has_signature(bytes: &[u8]) -> Option<bool> {
    let compared = [V1_SIGNATURE, V2_SIGNATURE].map(|signature| {
        let length = signature.len().min(bytes.len());
        (bytes[..length] == signature[..length]).then_some(length == signature.len())
    });
    match compared {
        [Some(true), _] | [_, Some(true)] => Some(true),
        [None, None] => Some(false),
        _ => None,
    }
}

/// Reads the header at the start of a connection, if there is one. `bytes`: all that has arrived,
/// the header and what follows it. A header of version 2 may have at most `max_bytes`.
///
/// Fails with 400 if a header is malformed or too long: what follows it cannot be trusted.
pub fn read(bytes: &[u8], max_bytes: usize) -> Result<Beginning, HttpError> {
    match has_signature(bytes) {
        None => Ok(Beginning::Incomplete),
        Some(false) => Ok(Beginning::Other),
        Some(true) if bytes.starts_with(V1_SIGNATURE) => read_v1(bytes),
        Some(true) => read_v2(bytes, max_bytes),
    }
}

fn read_v1(bytes: &[u8]) -> Result<Beginning, HttpError> {
    const BAD: HttpError = HttpError::bad("the PROXY line (version 1) is malformed");
    let within = &bytes[..bytes.len().min(V1_MAX_BYTES)];
    let Some(end) = within.iter().position(|&b| b == b'\n') else {
        return if within.len() < V1_MAX_BYTES { Ok(Beginning::Incomplete) } else { Err(BAD) };
    };
    let line = within[..end].strip_suffix(b"\r").ok_or(BAD)?;
    let line = std::str::from_utf8(line).map_err(|_| BAD)?;
    let header = |client| Ok(Beginning::Header(ProxyHeader { len: end + 1, client }));
    let mut words = line.split(' ').skip(1);
    let mut word = || words.next().ok_or(BAD);
    let family = word()?;
    if family == "UNKNOWN" {
        // The rest of the line is to be ignored.
        return header(None);
    }
    let (source, destination) = (word()?, word()?);
    let ports = [word()?, word()?];
    if words.next().is_some() || !ports.iter().all(|port| is_port(port)) {
        return Err(BAD);
    }
    let client = match family {
        "TCP4" => two::<Ipv4Addr>(source, destination).map(IpAddr::V4),
        "TCP6" => two::<Ipv6Addr>(source, destination).map(IpAddr::V6),
        _ => None,
    };
    header(Some(client.ok_or(BAD)?.to_canonical()))
}

/// Returns the first of two addresses, if both are valid.
fn two<T: std::str::FromStr>(source: &str, destination: &str) -> Option<T> {
    destination.parse::<T>().ok()?;
    source.parse().ok()
}

fn is_port(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_digit()) && text.parse::<u16>().is_ok()
}

fn read_v2(bytes: &[u8], max_bytes: usize) -> Result<Beginning, HttpError> {
    const BAD: HttpError = HttpError::bad("the PROXY header (version 2) is malformed");
    let Some(fixed) = bytes.first_chunk::<V2_FIXED_BYTES>() else {
        return Ok(Beginning::Incomplete);
    };
    let [.., command, family, high, low] = *fixed;
    let rest_bytes = usize::from(u16::from_be_bytes([high, low]));
    let len = V2_FIXED_BYTES + rest_bytes;
    // Checked before anything is waited for.
    let address_bytes = match (command, family) {
        (0x20, _) | (0x21, 0x00) => 0,
        (0x21, 0x11) => IPV4_BYTES,
        (0x21, 0x21) => IPV6_BYTES,
        (0x21, 0x31) => UNIX_BYTES,
        _ => return Err(BAD),
    };
    if rest_bytes < address_bytes {
        return Err(BAD);
    }
    if len > max_bytes {
        return Err(HttpError::bad("the PROXY header (version 2) is too long"));
    }
    let Some(header) = bytes.get(..len) else { return Ok(Beginning::Incomplete) };
    // What follows the addresses are additions (TLVs) that nothing here needs.
    let addresses = &header[V2_FIXED_BYTES..];
    let client = match address_bytes {
        IPV4_BYTES => addresses.first_chunk::<4>().map(|ip| IpAddr::from(*ip)),
        IPV6_BYTES => addresses.first_chunk::<16>().map(|ip| IpAddr::from(*ip).to_canonical()),
        _ => None,
    };
    Ok(Beginning::Header(ProxyHeader { len, client }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    const MAX_BYTES: usize = 8_192;

    fn of(bytes: &[u8]) -> Result<Beginning, HttpError> {
        read(bytes, MAX_BYTES)
    }

    fn header(bytes: &[u8]) -> (usize, Option<String>) {
        match of(bytes) {
            Ok(Beginning::Header(ProxyHeader { len, client })) => {
                (len, client.map(|ip| ip.to_string()))
            }
            other => panic!("{other:?}"),
        }
    }

    fn v2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let length = (rest.len() as u16).to_be_bytes();
        [V2_SIGNATURE, &[command, family], &length, rest].concat()
    }

    #[test]
    fn version_1_names_the_client() {
        for (line, client) in [
            ("TCP4 192.0.2.1 10.0.0.1 65535 8812", Some("192.0.2.1")),
            ("TCP6 2001:db8::1 ::1 1 2", Some("2001:db8::1")),
            ("TCP6 ::ffff:192.0.2.1 ::1 1 2", Some("192.0.2.1")),
            ("UNKNOWN", None),
            ("UNKNOWN ffff::1 whatever 1", None),
        ] {
            let text = format!("PROXY {line}\r\nGET / HTTP/1.1\r\n");
            assert_eq!(
                header(text.as_bytes()),
                (line.len() + 8, client.map(String::from)),
                "{line}"
            );
        }
        let longest = format!("PROXY UNKNOWN {}\r\n", "x".repeat(V1_MAX_BYTES - 16));
        assert_eq!(header(longest.as_bytes()), (V1_MAX_BYTES, None));
    }

    #[test]
    fn a_malformed_line_is_refused() {
        for line in [
            "TCP4 192.0.2.1 10.0.0.1 1 2\n",
            "TCP4 192.0.2.1 10.0.0.1 1\r\n",
            "TCP4 192.0.2.1 10.0.0.1 1 2 3\r\n",
            "TCP4 192.0.2.1 10.0.0.1 1 65536\r\n",
            "TCP4 192.0.2.1 10.0.0.1 +1 2\r\n",
            "TCP4 192.0.2.1 10.0.0.1  1 2\r\n",
            "TCP4 192.0.2.256 10.0.0.1 1 2\r\n",
            "TCP4 192.0.2.1 nowhere 1 2\r\n",
            "TCP4 ::1 ::1 1 2\r\n",
            "TCP6 192.0.2.1 10.0.0.1 1 2\r\n",
            "TCP6 fe80::1%eth0 ::1 1 2\r\n",
            "UDP4 192.0.2.1 10.0.0.1 1 2\r\n",
            "tcp4 192.0.2.1 10.0.0.1 1 2\r\n",
            "UNKNOWNS\r\n",
            "\r\n",
            "/ HTTP/1.1\r\n",
            "TCP4 \u{e9}\r\n",
        ] {
            let text = format!("PROXY {line}");
            assert!(of(text.as_bytes()).is_err(), "{line:?}");
        }
        let endless = format!("PROXY UNKNOWN {}", "x".repeat(V1_MAX_BYTES - 15));
        assert_eq!(of(endless.as_bytes()), Ok(Beginning::Incomplete));
        assert!(of((endless + "xx\r\n").as_bytes()).is_err());
    }

    #[test]
    fn version_2_names_the_client() {
        let ipv4 = [&[192, 0, 2, 1, 10, 0, 0, 1, 0, 1, 0, 2][..], b"\x03\0\x04abcd"].concat();
        assert_eq!(header(&v2(0x21, 0x11, &ipv4)), (35, Some("192.0.2.1".into())));
        let mut ipv6 = [0; IPV6_BYTES];
        (ipv6[0], ipv6[15]) = (0x20, 7);
        assert_eq!(header(&v2(0x21, 0x21, &ipv6)), (52, Some("2000::7".into())));
        ipv6[..16].copy_from_slice(&"::ffff:192.0.2.1".parse::<Ipv6Addr>().unwrap().octets());
        assert_eq!(header(&v2(0x21, 0x21, &ipv6)), (52, Some("192.0.2.1".into())));
        assert_eq!(header(&v2(0x21, 0x31, &[1; UNIX_BYTES])), (232, None));
        assert_eq!(header(&v2(0x21, 0x00, b"")), (16, None));
        // LOCAL: whatever else it says.
        assert_eq!(header(&v2(0x20, 0x00, b"")), (16, None));
        assert_eq!(header(&v2(0x20, 0x11, &ipv4)), (35, None));
        assert_eq!(header(&v2(0x20, 0x99, b"x")), (17, None));
    }

    #[test]
    fn a_malformed_header_is_refused_before_its_rest_arrives() {
        for (command, family, length) in [
            (0x11, 0x11, 12),
            (0x22, 0x11, 12),
            (0x21, 0x12, 12),
            (0x21, 0x10, 12),
            (0x21, 0x41, 12),
            (0x21, 0x01, 12),
            (0x21, 0x11, 11),
            (0x21, 0x21, 35),
            (0x21, 0x31, 215),
        ] {
            let whole = v2(command, family, &vec![1; length]);
            assert!(of(&whole[..V2_FIXED_BYTES]).is_err(), "{command:x} {family:x} {length}");
        }
        let longest = v2(0x20, 0, &[0; MAX_BYTES - V2_FIXED_BYTES]);
        assert_eq!(header(&longest), (MAX_BYTES, None));
        let too_long = v2(0x20, 0, &[0; MAX_BYTES - V2_FIXED_BYTES + 1]);
        assert!(of(&too_long[..V2_FIXED_BYTES]).is_err());
    }

    #[test]
    fn a_header_cut_anywhere_is_incomplete() {
        let v1 = b"PROXY TCP4 192.0.2.1 10.0.0.1 65535 8812\r\n";
        for whole in [v1.to_vec(), v2(0x21, 0x11, &[1; 20]), v2(0x20, 0, b"")] {
            for cut in 0..whole.len() {
                assert_eq!(of(&whole[..cut]), Ok(Beginning::Incomplete), "cut at {cut}");
            }
            assert_eq!(header(&whole).0, whole.len());
        }
    }

    #[test]
    fn what_begins_otherwise_is_no_header() {
        for other in ["G", "POST", "PUT", "PROXY/", "\r\n\r\nG", "\r\n\r\n\0\r\nQUIT\r", "\0"] {
            assert_eq!(of(other.as_bytes()), Ok(Beginning::Other), "{other:?}");
        }
        for few in ["", "P", "PR", "PROXY", "\r", "\r\n\r\n"] {
            assert_eq!(of(few.as_bytes()), Ok(Beginning::Incomplete), "{few:?}");
        }
    }

    proptest! {
        /// More bytes never change what is known, and a header is never longer than its bytes.
        #[test]
        fn any_bytes_cut_anywhere(
            start in prop::sample::select(vec![&b""[..], b"PROXY TCP4 ", V2_SIGNATURE]),
            bytes in vec(any::<u8>(), 0..300),
            max_bytes in 16..400_usize,
        ) {
            let bytes = [start, &bytes].concat();
            let whole = read(&bytes, max_bytes);
            for cut in 0..bytes.len() {
                match read(&bytes[..cut], max_bytes) {
                    Ok(Beginning::Incomplete) => {}
                    known => prop_assert_eq!(known, whole),
                }
            }
            if let Ok(Beginning::Header(header)) = whole {
                prop_assert!(header.len <= bytes.len().min(max_bytes.max(V1_MAX_BYTES)));
            }
        }

        #[test]
        fn what_a_proxy_writes_is_read(
            bits: u128, is_ipv4: bool, port: u16, rest in vec(any::<u8>(), 0..60),
        ) {
            let ip = match is_ipv4 {
                true => IpAddr::V4(Ipv4Addr::from_bits(bits as u32)),
                false => IpAddr::V6(Ipv6Addr::from_bits(bits)),
            };
            let (name, family) = if is_ipv4 { ("TCP4", 0x11) } else { ("TCP6", 0x21) };
            let line = format!("PROXY {name} {ip} {ip} {port} {port}\r\n");
            let octets = match ip {
                IpAddr::V4(ip) => ip.octets().to_vec(),
                IpAddr::V6(ip) => ip.octets().to_vec(),
            };
            let ports = [port.to_be_bytes(), port.to_be_bytes()].concat();
            let binary = v2(0x21, family, &[&octets[..], &octets, &ports, &rest].concat());
            for header in [line.into_bytes(), binary] {
                let expected = ProxyHeader { len: header.len(), client: Some(ip.to_canonical()) };
                let bytes = [&header, &b"GET / HTTP/1.1\r\n"[..]].concat();
                prop_assert_eq!(of(&bytes), Ok(Beginning::Header(expected)));
            }
        }
    }
}
