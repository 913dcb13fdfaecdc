"""What is refused instead of being accepted silently, and the texts of refusals."""

import email.utils
import gzip
import json
import time

import pytest
from harness import Raw, handshake, hmac_hex, sign_body, signed

PATH = "/ws/push"
BATCH = "/ws/push/batch"
CONNECT = "/ws/connect"
# A time of 2023 in milliseconds; in seconds it would be the year 55,840.
MILLISECONDS = 1_700_000_000_000


def refused_handshake(server, target, **options):
    """The status and the message of a refused handshake."""
    with Raw(server.ws) as raw:
        raw.send(handshake(target, **options))
        status, _, body = raw.read_response()
        return status, json.loads(body)["msg"]


def push(server, members, headers=None):
    return server.post_json(PATH, {"pid": "1", "data": 1, **members}, headers=headers)


# Unknown members.

MISSPELT = {
    "uid": "uids",
    "UIDS": "uids",
    "except": "except_cids",
    "user": "uids",
    "tag": "tags",
    "cid": "cids",
    "uids[]": "uids",
    "except_uids": "except_cids",
}


@pytest.mark.parametrize("name, meant", MISSPELT.items())
def test_a_misspelt_selector_reaches_nobody(shared, name, meant):
    """It was ignored, and a push without a selector is for everybody."""
    sentence = lambda msg: msg.startswith(f'unknown member "{name}"; ') and f'"{meant}"' in msg
    with shared.client("bystander") as bystander, shared.business("request") as server:
        assert sentence(push(shared, {name: "bob"}).assert_refused(400))
        form = {"pid": "1", "data": "x", name: "bob"}
        assert sentence(shared.push_form(form).assert_refused(400))
        query = shared.request("POST", f"{PATH}?{signed(PATH, form)}")
        assert sentence(query.assert_refused(400))
        messages = [{"data": 1, name: ["bob"]}, {"data": 2, "uids": ["nobody"]}]
        batch = shared.post_json(BATCH, {"pid": "1", "messages": messages})
        assert [one["code"] for one in batch.json["results"]] == [0, 1]
        assert sentence(batch.json["results"][0]["msg"])
        reply = json.loads(server.ask({"type": "push", "id": "p", "data": 1, name: "bob"}))
        assert (reply["type"], reply["code"], reply["id"]) == ("push", 0, "p")
        assert sentence(reply["msg"])
        assert shared.received([bystander]) == [[]]


def test_what_a_batch_takes_outside_and_inside(shared):
    batch = lambda **members: shared.post_json(BATCH, {"pid": "1", **members})
    for members in ({"idempotency_key": "k"}, {"uids": ["bob"]}, {"message": []}):
        msg = batch(messages=[{"data": 1}], **members).assert_refused(400)
        assert f'"{next(iter(members))}"' in msg and "messages" in msg
    for member in ({"pid": "two"}, {"exp": 1}):
        answer = batch(messages=[{"data": 1, "uids": ["nobody"], **member}])
        assert answer.status == 400
        [result] = answer.json["results"]
        assert result["code"] == 0 and "beside" in result["msg"]
    known = {"messages": [{"data": 1, "uids": ["nobody"]}], "exp": int(time.time()) + 60}
    assert batch(**known).status == 200


def test_every_known_member_is_taken(shared):
    members = {"uids": ["nobody"], "cids": [], "tags": "", "devices": [], "except_cids": 7}
    members |= {"ttl_ms": 500, "idempotency_key": "known", "transient": True}
    exp = {"exp": int(time.time()) + 60}
    assert push(shared, {**members, **exp}).status == 200
    text = {"uids": "nobody", "cids": "", "tags": "", "devices": "", "except_cids": "7"}
    text |= {"ttl_ms": "500", "idempotency_key": "known", "transient": "false"}
    assert shared.push_form({"pid": "1", "data": "x", **text, **exp}).status == 200
    batch = {"pid": "1", "messages": [{"data": 1, **members}], **exp}
    assert shared.post_json(BATCH, batch).status == 200
    with shared.business("request") as server:
        message = {"type": "push", "id": "7", "data": 1, **members}
        assert json.loads(server.ask(message | exp))["code"] == 1
        late = json.loads(server.ask(message | {"exp": 1}))
        assert late["code"] == 0 and late["msg"].startswith("exp is in the past")
        for own in ({"pid": "1"}, {"sign": "ab"}):
            assert json.loads(server.ask(message | own))["code"] == 0
    for bad in (1, "yes", []):
        assert "transient" in push(shared, {"transient": bad}).assert_refused(400)


