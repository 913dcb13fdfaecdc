//! The output of `--help`.

use super::commands::{COMMANDS, CommandSpec};
use super::{Flag, GROUPS, docs};
use std::fmt::Write as _;

const WIDTH: usize = 96;
const INDENT: &str = "        ";

const HEAD: &str = "\
ws-cluster: a WebSocket push server, thread per core over io_uring.

Usage: ws-cluster [serve] [flags]
       ws-cluster COMMAND [options] [flags]

Commands (ws-cluster COMMAND --help explains one):
";

const FOOT: &str = "
  -h, --help
        print this help and exit
  --version
        print the version and exit

Dashes work instead of underscores (--ws-port), and so does --ws_port=8812.
Every flag is also an environment variable (WS_CLUSTER_WS_PORT=8812, WS_CLUSTER_ECHO=true) and a
key of the config file (ws_port = 8812). Flags take precedence over the environment, and the
environment over the config file; an empty variable counts as unset.
Do not pass a secret (--ops_token, --redis with a password, --sentry_dsn) as an argument, which
every user of the machine can read: use a variable (WS_CLUSTER_REDIS=redis://...), or file:/path
with a file that contains it.
Sizes accept the suffixes K, M and G (1024, 1024^2, 1024^3). Port 0 picks any free port.

The projects file is TOML:

[[project]]
pid = \"shop\"
secrets = [\"at least 16 random bytes\"]      # several while rotating
allowed_origins = [\"https://shop.example\"]  # optional; absent: any
subscribe = \"any\"                           # any (default), none or signed

Exit codes: 0 for help, the version or a regular stop; 1 if the node cannot start or continue, or if
a command finds a problem; 2 for a wrong argument, variable, config file or projects file.
";

pub(in crate::config) fn help() -> String {
    let mut text = HEAD.to_owned();
    for spec in &COMMANDS {
        // Writing to a String cannot fail, here and below.
        let _ = writeln!(text, "  {:14}{}", spec.name, spec.summary);
    }
    text.push_str("\nFlags, with their (bounds) and [defaults]:\n");
    for group in GROUPS {
        let _ = writeln!(text, "\n{}:", group.title);
        group.flags.iter().for_each(|flag| describe(flag, &mut text));
    }
    text.push_str(FOOT);
    text
}

/// Returns the help of one command.
pub(in crate::config) fn help_of(spec: &CommandSpec) -> String {
    let mut text = format!("ws-cluster {}: {}\n\n", spec.name, spec.summary);
    for (index, usage) in spec.usage.iter().enumerate() {
        let start = if index == 0 { "Usage:" } else { "      " };
        let _ =
            writeln!(text, "{}", format!("{start} ws-cluster {} {usage}", spec.name).trim_end());
    }
    text.push('\n');
    wrap(spec.about, "", &mut text);
    if !spec.options.is_empty() {
        text.push_str("\nOptions:\n");
    }
    for option in spec.options {
        let value = option.value.map(|value| format!(" {value}")).unwrap_or_default();
        let _ = writeln!(text, "  --{}{value}", option.name);
        wrap(option.help, INDENT, &mut text);
    }
    match spec.takes_all_flags() {
        true => text.push_str("\nThe flags are those of a node; ws-cluster --help lists them.\n"),
        false => {
            let flags = spec.flags();
            if !flags.is_empty() {
                text.push_str("\nFlags of a node that apply:\n");
            }
            flags.iter().for_each(|flag| describe(flag, &mut text));
        }
    }
    let _ = writeln!(text, "\nExample:\n  {}", spec.example);
    text
}

fn describe(flag: &Flag, text: &mut String) {
    let value = flag.value_name().map(|value| format!(" {value}")).unwrap_or_default();
    let _ = writeln!(text, "  --{}{value}", flag.name);
    wrap(&about(flag), INDENT, text);
}

pub(super) fn about(flag: &Flag) -> String {
    let mut about = flag.help.replace('`', "");
    if let Some(bounds) = docs::bounds(flag) {
        let _ = write!(about, " ({bounds})");
    }
    match [flag.computed, flag.default] {
        ["", ""] | ["", "false"] => {}
        ["", default] | [default, _] => {
            let _ = write!(about, " [{}]", default.replace('`', ""));
        }
    }
    about
}

/// Breaks text into lines with this indent.
fn wrap(about: &str, indent: &str, text: &mut String) {
    let mut line = indent.to_owned();
    for word in about.split(' ') {
        if line.len() + word.len() >= WIDTH {
            let _ = writeln!(text, "{}", line.trim_end());
            line = indent.to_owned();
        }
        line.push_str(word);
        line.push(' ');
    }
    let _ = writeln!(text, "{}", line.trim_end());
}
