//! Floor 5: the commands of the program besides `serve`. Each returns what to print and the exit
//! code: 0 for good, 1 for a problem it found; wrong use is an [`Exit`]. `config::COMMANDS`
//! declares their arguments.

mod check_config;
mod completions;
mod doctor;
mod health;
mod man;
mod print_config;
mod request;
mod sign;
mod verify_sign;
mod version;

use crate::config::{Arguments, Command, Exit};

/// What a command prints on standard output, and its exit code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    pub text: String,
    pub code: u8,
}

impl Output {
    fn good(text: String) -> Self {
        Self { text, code: 0 }
    }

    fn of(text: String, is_good: bool) -> Self {
        Self { text, code: u8::from(!is_good) }
    }
}

/// The environment variables of the process.
#[derive(Clone, Copy)]
pub struct Environment<'a> {
    pub get: &'a dyn Fn(&str) -> Option<String>,
    pub all: &'a [(String, String)],
}

/// Runs the command that the arguments name.
pub fn run(arguments: &Arguments, env: Environment<'_>) -> Result<Output, Exit> {
    match arguments.command() {
        Command::CheckConfig => Ok(check_config::run(arguments, env)),
        Command::PrintConfig => print_config::run(arguments, env),
        Command::Sign => sign::run(arguments, env),
        Command::VerifySign => verify_sign::run(arguments, env),
        Command::Doctor => doctor::run(arguments, env),
        Command::Health => health::run(arguments, env),
        Command::Completions => completions::run(arguments),
        Command::Man => Ok(Output::good(man::page())),
        Command::Version | Command::Serve => Ok(version::run(arguments)),
    }
}