def test_hostile_names_are_shown_short(shared):
    for name in ("u" * 900_000, "\u202e\n\x00\"", "é" * 5_000, ""):
        answer = push(shared, {name: 1})
        msg = answer.assert_refused(400)
        assert msg.startswith("unknown member") and len(msg) < 300 and "\n" not in msg
    many = [{"data": 1, "x" * 300 + str(number): 1} for number in range(1000)]
    answer = shared.post_json(BATCH, {"pid": "1", "messages": many})
    assert answer.status == 400 and len(answer.json["results"]) == 1000


# null.


def test_null_is_absent_but_for_a_selector(shared, name):
    nulls = {"ttl_ms": None, "idempotency_key": None, "transient": None, "exp": None, "sign": None}
    with shared.client(name) as client, shared.business("request") as server:
        assert push(shared, {"uids": [name], "data": None, **nulls}).status == 200
        assert client.pushed() == "null"
        del nulls["sign"]
        message = {"type": "push", "uids": [name], "data": 2, "id": None, **nulls}
        reply = json.loads(server.ask(message))
        assert reply["code"] == 1 and "id" not in reply
        assert client.pushed() == "2"
        for selector in ("uids", "cids", "tags", "devices", "except_cids"):
            assert selector in push(shared, {selector: None}).assert_refused(400)
            reply = json.loads(server.ask({"type": "push", "data": 1, selector: None}))
            assert reply["code"] == 0 and selector in reply["msg"]
        for text in ({"type": "heartbeat"}, {"type": "subscribe", "tags": name, "sign": None}):
            answer = json.loads(client.ask({**text, "id": None}))
            assert answer["code"] == 1 and "id" not in answer
        assert json.loads(client.ask({"type": "subscribe", "tags": None}))["code"] == 0
        assert shared.received([client]) == [[]]


# Header fields that would otherwise be ignored.


def test_a_key_that_is_not_signed_is_refused(shared):
    """The header is common in other APIs; when it was ignored, a repeated push was delivered
    twice."""
    for path, body in (
        (PATH, {"pid": "1", "data": 1}),
        (BATCH, {"pid": "1", "messages": [{"data": 1}]}),
    ):
        answer = shared.post_json(path, body, headers={"idempotency-key": "k"})
        assert "idempotency_key" in answer.assert_refused(400)


def test_a_compressed_body_is_415(shared):
    body = gzip.compress(json.dumps({"pid": "1", "data": 1, "uids": ["nobody"]}).encode())
    for path in (PATH, BATCH):
        answer = shared.post_json(path, body, headers={"Content-Encoding": "gzip"})
        assert 'Content-Encoding "gzip"' in answer.assert_refused(415)
        assert answer.headers["Accept-Encoding"] == "identity"
    text = shared.request("POST", PATH, "x", headers={"Content-Type": "text/plain"})
    assert "Content-Type" in text.assert_refused(415)
    assert "Accept-Encoding" not in text.headers
    plain = push(shared, {"uids": ["nobody"]}, {"Content-Encoding": "identity"})
    assert plain.status == 200


# White space.


