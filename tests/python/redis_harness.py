"""Redis servers that tests start and break, a proxy before them, and nodes that share one."""

import contextlib
import itertools
import json
import os
import queue
import re
import selectors
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time

from harness import (
    PATIENCE,
    SECRET,
    Raw,
    Server,
    eventually,
    sign_body,
)

# On a busy machine a process may stall for seconds.
SLACK = 30.0
MARKS = itertools.count()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class RedisError(Exception):
    pass


class Resp:
    """A connection to Redis that speaks RESP2."""

    def __init__(self, port, timeout=PATIENCE):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout)
        self.buffer = b""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def command(self, *words):
        words = [word if isinstance(word, bytes) else str(word).encode() for word in words]
        parts = [b"*%d\r\n" % len(words)]
        parts += [b"$%d\r\n%s\r\n" % (len(word), word) for word in words]
        self.socket.sendall(b"".join(parts))
        return self.reply()

    def _until(self, count=None):
        """So many bytes, or a line."""
        while True:
            end = self.buffer.find(b"\r\n") if count is None else count
            if end >= 0 and len(self.buffer) >= end + 2:
                found, self.buffer = self.buffer[:end], self.buffer[end + 2 :]
                return found
            more = self.socket.recv(1 << 20)
            if not more:
                raise ConnectionError("Redis ended the connection")
            self.buffer += more

    def reply(self):
        line = self._until()
        kind, rest = line[:1], line[1:]
        if kind == b"-":
            raise RedisError(rest.decode())
        if kind == b":":
            return int(rest)
        if kind == b"$":
            return None if rest == b"-1" else self._until(int(rest))
        if kind == b"*":
            return [self.reply() for _ in range(int(rest))]
        return rest


class Redis:
    """A redis-server of its own, on a free port, that keeps nothing."""

    def __init__(self, *args, login=()):
        self.folder = tempfile.mkdtemp(prefix="redis-")
        self.socket_path = os.path.join(self.folder, "redis.sock")
        self.args = [arg.replace("SOCKET", self.socket_path) for arg in args]
        self.login = login
        self.process = None
        for _ in range(10):
            self.port = free_port()
            if self._try_start():
                return
        raise AssertionError(f"redis-server does not start: {self.output()}")

    @property
    def url(self):
        return f"redis://127.0.0.1:{self.port}"

    def output(self):
        with open(os.path.join(self.folder, "log")) as log:
            return log.read()[-2000:]

    def _try_start(self):
        """`False`: it ended, because the port was taken meanwhile."""
        command = ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1"]
        command += ["--save", "", "--appendonly", "no", "--dir", self.folder, *self.args]
        with open(os.path.join(self.folder, "log"), "a") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        return eventually(self._has_come, f"redis-server on {self.port}", SLACK) == "up"

    def _has_come(self):
        if self.process.poll() is not None:
            return "ended"
        with contextlib.suppress(OSError):
            with Resp(self.port) as resp:
                try:
                    resp.command("PING")
                except RedisError as error:
                    # It is up, and requires a password.
                    return "up" if str(error).startswith("NOAUTH") else None
                return "up"
        return None

    def start(self):
        """Again, on the same port."""
        eventually(self._try_start, f"redis-server on {self.port} again", SLACK)

    def kill(self):
        self.process.kill()
        self.process.wait(SLACK)

    def pause(self):
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self):
        self.process.send_signal(signal.SIGCONT)

    def stop(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(SLACK)
        shutil.rmtree(self.folder, ignore_errors=True)

    def command(self, *words):
        with Resp(self.port) as resp:
            if self.login:
                resp.command("AUTH", *self.login)
            return resp.command(*words)

    def clients(self):
        """The lines of CLIENT LIST that are links of nodes, as dicts."""
        lines = self.command("CLIENT", "LIST").decode().splitlines()
        fields = [dict(field.partition("=")[::2] for field in line.split(" ")) for line in lines]
        return [line for line in fields if line["name"].startswith("ws-cluster-")]


class Proxy:
    """Between a node and Redis. `target(number)` is the port for the connection with that number,
    counted from 0. `bytes_per_s`: how much it lets through, each way of each connection, or of
    those with the numbers in `slow`."""

    def __init__(self, target, bytes_per_s=None, slow=None):
        self.target = target
        self.bytes_per_s, self.slow = bytes_per_s, slow
        self.listener = socket.create_server(("127.0.0.1", 0))
        if bytes_per_s:
            # Waiting bytes must wait at the sender.
            self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        self.port = self.listener.getsockname()[1]
        self.lock = threading.Lock()
        self.pairs = []
        self.accepted = 0
        self.is_open = True
        # Numbers of connections that nothing passes through; `None`: all.
        self.held = set()
        self.flowing = threading.Condition(self.lock)
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self):
        return f"redis://127.0.0.1:{self.port}"

    def _accept(self):
        while True:
            try:
                near, _ = self.listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(("127.0.0.1", self.target(self.accepted)))
            except OSError:
                near.close()
                continue
            with self.lock:
                number = self.accepted
                self.accepted += 1
                self.pairs.append((near, far))
            for one, other in ((near, far), (far, near)):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                args = (number, one, other)
                threading.Thread(target=self._pump, args=args, daemon=True).start()

    def _pump(self, number, source, sink):
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                with self.flowing:
                    self.flowing.wait_for(lambda: not self.held & {number, None})
                sink.sendall(data)
                if self.bytes_per_s and (self.slow is None or number in self.slow):
                    time.sleep(len(data) / self.bytes_per_s)
            with self.flowing:
                self.flowing.wait_for(lambda: not self.held & {number, None})
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def hold(self, numbers=(None,)):
        """Nothing passes, through all or those connections, until `release`."""
        with self.flowing:
            self.held |= set(numbers)

    def release(self):
        with self.flowing:
            self.held.clear()
            self.flowing.notify_all()

    def cut(self, number=None):
        """Cuts the connection with that number, or all."""
        with self.lock:
            pairs = self.pairs if number is None else [self.pairs[number]]
            for end in itertools.chain.from_iterable(pairs):
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def stop(self):
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.release()
        self.cut()
        with self.lock:
            for end in itertools.chain.from_iterable(self.pairs):
                end.close()


