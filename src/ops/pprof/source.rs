//! Names of source files, and what they tell of the functions in them.

/// A source file's name without the places of the machine that built the program: this
/// repository's files begin with `src/`, those of crates with their name and version, those of the
/// standard library with `core/`, `alloc/` or `std/`.
pub fn shorten(file: &str) -> &str {
    if let Some(own) = file.strip_prefix(concat!(env!("CARGO_MANIFEST_DIR"), "/")) {
        return own;
    }
    // What stands before the part to keep, and how many folders follow it that are not kept: a
    // registry's name; a repository's and a commit's; a compiler's commit.
    for (before, folders) in [
        ("/registry/src/", 1),
        ("/git/checkouts/", 2),
        ("/rustc/", 2),
        ("/rust/deps/", 0),
        ("/rustlib/src/rust/library/", 0),
    ] {
        if let Some((_, rest)) = file.split_once(before) {
            return rest.splitn(folders + 1, '/').nth(folders).unwrap_or(rest);
        }
    }
    file
}

/// The module that a (shortened) Rust file holds, as far as its name tells: line tables name an
/// inlined function `poll`, and only its file says whose.
pub fn module(file: &str) -> Option<String> {
    let (place, inside) = file.strip_suffix(".rs")?.split_once("src/")?;
    let krate = match place.trim_end_matches('/') {
        "" => env!("CARGO_PKG_NAME"),
        place => without_version(place),
    };
    let mut module = krate.replace('-', "_");
    for part in inside.split('/').filter(|part| !matches!(*part, "lib" | "main" | "mod")) {
        module.push_str("::");
        module.push_str(part);
    }
    Some(module)
}

/// `monoio-0.2.4` to `monoio`.
fn without_version(place: &str) -> &str {
    let name = place.split('/').next().unwrap_or(place);
    match name.rsplit_once('-') {
        Some((name, version)) if version.starts_with(|c: char| c.is_ascii_digit()) => name,
        _ => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_named_without_the_machine_that_built_them() {
        let own = concat!(env!("CARGO_MANIFEST_DIR"), "/src/io/ring.rs");
        for (file, short, of_module) in [
            (own, "src/io/ring.rs", Some("ws_cluster::io::ring")),
            (
                "/home/me/.cargo/registry/src/index.example-1/monoio-0.2.4/src/driver/mod.rs",
                "monoio-0.2.4/src/driver/mod.rs",
                Some("monoio::driver"),
            ),
            (
                "/x/git/checkouts/io-uring-12ab/34cd/io-uring/src/lib.rs",
                "io-uring/src/lib.rs",
                Some("io_uring"),
            ),
            (
                "/rustc/0123abcd/library/core/src/sync/atomic.rs",
                "core/src/sync/atomic.rs",
                Some("core::sync::atomic"),
            ),
            (
                "/rust/deps/hashbrown-0.16.1/src/raw.rs",
                "hashbrown-0.16.1/src/raw.rs",
                Some("hashbrown::raw"),
            ),
            (
                "/x/lib/rustlib/src/rust/library/std/src/sys/sync/mod.rs",
                "std/src/sys/sync/mod.rs",
                Some("std::sys::sync"),
            ),
            (
                "/x/registry/src/i/libmimalloc-sys-0.1.49/c_src/mimalloc/v3/src/alloc.c",
                "libmimalloc-sys-0.1.49/c_src/mimalloc/v3/src/alloc.c",
                None,
            ),
            ("", "", None),
            ("[kernel]", "[kernel]", None),
        ] {
            assert_eq!(shorten(file), short);
            assert_eq!(module(short).as_deref(), of_module, "{short}");
        }
    }
}
