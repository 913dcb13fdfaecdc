//! The commands of the program. Each is declared once, here; arguments, `--help`, completions and
//! the man page are derived from it. What they do is in `commands`.

use super::{CONFIG, ENV, Flag, PROJECTS, all};

/// What the program is asked to do.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    #[default]
    Serve,
    CheckConfig,
    PrintConfig,
    Sign,
    VerifySign,
    Doctor,
    Health,
    Version,
    Completions,
    Man,
}

/// A command with everything that its arguments may be.
#[derive(Debug)]
pub struct CommandSpec {
    pub command: Command,
    pub name: &'static str,
    /// In the list of commands.
    pub summary: &'static str,
    /// The arguments in each of the ways to call it.
    pub usage: &'static [&'static str],
    /// What it does, its output, and its exit codes.
    pub about: &'static str,
    /// Options besides the node's flags.
    pub options: &'static [CommandOption],
    flags: Flags,
    /// How many arguments without dashes it takes at most.
    pub max_operands: usize,
    /// All words that may be such an argument; empty: any.
    pub operand_words: &'static [&'static str],
    /// A shell line, and its output or effect.
    pub example: &'static str,
}

/// Which of the node's flags a command takes.
#[derive(Debug, Clone, Copy)]
enum Flags {
    All,
    /// Those that lead to the projects.
    Projects,
    None,
}

/// An option of a command; a switch if it has no `value`.
#[derive(Debug)]
pub struct CommandOption {
    /// As it is shown, without the leading dashes.
    pub name: &'static str,
    pub value: Option<&'static str>,
    pub help: &'static str,
}

impl CommandOption {
    /// Returns whether this is the option; dashes and underscores are the same.
    pub fn is(&self, name: &str) -> bool {
        self.name.replace('-', "_") == name.replace('-', "_")
    }
}

impl CommandSpec {
    /// Returns the flags of a node that it takes.
    pub fn flags(&self) -> Vec<&'static Flag> {
        match self.flags {
            Flags::All => all().collect(),
            Flags::Projects => vec![&CONFIG, &ENV, &PROJECTS],
            Flags::None => Vec::new(),
        }
    }

    /// Returns whether it takes every flag of a node.
    pub fn takes_all_flags(&self) -> bool {
        matches!(self.flags, Flags::All)
    }
}

impl Command {
    pub fn spec(self) -> &'static CommandSpec {
        COMMANDS.iter().find(|spec| spec.command == self).unwrap_or(&COMMANDS[0])
    }
}

const JSON: CommandOption =
    CommandOption { name: "json", value: None, help: "print JSON, for programs" };
const SECRET: CommandOption = CommandOption {
    name: "secret",
    value: Some("SECRET"),
    help: "the project's secret, or file:/path of a file that contains it; without it the variable \
           WS_CLUSTER_SECRET, or the projects file by the request's pid",
};
const FORM: CommandOption = CommandOption {
    name: "form",
    value: None,
    help: "the request has a form as its body: PATH and BODY follow",
};
const JSON_BODY: CommandOption = CommandOption {
    name: "json-body",
    value: None,
    help: "the request has JSON as its body: PATH and BODY follow; a BODY of - is read from \
           standard input",
};