# Nodes.


def node(number, url, *args, workers="2", wait=True, env=None, **options):
    """A node on the Redis at that URL, ready unless told not to `wait`."""
    server = Server(
        "--queue", "redis", "--node", str(number), "--workers", workers, *args,
        env={"WS_CLUSTER_REDIS": url, **(env or {})}, **options,
    )
    server.number = number
    server.workers = workers
    if wait:
        try:
            await_ready(server)
        except BaseException:
            server.stop()
            raise
    return server


def readiness(server):
    return server.request("GET", "/readyz")


def await_ready(*servers, timeout=SLACK):
    for server in servers:
        eventually(lambda: readiness(server).status == 200, "readyz 200", timeout)


def await_unready(*servers, timeout=SLACK, word=""):
    """Waits for readyz to say 503, and `word`; how long that took, and its last words."""
    began = time.monotonic()
    for server in servers:
        def is_unready():
            answer = readiness(server)
            return answer.status == 503 and word in answer.text and answer
        answer = eventually(is_unready, f"readyz 503 with {word!r}", timeout)
    return time.monotonic() - began, answer.json["msg"]


def try_push(server, data, pid="1", secret=SECRET, **members):
    """The status of a JSON push on the kept connection."""
    return server.post_json("/ws/push", {"pid": pid, "data": data, **members}, secret).status


def log_of(server):
    return "".join(server.errors + server.output)


