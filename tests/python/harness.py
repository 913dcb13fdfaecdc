"""Servers for the tests, and clients that share no code with them."""

import contextlib
import hashlib
import hmac
import http.client
import itertools
import json
import os
import queue
import re
import signal
import socket
import struct
import subprocess
import threading
import time
import urllib.parse
import urllib.request

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect as ws_connect

SECRET = "dev-secret"
# A secret that `--env prod` accepts.
PROD_SECRET = "a-secret-for-prod"
PATIENCE = 10.0
MARKS = itertools.count()
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BINARY = os.environ.get("WS_CLUSTER_BIN", os.path.join(ROOT, "target/debug/ws-cluster"))


# Signatures, implemented from the contract alone.


def hmac_hex(secret, text):
    text = text if isinstance(text, bytes) else text.encode()
    return hmac.new(secret.encode(), text, hashlib.sha256).hexdigest()


def canonical(params):
    quote = lambda text: urllib.parse.quote(str(text), safe="-._~")
    return "&".join(f"{quote(name)}={quote(params[name])}" for name in sorted(params))


def signed(path, params, secret=SECRET):
    """The parameters with their sign, as a query or a form."""
    sign = hmac_hex(secret, f"{path}\n{canonical(params)}")
    return urllib.parse.urlencode({**params, "sign": sign})


def sign_body(path, body, secret=SECRET):
    body = body if isinstance(body, bytes) else body.encode()
    return hmac_hex(secret, path.encode() + b"\n" + body)


def eventually(check, what, timeout=PATIENCE):
    """Waits until `check` returns something true, and returns that."""
    deadline = time.monotonic() + timeout
    while True:
        value = check()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout} s: {what}")
        threading.Event().wait(0.005)


PORTS = ("ws_port", "http_port", "prometheus_port", "pprof_port", "swagger_port")


