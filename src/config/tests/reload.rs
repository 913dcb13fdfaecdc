//! The configuration of a running node, read again.

use super::places::temporary;
use super::*;
use crate::ops::reload::NeedsRestart;
use std::fs;

fn no_variable(_: &str) -> Option<String> {
    None
}

fn variable(name: &str) -> Option<String> {
    (name == "WS_CLUSTER_LINGER_MS").then(|| "77".into())
}

/// A config file, and what reads it again.
struct Running {
    path: String,
    reloader: Reloader,
}

impl Running {
    fn new(line: &str, text: &str, env: fn(&str) -> Option<String>) -> Self {
        let path = temporary("reload", text);
        let line = format!("--config {path} {line}");
        let args: Vec<String> = line.split_whitespace().map(String::from).collect();
        let config = Config::from_args(&args, &env).unwrap();
        Self { path, reloader: config.reloader(env) }
    }

    fn read(&self, text: &str) -> Result<Reread, String> {
        fs::write(&self.path, text).unwrap();
        let result = self.reloader.read();
        result.map_err(|exit| exit.reason().replace(&self.path, "c.toml"))
    }

    /// Reads it and takes it. Returns what changed, and what needs a restart.
    fn take(&mut self, text: &str) -> (Vec<&'static str>, Vec<NeedsRestart>) {
        let reread = self.read(text).unwrap();
        let (changed, needs_restart) = (reread.changed.clone(), reread.needs_restart.clone());
        self.reloader.accept(reread);
        (changed, needs_restart)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

#[test]
fn a_file_that_did_not_change_changes_nothing() {
    let text = "workers = 2\nidle_timeout_ms = 9000\nops_token = 'a-token-of-24-characters'\n";
    let mut running = Running::new("", text, no_variable);
    assert_eq!(running.take(text), (vec![], vec![]));
    assert_eq!(running.take("# moved\n\nops_token = 'a-token-of-24-characters'\nworkers = 2\n"), {
        (vec!["idle_timeout_ms"], vec![])
    });
}

#[test]
fn changed_values_are_named_and_so_are_computed_ones_that_follow() {
    let mut running = Running::new("", "request_timeout_ms = 5000\n", no_variable);
    let reread = running.read("request_timeout_ms = 6000\nlog = 'debug'\nmax_tags = 7\n").unwrap();
    assert_eq!(reread.changed, ["request_timeout_ms", "handshake_timeout_ms", "max_tags", "log"],);
    let settings = &reread.config.settings;
    assert_eq!((settings.times.handshake_timeout_ms, settings.limits.tags), (6_000, 7));
    assert_eq!(reread.config.logs.filter, "debug");
    running.reloader.accept(reread);
    assert_eq!(
        running.take("").0,
        ["request_timeout_ms", "handshake_timeout_ms", "max_tags", "log"]
    );
}

#[test]
fn what_needs_a_restart_keeps_its_value_and_is_named_each_time() {
    let mut running = Running::new("", "workers = 2\n", no_variable);
    let text = "workers = 5\nws_port = 1\nredis = 'redis://:hunter2@h'\nlinger_ms = 3\n";
    for changed in [vec!["linger_ms"], vec![]] {
        let reread = running.read(text).unwrap();
        assert_eq!(reread.changed, changed);
        let needs = |flag, value: Option<&str>| NeedsRestart { flag, value: value.map(Into::into) };
        assert_eq!(
            reread.needs_restart,
            [
                needs("workers", Some("2")),
                needs("ws_port", Some("8812")),
                needs("redis", Some(DEFAULT_REDIS))
            ]
        );
        assert_eq!((reread.config.settings.workers, reread.config.ports.ws), (2, 8812));
        assert!(!format!("{reread:?}").contains("hunter2"));
        running.reloader.accept(reread);
    }
    assert_eq!(running.take("workers = 2\nlinger_ms = 3\n"), (vec![], vec![]));
}

/// A worker's tables are sized by it at the start.
#[test]
fn the_maximum_of_connections_is_taken_up_to_that_of_the_start() {
    let mut running = Running::new("", "max_connections = 500\n", no_variable);
    let kept =
        |value: &str| vec![NeedsRestart { flag: "max_connections", value: Some(value.into()) }];
    assert_eq!(running.take("max_connections = 20\n"), (vec!["max_connections"], vec![]));
    assert_eq!(running.take("max_connections = 501\n"), (vec![], kept("20")));
    assert_eq!(running.take(""), (vec![], kept("20")), "the default is larger");
    assert_eq!(running.take("max_connections = 500\n"), (vec!["max_connections"], vec![]));
    let error = running.read("max_connections = 0\n").unwrap_err();
    assert!(error.contains("max_connections '0' is not a number of connections"), "{error}");
}

/// What is derived from a value that stays is derived from that, not from the other one.
#[test]
fn defaults_follow_the_values_in_force() {
    let limit = "memory_limit_bytes = '1G'\n";
    let running = Running::new("", &format!("{limit}workers = 2\n"), no_variable);
    let reread = running.read("memory_limit_bytes = '8G'\nworkers = 32\n").unwrap();
    assert_eq!(reread.changed, [""; 0]);
    assert_eq!(reread.config.settings.memory.worker_outbox_bytes, 128 << 20);
}

#[test]
fn flags_and_environment_still_win_over_the_file() {
    let mut running = Running::new("--max_tags 9", "", variable);
    assert_eq!(running.take("max_tags = 1\nlinger_ms = 1\nmax_batch = 5\n").0, ["max_batch"]);
}

#[test]
fn secrets_in_files_are_read_again_and_never_shown() {
    let token = temporary("token", "the-first-token-of-all\n");
    let text = format!("ops_token = 'file:{token}'\n");
    let mut running = Running::new("", &text, no_variable);
    assert_eq!(running.take(&text), (vec![], vec![]));
    fs::write(&token, "the-second-token-of-all\n").unwrap();
    let reread = running.read(&text).unwrap();
    assert_eq!(reread.changed, ["ops_token"]);
    assert!(reread.config.settings.ops_token.as_ref().unwrap().is("the-second-token-of-all"));
    assert!(!format!("{reread:?} {:?}", running.reloader).contains("-token-of-all"));
    fs::remove_file(&token).unwrap();
    let error = running.read(&text).unwrap_err();
    assert!(error.starts_with("c.toml, line 1, column 1: ops_token: the file "), "{error}");
}

#[test]
fn a_mistake_is_named_with_its_place_and_what_was_in_force_stays() {
    let mut running = Running::new("", "max_tags = 3\n", no_variable);
    for (text, wanted) in [
        ("max_tags = 0", "c.toml, line 1, column 1: max_tags '0' is not a number of tags: use"),
        ("\nmaxtags = 4", "c.toml, line 2, column 1: unknown key \"maxtags\"; did you mean"),
        ("max_tags =", "c.toml, line 1, column "),
        ("projects = '/none'", "c.toml, line 1, column 1: projects '/none' cannot be read: "),
    ] {
        let error = running.read(text).unwrap_err();
        assert!(error.starts_with(wanted), "{error}");
    }
    assert_eq!(running.take("max_tags = 4\n").0, ["max_tags"]);
    fs::remove_file(&running.path).unwrap();
    let error = running.reloader.read().unwrap_err().to_string();
    assert!(error.contains("cannot be read"), "{error}");
    fs::write(&running.path, "").unwrap();
}

#[test]
fn another_projects_file_takes_effect() {
    let mut running = Running::new("", "", no_variable);
    let file = temporary("projects", "[[project]]\npid = 'a'\nsecrets = ['s']\n");
    let reread = running.read(&format!("projects = '{file}'\n")).unwrap();
    assert_eq!(reread.changed, ["projects"]);
    assert!(
        reread.config.projects.find("a").is_some() && reread.config.projects.find("1").is_none()
    );
    assert!(reread.config.settings.dev_project.is_none());
    running.reloader.accept(reread);
    fs::remove_file(&file).unwrap();
}
