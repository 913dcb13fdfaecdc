//! Tables of pages in docs/ that are made from code: a test writes or checks them.

use std::error::Error;
use std::fmt::Write as _;
use std::{env, fs};

const DOCS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/");

/// Tables between two comments of a page.
pub(crate) struct DocTables {
    page: &'static str,
    begin: String,
    end: String,
    /// Their first two lines: the names of the columns, and the line below.
    head: String,
    text: String,
}

impl DocTables {
    /// `page`: its file in docs/; `what`: as the comments name it; `source`: the file that the
    /// tables are made from.
    pub(crate) fn new(page: &'static str, what: &str, source: &str, columns: &[&str]) -> Self {
        let rule = "|---".repeat(columns.len());
        Self {
            page,
            begin: format!("<!-- {what}: made by `make docs` from {source}. -->\n"),
            end: format!("<!-- End of {}. -->\n", what.to_lowercase()),
            head: format!("| {} |\n{rule}|\n", columns.join(" | ")),
            text: String::new(),
        }
    }

    /// Adds a table.
    pub(crate) fn table<const N: usize>(
        &mut self,
        title: &str,
        rows: impl IntoIterator<Item = [String; N]>,
    ) {
        // Writing to a String cannot fail.
        let _ = write!(self.text, "\n**{title}**\n\n{}", self.head);
        for row in rows {
            let cell = |text: &String| match &**text {
                "" => " |".into(),
                text => format!(" {text} |"),
            };
            let _ = writeln!(self.text, "|{}", row.iter().map(cell).collect::<String>());
        }
    }

    /// Fails if the page has other tables; with `RENEW_DOCS` in the environment, writes them there.
    pub(crate) fn check(self) -> Result<(), Box<dyn Error>> {
        let Self { page: name, begin, end, text, .. } = self;
        let path = [DOCS, name].concat();
        let made = text + "\n";
        let page = fs::read_to_string(&path)?;
        let place = page.split_once(&begin).and_then(|(before, rest)| {
            rest.split_once(&end).map(|(found, after)| (before, found, after))
        });
        let (before, found, after) = place.ok_or_else(|| format!("{path} has no {begin}"))?;
        if env::var_os("RENEW_DOCS").is_some() {
            fs::write(&path, [before, &begin, &made, &end, after].concat())?;
        } else if found != made {
            return Err(format!("docs/{name} is not what the code says: `make docs`").into());
        }
        Ok(())
    }
}
