//! Lists of IP networks in CIDR notation.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// Bits of an address. An IPv4 address is in the last 32, behind `::ffff:0:0/96`, as RFC 4291 maps
/// it: so an IPv4-mapped IPv6 address is that IPv4 address.
const BITS: u32 = 128;
const IPV4_BITS: u32 = 32;
const IPV4_PREFIX: u128 = 0xffff << IPV4_BITS;

/// A list of IPv4 and IPv6 networks; by default none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Networks(Vec<Network>);

/// One network: the first of its addresses, and the bits that all of them share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Network {
    first: u128,
    mask: u128,
}

/// Why a text is not a network; formatted to follow the text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NetworkError {
    #[error("is not an IP address with an optional prefix length")]
    Address,
    #[error("has a prefix length that is not a number from 0 to {0}")]
    Prefix(u32),
    /// Most likely a typing error, in the address or in the length.
    #[error("has bits set behind its prefix: the network is {0}")]
    Host(String),
}

impl Networks {
    /// A list without any network.
    pub const NONE: Self = Self(Vec::new());

    /// Parses a comma-separated list; spaces around an entry do not matter. Fails with the first
    /// entry that is wrong.
    pub fn parse(text: &str) -> Result<Self, (&str, NetworkError)> {
        if text.trim().is_empty() {
            return Ok(Self::NONE);
        }
        let entries = text.split(',').map(str::trim);
        let networks = entries.map(|entry| entry.parse().map_err(|error| (entry, error)));
        networks.collect::<Result<_, _>>().map(Self)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns whether an address is in one of the networks. `::/0` contains no IPv4 address.
    pub fn contains(&self, ip: IpAddr) -> bool {
        let bits = bits_of(ip);
        self.0.iter().any(|network| network.contains(bits))
    }
}

impl Network {
    fn contains(self, bits: u128) -> bool {
        bits & self.mask == self.first && is_ipv4(bits) == self.is_ipv4()
    }

    fn is_ipv4(self) -> bool {
        is_ipv4(self.first) && self.mask.count_ones() >= BITS - IPV4_BITS
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let prefix = self.mask.count_ones();
        match self.is_ipv4() {
            true => {
                let ip = Ipv4Addr::from_bits(self.first as u32);
                write!(f, "{ip}/{}", prefix - (BITS - IPV4_BITS))
            }
            false => write!(f, "{}/{prefix}", Ipv6Addr::from_bits(self.first)),
        }
    }
}

impl FromStr for Network {
    type Err = NetworkError;

    /// Without a prefix length it is that address alone.
    fn from_str(text: &str) -> Result<Self, NetworkError> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let ip: IpAddr = address.parse().map_err(|_| NetworkError::Address)?;
        let max = if ip.is_ipv4() { IPV4_BITS } else { BITS };
        let prefix = match prefix {
            None => max,
            Some(prefix) => {
                let digits_only = prefix.bytes().all(|b| b.is_ascii_digit());
                let length = prefix.parse().ok().filter(|&length| digits_only && length <= max);
                length.ok_or(NetworkError::Prefix(max))?
            }
        };
        let host_bits = max - prefix;
        let mask = if host_bits == BITS { 0 } else { u128::MAX << host_bits };
        let bits = bits_of(ip);
        let network = Self { first: bits & mask, mask };
        match network.first == bits {
            true => Ok(network),
            false => Err(NetworkError::Host(network.to_string())),
        }
    }
}

fn bits_of(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => IPV4_PREFIX | u128::from(ip.to_bits()),
        IpAddr::V6(ip) => ip.to_bits(),
    }
}

fn is_ipv4(bits: u128) -> bool {
    bits >> IPV4_BITS == IPV4_PREFIX >> IPV4_BITS
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn contains(list: &str, ip: &str) -> bool {
        Networks::parse(list).unwrap().contains(ip.parse().unwrap())
    }

    #[test]
    fn an_address_is_in_its_network_and_in_no_other() {
        for (list, inside, outside) in [
            ("10.0.0.0/8", "10.255.0.1", "11.0.0.0"),
            ("127.0.0.1", "127.0.0.1", "127.0.0.2"),
            ("127.0.0.1", "::ffff:127.0.0.1", "::1"),
            ("::ffff:10.0.0.0/104", "10.1.2.3", "11.0.0.0"),
            ("::1, 192.168.1.0/24", "192.168.1.255", "192.168.2.0"),
            ("::1, 192.168.1.0/24", "::1", "::2"),
            ("2001:db8::/33", "2001:db8:7fff::1", "2001:db8:8000::"),
            ("0.0.0.0/0", "255.255.255.255", "::"),
            ("::/0", "2001:db8::1", "1.2.3.4"),
            ("::/0", "::", "::ffff:1.2.3.4"),
        ] {
            assert!(contains(list, inside), "{inside} in {list}");
            assert!(!contains(list, outside), "{outside} in {list}");
        }
        for empty in ["", " "] {
            let none = Networks::parse(empty).unwrap();
            assert!(none.is_empty() && !none.contains("::1".parse().unwrap()), "{empty:?}");
        }
    }

    #[test]
    fn the_wrong_entry_is_named() {
        for (list, wrong, start) in [
            ("10.0.0.0/8,,::1", "", "is not an IP address"),
            ("::1, example.org", "example.org", "is not an IP address"),
            ("10.0.0.0/8 10.0.0.1", "10.0.0.0/8 10.0.0.1", "has a prefix length that is not a"),
            ("10.0.0.0/33", "10.0.0.0/33", "has a prefix length that is not a number from 0 to 32"),
            ("::/129", "::/129", "has a prefix length that is not a number from 0 to 128"),
            ("10.0.0.0/", "10.0.0.0/", "has a prefix length"),
            ("10.0.0.0/+8", "10.0.0.0/+8", "has a prefix length"),
            ("[::1]", "[::1]", "is not an IP address"),
            (
                "10.0.0.7/8",
                "10.0.0.7/8",
                "has bits set behind its prefix: the network is 10.0.0.0/8",
            ),
            ("::1/64", "::1/64", "has bits set behind its prefix: the network is ::/64"),
        ] {
            let (entry, error) = Networks::parse(list).unwrap_err();
            assert_eq!(entry, wrong);
            assert!(error.to_string().starts_with(start), "{list}: {error}");
        }
    }

    proptest! {
        #[test]
        fn any_text_never_panics(text in "[0-9a-f:./, ]{0,40}") {
            let _ = Networks::parse(&text);
        }

        #[test]
        fn all_addresses_of_a_network_are_in_it(bits: u128, host: u128, prefix in 0..=128_u32) {
            let mask = u128::MAX.checked_shl(128 - prefix).unwrap_or(0);
            let first = Ipv6Addr::from_bits(bits & mask);
            let text = format!("{first}/{prefix}");
            let ip = Ipv6Addr::from_bits(bits & mask | host & !mask);
            let is_in = Networks::parse(&text).unwrap().contains(ip.into());
            prop_assert!(is_in || ip.to_ipv4_mapped().is_some());
        }
    }
}
