use super::setting::parse_size;
use super::*;
use crate::ops::logs::{Format, Rotate};
use crate::types::{Limits, Routing};

mod places;
mod reload;

const DEFAULT_REDIS: &str = "redis://127.0.0.1:6379/0";

fn config(line: &str) -> Result<Config, Exit> {
    config_with(line, &[])
}

fn config_with(line: &str, env: &[(&str, &str)]) -> Result<Config, Exit> {
    let args: Vec<String> = line.split_whitespace().map(String::from).collect();
    Config::from_args(&args, &|name| {
        env.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).into())
    })
}

fn error(result: Result<Config, Exit>) -> String {
    let exit = result.unwrap_err();
    assert_eq!(exit.code(), 2, "{exit}");
    exit.to_string()
}

#[test]
fn defaults() {
    let config = config("").unwrap();
    assert_eq!(config.settings.node.value(), 1);
    assert_eq!((config.ports.ws, config.ports.http, config.ports.prometheus), (8812, 8912, 9091));
    assert_eq!(config.bind.ip, IpAddr::from([127, 0, 0, 1]));
    assert_eq!(config.http_bind, config.bind);
    assert_eq!(config.settings.env, Env::Dev);
    assert!(config.settings.redis.is_none());
    assert!(
        (1..=64).contains(&config.settings.workers) && config.settings.pin && !config.settings.echo
    );
    assert_eq!(
        (config.settings.max_connections, config.settings.max_http_connections),
        (1_000_000, 10_000)
    );
    let times = &config.settings.times;
    assert_eq!((times.drain_delay_ms, times.drain_ms, times.idle_timeout_ms), (0, 8_000, 120_000));
    assert_eq!(
        (config.settings.times.ping_interval_ms, config.settings.times.message_timeout_ms),
        (45_000, 30_000)
    );
    assert_eq!(config.settings.memory.worker_inbound_bytes, 64 << 20);
    assert_eq!(
        (config.settings.times.request_timeout_ms, config.settings.times.keep_alive_ms),
        (10_000, 620_000)
    );
    assert_eq!((config.settings.times.linger_ms, config.settings.times.coalesce_us), (2_000, 0));
    assert_eq!(config.settings.limits, Limits::default());
    assert_eq!(
        (config.settings.memory.outbox_bytes, config.settings.memory.worker_outbox_bytes),
        (1 << 20, 256 << 20)
    );
    assert_eq!((&*config.logs.filter, config.logs.format), ("info", Format::Text));
    assert!(config.logs.file.is_none() && config.sentry_dsn.is_none());
    assert!(!config.settings.env.demands_exp() && config.warnings.is_empty());
    assert!(config.projects_file.is_none());
    assert_eq!(config.settings.idempotency_keys, 1_000_000);
    let (_, project) = config.projects.find("1").unwrap();
    assert_eq!((project.secrets.len(), config.projects.len()), (1, 1));
    assert!(project.allowed_origins.is_none());
    let redis = self::config("--queue redis").unwrap().settings.redis.unwrap();
    assert_eq!((redis.url.to_string(), &*redis.prefix), (DEFAULT_REDIS.into(), "wsc"));
    assert_eq!(redis.url, DEFAULT_REDIS.parse().unwrap());
    assert_eq!((redis.queue_timeout_ms, redis.routing), (2_000, Routing::Project));
}

#[test]
fn the_settings_of_tests_are_those_of_a_node_without_flags() {
    let config = config("--workers 1 --memory_limit_bytes 1024G").unwrap();
    let settings = Settings { dev_project: None, ..config.settings };
    assert_eq!(format!("{settings:#?}"), format!("{:#?}", Settings::default()));
}

#[test]
fn the_seeds_line_works_in_every_spelling() {
    for line in [
        "--node 200 --ws_port 8812 --http_port 8912 --queue local --env dev",
        "--node 200 --ws-port 8812 --http-port 8912 --queue local --env dev",
        "--node=200 --ws_port=8812 --http-port=8912 --queue=local --env=dev",
    ] {
        let config = config(line).unwrap();
        assert_eq!(
            (config.settings.node.value(), config.ports.ws, config.ports.http),
            (200, 8812, 8912)
        );
    }
}

