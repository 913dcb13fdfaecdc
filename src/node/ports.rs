//! The ports of a node. Main reserves them before the threads listen on them, so that a problem
//! with a port is found once and reported by name.

use super::error::{NodeError, PortFlag};
use crate::config::{Bind, Config, OpsPort};
use crate::io::listener::{Listener, listen, prepare_passed, reserve};
use crate::io::sys;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;

/// The addresses on which a node listens.
#[derive(Debug, Clone, Copy)]
pub struct Addresses {
    pub ws: SocketAddr,
    pub http: SocketAddr,
    pub metrics: SocketAddr,
    pub pprof: SocketAddr,
    pub swagger: SocketAddr,
}

/// One port of a node before it starts.
#[derive(Debug)]
pub struct PortState {
    pub flag: &'static str,
    pub address: SocketAddr,
    /// Why it cannot be opened.
    pub error: Option<NodeError>,
    /// Any other will do.
    pub may_differ: bool,
}

/// The requested ports.
pub(super) struct Wanted {
    ws: PortFlag,
    http: PortFlag,
    metrics: PortFlag,
    pprof: PortFlag,
    swagger: PortFlag,
    /// Sockets passed by a service manager, which take the place of own ones.
    passed_ws: Vec<TcpListener>,
    passed_http: Vec<TcpListener>,
    workers: usize,
    /// Whether any free port will do if the requested one is in use.
    any_pprof: bool,
    any_swagger: bool,
    /// `--send_buffer_bytes`.
    unsent_bytes: usize,
}

impl Wanted {
    pub(super) fn of(config: &Config) -> Self {
        let port = |flag, port, bind: &Bind| PortFlag { flag, port, bind: bind.clone() };
        let OpsPort { port: pprof, is_given: is_pprof_given } = config.ports.pprof;
        let OpsPort { port: swagger, is_given: is_swagger_given } = config.ports.swagger;
        Self {
            passed_ws: Vec::new(),
            passed_http: Vec::new(),
            workers: config.settings.workers,
            ws: port("--ws_port", config.ports.ws, &config.bind),
            http: port("--http_port", config.ports.http, &config.http_bind),
            metrics: port("--prometheus_port", config.ports.prometheus, &config.ops_bind),
            pprof: port("--pprof_port", pprof, &config.ops_bind),
            swagger: port("--swagger_port", swagger, &config.ops_bind),
            any_pprof: !is_pprof_given,
            any_swagger: !is_swagger_given,
            unsent_bytes: config.settings.memory.send_buffer_bytes,
        }
    }

    /// Uses these sockets, each with its name, instead of own ones: by name, or by port if the name
    /// is another one, such as that of the unit.
    pub(super) fn with_passed(mut self, passed: Vec<(OwnedFd, String)>) -> Result<Self, NodeError> {
        for (number, (fd, name)) in (3..).zip(passed) {
            self.assign(number, fd, &name).map_err(NodeError::Passed)?;
        }
        for (name, passed) in [("ws", &self.passed_ws), ("http", &self.passed_http)] {
            let (sockets, workers) = (passed.len(), self.workers);
            if sockets > workers {
                return Err(NodeError::Passed(format!(
                    "{sockets} sockets were passed for {name}, but nobody would accept from more \
                     than one for each of the {workers} workers: pass fewer, or raise --workers"
                )));
            }
        }
        Ok(self)
    }

    fn assign(&mut self, number: u32, fd: OwnedFd, name: &str) -> Result<(), String> {
        if !sys::is_tcp_listener(&fd) {
            return Err(format!(
                "descriptor {number} ({name:?}) is not a listening TCP socket: use ListenStream= \
                 with a port, and no Accept=yes, in the socket unit"
            ));
        }
        let socket = TcpListener::from(fd);
        let port = socket.local_addr().map_err(|error| error.to_string())?.port();
        match name {
            "ws" => self.passed_ws.push(socket),
            "http" => self.passed_http.push(socket),
            _ if port == self.ws.port => self.passed_ws.push(socket),
            _ if port == self.http.port => self.passed_http.push(socket),
            _ => {
                let (ws, http) = (self.ws.port, self.http.port);
                return Err(format!(
                    "descriptor {number} is named {name:?} and listens on port {port}, which is \
                     neither --ws_port ({ws}) nor --http_port ({http}): set FileDescriptorName=ws \
                     or FileDescriptorName=http in the socket unit, or change the port"
                ));
            }
        }
        Ok(())
    }

