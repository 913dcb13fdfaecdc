//! Reads the files of the configuration.

use std::fs::{self, File};
use std::io::{self, Read};

/// Maximum size of a file: room for a million projects. A larger one is a mistake, and reading it
/// could take the memory of a running node.
const MAX_BYTES: u64 = 256 << 20;

/// Reads a file. At a start it may also be a pipe, as that of a shell's `<(…)`. At a reload it must
/// be a regular file: one that never ends, or a pipe that nobody writes to, would keep the running
/// node from every other reload.
pub(super) fn read_text(path: &str, is_reload: bool) -> io::Result<String> {
    if is_reload && !fs::metadata(path)?.is_file() {
        return Err(io::Error::other("it is not a regular file, which a reload needs"));
    }
    read_at_most(path, MAX_BYTES)
}

fn read_at_most(path: &str, max_bytes: u64) -> io::Result<String> {
    let mut text = String::new();
    let length = File::open(path)?.take(max_bytes + 1).read_to_string(&mut text)?;
    match length as u64 > max_bytes {
        true => Err(io::Error::other(format!("it is longer than {max_bytes} bytes"))),
        false => Ok(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_without_an_end_are_refused() {
        let error = |result: io::Result<String>| result.unwrap_err().to_string();
        assert!(error(read_text("/dev/zero", true)).contains("not a regular file"));
        assert!(error(read_at_most("/dev/zero", 1_000)).contains("longer than 1000 bytes"));
        assert_eq!(read_text("/dev/null", false).unwrap(), "");
    }

    #[test]
    fn a_file_may_have_exactly_the_maximum() {
        let path = std::env::temp_dir().join(format!("ws-cluster-text-{}", std::process::id()));
        fs::write(&path, "12345").unwrap();
        let read = |max_bytes| read_at_most(path.to_str().unwrap(), max_bytes);
        assert_eq!(read(5).unwrap(), "12345");
        assert!(read(4).is_err());
        fs::remove_file(&path).unwrap();
    }
}