#[test]
fn every_flag_is_taken() {
    let config = config(
        "--node 0 --ws_port 0 --http_port 0 --prometheus_port 0 --bind ::1 --queue redis \
         --env test --workers 64 --pin false --max_connections 5 --max_http_connections 6 \
         --drain_ms 0 --ping_interval_ms 250 \
         --idle_timeout_ms 100 --message_timeout_ms 400 --request_timeout_ms 200 \
         --keep_alive_ms 300 \
         --linger_ms 0 --coalesce_us 10000 \
         --max_message_bytes 1k --max_body_bytes 2MiB --outbox_bytes 8K \
         --worker_outbox_bytes 1G --worker_inbound_bytes 4M --echo --log ws_cluster=debug,info \
         --log_format json \
         --log_path /l/x.log --log_rotate hourly --log_max_bytes 64K --log_keep 3 \
         --redis unix:///s?db=2 --redis_prefix A.b:c_d-9 --queue_timeout_ms 60000 --routing user \
         --broker_thread true --idempotency_keys 1000 --max_head_bytes 64K --max_head_fields 256 \
         --max_tags 1024 --max_selector_ids 10000 --max_batch 9 --max_pid_bytes 255 \
         --max_uid_bytes 254 --max_tag_bytes 253 --max_device_bytes 1",
    )
    .unwrap();
    assert_eq!((config.settings.node.value(), config.ports.ws, config.ports.http), (0, 0, 0));
    assert_eq!((config.ports.prometheus, config.bind.ip.to_string()), (0, "::1".into()));
    assert_eq!(
        (config.settings.env, config.settings.workers, config.settings.pin),
        (Env::Test, 64, false)
    );
    assert_eq!((config.settings.max_connections, config.settings.max_http_connections), (5, 6));
    assert_eq!((config.settings.times.drain_ms, config.settings.times.idle_timeout_ms), (0, 100));
    assert_eq!(
        (config.settings.times.ping_interval_ms, config.settings.times.message_timeout_ms),
        (250, 400)
    );
    assert_eq!(
        (config.settings.times.request_timeout_ms, config.settings.times.keep_alive_ms),
        (200, 300)
    );
    assert_eq!((config.settings.times.linger_ms, config.settings.times.coalesce_us), (0, 10_000));
    let limits = Limits {
        message_bytes: 1 << 10,
        body_bytes: 2 << 20,
        head_bytes: 64 << 10,
        head_fields: 256,
        tags: 1_024,
        selector_ids: 10_000,
        batch_messages: 9,
        pid_bytes: 255,
        uid_bytes: 254,
        tag_bytes: 253,
        device_bytes: 1,
    };
    assert_eq!(config.settings.limits, limits);
    assert_eq!(
        (config.settings.memory.outbox_bytes, config.settings.memory.worker_outbox_bytes),
        (8 << 10, 1 << 30)
    );
    assert!(
        config.settings.echo
            && !config.settings.env.demands_exp()
            && config.projects.find("1").is_some()
    );
    assert_eq!((&*config.logs.filter, config.logs.format), ("ws_cluster=debug,info", Format::Json));
    let file = config.logs.file.unwrap();
    assert_eq!((file.path.to_str(), file.rotate), (Some("/l/x.log"), Rotate::Hourly));
    assert_eq!((file.max_bytes, file.keep), (Some(64 << 10), 3));
    assert_eq!((config.settings.idempotency_keys, config.warnings.len()), (1_000, 0));
    let redis = config.settings.redis.unwrap();
    assert_eq!(redis.url.to_string(), "unix:///s?db=2");
    assert_eq!((&*redis.prefix, redis.queue_timeout_ms), ("A.b:c_d-9", 60_000));
    assert_eq!((redis.routing, redis.broker_thread), (Routing::User, true));
}

