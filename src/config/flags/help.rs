//! The output of `--help`.

use super::{Flag, GROUPS, ValueKind, docs};
use std::fmt::Write as _;

const WIDTH: usize = 96;
const INDENT: &str = "        ";

const HEAD: &str = "\
ws-cluster: a WebSocket push server, thread per core over io_uring.

Usage: ws-cluster [serve] [flags]
       ws-cluster print-config [--json] [flags]

Commands:
  serve         run a node (the default)
  print-config  print the effective configuration of flags, environment and config file, with the
                source of each value, as a config file or with --json, and exit

Flags, with their (bounds) and [defaults]:
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

Exit codes: 0 for help, the version or a regular stop; 1 if the node cannot start or continue; 2 for
a wrong argument, variable, config file or projects file.
";

pub(in crate::config) fn help() -> String {
    let mut text = HEAD.to_owned();
    for group in GROUPS {
        // Writing to a String cannot fail, here and below.
        let _ = writeln!(text, "\n{}:", group.title);
        group.flags.iter().for_each(|flag| describe(flag, &mut text));
    }
    text.push_str(FOOT);
    text
}

fn describe(flag: &Flag, text: &mut String) {
    let value = match flag.kind {
        ValueKind::Number { .. } => " N",
        ValueKind::Size { .. } => " BYTES",
        ValueKind::Bool => " true|false",
        ValueKind::Switch => "",
        ValueKind::Text { value, .. } | ValueKind::Free { value } => &format!(" {value}"),
    };
    let _ = writeln!(text, "  --{}{value}", flag.name);
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
    wrap(&about, text);
}

/// Breaks text into indented lines.
fn wrap(about: &str, text: &mut String) {
    let mut line = INDENT.to_owned();
    for word in about.split(' ') {
        if line.len() + word.len() >= WIDTH {
            let _ = writeln!(text, "{}", line.trim_end());
            line = INDENT.to_owned();
        }
        line.push_str(word);
        line.push(' ');
    }
    let _ = writeln!(text, "{}", line.trim_end());
}
