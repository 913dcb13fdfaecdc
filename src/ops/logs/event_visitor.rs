//! The message and fields of an event, for the log and for Sentry: limited in length, without
//! secrets.

use super::scrub::{is_secret_name, scrub};
use std::error::Error;
use std::fmt::{self, Write};
use tracing::Event;
use tracing::field::{Field, Visit};

/// Values are cut at this length.
const MAX_VALUE_BYTES: usize = 8 << 10;
/// Bytes inspected beyond the cut, so that a signature that straddles it is still recognized.
const MARGIN_BYTES: usize = 256;

/// The message of an event and its fields, not yet escaped.
#[derive(Debug, Default)]
pub struct EventVisitor {
    pub message: String,
    pub fields: Vec<(&'static str, Value)>,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Signed(i64),
    Unsigned(u64),
    Float(f64),
    Bool(bool),
    /// A string, which text lines put in quotes.
    Quoted(String),
    Text(String),
}

impl EventVisitor {
    pub fn of(event: &Event<'_>) -> Self {
        let mut visitor = Self::default();
        event.record(&mut visitor);
        visitor
    }

    fn push(&mut self, field: &Field, value: Value) {
        let name = field.name();
        let value = match is_secret_name(name) {
            true => Value::Text("***".into()),
            false => value,
        };
        self.fields.push((name, value));
    }

    fn push_text(&mut self, field: &Field, text: String) {
        match field.name() {
            "message" => self.message = text,
            _ => self.push(field, Value::Text(text)),
        }
    }
}

impl Visit for EventVisitor {
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.push(field, Value::Signed(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.push(field, Value::Unsigned(value));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.push(field, Value::Float(value));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.push(field, Value::Bool(value));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => self.message = redact(format_args!("{value}")),
            _ => self.push(field, Value::Quoted(redact(format_args!("{value}")))),
        }
    }

    fn record_error(&mut self, field: &Field, value: &(dyn Error + 'static)) {
        self.push_text(field, redact(format_args!("{value}")));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.push_text(field, redact(format_args!("{value:?}")));
    }
}

/// Returns the text, cut and without secrets.
pub fn redact(text: fmt::Arguments<'_>) -> String {
    let mut cut = Cut { text: String::new(), is_cut: false };
    // Its only error means that the rest is left out.
    let _ = cut.write_fmt(text);
    let mut redacted = scrub(&cut.text).into_owned();
    if cut.is_cut || redacted.len() > MAX_VALUE_BYTES {
        redacted.truncate(redacted.floor_char_boundary(MAX_VALUE_BYTES));
        redacted.push('…');
    }
    redacted
}

/// Accepts a limited number of bytes.
struct Cut {
    text: String,
    is_cut: bool,
}

impl Write for Cut {
    fn write_str(&mut self, more: &str) -> fmt::Result {
        let room = MAX_VALUE_BYTES + MARGIN_BYTES - self.text.len();
        if more.len() <= room {
            self.text.push_str(more);
            return Ok(());
        }
        self.text.push_str(&more[..more.floor_char_boundary(room)]);
        self.is_cut = true;
        Err(fmt::Error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_long_is_cut_and_a_sign_at_the_cut_is_not_half_told() {
        let sign = "0123456789abcdef".repeat(4);
        for before in MAX_VALUE_BYTES - 66..=MAX_VALUE_BYTES {
            let text = format!("{} {sign} {}", "é".repeat(before / 2), "-".repeat(100_000));
            let redacted = redact(format_args!("{text}"));
            assert!(redacted.len() <= MAX_VALUE_BYTES + '…'.len_utf8(), "{}", redacted.len());
            assert!(redacted.ends_with('…') && !redacted.contains("0123"), "{before}");
        }
        let all = "x".repeat(MAX_VALUE_BYTES);
        assert_eq!(redact(format_args!("{all}")), all);
        let more = "x".repeat(MAX_VALUE_BYTES + 1);
        assert_eq!(redact(format_args!("{more}")), format!("{all}…"));
    }
}