class Server:
    """A running ws-cluster on free ports."""

    def __init__(
        self, *args, env=None, given=PORTS, bind="127.0.0.1", open_files=None, before=None,
        wrapper=(), pass_fds=(),
    ):
        command = ["prlimit", f"--nofile={open_files}"] if open_files else []
        command += [*wrapper, BINARY]
        if bind is not None:
            command += ["--bind", bind]
        for flag in given:
            command += [f"--{flag}", "0"]
        command += ["--pin", "false", *args]
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **(env or {})},
            preexec_fn=before,
            pass_fds=pass_fds,
        )
        self._kept = None
        self._kept_at = 0.0
        self.output = []
        self.errors = []
        self._lines = queue.Queue()
        self._readers = [
            threading.Thread(target=self._read, args=args, daemon=True)
            for args in ((self.process.stdout, self.output), (self.process.stderr, self.errors))
        ]
        for reader in self._readers:
            reader.start()
        ports = self._await_ports()
        self.ws, self.http, self.metrics_address, self.pprof, self.swagger = (
            (host.strip("[]"), int(port)) for host, port in (at.rsplit(":", 1) for at in ports)
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

    def _read(self, stream, lines):
        # A test may already have closed it.
        with contextlib.suppress(ValueError):
            for line in stream:
                lines.append(line)
                self._lines.put(line)

    def _await_ports(self):
        names = ("ws", "http", "metrics", "pprof", "swagger")
        pattern = re.compile("ws-cluster listening: " + " ".join(rf"{one}=(\S+)" for one in names))

        def listening():
            found = next(filter(None, map(pattern.search, list(self.output))), None)
            if found is None and self.process.poll() is not None:
                for reader in self._readers:
                    reader.join(PATIENCE)
                raise AssertionError(f"the server ended: {self.errors + self.output}")
            return found

        try:
            return eventually(listening, "the line that names the ports").groups()
        except AssertionError:
            self.process.kill()
            raise

    def signal(self, number):
        self.process.send_signal(number)

    def wait(self, timeout=PATIENCE):
        code = self.process.wait(timeout)
        for reader in self._readers:
            reader.join(PATIENCE)
        return code

    def stop(self):
        if self.process.poll() is None:
            self.signal(signal.SIGTERM)
            try:
                self.process.wait(1)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.process.wait(PATIENCE)
        if self._kept is not None:
            self._kept.close()
        for stream in (self.process.stdout, self.process.stderr):
            stream.close()

    # WebSocket.

    def connect_params(self, uid="u1", **params):
        params = {"pid": "1", "uid": uid, "type": "1", **params}
        return {name: value for name, value in params.items() if value is not None}

    def url(self, uid="u1", secret=SECRET, **params):
        host, port = self.ws
        host = f"[{host}]" if ":" in host else host
        query = signed("/ws/connect", self.connect_params(uid, **params), secret)
        return f"ws://{host}:{port}/ws/connect?{query}"

    def open(self, uid="u1", secret=SECRET, origin=None, **params):
        """Connects without reading anything."""
        url = self.url(uid, secret, **params)
        options = {"compression": None, "proxy": None, "max_size": None, "open_timeout": PATIENCE}
        return Client(ws_connect(url, origin=origin, **options))

    def client(self, uid="u1", **params):
        client = self.open(uid, **params)
        client.welcome = client.text()
        client.cid = json.loads(client.welcome)["client_id"]
        return client

    def business(self, events=None, uid=None, **params):
        """A business server's connection."""
        return self.client(uid, type="2", events=events, **params)

    # HTTP.

    def request(self, method, path, body=None, headers=None, at=None):
        connection = http.client.HTTPConnection(*(at or self.http), timeout=PATIENCE)
        with contextlib.closing(connection):
            connection.request(method, path, body=body, headers=headers or {})
            return Answer(connection.getresponse())

    def keep(self):
        """The keep-alive connection to this server: pushes on it keep their order."""
        idle = time.monotonic() - self._kept_at
        if self._kept is None or idle > 20:
            if self._kept is not None:
                self._kept.close()
            self._kept = http.client.HTTPConnection(*self.http, timeout=PATIENCE)
        self._kept_at = time.monotonic()
        return self._kept

    def post_json(self, path, body, secret=SECRET, headers=None):
        raw = body if isinstance(body, (bytes, str)) else json.dumps(body)
        raw = raw if isinstance(raw, bytes) else raw.encode()
        headers = {
            "Content-Type": "application/json",
            "X-Sign": sign_body(path, raw, secret),
            **(headers or {}),
        }
        kept = self.keep()
        kept.request("POST", path, body=raw, headers=headers)
        return Answer(kept.getresponse())

    def push(self, data, secret=SECRET, pid="1", **members):
        """Sends a JSON push, which must be accepted, and returns its message id."""
        body = {"pid": pid, "data": data, **members}
        answer = self.post_json("/ws/push", body, secret)
        assert answer.status == 200, answer.text
        assert answer.json["code"] == 1, answer.text
        return answer.json["id"]

    def push_form(self, params, secret=SECRET, path="/ws/push"):
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        kept = self.keep()
        kept.request("POST", path, body=signed(path, params, secret), headers=headers)
        return Answer(kept.getresponse())

    def push_raw_form(self, data, uid):
        """A form whose `data` is not percent-encoded."""
        text = "/ws/push\n" + canonical({"data": data.decode(), "pid": "1", "uids": uid})
        body = b"pid=1&uids=%b&sign=%b&data=%b" % (
            uid.encode(), hmac_hex(SECRET, text).encode(), data
        )
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        return self.request("POST", "/ws/push", body, headers)

    def received(self, clients, pid="1", secret=SECRET):
        """The pushes that each client got so far, once everything that was accepted has arrived."""
        mark = "mark-%d" % next(MARKS)
        self.push(mark, secret, pid, cids=[client.cid for client in clients])
        return [client.until(json.dumps(mark)) for client in clients]

    def metrics(self):
        """Maps name{labels} to value."""
        text = self.request("GET", "/metrics", at=self.metrics_address).text
        values = {}
        for line in text.splitlines():
            if line and not line.startswith("#"):
                name, value = line.rsplit(" ", 1)
                values[name] = float(value)
        return values

    def resident_bytes(self):
        with open(f"/proc/{self.process.pid}/status") as status:
            line = next(line for line in status if line.startswith("VmRSS"))
        return int(line.split()[1]) << 10

    def metric(self, name, **labels):
        """The sum over the series of that name which carry those labels."""
        total = 0.0
        for series, value in self.metrics().items():
            if re.split(r"[{ ]", series)[0] == name:
                if all(f'{label}="{wanted}"' in series for label, wanted in labels.items()):
                    total += value
        return total

    def raw_http(self):
        return Raw(self.http)

    def raw_ws(self, uid="u1", secret=SECRET, target=None, receive_buffer=None, **params):
        """A connection whose frames the test writes itself, after the handshake."""
        raw = Raw(self.ws, receive_buffer=receive_buffer)
        if target is None:
            target = "/ws/connect?" + signed(
                "/ws/connect", self.connect_params(uid, **params), secret
            )
        raw.send(handshake(target))
        head = raw.read_head()
        assert head.startswith("HTTP/1.1 101 "), head
        return raw


def handshake(target, version="13", key="dGhlIHNhbXBsZSBub25jZQ==", method="GET", extra=""):
    lines = [f"{method} {target} HTTP/1.1", "Host: localhost"]
    lines += ["Upgrade: websocket", "Connection: Upgrade"]
    if version is not None:
        lines.append(f"Sec-WebSocket-Version: {version}")
    if key is not None:
        lines.append(f"Sec-WebSocket-Key: {key}")
    return ("\r\n".join(lines) + "\r\n" + extra + "\r\n").encode()


class Answer:
    def __init__(self, response):
        self.status = response.status
        self.headers = response.headers
        self.body = response.read()

    @property
    def text(self):
        return self.body.decode()

    @property
    def json(self):
        return json.loads(self.body)

    def assert_refused(self, status):
        assert self.status == status, f"{self.status} {self.text}"
        assert self.headers["Content-Type"] == "application/json"
        body = self.json
        assert list(body) == ["code", "msg"] and body["code"] == 0 and body["msg"], body
        return body["msg"]


class Client:
    """A `websockets` connection with the few methods that the tests need."""

    def __init__(self, connecting):
        self._connecting = connecting
        self.connection = connecting.__enter__()
        self.cid = None
        self.welcome = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self._connecting.__exit__(None, None, None)

    def send(self, message):
        self.connection.send(message if isinstance(message, (str, bytes)) else json.dumps(message))

    def text(self, timeout=PATIENCE):
        message = self.connection.recv(timeout)
        assert isinstance(message, str), message
        return message

    def json(self, timeout=PATIENCE):
        return json.loads(self.text(timeout))

    def ask(self, message):
        self.send(message)
        return self.text()

    def pushed(self):
        """The data of the next push, as text."""
        text = self.text()
        found = re.fullmatch(r'\{"type":"push","id":"(\d+)","data":(.*)\}', text, re.DOTALL)
        assert found, text
        return found[2]

    def until(self, mark):
        """The data of all pushes before the one whose data is `mark`."""
        pushes = []
        while True:
            data = self.pushed()
            if data == mark:
                return pushes
            pushes.append(data)

    def close_code(self, timeout=PATIENCE):
        """Reads until the connection ends, and returns its close code and reason."""
        deadline = time.monotonic() + timeout
        while True:
            try:
                self.connection.recv(max(0.01, deadline - time.monotonic()))
            except ConnectionClosed as closed:
                assert closed.rcvd is not None, "ended without a close frame"
                return closed.rcvd.code, closed.rcvd.reason


class Raw:
    """A TCP connection, for things that a proper client does not do."""

    def __init__(self, address, timeout=PATIENCE, receive_buffer=None, source=None):
        is_ipv6 = ":" in address[0]
        self.socket = socket.socket(socket.AF_INET6 if is_ipv6 else socket.AF_INET)
        self.socket.settimeout(timeout)
        if source:
            self.socket.bind((source, 0))
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.connect(address)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buffer = b""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def send(self, data):
        self.socket.sendall(data if isinstance(data, bytes) else data.encode())

    def _more(self):
        try:
            data = self.socket.recv(65536)
        except ConnectionResetError:
            data = b""
        self.buffer += data
        return bool(data)

    def read(self, count):
        while len(self.buffer) < count:
            assert self._more(), f"ended after {self.buffer!r}"
        data, self.buffer = self.buffer[:count], self.buffer[count:]
        return data

    def read_head(self):
        while b"\r\n\r\n" not in self.buffer:
            assert self._more(), f"ended after {self.buffer!r}"
        head, self.buffer = self.buffer.split(b"\r\n\r\n", 1)
        return head.decode()

    def read_response(self):
        head = self.read_head()
        status = int(head.split(" ", 2)[1])
        fields = dict(line.split(": ", 1) for line in head.split("\r\n")[1:])
        fields = {name.lower(): value for name, value in fields.items()}
        length = int(fields.get("content-length", 0))
        return status, fields, self.read(length).decode()

    def ended(self):
        """Whether the peer has closed the connection and nothing more is to be read."""
        return not self.buffer and not self._more()

    # Frames.

    def frame(self, opcode, payload=b"", fin=True, rsv=0, mask=b"\1\2\3\4", length=None):
        self.send(frame(opcode, payload, fin, rsv, mask, length))

    def read_frame(self):
        first, second = self.read(2)
        assert second & 0x80 == 0, "a server does not mask"
        length = second & 0x7F
        if length == 126:
            (length,) = struct.unpack(">H", self.read(2))
        elif length == 127:
            (length,) = struct.unpack(">Q", self.read(8))
        return first, self.read(length)

    def close_code(self):
        """Reads until the Close frame, and returns its code."""
        while True:
            first, payload = self.read_frame()
            if first == 0x88:
                return struct.unpack(">H", payload[:2])[0]


def frame(opcode, payload=b"", fin=True, rsv=0, mask=b"\1\2\3\4", length=None):
    """Builds a frame; `length` overrides the size of the length field: 7, 16 or 64 bits."""
    payload = payload if isinstance(payload, bytes) else payload.encode()
    size = len(payload)
    bits = length or (7 if size < 126 else 16 if size < 65536 else 64)
    out = bytearray([(0x80 if fin else 0) | rsv << 4 | opcode])
    flag = 0x80 if mask else 0
    if bits == 7:
        out.append(flag | size)
    elif bits == 16:
        out.append(flag | 126)
        out += struct.pack(">H", size)
    else:
        out.append(flag | 127)
        out += struct.pack(">Q", size)
    if mask:
        out += mask
        payload = bytes(byte ^ mask[index % 4] for index, byte in enumerate(payload))
    return bytes(out) + payload


TEXT, BINARY_FRAME, CLOSE, PING, PONG = 1, 2, 8, 9, 10
