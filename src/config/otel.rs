//! OpenTelemetry's standard environment variables, as far as traces need them, read as its
//! specification requires: an empty one counts as absent, and a wrong one causes a warning and is
//! ignored. None keeps a node from starting, because a fleet shares these variables.

use crate::io::spans::Sampler;
use crate::ops::otel::{Hidden, OtelSettings};
use crate::wire::percent::{Plus, decode};
use std::str::FromStr;
use std::time::Duration;
use ureq::http::Uri;

/// The collector's address if the exporter is named without an endpoint.
const DEFAULT_ENDPOINT: &str = "http://localhost:4318";
const DEFAULT_TIMEOUT_MS: u64 = 10_000;
/// A timeout of 0 means none.
const NO_TIMEOUT: Duration = Duration::from_secs(86_400);
/// Header fields that belong to the request itself: with another value the collector could not read
/// it.
const OWN_HEADERS: [&str; 6] = [
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "host",
    "transfer-encoding",
];
/// Other settings that are not supported, and why.
const NOT_SUPPORTED: [(&str, &str); 6] = [
    ("OTEL_BSP_SCHEDULE_DELAY", "spans are sent twice a second"),
    ("OTEL_BSP_EXPORT_TIMEOUT", "OTEL_EXPORTER_OTLP_TIMEOUT limits the time of a request"),
    ("OTEL_BSP_MAX_QUEUE_SIZE", "8192 spans of a worker may wait"),
    ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "a request has at most 2048 spans"),
    ("OTEL_CONFIG_FILE", "only environment variables are read"),
    ("OTEL_EXPERIMENTAL_CONFIG_FILE", "only environment variables are read"),
];
/// Exporter settings that are not supported, and why.
const NOT_SERVED: [(&str, &str); 4] = [
    ("COMPRESSION", "requests are not compressed"),
    ("CERTIFICATE", "the system's certificates are used; SSL_CERT_FILE can name others"),
    ("CLIENT_KEY", "no client certificate is sent"),
    ("CLIENT_CERTIFICATE", "no client certificate is sent"),
];

/// Reads the settings. `None`: no traces, because no endpoint is named or they are switched off.
pub(super) fn from_env(
    env: &dyn Fn(&str) -> Option<String>,
    warnings: &mut Vec<String>,
) -> Option<OtelSettings> {
    Reader { env, warnings }.settings()
}

struct Reader<'a> {
    env: &'a dyn Fn(&str) -> Option<String>,
    warnings: &'a mut Vec<String>,
}

