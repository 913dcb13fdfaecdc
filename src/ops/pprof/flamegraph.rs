//! A profile as a flame graph: one self-contained SVG, light or dark as the reader's theme.
//!
//! The outermost function is at the top, as in `go tool pprof`; a box is as wide as the time in its
//! function and its callees. Below "all" are the threads.

use super::profile::{Function, Profile};
use std::collections::HashMap;
use std::fmt::Write as _;

const WIDTH: f64 = 1200.0;
const MARGIN: f64 = 10.0;
const HEAD: f64 = 62.0;
const ROW: f64 = 17.0;
/// Narrower boxes are left out, and everything below them.
const MIN_WIDTH: f64 = 0.4;
/// Width of a 12-pixel character in the style's fonts.
const CHAR_WIDTH: f64 = 7.2;
const STYLE: &str = include_str!("flamegraph.css");
const SCRIPT: &str = include_str!("flamegraph.js");
const LEGEND: [(&str, &str); 5] = [
    ("own", "ws-cluster"),
    ("crate", "other crates"),
    ("std", "Rust standard library"),
    ("c", "C"),
    ("kernel", "kernel"),
];

/// A function at one position in the call tree.
struct Node<'a> {
    name: &'a str,
    file: &'a str,
    class: &'static str,
    count: u64,
    children: Vec<usize>,
}

/// Returns the drawing. It depends on nothing but the profile.
pub fn draw(profile: &Profile, title: &str) -> String {
    let nodes = tree(profile);
    let mut frames = String::new();
    let depth = draw_frames(&nodes, profile, &mut frames);
    let height = HEAD + ROW * depth as f64 + MARGIN + 14.0 * profile.notes.len() as f64;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
         viewBox=\"0 0 {WIDTH} {height}\">\n<style>\n{STYLE}</style>\n"
    );
    let seconds = profile.lasted_ns as f64 / 1e9;
    let ran = (profile.total() * profile.period_ns) as f64 / 1e9;
    let sum = format!(
        "{seconds:.1} s, {ran:.2} s on cores, {} samples, {:.0} a second of a running thread",
        profile.total(),
        1e9 / profile.period_ns as f64,
    );
    text(&mut out, "", MARGIN, 20.0, title);
    text(&mut out, "note", MARGIN, 37.0, &sum);
    let mut x = MARGIN;
    for (class, name) in LEGEND {
        let _ = write!(
            out,
            "<g class=\"legend\"><rect class=\"{class}\" x=\"{x}\" y=\"44\" width=\"11\" \
             height=\"11\"/></g>"
        );
        text(&mut out, "note", x + 15.0, 54.0, name);
        x += 30.0 + CHAR_WIDTH * name.len() as f64;
    }
    out.push_str("<text id=\"search\" class=\"button\" x=\"1140\" y=\"54\">search</text>\n");
    out.push_str("<text id=\"result\" class=\"note\" x=\"960\" y=\"54\"></text>\n");
    out.push_str(&frames);
    for (place, note) in profile.notes.iter().enumerate() {
        let y = HEAD + ROW * depth as f64 + 14.0 * (place + 1) as f64;
        text(&mut out, "note", MARGIN, y, note);
    }
    let _ = write!(out, "<script><![CDATA[\n{SCRIPT}]]></script>\n</svg>\n");
    out
}

/// Merges all stacks into one tree; the first node is the root.
fn tree(profile: &Profile) -> Vec<Node<'_>> {
    let node = |name, file, class| Node { name, file, class, count: 0, children: Vec::new() };
    let mut nodes = vec![node("all", "", "all")];
    let mut places: HashMap<(usize, &str), usize> = HashMap::new();
    for sample in &profile.samples {
        let mut at = 0;
        nodes[at].count += sample.count;
        let frames = sample.locations.iter().rev().flat_map(|&location| {
            let lines = profile.locations[location].lines.iter().rev();
            lines.map(|line| &profile.functions[line.function])
        });
        let frames = frames.map(|function| (function.name.as_str(), Some(function)));
        for (name, function) in std::iter::once((sample.thread.as_str(), None)).chain(frames) {
            at = *places.entry((at, name)).or_insert_with(|| {
                let (file, class) = match function {
                    None => ("", "all"),
                    Some(function) => (function.file.as_str(), class(function)),
                };
                nodes.push(node(name, file, class));
                let place = nodes.len() - 1;
                nodes[at].children.push(place);
                place
            });
            nodes[at].count += sample.count;
        }
    }
    let counts: Vec<u64> = nodes.iter().map(|node| node.count).collect();
    for node in &mut nodes {
        // Widest first. The sort is stable: equal ones keep their order.
        node.children.sort_by_key(|&child| std::cmp::Reverse(counts[child]));
    }
    nodes
}

