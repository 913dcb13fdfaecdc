//! A profile: stacks with names and lines, from which pprof files and drawings are made.

use super::cpu::{PERIOD_NS, Recording};
use super::kernel;
use super::maps::{self, Mapping};
use super::source;
use super::symbols::{Frame, Symbols};
use crate::io::perf::Depth;
use std::collections::HashMap;
use std::hash::Hash;

/// What is known of a function; two are the same if all of it is equal.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Function {
    /// With its path, for people.
    pub name: String,
    /// The linker's name, or `name`.
    pub system_name: String,
    /// Shortened, see [`source::shorten`]; empty if unknown.
    pub file: String,
}

/// A source line of a running function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Index in [`Profile::functions`].
    pub function: usize,
    /// 0 if unknown.
    pub line: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location {
    pub address: u64,
    /// Index in [`Profile::mappings`]; `None` for the kernel.
    pub mapping: Option<usize>,
    /// The innermost inlined function first, the containing one last; never empty.
    pub lines: Vec<Line>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// The name of a thread, or of several.
    pub thread: String,
    /// Indices in [`Profile::locations`], innermost first.
    pub locations: Vec<usize>,
    pub count: u64,
}

/// Everything that was sampled.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Profile {
    /// Nanoseconds since 1970.
    pub began_ns: u64,
    pub lasted_ns: u64,
    /// CPU time that one sample stands for.
    pub period_ns: u64,
    pub mappings: Vec<Mapping>,
    pub functions: Vec<Function>,
    pub locations: Vec<Location>,
    pub samples: Vec<Sample>,
    /// Notes for the reader, one sentence each.
    pub notes: Vec<String>,
}

impl Profile {
    /// Resolves the names in a recording of this process. It takes some tenths of a second.
    pub fn new(recording: &Recording) -> Self {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
        let mappings = maps::parse(&maps);
        let addresses = || recording.stacks.keys().flat_map(|(_, stack)| stack.iter().copied());
        let kernel_names = kernel::names(addresses());
        let used = addresses().filter_map(|address| maps::find(&mappings, address));
        let names = Names { kernel: kernel_names, symbols: Symbols::open(&mappings, used) };
        let mut builder = Builder::new(mappings, names);
        let samples = recording.stacks.iter().map(|((thread, stack), &count)| {
            let locations = builder.locations(stack);
            Sample { thread: recording.threads[*thread].clone(), locations, count }
        });
        let mut samples: Vec<Sample> = samples.collect();
        samples.sort_unstable_by(|a, b| {
            (b.count, &a.thread, &a.locations).cmp(&(a.count, &b.thread, &b.locations))
        });
        Self {
            began_ns: recording.began_ns,
            lasted_ns: recording.lasted.as_nanos() as u64,
            period_ns: PERIOD_NS,
            mappings: builder.mappings,
            functions: builder.functions.items,
            locations: builder.locations,
            samples,
            notes: notes(recording, builder.places.contains_key(&kernel::FROM)),
        }
    }

    /// Returns the number of samples.
    pub fn total(&self) -> u64 {
        self.samples.iter().map(|sample| sample.count).sum()
    }
}

fn notes(recording: &Recording, is_kernel_unnamed: bool) -> Vec<String> {
    let mut notes = Vec::new();
    if is_kernel_unnamed {
        notes.push(
            "The kernel's functions have no names: CAP_SYSLOG in addition to CAP_PERFMON shows \
             them."
                .into(),
        );
    }
    if recording.depth == Depth::User {
        notes.push(
            "Without the kernel: time in system calls is not included. CAP_PERFMON, or \
             kernel.perf_event_paranoid at 1 or below, shows it."
                .into(),
        );
    }
    if !cfg!(frame_pointers) {
        notes.push(
            "This program was built without frame pointers: stacks are truncated. Build it without \
             RUSTFLAGS, or add -C force-frame-pointers=yes."
                .into(),
        );
    }
    if recording.lost > 0 {
        notes.push(format!("{} samples were lost because the buffer was full.", recording.lost));
    }
    notes
}

struct Names {
    kernel: HashMap<u64, String>,
    symbols: Symbols,
}

/// A set of distinct values with their indices.
struct Interned<T> {
    items: Vec<T>,
    places: HashMap<T, usize>,
}

impl<T: Clone + Eq + Hash> Interned<T> {
    fn place(&mut self, item: T) -> usize {
        *self.places.entry(item).or_insert_with_key(|item| {
            self.items.push(item.clone());
            self.items.len() - 1
        })
    }
}

struct Builder {
    mappings: Vec<Mapping>,
    names: Names,
    functions: Interned<Function>,
    locations: Vec<Location>,
    /// The index of each address seen before.
    places: HashMap<u64, usize>,
}

