//! The program's arguments, as `/debug/pprof/cmdline` shows them.

use crate::wire::redis_url::RedisUrl;
use std::str::FromStr;

const MASK: &str = "***";

/// Formats arguments separated by NUL, as Go does; secrets are masked.
pub fn show(args: impl IntoIterator<Item = String>) -> String {
    let mut shown: Vec<String> = Vec::new();
    // How to mask the next argument, the value of the flag before it.
    let mut pending: Option<Mask> = None;
    for arg in args {
        if let Some(mask) = pending.take() {
            shown.push(mask(&arg));
            continue;
        }
        match arg.split_once('=') {
            Some((flag, value)) if let Some(mask) = mask_of(flag) => {
                shown.push(format!("{flag}={}", mask(value)));
            }
            _ => {
                pending = mask_of(&arg);
                shown.push(arg);
            }
        }
    }
    shown.join("\0")
}

type Mask = fn(&str) -> String;

/// Returns how to show the value of a flag, if not as it is.
fn mask_of(flag: &str) -> Option<Mask> {
    match flag.replace('_', "-").as_str() {
        "--ops-token" | "--sentry-dsn" => Some(|_| MASK.into()),
        "--redis" => Some(|url| RedisUrl::from_str(url).map_or(MASK.into(), |url| url.to_string())),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(args: &str) -> String {
        show(args.split(' ').map(String::from)).replace('\0', " ")
    }

    #[test]
    fn secrets_are_masked_however_they_were_given() {
        for (given, expected) in [
            ("/opt/ws-cluster", "/opt/ws-cluster"),
            ("a --ops_token abc --echo", "a --ops_token *** --echo"),
            ("a --ops-token=a=b --log x=y", "a --ops-token=*** --log x=y"),
            ("a --sentry_dsn https://key@host/1 b", "a --sentry_dsn *** b"),
            ("a --echo --redis redis://:p@h:1", "a --echo --redis redis://:***@h:1/0"),
            ("a --redis=redis://u:p@h:1/2 b", "a --redis=redis://u:***@h:1/2 b"),
            ("a --redis redis://h:6379/0", "a --redis redis://h:6379/0"),
            ("a --redis no:p@url", "a --redis ***"),
            ("a --ops_token --redis redis://:p@h", "a --ops_token *** redis://:p@h"),
            ("a --redis_prefix x --redis", "a --redis_prefix x --redis"),
        ] {
            assert_eq!(shown(given), expected);
        }
    }
}
