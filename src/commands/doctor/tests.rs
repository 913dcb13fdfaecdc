use super::*;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// A tree of `/proc` and `/sys` that a test fills.
struct Fake(PathBuf);

const LIMITS: &str = "Limit                     Soft Limit           Hard Limit           Units\n\
    Max processes             96365                96365                processes\n\
    Max open files            1024                 1048576              files\n\
    Max locked memory         8388608              8388608              bytes\n";

impl Fake {
    /// A machine on which nothing is wrong.
    fn good() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let number = NEXT.fetch_add(1, Relaxed);
        let name = format!("ws-cluster-doctor-{}-{number}", std::process::id());
        let fake = Self(std::env::temp_dir().join(name));
        for (path, text) in [
            ("proc/self/limits", LIMITS),
            (
                "proc/self/status",
                "Uid:\t7\t7\nCapEff:\t0\nSeccomp:\t0\nTHP_enabled:\t0\nCpus_allowed_list:\t0-3\n",
            ),
            ("proc/self/cgroup", "0::/system.slice/ws-cluster.service\n"),
            ("proc/meminfo", "MemTotal: 67108864 kB\nMemAvailable: 67108864 kB\nSwapTotal: 0 kB\n"),
            ("proc/sys/kernel/osrelease", "6.12.1\n"),
            ("proc/sys/kernel/io_uring_disabled", "0\n"),
            ("proc/sys/fs/nr_open", "1073741816\n"),
            ("proc/sys/fs/file-nr", "1000\t0\t9223372036854775807\n"),
            ("proc/sys/net/core/somaxconn", "4096\n"),
            ("proc/sys/net/ipv4/tcp_max_syn_backlog", "8192\n"),
            ("proc/sys/net/ipv4/tcp_mem", "1000000 2000000 4000000\n"),
            ("proc/sys/net/ipv4/tcp_rmem", "4096\t131072\t6291456\n"),
            ("proc/sys/net/ipv4/tcp_wmem", "4096\t16384\t4194304\n"),
            ("proc/sys/net/ipv4/ip_local_port_range", "1024\t65535\n"),
            ("sys/kernel/mm/transparent_hugepage/enabled", "[always] madvise never\n"),
            ("sys/devices/system/cpu/online", "0-3\n"),
            ("sys/devices/system/cpu/isolated", "\n"),
            ("sys/fs/cgroup/cpu.max", "max 100000\n"),
        ] {
            fake.set(path, text);
        }
        fake
    }

    fn set(&self, path: &str, text: &str) {
        let path = self.0.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn check(&self, line: &str) -> (Vec<Finding>, Capacity) {
        let args: Vec<String> = line.split_whitespace().map(String::from).collect();
        let config = Config::from_args(&args, &|_| None).unwrap();
        let host = Host::new(Root::new(&self.0), &config);
        let capacity = Capacity::of(&host);
        (host.look(&capacity), capacity)
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

const LINE: &str = "--workers 3 --memory_limit_bytes 64G";

#[test]
fn nothing_is_wrong_with_a_good_machine() {
    let (findings, capacity) = Fake::good().check(LINE);
    let wrong: Vec<_> = findings.iter().filter(|one| one.status != Status::Ok).collect();
    assert!(wrong.is_empty(), "{wrong:?}");
    assert_eq!(capacity.connections(), 1_000_000);
    let text = as_text(&findings, &capacity, false);
    assert!(
        text.contains("This host can hold 1,000,000 connections, bounded by --max_conn"),
        "{text}"
    );
    assert!(text.ends_with(" ok, 0 warn, 0 fail\n") && !text.contains('\x1b'), "{text}");
    assert!(as_text(&findings, &capacity, true).contains("\x1b[32mok"));
    let json: Value = serde_json::from_str(&as_json(&findings, &capacity)).unwrap();
    assert_eq!(json["capacity"]["bounded_by"], "--max_connections");
    assert_eq!(json["checks"].as_array().unwrap().len(), findings.len());
}

/// Checks that a file with this text, on a machine that is otherwise good, is found.
fn finds(path: &str, text: &str, name: &str, status: Status, fix: &str) {
    let fake = Fake::good();
    fake.set(path, text);
    let (findings, _) = fake.check(LINE);
    let finding = findings.iter().find(|finding| finding.name == name).unwrap();
    assert_eq!(finding.status, status, "{finding:?}");
    assert!(finding.fix.contains(fix), "{finding:?}");
}

#[test]
fn each_limit_that_is_too_low_is_found_with_the_setting_that_mends_it() {
    let (warn, fail) = (Status::Warn, Status::Fail);
    let few_files = LIMITS.replace("1048576  ", "20000    ");
    finds("proc/self/limits", &few_files, "open files", warn, "LimitNOFILE=336");
    let no_files = LIMITS.replace("1048576  ", "64       ");
    finds("proc/self/limits", &no_files, "open files", fail, "ulimit -n");
    let no_threads = LIMITS.replace("96365", "4    ");
    finds("proc/self/limits", &no_threads, "threads", fail, "TasksMax=");
    finds("proc/sys/kernel/osrelease", "5.10.0\n", "kernel", fail, "Linux 6.1");
    finds("proc/sys/fs/nr_open", "1024\n", "fs.nr_open", warn, "sysctl -w fs.nr_open=336");
    finds("proc/sys/fs/file-nr", "900 0 1000\n", "fs.file-max", warn, "file-max=1001000");
    let group = "sys/fs/cgroup/system.slice/cpu.max";
    finds(group, "150000 100000\n", "CPU quota", warn, "at least 4");
}

#[test]
fn each_setting_of_tcp_that_is_too_low_is_found_with_the_command_that_mends_it() {
    let warn = Status::Warn;
    finds("proc/sys/net/core/somaxconn", "128\n", "net.core.somaxconn", warn, "=4096");
    for (name, text, fix) in [
        ("tcp_max_syn_backlog", "512\n", "sysctl -w net.ipv4.tcp_max_syn_backlog=4096"),
        ("tcp_mem", "1 2 3\n", "sysctl -w net.ipv4.tcp_mem='1000000 1500000 2000000'"),
        ("tcp_wmem", "1 2 3\n", "sysctl -w net.ipv4.tcp_wmem='4096 131072 6291456'"),
        ("ip_local_port_range", "50000 60999\n", "='1024 65535'"),
    ] {
        let path = format!("proc/sys/net/ipv4/{name}");
        finds(&path, text, &format!("net.ipv4.{name}"), warn, fix);
    }
    let max = "proc/sys/net/netfilter/nf_conntrack_max";
    finds(max, "65536\n", "conntrack", warn, "nf_conntrack_max=2000000");
}

#[test]
fn each_part_of_the_host_that_is_wrong_is_found_with_the_command_that_mends_it() {
    let (warn, fail) = (Status::Warn, Status::Fail);
    let disabled = "proc/sys/kernel/io_uring_disabled";
    finds(disabled, "2\n", "kernel.io_uring_disabled", fail, "=0");
    finds(disabled, "1\n", "kernel.io_uring_disabled", warn, "group");
    let status = "proc/self/status";
    finds(status, "Cpus_allowed_list:\t0-1\n", "cores", warn, "--workers 1 unless");
    finds(status, "THP_enabled:\t1\n", "huge pages", warn, "echo madvise");
    let governor = "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor";
    finds(governor, "powersave\n", "frequency", warn, "cpupower");
    finds("proc/meminfo", "MemAvailable: 1048576 kB\n", "memory", warn, "--memory_limit");
    finds("proc/meminfo", "SwapTotal: 1048576 kB\n", "swap", warn, "MemorySwapMax=0");
}

#[test]
fn conntrack_counts_what_is_left() {
    let fake = Fake::good();
    fake.set("proc/sys/net/netfilter/nf_conntrack_max", "262144\n");
    fake.set("proc/sys/net/netfilter/nf_conntrack_count", "250000\n");
    let (findings, capacity) = fake.check(LINE);
    let finding = findings.iter().find(|finding| finding.name == "conntrack").unwrap();
    assert_eq!((finding.status, capacity.connections()), (Status::Fail, 12_144), "{finding:?}");
}

#[test]
fn rings_that_do_not_fit_fail_only_where_they_count() {
    for (kernel, status) in [("6.14.2", Status::Fail), ("6.12.0", Status::Ok)] {
        let fake = Fake::good();
        fake.set("proc/self/limits", &LIMITS.replace("8388608", "65536  "));
        fake.set("proc/sys/kernel/osrelease", kernel);
        let (findings, _) = fake.check(LINE);
        let finding = findings.iter().find(|finding| finding.name == "locked memory").unwrap();
        assert_eq!(finding.status, status, "{finding:?}");
    }
}

#[test]
fn the_lowest_bound_is_the_capacity() {
    let fake = Fake::good();
    fake.set("proc/self/limits", &LIMITS.replace("1048576  ", "20000    "));
    let (_, capacity) = fake.check(LINE);
    assert!((59_000..59_900).contains(&capacity.connections()), "{capacity:?}");
    assert!(capacity.as_text().contains("bounded by open files of the workers"));
    let (_, capacity) = fake.check("--workers 3 --memory_limit_bytes 100M");
    // 85 of 100 MiB, less the program and three workers, at 4,710 bytes.
    assert!((13_000..13_500).contains(&capacity.connections()), "{capacity:?}");
    assert!(capacity.as_text().contains("bounded by memory"), "{capacity:?}");
}

#[test]
fn an_empty_tree_is_unknown_and_no_panic() {
    let fake = Fake::good();
    fs::remove_dir_all(&fake.0).unwrap();
    let (findings, _) = fake.check(LINE);
    assert!(findings.iter().all(|finding| finding.status != Status::Fail), "{findings:?}");
}

#[test]
fn numbers_are_grouped() {
    for (number, text) in [(0, "0"), (999, "999"), (1_000, "1,000"), (1_234_567, "1,234,567")] {
        assert_eq!(grouped(number), text);
    }
    assert_eq!([bytes(2_048), bytes(5 << 20), bytes(64 << 30)], ["2 KiB", "5 MiB", "64 GiB"]);
}
