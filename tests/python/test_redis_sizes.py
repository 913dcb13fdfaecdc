"""Messages that are larger than Redis accepts or delivers: each was answered with 200, reached
nobody and cut the links of every node, again and again."""

import json

import pytest
from harness import eventually
from redis_harness import SLACK, Proxy, await_ready, sync, try_push
from test_servers import request

MEGABYTE = 1 << 20
ARGS = ("--max_body_bytes", "8M", "--max_message_bytes", "4M", "--outbox_bytes", "64M")
SETTINGS = {
    "client-query-buffer-limit": ("1mb", "client-query-buffer-limit 1048576"),
    "proto-max-bulk-len": ("2mb", "proto-max-bulk-len 2097152"),
    "client-output-buffer-limit": ("pubsub 2mb 0 0", "pubsub 2097152"),
    # Once on its way in, and once for each of the two nodes.
    "maxmemory-clients": ("4mb", "maxmemory-clients 4194304"),
}


def losses(*servers):
    return sum(server.metric("ws_cluster_queue_link_loss_total") for server in servers)


def too_large(server, what):
    return server.metric("ws_cluster_queue_too_large_total", what=what)


@pytest.mark.parametrize("name", SETTINGS)
def test_a_push_that_redis_would_not_carry_is_refused(own_redis, own_node, name):
    value, words = SETTINGS[name]
    redis = own_redis()
    redis.command("CONFIG", "SET", name, value)
    nodes = [own_node(7, redis.url, *ARGS, workers="1"), own_node(8, redis.url, *ARGS)]
    limits = lambda: {int(node.metric("ws_cluster_queue_max_message_bytes")) for node in nodes}
    eventually(lambda: len(limits()) == 1, "the nodes know of each other")
    limit = limits().pop()
    assert MEGABYTE // 2 < limit <= 2 * MEGABYTE
    with nodes[1].client("u") as client:
        for server in nodes:
            for size, status in ((limit, 413), (limit - 500, 200), (3 * limit, 413)):
                push = {"pid": "1", "data": "x" * size, "uids": ["u"]}
                answer = server.post_json("/ws/push", push)
                assert answer.status == status, answer.text
                if status == 200:
                    # Not compared by pytest, which would print the difference of megabytes.
                    is_same = client.pushed() == json.dumps(push["data"])
                    assert is_same
            for word in (str(limit), words, "CONFIG SET"):
                assert word in answer.json["msg"], answer.text
            messages = [{"data": "x" * limit}, {"data": "small", "uids": ["u"]}]
            batch = server.post_json("/ws/push/batch", {"pid": "1", "messages": messages})
            assert batch.status == 200
            assert [one["code"] for one in batch.json["results"]] == [0, 1]
            assert words in batch.json["results"][0]["msg"]
            assert client.pushed() == '"small"'
            messages.pop()
            assert server.post_json("/ws/push/batch", {"pid": "1", "messages": messages}).status == 413
            assert too_large(server, "push") == 4
        assert sync(nodes, [client]) == [[]]
    with nodes[0].business() as business:
        business.send({"type": "push", "id": "1", "data": "x" * limit})
        answer = business.json()
        assert (answer["type"], answer["code"], words in answer["msg"]) == ("push", 0, True)
    assert losses(*nodes) == 0


def test_a_request_and_an_answer_that_redis_would_not_carry(own_redis, own_node):
    """The client waited until its request had timed out."""
    redis = own_redis()
    redis.command("CONFIG", "SET", "client-query-buffer-limit", "1mb")
    a, b = own_node(7, redis.url, *ARGS, workers="1"), own_node(8, redis.url, *ARGS)
    with a.client("ann") as ann, b.business("request") as server:
        eventually(lambda: a.metric("ws_cluster_business_server_known") == 1, "news of the server")
        request(ann, "x" * MEGABYTE, "r1")
        refused = {"type": "response", "id": "r1", "code": 0}
        assert ann.json() == {**refused, "msg": "the request is too large for the queue"}
        request(ann, "small", "r2")
        asked = server.json()
        answer = {"type": "response", "id": asked["id"], "data": "x" * MEGABYTE}
        server.send(answer)
        refused["id"] = "r2"
        assert ann.json() == {**refused, "msg": "the answer is too large for the queue"}
    assert a.metric("ws_cluster_request_answer_total", result="too_large") == 2
    assert too_large(a, "parcel") == too_large(b, "parcel") == 1
    assert losses(a, b) == 0


def node_that_may_not_ask(own_redis, own_node, workers, limit):
    redis = own_redis()
    redis.command("CONFIG", "SET", limit, "1mb")
    redis.command("ACL", "SETUSER", "app", "on", "nopass", "allchannels", "+@pubsub", "+ping", "+role")
    url = f"redis://app:x@127.0.0.1:{redis.port}"
    return own_node(7, url, *ARGS, "--queue_timeout_ms", "60000", workers=workers)


