//! `/proc/kallsyms`: the kernel's functions by address.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader};

/// Addresses from here on belong to the kernel, on every 64-bit machine.
pub const FROM: u64 = 1 << 63;

pub fn is_kernel(address: u64) -> bool {
    address >= FROM
}

/// Returns the names of the functions that contain the addresses; none if the kernel hides its
/// addresses (`kernel.kptr_restrict`).
pub fn names(addresses: impl IntoIterator<Item = u64>) -> HashMap<u64, String> {
    let mut wanted: Vec<u64> = addresses.into_iter().filter(|&one| is_kernel(one)).collect();
    wanted.sort_unstable();
    wanted.dedup();
    if wanted.is_empty() {
        return HashMap::new();
    }
    File::open("/proc/kallsyms")
        .map_or_else(|_| HashMap::new(), |file| look_up(&wanted, BufReader::new(file)))
}

/// Reads the table once, line by line, keeping only the closest symbol for each address: the table
/// has 200,000 lines, a profile a few hundred addresses. `wanted` is sorted.
fn look_up(wanted: &[u64], table: impl BufRead) -> HashMap<u64, String> {
    let mut nearest: Vec<(u64, String)> = vec![(0, String::new()); wanted.len()];
    for line in table.lines().map_while(Result::ok) {
        let Some((start, name)) = parse_line(&line) else { continue };
        let place = wanted.partition_point(|&address| address < start);
        if let Some(found) = nearest.get_mut(place).filter(|found| found.0 < start) {
            *found = (start, name.into());
        }
    }
    let mut names = HashMap::new();
    let mut last = (0, String::new());
    for (&address, found) in wanted.iter().zip(nearest) {
        // The previous address's function may also contain this one.
        if found.0 > last.0 {
            last = found;
        }
        if last.0 > 0 {
            names.insert(address, last.1.clone());
        }
    }
    names
}

/// Parses `ffffffff81000000 T name`, followed by `\t[module]` for modules.
fn parse_line(line: &str) -> Option<(u64, &str)> {
    let mut fields = line.split_ascii_whitespace();
    let start = u64::from_str_radix(fields.next()?, 16).ok()?;
    let is_code = matches!(fields.next()?, "t" | "T" | "w" | "W");
    fields.next().filter(|_| is_code && is_kernel(start)).map(|name| (start, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
ffffffff81000000 T _text
ffffffff81000100 t tcp_sendmsg
ffffffff81000180 d not_code
ffffffff81000200 T io_uring_enter
ffffffffc0000000 t in_a_module\t[module]
ffffffff81000300 W weak
";

    #[test]
    fn the_nearest_function_before_an_address_has_it() {
        let at = |low: u64| 0xffff_ffff_8100_0000 + low;
        let wanted =
            [at(0x100), at(0x1f0), at(0x1ff), at(0x200), at(0x3000), 0xffff_ffff_c000_0010];
        let names = look_up(&wanted, TABLE.as_bytes());
        let found: Vec<&str> = wanted.iter().map(|address| names[address].as_str()).collect();
        assert_eq!(
            found,
            ["tcp_sendmsg", "tcp_sendmsg", "tcp_sendmsg", "io_uring_enter", "weak", "in_a_module"]
        );
        assert!(look_up(&[FROM], TABLE.as_bytes()).is_empty(), "before all of them");
    }

    #[test]
    fn hidden_addresses_name_nothing() {
        let hidden = "0000000000000000 T _text\n0000000000000000 t tcp_sendmsg\n";
        assert!(look_up(&[u64::MAX], hidden.as_bytes()).is_empty());
        assert!(names([1, 2, 0x5581_e008_d000]).is_empty(), "no address of the kernel");
    }
}
