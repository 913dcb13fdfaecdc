//! Peers that break every rule they can, as fast as they can.

use super::Rng;
use super::support::{Http, Raw, handshake, masked, open_tcp, signed, unmasked};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

pub struct Hammer {
    ws: SocketAddr,
    http: SocketAddr,
    pid: &'static str,
    secret: &'static str,
    rng: Rng,
}

impl Hammer {
    pub fn new(
        ws: SocketAddr,
        http: SocketAddr,
        (pid, secret): (&'static str, &'static str),
        rng: Rng,
    ) -> Self {
        Self { ws, http, pid, secret, rng }
    }

    /// Does everything at least once.
    pub fn strike_until(mut self, over: &AtomicBool) {
        let strikes: [fn(&mut Self); 8] = [
            Self::noise,
            Self::half_a_request,
            Self::bad_handshake,
            Self::bad_frame,
            Self::reset,
            Self::half_a_frame,
            Self::bad_request,
            Self::answers_unread,
        ];
        let mut struck = 0;
        while struck < strikes.len() || !over.load(SeqCst) {
            strikes[struck % strikes.len()](&mut self);
            struck += 1;
        }
    }

    /// Returns a valid target, with the tags that the others are pushed by.
    fn target(&self) -> String {
        let params =
            [("pid", self.pid), ("uid", "hammer"), ("tags", "news,x,y"), ("device", "web")];
        format!("/ws/connect?{}", signed("/ws/connect", &params, self.secret))
    }

    fn either_port(&mut self) -> SocketAddr {
        *self.rng.pick(&[self.ws, self.http])
    }

    fn noise(&mut self) {
        let noise: Vec<u8> = (0..200).map(|_| self.rng.number() as u8).collect();
        let address = self.either_port();
        // The server may refuse it before all of it is written.
        let _ = open_tcp(address).write_all(&noise);
    }

    fn half_a_request(&mut self) {
        let request = handshake(&self.target());
        let half = self.rng.below(request.len());
        let mut stream = open_tcp(self.either_port());
        stream.write_all(&request.as_bytes()[..half]).unwrap();
        if self.rng.chance(50) {
            stream.shutdown(Shutdown::Write).unwrap();
            let _ = stream.read(&mut [0; 512]);
        }
    }

    fn bad_handshake(&mut self) {
        let good = handshake(&self.target());
        let long = format!("Host: x\r\nX: {}\r\n", "x".repeat(9_000));
        let (from, to, status) = *self.rng.pick(&[
            ("sign=", "sign=0", 401),
            ("/ws/connect", "/elsewhere", 404),
            ("GET ", "POST ", 405),
            ("Upgrade: websocket", "Upgrade: h2c", 426),
            ("Version: 13", "Version: 12", 426),
            ("Key: dGhl", "Key: ", 400),
            ("pid=", "pid=no", 403),
            ("Host: x\r\n", &long, 431),
            ("HTTP/1.1\r\n", "HTTP/9\r\n", 400),
        ]);
        let answer = Http::open(self.ws).ask(&good.replacen(from, to, 1));
        assert_eq!(answer.status, status, "{from} to {to}: {}", answer.body);
        assert!(answer.body.starts_with(r#"{"code":0,"msg":""#), "{}", answer.body);
    }

    fn bad_frame(&mut self) {
        let (frame, code) = match self.rng.below(8) {
            0 => (unmasked(0x81, b"bare"), 1002),
            1 => (masked(0x83, b"reserved"), 1002),
            2 => (masked(0xc1, b"compressed"), 1002),
            3 => (masked(0x80, b"of nothing"), 1002),
            4 => (masked(0x89, &[0; 126]), 1002),
            5 => (masked(0x81, b"\xed\xa0\x80"), 1007),
            6 => (masked(0x88, &999u16.to_be_bytes()), 1002),
            _ => (masked(0x82, &[0; (64 << 10) + 1]), 1009),
        };
        let mut raw = Raw::open(self.ws, &self.target());
        raw.stream.write_all(&[masked(0x81, b"{"), frame].concat()).unwrap();
        assert_eq!(raw.close_code(), code);
    }

    /// Closes without having read: this sends a RST.
    fn reset(&mut self) {
        let mut stream = open_tcp(self.ws);
        stream.write_all(handshake(&self.target()).as_bytes()).unwrap();
        assert_eq!(stream.peek(&mut [0]).unwrap(), 1);
    }

    fn half_a_frame(&mut self) {
        let frame = masked(0x81, &[b'x'; 300]);
        let half = self.rng.below(frame.len());
        let mut raw = Raw::open(self.ws, &self.target());
        raw.stream.write_all(&masked(0x01, b"begun ")).unwrap();
        raw.stream.write_all(&frame[..half]).unwrap();
    }

    fn bad_request(&mut self) {
        let (request, status) = *self.rng.pick(&[
            ("POST /ws/push HTTP/1.1\r\nHost: x\r\n\r\n", 411),
            ("POST /ws/push HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400),
            ("POST /ws/push HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n", 413),
            ("DELETE /ws/push HTTP/1.1\r\nHost: x\r\n\r\n", 405),
            ("GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n", 404),
            ("GET /ws/push?pid=red&data=x&sign=0 HTTP/1.1\r\nHost: x\r\n\r\n", 405),
            (
                "POST /ws/push?pid=red&data=x&sign=0 HTTP/1.1\r\nHost: x\r\n\
                 Content-Length: 0\r\n\r\n",
                401,
            ),
            ("GET /healthz HTTP/1.1\r\nHost: x\r\nno colon\r\n\r\n", 400),
        ]);
        let answer = Http::open(self.http).ask(request);
        assert_eq!(answer.status, status, "{request}: {}", answer.body);
    }

    /// Sends a hundred requests in one write, and closes after the first answer.
    fn answers_unread(&mut self) {
        let mut stream = open_tcp(self.http);
        let requests = "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n".repeat(100);
        stream.write_all(requests.as_bytes()).unwrap();
        assert_eq!(stream.peek(&mut [0]).unwrap(), 1);
    }
}