def missed(server):
    """Messages that the node says were missed, by (origin, channel)."""
    found = {}
    for series, count in server.metrics().items():
        labels = dict(re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', series))
        if series.startswith("ws_cluster_queue_missed_total{"):
            found[int(labels["origin"]), labels["channel"]] = int(count)
    return found


def sync(servers, clients, pid="1", secret=SECRET):
    """What each client was pushed so far: pushes a mark to all of them at each server, on the
    connection that its pushes went over, and reads up to the last."""
    marks = []
    for server in servers:
        mark = f"sync-{next(MARKS)}"
        server.push(mark, secret, pid, cids=[client.cid for client in clients])
        marks.append(json.dumps(mark))
    got = []
    for client in clients:
        left, data = set(marks), []
        while left:
            item = client.pushed()
            if item in left:
                left.remove(item)
            else:
                data.append(item)
        got.append(data)
    return got


# Many connections and many pushes, cheaply.


class Member:
    def __init__(self, raw, server, number, tags):
        self.raw, self.server, self.number, self.tags = raw, server, number, tags
        self.cid = None
        # The data of its pushes, as bytes.
        self.got = []


class Crowd:
    """Clients on raw sockets that one thread reads."""

    def __init__(self):
        self.members = []
        self.selector = selectors.DefaultSelector()
        self.is_over = False
        self.ended = []
        self.reader = threading.Thread(target=self._read, daemon=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.is_over = True
        if self.reader.is_alive():
            self.reader.join(PATIENCE)
        for member in self.members:
            member.raw.socket.close()
        self.selector.close()

    def add(self, server, uid, tags=(), **params):
        if tags:
            params["tags"] = ",".join(tags)
        raw = server.raw_ws(uid, **params)
        member = Member(raw, server, len(self.members), tags)
        member.uid = uid
        member.cid = json.loads(raw.read_frame()[1])["client_id"]
        raw.socket.setblocking(False)
        self.members.append(member)
        self.selector.register(raw.socket, selectors.EVENT_READ, member)
        return member

    def start(self):
        self.reader.start()

    def _read(self):
        while not self.is_over:
            for key, _ in self.selector.select(0.05):
                member = key.data
                try:
                    data = key.fileobj.recv(1 << 18)
                except (BlockingIOError, InterruptedError):
                    continue
                except OSError:
                    data = b""
                if not data:
                    self.ended.append(member)
                    self.selector.unregister(key.fileobj)
                    continue
                member.raw.buffer = self._take(member, member.raw.buffer + data)

    def _take(self, member, buffer):
        at = 0
        while len(buffer) >= at + 2:
            first, length, head = buffer[at], buffer[at + 1], 2
            if length == 126:
                if len(buffer) < at + 4:
                    break
                length, head = int.from_bytes(buffer[at + 2 : at + 4], "big"), 4
            elif length == 127:
                if len(buffer) < at + 10:
                    break
                length, head = int.from_bytes(buffer[at + 2 : at + 10], "big"), 10
            if len(buffer) < at + head + length:
                break
            payload = buffer[at + head : at + head + length]
            at += head + length
            if first == 0x81 and payload.startswith(b'{"type":"push"'):
                member.got.append(payload.split(b',"data":', 1)[1][:-1])
            elif first == 0x88:
                self.ended.append(member)
        return buffer[at:]


class Pusher:
    """One connection that pushes; answers come in order."""

    def __init__(self, server, secret=SECRET, timeout=PATIENCE):
        self.raw = Raw(server.http, timeout)
        self.server, self.secret = server, secret

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.raw.socket.close()

    def send(self, body, path="/ws/push"):
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        sign = sign_body(path, body, self.secret)
        self.raw.send(
            b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"X-Sign: %s\r\nContent-Length: %d\r\n\r\n%s"
            % (path.encode(), sign.encode(), len(body), body)
        )

    def answer(self):
        return self.raw.read_response()[0]

    def push(self, body):
        """The status of the answer."""
        self.send(body)
        return self.answer()


def run_all(*tasks):
    """Runs each in a thread of its own; the first failure is raised."""
    failures = queue.Queue()

    def guarded(task):
        try:
            task()
        except BaseException as failure:
            failures.put(failure)

    threads = [threading.Thread(target=guarded, args=(task,), daemon=True) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "a thread does not end"
    if not failures.empty():
        raise failures.get()
