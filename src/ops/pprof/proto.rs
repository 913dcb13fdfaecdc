//! A profile as `go tool pprof`, Speedscope and others read it: `perftools.profiles.Profile` of
//! google/pprof's `profile.proto`, gzipped.
//!
//! The messages are written by hand for `prost`, with the fields that this node fills: a build
//! script would need protoc.

use super::profile::{Location, Profile, Sample};
use flate2::Compression;
use flate2::write::GzEncoder;
use prost::Message;
use std::collections::HashMap;
use std::io::{self, Write};

/// Returns the profile, gzipped.
pub fn encode(profile: &Profile) -> io::Result<Vec<u8>> {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
    gzip.write_all(&message(profile).encode_to_vec())?;
    gzip.finish()
}

/// Returns the profile as a message. Ids are indices counted from 1: 0 means none.
fn message(profile: &Profile) -> ProfileMessage {
    let mut texts = Texts::default();
    let samples_count = ValueType { kind: texts.place("samples"), unit: texts.place("count") };
    let cpu_ns = ValueType { kind: texts.place("cpu"), unit: texts.place("nanoseconds") };
    let thread = texts.place("thread");
    let samples = profile.samples.iter().map(|sample| SampleMessage {
        location_ids: sample.locations.iter().map(|&place| place as u64 + 1).collect(),
        values: values(sample, profile.period_ns),
        labels: vec![Label { key: thread, text: texts.place(&sample.thread) }],
    });
    let samples = samples.collect();
    let mappings = profile.mappings.iter().enumerate().map(|(place, mapping)| MappingMessage {
        id: place as u64 + 1,
        start: mapping.start,
        end: mapping.end,
        offset: mapping.offset,
        file: texts.place(&mapping.name),
        // Names and lines are included, so a reader need not look them up.
        has_functions: true,
        has_files: true,
        has_lines: true,
        has_inline_frames: true,
    });
    let mappings = mappings.collect();
    let functions = profile.functions.iter().enumerate().map(|(place, function)| FunctionMessage {
        id: place as u64 + 1,
        name: texts.place(&function.name),
        system_name: texts.place(&function.system_name),
        file: texts.place(&function.file),
    });
    let functions = functions.collect();
    let comments = profile.notes.iter().map(|note| texts.place(note)).collect();
    ProfileMessage {
        sample_types: vec![samples_count, cpu_ns],
        samples,
        mappings,
        locations: profile.locations.iter().enumerate().map(location).collect(),
        functions,
        began_ns: profile.began_ns as i64,
        lasted_ns: profile.lasted_ns as i64,
        period_type: Some(cpu_ns),
        period: profile.period_ns as i64,
        comments,
        default_sample_type: cpu_ns.kind,
        texts: texts.items,
    }
}

/// Returns the values of each sample type: the samples, and the time that they stand for.
fn values(sample: &Sample, period_ns: u64) -> Vec<i64> {
    vec![sample.count as i64, (sample.count * period_ns) as i64]
}

fn location((place, location): (usize, &Location)) -> LocationMessage {
    let lines = location
        .lines
        .iter()
        .map(|line| LineMessage { function_id: line.function as u64 + 1, line: line.line.into() });
    LocationMessage {
        id: place as u64 + 1,
        mapping_id: location.mapping.map_or(0, |place| place as u64 + 1),
        address: location.address,
        lines: lines.collect(),
    }
}

/// The string table, without duplicates; the first entry is empty, as the format requires.
struct Texts {
    items: Vec<String>,
    places: HashMap<String, i64>,
}

impl Default for Texts {
    fn default() -> Self {
        Self { items: vec![String::new()], places: HashMap::from([(String::new(), 0)]) }
    }
}

impl Texts {
    fn place(&mut self, text: &str) -> i64 {
        if let Some(&place) = self.places.get(text) {
            return place;
        }
        let place = self.items.len() as i64;
        self.items.push(text.into());
        self.places.insert(text.into(), place);
        place
    }
}

