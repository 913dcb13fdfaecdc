"""Clients that send without a pause do not starve the others on their worker."""

import contextlib
import os
import signal
import socket
import subprocess
import sys

import pytest
from harness import CLOSE, PING, Raw, Server, eventually, handshake, signed
from redis_harness import await_ready, readiness

FLOODERS = 8

# Sends and reads as fast as it can, in a separate process.
FLOOD = """
import socket, sys, threading

def flood(number):
    connection = socket.socket(fileno=number)
    connection.settimeout(None)

    def read():
        while connection.recv(1 << 20):
            pass

    threading.Thread(target=read, daemon=True).start()
    heartbeat = b'{"type":"heartbeat"}'
    frames = (bytes([0x81, 0x80 | len(heartbeat), 0, 0, 0, 0]) + heartbeat) * 400
    while True:
        connection.sendall(frames)

flood(int(sys.argv[1]))
"""


@contextlib.contextmanager
def flooded(server):
    """Clients of the server that send heartbeats without a pause."""
    with contextlib.ExitStack() as stack:
        for number in range(FLOODERS):
            raw = stack.enter_context(server.raw_ws(f"flooder-{number}"))
            fd = raw.socket.fileno()
            line = [sys.executable, "-c", FLOOD, str(fd)]
            process = subprocess.Popen(line, pass_fds=[fd], stderr=subprocess.DEVNULL)
            stack.callback(process.wait)
            stack.callback(process.kill)

        # All of them are sending.
        def is_flooded():
            return server.metric("ws_cluster_client_message_total") > 20_000

        eventually(is_flooded, "a flood", timeout=60)
        yield


def test_requests_are_answered_meanwhile(start):
    server = start()
    with flooded(server), server.client("quiet", tags="busy") as quiet:
        for number in range(20):
            assert server.request("GET", "/healthz").status == 200
            server.push(number, tags=["busy"])
            assert quiet.pushed() == str(number)


@pytest.mark.parametrize("size", ["1", "2"], ids=["1-worker", "2-workers"])
def test_a_lost_redis_is_found_again_meanwhile(own_redis, own_node, size):
    redis = own_redis()
    server = own_node(7, redis.url, workers=size)
    with flooded(server):
        redis.kill()
        eventually(lambda: readiness(server).status == 503, "trouble", timeout=60)
        redis.start()
        await_ready(server, timeout=60)
        with server.client("quiet") as quiet:
            server.push("back", uids=["quiet"])
            assert quiet.pushed() == '"back"'


LEAVING = 8_000
# Connections to one address take their ports from 28,000.
PER_ADDRESS = 4_000


def sockets_of_worker(server):
    """Each worker has its own table of descriptors."""
    tasks = f"/proc/{server.process.pid}/task"
    for task in os.listdir(tasks):
        with open(f"{tasks}/{task}/comm") as name:
            if name.read().startswith("worker"):
                return len(os.listdir(f"{tasks}/{task}/fd"))
    raise AssertionError("no worker")


def still_closing_when_a_ping_is_answered(server):
    """Sockets of closed connections, at the time of the answer to a ping sent after their end."""
    target = "/ws/connect?" + signed("/ws/connect", server.connect_params("leaver"))
    stays = server.raw_ws("stays")
    stays.read_frame()
    empty = sockets_of_worker(server)
    leavers = []
    try:
        for number in range(LEAVING):
            leaver = Raw(("127.0.0.%d" % (1 + number // PER_ADDRESS), server.ws[1]))
            leavers.append(leaver)
            leaver.send(handshake(target))
            leaver.read_head()
            leaver.frame(CLOSE, b"\x03\xe8")
        for leaver in leavers:
            assert leaver.close_code() == 1000 and leaver.ended()
        assert sockets_of_worker(server) == empty + LEAVING
        server.signal(signal.SIGSTOP)
        for leaver in leavers:
            leaver.socket.shutdown(socket.SHUT_WR)
        stays.frame(PING, b"here")
        server.signal(signal.SIGCONT)
        assert stays.read_frame() == (0x8A, b"here")
        server.signal(signal.SIGSTOP)
        left = sockets_of_worker(server) - empty
        server.signal(signal.SIGCONT)
        eventually(lambda: sockets_of_worker(server) == empty, "an end of all", timeout=60)
        return left
    finally:
        server.signal(signal.SIGCONT)
        for leaver in leavers:
            leaver.socket.close()


def test_who_stays_does_not_wait_for_thousands_that_leave_together():
    """A ping came after the ends of all 18,000 sessions that were over in the same second."""
    with Server("--workers", "1", "--linger_ms", "60000", bind="0.0.0.0") as server:
        server.ws = ("127.0.0.1", server.ws[1])
        # This process may be kept from looking in time.
        found = (still_closing_when_a_ping_is_answered(server) for _ in range(3))
        assert any(left > LEAVING / 10 for left in found)
