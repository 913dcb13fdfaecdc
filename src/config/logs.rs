//! The part of the configuration for the log.

use std::io;
use std::path::PathBuf;
use std::str::FromStr;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use super::arguments::Arguments;
use super::flags;
use super::mistake::Mistake;
use super::setting::{Setting, Source};
use crate::ops::logs::{FileSettings, Format, Rotate};

/// What is logged, in which format, and where.
#[derive(Debug, Clone)]
pub struct LogSettings {
    /// A filter of `tracing`, already checked: `info`, `ws_cluster=debug,info`.
    pub filter: String,
    pub format: Format,
    /// `None`: standard output.
    pub file: Option<FileSettings>,
    /// The flag or variable that gave the path.
    path_name: String,
}

impl LogSettings {
    pub(super) fn resolve(from: &Source<'_>, warnings: &mut Vec<Mistake>) -> Self {
        let filter = resolve_filter(&from.get(&flags::LOG));
        let format = from.get(&flags::LOG_FORMAT).parsed(Format::Text);
        let path = from.get(&flags::LOG_PATH);
        let rotate = from.get(&flags::LOG_ROTATE);
        let max_bytes = from.get(&flags::LOG_MAX_BYTES);
        let keep = from.get(&flags::LOG_KEEP);
        if path.text.is_none() {
            let useless = [&rotate, &max_bytes, &keep].into_iter().find(|one| one.text.is_some());
            warnings.extend(useless.map(|one| {
                let path = path.sibling(one, "/var/log/ws-cluster/ws-cluster.log");
                let what = "has no effect without a log file: use";
                one.origin.mistake(format!("{} {what} {path}, or omit it", one.name()))
            }));
        }
        let rotate = rotate.parsed(Rotate::Daily);
        // 0 means no limit, for those who leave rotation to logrotate.
        let max_bytes = match max_bytes.text.as_deref() {
            Some("0") => None,
            _ => Some(max_bytes.size()),
        };
        let keep = keep.number() as usize;
        let path_name = path.name();
        let file = path.text.map(|path| FileSettings {
            path: PathBuf::from(path),
            rotate,
            max_bytes,
            keep,
        });
        Self { filter, format, file, path_name }
    }

    /// Returns the error text for an output that cannot be opened.
    pub fn cannot_open(&self, error: &io::Error) -> String {
        let Some(file) = &self.file else {
            return format!("cannot log to standard output: {error}");
        };
        let (name, path) = (&self.path_name, file.path.display());
        format!(
            "{name} '{path}' cannot be opened ({error}): use a file that no other node logs to, in \
             a directory that this user may write to, or omit {name} to log to standard output"
        )
    }
}

/// Returns the log format as far as it can be determined when arguments, variables or the config
/// file are wrong.
pub fn log_format(args: &[String], env: &dyn Fn(&str) -> Option<String>) -> Format {
    let names = ["--log_format", "--log-format"];
    let mut given = args.iter().enumerate().filter_map(|(index, arg)| match arg.split_once('=') {
        Some((name, value)) => names.contains(&name).then(|| value.to_owned()),
        None if names.contains(&&**arg) => args.get(index + 1).cloned(),
        None => None,
    });
    let of_file = || {
        let arguments = Arguments::parse(args).ok()?;
        Source::new(&arguments, env).get(&flags::LOG_FORMAT).text
    };
    let of_env = || env(&flags::LOG_FORMAT.variable()).filter(|text| !text.is_empty());
    let text = given.next().or_else(of_env).or_else(of_file);
    text.and_then(|text| text.parse().ok()).unwrap_or(Format::Text)
}

/// Checks the filter. A word that is neither a level nor a pair would be taken for a target and
/// mute everything else; so would an unknown target without a level.
fn resolve_filter(setting: &Setting<'_>) -> String {
    let Some(text) = &setting.text else { return flags::LOG.default.into() };
    check_filter(setting, text).unwrap_or_else(|what| {
        setting.report(what);
        flags::LOG.default.into()
    })
}

fn check_filter(setting: &Setting<'_>, text: &str) -> Result<String, String> {
    let fix = "use a level (error, warn, info, debug, trace, off) or target=level pairs";
    let wrong = |why: &str| {
        let fix = format!("{fix}{why}");
        setting.wrong("a log filter", &fix, "info,ws_cluster=debug")
    };
    let mut directives = text.split(',').map(str::trim).filter(|part| !part.is_empty()).peekable();
    if directives.peek().is_none() {
        return Err(wrong(""));
    }
    let mut has_level = false;
    for directive in directives {
        let Some((target, _)) = directive.rsplit_once('=') else {
            if LevelFilter::from_str(directive).is_err() {
                return Err(wrong(&format!("; '{directive}' is neither")));
            }
            has_level = true;
            continue;
        };
        let module = target.split('[').next().unwrap_or("");
        if !is_target(module) {
            return Err(wrong(&format!(
                "; '{module}' is not a target: targets are modules, such as ws_cluster::io, and \
                 pairs are separated by commas"
            )));
        }
    }
    match EnvFilter::builder().parse(text) {
        Ok(_) if has_level => Ok(text.to_owned()),
        Ok(_) => Ok(format!("{},{text}", flags::LOG.default)),
        Err(_) => Err(wrong("")),
    }
}

/// Returns whether this can be a log target: letters, digits, underscores and colons, but not a
/// level given by mistake. An empty one precedes spans.
fn is_target(module: &str) -> bool {
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b':');
    module.bytes().all(is_plain) && (module.is_empty() || LevelFilter::from_str(module).is_err())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(text: &str) -> Result<String, String> {
        let arguments = Arguments::parse(&["--log".into(), text.into()]).unwrap();
        let source = Source::new(&arguments, &|_| None);
        let filter = resolve_filter(&source.get(&flags::LOG));
        match source.mistakes().pop() {
            Some(mistake) => Err(mistake.to_string()),
            None => Ok(filter),
        }
    }

    #[test]
    fn a_word_that_is_no_level_is_refused() {
        for (text, named) in [
            ("warning", "'warning' is neither"),
            ("ws_cluster", "'ws_cluster' is neither"),
            ("info,ureq", "'ureq' is neither"),
            ("[span]", "'[span]' is neither"),
            ("ws-cluster=debug", "'ws-cluster' is not a target"),
            ("info ws_cluster=debug", "'info ws_cluster' is not a target"),
            ("warn;ws_cluster=debug", "'warn;ws_cluster' is not a target"),
            ("info=debug", "'info' is not a target"),
            ("5=debug", "'5' is not a target"),
            ("ws_cluster=loud", "target=level pairs, e.g."),
            ("", "target=level pairs, e.g."),
            (",", "target=level pairs, e.g."),
        ] {
            let error = resolve(text).unwrap_err();
            let start = format!("--log '{text}' is not a log filter: use a level (");
            assert!(error.starts_with(&start) && error.contains(named), "{error}");
        }
        for text in ["off", "WARN", "info,ws_cluster=debug", "off,panic=error", "[a{b=1}]=debug, 3"]
        {
            assert_eq!(resolve(text), Ok(text.into()));
        }
    }

    /// `ws_clusterr=debug` and `ureq=debug` used to mute the node silently.
    #[test]
    fn pairs_alone_mute_nothing() {
        for text in ["ws_cluster::io=trace", "ws_clusterr=debug,ureq=off", "[span]=debug"] {
            assert_eq!(resolve(text), Ok(format!("info,{text}")));
        }
    }
}
