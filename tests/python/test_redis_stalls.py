"""A stopped node takes nobody else for dead: neither Redis nor another node."""

import json
import signal
import threading
import time

import pytest
from redis_harness import Pusher, await_ready, log_of, missed, run_all


@pytest.mark.parametrize("size", ["1", "2"], ids=["1-worker", "2-workers"])
def test_a_node_that_stood_still_keeps_its_links(own_redis, own_node, size):
    """Stopped for longer than it waits for a reply of Redis and for its canary, and with a push in
    flight for longer than `--queue_timeout_ms`: all of that was blamed on Redis."""
    redis = own_redis()
    args = ("--queue_timeout_ms", "1000")
    nodes = [own_node(number, redis.url, *args, workers=size) for number in (7, 8)]
    statuses, is_over = [], threading.Event()

    def push_on():
        with Pusher(nodes[0]) as pusher:
            while not is_over.is_set():
                statuses.append(pusher.push({"pid": "1", "data": "own", "uids": ["u"]}))

    def stop_and_go():
        time.sleep(0.1)
        nodes[0].signal(signal.SIGSTOP)
        stopped = time.monotonic()
        for number in range(20):
            nodes[1].push(number, uids=["u"])
        time.sleep(max(0, stopped + 2.6 - time.monotonic()))
        nodes[0].signal(signal.SIGCONT)
        time.sleep(0.1)
        is_over.set()

    with nodes[0].client("u") as one, nodes[1].client("u") as other:
        run_all(stop_and_go, *[push_on] * 4)
        for client in (one, other):
            # The node's workers do not wait for each other.
            data = [client.pushed() for _ in range(20 + len(statuses))]
            assert [item for item in data if item != '"own"'] == list(map(json.dumps, range(20)))
    assert set(statuses) == {200}
    await_ready(*nodes)
    for server in nodes:
        assert "the queue is down" not in log_of(server)
        assert server.metric("ws_cluster_queue_link_loss_total") == 0
        assert missed(server) == {}
