//! `/proc/self/maps`: which program or library an address belongs to.

/// A memory region with code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapping {
    pub start: u64,
    pub end: u64,
    /// Its offset in the file.
    pub offset: u64,
    /// The file, or a name in brackets; empty for anonymous memory.
    pub name: String,
}

impl Mapping {
    /// Returns the address's offset in the file.
    pub fn file_offset(&self, address: u64) -> u64 {
        address - self.start + self.offset
    }

    /// Returns a name for code in it without a symbol.
    pub fn short_name(&self) -> String {
        let name = self.name.trim_end_matches(" (deleted)");
        let name = name.rsplit('/').next().unwrap_or(name);
        match name.trim_matches(['[', ']']) {
            "" => "[unknown]".into(),
            name => format!("[{name}]"),
        }
    }
}

/// Parses a maps file; returns the executable regions, by address.
pub fn parse(text: &str) -> Vec<Mapping> {
    let mut mappings: Vec<Mapping> = text.lines().filter_map(parse_line).collect();
    mappings.sort_unstable_by_key(|mapping| mapping.start);
    mappings
}

/// Parses `start-end perms offset device inode   name`; the name may contain blanks.
fn parse_line(line: &str) -> Option<Mapping> {
    let mut rest = line;
    let mut field = || {
        let (field, tail) = rest.split_once(' ').unwrap_or((rest, ""));
        rest = tail;
        field
    };
    let (range, permissions, offset, _, _) = (field(), field(), field(), field(), field());
    if !permissions.contains('x') {
        return None;
    }
    let (start, end) = range.split_once('-')?;
    Some(Mapping {
        start: hex(start)?,
        end: hex(end)?,
        offset: hex(offset)?,
        name: rest.trim_start().into(),
    })
}

fn hex(text: &str) -> Option<u64> {
    u64::from_str_radix(text, 16).ok()
}

/// Returns the index of the region that contains the address; `mappings` is sorted.
pub fn find(mappings: &[Mapping], address: u64) -> Option<usize> {
    let place = mappings.partition_point(|mapping| mapping.end <= address);
    mappings.get(place).filter(|mapping| mapping.start <= address).map(|_| place)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
5581e0000000-5581e008d000 r--p 00000000 fe:00 123456                     /opt/a b/ws-cluster
5581e008d000-5581e0200000 r-xp 0008d000 fe:00 123456                     /opt/a b/ws-cluster
7f0000028000-7f000017d000 r-xp 00028000 fe:00 77                 /usr/lib/libc.so.6 (deleted)
7ffe1000-7ffe3000 r-xp 00000000 00:00 0                                  [vdso]
7ffe9000-7ffea000 rwxp 00000000 00:00 0
nonsense
";

    #[test]
    fn code_is_found_by_its_address() {
        let mappings = parse(TEXT);
        let names: Vec<String> = mappings.iter().map(Mapping::short_name).collect();
        assert_eq!(names, ["[vdso]", "[unknown]", "[ws-cluster]", "[libc.so.6]"]);
        let at = |address| find(&mappings, address).map(|place| mappings[place].name.as_str());
        assert_eq!(at(0x5581_e008_d000), Some("/opt/a b/ws-cluster"));
        assert_eq!(at(0x5581_e01f_ffff), Some("/opt/a b/ws-cluster"));
        assert_eq!(at(0x5581_e020_0000), None);
        assert_eq!(at(0x5581_e000_0000), None);
        assert_eq!(at(0), None);
        assert_eq!(at(u64::MAX), None);
        assert_eq!(mappings[2].file_offset(0x5581_e008_d010), 0x8d010);
    }

    #[test]
    fn this_process_is_read() {
        let mappings = parse(&std::fs::read_to_string("/proc/self/maps").unwrap());
        let function: fn() = this_process_is_read;
        let place = find(&mappings, function as usize as u64).unwrap();
        assert!(mappings[place].name.contains("ws_cluster"), "{:?}", mappings[place]);
    }
}
