//! The configuration of a running node, read again.

use super::arguments::Arguments;
use super::setting::{InForce, Source};
use super::{Config, Exit};
use crate::ops::reload::NeedsRestart;

/// Reads the configuration again, with the arguments and the environment of the start.
#[derive(Debug)]
pub struct Reloader {
    arguments: Arguments,
    env: fn(&str) -> Option<String>,
    in_force: InForce,
}

/// A configuration that was read again and found to be right; [`Reloader::accept`] it once it is in
/// force.
#[derive(Debug)]
pub struct Reread {
    /// Flags that need a restart have the values in force.
    pub config: Config,
    /// Flags with another value than before.
    pub changed: Vec<&'static str>,
    /// Flags that were given another value, which only a restart puts in force.
    pub needs_restart: Vec<NeedsRestart>,
    in_force: InForce,
}

impl Config {
    /// Returns what reads the configuration again. `env` looks up an environment variable, as in
    /// [`Config::from_args`].
    pub fn reloader(&self, env: fn(&str) -> Option<String>) -> Reloader {
        let (arguments, in_force) = (self.arguments.clone(), self.in_force.clone());
        Reloader { arguments, env, in_force }
    }
}

impl Reloader {
    /// Reads the config file, the projects file and the files of secrets, and checks all of it.
    pub fn read(&self) -> Result<Reread, Exit> {
        let source = Source::for_node(&self.arguments, &self.env, Some(&self.in_force));
        let config = Config::resolve(&source);
        if let [first, more @ ..] = &*source.mistakes() {
            let more = match more.len() {
                0 => String::new(),
                more => format!(" ({more} more: ws-cluster check-config lists them)"),
            };
            return Err(Exit::Error(format!("{first}{more}")));
        }
        let (in_force, kept) = source.finish(&config.settings);
        let changed = in_force.changed_since(&self.in_force);
        let needs_restart = kept
            .into_iter()
            .map(|flag| NeedsRestart { flag: flag.name, value: self.in_force.value(flag) })
            .collect();
        Ok(Reread { config, changed, needs_restart, in_force })
    }

    /// Takes the configuration that is now in force: the next one is compared with it.
    pub fn accept(&mut self, reread: Reread) {
        self.in_force = reread.in_force;
    }
}

impl Exit {
    /// Returns what is wrong, without the name of the program.
    pub fn reason(&self) -> &str {
        let (Self::Output(text) | Self::Error(text)) = self;
        text
    }
}
