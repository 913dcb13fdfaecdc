"""A push reaches every matching client once, in order, and no other."""

import contextlib
import itertools
import json
import re
import struct
import threading

import pytest
from harness import CLOSE, SECRET, eventually, hmac_hex, sign_body, signed

PATH = "/ws/push"


@pytest.fixture
def crowd(shared, name):
    """Clients that differ in user, device and tags; `z` is another project's, with the same names."""
    with contextlib.ExitStack() as stack:
        enter = lambda client: stack.enter_context(client)
        x, y = f"{name}x", f"{name}y"
        two = {"pid": "two", "secret": "old-secret-of-two"}
        yield {
            "a1": enter(shared.client(f"{name}A", device="ios", tags=x)),
            "a2": enter(shared.client(f"{name}A", device="web", tags=f"{x},{y}")),
            "a3": enter(shared.client(f"{name}A")),
            "b1": enter(shared.client(f"{name}B", device="ios", tags=y)),
            "b2": enter(shared.client(f"{name}B", device="web")),
            "c1": enter(shared.client(f"{name}C", device="tv-1", tags=f"{y},{x}")),
            "z": enter(shared.client(f"{name}A", device="ios", tags=f"{x},{y}", **two)),
        }


CASES = [
    ({"uids": "A"}, "a1 a2 a3"),
    ({"uids": "A,C"}, "a1 a2 a3 c1"),
    ({"uids": "A,A"}, "a1 a2 a3"),
    ({"uids": "nobody"}, ""),
    ({"uids": ""}, ""),
    ({"tags": "x"}, "a1 a2 c1"),
    ({"tags": "x,y"}, "a1 a2 b1 c1"),
    ({"cids": "a1"}, "a1"),
    ({"cids": "a1,b2,z"}, "a1 b2"),
    ({"cids": "z"}, ""),
    ({"cids": ""}, ""),
    ({"uids": "A,B", "devices": "ios"}, "a1 b1"),
    ({"uids": "A,B,C", "devices": "ios,tv-1"}, "a1 b1 c1"),
    ({"uids": "A", "tags": "y"}, "a2"),
    ({"uids": "A,B", "tags": "x,y"}, "a1 a2 b1"),
    ({"uids": "A", "cids": "a1,b1"}, "a1"),
    ({"tags": "x,y", "devices": "ios"}, "a1 b1"),
    ({"cids": "a1,a2,b1", "tags": "x", "uids": "A", "devices": "web"}, "a2"),
    ({"tags": "x", "except_cids": "a1"}, "a2 c1"),
    ({"uids": "A,B", "except_cids": "a1,b1,z"}, "a2 a3 b2"),
    ({"cids": "a1", "except_cids": "a1"}, ""),
    ({"uids": "A", "except_cids": ""}, "a1 a2 a3"),
    ({"uids": "A", "devices": ""}, ""),
]


@pytest.mark.parametrize("form", ["query", "form", "lists", "texts"])
def test_selectors_are_intersected(shared, crowd, name, form):
    def real(selector, value):
        if selector in ("cids", "except_cids"):
            return [crowd[one].cid for one in value.split(",") if one]
        prefix = "" if selector == "devices" else name
        return [prefix + one for one in value.split(",") if one]

    wanted = {key: [] for key in crowd}
    for number, (selectors, matching) in enumerate(CASES):
        data = f"case {number}"
        lists = {selector: real(selector, value) for selector, value in selectors.items()}
        texts = {selector: ",".join(value) for selector, value in lists.items()}
        if form == "lists":
            shared.push(data, **lists)
        elif form == "texts":
            shared.push(data, **texts)
        elif form == "form":
            answer = shared.push_form({"pid": "1", "data": data, **texts})
            assert answer.status == 200, answer.text
        else:
            kept = shared.keep()
            kept.request("POST", f"{PATH}?" + signed(PATH, {"pid": "1", "data": data, **texts}))
            response = kept.getresponse()
            assert (response.status, response.read()[:9]) == (200, b'{"code":1')
        for key in matching.split():
            wanted[key].append(json.dumps(data))
    ours = [crowd[key] for key in crowd if key != "z"]
    got = dict(zip([key for key in crowd if key != "z"], shared.received(ours), strict=True))
    got["z"] = shared.received([crowd["z"]], pid="two", secret="old-secret-of-two")[0]
    assert got == wanted


