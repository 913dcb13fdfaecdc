//! Resolves addresses of this process to functions and lines, from the files of the program and its
//! libraries: line tables if present, else symbol tables. `addr2line`'s loader reads both.

use super::maps::Mapping;
use addr2line::Loader;
use object::read::elf::ElfFile64;
use object::{NativeEndian, Object, ObjectSegment, ReadCache};
use std::collections::HashMap;
use std::fs::File;

/// The running program, even after an upgrade has replaced its file.
const OWN_FILE: &str = "/proc/self/exe";

/// A function at an address, and its line.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Frame {
    /// With its path, for people.
    pub name: String,
    /// The linker's name, or `name`.
    pub system_name: String,
    /// The compiler's path; empty if unknown.
    pub file: String,
    /// 0 if unknown.
    pub line: u32,
}

impl Frame {
    pub fn named(name: &str) -> Self {
        Self { name: name.into(), system_name: name.into(), ..Self::default() }
    }
}

/// The files that contain the addresses, by mapping name; `None` for one that cannot be read.
pub struct Symbols(HashMap<String, Option<Program>>);

impl Symbols {
    /// Reads the files of the regions `used` (indices in `mappings`).
    pub fn open(mappings: &[Mapping], used: impl IntoIterator<Item = usize>) -> Self {
        let own = std::fs::read_link(OWN_FILE).unwrap_or_default();
        let mut files = HashMap::new();
        for place in used {
            let name = mappings[place].name.as_str();
            if !files.contains_key(name) {
                let path = if own.to_str() == Some(name) { OWN_FILE } else { name };
                files.insert(name.into(), Program::open(path));
            }
        }
        Self(files)
    }

    /// Returns the functions at an address: inlined ones first, the containing one last. Empty if
    /// nothing is known.
    pub fn frames(&self, mapping: &Mapping, address: u64) -> Vec<Frame> {
        let program = self.0.get(&mapping.name).and_then(Option::as_ref);
        program.map_or_else(Vec::new, |program| program.frames(mapping.file_offset(address)))
    }
}

/// One file.
struct Program {
    loader: Loader,
    /// Where segments of the file lie in its own address space: offset, length, address.
    segments: Vec<(u64, u64, u64)>,
}

impl Program {
    fn open(path: &str) -> Option<Self> {
        // The loader does not expose them.
        let file = ReadCache::new(File::open(path).ok()?);
        let object = ElfFile64::<NativeEndian, _>::parse(&file).ok()?;
        let segments = object.segments().map(|segment| {
            let (offset, length) = segment.file_range();
            (offset, length, segment.address())
        });
        Some(Self { segments: segments.collect(), loader: Loader::new(path).ok()? })
    }

    fn frames(&self, file_offset: u64) -> Vec<Frame> {
        let mut segments = self.segments.iter();
        let found = segments.find(|(offset, length, _)| {
            file_offset.checked_sub(*offset).is_some_and(|inside| inside < *length)
        });
        let Some((offset, _, start)) = found else { return Vec::new() };
        let address = file_offset - offset + start;
        let mut frames = self.inlined(address).unwrap_or_default();
        // The symbol table knows the containing function, even where the line tables have its name
        // without its path or nothing at all.
        if let Some(symbol) = self.loader.find_symbol(address) {
            let holder = frames.pop().unwrap_or_default();
            let (name, system_name) = (readable(symbol), symbol.into());
            frames.push(Frame { name, system_name, ..holder });
        }
        frames.retain(|frame| !frame.name.is_empty());
        frames
    }

    fn inlined(&self, address: u64) -> Option<Vec<Frame>> {
        let mut found = self.loader.find_frames(address).ok()?;
        let mut frames = Vec::new();
        while let Some(frame) = found.next().ok()? {
            let name = frame.function.as_ref().and_then(|function| function.raw_name().ok());
            let name = name.unwrap_or_default();
            let location = frame.location.as_ref();
            let file = location.and_then(|at| at.file).unwrap_or_default();
            frames.push(Frame {
                name: readable(&name),
                system_name: name.into(),
                file: file.into(),
                line: location.and_then(|at| at.line).unwrap_or(0),
            });
        }
        Some(frames)
    }
}

/// Demangles the linker's name, without the hash at its end.
fn readable(name: &str) -> String {
    format!("{:#}", rustc_demangle::demangle(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::pprof::maps;

    #[test]
    fn names_are_those_of_the_source() {
        let mangled = "_ZN10ws_cluster2io4ring4Ring6submit17h0123456789abcdefE";
        assert_eq!(readable(mangled), "ws_cluster::io::ring::Ring::submit");
        assert_eq!(readable("mi_malloc"), "mi_malloc");
        assert_eq!(readable(""), "");
    }

    #[test]
    fn a_library_without_line_tables_has_its_symbols() {
        let mappings = maps::parse(&std::fs::read_to_string("/proc/self/maps").unwrap());
        // From the C library, which Debian strips of everything but its exports.
        let address = libc::close as *const () as usize as u64;
        let place = maps::find(&mappings, address).unwrap();
        let symbols = Symbols::open(&mappings, [place, place]);
        assert_eq!(symbols.0.len(), 1);
        let frames = symbols.frames(&mappings[place], address);
        assert!(frames[0].name.contains("close"), "{frames:?}");
    }

    #[test]
    fn what_is_no_program_has_no_names() {
        for name in ["[vdso]", "/dev/null", "/etc/passwd", "/proc/self"] {
            let mappings = [Mapping { start: 0, end: 9, offset: 0, name: name.into() }];
            assert!(Symbols::open(&mappings, [0]).frames(&mappings[0], 4).is_empty(), "{name}");
        }
    }
}