/// Classifies a function by its file and its name.
fn class(function: &Function) -> &'static str {
    let (name, file) = (&function.name, &function.file);
    if file == "[kernel]" {
        "kernel"
    } else if file.starts_with("src/") || name.starts_with("ws_cluster::") {
        "own"
    } else if ["core/", "alloc/", "std/"].iter().any(|library| file.starts_with(library)) {
        "std"
    } else if file.ends_with(".rs") || name.contains("::") {
        "crate"
    } else {
        "c"
    }
}

/// Draws every box that is wide enough to be visible; returns the number of rows.
fn draw_frames(nodes: &[Node<'_>], profile: &Profile, out: &mut String) -> usize {
    let total = nodes[0].count.max(1);
    let pixels = (WIDTH - 2.0 * MARGIN) / total as f64;
    let mut rows = 1;
    let mut waiting = vec![(0, 0_usize, 0_u64)];
    while let Some((place, depth, before)) = waiting.pop() {
        let node = &nodes[place];
        let width = if depth == 0 { WIDTH - 2.0 * MARGIN } else { node.count as f64 * pixels };
        if width < MIN_WIDTH {
            continue;
        }
        rows = rows.max(depth + 1);
        let (x, y) = (MARGIN + before as f64 * pixels, HEAD + ROW * depth as f64);
        let label = label(node.name);
        let share = 100.0 * node.count as f64 / total as f64;
        let seconds = (node.count * profile.period_ns) as f64 / 1e9;
        let _ = write!(out, "<g class=\"frame\" data-label=\"{}\"><title>", Escaped(&label));
        let _ = write!(out, "{}\n{}\n", Escaped(node.name), Escaped(node.file));
        let _ = write!(out, "{} samples, {seconds:.2} s, {share:.1} %</title>", node.count);
        let _ = write!(
            out,
            "<rect class=\"{}\" x=\"{x:.2}\" y=\"{y}\" width=\"{width:.2}\" height=\"{ROW}\"/>",
            node.class
        );
        text(out, "", x + 3.0, y + 12.5, &cut(&label, width));
        out.push_str("</g>\n");
        let mut child_before = before;
        for &child in &node.children {
            waiting.push((child, depth + 1, child_before));
            child_before += nodes[child].count;
        }
    }
    rows
}

fn text(out: &mut String, class: &str, x: f64, y: f64, text: &str) {
    // Writing to a String cannot fail, here and above.
    let _ = match class {
        "" => write!(out, "<text x=\"{x:.2}\" y=\"{y}\">{}</text>", Escaped(text)),
        class => {
            writeln!(out, "<text class=\"{class}\" x=\"{x:.2}\" y=\"{y}\">{}</text>", Escaped(text))
        }
    };
}

/// Cuts a label to what fits in a box.
fn cut(label: &str, width: f64) -> String {
    let room = ((width - 6.0) / CHAR_WIDTH).max(0.0) as usize;
    match label.chars().count() {
        _ if room < 3 => String::new(),
        length if length <= room => label.into(),
        _ => label.chars().take(room - 1).chain(['…']).collect(),
    }
}

/// Returns a function's name for a narrow box: the last two parts of its path (not counting
/// closures), types without their paths and parameters.
fn label(name: &str) -> String {
    let parts = split(name, "::");
    let mut from = parts.len();
    let mut kept = 0;
    while from > 0 && kept < 2 {
        from -= 1;
        kept += usize::from(!parts[from].starts_with('{'));
    }
    let short: Vec<String> = parts[from..].iter().map(|part| shorten_part(part)).collect();
    short.join("::")
}

/// Shortens `<a::B<c::D> as e::F>` to `<B as F>`, `f<a::B>` to `f<…>`.
fn shorten_part(part: &str) -> String {
    match part.find('<') {
        Some(0) => {
            let inside = part.trim_start_matches('<').trim_end_matches('>');
            let types = split(inside, " as ").into_iter().map(|one| {
                let last = split(one, "::").pop().unwrap_or(one);
                last.split('<').next().unwrap_or(last).to_string()
            });
            format!("<{}>", types.collect::<Vec<_>>().join(" as "))
        }
        Some(at) => format!("{}<…>", &part[..at]),
        None => part.into(),
    }
}

/// Splits at separators outside brackets.
fn split<'a>(text: &'a str, separator: &str) -> Vec<&'a str> {
    let mut parts = Vec::new();
    let (mut depth, mut from, mut before) = (0_usize, 0, ' ');
    for (at, c) in text.char_indices() {
        match c {
            '<' | '(' | '[' | '{' => depth += 1,
            // The `>` of an arrow is not a bracket.
            '>' if before == '-' => {}
            '>' | ')' | ']' | '}' => depth = depth.saturating_sub(1),
            _ if depth == 0 && at >= from && text[at..].starts_with(separator) => {
                parts.push(&text[from..at]);
                from = at + separator.len();
            }
            _ => {}
        }
        before = c;
    }
    parts.push(&text[from..]);
    parts
}

