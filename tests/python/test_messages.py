"""What a client sends and gets back, byte for byte."""

import json
import re
import time

import pytest
from harness import hmac_hex


@pytest.fixture
def client(shared, name):
    with shared.client(name) as client:
        yield client


def test_subscribe_and_unsubscribe(shared, client, name):
    a, b, c = f"{name}a", f"{name}b", f"{name}c"
    assert client.ask({"type": "subscribe", "tags": f"{a},{b}", "id": "7"}) == (
        f'{{"type":"subscribe","code":1,"msg":"success","id":"7","tags":["{a}","{b}"]}}'
    )
    assert client.ask({"type": "subscribe", "tags": [c, a]}) == (
        f'{{"type":"subscribe","code":1,"msg":"success","tags":["{a}","{b}","{c}"]}}'
    )
    shared.push("one", tags=[b])
    assert client.pushed() == '"one"'
    assert client.ask({"type": "unsubscribe", "tags": [b, "never"], "id": "8"}) == (
        f'{{"type":"unsubscribe","code":1,"msg":"success","id":"8","tags":["{a}","{c}"]}}'
    )
    shared.push("two", tags=[b])
    shared.push("three", tags=[b, c])
    assert client.pushed() == '"three"'
    assert client.ask({"type": "unsubscribe", "tags": f"{a},{c}"}) == (
        '{"type":"unsubscribe","code":1,"msg":"success","tags":[]}'
    )


def test_tags_are_any_text_and_escaped(shared, client, name):
    tag = f'{name} é"\\😀'
    answer = json.loads(client.ask({"type": "subscribe", "tags": [tag]}))
    assert answer["tags"] == [tag]
    shared.push(1, tags=[tag])
    assert client.pushed() == "1"


def test_a_subscription_that_was_answered_is_in_force(shared, client, name):
    for turn in range(100):
        client.ask({"type": "subscribe", "tags": [f"{name}{turn}"]})
        shared.push(turn, tags=[f"{name}{turn}"])
        assert client.pushed() == str(turn)


@pytest.mark.parametrize("kind", ["subscribe", "unsubscribe"])
@pytest.mark.parametrize(
    "tags",
    ['""', "[]", '"a,,b"', "[7]", "7", "null", '["a,b"]', '"a\\u0007"', '["%s"]' % ("t" * 129)],
)
def test_bad_tags_are_refused_and_change_nothing(client, name, kind, tags):
    client.ask({"type": "subscribe", "tags": name})
    refused = json.loads(client.ask(f'{{"type":"{kind}","tags":{tags},"id":"x"}}'))
    assert (refused["type"], refused["code"], refused["id"]) == (kind, 0, "x")
    assert refused["msg"] and list(refused) == ["type", "code", "msg", "id"]
    now = json.loads(client.ask({"type": "unsubscribe", "tags": "never"}))
    assert now["tags"] == [name]


def test_256_tags_and_no_more(client, name):
    tags = [f"{name}{n}" for n in range(256)]
    assert json.loads(client.ask({"type": "subscribe", "tags": tags}))["tags"] == tags
    refused = json.loads(client.ask({"type": "subscribe", "tags": [f"{name}256"]}))
    assert (refused["type"], refused["code"]) == ("subscribe", 0)
    again = json.loads(client.ask({"type": "subscribe", "tags": [tags[0]]}))
    assert again["code"] == 1 and len(again["tags"]) == 256


def test_257_entries_of_which_two_are_alike_are_256_tags(client, name):
    tags = [f"{name}{n}" for n in range(256)]
    ask = lambda kind, tags: json.loads(client.ask({"type": kind, "tags": tags}))
    assert ask("subscribe", tags + tags[:1])["tags"] == tags
    assert ask("subscribe", tags + [f"{name}256"])["code"] == 0
    assert ask("unsubscribe", ",".join(tags + tags[-1:]))["tags"] == []


def test_heartbeat(client):
    before = int(time.time() * 1000) - 5
    answer = client.ask({"type": "heartbeat"})
    found = re.fullmatch(r'\{"type":"heartbeat","code":1,"ts":(\d{13})\}', answer)
    assert found, answer
    assert before <= int(found[1]) <= int(time.time() * 1000) + 5
    answer = client.ask({"type": "heartbeat", "id": "é" * 32})
    assert answer.startswith('{"type":"heartbeat","code":1,"id":"%s","ts":' % ("é" * 32))


