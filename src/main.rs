//! Arguments to config to [`ws_cluster::node::run`].

#![warn(clippy::unwrap_used, clippy::expect_used)]

use std::io;
use std::process::ExitCode;
use std::time::Duration;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};
use ws_cluster::config::{Config, Exit};
use ws_cluster::io::sys;
use ws_cluster::node::{self, Addresses};
use ws_cluster::ops::logs::{self, Logs};
use ws_cluster::ops::sentry::{self, Reporter};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// How long the end waits for an output that does not take the last lines.
const LAST_WORDS: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    sys::disable_huge_pages();
    let args: Vec<String> = std::env::args().skip(1).collect();
    let config = match Config::from_args(&args, &|name| std::env::var(name).ok()) {
        Ok(config) => config,
        Err(exit) => return end(&exit),
    };
    // Before the first thread, the log's.
    if let Err(error) = sys::block_signals() {
        eprintln!("ws-cluster: signals cannot be blocked: {error}");
        return ExitCode::FAILURE;
    }
    let settings = &config.logs;
    let (format, node, file) = (settings.format, config.node, settings.file.clone());
    let logs = match Logs::start(logs::Settings { format, node, file }) {
        Ok(logs) => logs,
        Err(error) => return end(&settings.cannot_open(&error)),
    };
    let reporter = match report(&config) {
        Ok(reporter) => reporter,
        Err(error) => {
            eprintln!("ws-cluster: the thread for Sentry cannot be started: {error}");
            return ExitCode::FAILURE;
        }
    };
    let filter = EnvFilter::new(&settings.filter);
    tracing_subscriber::registry()
        .with(logs.clone().with_filter(filter))
        .with(reporter.as_ref().map(|_| sentry::errors()))
        .init();
    logs::install(logs.clone());
    logs::log_panics();
    let code = run(config, &logs);
    drop(reporter);
    logs.flush(LAST_WORDS);
    code
}

fn report(config: &Config) -> io::Result<Option<Reporter>> {
    let Some(dsn) = config.sentry_dsn.clone() else { return Ok(None) };
    let (node, environment) = (config.node, config.env.name());
    Reporter::start(sentry::Settings { dsn, node, environment }).map(Some)
}

/// Ends without having begun.
fn end(exit: &Exit) -> ExitCode {
    if let Exit::Error(_) = exit {
        eprintln!("{exit}");
    } else {
        print!("{exit}");
    }
    ExitCode::from(exit.code())
}

fn run(config: Config, logs: &Logs) -> ExitCode {
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    let shows_lines = config.has_dev_project() && !config.echo;
    let result = node::run(config, |addresses| {
        let Addresses { ws, http, metrics, pprof, swagger } = addresses;
        logs.print(&format!(
            "ws-cluster listening: ws={ws} http={http} metrics={metrics} pprof={pprof} \
             swagger={swagger}\n"
        ));
        if shows_lines {
            logs.print(&node::first_push(addresses));
        }
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "the node ends");
            eprintln!("ws-cluster: {error}");
            ExitCode::FAILURE
        }
    }
}
