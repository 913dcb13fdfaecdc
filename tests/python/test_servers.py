"""Business servers: their events, requests and pushes."""

import contextlib
import json
import re
import struct
import threading
import time

import pytest
from harness import TEXT, Raw, Server, eventually, frame, handshake, signed


@pytest.fixture
def own(start):
    """A node that no other test's business servers are connected to."""
    return start("--node", "200", "--request_timeout_ms", "1000")


def event(server, *kinds):
    """The next event of one of these kinds."""
    while True:
        message = server.json()
        if message["type"] in kinds:
            return message


def request(client, data, echo="r1"):
    message = {"type": "request", "id": echo, "data": data}
    client.send({name: value for name, value in message.items() if name != "id" or value})


def answer_one(server, data=None):
    asked = event(server, "request")
    reply = {"type": "response", "id": asked["id"], "data": asked["data"] if data is None else data}
    server.send(reply)
    return asked


# The connection.


def test_a_business_server_is_welcomed_and_needs_no_uid(own):
    with own.business() as server:
        assert re.fullmatch(
            r'\{"type":"connect","code":1,"msg":"success","client_id":"\d+","node":200\}',
            server.welcome,
        )
        assert json.loads(server.ask({"type": "heartbeat", "id": "h"}))["type"] == "heartbeat"


def early(node, target, *messages):
    """A connection that sends these messages together with its handshake; returns the replies."""
    query = signed("/ws/connect", target | {"pid": "1"}, "dev-secret")
    raw = Raw(node.ws)
    raw.send(handshake("/ws/connect?" + query) + b"".join(messages))
    assert raw.read_head().startswith("HTTP/1.1 101 ")
    return raw


def clients_ask_with_their_handshake(own):
    """A business server receives each client's connect event once, before the client's request."""
    asking = frame(1, '{"type":"request","id":"r","data":1}')
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(own.business("connect,request"))
        for number in range(40):
            stack.enter_context(early(own, {"uid": f"u{number}"}, asking))
        known = set()
        for _ in range(2 * 40):
            one = server.json()
            if one["type"] == "connect":
                known.add(one["client_id"])
            else:
                assert one["from"]["client_id"] in known
        server.send({"type": "heartbeat"})
        assert server.json()["type"] == "heartbeat"


def test_its_welcome_comes_first_whatever_it_sends_early(own):
    """Messages sent with the handshake were answered before the welcome, which waited for other
    nodes."""
    heartbeat = frame(1, '{"type":"heartbeat","id":"h"}')
    target = {"type": "2", "events": "request"}
    for _ in range(20):
        with early(own, target, frame(9, b"ping"), heartbeat, frame(1, "no json")) as raw:
            welcome, pong, beat, error = (raw.read_frame() for _ in range(4))
            assert json.loads(welcome[1])["type"] == "connect"
            assert pong == (0x8A, b"ping")
            assert json.loads(beat[1])["id"] == "h" and json.loads(error[1])["type"] == "error"
            # Reading continues.
            raw.frame(1, '{"type":"heartbeat","id":"late"}')
            assert json.loads(raw.read_frame()[1])["id"] == "late"
            raw.frame(8, struct.pack(">H", 1000))
            assert raw.close_code() == 1000


def test_a_request_does_not_overtake_the_news_of_its_client(own):
    """A request sent with the handshake reached servers on other workers before the connect
    event."""
    clients_ask_with_their_handshake(own)


@pytest.mark.parametrize("events", ["connects", "connect,", "request,push", "CONNECT"])
def test_an_unknown_event_is_refused(own, events):
    query = signed("/ws/connect", {"pid": "1", "type": "2", "events": events}, "dev-secret")
    with Raw(own.ws) as raw:
        raw.send(handshake("/ws/connect?" + query))
        status, _, body = raw.read_response()
    assert status == 400 and "events must be" in json.loads(body)["msg"]


def test_a_business_server_is_no_target(own):
    with own.business(uid="u1") as server, own.client("u1") as client:
        own.push("all")
        own.push("user", uids=["u1"])
        own.push("cid", cids=[server.cid, client.cid])
        assert [client.pushed() for _ in range(3)] == ['"all"', '"user"', '"cid"']
        own.push("server", cids=[server.cid])
        kinds = set()
        server.send({"type": "heartbeat"})
        while "heartbeat" not in kinds:
            kinds.add(server.json()["type"])
        assert "push" not in kinds


