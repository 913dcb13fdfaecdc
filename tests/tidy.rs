//! Rules of the project as a test, in the spirit of TigerBeetle's `tidy.zig`. Each rule is a
//! function from a file's text to its violations, so that the tests at the end can show that it can
//! fail.

#[path = "tidy/circles.rs"]
mod circles;

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

const MAX_LINE_CHARS: usize = 100;
const MAX_FILE_LINES: usize = 700;
const MAX_FUNCTION_LINES: usize = 70;
/// In the tools, where a run reads from top to bottom, and in tests.
const MAX_TOOL_FUNCTION_LINES: usize = 120;

/// The layer of each module of the root crate; a file imports its own layer or lower ones. Modules
/// of one layer may import each other.
const FLOORS: [(&str, u8); 9] = [
    ("types", 0),
    ("wire", 1),
    ("state", 2),
    ("io", 3),
    ("ops", 4),
    ("commands", 5),
    ("config", 5),
    ("node", 5),
    ("main", 5),
];

/// What the top directory of the repository may contain.
const TOP_LEVEL: [&str; 28] = [
    ".cargo",
    ".ci",
    ".dockerignore",
    ".gitignore",
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "Cargo.lock",
    "Cargo.toml",
    "Dockerfile",
    "Jenkinsfile",
    "LICENSE",
    "Makefile",
    "README.md",
    "bench",
    "build.rs",
    "clippy.toml",
    "deny.toml",
    "deploy",
    "docs",
    "examples",
    "fuzz",
    "loadtest",
    "rustfmt.toml",
    "src",
    "systemd",
    "tests",
    ".github",
];

/// A line that breaks a rule, counted from 1.
#[derive(Debug, PartialEq)]
struct Offence {
    line: usize,
    what: String,
}

fn offence(line: usize, what: impl Into<String>) -> Offence {
    Offence { line, what: what.into() }
}

#[test]
fn the_tree_is_tidy() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut report = String::new();
    for path in tracked_files(root) {
        if !is_at_top(&path) {
            let _ = writeln!(report, "{path}: not in the list of top-level entries in tidy.rs");
        }
        if path.ends_with(".md")
            && let Ok(text) = fs::read_to_string(root.join(&path))
        {
            for line in long_prose(&text) {
                let _ = writeln!(report, "{path}:{line}: more than {MAX_LINE_CHARS} characters");
            }
        }
        if path.ends_with(".rs")
            && let Ok(text) = fs::read_to_string(root.join(&path))
        {
            for Offence { line, what } in check(&path, &text) {
                let _ = writeln!(report, "{path}:{line}: {what}");
            }
        }
    }
    assert!(report.is_empty(), "\n{report}");
}

#[test]
fn no_module_is_in_a_circle() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let paths = tracked_files(root).into_iter().filter(|path| path.ends_with(".rs"));
    let read = |path: String| Some((fs::read_to_string(root.join(&path)).ok()?, path));
    let files: Vec<(String, String)> = paths.filter_map(read).collect();
    let circles = circles::circles(files.iter().map(|(text, path)| (&**path, &**text)));
    assert!(circles.is_empty(), "these modules import each other in a circle:\n{circles}");
}

/// Returns the numbers of the lines of prose that are too long. Tables, code and pictures may be.
fn long_prose(text: &str) -> Vec<usize> {
    let (mut is_code, mut found) = (false, Vec::new());
    for (index, line) in text.lines().enumerate() {
        let start = line.trim_start();
        is_code ^= start.starts_with("```");
        let may_be_long = is_code || line.starts_with("    ") || start.starts_with(['|', '!', '`']);
        if !may_be_long && line.chars().count() > MAX_LINE_CHARS {
            found.push(index + 1);
        }
    }
    found
}

#[test]
fn long_prose_is_found_and_code_and_tables_are_left_alone() {
    let long = "word ".repeat(30);
    let text = format!("{long}\n| {long}\n```\n{long}\n```\n    {long}\n- {long}\n![{long}](a)\n");
    assert_eq!(long_prose(&text), [1, 7]);
}

/// Files that git tracks or would add: a new file counts before it is committed.
fn tracked_files(root: &Path) -> Vec<String> {
    let mut git = Command::new("git");
    git.args(["ls-files", "--cached", "--others", "--exclude-standard"]).current_dir(root);
    let listed = git.output().map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    let files: Vec<String> = listed.unwrap_or_default().lines().map(String::from).collect();
    assert!(files.iter().any(|file| file == "Cargo.toml"), "git ls-files lists no Cargo.toml");
    files
}