def test_no_selector_is_every_client_of_the_project(start, projects):
    server = start("--projects", projects)
    with contextlib.ExitStack() as stack:
        ours = [stack.enter_context(server.client(f"u{n}", device="d")) for n in range(9)]
        two = {"pid": "two", "secret": "new-secret-of-two"}
        theirs = stack.enter_context(server.client("u1", **two))
        server.push("all")
        server.push("but one", except_cids=[ours[0].cid])
        assert server.received(ours) == [['"all"']] + [['"all"', '"but one"']] * 8
        assert server.received([theirs], **two) == [[]]


def test_the_answer_and_the_push_word_for_word(shared, name):
    with shared.client(name) as client:
        raw = json.dumps({"pid": 1, "uids": [name], "data": "x"}).encode()
        answer = shared.post_json(PATH, raw)
        found = re.fullmatch(r'\{"code":1,"msg":"success","id":"(\d+)"\}', answer.text)
        assert found, answer.text
        assert answer.headers["Content-Type"] == "application/json"
        assert client.text() == '{"type":"push","id":"%s","data":"x"}' % found[1]


@pytest.mark.parametrize(
    "data",
    [
        "null",
        "true",
        "-0.0",
        "1.50e+300",
        "123456789012345678901234567890",
        '""',
        r'"\u0041\/\ud83d\ude00 é 😀"',
        '{"a" : [ 1,2 , {"b":null} ] ,\t"a":"twice"}',
        "[]",
        '"%s"' % ("x" * 125),
        '"%s"' % ("x" * 70_000),
    ],
    ids=lambda data: data[:30],
)
def test_json_data_arrives_byte_for_byte(shared, name, data):
    with shared.client(name) as client:
        body = '{ "uids":"%s", "data" : %s , "pid":"1"}' % (name, data)
        answer = shared.post_json(PATH, body)
        assert answer.status == 200, answer.text
        assert client.pushed() == data


@pytest.mark.parametrize("data", ["", "plain", '{"a":1}', 'q"\\\n\t\x01é😀', "a+b c&d=e%41"])
def test_form_and_query_data_arrive_as_a_json_string(shared, name, data):
    with shared.client(name) as client:
        params = {"pid": "1", "uids": name, "data": data}
        assert shared.push_form(params).status == 200
        assert json.loads(client.pushed()) == data
        assert shared.request("POST", f"{PATH}?{signed(PATH, params)}").status == 200
        assert json.loads(client.pushed()) == data


def test_json_ids_may_be_integers(shared):
    with shared.client("900719925474099312345") as client:
        body = '{"pid":1,"uids":[900719925474099312345],"cids":%s,"data":1}' % client.cid
        assert shared.post_json(PATH, body).status == 200
        assert client.pushed() == "1"


def test_a_chunked_body_with_100_continue(shared, name):
    with shared.client(name) as client, shared.raw_http() as raw:
        body = json.dumps({"pid": 1, "uids": name, "data": "chunked"}).encode()
        raw.send(
            f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json; charset=utf-8\r\n"
            f"X-Sign: {sign_body(PATH, body)}\r\nExpect: 100-continue\r\n"
            "Transfer-Encoding: chunked\r\n\r\n"
        )
        assert raw.read_head() == "HTTP/1.1 100 Continue"
        for at in range(0, len(body), 7):
            piece = body[at : at + 7]
            raw.send(b"%x;ext=1\r\n%s\r\n" % (len(piece), piece))
        raw.send("0\r\nTrailer: x\r\n\r\n")
        assert raw.read_response()[0] == 200
        assert client.pushed() == '"chunked"'


