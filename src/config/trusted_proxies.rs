//! The networks of `--trusted_proxies`.

use super::flags;
use super::setting::Source;
use crate::types::Networks;

pub(super) fn resolve(from: &Source<'_>) -> Networks {
    let setting = from.get(&flags::TRUSTED_PROXIES);
    let text = setting.text.as_deref().unwrap_or("");
    Networks::parse(text).unwrap_or_else(|(entry, error)| {
        setting.report(format!(
            "{}: '{entry}' {error}; use networks in CIDR notation or IP addresses, separated by \
             commas, e.g. {}",
            setting.name(),
            setting.written("10.0.0.0/8,::1")
        ));
        Networks::default()
    })
}

#[cfg(test)]
mod tests {
    use super::super::Config;

    fn config(list: &str) -> Result<Config, String> {
        let args = ["--trusted_proxies".to_owned(), list.to_owned()];
        Config::from_args(&args, &|_| None).map_err(|exit| exit.to_string())
    }

    #[test]
    fn networks_of_both_kinds_and_nobody_by_default() {
        let trusted = config(" 10.0.0.0/8, 192.0.2.1,2001:db8::/32").unwrap().settings;
        for (ip, is_trusted) in [
            ("10.1.2.3", true),
            ("192.0.2.1", true),
            ("::ffff:192.0.2.1", true),
            ("2001:db8:1::", true),
            ("192.0.2.2", false),
            ("::1", false),
        ] {
            assert_eq!(trusted.trusted_proxies.contains(ip.parse().unwrap()), is_trusted, "{ip}");
        }
        let nobody = Config::from_args(&[], &|_| None).unwrap().settings.trusted_proxies;
        assert!(nobody.is_empty());
    }

    #[test]
    fn errors_name_the_entry() {
        for (list, text) in [
            ("10.0.0.0/8,proxy", "--trusted_proxies: 'proxy' is not an IP address"),
            ("10.0.0.0/40", "'10.0.0.0/40' has a prefix length that is not a number from 0 to 32"),
            (
                "10.0.0.1/8",
                "'10.0.0.1/8' has bits set behind its prefix: the network is 10.0.0.0/8",
            ),
            ("::1,", "'' is not an IP address"),
        ] {
            let error = config(list).unwrap_err();
            assert!(error.contains(text), "{error}");
            assert!(error.ends_with("e.g. --trusted_proxies 10.0.0.0/8,::1"), "{error}");
        }
    }
}