/// Text between tags or in an attribute.
struct Escaped<'a>(&'a str);

impl std::fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for c in self.0.chars() {
            match c {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                // XML allows no other control characters.
                c if c.is_control() && c != '\n' && c != '\t' => f.write_str("\u{fffd}")?,
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::profile::{Line, Location, Sample};
    use super::*;

    fn profile(samples: &[(&str, &[&str], u64)]) -> Profile {
        let mut profile = Profile { period_ns: 5_000_000, ..Profile::default() };
        for (thread, stack, count) in samples {
            let mut locations = Vec::new();
            for name in *stack {
                let place = profile.functions.len();
                let (name, system_name) = (name.to_string(), String::new());
                profile.functions.push(Function { name, system_name, file: "src/a.rs".into() });
                let lines = vec![Line { function: place, line: 1 }];
                profile.locations.push(Location { address: 1, mapping: None, lines });
                locations.push(place);
            }
            profile.samples.push(Sample { thread: thread.to_string(), locations, count: *count });
        }
        profile
    }

    #[test]
    fn equal_callers_share_a_box_and_the_widest_is_first() {
        let svg = draw(
            &profile(&[
                ("worker-0", &["a", "main"], 1),
                ("worker-0", &["b", "main"], 3),
                ("ops", &["main"], 4),
            ]),
            "A <title>",
        );
        assert_eq!(svg.matches("<g class=\"frame\"").count(), 7);
        assert!(svg.contains("A &lt;title&gt;"));
        let x_of = |title: &str| -> f64 {
            let rest = svg.split(&format!("<title>{title}\n")).nth(1).unwrap();
            rest.split("x=\"").nth(1).unwrap().split('"').next().unwrap().parse().unwrap()
        };
        assert!(x_of("b") < x_of("a"));
        assert!(svg.contains("<title>b\nsrc/a.rs\n3 samples, 0.01 s, 37.5 %</title>"), "{svg}");
        assert!(svg.contains("0.0 s, 0.04 s on cores, 8 samples, 200 a second"));
    }

    #[test]
    fn what_is_too_narrow_is_left_out() {
        let svg = draw(&profile(&[("a", &["wide"], 100_000), ("a", &["narrow"], 1)]), "");
        assert!(svg.contains("wide") && !svg.contains("narrow"));
    }

    #[test]
    fn an_idle_node_has_an_empty_drawing() {
        let mut empty = profile(&[]);
        empty.notes.push("a note".into());
        let svg = draw(&empty, "idle");
        assert!(svg.contains("0 samples") && svg.contains("a note") && svg.ends_with("</svg>\n"));
    }

    #[test]
    fn labels_are_short() {
        for (name, short) in [
            ("main", "main"),
            ("ws_cluster::io::ring::Ring::submit", "Ring::submit"),
            ("ws_cluster::io::tasks::run::{{closure}}", "tasks::run::{{closure}}"),
            ("a::{{closure}}::{{closure}}", "a::{{closure}}::{{closure}}"),
            ("<a::b::C<d::E> as core::ops::Drop>::drop", "<C as Drop>::drop"),
            ("core::ptr::drop_in_place<a::B<c::D>>", "ptr::drop_in_place<…>"),
            ("<alloc::boxed::Box<dyn Fn() -> a::B> as c::D>::call", "<Box as D>::call"),
            ("__x64_sys_io_uring_enter", "__x64_sys_io_uring_enter"),
            ("", ""),
        ] {
            assert_eq!(label(name), short);
        }
    }

    #[test]
    fn whose_code_it_is() {
        for (name, file, expected) in [
            ("ws_cluster::io::x", "src/io/x.rs", "own"),
            ("monoio::run", "monoio-0.2.4/src/lib.rs", "crate"),
            ("core::x", "core/src/x.rs", "std"),
            ("std::x", "", "crate"),
            ("tcp_sendmsg", "[kernel]", "kernel"),
            ("__send", "", "c"),
            ("mi_malloc", "libmimalloc-sys-0.1.49/c_src/alloc.c", "c"),
        ] {
            let function =
                Function { name: name.into(), system_name: String::new(), file: file.into() };
            assert_eq!(class(&function), expected, "{name}");
        }
    }
}
