"""The real nginx and HAProxy, with the configurations of deploy/, in front of two nodes."""

import base64
import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time

import pytest
from harness import (
    PATIENCE,
    ROOT,
    Raw,
    eventually,
    handshake,
    sign_body,
    signed,
)
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect as ws_connect

pytestmark = pytest.mark.slow

NOBODY = 65534
# A refused program, a slow machine: a proxy starts within this.
START = 30
NGINX = """
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
events {{ worker_connections 512; }}
http {{
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    include {folder}/ws-cluster.conf;
}}
"""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Proxy:
    """A proxy without rights, in a folder of its own."""

    def __init__(self, kind, nodes):
        program = shutil.which(kind) or shutil.which(kind, path="/usr/sbin:/usr/local/sbin")
        assert program, f"{kind} is not there: install it (tests/proxies.sh)"
        self.kind = kind
        self.folder = tempfile.mkdtemp(prefix=f"ws-cluster-{kind}-")
        self.at = ("127.0.0.1", free_port())
        is_root = os.getuid() == 0
        if is_root:
            os.chown(self.folder, NOBODY, NOBODY)
        if kind == "nginx":
            self.write("ws-cluster.conf", self.configured("nginx/ws-cluster.conf", nodes))
            file = self.write("nginx.conf", NGINX.format(folder=self.folder))
            command = [program, "-e", "stderr", "-p", self.folder, "-c", file]
        else:
            file = self.write("haproxy.cfg", self.configured("haproxy/haproxy.cfg", nodes))
            command = [program, "-db", "-f", file]
        rights = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if is_root else {}
        self.log = open(os.path.join(self.folder, "log"), "w+")
        self.process = subprocess.Popen(
            command, stdout=self.log, stderr=self.log, cwd=self.folder, **rights
        )
        try:
            eventually(self.answers, f"{kind} answers", START)
        except BaseException:
            self.stop()
            raise

    def configured(self, path, nodes):
        """The configuration that is shipped, with the ports of the test."""
        with open(os.path.join(ROOT, "deploy", path)) as file:
            text = file.read()
        ports = {8080: self.at[1]}
        for index, node in enumerate(nodes):
            ports |= {8812 + index: node.ws[1], 8912 + index: node.http[1]}
        pattern = r"(?<=[ :])(8080|8812|8813|8912|8913)\b"
        text, count = re.subn(pattern, lambda one: str(ports[int(one[1])]), text)
        assert count >= 5
        return text.replace("/var/log/nginx", self.folder)

    def write(self, name, text):
        path = os.path.join(self.folder, name)
        with open(path, "w") as file:
            file.write(text)
        os.chmod(path, 0o644)
        return path

    def answers(self):
        assert self.process.poll() is None, self.output()
        with contextlib.suppress(OSError, http.client.HTTPException):
            return self.get("/readyz").status == 200
        return False

    def get(self, path):
        connection = http.client.HTTPConnection(*self.at, timeout=PATIENCE)
        with contextlib.closing(connection):
            connection.request("GET", path)
            response = connection.getresponse()
            response.read()
            return response

    def output(self):
        with open(os.path.join(self.folder, "log")) as log:
            return log.read()

    def stop(self):
        if self.process.poll() is None:
            # Its worker processes end with it.
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(PATIENCE)
        self.log.close()
        shutil.rmtree(self.folder, ignore_errors=True)


@pytest.fixture(params=["nginx", "haproxy"])
def site(request, stack, redis, own_node, name):
    """A proxy and the two nodes behind it."""
    # A node serves on while HAProxy notices that it is not ready.
    delay = ("--drain_delay_ms", "2000")
    args = ("--redis_prefix", name, "--trusted_proxies", "127.0.0.1", *delay)
    nodes = [own_node(number, redis.url, *args, workers="1") for number in (221, 222)]
    proxy = Proxy(request.param, nodes)
    stack.callback(proxy.stop)
    return proxy, nodes


