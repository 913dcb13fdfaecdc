//! Checks that no modules import each other in a circle.
//!
//! For its siblings, a module counts as one with everything below it, which may import each other:
//! a file is split that way. A file that only lists its modules is a folder, whose modules count
//! one by one. Sibling modules may not form a circle, whether a name is imported or
//! written out, and whether it comes from its own file or is re-exported above it.

use super::{Source, first_name};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

/// A module's path from the crate root.
type Module = Vec<String>;

/// A file of the crate.
struct File {
    /// Its shipping code.
    code: String,
    /// Names that it re-exports, and the path that each stands for.
    exports: BTreeMap<String, Vec<String>>,
}

impl File {
    /// Whether it has nothing but declarations of modules.
    fn is_folder(&self) -> bool {
        let is_module = |line: &str| {
            let declared = line.rsplit_once("mod ").is_some_and(|(before, name)| {
                (before.is_empty() || before.starts_with("pub")) && name.ends_with(';')
            });
            declared || line.is_empty() || line.starts_with("//") || line.starts_with("#[")
        };
        self.code.lines().all(|line| is_module(line.trim()))
    }
}

struct Tree(BTreeMap<Module, File>);

/// The import graph, with one import as an example of each edge.
type Imports = BTreeMap<Module, BTreeMap<Module, String>>;

/// Returns the imports that form circles, a line each; empty: there are none.
pub fn circles<'a>(files: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let tree = Tree::new(files);
    let mut imports = tree.imports();
    loop {
        // A module that imports none of the remaining ones, or is imported by none of them, is in
        // no circle.
        let left: BTreeSet<Module> = imports.keys().cloned().collect();
        let imported: BTreeSet<Module> =
            imports.values().flat_map(|to| to.keys().cloned()).collect();
        imports.retain(|from, to| {
            to.retain(|module, _| left.contains(module));
            !to.is_empty() && imported.contains(from)
        });
        if imports.len() == left.len() {
            break;
        }
    }
    let mut report = String::new();
    for (from, to) in &imports {
        for (module, what) in to {
            let _ = writeln!(report, "{} -> {}: {what}", from.join("::"), module.join("::"));
        }
    }
    report
}

impl Tree {
    fn new<'a>(files: impl Iterator<Item = (&'a str, &'a str)>) -> Self {
        let mut tree = BTreeMap::new();
        for (path, text) in files {
            let Some(module) = module_of(path) else { continue };
            let source = Source::new(path, text);
            let code: Vec<&str> = source.shipping().map(|(_, line)| line).collect();
            let code = code.join("\n");
            let exports = exports(&module, &code);
            tree.insert(module, File { code, exports });
        }
        Self(tree)
    }

    /// Returns the imports between sibling modules, somewhere above the files that import each
    /// other.
    fn imports(&self) -> Imports {
        let mut imports = Imports::new();
        for (from, file) in &self.0 {
            for path in paths(from, &file.code) {
                let Some(to) = self.resolve(&path, 0) else { continue };
                let shared = from.iter().zip(to).take_while(|(one, other)| one == other).count();
                if shared < from.len().min(to.len()) {
                    let what = format!("{} has {}", from.join("::"), path.join("::"));
                    let (from, to) = (self.unit(from, shared), self.unit(to, shared));
                    imports.entry(from).or_default().entry(to).or_insert(what);
                }
            }
        }
        imports
    }

    /// Returns what `module` counts as for modules that share only its first `shared` names.
    fn unit(&self, module: &[String], shared: usize) -> Module {
        let mut length = shared + 1;
        while length < module.len() && self.0.get(&module[..length]).is_some_and(File::is_folder) {
            length += 1;
        }
        module[..length].to_vec()
    }

    /// Returns the module that a path's name comes from; `None`: it belongs to another crate.
    fn resolve(&self, path: &[String], depth: usize) -> Option<&Module> {
        let (module, file, length) = (0..=path.len()).rev().find_map(|length| {
            let (module, file) = self.0.get_key_value(&path[..length])?;
            Some((module, file, length))
        })?;
        match path.get(length).and_then(|name| file.exports.get(name)) {
            Some(exported) if depth < 8 => self.resolve(exported, depth + 1),
            _ => Some(module),
        }
    }
}

fn module_of(path: &str) -> Option<Module> {
    let inside = path.strip_prefix("src/")?.strip_suffix(".rs")?;
    let inside = inside.strip_suffix("/mod").unwrap_or(inside);
    match inside {
        // A separate crate.
        "main" => None,
        "lib" => Some(Module::new()),
        _ => Some(inside.split('/').map(String::from).collect()),
    }
}

