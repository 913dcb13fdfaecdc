"""The query of a handshake as a subprotocol, out of sight of access logs."""

import base64
import json
import re
import time

import pytest
from harness import PATIENCE, Raw, handshake, signed
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect as ws_connect

PATH = "/ws/connect"


def encoded(query):
    query = query if isinstance(query, bytes) else query.encode()
    return base64.urlsafe_b64encode(query).decode().rstrip("=")


def query_of(server, uid, **params):
    return signed(PATH, server.connect_params(uid, **params))


def answer(server, protocols, target=PATH):
    """The status and the fields of the answer to a handshake, and its message."""
    lists = [protocols] if isinstance(protocols, str) else protocols
    extra = "".join(f"Sec-WebSocket-Protocol: {one}\r\n" for one in lists)
    with Raw(server.ws) as raw:
        raw.send(handshake(target, extra=extra))
        head = raw.read_head()
        status = int(head.split(" ")[1])
        fields = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:])
        if status == 101:
            return status, fields, json.loads(raw.read_frame()[1])
        body = raw.read(int(fields["content-length"]))
        return status, fields, json.loads(body)["msg"]


def test_a_client_connects_with_its_query_as_a_subprotocol(shared, name):
    query = query_of(shared, name, tags=f"{name}é, {name}b", device="web", exp=int(time.time()) + 60)
    url = "ws://%s:%d%s" % (*shared.ws, PATH)
    protocols = ["ws-cluster", f"q.{encoded(query)}"]
    options = {"compression": None, "proxy": None, "open_timeout": PATIENCE}
    with ws_connect(url, subprotocols=protocols, **options) as connection:
        assert connection.subprotocol == "ws-cluster"
        assert json.loads(connection.recv(PATIENCE))["code"] == 1
        for selector in ({"uids": [name]}, {"tags": [f"{name}b"]}, {"devices": ["web"], "tags": [f"{name}é"]}):
            shared.push("hello", **selector)
            assert json.loads(connection.recv(PATIENCE))["data"] == "hello"


def test_a_business_server_does_too(shared):
    query = query_of(shared, None, type="2", events="request")
    status, fields, welcome = answer(shared, f"ws-cluster, q.{encoded(query)}")
    assert (status, fields["sec-websocket-protocol"], welcome["type"]) == (101, "ws-cluster", "connect")


def test_order_and_other_protocols_do_not_matter(shared, name):
    query = f"q.{encoded(query_of(shared, name))}"
    for protocols in (f"{query},ws-cluster", f"x, ws-cluster,y,{query}", [query, "ws-cluster"]):
        for target in (PATH, PATH + "?"):
            status, fields, _ = answer(shared, protocols, target)
            assert (status, fields["sec-websocket-protocol"]) == (101, "ws-cluster")
    # One that is not for the query.
    status, fields, _ = answer(shared, "ws-cluster, q", f"{PATH}?{query_of(shared, name)}")
    assert (status, fields["sec-websocket-protocol"]) == (101, "ws-cluster")


def test_what_is_ambiguous_or_malformed_is_400(shared, name):
    query = query_of(shared, name)
    good = f"q.{encoded(query)}"
    padded = next(f"q.{base64.urlsafe_b64encode(one).decode()}" for one in padded_queries(query))
    for protocols, target, words in (
        (f"ws-cluster, {good}", f"{PATH}?{query}", "use one of them"),
        (f"ws-cluster, {good}", f"{PATH}?x=y", "use one of them"),
        (f"ws-cluster, {good}, {good}", PATH, "several"),
        ([f"ws-cluster, {good}", "q."], PATH, "several"),
        (good, PATH, "offer both"),
        (f"WS-CLUSTER, {good}", PATH, "offer both"),
        (f"ws-cluster, {padded}", PATH, "base64url"),
        (f"ws-cluster, {good}!", PATH, "base64url"),
        (f"ws-cluster, {good[:2]}{good[2:].replace('c', '+', 1)}", PATH, "base64url"),
        ("ws-cluster, q.A", PATH, "base64url"),
        ("ws-cluster, q.", PATH, "pid is missing"),
        (f"ws-cluster, q.{encoded('pid=1&pid=1')}", PATH, "twice"),
        (f"ws-cluster, q.{encoded(b'pid=1&uid=%ff')}", PATH, "UTF-8"),
    ):
        status, _, msg = answer(shared, protocols, target)
        assert status == 400 and words in msg, (protocols, status, msg)


def padded_queries(query):
    """The query with unknown parameters of several lengths; at least one needs padding."""
    for more in ("", "&", "&&"):
        raw = (query + more).encode()
        if len(raw) % 3:
            yield raw


def test_the_signature_is_over_the_same_text(shared, name):
    query = query_of(shared, name)
    status, _, _ = answer(shared, f"ws-cluster, q.{encoded(query + '&later=1')}")
    assert status == 401
    status, _, _ = answer(shared, f"ws-cluster, q.{encoded(query[:-1])}")
    assert status == 401
    late = query_of(shared, name, exp=int(time.time()) - 30)
    assert answer(shared, f"ws-cluster, q.{encoded(late)}")[0] == 401
    unknown = signed(PATH, {"pid": "nobody", "uid": "u"})
    assert answer(shared, f"ws-cluster, q.{encoded(unknown)}")[0] == 403
    # The words of a query, encoded in any way that means the same.
    plus = query_of(shared, f"{name} x")
    assert "+" in plus
    for same in (plus, plus.replace("+", "%20"), plus.replace("+", " ")):
        assert answer(shared, f"ws-cluster, q.{encoded(same)}")[0] == 101


def test_a_refused_client_learns_why(shared, name):
    url = "ws://%s:%d%s" % (*shared.ws, PATH)
    with pytest.raises(InvalidStatus) as refused:
        protocols = ["ws-cluster", f"q.{encoded('pid=1')}"]
        ws_connect(url, subprotocols=protocols, compression=None, proxy=None)
    response = refused.value.response
    assert response.status_code == 400 and re.search("uid is missing", response.body.decode())


def test_a_long_query_is_bounded_by_the_head(shared, name):
    for length, status in ((5_000, 101), (6_200, 431)):
        query = query_of(shared, name, ignored="x" * length)
        assert answer(shared, f"ws-cluster, q.{encoded(query)}")[0] == status
