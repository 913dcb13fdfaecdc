//! Bare loops: the limits of the kernel on this machine. A figure of the server is meaningful only
//! beside that of the loop that does nothing but its system calls. Also parts of the server in
//! isolation: `broker`.

#![warn(clippy::unwrap_used, clippy::expect_used)]

mod bare_ping;
mod bare_push;
mod bare_send;
mod bare_wake;
mod broker;
mod drain;
mod growth;
mod redis_round_trip;
mod stalls;
mod sys;

use std::process::ExitCode;

use argh::FromArgs;

/// The server's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Bare loops that bound the server's figures on this machine.
#[derive(FromArgs)]
struct Args {
    #[argh(subcommand)]
    command: Command,
}

#[derive(FromArgs)]
#[argh(subcommand)]
enum Command {
    BarePing(bare_ping::Args),
    BarePush(bare_push::Args),
    BareSend(bare_send::Args),
    BareWake(bare_wake::Args),
    Broker(broker::Args),
    Drain(drain::Args),
    Growth(growth::Args),
    RedisRoundTrip(redis_round_trip::Args),
    Stalls(stalls::Args),
}

fn main() -> ExitCode {
    let result = match argh::from_env::<Args>().command {
        Command::BarePing(args) => bare_ping::run(&args),
        Command::BarePush(args) => bare_push::run(&args),
        Command::BareSend(args) => bare_send::run(&args),
        Command::BareWake(args) => bare_wake::run(&args),
        Command::Broker(args) => broker::run(&args),
        Command::Drain(args) => drain::run(&args),
        Command::Growth(args) => growth::run(&args),
        Command::RedisRoundTrip(args) => redis_round_trip::run(&args),
        Command::Stalls(args) => stalls::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}
