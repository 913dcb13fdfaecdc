//! A profile as `go tool pprof`, Speedscope and others read it: `perftools.profiles.Profile` of
//! google/pprof's `profile.proto`, in gzip.
//!
//! The message has six kinds of fields that are integers, texts or messages of those: a writer of
//! forty lines, where a library would bring a code generator.

use super::profile::{Line, Location, Profile, Sample};
use flate2::Compression;
use flate2::write::GzEncoder;
use std::collections::HashMap;
use std::io::{self, Write};

/// The profile, in gzip.
pub fn encode(profile: &Profile) -> io::Result<Vec<u8>> {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
    gzip.write_all(&message(profile))?;
    gzip.finish()
}

/// The profile as a message. Ids are places, counted from 1: 0 stands for none.
fn message(profile: &Profile) -> Vec<u8> {
    let mut texts = Texts::default();
    let mut out = Message::default();
    let [samples, count] = [texts.place("samples"), texts.place("count")];
    let [cpu, nanoseconds] = [texts.place("cpu"), texts.place("nanoseconds")];
    let value_type = |kind, unit| Message::default().integer(1, kind).integer(2, unit);
    out = out.message(1, &value_type(samples, count)).message(1, &value_type(cpu, nanoseconds));
    let thread = texts.place("thread");
    for sample in &profile.samples {
        let name = texts.place(&sample.thread);
        let label = Message::default().integer(1, thread).integer(2, name);
        out = out.message(2, &sample_message(sample, profile.period_ns).message(3, &label));
    }
    for (place, mapping) in profile.mappings.iter().enumerate() {
        // Names and lines are here already: a reader need not look for them.
        let known = 1;
        let mapping = Message::default()
            .integer(1, place as u64 + 1)
            .integer(2, mapping.start)
            .integer(3, mapping.end)
            .integer(4, mapping.offset)
            .integer(5, texts.place(&mapping.name))
            .integer(7, known)
            .integer(8, known)
            .integer(9, known)
            .integer(10, known);
        out = out.message(3, &mapping);
    }
    for (place, location) in profile.locations.iter().enumerate() {
        out = out.message(4, &location_message(place, location));
    }
    for (place, function) in profile.functions.iter().enumerate() {
        let function = Message::default()
            .integer(1, place as u64 + 1)
            .integer(2, texts.place(&function.name))
            .integer(3, texts.place(&function.system_name))
            .integer(4, texts.place(&function.file));
        out = out.message(5, &function);
    }
    for note in &profile.notes {
        out = out.integer(13, texts.place(note));
    }
    out = out
        .integer(9, profile.began_ns)
        .integer(10, profile.lasted_ns)
        .message(11, &value_type(cpu, nanoseconds))
        .integer(12, profile.period_ns)
        .integer(14, cpu);
    texts.items.iter().fold(out, |out, text| out.bytes(6, text.as_bytes())).0
}

fn sample_message(sample: &Sample, period_ns: u64) -> Message {
    let ids = sample.locations.iter().map(|&place| place as u64 + 1);
    Message::default().packed(1, ids).packed(2, [sample.count, sample.count * period_ns])
}

fn location_message(place: usize, location: &Location) -> Message {
    let mapping = location.mapping.map_or(0, |place| place as u64 + 1);
    let message = Message::default()
        .integer(1, place as u64 + 1)
        .integer(2, mapping)
        .integer(3, location.address);
    location.lines.iter().fold(message, |message, &Line { function, line }| {
        let line = Message::default().integer(1, function as u64 + 1).integer(2, line.into());
        message.message(4, &line)
    })
}

/// Texts, each once; the first is the empty one, as the format demands.
struct Texts<'a> {
    items: Vec<&'a str>,
    places: HashMap<&'a str, u64>,
}

impl Default for Texts<'_> {
    fn default() -> Self {
        Self { items: vec![""], places: HashMap::from([("", 0)]) }
    }
}

impl<'a> Texts<'a> {
    fn place(&mut self, text: &'a str) -> u64 {
        *self.places.entry(text).or_insert_with(|| {
            self.items.push(text);
            self.items.len() as u64 - 1
        })
    }
}