def test_signatures_of_bodies(shared, name):
    body = json.dumps({"pid": "two", "uids": name, "data": 1})
    for secret in ("new-secret-of-two", "old-secret-of-two"):
        assert shared.post_json(PATH, body, secret).status == 200
    shared.post_json(PATH, body, SECRET).assert_refused(401)
    good = sign_body(PATH, body, "new-secret-of-two")
    for sign in ("", good.upper(), good[:-1], hmac_hex("new-secret-of-two", body)):
        headers = {"X-Sign": sign}
        shared.post_json(PATH, body, headers=headers).assert_refused(401)
    other = body.replace('"data": 1', '"data":  1')
    shared.post_json(PATH, other, headers={"X-Sign": good}).assert_refused(401)
    answer = shared.request("POST", PATH, body, {"Content-Type": "application/json"})
    answer.assert_refused(401)
    with shared.raw_http() as raw:
        raw.send(f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n")
        raw.send(b"X-Sign: \xff\r\nContent-Length: %d\r\n\r\n" % len(body) + body.encode())
        assert raw.read_response()[0] == 401
    params = {"pid": "1", "data": "x"}
    shared.push_form(params, "wrong").assert_refused(401)
    for sign in ("%ff", "%zz", "%"):
        shared.request("POST", f"{PATH}?pid=1&data=x&sign={sign}").assert_refused(401)
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    shared.request("POST", PATH, "pid=1&data=x", form).assert_refused(401)
    shared.push_form({"pid": "nobody", "data": "x"}).assert_refused(403)
    shared.push_form({"pid": "1", "data": "x", "exp": "1"}).assert_refused(401)


@pytest.mark.parametrize(
    "body",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"data":1}',
        '{"pid":1}',
        '{"pid":1,"pid":1,"data":1}',
        '{"pid":1,"data":1,"data":1}',
        '{"pid":1,"data":1,"d\\u0061ta":1}',
        '{"pid":1,"data":1}x',
        '{"pid":1.5,"data":1}',
        '{"pid":"a b","data":1}',
        '{"pid":1,"data":1,"uids":{}}',
        '{"pid":1,"data":1,"uids":[1.5]}',
        '{"pid":1,"data":1,"uids":"a,,b"}',
        '{"pid":1,"data":1,"uids":["a,b"]}',
        '{"pid":1,"data":1,"cids":["x"]}',
        '{"pid":1,"data":1,"tags":[7]}',
        '{"pid":1,"data":1,"devices":["iOS"]}',
        '{"pid":1,"data":1,"ttl_ms":0}',
        '{"pid":1,"data":1,"ttl_ms":-1}',
        '{"pid":1,"data":1,"ttl_ms":"soon"}',
        '{"pid":1,"data":1,"exp":"soon"}',
        '{"pid":1,"data":01}',
        '{"pid":1,"data":"\x01"}',
        b'{"pid":1,"data":"\xff"}',
        '{"pid":1,"data":%s1%s}' % ("[" * 500, "]" * 500),
        '{"pid":1,"data":1,"uids":%s}' % json.dumps([str(n) for n in range(1001)]),
    ],
    ids=lambda body: str(body[:40]),
)
def test_malformed_pushes_are_400(shared, body):
    shared.post_json(PATH, body).assert_refused(400)


def test_parameters_come_from_one_place(shared):
    query = signed(PATH, {"pid": "1", "data": "x"})
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    shared.request("POST", f"{PATH}?{query}", query, form).assert_refused(400)
    body = '{"pid":1,"data":1}'
    headers = {"Content-Type": "application/json", "X-Sign": sign_body(PATH, body)}
    shared.request("POST", f"{PATH}?{query}", body, headers).assert_refused(400)
    shared.request("POST", PATH, f"{query}&data=x", form).assert_refused(400)
    shared.request("POST", f"{PATH}?{query}&pid=1").assert_refused(400)