impl Reader<'_> {
    fn settings(mut self) -> Option<OtelSettings> {
        if self.is_disabled() {
            return None;
        }
        let url = self.url()?;
        self.warn_of_what_is_not_served();
        Some(OtelSettings {
            url,
            headers: self.headers(),
            timeout: self.timeout(),
            attributes: self.attributes(),
            sampler: self.sampler(),
        })
    }

    fn get(&self, name: &str) -> Option<String> {
        (self.env)(name).map(|text| text.trim().to_owned()).filter(|text| !text.is_empty())
    }

    /// Returns the elements of a list of names, in lower case.
    fn names(&self, name: &str) -> Vec<String> {
        let text = self.get(name).unwrap_or_default().to_ascii_lowercase();
        let names = text.split(',').map(str::trim).filter(|one| !one.is_empty());
        names.map(str::to_owned).collect()
    }

    /// Returns an exporter variable with its name: the one for traces, else the one for all
    /// signals.
    fn of_traces(&self, end: &str) -> Option<(String, String)> {
        ["OTEL_EXPORTER_OTLP_TRACES_", "OTEL_EXPORTER_OTLP_"].into_iter().find_map(|start| {
            let name = format!("{start}{end}");
            self.get(&name).map(|text| (name, text))
        })
    }

    fn warn(&mut self, text: impl Into<String>) {
        self.warnings.push(text.into());
    }

    fn is_disabled(&mut self) -> bool {
        let Some(text) = self.get("OTEL_SDK_DISABLED") else { return false };
        if !["true", "false"].iter().any(|known| text.eq_ignore_ascii_case(known)) {
            self.warn(format!("OTEL_SDK_DISABLED '{text}' is not true or false: false is used"));
        }
        text.eq_ignore_ascii_case("true")
    }

    /// Returns the URL for spans. The endpoint for all signals is a base, that for traces the whole
    /// URL.
    fn url(&mut self) -> Option<String> {
        let exporters = self.names("OTEL_TRACES_EXPORTER");
        let is_named = exporters.iter().any(|one| one == "otlp");
        for other in exporters.iter().filter(|one| !["otlp", "none"].contains(&&***one)) {
            self.warn(format!(
                "OTEL_TRACES_EXPORTER '{other}' is not supported: only otlp and none are"
            ));
        }
        let is_off = ["none", "console", "logging", "zipkin", "jaeger"];
        if !is_named && exporters.iter().any(|one| is_off.contains(&&**one)) {
            return None;
        }
        let (name, endpoint) = match self.of_traces("ENDPOINT") {
            Some(found) => found,
            None if is_named => ("OTEL_EXPORTER_OTLP_ENDPOINT".into(), DEFAULT_ENDPOINT.into()),
            None => return None,
        };
        let is_whole_url = name.contains("_TRACES_");
        let url = url_for_spans(&endpoint, is_whole_url);
        if url.is_none() {
            self.warn(format!(
                "{name} is not a URL that begins with http:// or https://, such as \
                 http://127.0.0.1:4318: tracing is off"
            ));
        }
        url
    }

    fn warn_of_what_is_not_served(&mut self) {
        if let Some((name, protocol)) = self.of_traces("PROTOCOL")
            && !protocol.eq_ignore_ascii_case("http/protobuf")
        {
            self.warn(format!("{name} '{protocol}' is not supported: http/protobuf is used"));
        }
        for (end, why) in NOT_SERVED {
            if let Some((name, text)) = self.of_traces(end)
                && !text.eq_ignore_ascii_case("none")
            {
                self.warn(format!("{name} is not supported: {why}"));
            }
        }
        for (name, why) in NOT_SUPPORTED {
            if self.get(name).is_some() {
                self.warn(format!("{name} is not supported: {why}"));
            }
        }
    }

    /// Returns whether `traceparent` is read: by default, and if the list of propagators has it.
    fn continues_traces(&mut self) -> bool {
        let propagators = self.names("OTEL_PROPAGATORS");
        let mut known = false;
        for one in &propagators {
            match &**one {
                "tracecontext" | "baggage" | "none" => known = true,
                other => self.warn(format!(
                    "OTEL_PROPAGATORS '{other}' is not supported: only tracecontext (the header \
                     traceparent) and none are"
                )),
            }
        }
        !known || propagators.iter().any(|one| one == "tracecontext")
    }

    fn timeout(&mut self) -> Duration {
        let Some((name, text)) = self.of_traces("TIMEOUT") else {
            return Duration::from_millis(DEFAULT_TIMEOUT_MS);
        };
        match text.parse() {
            Ok(0) => NO_TIMEOUT,
            Ok(timeout_ms) => Duration::from_millis(timeout_ms).min(NO_TIMEOUT),
            Err(_) => {
                self.warn(format!(
                    "{name} '{text}' is not a number of milliseconds: {DEFAULT_TIMEOUT_MS} is used"
                ));
                Duration::from_millis(DEFAULT_TIMEOUT_MS)
            }
        }
    }

    /// Returns the headers. Their values may be secret: warnings do not show them.
    fn headers(&mut self) -> Vec<(String, Hidden)> {
        let Some((name, text)) = self.of_traces("HEADERS") else { return Vec::new() };
        let is_token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
        let is_good = |(field, value): &(String, String)| {
            let is_visible = |b: u8| b == b'\t' || (b' '..=b'~').contains(&b);
            field.bytes().all(is_token) && value.bytes().all(is_visible)
        };
        match pairs(&text).filter(|pairs| pairs.iter().all(is_good)) {
            Some(mut pairs) => {
                for own in OWN_HEADERS {
                    let given = pairs.len();
                    pairs.retain(|(field, _)| !field.eq_ignore_ascii_case(own));
                    if pairs.len() < given {
                        self.warn(format!("{name}: {own} is ignored: the request has its own"));
                    }
                }
                pairs.into_iter().map(|(field, value)| (field, Hidden(value))).collect()
            }
            None => {
                self.warn(format!(
                    "{name} is not a list name=value,name=value with percent-encoded values: none \
                     of its headers is sent"
                ));
                Vec::new()
            }
        }
    }

    /// Returns the attributes, `service.name` first and each key once: of several values the last
    /// counts.
    fn attributes(&mut self) -> Vec<(String, String)> {
        let text = self.get("OTEL_RESOURCE_ATTRIBUTES").unwrap_or_default();
        let given = pairs(&text).unwrap_or_else(|| {
            self.warn(
                "OTEL_RESOURCE_ATTRIBUTES is not a percent-encoded list key=value,key=value: it is \
                 ignored",
            );
            Vec::new()
        });
        let mut attributes: Vec<(String, String)> = Vec::with_capacity(given.len() + 1);
        for (key, value) in given {
            match attributes.iter_mut().find(|(known, _)| *known == key) {
                Some((_, earlier)) => *earlier = value,
                None => attributes.push((key, value)),
            }
        }
        let named = attributes.iter().position(|(key, _)| key == "service.name");
        let named = named.map(|index| attributes.remove(index).1).filter(|name| !name.is_empty());
        let name = self.get("OTEL_SERVICE_NAME").or(named).unwrap_or_else(|| "ws-cluster".into());
        attributes.insert(0, ("service.name".into(), name));
        attributes
    }

    /// Returns the sampler. The specification's default: all, unless the caller has decided
    /// otherwise.
    fn sampler(&mut self) -> Sampler {
        let continues_traces = self.continues_traces();
        let default = "parentbased_always_on";
        let name = self.get("OTEL_TRACES_SAMPLER").unwrap_or_else(|| default.into());
        let lower = name.to_ascii_lowercase();
        let (follows_parent, base) = match lower.strip_prefix("parentbased_") {
            Some(base) => (true, base),
            None => (false, &*lower),
        };
        let share = match base {
            "always_on" => 1.0,
            "always_off" => 0.0,
            "traceidratio" => self.ratio(),
            _ => {
                self.warn(format!(
                    "OTEL_TRACES_SAMPLER '{name}' is unknown: {default} is used; known are \
                     always_on, always_off and traceidratio, each also with the prefix parentbased_"
                ));
                let parts_per_billion = 1_000_000_000;
                return Sampler { parts_per_billion, follows_parent: true, continues_traces };
            }
        };
        Sampler { parts_per_billion: (share * 1e9) as u32, follows_parent, continues_traces }
    }

    fn ratio(&mut self) -> f64 {
        let Some(text) = self.get("OTEL_TRACES_SAMPLER_ARG") else { return 1.0 };
        match f64::from_str(&text) {
            Ok(ratio) if (0.0..=1.0).contains(&ratio) => ratio,
            _ => {
                self.warn(format!(
                    "OTEL_TRACES_SAMPLER_ARG '{text}' is not a number from 0 to 1: 1 is used"
                ));
                1.0
            }
        }
    }
}

