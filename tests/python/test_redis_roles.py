"""A Redis that is not a master accepts pushes but delivers them to nobody: the node notices and
reports it."""

import json

import pytest
from harness import eventually
from redis_harness import SLACK, await_ready, await_unready, log_of, sync, try_push

# The contract promises 3 s; the rest is for a busy machine.
NOTICED = 5.0


@pytest.fixture(params=["1", "2"], ids=["1-worker", "2-workers"])
def size(request):
    return request.param


# Whether the broker shares its worker's thread makes no difference to these tests.
ALONE = pytest.mark.parametrize("size", ["1"], indirect=True, ids=["1-worker"])
APART = pytest.mark.parametrize("size", ["2"], indirect=True, ids=["2-workers"])


def assert_alive(client):
    assert json.loads(client.ask({"type": "heartbeat"}))["code"] == 1


@ALONE
def test_a_master_becomes_a_replica(own_redis, own_node, size):
    """Every PING was answered, and so was every push, with 200; no other node got them."""
    redis, new_master = own_redis(), own_redis()
    server = own_node(7, redis.url, workers=size)
    with server.client("u") as client:
        server.push("before", uids=["u"])
        assert client.pushed() == '"before"'
        redis.command("REPLICAOF", "127.0.0.1", new_master.port)
        word = f"is a replica of 127.0.0.1:{new_master.port}"
        took_s, words = await_unready(server, word=word)
        assert took_s < NOTICED and "--redis" in words
        assert try_push(server, "no", uids=["u"]) == 503
        eventually(lambda: word in log_of(server), "the reason in the log")
        assert_alive(client)
        redis.command("REPLICAOF", "NO", "ONE")
        await_ready(server, timeout=NOTICED)
        server.push("after", uids=["u"])
        assert sync([server], [client]) == [['"after"']]


@APART
def test_a_node_that_starts_at_a_replica(own_redis, own_node, size):
    master = own_redis("--repl-diskless-sync-delay", "0")
    replica = own_redis("--replicaof", f"127.0.0.1 {master.port}")
    server = own_node(7, replica.url, workers=size, wait=False)
    await_unready(server, word=f"is a replica of 127.0.0.1:{master.port}")
    with server.client("u") as client:
        assert try_push(server, "no", uids=["u"]) == 503
        assert_alive(client)
        replica.command("REPLICAOF", "NO", "ONE")
        await_ready(server, timeout=NOTICED)
        server.push("after", uids=["u"])
        assert client.pushed() == '"after"'


@ALONE
def test_without_the_right_to_ask_hello_answers(own_redis, own_node, size):
    """Only ROLE needs the right to ROLE: a missing right is logged once, and the node works."""
    rules = ("on", "nopass", "allchannels", "+@pubsub", "+ping")
    master = own_redis()
    master.command("ACL", "SETUSER", "app", *rules)
    server = own_node(7, f"redis://app:x@127.0.0.1:{master.port}", workers=size)
    with server.client("u") as client:
        server.push("works", uids=["u"])
        assert client.pushed() == '"works"'
        master.command("CLIENT", "KILL", "TYPE", "pubsub")
        eventually(lambda: server.metric("ws_cluster_queue_link_loss_total"), "a new link", SLACK)
        await_ready(server)
    assert log_of(server).count("+role") == 1 and log_of(server).count("+config|get") == 1
    # A master that became a replica answered 200 to everything if the right to ROLE was missing.
    other = own_redis()
    master.command("REPLICAOF", "127.0.0.1", other.port)
    assert await_unready(server, word="is a replica")[0] < NOTICED
    assert try_push(server, "no", uids=["u"]) == 503
    master.command("REPLICAOF", "NO", "ONE")
    await_ready(server, timeout=NOTICED)
    replica = own_redis("--replicaof", f"127.0.0.1 {master.port}")
    replica.command("ACL", "SETUSER", "app", *rules)
    other = own_node(8, f"redis://app:x@127.0.0.1:{replica.port}", workers=size, wait=False)
    await_unready(other, word="is a replica")
