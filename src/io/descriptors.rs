//! The file descriptors of a worker: each has a table of its own, and the limit of open files
//! (RLIMIT_NOFILE) holds for each table.
//!
//! What the worker needs itself (listeners, rings, links to Redis) is set apart, then a share for
//! HTTP connections, then one for handshakes. The rest is for open WebSocket connections. So there
//! is always a descriptor to accept a connection with and to refuse it in words, for `/healthz`,
//! and for a new link to Redis.

use super::shared::Settings;
use std::cell::Cell;
use std::fs;

/// Descriptors that a worker may need beside those that it has at its start and those of its
/// clients: the links to Redis (two sockets, a second descriptor of each) and their predecessors,
/// name resolution, a socket that is about to be refused.
const OWN_RESERVE: usize = 32;
/// The shares of HTTP connections and of handshakes: this part of all, within these bounds.
const SHARE: usize = 256;
const MIN_SHARE: usize = 16;
const MAX_SHARE: usize = 1_024;
/// Fewer than this for clients are no service.
const MIN_SOCKETS: usize = 64;

/// How many sockets of each kind a worker may have.
#[derive(Debug)]
pub struct Descriptors {
    /// What the worker needs itself.
    own: usize,
    /// Of all kinds together.
    sockets: usize,
    /// What WebSocket connections leave to HTTP, and open ones to handshakes.
    share: usize,
    max_handshakes: usize,
    max_http: usize,
    /// HTTP connections that are open now.
    http: Cell<usize>,
}

/// The limit of open files that a node cannot work with.
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
    /// Of the calling thread, which has opened what it needs for itself.
    pub fn of_this_thread(settings: &Settings) -> Result<Self, TooFewFiles> {
        // The directory's own descriptor is among them, and closed again.
        let own = fs::read_dir("/proc/thread-self/fd").map_or(OWN_RESERVE, Iterator::count);
        let Settings { open_files, max_handshakes, max_http_connections, .. } = *settings;
        Self::new(open_files, max_handshakes, max_http_connections, own)
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
            max_handshakes: max_handshakes.min(sockets / 4),
            max_http: max_http.min(sockets / 2),
            http: Cell::new(0),
        })
    }

    /// Open WebSocket connections, while HTTP connections keep to their share.
    pub fn max_connections(&self) -> usize {
        self.sockets - 2 * self.share
    }

    /// The limit of open files that leaves room for this number of open WebSocket connections.
    pub fn open_files_for(&self, connections: usize) -> usize {
        // A share of the shares is theirs again: 2 * 2 / 256 is far below 1.
        let shares = 2 * share(connections + 2 * share(connections) + 2 * MIN_SHARE);
        self.own + connections + shares
    }

    /// WebSocket connections that may be open now.
    pub fn connections(&self) -> usize {
        self.websocket_sockets().saturating_sub(self.share)
    }

    /// Sockets of the WebSocket port that there may be now: open, in a handshake, or closing.
    pub fn websocket_sockets(&self) -> usize {
        self.sockets - self.http.get().max(self.share)
    }

    /// Handshakes whose request has not arrived whole.
    pub fn max_handshakes(&self) -> usize {
        self.max_handshakes
    }

    /// HTTP connections that there may be now, beside `websockets` sockets of the other port.
    pub fn http_connections(&self, websockets: usize) -> usize {
        let left = self.sockets.saturating_sub(websockets + self.share);
        self.max_http.min(left.max(self.share))
    }

    /// Tells the number of HTTP connections that are open now.
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
            // WebSocket connections take all they may, HTTP has its share.
            let open = table.connections();
            assert_eq!(open, table.max_connections());
            assert!(open > 0 && table.max_handshakes() > 0, "{open_files}");
            assert!(table.http_connections(table.websocket_sockets()) >= MIN_SHARE);
            assert!(table.websocket_sockets() - open >= MIN_SHARE);
            // HTTP connections take all they may: what is left is for the other port.
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
