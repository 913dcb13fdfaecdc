//! The file descriptors of a worker: each has a table of its own, and the limit of open files
//! (RLIMIT_NOFILE) holds for each table.
//!
//! Descriptors for the worker itself (listeners, rings, links to Redis) are set apart, then a share
//! for HTTP connections, then one for handshakes. The rest is for open WebSocket connections. So
//! there is always a descriptor to accept a connection and refuse it with an error response, for
//! `/healthz`, and for a new link to Redis.

use super::shared::Shared;
use std::cell::Cell;
use std::fs;

/// Descriptors that a worker may need besides those it has at its start and those of its clients:
/// the links to Redis (two sockets, a second descriptor of each) and their predecessors, name
/// resolution, and a socket that is about to be refused.
const OWN_RESERVE: usize = 32;
/// About what a worker has opened when it begins, besides one descriptor for each worker.
const EXPECTED_OWN: usize = 28;
/// Each share (of HTTP connections, of handshakes) is all sockets divided by this, within the
/// bounds below.
const SHARE: usize = 256;
const MIN_SHARE: usize = 16;
const MAX_SHARE: usize = 1_024;
/// Minimum number of client sockets for a usable service.
const MIN_SOCKETS: usize = 64;

/// How many sockets of each kind a worker may have.
#[derive(Debug)]
pub struct Descriptors {
    /// Descriptors that the worker itself needs.
    own: usize,
    /// Sockets of all kinds together.
    sockets: usize,
    /// Sockets that WebSocket connections leave to HTTP, and that open ones leave to handshakes.
    share: usize,
    max_handshakes: Cell<usize>,
    max_http: Cell<usize>,
    /// HTTP connections that are open now.
    http: Cell<usize>,
}

/// The open-files limit is too low for a node.
#[derive(Debug, thiserror::Error)]
#[error(
    "the limit of open files is {limit}, and a worker needs at least {needed}: raise it \
     (LimitNOFILE= in a systemd unit, ulimit -n in a shell, --ulimit nofile= with docker)"
)]
pub struct TooFewFiles {
    limit: usize,
    needed: usize,
}

impl Descriptors {
    /// Counts the descriptors of the calling thread, which has opened what it needs for itself.
    pub fn of_this_thread(shared: &Shared) -> Result<Self, TooFewFiles> {
        // Includes the descriptor of the directory itself, which is closed again.
        let own = fs::read_dir("/proc/thread-self/fd").map_or(OWN_RESERVE, Iterator::count);
        let settings = &shared.at_start;
        Self::new(shared.open_files, settings.max_handshakes, settings.max_http_connections, own)
    }

    /// Estimates the shares of a worker that does not exist yet.
    pub fn expected(
        open_files: usize,
        workers: usize,
        max_handshakes: usize,
        max_http: usize,
    ) -> Result<Self, TooFewFiles> {
        Self::new(open_files, max_handshakes, max_http, EXPECTED_OWN + workers)
    }

    /// Fails if no worker could serve anybody with this limit.
    pub fn check_limit(open_files: usize) -> Result<(), TooFewFiles> {
        Self::new(open_files, 1, 1, 0).map(drop)
    }

    fn new(
        limit: usize,
        max_handshakes: usize,
        max_http: usize,
        own: usize,
    ) -> Result<Self, TooFewFiles> {
        let own = own + OWN_RESERVE;
        let needed = own + MIN_SOCKETS;
        if limit < needed {
            return Err(TooFewFiles { limit, needed });
        }
        let sockets = limit - own;
        Ok(Self {
            own,
            sockets,
            share: share(sockets),
            max_handshakes: Cell::new(max_handshakes.min(sockets / 4)),
            max_http: Cell::new(max_http.min(sockets / 2)),
            http: Cell::new(0),
        })
    }

    /// Returns the maximum number of open WebSocket connections while HTTP connections keep to
    /// their share.
    pub fn max_connections(&self) -> usize {
        self.sockets - 2 * self.share
    }

    /// Returns the open-files limit that leaves room for this number of open WebSocket connections.
    pub fn open_files_for(&self, connections: usize) -> usize {
        // The shares add to the total from which they are computed: 2 * 2 / 256 is far below 1.
        let shares = 2 * share(connections + 2 * share(connections) + 2 * MIN_SHARE);
        self.own + connections + shares
    }

    /// Returns the number of WebSocket connections that may be open now.
    pub fn connections(&self) -> usize {
        self.websocket_sockets().saturating_sub(self.share)
    }

    /// Returns the number of sockets that the WebSocket port may have now: open, in a handshake or
    /// closing.
    pub fn websocket_sockets(&self) -> usize {
        self.sockets - self.http.get().max(self.share)
    }

    /// Returns the maximum number of handshakes with an incomplete request.
    pub fn max_handshakes(&self) -> usize {
        self.max_handshakes.get()
    }

    /// Sets the maxima of the configuration, which these sockets may not allow.
    pub fn set_maxima(&self, max_handshakes: usize, max_http: usize) {
        self.max_handshakes.set(max_handshakes.min(self.sockets / 4));
        self.max_http.set(max_http.min(self.sockets / 2));
    }

    /// Returns the number of HTTP connections that there may be now, besides `websockets` sockets
    /// of the other port.
    pub fn http_connections(&self, websockets: usize) -> usize {
        let left = self.sockets.saturating_sub(websockets + self.share);
        self.max_http.get().min(left.max(self.share))
    }

    /// Sets the number of HTTP connections that are open now.
    pub fn set_http(&self, count: usize) {
        self.http.set(count);
    }
}

fn share(sockets: usize) -> usize {
    (sockets / SHARE).clamp(MIN_SHARE, MAX_SHARE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptors(open_files: usize) -> Result<Descriptors, TooFewFiles> {
        let (max_handshakes, max_http, own) = (1_024, 10_000, 20);
        Descriptors::new(open_files, max_handshakes, max_http, own)
    }

    #[test]
    fn http_and_handshakes_always_find_a_descriptor() {
        for open_files in [116, 256, 1_024, 20_000, 1_048_576] {
            let table = descriptors(open_files).unwrap();
            let all = open_files - 20 - OWN_RESERVE;
            // WebSocket connections take all they may; HTTP has its share.
            let open = table.connections();
            assert_eq!(open, table.max_connections());
            assert!(open > 0 && table.max_handshakes() > 0, "{open_files}");
            assert!(table.http_connections(table.websocket_sockets()) >= MIN_SHARE);
            assert!(table.websocket_sockets() - open >= MIN_SHARE);
            // HTTP connections take all they may; the rest is for the other port.
            let http = table.http_connections(0);
            table.set_http(http);
            assert!(http <= all / 2 && http + table.websocket_sockets() <= all);
            assert!(table.connections() + MIN_SHARE <= table.websocket_sockets());
        }
    }

    #[test]
    fn the_limit_that_is_advised_is_enough_and_not_too_much() {
        for connections in [10, 1_000, 4_096, 20_000, 262_000, 1_000_000] {
            let advised = descriptors(20_000).unwrap().open_files_for(connections);
            let room = descriptors(advised.max(116)).unwrap().max_connections();
            assert!(room >= connections && room <= connections + 64, "{connections}: {room}");
        }
    }

    #[test]
    fn a_limit_that_serves_nobody_is_refused_with_the_figure() {
        let error = descriptors(100).unwrap_err().to_string();
        assert!(error.contains("is 100, and a worker needs at least 116"), "{error}");
        assert!(error.contains("LimitNOFILE="), "{error}");
    }
}