fn is_at_top(path: &str) -> bool {
    TOP_LEVEL.contains(&path.split('/').next().unwrap_or(path))
}

/// Applies all rules to one Rust file.
fn check(path: &str, text: &str) -> Vec<Offence> {
    let source = Source::new(path, text);
    let rules = [sizes, functions, floors, unsafe_code, unwraps, left_overs, prints];
    rules.iter().flat_map(|rule| rule(&source)).collect()
}

/// A file: its lines, and their code without comments and without the contents of strings.
struct Source<'a> {
    path: &'a str,
    lines: Vec<&'a str>,
    code: Vec<String>,
    /// Whether each line is compiled for tests only.
    is_test: Vec<bool>,
}

impl<'a> Source<'a> {
    fn new(path: &'a str, text: &'a str) -> Self {
        let code: Vec<String> = code_only(text).lines().map(String::from).collect();
        let is_test_file = path.starts_with("tests/")
            || path.starts_with("fuzz/")
            || path.contains("/tests/")
            || path.contains("/benches/")
            || path.ends_with("/tests.rs")
            || path.ends_with("/properties.rs");
        let is_test = if is_test_file { vec![true; code.len()] } else { test_lines(&code) };
        Self { path, lines: text.lines().collect(), code, is_test }
    }

    /// Returns the code that ships, with line numbers from 1.
    fn shipping(&self) -> impl Iterator<Item = (usize, &str)> {
        let lines = self.code.iter().zip(&self.is_test).enumerate();
        lines.filter(|(_, (_, is_test))| !**is_test).map(|(at, (line, _))| (at + 1, line.as_str()))
    }
}

/// Marks the items behind `#[cfg(test)]`. rustfmt puts the end of an item under the first character
/// of its first line.
fn test_lines(code: &[String]) -> Vec<bool> {
    let mut is_test = vec![false; code.len()];
    let mut at = 0;
    while at < code.len() {
        let start = at;
        at += 1;
        if code[start].trim() != "#[cfg(test)]" {
            continue;
        }
        while code.get(at).is_some_and(|line| line.trim_start().starts_with("#[")) {
            at += 1;
        }
        let Some(first) = code.get(at) else { break };
        let indent = &first[..first.len() - first.trim_start().len()];
        let is_end = |line: &String| {
            line.strip_prefix(indent).is_some_and(|rest| matches!(rest.trim_end(), "}" | "};"))
        };
        if !first.trim_end().ends_with([';', '}']) {
            let length = code[at..].iter().position(is_end);
            at += length.unwrap_or(code.len() - at - 1);
        }
        at += 1;
        is_test[start..at].fill(true);
    }
    is_test
}

/// Blanks out comments and the contents of string and character literals; lines keep their numbers.
fn code_only(text: &str) -> String {
    let bytes: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while at < bytes.len() {
        let end = match token(&bytes[at..]) {
            Token::Code => {
                out.push(bytes[at]);
                at += 1;
                continue;
            }
            Token::Blank(length) => at + length,
        };
        let end = end.min(bytes.len());
        out.extend(bytes[at..end].iter().filter(|&&c| c == '\n'));
        at = end;
    }
    out
}

enum Token {
    Code,
    /// The number of characters that are not code.
    Blank(usize),
}

fn token(rest: &[char]) -> Token {
    let starts = |text: &str| text.chars().eq(rest.iter().copied().take(text.chars().count()));
    if starts("//") {
        return Token::Blank(rest.iter().position(|&c| c == '\n').unwrap_or(rest.len()));
    }
    if starts("/*") {
        let end = rest.windows(2).skip(2).position(|pair| pair == ['*', '/']);
        return Token::Blank(end.map_or(rest.len(), |end| end + 4));
    }
    if starts("r\"") || starts("r#") || starts("br\"") || starts("br#") {
        let from = rest.iter().position(|&c| c != 'b' && c != 'r').unwrap_or(0);
        let hashes = rest[from..].iter().take_while(|&&c| c == '#').count();
        if rest.get(from + hashes) == Some(&'"') {
            let mut close = vec!['"'];
            close.extend(std::iter::repeat_n('#', hashes));
            let body = from + hashes + 1;
            let end = rest[body..].windows(close.len()).position(|part| part == close);
            return Token::Blank(end.map_or(rest.len(), |end| body + end + close.len()));
        }
    }
    match rest {
        ['"', ..] => Token::Blank(literal_end(rest, '"')),
        ['\'', '\\', ..] => Token::Blank(literal_end(rest, '\'')),
        ['\'', _, '\'', ..] => Token::Blank(3),
        _ => Token::Code,
    }
}