def test_binary_frames_hold_the_same_json(client):
    client.send(b'{"type":"heartbeat","id":"b"}')
    assert client.json()["id"] == "b"


def test_request_without_business_servers(client):
    assert client.ask({"type": "request", "id": "r1", "data": {"a": 1}}) == (
        '{"type":"response","id":"r1","code":0,"msg":"no server"}'
    )


def test_refresh_without_session_exp(client):
    refused = json.loads(client.ask({"type": "refresh", "session_exp": 1, "sign": "", "id": "f"}))
    assert (refused["type"], refused["code"], refused["id"]) == ("refresh", 0, "f")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "hello",
        '{"type":"heartbeat"',
        '{"type":"heartbeat"}x',
        '{"type":"heartbeat","type":"heartbeat"}',
        '{"type":"nonsense"}',
        '{"type":7}',
        "{}",
        '{"type":"connect"}',
        '{"type":"push","data":1}',
        '{"type":"response","data":1}',
        "[" * 5000,
    ],
)
def test_anything_else_is_an_error_and_the_connection_stays(client, text):
    refused = json.loads(client.ask(text))
    assert (refused["type"], refused["code"]) == ("error", 0)
    assert refused["msg"] and list(refused) == ["type", "code", "msg"]
    assert client.ask({"type": "heartbeat"}).startswith('{"type":"heartbeat","code":1')


def test_an_error_carries_the_id(client):
    refused = json.loads(client.ask({"type": "nonsense", "id": "n1"}))
    assert (refused["type"], refused["code"], refused["id"]) == ("error", 0, "n1")
    for bad in (7, "x" * 65, ["a"]):
        refused = json.loads(client.ask({"type": "heartbeat", "id": bad}))
        assert refused["type"] == "error" and "id" not in refused


@pytest.mark.parametrize(
    "rest", ['"a":1,"a":2}', '"data":' + "[" * 200 + "]" * 200 + "}", '"a":}', '"a"', ""]
)
def test_what_does_not_parse_has_its_id_too(shared, client, rest):
    refused = json.loads(client.ask('{"type":"heartbeat","id":"n2",' + rest))
    assert (refused["type"], refused["code"], refused["id"]) == ("error", 0, "n2")
    with shared.business("request") as server:
        refused = json.loads(server.ask('{"type":"push","id":"n3",' + rest))
        assert (refused["type"], refused["code"], refused["id"]) == ("error", 0, "n3")


def test_members_that_nobody_knows_are_ignored(client):
    client.ask({"type": "heartbeat", "later": {"type": "x"}, "data": [1]})


def test_subscribe_none_takes_tags_at_connect_only(shared, name):
    none = {"pid": "none", "secret": "secret-of-none"}
    with shared.client(name, tags=f"{name}a", **none) as client:
        refused = json.loads(client.ask({"type": "subscribe", "tags": f"{name}b", "id": "1"}))
        assert (refused["type"], refused["code"], refused["id"]) == ("subscribe", 0, "1")
        shared.push(1, tags=[f"{name}a", f"{name}b"], **none)
        assert client.pushed() == "1"


def test_subscribe_signed(shared, name):
    signed = {"pid": "signed", "secret": "secret-of-signed"}
    with shared.client(name, **signed) as client:
        tags = [f"{name}b", f"{name}a"]
        text = f"subscribe\n{client.cid}\n" + ",".join(sorted(tags))
        for sign in (None, "", "0" * 64, hmac_hex("dev-secret", text)):
            message = {"type": "subscribe", "tags": tags, "id": "s"}
            if sign is not None:
                message["sign"] = sign
            refused = json.loads(client.ask(message))
            assert (refused["type"], refused["code"], refused["id"]) == ("subscribe", 0, "s")
        for secret in ("secret-of-signed", "older-secret-of-signed"):
            sign = hmac_hex(secret, text)
            answer = json.loads(client.ask({"type": "subscribe", "tags": tags, "sign": sign}))
            assert answer["code"] == 1 and answer["tags"] == tags
        with shared.client(name, **signed) as other:
            message = {"type": "subscribe", "tags": tags, "sign": hmac_hex(signed["secret"], text)}
            assert json.loads(other.ask(message))["code"] == 0