def test_1000_ids_in_a_selector(shared, name):
    with shared.client(name) as client:
        uids = [f"{name}{n}" for n in range(999)] + [name]
        shared.push("many", uids=uids)
        assert client.pushed() == '"many"'


def test_batches(shared, name):
    path = "/ws/push/batch"
    with shared.client(f"{name}1") as one, shared.client(f"{name}2") as two:
        messages = [
            {"uids": [f"{name}1"], "data": "first"},
            {"uids": [f"{name}1", f"{name}2"], "data": {"n": 2}},
            {"uids": [f"{name}2"]},
            {"cids": "x", "data": 1},
            {"uids": [f"{name}2"], "data": "last"},
        ]
        answer = shared.post_json(path, {"pid": "1", "messages": messages})
        assert answer.status == 200, answer.text
        body = answer.json
        assert (list(body), body["code"]) == (["code", "msg", "results"], 1)
        assert body["msg"] == "success"
        assert [result["code"] for result in body["results"]] == [1, 1, 0, 0, 1]
        for result in body["results"]:
            assert list(result) == (["code", "id"] if result["code"] else ["code", "msg"])
        ids = [result["id"] for result in body["results"] if result["code"]]
        assert len(set(ids)) == 3
        assert json.loads(one.text())["id"] == ids[0]
        assert [one.pushed()] == ['{"n": 2}']
        assert [two.pushed(), two.pushed()] == ['{"n": 2}', '"last"']
        assert shared.received([one, two]) == [[], []]


def test_bad_batches(shared):
    path = "/ws/push/batch"
    for body in (
        {"pid": 1},
        {"pid": 1, "messages": []},
        {"pid": 1, "messages": {}},
        {"pid": 1, "messages": [{"data": 1}] * 1001},
        {"messages": [{"data": 1}]},
    ):
        shared.post_json(path, body).assert_refused(400)
    none = shared.post_json(path, {"pid": 1, "messages": [{}, 7]})
    assert none.status == 400 and none.json["code"] == 0
    shared.post_json(path, {"pid": 1, "messages": [{"data": 1}]}, "x").assert_refused(401)
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    shared.request("POST", path, "pid=1", form).assert_refused(415)


def test_order_and_none_twice_for_many_clients(shared, name):
    """Pipelined on one connection: each client gets every message once, in that order."""
    count = 400
    with contextlib.ExitStack() as stack:
        clients = [
            stack.enter_context(shared.client(f"{name}{n % 7}", tags=f"{name}t,{name}{n % 3}"))
            for n in range(21)
        ]
        requests = []
        for number in range(count):
            tags = [f"{name}t", f"{name}{number % 3}"]
            uids = [f"{name}{n}" for n in range(7)] + [f"{name}0"]
            body = json.dumps({"pid": 1, "tags": tags, "uids": uids, "data": number}).encode()
            requests.append(
                f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                f"X-Sign: {sign_body(PATH, body)}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
                + body
            )
        with shared.raw_http() as raw:
            sender = threading.Thread(target=raw.send, args=(b"".join(requests),))
            sender.start()
            answers = [raw.read_response() for _ in range(count)]
            sender.join()
        assert {status for status, _, _ in answers} == {200}
        ids = [json.loads(body)["id"] for _, _, body in answers]
        assert len(set(ids)) == count
        for client in clients:
            got = [client.json() for _ in range(count)]
            assert [push["data"] for push in got] == list(range(count))
            assert [push["id"] for push in got] == ids
        assert shared.received(clients) == [[]] * 21


