//! The files of `/proc` and `/sys` that the checks read, below a directory that tests replace.

use std::fs;
use std::path::{Path, PathBuf};

pub(super) struct Root(PathBuf);

impl Root {
    pub(super) fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    /// Returns the text of a file, without the white space around it; `None`: it cannot be read.
    pub(super) fn text(&self, path: &str) -> Option<String> {
        let text = fs::read_to_string(self.0.join(path)).ok()?;
        Some(text.trim().to_owned())
    }

    pub(super) fn number(&self, path: &str) -> Option<u64> {
        self.text(path)?.parse().ok()
    }

    /// Returns the numbers of a file, as far as it has them.
    pub(super) fn numbers(&self, path: &str) -> Vec<u64> {
        let text = self.text(path).unwrap_or_default();
        text.split_whitespace().map_while(|word| word.parse().ok()).collect()
    }

    /// Returns the text of a kernel setting, such as `net.core.somaxconn`.
    pub(super) fn sysctl(&self, name: &str) -> Vec<u64> {
        self.numbers(&format!("proc/sys/{}", name.replace('.', "/")))
    }

    /// Returns the number of KiB after a name in /proc/meminfo, in bytes.
    pub(super) fn meminfo(&self, name: &str) -> Option<u64> {
        let text = self.text("proc/meminfo")?;
        let rest = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        rest.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1_024)
    }

    /// Returns what follows a name in /proc/self/status.
    pub(super) fn status(&self, name: &str) -> Option<String> {
        let text = self.text("proc/self/status")?;
        let rest = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        Some(rest.trim().to_owned())
    }

    /// Returns the directories of this process's control group (version 2) and of those above it.
    pub(super) fn cgroups(&self) -> Vec<String> {
        let groups = self.text("proc/self/cgroup").unwrap_or_default();
        let Some(own) = groups.lines().find_map(|line| line.strip_prefix("0::")) else {
            return Vec::new();
        };
        let above = Path::new(own).ancestors();
        above.map(|path| format!("sys/fs/cgroup{}", path.display())).collect()
    }
}

/// Returns the soft and the hard limit with this name in /proc/self/limits; `None` in it:
/// unlimited.
pub(super) fn limit(limits: &str, name: &str) -> Option<(Option<u64>, Option<u64>)> {
    let rest = limits.lines().find_map(|line| line.strip_prefix(name))?;
    let mut words = rest.split_whitespace();
    let mut number = || -> Option<Option<u64>> { Some(words.next()?.parse().ok()) };
    Some((number()?, number()?))
}

/// Counts the processors of a list such as `0-3,8`.
pub(super) fn count_cpus(list: &str) -> usize {
    let count = |range: &str| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last) =
            (first.trim().parse::<usize>().ok()?, last.trim().parse::<usize>().ok()?);
        Some(last.checked_sub(first)? + 1)
    };
    list.split(',').filter_map(count).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_and_limits_are_parsed() {
        for (list, count) in
            [("", 0), ("0", 1), ("0-3", 4), ("0-1,4,6-7\n", 5), ("x", 0), ("3-1", 0)]
        {
            assert_eq!(count_cpus(list), count, "{list}");
        }
        let limits = "Max open files            1024                 524288               files\n\
                      Max locked memory         unlimited            unlimited            bytes\n";
        assert_eq!(limit(limits, "Max open files"), Some((Some(1_024), Some(524_288))));
        assert_eq!(limit(limits, "Max locked memory"), Some((None, None)));
        assert_eq!(limit(limits, "Max processes"), None);
    }
}
