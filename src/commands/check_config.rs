//! `check-config`: every mistake in flags, environment, config file and projects file.

use super::{Environment, Output};
use crate::config::{Arguments, Config, Mistake};
use serde_json::{Value, json};
use std::fmt::Write as _;

pub(super) fn run(arguments: &Arguments, env: Environment<'_>) -> Output {
    let (mut config, mut errors) = Config::check(arguments, env.get);
    let variables = env.all.iter().map(|(name, value)| (&**name, &**value));
    config.warn_of_unknown(variables);
    // Stable: what is in no file keeps its order.
    errors.sort_by(|one, other| one.place.cmp(&other.place));
    let text = match arguments.has("json") {
        true => as_json(&errors, &config.warnings),
        false => as_text(&errors, &config.warnings, config.projects.len()),
    };
    Output::of(text, errors.is_empty())
}

fn as_text(errors: &[Mistake], warnings: &[Mistake], projects: usize) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    for error in errors {
        let _ = writeln!(text, "{error}");
    }
    for warning in warnings {
        let _ = match &warning.place {
            Some(place) => writeln!(text, "{place}: warning: {}", warning.what),
            None => writeln!(text, "warning: {}", warning.what),
        };
    }
    let (errors, warnings) = (count(errors.len(), "error"), count(warnings.len(), "warning"));
    let _ = writeln!(text, "{errors}, {warnings}, {}", count(projects, "usable project"));
    text
}

fn count(number: usize, what: &str) -> String {
    match number {
        0 => format!("no {what}s"),
        1 => format!("1 {what}"),
        _ => format!("{number} {what}s"),
    }
}

