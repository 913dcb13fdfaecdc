//! Which program this is.

/// As in Cargo.toml.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The commit that it was built from, `-dirty` with changes that are in none, or `unknown`.
pub const COMMIT: &str = env!("WS_CLUSTER_COMMIT");
/// Both, as SemVer writes them.
pub const FULL: &str = concat!(env!("CARGO_PKG_VERSION"), "+", env!("WS_CLUSTER_COMMIT"));