/// Returns the URL for spans. An endpoint for all signals is a base, to whose path `/v1/traces` is
/// added. `None`: it is not a URL of a web server.
fn url_for_spans(endpoint: &str, is_whole_url: bool) -> Option<String> {
    let uri: Uri = endpoint.parse().ok()?;
    let scheme = uri.scheme_str().filter(|scheme| ["http", "https"].contains(scheme))?;
    let authority = uri.authority().filter(|authority| !authority.host().is_empty())?;
    // A port that is no number from 0 to 65535 is no error of the parser.
    let host_and_port = authority.as_str().rsplit('@').next().unwrap_or_default();
    let port = host_and_port.strip_prefix(authority.host())?;
    if !port.is_empty() && authority.port_u16().is_none() {
        return None;
    }
    let path = match is_whole_url {
        true => uri.path().to_owned(),
        false => format!("{}/v1/traces", uri.path().trim_end_matches('/')),
    };
    let query = uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    Some(format!("{scheme}://{authority}{path}{query}"))
}

/// Parses `key=value,key=value`, percent-encoded. Returns `None` if any of it is malformed: then
/// all of it must be ignored.
fn pairs(text: &str) -> Option<Vec<(String, String)>> {
    let pair = |pair: &str| {
        let (key, value) = pair.split_once('=')?;
        let [key, value] = [key, value].map(|text| decode(text.trim().as_bytes(), Plus::Itself));
        let key = key.ok().filter(|key| !key.is_empty())?;
        Some((key.into_owned(), value.ok()?.into_owned()))
    };
    text.split(',').filter(|one| !one.trim().is_empty()).map(pair).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(env: &[(&str, &str)]) -> (Option<OtelSettings>, Vec<String>) {
        let find = |name: &str| {
            env.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        };
        let mut warnings = Vec::new();
        let settings = from_env(&find, &mut warnings);
        (settings, warnings)
    }

    /// Returns settings with an endpoint, and asserts that there are no warnings.
    fn good(env: &[(&str, &str)]) -> OtelSettings {
        let (settings, warnings) = read(&[env, &[ENDPOINT]].concat());
        assert!(warnings.is_empty(), "{warnings:?}");
        settings.unwrap()
    }

    const ENDPOINT: (&str, &str) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4318/");
    const ALL: Sampler =
        Sampler { parts_per_billion: 1_000_000_000, follows_parent: true, continues_traces: true };

    #[test]
    fn without_an_endpoint_nothing_is_traced() {
        for env in [
            &[][..],
            &[("OTEL_EXPORTER_OTLP_ENDPOINT", "")],
            &[ENDPOINT, ("OTEL_SDK_DISABLED", "true")],
            &[ENDPOINT, ("OTEL_SDK_DISABLED", "TRUE")],
            &[ENDPOINT, ("OTEL_TRACES_EXPORTER", "none")],
        ] {
            assert_eq!(read(env), (None, Vec::new()), "{env:?}");
        }
        for (name, value) in [
            ("OTEL_SDK_DISABLED", "false"),
            ("OTEL_SDK_DISABLED", ""),
            ("OTEL_TRACES_EXPORTER", "OTLP"),
            ("OTEL_TRACES_EXPORTER", ""),
        ] {
            assert_eq!(good(&[(name, value)]).url, "http://c:4318/v1/traces");
        }
        let (settings, warnings) = read(&[("OTEL_TRACES_EXPORTER", "otlp")]);
        assert_eq!(settings.unwrap().url, "http://localhost:4318/v1/traces");
        assert!(warnings.is_empty());
    }

    #[test]
    fn the_standard_variables() {
        let settings = good(&[]);
        assert_eq!(settings.url, "http://c:4318/v1/traces");
        assert_eq!(settings.attributes, [("service.name".into(), "ws-cluster".into())]);
        assert_eq!((settings.timeout, settings.sampler), (Duration::from_secs(10), ALL));
        let settings = good(&[
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "https://t/x"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "api-key=a%20b, x=y"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "500"),
            ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", ""),
            ("OTEL_SERVICE_NAME", "push"),
            ("OTEL_RESOURCE_ATTRIBUTES", "service.name=no,zone=z1,a%2Cb=c%3Dd"),
            ("OTEL_TRACES_SAMPLER", "TraceIdRatio"),
            ("OTEL_TRACES_SAMPLER_ARG", "0.25"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "none"),
        ]);
        assert_eq!((&*settings.url, settings.timeout.as_millis()), ("https://t/x", 500));
        assert_eq!(settings.headers[0], ("api-key".into(), Hidden("a b".into())));
        assert!(!format!("{settings:?}").contains("a b"));
        let attribute = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        let wanted =
            [attribute("service.name", "push"), attribute("zone", "z1"), attribute("a,b", "c=d")];
        assert_eq!(settings.attributes, wanted);
        let quarter = Sampler { parts_per_billion: 250_000_000, follows_parent: false, ..ALL };
        assert_eq!(settings.sampler, quarter);
    }

    #[test]
    fn what_is_wrong_is_warned_of_and_left_out() {
        let wanted = good(&[]);
        for (name, value, says) in [
            ("OTEL_SDK_DISABLED", "yes", "false is used"),
            ("OTEL_TRACES_EXPORTER", "oltp", "'oltp' is not supported"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", "http/protobuf is used"),
            ("OTEL_EXPORTER_OTLP_TRACES_COMPRESSION", "gzip", "_COMPRESSION is not supported"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "soon", "milliseconds: 10000 is used"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "-1", "milliseconds: 10000 is used"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "hunter2", "none of its headers is sent"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "a=hunter2%0d%0ax: y", "none of its headers is sent"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "a=b,c=hunter2%", "none of its headers is sent"),
            ("OTEL_RESOURCE_ATTRIBUTES", "a=b,c", "it is ignored"),
            ("OTEL_RESOURCE_ATTRIBUTES", "a=b,c=%ff", "it is ignored"),
            ("OTEL_TRACES_SAMPLER", "some", "'some' is unknown: parentbased_always_on is used"),
            // With these every request of the exporter failed, and all spans were lost.
            ("OTEL_EXPORTER_OTLP_HEADERS", "Content-Length=3", "content-length is ignored"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "transfer-encoding=hunter2", "is ignored"),
            ("OTEL_PROPAGATORS", "b3", "'b3' is not supported"),
            ("OTEL_PROPAGATORS", "b3,tracecontext", "'b3' is not supported"),
            ("OTEL_BSP_SCHEDULE_DELAY", "100", "twice a second"),
            ("OTEL_CONFIG_FILE", "otel.yaml", "only environment variables are read"),
        ] {
            let (settings, warnings) = read(&[ENDPOINT, (name, value)]);
            assert_eq!(settings.as_ref(), Some(&wanted), "{name}={value}");
            assert!(warnings.len() == 1 && warnings[0].contains(says), "{warnings:?}");
            assert!(!warnings[0].contains("hunter2"), "{warnings:?}");
        }
        let ratio = ("OTEL_TRACES_SAMPLER", "parentbased_traceidratio");
        for value in ["2", "-0.1", "NaN", "half"] {
            let (settings, warnings) = read(&[ENDPOINT, ratio, ("OTEL_TRACES_SAMPLER_ARG", value)]);
            assert_eq!(settings.unwrap().sampler, ALL);
            assert!(warnings[0].contains("not a number from 0 to 1: 1 is used"), "{warnings:?}");
        }
        assert_eq!(good(&[("OTEL_TRACES_SAMPLER_ARG", "of no sampler")]).sampler, ALL);
        for value in [
            "c:4318",
            "http://",
            "grpc://c:4317",
            "http:///v1/traces",
            "http://c:99999",
            "http://c:port",
            "http://c :4318",
            "http://a:hunter2@c:x",
        ] {
            let (settings, warnings) = read(&[("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", value)]);
            assert!(settings.is_none() && warnings[0].contains("tracing is off"), "{warnings:?}");
            assert!(!warnings[0].contains("hunter2"), "{warnings:?}");
        }
        let (settings, warnings) = read(&[ENDPOINT, ("OTEL_TRACES_EXPORTER", "zipkin")]);
        assert!(settings.is_none() && warnings.len() == 1, "{warnings:?}");
    }

    #[test]
    fn an_endpoint_is_a_url_whatever_its_case_path_and_query() {
        for (endpoint, wanted, whole) in [
            ("http://c:4318", "http://c:4318/v1/traces", "http://c:4318/"),
            ("HTTP://c", "http://c/v1/traces", "http://c/"),
            ("https://c/a/b/", "https://c/a/b/v1/traces", "https://c/a/b/"),
            ("http://c/a?k=v", "http://c/a/v1/traces?k=v", "http://c/a?k=v"),
            ("http://u:p@[::1]:80/a", "http://u:p@[::1]:80/a/v1/traces", "http://u:p@[::1]:80/a"),
        ] {
            assert_eq!(url_for_spans(endpoint, false).as_deref(), Some(wanted));
            assert_eq!(url_for_spans(endpoint, true).as_deref(), Some(whole));
        }
    }

    #[test]
    fn each_attribute_has_one_value_the_last() {
        let list = "service.name=a,zone=1,service.name=b,zone=2,e=";
        let settings = good(&[("OTEL_RESOURCE_ATTRIBUTES", list)]);
        let wanted = [("service.name", "b"), ("zone", "2"), ("e", "")];
        assert_eq!(settings.attributes, wanted.map(|(k, v)| (k.to_owned(), v.to_owned())));
        let settings = good(&[("OTEL_RESOURCE_ATTRIBUTES", "service.name=")]);
        assert_eq!(settings.attributes[0].1, "ws-cluster");
    }

    #[test]
    fn a_callers_trace_is_continued_unless_the_propagators_say_otherwise() {
        for (list, wanted) in [
            ("", true),
            ("tracecontext", true),
            ("Baggage, TraceContext", true),
            ("baggage", false),
            ("none", false),
        ] {
            let settings = good(&[("OTEL_PROPAGATORS", list)]);
            assert_eq!(settings.sampler.continues_traces, wanted, "{list}");
        }
    }
}