    /// Reserves the ports, which are held until every thread listens on its own.
    pub(super) fn reserve(&self) -> Result<(Addresses, [TcpListener; 5]), NodeError> {
        let (ws_held, ws) = passed_or_own(&self.passed_ws, &self.ws)?;
        let (http_held, http) = passed_or_own(&self.passed_http, &self.http)?;
        let (metrics_held, metrics) = take(&self.metrics)?;
        let (pprof_held, pprof) = take_or_any(&self.pprof, self.any_pprof)?;
        let (swagger_held, swagger) = take_or_any(&self.swagger, self.any_swagger)?;
        let addresses = Addresses { ws, http, metrics, pprof, swagger };
        Ok((addresses, [ws_held, http_held, metrics_held, pprof_held, swagger_held]))
    }

    /// Takes every port for a moment, and tells which cannot be had.
    pub(super) fn try_all(&self) -> Vec<PortState> {
        let ports = [
            (&self.ws, false),
            (&self.http, false),
            (&self.metrics, false),
            (&self.pprof, self.any_pprof),
            (&self.swagger, self.any_swagger),
        ];
        let state = |(port, may_differ): (&PortFlag, bool)| PortState {
            flag: port.flag,
            address: port.address(),
            error: take(port).err(),
            may_differ,
        };
        ports.map(state).into()
    }

    /// Listens on the WebSocket port and the HTTP port, for the worker with this index. Passed
    /// sockets are dealt out to the workers; with fewer sockets than workers several accept from
    /// one.
    pub(super) fn listen_for_worker(
        &self,
        index: usize,
        at: &Addresses,
    ) -> Result<[Listener; 2], NodeError> {
        let listen = |passed: &[TcpListener], port: &PortFlag, at| match passed {
            [] => listen_on(port, at, self.unsent_bytes).map(Listener::own),
            _ => {
                let socket = &passed[index % passed.len()];
                // In this thread's own descriptor table.
                let own = socket.try_clone().map_err(|error| port.failed(error))?;
                prepare_passed(&own, self.unsent_bytes).map_err(|error| port.failed(error))?;
                Ok(Listener::passed(own, passed.len() < self.workers))
            }
        };
        Ok([
            listen(&self.passed_ws, &self.ws, at.ws)?,
            listen(&self.passed_http, &self.http, at.http)?,
        ])
    }

    /// Listens on the ports of the metrics, the profiles and the pages.
    pub(super) fn listen_for_ops(&self, at: &Addresses) -> Result<[TcpListener; 3], NodeError> {
        let listen = |port, at| listen_on(port, at, self.unsent_bytes);
        Ok([
            listen(&self.metrics, at.metrics)?,
            listen(&self.pprof, at.pprof)?,
            listen(&self.swagger, at.swagger)?,
        ])
    }
}

fn passed_or_own(
    passed: &[TcpListener],
    port: &PortFlag,
) -> Result<(TcpListener, SocketAddr), NodeError> {
    let held =
        |socket: &TcpListener| -> io::Result<_> { Ok((socket.try_clone()?, socket.local_addr()?)) };
    match passed {
        [] => take(port),
        [socket, ..] => held(socket).map_err(|error| port.failed(error)),
    }
}

fn take(port: &PortFlag) -> Result<(TcpListener, SocketAddr), NodeError> {
    reserve(port.address()).map_err(|error| port.failed(error))
}

fn take_or_any(port: &PortFlag, may_differ: bool) -> Result<(TcpListener, SocketAddr), NodeError> {
    match take(port) {
        Err(NodeError::Port { error, .. }) if may_differ && is_in_use(&error) => {
            let any = PortFlag { port: 0, ..port.clone() };
            let other = take(&any)?;
            tracing::warn!("{} {} is in use: using {} instead", port.flag, port.address(), other.1);
            Ok(other)
        }
        result => result,
    }
}

fn is_in_use(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::AddrInUse
}

fn listen_on(
    port: &PortFlag,
    address: SocketAddr,
    unsent_bytes: usize,
) -> Result<TcpListener, NodeError> {
    listen(address, unsent_bytes).map_err(|error| port.failed(error))
}
