"""Descriptors: each kind of connection has its share, and nothing starves the others."""

import contextlib
import json
import re
import time

import pytest
from harness import Raw, Server, eventually, handshake, sign_body, signed
from redis_harness import SLACK, Redis, await_ready, node, readiness

PATH = "/ws/connect"
HALF = f"GET {PATH}?pid=1 HTTP/1.1\r\nHost: x\r\n"


def status_of(server, uid="u1"):
    """The status and the header fields of a valid handshake, which is closed at once."""
    query = signed(PATH, server.connect_params(uid))
    with Raw(server.ws) as raw:
        raw.send(handshake(f"{PATH}?{query}"))
        head = raw.read_head()
        fields = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:])
        return int(head.split(" ")[1]), fields


def limit_of(server):
    return int(server.metric("ws_cluster_connections_limit"))


@pytest.fixture
def small(stack):
    """Starts nodes of one worker whose table has 256 descriptors: small(*args)."""

    def small(*args, start=Server, **options):
        server = start(*args, open_files=256, **options)
        stack.callback(server.stop)
        return server

    return small


def fill(stack, server, room):
    """Opens connections until the node is full."""
    clients = [stack.enter_context(server.raw_ws(f"u{n}")) for n in range(room)]
    for client in clients:
        client.read_frame()
    return clients


def test_half_requests_starve_nobody(stack, small):
    """200 idle connections kept out /healthz and everybody else for ten seconds, again and
    again."""
    server = small("--workers", "1")
    halves = [stack.enter_context(Raw(server.ws)) for _ in range(300)]
    for half in halves:
        with contextlib.suppress(OSError):
            half.send(HALF)
    began = time.monotonic()
    assert server.request("GET", "/healthz").status == 200
    with server.client("signed") as client:
        assert client.ask({"type": "heartbeat"}).startswith('{"type":"heartbeat"')
    assert time.monotonic() - began < 5
    # The oldest were closed, with a response that names the reason.
    status, fields, body = halves[0].read_response()
    assert status == 503 and int(fields["retry-after"]) > 0 and "try again" in body
    assert server.metric("ws_cluster_refused_total", port="ws", reason="handshakes") > 200
    assert 0 < server.metric("ws_cluster_handshakes") < 100
    assert server.metric("ws_cluster_accept_error_total") == 0


