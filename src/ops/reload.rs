//! `POST /reload`: reads the configuration again, as SIGHUP does, and reports what changed.

use super::job::Job;
use super::reply::Reply;
use crate::state::projects::ProjectChanges;
use serde::Serialize;
use serde_json::json;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

pub const PATH: &str = "/reload";

/// Names in one list of the answer at most; the counts are complete.
const MAX_LISTED: usize = 100;

/// Reloads the configuration of this node. Waits until every thread uses it.
pub trait Reload: Send + Sync {
    fn reload(&self) -> Result<ReloadReport, ReloadError>;
}

/// What a reload did. It contains no secret.
#[derive(Debug, Clone, Default)]
pub struct ReloadReport {
    /// Flags whose new value is in force.
    pub changed: Vec<&'static str>,
    pub projects: ProjectChanges,
    pub needs_restart: Vec<NeedsRestart>,
    pub warnings: Vec<String>,
}

impl ReloadReport {
    /// Returns whether anything differs from what was in force.
    pub fn changes_anything(&self) -> bool {
        !self.changed.is_empty() || self.projects != ProjectChanges::default()
    }
}

/// A flag whose new value takes effect with the next start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NeedsRestart {
    pub flag: &'static str,
    /// The value in force; `None`: it has none, or it is a secret.
    pub value: Option<String>,
}

/// Why the configuration before a reload stays in force.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReloadError {
    /// It is wrong: the file, line and fix.
    #[error("{0}")]
    Wrong(String),
    #[error("this node is draining: a reload would have no effect")]
    Draining,
}

impl ReloadError {
    fn status(&self) -> u16 {
        match self {
            Self::Wrong(_) => 422,
            Self::Draining => 503,
        }
    }
}

/// Answers a request that may reload; `connection` is the client's socket.
pub(super) async fn answer(reload: &Arc<dyn Reload>, connection: BorrowedFd<'_>) -> Reply {
    let reload = Arc::clone(reload);
    match Job::start("reload", move |_| reload.reload()) {
        Ok(job) => match job.result(connection).await {
            Some(Ok(report)) => of_json(200, &as_json(&report)),
            Some(Err(error)) => refusal(error.status(), &error.to_string()),
            None => refusal(500, "its thread ended early: see the node's log"),
        },
        Err(error) => refusal(500, &format!("cannot start a thread: {error}")),
    }
}

/// Returns the answer to a method other than POST.
pub(super) fn wrong_method() -> Reply {
    refusal(405, "use POST").with("Allow", "POST")
}

fn refusal(status: u16, msg: &str) -> Reply {
    of_json(status, &json!({ "code": 0, "msg": msg }))
}

fn of_json(status: u16, body: &serde_json::Value) -> Reply {
    Reply::new(status, "application/json", format!("{body}\n"))
        .with("Cache-Control", "no-store")
        .with("X-Content-Type-Options", "nosniff")
}

fn as_json(report: &ReloadReport) -> serde_json::Value {
    let ProjectChanges { added, changed, removed } = &report.projects;
    let listed = |pids: &[Box<str>]| pids[..pids.len().min(MAX_LISTED)].to_vec();
    json!({
        "code": 1,
        "msg": "success",
        "changed": report.changed,
        "projects": {
            "added": listed(added),
            "changed": listed(changed),
            "removed": listed(removed),
            "count": { "added": added.len(), "changed": changed.len(), "removed": removed.len() },
        },
        "needs_restart": report.needs_restart,
        "warnings": report.warnings[..report.warnings.len().min(MAX_LISTED)],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_capped_and_counted() {
        let added = (0..250).map(|pid| pid.to_string().into()).collect();
        let report = ReloadReport {
            changed: vec!["idle_timeout_ms"],
            projects: ProjectChanges { added, ..ProjectChanges::default() },
            needs_restart: vec![NeedsRestart { flag: "workers", value: Some("2".into()) }],
            warnings: vec!["careful".into()],
        };
        let answer = as_json(&report);
        assert_eq!(answer["projects"]["added"].as_array().unwrap().len(), MAX_LISTED);
        assert_eq!(answer["projects"]["count"]["added"], 250);
        assert_eq!(answer["needs_restart"], json!([{ "flag": "workers", "value": "2" }]));
        assert_eq!(answer["changed"], json!(["idle_timeout_ms"]));
    }
}
