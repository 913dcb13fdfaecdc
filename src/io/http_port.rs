//! The HTTP port of one worker.

use super::listener::Listener;
use super::sync::Notify;
use super::sys::{self, BlockingMode};
use monoio::net::TcpStream;
use std::cell::{Cell, Ref, RefCell};
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::task::{Context, Poll};

/// Connections that are accepted before other tasks have a turn.
const ACCEPTS_PER_ROUND: usize = 16;
/// The same where several workers accept from one socket: the others are idle and get the rest.
const ACCEPTS_OF_SHARED: usize = 4;

pub struct HttpPort {
    /// `None`: it is closed.
    listener: RefCell<Option<Listener>>,
    /// Raised when connections wait to be accepted, and when the port is to be closed.
    changed: Notify,
    is_closing: Cell<bool>,
}

impl HttpPort {
    pub fn new(listener: Listener) -> Self {
        let listener = RefCell::new(Some(listener));
        Self { listener, changed: Notify::default(), is_closing: Cell::new(false) }
    }

    /// Notes that connections wait to be accepted.
    pub fn handle_ready(&self) {
        self.changed.notify();
    }

    /// Closes the port. Connections that wait there are accepted first, unless the socket is also
    /// held by the process that passed it: they are left to the next one.
    pub fn close(&self) {
        self.is_closing.set(true);
        if self.listener.borrow().as_ref().is_some_and(Listener::is_passed) {
            self.stop();
        }
        self.changed.notify();
    }

    /// Stops accepting connections at once.
    pub fn stop(&self) {
        if let Some(listener) = self.listener.take() {
            listener.close();
        }
    }

    /// Whether the port is to be closed once no connection waits there.
    pub fn is_closing(&self) -> bool {
        self.is_closing.get()
    }

    /// Waits until connections may wait, or the port is to be closed.
    pub fn poll_changed(&self, task: &Context<'_>) -> Poll<()> {
        self.changed.poll(task)
    }

    pub fn listener(&self) -> Ref<'_, Option<Listener>> {
        self.listener.borrow()
    }

    /// Accepts the next connection, from a peer with this address; `None`: the port is closed.
    pub fn accept(&self) -> Option<io::Result<(TcpStream, IpAddr)>> {
        let listener = self.listener.borrow();
        let accepted = sys::accept(&listener.as_ref()?.socket, BlockingMode::Blocking);
        Some(accepted.and_then(|(fd, peer)| {
            let peer = peer.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
            Ok((TcpStream::from_std(fd.into())?, peer))
        }))
    }

    /// Returns the number of connections to accept before other tasks have a turn.
    pub fn accepts_per_round(&self) -> usize {
        let is_shared = |listener: &Listener| listener.is_shared;
        match self.listener.borrow().as_ref().is_some_and(is_shared) {
            true => ACCEPTS_OF_SHARED,
            false => ACCEPTS_PER_ROUND,
        }
    }
}
