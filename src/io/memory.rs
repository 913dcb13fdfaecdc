//! How much memory this process may use, and how much it uses: as reported by its control group
//! (version 1 or 2), or else for the whole machine.

use std::fs;
use std::path::{Path, PathBuf};

/// The source of the limit, to be shown to an operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    Flag,
    CgroupV2,
    CgroupV1,
    Machine,
}

impl Source {
    pub fn name(self) -> &'static str {
        match self {
            Self::Flag => "--memory_limit_bytes",
            Self::CgroupV2 => "memory.max of the control group",
            Self::CgroupV1 => "memory.limit_in_bytes of the control group",
            Self::Machine => "the machine's memory",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryLimit {
    pub bytes: u64,
    pub source: Source,
    /// Directory of the control group that sets it.
    directory: PathBuf,
}

impl MemoryLimit {
    pub fn given(bytes: u64) -> Self {
        Self { bytes, source: Source::Flag, directory: PathBuf::new() }
    }

    /// Returns the lowest limit that applies to this process; `None` if nothing can be read.
    pub fn detect() -> Option<Self> {
        Self::detect_in(Path::new("/proc"))
    }

    fn detect_in(proc: &Path) -> Option<Self> {
        let read = |name: &str| fs::read_to_string(proc.join(name)).unwrap_or_default();
        let (groups, mounts) = (read("self/cgroup"), read("self/mountinfo"));
        let mut limits = Vec::new();
        for (source, file) in
            [(Source::CgroupV2, "memory.max"), (Source::CgroupV1, "memory.limit_in_bytes")]
        {
            for directory in directories(source, &groups, &mounts) {
                let text = fs::read_to_string(directory.join(file)).unwrap_or_default();
                // `max` is not a number: no limit.
                if let Ok(bytes) = text.trim().parse() {
                    limits.push(Self { bytes, source, directory });
                }
            }
        }
        if let Some(kib) = field(&read("meminfo"), "MemTotal:") {
            let (source, directory) = (Source::Machine, PathBuf::new());
            limits.push(Self { bytes: kib * 1024, source, directory });
        }
        limits.into_iter().filter(|limit| limit.bytes > 0).min_by_key(|limit| limit.bytes)
    }

    /// Returns the bytes that count towards the limit and that the kernel cannot reclaim.
    pub fn used(&self) -> Option<u64> {
        let read = |name: &str| fs::read_to_string(self.directory.join(name)).ok();
        match self.source {
            Source::CgroupV2 => {
                let stat = read("memory.stat")?;
                let parts = ["anon", "kernel", "sock"];
                Some(parts.iter().filter_map(|name| field(&stat, name)).sum())
            }
            Source::CgroupV1 => {
                let kernel = read("memory.kmem.usage_in_bytes")?.trim().parse().unwrap_or(0);
                Some(field(&read("memory.stat")?, "total_rss")? + kernel)
            }
            Source::Flag | Source::Machine => {
                let statm = fs::read_to_string("/proc/self/statm").ok()?;
                let mut pages = statm.split_ascii_whitespace().skip(1).map(str::parse::<u64>);
                let (resident, shared) = (pages.next()?.ok()?, pages.next()?.ok()?);
                Some(resident.saturating_sub(shared) * super::sys::page_bytes() as u64)
            }
        }
    }
}

/// Returns the number after a name at the beginning of a line.
fn field(text: &str, name: &str) -> Option<u64> {
    let mut lines = text.lines().map(str::split_ascii_whitespace);
    lines.find_map(|mut words| (words.next()? == name).then(|| words.next()?.parse().ok())?)
}

/// Returns the control group of this process and its ancestors, as this process sees them.
fn directories(source: Source, groups: &str, mounts: &str) -> Vec<PathBuf> {
    let is_v2 = source == Source::CgroupV2;
    let group = groups.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':');
        let (number, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
        let is_it = match is_v2 {
            true => number == "0" && controllers.is_empty(),
            false => controllers.split(',').any(|one| one == "memory"),
        };
        is_it.then_some(path)
    });
    let mount = mounts.lines().find_map(|line| {
        let (mount, kind) = line.split_once(" - ")?;
        let (kind, options) = kind.split_once(' ')?;
        let is_it = match is_v2 {
            true => kind == "cgroup2",
            false => kind == "cgroup" && options.split([' ', ',']).any(|one| one == "memory"),
        };
        let mut words = mount.split(' ').skip(3);
        is_it.then_some((words.next()?, words.next()?))
    });
    let (Some(group), Some((root, mount))) = (group, mount) else { return Vec::new() };
    // In a container, the mount often shows the group itself as its root.
    let below = Path::new(group).strip_prefix(root).unwrap_or(Path::new(""));
    below.ancestors().map(|path| Path::new(mount).join(path)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
        25 1 8:1 / / rw - ext4 /dev/sda1 rw\n\
        30 25 0:26 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory\n\
        31 25 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";

    #[test]
    fn the_groups_above_count_as_well() {
        let groups = "4:memory:/a/b\n3:cpu,cpuacct:/\n0::/c\n";
        let v1 = directories(Source::CgroupV1, groups, MOUNTS);
        let expected = ["a/b", "a", ""].map(|path| Path::new("/sys/fs/cgroup/memory").join(path));
        assert_eq!(v1, expected);
        let v2 = directories(Source::CgroupV2, groups, MOUNTS);
        assert_eq!(v2, ["c", ""].map(|path| Path::new("/sys/fs/cgroup/unified").join(path)));
        assert!(directories(Source::CgroupV2, "4:memory:/a\n", MOUNTS).is_empty());
        // A container sees its own group as the root of the mount.
        let own = "31 25 0:27 /docker/x /sys/fs/cgroup ro - cgroup2 cgroup rw\n";
        let seen = directories(Source::CgroupV2, "0::/docker/x\n", own);
        assert_eq!(seen, [Path::new("/sys/fs/cgroup/")]);
    }

    #[test]
    fn the_lowest_limit_holds() {
        let dir = std::env::temp_dir().join(format!("ws-cluster-memory-{}", std::process::id()));
        let group = dir.join("cgroup/a");
        fs::create_dir_all(&group).unwrap();
        fs::create_dir_all(dir.join("self")).unwrap();
        let mount = dir.join("cgroup");
        let write = |path: &str, text: &str| fs::write(dir.join(path), text).unwrap();
        write("self/cgroup", "0::/a\n");
        let line = format!("31 25 0:27 / {} rw - cgroup2 cgroup2 rw\n", mount.display());
        write("self/mountinfo", &line);
        write("meminfo", "MemTotal:       2048 kB\nMemFree: 1 kB\n");
        write("cgroup/a/memory.max", "max\n");
        let limit = MemoryLimit::detect_in(&dir).unwrap();
        assert_eq!((limit.bytes, limit.source), (2 << 20, Source::Machine));
        write("cgroup/memory.max", "1048576\n");
        write("cgroup/memory.stat", "anon 5000\nfile 70000\nkernel 300\nsock 20\nanon_thp 1\n");
        let limit = MemoryLimit::detect_in(&dir).unwrap();
        assert_eq!((limit.bytes, limit.source), (1 << 20, Source::CgroupV2));
        assert_eq!(limit.used(), Some(5_320));
        fs::remove_dir_all(&dir).unwrap();
        assert!(MemoryLimit::given(1).used().unwrap() > 0);
        assert!(MemoryLimit::detect().is_some());
    }
}