def test_blanks_around_the_elements_of_a_list_are_left_out(shared, name):
    with (
        shared.client(f"{name}1", tags=f"{name}a, {name}b") as one,
        shared.client(f"{name}2") as two,
    ):
        answer = json.loads(one.ask({"type": "subscribe", "tags": f"{name}c , {name}d"}))
        assert answer["tags"] == [name + last for last in "abcd"]
        push(shared, {"data": 1, "uids": f"{name}1, {name}2"})
        push(shared, {"data": 2, "cids": f" {one.cid} ,{two.cid}"})
        shared.push_form({"pid": "1", "data": "3", "tags": f"{name}x, {name}b"})
        assert shared.received([one, two]) == [["1", "2", '"3"'], ["1", "2"]]
        for empty in ("a,,b", "a, ,b"):
            assert 'uids[1]' in push(shared, {"uids": empty}).assert_refused(400)


# Times.


def test_milliseconds_are_no_unix_seconds(shared, name):
    """Taken for seconds they never expired: a sign or a session for ever."""
    for wrong in (MILLISECONDS, 100_000_000_000):
        expected = f"exp must be in unix seconds: {wrong} looks like milliseconds"
        assert push(shared, {"exp": wrong}).assert_refused(400) == expected
        form = shared.push_form({"pid": "1", "data": "x", "exp": wrong})
        assert form.assert_refused(400) == expected
        batch = {"pid": "1", "messages": [{"data": 1}], "exp": wrong}
        assert shared.post_json(BATCH, batch).assert_refused(400) == expected
        for parameter in ("exp", "session_exp"):
            query = signed(CONNECT, shared.connect_params(name, **{parameter: wrong}))
            status, msg = refused_handshake(shared, f"{CONNECT}?{query}")
            assert status == 400 and msg.startswith(f"{parameter} must be in unix seconds: {wrong}")
    with shared.client(name, session_exp=99_999_999_999, exp=99_999_999_999):
        pass


def test_a_session_ends_in_the_future(shared, name):
    for over in (0, 1, int(time.time()) - 1):
        query = signed(CONNECT, shared.connect_params(name, session_exp=over))
        status, msg = refused_handshake(shared, f"{CONNECT}?{query}")
        assert status == 400 and msg.startswith("session_exp is in the past")
    with shared.client(name, session_exp=int(time.time()) + 60) as client:
        sign = hmac_hex("dev-secret", f"refresh\n{client.cid}\n{MILLISECONDS}")
        message = {"type": "refresh", "session_exp": MILLISECONDS, "sign": sign}
        refused = json.loads(client.ask(message))
        assert refused["code"] == 0 and "unix seconds" in refused["msg"]
        assert client.ask({"type": "heartbeat"}).startswith('{"type":"heartbeat"')


# Signatures.


@pytest.mark.parametrize("env", ["dev", "test"])
def test_a_refused_sign_says_what_is_wrong_with_it(start, env, name):
    server = start("--env", env)
    body = '{"pid":"1","data":"a\\n"}'
    json_type = {"Content-Type": "application/json"}
    shows = lambda text: f"; the text to sign is: {text}" if env == "dev" else ""
    text = shows(PATH + '\\n{"pid":"1","data":"a\\\\n"}')
    post = lambda body, headers: server.request("POST", PATH, body, {**json_type, **headers})
    assert post(body, {}).assert_refused(401) == "sign is missing: add the header X-Sign" + text
    for sign in ("ab", "0" * 63, "A" * 64, "g" * 64):
        msg = post(body, {"X-Sign": sign}).assert_refused(401)
        assert msg == "sign must be 64 lower-case hex digits" + text
    assert post(body, {"X-Sign": "0" * 64}).assert_refused(401) == "bad sign" + text
    inside = '{"pid":"1","data":1,"sign":"ab"}'
    msg = post(inside, {}).assert_refused(401)
    assert msg == "for JSON, sign belongs in the header X-Sign" + shows(f"{PATH}\\n{inside}")
    msg = post(inside, {"X-Sign": sign_body(PATH, inside)}).assert_refused(400)
    assert msg == 'unknown member "sign": for JSON, sign belongs in the header X-Sign'

    query = "pid=1&data=a+b"
    text = shows(PATH + "\\ndata=a%20b&pid=1")
    answer = server.request("POST", f"{PATH}?{query}")
    assert answer.assert_refused(401) == "sign is missing: add the parameter sign" + text
    answer = server.request("POST", f"{PATH}?{query}", headers={"X-Sign": "0" * 64})
    assert answer.assert_refused(401) == (
        "sign belongs in the query or the form: X-Sign is for JSON" + text
    )
    text = shows(CONNECT + "\\npid=1&uid=u")
    for sign, problem in (
        ("", "sign is missing: add the parameter sign"),
        ("&sign=AB", "sign must be 64 lower-case hex digits"),
        ("&sign=" + "0" * 64, "bad sign"),
    ):
        refused = refused_handshake(server, f"{CONNECT}?uid=u&pid=1{sign}")
        assert refused == (401, problem + text)
    with server.client(name, session_exp=int(time.time()) + 60) as client:
        refused = json.loads(client.ask({"type": "refresh", "session_exp": 9}))["msg"]
        assert refused == "sign is missing: add the member sign" + shows(
            f"refresh\\n{client.cid}\\n9"
        )
        client.send({"type": "refresh", "session_exp": 9, "sign": "0" * 64})
        assert client.json()["msg"].startswith("bad sign")


