//! Connections to Redis.

use crate::io::sync::{sleep, timeout};
use crate::io::threads;
use crate::wire::redis_url::{Endpoint, RedisUrl};
use monoio::net::{TcpStream, UnixStream};
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::mpsc;
use std::time::Duration;

const CONNECT_TIMEOUT: Duration = Duration::from_millis(1_000);

/// An open connection.
pub(super) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// Connects to Redis.
pub(super) async fn connect(url: &RedisUrl) -> io::Result<Stream> {
    match &url.endpoint {
        Endpoint::Unix { path } => in_time(UnixStream::connect(path)).await.map(Stream::Unix),
        Endpoint::Tcp { host, port } => {
            let mut last_error = io::Error::new(io::ErrorKind::NotFound, "its name has no address");
            for address in resolve(host, *port).await? {
                match in_time(TcpStream::connect_addr(address)).await {
                    Ok(stream) => {
                        stream.set_nodelay(true)?;
                        return Ok(Stream::Tcp(stream));
                    }
                    Err(error) => last_error = error,
                }
            }
            Err(last_error)
        }
    }
}

async fn in_time<S>(connect: impl Future<Output = io::Result<S>>) -> io::Result<S> {
    let timed_out = || io::Error::from(io::ErrorKind::TimedOut);
    timeout(CONNECT_TIMEOUT, connect).await.ok_or_else(timed_out)?
}

/// Resolves a host on a thread of its own: the system's resolver blocks.
async fn resolve(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    if let Ok(address) = host.parse() {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    let (sender, receiver) = mpsc::channel();
    let host = host.to_owned();
    threads::spawn("resolve", move || {
        let found = (&*host, port).to_socket_addrs().map(|found| found.collect::<Vec<_>>());
        // If it took too long, the receiver is gone.
        let _ = sender.send(found);
    })?;
    for _ in 0..20 {
        match receiver.try_recv() {
            Ok(found) => return found,
            Err(mpsc::TryRecvError::Empty) => sleep(Duration::from_millis(50)).await,
            Err(mpsc::TryRecvError::Disconnected) => break,
        }
    }
    Err(io::Error::new(io::ErrorKind::TimedOut, "its name did not resolve in time"))
}
