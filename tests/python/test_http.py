"""The HTTP API's statuses, its framing, and CORS."""

import contextlib
import json
import re
import select
import socket

import pytest
from harness import TEXT, Raw, eventually, sign_body, signed

PATH = "/ws/push"
FORM = {"Content-Type": "application/x-www-form-urlencoded"}


def exchange(server, request):
    """Sends one raw request on a new connection; returns status, header fields and body."""
    with Raw(server.http) as raw:
        raw.send(request)
        return raw.read_response()


def assert_refused(answer, status):
    code, fields, body = answer
    assert code == status, body
    parsed = json.loads(body)
    assert list(parsed) == ["code", "msg"] and parsed["code"] == 0 and parsed["msg"]
    assert fields["content-type"] == "application/json"
    return fields


def test_pages_without_a_signature(shared):
    for path in ("/healthz", "/readyz"):
        answer = shared.request("GET", path)
        assert (answer.status, answer.json["code"]) == (200, 1)
    version = shared.request("GET", "/version").json
    assert version["code"] == 1 and version["node"] == 200 and version["version"]


def test_unknown_paths_are_404(shared):
    for path in ("/", "/ws", "/ws/push/", "/ws/connect", "/metrics", "/ws/push%20"):
        shared.request("GET", path).assert_refused(404)
    shared.request("POST", "/nowhere", "x").assert_refused(404)


def test_other_methods_are_405(shared):
    for method in ("GET", "PUT", "DELETE", "PATCH"):
        answer = shared.request(method, PATH)
        answer.assert_refused(405)
        assert "POST" in answer.headers["Allow"]
    answer = shared.request("POST", "/healthz", "")
    answer.assert_refused(405)
    assert "GET" in answer.headers["Allow"]


def test_a_post_without_length_is_411(shared):
    request = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n\r\n"
    assert_refused(exchange(shared, request), 411)


def test_a_query_needs_no_body(shared):
    query = signed(PATH, {"pid": "1", "data": "x", "uids": "nobody"})
    status, _, _ = exchange(shared, f"POST {PATH}?{query} HTTP/1.1\r\nHost: x\r\n\r\n")
    assert status == 200


def test_bodies_over_1_mib_are_413(shared):
    head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    assert_refused(exchange(shared, f"{head}Content-Length: {(1 << 20) + 1}\r\n\r\n"), 413)
    assert_refused(exchange(shared, f"{head}Content-Length: {1 << 70}\r\n\r\n"), 413)
    expecting = f"{head}Expect: 100-continue\r\nContent-Length: 9999999\r\n\r\n"
    assert_refused(exchange(shared, expecting), 413)
    with Raw(shared.http) as raw:
        raw.send(f"{head}Transfer-Encoding: chunked\r\n\r\n100001\r\n")
        assert_refused(raw.read_response(), 413)
        assert raw.ended()


def test_a_body_of_1_mib_is_taken(shared, name):
    with shared.client(name) as client:
        start = '{"pid":1,"uids":"%s","data":"' % name
        data = "d" * ((1 << 20) - len(start) - 2)
        assert shared.post_json(PATH, f'{start}{data}"}}').status == 200
        assert client.pushed() == f'"{data}"'


def test_other_content_types_are_415(shared):
    for content_type in ("text/plain", "application/jsonp", "multipart/form-data; boundary=x"):
        body = '{"pid":1,"data":1}'
        headers = {"Content-Type": content_type, "X-Sign": sign_body(PATH, body)}
        shared.request("POST", PATH, body, headers).assert_refused(415)


def test_big_heads_are_431(shared):
    for extra in (f"X: {'x' * 9000}\r\n", "X: y\r\n" * 101):
        request = f"GET /healthz HTTP/1.1\r\nHost: x\r\n{extra}\r\n"
        assert_refused(exchange(shared, request), 431)
    with Raw(shared.http) as raw:
        raw.send("GET /" + "x" * 9000)
        assert raw.read_response()[0] == 431
        assert raw.ended()
    fine = f"GET /healthz HTTP/1.1\r\nHost: x\r\n{'X: y' + chr(13) + chr(10)}" + "\r\n"
    assert exchange(shared, fine)[0] == 200