def test_the_text_to_sign_is_shown_short_and_without_the_secret(start):
    server = start()
    body = '{"pid":"1","data":"%s"}' % ("é" * 300_000)
    answer = server.post_json(PATH, body, headers={"X-Sign": "0" * 64})
    msg = answer.assert_refused(401)
    assert len(msg) < 1_200 and msg.endswith("… (600030 bytes in all)")
    binary = server.request("POST", f"{PATH}?pid=1&data=%01%F0%9F%98%80", headers={})
    assert "dev-secret" not in msg + binary.assert_refused(401)


# Errors that name their cause.


def test_what_is_given_twice_is_named(shared):
    answer = shared.request("POST", f"{PATH}?pid=1&uids=a&uids=b&data=x")
    assert answer.assert_refused(400) == 'the parameter "uids" is given twice'
    answer = shared.post_json(PATH, '{"pid":1,"d\\u0061ta":1,"data":2}')
    assert answer.assert_refused(400) == 'the member "data" of the JSON object is given twice'
    refused = refused_handshake(shared, f"{CONNECT}?uid=a&pid=1&uid=b")
    assert refused == (400, 'the parameter "uid" is given twice')
    with shared.client("twice") as client:
        msg = json.loads(client.ask('{"type":"heartbeat","id":"a","id":"b"}'))["msg"]
        assert msg == 'the member "id" of the JSON object is given twice'


def test_an_element_of_a_list_is_named_with_its_index(shared):
    refused = lambda **members: push(shared, members).assert_refused(400)
    assert refused(uids=["a", "b", "c,d"]).startswith("uids must be a list, each element 1-128")
    assert refused(uids=["a", "b", "c,d"]).endswith(': uids[2] is "c,d"')
    assert refused(cids="7,x").endswith(': cids[1] is "x"')
    assert refused(tags=["a", 7]) == "tags must be a list of strings: tags[1] is 7"
    query = signed(CONNECT, shared.connect_params("u", tags="a,%s" % ("t" * 129)))
    status, msg = refused_handshake(shared, f"{CONNECT}?{query}")
    assert status == 400 and 'tags[1] is "ttt' in msg and len(msg) < 200
    with shared.client("indexes") as client:
        msg = json.loads(client.ask({"type": "subscribe", "tags": ["a", "b", "c,d"]}))["msg"]
        assert msg.startswith("tags must be a list") and msg.endswith('tags[2] is "c,d"')


