//! The server's process, from /proc: memory and CPU time.

use std::fs;

/// The sums of smaps_rollup in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    pub rss: u64,
    pub pss: u64,
    /// Private_Clean + Private_Dirty: what would be freed if this process ended.
    pub private: u64,
}

impl Memory {
    pub fn of(pid: u32) -> Result<Memory, String> {
        let path = format!("/proc/{pid}/smaps_rollup");
        fs::read_to_string(&path).map(|text| parse(&text)).map_err(|e| format!("{path}: {e}"))
    }
}

fn parse(text: &str) -> Memory {
    let mut memory = Memory::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let (Some(name), Some(kib)) = (words.next(), words.next()) else { continue };
        let bytes = kib.parse().map_or(0, |kib: u64| kib * 1024);
        match name {
            "Rss:" => memory.rss = bytes,
            "Pss:" => memory.pss = bytes,
            "Private_Clean:" | "Private_Dirty:" => memory.private += bytes,
            _ => {}
        }
    }
    memory
}

/// Returns the resident memory in bytes: cheaper to read than [`Memory`].
pub fn rss(pid: u32) -> Result<u64, String> {
    let path = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.map(|kib| kib * 1024).ok_or_else(|| format!("{path}: no VmRSS"))
}

/// Returns the CPU time of all its threads in nanoseconds; 0 if unknown.
pub fn cpu_ns(pid: u32) -> u64 {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return 0 };
    tasks
        .flatten()
        .filter_map(|task| fs::read_to_string(task.path().join("schedstat")).ok())
        .filter_map(|text| text.split(' ').next()?.parse::<u64>().ok())
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rollup_is_summed() {
        let text = "7f-8f ---p 00000000 00:00 0 [rollup]\nRss:   100 kB\nPss:  90 kB\n\
                    Pss_Anon: 1 kB\nPrivate_Clean: 2 kB\nPrivate_Dirty:  70 kB\n";
        let want = Memory { rss: 100 << 10, pss: 90 << 10, private: 72 << 10 };
        assert_eq!(parse(text), want);
    }

    #[test]
    fn this_process_has_both() {
        let pid = std::process::id();
        assert!(Memory::of(pid).unwrap().rss > 0);
        assert!(cpu_ns(pid) > 0);
        assert_eq!(cpu_ns(0), 0);
    }
}