def test_what_clients_say_is_not_for_business_servers(own):
    with own.business() as server:
        for message in ({"type": "subscribe", "tags": "a"}, {"type": "request", "data": 1}):
            refused = json.loads(server.ask(message | {"id": "x"}))
            assert (refused["type"], refused["code"], refused["id"]) == ("error", 0, "x")
        assert json.loads(server.ask("not json"))["type"] == "error"


def test_a_business_servers_message_may_be_larger_than_a_clients(own):
    with own.business("request") as server, own.client("big") as client:
        data = "x" * 300_000
        reply = json.loads(server.ask({"type": "push", "uids": ["big"], "data": data, "id": "1"}))
        assert reply["code"] == 1, reply
        assert json.loads(client.pushed()) == data
        server.send("x" * 1_100_000)
        assert server.close_code()[0] == 1009


def test_its_session_ends_too(own):
    with own.business(session_exp=int(time.time()) + 2) as server:
        assert server.close_code() == (4003, "session expired")


# Events.


def test_events_of_a_client_come_in_order_with_their_members(own):
    with own.business() as server:
        with own.client("ann", device="ios", tags="a") as client:
            cid = client.cid
            client.ask({"type": "subscribe", "tags": "a,b,c"})
            client.ask({"type": "unsubscribe", "tags": "c,never"})
            client.ask({"type": "unsubscribe", "tags": "never"})
        kinds = ("connect", "subscribe", "unsubscribe", "disconnect")
        events = [event(server, *kinds) for _ in range(4)]
    assert [one["type"] for one in events] == list(kinds)
    for one in events:
        assert one.pop("ts") > 1_700_000_000_000
        assert one.pop("type") and "code" not in one
        assert (one.pop("client_id"), one.pop("uid")) == (cid, "ann")
        assert (one.pop("device"), one.pop("node")) == ("ios", 200)
        assert one.pop("ip") == "127.0.0.1"
    assert events == [
        {"tags": ["a"]},
        {"tags": ["b", "c"]},
        {"tags": ["c"]},
        {"reason": "peer"},
    ]


def test_events_are_narrowed(own):
    with own.business("disconnect") as some, own.business("") as none, own.business() as everything:
        own.client("ann").close()
        assert event(everything, "connect")["uid"] == "ann"
        assert event(everything, "disconnect")["uid"] == "ann"
        assert some.json()["type"] == "disconnect"
        assert json.loads(none.ask({"type": "heartbeat"}))["type"] == "heartbeat"


def test_events_stay_in_their_project(start, projects):
    node = Server("--workers", "1", "--projects", projects)
    two = {"pid": "two", "secret": "old-secret-of-two"}
    with node.business() as one, node.business(**two) as other:
        with node.client("ann", **two), node.client("bob"):
            assert event(one, "connect")["uid"] == "bob"
            assert event(other, "connect")["uid"] == "ann"
            with node.client("cat", **two) as cat:
                request(cat, 1)
                assert event(other, "request")["from"]["uid"] == "cat"


def test_the_reason_of_a_disconnect(start):
    node = start("--idle_timeout_ms", "400")
    with node.business("disconnect") as server:
        with node.raw_ws("ill") as ill:
            ill.frame(3, b"reserved opcode")
            assert ill.close_code() == 1002
        assert server.json()["reason"] == "violation"
        with node.raw_ws("gone"):
            pass
        assert server.json()["reason"] == "gone"
        with node.client("late", session_exp=int(time.time()) + 2) as late:
            assert late.close_code()[0] == 4003
        assert server.json()["reason"] == "session_expired"
        with node.raw_ws("silent") as silent:
            assert silent.close_code() == 4002
        assert server.json()["reason"] == "idle"


# Pushes.


def test_a_push_is_acknowledged_with_its_message_id(own):
    with own.business() as server, own.client("ann", tags="x") as client:
        reply = server.ask({"type": "push", "uids": ["ann"], "data": {"a": 1}, "id": "p1"})
        while json.loads(reply)["type"] != "push":
            reply = server.text()
        found = re.fullmatch(r'\{"type":"push","code":1,"id":"p1","message_id":"(\d+)"\}', reply)
        assert client.json() == {"type": "push", "id": found[1], "data": {"a": 1}}
        for number in range(100):
            server.send({"type": "push", "tags": "x", "data": number})
        acknowledged = [event(server, "push") for _ in range(100)]
        assert all(list(one) == ["type", "code", "message_id"] for one in acknowledged)
        pushes = [client.json() for _ in range(100)]
        assert [one["data"] for one in pushes] == list(range(100))
        assert [one["id"] for one in pushes] == [one["message_id"] for one in acknowledged]


