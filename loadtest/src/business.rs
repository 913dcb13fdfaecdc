//! Business servers, the other side of requests and events. They run on the first thread.

use std::net::SocketAddrV4;

use crate::client::{Clients, Opening};
use crate::identity::{Identity, Kind};
use crate::run::{Common, Reactor};
use crate::series::ThreadLive;

/// The business servers to open.
pub struct Business {
    pub servers: u64,
    /// The nodes that they connect to in turn.
    pub ws: Vec<SocketAddrV4>,
    pub events: &'static str,
}

/// Their epoll tokens begin here; those of clients are below it.
pub const TOKENS: u64 = 1 << 32;

impl Business {
    /// Opens them and returns once each has its welcome. No other connections may be open on this
    /// reactor.
    pub fn open(&self, common: &Common, reactor: &mut Reactor) -> Result<Clients, String> {
        let identity = Identity {
            ws: self.ws.clone(),
            tags: String::new(),
            device: String::new(),
            kind: Kind::Business { events: self.events },
            ..common.identity.clone()
        };
        let opening = Opening {
            concurrency: common.concurrency,
            rate: 0.0,
            timeout_ns: common.timeout_ns,
            sources: Vec::new(),
            cycle: None,
        };
        let mut servers = Clients::new(identity, opening, 0, self.servers as usize);
        servers.tokens_from = TOKENS;
        servers.sends = true;
        reactor.open_all(&mut servers, self.servers, &ThreadLive::default())?;
        match self.servers - servers.open {
            0 => Ok(servers),
            missing => {
                let why = servers.failures.to_text();
                Err(format!("{missing} of {} business servers are not open: {why}", self.servers))
            }
        }
    }
}
