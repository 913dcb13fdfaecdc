"""Errors of a running node, as received by Sentry."""

import contextlib
import gzip
import http.server
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import threading
import time

import pytest
from harness import BINARY, PATIENCE, Server, eventually
from redis_harness import log_of

KEY = "0123456789abcdef0123456789abcdef"


class Sentry:
    """Accepts envelopes, or answers with another status."""

    def __init__(self, status=200, headers=(), context=None):
        self.requests = []
        sentry = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers["Content-Encoding"] == "gzip":
                    body = gzip.decompress(body)
                sentry.requests.append((self.path, self.headers, body.decode()))
                self.send_response(sentry.status)
                for name, value in sentry.headers:
                    self.send_header(name, value)
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

            def log_message(self, *_):
                pass

        self.status, self.headers = status, headers
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.scheme = "http"
        if context is not None:
            self.scheme = "https"
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    @property
    def env(self):
        dsn = f"{self.scheme}://{KEY}@127.0.0.1:{self.port}/42"
        return {"WS_CLUSTER_SENTRY_DSN": dsn, "NO_PROXY": "127.0.0.1"}

    def events(self):
        """Each envelope has a header line, then a header line and a payload for each item."""
        found = []
        for path, headers, body in list(self.requests):
            assert path == "/api/42/envelope/"
            assert f"sentry_key={KEY}" in headers["X-Sentry-Auth"]
            assert headers["Content-Type"] == "application/x-sentry-envelope"
            head, *items = [json.loads(line) for line in body.splitlines()]
            pairs = zip(items[::2], items[1::2], strict=True)
            events = [event for item, event in pairs if item["type"] == "event"]
            ids = {event["event_id"].replace("-", "") for event in events}
            assert ids == {head["event_id"].replace("-", "")}
            found += events
        return found


def fail(env, *args):
    """A node that exits with an error after its start: its port is in use."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        command = [BINARY, "--bind", "127.0.0.1", "--ws_port", str(taken.getsockname()[1])]
        began = time.monotonic()
        done = subprocess.run(
            [*command, "--node", "9", *args],
            capture_output=True, text=True, timeout=20, env={**os.environ, **env},
        )
    assert done.returncode == 1 and KEY not in done.stdout + done.stderr, done
    return done, time.monotonic() - began


def test_the_error_that_ends_a_node_is_sent_before_its_end():
    with Sentry() as sentry:
        done, _ = fail(sentry.env, "--env", "test")
        [event] = sentry.events()
    # An event without a level is an error.
    assert (event.get("level", "error"), event["message"]) == ("error", "the node stops")
    assert "--ws_port" in event["extra"]["error"]
    assert event["tags"] == {"node": "9", "thread": "main"}
    assert event["logger"] == "ws_cluster" and event["environment"] == "test"
    version = subprocess.run([BINARY, "--version"], capture_output=True, text=True).stdout
    assert event["release"] == "@".join(version.split())
    assert done.stdout == "" and done.stderr.startswith("ws-cluster: cannot listen on --ws_port")


def test_two_nodes_with_one_number(own_redis, own_node):
    password = "the-password-of-redis"
    redis = own_redis("--requirepass", password, login=[password])
    url = f"redis://:{password}@127.0.0.1:{redis.port}"
    with Sentry() as sentry:
        own_node(7, url, workers="1", env={**sentry.env, "WS_CLUSTER_LOG": "off"})
        own_node(7, url, workers="1")
        event = eventually(sentry.events, "an error", 30)[0]
        assert "this node's number" in event["message"]
        assert event["tags"] == {"node": "7", "thread": "worker-0", "worker": "0"}
        assert password not in "".join(body for _, _, body in sentry.requests)


@pytest.mark.parametrize("kind", ["absent", "silent", "refusing", "sated"])
def test_a_sentry_that_does_not_take_events_holds_nothing_up(kind):
    with contextlib.ExitStack() as stack:
        if kind in ("absent", "silent"):
            listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            port = listener.getsockname()[1]
            if kind == "absent":
                listener.close()
            env = {"WS_CLUSTER_SENTRY_DSN": f"http://{KEY}@127.0.0.1:{port}/42"}
        else:
            status, headers = (500, ()) if kind == "refusing" else (429, [("Retry-After", "60")])
            env = stack.enter_context(Sentry(status, headers)).env
        done, took = fail(env)
        assert took < 4, took
        complaint = re.search(
            r"WARN sentry .*Sentry does not accept events error=(.*)", done.stdout
        )
        assert kind == "silent" or complaint, done.stdout
        if kind == "sated":
            assert "429" in complaint[1]


def test_a_sated_sentry_is_left_alone(own_redis, own_node):
    redis = own_redis()
    with Sentry(429, [("Retry-After", "3600")]) as sentry:
        server = own_node(7, redis.url, workers="1", env=sentry.env)
        own_node(7, redis.url, workers="1")
        eventually(lambda: sentry.requests, "an error", 30)
        eventually(lambda: "Sentry does not accept events" in log_of(server), "a complaint")
        eventually(lambda: server.metric("ws_cluster_sentry_unsent_total") >= 1, "a count")
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
        assert len(sentry.requests) == 1


@pytest.fixture(scope="session")
def certificate(tmp_path_factory):
    """A key and a certificate for 127.0.0.1 that nobody trusts yet."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("tls")
    key, certificate = str(folder / "key.pem"), str(folder / "certificate.pem")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "30",
         "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1",
         "-addext", "basicConstraints=critical,CA:FALSE",
         "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )
    return key, certificate


