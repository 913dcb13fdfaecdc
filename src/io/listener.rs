//! Listening sockets: one for each worker and port, sharing the port (SO_REUSEPORT).

use super::sys;
use socket2::{Domain, Protocol, Socket, Type};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::thread;
use std::time::{Duration, Instant};

/// Connections that the kernel keeps until a worker takes them.
const BACKLOG: i32 = 4096;
/// How long a start waits for a port to be free.
const RESTART_PATIENCE: Duration = Duration::from_millis(300);

/// Bounds what the kernel takes for a socket that it cannot send yet (TCP_NOTSENT_LOWAT); what is
/// accepted inherits it. A client that reads nothing holds 3.9 MB otherwise. What is under way to a
/// distant client is not bounded by it, as SO_SNDBUF would. 0: no bound.
fn bound_unsent(socket: &Socket, bytes: usize) {
    if bytes > 0 {
        sys::bound_unsent(socket, bytes);
    }
}

/// Holds a port for this process without listening on it, so that every worker may bind it after;
/// with port 0 the kernel chooses. Fails where another process listens on it already: SO_REUSEPORT
/// alone would let two servers of one user share it unnoticed.
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

/// Fails where somebody listens already. The kernel takes the listeners of a process that has just
/// ended down with its rings, a moment later: a restart waits for that.
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

/// Listens on a port that is reserved.
/// `unsent_bytes`: see [`bound_unsent`].
pub fn listen(address: SocketAddr, unsent_bytes: usize) -> io::Result<TcpListener> {
    let socket = socket(address)?;
    socket.set_reuse_port(true)?;
    socket.bind(&address.into())?;
    // What is accepted inherits it: small frames go at once instead of waiting for more (Nagle).
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
        // `::` takes IPv4 as well, whatever net.ipv6.bindv6only says.
        socket.set_only_v6(false)?;
    }
    Ok(socket)
}
