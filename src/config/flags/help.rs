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
  print-config  print the configuration that these flags, the environment and the config file
                make, and where each value comes from, as a config file or with --json; then end

Flags, with their bounds and [defaults]:
";

const FOOT: &str = "
  -h, --help
        print this and end
  --version
        print the version and end

Flags work with dashes as well (--ws-port), and as --ws_port=8812.
Every flag is an environment variable too: WS_CLUSTER_WS_PORT=8812, WS_CLUSTER_ECHO=true; and a key
of the config file: ws_port = 8812. A flag wins over the environment, that over the config file; an
empty variable counts as absent.
A secret (--ops_token, --redis with a password, --sentry_dsn) does not belong in an argument, which
every user of the machine can read: give it as a variable (WS_CLUSTER_REDIS=redis://...), or as
file:/path of a file that has it.
Sizes take the suffixes K, M and G (1024, 1024^2, 1024^3). A port of 0 takes any free one.

The projects file is TOML:

[[project]]
pid = \"shop\"
secrets = [\"at least 16 random bytes\"]      # several while rotating
allowed_origins = [\"https://shop.example\"]  # optional; absent: any
subscribe = \"any\"                           # any (default), none or signed

Exit codes: 0 asked for help or the version, or ended in order; 1 could not start or go on; 2 a
wrong argument, variable, config file or projects file.
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
        let _ = write!(about, ", {bounds}");
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
