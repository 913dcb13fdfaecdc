//! `completions`: scripts that complete commands, flags and values, made from their declarations.

use super::Output;
use crate::config::{Arguments, COMMANDS, CommandSpec, Exit, Flag, flag_groups};
use std::fmt::Write as _;

/// The word that stands for the value of a flag that is a file.
const FILE: &str = "FILE";

pub(super) fn run(arguments: &Arguments) -> Result<Output, Exit> {
    match arguments.operands() {
        [shell] if shell == "zsh" => Ok(Output::good(zsh())),
        [_] => Ok(Output::good(bash())),
        _ => Err(arguments.wrong("the shell is missing: use bash or zsh")),
    }
}

fn all_flags() -> impl Iterator<Item = &'static Flag> {
    flag_groups().iter().flat_map(|group| group.flags.iter().copied())
}

/// Returns the words that may follow a command, besides values.
fn words_of(spec: &CommandSpec) -> String {
    let options = spec.options.iter().map(|option| format!("--{}", option.name));
    let flags = spec.flags().into_iter().map(Flag::argument);
    let words = spec.operand_words.iter().map(|word| (*word).to_owned());
    words.chain(options).chain(flags).chain(["--help".to_owned()]).collect::<Vec<_>>().join(" ")
}

/// Returns the flags and options that take a value, by what the value may be: words, a file, or
/// anything. A switch needs none.
fn values() -> (Vec<(String, String)>, Vec<String>, Vec<String>) {
    let (mut words, mut files, mut others) = (Vec::new(), Vec::new(), Vec::new());
    for flag in all_flags() {
        match (flag.value_name(), flag.value_words()) {
            (None, _) => {}
            (Some(FILE), _) => files.push(flag.argument()),
            (Some(_), []) => others.push(flag.argument()),
            (Some(_), list) => words.push((flag.argument(), list.join(" "))),
        }
    }
    let options = COMMANDS.iter().flat_map(|spec| spec.options);
    for option in options.filter(|option| option.value.is_some()) {
        let name = format!("--{}", option.name);
        if !others.contains(&name) {
            others.push(name);
        }
    }
    (words, files, others)
}

fn bash() -> String {
    let (words, files, others) = values();
    let mut script = String::from(
        "# bash completion of ws-cluster, made by `ws-cluster completions bash`.\n\
         _ws_cluster() {\n    \
             local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD-1]}\n    \
             local words dashed\n    \
             # bash splits --flag=value in three words.\n    \
             if [[ $current == '=' ]]; then\n        \
                 current=\n    \
             elif [[ $previous == '=' ]]; then\n        \
                 previous=${COMP_WORDS[COMP_CWORD-2]}\n    \
             fi\n    \
             # Underscores and dashes are the same.\n    \
             dashed=${previous//_/-}\n    \
             COMPREPLY=()\n    \
             case $dashed in\n",
    );
    // Writing to a String cannot fail, here and below.
    for (name, list) in words {
        let _ = writeln!(script, "        {}) words='{list}' ;;", name_pattern(&name));
    }
    let files: Vec<String> = files.iter().map(|name| name_pattern(name)).collect();
    let _ = writeln!(
        script,
        "        {})\n            compopt -o filenames 2>/dev/null\n            \
         mapfile -t COMPREPLY < <(compgen -f -- \"$current\")\n            return ;;",
        files.join("|")
    );
    let others: Vec<String> = others.iter().map(|name| name_pattern(name)).collect();
    let _ = writeln!(script, "        {}) return ;;\n        *)", others.join("|"));
    script.push_str("            case ${COMP_WORDS[1]} in\n");
    for spec in COMMANDS.iter().skip(1) {
        let words = words_of(spec);
        let _ = writeln!(script, "                {}) words='{words}' ;;", spec.name);
    }
    let _ = writeln!(script, "                *) words='{}' ;;", words_of(&COMMANDS[0]));
    let names: Vec<&str> = COMMANDS.iter().map(|spec| spec.name).collect();
    let _ = write!(
        script,
        "            esac\n            \
         [[ $COMP_CWORD == 1 ]] && words='{names} {flags} --version'\n            \
         # Whoever writes dashes gets dashes.\n            \
         [[ ${{current#--}} == *-* && $current == --* ]] && words=${{words//_/-}} ;;\n    \
         esac\n    \
         mapfile -t COMPREPLY < <(compgen -W \"$words\" -- \"$current\")\n\
         }}\n\
         complete -F _ws_cluster ws-cluster\n",
        names = names.join(" "),
        flags = words_of(&COMMANDS[0]),
    );
    script
}