/// Returns the paths of a file that begin with `crate` or `super`, from the root.
fn paths(module: &[String], code: &str) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    for start in ["crate::", "super::"] {
        for (at, _) in code.match_indices(start) {
            let is_inside =
                code[..at].ends_with(|c: char| c == ':' || c == '_' || c.is_alphanumeric());
            if !is_inside {
                read_tree(&code[at..], &[], &mut found);
            }
        }
    }
    found.iter().map(|path| absolute(module, path)).collect()
}

/// Returns the re-exports of a file: `pub use`.
fn exports(module: &[String], code: &str) -> BTreeMap<String, Vec<String>> {
    let mut found = Vec::new();
    for (at, start) in code.match_indices("use ") {
        let line = code[..at].rfind('\n').map_or(0, |end| end + 1);
        if code[line..at].trim_start().starts_with("pub") {
            read_tree(&code[at + start.len()..], &[], &mut found);
        }
    }
    let named = |path: &Vec<&str>| Some(((*path.last()?).to_owned(), absolute(module, path)));
    found.iter().filter_map(named).collect()
}

/// Converts a path in a file of this module to one from the root.
fn absolute(module: &[String], path: &[&str]) -> Vec<String> {
    let mut base = match path.first() {
        Some(&"crate") => Module::new(),
        _ => module.to_vec(),
    };
    for name in path {
        match *name {
            "crate" | "self" => {}
            "super" => drop(base.pop()),
            name => base.push(name.to_owned()),
        }
    }
    base
}

/// Parses a tree of paths, such as `a::{b, c::d}`, from the start of `text`. Returns the rest.
fn read_tree<'t>(text: &'t str, before: &[&'t str], found: &mut Vec<Vec<&'t str>>) -> &'t str {
    let (mut path, mut rest) = (before.to_vec(), text);
    loop {
        if let Some(group) = rest.strip_prefix('{') {
            rest = group.trim_start();
            while !rest.is_empty() && !rest.starts_with('}') {
                rest = read_tree(rest, &path, found);
                // Also after an alias.
                let end = rest.find([',', '}']).unwrap_or(rest.len());
                rest = rest[end..].trim_start_matches(',').trim_start();
            }
            return rest.strip_prefix('}').unwrap_or(rest);
        }
        let name = first_name(rest);
        path.push(name);
        rest = &rest[name.len()..];
        match rest.strip_prefix("::") {
            Some(more) => rest = more,
            None => break,
        }
    }
    found.push(path);
    rest
}

#[test]
fn a_circle_is_found_however_it_is_written() {
    let circles = |files: &[(&str, &str)]| circles(files.iter().copied()).lines().count();
    let a_to_b = ("src/io/a.rs", "use super::b::B;");
    for back in [
        "use super::a::A;",
        "use crate::{io::{self, c::C, a}, wire};",
        "fn f() { crate::io::a::g() }",
        "use super::A;",
        "fn f() -> super::A { 1 }",
    ] {
        let root = ("src/io/mod.rs", "mod a;\nmod b;\npub use self::a::{X, A};");
        assert_eq!(circles(&[root, a_to_b, ("src/io/b.rs", back)]), 2, "{back}");
    }
    let deeper = ("src/io/b/deep.rs", "use crate::io::a::A;");
    assert_eq!(circles(&[a_to_b, ("src/io/b.rs", "mod deep;\nstruct B;"), deeper]), 2);
    // A folder's modules count one by one.
    let folder = ("src/io/b.rs", "//! A folder.\n\npub(super) mod deep;\nmod flat;");
    let a_to_flat = ("src/io/a.rs", "use super::b::flat::F;");
    let flat = ("src/io/b/flat.rs", "struct F;");
    assert_eq!(circles(&[a_to_flat, folder, flat, deeper]), 0);
    let a_to_deep = ("src/io/a.rs", "use super::b::deep::D;");
    assert_eq!(circles(&[a_to_deep, folder, flat, deeper]), 2);
    let three = [a_to_b, ("src/io/b.rs", "use super::c::C;"), ("src/io/c.rs", "use super::a::A;")];
    assert_eq!((circles(&three), circles(&three[..2])), (3, 0));
    for (path, harmless) in [
        ("src/io/b.rs", "// use super::a::A;"),
        ("src/io/b.rs", "#[cfg(test)]\nmod tests {\n    use super::super::a::A;\n}"),
        ("src/io/b/tests.rs", "use crate::io::a::A;"),
        ("src/io/a/part.rs", "use super::A;"),
        ("src/io/b.rs", "use std::a; use other::super_a;"),
    ] {
        assert_eq!(circles(&[a_to_b, (path, harmless)]), 0, "{harmless}");
    }
}
