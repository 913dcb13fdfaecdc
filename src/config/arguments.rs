//! The command line: a command, and values that are still text.

use std::collections::HashMap;

use super::Exit;
use super::flags::{self, Flag, ValueKind};

/// The arguments of the program, without its name.
#[derive(Debug, Default)]
pub(super) struct Arguments {
    pub(super) command: Command,
    values: HashMap<&'static str, String>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) enum Command {
    #[default]
    Serve,
    PrintConfig {
        as_json: bool,
    },
    Version,
}

impl Arguments {
    pub(super) fn parse(args: &[String]) -> Result<Self, Exit> {
        let mut found = Self::default();
        let mut rest = args.iter();
        match args.first().map(String::as_str) {
            Some("serve") => drop(rest.next()),
            Some("print-config") => {
                found.command = Command::PrintConfig { as_json: false };
                rest.next();
            }
            _ => {}
        }
        while let Some(arg) = rest.next() {
            found.take(arg, &mut rest)?;
        }
        Ok(found)
    }

    /// Takes a value given as `--ws_port 8812`, `--ws-port 8812` or `--ws_port=8812`.
    fn take<'a>(
        &mut self,
        arg: &str,
        rest: &mut impl Iterator<Item = &'a String>,
    ) -> Result<(), Exit> {
        if arg == "-h" || arg == "--help" {
            return Err(Exit::Output(flags::help()));
        }
        let Some(long) = arg.strip_prefix("--") else { return Err(unrecognized(arg)) };
        let (name, value) = match long.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (long, None),
        };
        let name = name.replace('-', "_");
        match (&*name, &mut self.command, &value) {
            ("version", command, None) => {
                *command = Command::Version;
                return Ok(());
            }
            ("json", Command::PrintConfig { as_json }, None) => {
                *as_json = true;
                return Ok(());
            }
            _ => {}
        }
        let Some(flag) = flags::find(&name) else {
            return Err(unrecognized(&format!("--{}", name.replace('_', "-"))));
        };
        let dashed = name.replace('_', "-");
        let value = match value {
            Some(value) => value,
            None if matches!(flag.kind, ValueKind::Switch) => "true".into(),
            None => rest
                .next()
                .cloned()
                .ok_or_else(|| wrong(format!("missing value for --{dashed}")))?,
        };
        match self.values.insert(flag.name, value) {
            Some(_) => Err(wrong(format!("--{dashed} is given twice"))),
            None => Ok(()),
        }
    }

    pub(super) fn value(&self, flag: &Flag) -> Option<&str> {
        self.values.get(flag.name).map(String::as_str)
    }
}

/// Returns the error for a stray argument. It is not shown: it may be the URL of `--redis` with its
/// password.
fn unrecognized(arg: &str) -> Exit {
    let is_url = arg.contains("://") || arg.contains('@');
    let shown = if is_url { "***" } else { arg };
    wrong(format!("unknown argument: {shown}"))
}

fn wrong(what: String) -> Exit {
    Exit::Error(format!("{what}; see ws-cluster --help"))
}
