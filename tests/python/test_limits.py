"""Each limit at its boundary, set by a flag to something other than its default."""

import contextlib
import json

import pytest
from harness import Raw, handshake, signed
from redis_harness import node

PATH = "/ws/connect"
# Nodes transmit its length in one byte.
LONGEST = 255


def connect_status(server, **params):
    """The status of a handshake."""
    query = signed(PATH, server.connect_params(**params))
    with Raw(server.ws) as raw:
        raw.send(handshake(f"{PATH}?{query}"))
        return int(raw.read_head().split(" ")[1])


def subscribed(client, tags, kind="subscribe"):
    return json.loads(client.ask({"type": kind, "tags": tags}))


def test_max_tags(start):
    server = start("--max_tags", "3")
    assert connect_status(server, tags="a,b,c,a") == 101
    assert connect_status(server, tags="a,b,c,d") == 400
    with server.client(tags="a") as client:
        assert subscribed(client, ["a", "b", "a", "c", "b"])["tags"] == ["a", "b", "c"]
        refused = subscribed(client, "d")
        assert (refused["code"], "at most 3" in refused["msg"]) == (0, True)
        for kind in ("subscribe", "unsubscribe"):
            assert subscribed(client, "a,b,c,d", kind)["code"] == 0
        assert subscribed(client, "b", "unsubscribe")["tags"] == ["a", "c"]


def test_more_tags_than_the_default(start):
    server = start("--max_tags", "1024")
    tags = [f"t{n}" for n in range(1024)]
    with server.client() as client:
        assert subscribed(client, tags)["tags"] == tags
        assert subscribed(client, "more")["code"] == 0
        server.push("last", tags=[tags[-1]])
        assert client.pushed() == '"last"'
        assert subscribed(client, tags, "unsubscribe")["tags"] == []


def test_max_selector_ids(start):
    server = start("--max_selector_ids", "4")
    with server.client("u1", tags="1", device="1") as client:
        for selector in ("uids", "tags", "devices"):
            server.push(selector, **{selector: ["u1", "1", "2", "3"]})
            assert client.pushed() == json.dumps(selector)
        for selector in ("uids", "cids", "tags", "devices", "except_cids"):
            body = {"pid": "1", "data": 1, selector: ["1", "2", "3", "4", "5"]}
            msg = server.post_json("/ws/push", body).assert_refused(400)
            assert msg == f"{selector}: at most 4 in one selector; split the request"


def test_more_selector_ids_than_the_default(start):
    server = start("--max_selector_ids", "10000")
    with server.client("u9999") as client:
        uids = [f"u{n}" for n in range(10_000)]
        server.push("many", uids=uids)
        assert client.pushed() == '"many"'
        body = {"pid": "1", "data": 1, "uids": [*uids, "u"]}
        server.post_json("/ws/push", body).assert_refused(400)


@pytest.mark.parametrize("most", [1, 10_000])
def test_max_batch(start, most):
    server = start("--max_batch", str(most))
    with server.client() as client:
        messages = [{"data": number, "uids": ["u1"]} for number in range(most)]
        answer = server.post_json("/ws/push/batch", {"pid": "1", "messages": messages})
        assert answer.status == 200, answer.text
        assert [one["code"] for one in answer.json["results"]] == [1] * most
        assert [client.pushed() for _ in messages] == [str(number) for number in range(most)]
        body = {"pid": "1", "messages": [*messages, {"data": 1}]}
        msg = server.post_json("/ws/push/batch", body).assert_refused(400)
        assert msg == f"messages: at most {most} in one batch"


def head_status(address, target, size=None, fields=None):
    """The status of a request whose head has this number of bytes or fields."""
    head = f"GET {target} HTTP/1.1\r\nHost: x\r\n"
    if fields is not None:
        head += "A: b\r\n" * (fields - 1)
    if size is not None:
        head += "A: " + "b" * (size - len(head) - len("A: \r\n\r\n")) + "\r\n"
    with Raw(address) as raw:
        raw.send(head + "\r\n")
        return raw.read_response()[0]


@pytest.mark.parametrize(("flag", "most"), [("1K", 1 << 10), ("64K", 64 << 10)])
def test_max_head_bytes(start, flag, most):
    server = start("--max_head_bytes", flag)
    assert head_status(server.http, "/healthz", size=most) == 200
    assert head_status(server.http, "/healthz", size=most + 1) == 431
    assert head_status(server.ws, PATH, size=most) == 426
    assert head_status(server.ws, PATH, size=most + 1) == 431