def test_a_push_whose_length_redis_refuses(own_redis, own_node):
    """Its answer said to try again."""
    server = node_that_may_not_ask(own_redis, own_node, "1", "proto-max-bulk-len")
    push = {"pid": "1", "data": "x" * 2 * MEGABYTE}
    for losses_so_far in (1, 2):
        answer = server.post_json("/ws/push", push)
        assert answer.status == 413 and "proto-max-bulk-len" in answer.json["msg"], answer.text
        eventually(lambda: losses(server) == losses_so_far, "Redis ends the link", SLACK)
        await_ready(server)
    assert try_push(server, "after") == 200


@pytest.mark.parametrize("workers", ["1", "2"], ids=["1-worker", "2-workers"])
def test_a_push_that_ends_the_links_is_sent_three_times_at_most(own_redis, own_node, workers):
    """The node may not query the limits."""
    server = node_that_may_not_ask(own_redis, own_node, workers, "client-query-buffer-limit")
    with server.client("u") as client:
        answer = server.post_json("/ws/push", {"pid": "1", "data": "x" * 2 * MEGABYTE, "uids": ["u"]})
        assert (answer.status, answer.json["msg"]) == (504, "outcome unknown")
        await_ready(server, timeout=SLACK)
        assert try_push(server, "after", uids=["u"]) == 200
        assert client.pushed() == '"after"'
        assert losses(server) == 3
        assert server.metric("ws_cluster_queue_abandoned_total") == 1


def test_a_push_that_takes_long_to_write_is_no_silence_of_redis(own_redis, own_node):
    """While it was written and read back, Redis did not reply, and both links were cut, again with
    each attempt to send it."""
    redis = own_redis()
    proxy = Proxy(lambda _: redis.port, bytes_per_s=2 * MEGABYTE)
    try:
        server = own_node(7, proxy.url, *ARGS, "--queue_timeout_ms", "60000", workers="1")
        with server.client("u") as client:
            push = {"pid": "1", "data": "x" * 5 * MEGABYTE, "uids": ["u"]}
            assert server.post_json("/ws/push", push).status == 200
            is_same = client.pushed() == json.dumps(push["data"])
            assert is_same
        assert losses(server) == 0
    finally:
        proxy.stop()


@pytest.mark.parametrize("workers", ["1", "2"], ids=["1-worker", "2-workers"])
def test_pushes_that_are_too_large_together_go_one_after_the_other(own_redis, own_node, workers):
    """All were answered with 200, and Redis disconnected the subscribers."""
    redis = own_redis()
    redis.command("CONFIG", "SET", "client-output-buffer-limit", "pubsub 2mb 0 0")
    limits = ("--max_body_bytes", "16M", "--outbox_bytes", "128M")
    nodes = [own_node(7, redis.url, *limits, workers=workers), own_node(8, redis.url, *limits)]
    with nodes[0].client("u") as near, nodes[1].client("u") as far:
        for turn in range(3):
            letters = [f"{turn}{letter}" for letter in "abcdef"]
            messages = [{"data": pair * (3 * MEGABYTE // 4), "uids": ["u"]} for pair in letters]
            answer = nodes[0].post_json("/ws/push/batch", {"pid": "1", "messages": messages})
            assert answer.status == 200, answer.text
            assert [one["code"] for one in answer.json["results"]] == [1] * len(messages)
            for client in (near, far):
                assert [client.pushed()[1:3] for _ in messages] == letters
    assert losses(*nodes) == 0


@pytest.mark.parametrize("limit", ["24kb", "64kb"])
def test_small_pushes_that_leave_together_fit_what_redis_holds(own_redis, own_node, limit):
    """Up to 64 KiB of them shared a PUBLISH: all were answered 200, and Redis cut the subscribers."""
    redis = own_redis()
    redis.command("CONFIG", "SET", "client-output-buffer-limit", f"pubsub {limit} 0 0")
    nodes = [own_node(7, redis.url, *ARGS, workers="1"), own_node(8, redis.url, *ARGS)]
    with nodes[0].client("u") as near, nodes[1].client("u") as far:
        for turn in range(10):
            data = [f"{turn}-{number}-".ljust(3_900, "x") for number in range(64)]
            messages = [{"data": one, "uids": ["u"]} for one in data]
            answer = nodes[turn % 2].post_json("/ws/push/batch", {"pid": "1", "messages": messages})
            assert answer.status == 200, answer.text[:200]
            assert {one["code"] for one in answer.json["results"]} == {1}
            for client in (near, far):
                is_same = [json.loads(client.pushed()) for _ in messages] == data
                assert is_same
    assert losses(*nodes) == 0


def test_a_push_that_would_exceed_the_memory_of_all_clients(own_redis, own_node):
    """Redis ended the link that brought it; it was sent three times and answered with 504."""
    redis = own_redis()
    redis.command("CONFIG", "SET", "maxmemory", "64mb", "maxmemory-clients", "5%")
    server = own_node(7, redis.url, *ARGS, workers="1")
    answer = server.post_json("/ws/push", {"pid": "1", "data": "x" * 4 * MEGABYTE})
    assert answer.status == 413 and "maxmemory-clients" in answer.json["msg"], answer.text
    assert losses(server) == 0
