//! The WebSocket port itself: accepting its connections, and closing it.

use super::{EVENTS_PER_LOOK, WsServer};
use crate::io::listener::Listener;
use crate::io::ring::{OperationKind, OperationToken};
use crate::io::sys::{self, BlockingMode};
use crate::state::counters::Refusal;
use crate::types::MonotonicMs;
use std::time::{Duration, Instant};

/// Connections accepted per event of the listener, and the time after which other events come
/// first: each connection may bring a complete handshake.
const ACCEPTS_PER_EVENT: usize = 64;
const ACCEPTS: Duration = Duration::from_micros(300);
/// The same where several workers accept from one socket: the others are idle and get the rest.
const ACCEPTS_OF_SHARED: usize = 4;
/// How long a drain waits for the requests of sockets that were accepted before it.
const NEWCOMER_MS: u64 = 500;
/// Indexes of the listeners' tokens.
const WEBSOCKET_PORT: u32 = 0;
pub(super) const HTTP_PORT: u32 = 1;

impl WsServer {
    /// Closes this port. Connections that wait there are accepted first, unless the socket is also
    /// held by the process that passed it: they are left to the next one.
    pub fn close_port(&mut self, now: MonotonicMs) {
        self.is_port_closing = true;
        self.newcomers_until = now + NEWCOMER_MS;
        match self.listener.as_ref().is_some_and(Listener::is_passed) {
            true => self.stop_listening(),
            false => self.accept(),
        }
    }

    /// Returns whether requests of sockets that were accepted before the port was closed may still
    /// come.
    pub fn has_newcomers(&self, now: MonotonicMs) -> bool {
        self.listener.is_some() || self.handshakes.len() > 0 && now < self.newcomers_until
    }

    /// Stops accepting connections on this port at once.
    pub fn stop_listening(&mut self) {
        if let Some(listener) = self.listener.take() {
            listener.close();
        }
    }

    /// Waits for connections on the HTTP port; [`WsServer::take_http_ready`] reports them once.
    pub fn poll_http_port(&mut self, listener: &Listener) {
        let token = OperationToken::new(OperationKind::Listener, HTTP_PORT, 0);
        self.ring.poll_listener(&listener.socket, listener.is_shared, token);
    }

    /// Returns whether connections wait on the HTTP port.
    pub fn take_http_ready(&mut self) -> bool {
        std::mem::take(&mut self.is_http_ready)
    }

    pub(super) fn poll_listener(&mut self) {
        if let Some(Listener { socket, is_shared, .. }) = &self.listener {
            let token = OperationToken::new(OperationKind::Listener, WEBSOCKET_PORT, 0);
            self.ring.poll_listener(socket, *is_shared, token);
        }
    }

    pub(super) fn accept(&mut self) {
        let began = Instant::now();
        let is_shared = self.listener.as_ref().is_some_and(|listener| listener.is_shared);
        let most = if is_shared { ACCEPTS_OF_SHARED } else { ACCEPTS_PER_EVENT };
        for accepted in 1..=most {
            let Some(listener) = &self.listener else { return };
            match sys::accept(&listener.socket, BlockingMode::NonBlocking) {
                Ok((fd, peer)) => {
                    if self.make_room() {
                        self.begin_handshake(fd, peer);
                    } else {
                        self.refuse_at_once(fd, peer, Refusal::OpenFiles);
                    }
                }
                Err(error) if sys::is_not_now(&error) => {
                    if self.is_port_closing {
                        return self.stop_listening();
                    }
                    break;
                }
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    // Out of descriptors or memory: the next tick tries again.
                    self.shared.ws_accepts.handle(&error);
                    self.counters.accept_errors.add(1);
                    self.is_accept_paused = true;
                    return;
                }
            }
            if accepted % EVENTS_PER_LOOK == 0 && began.elapsed() >= ACCEPTS {
                break;
            }
        }
        self.poll_listener();
    }
}