def connect(proxy, node, uid, **params):
    query = signed("/ws/connect", node.connect_params(uid, **params))
    url = "ws://%s:%d/ws/connect?%s" % (*proxy.at, query)
    return ws_connect(url, compression=None, proxy=None, open_timeout=PATIENCE)


def welcome(connection):
    message = json.loads(connection.recv(PATIENCE))
    assert message["type"] == "connect" and message["code"] == 1
    return message


def pushed(connection):
    return json.loads(connection.recv(PATIENCE))["data"]


def push_request(data, **selectors):
    body = json.dumps({"pid": "1", "data": data, **selectors}).encode()
    return body, {"Content-Type": "application/json", "X-Sign": sign_body("/ws/push", body)}


def known_everywhere(nodes, count=1):
    known = lambda: all(node.metric("ws_cluster_business_server_known") >= count for node in nodes)
    eventually(known, "the business servers are known")


def test_upgrade_push_and_the_address_of_the_client(site, name):
    proxy, nodes = site
    with nodes[0].business("connect,request") as own:
        known_everywhere(nodes)
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(connect(proxy, nodes[0], f"{name}{n}")) for n in range(4)]
            at = {welcome(client)["node"] for client in clients}
            assert at == {221, 222}, "the proxy uses both nodes"
            for _ in clients:
                assert own.json()["ip"] == "127.0.0.1"
            connection = http.client.HTTPConnection(*proxy.at, timeout=PATIENCE)
            with contextlib.closing(connection):
                for number in range(20):
                    body, headers = push_request(number)
                    connection.request("POST", "/ws/push", body, headers)
                    answer = connection.getresponse()
                    assert answer.status == 200, answer.read()
                    answer.read()
            for client in clients:
                assert sorted(pushed(client) for _ in range(20)) == list(range(20))
            clients[0].send(json.dumps({"type": "request", "data": 1}))
            asked = own.json()
            assert asked["from"]["ip"] == "127.0.0.1"
    # The signature of no handshake is in a log.
    for file in os.listdir(proxy.folder):
        path = os.path.join(proxy.folder, file)
        if os.path.isfile(path):
            with open(path) as log:
                assert "sign=" not in log.read(), file


def test_a_client_cannot_claim_another_address(site, name):
    """The client comes from another address than the proxy, and claims a third."""
    proxy, nodes = site
    with nodes[0].business("connect") as own:
        known_everywhere(nodes)
        for source in ("127.0.0.1", "127.0.0.9"):
            for extra in ("", "X-Forwarded-For: 192.0.2.1\r\n"):
                query = signed("/ws/connect", nodes[0].connect_params(name))
                with Raw(proxy.at, source=source) as raw:
                    raw.send(handshake(f"/ws/connect?{query}", extra=extra))
                    assert raw.read_head().startswith("HTTP/1.1 101 ")
                    ip = own.json()["ip"]
                    # From the proxy's own address nginx's list has a trusted last entry: all that
                    # precedes it was claimed at a trusted proxy.
                    if source == "127.0.0.9":
                        assert ip == source
                    else:
                        assert ip in (source, "192.0.2.1" if extra else source)


def test_the_query_as_a_subprotocol_passes_through(site, name):
    proxy, nodes = site
    query = signed("/ws/connect", nodes[0].connect_params(name))
    encoded = base64.urlsafe_b64encode(query.encode()).decode().rstrip("=")
    url = "ws://%s:%d/ws/connect" % proxy.at
    protocols = ["ws-cluster", f"q.{encoded}"]
    with ws_connect(url, subprotocols=protocols, compression=None, proxy=None) as connection:
        assert connection.subprotocol == "ws-cluster"
        welcome(connection)


def test_connections_to_the_http_api_are_kept(site):
    proxy, nodes = site
    connection = http.client.HTTPConnection(*proxy.at, timeout=PATIENCE)
    with contextlib.closing(connection):
        for _ in range(200):
            connection.request("GET", "/readyz")
            answer = connection.getresponse()
            assert answer.status == 200 and answer.read()
        # Those of health checks come and go; these stay.
        counts = []
        for _ in range(10):
            counts.append(sum(node.metric("ws_cluster_http_connection") for node in nodes))
            time.sleep(0.1)
        assert 1 <= min(counts) and max(counts) < 20, counts


