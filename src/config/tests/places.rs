//! Where values are given: the config file, files of secrets, and `print-config`, which reports it.

use super::*;
use proptest::collection::vec;
use proptest::prelude::*;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

fn file_config(line: &str, text: &str, env: &[(&str, &str)]) -> Result<Config, String> {
    let path = temporary("config", text);
    let config = config_with(&format!("--config {path} {line}"), env);
    std::fs::remove_file(&path).unwrap();
    config.map_err(|exit| {
        assert_eq!(exit.code(), 2);
        exit.to_string().replace(&path, "c.toml")
    })
}

/// Creates a file of its own in the directory for temporary files.
pub(super) fn temporary(name: &str, text: &str) -> String {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let number = NEXT.fetch_add(1, Relaxed);
    let name = format!("ws-cluster-{name}-{}-{number}", std::process::id());
    let path = std::env::temp_dir().join(name);
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn a_config_file_counts_where_neither_flag_nor_environment_say_otherwise() {
    let text = "ws_port = 1\nhttp_port = \"2\"\nprometheus_port = 3\npin = false\necho = true\n\
                bind = '::1'\nmax_body_bytes = '2M'\nlog = ''\n# a comment\nlinger_ms = 1_000\n";
    let env = [("WS_CLUSTER_HTTP_PORT", "20"), ("WS_CLUSTER_PROMETHEUS_PORT", "30")];
    let config = file_config("--prometheus_port 300", text, &env).unwrap();
    assert_eq!((config.ports.ws, config.ports.http, config.ports.prometheus), (1, 20, 300));
    assert!(!config.settings.pin && config.settings.echo && config.bind.ip.to_string() == "::1");
    assert!(config.bind.name.ends_with(", line 6, column 1: bind"), "{}", config.bind.name);
    assert!(config.bind.written().ends_with(": bind = ::1"));
    assert_eq!((config.settings.limits.body_bytes, &*config.logs.filter), (2 << 20, "info"));
    assert_eq!(config.settings.times.linger_ms, 1_000);
    let by_variable = temporary("config", "node = 5");
    let config = config_with("", &[("WS_CLUSTER_CONFIG", &by_variable)]).unwrap();
    std::fs::remove_file(by_variable).unwrap();
    assert_eq!(config.settings.node.value(), 5);
}

#[test]
fn a_mistake_in_the_config_file_is_named_with_its_place() {
    for (text, wanted) in [
        ("wsport = 1", "line 1, column 1: unknown key \"wsport\"; did you mean \"ws_port\"?"),
        ("node = 1\n  colour_of_the_sky = 1", "line 2, column 3: unknown key \"colour_of_the_"),
        (
            "config = 'x'",
            "line 1, column 1: a config file cannot include another one: remove config",
        ),
        ("node = 1\nnode = 2", "line 2, column 1: duplicate key \"node\": keep one of the two"),
        (
            "env = \"hunter2",
            "line 1, column 15: invalid basic string, expected `\"`; a string ends in its line",
        ),
        ("node", "line 1, column 5: key with no value, expected `=`; write each line as key ="),
        ("node = [1]", "line 1, column 8: node must be a string, an integer, true or false"),
        ("log_keep = 1.5", "line 1, column 12: log_keep must be"),
        ("[node]", "line 1, column 1: node must be"),
        ("node 1", "line 1, column "),
        (
            "\nws_port = 70000",
            "line 2, column 1: ws_port '70000' is not a port: use a number from 0 to 65535, e.g. \
             ws_port = 8812",
        ),
        (
            "env = 'staging'",
            "line 1, column 1: env 'staging' is not an environment: use dev, test or prod, e.g. \
             env = \"dev\"",
        ),
        ("redis = 'hunter2@host'", "line 1, column 1: redis is not a Redis URL: it"),
        ("ops_token = 'hunter2' x", "line 1, column "),
    ] {
        let error = file_config("", text, &[]).unwrap_err();
        let wanted = format!("ws-cluster: c.toml, {wanted}");
        assert!(error.starts_with(&wanted) && !error.contains("hunter2"), "{error}\n{wanted}");
    }
    let error = error(config("--config /nowhere/c.toml"));
    assert!(
        error.starts_with("ws-cluster: --config '/nowhere/c.toml' cannot be read: "),
        "{error}"
    );
}

#[test]
fn a_secret_may_be_in_a_file_of_its_own() {
    let token = "0123456789abcdef";
    let path = temporary("token", &format!("{token}\n"));
    let flag = format!("--ops_bind 0.0.0.0 --ops_token file:{path}");
    let config = config(&flag).unwrap();
    assert!(
        config.settings.ops_token.is_some() && config.warnings.is_empty(),
        "{:?}",
        config.warnings
    );
    std::fs::write(&path, "redis://:hunter2@host\n").unwrap();
    let env = [("WS_CLUSTER_REDIS", &*format!("file:{path}")), ("WS_CLUSTER_QUEUE", "redis")];
    let config = config_with("", &env).unwrap();
    let redis = config.settings.redis.unwrap();
    assert_eq!(redis.url.password.unwrap().expose(), "hunter2");
    for text in ["", "\n", "hunter2\nhunter2"] {
        std::fs::write(&path, text).unwrap();
        let error = error(config_with("", &env));
        let wanted =
            format!("ws-cluster: WS_CLUSTER_REDIS: the file {path} must contain exactly one");
        assert!(error.starts_with(&wanted) && !error.contains("hunter2"), "{error}");
    }
    std::fs::remove_file(&path).unwrap();
    let error = error(config_with("", &env));
    assert!(error.contains(&format!("the file {path} cannot be read")), "{error}");
}

#[test]
fn print_config_names_each_value_and_its_origin_and_is_a_config_file() {
    let env = [("WS_CLUSTER_WORKERS", "2"), ("WS_CLUSTER_REDIS", "redis://:hunter2@host")];
    let flags = "--queue redis --log_path /l --max_tags=7 --echo --ops_token hunter2-hunter2-";
    let printed = |line: &str, env: &[(&str, &str)]| {
        config_with(line, env).unwrap().printed(line.contains("--json"))
    };
    let text = printed(&format!("print-config {flags}"), &env);
    for line in [
        "max_tags = 7                             # --max_tags",
        "workers = 2                              # WS_CLUSTER_WORKERS",
        "echo = true                              # --echo",
        "# config =                               # default",
        "max_body_bytes = \"1M\"                    # default",
        "http_bind = \"127.0.0.1\"                  # default",
        "broker_thread = true                     # default",
        "log_path = \"/l\"                          # --log_path",
        "# ops_token = \"***\"                      # --ops_token, secret",
        "# redis = \"redis://:***@host:6379/0\"     # WS_CLUSTER_REDIS, secret",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    }
    assert!(!text.contains("hunter2"));
    // All flags are read, and no others.
    let json: serde_json::Value =
        serde_json::from_str(&printed(&format!("print-config --json {flags}"), &env)).unwrap();
    let settings = json["settings"].as_array().unwrap();
    let names: Vec<_> = settings.iter().map(|one| one["name"].as_str().unwrap()).collect();
    assert_eq!(names, flags::names());
    assert!(json["warnings"][0].as_str().unwrap().starts_with("--ops_token is in the list"));
    assert!(!json.to_string().contains("hunter2"));
    // Its output reproduces the configuration that it came from.
    let path = temporary("config", &text);
    let again = printed(&format!("print-config --config {path}"), &[]);
    std::fs::remove_file(&path).unwrap();
    let values = |text: &str| -> Vec<String> {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        lines.filter_map(|line| Some(line.split_once(" #")?.0.trim_end().to_owned())).collect()
    };
    let (first, second) = (values(&text), values(&again));
    assert_eq!(second.iter().filter(|line| !line.starts_with("redis =")).collect::<Vec<_>>(), {
        first.iter().collect::<Vec<_>>()
    });
}

proptest! {
    #[test]
    fn any_arguments_are_parsed_without_a_panic(
        args in vec("(check-config|sign|--|-|json|=|ws_port|secret|node|[a-z_.é]){0,4}", 0..6),
    ) {
        if let Ok(arguments) = Arguments::parse(&args) {
            let (_, mistakes) = Config::check(&arguments, &|_| None);
            prop_assert_eq!(mistakes.is_empty(), Config::of(&arguments, &|_| None).is_ok());
        }
    }
}
