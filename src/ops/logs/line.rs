//! The format of a log line: text for people, text for journald, or JSON for machines. It is always
//! one line: control characters are escaped.

use super::event_visitor::{EventVisitor, Value};
use super::timestamp::rfc3339;
use crate::types::NodeId;
use std::fmt::Write;
use std::str::FromStr;
use tracing::Level;

/// `--log_format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Text,
    Json,
}

impl FromStr for Format {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err(()),
        }
    }
}

/// What all lines of a log share.
#[derive(Debug, Clone, Copy)]
pub struct Style {
    pub format: Format,
    /// `None`: not yet known.
    pub node: Option<NodeId>,
    /// The output is a terminal.
    pub has_colours: bool,
    /// The output is journald: it records the time itself and expects the priority prefix of
    /// sd-daemon(3).
    pub is_journal: bool,
}

/// The contents of one line.
#[derive(Debug)]
pub struct Line<'a> {
    pub now_ms: u64,
    pub level: Level,
    pub target: &'a str,
    pub thread: &'a str,
    pub event: EventVisitor,
}

impl Style {
    /// Returns the line, with its newline.
    pub fn line(&self, line: &Line<'_>) -> String {
        let mut out = String::with_capacity(256);
        if self.is_journal {
            out.push_str(priority(line.level));
        }
        match self.format {
            Format::Text => self.text(line, &mut out),
            Format::Json => self.json(line, &mut out),
        }
        out.push('\n');
        out
    }

    fn text(&self, line: &Line<'_>, out: &mut String) {
        if !self.is_journal {
            let (dim, colour, end) = match self.has_colours {
                true => ("\x1b[2m", colour(line.level), "\x1b[0m"),
                false => ("", "", ""),
            };
            let (time, level) = (rfc3339(line.now_ms), line.level.as_str());
            push(out, format_args!("{dim}{time}{end} {colour}{level:>5}{end} "));
        }
        push(out, format_args!("{} {}: ", line.thread, line.target));
        escape(out, &line.event.message, Escapes::Text);
        for (name, value) in &line.event.fields {
            push(out, format_args!(" {name}="));
            match value {
                Value::Quoted(text) => {
                    out.push('"');
                    escape(out, text, Escapes::Quoted);
                    out.push('"');
                }
                Value::Text(text) => escape(out, text, Escapes::Text),
                value => push_value(out, value),
            }
        }
    }

    fn json(&self, line: &Line<'_>, out: &mut String) {
        let time = rfc3339(line.now_ms);
        push(out, format_args!("{{\"ts\":\"{time}\",\"level\":\"{}\",\"target\":", line.level));
        push_json(out, line.target);
        out.push_str(",\"msg\":");
        push_json(out, &line.event.message);
        out.push_str(",\"fields\":{");
        for (index, (name, value)) in line.event.fields.iter().enumerate() {
            if index > 0 {
                out.push(',');
            }
            push_json(out, name);
            out.push(':');
            push_value(out, value);
        }
        out.push('}');
        if let Some(node) = self.node {
            push(out, format_args!(",\"node\":{node}"));
        }
        out.push_str(",\"thread\":");
        push_json(out, line.thread);
        out.push('}');
    }
}

/// The levels of syslog(3): error, warning, informational, debug.
fn priority(level: Level) -> &'static str {
    match level {
        Level::ERROR => "<3>",
        Level::WARN => "<4>",
        Level::INFO => "<6>",
        _ => "<7>",
    }
}

fn colour(level: Level) -> &'static str {
    match level {
        Level::ERROR => "\x1b[31m",
        Level::WARN => "\x1b[33m",
        Level::INFO => "\x1b[32m",
        _ => "\x1b[34m",
    }
}

/// Writing to a `String` cannot fail.
fn push(out: &mut String, text: std::fmt::Arguments<'_>) {
    let _ = out.write_fmt(text);
}

/// As in JSON, which has neither infinities nor NaN.
fn push_value(out: &mut String, value: &Value) {
    match value {
        Value::Signed(number) => push(out, format_args!("{number}")),
        Value::Unsigned(number) => push(out, format_args!("{number}")),
        Value::Float(number) if number.is_finite() => push(out, format_args!("{number}")),
        Value::Float(_) => out.push_str("null"),
        Value::Bool(truth) => push(out, format_args!("{truth}")),
        Value::Quoted(text) | Value::Text(text) => push_json(out, text),
    }
}

