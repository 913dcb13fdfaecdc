//! What a node checks of its machine before its first thread exists, and refuses to start without.
//! `doctor` checks the same, part by part.

use super::error::{Needs, NodeError, system};
use super::ports::{PortState, Wanted};
use crate::config::Config;
use crate::io::descriptors::{Descriptors, TooFewFiles};
use crate::io::ring::Ring;
use crate::io::{clock, sys};
use crate::ops::logs::timestamp;
use crate::types::{SnowflakeClock, WallMs};

/// Checks everything, raises the limit of open files, and returns that limit.
pub(super) fn check(needs: &Needs) -> Result<usize, NodeError> {
    clock(clock::wall())?;
    let open_files = sys::raise_open_files();
    let open_files = open_files.map_err(system("raising the limit of open files"))? as usize;
    Descriptors::check_limit(open_files)?;
    ring(needs)?;
    Ok(open_files)
}

/// Fails if the clock is before the epoch of ids. Ids would be unique with any clock, but expiries
/// and signatures would be checked against a wrong one, and ids of the next run would not follow
/// those of this one.
pub fn clock(now: WallMs) -> Result<(), NodeError> {
    if now.value() >= SnowflakeClock::EPOCH_MS {
        return Ok(());
    }
    Err(NodeError::Clock { now: timestamp::rfc3339(now.value()) })
}

/// Checks that io_uring works. Reports once what every thread would report.
pub fn ring(needs: &Needs) -> Result<(), NodeError> {
    Ring::probe().map_err(|error| needs.no_ring(error))
}

/// Returns about how many WebSocket connections each worker has room for.
pub fn room(config: &Config, open_files: usize) -> Result<usize, TooFewFiles> {
    let settings = &config.settings;
    Descriptors::expected(
        open_files,
        settings.workers,
        settings.max_handshakes,
        settings.max_http_connections,
    )
    .map(|descriptors| descriptors.max_connections())
}

/// Opens every port for a moment.
pub fn ports(config: &Config) -> Vec<PortState> {
    Wanted::of(config).try_all()
}
