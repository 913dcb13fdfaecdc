"""What systemd sees of a node: notifications, the watchdog, and sockets that it passes."""

import contextlib
import ctypes
import fcntl
import glob
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from harness import BINARY, PATIENCE, Raw, Server, eventually, handshake, signed
from redis_harness import node

# Notifications.


class Manager:
    """A service manager's notification socket."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind("\0" + path[1:] if path.startswith("@") else path)
        self.env = {"NOTIFY_SOCKET": path}
        self.heard = []
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self):
        with contextlib.suppress(OSError):
            while True:
                text = self.socket.recv(65536).decode()
                for line in text.split("\n"):
                    self.heard.append((time.monotonic(), *line.split("=", 1)))

    def values(self, name):
        return [value for _, key, value in list(self.heard) if key == name]

    def wait_for(self, name, value=None, timeout=PATIENCE):
        is_there = lambda: [one for one in self.values(name) if value is None or value in one]
        return eventually(is_there, f"{name}={value}", timeout)[-1]

    def at(self, name):
        return next(at for at, key, _ in self.heard if key == name)


@pytest.fixture(params=["path", "abstract"])
def manager(request, tmp_path):
    name = f"@ws-cluster-{os.getpid()}-{id(tmp_path)}"
    manager = Manager(name if request.param == "abstract" else str(tmp_path / "notify"))
    yield manager
    manager.socket.close()


def test_a_node_says_what_it_does(start, manager):
    server = start("--drain_ms", "3000", "--linger_ms", "3000", env=manager.env)
    manager.wait_for("READY", "1")
    assert server.request("GET", "/readyz").status == 200
    assert "0 connections" in manager.wait_for("STATUS", "workers")
    with server.client("u1"), server.raw_ws("stubborn") as stubborn:
        manager.wait_for("STATUS", "2 connections")
        count = len(manager.values("STATUS"))
        # Nothing changes, so nothing is sent.
        time.sleep(2.5)
        assert len(manager.values("STATUS")) == count
        server.signal(signal.SIGTERM)
        manager.wait_for("STOPPING", "1")
        manager.wait_for("STATUS", "Draining: ")
        assert stubborn.close_code() == 1001
        extended = lambda: len(manager.values("EXTEND_TIMEOUT_USEC")) >= 2
        eventually(extended, "it asks for more time each second")
        assert set(map(int, manager.values("EXTEND_TIMEOUT_USEC"))) == {5_000_000}
    assert server.wait() == 0
    assert manager.values("READY") == ["1"] and manager.values("WATCHDOG") == []
    assert manager.at("READY") < manager.at("STOPPING")


def test_a_reload_is_told(start, tmp_path):
    file = tmp_path / "config.toml"
    file.write_text("idle_timeout_ms = 50000\n")
    manager = Manager(str(tmp_path / "notify"))
    with contextlib.closing(manager.socket):
        server = start("--config", str(file), env=manager.env)
        manager.wait_for("READY", "1")
        for number, text in enumerate(["idle_timeout_ms = 60000\n", "nonsense = 1\n"], 1):
            file.write_text(text)
            before_us = time.monotonic_ns() // 1_000
            server.signal(signal.SIGHUP)
            eventually(lambda: len(manager.values("READY")) == number + 1, "ready again")
            assert len(manager.values("RELOADING")) == number
            assert before_us <= int(manager.values("MONOTONIC_USEC")[-1]) < before_us + 10_000_000
        order = [key for _, key, _ in manager.heard if key in ("READY", "RELOADING")]
        assert order == ["READY"] + ["RELOADING", "READY"] * 2


def test_what_a_full_socket_does_not_take_is_told_later(start, tmp_path):
    """A manager that receives nothing for a while would wait for READY=1 until its timeout."""
    path = str(tmp_path / "notify")
    with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as manager:
        manager.bind(path)
        manager.settimeout(PATIENCE)

        def fill():
            with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as other:
                other.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    while True:
                        other.sendto(b"full", path)

        def await_line(line):
            return eventually(lambda: line in manager.recv(65536).decode().split("\n"), line)

        file = tmp_path / "config.toml"
        file.write_text("idle_timeout_ms = 50000\n")
        fill()
        args = ["--config", str(file), "--drain_ms", "4000", "--linger_ms", "4000"]
        server = start(*args, env={"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "60000000"})
        eventually(lambda: server.request("GET", "/readyz").status == 200, "it is ready")
        time.sleep(1)
        await_line("READY=1")
        fill()
        file.write_text("idle_timeout_ms = 60000\n")
        server.signal(signal.SIGHUP)
        eventually(lambda: server.metric("ws_cluster_reload_total", result="ok"), "the reload")
        time.sleep(0.5)
        await_line("READY=1")
        with server.raw_ws("stubborn"):
            fill()
            server.signal(signal.SIGTERM)
            time.sleep(0.5)
            await_line("STOPPING=1")
        assert server.wait() == 0


def test_it_is_ready_when_the_queue_is(own_redis, tmp_path):
    redis = own_redis()
    redis.pause()
    manager = Manager(str(tmp_path / "notify"))
    with contextlib.closing(manager.socket):
        server = node(7, redis.url, wait=False, env=manager.env)
        with server:
            manager.wait_for("STATUS", "Not ready: the queue is down")
            time.sleep(0.5)
            assert manager.values("READY") == []
            redis.go_on()
            manager.wait_for("READY", "1", 20)
            assert server.request("GET", "/readyz").status == 200
            manager.wait_for("STATUS", "queue redis")


def test_without_a_manager_and_with_a_wrong_address_all_is_the_same(start):
    for address in ("/nowhere/at/all", "vsock:2:1", "relative"):
        server = start(env={"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "1000000"})
        assert server.request("GET", "/readyz").status == 200
        server.signal(signal.SIGTERM)
        assert server.wait() == 0


# The watchdog.

PTRACE_SEIZE, PTRACE_INTERRUPT, PTRACE_DETACH, WALL = 0x4206, 0x4207, 17, 0x40000000


def ptrace(request, thread):
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    libc.ptrace.restype = ctypes.c_long
    if libc.ptrace(request, thread, None, None) != 0:
        raise OSError(ctypes.get_errno(), "ptrace")


@contextlib.contextmanager
def stopped(server, name):
    """One thread of the process stands still, as one that waits for ever in a system call."""
    for path in glob.glob(f"/proc/{server.process.pid}/task/*/comm"):
        with open(path) as file:
            if file.read().strip() == name:
                thread = int(path.split("/")[4])
    ptrace(PTRACE_SEIZE, thread)
    ptrace(PTRACE_INTERRUPT, thread)
    os.waitpid(thread, WALL)
    try:
        yield
    finally:
        ptrace(PTRACE_DETACH, thread)


@pytest.mark.parametrize("name", ["worker-0", "ops"])
def test_the_watchdog_is_fed_while_every_thread_takes_turns(start, tmp_path, name):
    manager = Manager(str(tmp_path / "notify"))
    with contextlib.closing(manager.socket):
        server = start(env={**manager.env, "WATCHDOG_USEC": "2000000"})
        count = lambda: len(manager.values("WATCHDOG"))
        # Idle workers sleep, and are alive.
        eventually(lambda: count() >= 3, "three beats")
        with stopped(server, name):
            # One more may be due before it counts as stuck.
            time.sleep(2.5)
            before = count()
            time.sleep(2.5)
            assert count() == before
        eventually(lambda: count() > before + 1, "it goes on")
        times = [at for at, key, _ in manager.heard if key == "WATCHDOG"]
        assert 0.8 < times[1] - times[0] < 2


def test_a_watchdog_for_another_process_is_not_fed(start, tmp_path):
    manager = Manager(str(tmp_path / "notify"))
    with contextlib.closing(manager.socket):
        start(env={**manager.env, "WATCHDOG_USEC": "200000", "WATCHDOG_PID": "1"})
        manager.wait_for("READY", "1")
        time.sleep(1)
        assert manager.values("WATCHDOG") == []


# Sockets.

PASSING = """
import os, sys
count = int(sys.argv[1])
for number in range(count):
    os.dup2(100 + number, 3 + number)