fn literal_end(rest: &[char], quote: char) -> usize {
    let mut at = 1;
    while at < rest.len() && rest[at] != quote {
        at += if rest[at] == '\\' { 2 } else { 1 };
    }
    at + 1
}

fn sizes(source: &Source<'_>) -> Vec<Offence> {
    let mut found = Vec::new();
    let lines = source.lines.len();
    if lines > MAX_FILE_LINES {
        found.push(offence(lines, format!("{lines} lines, at most {MAX_FILE_LINES} in a file")));
    }
    for (index, line) in source.lines.iter().enumerate() {
        let chars = line.chars().count();
        if chars > MAX_LINE_CHARS {
            found.push(offence(index + 1, format!("{chars} characters in a line")));
        }
        if line.ends_with([' ', '\t']) {
            found.push(offence(index + 1, "blanks at the end of the line"));
        }
    }
    found
}

/// rustfmt puts the brace that ends a function under the first character of its first line.
fn functions(source: &Source<'_>) -> Vec<Offence> {
    let is_product = source.path.starts_with("src/");
    let max = if is_product { MAX_FUNCTION_LINES } else { MAX_TOOL_FUNCTION_LINES };
    let mut found = Vec::new();
    for (start, line) in source.code.iter().enumerate() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let Some(name) =
            words.iter().position(|word| *word == "fn").and_then(|at| words.get(at + 1))
        else {
            continue;
        };
        let indent = &line[..line.len() - line.trim_start().len()];
        let closing = format!("{indent}}}");
        let body = &source.code[start..];
        let ends =
            |line: &String| *line == closing || (line.ends_with(';') && line.starts_with(indent));
        let is_one_line = line.trim_end().ends_with('}') || line.trim_end().ends_with(';');
        let Some(length) = body.iter().position(|line| *line == closing) else { continue };
        let is_declaration = body.iter().take(length).take(8).any(|line| {
            ends(line) && !line.contains('{') && line.trim_start().starts_with([')', '-'])
        });
        if !is_one_line && !is_declaration && length + 1 > max {
            let lines = length + 1;
            let what = format!("{name} has {lines} lines, at most {max}");
            found.push(offence(start + 1, what));
        }
    }
    found
}

fn floors(source: &Source<'_>) -> Vec<Offence> {
    let Some(inside) = source.path.strip_prefix("src/") else { return Vec::new() };
    let top = inside.split(['/', '.']).next().unwrap_or("");
    if top == "lib" {
        return Vec::new();
    }
    let Some(floor) = floor_of(top) else {
        return vec![offence(1, format!("src/{top} stands on no floor: name it in tidy.rs"))];
    };
    let depth = inside.matches('/').count() + usize::from(!inside.ends_with("mod.rs"));
    let mut found = Vec::new();
    for (line, code) in source.shipping() {
        for module in modules_named(code, depth) {
            if let Some(other) = floor_of(module).filter(|other| *other > floor) {
                let what = format!("{top} (floor {floor}) imports {module} (floor {other})");
                found.push(offence(line, what));
            }
        }
    }
    found
}

fn floor_of(module: &str) -> Option<u8> {
    FLOORS.iter().find(|(name, _)| *name == module).map(|(_, floor)| *floor)
}

/// Returns the top-level modules that a line names by `crate::…`, `crate::{…}`, `ws_cluster::…`, or
/// by the number of `super::` that lead to the root from a file `depth` modules below it.
fn modules_named(code: &str, depth: usize) -> Vec<&str> {
    let to_root = "super::".repeat(depth);
    let prefixes = ["crate::", "ws_cluster::", to_root.as_str()];
    let mut found = Vec::new();
    for prefix in prefixes.iter().filter(|prefix| !prefix.is_empty()) {
        for (at, _) in code.match_indices(prefix) {
            let rest = &code[at + prefix.len()..];
            match rest.strip_prefix('{') {
                Some(group) => found.extend(group.split(',').map(|path| first_name(path.trim()))),
                None => found.push(first_name(rest)),
            }
        }
    }
    found
}