def test_the_wrong_port_names_the_right_one(shared):
    ws, http = shared.ws[1], shared.http[1]
    for method in ("GET", "POST"):
        answer = shared.request(method, f"{CONNECT}?pid=1&uid=u")
        msg = answer.assert_refused(404)
        assert msg == f"not found: /ws/connect is on the WebSocket port, {ws}"
    for path in (PATH, BATCH, "/healthz", "/readyz", "/version"):
        msg = f"not found: {path} is on the HTTP port, {http}"
        assert refused_handshake(shared, path) == (404, msg)
        answer = shared.request("POST", path, "{}", at=shared.ws)
        assert answer.assert_refused(404) == msg
    assert refused_handshake(shared, "/x") == (404, "not found: connect to /ws/connect")


def test_a_head_over_a_limit_names_the_flag(shared):
    for address in (shared.http, shared.ws):
        for extra, flag in ((f"X: {'x' * 9000}\r\n", "bytes"), ("X: y\r\n" * 101, "fields")):
            with Raw(address) as raw:
                raw.send(f"GET /healthz HTTP/1.1\r\nHost: x\r\n{extra}\r\n")
                status, _, body = raw.read_response()
                assert status == 431 and f"--max_head_{flag}" in body


# Common to all answers.


def test_every_answer_has_a_date(shared, name):
    good = signed(CONNECT, shared.connect_params(name))
    head = "HTTP/1.1\r\nHost: localhost\r\n"
    upgrade = lambda target: handshake(target).decode()
    requests = [
        (shared.http, f"GET /healthz {head}\r\n"),
        (shared.http, f"HEAD /version {head}\r\n"),
        (shared.http, f"OPTIONS {PATH} {head}Origin: https://app.example\r\n\r\n"),
        (shared.http, f"PUT {PATH} {head}\r\n"),
        (shared.http, f"POST {PATH}?{signed(PATH, {'pid': '1', 'data': 'x'})} {head}\r\n"),
        (shared.http, f"POST {PATH}?pid=1&data=x {head}\r\n"),
        (shared.http, "nonsense\r\n\r\n"),
        (shared.ws, upgrade(f"{CONNECT}?{good}")),
        (shared.ws, upgrade(f"{CONNECT}?pid=1&uid=u")),
        (shared.ws, upgrade("/nowhere")),
        (shared.ws, f"GET {CONNECT} {head}\r\n"),
        (shared.ws, "nonsense\r\n\r\n"),
        (shared.metrics_address, f"GET /metrics {head}\r\n"),
        (shared.swagger, f"GET /nowhere {head}\r\n"),
        (shared.pprof, "nonsense\r\n\r\n"),
    ]
    statuses = set()
    for address, request in requests:
        with Raw(address) as raw:
            before = int(time.time()) - 1
            raw.send(request)
            lines = raw.read_head().split("\r\n")
            [date] = [line[6:] for line in lines if line.startswith("Date: ")]
            assert before <= email.utils.parsedate_to_datetime(date).timestamp() <= time.time()
            assert len(date) == 29 and date.endswith(" GMT")
            statuses.add(int(lines[0].split(" ")[1]))
    assert statuses == {101, 200, 204, 400, 401, 404, 405, 426}


def test_the_subprotocol_is_selected_when_it_is_offered(shared, name):
    target = f"{CONNECT}?{signed(CONNECT, shared.connect_params(name))}"
    for fields, selected in (
        ("", []),
        ("Sec-WebSocket-Protocol: ws-cluster\r\n", ["ws-cluster"]),
        ("sec-websocket-protocol: graphql-ws,ws-cluster , x\r\n", ["ws-cluster"]),
        ("Sec-WebSocket-Protocol: a\r\nSec-WebSocket-Protocol: ws-cluster\r\n", ["ws-cluster"]),
        ("Sec-WebSocket-Protocol: ws-clusters, WS\r\n", []),
    ):
        with Raw(shared.ws) as raw:
            raw.send(handshake(target, extra=fields))
            lines = raw.read_head().split("\r\n")
            assert lines[0].startswith("HTTP/1.1 101 ")
            name_of = "Sec-WebSocket-Protocol: "
            assert [line[len(name_of) :] for line in lines if line.startswith(name_of)] == selected
            assert b'"connect"' in raw.read_frame()[1]
