//! `bench drain`: the receiving process of `bench bare-send` and `bench bare-ping`. It only reads
//! and counts, and answers if asked to.

use std::io::{self, Error, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};

use argh::FromArgs;

use crate::sys;

/// Opens sockets to a bare loop and reads them empty; started by bare-send itself.
#[derive(FromArgs)]
#[argh(subcommand, name = "drain")]
pub struct Args {
    /// the port of the bare loop on 127.0.0.1
    #[argh(option)]
    port: u16,
    /// sockets to open
    #[argh(option)]
    connections: usize,
    /// bytes of one message
    #[argh(option)]
    bytes: usize,
    /// the core to run on (default: any)
    #[argh(option)]
    core: Option<usize>,
    /// send the 6 bytes of a pong for whatever comes
    #[argh(switch)]
    answer: bool,
    /// confirm every round that all sockets got; this many may be on the way
    #[argh(option)]
    outstanding: Option<usize>,
    /// never sleep: ask again at once
    #[argh(switch)]
    spin: bool,
}

/// A source address has some 28,000 ports; once half are in use, the kernel searches for long.
const PORTS_PER_ADDRESS: usize = 10_000;
/// An empty pong, masked with zeros.
const PONG: &[u8] = b"\x8a\x80\0\0\0\0";
const CONTROL: u64 = u64::MAX;

pub fn run(args: &Args) -> io::Result<()> {
    if let Some(core) = args.core {
        sys::pin_to_core(core)?;
    }
    sys::allow_descriptors(args.connections as u64 + 64)?;
    let server = SocketAddrV4::new(Ipv4Addr::LOCALHOST, args.port);
    let mut control = TcpStream::connect(server)?;
    control.set_nodelay(true)?;
    let epoll = sys::Epoll::new()?;
    epoll.add(control.as_raw_fd(), CONTROL)?;
    let sockets = open_all(args.connections, server)?;
    for (index, socket) in sockets.iter().enumerate() {
        epoll.add(socket.as_raw_fd(), index as u64)?;
    }
    control.write_all(&[1])?;

    let mut rounds = Rounds::new(args);
    let mut buffer = vec![0; 64 << 10];
    let mut events = sys::Epoll::events(512);
    loop {
        for token in epoll.wait(&mut events, args.spin)? {
            let Some(socket) = sockets.get(token as usize) else { return Ok(()) };
            let count = match sys::receive_now(socket.as_raw_fd(), &mut buffer) {
                Ok(0) => return Ok(()),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(()),
                Err(error) => return Err(error),
            };
            if args.answer {
                sys::send_now(socket.as_raw_fd(), PONG)?;
            }
            let complete = rounds.received(token as usize, count);
            if complete > 0 && control.write_all(&vec![1; complete]).is_err() {
                return Ok(());
            }
        }
    }
}

fn open_all(connections: usize, server: SocketAddrV4) -> io::Result<Vec<OwnedFd>> {
    let process = std::process::id();
    (0..connections)
        .map(|index| {
            let address = (index / PORTS_PER_ADDRESS) as u8 + 1;
            let source = Ipv4Addr::new(127, 2, process as u8, address);
            sys::connect_from(source, server)
                .map_err(|error| Error::other(format!("socket {index} from {source}: {error}")))
        })
        .collect()
}

/// Counts, per round in flight, the sockets that have received all of it.
struct Rounds {
    message_bytes: u64,
    socket_bytes: Vec<u64>,
    /// Indexed by round modulo length. The sender keeps at most `len - 1` rounds in flight, so an
    /// entry is free again when its next round begins. Empty: nothing is confirmed.
    sockets_done: Vec<usize>,
}

impl Rounds {
    fn new(args: &Args) -> Self {
        Self {
            message_bytes: args.bytes as u64,
            socket_bytes: vec![0; args.connections],
            sockets_done: vec![0; args.outstanding.map_or(0, |outstanding| outstanding + 1)],
        }
    }

    /// Returns the number of rounds that these bytes completed on the last socket that lacked them.
    fn received(&mut self, socket: usize, bytes: usize) -> usize {
        if self.sockets_done.is_empty() {
            return 0;
        }
        let before = self.socket_bytes[socket] / self.message_bytes;
        self.socket_bytes[socket] += bytes as u64;
        let after = self.socket_bytes[socket] / self.message_bytes;
        let places = self.sockets_done.len() as u64;
        let mut complete = 0;
        for round in before..after {
            let done = &mut self.sockets_done[(round % places) as usize];
            *done += 1;
            if *done == self.socket_bytes.len() {
                *done = 0;
                complete += 1;
            }
        }
        complete
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_is_complete_when_the_last_socket_has_it_whole() {
        let mut rounds =
            Rounds { message_bytes: 10, socket_bytes: vec![0; 2], sockets_done: vec![0; 3] };
        assert_eq!(rounds.received(0, 20), 0);
        assert_eq!(rounds.received(1, 9), 0);
        assert_eq!(rounds.received(1, 1), 1);
        assert_eq!(rounds.received(1, 20), 1);
        assert_eq!(rounds.received(0, 10), 1);
    }
}