fn push_json(out: &mut String, text: &str) {
    out.push('"');
    escape(out, text, Escapes::Json);
    out.push('"');
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Escapes {
    /// As in JSON, RFC 8259, section 7.
    Json,
    /// As in a Rust literal.
    Quoted,
    /// As in a Rust literal, for text without quotes.
    Text,
}

/// U+2028 and U+2029 end lines for some readers.
fn escape(out: &mut String, text: &str, escapes: Escapes) {
    for c in text.chars() {
        match c {
            '"' | '\\' if escapes != Escapes::Text => out.extend(['\\', c]),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}') => match escapes {
                Escapes::Json => push(out, format_args!("\\u{:04x}", u32::from(c))),
                _ => push(out, format_args!("{}", c.escape_unicode())),
            },
            c => out.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::Value as Json;

    fn style(format: Format) -> Style {
        let node = NodeId::new(7);
        Style { format, node, has_colours: false, is_journal: false }
    }

    fn line(message: &str, fields: Vec<(&'static str, Value)>) -> Line<'static> {
        let event = EventVisitor { message: message.into(), fields };
        let now_ms = 1_772_627_696_789;
        Line { now_ms, level: Level::WARN, target: "ws_cluster::io", thread: "worker-0", event }
    }

    fn fields() -> Vec<(&'static str, Value)> {
        vec![
            ("error", Value::Text("away \"x\"\n<3>\x1b[31m".into())),
            ("name", Value::Quoted("a \"b\"\\".into())),
            ("missed", Value::Unsigned(5)),
            ("step_ms", Value::Signed(-1)),
            ("is_late", Value::Bool(true)),
            ("part", Value::Float(f64::NAN)),
        ]
    }

    #[test]
    fn text_for_people() {
        assert_eq!(
            style(Format::Text).line(&line("the queue\tis down", fields())),
            "2026-03-04T12:34:56.789Z  WARN worker-0 ws_cluster::io: the queue\\tis down \
             error=away \"x\"\\n<3>\\u{1b}[31m name=\"a \\\"b\\\"\\\\\" missed=5 step_ms=-1 \
             is_late=true part=null\n"
        );
    }

    #[test]
    fn colours_for_terminals() {
        let style = Style { has_colours: true, ..style(Format::Text) };
        let text = style.line(&line("x", Vec::new()));
        assert!(text.contains("\x1b[33m WARN\x1b[0m worker-0"), "{text:?}");
    }

    #[test]
    fn journald_gets_the_priority_and_keeps_the_time() {
        let style = Style { is_journal: true, ..style(Format::Text) };
        for (level, start) in [(Level::ERROR, "<3>"), (Level::INFO, "<6>"), (Level::TRACE, "<7>")] {
            let text = style.line(&Line { level, ..line("x", Vec::new()) });
            assert_eq!(text, format!("{start}worker-0 ws_cluster::io: x\n"));
        }
    }

    #[test]
    fn json_for_machines() {
        let text = style(Format::Json).line(&line("the queue is down", fields()));
        assert_eq!(
            text,
            concat!(
                r#"{"ts":"2026-03-04T12:34:56.789Z","level":"WARN","target":"ws_cluster::io","#,
                r#""msg":"the queue is down","fields":{"error":"away \"x\"\n<3>\u001b[31m","#,
                r#""name":"a \"b\"\\","missed":5,"step_ms":-1,"is_late":true,"part":null},"#,
                r#""node":7,"thread":"worker-0"}"#,
                "\n"
            )
        );
    }

    fn is_end(c: char) -> bool {
        c.is_control() || matches!(c, '\u{2028}' | '\u{2029}')
    }

    proptest! {
        #[test]
        fn any_text_is_one_line_and_comes_back(msg in any::<String>(), value in any::<String>()) {
            let (quoted, text) = (Value::Quoted(value.clone()), Value::Text(value.clone()));
            let fields = vec![("a", quoted), ("b", text)];
            for format in [Format::Text, Format::Json] {
                let text = style(format).line(&line(&msg, fields.clone()));
                prop_assert_eq!(text.find(is_end), Some(text.len() - 1));
            }
            let text = style(Format::Json).line(&line(&msg, fields));
            let json: Json = serde_json::from_str(&text).unwrap();
            prop_assert_eq!(&json["msg"], &msg);
            prop_assert_eq!(&json["fields"]["a"], &value);
            prop_assert_eq!(&json["fields"]["b"], &value);
        }
    }
}