@pytest.mark.parametrize("most", [16, 256])
def test_max_head_fields(start, most):
    server = start("--max_head_fields", str(most))
    assert head_status(server.http, "/healthz", fields=most) == 200
    assert head_status(server.http, "/healthz", fields=most + 1) == 431
    assert head_status(server.ws, PATH, fields=most) == 426
    assert head_status(server.ws, PATH, fields=most + 1) == 431


def with_pid(tmp_path, pid):
    file = tmp_path / "projects.toml"
    file.write_text(f'[[project]]\npid = "{pid}"\nsecrets = ["dev-secret"]\n')
    return ["--projects", str(file)]


def test_max_pid_bytes(start, tmp_path):
    pid = "p" * 70
    server = start("--max_pid_bytes", "70", *with_pid(tmp_path, pid))
    with server.client(pid=pid) as client:
        server.push("long", pid=pid)
        assert client.pushed() == '"long"'
    for other, status in (("q" * 70, 403), ("q" * 71, 400)):
        assert connect_status(server, pid=other) == status
        answer = server.post_json("/ws/push", {"pid": other, "data": 1})
        answer.assert_refused(status)
        assert server.push_form({"pid": other, "data": 1}).status == status


@pytest.mark.parametrize("most", [5, LONGEST])
def test_max_bytes_of_uids_tags_and_devices(start, most):
    flags = [f"--max_{what}_bytes={most}" for what in ("uid", "tag", "device")]
    server = start(*flags)
    uid, tag, device = ("é" * most)[: most // 2] + "u", "t" * most, "d" * most
    assert len(uid.encode()) == most
    with server.client(uid, tags=tag, device=device) as client:
        for selector, value in (("uids", uid), ("tags", tag), ("devices", device)):
            server.push(selector, **{selector: [value]})
            assert client.pushed() == json.dumps(selector)
            body = {"pid": "1", "data": 1, selector: [value + "x"]}
            msg = server.post_json("/ws/push", body).assert_refused(400)
            assert f"{selector} must be" in msg and f"1-{most} bytes" in msg
        assert subscribed(client, "s" * most)["tags"] == [tag, "s" * most]
        refused = subscribed(client, "s" * (most + 1))
        assert refused["code"] == 0 and f"1-{most} bytes" in refused["msg"]
    for params in ({"uid": uid + "x"}, {"tags": tag + "x"}, {"device": device + "x"}):
        assert connect_status(server, **params) == 400


def test_the_longest_ids_cross_a_cluster(redis, tmp_path):
    """Pushes, events, requests and announcements of business servers carry them between nodes."""
    pid, uid, tag, device = (letter * LONGEST for letter in "putd")
    flags = [f"--max_{what}_bytes={LONGEST}" for what in ("pid", "uid", "tag", "device")]
    flags += ["--redis_prefix", "longest", "--routing", "user", *with_pid(tmp_path, pid)]
    with contextlib.ExitStack() as stack:
        nodes = []
        for number in (211, 212):
            nodes.append(node(number, redis.url, *flags))
            stack.callback(nodes[-1].stop)
        here, there = nodes
        business = stack.enter_context(there.business("connect,request,subscribe", pid=pid))
        client = here.client(uid, pid=pid, tags=tag, device=device)
        stack.enter_context(client)
        told = business.json()
        assert (told["type"], told["uid"], told["device"]) == ("connect", uid, device)
        assert told["tags"] == [tag]
        for selector, value in (("uids", uid), ("tags", tag), ("devices", device)):
            there.push(selector, pid=pid, **{selector: [value]})
            assert client.pushed() == json.dumps(selector)
        client.send({"type": "request", "id": "r", "data": 1})
        asked = business.json()
        assert (asked["type"], asked["from"]["uid"]) == ("request", uid)
        business.send({"type": "response", "id": asked["id"], "data": 2})
        assert client.json()["data"] == 2


def test_a_form_that_grows_sixfold_crosses_a_cluster(redis):
    """A form's control characters are six bytes each as JSON."""
    with contextlib.ExitStack() as stack:
        server = node(213, redis.url, "--redis_prefix", "sixfold")
        stack.callback(server.stop)
        client = stack.enter_context(server.client())
        data = "\x01" * ((1 << 20) - 200)
        form = {"Content-Type": "application/x-www-form-urlencoded"}
        # Signed in decoded form and sent unencoded: percent-encoded it would have three bytes each.
        sign = signed("/ws/push", {"pid": "1", "data": data}).rsplit("sign=", 1)[1]
        answer = server.request("POST", "/ws/push", f"pid=1&sign={sign}&data={data}", form)
        assert answer.status == 200, answer.text
        # Not compared by pytest, which would print the difference of megabytes.
        is_same = json.loads(client.pushed()) == data
        assert is_same
