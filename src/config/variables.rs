//! Environment variables that look like the node's own but are not.

use super::flags::PREFIX;
use crate::types::similar;

/// Variables of the project's tools, tests and examples.
const OTHERS: [&str; 4] = ["BIN", "COMMIT", "PICTURES", "SECRET"];

/// Returns a warning for each name that belongs to no flag, with the nearest that does. Values may
/// be secrets: they are checked but not shown.
pub(super) fn unknown<'a>(
    variables: impl IntoIterator<Item = (&'a str, &'a str)>,
    flags: &[&str],
) -> Vec<String> {
    let mut warnings = Vec::new();
    for (name, value) in variables {
        let Some(end) = name.strip_prefix(PREFIX) else { continue };
        let lower = end.to_ascii_lowercase();
        let is_known = flags.contains(&&*lower) && lower.to_ascii_uppercase() == end;
        if is_known || OTHERS.contains(&end) || is_of_kubernetes(end, value) {
            continue;
        }
        let hint = match similar(&lower, flags) {
            Some(flag) => format!("{PREFIX}{} is", flag.to_ascii_uppercase()),
            None => "ws-cluster --help lists the flags, which are".into(),
        };
        warnings.push(format!("{name} is not a variable of ws-cluster and has no effect; {hint}"));
    }
    warnings
}

/// Returns whether Kubernetes sets this variable. In a namespace with a service `ws-cluster` or
/// `ws-cluster-http`, every container gets `WS_CLUSTER_PORT` or `WS_CLUSTER_HTTP_PORT`, such as
/// `tcp://10.0.0.1:80`.
fn is_of_kubernetes(end: &str, value: &str) -> bool {
    let behind = |mark: &str| {
        let inside = || end.split_once(&format!("_{mark}")).map(|(_, rest)| rest);
        end.strip_prefix(mark).or_else(inside)
    };
    let of_port = behind("PORT_").unwrap_or("");
    let port = of_port.bytes().take_while(u8::is_ascii_digit).count();
    behind("SERVICE_HOST") == Some("")
        || behind("SERVICE_PORT").is_some_and(|rest| rest.is_empty() || rest.starts_with('_'))
        || (behind("PORT") == Some("") && is_service_url(value))
        || (port > 0 && of_port[port..].starts_with('_'))
}

/// Returns whether the value is the address of a service as Kubernetes writes it.
pub(super) fn is_service_url(value: &str) -> bool {
    let protocols = ["tcp://", "udp://", "sctp://"];
    protocols.iter().any(|protocol| value.starts_with(protocol))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLAGS: [&str; 5] = ["ws_port", "http_port", "redis", "queue", "idle_timeout_ms"];

    #[test]
    fn a_name_that_no_flag_has_is_warned_of_with_the_nearest() {
        for (name, hint) in [
            ("WS_CLUSTER_WSPORT", "WS_CLUSTER_WS_PORT is"),
            ("WS_CLUSTER_PORT", "WS_CLUSTER_WS_PORT is"),
            ("WS_CLUSTER_WS-PORT", "WS_CLUSTER_WS_PORT is"),
            ("WS_CLUSTER_ws_port", "WS_CLUSTER_WS_PORT is"),
            ("WS_CLUSTER_REDIS_", "WS_CLUSTER_REDIS is"),
            ("WS_CLUSTER_SERVICE_PORTS", "ws-cluster --help lists"),
            ("WS_CLUSTER_IDLE_TIMEOUT", "WS_CLUSTER_IDLE_TIMEOUT_MS is"),
            ("WS_CLUSTER_COLOUR_OF_THE_SKY", "ws-cluster --help lists"),
        ] {
            let warnings = unknown([(name, "hunter2")], &FLAGS);
            assert_eq!(warnings.len(), 1, "{name}");
            let wanted =
                format!("{name} is not a variable of ws-cluster and has no effect; {hint}");
            assert!(warnings[0].starts_with(&wanted), "{warnings:?}");
            assert!(!warnings[0].contains("hunter2"));
        }
    }

    #[test]
    fn names_of_flags_of_tools_of_kubernetes_and_of_others_are_not() {
        let variables = [
            ("WS_CLUSTER_WS_PORT", "1"),
            ("WS_CLUSTER_BIN", "target/debug/ws-cluster"),
            ("WS_CLUSTER_SERVICE_HOST", "10.0.0.1"),
            ("WS_CLUSTER_SERVICE_PORT_WS", "8812"),
            ("WS_CLUSTER_PORT", "tcp://10.0.0.1:8812"),
            ("WS_CLUSTER_PORT_8812_TCP_ADDR", "10.0.0.1"),
            ("WS_CLUSTER_REDIS_SERVICE_HOST", "10.0.0.2"),
            ("WS_CLUSTER_REDIS_SERVICE_PORT", "6379"),
            ("WS_CLUSTER_REDIS_PORT", "tcp://10.0.0.2:6379"),
            ("WS_CLUSTER_REDIS_PORT_6379_TCP", "tcp://10.0.0.2:6379"),
            ("PATH", "/bin"),
            ("WS_CLUSTERX", ""),
        ];
        assert!(unknown(variables, &FLAGS).is_empty());
    }
}
