//! OpenTelemetry's standard variables of the environment, as far as traces need them.

use super::Exit;
use crate::io::spans::Sampler;
use crate::ops::otel::{Hidden, OtelSettings};
use std::time::Duration;

/// `None`: no endpoint is named, or OTEL_SDK_DISABLED is true, and nothing is traced.
pub(super) fn from_env(
    env: &dyn Fn(&str) -> Option<String>,
    warnings: &mut Vec<String>,
) -> Result<Option<OtelSettings>, Exit> {
    let get = |name: &str| env(name).filter(|text| !text.is_empty());
    let of_traces = |name: &str| {
        get(&format!("OTEL_EXPORTER_OTLP_TRACES_{name}"))
            .or_else(|| get(&format!("OTEL_EXPORTER_OTLP_{name}")))
    };
    let whole = get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT");
    let base = get("OTEL_EXPORTER_OTLP_ENDPOINT");
    let base = base.map(|base| format!("{}/v1/traces", base.trim_end_matches('/')));
    let is_disabled = get("OTEL_SDK_DISABLED").is_some_and(|text| text == "true");
    let exporter = get("OTEL_TRACES_EXPORTER").unwrap_or_else(|| "otlp".into());
    let Some(url) = whole.or(base).filter(|_| !is_disabled && exporter != "none") else {
        return Ok(None);
    };
    if !url.starts_with("http://") && !url.starts_with("https://") {
        return Err(Exit::Error(
            "OTEL_EXPORTER_OTLP_ENDPOINT must begin with http:// or https://, e.g. \
             http://127.0.0.1:4318"
                .into(),
        ));
    }
    if let Some(protocol) = of_traces("PROTOCOL").filter(|text| text != "http/protobuf") {
        warnings.push(format!(
            "OTEL_EXPORTER_OTLP_PROTOCOL={protocol} is not served: traces go as http/protobuf"
        ));
    }
    let timeout_ms = match of_traces("TIMEOUT") {
        None => 10_000,
        Some(text) => text.parse().map_err(|_| {
            let fix = "milliseconds, e.g. 10000";
            Exit::Error(format!("OTEL_EXPORTER_OTLP_TIMEOUT '{text}' is no number: {fix}"))
        })?,
    };
    let mut attributes = pairs(&get("OTEL_RESOURCE_ATTRIBUTES").unwrap_or_default());
    if let Some(name) = get("OTEL_SERVICE_NAME") {
        attributes.retain(|(key, _)| key != "service.name");
        attributes.insert(0, ("service.name".into(), name));
    } else if !attributes.iter().any(|(key, _)| key == "service.name") {
        attributes.insert(0, ("service.name".into(), "ws-cluster".into()));
    }
    let headers = pairs(&of_traces("HEADERS").unwrap_or_default());
    Ok(Some(OtelSettings {
        url,
        headers: headers.into_iter().map(|(name, value)| (name, Hidden(value))).collect(),
        timeout: Duration::from_millis(timeout_ms),
        attributes,
        sampler: sampler(get("OTEL_TRACES_SAMPLER"), get("OTEL_TRACES_SAMPLER_ARG"))?,
    }))
}

/// `key=value,key=value`, values percent-encoded (the format of W3C Baggage).
fn pairs(text: &str) -> Vec<(String, String)> {
    let pair = |pair: &str| {
        let (key, value) = pair.split_once('=')?;
        Some((key.trim().to_owned(), decode(value.trim())))
    };
    text.split(',').filter_map(pair).filter(|(key, _)| !key.is_empty()).collect()
}

fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        let digits = tail.get(..2).and_then(|two| std::str::from_utf8(two).ok());
        match digits.and_then(|two| u8::from_str_radix(two, 16).ok()).filter(|_| byte == b'%') {
            Some(decoded) => {
                bytes.push(decoded);
                rest = &tail[2..];
            }
            None => {
                bytes.push(byte);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The default is what the specification says: all, unless the caller has decided otherwise.
fn sampler(name: Option<String>, arg: Option<String>) -> Result<Sampler, Exit> {
    let ratio = match arg.as_deref().map(str::parse::<f64>) {
        None => 1.0,
        Some(Ok(ratio)) if (0.0..=1.0).contains(&ratio) => ratio,
        Some(_) => {
            return Err(Exit::Error(format!(
                "OTEL_TRACES_SAMPLER_ARG '{}' is no share: give a number from 0 to 1, e.g. 0.01",
                arg.unwrap_or_default()
            )));
        }
    };
    let name = name.unwrap_or_else(|| "parentbased_always_on".into());
    let (follows_parent, base) = match name.strip_prefix("parentbased_") {
        Some(base) => (true, base),
        None => (false, &*name),
    };
    let share = match base {
        "always_on" => 1.0,
        "always_off" => 0.0,
        "traceidratio" => ratio,
        _ => {
            return Err(Exit::Error(format!(
                "OTEL_TRACES_SAMPLER '{name}' is not known: give always_on, always_off or \
                 traceidratio, also with parentbased_ before it"
            )));
        }
    };
    Ok(Sampler { parts_per_billion: (share * 1e9) as u32, follows_parent })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(env: &[(&str, &str)]) -> Result<Option<OtelSettings>, Exit> {
        let find = |name: &str| {
            env.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        };
        from_env(&find, &mut Vec::new())
    }

    const ENDPOINT: (&str, &str) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4318/");

    #[test]
    fn without_an_endpoint_nothing_is_traced() {
        assert_eq!(read(&[]), Ok(None));
        assert_eq!(read(&[ENDPOINT, ("OTEL_SDK_DISABLED", "true")]), Ok(None));
        assert_eq!(read(&[ENDPOINT, ("OTEL_TRACES_EXPORTER", "none")]), Ok(None));
    }

    #[test]
    fn the_standard_variables() {
        let settings = read(&[ENDPOINT]).unwrap().unwrap();
        assert_eq!(settings.url, "http://c:4318/v1/traces");
        assert_eq!(settings.attributes, [("service.name".into(), "ws-cluster".into())]);
        assert_eq!(settings.timeout, Duration::from_secs(10));
        let all = Sampler { parts_per_billion: 1_000_000_000, follows_parent: true };
        assert_eq!(settings.sampler, all);
        let settings = read(&[
            ENDPOINT,
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "https://t/x"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "api-key=a%20b, x=y"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "500"),
            ("OTEL_SERVICE_NAME", "push"),
            ("OTEL_RESOURCE_ATTRIBUTES", "service.name=no,zone=z1"),
            ("OTEL_TRACES_SAMPLER", "traceidratio"),
            ("OTEL_TRACES_SAMPLER_ARG", "0.25"),
        ]);
        let settings = settings.unwrap().unwrap();
        assert_eq!(settings.url, "https://t/x");
        assert_eq!(settings.headers[0], ("api-key".into(), Hidden("a b".into())));
        assert!(!format!("{settings:?}").contains("a b"));
        assert_eq!(settings.attributes[0].1, "push");
        assert_eq!(settings.attributes[1], ("zone".into(), "z1".into()));
        let quarter = Sampler { parts_per_billion: 250_000_000, follows_parent: false };
        assert_eq!(settings.sampler, quarter);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (name, value, says) in [
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "c:4318", "must begin with http"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "soon", "milliseconds"),
            ("OTEL_TRACES_SAMPLER", "some", "is not known"),
            ("OTEL_TRACES_SAMPLER_ARG", "2", "from 0 to 1"),
        ] {
            let error = read(&[ENDPOINT, (name, value)]).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }
}