os.closerange(3 + count, 200)
os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(sys.argv[2], sys.argv[2:])
"""


class Sockets:
    """Listening sockets that outlive the node, as those of a socket unit do."""

    def __init__(self, **counts):
        self.held, self.names = [], []
        for name, count in counts.items():
            port = 0
            for _ in range(count):
                held = socket.socket()
                held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if count > 1:
                    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                held.bind(("127.0.0.1", port))
                held.listen(4096)
                port = held.getsockname()[1]
                self.held.append(held)
                self.names.append(name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for one in self.held:
            one.close()

    def address(self, name):
        return self.held[self.names.index(name)].getsockname()

    def options(self, names=None):
        """How a process is started with them."""
        count = len(self.held)
        fds = [fcntl.fcntl(one.fileno(), fcntl.F_DUPFD, 100 + n) for n, one in enumerate(self.held)]
        assert fds == list(range(100, 100 + count)), fds
        names = self.names if names is None else names
        return {
            "wrapper": [sys.executable, "-c", PASSING, str(count)],
            "pass_fds": fds,
            "env": {"LISTEN_FDS": str(count), "LISTEN_FDNAMES": ":".join(names)},
        }

    def start(self, *args, **options):
        ours = self.options(**options)
        try:
            return Server(*args, **ours)
        finally:
            for fd in ours["pass_fds"]:
                os.close(fd)


@pytest.mark.parametrize("counts", [{"ws": 1, "http": 1}, {"ws": 3, "http": 2}, {"ws": 2}])
def test_a_node_serves_on_the_sockets_that_it_is_passed(counts):
    with Sockets(**counts) as sockets, sockets.start("--workers", "3") as server:
        assert server.ws == sockets.address("ws")
        if "http" in counts:
            assert server.http == sockets.address("http")
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(server.client("u1")) for _ in range(60)]
            server.push(1, uids="u1")
            assert [client.pushed() for client in clients] == ["1"] * 60
            threads = server.metrics()
            assert threads["ws_connection"] == 60
            for _ in range(30):
                assert server.request("GET", "/readyz").status == 200


def test_names_of_the_unit_are_told_apart_by_their_ports():
    with Sockets(ws=1, http=1) as sockets:
        ports = [str(sockets.address(name)[1]) for name in ("ws", "http")]
        options = sockets.options(["ws-cluster.socket", "ws-cluster.socket"])
        given = ("prometheus_port", "pprof_port", "swagger_port")
        with Server("--ws_port", ports[0], "--http_port", ports[1], given=given, **options) as server:
            assert (server.ws, server.http) == (sockets.address("ws"), sockets.address("http"))
        for fd in options["pass_fds"]:
            os.close(fd)


def refused(*args, **options):
    wrapper, env = options.pop("wrapper"), {**os.environ, **options.pop("env")}
    command = [*wrapper, BINARY, "--bind", "127.0.0.1", *args]
    for port in ("ws_port", "http_port", "prometheus_port"):
        command += [f"--{port}", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, env=env, **options)
    assert done.returncode == 1, done
    return done.stderr


def test_a_wrong_socket_is_named():
    with contextlib.ExitStack() as stack:
        sockets = stack.enter_context(Sockets(other=1))
        options = sockets.options()
        said = refused(**options)
        assert "'other'" in said.replace('"', "'") and "FileDescriptorName=ws" in said, said
        datagrams = stack.enter_context(contextlib.closing(socket.socket(type=socket.SOCK_DGRAM)))
        datagrams.bind(("127.0.0.1", 0))
        sockets.held[0].close()
        for fd in options["pass_fds"]:
            os.close(fd)
        sockets.held[0] = datagrams
        options = sockets.options(["ws"])
        said = refused(**options)
        assert "descriptor 3" in said and "not a listening TCP socket" in said, said
        for fd in options["pass_fds"]:
            os.close(fd)


def test_more_sockets_than_workers_are_refused():
    """The kernel would give connections to a socket from which nobody accepts."""
    for name in ("ws", "http"):
        with Sockets(**{name: 3}) as sockets:
            options = sockets.options()
            said = refused("--workers", "2", **options)
            assert f"3 sockets were passed for {name}" in said and "--workers" in said, said
            for fd in options["pass_fds"]:
                os.close(fd)


def test_a_restart_refuses_no_connection(projects):
    """Clients connect all the time, while the node is stopped and started again on the same
    sockets."""
    args = ["--workers", "2", "--projects", projects, "--drain_ms", "1500"]
    with Sockets(ws=1, http=1) as sockets:
        failures, served, is_over = [], [0], threading.Event()

        def keep_connecting(number):
            while not is_over.is_set():
                try:
                    address = sockets.address("http")
                    with Raw(address, timeout=30) as raw:
                        raw.send("GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                        assert raw.read_response()[0] == 200
                    query = signed("/ws/connect", {"pid": "1", "uid": f"u{number}", "type": "1"})
                    with Raw(sockets.address("ws"), timeout=30) as raw:
                        raw.send(handshake(f"/ws/connect?{query}"))
                        head = raw.read_head()
                        assert head.startswith(("HTTP/1.1 101 ", "HTTP/1.1 503 ")), head
                    served[0] += 1
                    time.sleep(0.01)
                except (AssertionError, OSError) as error:
                    failures.append(error)

        connecting = [threading.Thread(target=keep_connecting, args=(n,)) for n in range(4)]
        server = sockets.start(*args)
        for thread in connecting:
            thread.start()
        for _ in range(3):
            before = served[0]
            eventually(lambda: served[0] > before + 50, "clients are served", 20)
            server.signal(signal.SIGTERM)
            assert server.wait(20) == 0
            server.stop()
            server = sockets.start(*args)
        before = served[0]
        eventually(lambda: served[0] > before + 50, "clients are served", 20)
        is_over.set()
        for thread in connecting:
            thread.join(30)
        server.stop()
        assert failures == []
