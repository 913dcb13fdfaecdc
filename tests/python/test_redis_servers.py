"""Business servers over several nodes on one Redis: events, requests and answers, and lost
nodes."""

import contextlib
import json
import signal
import threading

import pytest
from harness import eventually
from redis_harness import Resp, await_ready, await_unready, node
from test_servers import answer_one, clients_ask_with_their_handshake, event, request


def await_known(number, *those):
    """Returns once each of these nodes knows this number of business servers."""
    for one in those:
        eventually(lambda one=one: one.metric("ws_cluster_business_server_known") == number, "word of all")


@pytest.fixture(params=["1", "2"], ids=["1-worker", "2-workers"])
def nodes(request, own_redis):
    """Starts nodes on a Redis of their own: nodes(number, *args)."""
    redis = own_redis()
    with contextlib.ExitStack() as stack:

        def start(number, *args, **options):
            args = ["--request_timeout_ms", "3000", *args]
            started = node(number, redis.url, *args, workers=request.param, **options)
            stack.callback(started.stop)
            return started

        start.redis = redis
        yield start


def test_a_request_does_not_overtake_the_news_of_its_client(nodes):
    """The request from another worker of the node arrived at once, but the announcement came
    through Redis."""
    clients_ask_with_their_handshake(nodes(1))


def test_the_nodes_own_events_need_no_redis(nodes):
    own = nodes(1)
    with own.business("connect,disconnect") as server:
        nodes.redis.pause()
        await_unready(own)
        with contextlib.ExitStack() as stack:
            for number in range(10):
                stack.enter_context(own.client(f"u{number}"))
                assert event(server, "connect")["uid"] == f"u{number}"
        for number in range(10):
            assert event(server, "disconnect")["uid"]
        nodes.redis.go_on()
        await_ready(own)
        server.send({"type": "heartbeat"})
        assert server.json()["type"] == "heartbeat"


def test_events_come_from_every_node_in_order_for_each_client(nodes):
    a, b = nodes(1), nodes(2)
    with a.business("connect,subscribe,disconnect") as one, b.business("connect,disconnect") as two:
        await_known(2, a, b)
        seen = {}
        for number in range(20):
            for here in (a, b):
                with here.client(f"u{number}", tags="x") as client:
                    client.ask({"type": "subscribe", "tags": "y"})
                    seen[client.cid] = here.number
        for server, kinds in ((one, ["connect", "subscribe", "disconnect"]), (two, ["connect", "disconnect"])):
            told = {}
            for _ in range(40 * len(kinds)):
                said = server.json()
                told.setdefault(said["client_id"], []).append(said["type"])
                assert said["node"] == seen[said["client_id"]]
            assert told == {cid: kinds for cid in seen}


def test_nothing_is_published_while_nobody_wants_it(nodes):
    a, b = nodes(1), nodes(2)
    with Resp(nodes.redis.port) as ears:
        ears.command("SUBSCRIBE", "wsc:{1}:e")
        with b.business("request,node"), a.client("quiet"):
            pass
        a.client("quiet").close()
        with b.business("disconnect") as server:
            await_known(1, a)
            with a.client("ann") as ann:
                pass
            assert server.json()["client_id"] == ann.cid
        payload = ears.reply()[2]
        assert ann.cid.encode() in payload and b"disconnect" in payload
        assert b'"connect"' not in payload and b"quiet" not in payload
        await_known(0, a)
        a.client("quiet").close()
        with b.business("connect") as server:
            await_known(1, a)
            a.client("bob").close()
            assert server.json()["uid"] == "bob"
        payload = ears.reply()[2]
        assert b"bob" in payload and b"quiet" not in payload


def test_a_request_crosses_nodes_and_so_does_its_answer(nodes):
    a, b = nodes(1), nodes(2)
    with a.client("ann", device="web") as ann, a.client("bob") as bob:
        assert json.loads(ann.ask({"type": "request", "data": 1}))["msg"] == "no server"
        with b.business("request") as server:
            await_known(1, a)
            for number in range(50):
                request(ann, {"n": number}, str(number))
                asked = answer_one(server)
                ann_is = {"client_id": ann.cid, "uid": "ann", "device": "web", "ip": "127.0.0.1"}
                assert asked["from"] == ann_is
                answer = ann.json()
                assert answer == {"type": "response", "id": str(number), "code": 1, "data": {"n": number}}
        eventually(lambda: json.loads(bob.ask({"type": "request", "data": 1}))["msg"] == "no server", "none")


def test_the_nearest_of_equals_is_asked_and_else_the_least_busy(nodes):
    a, b = nodes(1), nodes(2)
    with a.business("request") as near, b.business("request") as far:
        await_known(2, a)
        with a.client("ann") as ann:
            for number in range(5):
                request(ann, number)
                assert answer_one(near)["data"] == number
                ann.json()
            request(ann, "first")
            held = event(near, "request")
            request(ann, "second")
            assert answer_one(far)["data"] == "second"
            assert ann.json()["data"] == "second"
            near.send({"type": "response", "id": held["id"], "data": "late but there"})
            assert ann.json()["data"] == "late but there"


