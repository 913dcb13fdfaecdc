//! The names of `--ops_hosts`.

use super::flags;
use super::setting::Source;
use std::net::IpAddr;

pub(super) fn resolve(from: &Source<'_>) -> Vec<String> {
    let setting = from.get(&flags::OPS_HOSTS);
    let text = setting.text.as_deref().unwrap_or("");
    let names = text.split(',').map(str::trim).filter(|name| !name.is_empty());
    let parsed = names.map(|name| parse(&setting.name(), name));
    parsed.filter_map(|name| name.map_err(|what| setting.report(what)).ok()).collect()
}

fn parse(flag: &str, name: &str) -> Result<String, String> {
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    if name.bytes().all(is_plain) || name.parse::<IpAddr>().is_ok() {
        return Ok(name.to_ascii_lowercase());
    }
    Err(format!(
        "{flag} '{name}' is not a host name: use names or IP addresses without a scheme or port, \
         separated by commas, e.g. --ops_hosts node-1.example,node-1"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_addresses_and_nothing_else() {
        for name in ["node-1.example", "a_b", "10.0.0.7", "fe80::1"] {
            assert_eq!(parse("--ops_hosts", name).unwrap(), name);
        }
        for name in ["http://a", "a:9092", "a/b", "*", "a b", "[::1]"] {
            let error = parse("--ops_hosts", name).unwrap_err();
            assert!(error.contains(&format!("--ops_hosts '{name}' is not a host name")), "{error}");
        }
    }
}