class Pusher(threading.Thread):
    """Pushes through the proxy on kept connections, and counts what fails."""

    def __init__(self, proxy, number):
        super().__init__(daemon=True)
        self.proxy = proxy
        self.number = number
        self.pushed = 0
        self.failures = []
        self.is_over = threading.Event()

    def run(self):
        connection = http.client.HTTPConnection(*self.proxy.at, timeout=PATIENCE)
        while not self.is_over.is_set():
            key = f"k{self.number}-{self.pushed}"
            body, headers = push_request(key, idempotency_key=key, uids=["nobody"])
            try:
                connection.request("POST", "/ws/push", body, headers)
                answer = connection.getresponse()
                text = answer.read()
                if answer.status != 200:
                    self.failures.append((answer.status, text))
            except http.client.RemoteDisconnected as error:
                # The proxy may close a connection between two requests.
                if self.pushed == 0:
                    self.failures.append(error)
                connection.close()
                continue
            except (OSError, http.client.HTTPException) as error:
                self.failures.append(error)
                connection.close()
            self.pushed += 1
            time.sleep(0.005)
        connection.close()


class Visitor(threading.Thread):
    """A client that comes back when its node goes away, after the delay in its Close frame."""

    def __init__(self, proxy, node, uid):
        super().__init__(daemon=True)
        self.proxy, self.node, self.uid = proxy, node, uid
        self.nodes = []
        self.codes = []
        self.failures = []
        self.is_over = threading.Event()

    def run(self):
        while not self.is_over.is_set():
            try:
                with connect(self.proxy, self.node, self.uid) as connection:
                    self.nodes.append(welcome(connection)["node"])
                    while not self.is_over.is_set():
                        with contextlib.suppress(TimeoutError):
                            connection.recv(0.2)
            except ConnectionClosed as closed:
                code = closed.rcvd.code if closed.rcvd else None
                self.codes.append(code)
                if code == 1001:
                    delay = json.loads(closed.rcvd.reason)["reconnect_after_ms"] / 1000
                    self.is_over.wait(min(delay, 2))
            except Exception as error:  # noqa: BLE001
                self.failures.append(error)
                self.is_over.wait(0.2)


def test_a_node_is_drained_without_a_failed_request(site, name):
    proxy, nodes = site
    pushers = [Pusher(proxy, number) for number in range(4)]
    visitors = [Visitor(proxy, nodes[0], f"{name}{number}") for number in range(20)]
    threads = [*pushers, *visitors]
    try:
        for thread in threads:
            thread.start()
        eventually(lambda: all(one.nodes for one in visitors), "everybody is connected", START)
        eventually(lambda: all(one.pushed > 50 for one in pushers), "pushes", START)
        at_first = [one for one in visitors if one.nodes[0] == 221]
        assert 0 < len(at_first) < len(visitors)
        nodes[0].signal(signal.SIGTERM)
        assert nodes[0].wait(START) == 0
        if proxy.kind == "haproxy":
            # It has noticed by /readyz, before the node stopped listening.
            down = r"Server ws_cluster_http/node1 is DOWN.*Layer7 wrong status, code: 503"
            eventually(lambda: re.search(down, proxy.output()), "HAProxy notices", START)
        back = lambda: all(one.nodes[-1] == 222 for one in visitors)
        eventually(back, "everybody is at the other node", START)
        counts = [one.pushed for one in pushers]
        more = lambda: all(one.pushed > before + 50 for one, before in zip(pushers, counts))
        eventually(more, "pushes at the other node", START)
    finally:
        for thread in threads:
            thread.is_over.set()
        for thread in threads:
            if thread.is_alive():
                thread.join(PATIENCE)
    assert [one.failures for one in pushers] == [[]] * len(pushers)
    assert all(one.codes == ([1001] if one in at_first else []) for one in visitors)
    assert [one.failures for one in visitors] == [[]] * len(visitors)