def test_a_full_table_still_answers(stack, small):
    server = small("--workers", "1", "--linger_ms", "60000")
    room = limit_of(server)
    assert 100 < room < 256 and readiness(server).status == 200
    clients = fill(stack, server, room)
    # One connection that stays, with every descriptor but the reserved ones in use.
    stubborn = [stack.enter_context(Raw(server.ws)) for _ in range(60)]
    for raw in stubborn:
        raw.send(handshake(f"{PATH}?" + signed(PATH, server.connect_params("more"))))
        assert raw.read_response()[0] == 503
    status, fields = status_of(server)
    assert (status, fields["retry-after"]) == (503, "1")
    ready = readiness(server)
    assert ready.assert_refused(503).startswith(f"full: {room} WebSocket connections")
    assert server.request("GET", "/healthz").status == 200
    server.push("still", uids=["u3"])
    assert json.loads(clients[3].read_frame()[1])["data"] == "still"
    # The number of HTTP connections that is reserved.
    kept = [stack.enter_context(Raw(server.http)) for _ in range(14)]
    for raw in kept:
        raw.send("GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert raw.read_response()[0] == 200
    assert server.metric("ws_cluster_accept_error_total") == 0
    refused = server.metric("ws_cluster_refused_total", port="ws", reason="open_files")
    assert refused == len(stubborn) + 1
    clients.pop().socket.close()
    eventually(lambda: readiness(server).status == 200, "room for one more")


def test_the_links_to_redis_are_made_again_with_a_full_table(stack, small):
    """With one worker the links share its table: they found no descriptor, and never
    reconnected."""
    redis = Redis()
    stack.callback(redis.stop)
    server = small(start=lambda *args, **options: node(201, redis.url, workers="1", **options))
    clients = fill(stack, server, limit_of(server))
    assert "full: " in readiness(server).text
    redis.command("CLIENT", "KILL", "SKIPME", "yes")
    lost = lambda: server.metric("ws_cluster_queue_link_loss_total") >= 1
    eventually(lambda: lost() and server.metric("ws_cluster_queue_ready") == 1, "new links", SLACK)
    server.push("again", uids=["u7"])
    assert json.loads(clients[7].read_frame()[1])["data"] == "again"
    clients.pop().socket.close()
    await_ready(server)


def test_a_limit_below_max_connections_is_warned_of(small):
    server = small("--workers", "2", "--max_connections", "5000")
    found = None

    def warned():
        nonlocal found
        found = re.search(r"the limit of open files \(256\).*", "".join(server.output))
        return found

    eventually(warned, "a warning")
    assert f"room for {limit_of(server)} WebSocket connections" in found[0]
    assert "--max_connections is 5000" in found[0] and "LimitNOFILE=" in found[0]
    # The limit that it recommends is sufficient.
    advised = int(re.search(r"raise the limit to (\d+)", found[0])[1])
    assert 2_500 < advised < 2_800
    enough = Server("--workers", "2", "--max_connections", "5000", open_files=advised)
    try:
        assert limit_of(enough) == 5000
        assert "the limit of open files" not in "".join(enough.output)
    finally:
        enough.stop()


def test_a_limit_that_serves_nobody_is_an_error():
    with pytest.raises(AssertionError, match="limit of open files is 64.*LimitNOFILE="):
        Server("--workers", "1", open_files=64)


def test_readyz_says_that_max_connections_are_open(stack):
    server = Server("--workers", "2", "--max_connections", "6")
    stack.callback(server.stop)
    assert limit_of(server) == 6
    clients = [stack.enter_context(server.client(f"u{n}")) for n in range(6)]
    assert "the maximum is 6" in readiness(server).assert_refused(503)
    clients.pop().close()
    eventually(lambda: readiness(server).status == 200, "room for one more")


# HTTP connections.


def kept(stack, server):
    """A connection on which one request was answered."""
    raw = stack.enter_context(Raw(server.http))
    raw.send("GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
    assert raw.read_response()[0] == 200
    return raw


def test_idle_http_connections_make_way(stack):
    server = Server("--workers", "1", "--max_http_connections", "3")
    stack.callback(server.stop)
    # The connection of a backend that has signed stays, although others that were idle for less
    # time are closed.
    server.push("first")
    others = [kept(stack, server) for _ in range(2)]
    fresh = [kept(stack, server) for _ in range(2)]
    assert all(one.ended() for one in others)
    assert server.request("GET", "/healthz").status == 200
    assert fresh[0].ended()
    server.push("second")
    refused = lambda reason: server.metric("ws_cluster_refused_total", port="http", reason=reason)
    assert (refused("idle"), refused("half_request"), refused("connections")) == (3, 0, 0)
    # So is one without a complete request; it gets the reason.
    half = stack.enter_context(Raw(server.http))
    half.send("GET /healthz HTTP/1.1\r\n")
    eventually(lambda: server.metric("ws_cluster_http_connection") == 3, "the half one is there")
    for _ in range(2):
        kept(stack, server)
    status, fields, _ = half.read_response()
    assert (status, fields["retry-after"]) == (503, "1")
    assert (refused("idle"), refused("half_request")) == (4, 1)
    server.push("third")


def test_requests_under_way_keep_their_places(stack):
    redis = Redis()
    stack.callback(redis.stop)
    args = ["--max_http_connections", "2", "--queue_timeout_ms", "4000"]
    server = node(201, redis.url, *args, workers="1")
    stack.callback(server.stop)
    redis.pause()
    try:
        pushing = [stack.enter_context(Raw(server.http)) for _ in range(2)]
        for raw in pushing:
            body = '{"pid":"1","data":1}'
            raw.send(
                f"POST /ws/push HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                f"X-Sign: {sign_body('/ws/push', body)}\r\nContent-Length: {len(body)}\r\n\r\n{body}"
            )
        eventually(lambda: server.metric("ws_cluster_queue_pending_bytes") > 0, "pushes that wait")
        with Raw(server.http) as more:
            status, fields, _ = more.read_response()
            assert (status, fields["retry-after"]) == (503, "1")
        assert server.metric("ws_cluster_refused_total", reason="connections") == 1
    finally:
        redis.go_on()
    assert all(raw.read_response()[0] == 200 for raw in pushing)


def test_answers_that_nobody_reads_keep_nobody_out(stack, small):
    """Peers without a signature held all connections for ten seconds, again and again."""
    server = small("--workers", "1")
    asked = "a" * 7_500
    request = "OPTIONS /ws/push HTTP/1.1\r\nHost: x\r\n"
    request += f"Access-Control-Request-Headers: {asked}\r\n\r\n"
    for _ in range(130):
        raw = stack.enter_context(Raw(server.http, receive_buffer=2048))
        raw.socket.setblocking(False)
        left = memoryview(request.encode() * 1_000)
        with contextlib.suppress(OSError):
            while left:
                left = left[raw.socket.send(left) :]
                # Data sent at once is read at once, and more fits into the buffers.
                time.sleep(0.002)
    began = time.monotonic()
    assert server.request("GET", "/healthz").status == 200
    server.push("known", uids=["nobody"])
    assert time.monotonic() - began < 5
    refused = lambda reason: server.metric("ws_cluster_refused_total", port="http", reason=reason)
    assert refused("unread") > 0 and refused("connections") == 0
