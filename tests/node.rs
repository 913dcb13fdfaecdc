//! The real binary, with tungstenite as a client that is not ours: a push reaches exactly the
//! matching clients, in order, none twice, with one worker and with three.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use tungstenite::protocol::frame::coding::CloseCode;
use tungstenite::{Message, WebSocket};
use ws_cluster::wire::sign::{Secret, sign_hex};

const PATIENCE: Duration = Duration::from_secs(10);

/// A node on free ports; killed when the test ends.
struct Node {
    process: Child,
    ws: SocketAddr,
    http: SocketAddr,
}

impl Node {
    fn start(workers: usize) -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_ws-cluster"))
            .args(["--bind", "127.0.0.1", "--pin", "false", "--node", "200"])
            .args(["--ws_port", "0", "--http_port", "0", "--prometheus_port", "0"])
            .args(["--workers", &workers.to_string()])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let address = |name: &str| {
            let found = line.split_whitespace().find_map(|word| word.strip_prefix(name));
            found.unwrap_or_else(|| panic!("{name} in {line}")).parse().unwrap()
        };
        let (ws, http) = (address("ws="), address("http="));
        Self { process, ws, http }
    }

    /// Connects; `query` is sorted and percent-encoded.
    fn client(&self, query: &str) -> Client {
        let sign = sign(&format!("/ws/connect\n{query}"));
        let stream = TcpStream::connect(self.ws).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let url = format!("ws://{}/ws/connect?{query}&sign={sign}", self.ws);
        let (socket, _) = tungstenite::client(url, stream).unwrap();
        let mut client = Client { socket, cid: String::new() };
        let welcome = client.read();
        client.cid = welcome["client_id"].as_str().unwrap().to_owned();
        let expected = json!({
            "type": "connect", "code": 1, "msg": "success", "client_id": client.cid, "node": 200,
        });
        assert_eq!(welcome, expected);
        client
    }

    fn pusher(&self) -> Pusher {
        Pusher(BufReader::new(TcpStream::connect(self.http).unwrap()))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

struct Client {
    socket: WebSocket<TcpStream>,
    cid: String,
}

impl Client {
    fn read(&mut self) -> Value {
        match self.socket.read().unwrap() {
            Message::Text(text) => serde_json::from_str(&text).unwrap(),
            other => panic!("not a text: {other:?}"),
        }
    }

    fn ask(&mut self, message: Value) -> Value {
        self.socket.send(Message::text(message.to_string())).unwrap();
        self.read()
    }

    /// The data of all pushes up to the one whose data is `mark`.
    fn until(&mut self, mark: &str) -> Vec<Value> {
        let mut pushed = Vec::new();
        loop {
            let message = self.read();
            assert_eq!(message["type"], "push");
            if message["data"] == mark {
                return pushed;
            }
            pushed.push(message["data"].clone());
        }
    }
}

/// One keep-alive connection: what is pushed on it keeps its order.
struct Pusher(BufReader<TcpStream>);

impl Pusher {
    fn push(&mut self, message: Value) {
        let (status, answer) = self.post("/ws/push", &message.to_string());
        assert_eq!((status, &answer["code"]), (200, &json!(1)), "{answer}");
    }

    fn post(&mut self, path: &str, body: &str) -> (u16, Value) {
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n\
             X-Sign: {}\r\nContent-Length: {}\r\n\r\n{body}",
            sign(&format!("{path}\n{body}")),
            body.len()
        );
        self.0.get_mut().write_all(request.as_bytes()).unwrap();
        let mut status = String::new();
        self.0.read_line(&mut status).unwrap();
        let mut length = 0;
        loop {
            let mut line = String::new();
            self.0.read_line(&mut line).unwrap();
            match line.trim_end().split_once(": ") {
                Some(("Content-Length", value)) => length = value.parse().unwrap(),
                Some(_) => {}
                None => break,
            }
        }
        let mut answer = vec![0; length];
        self.0.read_exact(&mut answer).unwrap();
        (status[9..12].parse().unwrap(), serde_json::from_slice(&answer).unwrap())
    }
}

fn sign(text: &str) -> String {
    sign_hex(&Secret::new(b"dev-secret"), &[text.as_bytes()])
}

fn with_one_worker_and_with_three(check: impl Fn(&Node)) {
    for workers in [1, 3] {
        check(&Node::start(workers));
    }
}

#[test]
fn a_push_reaches_exactly_the_matching_clients_in_order_none_twice() {
    with_one_worker_and_with_three(|node| {
        let mut clients: Vec<Client> = (0..24)
            .map(|n| node.client(&format!("pid=1&tags=all%2Codd{}&uid=u{}", n % 2, n % 5)))
            .collect();
        let mut pusher = node.pusher();
        let mut wanted: Vec<Vec<Value>> = vec![Vec::new(); clients.len()];
        for number in 0..300 {
            let (odd, uid, left_out) = (number % 2, number % 5, number % clients.len());
            let except = clients[left_out].cid.clone();
            pusher.push(json!({
                "pid": 1, "data": {"n": number}, "tags": [format!("odd{odd}"), "nobody"],
                "uids": [format!("u{uid}"), format!("u{uid}")], "except_cids": [except],
            }));
            for (index, wanted) in wanted.iter_mut().enumerate() {
                if index % 2 == odd && index % 5 == uid && index != left_out {
                    wanted.push(json!({"n": number}));
                }
            }
        }
        pusher.push(json!({"pid": 1, "data": "end"}));
        for (client, wanted) in clients.iter_mut().zip(wanted) {
            assert!(!wanted.is_empty());
            assert_eq!(client.until("end"), wanted);
        }
    });
}

#[test]
fn a_subscription_that_was_answered_is_in_force() {
    with_one_worker_and_with_three(|node| {
        let mut client = node.client("pid=1&uid=u1");
        let mut pusher = node.pusher();
        for turn in 0..50 {
            let tag = format!("t{turn}");
            let answer = client.ask(json!({"type": "subscribe", "tags": [tag], "id": "s"}));
            assert_eq!((&answer["code"], &answer["id"]), (&json!(1), &json!("s")));
            pusher.push(json!({"pid": 1, "tags": [tag], "data": turn}));
            assert_eq!(client.read()["data"], turn);
            let answer = client.ask(json!({"type": "unsubscribe", "tags": tag}));
            assert_eq!(answer["tags"], json!([]));
        }
    });
}

#[test]
fn a_close_is_answered_and_others_stay() {
    with_one_worker_and_with_three(|node| {
        let mut stays = node.client("pid=1&uid=u1");
        let mut leaves = node.client("pid=1&uid=u1");
        leaves.socket.close(None).unwrap();
        let answer = leaves.socket.read().unwrap();
        let Message::Close(Some(frame)) = answer else { panic!("not a close: {answer:?}") };
        assert_eq!(frame.code, CloseCode::Normal);
        let mut pusher = node.pusher();
        pusher.push(json!({"pid": 1, "uids": ["u1"], "data": "still here"}));
        assert_eq!(stays.read()["data"], "still here");
    });
}

#[test]
fn big_messages_arrive_whole() {
    with_one_worker_and_with_three(|node| {
        let mut clients: Vec<Client> = (0..6).map(|_| node.client("pid=1&uid=u1")).collect();
        let mut pusher = node.pusher();
        for bytes in [0, 100, 125, 126, 16_000, 16_384, 65_535, 65_536, 900_000] {
            let data = "d".repeat(bytes);
            pusher.push(json!({"pid": "1", "data": data}));
            for client in &mut clients {
                assert!(client.read()["data"] == data, "{bytes} bytes");
            }
        }
    });
}