@pytest.mark.parametrize(
    "request_text",
    [
        "nonsense\r\n\r\n",
        "GET /healthz HTTP/2.0\r\nHost: x\r\n\r\n",
        "GET /healthz HTTP/1.1\r\n\r\n",
        "GET /healthz HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
        "GET /healthz HTTP/1.1\r\nHost: x\nX: y\r\n\r\n",
        "GET /healthz HTTP/1.1\r\nHost: x\r\n X: folded\r\n\r\n",
        "GET /healthz HTTP/1.1\r\nHost : x\r\n\r\n",
        "GET healthz HTTP/1.1\r\nHost: x\r\n\r\n",
        "GET /a\x00b HTTP/1.1\r\nHost: x\r\n\r\n",
        "POST /ws/push HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        "POST /ws/push HTTP/1.1\r\nHost: x\r\nContent-Length: +1\r\n\r\na",
        "POST /ws/push HTTP/1.1\r\nHost: x\r\nContent-Length: 1, 1\r\n\r\na",
        "POST /ws/push HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
        "Content-Length: 4\r\n\r\n0\r\n\r\n",
        "POST /ws/push HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "POST /ws/push HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST /ws/push HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n\r\n",
        "POST /ws/push HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n",
        "POST /ws/push HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0x1\r\na\r\n",
    ],
    ids=lambda text: text[:70],
)
def test_requests_that_two_readers_could_read_differently_are_400(shared, request_text):
    with Raw(shared.http) as raw:
        raw.send(request_text)
        assert_refused(raw.read_response(), 400)
        assert raw.ended()


