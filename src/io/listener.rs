//! Listening sockets: one per worker and port, sharing the port (SO_REUSEPORT).

use super::sys;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener};
use std::thread;
use std::time::{Duration, Instant};

/// Connections that the kernel queues until a worker accepts them.
pub const BACKLOG: i32 = 4096;
/// How long a start waits for a port to become free.
const RESTART_PATIENCE: Duration = Duration::from_millis(300);

/// A listening socket of one worker.
#[derive(Debug)]
pub struct Listener {
    pub socket: TcpListener,
    /// Several workers accept from it.
    pub is_shared: bool,
    is_passed: bool,
}

impl Listener {
    /// A socket that this worker alone has opened.
    pub fn own(socket: TcpListener) -> Self {
        Self { socket, is_shared: false, is_passed: false }
    }

    /// A socket that the parent process has opened, and holds as well.
    pub fn passed(socket: TcpListener, is_shared: bool) -> Self {
        Self { socket, is_shared, is_passed: true }
    }

    pub fn is_passed(&self) -> bool {
        self.is_passed
    }

    /// Stops accepting. A poll that is still pending keeps an own socket open, and the shutdown
    /// stops it from listening; a passed one goes on to queue connections for the next process.
    pub fn close(self) {
        if !self.is_passed {
            sys::shutdown(&self.socket, Shutdown::Both);
        }
    }
}

/// Prepares a socket that was passed to this process as [`listen`] prepares its own.
pub fn prepare_passed(socket: &TcpListener, unsent_bytes: usize) -> io::Result<()> {
    let socket = SockRef::from(socket);
    socket.set_nonblocking(true)?;
    socket.set_nodelay(true)?;
    bound_unsent(&socket, unsent_bytes);
    Ok(())
}

/// Bounds the bytes that the kernel takes for a socket and cannot send yet (TCP_NOTSENT_LOWAT);
/// accepted sockets inherit it. Without it, a client that reads nothing holds 3.9 MB. Unlike
/// SO_SNDBUF, it does not bound what is in flight to a distant client. 0: no bound.
fn bound_unsent(socket: &Socket, bytes: usize) {
    if bytes > 0 {
        sys::bound_unsent(socket, bytes);
    }
}

/// Reserves a port for this process without listening on it, so that every worker may bind it
/// later; with port 0 the kernel chooses one. Fails if another process listens on it already:
/// SO_REUSEPORT alone would let two servers of one user share it unnoticed.
pub fn reserve(address: SocketAddr) -> io::Result<(TcpListener, SocketAddr)> {
    if address.port() != 0 {
        probe(address)?;
    }
    let socket = socket(address)?;
    socket.set_reuse_port(true)?;
    socket.bind(&address.into())?;
    let held: TcpListener = socket.into();
    let address = held.local_addr()?;
    Ok((held, address))
}

/// Fails if a process listens on the port already. When a process ends, the kernel removes its
/// listeners a moment later, together with its rings: a restart waits for that.
fn probe(address: SocketAddr) -> io::Result<()> {
    let until = Instant::now() + RESTART_PATIENCE;
    loop {
        let probe = socket(address)?;
        match probe.bind(&address.into()).and_then(|()| probe.listen(1)) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < until => {
                thread::sleep(Duration::from_millis(20));
            }
            result => return result,
        }
    }
}

/// Listens on a reserved port.
/// `unsent_bytes`: see [`bound_unsent`].
pub fn listen(address: SocketAddr, unsent_bytes: usize) -> io::Result<TcpListener> {
    let socket = socket(address)?;
    socket.set_reuse_port(true)?;
    socket.bind(&address.into())?;
    // Accepted sockets inherit it: small frames are sent at once instead of waiting for more
    // (Nagle).
    socket.set_nodelay(true)?;
    bound_unsent(&socket, unsent_bytes);
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn socket(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    if address.is_ipv6() {
        // `::` accepts IPv4 as well, whatever net.ipv6.bindv6only is.
        socket.set_only_v6(false)?;
    }
    Ok(socket)
}