fn first_name(path: &str) -> &str {
    let end = path.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(path.len());
    &path[..end]
}

fn has_word(code: &str, word: &str) -> bool {
    code.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').any(|part| part == word)
}

fn unsafe_code(source: &Source<'_>) -> Vec<Offence> {
    let is_allowed = source.path.starts_with("src/io/")
        || source.path.ends_with("/src/sys.rs")
        || source.path == "tests/alloc.rs";
    let hits = source.code.iter().enumerate();
    hits.filter(|(_, code)| !is_allowed && has_word(code, "unsafe"))
        .map(|(index, _)| offence(index + 1, "unsafe outside src/io, or a member's sys.rs"))
        .collect()
}

/// A string in the call is already blanked out; `expect` of something else is a method of ours.
fn unwraps(source: &Source<'_>) -> Vec<Offence> {
    source
        .shipping()
        .filter(|(_, code)| {
            [".unwrap()", ".expect()", ".expect(&", ".unwrap_err()", ".expect_err()"]
                .iter()
                .any(|call| code.contains(call))
        })
        .map(|(line, _)| offence(line, "unwrap or expect outside tests"))
        .collect()
}

fn left_overs(source: &Source<'_>) -> Vec<Offence> {
    // Concatenated, so that this file does not match itself.
    let words =
        [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X"), concat!("HA", "CK")];
    let macros = [concat!("to", "do!("), concat!("unimple", "mented!("), concat!("db", "g!(")];
    let mut found = Vec::new();
    for (index, line) in source.lines.iter().enumerate() {
        if words.iter().any(|word| has_word(line, word)) {
            found.push(offence(index + 1, "a note about work to be done"));
        }
        if macros.iter().any(|name| line.contains(name)) {
            found.push(offence(index + 1, "a macro that marks unfinished work"));
        }
    }
    found
}

fn prints(source: &Source<'_>) -> Vec<Offence> {
    if !source.path.starts_with("src/") || source.path == "src/main.rs" {
        return Vec::new();
    }
    let printing = ["println!", "print!", "eprintln!", "eprint!"];
    source
        .shipping()
        .filter(|(_, code)| printing.iter().any(|name| code.contains(name)))
        .map(|(line, _)| offence(line, "printing outside main.rs: use tracing"))
        .collect()
}

// Each rule can fail.

fn lines_of(path: &str, text: &str) -> Vec<usize> {
    check(path, text).iter().map(|offence| offence.line).collect()
}

#[test]
fn floors_are_kept() {
    for (path, code) in [
        ("src/types/ids.rs", "use crate::wire::sign;"),
        ("src/types/ids.rs", "use super::super::state::Worker;"),
        ("src/wire/mod.rs", "use super::state::Worker;"),
        ("src/wire/json.rs", "fn f() { let x = crate::state::Worker::new(); }"),
        ("src/state/worker.rs", "use crate::{types::Cid, io::ring};"),
        ("src/state/a/b.rs", "use super::super::super::ops::metrics;"),
        ("src/io/ring.rs", "use crate::config::Config;"),
        ("src/io/ring.rs", "use crate::ops::metrics;"),
        ("src/ops/metrics.rs", "use crate::node::run;"),
        ("src/elsewhere/x.rs", ""),
    ] {
        assert_eq!(lines_of(path, code), [1], "{path}: {code}");
    }
    for (path, code) in [
        ("src/types/ids.rs", "use super::limits::Limits;"),
        ("src/wire/json.rs", "use super::state::Parser; // of its own\nuse crate::types::Cid;"),
        ("src/state/worker.rs", "use crate::{types::Cid, wire::json};"),
        ("src/io/ring.rs", "use crate::state::Worker;\nuse super::sys;"),
        ("src/ops/metrics.rs", "use crate::io::shared::Shared;"),
        ("src/node.rs", "use crate::config::Config;\nuse crate::io::ring;"),
        ("src/types/ids.rs", "// crate::wire\n#[cfg(test)]\nuse crate::wire::json;"),
        ("src/lib.rs", "pub mod io;"),
    ] {
        assert_eq!(lines_of(path, code), [0; 0], "{path}: {code}");
    }
}

#[test]
fn unsafe_stays_in_io() {
    let code = "fn f() {\n    unsafe { g() }\n}";
    for path in ["src/wire/json.rs", "src/node.rs", "bench/src/main.rs", "tests/push.rs"] {
        assert_eq!(lines_of(path, code), [2], "{path}");
    }
    for path in ["src/io/sys.rs", "loadtest/src/sys.rs"] {
        assert_eq!(lines_of(path, code), [0; 0], "{path}");
    }
    assert_eq!(lines_of("src/node.rs", "#![deny(unsafe_op_in_unsafe_fn)] // unsafe"), [0; 0]);
}

#[test]
fn unwraps_stay_in_tests() {
    let code = "fn f() {\n    x.unwrap();\n    y.expect(\"z\");\n}";
    assert_eq!(lines_of("src/node.rs", code), [2, 3]);
    assert_eq!(lines_of("loadtest/src/main.rs", code), [2, 3]);
    assert_eq!(lines_of("tests/push.rs", code), [0; 0]);
    assert_eq!(lines_of("bench/benches/parts/main.rs", code), [0; 0]);
    assert_eq!(lines_of("bench/src/main.rs", code), [2, 3]);
    assert_eq!(lines_of("src/node.rs", &format!("#[cfg(test)]\nmod tests {{\n{code}\n}}")), [0; 0]);
    let behind = format!("#[cfg(test)]\nmod tests;\n{code}");
    assert_eq!(lines_of("src/node.rs", &behind), [4, 5]);
    let behind = format!("#[cfg(test)]\n#[a]\nuse x::{{\n    y,\n}};\n{code}");
    assert_eq!(lines_of("src/node.rs", &behind), [7, 8]);
    assert_eq!(lines_of("src/node.rs", "// x.unwrap()\nlet t = \".unwrap()\";"), [0; 0]);
    assert_eq!(
        lines_of("src/node.rs", "let t = r#\"\" .unwrap()\"#; let q = '\"'; z.unwrap()"),
        [1]
    );
}

#[test]
fn lines_files_and_functions_are_bounded() {
    let long = "x".repeat(101);
    assert_eq!(lines_of("src/node.rs", &format!("a\n// {}\n// {long}\nb ", &long[..97])), [3, 4]);
    assert_eq!(lines_of("src/node.rs", &"\n".repeat(701)), [701]);
    assert_eq!(lines_of("src/node.rs", &"\n".repeat(700)), [0; 0]);
    let function = |lines: usize| {
        format!("impl X {{\n    pub fn f() {{\n{}    }}\n}}\n", "        g();\n".repeat(lines - 2))
    };
    assert_eq!(lines_of("src/node.rs", &function(70)), [0; 0]);
    assert_eq!(lines_of("src/node.rs", &function(71)), [2]);
    let inner = function(71).trim_end().replace('\n', "\n    ");
    assert_eq!(lines_of("bench/src/main.rs", &function(120)), [0; 0]);
    assert_eq!(lines_of("bench/src/main.rs", &function(121)), [2]);
    let nested = format!("fn a() {{\n    {inner}\n}}\n");
    assert_eq!(lines_of("src/node.rs", &nested), [1, 3]);
    let declared = format!("trait T {{\n    fn f();\n}}\n{}", "mod a;\n".repeat(90));
    assert_eq!(lines_of("src/node.rs", &declared), [0; 0]);
}

#[test]
fn nothing_is_left_over_or_printed() {
    for word in ["TO DO", "FIX ME", "to do!(", "unimple mented!(", "db g!("] {
        let line = format!("// {} x", word.replace(' ', ""));
        assert_eq!(lines_of("loadtest/src/main.rs", &line), [1], "{line}");
    }
    assert_eq!(lines_of("src/node.rs", "println!(\"x\");"), [1]);
    assert_eq!(lines_of("src/node.rs", "eprintln!(\"x\");"), [1]);
    assert_eq!(lines_of("src/main.rs", "println!(\"x\");"), [0; 0]);
    assert_eq!(lines_of("loadtest/src/main.rs", "println!(\"x\");"), [0; 0]);
}

#[test]
fn the_top_level_is_a_list() {
    assert!(is_at_top("src/node.rs") && is_at_top("LICENSE"));
    assert!(!is_at_top("notes.md") && !is_at_top("scratch/a.rs"));
}