def test_an_answer_of_the_wrong_connection_is_not_taken(nodes):
    a, b = nodes(1), nodes(2)
    with a.business("request") as near, b.business("request") as far, a.client("ann") as ann:
        request(ann, 1)
        asked = event(near, "request")
        far.send({"type": "response", "id": asked["id"], "data": "forged"})
        eventually(lambda: b.metric("ws_cluster_request_answer_lost_total", reason="unasked") == 1, "counted")
        near.send({"type": "response", "id": asked["id"], "data": "own"})
        assert ann.json()["data"] == "own"


def test_a_server_elsewhere_that_goes_answers_for_itself(nodes):
    a, b = nodes(1), nodes(2)
    with a.client("ann") as ann, b.business("request") as server:
        await_known(1, a)
        request(ann, 1)
        event(server, "request")
        server.close()
        assert ann.json() == {"type": "response", "id": "r1", "code": 0, "msg": "server gone"}


def test_a_node_that_is_killed_is_lost_and_comes_back(nodes):
    a, b = nodes(1), nodes(2)
    with a.business("node") as watch, a.client("ann") as ann:
        server = b.business("request")
        await_known(2, a)
        request(ann, 1)
        event(server, "request")
        b.process.send_signal(signal.SIGKILL)
        lost = watch.json(timeout=20)
        assert (lost["type"], lost["state"], lost["node"]) == ("node", "lost", 2)
        assert ann.json()["msg"] in ("server gone", "timeout")
        assert json.loads(ann.ask({"type": "request", "data": 1}))["msg"] == "no server"
        nodes(2)
        up = watch.json()
        assert (up["state"], up["node"]) == ("up", 2) and up["ts"] > lost["ts"]


def test_a_node_that_drains_says_so_and_its_clients_are_told_of(nodes):
    a, b = nodes(1), nodes(2)
    with a.business("node,disconnect") as watch:
        await_known(1, b)
        clients = [b.client(f"u{number}") for number in range(30)]
        far = b.business("request")
        await_known(2, a)
        b.signal(signal.SIGTERM)
        assert [one.close_code()[0] for one in [far, *clients]] == [1001] * 31
        assert b.wait() == 0
        said = [watch.json() for _ in range(31)]
        assert {one["client_id"] for one in said[:30]} == {client.cid for client in clients}
        assert {one["reason"] for one in said[:30]} == {"going_away"}
        assert (said[30]["state"], said[30]["node"]) == ("lost", 2)


def test_a_node_that_starts_knows_the_servers_that_are_there(nodes):
    a = nodes(1)
    with a.business("request") as server:
        for number in (2, 3, 4):
            late = nodes(number)
            with late.client("ann") as ann:
                request(ann, number)
                assert answer_one(server)["data"] == number
                assert ann.json()["code"] == 1


def test_pushes_of_a_business_server_reach_all_nodes_in_order(nodes):
    a, b = nodes(1), nodes(2)
    with a.business("request") as server, a.client("ann") as here, b.client("ann") as there:
        for number in range(200):
            server.send({"type": "push", "uids": ["ann"], "data": number, "id": str(number)})
        acknowledged = [server.json() for _ in range(200)]
        assert [one["id"] for one in acknowledged] == [str(number) for number in range(200)]
        assert all(one["code"] == 1 for one in acknowledged)
        for client in (here, there):
            assert [client.json()["data"] for _ in range(200)] == list(range(200))


def test_a_redis_that_is_away(nodes):
    a, b = nodes(1), nodes(2)
    with a.business("request") as near, b.business("request,connect,disconnect") as far:
        await_known(2, a, b)
        with a.client("ann") as ann:
            assert event(far, "connect")["uid"] == "ann"
            nodes.redis.kill()
            await_unready(a, b)
            refused = json.loads(near.ask({"type": "push", "data": 1, "id": "p"}))
            assert (refused["code"], refused["id"]) == (0, "p") and "queue is down" in refused["msg"]
            request(ann, "b1", "busy")
            if a.workers == "1":
                held = event(near, "request")
            request(ann, "b2", "down")
            while (answer := ann.json())["id"] != "down":
                pass
            assert answer["msg"] == "the queue is down"
            # Later events are reported afterwards.
            a.client("cat").close()
            nodes.redis.start()
            await_ready(a, b)
            assert event(far, "connect")["uid"] == "cat"
            assert event(far, "disconnect")["uid"] == "cat"
            if a.workers == "1":
                near.send({"type": "response", "id": held["id"], "data": 1})
                assert ann.json()["code"] == 1

            def is_answered():
                request(ann, "again")
                answer_one(near)
                return ann.json()["code"] == 1

            eventually(is_answered, "an answer")
        with a.client("bob"):
            assert event(far, "connect")["uid"] == "bob"


def test_a_storm_on_both_nodes(nodes):
    a, b = nodes(1), nodes(2)
    with a.business("connect,disconnect") as one, b.business("connect,disconnect") as two:
        await_known(2, a, b)
        cids = set()
        lock = threading.Lock()

        def storm(here, name):
            for number in range(50):
                with here.client(f"{name}{number}") as client:
                    with lock:
                        cids.add(client.cid)

        threads = [
            threading.Thread(target=storm, args=(here, f"{index}-"))
            for index, here in enumerate((a, a, b, b))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(cids) == 200
        for server in (one, two):
            seen = {}
            for _ in range(400):
                said = server.json()
                seen.setdefault(said["client_id"], []).append(said["type"])
            assert seen == {cid: ["connect", "disconnect"] for cid in cids}
