//! The program: runs a command, or resolves the configuration and calls [`ws_cluster::node::run`].

#![warn(clippy::unwrap_used, clippy::expect_used)]

use std::ffi::OsString;
use std::fmt::Display;
use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;
use tracing_subscriber::Layer;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use ws_cluster::commands::{self, Environment, Output};
use ws_cluster::config::{Arguments, Command, Config, Exit, Reloader, log_format};
use ws_cluster::io::inherited::Inherited;
use ws_cluster::io::sys;
use ws_cluster::io::threads::StartError;
use ws_cluster::node::{self, Addresses, Needs};
use ws_cluster::ops::logs::{self, EventVisitor, Format, Logs, Value};
use ws_cluster::ops::sentry::{self, Reporter};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// How long the end waits for an output that does not accept the last lines.
const LAST_WORDS: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    // Before anything is opened, and before the first thread, which is the log's.
    let inherited = Inherited::take();
    let args: Vec<String> = std::env::args_os().skip(1).map(text).collect();
    let variables: Vec<(String, String)> =
        std::env::vars_os().map(|(name, value)| (text(name), text(value))).collect();
    let arguments = match Arguments::parse(&args) {
        Ok(arguments) => arguments,
        Err(exit) => return end(exit, log_format(&args, &variable)),
    };
    if arguments.command() != Command::Serve {
        let environment = Environment { get: &variable, all: &variables };
        return match commands::run(&arguments, environment) {
            Ok(Output { text, code }) => print(&text, code, log_format(&args, &variable)),
            Err(exit) => end(exit, log_format(&args, &variable)),
        };
    }
    // If it fails, so does that of all signals, which reports it.
    let _ = sys::block_requests();
    match Config::of(&arguments, &variable) {
        Ok(mut config) => {
            config.warn_of_unknown(variables.iter().map(|(name, value)| (&**name, &**value)));
            serve(config, inherited)
        }
        Err(exit) => end(exit, log_format(&args, &variable)),
    }
}

/// A value that is not UTF-8 is reported like any other wrong value.
fn text(text: OsString) -> String {
    text.to_string_lossy().into_owned()
}

fn variable(name: &str) -> Option<String> {
    std::env::var_os(name).map(text)
}

/// Runs a node.
fn serve(config: Config, inherited: io::Result<Inherited>) -> ExitCode {
    // Before the first thread, which is the log's.
    if let Err(error) = sys::block_signals() {
        return fail(&config, &format!("signals cannot be blocked: {error}"));
    }
    let settings = &config.logs;
    let (format, node, file) = (settings.format, config.settings.node, settings.file.clone());
    let logs = match Logs::start(logs::Settings { format, node, file }) {
        Ok(logs) => logs,
        Err(error) if StartError::inside(&error).is_some() => return no_thread(&config, error),
        Err(error) => {
            let why = settings.cannot_open(&error);
            fail(&config, &why);
            return ExitCode::from(Exit::Error(why).code());
        }
    };
    let reporter = match report(&config) {
        Ok(reporter) => reporter,
        Err(error) => return no_thread(&config, error),
    };
    let filter = logs::filter(&settings.filter);
    tracing_subscriber::registry()
        .with(logs.clone().with_filter(filter))
        .with(reporter.as_ref().map(|_| sentry::errors()))
        .init();
    logs::install(logs.clone());
    logs::log_panics();
    let reloader = config.reloader(variable);
    let code = match inherited {
        Ok(inherited) => run(config, reloader, inherited, &logs),
        Err(error) => fail(&config, &error.to_string()),
    };
    drop(reporter);
    logs.flush(LAST_WORDS);
    code
}

/// Ends the program without a configuration.
fn end(exit: Exit, format: Format) -> ExitCode {
    let code = exit.code();
    match exit {
        Exit::Output(text) => print(&text, code, format),
        Exit::Error(why) => {
            logs::fail(format, None, &why);
            ExitCode::from(code)
        }
    }
}

fn report(config: &Config) -> io::Result<Option<Reporter>> {
    let Some(dsn) = config.sentry_dsn.clone() else { return Ok(None) };
    let (node, environment) = (config.settings.node, config.settings.env.name());
    Reporter::start(sentry::Settings { dsn, node, environment }).map(Some)
}

/// Prints what was asked for, and returns `code`. `print!` would panic where the output ends early
/// (`ws-cluster --help | head -1`), which is no failure, or has no room, which is reported.
fn print(text: &str, code: u8, format: Format) -> ExitCode {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            logs::fail(format, None, &format!("standard output cannot be written: {error}"));
            ExitCode::FAILURE
        }
        _ => ExitCode::from(code),
    }
}

/// Ends the program before there is a log.
fn fail(config: &Config, why: &str) -> ExitCode {
    logs::fail(config.logs.format, Some(config.settings.node), why);
    ExitCode::FAILURE
}

/// Reports that a thread besides the node's own did not start.
fn no_thread(config: &Config, error: io::Error) -> ExitCode {
    fail(config, &Needs::of(config).explain(error))
}

fn run(config: Config, reloader: Reloader, inherited: Inherited, logs: &Logs) -> ExitCode {
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    let shows_lines = config.settings.dev_project.is_some() && !config.settings.echo;
    let (format, number) = (config.logs.format, config.settings.node);
    let result = node::run(config, reloader, inherited, |addresses| {
        let line = listening(addresses);
        // Scripts find the ports in both forms, so no address may end a message.
        let message = format!("{} (every port is open)", line.trim_end());
        logs.print(&line, EventVisitor { message, fields: fields(addresses) });
        if shows_lines {
            let lines = node::first_push(addresses);
            let message = "paste these lines for a first connect and a first push".into();
            let fields = vec![("lines", Value::Text(lines.trim().into()))];
            logs.print(&lines, EventVisitor { message, fields });
        }
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // To the log file and to Sentry, if there are any.
            tracing::error!(name: logs::FAILURE, %error, "the node stops");
            logs.flush(LAST_WORDS);
            logs::fail(format, Some(number), &error.to_string());
            ExitCode::FAILURE
        }
    }
}

fn listening(addresses: &Addresses) -> String {
    let Addresses { ws, http, metrics, pprof, swagger } = addresses;
    format!(
        "ws-cluster listening: ws={ws} http={http} metrics={metrics} pprof={pprof} \
         swagger={swagger}\n"
    )
}

fn fields(addresses: &Addresses) -> Vec<(&'static str, Value)> {
    let Addresses { ws, http, metrics, pprof, swagger } = addresses;
    let field = |(name, address): (_, &dyn Display)| (name, Value::Text(address.to_string()));
    let all: [(_, &dyn Display); 5] =
        [("ws", ws), ("http", http), ("metrics", metrics), ("pprof", pprof), ("swagger", swagger)];
    all.map(field).into()
}
