//! Tells the program which commit it was built from, and whether it has frame pointers: RUSTFLAGS
//! in the environment, and `cargo install` from elsewhere, leave .cargo/config.toml out, and stacks
//! are cut short then.

use std::env;
use std::fs;
use std::path::Path;
use std::process::Command;

/// What the program is made of.
const SOURCES: [&str; 5] = ["src", "docs/asyncapi.yaml", "build.rs", "Cargo.toml", "Cargo.lock"];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=CARGO_ENCODED_RUSTFLAGS");
    println!("cargo::rustc-check-cfg=cfg(frame_pointers)");
    let flags = env::var("CARGO_ENCODED_RUSTFLAGS").unwrap_or_default();
    let wanted = ["force-frame-pointers=yes", "force-frame-pointers=non-leaf"];
    if flags.split('\x1f').any(|flag| wanted.iter().any(|wanted| flag.ends_with(wanted))) {
        println!("cargo::rustc-cfg=frame_pointers");
    }
    println!("cargo::rerun-if-env-changed=WS_CLUSTER_COMMIT");
    println!("cargo::rustc-env=WS_CLUSTER_COMMIT={}", commit());
}

/// What a packager says, what Git says, or what `cargo package` wrote down.
fn commit() -> String {
    let given = env::var("WS_CLUSTER_COMMIT").unwrap_or_default();
    let is_commit = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'.';
    if !given.is_empty() && given.bytes().all(is_commit) {
        return given;
    }
    of_work_tree().or_else(of_package).unwrap_or_else(|| "unknown".into())
}

/// The tree's own commit, not that of a repository that the tree was only unpacked in.
fn of_work_tree() -> Option<String> {
    let root = env::var("CARGO_MANIFEST_DIR").ok()?;
    let top = fs::canonicalize(git(&["rev-parse", "--show-toplevel"])?).ok()?;
    if top != fs::canonicalize(&root).ok()? {
        return None;
    }
    let commit = git(&["rev-parse", "--short=10", "HEAD"])?;
    watch_head();
    SOURCES.iter().for_each(|path| println!("cargo::rerun-if-changed={path}"));
    // Git leaves its index as it is: nothing is built anew for that.
    let status = ["--no-optional-locks", "status", "--porcelain", "--untracked-files=no", "--"];
    let changed = git(&[&status[..], &SOURCES[..]].concat());
    let is_dirty = changed.is_none_or(|lines| !lines.is_empty());
    Some(if is_dirty { format!("{commit}-dirty") } else { commit })
}

/// Cargo runs this again when another commit is checked out. A path that does not exist would make
/// it do so every time.
fn watch_head() {
    let branch = git(&["symbolic-ref", "-q", "HEAD"]).unwrap_or_default();
    for name in ["HEAD", &branch, "packed-refs"] {
        let path = git(&["rev-parse", "--git-path", name]).unwrap_or_default();
        if Path::new(&path).is_file() {
            println!("cargo::rerun-if-changed={path}");
        }
    }
}

fn of_package() -> Option<String> {
    let info = fs::read_to_string(".cargo_vcs_info.json").ok()?;
    let (_, rest) = info.split_once("\"sha1\": \"")?;
    rest.get(..10).map(String::from)
}

fn git(args: &[&str]) -> Option<String> {
    let output = Command::new("git").args(args).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim_end().to_owned())
}