impl Builder {
    fn new(mappings: Vec<Mapping>, names: Names) -> Self {
        let functions = Interned { items: Vec::new(), places: HashMap::new() };
        Self { mappings, names, functions, locations: Vec::new(), places: HashMap::new() }
    }

    /// Returns the locations of a stack. It ends where a caller's address is not code: a function
    /// without a frame pointer uses that register for other values.
    fn locations(&mut self, stack: &[u64]) -> Vec<usize> {
        let mut locations = Vec::with_capacity(stack.len());
        for (depth, &address) in stack.iter().enumerate() {
            let address = self.one_for_unnamed(address);
            let mapping = maps::find(&self.mappings, address);
            if depth > 0 && mapping.is_none() && !kernel::is_kernel(address) {
                break;
            }
            let place = match self.places.get(&address) {
                Some(&place) => place,
                None => self.add(address, mapping),
            };
            if address != kernel::FROM || locations.last() != Some(&place) {
                locations.push(place);
            }
        }
        locations
    }

    /// Maps all unnamed kernel functions to one address, however deep the stack: [`kernel::FROM`].
    fn one_for_unnamed(&self, address: u64) -> u64 {
        let is_named = self.names.kernel.contains_key(&address);
        if kernel::is_kernel(address) && !is_named { kernel::FROM } else { address }
    }

    fn add(&mut self, address: u64, mapping: Option<usize>) -> usize {
        let mut lines = Vec::new();
        for frame in self.frames(address, mapping) {
            let function = self.functions.place(Function {
                name: frame.name,
                system_name: frame.system_name,
                file: source::shorten(&frame.file).into(),
            });
            lines.push(Line { function, line: frame.line });
        }
        self.locations.push(Location { address, mapping, lines });
        self.places.insert(address, self.locations.len() - 1);
        self.locations.len() - 1
    }

    /// Returns at least one frame.
    fn frames(&self, address: u64, mapping: Option<usize>) -> Vec<Frame> {
        if kernel::is_kernel(address) {
            let name = self.names.kernel.get(&address).map_or("[kernel]", String::as_str);
            return vec![Frame { file: "[kernel]".into(), ..Frame::named(name) }];
        }
        let Some(mapping) = mapping.map(|place| &self.mappings[place]) else {
            return vec![Frame::named("[unknown]")];
        };
        let frames = self.names.symbols.frames(mapping, address);
        if frames.is_empty() { vec![Frame::named(&mapping.short_name())] } else { frames }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[inline(never)]
    fn a_function_to_find() -> u64 {
        std::hint::black_box(7)
    }

    fn recording(stacks: HashMap<(usize, Vec<u64>), u64>) -> Recording {
        Recording {
            threads: vec!["one".into(), "two".into()],
            stacks,
            lost: 2,
            depth: Depth::User,
            began_ns: 5,
            lasted: Duration::from_secs(1),
        }
    }

    fn functions(profile: &Profile, sample: &Sample) -> Vec<String> {
        let lines = sample.locations.iter().flat_map(|&place| &profile.locations[place].lines);
        lines.map(|line| profile.functions[line.function].name.clone()).collect()
    }

    #[test]
    fn own_functions_have_names_files_and_lines() {
        let function: fn() -> u64 = a_function_to_find;
        let address = function as usize as u64;
        let stack = vec![address + 1, 0x10, address];
        let profile = Profile::new(&recording([((1, stack), 3)].into()));
        assert_eq!((profile.total(), profile.period_ns), (3, 5_025_125));
        assert_eq!(profile.samples[0].thread, "two");
        let names = functions(&profile, &profile.samples[0]);
        assert_eq!(names.len(), 1, "cut at what is no code: {names:?}");
        assert!(names[0].starts_with("ws_cluster::ops::pprof::profile::"), "{names:?}");
        assert!(names[0].ends_with("::a_function_to_find"), "{names:?}");
        let location = &profile.locations[profile.samples[0].locations[0]];
        let function = &profile.functions[location.lines[0].function];
        assert_eq!(function.file, "src/ops/pprof/profile.rs");
        let near = line!() - 42..line!();
        assert!(near.contains(&location.lines[0].line), "{location:?}, not in {near:?}");
    }

    #[test]
    fn kernel_and_unknown_addresses_have_a_name() {
        let low = kernel::FROM + 0x1000;
        let stacks = [((0, vec![low, low + 8, low, 0x10]), 1), ((0, vec![0x20]), 2)];
        let profile = Profile::new(&recording(stacks.into()));
        let all: Vec<Vec<String>> =
            profile.samples.iter().map(|sample| functions(&profile, sample)).collect();
        assert_eq!(all[0], ["[unknown]"]);
        assert_eq!(all[1], ["[kernel]"]);
        assert_eq!(profile.notes.len(), 3 + usize::from(!cfg!(frame_pointers)));
    }
}