def test_a_request_that_does_not_come_whole_is_408(start):
    server = start("--request_timeout_ms", "200", "--keep_alive_ms", "400")
    for part in (
        "",
        "GET /healthz HTTP/1.1\r\nHo",
        "POST /ws/push HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nabc",
        "POST /ws/push HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
    ):
        with Raw(server.http) as raw:
            raw.send(part)
            assert_refused(raw.read_response(), 408)
            assert raw.ended()
    with Raw(server.http) as raw:
        raw.send("GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert raw.read_response()[0] == 200
        assert raw.ended(), "an idle kept connection ends without a 408"


def test_keep_alive_and_close(shared):
    get = "GET /healthz HTTP/1.1\r\nHost: x\r\n"
    with Raw(shared.http) as raw:
        for _ in range(5):
            raw.send(f"{get}\r\n")
            status, fields, _ = raw.read_response()
            assert status == 200 and "connection" not in fields
        raw.send(f"{get}Connection: close\r\n\r\n")
        status, fields, _ = raw.read_response()
        assert (status, fields["connection"]) == (200, "close")
        assert raw.ended()
    with Raw(shared.http) as raw:
        raw.send("GET /healthz HTTP/1.0\r\n\r\n")
        assert raw.read_response()[0] == 200
        assert raw.ended()


def test_an_error_of_the_api_keeps_the_connection(shared):
    with Raw(shared.http) as raw:
        body = '{"pid":1,"data":1}'
        for _ in range(3):
            raw.send(
                f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                f"X-Sign: 00\r\nContent-Length: {len(body)}\r\n\r\n{body}"
            )
            assert_refused(raw.read_response(), 401)
        raw.send("GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n")
        assert_refused(raw.read_response(), 404)


def test_pipelined_requests_are_answered_in_order(shared):
    paths = ["/healthz", "/nowhere", "/version", "/readyz"] * 50
    with Raw(shared.http) as raw:
        raw.send("".join(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n" for path in paths))
        for path in paths:
            status, _, body = raw.read_response()
            assert status == (404 if path == "/nowhere" else 200)
            assert ("version" in body) == (path == "/version")


def test_a_request_may_come_byte_by_byte(shared, name):
    with shared.client(name) as client, Raw(shared.http) as raw:
        body = json.dumps({"pid": 1, "uids": name, "data": "slow"})
        request = (
            f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            f"X-Sign: {sign_body(PATH, body)}\r\nContent-Length: {len(body)}\r\n\r\n{body}"
        )
        for character in request:
            raw.send(character)
        assert raw.read_response()[0] == 200
        assert client.pushed() == '"slow"'


def test_100_continue_with_a_length(shared):
    with Raw(shared.http) as raw:
        query = signed(PATH, {"pid": "1", "data": "x", "uids": "nobody"})
        raw.send(
            f"POST {PATH} HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n"
            f"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {len(query)}\r\n\r\n"
        )
        assert raw.read_head() == "HTTP/1.1 100 Continue"
        raw.send(query)
        assert raw.read_response()[0] == 200


ORIGIN = "https://app.example"


def preflight(server, path, origin, **headers):
    return server.request(
        "OPTIONS",
        path,
        headers={
            "Origin": origin,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "content-type,x-sign",
            **headers,
        },
    )


def test_a_preflight_is_204(start):
    server = start()
    answer = preflight(server, PATH, ORIGIN)
    assert (answer.status, answer.body) == (204, b"")
    assert answer.headers["Access-Control-Allow-Origin"] in (ORIGIN, "*")
    assert "POST" in answer.headers["Access-Control-Allow-Methods"]
    allowed = answer.headers["Access-Control-Allow-Headers"].lower()
    assert "content-type" in allowed and "x-sign" in allowed


def test_cors_follows_the_projects_origins(shared):
    two = {"pid": "two", "data": "x", "uids": "nobody"}
    query = signed(PATH, two, "new-secret-of-two")
    for origin, is_allowed in ((ORIGIN, True), ("https://evil.example", False)):
        for answer in (
            preflight(shared, f"{PATH}?{query}", origin),
            shared.request("POST", PATH, query, {**FORM, "Origin": origin}),
            shared.post_json(PATH, two, "new-secret-of-two", headers={"Origin": origin}),
        ):
            assert answer.status in (200, 204)
            wanted = origin if is_allowed else None
            assert answer.headers["Access-Control-Allow-Origin"] == wanted
            assert "Origin" in answer.headers["Vary"]
        refused = shared.post_json(PATH, two, "wrong", headers={"Origin": origin})
        assert refused.status == 401
        assert refused.headers["Access-Control-Allow-Origin"] == wanted


@pytest.mark.parametrize(
    "head, status",
    [("Content-Length: 2000000\r\n", 413), ("Transfer-Encoding: chunked\r\n", 400)],
    ids=["413", "400"],
)
def test_a_page_reads_why_its_request_was_not_even_read(shared, head, status):
    with shared.raw_http() as raw:
        raw.send(f"POST {PATH} HTTP/1.1\r\nHost: x\r\nOrigin: {ORIGIN}\r\n{head}\r\nno chunk\r\n")
        got, fields, body = raw.read_response()
    assert (got, json.loads(body)["code"]) == (status, 0)
    assert (fields["access-control-allow-origin"], fields["vary"]) == (ORIGIN, "Origin")
    assert fields["connection"] == "close"


def test_a_push_larger_than_a_batch_reaches_all(shared, name):
    """Frames of 300 KiB are sent completely beside small ones."""
    with shared.client(name) as one, shared.client(name) as two:
        big = "b" * 300_000
        for number in range(4):
            shared.push([number, big], uids=[name])
            shared.push(number, uids=[name])
        for client in (one, two):
            got = [json.loads(client.pushed()) for _ in range(8)]
            assert got == [item for number in range(4) for item in ([number, big], number)]


def test_max_http_connections(start, workers):
    """At the limit an idle connection is closed for a new one, so no request is kept out."""
    server = start("--max_http_connections", "2")
    held = []
    for _ in range(12):
        held.append(Raw(server.http))
        held[-1].send("GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert held[-1].read_response()[0] == 200

    def ended():
        readable, _, _ = select.select([raw.socket for raw in held], [], [], 0)
        return sum(one.recv(1, socket.MSG_PEEK) == b"" for one in readable)

    eventually(lambda: ended() >= len(held) - 2 * int(workers), "the longest idle are ended")
    assert server.metric("ws_cluster_http_connection") <= 2 * int(workers)
    for raw in held:
        raw.socket.close()


def test_frames_on_the_http_port_and_pushes_on_the_ws_port(shared):
    with Raw(shared.http) as raw:
        raw.frame(TEXT, "x")
        assert raw.read_response()[0] == 400
    query = signed(PATH, {"pid": "1", "data": "x"})
    with Raw(shared.ws) as raw:
        raw.send(f"POST {PATH}?{query} HTTP/1.1\r\nHost: x\r\n\r\n")
        assert raw.read_response()[0] == 404


def test_a_client_that_reads_no_answers_is_ended(start):
    """The connection was kept for ever: the deadline ended only the reading side."""
    server = start("--request_timeout_ms", "300")
    before = server.metric("ws_cluster_http_connection")
    asked = "a" * 7500
    request = "OPTIONS /ws/push HTTP/1.1\r\nHost: x\r\n"
    request += f"Access-Control-Request-Headers: {asked}\r\n\r\n"
    with Raw(server.http, receive_buffer=4096) as raw:
        ports = tuple(f":{port:04X} " for port in (server.http[1], raw.socket.getsockname()[1]))

        def is_read():
            """Whether the server has read all that was sent."""
            with open("/proc/net/tcp") as table:
                line = next(line for line in table if re.search("{}.*{}".format(*ports), line))
            return line.split()[4].endswith(":00000000")

        # Until the server cannot write and stops reading; more unread input would end it anyway.
        with contextlib.suppress(AssertionError):
            while True:
                raw.send(8 * request)
                eventually(is_read, "the request is read", timeout=0.1)
        is_gone = lambda: server.metric("ws_cluster_http_connection") == before
        eventually(is_gone, "the connection is gone")


def test_head_is_get_without_the_body(shared):
    for path in ("/healthz", "/version", "/nowhere"):
        length = len(shared.request("GET", path).text)
        with shared.raw_http() as raw:
            raw.send(f"HEAD {path} HTTP/1.1\r\nHost: x\r\n\r\n")
            assert f"Content-Length: {length}" in raw.read_head()
            raw.send("GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert raw.read_response()[0] == 200


def test_tiny_chunks_take_no_more_memory_than_their_data(start):
    """The decoded JSON was kept: twenty bytes for each byte of the body."""
    server = start()
    before = server.resident_bytes()
    chunks = b"000000000000001\r\nx\r\n" * (1 << 20)
    with server.raw_http() as raw:
        raw.send("POST /ws/push HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        raw.send(chunks)
        assert server.resident_bytes() - before < 8 << 20
        raw.send(b"0\r\n\r\nGET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert raw.read_response()[0] == 415
        assert raw.read_response()[0] == 200


def test_a_large_request_does_not_leave_its_room_behind(start):
    """The buffer stayed if a byte of the next request was always there: a megabyte for a few
    bytes."""
    server = start()
    body = "POST /nope HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n" + "x" * 1_000_000
    before = server.resident_bytes()
    with contextlib.ExitStack() as stack:
        for _ in range(40):
            raw = stack.enter_context(server.raw_http())
            raw.send(body + "G")
            assert raw.read_response()[0] == 404
            for _ in range(2):
                raw.send("ET /healthz HTTP/1.1\r\nHost: x\r\n\r\nG")
                assert raw.read_response()[0] == 200

        def grown():
            return server.resident_bytes() - before

        # 40 MB were in use. Freed memory is reused, and returned to the system soon after.
        assert grown() < 24 << 20
        eventually(lambda: grown() < 20 << 20, "most is given back within a second", timeout=1)
        eventually(lambda: grown() < 6 << 20, "freed memory is given back")


def test_100_continue_does_not_overtake_an_answer(own_redis, own_node):
    """With a slow queue, the answer before it was not written yet."""
    server = own_node(7, own_redis().url)
    push = {"pid": "1", "data": 1}
    query = signed(PATH, push)
    body = json.dumps(push)
    with server.raw_http() as raw:
        raw.send(
            f"POST {PATH}?{query} HTTP/1.1\r\nHost: x\r\n\r\n"
            f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            f"X-Sign: {sign_body(PATH, body)}\r\n"
            f"Expect: 100-continue\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        assert raw.read_response()[0] == 200
        assert raw.read_head() == "HTTP/1.1 100 Continue"
        raw.send(body)
        assert raw.read_response()[0] == 200