#[test]
fn the_environment_counts_where_no_flag_was_given() {
    let env = [("WS_CLUSTER_WS_PORT", "1"), ("WS_CLUSTER_NODE", "7"), ("WS_CLUSTER_LOG", "")];
    let config = config_with("--ws_port 2", &env).unwrap();
    assert_eq!(
        (config.ports.ws, config.settings.node.value(), &*config.logs.filter),
        (2, 7, "info")
    );
    assert!(config_with("", &[("WS_CLUSTER_ECHO", "true")]).unwrap().settings.echo);
    assert!(!config_with("--echo=false", &[]).unwrap().settings.echo);
    assert!(!config_with("", &[("WS_CLUSTER_PIN", "0")]).unwrap().settings.pin);
    assert_eq!(
        error(config_with("", &[("WS_CLUSTER_WS_PORT", "abc")])),
        "ws-cluster: WS_CLUSTER_WS_PORT 'abc' is not a port: use a number from 0 to 65535, e.g. \
         WS_CLUSTER_WS_PORT=8812"
    );
    assert_eq!(
        error(config_with("", &[("WS_CLUSTER_QUEUE", "redis-stream")])),
        "ws-cluster: WS_CLUSTER_QUEUE=redis-stream is planned for a later version: use \
         WS_CLUSTER_QUEUE=redis or local"
    );
}

/// A service `ws-cluster-http` in the pod's namespace used to keep the node from starting, with an
/// error that asked for a number.
#[test]
fn what_kubernetes_sets_for_a_service_is_named_with_the_fix() {
    let env = [("WS_CLUSTER_HTTP_PORT", "tcp://10.0.0.1:8912")];
    assert_eq!(
        error(config_with("", &env)),
        "ws-cluster: WS_CLUSTER_HTTP_PORT 'tcp://10.0.0.1:8912' is not a port: Kubernetes sets it \
         for the service ws-cluster-http; set enableServiceLinks: false in the pod's spec, rename \
         the service, or pass --http_port 8912"
    );
    assert_eq!(config_with("--http_port 8912", &env).unwrap().ports.http, 8912);
    let typed = error(config("--http_port tcp://10.0.0.1:8912"));
    assert!(!typed.contains("Kubernetes"), "{typed}");
}

