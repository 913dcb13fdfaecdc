"""The handshake: who is accepted, the first message, and every refusal with its status."""

import json
import re
import time

import pytest
from harness import (
    PROD_SECRET,
    TEXT,
    Raw,
    canonical,
    eventually,
    frame,
    handshake,
    hmac_hex,
    signed,
)
from websockets.exceptions import InvalidStatus

PATH = "/ws/connect"


def test_the_vector_of_the_contract():
    text = f"{PATH}\n" + canonical({"pid": 1, "uid": "u 1", "type": 1})
    assert text == "/ws/connect\npid=1&type=1&uid=u%201"
    sign = "fc693ec296eeb192fb6458696cdcdbabb265af8ab51ac61badcd7a8bb45ffae9"
    assert hmac_hex("dev-secret", text) == sign


def test_the_welcome_is_exactly_that_of_the_contract(shared, name):
    with shared.client(name) as client:
        assert re.fullmatch(r"[1-9]\d*", client.cid)
        assert client.welcome == (
            '{"type":"connect","code":1,"msg":"success","client_id":"%s","node":200}' % client.cid
        )
        assert int(client.cid) >> 12 & 1023 == 200


def test_client_ids_are_never_given_out_twice(shared, name):
    clients = [shared.client(name) for _ in range(30)]
    assert len({client.cid for client in clients}) == 30
    for client in clients:
        client.close()


@pytest.mark.parametrize("separator", ["+", "%20"])
def test_plus_and_percent_20_are_spaces(shared, separator):
    query = f"pid=1&uid=u{separator}1&type=1"
    sign = "fc693ec296eeb192fb6458696cdcdbabb265af8ab51ac61badcd7a8bb45ffae9"
    with shared.raw_ws(target=f"{PATH}?{query}&sign={sign}") as raw:
        assert raw.read_frame()[1].startswith(b'{"type":"connect","code":1')


def test_unknown_parameters_are_ignored_but_signed(shared, name):
    with shared.client(name, whatever="x y", events="request"):
        pass
    query = signed(PATH, shared.connect_params(name))
    assert refusal(shared, f"{PATH}?{query}&later=1")[0] == 401


def refusal(server, target, **options):
    """The status, the header fields and the message of a refused handshake."""
    with Raw(server.ws) as raw:
        raw.send(handshake(target, **options))
        status, fields, body = raw.read_response()
        parsed = json.loads(body)
        assert list(parsed) == ["code", "msg"] and parsed["code"] == 0, body
        assert parsed["msg"] and fields["content-type"] == "application/json"
        return status, fields


def status_of(server, params, secret="dev-secret", **options):
    return refusal(server, f"{PATH}?{signed(PATH, params, secret)}", **options)[0]


GOOD = {"pid": "1", "uid": "u1", "type": "1"}


@pytest.mark.parametrize(
    "change",
    [
        {"pid": None},
        {"pid": ""},
        {"pid": "a/b"},
        {"pid": "x" * 65},
        {"uid": None},
        {"uid": ""},
        {"uid": "a,b"},
        {"uid": "a\x07"},
        {"uid": "u" * 129},
        {"type": "3"},
        {"type": ""},
        {"device": "iOS"},
        {"device": ""},
        {"device": "d" * 33},
        {"tags": "a,,b"},
        {"tags": "a\n"},
        {"tags": "t" * 129},
        {"tags": ",".join(f"t{n}" for n in range(257))},
        {"exp": "soon"},
        {"session_exp": "-1"},
    ],
    ids=str,
)
def test_malformed_or_missing_parameters_are_400(shared, change):
    params = {name: value for name, value in {**GOOD, **change}.items() if value is not None}
    assert status_of(shared, params) == 400


def test_parameters_that_cannot_be_read_are_400(shared):
    query = signed(PATH, GOOD)
    for bad in ("&uid=u2", "&x=%zz", "&x=%ff", "&" + "&".join(f"p{n}=" for n in range(256))):
        assert refusal(shared, f"{PATH}?{query}{bad}")[0] == 400, bad


def test_bad_signatures_are_401(shared):
    good = signed(PATH, GOOD)
    base, sign = good.rsplit("sign=", 1)
    for bad in (sign.upper(), sign[:-1], sign + "0", "", "g" * 64, "0" * 64, " " + sign[1:]):
        target = f"{PATH}?{base}sign={bad.replace(' ', '%20')}"
        assert refusal(shared, target)[0] == 401, bad
    assert refusal(shared, f"{PATH}?{canonical(GOOD)}")[0] == 401
    assert status_of(shared, GOOD, "another-secret") == 401
    assert status_of(shared, {**GOOD, "pid": "two"}, "dev-secret") == 401


def test_exp_limits_the_handshake(shared, name):
    now = int(time.time())
    assert status_of(shared, {**GOOD, "exp": now - 30}) == 401
    for exp in (now + 60, now - 2):
        with shared.client(name, exp=exp):
            pass


def test_an_unknown_project_is_403(shared):
    assert status_of(shared, {**GOOD, "pid": "nobody"}) == 403


