//! The node's ports, and who may read its files.

use super::super::health::node_at;
use super::Finding;
use crate::config::Config;
use crate::node::{NodeError, PortState, preflight};
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

pub(super) fn findings(config: &Config) -> Vec<Finding> {
    let states = preflight::ports(config);
    // A node that runs already is no mistake, and its ports are not free.
    let node = states.iter().any(is_in_use).then(|| node_at(config.local_http())).flatten();
    let mut findings: Vec<Finding> = states.iter().map(|state| port(state, node)).collect();
    let projects = config.projects_file.as_deref();
    findings.extend(projects.map(|path| file("projects file", path, true)));
    let config_file = config.config_file().map(Path::new);
    findings.extend(config_file.map(|path| file("config file", path, config.has_secret_in_file())));
    findings
}

/// Returns the name of a port in a list of checks.
fn name_of(flag: &str) -> &'static str {
    match flag {
        "--ws_port" => "port of WebSocket",
        "--http_port" => "port of HTTP",
        "--prometheus_port" => "port of metrics",
        "--pprof_port" => "port of profiles",
        _ => "port of the live page",
    }
}

fn is_in_use(state: &PortState) -> bool {
    match &state.error {
        Some(NodeError::Port { error, .. }) => error.kind() == ErrorKind::AddrInUse,
        _ => false,
    }
}

/// `node`: the number of the node that runs here, if one does.
fn port(state: &PortState, node: Option<u64>) -> Finding {
    let (name, address) = (name_of(state.flag), state.address);
    let costs = "a node whose port is taken does not start";
    let Some(error) = &state.error else {
        return Finding::ok(name, format!("{address} is free"), costs);
    };
    if let Some(node) = node.filter(|_| is_in_use(state)) {
        let is = format!("{address} is in use; node {node} runs here");
        return Finding::ok(name, is, costs);
    }
    let text = error.to_string();
    let (is, fix) = text.split_once("): ").unwrap_or((&text, ""));
    match state.may_differ {
        true => Finding::ok(name, format!("{address} is in use: a free one is chosen"), costs),
        false => Finding::fail(name, format!("{is})"), costs, fix),
    }
}

/// Checks who may read a file, and who may write it.
fn file(name: &'static str, path: &Path, has_secrets: bool) -> Finding {
    let costs = "who reads the secrets can sign; who writes the file decides what is a secret";
    let shown = path.display();
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) => {
            let fix = format!("create it, or run this as the node's user, who may read {shown}");
            return Finding::fail(name, format!("{shown}: {error}"), costs, fix);
        }
    };
    let fix =
        format!("chmod o-rwx {shown}, and chgrp it to the node's group if it has another owner");
    let mode = metadata.mode() & 0o777;
    let is = format!("{shown} has mode {mode:o}");
    if mode & 0o002 != 0 {
        return Finding::fail(name, format!("{is}: everybody may write it"), costs, fix);
    }
    if mode & 0o004 != 0 && has_secrets && !is_in_closed_folder(path) {
        return Finding::warn(name, format!("{is}: everybody may read its secrets"), costs, fix);
    }
    Finding::ok(name, is, costs)
}

/// Whether only the owner and the group of its folder reach the file, as in a RuntimeDirectory.
fn is_in_closed_folder(path: &Path) -> bool {
    let folder = path.canonicalize().ok().and_then(|path| path.parent().map(Path::to_owned));
    let metadata = folder.and_then(|folder| fs::metadata(folder).ok());
    metadata.is_some_and(|metadata| metadata.is_dir() && metadata.mode() & 0o001 == 0)
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::*;
    use std::net::TcpListener;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn permissions_are_judged() {
        let folder = std::env::temp_dir().join(format!("ws-cluster-mode-{}", std::process::id()));
        fs::create_dir(&folder).unwrap();
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).unwrap();
        let path = folder.join("projects.toml");
        fs::write(&path, "").unwrap();
        for (mode, has_secrets, status) in [
            (0o600, true, Status::Ok),
            (0o640, true, Status::Ok),
            (0o644, true, Status::Warn),
            (0o644, false, Status::Ok),
            (0o666, false, Status::Fail),
        ] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let finding = file("projects file", &path, has_secrets);
            assert_eq!(finding.status, status, "{finding:?}");
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o444)).unwrap();
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o700)).unwrap();
        assert_eq!(file("projects file", &path, true).status, Status::Ok);
        fs::remove_dir_all(&folder).unwrap();
        assert_eq!(file("projects file", &path, true).status, Status::Fail);
    }

    #[test]
    fn a_port_in_use_fails_unless_another_one_will_do() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let args = ["--ws_port", &port.to_string(), "--http_port", "0", "--prometheus_port", "0"];
        let args: Vec<String> = args.iter().map(|arg| (*arg).into()).collect();
        let config = Config::from_args(&args, &|_| None).unwrap();
        let findings = findings(&config);
        assert_eq!((findings[0].status, findings[1].status), (Status::Fail, Status::Ok));
        assert!(findings[0].fix.contains("stop the process that uses it"), "{findings:?}");
        assert!(findings[3].status == Status::Ok && findings[4].status == Status::Ok);
    }
}