def test_a_bad_push_is_refused_and_the_next_is_not(own):
    with own.business("request") as server:
        for bad in ({}, {"data": 1, "uids": ["a,b"]}, {"data": 1, "cids": "x"}, {"data": 1, "ttl_ms": 0}):
            refused = json.loads(server.ask({"type": "push", "id": "b", **bad}))
            assert (refused["type"], refused["code"], refused["id"]) == ("push", 0, "b")
            assert refused["msg"]
        assert json.loads(server.ask({"type": "push", "data": 1, "id": "g"}))["code"] == 1


# Requests.


def test_a_request_goes_to_one_server_and_its_answer_to_that_client(own):
    with own.business("request") as server:
        with own.client("ann", device="web") as ann, own.client("bob") as bob:
            request(ann, {"x": [1, 2.50]}, "r\"1")
            text = server.text()
            asked = json.loads(text)
            assert text == (
                '{"type":"request","id":"%s","from":{"client_id":"%s","uid":"ann","device":"web",'
                '"ip":"127.0.0.1"},"data":{"x": [1, 2.5]}}' % (asked["id"], ann.cid)
            )
            server.send('{"type":"response","id":"%s","data": {"y" : 1.50}}' % asked["id"])
            assert ann.text() == '{"type":"response","id":"r\\"1","code":1,"data":{"y" : 1.50}}'
            request(bob, None, None)
            answer_one(server, "hi")
            assert bob.text() == '{"type":"response","code":1,"data":"hi"}'


def test_no_server_at_once(own):
    with own.client("ann") as ann:
        assert ann.ask({"type": "request", "id": "r1", "data": 1}) == (
            '{"type":"response","id":"r1","code":0,"msg":"no server"}'
        )
        with own.business("connect,disconnect"):
            assert json.loads(ann.ask({"type": "request", "data": 1}))["msg"] == "no server"


def test_a_server_that_says_nothing_is_a_timeout_and_its_late_answer_is_counted(own):
    with own.business("request") as server, own.client("ann") as ann:
        request(ann, 1)
        asked = event(server, "request")
        assert ann.text() == '{"type":"response","id":"r1","code":0,"msg":"timeout"}'
        server.send({"type": "response", "id": asked["id"], "data": 1})
        eventually(lambda: own.metric("ws_cluster_request_answer_lost_total") == 1, "the late answer counted")
        assert json.loads(ann.ask({"type": "heartbeat"}))["type"] == "heartbeat"


def test_repeated_and_forged_answers_are_dropped_and_counted(own):
    with own.business("request") as first, own.business("request") as second:
        with own.client("ann") as ann:
            request(ann, "a", "1")
            request(ann, "b", "2")
            # The server with the fewest requests in flight.
            a, b = event(first, "request"), event(second, "request")
            assert {a["data"], b["data"]} == {"a", "b"}
            second.send({"type": "response", "id": a["id"], "data": "forged"})
            second.send({"type": "response", "id": "1", "data": "guessed"})
            second.send({"type": "response", "data": "none"})
            lost = lambda: own.metric("ws_cluster_request_answer_lost_total", reason="unasked")
            eventually(lambda: lost() == 3, "three are counted")
            for _ in range(3):
                first.send({"type": "response", "id": a["id"], "data": "own"})
            eventually(lambda: lost() == 5, "two more are counted")
            second.send({"type": "response", "id": b["id"], "data": "own"})
            answers = [ann.json(), ann.json()]
            assert {one["id"] for one in answers} == {"1", "2"}
            assert all(one["data"] == "own" for one in answers)


def test_requests_go_to_the_server_with_the_fewest_in_flight(own):
    with own.business("request") as first, own.business("request") as second:
        clients = [own.client(f"u{number}") for number in range(6)]
        for number, client in enumerate(clients):
            request(client, number)
        shares = [[event(server, "request") for _ in range(3)] for server in (first, second)]
        assert {one["data"] for share in shares for one in share} == set(range(6))
        for one in shares[0]:
            first.send({"type": "response", "id": one["id"], "data": 0})
        answered = {one["data"] for one in shares[0]}
        for number in answered:
            clients[number].json()
            request(clients[number], "again")
        assert [event(first, "request")["data"] for _ in range(3)] == ["again"] * 3
        for client in clients:
            client.close()


def test_a_server_that_goes_answers_for_itself(own):
    with own.client("ann") as ann, own.business("request") as server:
        request(ann, 1)
        event(server, "request")
        server.close()
        assert ann.text() == '{"type":"response","id":"r1","code":0,"msg":"server gone"}'
        assert json.loads(ann.ask({"type": "request", "data": 1}))["msg"] == "no server"