def test_tls_with_the_certificates_that_the_machine_trusts(certificate):
    key, file = certificate
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file, key)
    with Sentry(context=context) as sentry:
        done, _ = fail({**sentry.env, "SSL_CERT_FILE": file})
        assert len(sentry.events()) == 1, done
        done, _ = fail(sentry.env)
        assert len(sentry.events()) == 1, "a certificate that is not trusted is refused"
        assert "certificate" in done.stdout, done.stdout


def test_a_key_is_shown_nowhere():
    dsn = f"https://{KEY}@sentry.invalid/42"
    server = Server("--workers", "1", "--sentry_dsn", dsn)
    try:
        line = eventually(
            lambda: next((one for one in server.output if "--sentry_dsn" in one), None), "a warning"
        )
        assert "set WS_CLUSTER_SENTRY_DSN instead" in line
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
        assert KEY not in log_of(server)
    finally:
        server.stop()
    for wrong in (KEY, f"https://{KEY}@sentry.invalid", f"https://{KEY}@/42"):
        for args, env in (
            (["--sentry_dsn", wrong], {}), ([], {"WS_CLUSTER_SENTRY_DSN": wrong})
        ):
            done = subprocess.run(
                [BINARY, *args], capture_output=True, text=True, timeout=PATIENCE,
                env={**os.environ, **env},
            )
            assert done.returncode == 2 and KEY not in done.stdout + done.stderr, done
            assert "is not a Sentry DSN: use https://KEY@HOST/PROJECT" in done.stderr, done


def test_without_a_dsn_there_is_nothing():
    """There is no thread, and SENTRY_DSN, which may be meant for other programs, is not read."""
    def threads(env):
        server = Server("--workers", "1", env=env)
        try:
            tasks = f"/proc/{server.process.pid}/task"
            names = [open(f"{tasks}/{task}/comm").read().strip() for task in os.listdir(tasks)]
        finally:
            server.stop()
        return names

    with Sentry() as sentry:
        assert "sentry" in threads(sentry.env)
        other = {"SENTRY_DSN": sentry.env["WS_CLUSTER_SENTRY_DSN"]}
        assert "sentry" not in threads(other)
        fail(other)
        assert sentry.requests == []
