//! The part of the configuration that is about the log.

use std::io;
use std::path::PathBuf;
use std::str::FromStr;

use tracing_subscriber::EnvFilter;

use super::raw_args::RawArgs;
use super::setting::Source;
use super::{Exit, GIB};
use crate::ops::logs::{FileSettings, Format, Rotate};

/// What is logged, how, and where to.
#[derive(Debug, Clone)]
pub struct LogSettings {
    /// A filter of `tracing`, already checked: `info`, `ws_cluster=debug,info`.
    pub filter: String,
    pub format: Format,
    /// `None`: standard output.
    pub file: Option<FileSettings>,
    /// The flag or variable that the path came from.
    path_name: String,
}

impl LogSettings {
    pub(super) fn resolve(
        raw: &RawArgs,
        from: &Source<'_>,
        warnings: &mut Vec<String>,
    ) -> Result<Self, Exit> {
        let filter = from.get("log", &raw.log).parsed(
            LogFilter("info".into()),
            "a log filter",
            "give a level (error, warn, info, debug, trace) or target=level pairs",
            "info,ws_cluster=debug",
        )?;
        let format = from.get("log_format", &raw.log_format);
        let format = format.parsed(Format::Text, "a log format", "give text or json", "json")?;
        let path = from.get("log_path", &raw.log_path);
        let rotate = from.get("log_rotate", &raw.log_rotate);
        let max_bytes = from.get("log_max_bytes", &raw.log_max_bytes);
        let keep = from.get("log_keep", &raw.log_keep);
        if path.text.is_none() {
            let useless = [&rotate, &max_bytes, &keep].into_iter().find(|one| one.text.is_some());
            warnings.extend(useless.map(|one| {
                let path = path.sibling(one, "/var/log/ws-cluster/ws-cluster.log");
                format!("{} has no effect without a file: give {path}, or leave it out", one.name())
            }));
        }
        let rotate = rotate.parsed(
            Rotate::Daily,
            "a time to rotate",
            "give hourly, daily or never",
            "daily",
        )?;
        // 0 is no limit, for those who leave it to logrotate.
        let max_bytes = match max_bytes.text.as_deref() {
            Some("0") => None,
            _ => Some(max_bytes.size(100 << 20, 64 << 10..=1_024 * GIB)?),
        };
        let keep = keep.number("a number of files", 14, 1..=10_000)? as usize;
        let path_name = path.name();
        let file = path.text.map(|path| FileSettings {
            path: PathBuf::from(path),
            rotate,
            max_bytes,
            keep,
        });
        Ok(Self { filter: filter.0, format, file, path_name })
    }

    /// What to say when the output cannot be opened.
    pub fn cannot_open(&self, error: &io::Error) -> String {
        let Some(file) = &self.file else {
            return format!("the log cannot be written to standard output: {error}");
        };
        let (name, path) = (&self.path_name, file.path.display());
        format!(
            "{name} '{path}' cannot be opened ({error}): give a file of this node alone, in a \
             directory that it may write to, or leave {name} out for standard output"
        )
    }
}

/// The format of the log as far as it can be seen in arguments that are wrong.
pub fn log_format(args: &[String], env: &dyn Fn(&str) -> Option<String>) -> Format {
    let names = ["--log_format", "--log-format"];
    let mut given = args.iter().enumerate().filter_map(|(index, arg)| match arg.split_once('=') {
        Some((name, value)) => names.contains(&name).then(|| value.to_owned()),
        None if names.contains(&&**arg) => args.get(index + 1).cloned(),
        None => None,
    });
    let text = given.next().or_else(|| env("WS_CLUSTER_LOG_FORMAT"));
    text.and_then(|text| text.parse().ok()).unwrap_or(Format::Text)
}

struct LogFilter(String);

impl FromStr for LogFilter {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        EnvFilter::builder().parse(text).map(|_| Self(text.into())).map_err(|_| ())
    }
}
