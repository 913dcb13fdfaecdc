//! Mistakes in the configuration, each with its place if it is in a file.

use std::fmt;
use std::rc::Rc;

use crate::types::quoted;

/// A place in a file; line and column are counted from 1.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    pub file: String,
    pub line: usize,
    pub column: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, line, column } = self;
        write!(f, "{file}, line {line}, column {column}")
    }
}

/// An error or a warning about the configuration: what is wrong, and the fix. Never shows a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// `None`: it is in no file, or concerns a file as a whole.
    pub place: Option<Place>,
    pub what: String,
}

impl Mistake {
    pub(super) fn at(place: Place, what: impl Into<String>) -> Self {
        Self { place: Some(place), what: what.into() }
    }
}

impl From<String> for Mistake {
    fn from(what: String) -> Self {
        Self { place: None, what }
    }
}

impl From<&str> for Mistake {
    fn from(what: &str) -> Self {
        what.to_owned().into()
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(place) = &self.place {
            write!(f, "{place}: ")?;
        }
        f.write_str(&self.what)
    }
}

/// The text of a file or of a part of it, with the beginnings of the file's lines: a place is found
/// without counting all lines before it, of which a file of ten thousand projects has many.
pub(super) struct FileText<'t> {
    pub(super) file: &'t str,
    /// The part.
    pub(super) text: &'t str,
    whole: &'t str,
    /// Where the part begins.
    base: usize,
    line_starts: Rc<[usize]>,
}

impl<'t> FileText<'t> {
    pub(super) fn new(file: &'t str, text: &'t str) -> Self {
        let behind = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n');
        let line_starts = std::iter::once(0).chain(behind.map(|(at, _)| at + 1)).collect();
        Self { file, text, whole: text, base: 0, line_starts }
    }

    /// Returns the parts from one header of a table to the next.
    pub(super) fn sections(&self) -> Vec<Self> {
        let is_header = |start: &usize| self.whole[*start..].trim_start().starts_with('[');
        let headers = self.line_starts.iter().copied().skip(1).filter(is_header);
        let starts: Vec<usize> = std::iter::once(0).chain(headers).collect();
        let ends = starts.iter().copied().skip(1).chain([self.whole.len()]);
        let part = |(base, end): (usize, usize)| {
            let (text, line_starts) = (&self.whole[base..end], Rc::clone(&self.line_starts));
            Self { file: self.file, text, whole: self.whole, base, line_starts }
        };
        starts.iter().copied().zip(ends).map(part).collect()
    }

    /// Returns where a byte of the part is in the file.
    pub(super) fn in_file(&self, at: usize) -> usize {
        self.base + at
    }

    /// Returns the line of a byte, counted from 1.
    pub(super) fn line(&self, at: usize) -> usize {
        let at = self.in_file(at);
        self.line_starts.partition_point(|start| *start <= at).max(1)
    }

    pub(super) fn place(&self, at: usize) -> Place {
        let line = self.line(at);
        let before = self.whole.get(self.line_starts[line - 1]..self.in_file(at)).unwrap_or("");
        Place { file: self.file.to_owned(), line, column: 1 + before.chars().count() }
    }

    pub(super) fn mistake(&self, at: usize, what: impl Into<String>) -> Mistake {
        Mistake::at(self.place(at), what)
    }

    /// Returns an error of the TOML parser. Its own text quotes the line, which may hold a secret.
    pub(super) fn syntax(&self, error: &toml::de::Error) -> Mistake {
        let mut message = error.message().lines().collect::<Vec<_>>().join(", ");
        let span = error.span().unwrap_or(0..0);
        if message == "duplicate key" {
            // A key has no secret in it, unlike a value.
            let key = self.text.get(span.clone()).unwrap_or("");
            message = format!("duplicate key {}: keep one of the two", quoted(key));
        } else if message.starts_with("key with no value") {
            message += "; write each line as key = value";
        } else if message.contains("basic string, expected `\"`") {
            message += "; a string ends in its line, with the quote that it begins with";
        }
        self.mistake(span.start, message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_counted_from_1_in_characters() {
        let text = FileText::new("f", "é = 1\n\nab\n");
        for (at, line, column) in [
            (0, 1, 1),
            (2, 1, 2),
            (6, 1, 6),
            (7, 2, 1),
            (8, 3, 1),
            (9, 3, 2),
            (11, 4, 1),
            (99, 4, 1),
        ] {
            let place = Place { file: "f".into(), line, column };
            assert_eq!((text.place(at), text.line(at)), (place, line), "{at}");
        }
        assert_eq!(FileText::new("f", "").place(0).to_string(), "f, line 1, column 1");
        assert_eq!(text.mistake(8, "is wrong").to_string(), "f, line 3, column 1: is wrong");
        assert_eq!(Mistake::from("is wrong").to_string(), "is wrong");
    }

    #[test]
    fn places_in_a_section_are_those_of_the_file() {
        let text = FileText::new("f", "a = 1\n[[b]]\nc = 1\n\n  [d]\ne = 1");
        let sections = text.sections();
        let parts: Vec<&str> = sections.iter().map(|section| section.text).collect();
        assert_eq!(parts, ["a = 1\n", "[[b]]\nc = 1\n", "\n", "  [d]\ne = 1"]);
        assert_eq!(sections[3].place(2).to_string(), "f, line 5, column 3");
        assert_eq!((sections[1].line(6), sections[1].in_file(6)), (3, 12));
        assert_eq!(FileText::new("f", "").sections().len(), 1);
    }
}
