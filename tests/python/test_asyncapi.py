"""The description of the WebSocket side against a running server: each example that a client or a
business server sends is accepted, and each message that they get is as described."""

import gzip
import json
import os
import re
import signal

import jsonschema_rs
import pytest
import yaml
from harness import ROOT, SECRET, Server, eventually, hmac_hex, sign_body
from redis_harness import Redis, node

HERE = os.path.dirname(__file__)
NO_NODE = "localhost:8812"
# The client of the signatures in the examples.
EXAMPLE_CID = "7340032000000"
LATER = "4102444800"


def read(name):
    with open(os.path.join(ROOT, name), encoding="utf-8") as file:
        return file.read()


TEXT = read("docs/asyncapi.yaml")
SPEC = yaml.safe_load(TEXT)


def target(reference):
    """The target of a `$ref`: its name and its value."""
    thing = SPEC
    words = reference["$ref"].removeprefix("#/").split("/")
    for word in words:
        thing = thing[word]
    return words[-1], target(thing)[1] if "$ref" in thing else thing


class Operation:
    def __init__(self, name, given):
        self.name = name
        self.channel, _ = target(given["channel"])
        is_received = given["action"] == "receive"
        messages = dict(map(target, given["messages"]))
        replies = dict(map(target, given.get("reply", {}).get("messages", [])))
        self.to_node, self.from_node = (messages, replies) if is_received else (replies, messages)


OPERATIONS = [Operation(name, given) for name, given in SPEC["operations"].items()]
CHANNELS = list(SPEC["channels"])


def from_node(channel):
    """The messages sent to this channel, by name."""
    of_channel = [one.from_node for one in OPERATIONS if one.channel == channel]
    return {name: message for some in of_channel for name, message in some.items()}


def fits(message, payload):
    schema = {**message["payload"], "components": SPEC["components"]}
    return jsonschema_rs.validator_for(schema).is_valid(payload)


def names_of(channel, payload):
    """The messages of the channel that contains this message."""
    return [name for name, one in from_node(channel).items() if fits(one, payload)]


def shape(payload):
    """Its members in order; with an id if the message that it replies to had one."""
    answered = "code" in payload
    return [name for name in payload if not (answered and name == "id")]


# The file.


def test_it_is_asyncapi_3():
    with gzip.open(os.path.join(HERE, "asyncapi/3.0.0.json.gz")) as file:
        jsonschema_rs.validate(json.load(file), SPEC)


def test_every_reference_leads_somewhere_and_every_message_is_used():
    for found in re.findall(r"\$ref: '(#[^']+)'", TEXT):
        target({"$ref": found})
    used = set()
    for one in OPERATIONS:
        used |= {(one.channel, name) for name in (*one.to_node, *one.from_node)}
    there = {(name, one) for name in CHANNELS for one in SPEC["channels"][name]["messages"]}
    assert used == there
    assert {name for _, name in used} == set(SPEC["components"]["messages"])


def test_close_codes_are_those_of_the_contract():
    rows = re.findall(r"^\| (\d{4}) \|", read("docs/protocol.md"), re.MULTILINE)
    assert len(rows) > 5
    for channel in SPEC["channels"].values():
        assert list(channel["x-close-codes"]) == rows


def test_its_vector_holds():
    [(text, sign)] = re.findall(r"`(/ws/connect\\n\S+)` and the sign `(\w+)`", SPEC["info"]["description"])
    path, _, query = text.partition("\\n")
    assert sign_body(path, query) == sign


def test_examples_are_what_their_schemas_say():
    for name, message in SPEC["components"]["messages"].items():
        assert message["examples"], name
        for example in message["examples"]:
            assert fits(message, example["payload"]), name
    for channel in CHANNELS:
        for name, message in from_node(channel).items():
            assert names_of(channel, message["examples"][0]["payload"]) == [name]


# A running server.


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    file = tmp_path_factory.mktemp("projects") / "projects.toml"
    project = f'[[project]]\nsecrets = ["{SECRET}"]\n'
    file.write_text(f'{project}pid = "1"\n{project}pid = "signed"\nsubscribe = "signed"\n')
    server = Server("--workers", "1", "--projects", str(file), "--ops_hosts", "node-1.example")
    yield server
    server.stop()


def test_it_is_served_with_the_nodes_own_address(server):
    answer = server.request(
        "GET", "/asyncapi.yaml", headers={"Host": "node-1.example:9092"}, at=server.swagger
    )
    assert answer.headers["Content-Type"] == "application/yaml"
    expected = TEXT.replace(NO_NODE, f"node-1.example:{server.ws[1]}")
    assert answer.text == expected != TEXT
    [wanted] = yaml.safe_load(answer.text)["servers"].values()
    assert wanted["host"] == f"node-1.example:{server.ws[1]}"
    assert SPEC["info"]["version"] == server.request("GET", "/version").json["version"]


def signed_text(payload, cid):
    if payload["type"] == "refresh":
        return f"refresh\n{cid}\n{payload['session_exp']}"
    return f"subscribe\n{cid}\n" + ",".join(sorted(payload["tags"]))


def connected(server, channel, payload):
    """A connection that may send this; its project requires a sign if the message has one."""
    is_signed = payload["type"] == "subscribe" and "sign" in payload
    params = {"pid": "signed" if is_signed else "1", "session_exp": LATER}
    if channel == "client":
        return server.client("alice", **params)
    return server.business("request", **params)