/// All commands, the default first.
pub static COMMANDS: [CommandSpec; 10] = [
    CommandSpec {
        command: Command::Serve,
        name: "serve",
        summary: "run a node (the default)",
        usage: &["[flags]"],
        about: "Runs a node until SIGTERM or SIGINT. The command may be left out. Exit codes: 0 \
                after a regular stop, 1 if the node cannot start or continue, 2 for a wrong \
                argument, variable, config file or projects file.",
        options: &[],
        flags: Flags::All,
        max_operands: 0,
        operand_words: &[],
        example: "ws-cluster serve --config /etc/ws-cluster/config.toml",
    },
    CommandSpec {
        command: Command::CheckConfig,
        name: "check-config",
        summary: "check flags, environment, config file and projects file",
        usage: &["[--json] [flags]"],
        about: "Takes the same flags, environment and files as a node, and prints every mistake \
                and every warning with its place and the fix. Starts nothing and opens no port. \
                Exit codes: 0 if a node would accept the configuration, 1 if not, 2 for wrong use.",
        options: &[JSON],
        flags: Flags::All,
        max_operands: 0,
        operand_words: &[],
        example: "ws-cluster check-config --config /etc/ws-cluster/config.toml",
    },
    CommandSpec {
        command: Command::PrintConfig,
        name: "print-config",
        summary: "print the effective configuration, with the source of each value",
        usage: &["[--json] [flags]"],
        about: "Prints every flag with its value and where that was given. The output is a config \
                file itself; secrets are hidden and commented out. Exit codes: 0, or 2 for a \
                configuration that a node would refuse.",
        options: &[JSON],
        flags: Flags::All,
        max_operands: 0,
        operand_words: &[],
        example: "WS_CLUSTER_WORKERS=2 ws-cluster print-config --node 7",
    },
    CommandSpec {
        command: Command::Sign,
        name: "sign",
        summary: "sign a request",
        usage: &[
            "[--secret SECRET] [--exp 60s] [--subprotocol] [--json] URL",
            "[--secret SECRET] [--exp 60s] [--json] --form PATH BODY",
            "[--secret SECRET] [--exp 60s] [--json] --json-body PATH BODY",
        ],
        about: "Prints the URL or the form with its sign, or the header X-Sign of a JSON body. \
                With --exp, the JSON body that was signed follows on a line of its own. An \
                existing sign is replaced. Exit codes: 0, or 2 for wrong use.",
        options: &[
            SECRET,
            FORM,
            JSON_BODY,
            CommandOption {
                name: "exp",
                value: Some("TIME"),
                help: "add exp: the request is valid for this long, e.g. 60s, 5m or 1h",
            },
            CommandOption {
                name: "subprotocol",
                value: None,
                help: "print the query of a handshake as the subprotocols to offer",
            },
            JSON,
        ],
        flags: Flags::Projects,
        max_operands: 2,
        operand_words: &[],
        example: "ws-cluster sign --secret dev-secret \
                  'ws://127.0.0.1:8812/ws/connect?pid=1&uid=alice'",
    },
    CommandSpec {
        command: Command::VerifySign,
        name: "verify-sign",
        summary: "check a signature, and find out how a wrong one was made",
        usage: &[
            "[--secret SECRET] [--json] URL",
            "[--secret SECRET] [--json] --form PATH BODY",
            "[--secret SECRET] [--json] --sign SIGN --json-body PATH BODY",
        ],
        about: "Prints \"valid\", or which step differs from what the node expects: the text, the \
                key, the encoding or exp. It makes the usual mistakes itself and names the one \
                that leads to this sign. Exit codes: 0 if it is valid, 1 if not, 2 for wrong use.",
        options: &[
            SECRET,
            FORM,
            JSON_BODY,
            CommandOption {
                name: "sign",
                value: Some("SIGN"),
                help: "the header X-Sign of a JSON body",
            },
            JSON,
        ],
        flags: Flags::Projects,
        max_operands: 2,
        operand_words: &[],
        example: "ws-cluster verify-sign --secret file:/run/secrets/shop --form /ws/push \
                  'pid=shop&data=1&sign=…'",
    },
    CommandSpec {
        command: Command::Doctor,
        name: "doctor",
        summary: "check the machine: limits, kernel settings, clock, Redis, ports",
        usage: &["[--json] [flags]"],
        about: "Checks what a node with these flags needs from this machine, and prints for each \
                part its state, what it costs and the command that mends it; then how many \
                connections this host can hold, and what bounds them. Exit codes: 0, 1 if \
                something fails, 2 for wrong use.",
        options: &[JSON],
        flags: Flags::All,
        max_operands: 0,
        operand_words: &[],
        example: "ws-cluster doctor --queue redis --redis redis://10.0.0.5:6379",
    },
    CommandSpec {
        command: Command::Health,
        name: "health",
        summary: "ask the local node whether it is ready, for HEALTHCHECK",
        usage: &["[--timeout_ms N] [--json] [flags]"],
        about: "Asks /readyz of the node on this machine, at the HTTP port that the same flags, \
                environment and config file give a node. Exit codes: 0 if it is ready, 1 if not, \
                2 for wrong use.",
        options: &[
            CommandOption {
                name: "timeout_ms",
                value: Some("N"),
                help: "time for the whole answer, in milliseconds (1 to 600000) [2000]",
            },
            JSON,
        ],
        flags: Flags::All,
        max_operands: 0,
        operand_words: &[],
        example: "HEALTHCHECK CMD [\"ws-cluster\", \"health\"]",
    },
    CommandSpec {
        command: Command::Version,
        name: "version",
        summary: "print the version",
        usage: &["[--json]"],
        about: "Prints the version and the commit that the program was built from.",
        options: &[JSON],
        flags: Flags::None,
        max_operands: 0,
        operand_words: &[],
        example: "ws-cluster version --json",
    },
    CommandSpec {
        command: Command::Completions,
        name: "completions",
        summary: "print completions for a shell",
        usage: &["bash|zsh"],
        about: "Prints a script that completes commands, flags and values.",
        options: &[],
        flags: Flags::None,
        max_operands: 1,
        operand_words: &["bash", "zsh"],
        example: "source <(ws-cluster completions bash)",
    },
    CommandSpec {
        command: Command::Man,
        name: "man",
        summary: "print the man page",
        usage: &[""],
        about: "Prints the man page in roff.",
        options: &[],
        flags: Flags::None,
        max_operands: 0,
        operand_words: &[],
        example: "ws-cluster man > /usr/local/share/man/man1/ws-cluster.1",
    },
];
