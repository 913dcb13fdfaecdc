//! `version`, and `--version`.

use super::Output;
use crate::config::Arguments;
use crate::types::version;
use serde_json::json;

pub(super) fn run(arguments: &Arguments) -> Output {
    Output::good(match arguments.has("json") {
        true => {
            format!("{:#}\n", json!({ "version": version::VERSION, "commit": version::COMMIT }))
        }
        false => format!("ws-cluster {}\n", version::FULL),
    })
}
