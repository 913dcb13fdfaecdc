//! The command line: a command, and values that are still text.

use std::collections::HashMap;
use std::fmt;

use super::Exit;
use super::flags::{self, COMMANDS, Command, CommandSpec, Flag, ValueKind};
use crate::types::similar;

/// The arguments of the program, without its name.
#[derive(Default, Clone)]
pub struct Arguments {
    command: Command,
    /// The node's flags.
    values: HashMap<&'static str, String>,
    /// The options of the command itself; a switch has an empty value.
    options: HashMap<&'static str, String>,
    operands: Vec<String>,
}

/// A value may be a secret.
impl fmt::Debug for Arguments {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Arguments").field(&self.command).finish()
    }
}

impl Arguments {
    /// Parses them. `--help` and `--version` end in [`Exit::Output`].
    pub fn parse(args: &[String]) -> Result<Self, Exit> {
        let mut found = Self::default();
        let mut rest = args.iter();
        if let Some(name) = args.first().filter(|arg| !arg.starts_with('-')) {
            let spec = COMMANDS.iter().find(|spec| spec.name == name);
            found.command = spec.ok_or_else(|| unknown_command(name))?.command;
            rest.next();
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
        let spec = self.command.spec();
        if arg == "-h" || arg == "--help" {
            return Err(Exit::Output(match self.command {
                Command::Serve => flags::help(),
                _ => flags::help_of(spec),
            }));
        }
        let Some(long) = arg.strip_prefix("--") else {
            // A single dash is an operand: standard input.
            let is_operand = arg == "-" || !arg.starts_with('-');
            if !is_operand || self.operands.len() == spec.max_operands {
                return Err(self.wrong(format!("unknown argument: {}", shown(arg))));
            }
            if !spec.operand_words.is_empty() && !spec.operand_words.contains(&arg) {
                let words = spec.operand_words.join(" or ");
                return Err(self.wrong(format!("unknown argument: {}: use {words}", shown(arg))));
            }
            self.operands.push(arg.to_owned());
            return Ok(());
        };
        let (name, value) = match long.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (long, None),
        };
        if name == "version" && value.is_none() && spec.takes_all_flags() {
            self.command = Command::Version;
            return Ok(());
        }
        let dashed = name.replace('_', "-");
        let mut next = || {
            rest.next().cloned().ok_or_else(|| self.wrong(format!("missing value for --{dashed}")))
        };
        if let Some(option) = spec.options.iter().find(|option| option.is(name)) {
            let value = match (option.value, value) {
                (None, None) => String::new(),
                (None, Some(_)) => {
                    return Err(self.wrong(format!("--{} takes no value", option.name)));
                }
                (Some(_), Some(value)) => value,
                (Some(_), None) => next()?,
            };
            return match self.options.insert(option.name, value) {
                Some(_) => Err(self.wrong(format!("--{dashed} is given twice"))),
                None => Ok(()),
            };
        }
        let allowed = spec.flags();
        let flag = allowed.into_iter().find(|flag| flag.name == name.replace('-', "_"));
        let Some(flag) = flag else { return Err(self.unknown(name)) };
        let value = match value {
            Some(value) => value,
            None if matches!(flag.kind, ValueKind::Switch) => "true".into(),
            None => next()?,
        };
        match self.values.insert(flag.name, value) {
            Some(_) => Err(self.wrong(format!("--{dashed} is given twice"))),
            None => Ok(()),
        }
    }

    pub fn command(&self) -> Command {
        self.command
    }

    /// Returns whether a switch of the command is given.
    pub fn has(&self, option: &str) -> bool {
        self.options.contains_key(option)
    }

    /// Returns the value of an option of the command.
    pub fn option(&self, option: &str) -> Option<&str> {
        self.options.get(option).map(String::as_str)
    }

    /// Returns the arguments without dashes.
    pub fn operands(&self) -> &[String] {
        &self.operands
    }

    /// Returns the error for a wrong use of the command.
    pub fn wrong(&self, what: impl Into<String>) -> Exit {
        let command = match self.command {
            Command::Serve => "",
            other => other.spec().name,
        };
        let space = if command.is_empty() { "" } else { " " };
        Exit::Error(format!("{}; see ws-cluster{space}{command} --help", what.into()))
    }

    fn unknown(&self, name: &str) -> Exit {
        let spec = self.command.spec();
        let known = spec.options.iter().map(|option| option.name);
        let known: Vec<&str> = known.chain(spec.flags().iter().map(|flag| flag.name)).collect();
        let hint = match similar(&name.replace('-', "_"), &known) {
            Some(nearest) if shown(name) == name => format!(" (did you mean --{nearest}?)"),
            _ => String::new(),
        };
        let dashed = format!("--{}", name.replace('_', "-"));
        self.wrong(format!("unknown argument: {}{hint}", shown(&dashed)))
    }

    pub(super) fn value(&self, flag: &Flag) -> Option<&str> {
        self.values.get(flag.name).map(String::as_str)
    }
}

fn unknown_command(name: &str) -> Exit {
    let names: Vec<&str> = COMMANDS.iter().map(|spec: &CommandSpec| spec.name).collect();
    let hint = match similar(name, &names) {
        Some(nearest) => format!(" (did you mean {nearest}?)"),
        None => String::new(),
    };
    let what = if shown(name) == name { "unknown command" } else { "unknown argument" };
    Exit::Error(format!("{what}: {}{hint}; see ws-cluster --help", shown(name)))
}

/// Returns how an error shows a stray argument: it may be the URL of `--redis` with its password.
fn shown(arg: &str) -> &str {
    let is_url = arg.contains("://") || arg.contains('@');
    if is_url { "***" } else { arg }
}
