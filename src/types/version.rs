//! Version of this program.

/// The version in Cargo.toml.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The commit it was built from, with `-dirty` if there were uncommitted changes, or `unknown`.
pub const COMMIT: &str = env!("WS_CLUSTER_COMMIT");
/// Both, in the format of SemVer.
pub const FULL: &str = concat!(env!("CARGO_PKG_VERSION"), "+", env!("WS_CLUSTER_COMMIT"));
