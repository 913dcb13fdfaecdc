//! Mistakes in the configuration, each with its place if it is in a file.

use std::fmt;

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

/// The text of a file, with the beginnings of its lines: a place is found without counting all
/// lines before it, of which a file of ten thousand projects has many.
pub(super) struct FileText<'t> {
    pub(super) file: &'t str,
    pub(super) text: &'t str,
    line_starts: Vec<usize>,
}

impl<'t> FileText<'t> {
    pub(super) fn new(file: &'t str, text: &'t str) -> Self {
        let behind = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n');
        let line_starts = std::iter::once(0).chain(behind.map(|(at, _)| at + 1)).collect();
        Self { file, text, line_starts }
    }

    /// Returns the line of a byte, counted from 1.
    pub(super) fn line(&self, at: usize) -> usize {
        self.line_starts.partition_point(|start| *start <= at).max(1)
    }

    pub(super) fn place(&self, at: usize) -> Place {
        let line = self.line(at);
        let before = self.text.get(self.line_starts[line - 1]..at).unwrap_or("");
        Place { file: self.file.to_owned(), line, column: 1 + before.chars().count() }
    }

    pub(super) fn mistake(&self, at: usize, what: impl Into<String>) -> Mistake {
        Mistake::at(self.place(at), what)
    }

    /// Returns an error of the TOML parser. Its own text quotes the line, which may hold a secret.
    pub(super) fn syntax(&self, error: &toml::de::Error) -> Mistake {
        let message = error.message().lines().collect::<Vec<_>>().join(", ");
        self.mistake(error.span().map_or(0, |span| span.start), message)
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
}
