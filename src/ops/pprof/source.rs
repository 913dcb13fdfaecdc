//! Names of source files.

/// Removes the build machine's directories from a source file's name: this repository's files begin
/// with `src/`, those of crates with their name and version, those of the standard library with
/// `core/`, `alloc/` or `std/`.
pub fn shorten(file: &str) -> &str {
    if let Some(own) = file.strip_prefix(concat!(env!("CARGO_MANIFEST_DIR"), "/")) {
        return own;
    }
    // The directory before the part to keep, and the number of folders after it to drop: the
    // registry's name; the repository's and the commit's; the compiler's commit.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_named_without_the_machine_that_built_them() {
        let own = concat!(env!("CARGO_MANIFEST_DIR"), "/src/io/ring.rs");
        for (file, short) in [
            (own, "src/io/ring.rs"),
            (
                "/home/me/.cargo/registry/src/index.example-1/monoio-0.2.4/src/driver/mod.rs",
                "monoio-0.2.4/src/driver/mod.rs",
            ),
            ("/x/git/checkouts/io-uring-12ab/34cd/io-uring/src/lib.rs", "io-uring/src/lib.rs"),
            ("/rustc/0123abcd/library/core/src/sync/atomic.rs", "core/src/sync/atomic.rs"),
            ("/rust/deps/hashbrown-0.16.1/src/raw.rs", "hashbrown-0.16.1/src/raw.rs"),
            ("/x/lib/rustlib/src/rust/library/std/src/sys/mod.rs", "std/src/sys/mod.rs"),
            (
                "/x/registry/src/i/libmimalloc-sys-0.1.49/c_src/mimalloc/v3/src/alloc.c",
                "libmimalloc-sys-0.1.49/c_src/mimalloc/v3/src/alloc.c",
            ),
            ("/rustc/cut", "cut"),
            ("", ""),
            ("[kernel]", "[kernel]"),
        ] {
            assert_eq!(shorten(file), short);
        }
    }
}