/// Returns a name as the pattern that it is compared with, in which all underscores are dashes.
fn name_pattern(name: &str) -> String {
    name.replace('_', "-")
}

fn zsh() -> String {
    let mut script = String::from(
        "#compdef ws-cluster\n\
         # zsh completion of ws-cluster, made by `ws-cluster completions zsh`.\n\
         _ws_cluster() {\n    \
             local -a commands\n    \
             commands=(\n",
    );
    for spec in &COMMANDS {
        let _ = writeln!(script, "        {}", quoted(&described(spec.name, spec.summary)));
    }
    let names: Vec<&str> = COMMANDS.iter().map(|spec| spec.name).collect();
    let _ = write!(
        script,
        "    )\n    \
         if (( CURRENT == 2 )) && [[ ${{words[2]}} != -* ]]; then\n        \
             _describe command commands\n        \
             return\n    \
         fi\n    \
         local command=${{words[2]}}\n    \
         case $command in\n        \
             # What follows a command is completed as if the command were the program.\n        \
             {}) shift words; (( CURRENT-- )) ;;\n    \
         esac\n    \
         case $command in\n",
        names.join("|")
    );
    for spec in COMMANDS.iter().skip(1) {
        let _ = write!(script, "        {})\n{}            ;;\n", spec.name, zsh_arguments(spec));
    }
    let _ = write!(script, "        *)\n{}            ;;\n", zsh_arguments(&COMMANDS[0]));
    script.push_str(
        "    esac\n}\n\
         # It runs as a function of the completion system, or defines one for `compdef`.\n\
         if [[ $zsh_eval_context[-1] == loadautofunc ]]; then\n    \
             _ws_cluster \"$@\"\n\
         else\n    \
             compdef _ws_cluster ws-cluster\n\
         fi\n",
    );
    script
}

/// Returns the call that completes the arguments of a command.
fn zsh_arguments(spec: &CommandSpec) -> String {
    let mut call = String::from("            _arguments");
    let mut add = |argument: String| {
        let _ = write!(call, " \\\n                {}", quoted(&argument));
    };
    for option in spec.options {
        let value = option.value.map(|value| format!(":{value}:")).unwrap_or_default();
        add(format!("--{}[{}]{value}", option.name, plain(option.help)));
    }
    for flag in spec.flags() {
        let value = match (flag.value_name(), flag.value_words()) {
            (None, _) => String::new(),
            (Some(FILE), _) => format!(":{FILE}:_files"),
            (Some(name), []) => format!(":{name}:"),
            (Some(name), words) => format!(":{}:({})", plain(name), words.join(" ")),
        };
        add(format!("{}[{}]{value}", flag.argument(), plain(&flag.summary())));
    }
    add("--help[explain the command]".into());
    if !spec.operand_words.is_empty() {
        add(format!("1:word:({})", spec.operand_words.join(" ")));
    }
    call.push('\n');
    call
}

/// Returns an entry of a list with descriptions.
fn described(name: &str, what: &str) -> String {
    format!("{name}:{}", what.replace(':', "\\:"))
}

/// Returns text without what has a meaning in a specification of zsh.
fn plain(text: &str) -> String {
    text.replace(['[', ']', '`', '\\'], "").replace(':', "\\:")
}

/// Quotes text as a single shell argument.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flag_and_command_is_completed() {
        let (bash, zsh) = (bash(), zsh());
        for flag in all_flags() {
            assert!(bash.contains(&format!(" {} ", flag.argument())), "{}", flag.argument());
            assert!(zsh.contains(&format!("'{}[", flag.argument())), "{}", flag.argument());
        }
        for spec in &COMMANDS {
            assert!(bash.contains(spec.name) && zsh.contains(spec.name), "{}", spec.name);
        }
        assert!(bash.contains("--env) words='dev test prod' ;;"), "{bash}");
        assert!(zsh.contains(":ENV:(dev test prod)'"), "{zsh}");
    }

    #[test]
    fn text_is_quoted_for_the_shell() {
        assert_eq!(quoted("a'b"), "'a'\\''b'");
        assert_eq!(plain("a [b]: `c`"), "a b\\: c");
    }
}