#[derive(Clone, PartialEq, Message)]
struct ProfileMessage {
    #[prost(message, repeated, tag = "1")]
    sample_types: Vec<ValueType>,
    #[prost(message, repeated, tag = "2")]
    samples: Vec<SampleMessage>,
    #[prost(message, repeated, tag = "3")]
    mappings: Vec<MappingMessage>,
    #[prost(message, repeated, tag = "4")]
    locations: Vec<LocationMessage>,
    #[prost(message, repeated, tag = "5")]
    functions: Vec<FunctionMessage>,
    #[prost(string, repeated, tag = "6")]
    texts: Vec<String>,
    #[prost(int64, tag = "9")]
    began_ns: i64,
    #[prost(int64, tag = "10")]
    lasted_ns: i64,
    #[prost(message, optional, tag = "11")]
    period_type: Option<ValueType>,
    #[prost(int64, tag = "12")]
    period: i64,
    #[prost(int64, repeated, tag = "13")]
    comments: Vec<i64>,
    #[prost(int64, tag = "14")]
    default_sample_type: i64,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct ValueType {
    #[prost(int64, tag = "1")]
    kind: i64,
    #[prost(int64, tag = "2")]
    unit: i64,
}

#[derive(Clone, PartialEq, Message)]
struct SampleMessage {
    #[prost(uint64, repeated, tag = "1")]
    location_ids: Vec<u64>,
    #[prost(int64, repeated, tag = "2")]
    values: Vec<i64>,
    #[prost(message, repeated, tag = "3")]
    labels: Vec<Label>,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct Label {
    #[prost(int64, tag = "1")]
    key: i64,
    #[prost(int64, tag = "2")]
    text: i64,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct MappingMessage {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(uint64, tag = "2")]
    start: u64,
    #[prost(uint64, tag = "3")]
    end: u64,
    #[prost(uint64, tag = "4")]
    offset: u64,
    #[prost(int64, tag = "5")]
    file: i64,
    #[prost(bool, tag = "7")]
    has_functions: bool,
    #[prost(bool, tag = "8")]
    has_files: bool,
    #[prost(bool, tag = "9")]
    has_lines: bool,
    #[prost(bool, tag = "10")]
    has_inline_frames: bool,
}

#[derive(Clone, PartialEq, Message)]
struct LocationMessage {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(uint64, tag = "2")]
    mapping_id: u64,
    #[prost(uint64, tag = "3")]
    address: u64,
    #[prost(message, repeated, tag = "4")]
    lines: Vec<LineMessage>,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct LineMessage {
    #[prost(uint64, tag = "1")]
    function_id: u64,
    #[prost(int64, tag = "2")]
    line: i64,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct FunctionMessage {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(int64, tag = "2")]
    name: i64,
    #[prost(int64, tag = "3")]
    system_name: i64,
    #[prost(int64, tag = "4")]
    file: i64,
}

#[cfg(test)]
mod tests {
    use super::super::maps::Mapping;
    use super::super::profile::{Function, Line};
    use super::*;
    use flate2::read::GzDecoder;
    use std::io::Read;

    fn profile() -> Profile {
        let function = |name: &str| Function {
            name: name.into(),
            system_name: format!("_Z{name}"),
            file: "src/a.rs".into(),
        };
        Profile {
            began_ns: 1_700_000_000_000_000_000,
            lasted_ns: 2_000_000_000,
            period_ns: 5_025_125,
            mappings: vec![Mapping { start: 0x1000, end: 0x2000, offset: 0, name: "/a".into() }],
            functions: vec![function("inner"), function("outer")],
            locations: vec![Location {
                address: 0x1234,
                mapping: Some(0),
                lines: vec![Line { function: 0, line: 300 }, Line { function: 1, line: 7 }],
            }],
            samples: vec![Sample { thread: "worker-0".into(), locations: vec![0, 0], count: 200 }],
            notes: vec!["a note".into()],
        }
    }

    #[test]
    fn what_is_written_can_be_read() {
        let profile = profile();
        let mut plain = Vec::new();
        GzDecoder::new(&*encode(&profile).unwrap()).read_to_end(&mut plain).unwrap();
        let read = ProfileMessage::decode(&*plain).unwrap();
        let text = |place: i64| read.texts[place as usize].as_str();
        assert_eq!(text(0), "");
        let kinds: Vec<_> =
            read.sample_types.iter().map(|one| [text(one.kind), text(one.unit)]).collect();
        assert_eq!(kinds, [["samples", "count"], ["cpu", "nanoseconds"]]);

        let sample = &read.samples[0];
        assert_eq!(sample.location_ids, [1, 1]);
        assert_eq!(sample.values, [200, 200 * 5_025_125]);
        let label = sample.labels[0];
        assert_eq!((text(label.key), text(label.text)), ("thread", "worker-0"));

        let mapping = read.mappings[0];
        assert_eq!((mapping.id, mapping.start, mapping.end), (1, 0x1000, 0x2000));
        assert_eq!(text(mapping.file), "/a");
        let location = &read.locations[0];
        assert_eq!((location.id, location.mapping_id, location.address), (1, 1, 0x1234));
        let lines: Vec<_> =
            location.lines.iter().map(|line| (line.function_id, line.line)).collect();
        assert_eq!(lines, [(1, 300), (2, 7)], "the innermost first");
        let function = read.functions[1];
        let names = [function.name, function.system_name, function.file].map(text);
        assert_eq!((function.id, names), (2, ["outer", "_Zouter", "src/a.rs"]));
        assert_eq!(read.began_ns as u64, profile.began_ns);
        assert_eq!(read.lasted_ns as u64, profile.lasted_ns);
        assert_eq!(read.period as u64, profile.period_ns);
        assert_eq!((text(read.comments[0]), text(read.default_sample_type)), ("a note", "cpu"));
    }

    /// The bytes are as google/pprof's own reader expects them: repeated numbers are packed.
    #[test]
    fn lists_of_numbers_are_packed() {
        let sample =
            SampleMessage { location_ids: vec![1, 300], values: vec![2], labels: Vec::new() };
        assert_eq!(sample.encode_to_vec(), [0x0a, 3, 1, 0xac, 2, 0x12, 1, 2]);
    }
}