def test_order_of_each_of_several_pushers(shared, name):
    each, pushers = 100, 4
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(shared.client(name)) for _ in range(5)]

        def pusher(number):
            import http.client

            connection = http.client.HTTPConnection(*shared.http, timeout=10)
            for turn in range(each):
                body = json.dumps({"pid": 1, "uids": name, "data": [number, turn]})
                headers = {"Content-Type": "application/json", "X-Sign": sign_body(PATH, body)}
                connection.request("POST", PATH, body, headers)
                answer = connection.getresponse()
                answer.read()
                statuses.append(answer.status)
            connection.close()

        statuses = []
        threads = [threading.Thread(target=pusher, args=(n,)) for n in range(pushers)]
        for thread in threads:
            thread.start()
        for client in clients:
            got = [json.loads(client.pushed()) for _ in range(each * pushers)]
            for number in range(pushers):
                assert [turn for who, turn in got if who == number] == list(range(each))
        for thread in threads:
            thread.join()
        assert statuses == [200] * (each * pushers)


def test_a_message_is_not_delivered_after_its_ttl(start):
    server = start()
    with server.raw_ws("slow", receive_buffer=4096) as slow:
        assert slow.read_frame()[1].startswith(b'{"type":"connect"')
        fillers = 0

        def is_waiting():
            return server.metric("ws_cluster_outbox_bytes") > 0

        while not is_waiting():
            fillers += 1
            server.push("f" * 10_000, uids=["slow"])
            assert fillers < 2_000
        server.push("late", uids=["slow"], ttl_ms=1)
        server.push("kept", uids=["slow"], ttl_ms=60_000)
        stale = threading.Event()
        stale.wait(0.02)
        got = []
        while not got or got[-1] != "kept":
            got.append(json.loads(slow.read_frame()[1])["data"])
        assert "late" not in got and len(got) == fillers + 1
        eventually(lambda: server.metric("ws_cluster_drop_total", reason="ttl") == 1, "a counted drop")


def test_a_client_gets_nothing_after_it_left(shared, name):
    """The user's other connections get the push."""
    with shared.client(name) as stays:
        for turn in range(20):
            shared.client(name).close()
            shared.push(turn, uids=[name])
        assert stays.until("19") == [str(turn) for turn in range(19)]


def test_pushes_while_clients_come_and_go(shared, name):
    """A connection that got its welcome gets every push accepted after it, exactly once."""
    stop = threading.Event()
    numbers = itertools.count()
    accepted = []

    def pusher():
        import http.client

        connection = http.client.HTTPConnection(*shared.http, timeout=10)
        while not stop.is_set():
            number = next(numbers)
            body = json.dumps({"pid": 1, "tags": name, "data": number})
            headers = {"Content-Type": "application/json", "X-Sign": sign_body(PATH, body)}
            connection.request("POST", PATH, body, headers)
            answer = connection.getresponse()
            answer.read()
            assert answer.status == 200
            accepted.append(number)
        connection.close()

    thread = threading.Thread(target=pusher)
    thread.start()
    try:
        for _ in range(25):
            with shared.raw_ws(name, tags=name) as raw:
                assert b'"connect"' in raw.read_frame()[1]
                accepted_before = len(accepted)
                got = [json.loads(raw.read_frame()[1])["data"] for _ in range(20)]
                raw.frame(CLOSE, struct.pack(">H", 1000))
                while (item := raw.read_frame())[0] != 0x88:
                    got.append(json.loads(item[1])["data"])
                assert raw.ended()
                assert got == list(range(got[0], got[0] + len(got)))
                assert got[0] <= accepted_before + 1
    finally:
        stop.set()
        thread.join()


def test_pushes_to_nobody_but_a_slow_client_are_answered(start):
    """Such pushes filled the batch with nothing to send, and the pusher waited for ever."""
    server = start()
    with server.raw_ws("slow", receive_buffer=4096):
        for number in range(30):
            body = {"pid": "1", "messages": [{"uids": "slow", "data": "x" * 1000}] * 300}
            answer = server.post_json("/ws/push/batch", body)
            assert (answer.status, len(answer.json["results"])) == (200, 300), number
