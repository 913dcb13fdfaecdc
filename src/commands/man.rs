//! `man`: the man page in roff, made from the declarations of flags and commands.

use crate::config::{COMMANDS, flag_groups};
use crate::types::version;
use std::fmt::Write as _;

/// Returns the page.
pub(super) fn page() -> String {
    let mut page = format!(
        ".TH WS-CLUSTER 1 \"\" \"ws-cluster {}\" \"User Commands\"\n\
         .SH NAME\n\
         ws\\-cluster \\- WebSocket push server\n\
         .SH SYNOPSIS\n\
         .B ws\\-cluster\n\
         [serve] [flags]\n\
         .br\n\
         .B ws\\-cluster\n\
         .I command\n\
         [options] [flags]\n\
         .SH DESCRIPTION\n",
        text(version::VERSION)
    );
    paragraph(
        "A node accepts WebSocket connections from clients, and signed pushes from backends over \
         HTTP, which it delivers to the connections that match. Several nodes form a cluster over \
         one Redis.",
        &mut page,
    );
    page.push_str(".SH COMMANDS\n");
    for spec in &COMMANDS {
        // Writing to a String cannot fail, here and below.
        let _ = writeln!(page, ".SS {}", text(spec.name));
        for usage in spec.usage {
            let call = format!("ws-cluster {} {usage}", spec.name);
            let _ = writeln!(page, ".B {}\n.br", text(call.trim_end()));
        }
        page.push_str(".PP\n");
        paragraph(spec.about, &mut page);
        for option in spec.options {
            let value = option.value.map(|value| format!(" {value}")).unwrap_or_default();
            entry(&format!("--{}{value}", option.name), option.help, &mut page);
        }
        let _ = writeln!(page, ".PP\nExample:\n.PP\n.nf\n.RS\n{}\n.RE\n.fi", text(spec.example));
    }
    flags(&mut page);
    rest(&mut page);
    page
}

fn flags(page: &mut String) {
    page.push_str(".SH FLAGS\n");
    paragraph(
        "Each has its bounds in parentheses and its default in brackets. Dashes work instead of \
         underscores, and so does an equals sign before the value. Sizes accept the suffixes K, M \
         and G. Port 0 picks any free port.",
        page,
    );
    for group in flag_groups() {
        let _ = writeln!(page, ".SS {}", text(group.title));
        for flag in group.flags {
            let value = flag.value_name().map(|value| format!(" {value}")).unwrap_or_default();
            entry(&format!("{}{value}", flag.argument()), &flag.about(), page);
        }
    }
}

/// Appends what is neither a command nor a flag.
fn rest(page: &mut String) {
    page.push_str(".SH ENVIRONMENT\n");
    paragraph(
        "Every flag is also a variable: WS_CLUSTER_ and its name in capitals, such as \
         WS_CLUSTER_WS_PORT. Flags take precedence over variables, and variables over the config \
         file; an empty variable counts as unset. WS_CLUSTER_SECRET is the secret of sign and \
         verify-sign. The variables of OpenTelemetry (OTEL_...) configure traces.",
        page,
    );
    page.push_str(".SH FILES\n");
    entry(
        "/etc/ws-cluster/config.toml",
        "A config file, named by --config: TOML whose keys are the names of the flags.",
        page,
    );
    entry(
        "/etc/ws-cluster/projects.toml",
        "A projects file, named by --projects: a [[project]] with pid and secrets for each; \
         allowed_origins and subscribe are optional.",
        page,
    );
    page.push_str(".SH SIGNALS\n");
    entry("SIGTERM, SIGINT", "The node drains and ends; a second one ends it at once.", page);
    let reload = "Config file, projects file and files of secrets are read again, and the log file \
                  is opened again; with a terminal as its log, the node ends instead.";
    entry("SIGHUP", reload, page);
    entry("SIGUSR1", "The log file is opened again.", page);
    page.push_str(".SH EXIT STATUS\n");
    entry("0", "Help, the version, a regular stop, or nothing was found to be wrong.", page);
    entry("1", "The node cannot start or continue, or a command found a problem.", page);
    entry("2", "A wrong argument, variable, config file or projects file.", page);
}

fn entry(name: &str, about: &str, page: &mut String) {
    let _ = writeln!(page, ".TP\n.B {}", text(name));
    paragraph(about, page);
}

/// Appends a paragraph, one sentence or clause a line: roff fills lines itself.
fn paragraph(about: &str, page: &mut String) {
    let mut line = String::new();
    for word in about.split_whitespace() {
        if line.len() + word.len() > 80 {
            let _ = writeln!(page, "{}", text(&line));
            line.clear();
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    let _ = writeln!(page, "{}", text(&line));
}

/// Escapes text for roff: backslashes, dashes that must stay ASCII, and control characters at the
/// beginning of a line.
fn text(plain: &str) -> String {
    let escaped = plain.replace('\\', "\\e").replace('-', "\\-").replace('…', "...");
    match escaped.starts_with(['.', '\'']) {
        true => format!("\\&{escaped}"),
        false => escaped,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_every_command_and_flag_and_is_ascii() {
        let page = page();
        for spec in &COMMANDS {
            assert!(page.contains(&format!(".SS {}\n", text(spec.name))), "{}", spec.name);
        }
        for flag in flag_groups().iter().flat_map(|group| group.flags) {
            assert!(
                page.contains(&format!(".B {}", text(&flag.argument()))),
                "{}",
                flag.argument()
            );
        }
        assert!(page.is_ascii() && !page.contains('`'));
    }

    #[test]
    fn text_is_escaped() {
        assert_eq!(text(".a\\n-b"), "\\&.a\\en\\-b");
    }
}
