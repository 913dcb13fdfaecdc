"""The memory that unauthenticated peers can make a node hold."""

import contextlib
import json
import time

import pytest
from harness import Raw, Server, eventually, sign_body

MIB = 1 << 20
SLACK = 30.0
REQUEST = b"GET /none HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture
def server(stack):
    server = Server("--workers", "1", "--worker_body_bytes", "8M", "--linger_ms", "100")
    stack.callback(server.stop)
    return server


def begin(stack, server, sent, length=MIB, chunked=False):
    """A push whose last bytes are never sent; its sign would be wrong."""
    raw = stack.enter_context(Raw(server.http))
    how = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {length}"
    head = f"POST /ws/push HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n{how}\r\n\r\n"
    body = b"x" * sent
    raw.send(head.encode() + (b"%x\r\n%b" % (length, body) if chunked else body))
    return raw


def held(server):
    return server.metric("ws_cluster_http_body_bytes")


def refused(server, reason="body_bytes"):
    return server.metric("ws_cluster_refused_total", port="http", reason=reason)


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
def test_bodies_that_are_not_whole_share_a_budget(stack, server, chunked):
    """600 connections with 1 MB each held 767 MB before any signature was checked."""
    before = server.resident_bytes()

    def grown():
        return server.resident_bytes() - before

    half = []
    for _ in range(60):
        try:
            half.append(begin(stack, server, MIB - 10, chunked=chunked))
        except ConnectionError:
            # It was refused before it had sent everything.
            continue
    eventually(lambda: refused(server) >= 50, "the others are refused")
    # The figure is that of the worker's last tick.
    eventually(lambda: 6 * MIB < held(server) <= 8 * MIB, "the budget is used, and no more than it")
    # Memory of the refused ones is freed at once, and returned to the system soon after.
    assert grown() < 32 * MIB
    eventually(lambda: grown() < 24 * MIB, "most of it is given back within a second", timeout=1)
    eventually(lambda: grown() < 12 * MIB, "little more than the budget stays")
    assert len(half) > 8
    # A small request needs none of the budget.
    server.push("small")
    assert server.request("GET", "/healthz").status == 200
    # Incomplete requests are dropped for one that completes.
    large = {"pid": "1", "data": "l" * (MIB - 1000)}

    def accepted():
        answer = server.post_json("/ws/push", large)
        assert answer.status in (200, 503), answer.text
        if answer.status == 503:
            assert answer.headers["Retry-After"] == "1" and "try again" in answer.json["msg"]
            # That ended the connection.
            server.keep().close()
        return answer.status == 200

    eventually(accepted, "room for a request that arrives")
    for raw in half:
        raw.socket.close()
    eventually(lambda: held(server) < MIB // 4, "all memory is given back")


def test_answers_that_nobody_reads_are_few(stack, server):
    """Each connection held 64 KiB and more of unread responses, without a single signed request."""
    clients = [stack.enter_context(Raw(server.http, receive_buffer=4096)) for _ in range(40)]
    for client in clients:
        client.send(REQUEST)
        assert client.read_response()[0] == 404
        client.socket.setblocking(False)
    before = server.resident_bytes()
    for client in clients:
        with contextlib.suppress(BlockingIOError):
            client.socket.send(REQUEST * 4000)
    answered = server.metric("request_total")

    def rests():
        nonlocal answered
        time.sleep(0.2)
        last, answered = answered, server.metric("request_total")
        return last == answered

    eventually(rests, "the sockets take no more answers", SLACK)
    assert 40 * 200 < answered < 40 * 3900
    assert server.resident_bytes() - before < 4 * MIB
    assert server.request("GET", "/healthz").status == 200


def test_a_length_that_is_announced_takes_nothing(stack, server):
    for _ in range(60):
        begin(stack, server, sent=100)
    eventually(lambda: server.metric("ws_cluster_http_connection") == 60, "all are there")
    assert held(server) == 0 and refused(server) == 0


def test_a_request_larger_than_the_buffers_grows_no_more_than_it_needs(stack, server):
    body = json.dumps({"pid": "1", "data": "a" * (MIB - 100)})
    raw = begin(stack, server, sent=0, length=len(body))
    raw.send(body[:-1])
    eventually(lambda: held(server) > MIB * 0.9, "the body")
    assert held(server) < MIB + 16384
    raw.send(body[-1:])
    assert raw.read_response()[0] == 401
    eventually(lambda: held(server) == 0, "all memory is given back")
    signed = server.post_json("/ws/push", body)
    assert signed.status == 200 and sign_body("/ws/push", body)


def test_the_budget_holds_a_request_or_the_flag_is_refused():
    with pytest.raises(AssertionError, match="--worker_body_bytes 1048576 is too small for one"):
        Server("--worker_body_bytes", "1M")