def test_a_client_that_goes_leaves_nothing_behind(own):
    with own.business("request") as server:
        with own.client("ann") as ann:
            request(ann, 1)
            asked = event(server, "request")
        eventually(lambda: own.metric("ws_connection") == 1, "the client is gone")
        server.send({"type": "response", "id": asked["id"], "data": 1})
        # The sender has disconnected, so the answer has no recipient.
        assert own.metric("ws_cluster_request_answer_total", result="client_gone") == 1
        lost = lambda: sum(
            own.metric("ws_cluster_request_answer_lost_total", reason=why) for why in ("late", "unasked")
        )
        eventually(lambda: lost() == 1, "its answer is counted")


def test_one_user_does_not_take_the_request_table_of_all_projects(projects):
    """66 connections with 1,000 requests each disconnected at once: others were refused for 10
    s."""
    node = Server("--workers", "1", "--projects", projects)
    two = {"pid": "two", "secret": "new-secret-of-two"}
    with contextlib.ExitStack() as stack:
        stack.callback(node.stop)
        mute = stack.enter_context(node.raw_ws("mute", type="2", events="request"))
        server = stack.enter_context(node.business("request", **two))
        ann = stack.enter_context(node.client("ann", **two))
        threading.Thread(target=lambda: drain(mute.socket), daemon=True).start()
        message = frame(TEXT, '{"type":"request","data":1}')
        crowd = [stack.enter_context(node.raw_ws("u")) for _ in range(66)]
        for raw in crowd:
            raw.send(message * 1_000)
        eventually(lambda: node.metric("ws_cluster_client_message_total") >= 66_000, "all were read", 30)
        # While they are read, the queue to another worker may be full.
        time.sleep(0.2)
        request(ann, 1)
        answer_one(server)
        assert ann.json()["code"] == 1
        for raw in crowd:
            raw.socket.close()
        gone = lambda: node.metric("ws_cluster_request_answer_total", result="client_gone")
        eventually(lambda: node.metric("ws_connection") == 3, "they are gone", 30)
        time.sleep(0.2)
        request(ann, 2, "r2")
        answer_one(server)
        assert ann.json()["id"] == "r2"
        assert gone() > 1_000


def test_others_are_answered_while_one_project_floods_the_way_between_workers(projects):
    """They got "too many requests are pending": a flood had filled the ring to another worker."""
    node = Server("--workers", "2", "--projects", projects)
    two = {"pid": "two", "secret": "new-secret-of-two"}
    with contextlib.ExitStack() as stack:
        stack.callback(node.stop)
        mute = stack.enter_context(node.raw_ws("mute", type="2", events="request"))
        threading.Thread(target=lambda: drain(mute.socket), daemon=True).start()
        server = stack.enter_context(node.business("request", **two))
        # Very likely on both workers.
        asking = [stack.enter_context(node.client(f"ann{number}", **two)) for number in range(6)]
        message = frame(TEXT, '{"type":"request","data":1}')
        crowd = [stack.enter_context(node.raw_ws("u")) for _ in range(40)]
        flood = threading.Thread(target=lambda: [raw.send(message * 1_000) for raw in crowd])
        flood.start()
        while flood.is_alive() or node.metric("ws_cluster_client_message_total") < 40_000:
            for ann in asking:
                request(ann, 1)
                answer_one(server)
                assert ann.json()["code"] == 1
        flood.join()


def drain(source):
    with contextlib.suppress(OSError):
        while source.recv(1 << 16):
            pass


def test_many_requests_of_one_client_and_a_limit(own):
    with own.business("request") as server, own.client("ann") as ann:
        for number in range(1_001):
            request(ann, number, str(number))
        refused = ann.json()
        assert (refused["id"], refused["msg"]) == ("1000", "too many requests are pending")
        for _ in range(1_000):
            answer_one(server)
        answers = {one["id"]: one["data"] for one in (ann.json() for _ in range(1_000))}
        assert answers == {str(number): number for number in range(1_000)}


def test_a_storm_of_connects_is_told_whole(own):
    with own.business("connect,disconnect") as server:
        clients = [own.client(f"s{number}") for number in range(200)]
        cids = {client.cid for client in clients}
        for client in clients:
            client.close()
        seen = {}
        for _ in range(400):
            one = server.json()
            seen.setdefault(one["client_id"], []).append(one["type"])
        assert seen == {cid: ["connect", "disconnect"] for cid in cids}