/// Fields of protobuf's wire format, one behind the other.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    const VARINT: u64 = 0;
    const LENGTH: u64 = 2;

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    /// A zero is left out, which means the same.
    fn integer(mut self, field: u64, value: u64) -> Self {
        if value != 0 {
            self.varint(field << 3 | Self::VARINT);
            self.varint(value);
        }
        self
    }

    fn bytes(mut self, field: u64, bytes: &[u8]) -> Self {
        self.varint(field << 3 | Self::LENGTH);
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
        self
    }

    fn message(self, field: u64, message: &Self) -> Self {
        self.bytes(field, &message.0)
    }

    fn packed(self, field: u64, values: impl IntoIterator<Item = u64>) -> Self {
        let mut packed = Self::default();
        values.into_iter().for_each(|value| packed.varint(value));
        self.message(field, &packed)
    }
}

#[cfg(test)]
mod tests {
    use super::super::maps::Mapping;
    use super::super::profile::Function;
    use super::*;
    use flate2::read::GzDecoder;
    use std::io::Read;

    /// Each field's number beside its integer, or its bytes.
    fn fields(mut bytes: &[u8]) -> Vec<(u64, u64, &[u8])> {
        let mut found = Vec::new();
        while !bytes.is_empty() {
            let key = varint(&mut bytes);
            let value = varint(&mut bytes);
            let body = match key & 7 {
                Message::VARINT => &[][..],
                Message::LENGTH => bytes.split_off(..value as usize).unwrap(),
                other => panic!("wire type {other}"),
            };
            found.push((key >> 3, value, body));
        }
        found
    }

    fn varint(bytes: &mut &[u8]) -> u64 {
        let mut value = 0;
        for shift in (0..).step_by(7) {
            let byte = bytes.split_off_first().unwrap();
            value |= u64::from(byte & 0x7f) << shift;
            if *byte < 0x80 {
                break;
            }
        }
        value
    }

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
        let all = fields(&plain);
        let of = |wanted: u64| -> Vec<_> {
            let those = all.iter().filter(|(field, ..)| *field == wanted);
            those.map(|&(_, value, body)| (value, body)).collect()
        };
        let texts: Vec<&[u8]> = of(6).iter().map(|&(_, body)| body).collect();
        let text = |place: u64| std::str::from_utf8(texts[place as usize]).unwrap();
        assert_eq!(text(0), "");
        let values = |body| fields(body).iter().map(|field| field.1).collect::<Vec<u64>>();
        let kinds: Vec<Vec<&str>> =
            of(1).iter().map(|&(_, body)| values(body).into_iter().map(text).collect()).collect();
        assert_eq!(kinds, [["samples", "count"], ["cpu", "nanoseconds"]]);

        let sample = fields(of(2)[0].1);
        assert_eq!(sample[0].2, [1, 1]);
        let mut counts = sample[1].2;
        assert_eq!((varint(&mut counts), varint(&mut counts)), (200, 200 * 5_025_125));
        let label = values(sample[2].2);
        assert_eq!((text(label[0]), text(label[1])), ("thread", "worker-0"));

        assert_eq!(values(of(3)[0].1)[..3], [1, 0x1000, 0x2000]);
        let location = fields(of(4)[0].1);
        assert_eq!(
            location.iter().map(|field| field.1).take(3).collect::<Vec<_>>(),
            [1, 1, 0x1234]
        );
        assert_eq!(values(location[3].2), [1, 300], "the innermost first");
        assert_eq!(values(location[4].2), [2, 7]);
        let function: Vec<u64> = values(of(5)[1].1);
        let names: Vec<&str> = function[1..].iter().map(|&place| text(place)).collect();
        assert_eq!((function[0], names), (2, vec!["outer", "_Zouter", "src/a.rs"]));
        assert_eq!(of(9)[0].0, profile.began_ns);
        assert_eq!(of(10)[0].0, profile.lasted_ns);
        assert_eq!(of(12)[0].0, profile.period_ns);
        assert_eq!((text(of(13)[0].0), text(of(14)[0].0)), ("a note", "cpu"));
    }
}
