//! The lines that a development node prints for the person who started it.

use super::Addresses;
use crate::config::{DEV_PID, DEV_SECRET};
use crate::wire::sign::{Secret, sign_hex};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Returns two commands to paste into other terminals: one connects, one pushes; both are signed.
pub fn first_push(addresses: &Addresses) -> String {
    let secret = Secret::new(DEV_SECRET.as_bytes());
    let connect = format!("pid={DEV_PID}&tags=news&uid=alice");
    let connect_sign = sign_hex(&secret, &[b"/ws/connect\n", connect.as_bytes()]);
    let body = format!(r#"{{"pid":"{DEV_PID}","tags":["news"],"data":{{"hello":"world"}}}}"#);
    let push_sign = sign_hex(&secret, &[b"/ws/push\n", body.as_bytes()]);
    let Addresses { ws, http, metrics, pprof, swagger } = addresses;
    let [ws, http, metrics, pprof, swagger] = [ws, http, metrics, pprof, swagger].map(reachable);
    format!(
        "
Connect (any WebSocket client; here Python: pip install websockets):
  python3 -m websockets 'ws://{ws}/ws/connect?{connect}&sign={connect_sign}'

Push to the tag 'news':
  curl -s 'http://{http}/ws/push' -H 'Content-Type: application/json' \\
    -H 'X-Sign: {push_sign}' \\
    -d '{body}'

Live page and API: http://{swagger}/   Metrics: http://{metrics}/metrics
Profiles: http://{pprof}/debug/pprof/   Stop: Ctrl-C   All flags: --help
"
    )
}

/// Returns an address that a client on this machine can connect to, in place of an unspecified one.
fn reachable(address: &SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_addresses_can_be_pasted() {
        for (bound, wanted) in [
            ("127.0.0.1:1", "127.0.0.1:1"),
            ("10.0.0.9:1", "10.0.0.9:1"),
            ("0.0.0.0:1", "127.0.0.1:1"),
            ("[::1]:1", "[::1]:1"),
            ("[::]:1", "[::1]:1"),
        ] {
            let at = bound.parse().unwrap();
            let addresses = Addresses { ws: at, http: at, metrics: at, pprof: at, swagger: at };
            let text = first_push(&addresses);
            assert!(text.contains(&format!("'ws://{wanted}/ws/connect?")), "{text}");
            assert!(text.contains(&format!("'http://{wanted}/ws/push'")), "{text}");
            assert!(text.contains(&format!(" http://{wanted}/metrics\n")), "{text}");
        }
    }
}
