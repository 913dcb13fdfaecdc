//! Puts load on ws-cluster nodes and measures how they perform.
//!
//! One thread is one event loop: edge-triggered epoll, one receive buffer, frames parsed in place,
//! no allocation per message, the clock read once per batch of events.

#![warn(clippy::unwrap_used, clippy::expect_used)]

mod arguments;
mod business;
mod client;
mod connect;
mod events;
mod fanout;
mod http;
mod identity;
mod machine;
mod message;
mod metrics;
mod page;
mod preflight;
mod processes;
mod replay;
mod report;
mod requests;
mod run;
mod sampler;
mod scenario;
mod series;
mod server;
mod soak;
mod storm;
mod sys;
mod tags;
mod thresholds;
mod unicast;

use std::process::ExitCode;

use argh::{EarlyExit, FromArgs};

use arguments::Options;
use connect::ConnectArguments;
use events::EventsArguments;
use fanout::FanoutArguments;
use processes::Part;
use replay::ReplayArguments;
use report::Report;
use requests::RequestsArguments;
use soak::SoakArguments;
use storm::StormArguments;
use tags::TagsArguments;
use unicast::UnicastArguments;

/// Load test for ws-cluster nodes: signed connects, fan-out to many, pushes to one, requests to
/// business servers and their events, memory per connection.
///
/// Everything is checked while it is measured: each message carries a sequence number, and if any
/// is lost, duplicated or (where the order is guaranteed) out of order, the exit code is 1. Run
/// server and tool on different cores, or they compete for one: start the server under `taskset -c
/// 0` and the tool with `--pin 1`. If the report has tool_was_bottleneck, the server could do more.
#[derive(FromArgs)]
#[argh(example = "{command_name} connect --connections 10000 --rate 5000 --hold 30
{command_name} connect --cycle --seconds 5 --concurrency 64 --pin 1
{command_name} connect --memory-at 9000,19000 --pid-of-server $(pidof ws-cluster)
{command_name} fanout --connections 10000 --bytes 128 --outstanding 4 --seconds 10 --pin 1
{command_name} unicast --pushers 8 --seconds 10 --json
{command_name} unicast --pushers 1 --await-delivery --http a:8912 --ws b:8812
{command_name} unicast --pushers 64 --rate 20000 --users 1000 --seconds 10
{command_name} requests --clients 64 --seconds 10 --pin 1
{command_name} requests --clients 1 --ws a:8812 --server-ws b:8812
{command_name} events --connections 10000 --servers 2 --ws a:8812 --server-ws a:8812,b:8812
{command_name} storm --connections 10000 --share 0.2 --canaries 100 --max-p99 50ms
{command_name} tags --connections 10000 --tags 1000 --tags-per-client 4 --rate 100
{command_name} soak --connections 5000 --hours 8 --pid-of-server $(pidof ws-cluster)
{command_name} replay loadtest/scenarios/morning.toml")]
#[argh(error_code(0, "nothing failed and no threshold was broken"))]
#[argh(error_code(
    1,
    "something failed, was lost, duplicated or out of order; a threshold was broken; the server \
     died; or an option is wrong or impossible here"
))]
struct Arguments {
    #[argh(subcommand)]
    command: Command,
}

#[derive(FromArgs)]
#[argh(subcommand)]
enum Command {
    Connect(ConnectArguments),
    Fanout(FanoutArguments),
    Unicast(UnicastArguments),
    Requests(RequestsArguments),
    Events(EventsArguments),
    Storm(StormArguments),
    Tags(TagsArguments),
    Soak(SoakArguments),
    Replay(ReplayArguments),
}

impl Command {
    fn options(&self) -> Options {
        match self {
            Command::Connect(arguments) => arguments.options(),
            Command::Fanout(arguments) => arguments.options(),
            Command::Unicast(arguments) => arguments.options(),
            Command::Requests(arguments) => arguments.options(),
            Command::Events(arguments) => arguments.options(),
            Command::Storm(arguments) => arguments.options(),
            Command::Tags(arguments) => arguments.options(),
            Command::Soak(arguments) => arguments.options(),
            Command::Replay(arguments) => arguments.options(),
        }
    }

    /// Returns the command's name and the number of connections that several processes can share.
    fn shared(&self) -> Option<(&'static str, u64)> {
        match self {
            Command::Connect(arguments) => Some(("connect", arguments.shared()?)),
            Command::Fanout(arguments) => Some(("fanout", arguments.shared()?)),
            Command::Unicast(arguments) => Some(("unicast", arguments.shared()?)),
            _ => None,
        }
    }

    fn run(&self, options: &Options) -> Result<Report, String> {
        match self.shared() {
            Some((name, connections)) => {
                let count = processes::needed(options, connections);
                if count > 1 {
                    return processes::run(options, name, connections, count);
                }
            }
            None if options.processes.is_some_and(|count| count > 1) => {
                return Err(
                    "--processes works only with connect, fanout to a tag, and unicast".to_owned()
                );
            }
            None => {}
        }
        match self {
            Command::Connect(arguments) => arguments.run(options),
            Command::Fanout(arguments) => arguments.run(options),
            Command::Unicast(arguments) => arguments.run(options),
            Command::Requests(arguments) => arguments.run(options),
            Command::Events(arguments) => arguments.run(options),
            Command::Storm(arguments) => arguments.run(options),
            Command::Tags(arguments) => arguments.run(options),
            Command::Soak(arguments) => arguments.run(options),
            Command::Replay(arguments) => arguments.run(options),
        }
    }
}

fn main() -> ExitCode {
    let arguments = arguments::fold(std::env::args());
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (program, rest) = words.split_first().unwrap_or((&"loadtest", &[]));
    let command = match Arguments::from_args(&[program], rest) {
        Ok(arguments) => arguments.command,
        Err(EarlyExit { output, status: Ok(()) }) => {
            println!("{output}");
            return ExitCode::SUCCESS;
        }
        Err(EarlyExit { output, status: Err(()) }) => {
            eprintln!("{output}Run {program} --help for more.");
            return ExitCode::FAILURE;
        }
    };
    sys::catch_interrupts();
    if Part::of_this_process().is_child() {
        sys::end_with_parent();
    }
    let options = command.options();
    match command.run(&options) {
        Ok(mut report) => {
            if Part::of_this_process().is_child() {
                processes::tell_report(&report);
                return ExitCode::SUCCESS;
            }
            report.conclude();
            println!("{}", if options.json { report.to_json() } else { report.to_text() });
            if let Some(file) = &options.report
                && let Err(error) = std::fs::write(file, report.to_html())
            {
                eprintln!("loadtest: --report {file}: {error}");
                return ExitCode::FAILURE;
            }
            if report.failed() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
        }
        Err(error) => {
            eprintln!("loadtest: {error}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_parsed_with_underscores() {
        let words = ["connect", "--memory_at", "9,19", "--pid_of_server=7"].map(str::to_owned);
        let words = arguments::fold(words.into_iter());
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let arguments = Arguments::from_args(&["loadtest"], &words).unwrap();
        let options = arguments.command.options();
        assert_eq!(options.pid_of_server, Some(7));
        let common = options.check(19, "").unwrap();
        assert_eq!((common.threads, common.sources.len()), (1, 32));
    }
}