def test_every_secret_of_a_project_signs(shared, name):
    for secret in ("new-secret-of-two", "old-secret-of-two"):
        with shared.client(name, pid="two", secret=secret):
            pass


def test_origins(shared, name):
    two = {"pid": "two", "secret": "new-secret-of-two"}
    with shared.client(name, **two):
        pass
    with shared.client(name, origin="https://app.example", **two):
        pass
    for origin in ("https://evil.example", "https://app.example:8443", "null"):
        with pytest.raises(InvalidStatus) as refused:
            shared.open(name, origin=origin, **two)
        assert refused.value.response.status_code == 403
    with shared.client(name, origin="https://any.example"):
        pass
    with shared.client(name, origin="https://x.example", pid="none", secret="secret-of-none"):
        pass
    with pytest.raises(InvalidStatus) as refused:
        shared.open(
            name, origin="https://x.example", pid="signed", secret="secret-of-signed"
        )
    assert refused.value.response.status_code == 403


def test_what_is_no_handshake(shared):
    target = f"{PATH}?{signed(PATH, GOOD)}"
    assert refusal(shared, "/")[0] == 404
    assert refusal(shared, "/ws/push")[0] == 404
    assert refusal(shared, "/healthz")[0] == 404
    status, fields = refusal(shared, target, method="POST", extra="Content-Length: 0\r\n")
    assert (status, fields["allow"]) == (405, "GET")
    for version in (None, "8"):
        status, fields = refusal(shared, target, version=version)
        assert (status, fields["sec-websocket-version"]) == (426, "13")
    assert refusal(shared, target, key=None)[0] == 400
    assert refusal(shared, target, key="short")[0] == 400
    with Raw(shared.ws) as raw:
        raw.send(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n")
        status, fields, _ = raw.read_response()
        assert (status, fields["upgrade"]) == (426, "websocket")


def test_heads_are_limited(shared):
    target = f"{PATH}?{signed(PATH, GOOD)}"
    assert refusal(shared, target, extra=f"X: {'x' * 8192}\r\n")[0] == 431
    assert refusal(shared, target, extra="X: y\r\n" * 100)[0] == 431
    with Raw(shared.ws) as raw:
        raw.send("nonsense\r\n\r\n")
        assert raw.read_response()[0] == 400


def test_a_handshake_may_come_in_pieces_and_with_the_first_frame(shared, name):
    target = f"{PATH}?{signed(PATH, shared.connect_params(name))}"
    request = handshake(target) + frame(TEXT, '{"type":"heartbeat","id":"first"}')
    with Raw(shared.ws) as raw:
        for byte in range(len(request)):
            raw.send(request[byte : byte + 1])
        assert raw.read_head().startswith("HTTP/1.1 101 Switching Protocols")
        assert b'"connect"' in raw.read_frame()[1]
        assert json.loads(raw.read_frame()[1])["id"] == "first"


def test_a_handshake_that_does_not_come_whole_is_408(start):
    server = start("--request_timeout_ms", "200")
    with Raw(server.ws) as raw:
        raw.send(f"GET {PATH}?pid=1 HTTP/1.1\r\nHost: x\r\n")
        status, _, body = raw.read_response()
        assert status == 408 and json.loads(body)["code"] == 0
        assert raw.ended()


def test_a_full_node_is_503(start):
    server = start("--max_connections", "3")
    clients = [server.client(f"u{n}") for n in range(3)]
    status, fields = refusal(server, f"{PATH}?{signed(PATH, GOOD)}")
    assert status == 503 and int(fields["retry-after"]) > 0
    clients.pop().close()
    def connects():
        try:
            return server.client("again")
        except InvalidStatus:
            return None

    eventually(connects, "room for one more").close()
    for client in clients:
        client.close()


def test_prod_demands_exp(start, prod_projects):
    server = start("--env", "prod", "--projects", prod_projects)
    assert status_of(server, GOOD, PROD_SECRET) == 401
    with server.client("u1", secret=PROD_SECRET, exp=int(time.time()) + 60):
        pass
    post = lambda **exp: server.post_json("/ws/push", {"pid": 1, "data": 1, **exp}, PROD_SECRET)
    form = lambda **exp: server.push_form({"pid": 1, "data": 1, **exp}, PROD_SECRET)
    assert post().status == 401
    exp = int(time.time()) + 60
    assert post(exp=exp).status == 200
    assert post(exp=exp - 120).status == 401
    assert form().status == 401
    assert form(exp=exp).status == 200


def test_tags_and_device_of_the_connect_are_in_force(shared, name):
    with shared.client(name, tags=f"{name}b,{name}a,{name}b", device="ios") as client:
        shared.push(1, tags=[f"{name}a"])
        shared.push(2, devices=["ios"], uids=[name])
        shared.push(3, devices=["web"], uids=[name])
        shared.push(4, tags=[f"{name}b"], devices=["ios"])
        assert shared.received([client]) == [["1", "2", "4"]]
        answer = json.loads(client.ask({"type": "subscribe", "tags": [f"{name}c"]}))
        assert answer["tags"] == [f"{name}b", f"{name}a", f"{name}c"]