EXAMPLES = [
    pytest.param(one, example["payload"], id=f"{one.name}-{example.get('name', number)}")
    for one in OPERATIONS
    for message in one.to_node.values()
    for number, example in enumerate(message["examples"])
]


@pytest.mark.parametrize("operation, payload", EXAMPLES)
def test_each_example_is_taken(server, operation, payload):
    if operation.name in ("ask", "answer", "request"):
        return ask_and_answer(server, operation, payload)
    with connected(server, operation.channel, payload) as connection:
        if "sign" in payload:
            assert payload["sign"] == hmac_hex(SECRET, signed_text(payload, EXAMPLE_CID))
            payload = payload | {"sign": hmac_hex(SECRET, signed_text(payload, connection.cid))}
        answer = json.loads(connection.ask(payload))
    # The first reply of each operation is its success.
    success = next(iter(operation.from_node.items()))
    assert names_of(operation.channel, answer) == [success[0]]
    assert answer.get("id") == payload.get("id")


def ask_and_answer(server, operation, payload):
    """A request reaches a business server, and its answer the client."""
    with server.business("request") as business, server.client("alice") as client:
        request = payload if operation.name == "request" else {"type": "request", "data": 1}
        client.send(request)
        asked = business.json()
        assert names_of("businessServer", asked) == ["asked"]
        assert asked["data"] == request["data"]
        answer = {"type": "response", "data": 2} if operation.name == "request" else payload
        business.send(answer | {"id": asked["id"]})
        answered = client.json()
        assert names_of("client", answered) == ["response"]
        assert answered["data"] == answer["data"]
        assert answered.get("id") == request.get("id")


class Witness:
    """Records the messages that connections get."""

    def __init__(self):
        self.seen = {channel: {} for channel in CHANNELS}

    def hear(self, channel, connection, text=None):
        """The next message, which must be one of the channel's and have the shape of an example."""
        payload = json.loads(text or connection.text())
        [name] = names_of(channel, payload)
        examples = from_node(channel)[name]["examples"]
        shapes = [shape(example["payload"]) for example in examples]
        assert shape(payload) in shapes, payload
        self.seen[channel][name] = payload
        return name

    def hear_all(self, channel, connection, *names):
        assert [self.hear(channel, connection) for _ in names] == [*names]

    def asked(self, channel, connection, name, **message):
        connection.send(message)
        self.hear_all(channel, connection, name)


def test_each_message_of_the_node_is_as_described(server):
    """All messages of both channels, except those caused by other nodes."""
    witness = Witness()
    with server.client("alone") as client:
        witness.hear("client", client, client.welcome)
        witness.asked("client", client, "noResponse", type="request", data=1, id="r")
        witness.asked("client", client, "refused", type="subscribe", tags="", id="s")
        witness.asked("client", client, "refused", type="unsubscribe", tags=7)
        witness.asked("client", client, "refused", type="refresh", session_exp=1, sign="")
        witness.asked("client", client, "error", type="nonsense", id="n")
    with server.business() as business:
        ask = lambda name, **message: witness.asked("businessServer", business, name, **message)
        hear = lambda *names: witness.hear_all("businessServer", business, *names)
        witness.hear("businessServer", business, business.welcome)
        ask("alive", type="heartbeat", id="h")
        ask("refused", type="refresh", session_exp=1, sign="")
        ask("notPushed", type="push", id="p")
        ask("error", type="subscribe", tags="a")
        with server.client("alice", tags="x", session_exp=LATER, device="web") as client:
            hear("clientConnected")
            asked = lambda name, **message: witness.asked("client", client, name, **message)
            asked("subscribed", type="subscribe", tags="a,b")
            asked("unsubscribed", type="unsubscribe", tags="b")
            hear("clientSubscribed", "clientUnsubscribed")
            asked("alive", type="heartbeat")
            sign = hmac_hex(SECRET, f"refresh\n{client.cid}\n{LATER}")
            asked("refreshed", type="refresh", session_exp=int(LATER), sign=sign)
            ask("pushed", type="push", uids="alice", data=1)
            witness.hear_all("client", client, "push")
            client.send({"type": "request", "data": 1})
            hear("asked")
            asked_for = witness.seen["businessServer"]["asked"]["id"]
            business.send({"type": "response", "id": asked_for, "data": 2})
            witness.hear_all("client", client, "response")
        hear("clientDisconnected")
        with server.client("bob"):
            hear("clientConnected")
        hear("clientDisconnected")
    with server.business("", session_exp=LATER) as business:
        sign = hmac_hex(SECRET, f"refresh\n{business.cid}\n{LATER}")
        message = {"type": "refresh", "session_exp": int(LATER), "sign": sign}
        witness.asked("businessServer", business, "refreshed", **message)
    for channel in CHANNELS:
        assert set(from_node(channel)) - set(witness.seen[channel]) <= {"node"}, channel


def test_words_of_other_nodes_are_as_described():
    redis = Redis()
    servers = []
    try:
        servers.append(node(201, redis.url, workers="1"))
        with servers[0].business("node") as business:
            servers.append(node(202, redis.url, workers="1"))
            witness = Witness()
            witness.hear_all("businessServer", business, "node")
            assert witness.seen["businessServer"]["node"]["state"] == "up"
            servers[1].signal(signal.SIGTERM)
            witness.hear_all("businessServer", business, "node")
            assert witness.seen["businessServer"]["node"]["state"] == "lost"
    finally:
        for server in servers:
            server.stop()
        redis.stop()
