//! `print-config`: the effective configuration, with the source of each value.

use super::{Environment, Output};
use crate::config::{Arguments, Config, Exit};

pub(super) fn run(arguments: &Arguments, env: Environment<'_>) -> Result<Output, Exit> {
    let mut config = Config::of(arguments, env.get)?;
    config.warn_of_unknown(env.all.iter().map(|(name, value)| (&**name, &**value)));
    Ok(Output::good(config.printed(arguments.has("json"))))
}