#[test]
fn help_and_version_end_with_0() {
    for line in ["-h", "--help", "--ws_port 1 --help"] {
        let exit = config(line).unwrap_err();
        assert!(matches!(exit, Exit::Output(_)) && exit.code() == 0);
        let text = exit.to_string();
        for part in [
            "--worker_outbox_bytes BYTES",
            "\n  --workers N\n        worker threads (1 to 64) [cores - 1]\n",
            "WS_CLUSTER_WS_PORT",
            "WS_CLUSTER_REDIS",
            "[[project]]",
            "--ws_port",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }
    for line in ["--version", "--ws_port 1 --version", "version"] {
        let args: Vec<String> = line.split_whitespace().map(String::from).collect();
        assert_eq!(Arguments::parse(&args).unwrap().command(), Command::Version, "{line}");
    }
}

#[test]
fn what_could_never_arrive_is_refused() {
    assert_eq!(
        config("--worker_inbound_bytes 2M").unwrap().settings.memory.worker_inbound_bytes,
        2 << 20
    );
    let large = config("--max_body_bytes 100M").unwrap();
    assert_eq!(large.settings.memory.worker_inbound_bytes, 400 << 20);
    let error = config("--worker_inbound_bytes 1M").unwrap_err().to_string();
    assert!(
        error.contains("--worker_inbound_bytes 1048576") && error.contains("2097152"),
        "{error}"
    );
    for flag in ["ping_interval_ms", "message_timeout_ms"] {
        let error = config(&format!("--{flag} 99")).unwrap_err().to_string();
        let wanted = format!("--{flag} '99' is not a time in milliseconds: use a number from 100");
        assert!(error.contains(&wanted), "{error}");
    }
}

#[test]
fn every_wrong_value_names_itself_and_the_fix() {
    let ms = "a time in milliseconds: use a number from";
    for (flag, bad, what) in [
        ("node", "1024", "a node number: use a number from 0 to 1023, e.g. --node 1"),
        ("node", "-1", "a node number: use a number from 0 to 1023, e.g. --node 1"),
        ("ws_port", "abc", "a port: use a number from 0 to 65535, e.g. --ws_port 8812"),
        ("ws_port", "+1", "a port: use a number from 0 to 65535, e.g. --ws_port 8812"),
        ("http_port", "65536", "a port: use a number from 0 to 65535, e.g. --http_port 8912"),
        ("prometheus_port", "9e3", "a port: use a number from 0 to 65535, e.g. --p"),
        ("bind", "localhost", "an IP address: use an IPv4 or IPv6 address"),
        ("queue", "kafka", "a queue: use local or redis, e.g. --queue local"),
        ("env", "staging", "an environment: use dev, test or prod, e.g. --env dev"),
        ("env", "Prod", "an environment: use dev, test or prod, e.g. --env dev"),
        ("workers", "0", "a number of workers: use a number from 1 to 64"),
        ("workers", "65", "a number of workers: use a number from 1 to 64"),
        ("pin", "yes", "true or false: use one of them, e.g. --pin true"),
        ("max_connections", "1M", "a number of connections: use a number from 1 to"),
        ("max_http_connections", "0", "a number of connections: use a number from 1 to"),
        ("drain_ms", "10s", &format!("{ms} 0 to 86400000, e.g. --drain_ms 8000")),
        ("idle_timeout_ms", "99", &format!("{ms} 100 to 86400000, e.g. --idle")),
        ("request_timeout_ms", "0", &format!("{ms} 100 to 86400000, e.g. --request")),
        ("keep_alive_ms", "1.5", &format!("{ms} 100 to 86400000, e.g. --keep_alive_ms 620000")),
        ("linger_ms", "86400001", &format!("{ms} 0 to 86400000, e.g. --linger_ms 2000")),
        ("coalesce_us", "10001", "a time in microseconds: use a number from 0 to 10000, e.g."),
        ("max_message_bytes", "127", "a size: use a number of bytes from 128 to 1073741824"),
        ("max_body_bytes", "2G", "a size: use a number of bytes from 1024 to 1073741824"),
        ("max_head_bytes", "1023", "a size: use a number of bytes from 1024 to 65536, o"),
        ("max_head_bytes", "65K", "a size: use a number of bytes from 1024 to 65536, o"),
        ("max_head_fields", "15", "a number of header fields: use a number from 16 to 256, e."),
        ("max_head_fields", "257", "a number of header fields: use a number from 16 to 256, e."),
        ("max_tags", "0", "a number of tags: use a number from 1 to 1024, e.g. --max_tags 256"),
        ("max_tags", "1025", "a number of tags: use a number from 1 to 1024, e.g. --max_tags 2"),
        ("max_selector_ids", "0", "a number of ids: use a number from 1 to 10000, e.g. --max_s"),
        ("max_selector_ids", "10001", "a number of ids: use a number from 1 to 10000, e.g. --m"),
        ("max_batch", "0", "a number of messages: use a number from 1 to 10000, e.g. --max_bat"),
        ("max_batch", "10001", "a number of messages: use a number from 1 to 10000, e.g. --max"),
        ("max_pid_bytes", "0", "a number of bytes: use a number from 1 to 255, e.g. --max_pid_"),
        ("max_pid_bytes", "256", "a number of bytes: use a number from 1 to 255, e.g. --max_pi"),
        ("max_uid_bytes", "256", "a number of bytes: use a number from 1 to 255, e.g. --max_ui"),
        ("max_tag_bytes", "256", "a number of bytes: use a number from 1 to 255, e.g. --max_ta"),
        ("max_device_bytes", "256", "a number of bytes: use a number from 1 to 255, e.g. --max"),
        ("outbox_bytes", "1KB", "a size: use a number of bytes from 4096 to 1073741824"),
        ("worker_outbox_bytes", "99999999999G", "a size: use a number of bytes from 4096 to"),
        ("redis_prefix", "{a}", "a prefix of names in Redis: use 1 to 64 of A-Z a-z 0-9 _ . : and"),
        ("redis_prefix", &"x".repeat(65), "a prefix of names in Redis: use 1 to 64 of"),
        ("queue_timeout_ms", "99", &format!("{ms} 100 to 60000, e.g. --queue_timeout_ms 2000")),
        ("queue_timeout_ms", "60001", &format!("{ms} 100 to 60000, e.g. --queue_timeout_ms")),
        ("routing", "tag", "a routing: use project, or user for a channel per connected user"),
        ("broker_thread", "on", "true or false: use one of them, e.g. --broker_thread"),
        ("idempotency_keys", "999", "a number of keys: use a number from 1000 to 100000000, e.g."),
        ("idempotency_keys", "100000001", "a number of keys: use a number from 1000 to 1000000"),
        ("log", "info=loud", "a log filter: use a level"),
        ("log_format", "xml", "a log format: use text or json, e.g. --log_format json"),
        ("log_rotate", "weekly", "a rotation interval: use hourly, daily or never, e.g. --log_rot"),
        ("log_max_bytes", "1K", "a size: use a number of bytes from 65536 to 1099511627776"),
        ("log_keep", "0", "a number of files: use a number from 1 to 10000, e.g. --log_keep 14"),
    ] {
        let text = error(config(&format!("--{flag} {bad}")));
        let wanted = format!("ws-cluster: --{flag} '{bad}' is not {what}");
        assert!(text.starts_with(&wanted), "{text}\n{wanted}");
    }
    let text = error(config("--echo=loud"));
    assert!(text.starts_with("ws-cluster: --echo 'loud' is not true or false"), "{text}");
    let text = error(config("--projects /nowhere/p.toml"));
    assert!(text.starts_with("ws-cluster: --projects '/nowhere/p.toml' cannot be"), "{text}");
}

#[test]
fn unknown_and_broken_arguments() {
    for (line, part) in [
        ("--nope 1", "unknown argument: --nope"),
        ("stray", "unknown command: stray"),
        ("--ws_port", "missing value for --ws-port"),
        ("--node 1 --node 2", "--node is given twice"),
    ] {
        let text = error(config(line));
        assert!(text.starts_with("ws-cluster: ") && text.contains(part), "{text}");
        assert!(text.ends_with("; see ws-cluster --help"), "{text}");
    }
}

#[test]
fn one_number_serves_two_ports_where_their_addresses_differ() {
    for (binds, is_free) in [
        ("--http_bind 127.0.0.2", true),
        ("--http_bind ::1", true),
        ("--bind 0.0.0.0 --http_bind ::1", true),
        ("--http_bind 127.0.0.1", false),
        ("--bind 0.0.0.0 --http_bind 127.0.0.2", false),
        ("--bind :: --http_bind 0.0.0.0", false),
        ("--bind 10.0.0.1 --http_bind ::", false),
    ] {
        let config = config(&format!("--http_port 8812 {binds}"));
        assert_eq!(config.is_ok(), is_free, "{binds}");
    }
    // A port that was not requested makes way for those that were.
    let elsewhere = config("--http_port 6060 --http_bind 127.0.0.2").unwrap().ports.pprof;
    assert_eq!(elsewhere, OpsPort { port: 6060, is_given: false });
    let same = config("--http_port 6060").unwrap().ports.pprof;
    assert_eq!(same, OpsPort { port: 0, is_given: false });
}

#[test]
fn values_that_contradict_each_other() {
    assert_eq!(
        error(config("--queue redis-stream")),
        "ws-cluster: --queue redis-stream is planned for a later version: use --queue redis or \
         local"
    );
    assert_eq!(
        error(config("--workers 4 --broker_thread false")),
        "ws-cluster: --broker_thread false needs a single worker, whose thread the broker shares, \
         but there are 4: omit it, or use --workers 1"
    );
    assert_eq!(
        error(config("--http_port 8812")),
        "ws-cluster: --ws_port and --http_port are both 8812: give each its own port, e.g. \
         --http_port 8912"
    );
    // The default follows from the memory limit.
    for (limit, workers, expected) in
        [("128M", 1, 32 << 20), ("128M", 4, 8 << 20), ("64G", 2, 256 << 20), ("32M", 16, 1 << 20)]
    {
        let flags = format!("--memory_limit_bytes {limit} --workers {workers}");
        let config = config(&flags).unwrap();
        assert_eq!(config.settings.memory.worker_outbox_bytes, expected, "{flags}");
        assert!(config.settings.memory.server_outbox_bytes <= expected);
    }
    let text = error(config("--memory_limit_bytes 1M"));
    assert!(text.contains("--memory_limit_bytes '1M' is not a size"), "{text}");
    let text = error(config("--send_buffer_bytes 100"));
    assert!(text.contains("4096 or more, or 0"), "{text}");
    assert_eq!(config("--send_buffer_bytes 0").unwrap().settings.memory.send_buffer_bytes, 0);
    let text = error(config("--outbox_bytes 2M --worker_outbox_bytes 1M"));
    assert!(text.contains("use --worker_outbox_bytes 2097152 or more"), "{text}");
    let text = error(config("--env prod --echo"));
    assert!(text.starts_with("ws-cluster: --echo is refused with --env prod"), "{text}");
    let text = error(config("--env prod"));
    assert!(text.starts_with("ws-cluster: --env prod needs a projects file"), "{text}");
}

#[test]
fn the_broker_has_a_thread_where_there_are_two_workers() {
    for (line, own) in [
        ("--workers 1", false),
        ("--workers 1 --broker_thread false", false),
        ("--workers 1 --broker_thread true", true),
        ("--workers 2", true),
        ("--workers 2 --broker_thread true", true),
    ] {
        let redis = config(&format!("--queue redis {line}")).unwrap().settings.redis.unwrap();
        assert_eq!(redis.broker_thread, own, "{line}");
    }
    let text = error(config_with("--workers 2", &[("WS_CLUSTER_BROKER_THREAD", "0")]));
    assert!(text.starts_with("ws-cluster: WS_CLUSTER_BROKER_THREAD=false needs a sing"), "{text}");
}

#[test]
fn a_redis_password_is_shown_nowhere_and_belongs_in_the_environment() {
    let secret = "redis://app:hunter2@host";
    let starts = |config: &Config, wanted: &[&str]| {
        assert_eq!(config.warnings.len(), wanted.len(), "{:?}", config.warnings);
        for (warning, start) in config.warnings.iter().zip(wanted) {
            assert!(warning.what.starts_with(start), "{warning}");
        }
        let debug = format!("{config:?} {config:#?}");
        assert_eq!(debug.contains("password: Some(***)"), config.settings.redis.is_some());
        assert!(!debug.contains("hunter2"));
    };
    let by_flag = format!("--redis {secret}");
    let has = "--redis contains a password, which every user of this machine can read";
    starts(&config(&format!("--queue redis {by_flag}")).unwrap(), &[has]);
    starts(&config(&by_flag).unwrap(), &[has, "--redis has no effect with --queue local: use"]);
    let env = [("WS_CLUSTER_REDIS", secret)];
    let by_env = config_with("--queue redis", &env).unwrap();
    let redis = by_env.settings.redis.as_ref().unwrap();
    assert_eq!(redis.url.password.as_ref().unwrap().expose(), "hunter2");
    starts(&by_env, &[]);
    let local = config_with("", &env).unwrap();
    starts(&local, &["WS_CLUSTER_REDIS has no effect with --queue local"]);
    assert!(config_with("", &[("WS_CLUSTER_REDIS", "")]).unwrap().warnings.is_empty());
}

#[test]
fn a_wrong_redis_url_names_the_flag_and_the_fix_and_no_password() {
    for (url, part) in [
        ("host:6379", "it has no scheme; use redis://host:port"),
        ("app:hunter2@host:6379", "it has no scheme; use redis://host:port"),
        ("rediss://:hunter2@host", "TLS (rediss://) is not supported; use redis"),
        ("redis://app:hunter2", "its port is not a number from 1 to 65535; use"),
        ("redis://:hunter2@", "its host is missing"),
        ("redis://:hun/ter2@host", "an @ or a # is misplaced; write / as %2F"),
    ] {
        let text = error(config(&format!("--redis {url}")));
        let wanted = format!("ws-cluster: --redis is not a Redis URL: {part}");
        assert!(text.starts_with(&wanted) && !text.contains("ter2"), "{text}\n{wanted}");
        let text = error(config_with("", &[("WS_CLUSTER_REDIS", url)]));
        assert!(text.starts_with("ws-cluster: WS_CLUSTER_REDIS is not a Redis URL"), "{text}");
        assert!(text.contains(part) && !text.contains("ter2"), "{text}");
    }
    for line in ["redis://:hunter2@host", "--rediss=redis://:hunter2@host", "a:hunter2@host"] {
        let text = error(config(line));
        assert!(text.contains("unknown argument") && !text.contains("hunter2"), "{text}");
    }
}

#[test]
fn a_dsn_is_shown_nowhere_and_belongs_in_the_environment() {
    let dsn = "https://hunter2@sentry.example/42";
    let by_env = config_with("", &[("WS_CLUSTER_SENTRY_DSN", dsn)]).unwrap();
    assert!(by_env.sentry_dsn.is_some() && by_env.warnings.is_empty());
    assert!(!format!("{by_env:?}").contains("hunter2"));
    let by_flag = config(&format!("--sentry_dsn {dsn}")).unwrap();
    assert!(by_flag.warnings[0].what.starts_with("--sentry_dsn is in the list of processes"));
    for wrong in ["hunter2", "https://sentry.example/42", "https://hunter2@sentry.example/"] {
        let text = error(config_with("", &[("WS_CLUSTER_SENTRY_DSN", wrong)]));
        let wanted = "ws-cluster: WS_CLUSTER_SENTRY_DSN is not a Sentry DSN: use https://KEY@";
        assert!(text.starts_with(wanted) && !text.contains("hunter2"), "{text}");
    }
}

#[test]
fn what_is_about_files_wants_a_file() {
    let config = config_with("--log_keep 3", &[]).unwrap();
    assert_eq!(
        config.warnings.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["--log_keep has no effect without a log file: use --log_path \
            /var/log/ws-cluster/ws-cluster.log, or omit it"]
    );
    let config = config_with("", &[("WS_CLUSTER_LOG_MAX_BYTES", "0")]).unwrap();
    assert!(config.warnings[0].what.contains("use WS_CLUSTER_LOG_PATH=/var/log/"), "{config:?}");
    let config = config_with("--log_path x --log_max_bytes 0 --log_rotate never", &[]).unwrap();
    assert!(config.warnings.is_empty());
    assert_eq!(config.logs.file.unwrap().max_bytes, None);
}

#[test]
fn prod_demands_exp_and_warns() {
    let file = std::env::temp_dir().join(format!("ws-cluster-{}.toml", std::process::id()));
    let text = "[[project]]\npid = 'shop'\nsecrets = ['0123456789abcdef']\n\
                [[project]]\npid = 'ok'\nsecrets = ['fedcba9876543210']\nallowed_origins = []\n";
    std::fs::write(&file, text).unwrap();
    let config = config(&format!("--env prod --projects {}", file.display()));
    std::fs::remove_file(&file).unwrap();
    let config = config.unwrap();
    assert!(config.settings.env.demands_exp() && config.projects.find("1").is_none());
    assert_eq!(config.projects_file.as_deref(), Some(&*file));
    let starts = ["project 'shop' has no allowed_origins"];
    assert_eq!(config.warnings.len(), starts.len(), "{:?}", config.warnings);
    for (warning, start) in config.warnings.iter().zip(starts) {
        assert!(warning.what.starts_with(start), "{warning}");
    }
    let debug = format!("{config:?}");
    assert!(!debug.contains("0123456789abcdef"), "{debug}");
}

#[test]
fn sizes() {
    for (text, bytes) in [
        ("0", Some(0)),
        ("65536", Some(65_536)),
        ("64K", Some(65_536)),
        ("64kib", Some(65_536)),
        ("2M", Some(2 << 20)),
        ("3GiB", Some(3 << 30)),
        ("", None),
        ("K", None),
        ("-1", None),
        ("1.5M", None),
        ("1 M", None),
        ("1T", None),
        ("18446744073709551615G", None),
    ] {
        assert_eq!(parse_size(text), bytes, "{text}");
    }
}

/// Pushes of that size used to get "try again" for ever.
#[test]
fn what_the_queue_can_never_carry_is_refused_at_the_start() {
    for flag in ["max_body_bytes", "max_message_bytes"] {
        let refused = config(&format!("--queue redis --{flag} 64M")).unwrap_err().to_string();
        let words = [&format!("--{flag} 67108864"), "67043328 bytes", "16M"];
        assert!(words.iter().all(|word| refused.contains(&**word)), "{refused}");
        assert!(config(&format!("--queue redis --{flag} 63M")).is_ok());
        assert!(config(&format!("--{flag} 64M")).is_ok(), "nothing has to carry it");
    }
}
