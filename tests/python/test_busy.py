"""Clients that send without a pause: everybody else on their worker has a turn all the same."""

import contextlib
import subprocess
import sys

import pytest
from harness import eventually
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