fn as_json(errors: &[Mistake], warnings: &[Mistake]) -> String {
    let entry = |level: &str, mistake: &Mistake| {
        let place = mistake.place.as_ref();
        json!({
            "level": level,
            "file": place.map(|place| &place.file),
            "line": place.map(|place| place.line),
            "column": place.map(|place| place.column),
            "message": mistake.what,
        })
    };
    let errors = errors.iter().map(|mistake| entry("error", mistake));
    let all: Vec<Value> =
        errors.chain(warnings.iter().map(|mistake| entry("warning", mistake))).collect();
    format!("{:#}\n", Value::from(all))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn check(line: &str, env: &[(&str, &str)]) -> Output {
        let args: Vec<String> = line.split_whitespace().map(String::from).collect();
        let all: Vec<(String, String)> =
            env.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        let get = |name: &str| all.iter().find(|(key, _)| key == name).map(|one| one.1.clone());
        run(&Arguments::parse(&args).unwrap(), Environment { get: &get, all: &all })
    }

    #[test]
    fn every_mistake_is_reported_once_with_its_place() {
        let dir = std::env::temp_dir().join(format!("ws-cluster-check-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let (config, projects) = (dir.join("c.toml"), dir.join("p.toml"));
        let text = "node = 5000\nwsport = 1\nenv = 'staging'\noutbox_bytes = '1X'\n\
                    worker_outbox_bytes = '4K'\nlog_keep = 3\nlog = [1]\nhttp_port = 8812\n";
        fs::write(&config, text).unwrap();
        let text = "[[project]]\npid = 'a b'\nsecret = ['s']\n[[project]]\npid = 'b'\n\
                    secrets = ['', 'hunter2', 5]\nsubscribe = 'maybe'\nallowed_origins = ['x/']\n\
                    [[project]]\npid = 'c'\nsecrets = ['0123456789abcdef']\n[[project]]\n\
                    pid = 'c'\nsecrets = ['fedcba9876543210']\n";
        fs::write(&projects, text).unwrap();
        let line = format!(
            "check-config --config {} --projects {} --workers 65",
            config.display(),
            projects.display()
        );
        let output = check(&line, &[("WS_CLUSTER_DRAIN_MS", "x"), ("WS_CLUSTER_DRAINMS", "1")]);
        fs::remove_dir_all(&dir).unwrap();
        let shown = output.text.replace(&format!("{}/", dir.display()), "");
        let lines: Vec<&str> = shown.lines().collect();
        let starts = [
            "--workers '65' is not",
            "WS_CLUSTER_DRAIN_MS 'x' is not",
            "c.toml, line 1, column 1: node '5000' is not",
            "c.toml, line 2, column 1: unknown key \"wsport\"; did you mean \"ws_port\"?",
            "c.toml, line 3, column 1: env 'staging' is not",
            "c.toml, line 4, column 1: outbox_bytes '1X' is not",
            "c.toml, line 7, column 7: log must be a string",
            "c.toml, line 8, column 1: --ws_port and --http_port are both 8812",
            "p.toml, line 1, column 1: project '?' has no secrets",
            "p.toml, line 2, column 7: pid 'a b' is not",
            "p.toml, line 3, column 1: unknown key \"secret\"; did you mean \"secrets\"?",
            "p.toml, line 6, column 12: secret 1 of project 'b' is empty",
            "p.toml, line 6, column 27: secret 3 of project 'b' is not a string",
            "p.toml, line 7, column 13: subscribe 'maybe'",
            "p.toml, line 8, column 20: allowed_origins of project 'b': 'x/'",
            "p.toml, line 12, column 1: pid 'c' is already used on line 9",
            "p.toml, line 6, column 16: warning: secret 2 of project 'b' has only 7 bytes",
            "c.toml, line 6, column 1: warning: log_keep has no effect without a log file",
            "warning: WS_CLUSTER_DRAINMS is not a variable",
            "16 errors, 3 warnings, 1 usable project",
        ];
        for (line, start) in lines.iter().zip(starts) {
            assert!(line.starts_with(start), "{line}\n{start}\n{shown}");
        }
        assert_eq!((lines.len(), output.code), (starts.len(), 1), "{shown}");
        assert!(!shown.contains("hunter2"), "{shown}");
    }

    #[test]
    fn what_is_not_toml_is_reported_with_the_rest() {
        let dir = std::env::temp_dir().join(format!("ws-cluster-syntax-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let (config, projects) = (dir.join("c.toml"), dir.join("p.toml"));
        fs::write(&config, "node = 7\nops_token = 'hunter2' x\nws_port = \nnod = 1\n").unwrap();
        let text = "[[project]]\npid = 'a'\nsecrets = ['hunter2' x]\n[[project]]\npid = 1\n\
                    secrets = ['0123456789abcdef']\n";
        fs::write(&projects, text).unwrap();
        let (config, projects) = (config.display(), projects.display());
        let output = check(&format!("check-config --config {config} --projects {projects}"), &[]);
        fs::remove_dir_all(&dir).unwrap();
        for part in [
            "c.toml, line 2, column ",
            "c.toml, line 3, column ",
            "c.toml, line 4, column 1: unknown key \"nod\"; did you mean \"node\"?",
            "p.toml, line 3, column ",
            "p.toml, line 5, column 7: pid = 1 is a number",
        ] {
            assert!(output.text.contains(part), "{part}\n{}", output.text);
        }
        assert!(!output.text.contains("hunter2"), "{}", output.text);
    }

    #[test]
    fn a_good_configuration_is_good() {
        let output = check("check-config", &[]);
        assert_eq!((&*output.text, output.code), ("no errors, no warnings, 1 usable project\n", 0));
        assert_eq!(check("check-config --json", &[]).text, "[]\n");
        let output = check("check-config --json --node x --log_keep 3", &[]);
        let list: Value = serde_json::from_str(&output.text).unwrap();
        assert_eq!(
            (list[0]["level"].as_str(), list[1]["level"].as_str()),
            (Some("error"), Some("warning"))
        );
        assert!(list[0]["message"].as_str().unwrap().starts_with("--node 'x'"), "{list}");
        assert!(list[0]["file"].is_null() && output.code == 1, "{list}");
    }
}
