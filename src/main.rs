//! Arguments to config to [`ws_cluster::node::run`].

#![warn(clippy::unwrap_used, clippy::expect_used)]

use std::process::ExitCode;
use ws_cluster::config::{Config, DEV_PID, DEV_SECRET, Exit};
use ws_cluster::io::sys;
use ws_cluster::node::{self, Addresses};
use ws_cluster::wire::sign::{Secret, sign_hex};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    sys::disable_huge_pages();
    let args: Vec<String> = std::env::args().skip(1).collect();
    let config = match Config::from_args(&args, &|name| std::env::var(name).ok()) {
        Ok(config) => config,
        Err(exit) => {
            if let Exit::Error(_) = exit {
                eprintln!("{exit}");
            } else {
                print!("{exit}");
            }
            return ExitCode::from(exit.code());
        }
    };
    tracing_subscriber::fmt()
        .with_env_filter(&config.log)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .init();
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    let shows_lines = config.has_dev_project() && !config.echo;
    let result = node::run(config, |addresses| {
        let Addresses { ws, http, metrics, pprof, swagger } = addresses;
        println!(
            "ws-cluster listening: ws={ws} http={http} metrics={metrics} pprof={pprof} \
             swagger={swagger}"
        );
        if shows_lines {
            print_first_push(addresses);
        }
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ws-cluster: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Lines to paste into two other terminals: one connects, one pushes; both signed.
fn print_first_push(addresses: &Addresses) {
    let secret = Secret::new(DEV_SECRET.as_bytes());
    let connect = format!("pid={DEV_PID}&tags=news&uid=alice");

    let connect_sign = sign_hex(&secret, &[b"/ws/connect\n", connect.as_bytes()]);
    let body = format!(r#"{{"pid":"{DEV_PID}","tags":["news"],"data":{{"hello":"world"}}}}"#);
    let push_sign = sign_hex(&secret, &[b"/ws/push\n", body.as_bytes()]);
    let (ws_port, http_port) = (addresses.ws.port(), addresses.http.port());
    let Addresses { metrics, pprof, swagger, .. } = addresses;
    println!(
        "
Connect (any WebSocket client; here Python: pip install websockets):
  python3 -m websockets 'ws://127.0.0.1:{ws_port}/ws/connect?{connect}&sign={connect_sign}'

Push to the tag 'news':
  curl -s http://127.0.0.1:{http_port}/ws/push -H 'Content-Type: application/json' \\
    -H 'X-Sign: {push_sign}' \\
    -d '{body}'

Live page and API: http://{swagger}/   Metrics: http://{metrics}/metrics
Profiles: http://{pprof}/debug/pprof/   Stop: Ctrl-C   All flags: --help"
    );
}
